//! CPUs: pinning of the calling thread, a CPU's NUMA node, and limits on a CPU's sleep states.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Pins the calling thread to CPU `cpu`.
///
/// # Errors
/// An error of sched_setaffinity(2): `EINVAL` if the CPU doesn't exist or is not allowed.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Returns the CPUs that the calling thread may run on.
///
/// # Errors
/// An error of sched_getaffinity(2).
pub fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// Returns the NUMA node of `cpu`, or `None` if the kernel has no nodes.
pub fn numa_node(cpu: usize) -> Option<u32> {
    let entries = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")).ok()?;
    entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

/// A limit on the time that a CPU takes to leave a sleep state. The limit stays in force until this value is dropped.
/// It is the kernel's per-device PM QoS (Documentation/ABI/testing/sysfs-devices-power). If the process is killed, its
/// limit stays until the next process that limits the same CPU ends.
#[derive(Debug)]
pub struct ResumeLatency(PathBuf);

impl ResumeLatency {
    /// The kernel's words for "no sleep state at all" and for "no limit".
    const NONE_AT_ALL: &str = "n/a";
    const NO_LIMIT: &str = "0";

    /// Limits `cpu` to `us` microseconds; 0 allows no sleep state.
    ///
    /// # Errors
    /// An error of open(2) or write(2): `ENOENT` without power management, `EACCES` or `EROFS` without permission.
    pub fn limit(cpu: usize, us: u32) -> io::Result<Self> {
        let path = Self::path(cpu);
        match us {
            0 => write_there(&path, Self::NONE_AT_ALL)?,
            us => write_there(&path, &us.to_string())?,
        }
        Ok(Self(path))
    }

    /// Checks that `cpu` can be limited.
    ///
    /// # Errors
    /// The errors of [`limit`](Self::limit). Nothing is changed.
    pub fn check(cpu: usize) -> io::Result<()> {
        File::options().write(true).open(Self::path(cpu)).map(drop)
    }

    fn path(cpu: usize) -> PathBuf {
        PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us"))
    }
}

impl Drop for ResumeLatency {
    fn drop(&mut self) {
        // A drop can't report a failure.
        let _ = write_there(&self.0, Self::NO_LIMIT);
    }
}

/// Writes to an existing file. Unlike fs::write, never makes the file.
fn write_there(path: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the file is missing or not permitted, the error says so.
    #[test]
    fn a_resume_latency_is_limited_for_a_while() {
        let cpu = *allowed().expect("affinity").last().expect("a CPU");
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us");
        let now = || std::fs::read_to_string(&path).expect("a limit");
        match (ResumeLatency::limit(cpu, 100), File::options().write(true).open(&path)) {
            (Ok(limit), Ok(_)) => {
                assert_eq!(now(), "100\n");
                drop(limit);
                assert_eq!(now(), "0\n");
            }
            (Err(limit), Err(open)) => assert_eq!(limit.raw_os_error(), open.raw_os_error()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pinning_leaves_one_cpu() {
        std::thread::spawn(|| {
            let cpu = *allowed().expect("affinity").last().expect("a CPU");
            pin(cpu).expect("pinned");
            assert_eq!(allowed().expect("affinity"), [cpu]);
            assert!(pin(100_000).is_err());
        })
        .join()
        .expect("no panic");
    }
}
