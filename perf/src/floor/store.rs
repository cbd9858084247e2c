//! The payload memory of a floor's server.

use super::Exchange;
use anyhow::{Result, anyhow};
use trefoil_poll::Loan;
use trefoil_poll::ram::Ram;
use trefoil_sys::region::Region;

/// Memory of the same kind as the memory of a memory backend, used in the cheapest way. Replies are sent without a copy, and
/// received bytes go directly to their place.
pub struct Store {
    /// The memory for writes. None if all of it is lent for reads.
    ram: Option<Ram>,
    all: Option<Loan>,
    /// The size of the part of the store that one exchange uses.
    piece_bytes: usize,
    pieces: usize,
    random: u64,
}

impl Store {
    /// Returns an empty store: all exchanges use the same bytes, which stay in the cache.
    pub fn none() -> Self {
        Self { ram: None, all: None, piece_bytes: 0, pieces: 0, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Creates a store of `len_bytes` for exchanges of `x`. Every page is present and was read recently, as in a gateway that has
    /// run for some time.
    ///
    /// # Errors
    /// The error of mmap(2).
    pub fn new(len_bytes: usize, x: Exchange) -> Result<Self> {
        let piece_bytes = x.fetched_bytes.max(x.stored_bytes);
        if piece_bytes == 0 || len_bytes < piece_bytes {
            return Ok(Self::none());
        }
        let mut ram = Ram::new(Region::anonymous(len_bytes)?);
        let (len, mut bytes) = (ram.len_bytes(), vec![0; piece_bytes]);
        let pieces = len as usize / piece_bytes;
        crate::pattern::fill(&mut bytes, 1);
        for piece in 0..pieces {
            ram.write((piece * piece_bytes) as u64, &bytes)?;
        }
        let mut this = Self { piece_bytes, pieces, ..Self::none() };
        if x.fetched_bytes > 0 {
            let whole =
                u32::try_from(len).map_err(|_| anyhow!("floor: a store of {len} bytes is too large"))?;
            let all = ram.lend(0, whole)?;
            std::hint::black_box(all.iter().step_by(64).fold(0u8, |sum, b| sum ^ b));
            this.all = Some(all);
        }
        this.ram = Some(ram);
        Ok(this)
    }

    /// Returns the start of a random piece, or 0 without a store.
    pub fn pick(&mut self) -> usize {
        if self.pieces == 0 {
            return 0;
        }
        // xorshift64 is random enough for the choice of a place.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random as usize % self.pieces * self.piece_bytes
    }

    /// Returns the piece at `at`, to be sent, or `None` if the store lends nothing.
    pub fn piece(&self, at: usize) -> Option<&[u8]> {
        self.all.as_ref()?.get(at..at + self.piece_bytes)
    }

    /// Writes the pieces of one read into the store, each at its place. Does nothing if the store takes no writes.
    ///
    /// # Errors
    /// An error if a place lies past the end.
    pub fn put<'a>(&mut self, pieces: impl IntoIterator<Item = (u64, &'a [u8])>) -> Result<()> {
        match &mut self.ram {
            Some(ram) => Ok(ram.write_all(pieces)?),
            None => Ok(()),
        }
    }

    /// Returns `len` bytes at `at`, to be filled from the socket, or `None` if the store has no such place.
    pub fn place(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        self.ram.as_mut()?.range_mut(at as u64, len as u64).ok()
    }

    /// Returns whether the store has memory to send from.
    pub fn lends(&self) -> bool {
        self.all.is_some()
    }

    /// Returns whether received bytes go into the store.
    pub fn keeps(&self) -> bool {
        self.ram.is_some() && self.all.is_none()
    }
}
