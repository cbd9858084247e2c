//! The storage path of one gateway: target (frontend) → LUN → backend, and the initiator beneath.
//!
//! Modules stand in the order in which a request flows. All of it is pure: bytes and time in, bytes
//! and requests out, through [`trefoil_poll::Io`]. The same code runs under io_uring and under the
//! simulator.

#![forbid(unsafe_code)]

pub mod backend;
pub mod core;
pub mod crowd;
pub mod cx;
pub mod initiator;
pub mod lun;
pub mod msg;
pub mod pool;
pub mod request;
pub mod stats;
pub mod target;
pub mod topology;
pub mod warm;

pub use self::core::{CoreLimits, StorageCore};
pub use cx::Cx;
pub use lun::Luns;
pub use msg::{Msg, StorageIo};
pub use request::{Completed, Fault, Op, Origin, Owner, Request};
pub use target::{Target, TargetLimits};

#[cfg(test)]
mod test_io;
