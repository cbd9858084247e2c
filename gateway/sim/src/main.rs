//! `trefoil-sim`: runs seeds to test the storage path, and mutations to test the simulator.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use trefoil_sim::mutation;
use trefoil_sim::run::{FAULTS, Frontend, Outcome, Setting, run_seed};

/// Runs whole gateways under seeds. The same seed always gives the same run.
#[derive(Debug, Parser)]
#[command(name = "trefoil-sim")]
struct Args {
    /// Number of seeds to run.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Run only this seed.
    #[arg(long, conflicts_with_all = ["seeds", "start"])]
    seed: Option<u64>,
    /// Print the events of the seed, line by line, with virtual time.
    #[arg(long, requires = "seed")]
    story: bool,
    /// Number of threads; each runs seeds of its own.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Operations of each seed.
    #[arg(long, default_value_t = 4000)]
    operations: u64,
    /// Run the built-in mutations. The simulator must find each mutation within the mutation's number of seeds.
    #[arg(long)]
    mutations: bool,
    /// Run every seed with this mutation; --mutations lists the names.
    #[arg(long)]
    mutation: Option<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("trefoil-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    if args.threads == 0 {
        bail!("--threads must be at least 1");
    }
    // A panic of a machine is a finding, and the report names its seed. The text of the panic hook would mix with the report.
    if args.seed.is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
    if args.mutations {
        return Ok(run_mutations(args));
    }
    let mutation = match &args.mutation {
        Some(name) => Some(
            *mutation::ALL
                .iter()
                .find(|m| m.name == name)
                .with_context(|| format!("there is no mutation `{name}`; --mutations lists the names"))?,
        ),
        None => None,
    };
    let setting = |seed| Setting {
        seed,
        frontend: frontend(seed),
        operations: args.operations,
        told: args.story,
        mutation,
    };
    match args.seed {
        Some(seed) => Ok(run_one(setting(seed))),
        None => Ok(run_many(args, setting)),
    }
}

/// Returns the frontend of a seed. Every third seed runs without a network.
fn frontend(seed: u64) -> Frontend {
    if seed.is_multiple_of(3) { Frontend::Direct } else { Frontend::NvmeTcp }
}

fn run_one(setting: Setting) -> bool {
    let outcome = run_seed(setting);
    outcome.story.iter().for_each(|line| println!("{line}"));
    let (done, failed) = outcome.operations;
    println!(
        "seed {}: {done} operations done, {failed} failed with a cause, story {:016x}",
        outcome.seed, outcome.hash
    );
    for (kind, count) in &outcome.faults {
        println!("  {kind:<16} {count}");
    }
    match &outcome.violation {
        Some(violation) => println!("FAILED: {violation}"),
        None => println!("passed"),
    }
    outcome.violation.is_none()
}

/// Sums over all seeds of a run.
#[derive(Default)]
struct Totals {
    passed: u64,
    failed: Vec<Outcome>,
    operations: u64,
    faults: u64,
    /// The most bytes that one connection held, and the limit in bytes.
    conn_bytes: (usize, usize),
    /// Number of seeds that fired each kind of fault.
    seeds_by_kind: BTreeMap<&'static str, u64>,
}

impl Totals {
    fn add(&mut self, outcome: Outcome) {
        self.operations += outcome.operations.0 + outcome.operations.1;
        self.faults += outcome.faults.values().sum::<u64>();
        self.conn_bytes.0 = self.conn_bytes.0.max(outcome.conn_bytes.0);
        self.conn_bytes.1 = self.conn_bytes.1.max(outcome.conn_bytes.1);
        outcome.faults.keys().for_each(|kind| *self.seeds_by_kind.entry(kind).or_default() += 1);
        match &outcome.violation {
            None => self.passed += 1,
            Some(violation) => {
                println!("seed {} FAILED: {violation}", outcome.seed);
                self.failed.push(outcome);
            }
        }
    }

    /// Returns the final text after `seeds` seeds, and true if the result is good. The last line of the text states the result.
    fn verdict(&self, seeds: u64) -> (String, bool) {
        let never: Vec<_> =
            FAULTS.iter().copied().filter(|kind| !self.seeds_by_kind.contains_key(kind)).collect();
        let (count, never) =
            (format!("{} seeds passed, {} failed", self.passed, self.failed.len()), never.join(", "));
        let passed = self.failed.is_empty();
        match never.is_empty() {
            true => (count, passed),
            false if seeds < FIRES_ALL_SEEDS => {
                (format!("note: never fired, by so few seeds: {never}\n{count}"), passed)
            }
            false => (format!("{count}\nFAILED: never fired: {never}"), false),
        }
    }
}

/// With at least this many seeds, every kind of fault must happen. Fewer seeds may miss rare kinds.
const FIRES_ALL_SEEDS: u64 = 500;

fn run_many(args: &Args, setting: impl Fn(u64) -> Setting + Sync) -> bool {
    let began = Instant::now();
    let totals = Mutex::new(Totals::default());
    let next = AtomicU64::new(args.start);
    let end = args.start + args.seeds;
    std::thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let outcome = run_seed(setting(seed));
                    if let Ok(mut totals) = totals.lock() {
                        totals.add(outcome);
                        let done = totals.passed + totals.failed.len() as u64;
                        if done.is_multiple_of(200) {
                            println!(
                                "{done} of {} seeds, {:.1} s",
                                args.seeds,
                                began.elapsed().as_secs_f64()
                            );
                        }
                    }
                }
            });
        }
    });
    let Ok(totals) = totals.into_inner() else { return false };
    let seconds = began.elapsed().as_secs_f64();
    println!("{:<16} seeds that fired it", "fault");
    for kind in FAULTS {
        println!("{kind:<16} {}", totals.seeds_by_kind.get(kind).copied().unwrap_or(0));
    }
    println!(
        "{} operations, {} faults, {:.1} seeds/s",
        totals.operations,
        totals.faults,
        args.seeds as f64 / seconds
    );
    let (held, bound) = totals.conn_bytes;
    println!("a connection held at most {held} bytes, of {bound} that it may");
    let (text, passed) = totals.verdict(args.seeds);
    println!("{text}");
    passed
}

fn run_mutations(args: &Args) -> bool {
    let mut missed = 0;
    for &mutation in mutation::ALL {
        let found = (args.start..args.start + mutation.within_seeds).enumerate().find_map(|(tried, seed)| {
            let setting = Setting {
                seed,
                frontend: frontend(seed),
                operations: args.operations,
                told: false,
                mutation: Some(mutation),
            };
            run_seed(setting).violation.map(|violation| (tried + 1, seed, violation))
        });
        match found {
            Some((tried, seed, violation)) => {
                println!(
                    "{:<22} found after {tried} of {} seeds (seed {seed}): {violation}",
                    mutation.name, mutation.within_seeds
                );
            }
            None => {
                missed += 1;
                println!("{:<22} NOT FOUND within {} seeds", mutation.name, mutation.within_seeds);
            }
        }
    }
    println!("{} mutations found, {missed} missed", mutation::ALL.len() - missed);
    missed == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_seeds_may_miss_a_kind_and_many_may_not() {
        let mut totals = Totals { passed: 50, ..Totals::default() };
        totals.seeds_by_kind = FAULTS[1..].iter().map(|kind| (*kind, 1)).collect();
        let (text, passed) = totals.verdict(50);
        assert!(passed, "{text}");
        let note = format!("note: never fired, by so few seeds: {}\n50 seeds passed, 0 failed", FAULTS[0]);
        assert_eq!(text, note);
        let (text, passed) = totals.verdict(FIRES_ALL_SEEDS);
        assert!(!passed && text.ends_with(&format!("\nFAILED: never fired: {}", FAULTS[0])), "{text}");
        totals.seeds_by_kind.insert(FAULTS[0], 1);
        assert_eq!(totals.verdict(FIRES_ALL_SEEDS), ("50 seeds passed, 0 failed".into(), true));
    }
}
