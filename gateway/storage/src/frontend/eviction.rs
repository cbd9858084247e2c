//! Connections that need no permission, and that the target closes to make room for other connections.
//!
//! These are the connections before a completed Connect, and the connections of discovery controllers. Any host may open any
//! number of them. So they must never keep a listed host out. When the target needs a slot, it takes the address with the most
//! such connections, and closes the oldest connection of that address.

use super::limits::TargetLimits;
use crate::fair::FairSet;
use std::net::SocketAddr;

/// The evictable connections of one core.
pub struct Evictable {
    all: FairSet,
    /// The members of `all` that are connections of discovery controllers.
    discovery: FairSet,
    max_discovery: usize,
}

impl Evictable {
    /// Allocates about 260 B a connection.
    pub fn new(limits: &TargetLimits) -> Self {
        let (all, discovery) = (FairSet::new(limits.max_conns), FairSet::new(limits.max_conns));
        Self { all, discovery, max_discovery: limits.max_discovery }
    }

    /// Adds a connection that is not authenticated yet.
    pub fn open(&mut self, c: u32, peer: SocketAddr) {
        self.all.add(c, peer);
    }

    /// Removes a connection. Does nothing if it isn't evictable.
    pub fn remove(&mut self, c: u32) {
        self.all.remove(c);
        self.discovery.remove(c);
    }

    /// Notes that a connection now belongs to a discovery controller. If the core then has one discovery controller too many,
    /// returns the connection to close.
    pub fn join_discovery(&mut self, c: u32, peer: SocketAddr) -> Option<u32> {
        self.discovery.add(c, peer);
        let is_full = self.discovery.count() > self.max_discovery;
        self.discovery.oldest_of_most().filter(|_| is_full)
    }

    /// Returns the connection to close first if another connection needs its slot.
    pub fn first(&self) -> Option<u32> {
        self.all.oldest_of_most()
    }
}
