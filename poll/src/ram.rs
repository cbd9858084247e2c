//! Memory as a device: bytes at offsets, with checked bounds, and zero-copy loans of these bytes.
//!
//! What it is: the store of a memory backend. One core owns the store, and other cores reach it by mailbox. No two
//! threads therefore touch a byte at the same time. In a [`Region::shared_file`], the contents outlive the process.
//!
//! A [`Loan`] lets a reader send bytes without a copy. Lent bytes can't change: a write that overlaps a lent
//! stripe is refused ([`RamError::Lent`]). The writer tries again once the loan has ended. A loan's bytes are
//! therefore plain `&[u8]`.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use trefoil_sys::region::Region;

/// The size of a stripe. Loans are counted per stripe, so a write waits for a loan only if both touch the
/// same stripe. A stripe of 64 KiB costs 4 bytes of counters, and a read of 128 KiB counts in two or three
/// stripes.
const STRIPE_SHIFT: u32 = 16;

/// Writes of at least this size bypass the caches. Such data is seldom read soon, and a store that misses the
/// cache would first fetch the bytes that it overwrites.
const STREAM_BYTES: usize = 4096;

/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;
/// Cache lines of a new loan that are prefetched. We measured 8, 16, 32 and 64 lines with reads of 4 KiB: 8 lines
/// gained the most.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LINES_AHEAD: usize = 8;

/// A store of the bytes `0..len_bytes()`.
pub struct Ram {
    /// The store lies in its own box, so that its address is stable while [`Loan`]s point to it.
    store: NonNull<Store>,
}

struct Store {
    region: Region,
    /// For each stripe, the number of loans that overlap it.
    lent: Box<[AtomicU32]>,
}

/// Bytes of a [`Ram`] that can't change until this loan is dropped. The drop ends the loan.
#[must_use = "a loan keeps others from writing"]
pub struct Loan {
    store: NonNull<Store>,
    at: u64,
    len: u32,
}

/// The reason for which an access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamError {
    /// The access reaches past the end.
    OutOfRange {
        /// First byte of the access.
        at: u64,
        /// Length of the access in bytes.
        len: u64,
        /// Length of the memory in bytes.
        end: u64,
    },
    /// The access would change lent bytes.
    Lent,
}

impl std::fmt::Display for RamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfRange { at, len, end } => write!(f, "{len} bytes at {at} reach past {end}"),
            Self::Lent => write!(f, "lent, and not to be changed"),
        }
    }
}

impl std::error::Error for RamError {}

// SAFETY: the store's memory belongs to the process, and its counters are atomic.
unsafe impl Send for Ram {}
// SAFETY: `&Ram` reads bytes that nothing changes without `&mut Ram`, and counts loans atomically.
unsafe impl Sync for Ram {}
// SAFETY: a loan only reads bytes that nothing changes while the loan is counted. Its drop, on any thread, is
// an atomic decrement that releases those reads.
unsafe impl Send for Loan {}
// SAFETY: `&Loan` gives only `&[u8]` to bytes that nothing changes.
unsafe impl Sync for Loan {}

impl Store {
    fn range(&self, at: u64, len: u64) -> Result<Range<usize>, RamError> {
        let end = self.region.len_bytes() as u64;
        match at.checked_add(len) {
            Some(stop) if stop <= end => Ok(at as usize..stop as usize),
            _ => Err(RamError::OutOfRange { at, len, end }),
        }
    }

    /// Returns the counters of a range that lies in the memory.
    fn stripes(&self, range: &Range<usize>) -> &[AtomicU32] {
        let last = range.end.max(range.start + 1) - 1;
        self.lent.get(range.start >> STRIPE_SHIFT..=last >> STRIPE_SHIFT).unwrap_or_default()
    }

    fn is_lent(&self, range: &Range<usize>) -> bool {
        // Acquire: the reads of ended loans come before the writes after this check.
        self.stripes(range).iter().any(|count| count.load(Ordering::Acquire) > 0)
    }

    /// Prefetches the first lines of a range. The processor notices the direction and fetches the rest during the read.
    /// A prefetch of more lines was slower, because the prefetches then wait for one another.
    #[inline]
    fn fetch_ahead(&self, range: &Range<usize>) {
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = range;
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        for line in range.clone().step_by(LINE).take(LINES_AHEAD) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            let at = self.region.base().as_ptr().wrapping_add(line);
            // SAFETY: a hint, which faults nowhere. SSE is part of x86_64.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
        }
    }

    fn at(&self, range: &Range<usize>) -> *mut u8 {
        self.region.base().as_ptr().wrapping_add(range.start)
    }
}

impl Ram {
    /// Takes ownership of `region` and leaves its bytes unchanged.
    pub fn new(region: Region) -> Self {
        let stripes = region.len_bytes().div_ceil(1 << STRIPE_SHIFT);
        let lent = (0..stripes).map(|_| AtomicU32::new(0)).collect();
        Self { store: NonNull::from(Box::leak(Box::new(Store { region, lent }))) }
    }

    fn store(&self) -> &Store {
        // SAFETY: made in `new`, freed only in `drop`, and never borrowed mutably.
        unsafe { self.store.as_ref() }
    }

    /// Returns the number of bytes.
    pub fn len_bytes(&self) -> u64 {
        self.store().region.len_bytes() as u64
    }

    /// Copies the bytes from `at` on into `into`.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`]; nothing is copied.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), RamError> {
        let store = self.store();
        let range = store.range(at, into.len() as u64)?;
        // SAFETY: the range lies in the region, which is mapped and initialised; only `&mut self`
        // writes it, as the region is ours alone (a shared file is locked against other processes).
        into.copy_from_slice(unsafe { std::slice::from_raw_parts(store.at(&range), range.len()) });
        Ok(())
    }

    /// Lends the bytes from `at` on.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`].
    pub fn lend(&self, at: u64, len: u32) -> Result<Loan, RamError> {
        let store = self.store();
        let range = store.range(at, u64::from(len))?;
        // Relaxed is enough, since a writer runs on this thread, or gets the memory from this thread later.
        for count in store.stripes(&range) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // The owner of the loan handles some more commands before it sends the bytes, so a prefetch has time.
        store.fetch_ahead(&range);
        Ok(Loan { store: self.store, at, len })
    }

    /// Returns whether loans would make a write of the range fail.
    pub fn is_lent(&self, at: u64, len: u64) -> bool {
        let store = self.store();
        store.range(at, len).is_ok_and(|range| store.is_lent(&range))
    }

    /// Copies `from` to `at`.
    ///
    /// # Errors
    /// [`RamError`]; nothing is copied.
    pub fn write(&mut self, at: u64, from: &[u8]) -> Result<(), RamError> {
        let to = self.range_mut(at, from.len() as u64)?;
        if from.len() >= STREAM_BYTES {
            stream(to, from)
        } else {
            to.copy_from_slice(from)
        }
        Ok(())
    }

    /// Copies each `from` to its `at`, with one fence for all.
    ///
    /// # Errors
    /// [`RamError`] of the first write that fails. The writes before it are complete.
    pub fn write_all<'a>(&mut self, all: impl IntoIterator<Item = (u64, &'a [u8])>) -> Result<(), RamError> {
        let _once = (FENCING.get() == Fencing::Each).then(DeferredFences::begin);
        all.into_iter().try_for_each(|(at, from)| self.write(at, from))
    }

    /// Zeroes `len` bytes from `at` on.
    ///
    /// # Errors
    /// [`RamError`]; nothing is zeroed.
    pub fn zero(&mut self, at: u64, len: u64) -> Result<(), RamError> {
        self.range_mut(at, len)?.fill(0);
        Ok(())
    }

    /// Returns whether [`give_back`](Self::give_back) has an effect; see [`Region::can_give_back`].
    #[inline]
    pub fn gives_back(&self) -> bool {
        self.store().region.can_give_back()
    }

    /// Gives the whole pages within `len` bytes from `at` on back to the kernel. These pages then read as zeros, and
    /// get new memory on the next write. The other bytes of the range stay unchanged.
    ///
    /// # Errors
    /// [`RamError`]; nothing is given back.
    pub fn give_back(&mut self, at: u64, len: u64) -> Result<(), RamError> {
        let store = self.store();
        let range = store.range(at, len)?;
        if store.is_lent(&range) {
            return Err(RamError::Lent);
        }
        // SAFETY: the range lies in the region. No loan overlaps it, none can be made during this borrow, and `&mut self`
        // excludes every other access.
        unsafe { store.region.give_back(range) };
        Ok(())
    }

    /// Returns `len` bytes from `at` on, to be changed in place.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn range_mut(&mut self, at: u64, len: u64) -> Result<&mut [u8], RamError> {
        let store = self.store();
        let range = store.range(at, len)?;
        if store.is_lent(&range) {
            return Err(RamError::Lent);
        }
        // SAFETY: the range lies in the region. No loan overlaps it, none can be made during this
        // borrow, and `&mut self` excludes every other access.
        Ok(unsafe { std::slice::from_raw_parts_mut(store.at(&range), range.len()) })
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        if self.store().lent.iter().any(|count| count.load(Ordering::Acquire) > 0) {
            // The memory must outlive its loans, so it is leaked.
            return;
        }
        // SAFETY: from `Box::leak`, freed once; without loans nothing else points to it.
        drop(unsafe { Box::from_raw(self.store.as_ptr()) });
    }
}

impl Loan {
    fn range(&self) -> Range<usize> {
        self.at as usize..self.at as usize + self.len as usize
    }

    fn store(&self) -> &Store {
        // SAFETY: a store is not freed while a loan of it is counted.
        unsafe { self.store.as_ref() }
    }
}

impl Deref for Loan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let range = self.range();
        // SAFETY: `lend` checked the range, and nothing changes it while this loan is counted.
        unsafe { std::slice::from_raw_parts(self.store().at(&range), range.len()) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let (store, range) = (self.store, self.range());
        // SAFETY: as in `store`. Once the last counter is down the store may be freed by another
        // thread, and nothing touches it after that: the slice is not looked at again.
        let stripes: *const [AtomicU32] = unsafe { store.as_ref() }.stripes(&range);
        for at in 0..stripes.len() {
            // SAFETY: inside the slice, and this counter still counts this loan.
            unsafe { &*stripes.cast::<AtomicU32>().add(at) }.fetch_sub(1, Ordering::Release);
        }
    }
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loan({:#x}, {} bytes)", self.at, self.len)
    }
}

/// How the calling thread orders its streaming stores before the stores that announce them to other threads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fencing {
    /// A fence follows each write.
    Each,
    /// No fence is pending; the next streaming write makes a fence pending.
    Deferred,
    /// A fence is pending.
    Pending,
}

thread_local! {
    static FENCING: Cell<Fencing> = const { Cell::new(Fencing::Each) };
}

/// A guard for the turn loop of a core: while the guard lives, [`publish`] runs one pending fence for all writes of
/// this thread, instead of a fence after each write. On the machines that we measured, a write of 4 KiB takes a
/// fifth of the time.
///
/// Why deferral is sound: streaming stores are weakly ordered only for other processors; this processor sees its own
/// stores. Only plain stores can overtake them, since a locked instruction drains them as a fence does (Intel SDM vol.
/// 3, §12.3.1). Every lock, channel and reference count therefore orders them. The mailboxes are the exception, because
/// plain stores publish their rings. So the mailboxes call [`publish`] first.
pub(crate) struct DeferredFences(PhantomData<*const ()>);

impl DeferredFences {
    pub(crate) fn begin() -> Self {
        FENCING.set(Fencing::Deferred);
        Self(PhantomData)
    }
}

impl Drop for DeferredFences {
    fn drop(&mut self) {
        publish();
        FENCING.set(Fencing::Each);
    }
}

/// Orders this thread's earlier writes before its later stores.
#[inline]
pub(crate) fn publish() {
    if FENCING.get() == Fencing::Pending {
        fence_streams();
        FENCING.set(Fencing::Deferred);
    }
}

#[inline]
fn fence_streams() {
    // SAFETY: SSE2 is part of x86_64.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// Copies `from`, of the same length, with stores that bypass the caches.
#[cfg(target_arch = "x86_64")]
fn stream(to: &mut [u8], from: &[u8]) {
    #[cfg(not(miri))]
    use std::arch::x86_64::_mm_stream_si128;
    use std::arch::x86_64::{__m128i, _mm_loadu_si128};
    // Miri has no streaming stores. An aligned store touches the same bytes.
    #[cfg(miri)]
    use std::arch::x86_64::_mm_store_si128 as _mm_stream_si128;
    if !to.as_ptr().cast::<__m128i>().is_aligned() || to.len() != from.len() {
        return to.copy_from_slice(from);
    }
    let (lines, rest) = to.as_chunks_mut::<LINE>();
    let (from_lines, from_rest) = from.as_chunks::<LINE>();
    for (to, from) in lines.iter_mut().zip(from_lines) {
        let (to, from) = (to.as_mut_ptr().cast::<__m128i>(), from.as_ptr().cast::<__m128i>());
        // SAFETY: both point to `LINE` bytes, four vectors; `to` is aligned for them, as its slice is and
        // a line is a multiple of a vector. SSE2 is part of x86_64.
        unsafe {
            let line = [0, 1, 2, 3].map(|at| _mm_loadu_si128(from.add(at)));
            _mm_stream_si128(to, line[0]);
            _mm_stream_si128(to.add(1), line[1]);
            _mm_stream_si128(to.add(2), line[2]);
            _mm_stream_si128(to.add(3), line[3]);
        }
    }
    rest.copy_from_slice(from_rest);
    match FENCING.get() {
        // Streaming stores are weakly ordered. The fence puts them before the stores that announce the bytes to
        // other threads.
        Fencing::Each => fence_streams(),
        Fencing::Deferred | Fencing::Pending => FENCING.set(Fencing::Pending),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn stream(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_within_bounds() {
        let mut ram = Ram::new(Region::anonymous(2 << 20).expect("memory"));
        let (end, mut got) = (ram.len_bytes(), [0; 4]);
        ram.write_all([(0, &b"ef"[..]), (2, b"gh")]).expect("inside");
        ram.read(0, &mut got).expect("inside");
        assert_eq!(&got, b"efgh");
        assert!(ram.write_all([(0, &b"xy"[..]), (end, b"z")]).is_err());
        ram.write(end - 4, b"abcd").expect("inside");
        ram.zero(end - 3, 2).expect("inside");
        ram.read(end - 4, &mut got).expect("inside");
        assert_eq!(&got, b"a\0\0d");
        assert_eq!(ram.write(end - 3, b"abcd"), Err(RamError::OutOfRange { at: end - 3, len: 4, end }));
        assert!(ram.read(u64::MAX, &mut got).is_err());
        assert!(ram.zero(1, u64::MAX).is_err());
        assert!(ram.lend(end - 3, 4).is_err());
    }

    #[test]
    fn what_is_lent_does_not_change() {
        let mut ram = Ram::new(Region::anonymous(2 << 20).expect("memory"));
        let stripe = 1 << STRIPE_SHIFT;
        ram.write(stripe - 2, b"abcd").expect("inside");
        let loan = ram.lend(stripe - 2, 4).expect("inside");
        let other = ram.lend(stripe, 2).expect("inside");
        assert_eq!((&*loan, &*other), (&b"abcd"[..], &b"cd"[..]));
        assert_eq!(ram.write(0, b"x"), Err(RamError::Lent));
        assert_eq!(ram.zero(stripe, 1), Err(RamError::Lent));
        ram.write(2 * stripe, b"x").expect("not lent");
        drop(loan);
        ram.write(stripe - 1, b"x").expect("back again");
        assert!(ram.is_lent(2 * stripe - 1, 1));
        drop(ram);
        assert_eq!(&*other, b"cd", "a loan outlives its memory's owner");
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no madvise(2)")]
    fn what_is_given_back_reads_as_zeros_and_is_never_lent() {
        let mut ram = Ram::new(Region::on_ordinary_pages(4 << 20).expect("memory"));
        assert!(ram.gives_back());
        let (page, mut got) = (4096, [0; 3]);
        ram.range_mut(0, 4 << 20).expect("inside").fill(7);
        let loan = ram.lend(2 * page, 16).expect("inside");
        assert_eq!(ram.give_back(0, 4 << 20), Err(RamError::Lent));
        assert_eq!(&*loan, &[7; 16]);
        drop(loan);
        // Only whole pages are given back.
        ram.give_back(page - 1, 2 * page).expect("not lent");
        ram.read(page - 2, &mut got).expect("inside");
        assert_eq!(got, [7, 7, 0]);
        ram.read(2 * page - 1, &mut got).expect("inside");
        assert_eq!(got, [0, 7, 7]);
        ram.give_back(page, 10).expect("less than a page");
        ram.write(page, b"new").expect("not lent");
        ram.read(page, &mut got).expect("inside");
        assert_eq!(&got, b"new");
        assert!(ram.give_back(0, (4 << 20) + 1).is_err());
    }

    #[test]
    fn a_loan_may_end_elsewhere() {
        let mut ram = Ram::new(Region::anonymous(2 << 20).expect("memory"));
        let loan = ram.lend(0, 1 << STRIPE_SHIFT).expect("inside");
        std::thread::spawn(move || assert!(loan.iter().all(|&b| b == 0))).join().expect("ends");
        ram.write(0, b"x").expect("back again");
        assert!(!ram.is_lent(0, ram.len_bytes()));
    }

    /// Only the counters order reads on one thread and writes on another. A race detector (Miri) checks that order.
    #[test]
    fn a_write_that_waited_for_a_loan_comes_after_its_last_read() {
        let mut ram = Ram::new(Region::anonymous(2 << 20).expect("memory"));
        let (lend, loans) = std::sync::mpsc::sync_channel::<(u8, Loan)>(4);
        let reader = std::thread::spawn(move || {
            for (value, loan) in loans {
                assert!(loan.iter().all(|&byte| byte == value), "{loan:?} of {value}");
            }
        });
        let rounds = if cfg!(miri) { 40 } else { 2000 };
        for round in 0..rounds {
            // The loan crosses the end of a stripe, so that two counters count it.
            let at = (1 << STRIPE_SHIFT) - 8;
            while let Err(error) = ram.write(at, &[round as u8; 16]) {
                assert_eq!(error, RamError::Lent);
                std::thread::yield_now();
            }
            for (at, len) in [(at, 16), (at + 8, 8)] {
                lend.send((round as u8, ram.lend(at, len).expect("inside"))).expect("the reader lives");
            }
        }
        drop((lend, ram));
        reader.join().expect("the reader ended");
    }

    #[test]
    fn memory_may_go_while_its_last_loan_ends_elsewhere() {
        for _ in 0..if cfg!(miri) { 5 } else { 200 } {
            let mut ram = Ram::new(Region::anonymous(2 << 20).expect("memory"));
            ram.write((1 << STRIPE_SHIFT) - 1, b"ab").expect("inside");
            let loan = ram.lend((1 << STRIPE_SHIFT) - 1, 2).expect("inside");
            let borrower = std::thread::spawn(move || assert_eq!(&*loan, b"ab"));
            drop(ram);
            borrower.join().expect("the borrower ended");
        }
    }

    #[test]
    fn large_writes_arrive_whole_at_any_alignment() {
        let mut ram = Ram::new(Region::anonymous(2 << 20).expect("memory"));
        let from: Vec<u8> = (0..20_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut got = vec![0; from.len() + 2];
        for at in [1_u64, 16, 63, 64, 4096] {
            for len in [STREAM_BYTES - 1, STREAM_BYTES, STREAM_BYTES + 17, from.len()] {
                ram.zero(0, 1 << 16).expect("inside");
                ram.write(at, &from[1..len]).expect("inside");
                ram.read(at - 1, &mut got[..len + 1]).expect("inside");
                assert_eq!((got[0], &got[1..len], got[len]), (0, &from[1..len], 0), "{len} at {at}");
            }
        }
    }
}
