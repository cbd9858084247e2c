//! The NVMe/TCP host: what reaches an array, for the `nvme_tcp` backend and for workloads.
//!
//! What it is: queue pairs ([`qpair`], with `transmit` and `receive`).
//!
//! What it is not: a target. Nothing here opens a socket or reads a clock; all goes through
//! [`trefoil_poll::Io`].
//!
//! Spec: NVM Express Base 2.0c, NVM Command Set 1.0c, NVMe-oF TCP Transport 1.0c.

pub mod command;
pub mod error;
pub mod qpair;

mod receive;
mod transmit;

pub use command::{Command, Done, INLINE_BYTES, Lost, QpairEvent};
pub use error::{QueueError, Violation};
pub use qpair::{Identity, MAX_DEPTH, Open, Qpair};
