//! Backends: the devices, files and memory that hold the blocks. Each core has one channel to each backend.
//!
//! Control makes an [`Attach`] with all the memory that the channel will need. A core converts the [`Attach`] into an
//! [`AnyChannel`]. After a detach, the same box carries the memory back to control, which drops it.

mod file;
mod memory;
mod null;
mod remote;

pub use file::File;
pub use memory::Memory;
pub use null::Null;
pub use remote::Remote;

pub mod nvme_tcp;

use crate::cx::Cx;
use crate::msg::StorageIo;
use crate::request::{Fault, Request, Stream};
use crate::slab::Slab;
use crate::topology::BackendId;
use trefoil_poll::{FileDone, Instant, Io};

/// A driver on which backends can be attached.
pub trait BackendIo: StorageIo<Attach = Attach<<Self as Io>::File>> {}

impl<I> BackendIo for I where I: StorageIo<Attach = Attach<<I as Io>::File>> {}

/// One core's path to one backend.
///
/// The `offset` and `len` of each request are in bytes of the backend, in range, and aligned to the backend's block
/// size. The LUN layer and control guarantee this. A channel completes each request exactly once, through
/// [`Cx::complete`], with `len` unchanged. It may complete requests at once or later, in any order.
pub trait Channel<I: StorageIo> {
    /// Starts a request.
    fn submit(&mut self, cx: &mut Cx<'_, I>, request: Request);
    /// Cancels the requests of `stream`, whose owner no longer waits for them. Requests that have not started end at
    /// once. The other requests start no further operation, and end as soon as they certainly can't take effect later.
    fn cancel(&mut self, _cx: &mut Cx<'_, I>, _stream: Stream) {}
    /// Returns whether the request can't start yet. A request waits if it would change lent bytes or if all the
    /// channel's slots are taken. It also waits for a slot if other requests already wait (`behind`), so that it
    /// doesn't overtake them. The LUN layer keeps the waiting request and asks again each turn.
    fn must_wait(&self, _request: &Request, _behind: bool) -> bool {
        false
    }
    /// Returns whether the channel has no work of its own in flight, so that it can be detached. The LUN layer counts
    /// the requests, so this function need not count them.
    fn is_idle(&self) -> bool;
    /// Returns whether the channel waits for something that causes no event and has no deadline, such as memory or the
    /// end of a loan. The core then calls [`on_turn`](Self::on_turn) in every turn. Otherwise, the core calls `on_turn`
    /// only after an event or a call, or at the channel's deadline.
    fn waits(&self) -> bool {
        false
    }
    /// Continues work that waited for memory or for the next turn. Returns `true` if some work continued.
    fn on_turn(&mut self, _cx: &mut Cx<'_, I>) -> bool {
        false
    }
}

/// A backend as control gives it to one core, with all the memory that its channel will ever need.
#[derive(Debug)]
pub struct Attach<F> {
    /// The backend's size in bytes.
    pub len_bytes: u64,
    /// The backend's logical block size in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// The kind of backend, with the parts for this core's channel.
    pub kind: AttachKind<F>,
    /// The backend's index.
    pub id: BackendId,
}

/// The parts that a channel is made from.
#[derive(Debug)]
pub enum AttachKind<F> {
    /// A backend for measurements: it completes every request at once, and its reads return zeros.
    Null,
    /// Memory that this core owns.
    Memory(Memory),
    /// A file or block device.
    File {
        /// The file or device, open for O_DIRECT where the file system allows it.
        file: F,
        /// Room for the requests in flight, from [`File::slots`].
        slots: Slab<file::Slot>,
    },
    /// A namespace of an NVMe/TCP array: this core's channel, which control has built completely.
    NvmeTcp(Box<nvme_tcp::NvmeTcpChannel>),
    /// Another core has the channel.
    Remote {
        /// The core that has the channel.
        core: trefoil_poll::CoreId,
    },
    /// The state after a core took the parts. After a detach, this variant holds the channel, so that its memory goes
    /// back to control.
    Spent(Option<AnyChannel>),
}

/// A channel of any kind, dispatched without a virtual call.
#[derive(Debug)]
pub enum AnyChannel {
    /// See [`Null`].
    Null(Null),
    /// See [`Memory`].
    Memory(Memory),
    /// See [`File`].
    File(File),
    /// See [`Remote`].
    Remote(Remote),
    /// See [`nvme_tcp`].
    NvmeTcp(Box<nvme_tcp::NvmeTcpChannel>),
}

impl AnyChannel {
    /// Makes the channel from the parts that control gave, and sets `attach` to [`AttachKind::Spent`].
    ///
    /// # Errors
    /// Returns [`AttachError`], and leaves `attach` unchanged.
    pub fn attach<I: StorageIo>(io: &mut I, attach: &mut Attach<I::File>) -> Result<Self, AttachError> {
        let backend = attach.id;
        match std::mem::replace(&mut attach.kind, AttachKind::Spent(None)) {
            AttachKind::Null => Ok(Self::Null(Null)),
            AttachKind::Memory(memory) => Ok(Self::Memory(memory)),
            AttachKind::File { file, slots } => match io.attach_file(file) {
                Ok(file) => Ok(Self::File(File::new(backend, file, slots))),
                Err(file) => {
                    attach.kind = AttachKind::File { file, slots };
                    Err(AttachError::FileTableFull(backend))
                }
            },
            AttachKind::Remote { core } if core == io.core() => {
                attach.kind = AttachKind::Remote { core };
                Err(AttachError::RemoteIsSelf(backend))
            }
            AttachKind::Remote { core } => Ok(Self::Remote(Remote::new(backend, core))),
            AttachKind::NvmeTcp(channel) => Ok(Self::NvmeTcp(channel)),
            AttachKind::Spent(channel) => {
                attach.kind = AttachKind::Spent(channel);
                Err(AttachError::Spent(backend))
            }
        }
    }

    /// Releases the driver's resources for the channel. The channel must be idle.
    pub fn release<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        match self {
            Self::File(file) => cx.io.detach_file(file.file()),
            Self::Null(_) | Self::Memory(_) | Self::Remote(_) | Self::NvmeTcp(_) => {}
        }
    }

    /// Starts to close the channel's own connections. The caller may call this before the channel is idle.
    pub fn stop<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        if let Self::NvmeTcp(channel) = self {
            channel.stop(cx);
        }
    }

    /// Returns the NVMe/TCP channel, if this is one, to deliver socket events and initiator messages.
    pub fn nvme_tcp(&mut self) -> Option<&mut nvme_tcp::NvmeTcpChannel> {
        match self {
            Self::NvmeTcp(channel) => Some(channel),
            _ => None,
        }
    }

    /// Returns when [`Channel::on_turn`] must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::NvmeTcp(channel) => channel.next_deadline(),
            _ => None,
        }
    }

    /// Handles the driver's answer to a file operation of this channel.
    pub fn on_file<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, done: FileDone) {
        match self {
            Self::File(file) => file.on_file(cx, done),
            Self::Null(_) | Self::Memory(_) | Self::Remote(_) | Self::NvmeTcp(_) => {
                debug_assert!(false, "{self:?} got {done:?}");
                if let Some(buf) = done.buf {
                    cx.arena.free(buf);
                }
            }
        }
    }
}

impl<I: StorageIo> Channel<I> for AnyChannel {
    fn submit(&mut self, cx: &mut Cx<'_, I>, request: Request) {
        match self {
            Self::Null(null) => null.submit(cx, request),
            Self::Memory(memory) => memory.submit(cx, request),
            Self::File(file) => file.submit(cx, request),
            Self::Remote(remote) => remote.submit(cx, request),
            Self::NvmeTcp(channel) => channel.submit(cx, request),
        }
    }

    fn cancel(&mut self, cx: &mut Cx<'_, I>, stream: Stream) {
        match self {
            Self::Memory(memory) => memory.cancel(cx, stream),
            Self::File(file) => file.cancel(cx, stream),
            Self::NvmeTcp(channel) => channel.cancel(cx, stream),
            // A null channel and a remote channel hold no requests. For a remote channel, the core with the real
            // channel gets the cancel too.
            Self::Null(_) | Self::Remote(_) => {}
        }
    }

    #[inline(always)]
    fn must_wait(&self, request: &Request, behind: bool) -> bool {
        match self {
            Self::Memory(memory) => Channel::<I>::must_wait(memory, request, behind),
            Self::File(file) => Channel::<I>::must_wait(file, request, behind),
            Self::NvmeTcp(channel) => Channel::<I>::must_wait(&**channel, request, behind),
            Self::Null(_) | Self::Remote(_) => false,
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            Self::Null(null) => Channel::<I>::is_idle(null),
            Self::Memory(memory) => Channel::<I>::is_idle(memory),
            Self::File(file) => Channel::<I>::is_idle(file),
            Self::Remote(remote) => Channel::<I>::is_idle(remote),
            Self::NvmeTcp(channel) => channel.is_stopped(),
        }
    }

    fn waits(&self) -> bool {
        match self {
            Self::Memory(memory) => Channel::<I>::waits(memory),
            Self::File(file) => Channel::<I>::waits(file),
            Self::Null(_) | Self::Remote(_) | Self::NvmeTcp(_) => false,
        }
    }

    fn on_turn(&mut self, cx: &mut Cx<'_, I>) -> bool {
        match self {
            Self::Memory(memory) => memory.on_turn(cx),
            Self::File(file) => file.on_turn(cx),
            Self::NvmeTcp(channel) => channel.on_turn(cx),
            Self::Null(_) | Self::Remote(_) => false,
        }
    }
}

/// The reason why a core can't have a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The driver has no slot for a further file.
    #[error("backend {}: this core's file table is full", .0.0)]
    FileTableFull(BackendId),
    /// The remote channel leads to the core itself.
    #[error("backend {}: the remote channel leads to the core itself", .0.0)]
    RemoteIsSelf(BackendId),
    /// The parts were already used by an earlier attach.
    #[error("backend {}: an earlier attach already took the backend's memory", .0.0)]
    Spent(BackendId),
}

/// Returns the payload bytes of a read or write: `len` bytes of its buffer from `buf_at`.
fn payload(request: &mut Request) -> Result<&mut [u8], Fault> {
    let (at, len) = (request.buf_at as usize, request.len as usize);
    let end = at.checked_add(len).ok_or(Fault::Internal)?;
    request.buf.as_mut().and_then(|buf| buf.get_mut(at..end)).ok_or(Fault::Internal)
}
