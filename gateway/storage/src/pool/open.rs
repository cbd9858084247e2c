//! Finds and opens pools. The backends are the only source of information.

use super::format::{Damage, LABEL_AT, META_BYTES, TABLE_AT, data_start};
use super::label::{Label, LabelState};
use super::slots::{Slots, is_overwritten, read_labels, read_tables, write_slot};
use super::table::{MemberEntry, Table};
use super::{BackendInfo, Frozen, IoError, Pool, PoolIo, io_error};
use uuid::Uuid;

/// The role of a backend according to its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The backend is no member of any pool.
    Free,
    /// The backend is a member of a pool.
    Member(Label),
    /// The backend is left from a pool whose creation or destruction was interrupted.
    Unfinished(Label),
    /// The backend has a label, but both slots are bad.
    Damaged(Damage),
    /// The backend can't be read.
    Failed(IoError),
}

/// Reads each backend's label. A bad backend doesn't affect the results of the others.
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

/// The reason for which a pool can't be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenPoolError {
    /// The call names no backend.
    #[error("pool {0}: no backend is given")]
    NoBackends(Uuid),
    /// No backend has a valid label; the error names the first backend.
    #[error("pool {pool}: backend {backend} has no valid label: {damage}")]
    Label {
        /// The pool.
        pool: Uuid,
        /// The backend.
        backend: String,
        /// The damage of the label.
        damage: Damage,
    },
    /// A backend belongs to another pool.
    #[error("pool {pool}: backend {backend} belongs to pool {found_name} ({found})")]
    Foreign {
        /// The pool.
        pool: Uuid,
        /// The backend.
        backend: String,
        /// The other pool.
        found: Uuid,
        /// The other pool's name.
        found_name: String,
    },
    /// Two backends have the label of the same member: one is a copy, or both are one device.
    #[error("pool {pool}: backends {first} and {second} have the same label ({member}): remove the copy")]
    Duplicate {
        /// The pool.
        pool: Uuid,
        /// One backend.
        first: String,
        /// The other backend.
        second: String,
        /// The member that both labels name.
        member: Uuid,
    },
    /// The pool doesn't exist, since its creation or destruction was interrupted.
    #[error(
        "the creation or destruction of pool {pool} ({name}) was cut short: the pool doesn't exist, and its backends are free"
    )]
    Unfinished {
        /// The pool.
        pool: Uuid,
        /// The pool's name.
        name: String,
    },
    /// No backend has a valid layout table.
    #[error("pool {pool} ({name}): these backends have no valid layout: {}", .holders.join(", "))]
    NoTable {
        /// The pool.
        pool: Uuid,
        /// The pool's name.
        name: String,
        /// The backends that should have the layout, each with the damage found there.
        holders: Vec<String>,
    },
    /// A backend differs from its entry in the layout, and no other backend is present.
    #[error("pool {pool}: backend {backend}: {what}")]
    Mismatch {
        /// The pool.
        pool: Uuid,
        /// The backend.
        backend: String,
        /// The difference.
        what: String,
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
    /// Other data is in the label's place, such as a partition table or a file system. The layout at higher offsets may
    /// be intact.
    is_overwritten: bool,
}

/// A backend that the open ignores. The name is the one in the layout, if the layout has the backend.
struct LeftOut {
    name: String,
    /// The reason for the caller that opens the pool.
    why: String,
    /// The reason for the log.
    note: String,
}

/// Opens the pool `uuid` from `backends`, and repairs it: updates old slots, and rolls back unfinished LUNs. `backends`
/// has every backend with the pool's label (see [`scan`]), and every backend that should have the label but has no
/// valid one.
///
/// If a backend's label is erased or damaged, the backend is recognised by its copy of the layout, and gets its label
/// again. A backend without such a copy, or with other data in the label's place, may belong to somebody else. So it
/// counts as missing. A backend also counts as missing if it is shorter than in the layout, or if its copy of the
/// layout can't be read.
///
/// If members are missing, or if the repair fails, the pool opens but is frozen.
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
    let (mut holders, mut unread) = (Vec::new(), Vec::new());
    let labelled = members.iter().filter(|member| member.label.holder).map(|member| &member.backend);
    for backend in labelled.chain(strays.iter().map(|stray| &stray.backend)) {
        let why = match backend.len_bytes < META_BYTES {
            true => format!("the backend has only {} bytes", backend.len_bytes),
            false => match read_tables(io, backend, uuid).await {
                Ok(tables) => {
                    holders.push(Holder { backend: backend.clone(), tables });
                    continue;
                }
                Err(IoError { fault, .. }) => format!("the backend's layout can't be read: {fault}"),
            },
        };
        unread.push((backend.clone(), why));
    }
    let best = holders.iter().filter_map(|holder| holder.tables.best(|table| table.generation));
    let Some(table) = best.max_by_key(|table| table.generation).cloned() else {
        let tell = |holder: &Holder| format!("{} ({})", holder.backend.name, holder.tables.damage());
        let unread = unread.iter().map(|(backend, why)| format!("{} ({why})", backend.name));
        let holders = holders.iter().map(tell).chain(unread).collect();
        return Err(OpenPoolError::NoTable { pool: uuid, name, holders });
    };
    strays.retain(|stray| {
        let known = relabelled(stray, &newest, &table, &members, &holders);
        let is_unknown = known.is_none();
        members.extend(known);
        is_unknown
    });
    let mut left_out = Vec::new();
    members.retain(|member| {
        let misfit = misfit(member, &table, &unread);
        let fits = misfit.is_none();
        left_out.extend(misfit);
        fits
    });
    if let (true, Some(LeftOut { name, why, .. })) = (members.is_empty(), left_out.first()) {
        return Err(OpenPoolError::Mismatch { pool: uuid, backend: name.clone(), what: why.clone() });
    }
    holders.retain(|holder| members.iter().any(|member| member.backend == holder.backend));
    left_out.extend(strays.into_iter().map(|stray| stray.left_out(&unread)));
    let mut pool = assemble(name, table, &members)?;
    let tell = |out: &LeftOut| format!("backend {} is left out: {}", out.name, out.note);
    pool.notes.extend(left_out.iter().map(tell));
    if let Some(frozen) = missing(&pool, &left_out) {
        pool.frozen = Some(frozen);
        roll_back(&mut pool.table);
    } else if let Err(error) = settle(io, &mut pool, &members, &holders).await {
        pool.frozen = Some(Frozen::Io(error));
        roll_back(&mut pool.table);
    }
    Ok(pool)
}

/// Reads the labels, and refuses backends that don't belong together.
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

/// Identifies a backend that has no label but has a layout of this pool. Returns the holder with the backend's name,
/// unless another backend is that holder.
///
/// Returns `None` for a disk whose label's place other data has overwritten. The layouts of a destroyed pool remain on
/// its disks. They do no harm, since all labels say `Creating` before the first label is erased.
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

impl Stray {
    fn left_out(self, unread: &[(BackendInfo, String)]) -> LeftOut {
        let damage = self.labels.damage();
        let unread = unread.iter().find(|(other, _)| *other == self.backend);
        let what = match (self.is_overwritten, unread) {
            (true, _) => "other data has overwritten the backend's label",
            (false, Some((_, why))) => why,
            (false, None) => "the backend has neither label nor layout",
        };
        LeftOut {
            name: self.backend.name,
            why: format!("label: {damage}"),
            note: format!("{what}: {damage}"),
        }
    }
}

/// Returns the reason for which a member with a label can't be used. Either its disk is too short, or the disk's block
/// size changed, or the disk's layout can't be read.
fn misfit(member: &Member, table: &Table, unread: &[(BackendInfo, String)]) -> Option<LeftOut> {
    let Member { backend, label, .. } = member;
    let entry = table.members.iter().find(|entry| entry.uuid == label.member_uuid)?;
    let need_bytes = data_start(table.unit_bytes) + u64::from(entry.units) * table.unit_bytes;
    let why = if backend.len_bytes < need_bytes {
        format!("the backend has {} bytes, and the layout says {need_bytes}", backend.len_bytes)
    } else if backend.block_bytes != entry.block_bytes {
        format!(
            "the backend's blocks have {} bytes, and the layout says {}",
            backend.block_bytes, entry.block_bytes
        )
    } else {
        unread.iter().find(|(other, _)| other == backend)?.1.clone()
    };
    Some(LeftOut { name: entry.name.clone(), note: why.clone(), why })
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
            what: String::from(what),
        };
        let same = |entry: &MemberEntry| entry.uuid == member.label.member_uuid;
        let Some(at) = pool.table.members.iter().position(same) else {
            return Err(wrong("the layout doesn't know the backend's label"));
        };
        let (backend, label) = (Some(member.backend.clone()), Some(member.label.clone()));
        pool.backends.iter_mut().skip(at).take(1).for_each(|place| *place = backend.clone());
        pool.labels.iter_mut().skip(at).take(1).for_each(|place| *place = label.clone());
    }
    Ok(pool)
}

/// Returns the missing members. If a member's backend is present but can't be used, its entry has the reason.
fn missing(pool: &Pool, left_out: &[LeftOut]) -> Option<Frozen> {
    let there = pool.table.members.iter().zip(&pool.backends);
    let absent = there.filter(|(_, backend)| backend.is_none()).map(|(entry, _)| &entry.name);
    let names: Vec<_> = absent
        .map(|name| match left_out.iter().find(|out| out.name == *name) {
            Some(out) => format!("{name} ({})", out.why),
            None => name.clone(),
        })
        .collect();
    (!names.is_empty()).then_some(Frozen::Missing(names))
}

/// Brings every slot up to date, then rolls back unfinished changes.
async fn settle<I: PoolIo>(
    io: &I,
    pool: &mut Pool,
    members: &[Member],
    holders: &[Holder],
) -> Result<(), IoError> {
    // The bytes that were just read may be only in a device's cache, and not durable yet.
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
        // Write old slots first: a valid slot is never written while the other slot is not valid.
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

/// Takes units back from LUNs whose creation or growth was not finished. Returns a note for each such LUN.
fn roll_back(table: &mut Table) -> Vec<String> {
    let mut notes = Vec::new();
    for lun in &mut table.luns {
        if lun.pending_blocks != 0 {
            let what = if lun.is_visible() { "growth" } else { "creation" };
            notes.push(format!("LUN {}: the unfinished {what} was rolled back", lun.name));
            lun.roll_back(table.unit_bytes);
        }
    }
    table.luns.retain(|lun| lun.is_visible());
    notes
}
