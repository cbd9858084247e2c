//! The view: the desired state, with the engine's knowledge about the state's objects.

use super::backends::Live;
use super::cores::Cores;
use super::local::OwnFile;
use super::reports::Why;
use super::topology::Placed;
use crate::action::Phase;
use crate::state::State;
use std::collections::BTreeMap;
use std::sync::Arc;
use trefoil_config::{Address, Gateway};
use trefoil_poll::{CoreId, CoreSample};
use trefoil_storage::topology::{Access, BackendId, LunId};

/// A snapshot for queries.
#[derive(Clone, Debug)]
pub struct View {
    /// The desired state.
    pub state: Arc<State>,
    /// The gateway's own settings.
    pub gateway: Arc<Gateway>,
    /// Files that must not become backends.
    pub own_files: Arc<[OwnFile]>,
    /// The phase of the gateway.
    pub phase: Phase,
    /// Snapshots published to the cores so far.
    pub epoch: u64,
    /// Backends that are up.
    pub backends: BTreeMap<String, BackendView>,
    /// Objects that are down, each with the reason. The keys are `backend/NAME`, `pool/NAME`, `lun/NAME` and
    /// `listener/ADDRESS`. The engine retries them.
    pub down: BTreeMap<String, String>,
    /// Pools that are up.
    pub pools: BTreeMap<String, PoolView>,
    /// LUNs that are served.
    pub luns: BTreeMap<String, Placed>,
    /// The index of each LUN. It is the same on every core.
    pub lun_ids: BTreeMap<String, LunId>,
    /// Listeners, keyed by their numbers on the cores.
    pub listeners: BTreeMap<u32, Address>,
    /// Each core's counters.
    pub cores: Vec<CoreSample>,
    /// Each core's CPU.
    pub cpus: Vec<usize>,
    /// Notes for the client that asked for the change: see [`crate::notes`].
    pub notes: Vec<String>,
}

impl View {
    /// Returns the view of a gateway that has brought up no object yet.
    pub(crate) fn of(gateway: &Arc<Gateway>, cpus: &[usize]) -> Self {
        Self {
            state: Arc::default(),
            gateway: gateway.clone(),
            own_files: Arc::default(),
            phase: Phase::Starting,
            epoch: 0,
            backends: BTreeMap::new(),
            down: BTreeMap::new(),
            pools: BTreeMap::new(),
            luns: BTreeMap::new(),
            lun_ids: BTreeMap::new(),
            listeners: BTreeMap::new(),
            cores: Vec::new(),
            cpus: cpus.to_vec(),
            notes: Vec::new(),
        }
    }

    /// Returns the access that a LUN gives its users, as the cores present it. A LUN without a place has the access of a LUN
    /// that is down.
    pub fn access(&self, place: Option<&Placed>) -> Access {
        let of =
            |id| self.backends.values().find(|live| live.id == id).map_or(Access::FULL, |live| live.access);
        Access::of_lun(place.map_or(&[], |place| &place.extents), of)
    }

    /// Returns the first of a LUN's backends to which I/O can't go on, and the reason. `place` is the LUN's place.
    pub fn lost_under(&self, place: &Placed) -> Option<(&str, Why)> {
        let mut lost =
            self.backends.iter().filter_map(|(name, live)| Some((name, live.id, live.usable.clone().err()?)));
        let is_under = |id| place.extents.iter().any(|extent| extent.backend == id);
        lost.find(|(_, id, _)| is_under(*id)).map(|(name, _, why)| (name.as_str(), why))
    }
}

/// A backend that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView {
    /// The backend's index, which is the same on every core.
    pub id: BackendId,
    /// The backend's size in bytes.
    pub len_bytes: u64,
    /// The backend's logical block size in bytes.
    pub block_bytes: u32,
    /// The core that holds a memory backend's memory. `None` for other backends.
    pub owner: Option<CoreId>,
    /// `Ok` if I/O can go on, and otherwise the reason why it can't.
    pub usable: Result<(), Why>,
    /// The access that the backend gives its users.
    pub access: Access,
}

impl BackendView {
    pub(super) fn of(live: &Live, cores: &Cores) -> Self {
        Self {
            id: live.id,
            len_bytes: live.len_bytes,
            block_bytes: live.block_bytes,
            owner: live.owner,
            usable: cores.reports.usable(live.id),
            access: cores.reports.access(live.id),
        }
    }
}

/// A pool that is up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolView {
    /// Bytes that all LUNs together can have.
    pub capacity_bytes: u64,
    /// Bytes that no LUN has.
    pub free_bytes: u64,
    /// The reason why the pool accepts no changes. `None` if the pool accepts changes.
    pub frozen: Option<String>,
}
