//! The layout table: a pool's members and LUNs. Its bytes are, in this order: `RawHeader`, the members, the LUNs, the
//! LUNs' runs of units, and the exports. Zeros fill the last 4 KiB block.
//!
//! The exports tell which hosts see the LUNs. The control plane defines the bytes of the exports, which begin with
//! their own version number. In a table written before exports were introduced, the length of the exports is zero.

use super::format::{
    BLOCK_BYTES, Damage, GENERATIONS, NAME_BYTES, NO_NEXT, TABLE_BYTES, VERSION, checksum, emit_name,
    parse_name, seal,
};
use crate::topology::{MAX_BACKENDS, MAX_LUNS};
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"TREFTBL\0";

trefoil_wire::layout! {
    /// The header, at byte 0 of the table.
    pub struct RawHeader [128] {
        /// `TREFTBL` and NUL.
        magic: [u8; 8] = 0,
        /// Format version.
        version: u32 = 8,
        /// CRC32C of `len_bytes` bytes with this field zero.
        crc32c: u32 = 12,
        /// The generation. Of two valid tables, the table with the higher generation is current.
        generation: u64 = 16,
        /// The pool.
        pool_uuid: [u8; 16] = 24,
        /// The pool's unit.
        unit_bytes: u64 = 40,
        /// Length of the table, padding included.
        len_bytes: u32 = 48,
        /// The number of members.
        members: u32 = 52,
        /// The number of LUNs.
        luns: u32 = 56,
        /// The number of runs of all LUNs together.
        runs: u32 = 60,
        /// Length of the exports.
        exports_bytes: u32 = 64,
    }
}

trefoil_wire::layout! {
    /// A member.
    pub struct RawMember [128] {
        /// The member's identity, as in its label.
        uuid: [u8; 16] = 0,
        /// Units of data on the member.
        units: u32 = 16,
        /// The member's logical block size.
        block_bytes: u32 = 20,
        /// Bit 0: the member keeps this table.
        flags: u32 = 24,
        /// The backend's name when the pool was made. UTF-8, padded with NUL.
        name: [u8; NAME_BYTES] = 32,
    }
}

trefoil_wire::layout! {
    /// A LUN.
    pub struct RawLun [256] {
        /// The LUN's UUID.
        uuid: [u8; 16] = 0,
        /// The LUN's NGUID.
        nguid: [u8; 16] = 16,
        /// The LUN's serial number, ASCII, padded with spaces.
        serial: [u8; 20] = 32,
        /// Logical block size.
        block_bytes: u32 = 52,
        /// Visible size in blocks; 0 while the LUN is being made.
        blocks: u64 = 56,
        /// Size in blocks after the present growth; 0 if the LUN is not growing.
        pending_blocks: u64 = 64,
        /// The time at which the LUN was made, in seconds of Unix time.
        created_at_s: u64 = 72,
        /// The LUN's NSID.
        nsid: u32 = 80,
        /// The number of the LUN's runs. In the table, they follow the runs of the previous LUN.
        runs: u32 = 84,
        /// UTF-8, padded with NUL.
        name: [u8; NAME_BYTES] = 96,
    }
}

trefoil_wire::layout! {
    /// A run of units.
    pub struct RawRun [16] {
        /// Index of the member.
        member: u32 = 0,
        /// The first unit on the member.
        start: u32 = 4,
        /// The number of units.
        units: u32 = 8,
    }
}

/// The number of runs for which every table has room.
pub(super) const MIN_RUNS: usize = 50_000;
const _: () = assert!(
    RawHeader::LEN + MAX_BACKENDS * RawMember::LEN + MAX_LUNS * RawLun::LEN + MIN_RUNS * RawRun::LEN
        <= TABLE_BYTES
);

/// A member's entry in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberEntry {
    /// The member's identity, as in its label.
    pub uuid: Uuid,
    /// Units of data on the member.
    pub units: u32,
    /// The member's logical block size.
    pub block_bytes: u32,
    /// Whether the member keeps the table.
    pub holder: bool,
    /// The backend's name when the pool was made.
    pub name: String,
}

/// Consecutive units of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the member.
    pub member: u32,
    /// The first unit on the member.
    pub start: u32,
    /// The number of units, not zero.
    pub units: u32,
}

/// A LUN's entry in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLun {
    /// The LUN's UUID.
    pub uuid: Uuid,
    /// The LUN's NGUID.
    pub nguid: [u8; 16],
    /// The LUN's serial number, ASCII, padded with spaces.
    pub serial: [u8; 20],
    /// The LUN's NSID.
    pub nsid: u32,
    /// The LUN's name, unique in the pool.
    pub name: String,
    /// The time at which the LUN was made, in seconds of Unix time.
    pub created_at_s: u64,
    /// Logical block size: 512 or 4096.
    pub block_bytes: u32,
    /// Visible size in blocks; 0 while the LUN is being made.
    pub blocks: u64,
    /// Size in blocks once the new units are zeroed; 0 if the LUN has no new units.
    pub pending_blocks: u64,
    /// The LUN's units in order.
    pub runs: Vec<Run>,
}

impl PoolLun {
    /// Returns whether the LUN can be presented.
    pub fn is_visible(&self) -> bool {
        self.blocks > 0
    }

    /// Returns the number of the LUN's units.
    pub fn units(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.units)).sum()
    }

    /// Returns the number of units that `blocks` of this LUN take.
    pub(super) fn units_for(&self, blocks: u64, unit_bytes: u64) -> Option<u64> {
        Some(blocks.checked_mul(u64::from(self.block_bytes))?.div_ceil(unit_bytes))
    }

    /// Removes the pending size and its units from the LUN.
    pub(super) fn roll_back(&mut self, unit_bytes: u64) {
        self.pending_blocks = 0;
        self.truncate(self.units_for(self.blocks, unit_bytes).unwrap_or(u64::MAX));
    }

    /// Joins runs that follow each other, so that the data path has fewer runs to search.
    pub(super) fn join_runs(&mut self) {
        self.runs.dedup_by(|next, run| {
            let follows = next.member == run.member && next.start == run.start + run.units;
            if follows {
                run.units += next.units;
            }
            follows
        });
    }

    /// Removes the units beyond the first `keep`.
    fn truncate(&mut self, keep: u64) {
        let mut left = keep;
        self.runs.retain_mut(|run| {
            run.units = u64::from(run.units).min(left) as u32;
            left -= u64::from(run.units);
            run.units > 0
        });
    }
}

/// A pool's layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The generation. Of two valid tables, the table with the higher generation is current.
    pub generation: u64,
    /// The pool.
    pub pool_uuid: Uuid,
    /// The pool's unit.
    pub unit_bytes: u64,
    /// The pool's members.
    pub members: Vec<MemberEntry>,
    /// The pool's LUNs.
    pub luns: Vec<PoolLun>,
    /// The exports; see the module.
    pub exports: Vec<u8>,
}

/// The reason for which a layout doesn't fit into its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// There are too many LUNs.
    #[error("a pool can't have more than {MAX_LUNS} LUNs")]
    Luns,
    /// The exports are too large, since there are too many subsystems and hosts.
    #[error(
        "the lists of hosts that see the pool's LUNs take {0} bytes, more than the layout can hold: use fewer hosts or subsystems"
    )]
    Exports(usize),
    /// The LUNs are too fragmented.
    #[error("the pool's LUNs are in {0} pieces, more than the layout can hold")]
    Runs(usize),
}

impl Table {
    /// Returns the length of the table that begins with these bytes, if these bytes begin a table. A reader must read
    /// that many bytes.
    pub(super) fn len_of(head: &[u8]) -> Option<usize> {
        let raw = RawHeader::parse(head.first_chunk()?);
        let len = raw.len_bytes as usize;
        (raw.magic == MAGIC && len <= TABLE_BYTES && len.is_multiple_of(BLOCK_BYTES)).then_some(len)
    }

    /// Returns the generation of the table of `pool` that begins with these bytes, even if the rest of the table is not
    /// valid.
    pub(super) fn generation_of(head: &[u8], pool: Uuid) -> Option<u64> {
        let raw = RawHeader::parse(head.first_chunk()?);
        (raw.magic == MAGIC && raw.pool_uuid == pool.into_bytes()).then_some(raw.generation)
    }

    /// Reads a table. Never panics. The returned table is consistent: see [`check`](Self::check).
    ///
    /// # Errors
    /// [`Damage`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let raw = RawHeader::parse(bytes.first_chunk().ok_or(Damage::Blank)?);
        if raw.magic != MAGIC {
            return Err(Damage::Blank);
        }
        let bytes = bytes.get(..raw.len_bytes as usize).ok_or(Damage::Checksum)?;
        if bytes.len() < RawHeader::LEN || raw.crc32c != checksum(bytes) {
            return Err(Damage::Checksum);
        }
        if raw.version != VERSION {
            return Err(Damage::Version(raw.version));
        }
        if raw.generation >= GENERATIONS {
            return Err(NO_NEXT);
        }
        let mut rest = bytes.get(RawHeader::LEN..).unwrap_or_default();
        let members = split::<{ RawMember::LEN }>(&mut rest, raw.members)?;
        let luns = split::<{ RawLun::LEN }>(&mut rest, raw.luns)?;
        let mut runs = split::<{ RawRun::LEN }>(&mut rest, raw.runs)?.iter().map(parse_run);
        let exports = rest
            .get(..raw.exports_bytes as usize)
            .ok_or(Damage::Invalid("the exports end past the table's end"))?;
        let table = Self {
            generation: raw.generation,
            pool_uuid: Uuid::from_bytes(raw.pool_uuid),
            unit_bytes: raw.unit_bytes,
            members: members.iter().map(parse_member).collect::<Result<_, _>>()?,
            luns: luns.iter().map(|lun| parse_lun(lun, &mut runs)).collect::<Result<_, _>>()?,
            exports: exports.to_vec(),
        };
        if runs.next().is_some() {
            return Err(Damage::Invalid("runs belong to no LUN"));
        }
        table.check().map_err(Damage::Invalid)?;
        Ok(table)
    }

    /// Returns the table's bytes, in whole blocks.
    ///
    /// # Errors
    /// [`TableError`] if the table doesn't fit.
    pub fn emit(&self) -> Result<Vec<u8>, TableError> {
        let runs: usize = self.luns.iter().map(|lun| lun.runs.len()).sum();
        if self.luns.len() > MAX_LUNS {
            return Err(TableError::Luns);
        }
        let len = RawHeader::LEN
            + self.members.len() * RawMember::LEN
            + self.luns.len() * RawLun::LEN
            + runs * RawRun::LEN;
        if len > TABLE_BYTES {
            return Err(TableError::Runs(runs));
        }
        let len = (len + self.exports.len()).next_multiple_of(BLOCK_BYTES);
        if len > TABLE_BYTES {
            return Err(TableError::Exports(self.exports.len()));
        }
        let mut bytes = Vec::with_capacity(len);
        let header = RawHeader {
            magic: MAGIC,
            version: VERSION,
            crc32c: 0,
            generation: self.generation,
            pool_uuid: self.pool_uuid.into_bytes(),
            unit_bytes: self.unit_bytes,
            len_bytes: len as u32,
            members: self.members.len() as u32,
            luns: self.luns.len() as u32,
            runs: runs as u32,
            exports_bytes: self.exports.len() as u32,
        };
        push(&mut bytes, |out| header.emit(out));
        for member in &self.members {
            push(&mut bytes, |out| emit_member(member, out));
        }
        for lun in &self.luns {
            push(&mut bytes, |out| emit_lun(lun, out));
        }
        for run in self.luns.iter().flat_map(|lun| &lun.runs) {
            let raw = RawRun { member: run.member, start: run.start, units: run.units };
            push(&mut bytes, |out| raw.emit(out));
        }
        bytes.extend_from_slice(&self.exports);
        bytes.resize(len, 0);
        seal(&mut bytes);
        Ok(bytes)
    }

    /// Checks that the table is a valid layout. All sizes and counts must be in range, and each LUN must have exactly
    /// the units that it needs. No unit may have two owners, and names and identities must be unique.
    ///
    /// # Errors
    /// The defect.
    pub fn check(&self) -> Result<(), &'static str> {
        use super::{MAX_UNIT_BYTES, MIN_UNIT_BYTES};
        if !self.unit_bytes.is_power_of_two() || !(MIN_UNIT_BYTES..=MAX_UNIT_BYTES).contains(&self.unit_bytes)
        {
            return Err("the unit is out of range");
        }
        if !(1..=MAX_BACKENDS).contains(&self.members.len()) || self.luns.len() > MAX_LUNS {
            return Err("the number of members or LUNs is out of range");
        }
        if has_twice(self.members.iter().map(|member| member.uuid)) {
            return Err("two members have the same UUID");
        }
        if has_twice(self.luns.iter().map(|lun| lun.uuid)) || has_twice(self.luns.iter().map(|lun| lun.nguid))
        {
            return Err("two LUNs have the same UUID or NGUID");
        }
        if has_twice(self.luns.iter().map(|lun| lun.name.as_str())) {
            return Err("two LUNs have the same name");
        }
        for lun in &self.luns {
            if !matches!(lun.block_bytes, 512 | 4096) {
                return Err("a LUN's block size is neither 512 nor 4096");
            }
            if lun.pending_blocks != 0 && lun.pending_blocks <= lun.blocks {
                return Err("a LUN's pending size is not larger than its size");
            }
            let units = lun.units_for(lun.blocks.max(lun.pending_blocks), self.unit_bytes);
            if units != Some(lun.units()) || lun.runs.is_empty() {
                return Err("a LUN's number of units does not fit its size");
            }
        }
        let mut runs: Vec<_> = self.luns.iter().flat_map(|lun| &lun.runs).collect();
        runs.sort_unstable_by_key(|run| (run.member, run.start));
        for run in &runs {
            let member = self.members.get(run.member as usize).ok_or("a run is on an unknown member")?;
            if run.units == 0 || run.start.checked_add(run.units).is_none_or(|end| end > member.units) {
                return Err("a run ends past its member's end");
            }
        }
        let shared = runs.windows(2).any(|pair| match pair {
            [a, b] => a.member == b.member && a.start + a.units > b.start,
            _ => false,
        });
        if shared { Err("two runs share a unit") } else { Ok(()) }
    }
}

fn has_twice<T: Ord>(values: impl Iterator<Item = T>) -> bool {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.windows(2).any(|pair| matches!(pair, [a, b] if a == b))
}

/// Takes `count` structures of `N` bytes from the front of `rest`.
fn split<'a, const N: usize>(rest: &mut &'a [u8], count: u32) -> Result<&'a [[u8; N]], Damage> {
    const SHORT: Damage = Damage::Invalid("the table is shorter than its counts say");
    let len = (count as usize).checked_mul(N).ok_or(SHORT)?;
    let (mine, after) = rest.split_at_checked(len).ok_or(SHORT)?;
    *rest = after;
    Ok(mine.as_chunks().0)
}

fn push<const N: usize>(bytes: &mut Vec<u8>, emit: impl FnOnce(&mut [u8; N])) {
    let mut out = [0; N];
    emit(&mut out);
    bytes.extend_from_slice(&out);
}

fn parse_member(bytes: &[u8; RawMember::LEN]) -> Result<MemberEntry, Damage> {
    let raw = RawMember::parse(bytes);
    Ok(MemberEntry {
        uuid: Uuid::from_bytes(raw.uuid),
        units: raw.units,
        block_bytes: raw.block_bytes,
        holder: raw.flags & 1 != 0,
        name: parse_name(&raw.name)?,
    })
}

fn emit_member(member: &MemberEntry, out: &mut [u8; RawMember::LEN]) {
    let raw = RawMember {
        uuid: member.uuid.into_bytes(),
        units: member.units,
        block_bytes: member.block_bytes,
        flags: u32::from(member.holder),
        name: emit_name(&member.name),
    };
    raw.emit(out);
}

fn parse_lun(bytes: &[u8; RawLun::LEN], runs: &mut impl Iterator<Item = Run>) -> Result<PoolLun, Damage> {
    let raw = RawLun::parse(bytes);
    Ok(PoolLun {
        uuid: Uuid::from_bytes(raw.uuid),
        nguid: raw.nguid,
        serial: raw.serial,
        nsid: raw.nsid,
        name: parse_name(&raw.name)?,
        created_at_s: raw.created_at_s,
        block_bytes: raw.block_bytes,
        blocks: raw.blocks,
        pending_blocks: raw.pending_blocks,
        runs: runs.take(raw.runs as usize).collect(),
    })
}

fn emit_lun(lun: &PoolLun, out: &mut [u8; RawLun::LEN]) {
    let raw = RawLun {
        uuid: lun.uuid.into_bytes(),
        nguid: lun.nguid,
        serial: lun.serial,
        block_bytes: lun.block_bytes,
        blocks: lun.blocks,
        pending_blocks: lun.pending_blocks,
        created_at_s: lun.created_at_s,
        nsid: lun.nsid,
        runs: lun.runs.len() as u32,
        name: emit_name(&lun.name),
    };
    raw.emit(out);
}

fn parse_run(bytes: &[u8; RawRun::LEN]) -> Run {
    let raw = RawRun::parse(bytes);
    Run { member: raw.member, start: raw.start, units: raw.units }
}
