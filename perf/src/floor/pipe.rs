//! One connection's end: walks what comes in message by message, and sends messages by their kind.

use super::{Area, Exchange};
use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;

/// Bytes read or written by one call at the most.
pub const IO_BYTES: usize = 256 << 10;
/// Pieces that one write gathers at the most; a message has up to two.
const SLICES: usize = 256;
const CACHE_LINE: usize = 64;

/// The kinds of message; the first byte of each says which it is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// Client to server.
    Request,
    /// Client to server after a grant.
    Data,
    /// Server to client.
    Grant,
    /// Server to client.
    Reply,
}

/// See the module.
pub struct Pipe {
    socket: TcpStream,
    inbox: Vec<u8>,
    /// One whole message of each kind.
    templates: [Vec<u8>; 4],
    /// Bytes at the end of a reply that are taken from the area, and the area.
    payload_bytes: usize,
    area: Option<Area>,
    random: u64,
    /// Bytes of the message under way that have not come.
    rest: usize,
    under_way: Kind,
    /// What to send, in order, each with its place in the area; the first is sent up to `sent`.
    queue: VecDeque<(Kind, usize)>,
    sent: usize,
}

impl Pipe {
    /// An end for up to `depth` exchanges.
    ///
    /// # Errors
    /// What the socket says.
    pub fn new(socket: TcpStream, x: Exchange, depth: usize) -> Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let sizes = [x.request_bytes, x.data_bytes, x.grant_bytes, x.reply_bytes];
        let mut templates = sizes.map(|size| vec![0; size]);
        for (kind, template) in templates.iter_mut().enumerate() {
            template.iter_mut().take(1).for_each(|b| *b = kind as u8);
        }
        Ok(Self {
            socket,
            inbox: vec![0; IO_BYTES],
            templates,
            payload_bytes: x.payload_bytes,
            area: None,
            random: 0x9e37_79b9_7f4a_7c15,
            rest: 0,
            under_way: Kind::Reply,
            queue: VecDeque::with_capacity(2 * depth),
            sent: 0,
        })
    }

    /// From now on the payload of replies comes from `area`, if a reply's fits.
    pub fn take_payload_from(&mut self, area: Area) {
        self.area = (self.payload_bytes > 0 && area.len() >= self.payload_bytes).then_some(area);
    }

    /// Queues a message, having touched its payload.
    pub fn push(&mut self, kind: Kind) {
        let mut at = 0;
        match &self.area {
            Some(area) if kind == Kind::Reply => {
                // xorshift64: the places need no better randomness.
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                at = self.random as usize % (area.len() / self.payload_bytes) * self.payload_bytes;
                touch_in(&area[at..at + self.payload_bytes]);
            }
            _ => touch_out(&mut self.templates[kind as usize], kind as u8),
        }
        self.queue.push_back((kind, at));
    }

    /// Reads once and queues the answer that `each` gives to every message that is now whole; false at
    /// the end of the stream.
    ///
    /// # Errors
    /// What the socket says; a message of no kind.
    pub fn read(&mut self, mut each: impl FnMut(Kind) -> Kind) -> Result<bool> {
        let n = match self.socket.read(&mut self.inbox) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(e) => return Err(e).context("floor: read"),
        };
        touch_in(&self.inbox[..n]);
        let mut at = 0;
        while at < n {
            if self.rest == 0 {
                self.under_way = match self.inbox[at] {
                    0 => Kind::Request,
                    1 => Kind::Data,
                    2 => Kind::Grant,
                    3 => Kind::Reply,
                    other => bail!("floor: a message of kind {other}"),
                };
                self.rest = self.templates[self.under_way as usize].len();
            }
            let step = self.rest.min(n - at);
            self.rest -= step;
            at += step;
            if self.rest == 0 {
                self.push(each(self.under_way));
            }
        }
        Ok(true)
    }

    /// Sends what is queued, as much as the socket takes.
    ///
    /// # Errors
    /// What the socket says; a peer that went away is none.
    pub fn write(&mut self) -> Result<()> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for &(kind, at) in self.queue.iter().take(SLICES / 2) {
                let template = &self.templates[kind as usize];
                match &self.area {
                    Some(area) if kind == Kind::Reply => {
                        slices[used] = IoSlice::new(&template[..template.len() - self.payload_bytes]);
                        slices[used + 1] = IoSlice::new(&area[at..at + self.payload_bytes]);
                        used += 2;
                    }
                    _ => {
                        slices[used] = IoSlice::new(template);
                        used += 1;
                    }
                }
            }
            let mut unsent = &mut slices[..used];
            IoSlice::advance_slices(&mut unsent, self.sent);
            match self.socket.write_vectored(unsent) {
                Ok(written) => self.sent += written,
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                    ) =>
                {
                    break;
                }
                Err(e) => return Err(e).context("floor: write"),
            }
            while let Some((kind, _)) = self.queue.front() {
                let len = self.templates[*kind as usize].len();
                if self.sent < len {
                    break;
                }
                self.sent -= len;
                self.queue.pop_front();
            }
        }
        Ok(())
    }
}

fn touch_out(payload: &mut [u8], stamp: u8) {
    payload.iter_mut().step_by(CACHE_LINE).for_each(|b| *b = stamp);
}

fn touch_in(payload: &[u8]) {
    std::hint::black_box(payload.iter().step_by(CACHE_LINE).fold(0u8, |sum, b| sum ^ b));
}

/// Sleeps until one of the sockets that it watches can be read.
pub struct Waiter(Epoll);

impl Waiter {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// What epoll_create1(2) says.
    pub fn new() -> Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches `socket` until it is closed.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn watch(&self, socket: &TcpStream) -> Result<()> {
        Ok(self.0.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?)
    }

    /// Sleeps, 10 ms at the most: who could not write tries again then, unless something came before.
    ///
    /// # Errors
    /// What epoll_wait(2) says.
    pub fn wait(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 16];
        self.0.wait(&mut events, EpollTimeout::from(10u8))?;
        Ok(())
    }
}
