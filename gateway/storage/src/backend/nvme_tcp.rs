//! A namespace of an NVMe/TCP array as a backend, with one channel on each core.
//!
//! What this module does: it converts each [`Request`] into commands on this core's [`Lane`], and the commands'
//! completions into the request's completion. One core runs the array's controller. The channels of all cores exchange
//! messages.
//!
//! What it does not do: it doesn't speak the protocol (see [`crate::initiator`]).
//!
//! # Cores and queues
//! Core `c` has I/O queue `c + 1` if the array grants at least `c + 1` queues. A core without a queue passes its
//! requests on to core `c % queues` ([`Msg::Submit`]), and gets the completions back. Each association states the
//! number of queues, so control makes the channels of all cores in the same way. If the array grants fewer queues after
//! a reconnect, waiting requests move to a core that still has a queue. The controller runs on core `backend % cores`.
//!
//! # What the channel's core must do
//! - Get the channel from the control thread, which allocates all its memory. Every core gets its own channel.
//! - After each call, take [`NvmeTcpChannel::take_new_sock`] until it is `None`. Pass the events of these sockets to
//!   this channel until their [`SockEvent::Closed`].
//! - Pass [`Msg::Initiator`] to [`NvmeTcpChannel::on_msg`]. Drop the message if the backend is not attached on this
//!   core: a core that attaches late asks for the messages that it missed.
//! - To detach, call [`NvmeTcpChannel::stop`]. Then call [`NvmeTcpChannel::on_turn`] until
//!   [`NvmeTcpChannel::is_stopped`].
//!
//! Memory of one core's channel: about 1 KiB for each of `requests`, one queue pair, and on one core the controller. The
//! 1 KiB holds a request of 130 bytes, its slot, and five places for a lane's commands at 180 bytes each.

use super::Channel;
use crate::cx::Cx;
use crate::initiator::lane::HELD_FOR;
use crate::initiator::{
    Command, Controller, ControllerConfig, ControllerError, ControllerEvent, Finished, InitiatorMsg, Lane,
    LaneConfig, Limits, NamespaceIdentity, Purpose,
};
use crate::msg::{Event, Msg, StorageIo};
use crate::request::{Fault, Op, Request, Stream};
use crate::slab::Slab;
use crate::topology::BackendId;
use std::collections::VecDeque;
use std::time::Duration;
use trefoil_poll::{Arena, CoreId, Instant, SockEvent, SockId};
use trefoil_wire::nvme::{
    BlockRange, Cqe, DsmCommand, DsmRange, IoCommand, Sgl, Sqe, Status, StatusType, io_opcode,
};

/// The largest number of bytes that one Write Zeroes covers. A larger command could take longer than its timeout.
const MAX_ZEROES_BYTES: u64 = 32 << 20;
/// The largest number of zeros that one Write sends to an array without Write Zeroes, in bytes.
const MAX_ZEROS_BYTES: u64 = trefoil_poll::send::ZEROS_BYTES as u64;
/// The largest number of bytes that one range of Dataset Management covers.
const MAX_DEALLOCATE_BYTES: u64 = 1 << 30;

/// The array as control describes it to every core's channel.
#[derive(Clone, Debug)]
pub struct NvmeTcpConfig {
    /// The controller's settings. The purpose must be [`Purpose::Nvm`]. `io_queues` is capped at the number of cores.
    pub controller: ControllerConfig,
    /// Time from sending a command to aborting it.
    pub command_timeout: Duration,
    /// Requests that this core's channel can hold. Further requests wait until one of these ends. Other cores may pass
    /// requests on to this core. If the array grants a single queue, they pass on all their requests.
    pub requests: usize,
}

/// A request and its progress.
struct Work {
    request: Request,
    /// Bytes that are done. A request larger than the array's limits takes several commands.
    done: u64,
    /// Bytes of the command in flight.
    part: u64,
    /// The request was cancelled, so no further command follows.
    cancelled: bool,
}

/// One core's channel to a namespace of an array. See the module.
pub struct NvmeTcpChannel {
    backend: BackendId,
    core: CoreId,
    cores: u16,
    nsid: u32,
    controller: Option<Controller>,
    lane: Lane,
    /// I/O queues of the current association; 0 before the first association.
    queues: u16,
    /// The controller gave the array up: the loss timeout passed. This matters only before the first association, while
    /// requests are parked.
    gave_up: bool,
    greeted: bool,
    stopping: bool,
    /// The channel has told the queue and the controller to close.
    closing: bool,
    usable: bool,
    len_bytes: u64,
    works: Slab<Work>,
    /// The array refused a Write Zeroes in this association, even if it reports support for the command.
    refuses_zeroes: bool,
    /// The number of other cores' requests that this core passed on to a third core, since the last
    /// [`Self::take_passed_on`].
    passed_on: usize,
    /// This core has passed a request of another core on to a third core, so it must pass cancels on too.
    relays: bool,
    /// Requests that arrived before the number of queues was known.
    parked: VecDeque<Request>,
    /// Time at which the parked requests fail, if the array was given up.
    fail_at: Option<Instant>,
}

impl std::fmt::Debug for NvmeTcpChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NvmeTcpChannel({:?} on {:?})", self.backend, self.core)
    }
}

impl NvmeTcpChannel {
    /// Creates the channel of `core`. The channel starts to connect at its first turn.
    ///
    /// # Panics
    /// Panics like [`Controller::new`] if limits are out of range.
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
            works: Slab::with_capacity(config.requests),
            refuses_zeroes: false,
            passed_on: 0,
            relays: false,
            parked: VecDeque::with_capacity(config.requests),
            fail_at: None,
        }
    }

    /// Makes the controller accept only this namespace. Call this before the first turn.
    pub fn take_only(&mut self, namespace: NamespaceIdentity) {
        if let Some(controller) = &mut self.controller {
            controller.take_only(namespace);
        }
    }

    /// Takes the next socket that the channel opened.
    pub fn take_new_sock(&mut self) -> Option<SockId> {
        self.lane.take_new_sock().or_else(|| self.controller.as_mut().and_then(Controller::take_new_sock))
    }

    /// Returns the number of other cores' requests that this core passed on to a third core since the last call. Those
    /// requests don't complete here, so the LUN layer subtracts them from the channel's count.
    pub fn take_passed_on(&mut self) -> usize {
        std::mem::take(&mut self.passed_on)
    }

    /// Starts an orderly close: the channel closes once all its requests are done. The caller must submit no request
    /// after this call.
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

    /// Returns whether the channel can be dropped.
    pub fn is_stopped(&self) -> bool {
        let controller = self.controller.as_ref().is_none_or(Controller::is_stopped);
        self.closing && self.is_quiet() && self.lane.is_closed() && controller
    }

    fn is_quiet(&self) -> bool {
        self.works.is_empty() && self.parked.is_empty()
    }

    fn is_lane(&self, sock: SockId) -> bool {
        self.lane.sock() == Some(sock)
    }

    /// Handles an event of a socket.
    pub fn on_sock<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, sock: SockId, event: SockEvent<'_>) {
        if self.is_lane(sock) {
            self.lane.on_sock(cx.io, event);
            self.reap(cx);
        } else if let Some(controller) = &mut self.controller {
            controller.qpair().on_sock(cx.io, event);
        } else {
            event.discard(cx.arena);
        }
    }

    /// Handles a message from another core's channel.
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

    /// Handles timers, events and messages, then sends pending data. Returns `true` if the channel did work.
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

    /// Returns when [`on_turn`](Self::on_turn) must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let start = (!self.greeted).then_some(Instant::default());
        let controller = self.controller.as_ref().and_then(Controller::next_deadline);
        [start, controller, self.fail_at, self.lane.next_deadline()].into_iter().flatten().min()
    }

    /// Delivers messages between the controller and the lanes of all cores. Returns `true` if a message was delivered.
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

    /// Handles a message that the controller sends to all lanes.
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

    /// Takes deallocates of an earlier association back from the lane, if the array doesn't promise in this association
    /// that deallocated blocks read as zeros.
    fn drop_deallocates(&mut self, now: Instant) {
        if self.lane.limits().deallocate {
            return;
        }
        let works = &self.works;
        let is_deallocate = |tag| works.get(tag as u32).is_some_and(|work| work.request.op == Op::Deallocate);
        self.lane.cancel(now, is_deallocate);
    }

    /// Fails the parked requests of an array that was given up: after [`HELD_FOR`], or at once if the channel is
    /// stopping. The lane treats its commands the same way. Returns whether the requests were due.
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

    /// Reports the controller's events to control. Returns `true` if the controller had an event.
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
                ControllerEvent::GaveUp => {
                    Some(state(false, "the array did not come back within the loss timeout", false))
                }
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

    /// Returns the core that has the queue for this core's requests.
    fn queue_core(&self) -> CoreId {
        CoreId(self.core.0 % self.queues.max(1))
    }

    /// Passes the lane's waiting commands on to the core with the queue, if this core has no queue now.
    fn move_on<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        if self.queues == 0 || self.queue_core() == self.core {
            return;
        }
        while let Some(mut command) = self.lane.take_waiting() {
            if let Some(mut work) = self.works.remove(command.tag as u32) {
                // The request starts again from its first byte. To repeat its finished part does no harm.
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

    /// Returns the limits for new commands.
    fn limits(&self) -> Limits {
        let limits = self.lane.limits();
        Limits { write_zeroes: limits.write_zeroes && !self.refuses_zeroes, ..limits }
    }

    /// Starts a request on this core's own lane.
    fn start<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, request: Request) {
        let limits = self.limits();
        let settled = match request.op {
            _ if !is_aligned(&request, limits) => Some(Err(Fault::Internal)),
            // Deallocate is only a hint. Ignore it if the array doesn't support the command, or doesn't promise that
            // deallocated blocks read as zeros.
            Op::Deallocate if !limits.deallocate => Some(Ok(())),
            // Without a volatile write cache, every completed write is durable (NVMe base 2.0c §5.27.1.4).
            Op::Flush if !limits.volatile_write_cache => Some(Ok(())),
            Op::Read | Op::Write if request.buf.is_none() => Some(Err(Fault::Internal)),
            Op::Flush => None,
            _ if request.len == 0 => Some(Ok(())),
            _ => None,
        };
        if let Some(result) = settled {
            return cx.complete(request, result);
        }
        match self.works.insert(Work { request, done: 0, part: 0, cancelled: false }) {
            Ok(at) => self.next_part(cx, at),
            // The LUN layer holds back a request while all slots are taken. But parked requests start without this
            // check, so the slots may not suffice for all of them.
            Err(work) => cx.complete(work.request, Err(Fault::PathLost)),
        }
    }

    /// Submits a request's next command.
    fn next_part<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) {
        let limits = self.limits();
        let Some(work) = self.works.get_mut(at) else { return };
        if work.request.op == Op::Deallocate && !limits.deallocate {
            return self.finish(cx, at, Ok(()));
        }
        let command = make_part(work, at.into(), self.nsid, limits);
        if let Err(mut command) = self.lane.submit(cx.io.now(), command) {
            // The lane has a place for each slot of `works`, so this is a bug. The request still completes.
            work.request.buf = command.take_buf();
            self.finish(cx, at, Err(Fault::Internal));
        }
    }

    fn finish<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32, result: Result<(), Fault>) {
        if let Some(work) = self.works.remove(at) {
            cx.complete(work.request, result);
        }
    }

    /// Turns finished commands into completions. Returns `true` if a command finished.
    fn reap<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let now = cx.io.now();
        let mut any = false;
        while let Some(Finished { mut command, result }) = self.lane.next_finished(now) {
            any = true;
            let at = command.tag as u32;
            let Some(work) = self.works.get_mut(at) else { continue };
            work.request.buf = command.take_buf();
            let was_refused = result.as_ref().is_ok_and(|cqe| is_refusal(cqe.status));
            if was_refused && command.sqe.opcode == io_opcode::WRITE_ZEROES && !work.cancelled {
                // The array may also refuse a range that is longer than it accepts in one command (WZSL, NVM command
                // set 1.0c §4.1.5.3).
                self.refuses_zeroes = true;
                self.next_part(cx, at);
                continue;
            }
            if work.request.op == Op::Deallocate && matches!(result, Err(Fault::Aborted)) && !work.cancelled {
                // `drop_deallocates` took the command back from the lane.
                self.next_part(cx, at);
                continue;
            }
            work.done += work.part;
            match verdict(work.request.op, result) {
                Ok(()) if work.done < work.request.len && !work.cancelled => self.next_part(cx, at),
                Ok(()) if work.done < work.request.len => self.finish(cx, at, Err(Fault::Aborted)),
                result => self.finish(cx, at, result),
            }
        }
        any
    }
}

impl<I: StorageIo> Channel<I> for NvmeTcpChannel {
    #[inline]
    fn must_wait(&self, _request: &Request, behind: bool) -> bool {
        let is_full = match self.queues {
            0 => self.parked.len() == self.works.capacity(),
            _ => self.queue_core() == self.core && self.works.is_full(),
        };
        behind || is_full
    }

    fn submit(&mut self, cx: &mut Cx<'_, I>, request: Request) {
        if self.queues == 0 {
            if self.parked.len() == self.works.capacity() {
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
        for work in self.works.iter_mut().filter(|work| work.request.is_of(stream)) {
            (work.cancelled, any) = (true, true);
        }
        if any {
            let works = &self.works;
            self.lane.cancel(cx.io.now(), |tag| works.get(tag as u32).is_some_and(|work| work.cancelled));
            self.reap(cx);
        }
        // Sends the cancel to the core that got the passed-on requests. That core has a lower number, so this
        // forwarding ends.
        if self.relays && self.queues > 0 && self.queue_core() != self.core {
            cx.io.post(self.queue_core(), Msg::Cancel(Some(self.backend), stream));
        }
    }

    fn is_idle(&self) -> bool {
        self.is_quiet()
    }
}

/// Releases the memory of a stopped controller, since the channel may be dropped as soon as the controller is stopped.
fn release_if_stopped(controller: &mut Controller, arena: &mut Arena) {
    if controller.is_stopped() {
        controller.release(arena);
    }
}

/// Returns the core on which a backend's controller runs.
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

/// Makes the command for the next bytes of a request. The request's block moves into the command.
fn make_part(work: &mut Work, tag: u64, nsid: u32, limits: Limits) -> Command {
    let request = &mut work.request;
    let block_bytes = u64::from(limits.block_bytes);
    let left = request.len - work.done;
    // NLB is a 16-bit, 0's based field (NVM command set 1.0c §3.2).
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

/// Returns whether the status says that the controller doesn't support the command, or that the command's range is too
/// large (DMRSL and DMSL, NVM command set 1.0c §4.1.5.4).
fn is_refusal(status: Status) -> bool {
    let refusals = [Status::INVALID_OPCODE, Status::INVALID_FIELD, Status::COMMAND_SIZE_LIMIT_EXCEEDED];
    refusals.iter().any(|code| status.is(*code))
}

/// Translates a command's result into a request's result.
fn verdict(op: Op, result: Result<Cqe, Fault>) -> Result<(), Fault> {
    let status = result?.status;
    // Deallocate is a hint, so an array may refuse it.
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
