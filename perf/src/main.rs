//! Measures Trefoil against floors taken in the same run, runs a demo, and prints the view of a host.
#![forbid(unsafe_code)]

mod bench;
mod client;
mod demo;
mod floor;
mod gateway;
mod identify;
mod load;
mod pattern;
mod phase;
mod proc;

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
    /// Measures the gateway against a floor.
    Bench {
        /// The measurement to run.
        bench: bench::Bench,
        #[command(flatten)]
        options: bench::BenchOptions,
    },
    /// Runs a gateway under load, kills it in the middle, and reads everything back and checks it.
    Demo(demo::DemoOptions),
    /// Prints a host's view of a subsystem, as text for comparing two runs.
    IdentifyDump(identify::IdentifyOptions),
    /// Measures plain TCP exchanges with the byte counts of each storage figure.
    Floor {
        /// Number of connections.
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// Time for each figure, in milliseconds.
        #[arg(long, default_value_t = 1000)]
        time_ms: u64,
        /// Size in MiB of the store from which the server takes its payload; 0 for the same bytes every time.
        #[arg(long, default_value_t = 64)]
        store_mib: usize,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Bench { bench, options } => bench::run(bench, &options),
        What::Demo(options) => demo::run(&options),
        What::IdentifyDump(options) => identify::run(&options),
        What::Floor { connections, time_ms, store_mib } => floors(connections, time_ms, store_mib),
    }
}

fn floors(connections: usize, time_ms: u64, store_mib: usize) -> Result<()> {
    let figures = [
        ("randread_4k_qd1", floor::Exchange::read(4096), 1),
        ("randread_4k_qd32", floor::Exchange::read(4096), 32),
        ("randread_4k_qd128", floor::Exchange::read(4096), 128),
        ("randwrite_4k_qd32", floor::Exchange::write(4096), 32),
        ("read_128k_qd16", floor::Exchange::read(128 << 10), 16),
        ("write_128k_qd16", floor::Exchange::write(128 << 10), 16),
    ];
    let (time, store_bytes) = (Duration::from_millis(time_ms), store_mib << 20);
    for (name, exchange, depth) in figures {
        let connections = connections.min(depth);
        let one = floor::Floor { exchange, connections, depth, time, store_bytes };
        println!("{name:>18} {:>10.0} /s", floor::run(&one, (0, 1))?);
    }
    let one =
        floor::Floor { exchange: floor::Exchange::read(4096), connections, depth: 32, time, store_bytes };
    println!("{:>18} {:>10.0} /s", "relay_4k_qd32", floor::run_relay(&one, (0, 1))?);
    Ok(())
}
