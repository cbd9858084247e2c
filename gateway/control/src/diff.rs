//! The differences between two states, object by object and field by field, for people and programs.

use crate::state::{Row, RowChange, State};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Most objects that a log line names.
const NAMED: usize = 8;

/// Describes one change of `rows`: `{"change": "add", "object": "lun/a", "fields": [{"field": "size", "old": null, "new":
/// "8MiB"}]}`. The change is `add`, `modify` or `remove`. From a list, only the elements that differ are described, each as a
/// field.
pub fn describe(change: &RowChange, rows: &BTreeMap<String, Row>) -> Value {
    let (key, row) = match change {
        RowChange::Remove(key) => return json!({ "change": "remove", "object": key, "fields": [] }),
        RowChange::Put(row) => (row.key(), row),
    };
    let old = rows.get(&key);
    let nothing = || Value::Object(Map::new());
    let mut fields = Vec::new();
    compare("", &old.map_or_else(nothing, Row::value), &row.value(), &mut fields);
    if old.is_none() {
        // These fields form the object's name, which is in the key already.
        fields
            .retain(|field| field["field"] != "name" && !key.ends_with(field["new"].as_str().unwrap_or("?")));
    }
    json!({ "change": if old.is_some() { "modify" } else { "add" }, "object": key, "fields": fields })
}

/// Summarizes a change for a log line: the first objects, such as `+lun/b ~subsystem/NQN`, and the number of further objects.
pub fn summary(before: &State, after: &State) -> String {
    let (rows, changes) = (before.rows(), before.changes_to(after));
    let named = changes.iter().take(NAMED).map(|change| match change {
        RowChange::Remove(key) => format!("-{key}"),
        RowChange::Put(row) if rows.contains_key(&row.key()) => format!("~{}", row.key()),
        RowChange::Put(row) => format!("+{}", row.key()),
    });
    let mut words: Vec<String> = named.collect();
    if changes.len() > NAMED {
        words.push(format!("and {} more", changes.len() - NAMED));
    }
    words.join(" ")
}

fn compare(path: &str, old: &Value, new: &Value, fields: &mut Vec<Value>) {
    let tell = |old: &Value, new: &Value| json!({ "field": path, "old": old, "new": new });
    // In an object's own fields, a missing list means an empty list. In a namespace, a missing list and an empty list differ.
    let is_own_list = !path.contains('[');
    let empty = Vec::new();
    match (old, new) {
        _ if old == new => {}
        (Value::Object(a), Value::Object(b)) => {
            let dot = if path.is_empty() { "" } else { "." };
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&format!("{path}{dot}{key}"), &of(a), &of(b), fields);
            }
        }
        (Value::Array(_) | Value::Null, Value::Array(_) | Value::Null) if is_own_list => {
            let list = |value: &'_ Value| value.as_array().unwrap_or(&empty).clone();
            elements(path, &list(old), &list(new), fields);
        }
        _ => fields.push(tell(old, new)),
    }
}

/// Compares two lists. Namespaces are matched by their NSIDs, and other elements by their values.
fn elements(path: &str, old: &[Value], new: &[Value], fields: &mut Vec<Value>) {
    let nsids: BTreeSet<u64> = old.iter().chain(new).filter_map(|item| item["nsid"].as_u64()).collect();
    for nsid in &nsids {
        let of = |list: &[Value]| list.iter().find(|item| item["nsid"] == *nsid).cloned().unwrap_or_default();
        compare(&format!("{path}[{nsid}]"), &of(old), &of(new), fields);
    }
    if !nsids.is_empty() {
        return;
    }
    let before = fields.len();
    let gone = old.iter().filter(|item| !new.contains(item));
    fields.extend(gone.map(|item| json!({ "field": path, "old": item, "new": null })));
    let come = new.iter().filter(|item| !old.contains(item));
    fields.extend(come.map(|item| json!({ "field": path, "old": null, "new": item })));
    if fields.len() == before {
        // Only the order differs.
        fields.push(json!({ "field": path, "old": old, "new": new }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_config::{Host, Namespace, Subsystem};

    const NQN: &str = "nqn.2026-01.org.example:s";

    fn state(edit: impl FnOnce(&mut Subsystem)) -> State {
        let mut subsystem = Subsystem::new(NQN);
        edit(&mut subsystem);
        State { subsystems: BTreeMap::from([(NQN.into(), subsystem)]), ..State::default() }
    }

    fn fields(old: &State, new: &State) -> Vec<(String, Value, Value)> {
        let rows = old.rows();
        let told = old.changes_to(new).iter().map(|change| describe(change, &rows)).collect::<Vec<_>>();
        let all = told.iter().flat_map(|told| told["fields"].as_array().cloned().unwrap_or_default());
        all.map(|f| (f["field"].as_str().unwrap_or_default().into(), f["old"].clone(), f["new"].clone()))
            .collect()
    }

    #[test]
    fn only_what_differs_is_told() {
        let old = state(|s| {
            s.hosts = vec!["a".into(), "b".into()];
            s.serial = Some("1".into());
            s.namespaces = vec![Namespace { nsid: 1, lun: "x".into(), hosts: None }];
        });
        let new = state(|s| {
            s.hosts = vec!["b".into(), "c".into()];
            s.serial = Some("2".into());
            s.namespaces = vec![
                Namespace { nsid: 1, lun: "x".into(), hosts: Some(Vec::new()) },
                Namespace { nsid: 3, lun: "y".into(), hosts: None },
            ];
        });
        let (none, text) = (Value::Null, |text: &str| Value::from(text));
        let want = [
            ("hosts".into(), text("a"), none.clone()),
            ("hosts".into(), none.clone(), text("c")),
            ("namespaces[1].hosts".into(), none.clone(), json!([])),
            ("namespaces[3]".into(), none, json!({ "lun": "y", "nsid": 3 })),
            ("serial".into(), text("1"), text("2")),
        ];
        assert_eq!(fields(&old, &new), want);
        assert_eq!(fields(&state(|_| {}), &state(|s| s.hosts = vec!["a".into()])).len(), 1);
    }

    #[test]
    fn a_summary_is_short() {
        let host = |n: usize| Host { name: format!("h{n}"), nqn: format!("nqn.2026-01.org.example:{n}") };
        let mut before = state(|_| {});
        before.hosts.insert("h9".into(), host(9));
        let mut after = state(|s| s.serial = Some("1".into()));
        assert_eq!(summary(&before, &after), format!("-host/h9 ~subsystem/{NQN}"));
        after.hosts = (10..22).map(|n| (format!("h{n}"), host(n))).collect();
        let text = summary(&before, &after);
        assert!(text.starts_with("-host/h9 +host/h10 ") && text.ends_with(" and 6 more"), "{text}");
    }
}
