//! A disk: its bytes, its volatile write cache, and its faults. A power cut may lose or tear the writes in the cache.

use std::collections::{BTreeMap, VecDeque};
use trefoil_poll::rand::Rng;

/// A disk of the world. The disk outlives the node that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub u32);

/// Smallest unit in bytes that a disk never tears.
pub const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;
/// Number of writes that the cache holds. When the cache is full, the disk itself moves the oldest write to stable media.
const CACHE_LEN: usize = 512;

/// Faults of a disk, besides power cuts. Rates are per 1000 operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFault {
    /// Rate of reads that fail with EIO.
    pub read_eio: u32,
    /// Rate of writes, zeroes and punches that fail with EIO. Such an operation lands in part or not at all.
    pub write_eio: u32,
    /// Rate of syncs that fail with EIO.
    pub sync_eio: u32,
    /// True if a write fails with ENOSPC when it goes to space that was never written before.
    pub full: bool,
    /// Factor that multiplies the time of every operation. 0 means 1.
    pub slow: u32,
}

/// Deliberate defects, which prove that the simulator finds such defects. Rates are per 1000 operations of the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskDefect {
    /// Rate of syncs that succeed without effect.
    pub skip_sync: u32,
    /// Rate of durable writes that the disk treats as ordinary writes.
    pub drop_durable: u32,
    /// Rate of writes that succeed without effect.
    pub lose_write: u32,
    /// Rate of writes that succeed although only their first part lands.
    pub tear_write: u32,
    /// Rate of reads that return the data of the neighbouring 4 KiB.
    pub shift_read: u32,
    /// Rate of writes that land a second time, some milliseconds later.
    pub replay_write: u32,
    /// Rate of writes that succeed some milliseconds before they land.
    pub early_ack: u32,
    /// Rate of writes that consist only of zeros and succeed without effect.
    pub lose_zeros: u32,
    /// Rate of zeroes and punches that succeed without effect.
    pub skip_zero: u32,
}

type Page = Box<[u8; PAGE_BYTES]>;

/// Sparse bytes. Bytes never written read as zeros.
#[derive(Clone, Debug, Default)]
struct Image {
    pages: BTreeMap<u64, Page>,
}

/// One change of the image.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Bytes(u64, Box<[u8]>),
    Zeros(u64, u64),
}

/// A simulated disk; see the module.
#[derive(Debug)]
pub struct Disk {
    /// Name of the disk in the story.
    pub name: String,
    len_bytes: u64,
    now: Image,
    stable: Image,
    cache: VecDeque<Change>,
    /// Unit in bytes that this disk never tears.
    pub sector_bytes: usize,
    /// Faults that happen now.
    pub fault: DiskFault,
    /// Deliberate defects of the disk.
    pub defect: DiskDefect,
}

impl Change {
    /// Returns whether the change sets all its bytes to zero.
    pub fn is_zeros(&self) -> bool {
        match self {
            Self::Bytes(_, bytes) => bytes.iter().all(|byte| *byte == 0),
            Self::Zeros(..) => true,
        }
    }

    fn start(&self) -> u64 {
        match self {
            Self::Bytes(at, _) | Self::Zeros(at, _) => *at,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Bytes(_, bytes) => bytes.len() as u64,
            Self::Zeros(_, len) => *len,
        }
    }

    fn overlaps(&self, at: u64, len: u64) -> bool {
        self.start() < at + len && at < self.start() + self.len()
    }

    /// Returns the part of the change that lands if power fails during the write: nothing, the whole change, or a random set of
    /// its sectors.
    fn torn(self, sector_bytes: usize, rng: &mut Rng) -> Vec<Change> {
        match rng.below(3) {
            0 => Vec::new(),
            1 => vec![self],
            _ => self.split(sector_bytes, rng),
        }
    }

    /// Returns the first half of the change, rounded down to sectors. A torn write leaves this part.
    pub fn first_half(self) -> Self {
        let keep = |len: u64| len / 2 / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
        match self {
            Self::Bytes(at, bytes) => Self::Bytes(at, bytes[..keep(bytes.len() as u64) as usize].into()),
            Self::Zeros(at, len) => Self::Zeros(at, keep(len)),
        }
    }

    fn split(self, sector_bytes: usize, rng: &mut Rng) -> Vec<Change> {
        match self {
            Self::Bytes(at, bytes) => bytes
                .chunks(sector_bytes)
                .enumerate()
                .filter(|_| rng.below(2) == 0)
                .map(|(i, sector)| Self::Bytes(at + (i * sector_bytes) as u64, sector.into()))
                .collect(),
            Self::Zeros(at, len) => {
                let sectors = rng.below(len / sector_bytes as u64 + 1);
                vec![Self::Zeros(at, sectors * sector_bytes as u64)]
            }
        }
    }
}

impl Image {
    fn read(&self, mut at: u64, mut into: &mut [u8]) {
        while !into.is_empty() {
            let (page, skip) = (at / PAGE_BYTES as u64, at as usize % PAGE_BYTES);
            let len = into.len().min(PAGE_BYTES - skip);
            let (part, rest) = into.split_at_mut(len);
            match self.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[skip..skip + len]),
                None => part.fill(0),
            }
            (at, into) = (at + len as u64, rest);
        }
    }

    fn write(&mut self, mut at: u64, mut from: &[u8]) {
        while !from.is_empty() {
            let (page, skip) = (at / PAGE_BYTES as u64, at as usize % PAGE_BYTES);
            let (part, rest) = from.split_at(from.len().min(PAGE_BYTES - skip));
            let bytes = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE_BYTES]));
            bytes[skip..skip + part.len()].copy_from_slice(part);
            (at, from) = (at + part.len() as u64, rest);
        }
    }

    fn zero(&mut self, at: u64, len: u64) {
        let (end, mut at) = (at + len, at);
        while at < end {
            let (page, skip) = (at / PAGE_BYTES as u64, at as usize % PAGE_BYTES);
            let part = (end - at).min((PAGE_BYTES - skip) as u64) as usize;
            if part == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[skip..skip + part].fill(0);
            }
            at += part as u64;
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Bytes(at, bytes) => self.write(*at, bytes),
            Change::Zeros(at, len) => self.zero(*at, *len),
        }
    }

    fn has_all(&self, at: u64, len: u64) -> bool {
        (at / PAGE_BYTES as u64..(at + len).div_ceil(PAGE_BYTES as u64)).all(|p| self.pages.contains_key(&p))
    }
}

impl Disk {
    /// Returns a disk of zeros.
    pub fn new(name: &str, len_bytes: u64) -> Self {
        Self {
            name: name.into(),
            len_bytes,
            now: Image::default(),
            stable: Image::default(),
            cache: VecDeque::new(),
            sector_bytes: SECTOR_BYTES,
            fault: DiskFault::default(),
            defect: DiskDefect::default(),
        }
    }

    /// Returns the size of the disk.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Makes the disk larger. A smaller size changes nothing.
    pub fn grow(&mut self, len_bytes: u64) {
        self.len_bytes = self.len_bytes.max(len_bytes);
    }

    /// Copies the current bytes into `into`, for oracles. Bytes past the end are zeros.
    pub fn peek(&self, at: u64, into: &mut [u8]) {
        self.now.read(at, into);
    }

    /// Overwrites bytes durably without the gateway's knowledge (to corrupt a superblock, for example).
    pub fn scribble(&mut self, at: u64, bytes: &[u8]) {
        self.now.write(at, bytes);
        self.stable.write(at, bytes);
    }

    /// Returns whether the range lies inside the disk.
    pub(crate) fn holds(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len_bytes)
    }

    /// Returns whether a write to the range needs space that the disk does not have.
    pub(crate) fn lacks_space(&self, at: u64, len: u64) -> bool {
        self.fault.full && !self.now.has_all(at, len)
    }

    pub(crate) fn write(&mut self, change: Change, durable: bool) {
        self.now.apply(&change);
        if durable {
            // Cached writes land in order, and this write must land after older writes to the same place. So this code moves all
            // cached writes up to the last overlapping write to stable media.
            let (at, len) = (change.start(), change.len());
            if let Some(last) = self.cache.iter().rposition(|cached| cached.overlaps(at, len)) {
                for older in self.cache.drain(..=last) {
                    self.stable.apply(&older);
                }
            }
            self.stable.apply(&change);
            return;
        }
        self.cache.push_back(change);
        if self.cache.len() > CACHE_LEN
            && let Some(oldest) = self.cache.pop_front()
        {
            self.stable.apply(&oldest);
        }
    }

    pub(crate) fn sync(&mut self) {
        for change in self.cache.drain(..) {
            self.stable.apply(&change);
        }
    }

    /// Ends an operation that was under way when its node died. The change lands whole, in part, or not at all.
    pub(crate) fn interrupt(&mut self, change: Change, rng: &mut Rng) {
        for part in change.torn(self.sector_bytes, rng) {
            self.write(part, false);
        }
    }

    /// Cuts the power. Each cached write lands whole, in part, or not at all.
    pub fn cut_power(&mut self, rng: &mut Rng) {
        for change in std::mem::take(&mut self.cache) {
            for part in change.torn(self.sector_bytes, rng) {
                self.stable.apply(&part);
            }
        }
        self.now = self.stable.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(disk: &Disk, at: u64) -> u8 {
        let mut out = [0];
        disk.peek(at, &mut out);
        out[0]
    }

    #[test]
    fn a_power_cut_spares_what_was_synced() {
        let mut lost = 0;
        for seed in 0..64 {
            let mut disk = Disk::new("d", 1 << 20);
            disk.write(Change::Bytes(8192, vec![1; 4096].into()), false);
            disk.sync();
            disk.write(Change::Bytes(16384, vec![2; 4096].into()), true);
            disk.write(Change::Bytes(8192, vec![3; 4096].into()), false);
            assert_eq!((byte(&disk, 8192), byte(&disk, 16384)), (3, 2));
            disk.cut_power(&mut Rng::new(seed));
            assert_eq!(byte(&disk, 16384), 2);
            assert!([1, 3].contains(&byte(&disk, 8192)));
            lost += u32::from(byte(&disk, 8192) == 1);
        }
        assert!((10..60).contains(&lost), "{lost} of 64 cuts lost the cached write");
    }

    #[test]
    fn an_older_cached_write_never_lands_on_a_newer_durable_one() {
        for seed in 0..64 {
            let mut disk = Disk::new("d", 1 << 20);
            disk.write(Change::Bytes(0, vec![1; 4096].into()), false);
            disk.write(Change::Zeros(0, 4096), false);
            disk.write(Change::Bytes(0, vec![2; 512].into()), true);
            disk.cut_power(&mut Rng::new(seed));
            assert_eq!(byte(&disk, 0), 2);
        }
    }
}
