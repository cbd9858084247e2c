//! Converts the ANA state that an array reports for its namespace (NVMe base 2.0c §8.1) into the ANA state that the
//! gateway reports to its hosts.
//!
//! What it is not: it reads no log (see `controller`).
//!
//! Every state except Change (0Fh) takes effect at once. During Change, the initiator holds commands, and the earlier
//! state remains valid. After [`CHANGE_HELD`] the namespace counts as inaccessible, so that hosts use another path.
//! Hosts would reset the gateway's controller if a group stayed in Change longer than the gateway's ANATT.

use crate::topology::ANA_TRANSITION_S;
use std::time::Duration;
use trefoil_poll::Instant;
use trefoil_wire::nvme::log::AnaState;

/// The longest time for which a namespace may stay in Change before it counts as inaccessible.
pub const CHANGE_HELD: Duration = Duration::from_secs(8);
// Hosts may learn of the state a second or two later.
const _: () = assert!(CHANGE_HELD.as_secs() + 2 <= ANA_TRANSITION_S as u64);

/// The interval between two reads of the ANA log while the namespace can't be used, in case the array's event does not
/// arrive.
const REREAD_EVERY: Duration = Duration::from_secs(1);

/// The ANA state of one namespace; see the module.
#[derive(Debug)]
pub struct AnaWatch {
    state: AnaState,
    changing_since: Option<Instant>,
    reread_at: Option<Instant>,
}

impl Default for AnaWatch {
    fn default() -> Self {
        Self { state: AnaState::Optimized, changing_since: None, reread_at: None }
    }
}

impl AnaWatch {
    /// Returns the state to report to hosts, which is never Change.
    pub fn state(&self) -> AnaState {
        self.state
    }

    /// Takes the state in the ANA log.
    pub fn take(&mut self, now: Instant, state: AnaState) {
        match state {
            AnaState::Change | AnaState::Reserved(_) => {
                self.changing_since.get_or_insert(now);
            }
            _ => (self.state, self.changing_since) = (state, None),
        }
        let is_settled = self.state.is_usable() && self.changing_since.is_none();
        self.reread_at = (!is_settled).then_some(now + REREAD_EVERY);
    }

    /// Returns whether the log must be read again now.
    pub fn on_tick(&mut self, now: Instant) -> bool {
        if self.change_ends().is_some_and(|at| at <= now) {
            self.state = AnaState::Inaccessible;
        }
        let is_due = self.reread_at.is_some_and(|at| at <= now);
        if is_due {
            self.reread_at = Some(now + REREAD_EVERY);
        }
        is_due
    }

    /// Returns the time at which the present change has lasted too long.
    fn change_ends(&self) -> Option<Instant> {
        self.changing_since.filter(|_| self.state.is_usable()).map(|since| since + CHANGE_HELD)
    }

    /// Returns when [`on_tick`](Self::on_tick) must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.change_ends().into_iter().chain(self.reread_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_held_and_then_inaccessible_within_anatt() {
        let (mut watch, mut now) = (AnaWatch::default(), Instant::from_ns(0));
        watch.take(now, AnaState::NonOptimized);
        assert_eq!((watch.state(), watch.next_deadline()), (AnaState::NonOptimized, None));
        let since = now;
        watch.take(now, AnaState::Change);
        while watch.state() == AnaState::NonOptimized {
            now = watch.next_deadline().expect("it is watched");
            if watch.on_tick(now) {
                // The array still reports Change. The time of the change does not start anew.
                watch.take(now, AnaState::Change);
            }
        }
        assert_eq!((watch.state(), now.since(since)), (AnaState::Inaccessible, CHANGE_HELD));
        watch.take(now, AnaState::Change);
        assert_eq!(watch.state(), AnaState::Inaccessible, "on its way back it isn't there yet");
        watch.take(now, AnaState::Optimized);
        assert_eq!((watch.state(), watch.next_deadline()), (AnaState::Optimized, None));
        watch.take(now, AnaState::PersistentLoss);
        assert_eq!(
            (watch.state(), watch.next_deadline()),
            (AnaState::PersistentLoss, Some(now + REREAD_EVERY))
        );
    }
}
