//! `trefoild`, the gateway: parses the document, checks the machine, starts the cores and runs.

#![forbid(unsafe_code)]
// `print!` and similar macros panic if the output is full or closed.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cores;
mod logging;
mod preflight;
mod serve;
mod terminal;

use anyhow::{anyhow, bail};
use clap::Parser;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use trefoil_config::Config;

/// The document's path if the command line gives none.
const DEFAULT_CONFIG: &str = "/etc/trefoil/trefoil.toml";

/// The Trefoil gateway: serves LUNs over NVMe/TCP.
#[derive(Parser)]
#[command(name = "trefoild", version)]
struct Args {
    /// The TOML document of the system; config/examples has examples. The first start fills the gateway's database from the
    /// document. Later starts read only its `[gateway]` section; `trefoil config apply` makes the other changes.
    #[arg(default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Only check the document, and print its mistakes. A misspelt field or a value of the wrong form is printed alone: check
    /// again after each correction.
    #[arg(long)]
    check: bool,
    /// Only check this machine for the document: print the needed features, files, devices and addresses, and which of them the
    /// machine lacks. The check changes nothing.
    #[arg(long)]
    preflight: bool,
}

fn main() -> ExitCode {
    let args = match terminal::arguments("trefoild") {
        Ok(args) => args,
        Err(status) => return status,
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::complain(format_args!("trefoild: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    // A preflight without a document checks the needs of the default settings.
    let given = args.config.exists() || !args.preflight || args.config != Path::new(DEFAULT_CONFIG);
    let config = if given { read(args)? } else { Config::default() };
    if args.check {
        let document = args.config.display();
        for oversight in config.oversights() {
            terminal::print(&format!("{document}: warning: {oversight}\n"))?;
        }
        return Ok(terminal::print(&format!(
            "{document}: the document is valid; memory: {}\n",
            config.memory()
        ))?);
    }
    let mut report = preflight::look(&config);
    if args.preflight {
        if given {
            report.add_obstacles(&config, &args.config);
        }
        terminal::print(&format!("{report}\n"))?;
        if !report.suffices() {
            bail!("this machine can't run the gateway: mend the findings marked LACKING");
        }
        return Ok(());
    }
    logging::start(config.gateway.log);
    if !report.suffices() {
        bail!("this machine can't run the gateway:\n{report}");
    }
    report.warnings().for_each(|warning| tracing::warn!("{warning}"));
    serve::serve(config, &args.config, &report)
}

fn read(args: &Args) -> anyhow::Result<Config> {
    let path = args.config.display().to_string();
    let text = std::fs::read_to_string(&args.config).map_err(|e| unreadable(&args.config, e))?;
    // The parser's errors already name the file.
    Ok(Config::parse(&path, &text)?)
}

fn unreadable(path: &Path, e: io::Error) -> anyhow::Error {
    if e.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_CONFIG) {
        let hint = "make this file, or give another document with `trefoild FILE`; see `trefoild --help`";
        return anyhow!("there is no {DEFAULT_CONFIG}: {hint}");
    }
    anyhow::Error::new(e).context(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_document_it_says_what_to_do() {
        let missing = || io::Error::from_raw_os_error(nix::libc::ENOENT);
        let said = unreadable(Path::new(DEFAULT_CONFIG), missing()).to_string();
        assert!(said.contains(DEFAULT_CONFIG) && said.contains("`trefoild FILE`"), "{said}");
        let said = format!("{:#}", unreadable(Path::new("own.toml"), missing()));
        assert_eq!(said, "own.toml: No such file or directory (os error 2)");
    }
}
