//! The submission queue entry (NVMe base 2.0c §3.3.3.1, figures 86 and 87).

use super::Sgl;
use crate::bytes::Field;

/// The way in which a command describes its data, bits 7:6 of flags. Fabrics allow only SGLs (NVMe base 2.0c §3.3.3.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Psdt {
    /// 00b: PRP entries.
    Prp,
    /// 01b: data by SGL, metadata in a contiguous buffer. Fabrics hosts send this value.
    Sgl,
    /// 10b: data by SGL, metadata by SGL.
    SglMetadata,
    /// 11b: reserved.
    Reserved,
}

/// Fused operation, bits 1:0 of flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// 00b: a command that is not fused.
    Normal,
    /// 01b: first of two.
    First,
    /// 10b: second of two.
    Second,
    /// 11b: reserved.
    Reserved,
}

/// The opcode of every fabrics command, admin and I/O (NVMe base 2.0c §6).
pub const FABRICS_OPCODE: u8 = 0x7f;

layout! {
    /// A command of 64 bytes, of any command set. Fabrics commands give the bytes another meaning (see [`crate::fabrics`]).
    pub struct Sqe [64] {
        /// Opcode.
        opcode: u8 = 0,
        /// Bits 7:6 PSDT, bits 1:0 FUSE: see [`Sqe::psdt`] and [`Sqe::fuse`].
        flags: u8 = 1,
        /// Command identifier.
        cid: u16 = 2,
        /// Namespace identifier.
        nsid: u32 = 4,
        /// Command dword 2.
        cdw2: u32 = 8,
        /// Command dword 3.
        cdw3: u32 = 12,
        /// Metadata pointer.
        mptr: u64 = 16,
        /// Data pointer: one SGL descriptor.
        sgl1: Sgl = 24,
        /// Command dword 10.
        cdw10: u32 = 40,
        /// Command dword 11.
        cdw11: u32 = 44,
        /// Command dword 12.
        cdw12: u32 = 48,
        /// Command dword 13.
        cdw13: u32 = 52,
        /// Command dword 14.
        cdw14: u32 = 56,
        /// Command dword 15.
        cdw15: u32 = 60,
    }
}

impl Sqe {
    /// `flags` of a command that is not fused and describes its data by an SGL.
    pub const FLAGS_SGL: u8 = 0x40;

    /// Makes a command with the flags that fabrics hosts send, and with zero in all other fields.
    #[inline]
    pub fn new(opcode: u8, cid: u16, nsid: u32, sgl1: Sgl) -> Self {
        Self {
            opcode,
            flags: Self::FLAGS_SGL,
            cid,
            nsid,
            cdw2: 0,
            cdw3: 0,
            mptr: 0,
            sgl1,
            cdw10: 0,
            cdw11: 0,
            cdw12: 0,
            cdw13: 0,
            cdw14: 0,
            cdw15: 0,
        }
    }

    /// Returns the way in which the command describes its data.
    #[inline]
    pub fn psdt(&self) -> Psdt {
        match self.flags >> 6 {
            0 => Psdt::Prp,
            1 => Psdt::Sgl,
            2 => Psdt::SglMetadata,
            _ => Psdt::Reserved,
        }
    }

    /// Returns the command's place in a fused pair, if it is fused.
    #[inline]
    pub fn fuse(&self) -> Fuse {
        match self.flags & 3 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// Returns dwords 10 and 11 as one 64-bit value: a starting LBA, or a property's value.
    #[inline]
    pub fn cdw10_11(&self) -> u64 {
        self.cdw10 as u64 | (self.cdw11 as u64) << 32
    }

    /// Returns the direction of the data, from the two low bits of the opcode (NVMe base 2.0c figure 87). Fabrics commands
    /// ([`FABRICS_OPCODE`]) have the direction in the two low bits of FCTYPE.
    #[inline]
    pub fn transfer(&self) -> Transfer {
        Transfer::from_opcode(self.opcode)
    }
}

/// Direction of a command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// 00b: no data.
    None,
    /// 01b: from host to controller.
    HostToController,
    /// 10b: from controller to host.
    ControllerToHost,
    /// 11b: both ways.
    Bidirectional,
}

impl Transfer {
    /// Reads the two low bits of an opcode or of a fabrics command type.
    #[inline]
    pub fn from_opcode(opcode: u8) -> Self {
        match opcode & 3 {
            0 => Self::None,
            1 => Self::HostToController,
            2 => Self::ControllerToHost,
            _ => Self::Bidirectional,
        }
    }
}

/// Splits a 64-bit value into two command dwords: the low half, then the high half.
#[inline]
pub(crate) fn split_u64(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

const _: () = assert!(Sqe::LEN == 64 && <Sgl as Field>::LEN == Sgl::LEN);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{assert_emits, bytes};

    #[test]
    fn golden() {
        let sqe = Sqe {
            opcode: 0x02,
            flags: 0x41,
            cid: 0x1234,
            nsid: 7,
            cdw2: 2,
            cdw3: 3,
            mptr: 0x0102_0304_0506_0708,
            sgl1: Sgl::Transport { len_bytes: 512 },
            cdw10: 10,
            cdw11: 11,
            cdw12: 12,
            cdw13: 13,
            cdw14: 14,
            cdw15: 0xff00_0000,
        };
        let expected = bytes(&[
            (0, &[0x02, 0x41, 0x34, 0x12, 7]),
            (8, &[2]),
            (12, &[3]),
            (16, &[8, 7, 6, 5, 4, 3, 2, 1]),
            (32, &[0, 2]),
            (39, &[0x5a, 10, 0, 0, 0, 11, 0, 0, 0, 12, 0, 0, 0, 13, 0, 0, 0, 14]),
            (63, &[0xff]),
        ]);
        assert_emits(&expected, |bytes| sqe.emit(bytes));
        assert_eq!(Sqe::parse(&expected), sqe);
        assert_eq!(
            (sqe.psdt(), sqe.fuse(), sqe.transfer()),
            (Psdt::Sgl, Fuse::First, Transfer::ControllerToHost)
        );
    }
}
