//! Makes and destroys pools.

use super::contents;
use super::format::{
    BLOCK_BYTES, Damage, GENERATIONS, LABEL_AT, NAME_BYTES, TABLE_AREA_BYTES, TABLE_AT, data_start, is_name,
};
use super::label::{Label, LabelState, PoolOwner};
use super::slots::{is_member, read_labels, write_label, write_slot, write_table};
use super::table::{MemberEntry, Table, TableError};
use super::{BackendInfo, Frozen, IoError, MAX_UNIT_BYTES, MIN_UNIT_BYTES, Pool, PoolIo, io_error};
use crate::request::Fault;
use crate::topology::MAX_BACKENDS;
use uuid::Uuid;

/// The number of members that keep the layout table, if the pool has that many members.
const HOLDERS: usize = 2;

/// A pool to be made.
#[derive(Clone, Debug)]
pub struct NewPool {
    /// The pool's UUID.
    pub uuid: Uuid,
    /// The pool's name: 1 to 64 bytes without control characters.
    pub name: String,
    /// The pool's unit: a power of two from [`MIN_UNIT_BYTES`] to [`MAX_UNIT_BYTES`].
    pub unit_bytes: u64,
    /// The gateway that may write the pool.
    pub owner: PoolOwner,
    /// The pool's backends, which lose their contents.
    pub members: Vec<NewMember>,
    /// Overwrite recognised contents, such as a file system or another pool's label.
    pub overwrite: bool,
}

/// A backend that becomes a member.
#[derive(Clone, Debug)]
pub struct NewMember {
    /// The backend's identity as a member.
    pub uuid: Uuid,
    /// The backend.
    pub backend: BackendInfo,
}

/// The reason for which a pool can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreatePoolError {
    /// The name of the pool or of a backend is not valid.
    #[error("{0:?} can't name a pool or backend: 1 to {NAME_BYTES} bytes without control characters")]
    Name(String),
    /// The unit is not valid.
    #[error(
        "a pool can't have a unit of {0} bytes: use a power of two from {MIN_UNIT_BYTES} to {MAX_UNIT_BYTES}"
    )]
    Unit(u64),
    /// There are no backends, or too many.
    #[error("a pool can't have {0} backends: use 1 to {MAX_BACKENDS}")]
    Members(usize),
    /// A backend or a member UUID is given twice.
    #[error("backend {0} or its member UUID is given twice")]
    Twice(String),
    /// A LUN can't have the backend's block size.
    #[error("backend {0} has blocks of neither 512 nor 4096 bytes, so it can't be in a pool")]
    BlockSize(String),
    /// The backend has no room for a unit of data.
    #[error("backend {backend} has {len_bytes} bytes, and a pool needs at least {need_bytes}")]
    TooSmall {
        /// The backend.
        backend: String,
        /// The backend's size.
        len_bytes: u64,
        /// The size of the metadata and one unit.
        need_bytes: u64,
    },
    /// The backend belongs to a pool.
    #[error("backend {backend} belongs to pool {pool} ({uuid})")]
    InUse {
        /// The backend.
        backend: String,
        /// The pool's name.
        pool: String,
        /// The pool.
        uuid: Uuid,
        /// The generation of the backend's label.
        generation: u64,
    },
    /// The backend holds contents that somebody may want to keep.
    #[error("backend {backend} holds {what}")]
    Contents {
        /// The backend.
        backend: String,
        /// The recognised contents.
        what: &'static str,
    },
    /// The backend may belong to a pool, so it is not used.
    #[error("backend {backend} has a damaged label: {damage}")]
    Damaged {
        /// The backend.
        backend: String,
        /// The damage of the label.
        damage: Damage,
    },
    /// I/O failed. The pool doesn't exist, unless the last step failed. In that case, an attempt to open the pool shows
    /// the outcome.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The layout does not fit. This can't happen for an empty layout.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// Makes a pool. All contents of the backends are lost. Without `overwrite`, refuses a backend with recognised
/// contents. After an interruption, the backends can be used for another try.
///
/// # Errors
/// [`CreatePoolError`].
pub async fn create_pool<I: PoolIo>(io: &I, new: NewPool) -> Result<Pool, CreatePoolError> {
    let members = check(&new)?;
    let mut generation = 1;
    for member in &new.members {
        let before = match check_unused(io, &member.backend).await {
            Err(CreatePoolError::InUse { generation, .. }) if new.overwrite => generation,
            Err(CreatePoolError::Damaged { .. }) if new.overwrite => 0,
            unused => unused?,
        };
        if before == 0
            && !new.overwrite
            && let Some(what) = contents::read(io, &member.backend).await?
        {
            return Err(CreatePoolError::Contents { backend: member.backend.name.clone(), what });
        }
        // A pool's own changes never reach `GENERATIONS / 2`. A label with a higher generation may leave no next
        // generation, so the new labels don't continue from it. They may start from a lower generation, since both
        // slots are overwritten before the pool relies on one of them.
        if before < GENERATIONS / 2 {
            generation = generation.max(before + 1);
        }
    }
    let table = Table {
        generation: 1,
        pool_uuid: new.uuid,
        unit_bytes: new.unit_bytes,
        members,
        luns: Vec::new(),
        exports: Vec::new(),
    };
    let bytes = table.emit()?;
    let mut labels: Vec<Label> = new
        .members
        .iter()
        .zip(&table.members)
        .map(|(member, entry)| Label {
            generation,
            pool_uuid: new.uuid,
            pool_name: new.name.clone(),
            member_uuid: member.uuid,
            owner: new.owner,
            state: LabelState::Creating,
            holder: entry.holder,
            block_bytes: entry.block_bytes,
            unit_bytes: new.unit_bytes,
            len_bytes: member.backend.len_bytes,
        })
        .collect();
    // Write all labels, then all tables, then the labels with which the pool exists: invariant 7.
    for (member, label) in new.members.iter().zip(&labels) {
        write_label(io, &member.backend, label).await?;
    }
    for member in &new.members {
        contents::erase(io, &member.backend).await?;
    }
    for (member, _) in new.members.iter().zip(&labels).filter(|(_, label)| label.holder) {
        make_room(io, &member.backend).await?;
        write_table(io, &member.backend, &bytes).await?;
    }
    for (member, label) in new.members.iter().zip(&mut labels) {
        label.state = LabelState::Ready;
        label.generation += 1;
        write_label(io, &member.backend, label).await?;
    }
    Ok(Pool {
        name: new.name,
        table,
        backends: new.members.into_iter().map(|member| Some(member.backend)).collect(),
        labels: labels.into_iter().map(Some).collect(),
        frozen: None,
        notes: Vec::new(),
    })
}

/// Zeroes both table slots, so that a sparse file allocates the space for them. Then a growing table can't fail because
/// the disk is full. The exception is a file system that takes new space for overwritten data.
async fn make_room<I: PoolIo>(io: &I, backend: &BackendInfo) -> Result<(), IoError> {
    let zeroed = io.write_zeroes(backend.id, TABLE_AT[0], TABLE_AREA_BYTES).await;
    zeroed.map_err(io_error(backend, "making room for the layout"))?;
    io.flush(backend.id).await.map_err(io_error(backend, "making room for the layout"))
}

/// Checks everything that needs no I/O. Returns the members' entries for the table.
fn check(new: &NewPool) -> Result<Vec<MemberEntry>, CreatePoolError> {
    if !is_name(&new.name) {
        return Err(CreatePoolError::Name(new.name.clone()));
    }
    let unit = new.unit_bytes;
    if !unit.is_power_of_two() || !(MIN_UNIT_BYTES..=MAX_UNIT_BYTES).contains(&unit) {
        return Err(CreatePoolError::Unit(unit));
    }
    if !(1..=MAX_BACKENDS).contains(&new.members.len()) {
        return Err(CreatePoolError::Members(new.members.len()));
    }
    let mut entries = Vec::with_capacity(new.members.len());
    for (at, NewMember { uuid, backend }) in new.members.iter().enumerate() {
        let same = |other: &NewMember| other.uuid == *uuid || other.backend.id == backend.id;
        if new.members.iter().take(at).any(same) {
            return Err(CreatePoolError::Twice(backend.name.clone()));
        }
        if !is_name(&backend.name) {
            return Err(CreatePoolError::Name(backend.name.clone()));
        }
        if !matches!(backend.block_bytes, 512 | 4096) {
            return Err(CreatePoolError::BlockSize(backend.name.clone()));
        }
        let units = backend.len_bytes.saturating_sub(data_start(unit)) / unit;
        if units == 0 {
            return Err(CreatePoolError::TooSmall {
                backend: backend.name.clone(),
                len_bytes: backend.len_bytes,
                need_bytes: data_start(unit) + unit,
            });
        }
        entries.push(MemberEntry {
            uuid: *uuid,
            units: u32::try_from(units).unwrap_or(u32::MAX),
            block_bytes: backend.block_bytes,
            holder: at < HOLDERS,
            name: backend.name.clone(),
        });
    }
    Ok(entries)
}

/// Refuses a backend that belongs to a pool. Otherwise returns the generation of the backend's label, or 0 if there is
/// no label.
pub(super) async fn check_unused<I: PoolIo>(io: &I, backend: &BackendInfo) -> Result<u64, CreatePoolError> {
    let labels = read_labels(io, backend).await?;
    match (labels.best(|label| label.generation), &labels.slots) {
        (Some(label), _) if label.state == LabelState::Ready => Err(CreatePoolError::InUse {
            backend: backend.name.clone(),
            pool: label.pool_name.clone(),
            uuid: label.pool_uuid,
            generation: label.generation,
        }),
        (Some(label), _) => Ok(label.generation),
        // If the write of the first label was interrupted, slot 0 is torn and slot 1 is untouched.
        (None, [_, Err(Damage::Blank)]) => Ok(0),
        (None, _) => Err(CreatePoolError::Damaged { backend: backend.name.clone(), damage: labels.damage() }),
    }
}

/// The reason for which a pool can't be destroyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestroyPoolError {
    /// The pool has LUNs.
    #[error("pool {pool} has {luns} LUNs: delete these LUNs first")]
    HasLuns {
        /// The pool.
        pool: String,
        /// The number of LUNs.
        luns: usize,
    },
    /// The pool takes no changes.
    #[error("pool {pool}: {why}")]
    Frozen {
        /// The pool.
        pool: String,
        /// The reason.
        why: Frozen,
    },
    /// I/O failed. The pool may still exist; an attempt to open the pool shows the outcome.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Destroys a pool. With `force`, destroys its LUNs too. The backends are then free for other uses. The caller must
/// make sure that no command to the LUNs is outstanding.
///
/// # Errors
/// [`DestroyPoolError`]; the pool is unchanged, or frozen after an I/O error.
pub async fn destroy_pool<I: PoolIo>(io: &I, pool: &mut Pool, force: bool) -> Result<(), DestroyPoolError> {
    let luns = pool.table.luns.len();
    if luns > 0 && !force {
        return Err(DestroyPoolError::HasLuns { pool: pool.name.clone(), luns });
    }
    if let Some(why) = pool.frozen.clone() {
        return Err(DestroyPoolError::Frozen { pool: pool.name.clone(), why });
    }
    let backends: Vec<BackendInfo> = pool.backends.iter().flatten().cloned().collect();
    for (backend, entry) in backends.iter().zip(&pool.table.members) {
        if !is_member(io, backend, pool.table.pool_uuid, entry.uuid).await? {
            pool.frozen = Some(Frozen::Foreign);
            return Err(io_error(backend, "erasing the label of a disk that belongs to another pool now")(
                Fault::Aborted,
            )
            .into());
        }
    }
    pool.frozen = Some(Frozen::Unsettled);
    for (backend, label) in backends.iter().zip(pool.labels.iter_mut().flatten()) {
        label.state = LabelState::Creating;
        label.generation += 1;
        write_label(io, backend, label).await?;
    }
    for backend in &backends {
        // Slot 1 is erased first, so that there is never a torn slot 1 without a valid slot 0: see `check_unused`.
        for at in LABEL_AT.into_iter().rev() {
            write_slot(io, backend, at, &[0; BLOCK_BYTES], "erasing the label").await?;
        }
    }
    Ok(())
}
