# Linux as an NVMe/TCP host of the target at $LAB_TARGET. The script does everything that an administrator does with a LUN,
# without and with digests, and also while the runner kills the target under load. Steps that the runner carries out:
#   grow: grows the namespace, and answers with the new size in bytes
#   kill: kills the target; start: starts the target again
#   cut: cuts the power of the array under the target's LUN; restore: starts the array again
#   ana STATE: sets the ANA state of the array's namespace
#   beside shown: gives the target's subsystem a second LUN, which isn't on the array; beside hidden: removes that LUN
#   offer: gives the target a second subsystem
#   done: ends the test
. /lib.sh
net_up
load nvme-tcp ext4
mkdir -p /mnt/lun

to_target="-t tcp -a $LAB_TARGET -s $LAB_PORT -q $LAB_HOSTNQN -I $LAB_HOSTID"
# shellcheck disable=SC2086 # words
discovered() { nvme discover $to_target > /tmp/discovered 2>&1; }

# sysfs shows a multipath head below its subsystem, and a plain namespace below its controller. Both parents have a file
# subsysnqn.
find_disk() {
  for d in /sys/block/nvme*n*; do
    [ "$(cat "$d/device/subsysnqn" 2>/dev/null)" = "$LAB_NQN" ] && disk=/dev/${d##*/} && [ -b "$disk" ] && return
  done
  return 1
}
controller_of() { # NQN: prints the controller's path in sysfs
  for c in /sys/class/nvme/nvme*; do
    [ "$(cat "$c/subsysnqn" 2>/dev/null)" = "$1" ] && echo "$c" && return
  done
  return 1
}
state_is() { [ "$(cat "$controller/state")" = "$1" ]; }
size_is() { [ "$(blockdev --getsize64 "$disk")" = "$1" ]; }
writes_done() { [ "$(awk '{print $5}' "/sys/block/${disk##*/}/stat")" -ge "$1" ]; }
disk_gone() { ! find_disk; }

connect() { # [nvme-cli's options]
  # shellcheck disable=SC2086 # words
  want nvme connect $to_target -n "$LAB_NQN" \
    --nr-io-queues=2 --keep-alive-tmo=5 --reconnect-delay=1 --ctrl-loss-tmo=600 "$@"
  within 20 find_disk
  controller=$(controller_of "$LAB_NQN") || die "no controller of $LAB_NQN"
}
disconnect() {
  want nvme disconnect -n "$LAB_NQN"
  within 20 disk_gone
}

# Writes blocks with a crc32c of their data, reads them back and checks the sums.
checked() { # FILE FIO-OPTIONS...
  file=$1
  shift
  want fio --name=checked --filename="$file" --ioengine=libaio --direct=1 --thread --verify=crc32c --verify_fatal=1 \
    --randseed=7 --output-format=terse "$@"
}

# Reads nvme-cli's tables: `field NAME FILE` prints the value in a line `NAME : value`.
field() {
  awk -F: -v name="$1" '{key = $1; gsub(/[ \t]/, "", key)} key == name {sub(/^[^:]*:[ \t]*/, ""); sub(/ *$/, ""); print; exit}' "$2"
}
same() { # WHAT FOUND EXPECTED
  [ "$2" = "$3" ] || die "$1 is '$2', not '$3'"
}
asked() { # WORDS OF NVME-CLI: leaves the answer in /tmp/out
  want nvme "$@"
}

# Checks the properties that the target reports, with an administrator's commands.
inspect() {
  c=/dev/${controller##*/}
  asked id-ctrl "$c"
  cat /tmp/out
  same subnqn "$(field subnqn /tmp/out)" "$LAB_NQN"
  same cntrltype "$(field cntrltype /tmp/out)" 1
  same sqes "$(field sqes /tmp/out)" 0x66
  same cqes "$(field cqes /tmp/out)" 0x44
  same "cmic's ANA bit" $(($(field cmic /tmp/out) >> 3 & 1)) 1
  same "vwc's first bit" $(($(field vwc /tmp/out) & 1)) 1
  same "oncs' DSM and Write Zeroes" $(($(field oncs /tmp/out) >> 2 & 3)) 3
  [ "$(field nn /tmp/out)" -ge 1 ] && [ "$(field kas /tmp/out)" -ge 1 ] && [ "$(field maxcmd /tmp/out)" -ge 32 ] ||
    die "id-ctrl"
  asked id-ns "$disk"
  cat /tmp/out
  size=$(blockdev --getsize64 "$disk")
  for name in nsze ncap nuse; do
    same $name $(($(field $name /tmp/out) * $(blockdev --getss "$disk"))) "$size"
  done
  same anagrpid "$(field anagrpid /tmp/out)" 1
  asked ns-descs "$disk"
  same uuid "$(field uuid /tmp/out)" "$(cat "/sys/block/${disk##*/}/uuid")"
  same csi "$(field csi /tmp/out)" 0
  asked list-ns "$c"
  grep -q '0x1$' /tmp/out && [ "$(wc -l < /tmp/out)" = 1 ] || die "list-ns: $(cat /tmp/out)"
  asked list-subsys
  grep -q "traddr=$LAB_TARGET,trsvcid=$LAB_PORT.* live" /tmp/out || die "list-subsys: $(cat /tmp/out)"
  asked ana-log "$c"
  same "ana-log's ngrps" "$(field ngrps /tmp/out)" 1
  same "ana-log's state" "$(field state /tmp/out)" optimized
  same "ana-log's nsid" "$(field nsid /tmp/out)" 1
  asked smart-log "$c"
  same critical_warning "$(field critical_warning /tmp/out)" 0
  same media_errors "$(field media_errors /tmp/out)" 0
  asked error-log "$c" -e 1
  same "the newest error" "$(field status_field /tmp/out | cut -c1-2)" "0("
  # nvme-cli 2.3 decodes the effects log for PCIe only. Write (0x01) and Read (0x02) are supported, and Write changes
  # blocks.
  nvme get-log "$c" --log-id=5 --log-len=4096 --raw-binary > /tmp/effects || die "the effects log"
  same "Write's effects" "$(od -An -tx1 -j1028 -N1 /tmp/effects | tr -d ' ')" 03
  same "Read's effects" "$(od -An -tx1 -j1032 -N1 /tmp/effects | tr -d ' ')" 01
  asked changed-ns-list-log "$c"
  same "the changed namespaces" "$(cat /tmp/out)" ""
  asked fw-log "$c"
  asked get-feature "$c" -f 0x06
  grep -q 'value:0x00000001' /tmp/out || die "no volatile write cache: $(cat /tmp/out)"
  asked get-feature "$c" -f 0x07
  grep -q 'value:0x' /tmp/out || die "number of queues: $(cat /tmp/out)"
  asked get-feature "$c" -f 0x0b
  grep -q 'value:0x00000900' /tmp/out || die "namespace and ANA events are not on: $(cat /tmp/out)"
  asked get-feature "$c" -f 0x0f
  grep -q 'value:0x00001388' /tmp/out || die "keep-alive is not 5 s: $(cat /tmp/out)"
}

warnings() { dmesg -r | sed -n 's/^<[0-4]>\[[^]]*\] //p'; }
# Checks that the kernel has logged no warnings or errors, except those that a lost connection or a slow emulator must
# cause. If a disconnect cancels a keep-alive before it was sent, the keep-alive has no deadline yet. Linux 6.12 then logs
# its age since jiffy 0, which is five minutes after boot. Linux doesn't retry a read-ahead (flags with 80000h) after the
# loss of a connection, or after the target has given up its array.
given_up=
kernel_is_content() {
  warnings | tail -n +$((known + 1)) |
    grep -v -E 'nvme nvme[0-9]+: (failed to (send request|connect socket)|queue [0-9]+: timeout|I/O .* timeout|starting error recovery|Failed reconnect attempt|Reconnecting in|Property|failed nvme_keep_alive|rescanning namespaces|resetting controller)|block nvme[0-9n]+: no usable path|callbacks suppressed|nvme[0-9nc]+: I/O Cmd\(0x2\) @ LBA .* \(sct 0x3 / sc 0x(71'"$given_up"')\)|I/O error, dev nvme.* op 0x0:\(READ\) flags 0x2083700 |hrtimer: interrupt took|long keepalive RTT \(4294[6-9][0-9]{5} ms\)' \
      > /tmp/warned
  [ ! -s /tmp/warned ] || { cat /tmp/warned; die "the kernel warns"; }
}
# The number of warnings before the first connection to the target.
known=$(warnings | wc -l)

raw_io() {
  checked "$disk" --rw=randwrite --bs=4k --size=2m --iodepth=1
  checked "$disk" --rw=randwrite --bsrange=4k-64k --size=12m --iodepth=8
  checked "$disk" --rw=randwrite --bs=4k --size=12m --iodepth=32
  checked "$disk" --rw=write --bs=1m --size=24m --iodepth=4
}

filesystem() {
  want mke2fs -q -F -t ext4 "$disk"
  want mount -t ext4 "$disk" /mnt/lun
  checked /mnt/lun/a --rw=randwrite --bs=4k --size=12m --iodepth=16 --fsync=64
  rm /mnt/lun/a
  want fstrim -v /mnt/lun
  cat /tmp/out
  grep -q ' 0 bytes' /tmp/out && die "nothing was trimmed"
  checked /mnt/lun/b --rw=write --bs=256k --size=12m --iodepth=4 --end_fsync=1
  want umount /mnt/lun
  want e2fsck -fn "$disk"
}

grow() {
  new=$(step grow) || exit 1
  within 30 size_is "$new"
  checked "$disk" --rw=randwrite --bs=4k --offset=$((new - 4194304)) --size=4m --iodepth=8
  want e2fsck -fy "$disk"
  want resize2fs "$disk"
  want e2fsck -fn "$disk"
}

reset() {
  checked "$disk" --rw=randwrite --bs=4k --size=4m --iodepth=8 --do_verify=0
  want nvme reset "/dev/${controller##*/}"
  within 20 state_is live
  checked "$disk" --rw=randwrite --bs=4k --size=4m --iodepth=8 --verify_only
}

# Starts the writes during which a fault happens. At this rate they take 8 s on every machine. The fault happens when a
# quarter of them is done.
write_long() {
  want mke2fs -q -F -t ext4 "$disk"
  want mount -t ext4 "$disk" /mnt/lun
  before=$(awk '{print $5}' "/sys/block/${disk##*/}/stat")
  fio --name=long --filename=/mnt/lun/c --ioengine=libaio --direct=1 --thread --rw=randwrite --bs=4k --size=32m \
    --iodepth=16 --rate_iops=1000 --verify=crc32c --verify_fatal=1 --randseed=7 --fsync=256 --output-format=terse \
    > /tmp/long.out 2>&1 &
  fio=$!
  within 60 writes_done $((before + 2000))
}
still_writing() { kill -0 $fio 2>/dev/null || die "fio ended $1: $(cat /tmp/long.out)"; }
read_back() {
  wait $fio
  status=$?
  [ $status = 0 ] || { cat /tmp/long.out; die "fio failed $1, with status $status"; }
  echo 3 > /proc/sys/vm/drop_caches
  checked /mnt/lun/c --rw=randwrite --bs=4k --size=32m --iodepth=16 --verify_only
  want umount /mnt/lun
  want e2fsck -fn "$disk"
}

crash() {
  write_long
  step kill > /dev/null || exit 1
  within 60 state_is connecting
  still_writing "before the target was back"
  step start > /dev/null || exit 1
  within 60 state_is live
  read_back "over the target's crash"
}

# An outage that is shorter than the target's loss timeout. The host's commands wait.
outage() {
  write_long
  step cut > /dev/null || exit 1
  sleep 6
  step restore > /dev/null || exit 1
  still_writing "before the array was back"
  state_is live || die "the host noticed the array's loss"
  read_back "over the array's loss"
}

# The target starts while its array is away. The target shows the known namespace in the ANA state Inaccessible, and the
# host waits.
dark_start() {
  write_long
  step cut > /dev/null || exit 1
  step kill > /dev/null || exit 1
  within 60 state_is connecting
  step start > /dev/null || exit 1
  within 60 state_is live
  within 20 ana_is inaccessible
  still_writing "before the array was back"
  step restore > /dev/null || exit 1
  within 60 ana_is optimized
  state_is live || die "the host noticed the array's loss"
  read_back "over a start without the array"
}
path_of() { # NSID: prints the sysfs path of the controller's path to that namespace
  for p in "$controller"/nvme*c*n*; do
    [ "$(cat "$p/nsid" 2>/dev/null)" = "$1" ] && echo "$p" && return
  done
  return 1
}
ana_is() { [ "$(cat "$(path_of 1)/ana_state")" = "$1" ]; } # of namespace 1

# The target passes the ANA state of the array's namespace to the LUN on it at once, and to no other LUN. So commands wait
# in this host. At the target they would time out.
array_ana() {
  step beside shown > /dev/null || exit 1
  within 20 has_near
  write_long
  calm=$(troubles)
  since=$(seconds)
  step ana inaccessible > /dev/null || exit 1
  within 10 ana_is inaccessible
  within 10 under_way no
  echo "LAB inaccessible after $(($(seconds) - since)) s"
  # This time is longer than the loss timeout, which must have no effect, because the array isn't lost.
  sleep 14
  still_writing "when the array's namespace was inaccessible"
  under_way no || die "commands wait at the target"
  checked "$near" --rw=randwrite --bs=4k --size=1m --iodepth=4
  same "the other LUN's ANA state" "$(cat "$(path_of 2)/ana_state")" optimized
  step ana optimized > /dev/null || exit 1
  within 10 ana_is optimized
  read_back "over an inaccessible namespace of the array"

  # During the ANA state Change of the array, the target holds commands. If the state lasts long, the target shows the LUN
  # as Inaccessible. It does so within its own ANATT, the time after which hosts reset a target whose group stays in Change.
  write_long
  step ana change > /dev/null || exit 1
  within 10 under_way yes
  sleep 2
  ana_is optimized || die "a short change is noticed"
  before=$(awk '{print $5}' "/sys/block/${disk##*/}/stat")
  step ana optimized > /dev/null || exit 1
  within 10 writes_done $((before + 100))
  ana_is optimized || die "a short change is noticed"
  since=$(seconds)
  step ana change > /dev/null || exit 1
  within 20 ana_is inaccessible
  echo "LAB a change is inaccessible after $(($(seconds) - since)) s"
  within 10 under_way no
  sleep 4
  still_writing "when the array's namespace changed"
  ana_is inaccessible || die "a change that goes on ends"
  step ana optimized > /dev/null || exit 1
  within 10 ana_is optimized
  read_back "over a change of the array's namespace"
  same "what the host had to do about the target" "$(troubles)" "$calm"
  state_is live || die "the host noticed the array's changes"
  step beside hidden > /dev/null || exit 1
  within 20 has_no_near
}
seconds() { cut -d. -f1 /proc/uptime; }
# Counts the resets, reconnects and timeouts of this controller so far.
troubles() { dmesg | grep -c "nvme ${controller##*/}: .*\(recovery\|timeout\|resetting\|Reconnecting\)"; }
# Checks whether commands to namespace 1 are in flight at the target.
under_way() { # yes OR no
  read -r r w < "$(path_of 1)/inflight"
  case $((r + w)) in 0) [ "$1" = no ] ;; *) [ "$1" = yes ] ;; esac
}
has_near() {
  near=$(path_of 2) && near=/dev/$(echo "${near##*/}" | sed 's/c[0-9]*n/n/') && [ -b "$near" ]
}
has_no_near() { ! path_of 2 > /dev/null; }

# An outage that is longer than the target's loss timeout. Commands fail with Internal Path Error (3h/00h), without Do Not
# Retry. A command by nvme-cli shows this status. Linux retries block I/O to a multipath disk until it succeeds.
long_outage() {
  kernel_is_content
  given_up='|0'
  write_long
  step cut > /dev/null || exit 1
  within 60 path_lost
  cat /tmp/read.out
  still_writing "when the array was given up"
  step restore > /dev/null || exit 1
  within 60 reads
  still_writing "before the array was back"
  state_is live || die "the host noticed the array's loss"
  read_back "over the array's long loss"
}
reads() { nvme read "$disk" --start-block=0 --block-count=0 --data-size="$(blockdev --getss "$disk")" --data=/tmp/block > /tmp/read.out 2>&1; }
path_lost() { ! reads && grep -q 'Internal Path.*(0x300)' /tmp/read.out; }

# Tests a persistent discovery controller. The target reports a new subsystem to it by an event, and Linux passes the event
# to udev. A udev rule would connect to the new subsystem; here the script runs the rule's command. After the target's
# crash, the discovery controller reconnects, and Linux reads the discovery log again.
event() { grep -q "$1" /tmp/uevents; }
discovery_is_live() { [ "$(cat "$discovery/state")" = live ]; }
discovery_starts() {
  : > /tmp/uevents
  uevent sh -c 'echo "$DEVPATH AEN=$NVME_AEN EVENT=$NVME_EVENT" >> /tmp/uevents' &
  listener=$!
  # shellcheck disable=SC2086 # words
  want nvme connect-all $to_target --persistent --keep-alive-tmo=5 --reconnect-delay=1 --ctrl-loss-tmo=600 --nr-io-queues=2
  within 20 find_disk
  discovery=$(controller_of nqn.2014-08.org.nvmexpress.discovery) || die "no discovery controller stays"
  event AEN=0x && die "an event before there was anything new: $(cat /tmp/uevents)"
  step offer > /dev/null || exit 1
  within 20 event AEN=0x70f002
  # shellcheck disable=SC2086
  want nvme connect-all --device="${discovery##*/}" $to_target --quiet --nr-io-queues=2
  within 20 controller_of "$LAB_NQN_2" > /dev/null
  want nvme disconnect -n "$LAB_NQN_2"
  disconnect
}
discovery_was_kept() {
  discovery_is_live || die "the discovery controller is $(cat "$discovery/state")"
  dmesg | grep "nvme ${discovery##*/}: .*\(recovery\|Reconnecting\|keep_alive\)" && die "the discovery controller was lost"
}
discovery_ends() {
  within 60 discovery_is_live
  within 20 event EVENT=rediscover
  kill $listener
  want nvme disconnect -d "${discovery##*/}"
}

discovered || { cat /tmp/discovered; die "nvme discover"; }
cat /tmp/discovered
grep -q "$LAB_NQN" /tmp/discovered || die "$LAB_NQN is not in the discovery log"
discovery_starts
for digests in "" "--hdr-digest --data-digest"; do
  # shellcheck disable=SC2086 # two words
  connect $digests
  inspect
  raw_io
  filesystem
  grow
  reset
  disconnect
  # shellcheck disable=SC2086
  connect $digests
  if [ -z "$digests" ]; then
    discovery_was_kept
    crash
    discovery_ends
    if [ "$LAB_OUTAGE" != no ]; then
      outage
      dark_start
      array_ana
    fi
  else
    crash
    [ "$LAB_OUTAGE" = no ] || long_outage
  fi
  disconnect
done
kernel_is_content
step done > /dev/null
