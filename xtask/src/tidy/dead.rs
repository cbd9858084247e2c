//! Finds Rust files that nothing compiles: follows the `mod` declarations from every crate root.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::source::Source;
use super::{Finding, TextFile};

/// Finds the Rust files that no crate root reaches.
pub fn check(files: &[TextFile], sources: &[Source]) -> Vec<Finding> {
    let by_path: BTreeMap<&Path, &Source> = sources.iter().map(|s| (s.path.as_path(), s)).collect();
    let reached = reach(&by_path, roots(files, sources));
    sources
        .iter()
        .filter(|s| !reached.contains(&s.path))
        .map(|s| Finding::new(&s.path, 0, "no `mod` leads to this file: add one, or delete the file"))
        .collect()
}

/// Returns the files that are compiled only for tests: integration tests, benches, and modules that are declared under
/// `#[cfg(test)]`.
pub fn tests_only(sources: &[Source]) -> BTreeSet<PathBuf> {
    let by_path: BTreeMap<&Path, &Source> = sources.iter().map(|s| (s.path.as_path(), s)).collect();
    let mut starts: Vec<PathBuf> =
        sources.iter().map(|s| s.path.clone()).filter(|p| is_test_root(p)).collect();
    for source in sources {
        starts.extend(modules(source).into_iter().filter(|m| m.for_tests).flat_map(|m| m.candidates));
    }
    reach(&by_path, starts)
}

fn is_test_root(path: &Path) -> bool {
    let parent = path.parent().and_then(Path::file_name);
    parent.is_some_and(|p| p == "tests" || p == "benches")
        && !path.components().any(|c| c.as_os_str() == "src")
}

/// Returns all files that `mod` declarations reach from the files in `starts`. Includes these files.
fn reach(by_path: &BTreeMap<&Path, &Source>, starts: Vec<PathBuf>) -> BTreeSet<PathBuf> {
    let mut reached = BTreeSet::new();
    let mut open = starts;
    while let Some(path) = open.pop() {
        let Some(source) = by_path.get(path.as_path()) else { continue };
        if !reached.insert(path) {
            continue;
        }
        open.extend(modules(source).into_iter().flat_map(|m| m.candidates));
    }
    reached
}

/// Returns cargo's root files: those with cargo's default names, and those that a manifest names.
fn roots(files: &[TextFile], sources: &[Source]) -> Vec<PathBuf> {
    let mut roots = Vec::new();
    for manifest in files.iter().filter(|f| f.path.file_name().is_some_and(|n| n == "Cargo.toml")) {
        let folder = manifest.path.parent().unwrap_or(Path::new(""));
        for name in ["src/lib.rs", "src/main.rs", "build.rs"] {
            roots.push(folder.join(name));
        }
        for place in ["src/bin", "tests", "benches", "examples"] {
            let place = folder.join(place);
            let is_root = |p: &Path| {
                p.parent() == Some(&place)
                    || (p.ends_with("main.rs") && p.parent().and_then(Path::parent) == Some(&place))
            };
            roots.extend(sources.iter().map(|s| s.path.clone()).filter(|p| is_root(p)));
        }
        let table: Table = manifest.text.parse().unwrap_or_default();
        roots.extend(named_paths(&table).map(|p| folder.join(p)));
    }
    roots
}

/// Returns the `path` of `[lib]` and of each `[[bin]]`, `[[test]]`, `[[bench]]`, `[[example]]`.
fn named_paths(manifest: &Table) -> impl Iterator<Item = &str> {
    ["lib", "bin", "test", "bench", "example"].into_iter().filter_map(|kind| manifest.get(kind)).flat_map(
        |value| {
            let targets = match value {
                Value::Array(list) => list.as_slice(),
                one => std::slice::from_ref(one),
            };
            targets.iter().filter_map(|t| t.get("path")?.as_str())
        },
    )
}

/// A `mod name;` in a file.
struct Module {
    /// The paths where the compiler looks for the module.
    candidates: Vec<PathBuf>,
    for_tests: bool,
}

/// Returns the modules that a file declares without a body. Follows `#[path]` and `include!`.
fn modules(source: &Source) -> Vec<Module> {
    let dir = source.path.parent().unwrap_or(Path::new(""));
    let stem = source.path.file_stem().unwrap_or_default();
    let owns_dir = ["lib", "main", "mod", "build"].iter().any(|n| stem == *n) || is_flat_root(&source.path);
    let below = if owns_dir { dir.to_path_buf() } else { dir.join(stem) };
    let mut modules = Vec::new();
    let mut named = None;
    let lines = source.code.lines().zip(source.text.lines()).zip(&source.in_test);
    for ((code, raw), in_test) in lines {
        if code.trim_start().starts_with("#[path") || code.contains("include!(") {
            named = raw.split('"').nth(1).map(|p| dir.join(p));
            if code.contains("include!(") {
                modules.push(Module { candidates: named.take().into_iter().collect(), for_tests: *in_test });
            }
        }
        let Some(name) = declared(code) else { continue };
        let candidates = match named.take() {
            Some(path) => vec![path],
            None => vec![below.join(format!("{name}.rs")), below.join(name).join("mod.rs")],
        };
        modules.push(Module { candidates, for_tests: *in_test });
    }
    modules
}

/// Returns whether the file is a crate root whose modules lie beside it, although its name is not lib, main or mod. Programs and
/// integration tests are such files.
fn is_flat_root(path: &Path) -> bool {
    let parent = path.parent().and_then(Path::file_name);
    is_test_root(path) || parent.is_some_and(|p| p == "bin" || p == "fuzz_targets" || p == "examples")
}

/// Returns the name in `mod name;`. The declaration may have any visibility.
fn declared(code: &str) -> Option<&str> {
    let (before, name) = code.trim().strip_suffix(';')?.rsplit_once("mod ")?;
    let before = before.trim_end();
    let plain = before.is_empty() || before.ends_with("pub") || before.ends_with([')', ']']);
    plain.then(|| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(list: &[(&str, &str)]) -> (Vec<TextFile>, Vec<Source>) {
        let manifest = "[package]\n[[bin]]\npath = \"odd/start.rs\"\n";
        let mut files = vec![TextFile { path: "a/Cargo.toml".into(), text: manifest.into() }];
        files.extend(list.iter().map(|(p, t)| TextFile { path: p.into(), text: (*t).to_owned() }));
        let sources = files[1..].iter().map(|f| Source::new(&f.path, &f.text)).collect();
        (files, sources)
    }

    fn dead(list: &[(&str, &str)]) -> Vec<PathBuf> {
        let (files, sources) = setting(list);
        check(&files, &sources).into_iter().map(|f| f.path).collect()
    }

    #[test]
    fn a_file_that_no_mod_leads_to_is_dead() {
        let found = dead(&[
            ("a/src/lib.rs", "// mod gone;\nmod kept;\n"),
            ("a/src/kept.rs", ""),
            ("a/src/gone.rs", ""),
        ]);
        assert_eq!(found, [PathBuf::from("a/src/gone.rs")]);
    }

    #[test]
    fn all_ways_to_a_file_are_known() {
        let found = dead(&[
            (
                "a/src/lib.rs",
                "pub mod x;\npub(crate) mod y;\n#[path = \"far.rs\"]\nmod z;\ninclude!(\"inc.rs\");\n",
            ),
            ("a/src/x.rs", "mod below;\n"),
            ("a/src/x/below.rs", ""),
            ("a/src/y/mod.rs", "mod beside;\n"),
            ("a/src/y/beside.rs", ""),
            ("a/src/far.rs", ""),
            ("a/src/inc.rs", ""),
            ("a/src/bin/tool.rs", ""),
            ("a/src/bin/big/main.rs", "mod part;"),
            ("a/src/bin/big/part.rs", ""),
            ("a/tests/story.rs", "mod common;\n"),
            ("a/tests/common/mod.rs", ""),
            ("a/build.rs", ""),
            ("a/odd/start.rs", ""),
        ]);
        assert_eq!(found, Vec::<PathBuf>::new());
    }

    #[test]
    fn files_for_tests_are_known() {
        let (_, sources) = setting(&[
            ("a/src/lib.rs", "#[cfg(test)]\nmod tests;\nmod real;\n"),
            ("a/src/tests.rs", "mod more;\n"),
            ("a/src/tests/more.rs", ""),
            ("a/src/real.rs", ""),
            ("a/tests/story.rs", ""),
        ]);
        let expected = ["a/src/tests.rs", "a/src/tests/more.rs", "a/tests/story.rs"].map(PathBuf::from);
        assert_eq!(tests_only(&sources), BTreeSet::from(expected));
    }
}
