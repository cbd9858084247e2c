//! Makes, grows and deletes LUNs.
//!
//! Making and growing take three steps (invariant 4): [`Pool::reserve_lun`] or [`Pool::reserve_growth`],
//! [`Zeroing::run`], [`Pool::publish`]. The caller can take the steps one by one, so that the pool is free for other
//! changes while units are zeroed.

use super::alloc::allocate;
use super::format::{BLOCK_BYTES, NAME_BYTES, TABLE_AT, data_start, is_name};
use super::slots::{is_member, write_table};
use super::table::{PoolLun, Run, Table, TableError};
use super::{BackendInfo, Frozen, IoError, Pool, PoolIo, ZERO_PIECE_BYTES, io_error};
use crate::request::Fault;
use uuid::Uuid;

/// A LUN to be made. The LUN keeps this identity for its whole life.
#[derive(Clone, Debug)]
pub struct NewLun {
    /// The LUN's UUID.
    pub uuid: Uuid,
    /// The LUN's NGUID.
    pub nguid: [u8; 16],
    /// The LUN's serial number, ASCII, padded with spaces.
    pub serial: [u8; 20],
    /// The LUN's NSID, from 1.
    pub nsid: u32,
    /// The LUN's name, unique in the pool: 1 to 64 bytes without control characters.
    pub name: String,
    /// The present time, in seconds of Unix time.
    pub created_at_s: u64,
    /// Logical block size: 512 or 4096.
    pub block_bytes: u32,
    /// Size in blocks.
    pub blocks: u64,
}

/// The reason for which a LUN can't be made, grown or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LunError {
    /// The name is not valid.
    #[error("pool {pool}: {name:?} can't name a LUN: 1 to {NAME_BYTES} bytes without control characters")]
    Name {
        /// The pool.
        pool: String,
        /// The name.
        name: String,
    },
    /// The pool has a LUN with the same name, UUID or NGUID.
    #[error("pool {pool} already has LUN {existing} with the same name, UUID or NGUID")]
    Exists {
        /// The pool.
        pool: String,
        /// The existing LUN.
        existing: String,
    },
    /// The pool has no such LUN.
    #[error("pool {pool} has no LUN {lun}")]
    NotFound {
        /// The pool.
        pool: String,
        /// The requested LUN.
        lun: Uuid,
    },
    /// The block size is neither 512 nor 4096, or smaller than the blocks of every backend.
    #[error(
        "pool {pool}: LUN {lun} can't have blocks of {block_bytes} bytes: use 512 or 4096, and at least the smallest block \
         size of the pool's backends"
    )]
    BlockSize {
        /// The pool.
        pool: String,
        /// The LUN.
        lun: String,
        /// The requested block size.
        block_bytes: u32,
    },
    /// The size is zero, or larger than a pool can count.
    #[error("pool {pool}: LUN {lun} can't have {blocks} blocks")]
    Size {
        /// The pool.
        pool: String,
        /// The LUN.
        lun: String,
        /// The requested size.
        blocks: u64,
    },
    /// The LUN would not become larger.
    #[error("pool {pool}: LUN {lun} already has {blocks} blocks, and LUNs don't shrink")]
    NotLarger {
        /// The pool.
        pool: String,
        /// The LUN.
        lun: String,
        /// The LUN's size.
        blocks: u64,
    },
    /// The LUN is being made or grown.
    #[error("pool {pool}: another change makes or grows LUN {lun} now: try again later")]
    Busy {
        /// The pool.
        pool: String,
        /// The LUN.
        lun: String,
    },
    /// The LUN is presented, and the caller did not force the change.
    #[error("pool {pool}: LUN {lun} is in use")]
    InUse {
        /// The pool.
        pool: String,
        /// The LUN.
        lun: String,
    },
    /// Not enough units are free.
    #[error(
        "pool {pool}: LUN {lun} needs {need_bytes} bytes more, and the pool has {free_bytes} free for this LUN"
    )]
    NoSpace {
        /// The pool.
        pool: String,
        /// The LUN.
        lun: String,
        /// The missing space in bytes, in whole units.
        need_bytes: u64,
        /// The free space in bytes, on backends whose blocks are small enough.
        free_bytes: u64,
    },
    /// The layout would not fit into its slot.
    #[error("pool {pool}: {error}")]
    Table {
        /// The pool.
        pool: String,
        /// The reason.
        error: TableError,
    },
    /// The pool takes no changes.
    #[error("pool {pool}: {why}")]
    Frozen {
        /// The pool.
        pool: String,
        /// The reason.
        why: Frozen,
    },
    /// I/O failed. If the I/O was on the layout, the pool is frozen until it is opened again.
    #[error("pool {pool}, LUN {lun}: {error}")]
    Io {
        /// The pool.
        pool: String,
        /// The LUN.
        lun: String,
        /// The I/O error.
        error: IoError,
    },
}

/// The reason for which a pool doesn't store its exports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportsError {
    /// The exports don't fit into the slot of the layout.
    #[error("pool {pool}: {error}")]
    Table {
        /// The pool.
        pool: String,
        /// The reason.
        error: TableError,
    },
    /// The pool takes no changes.
    #[error("pool {pool}: {why}")]
    Frozen {
        /// The pool.
        pool: String,
        /// The reason.
        why: Frozen,
    },
    /// I/O failed; the pool is frozen until it is opened again.
    #[error("pool {pool}: {error}")]
    Io {
        /// The pool.
        pool: String,
        /// The I/O error.
        error: IoError,
    },
}

/// Makes a LUN that reads as zeros. If the operation fails or is interrupted, the LUN doesn't exist.
///
/// # Errors
/// [`LunError`].
pub async fn create_lun<I: PoolIo>(io: &I, pool: &mut Pool, new: NewLun) -> Result<(), LunError> {
    let zeroing = pool.reserve_lun(io, new).await?;
    zero_and_publish(io, pool, zeroing).await
}

/// Grows a LUN to `blocks` in total. The new blocks read as zeros. If the operation fails or is interrupted, the LUN is
/// unchanged.
///
/// # Errors
/// [`LunError`].
pub async fn grow_lun<I: PoolIo>(io: &I, pool: &mut Pool, lun: Uuid, blocks: u64) -> Result<(), LunError> {
    let zeroing = pool.reserve_growth(io, lun, blocks).await?;
    zero_and_publish(io, pool, zeroing).await
}

/// Undoes a growth that no host has seen: sets the LUN's size back to `blocks`.
///
/// # Errors
/// [`LunError`].
pub async fn undo_growth<I: PoolIo>(io: &I, pool: &mut Pool, lun: Uuid, blocks: u64) -> Result<(), LunError> {
    let name = pool.find(lun)?.name.clone();
    let mut table = pool.table.clone();
    let unit_bytes = table.unit_bytes;
    for lun in table.luns.iter_mut().filter(|other| other.uuid == lun) {
        lun.blocks = lun.blocks.min(blocks);
        lun.roll_back(unit_bytes);
    }
    pool.commit(io, table, &name).await
}

/// Deletes a LUN. `in_use` says whether the LUN is presented. A presented LUN is deleted only with `force`. The caller
/// must make sure that no command to the LUN is outstanding.
///
/// # Errors
/// [`LunError`].
pub async fn delete_lun<I: PoolIo>(
    io: &I,
    pool: &mut Pool,
    lun: Uuid,
    in_use: bool,
    force: bool,
) -> Result<(), LunError> {
    let found = pool.find(lun)?;
    let (name, busy) = (found.name.clone(), found.pending_blocks != 0);
    if busy {
        return Err(LunError::Busy { pool: pool.name.clone(), lun: name });
    }
    if in_use && !force {
        return Err(LunError::InUse { pool: pool.name.clone(), lun: name });
    }
    let mut table = pool.table.clone();
    table.luns.retain(|other| other.uuid != lun);
    pool.commit(io, table, &name).await
}

/// Stores `exports` with the layout. The exports tell which hosts see the LUNs. Does nothing if the layout already has
/// the same exports.
///
/// # Errors
/// [`ExportsError`].
pub async fn store_exports<I: PoolIo>(io: &I, pool: &mut Pool, exports: Vec<u8>) -> Result<(), ExportsError> {
    let name = pool.name.clone();
    if pool.table.exports == exports {
        return Ok(());
    }
    if let Some(why) = pool.frozen.clone() {
        return Err(ExportsError::Frozen { pool: name, why });
    }
    let table = Table { exports, ..pool.table.clone() };
    if let Err(error) = table.emit() {
        return Err(ExportsError::Table { pool: name, error });
    }
    pool.write(io, table).await.map_err(|error| ExportsError::Io { pool: name, error })
}

async fn zero_and_publish<I: PoolIo>(io: &I, pool: &mut Pool, zeroing: Zeroing) -> Result<(), LunError> {
    let (lun, name) = (zeroing.lun, zeroing.name.clone());
    match zeroing.run(io).await {
        Ok(zeroed) => pool.publish(io, zeroed).await,
        Err(error) => {
            // If the rollback fails too, the pool is frozen, and the next open rolls back.
            pool.roll_back(io, lun).await?;
            Err(LunError::Io { pool: pool.name.clone(), lun: name, error })
        }
    }
}

/// Reserved units, which must be zeroed before a LUN may show them.
#[derive(Debug)]
#[must_use = "reserved units must be zeroed and published, or rolled back"]
pub struct Zeroing {
    lun: Uuid,
    name: String,
    /// Backend, offset and length in bytes.
    ranges: Vec<(BackendInfo, u64, u64)>,
}

/// The proof that a [`Zeroing`] is done and durable.
#[derive(Debug)]
#[must_use = "zeroed units must be published or rolled back"]
pub struct Zeroed {
    lun: Uuid,
    name: String,
}

impl Zeroing {
    /// Returns the LUN that gets the units.
    pub fn lun(&self) -> Uuid {
        self.lun
    }

    /// Zeroes all ranges and flushes their backends.
    ///
    /// # Errors
    /// [`IoError`]; the caller then calls [`Pool::roll_back`].
    pub async fn run<I: PoolIo>(self, io: &I) -> Result<Zeroed, IoError> {
        for (backend, offset, len) in &self.ranges {
            let (mut at, end) = (*offset, offset + len);
            while at < end {
                let piece = (end - at).min(ZERO_PIECE_BYTES);
                io.write_zeroes(backend.id, at, piece).await.map_err(io_error(backend, "zeroing"))?;
                at += piece;
            }
        }
        let mut flushed = Vec::new();
        for (backend, ..) in &self.ranges {
            if !flushed.contains(&backend.id) {
                io.flush(backend.id).await.map_err(io_error(backend, "flushing"))?;
                flushed.push(backend.id);
            }
        }
        Ok(Zeroed { lun: self.lun, name: self.name })
    }
}

impl Pool {
    /// Reserves the units of a new LUN: the first step of making a LUN.
    ///
    /// # Errors
    /// [`LunError`].
    pub async fn reserve_lun<I: PoolIo>(&mut self, io: &I, new: NewLun) -> Result<Zeroing, LunError> {
        let pool = || self.name.clone();
        if !is_name(&new.name) {
            return Err(LunError::Name { pool: pool(), name: new.name });
        }
        let same = |lun: &&PoolLun| lun.name == new.name || lun.uuid == new.uuid || lun.nguid == new.nguid;
        if let Some(existing) = self.table.luns.iter().find(same) {
            return Err(LunError::Exists { pool: pool(), existing: existing.name.clone() });
        }
        let fits = self.table.members.iter().any(|member| member.block_bytes <= new.block_bytes);
        if !matches!(new.block_bytes, 512 | 4096) || !fits {
            return Err(LunError::BlockSize { pool: pool(), lun: new.name, block_bytes: new.block_bytes });
        }
        let mut lun = PoolLun {
            uuid: new.uuid,
            nguid: new.nguid,
            serial: new.serial,
            nsid: new.nsid,
            name: new.name,
            created_at_s: new.created_at_s,
            block_bytes: new.block_bytes,
            blocks: 0,
            pending_blocks: new.blocks,
            runs: Vec::new(),
        };
        let added = self.extend(&mut lun)?;
        let mut table = self.table.clone();
        table.luns.push(lun.clone());
        self.commit(io, table, &lun.name).await?;
        self.zeroing(&lun, &added)
    }

    /// Reserves units to grow a LUN to `blocks` in total: the first step of growing a LUN.
    ///
    /// # Errors
    /// [`LunError`].
    pub async fn reserve_growth<I: PoolIo>(
        &mut self,
        io: &I,
        lun: Uuid,
        blocks: u64,
    ) -> Result<Zeroing, LunError> {
        let mut grown = self.find(lun)?.clone();
        if grown.pending_blocks != 0 {
            return Err(LunError::Busy { pool: self.name.clone(), lun: grown.name });
        }
        if blocks <= grown.blocks {
            return Err(LunError::NotLarger {
                pool: self.name.clone(),
                lun: grown.name,
                blocks: grown.blocks,
            });
        }
        grown.pending_blocks = blocks;
        let added = self.extend(&mut grown)?;
        let mut table = self.table.clone();
        table.luns.iter_mut().filter(|other| other.uuid == lun).for_each(|other| *other = grown.clone());
        self.commit(io, table, &grown.name).await?;
        self.zeroing(&grown, &added)
    }

    /// Makes the zeroed units visible: the last step of making or growing a LUN.
    ///
    /// # Errors
    /// [`LunError`].
    pub async fn publish<I: PoolIo>(&mut self, io: &I, zeroed: Zeroed) -> Result<(), LunError> {
        self.find(zeroed.lun)?;
        let mut table = self.table.clone();
        for lun in table.luns.iter_mut().filter(|lun| lun.uuid == zeroed.lun && lun.pending_blocks != 0) {
            lun.blocks = std::mem::take(&mut lun.pending_blocks);
            lun.join_runs();
        }
        self.commit(io, table, &zeroed.name).await
    }

    /// Gives the reserved units back instead of publishing them.
    ///
    /// # Errors
    /// [`LunError`].
    pub async fn roll_back<I: PoolIo>(&mut self, io: &I, lun: Uuid) -> Result<(), LunError> {
        let name = self.find(lun)?.name.clone();
        let mut table = self.table.clone();
        let unit_bytes = table.unit_bytes;
        table.luns.iter_mut().filter(|other| other.uuid == lun).for_each(|other| other.roll_back(unit_bytes));
        table.luns.retain(|other| other.uuid != lun || other.is_visible());
        self.commit(io, table, &name).await
    }

    fn find(&self, lun: Uuid) -> Result<&PoolLun, LunError> {
        self.lun(lun).ok_or_else(|| LunError::NotFound { pool: self.name.clone(), lun })
    }

    /// Gives `lun` the units that its pending size needs. Returns the new units.
    fn extend(&self, lun: &mut PoolLun) -> Result<Vec<Run>, LunError> {
        let unit = self.table.unit_bytes;
        let need = lun.units_for(lun.pending_blocks, unit).filter(|&units| units > 0);
        let Some(need) = need.filter(|&units| units <= u64::from(u32::MAX)) else {
            let (pool, lun, blocks) = (self.name.clone(), lun.name.clone(), lun.pending_blocks);
            return Err(LunError::Size { pool, lun, blocks });
        };
        let more = need - lun.units();
        let added = allocate(&self.table, lun.block_bytes, more, lun.runs.last().copied());
        let added = added.map_err(|free| LunError::NoSpace {
            pool: self.name.clone(),
            lun: lun.name.clone(),
            need_bytes: more * unit,
            free_bytes: free * unit,
        })?;
        lun.runs.extend(&added);
        Ok(added)
    }

    fn zeroing(&self, lun: &PoolLun, added: &[Run]) -> Result<Zeroing, LunError> {
        let unit = self.table.unit_bytes;
        let mut ranges = Vec::with_capacity(added.len());
        for run in added {
            let backend = self.backend(run.member).map_err(|name| LunError::Frozen {
                pool: self.name.clone(),
                why: Frozen::Missing(vec![name.to_owned()]),
            })?;
            let offset = data_start(unit) + u64::from(run.start) * unit;
            ranges.push((backend.clone(), offset, u64::from(run.units) * unit));
        }
        Ok(Zeroing { lun: lun.uuid, name: lun.name.clone(), ranges })
    }

    /// Makes `table` the pool's layout, on the disks and in memory. An error names `lun`.
    async fn commit<I: PoolIo>(&mut self, io: &I, table: Table, lun: &str) -> Result<(), LunError> {
        let pool = self.name.clone();
        if let Some(why) = self.frozen.clone() {
            return Err(LunError::Frozen { pool, why });
        }
        if let Err(error) = table.emit() {
            return Err(LunError::Table { pool, error });
        }
        self.write(io, table).await.map_err(|error| LunError::Io { pool, lun: lun.to_owned(), error })
    }

    /// Writes `table` to every slot as the next generation. The caller has checked that the table fits.
    ///
    /// Between the first write and the last, the pool is frozen: invariant 2. It stays frozen if the future fails or is
    /// dropped. The pool is also frozen if the layout is not the one that this gateway wrote last, or if a disk that
    /// must be written now belongs to another pool. Both can happen, since a pool stays open for a long time.
    pub(super) async fn write<I: PoolIo>(&mut self, io: &I, mut table: Table) -> Result<(), IoError> {
        table.generation = self.table.generation + 1;
        debug_assert_eq!(table.check(), Ok(()));
        let bytes = table.emit().unwrap_or_default();
        let mut holders = Vec::new();
        for (at, backend) in (0..).zip(&self.backends) {
            let (Some(entry), Some(backend)) = (table.members.get(at as usize), backend) else { continue };
            let is_zeroed =
                |lun: &PoolLun| lun.pending_blocks != 0 && lun.runs.iter().any(|run| run.member == at);
            if !entry.holder && !table.luns.iter().any(is_zeroed) {
                continue;
            }
            let mut alien = match is_member(io, backend, table.pool_uuid, entry.uuid).await? {
                true => None,
                false => Some("changing a disk that belongs to another pool now"),
            };
            if entry.holder {
                let head = io.read(backend.id, TABLE_AT[0], BLOCK_BYTES).await;
                let head = head.map_err(io_error(backend, "reading the layout"))?;
                let found = Table::generation_of(&head, table.pool_uuid);
                if found.is_some_and(|found| found != self.table.generation) {
                    alien.get_or_insert("updating the layout, which another gateway has changed,");
                }
                holders.push(backend);
            }
            if let Some(doing) = alien {
                self.frozen = Some(Frozen::Foreign);
                return Err(io_error(backend, doing)(Fault::Aborted));
            }
        }
        self.frozen = Some(Frozen::Unsettled);
        for backend in holders {
            write_table(io, backend, &bytes).await?;
        }
        self.table = table;
        self.frozen = None;
        Ok(())
    }
}
