//! Finding and opening pools from their backends alone.

use super::format::{Damage, LABEL_AT, TABLE_AT, data_start};
use super::label::{Label, LabelState};
use super::slots::{Slots, is_overwritten, read_labels, read_tables, write_slot};
use super::table::{MemberEntry, Table};
use super::{BackendInfo, Frozen, IoError, Pool, PoolIo, Uuid, io_error};

/// What a backend turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No member of any pool.
    Free,
    /// A member of a pool.
    Member(Label),
    /// Left from a pool whose making or destroying was cut short.
    Unfinished(Label),
    /// It has a label, but both slots are bad.
    Damaged(Damage),
    /// It can't be read.
    Failed(IoError),
}

/// Looks at each backend's label. One that is bad affects no other.
pub async fn scan<I: PoolIo>(io: &I, backends: &[BackendInfo]) -> Vec<Found> {
    let mut found = Vec::with_capacity(backends.len());
    for backend in backends {
        found.push(match read_labels(io, backend).await {
            Err(error) => Found::Failed(error),
            Ok(labels) => match labels.best(|label| label.generation) {
                Some(label) if label.state == LabelState::Ready => Found::Member(label.clone()),
                Some(label) => Found::Unfinished(label.clone()),
                None if labels.damage() == Damage::Blank => Found::Free,
                None => Found::Damaged(labels.damage()),
            },
        });
    }
    found
}

/// Why a pool can't be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenPoolError {
    /// Nothing to open.
    #[error("pool {0}: no backend was given")]
    NoBackends(Uuid),
    /// No backend has a label that can be used; this is the first one.
    #[error("pool {pool}: backend {backend} has no valid label: {damage}")]
    Label {
        /// The pool.
        pool: Uuid,
        /// The backend.
        backend: String,
        /// What is there instead.
        damage: Damage,
    },
    /// A backend is another pool's.
    #[error("pool {pool}: backend {backend} belongs to pool {found_name} ({found})")]
    Foreign {
        /// The pool.
        pool: Uuid,
        /// The backend.
        backend: String,
        /// Whose it is.
        found: Uuid,
        /// That pool's name.
        found_name: String,
    },
    /// Two backends say that they are the same member: one is a copy, or both are one device.
    #[error("pool {pool}: backends {first} and {second} carry the same label ({member})")]
    Duplicate {
        /// The pool.
        pool: Uuid,
        /// One backend.
        first: String,
        /// The other.
        second: String,
        /// The member that both say they are.
        member: Uuid,
    },
    /// Its making or destroying was cut short: it doesn't exist.
    #[error("pool {pool} ({name}) was never finished, or was destroyed; its backends can be used anew")]
    Unfinished {
        /// The pool.
        pool: Uuid,
        /// Its name.
        name: String,
    },
    /// No backend has a valid layout table.
    #[error("pool {pool} ({name}): no valid layout on {}", .holders.join(", "))]
    NoTable {
        /// The pool.
        pool: Uuid,
        /// Its name.
        name: String,
        /// The backends that should have it, each with what is there.
        holders: Vec<String>,
    },
    /// A backend is not as the layout has it.
    #[error("pool {pool}: backend {backend} {what}")]
    Mismatch {
        /// The pool.
        pool: Uuid,
        /// The backend.
        backend: String,
        /// What differs.
        what: &'static str,
    },
    /// I/O failed.
    #[error("pool {pool}: {error}")]
    Io {
        /// The pool.
        pool: Uuid,
        /// The I/O.
        error: IoError,
    },
}

struct Member {
    backend: BackendInfo,
    labels: Slots<Label>,
    label: Label,
}

struct Holder {
    backend: BackendInfo,
    tables: Slots<Table>,
}

/// A backend without a valid label.
struct Stray {
    backend: BackendInfo,
    labels: Slots<Label>,
    /// Something else is in its place: a partition table, a file system. The layout further on may well be left.
    is_overwritten: bool,
}

/// Opens the pool `uuid` from `backends`, all those that carry its label (see [`scan`]) or should but have none that is
/// valid, and brings it in order: slots that fell behind are brought up, LUNs that were not finished are rolled back. A
/// backend whose label is erased or damaged is known by its copy of the layout, and gets its label again; without one,
/// or with something else in the label's place, it could be anybody's, so it counts as missing. With members missing, or if bringing in order fails, the pool is served but frozen.
///
/// # Errors
/// [`OpenPoolError`]; nothing was changed.
pub async fn open_pool<I: PoolIo>(
    io: &I,
    uuid: Uuid,
    backends: Vec<BackendInfo>,
) -> Result<Pool, OpenPoolError> {
    let (mut members, mut strays) = read_members(io, uuid, backends).await?;
    let Some(newest) = members.iter().map(|member| &member.label).max_by_key(|label| label.generation) else {
        return Err(match strays.first() {
            Some(Stray { backend, labels, .. }) => {
                let (backend, damage) = (backend.name.clone(), labels.damage());
                OpenPoolError::Label { pool: uuid, backend, damage }
            }
            None => OpenPoolError::NoBackends(uuid),
        });
    };
    let newest = newest.clone();
    let name = newest.pool_name.clone();
    if members.iter().all(|member| member.label.state == LabelState::Creating) {
        return Err(OpenPoolError::Unfinished { pool: uuid, name });
    }
    let mut holders = Vec::new();
    let labelled = members.iter().filter(|member| member.label.holder).map(|member| &member.backend);
    for backend in labelled.chain(strays.iter().map(|stray| &stray.backend)) {
        let tables = read_tables(io, backend, uuid).await;
        let tables = tables.map_err(|error| OpenPoolError::Io { pool: uuid, error })?;
        holders.push(Holder { backend: backend.clone(), tables });
    }
    let best = holders.iter().filter_map(|holder| holder.tables.best(|table| table.generation));
    let Some(table) = best.max_by_key(|table| table.generation).cloned() else {
        let tell = |holder: &Holder| format!("{} ({})", holder.backend.name, holder.tables.damage());
        return Err(OpenPoolError::NoTable { pool: uuid, name, holders: holders.iter().map(tell).collect() });
    };
    strays.retain(|stray| {
        let known = relabelled(stray, &newest, &table, &members, &holders);
        let is_unknown = known.is_none();
        members.extend(known);
        is_unknown
    });
    holders.retain(|holder| strays.iter().all(|stray| stray.backend != holder.backend));
    let mut pool = assemble(name, table, &members)?;
    let left_out = |Stray { backend, labels, is_overwritten }: &Stray| {
        let why = match is_overwritten {
            true => "something else is in the place of its label",
            false => "it has neither label nor layout",
        };
        format!("backend {}: left out, since {why}: {}", backend.name, labels.damage())
    };
    pool.notes.extend(strays.iter().map(left_out));
    if let Some(frozen) = missing(&pool, &strays) {
        pool.frozen = Some(frozen);
        roll_back(&mut pool.table);
    } else if let Err(error) = settle(io, &mut pool, &members, &holders).await {
        pool.frozen = Some(Frozen::Io(error));
        roll_back(&mut pool.table);
    }
    Ok(pool)
}

/// Reads the labels and refuses what doesn't belong together.
async fn read_members<I: PoolIo>(
    io: &I,
    pool: Uuid,
    backends: Vec<BackendInfo>,
) -> Result<(Vec<Member>, Vec<Stray>), OpenPoolError> {
    let mut members: Vec<Member> = Vec::with_capacity(backends.len());
    let mut strays = Vec::new();
    for backend in backends {
        let labels = read_labels(io, &backend).await.map_err(|error| OpenPoolError::Io { pool, error })?;
        let Some(label) = labels.best(|label| label.generation).cloned() else {
            let is_overwritten =
                is_overwritten(io, &backend).await.map_err(|error| OpenPoolError::Io { pool, error })?;
            strays.push(Stray { backend, labels, is_overwritten });
            continue;
        };
        if label.pool_uuid != pool {
            return Err(OpenPoolError::Foreign {
                pool,
                backend: backend.name,
                found: label.pool_uuid,
                found_name: label.pool_name,
            });
        }
        if let Some(other) = members.iter().find(|other| other.label.member_uuid == label.member_uuid) {
            return Err(OpenPoolError::Duplicate {
                pool,
                first: other.backend.name.clone(),
                second: backend.name,
                member: label.member_uuid,
            });
        }
        members.push(Member { backend, labels, label });
    }
    Ok((members, strays))
}

/// The member that a backend without a label is: a holder of the layout by that name which no other backend is, if it has a
/// layout of this pool. A disk that somebody else has begun to use is left as it is. That a destroyed pool's layouts stay does no harm: all its labels go before the first is erased.
fn relabelled(
    stray: &Stray,
    newest: &Label,
    table: &Table,
    members: &[Member],
    holders: &[Holder],
) -> Option<Member> {
    let has_table = |holder: &Holder| {
        holder.backend == stray.backend && holder.tables.best(|table| table.generation).is_some()
    };
    let is_it = |entry: &&MemberEntry| {
        let taken = members.iter().any(|member| member.label.member_uuid == entry.uuid);
        entry.holder && entry.name == stray.backend.name && !taken
    };
    let known = !stray.is_overwritten && holders.iter().any(has_table);
    let entry = table.members.iter().find(is_it).filter(|_| known)?;
    let label = Label {
        member_uuid: entry.uuid,
        state: LabelState::Ready,
        holder: true,
        block_bytes: entry.block_bytes,
        len_bytes: stray.backend.len_bytes,
        ..newest.clone()
    };
    Some(Member {
        backend: stray.backend.clone(),
        labels: Slots { slots: stray.labels.slots.clone() },
        label,
    })
}

/// Puts the members in the table's order.
fn assemble(name: String, table: Table, members: &[Member]) -> Result<Pool, OpenPoolError> {
    let mut pool = Pool {
        name,
        backends: vec![None; table.members.len()],
        labels: vec![None; table.members.len()],
        frozen: None,
        notes: Vec::new(),
        table,
    };
    for member in members {
        let wrong = |what| OpenPoolError::Mismatch {
            pool: pool.table.pool_uuid,
            backend: member.backend.name.clone(),
            what,
        };
        let same = |entry: &MemberEntry| entry.uuid == member.label.member_uuid;
        let Some(at) = pool.table.members.iter().position(same) else {
            return Err(wrong("has a label that the layout doesn't know"));
        };
        let Some(entry) = pool.table.members.get(at) else { continue };
        let unit = pool.table.unit_bytes;
        if member.backend.block_bytes != entry.block_bytes {
            return Err(wrong("has another block size than the layout says"));
        }
        if member.backend.len_bytes < data_start(unit) + u64::from(entry.units) * unit {
            return Err(wrong("is smaller than the layout says"));
        }
        let (backend, label) = (Some(member.backend.clone()), Some(member.label.clone()));
        pool.backends.iter_mut().skip(at).take(1).for_each(|place| *place = backend.clone());
        pool.labels.iter_mut().skip(at).take(1).for_each(|place| *place = label.clone());
    }
    Ok(pool)
}

/// The members that are not there; of those that are but can't be told to be, with what their label is.
fn missing(pool: &Pool, strays: &[Stray]) -> Option<Frozen> {
    let there = pool.table.members.iter().zip(&pool.backends);
    let absent = there.filter(|(_, backend)| backend.is_none()).map(|(entry, _)| &entry.name);
    let names: Vec<_> = absent
        .map(|name| match strays.iter().find(|stray| stray.backend.name == *name) {
            Some(stray) => format!("{name} (its label: {})", stray.labels.damage()),
            None => name.clone(),
        })
        .collect();
    (!names.is_empty()).then_some(Frozen::Missing(names))
}

/// Brings every slot up to date, then rolls back what was not finished.
async fn settle<I: PoolIo>(
    io: &I,
    pool: &mut Pool,
    members: &[Member],
    holders: &[Holder],
) -> Result<(), IoError> {
    // What was read may still be in a device's cache only.
    for member in members {
        io.flush(member.backend.id).await.map_err(io_error(&member.backend, "flushing"))?;
    }
    let bytes = pool.table.emit().unwrap_or_default();
    for holder in holders {
        for (at, slot) in TABLE_AT.into_iter().zip(&holder.tables.slots) {
            if slot.as_ref().ok().map(|table| table.generation) != Some(pool.table.generation) {
                pool.notes
                    .push(format!("backend {}: a copy of the layout was repaired", holder.backend.name));
                write_slot(io, &holder.backend, at, &bytes, "repairing the layout").await?;
            }
        }
    }
    for member in members {
        let mut label = member.label.clone();
        if label.state == LabelState::Creating {
            label.state = LabelState::Ready;
            label.generation += 1;
        }
        // Slots that are behind first: a slot that is whole is never written while the other is not.
        let mut slots: Vec<_> = LABEL_AT.into_iter().zip(&member.labels.slots).collect();
        slots.sort_by_key(|(_, slot)| {
            slot.as_ref().is_ok_and(|found| found.generation == member.label.generation)
        });
        for (at, slot) in slots {
            if slot.as_ref() != Ok(&label) {
                pool.notes.push(format!("backend {}: a label was repaired", member.backend.name));
                write_slot(io, &member.backend, at, &label.emit(), "repairing the label").await?;
            }
        }
        let known = pool.labels.iter_mut().flatten().filter(|known| known.member_uuid == label.member_uuid);
        known.for_each(|known| *known = label.clone());
    }
    let mut table = pool.table.clone();
    let notes = roll_back(&mut table);
    if !notes.is_empty() {
        pool.notes.extend(notes);
        pool.write(io, table).await?;
    }
    Ok(())
}

/// Takes units back from LUNs whose making or growing was not finished, and says which.
fn roll_back(table: &mut Table) -> Vec<String> {
    let mut notes = Vec::new();
    for lun in &mut table.luns {
        if lun.pending_blocks != 0 {
            let what = if lun.is_visible() { "growth" } else { "creation" };
            notes.push(format!("LUN {}: its unfinished {what} was rolled back", lun.name));
            lun.roll_back(table.unit_bytes);
        }
    }
    table.luns.retain(|lun| lun.is_visible());
    notes
}
