//! The run in the role of the gateway's control thread: starts the gateway, attaches backends, and publishes topologies.

use std::sync::Arc;

use trefoil_poll::{CoreId, Io};
use trefoil_storage::Msg;
use trefoil_storage::backend::{Attach, AttachKind, File};
use trefoil_storage::core::StorageCore;
use trefoil_storage::msg::Event;
use trefoil_storage::pool::MIN_UNIT_BYTES;
use trefoil_storage::topology::{
    Access, Allow, BackendId, Extent, Lun, LunId, Namespace, Portal, PortalId, Subsystem, Topology,
};
use trefoil_wire::nvme::log::AnaState;

use super::pool::lun_id;
use super::sizes::{
    ARENA_BYTES, CORES, FIRST_MEMORY, GROWN, LUNS, PORT, REPLACED, SERVERS, SLOTS, capacity, limits,
};
use super::warm::WARM;
use super::{Frontend, LANDED, MEMORIES, Run};
use crate::direct::LunCore;
use crate::hostile;
use crate::memory::arena;
use crate::model::BLOCK_BYTES;
use crate::node::Node;
use crate::server::{SUBSYSTEM, ServerConfig, ServerCore, host_nqn};

/// The most requests that can be under way on a disk: the command slots of all cores, and the control thread's requests.
const FILE_REQUESTS: usize = CORES as usize * SLOTS + 64;

impl Run {
    pub(super) fn start(&mut self) {
        let (homes, workload) = (self.homes.clone(), self.workload.clone());
        let frontend = self.frontend;
        let (cores, capacity) = (self.cores, capacity());
        let limits = limits(cores, self.send_lists, self.discovery);
        self.world.start(self.gateway, cores, |io| {
            let arena = arena(homes[usize::from(io.core().0)], ARENA_BYTES);
            match frontend {
                Frontend::Direct => Node::Lun(Box::new(LunCore::new(io, arena, workload.clone()))),
                Frontend::NvmeTcp => {
                    Node::Gateway(Box::new(StorageCore::new(io, arena, limits, capacity.clone())))
                }
            }
        });
        if self.frontend == Frontend::NvmeTcp {
            self.world.listen(self.gateway, PORT);
            self.keep_warm();
        }
        self.attach_left = usize::from(cores) * (self.disks.len() + MEMORIES);
        self.access = [Access::FULL; 4];
        for (at, id, len_bytes) in Self::memory_backends() {
            for core in 0..cores {
                let kind = self.memory_kind(at, core);
                let attach = Attach { len_bytes, block_bytes: BLOCK_BYTES as u32, kind, id };
                self.world.post(self.gateway, CoreId(core), Msg::Attach(id, Box::new(attach)));
            }
        }
        for (backend, &disk) in self.disks.clone().iter().enumerate() {
            for core in 0..cores {
                let kind = if let Some(kind) = self.remote_kind(backend, core) {
                    kind
                } else if self.owners[backend] == core {
                    AttachKind::File { file: self.world.open(disk), slots: File::slots(FILE_REQUESTS) }
                } else {
                    AttachKind::Remote { core: CoreId(self.owners[backend]) }
                };
                let (id, len_bytes) = (BackendId(backend as u32), self.lens[backend]);
                let attach = Attach { len_bytes, block_bytes: self.backend_block_bytes(backend), kind, id };
                self.world.post(self.gateway, CoreId(core), Msg::Attach(id, Box::new(attach)));
            }
        }
    }

    pub(super) fn start_servers(&mut self) {
        for (number, &node) in self.servers.clone().iter().enumerate() {
            let config = ServerConfig {
                number: number as u16,
                addr: self.world.addr(self.gateway, PORT),
                luns: (0..LUNS).filter(|lun| *lun != REPLACED || number != 0).collect(),
                forbidden: if number == 0 { vec![REPLACED] } else { Vec::new() },
                digests: self.digests,
                fence: self.fence,
            };
            let (home, workload) = (self.homes[usize::from(CORES) + number], self.workload.clone());
            self.world.start(node, 1, |io| {
                Node::Server(Box::new(ServerCore::new(
                    io,
                    arena(home, ARENA_BYTES),
                    &config,
                    workload.clone(),
                )))
            });
        }
    }

    pub(super) fn adopt(&mut self) {
        while let Some(accepted) = self.world.take_accepted(self.gateway) {
            let core = CoreId(self.rng.below(self.cores.into()) as u16);
            let (portal, local, peer) = (PortalId(0), accepted.local, accepted.peer);
            let msg = Msg::Adopt { socket: accepted.socket, portal, local, peer, initialized: false };
            self.world.post(self.gateway, core, msg);
        }
    }

    /// Returns the only subsystem. Only the second server may see LUN [`REPLACED`].
    fn subsystem(&self) -> Subsystem {
        let namespace = |(i, lun): (usize, &Option<(u64, Vec<Extent>)>)| {
            lun.as_ref().map(|(_, extents)| Namespace {
                nsid: i as u32 + 1,
                lun: LunId(i as u32),
                hosts: if i == REPLACED && !self.show_all {
                    Allow::only(vec![host_nqn(1)])
                } else {
                    Allow::Any
                },
                ana_group: i as u32 + 1,
                ana_state: match self.hide_access {
                    true => AnaState::Optimized.bits(),
                    false => Access::of_lun(extents, |id: BackendId| {
                        self.access.get(id.0 as usize).copied().unwrap_or(Access::FULL)
                    })
                    .ana_state
                    .bits(),
                },
            })
        };
        Subsystem {
            nqn: SUBSYSTEM.into(),
            serial: "SIM".into(),
            model: "Trefoil".into(),
            hosts: Allow::only(
                (0..SERVERS)
                    .filter(|server| self.keep_banned || Some(*server) != self.banned)
                    .map(host_nqn)
                    .chain([hostile::HOST.into(), hostile::GREEDY.into()]),
            ),
            portals: vec![PortalId(0)],
            namespaces: self.luns.iter().enumerate().filter_map(namespace).collect(),
            max_namespaces: 8,
            cntlid_range: (1, 0xFFEF),
        }
    }

    pub(super) fn publish(&mut self) {
        self.luns = self.pools.presented();
        let memory = self.memory_luns();
        self.luns.extend(memory);
        self.mislead();
        self.epoch += 1;
        self.publish_left = usize::from(self.cores);
        let lun = |(i, lun): (usize, &Option<(u64, Vec<Extent>)>)| {
            lun.as_ref().map(|(blocks, extents)| Lun {
                name: format!("lun{i}"),
                block_bytes: self.block_bytes[i] as u32,
                blocks: *blocks,
                uuid: lun_id(i),
                nguid: lun_id(i),
                extents: extents.clone(),
                read_only: self.is_read_only(i),
            })
        };
        let luns = self.luns.iter().enumerate().map(lun).collect();
        let (subsystems, portals) = match self.frontend {
            Frontend::Direct => (Vec::new(), Vec::new()),
            Frontend::NvmeTcp => {
                let listen = self.world.addr(self.gateway, PORT);
                (vec![self.subsystem()], vec![Some(Portal { listen })])
            }
        };
        let topology =
            Arc::new(Topology { epoch: self.epoch, luns, subsystems, portals, ..Topology::default() });
        for core in 0..self.cores {
            self.world.post(self.gateway, CoreId(core), Msg::Topology(topology.clone()));
        }
    }

    pub(super) fn on_control(&mut self) {
        self.adopt();
        self.adopt_array();
        while let Some((from, msg)) = self.world.take_control(self.gateway) {
            match msg {
                Msg::Attached(_) => {
                    self.attach_left -= 1;
                    self.pool_step();
                }
                Msg::TopologyDone { epoch, .. } if epoch == self.epoch => {
                    self.publish_left -= 1;
                    if self.publish_left == 0 {
                        self.in_force();
                    }
                }
                Msg::TopologyDone { .. } | Msg::Adopted(_) => {}
                Msg::Completed(done) => self.answered(done),
                Msg::Event(event) => {
                    let now = self.world.now();
                    self.world.story.tell(now, format_args!("gateway core {}: {event:?}", from.0));
                    match event {
                        Event::BackendState { backend, usable, .. } => self.on_backend_state(backend, usable),
                        Event::BackendInfo { backend, len_bytes, .. }
                        | Event::BackendResized { backend, len_bytes } => {
                            self.on_backend_len(backend, len_bytes)
                        }
                        Event::BackendAccess { backend, access } => self.on_backend_access(backend, access),
                        Event::QpairUp { host, .. } if host.as_str().starts_with(WARM) => {
                            let what =
                                format!("core {}'s connection to itself is told of as a host's", from.0);
                            self.workload.borrow_mut().model.violate(what);
                        }
                        Event::BackendReplaced { .. } | Event::QpairUp { .. } | Event::QpairDown { .. } => {}
                    }
                }
                Msg::Refused(place) => self.world.post(self.gateway, from, Msg::Refused(place)),
                other => {
                    let what = format!("control got {other:?} from {from:?}");
                    self.workload.borrow_mut().model.violate(what);
                }
            }
        }
    }

    /// Applies the mutations that change the presented LUNs.
    fn mislead(&mut self) {
        let first = self.luns[0].as_ref().and_then(|(_, extents)| extents.first().copied());
        if self.reuse_extent
            && let (Some(first), Some((blocks, extents))) = (first, &mut self.luns[GROWN])
            && *blocks > self.pools.first_blocks[GROWN]
            && let Some(last) = extents.last_mut()
        {
            // The last unit is a unit of LUN 0.
            last.len -= MIN_UNIT_BYTES;
            let lun_offset = last.lun_offset + last.len;
            extents.push(Extent { lun_offset, len: MIN_UNIT_BYTES, ..first });
            extents.retain(|extent| extent.len > 0);
        }
        if self.swap_extents
            && self.restarted
            && let Some((_, extents)) = &mut self.luns[0]
            && let [a, b] = extents.as_mut_slice()
        {
            std::mem::swap(&mut a.backend, &mut b.backend);
        }
    }

    /// Updates the model. Every core now has the latest topology.
    fn in_force(&mut self) {
        let mut workload = self.workload.borrow_mut();
        for (at, lun) in self.luns.iter().enumerate().take(FIRST_MEMORY) {
            let Some((blocks, _)) = lun else { continue };
            if at == REPLACED && self.pools.removing {
                continue;
            }
            if !workload.model.is_open(at) {
                workload.model.renew(at, *blocks);
            } else if *blocks > workload.model.blocks(at) {
                workload.model.grow(at, *blocks);
            }
        }
        workload.serving = true;
        drop(workload);
        (FIRST_MEMORY..LUNS).for_each(|lun| self.memory_in_force(lun));
        self.pool_step();
        self.kick();
    }

    /// Gives each core a turn, in which the core looks for work.
    pub(super) fn kick(&mut self) {
        for core in 0..self.cores {
            self.world.with(self.gateway, core, |_, _| ());
        }
        for node in self.servers.clone() {
            self.world.with(node, 0, |_, _| ());
        }
    }

    /// Returns whether every core presents the wanted LUNs.
    pub(super) fn is_published(&self) -> bool {
        self.attach_left == 0 && self.publish_left == 0 && !self.pools.stale
    }

    pub(super) fn is_settled(&mut self) -> bool {
        self.world.is_up(self.gateway)
            && self.attach_left == 0
            && self.publish_left == 0
            && self.pools.is_settled()
            && self.knows_array()
    }

    /// Advances all work that takes several steps. Returns true when all work is done.
    pub(super) fn tick(&mut self) -> bool {
        self.pool_step();
        self.check_errors();
        self.check_memory_errors();
        self.judge_attacks();
        self.keep_attacking();
        if !self.is_settled() {
            return false;
        }
        let workload = self.workload.borrow();
        if !workload.is_spent() || workload.model.under_way(None) > 0 {
            return false;
        }
        let verified = workload.is_verified();
        drop(workload);
        let now = self.world.now();
        match self.calm {
            None => {
                self.calm = Some(now);
                self.heal();
            }
            Some(since) if now.since(since) >= LANDED && !self.workload.borrow().is_verifying() => {
                self.workload.borrow_mut().start_verify();
                self.kick();
            }
            Some(_) => {}
        }
        verified
    }
}
