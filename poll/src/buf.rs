//! Owned handles to payload memory.

use crate::lost::{self, Lost};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// The number of an arena in the process. The arena's home in [`lost`] has the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArenaId(pub u16);

/// The only handle to one block of an [`Arena`](crate::Arena): (arena, offset), with its address.
///
/// The holder may read and write the block. A holder that passes the `Buf` to a driver, another core or another machine
/// gives up that right. So nobody can touch a block that is in flight to the kernel. The block's memory is always
/// initialised, though it may hold an earlier owner's bytes.
///
/// [`Arena::free`](crate::Arena::free) takes the block back on its home core. Dropping a `Buf` is a bug; see
/// [`lost`].
#[must_use = "a buffer must go back to its arena"]
pub struct Buf {
    ptr: NonNull<u8>,
    len: u32,
    order: u8,
    arena: ArenaId,
    offset: u64,
}

// SAFETY: a `Buf` is the only handle to its block and the arena keeps the memory mapped while any block is allocated,
// so moving it to another thread moves exclusive access with it.
unsafe impl Send for Buf {}
// SAFETY: `&Buf` gives only `&[u8]` to memory that nobody can write while the `Buf` is borrowed.
unsafe impl Sync for Buf {}

impl Buf {
    /// Wraps a block. `ptr` must be valid for `len` bytes until the block is freed.
    pub(crate) fn from_block(ptr: NonNull<u8>, len: u32, order: u8, arena: ArenaId, offset: u64) -> Self {
        Self { ptr, len, order, arena, offset }
    }

    /// Returns the block's arena. Devices store their own keys (registered buffer index, lkey) per arena.
    pub fn arena(&self) -> ArenaId {
        self.arena
    }

    /// Returns the block's start, in bytes from the arena's start.
    pub fn offset_bytes(&self) -> u64 {
        self.offset
    }

    /// Returns the block's address, for a driver that holds the `Buf` while the kernel or a device uses it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Returns the block's size, as a power of two of the arena's smallest block.
    pub(crate) fn order(&self) -> u8 {
        self.order
    }

    /// Takes the handle apart without the drop check.
    pub(crate) fn into_block(self) -> (u64, u8) {
        let block = (self.offset, self.order);
        std::mem::forget(self);
        block
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes until the block is freed (see `from_block`), and this is
        // the only handle, so nobody writes during the borrow.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len as usize) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        lost::report(self.arena.0, Lost::Buf { arena: self.arena.0, offset: self.offset, order: self.order });
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({}+{:#x}, {} bytes)", self.arena.0, self.offset, self.len)
    }
}
