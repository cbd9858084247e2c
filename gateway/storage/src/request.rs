//! The one currency of the storage path.
//!
//! A frontend makes a [`Request`]; the LUN layer and a channel carry it. Exactly one [`Completed`] comes back to that
//! frontend, on the core where it made the request. Both types are the same token. Dropping the token on the way is a
//! bug, which [`trefoil_poll::lost`] reports.

use crate::topology::{BackendId, LunId};
use trefoil_poll::lost::{self, Lost};
use trefoil_poll::{Buf, CoreId, Loan};

/// An operation on a LUN or a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffer.
    Read,
    /// Store the buffer. Later reads see the bytes once this completes; the bytes are durable only with
    /// `Request::durable`.
    Write,
    /// Make all writes durable that completed before. Done when they are durable.
    Flush,
    /// Make the range read as zeros. With `deallocate` the backend may free the range's space.
    WriteZeroes {
        /// The host's DEAC bit.
        deallocate: bool,
    },
    /// Take the hint that the range's contents are no longer needed. Afterwards the range reads as zeros or as before.
    Deallocate,
}

/// The part of its home core that made a request.
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
    /// The core that made the request, to which it returns.
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

/// The requests of one frontend queue. They are cancelled together once the queue is gone.
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
    /// The array reports the backend as inaccessible (ANA) by the only path to it. I/O has to wait until that changes.
    #[error("inaccessible")]
    Inaccessible,
    /// The LUN or backend went away.
    #[error("the LUN or backend went away")]
    Gone,
    /// The backend doesn't support the operation.
    #[error("the backend does not support the operation")]
    Unsupported,
    /// The request's owner cancelled it.
    #[error("aborted")]
    Aborted,
    /// A bug of the gateway, contained.
    #[error("an internal error")]
    Internal,
}

/// One I/O in flight. `offset` and `len` are in bytes: of the LUN until the LUN layer maps the request, of the backend
/// from then on.
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
    /// Length in bytes. A read or write has at most as many as `buf` has from `buf_at` on; a flush has zero.
    pub len: u64,
    /// Payload of a read or write.
    pub buf: Option<Buf>,
    /// Offset in `buf` at which the bytes of this request, or of its current part, start.
    pub buf_at: u32,
    /// A read may be answered with a [`Loan`]; its buffer then comes back unfilled. This is for an owner that sends the
    /// bytes at once, since nobody can write them during the loan.
    pub may_lend: bool,
    pub(crate) loan: Option<Loan>,
    /// The destination of the completion.
    pub origin: Origin,
    /// The request's [`Stream`] on its origin's core; 0 if nobody cancels it.
    stream: u32,
    /// The work that remains for the LUN layer after this part.
    pub(crate) rest: Rest,
    armed: bool,
}

/// Progress of a LUN request: the part that a backend has, and the rest that no backend has yet. The LUN layer maintains
/// it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// The next byte of the LUN.
    pub offset: u64,
    /// The bytes from there. For a flush, 1 if it must visit another backend, else 0.
    pub len: u64,
    /// The backend that a flush visits next.
    pub backend: BackendId,
    /// The backend that has the request now; [`Rest::NOWHERE`] if none has.
    pub at: BackendId,
    /// The core that last counted the request as that backend's. The request's home core counts it too.
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
    /// Creates a request for a range of a LUN. The request must be completed in every case.
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

    /// Returns the report that the request leaves if it is dropped.
    pub(crate) fn loss(&self) -> Lost {
        let holder = u64::from(self.rest.core.0) << 32 | u64::from(self.rest.at.0);
        Lost::Request { identity: self.origin.pack(), holder }
    }

    /// Completes the request. There is no other way to end one.
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
