//! SGL descriptors, which describe the location of a command's data (NVMe base 2.0c §4.1.2, figures 88 to 99; NVMe-oF TCP
//! 1.0c §3.3.2.1).

use crate::bytes::Field;

/// An SGL descriptor of 16 bytes. The identifier in byte 15 (type in bits 7:4, subtype in bits 3:0) determines the variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// 00h: a data block at a host address. Fabrics use it only as the zero descriptor of a command without data.
    Address {
        /// Host memory address.
        address: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
    /// 01h: data within the capsule, at an offset from the start of in-capsule data.
    InCapsule {
        /// Offset in bytes; TCP requires 0.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
    /// 5Ah: the transport moves the data (TCP: C2HData, R2T and H2CData).
    Transport {
        /// Length in bytes.
        len_bytes: u32,
    },
    /// 40h or 4Fh: remote memory by address and key (RDMA).
    Keyed {
        /// Remote address.
        address: u64,
        /// Length in bytes, 24 bits.
        len_bytes: u32,
        /// Remote key.
        key: u32,
        /// 4Fh: the response must invalidate the key.
        invalidate: bool,
    },
    /// Any other identifier. The controller answers it with SGL Descriptor Type Invalid.
    Unsupported {
        /// The received descriptor.
        raw: [u8; 16],
    },
}

const ID_ADDRESS: u8 = 0x00;
const ID_IN_CAPSULE: u8 = 0x01;
const ID_KEYED: u8 = 0x40;
const ID_KEYED_INVALIDATE: u8 = 0x4f;
const ID_TRANSPORT: u8 = 0x5a;

impl Sgl {
    /// Size in bytes.
    pub const LEN: usize = 16;

    /// The zero descriptor of a command without data.
    pub const NONE: Self = Self::Address { address: 0, len_bytes: 0 };

    /// Reads a descriptor. Every byte pattern is valid.
    #[inline]
    pub fn parse(bytes: &[u8; 16]) -> Self {
        let address = u64::load(&bytes[..8]);
        let len_bytes = u32::load(&bytes[8..12]);
        match bytes[15] {
            ID_TRANSPORT => Self::Transport { len_bytes },
            ID_IN_CAPSULE => Self::InCapsule { offset_bytes: address, len_bytes },
            ID_ADDRESS => Self::Address { address, len_bytes },
            id @ (ID_KEYED | ID_KEYED_INVALIDATE) => Self::Keyed {
                address,
                len_bytes: len_bytes & 0x00ff_ffff,
                key: u32::load(&bytes[11..15]),
                invalidate: id == ID_KEYED_INVALIDATE,
            },
            _ => Self::Unsupported { raw: *bytes },
        }
    }

    /// Writes every byte. Cuts a keyed length to its low 24 bits.
    #[inline]
    pub fn emit(&self, bytes: &mut [u8; 16]) {
        bytes.fill(0);
        match *self {
            Self::Address { address, len_bytes } => {
                address.store(&mut bytes[..8]);
                len_bytes.store(&mut bytes[8..12]);
                bytes[15] = ID_ADDRESS;
            }
            Self::InCapsule { offset_bytes, len_bytes } => {
                offset_bytes.store(&mut bytes[..8]);
                len_bytes.store(&mut bytes[8..12]);
                bytes[15] = ID_IN_CAPSULE;
            }
            Self::Transport { len_bytes } => {
                len_bytes.store(&mut bytes[8..12]);
                bytes[15] = ID_TRANSPORT;
            }
            Self::Keyed { address, len_bytes, key, invalidate } => {
                address.store(&mut bytes[..8]);
                len_bytes.store(&mut bytes[8..12]);
                // The key's first byte overwrites the top of the 32-bit length, which leaves 24 bits.
                key.store(&mut bytes[11..15]);
                bytes[15] = if invalidate { ID_KEYED_INVALIDATE } else { ID_KEYED };
            }
            Self::Unsupported { raw } => *bytes = raw,
        }
    }

    /// Returns the number of bytes that the descriptor spans, or 0 for an unsupported descriptor.
    #[inline]
    pub fn len_bytes(&self) -> u32 {
        match *self {
            Self::Address { len_bytes, .. }
            | Self::InCapsule { len_bytes, .. }
            | Self::Transport { len_bytes }
            | Self::Keyed { len_bytes, .. } => len_bytes,
            Self::Unsupported { .. } => 0,
        }
    }
}

impl Field for Sgl {
    const LEN: usize = 16;
    #[inline(always)]
    fn load(bytes: &[u8]) -> Self {
        Self::parse(&Field::load(bytes))
    }
    #[inline(always)]
    fn store(self, bytes: &mut [u8]) {
        let mut array = [0; 16];
        self.emit(&mut array);
        bytes.copy_from_slice(&array);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{assert_emits, bytes};

    #[test]
    fn golden() {
        let cases: [(Sgl, [u8; 16]); 6] = [
            (Sgl::NONE, [0; 16]),
            (
                Sgl::InCapsule { offset_bytes: 0x10, len_bytes: 4096 },
                bytes(&[(0, &[0x10]), (8, &[0, 0x10]), (15, &[1])]),
            ),
            (Sgl::Transport { len_bytes: 0x0102_0304 }, bytes(&[(8, &[4, 3, 2, 1]), (15, &[0x5a])])),
            (
                Sgl::Keyed { address: 0x1122, len_bytes: 0x01_0203, key: 0xaabb_ccdd, invalidate: false },
                bytes(&[(0, &[0x22, 0x11]), (8, &[3, 2, 1, 0xdd, 0xcc, 0xbb, 0xaa, 0x40])]),
            ),
            (
                Sgl::Keyed { address: 1, len_bytes: 2, key: 3, invalidate: true },
                bytes(&[(0, &[1]), (8, &[2]), (11, &[3]), (15, &[0x4f])]),
            ),
            (Sgl::Unsupported { raw: [0x77; 16] }, [0x77; 16]),
        ];
        for (sgl, expected) in cases {
            assert_emits(&expected, |bytes| sgl.emit(bytes));
            assert_eq!(Sgl::parse(&expected), sgl);
        }
    }
}
