//! Timeouts of the simulated gateways. They are shorter than the real timeouts, so that a run reaches them.

use std::time::Duration;

/// The longest time that the gateway waits for a Connect. [`PROGRESS_TIMEOUT`] is the longest time that the gateway waits for a
/// host to read data or to send pending data.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
pub(crate) const PROGRESS_TIMEOUT: Duration = Duration::from_secs(4);
/// After this time without a command, a discovery controller without a Keep Alive Timeout ends.
pub(crate) const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(2500);
