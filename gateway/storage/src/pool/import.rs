//! Presents a backend 1:1 as a LUN, without a pool.
//!
//! Nothing is written to the backend, so its contents stay readable without the gateway. Only the control plane's own
//! state records the import. The backend must be up for the import; later, it may go down and come back.
//!
//! The LUN's identity is the one given to the control plane. If none is given, the LUN gets the namespace's own
//! identity, if the namespace has one and no other LUN has it. Otherwise, the LUN gets a random identity. So hosts
//! still see a namespace of an array as the same disk after a release and another import, and after a loss of the
//! control plane's state.

use super::create::{CreatePoolError, check_unused};
use super::format::{Damage, LABELS_BYTES, is_name};
use super::{BackendInfo, IoError, PoolIo};
use crate::topology::Extent;
use uuid::Uuid;

/// A backend that is a LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The LUN's UUID; see the module.
    pub uuid: Uuid,
    /// The LUN's NGUID; see the module.
    pub nguid: [u8; 16],
    /// The LUN's name.
    pub name: String,
    /// The backend.
    pub backend: BackendInfo,
}

/// The reason for which a backend can't be imported or released.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The name is not valid.
    #[error("{0:?} can't name a LUN: use 1 to 64 bytes without control characters")]
    Name(String),
    /// The backend's blocks can't be presented.
    #[error("backend {0} has no blocks, or blocks of neither 512 nor 4096 bytes")]
    BlockSize(String),
    /// The backend belongs to a pool.
    #[error("backend {backend} belongs to pool {pool} ({uuid})")]
    Pooled {
        /// The backend.
        backend: String,
        /// The pool's name.
        pool: String,
        /// The pool.
        uuid: Uuid,
    },
    /// The backend may belong to a pool.
    #[error("backend {backend} has a damaged pool label: {damage}")]
    Damaged {
        /// The backend.
        backend: String,
        /// The damage of the label.
        damage: Damage,
    },
    /// The LUN is presented, and the caller did not force the release.
    #[error("LUN {0} is in use")]
    InUse(String),
    /// I/O failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Makes a LUN of a whole backend. Reads the backend's first 8 KiB and writes nothing.
///
/// # Errors
/// [`ImportError`].
pub async fn import_namespace<I: PoolIo>(
    io: &I,
    backend: BackendInfo,
    name: String,
    uuid: Uuid,
    nguid: [u8; 16],
) -> Result<Imported, ImportError> {
    if !is_name(&name) {
        return Err(ImportError::Name(name));
    }
    if !matches!(backend.block_bytes, 512 | 4096) || backend.len_bytes < u64::from(backend.block_bytes) {
        return Err(ImportError::BlockSize(backend.name));
    }
    if backend.len_bytes < LABELS_BYTES {
        // Such a small backend has no room for a pool.
        return Ok(Imported { uuid, nguid, name, backend });
    }
    match check_unused(io, &backend).await {
        Ok(_) => Ok(Imported { uuid, nguid, name, backend }),
        Err(CreatePoolError::InUse { backend, pool, uuid, .. }) => {
            Err(ImportError::Pooled { backend, pool, uuid })
        }
        Err(CreatePoolError::Damaged { backend, damage }) => Err(ImportError::Damaged { backend, damage }),
        Err(CreatePoolError::Io(error)) => Err(error.into()),
        Err(_) => Err(ImportError::BlockSize(backend.name)),
    }
}

impl Imported {
    /// Returns the size in blocks. A partial block at the end is not presented.
    pub fn blocks(&self) -> u64 {
        self.backend.len_bytes / u64::from(self.backend.block_bytes)
    }

    /// Returns the LUN's extents, for the topology.
    pub fn extents(&self) -> Vec<Extent> {
        let len = self.blocks() * u64::from(self.backend.block_bytes);
        vec![Extent { lun_offset: 0, len, backend: self.backend.id, backend_offset: 0 }]
    }

    /// Ends the import and gives the backend back, with its contents as the hosts left them.
    ///
    /// # Errors
    /// [`ImportError::InUse`] if `in_use` and not `force`.
    pub fn release(self, in_use: bool, force: bool) -> Result<BackendInfo, ImportError> {
        if in_use && !force { Err(ImportError::InUse(self.name)) } else { Ok(self.backend) }
    }
}
