//! The request: the unit of work that all layers of the storage path exchange.
//!
//! A frontend makes a [`Request`]; the LUN layer and a channel carry it. Exactly one [`Completed`] comes back to that
//! frontend, on the core where the frontend made the request. A [`Completed`] is the same request with its result. Code
//! that drops a request before its owner has settled the completion has a bug, which [`trefoil_poll::lost`] reports.

use crate::topology::{BackendId, LunId};
use trefoil_poll::lost::{self, Lost};
use trefoil_poll::{Buf, CoreId, Loan};

/// An operation on a LUN or a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffer.
    Read,
    /// Store the buffer. Reads after the completion see the bytes. If `Request::durable` is set, the bytes are durable
    /// at the completion; otherwise they may not be durable yet.
    Write,
    /// Make all writes durable that completed before the flush. The flush completes once they are durable.
    Flush,
    /// Make the range read as zeros. With `deallocate` the backend may free the range's space.
    WriteZeroes {
        /// The host's DEAC bit.
        deallocate: bool,
    },
    /// Hint that the range's contents are no longer needed. Afterwards the range reads as zeros or as before.
    Deallocate,
}

/// The part of a core that made a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Owner {
    /// The target, from one of its command slots.
    Target = 1,
    /// The control thread, through its core.
    Control = 2,
    /// A workload on the core itself (perf, the simulator).
    Workload = 3,
}

/// The destination of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The core that made the request. The completion returns to this core.
    pub core: CoreId,
    /// That core's arena, which is also the core's home in [`trefoil_poll::lost`].
    pub home: u16,
    /// The owner on that core.
    pub owner: Owner,
    /// The owner's slot.
    pub slot: u32,
    /// A number that detects a reused slot. Only its low 24 bits are used.
    pub generation: u32,
}

impl Origin {
    /// Packs everything but the core into one word, which [`Lost::Request`] carries as its identity.
    pub fn pack(&self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.generation & 0xFF_FFFF) << 8 | self.owner as u64
    }
}

/// The requests of one frontend queue. Once the queue is gone, all of them are cancelled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The core that made the requests.
    pub core: CoreId,
    /// The stream's number, unique on that core; 0 means no stream.
    pub number: u32,
}

/// The reason why a request failed. Frontends translate it into their protocol's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The range ends past the end of the LUN or backend.
    #[error("the range ends past the end of the LUN or backend")]
    OutOfRange,
    /// The medium failed to read.
    #[error("the medium failed to read")]
    MediaRead,
    /// The medium failed to write or to make durable.
    #[error("the medium failed to write")]
    MediaWrite,
    /// The backend has no space left for the write, for example because the file system under a file is full.
    #[error("no space left")]
    NoSpace,
    /// The LUN or backend can't be written.
    #[error("read-only")]
    ReadOnly,
    /// No path to the backend is usable. A retry, perhaps elsewhere, may succeed.
    #[error("no path to the backend")]
    PathLost,
    /// The array reports the backend as inaccessible (ANA) by the only path to it. I/O has to wait until the array
    /// reports another state.
    #[error("inaccessible")]
    Inaccessible,
    /// The LUN or backend went away.
    #[error("the LUN or backend went away")]
    Gone,
    /// The backend doesn't support the operation.
    #[error("the backend does not support the operation")]
    Unsupported,
    /// The request's owner has cancelled the request.
    #[error("aborted")]
    Aborted,
    /// A bug of the gateway. It affects only this request.
    #[error("an internal error")]
    Internal,
}

/// One I/O in flight. `offset` and `len` are in bytes. They name a range of the LUN until the LUN layer maps the
/// request, and a range of the backend afterwards.
#[derive(Debug)]
#[must_use = "a request must be completed"]
pub struct Request {
    /// The operation.
    pub op: Op,
    /// Force unit access: the request completes only when its bytes are on stable media.
    pub durable: bool,
    /// The request's LUN.
    pub lun: LunId,
    /// First byte.
    pub offset: u64,
    /// Length in bytes. For a read or write: at most the length of `buf` after `buf_at`. For a flush: zero.
    pub len: u64,
    /// Payload of a read or write.
    pub buf: Option<Buf>,
    /// Offset in `buf` at which the bytes of this request, or of its current part, start.
    pub buf_at: u32,
    /// True if a [`Loan`] may answer a read. The buffer then comes back unfilled. Only an owner that sends the bytes at
    /// once may set this, since nobody can write these bytes during the loan.
    pub may_lend: bool,
    pub(crate) loan: Option<Loan>,
    /// The destination of the completion.
    pub origin: Origin,
    /// The request's [`Stream`] on its origin's core; 0 if the request has no stream.
    stream: u32,
    /// The work that remains for the LUN layer after this part.
    pub(crate) rest: Rest,
    armed: bool,
}

/// Progress of a LUN request: the part that a backend has, and the rest that no backend has yet. The LUN layer
/// maintains this progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// Offset in the LUN of the rest's first byte.
    pub offset: u64,
    /// Length of the rest in bytes. For a flush: 1 if the flush must visit another backend, else 0.
    pub len: u64,
    /// The backend that a flush visits next.
    pub backend: BackendId,
    /// The backend that has the request now; [`Rest::NOWHERE`] if no backend has it.
    pub at: BackendId,
    /// The core that last counted the request as a request of that backend. The request's home core counts the request
    /// too.
    pub core: CoreId,
}

impl Rest {
    /// The value for "no backend".
    pub const NOWHERE: BackendId = BackendId(u32::MAX);

    /// Returns backend and core from the `holder` of a lost request.
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
    /// Creates a request for a range of a LUN. Every request must reach [`complete`](Self::complete).
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

    /// Sets force unit access.
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Sets whether a read may be answered with a loan.
    pub fn may_lend(mut self, may_lend: bool) -> Self {
        self.may_lend = may_lend;
        self
    }

    /// Makes the request part of stream `number` of its origin's core.
    pub fn of_stream(mut self, number: u32) -> Self {
        self.stream = number;
        self
    }

    /// Returns whether the request belongs to `stream`.
    pub fn is_of(&self, stream: Stream) -> bool {
        self.stream == stream.number && self.origin.core == stream.core
    }

    /// Returns the report of the request's loss, for the case that the request is dropped.
    pub(crate) fn loss(&self) -> Lost {
        let holder = u64::from(self.rest.core.0) << 32 | u64::from(self.rest.at.0);
        Lost::Request { identity: self.origin.pack(), holder }
    }

    /// Completes the request. A request can end in no other way.
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

/// A finished request on its way home.
#[derive(Debug)]
#[must_use = "a completion must reach its owner"]
pub struct Completed {
    pub(crate) request: Request,
    /// The result.
    pub result: Result<(), Fault>,
}

impl Completed {
    /// Returns the destination.
    pub fn origin(&self) -> Origin {
        self.request.origin
    }

    /// Takes the loan that answers a read instead of the buffer, if the owner allowed a loan.
    pub fn take_loan(&mut self) -> Option<Loan> {
        self.request.loan.take()
    }

    /// Consumes the completion at its owner. Returns the payload block and the result.
    pub fn settle(mut self) -> (Option<Buf>, Result<(), Fault>) {
        self.request.armed = false;
        (self.request.buf.take(), self.result)
    }
}
