//! A core's counters about itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one core. Only the core writes them, and any thread may read them. The counters have their own cache
/// lines, so that the writes cost nothing while no other thread reads.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CoreMetrics {
    turns: AtomicU64,
    busy_turns: AtomicU64,
    sleeps: AtomicU64,
    busy_ns: AtomicU64,
}

/// The counters at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreSample {
    /// Turns of the loop.
    pub turns: u64,
    /// Turns with work.
    pub busy_turns: u64,
    /// Times that the core slept.
    pub sleeps: u64,
    /// Nanoseconds spent in turns with work.
    pub busy_ns: u64,
}

impl CoreMetrics {
    /// Returns the current counters. They are read one by one, so they may be a turn apart.
    pub fn sample(&self) -> CoreSample {
        CoreSample {
            turns: self.turns.load(Ordering::Relaxed),
            busy_turns: self.busy_turns.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
            busy_ns: self.busy_ns.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn count_turn(&self, busy: bool, lasted: Duration) {
        add(&self.turns, 1);
        if busy {
            add(&self.busy_turns, 1);
            add(&self.busy_ns, lasted.as_nanos() as u64);
        }
    }

    pub(crate) fn count_sleep(&self) {
        add(&self.sleeps, 1);
    }
}

/// Adds without an atomic read-modify-write, because there is only one writer.
fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}
