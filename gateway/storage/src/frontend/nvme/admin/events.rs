//! Asynchronous events (NVMe base 2.0c §5.2).

use crate::frontend::limits::MAX_AERS;
use crate::frontend::nvme::ctrlr::event_bit;
use crate::frontend::nvme::engine::{CommandStep, Engine};
use crate::frontend::nvme::queue::QueueState;
use crate::frontend::nvme::slot::{CommandSlot, Phase};
use crate::list::NIL;
use trefoil_wire::nvme::feature::AsyncEventConfig;
use trefoil_wire::nvme::{AsyncEvent, Status, admin_opcode};

impl Engine {
    /// Keeps an Asynchronous Event Request until an event comes.
    pub(super) fn hold_event_request(&mut self, at: u32, index: u32) -> CommandStep {
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return self.fail(at, Status::INTERNAL_ERROR) };
        let count = usize::from(ctrlr.aer_count);
        if count >= MAX_AERS {
            return self.fail(at, Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
        }
        ctrlr.aers[count] = at;
        ctrlr.aer_count += 1;
        self.slots[at].phase = Phase::Held;
        self.fire_events(index);
        CommandStep::Held
    }

    /// Removes one Asynchronous Event Request from the controller's list.
    pub(super) fn drop_event_request(&mut self, at: u32) {
        let cntlid = self.queues[self.slots[at].queue as usize].cntlid;
        let Some(ctrlr) = self.ctrlrs.find(cntlid).and_then(|index| self.ctrlrs.get_mut(index)) else {
            return;
        };
        if let Some(place) = ctrlr.aers.iter().position(|&aer| aer == at) {
            ctrlr.aers[place..].rotate_left(1);
            ctrlr.aers[MAX_AERS - 1] = NIL;
            ctrlr.aer_count -= 1;
        }
    }

    /// Returns whether slot `at` holds an Asynchronous Event Request to a controller.
    pub(in crate::frontend::nvme) fn is_event_request(&self, at: u32) -> bool {
        let slot = &self.slots[at];
        let queue = &self.queues[slot.queue as usize];
        queue.state == QueueState::Live
            && queue.qid == 0
            && slot.sqe.opcode == admin_opcode::ASYNC_EVENT_REQUEST
    }

    /// Ends a request without an answer. The transport must not have sent any part of the answer yet. If the request was to
    /// report an event, the next request reports that event. If a transport already has the answer, the slot becomes free once
    /// the transport asks for the response.
    pub(in crate::frontend::nvme) fn forget_event_request(&mut self, at: u32) {
        self.drop_event_request(at);
        let CommandSlot { queue, cursor: event, phase, .. } = self.slots[at];
        let q = &mut self.queues[queue as usize];
        if let Some(ctrlr) = self.ctrlrs.find(q.cntlid).and_then(|index| self.ctrlrs.get_mut(index)) {
            ctrlr.pending |= event as u8;
            ctrlr.masked &= !(event as u8);
        }
        q.forget(self.slots[at].sqe.cid);
        if phase == Phase::Answered {
            self.slots[at].forgotten = true;
            return;
        }
        self.slots.unlink(&mut q.ring, at);
        self.slots.release(at);
    }

    /// Ends all Asynchronous Event Requests on the queue of slot `at`, for a reset.
    pub(super) fn drop_aers(&mut self, at: u32) {
        let cntlid = self.queues[self.slots[at].queue as usize].cntlid;
        let Some(ctrlr) = self.ctrlrs.find(cntlid).and_then(|index| self.ctrlrs.get_mut(index)) else {
            return;
        };
        let aers = std::mem::replace(&mut ctrlr.aers, [NIL; MAX_AERS]);
        ctrlr.aer_count = 0;
        for aer in aers.into_iter().filter(|&aer| aer != NIL) {
            self.slots[aer].status = Status::ABORTED_SQ_DELETION;
            self.done_later(aer);
        }
    }

    /// Records an event. While the event's type is masked, the event is not reported: the host is about to read the log, which
    /// shows the event.
    pub(super) fn raise(&mut self, index: u32, bit: u8) {
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        if ctrlr.masked & bit == 0 {
            ctrlr.pending |= bit;
            self.fire_events(index);
        }
    }

    /// Unmasks the event type `bit`, since the host has read its log. The next event of this type may be reported.
    pub(super) fn unmask(&mut self, index: u32, bit: u8) {
        if let Some(ctrlr) = self.ctrlrs.get_mut(index) {
            ctrlr.masked &= !bit;
            // The log that the host has read covers the pending event.
            ctrlr.pending &= !bit;
        }
    }

    /// Completes requests with the events that are pending, enabled and not masked.
    pub(super) fn fire_events(&mut self, index: u32) {
        let Some(ctrlr) = self.ctrlrs.get(index) else { return };
        let config = AsyncEventConfig::from_bits(ctrlr.event_config);
        for (bit, enabled, event) in [
            (event_bit::NAMESPACE, config.namespace_attribute, AsyncEvent::NAMESPACE_CHANGED),
            (event_bit::ANA, config.ana_change, AsyncEvent::ANA_CHANGE),
            (event_bit::DISCOVERY, config.discovery_change, AsyncEvent::DISCOVERY_CHANGED),
        ] {
            let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
            if ctrlr.pending & bit == 0 || !enabled || ctrlr.masked & bit != 0 || ctrlr.aer_count == 0 {
                continue;
            }
            let at = std::mem::replace(&mut ctrlr.aers[0], NIL);
            ctrlr.aers.rotate_left(1);
            ctrlr.aer_count -= 1;
            ctrlr.pending &= !bit;
            ctrlr.masked |= bit;
            self.slots[at].result = u64::from(event.dw0());
            self.slots[at].cursor = u32::from(bit);
            self.done_later(at);
        }
    }
}
