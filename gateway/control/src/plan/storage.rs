//! Changes of backends and LUNs.

use super::{absent, free, refuse};
use crate::error::{Fault, Refusal};
use crate::state::{State, fill_lun};
use trefoil_config::{Backend, Lun};

pub(super) fn backend_create(state: &mut State, backend: &Backend) -> Result<(), Refusal> {
    backend.check()?;
    free(&state.backends, "backend", &backend.name)?;
    state.backends.insert(backend.name.clone(), backend.clone());
    Ok(())
}

pub(super) fn bdev_delete(state: &mut State, name: &str) -> Result<(), Refusal> {
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

/// Returns a LUN that presents the whole backend of the same name.
pub(super) fn whole(name: String, uuid: Option<uuid::Uuid>) -> Lun {
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

pub(super) fn unused_backend(state: &State, name: &str) -> Result<(), Refusal> {
    if let Some(pool) = state.pools.values().find(|p| p.backends.iter().any(|b| b == name)) {
        return refuse(Fault::InUse, format!("backend `{name}` belongs to pool `{}`", pool.name));
    }
    if let Some(lun) = state.luns.values().find(|l| l.backend.as_deref() == Some(name)) {
        return refuse(
            Fault::InUse,
            format!("backend `{name}` is presented whole by LUN `{}`: release the LUN first", lun.name),
        );
    }
    Ok(())
}

pub(super) fn lun_create(state: &mut State, lun: &Lun) -> Result<(), Refusal> {
    lun.check()?;
    if lun.uuid.is_some() && state.luns.get(&lun.name).is_some_and(|there| is_same(there, lun)) {
        // The request repeats an existing LUN, as in the replay of a saved configuration. There the pool already holds the LUN,
        // and the LUN was added to the state when the pool was opened.
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

/// Returns whether the existing LUN `there` is the LUN that the request `lun` describes.
pub(super) fn is_same(there: &Lun, lun: &Lun) -> bool {
    let mut wanted = lun.clone();
    fill_lun(&mut wanted);
    wanted.block_bytes = lun.block_bytes.or(there.block_bytes);
    wanted == *there
}

pub(super) fn unique_identity(state: &State, lun: &Lun) -> Result<(), Refusal> {
    match state.twin(lun) {
        Some(twin) => refuse(Fault::Exists, format!("LUN `{}` already has this UUID or NGUID", twin.name)),
        None => Ok(()),
    }
}

pub(super) fn lun_remove(state: &mut State, name: &str, force: bool) -> Result<(), Refusal> {
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
