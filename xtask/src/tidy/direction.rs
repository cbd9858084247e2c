//! Checks in the manifests that crates use each other only in the allowed direction.

use toml::Table;

use super::{Finding, TextFile};

/// The folder, the name and the floor of each of our crates. A crate may use only crates of lower floors, so two crates on the
/// same floor never use each other. The leaf is on floor 0.
const FLOORS: &[(&str, &str, u8)] = &[
    ("gateway/wire", "trefoil-wire", 0),
    ("config", "trefoil-config", 1),
    ("sys", "trefoil-sys", 1),
    ("poll", "trefoil-poll", 2),
    ("gateway/storage", "trefoil-storage", 3),
    ("gateway/control", "trefoil-control", 4),
    ("gateway", "trefoil-gateway", 5),
    ("gateway/sim", "trefoil-sim", 6),
    ("perf", "trefoil-perf", 6),
];

/// Crates that may use only the named crates of ours. The chores must build even when no other crate does. The fuzzers test a
/// leaf.
const ASIDE: &[(&str, &[&str])] = &[("xtask", &[]), ("gateway/wire/fuzz", &["trefoil-wire"])];

const TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Finds crates that use a crate of the same or a higher floor, and crates that this table lacks.
pub fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.path.file_name().is_some_and(|n| n == "Cargo.toml")) {
        let folder = file.path.parent().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let manifest: Table = match file.text.parse() {
            Ok(manifest) => manifest,
            Err(error) => {
                findings.push(Finding::new(&file.path, 0, format!("this file is not TOML: {error}")));
                continue;
            }
        };
        if !manifest.contains_key("package") {
            continue;
        }
        for used in ours(&manifest) {
            if let Some(why) = refusal(&folder, &used) {
                let line = file.text.lines().position(|l| l.contains(&used)).map_or(0, |n| n + 1);
                findings.push(Finding::new(&file.path, line, why));
            }
        }
        if floor_of_folder(&folder).is_none() && ASIDE.iter().all(|(f, _)| *f != folder) {
            let message = "this crate has no floor in xtask/src/tidy/direction.rs: add one";
            findings.push(Finding::new(&file.path, 0, message));
        }
    }
    findings
}

/// Returns the names of our crates in all dependency tables of a manifest, including the tables for one target.
fn ours(manifest: &Table) -> Vec<String> {
    let per_target = manifest.get("target").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.values());
    let places = per_target.filter_map(|v| v.as_table()).chain([manifest]);
    let tables = places.flat_map(|place| TABLES.iter().filter_map(|name| place.get(*name)?.as_table()));
    let mut names: Vec<String> =
        tables.flat_map(Table::keys).filter(|n| n.starts_with("trefoil-")).cloned().collect();
    names.sort();
    names.dedup();
    names
}

fn floor_of_folder(folder: &str) -> Option<u8> {
    FLOORS.iter().find(|(f, _, _)| *f == folder).map(|(_, _, floor)| *floor)
}

fn refusal(folder: &str, used: &str) -> Option<String> {
    if let Some((_, allowed)) = ASIDE.iter().find(|(f, _)| *f == folder) {
        return (!allowed.contains(&used))
            .then(|| format!("{folder} stands aside from the floors and may not use {used}"));
    }
    let Some((_, _, below)) = FLOORS.iter().find(|(_, name, _)| *name == used) else {
        return Some(format!("{used} has no floor in xtask/src/tidy/direction.rs: add one"));
    };
    let own = floor_of_folder(folder)?;
    (*below >= own).then(|| format!("{folder} may not use {used}: {used} is not on a floor below {folder}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let file = TextFile { path: path.into(), text: text.to_owned() };
        check(&[file]).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn downwards_is_allowed() {
        let text =
            "[package]\n[dependencies]\ntrefoil-poll.workspace = true\ntrefoil-wire.workspace = true\n";
        assert!(found("gateway/storage/Cargo.toml", text).is_empty());
    }

    #[test]
    fn upwards_and_sideways_are_found_in_every_table() {
        for table in
            ["dependencies", "dev-dependencies", "build-dependencies", "target.'cfg(loom)'.dependencies"]
        {
            let up = format!("[package]\n[{table}]\ntrefoil-storage.workspace = true\n");
            assert_eq!(found("poll/Cargo.toml", &up).len(), 1, "{table}");
        }
        let beside = "[package]\n[dependencies]\ntrefoil-config.workspace = true\n";
        assert_eq!(found("gateway/wire/Cargo.toml", beside).len(), 1);
    }

    #[test]
    fn crates_aside_and_unknown_ones_are_found() {
        let text = "[package]\n[dependencies]\ntrefoil-wire.workspace = true\n";
        assert_eq!(found("xtask/Cargo.toml", text).len(), 1);
        assert!(found("gateway/wire/fuzz/Cargo.toml", text).is_empty());
        assert_eq!(found("new/Cargo.toml", "[package]\n").len(), 1);
        assert_eq!(found("poll/Cargo.toml", "[package]\n[dependencies]\ntrefoil-odd = \"1\"\n").len(), 1);
        assert_eq!(found("poll/Cargo.toml", "[package\n").len(), 1);
    }
}
