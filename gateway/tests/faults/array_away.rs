//! Tests of an array that goes silent, or dies, and then returns. The array is a second `trefoild`. The test either stops or
//! kills the array. If it is stopped (SIGSTOP), its connections stay open, but it doesn't answer. If it is killed, its
//! connections are reset, and new connections are refused until it runs again.

#[path = "array_start.rs"]
mod array_start;

use super::*;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::fs::File;
use std::time::Duration;
use support::Patience;
use support::fleet::{ENDLESS, Fleet, Spec};
use support::raw::{Pdu, Who};
use trefoil_wire::nvme::StatusType;

const ARRAY: &str = r#"
[gateway]
name = "array"
cores = 1
memory_per_core = "40MiB"
max_hosts = 8
max_qpairs = 32
state_dir = "DIR/state"
rpc_socket = "DIR/rpc.sock"

[[backend]]
name = "disk"
type = "file"
path = "DIR/disk.img"
size = "32MiB"

[[lun]]
name = "disk"
backend = "disk"

[[subsystem]]
nqn = "nqn.2026-01.org.example:array"
allow_any_host = true
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "disk" }]
"#;

const GATEWAY: &str = r#"
[gateway]
cores = 1
memory_per_core = "40MiB"
max_hosts = 8
max_qpairs = 32
state_dir = "DIR/state"
rpc_socket = "DIR/rpc.sock"

[[backend]]
name = "array"
type = "nvme-tcp"
address = "ARRAY"
subnqn = "nqn.2026-01.org.example:array"
nsid = 1
keep_alive_s = 2
loss_timeout_s = LOSS

[[backend]]
name = "local"
type = "memory"
size = "16MiB"

[[lun]]
name = "far"
backend = "array"

[[lun]]
name = "near"
backend = "local"

[[subsystem]]
nqn = "nqn.2026-01.org.example:subsystem"
allow_any_host = true
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "far" }, { nsid = 2, lun = "near" }]
"#;

/// Time for which the array is stopped in the tests in which the gateway waits for the array.
const AWAY: Duration = Duration::from_secs(11);

/// The array, the gateway in front of the array, and two hosts with I/O: host 0 on the array's LUN, host 1 on the gateway's own
/// LUN.
struct Rig {
    array: Daemon,
    gateway: Daemon,
    fleet: Fleet,
}

impl Rig {
    fn start(loss_timeout_s: u32) -> Self {
        let array = Daemon::start(ARRAY);
        let document = GATEWAY.replace("ARRAY", &array.addr.to_string());
        let gateway = Daemon::start(&document.replace("LOSS", &loss_timeout_s.to_string()));
        let sizes = &[4096, 65536, 512];
        let near = Spec { nsid: 2, ..Spec::new(gateway.addr, 3, 4, sizes) };
        let mut fleet = Fleet::start(&[Spec::new(gateway.addr, 2, 4, sizes), near], 16);
        fleet.wait_ups(0..2, 1);
        fleet.run(0..2, ENDLESS);
        Self { array, gateway, fleet }
    }

    /// Stops the array. When this function returns, all threads of the array have stopped.
    fn stop(&self) {
        self.array.signal(Signal::SIGSTOP);
        let pid = self.array.pid();
        let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("its state");
        assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    }

    fn go_on(&self) {
        self.array.signal(Signal::SIGCONT);
    }

    /// Checks that the I/O of both hosts continues, without an error or a new connection.
    #[track_caller]
    fn nobody_noticed(&mut self, what: &str) {
        for at in 0..2 {
            let ops = self.fleet.tally(at).ops;
            self.fleet.wait_ops(at, ops + 100);
            let tally = self.fleet.tally(at);
            assert_eq!(
                (tally.errors, tally.mismatches, tally.ups),
                (0, 0, 1),
                "{what}, host {at}: {tally:?}"
            );
        }
    }

    /// Checks that the I/O of host 0 waits and the I/O of host 1 continues while the array is stopped.
    fn wait_away(&mut self) {
        let before = [0, 1].map(|at| self.fleet.tally(at).ops);
        std::thread::sleep(AWAY);
        let after = [0, 1].map(|at| self.fleet.tally(at).ops);
        assert!(after[0] - before[0] < 100 && after[1] - before[1] > 100, "{before:?}, {after:?}");
    }

    /// Waits until the gateway reports this state of the backend.
    fn wait_state(&self, wanted: &str) {
        let patience = Patience::new(format!("the backend to be {wanted}"));
        while self.gateway.call("backend_list", json!({ "name": "array" }))[0]["state"] != wanted {
            patience.pause();
        }
    }
}

#[test]
fn a_new_array_is_refused_with_what_it_said() {
    let list = "hosts = [\"nqn.2026-01.org.example:gateway\"]";
    let array = Daemon::start(&ARRAY.replace("allow_any_host = true", list));
    let gateway = Daemon::start(&ARRAY.replace("name = \"array\"", "name = \"gateway\""));
    let (at, closed) = (array.addr.to_string(), support::daemon::own_addr().to_string());
    let subsystem = "nqn.2026-01.org.example:array";
    let cases = [
        (&at, "nqn.2026-01.org.example:none", "gateway", 1, "can't be used: the array has no such subsystem"),
        (&at, subsystem, "other", 1, "can't be used: the array does not let this gateway's host NQN connect"),
        (&at, subsystem, "gateway", 9, "can't be used: the namespace is not active"),
        (&closed, subsystem, "gateway", 1, "was not reached within 10 s: the array refused the connection"),
    ];
    for (address, subnqn, host, nsid, why) in cases {
        let new = json!({
            "name": "far", "type": "nvme-tcp", "address": address, "subnqn": subnqn, "nsid": nsid,
            "hostnqn": format!("nqn.2026-01.org.example:{host}"),
        });
        let refused = gateway.try_call("backend_create", new).expect_err(why);
        let told = format!("backend `far`: the array at {address} {why}");
        assert!(refused.starts_with(&told), "{refused} is not {told}");
    }
    let new = json!({
        "name": "far", "type": "nvme-tcp", "address": at, "subnqn": subsystem, "nsid": 1,
        "hostnqn": "nqn.2026-01.org.example:gateway",
    });
    let mut made = gateway.call("backend_create", new);
    // If the machine pauses for longer than the keep-alive time, the gateway loses an array that it has just reached. The state
    // then has another reason, and doesn't last. The new backend must not have a reason of the refused backends of the same
    // name.
    let patience = Patience::new("the array to be up");
    while made["state"] != "up" {
        let why = made["why"].as_str().expect("a reason");
        let is_old = why == "stopped" || cases.iter().any(|(.., told)| told.ends_with(why));
        assert!(!is_old, "{made}\n{}\n{}", gateway.log(), array.log());
        patience.pause();
        made = gateway.call("backend_list", json!({ "name": "far" }))[0].clone();
    }
}

#[test]
fn a_stop_lets_go_of_a_new_array_that_is_waited_for() {
    let mut gateway = Daemon::start(&ARRAY.replace("name = \"array\"", "name = \"gateway\""));
    let closed = support::daemon::own_addr().to_string();
    let subsystem = "nqn.2026-01.org.example:array";
    let new = json!({ "name": "far", "type": "nvme-tcp", "address": closed, "subnqn": subsystem, "nsid": 1 });
    let asked = gateway.ask("backend_create", &new);
    let patience = Patience::new("the array to be looked for");
    while !gateway.log().contains("backend lost backend=\"far\"") {
        patience.pause();
    }
    gateway.signal(Signal::SIGTERM);
    let end = gateway.child.wait().expect("its end");
    // A debug build panics if a core still has the backend's channel at the end, with a block in the channel.
    assert!(end.success(), "{end}: {}", gateway.log());
    let answer = support::daemon::answer(asked).expect("an answer");
    let told = answer["error"]["message"].as_str().unwrap_or_default();
    assert!(told.starts_with("the gateway stops and cut this change short"), "{answer}");
}

#[test]
fn what_lies_on_a_lost_array_is_lost_too() {
    let mut array = Daemon::start(ARRAY);
    let disk = array.path("second.img").display().to_string();
    array.call("backend_create", json!({ "name": "second", "type": "file", "path": disk, "size": "64MiB" }));
    array.call("lun_import", json!({ "name": "second", "backend": "second" }));
    let subsystem = "nqn.2026-01.org.example:array";
    array.call("subsystem_add_namespace", json!({ "nqn": subsystem, "lun": "second", "nsid": 2 }));
    let (at, port) = (array.addr.to_string(), support::daemon::own_addr());
    let document = GATEWAY.replace("ARRAY", &at).replace("LOSS", "60");
    let metered = document.replace("cores = 1", &format!("cores = 1\nmetrics_listen = \"{port}\""));
    let gateway = Daemon::start(&metered);
    let member =
        json!({ "name": "member", "type": "nvme-tcp", "address": at, "subnqn": subsystem, "nsid": 2 });
    gateway.call("backend_create", member);
    gateway.call("pool_create", json!({ "name": "tank", "backends": ["member"] }));
    gateway.call("lun_create", json!({ "name": "pooled", "pool": "tank", "size": "8MiB" }));
    let states = || ["far", "near", "pooled"].map(|name| gateway.lun(name)["state"].clone());
    let wait_states = |wanted: [&str; 3]| {
        let patience = Patience::new(format!("the LUNs to be {wanted:?}"));
        let is_counted = || {
            let counts = support::daemon::metrics(port);
            ["far", "near", "pooled"].into_iter().zip(wanted).all(|(name, state)| {
                counts.contains(&format!("trefoil_lun_up{{name=\"{name}\"}} {}\n", u8::from(state == "up")))
            })
        };
        while states() != wanted || !is_counted() {
            patience.pause();
        }
    };
    wait_states(["up"; 3]);
    array.kill();
    wait_states(["lost", "up", "lost"]);
    for (lun, backend) in [("far", "array"), ("pooled", "member")] {
        let why = gateway.lun(lun)["why"].as_str().unwrap_or_default().to_owned();
        assert!(why.starts_with(&format!("backend `{backend}` is lost: ")), "{lun}: {why}");
        assert!(gateway.ok(&["lun", "list"]).contains(&format!("backend `{backend}` is lost: ")));
    }
    assert_eq!(gateway.lun("near")["why"], Value::Null);
    array.restart();
    wait_states(["up"; 3]);
}

/// The pool is open, because its array answered when the gateway started. Later the array stops answering, or fails all
/// requests.
#[test]
fn a_pool_whose_array_fails_for_good_can_be_given_up() {
    for dies in [true, false] {
        let mut array = Daemon::start(ARRAY);
        let gateway = Daemon::start(&GATEWAY.replace("ARRAY", &array.addr.to_string()).replace("LOSS", "60"));
        gateway.call("lun_release", json!({ "name": "far", "force": true }));
        gateway.call("pool_create", json!({ "name": "tank", "backends": ["array"] }));
        gateway.call("lun_create", json!({ "name": "pooled", "pool": "tank", "size": "4MiB" }));
        show(&gateway, "pooled", 3);
        if dies {
            array.kill();
            let patience = Patience::new("the backend to be lost");
            while gateway.call("backend_list", json!({ "name": "array" }))[0]["state"] != "lost" {
                patience.pause();
            }
        } else {
            let disk = File::options().write(true).open(array.path("disk.img")).expect("opened");
            disk.set_len(64 << 10).expect("cut off");
        }
        gateway.call("pool_delete", json!({ "name": "tank", "delete_data": true, "force": true }));
        assert_eq!(gateway.lun("pooled"), Value::Null);
        gateway.call("backend_delete", json!({ "name": "array" }));
    }
}

/// The array answers all the time, but fails requests for the blocks of the layout.
#[test]
fn a_member_that_can_be_read_again_is_a_member_again() {
    let array = Daemon::start(ARRAY);
    let mut gateway = Daemon::start(&GATEWAY.replace("ARRAY", &array.addr.to_string()).replace("LOSS", "60"));
    let plain = gateway.path("plain.img").display().to_string();
    gateway.call("lun_release", json!({ "name": "far", "force": true }));
    gateway
        .call("backend_create", json!({ "name": "plain", "type": "file", "path": plain, "size": "16MiB" }));
    gateway.call("pool_create", json!({ "name": "tank", "backends": ["plain", "array"] }));
    gateway.kill();
    let disk = array.path("disk.img");
    let whole = std::fs::read(&disk).expect("read");
    File::options().write(true).open(&disk).and_then(|file| file.set_len(64 << 10)).expect("cut off");
    gateway.restart();
    let pool = || gateway.call("pool_show", json!({ "name": "tank" }));
    let why = pool()["why"].as_str().unwrap_or_default().to_owned();
    assert!(
        pool()["state"] == "frozen" && why.contains("array (the backend's layout can't be read"),
        "{why}"
    );
    std::fs::write(&disk, whole).expect("written");
    let patience = Patience::new("the pool to be whole");
    while pool()["state"] != "up" {
        patience.pause();
    }
    gateway.call("lun_create", json!({ "name": "pooled", "pool": "tank", "size": "4MiB" }));
}

#[test]
fn silent_for_long_and_back() {
    let mut rig = Rig::start(60);
    rig.nobody_noticed("before");
    rig.stop();
    rig.wait_away();
    rig.wait_state("lost");
    rig.go_on();
    rig.nobody_noticed("the array is back");
    rig.wait_state("up");
    rig.fleet.finish();
}

#[test]
fn dead_for_long_and_back() {
    let mut rig = Rig::start(60);
    rig.nobody_noticed("before");
    rig.array.kill();
    rig.wait_away();
    rig.wait_state("lost");
    rig.array.restart();
    rig.nobody_noticed("the array is back");
    rig.wait_state("up");
    rig.fleet.finish();
}

#[test]
fn silent_past_the_loss_timeout() {
    let mut rig = Rig::start(4);
    let mut pair = host(&rig.gateway, 1);
    fill(&mut pair.io, 1, 0..MIB, 0x3c).expect("written");
    rig.fleet.run(0..1, 0);
    rig.fleet.wait_done(0..1);
    rig.stop();
    // The first commands wait until the gateway gives up the array. After that, the gateway tells hosts to wait.
    for round in 0..3 {
        let read = pair.io.read(1, 0, 4096).0;
        let write = pair.io.write(1, 8, &[0x99; 4096]);
        let flush = IoCommand::Flush.sqe(pair.io.cid(), 1, Sgl::NONE);
        let flush = pair.io.command(flush, &[]).0.status;
        for (what, status) in [("read", read), ("write", write), ("flush", flush)] {
            let is_given_up = status == Status::INTERNAL_PATH_ERROR && round == 0;
            assert!(is_given_up || status == Status::ANA_INACCESSIBLE, "a {what}, round {round}: {status}");
            assert!(status.sct() == StatusType::Path && !status.is_dnr(), "a {what} may be tried again");
        }
    }
    let ops = rig.fleet.tally(1).ops;
    rig.fleet.wait_ops(1, ops + 100);
    // The host's connection and its other namespace still work.
    fill(&mut pair.io, 2, 0..MIB, 0x44).expect("another LUN");
    rig.go_on();
    let patience = Patience::new("the array's LUN to be there again");
    while pair.io.read(1, 0, 4096).0 != Status::SUCCESS {
        patience.pause();
    }
    // A failed write is on the disk either completely or not at all. All other data is unchanged.
    let (status, data) = pair.io.read(1, 0, MIB as usize);
    assert!(status.is_ok(), "{status}");
    let held = |range: std::ops::Range<usize>, byte: u8| data[range].iter().all(|&found| found == byte);
    assert!(held(0..4096, 0x3c) && held(8192..data.len(), 0x3c));
    assert!(held(4096..8192, 0x3c) || held(4096..8192, 0x99), "a write that failed was done by halves");
    rig.fleet.run(0..1, ENDLESS);
    rig.nobody_noticed("it is back after the loss timeout");
    rig.wait_state("up");
    rig.fleet.finish();
}

/// The array is itself a gateway, and loses its own disk.
#[test]
fn the_ana_state_of_an_array_reaches_hosts_at_once() {
    let disk = Daemon::start(ARRAY);
    let behind =
        |array: &Daemon, loss: &str| GATEWAY.replace("ARRAY", &array.addr.to_string()).replace("LOSS", loss);
    let array = Daemon::start(&behind(&disk, "2"));
    let subnqn = "subnqn = \"nqn.2026-01.org.example:array\"";
    let gateway = Daemon::start(&behind(&array, "60").replace(subnqn, &format!("subnqn = \"{SUBSYSTEM}\"")));
    let mut pair = host(&gateway, 1);
    fill(&mut pair.io, 1, 0..MIB, 0x3c).expect("written");
    disk.signal(Signal::SIGSTOP);
    while pair.io.read(1, 0, 4096).0.is_ok() {}
    assert_eq!(pair.io.read(1, 0, 4096).0, Status::ANA_INACCESSIBLE);
    assert_eq!(pair.io.write(1, 8, &[0x99; 4096]), Status::ANA_INACCESSIBLE);
    let patience = Patience::new("the LUN to be lost");
    while gateway.lun("far")["why"] != "backend `array` is lost: the array reports the ANA state Inaccessible"
    {
        patience.pause();
    }
    fill(&mut pair.io, 2, 0..MIB, 0x44).expect("another LUN");
    disk.signal(Signal::SIGCONT);
    let patience = Patience::new("the LUN to be there again");
    while pair.io.read(1, 0, 4096).0 == Status::ANA_INACCESSIBLE {
        patience.pause();
    }
    expect_filled(&mut pair.io, 1, 0..MIB, 0x3c, "the LUN as it was");
    assert_eq!(gateway.lun("far")["state"], "up");
    assert!(!gateway.log().contains("backend lost"), "the array was there all the time");
}

/// Sends far more commands than the array's only queue has entries. The commands come from both cores, and only one core has a
/// queue to the array.
#[test]
fn all_commands_in_the_backlog_of_a_silent_array_complete() {
    let array = Daemon::start(ARRAY);
    let document = GATEWAY
        .replace("ARRAY", &array.addr.to_string())
        .replace("LOSS", "60\nqueues = 1\ndepth = 32")
        .replace("cores = 1", "cores = 2")
        .replace("max_qpairs = 32", "max_qpairs = 80");
    let rig = Rig { gateway: Daemon::start(&document), array, fleet: Fleet::start(&[], 1) };
    let who = Who::admin(&support::host_nqn(1), SUBSYSTEM);
    let (mut admin, cntlid) = Raw::admin(rig.gateway.addr, &who);
    admin.ask_queues(60);
    let queue = |qid| Raw::queue(rig.gateway.addr, &who.clone().queue(cntlid, qid, 255), (false, false));
    let mut queues: Vec<Raw> = (1..=60).map(queue).collect();
    for is_away in [false, true] {
        if is_away {
            rig.stop();
        }
        for queue in &mut queues {
            let command = |cid: u16| match cid % 3 {
                0 => IoCommand::Flush.sqe(cid, 1, Sgl::NONE),
                _ => IoCommand::Read(BlockRange::new(cid.into(), 1)).sqe(
                    cid,
                    1,
                    Sgl::Transport { len_bytes: 512 },
                ),
            };
            let all: Vec<u8> = (0..255).flat_map(|cid| queue.capsule_bytes(command(cid), &[])).collect();
            queue.send(&all);
        }
        if is_away {
            rig.wait_state("lost");
            rig.go_on();
        }
        for queue in &mut queues {
            let mut left = 255;
            while left > 0 {
                match queue.pdu() {
                    Pdu::Response(cqe) => {
                        assert!(cqe.status.is_ok(), "{cqe:?}");
                        left -= 1;
                    }
                    Pdu::Data(..) => {}
                    other => panic!("{other:?}: {}", rig.gateway.log()),
                }
            }
        }
    }
}
