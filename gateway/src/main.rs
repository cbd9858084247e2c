//! trefoild.
#![forbid(unsafe_code)]
fn main() {}
