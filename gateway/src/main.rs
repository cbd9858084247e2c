//! `trefoild`, the gateway: parse, preflight, place on cores, run.

#![forbid(unsafe_code)]

mod cores;
mod preflight;
mod serve;

use anyhow::{Context, bail};
use clap::Parser;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use trefoil_config::{Config, Log};

/// Where the document is if nothing is said.
const DEFAULT_CONFIG: &str = "/etc/trefoil/trefoil.toml";

/// The Trefoil gateway: serves LUNs over NVMe/TCP.
#[derive(Parser)]
#[command(name = "trefoild", version)]
struct Args {
    /// The system's document. At the first start it seeds the store; later only [gateway] counts.
    #[arg(default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Only check the document.
    #[arg(long)]
    check: bool,
    /// Only say what this machine has and lacks.
    #[arg(long)]
    preflight: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trefoild: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    // Without a document of its own a preflight looks at what the defaults need.
    let given = args.config.exists() || !args.preflight || args.config != Path::new(DEFAULT_CONFIG);
    let config = if given { read(args)? } else { Config::default() };
    if args.check {
        println!("{}: sound; memory: {}", args.config.display(), config.memory());
        return Ok(());
    }
    let report = preflight::look(&config);
    if args.preflight {
        println!("{report}");
        if !report.suffices() {
            bail!("this machine can't run the gateway");
        }
        return Ok(());
    }
    log(config.gateway.log);
    if !report.suffices() {
        bail!("this machine can't run the gateway:\n{report}");
    }
    report.warnings().for_each(|warning| tracing::warn!("{warning}"));
    serve::serve(config, &args.config, &report)
}

fn read(args: &Args) -> anyhow::Result<Config> {
    let path = args.config.display().to_string();
    let text = std::fs::read_to_string(&args.config).with_context(|| path.clone())?;
    // Its mistakes name the file themselves.
    Ok(Config::parse(&path, &text)?)
}

fn log(form: Log) {
    let filter = EnvFilter::try_from_env("TREFOIL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    match form {
        Log::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        Log::Json => builder.json().init(),
    }
}
