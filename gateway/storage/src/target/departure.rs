//! Queues whose connection is gone and whose requests are not.
//!
//! What a queue handed to the LUN layer can be cancelled, but ends only once it can't take effect any more. Until the last
//! of it has ended, the queue counts as its
//! controller's: a host takes the end of a reset or shutdown for proof that nothing of before can land any more.
//! The queue's own number may long serve another connection by then, so what is left of it is kept here.

use super::slot::NIL;
use trefoil_poll::SockId;

/// A queue, as its controller's owner knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The controller.
    pub cntlid: u16,
    /// The queue, from 1.
    pub qid: u16,
    /// Its connection's number, which may have been reused.
    pub sock: SockId,
    /// Tells it from those that came after.
    pub generation: u32,
}

#[derive(Clone, Copy)]
struct Departure {
    leaving: Leaving,
    /// Requests under way, and one while the queue is being taken apart.
    waits: u32,
    next_free: u32,
}

/// A fixed table of departures.
pub struct Departures {
    table: Box<[Departure]>,
    free: u32,
}

impl Departures {
    /// Room for as many as there may be requests, each of which keeps at most one waiting, and one more for a queue that is being
    /// taken apart.
    pub fn new(requests: usize) -> Self {
        let leaving = Leaving { cntlid: 0, qid: 0, sock: SockId(0), generation: 0 };
        let next = |at: usize| if at < requests { at as u32 + 1 } else { NIL };
        let table = (0..=requests).map(|at| Departure { leaving, waits: 0, next_free: next(at) });
        Self { table: table.collect(), free: 0 }
    }

    /// A queue leaves: call [`wait`](Self::wait) for each of its requests, then [`ended`](Self::ended) once for the
    /// call. `None` only if there is no room, which the size rules out.
    pub fn begin(&mut self, leaving: Leaving) -> Option<u32> {
        let at = self.free;
        let departure = self.table.get_mut(at as usize)?;
        self.free = departure.next_free;
        *departure = Departure { leaving, waits: 1, next_free: NIL };
        Some(at)
    }

    /// The departure waits for one more request.
    pub fn wait(&mut self, at: u32) {
        if let Some(departure) = self.table.get_mut(at as usize) {
            departure.waits += 1;
        }
    }

    /// One of what it waits for is over. With the last, gives who has left.
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
