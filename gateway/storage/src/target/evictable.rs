//! Connections that may be closed to make room for others: all that anybody may have without permission. These are
//! unauthenticated connections, which have not completed a Connect, and those of discovery controllers.
//!
//! They are kept by where they come from. When there is no place left, the oldest connection of the address with most of them
//! goes, so that a flood from one address pushes its own out and not others' that are about to connect. Addresses share a fixed
//! number of buckets, and whoever shares the bucket of a flood suffers with it. All of it is O(1) or O(buckets), since what
//! a flood makes us do must cost little.

use super::slot::NIL;
use std::net::{IpAddr, SocketAddr};

/// Places for addresses: IPv4 addresses and IPv6 prefixes of 64 bits, which one host may have all of.
const BUCKETS: usize = 256;
const NOWHERE: u16 = u16::MAX;

#[derive(Clone, Copy)]
struct Entry {
    next: u32,
    prev: u32,
    bucket: u16,
    /// When it came, as a number that grows.
    order: u64,
}

#[derive(Clone, Copy)]
struct Bucket {
    head: u32,
    tail: u32,
    count: u32,
}

/// See the module.
pub struct Evictable {
    conns: Box<[Entry]>,
    buckets: [Bucket; BUCKETS],
    came: u64,
    count: usize,
}

impl Evictable {
    /// For connections `0..conns`, 24 B each.
    pub fn new(conns: usize) -> Self {
        let nobody = Entry { next: NIL, prev: NIL, bucket: NOWHERE, order: 0 };
        let empty = Bucket { head: NIL, tail: NIL, count: 0 };
        Self { conns: vec![nobody; conns].into(), buckets: [empty; BUCKETS], came: 0, count: 0 }
    }

    /// A connection came from `peer`. It must not be among them.
    pub fn add(&mut self, c: u32, peer: SocketAddr) {
        let at = bucket_of(peer.ip());
        let bucket = &mut self.buckets[at];
        self.came += 1;
        self.conns[c as usize] = Entry { next: NIL, prev: bucket.tail, bucket: at as u16, order: self.came };
        match self.conns.get_mut(bucket.tail as usize) {
            Some(last) => last.next = c,
            None => bucket.head = c,
        }
        bucket.tail = c;
        bucket.count += 1;
        self.count += 1;
    }

    /// A connection belongs to an I/O controller from now on, or ends. Harmless if it is not among them.
    pub fn remove(&mut self, c: u32) {
        let Entry { next, prev, bucket, .. } = self.conns[c as usize];
        let Some(bucket) = self.buckets.get_mut(usize::from(bucket)) else { return };
        self.conns[c as usize].bucket = NOWHERE;
        match self.conns.get_mut(prev as usize) {
            Some(prev) => prev.next = next,
            None => bucket.head = next,
        }
        match self.conns.get_mut(next as usize) {
            Some(next) => next.prev = prev,
            None => bucket.tail = prev,
        }
        bucket.count -= 1;
        self.count -= 1;
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The connection to go first: the oldest of the address with most of them.
    pub fn oldest_of_most(&self) -> Option<u32> {
        let most = self.buckets.iter().map(|bucket| bucket.count).max().filter(|count| *count > 0)?;
        let heads = self.buckets.iter().filter(|bucket| bucket.count == most).map(|bucket| bucket.head);
        heads.min_by_key(|&head| self.conns[head as usize].order)
    }
}

fn bucket_of(ip: IpAddr) -> usize {
    let bits = match ip.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    };
    // Fibonacci hashing (Knuth, The Art of Computer Programming, §6.4).
    (bits.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 1000))
    }

    #[test]
    fn the_oldest_of_the_largest_crowd_goes_first() {
        let mut evictable = Evictable::new(16);
        assert_eq!(evictable.oldest_of_most(), None);
        // The quiet one is the oldest of all.
        evictable.add(9, peer(1));
        (0..3).for_each(|c| evictable.add(c, peer(2)));
        assert_eq!(evictable.oldest_of_most(), Some(0));
        evictable.remove(0);
        evictable.remove(0);
        evictable.add(0, peer(2));
        assert_eq!(evictable.oldest_of_most(), Some(1));
        evictable.remove(2);
        assert_eq!(evictable.oldest_of_most(), Some(1));
        evictable.remove(1);
        assert_eq!(evictable.oldest_of_most(), Some(9), "one from each: the oldest");
        evictable.remove(9);
        evictable.remove(0);
        assert_eq!(evictable.oldest_of_most(), None);
    }

    #[test]
    fn an_address_counts_however_it_is_written() {
        let bucket = |text: &str| bucket_of(text.parse().expect("an address"));
        assert_eq!(bucket("::ffff:192.0.2.1"), bucket("192.0.2.1"));
        assert_eq!(bucket("2001:db8::1"), bucket("2001:db8::2:3"));
        assert_ne!(bucket("192.0.2.1"), bucket("192.0.2.2"));
    }
}
