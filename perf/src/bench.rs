//! The measurements: each compares the gateway's rate with a floor's rate. Both rates come from the same run.
//!
//! A round first measures the gateway while the floors sleep. It then measures the floors while the gateway is stopped (SIGSTOP).
//! Each round gives a ratio. The report shows the median of the rounds.

mod idle;
mod relay;
mod scale;
mod shape;
mod storage;
mod uring;

use crate::gateway::Place;
use crate::proc;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The CPU of the gateway, or of a floor's server.
const GATEWAY_CPU: usize = 0;
/// The CPU of the load, or of a floor's client.
const CLIENT_CPU: usize = 1;
/// The NQN of the measured subsystem.
const NQN: &str = "nqn.2026-01.org.example:perf";
/// The most commands that a queue pair of a load may have outstanding.
const QUEUE_DEPTH: u16 = 160;
/// If the load average is above this value, other programs use the measured CPUs.
const QUIET_LOAD: f64 = 1.0;
const UP_WITHIN: Duration = Duration::from_secs(20);
const QUIET_WITHIN: Duration = Duration::from_secs(60);

/// The measurements.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Bench {
    /// A memory LUN, against bare TCP.
    Storage,
    /// A LUN on another gateway, against a bare TCP relay.
    Relay,
    /// A LUN in a file, against fio on the same file.
    Uring,
    /// CPU and wake-up of a gateway whose hosts do nothing.
    Idle,
    /// Memory and latency with a thousand hosts.
    Scale,
}

/// Options of a measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchOptions {
    /// Prints one JSON object as the last line.
    #[arg(long)]
    pub json: bool,
    /// Number of rounds; the median of all rounds counts.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Size of the LUN in MiB.
    #[arg(long, default_value_t = 64)]
    pub lun_mib: u64,
    /// I/O connections over which a figure's depth is spread.
    #[arg(long, default_value_t = 1)]
    pub connections: u16,
    /// Milliseconds per figure, after a warm-up of a quarter of this time.
    #[arg(long, default_value_t = 800)]
    pub time_ms: u64,
    /// Measures only the figures of `storage` whose name contains this text.
    #[arg(long, default_value = "")]
    pub only: String,
    /// Hosts of `scale`, with 5 queue pairs each: the admin queue and 4 for I/O.
    #[arg(long, default_value_t = 1000)]
    pub hosts: u32,
    #[command(flatten)]
    pub place: Place,
}

impl BenchOptions {
    fn time(&self) -> Duration {
        Duration::from_millis(self.time_ms)
    }

    fn lun_bytes(&self) -> u64 {
        self.lun_mib << 20
    }
}

/// Runs a measurement and prints its figures.
///
/// # Errors
/// The first failure of the run.
pub fn run(bench: Bench, options: &BenchOptions) -> Result<()> {
    let load_average = proc::load_average()?;
    if load_average > QUIET_LOAD {
        eprintln!(
            "warning: the machine is busy (load average {load_average}), so the figures are not reliable"
        );
    }
    let mut outcome = match bench {
        Bench::Storage => storage::run(options)?,
        Bench::Relay => relay::run(options)?,
        Bench::Uring => uring::run(options)?,
        Bench::Idle => idle::run(options)?,
        Bench::Scale => scale::run(options)?,
    };
    outcome.absolute("load_average_before", load_average);
    outcome.print(options.json);
    Ok(())
}

/// The figures of all rounds by name: the main figures, and the absolute figures from which the main figures follow.
#[derive(Default)]
struct Outcome {
    figures: Vec<(String, Vec<f64>)>,
    absolute: Vec<(String, Vec<f64>)>,
}

impl Outcome {
    fn figure(&mut self, name: &str, value: f64) {
        record(&mut self.figures, name, value);
    }

    fn absolute(&mut self, name: &str, value: f64) {
        record(&mut self.absolute, name, value);
    }

    fn json(&self) -> Value {
        let medians = |all: &[(String, Vec<f64>)]| -> Map<String, Value> {
            all.iter().map(|(name, values)| (name.clone(), json!(rounded(median(values))))).collect()
        };
        let mut object = medians(&self.figures);
        object.insert("absolute".into(), Value::Object(medians(&self.absolute)));
        Value::Object(object)
    }

    fn print(&self, json: bool) {
        for (name, values) in self.absolute.iter().chain(&self.figures) {
            let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            println!("{name:>36} {:>12} ({} to {})", shown(median(values)), shown(low), shown(high));
        }
        if json {
            println!("{}", self.json());
        }
    }
}

fn record(all: &mut Vec<(String, Vec<f64>)>, name: &str, value: f64) {
    match all.iter_mut().find(|(known, _)| known == name) {
        Some((_, values)) => values.push(value),
        None => all.push((name.to_owned(), vec![value])),
    }
}

/// Returns the median. For an even number of values, this is the mean of the middle two values. For no values, it is zero.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 0 => (sorted[at - 1] + sorted[at]) / 2.0,
        _ => sorted[at],
    }
}

/// Rounds to four significant digits. A value with more than four digits before the point becomes a whole number.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi((3 - value.abs().log10().floor() as i32).max(0));
    (value * scale).round() / scale
}

fn shown(value: f64) -> String {
    rounded(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_counts() {
        let mut outcome = Outcome::default();
        [0.9, 0.2, 0.8].into_iter().for_each(|v| outcome.figure("a", v));
        [1.0, 2.0].into_iter().for_each(|v| outcome.absolute("a_iops", v));
        let expected = json!({"a": 0.8, "absolute": {"a_iops": 1.5}});
        assert_eq!(outcome.json(), expected);
    }

    #[test]
    fn four_digits_are_enough() {
        assert_eq!(rounded(0.123_456), 0.1235);
        assert_eq!(rounded(123_456.7), 123_457.0);
        assert_eq!(rounded(0.0), 0.0);
    }
}
