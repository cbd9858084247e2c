//! A memory LUN: the gateway spins on one CPU, the load on another.

use super::shape::{self, Shape};
use super::{BenchOptions, CLIENT_CPU, GATEWAY_CPU, NQN, Outcome};
use crate::floor;
use crate::gateway::{self, Gateway};
use anyhow::Result;
use trefoil_config::{Backend, BackendType, Bytes, Idle};

const SHAPES: [Shape; 6] = [
    Shape::read("randread_4k_qd1", 4096, 1),
    Shape::read("randread_4k_qd32", 4096, 32),
    Shape::read("randread_4k_qd128", 4096, 128),
    Shape::write("randwrite_4k_qd32", 4096, 32),
    Shape::read("read_128k_qd16", 128 << 10, 16),
    Shape::write("write_128k_qd16", 128 << 10, 16),
];

pub fn run(options: &BenchOptions) -> Result<Outcome> {
    let (dir, at) = (options.place.fresh()?, gateway::free_addr()?);
    let memory =
        Backend { size: Some(Bytes(options.lun_bytes())), ..Backend::new("ram", BackendType::Memory) };
    let settings = gateway::settings(GATEWAY_CPU as u16, Idle::Spin, 50, 16, 128);
    let system = gateway::system(settings, at, NQN, vec![memory]);
    let mut gateway = Gateway::new(&options.place, dir.path(), system)?;
    gateway.start()?;
    let mut outcome = Outcome::default();
    let shapes: Vec<Shape> = SHAPES.into_iter().filter(|shape| shape.name.contains(&options.only)).collect();
    for _ in 0..options.rounds {
        gateway.resume()?;
        let mut load = shape::host(options, at, trefoil_poll::core::Idle::Spin)?;
        let mut reports = Vec::new();
        for shape in &shapes {
            reports.push(shape::measure(options, &mut load, shape.phase())?);
        }
        load.stop()?;
        gateway.pause()?;
        for (shape, report) in shapes.iter().zip(&reports) {
            let cpus = (GATEWAY_CPU, CLIENT_CPU);
            let floor = shape.floor(options, options.lun_bytes() as usize);
            shape::record(&mut outcome, shape.name, report, floor::run(&floor, cpus)?);
            let hot_iops = floor::run(&shape.floor(options, 0), cpus)?;
            outcome.absolute(&format!("{}_hot_floor_iops", shape.name), hot_iops);
        }
    }
    Ok(outcome)
}
