//! Makes and destroys pools.

use super::through::Through;
use super::{Lives, Pools, info};
use crate::engine::backends::Live;
use crate::engine::cores::Cores;
use crate::error::{Fault, Refusal};
use trefoil_config::Bytes;
use trefoil_storage::Fault as IoFault;
use trefoil_storage::pool::{
    CreatePoolError, DEFAULT_UNIT_BYTES, DestroyPoolError, Found, Label, NewMember, NewPool, PoolOwner,
    create_pool, destroy_pool, scan,
};
use uuid::Uuid;

impl Pools {
    /// Makes a pool. If the backends already hold a pool with this name and exactly these backends, opens that pool. Returns
    /// whether the pool was made. With `overwrite`, recognised data on the backends may be lost.
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
        // A pool exists as soon as one label is marked ready. When the pool is opened, the other labels are repaired.
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
            // The pool on the backends has further backends, so it is not the pool that was asked for.
            self.close(&spec.name);
        }
        for backend in &backends {
            let own = cores.reports.identity(backend.id);
            let is_it = |live: &Live| own.is_some() && cores.reports.identity(live.id) == own;
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
        let members = backends.into_iter().map(|backend| NewMember { uuid: Uuid::new_v4(), backend });
        let new = NewPool {
            uuid: Uuid::new_v4(),
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

    /// Returns the names of the open pool that the label belongs to, and of the pool's backend for which the label is.
    fn member_of(&self, label: &Label) -> Option<(&str, &str)> {
        let pool = self.open.values().find(|pool| pool.uuid() == label.pool_uuid)?;
        let mut members = pool.table().members.iter().zip(pool.backends());
        let (_, backend) = members.find(|(entry, _)| entry.uuid == label.member_uuid)?;
        Some((pool.name(), &backend.as_ref()?.name))
    }

    /// Destroys a pool without LUNs. A pool that is down or lacks members is only forgotten. A pool that can't be destroyed is
    /// forgotten too: the state no longer has this pool, so the pool must not affect later changes.
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
