//! Where blocks are: one channel for each core and backend.

pub mod nvme_tcp;

use crate::cx::Cx;
use crate::msg::StorageIo;
use crate::request::Request;
use crate::topology::BackendId;

/// One core's way to one backend.
///
/// It gets requests whose `offset` and `len` are the backend's, in range and aligned to its block
/// size: the LUN layer and control see to that. It may complete at once or later, in any order, but
/// each exactly once, through [`Cx::complete`].
pub trait Channel<I: StorageIo> {
    /// Starts a request.
    fn submit(&mut self, cx: &mut Cx<'_, I>, request: Request);
    /// Whether nothing is on its way, so that it can be detached.
    fn is_idle(&self) -> bool;
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
    /// A file or block device.
    File {
        /// Open for O_DIRECT where the file system allows it.
        file: F,
    },
    /// A namespace of an NVMe/TCP array: this core's channel, made whole by control.
    NvmeTcp(Box<nvme_tcp::NvmeTcpChannel>),
    /// Another core has the channel.
    Remote {
        /// That core.
        core: trefoil_poll::CoreId,
    },
}
