//! What the server of a floor keeps its payload in.

use super::Exchange;
use anyhow::{Result, anyhow};
use trefoil_poll::Loan;
use trefoil_poll::ram::Ram;
use trefoil_sys::region::Region;

/// Memory of the same kind as a memory backend's, used the cheapest way: replies are sent from where
/// the bytes are, and what comes is put where it belongs.
pub struct Store {
    /// To write to, unless all of it is lent to be read.
    ram: Option<Ram>,
    all: Option<Loan>,
    /// Each exchange concerns a piece of this size.
    piece_bytes: usize,
    pieces: usize,
    random: u64,
}

impl Store {
    /// No store: what is sent and what comes stays hot in the cache.
    pub fn none() -> Self {
        Self { ram: None, all: None, piece_bytes: 0, pieces: 0, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// `len_bytes` of memory for exchanges of `x`, every page of which is really there and was read lately, as that of a
    /// gateway has been which runs longer than this.
    ///
    /// # Errors
    /// What mmap(2) says.
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

    /// Where a random piece starts; 0 without a store.
    pub fn pick(&mut self) -> usize {
        if self.pieces == 0 {
            return 0;
        }
        // xorshift64: the places need no better randomness.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random as usize % self.pieces * self.piece_bytes
    }

    /// The piece at `at`, to be sent; `None` if there is nothing to send from.
    pub fn piece(&self, at: usize) -> Option<&[u8]> {
        self.all.as_ref()?.get(at..at + self.piece_bytes)
    }

    /// Puts what came in one read, each piece given with its place, where it belongs, if there is such a place.
    ///
    /// # Errors
    /// A place past the end.
    pub fn put<'a>(&mut self, pieces: impl IntoIterator<Item = (u64, &'a [u8])>) -> Result<()> {
        match &mut self.ram {
            Some(ram) => Ok(ram.write_all(pieces)?),
            None => Ok(()),
        }
    }

    /// `len` bytes at `at`, to be filled from the socket; `None` if there is no place for them.
    pub fn place(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        self.ram.as_mut()?.range_mut(at as u64, len as u64).ok()
    }

    /// Whether there is anything to send from.
    pub fn lends(&self) -> bool {
        self.all.is_some()
    }

    /// Whether what comes is put anywhere.
    pub fn keeps(&self) -> bool {
        self.ram.is_some() && self.all.is_none()
    }
}
