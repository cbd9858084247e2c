//! The scenarios. Each runs the Linux host of `guest/linux-host.sh` against a target.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::gateway::{Gateway, GatewayVm, POOL_MIB};
use super::nvmet::Nvmet;
use super::peer::{HOST_NQN, MIB, NQN, NQN_2, PORT, Target};
use super::vm::{Event, Spec, Vm};
use super::{Lab, spdk};
use crate::process;

const HOST_ID: &str = "6f1c8f02-3a0e-4a53-9d3c-0a77c0ffee01";

/// The time budget of a scenario. A scenario takes 10 to 250 s on two idle cores. The stages of `./dev test` have budgets of
/// their own.
const BUDGET: Duration = Duration::from_secs(720);

/// The size of the imported namespace.
const IMPORT_MIB: u64 = 32;

/// A runnable scenario.
pub struct Scenario {
    name: &'static str,
    /// The versions of Debian's kernel that the scenario boots. Empty if it has no VMs.
    pub kernels: &'static [&'static str],
    /// True if our gateway takes part.
    pub gateway: bool,
    /// True if SPDK takes part. Without SPDK the scenario is skipped.
    pub spdk: bool,
    /// Runs the scenario inside the lab's namespaces.
    pub run: fn(&Lab) -> Result<()>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "self-check", kernels: &["6.12"], gateway: false, spdk: false, run: self_check },
    Scenario { name: "linux-host", kernels: &["6.12"], gateway: true, spdk: false, run: linux_host },
    Scenario { name: "array", kernels: &["6.12"], gateway: true, spdk: false, run: array },
    Scenario { name: "import", kernels: &["6.12"], gateway: true, spdk: false, run: import },
    Scenario { name: "gateway-6.1", kernels: &["6.12", "6.1"], gateway: true, spdk: false, run: gateway_6_1 },
    Scenario { name: "spdk", kernels: &[], gateway: true, spdk: true, run: spdk::run },
];

/// Returns the names of all scenarios.
pub fn names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|s| s.name).collect()
}

/// Returns the scenario named `name`, or an error that lists all names.
pub fn named(name: &str) -> Result<&'static Scenario> {
    let found = SCENARIOS.iter().find(|s| s.name == name);
    found.with_context(|| format!("there is no lab '{name}'; the labs are: {}", names().join(" ")))
}

/// Runs Linux against Linux. This run proves that the lab and the host's script work without the gateway.
fn self_check(lab: &Lab) -> Result<()> {
    with_linux_host(lab, &mut Nvmet::new(lab, Nvmet::LUN_MIB)?, None)
}

/// Runs the gateway with a LUN in a pool on a file.
fn linux_host(lab: &Lab) -> Result<()> {
    with_linux_host(lab, &mut Gateway::on_file_pool(lab)?, None)
}

/// Runs the gateway with a LUN in a pool on Linux's nvmet array. The gateway reaches the array through our initiator.
fn array(lab: &Lab) -> Result<()> {
    let deadline = Instant::now() + BUDGET;
    let mut array = Nvmet::new(lab, POOL_MIB)?;
    array.start(deadline)?;
    let mut gateway = Gateway::on_array_pool(lab, &array.address())?;
    with_linux_host(lab, &mut gateway, Some(&mut array))?;
    array.stop(deadline)
}

/// Runs the gateway with a namespace of Linux's nvmet array that is full of foreign data. The gateway imports the namespace, a
/// Linux host uses it, and the gateway releases it. Afterwards the array holds the same data, except for the host's writes.
fn import(lab: &Lab) -> Result<()> {
    let deadline = Instant::now() + BUDGET;
    let mut array = Nvmet::new(lab, IMPORT_MIB)?;
    let words = (0..IMPORT_MIB * MIB / 8).map(|at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let before: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    std::fs::write(array.disk(), &before)?;
    let sum = process::output(Command::new("sha256sum").arg(array.disk()))?;
    let sum = sum.split(' ').next().context("a sum")?;
    array.start(deadline)?;
    let mut gateway = Gateway::before_array(lab, &array.address())?;
    gateway.start(deadline)?;
    gateway.tell(&["lun", "import", "old", "--backend", "array", "--uuid", Nvmet::UUID])?;
    gateway.tell(&["subsystem", "add-namespace", NQN, "old"])?;
    let images = lab.images("6.12")?;
    let address = gateway.address();
    let spec = Spec {
        name: "host",
        images: &images,
        host_byte: 10,
        script: "import-host.sh",
        env: &[
            ("LAB_NQN", NQN),
            ("LAB_TARGET", &address),
            ("LAB_PORT", PORT),
            ("LAB_HOSTNQN", HOST_NQN),
            ("LAB_HOSTID", HOST_ID),
            ("LAB_UUID", Nvmet::UUID),
            ("LAB_SUM", sum),
        ],
        files: &[],
        disks: &[],
        numa: false,
    };
    let mut host = Vm::boot(lab, &spec)?;
    host.expect("done", deadline)?;
    host.go("")?;
    match host.next(deadline)? {
        Event::Ended(0) => {}
        other => return Err(host.failure(&format!("should have ended with status 0, but: {other:?}"))),
    }
    gateway.tell(&["lun", "release", "old", "--force"])?;
    gateway.stop(deadline)?;
    array.stop(deadline)?;
    let after = std::fs::read(array.disk())?;
    compare(&before, &after)
}

/// The writes of `guest/import-host.sh`: the first byte, the length, and the repeated byte. The repeated byte is `None` for
/// blocks that fio generates.
const WRITTEN: [(usize, usize, Option<u8>); 3] =
    [(128 << 16, 64 << 16, Some(b'T')), (40001 * 512, 512, Some(b'U')), (24 << 20, 4 << 20, None)];

/// Checks that the array holds the host's writes, and that all other bytes are unchanged.
fn compare(before: &[u8], after: &[u8]) -> Result<()> {
    if before.len() != after.len() {
        bail!("the array's disk had {} bytes before and has {} now", before.len(), after.len());
    }
    let mut expected = before.to_vec();
    for (at, len, byte) in WRITTEN {
        let range = at..at + len;
        match byte {
            Some(byte) => expected[range].fill(byte),
            None => {
                let blocks = before[range.clone()].chunks(4096).zip(after[range.clone()].chunks(4096));
                if let Some(n) = blocks.into_iter().position(|(before, after)| before == after) {
                    bail!("block {n} after byte {at} of the array's disk was not written");
                }
                expected[range.clone()].copy_from_slice(&after[range]);
            }
        }
    }
    match expected.iter().zip(after).position(|(expected, found)| expected != found) {
        Some(at) => bail!(
            "byte {at} of the array's disk is {:#x}, and not the written {:#x}",
            after[at],
            expected[at]
        ),
        None => Ok(()),
    }
}

/// Runs the gateway itself on Debian 12's own kernel. That kernel's io_uring lacks newer features.
fn gateway_6_1(lab: &Lab) -> Result<()> {
    with_linux_host(lab, &mut GatewayVm::new(lab, "6.1")?, None)
}

/// Boots the Linux host against the target, and carries out the steps that the host requests. `array` is the array under the
/// target's LUN. If `array` is given, the host also requests the loss of the array.
fn with_linux_host(lab: &Lab, target: &mut dyn Target, mut array: Option<&mut Nvmet>) -> Result<()> {
    let deadline = Instant::now() + BUDGET;
    let started = Instant::now();
    let said = |what: &str| println!("{:6.1} s  {what}", started.elapsed().as_secs_f64());
    let images = lab.images("6.12")?;
    target.start(deadline)?;
    said("the target serves");
    let address = target.address();
    let spec = Spec {
        name: "host",
        images: &images,
        host_byte: 10,
        script: "linux-host.sh",
        env: &[
            ("LAB_NQN", NQN),
            ("LAB_TARGET", &address),
            ("LAB_PORT", PORT),
            ("LAB_HOSTNQN", HOST_NQN),
            ("LAB_HOSTID", HOST_ID),
            ("LAB_NQN_2", NQN_2),
            ("LAB_OUTAGE", if array.is_some() { "yes" } else { "no" }),
        ],
        files: &[],
        disks: &[],
        numa: false,
    };
    let mut host = Vm::boot(lab, &spec)?;
    let mut finished = false;
    loop {
        let step = match host.next(deadline)? {
            Event::Step(step) => step,
            Event::Ended(0) if finished => break,
            Event::Ended(status) => {
                return Err(host.failure(&format!("ended with status {status} before its step 'done'")));
            }
        };
        said(format!("{} {}", step.name, step.words).trim_end());
        let answer = match step.name.as_str() {
            "grow" => target.grow(deadline).map(|bytes| bytes.to_string()),
            "kill" => target.kill().map(|()| String::new()),
            "start" => target.start(deadline).map(|()| String::new()),
            "offer" => target.offer(deadline).map(|()| String::new()),
            "cut" => lost(&mut array)?.kill().map(|()| String::new()),
            "restore" => lost(&mut array)?.start(deadline).map(|()| String::new()),
            "ana" => lost(&mut array)?.set_ana(&step.words, deadline).map(|()| String::new()),
            "beside" => target.beside(step.words == "shown").map(|()| String::new()),
            "done" => {
                finished = true;
                Ok(String::new())
            }
            _ => bail!("the host asks for an unknown step '{} {}'", step.name, step.words),
        };
        match answer {
            Ok(words) => host.go(&words)?,
            Err(error) => {
                host.refuse(&format!("{error:#}"))?;
                return Err(error.context(format!("step '{}'", step.name)));
            }
        }
    }
    target.stop(deadline)?;
    said("host and target ended without errors");
    Ok(())
}

/// Returns the array for a step that needs it: power loss, power return, or a change of ANA state.
fn lost<'a, 'b>(array: &'a mut Option<&mut Nvmet<'b>>) -> Result<&'a mut Nvmet<'b>> {
    array.as_deref_mut().context("this lab has no array for the step")
}
