//! Brings a backend up: opens its storage and gives each core a channel.

use super::cores::{Cores, device};
use crate::address::resolve;
use crate::error::{Fault, Refusal};
use crate::memory::MemoryNeed;
use crate::state::State;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;
use trefoil_config::{Backend, BackendType, Bytes, Gateway, MAX_KEEP_ALIVE_S, default_serial};
use trefoil_poll::CoreId;
use trefoil_poll::ram::Ram;
use trefoil_storage::backend::nvme_tcp::{NvmeTcpChannel, NvmeTcpConfig};
use trefoil_storage::backend::{Attach, AttachKind, File as FileChannel, Memory};
use trefoil_storage::initiator::{
    ControllerConfig, FenceRule, Identity, MAX_KATO_MS, NamespaceIdentity, Purpose, QueueEntries,
};
use trefoil_storage::topology::BackendId;
use trefoil_sys::region::Region;
use trefoil_wire::fabrics::{Nqn, NqnError};

/// Long zeroing operations that a memory backend runs at a time.
const ZEROINGS: usize = 64;
const _: () = assert!(MAX_KEEP_ALIVE_S * 1000 == MAX_KATO_MS, "hosts are told a CQT that is made from it");
/// Time in which a new array has to answer.
const ARRAY_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for which the last requests of a killed gateway can still lock a file.
pub const DEAD_LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for which the last requests of a deleted backend can still lock a file: the kernel releases a ring's files with a
/// delay.
pub const OLD_LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Size of a hole that every file system with holes can make.
const HOLE_BYTES: u64 = 64 << 10;

/// A backend that is up.
#[derive(Debug)]
pub struct Live {
    /// Its index on every core.
    pub id: BackendId,
    /// Its size in bytes.
    pub len_bytes: u64,
    /// Its logical block size in bytes.
    pub block_bytes: u32,
    /// The core that has the backend's channel, if only one core has a channel.
    pub owner: Option<CoreId>,
    /// The identity of a file, and the exclusive hold on a block device, for as long as the backend is up. The cores hold the
    /// file's lock, because they do the I/O.
    lock: Option<Locked>,
    /// The file that was made for the backend.
    made: Option<PathBuf>,
}

/// A file or block device that is a backend. No other backend can be the same file or device. While this value exists, nobody
/// can mount the device. Other gateways are kept off by a lock on the open file description for I/O, which is not part of
/// this value.
#[derive(Debug)]
pub struct Locked {
    /// Opened with `O_EXCL`.
    _file: File,
    /// Device and inode of a file, or `u64::MAX` and the number of a block device.
    identity: (u64, u64),
}

/// The opened storage of a backend, before any core has it.
struct Opened {
    len_bytes: u64,
    block_bytes: u32,
    source: Source,
}

/// An opened backend, and the file that was made for it.
type New = (Opened, Option<PathBuf>);

enum Source {
    Null,
    Memory(Region),
    File { lock: Locked, io: OwnedFd },
    NvmeTcp(Box<NvmeTcpConfig>),
}

impl Live {
    /// An array that has not answered yet.
    #[cfg(test)]
    pub fn unanswered(id: BackendId) -> Self {
        Self { id, len_bytes: 0, block_bytes: 512, owner: None, lock: None, made: None }
    }

    /// Removes the file that was made for the backend, after the change that made the file has failed.
    pub fn unmake(&self) {
        if let Some(path) = &self.made
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::error!(%error, path = %path.display(), "a failed change made a file, and the file can't be removed");
        }
    }

    /// Returns the core to ask for control's own I/O.
    pub fn core(&self) -> CoreId {
        self.owner.unwrap_or(CoreId(0))
    }
}

/// The circumstances in which [`bring_up`] brings up a backend.
pub struct Setting<'a> {
    /// The cores.
    pub cores: &'a Cores,
    /// Requests that can be under way on one core's channel.
    pub requests: usize,
    /// For arrays: the gateway's name, from which the host NQN derives if the backend sets none.
    pub gateway: &'a str,
    /// Whether the backend existed before. If so, an array that doesn't answer now is not waited for, because it may come
    /// later (see [`await_arrays`]). A missing file is not made anew, because the file that comes later has the data.
    pub patient: bool,
    /// For arrays: the namespace that answered before. No other namespace is accepted.
    pub known: Option<NamespaceIdentity>,
    /// The time until which a locked file is waited for.
    pub lock_until: Instant,
    /// The gateway's own files.
    pub own_files: &'a [OwnFile],
}

/// Opens `backend` and attaches it to every core. After a failure nothing is left attached.
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
    let taken: Vec<(u64, u64)> = others.filter_map(|live| live.lock.as_ref().map(|l| l.identity)).collect();
    let (spec, own_files) = (backend.clone(), own_files.to_vec());
    let (opened, made) = match backend.kind {
        BackendType::NvmeTcp => (array(backend, gateway, requests)?, None),
        BackendType::Memory | BackendType::Null | BackendType::File => {
            let opened = tokio::task::spawn_blocking(move || {
                check_path(&spec, &own_files)?;
                make_and_open(&spec, &taken, !patient, lock_until)
            })
            .await;
            opened.map_err(|e| Refusal::new(Fault::Internal, e.to_string()))??
        }
    };
    let Opened { len_bytes, block_bytes, source } = opened;
    let mut live = Live { id, len_bytes, block_bytes, owner: None, lock: None, made };
    let mut kinds: Vec<AttachKind<OwnedFd>> = Vec::new();
    match source {
        Source::Null => kinds.extend(cores.all().map(|_| AttachKind::Null)),
        Source::Memory(region) => {
            let owner = owner_of(&backend.name, cores.count());
            live.owner = Some(owner);
            kinds.extend(cores.all().map(|_| AttachKind::Remote { core: owner }));
            if let Some(kind) = kinds.get_mut(usize::from(owner.0)) {
                *kind = AttachKind::Memory(Memory::new(Ram::new(region), ZEROINGS));
            }
        }
        Source::File { lock, io } => {
            for _ in cores.all() {
                let file = io.try_clone().map_err(|e| device(&backend.name, &e))?;
                kinds.push(AttachKind::File { file, slots: FileChannel::slots(requests) });
            }
            live.lock = Some(lock);
        }
        Source::NvmeTcp(config) => kinds.extend(cores.all().map(|core| {
            let mut channel = NvmeTcpChannel::new(id, core, cores.count(), &config);
            if let Some(namespace) = known {
                channel.take_only(namespace);
            }
            AttachKind::NvmeTcp(Box::new(channel))
        })),
    }
    cores.name_backend(id, &backend.name);
    for (core, kind) in cores.all().zip(kinds) {
        let attach = Box::new(Attach { len_bytes, block_bytes, kind, id });
        if let Err(refusal) = cores.attach(core, attach).await {
            for earlier in cores.all().take_while(|c| *c != core) {
                cores.detach(earlier, id).await?;
            }
            live.unmake();
            return Err(refusal);
        }
    }
    if backend.kind == BackendType::NvmeTcp {
        let within = if patient { Duration::ZERO } else { ARRAY_TIMEOUT };
        match cores.geometry(id, within, !patient).await {
            Some((block_bytes, len_bytes)) => (live.block_bytes, live.len_bytes) = (block_bytes, len_bytes),
            None if patient => cores.set_lost(id, "the array has not answered yet"),
            None => {
                let what = unreached(cores, backend, id);
                take_down(cores, id).await?;
                return Err(Refusal::new(Fault::Device, what));
            }
        }
    }
    Ok(live)
}

/// Returns the message with which a new array is refused.
fn unreached(cores: &Cores, backend: &Backend, id: BackendId) -> String {
    let at = backend.address.map(|address| format!(" at {address}")).unwrap_or_default();
    let what = format!("backend `{}`: the array{at}", backend.name);
    let seconds = ARRAY_TIMEOUT.as_secs();
    match cores.usable(id) {
        Err(why) if cores.is_refused(id) => format!("{what} can't be used: {why}"),
        Err(why) => format!("{what} was not reached within {seconds} s: {why}"),
        Ok(()) => format!("{what} did not answer within {seconds} s"),
    }
}

/// Waits for the arrays that were brought up with `patient` and have not answered yet. The wait for all of them together is
/// as long as the wait for one, so that many absent arrays don't keep the other backends from service.
pub async fn await_arrays(cores: &Cores, lives: impl Iterator<Item = &mut Live>) {
    let by = Instant::now() + ARRAY_TIMEOUT;
    for live in lives.filter(|live| live.len_bytes == 0) {
        let left = by.saturating_duration_since(Instant::now());
        if let Some((block_bytes, len_bytes)) = cores.geometry(live.id, left, false).await {
            (live.block_bytes, live.len_bytes) = (block_bytes, len_bytes);
        }
    }
}

/// Returns the settings from which an array's channels are made.
fn array(backend: &Backend, gateway: &str, requests: usize) -> Result<Opened, Refusal> {
    let missing = || {
        Refusal::new(
            Fault::Invalid,
            format!("backend `{}`: address: the field `address` is missing", backend.name),
        )
    };
    let address = backend.address.ok_or_else(missing)?;
    let to = resolve(address)
        .map_err(|e| device(format!("backend `{}`: address: {address}", backend.name), &e))?;
    let kato_ms = backend.keep_alive_s.unwrap_or(MAX_KEEP_ALIVE_S).clamp(1, MAX_KEEP_ALIVE_S) * 1000;
    let controller = ControllerConfig {
        addrs: vec![to],
        identity: identity(backend, gateway)?,
        purpose: Purpose::Nvm { nsid: backend.nsid.unwrap_or(1) },
        digests: (backend.header_digest.unwrap_or(false), backend.data_digest.unwrap_or(false)),
        kato_ms,
        io_queues: backend.queues.unwrap_or(u16::MAX),
        entries: QueueEntries::new(backend.depth.unwrap_or(128)),
        reconnect: (Duration::from_millis(100), Duration::from_secs(5)),
        connect_timeout: Duration::from_secs(5),
        admin_timeout: Duration::from_secs(30),
        loss_timeout: Duration::from_secs(u64::from(backend.loss_timeout_s.unwrap_or(60))),
        fence: FenceRule::KeepAliveBound,
        discovery_entries: 0,
    };
    let config = NvmeTcpConfig { controller, command_timeout: Duration::from_secs(30), requests };
    Ok(Opened { len_bytes: 0, block_bytes: 512, source: Source::NvmeTcp(Box::new(config)) })
}

/// Returns the gateway's identity for an array, with the array's subsystem.
///
/// # Errors
/// A name of the backend is not an NQN.
pub fn identity(backend: &Backend, gateway: &str) -> Result<Identity, Refusal> {
    let invalid = |field: &str, e: NqnError| {
        Refusal::new(Fault::Invalid, format!("backend `{}`: {field}: {e}", backend.name))
    };
    let subnqn = backend.subnqn.as_deref().unwrap_or_default();
    let own = format!("nqn.2014-08.org.nvmexpress:uuid:{}", identifier(gateway));
    let hostnqn = backend.hostnqn.as_deref().unwrap_or(&own);
    // The host identifier derives from the host NQN, so that both mean the same host to an array.
    let suffix = hostnqn.rsplit(':').next().and_then(|id| uuid::Uuid::try_parse(id).ok());
    let host_id = suffix.unwrap_or_else(|| identifier(hostnqn));
    Ok(Identity {
        host_nqn: Nqn::new(hostnqn).map_err(|e| invalid("hostnqn", e))?,
        host_id: *host_id.as_bytes(),
        subsystem_nqn: Nqn::new(subnqn).map_err(|e| invalid("subnqn", e))?,
    })
}

/// Derives a UUID (version 8) from a name.
fn identifier(name: &str) -> uuid::Uuid {
    let hash = |text: &str| u64::from_str_radix(&default_serial(text)[2..], 16).unwrap_or_default();
    let bytes = uuid::Uuid::from_u64_pair(hash(name), hash(&format!("{name}/2"))).into_bytes();
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// Detaches a backend from every core that has it, and closes it there.
///
/// # Errors
/// A core doesn't answer.
pub async fn take_down(cores: &Cores, id: BackendId) -> Result<(), Refusal> {
    for core in cores.all() {
        drop(cores.detach(core, id).await?);
    }
    Ok(())
}

/// Returns the core that owns a memory backend. The core derives from the backend's name, so that it stays the same.
fn owner_of(name: &str, cores: u16) -> CoreId {
    let hash =
        default_serial(name).bytes().fold(0u32, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
    CoreId((hash % u32::from(cores.max(1))) as u16)
}

/// A file of the gateway's own, which no host may have, and its description.
pub type OwnFile = (PathBuf, &'static str);

/// Returns all files of the gateway's own.
pub fn own_files(document: &Path, database: &Path) -> Vec<OwnFile> {
    vec![(document.into(), "the gateway's own document"), (database.into(), "the gateway's own database")]
}

/// Refuses memory backends that only `next` has if the machine lacks memory for all that `next` reserves.
///
/// # Errors
/// The memory is short. The refusal says how much is asked for, and how much there is.
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

/// Refuses a path to an object that can't be a backend. Does not open the path, because opening some devices already uses
/// them.
///
/// # Errors
/// The path can't be a backend. The refusal says what the object at the path is.
pub fn check_path(backend: &Backend, own_files: &[OwnFile]) -> Result<(), Refusal> {
    let Some(path) = &backend.path else { return Ok(()) };
    let is = |is: &str| format!("backend `{}`: path {} is {is}", backend.name, path.display());
    let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let here = identity(path);
    let is_same = |own: &Path| whole(own) == whole(path) || (here.is_some() && identity(own) == here);
    if let Some((_, what)) = own_files.iter().find(|(own, _)| is_same(own)) {
        return Err(Refusal::new(Fault::InUse, is(what)));
    }
    // An object that can't be examined here is reported when it is opened.
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound && is_devices_place(path) => {
            let at = path.display();
            let text = format!(
                "backend `{}`: path: there is no device {at}, and the gateway makes no files among devices",
                backend.name
            );
            return Err(Refusal::new(Fault::Device, text));
        }
        Err(_) => return Ok(()),
    };
    let kind = meta.file_type();
    let what = match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () if kind.is_block_device() && backend.kind == BackendType::Memory => "a block device",
        () => return Ok(()),
    };
    let needed = match backend.kind {
        BackendType::Memory => "a file",
        _ => "a file or a block device",
    };
    Err(Refusal::new(Fault::Invalid, format!("{}: use {needed}", is(what))))
}

/// Returns whether a file made at `path` would lie among devices: a file there fills the machine's memory under a device's
/// name.
fn is_devices_place(path: &Path) -> bool {
    let mut at = path.to_path_buf();
    // The kernel follows at most 40 links (path_resolution(7)).
    for _ in 0..40 {
        let Ok(to) = std::fs::read_link(&at) else { break };
        at = folder(&at).join(to);
    }
    // Other file systems are mounted below /dev, such as /dev/shm and /dev/hugepages.
    let device = |dir: &Path| dir.metadata().map(|meta| meta.dev());
    let dir = folder(&at).canonicalize();
    dir.is_ok_and(|dir| dir.starts_with("/dev") && device(&dir).ok() == device(Path::new("/dev")).ok())
}

/// Opens the storage of a backend. With `make`, first makes a missing file if its size is given, and removes the new file
/// again if it can't be opened.
fn make_and_open(
    backend: &Backend,
    taken: &[(u64, u64)],
    make: bool,
    lock_until: Instant,
) -> Result<New, Refusal> {
    let mut made = None;
    if let (true, Some(path), Some(size)) = (make, &backend.path, backend.size) {
        // The space of a memory backend is reserved when its file is opened.
        let len_bytes = if backend.kind == BackendType::File { size.0 } else { 0 };
        let is_made = create_file(path, len_bytes).map_err(|e| at_path(backend, path, &e))?;
        made = is_made.then(|| path.clone());
    }
    let opened = open(backend, taken, lock_until);
    if let (Err(_), Some(path)) = (&opened, &made) {
        std::fs::remove_file(path).map_err(|e| at_path(backend, path, &e))?;
    }
    Ok((opened?, made))
}

fn open(backend: &Backend, taken: &[(u64, u64)], lock_until: Instant) -> Result<Opened, Refusal> {
    let block_bytes = backend.block_bytes.unwrap_or(512);
    let size = backend.size.unwrap_or_default();
    match (backend.kind, &backend.path) {
        (BackendType::Null, _) => Ok(Opened { len_bytes: size.0, block_bytes, source: Source::Null }),
        (BackendType::Memory, path) => {
            let region = match path {
                None => Region::anonymous(size.0 as usize),
                Some(path) => Region::shared_file(path, size.0 as usize),
            };
            let region = region.map_err(|e| match path {
                None => device(format!("backend `{}`: {size} of memory can't be had", backend.name), &e),
                Some(path) => at_path(backend, path, &e),
            })?;
            Ok(Opened { len_bytes: size.0, block_bytes, source: Source::Memory(region) })
        }
        (BackendType::File, Some(path)) => {
            let opened = open_file(backend, path, taken, lock_until)?;
            if let Source::File { io, .. } = &opened.source
                && !can_punch(io, opened.len_bytes)
            {
                tracing::warn!(
                    backend = backend.name,
                    path = %path.display(),
                    "the file system can't make holes in files (no FALLOC_FL_PUNCH_HOLE): a new or grown LUN takes its whole \
                     space on the disk at once, and TRIM frees no space"
                );
            }
            Ok(opened)
        }
        (BackendType::File, None) => {
            Err(Refusal::new(Fault::Invalid, "path: a backend of type file needs the field `path`"))
        }
        (BackendType::NvmeTcp, _) => Err(Refusal::new(Fault::Internal, "an array can't be opened as a file")),
    }
}

/// Opens an existing file or block device, if it can be a backend now. If the caller adds the result to `others`, no later
/// backend can be the same file or device.
///
/// # Errors
/// The file is among `others`, or [`bring_up`] would refuse it. [`check_path`] makes further checks that are not made here.
pub fn try_open(backend: &Backend, path: &Path, others: &[Locked]) -> Result<Locked, Refusal> {
    let taken: Vec<_> = others.iter().map(|locked| locked.identity).collect();
    match open_file(backend, path, &taken, Instant::now())?.source {
        Source::File { lock, .. } => Ok(lock),
        _ => Err(Refusal::new(Fault::Internal, "a file was opened as another type of backend")),
    }
}

/// Opens a file or block device. Waits for a locked file until `lock_until`.
fn open_file(
    backend: &Backend,
    path: &Path,
    taken: &[(u64, u64)],
    lock_until: Instant,
) -> Result<Opened, Refusal> {
    let what = || format!("backend `{}`: path {}", backend.name, path.display());
    let fail = |e: io::Error| at_path(backend, path, &e);
    // `O_EXCL` holds a block device against mounts and other exclusive users, or fails while they have the device. It has no
    // effect on a file.
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).custom_flags(nix::libc::O_EXCL).open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let is_device = meta.file_type().is_block_device();
    if !is_device && !meta.is_file() {
        return Err(Refusal::new(Fault::Invalid, format!("{} is neither a file nor a block device", what())));
    }
    let identity = if is_device { (u64::MAX, meta.rdev()) } else { (meta.dev(), meta.ino()) };
    if taken.contains(&identity) {
        return Err(Refusal::new(Fault::InUse, format!("{} is already used by another backend", what())));
    }
    let direct = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_DIRECT).open(path);
    let io = match direct {
        Ok(io) => io,
        // For example, tmpfs before Linux 6.6 does not know O_DIRECT.
        Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => {
            tracing::info!(
                backend = backend.name,
                path = %path.display(),
                "the file system has no O_DIRECT, so I/O goes through the page cache"
            );
            OpenOptions::new().read(true).write(true).open(path).map_err(fail)?
        }
        Err(e) => return Err(fail(e)),
    };
    // The lock is on the open file description for I/O. The kernel holds the lock until the last request is done, even after
    // the gateway was killed. A killed gateway's write that a slow device carries out late must not come after a write of
    // ours.
    loop {
        match io.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < lock_until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Refusal::new(
                    Fault::InUse,
                    format!("{} is in use by another process: stop that process first", what()),
                ));
            }
            Err(TryLockError::Error(e)) => return Err(fail(e)),
        }
    }
    let len_bytes = file.seek(SeekFrom::End(0)).map_err(fail)?;
    let own = if is_device { device_block_bytes(meta.rdev()).map_err(fail)? } else { 512 };
    let block_bytes = backend.block_bytes.unwrap_or(own);
    if block_bytes < own {
        let text = format!(
            "{}: the device has blocks of {own} bytes, so `block_bytes` can't be {block_bytes}",
            what()
        );
        return Err(Refusal::new(Fault::Invalid, text));
    }
    let usable = len_bytes / u64::from(block_bytes) * u64::from(block_bytes);
    if usable == 0 {
        return Err(Refusal::new(
            Fault::Invalid,
            format!("{} is empty: set `size`, or use another file", what()),
        ));
    }
    if let Some(size) = backend.size.filter(|size| size.0 > len_bytes) {
        let text =
            format!("{} has {}, which is less than the configured size of {size}", what(), Bytes(len_bytes));
        return Err(Refusal::new(Fault::Invalid, text));
    }
    let lock = Locked { _file: file, identity };
    Ok(Opened { len_bytes: usable, block_bytes, source: Source::File { lock, io: io.into() } })
}

/// Returns whether the file system can make holes in a file. Returns `true` for block devices, and if the kernel's answer is
/// neither yes nor no. Asks for a hole behind the file's end, which changes nothing.
fn can_punch(file: impl AsFd, len_bytes: u64) -> bool {
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // `len_bytes` is rounded down to whole blocks.
    let behind = (len_bytes + HOLE_BYTES).next_multiple_of(HOLE_BYTES);
    let answer = fallocate(file, hole, behind as i64, HOLE_BYTES as i64);
    !matches!(answer, Err(Errno::EOPNOTSUPP | Errno::ENOSYS))
}

/// Returns the refusal of a backend whose file can't be opened. If the folder is missing, the refusal names the folder.
fn at_path(backend: &Backend, path: &Path, e: &io::Error) -> Refusal {
    let mut what = format!("backend `{}`: path {}", backend.name, path.display());
    if e.kind() == io::ErrorKind::NotFound && !folder(path).exists() {
        what = format!("{what}: folder {}", folder(path).display());
    }
    match e.kind() {
        io::ErrorKind::ResourceBusy => {
            Refusal::new(Fault::InUse, format!("{what} is mounted, or another program holds the device: {e}"))
        }
        // Another backend or process has the lock.
        io::ErrorKind::WouldBlock => {
            Refusal::new(Fault::InUse, format!("{what} is in use by another backend or process"))
        }
        _ => device(what, e),
    }
}

/// Returns the folder of a file.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Resolves the links of a path, as far as the path exists.
pub fn whole(path: &Path) -> PathBuf {
    let dir = || folder(path).canonicalize().unwrap_or_else(|_| folder(path).into());
    path.canonicalize().unwrap_or_else(|_| dir().join(path.file_name().unwrap_or_default()))
}

/// Makes the file with its size if it is missing. Returns whether the file is new. An existing file stays as it is.
fn create_file(path: &Path, len_bytes: u64) -> io::Result<bool> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            let sized = file.set_len(len_bytes).and_then(|()| file.sync_all());
            if let Err(e) = sized {
                drop(file);
                std::fs::remove_file(path)?;
                return Err(e);
            }
            File::open(folder(path))?.sync_all()?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

/// Reads a block device's logical block size from sysfs. A partition has the block size of its disk.
fn device_block_bytes(rdev: u64) -> io::Result<u32> {
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    let dir = format!("/sys/dev/block/{major}:{minor}");
    let text = std::fs::read_to_string(format!("{dir}/queue/logical_block_size"))
        .or_else(|_| std::fs::read_to_string(format!("{dir}/../queue/logical_block_size")))?;
    text.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, size: Option<u64>) -> Backend {
        let path = Some(path.to_path_buf());
        Backend { path, size: size.map(Bytes), ..Backend::new("f", BackendType::File) }
    }

    #[test]
    fn what_is_no_disk_is_refused_by_what_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let _listens = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
        std::fs::write(at("own.toml"), [b'#'; 4096]).expect("a document");
        std::os::unix::fs::symlink(at("own.toml"), at("link")).expect("a link");
        let own = [(at("own.toml"), "the gateway's own document")];
        let cases = [
            (dir.path().into(), "is a directory: use a file or a block device", Fault::Invalid),
            (at("fifo"), "is a FIFO: use a file or a block device", Fault::Invalid),
            (at("socket"), "is a socket: use a file or a block device", Fault::Invalid),
            ("/dev/null".into(), "is a character device: use a file or a block device", Fault::Invalid),
            (at("own.toml"), "is the gateway's own document", Fault::InUse),
            (at("link"), "is the gateway's own document", Fault::InUse),
        ];
        for (path, what, fault) in cases {
            let refusal = check_path(&file(&path, Some(1 << 20)), &own).expect_err(what);
            let told = format!("backend `f`: path {} {what}", path.display());
            assert_eq!((refusal.message, refusal.fault), (told, fault));
            let memory = Backend { kind: BackendType::Memory, ..file(&path, Some(1 << 20)) };
            check_path(&memory, &own).expect_err("nor is it memory");
        }
        std::fs::write(at("disk"), [0; 4096]).expect("a file");
        for name in ["disk", "missing"] {
            check_path(&file(&at(name), Some(4096)), &own).expect("a disk");
        }
    }

    #[test]
    fn no_file_is_made_among_devices() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink("/dev", at("devices")).expect("a link");
        std::os::unix::fs::symlink("devices/nosuch-trefoil", at("disk")).expect("a link");
        let paths = ["/dev/nosuch-trefoil".into(), at("devices/nosuch-trefoil"), at("disk")];
        for path in paths {
            for kind in [BackendType::File, BackendType::Memory] {
                let backend = Backend { kind, ..file(&path, Some(1 << 20)) };
                let refusal = check_path(&backend, &[]).expect_err("no device");
                let told = format!("backend `f`: path: there is no device {}", path.display());
                assert!(refusal.message.starts_with(&told), "{}", refusal.message);
                assert_eq!(refusal.fault, Fault::Device);
            }
        }
        // In a bare chroot, /dev/shm is a folder of devices like the others.
        let device = |path: &str| std::fs::metadata(path).expect("a folder").dev();
        let memory = (device("/dev") != device("/dev/shm")).then(|| "/dev/shm/nosuch-trefoil".into());
        for path in memory.into_iter().chain([at("missing")]) {
            check_path(&file(&path, Some(1 << 20)), &[]).expect("a file can be made there");
        }
    }

    #[test]
    fn a_file_is_made_once_and_has_one_user() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        let open = |size: Option<u64>, taken: &[(u64, u64)], make| {
            make_and_open(&file(&path, size), taken, make, Instant::now())
        };
        let refused = |size, taken: &[_], make| open(size, taken, make).err().expect("a refusal");
        assert_eq!(refused(None, &[], true).fault, Fault::Device);
        assert!(refused(Some(1 << 20), &[], false).fault == Fault::Device && !path.exists());
        let (opened, made) = open(Some(1 << 20), &[], true).expect("opened");
        assert_eq!(made, Some(path.clone()));
        assert_eq!((opened.len_bytes, opened.block_bytes), (1 << 20, 512));
        let Source::File { lock, io } = opened.source else { panic!("not a file") };
        assert_eq!(refused(None, &[lock.identity], true).fault, Fault::InUse);
        // A killed gateway leaves a file so while the kernel still has its last requests.
        drop(lock);
        assert_eq!(refused(None, &[], true).fault, Fault::InUse);
        let waited = std::thread::scope(|scope| {
            let waits = || make_and_open(&file(&path, None), &[], false, Instant::now() + DEAD_LOCK_TIMEOUT);
            let waiting = scope.spawn(waits);
            drop(io);
            waiting.join().expect("no panic")
        });
        drop(waited.expect("opened"));
        let small = refused(Some(2 << 20), &[], true);
        let told = "disk has 1MiB, which is less than the configured size of 2MiB";
        assert!(small.fault == Fault::Invalid && small.message.ends_with(told), "{}", small.message);
        assert!(open(None, &[], true).is_ok_and(|(_, made)| made.is_none()));
    }
}
