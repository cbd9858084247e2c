//! How a controller is reached and treated: what control, or a workload, fills in.

use super::fence::FenceRule;
use super::qpair::{Identity, QueueEntries};
use std::net::SocketAddr;
use std::time::Duration;

/// What the controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// I/O on one namespace.
    Nvm {
        /// Its NSID.
        nsid: u32,
    },
    /// Reading the discovery log.
    Discovery,
}

/// How to reach a controller and how to treat it.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// Addresses of the same subsystem's port, tried in turn.
    pub addrs: Vec<SocketAddr>,
    /// Names.
    pub identity: Identity,
    /// What for.
    pub purpose: Purpose,
    /// Ask for header and data digest.
    pub digests: (bool, bool),
    /// Keep Alive Timeout in milliseconds; at least 1000.
    pub kato_ms: u32,
    /// I/O queues to ask for; the array may grant fewer.
    pub io_queues: u16,
    /// Size of an I/O queue; CAP.MQES may lower it.
    pub entries: QueueEntries,
    /// First and largest pause between two attempts to connect; none but the first is longer than a quarter of `loss_timeout`.
    pub reconnect: (Duration, Duration),
    /// Time for the connection of a queue.
    pub connect_timeout: Duration,
    /// Time for an admin command.
    pub admin_timeout: Duration,
    /// How long I/O waits for a lost path before it fails.
    pub loss_timeout: Duration,
    /// When lost writes go again.
    pub fence: FenceRule,
    /// Entries of the discovery log to make room for.
    pub discovery_entries: usize,
}
