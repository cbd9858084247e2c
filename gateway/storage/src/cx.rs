//! The context of one event: the parts of a core that a machine of the storage path uses while it handles the event.

use crate::msg::StorageIo;
use crate::request::{Completed, Fault, Request};
use crate::topology::LunId;
use std::collections::VecDeque;
use trefoil_poll::{Arena, Loan};

/// Memory LUNs of this core, which answer a frontend at once, without a request.
pub trait InstantMemory {
    /// Lends `len` bytes of a LUN from byte `offset`. Returns `None` if the read must go the way of requests.
    fn lend(&mut self, lun: LunId, offset: u64, len: u32) -> Option<Loan>;
    /// Writes `data` to a LUN at byte `offset`. Returns false, with nothing written, if the write must go the way of requests.
    fn write(&mut self, lun: LunId, offset: u64, data: &[u8]) -> bool;
}

/// The driver, the core's memory, and the two queues between the layers. The queues are drained before the turn ends.
/// Their capacity is that of all requests under way (`StorageCore::new`), so a push never allocates.
pub struct Cx<'a, I: StorageIo> {
    /// The driver.
    pub io: &'a mut I,
    /// This core's payload memory.
    pub arena: &'a mut Arena,
    /// Frontend → LUN layer.
    pub requests: &'a mut VecDeque<Request>,
    /// Channels → LUN layer → frontend.
    pub done: &'a mut VecDeque<Completed>,
    /// For a frontend: the LUN layer, for work that it can do at once without a request. `None` while the LUN layer or a
    /// channel is itself at work.
    pub luns: Option<&'a mut dyn InstantMemory>,
}

impl<I: StorageIo> Cx<'_, I> {
    /// Completes a request of a channel.
    pub fn complete(&mut self, request: Request, result: Result<(), Fault>) {
        self.done.push_back(request.complete(result));
    }
}
