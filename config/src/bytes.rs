//! Sizes: a number of bytes, or text such as `10GiB`.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A number of bytes. The text form is a whole number with an optional unit, in upper or lower case. The unit is binary
/// (`KiB`, `MiB`, `GiB`, `TiB`, or `K`, `M`, `G`, `T`) or decimal (`kB`, `MB`, `GB`, `TB`). Without a unit, the number
/// counts bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// The reason why a text isn't a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BytesError {
    /// The text doesn't start with a whole number.
    #[error("`{0}` is not a size: write a whole number and a unit, such as 10GiB")]
    Number(String),
    /// An unknown unit.
    #[error(
        "`{0}` is not a unit of size: use KiB, MiB, GiB or TiB (short: K, M, G, T), or kB, MB, GB or TB, or B"
    )]
    Unit(String),
    /// More than 2^63 - 1 bytes.
    #[error("`{0}` is too large: the largest size is 9223372036854775807 bytes")]
    Large(String),
}

const UNITS: [(&str, u64); 13] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("B", 1),
];

impl Bytes {
    /// Returns the size as text for a human reader. The unit is the largest binary unit that divides the size, or that is
    /// at most a tenth of the size. In the second case the number has one decimal.
    pub fn rounded(self) -> String {
        for (unit, scale) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            let whole = self.0 / scale;
            if whole > 0 && self.0.is_multiple_of(scale) {
                return format!("{whole}{unit}");
            }
            if whole >= 10 {
                return format!("{:.1}{unit}", self.0 as f64 / scale as f64);
            }
        }
        format!("{}B", self.0)
    }
}

impl FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        if number.is_empty() || unit.starts_with(['.', ',']) {
            return Err(BytesError::Number(text.into()));
        }
        let unit = unit.trim();
        let scale = match unit {
            "" => 1,
            _ => UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, scale)| *scale)
                .ok_or_else(|| BytesError::Unit(unit.into()))?,
        };
        let large = || BytesError::Large(text.into());
        let number: u64 = number.parse().map_err(|_| large())?;
        // The largest integer of TOML, and of many JSON readers, is 2^63 - 1.
        number.checked_mul(scale).filter(|&n| i64::try_from(n).is_ok()).map(Self).ok_or_else(large)
    }
}

impl fmt::Display for Bytes {
    /// Writes the size in the largest binary unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS[..4].iter().find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale)) {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"10GiB\", or a number of bytes")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Bytes, E> {
                // A backup could not store a size above the largest integer.
                self.visit_str(&n.to_string())
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Bytes, E> {
                u64::try_from(n).map(Bytes).map_err(|_| E::custom("a size can't be negative"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_what_they_say() {
        assert_eq!("10GiB".parse(), Ok(Bytes(10 << 30)));
        assert_eq!("10 GB".parse(), Ok(Bytes(10_000_000_000)));
        assert_eq!("4096".parse(), Ok(Bytes(4096)));
        for (text, bytes) in
            [("10gib", 10 << 30), ("10G", 10 << 30), ("2K", 2048), ("2KB", 2000), ("3mb", 3_000_000)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["1.5MiB", "1,5", ".5GiB"] {
            let error = text.parse::<Bytes>().expect_err(text).to_string();
            assert_eq!(
                error,
                format!("`{text}` is not a size: write a whole number and a unit, such as 10GiB")
            );
        }
        let error = BytesError::Unit("foo".into()).to_string();
        for (unit, _) in UNITS {
            let is_word = |word: &str| word.trim_matches([',', '(', ')']) == unit;
            assert!(error.split(' ').any(is_word), "{unit} is a unit, and not told: {error}");
        }
        assert_eq!("3 foo".parse::<Bytes>(), Err(BytesError::Unit("foo".into())));
        assert_eq!("GiB".parse::<Bytes>(), Err(BytesError::Number("GiB".into())));
        assert!(matches!("99999999TiB".parse::<Bytes>(), Err(BytesError::Large(_))));
    }

    #[test]
    fn rounded_sizes_read_well() {
        let texts = [0, 1 << 40, 15 << 29, 12_345_678].map(|n| Bytes(n).rounded());
        assert_eq!(texts, ["0B", "1TiB", "7680MiB", "11.8MiB"]);
    }

    #[test]
    fn a_number_has_the_limit_of_a_text() {
        let read = |n: u64| Bytes::deserialize(de::value::U64Deserializer::<de::value::Error>::new(n));
        assert_eq!(read(i64::MAX as u64), Ok(Bytes(i64::MAX as u64)));
        assert!(
            read(1 << 63).expect_err("too large").to_string().contains("is too large: the largest size is")
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(n in 0..=i64::MAX as u64) {
            prop_assert_eq!(Bytes(n).to_string().parse(), Ok(Bytes(n)));
            let aligned = n & !0xF_FFFF;
            prop_assert_eq!(Bytes(aligned).to_string().parse(), Ok(Bytes(aligned)));
        }
    }
}
