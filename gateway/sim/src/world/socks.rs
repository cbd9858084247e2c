//! Sockets of a core: how the world delivers bytes, ends of streams and failures to them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use trefoil_poll::errno::{ECANCELED, ECONNREFUSED, ECONNRESET, ETIMEDOUT};
use trefoil_poll::{RecvEnd, RecvInto, SendList, SockError, SockEvent, SockId};

use crate::net::NodeId;
use crate::net::{Conn, ConnId, Holder, Side};
use crate::simio::{Manners, SimSocket};
use crate::world::events::{Event, SockUse, Where};
use crate::world::running::{Ready, Running};
use crate::world::{Accepted, LinkDefect, Machine, Step, World};

/// After this time, an attempt to connect to a dark node fails.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A core's socket. [`SimIo`](crate::simio::SimIo) holds the socket's [`Manners`].
#[derive(Default)]
pub(crate) struct Sock {
    conn: Option<(ConnId, Side)>,
    uses: u32,
    connecting: bool,
    recv: Option<RecvInto>,
    /// Number of received bytes of a [`RecvInto::Buf`].
    filled: u32,
    /// True if the core will get an event for this receive.
    recv_told: bool,
    send: Option<Box<SendList>>,
    sent_bytes: usize,
    send_result: Option<Result<(), SockError>>,
    closed: bool,
}

impl<M: Send, H: Machine<M>> World<M, H> {
    pub(super) fn ask_adopt(&mut self, node: NodeId, core: u16, sock: SockId, socket: SimSocket) {
        let s = &mut self.core(node, core).socks[sock.0 as usize];
        *s = Sock { conn: Some((socket.conn, socket.side)), uses: s.uses + 1, ..Sock::default() };
        let end = self.conns[socket.conn.0 as usize].end(socket.side);
        assert!(end.node == node, "a socket of another node");
        if !matches!(end.holder, Holder::Gone) {
            end.holder = Holder::Core { core, sock };
        }
    }

    pub(super) fn ask_connect(&mut self, node: NodeId, core: u16, sock: SockId, to: SocketAddr) {
        let s = &mut self.core(node, core).socks[sock.0 as usize];
        *s = Sock { connecting: true, uses: s.uses + 1, ..Sock::default() };
        let which = SockUse { sock: sock.0, uses: s.uses };
        let at = self.now + self.weather.latency * 2 + Duration::from_nanos(self.rng.below(200_000));
        let place = self.place(node, core);
        self.events.push(at, Event::Connect(place, which, to));
    }

    fn is_connecting(&mut self, at: Where, which: SockUse) -> bool {
        self.is_life(at.node, at.life) && {
            let s = &self.core(at.node, at.core).socks[which.sock as usize];
            s.connecting && s.uses == which.uses
        }
    }

    pub(super) fn connect_arrives(&mut self, at: Where, which: SockUse, to: SocketAddr) -> Step {
        if !self.is_connecting(at, which) {
            return Step::Ran;
        }
        let target = self.nodes.iter().position(|n| n.ip == to.ip());
        let now = self.now;
        let dark = self.nodes[at.node.0 as usize].dark_until > now
            || target.is_none_or(|t| self.nodes[t].dark_until > now || !self.nodes[t].powered);
        if dark {
            self.events.push(now + CONNECT_TIMEOUT, Event::ConnectFailed(at, which, ETIMEDOUT));
            return Step::Ran;
        }
        let Some(server) = self.listeners.get(&to).copied().filter(|&n| self.is_up(n)) else {
            self.connect_failed(at, which, ECONNREFUSED);
            return Step::Ran;
        };
        let client = self.node(at.node);
        client.next_port = if client.next_port == u16::MAX { 40_000 } else { client.next_port + 1 };
        let peer = SocketAddr::new(client.ip, client.next_port);
        let id = ConnId(self.conns.len() as u32);
        let held = Arc::new(());
        let ours = Holder::Core { core: at.core, sock: which.id() };
        let theirs = Holder::Detached(held.clone());
        let room = self.weather.buffer_bytes;
        self.conns.push(Conn::new((at.node, ours), (server, theirs), room));
        self.detached.push((id, Side::Server));
        let socket = SimSocket { conn: id, side: Side::Server, _held: held };
        self.node(server).accepted.push_back(Accepted { socket, local: to, peer });
        let s = &mut self.core(at.node, at.core).socks[which.sock as usize];
        (s.connecting, s.conn) = (false, Some((id, Side::Client)));
        self.story.note(now, &[3, u64::from(id.0), u64::from(at.node.0), u64::from(server.0)]);
        let (a, b) = (&self.nodes[at.node.0 as usize].name, &self.nodes[server.0 as usize].name);
        self.story.tell(now, format_args!("connection {}: {a} core {} → {b}", id.0, at.core));
        self.tell_core(at.node, at.core, Ready::Connected(which.sock, Ok(())));
        self.sweep_detached();
        Step::Accepted(server)
    }

    pub(super) fn connect_failed(&mut self, at: Where, which: SockUse, errno: i32) {
        if self.is_connecting(at, which) {
            self.core(at.node, at.core).socks[which.sock as usize].connecting = false;
            self.tell_core(at.node, at.core, Ready::Connected(which.sock, Err(errno)));
        }
    }

    pub(super) fn ask_recv(&mut self, node: NodeId, core: u16, sock: SockId, into: RecvInto) {
        let s = &mut self.core(node, core).socks[sock.0 as usize];
        (s.recv, s.filled) = (Some(into), 0);
        self.pump_recv(node, core, sock.0);
    }

    /// Moves arrived bytes into a waiting block. Sends the core an event when the receive is complete, failed, or at the end of
    /// the stream.
    fn pump_recv(&mut self, node: NodeId, core: u16, sock: u32) {
        let mut freed = None;
        let mut newly_told = false;
        let mut s = std::mem::take(&mut self.core(node, core).socks[sock as usize]);
        if let (Some(into), Some((conn, side)), false) = (&mut s.recv, s.conn, s.recv_told) {
            let end = self.conns[conn.0 as usize].end(side);
            let mut tell = end.error.is_some() || end.rx.at_end();
            match into {
                RecvInto::Stream { .. } => tell |= end.rx.readable() > 0,
                RecvInto::Buf { buf, at, len } => {
                    let (from, to) = ((*at + s.filled) as usize, (*at + *len) as usize);
                    let got = end.rx.read(&mut buf[from..to]);
                    s.filled += got as u32;
                    tell = s.filled == *len || end.error.is_some() || end.rx.at_end();
                    freed = (got > 0).then_some((conn, side));
                }
            }
            s.recv_told = tell;
            newly_told = tell;
        }
        self.core(node, core).socks[sock as usize] = s;
        if newly_told {
            self.tell_core(node, core, Ready::Recv(sock));
        }
        if let Some((conn, side)) = freed {
            self.pump_writer(conn, side);
        }
    }

    /// Resumes the sender of bytes to `side`, because the buffer has room again.
    fn pump_writer(&mut self, conn: ConnId, side: Side) {
        let writer = self.conns[conn.0 as usize].end(side.other());
        if let (Holder::Core { core, sock }, node) = (&writer.holder, writer.node) {
            let (core, sock) = (*core, sock.0);
            self.pump_send(node, core, sock);
        }
    }

    pub(super) fn deliver_recv(&mut self, node: NodeId, core: u16, running: &mut Running<M, H>, sock: u32) {
        let s = &mut self.core(node, core).socks[sock as usize];
        let (Some(into), Some((conn, side))) = (s.recv.take(), s.conn) else { return };
        s.recv_told = false;
        let (filled, closed) = (s.filled, s.closed);
        running.io.socks[sock as usize].receiving = false;
        let end = self.conns[conn.0 as usize].end(side);
        let why = match (closed, end.error) {
            (true, _) => RecvEnd::Closed,
            (false, Some(errno)) => RecvEnd::Failed(SockError(errno)),
            (false, None) => RecvEnd::Eof,
        };
        let mut tell = |event| running.machine.on_sock(&mut running.io, SockId(sock), event);
        match into {
            RecvInto::Buf { buf, len, .. } if filled == len => tell(SockEvent::Filled(buf)),
            RecvInto::Stream { max_bytes } if !closed && end.rx.readable() > 0 => {
                let mut scratch = std::mem::take(&mut self.scratch);
                let mut max = scratch.len().min(max_bytes as usize).min(end.rx.readable());
                if self.rng.below(12) == 0 {
                    max = 1 + self.rng.below(max as u64) as usize;
                }
                let got = end.rx.read(&mut scratch[..max]);
                tell(SockEvent::Received(&scratch[..got]));
                self.scratch = scratch;
                self.pump_writer(conn, side);
            }
            into => tell(into.end(why)),
        }
    }

    pub(super) fn ask_send(&mut self, node: NodeId, core: u16, sock: SockId, list: Box<SendList>) {
        let s = &mut self.core(node, core).socks[sock.0 as usize];
        let (uses, len) = (s.uses, list.len_bytes());
        (s.send, s.sent_bytes, s.send_result) = (Some(list), 0, None);
        let short = self.rng.below(100) < self.weather.short_percent;
        let max = if short { self.rng.below(len as u64) as usize } else { len };
        self.push_out(node, core, sock.0, max);
        self.end_loans(node, core, sock.0);
        if short {
            let at = self.now + Duration::from_nanos(1 + self.rng.below(200_000));
            let place = self.place(node, core);
            self.events.push(at, Event::SendOn(place, SockUse { sock: sock.0, uses }));
        }
    }

    /// Ends the loans of bytes that the socket did not take at once. The real driver does the same.
    fn end_loans(&mut self, node: NodeId, core: u16, sock: u32) {
        let LinkDefect { keep_loan, blank_loan, .. } = self.link_defect;
        let (keeps, blanks) = (self.chance(keep_loan), self.chance(blank_loan));
        let s = &mut self.core(node, core).socks[sock as usize];
        let sent = s.sent_bytes;
        let Some(list) = s.send.as_mut().filter(|list| list.loans() > 0) else { return };
        let cut = sent < list.len_bytes();
        if !keeps {
            list.end_loans(if blanks { list.len_bytes() } else { sent });
        }
        self.loans.sends += 1;
        self.loans.cut += u64::from(cut);
    }

    pub(super) fn send_on(&mut self, at: Where, which: SockUse) {
        if self.is_life(at.node, at.life)
            && self.core(at.node, at.core).socks[which.sock as usize].uses == which.uses
        {
            self.pump_send(at.node, at.core, which.sock);
        }
    }

    /// Passes as many bytes of a waiting list to the connection as the connection takes.
    fn pump_send(&mut self, node: NodeId, core: u16, sock: u32) {
        self.push_out(node, core, sock, usize::MAX);
    }

    /// Passes at most `max` bytes of a waiting list to the connection.
    fn push_out(&mut self, node: NodeId, core: u16, sock: u32, max: usize) {
        let mut s = std::mem::take(&mut self.core(node, core).socks[sock as usize]);
        let was_done = s.send_result.is_some();
        if let (Some(list), Some((conn, side)), None) = (&s.send, s.conn, s.send_result) {
            let c = &mut self.conns[conn.0 as usize];
            if let Some(errno) = c.end(side).error {
                s.send_result = Some(Err(SockError(errno)));
            } else if c.end(side.other()).is_deaf() {
                // The peer has closed the connection or failed. The bytes are lost, and the sender gets a reset.
                s.send_result = Some(Ok(()));
                self.schedule_fail(conn, side, ECONNRESET);
            } else {
                let mut taken = c.end(side.other()).rx.fill(list, s.sent_bytes, max);
                s.sent_bytes += taken;
                if s.sent_bytes == list.len_bytes() {
                    s.send_result = Some(Ok(()));
                }
                let double = self.link_defect.double;
                if is_response(list) && taken == list.len_bytes() && self.chance(double) {
                    taken += self.conns[conn.0 as usize].end(side.other()).rx.fill(list, 0, usize::MAX);
                    self.story.tell(self.now, format_args!("defect: a completion goes out twice"));
                }
                self.schedule_segments(conn, side.other(), taken);
            }
        }
        let done = s.send_result.is_some() && !was_done;
        self.core(node, core).socks[sock as usize] = s;
        if done {
            self.tell_core(node, core, Ready::Sent(sock));
        }
    }

    fn schedule_segments(&mut self, conn: ConnId, to: Side, len_bytes: usize) {
        let mut left = len_bytes;
        let cut = self.rng.below(100) < self.weather.cut_percent;
        while left > 0 {
            let len = if cut { 1 + self.rng.below(left as u64) as usize } else { left };
            left -= len;
            let weather = self.weather;
            let at = self.conns[conn.0 as usize].end(to).rx.arrival(self.now, &weather, &mut self.rng);
            self.events.push(at, Event::Arrive(conn, to, len as u32));
        }
    }

    pub(super) fn deliver_sent(&mut self, node: NodeId, core: u16, running: &mut Running<M, H>, sock: u32) {
        let s = &mut self.core(node, core).socks[sock as usize];
        let Some(list) = s.send.take() else { return };
        let result = s.send_result.take().unwrap_or(Err(SockError(ECANCELED)));
        running.io.socks[sock as usize].sending = false;
        running.machine.on_sock(&mut running.io, SockId(sock), SockEvent::Sent { list, result });
    }

    pub(super) fn deliver_connected(
        &mut self,
        node: NodeId,
        core: u16,
        running: &mut Running<M, H>,
        sock: u32,
        result: Result<(), i32>,
    ) {
        let closed = self.core(node, core).socks[sock as usize].closed;
        let result = if closed { Err(ECANCELED) } else { result };
        running.io.socks[sock as usize].connected = result.is_ok();
        let event = SockEvent::Connected(result.map_err(SockError));
        running.machine.on_sock(&mut running.io, SockId(sock), event);
    }

    pub(super) fn ask_close(&mut self, node: NodeId, core: u16, sock: SockId) {
        let s = &mut self.core(node, core).socks[sock.0 as usize];
        s.closed = true;
        let conn = s.conn;
        let mut ends = Vec::new();
        if s.connecting {
            s.connecting = false;
            ends.push(Ready::Connected(sock.0, Err(ECANCELED)));
        }
        if s.recv.is_some() && !s.recv_told {
            s.recv_told = true;
            ends.push(Ready::Recv(sock.0));
        }
        if s.send.is_some() && s.send_result.is_none() {
            s.send_result = Some(Err(SockError(ECANCELED)));
            ends.push(Ready::Sent(sock.0));
        }
        ends.push(Ready::Closed(sock.0));
        ends.into_iter().for_each(|what| self.tell_core(node, core, what));
        if let Some((conn, side)) = conn {
            self.close_end(conn, side);
        }
    }

    pub(super) fn deliver_closed(&mut self, node: NodeId, core: u16, running: &mut Running<M, H>, sock: u32) {
        let s = &mut self.core(node, core).socks[sock as usize];
        debug_assert!(s.recv.is_none() && s.send.is_none(), "socket {sock} ends with something outstanding");
        *s = Sock { uses: s.uses, ..Sock::default() };
        running.io.socks[sock as usize] = Manners::default();
        running.machine.on_sock(&mut running.io, SockId(sock), SockEvent::Closed);
    }

    /// Closes an end. The peer sees the end of the stream. The peer sees a reset instead if bytes were left unread or, at random,
    /// in one of ten cases.
    pub(super) fn close_end(&mut self, conn: ConnId, side: Side) {
        let reset = self.rng.below(10) == 0;
        let c = &mut self.conns[conn.0 as usize];
        let unread = c.end(side).rx.is_unread();
        c.end(side).holder = Holder::Gone;
        c.end(side).rx.discard();
        if matches!(c.end(side.other()).holder, Holder::Gone) {
            c.end(side.other()).rx.discard();
            return;
        }
        if unread || reset {
            return self.schedule_fail(conn, side.other(), ECONNRESET);
        }
        let weather = self.weather;
        let at = c.end(side.other()).rx.arrival(self.now, &weather, &mut self.rng);
        self.events.push(at, Event::Fin(conn, side.other()));
        // Without this call, a sender that waits for room would wait for ever.
        self.pump_writer(conn, side);
    }

    pub(super) fn schedule_fail(&mut self, conn: ConnId, side: Side, errno: i32) {
        let at = self.now + self.weather.latency + Duration::from_nanos(self.rng.below(100_000));
        self.events.push(at, Event::Fail(conn, side, errno));
    }

    /// Returns whether bytes to `side` are delayed. If so, postpones the event until the stall ends. If `side` is black, drops
    /// the event.
    fn is_held_up(&mut self, conn: ConnId, side: Side, event: Event) -> bool {
        let c = &self.conns[conn.0 as usize];
        if c.black[side as usize] {
            return true;
        }
        let until = c.stalled_until;
        if until > self.now {
            self.events.push(until, event);
            return true;
        }
        false
    }

    pub(super) fn arrive(&mut self, conn: ConnId, side: Side, len: u32) {
        if self.is_held_up(conn, side, Event::Arrive(conn, side, len)) {
            return;
        }
        let mut rng = std::mem::replace(&mut self.rng, trefoil_poll::rand::Rng::new(0));
        let c = &mut self.conns[conn.0 as usize];
        c.end(side).rx.arrive(len as usize);
        if c.flips[side as usize] > 0 {
            c.flips[side as usize] -= 1;
            c.end(side).rx.flip(len as usize, &mut rng);
        }
        self.rng = rng;
        self.story.note(self.now, &[4, u64::from(conn.0), side as u64, u64::from(len)]);
        self.pump_end(conn, side);
    }

    pub(super) fn arrive_fin(&mut self, conn: ConnId, side: Side) {
        if !self.is_held_up(conn, side, Event::Fin(conn, side)) {
            self.conns[conn.0 as usize].end(side).rx.fin_arrived = true;
            self.pump_end(conn, side);
        }
    }

    pub(super) fn fail_end(&mut self, conn: ConnId, side: Side, errno: i32) {
        if !self.is_held_up(conn, side, Event::Fail(conn, side, errno)) {
            self.fail_now(conn, side, errno);
        }
    }

    pub(super) fn fail_now(&mut self, conn: ConnId, side: Side, errno: i32) {
        let end = self.conns[conn.0 as usize].end(side);
        if end.error.is_none() {
            end.error = Some(errno);
            end.rx.discard();
            self.story.note(self.now, &[5, u64::from(conn.0), side as u64]);
            self.pump_end(conn, side);
        }
    }

    fn pump_end(&mut self, conn: ConnId, side: Side) {
        let end = self.conns[conn.0 as usize].end(side);
        if let (&Holder::Core { core, sock }, node) = (&end.holder, end.node) {
            self.pump_recv(node, core, sock.0);
            self.pump_send(node, core, sock.0);
        }
    }
}

/// Returns whether the list is a single response capsule without a digest: type 05h, 24 bytes (NVMe-oF TCP 1.0c
/// §3.6.2.7).
fn is_response(list: &SendList) -> bool {
    list.len_bytes() == 24 && list.pieces().flatten().next() == Some(&5)
}
