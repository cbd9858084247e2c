#!/bin/bash
# initramfs.sh CACHE KERNEL: makes two files below CACHE to boot the unpacked kernel (see kernel.sh), and prints their folder.
# `vmlinux` is an uncompressed ELF file, which under emulation boots seconds faster than the compressed image. `base.cpio` has
# busybox, modules, nvme-cli, fio and e2fsprogs. The runner appends a second archive with the test itself. The script builds the
# files once for each kernel, version of the tools and version of these scripts.
set -euo pipefail
cache=$1 kernel=$2
here=$(cd "$(dirname "$0")" && pwd)
version=${kernel##*/kernel-}

# The modules that the guest scripts need.
required="virtio_pci virtio_net virtio_blk af_packet configfs ext4 nvme-tcp nvmet-tcp crc32c_generic"
# Optional modules: absent from one of the two kernel series, or only for speed.
optional="nvme_keyring nvme_auth crc32c-intel crc32-pclmul crc16 mbcache libcrc32c ipv6 failover net_failover"
tools="nvme ip fio mke2fs e2fsck resize2fs"

key=$({ echo "$version"; sha256sum < "$0"; sha256sum < "$here/guest/init"; for t in busybox $tools; do
  sha256sum < "$(readlink -f "$(command -v "$t")")"; done; } | sha256sum | cut -c1-16)
out=$cache/boot-$version-$key
if [ -e "$out/complete" ]; then
  echo "$out"
  exit 0
fi
echo "initramfs.sh: building for $version" >&2
rm -rf "$cache/boot-$version-"* "$out.part"
root=$out.part/root
mkdir -p "$root"/{bin,dev,etc/nvme,lib,lib64,mnt,proc,run,sbin,sys,tmp,usr/bin,usr/sbin,var}

# The modules and their dependencies, decompressed, because busybox modprobe reads plain files fastest.
for m in $required $optional; do
  modprobe --dirname "$kernel" --set-version "$version" --show-depends --ignore-install "$m" 2>/dev/null || {
    case " $required " in *" $m "*) echo "initramfs.sh: kernel $version has no module $m" >&2; exit 1 ;; esac
  }
done | awk '$1 == "insmod" {print $2}' | sort -u > "$out.part/modules"
while read -r file; do
  to=$root${file#"$kernel"}
  mkdir -p "${to%/*}"
  cp "$file" "$to"
  case $to in *.xz) xz -d "$to" ;; *.zst) zstd -q --rm -d "$to" ;; esac
done < "$out.part/modules"
cp "$kernel/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$version/"
depmod -b "$root" "$version"

# The programs, with the libraries that they link.
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s /bin/busybox "$root/bin/$applet"; done
ln -s /bin/busybox "$root/sbin/modprobe" # where the kernel looks for it
add() {
  mkdir -p "$root${1%/*}"
  cp -nL "$1" "$root$1"
}
libs() { ldd "$1" | grep -o '/[^ ]*' || true; }
for t in $tools; do
  file=$(readlink -f "$(command -v "$t")")
  cp -L "$file" "$root/usr/bin/$t"
  for l in $(libs "$file"); do add "$l"; done
done
# glibc opens this library by itself when a thread ends. The gateway's binary links it as well.
for l in $(ldconfig -p | awk '$1 ~ /^(libgcc_s.so.1|libm.so.6|libc.so.6)$/ && /x86-64/ {print $NF}'); do add "$l"; done

echo root:x:0:0:root:/:/bin/sh > "$root/etc/passwd"
echo root:x:0: > "$root/etc/group"
echo 127.0.0.1 localhost > "$root/etc/hosts"
cp "$here/guest/init" "$root/init"
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc) > "$out.part/base.cpio"

# The x86 boot protocol (Documentation/arch/x86/boot.rst): setup_sects at 0x1f1, payload_offset at 0x248 from the end of
# the setup code, payload_length at 0x24c. The payload's last four bytes are its unpacked size.
image=$kernel/boot/vmlinuz-$version
u32() { od -An -tu4 -j$(($1)) -N4 "$image" | tr -d ' '; }
setup=$(od -An -tu1 -j$((0x1f1)) -N1 "$image" | tr -d ' ')
from=$(((setup + 1) * 512 + $(u32 0x248)))
length=$(($(u32 0x24c) - 4))
tail -c +$((from + 1)) "$image" | head -c "$length" > "$out.part/payload" || true
case $(od -An -tx1 -N4 "$out.part/payload" | tr -d ' ') in
fd377a58) xz -dc "$out.part/payload" ;;
28b52ffd) zstd -qdc "$out.part/payload" ;;
04224d18 | 02214c18) echo "initramfs.sh: $image is packed with lz4" >&2; exit 1 ;;
*) echo "initramfs.sh: $image is packed in an unknown way" >&2; exit 1 ;;
esac > "$out.part/vmlinux"

rm -rf "$root" "$out.part/payload"
touch "$out.part/complete"
mv "$out.part" "$out"
echo "$out"
