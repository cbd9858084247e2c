//! Applies a new topology to the connected hosts, a bounded piece a turn.
//!
//! A new topology is in force for every command at once: each command looks up its namespace in the new topology, and checks
//! that the host is still allowed ([`Engine::subsystem`]). In the turns that follow, a [`Sweep`] does the work for all
//! connected hosts. The sweep closes queues of hosts that are no longer allowed, and reports changes to controllers. Control
//! learns only at the end of the sweep that the topology is in force, so more than one sweep at a time is rare.

use crate::frontend::nvme::ctrlr::{CtrlrKind, event_bit};
use crate::frontend::nvme::engine::Engine;
use crate::frontend::nvme::queue::QueueState;
use crate::frontend::nvme::sweep::{MAX_SWEEPS, Sweep, SweepCursor};
use crate::topology::{LunId, Namespace, Topology};
use std::sync::Arc;

/// The cost limit of one turn of a sweep, in steps. A step examines a queue, a namespace, or a controller with a namespace.
/// Each step takes at most two searches in a host list, some 100 ns. So a turn takes about 100 us.
pub const STEPS_A_TURN: usize = 1024;
/// Cost of closing a queue, in steps. The queue's messages and its commands (up to 256) take as long as this many steps.
const CLOSE_STEPS: usize = 16;

impl Engine {
    /// Presents `new` from now on. [`Engine::sweep`] then applies `new` to the connected hosts.
    pub fn on_topology(&mut self, new: Arc<Topology>) {
        debug_assert!(
            new.subsystems.is_sorted_by(|a, b| a.nqn < b.nqn),
            "subsystems are found by their order"
        );
        let old = std::mem::replace(&mut self.topology, new.clone());
        // Epoch zero marks a view that was never looked up.
        self.epoch = self.epoch.wrapping_add(1).max(1);
        let discovery = discovery_differs(&old, &new);
        if discovery {
            self.discovery_generation = new.epoch;
        }
        self.sweeps.push_back(Sweep { old, new, discovery, place: SweepCursor::Queue(0) });
    }

    /// Continues the oldest sweep. At the sweep's end, returns the epoch of the new topology. Also returns the old topology,
    /// which this core no longer needs.
    pub fn sweep(&mut self) -> Option<(u64, Arc<Topology>)> {
        let mut sweep = self.sweeps.pop_front()?;
        // If too many sweeps wait, complete this sweep in this turn: the turn takes long, but the list of sweeps needs no more
        // memory.
        let mut left = if self.sweeps.len() < MAX_SWEEPS { STEPS_A_TURN } else { usize::MAX };
        while left > 0 {
            if matches!(sweep.place, SweepCursor::End) {
                // Dropping `new` never frees that topology: it is in force, or it is the old topology of the next sweep.
                return Some((sweep.new.epoch, sweep.old));
            }
            left = left.saturating_sub(self.sweep_step(&mut sweep));
        }
        self.sweeps.push_front(sweep);
        None
    }

    /// Returns whether this core must still report changes to controllers, or close queues.
    #[inline]
    pub fn is_sweeping(&self) -> bool {
        !self.sweeps.is_empty() || self.closing.is_some()
    }

    /// Starts to close the connections of hosts that are no longer allowed, or all connections. Each call of
    /// [`Engine::close_some`] closes some of these connections.
    pub fn close_hosts(&mut self, all: bool) {
        let all = all || self.closing.is_some_and(|(_, all)| all);
        self.closing = Some((0, all));
    }

    /// Closes the next connections for [`Engine::close_hosts`].
    pub fn close_some(&mut self) {
        let Some((mut queue, all)) = self.closing.take() else { return };
        let mut left = STEPS_A_TURN;
        while left > 0 {
            let Some(state) = self.queues.get(queue as usize).map(|q| q.state) else { return };
            let gone = match state {
                QueueState::Free => false,
                QueueState::New => all,
                QueueState::Joining | QueueState::Live => all || !self.may_stay(queue),
            };
            if gone {
                self.close_later(queue, "the host may not connect here");
            }
            left = left.saturating_sub(if gone { CLOSE_STEPS } else { 1 });
            queue += 1;
        }
        self.closing = Some((queue, all));
    }

    /// Does one step and returns its cost.
    fn sweep_step(&mut self, sweep: &mut Sweep) -> usize {
        #[cfg(test)]
        crate::topology::work::add(1);
        match sweep.place {
            SweepCursor::Queue(queue) if (queue as usize) < self.queues.len() => {
                sweep.place = SweepCursor::Queue(queue + 1);
                if self.rebind(queue, &sweep.old) { 1 } else { CLOSE_STEPS }
            }
            SweepCursor::Queue(_) => self.go_on(sweep, SweepCursor::Lun(0)),
            SweepCursor::Lun(at) if at < sweep.old.luns.len() => {
                let uuid = |t: &Topology| t.luns.get(at).and_then(|lun| lun.as_ref().map(|lun| lun.uuid));
                if uuid(&sweep.old) != uuid(&sweep.new) {
                    self.luns.forget(LunId(at as u32));
                }
                self.go_on(sweep, SweepCursor::Lun(at + 1))
            }
            SweepCursor::Lun(_) => self.go_on(sweep, SweepCursor::Subsystem(0)),
            SweepCursor::Subsystem(subsystem) => {
                let place = match sweep.new.subsystems.get(subsystem) {
                    None if sweep.discovery => SweepCursor::Discovery(0),
                    None => SweepCursor::End,
                    Some(now) => match sweep.old.subsystem(&now.nqn) {
                        None => SweepCursor::Subsystem(subsystem + 1),
                        Some((before, _)) => {
                            SweepCursor::Namespace { subsystem, before, was: 0, is: 0, ctrlr: 0 }
                        }
                    },
                };
                self.go_on(sweep, place)
            }
            SweepCursor::Namespace { subsystem, before, was, is, ctrlr } => {
                let place = self.compare(sweep, subsystem, before, (was, is), ctrlr);
                self.go_on(sweep, place)
            }
            SweepCursor::Discovery(index) if index < self.ctrlrs.capacity() => {
                if self
                    .ctrlrs
                    .get(index)
                    .is_some_and(|c| c.kind == CtrlrKind::Discovery && c.born < sweep.new.epoch)
                {
                    self.raise(index, event_bit::DISCOVERY);
                }
                self.go_on(sweep, SweepCursor::Discovery(index + 1))
            }
            SweepCursor::Discovery(_) | SweepCursor::End => self.go_on(sweep, SweepCursor::End),
        }
    }

    fn go_on(&self, sweep: &mut Sweep, place: SweepCursor) -> usize {
        sweep.place = place;
        1
    }

    /// Finds the queue's subsystem in the topology in force. Closes the queue if its host may not stay connected. Returns
    /// whether the queue stays.
    fn rebind(&mut self, queue: u32, old: &Topology) -> bool {
        let q = &self.queues[queue as usize];
        let portal = self.places[queue as usize].portal;
        // Another portal may have this portal's number now, and offer other subsystems.
        if q.state != QueueState::Free && self.topology.lacks_portal_of(old, portal) {
            self.close_later(queue, "its listener is gone");
            return false;
        }
        if !matches!(q.state, QueueState::Live | QueueState::Joining) || q.discovery {
            return true;
        }
        let found = self.topology.subsystem(self.names[queue as usize].subnqn.as_str());
        self.queues[queue as usize].subsystem = found.map_or(u32::MAX, |(at, _)| at as u32);
        let stays = self.may_stay(queue);
        if !stays {
            self.close_later(queue, "the host may no longer connect here");
        }
        stays
    }

    /// Does one step of the walk over a subsystem's old and new namespaces, both sorted. Examines the next namespace. If this
    /// namespace differs, reports the difference to one controller. Returns the next step.
    fn compare(
        &mut self,
        sweep: &Sweep,
        subsystem: usize,
        before: usize,
        (was, is): (usize, usize),
        ctrlr: u32,
    ) -> SweepCursor {
        let (Some(old), Some(new)) = (sweep.old.subsystems.get(before), sweep.new.subsystems.get(subsystem))
        else {
            return SweepCursor::Subsystem(subsystem + 1);
        };
        let (x, y) = match (old.namespaces.get(was), new.namespaces.get(is)) {
            (None, None) => return SweepCursor::Subsystem(subsystem + 1),
            (Some(x), Some(y)) if x.nsid < y.nsid => (Some(x), None),
            (Some(x), Some(y)) if x.nsid > y.nsid => (None, Some(y)),
            either => either,
        };
        let next = SweepCursor::Namespace {
            subsystem,
            before,
            was: was + usize::from(x.is_some()),
            is: is + usize::from(y.is_some()),
            ctrlr: 0,
        };
        let difference = Difference::between(sweep, x, y);
        if !difference.is_any() || ctrlr >= self.ctrlrs.capacity() {
            return next;
        }
        let is_told = self.ctrlrs.get(ctrlr).is_some_and(|c| {
            let named = self.names.get(c.admin as usize).is_some_and(|n| n.subnqn.as_str() == new.nqn);
            named && c.kind == CtrlrKind::Io && c.born < sweep.new.epoch
        });
        if is_told {
            self.tell_difference(ctrlr, x, y, difference);
        }
        SweepCursor::Namespace { subsystem, before, was, is, ctrlr: ctrlr + 1 }
    }

    fn tell_difference(
        &mut self,
        index: u32,
        before: Option<&Namespace>,
        after: Option<&Namespace>,
        difference: Difference,
    ) {
        let Some(nsid) = before.or(after).map(|n| n.nsid) else { return };
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        let Some(names) = self.names.get(ctrlr.admin as usize) else { return };
        let sees = |n: Option<&Namespace>| n.is_some_and(|n| n.hosts.contains(names.hostnqn.as_str()));
        let (saw, sees) = (sees(before), sees(after));
        if sees && difference.ana {
            ctrlr.ana_changes += 1;
        }
        if saw != sees || (sees && difference.attributes) {
            ctrlr.changed.insert(nsid);
            self.raise(index, event_bit::NAMESPACE);
        }
        if sees && difference.ana {
            self.raise(index, event_bit::ANA);
        }
    }
}

/// The differences between a namespace and the earlier namespace with the same NSID.
#[derive(Clone, Copy, Debug)]
struct Difference {
    /// True if Identify data differs, or if the namespace is only in one of the two topologies.
    attributes: bool,
    /// True if the ANA state differs.
    ana: bool,
    /// True if the set of hosts that see the namespace may differ.
    hosts: bool,
}

impl Difference {
    fn between(sweep: &Sweep, before: Option<&Namespace>, after: Option<&Namespace>) -> Self {
        let (Some(x), Some(y)) = (before, after) else {
            return Self { attributes: true, ana: false, hosts: false };
        };
        Self {
            attributes: x.lun != y.lun
                || x.ana_group != y.ana_group
                || !same_shape(&sweep.old, x, &sweep.new, y),
            ana: x.ana_state != y.ana_state,
            hosts: !x.hosts.is_same(&y.hosts),
        }
    }

    fn is_any(self) -> bool {
        self.attributes || self.ana || self.hosts
    }
}

/// Returns whether Identify Namespace reports the same data for the LUNs of both namespaces.
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

/// Returns whether the discovery log may differ for any host.
fn discovery_differs(old: &Topology, new: &Topology) -> bool {
    old.portals != new.portals
        || old.discovery != new.discovery
        || old.subsystems.len() != new.subsystems.len()
        || old
            .subsystems
            .iter()
            .zip(&new.subsystems)
            .any(|(a, b)| a.nqn != b.nqn || a.hosts != b.hosts || a.portals != b.portals)
}
