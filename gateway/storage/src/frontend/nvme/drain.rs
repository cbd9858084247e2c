//! Closed queues that drain: some of their requests are still in flight.
//!
//! The target can cancel a request that a queue gave to the LUN layer. But the request ends only once it can't take effect any
//! more. Until the last such request has ended, the queue counts as a queue of its controller. The reason: a host takes the end
//! of a reset or shutdown as proof that no earlier command can take effect any more. Another connection may use the queue's
//! number before that, so this table keeps the data of the closed queue.

use crate::slab::Slab;
use trefoil_poll::SockId;

/// A queue, as the core that owns its controller knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Identifier of the controller.
    pub cntlid: u16,
    /// Identifier of the queue, from 1.
    pub qid: u16,
    /// Number of the queue's connection. Another connection may have this number by now.
    pub sock: SockId,
    /// Generation of the queue. Later queues with the same number have other generations.
    pub generation: u32,
}

struct Drain {
    leaving: Leaving,
    /// Number of requests in flight, plus one while the queue is being closed.
    waits: u32,
}

/// A fixed table of draining queues.
pub struct Drains {
    table: Slab<Drain>,
}

impl Drains {
    /// Reserves room for one drain for each request, and for one queue that is being closed. More drains are not possible,
    /// since each draining queue waits for a request of its own.
    pub fn new(requests: usize) -> Self {
        Self { table: Slab::with_capacity(requests + 1) }
    }

    /// Starts the drain of a queue. Call [`wait`](Self::wait) for each of the queue's requests. Then call
    /// [`ended`](Self::ended) once, for the call of `begin` itself. Returns `None` if there is no room, which the size of the
    /// table rules out.
    pub fn begin(&mut self, leaving: Leaving) -> Option<u32> {
        self.table.insert(Drain { leaving, waits: 1 }).ok()
    }

    /// Makes the drain wait for one more request.
    pub fn wait(&mut self, at: u32) {
        if let Some(drain) = self.table.get_mut(at) {
            drain.waits += 1;
        }
    }

    /// Ends one wait of the drain. If this is the last wait, returns the queue: it has left.
    pub fn ended(&mut self, at: u32) -> Option<Leaving> {
        let drain = self.table.get_mut(at)?;
        drain.waits -= 1;
        if drain.waits > 0 {
            return None;
        }
        self.table.remove(at).map(|drain| drain.leaving)
    }
}
