//! Payload memory of connections, and the backlog of connections that wait for memory.
//!
//! [`Shares`] decides how much memory a connection may have. In addition, the reserve has one block for each connection's Connect
//! or admin command. All connections that wait for memory or a slot are in one backlog.

use super::conn::{Body, BodyKind, ConnState, Parked, Spill};
use super::rx::Taken;
use super::{Conn, Tcp, drop_kept};
use crate::cx::Cx;
use crate::frontend::limits::IN_CAPSULE_BYTES;
use crate::frontend::nvme::engine::Engine;
use crate::frontend::nvme::slot::Phase;
use crate::frontend::shares::Shares;
use crate::msg::StorageIo;
use trefoil_poll::Buf;
use trefoil_wire::tcp::Layout;

/// Slots that a connection may have even if few slots are left.
const SLOTS_AT_LEAST: usize = 16;
/// The least size of a block for parked capsules.
const PARKED_AT_LEAST: usize = 32 << 10;

impl Tcp {
    /// Allocates a block for `len` bytes, if the connection may have the block.
    #[inline]
    pub(super) fn acquire<I: StorageIo>(
        &self,
        engine: &mut Engine,
        cx: &mut Cx<'_, I>,
        c: u32,
        len: u32,
        privileged: bool,
    ) -> Option<Buf> {
        // The reserve gives one small block a connection: any host may ask for a discovery log, of any length.
        let from_reserve = privileged && len <= IN_CAPSULE_BYTES && engine.shares.holds_nothing(c);
        if !from_reserve && !engine.shares.may_hold(c, len as usize, cx.arena.free_bytes()) {
            return None;
        }
        let buf = cx.arena.alloc(len as usize)?;
        engine.shares.hold(c, buf.len());
        Some(buf)
    }

    /// Takes a block back.
    #[inline]
    pub(super) fn give_back<I: StorageIo>(&self, engine: &mut Engine, cx: &mut Cx<'_, I>, c: u32, buf: Buf) {
        engine.shares.let_go(c, buf.len());
        cx.arena.free(buf);
    }

    /// Returns whether other connections wait, so that this connection must join the backlog.
    #[inline]
    pub(super) fn must_queue(&self, c: u32) -> bool {
        !self.starved.is_empty() && self.serving != c
    }

    /// Adds a connection to the backlog.
    #[cold]
    pub(super) fn starve(&mut self, c: u32) {
        let conn = &mut self.conns[c as usize];
        if !conn.starved {
            conn.starved = true;
            self.starved.push_back(c);
        }
    }

    /// Allocates the block of a command, or makes the command wait.
    #[inline]
    pub(super) fn fund<I: StorageIo>(
        &mut self,
        engine: &mut Engine,
        cx: &mut Cx<'_, I>,
        c: u32,
        at: u32,
        len: u32,
        privileged: bool,
    ) {
        let in_line = !self.conns[c as usize].waiting.is_empty() || (!privileged && self.must_queue(c));
        let buf = if in_line { None } else { self.acquire(engine, cx, c, len, privileged) };
        match buf {
            Some(buf) => self.funded(engine, cx, at, buf),
            None => {
                engine.slots[at].phase = Phase::Memory;
                self.conns[c as usize].waiting.push(&mut engine.slots, at);
                self.starve(c);
            }
        }
    }

    #[inline]
    fn funded<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>, at: u32, buf: Buf) {
        let slot = &mut engine.slots[at];
        slot.buf = Some(buf);
        if slot.gather {
            slot.phase = Phase::Grant;
            self.ready(engine, at);
        } else {
            // Only data that this turn's flush sends may be lent: a host that doesn't read must not block writers. A digest needs
            // bytes that nobody else can change, so such data is not lent.
            let conn = &mut self.conns[slot.queue as usize];
            if conn.may_borrow > 0 && conn.sending.is_none() && !conn.framing.data_digest {
                conn.may_borrow -= 1;
                slot.may_lend = true;
                if let Some(step) = engine.read_now(cx, at) {
                    return self.step(engine, at, step);
                }
            }
            let step = engine.execute(cx, at);
            self.step(engine, at, step);
        }
    }

    /// Gives free memory and slots to the starved connections, one after the other. Returns true if a connection made progress.
    pub fn serve<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>) -> bool {
        let mut progress = false;
        for _ in 0..self.starved.len() {
            let Some(c) = self.starved.pop_front() else { break };
            self.serving = c;
            self.conns[c as usize].starved = false;
            progress |= self.serve_one(engine, cx, c);
            self.serving = u32::MAX;
        }
        progress
    }

    fn serve_one<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>, c: u32) -> bool {
        let mut progress = false;
        while let Some(at) = self.conns[c as usize].waiting.front() {
            let privileged = engine.queues[c as usize].qid == 0;
            let len = engine.slots[at].len;
            let Some(buf) = self.acquire(engine, cx, c, len, privileged) else {
                self.starve(c);
                break;
            };
            self.conns[c as usize].waiting.pop(&mut engine.slots);
            self.funded(engine, cx, at, buf);
            progress = true;
        }
        progress |= self.replay(engine, cx, c);
        let conn = &mut self.conns[c as usize];
        if !conn.stalled || conn.state != ConnState::Ready {
            return progress;
        }
        conn.stalled = false;
        let used = match conn.spill.take() {
            None => self.consume(engine, cx, c, &[]),
            Some(Spill { buf, at, end }) => {
                let used = self.consume(engine, cx, c, buf.get(at..end).unwrap_or_default());
                let conn = &mut self.conns[c as usize];
                if conn.stalled && conn.state == ConnState::Ready {
                    conn.spill = Some(Spill { buf, at: at + used, end });
                } else {
                    drop_kept(&mut engine.shares, cx, c, buf);
                }
                used
            }
        };
        self.arm(engine, cx, c);
        progress || used > 0 || !self.conns[c as usize].stalled
    }

    /// Returns whether the connection may take one more slot. The reserve stays free. A connection with [`SLOTS_AT_LEAST`] slots
    /// or more may take another only while it has fewer slots than are free beyond the reserve, so it gets at most half of them.
    #[inline]
    pub(super) fn may_take_slot(&self, engine: &Engine, c: u32) -> bool {
        let free = engine.slots.free_count().saturating_sub(self.limits.reserved_slots);
        let has = engine.queues[c as usize].ring.len() as usize;
        free > 0 && (has < SLOTS_AT_LEAST || has < free)
    }

    /// Postpones a command capsule that can't be taken now. The capsule stalls the stream, or is parked if the stream must go on.
    #[cold]
    pub(super) fn later<I: StorageIo>(
        &mut self,
        engine: &mut Engine,
        cx: &mut Cx<'_, I>,
        c: u32,
        layout: &Layout,
        header: &[u8],
    ) -> Taken {
        let conn = &mut self.conns[c as usize];
        if self.replaying || conn.grants == 0 {
            return Taken::Stalled;
        }
        if !make_room(conn, &mut engine.shares, cx, c, layout.total_len() as usize) {
            self.kill(engine, cx, c, "no memory for what it sent");
            return Taken::Dead;
        }
        let conn = &mut self.conns[c as usize];
        let Some(parked) = &mut conn.parked else { return Taken::Stalled };
        let end = parked.end + header.len();
        if let Some(to) = parked.buf.get_mut(parked.end..end) {
            to.copy_from_slice(header);
        }
        parked.end = end;
        let rest = layout.total_len() - header.len() as u32;
        conn.body = Body { kind: BodyKind::Parked, data_left: rest, at: end as u32, ..Body::NONE };
        conn.in_body = rest > 0;
        if rest == 0 {
            parked.whole = end;
        }
        self.starve(c);
        Taken::Yes
    }

    /// Takes as many parked capsules as there is room for. Returns true if at least one capsule was taken.
    fn replay<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>, c: u32) -> bool {
        let conn = &mut self.conns[c as usize];
        // The stream may be in the middle of a header or a body, and goes on there afterwards. A capsule that is being parked
        // goes on at the end of the block, so the block must not move.
        let Some(mut parked) = conn.parked.take() else { return false };
        let stream = (conn.in_body, conn.body, conn.stash_len);
        (conn.in_body, conn.stash_len) = (false, 0);
        self.replaying = true;
        let used = self.consume(engine, cx, c, parked.buf.get(parked.at..parked.whole).unwrap_or_default());
        self.replaying = false;
        parked.at += used;
        let conn = &mut self.conns[c as usize];
        if !matches!(conn.state, ConnState::Ready) || parked.at == parked.end {
            drop_kept(&mut engine.shares, cx, c, parked.buf);
        } else {
            conn.parked = Some(parked);
        }
        if conn.state == ConnState::Ready {
            (conn.in_body, conn.body, conn.stash_len) = stream;
        }
        if conn.parked.is_some() {
            self.starve(c);
        }
        used > 0
    }
}

/// Makes room for `len` more parked bytes. Returns false if the memory is not available.
fn make_room<I: StorageIo>(
    conn: &mut Conn,
    shares: &mut Shares,
    cx: &mut Cx<'_, I>,
    c: u32,
    len: usize,
) -> bool {
    let (at, end) = conn.parked.as_ref().map_or((0, 0), |parked| (parked.at, parked.end));
    if conn.parked.as_ref().is_some_and(|parked| end + len <= parked.buf.len()) {
        return true;
    }
    let len = (end - at + len).max(PARKED_AT_LEAST);
    if !shares.may_keep(c, len, cx.arena.free_bytes()) {
        return false;
    }
    let Some(buf) = cx.arena.alloc(len) else { return false };
    shares.keep(c, buf.len());
    let mut moved = Parked { at: 0, whole: 0, end: 0, buf };
    if let Some(old) = conn.parked.take() {
        let bytes = old.buf.get(at..end).unwrap_or_default();
        moved.buf.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        (moved.whole, moved.end) = (old.whole - at, end - at);
        drop_kept(shares, cx, c, old.buf);
    }
    conn.parked = Some(moved);
    true
}
