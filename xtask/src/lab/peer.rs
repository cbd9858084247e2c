//! Constants and the [`Target`] trait, which hosts, targets and scenarios of the lab share.

use std::time::Instant;

use anyhow::{Result, bail};

/// The subsystem that every target of the lab offers.
pub const NQN: &str = "nqn.2026-01.test.lab:disk";
/// A second subsystem, without a namespace. A target offers it on request.
pub const NQN_2: &str = "nqn.2026-01.test.lab:second";
/// The TCP port of both subsystems.
pub const PORT: &str = "4420";
/// The Linux host's NQN.
pub const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:6f1c8f02-3a0e-4a53-9d3c-0a77c0ffee01";
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;

/// The target of the Linux host. After `kill` and `start`, the target's LUN has the same identity and all acknowledged data.
pub trait Target {
    /// Returns the target's IPv4 address; the port is [`PORT`].
    fn address(&self) -> String;
    /// Starts the target and waits until it serves.
    fn start(&mut self, deadline: Instant) -> Result<()>;
    /// Ends the target without a clean shutdown.
    fn kill(&mut self) -> Result<()>;
    /// Enlarges the LUN in use and returns its new size in bytes.
    fn grow(&mut self, deadline: Instant) -> Result<u64>;
    /// Also offers [`NQN_2`] from now on.
    fn offer(&mut self, deadline: Instant) -> Result<()>;
    /// Shows a second LUN to the host, or hides it. This LUN isn't on the first LUN's array.
    fn beside(&mut self, _shown: bool) -> Result<()> {
        bail!("this target has only one LUN")
    }
    /// Shuts the target down cleanly. Returns an error if the shutdown fails.
    fn stop(&mut self, deadline: Instant) -> Result<()>;
}
