//! Tests of output that can't be written, and of the signals that end a gateway.
#![forbid(unsafe_code)]

mod support;

use nix::sys::signal::Signal;
use std::fs::File;
use std::process::{Command, Stdio};
use support::daemon::Daemon;

/// Returns two outputs that fail: a full disk, and a pipe without a reader.
fn unwritable() -> [(&'static str, Stdio); 2] {
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    [("No space left on device", full.into()), ("Broken pipe", writer.into())]
}

/// Runs `program` with each of these outputs. The program must report why it failed.
fn fails_with_a_message(program: &str, args: &[&str]) {
    for (why, stdout) in unwritable() {
        let run = Command::new(program).args(args).stdout(stdout).output().expect("runs");
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        let told = format!("standard output can't be written: {why}");
        assert_eq!(run.status.code(), Some(1), "{program} {args:?}: {said}");
        assert!(said.lines().count() == 1 && said.contains(&told), "{program} {args:?}: {said}");
    }
}

#[test]
fn output_that_can_not_be_written_ends_every_command_of_trefoil() {
    let gateway = Daemon::start("");
    let (socket, document) = (gateway.arg("rpc.sock"), gateway.arg("trefoil.toml"));
    let commands: [&[&str]; 16] = [
        &["config", "get"],
        &["config", "backup"],
        &["config", "diff", &document],
        &["config", "apply", &document],
        &["config", "apply", "--dry-run", &document],
        &["backend", "list"],
        &["pool", "list"],
        &["lun", "list"],
        &["subsystem", "list"],
        &["host", "list"],
        &["cores"],
        &["stats"],
        &["info"],
        &["top", "--interval-ms", "50"],
        &["--json", "top", "--interval-ms", "50"],
        &["call", "rpc_get_methods"],
    ];
    for command in commands {
        fails_with_a_message(
            env!("CARGO_BIN_EXE_trefoil"),
            &[&["--socket", socket.as_str()], command].concat(),
        );
    }
    for told in [&["--help"][..], &["--version"], &["help"], &["config", "--help"]] {
        fails_with_a_message(env!("CARGO_BIN_EXE_trefoil"), told);
    }
}

#[test]
fn output_that_can_not_be_written_ends_every_command_of_trefoild() {
    let gateway = Daemon::start("");
    let text = "[gateway]\nstate_dir = \"DIR/state2\"\nrpc_socket = \"DIR/rpc2.sock\"\n";
    let other = gateway.write("other.toml", gateway.document(text));
    for args in [&["--check", &other][..], &["--preflight", &other], &["--help"], &["--version"]] {
        fails_with_a_message(env!("CARGO_BIN_EXE_trefoild"), args);
    }
    // The gateway can't print its ready line.
    for (why, stdout) in unwritable() {
        let run =
            Command::new(env!("CARGO_BIN_EXE_trefoild")).arg(&other).stdout(stdout).output().expect("runs");
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        let told = format!("trefoild: standard output can't be written: {why}");
        assert!(run.status.code() == Some(1) && said.contains(&told), "{said}");
    }
}

#[test]
fn a_message_that_can_not_be_written_leaves_the_exit_status() {
    for (program, args, status) in [
        (env!("CARGO_BIN_EXE_trefoil"), &["--socket", "/nonexistent", "info"][..], 3),
        (env!("CARGO_BIN_EXE_trefoil"), &["--nonsense"], 2),
        (env!("CARGO_BIN_EXE_trefoild"), &["/nonexistent.toml"], 1),
    ] {
        for (_, stderr) in unwritable() {
            let run = Command::new(program).args(args).stderr(stderr).status().expect("runs");
            assert_eq!(run.code(), Some(status), "{program} {args:?}");
        }
    }
}

#[test]
fn a_gateway_serves_on_when_its_log_can_not_be_written() {
    let mut gateway = Daemon::start_by("", &["sh", "-c", "exec \"$0\" \"$@\" 2>/dev/full"]);
    // Each change writes a line to the log.
    gateway.ok(&["host", "create", "web", "nqn.2026-01.org.example:web"]);
    gateway.ok(&["host", "delete", "web"]);
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.child.wait().expect("its end").success());
}

#[test]
fn sighup_stops_in_order() {
    // These tests may themselves run under nohup.
    let mut gateway = Daemon::start_by("", &["env", "--default-signal=HUP"]);
    gateway.signal(Signal::SIGHUP);
    assert!(gateway.child.wait().expect("its end").success(), "{}", gateway.log());
    assert!(!gateway.path("rpc.sock").exists() && gateway.log().contains("stopped"), "{}", gateway.log());
}

#[test]
fn under_nohup_a_gateway_outlives_sighup() {
    let gateway = Daemon::start_by("", &["nohup"]);
    gateway.signal(Signal::SIGHUP);
    gateway.ok(&["info"]);
}
