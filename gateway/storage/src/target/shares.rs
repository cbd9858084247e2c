//! Who holds how much of a core's payload memory, by connection and by host.
//!
//! Two kinds of it. What a command *holds* is its data, from before it comes until its response is sent. What a connection
//! *keeps* are bytes that have come and can't be worked on yet; the reserve is there for them. Of either, nobody gets
//! more than a share of what is free then, so that a greedy one leaves room for others as the arena fills (dynamic
//! thresholds, Choudhury and Hahne 1998): however much one host has been given and sits on, the next one gets the same
//! share of the rest. Before Connect each connection is a host of its own.
//!
//! Counted with each block, so all of it is O(1); only a Connect looks for its host.

use super::slot::NIL;
use trefoil_poll::arena::MIN_BLOCK_BYTES;

/// A connection may hold this part of what is free.
pub const CONN_PART: usize = 8;
/// A host may hold as many times what it leaves beyond the reserve: four fifths of it if it is alone. That is what 32
/// connections of [`CONN_PART`] come to.
const HOST_TIMES: usize = 4;

/// What somebody has, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Has {
    held: usize,
    kept: usize,
}

#[derive(Clone, Copy)]
struct Conn {
    has: Has,
    host: u32,
}

#[derive(Clone, Copy, Default)]
struct Host {
    has: Has,
    /// Of its NQN, and odd; 0 for a connection before Connect.
    name: u64,
    conns: u32,
}

/// See the module.
pub struct Shares {
    conns: Box<[Conn]>,
    /// As many as connections, since each has one.
    hosts: Box<[Host]>,
    free_hosts: Vec<u32>,
    reserved_bytes: usize,
    kept_bytes: usize,
    peak_bytes: usize,
}

impl Shares {
    /// For connections `0..conns`, 64 B and two words each.
    pub fn new(conns: usize, reserved_bytes: usize) -> Self {
        Self {
            conns: vec![Conn { has: Has::default(), host: NIL }; conns].into(),
            hosts: vec![Host::default(); conns].into(),
            free_hosts: (0..conns as u32).rev().collect(),
            reserved_bytes,
            kept_bytes: 0,
            peak_bytes: 0,
        }
    }

    /// A connection came.
    pub fn open(&mut self, c: u32) {
        let Some(host) = self.free_hosts.pop() else { return };
        self.conns[c as usize] = Conn { has: Has::default(), host };
        self.hosts[host as usize] = Host { conns: 1, ..Host::default() };
    }

    /// A connection is host `name`'s.
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

    /// A connection ends, and with it all that it had. What of it a driver or a backend still has comes back soon, and is
    /// counted as nobody's.
    pub fn close(&mut self, c: u32) {
        self.leave(c);
        let Some(conn) = self.conns.get_mut(c as usize) else { return };
        self.kept_bytes -= conn.has.kept;
        *conn = Conn { has: Has::default(), host: NIL };
    }

    fn leave(&mut self, c: u32) {
        let Some(&Conn { has, host: at }) = self.conns.get(c as usize) else { return };
        let Some(host) = self.hosts.get_mut(at as usize) else { return };
        host.has = Has { held: host.has.held - has.held, kept: host.has.kept - has.kept };
        host.conns -= 1;
        if host.conns == 0 {
            debug_assert_eq!(host.has, Has::default(), "a host without connections has memory");
            self.free_hosts.push(at);
        }
    }

    /// Whether a connection may hold a block for `len` bytes more, with so many bytes free in the arena.
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

    /// Whether a connection may keep `len` bytes more: its host as many as it leaves.
    pub fn may_keep(&self, c: u32, len: usize, free_bytes: usize) -> bool {
        let block = block_bytes(len);
        let Some(left) = free_bytes.checked_sub(block) else { return false };
        let host = self.conns[c as usize].host;
        let kept = self.hosts.get(host as usize).map_or(0, |host| host.has.kept);
        kept == 0 || kept + block <= left
    }

    /// Whether a connection holds no block.
    #[inline]
    pub fn holds_nothing(&self, c: u32) -> bool {
        self.conns[c as usize].has.held == 0
    }

    /// A connection holds a block of `len` bytes.
    #[inline]
    pub fn hold(&mut self, c: u32, len: usize) {
        self.change(c, |has| has.held += len);
    }

    /// It no longer does.
    #[inline]
    pub fn let_go(&mut self, c: u32, len: usize) {
        self.change(c, |has| has.held -= len);
    }

    /// A connection keeps a block of `len` bytes.
    pub fn keep(&mut self, c: u32, len: usize) {
        self.change(c, |has| has.kept += len);
    }

    /// It no longer does.
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

    /// The most that any one connection has had of the arena.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// What all connections have of the arena.
    pub fn total_bytes(&self) -> usize {
        self.conns.iter().map(|conn| conn.has.held + conn.has.kept).sum()
    }
}

/// The block that the arena gives for `len` bytes.
#[inline]
fn block_bytes(len: usize) -> usize {
    len.max(MIN_BLOCK_BYTES).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Gives each connection blocks of a MiB in turn, as long as any gets one.
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
