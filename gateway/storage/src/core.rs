//! One core of a gateway: the target, the LUNs and their channels, joined by two queues.
//!
//! The core routes each event of the driver to the part that handles it. Then it carries requests down and completions
//! up until both queues are empty. So a command that memory can answer completes within the event that brought the
//! command.

use crate::backend::BackendIo;
use crate::cx::Cx;
use crate::fair::FairQueue;
use crate::frontend::{Capacity, ConnAddrs, Room, Target, TargetLimits};
use crate::lun::Luns;
use crate::msg::Msg;
use crate::request::{Completed, Owner, Request, Rest, Stream};
use crate::topology::{BackendId, PortalId, Topology};
use crate::warm::WarmHost;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use trefoil_poll::lost::Lost;
use trefoil_poll::ram::Ram;
use trefoil_poll::{Arena, CoreId, FileDone, Handler, Instant, SockEvent, SockId};

/// One core of the storage path, with all its state.
pub struct StorageCore<I: BackendIo> {
    arena: Arena,
    target: Target,
    luns: Luns<I>,
    /// Requests from the frontend to the LUN layer. The queue never has more entries than this core's commands and
    /// control have requests.
    requests: VecDeque<Request>,
    /// Completions from the channels, through the LUN layer, to the frontend. The queue never has more entries than
    /// this core's channels have requests.
    done: VecDeque<Completed>,
    owners: Box<[SockOwner]>,
    /// The host that keeps this core warm, with its socket.
    warm: Option<Box<WarmHost>>,
    conn_bound_bytes: usize,
    /// Hosts' connections that wait for a socket slot.
    waiting_conns: FairQueue<WaitingConn<I::Socket>>,
    /// The number of connections that no longer wait. The next [`Msg::Adopted`] reports this number to control.
    adopted: u32,
    /// Time at which [`Target::make_room`] can close a connection to free a slot. `None` if the core waits for no such
    /// time.
    room_at: Option<Instant>,
    /// Hosts' connections that have a slot.
    host_socks: usize,
    max_host_socks: usize,
    /// The number of hosts' connections that may still get a slot in this turn.
    admissions: usize,
    admissions_per_turn: usize,
}

/// A connection that a host has made and that waits for a slot.
struct WaitingConn<S> {
    socket: S,
    portal: PortalId,
    local: SocketAddr,
    peer: SocketAddr,
    /// As in [`Msg::Adopt`].
    initialized: bool,
}

/// The most connections that can wait for a slot of one core. Further connections wait in control's backlog.
pub const MAX_WAITING_CONNS: usize = 256;

/// The owner of a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SockOwner {
    /// No owner: the socket is closed or was never used.
    Free,
    /// A host's connection.
    Target,
    /// The connection of a backend's initiator to its array.
    Initiator(BackendId),
    /// The host's side of the core's connection to itself.
    Warm,
}

/// The sizes of a core's tables.
#[derive(Clone, Copy, Debug)]
pub struct CoreLimits {
    /// The number of sockets, which is the size of the driver's socket table.
    pub max_sockets: u32,
    /// The most sockets that hosts' connections may use, of `max_sockets`. The other sockets are for arrays, and for
    /// one end of the core's connection to itself. The other end of that connection counts as a host's.
    pub host_sockets: u32,
    /// The target's share of the limits.
    pub target: TargetLimits,
    /// Requests that the other cores and control can have in flight here.
    pub foreign_requests: usize,
}

/// Makes the [`Cx`] of one event from fields of a core, so that another field (the target or the LUN layer) can be borrowed
/// at the same time. `with luns` adds the LUN layer, for the target.
macro_rules! cx {
    ($core:ident, $io:ident) => {
        cx!($core, $io, luns: None)
    };
    ($core:ident, $io:ident, with luns) => {
        cx!($core, $io, luns: Some(&mut $core.luns))
    };
    ($core:ident, $io:ident, luns: $luns:expr) => {
        &mut Cx {
            io: $io,
            arena: &mut $core.arena,
            requests: &mut $core.requests,
            done: &mut $core.done,
            luns: $luns,
        }
    };
}

impl<I: BackendIo> StorageCore<I> {
    /// Creates a core with all the memory that it will ever need. The core presents nothing to hosts until it gets its
    /// first topology. All cores of a gateway share one `capacity`.
    pub fn new(io: &I, arena: Arena, limits: CoreLimits, capacity: Arc<Capacity>) -> Self {
        let home = arena.id().0;
        let own = limits.target.requests() + limits.foreign_requests;
        // Every other core may send all its requests to this core.
        let all = limits.target.requests() * usize::from(io.cores()) + limits.foreign_requests;
        Self {
            conn_bound_bytes: Target::conn_bound_bytes(&limits.target, arena.capacity_bytes()),
            arena,
            target: Target::new(limits.target, io.core(), io.cores(), home, capacity),
            luns: Luns::new(io.core(), all),
            requests: VecDeque::with_capacity(own),
            done: VecDeque::with_capacity(all),
            owners: vec![SockOwner::Free; limits.max_sockets as usize].into(),
            warm: None,
            waiting_conns: FairQueue::new(MAX_WAITING_CONNS),
            adopted: 0,
            room_at: None,
            host_socks: 0,
            max_host_socks: limits.host_sockets as usize,
            admissions: limits.target.admissions,
            admissions_per_turn: limits.target.admissions,
        }
    }

    /// Returns this core's payload memory.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Returns the target, for its counts.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the memory of a backend if it belongs to this core. For the simulator.
    pub fn ram(&self, id: BackendId) -> Option<&Ram> {
        self.luns.ram(id)
    }

    /// Returns the number of requests that wait for their backend.
    pub fn waiting(&self) -> usize {
        self.luns.waiting()
    }

    /// Returns the bound that [`Target::peak_conn_bytes`] never exceeds on this core.
    pub fn conn_bound_bytes(&self) -> usize {
        self.conn_bound_bytes
    }

    /// Ends the core at once and returns its memory: the simulator's kill -9. The core's blocks and requests are dropped,
    /// and count as lost unless the caller is unwinding.
    pub fn into_arena(self) -> Arena {
        self.arena
    }

    /// Adopts a host's connection. If too many connections wait, drops a waiting connection; the host of that
    /// connection sees a reset.
    fn adopt(&mut self, io: &mut I, conn: WaitingConn<I::Socket>) {
        let (_, dropped) = self.waiting_conns.push(conn.peer, conn);
        self.adopted += u32::from(dropped.is_some());
        self.admit(io);
    }

    /// Drops the waiting connections of each listener that is gone. [`Target::sweep`] closes the adopted connections of
    /// that listener. The listener's number may now belong to another listener.
    fn drop_waiting(&mut self, old: &Topology, new: &Topology) {
        let gone = |conn: &WaitingConn<_>| new.lacks_portal_of(old, conn.portal);
        for number in self.waiting_conns.numbers(gone) {
            self.adopted += u32::from(self.waiting_conns.take(number).is_some());
        }
    }

    /// Gives slots to waiting connections of hosts. If no slot is free, closes evictable connections; their slots become
    /// free once the driver has closed them. If all slots belong to I/O controllers, drops the waiting connections.
    /// Returns whether a connection got a slot.
    fn admit(&mut self, io: &mut I) -> bool {
        let mut any = false;
        self.room_at = None;
        while self.admissions > 0 && !self.waiting_conns.is_empty() {
            if self.host_socks >= self.max_host_socks {
                let wanted = self.waiting_conns.len().min(self.admissions);
                if self.target.closing() >= wanted {
                    break;
                }
                match self.target.make_room(cx!(self, io)) {
                    Room::Made => continue,
                    Room::At(at) => self.room_at = Some(at),
                    Room::Never if self.target.closing() > 0 => {}
                    Room::Never => {
                        self.adopted += u32::from(self.waiting_conns.pop().is_some());
                        continue;
                    }
                }
                break;
            }
            let Some(WaitingConn { socket, portal, local, peer, initialized }) = self.waiting_conns.pop()
            else {
                break;
            };
            any = true;
            self.admissions -= 1;
            self.adopted += 1;
            // The driver refuses a socket only while the driver stops.
            if let Ok(sock) = io.adopt(socket) {
                self.host_socks += 1;
                self.set_owner(sock, SockOwner::Target);
                self.target.adopt(cx!(self, io), sock, ConnAddrs { portal, local, peer }, initialized);
            }
        }
        any
    }

    /// Carries requests down and completions up until both queues are empty. Returns true if at least one queue had an
    /// entry.
    fn drain(&mut self, io: &mut I) -> bool {
        let mut any = false;
        loop {
            while let Some(request) = self.requests.pop_front() {
                any = true;
                self.luns.submit(cx!(self, io), request);
            }
            if let Some(done) = self.done.pop_front() {
                self.finish(io, done);
            } else if let Some(stream) = self.target.next_cancel() {
                self.cancel(io, stream);
            } else {
                break;
            }
            any = true;
        }
        while let Some((sock, backend)) = self.luns.take_new_sock() {
            self.set_owner(sock, SockOwner::Initiator(backend));
        }
        any
    }

    /// Cancels `stream` on all cores. The stream's queue, on this core, is gone. This core's two queues no longer hold
    /// a request of the stream, so each message arrives after the requests.
    #[cold]
    fn cancel(&mut self, io: &mut I, stream: Stream) {
        self.luns.cancel(cx!(self, io), None, stream);
        for core in (0..io.cores()).filter(|core| *core != stream.core.0) {
            io.post(CoreId(core), Msg::Cancel(None, stream));
        }
    }

    /// Routes one completion: to its next part, to its owner on this core, or to its home core.
    fn finish(&mut self, io: &mut I, done: Completed) {
        let target = &self.target;
        let is_wanted = |origin| target.is_wanted(origin);
        let Some(done) = self.luns.on_completed(cx!(self, io), done, is_wanted) else { return };
        let origin = done.origin();
        match origin.owner {
            _ if origin.core != io.core() => io.post(origin.core, Msg::Completed(done)),
            Owner::Target => self.target.on_completed(cx!(self, io, with luns), done),
            Owner::Control | Owner::Workload => io.post_control(Msg::Completed(done)),
        }
    }

    fn owner(&self, sock: SockId) -> SockOwner {
        self.owners.get(sock.0 as usize).copied().unwrap_or(SockOwner::Free)
    }

    fn set_owner(&mut self, sock: SockId, owner: SockOwner) {
        if let Some(slot) = self.owners.get_mut(sock.0 as usize) {
            *slot = owner;
        }
    }

    /// Repairs the damage of a bug that dropped blocks or requests: frees the blocks, and completes the requests with
    /// Internal Error.
    fn repair(&mut self, io: &mut I) {
        while let Some(Lost::Request { identity, holder }) = self.arena.repair_next() {
            // Subtract the request from the backend's count, here and on the core to which the request went.
            let (backend, core) = Rest::holder(holder);
            self.luns.on_lost(cx!(self, io), backend);
            if core != io.core() && backend != Rest::NOWHERE {
                io.post(core, Msg::Lost(backend));
            }
            self.target.on_lost(cx!(self, io), identity);
        }
    }
}

impl<I: BackendIo> Handler<I> for StorageCore<I> {
    // Each call of a driver passes a constant variant of the event. So inlining removes the other arms of the matches.
    #[inline(always)]
    fn on_sock(&mut self, io: &mut I, sock: SockId, event: SockEvent<'_>) {
        let closed = matches!(event, SockEvent::Closed);
        match (self.owner(sock), &mut self.warm) {
            (SockOwner::Target, _) => {
                self.host_socks -= usize::from(closed);
                self.target.on_sock(cx!(self, io, with luns), sock, event);
            }
            (SockOwner::Initiator(id), _) => {
                self.luns.initiator(cx!(self, io), id, |channel, cx| channel.on_sock(cx, sock, event));
            }
            (SockOwner::Warm, Some(warm)) => warm.on_sock(io, event),
            (SockOwner::Warm | SockOwner::Free, _) => event.discard(&mut self.arena),
        }
        if closed {
            self.set_owner(sock, SockOwner::Free);
            self.admit(io);
        }
        self.drain(io);
    }

    fn on_file(&mut self, io: &mut I, done: FileDone) {
        self.luns.on_file(cx!(self, io), done);
        self.drain(io);
    }

    fn on_message(&mut self, io: &mut I, from: Option<CoreId>, msg: I::Msg) {
        match msg {
            Msg::Adopt { socket, portal, local, peer, initialized } => {
                self.adopt(io, WaitingConn { socket, portal, local, peer, initialized });
            }
            Msg::KeepWarm { socket, to, host } => {
                if let Ok(sock) = io.adopt(socket) {
                    self.set_owner(sock, SockOwner::Warm);
                    self.warm.insert(host).start(io, sock, to);
                }
            }
            Msg::Topology(new) => {
                // Dropping `old` here frees nothing: the target keeps the same snapshot until its sweep ends, and sends
                // that snapshot back to control.
                let old = self.luns.on_topology(new.clone());
                old.iter().for_each(|old| self.drop_waiting(old, &new));
                self.target.on_topology(new);
            }
            Msg::Attach(id, attach) => self.luns.attach(cx!(self, io), id, attach),
            Msg::Detach(id) => self.luns.detach(cx!(self, io), id),
            Msg::BackendIo(id, request) | Msg::Submit(id, request) => {
                self.luns.submit_backend(cx!(self, io), id, request);
            }
            Msg::Completed(done) => self.done.push_back(done),
            Msg::Lost(backend) => self.luns.on_lost(cx!(self, io), backend),
            Msg::Cancel(only, stream) => self.luns.cancel(cx!(self, io), only, stream),
            Msg::Ctrlr(msg) => match from {
                Some(from) => self.target.on_ctrlr(cx!(self, io), from, msg),
                None => debug_assert!(false, "control sent a core an unexpected message: {msg:?}"),
            },
            Msg::Initiator(id, msg) => {
                // If this core has no channel of the backend (yet, or any more), the message is dropped. A channel that
                // attaches later asks for the messages that it missed.
                if let Some(from) = from {
                    self.luns.initiator(cx!(self, io), id, |channel, cx| channel.on_msg(cx, from, msg));
                }
            }
            Msg::Survey(mut survey) => {
                self.target.survey(&mut survey);
                match survey.next {
                    Some(_) => io.post(io.core(), Msg::Survey(survey)),
                    None => io.post_control(Msg::Survey(survey)),
                }
            }
            Msg::LunSurvey(mut survey) => {
                self.target.survey_luns(&mut survey);
                io.post_control(Msg::LunSurvey(survey));
            }
            Msg::UnderWay { lun, requests, from } => {
                let (more, next) = self.target.under_way(lun, from);
                let requests = requests + more;
                match next {
                    Some(from) => io.post(io.core(), Msg::UnderWay { lun, requests, from }),
                    None => io.post_control(Msg::UnderWay { lun, requests, from: 0 }),
                }
            }
            Msg::CloseHosts { all } => {
                if all {
                    while self.waiting_conns.pop().is_some() {
                        self.adopted += 1;
                    }
                    self.room_at = None;
                }
                self.target.close_hosts(all);
            }
            Msg::Refused(place) => self.target.give_back(place),
            // Messages for control only.
            Msg::Adopted(_)
            | Msg::TopologyDone { .. }
            | Msg::Attached(_)
            | Msg::Detached(..)
            | Msg::Event(_) => {
                debug_assert!(false, "a core got a message for control from {from:?}");
            }
        }
        self.drain(io);
    }

    fn on_turn(&mut self, io: &mut I) -> bool {
        self.repair(io);
        let mut worked = self.luns.on_turn(cx!(self, io));
        self.admissions = self.admissions_per_turn;
        worked |= !self.waiting_conns.is_empty() && self.admit(io);
        if self.adopted > 0 {
            io.post_control(Msg::Adopted(std::mem::take(&mut self.adopted)));
        }
        worked |= self.drain(io);
        if let Some(warm) = &mut self.warm {
            worked |= warm.on_turn(io, &mut self.arena);
        }
        worked |= self.target.sweep(cx!(self, io));
        worked |= self.target.on_turn(cx!(self, io, with luns));
        if self.drain(io) {
            // A timer or freed memory let a command continue. Send its completion in this turn too.
            worked = true;
            self.target.on_turn(cx!(self, io, with luns));
        }
        worked
    }

    fn next_deadline(&self) -> Option<Instant> {
        let warm = self.warm.as_ref().and_then(|warm| warm.next_deadline());
        // If slots are free while connections wait, this turn has reached its limit of admissions, and the next turn
        // must follow at once.
        let may_admit = !self.waiting_conns.is_empty() && self.host_socks < self.max_host_socks;
        let admission = if may_admit { Some(Instant::default()) } else { self.room_at };
        [self.target.next_deadline(), self.luns.next_deadline(), warm, admission].into_iter().flatten().min()
    }
}
