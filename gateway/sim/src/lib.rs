//! Whole gateways under a seed.
//!
//! This crate is a [`World`] with virtual time, in which nodes run [`trefoil_poll::Handler`]s over [`SimIo`]. One
//! seeded generator determines links, disks, mailboxes and the order of the cores' turns. So a seed reproduces its
//! failure, and always tells the same story. Nothing here is a thread or a system call.
//!
//! This crate is not a model of speed. Latencies only serve to interleave events.

#![forbid(unsafe_code)]

pub mod direct;
pub mod disk;
pub mod hostile;
pub mod memory;
pub mod model;
pub mod mutation;
pub mod net;
pub mod node;
pub mod run;
pub mod script;
pub mod server;
pub mod simio;
pub mod story;
mod timeouts;
pub mod workload;
pub mod world;

pub use disk::{DiskFault, DiskId};
pub use net::NodeId;
pub use simio::{SimFile, SimIo, SimSocket};
pub use story::Story;
pub use world::{Accepted, Crash, Machine, Step, World};
