//! Tests of the names of hosts and subsystems in every input: documents, JSON-RPC, SPDK's RPC, the command line and the wire.
#![forbid(unsafe_code)]

mod support;

use serde_json::json;
use support::daemon::{Daemon, metrics, own_addr, trefoild};
use support::raw::{Raw, Who};
use support::wait_for;
use trefoil_wire::fabrics::{ConnectRejection, ConnectResponse, Nqn};
use trefoil_wire::nvme::Status;

const S: &str = "nqn.2026-01.org.example:s";
const DOCUMENT: &str = r#"
[gateway]
metrics_listen = "METRICS"
max_hosts = 8
max_qpairs = 32

[[subsystem]]
nqn = "nqn.2026-01.org.example:s"
hosts = ["nqn.2014-08.org.nvmexpress:uuid:07e4a0a641d54bff96b28a173dcfb6b5", "named"]
listeners = ["ADDR"]

[[host]]
name = "named"
nqn = "host with spaces"
"#;

fn connect(gateway: &Daemon, host: &str) -> ConnectResponse {
    Raw::asked(gateway.addr, &Who::admin(host, S)).1
}

fn is_let_in(gateway: &Daemon, host: &str) -> bool {
    match connect(gateway, host) {
        ConnectResponse::Connected { .. } => true,
        ConnectResponse::Failed(status) if status.is(Status::CONNECT_INVALID_HOST) => false,
        other => panic!("{host}: {other:?}"),
    }
}

#[test]
fn what_may_connect_can_be_listed_and_is_listed_again_after_a_restart() {
    let document = DOCUMENT.replace("METRICS", &own_addr().to_string());
    let mut gateway = Daemon::start(&document);
    let by_document =
        ["nqn.2014-08.org.nvmexpress:uuid:07e4a0a641d54bff96b28a173dcfb6b5", "host with spaces"];
    let by_rpc = "2014-08.org.nvmexpress:uuid:07e4a0a6-41d5-4bff-96b2-8a173dcfb6b5";
    let (by_spdk, by_command, by_name) = ("hostnqn1", "nqn.2021-13.x:y", "größe");
    let added = [by_rpc, by_spdk, by_command, by_name];
    assert!(by_document.iter().all(|host| is_let_in(&gateway, host)));
    assert!(!added.iter().any(|host| is_let_in(&gateway, host)));
    gateway.call("host_add", json!({ "nqn": S, "host": by_rpc }));
    gateway.call("nvmf_subsystem_add_host", json!({ "nqn": S, "host": by_spdk }));
    let misspelt = gateway.call("host_add", json!({ "nqn": S, "host": "wbe" })).to_string();
    assert!(misspelt.contains("host `wbe`: no [[host]] has this name"), "{misspelt}");
    gateway.ok(&["host", "remove", S, "wbe"]);
    gateway.ok(&["host", "add", S, by_command]);
    gateway.ok(&["host", "create", "web", by_name]);
    gateway.ok(&["host", "add", S, "web"]);
    assert!(added.iter().all(|host| is_let_in(&gateway, host)));
    // This name could be a misspelt name of a host, so the log has a warning.
    let told =
        format!("host `{by_spdk}`: no [[host]] has this name, so the gateway takes the name for an NQN");
    wait_for("a line about it", || gateway.log().contains(&told));
    assert!(!gateway.log().contains(&format!("host `{by_command}`")), "it begins as NQNs do");
    // A document with such a name is accepted again, and makes no change.
    let kept = gateway.ok(&["config", "get"]);
    gateway.ok(&["config", "apply", &gateway.write("kept.toml", kept)]);
    gateway.kill_and_restart();
    assert!(by_document.iter().chain(&added).all(|host| is_let_in(&gateway, host)));
    for method in ["host_remove", "nvmf_subsystem_remove_host"] {
        gateway.call(
            method,
            json!({ "nqn": S, "host": if method == "host_remove" { by_rpc } else { by_spdk } }),
        );
    }
    gateway.ok(&["host", "remove", S, by_command]);
    gateway.ok(&["host", "remove", S, "web"]);
    assert!(!added.iter().any(|host| is_let_in(&gateway, host)));
    // An NQN on a list must not become the name of another host.
    gateway.ok(&["host", "add", S, by_spdk]);
    let said = gateway.refused(&["host", "create", by_spdk, "nqn.2026-01.org.example:other"]);
    assert!(said.contains("a list of hosts has this text as an NQN: remove the entry"), "{said}");
    for host in ["", "a\nb", &"x".repeat(224)] {
        for method in ["host_add", "nvmf_subsystem_add_host"] {
            let refused = gateway.try_call(method, json!({ "nqn": S, "host": host }));
            let said = refused.expect_err("nobody can have that name");
            assert!(said.contains("is not an NQN") || said.contains("the NQN is empty"), "{said}");
        }
    }
}

#[test]
fn a_name_with_a_wrong_letter_is_told_of_at_every_start() {
    let document = DOCUMENT.replace("METRICS", &own_addr().to_string()).replace("\"named\"]", "\"nmaed\"]");
    let mut gateway = Daemon::start(&document);
    let told = "host `nmaed`: no [[host]] has this name, so the gateway takes the name for an NQN";
    for starts in 1..=2 {
        wait_for("a line about it", || gateway.log().matches(told).count() == starts);
        gateway.kill_and_restart();
    }
}

#[test]
fn a_host_without_a_name_is_let_in_only_where_any_host_may_connect() {
    let document = DOCUMENT.replace("METRICS", &own_addr().to_string());
    let gateway = Daemon::start(&document);
    assert!(!is_let_in(&gateway, ""));
    gateway.ok(&["subsystem", "allow-any-host", S, "true"]);
    let who = Who { hostid: [0xAB; 16], ..Who::admin("", S) };
    let (_admin, _) = Raw::admin(gateway.addr, &who);
    let said = gateway.call("stats_get", json!({})).to_string();
    assert!(said.contains("hostid:abababab-abab-abab-abab-abababababab"), "{said}");
}

/// These Connects are refused before any list of hosts is checked.
#[test]
fn the_log_and_a_counter_tell_of_connects_that_are_malformed() {
    let port = own_addr();
    let gateway = Daemon::start(&DOCUMENT.replace("METRICS", &port.to_string()));
    let named = "host with spaces";
    let good = Who::admin(named, S);
    let mut shallow = good.clone();
    shallow.connect.sqsize = 0;
    let forged = Who { host: b"x\nWARN forged".into(), ..good.clone() };
    let nobody = Who { hostid: [0; 16], ..good.clone() };
    let cases = [
        (shallow, ConnectRejection::SQSIZE, named, "the command's SQSIZE is out of range", "sqsize"),
        (
            forged,
            ConnectRejection::HOSTNQN,
            "x\u{fffd}WARN forged",
            "the command's HOSTNQN is invalid",
            "hostnqn",
        ),
        (nobody, ConnectRejection::HOSTID, named, "the command's HOSTID is zero", "hostid"),
        (good.queue(0x1234, 1, 31), ConnectRejection::CNTLID, named, "there is no controller", "cntlid"),
    ];
    for (who, parameter, host, why, _) in &cases {
        let (raw, answer) = Raw::asked(gateway.addr, who);
        assert_eq!(answer, ConnectResponse::InvalidParameter(*parameter));
        let named = format!("host=\"{host}\" subsystem=\"{S}\" peer={}", raw.local_addr());
        let is_told = |line: &str| line.contains("WARN") && line.contains(&named) && line.contains(*why);
        wait_for("a line of the refusal", || gateway.log().lines().any(is_told));
    }
    let counts = metrics(port);
    for (.., reason) in cases {
        let line = format!("trefoil_connects_refused_total{{reason=\"{reason}\"}} 1\n");
        assert!(counts.contains(&line), "{counts}");
    }
}

/// A number parser accepts "+1" as a month. An earlier version accepted a subsystem with such a name, and no host could connect
/// to this subsystem.
#[test]
fn a_subsystem_that_a_check_calls_sound_is_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("trefoil.toml");
    let mut served = 0;
    for name in ["nqn.2026-+1.org.example:t", "nqn.2026-13.org.example:t", "nqn.2026-01.org.example:größe"]
    {
        let document = DOCUMENT.replace("METRICS", &own_addr().to_string()).replace(S, name);
        std::fs::write(&path, document.replace("ADDR", "127.0.0.1:4420")).expect("written");
        let output = trefoild(&["--check", path.to_str().expect("text")]);
        assert_eq!(Nqn::subsystem(name).is_ok(), output.status.success(), "{name}");
        if output.status.success() {
            let gateway = Daemon::start(&document);
            Raw::initialized(gateway.addr, false, false).connect(&Who::admin("host with spaces", name));
            served += 1;
        }
    }
    assert_eq!(served, 1);
}
