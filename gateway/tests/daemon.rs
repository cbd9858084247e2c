//! `trefoild` and `trefoil` as processes: seeding, restarts, kills, a lost database, refusals.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A running gateway in a directory of its own.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

const DOCUMENT: &str = r#"
[gateway]
cores = 1
memory_per_core = "40MiB"
max_hosts = 4
max_qpairs = 16
state_dir = "DIR/state"
rpc_socket = "DIR/rpc.sock"

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
namespaces = [{ nsid = 1, lun = "a" }]
"#;

fn spawn(dir: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_trefoild"))
        .arg(dir.join("trefoil.toml"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("trefoild starts");
    let mut line = String::new();
    let out = child.stdout.take().expect("its output");
    BufReader::new(out).read_line(&mut line).expect("a line");
    assert!(line.starts_with("trefoild ready: rpc="), "{line:?}");
    child
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let text = DOCUMENT.replace("DIR", &dir.path().display().to_string());
        std::fs::write(dir.path().join("trefoil.toml"), text).expect("the document");
        Self { child: spawn(dir.path()), dir }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_trefoil"))
            .arg("--socket")
            .arg(self.dir.path().join("rpc.sock"))
            .args(args)
            .output()
            .expect("trefoil runs")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    fn kill_and_restart(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("its end");
        self.child = spawn(self.dir.path());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let mut gateway = Daemon::start();
    gateway.ok(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);
    gateway.ok(&["subsystem", "add-namespace", "nqn.2026-01.org.example:s", "b"]);
    gateway.ok(&["lun", "grow", "a", "16MiB"]);
    let before = gateway.ok(&["config", "get"]);
    gateway.kill_and_restart();
    assert_eq!(gateway.ok(&["config", "get"]), before);
    gateway.ok(&["lun", "delete", "b", "--force"]);
    gateway.kill_and_restart();
    let luns = gateway.ok(&["lun", "list"]);
    assert!(luns.contains("16MiB") && !luns.contains("\nb "), "{luns}");
}

#[test]
fn a_lost_database_is_rebuilt_from_the_pool() {
    let mut gateway = Daemon::start();
    gateway.ok(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);
    let before = gateway.ok(&["--json", "pool", "show", "tank"]);
    std::fs::remove_dir_all(gateway.dir.path().join("state")).expect("removed");
    gateway.kill_and_restart();
    assert_eq!(gateway.ok(&["--json", "pool", "show", "tank"]), before);
}

#[test]
fn a_refused_change_changes_nothing() {
    let gateway = Daemon::start();
    let before = gateway.ok(&["config", "get"]);
    assert!(gateway.refused(&["lun", "delete", "a"]).contains("is namespace 1"));
    assert!(gateway.refused(&["lun", "create", "c", "--pool", "tank", "--size", "1TiB"]).contains("-28"));
    assert!(gateway.refused(&["lun", "grow", "a", "4MiB"]).contains("not more than"));
    assert!(gateway.refused(&["pool", "delete", "tank"]).contains("holds LUN `a`"));
    assert!(gateway.refused(&["backend", "delete", "file0"]).contains("belongs to pool"));
    assert!(gateway.refused(&["call", "lun_list", r#"{"colour":1}"#]).contains("`colour`"));
    let missing = gateway.dir.path().join("none/such.img").display().to_string();
    let create = ["backend", "create", "f", "--type", "file", "--path", &missing];
    assert!(gateway.refused(&create).contains(&missing));
    let taken = gateway.dir.path().join("file0.img").display().to_string();
    let create = ["backend", "create", "f", "--type", "file", "--path", &taken];
    assert!(gateway.refused(&create).contains("another backend already"));
    assert_eq!(gateway.ok(&["config", "get"]), before);
}

#[test]
fn a_document_is_compared_applied_and_restored() {
    let gateway = Daemon::start();
    let path = |name: &str| gateway.dir.path().join(name).display().to_string();
    assert_eq!(gateway.ok(&["config", "diff", &path("trefoil.toml")]), "no difference\n");
    gateway.ok(&["config", "backup", &path("backup.toml")]);
    let text = std::fs::read_to_string(path("trefoil.toml")).expect("the document");
    std::fs::write(path("more.toml"), text.replace("size = \"8MiB\"", "size = \"12MiB\"")).expect("written");
    assert!(gateway.ok(&["config", "diff", &path("more.toml")]).starts_with("~ lun/a "));
    gateway.ok(&["config", "apply", &path("more.toml")]);
    assert!(gateway.ok(&["lun", "list"]).contains("12MiB"));
    // A LUN can't shrink, not even by a backup.
    assert!(gateway.refused(&["config", "restore", &path("backup.toml")]).contains("can't shrink"));
    gateway.ok(&["subsystem", "delete", "nqn.2026-01.org.example:s"]);
    gateway.ok(&["config", "backup", &path("backup.toml")]);
    gateway.ok(&["config", "restore", &path("backup.toml")]);
    let empty = "[gateway]\n";
    std::fs::write(path("empty.toml"), empty).expect("written");
    assert!(gateway.refused(&["config", "apply", &path("empty.toml")]).contains("would lose its data"));
    gateway.ok(&["config", "apply", "--delete-data", &path("empty.toml")]);
    assert_eq!(gateway.ok(&["--json", "lun", "list"]).trim(), "[]");
}

#[test]
fn an_orderly_stop_removes_the_socket() {
    let mut gateway = Daemon::start();
    gateway.ok(&["shutdown"]);
    assert!(gateway.child.wait().expect("its end").success());
    assert!(!gateway.dir.path().join("rpc.sock").exists());
    assert_eq!(gateway.run(&["info"]).status.code(), Some(3));
}

#[test]
fn a_bad_document_names_line_and_field() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("bad.toml");
    std::fs::write(&path, "[gateway]\nmax_hosts = 0\nspin = 3\n").expect("written");
    let output =
        Command::new(env!("CARGO_BIN_EXE_trefoild")).arg("--check").arg(&path).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("bad.toml:3:1: gateway.spin: unknown field `spin`"), "{error}");
}
