//! Rows: the objects of a state in the form in which the store keeps them, each with its key.

use super::{ArrayNamespace, State, Transport, fill_subsystem};
use std::collections::BTreeMap;
use trefoil_config::{Backend, Discovery, Host, Lun, Pool, Subsystem};

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A backend.
    Backend(Backend),
    /// A pool.
    Pool(Pool),
    /// A LUN.
    Lun(Lun),
    /// A subsystem.
    Subsystem(Subsystem),
    /// The discovery subsystem, if it has listeners of its own.
    Discovery(Discovery),
    /// A host's name.
    Host(Host),
    /// The TCP transport.
    Transport(Transport),
    /// The array's namespace that answered as a backend.
    Namespace(ArrayNamespace),
}

/// The change of one row between two states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// Adds or replaces a row.
    Put(Row),
    /// Removes the row with this key.
    Remove(String),
}

impl Row {
    /// Returns the row's key, `kind/name`.
    pub fn key(&self) -> String {
        match self {
            Self::Backend(b) => format!("backend/{}", b.name),
            Self::Pool(p) => format!("pool/{}", p.name),
            Self::Lun(l) => format!("lun/{}", l.name),
            Self::Subsystem(s) => format!("subsystem/{}", s.nqn),
            Self::Discovery(_) => "discovery/listeners".into(),
            Self::Host(h) => format!("host/{}", h.name),
            Self::Transport(_) => "transport/TCP".into(),
            Self::Namespace(n) => format!("namespace/{}", n.backend),
        }
    }

    /// Returns the object as JSON text.
    pub fn json(&self) -> String {
        self.value().to_string()
    }

    /// Returns the object as JSON.
    pub fn value(&self) -> serde_json::Value {
        let value = match self {
            Self::Backend(b) => serde_json::to_value(b),
            Self::Pool(p) => serde_json::to_value(p),
            Self::Lun(l) => serde_json::to_value(l),
            Self::Subsystem(s) => serde_json::to_value(s),
            Self::Discovery(d) => serde_json::to_value(d),
            Self::Host(h) => serde_json::to_value(h),
            Self::Transport(t) => serde_json::to_value(t),
            Self::Namespace(n) => serde_json::to_value(n),
        };
        // Serialization fails only for a map whose keys are not strings, or for a failing `Serialize`. Neither occurs here.
        value.unwrap_or_default()
    }

    /// Reads a row back.
    ///
    /// # Errors
    /// The text says what is wrong with the row.
    pub fn parse(key: &str, json: &str) -> Result<Self, String> {
        let kind = key.split_once('/').map_or(key, |(kind, _)| kind);
        let row = match kind {
            "backend" => serde_json::from_str(json).map(Self::Backend),
            "pool" => serde_json::from_str(json).map(Self::Pool),
            "lun" => serde_json::from_str(json).map(Self::Lun),
            "subsystem" => serde_json::from_str(json).map(Self::Subsystem),
            "discovery" => serde_json::from_str(json).map(Self::Discovery),
            "host" => serde_json::from_str(json).map(Self::Host),
            "transport" => serde_json::from_str(json).map(Self::Transport),
            "namespace" => serde_json::from_str(json).map(Self::Namespace),
            other => return Err(format!("the row has an unknown kind, `{other}`")),
        };
        let row = row.map_err(|e| e.to_string())?;
        if row.key() == key { Ok(row) } else { Err(format!("the row holds the object `{}`", row.key())) }
    }
}

impl State {
    /// Returns the state that consists of these rows.
    pub fn from_rows(rows: Vec<Row>) -> Self {
        let mut state = Self::default();
        for row in rows {
            match row {
                Row::Backend(b) => drop(state.backends.insert(b.name.clone(), b)),
                Row::Pool(p) => drop(state.pools.insert(p.name.clone(), p)),
                Row::Lun(l) => drop(state.luns.insert(l.name.clone(), l)),
                Row::Subsystem(mut s) => {
                    // An earlier version may have stored a host or listener twice.
                    fill_subsystem(&mut s);
                    state.subsystems.insert(s.nqn.clone(), s);
                }
                Row::Discovery(d) => state.discovery = d,
                Row::Host(h) => drop(state.hosts.insert(h.name.clone(), h)),
                Row::Transport(t) => state.transport = Some(t),
                Row::Namespace(n) => drop(state.namespaces.insert(n.backend.clone(), n)),
            }
        }
        state
    }

    /// Returns every object by its key.
    pub fn rows(&self) -> BTreeMap<String, Row> {
        let backends = self.backends.values().cloned().map(Row::Backend);
        let pools = self.pools.values().cloned().map(Row::Pool);
        let luns = self.luns.values().cloned().map(Row::Lun);
        let subsystems = self.subsystems.values().cloned().map(Row::Subsystem);
        let hosts = self.hosts.values().cloned().map(Row::Host);
        let transport = self.transport.iter().cloned().map(Row::Transport);
        let namespaces = self.namespaces.values().cloned().map(Row::Namespace);
        let all = backends.chain(pools).chain(luns).chain(subsystems).chain(hosts);
        let discovery = Some(&self.discovery).filter(|d| !d.is_default()).cloned().map(Row::Discovery);
        let all = all.chain(transport).chain(namespaces).chain(discovery);
        all.map(|row| (row.key(), row)).collect()
    }

    /// Returns the changes that lead from `self` to `next`.
    pub fn changes_to(&self, next: &Self) -> Vec<RowChange> {
        let (old, new) = (self.rows(), next.rows());
        let removed = old.keys().filter(|key| !new.contains_key(*key)).cloned().map(RowChange::Remove);
        let put = new.iter().filter(|(key, row)| old.get(*key) != Some(*row));
        removed.chain(put.map(|(_, row)| RowChange::Put(row.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_under_a_wrong_key_is_refused() {
        let row = Row::Host(Host { name: "a".into(), nqn: "n".into() });
        assert!(Row::parse("host/b", &row.json()).is_err());
        assert!(Row::parse("pool/a", &row.json()).is_err());
    }
}
