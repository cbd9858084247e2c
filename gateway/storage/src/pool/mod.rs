//! Pools: LUNs carved from a set of backends, with the layout on the backends themselves.
//!
//! What it is: the on-disk format, and the operations that change it, as plain async functions over
//! [`PoolIo`]. They know no clock, no randomness and no runtime: identifiers and times are inputs.
//! What it is not: it is not on the data path (that sees only a [`crate::topology::Lun`]'s extents),
//! and it has no redundancy of its own: a LUN is lost with any backend that it has extents on.
//!
//! # On disk (version 1, little-endian)
//! Each backend of a pool is a *member*:
//! ```text
//! byte            0  label, slot 0 (4,096 bytes; see `label`)
//!             4,096  label, slot 1
//!             8,192  reserved, up to 128 KiB; zeroed when the pool is made (see `contents`)
//!           131,072  layout table, slot 0 (2,031,616 bytes; see `table`)
//!         2,162,688  layout table, slot 1
//!         4,194,304  data, from here or from the next multiple of the unit
//! ```
//! Data is counted in units (4 MiB unless chosen otherwise). The table is kept on two members, the
//! *holders* (on one, where there is only one), where its 3.9 MiB are zeroed when the pool is made, so that a sparse
//! file has the space. Its place is reserved on every member. There is no map of free space: what no LUN has is free.
//!
//! # Invariants
//! 1. A label or table is valid as a whole or not at all (CRC32C), and of the valid ones the highest
//!    generation counts. Each change is a new generation, written durably to slot 0, then slot 1, of
//!    one holder after the other. So at any moment one slot holds the old state or the new.
//! 2. A change is in force only when it is durable in every slot; only then is it acknowledged, and
//!    only then does the next one start. If writing fails half-way, the pool is *frozen*: it takes
//!    no more changes until it is opened again, since nobody knows which state a reader would find.
//! 3. Opening completes what a crash left half-written: it brings every slot to the highest
//!    generation before anything else.
//! 4. Units become a LUN's in three steps: (a) durably reserved (`pending_blocks`), (b) zeroed and
//!    flushed, (c) durably visible (`blocks`). A crash before (c) is rolled back at the next open.
//! 5. Units are free for others only after the table without them is durable everywhere.
//! 6. A pool with a missing member takes no changes, so two halves can't diverge. Nor does one whose layout is not the one
//!    that was written or read last, or one of whose disks lost its label since: files are locked, but nothing keeps a second
//!    gateway from the same namespace of an array.
//! 7. A pool exists from the first durable label that says `Ready`; before, all have one that says
//!    `Creating`, and all tables are durable. Destroying goes the same way back.
//! 8. A member is known by its label. One that has lost both slots is known by its copy of the table, as long as another
//!    member says `Ready`, and never without: what carries neither may be anybody's.

mod alloc;
mod contents;
mod create;
mod format;
mod import;
mod label;
mod luns;
mod open;
mod slots;
mod table;

pub use contents::{LOOKED_AT_BYTES, recognise};
pub use create::{CreatePoolError, DestroyPoolError, NewMember, NewPool, create_pool, destroy_pool};
pub use format::Damage;
pub use import::{ImportError, Imported, import_namespace};
pub use label::{Label, LabelState, Owner};
pub use luns::{
    ExportsError, LunError, NewLun, Zeroed, Zeroing, create_lun, delete_lun, grow_lun, store_exports,
    undo_growth,
};
pub use open::{Found, OpenPoolError, open_pool, scan};
pub use table::{MemberEntry, PoolLun, Run, Table, TableError};

use crate::request::Fault;
use crate::topology::{BackendId, Extent};

/// Data is counted in units of this many bytes unless the pool was made with another.
pub const DEFAULT_UNIT_BYTES: u64 = 4 << 20;
/// The smallest unit that a pool can be made with.
pub const MIN_UNIT_BYTES: u64 = 64 << 10;
/// The largest.
pub const MAX_UNIT_BYTES: u64 = 1 << 30;

/// What the operations need of the world: I/O on backends by offset and length in bytes, all of them
/// multiples of 4,096.
///
/// The futures needn't be `Send`: the control thread runs them on itself.
pub trait PoolIo {
    /// `len` bytes from `offset`.
    fn read(
        &self,
        backend: BackendId,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = Result<Vec<u8>, Fault>>;
    /// Stores `bytes`; with `durable`, on stable media when it returns.
    fn write(
        &self,
        backend: BackendId,
        offset: u64,
        bytes: &[u8],
        durable: bool,
    ) -> impl Future<Output = Result<(), Fault>>;
    /// Makes durable what was written and zeroed before.
    fn flush(&self, backend: BackendId) -> impl Future<Output = Result<(), Fault>>;
    /// Makes a range read as zeros. At most [`ZERO_PIECE_BYTES`] at a time are asked for.
    fn write_zeroes(
        &self,
        backend: BackendId,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<(), Fault>>;
}

/// The most that one [`PoolIo::write_zeroes`] is asked to zero: half of what one NVMe Write Zeroes
/// can do with 512-byte blocks.
pub const ZERO_PIECE_BYTES: u64 = 16 << 20;
/// The most that one read or write moves.
pub const IO_PIECE_BYTES: usize = 256 << 10;

/// A UUID: as bytes in the order in which it is printed (RFC 9562).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// A backend as the operations see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// By which [`PoolIo`] knows it.
    pub id: BackendId,
    /// By which people know it.
    pub name: String,
    /// Its size.
    pub len_bytes: u64,
    /// Its logical block size.
    pub block_bytes: u32,
}

/// I/O on a backend failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("backend {backend}: {doing} failed: {fault}")]
pub struct IoError {
    /// The backend's name.
    pub backend: String,
    /// What was tried.
    pub doing: &'static str,
    /// How it failed.
    pub fault: Fault,
}

/// Why a pool takes no changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Frozen {
    /// Members are not there. Their LUNs can't be presented; the others can.
    #[error("these backends are missing: {}", .0.join(", "))]
    Missing(Vec<String>),
    /// It is not as this gateway left it: a second one has the same pool, and would give units away that are a LUN's here, or
    /// one of its disks is no member any more.
    #[error(
        "another gateway has changed its layout, or one of its disks is another's now; a pool is one gateway's"
    )]
    Foreign,
    /// A change was cut short.
    #[error("a change to the layout was cut short; open the pool again")]
    Unsettled,
    /// Bringing the pool in order failed when it was opened.
    #[error("the layout could not be brought up to date: {0}")]
    Io(IoError),
}

/// A pool that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    name: String,
    table: Table,
    /// By the table's member index; `None` is missing.
    backends: Vec<Option<BackendInfo>>,
    labels: Vec<Option<Label>>,
    frozen: Option<Frozen>,
    notes: Vec<String>,
}

impl Pool {
    /// Its identity.
    pub fn uuid(&self) -> Uuid {
        self.table.pool_uuid
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The layout, in which a LUN that isn't [`PoolLun::is_visible`] is still being made.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Its members' backends, in the table's order; `None` where one is missing.
    pub fn backends(&self) -> &[Option<BackendInfo>] {
        &self.backends
    }

    /// Who owns it, as its labels say.
    pub fn owner(&self) -> Option<Owner> {
        self.labels.iter().flatten().max_by_key(|label| label.generation).map(|label| label.owner)
    }

    /// Why it takes no changes; `None` if it does.
    pub fn frozen(&self) -> Option<&Frozen> {
        self.frozen.as_ref()
    }

    /// What opening repaired or rolled back, for the log.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The LUN `uuid`.
    pub fn lun(&self, uuid: Uuid) -> Option<&PoolLun> {
        self.table.luns.iter().find(|lun| lun.uuid == uuid)
    }

    /// Bytes in all and bytes that no LUN has, missing members included.
    pub fn capacity_bytes(&self) -> (u64, u64) {
        let units: u64 = self.table.members.iter().map(|member| u64::from(member.units)).sum();
        let used: u64 = self.table.luns.iter().map(PoolLun::units).sum();
        (units * self.table.unit_bytes, (units - used.min(units)) * self.table.unit_bytes)
    }

    /// Where the visible bytes of `lun` are, for the topology.
    ///
    /// # Errors
    /// The name of a missing member that it has extents on.
    pub fn extents(&self, lun: &PoolLun) -> Result<Vec<Extent>, String> {
        let unit = self.table.unit_bytes;
        let mut extents = Vec::with_capacity(lun.runs.len());
        let (mut lun_offset, end) = (0, lun.blocks * u64::from(lun.block_bytes));
        for run in &lun.runs {
            if lun_offset >= end {
                break;
            }
            let backend = self.backend(run.member).map_err(str::to_owned)?;
            let len = u64::from(run.units) * unit;
            let backend_offset = format::data_start(unit) + u64::from(run.start) * unit;
            extents.push(Extent { lun_offset, len, backend: backend.id, backend_offset });
            lun_offset += len;
        }
        Ok(extents)
    }

    /// The backend of a member, or the name of the one that is missing.
    fn backend(&self, member: u32) -> Result<&BackendInfo, &str> {
        let at = member as usize;
        let missing = || self.table.members.get(at).map_or("(unknown)", |entry| entry.name.as_str());
        self.backends.get(at).and_then(Option::as_ref).ok_or_else(missing)
    }
}

/// Names `backend` in the error of an I/O.
fn io_error(backend: &BackendInfo, doing: &'static str) -> impl Fn(Fault) -> IoError {
    let backend = backend.name.clone();
    move |fault| IoError { backend: backend.clone(), doing, fault }
}

#[cfg(test)]
mod tests;
