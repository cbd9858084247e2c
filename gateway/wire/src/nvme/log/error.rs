//! The Error Information log, 01h: entries of 64 bytes, newest first (NVMe base 2.0c §5.16.1.2, figure 205).

use crate::nvme::Status;

layout! {
    /// One error.
    pub struct ErrorEntry [64] {
        /// Number of the error, counted since the controller was made. 0 marks an unused entry.
        error_count: u64 = 0,
        /// Submission queue.
        sqid: u16 = 8,
        /// Command identifier, or FFFFh if the error belongs to no command.
        cid: u16 = 10,
        /// Status.
        status: Status = 12,
        /// Parameter error location: bits 7:0 the byte, bits 10:8 the bit. FFFFh means none.
        location: u16 = 14,
        /// First LBA.
        lba: u64 = 16,
        /// Namespace.
        nsid: u32 = 24,
        /// Vendor specific information available.
        vendor: u8 = 28,
        /// Transport type.
        trtype: u8 = 29,
        /// Command specific.
        command_specific: u64 = 32,
        /// Transport type specific.
        transport_specific: u16 = 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let entry = ErrorEntry {
            error_count: 1,
            sqid: 2,
            cid: 3,
            status: Status::INVALID_FIELD.dnr(),
            location: 0x0428,
            lba: 5,
            nsid: 6,
            vendor: 7,
            trtype: 3,
            command_specific: 8,
            transport_specific: 9,
        };
        let expected = crate::golden::bytes(&[
            (0, &[1]),
            (8, &[2, 0, 3, 0, 4, 0x80, 0x28, 4, 5]),
            (24, &[6, 0, 0, 0, 7, 3]),
            (32, &[8]),
            (40, &[9]),
        ]);
        crate::golden::assert_emits(&expected, |bytes| entry.emit(bytes));
        assert_eq!(ErrorEntry::parse(&expected), entry);
    }
}
