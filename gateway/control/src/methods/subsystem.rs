//! The `subsystem_*` methods.

use super::{Methods, Reply, noted};
use crate::Change;
use crate::engine::view::View;
use crate::error::{Fault, Refusal};
use serde::Deserialize;
use serde_json::{Value, json};
use trefoil_config::{Address, DISCOVERY_NQN, Subsystem};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MaybeNqn {
    #[serde(default)]
    nqn: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddNamespace {
    nqn: String,
    lun: String,
    #[serde(default)]
    nsid: Option<u32>,
    #[serde(default)]
    hosts: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveNamespace {
    nqn: String,
    #[serde(default)]
    nsid: Option<u32>,
    #[serde(default)]
    lun: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    nqn: String,
    listen: Address,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AllowAnyHost {
    nqn: String,
    allow: bool,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubsystemDelete {
    nqn: String,
    #[serde(default)]
    force: bool,
}

pub(super) async fn create(methods: &Methods, subsystem: Subsystem) -> Reply {
    let nqn = subsystem.nqn.clone();
    let view = methods.change(Change::SubsystemCreate(subsystem)).await?;
    Ok(noted(render(&view, &nqn), &view))
}

pub(super) async fn delete(methods: &Methods, p: SubsystemDelete) -> Reply {
    methods.done(Change::SubsystemDelete { nqn: p.nqn, force: p.force }).await
}

pub(super) async fn list(methods: &Methods, p: MaybeNqn) -> Reply {
    let view = methods.view().await?;
    let nqns = view.state.subsystems.keys().filter(|nqn| p.nqn.as_ref().is_none_or(|p| p == *nqn));
    let mut rows: Vec<Value> = nqns.map(|nqn| render(&view, nqn)).collect();
    let lists_discovery = match &p.nqn {
        Some(nqn) => nqn == DISCOVERY_NQN,
        // The discovery subsystem always exists. As in a document, the list has it only if it has listeners of its own.
        None => !view.state.discovery.is_default(),
    };
    if lists_discovery {
        rows.push(render_discovery(&view));
    }
    match p.nqn {
        Some(nqn) if rows.is_empty() => {
            Err(Refusal::new(Fault::NotFound, format!("there is no subsystem `{nqn}`")).into())
        }
        _ => Ok(rows.into()),
    }
}

pub(super) async fn add_namespace(methods: &Methods, p: AddNamespace) -> Reply {
    let AddNamespace { nqn, lun, nsid, hosts } = p;
    let change =
        Change::NamespaceAdd { nqn: nqn.clone(), nsid, lun: lun.clone(), hosts, uuid: None, nguid: None };
    let view = methods.change(change).await?;
    let nsid = view.state.exports(&lun).find(|(s, _)| s.nqn == nqn).map(|(_, nsid)| nsid);
    Ok(noted(json!({ "nsid": nsid }), &view))
}

pub(super) async fn remove_namespace(methods: &Methods, p: RemoveNamespace) -> Reply {
    let RemoveNamespace { nqn, nsid, lun } = p;
    let nsid = match (nsid, lun) {
        (Some(nsid), None) => nsid,
        (None, Some(lun)) => {
            let view = methods.view().await?;
            let shown = view.state.exports(&lun).find(|(subsystem, _)| subsystem.nqn == nqn);
            let absent = || {
                Refusal::new(Fault::NotFound, format!("subsystem `{nqn}` has no namespace with LUN `{lun}`"))
            };
            shown.map(|(_, nsid)| nsid).ok_or_else(absent)?
        }
        _ => {
            let text = "give either the namespace's `nsid` or its `lun`";
            return Err(Refusal::new(Fault::Invalid, text).into());
        }
    };
    methods.done(Change::NamespaceRemove { nqn, nsid }).await
}

pub(super) async fn add_listener(methods: &Methods, p: Listener) -> Reply {
    methods.done(Change::ListenerAdd { nqn: p.nqn, listen: p.listen }).await
}

pub(super) async fn remove_listener(methods: &Methods, p: Listener) -> Reply {
    methods.done(Change::ListenerRemove { nqn: p.nqn, listen: p.listen }).await
}

pub(super) async fn allow_any_host(methods: &Methods, p: AllowAnyHost) -> Reply {
    methods.done(Change::AllowAnyHost { nqn: p.nqn, allow: p.allow, force: p.force }).await
}

/// Returns the discovery subsystem's fields. The discovery subsystem has no serial number and no namespaces, and any host may
/// connect.
fn render_discovery(view: &View) -> Value {
    json!({
        "nqn": DISCOVERY_NQN,
        "allow_any_host": true,
        "hosts": [],
        "listeners": view.state.discovery.listeners,
        "namespaces": [],
    })
}

fn render(view: &View, nqn: &str) -> Value {
    let Some(s) = view.state.subsystems.get(nqn) else { return Value::Null };
    json!({
        "nqn": nqn,
        "serial": s.serial,
        "model": s.model,
        "allow_any_host": s.allow_any_host,
        "hosts": s.hosts,
        "listeners": s.listeners,
        "max_namespaces": s.max_nsid(),
        "min_cntlid": s.min_cntlid.unwrap_or(1),
        "max_cntlid": s.max_cntlid.unwrap_or(0xFFEF),
        "namespaces": s.namespaces,
    })
}
