//! Closed queues that drain: their requests are still under way.
//!
//! A request that a queue handed to the LUN layer can be cancelled, but ends only once it can't take effect any more. The queue
//! counts as its controller's until the last such request has ended. The reason: a host takes the end of a reset or shutdown as
//! proof that no earlier command can take effect any more. By then the queue's number may serve another connection, so this table
//! keeps the rest of the queue.

use crate::slab::Slab;
use trefoil_poll::SockId;

/// A queue, as its controller's owner core knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Identifier of the controller.
    pub cntlid: u16,
    /// Identifier of the queue, from 1.
    pub qid: u16,
    /// Number of the queue's connection, which may have been reused.
    pub sock: SockId,
    /// Generation of the queue, which differs from that of later queues with the same number.
    pub generation: u32,
}

struct Drain {
    leaving: Leaving,
    /// Number of requests under way, plus one while the queue is being closed.
    waits: u32,
}

/// A fixed table of draining queues.
pub struct Drains {
    table: Slab<Drain>,
}

impl Drains {
    /// Reserves room for one drain a request, since each request keeps at most one drain waiting, and for one queue that is being
    /// closed.
    pub fn new(requests: usize) -> Self {
        Self { table: Slab::with_capacity(requests + 1) }
    }

    /// Starts the drain of a queue. Call [`wait`](Self::wait) for each of its requests, then [`ended`](Self::ended) once for this
    /// call. Returns `None` only if there is no room, which the size of the table rules out.
    pub fn begin(&mut self, leaving: Leaving) -> Option<u32> {
        self.table.insert(Drain { leaving, waits: 1 }).ok()
    }

    /// Makes the drain wait for one more request.
    pub fn wait(&mut self, at: u32) {
        if let Some(drain) = self.table.get_mut(at) {
            drain.waits += 1;
        }
    }

    /// Ends one wait of the drain. After the last wait, returns the queue that has left.
    pub fn ended(&mut self, at: u32) -> Option<Leaving> {
        let drain = self.table.get_mut(at)?;
        drain.waits -= 1;
        if drain.waits > 0 {
            return None;
        }
        self.table.remove(at).map(|drain| drain.leaving)
    }
}
