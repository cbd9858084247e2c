//! Changes of the objects that hosts see: subsystems, namespaces, and lists of hosts.

use super::storage::unique_identity;
use super::{absent, free, refuse};
use crate::error::{Fault, Refusal};
use crate::state::{State, fill_subsystem};
use trefoil_config::{Address, Namespace, Subsystem, check_host_nqn};

pub(super) fn subsystem_mut<'a>(state: &'a mut State, nqn: &str) -> Result<&'a mut Subsystem, Refusal> {
    state.subsystems.get_mut(nqn).ok_or_else(|| absent("subsystem", nqn))
}

pub(super) fn listeners_mut<'a>(state: &'a mut State, nqn: &str) -> Result<&'a mut Vec<Address>, Refusal> {
    state.listeners_of_mut(nqn).ok_or_else(|| absent("subsystem", nqn))
}

pub(super) fn subsystem_create(state: &mut State, subsystem: &Subsystem) -> Result<(), Refusal> {
    subsystem.check()?;
    free(&state.subsystems, "subsystem", &subsystem.nqn)?;
    let mut subsystem = subsystem.clone();
    subsystem.hosts = host_list(state, &subsystem.hosts)?;
    for namespace in &mut subsystem.namespaces {
        namespace.hosts = namespace.hosts.as_ref().map(|hosts| host_list(state, hosts)).transpose()?;
    }
    fill_subsystem(&mut subsystem);
    if !subsystem.listeners.is_empty() {
        state.transport.get_or_insert_default();
    }
    state.subsystems.insert(subsystem.nqn.clone(), subsystem);
    Ok(())
}

/// Sets a LUN's identity. Refuses this if a host can already know the LUN by another identity.
pub(super) fn identify(
    state: &mut State,
    nqn: &str,
    name: &str,
    uuid: Option<uuid::Uuid>,
    nguid: Option<&str>,
) -> Result<(), Refusal> {
    let Some(lun) = state.luns.get(name) else { return Err(absent("LUN", name)) };
    let mut wanted = lun.clone();
    wanted.uuid = uuid.or(wanted.uuid);
    wanted.nguid = nguid.map(str::to_ascii_lowercase).or(wanted.nguid);
    wanted.check()?;
    if wanted == *lun {
        return Ok(());
    }
    if lun.pool.is_some() {
        return refuse(
            Fault::Invalid,
            format!("LUN `{name}` has its UUID and NGUID from its pool: they can't change"),
        );
    }
    if state.exports(name).any(|(s, _)| s.nqn != nqn) {
        return refuse(
            Fault::InUse,
            format!("LUN `{name}` is already shown in another subsystem with another UUID or NGUID"),
        );
    }
    unique_identity(state, &wanted)?;
    state.luns.insert(name.into(), wanted);
    Ok(())
}

pub(super) fn namespace_add(
    state: &mut State,
    nqn: &str,
    nsid: Option<u32>,
    lun: &str,
    hosts: Option<Vec<String>>,
) -> Result<(), Refusal> {
    let subsystem = subsystem_mut(state, nqn)?;
    if let Some(ns) = subsystem.namespaces.iter().find(|ns| ns.lun == lun) {
        let what = format!("LUN `{lun}` is already namespace {} of subsystem `{nqn}`", ns.nsid);
        return refuse(Fault::Exists, what);
    }
    let used = |nsid| subsystem.namespaces.iter().any(|ns| ns.nsid == nsid);
    let nsid = match nsid {
        Some(nsid) if used(nsid) => {
            return refuse(Fault::Exists, format!("subsystem `{nqn}` already has a namespace {nsid}"));
        }
        Some(nsid) => nsid,
        None => (1..=subsystem.max_nsid()).find(|&nsid| !used(nsid)).ok_or_else(|| {
            Refusal::new(
                Fault::NoSpace,
                format!(
                    "subsystem `{nqn}` already has its most namespaces (max_namespaces): remove one first"
                ),
            )
        })?,
    };
    subsystem.namespaces.push(Namespace { nsid, lun: lun.into(), hosts });
    subsystem.namespaces.sort_by_key(|ns| ns.nsid);
    Ok(subsystem.check()?)
}

pub(super) fn host_list(state: &State, hosts: &[String]) -> Result<Vec<String>, Refusal> {
    let mut list = Vec::new();
    for host in hosts {
        let nqn = host_of(state, host)?;
        if !list.contains(&nqn) {
            list.push(nqn);
        }
    }
    Ok(list)
}

pub(super) fn host_of(state: &State, host: &str) -> Result<String, Refusal> {
    let nqn = state.host_nqn(host);
    check_host_nqn(nqn).map_err(|e| Refusal::new(Fault::Invalid, format!("host: {e}")))?;
    Ok(nqn.into())
}

/// Refuses a state in which the NQN of a listed host is also the name of another host. In the document of such a state, the NQN
/// on the list would mean the other host.
pub(super) fn hosts_told_apart<'a>(state: &'a State) -> Result<(), Refusal> {
    let of_namespaces = |s: &'a Subsystem| s.namespaces.iter().filter_map(|ns| ns.hosts.as_ref()).flatten();
    let mut listed = state.subsystems.values().flat_map(|s| s.hosts.iter().chain(of_namespaces(s)));
    match listed.find(|listed| state.host_nqn(listed) != listed.as_str()) {
        Some(listed) => refuse(
            Fault::Exists,
            format!(
                "host `{listed}`: a list of hosts has this text as an NQN: remove the entry with `trefoil \
                 host remove`, or use another name"
            ),
        ),
        None => Ok(()),
    }
}

/// Returns the host list of namespace `nsid`, or the subsystem's list if `nsid` is `None`. A namespace without a list gets an
/// empty list.
pub(super) fn list_mut<'a>(
    state: &'a mut State,
    nqn: &str,
    nsid: Option<u32>,
) -> Result<&'a mut Vec<String>, Refusal> {
    let subsystem = subsystem_mut(state, nqn)?;
    let Some(nsid) = nsid else { return Ok(&mut subsystem.hosts) };
    let namespace = subsystem.namespaces.iter_mut().find(|ns| ns.nsid == nsid);
    let missing = || Refusal::new(Fault::NotFound, format!("subsystem `{nqn}` has no namespace {nsid}"));
    Ok(namespace.ok_or_else(missing)?.hosts.get_or_insert_default())
}

pub(super) fn host_allow(state: &mut State, nqn: &str, nsid: Option<u32>, host: &str) -> Result<(), Refusal> {
    let host = host_of(state, host)?;
    let list = list_mut(state, nqn, nsid)?;
    if list.contains(&host) {
        return refuse(Fault::Exists, format!("host `{host}` is already on the list of subsystem `{nqn}`"));
    }
    list.push(host);
    Ok(())
}

pub(super) fn host_revoke(
    state: &mut State,
    nqn: &str,
    nsid: Option<u32>,
    host: &str,
) -> Result<(), Refusal> {
    let host = state.host_nqn(host).to_owned();
    let subsystem = subsystem_mut(state, nqn)?;
    let allow_any_host = subsystem.allow_any_host;
    let all_see = subsystem.namespaces.iter().any(|ns| Some(ns.nsid) == nsid && ns.hosts.is_none());
    let list = list_mut(state, nqn, nsid)?;
    let before = list.len();
    list.retain(|h| *h != host);
    if list.len() < before {
        return Ok(());
    }
    let why = match nsid {
        Some(nsid) if all_see => {
            format!(": namespace {nsid} has no list, and all hosts that may connect see the namespace")
        }
        None if allow_any_host => {
            format!(
                ", and any host may connect: to stop this, use `trefoil subsystem allow-any-host {nqn} false`"
            )
        }
        _ => String::new(),
    };
    refuse(Fault::NotFound, format!("host `{host}` is not on the list of subsystem `{nqn}`{why}"))
}
