//! Future events, ordered by time. Events at the same time stay in the order in which they were added.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use crate::net::NodeId;
use crate::net::{ConnId, Side};
use trefoil_poll::{Instant, SockId};

/// A core in one life of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Where {
    pub node: NodeId,
    pub life: u32,
    pub core: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Turn(Where),
    Wake(Where),
    /// A segment arrives at an end of a connection.
    Arrive(ConnId, Side, u32),
    Fin(ConnId, Side),
    /// A connection fails at one end, with an errno.
    Fail(ConnId, Side, i32),
    /// A connection attempt of a socket.
    Connect(Where, SockUse, SocketAddr),
    ConnectFailed(Where, SockUse, i32),
    /// A socket takes more of its pending data.
    SendOn(Where, SockUse),
    Disk(Where, u32),
    Mail(Where, u16),
    ToControl(Where),
    Replay(u32),
    Timer(u64),
}

/// A socket and the number of its uses. The number keeps a late event from reaching a later use of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SockUse {
    pub sock: u32,
    pub uses: u32,
}

impl SockUse {
    pub fn id(self) -> SockId {
        SockId(self.sock)
    }
}

#[derive(Default)]
pub(crate) struct Events {
    heap: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    entered: u64,
}

impl Events {
    pub fn push(&mut self, at: Instant, event: Event) {
        self.entered += 1;
        self.heap.push(Reverse((at, self.entered, event)));
    }

    pub fn pop(&mut self) -> Option<(Instant, Event)> {
        self.heap.pop().map(|Reverse((at, _, event))| (at, event))
    }
}
