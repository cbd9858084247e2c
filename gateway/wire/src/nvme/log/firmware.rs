//! The Firmware Slot Information log, 03h, 512 bytes (NVMe base 2.0c §5.16.1.4, figure 208).

use crate::bytes::Ascii;

layout! {
    /// Firmware revisions by slot. An unused slot has zeros on the wire.
    pub struct FirmwareSlots [512] {
        /// AFI: bits 2:0 the slot in use, bits 6:4 the slot that the next reset activates (0 for none).
        afi: u8 = 0,
        /// Slot 1.
        frs1: Ascii<8> = 8,
        /// Slot 2.
        frs2: Ascii<8> = 16,
        /// Slot 3.
        frs3: Ascii<8> = 24,
        /// Slot 4.
        frs4: Ascii<8> = 32,
        /// Slot 5.
        frs5: Ascii<8> = 40,
        /// Slot 6.
        frs6: Ascii<8> = 48,
        /// Slot 7.
        frs7: Ascii<8> = 56,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let slots = FirmwareSlots { afi: 1, frs1: Ascii::new("0.1.0").unwrap(), ..Default::default() };
        let expected = crate::golden::bytes(&[(0, &[1]), (8, b"0.1.0   ")]);
        crate::golden::assert_emits(&expected, |bytes| slots.emit(bytes));
        assert_eq!(FirmwareSlots::parse(&expected), slots);
    }
}
