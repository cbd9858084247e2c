//! Deadlines of connections and controllers.
//!
//! A deadline that moves with each event would cost an arm and a cancel each time. So an owner has at most one timer,
//! which fires at a deadline that it once had; the owner then says what its deadline is now and is armed again.

use trefoil_poll::Instant;
use trefoil_poll::wheel::{TimerKey, TimerWheel};

/// Whose timer fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// A connection's, by queue.
    Queue(u32),
    /// A controller's, by its place in the table.
    Ctrlr(u32),
}

const CTRLR: u64 = 1 << 32;

/// A wheel with room for one timer an owner.
pub struct Timers {
    wheel: TimerWheel,
}

impl Timers {
    /// Room for `owners` timers of 40 bytes.
    pub fn new(owners: usize) -> Self {
        Self { wheel: TimerWheel::new(owners, Instant::from_ns(0)) }
    }

    /// Arms a timer of an owner that has none armed; so there is always room.
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

    /// The next owner whose timer is due.
    pub fn expire(&mut self, now: Instant) -> Option<Timer> {
        let token = self.wheel.expire(now)?;
        Some(if token & CTRLR != 0 { Timer::Ctrlr(token as u32) } else { Timer::Queue(token as u32) })
    }

    /// When [`expire`](Self::expire) must run next.
    pub fn next(&self) -> Option<Instant> {
        self.wheel.next()
    }
}
