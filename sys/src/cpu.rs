//! CPUs: pinning the calling thread, and which NUMA node a CPU belongs to.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io;

/// Pins the calling thread to CPU `cpu`.
///
/// # Errors
/// What sched_setaffinity(2) says: `EINVAL` if there is no such CPU or it is not allowed.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The CPUs that the calling thread may run on.
///
/// # Errors
/// What sched_getaffinity(2) says.
pub fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// The NUMA node of `cpu`, or `None` where the kernel knows of no nodes.
pub fn numa_node(cpu: usize) -> Option<u32> {
    let entries = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")).ok()?;
    entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

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
