//! The checks of memory: the bytes that connections hold, and the blocks that cores hold when no operation is under way.

use std::time::Duration;

use super::Run;
use crate::node::Node;
use crate::world::Step;

/// After this time, every timeout has fired.
const REST: Duration = Duration::from_secs(120);

impl Run {
    /// Checks the bytes that connections hold. Each connection's peak is within the limit. All connections together hold no more
    /// than the core has allocated.
    pub(super) fn check_conns(&mut self) -> Option<String> {
        for core in 0..self.cores {
            let Some(Node::Gateway(machine)) = self.world.machine(self.gateway, core) else { continue };
            let (target, arena) = (machine.target(), machine.arena());
            let (peak, bound) = (target.peak_conn_bytes(), machine.conn_bound_bytes());
            self.conn_bytes = (self.conn_bytes.0.max(peak), bound);
            let used = arena.capacity_bytes() - arena.free_bytes();
            if peak > bound {
                return Some(format!("a connection of core {core} held {peak} bytes, of {bound} at most"));
            }
            if target.conns_bytes() > used {
                let counted = target.conns_bytes();
                return Some(format!(
                    "core {core} counts {counted} bytes of connections, and {used} are in use"
                ));
            }
        }
        None
    }

    /// Checks that no core holds blocks when no operation is under way. Some operations wait for dead peers, so this function
    /// first lets their timeouts end them.
    pub(super) fn check_leaks(&mut self) -> Option<String> {
        let until = self.world.now() + REST;
        loop {
            let held = (0..self.cores).find_map(|core| {
                let held = self.world.machine(self.gateway, core).map_or(0, |machine| machine.held_bytes());
                (held > self.rest_bytes(core))
                    .then(|| format!("core {core} holds {held} bytes of blocks at rest"))
            });
            let held = held.or_else(|| self.check_loans(true));
            if held.is_none() {
                return self.check_still_warm();
            }
            if self.world.now() > until {
                return held;
            }
            match self.world.step() {
                Step::Accepted(_) | Step::Control(_) => self.on_control(),
                Step::Idle => return held,
                Step::Ran | Step::Timer(_) => {}
            }
        }
    }
}
