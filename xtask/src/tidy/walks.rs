//! Refuses guides that name files or functions that do not exist.
//!
//! Two rules:
//! - in ARCHITECTURE.md, a section whose heading starts with `Walk` follows a command through the code. The section has a table.
//!   Each row of the table is a hop: a file from the repo's root, a function of that file, and the function's part in the walk. A
//!   function is written as `function`, or as `Type::function` if it belongs to the `impl` of a type or to a trait;
//! - a path in backticks in one of the [`GUIDES`] exists, as a whole or as the end of a longer path.

use std::path::Path;

use super::source::{Source, balanced_len};
use super::{Finding, TextFile};

/// The file with the walks.
const MAP: &str = "ARCHITECTURE.md";

/// Files whose paths are checked.
const GUIDES: [&str; 4] = [MAP, "README.md", "CONTRIBUTING.md", "STYLE.md"];

/// Folders that a build or a run creates.
const MADE: [&str; 2] = ["target", "var"];

/// Finds walks without hops, hops to a function that does not exist, and paths that do not exist.
pub fn check(files: &[TextFile], sources: &[Source]) -> Vec<Finding> {
    let named = |name: &str| files.iter().find(|file| file.path == Path::new(name));
    let mut findings: Vec<Finding> = named(MAP).map(|map| walks(map, sources)).unwrap_or_default();
    for guide in GUIDES.iter().filter_map(|name| named(name)) {
        findings.extend(lost_paths(guide, files));
    }
    findings
}

/// Finds the errors in all walks of a file.
fn walks(map: &TextFile, sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Inside a walk: the line of the walk's heading, and the number of hops so far. Outside: `None`.
    let mut walk: Option<(usize, usize)> = None;
    let mut any = false;
    let mut end = |walk: Option<(usize, usize)>, findings: &mut Vec<Finding>| {
        any |= walk.is_some();
        if let Some((line, 0)) = walk {
            findings.push(Finding::new(&map.path, line, "a walk without hops"));
        }
    };
    // The number of rows of the table so far. The first two rows are the table's head.
    let mut rows = 0;
    for (n, line) in map.text.lines().enumerate() {
        rows = if line.starts_with('|') { rows + 1 } else { 0 };
        if line.starts_with('#') {
            let is_walk = line.trim_start_matches('#').trim_start().starts_with("Walk");
            end(walk, &mut findings);
            walk = is_walk.then_some((n + 1, 0));
        } else if let (Some((_, hops)), 3..) = (&mut walk, rows) {
            *hops += 1;
            findings.extend(lost_hop(line, sources).map(|why| Finding::new(&map.path, n + 1, why)));
        }
    }
    end(walk, &mut findings);
    if !any {
        findings.push(Finding::new(&map.path, 0, "there is no walk"));
    }
    findings
}

/// Returns the reason if the row of a walk does not name an existing function.
fn lost_hop(row: &str, sources: &[Source]) -> Option<String> {
    let mut cells = row.split('|').skip(1).map(|cell| cell.trim().strip_prefix('`')?.strip_suffix('`'));
    let (Some(Some(path)), Some(Some(function))) = (cells.next(), cells.next()) else {
        return Some("a hop names a file and a function, each in backticks".into());
    };
    let Some(source) = sources.iter().find(|source| source.path == Path::new(path)) else {
        return Some(format!("no file {path}"));
    };
    (!holds(&source.shipped_code(), function)).then(|| format!("no function {function} in {path}"))
}

/// Returns whether the code has a function that is named `function` or `Type::function`.
fn holds(code: &str, function: &str) -> bool {
    let (owned, free) = split(code);
    match function.rsplit_once("::") {
        Some((owner, name)) => owned.iter().any(|(known, body)| *known == owner && has_fn(body, name)),
        None => has_fn(&free, function),
    }
}

/// Returns whether the code declares a function of that name.
fn has_fn(code: &str, name: &str) -> bool {
    let mut declared = code.lines().filter_map(|line| line.split_once("fn ")?.1.strip_prefix(name));
    declared.any(|rest| rest.starts_with(['<', '(']))
}

/// Splits code into two parts. The first part is the bodies of `impl` blocks and traits, each with the name of its type or trait.
/// The second part is all other code.
fn split(code: &str) -> (Vec<(&str, &str)>, String) {
    let (mut owned, mut free) = (Vec::new(), String::new());
    let mut rest = code;
    while let Some(line) = rest.split_inclusive('\n').next() {
        let body = owner(line, rest).and_then(|name| Some((name, rest.find('{')?)));
        let Some((name, open)) = body else {
            free.push_str(line);
            rest = &rest[line.len()..];
            continue;
        };
        let end = open + balanced_len(&rest[open..]);
        owned.push((name, &rest[open..end]));
        rest = &rest[end..];
    }
    (owned, free)
}

/// Returns the type of the `impl` block, or the name of the trait, that starts with `line`. `rest` is the code from that line on.
fn owner<'a>(line: &str, rest: &'a str) -> Option<&'a str> {
    let words = line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
    let words = words.trim_start_matches("unsafe ");
    let head = rest.get(line.len() - words.len()..rest.find('{')?)?;
    let head = match head.strip_prefix("impl").filter(|head| head.starts_with(['<', ' '])) {
        Some(head) => &head[generics_len(head)..],
        None => head.strip_prefix("trait ")?,
    };
    let words: Vec<&str> = head.split_whitespace().take_while(|word| *word != "where").collect();
    let path = words.rsplit(|word| *word == "for").next()?.first()?;
    let path = path.split(['<', '(']).next()?;
    path.trim_end_matches(':').rsplit("::").next()
}

/// Returns the length of `<...>` at the start of `head`; 0 if there is none.
fn generics_len(head: &str) -> usize {
    let mut depth = 0;
    let mut before = ' ';
    for (at, c) in head.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return if at == 0 { 0 } else { at + 1 };
        }
        before = c;
    }
    head.len()
}

/// Finds the paths in backticks that do not exist in the repo.
fn lost_paths(guide: &TextFile, files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (n, line) in guide.text.lines().enumerate().filter(|(_, line)| !line.starts_with("    ")) {
        for path in line.split('`').skip(1).step_by(2).filter(|span| is_path(span)) {
            let is_made = path.split('/').next().is_some_and(|first| MADE.contains(&first));
            if !is_made && !files.iter().any(|file| leads_to(path, &file.path)) {
                findings.push(Finding::new(&guide.path, n + 1, format!("no file or folder {path}")));
            }
        }
    }
    findings
}

/// Returns whether the text is a path inside this repo that contains a folder. A text that starts with `/` or `.` is no such
/// path.
fn is_path(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    text.contains('/') && text.chars().all(allowed) && !text.starts_with(['/', '.'])
}

/// Returns whether `path` is the file or one of its folders, or the end of the path of one of them.
fn leads_to(path: &str, file: &Path) -> bool {
    let path = Path::new(path);
    file.ancestors().any(|part| part.ends_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "pub struct Lane<T>(T);\n\
        impl<F: Fn() -> u8> Drop for Lane<F>\nwhere\n    F: Copy,\n{\n    fn drop(&mut self) {}\n}\n\
        impl crate::x::Other {\n    pub(super) fn submit<I>(&self) { helper() }\n}\n\
        pub trait Io: Sized {\n    fn send(&mut self);\n}\n\
        fn helper() {}\n\
        #[cfg(test)]\nmod tests {\n    fn planted() {}\n}\n";

    const HEAD: &str = "| file | function | what |\n| --- | --- | --- |\n";

    fn found(map: &str) -> Vec<String> {
        let text = |path: &str, text: &str| TextFile { path: path.into(), text: text.to_owned() };
        let files = [text(MAP, map), text("a/src/lane.rs", CODE)];
        check(&files, &super::super::sources(&files)).into_iter().map(|f| f.message).collect()
    }

    fn walk(path: &str, function: &str) -> Vec<String> {
        found(&format!(
            "### Walk: x\n\n| file | function | what |\n| --- | --- | --- |\n| `{path}` | `{function}` | y |\n"
        ))
    }

    #[test]
    fn hops_that_exist_are_accepted() {
        for function in ["Lane::drop", "Other::submit", "Io::send", "helper"] {
            assert_eq!(walk("a/src/lane.rs", function), [""; 0], "{function}");
        }
    }

    #[test]
    fn an_invented_file_is_found_even_if_it_is_the_end_of_a_path() {
        assert_eq!(walk("src/lane.rs", "helper"), ["no file src/lane.rs"]);
        assert_eq!(walk("a/src/line.rs", "helper")[0], "no file a/src/line.rs");
    }

    #[test]
    fn a_function_that_is_gone_or_of_another_type_is_found() {
        for function in [
            "Lane::submit",
            "Other::drop",
            "Other::helper",
            "Drop::drop",
            "Lane::gone",
            "drop",
            "gone",
            "planted",
        ] {
            let expected = format!("no function {function} in a/src/lane.rs");
            assert_eq!(walk("a/src/lane.rs", function), [expected], "{function}");
        }
    }

    #[test]
    fn a_walk_without_hops_and_a_map_without_walks_are_found() {
        assert_eq!(found(&format!("## Walk: x\n{HEAD}## Other\n{HEAD}| b | c |\n")), ["a walk without hops"]);
        assert_eq!(found("## Walk: x\n"), ["a walk without hops"]);
        assert_eq!(found("## Other\n"), ["there is no walk"]);
        let row = found(&format!("## Walk: x\n{HEAD}| `a/src/lane.rs` | `helper` | y |\n| helper | | y |\n"));
        assert_eq!(row, ["a hop names a file and a function, each in backticks"]);
    }

    #[test]
    fn paths_exist_or_are_the_end_of_one() {
        let map =
            |text: &str| found(&format!("## Walk: x\n{HEAD}| `a/src/lane.rs` | `helper` | y |\n\n{text}\n"));
        let sound = "`a/src/lane.rs`, `src/lane.rs`, `src/`, `target/release`, `/etc/x`, `a/b c`, `gone.rs`";
        assert_eq!(map(sound), [""; 0]);
        assert_eq!(map("    see `a/gone.rs` in a block"), [""; 0]);
        assert_eq!(
            map("see `a/gone.rs` and `rc/`"),
            ["no file or folder a/gone.rs", "no file or folder rc/"]
        );
    }
}
