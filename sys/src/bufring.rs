//! Receive buffers that the kernel picks when bytes arrive, so that an idle socket holds no buffer
//! (io_uring_register(2), IORING_REGISTER_PBUF_RING, Linux 5.19).

use crate::region::Region;
use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

const PAGE_BYTES: usize = 4096;

/// The page-aligned array that passes buffers to the kernel.
struct Entries {
    base: NonNull<BufRingEntry>,
    layout: Layout,
    count: u16,
}

impl Entries {
    fn new(count: u16) -> Self {
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        let layout = Layout::from_size_align(bytes.next_multiple_of(PAGE_BYTES), PAGE_BYTES)
            .unwrap_or(Layout::new::<[u8; PAGE_BYTES]>());
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(memory.cast()) else { handle_alloc_error(layout) };
        Self { base, layout, count }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.base.as_ptr().cast(), self.layout) };
    }
}

/// A group of equal buffers. Drop it only after its ring, with no receive outstanding.
pub struct BufRing {
    entries: Entries,
    memory: Region,
    buf_bytes: u32,
    tail: u16,
    group: u16,
}

// SAFETY: the memory is not tied to a thread; the kernel reads the entries through the ring only.
unsafe impl Send for BufRing {}

impl BufRing {
    /// Registers `count` buffers (a power of two, at most 32768) of `buf_bytes` as `group` of `ring`.
    ///
    /// # Errors
    /// An error of mmap(2) or io_uring_register(2).
    pub(crate) fn new(ring: &IoUring, group: u16, count: u16, buf_bytes: u32) -> io::Result<Self> {
        let memory = Region::anonymous(usize::from(count) * buf_bytes as usize)?;
        let entries = Entries::new(count);
        register(ring, &entries, group)?;
        let mut this = Self { entries, memory, buf_bytes, tail: 0, group };
        (0..count).for_each(|id| this.give_back(id));
        Ok(this)
    }

    /// Returns the group's number, for a receive.
    pub fn group(&self) -> u16 {
        self.group
    }

    /// Returns the first `len` bytes of buffer `id`.
    ///
    /// # Safety
    /// A completion must have named `id` with at least `len` bytes, and the buffer must not be given back
    /// while the slice is in use.
    pub unsafe fn bytes<'a>(&self, id: u16, len: usize) -> &'a [u8] {
        assert!(id < self.entries.count && len <= self.buf_bytes as usize, "buffer {id}, {len} bytes");
        let offset = usize::from(id) * self.buf_bytes as usize;
        // SAFETY: inside the region by the check; mapped memory is initialised, and the kernel leaves
        // a picked buffer alone until it is given back.
        unsafe { std::slice::from_raw_parts(self.memory.base().as_ptr().add(offset), len) }
    }

    /// Lets the kernel use buffer `id` again.
    pub fn give_back(&mut self, id: u16) {
        assert!(id < self.entries.count, "buffer {id} of {}", self.entries.count);
        let index = usize::from(self.tail & (self.entries.count - 1));
        let offset = usize::from(id) * self.buf_bytes as usize;
        // SAFETY: `index < count`; the kernel does not read an entry past the published tail. The tail
        // itself lies in the unused field of entry 0, which the setters leave alone.
        unsafe {
            let entry = &mut *self.entries.base.as_ptr().add(index);
            entry.set_addr(self.memory.base().as_ptr().add(offset) as u64);
            entry.set_len(self.buf_bytes);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is an aligned u16 of the ring's memory, which lives as long as `self`.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.base.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Returns whether this kernel supports buffer rings.
pub(crate) fn supported(ring: &IoUring) -> bool {
    let entries = Entries::new(1);
    let there = register(ring, &entries, 0).is_ok();
    if there {
        // On failure the kernel would keep the address, but never use it without a receive.
        let _ = ring.submitter().unregister_buf_ring(0);
    }
    there
}

fn register(ring: &IoUring, entries: &Entries, group: u16) -> io::Result<()> {
    // SAFETY: page-aligned memory for that many entries; the owner keeps it for as long as the ring.
    unsafe {
        ring.submitter().register_buf_ring_with_flags(entries.base.as_ptr() as u64, entries.count, group, 0)
    }
}
