//! The command layer: executes commands, independent of the transport that carries them.
//!
//! A transport makes calls and gets answers. A command has a number, which the transport may use as a tag:
//! - [`Engine::begin`] takes a command and answers with its next need, a [`CommandStep`];
//! - [`Engine::read`] gives a command the block that it asked for; [`Engine::give_block`] and [`Engine::execute`] bring its data;
//! - [`Engine::respond`] returns the response of a completed command.
//!
//! Later results (a request comes back, an event fires, another core answers) come out of [`Engine::next_effect`]. The command
//! layer knows no sockets, no PDUs, no grants and no quotas. `frontend/tests/direct.rs` is the smallest transport.

use super::capacity::Capacity;
use super::ctrlr::Ctrlrs;
use super::drain::Drains;
use super::queue::{ConnAddrs, Names, NsView, Queue, QueueState};
use super::refusals::{self, Refusals};
use super::slot::{CommandSlots, Phase};
use super::sweep::{MAX_SWEEPS, Sweep};
use crate::cx::Cx;
use crate::frontend::limits::{MAX_IO_QUEUES, TargetLimits};
use crate::frontend::timers::Timers;
use crate::list::NIL;
use crate::msg::{Event, Msg, ShortName, StorageIo};
use crate::request::{Completed, Fault, Op, Origin, Owner, Request, Stream};
use crate::stats::LunCounters;
use crate::topology::{LunId, MAX_LUNS, PortalId, Subsystem, Topology};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use trefoil_poll::{Buf, CoreId, Loan};
use trefoil_wire::nvme::{Cqe, Status};

/// Host hash of all discovery controllers: together they have one host's share of the payload memory.
pub(super) const DISCOVERY_HOST: u64 = 0;

/// The next need of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStep {
    /// The command needs this many bytes from the host in a block ([`Engine::give_block`]), then [`Engine::execute`].
    Gather(u32),
    /// The command needs a block of this many bytes to fill for the host: [`Engine::read`].
    Block(u32),
    /// The command needs nothing from the transport: an [`Effect`] will follow.
    Held,
    /// The response is ready: [`Engine::respond`].
    Done,
}

/// Work for a transport that is not the answer to one of the transport's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send the response of this command.
    Done(u32),
    /// Abort has flagged this command. If the command waits for memory, end it with [`Engine::fail`]. Otherwise, the transport
    /// checks [`Engine::is_aborted`] before it asks for the command's data.
    Abort(u32),
    /// This queue is connected to a controller now.
    Up {
        /// Number of the queue.
        queue: u32,
    },
    /// Close this queue's connection.
    Close {
        /// Number of the queue.
        queue: u32,
        /// Reason for the log.
        why: &'static str,
    },
}

/// An effect that the transport has not taken yet. The effect's command or queue may have ended meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pending {
    Done { at: u32, generation: u32 },
    Abort { at: u32, generation: u32 },
    Up { queue: u32, generation: u32 },
    Refused,
    Close { queue: u32, generation: u32, why: &'static str },
}

/// The response of a command, and the data that goes to the host before it.
pub struct Response {
    /// The completion queue entry.
    pub cqe: Cqe,
    /// Bytes of data for the host. They are in the loan, or at the start of the block if there is no loan.
    pub len: u32,
    /// The command's block, even if no data goes to the host.
    pub block: Option<Buf>,
    /// Data that goes to the host instead of the bytes in the block.
    pub loan: Option<Loan>,
    /// True if the completion queue entry says only that the command succeeded. A transport may then leave the entry out.
    pub is_plain: bool,
}

/// The part of a queue's state that a transport may see.
#[derive(Clone, Copy)]
pub struct QueueView<'a>(pub(super) &'a Queue);

impl QueueView<'_> {
    /// Returns whether the queue may have one more command in flight (NVMe base 2.0c §3.3.1.5).
    #[inline]
    pub fn has_room(&self) -> bool {
        self.0.has_room()
    }

    /// Returns the number of commands in flight.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.0.ring.len() as usize
    }

    /// Returns whether this is an admin queue or a queue that is not connected yet. Commands of such a queue may take memory of
    /// the reserve.
    #[inline]
    pub fn is_privileged(&self) -> bool {
        self.0.qid == 0
    }

    /// Returns whether the queue is connected to a controller.
    #[inline]
    pub fn is_live(&self) -> bool {
        self.0.state == QueueState::Live
    }

    /// Returns whether the queue belongs to a discovery controller.
    pub fn is_discovery(&self) -> bool {
        self.0.discovery
    }

    /// Returns whether the transport must close the connection once it has sent the responses that are ready (Disconnect).
    pub fn has_disconnected(&self) -> bool {
        self.0.closing
    }
}

/// The command layer of one core; see the module. [`Engine::new`] allocates all its memory.
pub struct Engine {
    /// This core.
    pub(super) core: CoreId,
    /// Number of cores of the gateway.
    pub(super) cores: u16,
    home: u16,
    /// Command slots.
    pub(super) slots: CommandSlots,
    /// Queues, by the transport's connection number.
    pub(super) queues: Box<[Queue]>,
    /// Names of the host and the subsystem of each queue.
    pub(super) names: Box<[Names]>,
    /// Addresses of each queue's connection.
    pub(super) places: Box<[ConnAddrs]>,
    /// Controllers whose admin queue is on this core.
    pub(super) ctrlrs: Ctrlrs,
    /// The most I/O queues that a controller grants.
    pub(super) io_queues: u16,
    /// True if controllers offer Write Zeroes.
    pub(super) has_write_zeroes: bool,
    /// True if controllers promise that deallocated blocks read as zeros.
    pub(super) promises_zeros: bool,
    /// The topology that hosts see.
    pub(super) topology: Arc<Topology>,
    /// Newer topologies that are not yet applied to all connected hosts, oldest first.
    pub(super) sweeps: VecDeque<Sweep>,
    /// The next queue of the walk that closes connections. If the flag is true, the walk closes all connections; otherwise only
    /// the connections of hosts that are no longer allowed.
    pub(super) closing: Option<(u32, bool)>,
    /// Count of the topologies that this engine has had, from 1.
    pub(super) epoch: u32,
    /// The topology's epoch at which the discovery log last changed: its generation counter.
    pub(super) discovery_generation: u64,
    /// Work for the transport, in order.
    pub(super) pending: VecDeque<Pending>,
    /// Deadlines of controllers, and of a transport's connections.
    pub(in crate::frontend) timers: Timers,
    /// I/O counters of each LUN.
    pub(super) luns: LunCounters,
    /// As in [`TargetLimits`].
    pub(super) discovery_timeout: Duration,
    /// Refused Connects.
    pub(super) refusals: Refusals,
    /// Closed queues whose requests are still in flight.
    drains: Drains,
    /// Streams of these closed queues that are not cancelled yet.
    cancels: VecDeque<u32>,
    /// The generation of the next connection; see [`Queue::generation`].
    next_generation: u32,
}

impl Engine {
    /// Allocates all memory:
    /// - queues: `limits.max_conns` × about 1.2 KiB;
    /// - slots: each 200 B;
    /// - controllers: see [`Ctrlrs::new`];
    /// - effects: at most one a slot, two a queue and one a refusal;
    /// - LUN counters: 4,096; see [`LunCounters::new`];
    /// - drains: one for each request that may be in flight ([`TargetLimits::requests`]) × 20 B;
    /// - cancels: one a queue;
    /// - refusals: see [`Refusals`].
    pub fn new(limits: &TargetLimits, core: CoreId, cores: u16, home: u16, capacity: Arc<Capacity>) -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let place = ConnAddrs { portal: PortalId(0), local: nowhere, peer: nowhere };
        Self {
            core,
            cores,
            home,
            slots: CommandSlots::new(limits.slots.min(65_535)),
            queues: (1..=limits.max_conns as u32).map(Queue::new).collect(),
            names: vec![Names::NONE; limits.max_conns].into(),
            places: vec![place; limits.max_conns].into(),
            ctrlrs: Ctrlrs::new(limits.max_ctrlrs, core, capacity),
            has_write_zeroes: limits.has_write_zeroes,
            promises_zeros: limits.promises_zeros,
            io_queues: limits.io_queues.clamp(1, MAX_IO_QUEUES as u16),
            topology: Arc::default(),
            sweeps: VecDeque::with_capacity(MAX_SWEEPS + 1),
            closing: None,
            epoch: 1,
            discovery_generation: 0,
            pending: VecDeque::with_capacity(limits.slots + 2 * limits.max_conns + refusals::PLACES),
            timers: Timers::new(limits.max_conns + limits.max_ctrlrs),
            luns: LunCounters::new(MAX_LUNS),
            discovery_timeout: limits.discovery_timeout,
            refusals: Refusals::new(),
            drains: Drains::new(limits.requests()),
            cancels: VecDeque::with_capacity(limits.max_conns),
            next_generation: limits.max_conns as u32 + 1,
        }
    }

    /// Handles the completion of a request of this engine.
    pub fn on_completed<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, mut done: Completed) {
        let origin = done.origin();
        let loan = done.take_loan();
        let (buf, result) = done.settle();
        let at = origin.slot;
        let current = self
            .slots
            .get(at)
            .is_some_and(|slot| slot.phase == Phase::Backend && slot.generation == origin.generation);
        debug_assert!(current, "a completion for {origin:?}, which waits for none");
        if !current {
            buf.into_iter().for_each(|buf| cx.arena.free(buf));
            return;
        }
        if self.slots[at].queue == NIL {
            buf.into_iter().for_each(|buf| cx.arena.free(buf));
            return self.orphan_ended(cx, at);
        }
        if buf.is_some() {
            self.slots[at].buf = buf;
            self.slots[at].loan = loan;
        }
        if self.continue_io(cx, at, result) == CommandStep::Done {
            self.done_later(at);
        }
    }

    /// Handles a request that was dropped on its way: the request's command fails, and the command's slot stays in use (see
    /// [`trefoil_poll::lost`]).
    pub fn on_lost<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, identity: u64) {
        let (at, generation) = ((identity >> 32) as u32, (identity >> 8) as u32 & 0xFF_FFFF);
        let Some(slot) = self.slots.get(at) else { return };
        if identity as u8 != Owner::Target as u8
            || slot.phase != Phase::Backend
            || slot.generation != generation
        {
            return;
        }
        if slot.queue == NIL {
            return self.orphan_ended(cx, at);
        }
        self.fail(at, Status::INTERNAL_ERROR);
        self.done_later(at);
    }

    /// Frees the slot of a request whose queue is closed. Sends no response. If this was the last request of the queue, the
    /// queue has left its controller.
    fn orphan_ended<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) {
        let slot = &mut self.slots[at];
        slot.buf.take().into_iter().for_each(|buf| cx.arena.free(buf));
        let drain = slot.drain;
        self.slots.release(at);
        if let Some(leaving) = self.drains.ended(drain) {
            self.tell_left(cx, leaving);
        }
    }

    /// Makes the slot's request, and puts it on the queue to the LUN layer.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn submit<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
        op: Op,
        lun: LunId,
        offset: u64,
        len: u64,
        durable: bool,
    ) -> CommandStep {
        let slot = &mut self.slots[at];
        slot.phase = Phase::Backend;
        slot.part_bytes = len;
        let stream = self.queues[slot.queue as usize].generation;
        let may_lend = slot.may_lend;
        let payload = if matches!(op, Op::Read | Op::Write) { slot.buf.take() } else { None };
        let origin = Origin {
            core: self.core,
            home: self.home,
            owner: Owner::Target,
            slot: at,
            generation: slot.generation,
        };
        let request = Request::new(op, lun, offset, len, payload, origin);
        cx.requests.push_back(request.durable(durable).may_lend(may_lend).of_stream(stream));
        CommandStep::Held
    }

    /// Returns the queue's view of a namespace. If the host may not see the namespace, returns the status with which the
    /// command fails.
    #[inline]
    pub(super) fn view(&mut self, queue: u32, nsid: u32) -> Result<NsView, Status> {
        let q = &self.queues[queue as usize];
        let view = &q.views[nsid as usize % q.views.len()];
        if view.nsid == nsid && view.epoch == self.epoch {
            return Ok(*view);
        }
        self.look_up(queue, nsid).ok_or_else(|| self.unseen(queue))
    }

    #[cold]
    fn look_up(&mut self, queue: u32, nsid: u32) -> Option<NsView> {
        let host = self.names[queue as usize].hostnqn.as_str();
        let namespace = self.subsystem(queue)?.visible(nsid, host)?;
        let lun = self.topology.luns.get(namespace.lun.0 as usize)?.as_ref()?;
        let view = NsView::new(namespace, lun, self.epoch);
        let views = &mut self.queues[queue as usize].views;
        views[nsid as usize % views.len()] = view;
        Some(view)
    }

    /// Returns the status for a command whose queue has no [`view`](Self::view) of the namespace. A host that is no longer
    /// allowed is about to lose this connection, but may have another path.
    #[cold]
    fn unseen(&self, queue: u32) -> Status {
        match self.subsystem(queue) {
            Some(_) => Status::INVALID_NAMESPACE.dnr(),
            None => Status::INTERNAL_PATH_ERROR,
        }
    }

    /// Returns the queue's subsystem, if the subsystem still exists and the queue's host is allowed. A new topology applies
    /// here from the moment at which it is in force, although a sweep checks the connections only in later turns.
    pub(super) fn subsystem(&self, queue: u32) -> Option<&Subsystem> {
        let names = &self.names[queue as usize];
        let name = names.subnqn.as_str();
        let known = self.topology.subsystems.get(self.queues[queue as usize].subsystem as usize);
        let subsystem = match known.filter(|s| s.nqn == name) {
            Some(subsystem) => subsystem,
            None => self.topology.subsystem(name)?.1,
        };
        let portal = self.places[queue as usize].portal;
        let may = subsystem.hosts.contains(names.hostnqn.as_str()) && subsystem.portals.contains(&portal);
        may.then_some(subsystem)
    }

    /// Opens a queue for a connection that a transport accepted. The queue then takes a Connect.
    pub fn open(&mut self, queue: u32, place: ConnAddrs) {
        self.queues[queue as usize].open();
        self.places[queue as usize] = place;
        self.names[queue as usize] = Names::NONE;
    }

    /// Closes a queue whose connection a transport has lost or is closing. Cancels the queue's requests in flight. The queue
    /// leaves its controller only when these requests have ended; everything else of the queue ends now. Reports the close to
    /// control if the queue was connected to an I/O controller.
    pub fn close<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, queue: u32, why: &'static str) {
        let q = &self.queues[queue as usize];
        let down = (q.state == QueueState::Live && !q.discovery).then(|| {
            let host = ShortName::new(self.names[queue as usize].host().as_str());
            let peer = self.places[queue as usize].peer;
            Event::QpairDown { cntlid: q.cntlid, qid: q.qid, host, peer, why }
        });
        let leaving = self.leave_ctrlr(cx, queue);
        let drain = leaving.and_then(|leaving| self.drains.begin(leaving));
        let mut under_way = false;
        while let Some(at) = self.queues[queue as usize].ring.first() {
            self.slots.unlink(&mut self.queues[queue as usize].ring, at);
            let slot = &mut self.slots[at];
            if slot.phase == Phase::Backend {
                slot.queue = NIL;
                slot.drain = drain.unwrap_or(NIL);
                self.drains.wait(slot.drain);
                under_way = true;
                continue;
            }
            slot.buf.take().into_iter().for_each(|buf| cx.arena.free(buf));
            if cx.io.is_broken("leaked-loan") {
                std::mem::forget(slot.loan.take());
            }
            slot.loan = None;
            self.slots.release(at);
        }
        if let Some(leaving) = drain.and_then(|drain| self.drains.ended(drain)) {
            self.tell_left(cx, leaving);
        }
        let q = &mut self.queues[queue as usize];
        q.state = QueueState::Free;
        if under_way {
            self.cancels.push_back(q.generation);
        }
        q.generation = self.next_generation;
        // Stream 0 means no stream.
        self.next_generation = self.next_generation.wrapping_add(1).max(1);
        if let Some(down) = down {
            cx.io.post_control(Msg::Event(down));
        }
    }

    /// Returns the next stream whose requests must be cancelled.
    #[inline]
    pub fn next_cancel(&mut self) -> Option<Stream> {
        self.cancels.pop_front().map(|number| Stream { core: self.core, number })
    }

    /// Returns whether a request's queue is still open. Returns true for a request that the target doesn't own.
    pub fn is_wanted(&self, origin: Origin) -> bool {
        origin.owner != Owner::Target || self.slots.get(origin.slot).is_some_and(|slot| slot.queue != NIL)
    }

    /// Returns whether the queue is the core's own connection to itself.
    pub(in crate::frontend) fn is_own(&self, queue: u32) -> bool {
        self.places[queue as usize].portal == PortalId::OWN
    }

    /// Handles a queue's completed Connect.
    pub(super) fn came_up<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, queue: u32) {
        let q = &mut self.queues[queue as usize];
        q.came_up();
        self.pending.push_back(Pending::Up { queue, generation: q.generation });
        // Any host may have a discovery controller, under any name. So the log has no line for such a controller.
        if !q.discovery {
            let host = ShortName::new(self.names[queue as usize].host().as_str());
            let (cntlid, qid, peer) = (q.cntlid, q.qid, self.places[queue as usize].peer);
            cx.io.post_control(Msg::Event(Event::QpairUp { cntlid, qid, host, peer }));
        }
    }
}

/// Returns the status that reports a failed request to a host (NVMe base 2.0c figures 93 to 102).
pub(super) fn status_of(fault: Fault) -> Status {
    match fault {
        Fault::OutOfRange => Status::LBA_OUT_OF_RANGE.dnr(),
        Fault::MediaRead => Status::UNRECOVERED_READ_ERROR,
        Fault::MediaWrite => Status::WRITE_FAULT,
        Fault::NoSpace => Status::CAPACITY_EXCEEDED.dnr(),
        Fault::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED.dnr(),
        Fault::PathLost => Status::INTERNAL_PATH_ERROR,
        Fault::Inaccessible => Status::ANA_INACCESSIBLE,
        Fault::Gone => Status::INVALID_NAMESPACE.dnr(),
        Fault::Unsupported => Status::INVALID_OPCODE.dnr(),
        Fault::Aborted => Status::ABORT_REQUESTED,
        Fault::Internal => Status::INTERNAL_ERROR,
    }
}
