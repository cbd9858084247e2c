//! A whole host on one core: a controller's admin queue and its I/O queues.
//!
//! What it is: a host for workloads (perf, the demo, the simulator's hosts) and for discovery. A host on several cores
//! uses [`Controller`] and [`Lane`] directly: see [`crate::backend::nvme_tcp`].
//!
//! The owner routes the events of the sockets that [`Host::take_new_sock`] returns, calls [`Host::on_turn`] at the end
//! of each turn, and takes the ended commands from [`Host::next_finished`].

use super::command::Command;
use super::config::ControllerConfig;
use super::controller::{Controller, ControllerEvent};
use super::lane::{Finished, Lane, LaneConfig};
use super::message::{InitiatorMsg, Limits};
use std::time::Duration;
use trefoil_poll::{Arena, Instant, Io, SockEvent, SockId};

/// A host on one core; see the module.
pub struct Host {
    controller: Controller,
    lanes: Vec<Lane>,
    /// The lane that got the last command.
    turn: usize,
    /// The lane that gives the next completion.
    reap: usize,
}

impl Host {
    /// Makes a host with the `io_queues` of `config` (none for discovery). The host can hold `capacity` commands per
    /// queue, and aborts a command after `command_timeout`.
    pub fn new(config: ControllerConfig, capacity: usize, command_timeout: Duration) -> Self {
        let lane = |qid| LaneConfig {
            identity: config.identity.clone(),
            qid,
            entries: config.entries,
            capacity,
            digests: config.digests,
            command_timeout,
            connect_timeout: config.connect_timeout,
            loss_timeout: config.loss_timeout,
        };
        let lanes = (1..=config.io_queues).map(|qid| Lane::new(lane(qid))).collect();
        Self { controller: Controller::new(config), lanes, turn: 0, reap: 0 }
    }

    /// Starts to connect.
    pub fn start<I: Io>(&mut self, io: &mut I) {
        self.controller.start(io);
    }

    /// Starts an orderly stop; [`ControllerEvent::Stopped`] follows. The owner should take all commands back before
    /// this call.
    pub fn stop<I: Io>(&mut self, io: &mut I) {
        self.controller.stop(io);
    }

    /// Gives the host's memory back to the arena. Call this when the host is stopped.
    pub fn release(&mut self, arena: &mut Arena) {
        self.controller.release(arena);
    }

    /// Returns the controller, for its facts and its discovery log.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Reads the discovery log again; [`ControllerEvent::DiscoveryLog`] follows.
    pub fn refresh_discovery(&mut self) {
        self.controller.refresh_discovery();
    }

    /// Returns the limits that commands must respect; all zero before the first association.
    pub fn limits(&self) -> Limits {
        self.lanes.first().map(Lane::limits).unwrap_or_default()
    }

    /// Returns whether no command is outstanding.
    pub fn is_idle(&self) -> bool {
        self.lanes.iter().all(Lane::is_idle)
    }

    /// Returns the next socket that the host opened. From now on, the owner routes the socket's events to this host.
    pub fn take_new_sock(&mut self) -> Option<SockId> {
        self.controller.take_new_sock().or_else(|| self.lanes.iter_mut().find_map(Lane::take_new_sock))
    }

    /// Returns the next event of the controller.
    pub fn next_event(&mut self) -> Option<ControllerEvent> {
        self.controller.next_event()
    }

    /// Submits a command to the next live queue with room (round robin). If there is no such queue, submits the command
    /// to the first queue.
    ///
    /// # Errors
    /// Gives the command back if no live queue has room, and the first queue holds `capacity` commands or does not
    /// exist.
    #[inline(always)]
    #[allow(clippy::result_large_err)]
    pub fn submit(&mut self, now: Instant, command: Command) -> Result<(), Command> {
        let count = self.lanes.len();
        for step in 1..=count {
            let at = (self.turn + step) % count;
            if let Some(lane) = self.lanes.get_mut(at).filter(|lane| lane.is_live() && lane.room() > 0) {
                self.turn = at;
                return lane.submit(now, command);
            }
        }
        match self.lanes.first_mut() {
            Some(lane) => lane.submit(now, command),
            None => Err(command),
        }
    }

    /// Returns the next command that has ended.
    pub fn next_finished(&mut self, now: Instant) -> Option<Finished> {
        for _ in 0..self.lanes.len() {
            if let Some(finished) = self.lanes.get_mut(self.reap).and_then(|lane| lane.next_finished(now)) {
                return Some(finished);
            }
            self.reap = (self.reap + 1) % self.lanes.len();
        }
        None
    }

    /// Handles an event of a socket.
    pub fn on_sock<I: Io>(&mut self, io: &mut I, sock: SockId, event: SockEvent<'_>) {
        match self.lanes.iter_mut().find(|lane| lane.sock() == Some(sock)) {
            Some(lane) => lane.on_sock(io, event),
            None => self.controller.qpair().on_sock(io, event),
        }
    }

    /// Handles timers and the messages between the queues, then sends the pending PDUs.
    pub fn on_turn<I: Io>(&mut self, io: &mut I, arena: &mut Arena) {
        self.controller.on_turn(io, arena);
        self.deliver(io);
        for lane in &mut self.lanes {
            lane.on_turn(io);
            while let Some(msg) = lane.next_msg() {
                self.controller.on_msg(io, msg);
            }
        }
        self.deliver(io);
    }

    fn deliver<I: Io>(&mut self, io: &mut I) {
        while let Some(msg) = self.controller.next_msg() {
            debug_assert!(!matches!(msg, InitiatorMsg::Opened { .. }), "an answer from the controller");
            for lane in &mut self.lanes {
                lane.on_msg(io, msg);
            }
        }
    }

    /// Returns when [`on_turn`](Self::on_turn) must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.lanes.iter().map(Lane::next_deadline).chain([self.controller.next_deadline()]).flatten().min()
    }
}
