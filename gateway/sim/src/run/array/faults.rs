//! The array's faults: outages, crashes, link faults, and namespaces that grow.

use std::time::Duration;

use trefoil_wire::nvme::log::AnaState;

use crate::run::sizes::IMPORTED;
use crate::run::{ARRAY_BACK, ARRAY_SPLIT, ARRAY_START, GRACE, Run};
use crate::world::Crash;

/// Longest duration of a short outage, in milliseconds. Even with the time to notice it and the time to fence, such an outage
/// stays below [`LOSS_TIMEOUT`](super::LOSS_TIMEOUT).
const SHORT: u64 = 1200;
/// Shortest duration of an outage in which hosts give up their commands. Hosts retry a command for 30 s.
const LONG: Duration = Duration::from_secs(34);
/// After this time, every disk operation that was under way has ended, even the slowest.
const SETTLED: Duration = Duration::from_millis(150);
/// Largest size in bytes to which a namespace grows.
const GROWN_MOST: u64 = 2 << 20;

impl Run {
    /// Returns whether the array is up and no operation delayed by the last outage is left.
    fn is_over(&self) -> bool {
        let first = self.workload.borrow().model.first_under_way();
        self.array.as_ref().is_some_and(|array| {
            !array.out && self.world.is_up(array.node) && first.is_none_or(|first| first > array.mark)
        })
    }

    /// Injects a fault into the array or into a link to it.
    pub(in crate::run) fn array_fault(&mut self) {
        let Some(node) = self.array.as_ref().map(|array| array.node) else { return };
        if !self.is_over() {
            return;
        }
        let conns: Vec<_> = self
            .world
            .conns_of(self.gateway)
            .into_iter()
            .filter(|&(c, s)| self.world.peer_of(c, s) == node)
            .collect();
        let Some(&(conn, side)) = conns.get(self.rng.below(conns.len() as u64) as usize) else { return };
        let time = Duration::from_millis(1 + self.rng.below(SHORT));
        match self.rng.below(18) {
            16 | 17 => self.ana_begin(),
            0..3 => {
                self.world.reset(conn);
                self.fired("array-reset");
                self.outage(Duration::from_millis(1));
            }
            3 | 4 => {
                self.world.blacken(conn, if self.rng.below(2) == 0 { side } else { side.other() });
                self.fired("array-half-dead");
                self.outage(Duration::from_millis(1));
            }
            5 => {
                let reset = self.rng.below(2) == 0;
                self.silence_array(reset);
            }
            6 => {
                let to = if self.rng.below(2) == 0 { side } else { side.other() };
                if self.array.as_ref().is_some_and(|array| array.digests)
                    && self.world.bytes_to(conn, to) > 2000
                {
                    self.world.flip_bit(conn, to);
                    self.fired("array-bit-flip");
                    self.outage(Duration::from_millis(1));
                }
            }
            7..10 => {
                // The gateway loses its connections. Data that it sent before arrives only long after that.
                let time = time.clamp(Duration::from_millis(100), Duration::from_millis(900));
                conns.iter().for_each(|&(conn, _)| self.world.stall(conn, time));
                self.world.after(Duration::from_millis(1 + self.rng.below(30)), ARRAY_SPLIT);
                if let Some(array) = &mut self.array {
                    array.split = conns;
                }
                self.fired("array-split");
                self.outage(time);
            }
            10 | 11 => self.array_crash(Crash::Kill, time),
            12 | 13 => self.array_crash(Crash::Power, time),
            14 => self.grow_array(),
            _ => self.lose_array(),
        }
    }

    /// Fails the connections at the gateway's end. The array does not notice.
    pub(in crate::run) fn split_array(&mut self) {
        let conns = self.array.as_mut().map_or(Vec::new(), |array| std::mem::take(&mut array.split));
        conns.into_iter().for_each(|(conn, side)| self.world.fail_one(conn, side));
    }

    /// Silences the array for less than the loss timeout. Returns false if the array can't be silenced now.
    pub(in crate::run) fn silence_array(&mut self, reset: bool) -> bool {
        let Some(node) = self.array.as_ref().map(|array| array.node) else { return false };
        if !self.is_over() {
            return false;
        }
        let time = Duration::from_millis(1 + self.rng.below(SHORT));
        self.world.darken(node, time, reset);
        self.fired("array-silent");
        self.outage(time);
        true
    }

    /// Returns the time that the gateway must stay down if it crashes now.
    pub(in crate::run) fn array_settles(&self) -> Duration {
        let now = self.world.now();
        self.array.as_ref().map_or(Duration::ZERO, |array| SETTLED.max(array.quiet_at.since(now)))
    }

    /// Records that for `time`, the gateway reaches the array only in part, or not at all.
    fn outage(&mut self, time: Duration) {
        let now = self.world.now();
        if let Some(array) = &mut self.array {
            array.out = true;
            array.quiet_at = array.quiet_at.max(now + time + SETTLED);
        }
        self.world.after(time, ARRAY_BACK);
    }

    /// Ends an outage. If no outage is under way, ends the period in which path errors have a cause.
    pub(in crate::run) fn array_back(&mut self) {
        let now = self.world.now();
        let mark = self.workload.borrow().model.last_begun();
        let Some(array) = &mut self.array else { return };
        let all_usable = array.backends.iter().all(|&b| array.usable[b]);
        if !std::mem::take(&mut array.out) {
            if array.lost && all_usable {
                array.lost = false;
                array.refusals.end(now);
                self.workload.borrow_mut().model.path_errors(|_| false);
            }
            return;
        }
        array.mark = mark;
        if array.lost && all_usable {
            self.world.after(GRACE, ARRAY_BACK);
        }
    }

    fn array_crash(&mut self, how: Crash, time: Duration) {
        let Some(node) = self.array.as_ref().map(|array| array.node) else { return };
        self.fired(if how == Crash::Kill { "array-kill" } else { "array-power-cut" });
        self.world.crash(node, how);
        if how == Crash::Power {
            let luns: Vec<_> = (0..self.luns.len()).map(|lun| self.touches(lun, true)).collect();
            self.workload.borrow_mut().model.power_cut(|lun| luns.get(lun).copied().unwrap_or(true));
        }
        self.outage(time);
        self.world.after(time, ARRAY_START);
    }

    /// Darkens the array for longer than the loss timeout and longer than hosts retry. No other fault happens during this outage:
    /// the gateway could not open its pool without the array, and hosts would give up all LUNs.
    fn lose_array(&mut self) {
        if !self.is_settled() {
            return;
        }
        let luns: Vec<_> = (0..self.luns.len()).map(|lun| self.touches(lun, true)).collect();
        let Some(array) = &mut self.array else { return };
        if std::mem::replace(&mut array.was_lost, true) {
            return;
        }
        let (node, time) = (array.node, LONG + Duration::from_millis(self.rng.below(4000)));
        array.lost = true;
        array.refusals.begin(AnaState::Inaccessible);
        self.world.darken(node, time, false);
        self.fired("array-lost");
        self.error_cause = true;
        self.pools.excused = true;
        self.workload.borrow_mut().model.path_errors(|lun| luns.get(lun).copied().unwrap_or(true));
        self.outage(time);
    }

    /// Grows the imported namespace on the array.
    pub(in crate::run) fn grow_array(&mut self) {
        if !self.is_remote(IMPORTED) || !self.array.as_ref().is_some_and(|a| self.world.is_up(a.node)) {
            return;
        }
        let disk = self.world.disk(self.disks[IMPORTED]);
        let len = disk.len_bytes() + (64 << 10);
        if len <= GROWN_MOST {
            disk.grow(len);
            self.publish_array();
        }
    }
}
