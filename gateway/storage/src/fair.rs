//! Fair queueing by address, for connections that wait for a slot and for connections that may lose their slot.
//!
//! A flood of connections from one address must not keep other hosts out. So addresses are served in turn. When a
//! member must be dropped, the set names the oldest member of the address with the most members. A host alone at its
//! address then waits for at most one member of each other address. It loses no member while another address has more
//! members. An IPv6 address counts as its first 64 bits, since one host may have all addresses of a prefix.
//!
//! Each call takes constant time, whatever the number of members. All memory is allocated at the start.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::list::{Links, List, NIL};
use crate::slab::Slab;

/// An address and its members.
#[derive(Clone, Copy)]
struct Address {
    key: u64,
    /// The members, oldest first.
    members: List,
    count: u32,
}

/// A set of numbers from 0. Each number has the address that it came from. See the module.
pub struct FairSet {
    /// By number: the index of its address, or [`NIL`].
    at: Box<[u32]>,
    links: Box<[Links]>,
    addresses: Slab<Address>,
    places: HashMap<u64, u32>,
    /// Lists of addresses, by their number of members. In each list, the address that has had this number of members
    /// for the longest time comes first.
    by_count: Box<[List]>,
    count_links: Box<[Links]>,
    most: u32,
    /// Addresses in the order in which they are served.
    turns: List,
    count: usize,
}

impl FairSet {
    /// Creates a set for the numbers `0..size`, about 130 B each.
    pub fn new(size: usize) -> Self {
        Self {
            at: vec![NIL; size].into(),
            links: vec![Links::NONE; size].into(),
            addresses: Slab::with_capacity(size),
            // With twice the capacity, the map reorganizes in place and never allocates.
            places: HashMap::with_capacity(2 * size),
            by_count: vec![List::EMPTY; size + 1].into(),
            count_links: vec![Links::NONE; size].into(),
            most: 0,
            turns: List::EMPTY,
            count: 0,
        }
    }

    /// Adds `number`, which comes from `peer`. `number` must not be present.
    pub fn add(&mut self, number: u32, peer: SocketAddr) {
        debug_assert_eq!(self.at[number as usize], NIL, "{number} is there already");
        let key = key_of(peer.ip());
        let at = match self.places.get(&key) {
            Some(&at) => at,
            None => {
                // There is room for one address a number.
                let address = Address { key, members: List::EMPTY, count: 0 };
                let Ok(at) = self.addresses.insert(address) else { return };
                self.places.insert(key, at);
                self.turns.push(&mut self.addresses, at);
                at
            }
        };
        let Some(address) = self.addresses.get_mut(at) else { return };
        address.members.push(&mut self.links, number);
        let count = address.count + 1;
        self.at[number as usize] = at;
        self.count += 1;
        self.recount(at, count);
    }

    /// Removes `number`. Does nothing if it isn't present.
    pub fn remove(&mut self, number: u32) {
        let at = std::mem::replace(&mut self.at[number as usize], NIL);
        let Some(address) = self.addresses.get_mut(at) else { return };
        address.members.unlink(&mut self.links, number);
        let (key, count) = (address.key, address.count - 1);
        self.count -= 1;
        self.recount(at, count);
        if count == 0 {
            self.places.remove(&key);
            self.turns.unlink(&mut self.addresses, at);
            self.addresses.remove(at);
        }
    }

    /// Returns the number of members.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the member to drop first: the oldest of the address with the most members. If several addresses have the
    /// most members, chooses the address that has had this number of members for the longest time.
    pub fn oldest_of_most(&self) -> Option<u32> {
        let most = self.by_count[self.most as usize].first()?;
        self.addresses.get(most)?.members.first()
    }

    /// Removes and returns the member to serve next: the oldest of the address whose turn it is. The next turn of that
    /// address comes after the turns of all other addresses.
    pub fn take_next(&mut self) -> Option<u32> {
        let at = self.turns.pop(&mut self.addresses)?;
        self.turns.push(&mut self.addresses, at);
        let number = self.addresses.get(at)?.members.first()?;
        self.remove(number);
        Some(number)
    }

    fn recount(&mut self, at: u32, count: u32) {
        let Some(address) = self.addresses.get_mut(at) else { return };
        let before = std::mem::replace(&mut address.count, count);
        if before > 0 {
            self.by_count[before as usize].unlink(&mut self.count_links, at);
        }
        if count > 0 {
            self.by_count[count as usize].push(&mut self.count_links, at);
        }
        // `count` differs from `before` by one. So if no address has the old maximum any more, `count` is the new
        // maximum. The maximum of an empty set is 0.
        if count > self.most || (before == self.most && self.by_count[before as usize].is_empty()) {
            self.most = count;
        }
    }
}

/// A queue that serves addresses in turn. When the queue is full, the oldest member of the address with the most members
/// makes room.
pub struct FairQueue<T> {
    places: Slab<T>,
    by_address: FairSet,
}

impl<T> FairQueue<T> {
    /// Creates a queue with room for `size` members, at least for one.
    pub fn new(size: usize) -> Self {
        let size = size.max(1);
        Self { places: Slab::with_capacity(size), by_address: FairSet::new(size) }
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.by_address.count()
    }

    /// Returns whether the queue has no member.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Queues `value`. Returns the number of `value`, and the member that was dropped to make room for it, if any.
    pub fn push(&mut self, peer: SocketAddr, value: T) -> (u32, Option<T>) {
        let lost = if self.places.is_full() { self.by_address.oldest_of_most() } else { None };
        let lost = lost.and_then(|number| self.take(number));
        match self.places.insert(value) {
            Ok(number) => {
                self.by_address.add(number, peer);
                (number, lost)
            }
            Err(value) => (NIL, Some(value)),
        }
    }

    /// Returns the member under `number`.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.places.get_mut(number)
    }

    /// Returns the numbers of the members for which `is_one` holds. Examines all slots.
    pub fn numbers(&self, is_one: impl Fn(&T) -> bool) -> Vec<u32> {
        self.places.iter().filter(|(_, one)| is_one(one)).map(|(number, _)| number).collect()
    }

    /// Removes and returns member `number`, if the queue has it.
    pub fn take(&mut self, number: u32) -> Option<T> {
        let taken = self.places.remove(number)?;
        self.by_address.remove(number);
        Some(taken)
    }

    /// Removes and returns the member whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let number = self.by_address.take_next()?;
        self.places.remove(number)
    }
}

fn key_of(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        // No IPv6 host has a prefix with this value: ::/8 is reserved (RFC 4291 §2.4).
        IpAddr::V4(v4) => 1 << 32 | u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(host: u16) -> SocketAddr {
        let [a, b] = host.to_be_bytes();
        SocketAddr::from(([10, 0, a, b], 1000))
    }

    #[test]
    fn the_oldest_of_the_address_with_the_most_goes_first() {
        let mut set = FairSet::new(16);
        assert_eq!(set.oldest_of_most(), None);
        // The member of the quiet host is the oldest of all.
        set.add(9, peer(1));
        (0..3).for_each(|c| set.add(c, peer(2)));
        assert_eq!(set.oldest_of_most(), Some(0));
        set.remove(0);
        set.remove(0);
        set.add(0, peer(2));
        assert_eq!(set.oldest_of_most(), Some(1));
        set.remove(2);
        assert_eq!(set.oldest_of_most(), Some(1));
        set.remove(1);
        assert_eq!(set.oldest_of_most(), Some(9), "one from each: the oldest");
        set.remove(9);
        assert_eq!((set.oldest_of_most(), set.count()), (Some(0), 1));
        set.remove(0);
        assert_eq!((set.oldest_of_most(), set.count()), (None, 0));
    }

    #[test]
    fn addresses_are_served_in_turn() {
        let mut set = FairSet::new(16);
        for (number, host) in [(0, 1), (1, 1), (2, 1), (3, 2), (4, 3), (5, 2)] {
            set.add(number, peer(host));
        }
        let mut next = || set.take_next();
        assert_eq!([next(), next(), next(), next()], [Some(0), Some(3), Some(4), Some(1)]);
        assert_eq!([next(), next(), next()], [Some(5), Some(2), None]);
    }

    #[test]
    fn an_address_counts_however_it_is_written() {
        let key = |text: &str| key_of(text.parse().expect("an address"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::2:3"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_ne!(key("::1"), key("0.0.0.0"));
    }

    #[test]
    fn it_says_what_a_plain_list_says() {
        // A generator with a fixed seed chooses the steps. After each step, the set must agree with a plain list that
        // is searched linearly.
        let mut set = FairSet::new(64);
        let capacity = set.places.capacity();
        let mut plain: Vec<(u32, u16)> = Vec::new();
        let mut state = 7u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for step in 0..20_000 {
            let number = random(64) as u32;
            match plain.iter().position(|(other, _)| *other == number) {
                Some(at) => {
                    set.remove(number);
                    plain.remove(at);
                }
                None => {
                    // Few addresses at a time, and many over time.
                    let host = (step / 100 + random(9)) as u16;
                    set.add(number, peer(host));
                    plain.push((number, host));
                }
            }
            let many = |host| plain.iter().filter(|(_, other)| *other == host).count();
            let most = plain.iter().map(|(_, host)| many(*host)).max();
            let said = set.oldest_of_most();
            let host = plain.iter().find(|(number, _)| Some(*number) == said).map(|(_, host)| *host);
            assert_eq!(host.map(many), most);
            assert_eq!(plain.iter().find(|(_, other)| Some(*other) == host).map(|(number, _)| *number), said);
            assert_eq!(set.count(), plain.len());
        }
        assert_eq!(set.places.capacity(), capacity, "it took memory");
    }

    #[test]
    fn a_full_queue_drops_only_of_the_address_with_the_most() {
        let mut waiting = FairQueue::new(4);
        let (mine, lost) = waiting.push(peer(1), 100);
        assert_eq!(lost, None);
        for n in 0..10 {
            let (_, lost) = waiting.push(peer(2), n);
            assert_eq!(lost, (n >= 3).then(|| n - 3));
        }
        assert_eq!((waiting.len(), waiting.take(mine), waiting.take(mine)), (4, Some(100), None));
        let left: Vec<_> = std::iter::from_fn(|| waiting.pop()).collect();
        assert_eq!((left, waiting.is_empty()), (vec![7, 8, 9], true));
    }
}
