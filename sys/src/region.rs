//! Memory for payloads, aligned to 2 MiB: anonymous (on hugepages if possible), or mapped from a file.

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

const HUGE_BYTES: usize = 2 << 20;
/// The smallest page size of our machines. Where pages are larger, the kernel refuses a range that isn't whole pages.
const PAGE_BYTES: usize = 4096;

/// A readable and writable mapping, aligned to 2 MiB, unmapped on drop.
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    map: NonNull<libc::c_void>,
    map_len: usize,
    huge: bool,
    /// The locked file of a shared mapping.
    _file: Option<Flock<File>>,
}

// SAFETY: the mapping belongs to the process, not to a thread; `Region` only gives its address.
unsafe impl Send for Region {}

impl Region {
    /// Maps `len_bytes` of private zeroed memory, rounded up to 2 MiB: on reserved hugepages if enough are free, else on
    /// ordinary pages with a request for transparent hugepages.
    ///
    /// # Errors
    /// An error of mmap(2).
    pub fn anonymous(len_bytes: usize) -> io::Result<Self> {
        let len = len_bytes.max(1).next_multiple_of(HUGE_BYTES);
        if let Ok(map) = map(len, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB | libc::MAP_POPULATE) {
            return Ok(Self::on_hugepages(map, len));
        }
        Self::on_ordinary_pages(len)
    }

    /// Maps memory as [`Region::anonymous`] does, for a thread on a CPU of NUMA node `node`. The region uses reserved
    /// hugepages only if that node has enough free hugepages. Otherwise, ordinary pages are better than another node's
    /// hugepages: the first thread that touches an ordinary page gets the page from its own node.
    ///
    /// # Errors
    /// An error of mmap(2).
    pub fn near(len_bytes: usize, node: u32) -> io::Result<Self> {
        let len = len_bytes.max(1).next_multiple_of(HUGE_BYTES);
        if let Ok(map) = map(len, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB) {
            let region = Self::on_hugepages(map, len);
            // Some containers forbid the call. Then the kernel still takes this node's hugepages first.
            let _ = region.bind(node);
            if region.populate().is_ok() {
                return Ok(region);
            }
        }
        Self::on_ordinary_pages(len)
    }

    fn on_hugepages(map: NonNull<libc::c_void>, len: usize) -> Self {
        Self { base: map.cast(), len, map, map_len: len, huge: true, _file: None }
    }

    /// Maps memory as [`Region::anonymous`] does, without reserved hugepages.
    ///
    /// # Errors
    /// An error of mmap(2).
    pub fn on_ordinary_pages(len_bytes: usize) -> io::Result<Self> {
        let len = len_bytes.max(1).next_multiple_of(HUGE_BYTES);
        let map_len = len + HUGE_BYTES;
        let map = map(map_len, libc::MAP_NORESERVE)?;
        let skip = map.as_ptr().align_offset(HUGE_BYTES);
        // SAFETY: `skip < HUGE_BYTES`, and the mapping is that much longer than `len`.
        let base: NonNull<u8> = unsafe { map.cast::<u8>().add(skip) };
        // SAFETY: the range is ours. Failure only means that there are no transparent hugepages.
        #[cfg(not(miri))]
        unsafe {
            libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE)
        };
        Ok(Self { base, len, map, map_len, huge: false, _file: None })
    }

    /// Maps the first `len_bytes`, rounded up to 2 MiB, of the file at `path`, as shared memory. Writes outlive the
    /// process. If the file is on a disk, they also outlive a loss of the machine's memory. The call creates the file
    /// if it is missing (mode 0600), grows the file, and locks it against other processes. The call also reserves all
    /// the file's space, because on a full /dev/shm a later write would kill the process (SIGBUS).
    ///
    /// # Errors
    /// `EWOULDBLOCK` if another process has locked the file; `ENOSPC`; the errors of open(2) and mmap(2).
    pub fn shared_file(path: &Path, len_bytes: usize) -> io::Result<Self> {
        let len = len_bytes.max(1).next_multiple_of(HUGE_BYTES);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| io::Error::from(e))?;
        if file.metadata()?.len() < len as u64 {
            file.set_len(len as u64)?;
        }
        fallocate(&*file, FallocateFlags::empty(), 0, len as libc::off_t)?;
        let map_len = len + HUGE_BYTES;
        let map = map(map_len, libc::MAP_NORESERVE)?;
        let skip = map.as_ptr().align_offset(HUGE_BYTES);
        // SAFETY: `skip < HUGE_BYTES`, and the mapping is that much longer than `len`.
        let base: NonNull<u8> = unsafe { map.cast::<u8>().add(skip) };
        let mut this = Self { base, len, map, map_len, huge: false, _file: None };
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: replaces pages of our own fresh mapping, which nobody uses yet.
        let shared = unsafe { libc::mmap(base.as_ptr().cast(), len, prot, flags, file.as_raw_fd(), 0) };
        if shared == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        this._file = Some(file);
        Ok(this)
    }

    /// Restricts the region's further pages to NUMA node `node`. Pages that the region already has stay where they are.
    fn bind(&self, node: u32) -> io::Result<()> {
        let mut nodes = [0_u64; 16];
        let word = nodes.get_mut(node as usize / 64).ok_or(io::ErrorKind::InvalidInput)?;
        *word |= 1 << (node % 64);
        // The kernel uses one bit less than the given number.
        let bits = 64 * nodes.len() + 1;
        let (base, mask) = (self.base.as_ptr(), nodes.as_ptr());
        let mode = libc::c_ulong::from(libc::MPOL_BIND.cast_unsigned());
        // SAFETY: changes where pages of our own mapping will come from; `mask` has `bits - 1` bits.
        let done = unsafe { libc::syscall(libc::SYS_mbind, base, self.len, mode, mask, bits, 0_u64) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Allocates all pages of the region now. Otherwise, a later access would kill the process (SIGBUS) if no page is
    /// left.
    fn populate(&self) -> io::Result<()> {
        // SAFETY: the range is ours, and its contents stay.
        let done = unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_POPULATE_WRITE) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns whether pieces of the region's memory can be given back. Only ordinary pages can be given back. If a
    /// reserved hugepage or a file's space were given back, another process could take it. The next write to the region
    /// would then kill this process (SIGBUS).
    #[inline]
    pub fn can_give_back(&self) -> bool {
        !self.huge && self._file.is_none()
    }

    /// Gives the whole pages in `range` back to the system. Does nothing unless [`can_give_back`](Self::can_give_back).
    /// `range` counts bytes from the region's start. The pages then read as zeros.
    ///
    /// # Safety
    /// The range must lie in the region, and nobody may use its bytes during the call.
    pub unsafe fn give_back(&self, range: Range<usize>) {
        let (from, to) = (range.start.next_multiple_of(PAGE_BYTES), range.end / PAGE_BYTES * PAGE_BYTES);
        if !self.can_give_back() || from >= to {
            return;
        }
        // SAFETY: whole pages of our own private mapping, whose bytes nobody uses, as the caller says. If the call fails, the
        // pages stay unchanged.
        unsafe { libc::madvise(self.base.as_ptr().add(from).cast(), to - from, libc::MADV_DONTNEED) };
    }

    /// Returns the region's start, aligned to 2 MiB.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the region's length in bytes, a multiple of 2 MiB.
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// Returns whether the region uses reserved hugepages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }
}

fn map(len: usize, flags: libc::c_int) -> io::Result<NonNull<libc::c_void>> {
    // Miri models only plain anonymous mappings, without hugepages and reservation.
    #[cfg(miri)]
    let flags = match flags & libc::MAP_HUGETLB {
        0 => 0,
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours.
    let map = unsafe {
        libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags, -1, 0)
    };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(map).ok_or_else(|| io::Error::other("mmap gave address zero"))
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `map` returned, unmapped once. `Region`'s owner uses no pointer
        // into it any more.
        unsafe { libc::munmap(self.map.as_ptr(), self.map_len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_node_that_is_not_there_is_had_all_the_same() {
        for node in [0, 1023, 1024, u32::MAX] {
            let region = Region::near(5000, node).expect("memory");
            assert_eq!(region.len_bytes(), HUGE_BYTES);
            assert!(region.base().as_ptr().align_offset(HUGE_BYTES) == 0);
            // SAFETY: inside the mapping, and nobody else has it.
            unsafe { region.base().add(HUGE_BYTES - 1).write(7) };
        }
    }

    #[test]
    fn a_region_takes_its_pages_from_the_node_that_it_is_bound_to() {
        let region = Region::on_ordinary_pages(HUGE_BYTES).expect("memory");
        match region.bind(0) {
            // A container may forbid the call.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            bound => bound.expect("node 0 is always there"),
        }
        region.populate().expect("pages");
        assert!(region.bind(1024).is_err(), "no such node");
    }

    #[test]
    fn what_is_given_back_is_the_systems_again() {
        let region = Region::on_ordinary_pages(4 << 20).expect("memory");
        let resident = || {
            let mut pages = vec![0u8; region.len_bytes() / PAGE_BYTES];
            // SAFETY: asks about our own mapping; there is a byte for each of its pages.
            let asked = unsafe {
                libc::mincore(region.base().as_ptr().cast(), region.len_bytes(), pages.as_mut_ptr())
            };
            assert_eq!(asked, 0);
            pages.iter().filter(|page| **page & 1 == 1).count()
        };
        region.populate().expect("pages");
        assert_eq!(resident(), 1024);
        // SAFETY: inside the region, and nobody else has it.
        unsafe { region.give_back(HUGE_BYTES - 1..2 * HUGE_BYTES) };
        assert_eq!(resident(), 512);
        // SAFETY: as above.
        assert_eq!(unsafe { region.base().add(HUGE_BYTES).read() }, 0);
        let path = std::env::temp_dir().join(format!("region-back-{}", std::process::id()));
        let file = Region::shared_file(&path, 5000).expect("a file");
        assert!(!file.can_give_back(), "its space is reserved, and stays so");
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_shared_file_keeps_its_bytes_and_has_one_owner() {
        let path = std::env::temp_dir().join(format!("region-test-{}", std::process::id()));
        let region = Region::shared_file(&path, 5000).expect("a file");
        assert_eq!(region.len_bytes(), HUGE_BYTES);
        assert!(region.base().as_ptr().align_offset(HUGE_BYTES) == 0);
        assert!(Region::shared_file(&path, 5000).is_err(), "locked");
        // SAFETY: inside the mapping, and nobody else has it.
        unsafe { region.base().add(4999).write(7) };
        drop(region);
        let region = Region::shared_file(&path, 3 << 20).expect("again");
        assert_eq!(region.len_bytes(), 2 * HUGE_BYTES);
        // SAFETY: as above.
        assert_eq!(unsafe { region.base().add(4999).read() }, 7);
        std::fs::remove_file(&path).expect("removed");
    }
}
