//! Transfers without the ring: a system call now, and the ring only for what would have to wait.
//!
//! Why: a completion costs an entry, a poll armed and fired, and task work. On loopback, 4 KiB replies
//! one at a time reached 0.81 of a bare loop's rate through the ring alone, and 1.0 this way.

use super::UringIo;
use super::sock::{Recv, Sending};
use super::tag::Kind;
use crate::io::{Handler, RecvEnd, SockError, SockId};
use std::os::fd::AsFd;
use std::time::Duration;
use trefoil_sys::socket;

/// Sockets whose receive is tried each turn (about 0.2 µs each) rather than left to the ring (about
/// 0.9 µs more from arrival to completion). Measured on loopback against a bare loop that scans all its
/// sockets: with 8 to 64 busy sockets this reaches 0.89 to 1.0 of it and the ring alone 0.78 to 0.9;
/// above 64 the ring's batches win. A table smaller than the busy sockets does worse than either.
pub(super) const MAX_HOT: usize = 64;
/// How long a socket is tried after it had bytes: several exchanges of 64 sockets that take turns.
pub(super) const HOT_TIME: Duration = Duration::from_micros(200);
/// The most that one such receive takes. A host with 128 reads of 4 KiB under way completes 1.3 times as many a second
/// as with 64 KiB, since all of what a turn answered comes in two receives.
pub(super) const SCRATCH_BYTES: usize = 256 << 10;

impl<M: Send> UringIo<M> {
    /// Takes what is there already; the ring waits for the rest.
    pub(super) fn try_filling(&mut self, index: u32) {
        let Some(sock) = self.socks.get_mut(index) else { return };
        if let (true, Some(fd), Recv::Buf { buf, at, len, done }) = (self.direct, &sock.fd, &mut sock.recv) {
            let left = self.faults.cap(*len - *done);
            let start = (*at + *done) as usize;
            let result = socket::recv_now(fd.as_fd(), &mut buf[start..start + left as usize]);
            match result {
                Ok(n) if n > 0 && *done + (n as u32) < *len => *done += n as u32,
                Err(libc::EAGAIN | libc::EINTR) => {}
                result => {
                    sock.in_kernel += 1;
                    let result = result.map_or_else(|errno| -errno, |n| n as i32);
                    return self.done.push_back((Kind::Recv, index, result));
                }
            }
        }
        self.start_recv(index);
    }

    /// Gives the socket what it takes now; the ring waits until it takes the rest.
    pub(super) fn try_sending(&mut self, index: u32) {
        let Some(sock) = self.socks.get_mut(index) else { return };
        if let (true, Some(fd), Some(Sending { list, sent })) = (self.direct, &sock.fd, &mut sock.send) {
            let vectors = list.gather(0, self.faults.cap_len(list.len_bytes()));
            // SAFETY: the pieces are the list's own bytes and blocks.
            let result = unsafe { socket::send_now(fd.as_fd(), vectors) };
            list.end_loans(result.unwrap_or(0));
            match result {
                Ok(n) if n < list.len_bytes() => *sent = n,
                Err(libc::EAGAIN | libc::EINTR) => {}
                result => {
                    sock.in_kernel += 1;
                    let result = result.map_or_else(|errno| -errno, |n| n as i32);
                    return self.done.push_back((Kind::Send, index, result));
                }
            }
        }
        self.start_send(index);
    }

    /// Tries the receives of sockets that had bytes a moment ago; says whether any had more.
    pub(crate) fn poll_hot<H: Handler<Self>>(&mut self, handler: &mut H) -> bool {
        let mut any = false;
        let mut at = 0;
        // Those that the handler adds wait for the next turn.
        for _ in 0..self.hot.len() {
            let Some(&index) = self.hot.get(at) else { break };
            let mut scratch = std::mem::take(&mut self.scratch);
            let tried = self.try_hot(index, &mut scratch);
            if tried == Err(libc::EAGAIN) {
                at += 1;
            } else {
                any = true;
                self.hot.swap_remove(at);
                self.hot_done(index, tried, &scratch, handler);
            }
            self.scratch = scratch;
        }
        any
    }

    fn try_hot(&mut self, index: u32, scratch: &mut [u8]) -> Result<usize, i32> {
        let Some(sock) = self.socks.get_mut(index) else { return Err(libc::EBADF) };
        let (Some(fd), Recv::Stream { max_bytes }) = (&sock.fd, &sock.recv) else { return Err(libc::EBADF) };
        if sock.closing {
            return Err(libc::ECANCELED);
        }
        let max = self.faults.cap((*max_bytes).min(scratch.len() as u32));
        match socket::recv_now(fd.as_fd(), &mut scratch[..max as usize]) {
            Err(libc::EAGAIN | libc::EINTR) if self.now.since(sock.last_rx) < HOT_TIME => Err(libc::EAGAIN),
            // Cold: the ring waits for it.
            Err(libc::EAGAIN | libc::EINTR) => Err(libc::ETIME),
            result => result,
        }
    }

    fn hot_done<H: Handler<Self>>(
        &mut self,
        index: u32,
        tried: Result<usize, i32>,
        scratch: &[u8],
        handler: &mut H,
    ) {
        let Some(sock) = self.socks.get_mut(index) else { return };
        sock.hot = false;
        let id = SockId(index);
        match tried {
            // Closed; `settle` tells.
            Err(libc::ECANCELED) => {}
            Err(libc::ETIME) => self.start_recv(index),
            Ok(n @ 1..) => {
                sock.recv = Recv::Idle;
                sock.last_rx = self.now;
                handler.on_received(self, id, &scratch[..n]);
            }
            Ok(0) => {
                sock.recv = Recv::Idle;
                handler.on_recv_end(self, id, None, RecvEnd::Eof);
            }
            Err(errno) => {
                sock.recv = Recv::Idle;
                handler.on_recv_end(self, id, None, RecvEnd::Failed(SockError(errno)));
            }
        }
    }

    /// Hands all hot receives to the ring, before a sleep.
    pub(super) fn cool(&mut self) {
        while let Some(index) = self.hot.pop() {
            if let Some(sock) = self.socks.get_mut(index) {
                sock.hot = false;
                if !sock.closing {
                    self.start_recv(index);
                }
            }
        }
    }
}
