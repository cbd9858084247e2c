//! A host or listener is removed in whichever form a list names it. If a removed host may still connect, a note says so.
#![forbid(unsafe_code)]

mod support;

use serde_json::json;
use std::net::TcpStream;
use support::daemon::{Daemon, trefoild};
use support::raw::{Raw, Who};
use trefoil_wire::fabrics::ConnectResponse;

const NQN: &str = "nqn.2026-01.org.example:s";
const WEB: &str = "nqn.2026-01.org.example:web";
const DOCUMENT: &str = r#"
[[backend]]
name = "ram"
type = "memory"
size = "8MiB"

[[lun]]
name = "l"
backend = "ram"

[[host]]
name = "web"
nqn = "nqn.2026-01.org.example:web"

[[subsystem]]
nqn = "nqn.2026-01.org.example:s"
hosts = ["web", "nqn.2026-01.org.example:web"]
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "l", hosts = ["web", "nqn.2026-01.org.example:web"] }]
"#;

fn may_connect(gateway: &Daemon) -> bool {
    matches!(Raw::asked(gateway.addr, &Who::admin(WEB, NQN)).1, ConnectResponse::Connected { .. })
}

/// Returns the notes that `trefoil` prints beside its result.
fn told(gateway: &Daemon, args: &[&str]) -> String {
    let run = gateway.run(args);
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{args:?}: {said}");
    said
}

#[test]
fn a_revoked_host_is_gone_on_every_way_in() {
    let mut gateway = Daemon::start(DOCUMENT);
    for (host, restart) in [("web", false), (WEB, true)] {
        let mut connected = Raw::queue(gateway.addr, &Who::admin(WEB, NQN), (false, false));
        let said = told(&gateway, &["host", "remove", NQN, host]);
        assert!(said.contains("stays on the lists of these namespaces"), "{said}");
        connected.wait_closed("its host was revoked");
        assert!(!may_connect(&gateway), "{host}");
        if restart {
            gateway.kill_and_restart();
            assert!(!may_connect(&gateway), "{host}, after a restart");
        }
        // The host is listed twice: first by SPDK's method, then by a document.
        gateway.call("nvmf_subsystem_add_host", json!({ "nqn": NQN, "host": WEB }));
        let twice = gateway.try_call("nvmf_subsystem_add_host", json!({ "nqn": NQN, "host": "web" }));
        assert!(twice.is_err_and(|why| why.contains("on the list")), "one host, by its name");
        assert_eq!(
            gateway.ok(&["config", "apply", &gateway.arg("trefoil.toml")]),
            "nothing to do\n",
            "the same sets"
        );
        assert!(may_connect(&gateway));
    }
    gateway.call("nvmf_subsystem_remove_host", json!({ "nqn": NQN, "host": WEB }));
    assert!(!may_connect(&gateway));
}

#[test]
fn a_host_that_is_revoked_where_any_may_connect_is_told_to_be_there() {
    let gateway = Daemon::start(&DOCUMENT.replace("listeners", "allow_any_host = true\nlisteners"));
    let said = told(&gateway, &["host", "remove", NQN, "web"]);
    assert!(said.contains(&format!("host `{WEB}` may still connect to subsystem `{NQN}`")), "{said}");
    assert!(may_connect(&gateway) && gateway.log().contains("may still connect to subsystem"));
}

#[test]
fn a_listener_in_two_spellings_is_closed_by_either() {
    let gateway = Daemon::start(
        &DOCUMENT.replace("\"ADDR\"", "\"ADDR\", \"[::1]:24499\", \"[0:0:0:0:0:0:0:1]:24499\""),
    );
    assert!(TcpStream::connect("[::1]:24499").is_ok());
    gateway.ok(&["subsystem", "remove-listener", NQN, "[0::1]:24499"]);
    assert!(TcpStream::connect("[::1]:24499").is_err());
}

#[test]
fn one_lun_in_two_subsystems_is_told_by_check_start_and_answer() {
    let other = "nqn.2026-01.org.example:other";
    let second = format!("[[subsystem]]\nnqn = \"{other}\"\nhosts = [\"web\"]\n");
    let shown = second.clone() + "namespaces = [{ nsid = 1, lun = \"l\" }]\n";
    let gateway = Daemon::start(&(DOCUMENT.to_owned() + &shown));
    let what = format!("LUN `l` is namespace 1 of subsystem `{other}` and namespace 1 of subsystem `{NQN}`");
    let is_told =
        |line: &str| line.contains("WARN") && line.contains(&what) && line.contains("duplicate IDs");
    assert!(gateway.log().lines().any(is_told), "{}", gateway.log());
    let document = gateway.arg("trefoil.toml");
    let said = String::from_utf8(trefoild(&["--check", &document]).stdout).expect("text");
    assert!(said.contains("warning: LUN `l` is "), "{said}");
    // An answer has only the notes that its own change causes.
    gateway.ok(&["subsystem", "remove-namespace", other, "1"]);
    let said = told(&gateway, &["subsystem", "add-namespace", other, "l", "--nsid", "1"]);
    assert!(said.starts_with("trefoil: note: ") && said.contains(&what), "{said}");
    assert_eq!(told(&gateway, &["host", "create", "db", "nqn.2026-01.org.example:db"]), "");
    assert_eq!(gateway.log().lines().filter(|line| is_told(line)).count(), 2);
    let plain = gateway.document(&(DOCUMENT.to_owned() + &second));
    gateway.ok(&["config", "apply", &gateway.write("plain.toml", plain)]);
    let applied = gateway.ok(&["config", "apply", &document]);
    assert!(applied.contains(&what) && applied.ends_with("\napplied\n"), "{applied}");
}
