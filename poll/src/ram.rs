//! Memory as a device: bytes at offsets, with bounds checked.
//!
//! What it is: the store of a memory backend. One core owns it; others reach it by mailbox, so that no
//! byte is ever touched by two threads. Over [`Region::shared_file`] its contents outlive the process.

use std::ops::Range;
use trefoil_sys::region::Region;

/// Bytes `0..len_bytes()`.
pub struct Ram {
    region: Region,
}

/// An access reaches past the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// First byte of the access.
    pub at: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where the memory ends.
    pub end: u64,
}

impl std::fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {} reach past {}", self.len, self.at, self.end)
    }
}

impl std::error::Error for OutOfRange {}

impl Ram {
    /// Takes `region` over. Its bytes are what they were.
    pub fn new(region: Region) -> Self {
        Self { region }
    }

    /// How many bytes there are.
    pub fn len_bytes(&self) -> u64 {
        self.region.len_bytes() as u64
    }

    /// Copies the bytes from `at` on into `into`.
    ///
    /// # Errors
    /// [`OutOfRange`], and nothing was copied.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        into.copy_from_slice(&self.bytes()[self.range(at, into.len() as u64)?]);
        Ok(())
    }

    /// Copies `from` to `at`.
    ///
    /// # Errors
    /// [`OutOfRange`], and nothing was copied.
    pub fn write(&mut self, at: u64, from: &[u8]) -> Result<(), OutOfRange> {
        let range = self.range(at, from.len() as u64)?;
        self.bytes_mut()[range].copy_from_slice(from);
        Ok(())
    }

    /// Zeroes `len` bytes from `at` on.
    ///
    /// # Errors
    /// [`OutOfRange`], and nothing was zeroed.
    pub fn zero(&mut self, at: u64, len: u64) -> Result<(), OutOfRange> {
        let range = self.range(at, len)?;
        self.bytes_mut()[range].fill(0);
        Ok(())
    }

    fn range(&self, at: u64, len: u64) -> Result<Range<usize>, OutOfRange> {
        let end = self.len_bytes();
        match at.checked_add(len) {
            Some(stop) if stop <= end => Ok(at as usize..stop as usize),
            _ => Err(OutOfRange { at, len, end }),
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the region is mapped and initialised for its length; only `&mut self` writes it, as
        // the region is ours alone (a shared file is locked against other processes).
        unsafe { std::slice::from_raw_parts(self.region.base().as_ptr(), self.region.len_bytes()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.region.base().as_ptr(), self.region.len_bytes()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_within_bounds() {
        let mut ram = Ram::new(Region::anonymous(2 << 20).expect("memory"));
        let (end, mut got) = (ram.len_bytes(), [0; 4]);
        ram.write(end - 4, b"abcd").expect("inside");
        ram.zero(end - 3, 2).expect("inside");
        ram.read(end - 4, &mut got).expect("inside");
        assert_eq!(&got, b"a\0\0d");
        assert_eq!(ram.write(end - 3, b"abcd"), Err(OutOfRange { at: end - 3, len: 4, end }));
        assert!(ram.read(u64::MAX, &mut got).is_err());
        assert!(ram.zero(1, u64::MAX).is_err());
    }
}
