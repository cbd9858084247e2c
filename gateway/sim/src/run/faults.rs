//! The faults of a run.

use std::time::Duration;

use trefoil_storage::msg::Survey;

use super::sizes::{GROW_BLOCKS, GROWN, GROWN_MOST, REPLACED, SERVERS};
use super::{CUT, DISCONNECT, Frontend, HEAL, PATIENCE, RESTART, Run, SPLIT, UNBAN};
use crate::disk::DiskFault;
use crate::net::NodeId;
use crate::node::Node;
use crate::server::{KATO, host_nqn};
use crate::simio::SOCKETS;
use crate::world::Crash;

/// Every kind of fault, and some consequences of faults. A large set of seeds must produce each of them at least once.
pub const FAULTS: [&str; 64] = [
    "link-reset",
    "paused-reset",
    "link-stall",
    "link-split",
    "half-dead",
    "vanish",
    "bit-flip",
    "kill",
    "power-cut",
    "crash-in-open",
    "crash-in-import",
    "crash-in-create",
    "crash-in-grow",
    "crash-in-delete",
    "cut-after-change",
    "read-eio",
    "write-eio",
    "sync-eio",
    "disk-full",
    "disk-slow",
    "core-pause",
    "host-silent",
    "host-banned",
    "lun-remove",
    "lun-delete",
    "lun-create",
    "lun-grow",
    "republish",
    "memory-remove",
    "memory-read-only",
    "memory-grow",
    "memory-kept",
    "memory-lost",
    "slow-reader",
    "loan-sent",
    "loan-cut",
    "request-waited",
    "array-reset",
    "array-half-dead",
    "array-silent",
    "array-split",
    "array-bit-flip",
    "array-kill",
    "array-power-cut",
    "array-lost",
    "array-ana",
    "array-no-zeroes",
    "array-few-queues",
    "host-disconnects",
    "array-grown",
    "hostile-icreq",
    "hostile-header",
    "hostile-truncated",
    "hostile-data",
    "hostile-digest",
    "hostile-twice",
    "hostile-flood",
    "hostile-slow",
    "hostile-deaf",
    "hostile-no-data",
    "hostile-many-conns",
    "hostile-idle-discovery",
    "hostile-cut-join",
    "hostile-refused",
];

impl Run {
    pub(super) fn heal(&mut self) {
        self.each_disk(|disk| disk.fault = DiskFault::default());
        self.workload.borrow_mut().model.excused = false;
    }

    pub(super) fn fault(&mut self) {
        if !self.world.is_up(self.gateway) || self.is_lost() {
            return;
        }
        let (done, failed) = self.workload.borrow().model.counts();
        let now = self.world.now();
        // While servers wait for a fence to end, the run injects few faults, so that the work advances between faults.
        let few = self.frontend == Frontend::NvmeTcp && done + failed < self.finished_at_fault + 40;
        if few && now.since(self.last_fault) > PATIENCE {
            return;
        }
        // A crash tests most in the middle of a change to the layout. Such a change takes longer when turns come late.
        let rare = match self.pools.is_changing() {
            true if self.world.weather.late_turns.is_zero() => 6,
            true => 30,
            // Connecting to an array takes a while. A crash during this time tests nothing.
            false if self.array.is_some() => 100,
            false => 25,
        };
        if self.pools.crash_kind().is_some() && self.rng.below(rare) == 0 {
            let how = if self.rng.below(2) == 0 { Crash::Kill } else { Crash::Power };
            return self.crash(how);
        }
        if self.frontend == Frontend::NvmeTcp {
            if few && self.rng.below(400) > 0 {
                return;
            }
            if !few {
                self.last_fault = now;
                self.finished_at_fault = done + failed;
            }
            if self.rng.below(2) == 0 {
                return if self.is_upset() { self.upset(few) } else { self.link_fault() };
            }
            if self.array.is_some() && self.rng.below(40) == 0 {
                return self.grow_array();
            }
        }
        if !few && self.hostile.is_some() && self.rng.below(6) == 0 {
            return self.attack();
        }
        if self.frontend == Frontend::NvmeTcp && !self.is_upset() && self.rng.below(8) == 0 {
            return self.host_fault();
        }
        match self.rng.below(25) {
            // Another crash tests little if no work was done since the last crash. Every restart is expensive.
            0 | 1 if few => {}
            0 => self.crash(Crash::Kill),
            1 => self.crash(Crash::Power),
            2 | 3 => self.disk_fault("read-eio", |fault| fault.read_eio = 200),
            4 | 5 => self.disk_fault("write-eio", |fault| fault.write_eio = 200),
            6 | 7 => self.disk_fault("sync-eio", |fault| fault.sync_eio = 300),
            8 | 9 => self.disk_fault("disk-full", |fault| fault.full = true),
            10 | 11 => self.disk_fault("disk-slow", |fault| fault.slow = 20),
            12 | 13 => {
                let (core, time) = (self.rng.below(self.cores.into()) as u16, self.rng.below(2000));
                self.world.pause(self.gateway, core, Duration::from_micros(time));
                self.fired("core-pause");
            }
            14..17 => self.remove(),
            17 | 18 => self.grow(),
            19..22 => self.memory_fault(),
            22 | 23 => self.slow_reader(),
            _ => {
                if self.is_settled() {
                    self.publish();
                    self.fired("republish");
                }
            }
        }
    }

    /// Pauses a server for a while. The server reads nothing meanwhile, but stays connected.
    fn slow_reader(&mut self) {
        let Some(&node) = self.servers.get(self.rng.below(SERVERS.into()) as usize) else { return };
        let time = Duration::from_micros(1 + self.rng.below(100_000));
        self.world.pause(node, 0, time);
        self.fired("slow-reader");
    }

    /// Silences a server for longer than its KATO while its connections stay open, or bans the server for a while.
    fn host_fault(&mut self) {
        let server = self.rng.below(u64::from(SERVERS)) as u16;
        if self.rng.below(2) == 0 {
            let time = 2 * KATO + Duration::from_millis(self.rng.below(1000));
            self.world.pause(self.servers[usize::from(server)], 0, time);
            self.fired("host-silent");
        } else if self.is_settled() && self.banned.is_none() {
            self.banned = Some(server);
            self.pools.stale = true;
            self.pool_step();
            let time = Duration::from_millis(1 + self.rng.below(200));
            self.world.after(time, UNBAN);
            self.fired("host-banned");
        }
    }

    /// Lets the banned server connect again. If the ban has taken effect, first checks that the server has no connection left.
    pub(super) fn unban(&mut self) {
        let Some(server) = self.banned else { return };
        let in_force = self.world.is_up(self.gateway) && self.is_published();
        if !in_force {
            return self.world.after(Duration::from_millis(5), UNBAN);
        }
        for core in 0..self.cores {
            let mut survey = Survey { qpairs: Vec::with_capacity(SOCKETS), ..Survey::default() };
            if let Some(Node::Gateway(gateway)) = self.world.machine(self.gateway, core) {
                gateway.target().survey(&mut survey);
            }
            if survey.qpairs.iter().any(|row| row.host_nqn.as_str() == host_nqn(server)) {
                let what = format!("server {server} is still connected to core {core}, and may not be");
                self.workload.borrow_mut().model.violate(what);
            }
        }
        self.banned = None;
        self.pools.stale = true;
        self.pool_step();
    }

    /// Injects a fault of the array. The hosts' links only become slow, unless the seed lets hosts disconnect during outages.
    fn upset(&mut self, few: bool) {
        // An outage tests little if no command is under way.
        let both = self.array.as_ref().is_some_and(|array| array.both);
        if both && self.rng.below(8) == 0 {
            return self.link_fault();
        }
        if both && !few && self.rng.below(4) == 0 {
            if self.silence_array(true) {
                self.world.after(Duration::from_millis(1 + self.rng.below(300)), DISCONNECT);
            }
            return;
        }
        if !few && self.rng.below(4) > 0 {
            return self.array_fault();
        }
        let conns = self.world.conns_of(self.gateway);
        let Some(&(conn, side)) = conns.get(self.rng.below(conns.len() as u64) as usize) else { return };
        if self.servers.contains(&self.world.peer_of(conn, side)) {
            self.world.stall(conn, Duration::from_micros(self.rng.below(50_000)));
            self.fired("link-stall");
        }
    }

    /// Resets all connections of a host while the array is silent.
    pub(super) fn disconnect_host(&mut self) {
        let server = self.servers[self.rng.below(u64::from(SERVERS)) as usize];
        for (conn, _) in self.world.conns_of(server) {
            self.world.reset(conn);
        }
        self.fired("host-disconnects");
    }

    fn link_fault(&mut self) {
        let conns = self.world.conns_of(self.gateway).into_iter();
        let conns: Vec<_> =
            conns.filter(|&(conn, side)| self.servers.contains(&self.world.peer_of(conn, side))).collect();
        let Some(&(conn, side)) = conns.get(self.rng.below(conns.len() as u64) as usize) else { return };
        let time = Duration::from_micros(self.rng.below(50_000));
        // If commands wait for other commands on the same blocks, resets should hit both the waiting commands and the commands
        // that they wait for.
        let waits = (0..self.cores)
            .find(|&core| self.world.machine(self.gateway, core).is_some_and(|node| node.waiting() > 0));
        if waits.is_some() && self.rng.below(2) == 0 {
            return self.paused_reset(waits, self.world.peer_of(conn, side));
        }
        match self.rng.below(10) {
            0 | 1 => {
                self.world.reset(conn);
                self.fired("link-reset");
            }
            8 => self.paused_reset(None, self.world.peer_of(conn, side)),
            9 => {
                // The server loses its connections and opens new ones. Data that it sent before arrives only long after that.
                let server = self.world.peer_of(conn, side);
                self.split = self.world.conns_of(server);
                let time = Duration::from_millis(20 + self.rng.below(80));
                self.split.iter().for_each(|&(conn, _)| self.world.stall(conn, time));
                self.world.after(Duration::from_micros(self.rng.below(5000)), SPLIT);
                self.fired("link-split");
            }
            2 | 3 => {
                self.world.stall(conn, time);
                self.fired("link-stall");
            }
            4 => {
                self.world.blacken(conn, if self.rng.below(2) == 0 { side } else { side.other() });
                self.fired("half-dead");
            }
            5 => {
                let reset = self.rng.below(2) == 0;
                // With an array, only the server goes dark. The gateway stays reachable, because the array has outages of its
                // own.
                let dark = if self.array.is_some() { self.world.peer_of(conn, side) } else { self.gateway };
                self.world.darken(dark, time * 60, reset);
                if dark == self.gateway {
                    self.disturbances += 1;
                    self.dark_until = self.world.now() + time * 60;
                }
                self.fired("vanish");
            }
            _ => {
                let to = if self.rng.below(2) == 0 { side } else { side.other() };
                if (self.digests || self.flip_unprotected) && self.world.bytes_to(conn, to) > 2000 {
                    self.world.flip_bit(conn, to);
                    self.workload.borrow_mut().bits_flip = true;
                    self.fired("bit-flip");
                }
            }
        }
    }

    /// Pauses one core (a random core if `core` is None) and resets some connections of `server`. In the core's next turn, some
    /// commands hold lent memory, some wait for memory, and some are already gone.
    fn paused_reset(&mut self, core: Option<u16>, server: NodeId) {
        let core = core.unwrap_or_else(|| self.rng.below(self.cores.into()) as u16);
        self.world.pause(self.gateway, core, Duration::from_micros(200));
        for (conn, _) in self.world.conns_of(server) {
            if self.rng.below(3) == 0 {
                self.world.reset(conn);
            }
        }
        self.fired("paused-reset");
    }

    /// Fails the connections at the server's end. The gateway does not notice.
    pub(super) fn split_host(&mut self) {
        let conns = std::mem::take(&mut self.split);
        conns.into_iter().for_each(|(conn, side)| self.world.fail_one(conn, side));
    }

    /// Reacts to an acknowledged change of the layout. In half of the cases, cuts the power before a flush of another operation
    /// can save the change.
    pub(super) fn layout_changed(&mut self) {
        if self.rng.below(2) == 0 {
            self.world.after(Duration::ZERO, CUT);
        }
    }

    pub(super) fn cut_after_change(&mut self) {
        if self.calm.is_none() && self.world.is_up(self.gateway) && !self.is_lost() {
            self.fired("cut-after-change");
            self.crash(Crash::Power);
        }
    }

    fn crash(&mut self, how: Crash) {
        self.fired(if how == Crash::Kill { "kill" } else { "power-cut" });
        if let Some(kind) = self.pools.crash_kind() {
            self.fired(kind);
        }
        self.memory_crash(how);
        self.world.crash(self.gateway, how);
        self.disturbances += 1;
        self.pools.crash();
        self.restarted = true;
        let luns: Vec<_> = (0..self.luns.len()).map(|lun| self.touches(lun, false)).collect();
        let mut workload = self.workload.borrow_mut();
        match self.frontend {
            Frontend::Direct => {
                workload.serving = false;
                workload.model.crash(how == Crash::Power);
            }
            Frontend::NvmeTcp if how == Crash::Power => {
                workload.model.power_cut(|lun| luns.get(lun).copied().unwrap_or(true));
            }
            Frontend::NvmeTcp => {}
        }
        drop(workload);
        self.publish_left = 0;
        let pause = Duration::from_micros(50 + self.rng.below(2000));
        self.world.after(pause.max(self.array_settles()), RESTART);
    }

    fn disk_fault(&mut self, kind: &'static str, set: fn(&mut DiskFault)) {
        let disk = self.disks[self.rng.below(self.disks.len() as u64) as usize];
        set(&mut self.world.disk(disk).fault);
        self.workload.borrow_mut().model.excuse();
        self.pools.excused = true;
        self.error_cause = true;
        let time = Duration::from_micros(100 + self.rng.below(400));
        self.world.after(time, HEAL);
        self.fired(kind);
    }

    fn remove(&mut self) {
        if self.is_settled() {
            self.workload.borrow_mut().model.close(REPLACED);
            self.error_cause = true;
            (self.pools.removing, self.pools.stale) = (true, true);
            self.pool_step();
            self.fired("lun-remove");
        }
    }

    fn grow(&mut self) {
        if self.is_settled()
            && let Some(blocks) =
                self.pools.blocks(GROWN).filter(|&blocks| blocks < self.scaled(GROWN, GROWN_MOST))
        {
            self.pools.grow_to = Some(blocks + self.scaled(GROWN, GROW_BLOCKS));
            self.pool_step();
        }
    }
}
