//! The ANA state of the array's namespaces: how the state changes, and what hosts must know about it.

use std::time::Duration;

use trefoil_poll::Instant;
use trefoil_storage::initiator::CHANGE_HELD;
use trefoil_storage::topology::ANA_TRANSITION_S;
use trefoil_wire::nvme::Status;
use trefoil_wire::nvme::log::AnaState;

use super::Array;
use crate::node::Node;
use crate::run::{ANA_END, ANA_OVER, Run};

/// After this time, a connected host knows a new ANA state. This holds even if the host only now notices that a connection is
/// dead.
const SHOWN_WITHIN: Duration = Duration::from_secs(4);

impl Run {
    /// Gives the array's namespaces a worse ANA state for a while. The gateway tells hosts to wait, and no operation of
    /// the hosts fails.
    pub(super) fn ana_begin(&mut self) {
        if !self.is_settled() {
            return;
        }
        let bad =
            [AnaState::NonOptimized, AnaState::Inaccessible, AnaState::PersistentLoss, AnaState::Change];
        let state = bad[self.rng.below(4) as usize];
        let time = Duration::from_millis(1 + self.rng.below(14_000));
        let now = self.world.now();
        let Some(array) = &mut self.array else { return };
        (array.ana, array.ana_is_bad) = ((state, now), true);
        array.refusals.begin(state);
        self.pools.excused = true;
        self.error_cause = true;
        self.publish_array();
        self.fired("array-ana");
        self.world.after(time, ANA_END);
        self.attack_the_unreachable();
    }

    /// Makes the array's namespaces Optimized again. First checks that hosts know the state that ends now.
    pub(in crate::run) fn ana_end(&mut self) {
        let now = self.world.now();
        let Some(array) = &mut self.array else { return };
        let (state, since) = std::mem::replace(&mut array.ana, (AnaState::Optimized, now));
        let time = now.since(since);
        match state {
            // The gateway holds commands while the state is Change, but not longer than the ANATT that it reports to hosts.
            AnaState::Change if time < CHANGE_HELD => self.check_shown(AnaState::Optimized),
            AnaState::Change if time > Duration::from_secs(ANA_TRANSITION_S.into()) => {
                self.check_shown(AnaState::Inaccessible);
            }
            AnaState::Change => {}
            _ if time > SHOWN_WITHIN => self.check_shown(state),
            _ => {}
        }
        self.publish_array();
        self.world.after(SHOWN_WITHIN, ANA_OVER);
    }

    /// Checks that hosts know the Optimized state. They have had enough time to learn it.
    pub(in crate::run) fn ana_over(&mut self) {
        self.check_shown(AnaState::Optimized);
        let now = self.world.now();
        if let Some(array) = &mut self.array {
            array.ana_is_bad = false;
            array.refusals.end(now);
        }
    }

    /// Returns whether a command for a LUN may fail with path error `status`. The command was sent at `since` and is answered by
    /// now.
    pub(in crate::run) fn may_refuse(&self, lun: usize, since: Instant, status: Status) -> bool {
        let may = |array: &Array| array.refusals.may_be(status, since);
        self.touches(lun, true) && self.array.as_ref().is_some_and(may)
    }

    /// Checks that every connected server knows that the LUNs on the array have ANA state `state`.
    fn check_shown(&mut self, state: AnaState) {
        for node in self.servers.clone() {
            let Some(Node::Server(server)) = self.world.machine(node, 0) else { continue };
            let known: Vec<_> = server.accesses().collect();
            for (lun, access) in
                known.into_iter().filter(|(lun, _)| self.luns.get(*lun).is_some_and(Option::is_some))
            {
                if self.touches(lun, true) && access.ana_state != state {
                    let what =
                        format!("a server takes LUN {lun} for {:?}, and it is {state:?}", access.ana_state);
                    self.workload.borrow_mut().model.violate(what);
                }
            }
        }
    }
}
