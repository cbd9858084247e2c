//! A gateway whose hosts are connected and idle: the CPU time that it uses, and the time that it takes to wake up.
//!
//! The gateway's CPU is kept out of its sleep states (`resume_latency_us = 0`), and the load spins. So `wake_us` is the time that
//! the gateway takes to wake up. It does not include the wake-up of the hypervisor, the hardware or the client. `cpu_share` is
//! the CPU share of the gateway's process. The result also contains the wake-up time of a bare thread that sleeps in recv(2)
//! under the same latency limit.

use super::shape::sound;
use super::{BenchOptions, CLIENT_CPU, GATEWAY_CPU, NQN, Outcome, QUIET_WITHIN, UP_WITHIN, shape};
use crate::floor;
use crate::gateway::{self, Gateway};
use crate::load::{HostSpec, Load, Phase};
use anyhow::Result;
use std::time::{Duration, Instant};
use trefoil_config::{Backend, BackendType, Bytes, Idle};

const HOSTS: u32 = 100;
/// The idle time during which the CPU time is measured.
const QUIET: Duration = Duration::from_secs(10);
/// The idle time of a host before each request whose latency is measured.
const PAUSE: Duration = Duration::from_millis(250);
const WAKES: usize = 15;

pub fn run(options: &BenchOptions) -> Result<Outcome> {
    let (dir, at) = (options.place.fresh()?, gateway::free_addr()?);
    let memory =
        Backend { size: Some(Bytes(options.lun_bytes())), ..Backend::new("ram", BackendType::Memory) };
    let settings = trefoil_config::Gateway {
        resume_latency_us: Some(0),
        ..gateway::settings(GATEWAY_CPU as u16, Idle::Adaptive, 50, HOSTS + 8, 2 * HOSTS + 16)
    };
    let mut gateway =
        Gateway::new(&options.place, dir.path(), gateway::system(settings, at, NQN, vec![memory]))?;
    gateway.start()?;
    let mut outcome = Outcome::default();
    // The bare thread runs first, because the load later spins on the same CPU.
    for _ in 0..options.rounds {
        let bare = floor::run_wake(WAKES, PAUSE, (GATEWAY_CPU, CLIENT_CPU))?;
        outcome.absolute("first_answer_of_a_bare_thread_us", super::median(&bare));
    }
    let specs: Vec<HostSpec> = (0..HOSTS).map(|n| idle_host(at, n, 1)).collect();
    let mut load = Load::start(&specs, Some(CLIENT_CPU), trefoil_poll::core::Idle::Spin, 64)?;
    load.wait_up(UP_WITHIN)?;
    std::thread::sleep(PAUSE);
    outcome.absolute("hosts", HOSTS.into());
    for _ in 0..options.rounds {
        let (before, begun) = (gateway.cpu_time()?, Instant::now());
        std::thread::sleep(QUIET);
        let used = gateway.cpu_time()? - before;
        outcome.figure("cpu_share", used.as_secs_f64() / begun.elapsed().as_secs_f64());

        let one = Phase::random(100, 4096, 1);
        let mut wakes = Vec::new();
        for _ in 0..WAKES {
            std::thread::sleep(PAUSE);
            load.report()?;
            load.run(Phase { limit: 1, ..one })?;
            load.wait_quiet(QUIET_WITHIN)?;
            wakes.push(sound(load.report()?)?.latency_us(50.0));
        }
        let busy = shape::measure(options, &mut load, one)?.latency_us(50.0);
        let first = super::median(&wakes);
        outcome.figure("wake_us", first - busy);
        outcome.absolute("first_request_us", first);
        outcome.absolute("busy_request_us", busy);
        outcome.absolute("hosts_lost", load.downs.0 as f64);
    }
    load.stop()?;
    // Only a clean shutdown of the gateway gives the CPU its sleep states back.
    gateway.terminate()?;
    Ok(outcome)
}

/// Returns the specification of host number `n`, which has small queues.
pub fn idle_host(to: std::net::SocketAddr, n: u32, io_queues: u16) -> HostSpec {
    HostSpec {
        to,
        host_nqn: format!("nqn.2026-01.org.example:perf-host-{n}"),
        subsystem_nqn: NQN.into(),
        nsid: 1,
        io_queues,
        max_depth: 8,
        digests: false,
    }
}
