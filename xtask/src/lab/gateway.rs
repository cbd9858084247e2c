//! Our gateway as the target. It runs as a process beside this program, or in a VM with an older kernel.
//!
//! Only this file and the templates `gateway/tests/lab/*.toml` define how the gateway is started and configured, and how it is
//! told to grow a LUN.

use std::fs::File;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::peer::{HOST_NQN, MIB, NQN, NQN_2, PORT, Target};
use super::vm::{Event, Spec, Vm};
use super::{Lab, net};
use crate::process;
use crate::repo::Repo;

/// The LUN's initial size, as in the templates.
const SIZE_MIB: u64 = 96;
const GROW_MIB: u64 = 32;
/// Size of the file or disk under the pool. It has room for the LUN after all its growth, and for the pool's own records.
pub const POOL_MIB: u64 = 512;
/// The LUN's name, as in the templates.
const LUN: &str = "disk";
/// The name of the second LUN, in templates that have one, and its NSID while hosts see it.
const NEAR_LUN: (&str, &str) = ("near", "2");

/// `trefoild` in the lab's namespace.
pub struct Gateway<'a> {
    lab: &'a Lab,
    programs: PathBuf,
    config: PathBuf,
    size_mib: u64,
    running: Option<Child>,
}

impl<'a> Gateway<'a> {
    /// Makes a gateway with a pool on a file.
    pub fn on_file_pool(lab: &'a Lab) -> Result<Self> {
        File::create(lab.run.join("pool.img"))?.set_len(POOL_MIB * MIB)?;
        Self::new(lab, "file-pool.toml", "")
    }

    /// Makes a gateway with a pool on the NVMe/TCP array at address `array`.
    pub fn on_array_pool(lab: &'a Lab, array: &str) -> Result<Self> {
        Self::new(lab, "array-pool.toml", array)
    }

    /// Makes a gateway whose backend is the NVMe/TCP array at address `array`. The gateway presents nothing of the array until a
    /// command tells it to.
    pub fn before_array(lab: &'a Lab, array: &str) -> Result<Self> {
        Self::new(lab, "import.toml", array)
    }

    /// Makes a gateway from the template `template` in `gateway/tests/lab/`. Fills in the array's address.
    pub fn new(lab: &'a Lab, template: &str, array: &str) -> Result<Self> {
        let programs = lab.repo.target().join("release");
        let dir = lab.run.display().to_string();
        let config = lab.run.join("trefoild.toml");
        std::fs::write(&config, filled(lab, template, &dir, net::HERE, array)?)?;
        Ok(Self { lab, programs, config, size_mib: SIZE_MIB, running: None })
    }

    /// Runs a command of the gateway's command line.
    pub fn tell(&self, args: &[&str]) -> Result<()> {
        process::run(&mut self.trefoil(args))
    }

    /// Runs a command of the gateway's command line and returns its output.
    pub fn ask(&self, args: &[&str]) -> Result<String> {
        process::output(&mut self.trefoil(args))
    }

    fn trefoil(&self, args: &[&str]) -> Command {
        let mut trefoil = Command::new(self.programs.join("trefoil"));
        trefoil.arg("--socket").arg(self.lab.run.join("trefoil.sock")).args(args);
        trefoil
    }

    /// Returns the path of the log, which all runs of the gateway share.
    pub fn log(&self) -> PathBuf {
        self.lab.run.join("trefoild.log")
    }

    /// Returns an error that shows the end of the gateway's log.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        anyhow!(
            "trefoild {what}\n--- the end of {}\n{}",
            self.log().display(),
            process::tail(&self.log(), 60)
        )
    }
}

impl Target for Gateway<'_> {
    fn address(&self) -> String {
        net::HERE.to_owned()
    }

    fn start(&mut self, deadline: Instant) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut child = Command::new(self.programs.join("trefoild"))
            .arg(&self.config)
            .current_dir(&self.lab.run)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("can't start trefoild")?;
        // When the gateway listens, it is ready: it opens its LUNs before it listens.
        let port = format!("{}:{PORT}", net::HERE)
            .to_socket_addrs()?
            .next()
            .context("the lab's own address can't be resolved")?;
        while TcpStream::connect_timeout(&port, Duration::from_millis(100)).is_err() {
            if let Some(status) = child.try_wait()? {
                return Err(self.failure(&format!("ended while it started: {status}")));
            }
            if Instant::now() >= deadline {
                child.kill()?;
                return Err(self.failure("does not listen before the deadline"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.running = Some(child);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let mut child = self.running.take().context("trefoild has already ended")?;
        if let Some(status) = child.try_wait()? {
            return Err(self.failure(&format!("ended before it was killed: {status}")));
        }
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn grow(&mut self, _deadline: Instant) -> Result<u64> {
        self.size_mib += GROW_MIB;
        self.tell(&["lun", "grow", LUN, &format!("{}MiB", self.size_mib)])?;
        Ok(self.size_mib * MIB)
    }

    fn offer(&mut self, _deadline: Instant) -> Result<()> {
        let listen = format!("{}:{PORT}", net::HERE);
        self.tell(&["subsystem", "create", NQN_2, "--host", HOST_NQN, "--listen", &listen])
    }

    fn beside(&mut self, shown: bool) -> Result<()> {
        let (lun, nsid) = NEAR_LUN;
        match shown {
            true => self.tell(&["subsystem", "add-namespace", NQN, lun, "--nsid", nsid]),
            false => self.tell(&["subsystem", "remove-namespace", NQN, nsid]),
        }
    }

    fn stop(&mut self, deadline: Instant) -> Result<()> {
        let Some(mut child) = self.running.take() else { return Ok(()) };
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
        match process::wait_until(&mut child, deadline)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failure(&format!("ended with an error: {status}"))),
            None => {
                child.kill()?;
                Err(self.failure("does not end before the deadline"))
            }
        }
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `trefoild` in a VM with two NUMA nodes. Its pool is on a disk of that VM. `guest/gateway.sh` defines the orders that the VM
/// accepts.
pub struct GatewayVm<'a> {
    lab: &'a Lab,
    images: PathBuf,
    files: Vec<(PathBuf, &'static str)>,
    disk: PathBuf,
    size_mib: u64,
    vm: Option<Vm>,
}

impl<'a> GatewayVm<'a> {
    const HOST_BYTE: u8 = 30;

    /// Makes the VM with Debian's kernel of series `series`.
    pub fn new(lab: &'a Lab, series: &str) -> Result<Self> {
        let disk = lab.run.join("pool.img");
        File::create(&disk)?.set_len(POOL_MIB * MIB)?;
        let programs = lab.repo.target().join("release");
        let config = lab.run.join("trefoild.toml");
        let address = format!("10.77.0.{}", Self::HOST_BYTE);
        std::fs::write(&config, filled(lab, "file-pool.toml", "/run/trefoil", &address, "")?)?;
        let files = vec![
            (programs.join("trefoild"), "/usr/bin/trefoild"),
            (programs.join("trefoil"), "/usr/bin/trefoil"),
            (config, "/etc/trefoild.toml"),
        ];
        Ok(Self { lab, images: lab.images(series)?, files, disk, size_mib: SIZE_MIB, vm: None })
    }

    fn order(&mut self, order: &str, answer: &str, deadline: Instant) -> Result<()> {
        let vm = self.vm.as_mut().context("the gateway's VM has ended")?;
        vm.go(order)?;
        vm.expect(answer, deadline).map(|_| ())
    }
}

impl Target for GatewayVm<'_> {
    fn address(&self) -> String {
        format!("10.77.0.{}", Self::HOST_BYTE)
    }

    fn start(&mut self, deadline: Instant) -> Result<()> {
        if self.vm.is_some() {
            return self.order("start", "started", deadline);
        }
        let spec = Spec {
            name: "gateway",
            images: &self.images,
            host_byte: Self::HOST_BYTE,
            script: "gateway.sh",
            env: &[("LAB_PORT", PORT), ("LAB_LUN", LUN), ("LAB_NQN_2", NQN_2), ("LAB_HOSTNQN", HOST_NQN)],
            files: &self.files,
            disks: std::slice::from_ref(&self.disk),
            numa: true,
        };
        let mut vm = Vm::boot(self.lab, &spec)?;
        vm.expect("started", deadline)?;
        self.vm = Some(vm);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.order("kill", "killed", Instant::now() + Duration::from_secs(30))
    }

    fn grow(&mut self, deadline: Instant) -> Result<u64> {
        self.size_mib += GROW_MIB;
        self.order(&format!("grow {}MiB", self.size_mib), "grown", deadline)?;
        Ok(self.size_mib * MIB)
    }

    fn offer(&mut self, deadline: Instant) -> Result<()> {
        self.order("offer", "offered", deadline)
    }

    fn stop(&mut self, deadline: Instant) -> Result<()> {
        let Some(mut vm) = self.vm.take() else { return Ok(()) };
        vm.go("stop")?;
        match vm.next(deadline)? {
            Event::Ended(0) => Ok(()),
            other => Err(vm.failure(&format!("should have ended with status 0, but: {other:?}"))),
        }
    }
}

/// Builds the gateway's programs. This must happen before the lab enters its namespaces, which have no network.
pub fn build(repo: &Repo) -> Result<()> {
    process::run(&mut repo.build_programs("release"))
}

/// Returns a template of `gateway/tests/lab/`. Fills in its placeholders.
pub fn filled(lab: &Lab, template: &str, dir: &str, address: &str, array: &str) -> Result<String> {
    let path = lab.scripts.join(template);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let places = [
        ("@DIR@", dir),
        ("@ADDRESS@", address),
        ("@PORT@", PORT),
        ("@NQN@", NQN),
        ("@HOSTNQN@", HOST_NQN),
        ("@ARRAY@", array),
    ];
    Ok(places.iter().fold(text, |text, (place, value)| text.replace(place, value)))
}
