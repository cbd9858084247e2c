//! A pool's own record of the hosts that see its LUNs. If the database is lost, the record restores subsystems, namespaces and
//! NSIDs.
//!
//! This module defines the record's format, and adds records to a state that was made from a document. A pool's record holds
//! the subsystems that show LUNs of that pool. Each subsystem has all of its properties, and the namespaces that are LUNs of
//! that pool. The record names LUNs by UUID, and hosts by NQN. The record is JSON, version 1:
//! `{"version":1,"revision":N,"subsystems":[…],"deleting":[…]}`. The subsystems have the form that they have in a document.
//! `deleting` lists the UUIDs of LUNs that are about to be deleted. The field is left out if there are none.
//!
//! If there is a database, only `deleting` is read from the record, to finish a deletion that a crash cut short. The other
//! fields are not read, because the database is newer or equal, and the record is updated from the database. A deletion writes
//! the record first, then the database, and then deletes the LUN.

use crate::state::{State, fill_subsystem};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use trefoil_config::{Namespace, Subsystem};
use uuid::Uuid;

/// The version that this program writes, and the only one that it reads.
const VERSION: u32 = 1;

/// The record that a pool keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Counts the changes of all pools. If two records hold the same subsystem, the record with the higher revision is valid.
    pub revision: u64,
    subsystems: Vec<Subsystem>,
    /// LUNs that, when the record was written, the pool still held and the state no longer had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    deleting: Vec<Uuid>,
}

/// The part of a record that shows whether the rest can be read.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

impl Record {
    /// Returns the record that `pool` must keep in this state.
    pub fn of(state: &State, pool: &str, revision: u64) -> Self {
        let uuid = |name: &str| {
            let lun = state.luns.get(name).filter(|lun| lun.pool.as_deref() == Some(pool));
            lun.and_then(|lun| lun.uuid)
        };
        let shown = |s: &Subsystem| {
            let namespaces = s.namespaces.iter();
            let kept =
                namespaces.filter_map(|ns| Some(Namespace { lun: uuid(&ns.lun)?.to_string(), ..ns.clone() }));
            Subsystem { namespaces: kept.collect(), ..s.clone() }
        };
        let subsystems = state.subsystems.values().map(shown).filter(|s| !s.namespaces.is_empty());
        Self { version: VERSION, revision, subsystems: subsystems.collect(), deleting: Vec::new() }
    }

    /// Adds the deletions to the record. A deletion is a LUN that the pool holds (`held`) and `state` lacks.
    pub fn deleting(mut self, held: impl Iterator<Item = Uuid>, state: &State) -> Self {
        self.deleting = held.filter(|uuid| !state.has_lun(*uuid)).collect();
        self
    }

    /// Returns the LUNs whose deletion has begun. If the database still has a LUN, the deletion of this LUN has not begun.
    pub fn deleted<'a>(&'a self, state: &'a State) -> impl Iterator<Item = Uuid> + 'a {
        self.deleting.iter().copied().filter(|uuid| !state.has_lun(*uuid))
    }

    /// Reads a pool's record. Returns `None` if the pool never kept a record.
    ///
    /// # Errors
    /// The text says what is wrong with the record, for the log.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if head.version != VERSION {
            return Err(format!("the record's version {} is not known", head.version));
        }
        let record: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        match record.revision {
            u64::MAX => Err("the record's revision has no next number".into()),
            _ => Ok(Some(record)),
        }
    }

    /// Returns the record as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        // Serialization fails only for a map whose keys are not strings, or for a failing `Serialize`. Neither occurs here.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns whether the pool can keep this record in `state`, or must write `wanted`, the exact record for `state`. A record
    /// may lack the deletion of a LUN that no subsystem showed: if the LUN exists again after a crash, that does no harm. A
    /// record must not list a LUN as deleted that `state` has again.
    pub fn does_for(&self, wanted: &Self, state: &State) -> bool {
        self.subsystems == wanted.subsystems && self.deleted(state).count() == self.deleting.len()
    }
}

/// Adds the records of pools to a state that was made from a document. For a pool's LUNs, the record overrides the document. If
/// the document has a namespace of such a LUN and the record lacks it, the namespace was removed later, and isn't shown. `held`
/// has the names, by UUID, of the LUNs that the pools held before the document was read.
pub fn adopt(state: &mut State, held: &BTreeMap<Uuid, String>, records: Vec<Record>) {
    let names: BTreeSet<&String> = held.values().collect();
    for subsystem in state.subsystems.values_mut() {
        subsystem.namespaces.retain(|ns| !names.contains(&ns.lun));
    }
    let mut records = records;
    records.sort_by_key(|record| record.revision);
    for kept in records.into_iter().flat_map(|record| record.subsystems) {
        let named = kept.namespaces.iter().filter_map(|ns| {
            let lun = held.get(&Uuid::try_parse(&ns.lun).ok()?)?;
            Some(Namespace { lun: lun.clone(), ..ns.clone() })
        });
        let mut namespaces: Vec<Namespace> = named.collect();
        let others = state.subsystems.get(&kept.nqn).map(|s| s.namespaces.clone()).unwrap_or_default();
        for other in others {
            if namespaces.iter().any(|ns| ns.nsid == other.nsid) {
                tracing::warn!(
                    nqn = kept.nqn,
                    nsid = other.nsid,
                    lun = other.lun,
                    "a namespace of the document is not shown, because a pool's LUN has its NSID"
                );
            } else {
                namespaces.push(other);
            }
        }
        if !kept.listeners.is_empty() {
            state.transport.get_or_insert_default();
        }
        let mut subsystem = Subsystem { namespaces, ..kept };
        fill_subsystem(&mut subsystem);
        state.subsystems.insert(subsystem.nqn.clone(), subsystem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_config::Config;

    const DOCUMENT: &str = r#"
        [[backend]]
        name = "x"
        type = "null"
        size = "64MiB"
        [[backend]]
        name = "y"
        type = "null"
        size = "64MiB"
        [[pool]]
        name = "p"
        backends = ["x"]
        [[lun]]
        name = "a"
        pool = "p"
        size = "4MiB"
        uuid = "00000000-0000-4000-8000-00000000000a"
        [[lun]]
        name = "b"
        pool = "p"
        size = "4MiB"
        uuid = "00000000-0000-4000-8000-00000000000b"
        [[lun]]
        name = "w"
        backend = "y"
        [[subsystem]]
        nqn = "nqn.2026-01.org.example:s"
        hosts = ["nqn.2026-01.org.example:h"]
        namespaces = [{ nsid = 1, lun = "a" }, { nsid = 3, lun = "w" }]
    "#;

    fn state() -> State {
        State::from_config(&Config::parse("t", DOCUMENT).expect("sound"), &State::default())
    }

    fn held(state: &State) -> BTreeMap<Uuid, String> {
        let pooled = state.luns.values().filter(|lun| lun.pool.is_some());
        pooled.map(|lun| (lun.uuid.expect("a UUID"), lun.name.clone())).collect()
    }

    #[test]
    fn what_was_changed_since_the_document_comes_back() {
        let mut now = state();
        let s = now.subsystems.get_mut("nqn.2026-01.org.example:s").expect("the subsystem");
        s.hosts.push("nqn.2026-01.org.example:h2".into());
        s.serial = Some("OTHER".into());
        s.namespaces.retain(|ns| ns.lun != "a");
        let only = Some(vec!["nqn.2026-01.org.example:h2".to_owned()]);
        s.namespaces.push(Namespace { nsid: 7, lun: "b".into(), hosts: only });
        let record = Record::of(&now, "p", 4);
        let read = Record::parse(&record.bytes()).expect("sound").expect("a record");
        assert_eq!(read, record);
        let mut again = state();
        let luns = held(&again);
        adopt(&mut again, &luns, vec![read]);
        assert_eq!(again.subsystems, now.subsystems);
        // A second `adopt` changes nothing.
        let kept = Record::of(&again, "p", 5);
        assert!(record.does_for(&kept, &again) && kept != record);
    }

    #[test]
    fn a_deletion_is_known_until_its_lun_is_there_again() {
        let now = state();
        let ids: BTreeMap<String, Uuid> = held(&now).into_iter().map(|(uuid, name)| (name, uuid)).collect();
        let mut next = now.clone();
        next.luns.remove("a");
        next.subsystems.values_mut().for_each(|s| s.namespaces.retain(|ns| ns.lun != "a"));
        let of = |state: &State, held: &[&str]| {
            Record::of(state, "p", 1).deleting(held.iter().map(|name| ids[*name]), state)
        };
        let before = of(&now, &["a", "b"]);
        let record = of(&next, &["a", "b"]);
        assert!(!before.does_for(&record, &next), "it is written with the change");
        let read = Record::parse(&record.bytes()).expect("sound").expect("a record");
        // In the first case the database has stored the change. In the second case it has not.
        assert_eq!(read.deleted(&next).collect::<Vec<_>>(), [ids["a"]]);
        assert_eq!(read.deleted(&now).count(), 0);
        // When the LUN is gone from the pool, the record needs no change. When a LUN with the same UUID returns, the record
        // must be written.
        assert!(record.does_for(&of(&next, &["b"]), &next));
        let mut again = next.clone();
        again.luns.insert("a".into(), now.luns["a"].clone());
        assert!(!record.does_for(&of(&again, &["a", "b"]), &again));
    }

    #[test]
    fn a_namespace_that_was_removed_stays_removed() {
        let mut now = state();
        now.subsystems.values_mut().for_each(|s| s.namespaces.retain(|ns| ns.lun != "a"));
        let record = Record::of(&now, "p", 1);
        let mut again = state();
        let luns = held(&again);
        adopt(&mut again, &luns, vec![record]);
        assert_eq!(again.subsystems, now.subsystems);
    }

    #[test]
    fn the_newer_record_knows_the_subsystem_and_each_its_luns() {
        let (mut old, mut new) = (state(), state());
        old.luns.get_mut("b").expect("b").pool = Some("q".into());
        let s = old.subsystems.get_mut("nqn.2026-01.org.example:s").expect("the subsystem");
        s.allow_any_host = true;
        s.namespaces.push(Namespace { nsid: 2, lun: "b".into(), hosts: None });
        new.subsystems.values_mut().for_each(|s| s.hosts.clear());
        let mut again = state();
        let luns = held(&again);
        adopt(&mut again, &luns, vec![Record::of(&new, "p", 9), Record::of(&old, "q", 8)]);
        let s = &again.subsystems["nqn.2026-01.org.example:s"];
        assert!(!s.allow_any_host && s.hosts.is_empty());
        assert_eq!(
            s.namespaces.iter().map(|ns| (ns.nsid, ns.lun.as_str())).collect::<Vec<_>>(),
            [(1, "a"), (2, "b"), (3, "w")]
        );
    }

    #[test]
    fn a_clash_of_nsids_is_the_pools() {
        let mut now = state();
        now.subsystems
            .values_mut()
            .for_each(|s| s.namespaces = vec![Namespace { nsid: 3, lun: "a".into(), hosts: None }]);
        let record = Record::of(&now, "p", 1);
        let mut again = state();
        let luns = held(&again);
        adopt(&mut again, &luns, vec![record]);
        assert_eq!(again.subsystems, now.subsystems);
    }

    #[test]
    fn what_cant_be_read_is_told() {
        assert_eq!(Record::parse(b""), Ok(None));
        assert!(Record::parse(br#"{"version":2,"what":"ever"}"#).expect_err("newer").contains("version 2"));
        assert!(Record::parse(b"{").is_err());
        let last = format!(r#"{{"version":1,"revision":{},"subsystems":[]}}"#, u64::MAX);
        assert!(Record::parse(last.as_bytes()).is_err_and(|why| why.contains("no next")));
    }
}
