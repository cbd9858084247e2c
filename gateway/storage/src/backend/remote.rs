//! The way to a backend whose channel is another core's.

use super::Channel;
use crate::cx::Cx;
use crate::msg::{Msg, StorageIo};
use crate::request::Request;
use crate::topology::BackendId;
use trefoil_poll::CoreId;

/// Sends each request to the core that has the channel. That core sends the completion to the
/// request's origin, so there is nothing to remember here.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    backend: BackendId,
    core: CoreId,
}

impl Remote {
    /// Leads to `backend` on `core`.
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
