//! The array behind the gateway: a node with our own target. The gateway's initiator reaches the array over links.
//!
//! Like the gateway, the array runs our target, on one core. Each LUN of the array is a whole disk. The array's namespaces are
//! the gateway's pool member, the gateway's imported backend, or both. In a third of the seeds with an array, the faults are on
//! the hosts' links. In another third, the array has outages. In the last third, hosts also disconnect during an outage,
//! reconnect, and continue to write. After a crash, the gateway restarts only when its last writes have landed at the array. The
//! new process knows nothing of those writes (see ARCHITECTURE.md).
//!
//! The module checks the following:
//! - An outage shorter than the loss timeout fails no command ([`Run::check_errors`]).
//! - In a longer outage, or when the array's ANA state requires it, the gateway tells hosts to wait. None of their commands
//!   fails.
//! - Flushed data survives a power cut of the array.
//! - No write lands after a newer write.
//! - When a namespace grows, the gateway presents it with its new size.

mod ana;
mod faults;
mod reports;

use std::sync::Arc;
use std::time::Duration;

use trefoil_poll::{CoreId, Instant, Io};
use trefoil_storage::Msg;
use trefoil_storage::backend::nvme_tcp::{NvmeTcpChannel, NvmeTcpConfig};
use trefoil_storage::backend::{Attach, AttachKind, File};
use trefoil_storage::core::{CoreLimits, StorageCore};
use trefoil_storage::frontend::{Capacity, TargetLimits};
use trefoil_storage::initiator::{ControllerConfig, Identity, Purpose, QueueEntries};
use trefoil_storage::topology::{
    Allow, BackendId, Extent, Lun, LunId, Namespace, Portal, PortalId, Subsystem, Topology,
};
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::nvme::log::AnaState;

use super::Run;
use super::refusals::Refusals;
use super::sizes::{ARENA_BYTES, FIRST_MEMORY, HOST_SOCKETS, IMPORTED, MEMBER, PORT};
use crate::memory::arena;
use crate::net::NodeId;
use crate::net::{ConnId, Side};
use crate::node::Node;
use crate::simio::SOCKETS;

const SUBSYSTEM: &str = "nqn.2014-08.org.trefoil.sim:array";
const GATEWAY: &str = "nqn.2014-08.org.trefoil.sim:gateway";
/// Keep alive timeout towards the array. It is not longer than the hosts' timeout, as ARCHITECTURE.md requires.
const KATO_MS: u32 = 1000;
/// Time that the gateway waits for a lost array before it fails I/O.
const LOSS_TIMEOUT: Duration = Duration::from_secs(4);

/// State of the array; see the module.
pub(super) struct Array {
    pub node: NodeId,
    home: u16,
    /// The gateway's backends on the array, indexed by NSID − 1.
    backends: Vec<usize>,
    digests: bool,
    /// True if this seed's faults are outages of the array.
    pub upset: bool,
    /// True if hosts also disconnect during an outage and reconnect.
    pub both: bool,
    epoch: u64,
    /// Connections that the run will soon fail at the gateway's end only.
    split: Vec<(ConnId, Side)>,
    /// The time by which all data held up by faults on the array's links has arrived.
    pub quiet_at: Instant,
    /// Identifier of the last operation that began before the last outage ended.
    mark: u64,
    out: bool,
    /// True if the array has already had its one long outage.
    was_lost: bool,
    /// For each backend, true if the gateway reports that it reaches the backend.
    usable: [bool; 4],
    /// True while path errors have a cause.
    lost: bool,
    /// The ANA state of the array's namespaces, and the time at which the state began. While the state is not Optimized, no other
    /// fault happens.
    ana: (AnaState, Instant),
    ana_is_bad: bool,
    /// True if the array lacks Write Zeroes.
    lacks_zeroes: bool,
    /// The periods in which hosts may learn that the array's namespaces are unreachable.
    refusals: Refusals,
    /// Number of failed commands that the gateway has counted so far.
    errors: u64,
}

impl Run {
    /// Returns whether a backend is a namespace of the array.
    pub(super) fn is_remote(&self, backend: usize) -> bool {
        self.array.as_ref().is_some_and(|array| array.backends.contains(&backend))
    }

    /// Returns whether this seed's faults are outages of the array. If so, hosts must stay connected.
    pub(super) fn is_upset(&self) -> bool {
        self.array.as_ref().is_some_and(|array| array.upset)
    }

    /// Returns whether a LUN has bytes on the array (if `remote` is true) or on a disk of the gateway (if `remote` is false).
    /// Memory LUNs have no bytes on either.
    pub(super) fn touches(&self, lun: usize, remote: bool) -> bool {
        if lun >= FIRST_MEMORY {
            return false;
        }
        match self.luns.get(lun).and_then(Option::as_ref) {
            Some((_, extents)) => extents.iter().any(|e| self.is_remote(e.backend.0 as usize) == remote),
            None => true,
        }
    }

    /// Chooses at random which backends are on the array. If there are any, creates the array's node with their disks.
    pub(super) fn make_array(&mut self, home: u16) {
        let backends = match self.rng.below(6) {
            0 | 1 => vec![MEMBER],
            2 => vec![IMPORTED],
            3 => vec![MEMBER, IMPORTED],
            _ => return,
        };
        let node = self.world.add_node("array");
        for &backend in &backends {
            self.disks[backend] = self.world.add_disk(node, &format!("array{backend}"), self.lens[backend]);
        }
        self.array = Some(Array {
            node,
            home,
            backends,
            digests: self.rng.below(2) == 0,
            upset: self.rng.below(3) > 0,
            both: self.rng.below(2) == 0,
            epoch: 0,
            split: Vec::new(),
            quiet_at: Instant::default(),
            mark: 0,
            out: false,
            was_lost: false,
            usable: [false; 4],
            lost: false,
            ana: (AnaState::Optimized, Instant::default()),
            ana_is_bad: false,
            lacks_zeroes: self.rng.below(3) == 0,
            refusals: Refusals::default(),
            errors: 0,
        });
    }

    pub(super) fn start_array(&mut self) {
        let Some(array) = &self.array else { return };
        let (node, home, lacks_zeroes) = (array.node, array.home, array.lacks_zeroes);
        let queues = [1, 2, 3, self.cores][self.rng.below(4) as usize];
        let capacity = Arc::new(Capacity::new(16, 96));
        self.world.start(node, 1, |io| {
            let arena = arena(home, ARENA_BYTES);
            debug_assert!(io.cores() == 1);
            Node::Gateway(Box::new(StorageCore::new(
                io,
                arena,
                limits(queues, lacks_zeroes),
                capacity.clone(),
            )))
        });
        self.world.listen(node, PORT);
        for (at, backend) in self.array_backends() {
            let kind =
                AttachKind::File { file: self.world.open(self.disks[backend]), slots: File::slots(256) };
            let len_bytes = self.world.disk(self.disks[backend]).len_bytes();
            let id = BackendId(at);
            let attach = Attach { len_bytes, block_bytes: self.backend_block_bytes(backend), kind, id };
            self.world.post(node, CoreId(0), Msg::Attach(id, Box::new(attach)));
        }
        self.publish_array();
        if queues < self.cores {
            self.fired("array-few-queues");
        }
        if lacks_zeroes {
            self.fired("array-no-zeroes");
        }
    }

    /// Returns each backend on the array: its index on the array, and its index on the gateway.
    fn array_backends(&self) -> Vec<(u32, usize)> {
        let backends = self.array.iter().flat_map(|array| &array.backends);
        (0..).zip(backends.copied()).collect()
    }

    fn publish_array(&mut self) {
        let backends = self.array_backends();
        let disks = self.disks.clone();
        let lens: Vec<_> = backends.iter().map(|&(_, b)| self.world.disk(disks[b]).len_bytes()).collect();
        let block_bytes: Vec<_> = backends.iter().map(|&(_, b)| self.backend_block_bytes(b)).collect();
        let Some(array) = &mut self.array else { return };
        array.epoch += 1;
        let lun = |(&(at, backend), &len): (&(u32, usize), &u64)| {
            Some(Lun {
                name: format!("namespace{at}"),
                block_bytes: block_bytes[at as usize],
                blocks: len / u64::from(block_bytes[at as usize]),
                uuid: [0xA0 + backend as u8; 16],
                nguid: [0xA0 + backend as u8; 16],
                extents: vec![Extent { lun_offset: 0, len, backend: BackendId(at), backend_offset: 0 }],
                read_only: false,
            })
        };
        let ana_state = array.ana.0.bits();
        let namespace = |&(at, _): &(u32, usize)| Namespace {
            nsid: at + 1,
            lun: LunId(at),
            hosts: Allow::Any,
            ana_group: at + 1,
            ana_state,
        };
        let (node, epoch) = (array.node, array.epoch);
        let subsystem = Subsystem {
            nqn: SUBSYSTEM.into(),
            serial: "ARRAY".into(),
            model: "Trefoil".into(),
            hosts: Allow::only(vec![GATEWAY.into()]),
            portals: vec![PortalId(0)],
            namespaces: backends.iter().map(namespace).collect(),
            max_namespaces: 8,
            cntlid_range: (1, 0xFFEF),
        };
        let luns = backends.iter().zip(&lens).map(lun).collect();
        let portals = vec![Some(Portal { listen: self.world.addr(node, PORT) })];
        let topology =
            Arc::new(Topology { epoch, luns, subsystems: vec![subsystem], portals, ..Topology::default() });
        self.world.post(node, CoreId(0), Msg::Topology(topology));
    }

    /// Returns the gateway's channel to a backend that is a namespace of the array.
    pub(super) fn remote_kind(&self, backend: usize, core: u16) -> Option<AttachKind<crate::simio::SimFile>> {
        let array = self.array.as_ref()?;
        let nsid = array.backends.iter().position(|&b| b == backend)? as u32 + 1;
        let nqn = |text: &str| Nqn::new(text).expect("the simulator's NQNs are valid");
        let config = NvmeTcpConfig {
            controller: ControllerConfig {
                addrs: vec![self.world.addr(array.node, PORT)],
                identity: Identity {
                    host_nqn: nqn(GATEWAY),
                    host_id: [0x99; 16],
                    subsystem_nqn: nqn(SUBSYSTEM),
                },
                purpose: Purpose::Nvm { nsid },
                digests: (array.digests, array.digests),
                kato_ms: KATO_MS,
                io_queues: self.cores,
                entries: QueueEntries::new(17),
                reconnect: (Duration::from_millis(5), Duration::from_millis(200)),
                connect_timeout: Duration::from_secs(1),
                admin_timeout: Duration::from_secs(1),
                loss_timeout: LOSS_TIMEOUT,
                fence: self.fence,
                discovery_entries: 0,
            },
            command_timeout: Duration::from_secs(2),
            requests: 128,
        };
        let id = BackendId(backend as u32);
        Some(AttachKind::NvmeTcp(Box::new(NvmeTcpChannel::new(id, CoreId(core), self.cores, &config))))
    }

    /// Acts as the array's control thread. This thread only passes connections on to the core.
    pub(super) fn adopt_array(&mut self) {
        let Some(node) = self.array.as_ref().map(|array| array.node) else { return };
        while let Some(accepted) = self.world.take_accepted(node) {
            let (portal, local, peer) = (PortalId(0), accepted.local, accepted.peer);
            let msg = Msg::Adopt { socket: accepted.socket, portal, local, peer, initialized: false };
            self.world.post(node, CoreId(0), msg);
        }
        while self.world.take_control(node).is_some() {}
    }

    /// Returns the bytes of blocks that a core may hold when no operation is under way: one block for each array controller on
    /// that core.
    pub(super) fn rest_bytes(&self, core: u16) -> usize {
        let here = |&&backend: &&usize| backend % usize::from(self.cores) == usize::from(core);
        4096 * self.array.as_ref().map_or(0, |array| array.backends.iter().filter(here).count())
    }
}

fn limits(io_queues: u16, lacks_zeroes: bool) -> CoreLimits {
    let target = TargetLimits {
        max_conns: SOCKETS,
        max_ctrlrs: 48,
        max_discovery: 4,
        slots: 512,
        reserved_slots: 128,
        reserved_bytes: 1 << 20,
        send_lists: 32,
        io_queues,
        has_write_zeroes: !lacks_zeroes,
        ..TargetLimits::default()
    };
    CoreLimits { max_sockets: SOCKETS as u32, host_sockets: HOST_SOCKETS, target, foreign_requests: 16 }
}
