//! Applies a new topology to the connected hosts, a bounded piece a turn.
//!
//! A new topology is in force for every command at once: a namespace is looked up anew, and so is whether the host may be
//! here at all ([`Engine::subsystem`]). What takes a walk over all that is connected is done by a [`Sweep`] in the turns
//! that follow: queues that may not stay are closed, and controllers are told what changed for them. Control is told that
//! the topology is in force once that is done, so that there is seldom more than one sweep.

use super::Kind;
use super::table::event_bit;
use crate::target::engine::Engine;
use crate::target::queue::QueueState;
use crate::topology::{LunId, Namespace, Topology};
use std::sync::Arc;

/// What one turn of a sweep may cost, in steps: a look at a queue, at a namespace, or at a controller with a namespace. Each
/// takes two searches in a host list at most, some 100 ns, so that a turn takes about 100 us.
pub const STEPS_A_TURN: usize = 1024;
/// What it costs to close a queue: as much as its messages and its up to 256 commands take time.
const CLOSE_STEPS: usize = 16;
/// Sweeps that can wait. Control publishes one topology after the other, so that there are two only after it gave a slow
/// core up.
pub const MAX_SWEEPS: usize = 4;

/// The walk from one topology to the next.
#[derive(Debug)]
pub struct Sweep {
    old: Arc<Topology>,
    new: Arc<Topology>,
    /// The discovery log is another one.
    discovery: bool,
    place: Place,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// May this queue stay?
    Queue(u32),
    /// Does this LUN number belong to another LUN now?
    Lun(usize),
    /// What differs in this subsystem of the new topology?
    Subsystem(usize),
    /// What differs in a subsystem between these namespaces, and what is that to this controller?
    Namespace {
        subsystem: usize,
        before: usize,
        was: usize,
        is: usize,
        ctrlr: u32,
    },
    /// Is this the controller of a host that wants to know of the discovery log?
    Discovery(u32),
    End,
}

impl Engine {
    /// Presents `new` from now on. [`Engine::sweep`] then applies it to the connected hosts.
    pub fn on_topology(&mut self, new: Arc<Topology>) {
        debug_assert!(
            new.subsystems.is_sorted_by(|a, b| a.nqn < b.nqn),
            "subsystems are found by their order"
        );
        let old = std::mem::replace(&mut self.topology, new.clone());
        // Zero is what a view that was never looked up has.
        self.epoch = self.epoch.wrapping_add(1).max(1);
        let discovery = discovery_differs(&old, &new);
        if discovery {
            self.discovery_generation = new.epoch;
        }
        self.sweeps.push_back(Sweep { old, new, discovery, place: Place::Queue(0) });
    }

    /// Goes on with the oldest sweep. At its end gives the topology that is no longer needed, and the epoch of the one
    /// after it.
    pub fn sweep(&mut self) -> Option<(u64, Arc<Topology>)> {
        let mut sweep = self.sweeps.pop_front()?;
        // With too many waiting, this one is done at once: it costs a long turn, and no memory.
        let mut left = if self.sweeps.len() < MAX_SWEEPS { STEPS_A_TURN } else { usize::MAX };
        while left > 0 {
            if matches!(sweep.place, Place::End) {
                // Its other handle is not the last one: that topology is in force, or waits as the next sweep's old one.
                return Some((sweep.new.epoch, sweep.old));
            }
            left = left.saturating_sub(self.sweep_step(&mut sweep));
        }
        self.sweeps.push_front(sweep);
        None
    }

    /// Returns whether a sweep is under way: controllers have to be told something, or queues have to be closed.
    #[inline]
    pub fn is_sweeping(&self) -> bool {
        !self.sweeps.is_empty() || self.closing.is_some()
    }

    /// Closes the connections of hosts that may no longer be here, or of all: some with each [`Engine::close_some`].
    pub fn close_hosts(&mut self, all: bool) {
        let all = all || self.closing.is_some_and(|(_, all)| all);
        self.closing = Some((0, all));
    }

    /// Goes on with that.
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

    /// One step; gives what it cost.
    fn sweep_step(&mut self, sweep: &mut Sweep) -> usize {
        #[cfg(test)]
        crate::topology::work::add(1);
        match sweep.place {
            Place::Queue(queue) if (queue as usize) < self.queues.len() => {
                sweep.place = Place::Queue(queue + 1);
                if self.rebind(queue, &sweep.old) { 1 } else { CLOSE_STEPS }
            }
            Place::Queue(_) => self.go_on(sweep, Place::Lun(0)),
            Place::Lun(at) if at < sweep.old.luns.len() => {
                let uuid = |t: &Topology| t.luns.get(at).and_then(|lun| lun.as_ref().map(|lun| lun.uuid));
                if uuid(&sweep.old) != uuid(&sweep.new) {
                    self.luns.forget(LunId(at as u32));
                }
                self.go_on(sweep, Place::Lun(at + 1))
            }
            Place::Lun(_) => self.go_on(sweep, Place::Subsystem(0)),
            Place::Subsystem(subsystem) => {
                let place = match sweep.new.subsystems.get(subsystem) {
                    None if sweep.discovery => Place::Discovery(0),
                    None => Place::End,
                    Some(now) => match sweep.old.subsystem(&now.nqn) {
                        None => Place::Subsystem(subsystem + 1),
                        Some((before, _)) => Place::Namespace { subsystem, before, was: 0, is: 0, ctrlr: 0 },
                    },
                };
                self.go_on(sweep, place)
            }
            Place::Namespace { subsystem, before, was, is, ctrlr } => {
                let place = self.compare(sweep, subsystem, before, (was, is), ctrlr);
                self.go_on(sweep, place)
            }
            Place::Discovery(index) if index < self.ctrlrs.capacity() => {
                if self
                    .ctrlrs
                    .get(index)
                    .is_some_and(|c| c.kind == Kind::Discovery && c.born < sweep.new.epoch)
                {
                    self.raise(index, event_bit::DISCOVERY);
                }
                self.go_on(sweep, Place::Discovery(index + 1))
            }
            Place::Discovery(_) | Place::End => self.go_on(sweep, Place::End),
        }
    }

    fn go_on(&self, sweep: &mut Sweep, place: Place) -> usize {
        sweep.place = place;
        1
    }

    /// Finds the queue's subsystem in the topology in force, and closes the queue if it may not stay. Returns
    /// whether the queue stays.
    fn rebind(&mut self, queue: u32, old: &Topology) -> bool {
        let q = &self.queues[queue as usize];
        let portal = self.places[queue as usize].portal;
        // Another one may have the portal's number next, and offer what this one didn't.
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

    /// One step of the walk over a subsystem's namespaces of before and of now, both sorted: looks at what comes next in
    /// them, and if it differs, tells one controller. Gives the next step.
    fn compare(
        &mut self,
        sweep: &Sweep,
        subsystem: usize,
        before: usize,
        (was, is): (usize, usize),
        ctrlr: u32,
    ) -> Place {
        let (Some(old), Some(new)) = (sweep.old.subsystems.get(before), sweep.new.subsystems.get(subsystem))
        else {
            return Place::Subsystem(subsystem + 1);
        };
        let (x, y) = match (old.namespaces.get(was), new.namespaces.get(is)) {
            (None, None) => return Place::Subsystem(subsystem + 1),
            (Some(x), Some(y)) if x.nsid < y.nsid => (Some(x), None),
            (Some(x), Some(y)) if x.nsid > y.nsid => (None, Some(y)),
            either => either,
        };
        let next = Place::Namespace {
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
            named && c.kind == Kind::Io && c.born < sweep.new.epoch
        });
        if is_told {
            self.tell_difference(ctrlr, x, y, difference);
        }
        Place::Namespace { subsystem, before, was, is, ctrlr: ctrlr + 1 }
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

/// How a namespace differs from what had its NSID before.
#[derive(Clone, Copy, Debug)]
struct Difference {
    /// In what Identify says, or it is there only before or after.
    attributes: bool,
    /// In its ANA state.
    ana: bool,
    /// Perhaps in who sees it.
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

/// Returns whether Identify Namespace says the same of both namespaces' LUNs.
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
