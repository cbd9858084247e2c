//! Makes, grows and deletes LUNs in pools, and checks the backends of LUNs that are in no pool.

use super::through::Through;
use super::{Lives, Pools, ready};
use crate::engine::cores::Cores;
use crate::engine::topology::Placed;
use crate::error::{Fault, Refusal};
use std::time::{SystemTime, UNIX_EPOCH};
use trefoil_config::{Bytes, Lun, default_serial};
use trefoil_storage::Fault as IoFault;
use trefoil_storage::pool::{
    ImportError, LunError, NewLun, create_lun, delete_lun, grow_lun, import_namespace, undo_growth,
};
use uuid::Uuid;

impl Pools {
    /// Makes a LUN in its pool. If the pool already has the LUN, grows it to the size in `lun` instead. Returns the LUN's
    /// place, and whether the LUN is new.
    ///
    /// # Errors
    /// There is no space, the name or the identity is taken, or a backend fails.
    pub async fn create_lun(
        &mut self,
        cores: &Cores,
        lives: &Lives,
        lun: &Lun,
    ) -> Result<(Placed, bool), Refusal> {
        let uuid = lun.uuid.unwrap_or_default();
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
            nguid: lun.nguid_bytes().unwrap_or(uuid.into_bytes()),
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

    /// Grows a LUN to the size in `lun`. Changes nothing if the LUN isn't smaller. Returns the LUN's place.
    ///
    /// # Errors
    /// There is no space, or a backend fails.
    pub async fn grow_lun(&mut self, cores: &Cores, lives: &Lives, lun: &Lun) -> Result<Placed, Refusal> {
        let name = lun.pool.as_deref().unwrap_or_default();
        let mut pool = self.take_usable(cores, lives, name).await?;
        let uuid = lun.uuid.unwrap_or_default();
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

    /// Shrinks a LUN back to the size in `lun`, after a growth that was not published to the cores.
    ///
    /// # Errors
    /// A backend fails.
    pub async fn undo_growth(&mut self, cores: &Cores, lives: &Lives, lun: &Lun) -> Result<(), Refusal> {
        let name = lun.pool.as_deref().unwrap_or_default();
        let mut pool = self.take_usable(cores, lives, name).await?;
        let blocks = lun.size.unwrap_or_default().0 / u64::from(lun.block_bytes.unwrap_or(512));
        let uuid = lun.uuid.unwrap_or_default();
        let undone = undo_growth(&Through::new(cores, lives), &mut pool, uuid, blocks).await;
        self.open.insert(name.into(), pool);
        undone.map_err(lun_refusal)
    }

    /// Deletes a LUN from its pool. No core may present the LUN.
    ///
    /// # Errors
    /// A backend fails.
    pub async fn delete_lun(&mut self, cores: &Cores, lives: &Lives, lun: &Lun) -> Result<(), Refusal> {
        let name = lun.pool.as_deref().unwrap_or_default();
        self.delete_in(cores, lives, name, lun.uuid.unwrap_or_default()).await
    }

    pub(super) async fn delete_in(
        &mut self,
        cores: &Cores,
        lives: &Lives,
        name: &str,
        uuid: Uuid,
    ) -> Result<(), Refusal> {
        let mut pool = self.take_usable(cores, lives, name).await?;
        let deleted = match pool.lun(uuid) {
            Some(_) => delete_lun(&Through::new(cores, lives), &mut pool, uuid, false, false).await,
            None => Ok(()),
        };
        self.open.insert(name.into(), pool);
        deleted.map_err(lun_refusal)
    }
}

/// Checks that the backend of `lun`, which presents the whole backend, is not a member of a pool. With `was_lun`, the request
/// gives the LUN's UUID, so the LUN existed before. A pool's label on the backend is then data of the LUN's hosts.
///
/// # Errors
/// The backend belongs to a pool, or can't be read. Doesn't wait for a lost array.
pub async fn check_import(cores: &Cores, lives: &Lives, lun: &Lun, was_lun: bool) -> Result<(), Refusal> {
    let backend = ready(cores, lives, lun.backend.as_deref().unwrap_or_default())?;
    let io = Through::new(cores, lives);
    let uuid = lun.uuid.unwrap_or_default();
    let nguid = lun.nguid_bytes().unwrap_or(uuid.into_bytes());
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
