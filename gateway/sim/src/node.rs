//! The machines that a simulated core can run.

use trefoil_poll::ram::Ram;
use trefoil_poll::{Arena, CoreId, FileDone, Handler, Instant, SockEvent, SockId};
use trefoil_storage::core::StorageCore;
use trefoil_storage::topology::BackendId;

use crate::direct::{LunCore, StorageMsg, StorageSim};
use crate::hostile::HostileCore;
use crate::server::ServerCore;
use crate::world::Machine;

/// The machine of a core; see the module.
pub enum Node {
    /// A core of a gateway.
    Gateway(Box<StorageCore<StorageSim>>),
    /// A core with a workload in place of its frontend.
    Lun(Box<LunCore>),
    /// A server that uses the gateway.
    Server(Box<ServerCore>),
    /// A host that attacks the gateway.
    Hostile(Box<HostileCore>),
}

impl Node {
    /// Returns the bytes of blocks that the core holds.
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Gateway(core) => core.arena().capacity_bytes() - core.arena().free_bytes(),
            Self::Lun(core) => core.held_bytes(),
            Self::Server(_) | Self::Hostile(_) => 0,
        }
    }

    /// Returns the memory of a backend, if this core has it.
    pub fn ram(&self, id: BackendId) -> Option<&Ram> {
        match self {
            Self::Gateway(core) => core.ram(id),
            Self::Lun(core) => core.ram(id),
            Self::Server(_) | Self::Hostile(_) => None,
        }
    }

    /// Returns the number of requests that wait for other requests on the same bytes.
    pub fn waiting(&self) -> usize {
        match self {
            Self::Gateway(core) => core.waiting(),
            Self::Lun(core) => core.waiting(),
            Self::Server(_) | Self::Hostile(_) => 0,
        }
    }

    /// Returns true if this core has lent at least one of a backend's first `len` bytes. Returns false while the core's own
    /// workload keeps a loan.
    pub fn lends(&self, id: BackendId, len: u64) -> bool {
        let borrows = matches!(self, Self::Lun(core) if core.borrows());
        !borrows && self.ram(id).is_some_and(|ram| ram.is_lent(0, len))
    }

    fn handler(&mut self) -> &mut dyn Handler<StorageSim> {
        match self {
            Self::Gateway(core) => &mut **core,
            Self::Lun(core) => &mut **core,
            Self::Server(core) => &mut **core,
            Self::Hostile(core) => &mut **core,
        }
    }
}

impl Machine<StorageMsg> for Node {
    fn into_arena(self) -> Option<Arena> {
        match self {
            Self::Gateway(core) => Some(core.into_arena()),
            Self::Lun(core) => core.into_arena(),
            Self::Server(core) => core.into_arena(),
            Self::Hostile(core) => core.into_arena(),
        }
    }
}

impl Handler<StorageSim> for Node {
    fn on_sock(&mut self, io: &mut StorageSim, sock: SockId, event: SockEvent<'_>) {
        self.handler().on_sock(io, sock, event);
    }

    fn on_file(&mut self, io: &mut StorageSim, done: FileDone) {
        self.handler().on_file(io, done);
    }

    fn on_message(&mut self, io: &mut StorageSim, from: Option<CoreId>, msg: StorageMsg) {
        self.handler().on_message(io, from, msg);
    }

    fn on_turn(&mut self, io: &mut StorageSim) -> bool {
        let worked = self.handler().on_turn(io);
        io.waits += u64::from(self.waiting() > 0);
        worked
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Gateway(core) => core.next_deadline(),
            Self::Lun(core) => core.next_deadline(),
            Self::Server(core) => core.next_deadline(),
            Self::Hostile(core) => core.next_deadline(),
        }
    }
}
