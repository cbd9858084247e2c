//! `trefoild` and `trefoil` as processes: first starts, restarts, kills, a lost database, refusals.
#![forbid(unsafe_code)]

mod support;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::process::Output;
use support::daemon::{Daemon, answer, metrics, own_addr, trefoild};
use support::raw::{Pdu, Raw, Who};
use support::{PATIENCE, Patience, wait_for};
use trefoil_control::admin::Admin;
use trefoil_storage::initiator::Identity;
use trefoil_wire::fabrics::{ConnectResponse, Nqn};
use trefoil_wire::nvme::identify::cns;
use trefoil_wire::nvme::{IoCommand, Sgl};

const NQN: &str = "nqn.2026-01.org.example:s";
const HOST: &str = "nqn.2026-01.org.example:h";
const ARRAY_NQN: &str = "nqn.2026-01.org.example:array";
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
namespaces = [{ nsid = 1, lun = "a" }]
"#;

/// Returns [`DOCUMENT`] with a listener.
fn listening() -> String {
    DOCUMENT.replace("allow_any_host = true", "allow_any_host = true\nlisteners = [\"ADDR\"]")
}

/// Sends 255 flushes on each of 40 queues. A disk with much to write is slow with them. The driver has
/// room for all of them.
#[test]
fn hosts_may_ask_a_disk_for_as_much_as_their_queues_take() {
    let gateway = Daemon::start(&format!("[gateway]\nmax_qpairs = 64\n{}", listening()));
    let host = Who::admin(HOST, NQN);
    let (mut admin, cntlid) = Raw::admin(gateway.addr, &host);
    admin.ask_queues(40);
    let queue = |qid| Raw::queue(gateway.addr, &host.clone().queue(cntlid, qid, 255), (false, false));
    let mut queues: Vec<Raw> = (1..=40).map(queue).collect();
    // No LUN is in this part of the file.
    let file = File::options().write(true).open(gateway.path("file0.img")).expect("the pool's file");
    file.write_all_at(&vec![7; 32 << 20], 32 << 20).expect("written");
    ask_for_all(&mut queues);
    expect_all(&gateway, &mut queues);
}

/// All commands are there when the gateway wakes from a pause, and half of them belong to another core.
#[test]
fn hosts_may_ask_another_core_for_as_much_as_their_queues_take() {
    let document = listening().replace("type = \"file\"\npath = \"DIR/file0.img\"", "type = \"memory\"");
    let gateway = Daemon::start(&format!("[gateway]\ncores = 2\nmax_qpairs = 128\n{document}"));
    let (mut admins, mut queues) = (Vec::new(), Vec::new());
    for host in 0..2 {
        let who = Who::admin(&format!("nqn.2026-01.org.example:h{host}"), NQN);
        let (mut admin, cntlid) = Raw::admin(gateway.addr, &who);
        admin.ask_queues(60);
        admins.push(admin);
        let queue = |qid| Raw::queue(gateway.addr, &who.clone().queue(cntlid, qid, 255), (false, false));
        queues.extend((1..=60).map(queue));
    }
    gateway.signal(Signal::SIGSTOP);
    ask_for_all(&mut queues);
    gateway.signal(Signal::SIGCONT);
    expect_all(&gateway, &mut queues);
}

/// Sends 255 flushes on each queue.
fn ask_for_all(queues: &mut [Raw]) {
    for queue in queues {
        let flush = |cid| queue.capsule_bytes(IoCommand::Flush.sqe(cid, 1, Sgl::NONE), &[]);
        let all: Vec<u8> = (0..255).flat_map(flush).collect();
        queue.send(&all);
    }
}

fn expect_all(gateway: &Daemon, queues: &mut [Raw]) {
    for queue in queues {
        for _ in 0..255 {
            match queue.pdu() {
                Pdu::Response(cqe) => assert!(cqe.status.is_ok(), "{cqe:?}"),
                other => panic!("{other:?}: {}", gateway.log()),
            }
        }
    }
}

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
    // The document has no LUN `b`, and has LUN `a` as it was.
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

/// Returns a host's view of the gateway: the discovery log, and the Identify data of all that a subsystem shows.
fn host_view(address: &str, nqn: &str) -> String {
    let nqn_of = |nqn: &str| Nqn::new(nqn).expect("an NQN");
    let ask = |nqn: &str| {
        let identity = Identity { host_nqn: nqn_of(HOST), host_id: [7; 16], subsystem_nqn: nqn_of(nqn) };
        Admin::connect(address.parse().expect("an address"), identity).expect("connects")
    };
    let mut admin = ask(nqn);
    let mut controller = admin.identify(cns::CONTROLLER, 0).expect("Identify Controller");
    // CNTLID differs from connection to connection.
    controller[78..80].fill(0);
    let mut view = vec![(0, controller)];
    for nsid in admin.namespaces().expect("a list") {
        view.push((nsid, admin.identify(cns::NAMESPACE, nsid).expect("Identify Namespace")));
        view.push((nsid, admin.identify(cns::NAMESPACE_DESCRIPTORS, nsid).expect("descriptors")));
    }
    admin.close().expect("its end");
    let mut discovery = ask(Nqn::DISCOVERY.as_str());
    let log = discovery.discovery_log().expect("a log");
    discovery.close().expect("its end");
    let bytes = view.iter().map(|(nsid, data)| format!("{nsid} {data:02x?}\n")).collect::<String>();
    format!("{bytes}{log:?}")
}

#[test]
fn a_lost_database_is_rebuilt_from_the_pool() {
    let mut gateway = Daemon::start(&listening());
    let address = gateway.addr.to_string();
    // None of these objects are in the document.
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
    // A namespace that is taken away stays away, although the document still has it.
    gateway.ok(&["subsystem", "remove-namespace", NQN, "4"]);
    std::fs::remove_dir_all(gateway.path("state")).expect("removed");
    gateway.kill_and_restart();
    let namespaces = gateway.ok(&["subsystem", "list", NQN]);
    assert!(namespaces.contains("9=b") && !namespaces.contains("=a"), "{namespaces}");
}

#[test]
fn a_refused_change_changes_nothing() {
    let gateway = Daemon::start(DOCUMENT);
    let before = gateway.ok(&["config", "get"]);
    assert!(gateway.refused(&["lun", "delete", "a"]).contains("is namespace 1"));
    let full = gateway.refused(&["lun", "create", "c", "--pool", "tank", "--size", "1TiB"]);
    assert!(
        full.contains("LUN c needs 1TiB more, and ") && full.ends_with("MiB free for this LUN\n"),
        "{full}"
    );
    let full = gateway.refused(&["call", "lun_create", r#"{"name":"c","pool":"tank","size":"1TiB"}"#]);
    assert!(full.ends_with("(code -28)\n"), "{full}");
    assert!(gateway.refused(&["lun", "grow", "a", "4MiB"]).contains("not larger than"));
    assert!(gateway.refused(&["pool", "delete", "tank"]).contains("holds LUN `a`"));
    assert!(gateway.refused(&["backend", "delete", "file0"]).contains("belongs to pool"));
    assert!(gateway.refused(&["call", "lun_list", r#"{"colour":1}"#]).contains("`colour`"));
    let missing = gateway.arg("none/such.img");
    let create = ["backend", "create", "f", "--type", "file", "--path", &missing];
    assert!(gateway.refused(&create).contains(&missing));
    let taken = gateway.arg("file0.img");
    let create = ["backend", "create", "f", "--type", "file", "--path", &taken];
    assert!(gateway.refused(&create).contains("already used by another backend"));
    let create = ["backend", "create", "f", "--type", "file", "--path", &missing, "--loss-timeout-s", "9"];
    assert!(gateway.refused(&create).contains("loss_timeout_s: a backend of type file"));
    let array = ["backend", "create", "f", "--type", "nvme-tcp", "--address", "127.0.0.1:1"];
    let array = [&array[..], &["--subnqn", ARRAY_NQN, "--keep-alive-s", "6"]].concat();
    assert!(gateway.refused(&array).contains("keep_alive_s: the timeout can't be 6 s"));
    assert_eq!(gateway.ok(&["config", "get"]), before);
}

#[test]
fn a_document_is_compared_applied_and_restored() {
    let gateway = Daemon::start(DOCUMENT);
    let path = |name: &str| gateway.arg(name);
    assert_eq!(gateway.ok(&["config", "diff", &path("trefoil.toml")]), "no difference\n");
    gateway.ok(&["config", "backup", &path("backup.toml")]);
    let text = std::fs::read_to_string(path("trefoil.toml")).expect("the document");
    gateway.write("more.toml", text.replace("size = \"8MiB\"", "size = \"12MiB\""));
    let larger = "~ lun/a\n    size: 8MiB → 12MiB\n";
    assert_eq!(gateway.ok(&["config", "diff", &path("more.toml")]), larger);
    let applied = |summary: &str| format!("{larger}{summary}\n");
    assert_eq!(
        gateway.ok(&["config", "apply", "--dry-run", &path("more.toml")]),
        applied("would be applied")
    );
    assert_eq!(gateway.ok(&["config", "apply", &path("more.toml")]), applied("applied"));
    assert_eq!(gateway.ok(&["config", "apply", &path("more.toml")]), "nothing to do\n");
    assert!(gateway.ok(&["lun", "list"]).contains("12MiB"));
    // A mistake is reported with its place in the file.
    let bad = gateway.write("bad.toml", "[gateway]\n[[lun]]\nname = 3\n");
    let refusal = gateway.refused(&["config", "apply", &bad]);
    assert!(refusal.starts_with(&format!("trefoil: {bad}:3:8: lun[0].name")), "{refusal}");
    let refusal = gateway.refused(&["config", "restore", &path("more.toml")]);
    assert!(
        refusal.contains(
            "more.toml: the document is not a backup; for other documents use `trefoil config apply`"
        ),
        "{refusal}"
    );
    // A LUN can't shrink, not even by a backup.
    let refusal = gateway.refused(&["config", "restore", &path("backup.toml")]);
    assert!(refusal.contains("LUN `a` has 12MiB and can't shrink to 8MiB"), "{refusal}");
    // The refusal is reported beside the other differences.
    let smaller = "~ lun/a\n    size: 12MiB → 8MiB\n";
    let why = format!("refused: {}", refusal.trim_start_matches("trefoil: "));
    assert_eq!(gateway.ok(&["config", "diff", &path("backup.toml")]), format!("{smaller}{why}"));
    let would = gateway.ok(&["config", "restore", "--dry-run", &path("backup.toml")]);
    assert_eq!(would, format!("{smaller}{why}would fail\n"));
    gateway.ok(&["subsystem", "delete", NQN]);
    gateway.ok(&["config", "backup", &path("backup.toml")]);
    gateway.ok(&["config", "restore", &path("backup.toml")]);
    let empty = "[gateway]\n";
    let document = gateway.write("empty.toml", empty);
    let backup = gateway.write("empty.bak", format!("# trefoil backup, schema 1\n{empty}"));
    for (verb, file) in [("apply", document), ("restore", backup)] {
        let before = gateway.ok(&["config", "get"]);
        let refusal = gateway.refused(&["config", verb, &file]);
        assert!(refusal.contains("LUN `a`") && refusal.contains("--delete-data"), "{refusal}");
        let would = gateway.ok(&["config", verb, "--dry-run", &file]);
        assert!(would.contains("- lun/a  (its data is lost)\n- pool/tank\n"), "{would}");
        assert!(would.contains("! LUN `a` loses its data in pool `tank` (--delete-data)\n"), "{would}");
        assert!(would.ends_with("would be refused without --delete-data\n"), "{would}");
        assert_eq!(gateway.ok(&["config", "get"]), before);
        gateway.ok(&["config", verb, "--delete-data", &file]);
        assert_eq!(gateway.ok(&["--json", "lun", "list"]).trim(), "[]");
        gateway.ok(&["config", "apply", &path("more.toml")]);
    }
}

#[test]
fn the_log_names_objects_and_hosts() {
    let gateway = Daemon::start(&listening());
    gateway.ok(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("changed")).unwrap_or_default();
    assert!(line.contains(r#"action="lun_create" objects="+lun/b" epoch="#) && line.len() < 200, "{log}");
    host_view(&gateway.addr.to_string(), NQN);
    let named = |what: &str| {
        let log = gateway.log();
        let mut lines = log.lines().filter(|line| line.contains(what));
        let host = "host=\"nqn.2026-01.org.example:h\" cntlid=";
        lines.any(|line| line.contains(host) && line.contains(" qid=0 peer="))
    };
    wait_for("both events of the host", || named("queue pair up") && named("queue pair down"));
}

#[test]
fn a_misspelt_log_filter_is_told_of_and_silences_nothing() {
    let gateway = Daemon::start_by(DOCUMENT, &["env", "TREFOIL_LOG=inof"]);
    let log = gateway.log();
    let told = log
        .lines()
        .find(|line| line.contains("WARN") && line.contains("TREFOIL_LOG: `inof` is neither a level"));
    assert!(told.is_some() && log.contains("a core starts"), "{log}");
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

/// Runs `trefoild --check` on a document in a file of this name.
fn check(name: &str, document: &str) -> Output {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    std::fs::write(&path, document).expect("written");
    trefoild(&["--check", path.to_str().expect("text")])
}

#[test]
fn a_bad_document_names_line_and_field() {
    let output = check("bad.toml", "[gateway]\nmax_hosts = 0\nspin = 3\n");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("bad.toml:3:1: gateway.spin: unknown field `spin`"), "{error}");
}

#[test]
fn a_document_s_oversights_are_told() {
    let output = check("closed.toml", "[[subsystem]]\nnqn = \"nqn.2026-01.org.example:s\"\n");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains(": the document is valid; "), "{said}");
    assert!(
        said.contains("closed.toml: warning: subsystem `nqn.2026-01.org.example:s`: no host may"),
        "{said}"
    );
}

#[test]
fn a_live_table_waits_for_a_gateway_that_comes_back() {
    let mut gateway = Daemon::start(DOCUMENT);
    let mut table = gateway.begin(&["--json", "top", "--interval-ms", "100", "--count", "80"]);
    let mut lines = BufReader::new(table.stdout.take().expect("its output")).lines();
    lines.next().expect("a first line").expect("text");
    gateway.kill_and_restart();
    let rest = lines.fold(0, |count, line| line.map(|_| count + 1).expect("text"));
    let output = table.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && rest == 79, "{rest} more lines; {said}");
    assert!(said.contains("waiting for the gateway to come back"), "{said}");
}

#[test]
fn what_a_newcomer_writes_is_understood_or_explained() {
    let gateway = Daemon::start(DOCUMENT);
    let said = gateway.refused(&["subsystem", "remove-namespace", NQN, "b"]);
    assert!(said.contains("has no namespace with LUN `b`"), "{said}");
    gateway.ok(&["subsystem", "remove-namespace", NQN, "a"]);
    assert_eq!(gateway.json("subsystem_list", "{}")[0]["namespaces"], json!([]));
    let said =
        gateway.try_call("subsystem_remove_namespace", json!({ "nqn": NQN })).expect_err("no namespace");
    assert!(said.contains("give either the namespace's `nsid` or its `lun`"), "{said}");
    gateway.ok(&["host", "create", "first", HOST]);
    let said = gateway.refused(&["host", "create", "second", HOST]);
    assert!(said.contains(&format!("host `first` already has NQN `{HOST}`")), "{said}");
    let said = gateway.refused(&["call", "backend_explode"]);
    assert!(said.contains("there is no method `backend_explode`: rpc_get_methods lists"), "{said}");
}

#[test]
fn an_address_without_its_port_is_named() {
    let gateway = Daemon::start(DOCUMENT);
    let create = ["subsystem", "create", "nqn.2026-01.org.example:t", "--listen", "127.0.0.1"];
    let form = "`127.0.0.1` is not an address with a port, such as 192.0.2.1:4420";
    let error = gateway.refused(&create);
    assert!(error.contains(&format!("listeners: {form}")), "{error}");
    let document = DOCUMENT.replace("allow_any_host = true", "listeners = [\"127.0.0.1\"]");
    let diff = gateway.try_call("config_diff", json!({ "toml": document })).expect_err("a mistake");
    assert!(diff.contains(form) && diff.contains("subsystem[0].listeners[0]"), "{diff}");
}

/// A gateway that serves as an array: one LUN of memory, for any host.
const ARRAY: &str = r#"
[[backend]]
name = "ram"
type = "memory"
size = "64MiB"

[[lun]]
name = "l0"
backend = "ram"

[[subsystem]]
nqn = "nqn.2026-01.org.example:array"
allow_any_host = true
listeners = ["ADDR"]
namespaces = [{ nsid = 1, lun = "l0" }]
"#;

/// A gateway whose pool is on that array.
const BEHIND: &str = r#"
[[backend]]
name = "far"
type = "nvme-tcp"
address = "ARRAY"
subnqn = "nqn.2026-01.org.example:array"

[[pool]]
name = "tank"
backends = ["far"]

[[lun]]
name = "a"
pool = "tank"
size = "8MiB"
"#;

fn array_and_gateway() -> (Daemon, Daemon) {
    let array = Daemon::start(ARRAY);
    let gateway = Daemon::start(&BEHIND.replace("ARRAY", &array.addr.to_string()));
    (array, gateway)
}

#[test]
fn counters_tell_what_a_host_did_with_each_lun() {
    let (array, gateway) = array_and_gateway();
    let count = |key: &str| array.json("bdev_get_iostat", r#"{"names":["l0"]}"#)["bdevs"][0][key].clone();
    let writes = |value: Value| value.as_u64().expect("a number");
    let before = writes(count("num_write_ops"));
    gateway.ok(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);
    assert!(writes(count("num_write_ops")) > before);
    // The zeroed bytes are the units of both LUNs.
    assert!(writes(count("bytes_unmapped")) >= 16 << 20, "{}", count("bytes_unmapped"));
    assert!(writes(count("max_write_latency_ticks")) >= writes(count("min_write_latency_ticks")));
    assert_eq!(count("io_error"), serde_json::json!({}));
    let stats = array.json("stats_get", "{}");
    let lun = &stats["luns"][0];
    let all: u64 = ["read", "write", "trim", "flush"].iter().map(|op| writes(lun[*op]["ops"].clone())).sum();
    let histogram = lun["latency_below_ns"].as_array().expect("a histogram");
    assert_eq!(histogram.iter().map(|pair| writes(pair[1].clone())).sum::<u64>(), all, "{lun}");
    let top = array.ok(&["top", "--count", "1", "--interval-ms", "100"]);
    assert!(top.contains("P99.9 US") && top.contains("  l0\n"), "{top}");
    assert!(array.refused(&["call", "bdev_get_iostat", r#"{"names":["none"]}"#]).contains("`none`"));
}

#[test]
fn queries_are_answered_while_a_change_waits_for_its_backend() {
    let (array, mut gateway) = array_and_gateway();
    array.signal(Signal::SIGSTOP);
    let mut first = gateway.begin(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);
    // The change has its turn once the pool is taken out of the tables to be changed. From the outside, only the missing answer
    // can be seen.
    let mut second = gateway.begin(&["lun", "create", "c", "--pool", "tank", "--size", "8MiB"]);
    for _ in 0..20 {
        for query in
            [&["lun", "list"][..], &["pool", "show", "tank"], &["backend", "list"], &["stats"], &["info"]]
        {
            gateway.ok(query);
        }
        assert!(!gateway.ok(&["lun", "list"]).contains("\nb "), "it is not there before it is zeroed");
        assert!(gateway.json("bdev_get_iostat", "{}")["bdevs"].is_array());
    }
    assert!(first.try_wait().expect("a state").is_none() && second.try_wait().expect("a state").is_none());
    array.signal(Signal::SIGCONT);
    assert!(first.wait().expect("its end").success() && second.wait().expect("its end").success());
    let luns = gateway.ok(&["lun", "list"]);
    assert!(luns.contains("\nb ") && luns.contains("\nc "), "{luns}");
    // A stop doesn't wait for a change that can't end. The next start removes the remains of such a change.
    array.signal(Signal::SIGSTOP);
    let mut cut = gateway.begin(&["lun", "create", "d", "--pool", "tank", "--size", "8MiB"]);
    let call = [r#"{"toml":""}"#];
    assert!(gateway.run(&["call", "config_diff", call[0]]).status.success(), "a preview is a query");
    gateway.signal(Signal::SIGTERM);
    assert!(!cut.wait().expect("its end").success());
    let code = gateway.child.wait().expect("its end");
    assert!(code.success(), "{code}");
    array.signal(Signal::SIGCONT);
    gateway.restart();
    wait_for("the array is reached", || gateway.ok(&["pool", "list"]).contains(" up "));
    let luns = gateway.ok(&["lun", "list"]);
    assert!(luns.contains("\nb ") && !luns.contains("\nd "), "{luns}");
    gateway.ok(&["lun", "create", "d", "--pool", "tank", "--size", "8MiB"]);
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
    // The watchdog is another process's, so this gateway doesn't answer it. It sends only READY and STOPPING.
    gateway.through.push("WATCHDOG_PID=1".into());
    gateway.restart();
    assert_eq!(heard(), "READY=1");
    gateway.signal(Signal::SIGTERM);
    assert_eq!(heard(), "STOPPING=1");
}

#[test]
fn an_array_is_discovered_and_all_its_namespaces_are_attached() {
    let array = Daemon::start(ARRAY);
    let address = array.addr.to_string();
    array.ok(&["call", "bdev_malloc_create", r#"{"name":"l5","num_blocks":65536,"block_size":512}"#]);
    array.ok(&["subsystem", "add-namespace", ARRAY_NQN, "l5", "--nsid", "5"]);
    let gateway = Daemon::start(DOCUMENT);
    let offered = gateway.json("backend_discover", &format!(r#"{{"address":"{address}"}}"#));
    let nvm: Vec<&Value> =
        offered.as_array().expect("a list").iter().filter(|row| row["type"] == "nvm").collect();
    assert_eq!(nvm.len(), 1, "{offered}");
    assert_eq!(nvm[0]["subnqn"], ARRAY_NQN);
    assert_eq!(
        (&nvm[0]["address"], &nvm[0]["namespaces"]),
        (&serde_json::json!(address), &serde_json::json!([1, 5]))
    );
    // The attach names the array's own address, as SPDK's clients do.
    let (ip, port) = address.split_once(':').expect("a port");
    let attach = format!(
        r#"{{"name":"Nvme0","trtype":"TCP","traddr":"{ip}","trsvcid":"{port}","subnqn":"nqn.2026-01.org.example:array"}}"#
    );
    let before = gateway.ok(&["config", "get"]);
    assert_eq!(
        gateway.json("bdev_nvme_attach_controller", &attach),
        serde_json::json!(["Nvme0n1", "Nvme0n5"])
    );
    let bdev = &gateway.json("bdev_get_bdevs", r#"{"name":"Nvme0n5"}"#)[0];
    assert_eq!((&bdev["num_blocks"], &bdev["block_size"]), (&65536.into(), &512.into()));
    let controllers = gateway.json("bdev_nvme_get_controllers", "{}");
    assert_eq!(controllers.as_array().map(Vec::len), Some(1), "{controllers}");
    assert_eq!(controllers[0]["ctrlrs"][0]["state"], "enabled");
    assert!(gateway.refused(&["call", "bdev_nvme_attach_controller", &attach]).contains("already"));
    gateway.ok(&["call", "bdev_nvme_detach_controller", r#"{"name":"Nvme0"}"#]);
    assert_eq!(gateway.json("bdev_nvme_get_controllers", "{}"), serde_json::json!([]));
    assert_eq!(gateway.ok(&["config", "get"]), before);
    // This attach names the NQN, and the discovery service gives the address.
    let far = ["backend", "attach", "far", "--address", &address, "--subnqn", ARRAY_NQN, "--discovery"];
    let keep_alive = |seconds| [&far[..], &["--keep-alive-s", seconds]].concat();
    assert!(gateway.refused(&keep_alive("6")).contains("keep_alive_s: the timeout can't be 6 s"));
    let table = gateway.ok(&keep_alive("2"));
    assert!(table.contains("farn1") && table.contains("farn5"), "{table}");
    assert_eq!(gateway.ok(&["config", "get"]).matches("keep_alive_s = 2\n").count(), 2);
    let none = ["backend", "attach", "x", "--address", &address, "--subnqn", "nqn.2026-01.org.example:none"];
    assert!(gateway.refused(&[&none[..], &["--discovery"]].concat()).contains("does not offer"));
    assert!(gateway.refused(&none).contains(&address));
    assert!(
        gateway.refused(&none).contains("the controller has no such subsystem"),
        "{}",
        gateway.refused(&none)
    );
    let nobody = own_addr().to_string();
    let refused = gateway.refused(&["backend", "discover", "--address", &nobody]);
    assert_eq!(refused, format!("trefoil: {nobody}: the connection failed: Connection refused\n"));
}

#[test]
fn a_lost_backend_is_named_and_told_once_for_each_cause() {
    let (mut array, gateway) = array_and_gateway();
    let lost = || {
        let log = gateway.log();
        let lines = log.lines().filter(|line| line.contains("backend lost")).map(str::to_owned);
        let told: Vec<String> = lines.collect();
        assert!(
            told.iter().all(|line| line.contains("WARN") && line.contains("backend=\"far\" why=")),
            "{told:?}"
        );
        let why = told.iter().filter_map(|line| Some(line.split_once("why=")?.1.to_owned()));
        why.collect::<Vec<_>>()
    };
    array.kill();
    wait_for("a try that is refused", || lost().contains(&"\"the array refused the connection\"".to_owned()));
    // This listener closes each connection at once, so that tries can be counted.
    let closes = std::net::TcpListener::bind(array.addr).expect("its address");
    for _ in 0..4 {
        drop(closes.accept().expect("a try"));
    }
    wait_for("the other cause", || {
        lost().len() > 1 && lost().last() != Some(&"\"the array refused the connection\"".to_owned())
    });
    let causes = lost();
    assert!(causes.windows(2).all(|pair| pair[0] != pair[1]), "{causes:?}");
    drop(closes);
    array.restart();
    let back = |line: &str| line.contains("INFO backend back backend=\"far\"");
    wait_for("the array is back", || gateway.log().lines().any(back));
}

#[test]
fn a_log_of_json_has_nothing_else() {
    let mut gateway = Daemon::start(&format!("[gateway]\nlog = \"json\"\n{DOCUMENT}"));
    gateway.kill();
    let lines = gateway.log();
    let lines = std::iter::once(gateway.said.as_str()).chain(lines.lines());
    let parsed =
        lines.map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{line}: {e}")));
    let parsed: Vec<Value> = parsed.collect();
    assert_eq!(parsed[0]["fields"]["message"], "trefoild ready");
    assert_eq!(parsed[0]["fields"]["rpc"], json!(gateway.path("rpc.sock")));
    let core = parsed.iter().find(|line| line["fields"]["message"] == "a core starts").expect("a core");
    assert!(
        core["fields"]["numa_node"].as_u64().is_some() || core["fields"].get("numa_node").is_none(),
        "{core}"
    );
    let keys = |line: &Value| line.as_object().map(|line| line.keys().cloned().collect::<Vec<_>>());
    assert_eq!(keys(&parsed[0]), keys(core), "the same form");
}

#[test]
fn a_whole_namespace_keeps_its_identity() {
    let mut array = Daemon::start(ARRAY);
    let address = array.addr.to_string();
    let whole = r#"
[[backend]]
name = "far"
type = "nvme-tcp"
address = "ARRAY"
subnqn = "nqn.2026-01.org.example:array"

[[lun]]
name = "w"
backend = "far"
"#;
    let mut gateway = Daemon::start(&format!("{DOCUMENT}{whole}").replace("ARRAY", &address));
    let identity = |daemon: &Daemon, name: &str| {
        let lun = daemon.json("lun_list", &format!(r#"{{"name":"{name}"}}"#))[0].clone();
        assert!(lun["uuid"].is_string() && lun["nguid"].is_string(), "{lun}");
        (lun["uuid"].clone(), lun["nguid"].clone())
    };
    let own = identity(&array, "l0");
    assert_eq!(identity(&gateway, "w"), own);
    // The disk is the same after a restart, without the database, and after another import.
    gateway.kill_and_restart();
    assert_eq!(identity(&gateway, "w"), own);
    std::fs::remove_dir_all(gateway.path("state")).expect("removed");
    gateway.kill_and_restart();
    assert_eq!(identity(&gateway, "w"), own);
    gateway.ok(&["lun", "release", "w"]);
    gateway.ok(&["lun", "import", "again", "--backend", "far"]);
    assert_eq!(identity(&gateway, "again"), own);
    // A second LUN can't have the same identity. Here it is the same namespace by another way.
    let attach = ["backend", "attach", "twin", "--address", &address, "--subnqn"];
    gateway.ok(&[&attach[..], &[ARRAY_NQN]].concat());
    gateway.ok(&["lun", "import", "twin", "--backend", "twinn1"]);
    assert_ne!(identity(&gateway, "twin"), own);
    // A lost backend isn't imported, and the import doesn't wait for it.
    gateway.ok(&["lun", "release", "again"]);
    array.kill();
    wait_for("the array is lost", || gateway.ok(&["backend", "list", "far"]).contains(" lost "));
    let refused = gateway.refused(&["lun", "import", "again", "--backend", "far"]);
    assert!(refused.contains("backend `far` is lost"), "{refused}");
    array.restart();
    wait_for("the array is back", || gateway.ok(&["backend", "list", "far"]).contains(" up "));
    gateway.ok(&["lun", "import", "again", "--backend", "far"]);
    assert_eq!(identity(&gateway, "again"), own);
}

#[test]
fn a_namespace_that_is_a_backend_twice_is_no_pool_s() {
    let array = Daemon::start(ARRAY);
    let gateway = Daemon::start(DOCUMENT);
    for name in ["one", "two"] {
        let (address, subnqn) = (array.addr, ARRAY_NQN);
        let far = json!({ "name": name, "type": "nvme-tcp", "address": address, "subnqn": subnqn });
        gateway.call("backend_create", far);
    }
    let refused = |backends: &[&str]| {
        let pool = gateway.try_call("pool_create", json!({ "name": "p", "backends": backends }));
        let why = pool.expect_err("a refusal");
        assert!(
            why.contains("`one`")
                && why.contains("`two`")
                && why.contains("are the same namespace of an array"),
            "{why}"
        );
    };
    refused(&["one", "two"]);
    // The label would be written over the data of the LUN's hosts.
    gateway.call("lun_import", json!({ "name": "w", "backend": "one" }));
    refused(&["two"]);
}

/// Bytes that are written to this pool's backend are never there, so the pool can be neither finished nor destroyed.
#[test]
fn a_pool_that_a_failed_change_leaves_is_in_no_later_one_s_way() {
    let gateway = Daemon::start(DOCUMENT);
    gateway.call("backend_create", json!({ "name": "void", "type": "null", "size": "64MiB" }));
    let before = gateway.ok(&["config", "get"]);
    let pool = json!({ "name": "p", "backends": ["void"] });
    gateway.try_call("pool_create", pool).expect_err("a refusal");
    assert_eq!(gateway.ok(&["config", "get"]), before);
    gateway.ok(&["host", "create", "web", "nqn.2026-01.org.example:web"]);
    gateway.ok(&["backend", "delete", "void"]);
}

#[test]
fn a_file_system_is_not_taken_for_a_pool_unasked() {
    let gateway = Daemon::start(DOCUMENT);
    let mut image = vec![0; 64 << 20];
    image[1080..1082].copy_from_slice(&[0x53, 0xEF]);
    let path = gateway.write("ext4.img", &image);
    gateway.ok(&["backend", "create", "kept", "--type", "file", "--path", &path]);
    let before = gateway.ok(&["config", "get"]);
    let refused = gateway.refused(&["pool", "create", "p", "kept"]);
    assert!(refused.contains("backend kept holds an ext2, ext3 or ext4 file system"), "{refused}");
    assert!(refused.contains("--delete-data"), "{refused}");
    let with = format!("{before}\n[[pool]]\nname = \"p\"\nbackends = [\"kept\"]\n");
    let document = gateway.write("with.toml", with);
    let refused = gateway.refused(&["config", "apply", &document]);
    assert!(refused.contains("backend kept holds an ext2, ext3 or ext4 file system"), "{refused}");
    assert_eq!(gateway.ok(&["config", "get"]), before);
    assert!(std::fs::read(&path).expect("read") == image, "a refusal writes nothing");

    gateway.ok(&["config", "apply", "--delete-data", &document]);
    gateway.ok(&["pool", "delete", "p"]);
    gateway.ok(&["pool", "create", "p", "kept"]);
    gateway.ok(&["pool", "delete", "p"]);
    std::fs::write(&path, &image).expect("written");
    gateway.ok(&["pool", "create", "--delete-data", "p", "kept"]);
}

#[test]
fn a_pool_s_member_is_not_presented_whole() {
    let mut gateway = Daemon::start(DOCUMENT);
    let path = |name: &str| gateway.path(name);
    std::fs::copy(path("file0.img"), path("copy.img")).expect("copied");
    let copy = gateway.arg("copy.img");
    gateway.ok(&["backend", "create", "copy", "--type", "file", "--path", &copy]);
    let before = gateway.ok(&["config", "get"]);
    let import = ["lun", "import", "w", "--backend", "copy"];
    let refused = gateway.refused(&import);
    assert!(refused.contains("backend copy belongs to pool tank"), "{refused}");
    assert_eq!(gateway.ok(&["config", "get"]), before);
    // With its UUID, it was a LUN before, and its hosts made the pool on it.
    gateway.ok(&[&import[..], &["--uuid", "6d1d4b8e-0000-4000-8000-0000000000aa"]].concat());
    let with = gateway.ok(&["--json", "lun", "list"]);
    gateway.kill_and_restart();
    assert_eq!(gateway.ok(&["--json", "lun", "list"]), with);
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
    // A change of another object is carried out meanwhile.
    gateway.ok(&["host", "create", "web", "nqn.2026-01.org.example:web"]);
    // A LUN of the pool can't be deleted by halves.
    assert!(gateway.refused(&["lun", "delete", "a", "--force"]).contains("pool `tank` is down"));
    for (disk, away) in disks.iter().zip(&away) {
        std::fs::rename(away, disk).expect("moved back");
    }
    wait_for("both LUNs are served", || gateway.ok(&["--json", "lun", "list"]) == before);
    assert!(!gateway.ok(&["backend", "list"]).contains(" down "));
    assert!(gateway.ok(&["pool", "show", "tank"]).contains("up"));
    gateway.ok(&["lun", "create", "b", "--pool", "tank", "--size", "8MiB"]);

    // A pool that is down is forgotten as a whole, with everything else.
    gateway.kill();
    std::fs::rename(&disks[0], &away[0]).expect("moved");
    gateway.restart();
    gateway.ok(&["config", "apply", &gateway.write("nothing.toml", ""), "--delete-data"]);
    assert_eq!(gateway.json("backend_list", "{}"), json!([]));
    let again = disks[1].display().to_string();
    gateway.ok(&["backend", "create", "file1", "--type", "file", "--path", &again]);
}

#[test]
fn a_listener_that_is_down_is_in_no_change_s_way() {
    let mut gateway = Daemon::start(&DOCUMENT.replace("allow_any_host = true", "listeners = [\"ADDR\"]"));
    gateway.kill();
    let taken = TcpListener::bind(gateway.addr).expect("its address");
    gateway.restart();
    assert!(gateway.log().contains("a listener is down"), "{}", gateway.log());
    assert!(!gateway.said.contains(&gateway.addr.to_string()), "{}", gateway.said);
    gateway.ok(&["host", "create", "web", "nqn.2026-01.org.example:web"]);
    let down = || gateway.json("gateway_info", "{}")["down"].clone();
    let key = format!("listener/{}", gateway.addr);
    assert!(down()[&key].as_str().is_some_and(|why| why.contains("in use")), "{}", down());
    drop(taken);
    wait_for("it to be tried again", || down() == json!({}));
    TcpStream::connect(gateway.addr).expect("it is there");
}

#[test]
fn a_listener_that_is_gone_leaves_its_address_at_once() {
    let gateway = Daemon::start(DOCUMENT);
    let listener = json!({ "nqn": NQN, "listen": gateway.addr });
    gateway.call("subsystem_add_listener", listener.clone());
    // The second call waits while the first is carried out.
    let gone = gateway.ask("subsystem_remove_listener", &listener);
    let back = gateway.ask("subsystem_add_listener", &listener);
    for told in [gone, back] {
        let told = answer(told).expect("an answer");
        assert_eq!(told["result"], true, "{told}");
    }
    TcpStream::connect(gateway.addr).expect("it is there");
    let all = json!({ "nqn": NQN, "listen": format!("0.0.0.0:{}", gateway.addr.port()) });
    let refused = gateway.try_call("subsystem_add_listener", all).expect_err("in use");
    assert!(refused.contains(&format!("the gateway already listens on {}", gateway.addr)), "{refused}");
}

/// The failed change publishes nothing else to the cores, and hosts are let in only once the cores know the listener.
#[test]
fn a_listener_that_is_there_again_when_a_change_fails_lets_hosts_in() {
    let mut gateway = Daemon::start(&listening());
    gateway.kill();
    let taken = TcpListener::bind(gateway.addr).expect("its address");
    let other = TcpListener::bind(own_addr()).expect("another address");
    gateway.restart();
    drop(taken);
    let listen = other.local_addr().expect("its address");
    let params = json!({ "nqn": NQN, "listen": listen });
    let why = gateway.try_call("subsystem_add_listener", params).expect_err("another process listens there");
    assert!(why.contains("in use"), "{why}");
    wait_for("it to be there", || gateway.json("gateway_info", "{}")["down"] == json!({}));
    Raw::admin(gateway.addr, &Who::admin(HOST, NQN));
}

/// Otherwise the host would be told that there is no such subsystem, and a Linux host takes that for good.
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

/// The same disk may come under another name as a loop device of its file, or as an array's namespace without identifiers by a
/// second address. Here it is a copy, which nobody can tell from that.
#[test]
fn an_open_pool_s_disk_is_not_taken_from_it_by_another_name() {
    let gateway = Daemon::start(DOCUMENT);
    std::fs::copy(gateway.path("file0.img"), gateway.path("copy.img")).expect("copied");
    let path = gateway.arg("copy.img");
    gateway.ok(&["backend", "create", "copy", "--type", "file", "--path", &path]);
    let refused = gateway.refused(&["pool", "create", "other", "copy", "--delete-data"]);
    assert!(refused.contains("has the label of backend `file0` of the open pool `tank`"), "{refused}");
    let image = File::options().write(true).open(&path).expect("opened");
    image.write_all_at(&[0; 8192], 0).expect("zeroed");
    gateway.ok(&["pool", "create", "other", "copy"]);
}

/// SPDK has one name for the backend and the LUN.
#[test]
fn a_bdev_that_is_another_s_backend_is_not_deleted() {
    let gateway = Daemon::start(DOCUMENT);
    let ram = |name: &str| json!({ "name": name, "type": "memory", "size": "1MiB" });
    gateway.call("backend_create", ram("m"));
    gateway.call("backend_create", ram("other"));
    gateway.call("lun_import", json!({ "name": "m", "backend": "other" }));
    let refused = gateway.try_call("bdev_malloc_delete", json!({ "name": "m" })).expect_err("a refusal");
    assert!(refused.contains("LUN `m` presents backend `other`"), "{refused}");
    assert_eq!(gateway.call("backend_list", json!({ "name": "other" })).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_backend_is_neither_a_special_file_nor_one_of_the_gateway_s_own() {
    let gateway = Daemon::start(DOCUMENT);
    let cases = [
        ("/dev/null".into(), "is a character device"),
        (gateway.path("state"), "is a directory"),
        (gateway.path("rpc.sock"), "is a socket"),
        (gateway.path("trefoil.toml"), "is the gateway's own document"),
        (gateway.path("state/state.redb"), "is the gateway's own database"),
    ];
    for (path, what) in cases {
        let path = path.to_str().expect("UTF-8");
        let new = json!({ "name": "new", "type": "file", "path": path });
        let refused = gateway.try_call("backend_create", new).expect_err(what);
        assert!(refused.contains(&format!("backend `new`: path {path} {what}")), "{refused}");
    }
}

#[test]
fn the_log_and_a_counter_tell_of_hosts_that_may_not_connect() {
    let (other, port) = (own_addr(), own_addr());
    let list = format!(
        "hosts = [\"nqn.2026-01.org.example:h\"]\nlisteners = [\"ADDR\"]\nnamespaces = []\n\n\
         [[subsystem]]\nnqn = \"nqn.2026-01.org.example:other\"\nallow_any_host = true\nlisteners = [\"{other}\"]"
    );
    let document = DOCUMENT.replace("allow_any_host = true", &list);
    let gateway = Daemon::start(&format!("[gateway]\nmetrics_listen = \"{port}\"\n{document}"));
    let stranger = "nqn.2026-01.org.example:stranger";
    let cases = [
        (NQN, "the host is not on the subsystem's list: add it with `trefoil host add NQN HOST`"),
        ("nqn.2026-01.org.example:none", "there is no such subsystem"),
        ("nqn.2026-01.org.example:other", "the subsystem is not offered on this listener"),
    ];
    for (nqn, why) in cases {
        let refuse = || {
            let (raw, answer) = Raw::asked(gateway.addr, &Who::admin(stranger, nqn));
            assert!(!matches!(answer, ConnectResponse::Connected { .. }), "{nqn}: {answer:?}");
            raw.local_addr()
        };
        let peer = refuse();
        refuse();
        let named = format!("host=\"{stranger}\" subsystem=\"{nqn}\" peer={peer} listener={}", gateway.addr);
        wait_for("a line of the refusal", || gateway.log().contains(&named));
        let log = gateway.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(nqn)).collect();
        assert!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains(why), "{lines:?}");
    }
    let counts = metrics(port);
    for reason in ["host", "subsystem", "listener"] {
        let line = format!("trefoil_connects_refused_total{{reason=\"{reason}\"}} 2\n");
        assert!(counts.contains(&line), "{counts}");
    }
}
