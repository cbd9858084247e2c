//! Plans a change: computes the state after the change. A plan does no I/O and doesn't carry out the change.
//!
//! A plan is checked twice. This module checks the objects that the change names. Then
//! [`Config::check`](trefoil_config::Config::check) checks the whole new state as a document, with its limits and references.

mod document;
mod exports;
mod storage;
#[cfg(test)]
mod tests;

use crate::action::Change;
use crate::error::{Fault, Refusal};
use crate::state::State;
use document::document;
pub use document::preview;
use exports::{
    host_allow, host_list, host_revoke, hosts_told_apart, identify, listeners_mut, namespace_add,
    subsystem_create, subsystem_mut,
};
use std::collections::BTreeMap;
use storage::{backend_create, bdev_delete, lun_create, lun_remove, unused_backend, whole};
use trefoil_config::{Gateway, check_listeners};

/// Returns the state after `change`.
///
/// # Errors
/// The change isn't legal in this state; see [`Change`].
pub fn plan(now: &State, gateway: &Gateway, change: &Change) -> Result<State, Refusal> {
    let mut next = now.clone();
    apply(&mut next, gateway, change)?;
    check_whole(&next, gateway)?;
    Ok(next)
}

/// Checks that a state as a whole can be served. Every new state passes this check. A change is checked before its objects are
/// brought up. The change is checked again after that, because the pools and arrays that were brought up can add to the state.
/// The state of each start is checked too.
///
/// # Errors
/// The document of this state would be refused.
pub fn check_whole(state: &State, gateway: &Gateway) -> Result<(), Refusal> {
    hosts_told_apart(state)?;
    match state.to_config(gateway).check().into_iter().next() {
        Some(problem) => Err(Refusal::new(Fault::Invalid, problem.to_string())),
        None => Ok(()),
    }
}

fn refuse<T>(fault: Fault, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(fault, message))
}

fn absent(what: &str, name: &str) -> Refusal {
    Refusal::new(Fault::NotFound, format!("there is no {what} `{name}`"))
}

fn free<T>(map: &BTreeMap<String, T>, what: &str, name: &str) -> Result<(), Refusal> {
    if map.contains_key(name) {
        return refuse(Fault::Exists, format!("there is already a {what} `{name}`"));
    }
    Ok(())
}

/// Carries out `change` on `state`. Doesn't check the state as a whole.
///
/// # Errors
/// The change isn't legal in this state. `state` may then be half changed.
pub fn apply(state: &mut State, gateway: &Gateway, change: &Change) -> Result<(), Refusal> {
    match change {
        Change::BackendCreate(backend) => backend_create(state, backend)?,
        Change::BackendDelete { name } => {
            unused_backend(state, name)?;
            state.backends.remove(name).ok_or_else(|| absent("backend", name))?;
        }
        Change::PoolCreate { pool, .. } => {
            pool.check()?;
            free(&state.pools, "pool", &pool.name)?;
            for backend in &pool.backends {
                if !state.backends.contains_key(backend) {
                    return Err(absent("backend", backend));
                }
                unused_backend(state, backend)?;
            }
            state.pools.insert(pool.name.clone(), pool.clone());
        }
        Change::PoolDelete { name, delete_data, force } => {
            let luns = state.luns.values().filter(|lun| lun.pool.as_ref() == Some(name));
            let luns: Vec<String> = luns.map(|lun| lun.name.clone()).collect();
            if let Some(lun) = luns.first().filter(|_| !delete_data) {
                let what = format!("pool `{name}` holds LUN `{lun}`: delete its LUNs, or use --delete-data");
                return refuse(Fault::InUse, what);
            }
            luns.iter().try_for_each(|lun| lun_remove(state, lun, *force))?;
            state.pools.remove(name).ok_or_else(|| absent("pool", name))?;
        }
        Change::LunCreate(lun) => lun_create(state, lun)?,
        Change::LunDelete { name, force } => {
            let lun = state.luns.get(name).ok_or_else(|| absent("LUN", name))?;
            if lun.backend.is_some() {
                let what = format!(
                    "LUN `{name}` presents a whole backend, whose data the gateway doesn't delete: use `trefoil lun release`"
                );
                return refuse(Fault::Invalid, what);
            }
            lun_remove(state, name, *force)?;
        }
        Change::LunRelease { name, force } => {
            let lun = state.luns.get(name).ok_or_else(|| absent("LUN", name))?;
            if lun.pool.is_some() {
                return refuse(
                    Fault::Invalid,
                    format!("LUN `{name}` was carved from a pool: use `trefoil lun delete`"),
                );
            }
            lun_remove(state, name, *force)?;
        }
        Change::LunGrow { name, size } => {
            let lun = state.luns.get_mut(name).ok_or_else(|| absent("LUN", name))?;
            match lun.size {
                None => refuse(
                    Fault::Invalid,
                    format!(
                        "LUN `{name}` presents a whole backend and has the backend's size: it can't grow by itself"
                    ),
                ),
                Some(now) if *size <= now => refuse(
                    Fault::Invalid,
                    format!("size: {size} is not larger than the {now} that LUN `{name}` already has"),
                ),
                Some(_) => {
                    lun.size = Some(*size);
                    Ok(lun.check()?)
                }
            }?;
        }
        Change::SubsystemCreate(subsystem) => subsystem_create(state, subsystem)?,
        Change::SubsystemDelete { nqn, .. } => {
            state.subsystems.remove(nqn).ok_or_else(|| absent("subsystem", nqn))?;
        }
        Change::NamespaceAdd { nqn, nsid, lun, hosts, uuid, nguid } => {
            let hosts = hosts.as_ref().map(|hosts| host_list(state, hosts)).transpose()?;
            identify(state, nqn, lun, *uuid, nguid.as_deref())?;
            namespace_add(state, nqn, *nsid, lun, hosts)?;
        }
        Change::NamespaceRemove { nqn, nsid } => {
            let subsystem = subsystem_mut(state, nqn)?;
            let before = subsystem.namespaces.len();
            subsystem.namespaces.retain(|ns| ns.nsid != *nsid);
            if subsystem.namespaces.len() == before {
                return refuse(Fault::NotFound, format!("subsystem `{nqn}` has no namespace {nsid}"));
            }
        }
        Change::ListenerAdd { nqn, listen } => {
            let listeners = listeners_mut(state, nqn)?;
            if listeners.contains(listen) {
                return refuse(Fault::Exists, format!("subsystem `{nqn}` is already offered on {listen}"));
            }
            listeners.push(*listen);
            check_listeners(listeners)?;
            if state.subsystems.contains_key(nqn) {
                state.transport.get_or_insert_default();
            }
        }
        Change::ListenerRemove { nqn, listen } => {
            let listeners = listeners_mut(state, nqn)?;
            let before = listeners.len();
            listeners.retain(|l| l != listen);
            if listeners.len() == before {
                return refuse(Fault::NotFound, format!("subsystem `{nqn}` is not offered on {listen}"));
            }
        }
        Change::HostAllow { nqn, nsid, host, .. } => host_allow(state, nqn, *nsid, host)?,
        Change::HostRevoke { nqn, nsid, host } => host_revoke(state, nqn, *nsid, host)?,
        Change::AllowAnyHost { nqn, allow, .. } => subsystem_mut(state, nqn)?.allow_any_host = *allow,
        Change::HostCreate(host) => {
            host.check()?;
            free(&state.hosts, "host", &host.name)?;
            if let Some(other) = state.hosts.values().find(|other| other.nqn == host.nqn) {
                return refuse(
                    Fault::Exists,
                    format!("host `{}` already has NQN `{}`", other.name, host.nqn),
                );
            }
            state.hosts.insert(host.name.clone(), host.clone());
        }
        Change::HostDelete { name } => {
            state.hosts.remove(name).ok_or_else(|| absent("host", name))?;
        }
        Change::TransportCreate(transport) => {
            if state.transport.is_some() {
                return refuse(Fault::Exists, "transport type `TCP` already exists");
            }
            state.transport = Some(transport.clone());
        }
        Change::BdevCreate { backend, uuid } => {
            backend_create(state, backend)?;
            lun_create(state, &whole(backend.name.clone(), *uuid))?;
        }
        Change::BdevDelete { name } => bdev_delete(state, name)?,
        Change::Attach { backends, whole: with_luns } => {
            for backend in backends {
                backend_create(state, backend)?;
                if *with_luns {
                    lun_create(state, &whole(backend.name.clone(), None))?;
                }
            }
        }
        Change::Detach { names } => names.iter().try_for_each(|name| bdev_delete(state, name))?,
        Change::Apply { config, .. } => document(state, gateway, config)?,
        Change::Load(changes) => changes.iter().try_for_each(|change| apply(state, gateway, change))?,
    }
    Ok(())
}
