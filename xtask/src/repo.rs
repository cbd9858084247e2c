//! Where things are: the repo's root, cargo's target folder, the folder for everything that chores leave behind.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repo and the folders in it that the chores use.
#[derive(Clone, Debug)]
pub struct Repo {
    /// The folder of the workspace's `Cargo.toml`.
    pub root: PathBuf,
}

impl Repo {
    /// The repo that this program was built from.
    pub fn here() -> Self {
        let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self { root: xtask.parent().unwrap_or(xtask).to_path_buf() }
    }

    /// Cargo's target folder, as cargo itself will choose it.
    pub fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// Ignored by git: logs, downloaded kernels, tools.
    pub fn var(&self) -> PathBuf {
        self.root.join("var")
    }

    /// `cargo ARGS` at the root, with the toolchain that runs this program.
    pub fn cargo<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.args(args).current_dir(&self.root);
        command
    }

    /// Builds all programs of ours with a profile: the workspace's default members, as `cargo build` alone does, so that
    /// nothing is built twice. Cargo tells how far it is, on standard error.
    pub fn build_programs(&self, profile: &str) -> Command {
        self.cargo(["build", "--locked", "--profile", profile])
    }

    /// One of the built programs.
    pub fn program(&self, profile: &str, name: &str) -> PathBuf {
        self.target().join(profile).join(name)
    }

    /// This program again, with other words.
    pub fn xtask<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).current_dir(&self.root);
        Ok(command)
    }
}
