//! The one currency of the storage path.
//!
//! A frontend makes a [`Request`], the LUN layer and a channel carry it, and exactly one
//! [`Completed`] comes back to the frontend that made it, on the core where it was made. Both are
//! the same token; dropping it anywhere on the way is a bug that [`trefoil_poll::lost`] reports.

use crate::topology::{BackendId, LunId};
use trefoil_poll::lost::{self, Lost};
use trefoil_poll::{Buf, CoreId, Loan};

/// What is asked of a LUN or a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffer.
    Read,
    /// Store the buffer; done when later reads see it, and durable only with `Request::durable`.
    Write,
    /// Everything that completed before is durable when this completes.
    Flush,
    /// The range reads as zeros afterwards; with `deallocate` its space may be given back.
    WriteZeroes {
        /// The host's DEAC bit.
        deallocate: bool,
    },
    /// The range's contents are no longer needed: a hint. It reads as zeros or as before.
    Deallocate,
}

/// Who made a request on its home core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Owner {
    /// A command slot of the target's.
    Target = 1,
    /// The control thread, through its core.
    Control = 2,
    /// A workload that runs on the core itself (perf, the simulator).
    Workload = 3,
}

/// Where a completion goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The core that made it and to which it returns.
    pub core: CoreId,
    /// That core's arena, which is also its home in [`trefoil_poll::lost`].
    pub home: u16,
    /// Who there.
    pub owner: Owner,
    /// Its slot there.
    pub slot: u32,
    /// Guards against a reused slot; the low 24 bits count.
    pub generation: u32,
}

impl Origin {
    /// Everything but the core in one word, as [`Lost::Request`]'s identity carries it.
    pub fn pack(&self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.generation & 0xFF_FFFF) << 8 | self.owner as u64
    }
}

/// The requests of one of a frontend's queues, which are cancelled together when the queue is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The core that made them.
    pub core: CoreId,
    /// Unique on that core; 0 is no stream.
    pub number: u32,
}

/// How a request failed. Frontends translate it into their protocol's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The range ends past the end of the LUN or backend.
    #[error("past the end")]
    OutOfRange,
    /// The medium failed to read.
    #[error("a read error")]
    MediaRead,
    /// The medium failed to write or to make durable.
    #[error("a write error")]
    MediaWrite,
    /// The backend has no space for it (a full file system under a file).
    #[error("no space left")]
    NoSpace,
    /// The LUN or backend can't be written.
    #[error("read-only")]
    ReadOnly,
    /// No path to the backend is usable; a retry, perhaps elsewhere, may succeed.
    #[error("no path to it")]
    PathLost,
    /// Its array says that it is inaccessible by the only path that there is (ANA): it has to be waited for.
    #[error("inaccessible")]
    Inaccessible,
    /// The LUN or backend went away.
    #[error("it went away")]
    Gone,
    /// The backend doesn't do this.
    #[error("not supported")]
    Unsupported,
    /// Aborted on its owner's wish.
    #[error("aborted")]
    Aborted,
    /// A bug of ours, contained.
    #[error("an internal error")]
    Internal,
}

/// One I/O on its way. `offset` and `len` are bytes: of the LUN until the LUN layer maps it, of the
/// backend from there on.
#[derive(Debug)]
#[must_use = "a request must be completed"]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Force unit access: not done until it is on stable media.
    pub durable: bool,
    /// The LUN that it is for.
    pub lun: LunId,
    /// First byte.
    pub offset: u64,
    /// Bytes; for reads and writes at most the buffer's from `buf_at`; zero for a flush.
    pub len: u64,
    /// Payload of reads and writes.
    pub buf: Option<Buf>,
    /// Where in `buf` this (part of the) request's bytes start.
    pub buf_at: u32,
    /// A read may be answered with a [`Loan`] instead of by filling the buffer, which then comes back as
    /// it was. For an owner that sends the bytes on at once: until then nobody can write them.
    pub may_lend: bool,
    pub(crate) loan: Option<Loan>,
    /// Where the completion goes.
    pub origin: Origin,
    /// Its [`Stream`] on its origin's core; 0 if nobody cancels it.
    stream: u32,
    /// What the LUN layer still has to do after this part.
    pub(crate) rest: Rest,
    armed: bool,
}

/// Where a LUN request stands: the part that a backend has, and what is not yet handed to one.
/// Kept by the LUN layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// Next byte of the LUN.
    pub offset: u64,
    /// Bytes from there; of a flush, whether another backend is to be visited.
    pub len: u64,
    /// The backend that a flush visits next.
    pub backend: BackendId,
    /// The backend that has the request now; [`Rest::NOWHERE`] if none has.
    pub at: BackendId,
    /// The core that last counted it as that backend's; its home core counts it too.
    pub core: CoreId,
}

impl Rest {
    /// Stands in for a backend where there is none.
    pub const NOWHERE: BackendId = BackendId(u32::MAX);

    /// Backend and core of a lost request's `holder`.
    pub fn holder(holder: u64) -> (BackendId, CoreId) {
        (BackendId(holder as u32), CoreId((holder >> 32) as u16))
    }
}

impl Default for Rest {
    fn default() -> Self {
        Self { offset: 0, len: 0, backend: Self::NOWHERE, at: Self::NOWHERE, core: CoreId(0) }
    }
}

impl Request {
    /// A request for a range of a LUN. It must be completed, whatever happens.
    pub fn new(op: Op, lun: LunId, offset: u64, len: u64, buf: Option<Buf>, origin: Origin) -> Self {
        Self {
            op,
            durable: false,
            lun,
            offset,
            len,
            buf,
            buf_at: 0,
            may_lend: false,
            loan: None,
            origin,
            stream: 0,
            rest: Rest::default(),
            armed: true,
        }
    }

    /// The same with force unit access.
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// The same, and a read may be answered with a loan.
    pub fn may_lend(mut self, may_lend: bool) -> Self {
        self.may_lend = may_lend;
        self
    }

    /// The same, as one of stream `number` of its origin's core.
    pub fn of_stream(mut self, number: u32) -> Self {
        self.stream = number;
        self
    }

    /// Whether a cancel of `stream` means it.
    pub fn is_of(&self, stream: Stream) -> bool {
        self.stream == stream.number && self.origin.core == stream.core
    }

    /// What it leaves behind if it is dropped.
    pub(crate) fn loss(&self) -> Lost {
        let holder = u64::from(self.rest.core.0) << 32 | u64::from(self.rest.at.0);
        Lost::Request { identity: self.origin.pack(), holder }
    }

    /// Ends it. The only way to get rid of a request.
    pub fn complete(self, result: Result<(), Fault>) -> Completed {
        Completed { request: self, result }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.armed {
            lost::report(self.origin.home, self.loss());
        }
    }
}

/// A request that is done, on its way home.
#[derive(Debug)]
#[must_use = "a completion must reach its owner"]
pub struct Completed {
    pub(crate) request: Request,
    /// How it went.
    pub result: Result<(), Fault>,
}

impl Completed {
    /// Where it goes.
    pub fn origin(&self) -> Origin {
        self.request.origin
    }

    /// What answers a read instead of the buffer, if its owner said that it may.
    pub fn take_loan(&mut self) -> Option<Loan> {
        self.request.loan.take()
    }

    /// Takes it apart at its owner: the payload block and the result.
    pub fn settle(mut self) -> (Option<Buf>, Result<(), Fault>) {
        self.request.armed = false;
        (self.request.buf.take(), self.result)
    }
}
