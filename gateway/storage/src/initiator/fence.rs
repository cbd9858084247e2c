//! The time at which a lost association is fenced, and the time of the next attempt to connect.
//!
//! An association is fenced when its writes can't take effect any more.

use std::collections::VecDeque;
use std::time::Duration;
use trefoil_poll::Instant;

/// The largest number of associations that await their fence. If there are more, the new association takes the place of
/// the latest one. The fence of the new association then covers both.
const FENCES: usize = 16;

/// The rule by which writes of a lost association may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceRule {
    /// Writes may be sent again once the controller was reset over a working admin queue. Otherwise, writes may be sent
    /// again after the keep-alive bound: see [`keep_alive_bound`].
    KeepAliveBound,
    /// Writes may be sent again at once, as in Linux 6.12. Use this only for a load generator that owns its namespace.
    Immediate,
}

/// Returns the time after which a disconnected controller has stopped and has quiesced its commands: 2 × KATO, or 3 ×
/// KATO with traffic-based keep alive, plus CQT (NVMe base 2.1 §9.6.2.3, TP4129).
///
/// The time starts when this host detects the loss, which is after the last command that the controller can have
/// received. `kas_ms` is the granularity to which the controller rounds KATO up (KAS).
pub const fn keep_alive_bound(kato_ms: u32, kas_ms: u32, traffic_based: bool, cqt_ms: u32) -> Duration {
    let kato_ms = match kas_ms {
        0 => kato_ms as u64,
        kas_ms => (kato_ms as u64).next_multiple_of(kas_ms as u64),
    };
    let periods = if traffic_based { 3 } else { 2 };
    Duration::from_millis(periods * kato_ms + cqt_ms as u64)
}

/// Lost associations that are not fenced yet, in order of time.
pub(super) struct Fences {
    due: VecDeque<(u32, Instant)>,
}

impl Fences {
    pub fn new() -> Self {
        Self { due: VecDeque::with_capacity(FENCES) }
    }

    /// Fences `epoch` at `at`, but not before the associations that were lost earlier. A reset in one association
    /// proves nothing about the earlier associations.
    pub fn add(&mut self, epoch: u32, at: Instant) {
        let at = self.due.back().map_or(at, |(_, before)| at.max(*before));
        if self.due.len() == FENCES {
            self.due.pop_back();
        }
        self.due.push_back((epoch, at));
    }

    /// Returns the latest epoch that is fenced by `now`.
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

/// Exponential backoff. A bound doubles with each try, and each pause is a random time between half the bound and the
/// bound.
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

    /// Returns the next pause, with jitter from `random`, so that the gateways of a rack don't all reconnect at the
    /// same moment.
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
