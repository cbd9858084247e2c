//! The durable store: every object of the desired state as a row, in one embedded database.
//!
//! A change is committed and on stable media before it is acknowledged. The commit runs on a thread that may block, so the
//! control runtime can run other tasks meanwhile.

use crate::state::{Row, RowChange};
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Object rows: key `kind/name`, value JSON.
const ROWS: TableDefinition<'_, &str, &str> = TableDefinition::new("rows");
/// The key `schema` has the version. The key `seeded` has 1 once a change was committed.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The version of the rows' format.
pub const SCHEMA: u64 = 1;
/// The database's file name in its folder.
const FILE: &str = "state.redb";

/// The reason why the store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's directory or file can't be made or read.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// Another process has the store open.
    #[error("another trefoild uses the state folder {}: stop it, or use another `state_dir`", .dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The database reports an error, for example because the disk is full or the file is damaged.
    #[error("{}: {message}", .path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The database's message.
        message: String,
    },
    /// A newer program wrote the store.
    #[error(
        "{}: the database's schema version is {found}, and this trefoild knows versions up to {SCHEMA}: use a newer trefoild",
        .path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// The schema version of the store.
        found: u64,
    },
    /// This program can't read a row.
    #[error("{}: row `{key}` can't be read: {message}", .path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row's key.
        key: String,
        /// The reason.
        message: String,
    },
}

/// The contents of a store when it was opened.
#[derive(Debug, PartialEq)]
pub struct Found {
    /// Every row.
    pub rows: Vec<Row>,
    /// `true` if no change was ever committed to the database: at the first start, or after the loss of the database.
    pub is_new: bool,
}

/// An open store. A clone is another handle of the same store.
#[derive(Clone)]
pub struct Store {
    /// A commit holds the lock while it writes. So only a thread that may block may take the lock.
    inner: Arc<Mutex<Inner>>,
    path: Arc<Path>,
}

struct Inner {
    /// `None` after a failed commit: the database accepts no transaction until it is opened again.
    database: Option<Database>,
    /// The keys that a failed commit may have changed in the file, each with its correct value.
    unsure: BTreeMap<String, Option<String>>,
}

impl Store {
    /// Opens or makes the store in `dir`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(dir: &Path) -> Result<(Self, Found), StoreError> {
        let path: Arc<Path> = Self::path_in(dir).into();
        let io = |error| StoreError::Io { path: path.to_path_buf(), error };
        std::fs::create_dir_all(dir).map_err(io)?;
        make_whole(dir, &path)?;
        make_private(&path).map_err(io)?;
        let store = Self::closed(&path);
        let (database, found) = store.checked(dir, || Database::create(&*path))?;
        store.lock().database = Some(database);
        Ok((store, found))
    }

    /// Returns the contents that [`open`](Self::open) would find in `dir`, or `None` if there is no store. Changes nothing:
    /// repairs are made in a copy in memory.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn peek(dir: &Path) -> Result<Option<Found>, StoreError> {
        let path: Arc<Path> = Self::path_in(dir).into();
        let io = |error| StoreError::Io { path: path.to_path_buf(), error };
        // If the path is a FIFO, this function would block without the flag.
        let flags = nix::libc::O_NONBLOCK;
        let mut file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io)?,
        };
        // The database itself uses this lock. Some file systems have no locks.
        if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return Err(StoreError::InUse { dir: dir.into() });
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let copy = || {
            let memory = InMemoryBackend::new();
            memory.set_len(bytes.len() as u64)?;
            memory.write(0, &bytes)?;
            Database::builder().create_with_backend(memory)
        };
        let (_, found) = Self::closed(&path).checked(dir, copy)?;
        Ok(Some(found))
    }

    /// Returns the path of the database in the state folder `dir`.
    pub fn path_in(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    fn closed(path: &Arc<Path>) -> Self {
        let inner = Inner { database: None, unsure: BTreeMap::new() };
        Self { inner: Arc::new(Mutex::new(inner)), path: path.clone() }
    }

    /// Returns the path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file and reads it. Checks every page against its checksum first. Without this check, a damaged value could be
    /// read as a valid setting.
    fn checked(
        &self,
        dir: &Path,
        open: impl FnOnce() -> Result<Database, DatabaseError>,
    ) -> Result<(Database, Found), StoreError> {
        let opened = || {
            let mut database = open().map_err(|e| match e {
                DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { dir: dir.into() },
                other => database_error(&self.path, other),
            })?;
            if !database.check_integrity().map_err(|e| database_error(&self.path, e))? {
                return Err(database_error(&self.path, "the database is damaged"));
            }
            let found = self.read(&database)?;
            Ok((database, found))
        };
        // Some damage makes the database panic.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(opened));
        opened.unwrap_or_else(|_| Err(database_error(&self.path, "the database is damaged")))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic can leave an uncommitted transaction at most, and the database ignores such a transaction.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, database: &Database) -> Result<Found, StoreError> {
        let fail = |e: redb::Error| self.fail(e);
        let write = database.begin_write().map_err(|e| fail(e.into()))?;
        let schema = {
            let mut meta = write.open_table(META).map_err(|e| fail(e.into()))?;
            write.open_table(ROWS).map_err(|e| fail(e.into()))?;
            let schema = meta.get("schema").map_err(|e| fail(e.into()))?.map(|v| v.value());
            if schema.is_none() {
                meta.insert("schema", SCHEMA).map_err(|e| fail(e.into()))?;
            }
            schema
        };
        if let Some(found) = schema.filter(|&found| found != SCHEMA) {
            return Err(StoreError::Schema { path: self.path.to_path_buf(), found });
        }
        write.commit().map_err(|e| fail(e.into()))?;
        let read = database.begin_read().map_err(|e| fail(e.into()))?;
        let table = read.open_table(ROWS).map_err(|e| fail(e.into()))?;
        let mut rows = Vec::new();
        for entry in table.iter().map_err(|e| fail(e.into()))? {
            let (key, value) = entry.map_err(|e| fail(e.into()))?;
            let row = Row::parse(key.value(), value.value()).map_err(|message| StoreError::Row {
                path: self.path.to_path_buf(),
                key: key.value().into(),
                message,
            })?;
            rows.push(row);
        }
        let meta = read.open_table(META).map_err(|e| fail(e.into()))?;
        let seeded = meta.get("seeded").map_err(|e| fail(e.into()))?.is_some();
        Ok(Found { is_new: !seeded, rows })
    }

    /// Makes the changes durable, all or none. Blocks. After a failure, such as a full disk, the commit can be tried again.
    ///
    /// # Errors
    /// [`StoreError::Database`]. Nothing has changed then.
    pub fn commit_blocking(&self, changes: &[RowChange]) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let database = match inner.database.take() {
            Some(database) => database,
            None => Database::create(&*self.path).map_err(|e| database_error(&self.path, e))?,
        };
        write(&database, &mut inner.unsure, changes).map_err(|e| self.fail(e))?;
        inner.database = Some(database);
        Ok(())
    }

    /// Runs [`commit_blocking`](Self::commit_blocking) on a thread of its own.
    ///
    /// # Errors
    /// The errors of [`commit_blocking`](Self::commit_blocking).
    pub async fn commit(&self, changes: Vec<RowChange>) -> Result<(), StoreError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || store.commit_blocking(&changes)).await {
            Ok(result) => result,
            Err(e) => Err(StoreError::Database {
                path: self.path.to_path_buf(),
                message: format!("the thread that commits died: {e}"),
            }),
        }
    }

    fn fail(&self, e: redb::Error) -> StoreError {
        database_error(&self.path, e)
    }
}

/// Runs one transaction. First writes the values in `unsure`, because failed transactions may have changed those keys. Then
/// makes the changes. A failed transaction can be on the disk nevertheless. So if this transaction fails, its keys stay in
/// `unsure`.
fn write(
    database: &Database,
    unsure: &mut BTreeMap<String, Option<String>>,
    changes: &[RowChange],
) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    {
        write.open_table(META)?.insert("seeded", 1)?;
        let mut rows = write.open_table(ROWS)?;
        for (key, value) in &*unsure {
            match value {
                Some(value) => drop(rows.insert(key.as_str(), value.as_str())?),
                None => drop(rows.remove(key.as_str())?),
            }
        }
        for change in changes {
            let (key, before) = match change {
                RowChange::Put(row) => {
                    let (key, json) = (row.key(), row.json());
                    let before =
                        rows.insert(key.as_str(), json.as_str())?.map(|value| value.value().to_owned());
                    (key, before)
                }
                RowChange::Remove(key) => {
                    let before = rows.remove(key.as_str())?.map(|value| value.value().to_owned());
                    (key.clone(), before)
                }
            };
            unsure.entry(key).or_insert(before);
        }
    }
    write.commit()?;
    unsure.clear();
    Ok(())
}

/// Makes the database if it is missing. Writes a file with a temporary name, and renames the file when the database is
/// complete. Without the rename, a crash could leave an incomplete database, which can't be opened.
fn make_whole(dir: &Path, path: &Path) -> Result<(), StoreError> {
    let io = |error| StoreError::Io { path: path.to_path_buf(), error };
    let parent = File::open(dir).map_err(io)?;
    // Without the lock, two processes could remove or rename each other's new file. The result is ignored, because some file
    // systems have no such lock.
    let _ = parent.lock();
    if path.try_exists().map_err(io)? {
        return Ok(());
    }
    let new = dir.join("state.redb.new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    make_private(&new).map_err(io)?;
    drop(Database::create(&new).map_err(|e| database_error(&new, e))?);
    std::fs::rename(&new, path).map_err(io)?;
    // The file's entry in the folder must survive a crash too.
    parent.sync_all().map_err(io)
}

/// Makes the file if it is missing. Only the file's owner may read or write it. Sets these rights also on an existing file.
fn make_private(path: &Path) -> std::io::Result<()> {
    // If the path is a FIFO, this function would block without the flag.
    let (flags, mode) = (nix::libc::O_NONBLOCK, 0o600);
    let options = &mut OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(mode).custom_flags(flags).open(path)?;
    match file.metadata()?.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => file.set_permissions(Permissions::from_mode(0o600)),
    }
}

fn database_error(path: &Path, e: impl std::fmt::Display) -> StoreError {
    StoreError::Database { path: path.to_path_buf(), message: e.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_config::{Host, Pool};

    fn host(n: u32) -> Row {
        Row::Host(Host { name: format!("h{n}"), nqn: format!("nqn.2026-01.org.example:{n}") })
    }

    #[test]
    fn rows_survive_and_changes_are_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, found) = Store::open(dir.path()).expect("a store");
        assert_eq!(found, Found { rows: vec![], is_new: true });
        let pool = Row::Pool(Pool { name: "h1".into(), backends: vec!["a".into()] });
        store.commit_blocking(&[host(1), host(2), pool.clone()].map(RowChange::Put)).expect("stored");
        store.commit_blocking(&[RowChange::Remove(host(1).key()), RowChange::Put(host(3))]).expect("stored");
        let locked = Store::open(dir.path()).err().expect("it is locked").to_string();
        assert_eq!(
            locked,
            format!(
                "another trefoild uses the state folder {}: stop it, or use another `state_dir`",
                dir.path().display()
            )
        );
        drop(store);
        let (_store, found) = Store::open(dir.path()).expect("the store again");
        assert_eq!(found, Found { rows: vec![host(2), host(3), pool], is_new: false });
    }

    #[test]
    fn only_its_owner_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.redb");
        let mode = || std::fs::metadata(&path).expect("the file").permissions().mode() & 0o777;
        drop(Store::open(dir.path()).expect("a store"));
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("the file is readable by all");
        drop(Store::open(dir.path()).expect("a store"));
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn a_store_whose_making_was_cut_short_is_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let half = dir.path().join("state.redb.new");
        // The file is not a database yet: it begins with zeros.
        std::fs::write(&half, [0; 8192]).expect("written");
        let (store, found) = Store::open(dir.path()).expect("a store");
        assert_eq!(found, Found { rows: vec![], is_new: true });
        store.commit_blocking(&[RowChange::Put(host(1))]).expect("stored");
        drop(store);
        assert!(!half.exists(), "the incomplete file is still there");
        assert_eq!(Store::open(dir.path()).expect("the store again").1.rows, [host(1)]);
    }

    #[test]
    fn an_error_says_its_cause_once() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("file"), "").expect("written");
        let error = Store::open(&dir.path().join("file/state")).err().expect("no directory");
        // The message already contains the cause. With a source as well, a caller that prints the chain of causes would print
        // the cause twice.
        assert!(std::error::Error::source(&error).is_none() && error.to_string().contains("Not a directory"));
    }

    #[test]
    fn a_copy_taken_at_any_moment_opens() {
        // After a crash, the file has its content from some moment between commits.
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = Store::open(dir.path()).expect("a store");
        for n in 0..20 {
            store.commit_blocking(&[RowChange::Put(host(n))]).expect("stored");
            let copy = tempfile::tempdir().expect("a directory");
            std::fs::copy(dir.path().join("state.redb"), copy.path().join("state.redb")).expect("copied");
            let (_copy, found) = Store::open(copy.path()).expect("the copy");
            assert_eq!(found.rows.len(), n as usize + 1);
        }
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = Store::open(dir.path()).expect("a store");
        let write = store.lock().database.as_ref().expect("open").begin_write().expect("a transaction");
        write.open_table(META).expect("the table").insert("schema", SCHEMA + 1).expect("written");
        write.commit().expect("committed");
        drop(store);
        assert!(
            matches!(Store::open(dir.path()), Err(StoreError::Schema { found, .. }) if found == SCHEMA + 1)
        );
    }

    #[test]
    fn garbage_is_refused_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.redb");
        std::fs::write(&path, vec![7; 8192]).expect("written");
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Database { .. })));
        assert_eq!(std::fs::read(&path).expect("read"), vec![7; 8192]);
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = Store::open(dir.path()).expect("a store");
        store.commit_blocking(&[host(1), host(2)].map(RowChange::Put)).expect("stored");
        drop(store);
        let sound = std::fs::read(dir.path().join("state.redb")).expect("read");
        let damaged = tempfile::tempdir().expect("a directory");
        let name = b"org.example:1";
        let named =
            (0..sound.len()).filter(|&at| sound[at..].starts_with(name)).map(|at| at + name.len() - 1);
        let mut refused = 0;
        for at in named.chain((0..sound.len()).step_by(499)) {
            let mut bytes = sound.clone();
            bytes[at] ^= 8;
            std::fs::write(damaged.path().join("state.redb"), &bytes).expect("written");
            match Store::open(damaged.path()) {
                Ok((_, found)) => assert_eq!(found.rows, [host(1), host(2)], "with byte {at} changed"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 0, "no changed byte was detected, not even in a host's name");
    }
}
