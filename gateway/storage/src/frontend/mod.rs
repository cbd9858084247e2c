//! The frontend: NVMe controllers that hosts connect to, and the transport that carries their commands.
//!
//! The frontend has two halves. [`tcp`] turns byte streams into commands and moves their data. [`nvme`] executes the commands and
//! knows no transport. One [`Target`] serves the connections of one core. If the queues of a controller are on several cores, the
//! cores exchange messages about the controller.
//!
//! Specs: NVMe base 2.0c, NVM command set 1.0c, NVMe-oF TCP 1.0c. Not here: authentication, TLS, reservations.

mod eviction;
mod limits;
mod memory;
mod nvme;
mod shared;
mod shares;
mod tcp;
mod timers;

#[cfg(test)]
mod tests;

pub use limits::{OPEN_BYTES, TargetLimits};
pub use nvme::capacity::Capacity;
pub use nvme::queue::ConnAddrs;
pub use tcp::{Room, ic_resp};

use crate::cx::Cx;
use crate::msg::{CtrlrMsg, Msg, Refused, StorageIo, Survey};
use crate::request::{Completed, Origin, Stream};
use crate::stats::{LunStats, LunSurvey};
use crate::topology::{LunId, Topology};
use limits::{MAX_QUEUE_ENTRIES, MAX_TRANSFER_BYTES};
use memory::NEED_BYTES;
use nvme::queue::{Names, Queue};
use nvme::slot::SLOT_BYTES;
use shared::Shared;
use shares::CONN_PART;
use std::sync::Arc;
use tcp::{COMMAND_BYTES, Conn, Tcp};
use timers::Timer;
use trefoil_poll::arena::MAX_BLOCK_BYTES;
use trefoil_poll::send::LIST_BYTES;
use trefoil_poll::{CoreId, Instant, SockEvent, SockId};

/// The most due timers that one turn handles. Closing a connection takes some microseconds.
const TIMERS_A_TURN: usize = 64;

/// Memory of a connection besides its payload memory: its entries in the tables, the commands of a full queue in each part, and a
/// send list with its vectors.
const CONN_FIXED_BYTES: usize = size_of::<Conn>()
    + size_of::<Queue>()
    + size_of::<Names>()
    + MAX_QUEUE_ENTRIES as usize * (SLOT_BYTES + COMMAND_BYTES + NEED_BYTES)
    + LIST_BYTES;

/// One core's target.
pub struct Target {
    shared: Shared,
    tcp: Tcp,
}

impl Target {
    /// Allocates all the memory that the target ever needs; see [`TargetLimits`]. `home` is the core's arena number. All cores of
    /// the gateway share `capacity`.
    pub fn new(limits: TargetLimits, core: CoreId, cores: u16, home: u16, capacity: Arc<Capacity>) -> Self {
        Self { shared: Shared::new(&limits, core, cores, home, capacity), tcp: Tcp::new(limits) }
    }

    /// Carries out the orders that the shared parts have for the transport. Most events leave no orders.
    #[inline]
    fn settle<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        if self.shared.has_orders() {
            self.tcp.settle(&mut self.shared, cx);
        }
    }

    /// Adopts a host's connection. `initialized` is as in [`Msg::Adopt`].
    pub fn adopt<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        place: ConnAddrs,
        initialized: bool,
    ) {
        self.tcp.adopt(&mut self.shared, cx, sock, place, initialized);
    }

    /// Closes an evictable connection (unauthenticated, or a discovery controller's) so that another connection can
    /// take its slot. Chooses the oldest evictable connection of the peer address with the most evictable connections.
    /// Closes this connection only once it has had [`TargetLimits::connect_grace`].
    #[cold]
    pub fn make_room<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> Room {
        let made = self.tcp.make_room(&mut self.shared, cx);
        self.settle(cx);
        made
    }

    /// Handles an event of a connection.
    #[inline(always)]
    pub fn on_sock<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, sock: SockId, event: SockEvent<'_>) {
        match event {
            SockEvent::Received(bytes) => self.tcp.on_received(&mut self.shared, cx, sock, bytes),
            SockEvent::Filled(buf) => self.tcp.on_filled(&mut self.shared, cx, sock, buf),
            SockEvent::RecvEnd { buf, why } => self.tcp.on_recv_end(&mut self.shared, cx, sock, buf, why),
            SockEvent::Sent { list, result } => self.tcp.on_sent(&mut self.shared, cx, sock, list, result),
            SockEvent::Closed => self.tcp.on_closed(&mut self.shared, cx, sock),
            // A target opens no connections.
            SockEvent::Connected(_) => {}
        }
        self.settle(cx);
    }

    /// Takes the completion of a request with [`crate::Owner::Target`].
    #[inline]
    pub fn on_completed<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, done: Completed) {
        self.shared.engine.on_completed(cx, done);
        self.settle(cx);
    }

    /// Returns the stream of the next closed queue whose requests must be cancelled. Returns each stream once.
    #[inline]
    pub fn next_cancel(&mut self) -> Option<Stream> {
        self.shared.engine.next_cancel()
    }

    /// Returns whether the request's queue is still open. A closed queue needs no result.
    pub fn is_wanted(&self, origin: Origin) -> bool {
        self.shared.engine.is_wanted(origin)
    }

    /// Handles the loss of a dropped request: the request's command fails with Internal Error. [`crate::Origin::pack`] made
    /// `identity`.
    pub fn on_lost<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, identity: u64) {
        self.shared.engine.on_lost(cx, identity);
        self.settle(cx);
    }

    /// Handles a message about a controller.
    pub fn on_ctrlr<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, from: CoreId, msg: CtrlrMsg) {
        self.shared.engine.on_ctrlr(cx, from, msg);
        self.settle(cx);
    }

    /// Presents `new` from now on. [`sweep`](Self::sweep) reports to control once all connected hosts know of the new topology.
    pub fn on_topology(&mut self, new: Arc<Topology>) {
        self.shared.engine.on_topology(new);
    }

    /// Starts to close the connections of hosts that are no longer allowed, or of all hosts if `all`. [`sweep`](Self::sweep)
    /// closes some of these connections in each turn.
    pub fn close_hosts(&mut self, all: bool) {
        self.shared.engine.close_hosts(all);
    }

    /// Does one turn's part of two walks over the connected hosts: the walk that applies a new topology, and the walk that
    /// closes connections. Returns whether the target had such work.
    pub fn sweep<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        if !self.shared.engine.is_sweeping() {
            return false;
        }
        self.shared.engine.close_some();
        if let Some((epoch, old)) = self.shared.engine.sweep() {
            cx.io.post_control(Msg::TopologyDone { epoch, old: Some(old) });
        }
        self.settle(cx);
        true
    }

    /// Handles due timers, serves connections that wait for memory, and sends pending output. Returns true if the target had
    /// such work.
    pub fn on_turn<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let mut worked = false;
        // The next turn handles the remaining timers.
        for _ in 0..TIMERS_A_TURN {
            let Some(timer) = self.shared.engine.timers.expire(cx.io.now()) else { break };
            worked = true;
            match timer {
                Timer::Queue(queue) => self.tcp.on_timer(&mut self.shared, cx, queue),
                Timer::Ctrlr(index) => self.shared.engine.on_ctrlr_timer(cx, index),
            }
            self.settle(cx);
        }
        worked |= self.tcp.serve(&mut self.shared, cx);
        self.settle(cx);
        self.tcp.flush(&mut self.shared, cx) || worked
    }

    /// Returns the time at which [`on_turn`](Self::on_turn) must run even if no event comes.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.shared.engine.timers.next()
    }

    /// Takes back the record of a refused Connect once control has reported the refusal.
    pub fn give_back(&mut self, place: Box<Refused>) {
        self.shared.engine.give_back(place);
    }

    /// Lists the queue pairs of this core from `into.next` on, as many as one turn may list.
    pub fn survey(&self, into: &mut Survey) {
        self.shared.engine.survey(into, |queue| self.tcp.digests(SockId(queue)));
    }

    /// Returns the I/O counters of one LUN for this core's hosts.
    pub fn lun_stats(&self, lun: LunId) -> LunStats {
        self.shared.engine.lun_stats(lun)
    }

    /// Lists the I/O counters of LUNs for this core's hosts.
    pub fn survey_luns(&self, into: &mut LunSurvey) {
        self.shared.engine.survey_luns(into);
    }

    /// Counts the requests for `lun` that have not ended, including requests of closed queues. One call examines one turn's
    /// share of the command slots, starting at slot `from`. Returns the count and the slot at which the next call continues.
    pub fn under_way(&self, lun: LunId, from: u32) -> (usize, Option<u32>) {
        self.shared.engine.under_way(lun, from)
    }

    /// Returns the number of free command slots.
    pub fn free_slots(&self) -> usize {
        self.shared.engine.free_commands()
    }

    /// Returns the most memory that one connection has at any time, in bytes, on a core with `arena_bytes` of payload memory:
    /// - the data of its commands: the largest transfer, or an eighth of the memory ([`Shares`](shares::Shares));
    /// - received bytes that can't be parsed yet: one receive;
    /// - parked capsules: one block, and one more while the capsules move to a larger block;
    /// - the fixed memory of a connection, used or not, including the entries of its commands.
    pub fn conn_bound_bytes(limits: &TargetLimits, arena_bytes: usize) -> usize {
        let payload = (arena_bytes / CONN_PART).max(MAX_TRANSFER_BYTES as usize);
        let spill = (limits.stream_bytes as usize).next_power_of_two();
        payload + spill + MAX_BLOCK_BYTES + MAX_BLOCK_BYTES / 2 + CONN_FIXED_BYTES
    }

    /// Returns the most bytes that any one connection has had: its payload memory plus the fixed memory of a connection. The
    /// number is never more than [`Target::conn_bound_bytes`].
    pub fn peak_conn_bytes(&self) -> usize {
        self.shared.memory.peak_bytes() + CONN_FIXED_BYTES
    }

    /// Returns the payload memory that connections have now, in bytes.
    pub fn conns_bytes(&self) -> usize {
        self.shared.memory.total_bytes()
    }

    /// Returns the number of connections that are closing.
    pub fn closing(&self) -> usize {
        self.tcp.closing()
    }

    /// Returns the number of controllers whose admin queue is on this core.
    pub fn ctrlr_count(&self) -> usize {
        self.shared.engine.ctrlr_count()
    }
}
