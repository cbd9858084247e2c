//! The chores of the repo. `./dev` calls this program. Nothing here is shipped.
#![forbid(unsafe_code)]

mod fuzz;
mod instructions;
mod lab;
mod need;
mod process;
mod repo;
mod stages;
mod tidy;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::repo::Repo;

/// The benches of `trefoil-perf bench`, and the count of instructions. This program checks the name against this list, so a wrong
/// name fails before the build.
const BENCHES: [&str; 6] = ["storage", "relay", "uring", "idle", "scale", instructions::NAME];

/// Returns the help text. Inserts the names of the labs and of the benches.
fn help() -> String {
    HELP.replace("LABS", &lab::names().join(", ")).replace("BENCHES", &BENCHES.join(", "))
}

const HELP: &str = "\
./dev demo [--keep]         runs a gateway under load, kills and restarts the gateway, and checks all data
./dev test [STAGE...]       runs all stages of tests, or the named stages, each within its time budget
./dev test quick            runs format, tidy, clippy, unit tests and 200 simulated seeds, for use before each commit
./dev bench NAME [--json]   runs one measurement: BENCHES
./dev lab NAME              tests against hosts and arrays of other projects: LABS
./dev lab spdk --spdk DIR   uses the SPDK that is built in DIR, instead of in TREFOIL_SPDK_DIR
./dev sim [--seeds N]       simulates whole gateways under seeded faults
./dev sim --seed N --story  prints one seed's events, line by line, in virtual time
./dev fuzz [--seconds N]    runs every fuzz target for N seconds each (default 60)
./dev tidy                  checks only the house rules
./dev setup [STAGE...]      only installs the needs of all stages, or of the named stages";

/// Returns the help lines of one chore.
fn help_of(chore: &str) -> String {
    let begins = format!("./dev {chore} ");
    let help = help();
    let lines: Vec<&str> = help.lines().filter(|line| line.starts_with(&begins)).collect();
    lines.join("\n")
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match chore(&Repo::here(), &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(repo: &Repo, args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] | ["help" | "--help" | "-h"] => println!("{}", help()),
        ["test" | "setup", "--help" | "-h"] => println!("{}\n{}", help_of(words[0]), stages::table()),
        [word @ ("tidy" | "fuzz" | "lab"), "--help" | "-h"] => println!("{}", help_of(word)),
        ["test", ..] => stages::test(repo, &args[1..])?,
        ["setup", ..] => stages::setup(repo, &args[1..])?,
        ["tidy"] => tidy::tidy(repo)?,
        ["fuzz"] => fuzz::fuzz(repo, 60)?,
        ["fuzz", "--seconds", n] => {
            fuzz::fuzz(
                repo,
                n.parse().with_context(|| format!("--seconds {n} is not a number of seconds"))?,
            )?;
        }
        ["lab"] => bail!("./dev lab needs a NAME, one of: {}", lab::names().join(", ")),
        ["bench"] => bail!("./dev bench needs a NAME, one of: {}", BENCHES.join(", ")),
        ["lab", name] => lab::enter(repo, name, None)?,
        ["lab", name @ "spdk", "--spdk", dir] => lab::enter(repo, name, Some(dir))?,
        // `lab` runs this command inside the namespaces that it has made.
        ["lab-inside", name] => lab::run(repo, name)?,
        ["demo", rest @ ..] => program(repo, "release", "trefoil-perf", &[&["demo"], rest].concat())?,
        ["bench", rest @ ..] if rest.contains(&instructions::NAME) => instructions::bench(repo, rest)?,
        ["bench", rest @ ..] if rest.iter().any(|word| BENCHES.contains(word) || *word == "--help") => {
            program(repo, "dist", "trefoil-perf", &[&["bench"], rest].concat())?
        }
        ["sim", rest @ ..] => program(repo, "release", "trefoil-sim", rest)?,
        other => bail!("there is no chore `./dev {}`; the chores are:\n{}", other.join(" "), help()),
    }
    Ok(())
}

/// Builds our programs, and replaces this process by one of them. That program expects the gateway's binaries beside it.
fn program(repo: &Repo, profile: &str, name: &str, args: &[&str]) -> Result<()> {
    eprintln!("building the programs (profile {profile}): minutes the first time, seconds later");
    process::run(&mut repo.build_programs(profile))?;
    let mut program = std::process::Command::new(repo.program(profile, name));
    // The program prints this name in its messages about its arguments, so the messages match the command that the user typed.
    let called = if name == "trefoil-sim" { "dev sim" } else { "dev" };
    Err(program.arg0(called).args(args).current_dir(&repo.root).exec().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chore_without_its_name_lists_the_names() {
        for (word, name) in [("lab", lab::names()[0]), ("bench", BENCHES[0])] {
            let error = chore(&Repo::here(), &[word.into()]).expect_err("no name").to_string();
            assert!(error.starts_with(&format!("./dev {word} needs a NAME, one of: ")), "{error}");
            assert!(error.contains(name) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn help_is_given_before_anything_is_built() {
        for word in ["test", "setup", "tidy", "fuzz", "lab"] {
            chore(&Repo::here(), &[word.into(), "--help".into()]).expect("help");
            assert!(help_of(word).starts_with(&format!("./dev {word}")), "{word}");
        }
    }

    #[test]
    fn help_names_every_lab_stage() {
        let labs = stages::STAGES.iter().filter_map(|stage| stage.name.strip_prefix("lab-"));
        labs.for_each(|lab| assert!(help().contains(lab), "{lab} is not in\n{}", help()));
    }
}
