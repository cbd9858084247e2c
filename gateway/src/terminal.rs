//! Standard output and standard error of both programs.
//!
//! Output that can't be written, to a full disk or a closed pipe, is an error of the command. A message on standard error
//! that can't be written is lost: there is no other place for it, and the exit status still tells. `println!` and
//! `eprintln!` panic in both cases, so neither program uses them.

use clap::Parser;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Writes `text` to standard output, up to its last byte.
///
/// # Errors
/// What the system says, with the name of the output.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    named(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a line to standard error, as far as that takes it.
pub fn complain(message: impl Display) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// The command line of `program`.
///
/// # Errors
/// The exit status, if there is nothing to run: help or the version was asked for, or the usage is wrong. Both are told.
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
