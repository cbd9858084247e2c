//! The data that operators can see of one core: queues, commands and LUNs.

use super::engine::Engine;
use super::queue::QueueState;
use crate::msg::{HostName, QpairRow, Survey};
use crate::stats::{LunStats, LunSurvey};
use crate::topology::LunId;
use trefoil_poll::SockId;

/// Queues that one turn lists in a survey. A row takes 100 ns.
const SURVEYED_A_TURN: usize = 1024;

impl Engine {
    /// Lists the queue pairs of this core from `into.next` on, as many as one turn may list. For a queue's connection,
    /// `digests` returns the use of a header digest and of a data digest.
    pub fn survey(&self, into: &mut Survey, digests: impl Fn(u32) -> Option<(bool, bool)>) {
        into.refused = self.refusals.counts();
        let from = into.next.take().unwrap_or(0);
        let end = from as usize + SURVEYED_A_TURN;
        into.next = (end < self.queues.len()).then_some(end as u32);
        for at in from..end.min(self.queues.len()) as u32 {
            let queue = &self.queues[at as usize];
            if queue.state != QueueState::Live || self.is_own(at) {
                continue;
            }
            into.total += 1;
            let (Some(digests), true) = (digests(at), into.qpairs.len() < into.qpairs.capacity()) else {
                continue;
            };
            let names = &self.names[at as usize];
            let place = &self.places[at as usize];
            into.qpairs.push(QpairRow {
                sock: SockId(at),
                cntlid: queue.cntlid,
                qid: queue.qid,
                depth: queue.depth,
                outstanding: queue.ring.len() as u16,
                host_nqn: names.host(),
                subsystem_nqn: HostName::new(names.subnqn.as_str()),
                peer: place.peer,
                portal: place.portal,
                digests,
                commands: queue.commands,
                payload_bytes: queue.payload_bytes,
                latency_ns: queue.latency_ns,
            });
        }
    }

    /// Returns the I/O counters of one LUN for this core's hosts.
    pub fn lun_stats(&self, lun: LunId) -> LunStats {
        self.luns.get(lun).copied().unwrap_or_default()
    }

    /// Lists the I/O counters of LUNs for this core's hosts.
    pub fn survey_luns(&self, into: &mut LunSurvey) {
        self.luns.survey(into);
    }

    /// Counts the requests for `lun` in flight; see [`Target::under_way`](crate::Target::under_way).
    pub fn under_way(&self, lun: LunId, from: u32) -> (usize, Option<u32>) {
        self.slots.under_way(lun, from)
    }

    /// Returns the number of controllers whose admin queue is on this core.
    pub fn ctrlr_count(&self) -> usize {
        self.ctrlrs.count()
    }
}
