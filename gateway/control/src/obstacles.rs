//! Obstacles that keep a gateway, or the objects that a change adds, from coming up on this machine. Folders, files, devices
//! and addresses are checked before they are needed.
//!
//! The check can't promise success: a resource that is free now may be in use later. The check makes no files and writes no
//! data. The check locks files and binds addresses for a moment, as the gateway later does, and then releases them. For an
//! array, the check tests only whether the array accepts a connection.

use crate::address::{is_v6_only, overlap, resolve};
use crate::engine::local::{Locked, OwnFile, check_path, folder, own_files, try_open, whole};
use crate::jsonrpc::server::RpcSocket;
use crate::state::{Row, RowChange, State};
use crate::store::Store;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, eaccess};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use trefoil_config::{Address, Backend, BackendType, Bytes, Config, Gateway};
use trefoil_storage::pool::{LOOKED_AT_BYTES, Label, LabelState, recognise};
use trefoil_sys::socket;

/// Time limit for an array to accept a connection.
const ARRAY_TIMEOUT: Duration = Duration::from_secs(2);
/// The space of a memory backend's file is reserved in pieces of this size.
const MEMORY_FILE_BYTES: u64 = 2 << 20;

/// A single obstacle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The message names the object, its field and what is wrong.
    pub message: String,
    /// `true` if the obstacle causes a start or a change to fail. `false` if the start or change continues without the object,
    /// or if the obstacle takes effect only later (a lack of space, for example).
    pub is_fatal: bool,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Returns the obstacles to a start with `config`. If there is a store, the objects are taken from the store and not from the
/// document. A start then continues without the objects that can't come up. `document` is the file that holds `config`. Blocks.
pub fn of_start(config: &Config, document: &Path) -> Vec<Obstacle> {
    let Gateway { state_dir, rpc_socket, metrics_listen, rpc_listen, .. } = &config.gateway;
    let own_files = own_files(document, &Store::path_in(state_dir));
    let made = vec![state_dir.clone(), folder(rpc_socket).into()];
    let mut look = Look { own_files: &own_files, made, ..Look::default() };
    let rpc = may_write(folder(rpc_socket));
    let rpc = rpc.and_then(|()| RpcSocket::is_left_behind(rpc_socket).map_err(|e| e.to_string()));
    look.check(rpc.map(drop), "gateway.rpc_socket", true);
    let state = may_write(state_dir);
    let stored = if state.is_ok() { Store::peek(state_dir) } else { Ok(None) };
    look.check(state, "gateway.state_dir", true);
    let (none, nothing) = (State::default(), BTreeMap::new());
    match stored {
        Ok(Some(found)) if !found.is_new => {
            look.is_stored = true;
            look.objects(&none.changes_to(&State::from_rows(found.rows)), &nothing);
        }
        Ok(_) => look.objects(&none.changes_to(&State::from_config(config, &none)), &nothing),
        // If another process uses the state folder, that process also uses the backends, so the backends are not checked.
        Err(error) => look.check(Err(error.to_string()), "gateway.state_dir", true),
    }
    for (field, listen) in [("metrics_listen", metrics_listen), ("rpc_listen", rpc_listen)] {
        let Some(listen) = *listen else { continue };
        look.listener(listen, &format!("gateway.{field}: {listen}"), false);
    }
    look.found
}

/// Returns the obstacles to the objects that `changes` add. The objects in `before` are up. With `delete_data`, new pools may
/// overwrite any data, and the overwritten data is only reported. Blocks.
pub fn of_changes(
    changes: &[RowChange],
    before: &BTreeMap<String, Row>,
    own_files: &[OwnFile],
    delete_data: bool,
) -> Vec<Obstacle> {
    let mut look = Look { own_files, delete_data, ..Look::default() };
    look.objects(changes, before);
    look.found
}

/// A check in progress: its findings and its inputs.
#[derive(Default)]
struct Look<'a> {
    found: Vec<Obstacle>,
    /// Files of the gateway's own.
    own_files: &'a [OwnFile],
    /// Folders that a start makes first.
    made: Vec<PathBuf>,
    /// `true` if the objects come from the store. The gateway then makes no missing files for the objects, and starts without
    /// objects that fail.
    is_stored: bool,
    /// `true` if the data on the backends of new pools may be lost.
    delete_data: bool,
    /// Files and devices of the backends checked so far.
    held: Vec<Locked>,
    /// Paths of the backends checked so far, with all links resolved. A path is also recorded if no file exists there yet.
    paths: BTreeSet<PathBuf>,
    /// Listeners checked so far.
    open: BTreeSet<Address>,
    /// Space in bytes that the backends checked so far need on each file system, by the file system's device. The first number
    /// is the space that is needed at once. The second number also includes the space that the files may need when they grow.
    need_bytes: BTreeMap<u64, (u64, u64)>,
}

impl Look<'_> {
    fn check(&mut self, outcome: Result<(), String>, what: &str, is_fatal: bool) {
        if let Err(why) = outcome {
            self.found.push(Obstacle { message: format!("{what}: {why}"), is_fatal });
        }
    }

    /// Checks the backends and listeners that `changes` add.
    fn objects(&mut self, changes: &[RowChange], before: &BTreeMap<String, Row>) {
        let listeners = |row: &Row| match row {
            Row::Subsystem(subsystem) => subsystem.listeners.clone(),
            Row::Discovery(discovery) => discovery.listeners.clone(),
            _ => Vec::new(),
        };
        let path = |row: &Row| match row {
            Row::Backend(backend) => backend.path.as_deref().map(whole),
            _ => None,
        };
        self.open.extend(before.values().flat_map(listeners));
        self.paths.extend(before.values().filter_map(path));
        let mut arrays = Vec::new();
        for change in changes {
            match change {
                RowChange::Put(row @ Row::Backend(backend)) if !before.contains_key(&row.key()) => {
                    self.backend(backend);
                    arrays.extend(backend.address.map(|address| (&backend.name, address)));
                }
                RowChange::Put(row @ (Row::Subsystem(_) | Row::Discovery(_))) => {
                    let of = match row {
                        Row::Subsystem(subsystem) => format!("subsystem `{}`", subsystem.nqn),
                        _ => "discovery".into(),
                    };
                    for listen in listeners(row) {
                        let what = format!("{of}: listeners: {listen}");
                        if !self.open.contains(&listen) {
                            self.listener(listen, &what, !self.is_stored);
                        }
                    }
                }
                _ => {}
            }
        }
        if !self.is_stored {
            self.pools(changes, before);
        }
        self.arrays(&arrays);
    }

    /// Finds the data in files and devices that new pools would overwrite.
    fn pools(&mut self, changes: &[RowChange], before: &BTreeMap<String, Row>) {
        let added = || {
            changes
                .iter()
                .filter_map(|change| if let RowChange::Put(row) = change { Some(row) } else { None })
        };
        let files: BTreeMap<&str, &Path> = before
            .values()
            .chain(added())
            .filter_map(|row| match row {
                Row::Backend(backend) if backend.kind == BackendType::File => {
                    Some((backend.name.as_str(), backend.path.as_deref()?))
                }
                _ => None,
            })
            .collect();
        for row in added().filter(|row| !before.contains_key(&row.key())) {
            let Row::Pool(pool) = row else { continue };
            for name in &pool.backends {
                // Unreadable files and devices were reported already.
                let Some(Ok(start)) = files.get(name.as_str()).map(|path| start(path)) else { continue };
                let what = match (recognise(&start), Label::newest(&start)) {
                    // If the label's pool has the same name, it may be this pool, and the gateway opens it.
                    (_, Some(label)) if label.state == LabelState::Ready && label.pool_name != pool.name => {
                        format!("belongs to pool `{}`, which would lose this backend", label.pool_name)
                    }
                    (Some(what), None) => {
                        format!(
                            "holds {what}, which the pool would overwrite: wipefs(8) erases these contents"
                        )
                    }
                    (None, None) if Label::is_damaged(&start) => "has a damaged label".into(),
                    _ => continue,
                };
                let leave = match self.delete_data {
                    true => "--delete-data allows the loss",
                    false => "to allow it, make the pool while the gateway runs, with --delete-data",
                };
                let message = format!("pool `{}`: backend `{name}` {what}; {leave}", pool.name);
                self.found.push(Obstacle { message, is_fatal: !self.delete_data });
            }
        }
    }

    fn listener(&mut self, listen: Address, what: &str, is_fatal: bool) {
        let free = match self.open.iter().find(|other| overlap(**other, listen)) {
            Some(other) => Err(format!("the gateway already listens on {other}")),
            // The gateway's own IPv6 wildcard listener holds this port. When the IPv4 wildcard is added, the IPv6 wildcard
            // leaves IPv4 to it.
            None if self.open.iter().any(|other| is_v6_only(*other, &BTreeSet::from([listen]))) => Ok(()),
            None => may_listen(listen, is_v6_only(listen, &self.open)),
        };
        self.check(free, what, is_fatal);
        self.open.insert(listen);
    }

    fn backend(&mut self, backend: &Backend) {
        let Some(path) = &backend.path else { return };
        let what = format!("backend `{}`: path {}", backend.name, path.display());
        let size_bytes = backend.size.unwrap_or_default().0;
        let is_memory = backend.kind == BackendType::Memory;
        let is_fatal = !self.is_stored;
        if !self.paths.insert(whole(path)) {
            return self
                .found
                .push(Obstacle { message: format!("{what} is already used by another backend"), is_fatal });
        }
        if let Err(refusal) = check_path(backend, self.own_files) {
            return self.found.push(Obstacle { message: refusal.message, is_fatal });
        }
        match path.metadata() {
            Ok(meta) if is_memory => {
                self.check(may_map(path), &what, is_fatal);
                let need_bytes = size_bytes.next_multiple_of(MEMORY_FILE_BYTES);
                let room = self.room(path, need_bytes.saturating_sub(meta.blocks() * 512), true);
                self.check(room, &what, is_fatal);
            }
            Ok(_) => match try_open(backend, path, &self.held) {
                Ok(held) => self.held.push(held),
                // The refusal already names the backend.
                Err(refusal) => self.found.push(Obstacle { message: refusal.message, is_fatal }),
            },
            Err(e) if e.kind() != io::ErrorKind::NotFound => self.check(Err(e.to_string()), &what, is_fatal),
            Err(_) if path.is_symlink() && !is_memory => {
                self.check(Err("the path is a link to a missing file".into()), &what, is_fatal);
            }
            Err(_) if backend.size.is_none() => {
                let why = "there is no such file: set `size`, and the gateway makes the file";
                self.check(Err(why.into()), &what, is_fatal);
            }
            // The data is in a file that is missing now, for example because its disk is not mounted yet.
            Err(_) if self.is_stored && !is_memory => {
                self.check(
                    Err("the file is missing, and the gateway does not make it again".into()),
                    &what,
                    false,
                );
            }
            Err(_) => {
                let makes = self.made.iter().any(|dir| dir.starts_with(folder(path)));
                let exists = makes || folder(path).exists();
                let missing = || format!("folder {} is missing: make it first", folder(path).display());
                let makeable = if exists { may_write(folder(path)) } else { Err(missing()) };
                self.check(makeable, &what, is_fatal);
                // A new file is one hole. So if space is short, the start succeeds, and hosts' writes fail later.
                let room = self.room(path, size_bytes, is_memory);
                self.check(room, &what, is_fatal && is_memory);
            }
        }
    }

    /// Checks that the file system of `path` has room for `more_bytes` and for the other backends there. With `at_once`, only
    /// space that other backends need at once is counted.
    fn room(&mut self, path: &Path, more_bytes: u64, at_once: bool) -> Result<(), String> {
        let (at, found) = nearest(folder(path));
        let (Ok(meta), Ok(fs)) = (found, statvfs(at)) else { return Ok(()) };
        let (now_bytes, all_bytes) = self.need_bytes.entry(meta.dev()).or_default();
        *now_bytes = now_bytes.saturating_add(if at_once { more_bytes } else { 0 });
        *all_bytes = all_bytes.saturating_add(more_bytes);
        let need_bytes = if at_once { *now_bytes } else { *all_bytes };
        let free_bytes = fs.blocks_available().saturating_mul(fs.fragment_size());
        if more_bytes == 0 || need_bytes <= free_bytes {
            return Ok(());
        }
        let (free, need) = (Bytes(free_bytes).rounded(), Bytes(need_bytes).rounded());
        Err(format!("the backends on this file system need {need}, and {free} is free"))
    }

    /// Checks that the arrays accept connections. An array from the store may answer later, so its silence is not fatal.
    fn arrays(&mut self, arrays: &[(&String, Address)]) {
        let answers: Vec<_> = std::thread::scope(|scope| {
            let ask = |&(_, at): &(&String, Address)| {
                let ask = move || TcpStream::connect_timeout(&resolve(at)?, ARRAY_TIMEOUT).map(drop);
                std::thread::Builder::new().spawn_scoped(scope, ask)
            };
            let asked: Vec<_> = arrays.iter().map(ask).collect();
            asked.into_iter().map(|asked| asked.ok()?.join().ok()).collect()
        });
        for ((name, at), answer) in arrays.iter().zip(answers) {
            let answer = answer.unwrap_or(Ok(())).map_err(|e| format!("the array doesn't answer: {e}"));
            self.check(answer, &format!("backend `{name}`: address: {at}"), !self.is_stored);
        }
    }
}

/// Returns the first bytes of a file or block device, and no bytes for other objects.
fn start(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(LOOKED_AT_BYTES);
    let kind = path.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        File::open(path)?.take(LOOKED_AT_BYTES as u64).read_to_end(&mut start)?;
    }
    Ok(start)
}

fn may_listen(at: Address, v6_only: bool) -> Result<(), String> {
    resolve(at).and_then(|to| socket::may_listen(to, v6_only)).map_err(|e| match e.kind() {
        io::ErrorKind::AddrNotAvailable => format!("this machine has no address {}: {e}", at.ip_text()),
        io::ErrorKind::AddrInUse => format!("another process listens on this address: {e}"),
        _ => e.to_string(),
    })
}

/// Checks that an existing file can be a memory backend's file.
fn may_map(path: &Path) -> Result<(), String> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| e.to_string())?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err("another process uses the file: stop that process first".into()),
        _ => Ok(()),
    }
}

/// Checks that the gateway can make files in a folder. For a missing folder, checks that the gateway can make the folder.
fn may_write(dir: &Path) -> Result<(), String> {
    let (at, found) = nearest(dir);
    let fail = |e: io::Error| format!("{}: {e}", at.display());
    if !found.map_err(fail)?.is_dir() {
        return Err(format!("{} is not a folder", at.display()));
    }
    eaccess(at, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|e| fail(e.into()))
}

/// Returns the part of a path that exists: the whole path, or its closest folder that exists. A link counts as existing even if
/// its target is missing.
fn nearest(path: &Path) -> (&Path, io::Result<Metadata>) {
    let is_gone = |e: &io::Error| matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let here = Path::new(".");
    let all = path.ancestors().map(|at| if at.as_os_str().is_empty() { here } else { at });
    let mut found = all.map(|at| (at, at.metadata()));
    let there = found.find(|(at, found)| at.is_symlink() || !found.as_ref().is_err_and(is_gone));
    there.unwrap_or((here, here.metadata()))
}
