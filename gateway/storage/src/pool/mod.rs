//! Pools: LUNs that are allocated from a set of backends. The backends themselves store the layout.
//!
//! What it is: the on-disk format, and the operations that change it, as plain async functions over [`PoolIo`]. They
//! use no clock, no randomness and no runtime: identifiers and times are inputs.
//!
//! What it is not: it is not on the data path, which sees only the extents of a [`crate::topology::Lun`]. A pool has no
//! redundancy: if a backend is lost, every LUN with an extent on that backend is lost.
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
//! Data is counted in units (4 MiB by default). Two members, the *holders*, keep the table; a pool with one member has
//! one holder. A holder's 3.9 MiB for the table are zeroed when the pool is made, so that a sparse file allocates the
//! space. Every member reserves these 3.9 MiB. There is no map of free space: a unit that no LUN has is free.
//!
//! # Invariants
//! 1. A CRC32C covers each slot of a label or table, so a slot is valid as a whole or not at all. Of the valid slots,
//!    the one with the highest generation is current. Each change is a new generation. It is written durably to slot 0
//!    and then to slot 1, on one holder after the other. So at any moment one slot holds the old state or the new
//!    state.
//! 2. A change is complete only when it is durable in every slot. Only then is the change acknowledged, and only then
//!    does the next change start. If writing fails half-way, the pool is *frozen*: it takes no more changes until it is
//!    opened again, since a reader may find the old state or the new state.
//! 3. Opening a pool first completes a change that a crash left half-written: it brings every slot to the highest
//!    generation.
//! 4. A LUN gets units in three steps: the units are (a) durably reserved (`pending_blocks`), (b) zeroed and flushed,
//!    (c) made durably visible (`blocks`). After a crash before (c), the next open rolls the reservation back.
//! 5. Units are free for other LUNs only after the table without them is durable everywhere.
//! 6. A pool with a missing member takes no changes, so two halves can't diverge. A pool also takes no changes if one
//!    of its disks has lost its label. The same holds if the layout on the disks is not the layout that this gateway
//!    wrote or read last. Files are locked, but nothing prevents a second gateway from using the same namespace of an
//!    array.
//! 7. A pool exists from the first durable label that says `Ready`. Before that, all labels say `Creating`, and all
//!    tables are durable. Destroying a pool takes the same steps in reverse.
//! 8. A member is recognised by its label. A member that has lost both label slots is recognised by its copy of the
//!    table, if another member's label says `Ready`. A disk with neither label nor table may belong to somebody else,
//!    and is never a member.

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
pub use label::{Label, LabelState, PoolOwner};
pub use luns::{
    ExportsError, LunError, NewLun, Zeroed, Zeroing, create_lun, delete_lun, grow_lun, store_exports,
    undo_growth,
};
pub use open::{Found, OpenPoolError, open_pool, scan};
pub use table::{MemberEntry, PoolLun, Run, Table, TableError};

use crate::request::Fault;
use crate::topology::{BackendId, Extent};
use uuid::Uuid;

/// The default unit in bytes. A pool can be made with another unit.
pub const DEFAULT_UNIT_BYTES: u64 = 4 << 20;
/// The smallest unit that a pool can be made with.
pub const MIN_UNIT_BYTES: u64 = 64 << 10;
/// The largest unit that a pool can be made with.
pub const MAX_UNIT_BYTES: u64 = 1 << 30;

/// I/O on backends, by offset and length in bytes, all of them multiples of 4,096. The pool operations do no other I/O.
///
/// The futures needn't be `Send`: the control thread runs them itself.
pub trait PoolIo {
    /// Reads `len` bytes from `offset`.
    fn read(
        &self,
        backend: BackendId,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = Result<Vec<u8>, Fault>>;
    /// Stores `bytes`. With `durable`, the bytes are on stable media when the future returns.
    fn write(
        &self,
        backend: BackendId,
        offset: u64,
        bytes: &[u8],
        durable: bool,
    ) -> impl Future<Output = Result<(), Fault>>;
    /// Makes all earlier writes and zeroed ranges durable.
    fn flush(&self, backend: BackendId) -> impl Future<Output = Result<(), Fault>>;
    /// Makes a range read as zeros. Callers pass at most [`ZERO_PIECE_BYTES`] at a time.
    fn write_zeroes(
        &self,
        backend: BackendId,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<(), Fault>>;
}

/// The largest range of one [`PoolIo::write_zeroes`]: half of the range that one NVMe Write Zeroes can cover with
/// 512-byte blocks.
pub const ZERO_PIECE_BYTES: u64 = 16 << 20;
/// The largest size of one read or write.
pub const IO_PIECE_BYTES: usize = 256 << 10;

/// A backend as the pool operations see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// The identifier that [`PoolIo`] uses.
    pub id: BackendId,
    /// The name that operators use.
    pub name: String,
    /// The backend's size.
    pub len_bytes: u64,
    /// The backend's logical block size.
    pub block_bytes: u32,
}

/// An I/O error on a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("backend {backend}: {doing} failed: {fault}")]
pub struct IoError {
    /// The backend's name.
    pub backend: String,
    /// The operation that failed.
    pub doing: &'static str,
    /// The fault.
    pub fault: Fault,
}

/// The reason for which a pool takes no changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Frozen {
    /// Members are missing. LUNs on them can't be presented; other LUNs can.
    #[error("these backends of the pool are missing: {}", .0.join(", "))]
    Missing(Vec<String>),
    /// The layout on the disks is not the one that this gateway wrote last. Either a second gateway uses the same pool
    /// and might allocate units that a LUN here has, or one of the pool's disks is no longer a member.
    #[error(
        "another gateway changed the pool's layout, or another pool took one of its disks: only one gateway may use a pool"
    )]
    Foreign,
    /// A change was interrupted.
    #[error("a change to the pool's layout was cut short: open the pool again")]
    Unsettled,
    /// The repair at opening failed.
    #[error("the pool's layout can't be repaired: {0}")]
    Io(IoError),
}

/// An open pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    name: String,
    table: Table,
    /// Backends by the table's member index; `None` for a missing member.
    backends: Vec<Option<BackendInfo>>,
    labels: Vec<Option<Label>>,
    frozen: Option<Frozen>,
    notes: Vec<String>,
}

impl Pool {
    /// Returns the pool's UUID.
    pub fn uuid(&self) -> Uuid {
        self.table.pool_uuid
    }

    /// Returns the pool's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the layout. A LUN that isn't [`PoolLun::is_visible`] is still being made.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Returns the members' backends, in the table's order; `None` for a missing member.
    pub fn backends(&self) -> &[Option<BackendInfo>] {
        &self.backends
    }

    /// Returns the owner in the newest label.
    pub fn owner(&self) -> Option<PoolOwner> {
        self.labels.iter().flatten().max_by_key(|label| label.generation).map(|label| label.owner)
    }

    /// Returns the reason for which the pool takes no changes; `None` if it takes changes.
    pub fn frozen(&self) -> Option<&Frozen> {
        self.frozen.as_ref()
    }

    /// Returns one note for each repair, each rollback and each ignored backend of the last open.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the LUN `uuid`.
    pub fn lun(&self, uuid: Uuid) -> Option<&PoolLun> {
        self.table.luns.iter().find(|lun| lun.uuid == uuid)
    }

    /// Returns the pool's size in bytes and the bytes that no LUN has. Both include missing members.
    pub fn capacity_bytes(&self) -> (u64, u64) {
        let units: u64 = self.table.members.iter().map(|member| u64::from(member.units)).sum();
        let used: u64 = self.table.luns.iter().map(PoolLun::units).sum();
        (units * self.table.unit_bytes, (units - used.min(units)) * self.table.unit_bytes)
    }

    /// Returns the extents of the visible bytes of `lun`, for the topology.
    ///
    /// # Errors
    /// The name of a missing member that holds an extent of the LUN.
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

    /// Returns the backend of a member, or the member's name if it is missing.
    fn backend(&self, member: u32) -> Result<&BackendInfo, &str> {
        let at = member as usize;
        let missing = || self.table.members.get(at).map_or("(unknown)", |entry| entry.name.as_str());
        self.backends.get(at).and_then(Option::as_ref).ok_or_else(missing)
    }
}

/// Returns a function that makes an [`IoError`] with the name of `backend`.
fn io_error(backend: &BackendInfo, doing: &'static str) -> impl Fn(Fault) -> IoError {
    let backend = backend.name.clone();
    move |fault| IoError { backend: backend.clone(), doing, fault }
}

#[cfg(test)]
mod tests;
