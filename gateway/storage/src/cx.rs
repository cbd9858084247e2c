//! The context of one event: the parts of a core that the code for the event uses.

use crate::msg::StorageIo;
use crate::request::{Completed, Fault, Request};
use crate::topology::LunId;
use std::collections::VecDeque;
use trefoil_poll::{Arena, Loan};

/// Memory LUNs of this core, which answer a frontend at once, without a request.
pub trait InstantMemory {
    /// Lends `len` bytes of a LUN from byte `offset`. Returns `None` if the frontend must make a request for the read.
    fn lend(&mut self, lun: LunId, offset: u64, len: u32) -> Option<Loan>;
    /// Writes `data` to a LUN at byte `offset`. Returns false, with nothing written, if the frontend must make a
    /// request for the write.
    fn write(&mut self, lun: LunId, offset: u64, data: &[u8]) -> bool;
}

/// The driver, the core's memory, and the two queues between the layers. The core drains the queues before the turn
/// ends. The queues have room for all requests in flight (`StorageCore::new`), so a push never allocates.
pub struct Cx<'a, I: StorageIo> {
    /// The driver.
    pub io: &'a mut I,
    /// This core's payload memory.
    pub arena: &'a mut Arena,
    /// Requests from the frontend to the LUN layer.
    pub requests: &'a mut VecDeque<Request>,
    /// Completions from the channels, through the LUN layer, to the frontend.
    pub done: &'a mut VecDeque<Completed>,
    /// The LUN layer, for a frontend's work that needs no request. `None` during a call of the LUN layer or of a
    /// channel.
    pub luns: Option<&'a mut dyn InstantMemory>,
}

impl<I: StorageIo> Cx<'_, I> {
    /// Completes a request of a channel.
    pub fn complete(&mut self, request: Request, result: Result<(), Fault>) {
        self.done.push_back(request.complete(result));
    }
}
