//! Backends in a core's own memory, and the LUNs on these backends. A read sends directly from this memory. The memory is lent
//! meanwhile. An in-capsule write changes this memory in place.
//!
//! One LUN lies at the start of the first backend, another LUN in the middle of the second backend. The third LUN consists of
//! pieces on both backends, so its commands become requests. Reads and writes of these LUNs may overlap
//! ([`Model::share`](crate::model::Model::share)). After kill -9, a backend is either kept, like a file in /dev/shm, or lost with
//! the process. After a power cut, both backends are lost.
//!
//! The module also checks loans. When no operation is under way, no memory is lent. If every connection has a send list, as in a
//! real gateway, no memory is lent between two turns.

use std::time::Duration;

use trefoil_poll::CoreId;
use trefoil_poll::ram::Ram;
use trefoil_storage::backend::{AttachKind, Memory};
use trefoil_storage::topology::{BackendId, Extent, LunId};
use trefoil_sys::region::Region;

use super::sizes::{DISK_BYTES, FIRST_MEMORY, LUN_BLOCKS, LUNS};
use super::{MEMORY_BACK, Run};
use crate::node::Node;
use crate::simio::{SOCKETS, SimFile};
use crate::world::Crash;

/// Index of the first memory backend, and the number of memory backends.
const FIRST: usize = DISK_BYTES.len();
pub(super) const MEMORIES: usize = 2;
const LEN_BYTES: usize = 2 << 20;
/// Number of long zeroings that one backend runs at a time.
const ZEROINGS: usize = 2;

/// The pieces of each LUN at its largest size: the backend (counted from [`FIRST`]), the first byte on the backend, and the
/// length in bytes. Most edges of pieces lie inside a 64 KiB unit. Loans are counted in these units.
const PIECES: [&[(usize, u64, u64)]; LUNS - FIRST_MEMORY] = [
    &[(0, 0, 0x10_0000)],
    &[(1, 0x2_9000, 0xB_0000)],
    &[(0, 0x10_3000, 0xB000), (1, 0x10_5000, 0x1_4000), (0, 0x11_8000, 0x2_9000), (1, 0x14_0000, 0x6_0000)],
];

/// State of the memory backends; see the module.
pub(super) struct Memories {
    /// For each backend, true if its contents survive the end of the process. `contents` holds the contents at the last crash.
    kept: [bool; MEMORIES],
    contents: [Option<Vec<u8>>; MEMORIES],
    luns: [MemoryLun; LUNS - FIRST_MEMORY],
    /// Number of failed commands that the gateway has counted so far. `error_cause` is true if later failures have a cause.
    errors: u64,
    error_cause: bool,
}

#[derive(Clone, Copy)]
struct MemoryLun {
    blocks: u64,
    /// True while the LUN is not presented.
    hidden: bool,
    read_only: bool,
    /// True if the LUN was read-only when it was last published.
    told_read_only: bool,
}

impl Memories {
    pub fn new(kept: [bool; MEMORIES]) -> Self {
        let lun = |blocks| MemoryLun { blocks, hidden: false, read_only: false, told_read_only: false };
        let luns = std::array::from_fn(|at| lun(LUN_BLOCKS[FIRST_MEMORY + at]));
        Self { kept, contents: [const { None }; MEMORIES], luns, errors: 0, error_cause: false }
    }

    /// Returns whether a LUN's current or published state can make commands fail.
    fn is_changing(&self) -> bool {
        self.luns.iter().any(|lun| lun.hidden || lun.read_only || lun.told_read_only)
    }
}

/// Returns the extents of the first `len` bytes of memory LUN `at`.
fn extents(at: usize, len: u64) -> Vec<Extent> {
    let mut lun_offset = 0;
    let pieces = PIECES[at].iter().map_while(|&(backend, backend_offset, piece)| {
        let len = piece.min(len - lun_offset);
        let extent = Extent { lun_offset, len, backend: BackendId((FIRST + backend) as u32), backend_offset };
        lun_offset += len;
        (len > 0).then_some(extent)
    });
    pieces.collect()
}

impl Run {
    pub(super) fn make_memories(&mut self) {
        let mut workload = self.workload.borrow_mut();
        let hot = FIRST_MEMORY + self.rng.below((LUNS - FIRST_MEMORY) as u64) as usize;
        workload.hot = Some(hot).filter(|_| self.rng.below(2) == 0);
        for lun in FIRST_MEMORY..LUNS {
            workload.model.share(lun);
            self.memories.luns[lun - FIRST_MEMORY].blocks = workload.model.blocks(lun);
        }
    }

    /// Returns the size in blocks and the extents of each memory LUN that the gateway must present.
    pub(super) fn memory_luns(&mut self) -> Vec<Option<(u64, Vec<Extent>)>> {
        let block_bytes = self.block_bytes;
        let luns = self.memories.luns.iter_mut().enumerate().map(|(at, lun)| {
            lun.told_read_only = lun.read_only;
            let len = lun.blocks * block_bytes[FIRST_MEMORY + at] as u64;
            (!lun.hidden).then(|| (lun.blocks, extents(at, len)))
        });
        luns.collect()
    }

    /// Returns whether the LUN was read-only when it was last published.
    pub(super) fn is_read_only(&self, lun: usize) -> bool {
        lun.checked_sub(FIRST_MEMORY).is_some_and(|at| self.memories.luns[at].told_read_only)
    }

    /// Records that every core presents memory LUN `lun` in the state that was last published.
    pub(super) fn memory_in_force(&mut self, lun: usize) {
        let now = self.memories.luns[lun - FIRST_MEMORY];
        let mut workload = self.workload.borrow_mut();
        let presented = self.luns[lun].as_ref().map(|(blocks, _)| *blocks);
        let Some(blocks) = presented.filter(|_| !now.hidden) else { return };
        workload.model.reopen(lun);
        if blocks > workload.model.blocks(lun) {
            workload.model.grow(lun, blocks);
        }
        if now.read_only == now.told_read_only {
            workload.model.set_read_only(lun, now.read_only);
        }
    }

    /// Returns the kind of memory backend `at` for the attach on core `core`.
    pub(super) fn memory_kind(&mut self, at: usize, core: u16) -> AttachKind<SimFile> {
        let owner = self.owners[FIRST + at];
        if owner != core {
            return AttachKind::Remote { core: CoreId(owner) };
        }
        let mut ram = Ram::new(Region::anonymous(LEN_BYTES).expect("memory for a simulated backend"));
        if let Some(contents) = self.memories.contents[at].take() {
            ram.write(0, &contents).expect("as long as it was");
        }
        AttachKind::Memory(Memory::new(ram, ZEROINGS))
    }

    /// Returns each memory backend with its size in bytes.
    pub(super) fn memory_backends() -> impl Iterator<Item = (usize, BackendId, u64)> {
        (0..MEMORIES).map(|at| (at, BackendId((FIRST + at) as u32), LEN_BYTES as u64))
    }

    /// Prepares for the gateway's crash: saves the contents that survive, and tells the model which contents are lost.
    pub(super) fn memory_crash(&mut self, how: Crash) {
        for (at, id, len) in Self::memory_backends() {
            let mut bytes = None;
            if how == Crash::Kill
                && self.memories.kept[at]
                && let Some(machine) = self.world.machine(self.gateway, self.owners[FIRST + at])
                && let Some(ram) = machine.ram(id)
            {
                let mut copy = vec![0; len as usize];
                ram.read(0, &mut copy).expect("all of it");
                bytes = Some(copy);
            }
            self.fired(if bytes.is_some() { "memory-kept" } else { "memory-lost" });
            match bytes {
                None => self.lose_memory(at),
                Some(_) if self.lose_kept => bytes = None,
                Some(_) => {}
            }
            self.memories.contents[at] = bytes;
        }
    }

    fn lose_memory(&mut self, at: usize) {
        let mut workload = self.workload.borrow_mut();
        for lun in FIRST_MEMORY..LUNS {
            let block_bytes = self.block_bytes[lun] as u64;
            let all = PIECES[lun - FIRST_MEMORY].iter().map(|&(.., len)| len).sum();
            for extent in
                extents(lun - FIRST_MEMORY, all).iter().filter(|e| e.backend.0 as usize == FIRST + at)
            {
                let range = extent.lun_offset..extent.lun_offset + extent.len;
                workload.model.lose(lun, range.start / block_bytes..range.end / block_bytes);
            }
        }
    }

    /// Hides a memory LUN for a while, makes it read-only for a while, or grows it.
    pub(super) fn memory_fault(&mut self) {
        let at = self.rng.below(PIECES.len() as u64) as usize;
        let (lun, state) = (FIRST_MEMORY + at, self.memories.luns[at]);
        if !self.is_settled() || state.hidden || state.read_only {
            return;
        }
        match self.rng.below(4) {
            0 => {
                self.memories.luns[at].hidden = true;
                self.workload.borrow_mut().model.close(lun);
                self.fired("memory-remove");
            }
            1 => {
                self.memories.luns[at].read_only = true;
                self.workload.borrow_mut().model.excuse_writes(lun);
                self.fired("memory-read-only");
            }
            _ => {
                let all: u64 = PIECES[at].iter().map(|&(.., len)| len).sum();
                let most = all / self.block_bytes[lun] as u64;
                self.memories.luns[at].blocks = (state.blocks + 1 + self.rng.below(100)).min(most);
                self.fired("memory-grow");
            }
        }
        (self.error_cause, self.memories.error_cause) = (true, true);
        self.pools.stale = true;
        self.pool_step();
        let time = Duration::from_micros(100 + self.rng.below(20_000));
        self.world.after(time, MEMORY_BACK + at as u64);
    }

    /// Ends the fault of memory LUN `at`.
    pub(super) fn memory_back(&mut self, at: usize) {
        let lun = &mut self.memories.luns[at];
        if std::mem::take(&mut lun.read_only) {
            self.workload.borrow_mut().model.excuse_writes(FIRST_MEMORY + at);
        }
        lun.hidden = false;
        self.pools.stale = true;
        self.pool_step();
    }

    /// Checks that no command of a memory LUN failed without a cause. Hosts retry failed commands, so this error would otherwise
    /// stay hidden.
    pub(super) fn check_memory_errors(&mut self) {
        let mut errors = 0;
        for core in 0..self.cores {
            if let Some(Node::Gateway(gateway)) = self.world.machine(self.gateway, core) {
                let of_lun = |lun: usize| gateway.target().lun_stats(LunId(lun as u32)).errors;
                errors += (FIRST_MEMORY..LUNS).map(of_lun).sum::<u64>();
            }
        }
        let before = std::mem::replace(&mut self.memories.errors, errors);
        if errors > before && !self.memories.error_cause {
            let what = format!("{} commands of memory LUNs failed without a cause", errors - before);
            self.workload.borrow_mut().model.violate(what);
        }
        self.memories.error_cause = self.memories.is_changing() || !self.is_published();
    }

    /// Returns a violation if a memory backend has lent memory at a time when no loan is allowed.
    pub(super) fn check_loans(&mut self, at_rest: bool) -> Option<String> {
        if !at_rest && self.send_lists < SOCKETS {
            return None;
        }
        Self::memory_backends().find_map(|(at, id, len)| {
            let core = self.owners[FIRST + at];
            let lent = self.world.machine(self.gateway, core)?.lends(id, len);
            lent.then(|| format!("core {core} lends memory of backend {} between two turns", id.0))
        })
    }
}
