//! Statistics of each LUN's commands: counts by kind of command, and a histogram of latency.
//!
//! Each core has counters of its own, and control adds up the counts of all cores. A LUN's counts only grow until the
//! LUN is gone.

use crate::topology::LunId;

/// Buckets of a [`Latency`]: [`STEPS`] for each power of two from 2⁸ ns on. The last bucket has no upper bound.
pub const BUCKETS: usize = 208;
/// Buckets for each power of two. Each of them is an eighth of that power of two wide, but at least 2⁸ ns.
const STEPS: u64 = 8;
/// LUNs that one turn examines for a survey. The counts of each take 168 B.
const LOOKED_AT: usize = 512;
/// The unit of latency is 2⁸ ns; this is the exponent.
const UNIT_SHIFT: u32 = 8;

/// Commands of one kind that succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpStats {
    /// The number of commands.
    pub ops: u64,
    /// The bytes that the commands moved, or the lengths of the ranges that the commands named.
    pub bytes: u64,
    /// Sum of the times from arrival to the backend's answer, in nanoseconds.
    pub latency_ns: u64,
    /// The longest of these times.
    pub max_ns: u64,
    /// The shortest of these times; 0 if there was no command.
    pub min_ns: u64,
}

impl OpStats {
    #[inline]
    fn count(&mut self, bytes: u64, ns: u64) {
        self.min_ns = if self.ops == 0 { ns } else { self.min_ns.min(ns) };
        self.max_ns = self.max_ns.max(ns);
        self.ops += 1;
        self.bytes += bytes;
        self.latency_ns += ns;
    }

    fn add(&mut self, other: &Self) {
        if other.ops == 0 {
            return;
        }
        self.min_ns = if self.ops == 0 { other.min_ns } else { self.min_ns.min(other.min_ns) };
        self.max_ns = self.max_ns.max(other.max_ns);
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.latency_ns += other.latency_ns;
    }
}

/// The kind of a command, by its effect on the LUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write Zeroes, and each range of Dataset Management's deallocate.
    Trim,
    /// Flush.
    Flush,
}

/// The counts of one LUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LunStats {
    /// Reads.
    pub read: OpStats,
    /// Writes.
    pub write: OpStats,
    /// See [`Kind::Trim`].
    pub trim: OpStats,
    /// Flushes, which move no bytes.
    pub flush: OpStats,
    /// Commands that failed at the backend.
    pub errors: u64,
}

impl LunStats {
    /// Counts a command of this kind that succeeded.
    #[inline]
    pub fn count(&mut self, kind: Kind, bytes: u64, ns: u64) {
        let op = match kind {
            Kind::Read => &mut self.read,
            Kind::Write => &mut self.write,
            Kind::Trim => &mut self.trim,
            Kind::Flush => &mut self.flush,
        };
        op.count(bytes, ns);
    }

    /// Adds the counts of another core.
    pub fn add(&mut self, other: &Self) {
        self.read.add(&other.read);
        self.write.add(&other.write);
        self.trim.add(&other.trim);
        self.flush.add(&other.flush);
        self.errors += other.errors;
    }
}

/// The number of commands in each range of latency, over all kinds of command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency(pub [u64; BUCKETS]);

impl Default for Latency {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Latency {
    /// Adds the counts of another core.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(to, from)| *to += from);
    }

    /// Returns the first value in nanoseconds above bucket `at`; `None` for the last bucket.
    pub fn above_ns(at: usize) -> Option<u64> {
        let next = at as u64 + 1;
        if next >= BUCKETS as u64 {
            return None;
        }
        let units = match next / STEPS {
            0 => next,
            octave => (STEPS + next % STEPS) << (octave - 1),
        };
        Some(units << UNIT_SHIFT)
    }
}

/// Returns the bucket of a latency.
#[inline]
fn bucket(ns: u64) -> usize {
    let units = ns >> UNIT_SHIFT;
    let at = match units.checked_ilog2() {
        Some(log) if log >= 3 => u64::from(log - 2) * STEPS + ((units >> (log - 3)) & (STEPS - 1)),
        _ => units,
    };
    (at as usize).min(BUCKETS - 1)
}

/// The counters of all LUNs on one core.
pub struct LunCounters {
    stats: Box<[LunStats]>,
    /// The buckets of all LUNs in a single allocation, which the kernel zeroes on first use. So a LUN without I/O costs
    /// no memory.
    latency: Box<[u64]>,
}

impl LunCounters {
    /// Creates the counters of `luns` LUNs: 168 B for each, and 1,664 B more for each LUN with I/O.
    pub fn new(luns: usize) -> Self {
        Self { stats: vec![LunStats::default(); luns].into(), latency: vec![0; luns * BUCKETS].into() }
    }

    /// Returns the counts of a LUN.
    pub fn get(&self, lun: LunId) -> Option<&LunStats> {
        self.stats.get(lun.0 as usize)
    }

    /// Counts a command that succeeded.
    #[inline]
    pub fn done(&mut self, lun: LunId, kind: Kind, bytes: u64, ns: u64) {
        let at = lun.0 as usize;
        if let Some(stats) = self.stats.get_mut(at) {
            stats.count(kind, bytes, ns);
        }
        if let Some(count) = self.latency.get_mut(at * BUCKETS + bucket(ns)) {
            *count += 1;
        }
    }

    /// Counts a command that failed.
    pub fn failed(&mut self, lun: LunId) {
        if let Some(stats) = self.stats.get_mut(lun.0 as usize) {
            stats.errors += 1;
        }
    }

    /// Clears the counts of a LUN number that now belongs to another LUN.
    pub fn forget(&mut self, lun: LunId) {
        let at = lun.0 as usize;
        // Leave the memory of a LUN without counts untouched.
        if let Some(stats) = self.stats.get_mut(at).filter(|stats| **stats != LunStats::default()) {
            *stats = LunStats::default();
            self.latency.iter_mut().skip(at * BUCKETS).take(BUCKETS).for_each(|count| *count = 0);
        }
    }

    /// Adds rows of used LUNs to `into`, from `into.next` on, until `into` is full or [`LOOKED_AT`] LUNs are examined.
    pub fn survey(&self, into: &mut LunSurvey) {
        let from = into.next.take().unwrap_or(0);
        let end = from as usize + LOOKED_AT;
        let used = self.stats.iter().enumerate().take(end).skip(from as usize);
        for (at, stats) in used.filter(|(_, stats)| **stats != LunStats::default()) {
            if into.rows.len() == into.rows.capacity() {
                into.next = Some(at as u32);
                return;
            }
            let mut latency = Latency::default();
            let counts = self.latency.get(at * BUCKETS..(at + 1) * BUCKETS).unwrap_or_default();
            latency.0.iter_mut().zip(counts).for_each(|(to, from)| *to = *from);
            into.rows.push(LunRow { lun: LunId(at as u32), stats: *stats, latency });
        }
        into.next = (end < self.stats.len()).then_some(end as u32);
    }
}

/// One core's counts of its LUNs. Control gives the survey room for as many rows as one turn may copy (a row is 1.8
/// KiB). Control asks again from `next` on until `next` is `None`.
#[derive(Debug, Default)]
pub struct LunSurvey {
    /// LUNs that were used. The core adds no more than the vector's capacity.
    pub rows: Vec<LunRow>,
    /// The number of the first LUN to examine. The core sets this to the LUN at which to continue, or to `None` at the
    /// end.
    pub next: Option<u32>,
}

/// One core's counts of one LUN.
#[derive(Clone, Debug)]
pub struct LunRow {
    /// The LUN.
    pub lun: LunId,
    /// Its counts.
    pub stats: LunStats,
    /// Its latencies.
    pub latency: Latency,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_an_eighth_wide() {
        let mut below = 0;
        for at in 0..BUCKETS - 1 {
            let above = Latency::above_ns(at).expect("a bound");
            assert_eq!((bucket(below), bucket(above - 1), bucket(above)), (at, at, at + 1));
            assert!(above - below <= (below / 8).max(256), "{below} to {above}");
            below = above;
        }
        assert_eq!(Latency::above_ns(BUCKETS - 1), None);
        // The open bucket begins beyond a minute. By then, every command has timed out.
        assert!(below > 60_000_000_000 && bucket(u64::MAX) == BUCKETS - 1);
    }

    #[test]
    fn counters_are_listed_in_pieces_and_forgotten() {
        let mut luns = LunCounters::new(4);
        luns.done(LunId(1), Kind::Write, 4096, 3000);
        luns.done(LunId(1), Kind::Write, 512, 1000);
        luns.failed(LunId(3));
        let mut survey = LunSurvey { rows: Vec::with_capacity(1), next: None };
        luns.survey(&mut survey);
        assert_eq!((survey.rows[0].lun, survey.next), (LunId(1), Some(3)));
        let write = OpStats { ops: 2, bytes: 4608, latency_ns: 4000, max_ns: 3000, min_ns: 1000 };
        assert_eq!(survey.rows[0].stats, LunStats { write, ..LunStats::default() });
        assert_eq!(survey.rows[0].latency.0.iter().sum::<u64>(), 2);
        assert_eq!((survey.rows[0].latency.0[bucket(3000)], survey.rows[0].latency.0[bucket(1000)]), (1, 1));
        survey.rows.clear();
        luns.survey(&mut survey);
        assert_eq!((survey.rows[0].lun, survey.rows[0].stats.errors, survey.next), (LunId(3), 1, None));
        luns.forget(LunId(1));
        survey.rows.clear();
        luns.survey(&mut survey);
        assert_eq!((survey.rows[0].lun, survey.next), (LunId(3), None));
        luns.done(LunId(1), Kind::Read, 1, 1000);
        assert_eq!(luns.latency.iter().sum::<u64>(), 1);
    }

    #[test]
    fn sums_keep_the_extremes_of_those_that_counted() {
        let (mut a, mut b) = (LunStats::default(), LunStats::default());
        b.count(Kind::Flush, 0, 7);
        a.add(&b);
        a.add(&LunStats::default());
        b.count(Kind::Flush, 0, 9);
        a.add(&b);
        assert_eq!((a.flush.ops, a.flush.min_ns, a.flush.max_ns, a.flush.latency_ns), (3, 7, 9, 23));
    }
}
