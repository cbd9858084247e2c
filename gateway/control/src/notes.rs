//! Notes: remarks that an answer adds to the success of a change. Examples: a revoked host still has access; hosts can mistake
//! one object for another; a list may have a host's name misspelled. Each note is also logged.
//!
//! A note is not a refusal. The change was legal and is in force.

use crate::action::Change;
use crate::state::State;
use trefoil_config::{Gateway, Subsystem};

/// Returns the notes on `change`, which led from `now` to `next`.
pub fn of_change(change: &Change, now: &State, next: &State, gateway: &Gateway) -> Vec<String> {
    let mut notes = match change {
        Change::HostRevoke { nqn, nsid: None, host } => {
            let subsystem = next.subsystems.get(nqn);
            subsystem.map_or(Vec::new(), |subsystem| revoked(subsystem, next.host_nqn(host)))
        }
        Change::HostAllow { nqn, nsid: Some(_), host, .. } => shut_out(next, nqn, std::slice::from_ref(host)),
        Change::NamespaceAdd { nqn, hosts: Some(hosts), .. } => shut_out(next, nqn, hosts),
        Change::HostDelete { name } => forgotten(next, name, now.host_nqn(name)).into_iter().collect(),
        Change::ListenerRemove { nqn, listen } => {
            let others = next.subsystems.values().filter(|s| s.listeners.contains(listen));
            let others: Vec<String> = others.map(|s| format!("`{}`", s.nqn)).collect();
            let told = || {
                format!(
                    "subsystem `{nqn}` is no longer offered on {listen}; the listener stays open for subsystem {}",
                    others.join(", ")
                )
            };
            (!others.is_empty()).then(told).into_iter().collect()
        }
        _ => Vec::new(),
    };
    let odd = |state: &State| {
        let config = state.to_config(gateway);
        [config.twins(), config.odd_hosts()].concat()
    };
    let known = odd(now);
    notes.extend(odd(next).into_iter().filter(|told| !known.contains(told)));
    notes
}

/// Returns notes on the access to a subsystem that a host still has, or will have, after its removal from the subsystem's list.
fn revoked(subsystem: &Subsystem, host: &str) -> Vec<String> {
    let nqn = &subsystem.nqn;
    let mut notes = Vec::new();
    if subsystem.allow_any_host {
        notes.push(format!(
            "host `{host}` may still connect to subsystem `{nqn}`, as any host may: to stop this, use `trefoil subsystem \
             allow-any-host {nqn} false`"
        ));
    }
    let lists =
        subsystem.namespaces.iter().filter(|ns| ns.hosts.iter().flatten().any(|listed| listed == host));
    let nsids: Vec<String> = lists.map(|ns| ns.nsid.to_string()).collect();
    if !nsids.is_empty() {
        notes.push(format!(
            "host `{host}` stays on the lists of these namespaces of subsystem `{nqn}`, and sees them once it may \
             connect again: {}",
            nsids.join(", ")
        ));
    }
    notes
}

/// Returns a note for each host that a namespace's list names and that can't see the namespace, because the host may not
/// connect.
fn shut_out(next: &State, nqn: &str, hosts: &[String]) -> Vec<String> {
    let Some(subsystem) = next.subsystems.get(nqn).filter(|s| !s.allow_any_host) else { return Vec::new() };
    let hosts = hosts.iter().map(|host| next.host_nqn(host));
    let hosts = hosts.filter(|host| !subsystem.hosts.iter().any(|listed| listed == host));
    let told = |host| {
        format!(
            "host `{host}` may not connect to subsystem `{nqn}`: allow it with `trefoil host add {nqn} {host}`"
        )
    };
    hosts.map(told).collect()
}

/// Returns a note on the lists that still name a host after the deletion of the host's name.
fn forgotten(next: &State, name: &str, host: &str) -> Option<String> {
    let is_listed = |s: &&Subsystem| {
        let namespaces = s.namespaces.iter().flat_map(|ns| ns.hosts.iter().flatten());
        s.hosts.iter().chain(namespaces).any(|listed| listed == host)
    };
    let nqns: Vec<String> =
        next.subsystems.values().filter(is_listed).map(|s| format!("`{}`", s.nqn)).collect();
    let told = || {
        format!(
            "the name `{name}` is removed; host `{host}` stays on the lists of subsystems {}",
            nqns.join(", ")
        )
    };
    (!nqns.is_empty()).then(told)
}
