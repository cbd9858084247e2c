//! Tests of arrays during a start: the array is unreachable, or its namespace was replaced. Also tests of writes that reach an
//! array late.

use super::*;
use trefoil_control::state::RowChange;
use trefoil_control::store::Store;

/// A pool whose layout is on two of the gateway's own disks. Its LUN fits only on the array.
const POOL: &str = r#"
[gateway]
cores = 1
memory_per_core = "40MiB"
max_hosts = 8
max_qpairs = 32
state_dir = "DIR/state"
rpc_socket = "DIR/rpc.sock"

[[backend]]
name = "near0"
type = "memory"
size = "8MiB"

[[backend]]
name = "near1"
type = "memory"
size = "8MiB"

[[backend]]
name = "array"
type = "nvme-tcp"
address = "ARRAY"
subnqn = "nqn.2026-01.org.example:array"
nsid = 1
keep_alive_s = 2
loss_timeout_s = 60

[[pool]]
name = "tank"
backends = ["near0", "near1", "array"]

[[lun]]
name = "old"
pool = "tank"
size = "24MiB"

[[subsystem]]
nqn = "nqn.2026-01.org.example:subsystem"
allow_any_host = true
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "old" }]
"#;

#[test]
fn a_late_write_to_a_deleted_lun_lands_nowhere() {
    let array = Daemon::start(ARRAY);
    let gateway = Daemon::start(&POOL.replace("ARRAY", &array.addr.to_string()));
    let mut pair = host(&gateway, 1);
    let pid = array.pid();
    array.signal(Signal::SIGSTOP);
    let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("its state");
    assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: 4096 };
    pair.io.capsule(IoCommand::Write(BlockRange::new(0, 8)).sqe(1, 1, sgl), &[0x5a; 4096]);
    let patience = Patience::new("the write to be on its way");
    let outstanding = |row: &Value| row["qid"] == 1 && row["outstanding"] == 1;
    while !gateway.call("stats_get", json!({}))["qpairs"].as_array().expect("rows").iter().any(outstanding) {
        patience.pause();
    }
    let mut deleted = gateway.ask("lun_delete", &json!({ "name": "old", "force": true }));
    // The pool's layout isn't on the array, so it could be changed at once. But the delete must wait for the write that is
    // under way.
    deleted.set_read_timeout(Some(Duration::from_secs(1))).expect("an option");
    let early = std::io::Read::read(&mut deleted, &mut [0]);
    assert!(early.is_err(), "it was deleted with writes to it under way");
    array.signal(Signal::SIGCONT);
    deleted.set_read_timeout(Some(support::PATIENCE)).expect("an option");
    let answer = support::daemon::answer(deleted).expect("an answer");
    assert!(answer.get("error").is_none(), "{answer}");
    assert_eq!(pair.io.finish(1, &[]).0.status, Status::SUCCESS, "the write, which came first");
    gateway.call("lun_create", json!({ "name": "new", "pool": "tank", "size": "24MiB" }));
    show(&gateway, "new", 2);
    expect_filled(&mut pair.io, 2, 0..24 * MIB, 0, "the new LUN");
}

#[test]
fn arrays_that_are_away_hold_up_a_start_once_and_a_pool_not_at_all() {
    let numbers = 1..=5;
    let disk = |n| format!("[[backend]]\nname = \"d{n}\"\ntype = \"memory\"\nsize = \"16MiB\"\n");
    let whole = |n| format!("[[lun]]\nname = \"l{n}\"\nbackend = \"d{n}\"\n");
    let shown = |n| format!("{{ nsid = {n}, lun = \"l{n}\" }}");
    let all = |one: &dyn Fn(i32) -> String| numbers.clone().map(one).collect::<Vec<_>>();
    let namespaces = format!("namespaces = [{}]", all(&shown).join(", "));
    let array = ARRAY.replace("namespaces = [{ nsid = 1, lun = \"disk\" }]", &namespaces);
    let array = Daemon::start(&(array + &all(&disk).concat() + &all(&whole).concat()));
    let far = |n| {
        let address = array.addr;
        format!(
            "[[backend]]\nname = \"d{n}\"\ntype = \"nvme-tcp\"\naddress = \"{address}\"\nnsid = {n}\n\
             subnqn = \"nqn.2026-01.org.example:array\"\nkeep_alive_s = 2\nloss_timeout_s = 60\n"
        )
    };
    let near = "name = \"near\"\ntype = \"file\"\npath = \"DIR/near.img\"\nsize = \"8MiB\"";
    let gateway = format!(
        "{}\n[[backend]]\n{near}\n[[pool]]\nname = \"tank\"\nbackends = [\"near\", \"d1\"]\n\
         [[lun]]\nname = \"old\"\npool = \"tank\"\nsize = \"4MiB\"\n\
         [[subsystem]]\nnqn = \"nqn.2026-01.org.example:subsystem\"\nallow_any_host = true\n\
         listeners = [\"ADDR\"]\nnamespaces = [{{ nsid = 1, lun = \"old\" }}]\n",
        all(&far).concat()
    );
    let head = POOL.split("[[backend]]").next().expect("the gateway's own");
    let mut gateway = Daemon::start(&format!("{head}{gateway}"));
    fill(&mut host(&gateway, 1).io, 1, 0..MIB, 0x3c).expect("written");
    array.signal(Signal::SIGSTOP);
    let patience = Patience::new("a start that waits for all arrays together");
    gateway.kill_and_restart();
    patience.left();
    expect_filled(&mut host(&gateway, 1).io, 1, 0..MIB, 0x3c, "what is not on an array");
    let new = json!({ "name": "new", "pool": "tank", "size": "4MiB" });
    let why = gateway.try_call("lun_create", new.clone()).expect_err("a member is missing");
    assert!(why.contains("these backends of the pool are missing: d1"), "{why}");
    array.signal(Signal::SIGCONT);
    let patience = Patience::new("the pool to be whole again");
    while gateway.try_call("lun_create", new.clone()).is_err() {
        patience.pause();
    }
}

#[test]
fn hosts_find_the_lun_of_an_array_that_is_away_at_the_start_and_wait_for_it() {
    let array = Daemon::start(ARRAY);
    let document = GATEWAY.replace("ARRAY", &array.addr.to_string()).replace("LOSS", "60");
    let mut gateway = Daemon::start(&document);
    fill(&mut host(&gateway, 1).io, 1, 0..MIB, 0x3c).expect("written");
    array.signal(Signal::SIGSTOP);
    gateway.kill_and_restart();
    let now = gateway.lun("far");
    assert_eq!((&now["state"], &now["len_bytes"]), (&json!("lost"), &json!(32 * MIB)), "{now}");
    let mut pair = host(&gateway, 1);
    let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: 4096 };
    pair.io.capsule(IoCommand::Write(BlockRange::new(0, 8)).sqe(1, 1, sgl), &[0x5a; 4096]);
    fill(&mut host(&gateway, 2).io, 2, 0..MIB, 0x44).expect("another LUN");
    array.signal(Signal::SIGCONT);
    assert_eq!(pair.io.finish(1, &[]).0.status, Status::SUCCESS, "it waited");
    assert_eq!(pair.io.read(1, 0, 4096), (Status::SUCCESS, vec![0x5a; 4096]));
    assert_eq!(pair.io.read(1, 8, 4096), (Status::SUCCESS, vec![0x3c; 4096]));
}

/// The store has only the size and the identity of the pool's LUNs, so the gateway can show only these.
#[test]
fn hosts_find_the_luns_of_a_pool_that_is_down_at_the_start_and_wait_for_them() {
    let array = Daemon::start(ARRAY);
    let mut gateway = Daemon::start(&GATEWAY.replace("ARRAY", &array.addr.to_string()).replace("LOSS", "60"));
    gateway.call("lun_release", json!({ "name": "far", "force": true }));
    gateway.call("pool_create", json!({ "name": "tank", "backends": ["array"] }));
    gateway.call("lun_create", json!({ "name": "pooled", "pool": "tank", "size": "4MiB" }));
    show(&gateway, "pooled", 1);
    fill(&mut host(&gateway, 1).io, 1, 0..4 * MIB, 0x3c).expect("written");
    array.signal(Signal::SIGSTOP);
    gateway.kill_and_restart();
    let lun = gateway.lun("pooled");
    assert_eq!((&lun["state"], &lun["why"]), (&json!("down"), &json!("pool `tank` is down")));
    let mut pair = host(&gateway, 1);
    let read = |pair: &mut Pair| pair.io.read(1, 0, 4096);
    assert_eq!(read(&mut pair), (Status::ANA_INACCESSIBLE, vec![]));
    assert_eq!(pair.io.write(1, 0, &[0x99; 4096]), Status::ANA_INACCESSIBLE);
    fill(&mut pair.io, 2, 0..MIB, 0x44).expect("another LUN");
    array.signal(Signal::SIGCONT);
    let patience = Patience::new("the pool to be there");
    while read(&mut pair).0.is(Status::ANA_INACCESSIBLE) {
        patience.pause();
    }
    expect_filled(&mut pair.io, 1, 0..4 * MIB, 0x3c, "what was written before");
}

/// Waits until a host can read the array's LUN, with its content unchanged.
fn wait_served(pair: &mut Pair) {
    let patience = Patience::new("the array's LUN to be served");
    while !pair.io.read(1, 0, 4096).0.is_ok() {
        patience.pause();
    }
    expect_filled(&mut pair.io, 1, 0..MIB, 0x3c, "the LUN as it was");
}

/// Makes `lun` the array's namespace 1. This simulates an array that was restored wrong.
fn swap(array: &Daemon, lun: &str) {
    let nqn = "nqn.2026-01.org.example:array";
    array.call("subsystem_remove_namespace", json!({ "nqn": nqn, "nsid": 1 }));
    array.call("subsystem_add_namespace", json!({ "nqn": nqn, "lun": lun, "nsid": 1 }));
}

#[test]
fn another_namespace_that_comes_while_the_gateway_is_down_is_not_taken() {
    let other = "[[backend]]\nname = \"other\"\ntype = \"memory\"\nsize = \"32MiB\"\n\
                 [[lun]]\nname = \"other\"\nbackend = \"other\"\n";
    let array = Daemon::start(&format!("{ARRAY}{other}"));
    let document = GATEWAY.replace("ARRAY", &array.addr.to_string()).replace("LOSS", "2");
    let mut gateway = Daemon::start(&document);
    fill(&mut host(&gateway, 1).io, 1, 0..MIB, 0x3c).expect("written");
    gateway.kill();
    swap(&array, "other");
    gateway.restart();
    let mut pair = host(&gateway, 1);
    fill(&mut pair.io, 2, 0..MIB, 0x44).expect("another LUN");
    let backend = |gateway: &Daemon| gateway.call("backend_list", json!({ "name": "array" }))[0].clone();
    let patience = Patience::new("the backend to say that another namespace is there");
    loop {
        let (read, write) = (pair.io.read(1, 0, 4096).0, pair.io.write(1, 0, &[0x99; 4096]));
        assert!(!read.is_ok() && !write.is_ok(), "a host works on another namespace: {read}, {write}");
        let backend = backend(&gateway);
        assert_eq!(backend["state"], "lost", "{backend}");
        if backend["why"].as_str().is_some_and(|why| why.starts_with("another namespace answers")) {
            break;
        }
        patience.pause();
    }
    assert!(gateway.log().contains("backend=\"array\" why=\"another namespace answers"), "it isn't named");
    let why = backend(&gateway)["why"].as_str().unwrap_or_default().to_owned();
    for (lun, is) in [("disk", "the known namespace is"), ("other", "the new namespace is")] {
        let nguid = array.lun(lun)["nguid"].as_str().expect("an NGUID").to_owned();
        assert!(why.contains(&format!("{is} NGUID {nguid}")), "{why} doesn't name {lun}'s {nguid}");
    }
    swap(&array, "disk");
    wait_served(&mut pair);
    // If the user wants the other namespace, the user makes the backend anew. From then on, the backend is that namespace.
    hide(&gateway, 1);
    gateway.call("lun_release", json!({ "name": "far" }));
    gateway.call("backend_delete", json!({ "name": "array" }));
    swap(&array, "other");
    let (addr, subnqn) = (array.addr.to_string(), "nqn.2026-01.org.example:array");
    let new = json!({ "name": "array", "type": "nvme-tcp", "address": addr, "subnqn": subnqn, "nsid": 1 });
    gateway.call("backend_create", new);
    gateway.call("lun_import", json!({ "name": "far", "backend": "array" }));
    show(&gateway, "far", 1);
    fill(&mut host(&gateway, 1).io, 1, 0..MIB, 0x99).expect("written to the other one");
    gateway.kill_and_restart();
    expect_filled(&mut host(&gateway, 1).io, 1, 0..MIB, 0x99, "the other one, which it is now");
}

#[test]
fn a_store_that_lacks_the_namespace_learns_it_when_the_array_answers() {
    let array = Daemon::start(ARRAY);
    let document = GATEWAY.replace("ARRAY", &array.addr.to_string()).replace("LOSS", "2");
    for late in [false, true] {
        let mut gateway = Daemon::start(&document);
        fill(&mut host(&gateway, 1).io, 1, 0..MIB, 0x3c).expect("written");
        gateway.kill();
        // An earlier version left a store like this.
        let (store, _) = Store::open(&gateway.path("state")).expect("the store");
        let forget = RowChange::Remove("namespace/array".into());
        store.commit_blocking(&[forget]).expect("forgotten");
        drop(store);
        if late {
            array.signal(Signal::SIGSTOP);
        }
        gateway.restart();
        array.signal(Signal::SIGCONT);
        wait_served(&mut host(&gateway, 1));
        gateway.kill();
        let (store, found) = Store::open(&gateway.path("state")).expect("the store");
        drop(store);
        let kept = found.rows.iter().any(|row| row.key() == "namespace/array");
        assert!(kept, "it isn't learned, late: {late}");
    }
}
