//! One I/O queue over its reconnects: what waits, what is held, what is tried again.
//!
//! What it is: a [`Qpair`] and the commands of its owner, which never notices a reconnect. Before the
//! queue is up, and after it was lost, commands wait.
//!
//! What it is not: it decides nothing about the controller (see `controller`), and opens and closes
//! only when told.
//!
//! # When a command is sent again
//! A command whose completion never came may still be under way in the array. A read, or a flush, does
//! no harm twice and goes again at once. So does one that was never sent. A *write that was sent* must
//! not: its old copy could land after the retry completed and overwrite what was written later. It is
//! held until the controller says [`InitiatorMsg::Fenced`] for its association, and is not failed
//! before that either, as its owner would try again elsewhere (NVMe base 2.1 §9.6, TP4129; see
//! `controller` for when an association counts as fenced).
//!
//! A command that is *cancelled*, since the host that asked for it is gone, is not sent (again). It ends with
//! [`Fault::Aborted`]: at once, unless it is a write that was sent; then when it completes, or is fenced.
//!
//! A command that *completed* with a status that asks for a retry goes again after a pause, until the
//! loss timeout has passed since it was first submitted. One that ended with the ANA status of a namespace that reports its
//! state doesn't: our hosts are told of the state and know best what to do. Only a change of state is waited for as long as
//! [`CHANGE_HELD`].
//!
//! # When a command is given up
//! With [`Fault::PathLost`], once the controller says [`InitiatorMsg::GiveUp`]. A controller that comes back each time says no
//! such thing, however often its queues are lost: so a command also fails that is lost (again) when the loss timeout has
//! passed since it was first, and what waits fails when the queue could not connect for as long.
//!
//! What comes after that is held for [`HELD_FOR`] and fails then, all at once, unless the array is back before: a host with
//! several paths sends again at once what fails, and neither it nor this core would have a pause.
//!
//! Memory: a lane holds at most `capacity` commands of about 180 bytes; they are in the queue pair or in
//! one of four queues, each with room for all of them.

use super::ana::CHANGE_HELD;
use super::command::{Command, Done, QpairEvent};
use super::error::QueueError;
use super::message::{Association, InitiatorMsg, Limits};
use super::qpair::{Identity, Open, Qpair, QueueEntries};
use crate::request::Fault;
use std::collections::VecDeque;
use std::time::Duration;
use trefoil_poll::{Buf, Instant, Io, RecvEnd, SendList, SockError, SockId};
use trefoil_wire::nvme::{Cqe, Status, StatusType};

/// Pause before a command is tried again after a transient status, without a CRD of the controller's.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How long a path error waits that an array which was given up would answer at once.
pub const HELD_FOR: Duration = Duration::from_millis(500);

/// What a lane is made from.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// The names in Connect.
    pub identity: Identity,
    /// The queue, from 1.
    pub qid: u16,
    /// Size of the queue.
    pub entries: QueueEntries,
    /// Commands that the lane can hold in all.
    pub capacity: usize,
    /// Ask for header and data digest.
    pub digests: (bool, bool),
    /// When a command is aborted, from when it is sent.
    pub command_timeout: Duration,
    /// Time for the connection to come up.
    pub connect_timeout: Duration,
    /// How long a command is tried again.
    pub loss_timeout: Duration,
}

/// A command that is done with.
#[derive(Debug)]
#[must_use = "a command may hold a block"]
pub struct Finished {
    /// The command with its block.
    pub command: Command,
    /// The controller's completion (look at its status), [`Fault::PathLost`], or [`Fault::Aborted`] if it was cancelled.
    pub result: Result<Cqe, Fault>,
}

/// See the module.
pub struct Lane {
    config: LaneConfig,
    qpair: Qpair,
    /// The association that should be in force.
    wanted: Option<Association>,
    /// The association that the queue pair is or was open for.
    epoch: u32,
    /// Writes of this association and before may go again.
    fenced_epoch: u32,
    gave_up: bool,
    /// When the queue was lost or could not connect; it has not been up since.
    down_since: Option<Instant>,
    /// When the controller may be told of an ANA status again.
    ana_error_at: Instant,
    /// When what waits fails, since all is given up.
    fail_at: Option<Instant>,
    stopping: bool,
    limits: Limits,
    holding: usize,
    waiting: VecDeque<Command>,
    held: VecDeque<(u32, Command)>,
    /// With the time at which to try again, in no order.
    delayed: VecDeque<(Instant, Command)>,
    finished: VecDeque<Finished>,
    out: VecDeque<InitiatorMsg>,
    new_sock: Option<SockId>,
}

impl Lane {
    /// A lane whose commands wait for the first [`InitiatorMsg::Open`].
    pub fn new(config: LaneConfig) -> Self {
        let qpair = Qpair::new(
            config.identity.clone(),
            config.qid,
            config.entries,
            config.digests,
            config.command_timeout,
        );
        let capacity = config.capacity;
        // Opened, Lost, an AnaError, and one Expired for each command.
        let out = VecDeque::with_capacity(3 + usize::from(config.entries.commands()));
        Self {
            qpair,
            config,
            wanted: None,
            epoch: 0,
            fenced_epoch: 0,
            gave_up: false,
            down_since: None,
            ana_error_at: Instant::default(),
            fail_at: None,
            stopping: false,
            limits: Limits::default(),
            holding: 0,
            waiting: VecDeque::with_capacity(capacity),
            held: VecDeque::with_capacity(capacity),
            delayed: VecDeque::with_capacity(capacity),
            finished: VecDeque::with_capacity(capacity),
            out,
            new_sock: None,
        }
    }

    /// Its queue.
    pub fn qid(&self) -> u16 {
        self.config.qid
    }

    /// Whether commands go out.
    pub fn is_live(&self) -> bool {
        self.qpair.is_live()
    }

    /// Whether it holds no command.
    pub fn is_idle(&self) -> bool {
        self.holding == 0
    }

    /// Whether it has no socket.
    pub fn is_closed(&self) -> bool {
        self.qpair.is_closed()
    }

    /// Its socket, while it has one.
    pub fn sock(&self) -> Option<SockId> {
        self.qpair.sock()
    }

    /// The socket that it opened since the last call.
    pub fn take_new_sock(&mut self) -> Option<SockId> {
        self.new_sock.take()
    }

    /// What commands must keep to; all zero before the first association.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Commands that it can take now.
    pub fn room(&self) -> usize {
        self.config.capacity - self.holding
    }

    /// Takes a command. It comes back through [`next_finished`](Self::next_finished).
    ///
    /// # Errors
    /// Gives the command back if the lane holds `capacity` commands.
    #[inline(always)]
    #[allow(clippy::result_large_err)]
    pub fn submit(&mut self, now: Instant, mut command: Command) -> Result<(), Command> {
        if self.room() == 0 {
            return Err(command);
        }
        self.holding += 1;
        command.since = now;
        if !self.waiting.is_empty() {
            self.waiting.push_back(command);
        } else if let Err(command) = self.qpair.submit(now, command) {
            self.waiting.push_back(command);
        }
        Ok(())
    }

    /// The next command that is done with.
    #[inline]
    pub fn next_finished(&mut self, now: Instant) -> Option<Finished> {
        loop {
            if let Some(finished) = self.finished.pop_front() {
                self.holding -= 1;
                return Some(finished);
            }
            let done = self.qpair.next_done()?;
            match done.result {
                Ok(cqe) if cqe.status.is_ok() => {
                    self.holding -= 1;
                    return Some(Finished { command: done.command, result: Ok(cqe) });
                }
                _ => self.sort(now, done),
            }
        }
    }

    /// Nobody waits for the commands with these tags any more; see the module.
    pub fn cancel(&mut self, now: Instant, which: impl Fn(u64) -> bool) {
        for _ in 0..self.waiting.len() {
            match self.waiting.pop_front() {
                Some(command) if which(command.tag) => self.fail(command, Fault::Aborted),
                other => self.waiting.extend(other),
            }
        }
        for _ in 0..self.delayed.len() {
            match self.delayed.pop_front() {
                Some((_, command)) if which(command.tag) => self.fail(command, Fault::Aborted),
                other => self.delayed.extend(other),
            }
        }
        for (_, command) in &mut self.held {
            command.cancelled |= which(command.tag);
        }
        self.qpair.cancel(now, which);
    }

    /// It is about to close: what is held of a path error comes at the next turn.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Takes back a command that waits, for an owner whose queue is not among those granted any more.
    pub fn take_waiting(&mut self) -> Option<Command> {
        if self.wanted.is_some() {
            return None;
        }
        let command =
            self.waiting.pop_front().or_else(|| self.delayed.pop_front().map(|(_, command)| command))?;
        self.holding -= 1;
        Some(command)
    }

    /// What goes to the controller.
    pub fn next_msg(&mut self) -> Option<InitiatorMsg> {
        self.out.pop_front()
    }

    /// A message of the controller's.
    pub fn on_msg<I: Io>(&mut self, io: &mut I, msg: InitiatorMsg) {
        match msg {
            InitiatorMsg::Open(association) => {
                self.limits = association.limits;
                self.gave_up = false;
                self.wanted = (self.config.qid <= association.queues).then_some(association);
                self.down_since = self.down_since.filter(|_| self.wanted.is_some());
                self.reopen(io);
            }
            InitiatorMsg::Close { epoch } => {
                if self.wanted.is_some_and(|wanted| wanted.epoch <= epoch) {
                    self.wanted = None;
                }
                if self.epoch <= epoch {
                    self.qpair.close(io);
                }
            }
            InitiatorMsg::Fenced { epoch } => {
                self.fenced_epoch = self.fenced_epoch.max(epoch);
                self.release(io.now());
            }
            InitiatorMsg::GiveUp => {
                self.gave_up = true;
                self.fail_waiting(Fault::PathLost);
                self.fail_delayed(Fault::PathLost);
            }
            InitiatorMsg::Inaccessible => {
                self.fail_waiting(Fault::Inaccessible);
                self.fail_delayed(Fault::Inaccessible);
            }
            InitiatorMsg::Hello { .. }
            | InitiatorMsg::AnaError { .. }
            | InitiatorMsg::Opened { .. }
            | InitiatorMsg::Lost { .. }
            | InitiatorMsg::Expired { .. } => {}
        }
    }

    /// Connects, if it should and can.
    fn reopen<I: Io>(&mut self, io: &mut I) {
        let Some(wanted) = self.wanted else { return };
        if !self.qpair.is_closed() || self.epoch == wanted.epoch {
            return;
        }
        self.epoch = wanted.epoch;
        let open = Open {
            to: wanted.to,
            cntlid: wanted.cntlid,
            entries: wanted.entries,
            kato_ms: 0,
            max_capsule_data_bytes: wanted.max_capsule_data_bytes,
            within: self.config.connect_timeout,
        };
        match self.qpair.open(io, open) {
            Ok(sock) => self.new_sock = Some(sock),
            Err(why) => self.lost(io.now(), why),
        }
    }

    fn lost(&mut self, now: Instant, why: QueueError) {
        self.wanted = None;
        self.down_since.get_or_insert(now);
        self.out.push_back(InitiatorMsg::Lost { epoch: self.epoch, qid: self.config.qid, why });
    }

    /// Deals with a command that did not simply succeed.
    #[cold]
    fn sort(&mut self, now: Instant, done: Done) {
        let Done { mut command, result } = done;
        match result {
            Ok(cqe) => {
                command.lost_since = None;
                let mut pause = retry_after(cqe.status);
                let mut limit = self.config.loss_timeout;
                if self.limits.ana && is_ana(cqe.status) {
                    self.ana_error(now);
                    limit = limit.min(CHANGE_HELD);
                    pause = pause.filter(|_| cqe.status.is(Status::ANA_TRANSITION));
                }
                let in_time = now.since(command.since) < limit;
                let wanted = !self.gave_up && !command.cancelled;
                match pause {
                    Some(pause) if in_time && wanted => self.delayed.push_back((now + pause, command)),
                    _ => self.finished.push_back(Finished { command, result: Ok(cqe) }),
                }
            }
            Err(lost) => {
                command.lost_since.get_or_insert(now);
                match lost.sent && command.changes_media() && self.epoch > self.fenced_epoch {
                    true => self.held.push_back((self.epoch, command)),
                    false => self.wait(now, command),
                }
            }
        }
    }

    /// A command that was lost and may be sent (again) waits for that, if anybody waits for it.
    fn wait(&mut self, now: Instant, command: Command) {
        let late = command.lost_since.is_some_and(|since| now.since(since) >= self.config.loss_timeout);
        match (command.cancelled, self.gave_up || late) {
            (true, _) => self.fail(command, Fault::Aborted),
            (false, true) => self.fail(command, Fault::PathLost),
            (false, false) => self.waiting.push_back(command),
        }
    }

    fn fail_waiting(&mut self, fault: Fault) {
        while let Some(command) = self.waiting.pop_front() {
            self.fail(command, fault);
        }
    }

    fn fail_delayed(&mut self, fault: Fault) {
        while let Some((_, command)) = self.delayed.pop_front() {
            self.fail(command, fault);
        }
    }

    /// Lets the controller look at the ANA state, however many commands end because of it not more often than this.
    fn ana_error(&mut self, now: Instant) {
        if now >= self.ana_error_at {
            self.ana_error_at = now + RETRY_AFTER;
            self.out.push_back(InitiatorMsg::AnaError { epoch: self.epoch });
        }
    }

    fn fail(&mut self, mut command: Command, fault: Fault) {
        command.lost_since = None;
        self.finished.push_back(Finished { command, result: Err(fault) });
    }

    /// Lets go of held writes whose old copies are gone.
    fn release(&mut self, now: Instant) {
        for _ in 0..self.held.len() {
            let Some((epoch, command)) = self.held.pop_front() else { break };
            if epoch > self.fenced_epoch {
                self.held.push_back((epoch, command));
            } else {
                self.wait(now, command);
            }
        }
    }

    /// Answer to [`Io::connect`].
    pub fn on_connected<I: Io>(&mut self, io: &mut I, result: Result<(), SockError>) {
        self.qpair.on_connected(io, result);
    }

    /// Bytes of the stream.
    #[inline]
    pub fn on_received<I: Io>(&mut self, io: &mut I, bytes: &[u8]) {
        self.qpair.on_received(io, bytes);
    }

    /// A receive into a block is full.
    pub fn on_filled<I: Io>(&mut self, io: &mut I, buf: Buf) {
        self.qpair.on_filled(io, buf);
    }

    /// A receive ended without its bytes.
    pub fn on_recv_end<I: Io>(&mut self, io: &mut I, buf: Option<Buf>, why: RecvEnd) {
        self.qpair.on_recv_end(io, buf, why);
    }

    /// A send is done.
    pub fn on_sent<I: Io>(&mut self, io: &mut I, list: Box<SendList>, result: Result<(), SockError>) {
        self.qpair.on_sent(io, list, result);
    }

    /// The socket is gone: every command of it is sorted, and the next association is opened if it is
    /// there already.
    pub fn on_closed<I: Io>(&mut self, io: &mut I) {
        self.qpair.on_closed(io);
        let now = io.now();
        while let Some(done) = self.qpair.next_done() {
            match done {
                Done { command, result: Ok(cqe) } if cqe.status.is_ok() => {
                    self.finished.push_back(Finished { command, result: Ok(cqe) });
                }
                done => self.sort(now, done),
            }
        }
    }

    /// Events, timers, then what can be sent. Completions must have been taken before.
    pub fn on_turn<I: Io>(&mut self, io: &mut I) {
        let now = io.now();
        if self.qpair.next_deadline().is_some_and(|at| at <= now) {
            self.qpair.on_tick(io);
        }
        while let Some(event) = self.qpair.next_event() {
            let (epoch, qid) = (self.epoch, self.config.qid);
            match event {
                QpairEvent::Up { .. } => {
                    self.down_since = None;
                    self.out.push_back(InitiatorMsg::Opened { epoch, qid });
                }
                QpairEvent::Expired { cid } => {
                    self.out.push_back(InitiatorMsg::Expired { epoch, qid, cid });
                }
                QpairEvent::Down(why) if self.wanted.is_some_and(|wanted| wanted.epoch == epoch) => {
                    self.lost(now, why);
                }
                QpairEvent::Down(_) => {}
            }
        }
        self.reopen(io);
        self.retry(now);
        self.give_up(now);
        while self.qpair.has_room()
            && let Some(command) = self.waiting.pop_front()
        {
            if let Err(command) = self.qpair.submit(now, command) {
                self.waiting.push_front(command);
                break;
            }
        }
        self.qpair.flush(io);
    }

    /// Fails what waits for nothing any more, when its time has come.
    fn give_up(&mut self, now: Instant) {
        let gave_up =
            self.gave_up || self.down_since.is_some_and(|since| now.since(since) >= self.config.loss_timeout);
        if !gave_up || self.waiting.is_empty() {
            self.fail_at = None;
        } else if self.stopping || *self.fail_at.get_or_insert(now + HELD_FOR) <= now {
            self.fail_at = None;
            self.fail_waiting(Fault::PathLost);
        }
    }

    fn retry(&mut self, now: Instant) {
        for _ in 0..self.delayed.len() {
            match self.delayed.pop_front() {
                Some((at, command)) if at <= now => self.waiting.push_back(command),
                Some(later) => self.delayed.push_back(later),
                None => break,
            }
        }
    }

    /// When [`on_turn`](Self::on_turn) must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let retry = self.delayed.iter().map(|(at, _)| *at).min();
        let down_since = self.down_since.filter(|_| !self.waiting.is_empty());
        let give_up = self.fail_at.or(down_since.map(|since| since + self.config.loss_timeout));
        [retry, give_up, self.qpair.next_deadline()].into_iter().flatten().min()
    }
}

/// Returns whether a status reports the namespace's ANA state (NVMe base 2.0c §8.1.3).
fn is_ana(status: Status) -> bool {
    let all = [Status::ANA_INACCESSIBLE, Status::ANA_PERSISTENT_LOSS, Status::ANA_TRANSITION];
    all.iter().any(|code| status.is(*code))
}

/// Whether a status says that the same command may succeed later on this path, and after what pause.
fn retry_after(status: Status) -> Option<Duration> {
    if status.is_ok() || status.is_dnr() {
        return None;
    }
    let transient = matches!(status.sct(), StatusType::Path)
        || [
            Status::ABORT_REQUESTED,
            Status::ABORTED_SQ_DELETION,
            Status::COMMAND_INTERRUPTED,
            Status::TRANSIENT_TRANSPORT_ERROR,
            Status::DATA_TRANSFER_ERROR,
            Status::NAMESPACE_NOT_READY,
            Status::ABORTED_PREEMPT,
        ]
        .iter()
        .any(|code| status.is(*code));
    transient.then_some(RETRY_AFTER * u32::from(status.retry_delay_index().max(1)))
}
