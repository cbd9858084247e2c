//! The sending side of a queue pair: one send list at a time, filled at the end of the turn with all pending PDUs.
//!
//! H2CData that R2Ts requested comes first, since the controller holds resources for this data. Commands follow.

use super::command::{Command, INLINE_BYTES};
use super::error::QueueError;
use super::inbound::LARGE_READ_BYTES;
use super::qpair::{CONNECT_CID, Grant, Qpair, QpairSlot, Stage};
use trefoil_poll::{Io, SendList, SockError};
use trefoil_wire::fabrics::{Connect, ConnectAttributes, ConnectData, FabricsCommand};
use trefoil_wire::nvme::Sgl;
use trefoil_wire::tcp::{CapsuleCmd, CommonHeader, DIGEST_LEN, H2cData, TermReq, TermReqDirection, digest};

/// The longest header that this host writes: everything up to the largest PDO, a data digest, and inline data. A header
/// has 72 bytes, or 76 bytes with its digest. PDO is the next multiple of the alignment, which is at most 128.
const HEAD_ROOM: usize = 128 + DIGEST_LEN + INLINE_BYTES;

/// The digests and the alignment of outgoing PDUs.
#[derive(Clone, Copy)]
struct Form {
    header_digest: bool,
    data_digest: bool,
    alignment_bytes: u32,
}

impl Qpair {
    /// Sends the pending PDUs, unless a send is under way. In that case, [`on_sent`](Self::on_sent) frees the send
    /// list.
    #[inline]
    pub fn flush<I: Io>(&mut self, io: &mut I) {
        let waiting = !self.unsent.is_empty()
            || !self.transfers.is_empty()
            || self.terminate.is_some()
            || self.receive.connect_due;
        if waiting {
            self.flush_now(io);
        }
    }

    fn flush_now<I: Io>(&mut self, io: &mut I) {
        if self.receive.connect_due && self.stage == Stage::Initializing {
            return self.send_connect(io);
        }
        let Some(mut list) = self.list.take() else { return };
        match self.stage {
            Stage::Terminating => self.fill_terminate(&mut list),
            Stage::Live => {
                self.fill_transfers(&mut list);
                self.fill_commands(&mut list);
            }
            _ => {}
        }
        match self.sock {
            Some(sock) if !list.is_empty() => io.send(sock, list),
            _ => self.list = Some(list),
        }
    }

    /// Handles the end of a send: gives the blocks back to their commands.
    pub(super) fn on_sent<I: Io>(
        &mut self,
        io: &mut I,
        mut list: Box<SendList>,
        result: Result<(), SockError>,
    ) {
        while let Some(buf) = list.take_buf() {
            // Each push to the list is also a push to `lent`, and both are stacks. So their top entries belong
            // together.
            let Some(at) = self.lent.pop() else { break };
            let slot = &mut self.slots[usize::from(at)];
            slot.lent = false;
            match &mut slot.command {
                Some(command) => command.buf = Some(buf),
                None => unreachable_block(buf),
            }
            if let Some(response) = slot.response.take() {
                self.finish(at, Ok(response));
            } else if slot.grant.is_some() {
                self.queue_transfer(at);
            }
        }
        self.list = Some(list);
        match result {
            Err(error) => self.fail(io, QueueError::Socket(error)),
            Ok(()) if self.stage == Stage::Terminating && self.terminate.is_none() => {
                self.fail(io, QueueError::Closed);
            }
            Ok(()) => self.flush_control(io),
        }
    }

    /// Sends a Connect or a terminate request without waiting for the end of the turn, since no other PDU may be sent
    /// before it.
    fn flush_control<I: Io>(&mut self, io: &mut I) {
        if self.receive.connect_due || self.terminate.is_some() {
            self.flush_now(io);
        }
    }

    /// Queues a command with an R2T to answer, unless the command's block is still being sent.
    pub(super) fn queue_transfer(&mut self, at: u16) {
        let slot = &mut self.slots[usize::from(at)];
        if !slot.queued && !slot.lent {
            slot.queued = true;
            self.transfers.push_back(at);
        }
    }

    /// Sends Connect. The data of Connect is part of the send list's headers, so Connect needs no memory of the arena.
    pub(super) fn send_connect<I: Io>(&mut self, io: &mut I) {
        let Some(mut list) = self.list.take() else { return };
        let connect = Connect {
            recfmt: 0,
            qid: self.qid,
            sqsize: self.open.entries.sqsize(),
            // SUCCESS in C2HData is legal only without SQ flow control (NVMe-oF TCP 1.0c §3.6.2.9).
            attributes: ConnectAttributes { no_sq_flow_control: true, ..Default::default() },
            kato_ms: self.open.kato_ms,
        };
        let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: ConnectData::LEN as u32 };
        let sqe = FabricsCommand::Connect(connect).sqe(CONNECT_CID, sgl);
        let data = ConnectData {
            hostid: self.identity.host_id,
            cntlid: self.open.cntlid,
            subnqn: self.identity.subsystem_nqn,
            hostnqn: self.identity.host_nqn,
        };
        self.receive.connect_due = false;
        let form = self.form();
        push_capsule(&mut list, form, &CapsuleCmd { sqe }, ConnectData::LEN as u32);
        let bytes = list.push_head(ConnectData::LEN);
        if let Some(bytes) = bytes.first_chunk_mut() {
            data.emit(bytes);
        }
        let crc = digest(bytes);
        push_digest(&mut list, form, crc);
        self.stage = Stage::Joining;
        match self.sock {
            Some(sock) => io.send(sock, list),
            None => self.list = Some(list),
        }
    }

    fn form(&self) -> Form {
        Form {
            header_digest: self.framing.header_digest,
            data_digest: self.framing.data_digest,
            alignment_bytes: self.data_alignment_bytes,
        }
    }

    fn fill_commands(&mut self, list: &mut SendList) {
        let form = self.form();
        let max = self.open.max_capsule_data_bytes;
        while list.fits(HEAD_ROOM, true) {
            let Some(at) = self.unsent.pop_front() else { break };
            let slot = &mut self.slots[usize::from(at)];
            let Some(command) = &mut slot.command else { continue };
            command.sqe.sgl1 = command.sgl(max);
            slot.sent = true;
            let in_capsule = matches!(command.sqe.sgl1, Sgl::InCapsule { .. });
            let len = if in_capsule { command.len } else { 0 };
            push_capsule(list, form, &CapsuleCmd { sqe: command.sqe }, len);
            if in_capsule {
                self.lent.extend(push_payload(list, form, slot, 0, len).then_some(at));
            }
        }
    }

    /// Adds one H2CData for each command with a grant. A block can be in the list only once, so data beyond MAXH2CDATA
    /// follows with the next list.
    fn fill_transfers(&mut self, list: &mut SendList) {
        let form = self.form();
        while list.fits(HEAD_ROOM, true) {
            let Some(at) = self.transfers.pop_front() else { break };
            let slot = &mut self.slots[usize::from(at)];
            slot.queued = false;
            let (Some(grant), Some(command)) = (slot.grant, &slot.command) else { continue };
            let len = grant.left.min(self.max_h2c_data_bytes);
            let left = grant.left - len;
            let pdu = H2cData {
                cid: command.sqe.cid,
                ttag: grant.ttag,
                offset_bytes: grant.offset,
                len_bytes: len,
                last: left == 0,
            };
            push_h2c(list, form, &pdu);
            slot.grant = match left {
                0 => None,
                _ => Some(Grant { offset: grant.offset + len, left, ..grant }),
            };
            if push_payload(list, form, slot, grant.offset, len) {
                self.lent.push(at);
            } else if slot.grant.is_some() {
                self.queue_transfer(at);
            }
        }
    }

    fn fill_terminate(&mut self, list: &mut SendList) {
        let Some(violation) = self.terminate.take() else { return };
        let request = TermReq { status: violation.status(), offender: self.receive.offender() };
        let mut bytes = [0; TermReq::MAX_LEN];
        let len = request.emit(TermReqDirection::HostToController, &mut bytes);
        list.push_head(len).copy_from_slice(&bytes[..len]);
    }
}

/// Drops a block that came back for a command that is gone. The table never frees a lent slot, so this is a bug. The
/// drop check of [`Buf`](trefoil_poll::Buf) reports the bug: a build with assertions panics, and a release build frees
/// the block.
#[cold]
fn unreachable_block(buf: trefoil_poll::Buf) {
    drop(buf);
}

#[inline]
fn push_capsule(list: &mut SendList, form: Form, capsule: &CapsuleCmd, data_len: u32) {
    let pdo = match data_len {
        0 => CapsuleCmd::LEN + usize::from(form.header_digest) * DIGEST_LEN,
        _ => before_data(form, CapsuleCmd::LEN),
    };
    let head = list.push_head(pdo);
    if let Some(bytes) = head.first_chunk_mut::<{ CapsuleCmd::LEN }>() {
        capsule.emit(form.header_digest, form.data_digest, form.alignment_bytes, data_len, bytes);
    }
    close_head(form, head, CapsuleCmd::LEN);
}

#[inline]
fn push_h2c(list: &mut SendList, form: Form, pdu: &H2cData) {
    let head = list.push_head(before_data(form, H2cData::LEN));
    if let Some(bytes) = head.first_chunk_mut::<{ H2cData::LEN }>() {
        let header: CommonHeader =
            pdu.emit(form.header_digest, form.data_digest, form.alignment_bytes, bytes);
        debug_assert_eq!(usize::from(header.pdo), before_data(form, H2cData::LEN));
    }
    close_head(form, head, H2cData::LEN);
}

/// Returns PDO: the length of header, digest and padding (NVMe-oF TCP 1.0c §3.6.1).
#[inline]
fn before_data(form: Form, header_len: usize) -> usize {
    (header_len + usize::from(form.header_digest) * DIGEST_LEN)
        .next_multiple_of(form.alignment_bytes as usize)
}

/// Writes HDGST after the header, if header digests are on.
#[inline]
fn close_head(form: Form, head: &mut [u8], header_len: usize) {
    if form.header_digest
        && let Some((header, rest)) = head.split_at_mut_checked(header_len)
        && let Some(hdgst) = rest.first_chunk_mut()
    {
        *hdgst = digest(header).to_le_bytes();
    }
}

#[inline]
fn push_digest(list: &mut SendList, form: Form, crc: u32) {
    if form.data_digest {
        list.push_head(DIGEST_LEN).copy_from_slice(&crc.to_le_bytes());
    }
}

/// Appends `len` bytes of a command's data from `offset`, with their digest. Returns whether the block went into the
/// list.
#[inline]
fn push_payload(list: &mut SendList, form: Form, slot: &mut QpairSlot, offset: u32, len: u32) -> bool {
    let Some(command) = &mut slot.command else { return false };
    let (offset, len) = (offset as usize, len as usize);
    match command.buf.take() {
        Some(buf) => {
            let at = command.at as usize + offset;
            let crc = if form.data_digest { buf.get(at..at + len).map_or(0, digest) } else { 0 };
            list.push_buf(buf, at, len);
            push_digest(list, form, crc);
            slot.lent = true;
            true
        }
        None if command.sends_zeros() => {
            list.push_zeros(len);
            let crc = if form.data_digest { digest(trefoil_poll::send::zeros(len)) } else { 0 };
            push_digest(list, form, crc);
            false
        }
        None => {
            let bytes = command.inline.get(offset..offset + len).unwrap_or_default();
            list.push_head(len).copy_from_slice(bytes);
            let crc = digest(bytes);
            push_digest(list, form, crc);
            false
        }
    }
}

impl Command {
    /// Returns whether the command is a large read, whose data should be received directly into its block.
    #[inline]
    pub(super) fn fills_many(&self) -> bool {
        self.transfer == trefoil_wire::nvme::Transfer::ControllerToHost && self.len >= LARGE_READ_BYTES
    }
}
