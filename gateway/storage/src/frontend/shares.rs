//! Quotas on a core's payload memory, by connection and by host.
//!
//! There are two kinds of payload memory. A command *holds* the block for its data, from before the data comes until the
//! response is sent. A connection *keeps* received bytes that can't be parsed yet; the reserve is there for these bytes. For
//! both kinds, the quota is a share of the memory that is free at that time (dynamic thresholds, Choudhury and Hahne 1998). So
//! even a greedy host leaves memory free: the next host gets the same share of the rest, whatever the first host has. Before
//! Connect, each connection counts as a host of its own.
//!
//! Each block is counted when it is allocated and when it is freed, which takes O(1). Only a Connect searches for its host.

use trefoil_poll::arena::MIN_BLOCK_BYTES;

/// The number of no host.
const NIL: u32 = u32::MAX;
/// A connection may hold this part (1/8) of the free memory.
pub const CONN_PART: usize = 8;
/// A host may hold this many times the memory that it leaves free beyond the reserve. So a single host may hold four fifths of
/// the memory beyond the reserve. 32 connections at the limit of [`CONN_PART`] hold as much.
const HOST_TIMES: usize = 4;

/// Memory of a connection or a host, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Has {
    held: usize,
    kept: usize,
}

#[derive(Clone, Copy)]
struct ConnShare {
    has: Has,
    host: u32,
}

#[derive(Clone, Copy, Default)]
struct HostShare {
    has: Has,
    /// An odd hash of the host's name; 0 for a connection before Connect.
    name: u64,
    conns: u32,
}

/// The quotas of one core; see the module.
pub struct Shares {
    conns: Box<[ConnShare]>,
    /// Entries for hosts. There are as many entries as connections, since each connection may have a host of its own.
    hosts: Box<[HostShare]>,
    free_hosts: Vec<u32>,
    reserved_bytes: usize,
    kept_bytes: usize,
    peak_bytes: usize,
}

impl Shares {
    /// Allocates entries for connections `0..conns`: 64 B and two words each.
    pub fn new(conns: usize, reserved_bytes: usize) -> Self {
        Self {
            conns: vec![ConnShare { has: Has::default(), host: NIL }; conns].into(),
            hosts: vec![HostShare::default(); conns].into(),
            free_hosts: (0..conns as u32).rev().collect(),
            reserved_bytes,
            kept_bytes: 0,
            peak_bytes: 0,
        }
    }

    /// Adds a connection. It counts as a host of its own.
    pub fn open(&mut self, c: u32) {
        let Some(host) = self.free_hosts.pop() else { return };
        self.conns[c as usize] = ConnShare { has: Has::default(), host };
        self.hosts[host as usize] = HostShare { conns: 1, ..HostShare::default() };
    }

    /// Counts a connection and its memory to the host with the hash `name`.
    pub fn join(&mut self, c: u32, name: u64) {
        let name = name | 1;
        let own = self.conns[c as usize].host;
        match self.hosts.iter().position(|host| host.conns > 0 && host.name == name) {
            Some(host) if host != own as usize => {
                let has = self.conns[c as usize].has;
                self.leave(c);
                let host_of = &mut self.hosts[host];
                host_of.conns += 1;
                (host_of.has.held, host_of.has.kept) =
                    (host_of.has.held + has.held, host_of.has.kept + has.kept);
                self.conns[c as usize].host = host as u32;
            }
            Some(_) => {}
            None => {
                if let Some(host) = self.hosts.get_mut(own as usize) {
                    host.name = name;
                }
            }
        }
    }

    /// Removes a connection, and all memory that is counted for the connection. A driver or a backend may still have some of
    /// the connection's blocks. These blocks come back soon. Until then, no connection and no host is charged for them.
    pub fn close(&mut self, c: u32) {
        self.leave(c);
        let Some(conn) = self.conns.get_mut(c as usize) else { return };
        self.kept_bytes -= conn.has.kept;
        *conn = ConnShare { has: Has::default(), host: NIL };
    }

    fn leave(&mut self, c: u32) {
        let Some(&ConnShare { has, host: at }) = self.conns.get(c as usize) else { return };
        let Some(host) = self.hosts.get_mut(at as usize) else { return };
        host.has = Has { held: host.has.held - has.held, kept: host.has.kept - has.kept };
        host.conns -= 1;
        if host.conns == 0 {
            debug_assert_eq!(host.has, Has::default(), "a host without connections has memory");
            self.free_hosts.push(at);
        }
    }

    /// Returns whether a connection may hold one more block for `len` bytes if `free_bytes` of the arena are free.
    #[inline]
    pub fn may_hold(&self, c: u32, len: usize, free_bytes: usize) -> bool {
        let block = block_bytes(len);
        let reserve = self.reserved_bytes.saturating_sub(self.kept_bytes);
        let Some(left) = free_bytes.checked_sub(reserve + block) else { return false };
        let conn = &self.conns[c as usize];
        let host = self.hosts.get(conn.host as usize).map_or(0, |host| host.has.held);
        (conn.has.held == 0 || conn.has.held + block <= free_bytes / CONN_PART)
            && (host == 0 || host + block <= HOST_TIMES * left)
    }

    /// Returns whether a connection may keep `len` more bytes. The connection's host may keep as many bytes as it leaves free.
    pub fn may_keep(&self, c: u32, len: usize, free_bytes: usize) -> bool {
        let block = block_bytes(len);
        let Some(left) = free_bytes.checked_sub(block) else { return false };
        let host = self.conns[c as usize].host;
        let kept = self.hosts.get(host as usize).map_or(0, |host| host.has.kept);
        kept == 0 || kept + block <= left
    }

    /// Returns whether a connection holds no block.
    #[inline]
    pub fn holds_nothing(&self, c: u32) -> bool {
        self.conns[c as usize].has.held == 0
    }

    /// Counts a block of `len` bytes that a connection holds.
    #[inline]
    pub fn hold(&mut self, c: u32, len: usize) {
        self.change(c, |has| has.held += len);
    }

    /// Counts a block of `len` bytes that a connection no longer holds.
    #[inline]
    pub fn let_go(&mut self, c: u32, len: usize) {
        self.change(c, |has| has.held -= len);
    }

    /// Counts a block of `len` bytes that a connection keeps.
    pub fn keep(&mut self, c: u32, len: usize) {
        self.change(c, |has| has.kept += len);
    }

    /// Counts a block of `len` bytes that a connection no longer keeps.
    pub fn drop_kept(&mut self, c: u32, len: usize) {
        self.change(c, |has| has.kept -= len);
    }

    #[inline]
    fn change(&mut self, c: u32, change: impl Fn(&mut Has)) {
        let conn = &mut self.conns[c as usize];
        let Some(host) = self.hosts.get_mut(conn.host as usize) else { return };
        let before = conn.has.kept;
        change(&mut conn.has);
        change(&mut host.has);
        self.kept_bytes = self.kept_bytes - before + conn.has.kept;
        self.peak_bytes = self.peak_bytes.max(conn.has.held + conn.has.kept);
    }

    /// Returns the largest number of bytes of the arena that any one connection has had.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// Returns the bytes of the arena that all connections have.
    pub fn total_bytes(&self) -> usize {
        self.conns.iter().map(|conn| conn.has.held + conn.has.kept).sum()
    }
}

/// Returns the size of the block that the arena gives for `len` bytes.
#[inline]
fn block_bytes(len: usize) -> usize {
    len.max(MIN_BLOCK_BYTES).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Gives the connections blocks of 1 MiB in turn, as long as any connection gets a block. Returns the number of blocks.
    fn fill(shares: &mut Shares, conns: std::ops::Range<u32>, free: &mut usize) -> usize {
        let mut got = 0;
        loop {
            let before = got;
            for c in conns.clone() {
                if shares.may_hold(c, MIB, *free) {
                    shares.hold(c, MIB);
                    *free -= MIB;
                    got += 1;
                }
            }
            if got == before {
                return got;
            }
        }
    }

    #[test]
    fn a_host_leaves_a_share_of_what_is_left_however_many_connections_it_has() {
        let mut shares = Shares::new(300, 8 * MIB);
        (0..300).for_each(|c| shares.open(c));
        (0..300).for_each(|c| shares.join(c, 2 * u64::from(c / 100)));
        let mut free = 108 * MIB;
        assert_eq!(fill(&mut shares, 0..100, &mut free), 80, "four fifths of what isn't reserved");
        assert_eq!(fill(&mut shares, 100..200, &mut free), 16);
        assert_eq!(fill(&mut shares, 200..300, &mut free), 3);
        (0..100).for_each(|c| shares.close(c));
        free += 80 * MIB;
        assert!(fill(&mut shares, 100..200, &mut free) > 40, "what comes free is shared out");
        (100..300).for_each(|c| shares.close(c));
        assert_eq!((shares.total_bytes(), shares.free_hosts.len()), (0, 300));
    }

    #[test]
    fn who_keeps_bytes_uses_up_the_reserve_and_not_more_than_others_get() {
        let mut shares = Shares::new(3, 8 * MIB);
        (0..3).for_each(|c| shares.open(c));
        shares.join(0, 4);
        shares.join(1, 4);
        let mut free = 9 * MIB;
        assert!(shares.may_hold(2, MIB, free) && !shares.may_hold(2, MIB, free - 4096));
        for c in [0, 1, 0, 1] {
            assert!(shares.may_keep(c, MIB, free));
            shares.keep(c, MIB);
            free -= MIB;
        }
        assert!(shares.may_hold(2, MIB, free), "what is kept comes out of the reserve");
        assert!(!shares.may_keep(0, MIB, free) && shares.may_keep(2, MIB, free));
        shares.drop_kept(1, MIB);
        free += MIB;
        shares.close(0);
        free += 2 * MIB;
        assert!(shares.may_keep(1, MIB, free));
        assert_eq!((shares.total_bytes(), shares.peak_bytes()), (MIB, 2 * MIB));
    }
}
