//! One end of a connection: splits the received bytes into messages, and sends messages. Each kind of message has one size.

use super::{Exchange, Store};
use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::Range;

/// The most bytes that one call reads or writes.
pub const IO_BYTES: usize = 256 << 10;
/// The most buffers that one write gathers. A message has one or two buffers.
const SLICES: usize = 256;
/// A read goes directly into the store only if at least this many bytes of the message are still missing.
const DIRECT_BYTES: usize = 16 << 10;
const CACHE_LINE: usize = 64;

/// The kinds of message. The first byte of a message is its kind.
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

/// One end of a connection; see the module.
pub struct Pipe {
    socket: TcpStream,
    inbox: Vec<u8>,
    /// One whole message of each kind.
    templates: [Vec<u8>; 4],
    /// Bytes at the end of a reply that the server sends from the store.
    fetched_bytes: usize,
    /// For each kind, the bytes at the end of the message that the server puts into the store.
    stored_bytes: [usize; 4],
    /// Missing bytes of the message that is being received, and the message's place in the store.
    rest: usize,
    place: usize,
    /// Received bytes of one read that are to be put into the store: the place in the store, and the range in the inbox.
    puts: Vec<(u64, Range<usize>)>,
    under_way: Kind,
    /// Messages to send, in order, each with its place in the store. The first `sent` bytes of the first message are already
    /// sent.
    queue: VecDeque<(Kind, usize)>,
    sent: usize,
}

impl Pipe {
    /// Creates an end for up to `depth` exchanges.
    ///
    /// # Errors
    /// The error of the socket.
    pub fn new(socket: TcpStream, x: Exchange, depth: usize) -> Result<Self> {
        crate::proc::prepare(&socket)?;
        let sizes = [x.request_bytes, x.data_bytes, x.grant_bytes, x.reply_bytes];
        let mut templates = sizes.map(|size| vec![0; size]);
        for (kind, template) in templates.iter_mut().enumerate() {
            template.iter_mut().take(1).for_each(|b| *b = kind as u8);
        }
        Ok(Self {
            socket,
            inbox: vec![0; IO_BYTES],
            templates,
            fetched_bytes: x.fetched_bytes,
            stored_bytes: match x.grant_bytes {
                0 => [x.stored_bytes, 0, 0, 0],
                _ => [0, x.stored_bytes, 0, 0],
            },
            rest: 0,
            place: 0,
            puts: Vec::new(),
            under_way: Kind::Reply,
            queue: VecDeque::with_capacity(2 * depth),
            sent: 0,
        })
    }

    /// Queues a message and touches its payload. If the payload comes from the store, the later send touches it instead.
    pub fn push(&mut self, kind: Kind, store: &mut Store) {
        let mut at = 0;
        if kind == Kind::Reply && store.lends() {
            at = store.pick();
        } else {
            touch_out(&mut self.templates[kind as usize], kind as u8);
        }
        self.queue.push_back((kind, at));
    }

    /// Reads once. For every message that is now complete, calls `each` and queues the message that it returns. Returns `false`
    /// at the end of the stream.
    ///
    /// # Errors
    /// The error of the socket, or a message of unknown kind.
    pub fn read(&mut self, store: &mut Store, mut each: impl FnMut(Kind) -> Kind) -> Result<bool> {
        if self.rest >= DIRECT_BYTES
            && self.rest <= self.stored_bytes[self.under_way as usize]
            && let Some(to) = store.place(self.here(), self.rest)
        {
            let Some(n) = came(self.socket.read(to))? else { return Ok(false) };
            self.rest -= n;
            if self.rest == 0 {
                self.push(each(self.under_way), store);
            }
            return Ok(true);
        }
        let Some(n) = came(self.socket.read(&mut self.inbox))? else { return Ok(false) };
        if !store.keeps() {
            touch_in(&self.inbox[..n]);
        }
        let mut at = 0;
        while at < n {
            if self.rest == 0 {
                self.under_way = match self.inbox[at] {
                    0 => Kind::Request,
                    1 => Kind::Data,
                    2 => Kind::Grant,
                    3 => Kind::Reply,
                    other => bail!("floor: the peer sent a message of unknown kind {other}"),
                };
                self.rest = self.templates[self.under_way as usize].len();
                if self.stored_bytes[self.under_way as usize] > 0 {
                    self.place = store.pick();
                }
            }
            // A message starts with bytes that are not stored. The stored bytes follow.
            let stored = self.stored_bytes[self.under_way as usize];
            let head = self.rest.saturating_sub(stored).min(n - at);
            (self.rest, at) = (self.rest - head, at + head);
            let step = self.rest.min(n - at);
            if step > 0 && self.rest <= stored {
                self.puts.push((self.here() as u64, at..at + step));
            }
            (self.rest, at) = (self.rest - step, at + step);
            if self.rest == 0 {
                self.push(each(self.under_way), store);
            }
        }
        store.put(self.puts.drain(..).map(|(to, from)| (to, &self.inbox[from])))?;
        Ok(true)
    }

    /// Returns the place in the store for the next received byte.
    fn here(&self) -> usize {
        self.place + self.stored_bytes[self.under_way as usize] - self.rest
    }

    /// Sends queued messages until the socket takes no more or the queue is empty.
    ///
    /// # Errors
    /// The error of the socket. A peer that has disconnected is no error.
    pub fn write(&mut self, store: &Store) -> Result<()> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for &(kind, at) in self.queue.iter().take(SLICES / 2) {
                let template = &self.templates[kind as usize];
                match store.piece(at) {
                    Some(piece) if kind == Kind::Reply => {
                        slices[used] = IoSlice::new(&template[..template.len() - self.fetched_bytes]);
                        slices[used + 1] = IoSlice::new(piece);
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
                Err(e) => return Err(e).context("floor: the write failed"),
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

/// Returns how many bytes a read received, or `None` at the end of the stream.
fn came(result: std::io::Result<usize>) -> Result<Option<usize>> {
    match result {
        Ok(0) => Ok(None),
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Some(0)),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(None),
        Err(e) => Err(e).context("floor: the read failed"),
    }
}

fn touch_out(payload: &mut [u8], stamp: u8) {
    payload.iter_mut().step_by(CACHE_LINE).for_each(|b| *b = stamp);
}

fn touch_in(payload: &[u8]) {
    std::hint::black_box(payload.iter().step_by(CACHE_LINE).fold(0u8, |sum, b| sum ^ b));
}

/// A waiter that sleeps until one of its sockets can be read.
pub struct Waiter(Epoll);

impl Waiter {
    /// Creates a waiter without sockets.
    ///
    /// # Errors
    /// The error of epoll_create1(2).
    pub fn new() -> Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches `socket` until it is closed.
    ///
    /// # Errors
    /// The error of epoll_ctl(2).
    pub fn watch(&self, socket: &TcpStream) -> Result<()> {
        Ok(self.0.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?)
    }

    /// Sleeps until a socket can be read, but at most 10 ms, because a blocked write must be retried.
    ///
    /// # Errors
    /// The error of epoll_wait(2).
    pub fn wait(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 16];
        self.0.wait(&mut events, EpollTimeout::from(10u8))?;
        Ok(())
    }
}
