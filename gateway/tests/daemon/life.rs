//! Tests of starts, stops, kills and restarts, and of the state after each.

use super::{DOCUMENT, HOST, NQN, host_view, listening};
use crate::support::daemon::{Daemon, own_addr, trefoild};
use crate::support::raw::{Raw, Who};
use crate::support::{PATIENCE, Patience, wait_for};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let mut gateway = Daemon::start(DOCUMENT);
    gateway.ok(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);
    gateway.ok(&["subsystem", "add-namespace", NQN, "b"]);
    gateway.ok(&["lun", "grow", "a", "16MiB"]);
    let before = gateway.ok(&["config", "get"]);
    assert!(!gateway.log().contains("config diff"), "{}", gateway.log());
    gateway.kill_and_restart();
    assert_eq!(gateway.ok(&["config", "get"]), before);
    // The document has no LUN `b`, and has LUN `a` as it was before its change.
    let objects = "objects=\"-lun/b ~lun/a ~subsystem/nqn.2026-01.org.example:s\"";
    let log = gateway.log();
    let document = gateway.arg("trefoil.toml");
    let differs = log.lines().find(|line| line.contains(&format!("`trefoil config diff {document}`")));
    let differs = differs.unwrap_or_else(|| panic!("{log}"));
    assert!(differs.contains("WARN") && differs.contains(objects), "{differs}");
    assert!(
        differs.contains("the gateway runs from its stored state")
            && differs.contains("`trefoil config apply "),
        "{differs}"
    );
    gateway.ok(&["lun", "delete", "b", "--force"]);
    gateway.kill_and_restart();
    let luns = gateway.ok(&["lun", "list"]);
    assert!(luns.contains("16MiB") && !luns.contains("\nb "), "{luns}");
}

#[test]
fn a_lost_database_is_rebuilt_from_the_pool() {
    let mut gateway = Daemon::start(&listening());
    let address = gateway.addr.to_string();
    // The document has none of these objects.
    gateway.ok(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);
    gateway.ok(&["lun", "create", "c", "--pool", "tank", "--size", "8MiB"]);
    gateway.ok(&["subsystem", "add-namespace", NQN, "b", "--nsid", "9"]);
    gateway.ok(&["subsystem", "remove-namespace", NQN, "1"]);
    gateway.ok(&["subsystem", "add-namespace", NQN, "a", "--nsid", "4"]);
    let own = "nqn.2026-01.org.example:own";
    let create = ["subsystem", "create", own, "--serial", "OWN1", "--host", HOST, "--listen", &address];
    gateway.ok(&create);
    gateway.ok(&["subsystem", "add-namespace", own, "c", "--nsid", "2"]);
    let state = |gateway: &Daemon| {
        [["pool", "show", "tank"].as_slice(), &["subsystem", "list"], &["lun", "list"]]
            .map(|list| gateway.ok(&[&["--json"], list].concat()))
    };
    let before = (state(&gateway), host_view(&address, NQN), host_view(&address, own));
    for _ in 0..2 {
        std::fs::remove_dir_all(gateway.path("state")).expect("removed");
        gateway.kill_and_restart();
        assert_eq!((state(&gateway), host_view(&address, NQN), host_view(&address, own)), before);
    }
    // A removed namespace stays removed, although the document still has it.
    gateway.ok(&["subsystem", "remove-namespace", NQN, "4"]);
    std::fs::remove_dir_all(gateway.path("state")).expect("removed");
    gateway.kill_and_restart();
    let namespaces = gateway.ok(&["subsystem", "list", NQN]);
    assert!(namespaces.contains("9=b") && !namespaces.contains("=a"), "{namespaces}");
}

#[test]
fn a_second_gateway_says_whose_state_it_can_not_have() {
    let gateway = Daemon::start(DOCUMENT);
    let second = trefoild(&[&gateway.arg("trefoil.toml")]);
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    let want = format!(
        "another trefoild uses the state folder {}: stop it, or use another `state_dir`\n",
        gateway.path("state").display()
    );
    assert!(error.ends_with(&want), "{error}");
}

#[test]
fn an_orderly_stop_removes_the_socket() {
    let mut gateway = Daemon::start(DOCUMENT);
    gateway.ok(&["shutdown"]);
    assert!(gateway.child.wait().expect("its end").success());
    assert!(!gateway.path("rpc.sock").exists());
    assert_eq!(gateway.run(&["info"]).status.code(), Some(3));
}

#[test]
fn the_service_manager_hears_of_start_life_and_stop() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("an option");
    let heard = || {
        let mut state = [0; 256];
        let len = manager.recv(&mut state).expect("a notification");
        String::from_utf8_lossy(&state[..len]).into_owned()
    };
    let socket = format!("NOTIFY_SOCKET={}", path.display());
    let environment = ["env".to_owned(), socket, "WATCHDOG_USEC=200000".to_owned()];
    let mut gateway = Daemon::start_through(DOCUMENT, dir, environment.to_vec());
    assert_eq!(heard(), "READY=1");
    assert_eq!([heard(), heard()], ["WATCHDOG=1", "WATCHDOG=1"]);
    gateway.signal(Signal::SIGTERM);
    let last = std::iter::repeat_with(heard).find(|state| state != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert!(gateway.child.wait().expect("its end").success());
    // The watchdog is for another process, so this gateway sends no watchdog messages. This gateway sends only READY and
    // STOPPING.
    gateway.through.push("WATCHDOG_PID=1".into());
    gateway.restart();
    assert_eq!(heard(), "READY=1");
    gateway.signal(Signal::SIGTERM);
    assert_eq!(heard(), "STOPPING=1");
}

#[test]
fn a_disk_that_comes_late_is_served_without_a_restart() {
    let whole = r#"
[[backend]]
name = "file1"
type = "file"
path = "DIR/file1.img"
size = "8MiB"

[[lun]]
name = "w"
backend = "file1"
"#;
    let mut gateway = Daemon::start(&format!("{DOCUMENT}{whole}"));
    let before = gateway.ok(&["--json", "lun", "list"]);
    let path = |name: &str| gateway.path(name);
    let (disks, away) = (["file0.img", "file1.img"].map(path), ["away0", "away1"].map(path));
    gateway.kill();
    for (disk, away) in disks.iter().zip(&away) {
        std::fs::rename(disk, away).expect("moved");
    }
    gateway.restart();
    let backends = gateway.ok(&["backend", "list"]);
    assert!(backends.matches(" down ").count() == 2 && backends.contains("No such file"), "{backends}");
    let pool = gateway.ok(&["pool", "show", "tank"]);
    assert!(pool.contains("down") && pool.contains("all its backends are down"), "{pool}");
    assert_eq!(gateway.ok(&["lun", "list"]).matches(" down ").count(), 2);
    assert!(disks.iter().all(|disk| !disk.exists()), "what is missing is not made anew");
    // A change of another object succeeds meanwhile.
    gateway.ok(&["host", "create", "web", "nqn.2026-01.org.example:web"]);
    // A LUN of the pool can't be deleted, because the pool can't be changed.
    assert!(gateway.refused(&["lun", "delete", "a", "--force"]).contains("pool `tank` is down"));
    for (disk, away) in disks.iter().zip(&away) {
        std::fs::rename(away, disk).expect("moved back");
    }
    wait_for("both LUNs are served", || gateway.ok(&["--json", "lun", "list"]) == before);
    assert!(!gateway.ok(&["backend", "list"]).contains(" down "));
    assert!(gateway.ok(&["pool", "show", "tank"]).contains("up"));
    gateway.ok(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);

    // A pool that is down can be removed together with all its LUNs, because it is only forgotten.
    gateway.kill();
    std::fs::rename(&disks[0], &away[0]).expect("moved");
    gateway.restart();
    gateway.ok(&["config", "apply", &gateway.write("nothing.toml", ""), "--delete-data"]);
    assert_eq!(gateway.json("backend_list", "{}"), json!([]));
    let again = disks[1].display().to_string();
    gateway.ok(&["backend", "create", "file1", "--type", "file", "--path", &again]);
}

/// Otherwise the gateway would answer that the subsystem doesn't exist, and a Linux host would then never reconnect.
#[test]
fn a_host_that_comes_in_a_start_is_let_in_once_its_subsystem_is_there() {
    let at = own_addr();
    let host = std::thread::spawn(move || {
        let patience = Patience::new("the listener");
        while TcpStream::connect(at).is_err() && !patience.left().is_zero() {
            std::thread::yield_now();
        }
        Raw::admin(at, &Who::admin("nqn.2026-01.org.example:early", NQN));
    });
    let listens = format!("allow_any_host = true\nlisteners = [\"{at}\"]");
    let _gateway = Daemon::start(&DOCUMENT.replace("allow_any_host = true", &listens));
    host.join().expect("it is let in");
}
