//! One I/O queue that survives reconnects. It keeps the commands that wait, that are held, and that are to be retried.
//!
//! What it is: a [`Qpair`] and its owner's commands. The owner doesn't notice a reconnect: commands wait while the
//! queue is down.
//!
//! What it is not: it decides nothing about the controller (see `controller`). It opens and closes the queue only on a
//! message from the controller.
//!
//! # When a command is sent again
//! The array may still execute a command whose completion never arrived. A read or a flush does no harm if it executes
//! twice, so the lane sends it again at once. The lane also sends a command at once if it was never sent before. A
//! *write that was sent* must not be sent again at once: its old copy could take effect after the retry completes, and
//! overwrite newer data. The lane holds such a write until the controller sends [`InitiatorMsg::Fenced`] for the
//! write's association. Until then, the lane does not fail the write either, since the write's owner would then retry
//! it on another path (NVMe base 2.1 §9.6, TP4129; see `controller` for when an association counts as fenced).
//!
//! A command is *cancelled* when its host is gone. The lane neither sends nor resends a cancelled command. A command
//! that waits or is delayed ends at once with [`Fault::Aborted`]. A command that was sent ends when it completes. If
//! its queue is lost first, it ends with [`Fault::Aborted`]: a read at once, a write when it is fenced.
//!
//! If a command *completes* with a status that permits a retry, the lane sends it again after a pause. The lane stops
//! the retries when the loss timeout has passed since the command was first submitted. There is one exception: an ANA
//! status from a controller that reports ANA states. The gateway reports these states to its own hosts, and the hosts
//! choose a path themselves. So the lane retries only a command that ended with ANA Transition, for at most
//! [`CHANGE_HELD`].
//!
//! # When a command is given up
//! A command fails with [`Fault::PathLost`] once the controller sends [`InitiatorMsg::GiveUp`]. A controller that
//! reconnects each time never sends this message, even if its queues are lost again and again. So there are two more
//! cases. A command also fails if it is lost once more after the loss timeout has passed since its first loss. Waiting
//! commands also fail if the queue could not connect for the whole loss timeout.
//!
//! The lane delays later commands for [`HELD_FOR`], and then fails them all together. If the array comes back earlier,
//! the lane sends them instead. A host with several paths sends a failed command again at once. Without this pause, the
//! host and this core would be busy with failing commands all the time.
//!
//! Memory: a lane holds at most `capacity` commands of about 180 bytes. Each command is in the queue pair or in one of
//! four queues. Each of these queues has room for all commands.

use super::ana::CHANGE_HELD;
use super::command::{Command, Done, QpairEvent};
use super::error::QueueError;
use super::message::{Association, InitiatorMsg, Limits};
use super::qpair::{Identity, Open, Qpair, QueueEntries};
use crate::request::Fault;
use std::collections::VecDeque;
use std::time::Duration;
use trefoil_poll::{Instant, Io, SockEvent, SockId};
use trefoil_wire::nvme::{Cqe, Status, StatusType};

/// Pause before a command is tried again after a transient status, if the controller gives no CRD.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The time for which the lane delays path errors after the array was given up.
pub const HELD_FOR: Duration = Duration::from_millis(500);

/// The settings of a lane.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// The names in Connect.
    pub identity: Identity,
    /// The queue's identifier, from 1.
    pub qid: u16,
    /// Size of the queue.
    pub entries: QueueEntries,
    /// The largest number of commands that the lane holds.
    pub capacity: usize,
    /// Header digest and data digest to request.
    pub digests: (bool, bool),
    /// The time from sending a command to its abort.
    pub command_timeout: Duration,
    /// Deadline for the connection to come up.
    pub connect_timeout: Duration,
    /// The time for which the lane retries a command.
    pub loss_timeout: Duration,
}

/// A command that has ended.
#[derive(Debug)]
#[must_use = "a command may hold a block"]
pub struct Finished {
    /// The command with its block.
    pub command: Command,
    /// The controller's completion (check its status), [`Fault::PathLost`], [`Fault::Inaccessible`], or
    /// [`Fault::Aborted`] for a cancelled command.
    pub result: Result<Cqe, Fault>,
}

/// A lane; see the module.
pub struct Lane {
    config: LaneConfig,
    qpair: Qpair,
    /// The association for which the queue should be open.
    wanted: Option<Association>,
    /// The association for which the queue pair is, or was last, open.
    epoch: u32,
    /// Writes of this association and earlier ones may be sent again.
    fenced_epoch: u32,
    gave_up: bool,
    /// The time at which the queue was lost or could not connect; `None` once the queue is up again.
    down_since: Option<Instant>,
    /// The earliest time of the next [`InitiatorMsg::AnaError`].
    ana_error_at: Instant,
    /// The time at which waiting commands fail, while the array is given up.
    fail_at: Option<Instant>,
    stopping: bool,
    limits: Limits,
    holding: usize,
    waiting: VecDeque<Command>,
    held: VecDeque<(u32, Command)>,
    /// Commands that wait for a retry, each with the time of its retry, in no particular order.
    delayed: VecDeque<(Instant, Command)>,
    finished: VecDeque<Finished>,
    out: VecDeque<InitiatorMsg>,
    new_sock: Option<SockId>,
}

impl Lane {
    /// Makes a lane. Its commands wait for the first [`InitiatorMsg::Open`].
    pub fn new(config: LaneConfig) -> Self {
        let qpair = Qpair::new(
            config.identity.clone(),
            config.qid,
            config.entries,
            config.digests,
            config.command_timeout,
        );
        let capacity = config.capacity;
        // At most one Opened, one Lost, one AnaError, and one Expired for each command.
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

    /// Returns the queue's identifier.
    pub fn qid(&self) -> u16 {
        self.config.qid
    }

    /// Returns whether the connection is up for commands.
    pub fn is_live(&self) -> bool {
        self.qpair.is_live()
    }

    /// Returns whether the lane holds no command.
    pub fn is_idle(&self) -> bool {
        self.holding == 0
    }

    /// Returns whether the lane has no socket.
    pub fn is_closed(&self) -> bool {
        self.qpair.is_closed()
    }

    /// Returns the socket, if the lane has one.
    pub fn sock(&self) -> Option<SockId> {
        self.qpair.sock()
    }

    /// Returns the socket that the lane opened since the last call.
    pub fn take_new_sock(&mut self) -> Option<SockId> {
        self.new_sock.take()
    }

    /// Returns the limits that commands must respect; all zero before the first association.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Returns the number of commands that the lane can take now.
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

    /// Returns the next command that has ended.
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

    /// Cancels the commands with these tags; see the module.
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

    /// Prepares the lane to close: the next turn reports the delayed path errors.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Gives a waiting or delayed command back to the owner, unless the lane has an association. The owner calls this
    /// when the array no longer grants this queue.
    pub fn take_waiting(&mut self) -> Option<Command> {
        if self.wanted.is_some() {
            return None;
        }
        let command =
            self.waiting.pop_front().or_else(|| self.delayed.pop_front().map(|(_, command)| command))?;
        self.holding -= 1;
        Some(command)
    }

    /// Returns the next message for the controller.
    pub fn next_msg(&mut self) -> Option<InitiatorMsg> {
        self.out.pop_front()
    }

    /// Takes a message from the controller.
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

    /// Connects, if the lane has an association to connect to and its queue pair is closed.
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

    /// Handles a command that did not succeed.
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

    /// Queues a lost command for sending, or fails the command if it is cancelled or late.
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

    /// Asks the controller to read the ANA state. Many commands can end with an ANA status at once, so the lane asks at
    /// most once per [`RETRY_AFTER`].
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

    /// Releases held writes whose old copies can't take effect any more.
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

    /// Handles an event of the socket. Retries, holds or ends each command of a socket that is closed.
    #[inline]
    pub fn on_sock<I: Io>(&mut self, io: &mut I, event: SockEvent<'_>) {
        let closed = matches!(event, SockEvent::Closed);
        self.qpair.on_sock(io, event);
        if closed {
            self.on_closed(io);
        }
    }

    #[cold]
    fn on_closed<I: Io>(&mut self, io: &mut I) {
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

    /// Handles events and timers, then sends the pending PDUs. The owner must take the completions before this call.
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

    /// Fails waiting commands once their delay is over.
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

    /// Returns when [`on_turn`](Self::on_turn) must run next.
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

/// Returns the pause before a retry, if the status says that the same command may succeed later on this path.
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
