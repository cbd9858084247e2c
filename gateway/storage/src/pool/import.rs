//! Presenting a backend 1:1, as it is, without a pool.
//!
//! Nothing is written to the backend, so what it holds stays readable without us, and control's own
//! state is the only place that knows of the import. The LUN's identity is the one that control was told, else the
//! namespace's own where it has one and no other LUN has it, else a random one. So a namespace of an array is the same disk
//! to its hosts after it is released and imported again, and after control's state is lost. The backend must be up to
//! be imported; afterwards it may come and go.

use super::create::{CreatePoolError, check_unused};
use super::format::{Damage, LABELS_BYTES, is_name};
use super::{BackendInfo, IoError, PoolIo, Uuid};
use crate::topology::Extent;

/// A backend that is a LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The LUN's UUID; see the module.
    pub uuid: Uuid,
    /// Its NGUID: likewise.
    pub nguid: [u8; 16],
    /// Its name.
    pub name: String,
    /// The backend.
    pub backend: BackendInfo,
}

/// Why a backend can't be imported or released.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The name doesn't do.
    #[error("{0:?} can't name a LUN")]
    Name(String),
    /// Its blocks can't be presented.
    #[error("backend {0} has neither 512- nor 4096-byte blocks, or none at all")]
    BlockSize(String),
    /// It is a pool's.
    #[error("backend {backend} belongs to pool {pool} ({uuid})")]
    Pooled {
        /// The backend.
        backend: String,
        /// The pool's name.
        pool: String,
        /// The pool.
        uuid: Uuid,
    },
    /// It may be a pool's.
    #[error("backend {backend} has a damaged label of a pool: {damage}")]
    Damaged {
        /// The backend.
        backend: String,
        /// What is wrong with it.
        damage: Damage,
    },
    /// It is presented, and the caller didn't insist.
    #[error("LUN {0} is in use")]
    InUse(String),
    /// I/O failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Makes a LUN of a whole backend. Reads its first 8 KiB and writes nothing.
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
        // No pool has room on it.
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
    /// Size in blocks; what is left of a block at the end is not presented.
    pub fn blocks(&self) -> u64 {
        self.backend.len_bytes / u64::from(self.backend.block_bytes)
    }

    /// Where its bytes are, for the topology.
    pub fn extents(&self) -> Vec<Extent> {
        let len = self.blocks() * u64::from(self.backend.block_bytes);
        vec![Extent { lun_offset: 0, len, backend: self.backend.id, backend_offset: 0 }]
    }

    /// Ends the import and gives the backend back, as its hosts left it.
    ///
    /// # Errors
    /// [`ImportError::InUse`] if `in_use` and not `force`.
    pub fn release(self, in_use: bool, force: bool) -> Result<BackendInfo, ImportError> {
        if in_use && !force { Err(ImportError::InUse(self.name)) } else { Ok(self.backend) }
    }
}
