//! Tests of SIGKILL at each step of each change, while a host does I/O on another LUN. Afterwards the change must be either
//! done or not done. The pool must have lost no unit and allocated no unit twice. All data and changes that were durable must
//! still exist.

use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use support::PATIENCE;
use support::daemon::answer;
use support::fleet::{ENDLESS, Fleet, Spec};
use trefoil_storage::pool::{Run, Table};

const DOCUMENT: &str = r#"
[gateway]
cores = 1
memory_per_core = "40MiB"
max_hosts = 8
max_qpairs = 32
state_dir = "DIR/state"
rpc_socket = "DIR/rpc.sock"

[[backend]]
name = "file"
type = "file"
path = "DIR/file.img"
size = "64MiB"

[[backend]]
name = "whole"
type = "file"
path = "DIR/whole.img"
size = "4MiB"

[[pool]]
name = "tank"
backends = ["file"]

[[lun]]
name = "other"
pool = "tank"
size = "8MiB"

[[subsystem]]
nqn = "nqn.2026-01.org.example:subsystem"
allow_any_host = true
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "other" }]
"#;

/// The slots of a pool's layout table (see `trefoil_storage::pool`).
const TABLE_AT: [u64; 2] = [131_072, 2_162_688];
/// The number of bytes that a test reads from a slot. The tables of these tests are smaller.
const TABLE_BYTES: usize = 8192;
const UNIT: u64 = 4 * MIB;
/// The content of the quiet part of LUN `other`. The quiet part is the first MiB, which the host doesn't write.
const QUIET: u8 = 0x5a;
/// The number of kills at fixed times for each change. The times are spread over the duration of an undisturbed change.
const BY_CLOCK: u32 = 8;

/// The moment of a kill.
#[derive(Clone, Copy, Debug)]
enum When {
    /// As soon as this slot of the table has advanced by this number of generations.
    Written { slot: usize, generations: u64 },
    /// This time after the request was sent.
    After(Duration),
}

struct Victim {
    gateway: Daemon,
    fleet: Fleet,
    /// The place of LUN `other`.
    other: Vec<Run>,
    /// `true` if the killed change was acknowledged nevertheless.
    acknowledged: bool,
    kills: u64,
}

impl Victim {
    fn new() -> Self {
        let gateway = Daemon::start(DOCUMENT);
        fill(&mut host(&gateway, 1).io, 1, 0..MIB, QUIET).expect("written");
        let mut fleet = Fleet::start(&[Spec::new(gateway.addr, 2, 4, &[4096, 65536, 512])], 16);
        fleet.wait_ups(0..1, 1);
        fleet.run(0..1, ENDLESS);
        let mut victim = Self { gateway, fleet, other: Vec::new(), acknowledged: false, kills: 0 };
        victim.other = victim.table(0).expect("a table").luns[0].runs.clone();
        victim
    }

    /// Reads a slot of the table without the gateway. Returns `None` while the slot is being written.
    fn table(&self, slot: usize) -> Option<Table> {
        let mut bytes = vec![0; TABLE_BYTES];
        let file = File::open(self.gateway.path("file.img")).expect("the pool's file");
        file.read_exact_at(&mut bytes, TABLE_AT[slot]).expect("a table's slot");
        Table::parse(&bytes).ok()
    }

    /// Asks for a change, and kills the gateway during the change. Then restarts the gateway and checks the whole pool.
    fn kill_during(&mut self, when: When, method: &str, params: &Value) {
        self.wait_busy();
        let before = self.table(0).expect("a table").generation;
        let (tell, told) = mpsc::channel();
        let sent = Instant::now();
        let stream = self.gateway.ask(method, params);
        let reader = std::thread::spawn(move || tell.send(answer(stream)));
        let is_time = |gateway: &Self| match when {
            When::After(delay) => sent.elapsed() >= delay,
            When::Written { slot, generations } => {
                gateway.table(slot).is_some_and(|table| table.generation >= before + generations)
            }
        };
        let mut early = None;
        while !is_time(self) {
            assert!(sent.elapsed() < PATIENCE, "{method}: {when:?} never came");
            early = told.try_recv().ok();
            if early.is_some() {
                break;
            }
        }
        self.gateway.kill();
        self.kills += 1;
        let answer = early.unwrap_or_else(|| told.recv_timeout(PATIENCE).expect("an answer, or the end"));
        reader.join().expect("the reader").expect("told");
        self.acknowledged = answer.is_some_and(|answer| {
            assert!(answer.get("error").is_none(), "{method}, {when:?}: {answer}");
            true
        });
        self.gateway.restart();
        self.settled(&format!("{method}, {when:?}"));
    }

    /// Waits until the host of LUN `other` does I/O. The host has then connected since the last kill, as `finish` requires.
    fn wait_busy(&mut self) {
        let ops = self.fleet.tally(0).ops;
        self.fleet.wait_ops(0, ops + 20);
    }

    /// Checks that the pool is intact: both copies of the layout are equal, no unit is lost, and LUN `other` has kept its
    /// place.
    #[track_caller]
    fn settled(&mut self, what: &str) {
        let table = self.table(0).expect(what);
        assert_eq!(self.table(1).as_ref(), Some(&table), "{what}: the copies differ");
        table.check().expect(what);
        assert!(
            table.luns.iter().all(|lun| lun.is_visible() && lun.pending_blocks == 0),
            "{what}: {table:?}"
        );
        let pool = self.gateway.call("pool_show", json!({ "name": "tank" }));
        assert_eq!(pool["state"], "up", "{what}: {pool}");
        let used: u64 = table.luns.iter().map(|lun| lun.units() * UNIT).sum();
        let free = pool["capacity_bytes"].as_u64().expect("a size") - used;
        assert_eq!(pool["free_bytes"], free, "{what}: {pool}");
        let listed = pool["luns"].as_array().expect("LUNs").len();
        assert_eq!(listed, table.luns.len(), "{what}: {pool}, {table:?}");
        let other = table.luns.iter().find(|lun| lun.name == "other").expect("the other LUN");
        assert_eq!(other.runs, self.other, "{what}");
        expect_filled(&mut host(&self.gateway, 1).io, 1, 0..MIB, QUIET, what);
        let tally = self.fleet.tally(0);
        assert_eq!((tally.errors, tally.mismatches), (0, 0), "{what}: {tally:?}");
    }

    /// Makes a LUN, shows it to hosts and fills it.
    fn filled(&self, name: &str, len_bytes: u64, byte: u8) {
        self.create(name, len_bytes);
        show(&self.gateway, name, 2);
        fill(&mut host(&self.gateway, 1).io, 2, 0..len_bytes, byte).expect("written");
    }

    /// Checks that LUN `v` exists with its content as namespace 2, or that neither the LUN nor the namespace exists.
    #[track_caller]
    fn whole_or_gone(&self, what: &str) {
        let shown = self.gateway.call("subsystem_list", json!({ "nqn": SUBSYSTEM }))[0]["namespaces"].clone();
        let is_shown = shown.as_array().expect("namespaces").iter().any(|ns| ns["nsid"] == 2);
        assert_eq!(self.len_bytes("v").is_some(), is_shown, "{what}: it is half there: {shown}");
        if is_shown {
            expect_filled(&mut host(&self.gateway, 1).io, 2, 0..2 * UNIT, 0x22, what);
        }
    }

    fn create(&self, name: &str, len_bytes: u64) {
        self.gateway.call("lun_create", json!({ "name": name, "pool": "tank", "size": len_bytes }));
    }

    fn delete(&self, name: &str) {
        self.gateway.call("lun_delete", json!({ "name": name, "force": true }));
    }

    fn len_bytes(&self, name: &str) -> Option<u64> {
        self.gateway.lun(name)["len_bytes"].as_u64()
    }

    /// Returns the moments for the kills: every write of the table by the change, and moments spread over the duration of an
    /// undisturbed `change`.
    fn moments(&self, generations: u64, change: impl FnOnce()) -> Vec<When> {
        let begun = Instant::now();
        change();
        let whole = begun.elapsed();
        let by_clock = (0..BY_CLOCK).map(|n| When::After(whole * n / BY_CLOCK));
        let written =
            (1..=generations).flat_map(|generations| [0, 1].map(|slot| When::Written { slot, generations }));
        written.chain(by_clock).collect()
    }

    fn finish(mut self) {
        let ops = self.fleet.tally(0).ops;
        self.fleet.wait_ops(0, ops + 100);
        // The host has done I/O between all kills.
        let tally = self.fleet.tally(0);
        assert!(tally.ups > self.kills, "{tally:?} after {} kills", self.kills);
        assert_eq!((tally.errors, tally.mismatches), (0, 0), "{tally:?}");
        self.fleet.finish();
    }
}

#[test]
fn create() {
    let mut victim = Victim::new();
    let params = json!({ "name": "v", "pool": "tank", "size": 2 * UNIT });
    // The LUN is first reserved and then made visible: two generations. All units that the LUN can get had content before.
    let moments = victim.moments(2, || victim.create("v", 2 * UNIT));
    victim.delete("v");
    victim.filled("v", 12 * UNIT, 0xe5);
    victim.delete("v");
    for when in moments {
        victim.kill_during(when, "lun_create", &params);
        match victim.len_bytes("v") {
            Some(len) => assert_eq!(len, 2 * UNIT, "{when:?}"),
            None => {
                assert!(!victim.acknowledged, "{when:?}: an acknowledged LUN is gone");
                victim.create("v", 2 * UNIT);
            }
        }
        show(&victim.gateway, "v", 2);
        let io = &mut host(&victim.gateway, 1).io;
        expect_filled(io, 2, 0..2 * UNIT, 0, &format!("a new LUN, {when:?}"));
        fill(io, 2, 0..2 * UNIT, 0xe5).expect("written");
        victim.delete("v");
    }
    victim.finish();
}

#[test]
fn grow() {
    let mut victim = Victim::new();
    let params = json!({ "name": "v", "size": 3 * UNIT });
    victim.filled("v", 12 * UNIT, 0xe5);
    victim.delete("v");
    victim.create("v", UNIT);
    let moments = victim.moments(2, || drop(victim.gateway.call("lun_grow", params.clone())));
    victim.delete("v");
    for when in moments {
        victim.filled("v", UNIT, 0x11);
        victim.kill_during(when, "lun_grow", &params);
        let len = victim.len_bytes("v").expect("the LUN");
        assert!(len == 3 * UNIT || (len == UNIT && !victim.acknowledged), "{when:?}: {len} bytes");
        if len == UNIT {
            victim.gateway.call("lun_grow", params.clone());
        }
        let io = &mut host(&victim.gateway, 1).io;
        expect_filled(io, 2, 0..UNIT, 0x11, &format!("what it had, {when:?}"));
        expect_filled(io, 2, UNIT..3 * UNIT, 0, &format!("what it grew by, {when:?}"));
        fill(io, 2, 0..3 * UNIT, 0xe5).expect("written");
        victim.delete("v");
    }
    victim.finish();
}

#[test]
fn delete() {
    let mut victim = Victim::new();
    let params = json!({ "name": "v" });
    victim.create("v", 2 * UNIT);
    let moments = victim.moments(1, || victim.delete("v"));
    for when in moments {
        victim.filled("v", 2 * UNIT, 0x22);
        hide(&victim.gateway, 2);
        victim.kill_during(when, "lun_delete", &params);
        if victim.len_bytes("v").is_some() {
            assert!(!victim.acknowledged, "{when:?}: an acknowledged deletion is undone");
            show(&victim.gateway, "v", 2);
            let io = &mut host(&victim.gateway, 1).io;
            expect_filled(io, 2, 0..2 * UNIT, 0x22, &format!("what was not deleted, {when:?}"));
            victim.delete("v");
        }
    }
    victim.finish();
}

#[test]
fn delete_of_a_shown_lun() {
    let mut victim = Victim::new();
    let params = json!({ "name": "v", "force": true });
    victim.filled("v", 2 * UNIT, 0x22);
    // The pool's record first loses the namespace, and then the LUN is deleted: two generations.
    let moments = victim.moments(2, || victim.delete("v"));
    for when in moments {
        victim.filled("v", 2 * UNIT, 0x22);
        victim.kill_during(when, "lun_delete", &params);
        victim.whole_or_gone(&format!("{when:?}"));
        if victim.len_bytes("v").is_some() {
            assert!(!victim.acknowledged, "{when:?}: an acknowledged deletion is undone");
            victim.delete("v");
        }
    }
    // Makes sure that the moment between store and pool is tested: the store is as after the change, and the pool is as before.
    // A loop that polls too rarely can miss the moment, so the test tries again.
    let between = (0..100).find_map(|_| {
        victim.filled("v", 2 * UNIT, 0x22);
        let before = victim.table(0).expect("a table").generation;
        let stream = victim.gateway.ask("lun_delete", &params);
        let reader = std::thread::spawn(move || answer(stream));
        let mut between = None;
        while !reader.is_finished() {
            let is_between =
                |table: &Table| table.generation > before && table.luns.iter().any(|lun| lun.name == "v");
            between = victim.table(0).filter(is_between).or(between);
        }
        assert_eq!(reader.join().expect("the reader").expect("an answer")["result"], true);
        between
    });
    let between = between.expect("who sees it is written first").emit().expect("it fits");
    victim.wait_busy();
    victim.gateway.kill();
    victim.kills += 1;
    let file = File::options().write(true).open(victim.gateway.path("file.img")).expect("the pool's file");
    TABLE_AT.iter().for_each(|&at| file.write_all_at(&between, at).expect("written"));
    victim.gateway.restart();
    victim.settled("between store and pool");
    victim.whole_or_gone("between store and pool");
    assert_eq!(victim.len_bytes("v"), None, "the store has it no more");
    victim.finish();
}

#[test]
fn import_and_release() {
    let mut victim = Victim::new();
    // The backend holds data of earlier users.
    let path = victim.gateway.path("whole.img");
    let mut content: Vec<u8> = (0..4 * MIB).map(|at| (at / 509) as u8).collect();
    File::options().write(true).open(&path).expect("opened").write_all_at(&content, 0).expect("written");
    let import = json!({ "name": "w", "backend": "whole" });
    let release = json!({ "name": "w" });
    let begin = |victim: &Victim| drop(victim.gateway.call("lun_import", import.clone()));
    let end = |victim: &Victim| drop(victim.gateway.call("lun_release", release.clone()));
    let imports = victim.moments(0, || begin(&victim));
    let releases = victim.moments(0, || end(&victim));
    for (number, (first, second)) in (1..).zip(imports.into_iter().zip(releases)) {
        victim.kill_during(first, "lun_import", &import);
        if victim.len_bytes("w").is_none() {
            assert!(!victim.acknowledged, "{first:?}: an acknowledged import is undone");
            begin(&victim);
        }
        show(&victim.gateway, "w", 2);
        // The LUN's host writes one block in each round.
        let at = number * 3 * 512;
        let block = [number as u8; 512];
        assert!(host(&victim.gateway, 1).io.write(2, at as u64 / 512, &block).is_ok());
        content[at..at + 512].copy_from_slice(&block);
        hide(&victim.gateway, 2);
        victim.kill_during(second, "lun_release", &release);
        if victim.len_bytes("w").is_some() {
            assert!(!victim.acknowledged, "{second:?}: an acknowledged release is undone");
            end(&victim);
        }
        assert!(std::fs::read(&path).expect("read") == content, "{first:?}, {second:?}: bytes have changed");
    }
    victim.finish();
}
