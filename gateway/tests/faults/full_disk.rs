//! Tests of a full disk under a file backend, under a pool and under the state store, and of a file system without holes.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::fleet::{ENDLESS, Fleet, Spec};
use trefoil_storage::pool::Table;

/// The size of the small file system, in MiB.
const DISK_MIB: u64 = 24;

const DOCUMENT: &str = r#"
[gateway]
cores = 1
memory_per_core = "40MiB"
max_hosts = 8
max_qpairs = 32
state_dir = "STATE"
rpc_socket = "DIR/rpc.sock"

[[backend]]
name = "thin"
type = "file"
path = "DIR/small/thin.img"
size = "64MiB"

[[backend]]
name = "thin-pool"
type = "file"
path = "DIR/small/pool.img"
size = "64MiB"

[[backend]]
name = "roomy"
type = "file"
path = "DIR/roomy.img"
size = "64MiB"

[[pool]]
name = "small"
backends = ["thin-pool"]

[[pool]]
name = "tank"
backends = ["roomy"]

[[lun]]
name = "other"
pool = "tank"
size = "8MiB"

[[lun]]
name = "thin"
backend = "thin"

[[subsystem]]
nqn = "nqn.2026-01.org.example:subsystem"
allow_any_host = true
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "other" }, { nsid = 2, lun = "thin" }]
"#;

/// Returns the arguments of mount(8) for a small file system.
fn small() -> String {
    format!("tmpfs -o size={DISK_MIB}m")
}

/// A file system, mounted at `small` in a directory. The mount is in a mount namespace that exists as long as this value.
struct SmallDisk {
    /// The process that holds the mount namespace until the process's standard input ends.
    holder: Child,
    /// The path of the mount point, as this process sees it.
    root: PathBuf,
}

impl SmallDisk {
    fn mount(dir: &Path, kind: &str) -> Self {
        let at = dir.join("small");
        std::fs::create_dir(&at).expect("a mount point");
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation", "unchanged"]);
        if !nix::unistd::geteuid().is_root() {
            unshare.arg("--map-root-user");
        }
        // In a chroot, `/` may not be a mount point, and then it can't be made private. Other processes can then see the disk
        // until the mount is removed.
        let script = format!(
            "mount --make-rprivate / 2>/dev/null; mount -t {kind} none \"$0\" && echo mounted && cat; \
             umount --lazy \"$0\""
        );
        unshare.args(["sh", "-c", &script]).arg(&at).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = unshare.spawn().expect("unshare(1) of util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        assert_eq!(line, "mounted\n");
        let root = PathBuf::from(format!("/proc/{}/root{}", holder.id(), at.display()));
        Self { holder, root }
    }

    /// Returns the program and arguments that start another program in the mount namespace, so that the other program sees the
    /// disk.
    fn through(&self) -> Vec<String> {
        let mut words = vec![
            "nsenter".to_owned(),
            format!("--target={}", self.holder.id()),
            "--mount".into(),
            "--root".into(),
        ];
        if !nix::unistd::geteuid().is_root() {
            words.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        words.push("--".into());
        words
    }

    fn filler(&self) -> PathBuf {
        self.root.join("filler")
    }

    /// Fills the disk, and leaves `spare_bytes` bytes free.
    fn fill(&self, spare_bytes: u64) {
        let spare = self.root.join("spare");
        std::fs::write(&spare, vec![1; spare_bytes as usize]).expect("room for what is to be spared");
        let mut file = std::fs::File::create(self.filler()).expect("the filler");
        while file.write_all(&[1; 4096]).is_ok() {}
        std::fs::remove_file(spare).expect("removed");
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).expect("the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // The process ends now, because its standard input has ended.
        let _ = self.holder.wait();
    }
}

/// Starts a gateway with a small disk and its store at `state`, and a host that does I/O on LUN `other`.
fn start(state: &str) -> (Daemon, SmallDisk, Fleet) {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = SmallDisk::mount(dir.path(), &small());
    let gateway = Daemon::start_through(&DOCUMENT.replace("STATE", state), dir, disk.through());
    let mut fleet = Fleet::start(&[Spec::new(gateway.addr, 2, 4, &[4096, 65536, 512])], 16);
    fleet.wait_ups(0..1, 1);
    fleet.run(0..1, ENDLESS);
    (gateway, disk, fleet)
}

/// Checks that the I/O of the host continues and that no command has failed.
#[track_caller]
fn goes_on(fleet: &mut Fleet, what: &str) {
    let ops = fleet.tally(0).ops;
    fleet.wait_ops(0, ops + 100);
    let tally = fleet.tally(0);
    assert_eq!((tally.errors, tally.mismatches), (0, 0), "{what}: {tally:?}");
}

#[test]
fn under_a_file_backend() {
    let (gateway, disk, mut fleet) = start("DIR/state");
    let mut pair = host(&gateway, 1);
    fill(&mut pair.io, 2, 0..2 * MIB, 0x11).expect("room");
    disk.fill(3 * MIB + MIB / 2);
    // The disk has room for three more MiB and a half.
    fill(&mut pair.io, 2, 2 * MIB..5 * MIB, 0x22).expect("room");
    for _ in 0..2 {
        let refused = fill(&mut pair.io, 2, 5 * MIB..6 * MIB, 0x33).expect_err("a full disk");
        assert_eq!(refused, Status::CAPACITY_EXCEEDED.dnr());
        goes_on(&mut fleet, "a full disk under another LUN");
    }
    // The host can read the written data, and write it again.
    expect_filled(&mut pair.io, 2, 0..2 * MIB, 0x11, "a full disk");
    expect_filled(&mut pair.io, 2, 2 * MIB..5 * MIB, 0x22, "a full disk");
    fill(&mut pair.io, 2, 0..MIB, 0x44).expect("no room is needed");
    // Blocks that were never written read as zeros.
    expect_filled(&mut pair.io, 2, 8 * MIB..9 * MIB, 0, "a full disk");
    disk.free();
    fill(&mut pair.io, 2, 5 * MIB..8 * MIB, 0x55).expect("room again");
    for (range, byte) in [(0..1, 0x44), (1..2, 0x11), (2..5, 0x22), (5..8, 0x55)] {
        expect_filled(&mut pair.io, 2, range.start * MIB..range.end * MIB, byte, "room again");
    }
    fleet.finish();
}

#[test]
fn under_a_pool() {
    let (mut gateway, disk, mut fleet) = start("DIR/state");
    let create = json!({ "name": "v", "pool": "small", "size": 8 * MIB });
    let grow = json!({ "name": "v", "size": 12 * MIB });
    let before = gateway.call("pool_show", json!({ "name": "small" }));
    disk.fill(2 * MIB);
    let refused = gateway.try_call("lun_create", create.clone()).expect_err("a full disk");
    assert!(refused.contains("thin-pool") && refused.contains("no space left"), "{refused}");
    assert_eq!(gateway.call("pool_show", json!({ "name": "small" })), before);
    goes_on(&mut fleet, "a full disk under another pool");
    disk.free();
    gateway.call("lun_create", create);
    show(&gateway, "v", 3);
    let mut pair = host(&gateway, 1);
    fill(&mut pair.io, 3, 0..8 * MIB, 0x66).expect("room");
    disk.fill(2 * MIB);
    let before = gateway.call("pool_show", json!({ "name": "small" }));
    let refused = gateway.try_call("lun_grow", grow.clone()).expect_err("a full disk");
    assert!(refused.contains("thin-pool") && refused.contains("no space left"), "{refused}");
    assert_eq!(gateway.call("pool_show", json!({ "name": "small" })), before);
    // The space of the layout's table was allocated when the pool was made. The list of hosts that see the LUN now takes
    // several blocks of the table.
    let wide = "nqn.2026-01.org.example:wide";
    let hosts: Vec<String> = (0..300).map(support::host_nqn).collect();
    let namespaces = json!([{ "nsid": 1, "lun": "v" }]);
    disk.fill(0);
    gateway.call("subsystem_create", json!({ "nqn": wide, "hosts": hosts, "namespaces": namespaces }));
    let table = std::fs::read(disk.root.join("pool.img")).expect("the pool's file");
    assert!(Table::parse(&table[131_072..]).expect("a table").exports.len() > 8192, "more than it had");
    let before = gateway.call("pool_show", json!({ "name": "small" }));
    assert_eq!(before["state"], "up", "{before}");
    expect_filled(&mut pair.io, 3, 0..8 * MIB, 0x66, "a LUN that could not grow");
    // The LUN's own units are already allocated on the disk.
    fill(&mut pair.io, 3, 0..8 * MIB, 0x77).expect("its own units");
    goes_on(&mut fleet, "a full disk under another pool");
    // The disk is still full after a restart.
    gateway.kill_and_restart();
    expect_filled(&mut host(&gateway, 1).io, 3, 0..8 * MIB, 0x77, "restarted on a full disk");
    disk.free();
    gateway.call("lun_grow", grow);
    let mut pair = host(&gateway, 1);
    expect_filled(&mut pair.io, 3, 0..8 * MIB, 0x77, "a grown LUN");
    expect_filled(&mut pair.io, 3, 8 * MIB..12 * MIB, 0, "a grown LUN");
    goes_on(&mut fleet, "room again");
    fleet.finish();
}

#[test]
fn under_the_state_store() {
    let (mut gateway, disk, mut fleet) = start("DIR/small/state");
    gateway.call("lun_create", json!({ "name": "v", "pool": "tank", "size": 4 * MIB }));
    show(&gateway, "v", 3);
    fill(&mut host(&gateway, 1).io, 3, 0..4 * MIB, 0x88).expect("written");
    disk.fill(0);
    // The store first uses the space that its file already has. Then it is full.
    let named = |number: usize| json!({ "name": format!("h{number}"), "nqn": support::host_nqn(number) });
    let until_full = |gateway: &Daemon, first: usize| {
        let store =
            |number| gateway.try_call("host_create", named(number)).err().map(|error| (number, error));
        (first..first + 5000).find_map(store).expect("the store never gets full")
    };
    let (stored, error) = until_full(&gateway, 0);
    let path = gateway.path("small/state/state.redb").display().to_string();
    let is_clear = |error: &str| {
        error.contains("nothing has changed") && error.contains(&path) && error.contains("No space left")
    };
    assert!(is_clear(&error), "{error}");
    // Each kind of change is refused in the same way, and changes nothing.
    let look = |gateway: &Daemon| {
        let whole = ["config_get", "pool_list", "lun_list", "subsystem_list"]
            .map(|what| gateway.call(what, json!({})));
        let mut whole = whole;
        // The epoch counts every publication, and a refused change can publish too. So the epoch is not compared.
        whole[0]["epoch"].take();
        whole
    };
    let before = look(&gateway);
    let lun = json!({ "name": "w", "pool": "tank", "size": 4 * MIB });
    let changes = [
        ("host_create", named(stored)),
        ("lun_create", lun.clone()),
        ("lun_grow", json!({ "name": "v", "size": 8 * MIB })),
        ("lun_delete", json!({ "name": "v", "force": true })),
        ("subsystem_remove_namespace", json!({ "nqn": SUBSYSTEM, "nsid": 3 })),
        ("backend_create", json!({ "name": "n", "type": "null", "size": MIB })),
    ];
    for (method, params) in &changes {
        let error = gateway.try_call(method, params.clone()).expect_err(method);
        assert!(is_clear(&error), "{method}: {error}");
        assert_eq!(look(&gateway), before, "{method}");
        goes_on(&mut fleet, method);
    }
    expect_filled(&mut host(&gateway, 1).io, 3, 0..4 * MIB, 0x88, "a full store");
    // After space is freed, the store works again, and acknowledged changes are durable.
    disk.free();
    assert_eq!(look(&gateway), before);
    gateway.call("lun_create", lun);
    gateway.call("lun_grow", json!({ "name": "v", "size": 8 * MIB }));
    gateway.call("host_create", named(stored));
    let after = look(&gateway);
    gateway.kill_and_restart();
    assert_eq!(look(&gateway), after);
    let mut pair = host(&gateway, 1);
    expect_filled(&mut pair.io, 3, 0..4 * MIB, 0x88, "room again");
    expect_filled(&mut pair.io, 3, 4 * MIB..8 * MIB, 0, "room again");
    goes_on(&mut fleet, "room again");
    // A gateway that starts with a full store serves all stored objects.
    disk.fill(0);
    until_full(&gateway, stored + 1);
    let full = look(&gateway);
    gateway.kill_and_restart();
    assert_eq!(look(&gateway), full);
    expect_filled(&mut host(&gateway, 1).io, 3, 0..4 * MIB, 0x88, "restarted on a full store");
    goes_on(&mut fleet, "restarted on a full store");
    fleet.finish();
}

/// Returns the number of warnings in the log which say that the backend's file can't have holes.
fn told_of_holes(gateway: &Daemon, backend: &str) -> usize {
    let named = format!("backend=\"{backend}\" ");
    let is_told =
        |line: &&str| line.contains("WARN") && line.contains("FALLOC_FL_PUNCH_HOLE") && line.contains(&named);
    gateway.log().lines().filter(is_told).count()
}

/// The log names such a backend. New LUNs still read as zeros.
#[test]
fn on_a_file_system_without_holes() {
    for (kind, warnings) in [(small(), 0), ("ramfs".into(), 1)] {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = SmallDisk::mount(dir.path(), &kind);
        let document = DOCUMENT.replace("STATE", "DIR/state").replace("64MiB", "16MiB");
        let gateway = Daemon::start_through(&document, dir, disk.through());
        for backend in ["thin", "thin-pool"] {
            assert_eq!(told_of_holes(&gateway, backend), warnings, "{kind}: {}", gateway.log());
        }
        let mut pair = host(&gateway, 1);
        for byte in [0x11, 0x22] {
            gateway.call("lun_create", json!({ "name": "new", "pool": "small", "size": "4MiB" }));
            show(&gateway, "new", 3);
            expect_filled(&mut pair.io, 3, 0..4 * MIB, 0, &kind);
            fill(&mut pair.io, 3, 0..4 * MIB, byte).expect("room");
            hide(&gateway, 3);
            gateway.call("lun_delete", json!({ "name": "new", "force": true }));
        }
    }
}
