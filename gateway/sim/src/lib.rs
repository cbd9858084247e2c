//! Simulates whole gateways; a seed determines each run.
//!
//! This crate contains a [`World`] with virtual time, in which nodes run [`trefoil_poll::Handler`]s over [`SimIo`]. One seeded
//! generator determines the links, the disks, the mailboxes and the order of the cores' turns. So a seed always tells the same
//! story, and a failure can be repeated with its seed. Simulated links, disks and time need no threads and
//! no system calls.
//!
//! This crate does not model speed. It uses latencies only to interleave events.

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
