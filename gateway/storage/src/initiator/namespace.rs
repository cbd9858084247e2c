//! The identity of an array's namespace.

/// The identity of a namespace, which must not change between two associations; see [`NamespaceIdentity::is`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceIdentity {
    /// NGUID; zero if the namespace has none.
    pub nguid: [u8; 16],
    /// UUID; zero if the namespace has none.
    pub uuid: [u8; 16],
    /// EUI-64; zero if the namespace has none.
    pub eui64: [u8; 8],
    /// Logical block size in bytes.
    pub block_bytes: u32,
}

impl NamespaceIdentity {
    /// Returns whether both identities name one namespace. If both have an identifier of one kind, its values must be
    /// equal. The block sizes must be equal too. Both must have at least one kind of identifier in common, or neither
    /// has any identifier. One identity may have more identifiers than the other, since new firmware of an array may
    /// report more identifiers.
    pub fn is(&self, other: &Self) -> bool {
        fn pair<const N: usize>(one: [u8; N], other: [u8; N]) -> Option<bool> {
            (one != [0; N] && other != [0; N]).then_some(one == other)
        }
        let both =
            [pair(self.nguid, other.nguid), pair(self.uuid, other.uuid), pair(self.eui64, other.eui64)];
        let is_common = both.iter().any(Option::is_some) || self == other;
        is_common && both.iter().flatten().all(|same| *same) && self.block_bytes == other.block_bytes
    }
}

impl std::fmt::Display for NamespaceIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut is_named = false;
        for (name, bytes) in [("NGUID", &self.nguid[..]), ("UUID", &self.uuid), ("EUI-64", &self.eui64)] {
            if bytes.iter().any(|byte| *byte != 0) {
                write!(f, "{}{name} ", if is_named { ", " } else { "" })?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                is_named = true;
            }
        }
        if !is_named {
            write!(f, "a namespace without an identifier")?;
        }
        write!(f, " with blocks of {} bytes", self.block_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_reads_every_identifier_that_there_is() {
        let none = NamespaceIdentity { nguid: [0; 16], uuid: [0; 16], eui64: [0; 8], block_bytes: 512 };
        assert_eq!(none.to_string(), "a namespace without an identifier with blocks of 512 bytes");
        let both = NamespaceIdentity { nguid: [0x1a; 16], eui64: [2; 8], block_bytes: 4096, ..none };
        let told =
            "NGUID 1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a, EUI-64 0202020202020202 with blocks of 4096 bytes";
        assert_eq!(both.to_string(), told);
    }
}
