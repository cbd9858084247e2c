//! Tests of the log, the counters and the live tables.

use super::{DOCUMENT, NQN, host_view, listening};
use crate::support::daemon::{Daemon, metrics, own_addr};
use crate::support::raw::{Raw, Who};
use crate::support::wait_for;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use trefoil_wire::fabrics::ConnectResponse;

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
fn the_log_and_a_counter_tell_of_hosts_that_may_not_connect() {
    let (other, port) = (own_addr(), own_addr());
    let list = format!(
        "hosts = [\"nqn.2026-01.org.example:h\"]\nlisteners = [\"ADDR\"]\nnamespaces = []\n\n\
         [[subsystem]]\nnqn = \"nqn.2026-01.org.example:other\"\nallow_any_host = true\nlisteners = [\"{other}\"]"
    );
    let document = DOCUMENT.replace("allow_any_host = true", &list);
    let gateway = Daemon::start(&format!("[gateway]\nmetrics_listen = \"{port}\"\n{document}"));
    let unlisted = "nqn.2026-01.org.example:unlisted";
    let cases = [
        (NQN, "the host is not on the subsystem's list: add it with `trefoil host add NQN HOST`"),
        ("nqn.2026-01.org.example:none", "there is no such subsystem"),
        ("nqn.2026-01.org.example:other", "the subsystem is not offered on this listener"),
    ];
    for (nqn, why) in cases {
        let refuse = || {
            let (raw, answer) = Raw::asked(gateway.addr, &Who::admin(unlisted, nqn));
            assert!(!matches!(answer, ConnectResponse::Connected { .. }), "{nqn}: {answer:?}");
            raw.local_addr()
        };
        let peer = refuse();
        refuse();
        let named = format!("host=\"{unlisted}\" subsystem=\"{nqn}\" peer={peer} listener={}", gateway.addr);
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
