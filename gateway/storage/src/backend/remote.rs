//! The path to a backend whose channel is on another core.

use super::Channel;
use crate::cx::Cx;
use crate::msg::{Msg, StorageIo};
use crate::request::Request;
use crate::topology::BackendId;
use trefoil_poll::CoreId;

/// A channel that sends each request to the core with the real channel. That core sends the completion directly to the
/// request's origin, so this channel keeps no state.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    backend: BackendId,
    core: CoreId,
}

impl Remote {
    /// Creates the path to `backend` on `core`.
    pub(super) fn new(backend: BackendId, core: CoreId) -> Self {
        Self { backend, core }
    }
}

impl<I: StorageIo> Channel<I> for Remote {
    fn submit(&mut self, cx: &mut Cx<'_, I>, request: Request) {
        cx.io.post(self.core, Msg::Submit(self.backend, request));
    }

    fn is_idle(&self) -> bool {
        true
    }
}
