//! A gateway in this process: cores on the real driver, and the parts of the control plane that tests need.
//!
//! What it is: [`Gateway`] gives connections to cores, attaches backends and publishes topologies. At the end, it checks that
//! every resource of each core is free again. [`raw`] is a host that sends what a test wants, byte by byte. [`fleet`] is many
//! well-behaved hosts on their own core. [`daemon`] is a whole gateway as a process.
//!
//! Every wait is bounded by [`PATIENCE`]. If a wait fails, the message names what the test waited for.
#![allow(dead_code)]

pub mod daemon;
mod door;
pub mod fleet;
mod mail;
pub mod raw;

use door::Door;
use mail::{pump, send};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use trefoil_poll::core::{CoreConfig, CoreHandle, Idle, spawn};
use trefoil_poll::ram::Ram;
use trefoil_poll::{Arena, ArenaId, ControlSender, CoreId, Mesh, MeshBounds, UringConfig, UringIo, mesh};
use trefoil_storage::backend::nvme_tcp::{NvmeTcpChannel, NvmeTcpConfig};
use trefoil_storage::backend::{Attach, AttachKind, File, Memory};
use trefoil_storage::core::{CoreLimits, StorageCore};
use trefoil_storage::frontend::Capacity;
use trefoil_storage::msg::Event;
use trefoil_storage::topology::*;
use trefoil_storage::warm::WarmHost;
use trefoil_storage::{Msg, TargetLimits};
use trefoil_sys::region::Region;
use trefoil_sys::socket;
use trefoil_wire::fabrics::Nqn;

/// The time limit of every wait, after which a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The subsystem that [`Gateway::present`] makes.
pub const SUBSYSTEM: &str = "nqn.2026-01.org.example:subsystem";

pub type CoreMsg = Msg<OwnedFd, Attach<OwnedFd>>;
pub type Driver = UringIo<CoreMsg>;
type Senders = Arc<Mutex<Vec<ControlSender<CoreMsg>>>>;

/// The next arena number. Arena numbers must be unique in the process, because the tests of one program run at the same time.
static NEXT_ARENA: AtomicU16 = AtomicU16::new(1);

/// Reserves `count` arena numbers. Returns the first.
pub fn arena_ids(count: u16) -> u16 {
    NEXT_ARENA.fetch_add(count, Ordering::Relaxed)
}

/// Returns the NQN of host `number`.
pub fn host_nqn(number: usize) -> String {
    format!("nqn.2026-01.org.example:host-{number}")
}

/// A wait with a time limit.
pub struct Patience {
    until: Instant,
    what: String,
}

impl Patience {
    /// Starts the time limit of a wait for `what`.
    pub fn new(what: impl Into<String>) -> Self {
        Self { until: Instant::now() + PATIENCE, what: what.into() }
    }

    /// Returns the time that is left.
    ///
    /// # Panics
    /// If no time is left.
    pub fn left(&self) -> Duration {
        let left = self.until.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "waited {PATIENCE:?} in vain for {}", self.what);
        left
    }

    /// Pauses for a moment between two checks.
    pub fn pause(&self) {
        std::thread::sleep(self.left().min(Duration::from_millis(2)));
    }
}

/// Repeats the check `is_done` until it returns `true`.
///
/// # Panics
/// If [`PATIENCE`] passes first.
pub fn wait_for(what: &str, mut is_done: impl FnMut() -> bool) {
    let patience = Patience::new(what);
    while !is_done() {
        patience.pause();
    }
}

/// The sizes of a gateway.
#[derive(Clone)]
pub struct Shape {
    pub cores: u16,
    pub arena_mib: usize,
    /// The limits of each core. `max_conns` is also its number of sockets.
    pub target: TargetLimits,
    /// The number of each core's sockets that hosts may use.
    pub host_sockets: u32,
    /// The I/O controllers of all cores together.
    pub max_hosts: u32,
    /// The queue pairs of all cores together.
    pub max_qpairs: u32,
    /// The addresses to listen on.
    pub portals: Vec<SocketAddr>,
}

impl Shape {
    /// Returns small sizes that are enough for `cores` cores, with one loopback port.
    pub fn new(cores: u16) -> Self {
        let target = TargetLimits {
            max_conns: 256,
            max_ctrlrs: 160,
            max_discovery: 16,
            slots: 4096,
            reserved_slots: 512,
            reserved_bytes: 2 << 20,
            send_lists: 256,
            ..TargetLimits::default()
        };
        Self {
            cores,
            arena_mib: 32,
            target,
            host_sockets: 192,
            max_hosts: 64,
            max_qpairs: 256,
            portals: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        }
    }
}

/// A running gateway and its control plane.
pub struct Gateway {
    shape: Shape,
    cores: Vec<CoreHandle<StorageCore<Driver>>>,
    to_cores: Senders,
    mail: mpsc::Receiver<(CoreId, CoreMsg)>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    place: Arc<AtomicUsize>,
    addrs: Vec<SocketAddr>,
    epoch: u64,
    attached: Vec<BackendId>,
    /// Events from cores that no wait has consumed yet.
    events: Vec<(CoreId, Event)>,
    /// The LUNs that the next [`publish`](Self::publish) presents.
    pub luns: Vec<Option<Lun>>,
    /// The subsystems that the next [`publish`](Self::publish) presents.
    pub subsystems: Vec<Subsystem>,
    portals: Vec<Option<Portal>>,
}

impl Gateway {
    /// Starts the cores and the listeners. The cores present no subsystem yet.
    pub fn start(shape: Shape) -> Self {
        let Mesh { ports, to_cores, from_cores } =
            mesh::<CoreMsg>(shape.cores, MeshBounds { ring: 1024, overflow: 16384 }).expect("mailboxes");
        let first_arena = arena_ids(shape.cores);
        let uring = UringConfig {
            max_sockets: shape.target.max_conns as u32,
            max_file_ops: 1024,
            recv_buffers: 32,
            ..UringConfig::default()
        };
        let limits = CoreLimits {
            max_sockets: uring.max_sockets,
            host_sockets: shape.host_sockets,
            target: shape.target,
            foreign_requests: 16384,
        };
        let capacity = Arc::new(Capacity::new(shape.max_hosts, shape.max_qpairs));
        let arena_bytes = shape.arena_mib << 20;
        let cores = ports
            .into_iter()
            .map(|ports| {
                let id = ArenaId(first_arena + ports.core().0);
                let capacity = capacity.clone();
                let config = CoreConfig { cpu: None, idle: Idle::default(), uring };
                spawn(config, ports, move |io| {
                    let arena = Arena::new(id, Region::anonymous(arena_bytes).expect("memory"));
                    // The result is ignored, because the gateway also works without the right to pin memory.
                    let _ = io.register_arenas(&[&arena]);
                    StorageCore::new(io, arena, limits, capacity)
                })
                .expect("a core")
            })
            .collect();
        let to_cores = Arc::new(Mutex::new(to_cores));
        let stop = Arc::new(AtomicBool::new(false));
        let place = Arc::new(AtomicUsize::new(0));
        let (mut addrs, mut portals) = (Vec::new(), Vec::new());
        let (take, mail) = mpsc::channel();
        let stopped = stop.clone();
        let mut threads = vec![std::thread::spawn(move || pump(from_cores, &take, &stopped))];
        for (number, listen) in shape.portals.iter().enumerate() {
            let listener = TcpListener::bind(listen).expect("a port");
            let bound = listener.local_addr().expect("bound");
            portals.push(Some(Portal { listen: bound }));
            let reach = if bound.ip().is_unspecified() {
                SocketAddr::from(([127, 0, 0, 1], bound.port()))
            } else {
                bound
            };
            addrs.push(reach);
            let door = Door {
                listener,
                portal: PortalId(number as u16),
                place: place.clone(),
                to_cores: to_cores.clone(),
                stop: stop.clone(),
            };
            threads.push(std::thread::spawn(move || door.keep()));
        }
        Self {
            shape,
            cores,
            to_cores,
            mail,
            stop,
            threads,
            place,
            addrs,
            epoch: 0,
            attached: Vec::new(),
            events: Vec::new(),
            luns: Vec::new(),
            subsystems: Vec::new(),
            portals,
        }
    }

    /// Starts a gateway with one memory LUN of `lun_mib` MiB in [`SUBSYSTEM`], open to all hosts. The memory is on the last
    /// core. The other cores reach it through the last core.
    pub fn with_memory_lun(shape: Shape, lun_mib: u64) -> Self {
        let mut gateway = Self::start(shape);
        let last = CoreId(gateway.shape.cores - 1);
        gateway.attach_memory(BackendId(0), last, lun_mib << 20);
        gateway.present(Allow::Any, vec![gateway.lun("a", 0, 0, lun_mib << 20)]);
        gateway
    }

    /// Returns an address that a host can connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    /// Returns the address of one portal.
    pub fn portal_addr(&self, portal: usize) -> SocketAddr {
        self.addrs[portal]
    }

    /// Sets the core that gets the next connection. Later connections go to the following cores in turn.
    pub fn place_next(&self, core: u16) {
        self.place.store(usize::from(core), Ordering::SeqCst);
    }

    /// Makes a LUN of 512-byte blocks, with one extent on `backend`.
    pub fn lun(&self, name: &str, backend: u32, backend_offset: u64, len: u64) -> Lun {
        let identity = name.bytes().fold(1u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        Lun {
            name: name.into(),
            block_bytes: 512,
            blocks: len / 512,
            uuid: [identity; 16],
            nguid: [!identity; 16],
            extents: vec![Extent { lun_offset: 0, len, backend: BackendId(backend), backend_offset }],
            read_only: false,
        }
    }

    /// Makes a namespace that `hosts` see.
    pub fn namespace(nsid: u32, lun: u32, hosts: Allow) -> Namespace {
        Namespace { nsid, lun: LunId(lun), hosts, ana_group: 1, ana_state: 1 }
    }

    /// Publishes `luns` as namespaces 1, 2 and so on of [`SUBSYSTEM`], on every portal.
    pub fn present(&mut self, hosts: Allow, luns: Vec<Lun>) {
        let namespaces = (0..luns.len() as u32).map(|at| Self::namespace(at + 1, at, Allow::Any)).collect();
        self.luns = luns.into_iter().map(Some).collect();
        self.subsystems = vec![self.subsystem(SUBSYSTEM, hosts, namespaces)];
        self.publish();
    }

    /// Makes a subsystem on every portal.
    pub fn subsystem(&self, nqn: &str, hosts: Allow, namespaces: Vec<Namespace>) -> Subsystem {
        Subsystem {
            nqn: nqn.into(),
            serial: "SN1".into(),
            model: "Trefoil".into(),
            hosts,
            portals: (0..self.portals.len() as u16).map(PortalId).collect(),
            namespaces,
            max_namespaces: 64,
            cntlid_range: (1, 0xffef),
        }
    }

    /// Publishes the current `luns` and `subsystems`, and waits until they are in force on every core.
    pub fn publish(&mut self) {
        self.epoch += 1;
        let topology = Arc::new(Topology {
            epoch: self.epoch,
            luns: self.luns.clone(),
            subsystems: {
                let mut subsystems = self.subsystems.clone();
                subsystems.sort_by(|a, b| a.nqn.cmp(&b.nqn));
                subsystems
            },
            portals: self.portals.clone(),
            ..Topology::default()
        });
        self.tell_all(|_| Msg::Topology(topology.clone()));
        let want = self.epoch;
        self.each_core(
            "TopologyDone",
            |msg| matches!(msg, Msg::TopologyDone { epoch, .. } if *epoch == want),
        );
    }

    /// Attaches memory to core `owner`. The other cores reach the memory through mailboxes.
    pub fn attach_memory(&mut self, id: BackendId, owner: CoreId, len_bytes: u64) {
        let mut ram = Some(Ram::new(Region::anonymous(len_bytes as usize).expect("memory")));
        self.attach(id, len_bytes, |core| match ram.take_if(|_| core == owner) {
            Some(ram) => AttachKind::Memory(Memory::new(ram, 64)),
            None => AttachKind::Remote { core: owner },
        });
    }

    /// Attaches a file to core `owner`. The other cores reach the file through mailboxes.
    pub fn attach_file(&mut self, id: BackendId, owner: CoreId, file: &std::fs::File, len_bytes: u64) {
        self.attach(id, len_bytes, |core| {
            if core != owner {
                return AttachKind::Remote { core: owner };
            }
            let file = file.try_clone().expect("a descriptor").into();
            AttachKind::File { file, slots: File::slots(4096) }
        });
    }

    /// Attaches a namespace of another gateway, which acts as the array.
    pub fn attach_array(&mut self, id: BackendId, config: &NvmeTcpConfig, len_bytes: u64) {
        let cores = self.shape.cores;
        self.attach(id, len_bytes, |core| {
            AttachKind::NvmeTcp(Box::new(NvmeTcpChannel::new(id, core, cores, config)))
        });
    }

    /// Calls `kind` for a backend's channel on each core, attaches these channels, and waits until all are attached.
    pub fn attach(
        &mut self,
        id: BackendId,
        len_bytes: u64,
        mut kind: impl FnMut(CoreId) -> AttachKind<OwnedFd>,
    ) {
        self.tell_all(|core| {
            Msg::Attach(id, Box::new(Attach { len_bytes, block_bytes: 512, kind: kind(core), id }))
        });
        self.each_core("Attached", |msg| matches!(msg, Msg::Attached(got) if *got == id));
        self.attached.push(id);
    }

    /// Detaches a backend from every core, and waits until all cores have detached it.
    pub fn detach(&mut self, id: BackendId) {
        self.tell_all(|_| Msg::Detach(id));
        self.each_core(
            "Detached",
            |msg| matches!(msg, Msg::Detached(got, attach) if *got == id && attach.is_some()),
        );
        self.attached.retain(|other| *other != id);
    }

    /// Closes all connections of hosts. The hosts may connect again.
    pub fn close_all_hosts(&mut self) {
        self.tell_all(|_| Msg::CloseHosts { all: true });
    }

    /// Gives each core a connection to itself. The core sends itself a request over this connection once in `every`. Returns
    /// duplicates of the requesting ends. A shutdown of a duplicate ends the connection.
    pub fn keep_warm(&mut self, every: Duration) -> Vec<TcpStream> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let to = listener.local_addr().expect("bound");
        let give = |core: usize| {
            let asks = TcpStream::connect(to).expect("connected");
            let (answers, peer) = listener.accept().expect("accepted");
            for end in [&asks, &answers] {
                socket::prepare_accepted(end).expect("a socket");
            }
            let double = asks.try_clone().expect("a descriptor");
            let nqn = Nqn::new(&host_nqn(200 + core)).expect("a name");
            let host = Box::new(WarmHost::new(nqn, [200 + core as u8; 16], every));
            let adopt = Msg::Adopt {
                socket: answers.into(),
                portal: PortalId::OWN,
                local: to,
                peer,
                initialized: false,
            };
            send(&self.to_cores, core, adopt);
            send(&self.to_cores, core, Msg::KeepWarm { socket: asks.into(), to, host });
            double
        };
        (0..self.cores.len()).map(give).collect()
    }

    /// Waits until each core has had `more` further turns with work.
    pub fn wait_busy_turns(&self, more: u64) {
        let patience = Patience::new(format!("{more} turns with work on each core"));
        let now = || self.cores.iter().map(|core| core.metrics().sample().busy_turns);
        let before: Vec<u64> = now().collect();
        while now().zip(&before).any(|(now, before)| now < before + more) {
            self.assert_turning();
            patience.pause();
        }
    }

    /// Checks that all cores still run their loops.
    pub fn assert_turning(&self) {
        for (at, core) in self.cores.iter().enumerate() {
            assert!(!core.is_finished(), "core {at} has ended; its panic is above");
        }
    }

    /// Closes all connections, withdraws all objects, and stops the cores. Checks that each core's arena, slots and controllers
    /// are free again.
    pub fn finish(mut self) {
        self.close_all_hosts();
        self.wait_survey("all hosts to be gone", <[_]>::is_empty);
        self.luns.clear();
        self.subsystems.clear();
        self.publish();
        for id in self.attached.clone() {
            self.detach(id);
        }
        self.assert_turning();
        self.stop.store(true, Ordering::SeqCst);
        for addr in &self.addrs {
            // Wakes the thread that accepts connections. The thread may have ended already.
            let _ = TcpStream::connect(addr);
        }
        for core in &self.cores {
            core.stop();
        }
        let slots = self.shape.target.slots;
        for (at, core) in self.cores.into_iter().enumerate() {
            let core = core.join().unwrap_or_else(|error| panic!("core {at} ended badly: {error}"));
            let arena = core.arena();
            assert_eq!(arena.free_bytes(), arena.capacity_bytes(), "core {at}: a block is missing");
            assert_eq!(core.target().free_slots(), slots, "core {at}: a command slot is missing");
            assert_eq!(core.target().ctrlr_count(), 0, "core {at}: a controller is left");
            assert_eq!(core.target().conns_bytes(), 0, "core {at}: memory is still counted as somebody's");
            let (peak, bound) = (core.target().peak_conn_bytes(), core.conn_bound_bytes());
            assert!(peak <= bound, "core {at}: a connection held {peak} bytes, which may be {bound} at most");
        }
        for thread in self.threads {
            thread.join().expect("a control thread ended well");
        }
    }
}
