//! Timeouts of the simulated gateways. They are shorter than the real ones, so that a run reaches them.

use std::time::Duration;

/// Longest time that the gateway waits for a Connect, and for a host to read or to send pending data.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
pub(crate) const PROGRESS_TIMEOUT: Duration = Duration::from_secs(4);
/// Time without a command after which a discovery controller without a Keep Alive Timeout ends.
pub(crate) const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(2500);
