//! Pools: the engine's side. The layout of a pool is on the pool's backends.
//!
//! The pool's layout is authoritative for the pool's LUNs, and the store has only a copy. When a pool is opened, the copy is
//! updated from the pool ([`Pools::adopt_into`]). The pool also has a record of the subsystems that show its LUNs, and of their
//! hosts ([`crate::exports`]). A lost database is rebuilt from this record.
//!
//! This file opens pools, and reports the state of open pools.

mod copies;
mod create;
mod luns;
mod through;

use super::backends::Live;
use super::cores::Cores;
use super::topology::Placed;
use super::view::PoolView;
use crate::error::{Fault, Refusal};
pub use luns::check_import;
use std::collections::BTreeMap;
use through::Through;
use trefoil_config::Lun;
use trefoil_storage::pool::{BackendInfo, Found, Frozen, Pool, open_pool, scan};
use uuid::Uuid;

/// All pools that are up.
#[derive(Debug, Default)]
pub struct Pools {
    open: BTreeMap<String, Pool>,
}

type Lives = BTreeMap<String, Live>;

fn info(cores: &Cores, lives: &Lives, name: &str) -> Result<BackendInfo, Refusal> {
    let live =
        lives.get(name).ok_or_else(|| Refusal::new(Fault::Device, format!("backend `{name}` is down")))?;
    // If an array has just reported its size, the engine may not have handled the report yet. So the report is used here.
    let told = cores.reports.told_geometry(live.id).filter(|_| live.len_bytes == 0);
    let (block_bytes, len_bytes) = told.unwrap_or((live.block_bytes, live.len_bytes));
    Ok(BackendInfo { id: live.id, name: name.into(), len_bytes, block_bytes })
}

/// Returns the [`BackendInfo`] of a backend, if the backend can be used now.
fn ready(cores: &Cores, lives: &Lives, name: &str) -> Result<BackendInfo, Refusal> {
    let backend = info(cores, lives, name)?;
    match cores.reports.usable(backend.id) {
        Err(why) => Err(Refusal::new(Fault::Device, format!("backend `{name}` is lost: {why}"))),
        Ok(()) => Ok(backend),
    }
}

/// Describes the findings on a backend, for a person.
fn tell(backend: &str, found: &Found) -> String {
    match found {
        Found::Member(label) => {
            format!("{backend} belongs to pool {} ({})", label.pool_name, label.pool_uuid)
        }
        Found::Unfinished(label) => {
            format!("{backend} has a label of pool {}, whose creation was cut short", label.pool_name)
        }
        Found::Free => format!("{backend} has no label"),
        Found::Damaged(damage) => format!("{backend} has a damaged label: {damage}"),
        Found::Failed(error) => error.to_string(),
    }
}

impl Pools {
    /// Opens a pool that the store has.
    ///
    /// # Errors
    /// The pool isn't on its backends, or its layout is not valid.
    pub async fn open(
        &mut self,
        cores: &Cores,
        spec: &trefoil_config::Pool,
        lives: &Lives,
    ) -> Result<(), Refusal> {
        let io = Through::new(cores, lives);
        // A backend that is down, or an array that is lost, counts as a missing member, and this function doesn't wait for it.
        // The pool then serves the LUNs that its other members allow.
        let (mut backends, mut awaited) = (Vec::new(), Vec::new());
        for name in &spec.backends {
            match ready(cores, lives, name) {
                Ok(backend) => backends.push(backend),
                Err(why) => awaited.push(why.message),
            }
        }
        if backends.is_empty() {
            let why = awaited.join("; ");
            let what =
                format!("pool `{}` can't be opened, because all its backends are down: {why}", spec.name);
            return Err(Refusal::new(Fault::Device, what));
        }
        for why in awaited {
            tracing::warn!(pool = spec.name, why, "the pool waits for a backend");
        }
        let found = scan(&io, &backends).await;
        let uuid = found.iter().find_map(|found| match found {
            Found::Member(label) => Some(label.pool_uuid),
            _ => None,
        });
        let uuid = uuid.ok_or_else(|| {
            let each: Vec<_> = backends.iter().zip(&found).map(|(b, found)| tell(&b.name, found)).collect();
            let what =
                format!("no backend of pool `{}` has the pool's label: {}", spec.name, each.join("; "));
            Refusal::new(Fault::Device, what)
        })?;
        let mut members = Vec::new();
        for (backend, found) in backends.into_iter().zip(found) {
            match &found {
                Found::Member(label) | Found::Unfinished(label) if label.pool_uuid == uuid => {
                    members.push(backend);
                }
                // The backend may be a member that has lost its label.
                Found::Free | Found::Damaged(_) => members.push(backend),
                Found::Member(_) | Found::Unfinished(_) | Found::Failed(_) => {
                    let what = tell(&backend.name, &found);
                    tracing::error!(
                        pool = spec.name,
                        what,
                        "a backend does not belong to this pool, and is left out"
                    );
                }
            }
        }
        self.open_as(&io, &spec.name, uuid, members).await
    }

    async fn open_as(
        &mut self,
        io: &Through<'_>,
        name: &str,
        uuid: Uuid,
        members: Vec<BackendInfo>,
    ) -> Result<(), Refusal> {
        let pool = open_pool(io, uuid, members).await;
        let pool = pool.map_err(|e| Refusal::new(Fault::Device, e.to_string()))?;
        let before = self.open.remove(name);
        let is_new = |pool: &Pool| {
            (pool.notes(), pool.frozen())
                != before.as_ref().map_or((&[][..], None), |p| (p.notes(), p.frozen()))
        };
        if is_new(&pool) {
            pool.notes().iter().for_each(|note| tracing::warn!(pool = name, note, "opened a pool"));
            if let Some(why) = pool.frozen() {
                tracing::error!(pool = name, %why, "the pool can't be changed");
            }
        }
        self.open.insert(name.into(), pool);
        Ok(())
    }

    /// Forgets a pool, and leaves the data on its backends.
    pub fn close(&mut self, name: &str) {
        self.open.remove(name);
    }

    /// Takes a pool out of the table so that it can be changed. If an earlier change was cut short, first opens the pool anew.
    async fn take_usable(&mut self, cores: &Cores, lives: &Lives, name: &str) -> Result<Pool, Refusal> {
        let down = || Refusal::new(Fault::Device, format!("pool `{name}` is down"));
        let pool = self.open.get(name).ok_or_else(down)?;
        if matches!(pool.frozen(), Some(Frozen::Unsettled | Frozen::Io(_))) {
            let io = Through::new(cores, lives);
            let members = pool.backends().iter().flatten().cloned().collect();
            let uuid = pool.uuid();
            self.open_as(&io, name, uuid, members).await?;
        }
        self.open.remove(name).ok_or_else(down)
    }

    /// Checks that pool `name` can be changed now.
    ///
    /// # Errors
    /// The pool is down, or lacks members.
    pub fn check_changeable(&self, name: &str) -> Result<(), Refusal> {
        let refuse = |why: String| Err(Refusal::new(Fault::Device, why));
        match self.open.get(name).map(Pool::frozen) {
            None => refuse(format!("pool `{name}` is down")),
            Some(Some(frozen @ Frozen::Missing(_))) => {
                refuse(format!("pool `{name}` can't change: {frozen}"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Checks that pool `name` can be changed, and that all its backends can be used now. Doesn't wait for a lost array.
    ///
    /// # Errors
    /// The pool can't be changed, or a backend can't be used.
    pub fn check_reachable(&self, cores: &Cores, name: &str) -> Result<(), Refusal> {
        self.check_changeable(name)?;
        let backends = self.open.get(name).into_iter().flat_map(Pool::backends).flatten();
        for backend in backends {
            cores.reports.usable(backend.id).map_err(|why| {
                Refusal::new(Fault::Device, format!("backend `{}` is lost: {why}", backend.name))
            })?;
        }
        Ok(())
    }

    fn pool_of(&self, lun: &Lun) -> Result<&Pool, String> {
        let name = lun.pool.as_deref().unwrap_or_default();
        self.open.get(name).ok_or_else(|| format!("pool `{name}` is down"))
    }

    /// Returns the place of a LUN.
    ///
    /// # Errors
    /// The pool is down, a member is missing, or the pool doesn't know the LUN. The error is a text for the log.
    pub fn place(&self, lun: &Lun) -> Result<Placed, String> {
        let pool = self.pool_of(lun)?;
        let found = pool.lun(lun.uuid.unwrap_or_default()).filter(|lun| lun.is_visible());
        let found = found.ok_or_else(|| format!("pool `{}` doesn't hold the LUN", pool.name()))?;
        let len_bytes = found.blocks * u64::from(found.block_bytes);
        let mut extents = pool
            .extents(found)
            .map_err(|backend| format!("backend `{backend}` of the LUN's pool is missing"))?;
        // A pool allocates whole units, which are larger than blocks. So the last extent can reach past the LUN's end, and is
        // cut here.
        if let Some(last) = extents.last_mut() {
            last.len = last.len.min(len_bytes - last.lun_offset);
        }
        Ok(Placed { block_bytes: found.block_bytes, len_bytes, extents })
    }

    /// Returns whether the pool is open and lacks some of its members.
    pub fn is_missing_members(&self, name: &str) -> bool {
        matches!(self.open.get(name).and_then(Pool::frozen), Some(Frozen::Missing(_)))
    }

    /// Returns a view of each open pool, for tables.
    pub fn views(&self) -> BTreeMap<String, PoolView> {
        let view = |pool: &Pool| {
            let (capacity_bytes, free_bytes) = pool.capacity_bytes();
            PoolView { capacity_bytes, free_bytes, frozen: pool.frozen().map(Frozen::to_string) }
        };
        self.open.iter().map(|(name, pool)| (name.clone(), view(pool))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::cores::tests::{hear, mute};
    use super::*;
    use trefoil_storage::initiator::NamespaceIdentity;
    use trefoil_storage::msg::Event;
    use trefoil_storage::topology::BackendId;

    /// The array can be used from its report on, but the engine learns the array's size only after the pools are opened.
    #[test]
    fn an_array_that_answers_while_pools_are_opened_has_its_size() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _entered = runtime.enter();
        let (cores, id) = (mute(), BackendId(3));
        let lives = Lives::from([("far".into(), Live::unanswered(id))]);
        cores.reports.set_lost(id, "the array has not answered yet");
        let why = ready(&cores, &lives, "far").expect_err("lost");
        assert_eq!(why.message, "backend `far` is lost: the array has not answered yet");
        let namespace = NamespaceIdentity { nguid: [1; 16], uuid: [0; 16], eui64: [0; 8], block_bytes: 4096 };
        hear(&cores, Event::BackendInfo { backend: id, len_bytes: 1 << 30, namespace, deallocates: true });
        let found = ready(&cores, &lives, "far").expect("it has answered");
        assert_eq!((found.len_bytes, found.block_bytes), (1 << 30, 4096));
    }
}
