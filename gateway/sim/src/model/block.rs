//! One block: the versions that a read may see, and the versions that a power cut may leave.

use super::Version;

/// One block; see the module.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Versions that a read may see.
    pub now: Vec<Version>,
    /// Versions that a power cut may leave. It may also leave the versions in `since`.
    stable: Vec<Version>,
    /// Versions newer than those in `stable`, each with its time. The flag is false if the operation failed. The block may or may
    /// not hold the version of a failed operation.
    since: Vec<(u64, Version, bool)>,
    /// The versions that `now` had before a power cut. A read that was under way at the power cut may still return one of these
    /// versions, because its answer may already have been sent.
    pub before: Vec<Version>,
    /// Versions that a read could see earlier, each with the time at which another version replaced it. Kept while reads of the
    /// block are under way.
    pub past: Vec<(u64, Version)>,
    pub readers: u32,
    /// Version of the write under way.
    pub writer: Option<Version>,
    /// Time at which a write last ended here.
    pub written_at: u64,
}

impl Block {
    /// Returns a block of zeros.
    pub fn zero() -> Self {
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
    pub fn admits(&self, reads: bool, shared: bool) -> bool {
        match reads {
            true => shared || self.writer.is_none(),
            false => self.writer.is_none() && (shared || self.readers == 0),
        }
    }

    /// Adds the version of a write that ended at `at`. If the write is certain, its version replaces the versions that a read may
    /// see. Otherwise, the version is added to them.
    pub fn write(&mut self, at: u64, version: Version, certain: bool) {
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

    /// Moves all versions older than `at` to stable media.
    pub fn flush(&mut self, at: u64) {
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

    /// Cuts the power under the block.
    pub fn power_cut(&mut self) {
        self.before.extend(&self.now);
        for (_, version, _) in self.since.drain(..) {
            if !self.stable.contains(&version) {
                self.stable.push(version);
            }
        }
        self.now = self.stable.clone();
    }

    /// Replaces the block with zeros, because its memory is lost.
    pub fn lose(&mut self) {
        self.before.extend(&self.now);
        self.since.clear();
        (self.now, self.stable) = (vec![0], vec![0]);
    }

    /// Returns whether a read that began at `began` and ends at `at` may see `version`. `cut` is true if power failed since the
    /// read began. If `cut` is false and `version` must be the latest version, it becomes the block's only version.
    pub fn see(&mut self, began: u64, at: u64, version: Version, cut: bool) -> bool {
        let writes = self.writer == Some(version);
        let was = self.past.iter().any(|&(until, old)| old == version && until > began);
        if !writes && !self.now.contains(&version) {
            return was || cut && self.before.contains(&version);
        }
        // If a write ended during the read, the read may have seen an older version. All writes of zeros share version 0, so
        // version 0 can be old and new at the same time.
        let is_latest = self.written_at < began || writes && !was && !self.now.contains(&version);
        if !cut && is_latest && self.now != [version] {
            self.replace(at, version);
            self.since.push((at, version, true));
        }
        true
    }
}
