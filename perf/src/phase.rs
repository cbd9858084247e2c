//! The messages between the program and the load's core: the work of a load, and its report.

use anyhow::Result;
use hdrhistogram::Histogram;
use std::time::Duration;
use trefoil_storage::initiator::Facts;

/// Number of bytes that share one version.
pub const UNIT_BYTES: usize = 4096;
/// The longest latency that the histogram can hold. The histogram covers 1 µs to 100 s with three digits.
const SLOWEST_NS: u64 = 100_000_000_000;

/// The work of all hosts. It lasts until the next phase.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Number of reads in every 100 commands.
    pub read_percent: u8,
    /// Size of each command in bytes, a multiple of [`UNIT_BYTES`].
    pub io_bytes: usize,
    /// Number of outstanding commands of each host.
    pub depth: usize,
    /// If true, checks each read against the data that was written before. No other load may use the LUN then.
    pub verify: bool,
    /// Number of hosts that take part, beginning with the first host.
    pub hosts: usize,
    /// Each host stops after this number of commands. Zero for no limit.
    pub limit: u64,
    /// If true, goes once through the whole namespace, from its start, and then stops. If false, each command goes to a random
    /// place that is aligned to the command's size.
    pub sequential: bool,
}

impl Phase {
    /// Returns a phase of the first host alone. Its commands go to random places, do not end, and are not checked.
    pub fn random(read_percent: u8, io_bytes: usize, depth: usize) -> Self {
        Self { read_percent, io_bytes, depth, verify: false, hosts: 1, limit: 0, sequential: false }
    }

    /// Returns a phase with `verify` that goes once through the first host's namespace. With a `read_percent` of 0, the phase
    /// writes the whole namespace anew. With 100, it reads the namespace back.
    pub fn whole(read_percent: u8) -> Self {
        Self { verify: true, sequential: true, ..Self::random(read_percent, 128 << 10, 16) }
    }
}

/// The events since the last report.
#[derive(Clone, Debug)]
pub struct Report {
    /// Commands completed.
    pub ops: u64,
    /// Payload bytes moved.
    pub payload_bytes: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Reads that returned other data than was written.
    pub mismatches: u64,
    /// Seconds since the last report.
    pub seconds: f64,
    /// Latencies in nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// Outstanding commands.
    pub outstanding: usize,
    /// The longest time without a completion while commands were outstanding.
    pub longest_gap: Duration,
}

impl Report {
    /// Creates an empty report.
    ///
    /// # Errors
    /// An error if the histogram can't be made.
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

    /// Returns the commands per second.
    pub fn per_s(&self) -> f64 {
        self.ops as f64 / self.seconds
    }

    /// Returns a latency percentile in microseconds.
    pub fn latency_us(&self, percentile: f64) -> f64 {
        self.latency_ns.value_at_percentile(percentile) as f64 / 1000.0
    }
}

/// A message between the load's core and the program.
#[derive(Debug)]
pub enum Msg {
    /// To the core: start this phase.
    Run(Phase),
    /// To the core: start no more commands, and finish the outstanding commands.
    Pause,
    /// To the core: send the current report, and use this empty report from now on. From the core: the current report.
    Report(Box<Report>),
    /// To the core: disconnect all hosts.
    Stop,
    /// From the core: this host is up.
    Up(usize, Box<Facts>),
    /// From the core: a host's association ended, with the reason.
    Down(String),
    /// From the core: all hosts reached the phase's end, or the pause is complete.
    Quiet,
}
