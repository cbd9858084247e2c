//! The Namespace Identification Descriptor list, CNS 03h (NVMe base 2.0c §5.17.2.3, figure 278).

use super::IDENTIFY_LEN;

/// One identifier of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceDescriptor {
    /// 1h: EUI-64, big-endian.
    Eui64([u8; 8]),
    /// 2h: NGUID.
    Nguid([u8; 16]),
    /// 3h: UUID.
    Uuid([u8; 16]),
    /// 4h: command set identifier.
    Csi(u8),
}

/// NIDT and NIDL, then two reserved bytes.
const HEADER_LEN: usize = 4;

impl NamespaceDescriptor {
    /// Returns the size of the descriptor in bytes, header included.
    pub const fn len_bytes(&self) -> usize {
        HEADER_LEN
            + match self {
                Self::Eui64(_) => 8,
                Self::Nguid(_) | Self::Uuid(_) => 16,
                Self::Csi(_) => 1,
            }
    }

    fn nidt(&self) -> u8 {
        match self {
            Self::Eui64(_) => 1,
            Self::Nguid(_) => 2,
            Self::Uuid(_) => 3,
            Self::Csi(_) => 4,
        }
    }

    fn nid(&self) -> &[u8] {
        match self {
            Self::Eui64(id) => id,
            Self::Nguid(id) | Self::Uuid(id) => id,
            Self::Csi(id) => std::slice::from_ref(id),
        }
    }
}

/// Writes every byte of the list, and leaves out descriptors that don't fit. Together, one descriptor of each type takes 57
/// bytes.
pub fn emit_namespace_descriptors(descriptors: &[NamespaceDescriptor], bytes: &mut [u8; IDENTIFY_LEN]) {
    bytes.fill(0);
    let mut rest = &mut bytes[..];
    for descriptor in descriptors {
        let Some((to, after)) = rest.split_at_mut_checked(descriptor.len_bytes()) else { return };
        let nid = descriptor.nid();
        let header = [descriptor.nidt(), nid.len() as u8, 0, 0];
        for (to, from) in to.iter_mut().zip(header.iter().chain(nid)) {
            *to = *from;
        }
        rest = after;
    }
}

/// Iterates over the descriptors of a list, in order. Skips unknown types, and ends at a malformed descriptor.
#[derive(Clone, Debug)]
pub struct NamespaceDescriptors<'a> {
    rest: &'a [u8],
}

impl<'a> NamespaceDescriptors<'a> {
    /// Reads a list.
    pub fn parse(bytes: &'a [u8; IDENTIFY_LEN]) -> Self {
        Self { rest: bytes }
    }
}

impl Iterator for NamespaceDescriptors<'_> {
    type Item = NamespaceDescriptor;

    fn next(&mut self) -> Option<NamespaceDescriptor> {
        loop {
            let ([nidt, nidl, _, _], rest) = self.rest.split_first_chunk()?;
            // NIDL 0 ends the list.
            if *nidl == 0 {
                return None;
            }
            let (nid, rest) = rest.split_at_checked(*nidl as usize)?;
            self.rest = rest;
            return Some(match (nidt, nid) {
                (1, _) => NamespaceDescriptor::Eui64(nid.try_into().ok()?),
                (2, _) => NamespaceDescriptor::Nguid(nid.try_into().ok()?),
                (3, _) => NamespaceDescriptor::Uuid(nid.try_into().ok()?),
                (4, [csi]) => NamespaceDescriptor::Csi(*csi),
                (4, _) => return None,
                _ => continue,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{assert_emits, bytes};

    #[test]
    fn golden() {
        let list = [
            NamespaceDescriptor::Eui64([1; 8]),
            NamespaceDescriptor::Nguid([2; 16]),
            NamespaceDescriptor::Uuid([3; 16]),
            NamespaceDescriptor::Csi(0),
        ];
        let expected = bytes(&[
            (0, &[1, 8, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
            (12, &[2, 16]),
            (16, &[2; 16]),
            (32, &[3, 16]),
            (36, &[3; 16]),
            (52, &[4, 1, 0, 0, 0]),
        ]);
        assert_emits(&expected, |bytes| emit_namespace_descriptors(&list, bytes));
        assert!(NamespaceDescriptors::parse(&expected).eq(list));
    }

    #[test]
    fn unknown_types_are_skipped_and_malformed_ones_end_the_list() {
        let skipped = bytes(&[(0, &[9, 2, 0, 0, 7, 7, 4, 1, 0, 0, 2])]);
        assert!(NamespaceDescriptors::parse(&skipped).eq([NamespaceDescriptor::Csi(2)]));
        let malformed = bytes(&[(0, &[1, 7, 0, 0]), (11, &[4, 1, 0, 0, 2])]);
        assert_eq!(NamespaceDescriptors::parse(&malformed).next(), None);
    }
}
