//! The receiving side of a queue pair: parses the PDU stream in place, out of the driver's buffer.
//!
//! Headers and small data arrive by [`RecvInto::Stream`], many PDUs at a time. Small data is copied once, to its block.
//! While large reads are outstanding, each receive takes only [`SIP_BYTES`]. So when a C2HData header has arrived, most
//! of the PDU's data is still in the socket. The next receive puts that data directly into the block.
//!
//! A header that is split over two receives is gathered in `head`. All other headers are parsed in place.

use super::command::Lost;
use super::error::{QueueError, Violation};
use super::inbound::Inbound;
use super::qpair::{CONNECT_CID, Grant, Qpair, Stage};
use trefoil_poll::{Buf, Io, RecvEnd, RecvInto};
use trefoil_wire::fabrics::ConnectResponse;
use trefoil_wire::nvme::{Cqe, Sgl, Status, Transfer};
use trefoil_wire::tcp::{
    C2hData, CapsuleResp, CommonHeader, DIGEST_LEN, Framing, IcResp, Layout, PduType, R2t, TermReq,
    digest_append,
};

/// The smallest remainder of a PDU's data that is received directly into its block. Below this size, a separate receive
/// costs more than the copy.
const DIRECT_MIN_BYTES: u32 = 8 << 10;
/// The largest size of one receive: `SIP_BYTES` while large reads are outstanding, otherwise `STREAM_BYTES`.
const STREAM_BYTES: u32 = 256 << 10;
const SIP_BYTES: u32 = 4 << 10;

impl Qpair {
    /// Takes bytes of the stream. [`next_done`](Self::next_done) then returns the completions.
    #[inline]
    pub(super) fn on_received<I: Io>(&mut self, io: &mut I, bytes: &[u8]) {
        let result = self.take(bytes);
        self.proceed(io, result);
    }

    /// Takes a block that a receive filled.
    pub(super) fn on_filled<I: Io>(&mut self, io: &mut I, buf: Buf) {
        let result = self.take_filled(buf);
        self.proceed(io, result);
    }

    /// Handles a receive that ended before all of its bytes arrived.
    pub(super) fn on_recv_end<I: Io>(&mut self, io: &mut I, buf: Option<Buf>, why: RecvEnd) {
        if let Some(buf) = buf {
            self.restore(buf);
        }
        match why {
            RecvEnd::Eof => self.fail(io, QueueError::Eof),
            RecvEnd::Failed(error) => self.fail(io, QueueError::Socket(error)),
            RecvEnd::Closed => {}
        }
    }

    fn proceed<I: Io>(&mut self, io: &mut I, result: Result<(), QueueError>) {
        match result {
            Err(QueueError::Violation(violation)) => self.violate(io, violation),
            Err(error) => self.fail(io, error),
            Ok(()) => {}
        }
        if self.receive.connect_due {
            self.flush(io);
        }
        self.ask(io);
    }

    /// Starts the next receive.
    fn ask<I: Io>(&mut self, io: &mut I) {
        let Some(sock) = self.sock else { return };
        if !matches!(self.stage, Stage::Initializing | Stage::Joining | Stage::Live) {
            return;
        }
        if let Some(inbound) = self.receive.inbound
            && inbound.left >= DIRECT_MIN_BYTES
            && let Some(command) = &mut self.slots[usize::from(inbound.slot)].command
            && let Some(buf) = command.buf.take()
        {
            let at = command.at + inbound.offset;
            return io.recv(sock, RecvInto::Buf { buf, at, len: inbound.left });
        }
        let max_bytes = if self.large_reads > 0 { SIP_BYTES } else { STREAM_BYTES };
        io.recv(sock, RecvInto::Stream { max_bytes });
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), QueueError> {
        while !bytes.is_empty() {
            bytes = match self.receive.inbound {
                Some(inbound) => self.take_data(inbound, bytes),
                None => self.take_head(bytes),
            }?;
        }
        Ok(())
    }

    #[inline]
    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], QueueError> {
        if self.receive.have == 0
            && let Some(common) = bytes.first_chunk()
        {
            let taken = self.measure(common).and_then(|(header, layout, need)| {
                let Some((head, rest)) = bytes.split_at_checked(need) else { return Ok(None) };
                self.dispatch(header, layout, head).map(|()| Some(rest))
            });
            match taken {
                Ok(Some(rest)) => return Ok(rest),
                Ok(None) => {}
                Err(error) => {
                    self.receive.keep_offender(bytes.get(..24).unwrap_or(common));
                    return Err(error);
                }
            }
        }
        self.gather_head(bytes)
    }

    /// Gathers a header that arrives in pieces.
    #[cold]
    fn gather_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], QueueError> {
        let gathered = self.receive.head;
        let have = self.receive.have;
        let result = match gathered.first_chunk() {
            Some(common) if have >= CommonHeader::LEN => self.measure(common).map(|(_, _, need)| need),
            _ => Ok(CommonHeader::LEN),
        };
        let need = result.inspect_err(|_| self.receive.offender_len = have)?;
        let (piece, rest) = bytes.split_at(bytes.len().min(need - have));
        for (to, from) in self.receive.head.iter_mut().skip(have).zip(piece) {
            *to = *from;
        }
        self.receive.have += piece.len();
        if self.receive.have < need || need == CommonHeader::LEN {
            return Ok(rest);
        }
        let gathered = self.receive.head;
        self.receive.have = 0;
        let result = match (gathered.first_chunk(), gathered.get(..need)) {
            (Some(common), Some(head)) => {
                self.measure(common).and_then(|(header, layout, _)| self.dispatch(header, layout, head))
            }
            _ => Ok(()),
        };
        result.inspect_err(|_| self.receive.offender_len = need.min(24))?;
        Ok(rest)
    }

    /// Reads the common header. Returns the number of bytes of the head, and checks that the PDU is legal now.
    #[inline]
    fn measure(&self, common: &[u8; 8]) -> Result<(CommonHeader, Layout, usize), QueueError> {
        let header = CommonHeader::parse(common).map_err(Violation::Header)?;
        let layout = header.layout(&self.framing).map_err(Violation::Header)?;
        let legal = match header.pdu_type {
            PduType::C2hTermReq => true,
            PduType::IcResp => self.stage == Stage::Initializing && !self.receive.connect_due,
            PduType::CapsuleResp => matches!(self.stage, Stage::Joining | Stage::Live),
            _ => self.stage == Stage::Live,
        };
        if !legal {
            return Err(Violation::Sequence(header.pdu_type).into());
        }
        let data_len = if header.pdu_type == PduType::C2hTermReq { layout.data_len } else { 0 };
        Ok((header, layout, (layout.before_data_len() + data_len) as usize))
    }

    #[inline]
    fn dispatch(&mut self, header: CommonHeader, layout: Layout, head: &[u8]) -> Result<(), QueueError> {
        let header_len = layout.header_len as usize;
        if layout.header_digest_len > 0
            && let Some((covered, rest)) = head.split_at_checked(header_len)
            && let Some(hdgst) = rest.first_chunk()
        {
            Framing::check_header_digest(covered, hdgst).map_err(Violation::Header)?;
        }
        match header.pdu_type {
            PduType::C2hData => {
                let Some(bytes) = head.first_chunk() else { return Ok(()) };
                let pdu = C2hData::parse(bytes, layout.data_len).map_err(Violation::Header)?;
                Ok(self.on_c2h_data(pdu)?)
            }
            PduType::CapsuleResp => {
                let Some(bytes) = head.first_chunk() else { return Ok(()) };
                let cqe = CapsuleResp::parse(bytes).cqe;
                if self.stage == Stage::Joining {
                    self.on_connect_response(&cqe)
                } else {
                    self.on_response(cqe)
                }
            }
            PduType::R2t => {
                let Some(bytes) = head.first_chunk() else { return Ok(()) };
                let pdu = R2t::parse(bytes).map_err(Violation::Header)?;
                Ok(self.on_r2t(pdu)?)
            }
            PduType::IcResp => {
                let Some(bytes) = head.first_chunk() else { return Ok(()) };
                self.on_ic_resp(IcResp::parse(bytes).map_err(Violation::Header)?)
            }
            PduType::C2hTermReq => match TermReq::parse(head) {
                Ok(request) => Err(QueueError::Terminated(request.status)),
                Err(_) => Err(Violation::Sequence(header.pdu_type).into()),
            },
            other => Err(Violation::Sequence(other).into()),
        }
    }

    fn on_ic_resp(&mut self, pdu: IcResp) -> Result<(), QueueError> {
        let (header_digest, data_digest) = self.ask_digests;
        if (pdu.header_digest && !header_digest) || (pdu.data_digest && !data_digest) {
            return Err(Violation::Digests.into());
        }
        self.framing.header_digest = pdu.header_digest;
        self.framing.data_digest = pdu.data_digest;
        // The transport sets no limit: each C2HData is checked against its command before its data is received.
        self.framing.max_data_bytes = u32::MAX;
        self.data_alignment_bytes = pdu.controller_alignment_bytes;
        self.max_h2c_data_bytes = pdu.max_h2c_data_bytes;
        self.receive.connect_due = true;
        Ok(())
    }

    fn on_connect_response(&mut self, cqe: &Cqe) -> Result<(), QueueError> {
        if cqe.cid != CONNECT_CID {
            return Err(Violation::UnknownCommand { cid: cqe.cid }.into());
        }
        match ConnectResponse::parse(cqe) {
            ConnectResponse::Connected { cntlid, authreq: 0 } => {
                self.joined(cntlid);
                Ok(())
            }
            ConnectResponse::Connected { authreq, .. } => Err(QueueError::AuthenticationRequired(authreq)),
            refused => Err(QueueError::Refused(refused)),
        }
    }

    #[inline]
    fn on_response(&mut self, cqe: Cqe) -> Result<(), QueueError> {
        let at = self.slot_of(cqe.cid)?;
        Ok(self.respond(at, cqe)?)
    }

    /// Handles a command's completion. The command ends now, or when its block comes back from the send list.
    #[inline]
    fn respond(&mut self, at: u16, mut cqe: Cqe) -> Result<(), Violation> {
        let slot = &mut self.slots[usize::from(at)];
        let Some(command) = &slot.command else { return Ok(()) };
        let moved_apart = matches!(command.sqe.sgl1, Sgl::Transport { .. });
        if cqe.status.is_ok() && moved_apart && slot.received != command.len {
            let (received, expected) = (slot.received, command.len);
            return Err(Violation::ShortData { cid: cqe.cid, received, expected });
        }
        if slot.corrupt {
            // A data digest error is not fatal: the command fails, and the connection stays open (NVMe-oF TCP 1.0c
            // §3.3.1.1.2). The command's owner may send the command again.
            cqe.status = Status::TRANSIENT_TRANSPORT_ERROR;
        }
        slot.grant = None;
        if slot.lent {
            slot.response = Some(cqe);
        } else {
            self.finish(at, Ok::<_, Lost>(cqe));
        }
        Ok(())
    }

    /// Takes an R2T. This host allows one R2T per command, and a controller requests data in order. So for a write,
    /// `received` counts the bytes that the controller requested.
    fn on_r2t(&mut self, pdu: R2t) -> Result<(), Violation> {
        let at = self.slot_of(pdu.cid)?;
        let slot = &mut self.slots[usize::from(at)];
        let Some(command) = &slot.command else { return Ok(()) };
        let wanted = command.transfer == Transfer::HostToController
            && matches!(command.sqe.sgl1, Sgl::Transport { .. });
        let end = pdu.offset_bytes.saturating_add(pdu.len_bytes);
        if slot.grant.is_some() {
            return Err(Violation::R2tLimit { cid: pdu.cid });
        }
        if !wanted || pdu.offset_bytes != slot.received || end > command.len {
            return Err(Violation::Data { cid: pdu.cid, offset: pdu.offset_bytes, len: pdu.len_bytes });
        }
        slot.received = end;
        slot.grant = Some(Grant { ttag: pdu.ttag, offset: pdu.offset_bytes, left: pdu.len_bytes });
        self.queue_transfer(at);
        Ok(())
    }

    #[inline]
    fn on_c2h_data(&mut self, pdu: C2hData) -> Result<(), Violation> {
        let at = self.slot_of(pdu.cid)?;
        let slot = &self.slots[usize::from(at)];
        let Some(command) = &slot.command else { return Ok(()) };
        let end = pdu.offset_bytes.saturating_add(pdu.len_bytes);
        if command.transfer != Transfer::ControllerToHost
            || pdu.offset_bytes != slot.received
            || end > command.len
        {
            return Err(Violation::Data { cid: pdu.cid, offset: pdu.offset_bytes, len: pdu.len_bytes });
        }
        self.receive.inbound = Some(Inbound {
            slot: at,
            offset: pdu.offset_bytes,
            left: pdu.len_bytes,
            len: pdu.len_bytes,
            success: pdu.success,
            crc: 0,
            ddgst: [0; DIGEST_LEN],
            ddgst_have: 0,
        });
        Ok(())
    }

    /// Copies data to its block, then reads the digest after the data.
    #[inline]
    fn take_data<'a>(&mut self, mut inbound: Inbound, bytes: &'a [u8]) -> Result<&'a [u8], QueueError> {
        let (data, mut rest) = bytes.split_at(bytes.len().min(inbound.left as usize));
        if !data.is_empty()
            && let Some(command) = &mut self.slots[usize::from(inbound.slot)].command
        {
            let at = (command.at + inbound.offset) as usize;
            if let Some(to) = command.buf.as_deref_mut().and_then(|buf| buf.get_mut(at..at + data.len())) {
                to.copy_from_slice(data);
            }
            if self.framing.data_digest {
                inbound.crc = digest_append(inbound.crc, data);
            }
            inbound.offset += data.len() as u32;
            inbound.left -= data.len() as u32;
        }
        if inbound.left == 0 && self.framing.data_digest {
            let want = DIGEST_LEN - inbound.ddgst_have;
            let (piece, after) = rest.split_at(rest.len().min(want));
            for (to, from) in inbound.ddgst.iter_mut().skip(inbound.ddgst_have).zip(piece) {
                *to = *from;
            }
            inbound.ddgst_have += piece.len();
            rest = after;
        }
        self.receive.inbound = Some(inbound);
        self.end_data(inbound)?;
        Ok(rest)
    }

    fn take_filled(&mut self, buf: Buf) -> Result<(), QueueError> {
        let Some(mut inbound) = self.receive.inbound else {
            // No receive was outstanding. The block's own drop check reports the driver's bug.
            drop(buf);
            return Ok(());
        };
        if self.framing.data_digest
            && let Some(command) = &self.slots[usize::from(inbound.slot)].command
        {
            let at = (command.at + inbound.offset) as usize;
            let bytes = buf.get(at..at + inbound.left as usize).unwrap_or_default();
            inbound.crc = digest_append(inbound.crc, bytes);
        }
        inbound.offset += inbound.left;
        inbound.left = 0;
        self.restore(buf);
        self.receive.inbound = Some(inbound);
        self.end_data(inbound)
    }

    /// Gives the block of a direct receive back to its command.
    fn restore(&mut self, buf: Buf) {
        let slot = self.receive.inbound.map(|inbound| usize::from(inbound.slot));
        match slot.and_then(|at| self.slots.get_mut(at)).and_then(|slot| slot.command.as_mut()) {
            Some(command) => command.buf = Some(buf),
            None => drop(buf),
        }
    }

    /// Ends a C2HData once all of its bytes have arrived.
    #[inline]
    fn end_data(&mut self, inbound: Inbound) -> Result<(), QueueError> {
        let digest_len = if self.framing.data_digest { DIGEST_LEN } else { 0 };
        if inbound.left > 0 || inbound.ddgst_have < digest_len {
            return Ok(());
        }
        self.receive.inbound = None;
        let slot = &mut self.slots[usize::from(inbound.slot)];
        slot.received += inbound.len;
        slot.corrupt |= digest_len > 0 && u32::from_le_bytes(inbound.ddgst) != inbound.crc;
        let Some(command) = &slot.command else { return Ok(()) };
        if inbound.success {
            let cqe = Cqe::new(command.sqe.cid, 0, Status::SUCCESS);
            self.respond(inbound.slot, cqe)?;
        }
        Ok(())
    }
}
