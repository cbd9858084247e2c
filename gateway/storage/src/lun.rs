//! From LUNs to backends: one core's LUN table and its channels.
//!
//! This layer checks a request against its LUN, maps the request to a backend's bytes, and submits the request to that
//! backend's channel. A request that crosses extents, or a flush of several backends, runs its parts one after another.
//! The request itself carries its progress ([`Rest`]), so there are no parent requests and no table of parts.
//!
//! This layer knows no hosts and no namespaces, and it never retries a request.
//!
//! Range guards are not built yet. Compare, and the fused Compare and Write, need range guards: between the compare and
//! the write, no other write may touch the same blocks of the LUN. Range guards belong to this layer, since every
//! command set and every transport uses this layer. [`Luns::submit`] would take a guard, and [`Luns::on_completed`]
//! would release the guard with the request's last part. The plan is to stripe guards by LUN and block range on the
//! LUN's owner core. Each stripe would count its active compares. Then a write to a LUN without compares costs one load
//! of that count, and [`InstantMemory::write`] only checks that count.
//!
//! Invariants:
//! - The count `Place::requests` is the number of requests that the place's channel has.
//! - A request's `rest.at` names the backend whose channel has the request on the request's home core. If the request
//!   went to another core, `rest.at` names the backend on that core too.
//! - A waiting request resumes only on an event or on work reported by `on_turn`, so a core never sleeps past it.

use crate::backend::nvme_tcp::NvmeTcpChannel;
use crate::backend::{AnyChannel, Attach, AttachKind, BackendIo, Channel, Memory};
use crate::cx::{Cx, InstantMemory};
use crate::list::List;
use crate::msg::Msg;
use crate::request::{Completed, Fault, Op, Origin, Request, Rest, Stream};
use crate::slab::Slab;
use crate::topology::{BackendId, Extent, Lun, LunId, MAX_BACKENDS, MAX_LUNS, Topology};
use std::collections::VecDeque;
use std::sync::Arc;
use trefoil_poll::ram::Ram;
use trefoil_poll::{CoreId, FileDone, Instant, Loan, SockId};

/// One core's LUNs and channels: 4,096 LUNs of 24 bytes, and 256 channels of about 200 bytes.
pub struct Luns<I: BackendIo> {
    core: CoreId,
    maps: Box<[Map]>,
    /// The current topology. It has the extents of each LUN.
    topology: Option<Arc<Topology>>,
    channels: Box<[Place<I>]>,
    /// The backends that have a channel.
    attached: Vec<BackendId>,
    /// The backends whose channel the next turn calls ([`Channel::on_turn`]); no backend is in the list twice. Other
    /// attached backends cost a turn nothing.
    awake: Vec<BackendId>,
    /// A lower bound of all channels' deadlines.
    next_due: Option<Instant>,
    /// The number of calls of [`Channel::on_turn`].
    #[cfg(test)]
    asked: usize,
    /// Sockets that channels opened and the core has not taken yet: at most two for each backend.
    new_socks: VecDeque<(SockId, BackendId)>,
    /// Requests that wait in the backlog of their place, since [`Channel::must_wait`] holds for them. `Place::requests`
    /// counts these requests too. There is room for all requests that can exist.
    waiting: Slab<Request>,
}

/// The part of a LUN's data that each request needs.
#[derive(Clone, Copy, Default)]
struct Map {
    len_bytes: u64,
    /// Offset of the LUN on its backend, if the LUN has one extent.
    backend_offset: u64,
    backend: u32,
    kind: MapKind,
    read_only: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum MapKind {
    #[default]
    Absent,
    /// A LUN of one extent.
    Whole,
    /// A LUN of several extents, which are in the topology.
    Extents,
}

/// The most waiting requests of one backend that one turn starts. The bound keeps a long backlog from blocking the
/// core.
const STARTS: usize = 256;

/// A backend's channel and its state.
struct Place<I: BackendIo> {
    channel: Option<AnyChannel>,
    /// The number of requests that the channel has, including waiting requests.
    requests: usize,
    /// The backend's backlog in [`Luns::waiting`], oldest first.
    line: List,
    detaching: bool,
    /// True if the backend is in `awake`.
    is_awake: bool,
    /// The next deadline of the channel.
    due: Option<Instant>,
    /// The box in which control sent the channel's memory. [`Msg::Detached`] returns the memory in this box.
    attach: Option<Box<Attach<I::File>>>,
}

impl<I: BackendIo> InstantMemory for Luns<I> {
    #[inline]
    fn lend(&mut self, lun: LunId, offset: u64, len: u32) -> Option<Loan> {
        let (memory, at) = self.memory(lun, offset, u64::from(len), false)?;
        memory.lend(at, len)
    }

    #[inline]
    fn write(&mut self, lun: LunId, offset: u64, data: &[u8]) -> bool {
        let place = self.memory(lun, offset, data.len() as u64, true);
        place.is_some_and(|(memory, at)| memory.write(at, data))
    }
}

impl<I: BackendIo> Luns<I> {
    /// Creates empty tables of their final size for `core`. `requests` is the largest number of requests that can
    /// exist; there is room for all of them to wait.
    pub fn new(core: CoreId, requests: usize) -> Self {
        let place = || Place {
            channel: None,
            requests: 0,
            line: List::EMPTY,
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

    /// Serves the LUNs of `new` from now on, and returns the old snapshot. Parts in flight complete at the backend to
    /// which they were sent. The next parts of their requests follow the new map.
    pub fn on_topology(&mut self, new: Arc<Topology>) -> Option<Arc<Topology>> {
        debug_assert!(new.luns.len() <= MAX_LUNS);
        for (at, map) in self.maps.iter_mut().enumerate() {
            *map = new.luns.get(at).and_then(Option::as_ref).map(Map::new).unwrap_or_default();
        }
        self.topology.replace(new)
    }

    /// Adopts a backend's channel and answers control with [`Msg::Attached`]. If the channel can't be attached, answers
    /// with [`Msg::Detached`] and the unused box.
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

    /// Detaches a backend once it has no request in flight, and then answers control with [`Msg::Detached`]. From now on
    /// new requests for the backend end with [`Fault::Gone`].
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

    /// Submits a frontend's request for a LUN.
    pub fn submit(&mut self, cx: &mut Cx<'_, I>, mut request: Request) {
        let Some(&map) = self.maps.get(request.lun.0 as usize).filter(|map| map.kind != MapKind::Absent)
        else {
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
        if map.kind == MapKind::Whole {
            request.offset += map.backend_offset;
            return self.submit_backend(cx, BackendId(map.backend), request);
        }
        request.rest = Rest { offset: request.offset, len: request.len, ..Rest::default() };
        self.submit_part(cx, request);
    }

    /// Returns the number of requests that wait for their backend.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the memory of backend `id` if it belongs to this core. For tests and the simulator.
    pub fn ram(&self, id: BackendId) -> Option<&Ram> {
        match &self.channels.get(id.0 as usize)?.channel {
            Some(AnyChannel::Memory(memory)) => Some(memory.ram()),
            _ => None,
        }
    }

    /// Returns the memory that holds a whole range of a LUN, and the range's offset in that memory.
    #[inline]
    fn memory(&mut self, lun: LunId, offset: u64, len: u64, write: bool) -> Option<(&mut Memory, u64)> {
        let map = self.maps.get(lun.0 as usize).filter(|map| map.kind == MapKind::Whole)?;
        let inside = offset.checked_add(len).is_some_and(|end| end <= map.len_bytes);
        if !inside || (write && map.read_only) {
            return None;
        }
        // Requests that already wait for loans to end come first.
        let is_open = |place: &&mut Place<I>| !place.detaching && place.line.is_empty();
        let place = self.channels.get_mut(map.backend as usize).filter(is_open)?;
        match &mut place.channel {
            Some(AnyChannel::Memory(memory)) => Some((memory, offset + map.backend_offset)),
            _ => None,
        }
    }

    /// Submits a request that is already mapped to a backend. Control makes such requests itself, and a core without
    /// the channel sends them to the core with the channel.
    pub fn submit_backend(&mut self, cx: &mut Cx<'_, I>, id: BackendId, mut request: Request) {
        let Some(place) = self.channels.get_mut(id.0 as usize) else {
            return cx.complete(request, Err(Fault::Gone));
        };
        // Count the request even if it fails here, since `on_completed` subtracts every request.
        place.requests += 1;
        place.wake(id, &mut self.awake);
        (request.rest.at, request.rest.core) = (id, self.core);
        match &mut place.channel {
            // Fail the request here: two cores that forward a request to each other would never stop.
            Some(AnyChannel::Remote(_)) if request.origin.core != self.core => {
                cx.complete(request, Err(Fault::Gone));
            }
            Some(channel) if !place.detaching => {
                let alone = place.line.is_empty();
                if Channel::<I>::must_wait(channel, &request, !alone) && !cx.io.is_broken("impatient-write") {
                    if let Err(request) = self.waiting.push(&mut place.line, request) {
                        debug_assert!(false, "more requests than this core has room for");
                        cx.complete(request, Err(Fault::Internal));
                    }
                    return;
                }
                // Make no new loans while a request waits for loans to end.
                request.may_lend &= request.origin.core == self.core && alone;
                channel.submit(cx, request);
            }
            _ => cx.complete(request, Err(Fault::Gone)),
        }
    }

    /// Cancels the requests of a queue that is gone, in all of this core's channels, or only in the channel of backend
    /// `only`. Each of these requests ends as soon as it can't take effect any more.
    pub fn cancel(&mut self, cx: &mut Cx<'_, I>, only: Option<BackendId>, stream: Stream) {
        for id in self.attached.iter().filter(|id| only.is_none_or(|only| only == **id)) {
            let Some(place) = self.channels.get_mut(id.0 as usize) else { continue };
            if place.requests > 0 {
                place.wake(*id, &mut self.awake);
            }
            let mut line = std::mem::take(&mut place.line);
            while let Some(request) = self.waiting.pop(&mut line) {
                if request.is_of(stream) || cx.io.is_broken("cancelled-others") {
                    cx.complete(request, Err(Fault::Aborted));
                } else if let Err(request) = self.waiting.push(&mut place.line, request) {
                    debug_assert!(false, "the place that it just left is taken");
                    cx.complete(request, Err(Fault::Internal));
                }
            }
            if let Some(channel) = &mut place.channel {
                channel.cancel(cx, stream);
            }
        }
    }

    /// Handles a completion from one of this core's channels or from another core. Returns the completion if the
    /// request is over, or if the request came from another core. Returns `None` if this call submits the request's
    /// next part. If `is_wanted` returns false, the owner no longer needs the request, and this call submits no further
    /// part.
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

    /// Subtracts one request from a backend's count.
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

    /// Subtracts a dropped request from backend `id`'s count. Does nothing for [`Rest::NOWHERE`].
    pub fn on_lost(&mut self, cx: &mut Cx<'_, I>, id: BackendId) {
        self.count_out(cx, id);
    }

    /// Handles the answer to a file operation.
    pub fn on_file(&mut self, cx: &mut Cx<'_, I>, done: FileDone) {
        let id = BackendId((done.token >> 32) as u32);
        match self.woken(id) {
            Some(channel) => channel.on_file(cx, done),
            None => debug_assert!(false, "no backend {} for {done:?}", id.0),
        }
    }

    /// Calls each channel that has an event or an expired deadline, and each channel for which [`Channel::waits`] holds.
    /// Returns true if a channel did work.
    pub fn on_turn(&mut self, cx: &mut Cx<'_, I>) -> bool {
        self.wake_due(cx.io.now());
        let mut worked = false;
        // Iterate backwards: `swap_remove` fills the place of a channel that goes to sleep with the last channel.
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
                // These requests went on to a third core, and this core will not see their completions.
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

    /// Wakes the channels whose deadline has passed. If no deadline has passed, examines no channel.
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

    /// Makes the next turn call the channel of backend `id`. Returns the channel, if there is one.
    #[inline]
    fn woken(&mut self, id: BackendId) -> Option<&mut AnyChannel> {
        let place = self.channels.get_mut(id.0 as usize)?;
        place.wake(id, &mut self.awake);
        place.channel.as_mut()
    }

    /// Returns when [`on_turn`](Self::on_turn) must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next_due
    }

    /// Calls `event` with the initiator's channel of backend `id`, if there is one. Returns the result of `event`.
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

    /// Takes the next socket that a channel opened, with the channel's backend.
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

    /// Submits the part of `request` from `rest.offset` to the end of its extent.
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

    /// Submits the rest of `request` after one of its parts is done.
    fn go_on(&mut self, cx: &mut Cx<'_, I>, mut request: Request) {
        if request.op == Op::Flush {
            let next = request.rest.backend;
            return self.submit_flush_from(cx, request, next);
        }
        if request.buf.is_some() {
            // The cast is exact: a part of a read or write is shorter than its buffer, which has at most 2 MiB.
            request.buf_at += request.len as u32;
        }
        self.submit_part(cx, request);
    }

    fn submit_flush(&mut self, cx: &mut Cx<'_, I>, request: Request, map: Map) {
        match map.kind {
            MapKind::Whole => self.submit_backend(cx, BackendId(map.backend), request),
            _ => self.submit_flush_from(cx, request, BackendId(0)),
        }
    }

    /// Flushes the LUN's first backend with a number of at least `from`. Backends follow in the order of their numbers,
    /// so a flush visits each backend once.
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

    /// Returns the extents of the request's LUN in the current topology.
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

impl<I: BackendIo> Place<I> {
    /// Makes the next turn call the channel of this place. The place belongs to backend `id`.
    #[inline]
    fn wake(&mut self, id: BackendId, awake: &mut Vec<BackendId>) {
        if !self.is_awake {
            self.is_awake = true;
            awake.push(id);
        }
    }

    /// Starts, in order, the waiting requests that can start now. Returns true if at least one request started.
    fn start_waiting(&mut self, cx: &mut Cx<'_, I>, waiting: &mut Slab<Request>) -> bool {
        let Some(channel) = &mut self.channel else { return false };
        let mut any = false;
        for _ in 0..STARTS {
            let next = waiting.first(&self.line);
            if next.is_none_or(|request| Channel::<I>::must_wait(channel, request, false)) {
                break;
            }
            let Some(request) = waiting.pop(&mut self.line) else { break };
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
            [extent] => (MapKind::Whole, extent),
            [extent, ..] => (MapKind::Extents, extent),
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

/// Returns the extent that holds the LUN's byte `offset`.
fn extent_at(extents: &[Extent], offset: u64) -> Option<&Extent> {
    let after = extents.partition_point(|extent| extent.lun_offset <= offset);
    let extent = extents.get(after.checked_sub(1)?)?;
    (offset - extent.lun_offset < extent.len).then_some(extent)
}

/// Returns the lowest backend number of `extents` that is at least `from`.
fn next_backend(extents: &[Extent], from: BackendId) -> Option<BackendId> {
    extents.iter().map(|extent| extent.backend).filter(|&backend| backend >= from).min()
}

#[cfg(test)]
mod idle_tests;
#[cfg(test)]
mod tests;
