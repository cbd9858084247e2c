//! Refuses circular imports, imports against the order of modules, and type names with two meanings in one crate.
//!
//! Three rules, each for the shipped code of one crate at a time:
//! - no two modules of a folder import each other, directly or through others;
//! - the top modules of a crate in [`ORDERS`] import only modules that come before them in that order;
//! - no type name stands for different things in two modules, if one of the two types can be seen outside its module.
//!
//! The rules treat a module and the modules inside it as one module: a parent may use its children, and children may use their
//! parent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Finding;
use super::source::Source;

/// The top modules of each crate, lowest first, with the folder of the crate's sources. Data flows in the opposite direction:
/// from the last module down to the first.
const ORDERS: &[(&str, &str)] = &[
    ("sys/src", "clock cpu eventfd region socket bufring uring"),
    ("config/src", "address bytes worked told error nqn document check check_document parse"),
    ("gateway/wire/src", "bytes nvme fabrics tcp"),
    ("poll/src", "lost metrics ram rand sync time buf mailbox wheel arena send io mesh uring_io core guard"),
    (
        "gateway/storage/src",
        "list slab fair topology request stats initiator pool warm msg cx backend frontend lun core",
    ),
    (
        "gateway/control/src",
        "address admin memory notify state diff exports jsonrpc store error loss action notes plan engine \
         metrics obstacles warm methods spdk rpc",
    ),
    ("gateway/src", "cores logging terminal preflight serve"),
    ("gateway/src/bin/trefoil", "args calls client table top"),
    (
        "gateway/sim/src",
        "disk memory model net story timeouts simio workload world direct server hostile script node run mutation",
    ),
    ("perf/src", "pattern phase proc client floor gateway load identify bench demo"),
    ("xtask/src", "process repo need fuzz instructions lab stages tidy"),
];

/// A module's path inside its crate. The path does not start with `crate`.
type ModulePath = Vec<String>;

/// One crate's modules.
struct Crate<'a> {
    /// The folder of the crate's sources.
    root: PathBuf,
    modules: BTreeMap<ModulePath, &'a Source>,
    /// The names that the root re-exports, each with its module. An import of such a name is an import of its module.
    shown: BTreeMap<String, ModulePath>,
}

/// The imports from one module to another, each with the place of the first such import.
type Imports = BTreeMap<(String, String), (PathBuf, usize)>;

/// Finds circles, imports against the order, and names with two meanings. Ignores the files in `skip`, which only tests use.
pub fn check(sources: &[Source], skip: &BTreeSet<PathBuf>) -> Vec<Finding> {
    let crates = crates(sources, skip);
    crates.iter().flat_map(|one| [circles(one), against_order(one), shared_names(one)].concat()).collect()
}

fn crates<'a>(sources: &'a [Source], skip: &BTreeSet<PathBuf>) -> Vec<Crate<'a>> {
    let mut found: BTreeMap<PathBuf, BTreeMap<ModulePath, &Source>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !skip.contains(&source.path)) {
        let Some((root, module)) = place(&source.path) else { continue };
        found.entry(root).or_default().insert(module, source);
    }
    found.into_iter().map(|(root, modules)| Crate { root, shown: shown(&modules), modules }).collect()
}

/// Returns the names that the crate's root re-exports from its modules. With each name, returns the innermost module in its path.
fn shown(modules: &BTreeMap<ModulePath, &Source>) -> BTreeMap<String, ModulePath> {
    let code = modules.get(&[][..]).map(|source| source.shipped_code()).unwrap_or_default();
    let mut names = Vec::new();
    for path in code.split("pub use ").skip(1) {
        expand(path, &mut Vec::new(), &mut names);
    }
    let inside = |path: &[String]| {
        let path: ModulePath =
            path.iter().filter(|part| *part != "crate" && *part != "self").cloned().collect();
        (1..path.len()).rev().map(|len| path[..len].to_vec()).find(|module| modules.contains_key(module))
    };
    names.iter().filter_map(|path| Some((path.last()?.clone(), inside(path)?))).collect()
}

/// Returns the source folder of a file's crate, and the file's module. A program in `src/bin` is a crate of its own.
fn place(path: &Path) -> Option<(PathBuf, ModulePath)> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let src = parts.iter().position(|part| *part == "src")?;
    let mut first = src + 1;
    if parts.get(first) == Some(&"bin") && parts.len() > first + 2 {
        first += 2;
    }
    let (file, folders) = parts.get(first..)?.split_last()?;
    let mut module: ModulePath = folders.iter().map(|part| (*part).to_owned()).collect();
    match file.strip_suffix(".rs")? {
        "mod" | "lib" | "main" => {}
        name => module.push(name.to_owned()),
    }
    Some((parts[..first].iter().collect(), module))
}

fn circles(one: &Crate) -> Vec<Finding> {
    let mut findings = Vec::new();
    for parent in parents(one) {
        let imports = imports_below(one, &parent);
        let names: BTreeSet<&String> = imports.keys().map(|(from, _)| from).collect();
        let mut told = BTreeSet::new();
        for name in names {
            if told.contains(name) || !reach(&imports, name).contains(name) {
                continue;
            }
            let circle: BTreeSet<String> = reach(&imports, name)
                .into_iter()
                .filter(|other| reach(&imports, other).contains(name))
                .collect();
            let (path, line) = &imports[imports
                .keys()
                .find(|(from, to)| from == name && circle.contains(to))
                .expect("a circle leaves each of its members")];
            let list: Vec<&str> = circle.iter().map(String::as_str).collect();
            let message = format!("these modules import each other in a circle: {}", list.join(", "));
            findings.push(Finding::new(path, *line, message));
            told.extend(circle);
        }
    }
    findings
}

fn against_order(one: &Crate) -> Vec<Finding> {
    let Some((_, order)) = ORDERS.iter().find(|(root, _)| one.root == Path::new(root)) else {
        return Vec::new();
    };
    judge_order(one, order)
}

fn judge_order(one: &Crate, order: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let height = |name: &String| order.split_whitespace().position(|known| known == name);
    for ((from, to), (path, line)) in imports_below(one, &[]) {
        let message = match (height(&from), height(&to)) {
            (Some(from_height), Some(to_height)) if to_height < from_height => continue,
            (Some(_), Some(_)) => {
                format!("`{from}` may not import `{to}`: `{from}` is below `{to}` in the order of modules")
            }
            (None, _) => format!("`{from}` has no place in xtask/src/tidy/modules.rs"),
            (_, None) => format!("`{to}` has no place in xtask/src/tidy/modules.rs"),
        };
        findings.push(Finding::new(&path, line, message));
    }
    findings
}

/// A type of one module.
struct Declared {
    path: PathBuf,
    line: usize,
    visible: bool,
}

fn shared_names(one: &Crate) -> Vec<Finding> {
    let mut types: BTreeMap<String, Vec<Declared>> = BTreeMap::new();
    for source in one.modules.values() {
        for (line, code) in source.shipped_lines() {
            if let Some((name, visible)) = declared(code) {
                types.entry(name.to_owned()).or_default().push(Declared {
                    path: source.path.clone(),
                    line,
                    visible,
                });
            }
        }
    }
    let mut findings = Vec::new();
    for (name, places) in types {
        let mut files: Vec<&Declared> = Vec::new();
        for place in &places {
            if files.iter().all(|known| known.path != place.path) {
                files.push(place);
            }
        }
        if files.len() > 1 && places.iter().any(|place| place.visible) {
            let others: Vec<String> = files.iter().skip(1).map(|f| f.path.display().to_string()).collect();
            let message =
                format!("`{name}` is also a type of {}: give each a name of its own", others.join(", "));
            findings.push(Finding::new(&files[0].path, files[0].line, message));
        }
    }
    findings
}

/// Returns the name of the type that a line declares at the top of its module, and whether other modules can see the type.
fn declared(code: &str) -> Option<(&str, bool)> {
    let mut rest = code;
    let visible = rest.starts_with("pub");
    if visible {
        rest = &rest[3..];
        if rest.starts_with('(') {
            rest = rest.split_once(')')?.1;
        }
        rest = rest.trim_start();
    }
    let (keyword, rest) = rest.split_once(' ')?;
    if !["struct", "enum", "trait", "type", "union"].contains(&keyword) {
        return None;
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some((&rest[..end], visible))
}

/// Returns every module that has modules inside it, including the crate's root.
fn parents(one: &Crate) -> BTreeSet<ModulePath> {
    one.modules.keys().flat_map(|module| (0..module.len()).map(|len| module[..len].to_vec())).collect()
}

/// Returns the imports between the children of `parent`. An import by a module inside a child counts as an import by the child.
fn imports_below(one: &Crate, parent: &[String]) -> Imports {
    let mut found = Imports::new();
    for (module, source) in &one.modules {
        let Some(from) = child(module, parent) else { continue };
        for (line, to) in imports(one, module, source) {
            let Some(to) = child(&to, parent) else { continue };
            if from != to {
                found.entry((from.clone(), to.clone())).or_insert_with(|| (source.path.clone(), line));
            }
        }
    }
    found
}

fn child(module: &[String], parent: &[String]) -> Option<String> {
    module.strip_prefix(parent)?.first().cloned()
}

/// Returns all names that `from` imports, directly or through other names.
fn reach(imports: &Imports, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(name) = open.pop() {
        for (_, to) in imports.keys().filter(|(from, _)| *from == name) {
            if seen.insert(to.clone()) {
                open.push(to.clone());
            }
        }
    }
    seen
}

/// Returns the modules of its own crate that a module names with `crate`, `super` or `self`, each with its line.
fn imports(one: &Crate, module: &[String], source: &Source) -> Vec<(usize, ModulePath)> {
    let code = source.shipped_code();
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            let mut names = Vec::new();
            expand(&code[at..], &mut Vec::new(), &mut names);
            found.extend(names.iter().filter_map(|name| Some((line, resolve(one, module, name)?))));
        }
    }
    found
}

/// Expands the groups of a path and adds the resulting paths to `names`: `a::{b, c::d}` becomes `a::b` and `a::c::d`. Returns the
/// length of the path in `text`.
fn expand(text: &str, prefix: &mut Vec<String>, names: &mut Vec<Vec<String>>) -> usize {
    let depth = prefix.len();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            loop {
                at += text[at..].len() - text[at..].trim_start_matches([' ', '\n', ',']).len();
                if at >= text.len() || text[at..].starts_with('}') {
                    at = (at + 1).min(text.len());
                    break;
                }
                let len = expand(&text[at..], prefix, names);
                // After `x as y` or `*`, skips the rest of this name, because it does not matter.
                at += len;
                at += text[at..].find([',', '}']).unwrap_or(text.len() - at);
            }
            break;
        }
        let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if len > 0 {
            prefix.push(rest[..len].to_owned());
        }
        at += len;
        if len == 0 || !text[at..].starts_with("::") {
            names.push(prefix.clone());
            break;
        }
        at += 2;
    }
    prefix.truncate(depth);
    at
}

/// Returns the innermost module of the crate in the path `name`. Returns `None` if this is `module` itself.
fn resolve(one: &Crate, module: &[String], name: &[String]) -> Option<ModulePath> {
    let (first, mut rest) = name.split_first()?;
    let mut at: ModulePath = match first.as_str() {
        "crate" => Vec::new(),
        "self" => module.to_vec(),
        _ => {
            let mut at = module.split_last()?.1.to_vec();
            while let Some((next, more)) = rest.split_first().filter(|(next, _)| *next == "super") {
                debug_assert_eq!(next, "super");
                at.pop()?;
                rest = more;
            }
            at
        }
    };
    for part in rest {
        at.push(part.clone());
        if !one.modules.contains_key(&at) {
            at.pop();
            if at.is_empty() {
                at = one.shown.get(part).cloned().unwrap_or_default();
            }
            break;
        }
    }
    (at != module).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Vec<Source> {
        files.iter().map(|(path, text)| Source::new(Path::new(path), text)).collect()
    }

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        check(&sources(files), &BTreeSet::new()).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn a_circle_is_found_through_others_and_however_the_import_is_written() {
        let files = [
            ("x/src/lib.rs", "mod a;\nmod b;\nmod c;\n"),
            ("x/src/a.rs", "use crate::{b::{B, other}, z};\n"),
            ("x/src/b/mod.rs", "mod inner;\n"),
            ("x/src/b/inner.rs", "fn f() { crate::c::g() }\n"),
            ("x/src/c.rs", "use super::a::A as _;\n"),
        ];
        assert_eq!(found(&files), ["these modules import each other in a circle: a, b, c"]);
        let mut open = files;
        open[4].1 = "// use super::a::A;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n";
        assert_eq!(found(&open), [""; 0]);
    }

    #[test]
    fn a_circle_inside_a_folder_is_found_and_a_parent_may_use_its_children() {
        let files = [
            ("x/src/lib.rs", "mod a;\n"),
            ("x/src/a/mod.rs", "mod b;\nmod c;\nuse b::B;\n"),
            ("x/src/a/b.rs", "use super::c::C;\nuse super::A;\n"),
            ("x/src/a/c.rs", "use crate::a::b::B;\n"),
        ];
        assert_eq!(found(&files), ["these modules import each other in a circle: b, c"]);
    }

    #[test]
    fn an_import_against_the_order_is_found() {
        let files = [
            ("x/src/lib.rs", "mod low;\nmod high;\n"),
            ("x/src/low.rs", "use crate::high::H;\n"),
            ("x/src/high.rs", "struct H;\n"),
        ];
        let sources = sources(&files);
        let crates = crates(&sources, &BTreeSet::new());
        let judge = |order: &str| -> Vec<String> {
            judge_order(&crates[0], order).into_iter().map(|f| f.message).collect()
        };
        assert_eq!(judge("high low"), [""; 0]);
        assert_eq!(
            judge("low high"),
            ["`low` may not import `high`: `low` is below `high` in the order of modules"]
        );
        assert_eq!(judge("low"), ["`high` has no place in xtask/src/tidy/modules.rs"]);
    }

    #[test]
    fn an_import_of_a_re_exported_name_is_found() {
        let files = [
            ("x/src/lib.rs", "mod a;\nmod b;\npub use a::A;\npub use crate::b::{inner::Other, B as C};\n"),
            ("x/src/a.rs", "use crate::{A, Other};\n"),
            ("x/src/b.rs", "mod inner;\nuse crate::A;\n"),
            ("x/src/b/inner.rs", ""),
        ];
        assert_eq!(found(&files), ["these modules import each other in a circle: a, b"]);
    }

    #[test]
    fn an_import_against_any_table_is_found() {
        for (root, order) in ORDERS {
            let names: Vec<&str> = order.split_whitespace().collect();
            for (at, low) in names.iter().enumerate() {
                for high in &names[at + 1..] {
                    let path = |name: &str| format!("{root}/{name}.rs");
                    let judge = |from: &str, to: &str| {
                        let import = format!("use crate::{to}::T;\n");
                        found(&[(&path(from), &import), (&path(to), "pub struct T;\n")])
                    };
                    assert_eq!(judge(low, high).len(), 1, "{root}: {low} imports {high}");
                    assert_eq!(judge(high, low), [""; 0], "{root}: {high} imports {low}");
                }
            }
        }
    }

    #[test]
    fn the_tables_are_those_of_this_repo() {
        let files = crate::tidy::files(&crate::repo::Repo::here()).expect("files");
        let sources = crate::tidy::sources(&files);
        let crates = crates(&sources, &crate::tidy::dead::tests_only(&sources));
        for one in crates.iter().filter(|one| !imports_below(one, &[]).is_empty()) {
            let known = ORDERS.iter().any(|(root, _)| one.root == Path::new(root));
            assert!(known, "{} has no table", one.root.display());
        }
        let map = files.iter().find(|file| file.path == Path::new("ARCHITECTURE.md")).expect("the map");
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let map = words(&map.text);
        for (root, order) in ORDERS {
            assert!(
                map.contains(&words(order)),
                "ARCHITECTURE.md has another order of the modules of {root}"
            );
            let one = crates.iter().find(|one| one.root == Path::new(root)).expect("the crate of a table");
            for name in order.split_whitespace() {
                assert!(one.modules.contains_key(&[name.to_owned()][..]), "{root} has no module {name}");
            }
        }
    }

    #[test]
    fn a_name_with_two_meanings_is_found_unless_neither_can_be_seen() {
        let files = [
            ("x/src/lib.rs", "mod a;\nmod b;\n"),
            ("x/src/a.rs", "pub(crate) struct Slot<T>(T);\nstruct Private;\n"),
            ("x/src/b.rs", "enum Slot {}\nstruct Private;\nimpl T for B {\n    type Slot = u8;\n}\n"),
        ];
        assert_eq!(found(&files), ["`Slot` is also a type of x/src/b.rs: give each a name of its own"]);
    }

    #[test]
    fn a_program_of_a_crate_stands_for_itself() {
        let files = [
            ("x/src/main.rs", "pub struct Args;\n"),
            ("x/src/bin/tool/main.rs", "mod args;\n"),
            ("x/src/bin/tool/args.rs", "pub struct Args;\n"),
        ];
        assert_eq!(found(&files), [""; 0]);
    }
}
