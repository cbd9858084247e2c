//! Standard output and standard error of both programs.
//!
//! If output can't be written, for example to a full disk or a closed pipe, the command fails. If a message can't be written to
//! standard error, the message is lost: there is no other place for it. The exit status still reports the failure. `println!`
//! and `eprintln!` panic in both cases, so neither program uses them.

use clap::Parser;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Writes all of `text` to standard output.
///
/// # Errors
/// The system's error, with the name of the output.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    named(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a line to standard error. A failure to write is ignored.
pub fn complain(message: impl Display) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// Parses the command line of `program`.
///
/// # Errors
/// The exit status, if the user asked for help or the version, or if the usage is wrong. The help, version or error is printed
/// first.
pub fn arguments<T: Parser>(program: &str) -> Result<T, ExitCode> {
    T::try_parse().map_err(|told| {
        let printed = told.print();
        if told.use_stderr() {
            return ExitCode::from(2);
        }
        match named(printed.and_then(|()| io::stdout().flush())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(format_args!("{program}: {error}"));
                ExitCode::FAILURE
            }
        }
    })
}

fn named(written: io::Result<()>) -> io::Result<()> {
    written.map_err(|e| io::Error::new(e.kind(), format!("standard output can't be written: {e}")))
}
