//! The Changed Namespace List, 04h, 4096 bytes (NVMe base 2.0c §5.16.1.5).

use crate::nvme::identify::NamespaceList;

/// NSIDs that changed since the log was last read, or that there are too many to list.
#[derive(Clone, Copy, Debug)]
pub enum ChangedNamespaces<'a> {
    /// The NSIDs.
    These(NamespaceList<'a>),
    /// More than 1024: FFFFFFFFh alone.
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

    /// Writes every byte: `nsids` in ascending order, or the mark of too many if there are more than 1024.
    pub fn emit(nsids: impl IntoIterator<Item = u32>, bytes: &mut [u8; 4096]) {
        let mut nsids = nsids.into_iter();
        NamespaceList::emit(nsids.by_ref().take(NamespaceList::MAX), bytes);
        if nsids.next().is_some() {
            NamespaceList::emit([crate::nvme::NSID_ALL], bytes);
        }
    }
}
