//! A namespace of an NVMe/TCP array as a backend: one channel on each core.
//!
//! What it is: [`Request`]s to commands and back, over a [`Lane`] of this core's; the array's
//! controller on one core; messages between them.
//!
//! What it is not: the protocol (see [`crate::initiator`]).
//!
//! # Cores and queues
//! Core `c` has I/O queue `c + 1` if the array grants that many. A core beyond the last queue passes its
//! requests on to core `c % queues` ([`Msg::Submit`]); they come home as completions. How many queues there
//! are is known with each association, so a channel is made alike on every core, and what waits moves
//! when the array grants fewer after a reconnect. The controller lives on core `backend % cores`.
//!
//! # What its core must do
//! - Build it on the control thread (all its memory is made there) and attach it to every core.
//! - After each call, take [`NvmeTcpChannel::take_new_sock`] until it is `None`: events of these sockets
//!   belong to this channel until their `on_closed`.
//! - Pass [`Msg::Initiator`] to [`NvmeTcpChannel::on_msg`]; drop it if the backend is not attached here (a core
//!   that attaches late asks for what it missed).
//! - To detach: [`NvmeTcpChannel::stop`], then turns until [`NvmeTcpChannel::is_stopped`].
//!
//! Memory of one core's channel: `requests` × (a request of 130 bytes, its slot, and five places of a lane's
//! command, 180 bytes each, about 1 KiB in all), one queue pair, and on one core the controller.

use super::Channel;
use crate::cx::Cx;
use crate::initiator::lane::HELD_FOR;
use crate::initiator::{
    Command, Controller, ControllerConfig, ControllerError, ControllerEvent, Finished, InitiatorMsg, Lane,
    LaneConfig, Limits, NamespaceIdentity, Purpose,
};
use crate::msg::{Event, Msg, StorageIo};
use crate::request::{Fault, Op, Request, Stream};
use crate::topology::BackendId;
use std::collections::VecDeque;
use std::time::Duration;
use trefoil_poll::{Arena, Buf, CoreId, Instant, RecvEnd, SendList, SockError, SockId};
use trefoil_wire::nvme::{
    BlockRange, Cqe, DsmCommand, DsmRange, IoCommand, Sgl, Sqe, Status, StatusType, io_opcode,
};

/// Most bytes that one Write Zeroes covers, so that none takes long enough to time out.
const MAX_ZEROES_BYTES: u64 = 32 << 20;
/// Most bytes of zeros that one write carries, to an array without Write Zeroes.
const MAX_ZEROS_BYTES: u64 = trefoil_poll::send::ZEROS_BYTES as u64;
/// Most bytes that one Dataset Management range covers.
const MAX_DEALLOCATE_BYTES: u64 = 1 << 30;

/// How control describes the array to every core's channel.
#[derive(Clone, Debug)]
pub struct NvmeTcpConfig {
    /// The controller; its purpose must be [`Purpose::Nvm`]. `io_queues` is capped at the number of cores.
    pub controller: ControllerConfig,
    /// When a command is aborted, from when it is sent.
    pub command_timeout: Duration,
    /// Requests that this core's channel can hold; others wait for their end. Other cores may pass theirs on to this one,
    /// all of them when the array grants a single queue.
    pub requests: usize,
}

/// A request and how far it is.
struct Work {
    request: Request,
    /// Bytes that are done; a request larger than the array's limits takes several commands.
    done: u64,
    /// Bytes of the command under way.
    part: u64,
    /// No other command follows.
    cancelled: bool,
}

/// See the module.
pub struct NvmeTcpChannel {
    backend: BackendId,
    core: CoreId,
    cores: u16,
    nsid: u32,
    controller: Option<Controller>,
    lane: Lane,
    /// I/O queues of the current association; 0 before the first.
    queues: u16,
    /// Before the first association: the loss timeout passed.
    gave_up: bool,
    greeted: bool,
    stopping: bool,
    /// The queue, and the controller, were told to close.
    closing: bool,
    usable: bool,
    len_bytes: u64,
    works: Box<[Option<Work>]>,
    free: Vec<u32>,
    /// The array refused a Write Zeroes in this association, whatever it says that it can.
    refuses_zeroes: bool,
    /// Requests of other cores that went on to a third, not reported yet.
    passed_on: usize,
    /// Requests of other cores went on to a third at some time, so cancels must follow them there.
    relays: bool,
    /// Requests that came before the number of queues was known.
    parked: VecDeque<Request>,
    /// When these fail, since the array was given up.
    fail_at: Option<Instant>,
}

impl std::fmt::Debug for NvmeTcpChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NvmeTcpChannel({:?} on {:?})", self.backend, self.core)
    }
}

impl NvmeTcpChannel {
    /// The channel of `core`, not connected: it starts with the first turn.
    ///
    /// # Panics
    /// As [`Controller::new`] does, on limits out of range.
    pub fn new(backend: BackendId, core: CoreId, cores: u16, config: &NvmeTcpConfig) -> Self {
        let mut controller = config.controller.clone();
        controller.io_queues = controller.io_queues.clamp(1, cores);
        let lane = LaneConfig {
            identity: controller.identity.clone(),
            qid: core.0 + 1,
            entries: controller.entries,
            capacity: config.requests,
            digests: controller.digests,
            command_timeout: config.command_timeout,
            connect_timeout: controller.connect_timeout,
            loss_timeout: controller.loss_timeout,
        };
        let nsid = match controller.purpose {
            Purpose::Nvm { nsid } => nsid,
            Purpose::Discovery => 0,
        };
        Self {
            backend,
            core,
            cores,
            nsid,
            controller: (controller_core(backend, cores) == core).then(|| Controller::new(controller)),
            lane: Lane::new(lane),
            queues: 0,
            gave_up: false,
            greeted: false,
            stopping: false,
            closing: false,
            usable: false,
            len_bytes: 0,
            works: (0..config.requests).map(|_| None).collect(),
            free: (0..config.requests as u32).rev().collect(),
            refuses_zeroes: false,
            passed_on: 0,
            relays: false,
            parked: VecDeque::with_capacity(config.requests),
            fail_at: None,
        }
    }

    /// Takes no other namespace than this. Call it before the first turn.
    pub fn take_only(&mut self, namespace: NamespaceIdentity) {
        if let Some(controller) = &mut self.controller {
            controller.take_only(namespace);
        }
    }

    /// The next socket that it opened.
    pub fn take_new_sock(&mut self) -> Option<SockId> {
        self.lane.take_new_sock().or_else(|| self.controller.as_mut().and_then(Controller::take_new_sock))
    }

    /// Requests of other cores that it passed on to a third core since the last call:
    /// the LUN layer counts what a channel has, and those went without a completion.
    pub fn take_passed_on(&mut self) -> usize {
        std::mem::take(&mut self.passed_on)
    }

    /// Closes in order, once what is on its way is done; nothing may be submitted from now on.
    pub fn stop<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        self.stopping = true;
        self.lane.stop();
        self.close_if_quiet(cx);
    }

    fn close_if_quiet<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        if self.closing || !self.stopping || !self.is_quiet() {
            return;
        }
        self.closing = true;
        match &mut self.controller {
            Some(controller) => {
                controller.stop(cx.io);
                release_if_stopped(controller, cx.arena);
            }
            None => self.lane.on_msg(cx.io, InitiatorMsg::Close { epoch: u32::MAX }),
        }
        self.deliver(cx);
    }

    /// Whether it can be dropped.
    pub fn is_stopped(&self) -> bool {
        let controller = self.controller.as_ref().is_none_or(Controller::is_stopped);
        self.closing && self.is_quiet() && self.lane.is_closed() && controller
    }

    fn is_quiet(&self) -> bool {
        self.free.len() == self.works.len() && self.parked.is_empty()
    }

    fn is_lane(&self, sock: SockId) -> bool {
        self.lane.sock() == Some(sock)
    }

    /// Answer to [`trefoil_poll::Io::connect`].
    pub fn on_connected<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        result: Result<(), SockError>,
    ) {
        if self.is_lane(sock) {
            self.lane.on_connected(cx.io, result);
        } else if let Some(controller) = &mut self.controller {
            controller.qpair().on_connected(cx.io, result);
        }
    }

    /// Bytes of a stream.
    pub fn on_received<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, sock: SockId, bytes: &[u8]) {
        if self.is_lane(sock) {
            self.lane.on_received(cx.io, bytes);
            self.reap(cx);
        } else if let Some(controller) = &mut self.controller {
            controller.qpair().on_received(cx.io, bytes);
        }
    }

    /// A receive into a block is full.
    pub fn on_filled<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, sock: SockId, buf: Buf) {
        if self.is_lane(sock) {
            self.lane.on_filled(cx.io, buf);
            self.reap(cx);
        } else if let Some(controller) = &mut self.controller {
            controller.qpair().on_filled(cx.io, buf);
        } else {
            cx.arena.free(buf);
        }
    }

    /// A receive ended without its bytes.
    pub fn on_recv_end<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        buf: Option<Buf>,
        why: RecvEnd,
    ) {
        if self.is_lane(sock) {
            self.lane.on_recv_end(cx.io, buf, why);
        } else if let Some(controller) = &mut self.controller {
            controller.qpair().on_recv_end(cx.io, buf, why);
        }
    }

    /// A send is done.
    pub fn on_sent<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        list: Box<SendList>,
        result: Result<(), SockError>,
    ) {
        if self.is_lane(sock) {
            self.lane.on_sent(cx.io, list, result);
            self.reap(cx);
        } else if let Some(controller) = &mut self.controller {
            controller.qpair().on_sent(cx.io, list, result);
        }
    }

    /// The last word about a socket.
    pub fn on_closed<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, sock: SockId) {
        if self.is_lane(sock) {
            self.lane.on_closed(cx.io);
            self.reap(cx);
        } else if let Some(controller) = &mut self.controller {
            controller.qpair().on_closed(cx.io);
        }
    }

    /// A message of another core's channel.
    pub fn on_msg<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, _from: CoreId, msg: InitiatorMsg) {
        match (msg, &mut self.controller) {
            (InitiatorMsg::Hello { core }, Some(controller)) => {
                for missed in controller.standing() {
                    cx.io.post(core, Msg::Initiator(self.backend, missed));
                }
            }
            (
                InitiatorMsg::Opened { .. }
                | InitiatorMsg::Lost { .. }
                | InitiatorMsg::Expired { .. }
                | InitiatorMsg::AnaError { .. },
                Some(controller),
            ) => controller.on_msg(cx.io, msg),
            _ => self.on_broadcast(cx, msg),
        }
        self.deliver(cx);
    }

    /// Timers, events, messages, then what can be sent. Returns whether it did anything.
    pub fn on_turn<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        if !self.greeted {
            self.greeted = true;
            match &mut self.controller {
                Some(controller) => controller.start(cx.io),
                None => {
                    let hello = Msg::Initiator(self.backend, InitiatorMsg::Hello { core: self.core });
                    cx.io.post(controller_core(self.backend, self.cores), hello);
                }
            }
        }
        let mut worked = self.reap(cx);
        if let Some(controller) = &mut self.controller {
            controller.on_turn(cx.io, cx.arena);
            release_if_stopped(controller, cx.arena);
        }
        worked |= self.report(cx);
        worked |= self.deliver(cx);
        self.lane.on_turn(cx.io);
        worked |= self.deliver(cx);
        worked |= self.reap(cx);
        worked |= self.give_up(cx);
        self.move_on(cx);
        self.close_if_quiet(cx);
        worked
    }

    /// When [`on_turn`](Self::on_turn) must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let start = (!self.greeted).then_some(Instant::default());
        let controller = self.controller.as_ref().and_then(Controller::next_deadline);
        [start, controller, self.fail_at, self.lane.next_deadline()].into_iter().flatten().min()
    }

    /// Messages between the controller and the lanes of all cores.
    fn deliver<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let mut any = false;
        while let Some(msg) = self.lane.next_msg() {
            any = true;
            match &mut self.controller {
                Some(controller) => controller.on_msg(cx.io, msg),
                None => {
                    let to = controller_core(self.backend, self.cores);
                    cx.io.post(to, Msg::Initiator(self.backend, msg));
                }
            }
        }
        while let Some(msg) = self.controller.as_mut().and_then(Controller::next_msg) {
            any = true;
            for core in (0..self.cores).map(CoreId).filter(|core| *core != self.core) {
                cx.io.post(core, Msg::Initiator(self.backend, msg));
            }
            self.on_broadcast(cx, msg);
        }
        any
    }

    /// What the controller says to all lanes.
    fn on_broadcast<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, msg: InitiatorMsg) {
        if self.closing && matches!(msg, InitiatorMsg::Open(_)) {
            return;
        }
        self.lane.on_msg(cx.io, msg);
        match msg {
            InitiatorMsg::Open(association) => {
                self.queues = association.queues;
                self.gave_up = false;
                self.refuses_zeroes = false;
                self.drop_deallocates(cx.io.now());
                for _ in 0..self.parked.len() {
                    let Some(request) = self.parked.pop_front() else { break };
                    self.submit(cx, request);
                }
            }
            InitiatorMsg::GiveUp => {
                self.gave_up = true;
                self.fail_parked(cx);
            }
            _ => {}
        }
        self.reap(cx);
    }

    /// Takes TRIMs of an earlier association back from the lane where the array promises no zeros (any more).
    fn drop_deallocates(&mut self, now: Instant) {
        if self.lane.limits().deallocate {
            return;
        }
        let works = &self.works;
        let is_deallocate = |tag: u64| {
            let work = works.get(tag as usize).and_then(Option::as_ref);
            work.is_some_and(|work| work.request.op == Op::Deallocate)
        };
        self.lane.cancel(now, is_deallocate);
    }

    /// As the lane does with what comes after the array was given up. Whether there was any.
    fn give_up<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let now = cx.io.now();
        if !self.gave_up || self.parked.is_empty() {
            self.fail_at = None;
            return false;
        }
        let due = self.stopping || *self.fail_at.get_or_insert(now + HELD_FOR) <= now;
        if due {
            self.fail_at = None;
            self.fail_parked(cx);
        }
        due
    }

    fn fail_parked<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        while let Some(request) = self.parked.pop_front() {
            cx.complete(request, Err(Fault::PathLost));
        }
    }

    /// Tells control what became of the controller.
    fn report<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let backend = self.backend;
        let mut any = false;
        while let Some(event) = self.controller.as_mut().and_then(Controller::next_event) {
            any = true;
            let state = |usable, why, is_final| Event::BackendState { backend, usable, why, is_final };
            let told = match event {
                ControllerEvent::Up(facts) => {
                    self.usable = true;
                    self.len_bytes = facts.len_bytes();
                    let info = Event::BackendInfo {
                        backend,
                        len_bytes: facts.len_bytes(),
                        namespace: facts.identity(),
                        deallocates: facts.deallocate,
                    };
                    cx.io.post_control(Msg::Event(info));
                    Some(state(true, "connected", false))
                }
                ControllerEvent::Down(ControllerError::AnotherNamespace { was, is }) => {
                    self.usable = false;
                    Some(Event::BackendReplaced { backend, was, is })
                }
                ControllerEvent::Down(why) => {
                    self.usable = false;
                    Some(state(false, why.kind(), why.is_final()))
                }
                ControllerEvent::Resized(facts) if facts.len_bytes() != self.len_bytes => {
                    self.len_bytes = facts.len_bytes();
                    Some(Event::BackendResized { backend, len_bytes: self.len_bytes })
                }
                ControllerEvent::Access(access) => Some(Event::BackendAccess { backend, access }),
                ControllerEvent::GaveUp => Some(state(false, "the loss timeout passed", false)),
                ControllerEvent::Resized(_) | ControllerEvent::DiscoveryLog | ControllerEvent::Stopped => {
                    None
                }
            };
            if let Some(event) = told {
                cx.io.post_control(Msg::Event(event));
            }
        }
        any
    }

    /// The core that has this core's queue.
    fn queue_core(&self) -> CoreId {
        CoreId(self.core.0 % self.queues.max(1))
    }

    /// When this core has no queue (any more), what its lane holds goes where there is one.
    fn move_on<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        if self.queues == 0 || self.queue_core() == self.core {
            return;
        }
        while let Some(mut command) = self.lane.take_waiting() {
            if let Some(mut work) = self.take_work(command.tag) {
                // From its start: what is done of it is done twice, which harms nothing.
                work.request.buf = command.take_buf();
                self.pass_on(cx, work.request);
            }
        }
    }

    fn pass_on<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, request: Request) {
        let foreign = request.origin.core != self.core;
        self.passed_on += usize::from(foreign);
        self.relays |= foreign;
        cx.io.post(self.queue_core(), Msg::Submit(self.backend, request));
    }

    /// What commands must keep to now.
    fn limits(&self) -> Limits {
        let limits = self.lane.limits();
        Limits { write_zeroes: limits.write_zeroes && !self.refuses_zeroes, ..limits }
    }

    /// Starts a request here, on this core's lane.
    fn start<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, request: Request) {
        let limits = self.limits();
        let settled = match request.op {
            _ if !is_aligned(&request, limits) => Some(Err(Fault::Internal)),
            // A hint that the array can't take, or after which its blocks need not read as zeros.
            Op::Deallocate if !limits.deallocate => Some(Ok(())),
            // Without a volatile cache, what completed is durable (NVMe base 2.0c §5.27.1.4).
            Op::Flush if !limits.volatile_write_cache => Some(Ok(())),
            Op::Read | Op::Write if request.buf.is_none() => Some(Err(Fault::Internal)),
            Op::Flush => None,
            _ if request.len == 0 => Some(Ok(())),
            _ => None,
        };
        if let Some(result) = settled {
            return cx.complete(request, result);
        }
        match self.free.pop() {
            Some(at) => self.next_part(cx, at, Work { request, done: 0, part: 0, cancelled: false }),
            // The LUN layer lets nothing through that must wait, but those that were parked may find less room.
            None => cx.complete(request, Err(Fault::PathLost)),
        }
    }

    /// Submits the next command of a request.
    fn next_part<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32, mut work: Work) {
        if work.request.op == Op::Deallocate && !self.limits().deallocate {
            self.free.push(at);
            return cx.complete(work.request, Ok(()));
        }
        let command = make_part(&mut work, at.into(), self.nsid, self.limits());
        if let Err(mut command) = self.lane.submit(cx.io.now(), command) {
            // The lane has a place for each work slot, so this is a bug; the request still ends.
            work.request.buf = command.take_buf();
            self.free.push(at);
            return cx.complete(work.request, Err(Fault::Internal));
        }
        if let Some(slot) = self.works.get_mut(at as usize) {
            *slot = Some(work);
        }
    }

    fn take_work(&mut self, tag: u64) -> Option<Work> {
        let work = self.works.get_mut(tag as usize)?.take()?;
        self.free.push(tag as u32);
        Some(work)
    }

    /// Completions to requests.
    fn reap<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let now = cx.io.now();
        let mut any = false;
        while let Some(Finished { mut command, result }) = self.lane.next_finished(now) {
            any = true;
            let Some(mut work) = self.works.get_mut(command.tag as usize).and_then(Option::take) else {
                continue;
            };
            let at = command.tag as u32;
            work.request.buf = command.take_buf();
            let was_refused = result.as_ref().is_ok_and(|cqe| is_refusal(cqe.status));
            if was_refused && command.sqe.opcode == io_opcode::WRITE_ZEROES && !work.cancelled {
                // Also one that covers more than the array takes at once (WZSL, NVM command set 1.0c §4.1.5.3).
                self.refuses_zeroes = true;
                self.next_part(cx, at, work);
                continue;
            }
            if work.request.op == Op::Deallocate && matches!(result, Err(Fault::Aborted)) && !work.cancelled {
                // The lane gave it back, see `drop_deallocates`.
                self.next_part(cx, at, work);
                continue;
            }
            work.done += work.part;
            match verdict(work.request.op, result) {
                Ok(()) if work.done < work.request.len && !work.cancelled => self.next_part(cx, at, work),
                Ok(()) if work.done < work.request.len => {
                    self.free.push(at);
                    cx.complete(work.request, Err(Fault::Aborted));
                }
                result => {
                    self.free.push(at);
                    cx.complete(work.request, result);
                }
            }
        }
        any
    }
}

impl<I: StorageIo> Channel<I> for NvmeTcpChannel {
    #[inline]
    fn must_wait(&self, _request: &Request, behind: bool) -> bool {
        let is_full = match self.queues {
            0 => self.parked.len() == self.works.len(),
            _ => self.queue_core() == self.core && self.free.is_empty(),
        };
        behind || is_full
    }

    fn submit(&mut self, cx: &mut Cx<'_, I>, request: Request) {
        if self.queues == 0 {
            if self.parked.len() == self.works.len() {
                cx.complete(request, Err(Fault::PathLost));
            } else {
                self.parked.push_back(request);
            }
        } else if self.queue_core() == self.core {
            self.start(cx, request);
        } else {
            self.pass_on(cx, request);
        }
    }

    fn cancel(&mut self, cx: &mut Cx<'_, I>, stream: Stream) {
        for _ in 0..self.parked.len() {
            match self.parked.pop_front() {
                Some(request) if request.is_of(stream) => cx.complete(request, Err(Fault::Aborted)),
                other => self.parked.extend(other),
            }
        }
        let mut any = false;
        for work in self.works.iter_mut().flatten().filter(|work| work.request.is_of(stream)) {
            (work.cancelled, any) = (true, true);
        }
        if any {
            let works = &self.works;
            let which =
                |tag: u64| works.get(tag as usize).is_some_and(|w| w.as_ref().is_some_and(|w| w.cancelled));
            self.lane.cancel(cx.io.now(), which);
            self.reap(cx);
        }
        // Behind what went that way. The number of the core only falls, so that this ends.
        if self.relays && self.queues > 0 && self.queue_core() != self.core {
            cx.io.post(self.queue_core(), Msg::Cancel(Some(self.backend), stream));
        }
    }

    fn is_idle(&self) -> bool {
        self.is_quiet()
    }
}

/// A channel may be dropped as soon as it is stopped.
fn release_if_stopped(controller: &mut Controller, arena: &mut Arena) {
    if controller.is_stopped() {
        controller.release(arena);
    }
}

/// Where a backend's controller lives.
fn controller_core(backend: BackendId, cores: u16) -> CoreId {
    CoreId((backend.0 % u32::from(cores.max(1))) as u16)
}

fn is_aligned(request: &Request, limits: Limits) -> bool {
    let block_bytes = u64::from(limits.block_bytes);
    block_bytes > 0
        && request.offset.is_multiple_of(block_bytes)
        && request.len.is_multiple_of(block_bytes)
        && (limits.max_transfer_bytes >= limits.block_bytes)
}

/// The command for the next bytes of a request; its block moves into the command.
fn make_part(work: &mut Work, tag: u64, nsid: u32, limits: Limits) -> Command {
    let request = &mut work.request;
    let block_bytes = u64::from(limits.block_bytes);
    let left = request.len - work.done;
    // NLB is 16 bits, 0's based (NVM command set 1.0c §3.2).
    let max_blocks = (1 << 16) * block_bytes;
    let transfer = (u64::from(limits.max_transfer_bytes) / block_bytes * block_bytes).min(max_blocks);
    work.part = match request.op {
        Op::Read | Op::Write => left.min(transfer),
        Op::WriteZeroes { .. } if !limits.write_zeroes => left.min(transfer).min(MAX_ZEROS_BYTES),
        Op::WriteZeroes { .. } => left.min(MAX_ZEROES_BYTES).min(max_blocks),
        Op::Deallocate => left.min(MAX_DEALLOCATE_BYTES),
        Op::Flush => 0,
    };
    let slba = (request.offset + work.done) / block_bytes;
    let nlb = (work.part / block_bytes) as u32;
    let range = BlockRange { fua: request.durable, ..BlockRange::new(slba, nlb) };
    let sqe = |command: IoCommand| -> Sqe { command.sqe(0, nsid, Sgl::NONE) };
    let (at, len) = (request.buf_at + work.done as u32, work.part as u32);
    match (request.op, request.buf.take()) {
        (Op::Read, Some(buf)) => {
            Command::fill(tag, sqe(IoCommand::Read(BlockRange::new(slba, nlb))), buf, at, len)
        }
        (Op::Write, Some(buf)) => Command::send(tag, sqe(IoCommand::Write(range)), buf, at, len),
        (op, buf) => {
            request.buf = buf;
            match op {
                Op::WriteZeroes { .. } if !limits.write_zeroes => {
                    Command::zeros(tag, sqe(IoCommand::Write(range)), len)
                }
                Op::WriteZeroes { deallocate } => {
                    let deac = deallocate && limits.zeroes_deallocate;
                    Command::bare(tag, sqe(IoCommand::WriteZeroes { range, deac }))
                }
                Op::Deallocate => {
                    let dsm = DsmCommand { ranges: 1, deallocate: true, ..Default::default() };
                    let mut inline = [0; DsmRange::LEN];
                    DsmRange { attributes: 0, nlb, slba }.emit(&mut inline);
                    Command::inline(tag, sqe(IoCommand::Dsm(dsm)), inline)
                }
                Op::Read | Op::Write | Op::Flush => Command::bare(tag, sqe(IoCommand::Flush)),
            }
        }
    }
}

/// Returns whether the status says that the controller lacks the command, or takes less at once (DMRSL and DMSL, NVM command set
/// 1.0c §4.1.5.4).
fn is_refusal(status: Status) -> bool {
    let refusals = [Status::INVALID_OPCODE, Status::INVALID_FIELD, Status::COMMAND_SIZE_LIMIT_EXCEEDED];
    refusals.iter().any(|code| status.is(*code))
}

/// What a completion means to the layers above.
fn verdict(op: Op, result: Result<Cqe, Fault>) -> Result<(), Fault> {
    let status = result?.status;
    // Deallocate is a hint, which an array need not take.
    if status.is_ok() || (op == Op::Deallocate && is_refusal(status)) {
        return Ok(());
    }
    let medium = if op == Op::Read { Fault::MediaRead } else { Fault::MediaWrite };
    let named = [
        (Status::LBA_OUT_OF_RANGE, Fault::OutOfRange),
        (Status::CAPACITY_EXCEEDED, Fault::NoSpace),
        (Status::NAMESPACE_WRITE_PROTECTED, Fault::ReadOnly),
        (Status::WRITE_TO_READ_ONLY_RANGE, Fault::ReadOnly),
        (Status::RESERVATION_CONFLICT, Fault::ReadOnly),
        (Status::INVALID_NAMESPACE, Fault::Gone),
        (Status::INVALID_OPCODE, Fault::Unsupported),
        (Status::ANA_INACCESSIBLE, Fault::Inaccessible),
        (Status::ANA_PERSISTENT_LOSS, Fault::Inaccessible),
        (Status::ANA_TRANSITION, Fault::Inaccessible),
        (Status::ABORT_REQUESTED, Fault::PathLost),
        (Status::ABORTED_SQ_DELETION, Fault::PathLost),
        (Status::TRANSIENT_TRANSPORT_ERROR, Fault::PathLost),
        (Status::DATA_TRANSFER_ERROR, Fault::PathLost),
        (Status::NAMESPACE_NOT_READY, Fault::PathLost),
        (Status::COMMAND_INTERRUPTED, Fault::PathLost),
    ];
    let fault = named.iter().find(|(code, _)| status.is(*code)).map(|(_, fault)| *fault);
    Err(fault.unwrap_or(if status.sct() == StatusType::Path { Fault::PathLost } else { medium }))
}

#[cfg(test)]
mod tests;
