//! Tests of changes and documents: documents are compared, applied, restored, refused and explained.

use super::{ARRAY_NQN, DOCUMENT, HOST, NQN};
use crate::support::daemon::{Daemon, trefoild};
use serde_json::json;
use std::process::Output;

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
    // A LUN can't shrink, even if a backup is restored.
    let refusal = gateway.refused(&["config", "restore", &path("backup.toml")]);
    assert!(refusal.contains("LUN `a` has 12MiB and can't shrink to 8MiB"), "{refusal}");
    // `config diff` reports the refusal together with the other differences.
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
fn first_mistakes_are_understood_or_explained() {
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
