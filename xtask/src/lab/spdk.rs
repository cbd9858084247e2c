//! `./dev lab spdk`: runs SPDK on both sides of the gateway, on this machine. SPDK's programs are hosts of the gateway, and
//! SPDK's nvmf_tgt is an array under it. Neither the gateway nor SPDK may report an error.
//!
//! SPDK's own `reset` program finds only PCIe controllers, so bdevperf does the resets.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};

use super::gateway::{Gateway, POOL_MIB, filled};
use super::peer::{HOST_NQN, MIB, PORT, Target};
use super::spdk_tree::{NO_SPDK, SpdkProcess, SpdkProgram, SpdkTree, spdk_dir};
use super::{Lab, net};
use crate::process;

/// The time budget of a run. A run takes two minutes on two idle cores.
const BUDGET: Duration = Duration::from_secs(480);

/// The address of nvmf_tgt, on [`PORT`].
const ARRAY: &str = "127.0.0.1";
const ARRAY_MIB: u64 = 256;

/// The subsystems of `gateway/tests/lab/spdk.toml`: one for any host, one for [`HOST_NQN`], and one with LUNs on the array.
const ANY: &str = "nqn.2026-01.test.lab:any";
const LISTED: &str = "nqn.2026-01.test.lab:listed";
const ARRAY_LUNS: &str = "nqn.2026-01.test.lab:array-luns";

/// The LUN that the lab adds to [`ANY`] while a host watches, and its NSID there.
const LATE_LUN: &str = "late";
const LATE_NSID: &str = "3";

/// The gateway's log line for a Connect of nvme_fuzz. Such a Connect arrives on a connected queue and has no data.
const FUZZED_CONNECT: &str = "a host's Connect was refused host=\"\" subsystem=\"\" ";
/// The gateway's log line when it loses the array.
const ARRAY_LOST: &str = "backend lost backend=\"array-";

/// The time after which the gateway has resent all commands that were outstanding when it lost the array. This time is twice the
/// array's keep-alive time, which SPDK rounds up to 10 s.
const FENCE_S: u64 = 20;

/// Runs all tests of this lab inside the lab's namespaces.
pub fn run(lab: &Lab) -> Result<()> {
    let root = spdk_dir().context(NO_SPDK)?;
    hide_pci_devices()?;
    let mut course = Course::start(lab, SpdkTree::open(&root, &lab.run)?)?;
    course.identify()?;
    course.perf()?;
    course.abort()?;
    course.connect_stress()?;
    course.aer()?;
    course.verify()?;
    course.reset()?;
    // nvme_fuzz also sends Connects. The gateway refuses them.
    course.gateway.no_complaints(&[])?;
    course.gateway.no_refusals()?;
    course.fuzz()?;
    course.array_outage()?;
    course.finish()
}

/// Hides this machine's PCI devices from SPDK's programs. Not all of these programs have an option for that.
fn hide_pci_devices() -> Result<()> {
    let devices = Path::new("/sys/bus/pci/devices");
    if devices.exists() {
        process::run(Command::new("mount").args(["--make-private", "/sys"]))?;
        process::run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(devices))?;
    }
    Ok(())
}

/// The gateway and the array, while hosts connect and disconnect.
struct Course<'a> {
    lab: &'a Lab,
    tree: SpdkTree,
    gateway: Gateway<'a>,
    array: SpdkProcess,
    /// Number of times that nvmf_tgt was started.
    array_starts: usize,
    started: Instant,
    deadline: Instant,
}

impl<'a> Course<'a> {
    /// Starts the array, and the gateway that uses the array.
    fn start(lab: &'a Lab, tree: SpdkTree) -> Result<Self> {
        let started = Instant::now();
        let deadline = started + BUDGET;
        let dir = lab.run.display().to_string();
        for (file, mib) in [("aio.img", ARRAY_MIB), ("pool.img", POOL_MIB)] {
            File::create(lab.run.join(file))?.set_len(mib * MIB)?;
        }
        let config = filled(lab, "spdk-array.json", &dir, net::HERE, ARRAY)?;
        std::fs::write(lab.run.join("array.json"), config)?;
        let array = start_array(&tree, 1, deadline)?;
        let mut gateway = Gateway::new(lab, "spdk.toml", ARRAY)?;
        gateway.start(deadline)?;
        let course = Self { lab, tree, gateway, array, array_starts: 1, started, deadline };
        course.said("the array and the gateway serve");
        Ok(course)
    }

    fn said(&self, what: &str) {
        println!("{:6.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Runs a host to its end. Checks that the host reports no error and that no controller of the host is left. Returns the
    /// host's output.
    fn host(&self, program: SpdkProgram, name: &str, args: &[&str]) -> Result<String> {
        let output = self.tree.start(program, name, args)?.end(self.deadline)?;
        self.wait_for_no_controllers(name)?;
        self.said(name);
        Ok(output)
    }

    /// Waits until the gateway has no host controller left.
    fn wait_for_no_controllers(&self, name: &str) -> Result<()> {
        let by = Instant::now() + Duration::from_secs(10);
        for nqn in [ANY, LISTED, ARRAY_LUNS] {
            loop {
                let params = format!(r#"{{"nqn": "{nqn}"}}"#);
                let left =
                    self.gateway.ask(&["--json", "call", "nvmf_subsystem_get_controllers", &params])?;
                if left == "[]" {
                    break;
                }
                if Instant::now() >= by {
                    bail!(
                        "{name} has ended, and subsystem {nqn} still has the controllers of {name}: {left}"
                    );
                }
                std::thread::sleep(process::LOOK);
            }
        }
        Ok(())
    }

    fn identify(&self) -> Result<()> {
        let output = self.host(SpdkProgram::Identify, "identify", &["-r", &transport_id(ANY, None)])?;
        expect(
            &output,
            "identify",
            &["Model Number:                          Trefoil", "Namespace ID:1", "Namespace ID:2"],
        )?;
        let discovery = transport_id("nqn.2014-08.org.nvmexpress.discovery", None);
        let output = self.host(SpdkProgram::Identify, "discovery", &["-r", &discovery])?;
        expect(&output, "discovery", &["Number of Records:                     1\n", ANY])
    }

    fn perf(&self) -> Result<()> {
        let (small, large) = (["-q", "32", "-o", "4096"], ["-q", "16", "-o", "131072"]);
        // spdk_nvme_perf's default host NQN is empty.
        let runs: [(&str, [&str; 4], &[&str], String); 5] = [
            ("perf-nameless", small, &[], transport_id(ANY, None)),
            ("perf-4k", small, &[], transport_id(LISTED, Some(HOST_NQN))),
            ("perf-4k-digests", small, &["-H", "-I"], transport_id(ANY, Some(HOST_NQN))),
            ("perf-128k", large, &[], transport_id(ANY, Some(HOST_NQN))),
            ("perf-128k-digests", large, &["-H", "-I"], transport_id(LISTED, Some(HOST_NQN))),
        ];
        for (name, size, digests, to) in runs {
            let mix = ["-w", "randrw", "-M", "50", "-t", "3", "-r", &to];
            let output = self.host(SpdkProgram::Perf, name, &[&size[..], digests, &mix].concat())?;
            did_io(&output, name)?;
        }
        Ok(())
    }

    fn abort(&self) -> Result<()> {
        let to = transport_id(ANY, None);
        for (name, len_bytes) in [("abort-4k", "4096"), ("abort-128k", "131072")] {
            let args = ["-q", "32", "-o", len_bytes, "-w", "randrw", "-M", "50", "-t", "3", "-r", &to];
            let counts = AbortCounts::of(&self.host(SpdkProgram::Abort, name, &args)?);
            if !counts.are_sound() {
                bail!("{name}: commands that were not aborted failed, or an Abort failed: {counts:?}");
            }
        }
        Ok(())
    }

    fn connect_stress(&self) -> Result<()> {
        let to = transport_id(ANY, None);
        self.host(SpdkProgram::ConnectStress, "connect-stress", &["-t", "5", "-r", &to])?;
        Ok(())
    }

    /// Runs a host that waits for the notice of a new namespace. Meanwhile this function adds the namespace.
    fn aer(&self) -> Result<()> {
        let (ready, to) = (self.lab.run.join("aer-ready"), transport_id(ANY, None));
        let touched = ready.display().to_string();
        let mut aer =
            self.tree.start(SpdkProgram::Aer, "aer", &["-n", LATE_NSID, "-t", &touched, "-r", &to])?;
        aer.wait_for("touch a file", |_| ready.exists(), self.deadline)?;
        self.gateway.tell(&["subsystem", "add-namespace", ANY, LATE_LUN])?;
        let output = aer.end(self.deadline)?;
        self.wait_for_no_controllers("aer")?;
        self.said("aer");
        expect(&output, "aer", &["aer_cb - Changed Namespace"])?;
        self.gateway.tell(&["subsystem", "remove-namespace", ANY, LATE_NSID])
    }

    /// Returns bdevperf's arguments, with the configuration of a host that connects to the subsystem `nqn`.
    fn bdevperf_config(&self, name: &str, nqn: &str) -> Result<String> {
        let text = filled(self.lab, "spdk-host.json", "", net::HERE, "")?.replace("@SUBNQN@", nqn);
        let file = self.lab.run.join(format!("{name}.json"));
        std::fs::write(&file, text)?;
        Ok(file.display().to_string())
    }

    fn verify(&self) -> Result<()> {
        let runs = [
            ("verify-4k", ANY, "32", "4096"),
            ("verify-128k", LISTED, "8", "131072"),
            ("verify-4k-array", ARRAY_LUNS, "32", "4096"),
            ("verify-128k-array", ARRAY_LUNS, "8", "131072"),
        ];
        for (name, nqn, depth, len_bytes) in runs {
            let config = self.bdevperf_config(name, nqn)?;
            let args = ["-c", &config, "-q", depth, "-o", len_bytes, "-w", "verify", "-t", "4"];
            did_io(&self.host(SpdkProgram::Bdevperf, name, &args)?, name)?;
        }
        Ok(())
    }

    /// Runs verified I/O. bdevperf interrupts it after 10 s and after 20 s by a reset of the controller. The host uses only one
    /// namespace. With more namespaces, several of bdevperf's jobs would reset the shared controller at the same time.
    fn reset(&self) -> Result<()> {
        let config = self.bdevperf_config("reset", ANY)?;
        let args = ["-c", &config, "-T", "Nvme0n1", "-q", "32", "-o", "4096", "-w", "reset", "-t", "22"];
        let output = self.host(SpdkProgram::Bdevperf, "reset", &args)?;
        did_io(&output, "reset")?;
        expect(&output, "reset", &["Resetting controller successful"])
    }

    /// Sends random commands. The first run sends I/O commands of all kinds to any namespace. The second run uses valid NSIDs and
    /// includes admin commands.
    fn fuzz(&self) -> Result<()> {
        self.fuzz_with("fuzz-io", &[])?;
        // With more than one namespace, nvme_fuzz sends more admin commands than it has memory for.
        self.gateway.tell(&["subsystem", "remove-namespace", ANY, "2"])?;
        self.fuzz_with("fuzz-admin", &["-N", "-a"])
    }

    fn fuzz_with(&self, name: &str, more: &[&str]) -> Result<()> {
        let to = transport_id(ANY, None);
        let args = ["-U", "--silence-noticelog", "-S", "7", "-t", "8", "-F", &to];
        let output = self.host(SpdkProgram::NvmeFuzz, name, &[&args[..], more].concat())?;
        expect(&output, name, &["Fuzzing completed"])?;
        let done = numbers_after(&output, "Total commands completed: ").sum::<u64>();
        if done < 1000 {
            bail!("{name}: only {done} commands were completed");
        }
        self.said(&format!("{name}: {done} commands"));
        Ok(())
    }

    /// Runs verified I/O on a pool on the array, while the array is killed and started again.
    fn array_outage(&mut self) -> Result<()> {
        let config = self.bdevperf_config("outage", ARRAY_LUNS)?;
        let seconds = (FENCE_S + 12).to_string();
        let args = ["-c", &config, "-T", "Nvme0n2", "-q", "32", "-o", "4096", "-w", "verify", "-t", &seconds];
        let mut bdevperf = self.tree.start(SpdkProgram::Bdevperf, "outage", &args)?;
        bdevperf.wait_for("begin", |said| said.contains("Running I/O for"), self.deadline)?;
        std::thread::sleep(Duration::from_secs(3));
        self.array_starts += 1;
        kill(self.array.pid(), Signal::SIGKILL)?;
        std::thread::sleep(Duration::from_secs(2));
        self.array = start_array(&self.tree, self.array_starts, self.deadline)?;
        self.said("the array was killed and serves again");
        let output = bdevperf.end(self.deadline)?;
        self.wait_for_no_controllers("outage")?;
        self.said("outage");
        did_io(&output, "outage")
    }

    /// Stops the gateway and then the array, and checks their logs.
    fn finish(mut self) -> Result<()> {
        self.gateway.stop(self.deadline)?;
        self.gateway.no_complaints(&[FUZZED_CONNECT, ARRAY_LOST])?;
        kill(self.array.pid(), Signal::SIGTERM)?;
        self.array.end(self.deadline)?;
        println!("{:6.1} s  gateway and array ended without errors", self.started.elapsed().as_secs_f64());
        Ok(())
    }
}

impl Gateway<'_> {
    /// Checks the gateway's log: every warning and error must contain one of `expected`.
    fn no_complaints(&self, expected: &[&str]) -> Result<()> {
        let log = std::fs::read_to_string(self.log())?;
        let is_complaint = |line: &&str| {
            (line.contains(" WARN ") || line.contains(" ERROR "))
                && !expected.iter().any(|e| line.contains(e))
        };
        match log.lines().find(is_complaint) {
            Some(line) => Err(self.failure(&format!("logged an unexpected warning or error: {line}"))),
            None => Ok(()),
        }
    }

    /// Checks that the metrics count no refused Connect.
    fn no_refusals(&self) -> Result<()> {
        let mut stream =
            TcpStream::connect("127.0.0.1:9420").context("can't connect to the gateway's metrics port")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let counters: Vec<&str> =
            text.lines().filter(|l| l.starts_with("trefoil_connects_refused_total{")).collect();
        if counters.is_empty() {
            bail!("the gateway's metrics lack the counter trefoil_connects_refused_total:\n{text}");
        }
        match counters.iter().find(|line| !line.ends_with(" 0")) {
            Some(line) => Err(self.failure(&format!("refused a host: {line}"))),
            None => Ok(()),
        }
    }
}

/// Starts nvmf_tgt for the `times`th time, and waits until it listens.
fn start_array(tree: &SpdkTree, times: usize, deadline: Instant) -> Result<SpdkProcess> {
    // The array does not run on the first core, because the hosts poll there.
    let cores = if std::thread::available_parallelism()?.get() > 1 { "0x2" } else { "0x1" };
    let mut array = tree.start(SpdkProgram::NvmfTgt, "array", &["-m", cores, "-c", "array.json"])?;
    let listens = |said: &str| said.matches("NVMe/TCP Target Listening on").count() == times;
    array.wait_for("listen", listens, deadline)?;
    Ok(array)
}

/// Returns a transport ID. SPDK's programs use it to name a subsystem of the gateway and their own host NQN.
fn transport_id(nqn: &str, host_nqn: Option<&str>) -> String {
    let host = host_nqn.map(|nqn| format!(" hostnqn:{nqn}")).unwrap_or_default();
    format!("trtype:TCP adrfam:IPv4 traddr:{} trsvcid:{PORT} subnqn:{nqn}{host}", net::HERE)
}

fn expect(output: &str, name: &str, texts: &[&str]) -> Result<()> {
    match texts.iter().find(|text| !output.contains(**text)) {
        Some(text) => bail!("{name} didn't print '{text}'; the output of {name}:\n{output}"),
        None => Ok(()),
    }
}

/// Checks that the line `Total` in the table of perf or bdevperf shows I/O.
fn did_io(output: &str, name: &str) -> Result<()> {
    let total = output.lines().find_map(|line| {
        let (label, numbers) = line.trim().strip_prefix("Total")?.split_once(':')?;
        label.trim().is_empty().then_some(numbers)
    });
    let iops: Option<f64> = total.and_then(|numbers| numbers.split_whitespace().next()?.parse().ok());
    match iops {
        Some(iops) if iops > 0.0 => Ok(()),
        _ => bail!("{name} did no I/O; the output of {name}:\n{output}"),
    }
}

/// Returns the numbers that follow each occurrence of `text`.
fn numbers_after<'a>(output: &'a str, text: &'a str) -> impl Iterator<Item = u64> + 'a {
    output.split(text).skip(1).filter_map(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    })
}

/// The counts in the output of SPDK's `abort`.
#[derive(Debug, Default, PartialEq, Eq)]
struct AbortCounts {
    completed: u64,
    failed: u64,
    aborted: u64,
    too_late: u64,
    aborts_failed: u64,
}

impl AbortCounts {
    fn of(output: &str) -> Self {
        let mut counts = Self::default();
        for line in output.lines() {
            let number = |text| numbers_after(line, text).next().unwrap_or_default();
            if line.contains("I/O completed: ") {
                counts.completed += number("I/O completed: ");
                counts.failed += number("failed: ");
            } else if line.contains("unsuccessful ") {
                counts.aborted += number(" success ");
                counts.too_late += number("unsuccessful ");
                counts.aborts_failed += number("failed ");
            }
        }
        counts
    }

    /// Returns whether commands completed, aborts were answered, and only aborted commands failed. SPDK queues Aborts, so several
    /// Aborts can name the same command. When SPDK sends an Abort, the command's id may already belong to a later command.
    fn are_sound(&self) -> bool {
        self.completed > 0
            && self.aborted + self.too_late > 0
            && self.failed <= self.aborted
            && (self.failed > 0 || self.aborted == 0)
            && self.aborts_failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_is_what_the_table_sums_up() {
        let perf =
            "NSID 1 from core  0:  7855.75   30.69\n=====\nTotal      :   54121.77     211.41    1183.08\n";
        let bdevperf =
            " Nvme0n1 : 4.00 22015.69\n ====\n Total      :              26786.99     104.64       0.00\n";
        did_io(perf, "perf").unwrap();
        did_io(bdevperf, "bdevperf").unwrap();
        for nothing in ["Total : 0.00 0.00", "Initializing NVMe Controllers\n", "Total cores available: 1"] {
            assert!(did_io(nothing, "perf").is_err(), "{nothing}");
        }
    }

    #[test]
    fn a_command_that_fails_without_an_abort_is_an_error() {
        let output = |failed: u64| {
            format!(
                "NS: TCP (addr:10.77.0.1 subnqn:n) NSID 1 I/O completed: 21821, failed: {failed}\n\
                NS: TCP (addr:10.77.0.1 subnqn:n) NSID 2 I/O completed: 10, failed: 0\n\
                CTRLR: TCP (addr:10.77.0.1 subnqn:n) abort submitted 4708, failed to submit 184995\n\
                \t success 5, unsuccessful 4703, failed 0\n"
            )
        };
        let counts = AbortCounts::of(&output(5));
        let expected =
            AbortCounts { completed: 21831, failed: 5, aborted: 5, too_late: 4703, aborts_failed: 0 };
        assert_eq!(counts, expected);
        assert!(counts.are_sound());
        assert!(AbortCounts::of(&output(4)).are_sound());
        assert!(!AbortCounts::of(&output(6)).are_sound());
        assert!(!AbortCounts::of(&output(0)).are_sound());
        assert!(!AbortCounts::of("").are_sound());
    }
}
