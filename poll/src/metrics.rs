//! What a core counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one core, written by it alone and read by anyone. Alone on their cache lines, so that
/// the writes cost nothing while nobody reads.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CoreMetrics {
    turns: AtomicU64,
    busy_turns: AtomicU64,
    sleeps: AtomicU64,
    busy_ns: AtomicU64,
}

/// Counters at one time.
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
    /// The counters now. They are read one by one, so they may be a turn apart.
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

/// Plain addition: there is one writer.
fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}
