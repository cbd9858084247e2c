//! Builds the snapshot that cores present to hosts, from the desired state and the objects that are up.

use super::backends::Live;
use crate::error::{Fault, Refusal};
use crate::state::State;
use std::collections::BTreeMap;
use trefoil_config::{Address, BackendType, Lun, Subsystem};
use trefoil_storage::initiator::ARRAY_QUIESCE_MS;
use trefoil_storage::topology::{self as shown, Access, Allow, BackendId, Extent, LunId, PortalId, Topology};

/// Indices by which cores know objects. A number is not reused until a snapshot without its object is in force on every core.
#[derive(Debug)]
pub struct Ids<K> {
    by_key: BTreeMap<K, u32>,
    used: Vec<bool>,
}

impl<K> Default for Ids<K> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), used: Vec::new() }
    }
}

impl<K: Ord + Clone> Ids<K> {
    /// Returns the number of `key`. If `key` has none, gives it a free number. Returns `None` if `max` numbers are in use.
    pub fn give(&mut self, key: &K, max: usize) -> Option<u32> {
        if let Some(&id) = self.by_key.get(key) {
            return Some(id);
        }
        let at = self.used.iter().position(|used| !used).unwrap_or(self.used.len());
        if at >= max {
            return None;
        }
        if at == self.used.len() {
            self.used.push(false);
        }
        self.used[at] = true;
        self.by_key.insert(key.clone(), at as u32);
        Some(at as u32)
    }

    /// Returns the number of `key`.
    pub fn get(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Returns every key with its number.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.by_key.iter().map(|(key, id)| (key, *id))
    }

    /// Frees the numbers of all keys for which `keep` returns `false`.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        let used = &mut self.used;
        self.by_key.retain(|key, id| {
            let kept = keep(key);
            if let Some(place) = used.get_mut(*id as usize) {
                *place = kept;
            }
            kept
        });
    }
}

/// The numbers of all objects.
#[derive(Debug, Default)]
pub struct Numbers {
    /// LUNs by name.
    pub luns: Ids<String>,
    /// Backends by name.
    pub backends: Ids<String>,
    /// Portals by address.
    pub portals: Ids<Address>,
}

/// A LUN's geometry and place, from its pool or its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// Size in bytes.
    pub len_bytes: u64,
    /// The extents that hold the LUN's bytes.
    pub extents: Vec<Extent>,
}

/// Returns the place of a LUN that presents the whole of `backend`.
pub fn place_whole(lun: &Lun, backend: &Live) -> Result<Placed, String> {
    let block_bytes = lun.block_bytes.unwrap_or(backend.block_bytes);
    if block_bytes < backend.block_bytes {
        return Err(format!(
            "LUN `{}`: `block_bytes` is {block_bytes}, and the backend's blocks have {} bytes: use at least that many",
            lun.name, backend.block_bytes
        ));
    }
    let len_bytes = backend.len_bytes / u64::from(block_bytes) * u64::from(block_bytes);
    if len_bytes == 0 {
        return Err("the size of the LUN's backend is not known yet".into());
    }
    let extents = vec![Extent { lun_offset: 0, len: len_bytes, backend: backend.id, backend_offset: 0 }];
    Ok(Placed { block_bytes, len_bytes, extents })
}

/// Builds the snapshot. A LUN has no place while its pool is down, or while the pool lacks a member that the LUN needs. The
/// namespaces of such a LUN have the ANA state Inaccessible, so that hosts that know the LUN wait. If the LUN's size isn't
/// known either, because the LUN is a whole backend that is down, the LUN and its namespaces are left out.
///
/// `access` gives the access of each backend. A LUN gives its hosts the worst access among its backends.
pub fn build(
    epoch: u64,
    state: &State,
    placed: &BTreeMap<String, Placed>,
    numbers: &Numbers,
    access: impl Fn(BackendId) -> Access,
) -> Topology {
    let has_arrays = state.backends.values().any(|backend| backend.kind == BackendType::NvmeTcp);
    let quiesce_ms = if has_arrays { ARRAY_QUIESCE_MS } else { shown::LOCAL_QUIESCE_MS };
    let mut topology = Topology { epoch, quiesce_ms, ..Topology::default() };
    for (name, lun) in &state.luns {
        let Some(id) = numbers.luns.get(name) else { continue };
        let at = id as usize;
        if topology.luns.len() <= at {
            topology.luns.resize(at + 1, None);
        }
        topology.luns[at] = shown_lun(lun, placed.get(name), &access);
    }
    for (listen, id) in &numbers.portals.by_key {
        let at = *id as usize;
        if topology.portals.len() <= at {
            topology.portals.resize(at + 1, None);
        }
        // The scope names an interface of the gateway, which has no meaning on a host. So it is left out.
        topology.portals[at] = Some(shown::Portal { listen: listen.at(0) });
    }
    let discovery = state.discovery.listeners.iter().filter_map(|listen| numbers.portals.get(listen));
    topology.discovery = discovery.map(|id| PortalId(id as u16)).collect();
    topology.subsystems =
        state.subsystems.values().map(|s| shown_subsystem(s, &topology, numbers, &access)).collect();
    topology
}

fn shown_lun(lun: &Lun, place: Option<&Placed>, access: impl Fn(BackendId) -> Access) -> Option<shown::Lun> {
    let uuid = lun.uuid.unwrap_or_default();
    let (block_bytes, len_bytes) = match place {
        Some(place) => (place.block_bytes, place.len_bytes),
        None => (lun.block_bytes?, lun.size?.0),
    };
    let extents = place.map_or(Vec::new(), |place| place.extents.clone());
    Some(shown::Lun {
        name: lun.name.clone(),
        block_bytes,
        blocks: len_bytes / u64::from(block_bytes),
        uuid: *uuid.as_bytes(),
        nguid: lun.nguid_bytes().unwrap_or(*uuid.as_bytes()),
        read_only: lun.read_only || Access::of_lun(&extents, access).read_only,
        extents,
    })
}

fn shown_subsystem(
    subsystem: &Subsystem,
    topology: &Topology,
    numbers: &Numbers,
    access: impl Fn(BackendId) -> Access,
) -> shown::Subsystem {
    let namespaces = subsystem.namespaces.iter().filter_map(|ns| {
        let id = numbers.luns.get(&ns.lun)?;
        let lun = topology.luns.get(id as usize)?.as_ref()?;
        let hosts = ns.hosts.clone().map_or(Allow::Any, Allow::only);
        let state = Access::of_lun(&lun.extents, &access).ana_state;
        // Each namespace has an ANA group of its own, so that its state can change alone.
        let (ana_group, ana_state) = (ns.nsid, state.bits());
        Some(shown::Namespace { nsid: ns.nsid, lun: LunId(id), hosts, ana_group, ana_state })
    });
    let portals = subsystem.listeners.iter().filter_map(|l| numbers.portals.get(l));
    shown::Subsystem {
        nqn: subsystem.nqn.clone(),
        serial: subsystem.serial.clone().unwrap_or_default(),
        model: subsystem.model.clone().unwrap_or_default(),
        hosts: if subsystem.allow_any_host { Allow::Any } else { Allow::only(subsystem.hosts.clone()) },
        portals: portals.map(|id| PortalId(id as u16)).collect(),
        namespaces: namespaces.collect(),
        max_namespaces: subsystem.max_nsid(),
        cntlid_range: (subsystem.min_cntlid.unwrap_or(1), subsystem.max_cntlid.unwrap_or(0xFFEF)),
    }
}

/// Returns the refusal for the case that [`Ids::give`] has no free number.
pub fn full(what: &str) -> Refusal {
    Refusal::new(
        Fault::NoSpace,
        format!("the gateway already has the most {what} that a gateway can have: remove some first"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trefoil_config::Backend;
    use trefoil_wire::nvme::log::AnaState;

    proptest! {
        #[test]
        fn numbers_are_dense_and_never_shared(steps in proptest::collection::vec((0u8..8, any::<bool>()), 0..40)) {
            let mut ids = Ids::default();
            for (key, keep) in steps {
                if keep {
                    prop_assert!(ids.give(&key, 8).is_some());
                } else {
                    ids.retain(|k| *k != key);
                }
                let mut numbers: Vec<_> = ids.by_key.values().collect();
                numbers.sort_unstable();
                numbers.dedup();
                prop_assert_eq!(numbers.len(), ids.by_key.len());
                prop_assert_eq!(ids.used.iter().filter(|u| **u).count(), numbers.len());
            }
        }
    }

    #[test]
    fn hosts_are_told_that_there_are_arrays() {
        let quiesce_ms = |state: &State| {
            build(1, state, &BTreeMap::new(), &Numbers::default(), |_| Access::FULL).quiesce_ms
        };
        let mut state = State::default();
        assert_eq!(quiesce_ms(&state), shown::LOCAL_QUIESCE_MS);
        state.backends.insert("a".into(), Backend::new("a", BackendType::NvmeTcp));
        assert_eq!(quiesce_ms(&state), ARRAY_QUIESCE_MS);
    }

    #[test]
    fn a_namespace_shows_what_the_backends_under_its_lun_let_users_do() {
        let extents = |ids: [u32; 2]| {
            let extent = |id| Extent { lun_offset: 0, len: 512, backend: BackendId(id), backend_offset: 0 };
            ids.map(extent).to_vec()
        };
        let mut state = State::default();
        let mut placed = BTreeMap::new();
        let mut numbers = Numbers::default();
        let mut namespaces = Vec::new();
        for (nsid, (name, ids)) in (1..).zip([("far", [0, 1]), ("near", [0, 0])]) {
            let lun = Lun {
                name: name.into(),
                pool: None,
                backend: None,
                size: None,
                block_bytes: None,
                uuid: None,
                nguid: None,
                read_only: false,
            };
            state.luns.insert(name.into(), lun);
            placed.insert(name.into(), Placed { block_bytes: 512, len_bytes: 1024, extents: extents(ids) });
            numbers.luns.give(&name.into(), 2);
            namespaces.push(trefoil_config::Namespace { lun: name.into(), nsid, hosts: None });
        }
        let subsystem = Subsystem { namespaces, ..Subsystem::new("nqn.2024-01.test:s") };
        state.subsystems.insert(subsystem.nqn.clone(), subsystem);
        let protected = Access { ana_state: AnaState::NonOptimized, read_only: true };
        let of = |id| if id == BackendId(1) { protected } else { Access::FULL };
        let topology = build(1, &state, &placed, &numbers, of);
        let shown: Vec<_> = topology.subsystems[0].namespaces.iter().map(|ns| ns.ana_state).collect();
        assert_eq!(shown, [AnaState::NonOptimized.bits(), AnaState::Optimized.bits()]);
        let read_only: Vec<_> = topology.luns.iter().flatten().map(|lun| lun.read_only).collect();
        assert_eq!(read_only, [true, false]);
    }

    #[test]
    fn there_is_an_end_to_numbers() {
        let mut ids = Ids::default();
        assert_eq!(ids.give(&"a", 1), Some(0));
        assert_eq!(ids.give(&"a", 1), Some(0));
        assert_eq!(ids.give(&"b", 1), None);
        ids.retain(|_| false);
        assert_eq!(ids.give(&"b", 1), Some(0));
    }
}
