//! The load generator: one pinned core with any number of NVMe/TCP hosts, each in a closed loop.
//!
//! The load is our own initiator on our own runtime, so it measures the code of the `nvme-tcp` backend. With `verify`, each block
//! carries its address and its version. A model in memory holds the version that a read of the block must return.

use crate::client::Client;
use crate::pattern;
pub use crate::phase::{Msg, Phase, Report};
use anyhow::{Context, Result, bail};
use std::net::SocketAddr;
use std::time::Duration;
use trefoil_poll::core::{CoreConfig, CoreHandle, Idle, spawn};
use trefoil_poll::mesh::{ControlReceiver, ControlSender, MeshBounds, mesh};
use trefoil_poll::uring_io::UringConfig;
use trefoil_poll::{Arena, ArenaId};
use trefoil_storage::initiator::{ControllerConfig, Facts, FenceRule, Identity, Purpose, QueueEntries};
use trefoil_sys::region::Region;
use trefoil_wire::fabrics::Nqn;

/// One host of a load.
#[derive(Clone, Debug)]
pub struct HostSpec {
    /// Address and port of the host's controller.
    pub to: SocketAddr,
    /// The host's NQN.
    pub host_nqn: String,
    /// NQN of the subsystem.
    pub subsystem_nqn: String,
    /// NSID of the namespace.
    pub nsid: u32,
    /// I/O queue pairs.
    pub io_queues: u16,
    /// The most commands that the host may have outstanding.
    pub max_depth: u16,
    /// True if the host requests header and data digests.
    pub digests: bool,
}

/// A running load.
pub struct Load {
    core: CoreHandle<Client>,
    to: ControlSender<Msg>,
    from: ControlReceiver<Msg>,
    hosts: usize,
    up: usize,
    /// The facts about the first host's namespace.
    pub facts: Option<Facts>,
    /// The number of ended associations, with the reason of the last one.
    pub downs: (u64, String),
}

impl Load {
    /// Starts the hosts on `cpu`. Each host retries its Connect by itself until it is connected.
    ///
    /// # Errors
    /// An error of memory or io_uring, or an invalid name.
    pub fn start(specs: &[HostSpec], cpu: Option<usize>, idle: Idle, arena_mib: usize) -> Result<Self> {
        let sockets: u32 = specs.iter().map(|s| u32::from(s.io_queues) + 1).sum();
        // Two sockets per queue: when a queue reconnects, its old socket may not be closed yet.
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
        let ports = mesh.ports.pop().context("the load's mesh has no core")?;
        let to = mesh.to_cores.pop().context("the load's mesh has no core")?;
        let region = Region::anonymous(arena_mib << 20)?;
        let hosts = specs.len();
        let max_sockets = uring.max_sockets as usize;
        let core = spawn(CoreConfig { cpu, idle, uring }, ports, move |io| {
            let arena = Arena::new(ArenaId(100), region);
            // If the registration fails, the ring still uses the arena, a little slower.
            let _ = io.register_arenas(&[&arena]);
            Client::new(io, arena, configs, &depths, max_sockets)
        })?;
        Ok(Self { core, to, from: mesh.from_cores, hosts, up: 0, facts: None, downs: (0, String::new()) })
    }

    /// Waits until every host is up.
    ///
    /// # Errors
    /// An error if they aren't up within `within`.
    pub fn wait_up(&mut self, within: Duration) -> Result<()> {
        let end = std::time::Instant::now() + within;
        while self.up < self.hosts {
            if self.next(end)?.is_none() {
                bail!(
                    "only {} of {} hosts connected within {within:?}; last error: {}",
                    self.up,
                    self.hosts,
                    self.downs.1
                );
            }
        }
        Ok(())
    }

    /// Starts a phase on the hosts.
    ///
    /// # Errors
    /// An error if the core has ended.
    pub fn run(&mut self, phase: Phase) -> Result<()> {
        self.send(Msg::Run(phase))
    }

    /// Pauses the hosts and lets outstanding commands finish.
    ///
    /// # Errors
    /// An error if the outstanding commands don't finish within `within`.
    pub fn pause(&mut self, within: Duration) -> Result<()> {
        self.send(Msg::Pause)?;
        self.wait_quiet(within)
    }

    /// Waits until all hosts have paused or have reached the phase's end.
    ///
    /// # Errors
    /// An error if this takes longer than `within`.
    pub fn wait_quiet(&mut self, within: Duration) -> Result<()> {
        let end = std::time::Instant::now() + within;
        loop {
            match self.next(end)? {
                Some(Msg::Quiet) => return Ok(()),
                Some(_) => {}
                None => bail!("commands are still outstanding after {within:?}"),
            }
        }
    }

    /// Returns the events since the last report.
    ///
    /// # Errors
    /// An error if the core has ended.
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

    /// Disconnects all hosts and ends the core.
    ///
    /// # Errors
    /// An error if the core has ended.
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

    /// Returns the next message before `end`. Records messages about hosts that come up or go down.
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

/// Returns the identity with which a host connects to a subsystem. The host identifier is derived from the host's name.
///
/// # Errors
/// An error if a name is not an NQN.
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
