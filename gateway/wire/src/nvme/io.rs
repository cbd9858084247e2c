//! I/O commands of the NVM command set (NVM command set 1.0c §3.2) as typed views of an [`Sqe`].

use super::sqe::split_u64;
use super::{Sgl, Sqe};
use crate::bytes::Truncated;

/// Opcodes of I/O commands (NVM command set 1.0c figure 19; NVMe base 2.0c figure 390).
#[allow(missing_docs)]
pub mod io_opcode {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    pub const VERIFY: u8 = 0x0c;
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    pub const RESERVATION_REPORT: u8 = 0x0e;
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    pub const RESERVATION_RELEASE: u8 = 0x15;
    pub const CANCEL: u8 = 0x18;
    pub const COPY: u8 = 0x19;
}

/// The logical blocks of a command, with the bits that Read, Write, Compare, Verify and Write Zeroes share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockRange {
    /// Starting LBA.
    pub slba: u64,
    /// Number of logical blocks, 1 to 65,536 (0's based on the wire).
    pub nlb: u32,
    /// Force Unit Access.
    pub fua: bool,
    /// Limited Retry.
    pub limited_retry: bool,
    /// Protection information field, 4 bits: 0 without end-to-end protection.
    pub prinfo: u8,
}

const FUA: u32 = 1 << 30;
const LIMITED_RETRY: u32 = 1 << 31;
const DEALLOCATE: u32 = 1 << 25;

impl BlockRange {
    /// Returns the range of `nlb` blocks from `slba`, with all other bits zero.
    #[inline]
    pub fn new(slba: u64, nlb: u32) -> Self {
        Self { slba, nlb, ..Self::default() }
    }

    #[inline]
    fn parse(sqe: &Sqe) -> Self {
        Self {
            slba: sqe.cdw10_11(),
            nlb: (sqe.cdw12 & 0xffff) + 1,
            fua: sqe.cdw12 & FUA != 0,
            limited_retry: sqe.cdw12 & LIMITED_RETRY != 0,
            prinfo: (sqe.cdw12 >> 26 & 0xf) as u8,
        }
    }

    #[inline]
    fn emit(&self, sqe: &mut Sqe) {
        (sqe.cdw10, sqe.cdw11) = split_u64(self.slba);
        sqe.cdw12 = (self.nlb.wrapping_sub(1) & 0xffff)
            | (self.fua as u32) << 30
            | (self.limited_retry as u32) << 31
            | ((self.prinfo & 0xf) as u32) << 26;
    }
}

/// Dataset Management, dwords 10 and 11. The command's data has the ranges ([`DsmRange`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DsmCommand {
    /// Number of ranges, 1 to 256 (0's based on the wire).
    pub ranges: u16,
    /// AD: the ranges may be deallocated.
    pub deallocate: bool,
    /// IDW: an integral dataset for writes (a hint).
    pub integral_write: bool,
    /// IDR: an integral dataset for reads (a hint).
    pub integral_read: bool,
}

/// An I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoCommand {
    /// Read.
    Read(BlockRange),
    /// Write.
    Write(BlockRange),
    /// Flush.
    Flush,
    /// Write Zeroes. `deac` allows the controller to deallocate the blocks.
    WriteZeroes {
        /// The blocks.
        range: BlockRange,
        /// Deallocate.
        deac: bool,
    },
    /// Dataset Management.
    Dsm(DsmCommand),
    /// Compare.
    Compare(BlockRange),
    /// Verify.
    Verify(BlockRange),
    /// Write Uncorrectable.
    WriteUncorrectable(BlockRange),
    /// Any other opcode. Its dwords are only in the entry.
    Unknown {
        /// The opcode.
        opcode: u8,
    },
}

impl IoCommand {
    /// Reads the command of an entry. Every entry is a valid command.
    #[inline]
    pub fn parse(sqe: &Sqe) -> Self {
        match sqe.opcode {
            io_opcode::READ => Self::Read(BlockRange::parse(sqe)),
            io_opcode::WRITE => Self::Write(BlockRange::parse(sqe)),
            io_opcode::FLUSH => Self::Flush,
            io_opcode::WRITE_ZEROES => {
                Self::WriteZeroes { range: BlockRange::parse(sqe), deac: sqe.cdw12 & DEALLOCATE != 0 }
            }
            io_opcode::DATASET_MANAGEMENT => Self::Dsm(DsmCommand {
                ranges: (sqe.cdw10 & 0xff) as u16 + 1,
                integral_read: sqe.cdw11 & 1 != 0,
                integral_write: sqe.cdw11 & 2 != 0,
                deallocate: sqe.cdw11 & 4 != 0,
            }),
            io_opcode::COMPARE => Self::Compare(BlockRange::parse(sqe)),
            io_opcode::VERIFY => Self::Verify(BlockRange::parse(sqe)),
            io_opcode::WRITE_UNCORRECTABLE => Self::WriteUncorrectable(BlockRange::parse(sqe)),
            opcode => Self::Unknown { opcode },
        }
    }

    /// The opcode.
    #[inline]
    pub fn opcode(&self) -> u8 {
        match *self {
            Self::Read(_) => io_opcode::READ,
            Self::Write(_) => io_opcode::WRITE,
            Self::Flush => io_opcode::FLUSH,
            Self::WriteZeroes { .. } => io_opcode::WRITE_ZEROES,
            Self::Dsm(_) => io_opcode::DATASET_MANAGEMENT,
            Self::Compare(_) => io_opcode::COMPARE,
            Self::Verify(_) => io_opcode::VERIFY,
            Self::WriteUncorrectable(_) => io_opcode::WRITE_UNCORRECTABLE,
            Self::Unknown { opcode } => opcode,
        }
    }

    /// Returns the entry for this command. For `Unknown`, the entry has the opcode of the command and zero in its dwords.
    #[inline]
    pub fn sqe(&self, cid: u16, nsid: u32, sgl1: Sgl) -> Sqe {
        let mut sqe = Sqe::new(self.opcode(), cid, nsid, sgl1);
        match self {
            Self::Read(range)
            | Self::Write(range)
            | Self::Compare(range)
            | Self::Verify(range)
            | Self::WriteUncorrectable(range) => range.emit(&mut sqe),
            Self::WriteZeroes { range, deac } => {
                range.emit(&mut sqe);
                sqe.cdw12 |= (*deac as u32) << 25;
            }
            Self::Dsm(dsm) => {
                sqe.cdw10 = (dsm.ranges.wrapping_sub(1) & 0xff) as u32;
                sqe.cdw11 = dsm.integral_read as u32
                    | (dsm.integral_write as u32) << 1
                    | (dsm.deallocate as u32) << 2;
            }
            Self::Flush | Self::Unknown { .. } => {}
        }
        sqe
    }
}

layout! {
    /// One range of Dataset Management data, 16 bytes (NVM command set 1.0c §3.2.3, figure 43).
    pub struct DsmRange [16] {
        /// Context attributes: access hints.
        attributes: u32 = 0,
        /// Length in logical blocks; not 0's based.
        nlb: u32 = 4,
        /// Starting LBA.
        slba: u64 = 8,
    }
}

impl DsmRange {
    /// Returns the `count` ranges at the start of a command's data.
    pub fn iter(data: &[u8], count: u16) -> Result<DsmRangeIter<'_>, Truncated> {
        let need_bytes = count as usize * Self::LEN;
        match data.get(..need_bytes) {
            Some(data) => Ok(DsmRangeIter { data }),
            None => Err(Truncated { what: "dataset management ranges", need_bytes, have_bytes: data.len() }),
        }
    }
}

/// Ranges of Dataset Management data, in order.
#[derive(Clone, Debug)]
pub struct DsmRangeIter<'a> {
    data: &'a [u8],
}

impl Iterator for DsmRangeIter<'_> {
    type Item = DsmRange;

    fn next(&mut self) -> Option<DsmRange> {
        let (range, rest) = self.data.split_first_chunk()?;
        self.data = rest;
        Some(DsmRange::parse(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: IoCommand, opcode: u8, dwords: [u32; 4]) {
        let sqe = command.sqe(3, 1, Sgl::NONE);
        assert_eq!((sqe.opcode, sqe.cid, sqe.nsid), (opcode, 3, 1));
        assert_eq!([sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13], dwords, "{command:?}");
        assert_eq!(IoCommand::parse(&sqe), command);
    }

    #[test]
    fn golden() {
        let range = BlockRange { fua: true, ..BlockRange::new(0x0000_0002_0000_0001, 8) };
        check(IoCommand::Read(range), 0x02, [1, 2, 0x4000_0007, 0]);
        check(IoCommand::Write(BlockRange::new(5, 65536)), 0x01, [5, 0, 0xffff, 0]);
        check(
            IoCommand::Compare(BlockRange { limited_retry: true, ..BlockRange::new(0, 1) }),
            0x05,
            [0, 0, 1 << 31, 0],
        );
        check(
            IoCommand::Verify(BlockRange { prinfo: 0xf, ..BlockRange::new(0, 1) }),
            0x0c,
            [0, 0, 0xf << 26, 0],
        );
        check(IoCommand::WriteUncorrectable(BlockRange::new(1, 2)), 0x04, [1, 0, 1, 0]);
        check(IoCommand::WriteZeroes { range, deac: true }, 0x08, [1, 2, 0x4200_0007, 0]);
        check(IoCommand::Flush, 0x00, [0; 4]);
        let dsm = DsmCommand { ranges: 256, deallocate: true, integral_write: false, integral_read: true };
        check(IoCommand::Dsm(dsm), 0x09, [255, 5, 0, 0]);
        check(IoCommand::Unknown { opcode: 0x99 }, 0x99, [0; 4]);
    }

    #[test]
    fn dsm_ranges() {
        let range = DsmRange { attributes: 1, nlb: 2, slba: 3 };
        let expected = [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        crate::golden::assert_emits(&expected, |bytes| range.emit(bytes));
        let data = [expected, expected].concat();
        assert!(DsmRange::iter(&data, 2).unwrap().eq([range, range]));
        assert_eq!(DsmRange::iter(&data, 1).unwrap().count(), 1);
        assert_eq!(DsmRange::iter(&data, 3).unwrap_err().need_bytes, 48);
    }
}
