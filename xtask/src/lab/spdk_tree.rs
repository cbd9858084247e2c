//! A built SPDK source tree: starts its programs, stops them when they are dropped, and finds the errors in their output. The
//! repo does not contain SPDK and does not build it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::Pid;

use crate::process;

/// The environment variable that names the folder of a built SPDK source tree.
pub const DIR_VARIABLE: &str = "TREFOIL_SPDK_DIR";

/// The reason why a run against SPDK is skipped.
pub const NO_SPDK: &str = "no SPDK source tree is given: build SPDK, and name its folder with TREFOIL_SPDK_DIR or \
    `./dev lab spdk --spdk DIR`";

/// Texts that mark a line of SPDK's output as an error. Some of SPDK's programs exit with 0 despite errors.
const ERROR_MARKS: [&str; 6] =
    ["*ERROR*", "*WARNING*", "has timed out", "Unable to submit", "errors occurred", "Buffer mismatch"];

/// Lines that contain one of [`ERROR_MARKS`] and that SPDK's programs also write when they run against SPDK's own target. Each
/// has its reason.
const EXPECTED: [(&str, &str); 4] = [
    (
        "*WARNING*: spdk_sock_group_add_sock_callbacks: deprec",
        "SPDK's NVMe/TCP code calls a function that it has deprecated",
    ),
    ("log_deprecation_hits: *WARNING*", "SPDK counts calls of deprecated functions at its end"),
    (
        "QUIESCING] spdk_sock_flush() failed, rc -9",
        "SPDK's driver flushes a socket that it has closed for a reset",
    ),
    (
        "DISCONNECTED] CQ transport error -6",
        "spdk_nvme_perf polls queue pairs once more after it has disconnected them",
    ),
];

/// Returns the folder that [`DIR_VARIABLE`] names, if the variable is set.
pub fn spdk_dir() -> Option<PathBuf> {
    std::env::var_os(DIR_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// One of SPDK's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpdkProgram {
    /// Shows a controller's Identify data.
    Identify,
    /// Does I/O through SPDK's NVMe driver.
    Perf,
    /// Does I/O through SPDK's block layer. The I/O is verified, or resets interrupt it.
    Bdevperf,
    /// Waits for an event of a namespace.
    Aer,
    /// Aborts outstanding I/O.
    Abort,
    /// Connects and disconnects without a pause.
    ConnectStress,
    /// Sends random commands.
    NvmeFuzz,
    /// SPDK's target, which serves as the array.
    NvmfTgt,
}

impl SpdkProgram {
    const ALL: [Self; 8] = [
        Self::Identify,
        Self::Perf,
        Self::Bdevperf,
        Self::Aer,
        Self::Abort,
        Self::ConnectStress,
        Self::NvmeFuzz,
        Self::NvmfTgt,
    ];

    /// Returns the program's path in a built tree.
    fn path(self) -> &'static str {
        match self {
            Self::Identify => "build/bin/spdk_nvme_identify",
            Self::Perf => "build/bin/spdk_nvme_perf",
            Self::Bdevperf => "build/examples/bdevperf",
            Self::Aer => "test/nvme/aer/aer",
            Self::Abort => "build/examples/abort",
            Self::ConnectStress => "test/nvme/connect_stress/connect_stress",
            Self::NvmeFuzz => "test/app/fuzz/nvme_fuzz/nvme_fuzz",
            Self::NvmfTgt => "build/bin/nvmf_tgt",
        }
    }

    /// Returns whether the program uses SPDK's application framework, which has additional options.
    fn has_framework(self) -> bool {
        matches!(self, Self::Bdevperf | Self::NvmeFuzz | Self::NvmfTgt)
    }
}

/// A built SPDK source tree, and the folder for the files that its programs write.
pub struct SpdkTree {
    root: PathBuf,
    run: PathBuf,
}

impl SpdkTree {
    /// Opens the tree at `root` and looks for every program.
    ///
    /// # Errors
    /// An error that names every missing program.
    pub fn open(root: &Path, run: &Path) -> Result<Self> {
        let missing: Vec<&str> =
            SpdkProgram::ALL.into_iter().map(SpdkProgram::path).filter(|p| !root.join(p).is_file()).collect();
        if !missing.is_empty() {
            bail!(
                "{} is not a built SPDK, because these programs are missing: {}; build SPDK \
                 without --disable-tests, --disable-examples and --disable-apps",
                root.display(),
                missing.join(", ")
            );
        }
        Ok(Self { root: root.to_path_buf(), run: run.to_path_buf() })
    }

    /// Starts a program. The program's log is named `name`, and so is its control socket if it has one ([`SpdkTree::socket`]).
    pub fn start(&self, program: SpdkProgram, name: &str, args: &[&str]) -> Result<SpdkProcess> {
        let log = self.run.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(self.root.join(program.path()));
        // Hugepages are a setting of the whole machine, so the programs run without them.
        command.args(["--no-huge", "-s", if program == SpdkProgram::NvmfTgt { "1024" } else { "512" }]);
        if program.has_framework() {
            command.args(["--no-pci", "--num-trace-entries", "0", "--disable-cpumask-locks", "-r"]);
            command.arg(self.socket(name));
        }
        let child = command
            .args(args)
            // An SPDK that was built with shared libraries needs this variable.
            .env("LD_LIBRARY_PATH", self.root.join("build/lib"))
            // Without this variable, DPDK would put its files into /var/run.
            .env("RUNTIME_DIRECTORY", &self.run)
            .current_dir(&self.run)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("can't start {}", process::shown(&command)))?;
        Ok(SpdkProcess { name: name.to_owned(), log, child })
    }

    /// Returns the control socket of the program that was started with this name.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.sock"))
    }
}

/// A running SPDK program. Dropping this value kills the program.
pub struct SpdkProcess {
    name: String,
    log: PathBuf,
    child: Child,
}

impl SpdkProcess {
    /// Returns the program's process ID.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Returns the output so far of this program and of earlier programs with the same name.
    fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until `done` returns true for the program's output so far. `what` describes the awaited event for errors.
    pub fn wait_for(&mut self, what: &str, done: impl Fn(&str) -> bool, deadline: Instant) -> Result<()> {
        while !done(&self.output()) {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failure(&format!("ended with {status} before it could {what}")));
            }
            if Instant::now() >= deadline {
                return Err(self.failure(&format!("didn't {what} before the deadline")));
            }
            std::thread::sleep(process::LOOK);
        }
        Ok(())
    }

    /// Waits until the program ends, and returns its output. Returns an error if the output contains an error.
    pub fn end(mut self, deadline: Instant) -> Result<String> {
        match process::wait_until(&mut self.child, deadline)? {
            None => return Err(self.failure("doesn't end before the deadline")),
            Some(status) if !status.success() => return Err(self.failure(&format!("ended with {status}"))),
            Some(_) => {}
        }
        let output = self.output();
        match errors(&output).first() {
            Some(line) => Err(self.failure(&format!("printed an error: {line}"))),
            None => Ok(output),
        }
    }

    /// Returns an error that shows the end of the program's output.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let log = self.log.display();
        anyhow!("{} {what}\n--- the end of {log}\n{}", self.name, process::tail(&self.log, 40))
    }
}

impl Drop for SpdkProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the lines of an output that report an error. Leaves out the lines in [`EXPECTED`].
fn errors(output: &str) -> Vec<&str> {
    let is_expected = |line: &str| EXPECTED.iter().any(|(text, _)| line.contains(text));
    output
        .lines()
        .filter(|line| ERROR_MARKS.iter().any(|mark| line.contains(mark)) && !is_expected(line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_lines_with_a_mark_that_are_not_expected() {
        let bad = "[2026-08-21 10:00:00.1] nvme_ctrlr.c:1194:f: *ERROR*: [nqn.a,nqn.b] Failed to read the CC register";
        let fuzz = "An Admin queue has timed out. Dumping all outstanding commands from that queue";
        let output = format!(
            "Starting SPDK\n{bad}\n\
            sock.c:1011:f: *WARNING*: spdk_sock_group_add_sock_callbacks: deprecated feature, to be removed\n\
            nvme_qpair.c: 914:f: *ERROR*: [,qid:1,DISCONNECTED] CQ transport error -6 (No such device or address)\n\
            {fuzz}\napp.c: 993:f: *NOTICE*: Total cores available: 1\n"
        );
        assert_eq!(errors(&output), [bad, fuzz]);
    }

    #[test]
    fn a_tree_without_its_programs_names_each() {
        let root = tempfile::tempdir().unwrap();
        let error = SpdkTree::open(root.path(), root.path()).err().expect("nothing is there").to_string();
        SpdkProgram::ALL.iter().for_each(|p| assert!(error.contains(p.path()), "{error}"));
        for program in SpdkProgram::ALL {
            assert!(SpdkTree::open(root.path(), root.path()).is_err(), "{program:?} is missing");
            let path = root.path().join(program.path());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        assert!(SpdkTree::open(root.path(), root.path()).is_ok());
    }
}
