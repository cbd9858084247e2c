//! The oracle: which data a LUN may return.
//!
//! Every write has its own version, which is stamped into each block together with the block's address. Each block
//! has a set of versions that a read may see. A completed write leaves only its own version. A write with an unknown
//! result adds its version. A read that saw one version removes the others, because a version that was seen stays.
//! The model also tracks what a power cut may leave: the versions at the last flush, and all later ones.
//!
//! A write owns its blocks while it is under way: the model refuses an overlapping job. On a shared LUN
//! ([`Model::share`]), the model refuses only overlapping writes. There, a read may see any version that the block
//! held since the read began, and the version of the write under way. No read that begins later may see an older
//! version.

use std::collections::BTreeMap;
use trefoil_storage::Fault;

/// Smallest logical block size. Other block sizes are multiples of this one.
pub const BLOCK_BYTES: usize = 512;

/// The write that a block holds; 0 stands for zeros.
pub type Version = u64;

/// The kind of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read.
    Read,
    /// Write, with FUA or not.
    Write {
        /// FUA.
        durable: bool,
    },
    /// Flush the LUN.
    Flush,
    /// Write Zeroes.
    Zero {
        /// FUA.
        durable: bool,
        /// DEAC.
        deallocate: bool,
    },
    /// Dataset Management, deallocate.
    Deallocate,
}

impl Kind {
    /// Returns whether the job changes the LUN's data.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Flush)
    }
}

/// One operation under way.
#[derive(Clone, Debug)]
pub struct Job {
    /// Identifier of the job in the model.
    pub id: u64,
    /// Index of the LUN.
    pub lun: usize,
    /// First block.
    pub lba: u64,
    /// Blocks; 0 for a flush.
    pub blocks: u64,
    /// The LUN's block size in bytes.
    pub block_bytes: usize,
    /// The job's kind.
    pub kind: Kind,
    /// The version that a write stamps.
    pub version: Version,
    /// True if an error has a cause.
    pub excused: bool,
    /// True if a path error has a cause.
    pub path_excused: bool,
    /// True if power or memory was lost since the job began. If so, acknowledged data may be lost.
    pub cut: bool,
}

impl Job {
    /// Returns the number of bytes that the job covers.
    pub fn len_bytes(&self) -> usize {
        self.blocks as usize * self.block_bytes
    }
}

#[derive(Clone, Debug)]
struct Block {
    /// Versions that a read may see.
    now: Vec<Version>,
    /// Versions that a power cut may leave, apart from `since`.
    stable: Vec<Version>,
    /// Later versions with their times. The flag is false if the operation failed, so that the version is uncertain.
    since: Vec<(u64, Version, bool)>,
    /// Versions that a read could see before the power cuts during the current reads. The answer to such a read may
    /// already have been on its way.
    before: Vec<Version>,
    /// Versions that a read could see earlier, each with the time of its replacement. Kept while there are readers.
    past: Vec<(u64, Version)>,
    readers: u32,
    /// Version of the write under way.
    writer: Option<Version>,
    /// Time at which a write last ended here.
    written_at: u64,
}

#[derive(Clone, Debug)]
struct Lun {
    blocks: Vec<Block>,
    block_bytes: usize,
    open: bool,
    /// True while path errors have a cause.
    path_excused: bool,
    /// True if reads and writes may overlap.
    shared: bool,
    /// True while write errors have a cause: the LUN is read-only, or was until a moment ago.
    write_excused: bool,
    /// Time since which the LUN is read-only on every core.
    read_only_since: Option<u64>,
}

/// The model of all LUNs; see the module.
#[derive(Debug, Default)]
pub struct Model {
    luns: Vec<Lun>,
    jobs: BTreeMap<u64, Job>,
    clock: u64,
    completed: u64,
    failed: u64,
    path_failed: u64,
    /// True while errors have a cause (a failing disk, for example).
    pub excused: bool,
    violation: Option<String>,
    /// Lines about operations for the story, if the story is told.
    pub log: Option<Vec<String>>,
}

impl Block {
    fn zero() -> Self {
        Self {
            now: vec![0],
            stable: vec![0],
            since: Vec::new(),
            before: Vec::new(),
            past: Vec::new(),
            readers: 0,
            writer: None,
            written_at: 0,
        }
    }

    /// Returns whether an operation may begin on the block.
    fn admits(&self, reads: bool, shared: bool) -> bool {
        match reads {
            true => shared || self.writer.is_none(),
            false => self.writer.is_none() && (shared || self.readers == 0),
        }
    }

    fn write(&mut self, at: u64, version: Version, certain: bool) {
        if certain {
            self.replace(at, version);
        } else if !self.now.contains(&version) {
            self.now.push(version);
        }
        self.since.push((at, version, certain));
    }

    /// Makes `version` the only version that the block holds.
    fn replace(&mut self, at: u64, version: Version) {
        let now = std::mem::replace(&mut self.now, vec![version]);
        if self.readers > 0 {
            self.past.extend(now.into_iter().filter(|&old| old != version).map(|old| (at, old)));
        }
    }

    /// Moves everything older than `at` to stable media.
    fn flush(&mut self, at: u64) {
        let upto = self.since.partition_point(|&(when, ..)| when < at);
        for (_, version, certain) in self.since.drain(..upto) {
            if certain {
                self.stable.clear();
            }
            if !self.stable.contains(&version) {
                self.stable.push(version);
            }
        }
    }

    fn power_cut(&mut self) {
        self.before.extend(&self.now);
        for (_, version, _) in self.since.drain(..) {
            if !self.stable.contains(&version) {
                self.stable.push(version);
            }
        }
        self.now = self.stable.clone();
    }

    /// Replaces the block with zeros, because its memory is lost.
    fn lose(&mut self) {
        self.before.extend(&self.now);
        self.since.clear();
        (self.now, self.stable) = (vec![0], vec![0]);
    }

    /// Returns whether a read that began at `began` and ends at `at` may see `version`. If `version` proves what the
    /// block holds now, the block keeps only `version`, unless power failed since the read began (`cut`).
    fn see(&mut self, began: u64, at: u64, version: Version, cut: bool) -> bool {
        let writes = self.writer == Some(version);
        let was = self.past.iter().any(|&(until, old)| old == version && until > began);
        if !writes && !self.now.contains(&version) {
            return was || cut && self.before.contains(&version);
        }
        // The version may be older than a write that ended during the read. All zeros share version 0.
        let is_latest = self.written_at < began || writes && !was && !self.now.contains(&version);
        if !cut && is_latest && self.now != [version] {
            self.replace(at, version);
            self.since.push((at, version, true));
        }
        true
    }
}

impl Lun {
    fn new(blocks: u64, block_bytes: usize) -> Self {
        Self {
            blocks: vec![Block::zero(); blocks as usize],
            block_bytes,
            open: true,
            path_excused: false,
            shared: false,
            write_excused: false,
            read_only_since: None,
        }
    }
}

impl Model {
    /// Returns a model of LUNs with the given numbers of blocks of [`BLOCK_BYTES`], all zeros.
    pub fn new(blocks: &[u64]) -> Self {
        Self { luns: blocks.iter().map(|&blocks| Lun::new(blocks, BLOCK_BYTES)).collect(), ..Self::default() }
    }

    /// Gives an untouched LUN another block size. A partial block at the end is dropped.
    pub fn set_block_bytes(&mut self, lun: usize, block_bytes: usize) {
        let len = self.luns[lun].blocks.len() * self.luns[lun].block_bytes;
        self.luns[lun] = Lun::new((len / block_bytes) as u64, block_bytes);
    }

    /// Returns the LUN's block size in bytes.
    pub fn block_bytes(&self, lun: usize) -> usize {
        self.luns[lun].block_bytes
    }

    /// Returns the number of LUNs.
    pub fn luns(&self) -> usize {
        self.luns.len()
    }

    /// Returns the size of a LUN in blocks.
    pub fn blocks(&self, lun: usize) -> u64 {
        self.luns[lun].blocks.len() as u64
    }

    /// Returns whether jobs may begin on the LUN.
    pub fn is_open(&self, lun: usize) -> bool {
        self.luns[lun].open
    }

    /// Returns the numbers of operations that succeeded and that failed.
    pub fn counts(&self) -> (u64, u64) {
        (self.completed, self.failed)
    }

    /// Returns the number of operations under way, on one LUN or on all.
    pub fn under_way(&self, lun: Option<usize>) -> usize {
        self.jobs.values().filter(|job| lun.is_none_or(|lun| job.lun == lun)).count()
    }

    /// Returns the first violation.
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Records a violation.
    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Gives errors a cause from now on, also for operations under way.
    pub fn excuse(&mut self) {
        self.excused = true;
        self.jobs.values_mut().for_each(|job| job.excused = true);
    }

    /// Gives path errors a cause from now on for the LUNs where `is_lost` is true, also for operations under way.
    /// Path errors of new operations on the other LUNs have no cause.
    pub fn path_errors(&mut self, is_lost: impl Fn(usize) -> bool) {
        self.luns.iter_mut().enumerate().for_each(|(at, lun)| lun.path_excused = is_lost(at));
        self.jobs.values_mut().for_each(|job| job.path_excused |= is_lost(job.lun));
    }

    /// Returns whether errors have a cause, for new operations or for one under way.
    pub fn has_excuses(&self) -> bool {
        self.excused
            || self.luns.iter().any(|lun| lun.path_excused || lun.write_excused || !lun.open)
            || self.jobs.values().any(|job| job.excused || job.path_excused)
    }

    /// Returns the number of operations that failed with a path error and had no other cause.
    pub fn path_failures(&self) -> u64 {
        self.path_failed
    }

    /// Returns the identifier of the oldest operation under way.
    pub fn first_under_way(&self) -> Option<u64> {
        self.jobs.keys().next().copied()
    }

    /// Returns an identifier that no operation begun so far exceeds.
    pub fn last_begun(&self) -> u64 {
        self.clock
    }

    /// Starts an operation, unless an overlapping operation forbids it or the LUN is closed.
    pub fn begin(&mut self, lun: usize, kind: Kind, lba: u64, blocks: u64) -> Option<Job> {
        let l = self.luns.get_mut(lun).filter(|l| l.open)?;
        let range = l.blocks.get_mut(lba as usize..(lba + blocks) as usize)?;
        let (reads, path_excused, block_bytes) = (kind == Kind::Read, l.path_excused, l.block_bytes);
        if !range.iter().all(|b| b.admits(reads, l.shared)) {
            return None;
        }
        self.clock += 1;
        let version = if matches!(kind, Kind::Write { .. }) { self.clock } else { 0 };
        for block in range {
            if block.readers == 0 {
                block.before.clear();
                block.past.clear();
            }
            match reads {
                true => block.readers += 1,
                false => block.writer = Some(version),
            }
        }
        let (id, excused) = (self.clock, self.excused || kind.writes() && l.write_excused);
        let job = Job { id, lun, lba, blocks, block_bytes, kind, version, excused, path_excused, cut: false };
        if let Some(log) = &mut self.log {
            log.push(format!("op {}: {kind:?} LUN {lun} blocks {lba}+{blocks} begins", job.id));
        }
        self.jobs.insert(job.id, job.clone());
        Some(job)
    }

    /// Ends an operation with `result`. `data` is the data of a read.
    pub fn finish(&mut self, id: u64, result: Result<(), Fault>, data: &[u8]) {
        let Some(job) = self.jobs.remove(&id) else {
            return self.violate(format!("operation {id} completed twice, or was never begun"));
        };
        self.clock += 1;
        self.release(&job);
        if let Some(log) = &mut self.log {
            log.push(format!("op {id}: {result:?}"));
        }
        match result {
            Ok(()) => {
                self.completed += 1;
                if job.kind.writes() && self.luns[job.lun].read_only_since.is_some_and(|since| since < job.id)
                {
                    self.violate(format!("{job:?} changed a LUN that is read-only"));
                }
            }
            Err(fault) => {
                self.failed += 1;
                self.path_failed += u64::from(fault == Fault::PathLost && !job.excused);
                if !(job.excused || job.path_excused && fault == Fault::PathLost) {
                    self.violate(format!("{job:?} failed without a cause: {fault:?}"));
                }
            }
        }
        if job.kind == Kind::Read {
            if result.is_ok() {
                self.check_read(&job, data);
            }
        } else {
            self.land(&job, result.is_ok());
        }
    }

    /// Removes an operation that began but never left its server.
    pub fn withdraw(&mut self, id: u64) {
        if let Some(job) = self.jobs.remove(&id) {
            self.release(&job);
        }
    }

    /// Adds a line to the story.
    pub fn note(&mut self, line: String) {
        if let Some(log) = &mut self.log {
            log.push(line);
        }
    }

    /// Records a crash of the gateway. Operations under way may or may not have landed, and do not land later.
    pub fn crash(&mut self, power: bool) {
        self.clock += 1;
        for (_, job) in std::mem::take(&mut self.jobs) {
            self.release(&job);
            self.land(&job, false);
        }
        if power {
            let shared: Vec<_> = self.luns.iter().map(|lun| lun.shared).collect();
            self.power_cut(|lun| !shared[lun]);
        }
    }

    /// Cuts the power of the backends under the LUNs where `hit` is true. The servers or the gateway retry the
    /// operations under way.
    pub fn power_cut(&mut self, hit: impl Fn(usize) -> bool) {
        self.jobs.values_mut().for_each(|job| job.cut |= hit(job.lun));
        let luns = self.luns.iter_mut().enumerate().filter(|(at, _)| hit(*at));
        luns.flat_map(|(_, lun)| &mut lun.blocks).for_each(Block::power_cut);
    }

    /// Returns whether reads and writes of the LUN may overlap.
    pub fn is_shared(&self, lun: usize) -> bool {
        self.luns[lun].shared
    }

    /// Lets reads and writes of the LUN overlap from now on.
    pub fn share(&mut self, lun: usize) {
        self.luns[lun].shared = true;
    }

    /// Records the loss of the memory under blocks `range` of the LUN. The servers retry the operations under way.
    pub fn lose(&mut self, lun: usize, range: std::ops::Range<u64>) {
        self.jobs.values_mut().for_each(|job| job.cut |= job.lun == lun);
        let blocks = self.luns[lun].blocks.iter_mut();
        blocks.skip(range.start as usize).take((range.end - range.start) as usize).for_each(Block::lose);
    }

    /// Gives writes under way a cause to fail: the LUN becomes read-only, or stops being read-only.
    pub fn excuse_writes(&mut self, lun: usize) {
        let of_lun = |job: &&mut Job| job.lun == lun && job.kind.writes();
        self.jobs.values_mut().filter(of_lun).for_each(|job| job.excused = true);
        self.luns[lun].write_excused = true;
        self.luns[lun].read_only_since = None;
    }

    /// Records that every core knows whether the LUN is read-only.
    pub fn set_read_only(&mut self, lun: usize, read_only: bool) {
        let clock = self.clock;
        let lun = &mut self.luns[lun];
        lun.write_excused = read_only;
        lun.read_only_since = read_only.then(|| lun.read_only_since.unwrap_or(clock));
    }

    /// Lets jobs begin again on a closed LUN whose data is unchanged.
    pub fn reopen(&mut self, lun: usize) {
        self.luns[lun].open = true;
    }

    /// Stops jobs from beginning on the LUN.
    pub fn close(&mut self, lun: usize) {
        self.luns[lun].open = false;
        self.jobs.values_mut().filter(|job| job.lun == lun).for_each(|job| job.excused = true);
    }

    /// Replaces a LUN by a new one: all zeros, durably.
    pub fn renew(&mut self, lun: usize, blocks: u64) {
        let Lun { path_excused, block_bytes, shared, .. } = self.luns[lun];
        self.luns[lun] = Lun { path_excused, shared, ..Lun::new(blocks, block_bytes) };
    }

    /// Grows a LUN. The new blocks read as zeros.
    pub fn grow(&mut self, lun: usize, blocks: u64) {
        self.luns[lun].blocks.resize(blocks as usize, Block::zero());
    }

    fn range(&mut self, job: &Job) -> &mut [Block] {
        let range = job.lba as usize..(job.lba + job.blocks) as usize;
        self.luns[job.lun].blocks.get_mut(range).unwrap_or_default()
    }

    fn release(&mut self, job: &Job) {
        let reads = job.kind == Kind::Read;
        self.range(job).iter_mut().for_each(|b| match reads {
            true => b.readers -= 1,
            false => b.writer = None,
        });
    }

    fn land(&mut self, job: &Job, ok: bool) {
        let at = self.clock;
        match job.kind {
            Kind::Read => {}
            Kind::Flush if ok && !job.cut => {
                self.luns[job.lun].blocks.iter_mut().for_each(|b| b.flush(job.id))
            }
            Kind::Flush => {}
            // The blocks then read as zeros or as before.
            Kind::Deallocate => self.range(job).iter_mut().for_each(|b| b.write(at, 0, false)),
            Kind::Write { durable } | Kind::Zero { durable, .. } => {
                // Lost memory loses durable writes as well.
                let survives = durable && !self.luns[job.lun].shared;
                let (version, ok) = (job.version, ok && (survives || !job.cut));
                for block in self.range(job) {
                    block.write(at, version, ok);
                    if ok && durable {
                        block.flush(at + 1);
                    }
                }
            }
        }
        if job.kind.writes() {
            self.range(job).iter_mut().for_each(|b| b.written_at = at);
        }
    }

    fn check_read(&mut self, job: &Job, data: &[u8]) {
        if data.len() != job.len_bytes() {
            return self.violate(format!("{job:?} got {} bytes", data.len()));
        }
        let at = self.clock;
        for (i, bytes) in data.chunks_exact(job.block_bytes).enumerate() {
            let lba = job.lba + i as u64;
            let Some(version) = decode(job.lun, lba, bytes) else {
                return self.violate(format!("LUN {} block {lba} holds {}", job.lun, describe(bytes)));
            };
            let block = &mut self.luns[job.lun].blocks[lba as usize];
            if !block.see(job.id, at, version, job.cut) {
                let (may, writer, past) = (block.now.clone(), block.writer, block.past.clone());
                return self.violate(format!(
                    "LUN {} block {lba} holds version {version}, may hold {may:?} and {writer:?}, held {past:?} (operation {})",
                    job.lun, job.id
                ));
            }
        }
    }
}

fn word(lun: usize, lba: u64, version: Version, i: usize) -> u64 {
    let base = version.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ lba.rotate_left(17) ^ (lun as u64) << 56;
    base.wrapping_add((i as u64).wrapping_mul(0x0101_0101_0101_0101))
}

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

/// Returns the version that a block holds, if the block is whole and at its own address.
fn decode(lun: usize, lba: u64, block: &[u8]) -> Option<Version> {
    let at = |i: usize| block.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let version = at(0)?;
    if version == 0 {
        return block.iter().all(|&b| b == 0).then_some(0);
    }
    let placed = at(1)? == (lun as u64) << 48 | lba;
    (placed && (2..block.len() / 8).all(|i| at(i) == Some(word(lun, lba, version, i)))).then_some(version)
}

fn describe(block: &[u8]) -> String {
    let at =
        |i: usize| block.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let place = at(1);
    format!("a broken stamp: version {} of LUN {} block {}", at(0), place >> 48, place & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(m: &mut Model, durable: bool, ok: bool) -> Vec<u8> {
        let job = m.begin(0, Kind::Write { durable }, 3, 1).expect("free");
        let mut data = vec![0; BLOCK_BYTES];
        stamp(&job, &mut data);
        m.finish(job.id, if ok { Ok(()) } else { Err(Fault::MediaWrite) }, &[]);
        data
    }

    fn read(m: &mut Model, data: &[u8]) -> bool {
        let job = m.begin(0, Kind::Read, 3, 1).expect("free");
        m.finish(job.id, Ok(()), data);
        m.violation().is_none()
    }

    #[test]
    fn a_completed_write_is_the_only_answer_and_a_failed_one_is_an_option_until_seen() {
        let mut m = Model::new(&[8]);
        m.excuse();
        let first = write(&mut m, false, true);
        let second = write(&mut m, false, false);
        assert!(read(&mut m, &second));
        assert!(!read(&mut m, &first), "an older version came back after a newer one was seen");
    }

    #[test]
    fn a_power_cut_may_take_back_what_was_not_flushed_and_nothing_else() {
        let mut m = Model::new(&[8]);
        let old = write(&mut m, false, true);
        let flush = m.begin(0, Kind::Flush, 0, 0).expect("free");
        m.finish(flush.id, Ok(()), &[]);
        write(&mut m, false, true);
        m.crash(true);
        assert!(read(&mut m, &old));
        write(&mut m, true, true);
        m.crash(true);
        assert!(!read(&mut m, &old), "a durable write was lost");
    }

    #[test]
    fn an_answer_from_before_a_power_cut_may_come_after_one_from_behind_it() {
        let mut m = Model::new(&[8]);
        let old = write(&mut m, true, true);
        let new = write(&mut m, false, true);
        let slow = m.begin(0, Kind::Read, 3, 1).expect("free");
        m.power_cut(|_| true);
        assert!(read(&mut m, &old));
        m.finish(slow.id, Ok(()), &new);
        assert_eq!(m.violation(), None);
        assert!(!read(&mut m, &new), "what was lost came back");
    }

    /// Begins a write of block 3, and returns its identifier and data.
    fn begin_write(m: &mut Model) -> (u64, Vec<u8>) {
        let job = m.begin(0, Kind::Write { durable: false }, 3, 1).expect("free");
        let mut data = vec![0; BLOCK_BYTES];
        stamp(&job, &mut data);
        (job.id, data)
    }

    fn begin_read(m: &mut Model) -> u64 {
        m.begin(0, Kind::Read, 3, 1).expect("shared").id
    }

    #[test]
    fn a_read_beside_a_write_sees_either_and_later_ones_nothing_older() {
        let mut m = Model::new(&[8]);
        m.share(0);
        let old = write(&mut m, false, true);
        let early = begin_read(&mut m);
        let (writer, new) = begin_write(&mut m);
        let late = begin_read(&mut m);
        m.finish(late, Ok(()), &old);
        assert!(read(&mut m, &old) && read(&mut m, &new), "{:?}", m.violation());
        m.finish(early, Ok(()), &old);
        assert_eq!(m.violation(), None, "what it saw came first");
        assert!(!read(&mut m, &old), "an older version came back after the write was seen");
        m.finish(writer, Ok(()), &[]);
    }

    #[test]
    fn a_read_that_a_write_overtook_says_nothing_of_now() {
        let mut m = Model::new(&[8]);
        m.share(0);
        let zeros = vec![0; BLOCK_BYTES];
        let early = begin_read(&mut m);
        let now = write(&mut m, false, true);
        let zero = m.begin(0, Kind::Zero { durable: false, deallocate: false }, 3, 1).expect("free");
        m.finish(early, Ok(()), &zeros);
        assert!(read(&mut m, &now), "{:?}", m.violation());
        m.finish(zero.id, Ok(()), &[]);
        assert!(!read(&mut m, &now), "the zeros are there");
    }

    #[test]
    fn zeros_from_before_a_write_in_doubt_are_not_those_of_a_zeroing_beside_the_read() {
        let mut m = Model::new(&[8]);
        m.share(0);
        let (writer, new) = begin_write(&mut m);
        m.lose(0, 0..8);
        let early = begin_read(&mut m);
        m.finish(writer, Ok(()), &[]);
        let hint = m.begin(0, Kind::Deallocate, 3, 1).expect("free");
        m.finish(early, Ok(()), &[0; BLOCK_BYTES]);
        m.finish(hint.id, Ok(()), &[]);
        assert!(read(&mut m, &new), "{:?}", m.violation());
    }

    #[test]
    fn lost_memory_takes_what_was_acknowledged_and_a_read_only_lun_takes_nothing() {
        let mut m = Model::new(&[8]);
        m.share(0);
        write(&mut m, true, true);
        m.lose(0, 0..8);
        assert!(read(&mut m, &[0; BLOCK_BYTES]), "{:?}", m.violation());
        m.excuse_writes(0);
        write(&mut m, false, false);
        m.set_read_only(0, true);
        assert_eq!(m.violation(), None);
        write(&mut m, false, true);
        assert!(m.violation().is_some());
    }

    #[test]
    fn overlapping_writes_wait_and_a_second_completion_is_a_violation() {
        let mut m = Model::new(&[8]);
        let job = m.begin(0, Kind::Write { durable: false }, 0, 4).expect("free");
        assert!(m.begin(0, Kind::Read, 3, 2).is_none());
        m.finish(job.id, Ok(()), &[]);
        assert!(m.violation().is_none());
        m.finish(job.id, Ok(()), &[]);
        assert!(m.violation().is_some());
    }
}
