# Our gateway in a VM that has one NUMA node for each CPU. The gateway's pool is on /dev/vda. At first one node has all reserved
# hugepages, later each node has some. Orders of the runner, each with the step that answers it:
#   start: starts the gateway -> started
#   kill: kills the gateway -> killed
#   grow SIZE: grows the LUN -> grown
#   offer: creates the second subsystem -> offered
#   stop: stops the gateway in good order, and ends the VM
. /lib.sh
net_up
load virtio_blk
within 20 test -b /dev/vda
mkdir -p /run/trefoil
ln -s /dev/vda /run/trefoil/pool.img

# hugepages COUNT...: sets the number of hugepages that each node reserves. The memory of a core takes 32, the memory of the
# control thread 4.
hugepages() {
  node=0
  for count; do
    reserved=/sys/devices/system/node/node$node/hugepages/hugepages-2048kB/nr_hugepages
    echo "$count" > $reserved
    [ "$(cat $reserved)" = "$count" ] || die "node $node has $(cat $reserved) hugepages"
    node=$((node + 1))
  done
}

# placed HUGE...: checks that all payload memory of each core is on the node of the core's CPU, and on hugepages if HUGE is
# true. A line of the log: `a core starts core=0 cpu=0 numa_node=Some(0) memory=0x7f.. huge=false`.
placed() {
  within 10 all_logged
  nodes=
  while read -r core cpu memory huge; do
    [ "$huge" = "$1" ] || die "core $core is on hugepages: $huge, not $1"
    shift
    node=$(basename "/sys/devices/system/cpu/cpu$cpu"/node*)
    nodes="$nodes $node"
    map=$(grep "^$memory " "/proc/$gateway/numa_maps") || die "core $core has no memory at $memory"
    echo "LAB core $core on $node: $map"
    echo "$map" | tr ' ' '\n' | awk -F= -v node="N${node#node}" '
      $1 ~ /^N[0-9]+$/ && $1 != node {elsewhere = 1}
      $1 == node {pages = $2}
      $1 == "kernelpagesize_kB" {size = $2}
      END {exit elsewhere || pages * size != 65536}' || die "core $core on $node: $map"
  done < /run/starts
  [ "$nodes" = " node0 node1" ] || die "the cores are on$nodes"
}
all_logged() {
  sed -n 's/.*a core starts core=\([0-9]*\) cpu=\([0-9]*\) .* memory=0x\([0-9a-f]*\) huge=\([a-z]*\).*/\1 \2 \3 \4/p' \
    /run/trefoild.log > /run/starts
  [ "$(wc -l < /run/starts)" = 2 ]
}

listens() { grep -q "$(printf ':%04X 0*:0000 0A' "$LAB_PORT")" /proc/net/tcp; }
alive() { kill -0 "$gateway" 2>/dev/null; }
listens_or_dead() { listens || ! alive; }
start() {
  tee /run/trefoild.log < /run/log.pipe >&2 &
  trefoild /etc/trefoild.toml > /run/log.pipe 2>&1 &
  gateway=$!
  within 60 listens_or_dead
  alive || die "trefoild ended at its start"
}

# The running gateway holds the disk exclusively, as a file system holds a mounted disk. The preflight of a second gateway
# must report this.
held() {
  sed 's,^state_dir.*,state_dir = "/run/second",; s,^rpc_socket.*,rpc_socket = "/run/second/rpc.sock",' \
    /etc/trefoild.toml > /run/second.toml
  ! trefoild --preflight /run/second.toml > /run/preflight || die "a preflight has nothing against a disk that is in use"
  grep -q '^LACKING .*path /run/trefoil/pool.img is mounted, or another program holds the device' /run/preflight ||
    die "$(cat /run/preflight)"
}

uname -r
mkfifo /run/log.pipe
hugepages 72 0
start
placed true false
held
order=$(step started) || exit 1
while :; do
  # shellcheck disable=SC2086 # an order and its word
  set -- $order
  case $1 in
  start)
    hugepages 36 36
    start
    placed true true
    order=$(step started) || exit 1
    ;;
  kill)
    kill -KILL "$gateway"
    wait "$gateway"
    order=$(step killed) || exit 1
    ;;
  grow)
    want trefoil --socket /run/trefoil/trefoil.sock lun grow "$LAB_LUN" "$2"
    order=$(step grown) || exit 1
    ;;
  offer)
    want trefoil --socket /run/trefoil/trefoil.sock subsystem create "$LAB_NQN_2" --host "$LAB_HOSTNQN" \
      --listen "${LAB_ADDRESS%/*}:$LAB_PORT"
    order=$(step offered) || exit 1
    ;;
  stop)
    kill -TERM "$gateway"
    wait "$gateway" || die "trefoild ended badly"
    exit 0
    ;;
  *) die "unknown order '$order'" ;;
  esac
done
