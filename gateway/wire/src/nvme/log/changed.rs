//! The Changed Namespace List, 04h, 4096 bytes (NVMe base 2.0c §5.16.1.5).

use crate::nvme::identify::NamespaceList;

/// The NSIDs of namespaces that have changed since the last read of the log, or the mark of too many NSIDs for the list.
#[derive(Clone, Copy, Debug)]
pub enum ChangedNamespaces<'a> {
    /// The NSIDs.
    These(NamespaceList<'a>),
    /// More than 1024 NSIDs. The list has only the entry FFFFFFFFh.
    TooMany,
}

impl<'a> ChangedNamespaces<'a> {
    /// Size in bytes.
    pub const LEN: usize = 4096;

    /// Reads the log.
    pub fn parse(bytes: &'a [u8; 4096]) -> Self {
        let list = NamespaceList::parse(bytes);
        match list.iter().next() {
            Some(crate::nvme::NSID_ALL) => Self::TooMany,
            _ => Self::These(list),
        }
    }

    /// Writes every byte: `nsids`, which must be in ascending order, or for more than 1024 NSIDs the mark of too many.
    pub fn emit(nsids: impl IntoIterator<Item = u32>, bytes: &mut [u8; 4096]) {
        let mut nsids = nsids.into_iter();
        NamespaceList::emit(nsids.by_ref().take(NamespaceList::MAX), bytes);
        if nsids.next().is_some() {
            NamespaceList::emit([crate::nvme::NSID_ALL], bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let expected = crate::golden::bytes(&[(0, &[2, 0, 0, 0, 5])]);
        crate::golden::assert_emits(&expected, |bytes| ChangedNamespaces::emit([2, 5], bytes));
        assert!(
            matches!(ChangedNamespaces::parse(&expected), ChangedNamespaces::These(list) if list.iter().eq([2, 5]))
        );
        let expected = crate::golden::bytes(&[(0, &[0xff; 4])]);
        crate::golden::assert_emits(&expected, |bytes| ChangedNamespaces::emit(1..=1025, bytes));
        assert!(matches!(ChangedNamespaces::parse(&expected), ChangedNamespaces::TooMany));
        let mut full = [0; 4096];
        ChangedNamespaces::emit(1..=1024, &mut full);
        assert!(
            matches!(ChangedNamespaces::parse(&full), ChangedNamespaces::These(list) if list.iter().count() == 1024)
        );
    }
}
