//! Asynchronous events, and what a new topology means to hosts (NVMe base 2.0c §5.2, §8.1).

use super::Kind;
use super::table::event_bit;
use crate::target::engine::{Engine, Step};
use crate::target::limits::MAX_AERS;
use crate::target::queue::QueueState;
use crate::target::slot::{NIL, Phase, Slot};
use crate::topology::{LunId, Namespace, Subsystem, Topology};
use std::sync::Arc;
use trefoil_wire::nvme::feature::AsyncEventConfig;
use trefoil_wire::nvme::{AsyncEvent, Status, admin_opcode};

impl Engine {
    /// An Asynchronous Event Request waits for an event.
    pub(super) fn hold_event_request(&mut self, at: u32, index: u32) -> Step {
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return self.fail(at, Status::INTERNAL_ERROR) };
        let count = usize::from(ctrlr.aer_count);
        if count >= MAX_AERS {
            return self.fail(at, Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
        }
        ctrlr.aers[count] = at;
        ctrlr.aer_count += 1;
        self.slots[at].phase = Phase::Held;
        self.fire_events(index);
        Step::Held
    }

    /// Takes one request off the controller's list.
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

    /// Whether slot `at` holds an Asynchronous Event Request to a controller.
    pub(in crate::target) fn is_event_request(&self, at: u32) -> bool {
        let slot = &self.slots[at];
        let queue = &self.queues[slot.queue as usize];
        queue.state == QueueState::Live
            && queue.qid == 0
            && slot.sqe.opcode == admin_opcode::ASYNC_EVENT_REQUEST
    }

    /// Ends a request of which nothing was sent yet, without an answer. An event that it was to tell waits for the next
    /// request.
    pub(in crate::target) fn forget_event_request(&mut self, at: u32) {
        self.drop_event_request(at);
        let Slot { queue, cursor: event, .. } = self.slots[at];
        let q = &mut self.queues[queue as usize];
        if let Some(ctrlr) = self.ctrlrs.find(q.cntlid).and_then(|index| self.ctrlrs.get_mut(index)) {
            ctrlr.pending |= event as u8;
            ctrlr.masked &= !(event as u8);
        }
        q.forget(self.slots[at].sqe.cid);
        self.slots.unlink(&mut q.ring, at);
        self.slots.release(at);
    }

    /// A reset ends all requests of the queue of slot `at`.
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

    /// Something happened. While its kind is masked the log alone takes it, which the host is about to read.
    pub(super) fn raise(&mut self, index: u32, bit: u8) {
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        if ctrlr.masked & bit == 0 {
            ctrlr.pending |= bit;
            self.fire_events(index);
        }
    }

    /// The host read the log that belongs to `bit`: the next event of the kind may be told.
    pub(super) fn unmask(&mut self, index: u32, bit: u8) {
        if let Some(ctrlr) = self.ctrlrs.get_mut(index) {
            ctrlr.masked &= !bit;
            // What was pending is in what was just read.
            ctrlr.pending &= !bit;
        }
    }

    /// Answers requests with the events that are pending, enabled and not masked.
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

    /// Presents `new` from now on and gives the old snapshot back. Hosts that lost permission are disconnected; others
    /// are told what changed for them.
    pub fn on_topology(&mut self, new: Arc<Topology>) -> Arc<Topology> {
        let old = std::mem::replace(&mut self.topology, new);
        // Zero is what a view that was never looked up has.
        self.epoch = self.epoch.wrapping_add(1).max(1);
        self.leave_portals(&old);
        self.rebind_queues();
        let new = self.topology.clone();
        for at in 0..old.luns.len() {
            let uuid = |t: &Topology| t.luns.get(at).and_then(|lun| lun.as_ref().map(|lun| lun.uuid));
            if uuid(&old) != uuid(&new) {
                self.luns.forget(LunId(at as u32));
            }
        }
        for now in &new.subsystems {
            if let Some(was) = old.subsystems.iter().find(|s| s.nqn == now.nqn) {
                self.tell_differences(&old, was, &new, now);
            }
        }
        if discovery_differs(&old, &new) {
            self.discovery_generation = new.epoch;
            for index in 0..self.ctrlrs.capacity() {
                if self.ctrlrs.get(index).is_some_and(|c| c.kind == Kind::Discovery) {
                    self.raise(index, event_bit::DISCOVERY);
                }
            }
        }
        old
    }

    /// Closes what came by a portal that is gone: another one may have its number next, and offer what this one didn't.
    fn leave_portals(&mut self, old: &Topology) {
        for queue in 0..self.queues.len() as u32 {
            let at = usize::from(self.places[queue as usize].portal.0);
            let is_as_before =
                old.portals.get(at).is_none_or(|was| self.topology.portals.get(at) == Some(was));
            if self.queues[queue as usize].state != QueueState::Free && !is_as_before {
                self.close_later(queue, "its listener is gone");
            }
        }
    }

    /// Finds each queue's subsystem in the new topology, and closes the queues that may not stay.
    fn rebind_queues(&mut self) {
        for queue in 0..self.queues.len() as u32 {
            let q = &self.queues[queue as usize];
            if !matches!(q.state, QueueState::Live | QueueState::Joining) || q.discovery {
                continue;
            }
            if self.subsystem(queue).is_none() {
                let name = self.names[queue as usize].subnqn.as_str();
                let found = self.topology.subsystems.iter().position(|s| s.nqn == name);
                self.queues[queue as usize].subsystem = found.map_or(u32::MAX, |at| at as u32);
            }
            if !self.may_stay(queue) {
                self.close_later(queue, "the host may no longer connect here");
            }
        }
    }

    /// Walks both lists of namespaces, which are sorted, and tells each controller of the subsystem what differs.
    fn tell_differences(&mut self, old: &Topology, was: &Subsystem, new: &Topology, now: &Subsystem) {
        let (mut a, mut b) = (was.namespaces.iter().peekable(), now.namespaces.iter().peekable());
        loop {
            let (before, after) = match (a.peek(), b.peek()) {
                (None, None) => break,
                (Some(x), Some(y)) if x.nsid == y.nsid => (a.next(), b.next()),
                (Some(x), Some(y)) if x.nsid < y.nsid => (a.next(), None),
                (Some(_), None) => (a.next(), None),
                _ => (None, b.next()),
            };
            let attributes = match (before, after) {
                (Some(x), Some(y)) => {
                    x.lun != y.lun || x.ana_group != y.ana_group || !same_shape(old, x, new, y)
                }
                _ => true,
            };
            let ana = matches!((before, after), (Some(x), Some(y)) if x.ana_state != y.ana_state);
            let hosts = matches!((before, after), (Some(x), Some(y)) if x.hosts != y.hosts);
            if attributes || ana || hosts {
                self.tell_difference(now, before, after, attributes, ana);
            }
        }
    }

    fn tell_difference(
        &mut self,
        subsystem: &Subsystem,
        before: Option<&Namespace>,
        after: Option<&Namespace>,
        attributes: bool,
        ana: bool,
    ) {
        let Some(nsid) = before.or(after).map(|n| n.nsid) else { return };
        for index in 0..self.ctrlrs.capacity() {
            let Some(ctrlr) = self.ctrlrs.get_mut(index).filter(|c| c.kind == Kind::Io) else { continue };
            let Some(names) = self.names.get(ctrlr.admin as usize) else { continue };
            if names.subnqn.as_str() != subsystem.nqn {
                continue;
            }
            let sees = |n: Option<&Namespace>| n.is_some_and(|n| n.hosts.contains(names.hostnqn.as_str()));
            let (saw, sees) = (sees(before), sees(after));
            if saw != sees || (sees && attributes) {
                ctrlr.changed.insert(nsid);
                self.raise(index, event_bit::NAMESPACE);
            }
            if sees && ana {
                if let Some(ctrlr) = self.ctrlrs.get_mut(index) {
                    ctrlr.ana_changes += 1;
                }
                self.raise(index, event_bit::ANA);
            }
        }
    }
}

/// Whether Identify Namespace says the same of both namespaces' LUNs.
fn same_shape(old: &Topology, x: &Namespace, new: &Topology, y: &Namespace) -> bool {
    let before = old.luns.get(x.lun.0 as usize).and_then(Option::as_ref);
    let after = new.luns.get(y.lun.0 as usize).and_then(Option::as_ref);
    match (before, after) {
        (Some(a), Some(b)) => {
            let same_size = a.blocks == b.blocks && a.block_bytes == b.block_bytes;
            same_size && a.uuid == b.uuid && a.nguid == b.nguid && a.read_only == b.read_only
        }
        (None, None) => true,
        _ => false,
    }
}

/// Whether any host may find another discovery log.
fn discovery_differs(old: &Topology, new: &Topology) -> bool {
    old.portals != new.portals
        || old.subsystems.len() != new.subsystems.len()
        || old
            .subsystems
            .iter()
            .zip(&new.subsystems)
            .any(|(a, b)| a.nqn != b.nqn || a.hosts != b.hosts || a.portals != b.portals)
}
