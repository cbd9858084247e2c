//! One virtual machine: how it boots, its QEMU process, and the steps of its test.
//!
//! The guest's second serial port is QEMU's standard input and output. The guest writes `STEP name words` and waits. The runner
//! carries out the step and answers `GO words` or `NO reason`. `NO` ends the guest's test. When the guest has finished, QEMU
//! exits with the status of the test (isa-debug-exit).

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::emulator::CONSOLE;
use super::{Lab, net};
use crate::process;

/// The guest prints warnings at once, because a guest that crashes can't print its log at the end. Warnings about long delays are
/// off, because delays mean nothing under emulation.
const KERNEL_OPTIONS: &str = "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check \
    rcupdate.rcu_cpu_stall_suppress=1 nowatchdog random.trust_cpu=on";

/// The VM to boot.
pub struct Spec<'a> {
    /// The VM's name. The folder of its log and its tap device have the same name.
    pub name: &'a str,
    /// A folder from [`Lab::images`].
    pub images: &'a Path,
    /// The last byte of the VM's address in the lab's network, and of its MAC.
    pub host_byte: u8,
    /// A script of `gateway/tests/lab/guest/`.
    pub script: &'a str,
    /// Shell variables for the script, besides `LAB_ADDRESS`. Values must not contain a single quote.
    pub env: &'a [(&'a str, &'a str)],
    /// Programs to copy from this machine into the guest: the file, and its path in the guest.
    pub files: &'a [(PathBuf, &'a str)],
    /// Raw images that become /dev/vda, /dev/vdb, ...
    pub disks: &'a [PathBuf],
    /// True if each CPU of the VM has a NUMA node of its own.
    pub numa: bool,
}

impl Spec<'_> {
    /// Returns the guest's address.
    pub fn address(&self) -> String {
        format!("10.77.0.{}", self.host_byte)
    }
}

/// A running VM. Dropping this value kills the VM.
pub struct Vm {
    name: String,
    child: Child,
    to_guest: ChildStdin,
    steps: Receiver<Step>,
    log: PathBuf,
}

/// A request of the guest to the runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The first word.
    pub name: String,
    /// The rest of the line.
    pub words: String,
}

/// The next event of a VM.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest waits for an answer.
    Step(Step),
    /// The guest's test ended with this status.
    Ended(u8),
}

impl Vm {
    /// Boots the VM. Returns at once, before the VM has booted.
    pub fn boot(lab: &Lab, spec: &Spec) -> Result<Self> {
        let dir = lab.run.join(spec.name);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let initrd = make_initrd(lab, spec, &dir)?;
        let tap = format!("tap-{}", spec.name);
        net::make_tap(&tap)?;
        // A VM that boots again appends to the same log.
        let log = dir.join(CONSOLE);
        let console = File::options().create(true).append(true).open(&log)?;
        let mut qemu = Command::new("qemu-system-x86_64");
        // One thread runs both virtual CPUs. With a thread for each CPU, the emulator sometimes lets one CPU run into code that
        // the other CPU is patching. The kernel then dies of its own breakpoint.
        qemu.args("-accel tcg,thread=single,tb-size=256 -M q35,usb=off,vmport=off,hpet=off".split(' '));
        // QEMU 7.2 computes the flags after cmpxchg16b from condition codes that belong to an older instruction. If QEMU switches
        // to another CPU at that moment, a wrong value becomes the CPU's EFLAGS. Linux uses cmpxchg16b for allocations if the CPU
        // has it, so this CPU does not have it.
        qemu.args(["-cpu", "max,-cx16"]);
        qemu.args("-smp 2 -m 1024 -nodefaults -no-user-config -no-reboot -display none".split(' '));
        qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        qemu.arg("-kernel").arg(spec.images.join("vmlinux")).arg("-initrd").arg(&initrd);
        qemu.args(["-append", KERNEL_OPTIONS]);
        let chardev = format!("file,id=console,append=on,path={CONSOLE}");
        qemu.args(["-chardev", &chardev, "-serial", "chardev:console"]);
        qemu.args(["-chardev", "stdio,id=steps,signal=off", "-serial", "chardev:steps"]);
        let monitor =
            format!("socket,id=monitor,path={},abstract=on,server=on,wait=off", monitor_name(spec.name));
        qemu.args(["-chardev", &monitor, "-mon", "chardev=monitor,mode=readline"]);
        qemu.args(["-netdev", &format!("tap,id=net0,ifname={tap},script=no,downscript=no")]);
        qemu.args([
            "-device",
            &format!("virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:77:00:{:02x}", spec.host_byte),
        ]);
        for (n, disk) in spec.disks.iter().enumerate() {
            let path = disk.display();
            qemu.args(["-drive", &format!("if=none,id=disk{n},file={path},format=raw,discard=unmap")]);
            qemu.args(["-device", &format!("virtio-blk-pci,drive=disk{n}")]);
        }
        if spec.numa {
            for node in 0..2 {
                qemu.args(["-object", &format!("memory-backend-ram,id=memory{node},size=512M")]);
                qemu.args(["-numa", &format!("node,nodeid={node},cpus={node},memdev=memory{node}")]);
            }
            qemu.args(["-numa", "dist,src=0,dst=1,val=20"]);
        }
        let mut child = qemu
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(console)
            .spawn()
            .context("can't start qemu-system-x86_64")?;
        let (to_guest, from_guest) = (child.stdin.take(), child.stdout.take());
        let (to_guest, from_guest) =
            to_guest.zip(from_guest).context("QEMU's standard input or output is not a pipe")?;
        let (send, steps) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(from_guest).lines().map_while(Result::ok) {
                if let Some(step) = parse_step(&line)
                    && send.send(step).is_err()
                {
                    break;
                }
            }
        });
        Ok(Self { name: spec.name.to_owned(), child, to_guest, steps, log })
    }

    /// Waits until `deadline` for the guest's next step or its end.
    pub fn next(&mut self, deadline: Instant) -> Result<Event> {
        match self.steps.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(step) => Ok(Event::Step(step)),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.failure("did not reach its next step before the deadline"))
            }
            // QEMU has closed its output, so QEMU is about to end.
            Err(RecvTimeoutError::Disconnected) => match self.child.wait()?.code() {
                Some(code) if code & 1 == 1 => Ok(Event::Ended(u8::try_from(code >> 1)?)),
                other => {
                    Err(self
                        .failure(&format!("ended without the guest's status (QEMU's own status: {other:?})")))
                }
            },
        }
    }

    /// Waits for a certain step and returns its words.
    pub fn expect(&mut self, name: &str, deadline: Instant) -> Result<String> {
        match self.next(deadline)? {
            Event::Step(step) if step.name == name => Ok(step.words),
            other => Err(self.failure(&format!("should have reached the step '{name}', but: {other:?}"))),
        }
    }

    /// Answers the waiting guest with `GO`. The guest's `step` then prints `words`.
    pub fn go(&mut self, words: &str) -> Result<()> {
        writeln!(self.to_guest, "GO {words}")
            .with_context(|| format!("the VM {} takes no orders any more", self.name))
    }

    /// Answers the waiting guest with `NO`, which ends the guest's test.
    pub fn refuse(&mut self, reason: &str) -> Result<()> {
        writeln!(self.to_guest, "NO {}", reason.replace('\n', " "))
            .with_context(|| format!("the VM {} takes no orders any more", self.name))
    }

    /// Ends the VM like a power cut: the guest writes nothing more.
    pub fn cut_power(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Enlarges a disk while the guest runs.
    pub fn resize_disk(&self, index: usize, size_mib: u64) -> Result<()> {
        let address = SocketAddr::from_abstract_name(monitor_name(&self.name))?;
        let mut monitor = UnixStream::connect_addr(&address).context("QEMU's monitor doesn't answer")?;
        monitor.set_read_timeout(Some(Duration::from_secs(10)))?;
        read_prompt(&mut monitor)?;
        writeln!(monitor, "block_resize disk{index} {size_mib}")?;
        let answer = read_prompt(&mut monitor)?;
        if answer.contains("rror") {
            bail!("QEMU's monitor refused block_resize: {answer}");
        }
        Ok(())
    }

    /// Returns an error that shows the end of the guest's console.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        anyhow!(
            "the VM {} {what}\n--- the end of {}\n{}",
            self.name,
            self.log.display(),
            process::tail(&self.log, 60)
        )
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the name of the abstract socket of a VM's monitor. The socket belongs to the run's network namespace, so two runs
/// don't collide.
fn monitor_name(vm: &str) -> String {
    format!("trefoil-lab-{vm}")
}

fn read_prompt(monitor: &mut UnixStream) -> Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"(qemu) ") {
        monitor.read_exact(&mut byte).context("QEMU's monitor doesn't answer")?;
        text.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn parse_step(line: &str) -> Option<Step> {
    let rest = line.trim_end().strip_prefix("STEP ")?;
    let (name, words) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(Step { name: name.to_owned(), words: words.to_owned() })
}

/// Makes the VM's boot archive from the base archive and an archive with the test. The kernel unpacks both.
fn make_initrd(lab: &Lab, spec: &Spec, dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("tree");
    std::fs::create_dir_all(&tree)?;
    let mut env = format!("LAB_ADDRESS='{}/{}'\n", spec.address(), net::PREFIX);
    for (key, value) in spec.env {
        writeln!(env, "{key}='{value}'")?;
    }
    std::fs::write(tree.join("lab.env"), env)?;
    let guest = lab.scripts.join("guest");
    std::fs::copy(guest.join("lib.sh"), tree.join("lib.sh"))?;
    std::fs::copy(guest.join(spec.script), tree.join("test.sh")).with_context(|| spec.script.to_owned())?;
    for (from, to) in spec.files {
        let to = tree.join(to.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap_or(&tree))?;
        std::fs::copy(from, to).with_context(|| from.display().to_string())?;
    }
    let initrd = dir.join("initrd");
    std::fs::copy(spec.images.join("base.cpio"), &initrd)?;
    let out = File::options().append(true).open(&initrd)?;
    let mut list = Command::new("find").arg(".").current_dir(&tree).stdout(Stdio::piped()).spawn()?;
    let names = list.stdout.take().context("the output of find is not a pipe")?;
    let mut cpio = Command::new("cpio");
    process::run(cpio.args(["--quiet", "-o", "-H", "newc"]).current_dir(&tree).stdin(names).stdout(out))?;
    list.wait()?;
    Ok(initrd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_lines_that_say_so() {
        let step = |name: &str, words: &str| Some(Step { name: name.into(), words: words.into() });
        assert_eq!(parse_step("STEP grow"), step("grow", ""));
        assert_eq!(parse_step("STEP grown 12 34\r"), step("grown", "12 34"));
        assert_eq!(parse_step("noise"), None);
    }
}
