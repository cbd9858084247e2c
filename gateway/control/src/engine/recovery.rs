//! Recovery: starts the gateway from the store, and brings back objects that were down at the start or were lost later.
//!
//! This part of the engine runs without a client's request. An object that can't be brought up is logged, left out, and
//! retried.

use super::backends;
use super::local::DEAD_LOCK_TIMEOUT;
use super::topology;
use super::{Engine, RETRY};
use crate::error::{Fault, Refusal};
use crate::plan::check_whole;
use crate::state::State;
use std::sync::Arc;
use tokio::time::Instant;
use trefoil_config::{MAX_BACKENDS, MAX_LUNS};
use trefoil_storage::msg::Event;
use trefoil_storage::topology::BackendId;

impl Engine {
    /// Brings up the stored objects, and leaves out the objects that fail.
    pub(super) async fn resume(&mut self, state: State) -> Result<(), Refusal> {
        let mut state = state;
        let lock_until = Instant::now() + DEAD_LOCK_TIMEOUT;
        for (name, backend) in &state.backends {
            let Some(id) = self.numbers.backends.give(name, MAX_BACKENDS) else { continue };
            let others = self.live.values();
            match backends::bring_up(
                self.setting(true, state.namespaces.get(name), lock_until),
                backend,
                BackendId(id),
                others,
            )
            .await
            {
                Ok(live) => drop(self.live.insert(name.clone(), live)),
                Err(error) => {
                    tracing::error!(
                        %error,
                        backend = name,
                        "a backend is down; the pools and LUNs on this backend are not served"
                    );
                    self.down.insert(format!("backend/{name}"), error.message);
                }
            }
        }
        backends::await_arrays(&self.cores, self.live.values_mut()).await;
        for (name, known) in &state.namespaces {
            // Hosts that reconnect must find their namespaces, even if I/O has to wait: a Linux host removes a namespace that
            // is missing.
            if let Some(live) = self.live.get_mut(name).filter(|live| live.len_bytes == 0) {
                (live.block_bytes, live.len_bytes) = (known.identity().block_bytes, known.len_bytes);
            }
        }
        for (name, live) in &self.live {
            if let Err(why) = self.cores.reports.usable(live.id) {
                tracing::error!(
                    backend = name,
                    why = &*why,
                    "a backend can't be used; the pools and LUNs on this backend are not served"
                );
            }
        }
        for (name, pool) in &state.pools {
            if let Err(error) = self.pools.open(&self.cores, pool, &self.live).await {
                tracing::error!(%error, pool = name, "a pool is down; its LUNs are not served");
                self.down.insert(format!("pool/{name}"), error.message);
            }
        }
        let stored = state.clone();
        let deleted = self.pools.finish_deletions(&self.cores, &self.live, &state).await;
        for error in self.pools.adopt_into(&mut state, &deleted, false) {
            tracing::error!(%error, "a LUN is not served");
        }
        self.note_namespaces(&mut state);
        let listeners = state.listeners();
        for &listen in &listeners {
            if let Err(error) = self.listen(listen, &listeners) {
                self.listener_is_down(listen, error);
            }
        }
        let changes = stored.changes_to(&state);
        if !changes.is_empty() {
            let stored = self.store.commit(changes).await;
            stored.map_err(|e| Refusal::new(Fault::Device, e.to_string()))?;
        }
        // A problem is only logged, so that all LUNs that were served before stay in service.
        if let Err(problem) = check_whole(&state, &self.gateway) {
            tracing::error!(%problem, "the stored state breaks a rule of documents; it is served all the same");
        }
        self.state = Arc::new(state);
        self.keep_exports().await;
        self.place_all();
        self.publish().await
    }

    /// Handles the events that cores reported since the last call: new and changed sizes, changed access, and arrays that are
    /// reachable again.
    pub(super) async fn heed_events(&mut self) -> Result<(), Refusal> {
        let events = std::mem::take(&mut *self.events.borrow_mut());
        let mut resized = false;
        let mut is_back = false;
        let epoch = self.epoch;
        let mut access_changed = false;
        for event in events {
            let (id, block_bytes, len_bytes) = match event {
                Event::BackendInfo { backend, len_bytes, namespace, .. } => {
                    (backend, Some(namespace.block_bytes), Some(len_bytes))
                }
                Event::BackendResized { backend, len_bytes } => (backend, None, Some(len_bytes)),
                Event::BackendState { usable, .. } => {
                    is_back |= usable;
                    continue;
                }
                Event::BackendAccess { backend, access } => {
                    is_back |= access.ana_state.is_usable();
                    access_changed |= self.live.values().any(|live| live.id == backend);
                    continue;
                }
                Event::BackendReplaced { .. } | Event::QpairUp { .. } | Event::QpairDown { .. } => continue,
            };
            let Some(live) = self.live.values_mut().find(|live| live.id == id) else { continue };
            let before = (live.block_bytes, live.len_bytes);
            live.block_bytes = block_bytes.unwrap_or(live.block_bytes);
            live.len_bytes = len_bytes.unwrap_or(live.len_bytes);
            resized |= before != (live.block_bytes, live.len_bytes);
        }
        let is_awaited = |pool: &String| {
            self.pools.is_missing_members(pool) || self.down.contains_key(&format!("pool/{pool}"))
        };
        let completes = is_back && self.state.pools.keys().any(is_awaited);
        if resized || completes {
            self.place_again().await?;
        }
        if access_changed && self.epoch == epoch { self.publish().await } else { Ok(()) }
    }

    /// Retries the objects that are down. The pause before the next retry doubles until an object comes up.
    pub(super) async fn retry(&mut self) {
        let state = self.state.clone();
        let mut came_up = false;
        for (name, backend) in &state.backends {
            let key = format!("backend/{name}");
            if !self.down.contains_key(&key) {
                continue;
            }
            let Some(id) = self.numbers.backends.give(name, MAX_BACKENDS) else { continue };
            let others = self.live.values();
            match backends::bring_up(
                self.setting(true, state.namespaces.get(name), Instant::now()),
                backend,
                BackendId(id),
                others,
            )
            .await
            {
                Ok(live) => {
                    tracing::info!(backend = name, "a backend that was down is up");
                    self.live.insert(name.clone(), live);
                    self.down.remove(&key);
                    came_up = true;
                }
                Err(error) => drop(self.down.insert(key, error.message)),
            }
        }
        let before = self.down.len();
        if let Err(error) = self.place_again().await {
            tracing::error!(%error, "objects that came up can't be shown to hosts");
        }
        came_up |= self.down.len() < before;
        came_up |= self.listen_again().await;
        self.retry_after = if came_up { RETRY.0 } else { (self.retry_after * 2).min(RETRY.1) };
    }

    /// Returns whether a pool lacks members although all its backends are up. The reason is that a backend couldn't be read
    /// earlier, or holds other data.
    pub(super) fn is_complete_now(&self, name: &str, pool: &trefoil_config::Pool) -> bool {
        let is_up =
            |name: &String| self.live.get(name).is_some_and(|l| self.cores.reports.usable(l.id).is_ok());
        self.pools.is_missing_members(name) && pool.backends.iter().all(is_up)
    }

    /// Opens the pools whose backends have come up, and places all LUNs again.
    async fn place_again(&mut self) -> Result<(), Refusal> {
        let mut state = State::clone(&self.state);
        for (name, pool) in &self.state.pools {
            let key = format!("pool/{name}");
            if !self.is_complete_now(name, pool) && !self.down.contains_key(&key) {
                continue;
            }
            match self.pools.open(&self.cores, pool, &self.live).await {
                Ok(()) => {
                    if !self.pools.is_missing_members(name) {
                        tracing::info!(pool = name, "a pool that was down is up");
                    }
                    self.down.remove(&key);
                }
                Err(error) => drop(self.down.insert(key, error.message)),
            }
        }
        let deleted = self.pools.finish_deletions(&self.cores, &self.live, &state).await;
        for error in self.pools.adopt_into(&mut state, &deleted, false) {
            tracing::error!(%error, "a LUN is not served");
        }
        self.note_namespaces(&mut state);
        let changes = self.state.changes_to(&state);
        if !changes.is_empty() {
            let stored = self.store.commit(changes).await;
            stored.map_err(|e| Refusal::new(Fault::Device, e.to_string()))?;
            self.state = Arc::new(state);
        }
        self.keep_exports().await;
        if self.place_all() { self.publish().await } else { Ok(()) }
    }

    /// Places every LUN that can be placed. Returns `true` if the place of a LUN has changed.
    fn place_all(&mut self) -> bool {
        let mut changed = false;
        for (name, lun) in &self.state.luns {
            let place = match (&lun.pool, &lun.backend) {
                (Some(_), _) => self.pools.place(lun),
                (None, Some(backend)) => match self.live.get(backend) {
                    Some(live) => topology::place_whole(lun, live),
                    None => Err(format!("backend `{backend}` is down")),
                },
                (None, None) => Err("the LUN has neither a pool nor a backend".into()),
            };
            self.numbers.luns.give(name, MAX_LUNS);
            match place {
                Ok(place) if self.placed.get(name) == Some(&place) => {
                    self.down.remove(&format!("lun/{name}"));
                }
                // A LUN that hosts use never shrinks. Instead, I/O to the missing part fails.
                Ok(place) if self.placed.get(name).is_some_and(|now| now.len_bytes > place.len_bytes) => {
                    tracing::error!(
                        lun = name,
                        place.len_bytes,
                        "the backend of a LUN has shrunk; the LUN keeps its size, and I/O to the missing part fails"
                    );
                }
                Ok(place) => {
                    changed = true;
                    self.placed.insert(name.clone(), place);
                    self.down.remove(&format!("lun/{name}"));
                }
                Err(error) => {
                    let before = self.down.insert(format!("lun/{name}"), error.clone());
                    if before.as_ref() != Some(&error) {
                        tracing::error!(error, lun = name, "a LUN is not served");
                    }
                }
            }
        }
        changed
    }
}
