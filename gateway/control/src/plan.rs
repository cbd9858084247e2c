//! Plans a change: computes the state to which the change leads. A plan does no I/O and carries nothing out.
//!
//! A plan is checked twice: here by the objects that it names, and then as a whole document by
//! [`Config::check`](trefoil_config::Config::check), which knows limits and references.

use crate::action::Change;
use crate::error::{Fault, Refusal};
use crate::state::{State, fill_lun, fill_subsystem};
use trefoil_config::{
    Address, Backend, Config, Gateway, Lun, Namespace, Subsystem, check_host_nqn, check_listeners,
};

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

/// Checks that a state as a whole can be served. Every way to a state ends here. A change is checked before anything is
/// brought up, and again with the additions of the pools and arrays that were brought up. The states of a first start and of
/// a later start are checked too.
///
/// # Errors
/// A document of this state would be refused.
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

fn free<T>(map: &std::collections::BTreeMap<String, T>, what: &str, name: &str) -> Result<(), Refusal> {
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

fn backend_create(state: &mut State, backend: &Backend) -> Result<(), Refusal> {
    backend.check()?;
    free(&state.backends, "backend", &backend.name)?;
    state.backends.insert(backend.name.clone(), backend.clone());
    Ok(())
}

fn bdev_delete(state: &mut State, name: &str) -> Result<(), Refusal> {
    let lun = state.luns.get(name).ok_or_else(|| absent("bdev", name))?;
    let Some(backend) = lun.backend.clone() else {
        return refuse(
            Fault::Invalid,
            format!("LUN `{name}` was carved from a pool: use `trefoil lun delete`"),
        );
    };
    if backend != name {
        return refuse(
            Fault::Invalid,
            format!("LUN `{name}` presents backend `{backend}`: use `trefoil lun release`"),
        );
    }
    lun_remove(state, name, true)?;
    state.backends.remove(&backend);
    Ok(())
}

/// Returns a LUN that presents the backend of its own name.
fn whole(name: String, uuid: Option<uuid::Uuid>) -> Lun {
    Lun {
        backend: Some(name.clone()),
        name,
        pool: None,
        size: None,
        block_bytes: None,
        uuid,
        nguid: None,
        read_only: false,
    }
}

fn unused_backend(state: &State, name: &str) -> Result<(), Refusal> {
    if let Some(pool) = state.pools.values().find(|p| p.backends.iter().any(|b| b == name)) {
        return refuse(Fault::InUse, format!("backend `{name}` belongs to pool `{}`", pool.name));
    }
    if let Some(lun) = state.luns.values().find(|l| l.backend.as_deref() == Some(name)) {
        return refuse(Fault::InUse, format!("backend `{name}` is presented whole by LUN `{}`", lun.name));
    }
    Ok(())
}

fn lun_create(state: &mut State, lun: &Lun) -> Result<(), Refusal> {
    lun.check()?;
    if lun.uuid.is_some() && state.luns.get(&lun.name).is_some_and(|there| is_same(there, lun)) {
        // A replayed configuration meets the LUN in its pool: the LUN came when the pool was opened.
        return Ok(());
    }
    free(&state.luns, "LUN", &lun.name)?;
    if let Some(pool) = lun.pool.as_ref().filter(|p| !state.pools.contains_key(*p)) {
        return Err(absent("pool", pool));
    }
    if let Some(backend) = &lun.backend {
        if !state.backends.contains_key(backend) {
            return Err(absent("backend", backend));
        }
        unused_backend(state, backend)?;
    }
    let mut lun = lun.clone();
    fill_lun(&mut lun);
    unique_identity(state, &lun)?;
    state.luns.insert(lun.name.clone(), lun);
    Ok(())
}

/// Returns whether the existing LUN `there` matches the request `lun`.
fn is_same(there: &Lun, lun: &Lun) -> bool {
    let mut wanted = lun.clone();
    fill_lun(&mut wanted);
    wanted.block_bytes = lun.block_bytes.or(there.block_bytes);
    wanted == *there
}

fn unique_identity(state: &State, lun: &Lun) -> Result<(), Refusal> {
    match state.twin(lun) {
        Some(twin) => refuse(Fault::Exists, format!("LUN `{}` already has this UUID or NGUID", twin.name)),
        None => Ok(()),
    }
}

fn lun_remove(state: &mut State, name: &str, force: bool) -> Result<(), Refusal> {
    let shown = state.exports(name).next().map(|(s, nsid)| (s.nqn.clone(), nsid));
    if let Some((nqn, nsid)) = shown.filter(|_| !force) {
        let what = format!(
            "LUN `{name}` is namespace {nsid} of subsystem `{nqn}`: remove the namespace first, or use --force"
        );
        return refuse(Fault::InUse, what);
    }
    state.subsystems.values_mut().for_each(|s| s.namespaces.retain(|ns| ns.lun != name));
    state.luns.remove(name);
    Ok(())
}

fn subsystem_mut<'a>(state: &'a mut State, nqn: &str) -> Result<&'a mut Subsystem, Refusal> {
    state.subsystems.get_mut(nqn).ok_or_else(|| absent("subsystem", nqn))
}

fn listeners_mut<'a>(state: &'a mut State, nqn: &str) -> Result<&'a mut Vec<Address>, Refusal> {
    state.listeners_of_mut(nqn).ok_or_else(|| absent("subsystem", nqn))
}

fn subsystem_create(state: &mut State, subsystem: &Subsystem) -> Result<(), Refusal> {
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

/// Sets a LUN's identity, as long as no host can know the LUN by another identity.
fn identify(
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

fn namespace_add(
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

fn host_list(state: &State, hosts: &[String]) -> Result<Vec<String>, Refusal> {
    let mut list = Vec::new();
    for host in hosts {
        let nqn = host_of(state, host)?;
        if !list.contains(&nqn) {
            list.push(nqn);
        }
    }
    Ok(list)
}

fn host_of(state: &State, host: &str) -> Result<String, Refusal> {
    let nqn = state.host_nqn(host);
    check_host_nqn(nqn).map_err(|e| Refusal::new(Fault::Invalid, format!("host: {e}")))?;
    Ok(nqn.into())
}

/// Refuses a state in which the NQN of a listed host is the name of another host: in the document of that state, the NQN
/// would mean the other host.
fn hosts_told_apart<'a>(state: &'a State) -> Result<(), Refusal> {
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

/// Returns the host list that `nsid` means. A namespace without a list of its own gets an empty list.
fn list_mut<'a>(state: &'a mut State, nqn: &str, nsid: Option<u32>) -> Result<&'a mut Vec<String>, Refusal> {
    let subsystem = subsystem_mut(state, nqn)?;
    let Some(nsid) = nsid else { return Ok(&mut subsystem.hosts) };
    let namespace = subsystem.namespaces.iter_mut().find(|ns| ns.nsid == nsid);
    let missing = || Refusal::new(Fault::NotFound, format!("subsystem `{nqn}` has no namespace {nsid}"));
    Ok(namespace.ok_or_else(missing)?.hosts.get_or_insert_default())
}

fn host_allow(state: &mut State, nqn: &str, nsid: Option<u32>, host: &str) -> Result<(), Refusal> {
    let host = host_of(state, host)?;
    let list = list_mut(state, nqn, nsid)?;
    if list.contains(&host) {
        return refuse(Fault::Exists, format!("host `{host}` is already on the list of subsystem `{nqn}`"));
    }
    list.push(host);
    Ok(())
}

fn host_revoke(state: &mut State, nqn: &str, nsid: Option<u32>, host: &str) -> Result<(), Refusal> {
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

/// Returns the state that a document asks for.
fn wanted(now: &State, gateway: &Gateway, config: &Config) -> Result<State, Refusal> {
    let config = Config { gateway: gateway.clone(), ..config.clone() };
    match config.check().into_iter().next() {
        Some(problem) => refuse(Fault::Invalid, problem.to_string()),
        None => Ok(State::from_config(&config, now)),
    }
}

/// Moves `state` to the state that a document asks for. Losses on the way are judged apart: [`crate::loss`].
fn document(state: &mut State, gateway: &Gateway, config: &Config) -> Result<(), Refusal> {
    let next = wanted(state, gateway, config)?;
    match in_place(state, &next).into_iter().next() {
        Some(refusal) => Err(refusal),
        None => {
            *state = next;
            Ok(())
        }
    }
}

/// Returns the state after `change`, for comparison. Unlike [`plan`], it also accepts a document with changes that can't be
/// made in place. Each such change yields a refusal.
///
/// # Errors
/// The errors of [`plan`], except for those refusals.
pub fn preview(now: &State, gateway: &Gateway, change: &Change) -> Result<(State, Vec<Refusal>), Refusal> {
    let Change::Apply { config, .. } = change else { return Ok((plan(now, gateway, change)?, Vec::new())) };
    let next = wanted(now, gateway, config)?;
    check_whole(&next, gateway)?;
    let refusals = in_place(now, &next);
    Ok((next, refusals))
}

/// Returns the changes that a document can't make to existing objects, and what to do instead.
fn in_place(now: &State, next: &State) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut refuse = |fault, what: String| refusals.push(Refusal::new(fault, what));
    let backends =
        now.backends.iter().filter(|(name, old)| next.backends.get(*name).is_some_and(|new| new != *old));
    for (name, _) in backends {
        refuse(Fault::Invalid, format!("backend `{name}` can't be changed in place: give it a new name"));
    }
    let pools = now.pools.iter().filter(|(name, old)| next.pools.get(*name).is_some_and(|new| new != *old));
    for (name, _) in pools {
        refuse(Fault::Invalid, format!("pool `{name}` can't be changed in place: give it a new name"));
    }
    for pool in next.pools.values().filter(|pool| !now.pools.contains_key(&pool.name)) {
        // The new pool's layout would be written before the other changes are known to succeed, and while hosts still write
        // to the old data.
        for in_use in pool.backends.iter().filter_map(|backend| unused_backend(now, backend).err()) {
            let what =
                format!("pool `{}`: {}; apply a document without that use first", pool.name, in_use.message);
            refuse(in_use.fault, what);
        }
    }
    for (name, lun) in &now.luns {
        match next.luns.get(name) {
            Some(new) if new.size < lun.size => refuse(Fault::Invalid, shrinks(lun, new)),
            Some(new) if (Lun { size: lun.size, read_only: lun.read_only, ..new.clone() }) != *lun => {
                refuse(
                    Fault::Invalid,
                    format!("LUN `{name}`: only `size` and `read_only` can change in place"),
                );
            }
            Some(_) => {}
            // Deletion of the old LUN would delete the data of the LUN that has its identity.
            None => {
                let twin = next.luns.values().find(|new| lun.pool.is_some() && new.uuid == lun.uuid);
                if let Some(twin) = twin {
                    let twin = &twin.name;
                    refuse(
                        Fault::Invalid,
                        format!(
                            "LUN `{twin}` has the identity of LUN `{name}`: a pool's LUN can't be renamed or moved"
                        ),
                    );
                }
            }
        }
    }
    refusals
}

fn shrinks(lun: &Lun, new: &Lun) -> String {
    let name = &lun.name;
    match (lun.size, new.size) {
        (Some(has), Some(asked)) => {
            format!(
                "LUN `{name}` has {has} and can't shrink to {asked}: write `size = \"{has}\"`, or delete the LUN first"
            )
        }
        _ => format!("LUN `{name}` can't shrink"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notes;

    const NQN: &str = "nqn.2026-01.org.example:s";
    const WEB: &str = "nqn.2026-01.org.example:web";
    const TEXT: &str = r#"
        [[backend]]
        name = "a"
        type = "null"
        size = "1MiB"
        [[backend]]
        name = "b"
        type = "null"
        size = "1MiB"
        [[lun]]
        name = "l"
        backend = "a"
        uuid = "00000000-0000-4000-8000-00000000000a"
        [[host]]
        name = "web"
        nqn = "nqn.2026-01.org.example:web"
        [[subsystem]]
        nqn = "nqn.2026-01.org.example:s"
        hosts = ["web", "nqn.2026-01.org.example:web"]
        listeners = ["[::1]:4420", "[0:0:0:0:0:0:0:1]:4420"]
        namespaces = [{ nsid = 1, lun = "l", hosts = ["nqn.2026-01.org.example:web", "web"] }]
    "#;

    fn state() -> State {
        State::from_config(&Config::parse("t", TEXT).expect("sound"), &State::default())
    }

    fn change(now: &State, change: &Change) -> (State, Vec<String>) {
        let gateway = Gateway::default();
        let next = plan(now, &gateway, change).unwrap_or_else(|e| panic!("{change:?}: {e}"));
        let notes = notes::of_change(change, now, &next, &gateway);
        (next, notes)
    }

    fn refused(now: &State, change: &Change) -> Refusal {
        plan(now, &Gateway::default(), change).expect_err("a refusal")
    }

    fn revoke(nsid: Option<u32>, host: &str) -> Change {
        Change::HostRevoke { nqn: NQN.into(), nsid, host: host.into() }
    }

    #[test]
    fn a_revoked_host_is_gone_by_whichever_of_its_names() {
        for host in ["web", WEB] {
            let (next, notes) = change(&state(), &revoke(None, host));
            assert!(next.subsystems[NQN].hosts.is_empty(), "{host}");
            assert!(
                notes.len() == 1 && notes[0].contains("stays on the lists of these namespaces"),
                "{notes:?}"
            );
            let (next, notes) = change(&next, &revoke(Some(1), host));
            assert_eq!((next.subsystems[NQN].namespaces[0].hosts.as_deref(), notes), (Some(&[][..]), vec![]));
            assert_eq!(refused(&next, &revoke(None, host)).fault, Fault::NotFound);
        }
        let listen = "[::1]:4420".parse().expect("an address");
        let remove = Change::ListenerRemove { nqn: NQN.into(), listen };
        let (next, notes) = change(&state(), &remove);
        assert!(next.listeners().is_empty() && notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn a_revoked_host_that_is_not_gone_is_told() {
        let mut open = state();
        open.subsystems.values_mut().for_each(|s| {
            s.allow_any_host = true;
            s.namespaces[0].hosts = None;
        });
        let (next, notes) = change(&open, &revoke(None, "web"));
        let told = format!("host `{WEB}` may still connect to subsystem `{NQN}`, as any host may");
        assert!(notes.len() == 1 && notes[0].starts_with(&told), "{notes:?}");
        for (nsid, why) in
            [(None, "any host may connect"), (Some(1), "all hosts that may connect see the namespace")]
        {
            let refusal = refused(&next, &revoke(nsid, "web"));
            assert!(refusal.fault == Fault::NotFound && refusal.message.contains(why), "{refusal}");
        }
        let (_, notes) = change(&state(), &Change::HostDelete { name: "web".into() });
        let told =
            format!("the name `web` is removed; host `{WEB}` stays on the lists of subsystems `{NQN}`");
        assert_eq!(notes, [told]);
        let other = Subsystem {
            listeners: state().subsystems[NQN].listeners.clone(),
            ..Subsystem::new("nqn.2026-01.org.example:t")
        };
        let (both, _) = change(&state(), &Change::SubsystemCreate(other));
        let listen = "[::1]:4420".parse().expect("an address");
        let (_, notes) = change(&both, &Change::ListenerRemove { nqn: NQN.into(), listen });
        assert!(
            notes.len() == 1 && notes[0].contains("stays open for subsystem `nqn.2026-01.org.example:t`"),
            "{notes:?}"
        );
    }

    #[test]
    fn a_host_that_sees_a_namespace_and_may_not_connect_is_told() {
        let allow = |host: &str| Change::HostAllow {
            nqn: NQN.into(),
            nsid: Some(1),
            host: host.into(),
            force: false,
        };
        let (_, notes) = change(&state(), &allow("nqn.2026-01.org.example:mail"));
        assert!(notes.len() == 1 && notes[0].contains("mail` may not connect"), "{notes:?}");
        let (mut open, _) = change(&state(), &revoke(Some(1), "web"));
        assert_eq!(change(&open, &allow("web")).1, Vec::<String>::new());
        open.subsystems.values_mut().for_each(|s| s.allow_any_host = true);
        assert_eq!(change(&open, &allow("nqn.2026-01.org.example:mail")).1, Vec::<String>::new());
    }

    #[test]
    fn a_document_that_is_refused_for_what_is_there_is_compared_all_the_same() {
        let now = state();
        let text = TEXT.replacen("1MiB", "2MiB", 2).replace("name = \"web\"", "name = \"mail\"");
        let text = text.replace("\"web\"", "\"mail\"");
        let config = Box::new(Config::parse("t", &text).expect("sound"));
        let apply = Change::Apply { config, permit: Default::default() };
        let (next, refusals) = preview(&now, &Gateway::default(), &apply).expect("a comparison");
        assert_eq!(next.hosts.keys().collect::<Vec<_>>(), ["mail"]);
        let told: Vec<&str> = refusals.iter().map(|refusal| refusal.message.as_str()).collect();
        let refusal = |name| format!("backend `{name}` can't be changed in place: give it a new name");
        assert_eq!(told, [refusal("a"), refusal("b")]);
        assert_eq!(refused(&now, &apply), refusals[0]);
    }

    #[test]
    fn every_way_in_refuses_an_identity_that_is_taken_or_nil() {
        let uuid = |n: u128| Some(uuid::Uuid::from_u128(n));
        let own = state().luns["l"].uuid;
        let import = |uuid| Lun { uuid, ..whole("b".into(), None) };
        let nguid =
            Lun { nguid: own.map(|uuid| uuid.simple().to_string().to_uppercase()), ..import(uuid(7)) };
        let document = |uuid| {
            // The document has not been checked by anybody yet.
            let mut config = Config::parse("t", TEXT).expect("sound");
            config.luns.push(import(uuid));
            Box::new(config)
        };
        let (with_b, _) = change(&state(), &Change::LunCreate(import(uuid(8))));
        let add = |uuid| Change::NamespaceAdd {
            nqn: NQN.into(),
            nsid: None,
            lun: "b".into(),
            hosts: None,
            uuid,
            nguid: None,
        };
        let backend = Backend {
            size: Some(trefoil_config::Bytes(1 << 20)),
            ..Backend::new("c", trefoil_config::BackendType::Null)
        };
        let bdev = |uuid| Change::BdevCreate { backend: backend.clone(), uuid };
        for (taken, id) in [(true, own), (false, uuid(0))] {
            for (now, change) in [
                (state(), Change::LunCreate(import(id))),
                (with_b.clone(), add(id)),
                (state(), bdev(id)),
                (state(), Change::Apply { config: document(id), permit: Default::default() }),
            ] {
                let refusal = refused(&now, &change);
                let told = if taken { "LUN `l` already has this" } else { "of zeros identifies nothing" };
                assert!(refusal.message.contains(told), "{change:?}: {refusal}");
            }
        }
        assert!(
            refused(&state(), &Change::LunCreate(nguid))
                .message
                .contains("LUN `l` already has this UUID or NGUID")
        );
    }

    #[test]
    fn what_a_change_makes_look_like_one_is_told_once() {
        let other = Subsystem {
            serial: state().subsystems[NQN].serial.clone(),
            ..Subsystem::new("nqn.2026-01.org.example:t")
        };
        let (next, notes) = change(&state(), &Change::SubsystemCreate(other));
        assert!(
            notes.len() == 1
                && notes[0].starts_with("subsystems `")
                && notes[0].contains("the same serial `"),
            "{notes:?}"
        );
        let add = Change::NamespaceAdd {
            nqn: "nqn.2026-01.org.example:t".into(),
            nsid: None,
            lun: "l".into(),
            hosts: None,
            uuid: None,
            nguid: None,
        };
        let (_, notes) = change(&next, &add);
        assert!(notes.len() == 1 && notes[0].starts_with("LUN `l` is namespace 1 of subsystem"), "{notes:?}");
    }
}
