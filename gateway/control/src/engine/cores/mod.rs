//! The control thread's side of the mailboxes: sends messages to cores, and passes each answer to the task that waits for it.
//!
//! One task receives the messages ([`Cores::listen`]). All other tasks send and wait. A core answers every question once, so
//! every wait ends if the core runs.

mod backend_io;
mod questions;

use super::refused::RefusedHosts;
use super::reports::Reports;
use crate::error::{Fault, Refusal};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::Instant;
use trefoil_poll::{Arena, ControlReceiver, ControlSender, CoreId, CoreMetrics};
use trefoil_storage::Msg;
use trefoil_storage::backend::Attach;
use trefoil_storage::core::MAX_WAITING_CONNS;
use trefoil_storage::msg::{Event, Refused, Survey};
use trefoil_storage::request::Completed;
use trefoil_storage::stats::LunSurvey;
use trefoil_storage::topology::{BackendId, LunId};

/// A message between the control thread and the cores of the real driver.
pub type CoreMsg = Msg<OwnedFd, Attach<OwnedFd>>;

/// Time for which control keeps a core's [`Refused`] box. A core needs the box to report a refusal, so this time bounds the
/// rate of the reports.
const RETURN_AFTER: Duration = Duration::from_millis(100);

/// The control thread's ends of the mailboxes, which the gateway made.
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

/// The receiver, in a type that tokio can poll.
struct Mail(ControlReceiver<CoreMsg>);

impl AsRawFd for Mail {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

type AttachBox = Box<Attach<OwnedFd>>;
type AttachAnswer = Result<(), Option<AttachBox>>;
type Wait<T> = oneshot::Sender<T>;

#[derive(Default)]
struct Waits {
    topology: HashMap<(CoreId, u64), Wait<()>>,
    /// Waits for the answers to Attach and Detach. A successful Attach answers `Ok`. Detach and a refused Attach return the
    /// box, if there is one.
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
    /// The reports of backends.
    pub reports: Reports,
    /// Held during a survey. Two answers of one core can't be told apart, so only one survey is requested at a time.
    surveying: tokio::sync::Mutex<()>,
    /// The number of further connections that each core accepts now.
    room: Vec<Cell<usize>>,
    /// Notified when a core accepts more connections.
    has_room: tokio::sync::Notify,
    refused: RefCell<RefusedHosts>,
    /// The [`Refused`] boxes that will be returned to cores, each with its due time. The soonest is first.
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
        // `AsyncFd` deprecates this function, because some types close their descriptor while it is registered. The replacement
        // is unsafe. A ControlReceiver keeps its eventfd open as long as the receiver exists.
        #[expect(deprecated, reason = "the replacement is unsafe, which this crate forbids")]
        let mail = AsyncFd::with_interest(Mail(ends.from_cores), tokio::io::Interest::READABLE)?;
        Ok(Rc::new(Self {
            room: ends.to_cores.iter().map(|_| Cell::new(MAX_WAITING_CONNS)).collect(),
            has_room: tokio::sync::Notify::new(),
            to_cores: ends.to_cores.into_iter().map(RefCell::new).collect(),
            mail: RefCell::new(Some(mail)),
            metrics: ends.metrics,
            home: ends.arena.id().0,
            arena: RefCell::new(ends.arena),
            waits: RefCell::default(),
            reports: Reports::default(),
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

    /// Sets the receiver of all further events.
    pub fn set_event_sink(&self, sink: EventSink) {
        *self.on_event.borrow_mut() = Some(sink);
    }

    /// Receives messages until the future is dropped. Only the first call has an effect.
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
                        // The task that sent the request may have given up. The request's block is then freed here.
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
                self.reports.note(&event);
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

    /// Returns the [`Refused`] boxes that are due to their cores. The delay bounds the work of this thread while hosts are
    /// refused all the time. Returns the time at which the next box is due.
    fn give_back(&self) -> Option<Instant> {
        let mut returns = self.returns.borrow_mut();
        let now = Instant::now();
        while let Some((_, core, place)) = returns.pop_front_if(|(due, ..)| *due <= now) {
            let Some(sender) = self.to_cores.get(usize::from(core.0)) else { continue };
            // If the core's ring is full, the core gets the box later.
            if let Err(Msg::Refused(place)) = sender.borrow_mut().send(Msg::Refused(place)) {
                returns.push_back((now + RETURN_AFTER, core, place));
            }
        }
        returns.front().map(|(due, ..)| *due)
    }

    /// Returns whether a core accepts another connection. [`send`](Self::send) subtracts each connection that it sends.
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
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use trefoil_poll::{ArenaId, MeshBounds, mesh};
    use trefoil_sys::region::Region;

    /// Makes a core that never answers. The test makes the core's events. Needs a tokio runtime.
    pub fn mute() -> Rc<Cores> {
        let mesh = mesh(1, MeshBounds::default()).expect("mailboxes");
        let memory = Region::anonymous(2 << 20).expect("memory for a test");
        let arena = Arena::new(ArenaId(1), memory);
        let ends = Ends { to_cores: mesh.to_cores, from_cores: mesh.from_cores, metrics: Vec::new(), arena };
        Cores::new(ends).expect("cores")
    }

    /// Delivers `event` as a report of core 0.
    pub fn hear(cores: &Cores, event: Event) {
        cores.take(CoreId(0), Msg::Event(event));
    }
}
