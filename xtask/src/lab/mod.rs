//! `./dev lab NAME`: tests the gateway against other implementations of NVMe/TCP: Linux's in virtual machines, and SPDK's beside
//! this program.
//!
//! QEMU emulates in software, so the lab also runs on machines without KVM. Each run has its own namespaces for network and
//! processes, with a private bridge. This program (10.77.0.1), its child processes and the VMs are on the bridge. When the run
//! ends for any reason, the kernel removes all of them. Timings under emulation mean nothing.
//!
//! The files for the guests are in `gateway/tests/lab/`: `kernel.sh` and `initramfs.sh` make the boot images, and `guest/`
//! contains the scripts.

mod emulator;
mod gateway;
mod net;
mod nvmet;
mod peer;
mod scenario;
mod spdk;
mod spdk_tree;
mod vm;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::need;
use crate::process;
use crate::repo::Repo;

pub use scenario::names;
pub use spdk_tree::{NO_SPDK, spdk_dir};

use scenario::Scenario;
use spdk_tree::{DIR_VARIABLE, SpdkTree};

/// The paths that every part of a run needs.
pub struct Lab {
    repo: Repo,
    /// `gateway/tests/lab`.
    scripts: PathBuf,
    /// Kernels and boot images, kept between runs.
    cache: PathBuf,
    /// Logs and disks of this scenario. The folder is emptied when the scenario starts.
    run: PathBuf,
}

/// Makes the namespaces, and runs the scenario in them as a new process. `spdk` is the value of `--spdk`.
pub fn enter(repo: &Repo, name: &str, spdk: Option<&str>) -> Result<()> {
    let scenario = scenario::named(name)?;
    let lab = Lab::new(repo, name);
    let spdk = match spdk.map(PathBuf::from).or_else(spdk_dir) {
        Some(dir) if scenario.spdk => {
            let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
            SpdkTree::open(&dir, &lab.run)?;
            Some(dir)
        }
        None if scenario.spdk => {
            println!("lab {name}: skipped: {NO_SPDK}");
            return Ok(());
        }
        _ => None,
    };
    need::ensure(repo, if scenario.kernels.is_empty() { need::NAMESPACES } else { need::LAB })?;
    // This work needs the network. The namespaces have no network, so the work comes first.
    for series in scenario.kernels {
        lab.images(series)?;
    }
    if scenario.gateway {
        gateway::build(repo)?;
    }
    let mut unshare = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        // A user namespace gives the rights to configure the new network. This user must also be able to open the tap device,
        // which Debian allows to every user.
        if !scenario.kernels.is_empty()
            && std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_err()
        {
            bail!(
                "lab {name}: this user may not open /dev/net/tun: run the lab as root or as a user who may"
            );
        }
        unshare.arg("--map-root-user");
    }
    unshare.args(["--net", "--mount", "--propagation", "unchanged", "--pid", "--fork", "--kill-child", "--"]);
    // --mount-proc makes / private. In a chroot, / need not be a mount point, but /proc always is one.
    unshare.args([
        "sh",
        "-c",
        "mount --make-private /proc && mount -t proc proc /proc && exec \"$0\" \"$@\"",
    ]);
    let inside = repo.xtask(["lab-inside", name])?;
    unshare.arg(inside.get_program()).args(inside.get_args());
    unshare.envs(spdk.map(|dir| (DIR_VARIABLE, dir)));
    process::run(&mut unshare)
}

/// Runs the scenario in the namespaces that [`enter`] made.
pub fn run(repo: &Repo, name: &str) -> Result<()> {
    if std::process::id() != 1 {
        bail!("only ./dev lab may call lab-inside: use ./dev lab {name}");
    }
    let scenario = scenario::named(name)?;
    let lab = Lab::new(repo, name);
    net::make_bridge()?;
    let mut ended = lab.attempt(scenario);
    if let Err(error) = &ended
        && let Some((guest, line)) = emulator::broken_guest(&lab.run)
    {
        let kept = lab.run.with_file_name(format!("{name}-broken"));
        println!("{error:#}");
        println!("lab {name}: ***** THE EMULATOR BROKE THE GUEST '{guest}': no CPU has such flags:");
        println!("lab {name}: ***** {line}");
        println!("lab {name}: ***** the lab keeps the guest's files in {} and starts again", kept.display());
        remove(&kept)?;
        std::fs::rename(&lab.run, &kept).with_context(|| kept.display().to_string())?;
        ended = lab.attempt(scenario);
    }
    ended.with_context(|| format!("lab {name} failed"))?;
    println!("lab {name}: ok");
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}

impl Lab {
    fn new(repo: &Repo, name: &str) -> Self {
        let cache = repo.var().join("lab");
        Self {
            repo: repo.clone(),
            scripts: repo.root.join("gateway/tests/lab"),
            run: cache.join("run").join(name),
            cache,
        }
    }

    /// Runs the scenario from its start. Its folder is empty at first.
    fn attempt(&self, scenario: &Scenario) -> Result<()> {
        remove(&self.run)?;
        std::fs::create_dir_all(&self.run).with_context(|| self.run.display().to_string())?;
        (scenario.run)(self)
    }

    /// Returns the folder with the boot images of a kernel series. Makes the images that are missing.
    fn images(&self, series: &str) -> Result<PathBuf> {
        let kernel =
            process::output(Command::new(self.scripts.join("kernel.sh")).arg(&self.cache).arg(series))?;
        let boot =
            process::output(Command::new(self.scripts.join("initramfs.sh")).arg(&self.cache).arg(kernel))?;
        Ok(boot.into())
    }
}
