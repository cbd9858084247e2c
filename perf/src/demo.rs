//! The demo: a gateway with a LUN in memory and a LUN in a file. A host on each LUN checks its reads. The demo kills the gateway
//! in the middle. At the end, the hosts read everything that they have written.

mod table;

use crate::gateway::{self, Gateway, Place};
use crate::load::{HostSpec, Load, Phase, Report};
use anyhow::{Context, Result, bail};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use table::Table;
use trefoil_config::{Backend, BackendType, Bytes, Cores, Gateway as Settings};
use trefoil_poll::core::Idle;

const NQN: &str = "nqn.2026-01.org.example:demo";
const LUNS: [(&str, u64); 2] = [("memory", 64 << 20), ("file", 64 << 20)];
/// Number of outstanding commands of each host. It is the same for the LUN in memory and the LUN in the file.
const DEPTH: usize = 16;
const READ_PERCENT: u8 = 60;
const SECONDS: u64 = 12;
/// The second in which the demo kills the gateway, and the least time for which the gateway stays down.
const KILL_AFTER: u64 = 5;
const GONE: Duration = Duration::from_millis(700);
/// Number of busy threads: the gateway's core and the two hosts.
const THREADS: usize = 3;
/// The deadline of every wait that should end soon.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMORY_FILES: &str = "/dev/shm";
const MEMORY_FILE_PREFIX: &str = "trefoil-demo-";

/// Options of the demo.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoOptions {
    /// Leaves the gateway running.
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub place: Place,
}

/// Runs the demo.
///
/// # Errors
/// The first failure of the run, in particular a read that returned other data than was written.
pub fn run(options: &DemoOptions) -> Result<()> {
    let (dir, memory) = (options.place.fresh()?, MemoryFile::new()?);
    let at = gateway::free_addr()?;
    gateway::file_of_zeros(&dir.path().join("file.img"), LUNS[1].1)?;
    let mut gateway = Gateway::new(&options.place, dir.path(), system(at, dir.path(), memory.path()))?;
    if options.keep {
        gateway.untie();
    }
    let ready = gateway.start()?;
    println!("A gateway on {at}, ready after {:.2} s, presents two LUNs:", ready.as_secs_f64());
    println!(
        "  1  memory   64 MiB of {}: shared memory, which outlives the process",
        memory.path().display()
    );
    println!("  2  file     64 MiB in {}", dir.path().join("file.img").display());
    println!(
        "A host on each keeps {DEPTH} commands of 4 KiB under way, {READ_PERCENT} % reads, and checks every read."
    );
    println!("After {KILL_AFTER} s the gateway is killed (SIGKILL) and started again.");
    if let Some(cpus) = std::thread::available_parallelism().ok().filter(|cpus| cpus.get() < THREADS) {
        println!(
            "{THREADS} busy threads share {cpus} CPUs on this machine: the rates jump when threads share a CPU."
        );
    }
    println!();

    let mut shows = LUNS
        .iter()
        .zip(1..)
        .map(|((name, _), nsid)| Show::start(name, at, nsid))
        .collect::<Result<Vec<_>>>()?;
    for show in &mut shows {
        show.load.wait_up(PATIENCE)?;
    }
    let away = work(&mut gateway, &mut shows)?;
    for show in &mut shows {
        show.load.pause(PATIENCE).context("the hosts' I/O did not end")?;
    }
    println!(
        "\nReading back and checking all {} MiB ...",
        LUNS.iter().map(|(_, len)| len >> 20).sum::<u64>()
    );
    for show in &mut shows {
        show.load.run(Phase::whole(100))?;
    }
    for show in &mut shows {
        show.load.wait_quiet(PATIENCE).context("the read-back of all data did not end")?;
        show.take()?;
    }
    let verdict = verdict(&shows, away);
    for show in shows {
        show.load.stop()?;
    }
    if options.keep {
        how_to_connect(at, &gateway);
        let pid = gateway.leave()?;
        let (dir, memory) = (dir.keep(), memory.keep());
        println!("\nThe gateway goes on as process {pid}. To end the gateway and remove its files:");
        println!("  kill {pid}; rm -rf {} {}", dir.display(), memory.display());
    } else {
        gateway.terminate()?;
        println!(
            "The gateway has ended. With --keep, the gateway goes on, and the demo prints how to connect."
        );
    }
    verdict
}

fn system(at: SocketAddr, dir: &Path, memory: &Path) -> trefoil_config::Config {
    let [(memory_name, memory_len), (file_name, file_len)] = LUNS;
    let backends = vec![
        Backend {
            path: Some(memory.to_path_buf()),
            size: Some(Bytes(memory_len)),
            ..Backend::new(memory_name, BackendType::Memory)
        },
        Backend {
            path: Some(dir.join("file.img")),
            size: Some(Bytes(file_len)),
            ..Backend::new(file_name, BackendType::File)
        },
    ];
    let settings = Settings {
        cores: Cores::Count(1),
        memory_per_core: Bytes(64 << 20),
        max_hosts: 16,
        max_qpairs: 128,
        ..Settings::default()
    };
    gateway::system(settings, at, NQN, backends)
}

/// One LUN, its host, and the sum of the host's reports.
struct Show {
    name: &'static str,
    load: Load,
    ops: u64,
    payload_bytes: u64,
    errors: u64,
    mismatches: u64,
    longest_gap: Duration,
}

impl Show {
    fn start(name: &'static str, to: SocketAddr, nsid: u32) -> Result<Self> {
        let spec = HostSpec {
            to,
            host_nqn: format!("nqn.2026-01.org.example:demo-host-{name}"),
            subsystem_nqn: NQN.into(),
            nsid,
            io_queues: 2,
            max_depth: 32,
            digests: false,
        };
        let load = Load::start(&[spec], None, Idle::default(), 32)?;
        Ok(Self {
            name,
            load,
            ops: 0,
            payload_bytes: 0,
            errors: 0,
            mismatches: 0,
            longest_gap: Duration::ZERO,
        })
    }

    /// Takes the report of the time since the last call, and adds it to the sum.
    fn take(&mut self) -> Result<Report> {
        let report = self.load.report()?;
        self.ops += report.ops;
        self.payload_bytes += report.payload_bytes;
        self.errors += report.errors;
        self.mismatches += report.mismatches;
        self.longest_gap = self.longest_gap.max(report.longest_gap);
        Ok(report)
    }
}

/// Runs the workload, kills the gateway meanwhile, and prints the table. Returns the time for which the gateway was down.
fn work(gateway: &mut Gateway, shows: &mut [Show]) -> Result<Duration> {
    let phase = Phase { verify: true, ..Phase::random(READ_PERCENT, 4096, DEPTH) };
    for show in shows.iter_mut() {
        show.load.run(phase)?;
        show.load.report()?;
    }
    let mut table = Table::new(std::io::stdout().is_terminal());
    let begun = Instant::now();
    let mut cpu = (gateway.cpu_time()?, begun);
    let mut away = Duration::ZERO;
    for second in 1..=SECONDS {
        let due = begun + Duration::from_secs(second);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (used, now) = (gateway.cpu_time()?, Instant::now());
        let share = (used - cpu.0).as_secs_f64() / (now - cpu.1).as_secs_f64();
        cpu = (used, now);
        // One process serves both LUNs, so only one row shows its CPU share.
        for (show, cpu) in shows.iter_mut().zip([Some(share), None]) {
            let report = show.take()?;
            table.row(second, show.name, &report, cpu);
        }
        table.progress(second, SECONDS);
        if second == KILL_AFTER {
            gateway.kill()?;
            let killed = Instant::now();
            table.note("the gateway is killed with SIGKILL; the hosts wait and reconnect by themselves");
            std::thread::sleep(GONE);
            let ready = gateway.start()?;
            away = killed.elapsed();
            table.note(&format!("the gateway is back, {:.2} s after its start", ready.as_secs_f64()));
            cpu = (gateway.cpu_time()?, Instant::now());
        }
    }
    table.end();
    Ok(away)
}

fn verdict(shows: &[Show], away: Duration) -> Result<()> {
    println!();
    for show in shows {
        let Show { name, ops, payload_bytes, errors, mismatches, .. } = show;
        println!(
            "{name:>8}: {ops} commands, {} MiB; {mismatches} mismatches, {errors} errors; outage {:.2} s",
            payload_bytes >> 20,
            show.longest_gap.as_secs_f64()
        );
    }
    println!(
        "  outage: the longest time in which no command ended; the gateway was away for {:.2} s, then the hosts reconnected",
        away.as_secs_f64()
    );
    if shows.iter().any(|show| show.mismatches > 0 || show.errors > 0) {
        bail!("FAILED: data was lost, or commands failed");
    }
    if let Some(show) = shows.iter().find(|show| show.load.downs.0 == 0) {
        bail!("FAILED: the host of LUN {} did not notice that the gateway was killed", show.name);
    }
    println!("      ok: all data was read back as it was written, across the kill");
    Ok(())
}

fn how_to_connect(at: SocketAddr, gateway: &Gateway) {
    let (ip, port, socket) = (at.ip(), at.port(), gateway.rpc_socket());
    println!("\nFrom this machine (nvme-cli, as root, with the module nvme-tcp):");
    println!("  nvme discover -t tcp -a {ip} -s {port}");
    println!("  nvme connect -t tcp -a {ip} -s {port} -n {NQN}");
    println!("  nvme disconnect -n {NQN}");
    println!("Its control socket, with SPDK's client (pip install spdk) or our own:");
    println!("  spdk-rpc -s {} nvmf_get_subsystems", socket.display());
    println!("  {} --socket {} lun list", gateway.command_line().display(), socket.display());
}

/// A file in memory whose contents outlive the gateway. Dropping this value removes the file.
struct MemoryFile(Option<PathBuf>);

impl MemoryFile {
    fn new() -> Result<Self> {
        let folder = Path::new(MEMORY_FILES);
        sweep(folder)?;
        Ok(Self(Some(folder.join(format!("{MEMORY_FILE_PREFIX}{}", std::process::id())))))
    }

    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    fn keep(mut self) -> PathBuf {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // The file may not exist. There is nobody to whom a drop could report a failure.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the files of demos that were killed. Leaves files that a process has open.
fn sweep(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(MEMORY_FILE_PREFIX));
        let dead = owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if dead && !is_open(&entry.path()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Returns whether a process that we may inspect has the file mapped. A gateway that was left running has it mapped.
fn is_open(file: &Path) -> bool {
    let Some(file) = file.to_str() else { return true };
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let maps = processes.flatten().map(|entry| entry.path().join("maps"));
    maps.filter_map(|maps| std::fs::read_to_string(maps).ok()).any(|text| text.contains(file))
}
