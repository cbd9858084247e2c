//! A LUN in a file that bypasses the page cache. The floor is fio with io_uring on the same file.

use super::shape::{self, Shape};
use super::{BenchOptions, GATEWAY_CPU, NQN, Outcome};
use crate::gateway::{self, Gateway};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use trefoil_config::{Backend, BackendType, Bytes, Idle};

const SHAPES: [Shape; 2] =
    [Shape::read("randread_4k_qd32", 4096, 32), Shape::write("write_128k_qd16", 128 << 10, 16)];

pub fn run(options: &BenchOptions) -> Result<Outcome> {
    if Command::new("fio").arg("--version").output().is_err() {
        bail!("fio, the measurement's floor, is not installed: install it (Debian: apt-get install fio)");
    }
    let (dir, at) = (options.place.fresh()?, gateway::free_addr()?);
    let file = dir.path().join("lun.img");
    gateway::file_of_zeros(&file, options.lun_bytes())?;
    let backend = Backend {
        path: Some(file.clone()),
        size: Some(Bytes(options.lun_bytes())),
        ..Backend::new("file", BackendType::File)
    };
    let settings = gateway::settings(GATEWAY_CPU as u16, Idle::Spin, 50, 16, 128);
    let system = gateway::system(settings, at, NQN, vec![backend]);
    let mut gateway = Gateway::new(&options.place, &dir.path().join("gateway"), system)?;
    gateway.start()?;
    let mut outcome = Outcome::default();
    for _ in 0..options.rounds {
        gateway.resume()?;
        let mut load = shape::host(options, at, trefoil_poll::core::Idle::Spin)?;
        let mut reports = Vec::new();
        for shape in SHAPES {
            reports.push(shape::measure(options, &mut load, shape.phase())?);
        }
        load.stop()?;
        gateway.pause()?;
        for (shape, report) in SHAPES.iter().zip(&reports) {
            shape::record(&mut outcome, shape.name, report, fio(options, shape, &file)?);
        }
    }
    Ok(outcome)
}

/// Measures the IOPS of fio for a shape. fio runs on the gateway's CPU.
fn fio(options: &BenchOptions, shape: &Shape, file: &Path) -> Result<f64> {
    let mut fio = Command::new("fio");
    fio.args(["--name=floor", "--ioengine=io_uring", "--direct=1", "--time_based", "--output-format=json"]);
    fio.arg(format!("--filename={}", file.display())).arg(format!("--size={}", options.lun_bytes()));
    fio.arg(format!("--rw={}", if shape.reads { "randread" } else { "randwrite" }));
    fio.arg(format!("--bs={}", shape.io_bytes)).arg(format!("--iodepth={}", shape.depth));
    fio.arg(format!("--runtime={}ms", options.time_ms)).arg(format!("--ramp_time={}ms", options.time_ms / 4));
    fio.arg(format!("--cpus_allowed={GATEWAY_CPU}"));
    let out = fio.output().context("can't start fio")?;
    if !out.status.success() {
        bail!("fio failed: {}", String::from_utf8_lossy(&out.stderr));
    }
    iops(&out.stdout, shape.reads).context("fio's output has an unexpected form")
}

fn iops(json: &[u8], reads: bool) -> Option<f64> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let job = value.get("jobs")?.get(0)?;
    job.get(if reads { "read" } else { "write" })?.get("iops")?.as_f64().filter(|iops| *iops > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direction_that_ran_counts() {
        let json = br#"{"jobs": [{"read": {"iops": 12.5}, "write": {"iops": 0.0}}]}"#;
        assert_eq!(iops(json, true), Some(12.5));
        assert_eq!(iops(json, false), None);
    }
}
