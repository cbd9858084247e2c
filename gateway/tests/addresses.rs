//! Tests of addresses: both wildcards of a port, scopes, and IPv4 hosts on IPv6 sockets.
#![forbid(unsafe_code)]

mod support;

use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener, TcpStream};
use support::daemon::{Daemon, spdk_address};
use support::host_nqn;
use support::raw::{Raw, Who};

const NQN: &str = "nqn.2026-01.org.example:s";
const DOCUMENT: &str = r#"
[gateway]
max_hosts = 8
max_qpairs = 32

[[subsystem]]
nqn = "nqn.2026-01.org.example:s"
allow_any_host = true
listeners = [LISTEN]
"#;

/// Starts a gateway with these listeners.
fn start(listeners: &[String]) -> Daemon {
    let listeners: Vec<String> = listeners.iter().map(|listen| format!("{listen:?}")).collect();
    Daemon::start(&DOCUMENT.replace("LISTEN", &listeners.join(", ")))
}

/// Returns a port that is free on every address at the moment.
fn free_port() -> u16 {
    let any = TcpListener::bind("[::]:0").expect("a port");
    any.local_addr().expect("bound").port()
}

fn v4(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn v6(port: u16) -> SocketAddr {
    format!("[::1]:{port}").parse().expect("an address")
}

/// Connects a host. The host stays connected as long as the returned value exists.
fn connect(to: SocketAddr) -> Raw {
    Raw::admin(to, &Who::admin(&host_nqn(1), NQN)).0
}

#[test]
fn both_wildcards_of_a_port_are_served() {
    let port = free_port();
    let (any4, any6) = (format!("0.0.0.0:{port}"), format!("[::]:{port}"));
    let mut gateway = start(&[any6.clone(), any4.clone()]);
    connect(v4(port));
    connect(v6(port));
    gateway.kill_and_restart();
    connect(v4(port));
    connect(v6(port));
    // While the IPv6 wildcard is the only wildcard, it also serves IPv4. Later it leaves IPv4 to the IPv4 wildcard again. The
    // hosts of the IPv6 wildcard stay connected.
    let listener = |listen: &str| json!({ "nqn": NQN, "listen": listen });
    let mut six = connect(v6(port));
    gateway.call("subsystem_remove_listener", listener(&any4));
    connect(v4(port));
    connect(v6(port));
    gateway.call("subsystem_add_listener", listener(&any4));
    let mut four = connect(v4(port));
    connect(v6(port));
    six.enable(false);
    // One wildcard replaces the other: first in a change that fails, then in a change that succeeds.
    gateway.call("subsystem_remove_listener", listener(&any6));
    TcpStream::connect(v6(port)).expect_err("IPv4 alone");
    let document = gateway.toml("config_get");
    let swapped = document.replace(&any4, &any6);
    let failing = swapped.replace(&format!("\"{any6}\""), &format!("\"{any6}\", \"192.0.2.1:4420\""));
    gateway.try_call("config_apply", json!({ "toml": failing, "force": true })).expect_err("no such address");
    connect(v4(port));
    four.enable(false);
    gateway.call("config_apply", json!({ "toml": swapped, "force": true }));
    connect(v4(port));
    connect(v6(port));
    let refused = gateway.try_call("subsystem_add_listener", listener(&format!("127.0.0.1:{port}")));
    let refused = refused.expect_err("it is in the wildcard");
    assert!(refused.contains(&format!("the gateway already listens on {any6}")), "{refused}");
}

#[test]
fn an_ipv4_host_on_an_ipv6_socket_is_told_of_by_its_ipv4_address() {
    let port = free_port();
    let gateway = start(&[format!("[::]:{port}")]);
    let host = connect(v4(port));
    let rows = gateway.call("nvmf_subsystem_get_qpairs", json!({ "nqn": NQN }));
    assert_eq!(rows[0]["peer_address"], spdk_address(v4(host.local_addr().port())));
    assert!(!gateway.log().contains("::ffff:"), "a mapped address is in the log");
    assert!(gateway.log().contains(&format!("peer={}", host.local_addr())), "the peer isn't in the log");
}

#[test]
fn a_mapped_address_is_the_ipv4_address_on_every_way_in() {
    let port = free_port();
    let mapped = format!("[::ffff:127.0.0.1]:{port}");
    let gateway = start(std::slice::from_ref(&mapped));
    connect(v4(port));
    let listed = gateway.call("subsystem_list", json!({}));
    assert_eq!(listed[0]["listeners"], json!([v4(port).to_string()]));
    let there = gateway.try_call("subsystem_add_listener", json!({ "nqn": NQN, "listen": mapped }));
    assert!(there.expect_err("it is there").contains("already"));
    let spdk = json!({ "trtype": "TCP", "traddr": "::ffff:127.0.0.1", "trsvcid": port.to_string() });
    gateway.call("nvmf_subsystem_remove_listener", json!({ "nqn": NQN, "listen_address": spdk }));
    assert_eq!(gateway.call("subsystem_list", json!({}))[0]["listeners"], json!([]));
}

/// Returns the listener as three interfaces show it: a native method, SPDK's method, and a backup.
fn listeners(gateway: &Daemon) -> (Value, Value, String) {
    let ours = gateway.call("subsystem_list", json!({}))[0]["listeners"].clone();
    let spdks =
        gateway.call("nvmf_subsystem_get_listeners", json!({ "nqn": NQN }))[0]["address"]["traddr"].clone();
    (ours, spdks, gateway.toml("config_backup"))
}

#[test]
fn a_scope_is_kept_as_it_was_written_and_never_told_to_a_host() {
    let port = free_port();
    let scoped = format!("[::1%lo]:{port}");
    let mut gateway = start(std::slice::from_ref(&scoped));
    let check = |gateway: &Daemon| {
        connect(v6(port));
        let (ours, spdks, saved) = listeners(gateway);
        assert_eq!((ours, spdks), (json!([scoped]), json!("::1%lo")));
        assert!(saved.contains(&format!("{scoped:?}")), "{saved}");
        saved
    };
    let saved = check(&gateway);
    gateway.kill_and_restart();
    check(&gateway);
    // SPDK's methods and a backup also keep the scope.
    let spdk = json!({ "trtype": "TCP", "adrfam": "IPv6", "traddr": "::1%lo", "trsvcid": port.to_string() });
    let listener = json!({ "nqn": NQN, "listen_address": spdk });
    gateway.call("nvmf_subsystem_remove_listener", listener.clone());
    gateway.call("nvmf_subsystem_add_listener", listener.clone());
    check(&gateway);
    gateway.call("nvmf_subsystem_remove_listener", listener);
    gateway.call("config_restore", json!({ "toml": saved }));
    check(&gateway);
    // This discovery request arrives at an address that has a scope.
    let found = gateway.call("backend_discover", json!({ "address": scoped }));
    assert_eq!(found[0]["address"], json!(format!("[::1]:{port}")), "{found}");
    let missing = json!({ "nqn": NQN, "listen": format!("[fe80::1%nosuch0]:{port}") });
    let refused = gateway.try_call("subsystem_add_listener", missing).expect_err("no such interface");
    assert!(refused.contains("this machine has no interface `nosuch0`"), "{refused}");
    let alone = json!({ "nqn": NQN, "listen": format!("[fe80::1]:{port}") });
    let refused = gateway.try_call("subsystem_add_listener", alone).expect_err("no interface");
    assert!(refused.contains("a link-local address needs its interface"), "{refused}");
}
