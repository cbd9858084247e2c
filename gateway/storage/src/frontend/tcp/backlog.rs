//! The connections that wait for memory or a command slot: how each continues, and where its received bytes stay meanwhile.

use super::command::Next;
use super::conn::{Body, BodyKind, ConnState, Parked, Unparsed};
use super::rx::Taken;
use super::{Conn, Tcp};
use crate::cx::Cx;
use crate::frontend::memory::PayloadMemory;
use crate::frontend::shared::Shared;
use crate::msg::StorageIo;
use trefoil_poll::Buf;
use trefoil_wire::tcp::Layout;

/// The least size of a block for parked capsules.
const PARKED_AT_LEAST: usize = 32 << 10;

impl Tcp {
    /// Continues a command that now has its block.
    #[inline]
    pub(super) fn funded<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        at: u32,
        next: Next,
        block: Buf,
    ) {
        if next == Next::Block {
            self.commands[at].next = Next::R2t;
            shared.engine.give_block(at, block);
            return self.output(c, at);
        }
        // Lend only data that this turn's flush sends: a host that doesn't read must not block writers. A digest needs bytes
        // that no write can change meanwhile, so data with a digest is not lent.
        let conn = &mut self.conns[c as usize];
        let may_lend = conn.may_borrow > 0 && conn.sending.is_none() && !conn.framing.data_digest;
        conn.may_borrow -= usize::from(may_lend);
        let step = shared.engine.read(cx, at, block, may_lend);
        self.step(shared, at, step);
    }

    /// Gives free memory and slots to the connections in the backlog, one after the other. Returns true if a connection made
    /// progress.
    pub fn serve<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>) -> bool {
        let mut progress = false;
        for _ in 0..shared.memory.backlog() {
            let Some(c) = shared.memory.serve_next() else { break };
            progress |= self.serve_one(shared, cx, c);
            shared.memory.served();
        }
        progress
    }

    fn serve_one<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>, c: u32) -> bool {
        let mut progress = false;
        // A Connect that gets its block here can end the queue's privilege.
        while let Some((at, block)) = shared.memory.next_funded(cx, c, shared.engine.queue(c).is_privileged())
        {
            self.funded(shared, cx, c, at, self.commands[at].next, block);
            progress = true;
        }
        progress |= self.replay(shared, cx, c);
        let conn = &mut self.conns[c as usize];
        if !conn.stalled || conn.state != ConnState::Ready {
            return progress;
        }
        conn.stalled = false;
        let used = match conn.unparsed.take() {
            None => self.consume(shared, cx, c, &[]),
            Some(Unparsed { buf, at, end }) => {
                let used = self.consume(shared, cx, c, buf.get(at..end).unwrap_or_default());
                let conn = &mut self.conns[c as usize];
                if conn.stalled && conn.state == ConnState::Ready {
                    conn.unparsed = Some(Unparsed { buf, at: at + used, end });
                } else {
                    shared.memory.drop_kept(cx, c, buf);
                }
                used
            }
        };
        self.arm(shared, cx, c);
        progress || used > 0 || !self.conns[c as usize].stalled
    }

    /// Postpones a command capsule for which there is no slot or memory. The capsule stalls the stream. If the stream must
    /// continue (an R2T's data is pending), parks the capsule instead.
    #[cold]
    pub(super) fn later<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        layout: &Layout,
        header: &[u8],
    ) -> Taken {
        let conn = &mut self.conns[c as usize];
        if self.replaying || conn.grants == 0 {
            return Taken::Stalled;
        }
        if !make_room(conn, &mut shared.memory, cx, c, layout.total_len() as usize) {
            self.kill(shared, cx, c, "no memory for what it sent");
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
        shared.memory.queue(c);
        Taken::Yes
    }

    /// Takes as many parked capsules as there is room for. Returns true if the connection took at least one capsule.
    fn replay<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>, c: u32) -> bool {
        let conn = &mut self.conns[c as usize];
        // The stream may be in the middle of a header or a body, and continues there afterwards. The rest of a capsule that is
        // being parked goes to the end of the block, so the block must not move.
        let Some(mut parked) = conn.parked.take() else { return false };
        let stream = (conn.in_body, conn.body, conn.stash_len);
        (conn.in_body, conn.stash_len) = (false, 0);
        self.replaying = true;
        let used = self.consume(shared, cx, c, parked.buf.get(parked.at..parked.whole).unwrap_or_default());
        self.replaying = false;
        parked.at += used;
        let conn = &mut self.conns[c as usize];
        if !matches!(conn.state, ConnState::Ready) || parked.at == parked.end {
            shared.memory.drop_kept(cx, c, parked.buf);
        } else {
            conn.parked = Some(parked);
        }
        if conn.state == ConnState::Ready {
            (conn.in_body, conn.body, conn.stash_len) = stream;
        }
        if conn.parked.is_some() {
            shared.memory.queue(c);
        }
        used > 0
    }
}

/// Makes room for `len` more parked bytes. Returns false if the memory is not available.
fn make_room<I: StorageIo>(
    conn: &mut Conn,
    memory: &mut PayloadMemory,
    cx: &mut Cx<'_, I>,
    c: u32,
    len: usize,
) -> bool {
    let (at, end) = conn.parked.as_ref().map_or((0, 0), |parked| (parked.at, parked.end));
    if conn.parked.as_ref().is_some_and(|parked| end + len <= parked.buf.len()) {
        return true;
    }
    let len = (end - at + len).max(PARKED_AT_LEAST);
    let Some(buf) = memory.keep(cx, c, len) else { return false };
    let mut moved = Parked { at: 0, whole: 0, end: 0, buf };
    if let Some(old) = conn.parked.take() {
        let bytes = old.buf.get(at..end).unwrap_or_default();
        moved.buf.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        (moved.whole, moved.end) = (old.whole - at, end - at);
        memory.drop_kept(cx, c, old.buf);
    }
    conn.parked = Some(moved);
    true
}
