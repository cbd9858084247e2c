//! Lists of 4096 bytes: namespaces (CNS 02h, 07h, 10h), controllers (12h, 13h), I/O command sets (1Ch), UUIDs (17h) and
//! secondary controllers (15h) (NVMe base 2.0c §4.4, §5.17.2).

use super::IDENTIFY_LEN;

/// A list of NSIDs in ascending order, ended by 0 or the end of the page.
#[derive(Clone, Copy, Debug)]
pub struct NamespaceList<'a> {
    bytes: &'a [u8; IDENTIFY_LEN],
}

impl<'a> NamespaceList<'a> {
    /// Most entries.
    pub const MAX: usize = IDENTIFY_LEN / 4;

    /// Reads a list.
    pub fn parse(bytes: &'a [u8; IDENTIFY_LEN]) -> Self {
        Self { bytes }
    }

    /// Returns the NSIDs.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        let (entries, _) = self.bytes.as_chunks();
        entries.iter().map(|entry| u32::from_le_bytes(*entry)).take_while(|&nsid| nsid != 0)
    }

    /// Writes every byte: the first [`NamespaceList::MAX`] of `nsids`, then zeros. `nsids` must be in ascending order.
    /// Returns the number of written NSIDs.
    pub fn emit(nsids: impl IntoIterator<Item = u32>, bytes: &mut [u8; IDENTIFY_LEN]) -> usize {
        bytes.fill(0);
        let mut count = 0;
        for (to, nsid) in bytes.as_chunks_mut().0.iter_mut().zip(nsids) {
            *to = nsid.to_le_bytes();
            count += 1;
        }
        count
    }
}

/// A list of controller identifiers in ascending order: a count, then the identifiers.
#[derive(Clone, Copy, Debug)]
pub struct ControllerList<'a> {
    bytes: &'a [u8; IDENTIFY_LEN],
}

impl<'a> ControllerList<'a> {
    /// Most entries.
    pub const MAX: usize = IDENTIFY_LEN / 2 - 1;

    /// Reads a list.
    pub fn parse(bytes: &'a [u8; IDENTIFY_LEN]) -> Self {
        Self { bytes }
    }

    /// Returns the identifiers. If the count exceeds the page, returns only the identifiers in the page.
    pub fn iter(&self) -> impl Iterator<Item = u16> + use<'a> {
        let mut entries = self.bytes.as_chunks().0.iter().map(|entry| u16::from_le_bytes(*entry));
        let count = entries.next().unwrap_or(0);
        entries.take(count as usize)
    }

    /// Writes every byte: the first [`ControllerList::MAX`] of `cntlids`, then zeros. `cntlids` must be in ascending order.
    /// Returns the number of written identifiers.
    pub fn emit(cntlids: impl IntoIterator<Item = u16>, bytes: &mut [u8; IDENTIFY_LEN]) -> usize {
        bytes.fill(0);
        let (entries, _) = bytes.as_chunks_mut::<2>();
        let Some((count, entries)) = entries.split_first_mut() else { return 0 };
        let mut written = 0u16;
        for (to, cntlid) in entries.iter_mut().zip(cntlids) {
            *to = cntlid.to_le_bytes();
            written += 1;
        }
        *count = written.to_le_bytes();
        written as usize
    }
}

/// I/O command set combinations, CNS 1Ch: 512 vectors of 8 bytes, bit n for CSI n (NVMe base 2.0c §5.17.2.21).
#[derive(Clone, Copy, Debug)]
pub struct IoCommandSetList<'a> {
    bytes: &'a [u8; IDENTIFY_LEN],
}

impl<'a> IoCommandSetList<'a> {
    /// The vector of the NVM command set alone.
    pub const NVM: u64 = 1;

    /// Reads a list.
    pub fn parse(bytes: &'a [u8; IDENTIFY_LEN]) -> Self {
        Self { bytes }
    }

    /// Returns the vectors up to the first zero vector.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        let (entries, _) = self.bytes.as_chunks();
        entries.iter().map(|entry| u64::from_le_bytes(*entry)).take_while(|&vector| vector != 0)
    }

    /// Writes every byte.
    pub fn emit(vectors: impl IntoIterator<Item = u64>, bytes: &mut [u8; IDENTIFY_LEN]) {
        bytes.fill(0);
        for (to, vector) in bytes.as_chunks_mut().0.iter_mut().zip(vectors) {
            *to = vector.to_le_bytes();
        }
    }
}

/// The UUID list, CNS 17h (NVMe base 2.0c figure 289). Entry 0 is reserved. Each entry has a header byte, and its UUID
/// starts at byte 16.
#[derive(Clone, Copy, Debug)]
pub struct UuidList<'a> {
    bytes: &'a [u8; IDENTIFY_LEN],
}

impl<'a> UuidList<'a> {
    const ENTRY_LEN: usize = 32;

    /// Reads a list.
    pub fn parse(bytes: &'a [u8; IDENTIFY_LEN]) -> Self {
        Self { bytes }
    }

    /// Returns the UUIDs up to the first zero UUID.
    pub fn iter(&self) -> impl Iterator<Item = [u8; 16]> + use<'a> {
        let (entries, _) = self.bytes.as_chunks::<{ UuidList::ENTRY_LEN }>();
        entries
            .iter()
            .skip(1)
            .filter_map(|entry| entry.last_chunk().copied())
            .take_while(|uuid| *uuid != [0; 16])
    }

    /// Writes every byte.
    pub fn emit(uuids: impl IntoIterator<Item = [u8; 16]>, bytes: &mut [u8; IDENTIFY_LEN]) {
        bytes.fill(0);
        let (entries, _) = bytes.as_chunks_mut::<{ UuidList::ENTRY_LEN }>();
        for (entry, uuid) in entries.iter_mut().skip(1).zip(uuids) {
            if let Some(to) = entry.last_chunk_mut() {
                *to = uuid;
            }
        }
    }
}

/// The secondary controller list, CNS 15h, of a subsystem without secondary controllers. ESXi and nvme-cli request the
/// list.
#[derive(Clone, Copy, Debug)]
pub struct SecondaryControllerList;

impl SecondaryControllerList {
    /// Writes every byte: a count of 0.
    pub fn emit_empty(bytes: &mut [u8; IDENTIFY_LEN]) {
        bytes.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{assert_emits, bytes};

    #[test]
    fn namespaces() {
        let expected = bytes(&[(0, &[1, 0, 0, 0, 0, 1])]);
        assert_emits(&expected, |bytes| assert_eq!(NamespaceList::emit([1, 256], bytes), 2));
        assert!(NamespaceList::parse(&expected).iter().eq([1, 256]));
        let mut full = [0; IDENTIFY_LEN];
        assert_eq!(NamespaceList::emit(1.., &mut full), NamespaceList::MAX);
        assert!(NamespaceList::parse(&full).iter().eq(1..=1024));
    }

    #[test]
    fn controllers() {
        let expected = bytes(&[(0, &[2, 0, 1, 0, 3])]);
        assert_emits(&expected, |bytes| assert_eq!(ControllerList::emit([1, 3], bytes), 2));
        assert!(ControllerList::parse(&expected).iter().eq([1, 3]));
        assert_eq!(ControllerList::parse(&[0xff; IDENTIFY_LEN]).iter().count(), ControllerList::MAX);
    }

    #[test]
    fn command_sets_and_uuids() {
        let expected = bytes(&[(0, &[1])]);
        assert_emits(&expected, |bytes| IoCommandSetList::emit([IoCommandSetList::NVM], bytes));
        assert!(IoCommandSetList::parse(&expected).iter().eq([1]));
        let expected = bytes(&[(48, &[5; 16])]);
        assert_emits(&expected, |bytes| UuidList::emit([[5; 16]], bytes));
        assert!(UuidList::parse(&expected).iter().eq([[5; 16]]));
        assert_emits(&[0; IDENTIFY_LEN], SecondaryControllerList::emit_empty);
    }
}
