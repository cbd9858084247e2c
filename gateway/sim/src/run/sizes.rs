//! The sizes of a run's gateway: its memory, disks, LUNs and limits.

use std::sync::Arc;
use std::time::Duration;

use trefoil_storage::core::CoreLimits;
use trefoil_storage::frontend::{Capacity, TargetLimits};

use crate::simio::SOCKETS;
use crate::timeouts::{CONNECT_TIMEOUT, PROGRESS_TIMEOUT};

/// The most cores that a gateway has.
pub const CORES: u16 = 4;
pub(super) const ARENA_BYTES: usize = 8 << 20;
pub(super) const SERVERS: u16 = 2;
/// Number of command slots of a core.
pub(super) const SLOTS: usize = 768;
pub(super) const PORT: u16 = 4420;
/// Sizes of the disks in bytes. The first three disks are the members of the pool. Metadata takes 4 MiB of each. The remaining 20
/// units of 64 KiB are so few that LUNs consist of several extents. The last disk is imported.
pub(super) const DISK_BYTES: [u64; 4] = [POOLED_BYTES, POOLED_BYTES, POOLED_BYTES, 1 << 20];
const POOLED_BYTES: u64 = (4 << 20) + (20 << 16);
/// Initial sizes of the LUNs in blocks. The run removes the third LUN and creates it again. The fourth LUN is imported. The LUNs
/// after it are memory LUNs.
pub(super) const LUN_BLOCKS: [u64; LUNS] = [2900, 1500, 1024, 2048, 600, 400, 320];
pub(super) const LUNS: usize = 7;
pub(super) const GROWN: usize = 1;
pub(super) const REPLACED: usize = 2;
pub(super) const IMPORTED: usize = 3;
pub(super) const FIRST_MEMORY: usize = 4;
/// The pool member that may be on the array.
pub(super) const MEMBER: usize = 1;
pub(super) const GROW_BLOCKS: u64 = 200;
/// Size at which LUN [`GROWN`] stops growing. It then has 25 units. The first LUN has 23 units and the third has 12 units, so all
/// 60 units of the pool are in use.
pub(super) const GROWN_MOST: u64 = 2900;
/// Sockets that hosts may have on all cores together. The attack `hostile-many-conns` opens more sockets.
pub(super) const HOST_SOCKETS: u32 = 176;

/// Returns the capacity that the cores of one gateway share. It has room for the servers' hosts, and for everything that
/// attackers can use if they are allowed to connect.
pub(super) fn capacity() -> Arc<Capacity> {
    Arc::new(Capacity::new(48, 256))
}

/// The limits of a core that mutations can change.
#[derive(Clone, Copy)]
pub struct DiscoveryLimits {
    /// The most controllers of a core.
    pub max_ctrlrs: usize,
    /// The most of these controllers that can be discovery controllers.
    pub max_discovery: usize,
    /// After this time without a command, a discovery controller ends.
    pub timeout: Duration,
}

pub(super) fn limits(cores: u16, send_lists: usize, discovery: DiscoveryLimits) -> CoreLimits {
    let host_sockets = HOST_SOCKETS / u32::from(cores);
    let target = TargetLimits {
        max_conns: SOCKETS,
        max_ctrlrs: discovery.max_ctrlrs,
        max_discovery: discovery.max_discovery,
        discovery_timeout: discovery.timeout,
        admissions: host_sockets as usize / 8,
        slots: SLOTS,
        reserved_slots: 256,
        reserved_bytes: 1 << 20,
        send_lists,
        connect_timeout: CONNECT_TIMEOUT,
        progress_timeout: PROGRESS_TIMEOUT,
        terminate_timeout: Duration::from_secs(1),
        ..TargetLimits::default()
    };
    CoreLimits { max_sockets: SOCKETS as u32, host_sockets, target, foreign_requests: 256 }
}
