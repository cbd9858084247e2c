//! Takes command capsules, and the headers of the data that R2Ts asked for.

use super::Tcp;
use super::command::{Next, TcpCommand};
use super::conn::{Body, BodyKind};
use super::rx::{DIRECT_BYTES, Taken};
use crate::cx::Cx;
use crate::frontend::nvme::engine::CommandStep;
use crate::frontend::shared::Shared;
use crate::msg::StorageIo;
use trefoil_wire::fabrics::ConnectData;
use trefoil_wire::nvme::{Sgl, Status};
use trefoil_wire::tcp::{FatalStatus, H2cData, Layout, field};

const CONNECT_BYTES: u32 = ConnectData::LEN as u32;

impl Tcp {
    /// Handles a command capsule. If there is no room for the capsule now, [`later`](Self::later) postpones it.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn command<I: StorageIo>(
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
    pub(super) fn h2c_data<I: StorageIo>(
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

/// Returns the data of a capsule if all of it is in `after`, without padding or digest.
#[inline]
fn whole_data<'a>(layout: &Layout, after: &'a [u8]) -> Option<&'a [u8]> {
    let bare = layout.pad_len == 0 && layout.data_digest_len == 0;
    after.get(..layout.data_len as usize).filter(|_| bare)
}
