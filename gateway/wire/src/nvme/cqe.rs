//! The completion queue entry (NVMe base 2.0c §3.3.3.2, figure 90).

use super::Status;
use crate::bytes::Field;

layout! {
    /// A completion of 16 bytes. The phase tag is not used over fabrics: zero on emit, dropped on parse.
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
    /// A completion without a result.
    #[inline]
    pub fn new(cid: u16, sqhd: u16, status: Status) -> Self {
        Self { result: 0, sqhd, sqid: 0, cid, status }
    }

    /// Dword 0 of the result.
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
