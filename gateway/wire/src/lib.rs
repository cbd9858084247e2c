//! Conversion between bytes and values for the formats of a gateway: NVMe, NVMe over Fabrics, NVMe/TCP.
//!
//! What it is: for each format a plain value with named fields (a *Repr*), `parse` from bytes and `emit` into the
//! caller's bytes. Both sides of each format are here, because a gateway is a target for its servers and a host of
//! its arrays.
//!
//! What it is not: it does no I/O, keeps no state between calls, allocates nothing and makes no decision. This
//! crate only gives the meaning of bytes; the controller above decides whether a command is allowed.
//!
//! Rules that hold everywhere:
//! - `parse` never panics, whatever the bytes. Fixed-size formats take a reference to an array of exactly that size, so
//!   the type refuses a short buffer; `slice::first_chunk` makes such a reference.
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
