//! `./dev tidy`: enforces the house rules. Each rule is a function that takes the files and returns findings. A test for each
//! rule shows that the rule finds a breach. The rules:
//!
//! - crates are used only in the direction sys, poll, storage, control, gateway, {sim, perf}; wire is the leaf, config uses it;
//! - `unsafe` only in sys/ and poll/; every other crate root says `#![forbid(unsafe_code)]`;
//! - no file over 800 lines without its tests;
//! - no `.unwrap()` or `.expect(` outside tests in poll, sys, wire and storage; a comment `// tidy: allow unwrap: reason` on the
//!   line or on the line above it makes an exception;
//! - no circle between the modules of a folder;
//! - no import against a crate's stated order of modules;
//! - no type name with two meanings in one crate;
//! - no Rust file that no crate reaches;
//! - each hop of a walk in ARCHITECTURE.md names a function that exists, and each path in the guides a file that exists;
//! - no notes about unfinished work, no paths of a developer's machine.

mod dead;
mod direction;
mod lines;
mod modules;
mod source;
mod walks;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::repo::Repo;
use source::Source;

/// A breach of a rule, and its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    path: PathBuf,
    /// The line, counted from 1, or 0 for the whole file.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &Path, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), line, message: message.into() }
    }
}

/// A text file of the repo, by its path from the root.
#[derive(Clone, Debug)]
pub struct TextFile {
    path: PathBuf,
    text: String,
}

/// Checks the whole repo and prints the findings. Returns an error if there is a finding.
pub fn tidy(repo: &Repo) -> Result<()> {
    let files = files(repo)?;
    let findings = check(&files);
    for f in &findings {
        println!("{}:{}: {}", f.path.display(), f.line, f.message);
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings in {} files", findings.len(), files.len());
    }
    println!("tidy: {} files, no findings", files.len());
    Ok(())
}

/// Applies all rules to all files.
fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = direction::check(files);
    for file in files {
        findings.extend(lines::any_text(file));
    }
    let sources = sources(files);
    let tests_only = dead::tests_only(&sources);
    for source in &sources {
        findings.extend(lines::rust(source, tests_only.contains(&source.path)));
    }
    findings.extend(dead::check(files, &sources));
    findings.extend(modules::check(&sources, &tests_only));
    findings.extend(walks::check(files, &sources));
    findings.sort();
    findings
}

/// Reads the Rust files among `files`.
fn sources(files: &[TextFile]) -> Vec<Source> {
    let rust = files.iter().filter(|f| f.path.extension().is_some_and(|e| e == "rs"));
    rust.map(|f| Source::new(&f.path, &f.text)).collect()
}

/// Returns every text file that git tracks, or would track after `git add`.
fn files(repo: &Repo) -> Result<Vec<TextFile>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(&repo.root);
    let mut files = Vec::new();
    for name in process::output(&mut git)?.split('\0').filter(|n| !n.is_empty()) {
        let path = repo.root.join(name);
        // git lists this file, but the file is missing in the work tree.
        if !path.is_file() {
            continue;
        }
        let bytes = std::fs::read(&path).with_context(|| name.to_owned())?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(TextFile { path: name.into(), text });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repo_is_tidy() {
        assert_eq!(check(&files(&Repo::here()).unwrap()), []);
    }
}
