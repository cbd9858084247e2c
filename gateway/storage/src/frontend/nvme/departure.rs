//! Closed queues whose requests are still under way.
//!
//! A request that a queue handed to the LUN layer can be cancelled, but ends only once it can't take effect any more. The queue
//! counts as its controller's until the last such request has ended. The reason: a host takes the end of a reset or shutdown as
//! proof that no earlier command can take effect any more. By then the queue's number may serve another connection, so this table
//! keeps the rest of the queue.

use super::slot::NIL;
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

#[derive(Clone, Copy)]
struct Departure {
    leaving: Leaving,
    /// Number of requests under way, plus one while the queue is being closed.
    waits: u32,
    next_free: u32,
}

/// A fixed table of departures.
pub struct Departures {
    table: Box<[Departure]>,
    free: u32,
}

impl Departures {
    /// Allocates room for one departure a request, since each request keeps at most one departure waiting, and for one queue that
    /// is being closed.
    pub fn new(requests: usize) -> Self {
        let leaving = Leaving { cntlid: 0, qid: 0, sock: SockId(0), generation: 0 };
        let next = |at: usize| if at < requests { at as u32 + 1 } else { NIL };
        let table = (0..=requests).map(|at| Departure { leaving, waits: 0, next_free: next(at) });
        Self { table: table.collect(), free: 0 }
    }

    /// Starts the departure of a queue. Call [`wait`](Self::wait) for each of its requests, then [`ended`](Self::ended) once for
    /// this call. Returns `None` only if there is no room, which the size of the table rules out.
    pub fn begin(&mut self, leaving: Leaving) -> Option<u32> {
        let at = self.free;
        let departure = self.table.get_mut(at as usize)?;
        self.free = departure.next_free;
        *departure = Departure { leaving, waits: 1, next_free: NIL };
        Some(at)
    }

    /// Makes the departure wait for one more request.
    pub fn wait(&mut self, at: u32) {
        if let Some(departure) = self.table.get_mut(at as usize) {
            departure.waits += 1;
        }
    }

    /// Ends one wait of the departure. After the last wait, returns the queue that has left.
    pub fn ended(&mut self, at: u32) -> Option<Leaving> {
        let departure = self.table.get_mut(at as usize)?;
        departure.waits -= 1;
        if departure.waits > 0 {
            return None;
        }
        departure.next_free = self.free;
        self.free = at;
        Some(departure.leaving)
    }
}
