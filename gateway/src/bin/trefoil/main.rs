//! The command line over JSON-RPC.
#![forbid(unsafe_code)]

fn main() {}
