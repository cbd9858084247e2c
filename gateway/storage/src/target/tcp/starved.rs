//! Payload memory: who may have how much, and who waits.
//!
//! A connection of I/O may hold one request's worth, or an eighth of what is free, so that a greedy one leaves room for
//! others as the arena fills (dynamic thresholds, Choudhury and Hahne 1998). The reserve is for Connect, admin commands
//! and bytes that were received beyond what could be started. Who gets nothing waits in one line.

use super::conn::{Spill, State};
use super::{Conn, Tcp};
use crate::cx::Cx;
use crate::msg::StorageIo;
use crate::target::engine::Engine;
use crate::target::slot::Phase;
use trefoil_poll::Buf;
use trefoil_poll::arena::MIN_BLOCK_BYTES;

/// A connection may hold this share of what is free.
const SHARE: usize = 8;

impl Tcp {
    /// A block for `len` bytes, if the connection may have it.
    #[inline]
    pub(super) fn acquire<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        c: u32,
        len: u32,
        privileged: bool,
    ) -> Option<Buf> {
        let conn = &mut self.conns[c as usize];
        if !privileged && !may_hold(conn, cx.arena.free_bytes(), len as usize, self.limits.reserved_bytes) {
            return None;
        }
        let buf = cx.arena.alloc(len as usize)?;
        conn.held_bytes += buf.len();
        Some(buf)
    }

    /// Takes a block back.
    #[inline]
    pub(super) fn give_back<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, c: u32, buf: Buf) {
        let conn = &mut self.conns[c as usize];
        conn.held_bytes = conn.held_bytes.saturating_sub(buf.len());
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
        let buf = if in_line { None } else { self.acquire(cx, c, len, privileged) };
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
            let Some(buf) = self.acquire(cx, c, engine.slots[at].len, privileged) else {
                self.starve(c);
                return progress;
            };
            self.conns[c as usize].waiting.pop(&mut engine.slots);
            self.funded(engine, cx, at, buf);
            progress = true;
        }
        let conn = &mut self.conns[c as usize];
        if !conn.stalled || conn.state != State::Ready {
            return progress;
        }
        conn.stalled = false;
        match conn.spill.take() {
            None => {
                self.consume(engine, cx, c, &[]);
            }
            Some(Spill { buf, at, end }) => {
                let used = self.consume(engine, cx, c, buf.get(at..end).unwrap_or_default());
                progress |= used > 0;
                let conn = &mut self.conns[c as usize];
                if conn.stalled && conn.state == State::Ready {
                    conn.spill = Some(Spill { buf, at: at + used, end });
                } else {
                    cx.arena.free(buf);
                }
            }
        }
        self.arm(engine, cx, c);
        progress || !self.conns[c as usize].stalled
    }
}

#[inline]
fn may_hold(conn: &Conn, free_bytes: usize, len: usize, reserved_bytes: usize) -> bool {
    let block = len.max(MIN_BLOCK_BYTES).next_power_of_two();
    let after = conn.held_bytes + block;
    free_bytes >= reserved_bytes + block && (conn.held_bytes == 0 || after <= free_bytes / SHARE)
}
