//! The load generator: one pinned core with as many NVMe/TCP hosts as asked for, each in a closed loop.
//!
//! It is our own initiator on our own runtime, so what it measures is what the `nvme-tcp` backend does.
//! With `verify`, each block carries its address and version, and a model in memory says which version
//! a read must find.

use crate::client::Client;
use crate::pattern;
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use std::net::SocketAddr;
use std::time::Duration;
use trefoil_poll::core::{CoreConfig, CoreHandle, Idle, spawn};
use trefoil_poll::mesh::{ControlReceiver, ControlSender, MeshBounds, mesh};
use trefoil_poll::uring_io::UringConfig;
use trefoil_poll::{Arena, ArenaId};
use trefoil_storage::initiator::{ControllerConfig, Facts, FenceRule, Identity, Purpose, QueueEntries};
use trefoil_sys::region::Region;
use trefoil_wire::fabrics::Nqn;

/// Bytes that one version covers.
pub const UNIT_BYTES: usize = 4096;
/// Latencies are kept from 1 µs to 100 s at three digits.
const SLOWEST_NS: u64 = 100_000_000_000;

/// One host of a load.
#[derive(Clone, Debug)]
pub struct HostSpec {
    /// Where its controller is.
    pub to: SocketAddr,
    /// Its NQN.
    pub host_nqn: String,
    /// The subsystem.
    pub subsystem_nqn: String,
    /// The namespace.
    pub nsid: u32,
    /// I/O queue pairs.
    pub io_queues: u16,
    /// Commands that it may have under way.
    pub max_depth: u16,
    /// Header and data digests.
    pub digests: bool,
}

/// What all hosts do from now on.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Of 100 commands, how many are reads.
    pub read_percent: u8,
    /// Size of each, in bytes; a multiple of [`UNIT_BYTES`].
    pub io_bytes: usize,
    /// Commands under way for each host.
    pub depth: usize,
    /// Check what is read against what was written. Needs one load for a LUN.
    pub verify: bool,
    /// The hosts that take part: the first so many.
    pub hosts: usize,
    /// Stop after so many commands of each host; zero for never.
    pub limit: u64,
    /// Once over the whole namespace from its start, then stop; else at random, aligned to the size.
    pub sequential: bool,
}

impl Phase {
    /// The first host alone, at random and without end, unchecked.
    pub fn random(read_percent: u8, io_bytes: usize, depth: usize) -> Self {
        Self { read_percent, io_bytes, depth, verify: false, hosts: 1, limit: 0, sequential: false }
    }

    /// All of the first host's namespace once, checked: written anew, or read back.
    pub fn whole(read_percent: u8) -> Self {
        Self { verify: true, sequential: true, ..Self::random(read_percent, 128 << 10, 16) }
    }
}

/// What happened since the last report.
#[derive(Clone, Debug)]
pub struct Report {
    /// Commands completed.
    pub ops: u64,
    /// Payload bytes moved.
    pub payload_bytes: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Reads that found something else than was written.
    pub mismatches: u64,
    /// Seconds since the last report.
    pub seconds: f64,
    /// Latencies in nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// Commands under way.
    pub outstanding: usize,
    /// The longest time without a completion, while there were commands under way.
    pub longest_gap: Duration,
}

impl Report {
    /// Nothing yet.
    ///
    /// # Errors
    /// If the histogram can't be made.
    pub fn new() -> Result<Self> {
        Ok(Self {
            ops: 0,
            payload_bytes: 0,
            errors: 0,
            mismatches: 0,
            seconds: 0.0,
            latency_ns: Histogram::new_with_bounds(1000, SLOWEST_NS, 3)?,
            outstanding: 0,
            longest_gap: Duration::ZERO,
        })
    }

    /// Commands a second.
    pub fn per_s(&self) -> f64 {
        self.ops as f64 / self.seconds
    }

    /// A latency percentile in microseconds.
    pub fn latency_us(&self, percentile: f64) -> f64 {
        self.latency_ns.value_at_percentile(percentile) as f64 / 1000.0
    }
}

/// Between the load's core and the program.
#[derive(Debug)]
pub enum Msg {
    /// To the core: do this from now on.
    Run(Phase),
    /// To the core: finish what is under way and start nothing.
    Pause,
    /// To the core: report, and start counting anew in this histogram. And back.
    Report(Box<Report>),
    /// To the core: disconnect in order.
    Stop,
    /// From the core: this host is up.
    Up(usize, Box<Facts>),
    /// From the core: a host's association ended, for this reason.
    Down(String),
    /// From the core: all hosts reached the phase's end, or the pause is complete.
    Quiet,
}

/// A running load.
pub struct Load {
    core: CoreHandle<Client>,
    to: ControlSender<Msg>,
    from: ControlReceiver<Msg>,
    hosts: usize,
    up: usize,
    /// The first host's namespace.
    pub facts: Option<Facts>,
    /// Associations that ended, with the reason of the last.
    pub downs: (u64, String),
}

impl Load {
    /// Starts the hosts on `cpu`. They connect by themselves, for as long as it takes.
    ///
    /// # Errors
    /// What memory, io_uring or a bad name say.
    pub fn start(specs: &[HostSpec], cpu: Option<usize>, idle: Idle, arena_mib: usize) -> Result<Self> {
        let sockets: u32 = specs.iter().map(|s| u32::from(s.io_queues) + 1).sum();
        // Twice: a reconnecting queue's old socket may not be closed yet.
        let uring = UringConfig {
            max_sockets: 2 * sockets + 16,
            max_files: 1,
            max_file_ops: 1,
            socket_options: crate::proc::socket_options(),
            ..UringConfig::default()
        };
        let mut mesh = mesh::<Msg>(1, MeshBounds { ring: 4096, ..MeshBounds::default() })?;
        let configs = specs.iter().map(controller_config).collect::<Result<Vec<_>>>()?;
        let depths: Vec<usize> = specs.iter().map(|s| usize::from(s.max_depth)).collect();
        let ports = mesh.ports.pop().context("a mesh of one core")?;
        let to = mesh.to_cores.pop().context("a mesh of one core")?;
        let region = Region::anonymous(arena_mib << 20)?;
        let hosts = specs.len();
        let max_sockets = uring.max_sockets as usize;
        let core = spawn(CoreConfig { cpu, idle, uring }, ports, move |io| {
            let arena = Arena::new(ArenaId(100), region);
            // Without registration the ring still reaches it, a little slower.
            let _ = io.register_arenas(&[&arena]);
            Client::new(io, arena, configs, &depths, max_sockets)
        })?;
        Ok(Self { core, to, from: mesh.from_cores, hosts, up: 0, facts: None, downs: (0, String::new()) })
    }

    /// Waits until every host is up.
    ///
    /// # Errors
    /// If they aren't within `within`.
    pub fn wait_up(&mut self, within: Duration) -> Result<()> {
        let end = std::time::Instant::now() + within;
        while self.up < self.hosts {
            if self.next(end)?.is_none() {
                bail!(
                    "{} of {} hosts came up in {within:?}; last error: {}",
                    self.up,
                    self.hosts,
                    self.downs.1
                );
            }
        }
        Ok(())
    }

    /// Sets the hosts to work.
    ///
    /// # Errors
    /// If the core has ended.
    pub fn run(&mut self, phase: Phase) -> Result<()> {
        self.send(Msg::Run(phase))
    }

    /// Lets what is under way finish.
    ///
    /// # Errors
    /// If it doesn't within `within`.
    pub fn pause(&mut self, within: Duration) -> Result<()> {
        self.send(Msg::Pause)?;
        self.wait_quiet(within)
    }

    /// Waits until the pause, or the phase's end, is reached.
    ///
    /// # Errors
    /// If it isn't within `within`.
    pub fn wait_quiet(&mut self, within: Duration) -> Result<()> {
        let end = std::time::Instant::now() + within;
        loop {
            match self.next(end)? {
                Some(Msg::Quiet) => return Ok(()),
                Some(_) => {}
                None => bail!("commands are still under way after {within:?}"),
            }
        }
    }

    /// What happened since the last report.
    ///
    /// # Errors
    /// If the core has ended.
    pub fn report(&mut self) -> Result<Report> {
        self.send(Msg::Report(Box::new(Report::new()?)))?;
        let end = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            match self.next(end)? {
                Some(Msg::Report(report)) => return Ok(*report),
                Some(_) => {}
                None => bail!("the load's core doesn't answer"),
            }
        }
    }

    /// Disconnects in order and ends the core.
    ///
    /// # Errors
    /// If the core has ended.
    pub fn stop(mut self) -> Result<()> {
        self.send(Msg::Stop)?;
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !matches!(self.next(end)?, Some(Msg::Quiet) | None) {}
        self.core.stop();
        self.core.join()?;
        Ok(())
    }

    fn send(&mut self, mut msg: Msg) -> Result<()> {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while let Err(back) = self.to.send(msg) {
            if self.core.is_finished() || std::time::Instant::now() > end {
                bail!("the load's core takes no messages");
            }
            msg = back;
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The next message until `end`, noting what it says of hosts.
    fn next(&mut self, end: std::time::Instant) -> Result<Option<Msg>> {
        loop {
            if let Some((_, msg)) = self.from.pop() {
                match &msg {
                    Msg::Up(host, facts) => {
                        self.up += 1;
                        if *host == 0 {
                            self.facts = Some((**facts).clone());
                        }
                    }
                    Msg::Down(why) => self.downs = (self.downs.0 + 1, why.clone()),
                    _ => {}
                }
                return Ok(Some(msg));
            }
            if std::time::Instant::now() > end {
                return Ok(None);
            }
            if self.core.is_finished() {
                bail!("the load's core has ended");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Who connects to what; the host identifier follows from the host's name.
///
/// # Errors
/// If a name is not an NQN.
pub fn identity(host: &str, subsystem: &str) -> Result<Identity> {
    let nqn = |name: &str| Nqn::new(name).with_context(|| format!("{name:?} is not an NQN"));
    let mut host_id = [0; 16];
    let number = host.bytes().fold(7, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    pattern::fill(&mut host_id, number);
    Ok(Identity { host_nqn: nqn(host)?, host_id, subsystem_nqn: nqn(subsystem)? })
}

fn controller_config(spec: &HostSpec) -> Result<ControllerConfig> {
    Ok(ControllerConfig {
        addrs: vec![spec.to],
        identity: identity(&spec.host_nqn, &spec.subsystem_nqn)?,
        purpose: Purpose::Nvm { nsid: spec.nsid },
        digests: (spec.digests, spec.digests),
        kato_ms: 10_000,
        io_queues: spec.io_queues,
        entries: QueueEntries::new(spec.max_depth.max(2) + 1),
        reconnect: (Duration::from_millis(50), Duration::from_secs(1)),
        connect_timeout: Duration::from_secs(10),
        admin_timeout: Duration::from_secs(10),
        loss_timeout: Duration::from_secs(120),
        fence: FenceRule::Immediate,
        discovery_entries: 1,
    })
}
