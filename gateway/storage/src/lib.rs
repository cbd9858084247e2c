//! The storage path of one gateway: frontend → LUN → backend, and the initiator beneath.
//!
//! All code here is pure: bytes and time in, bytes and requests out, through [`trefoil_poll::Io`]. The same code runs
//! under io_uring and under the simulator.

#![forbid(unsafe_code)]

pub mod backend;
pub mod core;
pub mod cx;
pub mod fair;
pub mod frontend;
pub mod initiator;
pub mod list;
pub mod lun;
pub mod msg;
pub mod pool;
pub mod request;
pub mod slab;
pub mod stats;
pub mod topology;
pub mod warm;

pub use self::core::{CoreLimits, StorageCore};
pub use cx::Cx;
pub use frontend::{Target, TargetLimits};
pub use lun::Luns;
pub use msg::{Msg, StorageIo};
pub use request::{Completed, Fault, Op, Origin, Owner, Request};

#[cfg(test)]
mod test_io;
