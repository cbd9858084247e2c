//! Brings a backend up and takes it down: gives each core a channel to the backend, or takes the channels from the cores.

use super::array_config::array_config;
use super::cores::Cores;
use super::local::{Locked, Opened, OwnFile, Source, check_path, make_and_open};
use crate::error::{Fault, Refusal, device};
use crate::memory::MemoryNeed;
use crate::state::State;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use trefoil_config::{Backend, BackendType, Gateway, default_serial};
use trefoil_poll::CoreId;
use trefoil_poll::ram::Ram;
use trefoil_storage::backend::nvme_tcp::NvmeTcpChannel;
use trefoil_storage::backend::{Attach, AttachKind, File, Memory};
use trefoil_storage::initiator::NamespaceIdentity;
use trefoil_storage::topology::BackendId;

/// Most long zeroing operations that a memory backend runs at a time.
const ZEROINGS: usize = 64;
/// Time limit for the first answer of a new array.
const ARRAY_TIMEOUT: Duration = Duration::from_secs(10);

/// A backend that is up.
#[derive(Debug)]
pub struct Live {
    /// The backend's index, which is the same on every core.
    pub id: BackendId,
    /// The backend's size in bytes.
    pub len_bytes: u64,
    /// The backend's logical block size in bytes.
    pub block_bytes: u32,
    /// The core that holds a memory backend's memory. The other cores reach the memory through this core. `None` for other
    /// backends.
    pub owner: Option<CoreId>,
    /// The identity of a file, or the exclusive hold on a block device, for as long as the backend is up. The cores hold a
    /// file's lock, because they do the I/O.
    lock: Option<Locked>,
    /// The file that was made for the backend.
    made: Option<PathBuf>,
}

impl Live {
    /// Makes the entry of an array that has not answered yet.
    #[cfg(test)]
    pub fn unanswered(id: BackendId) -> Self {
        Self { id, len_bytes: 0, block_bytes: 512, owner: None, lock: None, made: None }
    }

    /// Removes the file that was made for the backend. Called when the change that made the file has failed.
    pub fn unmake(&self) {
        if let Some(path) = &self.made
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::error!(%error, path = %path.display(), "a failed change made a file, and the file can't be removed");
        }
    }

    /// Stores the hold on storage on this machine, and returns each core's channel to the storage.
    fn take(
        &mut self,
        cores: &Cores,
        name: &str,
        opened: Opened,
        requests: usize,
    ) -> Result<Vec<AttachKind<OwnedFd>>, Refusal> {
        (self.len_bytes, self.block_bytes) = (opened.len_bytes, opened.block_bytes);
        match opened.source {
            Source::Null => Ok(cores.all().map(|_| AttachKind::Null).collect()),
            Source::Memory(region) => {
                let owner = owner_of(name, cores.count());
                self.owner = Some(owner);
                let mut kinds: Vec<_> = cores.all().map(|_| AttachKind::Remote { core: owner }).collect();
                if let Some(kind) = kinds.get_mut(usize::from(owner.0)) {
                    *kind = AttachKind::Memory(Memory::new(Ram::new(region), ZEROINGS));
                }
                Ok(kinds)
            }
            Source::File { lock, io } => {
                self.lock = Some(lock);
                let channel = |_| {
                    let file = io.try_clone().map_err(|e| device(name, &e))?;
                    Ok(AttachKind::File { file, slots: File::slots(requests) })
                };
                cores.all().map(channel).collect()
            }
        }
    }

    /// Returns the core to which the control plane sends its own I/O for this backend.
    pub fn core(&self) -> CoreId {
        self.owner.unwrap_or(CoreId(0))
    }
}

/// The settings with which [`bring_up`] brings up a backend.
pub struct Setting<'a> {
    /// The cores.
    pub cores: &'a Cores,
    /// Most requests under way on one core's channel.
    pub requests: usize,
    /// For arrays: the gateway's name. The host NQN is derived from this name if the backend sets no host NQN.
    pub gateway: &'a str,
    /// `true` if the backend existed before. If so, [`bring_up`] doesn't wait for an array that doesn't answer now: see
    /// [`await_arrays`]. A missing file is not made anew, because the data is in a file that may appear later.
    pub patient: bool,
    /// For arrays: the namespace that answered before. No other namespace is accepted.
    pub known: Option<NamespaceIdentity>,
    /// The time until which [`bring_up`] waits for a locked file.
    pub lock_until: Instant,
    /// The gateway's own files.
    pub own_files: &'a [OwnFile],
}

/// Opens `backend`, and attaches a channel to it on every core. After a failure, no core has the backend.
///
/// # Errors
/// The storage can't be opened, a core has no room, or an array doesn't answer.
pub async fn bring_up<'a>(
    setting: Setting<'_>,
    backend: &Backend,
    id: BackendId,
    others: impl Iterator<Item = &'a Live>,
) -> Result<Live, Refusal> {
    let Setting { cores, requests, gateway, patient, known, lock_until, own_files } = setting;
    let mut live = Live { id, len_bytes: 0, block_bytes: 512, owner: None, lock: None, made: None };
    let kinds: Vec<AttachKind<OwnedFd>> = match backend.kind {
        BackendType::NvmeTcp => {
            let config = array_config(backend, gateway, requests)?;
            let channel = |core| {
                let mut channel = NvmeTcpChannel::new(id, core, cores.count(), &config);
                if let Some(namespace) = known {
                    channel.take_only(namespace);
                }
                AttachKind::NvmeTcp(Box::new(channel))
            };
            cores.all().map(channel).collect()
        }
        BackendType::Memory | BackendType::Null | BackendType::File => {
            let taken: Vec<(u64, u64)> =
                others.filter_map(|live| live.lock.as_ref().map(|l| l.identity)).collect();
            let (spec, own_files) = (backend.clone(), own_files.to_vec());
            let opened = tokio::task::spawn_blocking(move || {
                check_path(&spec, &own_files)?;
                make_and_open(&spec, &taken, !patient, lock_until)
            })
            .await;
            let (opened, made) = opened.map_err(|e| Refusal::new(Fault::Internal, e.to_string()))??;
            live.made = made;
            live.take(cores, &backend.name, opened, requests)?
        }
    };
    cores.reports.name_backend(id, &backend.name);
    for (core, kind) in cores.all().zip(kinds) {
        let attach = Attach { len_bytes: live.len_bytes, block_bytes: live.block_bytes, kind, id };
        if let Err(refusal) = cores.attach(core, Box::new(attach)).await {
            for earlier in cores.all().take_while(|c| *c != core) {
                cores.detach(earlier, id).await?;
            }
            live.unmake();
            return Err(refusal);
        }
    }
    if backend.kind == BackendType::NvmeTcp {
        let within = if patient { Duration::ZERO } else { ARRAY_TIMEOUT };
        match cores.reports.geometry(id, within, !patient).await {
            Some((block_bytes, len_bytes)) => (live.block_bytes, live.len_bytes) = (block_bytes, len_bytes),
            None if patient => cores.reports.set_lost(id, "the array has not answered yet"),
            None => {
                let what = unreached(cores, backend, id);
                take_down(cores, id).await?;
                return Err(Refusal::new(Fault::Device, what));
            }
        }
    }
    Ok(live)
}

/// Returns the message of the refusal if a new array doesn't answer.
fn unreached(cores: &Cores, backend: &Backend, id: BackendId) -> String {
    let at = backend.address.map(|address| format!(" at {address}")).unwrap_or_default();
    let what = format!("backend `{}`: the array{at}", backend.name);
    let seconds = ARRAY_TIMEOUT.as_secs();
    match cores.reports.usable(id) {
        Err(why) if cores.reports.is_refused(id) => format!("{what} can't be used: {why}"),
        Err(why) => format!("{what} was not reached within {seconds} s: {why}"),
        Ok(()) => format!("{what} did not answer within {seconds} s"),
    }
}

/// Waits for the arrays that [`bring_up`] brought up with `patient` and that have not answered yet. Waits for all these arrays
/// at the same time, so that many absent arrays delay the other backends no longer than one absent array.
pub async fn await_arrays(cores: &Cores, lives: impl Iterator<Item = &mut Live>) {
    let by = Instant::now() + ARRAY_TIMEOUT;
    for live in lives.filter(|live| live.len_bytes == 0) {
        let left = by.saturating_duration_since(Instant::now());
        if let Some((block_bytes, len_bytes)) = cores.reports.geometry(live.id, left, false).await {
            (live.block_bytes, live.len_bytes) = (block_bytes, len_bytes);
        }
    }
}

/// Detaches a backend from every core that has a channel to it. Each core closes its channel.
///
/// # Errors
/// A core doesn't answer.
pub async fn take_down(cores: &Cores, id: BackendId) -> Result<(), Refusal> {
    for core in cores.all() {
        drop(cores.detach(core, id).await?);
    }
    Ok(())
}

/// Returns the core that owns a memory backend. The core is derived from the backend's name, so it is the same after a restart.
fn owner_of(name: &str, cores: u16) -> CoreId {
    let hash =
        default_serial(name).bytes().fold(0u32, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
    CoreId((hash % u32::from(cores.max(1))) as u16)
}

/// Refuses `next` if it adds memory backends, and the machine lacks memory for all that `next` reserves.
///
/// # Errors
/// The machine lacks memory. The refusal says how much memory is needed, and how much is available.
pub fn check_memory(before: &State, next: &State, gateway: &Gateway) -> Result<(), Refusal> {
    let is_new = |b: &&Backend| b.kind == BackendType::Memory && !before.backends.contains_key(&b.name);
    let Some(new) = next.backends.values().find(is_new) else { return Ok(()) };
    match MemoryNeed::look(&next.to_config(gateway)) {
        Some(memory) if memory.lacks() => {
            Err(Refusal::new(Fault::NoSpace, format!("backend `{}`: memory: {memory}", new.name)))
        }
        _ => Ok(()),
    }
}
