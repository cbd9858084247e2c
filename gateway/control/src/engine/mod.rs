//! The engine: holds the desired state and makes the cores present it.
//!
//! The engine is one task that takes actions one at a time. A change is first planned (pure). The engine then compares two
//! states: it brings up new objects, stores the change, tells the cores, and takes down removed objects. Up to the commit, a
//! failure undoes all that was brought up. After the commit, nothing is refused any more. Queries don't wait for a change:
//! they are answered from the view that the engine showed last.
//!
//! The engine is not on the data path. It sends messages to cores and waits for their answers.

pub mod backends;
pub mod cores;
pub mod handle;
mod opening;
mod pools;
mod portals;
mod queries;
mod recovery;
mod refused;
pub mod topology;
pub mod view;

use crate::action::{Action, Phase};
use crate::address::{is_v6_only, overlap};
use crate::diff;
use crate::error::{Fault, Refusal};
use crate::loss::{self, Permit};
use crate::notes;
use crate::plan::{check_whole, plan};
use crate::state::{ArrayNamespace, State};
use crate::store::{Found, Store};
use backends::{Live, OLD_LOCK_TIMEOUT, OwnFile, Setting};
use cores::Cores;
use handle::{Handle, Outcome, Queue};
use pools::Pools;
use portals::{Placement, Portal};
use queries::Queries;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use topology::{Numbers, Placed};
use trefoil_config::{Address, Config, Gateway, MAX_BACKENDS, MAX_LUNS, MAX_PORTALS, default_serial};
use trefoil_storage::Msg;
use trefoil_storage::msg::Event;
use trefoil_storage::topology::{BackendId, LunId, PortalId, Topology};
use trefoil_sys::socket::{self, CongestionControl};
use view::{BackendView, View};

/// The first and the longest pause before the engine retries objects that are down.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Time that a running change still gets once a stop is asked for.
const HURRY: Duration = Duration::from_secs(2);

/// The parts from which the engine is made.
pub struct Seed {
    /// The mailboxes of the cores.
    pub cores: Rc<Cores>,
    /// The document of this start. Its objects count only if the store is new.
    pub config: Config,
    /// The durable store.
    pub store: Store,
    /// The contents of the store.
    pub found: Found,
    /// The CPU of each core, for tables.
    pub cpus: Vec<usize>,
    /// Connections that can wait for their Connect. Each takes a descriptor.
    pub lobby: usize,
    /// The path of the document, for messages. No backend may be this file.
    pub document: PathBuf,
}

/// See the module.
pub struct Engine {
    cores: Rc<Cores>,
    placement: Rc<Placement>,
    gateway: Arc<Gateway>,
    cpus: Vec<usize>,
    own_files: Arc<[OwnFile]>,
    store: Store,
    state: Arc<State>,
    live: BTreeMap<String, Live>,
    /// The objects that could not be brought up, each with the reason. The keys are `backend/NAME`, `pool/NAME`, `lun/NAME`
    /// and `listener/ADDRESS`.
    down: BTreeMap<String, String>,
    /// The pause before objects that are down are retried.
    retry_after: Duration,
    pools: Pools,
    placed: BTreeMap<String, Placed>,
    numbers: Numbers,
    portals: BTreeMap<Address, Portal>,
    epoch: u64,
    /// The topology that was published last.
    presented: Arc<Topology>,
    phase: watch::Sender<Phase>,
    /// The view from which queries are answered.
    shown: watch::Sender<Arc<View>>,
    /// Events from cores that the engine has to follow.
    events: Rc<RefCell<Vec<Event>>>,
    /// Notified when `events` has new events.
    changed: Rc<Notify>,
    /// Requests that one core's channel can have under way.
    channel_requests: usize,
}

/// Returns the options of the gateway's TCP connections, both those of hosts and those to arrays.
pub fn socket_options(gateway: &Gateway) -> socket::Options {
    let named = gateway.tcp_congestion_control.as_deref();
    socket::Options {
        congestion_control: named.and_then(CongestionControl::new),
        ..socket::Options::default()
    }
}

impl Engine {
    /// Brings the gateway up from the stored state, or at the first start from the document.
    ///
    /// # Errors
    /// At the first start, any failure is an error, and nothing is stored. At a later start, only failures of the store and
    /// of cores are errors: a backend, pool or listener that fails is left out with a log line, and retried.
    pub async fn start(seed: Seed) -> Result<Self, Refusal> {
        let Seed { cores, config, document, store, found, cpus, lobby } = seed;
        let (phase, _) = watch::channel(Phase::Starting);
        let events: Rc<RefCell<Vec<Event>>> = Rc::default();
        let sink = events.clone();
        let changed = Rc::new(Notify::new());
        let tell = changed.clone();
        cores.set_event_sink(Box::new(move |_, event| {
            if note_event(&mut sink.borrow_mut(), event) {
                tell.notify_one();
            }
        }));
        let gateway = Arc::new(config.gateway.clone());
        let shown = watch::Sender::new(Arc::new(View::of(&gateway, &cpus)));
        // All queue pairs of one core, each at the queue depth of a Linux host.
        let qpairs = (gateway.max_qpairs as usize).div_ceil(usize::from(cores.count()));
        let mut engine = Self {
            placement: Placement::new(cores.clone(), socket_options(&gateway), lobby),
            cores,
            gateway,
            cpus,
            own_files: backends::own_files(&document, store.path()).into(),
            store,
            state: Arc::default(),
            live: BTreeMap::new(),
            down: BTreeMap::new(),
            retry_after: RETRY.0,
            pools: Pools::default(),
            placed: BTreeMap::new(),
            numbers: Numbers::default(),
            portals: BTreeMap::new(),
            epoch: 0,
            presented: Arc::default(),
            phase,
            shown,
            events,
            changed,
            channel_requests: (qpairs * 128).min(16_384),
        };
        if found.is_new {
            let next = State::from_config(&config, &State::default());
            engine.reconcile(next, None, true).await?;
        } else {
            engine.resume(State::from_rows(found.rows)).await?;
            // A document that holds only settings asks for no objects.
            let asks = State::from_config(&config, &State::default()) != State::default();
            let objects = diff::summary(&engine.state, &State::from_config(&config, &engine.state));
            if asks && !objects.is_empty() {
                let document = document.display();
                tracing::warn!(
                    objects,
                    "the gateway runs from its stored state, and {document} differs in the objects named here: \
                     `trefoil config diff {document}` shows the changes, `trefoil config apply {document}` makes them"
                );
            }
        }
        for oversight in engine.state.to_config(&engine.gateway).oversights() {
            tracing::warn!("{oversight}");
        }
        engine.phase.send_replace(Phase::Running);
        engine.show();
        Ok(engine)
    }

    /// Takes actions until all handles are gone.
    pub async fn run(mut self, queue: Queue) {
        let Queue { mut asks, queries, mut hurried } = queue;
        let beside = Queries {
            cores: self.cores.clone(),
            shown: self.shown.subscribe(),
            phase: self.phase.subscribe(),
        };
        tokio::task::spawn_local(beside.run(queries));
        let changed = self.changed.clone();
        let mut retry_at = Instant::now() + self.retry_after;
        loop {
            let awaits = !self.down.is_empty()
                || self.state.pools.iter().any(|(name, pool)| self.is_complete_now(name, pool));
            let retries = awaits && *self.phase.borrow() == Phase::Running;
            tokio::select! {
                asked = asks.recv() => {
                    let Some((action, tell)) = asked else { return };
                    let is_change = matches!(action, Action::Change(_));
                    let outcome = tokio::select! {
                        outcome = self.act(action) => outcome,
                        () = stop_is_late(&mut hurried), if is_change => Err(Refusal::new(
                            Fault::WrongState,
                            "the gateway stops and cut this change short; check after the next start whether the change was made",
                        )),
                    };
                    self.show();
                    // The client that asked may be gone.
                    let _ = tell.send(outcome);
                }
                () = changed.notified() => {}
                () = tokio::time::sleep_until(retry_at), if retries => {
                    tokio::select! {
                        () = self.retry() => {}
                        () = stop_is_late(&mut hurried) => {}
                    }
                    retry_at = Instant::now() + self.retry_after;
                }
            }
            tokio::select! {
                heeded = self.heed_events() => if let Err(error) = heeded {
                    tracing::error!(%error, "the engine could not act on events that cores reported");
                },
                () = stop_is_late(&mut hurried) => {}
            }
            self.show();
        }
    }

    /// Makes a handle, and the queue that [`run`](Self::run) takes.
    pub fn handle(&self) -> (Handle, Queue) {
        Handle::new(self.phase.subscribe())
    }

    /// Shows queries the current view.
    fn show(&self) {
        self.shown.send_replace(Arc::new(self.view()));
    }

    async fn act(&mut self, action: Action) -> Result<Outcome, Refusal> {
        action.check_phase(*self.phase.borrow())?;
        match action {
            Action::Change(change) => {
                let next = plan(&self.state, &self.gateway, &change)?;
                let before = self.state.clone();
                self.reconcile(next, change.permit(), false).await?;
                let objects = diff::summary(&before, &self.state);
                tracing::info!(action = change.name(), objects, epoch = self.epoch, "changed");
                let notes = notes::of_change(&change, &before, &self.state, &self.gateway);
                notes.iter().for_each(|note| tracing::warn!("{note}"));
                Ok(Outcome::Changed(Box::new(View { notes, ..self.view() })))
            }
            Action::Shutdown => {
                self.phase.send_replace(Phase::Stopping);
                self.portals.clear();
                self.close_hosts(true).await?;
                Ok(Outcome::Stopping)
            }
            Action::Halt => {
                self.epoch += 1;
                let nothing = Topology { epoch: self.epoch, ..Topology::default() };
                self.cores.publish(Arc::new(nothing)).await?;
                // These include backends that an interrupted change had just attached or still had to detach.
                for id in self.numbers.backends.iter().map(|(_, id)| BackendId(id)).collect::<Vec<_>>() {
                    backends::take_down(&self.cores, id).await?;
                }
                self.live.clear();
                Ok(Outcome::Stopping)
            }
            other => Err(Refusal::new(Fault::Internal, format!("{other:?} is not a change"))),
        }
    }

    /// Moves from the state in force to `next`. With `seeding`, stores `next` even if it is empty.
    ///
    /// # Errors
    /// An object could not be brought up or stored, or the change would lose more than `permit` allows. In each case nothing
    /// has changed.
    async fn reconcile(&mut self, next: State, permit: Option<Permit>, seeding: bool) -> Result<(), Refusal> {
        let mut next = next;
        self.check_losses(&next, permit).await?;
        let leaving = self.state.luns.values().filter(|lun| !next.luns.contains_key(&lun.name));
        // A deleted pool that is down is simply forgotten. A pool that stays must really delete its LUNs.
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
            // Bringing up can take long, and hosts can have connected meanwhile.
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
        // Removed listeners close first: no host may come by a listener once the cores know that the listener is gone.
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

    fn listeners(&self) -> BTreeMap<u32, Address> {
        self.numbers.portals.iter().map(|(listen, id)| (id, *listen)).collect()
    }

    /// Brings up the objects that `next` has and the state in force lacks. New pools overwrite recognised data on their
    /// backends only with `overwrite`.
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
        // A backend that is removed and later attached anew may be a different namespace.
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
        let own = |backend: &str| self.live.get(backend).and_then(|live| self.cores.identity(live.id));
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
        // Listeners in force that are down are not opened here: `retry` retries them.
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

    /// Reopens each IPv6 wildcard listener that must now leave IPv4 to the IPv4 wildcard, or that must serve IPv4 again: a
    /// bound socket can't change this. A listener that fails to reopen is down.
    fn settle_wildcards(&mut self, wanted: &BTreeSet<Address>) {
        let turns = |at: &Address, portal: &Portal| {
            wanted.contains(at) && portal.v6_only() != is_v6_only(*at, wanted)
        };
        let turning: Vec<Address> =
            self.portals.iter().filter(|(at, portal)| turns(at, portal)).map(|(at, _)| *at).collect();
        for at in turning {
            // The number stays: hosts see the same listener.
            let Some(id) = self.numbers.portals.get(&at) else { continue };
            self.portals.remove(&at);
            match Portal::open(at, is_v6_only(at, wanted), PortalId(id as u16), &self.placement) {
                Ok(mut portal) => {
                    portal.accept();
                    self.portals.insert(at, portal);
                }
                Err(error) => self.listener_is_down(at, error),
            }
        }
    }

    /// Opens the listener at `at`, which is one of the listeners `wanted`, unless it is open already. Returns whether the
    /// listener is new. Hosts are accepted once the next topology is published.
    fn listen(&mut self, at: Address, wanted: &BTreeSet<Address>) -> Result<bool, Refusal> {
        if self.portals.contains_key(&at) {
            return Ok(false);
        }
        let id = self.numbers.portals.give(&at, MAX_PORTALS).ok_or_else(|| full("listeners"))?;
        let opened = Portal::open(at, is_v6_only(at, wanted), PortalId(id as u16), &self.placement);
        let opened = opened.map(|portal| drop(self.portals.insert(at, portal)));
        // A listener that is down has no number, so no discovery log names it.
        self.numbers.portals.retain(|at| self.portals.contains_key(at));
        opened.map_err(|mut refusal| {
            if let Some(own) = self.portals.keys().find(|own| overlap(**own, at)) {
                refusal.message += &format!(": the gateway already listens on {own}");
            }
            refusal
        })?;
        self.down.remove(&format!("listener/{at}"));
        Ok(true)
    }

    /// Notes that the listener is down, so that it is retried.
    fn listener_is_down(&mut self, at: Address, error: Refusal) {
        let before = self.down.insert(format!("listener/{at}"), error.message.clone());
        if before.is_none_or(|before| before != error.message) {
            tracing::error!(%error, "a listener is down");
        }
    }

    fn setting(&self, patient: bool, known: Option<&ArrayNamespace>, lock_until: Instant) -> Setting<'_> {
        let (cores, requests) = (&*self.cores, self.channel_requests);
        let known = known.map(ArrayNamespace::identity);
        let gateway = &self.gateway.name;
        Setting { cores, requests, gateway, patient, known, lock_until, own_files: &self.own_files }
    }

    /// Notes in `state` the size of each array's backend, and the namespace that answered first. A later run of the gateway
    /// accepts no other namespace in its place.
    fn note_namespaces(&self, state: &mut State) {
        for (name, live) in &self.live {
            if let Some(found) = self.cores.namespace(live.id)
                && state.backends.contains_key(name)
            {
                let noted = state.namespaces.entry(name.clone());
                noted.or_insert_with(|| ArrayNamespace::new(name, found)).len_bytes = live.len_bytes;
            }
        }
    }

    /// Takes down all that a failed change brought up, as far as possible.
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

    /// Takes down the objects that `old` had and the state in force lacks. No core presents them any more.
    async fn take_down(&mut self, old: &State) {
        let state = self.state.clone();
        for listen in old.listeners().difference(&state.listeners()) {
            self.down.remove(&format!("listener/{listen}"));
        }
        for lun in old.luns.values().filter(|l| !state.luns.contains_key(&l.name)) {
            self.placed.remove(&lun.name);
            self.down.remove(&format!("lun/{}", lun.name));
            // A late write must not land in the data that takes this place next.
            let drained = match self.numbers.luns.get(&lun.name) {
                Some(id) => self.cores.drained(LunId(id)).await,
                None => Ok(()),
            };
            // A deleted pool whose backends are lost is forgotten as a whole, with its LUNs.
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

    /// Frees the numbers of objects that are gone from all cores.
    fn retain_numbers(&mut self) {
        let (state, live, portals) = (&self.state, &self.live, &self.portals);
        self.numbers.luns.retain(|name| state.luns.contains_key(name));
        self.numbers.backends.retain(|name| live.contains_key(name));
        self.numbers.portals.retain(|listen| portals.contains_key(listen));
    }

    /// Stores in the pools which hosts see their LUNs now. A failure is only logged.
    async fn keep_exports(&mut self) {
        if let Err(error) = self.pools.keep_exports(&self.cores, &self.live, &self.state).await {
            tracing::error!(%error, "a pool can't store which hosts see its LUNs; only the database has this record");
        }
    }

    async fn publish(&mut self) -> Result<(), Refusal> {
        self.epoch += 1;
        let access = |id| self.cores.access(id);
        let mut topology = topology::build(self.epoch, &self.state, &self.placed, &self.numbers, access);
        topology.discovery_serial = default_serial(&self.gateway.name);
        topology.share_lists(&self.presented);
        self.presented = Arc::new(topology);
        self.cores.publish(self.presented.clone()).await?;
        self.portals.values_mut().for_each(Portal::accept);
        Ok(())
    }

    async fn close_hosts(&self, all: bool) -> Result<(), Refusal> {
        for core in self.cores.all() {
            self.cores.send(core, Msg::CloseHosts { all }).await?;
        }
        Ok(())
    }

    fn view(&self) -> View {
        View {
            state: self.state.clone(),
            gateway: self.gateway.clone(),
            own_files: self.own_files.clone(),
            phase: *self.phase.borrow(),
            epoch: self.epoch,
            backends: self
                .live
                .iter()
                .map(|(name, live)| (name.clone(), BackendView::of(live, &self.cores)))
                .collect(),
            down: self.down.clone(),
            pools: self.pools.views(),
            luns: self.placed.clone(),
            lun_ids: self.numbers.luns.iter().map(|(name, id)| (name.clone(), LunId(id))).collect(),
            listeners: self.listeners(),
            cores: self.cores.metrics().iter().map(|m| m.sample()).collect(),
            cpus: self.cpus.clone(),
            notes: Vec::new(),
        }
    }
}

/// The objects that a change has brought up so far.
#[derive(Default)]
struct Made {
    backends: Vec<String>,
    /// Pool names. The flag tells whether the pool was created, and not only opened.
    pools: Vec<(String, bool)>,
    luns: Vec<trefoil_config::Lun>,
    /// LUNs as they were before they grew, with their places then.
    grown: Vec<(trefoil_config::Lun, Placed)>,
    placed: Vec<String>,
    portals: Vec<Address>,
}

fn full(what: &str) -> Refusal {
    Refusal::new(
        Fault::NoSpace,
        format!("the gateway already has the most {what} that a gateway can have: remove some first"),
    )
}

fn down(what: &str) -> Refusal {
    Refusal::new(Fault::Device, format!("{what} is down"))
}

/// Waits until a stop was asked for and the running change has had its time.
async fn stop_is_late(hurried: &mut watch::Receiver<bool>) {
    if hurried.wait_for(|hurried| *hurried).await.is_err() {
        // All handles are gone, so nobody can ask for a stop.
        return std::future::pending().await;
    }
    tokio::time::sleep(HURRY).await;
}

/// Keeps an event if the engine has to follow it. Returns whether the event was kept. Events of hosts are only logged.
fn note_event(kept: &mut Vec<Event>, event: Event) -> bool {
    match &event {
        Event::QpairUp { cntlid, qid, host, peer } => {
            tracing::info!(host = host.as_str(), cntlid, qid, %peer, "queue pair up");
            false
        }
        Event::QpairDown { cntlid, qid, host, peer, why } => {
            tracing::info!(host = host.as_str(), cntlid, qid, %peer, why, "queue pair down");
            false
        }
        Event::BackendState { usable: false, .. } | Event::BackendReplaced { .. } => false,
        Event::BackendInfo { .. }
        | Event::BackendState { .. }
        | Event::BackendAccess { .. }
        | Event::BackendResized { .. } => {
            kept.push(event);
            true
        }
    }
}
