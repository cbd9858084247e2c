//! Updates the state's copy of the pools' LUNs, and the pools' records of the hosts that see these LUNs.

use super::through::Through;
use super::{Lives, Pools};
use crate::engine::cores::Cores;
use crate::error::{Fault, Refusal};
use crate::exports::{self, Record};
use crate::state::State;
use std::collections::BTreeMap;
use trefoil_config::{Bytes, Lun};
use trefoil_storage::pool::{ExportsError, PoolLun, store_exports};
use uuid::Uuid;

impl Pools {
    /// Updates the copy in `state` from the LUNs, identities and sizes that the pools hold. Leaves out the LUNs in `except`.
    /// LUNs match by UUID. With `by_name`, a LUN that no pool has by UUID also matches the pool's LUN of the same name.
    /// `by_name` must be set only for a state that was made from a document. In other states, a host could see a foreign disk
    /// in place of its own disk if both have the same name. A LUN is left out if another LUN has its identity. Returns a reason
    /// for each LUN that is left out.
    pub fn adopt_into(&self, state: &mut State, except: &[Uuid], by_name: bool) -> Vec<Refusal> {
        let mut left_out = Vec::new();
        for (name, pool) in &self.open {
            let is_wanted = |lun: &&PoolLun| lun.is_visible() && !except.contains(&lun.uuid);
            for lun in pool.table().luns.iter().filter(is_wanted) {
                left_out.extend(adopt(state, name, lun, by_name).err());
            }
        }
        left_out
    }

    /// Deletes LUNs that the store no longer has and a pool still holds. Such LUNs remain if the gateway dies during a
    /// deletion. Returns the LUNs that can't be deleted yet.
    pub async fn finish_deletions(&mut self, cores: &Cores, lives: &Lives, state: &State) -> Vec<Uuid> {
        let held =
            |name: &String, uuid: Uuid| self.open.get(name).is_some_and(|pool| pool.lun(uuid).is_some());
        let begun = self.records().flat_map(|(name, record)| {
            let deleted: Vec<Uuid> = record.deleted(state).filter(|uuid| held(name, *uuid)).collect();
            deleted.into_iter().map(move |uuid| (name.clone(), uuid))
        });
        let begun: Vec<(String, Uuid)> = begun.collect();
        let mut left = Vec::new();
        for (pool, uuid) in begun {
            match self.delete_in(cores, lives, &pool, uuid).await {
                Ok(()) => tracing::warn!(pool, %uuid, "the gateway finished the deletion of a LUN"),
                Err(error) => {
                    tracing::error!(%error, pool, %uuid, "the deletion of a LUN was cut short and can't be finished yet");
                    left.push(uuid);
                }
            }
        }
        left
    }

    /// Returns the records of the open pools: which hosts see their LUNs.
    fn records(&self) -> impl Iterator<Item = (&String, Record)> {
        self.open.iter().filter_map(|(name, pool)| match Record::parse(&pool.table().exports) {
            Ok(record) => record.map(|record| (name, record)),
            Err(why) => {
                tracing::error!(
                    pool = name,
                    why,
                    "the pool's record of which hosts see its LUNs can't be read"
                );
                None
            }
        })
    }

    /// Adds the records of the open pools to a state that was made from a document.
    pub fn adopt_exports(&self, state: &mut State) {
        let mut held = BTreeMap::new();
        let mut records = Vec::new();
        for (name, record) in self.records() {
            tracing::warn!(
                pool = name,
                "hosts see the pool's LUNs as the pool's record says, not as the document says"
            );
            let luns = self.open.get(name).into_iter().flat_map(|pool| &pool.table().luns);
            for uuid in luns.map(|lun| lun.uuid) {
                let known = state.luns.values().find(|lun| lun.uuid == Some(uuid));
                held.extend(known.map(|lun| (uuid, lun.name.clone())));
            }
            records.push(record);
        }
        exports::adopt(state, &held, records);
    }

    /// Stores in every pool which hosts see its LUNs in this state. A pool that accepts no changes is left out. Such a pool is
    /// updated when it accepts changes again.
    ///
    /// # Errors
    /// The record is too large for the pool, or a backend fails.
    pub async fn keep_exports(&mut self, cores: &Cores, lives: &Lives, state: &State) -> Result<(), Refusal> {
        let kept: BTreeMap<String, Record> =
            self.records().map(|(name, record)| (name.clone(), record)).collect();
        let revision = kept.values().map(|record| record.revision).max().unwrap_or(0) + 1;
        let names: Vec<String> = self.open.keys().cloned().collect();
        for name in names {
            let held = self
                .open
                .get(&name)
                .into_iter()
                .flat_map(|pool| pool.table().luns.iter().map(|lun| lun.uuid));
            let wanted = Record::of(state, &name, revision).deleting(held, state);
            if kept.get(&name).is_some_and(|kept| kept.does_for(&wanted, state)) {
                continue;
            }
            // The backends of a pool that `state` lacks may be unreachable. That can be the reason why the pool is deleted.
            let is_leaving = !state.pools.contains_key(&name);
            let is_lost = is_leaving && self.check_reachable(cores, &name).is_err();
            if is_lost || self.is_missing_members(&name) {
                tracing::warn!(
                    pool = name,
                    "the pool lacks a backend, so it can't store which hosts see its LUNs"
                );
                continue;
            }
            match self.store_exports(cores, lives, &name, wanted.bytes()).await {
                Err(why) if is_leaving => {
                    tracing::warn!(%why, pool = name, "the removed pool can't record that its LUNs are deleted");
                }
                stored => stored?,
            }
        }
        Ok(())
    }

    async fn store_exports(
        &mut self,
        cores: &Cores,
        lives: &Lives,
        name: &str,
        bytes: Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut pool = self.take_usable(cores, lives, name).await?;
        let stored = store_exports(&Through::new(cores, lives), &mut pool, bytes).await;
        self.open.insert(name.into(), pool);
        stored.map_err(|e| {
            let fault = match &e {
                ExportsError::Table { .. } => Fault::NoSpace,
                ExportsError::Frozen { .. } | ExportsError::Io { .. } => Fault::Device,
            };
            Refusal::new(fault, e.to_string())
        })
    }
}

/// Adds a LUN of a pool to the state, or replaces the state's entry for the LUN.
///
/// # Errors
/// Another LUN has the same identity, as after a copy of a disk. The state is then unchanged.
fn adopt(state: &mut State, pool: &str, found: &PoolLun, by_name: bool) -> Result<(), Refusal> {
    let uuid = found.uuid;
    let is_here = |lun: &&Lun| lun.pool.as_deref() == Some(pool);
    let by_uuid = state.luns.values().filter(is_here).find(|lun| lun.uuid == Some(uuid));
    let by_uuid = by_uuid.map(|lun| lun.name.clone());
    let same_name = |lun: &&Lun| by_name && is_here(lun);
    let known = by_uuid.or_else(|| state.luns.get(&found.name).filter(same_name).map(|l| l.name.clone()));
    let name = known.clone().unwrap_or_else(|| match state.luns.contains_key(&found.name) {
        // The new name has the maximum length of a name.
        true => format!("{:.26}-{uuid}", found.name),
        false => found.name.clone(),
    });
    let size = Bytes(found.blocks * u64::from(found.block_bytes));
    // The document of a first start may ask for a larger size. The gateway then grows the LUN.
    let wanted = state.luns.get(&name).and_then(|lun| lun.size).unwrap_or(size);
    let lun = Lun {
        name: name.clone(),
        pool: Some(pool.into()),
        backend: None,
        size: Some(size.max(wanted)),
        block_bytes: Some(found.block_bytes),
        uuid: Some(uuid),
        nguid: Some(Uuid::from_bytes(found.nguid).simple().to_string()),
        read_only: state.luns.get(&name).is_some_and(|lun| lun.read_only),
    };
    if let Some(twin) = state.twin(&lun) {
        let what = format!(
            "pool `{pool}`: LUN `{}` is left out, because LUN `{}` on other backends has the same identity: check whether a \
             disk of one LUN is a copy of the other's disk",
            found.name, twin.name
        );
        return Err(Refusal::new(Fault::Exists, what));
    }
    if known.is_none() {
        tracing::warn!(
            pool,
            lun = name,
            "the pool holds a LUN that the database did not have; the gateway added the LUN"
        );
    }
    state.luns.insert(name, lun);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lun(name: &str, uuid: u8) -> PoolLun {
        PoolLun {
            uuid: Uuid::from_bytes([uuid; 16]),
            nguid: [uuid; 16],
            serial: [b' '; 20],
            nsid: 1,
            name: name.into(),
            created_at_s: 0,
            block_bytes: 512,
            blocks: 8,
            pending_blocks: 0,
            runs: Vec::new(),
        }
    }

    #[test]
    fn a_disk_of_the_same_name_is_not_the_one_that_is_shown() {
        let mut state = State::default();
        let adopt = |state: &mut State, lun: &PoolLun, by_name| {
            adopt(state, "tank", lun, by_name).unwrap_or_else(|e| panic!("{e}"));
        };
        adopt(&mut state, &lun("root", 1), false);
        let before = state.luns["root"].clone();
        adopt(&mut state, &lun("root", 2), false);
        assert_eq!(state.luns["root"], before);
        let name = format!("root-{}", Uuid::from_bytes([2; 16]));
        assert_eq!(state.luns.get(&name).and_then(|lun| lun.uuid), Some(Uuid::from_bytes([2; 16])));
        // A document can name an existing LUN of a pool only by its name.
        adopt(&mut state, &lun("root", 3), true);
        assert_eq!(state.luns["root"].uuid, Some(Uuid::from_bytes([3; 16])));
    }

    #[test]
    fn a_copied_disk_s_lun_is_left_out() {
        let mut state = State::default();
        adopt(&mut state, "tank", &lun("root", 1), false).expect("the first");
        let before = state.clone();
        let nguid = PoolLun { nguid: [1; 16], ..lun("other", 2) };
        for copy in [lun("root", 1), lun("other", 1), nguid] {
            for by_name in [false, true] {
                let refusal = adopt(&mut state, "copy", &copy, by_name).expect_err("a twin");
                let told = format!(
                    "pool `copy`: LUN `{}` is left out, because LUN `root` on other backends",
                    copy.name
                );
                assert!(refusal.message.starts_with(&told), "{refusal}");
                assert_eq!(state, before);
            }
        }
        // The LUN itself does not count as another LUN with the same identity.
        adopt(&mut state, "tank", &lun("root", 1), false).expect("known");
        assert_eq!(state, before);
    }
}
