//! The data structures of Identify Namespace, and the Identify Controller structure of the NVM command set.

layout! {
    /// An LBA format, 4 bytes (NVM command set 1.0c figure 98).
    pub struct LbaFormat [4] {
        /// Metadata size, bytes.
        ms_bytes: u16 = 0,
        /// LBA data size, as a power of two: 2^this bytes. The value is 9 or more, or 0 if the format doesn't exist.
        lbads: u8 = 2,
        /// Relative performance, 0 best.
        rp: u8 = 3,
    }
}

impl LbaFormat {
    /// Blocks of 512 bytes without metadata.
    pub const B512: Self = Self { ms_bytes: 0, lbads: 9, rp: 0 };
    /// Blocks of 4096 bytes without metadata.
    pub const B4096: Self = Self { ms_bytes: 0, lbads: 12, rp: 0 };

    /// Returns the block size in bytes. Returns `None` if the format doesn't exist, or if its size is less than 512 bytes
    /// or more than 2 GiB.
    pub fn block_bytes(&self) -> Option<u32> {
        (9..=31).contains(&self.lbads).then(|| 1 << self.lbads)
    }
}

layout! {
    /// Identify Namespace, NVM command set, CNS 00h (NVM command set 1.0c §4.1.5.1, figure 97).
    pub struct IdentifyNamespace [4096] {
        /// Size, blocks.
        nsze: u64 = 0,
        /// Capacity, blocks.
        ncap: u64 = 8,
        /// Utilization, blocks.
        nuse: u64 = 16,
        /// Features: see [`nsfeat`].
        nsfeat: u8 = 24,
        /// Number of LBA formats, 0's based.
        nlbaf: u8 = 25,
        /// Formatted LBA size: bits 3:0 are the index of the format in use.
        flbas: u8 = 26,
        /// Metadata capabilities.
        mc: u8 = 27,
        /// Data protection capabilities.
        dpc: u8 = 28,
        /// Data protection settings.
        dps: u8 = 29,
        /// Multi-path and sharing: bit 0 means that the namespace may be attached to more than one controller.
        nmic: u8 = 30,
        /// Reservation capabilities.
        rescap: u8 = 31,
        /// Format progress indicator.
        fpi: u8 = 32,
        /// Deallocate features: see [`dlfeat`].
        dlfeat: u8 = 33,
        /// Atomic write unit normal, blocks, 0's based.
        nawun: u16 = 34,
        /// Atomic write unit power fail, blocks, 0's based.
        nawupf: u16 = 36,
        /// Atomic compare and write unit, blocks, 0's based.
        nacwu: u16 = 38,
        /// Atomic boundary size normal, blocks, 0's based.
        nabsn: u16 = 40,
        /// Atomic boundary offset, blocks.
        nabo: u16 = 42,
        /// Atomic boundary size power fail, blocks, 0's based.
        nabspf: u16 = 44,
        /// Optimal I/O boundary, blocks.
        noiob: u16 = 46,
        /// NVM capacity, bytes.
        nvmcap_bytes: u128 = 48,
        /// Preferred write granularity, blocks, 0's based.
        npwg: u16 = 64,
        /// Preferred write alignment, blocks, 0's based.
        npwa: u16 = 66,
        /// Preferred deallocate granularity, blocks, 0's based.
        npdg: u16 = 68,
        /// Preferred deallocate alignment, blocks, 0's based.
        npda: u16 = 70,
        /// Optimal write size, blocks, 0's based.
        nows: u16 = 72,
        /// Maximum length of one Copy source range, blocks.
        mssrl: u16 = 74,
        /// Maximum length of a Copy, blocks.
        mcl: u32 = 76,
        /// Maximum Copy source ranges, 0's based.
        msrc: u8 = 80,
        /// ANA group identifier.
        anagrpid: u32 = 92,
        /// Attributes: bit 0 write protected.
        nsattr: u8 = 99,
        /// NVM set.
        nvmsetid: u16 = 100,
        /// Endurance group.
        endgid: u16 = 102,
        /// NGUID; zero for none.
        nguid: [u8; 16] = 104,
        /// EUI-64, big-endian; zero for none.
        eui64: [u8; 8] = 120,
        /// Format 0.
        lbaf0: LbaFormat = 128,
        /// Format 1.
        lbaf1: LbaFormat = 132,
        /// Format 2.
        lbaf2: LbaFormat = 136,
        /// Format 3.
        lbaf3: LbaFormat = 140,
        /// Formats 4 to 63, each as [`LbaFormat`] emits it.
        lbaf_rest: [u8; 240] = 144,
    }
}

/// Bits of NSFEAT (NVM command set 1.0c figure 97).
#[allow(missing_docs)]
pub mod nsfeat {
    pub const THIN_PROVISIONING: u8 = 1 << 0;
    pub const NAMESPACE_ATOMICS: u8 = 1 << 1;
    pub const DEALLOCATED_ERROR: u8 = 1 << 2;
    pub const UID_NOT_REUSED: u8 = 1 << 3;
    pub const OPTIMAL_PERFORMANCE: u8 = 1 << 4;
}

/// Fields of DLFEAT (NVM command set 1.0c figure 97).
#[allow(missing_docs)]
pub mod dlfeat {
    /// Mask of the contents of a deallocated block: one of the `READS_*`.
    pub const READS_MASK: u8 = 0b111;
    pub const READS_NOT_REPORTED: u8 = 0b000;
    pub const READS_ZEROS: u8 = 0b001;
    pub const READS_ONES: u8 = 0b010;
    /// Write Zeroes accepts DEAC.
    pub const DEAC: u8 = 1 << 3;
}

impl IdentifyNamespace {
    /// Returns whether the namespace promises that deallocated blocks read as zeros.
    pub fn deallocates_to_zeros(&self) -> bool {
        self.dlfeat & dlfeat::READS_MASK == dlfeat::READS_ZEROS
    }

    /// Returns the LBA format in use, whose index is in FLBAS bits 3:0 and 6:5.
    pub fn format(&self) -> LbaFormat {
        let index = (self.flbas & 0xf | self.flbas >> 1 & 0x30) as usize;
        match index {
            0 => self.lbaf0,
            1 => self.lbaf1,
            2 => self.lbaf2,
            3 => self.lbaf3,
            _ => self.lbaf_rest.as_chunks().0.get(index - 4).map(LbaFormat::parse).unwrap_or_default(),
        }
    }
}

layout! {
    /// I/O Command Set specific Identify Namespace of the NVM command set, CNS 05h CSI 00h (NVM command set 1.0c
    /// §4.1.5.3, figure 100).
    pub struct IdentifyNvmNamespace [4096] {
        /// Logical block storage tag mask.
        lbstm: u64 = 0,
        /// Protection information capabilities.
        pic: u8 = 8,
        /// Extended LBA formats 0 to 63: bits 6:0 storage tag size, 8:7 protection information format.
        elbaf: [u8; 256] = 12,
    }
}

layout! {
    /// I/O Command Set specific Identify Controller of the NVM command set, CNS 06h CSI 00h (NVM command set 1.0c
    /// §4.1.5.4, figure 102). Each limit is 0 for none.
    pub struct IdentifyNvmController [4096] {
        /// Verify size limit, 2^this pages of CAP.MPSMIN.
        vsl: u8 = 0,
        /// Write Zeroes size limit, 2^this pages of CAP.MPSMIN.
        wzsl: u8 = 1,
        /// Write Uncorrectable size limit, 2^this pages of CAP.MPSMIN.
        wusl: u8 = 2,
        /// Most ranges of a Dataset Management.
        dmrl: u8 = 3,
        /// Most blocks of one range.
        dmrsl: u32 = 4,
        /// Most blocks of all ranges.
        dmsl: u64 = 8,
    }
}

layout! {
    /// I/O Command Set Independent Identify Namespace, CNS 08h (NVMe base 2.0c §5.17.2.8, figure 280).
    pub struct IdentifyNamespaceIndependent [4096] {
        /// Features: bit 3 identifiers not reused, bit 4 rotational.
        nsfeat: u8 = 0,
        /// Multi-path and sharing: bit 0 shared.
        nmic: u8 = 1,
        /// Reservation capabilities.
        rescap: u8 = 2,
        /// Format progress indicator.
        fpi: u8 = 3,
        /// ANA group identifier.
        anagrpid: u32 = 4,
        /// Attributes: bit 0 write protected.
        nsattr: u8 = 8,
        /// NVM set.
        nvmsetid: u16 = 10,
        /// Endurance group.
        endgid: u16 = 12,
        /// Status: bit 0 ready.
        nstat: u8 = 14,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{assert_emits, bytes};

    #[test]
    fn namespace() {
        let namespace = IdentifyNamespace {
            nsze: 0x100,
            ncap: 0x100,
            nuse: 0x80,
            nsfeat: nsfeat::THIN_PROVISIONING | nsfeat::OPTIMAL_PERFORMANCE,
            nlbaf: 1,
            flbas: 1,
            nmic: 1,
            dlfeat: 9,
            noiob: 8,
            nvmcap_bytes: 0x10_0000,
            npwg: 7,
            anagrpid: 3,
            nsattr: 1,
            nguid: [0xaa; 16],
            eui64: [1, 2, 3, 4, 5, 6, 7, 8],
            lbaf0: LbaFormat::B512,
            lbaf1: LbaFormat::B4096,
            ..Default::default()
        };
        let expected = bytes(&[
            (1, &[1, 0, 0, 0, 0, 0, 0, 0, 1]),
            (16, &[0x80]),
            (24, &[0x11, 1, 1]),
            (30, &[1]),
            (33, &[9]),
            (46, &[8, 0, 0, 0, 0x10]),
            (64, &[7]),
            (92, &[3]),
            (99, &[1]),
            (104, &[0xaa; 16]),
            (120, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 9, 0, 0, 0, 12]),
        ]);
        assert_emits(&expected, |bytes| namespace.emit(bytes));
        assert_eq!(IdentifyNamespace::parse(&expected), namespace);
        assert_eq!(namespace.format().block_bytes(), Some(4096));
        let zeros = |dlfeat| IdentifyNamespace { dlfeat, ..namespace }.deallocates_to_zeros();
        // 011b to 111b are reserved. Bit 4 describes the guard field and does not matter here.
        let promising: Vec<u8> = (0..32).filter(|&bits| zeros(bits)).collect();
        assert_eq!(promising, [0b0_0001, 0b0_1001, 0b1_0001, 0b1_1001]);
        let sixth = IdentifyNamespace {
            flbas: 5,
            lbaf_rest: {
                let mut rest = [0; 240];
                rest[6] = 13;
                rest
            },
            ..namespace
        };
        assert_eq!(sixth.format().block_bytes(), Some(8192));
        assert_eq!(IdentifyNamespace { flbas: 0x6f, ..namespace }.format().block_bytes(), None);
    }

    #[test]
    fn command_set_specific_and_independent() {
        let namespace = IdentifyNvmNamespace { lbstm: 1, pic: 2, elbaf: [3; 256] };
        assert_emits(&bytes(&[(0, &[1]), (8, &[2]), (12, &[3; 256])]), |bytes| namespace.emit(bytes));
        let controller = IdentifyNvmController { vsl: 1, wzsl: 2, wusl: 3, dmrl: 4, dmrsl: 5, dmsl: 6 };
        assert_emits(&bytes(&[(0, &[1, 2, 3, 4, 5, 0, 0, 0, 6])]), |bytes| controller.emit(bytes));
        let independent = IdentifyNamespaceIndependent {
            nsfeat: 8,
            nmic: 1,
            anagrpid: 2,
            nsattr: 1,
            nvmsetid: 3,
            endgid: 4,
            nstat: 1,
            ..Default::default()
        };
        let expected = bytes(&[(0, &[8, 1, 0, 0, 2, 0, 0, 0, 1, 0, 3, 0, 4, 0, 1])]);
        assert_emits(&expected, |bytes| independent.emit(bytes));
        assert_eq!(IdentifyNamespaceIndependent::parse(&expected), independent);
    }
}
