//! The parts of a target that all its transports share: the command layer, the payload memory, and the connections that make room.

use super::eviction::Evictable;
use super::limits::TargetLimits;
use super::memory::PayloadMemory;
use super::nvme::capacity::Capacity;
use super::nvme::engine::{Effect, Engine};
use super::nvme::queue::ConnAddrs;
use crate::cx::Cx;
use crate::msg::StorageIo;
use std::sync::Arc;
use trefoil_poll::CoreId;
use trefoil_wire::nvme::Status;

/// Work for a transport that is not the answer to one of the transport's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send the response of this command.
    Respond(u32),
    /// Close this connection.
    Close {
        /// Number of the connection.
        conn: u32,
        /// Reason for the log.
        why: &'static str,
    },
}

/// The shared parts of one core's target. A connection has the same number in all of them.
pub struct Shared {
    /// The command layer.
    pub engine: Engine,
    /// Quotas on payload memory, and the backlog.
    pub memory: PayloadMemory,
    /// Connections that make room for others.
    pub evictable: Evictable,
}

impl Shared {
    /// Allocates all memory; see the types of the parts.
    pub fn new(limits: &TargetLimits, core: CoreId, cores: u16, home: u16, capacity: Arc<Capacity>) -> Self {
        Self {
            engine: Engine::new(limits, core, cores, home, capacity),
            memory: PayloadMemory::new(limits),
            evictable: Evictable::new(limits),
        }
    }

    /// Opens a connection that a transport has accepted. The connection's host may then send a Connect.
    pub fn open(&mut self, conn: u32, place: ConnAddrs) {
        self.engine.open(conn, place);
        self.memory.open(conn);
        if !self.engine.is_own(conn) {
            self.evictable.open(conn, place.peer);
        }
    }

    /// Removes a connection that a transport has closed or is closing; see [`Engine::close`].
    pub fn close<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, conn: u32, why: &'static str) {
        self.evictable.remove(conn);
        self.memory.close(conn);
        self.engine.close(cx, conn, why);
    }

    /// Returns whether [`next_order`](Self::next_order) may return work for the transport.
    #[inline]
    pub fn has_orders(&self) -> bool {
        self.engine.has_effects()
    }

    /// Returns the next work for the transport.
    pub fn next_order<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> Option<Order> {
        loop {
            match self.engine.next_effect(cx)? {
                Effect::Done(at) => return Some(Order::Respond(at)),
                Effect::Abort(at) if self.memory.withdraw(at) => {
                    self.engine.fail(at, Status::ABORT_REQUESTED);
                    return Some(Order::Respond(at));
                }
                Effect::Abort(_) => {}
                Effect::Up { queue } => self.came_up(queue),
                Effect::Close { queue, why } => return Some(Order::Close { conn: queue, why }),
            }
        }
    }

    /// Handles a completed Connect: the connection's memory counts to its host from now on. Only a discovery controller's
    /// connection stays evictable.
    #[cold]
    fn came_up(&mut self, conn: u32) {
        self.memory.join(conn, self.engine.host_hash(conn));
        if !self.engine.queue(conn).is_discovery() {
            return self.evictable.remove(conn);
        }
        if !self.engine.is_own(conn)
            && let Some(oldest) = self.evictable.join_discovery(conn, self.engine.peer(conn))
        {
            self.engine.close_later(oldest, "a discovery controller more came than there are places");
        }
    }
}
