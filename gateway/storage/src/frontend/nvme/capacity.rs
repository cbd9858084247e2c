//! The capacity of a whole gateway: controllers, queue pairs and controller identifiers. The hosts on all cores share it.
//!
//! All cores of a gateway share one [`Capacity`], which is made at start-up. It consists of atomics, so a core neither waits
//! for another core nor sends it a message. Each atomic is independent and guards no other memory, so relaxed order suffices.
//!
//! # Division of queue pairs
//! The capacity keeps an admin and an I/O queue for each of `max_hosts` I/O controllers, so each allowed host gets both. Hosts
//! get the rest of `max_qpairs` in the order in which they ask (Number of Queues, NVMe base 2.0c §5.27.1.5). A host that is
//! granted `n` I/O queues can connect all `n`. Discovery controllers and connections before Connect have room of their own
//! ([`limits`](crate::frontend::limits)), and use no part of `max_qpairs`.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use trefoil_poll::CoreId;

/// Largest controller identifier (NVMe base 2.0c §6.3: FFF0h and above are reserved).
pub const MAX_CNTLID: u16 = 0xFFEF;
/// Queue pairs kept for each host: an admin and an I/O queue.
pub const QPAIRS_KEPT: u32 = 2;
/// Marks an identifier that no controller has.
const FREE: u32 = 0;

/// The capacity of a gateway; see the module.
#[derive(Debug)]
pub struct Capacity {
    max_hosts: u32,
    /// Number of I/O controllers.
    hosts: AtomicU32,
    /// I/O queues beyond the kept queues that are still free to grant.
    spare: AtomicU32,
    /// Owners by identifier − 1. The upper half is the owner's core number plus one; the lower half is the index in that core's
    /// table.
    owners: Box<[AtomicU32]>,
    /// Count of identifiers taken so far. The search for the next identifier starts at this count, so a returned identifier is
    /// not taken again soon.
    taken: AtomicU32,
}

impl Capacity {
    /// Makes the capacity of a gateway with room for `max_hosts` I/O controllers and `max_qpairs` queue pairs of I/O controllers.
    /// Takes 256 KiB.
    pub fn new(max_hosts: u32, max_qpairs: u32) -> Self {
        let kept = max_hosts.saturating_mul(QPAIRS_KEPT);
        Self {
            max_hosts,
            hosts: AtomicU32::new(0),
            spare: AtomicU32::new(max_qpairs.saturating_sub(kept)),
            owners: (0..MAX_CNTLID).map(|_| AtomicU32::new(FREE)).collect(),
            taken: AtomicU32::new(0),
        }
    }

    /// Takes room for one I/O controller. Returns false if there is no room.
    pub fn take_host(&self) -> bool {
        let one_more = |hosts| (hosts < self.max_hosts).then_some(hosts + 1);
        self.hosts.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// Gives back the room of one I/O controller.
    pub fn return_host(&self) {
        let before = self.hosts.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "a controller's place was given back twice");
    }

    /// Returns the number of I/O controllers.
    pub fn hosts(&self) -> u32 {
        self.hosts.load(Relaxed)
    }

    /// Takes up to `wanted` I/O queues beyond the kept queues. Returns the number taken.
    pub fn take_queues(&self, wanted: u16) -> u16 {
        let left = |spare: u32| Some(spare - spare.min(wanted.into()));
        let before = self.spare.fetch_update(Relaxed, Relaxed, left).unwrap_or_default();
        before.min(wanted.into()) as u16
    }

    /// Gives back the number of queues that [`take_queues`](Self::take_queues) returned.
    pub fn return_queues(&self, queues: u16) {
        self.spare.fetch_add(queues.into(), Relaxed);
    }

    /// Returns the number of I/O queues beyond the kept queues that are free to grant.
    pub fn spare_queues(&self) -> u32 {
        self.spare.load(Relaxed)
    }

    /// Takes a free controller identifier from `low` to `high` for the controller at index `place` in the table of `core`.
    /// Returns `None` if all these identifiers are taken.
    pub fn take_cntlid(&self, (low, high): (u16, u16), core: CoreId, place: u16) -> Option<u16> {
        let (low, high) = (low.max(1), high.min(MAX_CNTLID));
        let count = u32::from(high.checked_sub(low)?) + 1;
        let owner = (u32::from(core.0) + 1) << 16 | u32::from(place);
        let start = self.taken.fetch_add(1, Relaxed) % count;
        let mut candidates = (start..count).chain(0..start).map(|offset| low + offset as u16);
        candidates.find(|&cntlid| {
            let entry = self.owners.get(usize::from(cntlid - 1));
            entry.is_some_and(|entry| entry.compare_exchange(FREE, owner, Relaxed, Relaxed).is_ok())
        })
    }

    /// Gives back a controller identifier.
    pub fn return_cntlid(&self, cntlid: u16) {
        let entry = cntlid.checked_sub(1).and_then(|at| self.owners.get(usize::from(at)));
        let before = entry.map(|entry| entry.swap(FREE, Relaxed));
        debug_assert!(before.is_some_and(|owner| owner != FREE), "identifier {cntlid} was given back twice");
    }

    /// Returns the core that has controller `cntlid`, and the controller's index in that core's table. Returns `None` if there is
    /// no such controller.
    pub fn owner(&self, cntlid: u16) -> Option<(CoreId, u16)> {
        let owner = self.owners.get(usize::from(cntlid.checked_sub(1)?))?.load(Relaxed);
        let core = (owner >> 16).checked_sub(1)?;
        Some((CoreId(core as u16), owner as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_hosts_are_the_gateways_total() {
        let capacity = Capacity::new(2, 8);
        assert!(capacity.take_host() && capacity.take_host() && !capacity.take_host());
        capacity.return_host();
        assert!(capacity.take_host() && !capacity.take_host());
        assert_eq!(capacity.hosts(), 2);
    }

    #[test]
    fn an_admin_and_an_io_queue_are_kept_for_each_host() {
        let capacity = Capacity::new(3, 10);
        assert_eq!(capacity.take_queues(3), 3, "4 are left beyond 3 x 2");
        assert_eq!((capacity.take_queues(3), capacity.take_queues(3)), (1, 0));
        capacity.return_queues(3);
        assert_eq!((capacity.spare_queues(), capacity.take_queues(64)), (3, 3));
        assert_eq!(Capacity::new(4, 8).take_queues(1), 0, "there is nothing beyond what is kept");
    }

    #[test]
    fn an_identifier_of_a_narrow_range_is_found_wherever_it_is_free() {
        let capacity = Capacity::new(8, 16);
        for (core, place) in [(0, 7), (3, 0), (1, u16::MAX), (127, 1)] {
            assert_eq!(capacity.take_cntlid((5, 5), CoreId(core), place), Some(5));
            assert_eq!(capacity.owner(5), Some((CoreId(core), place)));
            assert_eq!(capacity.take_cntlid((5, 5), CoreId(0), 0), None, "it is taken");
            capacity.return_cntlid(5);
        }
        assert_eq!((capacity.owner(5), capacity.owner(0), capacity.owner(u16::MAX)), (None, None, None));
        assert_eq!(capacity.take_cntlid((7, 6), CoreId(0), 0), None);
    }

    #[test]
    fn every_identifier_is_given_once_and_none_soon_again() {
        let capacity = Capacity::new(8, 16);
        let take = |n| capacity.take_cntlid((0, u16::MAX), CoreId(n % 4), n);
        let mut all: Vec<_> = (0..MAX_CNTLID).map(take).collect();
        assert_eq!(capacity.take_cntlid((1, u16::MAX), CoreId(0), 0), None);
        all.sort_unstable();
        assert!(all.into_iter().eq((1..=MAX_CNTLID).map(Some)));
        let capacity = Capacity::new(8, 16);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let cntlid = capacity.take_cntlid((1, 1000), CoreId(0), 0).expect("all are free");
            assert!(seen.insert(cntlid), "{cntlid} was used not long ago");
            capacity.return_cntlid(cntlid);
        }
    }

    #[test]
    fn two_cores_never_get_the_same() {
        let capacity = Capacity::new(500, 1500);
        let taken: Vec<Vec<u16>> = std::thread::scope(|scope| {
            let core = |core| {
                let capacity = &capacity;
                scope.spawn(move || {
                    let take = |_| {
                        assert!(capacity.take_host());
                        capacity
                            .take_cntlid((1, 500), CoreId(core), 0)
                            .expect("there are as many as are taken")
                    };
                    (0..250).map(take).collect()
                })
            };
            let threads = [core(0), core(1)];
            threads.into_iter().map(|thread| thread.join().expect("it ends")).collect()
        });
        let all: std::collections::HashSet<u16> = taken.iter().flatten().copied().collect();
        assert_eq!((all.len(), capacity.hosts(), capacity.take_host()), (500, 500, false));
        assert!(taken[1].iter().all(|&cntlid| capacity.owner(cntlid) == Some((CoreId(1), 0))));
    }
}
