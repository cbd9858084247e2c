//! `./dev fuzz`: runs every fuzz target of `gateway/wire/fuzz` on its kept corpus, each for a limited time.
//!
//! Cargo itself builds the targets with the pinned compiler and libFuzzer's coverage flags. The build needs neither a nightly
//! compiler nor cargo-fuzz. The folder has cargo-fuzz's layout, so `cargo fuzz run` works too. The code under test has no
//! `unsafe`, so AddressSanitizer would add nothing. Overflow checks and debug assertions are on.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::repo::Repo;

/// The flags that libFuzzer requires: inline 8-bit counters, the table of program counters, and traced comparisons.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";

/// The only target triple of the project. If the build names the triple, cargo does not apply [`FLAGS`] to build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Runs each target for `seconds`. libFuzzer writes its findings to `var/fuzz/TARGET/`.
pub fn fuzz(repo: &Repo, seconds: u64) -> Result<()> {
    let folder = repo.root.join("gateway/wire/fuzz");
    let targets = targets(&folder.join("fuzz_targets"))?;
    if targets.is_empty() {
        bail!("fuzz: there are no fuzz targets in {}", folder.display());
    }
    let built = repo.target().join("fuzz");
    let mut build = repo.cargo(["build", "--release", "--bins", "--target", TRIPLE, "--manifest-path"]);
    build.arg(folder.join("Cargo.toml")).env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", &built);
    process::run(&mut build)?;
    let mut broken = Vec::new();
    for target in &targets {
        println!("fuzz: {target} for {seconds} s");
        let found = repo.var().join("fuzz").join(target);
        let fresh = found.join("corpus");
        std::fs::create_dir_all(&fresh).with_context(|| fresh.display().to_string())?;
        let mut run = Command::new(built.join(TRIPLE).join("release").join(target));
        // libFuzzer writes new inputs to the first folder. It only reads the second folder, the kept corpus.
        run.arg(&fresh).args(kept_corpus(&folder, target));
        run.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={}/", found.display()));
        run.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        if let Err(error) = process::run(run.current_dir(&folder)) {
            println!("fuzz: {error:#}");
            broken.push(target.as_str());
        }
    }
    if !broken.is_empty() {
        bail!(
            "fuzz: these targets crashed: {}; their inputs are under {}",
            broken.join(", "),
            repo.var().join("fuzz").display()
        );
    }
    println!("fuzz: {} targets, no crash", targets.len());
    Ok(())
}

/// Returns the names of the targets. Each file in `folder` is a target.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn kept_corpus(folder: &Path, target: &str) -> Option<PathBuf> {
    Some(folder.join("corpus").join(target)).filter(|p| p.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_rust_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["pdu.rs", "identify.rs", "README.md"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(targets(dir.path()).unwrap(), ["identify", "pdu"]);
        assert!(targets(&dir.path().join("absent")).is_err());
    }
}
