//! The Asymmetric Namespace Access log, 0Ch: a header of 16 bytes, then group descriptors of 32 bytes plus 4 for each
//! namespace (NVMe base 2.0c §5.16.1.13, figures 224 and 225).

use crate::bytes::Truncated;

layout! {
    /// The log's header.
    pub struct AnaHeader [16] {
        /// Change count; 0 if not reported.
        change_count: u64 = 0,
        /// Number of group descriptors.
        groups: u16 = 8,
    }
}

layout! {
    /// The fixed part of a group descriptor. The NSIDs follow it.
    pub struct GroupFields [32] {
        /// ANA group identifier.
        group_id: u32 = 0,
        /// Number of NSIDs that follow.
        nsids: u32 = 4,
        /// Change count.
        change_count: u64 = 8,
        /// State, bits 3:0.
        state: u8 = 16,
    }
}

/// ANA states (NVMe base 2.0c §8.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnaState {
    /// 01h.
    Optimized,
    /// 02h.
    NonOptimized,
    /// 03h.
    Inaccessible,
    /// 04h.
    PersistentLoss,
    /// 0Fh.
    Change,
    /// Others.
    Reserved(u8),
}

impl AnaState {
    /// Reads bits 3:0.
    pub fn from_bits(bits: u8) -> Self {
        match bits & 0xf {
            0x1 => Self::Optimized,
            0x2 => Self::NonOptimized,
            0x3 => Self::Inaccessible,
            0x4 => Self::PersistentLoss,
            0xf => Self::Change,
            other => Self::Reserved(other),
        }
    }

    /// Returns bits 3:0.
    pub fn bits(self) -> u8 {
        match self {
            Self::Optimized => 0x1,
            Self::NonOptimized => 0x2,
            Self::Inaccessible => 0x3,
            Self::PersistentLoss => 0x4,
            Self::Change => 0xf,
            Self::Reserved(other) => other & 0xf,
        }
    }

    /// Returns whether a host may send commands in this state.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }
}

/// Returns the size in bytes of a log with `groups` groups and a total of `nsids` namespaces.
pub const fn ana_log_len(groups: usize, nsids: usize) -> usize {
    AnaHeader::LEN + groups * GroupFields::LEN + nsids * 4
}

/// Writes a log, group by group, into the caller's buffer.
#[derive(Debug)]
pub struct AnaLogWriter<'a> {
    buffer: &'a mut [u8],
    len: usize,
    change_count: u64,
    groups: u16,
}

impl<'a> AnaLogWriter<'a> {
    /// Starts a log. [`ana_log_len`] gives the necessary size of `buffer`.
    pub fn new(change_count: u64, buffer: &'a mut [u8]) -> Result<Self, Truncated> {
        let have_bytes = buffer.len();
        if have_bytes < AnaHeader::LEN {
            return Err(Truncated { what: "ANA log header", need_bytes: AnaHeader::LEN, have_bytes });
        }
        Ok(Self { buffer, len: AnaHeader::LEN, change_count, groups: 0 })
    }

    /// Adds a group with its NSIDs in ascending order (none if the host requested Return Groups Only). On error, no
    /// group is added.
    pub fn group(
        &mut self,
        group_id: u32,
        change_count: u64,
        state: AnaState,
        nsids: impl IntoIterator<Item = u32>,
    ) -> Result<(), Truncated> {
        let have_bytes = self.buffer.len();
        let full = Truncated { what: "ANA log group", need_bytes: self.len + GroupFields::LEN, have_bytes };
        let free = self.buffer.get_mut(self.len..).unwrap_or_default();
        let Some((header, rest)) = free.split_first_chunk_mut() else { return Err(full) };
        let (slots, _) = rest.as_chunks_mut::<4>();
        let mut slots = slots.iter_mut();
        let mut count = 0u32;
        for nsid in nsids {
            let Some(slot) = slots.next() else {
                return Err(Truncated { need_bytes: have_bytes + 4, ..full });
            };
            *slot = nsid.to_le_bytes();
            count += 1;
        }
        GroupFields { group_id, nsids: count, change_count, state: state.bits() }.emit(header);
        self.len += GroupFields::LEN + count as usize * 4;
        self.groups += 1;
        Ok(())
    }

    /// Ends the log: writes its header and returns its length in bytes. The bytes after the log keep their old values,
    /// unless a group did not fit. Parts of that group may then stand after the log.
    pub fn finish(self) -> usize {
        if let Some(header) = self.buffer.first_chunk_mut() {
            AnaHeader { change_count: self.change_count, groups: self.groups }.emit(header);
        }
        self.len
    }
}

/// A view of a received log.
#[derive(Clone, Copy, Debug)]
pub struct AnaLog<'a> {
    /// Change count.
    pub change_count: u64,
    /// Number of groups that the header announces.
    pub groups: u16,
    rest: &'a [u8],
}

/// One group of a log.
#[derive(Clone, Copy, Debug)]
pub struct AnaGroup<'a> {
    /// Identifier.
    pub group_id: u32,
    /// Change count.
    pub change_count: u64,
    /// State.
    pub state: AnaState,
    nsids: &'a [u8],
}

impl<'a> AnaGroup<'a> {
    /// Returns the NSIDs of the group.
    pub fn nsids(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.nsids.as_chunks().0.iter().map(|nsid| u32::from_le_bytes(*nsid))
    }

    /// Returns the size of the group in the log, in bytes.
    pub fn len_bytes(&self) -> usize {
        GroupFields::LEN + self.nsids.len()
    }
}

impl<'a> AnaLog<'a> {
    /// Reads the header.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Truncated> {
        let Some((header, rest)) = bytes.split_first_chunk() else {
            return Err(Truncated {
                what: "ANA log header",
                need_bytes: AnaHeader::LEN,
                have_bytes: bytes.len(),
            });
        };
        let header = AnaHeader::parse(header);
        Ok(Self { change_count: header.change_count, groups: header.groups, rest })
    }

    /// Returns the groups in order. If the buffer holds only a part of a group, this group is an error and the last item.
    pub fn iter(&self) -> AnaGroups<'a> {
        AnaGroups { left: self.groups, rest: self.rest }
    }
}

/// Iterates over the groups of a log.
#[derive(Clone, Debug)]
pub struct AnaGroups<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> AnaGroups<'a> {
    /// Returns the groups in `bytes`, a piece of a log that begins with a group. `left` is the number of groups from this
    /// group to the end of the log.
    pub fn from_middle(left: u16, bytes: &'a [u8]) -> Self {
        Self { left, rest: bytes }
    }
}

impl<'a> Iterator for AnaGroups<'a> {
    type Item = Result<AnaGroup<'a>, Truncated>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let group = self.group();
        if group.is_err() {
            self.left = 0;
        }
        Some(group)
    }
}

impl<'a> AnaGroups<'a> {
    fn group(&mut self) -> Result<AnaGroup<'a>, Truncated> {
        let truncated = |need_bytes, have_bytes| Truncated { what: "ANA log group", need_bytes, have_bytes };
        let (header, rest) =
            self.rest.split_first_chunk().ok_or(truncated(GroupFields::LEN, self.rest.len()))?;
        let fields = GroupFields::parse(header);
        let need_bytes = (fields.nsids as usize).saturating_mul(4);
        let (nsids, rest) = rest.split_at_checked(need_bytes).ok_or(truncated(need_bytes, rest.len()))?;
        self.rest = rest;
        Ok(AnaGroup {
            group_id: fields.group_id,
            change_count: fields.change_count,
            state: AnaState::from_bits(fields.state),
            nsids,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> [u8; 92] {
        crate::golden::bytes(&[
            (0, &[7, 0, 0, 0, 0, 0, 0, 0, 2]),
            (16, &[1, 0, 0, 0, 2, 0, 0, 0, 5]),
            (32, &[1]),
            (48, &[1, 0, 0, 0, 9]),
            (56, &[2, 0, 0, 0, 1, 0, 0, 0, 6]),
            (72, &[0x0f]),
            (88, &[3]),
        ])
    }

    #[test]
    fn emits_and_parses() {
        assert_eq!(ana_log_len(2, 3), golden().len());
        crate::golden::assert_emits(&golden(), |bytes| {
            let mut log = AnaLogWriter::new(7, bytes).unwrap();
            log.group(1, 5, AnaState::Optimized, [1, 9]).unwrap();
            log.group(2, 6, AnaState::Change, [3]).unwrap();
            assert!(log.group(3, 6, AnaState::Change, [4]).is_err());
            assert_eq!(log.finish(), 92);
        });
        let bytes = golden();
        let log = AnaLog::parse(&bytes).unwrap();
        let groups: Vec<_> = log.iter().map(Result::unwrap).collect();
        assert_eq!((log.change_count, log.groups, groups.len()), (7, 2, 2));
        assert_eq!(
            (groups[0].group_id, groups[0].change_count, groups[0].state),
            (1, 5, AnaState::Optimized)
        );
        assert!(groups[0].nsids().eq([1, 9]) && groups[1].nsids().eq([3]));
        assert!(groups[0].state.is_usable() && !groups[1].state.is_usable());
    }

    #[test]
    fn a_cut_group_is_an_error_and_the_last_item() {
        let bytes = golden();
        let log = AnaLog::parse(&bytes[..bytes.len() - 1]).unwrap();
        let mut groups = log.iter();
        assert!(groups.next().unwrap().is_ok());
        assert_eq!(groups.next().unwrap().unwrap_err().need_bytes, 4);
        assert!(groups.next().is_none());
        assert!(AnaLog::parse(&bytes[..15]).is_err());
    }

    #[test]
    fn a_group_whose_namespaces_do_not_fit_is_not_counted() {
        let mut buffer = [0xff; 16 + 32 + 4];
        let mut log = AnaLogWriter::new(0, &mut buffer).unwrap();
        assert!(log.group(1, 0, AnaState::Optimized, [1, 2]).is_err());
        assert_eq!(log.finish(), 16);
        assert_eq!(AnaLog::parse(&buffer).unwrap().iter().count(), 0);
    }
}
