//! `./dev bench instructions`: counts the instructions that the gateway executes for a 4 KiB read, and for a 4 KiB write.
//!
//! `trefoil-sim-script` runs a fixed script against one core in virtual time. callgrind counts only inside the one function that
//! calls the core. The count is exact: two runs of the same build on one machine give the same figures. The count includes no
//! instructions of the kernel, and does not show cache misses.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::need::{self, VALGRIND};
use crate::process;
use crate::repo::Repo;

/// The word that selects this bench after `./dev bench`.
pub const NAME: &str = "instructions";
/// Number of counted commands. With this number, turns that differ (a timer, a full magazine) hardly change the average.
const COMMANDS: u64 = 8192;

/// Counts the instructions and prints the figures. `words` are the words after `./dev bench`.
pub fn bench(repo: &Repo, words: &[&str]) -> Result<()> {
    let json = match words {
        [NAME] => false,
        [NAME, "--json"] | ["--json", NAME] => true,
        _ => bail!("unknown words after {NAME}; usage: ./dev bench {NAME} [--json]"),
    };
    need::ensure(repo, &[VALGRIND])?;
    eprintln!("building the programs (profile dist): minutes the first time, seconds later");
    process::run(&mut repo.build_programs("dist"))?;
    let program = repo.program("dist", "trefoil-sim-script");
    let profiles = repo.var().join(NAME);
    std::fs::create_dir_all(&profiles).with_context(|| profiles.display().to_string())?;
    let mut figures = Vec::new();
    for name in process::output(&mut Command::new(&program))?.lines() {
        let profile = profiles.join(format!("{name}.callgrind"));
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--toggle-collect=*script*counted*"]);
        valgrind.arg(format!("--callgrind-out-file={}", profile.display()));
        valgrind.arg(&program).args([name, &COMMANDS.to_string()]);
        let out = valgrind.output().context("can't start valgrind")?;
        let (said, told) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if !out.status.success() {
            bail!("{} ended with {}:\n{told}", process::shown(&valgrind), out.status);
        }
        let commands: u64 = said
            .trim()
            .parse()
            .with_context(|| format!("{name} printed '{said}', which is not a number of commands"))?;
        let per_command = collected(&told)
            .with_context(|| format!("{name}: callgrind's output has no count:\n{told}"))?
            as f64
            / commands as f64;
        println!("{name:>36} {per_command:>12.1}");
        figures.push(format!("\"{name}\":{per_command:.1}"));
    }
    eprintln!("the profiles for callgrind_annotate are in {}", profiles.display());
    if json {
        println!("{{{}}}", figures.join(","));
    }
    Ok(())
}

/// Returns the count from callgrind's final output. Returns `None` if there is no count, or if the count is zero because no
/// function matched.
fn collected(told: &str) -> Option<u64> {
    let line = told.lines().find_map(|line| line.split_once("Collected :"))?.1;
    line.trim().parse().ok().filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_of_nothing_is_none() {
        assert_eq!(collected("==7== \n==7== Events    : Ir\n==7== Collected : 123\n"), Some(123));
        assert_eq!(collected("==7== Collected : 0\n"), None);
        assert_eq!(collected("==7== I refs: 5\n"), None);
    }
}
