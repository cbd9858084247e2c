//! Bytes to values and back for the formats that a gateway speaks: NVMe, NVMe over Fabrics, NVMe/TCP.
//!
//! What it is: for each format a plain value with named fields (a *Repr*), `parse` from bytes and `emit` into the
//! caller's bytes. Both sides of each format are here, since a gateway is a target to its servers and a host to its
//! arrays.
//!
//! What it is not: it does no I/O, keeps no state between calls, allocates nothing and takes no decision. Whether a
//! command is allowed is for the controller above; this crate says only what the bytes mean.
//!
//! Rules that hold everywhere:
//! - `parse` never panics, whatever the bytes. Fixed-size formats take a reference to an array of exactly that size, so
//!   a short buffer is refused by the type; `slice::first_chunk` is the way there.
//! - `emit` writes every byte of its format, reserved ones as zero, so a dirty buffer never leaks through.
//! - Multi-byte fields are little-endian unless a field says otherwise.
//! - Reserved bits are ignored on parse and zero on emit (NVMe base 2.0c §1.4.2).
#![forbid(unsafe_code)]

#[macro_use]
mod bytes;

#[cfg(test)]
mod golden;

pub mod nvme;

pub mod fabrics;

pub mod tcp;

pub use bytes::{Ascii, AsciiError, Field, Truncated};
