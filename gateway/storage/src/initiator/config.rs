//! The settings of a connection to a controller. The control plane, or a workload, fills them in.

use super::fence::FenceRule;
use super::qpair::{Identity, QueueEntries};
use std::net::SocketAddr;
use std::time::Duration;

/// The use of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// I/O on one namespace.
    Nvm {
        /// The namespace's NSID.
        nsid: u32,
    },
    /// Reading the discovery log.
    Discovery,
}

/// The settings of a connection to a controller.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// Addresses of one subsystem port, tried in turn.
    pub addrs: Vec<SocketAddr>,
    /// The NQNs and the host identifier that Connect carries.
    pub identity: Identity,
    /// The use of the controller.
    pub purpose: Purpose,
    /// Header digest and data digest to request.
    pub digests: (bool, bool),
    /// Keep Alive Timeout in milliseconds, at least 1000.
    pub kato_ms: u32,
    /// I/O queues to ask for; the array may grant fewer.
    pub io_queues: u16,
    /// Size of an I/O queue; CAP.MQES may lower it.
    pub entries: QueueEntries,
    /// The first and the largest pause between two attempts to connect. Only the first pause may be longer than a
    /// quarter of `loss_timeout`.
    pub reconnect: (Duration, Duration),
    /// Deadline for the connection of a queue.
    pub connect_timeout: Duration,
    /// Deadline for an admin command.
    pub admin_timeout: Duration,
    /// The time for which I/O waits for a lost path before the I/O fails.
    pub loss_timeout: Duration,
    /// The rule by which lost writes are sent again.
    pub fence: FenceRule,
    /// The largest number of discovery log entries that are kept.
    pub discovery_entries: usize,
}
