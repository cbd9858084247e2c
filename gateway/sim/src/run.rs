//! One seed: a gateway of one to four cores with its disks, memory and LUNs, a workload, faults, and the verdict.
//!
//! The run plays the control thread ([`control`], [`pool`]): it attaches backends, runs the pool code, publishes
//! topologies, and restarts the gateway after a crash. [`faults`] decides which faults happen.
//!
//! The run checks the following:
//! - Every read agrees with the [model](crate::model), which knows the acknowledged and the flushed data.
//! - No operation fails without a cause, that is, without a fault of the run that explains the failure.
//! - The pool's layout is right each time the pool is opened.
//! - The gateway follows the protocol and the rules of visibility.
//! - No core holds a block of memory when no operation is under way.
//! - [`memory`] checks loans, and [`warm`] checks idle cores.
//! - With an array behind the gateway, [`mod@array`] adds its checks.
//! - With a hostile host, each attack gets the answer that the specs require. No attack disturbs the other hosts.

mod array;
mod checks;
mod control;
mod faults;
mod hostile;
mod memory;
mod pool;
mod refusals;
mod sizes;
mod warm;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use trefoil_poll::Instant;
use trefoil_poll::rand::Rng;
use trefoil_storage::initiator::FenceRule;
use trefoil_storage::topology::{Access, Extent};

use crate::direct::StorageMsg;
use crate::disk::{Disk, DiskId};
use crate::memory::{claim_home, release_home};
use crate::model::BLOCK_BYTES;
use crate::net::NodeId;
use crate::net::{ConnId, Side};
use crate::node::Node;
use crate::simio::SOCKETS;
use crate::timeouts::DISCOVERY_TIMEOUT;
use crate::workload::Workload;
use crate::world::{Loans, Step, World};
use array::Array;
pub use faults::FAULTS;
use memory::{MEMORIES, Memories};
use pool::Pools;
pub use sizes::CORES;
use sizes::{DISK_BYTES, DiscoveryLimits, IMPORTED, LUN_BLOCKS, LUNS, REPLACED, SERVERS};
use warm::Warm;

/// Limit on the virtual time of a run.
const LIMIT: Instant = Instant::from_ns(900_000_000_000);

/// After this time without progress, the run injects no faults until the servers make progress again. Without faults, the servers
/// recover within their loss timeout.
const PATIENCE: Duration = Duration::from_secs(8);

/// Pause between the end of the workload and the final read of all blocks. All pending writes land within this pause. The pause
/// is longer than 2 × KATO, for which late writes of lost associations are held.
const LANDED: Duration = Duration::from_secs(4);

const TICK: u64 = 1;
const FAULT: u64 = 2;
const RESTART: u64 = 3;
const HEAL: u64 = 4;
const UNBAN: u64 = 5;
const ARRAY_START: u64 = 6;
const ARRAY_BACK: u64 = 7;
const ARRAY_SPLIT: u64 = 8;
const DISCONNECT: u64 = 9;
const ANA_END: u64 = 10;
const ANA_OVER: u64 = 11;
const CUT: u64 = 12;
const SPLIT: u64 = 13;
/// Token of the first memory LUN. Each further memory LUN has the next token.
const MEMORY_BACK: u64 = 14;

/// After this time, every core knows that a path is up again.
const GRACE: Duration = Duration::from_millis(20);

/// The layer above the LUN layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// No protocol: a workload on every core uses the LUN layer directly.
    Direct,
    /// The NVMe/TCP target, and servers that reach it over links.
    NvmeTcp,
}

/// The setting of a run.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The seed, which determines everything.
    pub seed: u64,
    /// The layer above the LUN layer.
    pub frontend: Frontend,
    /// Number of operations of the workload.
    pub operations: u64,
    /// True if the run keeps the story as text.
    pub told: bool,
    /// The defect to apply before the start.
    pub mutation: Option<Mutation>,
}

/// The outcome of a seed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Hash of the story.
    pub hash: u64,
    /// Operations that succeeded, and operations that failed with a cause.
    pub operations: (u64, u64),
    /// How often each kind of fault fired.
    pub faults: BTreeMap<&'static str, u64>,
    /// The violation, if there was one.
    pub violation: Option<String>,
    /// The most bytes that one connection of a host held, and the limit in bytes. Both are zero without a network.
    pub conn_bytes: (usize, usize),
    /// The lines of the story. Empty unless [`Setting::told`] is true.
    pub story: Vec<String>,
}

/// A running seed.
pub struct Run {
    /// The world.
    pub world: World<StorageMsg, Node>,
    frontend: Frontend,
    gateway: NodeId,
    /// Number of cores of the gateway.
    cores: u16,
    /// Number of send lists of each core.
    send_lists: usize,
    servers: Vec<NodeId>,
    digests: bool,
    disks: Vec<DiskId>,
    /// Sizes of the backends in bytes, as the control thread knows them.
    lens: [u64; 4],
    array: Option<Array>,
    /// Block size of each LUN in bytes.
    block_bytes: [usize; LUNS],
    memories: Memories,
    /// Each core's connection to itself. Empty without a network.
    warm: Vec<Warm>,
    hostile: Option<NodeId>,
    /// Number of events so far that may have cut off an attack.
    disturbances: u64,
    /// Connections that the run will soon fail at their server's end only.
    split: Vec<(ConnId, Side)>,
    /// Time before which nothing reaches the gateway.
    dark_until: Instant,
    /// True if failed commands had a cause at the last check or at any time since.
    error_cause: bool,
    homes: Vec<u16>,
    /// Access rights that each backend allows its users.
    access: [Access; 4],
    /// Mutation: the gateway does not report `access` to hosts.
    pub hide_access: bool,
    /// The core that has each backend's file open.
    owners: Vec<u16>,
    workload: Rc<RefCell<Workload>>,
    rng: Rng,
    faults: BTreeMap<&'static str, u64>,
    /// Size in blocks and extents of each presented LUN.
    luns: Vec<Option<(u64, Vec<Extent>)>>,
    epoch: u64,
    attach_left: usize,
    publish_left: usize,
    pools: Pools,
    /// Start of the final phase, in which no more faults happen.
    calm: Option<Instant>,
    /// Mutation: a grown LUN gets an extent that belongs to another LUN.
    pub reuse_extent: bool,
    /// How servers fence lost writes. Mutation: servers do not fence.
    pub fence: FenceRule,
    /// Operations that were finished at `last_fault`.
    finished_at_fault: u64,
    /// Time of the last fault that the run injected after enough operations had finished.
    last_fault: Instant,
    /// Mutation: bits flip although digests are off, as if nobody checked digests.
    flip_unprotected: bool,
    /// Mutation: every server may see every LUN.
    pub show_all: bool,
    /// Mutation: after a restart, two extents have changed places.
    pub swap_extents: bool,
    /// Mutation: memory that should outlive the process is lost with the process.
    pub lose_kept: bool,
    /// See [`Outcome::conn_bytes`].
    conn_bytes: (usize, usize),
    /// True if the gateway has crashed at least once.
    restarted: bool,
    /// The server that is currently forbidden to connect.
    banned: Option<u16>,
    /// Mutation: a banned host stays connected.
    pub keep_banned: bool,
    /// Limits of discovery controllers. One mutation lets discovery controllers take the hosts' places, and another lets them
    /// stay for ever.
    pub discovery: DiscoveryLimits,
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

/// One defect, and the number of seeds within which it must be found.
#[derive(Clone, Copy, Debug)]
pub struct Mutation {
    /// Name of the defect on the command line.
    pub name: &'static str,
    /// Number of seeds within which the defect must be found.
    pub within_seeds: u64,
    /// Breaks the world. Does nothing for a defect that the code itself looks up by name ([`trefoil_poll::Io::is_broken`]).
    pub(crate) apply: fn(&mut Run),
}

impl Mutation {
    /// Applies the defect to a system that has not started yet.
    pub fn apply(&self, run: &mut Run) {
        run.world.broken = Some(self.name);
        (self.apply)(run);
    }
}

impl Run {
    fn new(setting: &Setting) -> Self {
        let mut world = World::new(setting.seed, setting.told);
        let gateway = world.add_node("gateway");
        let servers = match setting.frontend {
            Frontend::Direct => Vec::new(),
            Frontend::NvmeTcp => (0..SERVERS).map(|i| world.add_node(&format!("server{i}"))).collect(),
        };
        let disks = DISK_BYTES.iter().enumerate();
        let disks = disks.map(|(i, &len)| world.add_disk(gateway, &format!("disk{i}"), len)).collect();
        let mut rng = world.fork_rng();
        let cores = 1 + rng.below(CORES.into()) as u16;
        world.weather.buffer_bytes = [16 << 10, 64 << 10, 256 << 10][rng.below(3) as usize];
        world.weather.late_turns = Duration::from_micros([0, 0, 40, 150][rng.below(4) as usize]);
        let mut workload = Workload::new(world.fork_rng(), setting.operations, &LUN_BLOCKS);
        workload.model.log = setting.told.then(Vec::new);
        let homes: Vec<_> = (0..CORES + SERVERS + 3).map(|_| claim_home()).collect();
        let array_home = homes[usize::from(CORES + SERVERS) + 1];
        let mut run = Self {
            world,
            frontend: setting.frontend,
            gateway,
            cores,
            // A real gateway has one send list for every socket.
            send_lists: [16, SOCKETS][rng.below(2) as usize],
            servers,
            digests: rng.below(2) == 0,
            disks,
            pools: Pools::new(homes[usize::from(CORES + SERVERS)]),
            lens: DISK_BYTES,
            array: None,
            block_bytes: [BLOCK_BYTES; LUNS],
            memories: Memories::new([rng.below(2) == 0, rng.below(2) == 0]),
            warm: Vec::new(),
            hostile: None,
            disturbances: 0,
            split: Vec::new(),
            dark_until: Instant::default(),
            error_cause: true,
            homes,
            access: [Access::FULL; 4],
            hide_access: false,
            owners: (0..DISK_BYTES.len() + MEMORIES).map(|_| rng.below(cores.into()) as u16).collect(),
            workload: Rc::new(RefCell::new(workload)),
            rng,
            faults: BTreeMap::new(),
            luns: Vec::new(),
            epoch: 0,
            attach_left: 0,
            publish_left: 0,
            calm: None,
            reuse_extent: false,
            swap_extents: false,
            lose_kept: false,
            conn_bytes: (0, 0),
            restarted: false,
            banned: None,
            keep_banned: false,
            discovery: DiscoveryLimits { max_ctrlrs: 128, max_discovery: 12, timeout: DISCOVERY_TIMEOUT },
            flip_unprotected: false,
            show_all: false,
            fence: FenceRule::KeepAliveBound,
            finished_at_fault: 0,
            last_fault: Instant::default(),
        };
        // The array and the hostile host need a network. Without a network, no host waits until the writes of a dead gateway have
        // landed at the array.
        if run.frontend == Frontend::NvmeTcp {
            run.make_array(array_home);
            run.hostile = Some(run.world.add_node("hostile"));
        }
        run.draw_block_sizes();
        run.make_memories();
        run
    }

    /// Gives some LUNs blocks of 4096 bytes. The first LUN keeps blocks of 512 bytes, because the hostile host's attacks rely on
    /// that size. The imported backend has the block size of its LUN. The pool's backends have blocks of 512 bytes, but they
    /// never tear a block of the largest size that a pool LUN has.
    fn draw_block_sizes(&mut self) {
        for lun in 1..self.block_bytes.len() {
            if self.rng.below(3) == 0 {
                self.block_bytes[lun] = 4096;
                self.workload.borrow_mut().model.set_block_bytes(lun, 4096);
            }
        }
        let pooled = self.block_bytes[..IMPORTED].iter().max().copied().unwrap_or(BLOCK_BYTES);
        for (at, disk) in self.disks.clone().into_iter().enumerate() {
            let sector_bytes = if at == IMPORTED { self.block_bytes[IMPORTED] } else { pooled };
            self.world.disk(disk).sector_bytes = sector_bytes;
        }
        self.pools.first_blocks = std::array::from_fn(|lun| self.scaled(lun, LUN_BLOCKS[lun]));
        self.pools.renewed_blocks = self.pools.first_blocks[REPLACED];
    }

    /// Converts a number of 512-byte blocks into a number of the LUN's blocks.
    fn scaled(&self, lun: usize, blocks: u64) -> u64 {
        blocks * BLOCK_BYTES as u64 / self.block_bytes[lun] as u64
    }

    /// Returns the block size of a backend in bytes.
    fn backend_block_bytes(&self, backend: usize) -> u32 {
        if backend == IMPORTED { self.block_bytes[IMPORTED] as u32 } else { BLOCK_BYTES as u32 }
    }

    /// Mutation: the extents of a new LUN are not zeroed.
    pub fn skip_zeroing(&mut self) {
        self.pools.skip_zeroing();
    }

    /// Mutation: the layout is not written durably.
    pub fn forget_layout(&mut self) {
        self.pools.forget_layout();
    }

    /// Turns digests off even if the seed chose digests, but still flips bits.
    pub fn drop_digests(&mut self) {
        (self.digests, self.flip_unprotected) = (false, true);
    }

    /// Calls `f` for each disk.
    pub fn each_disk(&mut self, f: impl Fn(&mut Disk)) {
        self.disks.iter().for_each(|&disk| f(self.world.disk(disk)));
    }

    fn go(&mut self) -> Option<String> {
        self.start_array();
        self.start();
        self.start_servers();
        self.start_hostile();
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
                Step::Accepted(_) | Step::Control(_) => self.on_control(),
                Step::Timer(TICK) => {
                    if let Some(wrong) =
                        self.check_conns().or_else(|| self.check_loans(false)).or_else(|| self.check_warm())
                    {
                        return Some(wrong);
                    }
                    if self.tick() {
                        break;
                    }
                    let pause = if self.frontend == Frontend::Direct { 100 } else { 1000 };
                    self.world.after(Duration::from_micros(pause), TICK);
                }
                Step::Timer(FAULT) if self.calm.is_none() => {
                    self.fault();
                    let pause = Duration::from_micros(100 + self.rng.below(500));
                    self.world.after(pause, FAULT);
                }
                Step::Timer(RESTART) => self.start(),
                Step::Timer(HEAL) => self.heal(),
                Step::Timer(UNBAN) => self.unban(),
                Step::Timer(ARRAY_START) => self.start_array(),
                Step::Timer(ARRAY_BACK) => self.array_back(),
                Step::Timer(ARRAY_SPLIT) => self.split_array(),
                Step::Timer(DISCONNECT) => self.disconnect_host(),
                Step::Timer(ANA_END) => self.ana_end(),
                Step::Timer(ANA_OVER) => self.ana_over(),
                Step::Timer(CUT) => self.cut_after_change(),
                Step::Timer(SPLIT) => self.split_host(),
                Step::Timer(token @ MEMORY_BACK..) => self.memory_back((token - MEMORY_BACK) as usize),
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
        let Loans { sends, cut, waits } = self.world.loans;
        self.faults.extend([("loan-sent", sends), ("loan-cut", cut), ("request-waited", waits)]);
        self.faults.retain(|_, count| *count > 0);
        if let Some(violation) = &violation {
            self.world.story.tell(self.world.now(), format_args!("VIOLATION: {violation}"));
        }
        let outcome = Outcome {
            seed,
            hash: self.world.story.hash(),
            operations: self.workload.borrow().model.counts(),
            faults: std::mem::take(&mut self.faults),
            violation,
            conn_bytes: self.conn_bytes,
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
}
