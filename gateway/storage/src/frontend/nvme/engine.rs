//! The command layer: executes commands, whatever the transport that carries them.
//!
//! A transport takes a slot for each command and asks [`Engine::begin`] for the command's needs. When the transport has the data,
//! or the block for the data, it calls [`Engine::execute`]. Each answer is a [`CommandStep`]. Later results (a request comes back, an
//! event fires, another core answers) come out as an [`Effect`], which the transport carries out.
//!
//! The command layer knows no sockets, no PDUs and no grants. An RDMA transport would make the same calls.

use super::capacity::Capacity;
use super::ctrlr::Ctrlrs;
use super::departure::Departures;
use super::queue::{ConnAddrs, Names, NsView, Queue, QueueState};
use super::refusals::{self, Refusals};
use super::slot::{CommandSlots, NIL, Phase};
use super::sweep::{MAX_SWEEPS, Sweep};
use crate::crowd::Crowd;
use crate::cx::Cx;
use crate::frontend::limits::{MAX_IO_QUEUES, TargetLimits};
use crate::frontend::shares::Shares;
use crate::frontend::timers::Timers;
use crate::msg::{Event, Msg, ShortName, StorageIo};
use crate::request::{Completed, Fault, Op, Origin, Owner, Request, Stream};
use crate::stats::LunCounters;
use crate::topology::{LunId, MAX_LUNS, PortalId, Subsystem, Topology};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use trefoil_poll::{Buf, CoreId, Loan};
use trefoil_wire::nvme::{FABRICS_OPCODE, Psdt, Sgl, Status};

/// Stands for a host's hash: all discovery controllers together have one host's share of the payload memory.
const DISCOVERY_SHARE: u64 = 0;

/// The next need of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStep {
    /// The command needs this many bytes from the host in the slot's block, then [`Engine::execute`].
    Gather(u32),
    /// The command needs a block of this many bytes to fill for the host, then [`Engine::execute`].
    Block(u32),
    /// The command needs nothing from the transport: an [`Effect`] will follow.
    Held,
    /// The response is in the slot. If `send_len` is not 0, this many bytes of the block go to the host first.
    Done,
}

/// Work for a transport, besides the answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send the response of this slot.
    Done(SlotRef),
    /// End this slot as soon as possible: Abort flagged the slot while it waited for memory, for its grant or for data.
    Abort(SlotRef),
    /// Tell control of the next refused Connect; see [`Engine::refusals`].
    Refused,
    /// Close this queue's connection.
    Close {
        /// Number of the queue.
        queue: u32,
        /// Generation of the queue, since the number may be reused.
        generation: u32,
        /// Reason for the log.
        why: &'static str,
    },
}

/// A slot at the time of an effect. The slot may have ended with its queue since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRef {
    at: u32,
    generation: u32,
}

/// The command layer of one core; see the module. [`Engine::new`] allocates all its memory.
pub struct Engine {
    /// This core.
    pub core: CoreId,
    /// Number of cores of the gateway.
    pub cores: u16,
    home: u16,
    /// Command slots.
    pub slots: CommandSlots,
    /// Queues, by the transport's connection number.
    pub queues: Box<[Queue]>,
    /// Names of the host and the subsystem of each queue.
    pub names: Box<[Names]>,
    /// Addresses of each queue's connection.
    pub places: Box<[ConnAddrs]>,
    /// Controllers whose admin queue is on this core.
    pub ctrlrs: Ctrlrs,
    /// The most I/O queues that a controller grants.
    pub io_queues: u16,
    /// True if controllers offer Write Zeroes.
    pub has_write_zeroes: bool,
    /// True if controllers promise that deallocated blocks read as zeros.
    pub promises_zeros: bool,
    /// The topology that hosts see.
    pub topology: Arc<Topology>,
    /// Newer topologies that are not applied to all connected hosts yet, oldest first.
    pub(in crate::frontend) sweeps: VecDeque<Sweep>,
    /// The next queue of a walk that closes connections. If the flag is set, the walk closes all connections; otherwise only
    /// those of hosts that are no longer allowed.
    pub(in crate::frontend) closing: Option<(u32, bool)>,
    /// Count of the topologies that this engine saw, from 1.
    pub epoch: u32,
    /// The topology's epoch at which the discovery log last changed: its generation counter.
    pub discovery_generation: u64,
    /// Work for the transport, in order.
    pub effects: VecDeque<Effect>,
    /// Deadlines of connections and controllers.
    pub timers: Timers,
    /// I/O counters of each LUN.
    pub luns: LunCounters,
    /// Quotas on payload memory.
    pub shares: Shares,
    /// Connections that need no permission, and that make room for others: connections before a completed Connect, and those of
    /// discovery controllers.
    pub evictable: Crowd,
    /// Connections among `evictable` that are discovery controllers'.
    pub discovery: Crowd,
    max_discovery: usize,
    /// As in [`TargetLimits`].
    pub discovery_timeout: Duration,
    /// Refused Connects.
    pub refusals: Refusals,
    /// Closed queues whose requests are still under way.
    departures: Departures,
    /// Streams of such queues that are not cancelled yet.
    cancels: VecDeque<u32>,
    /// The generation of the next connection; see [`Queue::generation`].
    next_generation: u32,
}

impl Engine {
    /// Allocates all memory:
    /// - queues: `limits.max_conns` × about 1.4 KiB;
    /// - slots: each 200 B;
    /// - controllers: see [`Ctrlrs::new`];
    /// - effects: at most one a slot, one a queue and one a refusal;
    /// - LUN counters: 4,096; see [`LunCounters::new`];
    /// - departures: one a request that may be under way ([`TargetLimits::requests`]) × 20 B;
    /// - cancels: one a queue;
    /// - shares, evictable connections and refusals: see their types.
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
            effects: VecDeque::with_capacity(limits.slots + limits.max_conns + refusals::PLACES),
            timers: Timers::new(limits.max_conns + limits.max_ctrlrs),
            luns: LunCounters::new(MAX_LUNS),
            shares: Shares::new(limits.max_conns, limits.reserved_bytes),
            evictable: Crowd::new(limits.max_conns),
            discovery: Crowd::new(limits.max_conns),
            max_discovery: limits.max_discovery,
            discovery_timeout: limits.discovery_timeout,
            refusals: Refusals::new(),
            departures: Departures::new(limits.requests()),
            cancels: VecDeque::with_capacity(limits.max_conns),
            next_generation: limits.max_conns as u32 + 1,
        }
    }

    /// Starts the new command in slot `at`, whose data is not there yet.
    #[inline]
    pub fn begin<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> CommandStep {
        let slot = &self.slots[at];
        let queue = &self.queues[slot.queue as usize];
        let step = if queue.state == QueueState::Live && queue.qid != 0 && slot.sqe.opcode != FABRICS_OPCODE {
            self.begin_io(cx, at)
        } else {
            self.begin_admin(cx, at)
        };
        if let CommandStep::Gather(len) | CommandStep::Block(len) = step {
            return self.check_transfer(at, len, step);
        }
        step
    }

    /// Checks the command's SGL descriptor. The command describes its data by one descriptor (NVMe base 2.0c §3.3.3.1.1), whose
    /// length must match the command. The transport checks the descriptor's type.
    #[inline]
    fn check_transfer(&mut self, at: u32, len: u32, step: CommandStep) -> CommandStep {
        let slot = &mut self.slots[at];
        slot.len = len;
        if slot.sqe.psdt() != Psdt::Sgl {
            return self.fail(at, Status::INVALID_FIELD.dnr());
        }
        if matches!(slot.sqe.sgl1, Sgl::Unsupported { .. }) {
            return self.fail(at, Status::SGL_TYPE_INVALID.dnr());
        }
        let described = slot.sqe.sgl1.len_bytes();
        let io = self.queues[slot.queue as usize].qid != 0;
        // An admin buffer may be larger than its data.
        if described < len || (described != len && (io || matches!(step, CommandStep::Gather(_)))) {
            return self.fail(at, Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        step
    }

    /// Goes on with a command once the data or the block that [`Engine::begin`] asked for is there.
    #[inline]
    pub fn execute<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> CommandStep {
        let slot = &self.slots[at];
        let queue = &self.queues[slot.queue as usize];
        if slot.aborted {
            return self.fail(at, Status::ABORT_REQUESTED);
        }
        if queue.qid != 0 && slot.sqe.opcode != FABRICS_OPCODE {
            self.execute_io(cx, at)
        } else {
            self.execute_admin(cx, at)
        }
    }

    /// Takes back a request of this engine.
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

    /// Handles a request that was dropped on its way: its command fails, and its slot lives on (see [`trefoil_poll::lost`]).
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

    /// Frees the slot of a request whose queue is closed. Nobody waits for a response, but with the last of its requests the
    /// queue has left its controller.
    fn orphan_ended<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) {
        let slot = &mut self.slots[at];
        slot.buf.take().into_iter().for_each(|buf| cx.arena.free(buf));
        let departure = slot.departure;
        self.slots.release(at);
        if let Some(leaving) = self.departures.ended(departure) {
            self.tell_left(cx, leaving);
        }
    }

    /// Asks the transport to send the response of `at`.
    pub(in crate::frontend) fn done_later(&mut self, at: u32) {
        let generation = self.slots[at].generation;
        self.effects.push_back(Effect::Done(SlotRef { at, generation }));
    }

    /// Tells the transport that Abort flagged `at`.
    pub(in crate::frontend) fn aborted(&mut self, at: u32) {
        let generation = self.slots[at].generation;
        self.effects.push_back(Effect::Abort(SlotRef { at, generation }));
    }

    /// Asks the transport to close a queue's connection.
    pub(in crate::frontend) fn close_later(&mut self, queue: u32, why: &'static str) {
        let generation = self.queues[queue as usize].generation;
        self.effects.push_back(Effect::Close { queue, generation, why });
    }

    /// Returns the slot if it still has the same command.
    pub fn resolve(&self, slot: SlotRef) -> Option<u32> {
        let current = self.slots.get(slot.at)?;
        let same =
            current.generation == slot.generation && current.phase != Phase::Free && current.queue != NIL;
        same.then_some(slot.at)
    }

    /// Hands the slot's request to the LUN layer.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub(in crate::frontend) fn submit<I: StorageIo>(
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

    /// Ends a command with an error.
    pub(in crate::frontend) fn fail(&mut self, at: u32, status: Status) -> CommandStep {
        let slot = &mut self.slots[at];
        slot.status = status;
        slot.send_len = 0;
        if !status.is_ok() {
            self.note_error(at);
        }
        CommandStep::Done
    }

    /// Ends a command with a result.
    pub(in crate::frontend) fn succeed(&mut self, at: u32, result: u64) -> CommandStep {
        self.slots[at].result = result;
        CommandStep::Done
    }

    /// Returns the queue's view of a namespace. If the host may not see the namespace, returns the status for the command.
    #[inline]
    pub(in crate::frontend) fn view(&mut self, queue: u32, nsid: u32) -> Result<NsView, Status> {
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

    /// Returns the status for a queue that has no [`view`](Self::view) of a namespace. If the queue's host is no longer allowed,
    /// the host is about to lose this connection, and may have another path.
    #[cold]
    fn unseen(&self, queue: u32) -> Status {
        match self.subsystem(queue) {
            Some(_) => Status::INVALID_NAMESPACE.dnr(),
            None => Status::INTERNAL_PATH_ERROR,
        }
    }

    /// Returns the queue's subsystem, if the subsystem still exists and the queue's host is allowed. A topology counts from the
    /// moment at which it is in force, although a sweep checks the connections only in later turns.
    pub(in crate::frontend) fn subsystem(&self, queue: u32) -> Option<&Subsystem> {
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

    /// Opens a queue for a connection that a transport accepted. The queue may Connect.
    pub fn open(&mut self, queue: u32, place: ConnAddrs) {
        self.queues[queue as usize].open();
        self.shares.open(queue);
        self.places[queue as usize] = place;
        if !self.is_own(queue) {
            self.evictable.add(queue, place.peer);
        }
        self.names[queue as usize] = Names::NONE;
    }

    /// Closes a queue whose connection a transport lost or closes. Requests under way are cancelled. The queue has left its
    /// controller only when these requests have ended. Everything else of the queue ends here.
    pub fn close<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, queue: u32) {
        self.evictable.remove(queue);
        self.discovery.remove(queue);
        let leaving = self.leave_ctrlr(cx, queue);
        let departure = leaving.and_then(|leaving| self.departures.begin(leaving));
        let mut under_way = false;
        while let Some(at) = self.queues[queue as usize].ring.first() {
            self.slots.unlink(&mut self.queues[queue as usize].ring, at);
            let slot = &mut self.slots[at];
            if slot.phase == Phase::Backend {
                slot.queue = NIL;
                slot.departure = departure.unwrap_or(NIL);
                self.departures.wait(slot.departure);
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
        if let Some(leaving) = departure.and_then(|departure| self.departures.ended(departure)) {
            self.tell_left(cx, leaving);
        }
        let q = &mut self.queues[queue as usize];
        q.state = QueueState::Free;
        if under_way {
            self.cancels.push_back(q.generation);
        }
        q.generation = self.next_generation;
        // Zero stands for no stream.
        self.next_generation = self.next_generation.wrapping_add(1).max(1);
    }

    /// Returns the next stream whose requests must be cancelled.
    #[inline]
    pub fn next_cancel(&mut self) -> Option<Stream> {
        self.cancels.pop_front().map(|number| Stream { core: self.core, number })
    }

    /// Returns whether a request's queue is still open. Returns true for a request of another owner than the target.
    pub fn is_wanted(&self, origin: Origin) -> bool {
        origin.owner != Owner::Target || self.slots.get(origin.slot).is_some_and(|slot| slot.queue != NIL)
    }

    /// Frees the slot `at` once the transport has handed out its response. Returns the slot's block and loan.
    #[inline]
    pub fn retire<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> (Option<Buf>, Option<Loan>) {
        let slot = &mut self.slots[at];
        let held = (slot.buf.take(), slot.loan.take());
        let (queue, cid, since) = (slot.queue, slot.sqe.cid, slot.since);
        let moved = if slot.status.is_ok() { slot.len } else { 0 };
        let q = &mut self.queues[queue as usize];
        q.leave(cid, since, cx.io.now(), moved);
        self.slots.unlink(&mut q.ring, at);
        self.slots.release(at);
        held
    }

    /// Returns another command under way on the queue that has the identifier of slot `at`.
    #[cold]
    pub fn rival(&self, at: u32) -> Option<u32> {
        let slot = &self.slots[at];
        let mut ring = self.slots.iter(&self.queues[slot.queue as usize].ring);
        ring.find(|(other, s)| *other != at && s.sqe.cid == slot.sqe.cid).map(|(other, _)| other)
    }

    /// Returns whether the queue is the core's own connection to itself.
    pub(in crate::frontend) fn is_own(&self, queue: u32) -> bool {
        self.places[queue as usize].portal == PortalId::OWN
    }

    /// Closes one discovery controller if there is one too many: the oldest of the address with the most.
    fn limit_discovery(&mut self) {
        let is_full = self.discovery.count() > self.max_discovery;
        if let Some(oldest) = self.discovery.oldest_of_most().filter(|_| is_full) {
            self.close_later(oldest, "a discovery controller more came than there are places");
        }
    }

    /// Handles a queue's completed Connect.
    pub(in crate::frontend) fn came_up<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, queue: u32) {
        self.queues[queue as usize].came_up();
        if self.queues[queue as usize].discovery {
            // Any host may have a discovery controller, under any name. Together they have one host's share, and no line in the
            // log.
            self.shares.join(queue, DISCOVERY_SHARE);
            if !self.is_own(queue) {
                self.discovery.add(queue, self.places[queue as usize].peer);
                self.limit_discovery();
            }
            return;
        }
        self.evictable.remove(queue);
        self.shares.join(queue, self.names[queue as usize].host_hash());
        let q = &self.queues[queue as usize];
        cx.io.post_control(Msg::Event(Event::QpairUp {
            cntlid: q.cntlid,
            qid: q.qid,
            host: ShortName::new(self.names[queue as usize].host().as_str()),
            peer: self.places[queue as usize].peer,
        }));
    }
}

/// Returns the status that reports a failed request to a host (NVMe base 2.0c figures 93 to 102).
pub(in crate::frontend) fn status_of(fault: Fault) -> Status {
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
