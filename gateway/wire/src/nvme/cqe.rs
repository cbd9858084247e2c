//! The completion queue entry (NVMe base 2.0c §3.3.3.2, figure 90).

use super::Status;
use crate::bytes::Field;

layout! {
    /// A completion of 16 bytes. Fabrics don't use the phase tag: `emit` writes zero, and `parse` ignores it.
    pub struct Cqe [16] {
        /// Dwords 0 and 1: the command's result, dword 0 in the low half.
        result: u64 = 0,
        /// Submission queue head pointer.
        sqhd: u16 = 8,
        /// Submission queue identifier; reserved over fabrics.
        sqid: u16 = 10,
        /// Identifier of the command that completes.
        cid: u16 = 12,
        /// Status field.
        status: Status = 14,
    }
}

impl Cqe {
    /// Makes a completion without a result.
    #[inline]
    pub fn new(cid: u16, sqhd: u16, status: Status) -> Self {
        Self { result: 0, sqhd, sqid: 0, cid, status }
    }

    /// Returns dword 0 of the result.
    #[inline]
    pub fn dw0(&self) -> u32 {
        self.result as u32
    }
}

impl Field for Status {
    const LEN: usize = 2;
    #[inline(always)]
    fn load(bytes: &[u8]) -> Self {
        Self::from_field(u16::load(bytes) >> 1)
    }
    #[inline(always)]
    fn store(self, bytes: &mut [u8]) {
        (self.field() << 1).store(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::assert_emits;

    #[test]
    fn golden() {
        let cqe = Cqe {
            result: 0x0000_0001_0000_0002,
            sqhd: 0x0304,
            sqid: 5,
            cid: 0x0607,
            status: Status::LBA_OUT_OF_RANGE.dnr(),
        };
        // Status 4080h in bits 15:1 is 8100h.
        let expected = [2, 0, 0, 0, 1, 0, 0, 0, 4, 3, 5, 0, 7, 6, 0x00, 0x81];
        assert_emits(&expected, |bytes| cqe.emit(bytes));
        assert_eq!(Cqe::parse(&expected), cqe);
        let mut phase = expected;
        phase[14] |= 1;
        assert_eq!(Cqe::parse(&phase), cqe);
    }
}
