//! The common parts of labels and tables: offsets, sizes, checksums, names.

/// The granularity of all writes outside of data.
pub(super) const BLOCK_BYTES: usize = 4096;
/// The offsets of the label's two slots.
pub(super) const LABEL_AT: [u64; 2] = [0, 4096];
/// The offset at which the label's slots end.
pub(super) const LABELS_BYTES: u64 = LABEL_AT[1] + BLOCK_BYTES as u64;
/// The size of a table's slot.
pub(super) const TABLE_BYTES: usize = 2_031_616;
/// The offsets of the table's two slots.
pub(super) const TABLE_AT: [u64; 2] = [128 << 10, (128 << 10) + TABLE_BYTES as u64];
/// The size of both table slots: 3.9 MiB.
pub(super) const TABLE_AREA_BYTES: u64 = 2 * TABLE_BYTES as u64;
/// The lowest offset of data.
pub(super) const META_BYTES: u64 = 4 << 20;

const _: () = assert!(TABLE_AT[0] + TABLE_AREA_BYTES == META_BYTES);
const _: () = assert!(TABLE_AREA_BYTES <= super::ZERO_PIECE_BYTES);
const _: () = assert!(TABLE_BYTES.is_multiple_of(BLOCK_BYTES));

/// The format version of labels and tables.
pub(super) const VERSION: u32 = 1;
/// The offset of the checksum in labels and tables.
pub(super) const CRC_AT: usize = 12;
/// The longest name, in bytes of UTF-8.
pub(super) const NAME_BYTES: usize = 64;

/// The reason for which a slot's contents can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The slot is empty, or its contents are not a label or table of Trefoil.
    #[error("no Trefoil data")]
    Blank,
    /// The slot has a label or table of Trefoil, but its contents are damaged.
    #[error("wrong checksum")]
    Checksum,
    /// The contents were written by a newer program.
    #[error("unknown format version {0}")]
    Version(u32),
    /// The checksum is correct but the contents are impossible.
    #[error("{0}")]
    Invalid(&'static str),
}

/// The lowest generation that is refused. Every change is a new generation, and no pool makes so many changes. A
/// generation at or above this value counts as having no next generation.
pub(super) const GENERATIONS: u64 = u64::MAX / 2;
pub(super) const NO_NEXT: Damage = Damage::Invalid("the generation has no next number");

/// Returns the offset of the first byte of data on a member of a pool with this unit.
pub(super) fn data_start(unit_bytes: u64) -> u64 {
    META_BYTES.next_multiple_of(unit_bytes)
}

/// Writes the checksum of all of `bytes` into its field.
pub(super) fn seal(bytes: &mut [u8]) {
    let crc = checksum(bytes);
    if let Some(field) = bytes.get_mut(CRC_AT..CRC_AT + 4) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
}

/// Returns the CRC32C of `bytes`, with the checksum field taken as zero.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let (head, tail) = bytes.split_at(CRC_AT.min(bytes.len()));
    let tail = tail.get(4..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]), tail)
}

/// Returns the name, padded with NUL and cut at [`NAME_BYTES`]. Callers have checked the length.
pub(super) fn emit_name(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

/// Returns the name in a field.
pub(super) fn parse_name(bytes: &[u8; NAME_BYTES]) -> Result<String, Damage> {
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(NAME_BYTES);
    let (name, pad) = bytes.split_at(len);
    if pad.iter().any(|&byte| byte != 0) {
        return Err(Damage::Invalid("a name continues after its end"));
    }
    let name = String::from_utf8(name.to_vec()).map_err(|_| Damage::Invalid("a name is not UTF-8"))?;
    // The name will be shown on an operator's terminal.
    match name.chars().any(char::is_control) {
        true => Err(Damage::Invalid("a name has control characters")),
        false => Ok(name),
    }
}

/// Returns whether `name` is valid: it fits its field and has no control characters.
pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
}
