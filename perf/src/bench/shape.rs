//! The shapes of load that the benches measure, and the measurement of one shape.

use super::{BenchOptions, CLIENT_CPU, NQN, Outcome, QUEUE_DEPTH, QUIET_WITHIN, UP_WITHIN};
use crate::floor::{Exchange, Floor};
use crate::load::{HostSpec, Load, Phase, Report};
use anyhow::{Result, bail};
use std::net::SocketAddr;
use trefoil_poll::core::Idle;

/// The parameters of a shape, and its name in the results.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub reads: bool,
    pub io_bytes: usize,
    pub depth: usize,
}

impl Shape {
    pub const fn read(name: &'static str, io_bytes: usize, depth: usize) -> Self {
        Self { name, reads: true, io_bytes, depth }
    }

    pub const fn write(name: &'static str, io_bytes: usize, depth: usize) -> Self {
        Self { name, reads: false, io_bytes, depth }
    }

    pub fn phase(&self) -> Phase {
        Phase::random(if self.reads { 100 } else { 0 }, self.io_bytes, self.depth)
    }

    /// Returns the floor of bare TCP for this shape, with a store of `store_bytes`.
    pub fn floor(&self, options: &BenchOptions, store_bytes: usize) -> Floor {
        Floor {
            exchange: match self.reads {
                true => Exchange::read(self.io_bytes),
                false => Exchange::write(self.io_bytes),
            },
            connections: usize::from(options.connections).min(self.depth),
            depth: self.depth,
            time: options.time(),
            store_bytes,
        }
    }
}

/// Starts a load with one host on the client's CPU. Returns once the host is connected and has written every block.
pub fn host(options: &BenchOptions, to: SocketAddr, idle: Idle) -> Result<Load> {
    let spec = HostSpec {
        to,
        host_nqn: "nqn.2026-01.org.example:perf-host".into(),
        subsystem_nqn: NQN.into(),
        nsid: 1,
        io_queues: options.connections,
        max_depth: QUEUE_DEPTH,
        digests: false,
    };
    let mut load = Load::start(&[spec], Some(CLIENT_CPU), idle, 64)?;
    load.wait_up(UP_WITHIN)?;
    load.run(Phase::whole(0))?;
    load.wait_quiet(QUIET_WITHIN)?;
    sound(load.report()?)?;
    Ok(load)
}

/// Runs `phase` for the time in `options`, after a warm-up. Then lets outstanding commands finish.
pub fn measure(options: &BenchOptions, load: &mut Load, phase: Phase) -> Result<Report> {
    load.run(phase)?;
    std::thread::sleep(options.time() / 4);
    let warm = load.report()?;
    std::thread::sleep(options.time());
    let report = load.report()?;
    load.pause(QUIET_WITHIN)?;
    for part in [warm, load.report()?] {
        sound(part)?;
    }
    sound(report)
}

/// Returns the report. Returns an error if the report has errors or mismatches.
pub fn sound(report: Report) -> Result<Report> {
    if report.errors > 0 || report.mismatches > 0 {
        bail!("{} commands failed, and {} reads found wrong data", report.errors, report.mismatches);
    }
    Ok(report)
}

/// Records the figures of one shape: the share of its floor, and the absolute figures.
pub fn record(outcome: &mut Outcome, name: &str, report: &Report, floor_iops: f64) {
    outcome.figure(name, report.per_s() / floor_iops);
    outcome.absolute(&format!("{name}_iops"), report.per_s());
    outcome.absolute(&format!("{name}_floor_iops"), floor_iops);
    outcome.absolute(&format!("{name}_p50_us"), report.latency_us(50.0));
    outcome.absolute(&format!("{name}_p99_us"), report.latency_us(99.0));
}
