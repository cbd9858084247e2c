//! The target: NVMe controllers that hosts connect to, and the transport that brings their commands.
//!
//! Two halves. [`tcp`] turns streams into commands and moves their data. [`engine`], [`io`] and [`ctrlr`] say what the
//! commands mean and know no transport: they see a slot with a command and perhaps a block, and answer with what they
//! need. One target serves the connections of one core; controllers span cores by messages.
//!
//! Specs: NVMe base 2.0c, NVM command set 1.0c, NVMe-oF TCP 1.0c. Not here: authentication, TLS, reservations.

mod capacity;
mod ctrlr;
mod departure;
mod engine;
mod io;
mod limits;
mod queue;
mod refusals;
mod shares;
mod slot;
mod tcp;
mod timers;

#[cfg(test)]
mod tests;

pub use capacity::Capacity;
pub use limits::{OPEN_BYTES, TargetLimits};
pub use tcp::{Room, ic_resp};

use crate::cx::Cx;
use crate::msg::{CtrlrMsg, HostName, Msg, QpairRow, Refused, StorageIo, Survey};
use crate::request::{Completed, Origin, Stream};
use crate::stats::{LunStats, LunSurvey};
use crate::topology::{LunId, Topology};
use engine::Engine;
pub use engine::Place;
use queue::QueueState;
use std::sync::Arc;
use tcp::Tcp;
use timers::Timer;
use trefoil_poll::{Buf, CoreId, Instant, RecvEnd, SendList, SockError, SockId};

/// Deadlines that one turn sees to: a connection's end takes some microseconds.
const TIMERS_A_TURN: usize = 64;
/// Queues that one turn lists in a survey, at 100 ns a row.
const SURVEYED_A_TURN: usize = 1024;

/// One core's target.
pub struct Target {
    engine: Engine,
    tcp: Tcp,
}

impl Target {
    /// Allocates everything that it will ever need; see [`TargetLimits`]. `home` is the core's arena number, `capacity` what
    /// all cores of the gateway share.
    pub fn new(limits: TargetLimits, core: CoreId, cores: u16, home: u16, capacity: Arc<Capacity>) -> Self {
        Self { engine: Engine::new(&limits, core, cores, home, capacity), tcp: Tcp::new(limits) }
    }

    /// A host connected. `initialized` is as in [`Msg::Adopt`].
    pub fn adopt<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, sock: SockId, place: Place, initialized: bool) {
        self.tcp.adopt(&mut self.engine, cx, sock, place, initialized);
    }

    /// Closes a connection so that another can come: of those without permission, the oldest of the address that has most, if it
    /// has had its time ([`TargetLimits::connect_grace`]).
    #[cold]
    pub fn make_room<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> Room {
        let made = self.tcp.make_room(&mut self.engine, cx);
        self.tcp.settle(&mut self.engine, cx);
        made
    }

    /// Bytes came in on a connection.
    #[inline]
    pub fn on_received<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, sock: SockId, bytes: &[u8]) {
        self.tcp.on_received(&mut self.engine, cx, sock, bytes);
        self.tcp.settle(&mut self.engine, cx);
    }

    /// A block is full.
    pub fn on_filled<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, sock: SockId, buf: Buf) {
        self.tcp.on_filled(&mut self.engine, cx, sock, buf);
        self.tcp.settle(&mut self.engine, cx);
    }

    /// A receive ended; the connection does too.
    pub fn on_recv_end<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        buf: Option<Buf>,
        why: RecvEnd,
    ) {
        self.tcp.on_recv_end(&mut self.engine, cx, sock, buf, why);
        self.tcp.settle(&mut self.engine, cx);
    }

    /// A send is done.
    pub fn on_sent<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        list: Box<SendList>,
        result: Result<(), SockError>,
    ) {
        self.tcp.on_sent(&mut self.engine, cx, sock, list, result);
        self.tcp.settle(&mut self.engine, cx);
    }

    /// The last word about a connection.
    pub fn on_closed<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, sock: SockId) {
        self.tcp.on_closed(&mut self.engine, cx, sock);
        self.tcp.settle(&mut self.engine, cx);
    }

    /// A request with [`crate::Owner::Target`] came back.
    #[inline]
    pub fn on_completed<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, done: Completed) {
        self.engine.on_completed(cx, done);
        self.tcp.settle(&mut self.engine, cx);
    }

    /// Requests of a queue that is gone, to be cancelled; each is told once.
    #[inline]
    pub fn next_cancel(&mut self) -> Option<Stream> {
        self.engine.next_cancel()
    }

    /// Whether anybody waits for what becomes of a request.
    pub fn is_wanted(&self, origin: Origin) -> bool {
        self.engine.is_wanted(origin)
    }

    /// A request was dropped somewhere: its command fails with Internal Error. `identity` is as
    /// [`crate::Origin::pack`] made it.
    pub fn on_lost<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, identity: u64) {
        self.engine.on_lost(cx, identity);
        self.tcp.settle(&mut self.engine, cx);
    }

    /// A message about a controller.
    pub fn on_ctrlr<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, from: CoreId, msg: CtrlrMsg) {
        self.engine.on_ctrlr(cx, from, msg);
        self.tcp.settle(&mut self.engine, cx);
    }

    /// Presents `new` from now on. [`sweep`](Self::sweep) tells control once all that are connected know.
    pub fn on_topology(&mut self, new: Arc<Topology>) {
        self.engine.on_topology(new);
    }

    /// Closes the connections of hosts that may no longer be here, or all, by and by with [`sweep`](Self::sweep).
    pub fn close_hosts(&mut self, all: bool) {
        self.engine.close_hosts(all);
    }

    /// Does a turn's piece of applying a new topology, or an order to close connections, to the connected hosts. Returns
    /// whether the target had such work.
    pub fn sweep<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        if !self.engine.is_sweeping() {
            return false;
        }
        self.engine.close_some();
        if let Some((epoch, old)) = self.engine.sweep() {
            cx.io.post_control(Msg::TopologyDone { epoch, old: Some(old) });
        }
        self.tcp.settle(&mut self.engine, cx);
        true
    }

    /// Timers, then those who wait for memory, then what is to be sent. Whether there was work.
    pub fn on_turn<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let mut worked = false;
        // The others are due in the next turn.
        for _ in 0..TIMERS_A_TURN {
            let Some(timer) = self.engine.timers.expire(cx.io.now()) else { break };
            worked = true;
            match timer {
                Timer::Queue(queue) => self.tcp.on_timer(&mut self.engine, cx, queue),
                Timer::Ctrlr(index) => self.engine.on_ctrlr_timer(cx, index),
            }
            self.tcp.settle(&mut self.engine, cx);
        }
        worked |= self.tcp.serve(&mut self.engine, cx);
        self.tcp.settle(&mut self.engine, cx);
        self.tcp.flush(&mut self.engine, cx) || worked
    }

    /// When [`on_turn`](Self::on_turn) must run next without any event.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.engine.timers.next()
    }

    /// Control has told of a refused Connect.
    pub fn give_back(&mut self, place: Box<Refused>) {
        self.engine.refusals.give_back(place);
    }

    /// Lists the queue pairs of this core from `into.next` on, as far as a turn allows.
    pub fn survey(&self, into: &mut Survey) {
        into.refused = self.engine.refusals.counts();
        let from = into.next.take().unwrap_or(0) as usize;
        let end = from + SURVEYED_A_TURN;
        into.next = (end < self.engine.queues.len()).then_some(end as u32);
        let piece = self.engine.queues.iter().enumerate().skip(from).take(SURVEYED_A_TURN);
        let live = piece.filter(|(_, q)| q.state == QueueState::Live);
        for (at, queue) in live.filter(|(at, _)| !self.engine.is_own(*at as u32)) {
            into.total += 1;
            let sock = SockId(at as u32);
            let (Some(conn), true) = (self.tcp.conn(sock), into.qpairs.len() < into.qpairs.capacity()) else {
                continue;
            };
            let names = &self.engine.names[at];
            let place = &self.engine.places[at];
            into.qpairs.push(QpairRow {
                sock,
                cntlid: queue.cntlid,
                qid: queue.qid,
                depth: queue.depth,
                outstanding: queue.ring.len() as u16,
                host_nqn: names.host(),
                subsystem_nqn: HostName::new(names.subnqn.as_str()),
                peer: place.peer,
                portal: place.portal,
                digests: (conn.framing.header_digest, conn.framing.data_digest),
                commands: queue.commands,
                payload_bytes: queue.payload_bytes,
                latency_ns: queue.latency_ns,
            });
        }
    }

    /// What this core's hosts did with one LUN.
    pub fn lun_stats(&self, lun: LunId) -> LunStats {
        self.engine.luns.get(lun).copied().unwrap_or_default()
    }

    /// What this core's hosts did with LUNs.
    pub fn survey_luns(&self, into: &mut LunSurvey) {
        self.engine.luns.survey(into);
    }

    /// Requests for `lun` that have not ended, those of queues that are gone among them: how many a turn's piece of the
    /// slots from `from` on has, and where to go on.
    pub fn under_way(&self, lun: LunId, from: u32) -> (usize, Option<u32>) {
        self.engine.slots.under_way(lun, from)
    }

    /// Command slots that are free.
    pub fn free_slots(&self) -> usize {
        self.engine.slots.free_count()
    }

    /// The most that any one connection has had, in bytes: payload memory, and what is there for it alone. Never more than
    /// [`TargetLimits::conn_bound_bytes`].
    pub fn peak_conn_bytes(&self) -> usize {
        self.engine.shares.peak_bytes() + limits::CONN_FIXED_BYTES
    }

    /// Payload memory that connections have now, in bytes.
    pub fn conns_bytes(&self) -> usize {
        self.engine.shares.total_bytes()
    }

    /// Connections that are being closed.
    pub fn closing(&self) -> usize {
        self.tcp.closing()
    }

    /// Controllers whose admin queue is here.
    pub fn ctrlr_count(&self) -> usize {
        self.engine.ctrlrs.count()
    }
}
