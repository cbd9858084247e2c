//! Payload memory of one core: a buddy allocator over one pinned region.

use crate::buf::{ArenaId, Buf};
use crate::lost::{self, Lost};
use std::ptr::NonNull;
use trefoil_sys::region::Region;

/// The smallest block: one page, so that every block suits O_DIRECT.
pub const MIN_BLOCK_BYTES: usize = 4096;
/// The largest block: 2 MiB, so that no block crosses a huge page.
pub const MAX_BLOCK_BYTES: usize = MIN_BLOCK_BYTES << MAX_ORDER;

const MAX_ORDER: u8 = 9;
const ORDERS: usize = MAX_ORDER as usize + 1;
/// The number of free blocks per order that stay unmerged, because the next request is likely to want the
/// same size.
const MAGAZINE_LEN: usize = 128;
const NIL: u32 = u32::MAX;
/// Set in `state` for the first page of a free block; the low bits are its order.
const FREE: u8 = 0x80;

/// A power-of-two allocator for one core's payload memory. Only one core uses an arena: another core returns a [`Buf`]
/// to that core by mailbox.
pub struct Arena {
    id: ArenaId,
    region: Option<Region>,
    base: NonNull<u8>,
    pages: u32,
    free_pages: u32,
    /// Heads of the doubly linked free lists, one per order.
    heads: [u32; ORDERS],
    next: Box<[u32]>,
    prev: Box<[u32]>,
    state: Box<[u8]>,
    magazines: [Vec<u32>; ORDERS],
}

// SAFETY: `base` points into `region`, which the arena owns and which is not tied to a thread.
unsafe impl Send for Arena {}

impl Arena {
    /// Takes over `region`, whose length is rounded down to whole 2 MiB blocks.
    ///
    /// # Panics
    /// Panics if the region is smaller than one 2 MiB block or is not aligned to 2 MiB.
    pub fn new(id: ArenaId, region: Region) -> Self {
        let base = region.base();
        assert!(
            (base.as_ptr() as usize).is_multiple_of(MAX_BLOCK_BYTES),
            "arena {} is not aligned to 2 MiB",
            id.0
        );
        let blocks = region.len_bytes() / MAX_BLOCK_BYTES;
        assert!(blocks > 0, "arena {} is smaller than 2 MiB", id.0);
        let pages = (blocks << MAX_ORDER) as u32;
        lost::open(id.0);
        let mut arena = Self {
            id,
            region: Some(region),
            base,
            pages,
            free_pages: 0,
            heads: [NIL; ORDERS],
            next: vec![NIL; pages as usize].into(),
            prev: vec![NIL; pages as usize].into(),
            state: vec![0; pages as usize].into(),
            magazines: std::array::from_fn(|_| Vec::with_capacity(MAGAZINE_LEN)),
        };
        for block in (0..blocks as u32).rev() {
            arena.push(MAX_ORDER, block << MAX_ORDER);
        }
        arena.free_pages = pages;
        arena
    }

    /// Returns the arena's number.
    pub fn id(&self) -> ArenaId {
        self.id
    }

    /// Returns the address and the length in bytes of the whole region, for a device that registers the
    /// region.
    pub fn span(&self) -> (*mut u8, usize) {
        (self.base.as_ptr(), self.pages as usize * MIN_BLOCK_BYTES)
    }

    /// Returns the number of free bytes. An allocation of fewer bytes can still fail, because the free bytes may not be
    /// contiguous.
    pub fn free_bytes(&self) -> usize {
        self.free_pages as usize * MIN_BLOCK_BYTES
    }

    /// Returns the size of the arena in bytes.
    pub fn capacity_bytes(&self) -> usize {
        self.pages as usize * MIN_BLOCK_BYTES
    }

    /// Allocates a block of at least `len_bytes`. Returns `None` if no such block is free, or if `len_bytes`
    /// exceeds 2 MiB. Never calls the system's allocator.
    pub fn alloc(&mut self, len_bytes: usize) -> Option<Buf> {
        if len_bytes > MAX_BLOCK_BYTES {
            return None;
        }
        let pages = len_bytes.div_ceil(MIN_BLOCK_BYTES).max(1).next_power_of_two();
        let order = pages.trailing_zeros() as u8;
        let page = match self.magazines[order as usize].pop() {
            Some(page) => page,
            None => self.take(order)?,
        };
        self.free_pages -= 1 << order;
        Some(self.block(page, order))
    }

    /// Takes a block back.
    ///
    /// # Panics
    /// Panics if the block belongs to another arena.
    pub fn free(&mut self, buf: Buf) {
        assert!(buf.arena() == self.id, "{buf:?} went back to arena {}", self.id.0);
        debug_assert!(buf.order() <= MAX_ORDER);
        let (offset, order) = buf.into_block();
        self.free_block((offset / MIN_BLOCK_BYTES as u64) as u32, order);
    }

    /// Frees the blocks whose handles were dropped: this is the repair of that bug in a release build. Returns the next
    /// lost token of this home that is not a block.
    pub fn repair_next(&mut self) -> Option<Lost> {
        while let Some(lost) = lost::take(self.id.0) {
            match lost {
                Lost::Buf { offset, order, .. } => {
                    self.free_block((offset / MIN_BLOCK_BYTES as u64) as u32, order);
                }
                Lost::Request { .. } => return Some(lost),
            }
        }
        None
    }

    fn block(&self, page: u32, order: u8) -> Buf {
        let offset = page as usize * MIN_BLOCK_BYTES;
        // SAFETY: `page < pages`, so the block lies inside the region that `base` starts.
        let ptr = unsafe { self.base.add(offset) };
        Buf::from_block(ptr, (MIN_BLOCK_BYTES << order) as u32, order, self.id, offset as u64)
    }

    fn free_block(&mut self, page: u32, order: u8) {
        self.free_pages += 1 << order;
        if self.magazines[order as usize].len() < MAGAZINE_LEN {
            self.magazines[order as usize].push(page);
        } else {
            self.merge(page, order);
        }
    }

    /// Takes a block from the free lists and splits a larger block if needed. Empties the magazines before it
    /// returns `None`.
    fn take(&mut self, order: u8) -> Option<u32> {
        if let Some(page) = self.split(order) {
            return Some(page);
        }
        for kept in 0..=MAX_ORDER {
            while let Some(page) = self.magazines[kept as usize].pop() {
                self.merge(page, kept);
            }
        }
        self.split(order)
    }

    fn split(&mut self, order: u8) -> Option<u32> {
        let from = (order..=MAX_ORDER).find(|&o| self.heads[o as usize] != NIL)?;
        let page = self.heads[from as usize];
        self.unlink(from, page);
        for smaller in (order..from).rev() {
            self.push(smaller, page + (1 << smaller));
        }
        Some(page)
    }

    fn merge(&mut self, mut page: u32, mut order: u8) {
        while order < MAX_ORDER {
            let buddy = page ^ (1 << order);
            if self.state[buddy as usize] != FREE | order {
                break;
            }
            self.unlink(order, buddy);
            page = page.min(buddy);
            order += 1;
        }
        self.push(order, page);
    }

    fn push(&mut self, order: u8, page: u32) {
        let head = self.heads[order as usize];
        self.next[page as usize] = head;
        self.prev[page as usize] = NIL;
        if head != NIL {
            self.prev[head as usize] = page;
        }
        self.heads[order as usize] = page;
        self.state[page as usize] = FREE | order;
    }

    fn unlink(&mut self, order: u8, page: u32) {
        let (prev, next) = (self.prev[page as usize], self.next[page as usize]);
        match prev {
            NIL => self.heads[order as usize] = next,
            _ => self.next[prev as usize] = next,
        }
        if next != NIL {
            self.prev[next as usize] = prev;
        }
        self.state[page as usize] = 0;
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        while self.repair_next().is_some() {}
        if self.free_pages != self.pages {
            // A handle of a block is still alive. The memory must outlive the handle, so the region is
            // leaked.
            std::mem::forget(self.region.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(id: u16, mib: usize) -> Arena {
        Arena::new(ArenaId(id), Region::anonymous(mib << 20).expect("memory for a test"))
    }

    #[test]
    fn blocks_are_disjoint_and_merge_again() {
        let mut a = arena(200, 4);
        let mut held = Vec::new();
        for len in [1, 4096, 4097, 65536, 128 << 10, 1 << 20] {
            held.push(a.alloc(len).expect("room"));
        }
        let mut spans: Vec<_> = held.iter().map(|b| (b.offset_bytes(), b.len() as u64)).collect();
        spans.sort_unstable();
        assert!(spans.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{spans:?}");
        for buf in held {
            a.free(buf);
        }
        assert_eq!(a.free_bytes(), a.capacity_bytes());
        let two: Vec<_> = (0..2).map(|_| a.alloc(2 << 20).expect("everything merged")).collect();
        assert!(a.alloc(1).is_none());
        two.into_iter().for_each(|b| a.free(b));
    }

    /// One thread owns a block at a time, and the bytes move with the block. A race detector (Miri) checks the
    /// order of accesses.
    #[test]
    fn a_block_filled_on_another_core_comes_home_by_mailbox() {
        use crate::mailbox::channel;
        let mut a = arena(203, 2);
        let (mut out, mut there) = channel::<Buf>(2);
        let (mut back, mut home) = channel::<Buf>(2);
        let rounds = if cfg!(miri) { 30 } else { 3000 };
        let other = std::thread::spawn(move || {
            for round in 0..rounds {
                let mut buf = loop {
                    match there.pop() {
                        Some(buf) => break buf,
                        None => std::thread::yield_now(),
                    }
                };
                let last = buf.len() - 1;
                (buf[0], buf[last]) = (round as u8, !round as u8);
                assert!(back.push(buf).is_ok(), "no more are under way than there is room for");
            }
        });
        for round in 0..rounds {
            // Each size takes its turn, so that blocks split and merge while others travel.
            let kept = a.alloc(MIN_BLOCK_BYTES << (round as usize % 9)).expect("room");
            assert!(out.push(a.alloc(MIN_BLOCK_BYTES << ((round as usize + 4) % 9)).expect("room")).is_ok());
            let buf = loop {
                match home.pop() {
                    Some(buf) => break buf,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!((buf[0], buf[buf.len() - 1]), (round as u8, !round as u8));
            a.free(kept);
            a.free(buf);
        }
        other.join().expect("the other core ended");
        assert_eq!(a.free_bytes(), a.capacity_bytes());
    }

    #[test]
    fn memory_outlives_its_arena_while_a_block_is_out() {
        let mut a = arena(204, 2);
        let mut buf = a.alloc(1).expect("room");
        drop(a);
        buf.fill(7);
        assert!(buf.iter().all(|&byte| byte == 7));
        std::mem::forget(buf);
    }

    #[test]
    fn too_large_is_refused() {
        assert!(arena(201, 4).alloc(MAX_BLOCK_BYTES + 1).is_none());
    }

    #[test]
    #[should_panic(expected = "dropped instead of being given back")]
    #[cfg(debug_assertions)]
    fn a_dropped_buffer_panics() {
        drop(arena(202, 2).alloc(1));
    }
}
