//! Faults of nodes, and faults of the links between nodes.

use std::time::Duration;

use trefoil_poll::errno::ECONNRESET;

use crate::memory::{crash_drop, crash_machines};
use crate::net::NodeId;
use crate::net::{ConnId, Holder, Side};
use crate::world::drive::Core;
use crate::world::{Crash, Machine, World};

impl<M: Send, H: Machine<M>> World<M, H> {
    /// Returns the live connections of `node` to other nodes, each with the side of `node`.
    pub fn conns_of(&self, node: NodeId) -> Vec<(ConnId, Side)> {
        let mut conns = self.ends_of(node);
        conns.retain(|&(conn, side)| self.peer_of(conn, side) != node);
        conns
    }

    /// Returns the live connection ends at `node`.
    fn ends_of(&self, node: NodeId) -> Vec<(ConnId, Side)> {
        let mut found = Vec::new();
        for (i, conn) in self.conns.iter().enumerate() {
            for side in [Side::Client, Side::Server] {
                let end = &conn.ends[side as usize];
                if end.node == node && !matches!(end.holder, Holder::Gone) && end.error.is_none() {
                    found.push((ConnId(i as u32), side));
                }
            }
        }
        found
    }

    /// Returns the node at the other end of the connection.
    pub fn peer_of(&self, conn: ConnId, side: Side) -> NodeId {
        self.conns[conn.0 as usize].ends[side.other() as usize].node
    }

    /// Returns the number of bytes that were ever sent towards `side`.
    pub fn bytes_to(&self, conn: ConnId, side: Side) -> u64 {
        self.conns[conn.0 as usize].ends[side as usize].rx.total
    }

    /// Resets a connection at both ends.
    pub fn reset(&mut self, conn: ConnId) {
        self.story.tell(self.now, format_args!("fault: connection {} is reset", conn.0));
        self.schedule_fail(conn, Side::Client, ECONNRESET);
        self.schedule_fail(conn, Side::Server, ECONNRESET);
    }

    /// Fails a connection at `side` only. The other side notices only when `side` closes the connection.
    pub fn fail_one(&mut self, conn: ConnId, side: Side) {
        self.story.tell(self.now, format_args!("fault: connection {} fails for the {side:?} alone", conn.0));
        self.fail_now(conn, side, ECONNRESET);
    }

    /// Stops all transfer on a connection for a while.
    pub fn stall(&mut self, conn: ConnId, time: Duration) {
        self.story.tell(self.now, format_args!("fault: connection {} stalls for {time:?}", conn.0));
        let until = self.now + time;
        let c = &mut self.conns[conn.0 as usize];
        c.stalled_until = c.stalled_until.max(until);
    }

    /// From now on, nothing arrives at `side`. Neither side gets a notice.
    pub fn blacken(&mut self, conn: ConnId, side: Side) {
        self.story
            .tell(self.now, format_args!("fault: nothing comes to the {side:?} of connection {}", conn.0));
        self.conns[conn.0 as usize].black[side as usize] = true;
    }

    /// Flips a bit in one of the next segments to `side`.
    pub fn flip_bit(&mut self, conn: ConnId, side: Side) {
        self.story
            .tell(self.now, format_args!("fault: a bit flips to the {side:?} of connection {}", conn.0));
        self.conns[conn.0 as usize].flips[side as usize] += 1;
    }

    /// Darkens the network around `node` for a while: nothing arrives, and no node gets a notice. Afterwards the connections
    /// continue if `reset` is false, or are reset if `reset` is true.
    pub fn darken(&mut self, node: NodeId, time: Duration, reset: bool) {
        let name = &self.nodes[node.0 as usize].name;
        self.story.tell(self.now, format_args!("fault: {name} vanishes for {time:?}, then reset={reset}"));
        let until = self.now + time;
        self.node(node).dark_until = until;
        for (conn, _) in self.conns_of(node) {
            let c = &mut self.conns[conn.0 as usize];
            c.stalled_until = c.stalled_until.max(until);
            if reset {
                self.schedule_fail(conn, Side::Client, ECONNRESET);
                self.schedule_fail(conn, Side::Server, ECONNRESET);
            }
        }
    }

    /// Pauses a core: it gets no turn for a while.
    pub fn pause(&mut self, node: NodeId, core: u16, time: Duration) {
        let until = self.now + time;
        if let Some(c) = self.node(node).cores.get_mut(usize::from(core)) {
            c.paused_until = until;
            self.story
                .tell(self.now, format_args!("fault: core {core} of node {} pauses for {time:?}", node.0));
        }
    }

    /// Crashes a node. The node stays down until [`World::start`].
    pub fn crash(&mut self, node: NodeId, how: Crash) {
        let n = self.node(node);
        if !n.up {
            return;
        }
        (n.up, n.powered) = (false, how == Crash::Kill);
        let line = format_args!("fault: {} crashes: {how:?}", self.nodes[node.0 as usize].name);
        self.story.tell(self.now, line);
        self.listeners.retain(|_, &mut at| at != node);
        for job in self.nodes[node.0 as usize].cores.iter().flat_map(|core| core.jobs.iter().flatten()) {
            if let Some((disk, change)) = job.change() {
                self.disks[disk as usize].1.interrupt(change, &mut self.rng);
            }
        }
        if how == Crash::Power {
            for (_, disk) in self.disks.iter_mut().filter(|(owner, _)| *owner == node) {
                disk.cut_power(&mut self.rng);
            }
        }
        self.drop_cores(node);
        for (conn, side) in self.ends_of(node) {
            let c = &mut self.conns[conn.0 as usize];
            c.end(side).holder = Holder::Gone;
            c.end(side).rx.discard();
            match how {
                Crash::Kill => self.schedule_fail(conn, side.other(), ECONNRESET),
                Crash::Power => self.conns[conn.0 as usize].black[side.other() as usize] = true,
            }
        }
        // This includes ends that failed earlier and were not closed. No core is left to take their later events.
        for end in self.conns.iter_mut().flat_map(|c| &mut c.ends).filter(|end| end.node == node) {
            end.holder = Holder::Gone;
        }
    }

    pub(super) fn drop_cores(&mut self, node: NodeId) {
        let n = self.node(node);
        let left = (
            std::mem::take(&mut n.to_control),
            std::mem::take(&mut n.control),
            std::mem::take(&mut n.accepted),
        );
        let (machines, parts): (Vec<_>, Vec<_>) =
            std::mem::take(&mut n.cores).into_iter().map(Core::part).unzip();
        crash_drop((left, parts));
        crash_machines(machines.into_iter().flatten().collect(), H::into_arena);
    }

    /// Resets stale connection ends: ends at peers that are still live although their connection belongs to an earlier life of
    /// `node`.
    pub(super) fn reset_stale_peers(&mut self, node: NodeId) {
        let stale: Vec<_> = (0..self.conns.len() as u32)
            .map(ConnId)
            .flat_map(|conn| [(conn, Side::Client), (conn, Side::Server)])
            .filter(|&(conn, side)| {
                let ends = &self.conns[conn.0 as usize].ends;
                ends[side as usize].node == node
                    && matches!(ends[side as usize].holder, Holder::Gone)
                    && self.conns[conn.0 as usize].black[side.other() as usize]
                    && !matches!(ends[side.other() as usize].holder, Holder::Gone)
            })
            .collect();
        for (conn, side) in stale {
            self.conns[conn.0 as usize].black[side.other() as usize] = false;
            self.schedule_fail(conn, side.other(), ECONNRESET);
        }
    }
}
