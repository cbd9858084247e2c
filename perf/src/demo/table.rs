//! A table with one more row per LUN each second. On a terminal, a progress bar is shown below the table.

use crate::load::Report;
use std::io::Write;

const BAR: usize = 30;
/// Number of rows between two headings.
const HEADING_EVERY: usize = 20;

/// The table; see the module.
pub struct Table {
    terminal: bool,
    rows: usize,
}

impl Table {
    /// Creates a table. If `terminal` is true, it has a progress bar.
    pub fn new(terminal: bool) -> Self {
        Self { terminal, rows: 0 }
    }

    /// Prints the figures of one LUN for this second. `cpu` is the gateway's CPU share. The caller passes it with only one of the
    /// LUNs.
    pub fn row(&mut self, second: u64, name: &str, report: &Report, cpu: Option<f64>) {
        self.clear();
        if self.rows.is_multiple_of(HEADING_EVERY) {
            println!("   s  LUN         IOPS    MiB/s   p50 µs   p99 µs  p99.9 µs  gateway CPU");
        }
        self.rows += 1;
        let latencies = match report.ops {
            0 => format!("{:>8} {:>8} {:>9}", "-", "-", "-"),
            _ => {
                let at = |percentile| report.latency_us(percentile);
                format!("{:>8.0} {:>8.0} {:>9.0}", at(50.0), at(99.0), at(99.9))
            }
        };
        let mib_per_s = report.payload_bytes as f64 / report.seconds / (1 << 20) as f64;
        let cpu = cpu.map(|share| format!("{:>10.0} %", share * 100.0)).unwrap_or_default();
        println!("{second:>4}  {name:<8} {:>8.0} {mib_per_s:>8.1} {latencies} {cpu}", report.per_s());
    }

    /// Draws the progress bar.
    pub fn progress(&self, done: u64, all: u64) {
        if self.terminal {
            let full = (done as usize * BAR) / all as usize;
            print!("[{}{}] {done} of {all} s", "#".repeat(full), ".".repeat(BAR - full));
            let _ = std::io::stdout().flush();
        }
    }

    /// Prints a line between the rows.
    pub fn note(&self, text: &str) {
        self.clear();
        println!("      -- {text}");
    }

    /// Removes the bar.
    pub fn end(&self) {
        self.clear();
    }

    fn clear(&self) {
        if self.terminal {
            print!("\r\x1b[K");
        }
    }
}
