//! Connections that need no permission, and that make room for others.
//!
//! These are the connections before a completed Connect, and those of discovery controllers: any host may have them, in any
//! number. So they never keep a listed host out. When a slot is needed, the target takes the address with the most such
//! connections, and closes its oldest one.

use super::limits::TargetLimits;
use crate::fair::FairSet;
use std::net::SocketAddr;

/// The evictable connections of one core.
pub struct Evictable {
    all: FairSet,
    /// Connections among `all` that are discovery controllers'.
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

    /// Notes that a connection has become a discovery controller's. If there is now one discovery controller too many, returns the
    /// connection to close for it.
    pub fn join_discovery(&mut self, c: u32, peer: SocketAddr) -> Option<u32> {
        self.discovery.add(c, peer);
        let is_full = self.discovery.count() > self.max_discovery;
        self.discovery.oldest_of_most().filter(|_| is_full)
    }

    /// Returns the connection to close first if another needs its place.
    pub fn first(&self) -> Option<u32> {
        self.all.oldest_of_most()
    }
}
