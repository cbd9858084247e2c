//! The command layer: what a command means, whatever the transport that brought it.
//!
//! A transport takes a slot for each command and asks [`Engine::begin`] what it needs. When it has the data, or the
//! block for the data, it calls [`Engine::execute`]. Each answer is a [`Step`]. What happens later (a request comes back,
//! an event fires, another core answers) comes out as an [`Effect`], which the transport carries out.
//!
//! What it is not: it knows no sockets, no PDUs and no grants. RDMA would drive the same calls.

use super::capacity::Capacity;
use super::ctrlr::{Ctrlrs, MAX_SWEEPS, Sweep};
use super::departure::Departures;
use super::limits::{MAX_IO_QUEUES, TargetLimits};
use super::queue::{Names, NsView, Queue, QueueState};
use super::refusals::{self, Refusals};
use super::shares::Shares;
use super::slot::{NIL, Phase, Slots};
use super::timers::Timers;
use crate::crowd::Crowd;
use crate::cx::Cx;
use crate::msg::{Event, Msg, ShortName, StorageIo};
use crate::request::{Completed, Fault, Op, Origin, Owner, Request, Stream};
use crate::stats::LunCounters;
use crate::topology::{LunId, MAX_LUNS, PortalId, Subsystem, Topology};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use trefoil_poll::{Buf, CoreId, Loan};
use trefoil_wire::fabrics;
use trefoil_wire::nvme::{Psdt, Sgl, Status};

/// Stands for a host's hash: all discovery controllers together have this one share of the payload memory.
const DISCOVERY_SHARE: u64 = 0;

/// What a command needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes from the host in the slot's block, then [`Engine::execute`].
    Gather(u32),
    /// A block of so many bytes, to be filled for the host, then [`Engine::execute`].
    Block(u32),
    /// Nothing from the transport: an [`Effect`] will follow.
    Held,
    /// Its response is in the slot; if `send_len` is not 0, so many bytes of the block go first.
    Done,
}

/// What a transport has to do, besides answering a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send the response of this slot.
    Done(SlotRef),
    /// Abort flagged this slot, which waits for memory, for its grant or for data: end it as soon as it can be.
    Abort(SlotRef),
    /// Tell control of the next refused Connect; see [`Engine::refusals`].
    Refused,
    /// Close this queue's connection.
    Close {
        /// The queue.
        queue: u32,
        /// Guards against a reused number.
        generation: u32,
        /// Why, for the log.
        why: &'static str,
    },
}

/// A slot as it was when an effect was made: the slot may have ended with its queue since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRef {
    at: u32,
    generation: u32,
}

/// Where a queue's connection came in, for the discovery log and tables.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The portal.
    pub portal: PortalId,
    /// Our address as the host used it.
    pub local: SocketAddr,
    /// The host's address.
    pub peer: SocketAddr,
}

/// See the module. All memory is allocated in [`Engine::new`].
pub struct Engine {
    /// This core.
    pub core: CoreId,
    /// Cores of the gateway.
    pub cores: u16,
    home: u16,
    /// Command slots.
    pub slots: Slots,
    /// Queues, by the transport's connection number.
    pub queues: Box<[Queue]>,
    /// Who is on a queue.
    pub names: Box<[Names]>,
    /// Where a queue came in.
    pub places: Box<[Place]>,
    /// Controllers whose admin queue is here.
    pub ctrlrs: Ctrlrs,
    /// I/O queues that a controller grants at most.
    pub io_queues: u16,
    /// Write Zeroes is offered.
    pub has_write_zeroes: bool,
    /// Deallocated blocks are promised to read as zeros.
    pub promises_zeros: bool,
    /// What is presented.
    pub topology: Arc<Topology>,
    /// Newer topologies that are not applied to all connected hosts yet, oldest first.
    pub(super) sweeps: VecDeque<Sweep>,
    /// The next queue to be closed, if its host may no longer be here, or in any case.
    pub(super) closing: Option<(u32, bool)>,
    /// Counts the topologies that this engine saw, from 1.
    pub epoch: u32,
    /// The topology's epoch at which the discovery log last changed: its generation counter.
    pub discovery_generation: u64,
    /// For the transport, in order.
    pub effects: VecDeque<Effect>,
    /// Deadlines of connections and controllers.
    pub timers: Timers,
    /// What hosts did with each LUN.
    pub luns: LunCounters,
    /// Who holds how much payload memory.
    pub shares: Shares,
    /// Connections that anybody may have without permission, and which make room for others: those that have not completed a
    /// Connect, and discovery controllers'.
    pub evictable: Crowd,
    /// Those of them that are discovery controllers'.
    pub discovery: Crowd,
    max_discovery: usize,
    /// As in [`TargetLimits`].
    pub discovery_timeout: Duration,
    /// Connects that were refused.
    pub refusals: Refusals,
    /// Queues that are gone and whose requests are still under way.
    departures: Departures,
    /// The streams of such queues, until they are cancelled.
    cancels: VecDeque<u32>,
    /// The next connection's; see [`Queue::generation`].
    next_generation: u32,
}

impl Engine {
    /// Queues `limits.max_conns` × about 1.4 KiB, slots × 200 B, controllers as [`Ctrlrs::new`] says, effects at most
    /// one a slot, one a queue and one a refusal, LUN counters 4,096 as [`LunCounters::new`] says, departures one a slot × 20 B, cancels
    /// one a queue, shares, evictable connections and refusals as theirs say.
    pub fn new(limits: &TargetLimits, core: CoreId, cores: u16, home: u16, capacity: Arc<Capacity>) -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let place = Place { portal: PortalId(0), local: nowhere, peer: nowhere };
        Self {
            core,
            cores,
            home,
            slots: Slots::new(limits.slots.min(65_535)),
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

    /// A new command is in slot `at`, without its data.
    #[inline]
    pub fn begin<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> Step {
        let slot = &self.slots[at];
        let queue = &self.queues[slot.queue as usize];
        let step = if queue.state == QueueState::Live && queue.qid != 0 && slot.sqe.opcode != fabrics::OPCODE
        {
            self.begin_io(cx, at)
        } else {
            self.begin_admin(cx, at)
        };
        if let Step::Gather(len) | Step::Block(len) = step {
            return self.check_transfer(at, len, step);
        }
        step
    }

    /// The command describes its data by one SGL descriptor (NVMe base 2.0c §3.3.3.1.1), of the length that the command
    /// itself says; what kind of descriptor is the transport's to check.
    #[inline]
    fn check_transfer(&mut self, at: u32, len: u32, step: Step) -> Step {
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
        // Admin buffers may be larger than what fills them.
        if described < len || (described != len && (io || matches!(step, Step::Gather(_)))) {
            return self.fail(at, Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        step
    }

    /// What [`Engine::begin`] asked for is there.
    #[inline]
    pub fn execute<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> Step {
        let slot = &self.slots[at];
        let queue = &self.queues[slot.queue as usize];
        if slot.aborted {
            return self.fail(at, Status::ABORT_REQUESTED);
        }
        if queue.qid != 0 && slot.sqe.opcode != fabrics::OPCODE {
            self.execute_io(cx, at)
        } else {
            self.execute_admin(cx, at)
        }
    }

    /// A request of ours came back.
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
        if self.continue_io(cx, at, result) == Step::Done {
            self.done_later(at);
        }
    }

    /// A request was dropped on its way: its command fails, and its slot lives on (see [`trefoil_poll::lost`]).
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

    /// The request of a slot whose queue went away is over. Nobody is left to answer, but with the last of the queue's
    /// requests the queue has left its controller.
    fn orphan_ended<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) {
        let slot = &mut self.slots[at];
        slot.buf.take().into_iter().for_each(|buf| cx.arena.free(buf));
        let departure = slot.departure;
        self.slots.release(at);
        if let Some(leaving) = self.departures.ended(departure) {
            self.tell_left(cx, leaving);
        }
    }

    /// Lets the transport send the response of `at`.
    pub(super) fn done_later(&mut self, at: u32) {
        let generation = self.slots[at].generation;
        self.effects.push_back(Effect::Done(SlotRef { at, generation }));
    }

    /// Tells the transport that Abort flagged `at`.
    pub(super) fn aborted(&mut self, at: u32) {
        let generation = self.slots[at].generation;
        self.effects.push_back(Effect::Abort(SlotRef { at, generation }));
    }

    /// Lets the transport close a queue's connection.
    pub(super) fn close_later(&mut self, queue: u32, why: &'static str) {
        let generation = self.queues[queue as usize].generation;
        self.effects.push_back(Effect::Close { queue, generation, why });
    }

    /// The slot, if it is still the same command's.
    pub fn resolve(&self, slot: SlotRef) -> Option<u32> {
        let current = self.slots.get(slot.at)?;
        let same =
            current.generation == slot.generation && current.phase != Phase::Free && current.queue != NIL;
        same.then_some(slot.at)
    }

    /// Hands the slot's request to the LUN layer.
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
    ) -> Step {
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
        Step::Held
    }

    /// Ends a command with an error.
    pub(super) fn fail(&mut self, at: u32, status: Status) -> Step {
        let slot = &mut self.slots[at];
        slot.status = status;
        slot.send_len = 0;
        if !status.is_ok() {
            self.note_error(at);
        }
        Step::Done
    }

    /// Ends a command with a result.
    pub(super) fn succeed(&mut self, at: u32, result: u64) -> Step {
        self.slots[at].result = result;
        Step::Done
    }

    /// The queue's view of a namespace, or the status of a command whose host may not see it.
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

    /// Why a queue has no [`view`](Self::view) of a namespace. Where its host may no longer be, it is about to lose the
    /// connection, and perhaps has another one.
    #[cold]
    fn unseen(&self, queue: u32) -> Status {
        match self.subsystem(queue) {
            Some(_) => Status::INVALID_NAMESPACE.dnr(),
            None => Status::INTERNAL_PATH_ERROR,
        }
    }

    /// The subsystem that the queue is connected to, if it still exists and its host may be here: from the moment at which
    /// a topology is in force, although its connections are looked at only in the turns after that.
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

    /// A transport accepted a connection: its queue may Connect.
    pub fn open(&mut self, queue: u32, place: Place) {
        self.queues[queue as usize].open();
        self.shares.open(queue);
        self.places[queue as usize] = place;
        if !self.is_own(queue) {
            self.evictable.add(queue, place.peer);
        }
        self.names[queue as usize] = Names::NONE;
    }

    /// A transport lost a queue's connection, or closes it. Requests that are under way are cancelled, and only when they
    /// have ended has the queue left its controller; everything else of the queue's ends here.
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
        // Zero is no stream.
        self.next_generation = self.next_generation.wrapping_add(1).max(1);
    }

    /// The next stream whose requests are to be cancelled.
    #[inline]
    pub fn next_cancel(&mut self) -> Option<Stream> {
        self.cancels.pop_front().map(|number| Stream { core: self.core, number })
    }

    /// Whether a request's queue is still there.
    pub fn is_wanted(&self, origin: Origin) -> bool {
        origin.owner != Owner::Target || self.slots.get(origin.slot).is_some_and(|slot| slot.queue != NIL)
    }

    /// The transport has handed out the response of `at`: the slot is free again. Gives its block and its loan back.
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

    /// Another command under way on the queue with the identifier of slot `at`.
    #[cold]
    pub fn rival(&self, at: u32) -> Option<u32> {
        let slot = &self.slots[at];
        let mut ring = self.slots.iter(&self.queues[slot.queue as usize].ring);
        ring.find(|(other, s)| *other != at && s.sqe.cid == slot.sqe.cid).map(|(other, _)| other)
    }

    /// Whether the queue is the core's own connection to itself.
    pub(super) fn is_own(&self, queue: u32) -> bool {
        self.places[queue as usize].portal == PortalId::OWN
    }

    /// Lets the oldest discovery controller of the address with most of them go if there is one too many.
    fn limit_discovery(&mut self) {
        let is_full = self.discovery.count() > self.max_discovery;
        if let Some(oldest) = self.discovery.oldest_of_most().filter(|_| is_full) {
            self.close_later(oldest, "a discovery controller more came than there are places");
        }
    }

    /// A queue has completed its Connect.
    pub(super) fn came_up<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, queue: u32) {
        self.queues[queue as usize].came_up();
        if self.queues[queue as usize].discovery {
            // Anybody may have one, under any name: together they have one host's share, and no line in the log.
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

/// The status that a failed request means to a host (NVMe base 2.0c figures 93 to 102).
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
