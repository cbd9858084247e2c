//! An allocator for tests that checks cores: after its start-up, a core must neither allocate nor free memory.
//!
//! What it is: [`Guard`], for `#[global_allocator]` in a test program. It passes every call to the system's allocator,
//! counts the calls from running cores, and keeps the stack of the first offence.

use crate::core::is_core_running;
use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// See the module.
pub struct Guard {
    offences: AtomicUsize,
    first: OnceLock<(&'static str, usize, Backtrace)>,
}

thread_local! {
    /// Set while this thread captures a stack, since the capture itself allocates.
    static NOTING: Cell<bool> = const { Cell::new(false) };
}

impl Guard {
    /// Creates a guard without offences.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self { offences: AtomicUsize::new(0), first: OnceLock::new() }
    }

    /// Returns the number of times that running cores allocated or freed memory.
    pub fn offences(&self) -> usize {
        self.offences.load(Ordering::Relaxed)
    }

    /// Checks that no running core allocated or freed memory.
    ///
    /// # Panics
    /// Panics if a running core allocated or freed memory. The message has the stack of the first offence.
    pub fn assert_clean(&self) {
        let offences = self.offences();
        if let Some((what, bytes, stack)) = self.first.get() {
            panic!(
                "cores allocated or freed memory {offences} times in their turns; the first time, a core {what} \
                 {bytes} bytes:\n{stack}"
            );
        }
        assert_eq!(offences, 0, "cores allocated or freed memory in their turns");
    }

    fn note(&self, what: &'static str, bytes: usize) {
        if !is_core_running() || NOTING.replace(true) {
            return;
        }
        self.offences.fetch_add(1, Ordering::Relaxed);
        if self.first.get().is_none() {
            self.first.get_or_init(|| (what, bytes, Backtrace::force_capture()));
        }
        NOTING.set(false);
    }
}

// SAFETY: passes every call to the system's allocator.
unsafe impl GlobalAlloc for Guard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note("allocated", layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.note("allocated", layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.note("reallocated", new_size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        self.note("freed", layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}
