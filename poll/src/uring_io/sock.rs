//! Sockets of the io_uring driver: starting operations and handling their completions.

use super::tag::{Kind, pack};
use super::{RECV_GROUP, UringIo};
use crate::buf::Buf;
use crate::io::{Handler, RecvEnd, RecvInto, SockError, SockEvent, SockId, TableFull};
use crate::send::SendList;
use crate::time::Instant;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use trefoil_sys::socket::{self, SockAddr};
use trefoil_sys::uring::{Flags, cqueue, opcode, types};

/// The largest number of hot sockets: sockets whose receive is tried in each turn. A try costs about 0.2 µs; the ring
/// takes about 0.9 µs more from arrival to completion. We measured on loopback, against a bare loop that scans all its
/// sockets. With 8 to 64 busy sockets, hot sockets reach 0.89 to 1.0 of the loop's rate, and the ring alone reaches
/// 0.78 to 0.9. With more than 64 busy sockets, the ring is faster, because it handles batches. If the table of hot
/// sockets has fewer places than there are busy sockets, the rate is lower than with either method alone.
pub(super) const MAX_HOT: usize = 64;
/// The time for which a socket stays hot after its last bytes: long enough for several exchanges of 64 sockets that
/// take turns.
pub(super) const HOT_TIME: Duration = Duration::from_micros(200);

/// Wait for readiness before the first try (IORING_RECVSEND_POLL_FIRST).
const POLL_FIRST: u16 = 1;

/// One socket.
pub(super) struct Sock {
    pub fd: Option<OwnedFd>,
    pub closing: bool,
    /// Set while the socket is in the driver's queue of closing sockets.
    settling: bool,
    /// The number of outstanding completions.
    pub in_kernel: u8,
    pub recv: Recv,
    pub send: Option<Sending>,
    /// Set while the receive is tried each turn instead of waiting in the ring.
    pub hot: bool,
    /// The time of the last received bytes.
    pub last_rx: Instant,
    /// Set if more bytes waited when the last receive ended. Then the next receive need not poll first.
    nonempty: bool,
    /// The address to connect to. The kernel reads it when the connect is submitted.
    peer: Option<SockAddr>,
    /// The errno with which the socket could not be made. The connect's completion reports this errno.
    refused: i32,
    message: libc::msghdr,
}

pub(super) enum Recv {
    Idle,
    Stream { max_bytes: u32 },
    Buf { buf: Buf, at: u32, len: u32, done: u32 },
}

impl Recv {
    /// Returns the event of a receive that ended before its bytes arrived; `None` if there was no receive.
    fn end(self, why: RecvEnd) -> Option<SockEvent<'static>> {
        let buf = match self {
            Self::Idle => return None,
            Self::Stream { .. } => None,
            Self::Buf { buf, .. } => Some(buf),
        };
        Some(SockEvent::RecvEnd { buf, why })
    }
}

pub(super) struct Sending {
    pub list: Box<SendList>,
    pub sent: usize,
}

impl Sock {
    fn new(fd: Option<OwnedFd>) -> Self {
        // SAFETY: all zeros is an empty message header.
        let message = unsafe { std::mem::zeroed() };
        Self {
            fd,
            closing: false,
            settling: false,
            in_kernel: 0,
            recv: Recv::Idle,
            send: None,
            hot: false,
            last_rx: Instant::default(),
            nonempty: false,
            peer: None,
            refused: 0,
            message,
        }
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd))
    }
}

/// Returns whether the errno only means that the operation must be tried again.
fn transient(errno: i32) -> bool {
    matches!(errno, libc::EINTR | libc::EAGAIN)
}

impl<M: Send> UringIo<M> {
    pub(super) fn sock_adopt(&mut self, socket: OwnedFd) -> Result<SockId, OwnedFd> {
        if self.stopping {
            return Err(socket);
        }
        match self.socks.insert(Sock::new(Some(socket))) {
            Ok(index) => Ok(SockId(index)),
            Err(Sock { fd: Some(socket), .. }) => Err(socket),
            Err(_) => unreachable!("it was made with a socket"),
        }
    }

    pub(super) fn sock_connect(&mut self, to: SocketAddr) -> Result<SockId, TableFull> {
        if self.stopping || self.socks.is_full() {
            return Err(TableFull);
        }
        let mut sock = match socket::for_connect(to, self.socket_options) {
            Ok(fd) => Sock::new(Some(fd)),
            Err(e) => Sock { refused: e.raw_os_error().unwrap_or(libc::EIO), ..Sock::new(None) },
        };
        sock.peer = Some(to.into());
        sock.in_kernel = 1;
        let index = self.socks.insert(sock).map_err(|_| TableFull)?;
        let tag = pack(Kind::Connect, self.socks.generation(index), index);
        if let Some(Sock { fd, peer: Some(peer), .. }) = self.socks.get_mut(index) {
            // The address stays in the table, which does not move, until the entry is submitted.
            let entry = match fd {
                Some(fd) => {
                    opcode::Connect::new(types::Fd(fd.as_raw_fd()), peer.as_ptr(), peer.len_bytes()).build()
                }
                None => opcode::Nop::new().build(),
            };
            self.push(entry.user_data(tag));
        }
        Ok(SockId(index))
    }

    pub(super) fn sock_recv(&mut self, id: SockId, into: RecvInto) {
        let Some(sock) = self.socks.get_mut(id.0) else { panic!("a receive on {id:?}, which is closed") };
        assert!(matches!(sock.recv, Recv::Idle), "a second receive on {id:?}");
        sock.recv = match into {
            RecvInto::Stream { max_bytes } => Recv::Stream { max_bytes },
            RecvInto::Buf { buf, at, len } => {
                let fits = (at as usize).checked_add(len as usize).is_some_and(|end| end <= buf.len());
                assert!(fits && len > 0, "bytes {at}+{len} of {buf:?}");
                Recv::Buf { buf, at, len, done: 0 }
            }
        };
        if sock.closing {
            self.settle_soon(id.0);
        } else if matches!(sock.recv, Recv::Buf { .. }) {
            self.try_filling(id.0);
        } else if self.direct && self.hot.len() < MAX_HOT && self.now.since(sock.last_rx) < HOT_TIME {
            sock.hot = true;
            self.hot.push(id.0);
        } else {
            self.start_recv(id.0);
        }
    }

    pub(super) fn start_recv(&mut self, index: u32) {
        let tag = pack(Kind::Recv, self.socks.generation(index), index);
        let Some(sock) = self.socks.get_mut(index) else { return };
        let entry = match &sock.recv {
            Recv::Idle => return,
            Recv::Stream { max_bytes } => {
                let max = self.faults.cap((*max_bytes).min(self.recv_buffer_bytes));
                let poll_first = if sock.nonempty { 0 } else { self.poll_first };
                opcode::Recv::new(sock.fd(), std::ptr::null_mut(), max)
                    .buf_group(RECV_GROUP)
                    .ioprio(poll_first)
                    .build()
                    .flags(Flags::BUFFER_SELECT)
            }
            Recv::Buf { buf, at, len, done } => {
                let left = self.faults.cap(len - done);
                // SAFETY: `at + len` lies inside the block, as `sock_recv` checked.
                let start = unsafe { buf.as_ptr().add((at + done) as usize) };
                opcode::Recv::new(sock.fd(), start, left).flags(libc::MSG_WAITALL).build()
            }
        };
        sock.in_kernel += 1;
        self.push(entry.user_data(tag));
        self.cancel_by_fault(tag);
    }

    pub(super) fn sock_send(&mut self, id: SockId, list: Box<SendList>) {
        let Some(sock) = self.socks.get_mut(id.0) else { panic!("a send on {id:?}, which is closed") };
        assert!(sock.send.is_none(), "a second send on {id:?}");
        sock.send = Some(Sending { list, sent: 0 });
        match sock.closing {
            false => self.try_sending(id.0),
            true => self.settle_soon(id.0),
        }
    }

    pub(super) fn start_send(&mut self, index: u32) {
        let tag = pack(Kind::Send, self.socks.generation(index), index);
        let Some(sock) = self.socks.get_mut(index) else { return };
        let fd = sock.fd();
        let Some(Sending { list, sent }) = &mut sock.send else { return };
        list.end_loans(*sent);
        let left = list.len_bytes() - *sent;
        let vectors = list.gather(*sent, self.faults.cap_len(left));
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = match vectors {
            [one] => opcode::Send::new(fd, one.iov_base.cast(), one.iov_len as u32).flags(flags).build(),
            vectors => {
                // The header, the vectors and their bytes keep their addresses until the completion.
                sock.message.msg_iov = vectors.as_mut_ptr();
                sock.message.msg_iovlen = vectors.len();
                opcode::SendMsg::new(fd, &raw const sock.message).flags(flags as u32).build()
            }
        };
        sock.in_kernel += 1;
        self.push(entry.user_data(tag));
        self.cancel_by_fault(tag);
    }

    pub(super) fn sock_close(&mut self, id: SockId) {
        let Some(sock) = self.socks.get_mut(id.0).filter(|sock| !sock.closing) else { return };
        sock.closing = true;
        if sock.in_kernel > 0 {
            // Entries are submitted in order. So when this cancellation runs, the descriptor still belongs to this
            // socket, or all its operations have ended and the descriptor's new owner has no operation yet.
            let by_fd = types::CancelBuilder::fd(sock.fd()).all();
            let entry = opcode::AsyncCancel2::new(by_fd).build();
            self.push(entry.user_data(pack(Kind::Ignored, 0, 0)));
        }
        self.settle_soon(id.0);
    }

    /// Queues a closing socket, so that the next `settle_closing` checks the socket.
    fn settle_soon(&mut self, index: u32) {
        if let Some(sock) = self.socks.get_mut(index).filter(|sock| !sock.settling) {
            sock.settling = true;
            self.closing.push_back(index);
        }
    }

    /// Closes every socket when the core stops.
    pub(crate) fn close_all(&mut self) {
        self.stopping = true;
        for index in 0..self.socks.capacity() {
            if self.socks.get_mut(index).is_some() {
                self.sock_close(SockId(index));
            }
        }
    }

    /// Restarts receives that found no buffer, as buffers may have been given back since. Returns `true` if a receive
    /// was restarted.
    pub(crate) fn restart_starved(&mut self) -> bool {
        let starved = self.starved.len();
        for _ in 0..starved {
            if let Some(index) = self.starved.pop_front() {
                self.start_recv(index);
            }
        }
        starved > 0
    }

    /// Ends each closing socket that has no outstanding operation. Returns `true` if a socket was closing.
    pub(crate) fn settle_closing<H: Handler<Self>>(&mut self, handler: &mut H) -> bool {
        let closing = self.closing.len();
        for _ in 0..closing {
            if let Some(index) = self.closing.pop_front() {
                if let Some(sock) = self.socks.get_mut(index) {
                    sock.settling = false;
                }
                self.settle(index, handler);
            }
        }
        closing > 0
    }

    fn settle<H: Handler<Self>>(&mut self, index: u32, handler: &mut H) {
        let Some(sock) = self.socks.get_mut(index) else { return };
        if !sock.closing || sock.settling || sock.in_kernel > 0 {
            return;
        }
        if let Some(waiting) = self.starved.iter().position(|&s| s == index) {
            self.starved.remove(waiting);
        }
        if std::mem::take(&mut sock.hot) {
            self.hot.retain(|&hot| hot != index);
        }
        let recv = std::mem::replace(&mut sock.recv, Recv::Idle);
        let send = sock.send.take();
        sock.fd = None;
        // An operation that was started after the close, or a receive that waited for a buffer, ends here.
        let id = SockId(index);
        if let Some(end) = recv.end(RecvEnd::Closed) {
            handler.on_sock(self, id, end);
        }
        if let Some(Sending { list, .. }) = send {
            handler.on_sock(self, id, SockEvent::Sent { list, result: Err(SockError(libc::ECANCELED)) });
        }
        // The handler may have started further operations in these calls. The socket is then in the queue again.
        if self.socks.get_mut(index).is_some_and(|sock| !sock.settling) {
            self.socks.remove(index);
            handler.on_sock(self, id, SockEvent::Closed);
        }
    }

    pub(super) fn recv_done<H: Handler<Self>>(
        &mut self,
        index: u32,
        result: i32,
        flags: u32,
        handler: &mut H,
    ) {
        let picked = cqueue::buffer_select(flags);
        let Some(sock) = self.socks.get_mut(index) else { return };
        sock.in_kernel -= 1;
        sock.nonempty = cqueue::sock_nonempty(flags);
        let closing = sock.closing;
        let recv = std::mem::replace(&mut sock.recv, Recv::Idle);
        let id = SockId(index);
        let why = match result {
            0 => RecvEnd::Eof,
            1.. => RecvEnd::Closed,
            _ => RecvEnd::Failed(SockError(-result)),
        };
        let again = transient(-result) || result == -libc::ECANCELED;
        match recv {
            Recv::Idle => {}
            recv if closing => {
                if let Some(end) = recv.end(RecvEnd::Closed) {
                    handler.on_sock(self, id, end);
                }
            }
            Recv::Stream { max_bytes } => match picked {
                Some(buffer) if result > 0 => {
                    sock.last_rx = self.now;
                    // SAFETY: this completion named the buffer, and the buffer is given back only below.
                    let bytes = unsafe { self.recv_buffers.bytes(buffer, result as usize) };
                    handler.on_sock(self, id, SockEvent::Received(bytes));
                }
                _ if result == -libc::ENOBUFS => {
                    sock.recv = Recv::Stream { max_bytes };
                    self.starved.push_back(index);
                }
                _ if again => {
                    sock.recv = Recv::Stream { max_bytes };
                    self.start_recv(index);
                }
                _ => handler.on_sock(self, id, SockEvent::RecvEnd { buf: None, why }),
            },
            Recv::Buf { buf, at, len, done } => {
                let done = done + result.max(0) as u32;
                if done == len {
                    handler.on_sock(self, id, SockEvent::Filled(buf));
                } else if result > 0 || again {
                    sock.recv = Recv::Buf { buf, at, len, done };
                    self.start_recv(index);
                } else {
                    handler.on_sock(self, id, SockEvent::RecvEnd { buf: Some(buf), why });
                }
            }
        }
        if let Some(buffer) = picked {
            self.recv_buffers.give_back(buffer);
        }
        self.settle(index, handler);
    }

    pub(super) fn send_done<H: Handler<Self>>(&mut self, index: u32, result: i32, handler: &mut H) {
        let Some(sock) = self.socks.get_mut(index) else { return };
        sock.in_kernel -= 1;
        let Some(mut sending) = sock.send.take() else { return };
        sending.sent += result.max(0) as usize;
        let errno = -result;
        let result = if sending.sent == sending.list.len_bytes() && result >= 0 {
            Ok(())
        } else if sock.closing {
            Err(SockError(libc::ECANCELED))
        } else if result > 0 || transient(errno) || errno == libc::ECANCELED {
            sock.send = Some(sending);
            return self.start_send(index);
        } else {
            // A stream never accepts zero bytes without an error.
            Err(SockError(errno.max(libc::EPERM)))
        };
        handler.on_sock(self, SockId(index), SockEvent::Sent { list: sending.list, result });
        self.settle(index, handler);
    }

    pub(super) fn connect_done<H: Handler<Self>>(&mut self, index: u32, result: i32, handler: &mut H) {
        let Some(sock) = self.socks.get_mut(index) else { return };
        sock.in_kernel -= 1;
        let outcome = match (sock.closing, sock.refused, result) {
            (true, ..) => Err(SockError(libc::ECANCELED)),
            (false, 0, 0) => Ok(()),
            (false, 0, error) => Err(SockError(-error)),
            (false, refused, _) => Err(SockError(refused)),
        };
        handler.on_sock(self, SockId(index), SockEvent::Connected(outcome));
        self.settle(index, handler);
    }
}

pub(super) const fn poll_first(wanted: bool) -> u16 {
    if wanted { POLL_FIRST } else { 0 }
}
