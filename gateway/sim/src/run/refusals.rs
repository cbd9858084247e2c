//! The times at which a gateway may tell hosts that an array's namespaces can't be reached, and the statuses that it may use.
//!
//! [`array`](super::array) decides when a gateway must tell hosts about it.

use trefoil_poll::Instant;
use trefoil_wire::nvme::Status;
use trefoil_wire::nvme::log::AnaState;

/// The periods in which the gateway may report a state: from the first sign of the state until hosts must know that it is over.
#[derive(Debug, Default)]
pub(super) struct Refusals(Vec<(AnaState, Option<Instant>)>);

impl Refusals {
    /// Records that the gateway may report `state` to hosts from now on.
    pub fn begin(&mut self, state: AnaState) {
        self.0.push((state, None));
    }

    /// Ends all periods that have begun.
    pub fn end(&mut self, now: Instant) {
        self.0.iter_mut().for_each(|(_, end)| *end = end.or(Some(now)));
    }

    /// Returns whether a command may fail with path error `status` if it was sent at `since` and is answered now.
    pub fn may_be(&self, status: Status, since: Instant) -> bool {
        let states: &[AnaState] = match status.code() {
            // The gateway holds commands in state Change. If the state lasts, the gateway fails them with this status. Our hosts
            // never get the status Transition.
            Status::ANA_INACCESSIBLE => &[AnaState::Inaccessible, AnaState::Change],
            Status::ANA_PERSISTENT_LOSS => &[AnaState::PersistentLoss],
            _ => &[],
        };
        self.0.iter().any(|(state, end)| states.contains(state) && end.is_none_or(|end| end >= since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: Instant = Instant::from_ns(1);
    const END: Instant = Instant::from_ns(2);
    const LATE: Instant = Instant::from_ns(3);

    #[test]
    fn a_status_needs_a_cause_of_its_own_kind_while_its_command_is_under_way() {
        let mut refusals = Refusals::default();
        assert!(!refusals.may_be(Status::ANA_INACCESSIBLE, EARLY), "nothing ever happened");
        refusals.begin(AnaState::Inaccessible);
        assert!(refusals.may_be(Status::ANA_INACCESSIBLE, LATE), "it lasts");
        refusals.end(END);
        assert!(refusals.may_be(Status::ANA_INACCESSIBLE.dnr(), EARLY));
        assert!(refusals.may_be(Status::ANA_INACCESSIBLE, END));
        assert!(!refusals.may_be(Status::ANA_INACCESSIBLE, LATE), "it was over");
        assert!(!refusals.may_be(Status::ANA_PERSISTENT_LOSS, EARLY), "it was inaccessible");
        assert!(!refusals.may_be(Status::INTERNAL_PATH_ERROR, EARLY));
        refusals.begin(AnaState::PersistentLoss);
        assert!(refusals.may_be(Status::ANA_PERSISTENT_LOSS, LATE));
        assert!(!refusals.may_be(Status::ANA_INACCESSIBLE, LATE), "that one is over");
    }

    #[test]
    fn hosts_can_use_what_is_not_optimized_and_are_never_told_of_a_change() {
        let mut refusals = Refusals::default();
        refusals.begin(AnaState::NonOptimized);
        assert!(!refusals.may_be(Status::ANA_INACCESSIBLE, EARLY));
        refusals.begin(AnaState::Change);
        assert!(refusals.may_be(Status::ANA_INACCESSIBLE, EARLY));
        assert!(!refusals.may_be(Status::ANA_TRANSITION, EARLY));
    }
}
