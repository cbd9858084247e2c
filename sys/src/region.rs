//! Memory for payloads: anonymous, 2 MiB-aligned, on hugepages where there are any.

use std::io;
use std::ptr::NonNull;

const HUGE_BYTES: usize = 2 << 20;

/// A private, zeroed, readable and writable mapping, aligned to 2 MiB, unmapped on drop.
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    map: NonNull<libc::c_void>,
    map_len: usize,
    huge: bool,
}

// SAFETY: the mapping belongs to the process, not to a thread; `Region` only gives its address.
unsafe impl Send for Region {}

impl Region {
    /// Maps `len_bytes`, rounded up to 2 MiB: on reserved hugepages if enough are free, else on
    /// ordinary pages with a request for transparent ones.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn anonymous(len_bytes: usize) -> io::Result<Self> {
        let len = len_bytes.max(1).next_multiple_of(HUGE_BYTES);
        if let Ok(map) = map(len, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB | libc::MAP_POPULATE) {
            return Ok(Self { base: map.cast(), len, map, map_len: len, huge: true });
        }
        let map_len = len + HUGE_BYTES;
        let map = map(map_len, libc::MAP_NORESERVE)?;
        let skip = map.as_ptr().align_offset(HUGE_BYTES);
        // SAFETY: `skip < HUGE_BYTES`, and the mapping is that much longer than `len`.
        let base: NonNull<u8> = unsafe { map.cast::<u8>().add(skip) };
        // SAFETY: the range is ours. Failure only means that there are no transparent hugepages.
        unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(Self { base, len, map, map_len, huge: false })
    }

    /// Its start, aligned to 2 MiB.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its length in bytes, a multiple of 2 MiB.
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// Whether it lies on reserved hugepages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }
}

fn map(len: usize, flags: libc::c_int) -> io::Result<NonNull<libc::c_void>> {
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
        // SAFETY: exactly what `map` returned, unmapped once; `Region`'s owner made sure that no
        // pointer into it is used any more.
        unsafe { libc::munmap(self.map.as_ptr(), self.map_len) };
    }
}
