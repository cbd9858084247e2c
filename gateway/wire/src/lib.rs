//! Bytes to values and back. No I/O.
#![forbid(unsafe_code)]
