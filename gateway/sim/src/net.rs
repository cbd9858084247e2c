//! Connections: byte streams with a bounded buffer in each direction. Bytes arrive in order and in segments, after a latency. The
//! world can inject faults.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use trefoil_poll::rand::Rng;
use trefoil_poll::{Instant, SendList, SockId};

/// A node: a gateway, a server, an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

/// A connection of the world. Its number is never reused within a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u32);

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The end that connected.
    Client,
    /// The end that accepted.
    Server,
}

impl Side {
    /// Returns the other side.
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The holder of one end of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Holder {
    /// A core's socket.
    Core { core: u16, sock: SockId },
    /// A detached socket, held by the control thread or in a message.
    Detached(Arc<()>),
    /// Nobody: the end is closed, or its node is dead.
    Gone,
}

/// One direction of a connection.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// Bytes that the sender's socket has accepted and the receiver has not read. The receiver can read the first `arrived`
    /// bytes.
    bytes: VecDeque<u8>,
    arrived: usize,
    capacity: usize,
    pub fin_arrived: bool,
    last_arrival: Instant,
    /// Number of bytes that were ever written.
    pub total: u64,
}

#[derive(Debug)]
pub(crate) struct End {
    pub node: NodeId,
    pub holder: Holder,
    /// The error number, once the connection has failed for this end.
    pub error: Option<i32>,
    /// The bytes sent to this end.
    pub rx: Pipe,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub ends: [End; 2],
    /// Time before which nothing arrives.
    pub stalled_until: Instant,
    /// For each end: true if all bytes sent to this end are lost. Neither end notices the loss.
    pub black: [bool; 2],
    /// Bits to flip in the bytes sent to each end.
    pub flips: [u32; 2],
}

/// Conditions of the network between two nodes, and the delay until a core handles its events.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Shortest time that a segment takes.
    pub latency: Duration,
    /// Longest random time added to the latency.
    pub jitter: Duration,
    /// Bytes that one direction of a connection holds, in both sockets together.
    pub buffer_bytes: usize,
    /// Percentage of sends that are cut into arbitrary segments.
    pub cut_percent: u64,
    /// Percentage of sends that a socket accepts in two parts although its buffer has room for the whole send.
    pub short_percent: u64,
    /// Longest random delay of a core's turn. More events can arrive during the delay.
    pub late_turns: Duration,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(20),
            jitter: Duration::from_micros(60),
            buffer_bytes: 256 << 10,
            cut_percent: 15,
            short_percent: 5,
            late_turns: Duration::ZERO,
        }
    }
}

impl Pipe {
    fn new(capacity: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            arrived: 0,
            capacity,
            fin_arrived: false,
            last_arrival: Instant::default(),
            total: 0,
        }
    }

    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.bytes.len())
    }

    pub fn readable(&self) -> usize {
        self.arrived
    }

    pub fn at_end(&self) -> bool {
        self.fin_arrived && self.bytes.is_empty()
    }

    pub fn is_unread(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Appends the bytes of `list` that start at byte `from`: as many as fit, but at most `max`. Returns the number of
    /// appended bytes.
    pub fn fill(&mut self, list: &SendList, from: usize, max: usize) -> usize {
        let want = self.room().min(list.len_bytes() - from).min(max);
        let (mut skip, mut left) = (from, want);
        for piece in list.pieces() {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let part = &piece[skip..piece.len().min(skip + left)];
            self.bytes.extend(part);
            (skip, left) = (0, left - part.len());
            if left == 0 {
                break;
            }
        }
        self.total += want as u64;
        want
    }

    /// Returns the time at which the next segment arrives. Segments arrive in order.
    pub fn arrival(&mut self, now: Instant, weather: &Weather, rng: &mut Rng) -> Instant {
        let jitter = Duration::from_nanos(rng.below(weather.jitter.as_nanos() as u64));
        let at = (now + weather.latency + jitter).max(self.last_arrival);
        self.last_arrival = at;
        at
    }

    pub fn arrive(&mut self, len: usize) {
        self.arrived = (self.arrived + len).min(self.bytes.len());
    }

    /// Flips one bit among the `len` bytes that arrived last.
    pub fn flip(&mut self, len: usize, rng: &mut Rng) {
        let first = self.arrived - len.min(self.arrived);
        let at = first + rng.below((self.arrived - first) as u64) as usize;
        if let Some(byte) = self.bytes.get_mut(at) {
            *byte ^= 1 << rng.below(8);
        }
    }

    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.arrived);
        let (a, b) = self.bytes.as_slices();
        let first = a.len().min(len);
        into[..first].copy_from_slice(&a[..first]);
        into[first..len].copy_from_slice(&b[..len - first]);
        self.bytes.drain(..len);
        self.arrived -= len;
        len
    }

    pub fn discard(&mut self) {
        self.bytes = VecDeque::new();
        self.arrived = 0;
    }
}

impl End {
    /// Returns whether the end can receive nothing more.
    pub fn is_deaf(&self) -> bool {
        self.error.is_some() || matches!(self.holder, Holder::Gone)
    }
}

impl Conn {
    pub fn new(client: (NodeId, Holder), server: (NodeId, Holder), room: usize) -> Self {
        let end = |(node, holder)| End { node, holder, error: None, rx: Pipe::new(room) };
        Self {
            ends: [end(client), end(server)],
            stalled_until: Instant::default(),
            black: [false; 2],
            flips: [0; 2],
        }
    }

    pub fn end(&mut self, side: Side) -> &mut End {
        &mut self.ends[side as usize]
    }
}
