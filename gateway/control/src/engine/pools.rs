//! Pools: the engine's side of the layout that lies on their backends.
//!
//! A pool is the truth about its LUNs, and the store is only a copy. When a pool is opened, the copy is updated from the pool
//! ([`Pools::adopt_into`]). The pool also keeps which subsystems show a LUN, and to which hosts ([`crate::exports`]), so that
//! a lost database can be rebuilt.

use super::backends::Live;
use super::cores::Cores;
use super::topology::Placed;
use super::view::PoolView;
use crate::error::{Fault, Refusal};
use crate::exports::{self, Record};
use crate::state::State;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};
use trefoil_config::{Bytes, Lun, default_serial};
use trefoil_poll::CoreId;
use trefoil_storage::pool::{
    BackendInfo, CreatePoolError, DEFAULT_UNIT_BYTES, DestroyPoolError, ExportsError, Found, Frozen,
    ImportError, Label, LunError, NewLun, NewMember, NewPool, Pool, PoolIo, PoolLun, PoolOwner, create_lun,
    create_pool, delete_lun, destroy_pool, grow_lun, import_namespace, open_pool, scan, store_exports,
    undo_growth,
};
use trefoil_storage::topology::BackendId;
use trefoil_storage::{Fault as IoFault, Op};
use uuid::Uuid;

/// All pools that are up.
#[derive(Debug, Default)]
pub struct Pools {
    open: BTreeMap<String, Pool>,
}

type Lives = BTreeMap<String, Live>;

/// Control's own I/O. Each request goes to the core that has the backend.
struct Through<'a> {
    cores: &'a Cores,
    routes: BTreeMap<BackendId, CoreId>,
}

impl<'a> Through<'a> {
    fn new(cores: &'a Cores, lives: &Lives) -> Self {
        Self { cores, routes: lives.values().map(|live| (live.id, live.core())).collect() }
    }

    async fn run(
        &self,
        id: BackendId,
        op: Op,
        range: (u64, u64),
        bytes: Option<(usize, &[u8])>,
        durable: bool,
    ) -> Result<Option<Vec<u8>>, IoFault> {
        let core = self.routes.get(&id).copied().ok_or(IoFault::Gone)?;
        let mut buf = None;
        if let Some((len, from)) = bytes {
            let mut block = self.cores.alloc(len).ok_or(IoFault::Internal)?;
            block.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            buf = Some(block);
        }
        let (buf, result) = self.cores.request(core, id, op, range, buf, durable).await;
        let read = match (op, &buf) {
            (Op::Read, Some(block)) => block.get(..range.1 as usize).map(<[u8]>::to_vec),
            _ => None,
        };
        self.cores.free(buf);
        result.map(|()| read)
    }
}

impl PoolIo for Through<'_> {
    async fn read(&self, backend: BackendId, offset: u64, len: usize) -> Result<Vec<u8>, IoFault> {
        let range = (offset, len as u64);
        self.run(backend, Op::Read, range, Some((len, &[])), false).await?.ok_or(IoFault::Internal)
    }

    async fn write(
        &self,
        backend: BackendId,
        offset: u64,
        bytes: &[u8],
        durable: bool,
    ) -> Result<(), IoFault> {
        let range = (offset, bytes.len() as u64);
        self.run(backend, Op::Write, range, Some((bytes.len(), bytes)), durable).await.map(drop)
    }

    async fn flush(&self, backend: BackendId) -> Result<(), IoFault> {
        self.run(backend, Op::Flush, (0, 0), None, false).await.map(drop)
    }

    async fn write_zeroes(&self, backend: BackendId, offset: u64, len: u64) -> Result<(), IoFault> {
        let op = Op::WriteZeroes { deallocate: false };
        self.run(backend, op, (offset, len), None, false).await.map(drop)
    }
}

fn pool_uuid(uuid: Uuid) -> trefoil_storage::pool::Uuid {
    trefoil_storage::pool::Uuid(*uuid.as_bytes())
}

fn uuid_of(lun: &PoolLun) -> Uuid {
    Uuid::from_bytes(lun.uuid.0)
}

fn info(cores: &Cores, lives: &Lives, name: &str) -> Result<BackendInfo, Refusal> {
    let live =
        lives.get(name).ok_or_else(|| Refusal::new(Fault::Device, format!("backend `{name}` is down")))?;
    // If an array has just reported its size, the engine heeds the report only later.
    let told = cores.told_geometry(live.id).filter(|_| live.len_bytes == 0);
    let (block_bytes, len_bytes) = told.unwrap_or((live.block_bytes, live.len_bytes));
    Ok(BackendInfo { id: live.id, name: name.into(), len_bytes, block_bytes })
}

/// Returns the same of a backend that can be used now.
fn ready(cores: &Cores, lives: &Lives, name: &str) -> Result<BackendInfo, Refusal> {
    let backend = info(cores, lives, name)?;
    match cores.usable(backend.id) {
        Err(why) => Err(Refusal::new(Fault::Device, format!("backend `{name}` is lost: {why}"))),
        Ok(()) => Ok(backend),
    }
}

/// Describes for a person what was found on a backend.
fn tell(backend: &str, found: &Found) -> String {
    match found {
        Found::Member(label) => {
            format!("{backend} belongs to pool {} ({})", label.pool_name, label.pool_uuid)
        }
        Found::Unfinished(label) => {
            format!("{backend} has a label of pool {}, whose creation was cut short", label.pool_name)
        }
        Found::Free => format!("{backend} has no label"),
        Found::Damaged(damage) => format!("{backend} has a damaged label: {damage}"),
        Found::Failed(error) => error.to_string(),
    }
}

fn lun_refusal(e: LunError) -> Refusal {
    let fault = match &e {
        LunError::Name { .. }
        | LunError::BlockSize { .. }
        | LunError::Size { .. }
        | LunError::NotLarger { .. } => Fault::Invalid,
        LunError::Exists { .. } => Fault::Exists,
        LunError::NotFound { .. } => Fault::NotFound,
        LunError::Busy { .. } | LunError::InUse { .. } => Fault::InUse,
        LunError::NoSpace { .. } | LunError::Table { .. } => Fault::NoSpace,
        LunError::Io { error, .. } if error.fault == IoFault::NoSpace => Fault::NoSpace,
        LunError::Frozen { .. } | LunError::Io { .. } => Fault::Device,
    };
    let text = match &e {
        LunError::NoSpace { pool, lun, need_bytes, free_bytes } => {
            let (need, free) = (Bytes(*need_bytes).rounded(), Bytes(*free_bytes).rounded());
            format!("pool {pool}: LUN {lun} needs {need} more, and the pool has {free} free for this LUN")
        }
        other => other.to_string(),
    };
    Refusal::new(fault, text)
}

fn create_refusal(e: CreatePoolError) -> Refusal {
    let fault = match &e {
        CreatePoolError::InUse { .. }
        | CreatePoolError::Damaged { .. }
        | CreatePoolError::Contents { .. } => Fault::InUse,
        CreatePoolError::TooSmall { .. } => Fault::NoSpace,
        CreatePoolError::Io(error) if error.fault == IoFault::NoSpace => Fault::NoSpace,
        CreatePoolError::Io(_) => Fault::Device,
        CreatePoolError::Name(_)
        | CreatePoolError::Unit(_)
        | CreatePoolError::Members(_)
        | CreatePoolError::Twice(_)
        | CreatePoolError::BlockSize(_)
        | CreatePoolError::Table(_) => Fault::Invalid,
    };
    let text = match &e {
        CreatePoolError::TooSmall { backend, len_bytes, need_bytes } => {
            let (len, need) = (Bytes(*len_bytes).rounded(), Bytes(*need_bytes).rounded());
            format!("backend {backend} has {len}, and a pool needs at least {need}")
        }
        CreatePoolError::InUse { .. } => format!(
            "{e}: if no gateway uses that pool any more, take the backend with --delete-data in `trefoil pool create` or \
             `config apply`"
        ),
        CreatePoolError::Damaged { .. } => {
            format!(
                "{e}: to overwrite the label, use --delete-data in `trefoil pool create` or `config apply`"
            )
        }
        CreatePoolError::Contents { .. } => format!(
            "{e}, which a pool would overwrite: use --delete-data in `trefoil pool create` or `config apply`, or erase the \
             contents with wipefs(8)"
        ),
        other => other.to_string(),
    };
    Refusal::new(fault, text)
}

/// Checks that the backend of `lun`, which presents the backend whole, is no pool's member. With `was_lun`, the LUN comes
/// with its UUID and so existed before: data that looks like a pool was then made there by the LUN's hosts.
///
/// # Errors
/// The backend belongs to a pool, or can't be read. A lost array isn't waited for.
pub async fn check_import(cores: &Cores, lives: &Lives, lun: &Lun, was_lun: bool) -> Result<(), Refusal> {
    let backend = ready(cores, lives, lun.backend.as_deref().unwrap_or_default())?;
    let io = Through::new(cores, lives);
    let uuid = pool_uuid(lun.uuid.unwrap_or_default());
    let nguid = lun.nguid_bytes().unwrap_or(uuid.0);
    match import_namespace(&io, backend, lun.name.clone(), uuid, nguid).await {
        Ok(_) => Ok(()),
        Err(error @ (ImportError::Pooled { .. } | ImportError::Damaged { .. })) if was_lun => {
            tracing::warn!(%error, lun = lun.name, "the LUN is presented all the same, because the request gives the LUN's UUID");
            Ok(())
        }
        Err(error) => {
            let fault = match &error {
                ImportError::Pooled { .. } | ImportError::Damaged { .. } | ImportError::InUse(_) => {
                    Fault::InUse
                }
                ImportError::Name(_) | ImportError::BlockSize(_) => Fault::Invalid,
                ImportError::Io(_) => Fault::Device,
            };
            Err(Refusal::new(fault, error.to_string()))
        }
    }
}

impl Pools {
    /// Makes a pool, or opens the pool that the backends hold if it has this name and exactly these backends. Returns whether
    /// the pool was made. Recognised data on the backends is lost only with `overwrite`.
    ///
    /// # Errors
    /// A backend belongs to another pool, holds other data, is too small, or fails.
    pub async fn create(
        &mut self,
        cores: &Cores,
        spec: &trefoil_config::Pool,
        lives: &Lives,
        overwrite: bool,
    ) -> Result<bool, Refusal> {
        let io = Through::new(cores, lives);
        let backends = spec.backends.iter().map(|name| info(cores, lives, name));
        let backends = backends.collect::<Result<Vec<_>, _>>()?;
        let found = scan(&io, &backends).await;
        // A pool exists from its first label that says so. Opening the pool repairs the other labels.
        let exists = found.iter().any(|found| matches!(found, Found::Member(_)));
        let labels: Vec<_> = found
            .iter()
            .filter_map(|found| match found {
                Found::Member(label) | Found::Unfinished(label) if label.pool_name == spec.name => {
                    Some(label.pool_uuid)
                }
                _ => None,
            })
            .collect();
        if let [first, ..] = *labels
            && exists
            && labels.len() == backends.len()
            && labels.iter().all(|uuid| *uuid == first)
        {
            self.open_as(&io, &spec.name, first, backends.clone()).await?;
            if self.open.get(&spec.name).is_some_and(|pool| pool.backends().len() == backends.len()) {
                tracing::warn!(
                    pool = spec.name,
                    "the backends already hold this pool: the gateway opened the pool with its LUNs"
                );
                return Ok(false);
            }
            // The pool has other backends too, so it is another pool.
            self.close(&spec.name);
        }
        for backend in &backends {
            let own = cores.identity(backend.id);
            let is_it = |live: &Live| own.is_some() && cores.identity(live.id) == own;
            if let Some((other, _)) = lives.iter().find(|(_, live)| live.id != backend.id && is_it(live)) {
                let what = format!(
                    "backends `{}` and `{other}` are the same namespace of an array: use only one of them",
                    backend.name
                );
                return Err(Refusal::new(Fault::InUse, what));
            }
        }
        for (backend, found) in backends.iter().zip(&found) {
            if let Found::Member(label) = found
                && let Some((pool, member)) = self.member_of(label)
            {
                let what = format!(
                    "backend `{}` has the label of backend `{member}` of the open pool `{pool}`: both are the same disk, or one \
                     disk is a copy of the other; to use a copy, zero its first 8 KiB",
                    backend.name
                );
                return Err(Refusal::new(Fault::InUse, what));
            }
        }
        let members =
            backends.into_iter().map(|backend| NewMember { uuid: pool_uuid(Uuid::new_v4()), backend });
        let new = NewPool {
            uuid: pool_uuid(Uuid::new_v4()),
            name: spec.name.clone(),
            unit_bytes: DEFAULT_UNIT_BYTES,
            owner: PoolOwner::default(),
            members: members.collect(),
            overwrite,
        };
        let pool = create_pool(&io, new).await.map_err(create_refusal)?;
        self.open.insert(spec.name.clone(), pool);
        Ok(true)
    }

    /// Returns the open pool with this label, and the backend of the pool that has the label.
    fn member_of(&self, label: &Label) -> Option<(&str, &str)> {
        let pool = self.open.values().find(|pool| pool.uuid() == label.pool_uuid)?;
        let mut members = pool.table().members.iter().zip(pool.backends());
        let (_, backend) = members.find(|(entry, _)| entry.uuid == label.member_uuid)?;
        Some((pool.name(), &backend.as_ref()?.name))
    }

    /// Opens a pool that is stored.
    ///
    /// # Errors
    /// The pool isn't on its backends, or isn't as it should be.
    pub async fn open(
        &mut self,
        cores: &Cores,
        spec: &trefoil_config::Pool,
        lives: &Lives,
    ) -> Result<(), Refusal> {
        let io = Through::new(cores, lives);
        // A backend that is down, or an array that is lost, is a missing member and is not waited for. The pool is then
        // served as far as its other members allow.
        let (mut backends, mut awaited) = (Vec::new(), Vec::new());
        for name in &spec.backends {
            match ready(cores, lives, name) {
                Ok(backend) => backends.push(backend),
                Err(why) => awaited.push(why.message),
            }
        }
        if backends.is_empty() {
            let why = awaited.join("; ");
            let what =
                format!("pool `{}` can't be opened, because all its backends are down: {why}", spec.name);
            return Err(Refusal::new(Fault::Device, what));
        }
        for why in awaited {
            tracing::warn!(pool = spec.name, why, "the pool waits for a backend");
        }
        let found = scan(&io, &backends).await;
        let uuid = found.iter().find_map(|found| match found {
            Found::Member(label) => Some(label.pool_uuid),
            _ => None,
        });
        let uuid = uuid.ok_or_else(|| {
            let each: Vec<_> = backends.iter().zip(&found).map(|(b, found)| tell(&b.name, found)).collect();
            let what =
                format!("no backend of pool `{}` has the pool's label: {}", spec.name, each.join("; "));
            Refusal::new(Fault::Device, what)
        })?;
        let mut members = Vec::new();
        for (backend, found) in backends.into_iter().zip(found) {
            match &found {
                Found::Member(label) | Found::Unfinished(label) if label.pool_uuid == uuid => {
                    members.push(backend);
                }
                // The backend may have lost its label.
                Found::Free | Found::Damaged(_) => members.push(backend),
                Found::Member(_) | Found::Unfinished(_) | Found::Failed(_) => {
                    let what = tell(&backend.name, &found);
                    tracing::error!(
                        pool = spec.name,
                        what,
                        "a backend does not belong to this pool, and is left out"
                    );
                }
            }
        }
        self.open_as(&io, &spec.name, uuid, members).await
    }

    async fn open_as(
        &mut self,
        io: &Through<'_>,
        name: &str,
        uuid: trefoil_storage::pool::Uuid,
        members: Vec<BackendInfo>,
    ) -> Result<(), Refusal> {
        let pool = open_pool(io, uuid, members).await;
        let pool = pool.map_err(|e| Refusal::new(Fault::Device, e.to_string()))?;
        let before = self.open.remove(name);
        let is_new = |pool: &Pool| {
            (pool.notes(), pool.frozen())
                != before.as_ref().map_or((&[][..], None), |p| (p.notes(), p.frozen()))
        };
        if is_new(&pool) {
            pool.notes().iter().for_each(|note| tracing::warn!(pool = name, note, "opened a pool"));
            if let Some(why) = pool.frozen() {
                tracing::error!(pool = name, %why, "the pool can't be changed");
            }
        }
        self.open.insert(name.into(), pool);
        Ok(())
    }

    /// Forgets a pool, and leaves the data on its backends.
    pub fn close(&mut self, name: &str) {
        self.open.remove(name);
    }

    /// Destroys a pool without LUNs. A pool that is down or lacks members is only forgotten. A pool that can't be destroyed
    /// is forgotten too: the state no longer has it, and no later change may depend on it.
    ///
    /// # Errors
    /// The pool holds LUNs, or a backend fails.
    pub async fn delete(&mut self, cores: &Cores, lives: &Lives, name: &str) -> Result<(), Refusal> {
        let usable = match self.check_reachable(cores, name) {
            Ok(()) => self.take_usable(cores, lives, name).await,
            Err(why) => Err(why),
        };
        let mut pool = match usable {
            Ok(pool) => pool,
            Err(why) => {
                self.close(name);
                tracing::warn!(
                    %why,
                    pool = name,
                    "the gateway forgot a pool without destroying it; the pool's labels stay on its backends"
                );
                return Ok(());
            }
        };
        let io = Through::new(cores, lives);
        let destroyed = destroy_pool(&io, &mut pool, false).await;
        destroyed.map_err(|e| {
            let fault = match &e {
                DestroyPoolError::HasLuns { .. } => Fault::InUse,
                DestroyPoolError::Frozen { .. } | DestroyPoolError::Io(_) => Fault::Device,
            };
            Refusal::new(fault, e.to_string())
        })
    }

    /// Takes a pool out of the table to change it. If an earlier change was cut short, opens the pool anew.
    async fn take_usable(&mut self, cores: &Cores, lives: &Lives, name: &str) -> Result<Pool, Refusal> {
        let down = || Refusal::new(Fault::Device, format!("pool `{name}` is down"));
        let pool = self.open.get(name).ok_or_else(down)?;
        if matches!(pool.frozen(), Some(Frozen::Unsettled | Frozen::Io(_))) {
            let io = Through::new(cores, lives);
            let members = pool.backends().iter().flatten().cloned().collect();
            let uuid = pool.uuid();
            self.open_as(&io, name, uuid, members).await?;
        }
        self.open.remove(name).ok_or_else(down)
    }

    /// Updates the copy in `state` from the LUNs, identities and sizes that the pools hold, except for the LUNs in `except`.
    /// LUNs match by UUID. With `by_name`, a LUN that only a document knows matches the pool's LUN of the same name. Without
    /// a document, a match by name could show a host a foreign disk that has come in the place of the host's own. Returns the
    /// reasons for which LUNs are left out because another LUN has their identity.
    pub fn adopt_into(&self, state: &mut State, except: &[Uuid], by_name: bool) -> Vec<Refusal> {
        let mut left_out = Vec::new();
        for (name, pool) in &self.open {
            let is_wanted = |lun: &&PoolLun| lun.is_visible() && !except.contains(&uuid_of(lun));
            for lun in pool.table().luns.iter().filter(is_wanted) {
                left_out.extend(adopt(state, name, lun, by_name).err());
            }
        }
        left_out
    }

    /// Deletes LUNs that the store no longer has but a pool still holds, because the gateway died in between. Returns the
    /// LUNs that can't be deleted yet.
    pub async fn finish_deletions(&mut self, cores: &Cores, lives: &Lives, state: &State) -> Vec<Uuid> {
        let held = |name: &String, uuid: Uuid| {
            self.open.get(name).is_some_and(|pool| pool.lun(pool_uuid(uuid)).is_some())
        };
        let begun = self.records().flat_map(|(name, record)| {
            let deleted: Vec<Uuid> = record.deleted(state).filter(|uuid| held(name, *uuid)).collect();
            deleted.into_iter().map(move |uuid| (name.clone(), uuid))
        });
        let begun: Vec<(String, Uuid)> = begun.collect();
        let mut left = Vec::new();
        for (pool, uuid) in begun {
            match self.delete_in(cores, lives, &pool, pool_uuid(uuid)).await {
                Ok(()) => tracing::warn!(pool, %uuid, "the gateway finished the deletion of a LUN"),
                Err(error) => {
                    tracing::error!(%error, pool, %uuid, "the deletion of a LUN was cut short and can't be finished yet");
                    left.push(uuid);
                }
            }
        }
        left
    }

    /// Returns the records in which the open pools keep who sees their LUNs.
    fn records(&self) -> impl Iterator<Item = (&String, Record)> {
        self.open.iter().filter_map(|(name, pool)| match Record::parse(&pool.table().exports) {
            Ok(record) => record.map(|record| (name, record)),
            Err(why) => {
                tracing::error!(
                    pool = name,
                    why,
                    "the pool's record of which hosts see its LUNs can't be read"
                );
                None
            }
        })
    }

    /// Puts the pools' records of who sees their LUNs into a state that a document made.
    pub fn adopt_exports(&self, state: &mut State) {
        let mut held = BTreeMap::new();
        let mut records = Vec::new();
        for (name, record) in self.records() {
            tracing::warn!(
                pool = name,
                "hosts see the pool's LUNs as the pool's record says, not as the document says"
            );
            let luns = self.open.get(name).into_iter().flat_map(|pool| &pool.table().luns);
            for uuid in luns.map(uuid_of) {
                let known = state.luns.values().find(|lun| lun.uuid == Some(uuid));
                held.extend(known.map(|lun| (uuid, lun.name.clone())));
            }
            records.push(record);
        }
        exports::adopt(state, &held, records);
    }

    /// Stores in every pool who sees its LUNs in this state. A pool that takes no changes is left out, and updated once it
    /// takes changes again.
    ///
    /// # Errors
    /// The record is too large for the pool, or a backend fails.
    pub async fn keep_exports(&mut self, cores: &Cores, lives: &Lives, state: &State) -> Result<(), Refusal> {
        let kept: BTreeMap<String, Record> =
            self.records().map(|(name, record)| (name.clone(), record)).collect();
        let revision = kept.values().map(|record| record.revision).max().unwrap_or(0) + 1;
        let names: Vec<String> = self.open.keys().cloned().collect();
        for name in names {
            let held =
                self.open.get(&name).into_iter().flat_map(|pool| pool.table().luns.iter().map(uuid_of));
            let wanted = Record::of(state, &name, revision).deleting(held, state);
            if kept.get(&name).is_some_and(|kept| kept.does_for(&wanted, state)) {
                continue;
            }
            // A pool that is given up may be out of reach, which can be the very reason to give it up.
            let is_leaving = !state.pools.contains_key(&name);
            let is_lost = is_leaving && self.check_reachable(cores, &name).is_err();
            if is_lost || self.is_missing_members(&name) {
                tracing::warn!(
                    pool = name,
                    "the pool lacks a backend, so it can't store which hosts see its LUNs"
                );
                continue;
            }
            match self.store_exports(cores, lives, &name, wanted.bytes()).await {
                Err(why) if is_leaving => {
                    tracing::warn!(%why, pool = name, "the removed pool can't record that its LUNs are deleted");
                }
                stored => stored?,
            }
        }
        Ok(())
    }

    async fn store_exports(
        &mut self,
        cores: &Cores,
        lives: &Lives,
        name: &str,
        bytes: Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut pool = self.take_usable(cores, lives, name).await?;
        let stored = store_exports(&Through::new(cores, lives), &mut pool, bytes).await;
        self.open.insert(name.into(), pool);
        stored.map_err(|e| {
            let fault = match &e {
                ExportsError::Table { .. } => Fault::NoSpace,
                ExportsError::Frozen { .. } | ExportsError::Io { .. } => Fault::Device,
            };
            Refusal::new(fault, e.to_string())
        })
    }

    /// Makes a LUN in its pool, or finds the LUN there. Returns the LUN's place, and whether the LUN is new.
    ///
    /// # Errors
    /// There is no space, the name or the identity is taken, or a backend fails.
    pub async fn create_lun(
        &mut self,
        cores: &Cores,
        lives: &Lives,
        lun: &Lun,
    ) -> Result<(Placed, bool), Refusal> {
        let uuid = pool_uuid(lun.uuid.unwrap_or_default());
        let there = self.pool_of(lun).ok().and_then(|pool| pool.lun(uuid)).is_some();
        if there {
            let place = self.grow_lun(cores, lives, lun).await?;
            return Ok((place, false));
        }
        let name = lun.pool.as_deref().unwrap_or_default();
        let mut pool = self.take_usable(cores, lives, name).await?;
        let largest = pool.table().members.iter().map(|m| m.block_bytes).max().unwrap_or(512);
        let block_bytes = lun.block_bytes.unwrap_or(largest);
        let mut serial = [b' '; 20];
        let digits = default_serial(&uuid.to_string());
        serial.iter_mut().zip(digits.bytes()).for_each(|(to, from)| *to = from);
        let nsids = pool.table().luns.iter().map(|lun| lun.nsid);
        let new = NewLun {
            uuid,
            nguid: lun.nguid_bytes().unwrap_or(uuid.0),
            serial,
            nsid: nsids.max().unwrap_or(0).saturating_add(1),
            name: lun.name.clone(),
            created_at_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            block_bytes,
            blocks: lun.size.unwrap_or_default().0 / u64::from(block_bytes),
        };
        let made = create_lun(&Through::new(cores, lives), &mut pool, new).await;
        self.open.insert(name.into(), pool);
        made.map_err(lun_refusal)?;
        let place = self.place(lun).map_err(|e| Refusal::new(Fault::Internal, e))?;
        Ok((place, true))
    }

    /// Grows a LUN to the size in `lun`, if the LUN is smaller.
    ///
    /// # Errors
    /// There is no space, or a backend fails.
    pub async fn grow_lun(&mut self, cores: &Cores, lives: &Lives, lun: &Lun) -> Result<Placed, Refusal> {
        let name = lun.pool.as_deref().unwrap_or_default();
        let mut pool = self.take_usable(cores, lives, name).await?;
        let uuid = pool_uuid(lun.uuid.unwrap_or_default());
        let (block_bytes, blocks) = pool.lun(uuid).map_or((512, 0), |lun| (lun.block_bytes, lun.blocks));
        let wanted = lun.size.unwrap_or_default().0 / u64::from(block_bytes);
        let grown = match wanted > blocks {
            true => grow_lun(&Through::new(cores, lives), &mut pool, uuid, wanted).await,
            false => Ok(()),
        };
        self.open.insert(name.into(), pool);
        grown.map_err(lun_refusal)?;
        self.place(lun).map_err(|e| Refusal::new(Fault::Internal, e))
    }

    /// Shrinks a LUN to the size in `lun` again, after a growth that no core was told of.
    ///
    /// # Errors
    /// A backend fails.
    pub async fn undo_growth(&mut self, cores: &Cores, lives: &Lives, lun: &Lun) -> Result<(), Refusal> {
        let name = lun.pool.as_deref().unwrap_or_default();
        let mut pool = self.take_usable(cores, lives, name).await?;
        let blocks = lun.size.unwrap_or_default().0 / u64::from(lun.block_bytes.unwrap_or(512));
        let uuid = pool_uuid(lun.uuid.unwrap_or_default());
        let undone = undo_growth(&Through::new(cores, lives), &mut pool, uuid, blocks).await;
        self.open.insert(name.into(), pool);
        undone.map_err(lun_refusal)
    }

    /// Deletes a LUN that no core presents any more.
    ///
    /// # Errors
    /// A backend fails.
    pub async fn delete_lun(&mut self, cores: &Cores, lives: &Lives, lun: &Lun) -> Result<(), Refusal> {
        let name = lun.pool.as_deref().unwrap_or_default();
        self.delete_in(cores, lives, name, pool_uuid(lun.uuid.unwrap_or_default())).await
    }

    async fn delete_in(
        &mut self,
        cores: &Cores,
        lives: &Lives,
        name: &str,
        uuid: trefoil_storage::pool::Uuid,
    ) -> Result<(), Refusal> {
        let mut pool = self.take_usable(cores, lives, name).await?;
        let deleted = match pool.lun(uuid) {
            Some(_) => delete_lun(&Through::new(cores, lives), &mut pool, uuid, false, false).await,
            None => Ok(()),
        };
        self.open.insert(name.into(), pool);
        deleted.map_err(lun_refusal)
    }

    /// Checks that pool `name` can be changed now.
    ///
    /// # Errors
    /// The pool is down, or lacks members.
    pub fn check_changeable(&self, name: &str) -> Result<(), Refusal> {
        let refuse = |why: String| Err(Refusal::new(Fault::Device, why));
        match self.open.get(name).map(Pool::frozen) {
            None => refuse(format!("pool `{name}` is down")),
            Some(Some(frozen @ Frozen::Missing(_))) => {
                refuse(format!("pool `{name}` can't change: {frozen}"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Checks that pool `name` can be changed, and that all its backends can be used now. A lost array isn't waited for.
    ///
    /// # Errors
    /// The pool can't be changed, or a backend can't be used.
    pub fn check_reachable(&self, cores: &Cores, name: &str) -> Result<(), Refusal> {
        self.check_changeable(name)?;
        let backends = self.open.get(name).into_iter().flat_map(Pool::backends).flatten();
        for backend in backends {
            cores.usable(backend.id).map_err(|why| {
                Refusal::new(Fault::Device, format!("backend `{}` is lost: {why}", backend.name))
            })?;
        }
        Ok(())
    }

    fn pool_of(&self, lun: &Lun) -> Result<&Pool, String> {
        let name = lun.pool.as_deref().unwrap_or_default();
        self.open.get(name).ok_or_else(|| format!("pool `{name}` is down"))
    }

    /// Returns the place of a LUN.
    ///
    /// # Errors
    /// The pool is down, a member is missing, or the pool doesn't know the LUN. The text is for the log.
    pub fn place(&self, lun: &Lun) -> Result<Placed, String> {
        let pool = self.pool_of(lun)?;
        let found = pool.lun(pool_uuid(lun.uuid.unwrap_or_default())).filter(|lun| lun.is_visible());
        let found = found.ok_or_else(|| format!("pool `{}` doesn't hold the LUN", pool.name()))?;
        let len_bytes = found.blocks * u64::from(found.block_bytes);
        let mut extents = pool
            .extents(found)
            .map_err(|backend| format!("backend `{backend}` of the LUN's pool is missing"))?;
        // Units are larger than blocks, so the last extent may reach past the LUN's end.
        if let Some(last) = extents.last_mut() {
            last.len = last.len.min(len_bytes - last.lun_offset);
        }
        Ok(Placed { block_bytes: found.block_bytes, len_bytes, extents })
    }

    /// Returns whether the pool is open without some of its members.
    pub fn is_missing_members(&self, name: &str) -> bool {
        matches!(self.open.get(name).and_then(Pool::frozen), Some(Frozen::Missing(_)))
    }

    /// Returns a view of each open pool, for tables.
    pub fn views(&self) -> BTreeMap<String, PoolView> {
        let view = |pool: &Pool| {
            let (capacity_bytes, free_bytes) = pool.capacity_bytes();
            PoolView { capacity_bytes, free_bytes, frozen: pool.frozen().map(Frozen::to_string) }
        };
        self.open.iter().map(|(name, pool)| (name.clone(), view(pool))).collect()
    }
}

/// Puts a LUN of a pool into the state, in place of the state's own entry for the LUN.
///
/// # Errors
/// A LUN elsewhere has the same identity, as after a copy of a disk. Nothing has changed.
fn adopt(state: &mut State, pool: &str, found: &PoolLun, by_name: bool) -> Result<(), Refusal> {
    let uuid = uuid_of(found);
    let is_here = |lun: &&Lun| lun.pool.as_deref() == Some(pool);
    let by_uuid = state.luns.values().filter(is_here).find(|lun| lun.uuid == Some(uuid));
    let by_uuid = by_uuid.map(|lun| lun.name.clone());
    let same_name = |lun: &&Lun| by_name && is_here(lun);
    let known = by_uuid.or_else(|| state.luns.get(&found.name).filter(same_name).map(|l| l.name.clone()));
    let name = known.clone().unwrap_or_else(|| match state.luns.contains_key(&found.name) {
        // The new name is as long as a name may be.
        true => format!("{:.26}-{uuid}", found.name),
        false => found.name.clone(),
    });
    let size = Bytes(found.blocks * u64::from(found.block_bytes));
    // A document at the first start may ask for a larger size. The LUN is then grown.
    let wanted = state.luns.get(&name).and_then(|lun| lun.size).unwrap_or(size);
    let lun = Lun {
        name: name.clone(),
        pool: Some(pool.into()),
        backend: None,
        size: Some(size.max(wanted)),
        block_bytes: Some(found.block_bytes),
        uuid: Some(uuid),
        nguid: Some(Uuid::from_bytes(found.nguid).simple().to_string()),
        read_only: state.luns.get(&name).is_some_and(|lun| lun.read_only),
    };
    if let Some(twin) = state.twin(&lun) {
        let what = format!(
            "pool `{pool}`: LUN `{}` is left out, because LUN `{}` on other backends has the same identity: check whether a \
             disk of one LUN is a copy of the other's disk",
            found.name, twin.name
        );
        return Err(Refusal::new(Fault::Exists, what));
    }
    if known.is_none() {
        tracing::warn!(
            pool,
            lun = name,
            "the pool holds a LUN that the database did not have; the gateway added the LUN"
        );
    }
    state.luns.insert(name, lun);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::cores::tests::{hear, mute};
    use super::*;
    use trefoil_storage::initiator::NamespaceIdentity;
    use trefoil_storage::msg::Event;

    /// The array is usable from then on, and the engine learns its size only after the pools are opened.
    #[test]
    fn an_array_that_answers_while_pools_are_opened_has_its_size() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _entered = runtime.enter();
        let (cores, id) = (mute(), BackendId(3));
        let lives = Lives::from([("far".into(), Live::unanswered(id))]);
        cores.set_lost(id, "the array has not answered yet");
        let why = ready(&cores, &lives, "far").expect_err("lost");
        assert_eq!(why.message, "backend `far` is lost: the array has not answered yet");
        let namespace = NamespaceIdentity { nguid: [1; 16], uuid: [0; 16], eui64: [0; 8], block_bytes: 4096 };
        hear(&cores, Event::BackendInfo { backend: id, len_bytes: 1 << 30, namespace, deallocates: true });
        let found = ready(&cores, &lives, "far").expect("it has answered");
        assert_eq!((found.len_bytes, found.block_bytes), (1 << 30, 4096));
    }

    fn lun(name: &str, uuid: u8) -> PoolLun {
        PoolLun {
            uuid: trefoil_storage::pool::Uuid([uuid; 16]),
            nguid: [uuid; 16],
            serial: [b' '; 20],
            nsid: 1,
            name: name.into(),
            created_at_s: 0,
            block_bytes: 512,
            blocks: 8,
            pending_blocks: 0,
            runs: Vec::new(),
        }
    }

    #[test]
    fn a_disk_of_the_same_name_is_not_the_one_that_is_shown() {
        let mut state = State::default();
        let adopt = |state: &mut State, lun: &PoolLun, by_name| {
            adopt(state, "tank", lun, by_name).unwrap_or_else(|e| panic!("{e}"));
        };
        adopt(&mut state, &lun("root", 1), false);
        let before = state.luns["root"].clone();
        adopt(&mut state, &lun("root", 2), false);
        assert_eq!(state.luns["root"], before);
        let name = format!("root-{}", Uuid::from_bytes([2; 16]));
        assert_eq!(state.luns.get(&name).and_then(|lun| lun.uuid), Some(Uuid::from_bytes([2; 16])));
        // A document has no other way to say which LUN it means.
        adopt(&mut state, &lun("root", 3), true);
        assert_eq!(state.luns["root"].uuid, Some(Uuid::from_bytes([3; 16])));
    }

    #[test]
    fn a_copied_disk_s_lun_is_left_out() {
        let mut state = State::default();
        adopt(&mut state, "tank", &lun("root", 1), false).expect("the first");
        let before = state.clone();
        let nguid = PoolLun { nguid: [1; 16], ..lun("other", 2) };
        for copy in [lun("root", 1), lun("other", 1), nguid] {
            for by_name in [false, true] {
                let refusal = adopt(&mut state, "copy", &copy, by_name).expect_err("a twin");
                let told = format!(
                    "pool `copy`: LUN `{}` is left out, because LUN `root` on other backends",
                    copy.name
                );
                assert!(refusal.message.starts_with(&told), "{refusal}");
                assert_eq!(state, before);
            }
        }
        // The pool's own LUN is no twin.
        adopt(&mut state, "tank", &lun("root", 1), false).expect("known");
        assert_eq!(state, before);
    }
}
