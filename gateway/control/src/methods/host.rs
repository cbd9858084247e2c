//! The `host_*` methods: access of hosts to subsystems and namespaces, and names for hosts.

use super::params::{Name, None};
use super::{Methods, Reply};
use crate::Change;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use trefoil_config::Host;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Access {
    nqn: String,
    host: String,
    #[serde(default)]
    nsid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    nqn: String,
    host: String,
    #[serde(default)]
    nsid: Option<u32>,
    #[serde(default)]
    force: bool,
}

pub(super) async fn add(methods: &Methods, p: Add) -> Reply {
    methods.done(Change::HostAllow { nqn: p.nqn, nsid: p.nsid, host: p.host, force: p.force }).await
}

pub(super) async fn remove(methods: &Methods, p: Access) -> Reply {
    methods.done(Change::HostRevoke { nqn: p.nqn, nsid: p.nsid, host: p.host }).await
}

pub(super) async fn create(methods: &Methods, host: Host) -> Reply {
    methods.done(Change::HostCreate(host)).await
}

pub(super) async fn delete(methods: &Methods, p: Name) -> Reply {
    methods.done(Change::HostDelete { name: p.name }).await
}

/// Returns every host that has a name or is on a list, with the lists that name it.
pub(super) async fn list(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    let mut hosts: BTreeMap<&str, (Option<&str>, Vec<_>)> = BTreeMap::new();
    for host in view.state.hosts.values() {
        hosts.entry(&host.nqn).or_default().0 = Some(&host.name);
    }
    for subsystem in view.state.subsystems.values() {
        for host in &subsystem.hosts {
            let lists = &mut hosts.entry(host).or_default().1;
            lists.push(json!({ "nqn": subsystem.nqn }));
        }
        for namespace in &subsystem.namespaces {
            for host in namespace.hosts.iter().flatten() {
                let lists = &mut hosts.entry(host).or_default().1;
                lists.push(json!({ "nqn": subsystem.nqn, "nsid": namespace.nsid }));
            }
        }
    }
    let rows =
        hosts.into_iter().map(|(nqn, (name, lists))| json!({ "nqn": nqn, "name": name, "lists": lists }));
    Ok(rows.collect())
}
