# The guest's scripts source this file. /lab.env has the scenario's values (see Vm in xtask/src/lab/vm.rs).
. /lab.env
# Busybox would otherwise run its own applets with these names.
ip() { /usr/bin/ip "$@"; }
mke2fs() { /usr/bin/mke2fs "$@"; }

# The guest and the runner take turns over the second serial port. The guest writes `STEP name words`. The runner answers
# `GO words` or `NO reason`.
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1

die() {
  echo "FAIL $*" >&2
  exit 1
}

# step NAME [WORD...]: gives the turn to the runner, waits for the runner's answer and prints it.
# Use: x=$(step NAME) || exit 1
step() {
  echo "LAB step $*" >&2
  echo "STEP $*" >&3
  read -r verdict answer <&3
  [ "$verdict" = GO ] || die "step $1: the runner said $verdict $answer"
  echo "$answer"
}

# want COMMAND...: runs COMMAND, and ends the test if COMMAND fails. Only a failure shows the output, because fio prints
# pages of it.
want() {
  echo "LAB $(cut -d" " -f1 /proc/uptime) $*"
  "$@" > /tmp/out 2>&1 || { rc=$?; cat /tmp/out; die "($rc) $*"; }
}

# within SECONDS COMMAND...: waits until the command succeeds.
within() {
  left=$(($1 * 10))
  shift
  until "$@"; do
    left=$((left - 1))
    [ $left -gt 0 ] || die "not in time: $*"
    sleep 0.1
  done
}

net_up() {
  load virtio_pci virtio_net
  within 20 test -e /sys/class/net/eth0
  ip addr add "$LAB_ADDRESS" dev eth0
  ip link set eth0 up
}

load() {
  for module; do modprobe "$module" || die "modprobe $module"; done
}
