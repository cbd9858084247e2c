//! The gateway's presentation to hosts: an immutable snapshot that control publishes to every core.
//!
//! A core swaps its snapshot between two turns and sends the old one back. The control thread drops the old snapshot, so
//! the data path neither locks nor frees.

use std::net::SocketAddr;
use std::sync::Arc;
use trefoil_wire::nvme::log::AnaState;

/// Index of a LUN in every core's LUN table. An index is reused only after its LUN is gone from all cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LunId(pub u32);

/// Index of a backend in every core's channel table. An index is reused only after its backend is gone from all cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub u32);

/// A listener at which hosts reach the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortalId(pub u16);

impl PortalId {
    /// No listener: the portal of a core's connection to itself. It appears in no table and no count.
    pub const OWN: Self = Self(u16::MAX);
}

/// LUNs that one gateway can have. A core's LUN table takes 4,096 × about 24 bytes.
pub const MAX_LUNS: usize = 4096;
/// The largest NSID. Control refuses a subsystem with more namespaces.
pub const MAX_NSID: u32 = 4096;
/// Backends that one gateway can have.
pub const MAX_BACKENDS: usize = 256;

/// CQT in milliseconds if all backends are local: the longest time for which commands of a lost association can still
/// take effect. Commands that have not begun end at once, so the time covers only commands that a disk is executing. A
/// disk that hangs may exceed the time. If some backends are arrays, CQT is [`crate::initiator::ARRAY_QUIESCE_MS`].
pub const LOCAL_QUIESCE_MS: u16 = 1_000;
/// ANATT in seconds, as reported to hosts: the longest time for which an ANA group may stay in the state Change. Linux
/// resets a controller if one of its groups stays in Change for twice as long.
pub const ANA_TRANSITION_S: u8 = 10;

/// The access that a backend gives its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// ANA state of an array's namespace; Optimized for other backends. Never Change: see [`crate::initiator::AnaWatch`].
    pub ana_state: AnaState,
    /// True if the backend can't be written.
    pub read_only: bool,
}

impl Access {
    /// Full access.
    pub const FULL: Self = Self { ana_state: AnaState::Optimized, read_only: false };

    /// Combines the access of a LUN's backends: the worst ANA state, and read-only if any backend is read-only. A LUN
    /// whose extents aren't known is Inaccessible.
    pub fn of_lun(extents: &[Extent], of: impl Fn(BackendId) -> Self) -> Self {
        let severity = |state: AnaState| match state {
            AnaState::Optimized => 0,
            AnaState::NonOptimized => 1,
            AnaState::Inaccessible | AnaState::Change | AnaState::Reserved(_) => 2,
            AnaState::PersistentLoss => 3,
        };
        let places = extents.iter().map(|extent| of(extent.backend));
        let worst = places.reduce(|a, b| Self {
            ana_state: if severity(a.ana_state) < severity(b.ana_state) { b.ana_state } else { a.ana_state },
            read_only: a.read_only || b.read_only,
        });
        worst.unwrap_or(Self { ana_state: AnaState::Inaccessible, read_only: false })
    }
}

/// All that a core must know about the presentation to hosts. Each new topology has a higher epoch.
#[derive(Debug, Default)]
pub struct Topology {
    /// The number of the publication.
    pub epoch: u64,
    /// CQT in milliseconds, as reported to hosts: the longest time for which commands of a lost association can still
    /// take effect. 0 reports no time.
    pub quiesce_ms: u16,
    /// By [`LunId`]; gaps are `None`.
    pub luns: Vec<Option<Lun>>,
    /// Serial number of the discovery subsystem, ASCII, at most 20 bytes.
    pub discovery_serial: String,
    /// NVM subsystems, sorted by NQN. The discovery subsystem is implied and not listed.
    pub subsystems: Vec<Subsystem>,
    /// The discovery subsystem's own portals. Every portal answers discovery. The discovery log at these portals lists
    /// all subsystems to which the host may connect.
    pub discovery: Vec<PortalId>,
    /// By [`PortalId`]; gaps are `None`.
    pub portals: Vec<Option<Portal>>,
}

impl Topology {
    /// Returns the subsystem with this NQN, and its index in the list.
    pub fn subsystem(&self, nqn: &str) -> Option<(usize, &Subsystem)> {
        let at = self.subsystems.binary_search_by(|s| s.nqn.as_str().cmp(nqn)).ok()?;
        Some((at, self.subsystems.get(at)?))
    }

    /// Returns the portal with this number.
    pub fn portal(&self, id: PortalId) -> Option<&Portal> {
        self.portals.get(usize::from(id.0))?.as_ref()
    }

    /// Returns whether this topology lacks portal `id` of `before`. Another portal may have the number `id` now.
    pub fn lacks_portal_of(&self, before: &Self, id: PortalId) -> bool {
        let was = before.portal(id);
        was.is_some() && was != self.portal(id)
    }

    /// Shares with `before` each host list that is equal in both topologies. A core then need not compare entries to
    /// see that such a list has not changed.
    pub fn share_lists(&mut self, before: &Self) {
        for subsystem in &mut self.subsystems {
            let Some((_, was)) = before.subsystem(&subsystem.nqn) else { continue };
            subsystem.hosts.share(&was.hosts);
            for namespace in &mut subsystem.namespaces {
                if let Ok(at) = was.namespaces.binary_search_by_key(&namespace.nsid, |n| n.nsid) {
                    namespace.hosts.share(&was.namespaces[at].hosts);
                }
            }
        }
    }
}

/// An address on which the gateway listens, as the discovery log reports it to hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portal {
    /// The bound address. If it is a wildcard, the log reports to each host the local address of that host's own
    /// connection, never the wildcard.
    pub listen: SocketAddr,
}

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lun {
    /// A name for messages and tables.
    pub name: String,
    /// Logical block size in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// Size in logical blocks.
    pub blocks: u64,
    /// Identity: the namespace's UUID (descriptor type 3).
    pub uuid: [u8; 16],
    /// Identity: the namespace's NGUID (descriptor type 2).
    pub nguid: [u8; 16],
    /// The places of the LUN's bytes. The extents are in order, contiguous from LUN offset 0, and cover the whole size.
    /// The list is empty while the places aren't known; the LUN's namespaces must then be inaccessible.
    pub extents: Vec<Extent>,
    /// True if the LUN refuses writes.
    pub read_only: bool,
}

impl Lun {
    /// Size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }
}

/// A run of a LUN's bytes on one backend. All values are in bytes, and multiples of the LUN's block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the LUN.
    pub lun_offset: u64,
    /// Length.
    pub len: u64,
    /// The backend.
    pub backend: BackendId,
    /// First byte on the backend.
    pub backend_offset: u64,
}

/// An NVM subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// Its NQN.
    pub nqn: String,
    /// Serial number (SN of Identify Controller), ASCII, at most 20 bytes.
    pub serial: String,
    /// Model number (MN), ASCII, at most 40 bytes.
    pub model: String,
    /// The hosts that may connect.
    pub hosts: Allow,
    /// The portals at which the subsystem is offered.
    pub portals: Vec<PortalId>,
    /// Its namespaces, sorted by NSID.
    pub namespaces: Vec<Namespace>,
    /// The largest NSID that the subsystem may ever have (NN, MNAN).
    pub max_namespaces: u32,
    /// The lowest and highest CNTLID that the subsystem assigns.
    pub cntlid_range: (u16, u16),
}

impl Subsystem {
    /// Returns namespace `nsid` if `host_nqn` may see it.
    pub fn visible(&self, nsid: u32, host_nqn: &str) -> Option<&Namespace> {
        let at = self.namespaces.binary_search_by_key(&nsid, |n| n.nsid).ok()?;
        self.namespaces.get(at).filter(|n| n.hosts.contains(host_nqn))
    }
}

/// A LUN in a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its NSID, from 1.
    pub nsid: u32,
    /// The LUN that the namespace presents.
    pub lun: LunId,
    /// The hosts that see it, among those that may connect to the subsystem.
    pub hosts: Allow,
    /// ANA group, from 1. A higher NSID never has a lower group.
    pub ana_group: u32,
    /// The group's state for this gateway (NVMe base 2.0 §8.1): Optimized 1h, Non-Optimized 2h, Inaccessible 3h,
    /// Persistent Loss 4h, Change Fh.
    pub ana_state: u8,
}

/// A list of hosts. An empty list allows no host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Every host. Used only if the operator asks for it.
    Any,
    /// These hosts.
    Only(HostList),
}

/// Host NQNs, sorted. Clones share one list in memory.
#[derive(Clone, Debug)]
pub struct HostList(Arc<[String]>);

impl HostList {
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl PartialEq for HostList {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.0 == other.0
    }
}

impl Eq for HostList {}

impl Allow {
    /// Creates the list of the hosts with these NQNs, given in any order.
    pub fn only(hosts: impl IntoIterator<Item = String>) -> Self {
        let mut hosts: Vec<String> = hosts.into_iter().collect();
        hosts.sort_unstable();
        hosts.dedup();
        Self::Only(HostList(hosts.into()))
    }

    /// Returns whether `host_nqn` is allowed.
    pub fn contains(&self, host_nqn: &str) -> bool {
        match self {
            Self::Any => true,
            // A host without a name is on no list.
            Self::Only(_) if host_nqn.is_empty() => false,
            Self::Only(HostList(list)) => list
                .binary_search_by(|nqn| {
                    #[cfg(test)]
                    work::add(1);
                    nqn.as_str().cmp(host_nqn)
                })
                .is_ok(),
        }
    }

    /// Returns whether both are the same list in memory. Doesn't compare entries.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, Self::Any) => true,
            (Self::Only(one), Self::Only(other)) => one.is_same(other),
            _ => false,
        }
    }

    fn share(&mut self, before: &Self) {
        if self == before {
            *self = before.clone();
        }
    }
}

/// The work of this thread since a test last took the count: comparisons of names, and examined namespaces, queues and
/// controllers.
#[cfg(test)]
pub(crate) mod work {
    use std::cell::Cell;

    thread_local! {
        static DONE: Cell<usize> = const { Cell::new(0) };
    }

    pub fn add(done: usize) {
        DONE.set(DONE.get() + done);
    }

    pub fn take() -> usize {
        DONE.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lun_over_several_arrays_has_its_worst_places_state() {
        use AnaState::{Inaccessible, NonOptimized, Optimized, PersistentLoss};
        let places = |ids: &[u32]| -> Vec<Extent> {
            let extent = |id| Extent { lun_offset: 0, len: 512, backend: BackendId(id), backend_offset: 0 };
            ids.iter().copied().map(extent).collect()
        };
        let states = [Optimized, NonOptimized, Inaccessible, PersistentLoss];
        let of = |BackendId(id)| Access { ana_state: states[id as usize % 4], read_only: id >= 4 };
        let cases = [
            (&[0, 0][..], Optimized, false),
            (&[0, 1], NonOptimized, false),
            (&[2, 1, 0], Inaccessible, false),
            (&[0, 3, 2], PersistentLoss, false),
            (&[4, 1], NonOptimized, true),
            (&[], Inaccessible, false),
        ];
        for (ids, ana_state, read_only) in cases {
            assert_eq!(Access::of_lun(&places(ids), of), Access { ana_state, read_only }, "{ids:?}");
        }
    }

    #[test]
    fn a_list_of_hosts_is_a_set_and_is_shared_while_it_stays_the_same() {
        let list = |names: &[&str]| Allow::only(names.iter().map(|&name| name.into()));
        let (one, same, other) = (list(&["b", "a", "c"]), list(&["c", "b", "a", "b"]), list(&["a"]));
        assert!(["a", "b", "c"].iter().all(|host| one.contains(host)));
        assert!(!one.contains("d") && !one.contains("") && !list(&[]).contains("a"));
        assert!(one == same && !one.is_same(&same) && one != other);
        let mut shared = same;
        shared.share(&one);
        assert!(shared.is_same(&one));
        shared.share(&other);
        assert!(shared.is_same(&one));
    }
}
