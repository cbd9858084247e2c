//! The controllers of one core, and what each remembers.

use crate::target::capacity::Capacity;
use crate::target::limits::{MAX_AERS, MAX_IO_QUEUES};
use crate::target::slot::NIL;
use crate::topology::MAX_NSID;
use std::sync::Arc;
use trefoil_poll::wheel::TimerKey;
use trefoil_poll::{CoreId, Instant};
use trefoil_wire::nvme::log::ErrorEntry;
use trefoil_wire::nvme::property::{Cc, Csts};

/// Error log entries that a controller keeps (ELPE + 1).
pub const ERRORS: usize = 16;
/// Largest controller identifier (NVMe base 2.0c §6.3: FFF0h and above are reserved).
pub const MAX_CNTLID: u16 = 0xFFEF;

/// What a controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The discovery log.
    Discovery,
    /// Namespaces.
    Io,
}

/// One I/O queue of a controller, wherever its connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its connection's core.
    pub core: CoreId,
    /// Its queue number there.
    pub queue: u32,
    /// Guards against a reused number.
    pub generation: u32,
}

/// Events that wait for a host to ask, or for it to read a log; one bit each.
pub mod event_bit {
    /// Namespace attribute changed.
    pub const NAMESPACE: u8 = 1 << 0;
    /// ANA change.
    pub const ANA: u8 = 1 << 1;
    /// Discovery log changed.
    pub const DISCOVERY: u8 = 1 << 2;
}

/// A set of NSIDs from 1 to [`MAX_NSID`], a bit each: 512 bytes.
#[derive(Clone, Copy, Debug)]
pub struct NsidSet([u64; MAX_NSID as usize / 64]);

impl NsidSet {
    /// The set without members.
    pub const EMPTY: Self = Self([0; MAX_NSID as usize / 64]);

    /// Adds `nsid`; one beyond [`MAX_NSID`] is left out.
    pub fn insert(&mut self, nsid: u32) {
        let bit = nsid.wrapping_sub(1);
        if let Some(word) = self.0.get_mut(bit as usize / 64) {
            *word |= 1 << (bit % 64);
        }
    }

    /// Its members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (1..=MAX_NSID).filter(|nsid| self.0[(nsid - 1) as usize / 64] >> ((nsid - 1) % 64) & 1 == 1)
    }
}

/// A controller.
#[derive(Debug)]
pub struct Ctrlr {
    /// Its identifier; 0 while the entry is free.
    pub cntlid: u16,
    /// What it is for.
    pub kind: Kind,
    /// The topology's epoch at its Connect: its host has seen what that one presents.
    pub born: u64,
    /// Its admin queue, on this core; [`NIL`] once its association has ended and not all of its queues have left.
    pub admin: u32,
    /// Its host, by the NQN's hash.
    pub host: u64,
    /// When cores were last asked about the host's earlier associations.
    pub asked_at: Instant,
    /// Cores that have not said yet whether the host's earlier associations are over.
    pub asked: u16,
    /// None of those that have says that they are not.
    pub settled: bool,
    /// Controller Configuration.
    pub cc: Cc,
    /// Controller Fatal Status.
    pub fatal: bool,
    /// Keep Alive Timeout in milliseconds, 0 for none.
    pub kato_ms: u32,
    /// When the host last proved to be alive.
    pub alive_at: Instant,
    /// Its timer, if one is armed.
    pub timer: Option<TimerKey>,
    /// I/O queues by qid − 1.
    pub members: [Option<Member>; MAX_IO_QUEUES],
    /// How many of them there are; those too whose connection is gone and whose requests are not.
    pub member_count: u16,
    /// Its association is over: its place and its grant are others'.
    is_over: bool,
    /// I/O queues that it may have: one until its host asks for more ([`Ctrlrs::grant`]) or uses more
    /// ([`Ctrlrs::may_have`]).
    pub granted: u16,
    /// Its host has asked how many queues it gets.
    has_asked: bool,
    /// Slots of outstanding Asynchronous Event Requests, oldest first.
    pub aers: [u32; MAX_AERS],
    /// How many of them there are.
    pub aer_count: u8,
    /// Asynchronous Event Configuration.
    pub event_config: u32,
    /// Events to be told.
    pub pending: u8,
    /// Events that were told and whose log was not read yet.
    pub masked: u8,
    /// Namespaces for the changed namespace list.
    pub changed: NsidSet,
    /// Times that an ANA state which the host sees changed.
    pub ana_changes: u64,
    /// Values of simple features by [`super::features`]' index.
    pub features: [u32; super::features::SIMPLE],
    /// Host Behavior Support.
    pub host_behavior: [u8; 3],
    /// The newest errors, in a ring.
    pub errors: [ErrorEntry; ERRORS],
    /// Errors ever.
    pub error_count: u64,
    /// Abort commands that other cores are asked about.
    pub aborts: u8,
}

impl Ctrlr {
    fn new() -> Self {
        Self {
            cntlid: 0,
            kind: Kind::Io,
            born: 0,
            admin: NIL,
            host: 0,
            asked_at: Instant::default(),
            asked: 0,
            settled: true,
            cc: Cc::default(),
            fatal: false,
            kato_ms: 0,
            alive_at: Instant::default(),
            timer: None,
            members: [None; MAX_IO_QUEUES],
            member_count: 0,
            is_over: false,
            granted: 1,
            has_asked: false,
            aers: [NIL; MAX_AERS],
            aer_count: 0,
            event_config: 0,
            pending: 0,
            masked: 0,
            changed: NsidSet::EMPTY,
            ana_changes: 0,
            features: [0; super::features::SIMPLE],
            host_behavior: [0; 3],
            errors: [ErrorEntry::default(); ERRORS],
            error_count: 0,
            aborts: 0,
        }
    }

    /// Whether it takes commands: not while something that its host asked for in an earlier association can still take
    /// effect.
    pub fn is_ready(&self) -> bool {
        self.cc.en && !self.fatal && self.is_settled()
    }

    /// Whether the host's earlier associations are over.
    pub fn is_settled(&self) -> bool {
        self.asked == 0 && self.settled
    }

    /// CSTS. After a reset RDY is 0 once no command of before can take effect any more (NVMe base 2.0c §3.7.2), and
    /// likewise SHST says complete (§3.6.2); hosts send writes again on the strength of either.
    pub fn status(&self) -> Csts {
        let shst = match (self.cc.shn, self.member_count) {
            (0, _) => 0,
            (_, 0) => 2,
            _ => 1,
        };
        let stopping = !self.cc.en && self.member_count > 0;
        Csts { rdy: self.is_ready() || stopping, cfs: self.fatal, shst, ..Csts::default() }
    }
}

/// The controllers of one core. Their memory is reserved at start-up, and touched only as far as it has ever been in use.
pub struct Ctrlrs {
    list: Vec<Ctrlr>,
    max: usize,
    /// Entries of `list` that are free.
    free: Vec<u16>,
    /// By entry, the host of a controller that has ended and waits for queues to leave; 0 for any other.
    ended: Box<[u64]>,
    /// How many of them there are.
    ended_count: usize,
    core: CoreId,
    /// Who has which identifier, on all cores.
    capacity: Arc<Capacity>,
}

impl Ctrlrs {
    /// Room for `max` controllers of about 2.3 KiB.
    pub fn new(max: usize, core: CoreId, capacity: Arc<Capacity>) -> Self {
        let max = max.min(usize::from(u16::MAX));
        Self {
            list: Vec::with_capacity(max),
            max,
            free: Vec::with_capacity(max),
            ended: vec![0; max].into(),
            ended_count: 0,
            core,
            capacity,
        }
    }

    /// Takes an entry for a controller of this kind, with an identifier within `range` that nobody had lately; `None` if the
    /// gateway has no place for one more. Its association must [`end`](Self::end).
    pub fn take(&mut self, kind: Kind, range: (u16, u16)) -> Option<u32> {
        if self.free.is_empty() && self.list.len() < self.max {
            self.free.push(self.list.len() as u16);
            self.list.push(Ctrlr::new());
        }
        let at = *self.free.last()?;
        if kind == Kind::Io && !self.capacity.take_host() {
            return None;
        }
        let Some(cntlid) = self.capacity.take_cntlid(range, self.core, at) else {
            if kind == Kind::Io {
                self.capacity.return_host();
            }
            return None;
        };
        self.free.pop();
        self.list[usize::from(at)] = Ctrlr { cntlid, kind, ..Ctrlr::new() };
        Some(u32::from(at))
    }

    /// Grants a controller up to `wanted` I/O queues, at least one, in place of those that it was granted before; returns how
    /// many.
    pub fn grant(&mut self, at: u32, wanted: u16) -> u16 {
        let Some(ctrlr) = self.list.get_mut(at as usize) else { return 0 };
        self.capacity.return_queues(ctrlr.granted - 1);
        ctrlr.granted = 1 + self.capacity.take_queues(wanted.saturating_sub(1));
        ctrlr.has_asked = true;
        ctrlr.granted
    }

    /// Returns whether a controller may have I/O queue `qid`. Some hosts never ask for a number of
    /// queues. Such a host is granted each queue that it connects, up to `most` and as far as the capacity goes. Linux's and SPDK's
    /// targets do the same.
    pub fn may_have(&mut self, at: u32, qid: u16, most: u16) -> bool {
        let Some(ctrlr) = self.list.get_mut(at as usize) else { return false };
        let missing = qid.saturating_sub(ctrlr.granted);
        if missing > 0 && !ctrlr.has_asked && qid <= most {
            match self.capacity.take_queues(missing) {
                got if got == missing => ctrlr.granted = qid,
                got => self.capacity.return_queues(got),
            }
        }
        (1..=ctrlr.granted).contains(&qid)
    }

    /// A controller's association is over; its timer must be cancelled. Its place and its grant are others' from now on, as its
    /// connections close at once, whatever its requests do. The entry is free once all queues have left: call this again with
    /// each that does.
    pub fn end(&mut self, at: u32) {
        let Some(ctrlr) = self.list.get_mut(at as usize).filter(|c| c.cntlid != 0) else { return };
        debug_assert!(ctrlr.timer.is_none());
        if !std::mem::replace(&mut ctrlr.is_over, true) && ctrlr.kind == Kind::Io {
            self.capacity.return_queues(ctrlr.granted - 1);
            self.capacity.return_host();
        }
        let host = std::mem::replace(&mut self.ended[at as usize], 0);
        self.ended_count -= usize::from(host != 0);
        if ctrlr.member_count > 0 {
            ctrlr.admin = NIL;
            self.ended[at as usize] = ctrlr.host | 1;
            self.ended_count += 1;
            return;
        }
        self.capacity.return_cntlid(std::mem::take(&mut ctrlr.cntlid));
        self.free.push(at as u16);
    }

    /// Whether an ended controller of this host still has queues.
    pub fn has_ended(&self, host: u64) -> bool {
        self.ended_count > 0 && self.ended.contains(&(host | 1))
    }

    /// The entry of `cntlid`, if that controller is this core's.
    pub fn find(&self, cntlid: u16) -> Option<u32> {
        let (core, at) = self.capacity.owner(cntlid)?;
        (core == self.core).then_some(u32::from(at))
    }

    /// The core that has controller `cntlid`; `None` if there is no such controller.
    pub fn owner(&self, cntlid: u16) -> Option<CoreId> {
        self.capacity.owner(cntlid).map(|(core, _)| core)
    }

    /// The entry, if a controller is there.
    pub fn get(&self, at: u32) -> Option<&Ctrlr> {
        self.list.get(at as usize).filter(|c| c.cntlid != 0)
    }

    /// The entry, if a controller is there.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut Ctrlr> {
        self.list.get_mut(at as usize).filter(|c| c.cntlid != 0)
    }

    /// Entries that have ever been in use: the others have no controller.
    pub fn capacity(&self) -> u32 {
        self.list.len() as u32
    }

    /// Controllers.
    pub fn count(&self) -> usize {
        self.list.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: (u16, u16) = (1, MAX_CNTLID);

    fn ctrlrs(max: usize, core: u16, capacity: &Arc<Capacity>) -> Ctrlrs {
        Ctrlrs::new(max, CoreId(core), capacity.clone())
    }

    #[test]
    fn a_controllers_entry_stays_until_its_queues_have_left() {
        let capacity = Arc::new(Capacity::new(1, 4));
        let (mut here, there) = (ctrlrs(2, 1, &capacity), ctrlrs(2, 0, &capacity));
        let first = here.take(Kind::Io, ALL).expect("room");
        let id = here.get(first).expect("taken").cntlid;
        assert_eq!((here.find(id), there.find(id), there.owner(id)), (Some(first), None, Some(CoreId(1))));
        let ctrlr = here.get_mut(first).expect("taken");
        (ctrlr.admin, ctrlr.host, ctrlr.member_count) = (0, 7, 1);
        here.end(first);
        assert!(here.find(id).is_some() && here.has_ended(7) && !here.has_ended(9));
        let second = here.take(Kind::Io, ALL).expect("the place is free");
        assert!(here.take(Kind::Discovery, ALL).is_none(), "the table is full");
        here.get_mut(first).expect("taken").member_count = 0;
        here.end(first);
        assert!(here.find(id).is_none() && !here.has_ended(7));
        assert_ne!(here.get(second).expect("taken").cntlid, id);
        assert!(here.take(Kind::Io, ALL).is_none(), "that is max_hosts");
        assert!(here.take(Kind::Discovery, ALL).is_some(), "which these don't count for");
        here.end(second);
        assert_eq!((capacity.hosts(), capacity.spare_queues()), (0, 2));
    }

    #[test]
    fn a_grant_ends_with_its_controller() {
        let capacity = Arc::new(Capacity::new(2, 8));
        let mut ctrlrs = ctrlrs(4, 0, &capacity);
        let [one, two] = [(); 2].map(|()| ctrlrs.take(Kind::Io, ALL).expect("room"));
        assert_eq!(ctrlrs.get(one).expect("taken").granted, 1, "one who hasn't asked");
        assert!(ctrlrs.may_have(one, 3, 8) && !ctrlrs.may_have(one, 6, 8) && !ctrlrs.may_have(one, 4, 3));
        assert_eq!((ctrlrs.get(one).expect("taken").granted, capacity.spare_queues()), (3, 2));
        assert_eq!((ctrlrs.grant(one, 4), ctrlrs.grant(two, 4)), (4, 2));
        assert_eq!((ctrlrs.grant(one, 2), ctrlrs.grant(two, 4)), (2, 4), "who asks again gets it anew");
        assert!(!ctrlrs.may_have(one, 3, 8) && ctrlrs.may_have(one, 2, 8), "who was told keeps to it");
        ctrlrs.end(one);
        assert_eq!((ctrlrs.grant(two, 64), capacity.spare_queues()), (5, 0));
        ctrlrs.end(two);
        assert_eq!(capacity.spare_queues(), 4);
    }

    #[test]
    fn who_gets_no_identifier_takes_no_place() {
        let capacity = Arc::new(Capacity::new(2, 8));
        let mut ctrlrs = ctrlrs(4, 0, &capacity);
        let only = ctrlrs.take(Kind::Io, (9, 9)).expect("room");
        assert!(ctrlrs.take(Kind::Io, (9, 9)).is_none());
        assert_eq!((capacity.hosts(), ctrlrs.count()), (1, 1));
        ctrlrs.end(only);
        assert!(ctrlrs.take(Kind::Io, (9, 9)).is_some());
    }
}
