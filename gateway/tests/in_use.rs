//! Tests that a change needs a flag if it destroys data, or takes objects from connected hosts without naming them.
#![forbid(unsafe_code)]

mod support;

use nix::sys::signal::Signal;
use serde_json::json;
use support::daemon::Daemon;
use support::raw::{Pair, Raw, Who};
use support::{host_nqn, wait_for};
use trefoil_wire::nvme::Status;

const NQN: &str = "nqn.2026-01.org.example:s";
const DOCUMENT: &str = r#"
[[backend]]
name = "file0"
type = "file"
path = "DIR/file0.img"
size = "64MiB"

[[pool]]
name = "tank"
backends = ["file0"]

[[lun]]
name = "a"
pool = "tank"
size = "8MiB"

[[subsystem]]
nqn = "nqn.2026-01.org.example:s"
allow_any_host = true
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "a" }WHOLE]
"#;
/// A memory backend, and a LUN that is this whole backend.
const WHOLE: &str = r#"
[[backend]]
name = "mem"
type = "memory"
size = "64MiB"

[[lun]]
name = "w"
backend = "mem"
"#;

fn start() -> Daemon {
    let gateway =
        Daemon::start(&format!("{}{WHOLE}", DOCUMENT.replace("WHOLE", r#", { nsid = 2, lun = "w" }"#)));
    gateway.write("less.toml", gateway.document(&DOCUMENT.replace("WHOLE", "")));
    gateway
}

/// Starts an array, and a gateway with a pool `far` on the array.
fn start_with_far_pool() -> (Daemon, Daemon) {
    let (array, gateway) = (start(), start());
    let far = json!({ "name": "far", "type": "nvme-tcp", "address": array.addr, "subnqn": NQN, "nsid": 2 });
    gateway.call("backend_create", far);
    gateway.call("pool_create", json!({ "name": "far", "backends": ["far"] }));
    (array, gateway)
}

/// Returns whether the gateway still has a connected queue pair.
fn is_connected(gateway: &Daemon) -> bool {
    gateway.call("stats_get", json!({}))["qpairs"].as_array().is_some_and(|rows| !rows.is_empty())
}

#[test]
fn a_document_takes_no_lun_from_a_connected_host() {
    let gateway = start();
    let path = |name: &str| gateway.arg(name);
    let less = gateway.document(&DOCUMENT.replace("WHOLE", ""));
    gateway.write("less.bak", format!("# trefoil backup, schema 1\n{less}"));
    let mut host = Pair::connect(gateway.addr, &host_nqn(1), NQN);
    host.check(2, 7);
    let before = gateway.ok(&["config", "get"]);
    let used = format!("host `{}` loses namespace 2 (LUN `w`) of subsystem `{NQN}`", host_nqn(1));
    let data = "memory backend `mem`, LUN `w`, loses its contents";
    for (verb, file) in [("apply", path("less.toml")), ("restore", path("less.bak"))] {
        let refused = |flags: &[&str]| gateway.refused(&[&["config", verb, &file], flags].concat());
        let both = refused(&[]);
        assert!(both.contains(&format!("{used}: allow this loss with --force")), "{both}");
        assert!(both.contains(&format!("{data}: allow this loss with --delete-data")), "{both}");
        assert_eq!(refused(&["--delete-data"]), format!("trefoil: {used}: allow this loss with --force\n"));
        assert_eq!(refused(&["--force"]), format!("trefoil: {data}: allow this loss with --delete-data\n"));
        let would = gateway.ok(&["config", verb, "--dry-run", &file]);
        assert!(would.contains("- backend/mem  (its data is lost)\n- lun/w\n"), "{would}");
        let lost = format!("! {used} (--force)\n! {data} (--delete-data)\n");
        assert!(
            would.ends_with(&format!("{lost}would be refused without --force and --delete-data\n")),
            "{would}"
        );
        let would = gateway.ok(&["config", verb, "--dry-run", "--force", "--delete-data", &file]);
        assert!(would.ends_with("would be applied\n"), "{would}");
    }
    assert!(gateway.ok(&["config", "diff", &path("less.toml")]).contains(&used));
    assert_eq!(gateway.ok(&["config", "get"]), before);
    host.check(2, 8);
    let applied = gateway.ok(&["config", "apply", "--force", "--delete-data", &path("less.toml")]);
    assert!(applied.contains(&used) && applied.ends_with("applied\n"), "{applied}");
    assert!(host.io.read(2, 0, 512).0.is(Status::INVALID_NAMESPACE));
    host.check(1, 9);
    assert_eq!(gateway.ok(&["config", "apply", &path("less.toml")]), "nothing to do\n");
}

#[test]
fn a_host_that_comes_during_a_long_change_keeps_its_lun() {
    let (array, gateway) = start_with_far_pool();
    let before = gateway.ok(&["config", "get"]);
    // The document drops the namespace of `w` and adds a LUN. The gateway can't finish the new LUN until the array answers.
    let (text, whole) = (before.clone(), "[[subsystem.namespaces]]\nnsid = 2\nlun = \"w\"\n");
    assert!(text.contains(whole), "{text}");
    let new = "[[lun]]\nname = \"b\"\npool = \"far\"\nsize = \"8MiB\"\n";
    let document = gateway.write("new.toml", format!("{}\n{new}", text.replace(whole, "")));
    array.signal(Signal::SIGSTOP);
    let apply = gateway.begin(&["config", "apply", &document]);
    // The test can't see that the change has begun. But a change that begins after the host has connected would be refused at
    // its start.
    for _ in 0..20 {
        assert!(!is_connected(&gateway));
        gateway.ok(&["lun", "list"]);
    }
    let mut host = Pair::connect(gateway.addr, &host_nqn(1), NQN);
    host.check(2, 7);
    array.signal(Signal::SIGCONT);
    let output = apply.wait_with_output().expect("its end");
    let refused = String::from_utf8_lossy(&output.stderr);
    assert!(refused.contains("loses namespace 2 (LUN `w`)") && refused.contains("--force"), "{refused}");
    host.check(2, 8);
    assert_eq!(gateway.ok(&["config", "get"]), before);
    gateway.ok(&["lun", "create", "b", "--pool", "far", "--size", "8MiB"]);
}

#[test]
fn a_host_that_comes_while_a_pool_is_told_keeps_its_lun() {
    let (array, gateway) = start_with_far_pool();
    gateway.ok(&["lun", "create", "b", "--pool", "far", "--size", "8MiB"]);
    gateway.ok(&["subsystem", "add-namespace", NQN, "b", "--nsid", "3"]);
    let before = gateway.ok(&["config", "get"]);
    // The pool must store which subsystems show its LUN. That is not possible until the array answers.
    let shown = "[[subsystem.namespaces]]\nnsid = 3\nlun = \"b\"\n";
    assert!(before.contains(shown), "{before}");
    let document = gateway.write("new.toml", before.replace(shown, ""));
    array.signal(Signal::SIGSTOP);
    let apply = gateway.begin(&["config", "apply", &document]);
    // The test can't see that the change has begun. But a change that begins after the host has connected would be refused at
    // its start.
    for _ in 0..20 {
        gateway.ok(&["lun", "list"]);
    }
    let mut host = Pair::connect(gateway.addr, &host_nqn(1), NQN);
    host.check(1, 7);
    array.signal(Signal::SIGCONT);
    let output = apply.wait_with_output().expect("its end");
    let refused = String::from_utf8_lossy(&output.stderr);
    assert!(refused.contains("loses namespace 3 (LUN `b`)") && refused.contains("--force"), "{refused}");
    host.check(3, 8);
    assert_eq!(gateway.ok(&["config", "get"]), before);
}

/// Even with both flags, two changes by a document are refused. The first change gives a LUN another name, which would delete
/// the LUN's data on its pool. The second change writes a layout over data that hosts still use, although this change can fail
/// later.
#[test]
fn a_document_gives_no_lun_s_disk_to_another() {
    let gateway = start();
    let before = gateway.ok(&["config", "get"]);
    let mut host = Pair::connect(gateway.addr, &host_nqn(1), NQN);
    host.check(1, 7);
    let refused = |text: &str| {
        let file = gateway.write("new.toml", text);
        gateway.refused(&["config", "apply", "--force", "--delete-data", &file])
    };
    let renamed = before.replace("name = \"a\"", "name = \"b\"").replace("lun = \"a\"", "lun = \"b\"");
    let why = refused(&renamed);
    assert!(why.contains("LUN `b` has the identity of LUN `a`"), "{why}");
    let at = before.find("[[lun]]\nname = \"w\"").expect("the LUN");
    let len = before[at..].find("\n\n").expect("its end");
    let gone = format!("{}{}", &before[..at], &before[at + len..]);
    let gone = gone.replace("[[subsystem.namespaces]]\nnsid = 2\nlun = \"w\"\n", "");
    let why = refused(&format!("{gone}\n[[pool]]\nname = \"q\"\nbackends = [\"mem\"]\n"));
    assert!(why.contains("pool `q`: backend `mem` is presented whole by LUN `w`"), "{why}");
    assert_eq!(gateway.ok(&["config", "get"]), before);
    host.check(1, 8);
    host.check(2, 9);
}

#[test]
fn a_lun_that_nobody_uses_needs_no_force() {
    let gateway = start();
    let less = gateway.arg("less.toml");
    let host = Raw::admin(gateway.addr, &Who::admin(&host_nqn(1), NQN));
    let apply = ["config", "apply", "--delete-data", &less];
    assert!(gateway.refused(&apply).contains("allow this loss with --force"));
    drop(host);
    wait_for("the host to be gone", || !is_connected(&gateway));
    assert!(gateway.ok(&apply).ends_with("applied\n"));
}

#[test]
fn a_command_that_takes_more_than_it_names_needs_force() {
    let gateway = start();
    let who = Who::admin(&host_nqn(1), NQN);
    let mut host = Raw::admin(gateway.addr, &who).0;
    let other = host_nqn(2);
    let gone = format!("host `{}` is disconnected from subsystem `{NQN}` (LUNs: `a`, `w`)", host_nqn(1));
    let ways: [(&[&str], &str); 3] = [
        (&["subsystem", "delete", NQN], &gone),
        (&["subsystem", "allow-any-host", NQN, "false"], &gone),
        // When the namespace gets its first list, all other hosts lose the namespace.
        (&["host", "add", NQN, &other, "--nsid", "2"], "loses namespace 2 (LUN `w`)"),
    ];
    let before = gateway.ok(&["config", "get"]);
    for (words, what) in ways {
        let refused = gateway.refused(words);
        assert!(refused.contains(what) && refused.ends_with(": allow this loss with --force\n"), "{refused}");
    }
    // SPDK's clients can't ask for force. SPDK would leave these hosts connected, so this gateway doesn't disconnect them
    // either.
    let params = format!(r#"{{"nqn":"{NQN}","allow_any_host":false}}"#);
    assert!(gateway.refused(&["call", "nvmf_subsystem_allow_any_host", &params]).contains(&gone));
    assert_eq!(gateway.ok(&["config", "get"]), before);
    host.csts();
    // Without a flag, a command may remove the object that it names.
    gateway.ok(&["subsystem", "remove-namespace", NQN, "2"]);
    gateway.ok(&["subsystem", "delete", NQN, "--force"]);
    host.wait_closed("its subsystem is deleted");
}
