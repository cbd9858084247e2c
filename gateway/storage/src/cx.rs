//! What a machine of the storage path has at hand while it handles one event.

use crate::lun::Luns;
use crate::msg::StorageIo;
use crate::request::{Completed, Fault, Request};
use std::collections::VecDeque;
use trefoil_poll::Arena;

/// The driver, the core's memory, and the two queues between the layers. The queues are drained
/// before the turn ends; their capacity is the core's command slots, so pushing never allocates.
pub struct Cx<'a, I: StorageIo> {
    /// The world.
    pub io: &'a mut I,
    /// This core's payload memory.
    pub arena: &'a mut Arena,
    /// Frontend → LUN layer.
    pub requests: &'a mut VecDeque<Request>,
    /// Channels → LUN layer → frontend.
    pub done: &'a mut VecDeque<Completed>,
    /// For a frontend: what the LUN layer can do at once, without a request. None while the LUN layer or a
    /// channel is itself at work.
    pub luns: Option<&'a mut Luns<I>>,
}

impl<I: StorageIo> Cx<'_, I> {
    /// Ends a request of a channel's.
    pub fn complete(&mut self, request: Request, result: Result<(), Fault>) {
        self.done.push_back(request.complete(result));
    }
}
