//! Opens a backend's storage on this machine: memory, a file or a block device.
//!
//! A file or device has one user: no other backend, process or mount uses it at the same time.

use crate::error::{Fault, Refusal, device};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;
use trefoil_config::{Backend, BackendType, Bytes};
use trefoil_sys::region::Region;

/// The longest time for which the last requests of a killed gateway can still lock a file.
pub const DEAD_LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time for which the last requests of a deleted backend can still lock a file. The kernel releases a ring's files
/// with a delay.
pub const OLD_LOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// Size of a hole that every file system that supports holes can make.
const HOLE_BYTES: u64 = 64 << 10;

/// The opened storage of a backend, before a core gets it.
pub struct Opened {
    /// The storage's size in bytes.
    pub len_bytes: u64,
    /// The storage's logical block size in bytes.
    pub block_bytes: u32,
    /// The opened memory or file.
    pub source: Source,
}

/// An opened backend, and the file that was made for it.
type New = (Opened, Option<PathBuf>);

/// The storage itself.
pub enum Source {
    /// The null backend, which stores nothing.
    Null,
    /// Memory.
    Memory(Region),
    /// A file or a block device.
    File {
        /// The hold on the file.
        lock: Locked,
        /// The open file description for I/O.
        io: OwnedFd,
    },
}

/// A file or block device that is a backend. No other backend can be the same file or device. While this value exists, nobody
/// can mount the device. A lock on the open file description for I/O excludes other gateways. That lock is not part of this
/// value.
#[derive(Debug)]
pub struct Locked {
    /// Opened with `O_EXCL`.
    _file: File,
    /// For a file: its device and inode. For a block device: `u64::MAX` and the device's number.
    pub(super) identity: (u64, u64),
}

/// The path of a file of the gateway's own, which must not become a backend, and the file's description.
pub type OwnFile = (PathBuf, &'static str);

/// Returns all files of the gateway's own.
pub fn own_files(document: &Path, database: &Path) -> Vec<OwnFile> {
    vec![(document.into(), "the gateway's own document"), (database.into(), "the gateway's own database")]
}

/// Refuses a path to an object that can't be a backend. Does not open the path, because for some devices the open itself has
/// effects.
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
    // If the metadata can't be read, the later open reports the error.
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

/// Returns whether a file at `path` would be in a folder of devices. A new file there would have the name of a device, and
/// would fill the machine's memory.
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

/// Opens the storage of a backend. With `make`, first makes a missing file if its size is given. If the new file can't be
/// opened, removes it again.
pub fn make_and_open(
    backend: &Backend,
    taken: &[(u64, u64)],
    make: bool,
    lock_until: Instant,
) -> Result<New, Refusal> {
    let mut made = None;
    if let (true, Some(path), Some(size)) = (make, &backend.path, backend.size) {
        // The space of a memory backend is reserved later, when its file is opened.
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

/// Opens an existing file or block device, if it can be a backend now. The caller adds the result to `others`, so that no later
/// backend can be the same file or device.
///
/// # Errors
/// The file is among `others`, or [`make_and_open`] would refuse it. The checks of [`check_path`] are not made here.
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
    // For a block device, `O_EXCL` excludes mounts and other exclusive users, or fails if the device has such a user now. For a
    // file, `O_EXCL` without `O_CREAT` has no effect.
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
        // For example, tmpfs before Linux 6.6 does not support O_DIRECT.
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
    // The lock is on the open file description for I/O. Even after the gateway was killed, the kernel holds the lock until the
    // last request is done. So a late write of a killed gateway on a slow device can't overwrite a write of this gateway.
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

/// Returns whether the file system can make holes in a file. Returns `true` for block devices, and also if the kernel gives no
/// clear answer. The function asks for a hole behind the file's end, which changes nothing.
fn can_punch(file: impl AsFd, len_bytes: u64) -> bool {
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // `len_bytes` is rounded down to whole blocks.
    let behind = (len_bytes + HOLE_BYTES).next_multiple_of(HOLE_BYTES);
    let answer = fallocate(file, hole, behind as i64, HOLE_BYTES as i64);
    !matches!(answer, Err(Errno::EOPNOTSUPP | Errno::ENOSYS))
}

/// Returns the refusal for a backend whose file can't be opened. If the folder is missing, the refusal names the folder.
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

/// Resolves the links in the part of a path that exists.
pub fn whole(path: &Path) -> PathBuf {
    let dir = || folder(path).canonicalize().unwrap_or_else(|_| folder(path).into());
    path.canonicalize().unwrap_or_else(|_| dir().join(path.file_name().unwrap_or_default()))
}

/// Makes a file of this size if the file is missing. Returns whether the file is new. Doesn't change an existing file.
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
        // In a bare chroot, /dev/shm is not mounted, and is a part of /dev.
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
        // A killed gateway leaves a file locked like this while the kernel still has the gateway's last requests.
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
