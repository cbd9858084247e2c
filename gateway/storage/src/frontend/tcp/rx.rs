//! Splits the stream into PDUs, and turns PDUs into commands.

use super::command::{Next, TcpCommand};
use super::conn::{Body, BodyKind, ConnState, Unparsed};
use super::{Conn, Tcp};
use crate::cx::Cx;
use crate::frontend::limits::{CONTROLLER_ALIGNMENT_BYTES, IN_CAPSULE_BYTES, MAX_H2C_DATA_BYTES};
use crate::frontend::nvme::engine::CommandStep;
use crate::frontend::shared::Shared;
use crate::list::NIL;
use crate::msg::StorageIo;
use trefoil_poll::{Buf, RecvInto, SockId};
use trefoil_wire::fabrics::ConnectData;
use trefoil_wire::nvme::{Sgl, Sqe, Status};
use trefoil_wire::tcp::{
    CapsuleCmd, CommonHeader, FatalStatus, Framing, H2cData, HeaderError, IcReq, Layout, PduType, Receiver,
    field,
};

/// Data of at least this size is received straight into its block. Headers that announce such data are received in small
/// pieces, so that one receive doesn't bring the header and the data. Below this size, a copy is cheaper than another receive.
const DIRECT_BYTES: u32 = 16 << 10;
/// Size of a receive that must bring headers only: three command capsules, or an H2CData header and a little more.
const HEADERS_BYTES: u32 = 256;

const CONNECT_BYTES: u32 = ConnectData::LEN as u32;

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

    /// Handles a command capsule. If there is no room for the capsule now, [`later`](Self::later) postpones it.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    fn command<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        sqe: &[u8; 64],
        layout: &Layout,
        header: &[u8],
        after: &[u8],
    ) -> Taken {
        let queue = shared.engine.queue(c);
        if !queue.has_room() {
            // The host sent more commands than the queue has entries (NVMe base 2.0c §3.3.1.5).
            return self.terminate(shared, cx, c, FatalStatus::SequenceError, header);
        }
        let privileged = queue.is_privileged();
        if self.conns[c as usize].parked.is_some() && !self.replaying {
            return self.later(shared, cx, c, layout, header);
        }
        let free = shared.engine.free_commands();
        let may_take = || shared.memory.may_take_slot(queue.outstanding(), free);
        if !privileged && (!may_take() || shared.memory.must_queue(c)) {
            return self.later(shared, cx, c, layout, header);
        }
        let mut block = None;
        // Before Connect, only the data of a Connect needs a block. The transport discards other data, and the command of such
        // data fails.
        let is_surplus = || privileged && layout.data_len > CONNECT_BYTES && !queue.is_live();
        if layout.data_len > 0 && !is_surplus() {
            block = shared.memory.acquire(cx, c, layout.data_len, privileged);
            if block.is_none() {
                return self.later(shared, cx, c, layout, header);
            }
        }
        let Some((at, step)) = shared.engine.begin(cx, c, sqe) else {
            block.into_iter().for_each(|buf| shared.memory.give_back(cx, c, buf));
            return self.later(shared, cx, c, layout, header);
        };
        let mut body = Body { pad_left: layout.pad_len, ..Body::NONE };
        if layout.data_len > 0 {
            body.data_left = layout.data_len;
            body.digest_left = layout.data_digest_len as u8;
            body.digested = layout.data_digest_len > 0;
        }
        let mut whole = None;
        match route(shared, at, step, layout.data_len) {
            Route::InCapsule(_)
                if let Some(data) = whole_data(layout, after)
                    && let Some(step) = shared.engine.write_now(cx, at, data) =>
            {
                self.commands.start(at, TcpCommand::new(Next::Response, 0));
                body = Body::NONE;
                whole = Some(data.len());
                self.step(shared, at, step);
            }
            Route::InCapsule(len) => {
                if cx.io.is_broken("early-write") {
                    shared.engine.write_early(cx, at, after.get(..layout.data_len as usize).unwrap_or(after));
                }
                if let Some(block) = block.take() {
                    shared.engine.give_block(at, block);
                }
                self.commands.start(at, TcpCommand::new(Next::Data, len));
                body.slot = at;
                body.kind = BodyKind::Capsule;
            }
            Route::Block(len, next) => {
                self.commands.start(at, TcpCommand::new(next, len));
                if let Some(block) = shared.memory.fund(cx, c, at, len, privileged) {
                    self.funded(shared, cx, c, at, next, block);
                }
            }
            Route::Settled(step) => {
                self.commands.start(at, TcpCommand::new(Next::Response, 0));
                self.step(shared, at, step);
            }
        }
        block.into_iter().for_each(|buf| shared.memory.give_back(cx, c, buf));
        let conn = &mut self.conns[c as usize];
        conn.in_body = body.pad_left > 0 || body.data_left > 0;
        conn.body = body;
        whole.map_or(Taken::Yes, Taken::Whole)
    }

    /// Handles the header of data that an R2T asked for.
    fn h2c_data<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        c: u32,
        header: &[u8],
        layout: &Layout,
    ) -> Taken {
        let Some(bytes) = header.first_chunk() else { return Taken::Dead };
        let data = match H2cData::parse(bytes, layout.data_len) {
            Ok(data) => data,
            Err(error) => return self.refuse(shared, cx, c, error, header),
        };
        let at = u32::from(data.ttag);
        let asked = self.commands.get(at).filter(|command| command.next == Next::Data);
        let status = match asked.zip(shared.engine.cid(c, at)) {
            None => FatalStatus::InvalidHeaderField { offset_bytes: field::TTAG },
            Some((_, cid)) if cid != data.cid => {
                FatalStatus::InvalidHeaderField { offset_bytes: field::CCCID }
            }
            Some((command, _))
                if data.offset_bytes != command.moved || data.len_bytes > command.len - command.moved =>
            {
                FatalStatus::DataOutOfRange
            }
            Some((command, _)) if data.last != (data.offset_bytes + data.len_bytes == command.len) => {
                FatalStatus::InvalidHeaderField { offset_bytes: field::FLAGS }
            }
            Some(_) => {
                let conn = &mut self.conns[c as usize];
                conn.body = Body {
                    slot: at,
                    kind: BodyKind::H2c,
                    pad_left: layout.pad_len,
                    data_left: layout.data_len,
                    at: data.offset_bytes,
                    digest_left: layout.data_digest_len as u8,
                    digested: layout.data_digest_len > 0,
                    ..Body::NONE
                };
                conn.in_body = true;
                return Taken::Yes;
            }
        };
        self.terminate(shared, cx, c, status, header)
    }

    #[cold]
    fn refuse<I: StorageIo>(
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
    fn terminate<I: StorageIo>(
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

    /// Returns whether data of this size is received straight into its block.
    pub(super) fn is_large(len: u32) -> bool {
        len >= DIRECT_BYTES
    }
}

/// The way in which a new command's data moves.
enum Route {
    /// The command's data, of this many bytes, follows in the capsule.
    InCapsule(u32),
    /// The command needs a block of this many bytes. Once the command has the block, the given PDU is next.
    Block(u32, Next),
    /// The transport has no data to move: the command layer is executing the command, or the response is ready.
    Settled(CommandStep),
}

/// Decides how a command's data moves, by its descriptor (NVMe-oF TCP 1.0c §3.3.2.1).
#[inline]
fn route(shared: &mut Shared, at: u32, step: CommandStep, in_capsule: u32) -> Route {
    let refused = match (step, shared.engine.descriptor(at)) {
        (CommandStep::Gather(len), Sgl::InCapsule { offset_bytes: 0, .. }) if in_capsule == len => {
            return Route::InCapsule(len);
        }
        (CommandStep::Gather(len), Sgl::Transport { .. }) if in_capsule == 0 => {
            return Route::Block(len, Next::Block);
        }
        (CommandStep::Block(len), Sgl::Transport { .. }) => return Route::Block(len, Next::Response),
        (CommandStep::Held | CommandStep::Done, _) => return Route::Settled(step),
        (CommandStep::Gather(_), Sgl::InCapsule { offset_bytes: 0, .. } | Sgl::Transport { .. }) => {
            Status::DATA_SGL_LENGTH_INVALID
        }
        (CommandStep::Gather(_), Sgl::InCapsule { .. }) => Status::SGL_OFFSET_INVALID,
        _ => Status::SGL_TYPE_INVALID,
    };
    Route::Settled(shared.engine.fail(at, refused.dnr()))
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

/// Returns the data of a capsule if all of it is in `after`, without padding or digest.
#[inline]
fn whole_data<'a>(layout: &Layout, after: &'a [u8]) -> Option<&'a [u8]> {
    let bare = layout.pad_len == 0 && layout.data_digest_len == 0;
    after.get(..layout.data_len as usize).filter(|_| bare)
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
