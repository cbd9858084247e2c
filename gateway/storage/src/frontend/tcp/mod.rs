//! The NVMe/TCP transport (NVMe-oF TCP 1.0c): PDUs in and out. The transport does not know the meaning of commands.
//!
//! A connection has the number of its socket, which is also the number of its queue. The transport parses the stream in place: a
//! PDU that is whole in the received slice is never copied. Only in-capsule data is copied, straight into its payload block. A
//! small stash keeps the start of a header that is cut. Data of a large transfer is received straight into its block. Each
//! connection has at most one send outstanding; output that becomes ready meanwhile is batched into the next send.
//!
//! Memory: a connection that gets no slot or no memory stops receiving. Bytes that it has already received go to a block of the
//! reserve. If the reserve is exhausted too, the connection is closed, and the host connects again. A connection must not stop
//! while data for an R2T is pending: the data may come after a command that can't be taken, and only the data frees the
//! connection's slots and blocks. In that case the transport parks such commands, so that the stream goes on.

mod body;
mod conn;
mod rx;
mod starved;
mod tx;

use conn::BodyKind;
pub use conn::{Conn, ConnState};
pub use tx::ic_resp;

use super::limits::TargetLimits;
use super::nvme::engine::{CommandStep, Effect, Engine};
use super::nvme::queue::ConnAddrs;
use super::nvme::slot::Phase;
use super::shares::Shares;
use super::timers::Timer;
use crate::cx::Cx;
use crate::frontend::nvme::queue::QueueState;
use crate::msg::{Event, Msg, ShortName, StorageIo};
use std::collections::VecDeque;
use trefoil_poll::{Buf, Instant, RecvEnd, SendList, SockError, SockId};
use trefoil_wire::nvme::Status;

/// The result of an attempt to make room for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// A connection is closing. Its socket becomes free once the driver has closed it.
    Made,
    /// The connection that would be closed keeps its socket until this time.
    At(Instant),
    /// All connections are I/O controllers'.
    Never,
}

/// All connections of one core.
pub struct Tcp {
    limits: TargetLimits,
    conns: Box<[Conn]>,
    /// Send lists that are not under way, boxed as the driver takes them.
    #[allow(clippy::vec_box)]
    lists: Vec<Box<SendList>>,
    /// Connections with something to send.
    dirty: VecDeque<u32>,
    /// Connections that wait for memory or a slot, first come first served.
    starved: VecDeque<u32>,
    /// The starved connection that is being served.
    serving: u32,
    /// True if `consume` reads parked capsules instead of the stream.
    replaying: bool,
    /// Connections in the state [`ConnState::Closing`].
    closing: usize,
}

impl Tcp {
    /// Allocates connections of about 420 B each, lists of 21 KiB each, and two queues of a word a connection.
    pub fn new(limits: TargetLimits) -> Self {
        Self {
            limits,
            conns: (0..limits.max_conns).map(|_| Conn::new()).collect(),
            lists: (0..limits.send_lists).map(|_| SendList::new()).collect(),
            dirty: VecDeque::with_capacity(limits.max_conns),
            starved: VecDeque::with_capacity(limits.max_conns),
            serving: u32::MAX,
            replaying: false,
            closing: 0,
        }
    }

    /// Returns the number of connections that are closing.
    pub fn closing(&self) -> usize {
        self.closing
    }

    /// Returns the connection of a socket.
    pub fn conn(&self, sock: SockId) -> Option<&Conn> {
        self.conns.get(sock.0 as usize)
    }

    /// Adopts a host's connection.
    pub fn adopt<I: StorageIo>(
        &mut self,
        engine: &mut Engine,
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
        // The lists of dirty and starved connections may still hold this number from the previous connection.
        let (dirty, starved) = (conn.dirty, conn.starved);
        *conn = Conn { state: ConnState::Opening, since: now, initialized, dirty, starved, ..Conn::new() };
        engine.open(sock.0, place);
        self.ensure_timer(engine, sock.0);
        self.arm(engine, cx, sock.0);
    }

    /// Handles the end of a receive: the connection ends.
    pub fn on_recv_end<I: StorageIo>(
        &mut self,
        engine: &mut Engine,
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
        self.kill(engine, cx, sock.0, why);
    }

    /// Takes a send list back once its send has ended.
    pub fn on_sent<I: StorageIo>(
        &mut self,
        engine: &mut Engine,
        cx: &mut Cx<'_, I>,
        sock: SockId,
        mut list: Box<SendList>,
        result: Result<(), SockError>,
    ) {
        let Some(conn) = self.conns.get_mut(sock.0 as usize) else { return };
        while let Some(buf) = list.take_buf() {
            engine.shares.let_go(sock.0, buf.len());
            cx.arena.free(buf);
        }
        self.lists.push(list);
        conn.sending = None;
        // From now on the host can know of the R2Ts in the send, so their data is pending.
        if std::mem::take(&mut conn.asked) && conn.grants > 0 {
            self.owe(engine, cx, sock.0);
        }
        let Some(conn) = self.conns.get(sock.0 as usize) else { return };
        if result.is_err() {
            return self.kill(engine, cx, sock.0, "sending failed");
        }
        if conn.has_output() {
            self.mark_dirty(sock.0);
        } else if conn.state == ConnState::Ready && engine.queues[sock.0 as usize].closing {
            self.kill(engine, cx, sock.0, "the host disconnected");
        }
    }

    /// Handles the driver's last event of a connection: nothing is outstanding any more.
    pub fn on_closed<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>, sock: SockId) {
        self.kill(engine, cx, sock.0, "closed");
        if let Some(conn) =
            self.conns.get_mut(sock.0 as usize).filter(|conn| conn.state == ConnState::Closing)
        {
            conn.state = ConnState::Free;
            self.closing -= 1;
        }
    }

    /// Carries out the effects that the command layer asks for.
    pub fn settle<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>) {
        while let Some(effect) = engine.effects.pop_front() {
            match effect {
                Effect::Done(slot) => {
                    if let Some(at) = engine.resolve(slot) {
                        self.ready(engine, at);
                    }
                }
                Effect::Abort(slot) => {
                    let waits = engine.resolve(slot).filter(|&at| engine.slots[at].phase == Phase::Memory);
                    let Some(at) = waits else { continue };
                    let c = engine.slots[at].queue;
                    if self.conns[c as usize].waiting.remove(&mut engine.slots, at) {
                        engine.fail(at, Status::ABORT_REQUESTED);
                        self.ready(engine, at);
                    }
                }
                Effect::Refused => {
                    if let Some(refused) = engine.refusals.next() {
                        cx.io.post_control(Msg::Refused(refused));
                    }
                }
                Effect::Close { queue, generation, why } => {
                    if engine.queues[queue as usize].generation == generation {
                        self.kill(engine, cx, queue, why);
                    }
                }
            }
        }
    }

    /// Carries out a command's next step on its connection.
    #[inline]
    fn step(&mut self, engine: &mut Engine, at: u32, step: CommandStep) {
        match step {
            CommandStep::Done => self.ready(engine, at),
            CommandStep::Held => {}
            CommandStep::Gather(_) | CommandStep::Block(_) => {
                debug_assert!(false, "a second half asks for data")
            }
        }
    }

    /// Queues the slot's response or R2T for the next send.
    #[inline]
    fn ready(&mut self, engine: &mut Engine, at: u32) {
        let slot = &mut engine.slots[at];
        if slot.phase != Phase::Grant {
            slot.phase = Phase::Ready;
        }
        let c = slot.queue;
        let conn = &mut self.conns[c as usize];
        if conn.sending.is_some() && slot.loan.is_some() {
            // A read that waited at its backend may complete while an earlier send is stuck. Writers must not wait for that send.
            slot.end_loan();
        }
        conn.ready.push(&mut engine.slots, at);
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
    fn kill<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>, c: u32, why: &'static str) {
        let Some(conn) = self.conns.get_mut(c as usize) else { return };
        if matches!(conn.state, ConnState::Free | ConnState::Closing) {
            return;
        }
        conn.state = ConnState::Closing;
        self.closing += 1;
        let kept = [conn.spill.take().map(|spill| spill.buf), conn.parked.take().map(|parked| parked.buf)];
        for buf in kept.into_iter().flatten() {
            drop_kept(&mut engine.shares, cx, c, buf);
        }
        if let Some(key) = conn.timer.take() {
            engine.timers.cancel(key);
        }
        conn.in_body = false;
        conn.waiting = super::nvme::slot::Fifo::new();
        conn.ready = super::nvme::slot::Fifo::new();
        let q = &engine.queues[c as usize];
        let host = ShortName::new(engine.names[c as usize].host().as_str());
        let peer = engine.places[c as usize].peer;
        let down = Event::QpairDown { cntlid: q.cntlid, qid: q.qid, host, peer, why };
        let was_up = q.state == QueueState::Live && !q.discovery;
        cx.io.close(SockId(c));
        engine.close(cx, c);
        engine.shares.close(c);
        if was_up {
            cx.io.post_control(Msg::Event(down));
        }
    }

    /// Returns the next time at which the connection must be checked.
    fn deadline(&self, engine: &Engine, c: u32) -> Option<Instant> {
        let conn = &self.conns[c as usize];
        let connected = engine.queues[c as usize].state == QueueState::Live;
        let since = [conn.sending, conn.owed].into_iter().flatten().min();
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

    /// Returns the reason to close a connection whose deadline has passed. A connection that has moved data since the last check,
    /// in either direction, gets more time.
    #[cold]
    fn overdue<I: StorageIo>(&mut self, engine: &Engine, cx: &mut Cx<'_, I>, c: u32) -> Option<&'static str> {
        let conn = &mut self.conns[c as usize];
        if conn.state == ConnState::Terminating {
            return Some("the host did not close after a terminate request");
        }
        if engine.queues[c as usize].state != QueueState::Live {
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
        if conn.owed.is_some_and(|since| since + by <= now) {
            // While the driver fills a block, all received bytes are data.
            let filling = conn.in_body && conn.body.kind == BodyKind::H2c;
            let so_far = if filling { cx.io.come_bytes(SockId(c)) } else { 0 };
            let come = Some(conn.data_bytes.wrapping_add(so_far));
            if conn.come_bytes == come {
                return Some("the host does not send what it owes");
            }
            (conn.owed, conn.come_bytes) = (Some(now), come);
        }
        None
    }

    /// Notes that the host has data pending, if it had none before. The spec has no TermReq reason for missing data (NVMe-oF TCP
    /// 1.0c §3.6.2.4), and the memory must be free at once. So the target closes such a connection without a TermReq.
    fn owe<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>, c: u32) {
        let conn = &mut self.conns[c as usize];
        if conn.owed.is_none() {
            (conn.owed, conn.come_bytes) = (Some(cx.io.now()), None);
            self.ensure_timer(engine, c);
        }
    }

    #[inline]
    fn ensure_timer(&mut self, engine: &mut Engine, c: u32) {
        if self.conns[c as usize].timer.is_none()
            && let Some(at) = self.deadline(engine, c)
        {
            self.conns[c as usize].timer = engine.timers.arm(at, Timer::Queue(c));
        }
    }

    /// Handles a connection's timer. The deadline may have moved since the timer was armed.
    pub fn on_timer<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>, c: u32) {
        let Some(conn) = self.conns.get_mut(c as usize) else { return };
        conn.timer = None;
        match self.deadline(engine, c) {
            Some(at) if at <= cx.io.now() => match self.overdue(engine, cx, c) {
                Some(why) => self.kill(engine, cx, c, why),
                None => self.ensure_timer(engine, c),
            },
            Some(_) => self.ensure_timer(engine, c),
            None => {}
        }
    }

    /// See [`Target::make_room`](super::Target::make_room).
    pub fn make_room<I: StorageIo>(&mut self, engine: &mut Engine, cx: &mut Cx<'_, I>) -> Room {
        let Some(c) = engine.evictable.oldest_of_most() else { return Room::Never };
        let since = self.conns.get(c as usize).map_or(Instant::default(), |conn| conn.since);
        let until = since + self.limits.connect_grace;
        if until > cx.io.now() {
            return Room::At(until);
        }
        self.kill(engine, cx, c, "another came and there was no place");
        Room::Made
    }
}

/// Frees a block of received bytes that a connection kept.
fn drop_kept<I: StorageIo>(shares: &mut Shares, cx: &mut Cx<'_, I>, c: u32, buf: Buf) {
    shares.drop_kept(c, buf.len());
    cx.arena.free(buf);
}
