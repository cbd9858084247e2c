//! Tests of listeners that are down, removed, or up again.

use super::{DOCUMENT, HOST, NQN, listening};
use crate::support::daemon::{Daemon, answer, own_addr};
use crate::support::raw::{Raw, Who};
use crate::support::wait_for;
use serde_json::json;
use std::net::TcpListener;
use std::net::TcpStream;

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
    // The second call waits until the first is carried out.
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

/// The listener may accept hosts only after a topology with this listener is published. The failed change itself publishes
/// none.
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
