#!/bin/bash
# SPDK's stock client against trefoild, in three parts:
#   1. trefoild reads config/examples/spdk.toml.
#   2. spdk-rpc builds the same system in an empty trefoild, call by call. The system must look the same.
#   3. save_config saves the system, kill -9 ends trefoild, and load_config loads the system into an empty trefoild. The
#      system must look the same again.
# The test compares the lists of SPDK's methods, and the Identify data and the discovery log that a host receives.
#
# Usage: gateway/tests/spdk_rpc.sh [DIRECTORY OF trefoild]   (default: target/debug)
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/debug}")
work=var/spdk
venv=var/spdk-venv
open=nqn.2026-01.org.example:open
closed=nqn.2026-01.org.example:closed
host1=nqn.2026-01.org.example:host1
host2=nqn.2026-01.org.example:host2
pid=

[ -x "$bin/trefoil-perf" ] || { echo "spdk_rpc: build trefoil-perf into $bin first" >&2; exit 1; }

fail() { echo "spdk_rpc: $*" >&2; tail -n 20 "$work/err" >&2 || true; exit 1; }

client=${SPDK_RPC:-$venv/bin/spdk-rpc}
if [ ! -x "$client" ]; then
    python3 -m venv $venv
    $venv/bin/pip install --quiet spdk==26.9
fi
rm -rf $work
mkdir -p $work
truncate -s 64M $work/file0.img
# A document with the same gateway settings, but without objects.
sed '/^\[\[/,$d' config/examples/spdk.toml > $work/empty.toml

rpc() { "$client" -s $work/rpc.sock "$@"; }

start() { # DOCUMENT: from an empty store
    rm -rf $work/state
    : > $work/out
    "$bin/trefoild" "$1" > $work/out 2>> $work/err &
    pid=$!
    for _ in $(seq 100); do
        grep -q '^trefoild ready' $work/out && return
        kill -0 $pid 2>/dev/null || fail "trefoild ended: $1"
        sleep 0.1
    done
    fail "trefoild was not ready in 10 s: $1"
}

stop() { # SIGNAL
    [ -n "$pid" ] || return 0
    kill "-$1" "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    pid=
}
trap 'stop KILL' EXIT

# Dumps what each host sees. Only this function calls the dump tool.
host_view() { # FILE
    for view in "$host1 $open" "$host2 $open" "$host1 $closed" "$host2 $closed"; do
        "$bin/trefoil-perf" identify-dump --addr 127.0.0.1:4430 --host-nqn "${view% *}" --nqn "${view#* }" >> "$1" ||
            fail "no view of ${view#* } as ${view% *}"
    done
}

dump() { # NAME
    { rpc nvmf_get_subsystems; rpc bdev_get_bdevs; rpc nvmf_get_transports; } > "$work/$1.json"
    for nqn in $open $closed; do rpc nvmf_subsystem_get_listeners $nqn >> "$work/$1.json"; done
    : > "$work/$1.host"
    host_view "$work/$1.host"
}

same() { # NAME NAME
    diff -u "$work/$1.json" "$work/$2.json" || fail "$2 lists something else than $1"
    cmp "$work/$1.host" "$work/$2.host" || fail "$2 shows a host something else than $1"
}

echo "act 1: the document"
start config/examples/spdk.toml
dump document
stop TERM

echo "act 2: spdk-rpc"
start $work/empty.toml
rpc spdk_get_version > /dev/null
rpc framework_wait_init > /dev/null
rpc bdev_malloc_create -b Malloc0 -u 6d1d4b8e-0000-4000-8000-000000000001 64 512 > /dev/null
rpc bdev_null_create -u 6d1d4b8e-0000-4000-8000-000000000002 Null0 1024 4096 > /dev/null
rpc bdev_uring_create -u 6d1d4b8e-0000-4000-8000-000000000003 $work/file0.img File0 512 > /dev/null
rpc bdev_wait_for_examine
rpc nvmf_create_transport -t TCP
rpc nvmf_create_subsystem $open -s TREFOIL0001 -d "Trefoil test" -a -m 32
rpc nvmf_subsystem_add_ns $open Malloc0 -n 1 > /dev/null
rpc nvmf_subsystem_add_ns $open Null0 -n 7 -g 6D1D4B8E0000400080000000000000FF > /dev/null
rpc nvmf_subsystem_add_listener $open -t tcp -a 127.0.0.1 -s 4430 -f ipv4
rpc nvmf_subsystem_add_listener $open -t tcp -a 127.0.0.1 -s 4431
rpc nvmf_create_subsystem $closed -s TREFOIL0002 -i 10 -I 500
rpc nvmf_subsystem_add_host $closed $host1
rpc nvmf_subsystem_add_host $closed $host2
rpc nvmf_subsystem_add_ns $closed File0 -n 3 --no-auto-visible > /dev/null
rpc nvmf_ns_add_host $closed 3 $host1
rpc nvmf_subsystem_add_listener $closed -t tcp -a 127.0.0.1 -s 4430
dump client
same document client

# The other methods of the subset answer, and trefoild refuses wrong requests.
for method in framework_get_reactors thread_get_stats nvmf_get_stats bdev_nvme_get_controllers bdev_get_iostat; do
    rpc $method > /dev/null || fail "$method"
done
rpc nvmf_subsystem_get_controllers $open > /dev/null
rpc nvmf_subsystem_get_qpairs $open > /dev/null
rpc bdev_get_iostat --names Malloc0,Null0 | grep -q '"max_unmap_latency_ticks": 0' || fail "bdev_get_iostat"
refused() { if rpc "$@" > /dev/null 2>&1; then fail "was not refused: $*"; fi; }
refused nvmf_create_transport -t TCP
refused nvmf_create_transport -t RDMA
refused bdev_malloc_create -b Malloc0 64 512
refused nvmf_subsystem_add_ns $open Malloc0
refused nvmf_subsystem_add_listener $open -t tcp -a 127.0.0.1 -s 4430
refused nvmf_delete_subsystem nqn.2026-01.org.example:none
refused bdev_null_delete Malloc0
refused bdev_get_iostat --names None
refused bdev_get_iostat --reset-mode all
# trefoild either knows each call that the client can make, or refuses it with the call's name.
"$(dirname "$client")/python3" gateway/tests/spdk_client.py $work/rpc.sock || fail "the client sends what the gateway doesn't know"
# All objects can be deleted again.
rpc bdev_malloc_create -b Extra 16 512 > /dev/null
rpc nvmf_subsystem_add_ns $open Extra > /dev/null
rpc bdev_malloc_delete Extra
rpc nvmf_subsystem_remove_host $closed $host2
rpc nvmf_subsystem_add_host $closed $host2
rpc nvmf_ns_remove_host $closed 3 $host1
rpc nvmf_ns_add_host $closed 3 $host1
rpc nvmf_subsystem_allow_any_host $closed --allow-any-host
rpc nvmf_subsystem_allow_any_host $closed --no-allow-any-host
dump again
same client again

echo "act 3: save_config | load_config"
rpc save_config > $work/saved.json
stop KILL
start $work/empty.toml
rpc load_config -j $work/saved.json
dump loaded
same client loaded
rpc save_config | diff $work/saved.json - || fail "the copy saves something else"
rpc spdk_kill_instance SIGTERM
for _ in $(seq 50); do kill -0 $pid 2>/dev/null || break; sleep 0.1; done
if kill -0 $pid 2>/dev/null; then fail "spdk_kill_instance did not stop it"; fi
pid=
echo "spdk_rpc: the document, the client and the copy are the same"
