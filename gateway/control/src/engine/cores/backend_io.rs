//! Control's own I/O to backends, and the memory for it.

use super::Cores;
use tokio::sync::oneshot;
use trefoil_poll::{Buf, CoreId};
use trefoil_storage::Msg;
use trefoil_storage::request::{Op, Origin, Owner, Request};
use trefoil_storage::topology::{BackendId, LunId};

/// Most requests of control's own that are under way at a time.
const MAX_REQUESTS: usize = 64;

impl Cores {
    /// Allocates a block of control's own memory for [`request`](Self::request).
    pub fn alloc(&self, len_bytes: usize) -> Option<Buf> {
        self.arena.borrow_mut().alloc(len_bytes)
    }

    /// Frees a block.
    pub fn free(&self, buf: Option<Buf>) {
        if let Some(buf) = buf {
            self.arena.borrow_mut().free(buf);
        }
    }

    /// Sends one request of control's own to a backend on `core`, without a LUN. Returns the block.
    ///
    /// # Errors
    /// The backend's fault; `Gone` if the core doesn't answer; `Internal` if `MAX_REQUESTS` requests are under way.
    pub async fn request(
        &self,
        core: CoreId,
        backend: BackendId,
        op: Op,
        range: (u64, u64),
        buf: Option<Buf>,
        durable: bool,
    ) -> (Option<Buf>, Result<(), trefoil_storage::Fault>) {
        let (tell, wait) = oneshot::channel();
        let origin = {
            let mut waits = self.waits.borrow_mut();
            waits.generation = waits.generation.wrapping_add(1) & 0xFF_FFFF;
            let generation = waits.generation;
            let slot = match waits.requests.iter().position(Option::is_none) {
                Some(slot) => slot,
                None if waits.requests.len() < MAX_REQUESTS => {
                    waits.requests.push(None);
                    waits.requests.len() - 1
                }
                None => return (buf, Err(trefoil_storage::Fault::Internal)),
            };
            if let Some(place) = waits.requests.get_mut(slot) {
                *place = Some((generation, tell));
            }
            Origin { core, home: self.home, owner: Owner::Control, slot: slot as u32, generation }
        };
        let request = Request::new(op, LunId(u32::MAX), range.0, range.1, buf, origin).durable(durable);
        if self.send(core, Msg::BackendIo(backend, request)).await.is_err() {
            return (None, Err(trefoil_storage::Fault::Gone));
        }
        match wait.await {
            Ok(done) => done.settle(),
            Err(_) => (None, Err(trefoil_storage::Fault::Gone)),
        }
    }
}
