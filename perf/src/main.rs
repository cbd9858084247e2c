//! Measures Trefoil against floors taken in the same run.
#![forbid(unsafe_code)]

mod client;
mod floor;
mod load;
mod pattern;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::time::Duration;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Bare TCP exchanges of the byte counts of each storage figure.
    Floor {
        /// Connections.
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// Milliseconds a figure.
        #[arg(long, default_value_t = 1000)]
        time_ms: u64,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Floor { connections, time_ms } => {
            let figures = [
                ("randread_4k_qd1", floor::Exchange::read(4096), 1),
                ("randread_4k_qd32", floor::Exchange::read(4096), 32),
                ("randread_4k_qd128", floor::Exchange::read(4096), 128),
                ("randwrite_4k_qd32", floor::Exchange::write(4096), 32),
                ("read_128k_qd16", floor::Exchange::read(128 << 10), 16),
                ("write_128k_qd16", floor::Exchange::write(128 << 10), 16),
            ];
            for (name, exchange, depth) in figures {
                let connections = connections.min(depth);
                let rate = floor::run(exchange, connections, depth, (0, 1), Duration::from_millis(time_ms))?;
                println!("{name:>18} {:>10.0} /s", rate.per_s);
            }
        }
    }
    Ok(())
}
