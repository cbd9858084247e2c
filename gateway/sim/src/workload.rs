//! The operations of the servers: verified reads, writes, flushes and others. One generator draws them all.

use std::collections::VecDeque;

use trefoil_poll::rand::Rng;

use crate::model::{Job, Kind, Model};

/// Largest operation, in bytes.
pub const MAX_BYTES: usize = 256 << 10;

/// An operation hangs if at least this many operations have begun or ended since it began.
const HANGS: u64 = 600;

/// Number of recent writes of a LUN whose places the workload remembers.
const LATELY: usize = 2;

/// The work of one seed. All cores that do this work share it.
pub struct Workload {
    /// The oracle of all reads.
    pub model: Model,
    rng: Rng,
    /// Operations that have not begun.
    left: u64,
    /// Position of the final read of all blocks: the LUN and its next block.
    verify: Option<(usize, u64)>,
    /// True if bits were flipped on links. Broken PDUs then have a cause.
    pub bits_flip: bool,
    /// True while the gateway serves.
    pub serving: bool,
    /// A LUN that gets half of the operations, in addition to its share of the other half.
    pub hot: Option<usize>,
    /// For each LUN, the places of its last writes: the first block and the number of blocks.
    lately: Vec<VecDeque<(u64, u64)>>,
}

impl Workload {
    /// Returns a workload of `operations` operations on LUNs with the given numbers of blocks.
    pub fn new(rng: Rng, operations: u64, blocks: &[u64]) -> Self {
        Self {
            model: Model::new(blocks),
            rng,
            left: operations,
            verify: None,
            bits_flip: false,
            serving: false,
            hot: None,
            lately: blocks.iter().map(|_| VecDeque::with_capacity(LATELY)).collect(),
        }
    }

    /// Returns whether every operation has begun.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// Starts the final read of all blocks.
    pub fn start_verify(&mut self) {
        self.verify = Some((0, 0));
    }

    /// Returns whether the final read has started.
    pub fn is_verifying(&self) -> bool {
        self.verify.is_some()
    }

    /// Returns whether all reads of the final read have begun.
    pub fn is_verified(&self) -> bool {
        self.verify.is_some_and(|(lun, _)| lun >= self.model.luns())
    }

    /// Returns whether [`take`](Self::take) may return an operation soon.
    pub fn wants_more(&self) -> bool {
        self.serving && (self.left > 0 || (self.verify.is_some() && !self.is_verified()))
    }

    /// Returns the next operation on a LUN for which `may` returns true. Returns None if there is no such operation now.
    pub fn take(&mut self, may: impl Fn(usize) -> bool) -> Option<Job> {
        if !self.serving {
            return None;
        }
        if self.verify.is_some() {
            return self.next_verify(&may);
        }
        if self.left == 0 {
            return None;
        }
        // While an operation hangs, other operations begin slowly, so that some of them are left when the hanging operation ends.
        let hangs = self.model.first_under_way().is_some_and(|first| first + HANGS < self.model.last_begun());
        if hangs && self.rng.below(16) > 0 {
            return None;
        }
        let job = (0..3).find_map(|_| self.try_next(&may))?;
        self.left -= 1;
        Some(job)
    }

    fn try_next(&mut self, may: &impl Fn(usize) -> bool) -> Option<Job> {
        let rng = &mut self.rng;
        let any = rng.below(self.model.luns() as u64) as usize;
        let lun = self.hot.filter(|_| rng.below(2) == 0).unwrap_or(any);
        if !may(lun) {
            return None;
        }
        let size = self.model.blocks(lun);
        let max = (MAX_BYTES / self.model.block_bytes(lun)) as u64;
        let kind = match rng.below(100) {
            0..42 => Kind::Read,
            42..72 => Kind::Write { durable: false },
            72..80 => Kind::Write { durable: true },
            80..86 => Kind::Flush,
            86..94 => Kind::Zero { durable: rng.below(2) == 0, deallocate: rng.below(2) == 0 },
            _ => Kind::Deallocate,
        };
        if kind == Kind::Flush {
            return self.model.begin(lun, kind, 0, 0);
        }
        let most = match rng.below(20) {
            0..15 => 8,
            15..19 => 64,
            _ => max,
        };
        let blocks = (1 + rng.below(most.min(max))).min(size);
        // Some operations go to a small area, so that they write its blocks again and again.
        let span = if rng.below(3) == 0 { (size - blocks).min(128) } else { size - blocks };
        let lba = rng.below(span + 1);
        // Other operations use the place of a recent write again, while late data may still land there. Memory LUNs have no late
        // data.
        let lately = &mut self.lately[lun];
        let rare = if kind.writes() { 2 } else { 4 };
        let again = !self.model.is_shared(lun) && !lately.is_empty() && rng.below(rare) == 0;
        let (lba, blocks) = match again {
            true => {
                let (first, most) = lately[rng.below(lately.len() as u64) as usize];
                (first, blocks.min(most).min(size.saturating_sub(first)))
            }
            false => (lba, blocks),
        };
        if blocks == 0 {
            return None;
        }
        let job = self.model.begin(lun, kind, lba, blocks)?;
        if matches!(kind, Kind::Write { .. }) {
            if lately.len() == LATELY {
                lately.pop_front();
            }
            lately.push_back((lba, blocks));
        }
        Some(job)
    }

    fn next_verify(&mut self, may: &impl Fn(usize) -> bool) -> Option<Job> {
        let (lun, lba) = self.verify?;
        if lun >= self.model.luns() {
            return None;
        }
        if !may(lun) {
            return None;
        }
        let size = self.model.blocks(lun);
        if lba >= size || !self.model.is_open(lun) {
            self.verify = Some((lun + 1, 0));
            return self.next_verify(may);
        }
        let blocks = ((MAX_BYTES / self.model.block_bytes(lun)) as u64).min(size - lba);
        let job = self.model.begin(lun, Kind::Read, lba, blocks)?;
        self.verify = Some((lun, lba + blocks));
        Some(job)
    }
}
