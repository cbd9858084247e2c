//! Checks that the machine has the memory that the gateway reserves. The check runs before a start, and before a change that
//! adds memory.
//!
//! Most of the memory is mapped and not touched yet, so the kernel grants any amount. Without the check, a shortage would
//! appear only at a host's write.

use std::fmt;
use std::fs::read_to_string;
use std::os::unix::fs::MetadataExt;
use trefoil_config::{BackendType, Bytes, Config, Worked};

/// The memory that the gateway asks for, and the memory that is available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// The sum of all memory that the gateway reserves, with its parts.
    pub asked: Worked,
    /// The bytes that the gateway can have: the memory that is available now, plus the memory that this process and the
    /// backends' files already use.
    pub available_bytes: u64,
    /// The part of the available bytes that lies on reserved hugepages.
    pub huge_bytes: u64,
}

impl MemoryNeed {
    /// Examines the machine. Returns `None` if /proc lacks the numbers.
    pub fn look(config: &Config) -> Option<Self> {
        let machine = read_to_string("/proc/meminfo").ok()?;
        let process = read_to_string("/proc/self/status").unwrap_or_default();
        let huge_bytes = field(&machine, "HugePages_Free:")? * (2 << 20);
        let own = ["RssAnon:", "HugetlbPages:"].map(|name| field(&process, name).unwrap_or(0) * 1024);
        let available = [field(&machine, "MemAvailable:")? * 1024, huge_bytes, held_bytes(config)];
        let available_bytes = available.into_iter().chain(own).fold(0, u64::saturating_add);
        Some(Self { asked: config.memory(), available_bytes, huge_bytes })
    }

    /// Returns whether the gateway asks for more memory than is available.
    pub fn lacks(&self) -> bool {
        self.asked.total_bytes() > self.available_bytes
    }
}

impl fmt::Display for MemoryNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asked, available) = (&self.asked, Bytes(self.available_bytes).rounded());
        match self.lacks() {
            true => write!(f, "the gateway needs {asked}, and {available} is available"),
            false => {
                let huge = Bytes(self.huge_bytes).rounded();
                write!(
                    f,
                    "the gateway needs {asked} of {available} available, {huge} of which is on hugepages"
                )
            }
        }
    }
}

/// Returns the bytes that the files of memory backends already occupy.
fn held_bytes(config: &Config) -> u64 {
    let memory = config.backends.iter().filter(|b| b.kind == BackendType::Memory);
    let held = memory.filter_map(|b| Some(b.size?.0.min(b.path.as_ref()?.metadata().ok()?.blocks() * 512)));
    held.fold(0, u64::saturating_add)
}

/// Returns the number of field `name` in a table of /proc.
fn field(table: &str, name: &str) -> Option<u64> {
    let line = table.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::backends::check_memory;
    use crate::error::Fault;
    use crate::state::State;
    use trefoil_config::{Backend, Gateway};

    #[test]
    fn memory_that_the_machine_lacks_is_refused_where_it_is_added() {
        let with = |sizes: &[(&str, u64)]| {
            let mut state = State::default();
            for &(name, size) in sizes {
                let backend = Backend { size: Some(Bytes(size)), ..Backend::new(name, BackendType::Memory) };
                state.backends.insert(name.into(), backend);
            }
            state
        };
        let gateway = Gateway { memory_per_core: Bytes(40 << 20), ..Gateway::default() };
        let check = |before: &State, next: &State| check_memory(before, next, &gateway);
        let (none, small, large) =
            (with(&[]), with(&[("a", 1 << 20)]), with(&[("a", 1 << 20), ("b", 1 << 50)]));
        check(&none, &small).expect("there is room for it");
        let refusal = check(&small, &large).expect_err("nobody has a PiB");
        let told = "backend `b`: memory: ";
        assert!(refusal.message.starts_with(told) && refusal.fault == Fault::NoSpace, "{}", refusal.message);
        for part in ["backend b 1024TiB = 1024.0TiB, and ", " is available"] {
            assert!(refusal.message.contains(part), "{}", refusal.message);
        }
        check(&large, &large).expect("what is there is asked for nothing");
        check(&large, &small).expect("what goes needs none");
    }

    #[test]
    fn what_a_file_has_already_counts_as_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ram");
        std::fs::write(&path, vec![1; 64 << 10]).expect("written");
        let file_bytes = path.metadata().expect("a file").blocks() * 512;
        assert!(file_bytes > 4096);
        for (size_bytes, held) in [(1 << 30, file_bytes), (4096, 4096)] {
            let backend = Backend::new("m", BackendType::Memory);
            let backend = Backend { size: Some(Bytes(size_bytes)), path: Some(path.clone()), ..backend };
            let anonymous = Backend { path: None, ..backend.clone() };
            let config = Config { backends: vec![backend, anonymous], ..Config::default() };
            assert_eq!(held_bytes(&config), held);
        }
    }
}
