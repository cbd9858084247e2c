//! Faults that the real driver can inject into itself: short transfers and needless cancellations.

use crate::rand::Rng;

/// The rate of each fault, per thousand operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The seed of the choices. The same seed gives the same choices for the same operations.
    pub seed: u64,
    /// Operations that ask the kernel for fewer bytes than wanted.
    pub short_per_mille: u16,
    /// Operations that are cancelled right after submission, and started again.
    pub cancel_per_mille: u16,
}

/// A fault injector, which may be off.
pub(super) struct Injector(Option<(Faults, Rng)>);

const PAGE_BYTES: u32 = 4096;

impl Injector {
    pub fn new(faults: Option<Faults>) -> Self {
        Self(faults.map(|faults| (faults, Rng::new(faults.seed))))
    }

    /// Returns `len`, or a smaller length that is not zero.
    pub fn cap_len(&mut self, len: usize) -> usize {
        let Some((faults, rng)) = &mut self.0 else { return len };
        if len > 1 && rng.below(1000) < u64::from(faults.short_per_mille) {
            1 + rng.below(len as u64 - 1) as usize
        } else {
            len
        }
    }

    /// Does the same as [`cap_len`](Self::cap_len).
    pub fn cap(&mut self, len: u32) -> u32 {
        self.cap_len(len as usize) as u32
    }

    /// Returns `len`, or fewer whole pages, which suit O_DIRECT too.
    pub fn cap_pages(&mut self, len: u32) -> u32 {
        if len > PAGE_BYTES { (self.cap(len) / PAGE_BYTES).max(1) * PAGE_BYTES } else { len }
    }

    /// Returns whether to cancel the next operation.
    pub fn cancels(&mut self) -> bool {
        match &mut self.0 {
            Some((faults, rng)) => rng.below(1000) < u64::from(faults.cancel_per_mille),
            None => false,
        }
    }
}
