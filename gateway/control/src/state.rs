//! The desired state: the objects that the operator asked for, as they are stored.
//!
//! The state has the objects of a [`Config`] by name, without the gateway's own settings. Every object has its identities, and
//! every list names hosts by NQN. Two states are compared row by row. The rows that differ are written to the store.
//!
//! The state doesn't describe what happens at run time. The engine has the sizes that were found, the lost paths and the
//! connected hosts.

mod row;

pub use row::{Row, RowChange};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use trefoil_config::{
    Address, Backend, Config, DISCOVERY_NQN, Discovery, Gateway, Host, Lun, Pool, Subsystem, default_serial,
};
use trefoil_storage::initiator::NamespaceIdentity;
use uuid::Uuid;

/// The TCP transport as SPDK's clients made it. Its values are stored only to be reported to the clients. The limits in force
/// are those of the gateway's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// Commands per I/O queue.
    pub max_queue_depth: u32,
    /// I/O queue pairs per controller.
    pub max_io_qpairs_per_ctrlr: u32,
    /// Bytes of data in a command capsule.
    pub in_capsule_data_size: u32,
    /// Bytes of the largest transfer.
    pub max_io_size: u32,
    /// Commands per admin queue.
    pub max_aq_depth: u32,
    /// `true` if reads end without a response capsule where the host allows it.
    pub c2h_success: bool,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            max_queue_depth: 128,
            max_io_qpairs_per_ctrlr: 127,
            in_capsule_data_size: 8192,
            max_io_size: 1 << 20,
            max_aq_depth: 32,
            c2h_success: true,
        }
    }
}

/// The identity of an array's namespace that is a backend, as the namespace first reported it. A document doesn't contain this
/// identity: the gateway learns from the array which namespace a backend is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayNamespace {
    backend: String,
    nguid: [u8; 16],
    uuid: [u8; 16],
    eui64: [u8; 8],
    block_bytes: u32,
    /// The last known size in bytes, or 0 if the size isn't known. With this size, the gateway can show a LUN to hosts even if
    /// the array is unreachable when the gateway starts.
    #[serde(default)]
    pub len_bytes: u64,
}

impl ArrayNamespace {
    /// Makes the entry for the namespace that answered as `backend`.
    pub fn new(backend: &str, found: NamespaceIdentity) -> Self {
        let NamespaceIdentity { nguid, uuid, eui64, block_bytes } = found;
        Self { backend: backend.into(), nguid, uuid, eui64, block_bytes, len_bytes: 0 }
    }

    /// Returns the identity, which the initiator compares.
    pub fn identity(&self) -> NamespaceIdentity {
        let Self { nguid, uuid, eui64, block_bytes, .. } = *self;
        NamespaceIdentity { nguid, uuid, eui64, block_bytes }
    }
}

/// All objects by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Backends.
    pub backends: BTreeMap<String, Backend>,
    /// Pools.
    pub pools: BTreeMap<String, Pool>,
    /// LUNs, each with its UUID and NGUID.
    pub luns: BTreeMap<String, Lun>,
    /// Subsystems by NQN, each with its serial and model. The namespaces are sorted by NSID.
    pub subsystems: BTreeMap<String, Subsystem>,
    /// The discovery subsystem.
    pub discovery: Discovery,
    /// Names of hosts.
    pub hosts: BTreeMap<String, Host>,
    /// The TCP transport, once there is one.
    pub transport: Option<Transport>,
    /// The namespace that answered as each backend on an array.
    pub namespaces: BTreeMap<String, ArrayNamespace>,
}

impl State {
    /// Returns the state that a document asks for. If the document doesn't give an identity, the identity is taken from the
    /// object of the same name in `now`. If there is no such object, the identity is generated.
    pub fn from_config(config: &Config, now: &Self) -> Self {
        let mut state = Self {
            backends: config.backends.iter().map(|b| (b.name.clone(), b.clone())).collect(),
            pools: config.pools.iter().map(|p| (p.name.clone(), p.clone())).collect(),
            hosts: config.hosts.iter().map(|h| (h.name.clone(), h.clone())).collect(),
            discovery: config.discovery.clone(),
            transport: now.transport.clone(),
            namespaces: now.namespaces.clone(),
            ..Self::default()
        };
        for pool in state.pools.values_mut() {
            keep_order(&mut pool.backends, now.pools.get(&pool.name).map(|known| &known.backends));
        }
        for lun in &config.luns {
            let mut lun = lun.clone();
            if let Some(known) = now.luns.get(&lun.name) {
                lun.uuid = lun.uuid.or(known.uuid);
                lun.nguid = lun.nguid.or_else(|| known.nguid.clone());
                lun.block_bytes = lun.block_bytes.or(known.block_bytes);
            }
            fill_lun(&mut lun);
            state.luns.insert(lun.name.clone(), lun);
        }
        for subsystem in &config.subsystems {
            let mut subsystem = subsystem.clone();
            let resolve = |hosts: &mut Vec<String>| {
                hosts.iter_mut().for_each(|host| *host = config.host_nqn(host).to_owned());
            };
            resolve(&mut subsystem.hosts);
            subsystem.namespaces.iter_mut().filter_map(|ns| ns.hosts.as_mut()).for_each(resolve);
            if let Some(known) = now.subsystems.get(&subsystem.nqn) {
                subsystem.serial = subsystem.serial.or_else(|| known.serial.clone());
                subsystem.model = subsystem.model.or_else(|| known.model.clone());
            }
            fill_subsystem(&mut subsystem);
            if let Some(known) = now.subsystems.get(&subsystem.nqn) {
                keep_order(&mut subsystem.hosts, Some(&known.hosts));
                keep_order(&mut subsystem.listeners, Some(&known.listeners));
                for ns in &mut subsystem.namespaces {
                    let before = known.namespaces.iter().find(|before| before.nsid == ns.nsid);
                    let before = before.and_then(|before| before.hosts.as_ref());
                    ns.hosts.iter_mut().for_each(|hosts| keep_order(hosts, before));
                }
            }
            state.subsystems.insert(subsystem.nqn.clone(), subsystem);
        }
        fold(&mut state.discovery.listeners);
        keep_order(&mut state.discovery.listeners, Some(&now.discovery.listeners));
        if state.subsystems.values().any(|s| !s.listeners.is_empty()) {
            state.transport.get_or_insert_default();
        }
        state
    }

    /// Returns the listeners of all subsystems and of the discovery subsystem.
    pub fn listeners(&self) -> BTreeSet<Address> {
        let subsystems = self.subsystems.values().flat_map(|subsystem| &subsystem.listeners);
        subsystems.chain(&self.discovery.listeners).copied().collect()
    }

    /// Returns the listeners of a subsystem, which may be the discovery subsystem. Returns `None` if there is no such
    /// subsystem.
    pub fn listeners_of(&self, nqn: &str) -> Option<&Vec<Address>> {
        match nqn == DISCOVERY_NQN {
            true => Some(&self.discovery.listeners),
            false => self.subsystems.get(nqn).map(|subsystem| &subsystem.listeners),
        }
    }

    /// Returns the listeners of a subsystem as [`listeners_of`](Self::listeners_of) does, for changes.
    pub fn listeners_of_mut(&mut self, nqn: &str) -> Option<&mut Vec<Address>> {
        match nqn == DISCOVERY_NQN {
            true => Some(&mut self.discovery.listeners),
            false => self.subsystems.get_mut(nqn).map(|subsystem| &mut subsystem.listeners),
        }
    }

    /// Gives LUNs that are whole backends their missing identities. A LUN gets the UUID and NGUID that `own` returns for its
    /// backend. If `own` returns none, or another LUN has these identities, the LUN gets generated identities. Returns the
    /// names of the LUNs that lacked a UUID.
    pub fn identify_whole(&mut self, own: impl Fn(&str) -> Option<(Uuid, String)>) -> BTreeSet<String> {
        let lack = |lun: &&Lun| lun.backend.is_some() && lun.uuid.is_none();
        let names: BTreeSet<String> = self.luns.values().filter(lack).map(|lun| lun.name.clone()).collect();
        for name in &names {
            let Some(mut lun) = self.luns.remove(name) else { continue };
            if let Some((uuid, nguid)) = lun.backend.as_deref().and_then(&own) {
                let nguid = lun.nguid.clone().unwrap_or(nguid);
                let known = Lun { uuid: Some(uuid), nguid: Some(nguid), ..lun.clone() };
                if self.twin(&known).is_none() {
                    lun = known;
                }
            }
            lun.uuid.get_or_insert_with(Uuid::new_v4);
            fill_lun(&mut lun);
            self.luns.insert(name.clone(), lun);
        }
        names
    }

    /// Returns the document that asks for this state.
    pub fn to_config(&self, gateway: &Gateway) -> Config {
        Config {
            gateway: gateway.clone(),
            backends: self.backends.values().cloned().collect(),
            pools: self.pools.values().cloned().collect(),
            luns: self.luns.values().cloned().collect(),
            subsystems: self.subsystems.values().cloned().collect(),
            discovery: self.discovery.clone(),
            hosts: self.hosts.values().cloned().collect(),
        }
    }

    /// Returns another LUN that has one of the identities of `lun`.
    pub fn twin(&self, lun: &Lun) -> Option<&Lun> {
        let own = lun.identities();
        let is_same = |other: &Lun| other.identities().iter().zip(&own).any(|(a, b)| a.is_some() && a == b);
        self.luns.values().find(|other| other.name != lun.name && is_same(other))
    }

    /// Returns whether a LUN has this UUID.
    pub fn has_lun(&self, uuid: Uuid) -> bool {
        self.luns.values().any(|lun| lun.uuid == Some(uuid))
    }

    /// Returns the NQN of a host that is given by NQN or by name.
    pub fn host_nqn<'a>(&'a self, host: &'a str) -> &'a str {
        self.hosts.get(host).map_or(host, |h| &h.nqn)
    }

    /// Returns the subsystems that show a LUN, each with the LUN's NSID.
    pub fn exports<'a>(&'a self, lun: &'a str) -> impl Iterator<Item = (&'a Subsystem, u32)> + 'a {
        self.subsystems.values().flat_map(move |s| {
            s.namespaces.iter().filter(move |ns| ns.lun == lun).map(move |ns| (s, ns.nsid))
        })
    }
}

/// Gives a LUN its missing identities. If a LUN is a whole backend and has no UUID, [`State::identify_whole`] gives them later.
pub fn fill_lun(lun: &mut Lun) {
    if lun.backend.is_none() {
        lun.uuid.get_or_insert_with(Uuid::new_v4);
    }
    if let Some(uuid) = lun.uuid {
        // The NGUID has the UUID's bytes, which is SPDK's default.
        lun.nguid.get_or_insert_with(|| uuid.simple().to_string());
    }
    if let Some(nguid) = &mut lun.nguid {
        nguid.make_ascii_lowercase();
    }
}

/// Gives a subsystem its missing fields, sorts its namespaces, and removes repeated elements from its lists. Each list is a
/// set: of hosts by NQN, or of addresses.
pub fn fill_subsystem(subsystem: &mut Subsystem) {
    fold(&mut subsystem.hosts);
    fold(&mut subsystem.listeners);
    subsystem.namespaces.iter_mut().filter_map(|ns| ns.hosts.as_mut()).for_each(fold);
    let serial = default_serial(&subsystem.nqn);
    subsystem.serial.get_or_insert(serial);
    subsystem.model.get_or_insert_with(|| "Trefoil".into());
    subsystem.namespaces.sort_by_key(|ns| ns.nsid);
}

/// Removes repeated elements from a list. The first of equal elements stays.
fn fold<T: Ord + Clone>(list: &mut Vec<T>) {
    let mut seen = BTreeSet::new();
    list.retain(|element| seen.insert(element.clone()));
}

/// Gives the list the order of `known` if both have the same elements. A list is a set, so a new order alone must not count as
/// a change.
fn keep_order<T: Ord + Clone>(list: &mut Vec<T>, known: Option<&Vec<T>>) {
    let set = |list: &[T]| list.iter().cloned().collect::<BTreeSet<T>>();
    if let Some(known) = known.filter(|known| set(list) == set(known)) {
        list.clone_from(known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [[backend]]
        name = "a"
        type = "null"
        size = "1MiB"
        [[lun]]
        name = "l"
        backend = "a"
        [[host]]
        name = "web"
        nqn = "nqn.2026-01.org.example:web"
        [[subsystem]]
        nqn = "nqn.2026-01.org.example:s"
        hosts = ["web"]
        listeners = ["127.0.0.1:4420"]
        namespaces = [{ nsid = 2, lun = "l", hosts = ["web"] }]
    "#;

    fn state() -> State {
        let mut state = State::from_config(&Config::parse("t", TEXT).expect("sound"), &State::default());
        assert_eq!(state.identify_whole(|_| None), BTreeSet::from(["l".to_owned()]));
        state
    }

    #[test]
    fn rows_make_the_state_again() {
        let found = NamespaceIdentity { nguid: [1; 16], uuid: [2; 16], eui64: [3; 8], block_bytes: 4096 };
        let mut state = state();
        state.namespaces.insert("a".into(), ArrayNamespace::new("a", found));
        assert_eq!(state.namespaces["a"].identity(), found);
        state.discovery.listeners = vec!["127.0.0.1:8009".parse().expect("an address")];
        let rows = state.rows();
        let again = rows.iter().map(|(key, row)| Row::parse(key, &row.json()).expect("a row"));
        assert_eq!(State::from_rows(again.collect()), state);
        assert_eq!(rows.len(), 7);
    }

    #[test]
    fn a_document_is_its_own_image() {
        let first = state();
        let config = first.to_config(&Gateway::default());
        assert!(config.check().is_empty());
        let text = config.to_toml().expect("TOML");
        let again = State::from_config(&Config::parse("t", &text).expect("sound"), &State::default());
        assert_eq!(State { transport: first.transport.clone(), ..again }, first);
    }

    #[test]
    fn what_is_left_open_stays_what_it_was() {
        let mut now = state();
        let found = NamespaceIdentity { nguid: [1; 16], uuid: [2; 16], eui64: [3; 8], block_bytes: 4096 };
        now.namespaces.insert("a".into(), ArrayNamespace::new("a", found));
        let again = State::from_config(&Config::parse("t", TEXT).expect("sound"), &now);
        assert!(now.changes_to(&again).is_empty());
        assert_eq!(now.subsystems["nqn.2026-01.org.example:s"].hosts, ["nqn.2026-01.org.example:web"]);
    }

    #[test]
    fn lists_are_sets_of_what_they_mean() {
        let read =
            |text: &str, now: &State| State::from_config(&Config::parse("t", text).expect("sound"), now);
        let twice = TEXT
            .replace(
                "[\"web\"]",
                "[\"web\", \"nqn.2026-01.org.example:web\", \"nqn.2026-01.org.example:x\", \"web\"]",
            )
            .replace(
                "[\"127.0.0.1:4420\"]",
                "[\"[::1]:4420\", \"127.0.0.1:4420\", \"[0:0:0:0:0:0:0:1]:4420\"]",
            );
        let state = read(&twice, &State::default());
        let s = &state.subsystems["nqn.2026-01.org.example:s"];
        let hosts = ["nqn.2026-01.org.example:web", "nqn.2026-01.org.example:x"];
        assert_eq!(
            (&s.hosts[..], s.namespaces[0].hosts.as_deref()),
            (&hosts.map(String::from)[..], Some(&s.hosts[..]))
        );
        let listeners: Vec<String> = s.listeners.iter().map(ToString::to_string).collect();
        assert_eq!(listeners, ["[::1]:4420", "127.0.0.1:4420"]);
        // A list in another order is the same set.
        let turned = TEXT
            .replace("[\"web\"]", "[\"nqn.2026-01.org.example:x\", \"web\"]")
            .replace("[\"127.0.0.1:4420\"]", "[\"127.0.0.1:4420\", \"[::1]:4420\"]");
        assert_eq!(state.changes_to(&read(&turned, &state)), []);
        assert_eq!(state.changes_to(&read(TEXT, &state)).len(), 1, "another set is a change");
        // Repeated elements are also removed from rows that an earlier version stored.
        let mut stored = s.clone();
        stored.hosts.extend(s.hosts.clone());
        stored.listeners.extend(s.listeners.clone());
        let again = State::from_rows(vec![Row::Subsystem(stored)]);
        assert_eq!(&again.subsystems["nqn.2026-01.org.example:s"], s);
    }

    #[test]
    fn a_whole_backend_keeps_its_own_identity() {
        let own = Uuid::from_u128(0xabc);
        let digits = "0123456789abcdef0123456789abcdef";
        let tell = |backend: &str| (backend == "a").then(|| (own, digits.to_owned()));
        let mut state = State::from_config(&Config::parse("t", TEXT).expect("sound"), &State::default());
        assert_eq!(state.luns["l"].uuid, None, "nothing is made up before the backend is asked");
        state.identify_whole(tell);
        assert_eq!((state.luns["l"].uuid, state.luns["l"].nguid.as_deref()), (Some(own), Some(digits)));
        // A second call changes nothing.
        let before = state.clone();
        assert!(state.identify_whole(|_| panic!("it isn't asked")).is_empty());
        assert_eq!(state, before);
        // A second LUN on the same backend gets another identity, and a LUN with a given NGUID keeps the NGUID.
        let twin = Lun { name: "m".into(), uuid: None, nguid: None, ..before.luns["l"].clone() };
        let mut told = twin.clone();
        told.nguid = Some("f".repeat(32));
        state.luns.insert("m".into(), twin);
        state.identify_whole(tell);
        let twin = &state.luns["m"];
        assert!(twin.uuid.is_some_and(|uuid| uuid != own));
        assert_eq!(twin.nguid, twin.uuid.map(|uuid| uuid.simple().to_string()));
        state.luns = BTreeMap::from([("m".into(), told)]);
        state.identify_whole(tell);
        assert_eq!((state.luns["m"].uuid, state.luns["m"].nguid.clone()), (Some(own), Some("f".repeat(32))));
    }
}
