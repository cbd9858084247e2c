//! Recognises contents of a backend that don't belong to a pool: a file system, a partition table, another volume
//! manager's label.
//!
//! What it is not: it does not prove that a backend has no contents. A database that writes directly to the device has
//! no well-known mark, and this module doesn't check for marks at a device's end.

use super::format::{LABEL_AT, LABELS_BYTES, TABLE_AT};
use super::{BackendInfo, IoError, PoolIo, io_error};

/// The number of bytes from a device's start that contain every mark.
pub const LOOKED_AT_BYTES: usize = 68 << 10;

/// The marks: each has its meaning, its offset and its bytes. The offsets belong to the formats, and blkid(8) uses the
/// same offsets. A mark that another format may contain comes after the marks of that format.
const MARKS: [(&str, usize, &[u8]); 17] = [
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an XFS file system", 0, b"XFSB"),
    ("an ext2, ext3 or ext4 file system", 1080, &[0x53, 0xEF]),
    ("a Btrfs file system", (64 << 10) + 64, b"_BHRfS_M"),
    ("an F2FS file system", 1024, &[0x10, 0x20, 0xF5, 0xF2]),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("a member of an MD array", 0, &[0xFC, 0x4E, 0x2B, 0xA9]),
    ("a member of an MD array", 4096, &[0xFC, 0x4E, 0x2B, 0xA9]),
    ("a Ceph OSD", 0, b"bluestore block device"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    ("an exFAT file system", 3, b"EXFAT   "),
    // The last two bytes of a boot sector. FAT has the same bytes there.
    ("a partition table or boot sector", 510, &[0x55, 0xAA]),
];

/// Returns the contents whose mark is in `start`, the first [`LOOKED_AT_BYTES`] of a device.
pub fn recognise(start: &[u8]) -> Option<&'static str> {
    let stands = |at: usize, mark: &[u8]| start.get(at..).is_some_and(|from| from.starts_with(mark));
    MARKS.iter().find(|(_, at, mark)| stands(*at, mark)).map(|(what, ..)| *what)
}

/// Reads the start of the backend, and returns the contents whose mark is there.
pub(super) async fn read<I: PoolIo>(io: &I, backend: &BackendInfo) -> Result<Option<&'static str>, IoError> {
    let start = io.read(backend.id, 0, LOOKED_AT_BYTES).await;
    Ok(recognise(&start.map_err(io_error(backend, "looking for other contents"))?))
}

/// Erases the marks that are not in the place of a label, so that no program mistakes a member for its earlier
/// contents. Marks at a device's end, such as the copy of a GPT, stay.
pub(super) async fn erase<I: PoolIo>(io: &I, backend: &BackendInfo) -> Result<(), IoError> {
    const _: () = assert!(LABEL_AT[0] == 0 && LOOKED_AT_BYTES as u64 <= TABLE_AT[0]);
    let zeroed = io.write_zeroes(backend.id, LABELS_BYTES, TABLE_AT[0] - LABELS_BYTES).await;
    zeroed.map_err(io_error(backend, "erasing other contents"))?;
    io.flush(backend.id).await.map_err(io_error(backend, "erasing other contents"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_is_seen_where_it_stands_and_nowhere_else() {
        assert_eq!(recognise(&[0; LOOKED_AT_BYTES]), None);
        for (what, at, mark) in MARKS {
            let mut start = vec![0; LOOKED_AT_BYTES];
            start[at..at + mark.len()].copy_from_slice(mark);
            assert_eq!(recognise(&start), Some(what));
            start.remove(0);
            assert_eq!(recognise(&start), None, "{what} one byte too early");
            assert_eq!(recognise(&start[..at]), None, "{what} beyond the end");
        }
    }

    #[test]
    fn a_protective_boot_sector_does_not_hide_a_gpt() {
        let mut start = vec![0; LOOKED_AT_BYTES];
        start[510..512].copy_from_slice(&[0x55, 0xAA]);
        assert_eq!(recognise(&start), Some("a partition table or boot sector"));
        start[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(recognise(&start), Some("a GPT partition table"));
    }
}
