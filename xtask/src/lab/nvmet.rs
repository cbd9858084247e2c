//! Linux's own NVMe/TCP target in a VM. Some scenarios use it as the array, and the lab's self-check uses it as the reference.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Lab;
use super::peer::{MIB, NQN, NQN_2, PORT, Target};
use super::vm::{Event, Spec, Vm};

const GROW_MIB: u64 = 32;

/// The VM and its disk. The disk outlives the VM.
pub struct Nvmet<'a> {
    lab: &'a Lab,
    images: PathBuf,
    disk: PathBuf,
    size_mib: u64,
    /// The running VM. Its script waits for the next order. `None` if the VM has ended.
    vm: Option<Vm>,
}

impl<'a> Nvmet<'a> {
    const HOST_BYTE: u8 = 20;

    /// The size of the namespace in scenarios where the host uses it directly.
    pub const LUN_MIB: u64 = 96;

    /// The namespace's identity.
    pub const UUID: &'static str = "7a1f0e46-51c3-4f0e-9a53-6d4e1b0a2c11";

    /// Makes the disk. [`Target::start`] boots the VM.
    pub fn new(lab: &'a Lab, size_mib: u64) -> Result<Self> {
        let disk = lab.run.join("nvmet.img");
        let file = File::create(&disk).with_context(|| disk.display().to_string())?;
        file.set_len(size_mib * MIB)?;
        Ok(Self { lab, images: lab.images("6.12")?, disk, size_mib, vm: None })
    }

    /// Returns the disk's file on the machine that runs the lab.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Sets the ANA state of the namespace's ANA group. `state` is Linux's name of the state.
    pub fn set_ana(&mut self, state: &str, deadline: Instant) -> Result<()> {
        let vm = self.vm.as_mut().context("the target's VM has ended")?;
        vm.go(&format!("ana {state}"))?;
        match vm.expect("ana", deadline)? {
            now if now == state => Ok(()),
            now => bail!("the target's ANA state is '{now}', not '{state}'"),
        }
    }
}

impl Target for Nvmet<'_> {
    fn address(&self) -> String {
        format!("10.77.0.{}", Self::HOST_BYTE)
    }

    fn start(&mut self, deadline: Instant) -> Result<()> {
        let spec = Spec {
            name: "nvmet",
            images: &self.images,
            host_byte: Self::HOST_BYTE,
            script: "nvmet.sh",
            env: &[("LAB_NQN", NQN), ("LAB_NQN_2", NQN_2), ("LAB_PORT", PORT), ("LAB_UUID", Self::UUID)],
            files: &[],
            disks: std::slice::from_ref(&self.disk),
            numa: false,
        };
        let mut vm = Vm::boot(self.lab, &spec)?;
        vm.expect("ready", deadline)?;
        self.vm = Some(vm);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.vm.take().context("the target's VM has already ended")?.cut_power()
    }

    fn grow(&mut self, deadline: Instant) -> Result<u64> {
        let vm = self.vm.as_mut().context("the target's VM has ended")?;
        self.size_mib += GROW_MIB;
        vm.resize_disk(0, self.size_mib)?;
        vm.go("grow")?;
        Ok(vm.expect("grown", deadline)?.trim().parse()?)
    }

    fn offer(&mut self, deadline: Instant) -> Result<()> {
        let vm = self.vm.as_mut().context("the target's VM has ended")?;
        vm.go("offer")?;
        vm.expect("offered", deadline).map(|_| ())
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
