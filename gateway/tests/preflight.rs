//! `trefoild --preflight`: it says no where the start does, and leaves no trace.
#![forbid(unsafe_code)]

mod support;

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::daemon::{Daemon, own_addr};

/// A pool's file, in a folder that the start makes for its state; memory that outlives the gateway; an array that is away.
const DOCUMENT: &str = r#"
[gateway]
cores = 1
memory_per_core = "40MiB"
max_hosts = 4
max_qpairs = 16
state_dir = "DIR/new/state"
rpc_socket = "DIR/rpc.sock"

[[backend]]
name = "file0"
type = "file"
path = "DIR/new/file0.img"
size = "64MiB"

[[backend]]
name = "ram0"
type = "memory"
path = "DIR/ram0"
size = "2MiB"

[[lun]]
name = "a"
backend = "file0"

[[subsystem]]
nqn = "nqn.2026-01.org.example:s"
listeners = ["ADDR"]
"#;

fn trefoild(args: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trefoild")).args(args).output().expect("trefoild runs")
}

/// What the preflight says, and whether it is content.
fn preflight(document: &Path) -> (String, bool) {
    let output = trefoild(&[Path::new("--preflight"), document]);
    (String::from_utf8(output.stdout).expect("text"), output.status.success())
}

/// All that is in a folder, with sizes and times of change.
fn tree(dir: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry")) {
        let meta = entry.metadata().expect("metadata");
        all.push((entry.path(), meta.len(), meta.modified().expect("a time")));
        if meta.is_dir() {
            all.extend(tree(&entry.path()));
        }
    }
    all.sort();
    all
}

/// The line about `what`.
fn line<'a>(said: &'a str, what: &str) -> &'a str {
    said.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("nothing about {what}:\n{said}"))
}

#[test]
fn it_refuses_what_the_start_refuses_and_names_it() {
    let (taken, foreign) = (own_addr(), "192.0.2.1:4420");
    let _listener = TcpListener::bind(taken).expect("an address");
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("file"), "x").expect("written");
    std::fs::write(path("empty"), "").expect("written");
    std::os::unix::fs::symlink(path("file"), path("link")).expect("a link");
    let _socket = UnixListener::bind(path("live.sock")).expect("a socket");
    let held = std::fs::File::create(path("held")).expect("a file");
    held.set_len(4 << 20).expect("a size");
    held.lock().expect("a lock");
    let size = "path = \"DIR/new/file0.img\"\nsize = \"64MiB\"";
    let twice = "path = \"DIR/other\"\nsize = \"512\"\n\n[[backend]]\nname = \"file1\"\ntype = \"file\"\npath = \"DIR/alias\"";
    std::fs::write(path("other"), [0; 512]).expect("written");
    std::os::unix::fs::symlink(path("other"), path("alias")).expect("a link");
    let cases = [
        ("DIR/new/state", "DIR/file/state", "gateway.state_dir: DIR/file is not a folder"),
        ("DIR/rpc.sock", "DIR/live.sock", "gateway.rpc_socket: DIR/live.sock: another process is listening"),
        ("DIR/rpc.sock", "DIR/file", "gateway.rpc_socket: DIR/file: there is a file that is not a socket"),
        ("DIR/rpc.sock", "DIR/file/rpc.sock", "gateway.rpc_socket: DIR/file is not a folder"),
        (
            "DIR/new/file0.img",
            "DIR/away/f",
            "backend `file0`: path DIR/away/f: its folder DIR/away is missing",
        ),
        (size, "path = \"DIR/none\"", "backend `file0`: path DIR/none: there is no such file; with a `size`"),
        (size, "path = \"DIR/empty\"", "backend `file0`: path DIR/empty is empty: give it a size"),
        (size, "path = \"DIR\"", "backend `file0`: path DIR is a directory; it has to be"),
        (size, twice, "backend `file1`: path DIR/alias is another backend already"),
        ("DIR/new/file0.img", "DIR/held", "backend `file0`: path DIR/held is in use by another process"),
        ("DIR/new/file0.img", "DIR/other", "backend `file0`: path DIR/other has 512 and not the size"),
        ("DIR/ram0", "DIR/held", "backend `ram0`: path DIR/held: it is in use by another process"),
        ("DIR/ram0", "DIR/away/r", "backend `ram0`: path DIR/away/r: its folder DIR/away is missing"),
        ("\"2MiB\"", "\"1024TiB\"", "memory: "),
        (
            "ADDR",
            &taken.to_string(),
            "subsystem `nqn.2026-01.org.example:s`: listeners: TAKEN: another process",
        ),
        ("ADDR", foreign, "listeners: 192.0.2.1:4420: this machine has no address 192.0.2.1"),
    ];
    for (was, is, want) in cases {
        let text = DOCUMENT.replace(was, is).replace("ADDR", &own_addr().to_string());
        let fill = |text: &str| text.replace("DIR", &dir.path().display().to_string());
        let document = path("trefoil.toml");
        std::fs::write(&document, fill(&text)).expect("written");
        let before = tree(dir.path());
        let (said, content) = preflight(&document);
        assert_eq!(tree(dir.path()), before, "{want}");
        let want = fill(want).replace("TAKEN", &taken.to_string());
        assert!(line(&said, &want).starts_with("LACKING  "), "{said}");
        assert!(!content, "{said}");
        let start = trefoild(&[&document]);
        assert_eq!(start.status.code(), Some(1), "{want}");
        let error = String::from_utf8_lossy(&start.stderr).into_owned();
        assert!(
            !want.contains("its folder") || error.contains(want.trim_end_matches(" is missing")),
            "{error}"
        );
        // It has made its folder; the next one begins anew.
        let _ = std::fs::remove_dir_all(path("new"));
        let _ = std::fs::remove_file(path("ram0"));
    }
}

#[test]
fn it_is_content_where_the_start_is() {
    let dir = tempfile::tempdir().expect("a folder");
    // Nobody listens there.
    let address = own_addr();
    let array =
        format!("type = \"nvme-tcp\"\naddress = \"{address}\"\nsubnqn = \"nqn.2026-01.org.example:t\"");
    let away = format!("[[backend]]\nname = \"far\"\n{array}\n\n[[lun]]");
    let metrics = TcpListener::bind(own_addr()).expect("an address");
    let at = metrics.local_addr().expect("bound").to_string();
    let fill = |text: &str, dir: &Path| {
        let text = text.replace("DIR", &dir.display().to_string()).replace("ADDR", &own_addr().to_string());
        std::fs::write(dir.join("trefoil.toml"), text).expect("written");
        dir.join("trefoil.toml")
    };
    let before = tree(dir.path());
    let (said, content) = preflight(&fill(DOCUMENT, dir.path()));
    assert!(content && !said.contains("LACKING"), "{said}");
    line(&said, "ok       folders, files, devices and addresses");
    assert_eq!(tree(dir.path()).len(), before.len() + 1);
    // An array may come later, a scraper's port is no host's, and a file is a hole at first.
    let big = DOCUMENT.replace("64MiB", "4TiB").replacen("[[lun]]", &away, 1);
    let big = big.replace("cores = 1", &format!("cores = 1\nmetrics_listen = \"{at}\""));
    let (said, content) = preflight(&fill(&big, dir.path()));
    assert!(content, "{said}");
    for noted in [
        "backend `far`: address: ",
        "/new/file0.img: its file system has ",
        &format!("gateway.metrics_listen: {at}: another process"),
    ] {
        assert!(line(&said, noted).starts_with("warning  "), "{said}");
    }
}

#[test]
fn what_is_stored_counts_and_only_warns() {
    let mut gateway = Daemon::start(DOCUMENT);
    let document = gateway.path("trefoil.toml");
    let (said, content) = preflight(&document);
    let state = gateway.path("new/state");
    let want =
        format!("LACKING  gateway.state_dir: another trefoild uses the state folder {}", state.display());
    assert!(!content && said.contains(&want), "{said}");
    assert!(said.contains("rpc.sock: another process is listening"), "{said}");
    // Killed, so that the store must be mended, which a copy of it is.
    gateway.kill();
    std::fs::rename(gateway.path("new/file0.img"), gateway.path("away")).expect("moved");
    let _listener = TcpListener::bind(gateway.addr).expect("its address");
    let before = tree(gateway.dir.path());
    let (said, content) = preflight(&document);
    assert!(content, "{said}");
    assert_eq!(tree(gateway.dir.path()), before);
    for noted in ["/new/file0.img: the file is missing", "listeners: "] {
        assert!(line(&said, noted).starts_with("warning  "), "{said}");
    }
    gateway.restart();
    assert!(!gateway.path("new/file0.img").exists());
}
