//! Moves the data after a header into the slot's block, and computes the CRC of the data if there is a digest.

use super::Tcp;
use super::command::Next;
use super::conn::{Body, BodyKind};
use crate::cx::Cx;
use crate::frontend::shared::Shared;
use crate::list::NIL;
use crate::msg::StorageIo;
use trefoil_poll::Buf;
use trefoil_wire::nvme::Status;
use trefoil_wire::tcp::digest_append;

impl Tcp {
    /// Takes the part of `bytes` that belongs to the body, and returns its length. `bytes` must not be empty.
    #[inline]
    pub(super) fn body<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        bytes: &[u8],
    ) -> usize {
        let conn = &mut self.conns[c as usize];
        let body = &mut conn.body;
        let padding = (body.pad_left as usize).min(bytes.len());
        body.pad_left -= padding as u32;
        let data = part(bytes, padding, body.data_left as usize);
        if !data.is_empty() {
            let block = match body.kind {
                BodyKind::Parked => conn.parked.as_mut().map(|parked| &mut *parked.buf),
                _ if body.slot == NIL => None,
                _ => shared.engine.block(body.slot),
            };
            if let Some(to) = block.and_then(|b| b.get_mut(body.at as usize..body.at as usize + data.len())) {
                to.copy_from_slice(data);
            }
            if body.digested {
                body.crc = digest_append(body.crc, data);
            }
            body.at += data.len() as u32;
            body.data_left -= data.len() as u32;
            // While an R2T's data is pending, only this data counts as progress.
            if body.kind == BodyKind::H2c || conn.grants == 0 {
                conn.data_bytes += data.len() as u64;
            }
        }
        let mut used = padding + data.len();
        if body.data_left == 0 && body.digest_left > 0 {
            let digest = part(bytes, used, usize::from(body.digest_left));
            let have = body.digest.len() - usize::from(body.digest_left);
            body.digest.iter_mut().skip(have).zip(digest).for_each(|(to, from)| *to = *from);
            body.digest_left -= digest.len() as u8;
            used += digest.len();
        }
        if body.pad_left == 0 && body.data_left == 0 && body.digest_left == 0 {
            self.finish_body(shared, cx, c);
        }
        used
    }

    /// Takes a block that the driver has filled with the remaining data of the body.
    pub(super) fn body_filled<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        buf: Buf,
    ) {
        let conn = &mut self.conns[c as usize];
        conn.data_bytes += u64::from(conn.body.data_left);
        let body = &mut conn.body;
        let (from, to) = (body.at as usize, body.at as usize + body.data_left as usize);
        if body.digested {
            body.crc = digest_append(body.crc, buf.get(from..to).unwrap_or_default());
        }
        body.at += body.data_left;
        body.data_left = 0;
        let digest_left = body.digest_left;
        shared.engine.give_block(body.slot, buf);
        if digest_left == 0 {
            self.finish_body(shared, cx, c);
        }
    }

    #[inline]
    fn finish_body<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>, c: u32) {
        let conn = &mut self.conns[c as usize];
        conn.in_body = false;
        if conn.grants == 0 {
            conn.pending_since = None;
        }
        let Body { slot: at, kind, at: end, digested, crc, digest, .. } = conn.body;
        if kind == BodyKind::Parked
            && let Some(parked) = &mut conn.parked
        {
            (parked.whole, parked.end) = (end as usize, end as usize);
        }
        if at == NIL {
            return;
        }
        if digested && crc != u32::from_le_bytes(digest) {
            // This error is not fatal. Only this command fails, once all its data has come (NVMe-oF TCP 1.0c §3.3.1.2).
            self.commands[at].is_corrupt = true;
        }
        let command = &mut self.commands[at];
        command.moved = end;
        if command.moved < command.len {
            return;
        }
        command.next = Next::Response;
        if kind == BodyKind::H2c {
            conn.grants = conn.grants.saturating_sub(1);
            if conn.grants == 0 {
                conn.pending_since = None;
            }
            conn.large_grants = conn.large_grants.saturating_sub(u32::from(Self::is_large(command.len)));
        }
        let step = match command.is_corrupt {
            false => shared.engine.execute(cx, at),
            true => shared.engine.fail(at, Status::TRANSIENT_TRANSPORT_ERROR),
        };
        self.step(shared, at, step);
    }
}

/// Returns at most `len` of the bytes from `at` on.
#[inline]
fn part(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.get(..len).unwrap_or(rest)
}
