//! The Firmware Slot Information log, 03h, 512 bytes (NVMe base 2.0c §5.16.1.4, figure 208).

use crate::bytes::Ascii;

layout! {
    /// Revisions by slot. A slot that is not used is zeros on the wire.
    pub struct FirmwareSlots [512] {
        /// AFI: bits 2:0 the slot in use, 6:4 the slot after the next reset (0 for none).
        afi: u8 = 0,
        /// Slot 1.
        frs1: Ascii<8> = 8,
    }
}
