//! The controllers of one core, and what each remembers.

use crate::target::limits::{MAX_AERS, MAX_IO_QUEUES};
use crate::target::slot::NIL;
use crate::topology::MAX_NSID;
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
    /// I/O queues that the host asked for, if it did.
    pub granted: u16,
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
            granted: MAX_IO_QUEUES as u16,
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

const NONE: u16 = u16::MAX;

/// The controllers of one core. Their identifiers are those with `(cntlid − 1) % cores` equal to the core, so that any
/// core knows a controller's owner.
pub struct Ctrlrs {
    list: Box<[Ctrlr]>,
    free: Vec<u16>,
    /// By `(cntlid − 1) / cores`.
    by_cntlid: Box<[u16]>,
    /// Where the search for an identifier goes on, so that one is not soon reused.
    cursor: usize,
    /// By entry, the host of a controller that has ended and waits for queues to leave; 0 for any other.
    ended: Box<[u64]>,
    /// How many of them there are.
    ended_count: usize,
    core: u16,
    cores: u16,
}

impl Ctrlrs {
    /// Room for `max` controllers of about 3.5 KiB, and 128 KiB over all cores for the index.
    pub fn new(max: usize, core: CoreId, cores: u16) -> Self {
        let max = max.min(usize::from(NONE));
        let per_core = usize::from(MAX_CNTLID).div_ceil(usize::from(cores.max(1)));
        Self {
            list: (0..max).map(|_| Ctrlr::new()).collect(),
            free: (0..max as u16).rev().collect(),
            by_cntlid: vec![NONE; per_core].into(),
            cursor: 0,
            ended: vec![0; max].into(),
            ended_count: 0,
            core: core.0,
            cores: cores.max(1),
        }
    }

    /// The core that owns `cntlid`.
    pub fn owner(cntlid: u16, cores: u16) -> CoreId {
        CoreId(cntlid.wrapping_sub(1) % cores.max(1))
    }

    fn key(&self, cntlid: u16) -> Option<usize> {
        let zero_based = cntlid.checked_sub(1)?;
        (zero_based % self.cores == self.core).then_some(usize::from(zero_based / self.cores))
    }

    /// Takes an entry with a fresh identifier within `range`; `None` if there is none.
    pub fn take(&mut self, range: (u16, u16)) -> Option<u32> {
        let (low, high) = (range.0.max(1), range.1.min(MAX_CNTLID));
        let keys = self.by_cntlid.len();
        let key = (0..keys).map(|i| (self.cursor + i) % keys).find(|&key| {
            let cntlid = self.cntlid(key);
            self.by_cntlid[key] == NONE && cntlid.is_some_and(|id| (low..=high).contains(&id))
        })?;
        let at = self.free.pop()?;
        self.cursor = key + 1;
        self.by_cntlid[key] = at;
        let cntlid = self.cntlid(key)?;
        let ctrlr = &mut self.list[usize::from(at)];
        *ctrlr = Ctrlr { cntlid, ..Ctrlr::new() };
        Some(u32::from(at))
    }

    fn cntlid(&self, key: usize) -> Option<u16> {
        u16::try_from(key * usize::from(self.cores) + usize::from(self.core) + 1).ok()
    }

    /// A controller's association is over; its timer must be cancelled. The entry is free once all queues have left: call
    /// this again with each that does.
    pub fn end(&mut self, at: u32) {
        let Some(ctrlr) = self.list.get_mut(at as usize).filter(|c| c.cntlid != 0) else { return };
        debug_assert!(ctrlr.timer.is_none());
        let host = std::mem::replace(&mut self.ended[at as usize], 0);
        self.ended_count -= usize::from(host != 0);
        if ctrlr.member_count > 0 {
            ctrlr.admin = NIL;
            self.ended[at as usize] = ctrlr.host | 1;
            self.ended_count += 1;
            return;
        }
        let cntlid = std::mem::take(&mut ctrlr.cntlid);
        if let Some(key) = self.key(cntlid) {
            self.by_cntlid[key] = NONE;
        }
        self.free.push(at as u16);
    }

    /// Whether an ended controller of this host still has queues.
    pub fn has_ended(&self, host: u64) -> bool {
        self.ended_count > 0 && self.ended.contains(&(host | 1))
    }

    /// The entry of `cntlid`.
    pub fn find(&self, cntlid: u16) -> Option<u32> {
        let at = *self.by_cntlid.get(self.key(cntlid)?)?;
        (at != NONE).then_some(u32::from(at))
    }

    /// The entry, if a controller is there.
    pub fn get(&self, at: u32) -> Option<&Ctrlr> {
        self.list.get(at as usize).filter(|c| c.cntlid != 0)
    }

    /// The entry, if a controller is there.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut Ctrlr> {
        self.list.get_mut(at as usize).filter(|c| c.cntlid != 0)
    }

    /// Entries in the table, used or not.
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

    #[test]
    fn identifiers_name_their_core_and_rotate() {
        let mut ctrlrs = Ctrlrs::new(2, CoreId(1), 4);
        let first = ctrlrs.take((1, 100)).expect("room");
        let id = ctrlrs.get(first).expect("taken").cntlid;
        assert_eq!((id, Ctrlrs::owner(id, 4)), (2, CoreId(1)));
        let ctrlr = ctrlrs.get_mut(first).expect("taken");
        (ctrlr.admin, ctrlr.host, ctrlr.member_count) = (0, 7, 1);
        ctrlrs.end(first);
        assert!(ctrlrs.find(id).is_some() && ctrlrs.has_ended(7) && !ctrlrs.has_ended(9));
        ctrlrs.get_mut(first).expect("taken").member_count = 0;
        ctrlrs.end(first);
        assert!(ctrlrs.find(id).is_none() && !ctrlrs.has_ended(7));
        let second = ctrlrs.take((1, 100)).expect("room");
        assert_eq!(ctrlrs.get(second).expect("taken").cntlid, 6);
        assert!(ctrlrs.take((1, 5)).is_some());
        assert!(ctrlrs.take((1, 100)).is_none(), "the table is full");
    }

    #[test]
    fn a_range_without_the_cores_residue_gives_nothing() {
        let mut ctrlrs = Ctrlrs::new(2, CoreId(3), 4);
        assert!(ctrlrs.take((1, 3)).is_none());
        let at = ctrlrs.take((65_000, u16::MAX)).expect("some");
        assert_eq!(ctrlrs.get(at).expect("taken").cntlid % 4, 0);
    }
}
