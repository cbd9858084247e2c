//! A LUN on another gateway. The relaying gateway spins on one CPU. The array and the load share the other CPU, and sleep as soon
//! as they have no work. The load checks every read.

use super::shape::{self, Shape};
use super::{BenchOptions, CLIENT_CPU, GATEWAY_CPU, NQN, Outcome, QUEUE_DEPTH};
use crate::floor;
use crate::gateway::{self, Gateway};
use crate::load::Phase;
use anyhow::Result;
use trefoil_config::{Backend, BackendType, Bytes, Idle};

const SHAPE: Shape = Shape::read("randread_4k_qd32", 4096, 32);
const ARRAY_NQN: &str = "nqn.2026-01.org.example:perf-array";

pub fn run(options: &BenchOptions) -> Result<Outcome> {
    let (dir, at, array_at) = (options.place.fresh()?, gateway::free_addr()?, gateway::free_addr()?);
    let memory =
        Backend { size: Some(Bytes(options.lun_bytes())), ..Backend::new("ram", BackendType::Memory) };
    // These two processes share a CPU, so they must not spin.
    let settings = gateway::settings(CLIENT_CPU as u16, Idle::Adaptive, 0, 16, 128);
    let system = gateway::system(settings, array_at, ARRAY_NQN, vec![memory]);
    let mut array = Gateway::new(&options.place, &dir.path().join("array"), system)?;
    array.start()?;

    let remote = Backend {
        address: Some(array_at.into()),
        subnqn: Some(ARRAY_NQN.into()),
        hostnqn: Some("nqn.2026-01.org.example:perf-relay".into()),
        nsid: Some(1),
        queues: Some(options.connections),
        depth: Some(QUEUE_DEPTH),
        ..Backend::new("array", BackendType::NvmeTcp)
    };
    let settings = gateway::settings(GATEWAY_CPU as u16, Idle::Spin, 50, 16, 128);
    let system = gateway::system(settings, at, NQN, vec![remote]);
    let mut relay = Gateway::new(&options.place, &dir.path().join("relay"), system)?;
    relay.start()?;

    let mut outcome = Outcome::default();
    for _ in 0..options.rounds {
        array.resume()?;
        relay.resume()?;
        let mut load = shape::host(options, at, trefoil_poll::core::Idle::Adaptive { spin_us: 0 })?;
        let report = shape::measure(options, &mut load, Phase { verify: true, ..SHAPE.phase() })?;
        load.stop()?;
        relay.pause()?;
        array.pause()?;
        let floor =
            floor::run_relay(&SHAPE.floor(options, options.lun_bytes() as usize), (GATEWAY_CPU, CLIENT_CPU))?;
        shape::record(&mut outcome, SHAPE.name, &report, floor);
    }
    Ok(outcome)
}
