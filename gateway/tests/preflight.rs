//! `trefoild --preflight` reports every obstacle that makes a start fail, and changes nothing on the machine.
#![forbid(unsafe_code)]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::daemon::{Daemon, own_addr};

/// A document with two special backends: one has its file in the state folder, which the start makes, and one is memory that
/// outlives the gateway.
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
    // timeout(1) ends a start that doesn't fail as expected, so that no test waits without end.
    Command::new("timeout")
        .args(["120", env!("CARGO_BIN_EXE_trefoild")])
        .args(args)
        .output()
        .expect("it runs")
}

/// Returns the fields of an array's backend.
fn array(address: SocketAddr) -> String {
    format!("type = \"nvme-tcp\"\naddress = \"{address}\"\nsubnqn = \"nqn.2026-01.org.example:s\"")
}

/// Runs the preflight. Returns its report, and whether it passed.
fn preflight(document: &Path) -> (String, bool) {
    let output = trefoild(&[Path::new("--preflight"), document]);
    (String::from_utf8(output.stdout).expect("text"), output.status.success())
}

/// Returns all files and folders in a folder, with sizes and modification times.
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

/// Returns the report's line about `what`.
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
    std::os::unix::fs::symlink(path("gone"), path("dangling")).expect("a link");
    std::fs::create_dir(path("fifo")).expect("a folder");
    nix::unistd::mkfifo(&path("fifo/state.redb"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let _datagrams = UnixDatagram::bind(path("datagrams.sock")).expect("a socket");
    // The backlog of this socket is full.
    let busy = UnixListener::bind(path("busy.sock")).expect("a socket");
    nix::sys::socket::listen(&busy, nix::sys::socket::Backlog::new(0).expect("a length")).expect("a length");
    let _waits = UnixStream::connect(path("busy.sock")).expect("a connection");
    let free = own_addr();
    let away = format!("[[backend]]\nname = \"far\"\n{}\n\n[[lun]]", array(free));
    let size = "path = \"DIR/new/file0.img\"\nsize = \"64MiB\"";
    let twice = "path = \"DIR/other\"\nsize = \"512\"\n\n[[backend]]\nname = \"file1\"\ntype = \"file\"\npath = \"DIR/alias\"";
    std::fs::write(path("other"), [0; 512]).expect("written");
    std::os::unix::fs::symlink(path("other"), path("alias")).expect("a link");
    let mut swap = vec![0; 64 << 20];
    swap[4086..4096].copy_from_slice(b"SWAPSPACE2");
    std::fs::write(path("swap"), swap).expect("written");
    let on_swap = "[[pool]]\nname = \"p\"\nbackends = [\"s\"]\n\n[[backend]]\nname = \"s\"\ntype = \"file\"\npath = \"DIR/swap\"\n\n[[lun]]";
    let cases = [
        ("[[lun]]", on_swap, "pool `p`: backend `s` holds swap space"),
        ("DIR/new/state", "DIR/file/state", "gateway.state_dir: DIR/file is not a folder"),
        (
            "DIR/rpc.sock",
            "DIR/live.sock",
            "gateway.rpc_socket: DIR/live.sock: another process already listens",
        ),
        ("DIR/rpc.sock", "DIR/file", "gateway.rpc_socket: DIR/file: a file that is not a socket"),
        ("DIR/rpc.sock", "DIR/file/rpc.sock", "gateway.rpc_socket: DIR/file is not a folder"),
        ("DIR/new/file0.img", "DIR/away/f", "backend `file0`: path DIR/away/f: folder DIR/away is missing"),
        (size, "path = \"DIR/none\"", "backend `file0`: path DIR/none: there is no such file: set `size`"),
        (size, "path = \"DIR/empty\"", "backend `file0`: path DIR/empty is empty: set `size`"),
        (size, "path = \"DIR\"", "backend `file0`: path DIR is a directory: use"),
        (size, twice, "backend `file1`: path DIR/alias is already used by another backend"),
        ("DIR/new/file0.img", "DIR/held", "backend `file0`: path DIR/held is in use by another process"),
        (
            "DIR/new/file0.img",
            "DIR/other",
            "backend `file0`: path DIR/other has 512, which is less than the configured size",
        ),
        ("DIR/ram0", "DIR/held", "backend `ram0`: path DIR/held: another process uses the file"),
        ("DIR/ram0", "DIR/away/r", "backend `ram0`: path DIR/away/r: folder DIR/away is missing"),
        (
            "DIR/ram0",
            "DIR/new/file0.img",
            "backend `ram0`: path DIR/new/file0.img is already used by another backend",
        ),
        (
            "DIR/new/file0.img",
            "DIR/dangling",
            "backend `file0`: path DIR/dangling: the path is a link to a missing file",
        ),
        (size, "path = \"DIR/trefoil.toml\"", "path DIR/trefoil.toml is the gateway's own document"),
        ("DIR/new/file0.img", "DIR/new/state/state.redb", "state.redb is the gateway's own database"),
        ("DIR/new/state", "DIR/dangling", "gateway.state_dir: DIR/dangling: No such file"),
        ("DIR/new/state", "DIR/fifo", "gateway.state_dir: DIR/fifo/state.redb: "),
        ("DIR/rpc.sock", "DIR/datagrams.sock", "gateway.rpc_socket: DIR/datagrams.sock: Protocol wrong type"),
        (
            "DIR/rpc.sock",
            "DIR/busy.sock",
            "gateway.rpc_socket: DIR/busy.sock: another process already listens",
        ),
        ("\"2MiB\"", "\"1024TiB\"", "memory: "),
        ("[[lun]]", &away, "backend `far`: address: AWAY: the array doesn't answer"),
        (
            "[\"ADDR\"]",
            "[\"127.0.0.1:PORT\", \"0.0.0.0:PORT\"]",
            "listeners: 0.0.0.0:PORT: the gateway already listens on 127.0.0.1:PORT",
        ),
        (
            "cores = 1",
            "cores = 1\ntcp_congestion_control = \"foo\"",
            "TCP congestion control: gateway.tcp_congestion_control = \"foo\": this kernel has no such algorithm; \
             the kernel has ",
        ),
        (
            "ADDR",
            &taken.to_string(),
            "subsystem `nqn.2026-01.org.example:s`: listeners: TAKEN: another process",
        ),
        ("ADDR", foreign, "listeners: 192.0.2.1:4420: this machine has no address 192.0.2.1"),
    ];
    for (was, is, want) in cases {
        let text = DOCUMENT.replace(was, is).replace("ADDR", &own_addr().to_string());
        let text = text.replace("PORT", &free.port().to_string());
        let fill = |text: &str| text.replace("DIR", &dir.path().display().to_string());
        let document = path("trefoil.toml");
        std::fs::write(&document, fill(&text)).expect("written");
        let before = tree(dir.path());
        let (said, content) = preflight(&document);
        assert_eq!(tree(dir.path()), before, "{want}");
        let want = fill(want).replace("TAKEN", &taken.to_string()).replace("AWAY", &free.to_string());
        let want = want.replace("PORT", &free.port().to_string());
        assert!(line(&said, &want).starts_with("LACKING  "), "{said}");
        assert!(!content, "{said}");
        let start = trefoild(&[&document]);
        assert_eq!(start.status.code(), Some(1), "{want}");
        let error = String::from_utf8_lossy(&start.stderr).into_owned();
        assert!(
            !want.contains(": folder ") || error.contains(want.trim_end_matches(" is missing")),
            "{error}"
        );
        // The start has made its folder. The next case begins without it.
        let _ = std::fs::remove_dir_all(path("new"));
        let _ = std::fs::remove_file(path("ram0"));
    }
}

#[test]
fn it_is_content_where_the_start_is() {
    let dir = tempfile::tempdir().expect("a folder");
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
    // Hosts don't use the metrics port, so a metrics port in use is only a warning. A new file is sparse, so it may be larger
    // than the free space.
    let big = DOCUMENT.replace("64MiB", "4TiB");
    let big = big.replace("cores = 1", &format!("cores = 1\nmetrics_listen = \"{at}\""));
    let (said, content) = preflight(&fill(&big, dir.path()));
    assert!(content, "{said}");
    for noted in [
        "/new/file0.img: the backends on this file system need ",
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
    assert!(said.contains("rpc.sock: another process already listens"), "{said}");
    let open = "allow_any_host = true\nlisteners = [\"ADDR\"]\nnamespaces = [{ nsid = 1, lun = \"a\" }]";
    let mut far = Daemon::start(&DOCUMENT.replace("listeners = [\"ADDR\"]", open));
    let (address, subnqn) = (far.addr.to_string(), "nqn.2026-01.org.example:s");
    let create =
        ["backend", "create", "far", "--type", "nvme-tcp", "--address", &address, "--subnqn", subnqn];
    gateway.ok(&create);
    // A kill leaves a store that must be repaired. The preflight repairs only its copy.
    gateway.kill();
    far.kill();
    std::fs::rename(gateway.path("new/file0.img"), gateway.path("away")).expect("moved");
    let _listener = TcpListener::bind(gateway.addr).expect("its address");
    let before = tree(gateway.dir.path());
    let (said, content) = preflight(&document);
    assert!(content, "{said}");
    assert_eq!(tree(gateway.dir.path()), before);
    for noted in ["/new/file0.img: the file is missing", "listeners: ", "backend `far`: address: "] {
        assert!(line(&said, noted).starts_with("warning  "), "{said}");
    }
    gateway.restart();
    assert!(!gateway.path("new/file0.img").exists());
}

#[test]
fn a_dry_run_tells_of_what_is_in_the_way() {
    let gateway = Daemon::start(DOCUMENT);
    let path = |name: &str| gateway.path(name).display().to_string();
    let taken = TcpListener::bind(own_addr()).expect("an address");
    let (taken, away) = (taken.local_addr().map(|at| (at, taken)).expect("bound"), own_addr());
    let own = std::fs::read_to_string(path("trefoil.toml")).expect("the document");
    let try_with = |more: &str| {
        let text = format!("# trefoil backup, schema 1\n{own}\n{more}");
        std::fs::write(path("more.toml"), text).expect("written");
        // The machine's free memory changes between the two calls.
        let tried = |verb: &str| {
            let said = gateway.ok(&["config", verb, "--dry-run", &path("more.toml")]);
            let lines = said.lines().map(|line| {
                match line.rsplit_once(", and ").filter(|(_, free)| free.ends_with(" is available")) {
                    Some((asked, _)) => format!("{asked}\n"),
                    None => format!("{line}\n"),
                }
            });
            lines.collect::<String>()
        };
        let (applied, restored) = (tried("apply"), tried("restore"));
        assert_eq!(applied, restored);
        applied
    };
    let backend = |fields: &str| format!("[[backend]]\nname = \"new\"\n{fields}\n");
    let file = |path: &str| backend(&format!("type = \"file\"\npath = \"{path}\"\nsize = \"1MiB\""));
    let subsystem = |listen: &str| {
        format!("[[subsystem]]\nnqn = \"nqn.2026-01.org.example:t\"\nlisteners = [\"{listen}\"]\n")
    };
    let (any, port) = (format!("0.0.0.0:{}", gateway.addr.port()), gateway.addr.port());
    let mut ext4 = vec![0; 64 << 20];
    ext4[1080..1082].copy_from_slice(&[0x53, 0xEF]);
    std::fs::write(path("ext4"), ext4).expect("written");
    let kept = backend(&format!("type = \"file\"\npath = \"{}\"", path("ext4")));
    let over = format!("{kept}[[pool]]\nname = \"p\"\nbackends = [\"new\"]\n");
    let disk = path("disk");
    gateway.ok(&["backend", "create", "disk", "--type", "file", "--path", &disk, "--size", "16MiB"]);
    gateway.ok(&["pool", "create", "tank", "disk"]);
    std::fs::copy(disk, path("copy")).expect("copied");
    gateway.ok(&["pool", "delete", "tank"]);
    gateway.ok(&["backend", "delete", "disk"]);
    let from_tank = over.replace(&path("ext4"), &path("copy"));
    let damaged = std::fs::read(path("copy")).expect("read").into_iter().enumerate();
    let damaged: Vec<u8> = damaged.map(|(at, byte)| byte ^ u8::from(at % 4096 == 100)).collect();
    std::fs::write(path("damaged"), damaged).expect("written");
    let over_damaged = over.replace(&path("ext4"), &path("damaged"));
    let cases = [
        (from_tank, "pool `p`: backend `new` belongs to pool `tank`, which would lose this backend; ".into()),
        (over_damaged, "pool `p`: backend `new` has a damaged label; ".into()),
        (over.clone(), "pool `p`: backend `new` holds an ext2, ext3 or ext4 file system".to_owned()),
        (file("/dev/null"), "path /dev/null is a character device".to_owned()),
        (file(&path("none/f")), format!("folder {} is missing", path("none"))),
        (
            file(&path("new/file0.img")),
            format!("path {} is already used by another backend", path("new/file0.img")),
        ),
        (file(&path("new/state/state.redb")), "is the gateway's own database".into()),
        (file(&path("trefoil.toml")), "is the gateway's own document".into()),
        (backend("type = \"memory\"\nsize = \"1024TiB\""), "backend `new`: memory: ".into()),
        (backend(&array(away)), format!("backend `new`: address: {away}: the array doesn't answer")),
        (
            subsystem(&taken.0.to_string()),
            format!("listeners: {}: another process listens on this address", taken.0),
        ),
        (
            subsystem(&any),
            format!("listeners: 0.0.0.0:{port}: the gateway already listens on {}", gateway.addr),
        ),
    ];
    let before = gateway.ok(&["config", "get"]);
    for (more, want) in cases {
        let said = try_with(&more);
        assert!(said.contains(&want) && said.ends_with("\nwould fail\n"), "{want}: {said}");
        // The dry run has predicted this: the gateway refuses the change.
        gateway.refused(&["config", "apply", &path("more.toml")]);
    }
    assert_eq!(gateway.ok(&["config", "get"]), before);
    // The gateway's own files and addresses are not obstacles. Data that the change may destroy is not an obstacle either.
    assert_eq!(try_with(""), "nothing to do\n");
    try_with(&over);
    let told = gateway.ok(&["config", "apply", "--dry-run", "--delete-data", &path("more.toml")]);
    assert!(told.ends_with("\nwould be applied\n"), "{told}");
    assert!(told.contains("backend `new` holds an ext2, ext3 or ext4 file system"), "what is lost: {told}");
    let free = format!("{}{}", file(&path("free")), subsystem(&gateway.addr.to_string()));
    let said = try_with(&free);
    let serial = said.lines().rev().nth(1).unwrap_or_default();
    assert!(said.ends_with("\nwould be applied\n") && serial.starts_with("    serial: "), "{said}");
    assert!(!gateway.path("free").exists(), "{said}");
    gateway.ok(&["config", "apply", &path("more.toml")]);
}

#[test]
fn a_change_that_fails_leaves_no_file() {
    let gateway = Daemon::start(DOCUMENT);
    let path = |name: &str| gateway.path(name).display().to_string();
    let taken = TcpListener::bind(own_addr()).expect("an address");
    let at = taken.local_addr().expect("bound");
    let own = std::fs::read_to_string(path("trefoil.toml")).expect("the document");
    let more = format!(
        "{own}\n[[backend]]\nname = \"f\"\ntype = \"file\"\npath = \"{}\"\nsize = \"8MiB\"\n\n\
         [[backend]]\nname = \"m\"\ntype = \"memory\"\npath = \"{}\"\nsize = \"8MiB\"\n\n\
         [[pool]]\nname = \"p\"\nbackends = [\"f\"]\n\n\
         [[subsystem]]\nnqn = \"nqn.2026-01.org.example:t\"\nlisteners = [\"{at}\"]\n",
        path("f"),
        path("m")
    );
    std::fs::write(path("more.toml"), &more).expect("written");
    let apply = ["config", "apply", &path("more.toml")];
    assert!(gateway.refused(&apply).contains("in use"));
    assert!(!gateway.path("f").exists() && !gateway.path("m").exists());
    // The failed change has left no files, so the next change can use another size.
    drop(taken);
    std::fs::write(path("more.toml"), more.replace("8MiB", "16MiB")).expect("written");
    gateway.ok(&apply);
    assert!(gateway.path("f").exists() && gateway.path("m").exists());
}

#[test]
fn what_is_added_later_has_to_be_there_too() {
    let gateway = Daemon::start(DOCUMENT);
    let said = gateway.refused(&["backend", "create", "big", "--type", "memory", "--size", "1024TiB"]);
    let told = "backend `big`: memory: the gateway needs cores 40MiB + backend big 1024TiB + backend ram0 2MiB = 1024.0TiB, and ";
    assert!(said.contains(told) && said.contains(" is available"), "{said}");
    let path = format!("/dev/trefoil-{}", std::process::id());
    let said =
        gateway.refused(&["backend", "create", "f", "--type", "file", "--path", &path, "--size", "1MiB"]);
    let is_made = std::fs::remove_file(&path).is_ok();
    assert!(!is_made && said.contains(&format!("backend `f`: path: there is no device {path}")), "{said}");
}
