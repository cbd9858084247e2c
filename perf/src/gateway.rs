//! `trefoild` as a child process: this module configures, starts, stops, kills and pauses it. Dropping a [`Gateway`] ends its
//! process.

use crate::proc;
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use trefoil_config as config;

/// The start of the line that the program prints when it serves.
const READY: &str = "trefoild ready";
const START_WITHIN: Duration = Duration::from_secs(20);
const END_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Number of log lines that an error shows.
const LOG_LINES: usize = 30;

/// The gateways' program and the folder for their files.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// The gateway's program [default: `trefoild` beside this one]
    #[arg(long)]
    pub trefoild: Option<PathBuf>,
    /// Folder for state, sockets and files; each run gets a fresh folder in it.
    #[arg(long, default_value = "var")]
    pub dir: PathBuf,
}

impl Place {
    /// Makes a fresh folder. Dropping the returned value removes the folder.
    ///
    /// # Errors
    /// An error if the folder can't be made.
    pub fn fresh(&self) -> Result<TempDir> {
        std::fs::create_dir_all(&self.dir).with_context(|| self.dir.display().to_string())?;
        let dir = self.dir.canonicalize()?;
        tempfile::Builder::new()
            .prefix("perf-")
            .tempdir_in(&dir)
            .with_context(|| format!("can't make a folder in {}", dir.display()))
    }

    fn program(&self) -> Result<PathBuf> {
        let program = match &self.trefoild {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("trefoild"),
        };
        if !program.is_file() {
            bail!(
                "{} is missing: build trefoil-gateway, or give its path with --trefoild",
                program.display()
            );
        }
        Ok(program)
    }
}

/// Returns a loopback address with a port that is free now.
///
/// # Errors
/// An error if the machine has no free port.
pub fn free_addr() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Makes a file and really writes zeros to all of it. Random writes into a hole, or into space that is only reserved, make the
/// file system split the file's extents. Split extents make each write expensive, and also the removal of the file.
///
/// # Errors
/// The error of the file system.
pub fn file_of_zeros(path: &Path, len_bytes: u64) -> Result<()> {
    let mut file = File::create_new(path).with_context(|| path.display().to_string())?;
    std::io::copy(&mut std::io::repeat(0).take(len_bytes), &mut file)
        .and_then(|_| file.sync_all())
        .with_context(|| path.display().to_string())
}

/// One gateway and its folder.
pub struct Gateway {
    program: PathBuf,
    dir: PathBuf,
    child: Option<Child>,
    /// True if the gateway must die when this program ends for any reason.
    tied: bool,
}

impl Gateway {
    /// Writes `system` to `dir`. The gateway's state and socket will also be in `dir`. Starts no process yet.
    ///
    /// # Errors
    /// An error if the program is missing, `system` has a mistake, or a file can't be written.
    pub fn new(place: &Place, dir: &Path, mut system: config::Config) -> Result<Self> {
        let program = place.program()?;
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        system.gateway.state_dir = dir.join("state");
        system.gateway.rpc_socket = dir.join("rpc.sock");
        let text = system.to_toml()?;
        let file = dir.join("trefoil.toml");
        config::Config::parse(&file.display().to_string(), &text)?;
        std::fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(Self { program, dir: dir.to_path_buf(), child: None, tied: true })
    }

    /// Starts the gateway and waits until it serves. Returns the time from the start until then.
    ///
    /// # Errors
    /// An error with the end of the gateway's log, if the gateway ends or isn't ready in time.
    pub fn start(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let out = File::create(self.output_file())?;
        let mut command = match self.tied && Path::new("/usr/bin/setpriv").exists() {
            true => {
                let mut command = Command::new("/usr/bin/setpriv");
                command.args(["--pdeathsig", "KILL"]).arg(&self.program);
                command
            }
            false => Command::new(&self.program),
        };
        command.arg(self.config_file());
        command.stdin(Stdio::null()).stdout(out).stderr(log);
        let child = command.spawn().with_context(|| format!("can't start {}", self.program.display()))?;
        self.child = Some(child);
        while !std::fs::read_to_string(self.output_file())?.lines().any(|line| line.starts_with(READY)) {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()) {
                self.child = None;
                return Err(self.failure(&format!("ended while it started: {}", status?)));
            }
            if begun.elapsed() > START_WITHIN {
                self.kill()?;
                return Err(self.failure(&format!("is not ready after {START_WITHIN:?}")));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(begun.elapsed())
    }

    /// Kills the gateway with SIGKILL. The gateway may be paused.
    ///
    /// # Errors
    /// An error if the gateway isn't running.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the gateway is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends the gateway a SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// An error if the gateway isn't running, doesn't end in time, or ends badly.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let end = Instant::now() + END_WITHIN;
        let child = self.child.as_mut().context("the gateway is not running")?;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > end => {
                    self.kill()?;
                    return Err(self.failure(&format!("did not end within {END_WITHIN:?}")));
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
        };
        self.child = None;
        if status.success() { Ok(()) } else { Err(self.failure(&format!("ended with an error: {status}"))) }
    }

    /// Pauses the gateway (SIGSTOP).
    ///
    /// # Errors
    /// An error if the gateway isn't running.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Resumes the gateway (SIGCONT).
    ///
    /// # Errors
    /// An error if the gateway isn't running.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Returns the gateway's process ID.
    ///
    /// # Errors
    /// An error if the gateway isn't running.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the gateway is not running")?.id())
    }

    /// Returns the gateway's CPU time since its start.
    ///
    /// # Errors
    /// An error if the gateway isn't running.
    pub fn cpu_time(&self) -> Result<Duration> {
        proc::cpu_time(self.pid()?)
    }

    /// Returns the gateway's resident memory in bytes.
    ///
    /// # Errors
    /// An error if the gateway isn't running.
    pub fn resident_bytes(&self) -> Result<u64> {
        proc::resident_bytes(self.pid()?)
    }

    /// Returns the path of the gateway's control socket.
    pub fn rpc_socket(&self) -> PathBuf {
        self.dir.join("rpc.sock")
    }

    /// Returns the path of `trefoil`, which is built beside the gateway's program.
    pub fn command_line(&self) -> PathBuf {
        let beside = self.program.with_file_name("trefoil");
        beside.canonicalize().unwrap_or(beside)
    }

    /// Lets the gateway outlive this program. This takes effect at the gateway's next start.
    pub fn untie(&mut self) {
        self.tied = false;
    }

    /// Consumes this value without ending the gateway. Returns the gateway's process ID.
    ///
    /// # Errors
    /// An error if the gateway isn't running.
    pub fn leave(mut self) -> Result<u32> {
        Ok(self.child.take().context("the gateway is not running")?.id())
    }

    /// Returns an error that shows the end of the gateway's log.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        anyhow!("trefoild {what}\n--- the end of {}\n{tail}", self.log_file().display())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()?.cast_signed()), signal)?)
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("trefoil.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("trefoild.log")
    }

    fn output_file(&self) -> PathBuf {
        self.dir.join("trefoild.out")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.child.is_some() {
            // A drop can't report a failure.
            let _ = self.kill();
        }
    }
}

/// Returns a gateway's settings for a measurement: one core on `cpu`, and room for `hosts` hosts with `qpairs` queue pairs
/// together.
pub fn settings(cpu: u16, idle: config::Idle, spin_us: u32, hosts: u32, qpairs: u32) -> config::Gateway {
    config::Gateway {
        cores: config::Cores::List(vec![cpu]),
        idle,
        spin_us,
        memory_per_core: config::Bytes(128 << 20),
        max_hosts: hosts,
        max_qpairs: qpairs,
        tcp_congestion_control: proc::congestion_control().map(|chosen| chosen.name().to_owned()),
        ..config::Gateway::default()
    }
}

/// Returns a system with one subsystem, which listens at `at` and is open to every host. Namespace 1 is the whole first backend
/// of `backends`, namespace 2 the whole second backend, and so on.
pub fn system(
    gateway: config::Gateway,
    at: SocketAddr,
    nqn: &str,
    backends: Vec<config::Backend>,
) -> config::Config {
    let luns: Vec<config::Lun> = backends.iter().map(|backend| whole(&backend.name)).collect();
    let namespaces =
        (1..).zip(&luns).map(|(nsid, lun)| config::Namespace { nsid, lun: lun.name.clone(), hosts: None });
    let subsystem = config::Subsystem {
        allow_any_host: true,
        listeners: vec![at.into()],
        namespaces: namespaces.collect(),
        ..config::Subsystem::new(nqn)
    };
    config::Config { gateway, backends, luns, subsystems: vec![subsystem], ..config::Config::default() }
}

fn whole(backend: &str) -> config::Lun {
    config::Lun {
        name: format!("{backend}-lun"),
        pool: None,
        backend: Some(backend.to_owned()),
        size: None,
        block_bytes: None,
        uuid: None,
        nguid: None,
        read_only: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a script that behaves as `trefoild` does at its start.
    fn stand_in(dir: &Path, script: &str) -> Place {
        use std::os::unix::fs::PermissionsExt;
        let program = dir.join("trefoild");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Place { trefoild: Some(program), dir: dir.to_path_buf() }
    }

    fn gateway(script: &str) -> (TempDir, Gateway) {
        let dir = tempfile::tempdir().unwrap();
        let place = stand_in(dir.path(), script);
        let memory = config::Backend {
            size: Some(config::Bytes(1 << 20)),
            ..config::Backend::new("ram", config::BackendType::Memory)
        };
        let settings = settings(0, config::Idle::Spin, 50, 4, 8);
        let system = system(settings, free_addr().unwrap(), "nqn.2026-01.org.example:perf", vec![memory]);
        let gateway = Gateway::new(&place, &dir.path().join("gateway"), system).unwrap();
        (dir, gateway)
    }

    #[test]
    fn it_is_ready_when_it_says_so_and_gone_when_dropped() {
        let (dir, mut gateway) = gateway("echo 'trefoild ready: rpc=x portals=y'; exec sleep 600");
        gateway.start().unwrap();
        let pid = gateway.pid().unwrap();
        gateway.pause().unwrap();
        gateway.resume().unwrap();
        assert!(gateway.resident_bytes().unwrap() > 0);
        std::fs::write(dir.path().join("trefoil"), "").unwrap();
        assert_eq!(gateway.command_line(), dir.path().canonicalize().unwrap().join("trefoil"));
        drop(gateway);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn an_end_at_the_start_shows_the_log() {
        let (_dir, mut gateway) = gateway("echo no such thing >&2; exit 3");
        let error = gateway.start().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such thing"), "{error}");
    }
}
