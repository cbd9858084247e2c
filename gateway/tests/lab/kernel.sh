#!/bin/bash
# kernel.sh CACHE SERIES: downloads Debian's kernel of that series (6.1 or 6.12), unpacks it below CACHE, and prints its folder
# (boot/vmlinuz-*, lib/modules/*). The script never installs the kernel.
#
# Debian 12 has 6.1; 6.12 is in bookworm-backports, which few machines list. So apt uses a separate configuration below
# CACHE: with the machine's mirror and Debian's keys, but without the machine's lists of sources. Nothing outside CACHE
# changes. Without a network, the script uses the newest kernel in the cache.
set -euo pipefail
cache=$1 series=$2
case $series in
6.1) suite=bookworm ;;
6.12) suite=bookworm-backports ;;
*) echo "kernel.sh: no kernel series '$series'; 6.1 and 6.12 are known" >&2; exit 2 ;;
esac
mkdir -p "$cache"
say() { echo "kernel.sh: $*" >&2; }
newest() { find "$cache" -maxdepth 1 -type d -name "kernel-$series.*" | sort -V | tail -n 1; }

# A list that is up to a day old is good enough, because a request to the mirror takes seconds.
have=$(newest)
if [ -n "$have" ] && [ -n "$(find "$cache/checked-$series" -mtime -1 2>/dev/null)" ]; then
  echo "$have"
  exit 0
fi

apt=$cache/apt-$series
mkdir -p "$apt"/{lists/partial,archives/partial,parts,state}
mirror=$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 2>/dev/null |
  awk '$1 == "Debian" && $2 == "bookworm" {print $3; exit}')
if [ -z "$mirror" ]; then
  [ -n "$have" ] && { say "no Debian mirror known to apt; using $have"; echo "$have"; exit 0; }
  say "apt on this machine knows no Debian 12 mirror (run 'apt-get update'?), and the cache has no $series kernel"
  exit 1
fi
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$apt/sources.list"
touch "$apt/state/status"
cat > "$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/parts";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/state/status";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
APT::Architecture "amd64";
APT::Sandbox::User "root";
CONF
export APT_CONFIG=$apt/apt.conf

if ! apt-get update -qq >&2; then
  [ -n "$have" ] && { say "the mirror can't be reached; using $have"; echo "$have"; exit 0; }
  say "the mirror can't be reached, and the cache has no $series kernel"
  exit 1
fi
# The meta package names the current image: linux-image-6.12.x+deb12-amd64.
image=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*-amd64\)$/\1/p' | head -n 1)
case $image in
linux-image-"$series".*) ;;
*) say "$suite offers '${image:-nothing}', not a $series kernel"; exit 1 ;;
esac
version=${image#linux-image-}
root=$cache/kernel-$version
if [ ! -e "$root/complete" ]; then
  say "fetching $image"
  rm -rf "$root" "$root.part"
  mkdir -p "$root.part/deb"
  (cd "$root.part/deb" && apt-get download -qq "$image" >&2)
  dpkg -x "$root.part"/deb/*.deb "$root.part"
  rm -r "$root.part/deb"
  depmod -b "$root.part" "$version"
  touch "$root.part/complete"
  mv "$root.part" "$root"
fi
touch "$cache/checked-$series"
echo "$root"
