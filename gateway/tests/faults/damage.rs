//! Tests of superblocks that are damaged when the gateway starts, and of a lost database.

use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use support::Patience;
use trefoil_storage::pool::{Label, LabelState};

const DOCUMENT: &str = r#"
[gateway]
cores = 1
memory_per_core = "40MiB"
max_hosts = 8
max_qpairs = 32
state_dir = "DIR/state"
rpc_socket = "DIR/rpc.sock"

[[backend]]
name = "single"
type = "file"
path = "DIR/single.img"
size = "16MiB"

[[backend]]
name = "left"
type = "file"
path = "DIR/left.img"
size = "16MiB"

[[backend]]
name = "right"
type = "file"
path = "DIR/right.img"
size = "16MiB"

[[backend]]
name = "bystander"
type = "file"
path = "DIR/bystander.img"
size = "16MiB"

[[pool]]
name = "one"
backends = ["single"]

[[pool]]
name = "two"
backends = ["left", "right"]

[[pool]]
name = "other"
backends = ["bystander"]

[[lun]]
name = "a"
pool = "one"
size = "4MiB"

[[lun]]
name = "b"
pool = "two"
size = "16MiB"

[[lun]]
name = "c"
pool = "two"
size = "4MiB"

[[lun]]
name = "d"
pool = "other"
size = "4MiB"

[[subsystem]]
nqn = "nqn.2026-01.org.example:subsystem"
allow_any_host = true
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "a" }, { nsid = 2, lun = "b" }, { nsid = 3, lun = "c" }, { nsid = 4, lun = "d" }]
"#;

/// Each LUN's name, NSID, size and content.
const LUNS: [(&str, u32, u64, u8); 4] =
    [("a", 1, 4 * MIB, 0xa1), ("b", 2, 16 * MIB, 0xb2), ("c", 3, 4 * MIB, 0xc3), ("d", 4, 4 * MIB, 0xd4)];

/// The positions of the two slots of a member's label, and of the two slots of its layout table (see `trefoil_storage::pool`).
const LABEL_AT: [u64; 2] = [0, 4096];
const TABLE_AT: [u64; 2] = [131_072, 2_162_688];
const SLOT_BYTES: usize = 4096;
/// The start of the data.
const DATA_AT: usize = 4 << 20;

fn start() -> Daemon {
    filled(Daemon::start(DOCUMENT))
}

/// Fills all LUNs.
fn filled(gateway: Daemon) -> Daemon {
    let mut pair = host(&gateway, 1);
    for (_, nsid, len, byte) in LUNS {
        fill(&mut pair.io, nsid, 0..len, byte).expect("written");
    }
    gateway
}

fn image(gateway: &Daemon, backend: &str) -> PathBuf {
    gateway.path(&format!("{backend}.img"))
}

/// Kills the gateway, damages slots of a backend, and starts the gateway again. Returns the backend's content from before the
/// damage.
fn damage(gateway: &mut Daemon, backend: &str, slots: &[u64]) -> Vec<u8> {
    gateway.kill();
    let path = image(gateway, backend);
    let before = std::fs::read(&path).expect("read");
    let file = File::options().write(true).open(path).expect("opened");
    for &at in slots {
        // The slot is either torn, or replaced by a whole block of other data.
        let garbage = if at % 8192 == 0 { vec![0x6b; SLOT_BYTES / 2] } else { vec![0x6b; SLOT_BYTES] };
        file.write_all_at(&garbage, at + (SLOT_BYTES - garbage.len()) as u64).expect("damaged");
    }
    gateway.restart();
    before
}

/// Checks that the named LUNs are served with their content.
#[track_caller]
fn served(gateway: &Daemon, names: &[&str], what: &str) {
    let mut pair = host(gateway, 1);
    for (name, nsid, len, byte) in LUNS.iter().filter(|(name, ..)| names.contains(name)) {
        assert_eq!(gateway.lun(name)["state"], "up", "{what}: {}", gateway.lun(name));
        expect_filled(&mut pair.io, *nsid, 0..*len, *byte, &format!("{what}: LUN {name}"));
        // The host can read the data, and write to it in place.
        fill(&mut pair.io, *nsid, 0..MIB, *byte).expect(what);
    }
}

/// Returns a pool's state and its reason.
fn pool(gateway: &Daemon, name: &str) -> (String, String) {
    let pool = gateway.call("pool_show", json!({ "name": name }));
    let text = |field: &str| pool[field].as_str().unwrap_or_default().to_owned();
    (text("state"), text("why"))
}

#[test]
fn what_has_a_good_copy_is_repaired() {
    let mut gateway = start();
    let copy = |slot: usize| vec![LABEL_AT[slot], TABLE_AT[slot]];
    let cases = [
        ("single", vec![LABEL_AT[0]]),
        ("single", vec![LABEL_AT[1]]),
        ("single", vec![TABLE_AT[0]]),
        ("single", vec![TABLE_AT[1]]),
        ("single", copy(0)),
        ("single", copy(1)),
        ("left", TABLE_AT.to_vec()),
        ("right", TABLE_AT.to_vec()),
        ("left", LABEL_AT.to_vec()),
        ("right", LABEL_AT.to_vec()),
        ("left", [copy(0), vec![LABEL_AT[1]]].concat()),
    ];
    for (backend, slots) in cases {
        let what = format!("{backend}: {slots:?} damaged");
        let log = gateway.log().len();
        let before = damage(&mut gateway, backend, &slots);
        served(&gateway, &["a", "b", "c", "d"], &what);
        for name in ["one", "two", "other"] {
            assert_eq!(pool(&gateway, name), ("up".into(), String::new()), "{what}");
        }
        let repaired = gateway.log()[log..].matches("was repaired").count();
        assert_eq!(repaired, slots.len(), "{what}");
        let after = std::fs::read(image(&gateway, backend)).expect("read");
        assert!(before[..DATA_AT] == after[..DATA_AT], "{what}: it is not as it was");
        // The pool accepts changes.
        let pool = if backend == "single" { "one" } else { "two" };
        gateway.call("lun_create", json!({ "name": "v", "pool": pool, "size": 4 * MIB }));
        gateway.call("lun_delete", json!({ "name": "v" }));
    }
}

#[test]
fn what_has_none_is_an_error_that_names_it() {
    let mut gateway = start();
    let whole = [LABEL_AT, TABLE_AT].concat();
    let lun = |pool: &str| json!({ "name": "v", "pool": pool, "size": 4 * MIB });
    // The backend, its damaged slots, its pool, the pool's state, parts of the pool's reason, and the LUNs that are served.
    type Case<'a> = (&'a str, &'a [u64], &'a str, &'a str, &'a [&'a str], &'a [&'a str]);
    let cases: [Case; 4] = [
        ("single", &LABEL_AT, "one", "down", &["pool `one`", "single has"], &["b", "c", "d"]),
        ("single", &TABLE_AT, "one", "down", &["(one)", "no valid layout: single"], &["b", "c", "d"]),
        ("left", &whole, "two", "frozen", &["missing: left (label: "], &["a", "c", "d"]),
        ("right", &whole, "two", "frozen", &["missing: right (label: "], &["a", "d"]),
    ];
    for (backend, slots, name, state, reasons, luns) in cases {
        let what = format!("{backend}: {slots:?} damaged");
        let before = damage(&mut gateway, backend, slots);
        let damaged = std::fs::read(image(&gateway, backend)).expect("read");
        served(&gateway, luns, &what);
        let (found, why) = pool(&gateway, name);
        assert!(
            found == state && reasons.iter().all(|reason| why.contains(reason)),
            "{what}: {found}, {why}"
        );
        // LUN `b` is on both backends of its pool, and LUN `c` only on backend `right`.
        let affected = if name == "one" { "a" } else { "b" };
        assert_eq!(gateway.lun(affected)["state"], "down", "{what}");
        let refused = gateway.try_call("lun_create", lun(name)).expect_err(&what);
        assert!(refused.contains(name), "{what}: {refused}");
        gateway.call("lun_create", lun("other"));
        gateway.call("lun_delete", json!({ "name": "v" }));
        // The gateway writes nothing to a backend whose owner is unknown. With the backend's old content, everything works
        // again.
        assert!(std::fs::read(image(&gateway, backend)).expect("read") == damaged, "{what}");
        gateway.kill();
        std::fs::write(image(&gateway, backend), before).expect("restored");
        gateway.restart();
        served(&gateway, &["a", "b", "c", "d"], &format!("{what}, then restored"));
        assert_eq!(pool(&gateway, name), ("up".into(), String::new()), "{what}");
    }
}

#[test]
fn a_member_that_was_cut_off_is_missing_and_no_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole = File::create(dir.path().join("left.img")).expect("a file");
    whole.set_len(16 * MIB).expect("its size");
    // If the document had a size for the backend, the gateway would report a wrong size before it looks for the pool.
    let sized = "path = \"DIR/left.img\"\nsize = \"16MiB\"";
    assert!(DOCUMENT.contains(sized));
    let document = DOCUMENT.replace(sized, "path = \"DIR/left.img\"");
    let mut gateway = filled(Daemon::start_through(&document, dir, Vec::new()));
    gateway.kill();
    whole.set_len(12 * MIB).expect("cut off");
    gateway.restart();
    served(&gateway, &["a", "c", "d"], "cut off");
    let (state, why) = pool(&gateway, "two");
    assert!(
        state == "frozen" && why.contains("missing: left (the backend has 12582912 bytes"),
        "{state}: {why}"
    );
    assert_eq!(gateway.lun("b")["state"], "down");
    let log = gateway.log();
    assert!(
        log.lines()
            .any(|line| line.contains("backend `left` of the LUN's pool is missing")
                && line.contains("lun=\"b\"")),
        "{log}"
    );
    gateway.kill();
    whole.set_len(16 * MIB).expect("as long as before");
    gateway.restart();
    assert_eq!(pool(&gateway, "two"), ("up".into(), String::new()));
    assert_eq!(gateway.lun("b")["state"], "up");
}

#[test]
fn a_pool_that_lost_a_disk_for_good_can_be_given_up() {
    let mut gateway = start();
    gateway.kill();
    let left = image(&gateway, "left");
    let kept = std::fs::read(&left).expect("read");
    std::fs::write(&left, vec![0; kept.len()]).expect("another disk");
    gateway.restart();
    assert_eq!(pool(&gateway, "two").0, "frozen");
    let give_up = |more: &[&str]| gateway.refused(&[&["pool", "delete", "two"], more].concat());
    assert!(give_up(&[]).contains("pool `two` holds LUN `b`: delete its LUNs, or use --delete-data"));
    assert!(give_up(&["--delete-data"]).contains("LUN `b` is namespace 2"));
    gateway.call("pool_delete", json!({ "name": "two", "delete_data": true, "force": true }));
    served(&gateway, &["a", "d"], "the other pools");
    gateway.kill();
    gateway.restart();
    served(&gateway, &["a", "d"], "after a restart");
    assert_eq!(gateway.lun("b"), Value::Null);
    let again = |delete_data: bool| {
        let params = json!({ "name": "new", "backends": ["left", "right"], "delete_data": delete_data });
        gateway.try_call("pool_create", params)
    };
    let refused = again(false).expect_err("what is left of the old one");
    assert!(refused.contains("backend right belongs to pool two"), "{refused}");
    again(true).expect("asked for");
    gateway.call("lun_create", json!({ "name": "e", "pool": "new", "size": "20MiB" }));
}

/// A pool of the same name need not be the old pool. The old pool had another disk, which no longer exists.
#[test]
fn what_is_left_of_a_pool_can_be_a_pool_of_its_name() {
    let mut gateway = start();
    gateway.kill();
    std::fs::write(image(&gateway, "left"), vec![0; 16 * MIB as usize]).expect("another disk");
    gateway.restart();
    gateway.call("pool_delete", json!({ "name": "two", "delete_data": true, "force": true }));
    let again = |delete_data: bool| {
        let params = json!({ "name": "two", "backends": ["right"], "delete_data": delete_data });
        gateway.try_call("pool_create", params)
    };
    let refused = again(false).expect_err("what is left of the old one");
    assert!(refused.contains("backend right belongs to pool two"), "{refused}");
    assert_eq!(gateway.lun("b"), Value::Null, "what was given up stays away");
    again(true).expect("asked for");
    assert_eq!(pool(&gateway, "two"), ("up".into(), String::new()));
    assert_eq!(gateway.lun("b"), Value::Null, "what was given up stays away");
    gateway.call("lun_create", json!({ "name": "e", "pool": "two", "size": "8MiB" }));
}

/// Another LUN now has the name of the pool's LUN. The name has the maximum length.
#[test]
fn a_pool_that_was_given_up_comes_back_beside_what_took_its_names() {
    let mut gateway = start();
    let name = "n".repeat(63);
    gateway.call("lun_delete", json!({ "name": "c", "force": true }));
    gateway.call("lun_create", json!({ "name": name, "pool": "two", "size": "4MiB" }));
    gateway.kill();
    let left = image(&gateway, "left");
    std::fs::rename(&left, gateway.path("away")).expect("moved");
    gateway.restart();
    gateway.call("pool_delete", json!({ "name": "two", "delete_data": true, "force": true }));
    gateway.call("lun_create", json!({ "name": name, "pool": "other", "size": "4MiB" }));
    let another = gateway.lun(&name)["uuid"].clone();
    std::fs::rename(gateway.path("away"), &left).expect("moved back");
    let patience = Patience::new("the disk to be there");
    while gateway.try_call("pool_create", json!({ "name": "two", "backends": ["left", "right"] })).is_err() {
        patience.pause();
    }
    assert_eq!(gateway.lun(&name)["uuid"], another);
    let luns = gateway.call("lun_list", json!({}));
    let back = luns.as_array().expect("LUNs").iter().find(|lun| lun["name"] != "b" && lun["pool"] == "two");
    let back = back.expect("the given-up LUN")["name"].as_str().expect("a name").to_owned();
    assert!(back.len() == 63 && back.starts_with("nnn"), "{back}");
    gateway.call("host_create", json!({ "name": "web", "nqn": "nqn.2026-01.org.example:web" }));
    show(&gateway, "b", 2);
    served(&gateway, &["a", "b", "d"], "it is back");
}

/// A kill between the writes of the first and the last label leaves labels like these. The pool exists, although its creation
/// or destruction is incomplete.
#[test]
fn a_pool_that_was_not_wholly_made_or_destroyed_is_whole_again() {
    let mut gateway = start();
    // In a creation, the last label is not ready yet. In a destruction, the first label is no longer ready. The database either
    // lacks the pool, or is an old copy.
    let cases = [("right", -1, true), ("left", 1, true), ("right", -1, false), ("left", 1, false)];
    for (backend, generations, forgotten) in cases {
        let what = format!("{backend} is {generations} further, forgotten: {forgotten}");
        gateway.kill();
        let file = File::options().read(true).write(true).open(image(&gateway, backend)).expect("opened");
        for at in LABEL_AT {
            let mut slot = [0; SLOT_BYTES];
            file.read_exact_at(&mut slot, at).expect("read");
            let mut label = Label::parse(&slot).expect("a label");
            label.state = LabelState::Creating;
            label.generation = label.generation.checked_add_signed(generations).expect("a generation");
            file.write_all_at(&label.emit(), at).expect("written");
        }
        if forgotten {
            std::fs::remove_dir_all(gateway.path("state")).expect("the database");
        }
        gateway.restart();
        assert_eq!(pool(&gateway, "two"), ("up".into(), String::new()), "{what}");
        served(&gateway, &["a", "b", "c", "d"], &what);
    }
}

#[test]
fn a_lost_database_costs_no_data_and_no_identity() {
    let mut gateway = start();
    // No document has this LUN.
    let made = gateway.call("lun_create", json!({ "name": "e", "pool": "other", "size": 4 * MIB }));
    show(&gateway, "e", 5);
    fill(&mut host(&gateway, 1).io, 5, 0..4 * MIB, 0xe5).expect("written");
    let identity =
        |lun: &Value| ["name", "uuid", "nguid", "len_bytes", "block_bytes", "pool"].map(|f| lun[f].clone());
    let look = |gateway: &Daemon| ["a", "b", "c", "d", "e"].map(|name| identity(&gateway.lun(name)));
    let before = look(&gateway);
    assert_eq!(before[4], identity(&made));
    gateway.kill();
    std::fs::remove_dir_all(gateway.path("state")).expect("the database");
    gateway.restart();
    assert_eq!(look(&gateway), before);
    if gateway.lun("e")["exports"].as_array().is_none_or(Vec::is_empty) {
        show(&gateway, "e", 5);
    }
    served(&gateway, &["a", "b", "c", "d"], "a lost database");
    expect_filled(&mut host(&gateway, 1).io, 5, 0..4 * MIB, 0xe5, "a lost database");
    // After this restart, the gateway reads the new database.
    gateway.kill_and_restart();
    assert_eq!(look(&gateway), before);
}
