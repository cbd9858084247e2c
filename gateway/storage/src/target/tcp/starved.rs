//! Payload memory: who may have how much, and who waits.
//!
//! Who may have how much is [`Shares`]' to say, and beside it there is a block of the reserve for a Connect or an admin
//! command of each connection. Who gets nothing waits in one line.

use super::conn::{Body, BodyKind, Parked, Spill, State};
use super::rx::Taken;
use super::{Conn, Tcp, drop_kept};
use crate::cx::Cx;
use crate::msg::StorageIo;
use crate::target::engine::Engine;
use crate::target::limits::IN_CAPSULE_BYTES;
use crate::target::shares::Shares;
use crate::target::slot::Phase;
use trefoil_poll::Buf;
use trefoil_wire::tcp::Layout;

/// Slots that a connection may have however few are left.
const SLOTS_AT_LEAST: usize = 16;
/// The first block for parked capsules.
const PARKED_AT_LEAST: usize = 32 << 10;

impl Tcp {
    /// A block for `len` bytes, if the connection may have it.
    #[inline]
    pub(super) fn acquire<I: StorageIo>(
        &self,
        engine: &mut Engine,
        cx: &mut Cx<'_, I>,
        c: u32,
        len: u32,
        privileged: bool,
    ) -> Option<Buf> {
        // The reserve is for one small block a connection: anybody may ask for a discovery log, as long as it likes.
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

    /// Whether others wait, so that this connection has to stand in line.
    #[inline]
    pub(super) fn must_queue(&self, c: u32) -> bool {
        !self.starved.is_empty() && self.serving != c
    }

    /// Puts a connection in the line.
    #[cold]
    pub(super) fn starve(&mut self, c: u32) {
        let conn = &mut self.conns[c as usize];
        if !conn.starved {
            conn.starved = true;
            self.starved.push_back(c);
        }
    }

    /// Gets a command its block, or lets it wait.
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
            // Only what this turn's flush sends may be lent: a host that doesn't read must not keep others from
            // writing. A digest is made from bytes that are ours.
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

    /// Gives what has come free to those who wait, one connection after the other. Whether anybody got on.
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
        if !conn.stalled || conn.state != State::Ready {
            return progress;
        }
        conn.stalled = false;
        let used = match conn.spill.take() {
            None => self.consume(engine, cx, c, &[]),
            Some(Spill { buf, at, end }) => {
                let used = self.consume(engine, cx, c, buf.get(at..end).unwrap_or_default());
                let conn = &mut self.conns[c as usize];
                if conn.stalled && conn.state == State::Ready {
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

    /// Whether the connection may take one more slot: the reserve is left alone, and one connection gets at most half of
    /// what is left beyond a few.
    #[inline]
    pub(super) fn may_take_slot(&self, engine: &Engine, c: u32) -> bool {
        let free = engine.slots.free_count().saturating_sub(self.limits.reserved_slots);
        let has = engine.queues[c as usize].ring.len() as usize;
        free > 0 && (has < SLOTS_AT_LEAST || has < free)
    }

    /// A command capsule can't be taken now: it stalls the stream, or is parked if the stream must go on.
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

    /// Takes parked capsules, as far as there is room. Whether there was any.
    fn replay<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>, c: u32) -> bool {
        let conn = &mut self.conns[c as usize];
        // The stream may stand within a header or a body, which is to go on afterwards. A capsule that is just being
        // parked goes on where the block ends, so the block stays where it is.
        let Some(mut parked) = conn.parked.take() else { return false };
        let stream = (conn.in_body, conn.body, conn.stash_len);
        (conn.in_body, conn.stash_len) = (false, 0);
        self.replaying = true;
        let used = self.consume(engine, cx, c, parked.buf.get(parked.at..parked.whole).unwrap_or_default());
        self.replaying = false;
        parked.at += used;
        let conn = &mut self.conns[c as usize];
        if !matches!(conn.state, State::Ready) || parked.at == parked.end {
            drop_kept(&mut engine.shares, cx, c, parked.buf);
        } else {
            conn.parked = Some(parked);
        }
        if conn.state == State::Ready {
            (conn.in_body, conn.body, conn.stash_len) = stream;
        }
        if conn.parked.is_some() {
            self.starve(c);
        }
        used > 0
    }
}

/// Makes room for `len` more parked bytes; says whether there is.
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
