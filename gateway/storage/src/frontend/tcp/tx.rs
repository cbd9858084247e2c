//! Turns pending output into PDUs. A connection gets at most one send list in a turn.

use super::Tcp;
use super::command::Next;
use super::conn::{Conn, ConnState, LOANS};
use crate::cx::Cx;
use crate::frontend::limits::{CONTROLLER_ALIGNMENT_BYTES, MAX_H2C_DATA_BYTES};
use crate::frontend::nvme::engine::Response;
use crate::frontend::shared::Shared;
use crate::msg::StorageIo;
use trefoil_poll::{SendList, SockId};
use trefoil_wire::nvme::{Cqe, Status};
use trefoil_wire::tcp::{
    C2hData, CapsuleResp, DIGEST_LEN, FatalStatus, IcResp, R2t, TermReq, TermReqDirection, digest,
};

/// The most header bytes of one command: C2HData with its digest, padded to 128; the data digest; a response with its digest.
const HEAD_BYTES: usize = 128 + DIGEST_LEN + CapsuleResp::LEN + DIGEST_LEN;

impl Tcp {
    /// Sends the pending output of every connection that has no send in flight. Returns true if at least one connection had
    /// output.
    pub fn flush<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>) -> bool {
        let mut worked = false;
        while let Some(c) = self.dirty.front().copied() {
            let conn = &self.conns[c as usize];
            if conn.sending.is_none() && conn.has_output() {
                // If no list is free, all later connections wait too. Each completed send returns a list.
                let Some(list) = self.lists.pop() else { break };
                self.flush_one(shared, cx, c, list);
                worked = true;
            }
            self.dirty.pop_front();
            self.conns[c as usize].dirty = false;
        }
        worked
    }

    fn flush_one<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        mut list: Box<SendList>,
    ) {
        let conn = &mut self.conns[c as usize];
        if conn.state == ConnState::Terminating {
            if let Some(status) = conn.term.take() {
                put_terminate(conn, status, &mut list);
            }
        } else {
            if std::mem::take(&mut conn.ic_resp) {
                put_ic_resp(conn, &mut list);
            }
            while let Some(at) = self.conns[c as usize].ready.first() {
                if !list.fits(HEAD_BYTES, true) {
                    break;
                }
                self.commands.pop(&mut self.conns[c as usize].ready);
                self.put(shared, cx, c, at, &mut list);
            }
        }
        // The remaining output waits until the host reads.
        for at in self.commands.iter(&self.conns[c as usize].ready) {
            shared.engine.end_loan(at);
        }
        if list.is_empty() {
            // The host has given up all commands that had a response waiting.
            return self.lists.push(list);
        }
        let conn = &mut self.conns[c as usize];
        conn.may_borrow = LOANS;
        (conn.sending, conn.taken_bytes) = (Some(cx.io.now()), None);
        if conn.timer.is_none() {
            self.ensure_timer(shared, c);
        }
        cx.io.send(SockId(c), list);
    }

    /// Adds the R2T or the response of one command to the list.
    #[inline]
    fn put<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        at: u32,
        list: &mut SendList,
    ) {
        if self.commands[at].next == Next::R2t {
            if !shared.engine.is_aborted(at) {
                return self.put_r2t(shared, c, at, list);
            }
            shared.engine.fail(at, Status::ABORT_REQUESTED);
        }
        let Some(response) = shared.engine.respond(cx, at) else { return };
        let Response { cqe, len, mut block, loan, is_plain } = response;
        let conn = &self.conns[c as usize];
        let (header_digest, data_digest) = (conn.framing.header_digest, conn.framing.data_digest);
        // Without SQ flow control, a response would say only what the SUCCESS flag says (NVMe-oF TCP 1.0c §3.6.2.9).
        let success = len > 0 && is_plain;
        if len > 0
            && let Some(data) = block.take()
        {
            let pdu = C2hData { cid: cqe.cid, offset_bytes: 0, len_bytes: len, last: true, success };
            put_c2h_header(conn, &pdu, list);
            let crc = data_digest.then(|| digest(data.get(..len as usize).unwrap_or_default()));
            match loan {
                Some(loan) => list.push_loan(loan, data),
                None => list.push_buf(data, 0, len as usize),
            }
            if let Some(crc) = crc {
                list.push_head(DIGEST_LEN).copy_from_slice(&crc.to_le_bytes());
            }
        }
        if !success {
            put_response(cqe, header_digest, list);
        }
        if let Some(block) = block {
            shared.memory.give_back(cx, c, block);
        }
    }

    /// Adds one R2T for all of a command's data, so that any MAXR2T suffices.
    fn put_r2t(&mut self, shared: &mut Shared, c: u32, at: u32, list: &mut SendList) {
        let Some(cid) = shared.engine.cid(c, at) else { return };
        let conn = &mut self.conns[c as usize];
        let command = &mut self.commands[at];
        command.next = Next::Data;
        conn.grants += 1;
        conn.asked = true;
        conn.large_grants += u32::from(Self::is_large(command.len));
        let r2t = R2t { cid, ttag: at as u16, offset_bytes: 0, len_bytes: command.len };
        let header_digest = conn.framing.header_digest;
        put_header::<{ R2t::LEN }>(list, R2t::LEN, header_digest, |bytes| r2t.emit(header_digest, bytes));
    }
}

/// Writes a header of `LEN` bytes, its digest if there is one, and zeros up to `total` bytes.
#[inline]
fn put_header<const LEN: usize>(
    list: &mut SendList,
    total: usize,
    header_digest: bool,
    emit: impl FnOnce(&mut [u8; LEN]),
) {
    let bytes = list.push_head(total.max(LEN + if header_digest { DIGEST_LEN } else { 0 }));
    let Some((header, rest)) = bytes.split_first_chunk_mut::<LEN>() else { return };
    emit(header);
    if header_digest && let Some(to) = rest.first_chunk_mut() {
        *to = digest(header).to_le_bytes();
    }
}

#[inline]
fn put_response(cqe: Cqe, header_digest: bool, list: &mut SendList) {
    put_header(list, CapsuleResp::LEN, header_digest, |bytes: &mut [u8; CapsuleResp::LEN]| {
        CapsuleResp { cqe }.emit(header_digest, bytes);
    });
}

#[inline]
fn put_c2h_header(conn: &Conn, pdu: &C2hData, list: &mut SendList) {
    let (header_digest, data_digest) = (conn.framing.header_digest, conn.framing.data_digest);
    let alignment = conn.host_alignment_bytes;
    let bare = C2hData::LEN + if header_digest { DIGEST_LEN } else { 0 };
    let total = bare.next_multiple_of(alignment as usize);
    put_header(list, total, header_digest, |bytes: &mut [u8; C2hData::LEN]| {
        let header = pdu.emit(header_digest, data_digest, alignment, bytes);
        debug_assert_eq!(usize::from(header.pdo), total);
    });
}

/// Returns the target's answer to an ICReq that asks for these digests.
pub fn ic_resp(header_digest: bool, data_digest: bool) -> IcResp {
    IcResp {
        controller_alignment_bytes: CONTROLLER_ALIGNMENT_BYTES,
        header_digest,
        data_digest,
        max_h2c_data_bytes: MAX_H2C_DATA_BYTES,
    }
}

fn put_ic_resp(conn: &Conn, list: &mut SendList) {
    let response = ic_resp(conn.framing.header_digest, conn.framing.data_digest);
    put_header(list, IcResp::LEN, false, |bytes| response.emit(bytes));
}

fn put_terminate(conn: &Conn, status: FatalStatus, list: &mut SendList) {
    let offender = conn.stash.get(..conn.stash_len).unwrap_or_default();
    let mut bytes = [0; TermReq::MAX_LEN];
    let len = TermReq { status, offender }.emit(TermReqDirection::ControllerToHost, &mut bytes);
    list.push_head(len).copy_from_slice(bytes.get(..len).unwrap_or_default());
}
