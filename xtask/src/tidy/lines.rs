//! Rules that check one file.

use super::source::{Source, has_word};
use super::{Finding, TextFile};

/// The most lines of a file without its tests.
const MAX_LINES: usize = 800;

/// Folders that may use `unsafe`. In all other crates, the crate root forbids it.
const UNSAFE_FOLDERS: &[&str] = &["sys/", "poll/"];

/// Folders with code in which a panic could stop every server.
const NO_PANIC_FOLDERS: &[&str] = &["sys/src/", "poll/src/", "gateway/wire/src/", "gateway/storage/src/"];

/// The mark of an exception from the unwrap rule. A reason must follow the mark.
const ALLOW_UNWRAP: &str = "// tidy: allow unwrap: ";

// `concat!` builds the words, so the rule doesn't find them in this file.
const NOTES: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const NOTE_MACROS: [&str; 2] = [concat!("to", "do!"), concat!("unimpl", "emented!")];
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// Rules for every text file.
pub fn any_text(file: &TextFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (n, line) in file.text.lines().enumerate() {
        if let Some(note) = NOTES.iter().find(|w| has_word(line, w)) {
            findings.push(Finding::new(
                &file.path,
                n + 1,
                format!("{note}: do the work, or open an issue and remove the note"),
            ));
        }
        if let Some(path) = MACHINE_PATHS.iter().find(|p| has_absolute(line, p)) {
            findings.push(Finding::new(
                &file.path,
                n + 1,
                format!("this line has a path of one machine: {path}"),
            ));
        }
    }
    findings
}

/// Returns whether a path in the line starts with `path`. The middle of a longer path doesn't count.
fn has_absolute(line: &str, path: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || "_-./$}~".contains(c);
    line.match_indices(path).any(|(at, _)| !line[..at].ends_with(inside))
}

/// Rules for Rust files. `all_tests` is true for a file that is compiled only for tests.
pub fn rust(source: &Source, all_tests: bool) -> Vec<Finding> {
    let path = source.path.to_string_lossy();
    let is_in = |folders: &[&str]| folders.iter().any(|f| path.starts_with(f));
    let mut findings = Vec::new();
    if !is_in(UNSAFE_FOLDERS) {
        for (n, line) in source.code.lines().enumerate().filter(|(_, l)| has_word(l, "unsafe")) {
            let message =
                format!("unsafe code is allowed only in {}: {}", UNSAFE_FOLDERS.join(" and "), line.trim());
            findings.push(Finding::new(&source.path, n + 1, message));
        }
        if is_crate_root(&path) && !source.code.contains("#![forbid(unsafe_code)]") {
            findings.push(Finding::new(&source.path, 1, "this crate root lacks #![forbid(unsafe_code)]"));
        }
    }
    for (n, line) in source.code.lines().enumerate() {
        if let Some(note) = NOTE_MACROS.iter().find(|m| line.contains(**m)) {
            findings.push(Finding::new(
                &source.path,
                n + 1,
                format!("{note} stands for missing code: write the code"),
            ));
        }
    }
    if all_tests {
        return findings;
    }
    let count = source.shipped_lines().count();
    if count > MAX_LINES {
        let message = format!("this file has {count} lines without tests, and the limit is {MAX_LINES}");
        findings.push(Finding::new(&source.path, 0, message));
    }
    if is_in(NO_PANIC_FOLDERS) {
        findings.extend(unwraps(source));
    }
    findings
}

/// Returns whether the file is the root of a library or program. Integration tests, examples and fuzz targets are not shipped, so
/// they don't count.
fn is_crate_root(path: &str) -> bool {
    let program =
        path.split_once("src/bin/").map(|(_, rest)| !rest.contains('/') || rest.ends_with("/main.rs"));
    program.unwrap_or_else(|| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs"))
}

fn unwraps(source: &Source) -> Vec<Finding> {
    let raw: Vec<&str> = source.text.lines().collect();
    let allowed = |line: usize| {
        let near = [raw.get(line - 1), line.checked_sub(2).and_then(|above| raw.get(above))];
        near.iter()
            .flatten()
            .any(|l| l.split_once(ALLOW_UNWRAP).is_some_and(|(_, reason)| !reason.trim().is_empty()))
    };
    source
        .shipped_lines()
        .filter(|(n, line)| (line.contains(".unwrap()") || line.contains(".expect(")) && !allowed(*n))
        .map(|(n, line)| {
            Finding::new(&source.path, n, format!("the data path may not unwrap: {}", line.trim()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        rust(&Source::new(Path::new(path), text), false).into_iter().map(|f| f.message).collect()
    }
    fn found_in_text(text: &str) -> usize {
        any_text(&TextFile { path: "a.md".into(), text: text.to_owned() }).len()
    }

    #[test]
    fn unsafe_is_for_sys_and_poll() {
        let text = "fn f() { unsafe { g() } }\n";
        assert_eq!(found("gateway/storage/src/lun.rs", text).len(), 1);
        assert!(found("poll/src/ring.rs", text).is_empty());
        assert!(found("perf/src/a.rs", "// unsafe\nlet s = \"unsafe\";\n").is_empty());
    }

    #[test]
    fn roots_forbid_unsafe() {
        for root in [
            "config/src/lib.rs",
            "perf/src/main.rs",
            "gateway/src/bin/trefoil.rs",
            "gateway/src/bin/x/main.rs",
        ] {
            assert_eq!(found(root, "fn a() {}\n").len(), 1, "{root}");
            assert!(found(root, "#![forbid(unsafe_code)]\n").is_empty(), "{root}");
        }
        assert!(found("gateway/src/bin/x/part.rs", "fn a() {}\n").is_empty());
        assert!(found("sys/src/lib.rs", "fn a() {}\n").is_empty());
    }

    #[test]
    fn long_files_are_found_without_their_tests() {
        let code = "fn a() {}\n".repeat(800);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert!(found("perf/src/a.rs", &format!("{code}{tests}")).is_empty());
        assert_eq!(found("perf/src/a.rs", &format!("{code}fn b() {{}}\n")).len(), 1);
    }

    #[test]
    fn unwrap_needs_a_reason_or_a_test() {
        let line = "    x.unwrap();\n";
        assert_eq!(found("gateway/wire/src/a.rs", line).len(), 1);
        assert_eq!(found("sys/src/a.rs", "x.expect(\"y\");\n").len(), 1);
        assert!(found("perf/src/a.rs", line).is_empty());
        assert!(found("poll/src/a.rs", &format!("#[cfg(test)]\nmod tests {{\n{line}}}\n")).is_empty());
        assert!(found("poll/src/a.rs", &format!("// tidy: allow unwrap: checked above\n{line}")).is_empty());
        assert!(found("poll/src/a.rs", "x.unwrap(); // tidy: allow unwrap: checked above\n").is_empty());
        assert_eq!(found("poll/src/a.rs", &format!("// tidy: allow unwrap: \n{line}")).len(), 1);
        let test_file = Source::new(Path::new("poll/src/tests.rs"), line);
        assert!(rust(&test_file, true).is_empty());
    }

    #[test]
    fn notes_to_self_are_found() {
        for note in NOTES {
            assert_eq!(found_in_text(&format!("# {note}: later\n")), 1);
        }
        assert_eq!(found_in_text(&format!("my{}s\n", NOTES[0])), 0);
        for note in NOTE_MACROS {
            assert_eq!(found("perf/src/a.rs", &format!("{note}()\n")).len(), 1);
        }
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        for path in MACHINE_PATHS {
            assert_eq!(found_in_text(&format!("see {path}x\n")), 1);
            assert_eq!(found_in_text(&format!("see a{path}x\n")), 0);
        }
    }
}
