//! Where blocks are: one channel for each core and backend.
//!
//! Control makes an [`Attach`] with all the memory that the channel will need, a core turns it into
//! an [`AnyChannel`], and after a detach the same box carries that memory back to be dropped.

mod file;
mod memory;
mod null;
mod remote;
mod slab;

pub use file::File;
pub use memory::Memory;
pub use null::Null;
pub use remote::Remote;
pub use slab::Slab;

pub mod nvme_tcp;

use crate::cx::Cx;
use crate::msg::StorageIo;
use crate::request::{Fault, Request, Stream};
use crate::topology::BackendId;
use trefoil_poll::{FileDone, Instant};

/// One core's way to one backend.
///
/// It gets requests whose `offset` and `len` are the backend's, in range and aligned to its block
/// size: the LUN layer and control see to that. It may complete at once or later, in any order, but
/// each exactly once, through [`Cx::complete`], with `len` as it was.
pub trait Channel<I: StorageIo> {
    /// Starts a request.
    fn submit(&mut self, cx: &mut Cx<'_, I>, request: Request);
    /// Nobody waits for the requests of `stream` any more: they end as soon as it is sure that they can't take effect
    /// later, at once where they have not started, and start nothing new.
    fn cancel(&mut self, _cx: &mut Cx<'_, I>, _stream: Stream) {}
    /// Whether the request can't start yet, because bytes that it would change are lent, or because others have every
    /// place that there is or are `behind` whom it comes: nobody overtakes those that wait for a place. The LUN layer keeps
    /// it and asks again each turn.
    fn must_wait(&self, _request: &Request, _behind: bool) -> bool {
        false
    }
    /// Whether nothing is on its way, so that it can be detached. The LUN layer counts the requests;
    /// this is for what a channel does on its own account.
    fn is_idle(&self) -> bool;
    /// Whether it waits for what is no event and has no deadline, as memory or the end of a loan: then it is asked every turn.
    /// Otherwise a turn asks it only after an event or a call, or when its deadline has come.
    fn waits(&self) -> bool {
        false
    }
    /// Goes on with work that waits for memory or for the next turn. Returns whether there was any.
    fn on_turn(&mut self, _cx: &mut Cx<'_, I>) -> bool {
        false
    }
}

/// A backend as control hands it to one core, with all the memory that its channel will ever need.
#[derive(Debug)]
pub struct Attach<F> {
    /// Its size in bytes.
    pub len_bytes: u64,
    /// Its logical block size in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// What it is, and what this core's channel needs.
    pub kind: AttachKind<F>,
    /// Its index.
    pub id: BackendId,
}

/// What a channel is made from.
#[derive(Debug)]
pub enum AttachKind<F> {
    /// Completes everything; reads give zeros. For measuring.
    Null,
    /// Memory that this core owns.
    Memory(Memory),
    /// A file or block device.
    File {
        /// Open for O_DIRECT where the file system allows it.
        file: F,
        /// Room for requests under way, from [`File::slots`].
        slots: Slab<file::Slot>,
    },
    /// A namespace of an NVMe/TCP array: this core's channel, made whole by control.
    NvmeTcp(Box<nvme_tcp::NvmeTcpChannel>),
    /// Another core has the channel.
    Remote {
        /// That core.
        core: trefoil_poll::CoreId,
    },
    /// What a core sends back: it took the rest over, and this is what is left of it.
    Spent(Option<AnyChannel>),
}

/// A channel of any kind, without a virtual call.
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
    /// Makes the channel from what control gave, and leaves `attach` spent.
    ///
    /// # Errors
    /// [`AttachError`]; `attach` is as it was.
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

    /// Lets go of what the driver holds for it. It must be idle.
    pub fn release<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        match self {
            Self::File(file) => cx.io.detach_file(file.file()),
            Self::Null(_) | Self::Memory(_) | Self::Remote(_) | Self::NvmeTcp(_) => {}
        }
    }

    /// Begins to let go of what it holds on its own account, before it is idle.
    pub fn stop<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) {
        if let Self::NvmeTcp(channel) = self {
            channel.stop(cx);
        }
    }

    /// The initiator's channel, for events of its sockets and for its messages.
    pub fn nvme_tcp(&mut self) -> Option<&mut nvme_tcp::NvmeTcpChannel> {
        match self {
            Self::NvmeTcp(channel) => Some(channel),
            _ => None,
        }
    }

    /// When [`Channel::on_turn`] must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::NvmeTcp(channel) => channel.next_deadline(),
            _ => None,
        }
    }

    /// An answer to a file operation of this channel's.
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
            // The core that has the channel is told too.
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

/// Why a core can't have a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The driver has no slot left.
    #[error("backend {}: this core has as many files open as it can", .0.0)]
    FileTableFull(BackendId),
    /// A remote channel that leads to the core that has it.
    #[error("backend {}: a remote channel to its own core", .0.0)]
    RemoteIsSelf(BackendId),
    /// It was attached before.
    #[error("backend {}: its memory was given away already", .0.0)]
    Spent(BackendId),
}

/// The payload bytes of a read or write: `len` bytes of its buffer from `buf_at`.
fn payload(request: &mut Request) -> Result<&mut [u8], Fault> {
    let (at, len) = (request.buf_at as usize, request.len as usize);
    let end = at.checked_add(len).ok_or(Fault::Internal)?;
    request.buf.as_mut().and_then(|buf| buf.get_mut(at..end)).ok_or(Fault::Internal)
}
