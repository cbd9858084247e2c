//! Runs other programs, either with a time budget for the whole process group, or without a limit.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

/// How a run with a time budget ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The program exited with this status.
    Exited(ExitStatus),
    /// The program used up its budget. The program and its process group were killed.
    OutOfTime,
}

/// The interval at which a wait checks its condition.
pub const LOOK: Duration = Duration::from_millis(20);

/// Runs `command` in a process group of its own, and appends both of its outputs to `log`. Kills the group at `deadline`. Ctrl-C
/// and SIGTERM also kill the group, and then end this program.
pub fn run_until(command: &mut Command, deadline: Instant, log: &File) -> Result<End> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("can't start {}", shown(command)))?;
    let group = Pid::from_raw(child.id().cast_signed());
    // This program blocks the signals only after the spawn, because a child would inherit the mask.
    let caught = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    caught.thread_block()?;
    let signals = SignalFd::with_flags(&caught, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let end = loop {
        if let Some(status) = child.try_wait()? {
            break End::Exited(status);
        }
        if signals.read_signal()?.is_some() {
            let _ = killpg(group, Signal::SIGKILL);
            bail!("{} was interrupted", shown(command));
        }
        if Instant::now() >= deadline {
            break End::OutOfTime;
        }
        std::thread::sleep(LOOK);
    };
    // Kills the group even after a normal end, because leftover processes must not disturb the next stage.
    let _ = killpg(group, Signal::SIGKILL);
    if end == End::OutOfTime {
        child.wait()?;
    }
    caught.thread_unblock()?;
    Ok(end)
}

/// Waits until `deadline` for a program to end. Returns `None` if the program is still running then.
pub fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(LOOK);
    }
}

/// Runs `command` with this program's own input and output. Returns an error if the command fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("can't start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` and returns its standard output without the final line end. Passes standard error through.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("can't start {}", shown(command)))?;
    if !out.status.success() {
        bail!("{} ended with {}", shown(command), out.status);
    }
    Ok(String::from_utf8(out.stdout)?.trim_end().to_owned())
}

/// Returns the command as a person would type it. The text is not quoted for a shell.
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|a| a.to_string_lossy()));
    words.join(" ")
}

/// Returns the last `count` lines of a file, or all lines if it has fewer.
pub fn tail(path: &Path, count: usize) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn a_run_in_time_reports_its_status() {
        let deadline = Instant::now() + Duration::from_secs(30);
        let end = run_until(Command::new("sh").args(["-c", "exit 3"]), deadline, &log()).unwrap();
        let End::Exited(status) = end else { panic!("{end:?}") };
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_run_over_its_budget_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
        let deadline = Instant::now() + Duration::from_millis(300);
        let end = run_until(Command::new("sh").args(["-c", &script]), deadline, &log()).unwrap();
        assert_eq!(end, End::OutOfTime);
        let pid = std::fs::read_to_string(pid_file).unwrap();
        // SIGKILL takes effect when its target next leaves the kernel. After that, an orphan stays visible as a zombie (state Z)
        // until init reaps it. Neither delay has a limit, so the test waits for the zombie state.
        let gone_by = Instant::now() + Duration::from_secs(60);
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            let state = stat.rsplit(") ").next().unwrap_or_default().chars().next();
            if matches!(state, None | Some('Z' | 'X')) {
                break;
            }
            assert!(Instant::now() < gone_by, "still there: {stat}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn tail_is_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "a\nb\nc\n").unwrap();
        assert_eq!(tail(&path, 2), "b\nc");
        assert_eq!(tail(&path, 9), "a\nb\nc");
    }
}
