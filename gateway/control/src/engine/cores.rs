//! The control thread's side of the mailboxes: its questions to cores, and the tasks that wait for answers.
//!
//! One task receives the mail ([`Cores::listen`]). All other tasks send and wait. A core answers every question once, so a
//! wait ends as long as the core runs.

use super::refused::RefusedHosts;
use crate::error::{Fault, Refusal};
use crate::loss::Links;
use nix::errno::Errno;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::Instant;
use trefoil_config::Address;
use trefoil_poll::{Arena, Buf, ControlReceiver, ControlSender, CoreId, CoreMetrics};
use trefoil_storage::Msg;
use trefoil_storage::backend::Attach;
use trefoil_storage::core::NEWCOMERS;
use trefoil_storage::initiator::{ANOTHER_NAMESPACE, NamespaceIdentity};
use trefoil_storage::msg::{Event, Refused, Survey};
use trefoil_storage::request::{Completed, Op, Origin, Owner, Request};
use trefoil_storage::stats::{LunRow, LunSurvey};
use trefoil_storage::topology::{Access, BackendId, LunId, Topology};
use trefoil_wire::nvme::log::AnaState;
use uuid::Uuid;

/// A message between the control thread and the cores of the real driver.
pub type CoreMsg = Msg<OwnedFd, Attach<OwnedFd>>;

/// Time after which an action fails because a core does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two questions about requests under way.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);
/// Time for which control keeps a core's [`Refused`] box. The time bounds how often the core reports a refusal.
const RETURN_AFTER: Duration = Duration::from_millis(100);
/// LUNs that a core reports at a time. The report takes some microseconds of the core's time.
const LUN_ROWS: usize = 32;
/// Limit of control's own requests under way at a time.
const MAX_REQUESTS: usize = 64;

/// The control thread's ends of the mailboxes, as the gateway made them.
pub struct Ends {
    /// The sender to each core, in order.
    pub to_cores: Vec<ControlSender<CoreMsg>>,
    /// The receiver from all cores.
    pub from_cores: ControlReceiver<CoreMsg>,
    /// Each core's counters, in order.
    pub metrics: Vec<Arc<CoreMetrics>>,
    /// Control's own payload memory, for reads from backends and writes to them.
    pub arena: Arena,
}

/// The mailbox as tokio watches it.
struct Mail(ControlReceiver<CoreMsg>);

impl AsRawFd for Mail {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

type AttachBox = Box<Attach<OwnedFd>>;
type AttachAnswer = Result<(), Option<AttachBox>>;
type Wait<T> = oneshot::Sender<T>;

/// A reason, in words.
pub type Why = Cow<'static, str>;

/// The properties that a backend reported. An identity that the backend lacks is zero.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Told {
    len_bytes: u64,
    namespace: NamespaceIdentity,
    deallocates: bool,
}

/// The reason why I/O to a backend can't go on.
#[derive(Clone, PartialEq, Eq)]
struct Lost {
    why: Why,
    /// `true` if the backend said that a retry is useless.
    is_final: bool,
}

#[derive(Default)]
struct Waits {
    topology: HashMap<(CoreId, u64), Wait<()>>,
    /// Answers to Attach (`Ok`), and to Detach or a refused Attach (the box, if there was one).
    backends: HashMap<(CoreId, BackendId), Wait<AttachAnswer>>,
    requests: Vec<Option<(u32, Wait<Completed>)>>,
    surveys: HashMap<CoreId, Wait<Box<Survey>>>,
    lun_surveys: HashMap<CoreId, Wait<Box<LunSurvey>>>,
    under_way: HashMap<(CoreId, LunId), Wait<usize>>,
    generation: u32,
}

/// All cores of the gateway, as control sees them.
pub struct Cores {
    to_cores: Vec<RefCell<ControlSender<CoreMsg>>>,
    mail: RefCell<Option<AsyncFd<Mail>>>,
    metrics: Vec<Arc<CoreMetrics>>,
    arena: RefCell<Arena>,
    home: u16,
    waits: RefCell<Waits>,
    /// The properties that backends reported.
    told: RefCell<HashMap<BackendId, Told>>,
    /// Backends to which I/O can't go on.
    lost: RefCell<HashMap<BackendId, Lost>>,
    /// The access that backends give. A backend that is missing here gives full access.
    access: RefCell<HashMap<BackendId, Access>>,
    /// Names of backends, for the log.
    names: RefCell<HashMap<BackendId, String>>,
    /// Notified with each event that changes `told` or `access`, or adds to `lost`.
    reached: tokio::sync::Notify,
    /// Held during a survey. The surveys of one core look alike, so only one is requested at a time.
    surveying: tokio::sync::Mutex<()>,
    /// The number of connections that each core accepts now.
    room: Vec<Cell<usize>>,
    /// Notified when a core accepts more connections.
    has_room: tokio::sync::Notify,
    refused: RefCell<RefusedHosts>,
    /// The [`Refused`] boxes that go back to cores, each with its due time, soonest first.
    returns: RefCell<VecDeque<(Instant, CoreId, Box<Refused>)>>,
    on_event: RefCell<Option<EventSink>>,
    dropped_events: Cell<u64>,
}

/// The receiver of events that cores report.
pub type EventSink = Box<dyn Fn(CoreId, Event)>;

fn gone(core: CoreId) -> Refusal {
    Refusal::new(Fault::Internal, format!("core {} doesn't answer: restart the gateway", core.0))
}

impl Cores {
    /// Takes over the ends. Needs a tokio runtime.
    ///
    /// # Errors
    /// epoll_ctl(2) fails.
    pub fn new(ends: Ends) -> io::Result<Rc<Self>> {
        // The function is deprecated for types that may close their descriptor while it is registered, and the replacement is
        // unsafe. A ControlReceiver keeps its eventfd for as long as it lives.
        #[expect(deprecated, reason = "the replacement is unsafe, which this crate forbids")]
        let mail = AsyncFd::with_interest(Mail(ends.from_cores), tokio::io::Interest::READABLE)?;
        Ok(Rc::new(Self {
            room: ends.to_cores.iter().map(|_| Cell::new(NEWCOMERS)).collect(),
            has_room: tokio::sync::Notify::new(),
            to_cores: ends.to_cores.into_iter().map(RefCell::new).collect(),
            mail: RefCell::new(Some(mail)),
            metrics: ends.metrics,
            home: ends.arena.id().0,
            arena: RefCell::new(ends.arena),
            waits: RefCell::default(),
            told: RefCell::default(),
            lost: RefCell::default(),
            access: RefCell::default(),
            names: RefCell::default(),
            reached: tokio::sync::Notify::new(),
            surveying: tokio::sync::Mutex::new(()),
            refused: RefCell::default(),
            returns: RefCell::default(),
            on_event: RefCell::new(None),
            dropped_events: Cell::new(0),
        }))
    }

    /// Returns the number of cores.
    pub fn count(&self) -> u16 {
        self.to_cores.len() as u16
    }

    /// Returns the ids of all cores.
    pub fn all(&self) -> impl Iterator<Item = CoreId> + use<> {
        (0..self.count()).map(CoreId)
    }

    /// Returns each core's counters.
    pub fn metrics(&self) -> &[Arc<CoreMetrics>] {
        &self.metrics
    }

    /// Passes every event to `sink` from now on.
    pub fn set_event_sink(&self, sink: EventSink) {
        *self.on_event.borrow_mut() = Some(sink);
    }

    /// Receives mail until the future is dropped. Only the first call does anything.
    pub async fn listen(&self) {
        let Some(mut mail) = self.mail.borrow_mut().take() else { return };
        loop {
            // The batch is bounded, so that a core that sends many messages doesn't starve the other tasks.
            for _ in 0..256 {
                match mail.get_mut().0.pop() {
                    Some((core, msg)) => self.take(core, msg),
                    None => break,
                }
            }
            let next = self.give_back();
            if !mail.get_mut().0.announce() {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                ready = mail.readable() => match ready {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(error) => {
                        let what = "the descriptor of the cores' mailbox failed: control hears no core any more";
                        return tracing::error!(%error, "{what}");
                    }
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    fn take(&self, core: CoreId, msg: CoreMsg) {
        let mut waits = self.waits.borrow_mut();
        match msg {
            Msg::TopologyDone { epoch, old } => {
                drop(old);
                if let Some(wait) = waits.topology.remove(&(core, epoch)) {
                    let _ = wait.send(());
                }
            }
            Msg::Attached(id) => {
                if let Some(wait) = waits.backends.remove(&(core, id)) {
                    let _ = wait.send(Ok(()));
                }
            }
            Msg::Detached(id, attach) => {
                if let Some(wait) = waits.backends.remove(&(core, id)) {
                    let _ = wait.send(Err(attach));
                }
            }
            Msg::Completed(done) => {
                let origin = done.origin();
                let slot = waits.requests.get_mut(origin.slot as usize);
                match slot.and_then(|slot| slot.take_if(|(generation, _)| *generation == origin.generation)) {
                    Some((_, wait)) => {
                        // The task that asked may have given up. Its block goes back all the same.
                        if let Err(done) = wait.send(done) {
                            self.free(done.settle().0);
                        }
                    }
                    None => self.free(done.settle().0),
                }
            }
            Msg::Survey(survey) => {
                if let Some(wait) = waits.surveys.remove(&core) {
                    let _ = wait.send(survey);
                }
            }
            Msg::LunSurvey(survey) => {
                if let Some(wait) = waits.lun_surveys.remove(&core) {
                    let _ = wait.send(survey);
                }
            }
            Msg::UnderWay { lun, requests, .. } => {
                if let Some(wait) = waits.under_way.remove(&(core, lun)) {
                    let _ = wait.send(requests);
                }
            }
            Msg::Event(event) => {
                drop(waits);
                self.note(&event);
                match &*self.on_event.borrow() {
                    Some(sink) => sink(core, event),
                    None => self.dropped_events.set(self.dropped_events.get() + 1),
                }
            }
            Msg::Adopted(count) => {
                if let Some(room) = self.room.get(usize::from(core.0)) {
                    room.set(room.get() + count as usize);
                }
                self.has_room.notify_one();
            }
            Msg::Refused(refused) => {
                self.refused.borrow_mut().tell(&refused);
                self.returns.borrow_mut().push_back((Instant::now() + RETURN_AFTER, core, refused));
            }
            other => tracing::error!(core = core.0, "a core sent control an unexpected message: {other:?}"),
        }
    }

    /// Gives cores their [`Refused`] boxes back. The delay keeps hosts that are refused all the time from keeping this thread
    /// busy. Returns the time at which the next box is due.
    fn give_back(&self) -> Option<Instant> {
        let mut returns = self.returns.borrow_mut();
        let now = Instant::now();
        while let Some((_, core, place)) = returns.pop_front_if(|(due, ..)| *due <= now) {
            let Some(sender) = self.to_cores.get(usize::from(core.0)) else { continue };
            // A core whose ring is full gets the box later.
            if let Err(Msg::Refused(place)) = sender.borrow_mut().send(Msg::Refused(place)) {
                returns.push_back((now + RETURN_AFTER, core, place));
            }
        }
        returns.front().map(|(due, ..)| *due)
    }

    /// Notes what an event says of a backend. Logs only changes: a lasting cause is not logged at every retry.
    fn note(&self, event: &Event) {
        let names = self.names.borrow();
        let name = |id: &BackendId| names.get(id).map(String::as_str).unwrap_or_default();
        let is_back = |id: &BackendId| {
            if self.lost.borrow_mut().remove(id).is_some() {
                tracing::info!(backend = name(id), "backend back");
            }
        };
        let is_lost = |id: &BackendId, lost: Lost| {
            if self.lost.borrow_mut().insert(*id, lost.clone()).as_ref() != Some(&lost) {
                tracing::warn!(backend = name(id), why = &*lost.why, "backend lost");
            }
            self.reached.notify_waiters();
        };
        match event {
            Event::BackendInfo { backend, len_bytes, namespace, deallocates } => {
                let told = Told { len_bytes: *len_bytes, namespace: *namespace, deallocates: *deallocates };
                if self.told.borrow_mut().insert(*backend, told) != Some(told) {
                    let block_bytes = namespace.block_bytes;
                    tracing::info!(backend = name(backend), block_bytes, len_bytes, "backend reached");
                    if !deallocates {
                        tracing::info!(
                            backend = name(backend),
                            "TRIM frees no space on this backend: the array lacks Dataset Management, or does not promise that \
                             deallocated blocks read as zeros (DLFEAT)"
                        );
                    }
                }
                is_back(backend);
                self.reached.notify_waiters();
            }
            Event::BackendState { backend, usable: true, .. } => is_back(backend),
            Event::BackendState { backend, usable: false, why, is_final } => {
                is_lost(backend, Lost { why: Why::Borrowed(why), is_final: *is_final });
            }
            Event::BackendReplaced { backend, was, is } => {
                let why = format!(
                    "{ANOTHER_NAMESPACE}: the known namespace is {was}, and the new namespace is {is}"
                );
                is_lost(backend, Lost { why: why.into(), is_final: true });
            }
            Event::BackendAccess { backend, access } => {
                let before = self.access.borrow_mut().insert(*backend, *access);
                if before.unwrap_or(Access::FULL) != *access {
                    let Access { ana_state, read_only } = access;
                    tracing::warn!(backend = name(backend), ?ana_state, read_only, "backend access changed");
                }
                self.reached.notify_waiters();
            }
            Event::BackendResized { backend, len_bytes } => {
                tracing::info!(backend = name(backend), len_bytes, "backend resized");
            }
            Event::QpairUp { .. } | Event::QpairDown { .. } => {}
        }
    }

    /// Returns whether a core accepts another connection. [`send`](Self::send) counts the connections that it sends.
    pub fn has_room(&self, core: CoreId) -> bool {
        self.room.get(usize::from(core.0)).is_some_and(|room| room.get() > 0)
    }

    /// Waits until a core accepts more connections than before.
    pub async fn room(&self) {
        self.has_room.notified().await;
    }

    /// Sends a message to a core. Waits while the core's ring is full.
    pub async fn send(&self, core: CoreId, msg: CoreMsg) -> Result<(), Refusal> {
        let Some(sender) = self.to_cores.get(usize::from(core.0)) else { return Err(gone(core)) };
        if let (Msg::Adopt { .. }, Some(room)) = (&msg, self.room.get(usize::from(core.0))) {
            room.set(room.get().saturating_sub(1));
        }
        let mut msg = msg;
        for _ in 0..10_000 {
            let sent = sender.borrow_mut().send(msg);
            match sent {
                Ok(()) => return Ok(()),
                Err(back) => msg = back,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if let (Msg::Adopt { .. }, Some(room)) = (&msg, self.room.get(usize::from(core.0))) {
            room.set(room.get() + 1);
        }
        if let Msg::BackendIo(_, request) = msg {
            self.free(request.complete(Err(trefoil_storage::Fault::Gone)).settle().0);
        }
        Err(gone(core))
    }

    async fn answer<T>(&self, core: CoreId, wait: oneshot::Receiver<T>) -> Result<T, Refusal> {
        match tokio::time::timeout(ANSWER_TIMEOUT, wait).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(gone(core)),
        }
    }

    /// Publishes a snapshot to every core and waits until all have it in force.
    ///
    /// # Errors
    /// A core doesn't answer.
    pub async fn publish(&self, topology: Arc<Topology>) -> Result<(), Refusal> {
        let mut waiting = Vec::new();
        for core in self.all() {
            let (tell, wait) = oneshot::channel();
            self.waits.borrow_mut().topology.insert((core, topology.epoch), tell);
            self.send(core, Msg::Topology(topology.clone())).await?;
            waiting.push((core, wait));
        }
        for (core, wait) in waiting {
            self.answer(core, wait).await?;
        }
        Ok(())
    }

    /// Gives a backend's channel to a core.
    ///
    /// # Errors
    /// The core has no room, or doesn't answer.
    pub async fn attach(&self, core: CoreId, attach: AttachBox) -> Result<(), Refusal> {
        let id = attach.id;
        let (tell, wait) = oneshot::channel();
        self.waits.borrow_mut().backends.insert((core, id), tell);
        self.send(core, Msg::Attach(id, attach)).await?;
        let refused =
            |_| Refusal::new(Fault::NoSpace, format!("core {} has no room for another backend", core.0));
        self.answer(core, wait).await?.map_err(refused)
    }

    /// Returns the block size and the size in bytes that a backend reports once it is reached. Returns `None` after `within`.
    /// With `is_new`, also returns `None` once the backend says that a retry is useless.
    pub async fn geometry(&self, id: BackendId, within: Duration, is_new: bool) -> Option<(u32, u64)> {
        let told = async {
            loop {
                let reached = self.reached.notified();
                let told = self.told_geometry(id);
                if told.is_some() || (is_new && self.is_refused(id)) {
                    return told;
                }
                reached.await;
            }
        };
        tokio::time::timeout(within, told).await.ok().flatten()
    }

    /// Returns whether a backend says that a retry is useless.
    pub fn is_refused(&self, id: BackendId) -> bool {
        self.lost.borrow().get(&id).is_some_and(|lost| lost.is_final)
    }

    /// Returns the block size and the size in bytes, if the backend has reported them already.
    pub fn told_geometry(&self, id: BackendId) -> Option<(u32, u64)> {
        self.told.borrow().get(&id).map(|told| (told.namespace.block_bytes, told.len_bytes))
    }

    /// Returns the array's namespace that answered as this backend, once a namespace did.
    pub fn namespace(&self, id: BackendId) -> Option<NamespaceIdentity> {
        self.told.borrow().get(&id).map(|told| told.namespace)
    }

    /// Returns the UUID and NGUID of a LUN that presents this backend whole, or `None` if the backend has neither. If the
    /// backend has only one of the two, the other is made from its bytes.
    pub fn identity(&self, id: BackendId) -> Option<(Uuid, String)> {
        let NamespaceIdentity { nguid, uuid, .. } = self.namespace(id)?;
        let known = |id: [u8; 16]| (id != [0; 16]).then_some(id);
        let (uuid, nguid) = (known(uuid), known(nguid));
        // An NGUID isn't made like a UUID, so its version bits say nothing. The UUID gets version 8 (RFC 9562 §5.8).
        let derived = |nguid| uuid::Builder::from_custom_bytes(nguid).into_uuid();
        let own = uuid.map(Uuid::from_bytes).or(nguid.map(derived))?;
        Some((own, nguid.map_or(own, Uuid::from_bytes).simple().to_string()))
    }

    /// Gives number `id` to the backend `name`. Forgets all that is known of the backend that had the number before.
    pub fn name_backend(&self, id: BackendId, name: &str) {
        self.told.borrow_mut().remove(&id);
        self.lost.borrow_mut().remove(&id);
        self.access.borrow_mut().remove(&id);
        self.names.borrow_mut().insert(id, name.into());
    }

    /// Returns `Ok` if I/O to a backend can go on, and otherwise the reason why it can't.
    pub fn usable(&self, id: BackendId) -> Result<(), Why> {
        if let Some(lost) = self.lost.borrow().get(&id) {
            return Err(lost.why.clone());
        }
        match self.access(id).ana_state {
            state if state.is_usable() => Ok(()),
            AnaState::PersistentLoss => Err("the array reports the ANA state Persistent Loss".into()),
            _ => Err("the array reports the ANA state Inaccessible".into()),
        }
    }

    /// Returns the access that a backend gives.
    pub fn access(&self, id: BackendId) -> Access {
        self.access.borrow().get(&id).copied().unwrap_or(Access::FULL)
    }

    /// Marks a backend as lost until the backend says otherwise.
    pub fn set_lost(&self, id: BackendId, why: &'static str) {
        self.lost.borrow_mut().insert(id, Lost { why: Why::Borrowed(why), is_final: false });
    }

    /// Takes a backend's channel from a core, once the requests under way are done.
    ///
    /// # Errors
    /// The core doesn't answer.
    pub async fn detach(&self, core: CoreId, id: BackendId) -> Result<Option<AttachBox>, Refusal> {
        let (tell, wait) = oneshot::channel();
        self.waits.borrow_mut().backends.insert((core, id), tell);
        self.send(core, Msg::Detach(id)).await?;
        Ok(self.answer(core, wait).await?.err().flatten())
    }

    /// Returns the queue pairs that are connected to a core, in at most `rows` rows.
    ///
    /// # Errors
    /// The core doesn't answer.
    pub async fn survey(&self, core: CoreId, rows: usize) -> Result<Box<Survey>, Refusal> {
        let (tell, wait) = oneshot::channel();
        let survey = Box::new(Survey { qpairs: Vec::with_capacity(rows), ..Survey::default() });
        let _one = self.surveying.lock().await;
        self.waits.borrow_mut().surveys.insert(core, tell);
        self.send(core, Msg::Survey(survey)).await?;
        self.answer(core, wait).await
    }

    /// Returns which hosts are connected to which subsystems, and by which of these listeners.
    ///
    /// # Errors
    /// A core doesn't answer.
    pub async fn links(&self, listeners: &BTreeMap<u32, Address>) -> Result<Links, Refusal> {
        let mut links = Links::new();
        for core in self.all() {
            let mut rows = 64;
            let survey = loop {
                let survey = self.survey(core, rows).await?;
                if survey.total <= rows {
                    break survey;
                }
                // More hosts may connect meanwhile.
                rows = survey.total * 2;
            };
            for row in &survey.qpairs {
                let link = (row.host_nqn.as_str().to_owned(), row.subsystem_nqn.as_str().to_owned());
                links.entry(link).or_default().extend(listeners.get(&row.portal.0.into()));
            }
        }
        Ok(links)
    }

    /// Passes the statistics of each LUN on a core to `tell`, row by row.
    ///
    /// # Errors
    /// The core doesn't answer.
    pub async fn lun_survey(&self, core: CoreId, mut tell: impl FnMut(&LunRow)) -> Result<(), Refusal> {
        let _one = self.surveying.lock().await;
        let mut survey = Box::new(LunSurvey { rows: Vec::with_capacity(LUN_ROWS), next: Some(0) });
        while survey.next.is_some() {
            let (told, wait) = oneshot::channel();
            self.waits.borrow_mut().lun_surveys.insert(core, told);
            self.send(core, Msg::LunSurvey(survey)).await?;
            survey = self.answer(core, wait).await?;
            survey.rows.drain(..).for_each(|row| tell(&row));
        }
        Ok(())
    }

    /// Waits until no host's request for `lun` is under way on any core. No topology presents `lun` any more, so no new
    /// requests start. Requests that an array has can take until the array's loss timeout.
    ///
    /// # Errors
    /// A core doesn't answer.
    pub async fn drained(&self, lun: LunId) -> Result<(), Refusal> {
        for core in self.all() {
            loop {
                let (tell, wait) = oneshot::channel();
                self.waits.borrow_mut().under_way.insert((core, lun), tell);
                self.send(core, Msg::UnderWay { lun, requests: 0, from: 0 }).await?;
                if self.answer(core, wait).await? == 0 {
                    break;
                }
                tokio::time::sleep(DRAIN_PAUSE).await;
            }
        }
        Ok(())
    }

    /// Allocates a block of control's own memory for [`request`](Self::request).
    pub fn alloc(&self, len_bytes: usize) -> Option<Buf> {
        self.arena.borrow_mut().alloc(len_bytes)
    }

    /// Frees a block.
    pub fn free(&self, buf: Option<Buf>) {
        if let Some(buf) = buf {
            self.arena.borrow_mut().free(buf);
        }
    }

    /// Sends one request of control's own straight to a backend on `core`. Gives the block back.
    ///
    /// # Errors
    /// The backend's fault, or `Gone` if the core doesn't answer, or `Internal` if `MAX_REQUESTS` are under way.
    pub async fn request(
        &self,
        core: CoreId,
        backend: BackendId,
        op: Op,
        range: (u64, u64),
        buf: Option<Buf>,
        durable: bool,
    ) -> (Option<Buf>, Result<(), trefoil_storage::Fault>) {
        let (tell, wait) = oneshot::channel();
        let origin = {
            let mut waits = self.waits.borrow_mut();
            waits.generation = waits.generation.wrapping_add(1) & 0xFF_FFFF;
            let generation = waits.generation;
            let slot = match waits.requests.iter().position(Option::is_none) {
                Some(slot) => slot,
                None if waits.requests.len() < MAX_REQUESTS => {
                    waits.requests.push(None);
                    waits.requests.len() - 1
                }
                None => return (buf, Err(trefoil_storage::Fault::Internal)),
            };
            if let Some(place) = waits.requests.get_mut(slot) {
                *place = Some((generation, tell));
            }
            Origin { core, home: self.home, owner: Owner::Control, slot: slot as u32, generation }
        };
        let request = Request::new(op, LunId(u32::MAX), range.0, range.1, buf, origin).durable(durable);
        if self.send(core, Msg::BackendIo(backend, request)).await.is_err() {
            return (None, Err(trefoil_storage::Fault::Gone));
        }
        match wait.await {
            Ok(done) => done.settle(),
            Err(_) => (None, Err(trefoil_storage::Fault::Gone)),
        }
    }
}

/// Turns an I/O error of a device into a refusal.
pub fn device(what: impl std::fmt::Display, e: &io::Error) -> Refusal {
    let full = e.raw_os_error() == Some(Errno::ENOSPC as i32);
    Refusal::new(if full { Fault::NoSpace } else { Fault::Device }, format!("{what}: {e}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use trefoil_poll::{ArenaId, MeshBounds, mesh};
    use trefoil_sys::region::Region;

    /// Makes a core that never answers. The test makes its events. Needs a tokio runtime.
    pub fn mute() -> Rc<Cores> {
        let mesh = mesh(1, MeshBounds::default()).expect("mailboxes");
        let memory = Region::anonymous(2 << 20).expect("memory for a test");
        let arena = Arena::new(ArenaId(1), memory);
        let ends = Ends { to_cores: mesh.to_cores, from_cores: mesh.from_cores, metrics: Vec::new(), arena };
        Cores::new(ends).expect("cores")
    }

    /// Lets core 0 report `event`.
    pub fn hear(cores: &Cores, event: Event) {
        cores.take(CoreId(0), Msg::Event(event));
    }
}
