//! Bringing a backend up: opening what it is, and giving each core its channel.

use super::cores::{Cores, device};
use crate::error::{Fault, Refusal};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use trefoil_config::{Backend, BackendType, Bytes, default_serial};
use trefoil_poll::CoreId;
use trefoil_poll::ram::Ram;
use trefoil_storage::backend::{Attach, AttachKind, File as FileChannel, Memory};
use trefoil_storage::topology::BackendId;
use trefoil_sys::region::Region;

/// Long zeroings that a memory backend carries on at a time.
const ZEROINGS: usize = 64;

/// A backend that is up.
#[derive(Debug)]
pub struct Live {
    /// Its index on every core.
    pub id: BackendId,
    /// Its size in bytes.
    pub len_bytes: u64,
    /// Its logical block size in bytes.
    pub block_bytes: u32,
    /// The core that has its channel, where only one has.
    pub owner: Option<CoreId>,
    /// Whether I/O can go on, and why not.
    pub usable: Result<(), &'static str>,
    /// A file's lock and identity; held as long as the backend is up.
    lock: Option<Locked>,
}

#[derive(Debug)]
struct Locked {
    _file: File,
    /// Device and inode, or the block device's own number.
    identity: (u64, u64),
}

/// What was opened for a backend, before any core has it.
struct Opened {
    len_bytes: u64,
    block_bytes: u32,
    source: Source,
}

enum Source {
    Null,
    Memory(Region),
    File { lock: Locked, io: OwnedFd },
}

impl Live {
    /// The core to ask for I/O of control's own.
    pub fn core(&self) -> CoreId {
        self.owner.unwrap_or(CoreId(0))
    }
}

/// Opens `backend` and attaches it everywhere. `requests` is how many can be under way on one core's
/// channel. On failure nothing is left attached.
///
/// # Errors
/// What can't be opened, or a core without room.
pub async fn bring_up<'a>(
    cores: &Cores,
    backend: &Backend,
    id: BackendId,
    requests: usize,
    others: impl Iterator<Item = &'a Live>,
) -> Result<Live, Refusal> {
    let taken: Vec<(u64, u64)> = others.filter_map(|live| live.lock.as_ref().map(|l| l.identity)).collect();
    let spec = backend.clone();
    let opened = tokio::task::spawn_blocking(move || open(&spec, &taken)).await;
    let opened = opened.map_err(|e| Refusal::new(Fault::Internal, e.to_string()))??;
    let Opened { len_bytes, block_bytes, source } = opened;
    let mut live = Live { id, len_bytes, block_bytes, owner: None, usable: Ok(()), lock: None };
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
    }
    for (core, kind) in cores.all().zip(kinds) {
        let attach = Box::new(Attach { len_bytes, block_bytes, kind, id });
        if let Err(refusal) = cores.attach(core, attach).await {
            for earlier in cores.all().take_while(|c| *c != core) {
                cores.detach(earlier, id).await?;
            }
            return Err(refusal);
        }
    }
    Ok(live)
}

/// Detaches a backend from every core and closes it.
///
/// # Errors
/// A core doesn't answer.
pub async fn take_down(cores: &Cores, live: &Live) -> Result<(), Refusal> {
    for core in cores.all() {
        drop(cores.detach(core, live.id).await?);
    }
    Ok(())
}

/// The core that owns a memory backend: follows from its name, so that it stays the same.
fn owner_of(name: &str, cores: u16) -> CoreId {
    let hash =
        default_serial(name).bytes().fold(0u32, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
    CoreId((hash % u32::from(cores.max(1))) as u16)
}

fn open(backend: &Backend, taken: &[(u64, u64)]) -> Result<Opened, Refusal> {
    let block_bytes = backend.block_bytes.unwrap_or(512);
    let size = backend.size.unwrap_or_default();
    match (backend.kind, &backend.path) {
        (BackendType::Null, _) => Ok(Opened { len_bytes: size.0, block_bytes, source: Source::Null }),
        (BackendType::Memory, path) => {
            let region = match path {
                None => Region::anonymous(size.0 as usize),
                Some(path) => Region::shared_file(path, size.0 as usize),
            };
            let region =
                region.map_err(|e| device(format!("backend `{}`: {size} of memory", backend.name), &e))?;
            Ok(Opened { len_bytes: size.0, block_bytes, source: Source::Memory(region) })
        }
        (BackendType::File, Some(path)) => open_file(backend, path, taken),
        (BackendType::File, None) => Err(Refusal::new(Fault::Invalid, "path: a file backend needs it")),
        (BackendType::NvmeTcp, _) => {
            Err(Refusal::new(Fault::Invalid, "type: this build has no nvme-tcp backend"))
        }
    }
}

fn open_file(backend: &Backend, path: &Path, taken: &[(u64, u64)]) -> Result<Opened, Refusal> {
    let what = || format!("backend `{}`: {}", backend.name, path.display());
    let fail = |e: io::Error| device(what(), &e);
    if let Some(size) = backend.size {
        create_file(path, size.0).map_err(fail)?;
    }
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let is_device = meta.file_type().is_block_device();
    if !is_device && !meta.is_file() {
        return Err(Refusal::new(Fault::Invalid, format!("{} is neither a file nor a block device", what())));
    }
    let identity = if is_device { (u64::MAX, meta.rdev()) } else { (meta.dev(), meta.ino()) };
    if taken.contains(&identity) {
        return Err(Refusal::new(Fault::InUse, format!("{} is another backend already", what())));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Refusal::new(Fault::InUse, format!("{} is in use by another process", what())));
        }
        Err(TryLockError::Error(e)) => return Err(fail(e)),
    }
    let len_bytes = file.seek(SeekFrom::End(0)).map_err(fail)?;
    let own = if is_device { device_block_bytes(meta.rdev()).map_err(fail)? } else { 512 };
    let block_bytes = backend.block_bytes.unwrap_or(own);
    if block_bytes < own {
        let text = format!("{}: it has blocks of {own} bytes, so {block_bytes} is not possible", what());
        return Err(Refusal::new(Fault::Invalid, text));
    }
    let usable = len_bytes / u64::from(block_bytes) * u64::from(block_bytes);
    if usable == 0 {
        return Err(Refusal::new(Fault::Invalid, format!("{} is empty: give it a size", what())));
    }
    if backend.size.is_some_and(|size| size.0 > len_bytes) {
        let text = format!("{} has {} and not the size that is configured", what(), Bytes(len_bytes));
        return Err(Refusal::new(Fault::Invalid, text));
    }
    let direct = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_DIRECT).open(path);
    let io = match direct {
        Ok(io) => io,
        // tmpfs before Linux 6.6, for one.
        Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => {
            tracing::info!(backend = backend.name, path = %path.display(), "no O_DIRECT here; going through the page cache");
            OpenOptions::new().read(true).write(true).open(path).map_err(fail)?
        }
        Err(e) => return Err(fail(e)),
    };
    let lock = Locked { _file: file, identity };
    Ok(Opened { len_bytes: usable, block_bytes, source: Source::File { lock, io: io.into() } })
}

/// Makes the file with its size if it isn't there. What is there stays as it is.
fn create_file(path: &Path, len_bytes: u64) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            let sized = file.set_len(len_bytes).and_then(|()| file.sync_all());
            if let Err(e) = sized {
                drop(file);
                std::fs::remove_file(path)?;
                return Err(e);
            }
            let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(dir)?.sync_all()
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// A block device's logical block size, from sysfs; a partition's is its disk's.
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
    fn a_file_is_made_once_and_has_one_user() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        let missing = open(&file(&path, None), &[]).err().expect("a refusal");
        assert_eq!(missing.fault, Fault::Device);
        let opened = open(&file(&path, Some(1 << 20)), &[]).expect("opened");
        assert_eq!((opened.len_bytes, opened.block_bytes), (1 << 20, 512));
        let Source::File { lock, .. } = &opened.source else { panic!("not a file") };
        let twice = open(&file(&path, None), &[lock.identity]).err().expect("a refusal");
        assert_eq!(twice.fault, Fault::InUse);
        let locked = open(&file(&path, None), &[]).err().expect("a refusal");
        assert_eq!(locked.fault, Fault::InUse);
        drop(opened);
        assert_eq!(open(&file(&path, Some(2 << 20)), &[]).err().expect("a refusal").fault, Fault::Invalid);
        assert!(open(&file(&path, None), &[]).is_ok());
    }
}
