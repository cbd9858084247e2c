//! Stamps: bytes that mark a block with its version and its address.

use super::{Job, Version};

/// Writes a job's stamps into `data`.
pub fn stamp(job: &Job, data: &mut [u8]) {
    for (block, lba) in data.chunks_exact_mut(job.block_bytes).zip(job.lba..) {
        for (i, bytes) in block.chunks_exact_mut(8).enumerate() {
            let word = match i {
                0 => job.version,
                1 => (job.lun as u64) << 48 | lba,
                _ => word(job.lun, lba, job.version, i),
            };
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Returns the version that a block holds. Returns None if the block is torn or does not belong to this address.
pub(super) fn decode(lun: usize, lba: u64, block: &[u8]) -> Option<Version> {
    let at = |i: usize| block.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let version = at(0)?;
    if version == 0 {
        return block.iter().all(|&b| b == 0).then_some(0);
    }
    let placed = at(1)? == (lun as u64) << 48 | lba;
    (placed && (2..block.len() / 8).all(|i| at(i) == Some(word(lun, lba, version, i)))).then_some(version)
}

/// Describes a block whose stamp is invalid.
pub(super) fn describe(block: &[u8]) -> String {
    let at =
        |i: usize| block.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let place = at(1);
    format!("a broken stamp: version {} of LUN {} block {}", at(0), place >> 48, place & 0xffff_ffff_ffff)
}

fn word(lun: usize, lba: u64, version: Version, i: usize) -> u64 {
    let base = version.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ lba.rotate_left(17) ^ (lun as u64) << 56;
    base.wrapping_add((i as u64).wrapping_mul(0x0101_0101_0101_0101))
}
