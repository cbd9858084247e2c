//! The NVMe/TCP transport (NVMe-oF TCP 1.0c): PDUs in and out. The transport does not know the meaning of commands.
//!
//! A connection has the number of its socket, which is also the number of its queue. The transport parses the stream in place:
//! a PDU that is whole in the received slice is not copied first. In-capsule data and the data of small transfers are copied,
//! straight into their payload block. The driver receives the data of a large transfer straight into its block. A small stash
//! keeps the start of a header that is cut. Each connection has at most one send outstanding. The next send takes all output
//! that becomes ready meanwhile.
//!
//! Memory: a connection that gets no slot or no memory stops receiving. Bytes that it has already received go to a block of the
//! reserve. If the reserve is exhausted too, the target closes the connection, and the host connects again. A connection must
//! not stop while data for an R2T is pending: the data may come after a command for which there is no room, and only the data
//! frees the connection's slots and blocks. In that case the transport parks such commands, so that the stream continues.

mod backlog;
mod body;
mod capsule;
mod command;
mod conn;
mod rx;
mod tx;

pub use command::COMMAND_BYTES;
pub use conn::{Conn, ConnState};
pub use tx::ic_resp;

use super::limits::TargetLimits;
use super::nvme::engine::CommandStep;
use super::nvme::queue::ConnAddrs;
use super::shared::{Order, Shared};
use super::timers::Timer;
use crate::cx::Cx;
use crate::list::Fifo;
use crate::msg::StorageIo;
use command::TcpCommands;
use conn::BodyKind;
use std::collections::VecDeque;
use trefoil_poll::{Buf, Instant, RecvEnd, SendList, SockError, SockId};

/// The result of an attempt to make room for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// A connection is closing. Its socket becomes free once the driver has closed it.
    Made,
    /// The connection to close keeps its socket until this time.
    At(Instant),
    /// All connections belong to I/O controllers.
    Never,
}

/// All connections of one core.
pub struct Tcp {
    limits: TargetLimits,
    conns: Box<[Conn]>,
    commands: TcpCommands,
    /// Send lists that are not in use, in the boxes that the driver takes.
    #[allow(clippy::vec_box)]
    lists: Vec<Box<SendList>>,
    /// Connections with something to send.
    dirty: VecDeque<u32>,
    /// True if `consume` reads parked capsules instead of the stream.
    replaying: bool,
    /// Connections in the state [`ConnState::Closing`].
    closing: usize,
}

impl Tcp {
    /// Allocates connections of about 420 B each, commands of 16 B each, and lists of 21 KiB each. The list of dirty
    /// connections takes a word for each connection.
    pub fn new(limits: TargetLimits) -> Self {
        Self {
            limits,
            conns: (0..limits.max_conns).map(|_| Conn::new()).collect(),
            commands: TcpCommands::new(limits.slots),
            lists: (0..limits.send_lists).map(|_| SendList::new()).collect(),
            dirty: VecDeque::with_capacity(limits.max_conns),
            replaying: false,
            closing: 0,
        }
    }

    /// Returns the number of connections that are closing.
    pub fn closing(&self) -> usize {
        self.closing
    }

    /// Returns the use of a header digest and of a data digest on a connection.
    pub fn digests(&self, sock: SockId) -> Option<(bool, bool)> {
        let framing = &self.conns.get(sock.0 as usize)?.framing;
        Some((framing.header_digest, framing.data_digest))
    }

    /// Adopts a host's connection.
    pub fn adopt<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        place: ConnAddrs,
        initialized: bool,
    ) {
        let now = cx.io.now();
        let Some(conn) = self.conns.get_mut(sock.0 as usize).filter(|conn| conn.state == ConnState::Free)
        else {
            return cx.io.close(sock);
        };
        // The list of dirty connections may still hold this number from the previous connection.
        let dirty = conn.dirty;
        *conn = Conn { state: ConnState::Opening, since: now, initialized, dirty, ..Conn::new() };
        shared.open(sock.0, place);
        self.ensure_timer(shared, sock.0);
        self.arm(shared, cx, sock.0);
    }

    /// Handles the end of a receive: the connection ends.
    pub fn on_recv_end<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        buf: Option<Buf>,
        why: RecvEnd,
    ) {
        buf.into_iter().for_each(|buf| cx.arena.free(buf));
        if let Some(conn) = self.conns.get_mut(sock.0 as usize) {
            conn.receiving = false;
        }
        let why = match why {
            RecvEnd::Eof => "the host closed",
            RecvEnd::Failed(_) => "receiving failed",
            RecvEnd::Closed => "closed",
        };
        self.kill(shared, cx, sock.0, why);
    }

    /// Takes a send list back once its send has ended.
    pub fn on_sent<I: StorageIo>(
        &mut self,
        shared: &mut Shared,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        mut list: Box<SendList>,
        result: Result<(), SockError>,
    ) {
        let Some(conn) = self.conns.get_mut(sock.0 as usize) else { return };
        while let Some(buf) = list.take_buf() {
            shared.memory.give_back(cx, sock.0, buf);
        }
        self.lists.push(list);
        conn.sending = None;
        // From now on the host can know the R2Ts in this send, so their data is pending.
        if std::mem::take(&mut conn.asked) && conn.grants > 0 {
            self.note_pending(shared, cx, sock.0);
        }
        let Some(conn) = self.conns.get(sock.0 as usize) else { return };
        if result.is_err() {
            return self.kill(shared, cx, sock.0, "sending failed");
        }
        if conn.has_output() {
            self.mark_dirty(sock.0);
        } else if conn.state == ConnState::Ready && shared.engine.queue(sock.0).has_disconnected() {
            self.kill(shared, cx, sock.0, "the host disconnected");
        }
    }

    /// Handles the driver's last event of a connection. Nothing of the connection is outstanding any more.
    pub fn on_closed<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>, sock: SockId) {
        self.kill(shared, cx, sock.0, "closed");
        if let Some(conn) =
            self.conns.get_mut(sock.0 as usize).filter(|conn| conn.state == ConnState::Closing)
        {
            conn.state = ConnState::Free;
            self.closing -= 1;
        }
    }

    /// Carries out the orders that the command layer has for the transport.
    #[inline]
    pub fn settle<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>) {
        while let Some(order) = shared.next_order(cx) {
            match order {
                Order::Respond(at) => self.ready(shared, at),
                Order::Close { conn, why } => self.kill(shared, cx, conn, why),
            }
        }
    }

    /// Carries out a command's next step on its connection.
    #[inline]
    fn step(&mut self, shared: &mut Shared, at: u32, step: CommandStep) {
        match step {
            CommandStep::Done => self.ready(shared, at),
            CommandStep::Held => {}
            CommandStep::Gather(_) | CommandStep::Block(_) => {
                debug_assert!(false, "a second half asks for data")
            }
        }
    }

    /// Queues the command's response for the next send.
    #[inline]
    fn ready(&mut self, shared: &mut Shared, at: u32) {
        let c = shared.engine.queue_of(at);
        if self.conns[c as usize].sending.is_some() {
            // A read that waited at its backend may complete while an earlier send is stuck. Writers must not wait for that
            // send, so the read's loan ends.
            shared.engine.end_loan(at);
        }
        self.output(c, at);
    }

    /// Appends a command to the output of connection `c`.
    #[inline]
    fn output(&mut self, c: u32, at: u32) {
        self.commands.push(&mut self.conns[c as usize].ready, at);
        self.mark_dirty(c);
    }

    #[inline]
    fn mark_dirty(&mut self, c: u32) {
        let conn = &mut self.conns[c as usize];
        if !conn.dirty && conn.sending.is_none() {
            conn.dirty = true;
            self.dirty.push_back(c);
        }
    }

    /// Closes a connection at once.
    fn kill<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>, c: u32, why: &'static str) {
        let Some(conn) = self.conns.get_mut(c as usize) else { return };
        if matches!(conn.state, ConnState::Free | ConnState::Closing) {
            return;
        }
        conn.state = ConnState::Closing;
        self.closing += 1;
        let kept = [conn.unparsed.take().map(|rest| rest.buf), conn.parked.take().map(|parked| parked.buf)];
        for buf in kept.into_iter().flatten() {
            shared.memory.drop_kept(cx, c, buf);
        }
        if let Some(key) = conn.timer.take() {
            shared.engine.timers.cancel(key);
        }
        conn.in_body = false;
        conn.ready = Fifo::EMPTY;
        cx.io.close(SockId(c));
        shared.close(cx, c, why);
    }

    /// Returns the next time at which the connection must be checked.
    fn deadline(&self, shared: &Shared, c: u32) -> Option<Instant> {
        let conn = &self.conns[c as usize];
        let connected = shared.engine.queue(c).is_live();
        let since = [conn.sending, conn.pending_since].into_iter().flatten().min();
        let moved_by = since.map(|since| since + self.limits.progress_timeout / 2);
        match conn.state {
            ConnState::Free | ConnState::Closing => None,
            ConnState::Terminating => Some(conn.since + self.limits.terminate_timeout),
            ConnState::Opening | ConnState::Ready if !connected => {
                Some(conn.since + self.limits.connect_timeout)
            }
            ConnState::Opening | ConnState::Ready => moved_by,
        }
    }

    /// Returns the reason to close a connection whose deadline has passed. Returns `None` if the send in flight and the pending
    /// data have both made progress since the last check; the connection then gets more time.
    #[cold]
    fn overdue<I: StorageIo>(&mut self, shared: &Shared, cx: &mut Cx<'_, I>, c: u32) -> Option<&'static str> {
        let conn = &mut self.conns[c as usize];
        if conn.state == ConnState::Terminating {
            return Some("the host did not close after a terminate request");
        }
        if !shared.engine.queue(c).is_live() {
            return Some("no Connect in time");
        }
        let now = cx.io.now();
        let by = self.limits.progress_timeout / 2;
        if conn.sending.is_some_and(|since| since + by <= now) {
            let taken = Some(cx.io.taken_bytes(SockId(c)));
            if conn.taken_bytes == taken {
                return Some("the host does not read");
            }
            (conn.sending, conn.taken_bytes) = (Some(now), taken);
        }
        if conn.pending_since.is_some_and(|since| since + by <= now) {
            // While the driver fills a block, all received bytes are data.
            let filling = conn.in_body && conn.body.kind == BodyKind::H2c;
            let so_far = if filling { cx.io.come_bytes(SockId(c)) } else { 0 };
            let come = Some(conn.data_bytes.wrapping_add(so_far));
            if conn.come_bytes == come {
                return Some("the host does not send its pending data");
            }
            (conn.pending_since, conn.come_bytes) = (Some(now), come);
        }
        None
    }

    /// Notes that the host has data pending, if there was no pending data before. The spec has no TermReq reason for missing
    /// data (NVMe-oF TCP 1.0c §3.6.2.4), and the memory must be free at once. So the target later closes a connection with
    /// missing data without a TermReq.
    fn note_pending<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>, c: u32) {
        let conn = &mut self.conns[c as usize];
        if conn.pending_since.is_none() {
            (conn.pending_since, conn.come_bytes) = (Some(cx.io.now()), None);
            self.ensure_timer(shared, c);
        }
    }

    #[inline]
    fn ensure_timer(&mut self, shared: &mut Shared, c: u32) {
        if self.conns[c as usize].timer.is_none()
            && let Some(at) = self.deadline(shared, c)
        {
            self.conns[c as usize].timer = shared.engine.timers.arm(at, Timer::Queue(c));
        }
    }

    /// Handles a connection's timer. The deadline may have moved since the timer was armed.
    pub fn on_timer<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>, c: u32) {
        let Some(conn) = self.conns.get_mut(c as usize) else { return };
        conn.timer = None;
        match self.deadline(shared, c) {
            Some(at) if at <= cx.io.now() => match self.overdue(shared, cx, c) {
                Some(why) => self.kill(shared, cx, c, why),
                None => self.ensure_timer(shared, c),
            },
            Some(_) => self.ensure_timer(shared, c),
            None => {}
        }
    }

    /// See [`Target::make_room`](super::Target::make_room).
    pub fn make_room<I: StorageIo>(&mut self, shared: &mut Shared, cx: &mut Cx<'_, I>) -> Room {
        let Some(c) = shared.evictable.first() else { return Room::Never };
        let since = self.conns.get(c as usize).map_or(Instant::default(), |conn| conn.since);
        let until = since + self.limits.connect_grace;
        if until > cx.io.now() {
            return Room::At(until);
        }
        self.kill(shared, cx, c, "another came and there was no place");
        Room::Made
    }
}
