//! The table of one core's controllers, and the state of each controller.

use crate::frontend::limits::{MAX_AERS, MAX_IO_QUEUES};
use crate::frontend::nvme::capacity::Capacity;
use crate::list::NIL;
use crate::topology::MAX_NSID;
use std::sync::Arc;
use trefoil_poll::wheel::TimerKey;
use trefoil_poll::{CoreId, Instant};
use trefoil_wire::nvme::log::ErrorEntry;
use trefoil_wire::nvme::property::{Cc, Csts};

/// Error log entries that a controller keeps (ELPE + 1).
pub const ERRORS: usize = 16;

/// Features of one dword that a host may set and read back.
pub const SIMPLE_FEATURES: usize = 5;

/// Type of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtrlrKind {
    /// The controller serves the discovery log.
    Discovery,
    /// The controller serves namespaces.
    Io,
}

/// One I/O queue of a controller; its connection may be on any core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtrlrMember {
    /// Core of the connection.
    pub core: CoreId,
    /// Queue number on that core.
    pub queue: u32,
    /// Generation of the queue, since the number may be reused.
    pub generation: u32,
}

/// Events that wait for a host's request, or until the host reads a log. Each event is one bit.
pub mod event_bit {
    /// Namespace attribute changed.
    pub const NAMESPACE: u8 = 1 << 0;
    /// ANA change.
    pub const ANA: u8 = 1 << 1;
    /// Discovery log changed.
    pub const DISCOVERY: u8 = 1 << 2;
}

/// A set of NSIDs from 1 to [`MAX_NSID`], with one bit for each: 512 bytes.
#[derive(Clone, Copy, Debug)]
pub struct NsidSet([u64; MAX_NSID as usize / 64]);

impl NsidSet {
    /// The set without members.
    pub const EMPTY: Self = Self([0; MAX_NSID as usize / 64]);

    /// Adds `nsid`. Ignores an NSID beyond [`MAX_NSID`].
    pub fn insert(&mut self, nsid: u32) {
        let bit = nsid.wrapping_sub(1);
        if let Some(word) = self.0.get_mut(bit as usize / 64) {
            *word |= 1 << (bit % 64);
        }
    }

    /// Iterates over the members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (1..=MAX_NSID).filter(|nsid| self.0[(nsid - 1) as usize / 64] >> ((nsid - 1) % 64) & 1 == 1)
    }
}

/// A controller.
#[derive(Debug)]
pub struct Ctrlr {
    /// Identifier of the controller; 0 while the entry is free.
    pub cntlid: u16,
    /// Type of the controller.
    pub kind: CtrlrKind,
    /// The topology's epoch at the Connect. The host has already seen that topology.
    pub born: u64,
    /// The admin queue, on this core. [`NIL`] once the association has ended while some of its queues have not left.
    pub admin: u32,
    /// Hash of the host's name, from [`Names::host_hash`](crate::frontend::nvme::queue::Names::host_hash).
    pub host: u64,
    /// Time at which this core last asked all cores about the host's earlier associations.
    pub asked_at: Instant,
    /// Number of cores that have not yet answered whether the host's earlier associations are over.
    pub asked: u16,
    /// True if all answers so far are yes.
    pub settled: bool,
    /// Controller Configuration.
    pub cc: Cc,
    /// True if the controller has failed: Controller Fatal Status.
    pub fatal: bool,
    /// Keep Alive Timeout in milliseconds, 0 for none.
    pub kato_ms: u32,
    /// Time at which the host last proved that it is alive.
    pub alive_at: Instant,
    /// The controller's timer, if one is armed.
    pub timer: Option<TimerKey>,
    /// I/O queues by qid − 1.
    pub members: [Option<CtrlrMember>; MAX_IO_QUEUES],
    /// Number of `members`. It includes queues whose connection is closed while their requests are still in flight.
    pub member_count: u16,
    /// True if the association is over. Other controllers may then use its room and its grant.
    is_over: bool,
    /// I/O queues that the controller may have. This is one queue, until the host asks for more ([`Ctrlrs::grant`]) or uses
    /// more ([`Ctrlrs::may_have`]).
    pub granted: u16,
    /// True if the host has asked for a number of queues.
    has_asked: bool,
    /// Slots of outstanding Asynchronous Event Requests, oldest first.
    pub aers: [u32; MAX_AERS],
    /// Number of outstanding requests in `aers`.
    pub aer_count: u8,
    /// Asynchronous Event Configuration.
    pub event_config: u32,
    /// Events that wait for a request to report them.
    pub pending: u8,
    /// Events that were reported, and whose log the host has not read yet.
    pub masked: u8,
    /// Namespaces for the changed namespace list.
    pub changed: NsidSet,
    /// Number of changes so far of ANA states that the host sees.
    pub ana_changes: u64,
    /// Values of simple features, by the index in the table of `admin/features.rs`.
    pub features: [u32; SIMPLE_FEATURES],
    /// Host Behavior Support.
    pub host_behavior: [u8; 3],
    /// The newest errors, in a ring.
    pub errors: [ErrorEntry; ERRORS],
    /// Number of errors since the controller was created.
    pub error_count: u64,
    /// Number of Abort commands that wait for another core's answer.
    pub aborts: u8,
}

impl Ctrlr {
    fn new() -> Self {
        Self {
            cntlid: 0,
            kind: CtrlrKind::Io,
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
            features: [0; SIMPLE_FEATURES],
            host_behavior: [0; 3],
            errors: [ErrorEntry::default(); ERRORS],
            error_count: 0,
            aborts: 0,
        }
    }

    /// Returns whether the controller takes commands. While a command of the host's earlier associations can still take effect,
    /// the controller takes no commands.
    pub fn is_ready(&self) -> bool {
        self.cc.en && !self.fatal && self.is_settled()
    }

    /// Returns whether the host's earlier associations are over.
    pub fn is_settled(&self) -> bool {
        self.asked == 0 && self.settled
    }

    /// Returns CSTS. After a reset, RDY becomes 0 only once no earlier command can take effect any more (NVMe base 2.0c
    /// §3.7.2). In the same way, SHST reports a complete shutdown only then (§3.6.2). Hosts send writes again once they read
    /// either value.
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

/// The controllers of one core. Start-up reserves their memory. An entry's memory is touched only once the entry is used.
pub struct Ctrlrs {
    list: Vec<Ctrlr>,
    max: usize,
    /// Entries of `list` that are free.
    free: Vec<u16>,
    /// Host hashes of ended controllers that wait for queues to leave, by entry; 0 for any other entry.
    ended: Box<[u64]>,
    /// Number of hashes in `ended` that are not 0.
    ended_count: usize,
    core: CoreId,
    /// Owners of all identifiers, on all cores.
    capacity: Arc<Capacity>,
}

impl Ctrlrs {
    /// Reserves memory for `max` controllers of about 2.3 KiB.
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

    /// Takes an entry for a controller of this type, with an identifier within `range` that was not in use lately. Returns
    /// `None` if the gateway has no room for another controller. The caller must [`end`](Self::end) the association.
    pub fn take(&mut self, kind: CtrlrKind, range: (u16, u16)) -> Option<u32> {
        if self.free.is_empty() && self.list.len() < self.max {
            self.free.push(self.list.len() as u16);
            self.list.push(Ctrlr::new());
        }
        let at = *self.free.last()?;
        if kind == CtrlrKind::Io && !self.capacity.take_host() {
            return None;
        }
        let Some(cntlid) = self.capacity.take_cntlid(range, self.core, at) else {
            if kind == CtrlrKind::Io {
                self.capacity.return_host();
            }
            return None;
        };
        self.free.pop();
        self.list[usize::from(at)] = Ctrlr { cntlid, kind, ..Ctrlr::new() };
        Some(u32::from(at))
    }

    /// Grants a controller up to `wanted` I/O queues, at least one. This grant replaces the earlier grant. Returns the number
    /// granted.
    pub fn grant(&mut self, at: u32, wanted: u16) -> u16 {
        let Some(ctrlr) = self.list.get_mut(at as usize) else { return 0 };
        self.capacity.return_queues(ctrlr.granted - 1);
        ctrlr.granted = 1 + self.capacity.take_queues(wanted.saturating_sub(1));
        ctrlr.has_asked = true;
        ctrlr.granted
    }

    /// Returns whether a controller may have I/O queue `qid`. Some hosts never ask for a number of queues. This call grants
    /// such a host each queue that it connects, up to `most`, while the capacity has queues left. Linux's and SPDK's targets do
    /// the same.
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

    /// Ends a controller's association. The caller must have cancelled the controller's timer. The controller's connections
    /// close at once, so other controllers may use its room and its grant from now on, even while its requests are in flight.
    /// The entry is free once all queues have left. Call `end` again for each queue that leaves.
    pub fn end(&mut self, at: u32) {
        let Some(ctrlr) = self.list.get_mut(at as usize).filter(|c| c.cntlid != 0) else { return };
        debug_assert!(ctrlr.timer.is_none());
        if !std::mem::replace(&mut ctrlr.is_over, true) && ctrlr.kind == CtrlrKind::Io {
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

    /// Returns whether an ended controller of this host still has queues.
    pub fn has_ended(&self, host: u64) -> bool {
        self.ended_count > 0 && self.ended.contains(&(host | 1))
    }

    /// Returns the entry of `cntlid`, if this core owns the controller.
    pub fn find(&self, cntlid: u16) -> Option<u32> {
        let (core, at) = self.capacity.owner(cntlid)?;
        (core == self.core).then_some(u32::from(at))
    }

    /// Returns the core that owns controller `cntlid`, or `None` if there is no such controller.
    pub fn owner(&self, cntlid: u16) -> Option<CoreId> {
        self.capacity.owner(cntlid).map(|(core, _)| core)
    }

    /// Returns the entry's controller, if there is one.
    pub fn get(&self, at: u32) -> Option<&Ctrlr> {
        self.list.get(at as usize).filter(|c| c.cntlid != 0)
    }

    /// Returns the entry's controller, if there is one.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut Ctrlr> {
        self.list.get_mut(at as usize).filter(|c| c.cntlid != 0)
    }

    /// Returns the number of entries that have been in use at any time. The other entries have no controller.
    pub fn capacity(&self) -> u32 {
        self.list.len() as u32
    }

    /// Returns the number of controllers.
    pub fn count(&self) -> usize {
        self.list.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::frontend::nvme::capacity::MAX_CNTLID;

    const ALL: (u16, u16) = (1, MAX_CNTLID);

    fn ctrlrs(max: usize, core: u16, capacity: &Arc<Capacity>) -> Ctrlrs {
        Ctrlrs::new(max, CoreId(core), capacity.clone())
    }

    #[test]
    fn a_controllers_entry_stays_until_its_queues_have_left() {
        let capacity = Arc::new(Capacity::new(1, 4));
        let (mut here, there) = (ctrlrs(2, 1, &capacity), ctrlrs(2, 0, &capacity));
        let first = here.take(CtrlrKind::Io, ALL).expect("room");
        let id = here.get(first).expect("taken").cntlid;
        assert_eq!((here.find(id), there.find(id), there.owner(id)), (Some(first), None, Some(CoreId(1))));
        let ctrlr = here.get_mut(first).expect("taken");
        (ctrlr.admin, ctrlr.host, ctrlr.member_count) = (0, 7, 1);
        here.end(first);
        assert!(here.find(id).is_some() && here.has_ended(7) && !here.has_ended(9));
        let second = here.take(CtrlrKind::Io, ALL).expect("the place is free");
        assert!(here.take(CtrlrKind::Discovery, ALL).is_none(), "the table is full");
        here.get_mut(first).expect("taken").member_count = 0;
        here.end(first);
        assert!(here.find(id).is_none() && !here.has_ended(7));
        assert_ne!(here.get(second).expect("taken").cntlid, id);
        assert!(here.take(CtrlrKind::Io, ALL).is_none(), "that is max_hosts");
        assert!(here.take(CtrlrKind::Discovery, ALL).is_some(), "which these don't count for");
        here.end(second);
        assert_eq!((capacity.hosts(), capacity.spare_queues()), (0, 2));
    }

    #[test]
    fn a_grant_ends_with_its_controller() {
        let capacity = Arc::new(Capacity::new(2, 8));
        let mut ctrlrs = ctrlrs(4, 0, &capacity);
        let [one, two] = [(); 2].map(|()| ctrlrs.take(CtrlrKind::Io, ALL).expect("room"));
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
        let only = ctrlrs.take(CtrlrKind::Io, (9, 9)).expect("room");
        assert!(ctrlrs.take(CtrlrKind::Io, (9, 9)).is_none());
        assert_eq!((capacity.hosts(), ctrlrs.count()), (1, 1));
        ctrlrs.end(only);
        assert!(ctrlrs.take(CtrlrKind::Io, (9, 9)).is_some());
    }
}
