//! The repo's paths: its root, cargo's target folder, and the folder for all files that chores write.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repo, and the folders in it that the chores use.
#[derive(Clone, Debug)]
pub struct Repo {
    /// The folder that contains the workspace's `Cargo.toml`.
    pub root: PathBuf,
}

impl Repo {
    /// Returns the repo from which this program was built.
    pub fn here() -> Self {
        let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self { root: xtask.parent().unwrap_or(xtask).to_path_buf() }
    }

    /// Returns cargo's target folder, which this function determines as cargo does.
    pub fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// Returns the folder for logs, downloaded kernels and tools. git ignores this folder.
    pub fn var(&self) -> PathBuf {
        self.root.join("var")
    }

    /// Returns the command `cargo ARGS` at the root, with the toolchain that runs this program.
    pub fn cargo<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.args(args).current_dir(&self.root);
        command
    }

    /// Returns the command that builds all our programs with a profile. The command builds the workspace's default members, as
    /// plain `cargo build` does, so cargo builds nothing twice. Cargo shows its progress on standard error.
    pub fn build_programs(&self, profile: &str) -> Command {
        self.cargo(["build", "--locked", "--profile", profile])
    }

    /// Returns the path of a built program.
    pub fn program(&self, profile: &str, name: &str) -> PathBuf {
        self.target().join(profile).join(name)
    }

    /// Returns the command that runs this program again with other arguments.
    pub fn xtask<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).current_dir(&self.root);
        Ok(command)
    }
}
