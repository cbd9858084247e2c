//! The hostile host in a run: when it attacks, and what its attacks result in.

use super::Run;
use super::sizes::{ARENA_BYTES, CORES, PORT, SERVERS};
use crate::hostile::{ATTACKS, Cut, HostileCore};
use crate::memory::arena;
use crate::node::Node;

impl Run {
    pub(super) fn start_hostile(&mut self) {
        let Some(node) = self.hostile else { return };
        let home = self.homes[usize::from(CORES + SERVERS) + 2];
        let addr = self.world.addr(self.gateway, PORT);
        self.world.start(node, 1, |io| {
            Node::Hostile(Box::new(HostileCore::new(io, arena(home, ARENA_BYTES), addr)))
        });
    }

    /// Starts an attack. The run counts the attack as a fault once the attack has its answer.
    pub(super) fn attack(&mut self) {
        let which = self.rng.below(ATTACKS.len() as u64) as usize;
        self.attack_with(which);
    }

    /// Starts an attack that begins with a write. If the array accepts no writes at this time, the gateway must fail the write
    /// with a status that states the reason.
    pub(super) fn attack_the_unreachable(&mut self) {
        if let Some(which) = ATTACKS.iter().position(|(kind, _)| *kind == "hostile-twice") {
            self.attack_with(which);
        }
    }

    fn attack_with(&mut self, which: usize) {
        let Some(node) = self.hostile.filter(|_| self.world.now() >= self.dark_until) else { return };
        let bits = self.rng.bits();
        // This attack requests data and does not read it. The gateway must be able to read that data, so the LUN must not be on
        // the array.
        if ATTACKS[which].0 == "hostile-deaf" && self.touches(0, true) {
            return;
        }
        let epoch = self.disturbances;
        self.world.with(node, 0, |node, _| {
            if let Node::Hostile(core) = node {
                core.attack(which, bits, epoch);
            }
        });
    }

    /// Keeps the standing attack running: starts it whenever it is not under way.
    pub(super) fn keep_attacking(&mut self) {
        let is_reachable = self.world.is_up(self.gateway) && self.is_published();
        let Some(node) = self.hostile.filter(|_| is_reachable && self.world.now() >= self.dark_until) else {
            return;
        };
        let epoch = self.disturbances;
        if let Some(Node::Hostile(core)) = self.world.machine(node, 0)
            && !core.stands()
        {
            self.world.with(node, 0, |node, _| {
                if let Node::Hostile(core) = node {
                    core.stand(epoch);
                }
            });
        }
    }

    /// Judges the results of attacks. An attack that nothing cut off must have got the required answer.
    pub(super) fn judge_attacks(&mut self) {
        let Some(Node::Hostile(core)) = self.hostile.and_then(|node| self.world.machine(node, 0)) else {
            return;
        };
        for verdict in core.take_verdicts() {
            match verdict.result {
                Ok(()) => self.fired(verdict.kind),
                Err(Cut::Refused { since, status }) if self.may_refuse(0, since, status) => {
                    let now = self.world.now();
                    self.fired("hostile-refused");
                    self.world.story.tell(now, format_args!("{} was cut off: {status}", verdict.kind));
                }
                Err(Cut::Refused { since, status }) => {
                    let (kind, now) = (verdict.kind, self.world.now());
                    self.workload.borrow_mut().model.violate(format!(
                        "{kind}: {status} from {since:?} to {now:?}, when LUN 0 could be reached"
                    ));
                }
                Err(_) if verdict.epoch != self.disturbances => {}
                Err(Cut::Gone(why)) => {
                    let now = self.world.now();
                    self.world.story.tell(now, format_args!("{} was cut off: {why}", verdict.kind));
                }
                Err(Cut::Wrong(what)) => {
                    self.workload.borrow_mut().model.violate(format!("{}: {what}", verdict.kind));
                }
            }
        }
    }
}
