//! The two macros that describe formats, and the field types that formats consist of.
//!
//! `layout!` declares a fixed-size structure with fields at byte offsets. `bits!` declares a register or dword with fields
//! at bit offsets. Both macros check at compile time that the fields ascend, don't overlap and end within the format.

/// A value of fixed size within a `layout!`.
///
/// `layout!` passes exactly `LEN` bytes to `load` and `store`. The macro checks the offsets at compile time.
pub trait Field: Copy {
    /// Size in bytes.
    const LEN: usize;
    /// Reads the value from `LEN` bytes.
    fn load(bytes: &[u8]) -> Self;
    /// Writes all `LEN` bytes of the value.
    fn store(self, bytes: &mut [u8]);
}

macro_rules! integer_field {
    ($($t:ty),*) => {$(
        impl Field for $t {
            const LEN: usize = size_of::<$t>();
            #[inline(always)]
            fn load(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$t>()];
                array.copy_from_slice(bytes);
                <$t>::from_le_bytes(array)
            }
            #[inline(always)]
            fn store(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
integer_field!(u8, u16, u32, u64, u128);

impl<const N: usize> Field for [u8; N] {
    const LEN: usize = N;
    #[inline(always)]
    fn load(bytes: &[u8]) -> Self {
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        array
    }
    #[inline(always)]
    fn store(self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self);
    }
}

/// Declares a fixed-size little-endian structure: `name: type = byte offset`.
///
/// Generates the struct with public fields, `LEN`, `parse(&[u8; LEN]) -> Self` (accepts all bytes),
/// `emit(&self, &mut [u8; LEN])` (writes zero between fields), and a `Default` whose bytes are all zero.
#[macro_export]
macro_rules! layout {
    ($(#[$meta:meta])* pub struct $name:ident [$len:expr] {
        $($(#[$field_meta:meta])* $field:ident : $type:ty = $at:expr),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        const _: () = {
            #[allow(unused_mut, unused_assignments)]
            let mut end = 0usize;
            $(
                assert!($at >= end, concat!("fields overlap at ", stringify!($field)));
                end = $at + <$type as $crate::Field>::LEN;
            )*
            assert!(end <= $len, "fields end past the format");
        };

        impl $name {
            /// Size of the format in bytes.
            #[allow(dead_code, reason = "formats that are wrapped by a checked value have their size there")]
            pub const LEN: usize = $len;

            /// Reads the fields. Every byte pattern is valid.
            #[inline]
            pub fn parse(bytes: &[u8; $len]) -> Self {
                Self {
                    $($field: <$type as $crate::Field>::load(
                        &bytes[$at..$at + <$type as $crate::Field>::LEN],
                    ),)*
                }
            }

            /// Writes every byte, with zero outside the fields.
            #[inline]
            pub fn emit(&self, bytes: &mut [u8; $len]) {
                bytes.fill(0);
                $(<$type as $crate::Field>::store(
                    self.$field,
                    &mut bytes[$at..$at + <$type as $crate::Field>::LEN],
                );)*
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::parse(&[0; $len])
            }
        }

        impl $crate::Field for $name {
            const LEN: usize = $len;
            #[inline(always)]
            fn load(bytes: &[u8]) -> Self {
                Self::parse(&<[u8; $len] as $crate::Field>::load(bytes))
            }
            #[inline(always)]
            fn store(self, bytes: &mut [u8]) {
                let mut array = [0; $len];
                self.emit(&mut array);
                bytes.copy_from_slice(&array);
            }
        }
    };
}

/// A bit field within a `bits!`.
pub trait BitField: Copy {
    /// Takes the value from the low bits of `bits`.
    fn from_bits(bits: u64) -> Self;
    /// Returns the value in the low bits.
    fn into_bits(self) -> u64;
}

impl BitField for bool {
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        bits & 1 != 0
    }
    #[inline(always)]
    fn into_bits(self) -> u64 {
        self as u64
    }
}

macro_rules! integer_bits {
    ($($t:ty),*) => {$(
        impl BitField for $t {
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                bits as $t
            }
            #[inline(always)]
            fn into_bits(self) -> u64 {
                self as u64
            }
        }
    )*};
}
integer_bits!(u8, u16, u32, u64);

/// Declares a register or dword as named bit fields: `name: type = lowest bit, width`.
///
/// Generates the struct with public fields, `from_bits(repr) -> Self` (ignores reserved bits) and `bits(self) -> repr`
/// (cuts a value that is too wide for its field). The struct is a [`Field`], so a `layout!` can contain it.
macro_rules! bits {
    ($(#[$meta:meta])* pub struct $name:ident : $repr:ident {
        $($(#[$field_meta:meta])* $field:ident : $type:ty = $low:literal, $width:literal);* $(;)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        const _: () = {
            #[allow(unused_mut, unused_assignments)]
            let mut end = 0u32;
            $(
                assert!($low >= end, concat!("bits overlap at ", stringify!($field)));
                end = $low + $width;
            )*
            assert!(end <= $repr::BITS, "bits end past the register");
        };

        impl $name {
            /// Reads the fields and ignores reserved bits.
            #[inline]
            pub fn from_bits(bits: $repr) -> Self {
                let bits = bits as u64;
                Self {
                    $($field: <$type as $crate::bytes::BitField>::from_bits(
                        (bits >> $low) & $crate::bytes::mask($width),
                    ),)*
                }
            }

            /// Returns the register's value. Reserved bits are zero. A value that is too wide for its field is cut to the
            /// field's width.
            #[inline]
            pub fn bits(self) -> $repr {
                let mut bits = 0u64;
                $(bits |= (<$type as $crate::bytes::BitField>::into_bits(self.$field)
                    & $crate::bytes::mask($width)) << $low;)*
                bits as $repr
            }
        }

        impl $crate::bytes::Field for $name {
            const LEN: usize = size_of::<$repr>();
            #[inline(always)]
            fn load(bytes: &[u8]) -> Self {
                Self::from_bits(<$repr as $crate::bytes::Field>::load(bytes))
            }
            #[inline(always)]
            fn store(self, bytes: &mut [u8]) {
                self.bits().store(bytes);
            }
        }
    };
}

/// Returns a mask with ones in the `width` low bits.
#[inline(always)]
pub(crate) const fn mask(width: u32) -> u64 {
    if width >= 64 { u64::MAX } else { (1 << width) - 1 }
}

/// The error for a buffer that is too short for its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} needs {need_bytes} bytes, and the buffer has {have_bytes}")]
pub struct Truncated {
    /// The name of the format that doesn't fit.
    pub what: &'static str,
    /// Size of the format in bytes.
    pub need_bytes: usize,
    /// Size of the buffer in bytes.
    pub have_bytes: usize,
}

/// Text of exactly `N` bytes, left-aligned and padded with spaces (NVMe base 2.0c §1.5 "ASCII strings").
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ascii<const N: usize>([u8; N]);

/// The reason why a text can't be an [`Ascii`] field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AsciiError {
    /// The text has more bytes than the field.
    #[error("text of {len_bytes} bytes exceeds its field of {max_bytes}")]
    TooLong {
        /// Bytes in the text.
        len_bytes: usize,
        /// Bytes in the field.
        max_bytes: usize,
    },
    /// A byte outside the printable range 20h to 7Eh.
    #[error("byte {byte:#04x} at {at} is not printable ASCII")]
    NotPrintable {
        /// Index of the byte.
        at: usize,
        /// The byte.
        byte: u8,
    },
}

impl<const N: usize> Ascii<N> {
    /// Pads `text` with spaces.
    pub fn new(text: &str) -> Result<Self, AsciiError> {
        if text.len() > N {
            return Err(AsciiError::TooLong { len_bytes: text.len(), max_bytes: N });
        }
        let mut array = [b' '; N];
        for (at, (to, byte)) in array.iter_mut().zip(text.bytes()).enumerate() {
            if !(0x20..=0x7e).contains(&byte) {
                return Err(AsciiError::NotPrintable { at, byte });
            }
            *to = byte;
        }
        Ok(Self(array))
    }

    /// Returns the field's bytes on the wire, padding included.
    pub const fn bytes(&self) -> &[u8; N] {
        &self.0
    }

    /// Returns the text without its padding, or an empty text if a peer sent bytes that are not UTF-8.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default().trim_end_matches([' ', '\0'])
    }
}

impl<const N: usize> Default for Ascii<N> {
    fn default() -> Self {
        Self([b' '; N])
    }
}

impl<const N: usize> std::fmt::Debug for Ascii<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.text(), f)
    }
}

impl<const N: usize> std::fmt::Display for Ascii<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl<const N: usize> Field for Ascii<N> {
    const LEN: usize = N;
    #[inline(always)]
    fn load(bytes: &[u8]) -> Self {
        Self(Field::load(bytes))
    }
    #[inline(always)]
    fn store(self, bytes: &mut [u8]) {
        self.0.store(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    bits! {
        /// Test register.
        pub struct Register: u16 {
            /// One bit.
            flag: bool = 0, 1;
            /// Some bits.
            middle: u8 = 4, 3;
            /// Top.
            top: u8 = 12, 4;
        }
    }

    layout! {
        /// Test layout.
        pub struct Packed [12] {
            /// Odd offset.
            word: u32 = 1,
            /// Register.
            register: Register = 6,
            /// Text.
            text: Ascii<3> = 8,
        }
    }

    #[test]
    fn layout_places_fields_and_clears_the_rest() {
        let value = Packed {
            word: 0x0403_0201,
            register: Register { flag: true, middle: 5, top: 0xa },
            text: Ascii::new("ab").unwrap(),
        };
        let expected = [0, 1, 2, 3, 4, 0, 0x51, 0xa0, b'a', b'b', b' ', 0];
        crate::golden::assert_emits(&expected, |bytes| value.emit(bytes));
        assert_eq!(Packed::parse(&expected), value);
    }

    #[test]
    fn bits_drop_reserved_and_cut_wide_values() {
        assert_eq!(Register::from_bits(0xffff).bits(), 0xf071);
        assert_eq!(Register { middle: 0xff, ..Register::default() }.bits(), 0x0070);
    }

    #[test]
    fn ascii_refuses_what_does_not_fit() {
        assert_eq!(Ascii::<2>::new("abc"), Err(AsciiError::TooLong { len_bytes: 3, max_bytes: 2 }));
        assert_eq!(Ascii::<2>::new("a\n"), Err(AsciiError::NotPrintable { at: 1, byte: 10 }));
        assert_eq!(Ascii::<4>::new("a b").unwrap().text(), "a b");
    }
}
