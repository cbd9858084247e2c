//! The interface between a core's protocol machines and the outside: sockets, files, time and other cores.
//!
//! [`Io`] has the calls that a machine may make; [`Handler`] has the events that it gets. Calls never block
//! and never call back: answers come as later events of the same core. The io_uring driver and the simulator
//! both implement [`Io`], with static dispatch.

use crate::arena::Arena;
use crate::buf::Buf;
use crate::send::SendList;
use crate::time::Instant;
use std::net::SocketAddr;
use std::{fmt, io};

/// A core's number, from 0, in its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

/// A socket of this core: a small dense index, reused after [`SockEvent::Closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockId(pub u32);

/// An open file or block device of this core: a small dense index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub u32);

/// The driver has no slot left for another socket or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

/// The destination of received bytes.
#[derive(Debug)]
pub enum RecvInto {
    /// Receives into memory of the driver, at most `max_bytes` (the driver may take less). As soon as any
    /// bytes arrive, [`SockEvent::Received`] brings them. An idle socket holds no memory.
    Stream {
        /// Upper bound on the bytes taken from the socket.
        max_bytes: u32,
    },
    /// Fills all of `buf[at..at + len]`, then reports [`SockEvent::Filled`].
    Buf {
        /// The block to fill.
        buf: Buf,
        /// First byte to write.
        at: u32,
        /// Bytes to wait for; not zero.
        len: u32,
    },
}

impl RecvInto {
    /// Returns the event that reports the end of a receive into this destination before its bytes arrived.
    pub fn end(self, why: RecvEnd) -> SockEvent<'static> {
        let buf = if let Self::Buf { buf, .. } = self { Some(buf) } else { None };
        SockEvent::RecvEnd { buf, why }
    }
}

/// The reason for which a receive ended before its bytes arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvEnd {
    /// The peer closed its side.
    Eof,
    /// The socket failed.
    Failed(SockError),
    /// [`Io::close`] was called.
    Closed,
}

/// A socket operation failed with this errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockError(pub i32);

impl fmt::Display for SockError {
    /// Writes the text of strerror(3), such as `Connection refused`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from_raw_os_error(self.0).to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

/// A file operation failed with this errno; a read past the end is `EIO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileError(pub i32);

/// An operation on a file or block device. Offsets and lengths are in bytes.
#[derive(Debug)]
pub enum FileOp {
    /// Reads into `buf[at..at + len]` from `offset`. Completes only when all bytes are read.
    Read {
        /// The block that takes the bytes.
        buf: Buf,
        /// First byte of `buf`.
        at: u32,
        /// The number of bytes.
        len: u32,
        /// The offset in the file to read from.
        offset: u64,
    },
    /// Writes `buf[at..at + len]` to `offset`. With `durable`, completes only when the bytes are on stable
    /// media (RWF_DSYNC).
    Write {
        /// The block that holds the bytes.
        buf: Buf,
        /// First byte of `buf`.
        at: u32,
        /// The number of bytes.
        len: u32,
        /// The offset in the file to write to.
        offset: u64,
        /// Force unit access.
        durable: bool,
    },
    /// fdatasync(2).
    Sync,
    /// Makes a range read as zeros and keeps its space (FALLOC_FL_ZERO_RANGE).
    Zero {
        /// The start of the range.
        offset: u64,
        /// The length of the range.
        len: u64,
    },
    /// Gives a range's space back. The range then reads as zeros (FALLOC_FL_PUNCH_HOLE).
    Punch {
        /// The start of the range.
        offset: u64,
        /// The length of the range.
        len: u64,
    },
}

/// The answer to [`Io::file`].
#[derive(Debug)]
pub struct FileDone {
    /// The token that was given with the operation.
    pub token: u64,
    /// The block of a read or write.
    pub buf: Option<Buf>,
    /// The result of the operation.
    pub result: Result<(), FileError>,
}

/// The calls that a machine may make to its core's driver.
pub trait Io {
    /// A connected socket that no core owns yet.
    type Socket: Send;
    /// An open file that no core owns yet.
    type File: Send;
    /// The message between two cores, or between a core and the control thread.
    type Msg: Send;

    /// Returns the time at which this turn began.
    fn now(&self) -> Instant;
    /// Returns random bits for jitter and identifiers; not for secrets.
    fn random(&mut self) -> u64;
    /// Returns this core's number.
    fn core(&self) -> CoreId;
    /// Returns the number of cores in this gateway.
    fn cores(&self) -> u16;

    /// Takes ownership of a connected socket.
    ///
    /// # Errors
    /// Returns the socket if the table is full.
    fn adopt(&mut self, socket: Self::Socket) -> Result<SockId, Self::Socket>;
    /// Opens a connection; [`SockEvent::Connected`] has the result. The caller must close the id after a
    /// failure, too.
    ///
    /// # Errors
    /// [`TableFull`].
    fn connect(&mut self, to: SocketAddr) -> Result<SockId, TableFull>;
    /// Starts a receive. A socket has at most one outstanding receive. On a socket that is being closed (by
    /// [`close`](Self::close), or because the core stops) the receive ends with [`RecvEnd::Closed`].
    ///
    /// # Panics
    /// May panic on a second call while the first is outstanding, or on an id after its
    /// [`SockEvent::Closed`].
    fn recv(&mut self, sock: SockId, into: RecvInto);
    /// Sends all of `list`, in order. A socket has at most one outstanding send. On a socket that is being
    /// closed the send ends with `ECANCELED`.
    ///
    /// # Panics
    /// May panic on a second call while the first is outstanding, or on an id after its
    /// [`SockEvent::Closed`].
    fn send(&mut self, sock: SockId, list: Box<SendList>);
    /// Returns how many bytes the peer has acknowledged since the connection came up, as far as the driver knows. The
    /// number shows whether a long send makes progress. The call may cost a system call. A driver that doesn't know
    /// returns 0.
    fn taken_bytes(&mut self, _sock: SockId) -> u64 {
        0
    }
    /// Returns how many bytes have arrived from the peer since the connection came up, as far as the driver knows.
    /// Bytes that no receive has taken yet count too. The number shows whether a receive into a block makes progress.
    /// The call costs as much as [`taken_bytes`](Self::taken_bytes), and also returns 0 if the driver doesn't know.
    fn come_bytes(&mut self, _sock: SockId) -> u64 {
        0
    }
    /// Closes a socket at once. Each outstanding operation ends and returns its buffers: a receive with
    /// [`RecvEnd::Closed`], a connect with `ECANCELED`, a send with its own result. Then comes
    /// [`SockEvent::Closed`]. A second call is harmless.
    fn close(&mut self, sock: SockId);

    /// Takes ownership of an open file.
    ///
    /// # Errors
    /// Returns the file if the table is full.
    fn attach_file(&mut self, file: Self::File) -> Result<FileId, Self::File>;
    /// Closes a file once its operations are done. The caller starts no further operation on the file.
    fn detach_file(&mut self, file: FileId);
    /// Starts an operation; the answer comes to [`Handler::on_file`] with `token`. The driver queues an
    /// operation that the kernel can't take now.
    fn file(&mut self, file: FileId, op: FileOp, token: u64);

    /// Sends a message to another core of this gateway. A message to this core arrives in the next turn.
    /// Messages between two cores arrive in order. The sender bounds the number of messages in flight.
    fn post(&mut self, to: CoreId, msg: Self::Msg);
    /// Sends a message to the control thread.
    fn post_control(&mut self, msg: Self::Msg);

    /// Returns whether the caller must behave wrongly in the way that `mutation` names. The simulator uses such
    /// mutations to prove that it finds such a bug. A real driver always returns `false`. The compiler knows this
    /// constant, so a gateway contains no code of a mutation.
    #[inline(always)]
    fn is_broken(&self, _mutation: &'static str) -> bool {
        false
    }
}

/// An event of a socket. An adopted socket is connected from the start; the first event of any other socket is
/// `Connected`.
///
/// Each call of [`Io::recv`] gets one answer (`Received`, `Filled` or `RecvEnd`). Each call of [`Io::send`] gets one
/// `Sent`, and each call of [`Io::connect`] gets one `Connected`. `Closed` comes exactly once, after [`Io::close`] and
/// after all these answers.
pub enum SockEvent<'a> {
    /// Answers [`RecvInto::Stream`] with at least one byte. No receive is outstanding now. The driver owns the bytes.
    Received(&'a [u8]),
    /// Answers [`RecvInto::Buf`]: the range of the block is full. No receive is outstanding now.
    Filled(Buf),
    /// Reports a receive that ended before its bytes arrived.
    RecvEnd {
        /// The block of the receive, if the receive had a block.
        buf: Option<Buf>,
        /// The reason.
        why: RecvEnd,
    },
    /// Reports a send that completed or failed.
    Sent {
        /// The list of the send, with its blocks.
        list: Box<SendList>,
        /// The result of the send.
        result: Result<(), SockError>,
    },
    /// Answers [`Io::connect`].
    Connected(Result<(), SockError>),
    /// Reports the end of a socket. No operation is outstanding, and the driver may reuse the id.
    Closed,
}

impl SockEvent<'_> {
    /// Frees the blocks of an event whose socket has no owner.
    ///
    /// # Panics
    /// Panics if a block belongs to another arena.
    pub fn discard(self, arena: &mut Arena) {
        match self {
            Self::Filled(buf) => arena.free(buf),
            Self::RecvEnd { buf, .. } => buf.into_iter().for_each(|buf| arena.free(buf)),
            Self::Sent { mut list, .. } => {
                while let Some(buf) = list.take_buf() {
                    arena.free(buf);
                }
            }
            Self::Received(_) | Self::Connected(_) | Self::Closed => {}
        }
    }
}

/// The events of a core. All calls come from the core's own thread, one at a time.
pub trait Handler<I: Io> {
    /// Delivers an event of a socket.
    fn on_sock(&mut self, io: &mut I, sock: SockId, event: SockEvent<'_>);
    /// Answers [`Io::file`].
    fn on_file(&mut self, io: &mut I, done: FileDone);
    /// Delivers a message from another core, or from the control thread (`None`).
    fn on_message(&mut self, io: &mut I, from: Option<CoreId>, msg: I::Msg);
    /// Runs after all events of this turn are delivered. The handler fires timers, then starts its sends.
    /// Returns whether there was work, so that the driver knows whether the core is idle.
    fn on_turn(&mut self, io: &mut I) -> bool;
    /// Returns the latest time at which [`on_turn`](Self::on_turn) must run next, even without an event.
    fn next_deadline(&self) -> Option<Instant>;
}
