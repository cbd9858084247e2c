//! Tests of the discovery subsystem's own listeners.
#![forbid(unsafe_code)]

mod support;

use serde_json::{Value, json};
use std::net::SocketAddr;
use support::daemon::{Daemon, own_addr, spdk_address};
use support::raw::{Raw, Who};
use support::{host_nqn, wait_for};
use trefoil_config::DISCOVERY_NQN;
use trefoil_wire::fabrics::discovery::{DiscoveryLog, LogEntry, subtype};
use trefoil_wire::fabrics::{ConnectRejection, ConnectResponse};
use trefoil_wire::nvme::log::lid;
use trefoil_wire::nvme::{AdminCommand, GetLogPage, Sgl};

const DOCUMENT: &str = r#"
[gateway]
max_hosts = 8
max_qpairs = 32

[[subsystem]]
nqn = "nqn.2026-01.org.example:open"
allow_any_host = true
listeners = ["ADDR"]

[[subsystem]]
nqn = "nqn.2026-01.org.example:closed"
listeners = ["ADDR"]

[[subsystem]]
nqn = "nqn.2026-01.org.example:elsewhere"
hosts = ["nqn.2026-01.org.example:host-1"]
listeners = ["SECOND"]
"#;

/// Returns this listener as parameters of SPDK's methods.
fn spdks(nqn: &str, at: SocketAddr) -> Value {
    json!({ "nqn": nqn, "listen_address": spdk_address(at) })
}

/// Returns the names and addresses in a host's discovery log, sorted.
fn log(to: SocketAddr, host: usize) -> Vec<(u8, String, String)> {
    let (mut raw, _) = Raw::admin(to, &Who::admin(&host_nqn(host), DISCOVERY_NQN));
    let page = GetLogPage { lid: lid::DISCOVERY, len_bytes: 8192, ..GetLogPage::default() };
    let sqe = AdminCommand::GetLogPage(page).sqe(raw.cid(), 0, Sgl::Transport { len_bytes: 8192 });
    let (cqe, data) = raw.command(sqe, &[]);
    assert!(cqe.status.is_ok(), "the discovery log: {}", cqe.status);
    let log = DiscoveryLog::parse(&data).expect("a log");
    let row = |entry: LogEntry| {
        (entry.subtype, entry.subnqn.as_str().to_owned(), format!("{}:{}", entry.traddr, entry.trsvcid))
    };
    let mut rows: Vec<_> = log.entries().map(|entry| row(entry.expect("an entry"))).collect();
    rows.sort();
    rows
}

fn start() -> (Daemon, SocketAddr, SocketAddr) {
    let (second, own) = (own_addr(), own_addr());
    let gateway = Daemon::start(&DOCUMENT.replace("SECOND", &second.to_string()));
    (gateway, second, own)
}

#[test]
fn a_discovery_listener_listens_and_tells_of_all_that_the_host_may_have() {
    let (mut gateway, second, own) = start();
    let nvm = |name: &str, at: SocketAddr| {
        (subtype::NVM, format!("nqn.2026-01.org.example:{name}"), at.to_string())
    };
    let itself = (subtype::CURRENT_DISCOVERY, DISCOVERY_NQN.to_owned(), own.to_string());
    gateway.call("nvmf_subsystem_add_listener", spdks(DISCOVERY_NQN, own));
    for life in 0..2 {
        assert_eq!(log(own, 2), [nvm("open", gateway.addr), itself.clone()], "life {life}");
        let all = [nvm("elsewhere", second), nvm("open", gateway.addr), itself.clone()];
        assert_eq!(log(own, 1), all, "life {life}");
        // Another listener still reports only the subsystems that it offers itself.
        assert_eq!(log(gateway.addr, 1), [nvm("open", gateway.addr)], "life {life}");
        // The discovery listener offers no other subsystem.
        let (_, answer) = Raw::asked(own, &Who::admin(&host_nqn(2), "nqn.2026-01.org.example:open"));
        assert_eq!(answer, ConnectResponse::InvalidParameter(ConnectRejection::SUBNQN));
        let refused = format!("listener={own} why=\"the subsystem is not offered on this listener");
        wait_for("the refusal in the log", || gateway.log().matches(&refused).count() > life);
        gateway.kill_and_restart();
    }
    let listed = gateway.call("nvmf_subsystem_get_listeners", json!({ "nqn": DISCOVERY_NQN }));
    assert_eq!(listed[0]["address"]["trsvcid"], own.port().to_string());
    let listed = gateway.call("nvmf_get_subsystems", json!({ "nqn": DISCOVERY_NQN }));
    assert_eq!(listed[0]["listen_addresses"][0]["traddr"], own.ip().to_string());
    let again =
        gateway.try_call("nvmf_subsystem_add_listener", spdks(DISCOVERY_NQN, own)).expect_err("again");
    assert!(again.contains("already"), "{again}");
    gateway.call("nvmf_subsystem_remove_listener", spdks(DISCOVERY_NQN, own));
    std::net::TcpStream::connect(own).expect_err("it is gone");
}

#[test]
fn a_discovery_listener_is_in_documents_and_not_lost_by_one() {
    let (gateway, _, own) = start();
    let plain = gateway.toml("config_get");
    // The list of all subsystems has the discovery subsystem only if it has listeners of its own. A query for its NQN always
    // returns it.
    assert!(!gateway.ok(&["subsystem", "list"]).contains(DISCOVERY_NQN));
    assert_eq!(gateway.call("subsystem_list", json!({ "nqn": DISCOVERY_NQN }))[0]["listeners"], json!([]));
    gateway.ok(&["subsystem", "add-listener", DISCOVERY_NQN, &own.to_string()]);
    assert_eq!(gateway.call("gateway_info", json!({}))["discovery_listeners"], json!([own.to_string()]));
    let listed = gateway.call("subsystem_list", json!({ "nqn": DISCOVERY_NQN }));
    assert_eq!(listed[0]["listeners"], json!([own.to_string()]));
    let all = gateway.ok(&["subsystem", "list"]);
    assert!(
        all.lines().last().is_some_and(|row| row.contains(DISCOVERY_NQN) && row.contains(&own.to_string())),
        "{all}"
    );
    let backup = gateway.toml("config_backup");
    assert!(backup.contains("[discovery]"), "{backup}");
    // A host is connected through the listener. The refusal names this listener, and nothing changes.
    let host = Raw::admin(own, &Who::admin(&host_nqn(1), DISCOVERY_NQN));
    let refused =
        gateway.try_call("config_apply", json!({ "toml": plain })).expect_err("a host is connected");
    assert!(refused.contains(&format!("for discovery by listener {own}")), "{refused}");
    gateway.call("config_apply", json!({ "toml": plain, "force": true }));
    drop(host);
    std::net::TcpStream::connect(own).expect_err("it is gone");
    gateway.call("config_restore", json!({ "toml": backup }));
    assert_eq!(log(own, 2).len(), 2);
    let wrong = plain + "\n[discovery]\nlisteners = [\"127.0.0.1:0\"]\n";
    let refused = gateway.try_call("config_diff", json!({ "toml": wrong })).expect_err("no port");
    assert!(refused.contains("discovery.listeners: 127.0.0.1:0 has no port"), "{refused}");
}
