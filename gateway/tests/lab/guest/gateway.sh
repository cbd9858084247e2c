# Our gateway in a VM, its pool on /dev/vda. Orders, each answered by a step:
#   start -> started; kill -> killed; grow SIZE -> grown; offer: the second subsystem -> offered; stop: ends it in good order, and the VM.
. /lib.sh
net_up
load virtio_blk
within 20 test -b /dev/vda
mkdir -p /run/trefoil
ln -s /dev/vda /run/trefoil/pool.img

listens() { grep -q "$(printf ':%04X 0*:0000 0A' "$LAB_PORT")" /proc/net/tcp; }
alive() { kill -0 "$gateway" 2>/dev/null; }
listens_or_dead() { listens || ! alive; }
start() {
  trefoild /etc/trefoild.toml >&2 &
  gateway=$!
  within 60 listens_or_dead
  alive || die "trefoild ended at its start"
}

uname -r
start
order=$(step started) || exit 1
while :; do
  # shellcheck disable=SC2086 # an order and its word
  set -- $order
  case $1 in
  start)
    start
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
