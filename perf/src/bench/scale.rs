//! A thousand hosts with five queue pairs each (the admin queue and four for I/O). The bench measures the memory, and the latency
//! of one host while the other hosts are idle. It also checks that all hosts stay connected, and lets all hosts work at once.
//!
//! The memory is the gateway's resident set plus the TCP buffers of the whole network namespace. These buffers include the load's
//! ends of the connections, so the gateway's real share is lower.

use super::idle::idle_host;
use super::shape::{measure, sound};
use super::{BenchOptions, CLIENT_CPU, GATEWAY_CPU, NQN, Outcome, QUIET_WITHIN};
use crate::gateway::{self, Gateway};
use crate::load::{HostSpec, Load, Phase};
use crate::proc;
use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::time::{Duration, Instant};
use trefoil_config::{Backend, BackendType, Bytes, Idle};

const IO_QUEUES: u16 = 4;
/// Longer than the hosts' keep-alive timeout of 10 s.
const STAY: Duration = Duration::from_secs(12);
const UP_WITHIN: Duration = Duration::from_secs(120);
const MIB: f64 = (1 << 20) as f64;

pub fn run(options: &BenchOptions) -> Result<Outcome> {
    let hosts = options.hosts;
    let qpairs = hosts * (1 + u32::from(IO_QUEUES));
    allow_files(u64::from(qpairs) + 1024)?;
    let (dir, at) = (options.place.fresh()?, gateway::free_addr()?);
    let memory =
        Backend { size: Some(Bytes(options.lun_bytes())), ..Backend::new("ram", BackendType::Memory) };
    let settings = gateway::settings(GATEWAY_CPU as u16, Idle::Adaptive, 50, hosts + 8, qpairs + 64);
    let system = gateway::system(settings, at, NQN, vec![memory]);
    let mut gateway = Gateway::new(&options.place, dir.path(), system)?;
    gateway.start()?;

    let mut outcome = Outcome::default();
    outcome.absolute("resident_at_start_mib", gateway.resident_bytes()? as f64 / MIB);
    let adaptive = trefoil_poll::core::Idle::Adaptive { spin_us: 50 };
    // This host has a load of its own. So its figures do not include the work for the other hosts.
    let mut one = Load::start(&[idle_host(at, hosts, 1)], Some(CLIENT_CPU), adaptive, 16)?;
    one.wait_up(UP_WITHIN)?;
    let qd1 = Phase::random(100, 4096, 1);
    for _ in 0..options.rounds {
        outcome.absolute("alone_us", measure(options, &mut one, qd1)?.latency_us(50.0));
    }

    let tcp_before = proc::tcp_memory_bytes()?;
    let begun = Instant::now();
    let specs: Vec<HostSpec> = (0..hosts).map(|n| idle_host(at, n, IO_QUEUES)).collect();
    let mut rest = Load::start(&specs, Some(CLIENT_CPU), adaptive, 64)?;
    rest.wait_up(UP_WITHIN)?;
    outcome.absolute("connect_all_s", begun.elapsed().as_secs_f64());
    std::thread::sleep(STAY);
    rest.report()?;
    if rest.downs.0 > 0 {
        bail!("the gateway dropped {} of {hosts} idle hosts: {}", rest.downs.0, rest.downs.1);
    }
    for _ in 0..options.rounds {
        outcome.absolute("among_all_us", measure(options, &mut one, qd1)?.latency_us(50.0));
    }
    let mut most = Memory::now(&gateway, tcp_before)?;

    // All hosts work at once. Each host starts as many commands as its queues allow.
    let everybody = Phase {
        hosts: hosts as usize,
        limit: u64::from(IO_QUEUES),
        ..Phase::random(0, 4096, IO_QUEUES.into())
    };
    let begun = Instant::now();
    rest.run(everybody)?;
    rest.wait_quiet(QUIET_WITHIN)?;
    outcome.absolute("all_write_s", begun.elapsed().as_secs_f64());
    let report = sound(rest.report()?)?;
    let wanted = u64::from(hosts) * u64::from(IO_QUEUES);
    if report.ops != wanted || rest.downs.0 > 0 {
        bail!(
            "only {} of {wanted} writes completed, and {} hosts were dropped: {}",
            report.ops,
            rest.downs.0,
            rest.downs.1
        );
    }
    outcome.absolute("all_write_slowest_us", report.latency_us(100.0));
    most = most.max(Memory::now(&gateway, tcp_before)?);

    outcome.absolute("process_mib", most.process_bytes as f64 / MIB);
    outcome.absolute("sockets_mib", most.sockets_bytes as f64 / MIB);
    outcome.figure("resident_mib", (most.process_bytes + most.sockets_bytes) as f64 / MIB);
    outcome.figure("connections", f64::from(qpairs));
    let medians =
        |name: &str| outcome.absolute.iter().find(|(n, _)| n == name).map(|(_, v)| super::median(v));
    let ratio = medians("among_all_us").zip(medians("alone_us")).map(|(among, alone)| among / alone);
    outcome.figure("qd1_ratio", ratio.context("the bench measured no round")?);
    one.stop()?;
    rest.stop()?;
    Ok(outcome)
}

/// The memory of the gateway and of its connections.
#[derive(Clone, Copy)]
struct Memory {
    process_bytes: u64,
    sockets_bytes: u64,
}

impl Memory {
    fn now(gateway: &Gateway, tcp_before: u64) -> Result<Self> {
        Ok(Self {
            process_bytes: gateway.resident_bytes()?,
            sockets_bytes: proc::tcp_memory_bytes()?.saturating_sub(tcp_before),
        })
    }

    fn max(self, other: Self) -> Self {
        Self {
            process_bytes: self.process_bytes.max(other.process_bytes),
            sockets_bytes: self.sockets_bytes.max(other.sockets_bytes),
        }
    }
}

/// Raises this program's limit of open files to `files`. The gateway inherits this limit.
fn allow_files(files: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= files {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, files, hard.max(files)).with_context(|| {
        format!("the bench needs {files} open files, and the hard limit is {hard}: raise RLIMIT_NOFILE")
    })
}
