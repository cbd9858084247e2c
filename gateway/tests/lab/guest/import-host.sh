# Linux as the host of a namespace with data on it, which the target at $LAB_TARGET presents unchanged. The namespace must
# have the identity $LAB_UUID, and its contents the SHA-256 sum $LAB_SUM. Then the host writes to three places that the
# runner knows, and disconnects.
. /lib.sh
net_up
load nvme-tcp

find_disk() {
  for d in /sys/block/nvme*n*; do
    [ "$(cat "$d/device/subsysnqn" 2>/dev/null)" = "$LAB_NQN" ] && disk=/dev/${d##*/} && [ -b "$disk" ] && return
  done
  return 1
}
disk_gone() { ! find_disk; }

want nvme connect -t tcp -a "$LAB_TARGET" -s "$LAB_PORT" -n "$LAB_NQN" -q "$LAB_HOSTNQN" -I "$LAB_HOSTID" \
  --nr-io-queues=2 --keep-alive-tmo=5 --reconnect-delay=1 --ctrl-loss-tmo=600
within 20 find_disk
found=$(cat "/sys/block/${disk##*/}/uuid")
[ "$found" = "$LAB_UUID" ] || die "its UUID is $found and not $LAB_UUID"
found=$(sha256sum < "$disk" | cut -d' ' -f1)
[ "$found" = "$LAB_SUM" ] || die "its content is $found and not $LAB_SUM"

tr '\0' T < /dev/zero | dd of="$disk" bs=64k seek=128 count=64 iflag=fullblock conv=fsync 2> /tmp/out || { cat /tmp/out; die dd; }
tr '\0' U < /dev/zero | dd of="$disk" bs=512 seek=40001 count=1 iflag=fullblock conv=fsync 2> /tmp/out || { cat /tmp/out; die dd; }
want fio --name=checked --filename="$disk" --ioengine=libaio --direct=1 --thread --verify=crc32c --verify_fatal=1 \
  --randseed=7 --output-format=terse --rw=randwrite --bs=4k --offset=24m --size=4m --iodepth=16
want nvme disconnect -n "$LAB_NQN"
within 20 disk_gone
step done > /dev/null
