//! Reads and writes the two slots of a label or table.

use super::format::{BLOCK_BYTES, Damage, LABEL_AT, TABLE_AT};
use super::label::{Label, LabelState};
use super::table::Table;
use super::{BackendInfo, IO_PIECE_BYTES, IoError, PoolIo, io_error};
use uuid::Uuid;

/// The contents of both slots.
#[derive(Debug)]
pub(super) struct Slots<T> {
    pub slots: [Result<T, Damage>; 2],
}

impl<T> Slots<T> {
    /// Returns the slot of the highest generation.
    pub fn best(&self, generation: impl Fn(&T) -> u64) -> Option<&T> {
        self.slots.iter().flatten().max_by_key(|value| generation(value))
    }

    /// Returns the most informative damage, for an error.
    pub fn damage(&self) -> Damage {
        let found = self.slots.iter().filter_map(|slot| slot.as_ref().err());
        found.copied().find(|damage| *damage != Damage::Blank).unwrap_or(Damage::Blank)
    }
}

pub(super) async fn read_labels<I: PoolIo>(io: &I, backend: &BackendInfo) -> Result<Slots<Label>, IoError> {
    let bytes = io.read(backend.id, LABEL_AT[0], 2 * BLOCK_BYTES).await;
    let bytes = bytes.map_err(io_error(backend, "reading the label"))?;
    let slot = |at: u64| Label::parse(bytes.get(at as usize..).unwrap_or_default());
    Ok(Slots { slots: LABEL_AT.map(slot) })
}

/// Returns whether the backend's label still names this pool and this member. While a pool is open, its disk may have
/// become a member of another pool.
pub(super) async fn is_member<I: PoolIo>(
    io: &I,
    backend: &BackendInfo,
    pool: Uuid,
    member: Uuid,
) -> Result<bool, IoError> {
    let labels = read_labels(io, backend).await?;
    Ok(labels.best(|label| label.generation).is_some_and(|label| {
        label.state == LabelState::Ready && (label.pool_uuid, label.member_uuid) == (pool, member)
    }))
}

/// Returns whether other data is in a label's place: neither a label, valid or damaged, nor an erased slot.
pub(super) async fn is_overwritten<I: PoolIo>(io: &I, backend: &BackendInfo) -> Result<bool, IoError> {
    let bytes = io.read(backend.id, LABEL_AT[0], 2 * BLOCK_BYTES).await;
    let bytes = bytes.map_err(io_error(backend, "reading the label"))?;
    let is_erased = |slot: &[u8]| slot.iter().all(|byte| Some(byte) == slot.first());
    Ok(bytes.chunks(BLOCK_BYTES).any(|slot| !Label::is_begun(slot) && !is_erased(slot)))
}

/// Reads the tables of `pool`. A table of another pool, left from an earlier use, counts as blank.
pub(super) async fn read_tables<I: PoolIo>(
    io: &I,
    backend: &BackendInfo,
    pool: Uuid,
) -> Result<Slots<Table>, IoError> {
    let [first, second] = TABLE_AT;
    let slots = [read_table(io, backend, first).await?, read_table(io, backend, second).await?];
    let ours = |slot: Result<Table, Damage>| {
        slot.and_then(|table| match table.pool_uuid == pool {
            true => Ok(table),
            false => Err(Damage::Blank),
        })
    };
    Ok(Slots { slots: slots.map(ours) })
}

async fn read_table<I: PoolIo>(
    io: &I,
    backend: &BackendInfo,
    at: u64,
) -> Result<Result<Table, Damage>, IoError> {
    let failed = io_error(backend, "reading the layout");
    let mut bytes = io.read(backend.id, at, BLOCK_BYTES).await.map_err(&failed)?;
    let len = Table::len_of(&bytes).unwrap_or(0);
    while bytes.len() < len {
        let piece = (len - bytes.len()).min(IO_PIECE_BYTES);
        let more = io.read(backend.id, at + bytes.len() as u64, piece).await.map_err(&failed)?;
        bytes.extend_from_slice(more.get(..piece).unwrap_or(&more));
        if more.is_empty() {
            break;
        }
    }
    Ok(Table::parse(&bytes))
}

/// Writes one slot, durably.
pub(super) async fn write_slot<I: PoolIo>(
    io: &I,
    backend: &BackendInfo,
    at: u64,
    bytes: &[u8],
    doing: &'static str,
) -> Result<(), IoError> {
    let mut offset = at;
    for piece in bytes.chunks(IO_PIECE_BYTES) {
        io.write(backend.id, offset, piece, true).await.map_err(io_error(backend, doing))?;
        offset += piece.len() as u64;
    }
    Ok(())
}

/// Writes both slots of a label, one after the other, so that one of them is valid at any time.
pub(super) async fn write_label<I: PoolIo>(
    io: &I,
    backend: &BackendInfo,
    label: &Label,
) -> Result<(), IoError> {
    let bytes = label.emit();
    for at in LABEL_AT {
        write_slot(io, backend, at, &bytes, "writing the label").await?;
    }
    Ok(())
}

/// Writes both slots of a table, like [`write_label`].
pub(super) async fn write_table<I: PoolIo>(
    io: &I,
    backend: &BackendInfo,
    bytes: &[u8],
) -> Result<(), IoError> {
    for at in TABLE_AT {
        write_slot(io, backend, at, bytes, "writing the layout").await?;
    }
    Ok(())
}
