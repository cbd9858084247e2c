//! Conversion between bytes and values for the formats of a gateway: NVMe, NVMe over Fabrics, NVMe/TCP.
//!
//! What it is: for each format a plain value with named fields (a *Repr*), a function `parse` that reads bytes, and a
//! function `emit` that writes into the caller's bytes. Each format can be both read and written, because a gateway is a
//! target for its servers and a host of its arrays.
//!
//! What it is not: it does no I/O, keeps no state between calls, allocates nothing and makes no decision. This crate only
//! translates between bytes and values. The controller code above this crate decides whether a command is allowed.
//!
//! Rules that hold everywhere:
//! - `parse` never panics, for any bytes. Fixed-size formats take a reference to an array of exactly that size, so the type
//!   refuses a short buffer; `slice::first_chunk` makes such a reference.
//! - `emit` writes every byte of its format, and zero into reserved bytes. So old contents of the buffer never reach the
//!   peer.
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
