//! Applies a change: moves the gateway from the state in force to the next state.
//!
//! The steps, in order: new objects are brought up, the change is stored, the new topology is published to the cores, and
//! removed objects are taken down. After a failure before the commit, all objects that were brought up are taken down again.
//! After the commit, the change stays.

use super::Engine;
use super::backends;
use super::local::OLD_LOCK_TIMEOUT;
use super::pools;
use super::topology::{self, Placed, full};
use crate::error::{Fault, Refusal};
use crate::loss::{self, Permit};
use crate::plan::check_whole;
use crate::state::State;
use std::sync::Arc;
use tokio::time::Instant;
use trefoil_config::{Address, MAX_BACKENDS, MAX_LUNS};
use trefoil_storage::topology::{BackendId, LunId};

/// The objects that a change has brought up so far.
#[derive(Default)]
struct Made {
    backends: Vec<String>,
    /// Pool names. The flag is `true` if the pool was created, and `false` if it was only opened.
    pools: Vec<(String, bool)>,
    luns: Vec<trefoil_config::Lun>,
    /// The LUNs that have grown: each LUN and its place from before the growth.
    grown: Vec<(trefoil_config::Lun, Placed)>,
    placed: Vec<String>,
    portals: Vec<Address>,
}

impl Engine {
    /// Moves from the state in force to `next`. With `seeding`, stores `next` even if it is empty.
    ///
    /// # Errors
    /// - Before the commit: an object could not be brought up or stored, or the change would lose more than `permit` allows.
    ///   `next` is not stored. The objects that were brought up are taken down again; the log names the objects that could not
    ///   be taken down.
    /// - After the commit: a core doesn't answer. `next` is stored and is the state in force, and other cores may already
    ///   present `next`. Removed objects are not taken down.
    pub(super) async fn reconcile(
        &mut self,
        next: State,
        permit: Option<Permit>,
        seeding: bool,
    ) -> Result<(), Refusal> {
        let mut next = next;
        self.check_losses(&next, permit).await?;
        let leaving = self.state.luns.values().filter(|lun| !next.luns.contains_key(&lun.name));
        // Only pools that stay are checked: they must delete the LUNs on their backends. A deleted pool that is down is only
        // forgotten.
        for pool in leaving.filter_map(|lun| lun.pool.as_deref()).filter(|&p| next.pools.contains_key(p)) {
            self.pools.check_changeable(pool)?;
        }
        let mut made = Made::default();
        let overwrite = permit.is_some_and(|permit| permit.delete_data);
        let mut ready = self.bring_up(&mut next, &mut made, seeding, overwrite).await;
        if ready.is_ok() {
            ready = self.pools.keep_exports(&self.cores, &self.live, &next).await;
        }
        if ready.is_ok() {
            // To bring up objects can take long, and hosts may have connected meanwhile.
            ready = self.check_losses(&next, permit).await;
        }
        let changes = self.state.changes_to(&next);
        let ready = match ready {
            Ok(()) if changes.is_empty() && !seeding => Ok(()),
            Ok(()) => self.store.commit(changes).await.map_err(|e| {
                Refusal::new(
                    Fault::Device,
                    format!("nothing has changed, because the state can't be stored: {e}"),
                )
            }),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = ready {
            self.undo(made).await;
            self.keep_exports().await;
            return Err(refusal);
        }
        let old = std::mem::replace(&mut self.state, Arc::new(next));
        // Removed listeners close before the cores learn of the removal. After that, no host may connect through such a
        // listener.
        let listeners = self.state.listeners();
        self.portals.retain(|listen, _| listeners.contains(listen));
        self.settle_wildcards(&listeners);
        self.numbers.portals.retain(|listen| self.portals.contains_key(listen));
        self.publish().await?;
        self.close_hosts(false).await?;
        self.take_down(&old).await;
        Ok(())
    }

    /// Refuses a change that takes more from connected hosts than `permit` allows. Without a permit, every change is allowed.
    async fn check_losses(&self, next: &State, permit: Option<Permit>) -> Result<(), Refusal> {
        let Some(permit) = permit else { return Ok(()) };
        let links = self.cores.links(&self.listeners()).await?;
        loss::check(&loss::losses(&self.state, next, &links), permit)
    }

    /// Brings up the objects that are in `next` and not in the state in force. With `overwrite`, new pools may overwrite
    /// recognised data on their backends.
    async fn bring_up(
        &mut self,
        next: &mut State,
        made: &mut Made,
        seeding: bool,
        overwrite: bool,
    ) -> Result<(), Refusal> {
        backends::check_memory(&self.state, next, &self.gateway)?;
        for (name, backend) in &next.backends {
            if self.state.backends.contains_key(name) {
                continue;
            }
            let id = self.numbers.backends.give(name, MAX_BACKENDS).ok_or_else(|| full("backends"))?;
            let others = self.live.values();
            let live = backends::bring_up(
                self.setting(false, None, Instant::now() + OLD_LOCK_TIMEOUT),
                backend,
                BackendId(id),
                others,
            )
            .await?;
            self.live.insert(name.clone(), live);
            made.backends.push(name.clone());
        }
        // If a backend is removed and later attached again, it may be a different namespace. So the old namespace is forgotten.
        next.namespaces.retain(|name, _| next.backends.contains_key(name));
        self.note_namespaces(next);
        for (name, pool) in &next.pools {
            if !self.state.pools.contains_key(name) {
                let is_new = self.pools.create(&self.cores, pool, &self.live, overwrite).await?;
                made.pools.push((name.clone(), is_new));
            }
        }
        let adopts = made.pools.iter().any(|(_, is_new)| !is_new);
        if adopts {
            if let Some(twin) = self.pools.adopt_into(next, &[], true).into_iter().next() {
                return Err(twin);
            }
            if seeding {
                self.pools.adopt_exports(next);
            }
        }
        let own =
            |backend: &str| self.live.get(backend).and_then(|live| self.cores.reports.identity(live.id));
        let unidentified = next.identify_whole(own);
        check_whole(next, &self.gateway).map_err(|problem| match adopts {
            true => {
                let what = format!("the document doesn't fit the LUNs that the pools hold: {problem}");
                Refusal::new(problem.fault, what)
            }
            false => problem,
        })?;
        for lun in next.luns.values_mut() {
            let now = self.state.luns.get(&lun.name);
            let name = lun.name.clone();
            let place = match (&lun.pool, &lun.backend) {
                (Some(_), _) if now.is_none() => {
                    let (place, is_new) = self.pools.create_lun(&self.cores, &self.live, lun).await?;
                    if is_new {
                        made.luns.push(lun.clone());
                    }
                    place
                }
                (Some(_), _) if now.is_some_and(|now| now.size != lun.size) => {
                    let grown = self.pools.grow_lun(&self.cores, &self.live, lun).await?;
                    made.grown.extend(now.cloned().zip(self.placed.get(&name).cloned()));
                    grown
                }
                (_, Some(backend)) if now.is_none() => {
                    let live = self.live.get(backend);
                    let live = live.ok_or_else(|| down(&format!("backend `{backend}`")))?;
                    let was_lun = !unidentified.contains(&name);
                    pools::check_import(&self.cores, &self.live, lun, was_lun).await?;
                    topology::place_whole(lun, live).map_err(|e| Refusal::new(Fault::Invalid, e))?
                }
                _ => continue,
            };
            lun.block_bytes = Some(place.block_bytes);
            self.numbers.luns.give(&name, MAX_LUNS).ok_or_else(|| full("LUNs"))?;
            if now.is_none() {
                made.placed.push(name.clone());
            }
            self.placed.insert(name, place);
        }
        // A listener that is in force and down is not opened here: `retry` opens it.
        let (now, wanted) = (self.state.listeners(), next.listeners());
        // Removed listeners stay open until the change is stored.
        let all = &now | &wanted;
        self.settle_wildcards(&all);
        for &listen in wanted.difference(&now) {
            self.listen(listen, &all)?;
            made.portals.push(listen);
        }
        Ok(())
    }

    /// Takes down all objects that a failed change brought up, as far as possible.
    async fn undo(&mut self, made: Made) {
        made.portals.iter().for_each(|listen| drop(self.portals.remove(listen)));
        self.settle_wildcards(&self.state.listeners());
        for name in &made.placed {
            self.placed.remove(name);
        }
        for (lun, place) in made.grown {
            match self.pools.undo_growth(&self.cores, &self.live, &lun).await {
                Ok(()) => drop(self.placed.insert(lun.name, place)),
                Err(error) => {
                    tracing::error!(%error, lun = lun.name, "a failed change has grown a LUN, and the LUN keeps the new size")
                }
            }
        }
        for lun in &made.luns {
            if let Err(error) = self.pools.delete_lun(&self.cores, &self.live, lun).await {
                tracing::error!(%error, lun = lun.name, "a failed change made a LUN, and the LUN can't be deleted");
            }
        }
        for (name, is_new) in &made.pools {
            if !is_new {
                self.pools.close(name);
            } else if let Err(error) = self.pools.delete(&self.cores, &self.live, name).await {
                tracing::error!(%error, pool = name, "a failed change made a pool, and the pool can't be deleted");
            }
        }
        for name in &made.backends {
            let Some(live) = self.live.remove(name) else { continue };
            match backends::take_down(&self.cores, live.id).await {
                Ok(()) => live.unmake(),
                Err(error) => tracing::error!(
                    %error,
                    backend = name,
                    "a failed change brought up a backend, and the backend can't be taken down"
                ),
            }
        }
        self.retain_numbers();
    }

    /// Takes down the objects that are in `old` and not in the state in force. No core presents them any more.
    async fn take_down(&mut self, old: &State) {
        let state = self.state.clone();
        for listen in old.listeners().difference(&state.listeners()) {
            self.down.remove(&format!("listener/{listen}"));
        }
        for lun in old.luns.values().filter(|l| !state.luns.contains_key(&l.name)) {
            self.placed.remove(&lun.name);
            self.down.remove(&format!("lun/{}", lun.name));
            // A late write must not land in the data of the next LUN that gets this place.
            let drained = match self.numbers.luns.get(&lun.name) {
                Some(id) => self.cores.drained(LunId(id)).await,
                None => Ok(()),
            };
            // If the backends of a deleted pool are lost, the pool is only forgotten, and so are its LUNs.
            let in_lost = |pool: &String| {
                !state.pools.contains_key(pool) && self.pools.check_reachable(&self.cores, pool).is_err()
            };
            let gone = match drained {
                Ok(()) if lun.pool.as_ref().is_some_and(|pool| !in_lost(pool)) => {
                    self.pools.delete_lun(&self.cores, &self.live, lun).await
                }
                other => other,
            };
            if let Err(error) = gone {
                tracing::error!(%error, lun = lun.name, "a removed LUN still takes space on its pool");
            }
        }
        for name in old.pools.keys().filter(|name| !state.pools.contains_key(*name)) {
            if let Err(error) = self.pools.delete(&self.cores, &self.live, name).await {
                tracing::error!(%error, pool = name, "a removed pool still has labels on its backends");
            }
            self.down.remove(&format!("pool/{name}"));
        }
        for name in old.backends.keys().filter(|name| !state.backends.contains_key(*name)) {
            self.down.remove(&format!("backend/{name}"));
            if let Some(live) = self.live.remove(name)
                && let Err(error) = backends::take_down(&self.cores, live.id).await
            {
                tracing::error!(%error, backend = name, "a removed backend is still attached to cores");
            }
        }
        self.retain_numbers();
    }

    /// Frees the numbers of objects that no core has any more.
    fn retain_numbers(&mut self) {
        let (state, live, portals) = (&self.state, &self.live, &self.portals);
        self.numbers.luns.retain(|name| state.luns.contains_key(name));
        self.numbers.backends.retain(|name| live.contains_key(name));
        self.numbers.portals.retain(|listen| portals.contains_key(listen));
    }
}

fn down(what: &str) -> Refusal {
    Refusal::new(Fault::Device, format!("{what} is down"))
}
