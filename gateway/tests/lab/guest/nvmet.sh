# Linux's own NVMe/TCP target: the disk /dev/vda as namespace 1 of $LAB_NQN. After the step `ready`, it follows the runner's
# orders:
#   grow: the runner has enlarged the disk; reports the new size to the hosts
#   offer: creates the second subsystem
#   ana STATE: sets the ANA state of the namespace
#   stop: ends the VM
. /lib.sh
net_up
load virtio_blk configfs nvmet nvmet-tcp
within 20 test -b /dev/vda
mount -t configfs none /sys/kernel/config
cd /sys/kernel/config/nvmet

subsystem=subsystems/$LAB_NQN
mkdir "$subsystem"
echo 1 > "$subsystem/attr_allow_any_host"
echo lab0001 > "$subsystem/attr_serial"
namespace=$subsystem/namespaces/1
mkdir "$namespace"
printf /dev/vda > "$namespace/device_path"
# A host that comes back after a crash must find the same namespace.
echo "$LAB_UUID" > "$namespace/device_uuid"
echo 1 > "$namespace/enable" || die "enable the namespace"

port=ports/1
mkdir "$port"
echo tcp > "$port/addr_trtype"
echo ipv4 > "$port/addr_adrfam"
echo "${LAB_ADDRESS%/*}" > "$port/addr_traddr"
echo "$LAB_PORT" > "$port/addr_trsvcid"
ln -s "$PWD/$subsystem" "$port/subsystems/$LAB_NQN" || die "open the port"

order=$(step ready) || exit 1
while :; do
  case $order in
  grow)
    echo 1 > "$namespace/revalidate_size" || die "revalidate_size"
    order=$(step grown "$(blockdev --getsize64 /dev/vda)") || exit 1
    ;;
  offer)
    mkdir "subsystems/$LAB_NQN_2"
    echo 1 > "subsystems/$LAB_NQN_2/attr_allow_any_host"
    ln -s "$PWD/subsystems/$LAB_NQN_2" "$port/subsystems/$LAB_NQN_2" || die "offer $LAB_NQN_2"
    order=$(step offered) || exit 1
    ;;
  "ana "*)
    # By default, every namespace is in ANA group 1.
    echo "${order#ana }" > "$port/ana_groups/1/ana_state" || die "ana_state"
    order=$(step ana "$(cat "$port/ana_groups/1/ana_state")") || exit 1
    ;;
  stop) exit 0 ;;
  *) die "unknown order '$order'" ;;
  esac
done
