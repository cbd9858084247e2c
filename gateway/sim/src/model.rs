//! The oracle: which data a LUN may return.
//!
//! Every write has its own version. The write stamps this version into each block, together with the block's address. For each
//! block, the model keeps the set of versions that a read may see. A completed write leaves only its own version in the set. A
//! write with an unknown result adds its version to the set. A read removes all other versions from the set, because the version
//! that a read has seen stays. The model also tracks the data that a power cut may leave: the versions at the last flush, and all
//! later versions.
//!
//! A write owns its blocks while the write is under way: the model refuses an overlapping job. On a shared LUN
//! ([`Model::share`]), the model refuses only overlapping writes. A read of a shared LUN may see any version that the block held
//! since the read began, and the version of the write under way. A read that begins later must not see an older version.
//!
//! An error "has a cause" if a fault of the run explains it. An error without a cause is a violation.

mod block;
mod stamp;
#[cfg(test)]
mod tests;

use block::Block;
pub use stamp::stamp;
use stamp::{decode, describe};
use std::collections::BTreeMap;
use trefoil_storage::Fault;

/// Smallest logical block size. Other block sizes are multiples of this one.
pub const BLOCK_BYTES: usize = 512;

/// Identifier of the write whose data a block holds. 0 stands for zeros.
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
    /// True if the job may fail with any error.
    pub excused: bool,
    /// True if the job may fail with a path error.
    pub path_excused: bool,
    /// True if power or memory was lost since the job began. In that case, the job's data may be lost although the job succeeded.
    pub cut: bool,
}

impl Job {
    /// Returns the number of bytes that the job covers.
    pub fn len_bytes(&self) -> usize {
        self.blocks as usize * self.block_bytes
    }
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
    /// True while write errors have a cause: the LUN is read-only, or some core may not know yet that the LUN is writable again.
    write_excused: bool,
    /// Time from which every core knows that the LUN is read-only. None while the LUN is not read-only on every core.
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
    /// True while all errors have a cause (a failing disk, for example).
    pub excused: bool,
    violation: Option<String>,
    /// Lines about operations for the story. None if the story is not kept.
    pub log: Option<Vec<String>>,
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

    /// Gives an untouched LUN another block size. If the LUN's size is not a multiple of the new block size, drops the rest at
    /// the end.
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

    /// From now on, every error has a cause. This includes errors of operations under way.
    pub fn excuse(&mut self) {
        self.excused = true;
        self.jobs.values_mut().for_each(|job| job.excused = true);
    }

    /// From now on, path errors have a cause for the LUNs where `is_lost` is true, also for operations under way. On the other
    /// LUNs, path errors of new operations have no cause.
    pub fn path_errors(&mut self, is_lost: impl Fn(usize) -> bool) {
        self.luns.iter_mut().enumerate().for_each(|(at, lun)| lun.path_excused = is_lost(at));
        self.jobs.values_mut().for_each(|job| job.path_excused |= is_lost(job.lun));
    }

    /// Returns whether an error of a new operation, or of an operation under way, can have a cause.
    pub fn has_excuses(&self) -> bool {
        self.excused
            || self.luns.iter().any(|lun| lun.path_excused || lun.write_excused || !lun.open)
            || self.jobs.values().any(|job| job.excused || job.path_excused)
    }

    /// Returns the number of operations that failed with a path error and were not [`Job::excused`].
    pub fn path_failures(&self) -> u64 {
        self.path_failed
    }

    /// Returns the identifier of the oldest operation under way.
    pub fn first_under_way(&self) -> Option<u64> {
        self.jobs.keys().next().copied()
    }

    /// Returns an upper bound of the identifiers of all operations that have begun.
    pub fn last_begun(&self) -> u64 {
        self.clock
    }

    /// Starts an operation. Returns None if an overlapping operation forbids it, or if the LUN is closed.
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

    /// Records a crash of the gateway. Each operation under way either has landed or never lands.
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

    /// Cuts the power of the backends under the LUNs where `hit` is true. The operations under way stay in the model, because the
    /// servers or the gateway retry them.
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

    /// Records the loss of the memory under blocks `range` of the LUN. The operations under way stay in the model, because the
    /// servers retry them.
    pub fn lose(&mut self, lun: usize, range: std::ops::Range<u64>) {
        self.jobs.values_mut().for_each(|job| job.cut |= job.lun == lun);
        let blocks = self.luns[lun].blocks.iter_mut();
        blocks.skip(range.start as usize).take((range.end - range.start) as usize).for_each(Block::lose);
    }

    /// Gives write errors a cause while the LUN becomes read-only, or stops being read-only. This includes writes under way.
    pub fn excuse_writes(&mut self, lun: usize) {
        let of_lun = |job: &&mut Job| job.lun == lun && job.kind.writes();
        self.jobs.values_mut().filter(of_lun).for_each(|job| job.excused = true);
        self.luns[lun].write_excused = true;
        self.luns[lun].read_only_since = None;
    }

    /// Records that every core knows the LUN's new state: `read_only` or not.
    pub fn set_read_only(&mut self, lun: usize, read_only: bool) {
        let clock = self.clock;
        let lun = &mut self.luns[lun];
        lun.write_excused = read_only;
        lun.read_only_since = read_only.then(|| lun.read_only_since.unwrap_or(clock));
    }

    /// Lets jobs begin again on a closed LUN. The LUN's data is unchanged.
    pub fn reopen(&mut self, lun: usize) {
        self.luns[lun].open = true;
    }

    /// Closes the LUN: no job begins on it.
    pub fn close(&mut self, lun: usize) {
        self.luns[lun].open = false;
        self.jobs.values_mut().filter(|job| job.lun == lun).for_each(|job| job.excused = true);
    }

    /// Replaces a LUN by a new LUN of durable zeros.
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
                // Lost memory loses even durable writes.
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
