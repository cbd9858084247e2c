//! Deadlines of connections and controllers.
//!
//! Each event moves a deadline. If the timer moved with its deadline, each event would arm one timer and cancel another. So an
//! owner has at most one timer. The timer fires at the deadline that the owner had when it armed the timer. The owner then arms
//! the timer again for its current deadline.

use trefoil_poll::Instant;
use trefoil_poll::wheel::{TimerKey, TimerWheel};

/// The owner of a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// A connection, by its queue.
    Queue(u32),
    /// A controller, by its index in the table.
    Ctrlr(u32),
}

const CTRLR: u64 = 1 << 32;

/// A timer wheel with room for one timer for each owner.
pub struct Timers {
    wheel: TimerWheel,
}

impl Timers {
    /// Allocates room for `owners` timers of 40 bytes.
    pub fn new(owners: usize) -> Self {
        Self { wheel: TimerWheel::new(owners, Instant::from_ns(0)) }
    }

    /// Arms a timer. There is always room, since the owner has no armed timer.
    pub fn arm(&mut self, at: Instant, timer: Timer) -> Option<TimerKey> {
        let token = match timer {
            Timer::Queue(queue) => u64::from(queue),
            Timer::Ctrlr(ctrlr) => CTRLR | u64::from(ctrlr),
        };
        let key = self.wheel.arm(at, token);
        debug_assert!(key.is_some(), "{timer:?} had a timer already");
        key
    }

    /// Disarms a timer.
    pub fn cancel(&mut self, key: TimerKey) {
        self.wheel.cancel(key);
    }

    /// Returns the next owner whose timer is due.
    pub fn expire(&mut self, now: Instant) -> Option<Timer> {
        let token = self.wheel.expire(now)?;
        Some(if token & CTRLR != 0 { Timer::Ctrlr(token as u32) } else { Timer::Queue(token as u32) })
    }

    /// Returns the time at which [`expire`](Self::expire) must run next.
    pub fn next(&self) -> Option<Instant> {
        self.wheel.next()
    }
}
