//! What labels and tables have in common: places, sizes, checksums, names.

/// Granularity of everything that is written outside of data.
pub(super) const BLOCK_BYTES: usize = 4096;
/// The label's two slots.
pub(super) const LABEL_AT: [u64; 2] = [0, 4096];
/// Where both end.
pub(super) const LABELS_BYTES: u64 = LABEL_AT[1] + BLOCK_BYTES as u64;
/// Room for one table.
pub(super) const TABLE_BYTES: usize = 2_031_616;
/// The table's two slots.
pub(super) const TABLE_AT: [u64; 2] = [128 << 10, (128 << 10) + TABLE_BYTES as u64];
/// Room for both: 3.9 MiB.
pub(super) const TABLE_AREA_BYTES: u64 = 2 * TABLE_BYTES as u64;
/// Where data may begin.
pub(super) const META_BYTES: u64 = 4 << 20;

const _: () = assert!(TABLE_AT[0] + TABLE_AREA_BYTES == META_BYTES);
const _: () = assert!(TABLE_AREA_BYTES <= super::ZERO_PIECE_BYTES);
const _: () = assert!(TABLE_BYTES.is_multiple_of(BLOCK_BYTES));

/// Format version of labels and tables.
pub(super) const VERSION: u32 = 1;
/// Where the checksum stands in both.
pub(super) const CRC_AT: usize = 12;
/// Longest name in bytes of UTF-8.
pub(super) const NAME_BYTES: usize = 64;

/// Why a slot's contents can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Something else, or nothing, is there.
    #[error("nothing of ours")]
    Blank,
    /// It was ours, but not as it was written.
    #[error("wrong checksum")]
    Checksum,
    /// A newer program wrote it.
    #[error("format version {0} is not known")]
    Version(u32),
    /// The checksum holds but the contents can't be.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Every change is a new generation, and those from this one on have none: nobody has written so many.
pub(super) const GENERATIONS: u64 = u64::MAX / 2;
pub(super) const NO_NEXT: Damage = Damage::Invalid("the generation has no next");

/// First byte of data on a member of a pool with this unit.
pub(super) fn data_start(unit_bytes: u64) -> u64 {
    META_BYTES.next_multiple_of(unit_bytes)
}

/// Puts the checksum of the whole of `bytes` into its place.
pub(super) fn seal(bytes: &mut [u8]) {
    let crc = checksum(bytes);
    if let Some(field) = bytes.get_mut(CRC_AT..CRC_AT + 4) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
}

/// CRC32C of `bytes` with the checksum's own place taken as zero.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let (head, tail) = bytes.split_at(CRC_AT.min(bytes.len()));
    let tail = tail.get(4..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]), tail)
}

/// A name padded with NUL; cut at [`NAME_BYTES`], which callers have checked.
pub(super) fn emit_name(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

/// The name in a field.
pub(super) fn parse_name(bytes: &[u8; NAME_BYTES]) -> Result<String, Damage> {
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(NAME_BYTES);
    let (name, pad) = bytes.split_at(len);
    if pad.iter().any(|&byte| byte != 0) {
        return Err(Damage::Invalid("a name goes on after its end"));
    }
    let name = String::from_utf8(name.to_vec()).map_err(|_| Damage::Invalid("a name is not UTF-8"))?;
    // It will be told to an operator's terminal.
    match name.chars().any(char::is_control) {
        true => Err(Damage::Invalid("a name has control characters")),
        false => Ok(name),
    }
}

/// Whether `name` can be stored and told apart.
pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
}
