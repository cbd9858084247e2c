//! From LUNs to backends: one core's LUN table and its channels.
//!
//! A request for a LUN is checked against the LUN, mapped to a backend's bytes and handed to that
//! backend's channel. Where it crosses extents, or is a flush of several backends, its parts go one
//! after the other, and the request itself carries how far it got ([`Rest`]); so there are no parent
//! requests and no table of parts.
//!
//! What it is not: it knows neither hosts nor namespaces, and it doesn't retry.
//!
//! Invariants: a channel's count is the number of requests that it has; a request's `rest.at` names
//! the channel that has it on its home core (and, on its way over another core, there too); whatever lets one go on that
//! waits is an event, or is said to be work, so that a turn follows and the core may sleep until then.

mod line;

use crate::backend::nvme_tcp::NvmeTcpChannel;
use crate::backend::{AnyChannel, Attach, AttachKind, Channel, Memory, Slab};
use crate::cx::Cx;
use crate::msg::{Msg, StorageIo};
use crate::request::{Completed, Fault, Op, Origin, Request, Rest, Stream};
use crate::topology::{BackendId, Extent, Lun, LunId, MAX_BACKENDS, MAX_LUNS, Topology};
use line::{Line, Waiter};
use std::collections::VecDeque;
use std::sync::Arc;
use trefoil_poll::ram::Ram;
use trefoil_poll::{CoreId, FileDone, Instant, Loan, SockId};

/// One core's LUNs and channels: 4,096 × 24 bytes and 256 × about 200 bytes.
pub struct Luns<I: StorageIo> {
    core: CoreId,
    maps: Box<[Map]>,
    /// For LUNs of several extents.
    topology: Option<Arc<Topology>>,
    channels: Box<[Place<I>]>,
    /// Those that have a channel.
    attached: Vec<BackendId>,
    /// Those of them that the next turn asks, each once: whatever else is attached costs a turn nothing.
    awake: Vec<BackendId>,
    /// No channel's deadline is earlier.
    next_due: Option<Instant>,
    /// How often channels were asked.
    #[cfg(test)]
    asked: usize,
    /// Sockets that channels opened, until the core takes them: at most two a backend.
    new_socks: VecDeque<(SockId, BackendId)>,
    /// Requests whose channel says [`Channel::must_wait`], counted as the channel's, in their places' lines. At most all.
    waiting: Slab<Waiter>,
}

/// A LUN as the data path sees it.
#[derive(Clone, Copy, Default)]
struct Map {
    len_bytes: u64,
    /// Where it starts on its backend, if it is there in one piece.
    backend_offset: u64,
    backend: u32,
    kind: Kind,
    read_only: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Absent,
    /// One extent.
    Whole,
    /// Several, to be looked up.
    Extents,
}

/// Requests that waited for a backend which one turn starts: a crowd doesn't hold the core up.
const STARTS: usize = 256;

/// Where a backend's channel stands.
struct Place<I: StorageIo> {
    channel: Option<AnyChannel>,
    /// Requests that it has, those that wait among them.
    requests: usize,
    line: Line,
    detaching: bool,
    /// It is in `awake`.
    is_awake: bool,
    /// When its channel must be asked.
    due: Option<Instant>,
    /// The box that it came in, in which its memory goes home.
    attach: Option<Box<Attach<I::File>>>,
}

impl<I: StorageIo> Luns<I> {
    /// Empty tables for `core`, of their final size, with room for `requests` to wait: all that there can be.
    pub fn new(core: CoreId, requests: usize) -> Self {
        let place = || Place {
            channel: None,
            requests: 0,
            line: Line::default(),
            detaching: false,
            is_awake: false,
            due: None,
            attach: None,
        };
        Self {
            core,
            maps: vec![Map::default(); MAX_LUNS].into(),
            topology: None,
            channels: (0..MAX_BACKENDS).map(|_| place()).collect(),
            attached: Vec::with_capacity(MAX_BACKENDS),
            awake: Vec::with_capacity(MAX_BACKENDS),
            next_due: None,
            #[cfg(test)]
            asked: 0,
            new_socks: VecDeque::with_capacity(2 * MAX_BACKENDS),
            waiting: Slab::with_capacity(requests),
        }
    }

    /// Serves the LUNs of `new` from now on, and gives the old snapshot back. Parts of requests that
    /// are under way end where they were sent; their next parts follow the new map.
    pub fn on_topology(&mut self, new: Arc<Topology>) -> Option<Arc<Topology>> {
        debug_assert!(new.luns.len() <= MAX_LUNS);
        for (at, map) in self.maps.iter_mut().enumerate() {
            *map = new.luns.get(at).and_then(Option::as_ref).map(Map::new).unwrap_or_default();
        }
        self.topology.replace(new)
    }

    /// Takes a backend's channel over and answers control: [`Msg::Attached`], or [`Msg::Detached`]
    /// with the unused box if it can't be had.
    pub fn attach(&mut self, cx: &mut Cx<'_, I>, id: BackendId, mut attach: Box<Attach<I::File>>) {
        let free = self.channels.get_mut(id.0 as usize).filter(|place| place.channel.is_none());
        let Some(place) = free.filter(|_| attach.id == id) else {
            return cx.io.post_control(Msg::Detached(id, Some(attach)));
        };
        match AnyChannel::attach(cx.io, &mut attach) {
            Ok(channel) => {
                place.channel = Some(channel);
                place.attach = Some(attach);
                self.attached.push(id);
                place.wake(id, &mut self.awake);
                cx.io.post_control(Msg::Attached(id));
            }
            Err(_) => cx.io.post_control(Msg::Detached(id, Some(attach))),
        }
    }

    /// Lets a backend go as soon as nothing is on its way there, and then answers control with
    /// [`Msg::Detached`]. New requests for it end with [`Fault::Gone`].
    pub fn detach(&mut self, cx: &mut Cx<'_, I>, id: BackendId) {
        match self.channels.get_mut(id.0 as usize) {
            Some(place) if place.channel.is_some() => {
                place.detaching = true;
                place.wake(id, &mut self.awake);
                if let Some(channel) = &mut place.channel {
                    channel.stop(cx);
                }
                self.let_go_if_idle(cx, id);
            }
            _ => cx.io.post_control(Msg::Detached(id, None)),
        }
    }

    /// A request of a frontend's, for a LUN.
    pub fn submit(&mut self, cx: &mut Cx<'_, I>, mut request: Request) {
        let Some(&map) = self.maps.get(request.lun.0 as usize).filter(|map| map.kind != Kind::Absent) else {
            return cx.complete(request, Err(Fault::Gone));
        };
        if request.op == Op::Flush {
            return self.submit_flush(cx, request, map);
        }
        if map.read_only && request.op != Op::Read {
            return cx.complete(request, Err(Fault::ReadOnly));
        }
        match request.offset.checked_add(request.len) {
            Some(end) if end <= map.len_bytes => {}
            _ => return cx.complete(request, Err(Fault::OutOfRange)),
        }
        if map.kind == Kind::Whole {
            request.offset += map.backend_offset;
            return self.submit_backend(cx, BackendId(map.backend), request);
        }
        request.rest = Rest { offset: request.offset, len: request.len, ..Rest::default() };
        self.submit_part(cx, request);
    }

    /// Lends `len` bytes of `lun` at `offset` at once, if they lie in this core's memory and nothing holds them up.
    /// Otherwise a request finds out what there is to say.
    #[inline]
    pub fn lend(&mut self, lun: LunId, offset: u64, len: u32) -> Option<Loan> {
        let (memory, at) = self.memory(lun, offset, u64::from(len), false)?;
        memory.lend(at, len)
    }

    /// Writes `data` to `lun` at `offset` at once, on the same terms. Whether it did.
    #[inline]
    pub fn write(&mut self, lun: LunId, offset: u64, data: &[u8]) -> bool {
        let place = self.memory(lun, offset, data.len() as u64, true);
        place.is_some_and(|(memory, at)| memory.write(at, data))
    }

    /// Requests that wait for their backend.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The memory of backend `id`, if it is this core's: for tests and the simulator.
    pub fn ram(&self, id: BackendId) -> Option<&Ram> {
        match &self.channels.get(id.0 as usize)?.channel {
            Some(AnyChannel::Memory(memory)) => Some(memory.ram()),
            _ => None,
        }
    }

    /// The memory in which a range of a LUN lies whole, and where.
    #[inline]
    fn memory(&mut self, lun: LunId, offset: u64, len: u64, write: bool) -> Option<(&mut Memory, u64)> {
        let map = self.maps.get(lun.0 as usize).filter(|map| map.kind == Kind::Whole)?;
        let inside = offset.checked_add(len).is_some_and(|end| end <= map.len_bytes);
        if !inside || (write && map.read_only) {
            return None;
        }
        // Who waits for loans to end comes first.
        let is_open = |place: &&mut Place<I>| !place.detaching && place.line.is_empty();
        let place = self.channels.get_mut(map.backend as usize).filter(is_open)?;
        match &mut place.channel {
            Some(AnyChannel::Memory(memory)) => Some((memory, offset + map.backend_offset)),
            _ => None,
        }
    }

    /// A request that is mapped already: control's own, or one from a core without a channel.
    pub fn submit_backend(&mut self, cx: &mut Cx<'_, I>, id: BackendId, mut request: Request) {
        let Some(place) = self.channels.get_mut(id.0 as usize) else {
            return cx.complete(request, Err(Fault::Gone));
        };
        // Counted even if it is refused, as every completion is.
        place.requests += 1;
        place.wake(id, &mut self.awake);
        (request.rest.at, request.rest.core) = (id, self.core);
        match &mut place.channel {
            // Two cores that sent each other's requests on would do so for ever.
            Some(AnyChannel::Remote(_)) if request.origin.core != self.core => {
                cx.complete(request, Err(Fault::Gone));
            }
            Some(channel) if !place.detaching => {
                let alone = place.line.is_empty();
                if Channel::<I>::must_wait(channel, &request, !alone) && !cx.io.is_broken("impatient-write") {
                    if let Err(request) = place.line.push(&mut self.waiting, request) {
                        debug_assert!(false, "more requests than this core has room for");
                        cx.complete(request, Err(Fault::Internal));
                    }
                    return;
                }
                // While somebody waits for loans to end, no new ones are made.
                request.may_lend &= request.origin.core == self.core && alone;
                channel.submit(cx, request);
            }
            _ => cx.complete(request, Err(Fault::Gone)),
        }
    }

    /// The queue of these requests is gone: what this core's channels have of them (or that of backend `only`) ends as
    /// soon as it can't take effect any more.
    pub fn cancel(&mut self, cx: &mut Cx<'_, I>, only: Option<BackendId>, stream: Stream) {
        for id in self.attached.iter().filter(|id| only.is_none_or(|only| only == **id)) {
            let Some(place) = self.channels.get_mut(id.0 as usize) else { continue };
            if place.requests > 0 {
                place.wake(*id, &mut self.awake);
            }
            let mut line = std::mem::take(&mut place.line);
            while let Some(request) = line.pop(&mut self.waiting) {
                if request.is_of(stream) || cx.io.is_broken("cancelled-others") {
                    cx.complete(request, Err(Fault::Aborted));
                } else if let Err(request) = place.line.push(&mut self.waiting, request) {
                    debug_assert!(false, "the place that it just left is taken");
                    cx.complete(request, Err(Fault::Internal));
                }
            }
            if let Some(channel) = &mut place.channel {
                channel.cancel(cx, stream);
            }
        }
    }

    /// A completion: of a channel of this core's, or one that another core sent home. Gives back
    /// what is wholly done, or (if its origin is another core) what must go there; `None` if the next
    /// part of the request is on its way. A request that its owner has no use for any more, as `is_wanted` says, is done
    /// with the part that it is at.
    pub fn on_completed(
        &mut self,
        cx: &mut Cx<'_, I>,
        mut done: Completed,
        is_wanted: impl FnOnce(Origin) -> bool,
    ) -> Option<Completed> {
        let id = done.request.rest.at;
        self.count_out(cx, id);
        if done.request.origin.core != self.core {
            done.request.rest.core = done.request.origin.core;
            return Some(done);
        }
        done.request.rest.at = Rest::NOWHERE;
        if done.request.rest.len == 0 || done.result.is_err() {
            return Some(done);
        }
        if !is_wanted(done.request.origin) {
            done.result = Err(Fault::Aborted);
            return Some(done);
        }
        self.go_on(cx, done.request);
        None
    }

    /// A backend has one request less.
    #[inline]
    fn count_out(&mut self, cx: &mut Cx<'_, I>, id: BackendId) {
        if let Some(place) = self.channels.get_mut(id.0 as usize) {
            debug_assert!(place.requests > 0, "backend {} had no request", id.0);
            place.requests = place.requests.saturating_sub(1);
            if place.detaching {
                self.let_go_if_idle(cx, id);
            }
        }
    }

    /// A request was dropped that this core counts as backend `id`'s; [`Rest::NOWHERE`] is nobody's.
    pub fn on_lost(&mut self, cx: &mut Cx<'_, I>, id: BackendId) {
        self.count_out(cx, id);
    }

    /// An answer to a file operation.
    pub fn on_file(&mut self, cx: &mut Cx<'_, I>, done: FileDone) {
        let id = BackendId((done.token >> 32) as u32);
        match self.woken(id) {
            Some(channel) => channel.on_file(cx, done),
            None => debug_assert!(false, "no backend {} for {done:?}", id.0),
        }
    }

    /// Turns the channels that have an event or a deadline that has passed, and those that wait for something that is no
    /// event. Returns whether a channel did work.
    pub fn on_turn(&mut self, cx: &mut Cx<'_, I>) -> bool {
        self.wake_due(cx.io.now());
        let mut worked = false;
        // Backwards, because one that goes to sleep is swapped with the last.
        for at in (0..self.awake.len()).rev() {
            let Some(&id) = self.awake.get(at) else { continue };
            let Some(place) = self.channels.get_mut(id.0 as usize) else { continue };
            let any = place.start_waiting(cx, &mut self.waiting);
            let Some(channel) = &mut place.channel else {
                place.is_awake = false;
                self.awake.swap_remove(at);
                continue;
            };
            #[cfg(test)]
            {
                self.asked += 1;
            }
            let any = channel.on_turn(cx) || any;
            worked |= any;
            if let Some(initiator) = channel.nvme_tcp() {
                // They are another core's now, and no completion of theirs comes by here.
                place.requests = place.requests.saturating_sub(initiator.take_passed_on());
            }
            place.due = channel.next_deadline();
            self.next_due = self.next_due.into_iter().chain(place.due).min();
            if !any && !place.detaching && place.line.is_empty() && !Channel::<I>::waits(channel) {
                place.is_awake = false;
                self.awake.swap_remove(at);
            }
            if place.detaching {
                self.let_go_if_idle(cx, id);
            }
            self.collect_socks(id);
        }
        worked
    }

    /// Wakes the channels whose time has come. Where none's has, nothing is looked at.
    fn wake_due(&mut self, now: Instant) {
        if self.next_due.is_none_or(|at| at > now) {
            return;
        }
        self.next_due = None;
        for &id in &self.attached {
            let Some(place) = self.channels.get_mut(id.0 as usize) else { continue };
            match place.due {
                Some(at) if at <= now => place.wake(id, &mut self.awake),
                due => self.next_due = self.next_due.into_iter().chain(due).min(),
            }
        }
    }

    /// Lets the next turn ask the channel of backend `id`, and gives the channel, if there is one.
    #[inline]
    fn woken(&mut self, id: BackendId) -> Option<&mut AnyChannel> {
        let place = self.channels.get_mut(id.0 as usize)?;
        place.wake(id, &mut self.awake);
        place.channel.as_mut()
    }

    /// When [`on_turn`](Self::on_turn) must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next_due
    }

    /// Gives an event to the initiator's channel of backend `id`, if there is one, and passes on what
    /// `event` gives back.
    pub fn initiator<T>(
        &mut self,
        cx: &mut Cx<'_, I>,
        id: BackendId,
        event: impl FnOnce(&mut NvmeTcpChannel, &mut Cx<'_, I>) -> T,
    ) -> Option<T> {
        let given = self.woken(id)?.nvme_tcp().map(|channel| event(channel, cx));
        self.collect_socks(id);
        given
    }

    /// The next socket that a channel opened, with the channel's backend.
    pub fn take_new_sock(&mut self) -> Option<(SockId, BackendId)> {
        self.new_socks.pop_front()
    }

    fn collect_socks(&mut self, id: BackendId) {
        let place = self.channels.get_mut(id.0 as usize);
        let Some(channel) = place.and_then(|p| p.channel.as_mut()?.nvme_tcp()) else { return };
        while let Some(sock) = channel.take_new_sock() {
            self.new_socks.push_back((sock, id));
        }
    }

    /// The part of `request` that starts at `rest.offset`, as long as its extent goes.
    fn submit_part(&mut self, cx: &mut Cx<'_, I>, mut request: Request) {
        let Some(extent) = self.extents(&request).and_then(|all| extent_at(all, request.rest.offset)) else {
            return cx.complete(request, Err(Fault::Gone));
        };
        let skip = request.rest.offset - extent.lun_offset;
        let part = request.rest.len.min(extent.len - skip);
        request.offset = extent.backend_offset + skip;
        request.len = part;
        request.rest.offset += part;
        request.rest.len -= part;
        self.submit_backend(cx, extent.backend, request);
    }

    /// What is left of `request`, one part of which is done.
    fn go_on(&mut self, cx: &mut Cx<'_, I>, mut request: Request) {
        if request.op == Op::Flush {
            let next = request.rest.backend;
            return self.submit_flush_from(cx, request, next);
        }
        if request.buf.is_some() {
            // A part of a read or write is shorter than its buffer, of 2 MiB at most.
            request.buf_at += request.len as u32;
        }
        self.submit_part(cx, request);
    }

    fn submit_flush(&mut self, cx: &mut Cx<'_, I>, request: Request, map: Map) {
        match map.kind {
            Kind::Whole => self.submit_backend(cx, BackendId(map.backend), request),
            _ => self.submit_flush_from(cx, request, BackendId(0)),
        }
    }

    /// Flushes the LUN's first backend from `from` on, in the order of their numbers, so that each
    /// is visited once.
    fn submit_flush_from(&mut self, cx: &mut Cx<'_, I>, mut request: Request, from: BackendId) {
        let Some(extents) = self.extents(&request) else {
            return cx.complete(request, Err(Fault::Gone));
        };
        let Some(first) = next_backend(extents, from) else { return cx.complete(request, Ok(())) };
        let next = next_backend(extents, BackendId(first.0 + 1));
        request.rest.backend = next.unwrap_or(Rest::NOWHERE);
        request.rest.len = u64::from(next.is_some());
        self.submit_backend(cx, first, request);
    }

    /// The extents of the request's LUN as the topology has them now.
    fn extents(&self, request: &Request) -> Option<&[Extent]> {
        let lun = self.topology.as_ref()?.luns.get(request.lun.0 as usize)?.as_ref()?;
        Some(&lun.extents)
    }

    fn let_go_if_idle(&mut self, cx: &mut Cx<'_, I>, id: BackendId) {
        let Some(place) = self.channels.get_mut(id.0 as usize) else { return };
        let Some(channel) = &mut place.channel else { return };
        if place.requests > 0 || !Channel::<I>::is_idle(channel) {
            return;
        }
        channel.release(cx);
        if let Some(attach) = &mut place.attach {
            attach.kind = AttachKind::Spent(place.channel.take());
        }
        (place.detaching, place.due) = (false, None);
        self.attached.retain(|other| *other != id);
        cx.io.post_control(Msg::Detached(id, place.attach.take()));
    }
}

impl<I: StorageIo> Place<I> {
    /// Lets the next turn ask this place, which is `id`'s.
    #[inline]
    fn wake(&mut self, id: BackendId, awake: &mut Vec<BackendId>) {
        if !self.is_awake {
            self.is_awake = true;
            awake.push(id);
        }
    }

    /// Starts the requests that nothing holds up any more, in their order. Whether there were any.
    fn start_waiting(&mut self, cx: &mut Cx<'_, I>, waiting: &mut Slab<Waiter>) -> bool {
        let Some(channel) = &mut self.channel else { return false };
        let mut any = false;
        for _ in 0..STARTS {
            let next = self.line.first(waiting);
            if next.is_none_or(|request| Channel::<I>::must_wait(channel, request, false)) {
                break;
            }
            let Some(request) = self.line.pop(waiting) else { break };
            channel.submit(cx, request);
            any = true;
        }
        any
    }
}

impl Map {
    fn new(lun: &Lun) -> Self {
        let (kind, extent) = match lun.extents.as_slice() {
            [] => return Self::default(),
            [extent] => (Kind::Whole, extent),
            [extent, ..] => (Kind::Extents, extent),
        };
        Self {
            len_bytes: lun.len_bytes(),
            backend_offset: extent.backend_offset,
            backend: extent.backend.0,
            kind,
            read_only: lun.read_only,
        }
    }
}

/// The extent in which the LUN's byte `offset` lies.
fn extent_at(extents: &[Extent], offset: u64) -> Option<&Extent> {
    let after = extents.partition_point(|extent| extent.lun_offset <= offset);
    let extent = extents.get(after.checked_sub(1)?)?;
    (offset - extent.lun_offset < extent.len).then_some(extent)
}

/// The lowest-numbered backend from `from` on.
fn next_backend(extents: &[Extent], from: BackendId) -> Option<BackendId> {
    extents.iter().map(|extent| extent.backend).filter(|&backend| backend >= from).min()
}

#[cfg(test)]
mod idle_tests;
#[cfg(test)]
mod tests;
