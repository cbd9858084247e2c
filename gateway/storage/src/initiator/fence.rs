//! When a lost association's writes can't land any more, and when to try to connect again.

use std::collections::VecDeque;
use std::time::Duration;
use trefoil_poll::Instant;

/// Associations that may await their fence at a time; older ones join the next.
const FENCES: usize = 16;

/// When writes that were under way in a lost association may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceRule {
    /// Once the controller was reset while its admin queue still worked, or else after the keep-alive
    /// bound: see [`keep_alive_bound`].
    KeepAliveBound,
    /// At once, as Linux 6.12 does. Only for a load generator that owns its namespace.
    Immediate,
}

/// The time after which a controller that can't hear us has stopped, and has quiesced its commands:
/// 2 × KATO, or 3 × KATO with traffic-based keep alive, plus CQT (NVMe base 2.1 §9.6.2.3, TP4129). It
/// counts from the loss as we saw it, which is after the last command that the controller can have
/// heard. `kas_ms` is the granularity to which the controller rounds KATO up (KAS).
pub const fn keep_alive_bound(kato_ms: u32, kas_ms: u32, traffic_based: bool, cqt_ms: u32) -> Duration {
    let kato_ms = match kas_ms {
        0 => kato_ms as u64,
        kas_ms => (kato_ms as u64).next_multiple_of(kas_ms as u64),
    };
    let periods = if traffic_based { 3 } else { 2 };
    Duration::from_millis(periods * kato_ms + cqt_ms as u64)
}

/// Lost associations that are not fenced yet, by time.
pub(super) struct Fences {
    due: VecDeque<(u32, Instant)>,
}

impl Fences {
    pub fn new() -> Self {
        Self { due: VecDeque::with_capacity(FENCES) }
    }

    /// `epoch` is fenced at `at`, but not before those that were lost before it: what is known of one says nothing of them.
    pub fn add(&mut self, epoch: u32, at: Instant) {
        let at = self.due.back().map_or(at, |(_, before)| at.max(*before));
        if self.due.len() == FENCES {
            self.due.pop_back();
        }
        self.due.push_back((epoch, at));
    }

    /// The latest epoch that is fenced by `now`.
    pub fn expire(&mut self, now: Instant) -> Option<u32> {
        let mut fenced = None;
        while let Some((epoch, _)) = self.due.pop_front_if(|(_, at)| *at <= now) {
            fenced = Some(epoch);
        }
        fenced
    }

    pub fn next(&self) -> Option<Instant> {
        self.due.front().map(|(_, at)| *at)
    }
}

/// Exponential backoff: each pause is random between half and the whole of a bound that doubles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, tries: 0 }
    }

    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// The next pause, with jitter from `random` so that a rack's gateways don't come back in step.
    pub fn next(&mut self, random: u64) -> Duration {
        let bound = self.min.saturating_mul(1 << self.tries.min(20)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        let half = bound / 2;
        half + half.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_bound_follows_the_keep_alive_kind_and_granularity() {
        assert_eq!(keep_alive_bound(5000, 0, false, 0), ms(10_000));
        assert_eq!(keep_alive_bound(5000, 0, true, 250), ms(15_250));
        assert_eq!(keep_alive_bound(5000, 2000, false, 0), ms(12_000), "KATO is rounded up to 6 s");
    }

    #[test]
    fn backoff_doubles_within_its_bounds() {
        let mut backoff = Backoff::new(ms(100), ms(1000));
        let pauses: Vec<_> = (0..6).map(|_| backoff.next(u64::MAX)).collect();
        for (pause, bound) in pauses.iter().zip([100, 200, 400, 800, 1000, 1000]) {
            assert!(*pause <= ms(bound) && *pause > ms(bound * 9 / 10), "{pause:?} of {bound}");
        }
        backoff.reset();
        assert_eq!(backoff.next(0), ms(50));
    }

    #[test]
    fn a_later_association_does_not_fence_early() {
        let mut fences = Fences::new();
        fences.add(1, Instant::from_ns(10));
        fences.add(2, Instant::from_ns(20));
        assert_eq!(fences.expire(Instant::from_ns(9)), None);
        assert_eq!(fences.expire(Instant::from_ns(10)), Some(1));
        assert_eq!(fences.next(), Some(Instant::from_ns(20)));
        for epoch in 3..40 {
            fences.add(epoch, Instant::from_ns(u64::from(epoch) * 10));
        }
        assert_eq!(
            fences.expire(Instant::from_ns(389)),
            Some(16),
            "the 39th stands for those that joined it"
        );
        fences.add(40, Instant::from_ns(1));
        assert_eq!(fences.expire(Instant::from_ns(389)), None);
        assert_eq!(fences.expire(Instant::from_ns(390)), Some(40));
    }
}
