//! One controller of an array, which survives reconnects: the admin queue and every command on it.
//!
//! What it is: bring-up (Connect, CAP, CC.EN, CSTS.RDY, Identify, queues, events), keep alive, events, abort, reset, shutdown,
//! and reconnect with backoff. It also decides when a lost association is fenced. The controller runs on one core. It exchanges
//! [`InitiatorMsg`]s with the I/O queues on this core and on other cores.
//! What it is not: it carries no I/O (see `lane`).
//!
//! # The life of an association
//! Backoff → connect → bring-up → `Open` to the queues → ready. When any part of the association fails, the host first sends
//! `Close` to the queues.
//!
//! If the admin queue still works, the host then resets the controller: it sets CC.EN to 0 and waits for CSTS.RDY = 0. No command
//! of the association can take effect after the reset (NVMe base 2.0c §3.7.2), so the association is fenced at once. If the
//! previous association is not fenced yet, both are fenced when the previous one is due.
//! If the admin queue was lost, the array's controller may not have noticed the loss. Then the association is fenced after
//! [`keep_alive_bound`](super::fence::keep_alive_bound). A new Connect proves nothing about the old association: in the dynamic model, Connect creates another
//! controller. (A cross-controller reset, TP8028, would fence sooner, but arrays that support it are not common yet.)
//! Memory: an admin queue of [`QueueEntries::ADMIN`], and one 4 KiB block of the arena for data. At most one step, a keep alive,
//! an event request and aborts are outstanding. The controller keeps the block from its first attempt to [`Controller::release`],
//! so no admin command waits for memory that I/O uses.

use super::ana::AnaWatch;
use super::bringup::{Facts, Steps};
use super::command::{Command, Done, QpairEvent};
use super::config::{ControllerConfig, Purpose};
use super::discovery::LogReader;
use super::error::{ControllerError, QueueError};
use super::fence::{Backoff, FenceRule, Fences};
use super::message::{Association, InitiatorMsg, Limits};
use super::namespace::NamespaceIdentity;
use super::qpair::{Open, Qpair, QueueEntries};
use super::step::{BringupStep, LogPlace};
use crate::topology::Access;
use std::collections::VecDeque;
use std::time::Duration;
use trefoil_poll::{Arena, Buf, Instant, Io, SockId};
use trefoil_wire::fabrics::{DYNAMIC_CNTLID, FabricsCommand, PropertyGet, PropertySet, PropertySize};
use trefoil_wire::nvme::log::AnaState;
use trefoil_wire::nvme::property::{Cc, Csts, offset};
use trefoil_wire::nvme::{Abort, AdminCommand, AsyncEvent, Cqe, Sgl, Sqe, Status};

/// The largest number of outstanding aborts. Every controller accepts one (ACL). If another command expires meanwhile, it is not
/// aborted, and its second deadline closes the queue.
const ABORTS: u16 = 1;
const SCRATCH_BYTES: usize = 4096;
/// The interval between two reads of a property.
const POLL_EVERY: Duration = Duration::from_millis(10);
/// The deadline for a reset or a shutdown. After this time, the host disconnects without waiting for the controller's
/// confirmation.
pub(super) const STOP_WITHIN: Duration = Duration::from_secs(5);
/// The pause before the next request for memory or a socket.
const AGAIN_AFTER: Duration = Duration::from_millis(10);
/// An event for the owner of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerEvent {
    /// The first I/O queue is up (for discovery: the controller is ready).
    Up(Facts),
    /// The association ended, or an attempt failed.
    Down(ControllerError),
    /// The namespace's size changed.
    Resized(Facts),
    /// The namespace's access changed to this value. Before the first event of this kind, the access is full. From `GaveUp` until
    /// the next `Up`, the namespace is reported as inaccessible.
    Access(Access),
    /// The discovery log was read completely; see [`Controller::discovery`].
    DiscoveryLog,
    /// The loss timeout passed: waiting I/O fails.
    GaveUp,
    /// The stop that the owner requested is complete: the controller has no connection.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not started, or stopped.
    Idle,
    /// The controller waits until this time for the next attempt.
    Backoff(Instant),
    /// Connecting and bringing up.
    Rising,
    /// The association is established.
    Ready,
    /// CC.EN was cleared, to fence the association.
    Resetting,
    /// CC.SHN was set, to stop the controller.
    Stopping,
    /// The admin queue is closing.
    Closing,
}

const TAG_STEP: u64 = 0;
const TAG_KEEP_ALIVE: u64 = 1;
const TAG_EVENT: u64 = 2;
const TAG_ABORT: u64 = 3;

/// A controller that survives reconnects; see the module.
pub struct Controller {
    config: ControllerConfig,
    qpair: Qpair,
    state: State,
    stop: bool,
    /// The number of attempts, which selects the address.
    attempts: usize,
    epoch: u32,
    /// `Open` was sent for this association, and `Close` was not.
    opened: bool,
    cntlid: u16,
    facts: Facts,
    /// The identity of the namespace: from the owner if the owner sets one, else from the first bring-up.
    namespace: Option<NamespaceIdentity>,
    /// The namespace's size in blocks that was last reported to the owner.
    told_blocks: u64,
    /// The limits that were sent to the queues for this association.
    told_limits: Limits,
    /// The namespace's access that was last reported to the owner.
    told_access: Access,
    ana: AnaWatch,
    steps: Steps,
    current: Option<BringupStep>,
    scratch: Option<Buf>,
    log: LogReader,
    /// The number of I/O queues that are up.
    queues_up: u16,
    aborts: u16,
    backoff: Backoff,
    /// The time at which the association's first queue came up.
    risen_at: Option<Instant>,
    fences: Fences,
    lost_since: Option<Instant>,
    gave_up: bool,
    keep_alive_at: Option<Instant>,
    poll_at: Option<Instant>,
    poll_until: Instant,
    out: VecDeque<InitiatorMsg>,
    events: VecDeque<ControllerEvent>,
    new_sock: Option<SockId>,
}

impl Controller {
    /// Makes a controller. [`start`](Self::start) starts it.
    ///
    /// # Panics
    /// If `config` has no address, or its KATO is below one second.
    pub fn new(config: ControllerConfig) -> Self {
        assert!(!config.addrs.is_empty(), "a controller without an address");
        assert!(config.kato_ms >= 1000, "KATO of {} ms", config.kato_ms);
        let qpair =
            Qpair::new(config.identity.clone(), 0, QueueEntries::ADMIN, config.digests, config.admin_timeout);
        // The bound on the pause lets the host find a returning controller before I/O fails, even after many reconnects.
        let (min, max) = config.reconnect;
        let backoff = Backoff::new(min, max.min(config.loss_timeout / 4).max(min));
        Self {
            qpair,
            state: State::Idle,
            stop: false,
            attempts: 0,
            epoch: 0,
            opened: false,
            cntlid: 0,
            facts: Facts::default(),
            namespace: None,
            told_blocks: 0,
            told_limits: Limits::default(),
            told_access: Access::FULL,
            ana: AnaWatch::default(),
            steps: Steps::new(),
            current: None,
            scratch: None,
            log: LogReader::new(config.discovery_entries),
            queues_up: 0,
            aborts: 0,
            backoff,
            risen_at: None,
            fences: Fences::new(),
            lost_since: None,
            gave_up: false,
            keep_alive_at: None,
            poll_at: None,
            poll_until: Instant::default(),
            // Open, Close, Fenced, GiveUp and Inaccessible of one association, and of the next.
            out: VecDeque::with_capacity(16),
            events: VecDeque::with_capacity(32),
            new_sock: None,
            config,
        }
    }

    /// Makes the controller accept only this namespace, which the owner knows from an earlier connection. Call this before
    /// [`start`](Self::start).
    pub fn take_only(&mut self, namespace: NamespaceIdentity) {
        self.namespace = Some(namespace);
    }

    /// Starts to connect at once.
    pub fn start<I: Io>(&mut self, io: &mut I) {
        if self.state == State::Idle {
            self.stop = false;
            self.lost_since = Some(io.now());
            self.state = State::Backoff(io.now());
        }
    }

    /// Starts an orderly stop: closes the queues, shuts the controller down (CC.SHN), then disconnects.
    /// [`ControllerEvent::Stopped`] follows. Commands that are still on the queues fail.
    pub fn stop<I: Io>(&mut self, io: &mut I) {
        self.stop = true;
        self.out.push_back(InitiatorMsg::GiveUp);
        match self.state {
            State::Idle | State::Backoff(_) => self.rest(),
            State::Ready => {
                self.close_queues();
                self.state = State::Stopping;
                self.keep_alive_at = None;
                self.poll_until = io.now() + STOP_WITHIN;
                self.steps.clear();
                self.steps.push(BringupStep::Shutdown);
            }
            State::Rising => self.down(io, ControllerError::Stopped),
            State::Resetting | State::Stopping | State::Closing => {}
        }
    }

    fn rest(&mut self) {
        self.state = State::Idle;
        self.lost_since = None;
        self.events.push_back(ControllerEvent::Stopped);
    }

    /// Gives the controller's block back to the arena. Call this when the controller is stopped, before dropping it.
    pub fn release(&mut self, arena: &mut Arena) {
        if let Some(buf) = self.scratch.take() {
            arena.free(buf);
        }
    }

    /// Returns the admin queue's socket.
    pub fn sock(&self) -> Option<SockId> {
        self.qpair.sock()
    }

    /// Returns the admin queue, for socket events.
    pub fn qpair(&mut self) -> &mut Qpair {
        &mut self.qpair
    }

    /// Returns the socket that the controller opened since the last call.
    pub fn take_new_sock(&mut self) -> Option<SockId> {
        self.new_sock.take()
    }

    /// Returns the next message for all I/O queues.
    pub fn next_msg(&mut self) -> Option<InitiatorMsg> {
        self.out.pop_front()
    }

    /// Returns the messages that a newly attached queue has missed: `Open` if the association is established, and `GiveUp` if the
    /// loss timeout passed.
    pub fn standing(&self) -> impl Iterator<Item = InitiatorMsg> + use<> {
        let open = self.opened.then(|| InitiatorMsg::Open(self.association()));
        open.into_iter().chain(self.gave_up.then_some(InitiatorMsg::GiveUp))
    }

    /// Returns the next event.
    pub fn next_event(&mut self) -> Option<ControllerEvent> {
        self.events.pop_front()
    }

    /// Returns the known facts of the controller and its namespace; empty before the first bring-up.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns the discovery log of the last complete read.
    pub fn discovery(&self) -> &LogReader {
        &self.log
    }

    /// Returns whether the association is established.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Returns whether the controller is stopped and no association awaits its fence.
    pub fn is_stopped(&self) -> bool {
        self.state == State::Idle && self.fences.next().is_none()
    }

    /// Reads the discovery log again.
    pub fn refresh_discovery(&mut self) {
        if self.state == State::Ready {
            self.log.restart();
            self.steps.push(BringupStep::DiscoveryHeader);
        }
    }

    /// Takes a message from an I/O queue.
    pub fn on_msg<I: Io>(&mut self, io: &mut I, msg: InitiatorMsg) {
        match msg {
            InitiatorMsg::Opened { epoch, .. } if epoch == self.epoch && self.opened => {
                self.queues_up += 1;
                if self.queues_up == 1 {
                    self.risen(io.now());
                }
            }
            InitiatorMsg::Lost { epoch, qid, why } if epoch == self.epoch && self.opened => {
                self.down(io, ControllerError::Queue { qid, why });
            }
            InitiatorMsg::Expired { epoch, qid, cid }
                if epoch == self.epoch && self.state == State::Ready =>
            {
                self.abort(io, qid, cid);
            }
            InitiatorMsg::AnaError { epoch } if epoch == self.epoch && self.state == State::Ready => {
                self.steps.push(BringupStep::Ana(LogPlace::default()));
            }
            _ => {}
        }
    }

    fn risen(&mut self, now: Instant) {
        self.risen_at = Some(now);
        self.lost_since = None;
        self.gave_up = false;
        self.told_blocks = self.facts.blocks;
        self.events.push_back(ControllerEvent::Up(self.facts.clone()));
        self.tell_access();
    }

    /// Reports the namespace's access to the owner, if it changed.
    fn tell_access(&mut self) {
        let ana_state = if self.gave_up { AnaState::Inaccessible } else { self.ana.state() };
        let access = Access { ana_state, read_only: self.facts.read_only };
        // During a reconnect, the last reported state remains valid.
        if self.told_access == access || (self.state != State::Ready && !self.gave_up) {
            return;
        }
        if self.told_access.ana_state.is_usable() && !ana_state.is_usable() {
            self.out.push_back(InitiatorMsg::Inaccessible);
        }
        self.told_access = access;
        self.events.push_back(ControllerEvent::Access(access));
    }

    fn abort<I: Io>(&mut self, io: &mut I, sqid: u16, cid: u16) {
        if self.aborts < ABORTS {
            let sqe = AdminCommand::Abort(Abort { sqid, cid }).sqe(0, 0, Sgl::NONE);
            self.aborts += u16::from(self.qpair.submit(io.now(), Command::bare(TAG_ABORT, sqe)).is_ok());
        }
    }

    /// Ends the association. Resets the controller if the admin queue works and there are queues to fence.
    fn down<I: Io>(&mut self, io: &mut I, why: ControllerError) {
        if !matches!(self.state, State::Rising | State::Ready) {
            return;
        }
        let now = io.now();
        self.events.push_back(ControllerEvent::Down(why));
        // Only an association that lasted at least the longest pause resets the backoff. Otherwise the host would send Connects
        // to an unstable controller too often.
        if self.risen_at.take().is_some_and(|at| now.since(at) >= self.config.reconnect.1) {
            self.backoff.reset();
        }
        let had_queues = self.close_queues();
        self.lost_since.get_or_insert(now);
        self.keep_alive_at = None;
        self.steps.clear();
        if had_queues && self.qpair.is_live() {
            self.state = State::Resetting;
            self.poll_until = now + STOP_WITHIN;
            self.steps.push(BringupStep::Reset);
        } else {
            self.unfenced(now, had_queues);
            self.close_admin(io);
        }
    }

    /// Fences the association by the fence rule, since no reset proves that its commands can't take effect any more.
    fn unfenced(&mut self, now: Instant, had_queues: bool) {
        if !had_queues || self.config.purpose == Purpose::Discovery {
            return;
        }
        match self.config.fence {
            FenceRule::KeepAliveBound => {
                self.fences.add(self.epoch, now + self.facts.fence_after(self.config.kato_ms));
            }
            FenceRule::Immediate => self.out.push_back(InitiatorMsg::Fenced { epoch: self.epoch }),
        }
    }

    fn close_queues(&mut self) -> bool {
        let had_queues = self.opened;
        if had_queues {
            self.opened = false;
            self.queues_up = 0;
            self.out.push_back(InitiatorMsg::Close { epoch: self.epoch });
        }
        had_queues
    }

    fn close_admin<I: Io>(&mut self, io: &mut I) {
        self.steps.clear();
        self.poll_at = None;
        if self.qpair.is_closed() {
            self.closed(io);
        } else {
            self.state = State::Closing;
            self.qpair.close(io);
        }
    }

    /// Handles the close of the admin queue: stops, or tries again after a pause.
    fn closed<I: Io>(&mut self, io: &mut I) {
        self.aborts = 0;
        if self.stop {
            self.rest();
        } else {
            let pause = self.backoff.next(io.random());
            self.state = State::Backoff(io.now() + pause);
        }
    }

    /// Handles events, completions and timers, then sends the pending PDUs.
    pub fn on_turn<I: Io>(&mut self, io: &mut I, arena: &mut Arena) {
        let now = io.now();
        if self.qpair.next_deadline().is_some_and(|at| at <= now) {
            self.qpair.on_tick(io);
        }
        while let Some(done) = self.qpair.next_done() {
            self.on_done(io, done);
        }
        while let Some(event) = self.qpair.next_event() {
            self.on_qpair_event(io, event);
        }
        if let Some(epoch) = self.fences.expire(now) {
            self.out.push_back(InitiatorMsg::Fenced { epoch });
        }
        self.check_loss(now);
        if self.ana.on_tick(now) && self.state == State::Ready {
            self.steps.push(BringupStep::Ana(LogPlace::default()));
        }
        self.tell_access();
        self.connect(io, arena);
        self.keep_alive(io);
        self.advance(io);
        self.qpair.flush(io);
    }

    fn check_loss(&mut self, now: Instant) {
        let lost = self.lost_since.is_some_and(|since| now.since(since) >= self.config.loss_timeout);
        if lost && !self.gave_up {
            self.gave_up = true;
            self.out.push_back(InitiatorMsg::GiveUp);
            self.events.push_back(ControllerEvent::GaveUp);
            self.tell_access();
        }
    }

    /// Starts the next attempt to connect once the pause is over.
    fn connect<I: Io>(&mut self, io: &mut I, arena: &mut Arena) {
        let now = io.now();
        if !matches!(self.state, State::Backoff(at) if at <= now) {
            return;
        }
        self.scratch = self.scratch.take().or_else(|| arena.alloc(SCRATCH_BYTES));
        let address = self.config.addrs.get(self.attempts % self.config.addrs.len()).copied();
        let (Some(to), true) = (address, self.scratch.is_some()) else {
            self.state = State::Backoff(now + AGAIN_AFTER);
            return;
        };
        self.attempts += 1;
        let open = Open {
            to,
            cntlid: DYNAMIC_CNTLID,
            entries: QueueEntries::ADMIN,
            kato_ms: self.config.kato_ms,
            max_capsule_data_bytes: 8192,
            within: self.config.connect_timeout,
        };
        match self.qpair.open(io, open) {
            Ok(sock) => {
                self.new_sock = Some(sock);
                self.state = State::Rising;
                self.current = None;
            }
            Err(_) => self.state = State::Backoff(now + AGAIN_AFTER),
        }
    }

    fn on_qpair_event<I: Io>(&mut self, io: &mut I, event: QpairEvent) {
        match event {
            QpairEvent::Up { cntlid } => {
                self.cntlid = cntlid;
                self.facts = Facts::default();
                self.steps.clear();
                self.steps.push(BringupStep::Capabilities);
            }
            // A late admin command means that the controller does not answer.
            QpairEvent::Expired { cid } => {
                let why = QueueError::CommandTimeout { cid };
                self.qpair.fail(io, why);
            }
            QpairEvent::Down(why) => {
                self.current = None;
                let now = io.now();
                match self.state {
                    State::Resetting | State::Stopping => {
                        self.unfenced(now, true);
                        self.closed(io);
                    }
                    State::Rising | State::Ready => self.down(io, ControllerError::Queue { qid: 0, why }),
                    _ => self.closed(io),
                }
            }
        }
    }

    fn keep_alive<I: Io>(&mut self, io: &mut I) {
        let now = io.now();
        if self.keep_alive_at.is_some_and(|at| at <= now) {
            // This keep alive is at most KATO/2 late. The next keep alive is due KATO/2 after this one.
            let period = Duration::from_millis(u64::from(self.config.kato_ms / 2));
            self.keep_alive_at = Some(now + period);
            let sqe = AdminCommand::KeepAlive.sqe(0, 0, Sgl::NONE);
            let by = now + 2 * period;
            // If the queue is full, the array doesn't answer admin commands. The deadlines of these commands then end the
            // association.
            let _ = self.qpair.submit_by(Command::bare(TAG_KEEP_ALIVE, sqe), by);
        }
    }

    /// Submits the command of the next step, if no step is under way.
    fn advance<I: Io>(&mut self, io: &mut I) {
        let now = io.now();
        if self.poll_at.is_some_and(|at| at <= now) {
            self.poll_at = None;
            self.steps.push(BringupStep::Poll);
        }
        if self.current.is_some() || !self.qpair.has_room() {
            return;
        }
        let Some(step) = self.steps.pop() else { return };
        if step == BringupStep::Ready {
            return self.on_ready(io);
        }
        let Some(command) = self.command(step) else { return };
        // The deadline of a reset or a shutdown is `poll_until`, so that the time to the keep-alive bound starts sooner.
        let by = match self.state {
            State::Resetting | State::Stopping => self.poll_until,
            _ => now + self.config.admin_timeout,
        };
        match self.qpair.submit_by(command, by) {
            Ok(()) => self.current = Some(step),
            Err(mut command) => self.scratch = self.scratch.take().or_else(|| command.take_buf()),
        }
    }

    /// Returns the command of a step. Its data goes to the scratch block.
    fn command(&mut self, step: BringupStep) -> Option<Command> {
        let sqe = match step {
            BringupStep::Capabilities => get(PropertySize::Eight, offset::CAP),
            BringupStep::Poll => get(PropertySize::Four, offset::CSTS),
            BringupStep::Enable => set_cc(Cc { en: true, iosqes: 6, iocqes: 4, ..Cc::default() }),
            BringupStep::Reset => set_cc(Cc { iosqes: 6, iocqes: 4, ..Cc::default() }),
            BringupStep::Shutdown => set_cc(Cc { en: true, shn: 1, iosqes: 6, iocqes: 4, ..Cc::default() }),
            _ => {
                let (sqe, len) = step.admin_command(&self.config, &self.facts, &self.log);
                if len > 0 {
                    return Some(Command::fill(TAG_STEP, sqe, self.scratch.take()?, 0, len));
                }
                sqe
            }
        };
        Some(Command::bare(TAG_STEP, sqe))
    }

    fn on_done<I: Io>(&mut self, io: &mut I, done: Done) {
        let Done { mut command, result } = done;
        let tag = command.tag;
        match (tag, result) {
            (TAG_STEP, Ok(cqe)) => {
                let step = self.current.take();
                if let Some(step) = step {
                    self.on_step(io, step, cqe, &command);
                }
            }
            (TAG_EVENT, Ok(cqe)) if cqe.status.is_ok() => self.on_async_event(cqe),
            (TAG_KEEP_ALIVE, Ok(cqe)) if !cqe.status.is_ok() => {
                self.down(io, ControllerError::Command { step: "Keep Alive", status: cqe.status });
            }
            (TAG_ABORT, _) => self.aborts = self.aborts.saturating_sub(1),
            _ => {}
        }
        if let Some(buf) = command.take_buf() {
            self.scratch = Some(buf);
        }
    }

    /// Handles the answer to a step and chooses the next step.
    fn on_step<I: Io>(&mut self, io: &mut I, step: BringupStep, cqe: Cqe, command: &Command) {
        if !cqe.status.is_ok() && step.is_essential() {
            return match self.state {
                State::Resetting | State::Stopping => self.ended(io, false),
                _ => self.down(io, ControllerError::Command { step: step.name(), status: cqe.status }),
            };
        }
        match step {
            BringupStep::Capabilities => {
                self.facts.take_capabilities(cqe.result);
                self.poll_until = io.now() + self.facts.ready_within;
                self.steps.push(BringupStep::Enable);
            }
            BringupStep::Enable | BringupStep::Reset | BringupStep::Shutdown => {
                self.steps.push(BringupStep::Poll)
            }
            BringupStep::Poll => self.on_status(io, Csts::from_bits(cqe.dw0())),
            BringupStep::Queues => match self.facts.take_queues(cqe.dw0(), self.config.io_queues) {
                Ok(()) => self.steps.push(BringupStep::Namespace),
                Err(why) => self.down(io, ControllerError::Unusable(why)),
            },
            _ => self.on_data(io, step, cqe, command.data()),
        }
    }

    /// Handles an answer with CSTS. After every change of CC, the controller polls CSTS.
    fn on_status<I: Io>(&mut self, io: &mut I, csts: Csts) {
        let reached = match self.state {
            State::Resetting => !csts.rdy,
            State::Stopping => csts.shst == 2,
            _ => csts.rdy,
        };
        let ending = matches!(self.state, State::Resetting | State::Stopping);
        if reached {
            match ending {
                true => self.ended(io, true),
                false => self.steps.push(BringupStep::Controller),
            }
        } else if csts.cfs && !ending {
            self.down(io, ControllerError::Fatal);
        } else if io.now() >= self.poll_until {
            match ending {
                true => self.ended(io, false),
                false => self.down(io, ControllerError::NotReady),
            }
        } else {
            self.poll_at = Some(io.now() + POLL_EVERY);
        }
    }

    /// Handles the end of a reset or a shutdown. `proven` says whether the controller confirmed the reset or shutdown.
    fn ended<I: Io>(&mut self, io: &mut I, proven: bool) {
        match proven {
            true => self.fences.add(self.epoch, io.now()),
            false => self.unfenced(io.now(), true),
        }
        self.close_admin(io);
    }

    fn on_data<I: Io>(&mut self, io: &mut I, step: BringupStep, cqe: Cqe, data: &[u8]) {
        let discovery = self.config.purpose == Purpose::Discovery;
        match step {
            BringupStep::Controller => {
                if let Err(why) = self.facts.take_controller(data, discovery) {
                    return self.down(io, ControllerError::Unusable(why));
                }
                if self.facts.kas_ms > 0 {
                    self.keep_alive_at = Some(io.now());
                }
                self.steps.push(BringupStep::EventConfig);
                self.steps.push(if discovery { BringupStep::Ready } else { BringupStep::Queues });
            }
            BringupStep::Namespace => {
                if let Err(why) = self.facts.take_namespace(data) {
                    return self.down(io, ControllerError::Unusable(why));
                }
                self.steps.push(BringupStep::Descriptors);
            }
            BringupStep::Descriptors => {
                // Old controllers don't support the descriptor list. After any other failure (for example, the namespace was just
                // removed), the identity is incomplete. It must not be stored, since the first stored identity is kept for good.
                let status = cqe.status;
                if status.is_ok() {
                    self.facts.take_descriptors(data);
                } else if !status.is(Status::INVALID_FIELD) && !status.is(Status::INVALID_OPCODE) {
                    return self.down(io, ControllerError::Command { step: step.name(), status });
                }
                let is = self.facts.identity();
                let was = *self.namespace.get_or_insert(is);
                if !was.is(&is) {
                    return self.down(io, ControllerError::AnotherNamespace { was, is });
                }
                match self.facts.ana {
                    // The namespace may be in another ANA group now.
                    true => self.steps.push(BringupStep::Ana(LogPlace::default())),
                    false => self.ana.take(io.now(), AnaState::Optimized),
                }
                if self.state == State::Ready {
                    if self.facts.limits() != self.told_limits {
                        return self.down(io, ControllerError::AnotherBehaviour);
                    }
                    if std::mem::replace(&mut self.told_blocks, self.facts.blocks) != self.facts.blocks {
                        self.events.push_back(ControllerEvent::Resized(self.facts.clone()));
                    }
                    return;
                }
                self.steps.push(BringupStep::Ready);
            }
            BringupStep::Ana(place) if cqe.status.is_ok() => match self.facts.find_group(place, data) {
                (Some(state), _) => self.ana.take(io.now(), state),
                (None, Some(next)) => self.steps.push_first(BringupStep::Ana(next)),
                // The log does not list the namespace's group.
                (None, None) => self.ana.take(io.now(), AnaState::Optimized),
            },
            BringupStep::ChangedNamespaces => self.steps.push(BringupStep::Namespace),
            BringupStep::DiscoveryHeader | BringupStep::DiscoveryEntries => match self.log.take(step, data) {
                Some(next) => self.steps.push(next),
                None => self.events.push_back(ControllerEvent::DiscoveryLog),
            },
            _ => {}
        }
    }

    /// Ends bring-up: the queues may connect.
    fn on_ready<I: Io>(&mut self, io: &mut I) {
        if self.state != State::Rising {
            return;
        }
        self.state = State::Ready;
        self.epoch += 1;
        self.wait_for_event();
        match self.config.purpose {
            Purpose::Discovery => {
                self.risen(io.now());
                self.refresh_discovery();
            }
            Purpose::Nvm { .. } => {
                self.opened = true;
                self.told_limits = self.facts.limits();
                self.out.push_back(InitiatorMsg::Open(self.association()));
            }
        }
        if self.stop {
            self.stop(io);
        }
    }

    fn association(&self) -> Association {
        Association {
            epoch: self.epoch,
            cntlid: self.cntlid,
            to: self.qpair.peer(),
            queues: self.facts.queues,
            entries: self.config.entries.within(self.facts.mqes),
            max_capsule_data_bytes: self.facts.max_capsule_data_bytes,
            limits: self.facts.limits(),
        }
    }

    fn wait_for_event(&mut self) {
        let sqe = AdminCommand::AsyncEventRequest.sqe(0, 0, Sgl::NONE);
        // If the queue is full, no event arrives until the next association. The queue holds 31 commands.
        let _ = self.qpair.submit_untimed(Command::bare(TAG_EVENT, sqe));
    }

    /// Reads the log page of an event, which also re-arms the event (NVMe base 2.0c §5.2.1).
    fn on_async_event(&mut self, cqe: Cqe) {
        if self.state != State::Ready {
            return;
        }
        let event = AsyncEvent::from_dw0(cqe.dw0());
        self.steps.push(match event {
            AsyncEvent::DISCOVERY_CHANGED => BringupStep::DiscoveryHeader,
            AsyncEvent::NAMESPACE_CHANGED => BringupStep::ChangedNamespaces,
            AsyncEvent::ANA_CHANGE => BringupStep::Ana(LogPlace::default()),
            other => BringupStep::Rearm { log_page: other.log_page },
        });
        self.wait_for_event();
    }

    /// Returns when [`on_turn`](Self::on_turn) must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let attempt = match self.state {
            State::Backoff(at) => Some(at),
            _ => None,
        };
        let loss = self.lost_since.filter(|_| !self.gave_up).map(|since| since + self.config.loss_timeout);
        let (fence, ana) = (self.fences.next(), self.ana.next_deadline());
        let timers =
            [attempt, loss, self.keep_alive_at, self.poll_at, fence, ana, self.qpair.next_deadline()];
        timers.into_iter().flatten().min()
    }
}

fn get(size: PropertySize, offset: u32) -> Sqe {
    FabricsCommand::PropertyGet(PropertyGet { size, offset }).sqe(0, Sgl::NONE)
}

fn set_cc(cc: Cc) -> Sqe {
    let set = PropertySet { size: PropertySize::Four, offset: offset::CC, value: u64::from(cc.bits()) };
    FabricsCommand::PropertySet(set).sqe(0, Sgl::NONE)
}
