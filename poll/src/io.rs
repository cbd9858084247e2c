//! The seam between a core's machines and the world.
//!
//! [`Io`] is what a machine may ask; [`Handler`] is what it is told. Calls never block and never
//! call back: answers come as later events of the same core. The io_uring driver and the simulator
//! both implement [`Io`], with static dispatch.

use crate::buf::Buf;
use crate::send::SendList;
use crate::time::Instant;
use std::net::SocketAddr;
use std::{fmt, io};

/// A core's number, from 0, in its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

/// A socket of this core: a small dense index, reused after [`Handler::on_closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockId(pub u32);

/// An open file or block device of this core: a small dense index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub u32);

/// The driver has no slot left for another socket or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

/// Where received bytes go.
#[derive(Debug)]
pub enum RecvInto {
    /// Into memory of the driver, at most `max_bytes` of it (the driver may have less): what comes,
    /// when something comes, goes to [`Handler::on_received`]. Costs an idle socket no memory.
    Stream {
        /// Upper bound on the bytes taken from the socket.
        max_bytes: u32,
    },
    /// Into `buf[at..at + len]`, all of it, then [`Handler::on_filled`].
    Buf {
        /// The block to fill.
        buf: Buf,
        /// First byte to write.
        at: u32,
        /// Bytes to wait for; not zero.
        len: u32,
    },
}

/// Why a receive ended without its bytes.
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
    /// As strerror(3): `Connection refused`.
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
    /// Fill `buf[at..at + len]` from `offset`. Completes only when whole.
    Read {
        /// Where the bytes go.
        buf: Buf,
        /// First byte of `buf`.
        at: u32,
        /// How many.
        len: u32,
        /// From where in the file.
        offset: u64,
    },
    /// Write `buf[at..at + len]` to `offset`; with `durable`, not done until it is on stable media
    /// (RWF_DSYNC).
    Write {
        /// Where the bytes come from.
        buf: Buf,
        /// First byte of `buf`.
        at: u32,
        /// How many.
        len: u32,
        /// To where in the file.
        offset: u64,
        /// Force unit access.
        durable: bool,
    },
    /// fdatasync(2).
    Sync,
    /// Make a range read as zeros and keep its space (FALLOC_FL_ZERO_RANGE).
    Zero {
        /// Start.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Give a range's space back; it reads as zeros afterwards (FALLOC_FL_PUNCH_HOLE).
    Punch {
        /// Start.
        offset: u64,
        /// Length.
        len: u64,
    },
}

/// The answer to [`Io::file`].
#[derive(Debug)]
pub struct FileDone {
    /// As given with the operation.
    pub token: u64,
    /// The block of a read or write.
    pub buf: Option<Buf>,
    /// How it went.
    pub result: Result<(), FileError>,
}

/// What a machine may ask of its core's driver.
pub trait Io {
    /// A connected socket that no core has yet.
    type Socket: Send;
    /// An open file that no core has yet.
    type File: Send;
    /// What cores and the control thread send each other.
    type Msg: Send;

    /// The time at which this turn began.
    fn now(&self) -> Instant;
    /// Bits for jitter and identifiers; not for secrets.
    fn random(&mut self) -> u64;
    /// This core.
    fn core(&self) -> CoreId;
    /// Cores in this gateway.
    fn cores(&self) -> u16;

    /// Takes a connected socket over.
    ///
    /// # Errors
    /// Gives the socket back if the table is full.
    fn adopt(&mut self, socket: Self::Socket) -> Result<SockId, Self::Socket>;
    /// Opens a connection; [`Handler::on_connected`] says how it went. After a failure the id is
    /// still to be closed.
    ///
    /// # Errors
    /// [`TableFull`].
    fn connect(&mut self, to: SocketAddr) -> Result<SockId, TableFull>;
    /// Asks for bytes. At most one receive a socket is outstanding. On a socket that is being closed
    /// (by [`close`](Self::close), or because the core stops) it ends with [`RecvEnd::Closed`].
    ///
    /// # Panics
    /// May panic on a second one, or on an id after its [`Handler::on_closed`].
    fn recv(&mut self, sock: SockId, into: RecvInto);
    /// Sends all of `list`, in order. At most one send a socket is outstanding. On a socket that is
    /// being closed it ends with `ECANCELED`.
    ///
    /// # Panics
    /// May panic on a second one, or on an id after its [`Handler::on_closed`].
    fn send(&mut self, sock: SockId, list: Box<SendList>);
    /// How many bytes the peer has taken since the connection came up, as far as that is known: of a send that lasts,
    /// whether it moves. May cost a system call. A driver that doesn't know says 0.
    fn taken_bytes(&mut self, _sock: SockId) -> u64 {
        0
    }
    /// How many bytes have come from the peer since the connection came up, those too that nobody has received, as far as
    /// that is known: of a receive into a block, whether it moves. Costs and says as [`taken_bytes`](Self::taken_bytes).
    fn come_bytes(&mut self, _sock: SockId) -> u64 {
        0
    }
    /// Closes at once: what is outstanding ends (with its buffers; a receive with
    /// [`RecvEnd::Closed`], a connect with `ECANCELED`, a send as it went), then
    /// [`Handler::on_closed`].
    /// Calling it twice is harmless.
    fn close(&mut self, sock: SockId);

    /// Takes an open file over.
    ///
    /// # Errors
    /// Gives the file back if the table is full.
    fn attach_file(&mut self, file: Self::File) -> Result<FileId, Self::File>;
    /// Lets a file go once its operations are done; none may be asked of it from now on.
    fn detach_file(&mut self, file: FileId);
    /// Starts an operation; the answer comes to [`Handler::on_file`] with `token`. The driver queues
    /// what the kernel can't take now.
    fn file(&mut self, file: FileId, op: FileOp, token: u64);

    /// Sends a message to another core of this gateway (or to this one, for the next turn). Messages
    /// between two cores arrive in order. The sender bounds how many are under way.
    fn post(&mut self, to: CoreId, msg: Self::Msg);
    /// Sends a message to the control thread.
    fn post_control(&mut self, msg: Self::Msg);

    /// Whether the code that asks is to do wrong what `mutation` names: the simulator proves so that it would find such a
    /// bug. No real driver ever says yes, and since it is known at compile time, nothing of the wrong way is left in a gateway.
    #[inline(always)]
    fn is_broken(&self, _mutation: &'static str) -> bool {
        false
    }
}

/// What a core is told. All calls come from its own thread, one at a time.
pub trait Handler<I: Io> {
    /// Answer to [`RecvInto::Stream`]: at least one byte. No receive is outstanding now.
    fn on_received(&mut self, io: &mut I, sock: SockId, bytes: &[u8]);
    /// Answer to [`RecvInto::Buf`]: it is full. No receive is outstanding now.
    fn on_filled(&mut self, io: &mut I, sock: SockId, buf: Buf);
    /// A receive ended without its bytes; `buf` is the block that it had.
    fn on_recv_end(&mut self, io: &mut I, sock: SockId, buf: Option<Buf>, why: RecvEnd);
    /// A send is done, wholly or with an error; the list comes back with its blocks.
    fn on_sent(&mut self, io: &mut I, sock: SockId, list: Box<SendList>, result: Result<(), SockError>);
    /// Answer to [`Io::connect`].
    fn on_connected(&mut self, io: &mut I, sock: SockId, result: Result<(), SockError>);
    /// The last word about a socket: nothing is outstanding, and its id may be used anew.
    fn on_closed(&mut self, io: &mut I, sock: SockId);
    /// Answer to [`Io::file`].
    fn on_file(&mut self, io: &mut I, done: FileDone);
    /// A message from another core, or from the control thread (`None`).
    fn on_message(&mut self, io: &mut I, from: Option<CoreId>, msg: I::Msg);
    /// All that had come by now was told: fire timers, then hand out what is to be sent. Returns
    /// whether there was work, so that the driver knows whether the core is idle.
    fn on_turn(&mut self, io: &mut I) -> bool;
    /// When [`on_turn`](Self::on_turn) must run next at the latest, without any event.
    fn next_deadline(&self) -> Option<Instant>;
}
