//! The engine: holds the desired state and publishes it to the cores.
//!
//! The engine is one task that carries out actions one at a time. A change is first planned, which has no effects, and then
//! [applied](change). Queries don't wait for changes: they are answered from the view that the engine published last.
//!
//! The engine is not on the data path: it only sends messages to cores and waits for the cores' answers.

pub mod array_config;
pub mod backends;
mod change;
pub mod cores;
pub mod handle;
mod listeners;
pub mod local;
mod opening;
mod pools;
mod portals;
mod queries;
mod recovery;
mod refused;
mod reports;
pub mod topology;
pub mod view;

use crate::action::{Action, Phase};
use crate::diff;
use crate::error::{Fault, Refusal};
use crate::notes;
use crate::plan::plan;
use crate::state::{ArrayNamespace, State};
use crate::store::{Found, Store};
use backends::{Live, Setting};
use cores::Cores;
use handle::{Handle, Outcome, Queue};
use local::{OwnFile, own_files};
use pools::Pools;
use portals::{Placement, Portal};
use queries::Queries;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use topology::{Numbers, Placed};
use trefoil_config::{Address, Config, Gateway, default_serial};
use trefoil_storage::Msg;
use trefoil_storage::msg::Event;
use trefoil_storage::topology::{BackendId, LunId, Topology};
use trefoil_sys::socket::{self, CongestionControl};
use view::{BackendView, View};

/// The first and the longest pause before the engine retries objects that are down.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Time that a running change gets to finish after a client asks for a stop.
const HURRY: Duration = Duration::from_secs(2);

/// The parts from which the engine is made.
pub struct Seed {
    /// The mailboxes of the cores.
    pub cores: Rc<Cores>,
    /// The document of this start. The document's objects are used only if the store is new.
    pub config: Config,
    /// The durable store.
    pub store: Store,
    /// The contents of the store.
    pub found: Found,
    /// The CPU of each core, for tables.
    pub cpus: Vec<usize>,
    /// Room of the backlog, in connections. Each connection takes a descriptor.
    pub backlog: usize,
    /// The path of the document, for messages. This file must not become a backend.
    pub document: PathBuf,
}

/// The engine, with the desired state and all objects that are up.
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
    /// The topology that the engine published last.
    presented: Arc<Topology>,
    phase: watch::Sender<Phase>,
    /// The view from which queries are answered.
    shown: watch::Sender<Arc<View>>,
    /// Events from cores that the engine has to handle.
    events: Rc<RefCell<Vec<Event>>>,
    /// Notified when `events` has new events.
    changed: Rc<Notify>,
    /// Most requests under way on one core's channel.
    channel_requests: usize,
}

/// Returns the socket options of the gateway's TCP connections, for the connections of hosts and for the connections to arrays.
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
    /// At the first start, any failure is an error. After such an error, no state is stored, with one exception: if a core
    /// doesn't answer after the state was stored, the state stays stored. At a later start, only failures of the store and of
    /// cores are errors. A backend, pool or listener that fails is logged, left out, and retried.
    pub async fn start(seed: Seed) -> Result<Self, Refusal> {
        let Seed { cores, config, document, store, found, cpus, backlog } = seed;
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
        // The worst case: all queue pairs of one core, each filled to the queue depth of a Linux host.
        let qpairs = (gateway.max_qpairs as usize).div_ceil(usize::from(cores.count()));
        let mut engine = Self {
            placement: Placement::new(cores.clone(), socket_options(&gateway), backlog),
            cores,
            gateway,
            cpus,
            own_files: own_files(&document, store.path()).into(),
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
            // A document that holds only settings names no objects, so it doesn't differ from the store.
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
                    // The client may not wait for the outcome any more.
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

    /// Publishes the current view to the queries.
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
                // `numbers` also has the backends that an interrupted change had attached, or had not detached yet.
                for id in self.numbers.backends.iter().map(|(_, id)| BackendId(id)).collect::<Vec<_>>() {
                    backends::take_down(&self.cores, id).await?;
                }
                self.live.clear();
                Ok(Outcome::Stopping)
            }
            other => Err(Refusal::new(Fault::Internal, format!("{other:?} is not a change"))),
        }
    }

    fn setting(&self, patient: bool, known: Option<&ArrayNamespace>, lock_until: Instant) -> Setting<'_> {
        let (cores, requests) = (&*self.cores, self.channel_requests);
        let known = known.map(ArrayNamespace::identity);
        let gateway = &self.gateway.name;
        Setting { cores, requests, gateway, patient, known, lock_until, own_files: &self.own_files }
    }

    /// Records in `state` the size of each backend on an array, and the namespace that answered first. A later run of the
    /// gateway accepts only this namespace as the backend.
    fn note_namespaces(&self, state: &mut State) {
        for (name, live) in &self.live {
            if let Some(found) = self.cores.reports.namespace(live.id)
                && state.backends.contains_key(name)
            {
                let noted = state.namespaces.entry(name.clone());
                noted.or_insert_with(|| ArrayNamespace::new(name, found)).len_bytes = live.len_bytes;
            }
        }
    }

    /// Stores in each pool which hosts see the pool's LUNs now. A failure is only logged.
    async fn keep_exports(&mut self) {
        if let Err(error) = self.pools.keep_exports(&self.cores, &self.live, &self.state).await {
            tracing::error!(%error, "a pool can't store which hosts see its LUNs; only the database has this record");
        }
    }

    async fn publish(&mut self) -> Result<(), Refusal> {
        self.epoch += 1;
        let access = |id| self.cores.reports.access(id);
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

/// Waits until a client has asked for a stop, and then until the time for the running change is over.
async fn stop_is_late(hurried: &mut watch::Receiver<bool>) {
    if hurried.wait_for(|hurried| *hurried).await.is_err() {
        // All handles are dropped, so no client can ask for a stop.
        return std::future::pending().await;
    }
    tokio::time::sleep(HURRY).await;
}

/// Stores an event if the engine has to handle it. Returns whether the event was stored. Events of hosts are only logged.
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
