//! The lab's network: one bridge in the run's own network namespace, and a tap device for each VM.

use std::process::Command;

use anyhow::{Context, Result};

use crate::need;
use crate::process;

/// The address of this program and its child processes.
pub const HERE: &str = "10.77.0.1";

/// The prefix length of the lab's network.
pub const PREFIX: u8 = 24;

const BRIDGE: &str = "lab0";

fn ip(args: &str) -> Result<()> {
    let program =
        need::find_program("ip").context("there is no program ip(8): install the package iproute2")?;
    process::run(Command::new(program).args(args.split(' ')))
}

/// Makes the bridge and gives it the address [`HERE`].
pub fn make_bridge() -> Result<()> {
    ip("link set lo up")?;
    ip(&format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0"))?;
    ip(&format!("addr add {HERE}/{PREFIX} dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))
}

/// Makes a tap device on the bridge, unless it exists already.
pub fn make_tap(name: &str) -> Result<()> {
    // This check can't use /sys, because /sys still shows the network namespace in which it was mounted.
    if nix::net::if_::if_nametoindex(name).is_ok() {
        return Ok(());
    }
    ip(&format!("tuntap add dev {name} mode tap vnet_hdr"))?;
    ip(&format!("link set {name} master {BRIDGE} up"))
}
