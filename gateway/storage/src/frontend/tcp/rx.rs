//! Splits the stream into PDUs, and turns PDUs into commands.

use super::conn::{ConnState, Unparsed};
use super::{Conn, Tcp};
use crate::cx::Cx;
use crate::frontend::limits::{CONTROLLER_ALIGNMENT_BYTES, IN_CAPSULE_BYTES, MAX_H2C_DATA_BYTES};
use crate::frontend::shared::Shared;
use crate::list::NIL;
use crate::msg::StorageIo;
use trefoil_poll::{Buf, RecvInto, SockId};
use trefoil_wire::nvme::Sqe;
use trefoil_wire::tcp::{
    CapsuleCmd, CommonHeader, FatalStatus, Framing, HeaderError, IcReq, Layout, PduType, Receiver,
};

/// Data of at least this size is received straight into its block. Headers that announce such data are received in small
/// pieces, so that one receive doesn't bring the header and the data. Below this size, a copy is cheaper than another receive.
pub(super) const DIRECT_BYTES: u32 = 16 << 10;
/// Size of a receive that must bring headers only: three command capsules, or an H2CData header and a little more.
const HEADERS_BYTES: u32 = 256;

/// The result of taking a PDU.
pub(super) enum Taken {
    /// The transport took the header; the body, if there is any, follows.
    Yes,
    /// The transport took the header, and the whole body, which is this many bytes after the header.
    Whole(usize),
    /// The transport took nothing: there is no slot or no memory for the PDU now.
    Stalled,
    /// The connection accepts no more PDUs.
    Dead,
}

impl Tcp {
    /// Handles received bytes.
    #[inline]
    pub fn on_received<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        bytes: &[u8],
    ) {
        let c = sock.0;
        let Some(conn) = self.conns.get_mut(c as usize) else { return };
        conn.receiving = false;
        let used = self.consume(shared, cx, c, bytes);
        if used < bytes.len() {
            self.keep_unparsed(shared, cx, c, bytes.get(used..).unwrap_or_default());
        }
        self.arm(shared, cx, c);
    }

    /// Handles a block that the driver has filled with all the remaining data of the body.
    pub fn on_filled<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        buf: Buf,
    ) {
        let c = sock.0;
        let Some(conn) = self.conns.get_mut(c as usize) else { return cx.arena.free(buf) };
        conn.receiving = false;
        if conn.state != ConnState::Ready || !conn.in_body {
            cx.arena.free(buf);
        } else {
            self.body_filled(shared, cx, c, buf);
        }
        self.arm(shared, cx, c);
    }

    /// Asks the driver for the next bytes.
    #[inline]
    pub(super) fn arm<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>, c: u32) {
        let conn = &mut self.conns[c as usize];
        if conn.receiving || conn.stalled || matches!(conn.state, ConnState::Free | ConnState::Closing) {
            return;
        }
        conn.receiving = true;
        if conn.in_body && conn.pending_since.is_none() {
            self.note_pending(shared, cx, c);
        }
        let conn = &self.conns[c as usize];
        let body = &conn.body;
        if conn.in_body && body.pad_left == 0 && body.data_left >= DIRECT_BYTES && body.slot != NIL {
            let (at, len) = (body.at, body.data_left);
            if let Some(buf) = shared.engine.take_block(body.slot) {
                return cx.io.recv(SockId(c), RecvInto::Buf { buf, at, len });
            }
        }
        let small = conn.large_grants > 0 && !conn.in_body;
        // While connections wait for memory, a receive brings few bytes.
        let max_bytes = match (small, !shared.memory.is_short()) {
            (true, _) => HEADERS_BYTES,
            (false, true) => self.limits.stream_bytes,
            (false, false) => self.limits.stream_bytes.min(IN_CAPSULE_BYTES),
        };
        cx.io.recv(SockId(c), RecvInto::Stream { max_bytes });
    }

    /// Keeps received bytes for later. If there is no memory even for these bytes, closes the connection.
    fn keep_unparsed<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>, c: u32, bytes: &[u8]) {
        let Some(mut buf) = shared.memory.keep(cx, c, bytes.len()) else {
            return self.kill(shared, cx, c, "no memory for what it sent");
        };
        buf.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.conns[c as usize].unparsed = Some(Unparsed { buf, at: 0, end: bytes.len() });
    }

    /// Parses `bytes` and returns how many bytes are consumed. If bytes are left, the connection is stalled and in the backlog.
    pub(super) fn consume<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        bytes: &[u8],
    ) -> usize {
        let mut at = 0;
        loop {
            let conn = &mut self.conns[c as usize];
            if !matches!(conn.state, ConnState::Opening | ConnState::Ready) {
                return bytes.len();
            }
            let rest = bytes.get(at..).unwrap_or_default();
            if conn.in_body {
                if rest.is_empty() {
                    return at;
                }
                at += self.body(shared, cx, c, rest);
                continue;
            }
            let taken = if conn.stash_len == 0
                && let Some(common) = rest.first_chunk()
            {
                // Usually the whole header is in the slice.
                match header_of(conn, common) {
                    Err(error) => self.refuse(shared, cx, c, error, common),
                    Ok((common, need)) => match rest.get(..need) {
                        Some(header) => {
                            let after = rest.get(need..).unwrap_or_default();
                            let taken = self.pdu(shared, cx, c, common, header, after);
                            match taken {
                                Taken::Yes => at += need,
                                Taken::Whole(body) => at += need + body,
                                Taken::Stalled | Taken::Dead => {}
                            }
                            taken
                        }
                        None => {
                            keep(conn, rest);
                            return bytes.len();
                        }
                    },
                }
            } else {
                match self.stashed(shared, cx, c, rest, &mut at) {
                    Some(taken) => taken,
                    None => return bytes.len(),
                }
            };
            match taken {
                Taken::Yes | Taken::Whole(_) => {}
                Taken::Stalled => {
                    self.conns[c as usize].stalled |= !self.replaying;
                    shared.memory.queue(c);
                    return at;
                }
                Taken::Dead => return bytes.len(),
            }
        }
    }

    /// Completes a stashed header from `rest`, and advances `at`. Returns `None` if the header is still incomplete.
    fn stashed<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        rest: &[u8],
        at: &mut usize,
    ) -> Option<Taken> {
        let conn = &mut self.conns[c as usize];
        let took = top_up(conn, rest, CommonHeader::LEN);
        *at += took;
        let common = *conn.stash.first_chunk()?;
        if conn.stash_len < CommonHeader::LEN {
            return None;
        }
        let (parsed, need) = match header_of(conn, &common) {
            Ok(header) => header,
            Err(error) => return Some(self.refuse(shared, cx, c, error, &common)),
        };
        *at += top_up(conn, rest.get(took..).unwrap_or_default(), need);
        if conn.stash_len < need {
            return None;
        }
        let stash = conn.stash;
        let taken = self.pdu(shared, cx, c, parsed, stash.get(..need).unwrap_or_default(), &[]);
        if matches!(taken, Taken::Yes) {
            self.conns[c as usize].stash_len = 0;
        }
        Some(taken)
    }

    /// Takes one PDU. `header` is the header with its digest, `after` the bytes received after the header.
    #[inline]
    fn pdu<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        common: CommonHeader,
        header: &[u8],
        after: &[u8],
    ) -> Taken {
        let conn = &self.conns[c as usize];
        let layout = match check_header(conn, &common, header) {
            Ok(layout) => layout,
            Err(error) => return self.refuse(shared, cx, c, error, header),
        };
        // ICReq comes first and only once (NVMe-oF TCP 1.0c §3.2).
        if (common.pdu_type == PduType::IcReq) != (conn.state == ConnState::Opening)
            && common.pdu_type != PduType::H2cTermReq
        {
            return self.terminate(shared, cx, c, FatalStatus::SequenceError, header);
        }
        match common.pdu_type {
            PduType::CapsuleCmd => match header.get(CommonHeader::LEN..).and_then(<[u8]>::first_chunk) {
                Some(sqe) => self.command(shared, cx, c, sqe, &layout, header, after),
                None => Taken::Dead,
            },
            PduType::H2cData => self.h2c_data(shared, cx, c, header, &layout),
            PduType::IcReq => self.initialize(shared, cx, c, header),
            // The host's own log has the reason.
            PduType::H2cTermReq => {
                self.kill(shared, cx, c, "the host terminated");
                Taken::Dead
            }
            PduType::IcResp
            | PduType::C2hTermReq
            | PduType::CapsuleResp
            | PduType::C2hData
            | PduType::R2t => self.terminate(shared, cx, c, FatalStatus::SequenceError, header),
        }
    }

    #[cold]
    fn initialize<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        header: &[u8],
    ) -> Taken {
        let Some(bytes) = header.first_chunk() else { return Taken::Dead };
        let request = match IcReq::parse(bytes) {
            Ok(request) => request,
            Err(error) => return self.refuse(shared, cx, c, error, header),
        };
        let conn = &mut self.conns[c as usize];
        conn.framing = Framing {
            receiver: Receiver::Controller,
            header_digest: request.header_digest,
            data_digest: request.data_digest,
            data_alignment_bytes: CONTROLLER_ALIGNMENT_BYTES,
            max_capsule_data_bytes: IN_CAPSULE_BYTES,
            max_data_bytes: MAX_H2C_DATA_BYTES,
        };
        conn.host_alignment_bytes = request.host_alignment_bytes;
        conn.state = ConnState::Ready;
        conn.ic_resp = !conn.initialized;
        self.mark_dirty(c);
        Taken::Yes
    }

    #[cold]
    pub(super) fn refuse<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        error: HeaderError,
        header: &[u8],
    ) -> Taken {
        self.terminate(shared, cx, c, error.status, header)
    }

    /// Reports a fatal transport error to the host, and discards all later bytes (NVMe-oF TCP 1.0c §3.5).
    #[cold]
    pub(super) fn terminate<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        status: FatalStatus,
        header: &[u8],
    ) -> Taken {
        let conn = &mut self.conns[c as usize];
        conn.state = ConnState::Terminating;
        conn.since = cx.io.now();
        conn.term = Some(status);
        let len = header.len().min(conn.stash.len());
        conn.stash.iter_mut().zip(header).for_each(|(to, from)| *to = *from);
        conn.stash_len = len;
        if let Some(key) = conn.timer.take() {
            shared.engine.timers.cancel(key);
        }
        self.ensure_timer(shared, c);
        self.mark_dirty(c);
        Taken::Dead
    }
}

/// Parses the common header. Returns the common header, and the length of the whole header with its digest.
#[inline]
fn header_of(conn: &Conn, bytes: &[u8; CommonHeader::LEN]) -> Result<(CommonHeader, usize), HeaderError> {
    let common = CommonHeader::parse(bytes)?;
    let layout = common.layout(&conn.framing)?;
    Ok((common, (layout.header_len + layout.header_digest_len) as usize))
}

/// Checks the layout of a header, then the header digest.
#[inline]
fn check_header(conn: &Conn, common: &CommonHeader, header: &[u8]) -> Result<Layout, HeaderError> {
    let layout = common.layout(&conn.framing)?;
    if layout.header_digest_len > 0
        && let Some((header, digest)) = header.split_last_chunk()
    {
        Framing::check_header_digest(header, digest)?;
    }
    Ok(layout)
}

/// Stashes the start of a header that is cut.
fn keep(conn: &mut Conn, bytes: &[u8]) {
    conn.stash.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    conn.stash_len = bytes.len();
}

/// Fills the stash up to `need` bytes. Returns how many bytes were added.
fn top_up(conn: &mut Conn, bytes: &[u8], need: usize) -> usize {
    let have = conn.stash_len;
    let take = need.saturating_sub(have).min(bytes.len());
    if let Some(to) = conn.stash.get_mut(have..have + take) {
        to.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }
    conn.stash_len += take;
    take
}

/// Checks the capsule's length against [`Sqe`]'s.
const _: () = assert!(CapsuleCmd::LEN == CommonHeader::LEN + Sqe::LEN);
