//! One seed: a gateway of four cores with its disks and LUNs, a workload, faults, and the verdict.
//!
//! The run plays the control thread: it attaches backends, publishes topologies, zeroes what a new LUN
//! gets, and restarts the gateway when it died.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use trefoil_poll::rand::Rng;
use trefoil_poll::{CoreId, Instant, Io};
use trefoil_storage::backend::{Attach, AttachKind, File};
use trefoil_storage::core::{CoreLimits, StorageCore};
use trefoil_storage::initiator::FenceRule;
use trefoil_storage::target::TargetLimits;
use trefoil_storage::topology::{
    Allow, BackendId, Extent, Lun, LunId, Namespace, Portal, PortalId, Subsystem, Topology,
};
use trefoil_storage::{Msg, Op, Origin, Owner, Request};

use crate::direct::{LunCore, StorageMsg};
use crate::disk::{Disk, DiskFault, DiskId};
use crate::memory::{arena, claim_home, release_home};
use crate::model::BLOCK_BYTES;
use crate::mutation::Mutation;
use crate::node::Node;
use crate::server::{SUBSYSTEM, ServerConfig, ServerCore, host_nqn};
use crate::simio::SOCKETS;
use crate::workload::Workload;
use crate::world::{Crash, NodeId, Step, World};

/// Cores of the gateway.
pub const CORES: u16 = 4;
const ARENA_BYTES: usize = 8 << 20;
const SERVERS: u16 = 2;
const PORT: u16 = 4420;
const DISKS: u32 = 3;
const DISK_BYTES: u64 = 8 << 20;
/// Block sizes of the LUNs at first. The last is the one that is removed and made anew.
const LUN_BLOCKS: [u64; 3] = [2048, 1500, 1024];
const REPLACED: usize = 2;
const GROWN: usize = 1;
const GROW_BLOCKS: u64 = 200;
/// Nothing takes longer than this in virtual time.
const LIMIT: Instant = Instant::from_ns(900_000_000_000);

/// Without progress for so long, nothing more goes wrong: the servers must recover within their loss
/// timeout.
const PATIENCE: Duration = Duration::from_secs(8);

/// By then every timeout has fired.
const REST: Duration = Duration::from_secs(120);

const TICK: u64 = 1;
const FAULT: u64 = 2;
const RESTART: u64 = 3;
const HEAL: u64 = 4;

/// Every kind of fault that a set of seeds must have fired.
pub const FAULTS: [&str; 18] = [
    "link-reset",
    "link-stall",
    "half-dead",
    "vanish",
    "bit-flip",
    "kill",
    "power-cut",
    "crash-in-change",
    "read-eio",
    "write-eio",
    "sync-eio",
    "disk-full",
    "disk-slow",
    "core-pause",
    "lun-remove",
    "lun-create",
    "lun-grow",
    "republish",
];

/// What stands before the LUN layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// The workload itself, on every core.
    Direct,
    /// The NVMe/TCP target, and servers that reach it over links.
    NvmeTcp,
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Everything follows from it.
    pub seed: u64,
    /// What stands before the LUN layer.
    pub frontend: Frontend,
    /// Operations of the workload.
    pub operations: u64,
    /// Keep the story as text.
    pub told: bool,
    /// Break this first.
    pub mutation: Option<Mutation>,
}

/// What came of a seed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Of the story.
    pub hash: u64,
    /// Operations that succeeded, and that failed for a reason.
    pub operations: (u64, u64),
    /// How often each kind of fault fired.
    pub faults: BTreeMap<&'static str, u64>,
    /// What was wrong, if anything.
    pub violation: Option<String>,
    /// The story's lines, if it was told.
    pub story: Vec<String>,
}

/// What the topology under way changes for the model once every core has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    Removed,
    Created(u64),
    Grown(u64),
}

/// Zeroes being written to what a new LUN gets.
struct Zeroing {
    left: usize,
    failed: bool,
    extents: Vec<Extent>,
}

/// A seed under way.
pub struct Run {
    /// The world.
    pub world: World<StorageMsg, Node>,
    frontend: Frontend,
    gateway: NodeId,
    servers: Vec<NodeId>,
    digests: bool,
    disks: Vec<DiskId>,
    homes: Vec<u16>,
    /// The core that has each backend's file.
    owners: Vec<u16>,
    workload: Rc<RefCell<Workload>>,
    rng: Rng,
    faults: BTreeMap<&'static str, u64>,
    luns: Vec<Option<Vec<Extent>>>,
    epoch: u64,
    attach_left: usize,
    publish_left: usize,
    change: Change,
    zeroing: Option<Zeroing>,
    /// No more faults: the end is near.
    calm: bool,
    /// Mutation: a new LUN is not zeroed.
    pub skip_zeroing: bool,
    /// Mutation: a grown LUN gets an extent that another has.
    pub reuse_extent: bool,
    /// How servers fence lost writes. Mutation: not at all.
    pub fence: FenceRule,
    /// Operations that were done at the last fault.
    finished_at_fault: u64,
    /// When work last went on well enough for a fault.
    last_fault: Instant,
    /// Mutation: bits flip where there are no digests, as if nobody checked them.
    flip_unprotected: bool,
    /// Mutation: every server may see every LUN.
    pub show_all: bool,
    /// Mutation: after a restart two extents have changed places.
    pub swap_extents: bool,
}

/// Runs a seed to its end. A panic of a machine is a violation.
pub fn run_seed(setting: Setting) -> Outcome {
    let told = RefCell::new(Outcome { seed: setting.seed, ..Outcome::default() });
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let mut run = Run::new(&setting);
        if let Some(mutation) = setting.mutation {
            mutation.apply(&mut run);
        }
        let verdict = catch_unwind(AssertUnwindSafe(|| run.go()));
        let violation = verdict.unwrap_or_else(|panic| Some(panic_text(&*panic)));
        run.outcome(setting.seed, violation)
    }));
    caught.unwrap_or_else(|panic| Outcome { violation: Some(panic_text(&*panic)), ..told.take() })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without a message"))
}

fn blocks_of(extents: &[Extent]) -> u64 {
    extents.iter().map(|e| e.len).sum::<u64>() / BLOCK_BYTES as u64
}

/// Extents for `blocks` blocks, cut at random over two backends from block `from` on each.
fn carve(rng: &mut Rng, blocks: u64, backends: [u32; 2], from: u64) -> Vec<Extent> {
    let first = 1 + rng.below(blocks - 1);
    let extent = |lun_offset: u64, len: u64, backend: u32| Extent {
        lun_offset: lun_offset * BLOCK_BYTES as u64,
        len: len * BLOCK_BYTES as u64,
        backend: BackendId(backend),
        backend_offset: from * BLOCK_BYTES as u64,
    };
    vec![extent(0, first, backends[0]), extent(first, blocks - first, backends[1])]
}

fn limits() -> CoreLimits {
    let target = TargetLimits {
        max_conns: SOCKETS,
        max_ctrlrs: 32,
        slots: 768,
        reserved_slots: 256,
        reserved_bytes: 1 << 20,
        send_lists: 64,
        ..TargetLimits::default()
    };
    CoreLimits { max_sockets: SOCKETS as u32, target, foreign_requests: 256 }
}

impl Run {
    fn new(setting: &Setting) -> Self {
        let mut world = World::new(setting.seed, setting.told);
        let gateway = world.add_node("gateway");
        let servers = match setting.frontend {
            Frontend::Direct => Vec::new(),
            Frontend::NvmeTcp => (0..SERVERS).map(|i| world.add_node(&format!("server{i}"))).collect(),
        };
        let disks = (0..DISKS).map(|i| world.add_disk(gateway, &format!("disk{i}"), DISK_BYTES)).collect();
        let mut rng = world.fork_rng();
        let mut workload = Workload::new(world.fork_rng(), setting.operations, &LUN_BLOCKS);
        workload.model.log = setting.told.then(Vec::new);
        let luns = vec![
            Some(carve(&mut rng, LUN_BLOCKS[0], [0, 1], 0)),
            Some(carve(&mut rng, LUN_BLOCKS[1], [1, 2], 4000)),
            Some(carve(&mut rng, LUN_BLOCKS[2], [2, 0], 8000)),
        ];
        Self {
            world,
            frontend: setting.frontend,
            gateway,
            servers,
            digests: rng.below(2) == 0,
            disks,
            homes: (0..CORES + SERVERS).map(|_| claim_home()).collect(),
            owners: (0..DISKS).map(|_| rng.below(u64::from(CORES)) as u16).collect(),
            workload: Rc::new(RefCell::new(workload)),
            rng,
            faults: BTreeMap::new(),
            luns,
            epoch: 0,
            attach_left: 0,
            publish_left: 0,
            change: Change::Nothing,
            zeroing: None,
            calm: false,
            skip_zeroing: false,
            reuse_extent: false,
            swap_extents: false,
            flip_unprotected: false,
            show_all: false,
            fence: FenceRule::KeepAliveBound,
            finished_at_fault: 0,
            last_fault: Instant::default(),
        }
    }

    /// Leaves digests out, whatever the seed says, and flips bits all the same.
    pub fn drop_digests(&mut self) {
        (self.digests, self.flip_unprotected) = (false, true);
    }

    /// Calls `f` for each disk.
    pub fn each_disk(&mut self, f: impl Fn(&mut Disk)) {
        self.disks.iter().for_each(|&disk| f(self.world.disk(disk)));
    }

    fn go(&mut self) -> Option<String> {
        self.start();
        self.start_servers();
        self.world.after(Duration::from_micros(50), TICK);
        self.world.after(Duration::from_micros(400), FAULT);
        loop {
            let step = self.world.step();
            self.tell_operations();
            if let Some(violation) = self.workload.borrow().model.violation() {
                return Some(violation.into());
            }
            match step {
                Step::Ran => {}
                Step::Accepted(_) => self.adopt(),
                Step::Control(_) => self.on_control(),
                Step::Timer(TICK) => {
                    if self.tick() {
                        break;
                    }
                    let pause = if self.frontend == Frontend::Direct { 100 } else { 1000 };
                    self.world.after(Duration::from_micros(pause), TICK);
                }
                Step::Timer(FAULT) if !self.calm => {
                    self.fault();
                    let pause = Duration::from_micros(100 + self.rng.below(500));
                    self.world.after(pause, FAULT);
                }
                Step::Timer(RESTART) => self.start(),
                Step::Timer(HEAL) => self.heal(),
                Step::Timer(_) => {}
                Step::Idle => return Some("nothing happens any more, and the work is not done".into()),
            }
            if self.world.now() > LIMIT {
                let left = self.workload.borrow().model.under_way(None);
                return Some(format!("after 15 virtual minutes {left} operations are not done"));
            }
        }
        self.check_leaks()
    }

    fn outcome(mut self, seed: u64, violation: Option<String>) -> Outcome {
        if let Some(violation) = &violation {
            self.world.story.tell(self.world.now(), format_args!("VIOLATION: {violation}"));
        }
        let outcome = Outcome {
            seed,
            hash: self.world.story.hash(),
            operations: self.workload.borrow().model.counts(),
            faults: std::mem::take(&mut self.faults),
            violation,
            story: self.world.story.lines().map(str::to_owned).collect(),
        };
        let homes = std::mem::take(&mut self.homes);
        drop(self);
        homes.into_iter().for_each(release_home);
        outcome
    }

    fn tell_operations(&mut self) {
        let lines = match &mut self.workload.borrow_mut().model.log {
            Some(log) => std::mem::take(log),
            None => return,
        };
        let now = self.world.now();
        lines.iter().for_each(|line| self.world.story.tell(now, format_args!("{line}")));
    }

    fn fired(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
        self.world.story.tell(self.world.now(), format_args!("fault: {kind}"));
    }

    // The control thread.

    fn start(&mut self) {
        let (homes, workload) = (self.homes.clone(), self.workload.clone());
        let frontend = self.frontend;
        self.world.start(self.gateway, CORES, |io| {
            let arena = arena(homes[usize::from(io.core().0)], ARENA_BYTES);
            match frontend {
                Frontend::Direct => Node::Lun(Box::new(LunCore::new(io, arena, workload.clone()))),
                Frontend::NvmeTcp => Node::Gateway(Box::new(StorageCore::new(io, arena, limits()))),
            }
        });
        if self.frontend == Frontend::NvmeTcp {
            self.world.listen(self.gateway, PORT);
        }
        self.zeroing = None;
        self.attach_left = usize::from(CORES) * self.disks.len();
        for (backend, &disk) in self.disks.clone().iter().enumerate() {
            for core in 0..CORES {
                let kind = if self.owners[backend] == core {
                    AttachKind::File { file: self.world.open(disk), slots: File::slots(64) }
                } else {
                    AttachKind::Remote { core: CoreId(self.owners[backend]) }
                };
                let id = BackendId(backend as u32);
                let attach = Attach { len_bytes: DISK_BYTES, block_bytes: BLOCK_BYTES as u32, kind, id };
                self.world.post(self.gateway, CoreId(core), Msg::Attach(id, Box::new(attach)));
            }
        }
    }

    fn start_servers(&mut self) {
        for (number, &node) in self.servers.clone().iter().enumerate() {
            let config = ServerConfig {
                number: number as u16,
                addr: self.world.addr(self.gateway, PORT),
                luns: if number == 0 { vec![0, GROWN] } else { vec![0, GROWN, REPLACED] },
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

    fn adopt(&mut self) {
        while let Some(accepted) = self.world.take_accepted(self.gateway) {
            let core = CoreId(self.rng.below(u64::from(CORES)) as u16);
            let (portal, local, peer) = (PortalId(0), accepted.local, accepted.peer);
            let msg = Msg::Adopt { socket: accepted.socket, portal, local, peer };
            self.world.post(self.gateway, core, msg);
        }
    }

    /// One subsystem; the last LUN is for the second server only.
    fn subsystem(&self) -> Subsystem {
        let namespace = |(i, extents): (usize, &Option<Vec<Extent>>)| {
            extents.as_ref().map(|_| Namespace {
                nsid: i as u32 + 1,
                lun: LunId(i as u32),
                hosts: if i == REPLACED && !self.show_all {
                    Allow::Only(vec![host_nqn(1)])
                } else {
                    Allow::Any
                },
                ana_group: 1,
                ana_state: 1,
            })
        };
        Subsystem {
            nqn: SUBSYSTEM.into(),
            serial: "SIM".into(),
            model: "Trefoil".into(),
            hosts: Allow::Only((0..SERVERS).map(host_nqn).collect()),
            portals: vec![PortalId(0)],
            namespaces: self.luns.iter().enumerate().filter_map(namespace).collect(),
            max_namespaces: 8,
            cntlid_range: (1, 0xFFEF),
        }
    }

    fn publish(&mut self) {
        self.epoch += 1;
        self.publish_left = usize::from(CORES);
        let lun = |(i, extents): (usize, &Option<Vec<Extent>>)| {
            extents.as_ref().map(|extents| Lun {
                name: format!("lun{i}"),
                block_bytes: BLOCK_BYTES as u32,
                blocks: blocks_of(extents),
                uuid: [i as u8; 16],
                nguid: [i as u8; 16],
                extents: extents.clone(),
                read_only: false,
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
        let topology = Arc::new(Topology { epoch: self.epoch, luns, subsystems, portals });
        for core in 0..CORES {
            self.world.post(self.gateway, CoreId(core), Msg::Topology(topology.clone()));
        }
    }

    fn on_control(&mut self) {
        while let Some((from, msg)) = self.world.take_control(self.gateway) {
            match msg {
                Msg::Attached(_) => {
                    self.attach_left -= 1;
                    if self.attach_left == 0 {
                        self.publish();
                    }
                }
                Msg::TopologyDone { epoch, .. } if epoch == self.epoch => {
                    self.publish_left -= 1;
                    if self.publish_left == 0 {
                        self.in_force();
                    }
                }
                Msg::TopologyDone { .. } => {}
                Msg::Completed(done) => {
                    let (_, result) = done.settle();
                    if let Some(zeroing) = &mut self.zeroing {
                        zeroing.left -= 1;
                        zeroing.failed |= result.is_err();
                    }
                    self.created();
                }
                Msg::Event(event) => {
                    let now = self.world.now();
                    self.world.story.tell(now, format_args!("gateway core {}: {event:?}", from.0));
                }
                other => {
                    let what = format!("control got {other:?} from {from:?}");
                    self.workload.borrow_mut().model.violate(what);
                }
            }
        }
    }

    /// Every core has the latest topology.
    fn in_force(&mut self) {
        let mut workload = self.workload.borrow_mut();
        match std::mem::replace(&mut self.change, Change::Nothing) {
            Change::Nothing | Change::Removed => {}
            Change::Created(blocks) => workload.model.renew(REPLACED, blocks),
            Change::Grown(blocks) => workload.model.grow(GROWN, blocks),
        }
        workload.serving = true;
        drop(workload);
        self.kick();
    }

    /// Gives each core a turn, for it to look for work.
    fn kick(&mut self) {
        for core in 0..CORES {
            self.world.with(self.gateway, core, |_, _| ());
        }
        for node in self.servers.clone() {
            self.world.with(node, 0, |_, _| ());
        }
    }

    fn is_settled(&self) -> bool {
        self.world.is_up(self.gateway)
            && self.attach_left == 0
            && self.publish_left == 0
            && self.change == Change::Nothing
            && self.zeroing.is_none()
    }

    /// Moves on what takes several steps. Returns whether everything is done.
    fn tick(&mut self) -> bool {
        if !self.is_settled() {
            return false;
        }
        if self.luns[REPLACED].is_none() {
            if self.workload.borrow().model.under_way(Some(REPLACED)) == 0 {
                self.zero_new();
            }
            return false;
        }
        let workload = self.workload.borrow();
        if !workload.is_spent() || workload.model.under_way(None) > 0 {
            return false;
        }
        if !self.calm {
            self.calm = true;
            drop(workload);
            self.heal();
            self.workload.borrow_mut().start_verify();
            self.kick();
            return false;
        }
        workload.is_verified()
    }

    fn zero_new(&mut self) {
        let blocks = 500 + self.rng.below(1000);
        let extents = carve(&mut self.rng, blocks, [2, 0], 8000);
        let left = if self.skip_zeroing { 0 } else { extents.len() };
        self.zeroing = Some(Zeroing { left, failed: false, extents: extents.clone() });
        if self.skip_zeroing {
            return self.created();
        }
        for (slot, extent) in extents.iter().enumerate() {
            let core = self.owners[extent.backend.0 as usize];
            let origin = Origin {
                core: CoreId(core),
                home: self.homes[usize::from(core)],
                owner: Owner::Control,
                slot: slot as u32,
                generation: 0,
            };
            let op = Op::WriteZeroes { deallocate: slot == 0 };
            let (offset, len) = (extent.backend_offset, extent.len);
            let request = Request::new(op, LunId(0), offset, len, None, origin).durable(true);
            self.world.post(self.gateway, CoreId(core), Msg::BackendIo(extent.backend, request));
        }
    }

    /// Presents the new LUN once all of it is zeroed. What failed is tried again at the next tick, when
    /// nothing of the attempt is under way any more.
    fn created(&mut self) {
        let done = self.zeroing.take_if(|zeroing| zeroing.left == 0);
        if let Some(Zeroing { extents, failed: false, .. }) = done {
            self.fired("lun-create");
            self.change = Change::Created(blocks_of(&extents));
            self.luns[REPLACED] = Some(extents);
            self.publish();
        }
    }

    // What goes wrong.

    fn heal(&mut self) {
        self.each_disk(|disk| disk.fault = DiskFault::default());
        self.workload.borrow_mut().model.excused = false;
    }

    fn fault(&mut self) {
        if !self.world.is_up(self.gateway) {
            return;
        }
        if self.frontend == Frontend::NvmeTcp {
            // While servers wait out a fence, little goes wrong, for work to go on between faults.
            let (done, failed) = self.workload.borrow().model.counts();
            let (now, few) = (self.world.now(), done + failed < self.finished_at_fault + 40);
            if few && (now.since(self.last_fault) > PATIENCE || self.rng.below(400) > 0) {
                return;
            }
            if !few {
                self.last_fault = now;
                self.finished_at_fault = done + failed;
            }
            if self.rng.below(2) == 0 {
                return self.link_fault();
            }
        }
        match self.rng.below(20) {
            0 => self.crash(Crash::Kill),
            1 => self.crash(Crash::Power),
            2 | 3 => self.disk_fault("read-eio", |fault| fault.read_eio = 200),
            4 | 5 => self.disk_fault("write-eio", |fault| fault.write_eio = 200),
            6 | 7 => self.disk_fault("sync-eio", |fault| fault.sync_eio = 300),
            8 | 9 => self.disk_fault("disk-full", |fault| fault.full = true),
            10 | 11 => self.disk_fault("disk-slow", |fault| fault.slow = 20),
            12 | 13 => {
                let (core, time) = (self.rng.below(u64::from(CORES)) as u16, self.rng.below(2000));
                self.world.pause(self.gateway, core, Duration::from_micros(time));
                self.fired("core-pause");
            }
            14..17 => self.remove(),
            17 | 18 => self.grow(),
            _ => {
                if self.is_settled() {
                    self.publish();
                    self.fired("republish");
                }
            }
        }
    }

    fn link_fault(&mut self) {
        let conns = self.world.conns_of(self.gateway);
        let Some(&(conn, side)) = conns.get(self.rng.below(conns.len() as u64) as usize) else { return };
        let time = Duration::from_micros(self.rng.below(50_000));
        match self.rng.below(8) {
            0 | 1 => {
                self.world.reset(conn);
                self.fired("link-reset");
            }
            2 | 3 => {
                self.world.stall(conn, time);
                self.fired("link-stall");
            }
            4 => {
                self.world.blacken(conn, if self.rng.below(2) == 0 { side } else { side.other() });
                self.fired("half-dead");
            }
            5 => {
                let reset = self.rng.below(2) == 0;
                self.world.darken(self.gateway, time * 60, reset);
                self.fired("vanish");
            }
            _ => {
                let to = if self.rng.below(2) == 0 { side } else { side.other() };
                if (self.digests || self.flip_unprotected) && self.world.bytes_to(conn, to) > 2000 {
                    self.world.flip_bit(conn, to);
                    self.workload.borrow_mut().bits_flip = true;
                    self.fired("bit-flip");
                }
            }
        }
    }

    fn crash(&mut self, how: Crash) {
        self.fired(if how == Crash::Kill { "kill" } else { "power-cut" });
        if !self.is_settled() || self.luns[REPLACED].is_none() {
            self.fired("crash-in-change");
        }
        self.world.crash(self.gateway, how);
        let mut workload = self.workload.borrow_mut();
        match self.frontend {
            Frontend::Direct => {
                workload.serving = false;
                workload.model.crash(how == Crash::Power);
            }
            Frontend::NvmeTcp if how == Crash::Power => workload.model.power_cut(),
            Frontend::NvmeTcp => {}
        }
        drop(workload);
        if self.swap_extents
            && let Some(extents) = &mut self.luns[0]
            && let [a, b] = extents.as_mut_slice()
        {
            std::mem::swap(&mut a.backend, &mut b.backend);
        }
        self.publish_left = 0;
        let pause = Duration::from_micros(50 + self.rng.below(2000));
        self.world.after(pause, RESTART);
    }

    fn disk_fault(&mut self, kind: &'static str, set: fn(&mut DiskFault)) {
        let disk = self.disks[self.rng.below(u64::from(DISKS)) as usize];
        set(&mut self.world.disk(disk).fault);
        self.workload.borrow_mut().model.excuse();
        let time = Duration::from_micros(100 + self.rng.below(400));
        self.world.after(time, HEAL);
        self.fired(kind);
    }

    fn remove(&mut self) {
        if self.is_settled() && self.luns[REPLACED].is_some() {
            self.workload.borrow_mut().model.close(REPLACED);
            self.luns[REPLACED] = None;
            self.change = Change::Removed;
            self.publish();
            self.fired("lun-remove");
        }
    }

    fn grow(&mut self) {
        if !self.is_settled() || self.luns[GROWN].as_ref().is_none_or(|extents| extents.len() > 8) {
            return;
        }
        let taken = if self.reuse_extent { self.luns[0].as_ref().map(|e| e[0].backend_offset) } else { None };
        if let Some(extents) = &mut self.luns[GROWN] {
            let (bytes, count) = (GROW_BLOCKS * BLOCK_BYTES as u64, extents.len() as u64);
            extents.push(Extent {
                lun_offset: blocks_of(extents) * BLOCK_BYTES as u64,
                len: bytes,
                backend: BackendId(0),
                backend_offset: taken.unwrap_or(12_000 * BLOCK_BYTES as u64 + count * bytes),
            });
            self.change = Change::Grown(blocks_of(extents));
            self.publish();
            self.fired("lun-grow");
        }
    }

    /// At rest no core holds a block, once timeouts have ended what waits for dead peers.
    fn check_leaks(&mut self) -> Option<String> {
        let until = self.world.now() + REST;
        loop {
            let held = (0..CORES).find_map(|core| {
                let held = self.world.machine(self.gateway, core).map_or(0, |machine| machine.held_bytes());
                (held > 0).then(|| format!("core {core} holds {held} bytes of blocks at rest"))
            });
            if held.is_none() || self.world.now() > until {
                return held;
            }
            match self.world.step() {
                Step::Accepted(_) => self.adopt(),
                Step::Control(_) => self.on_control(),
                Step::Idle => return held,
                Step::Ran | Step::Timer(_) => {}
            }
        }
    }
}
