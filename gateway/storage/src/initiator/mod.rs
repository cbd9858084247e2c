//! The NVMe/TCP host: connects to arrays, for the `nvme_tcp` backend and for workloads.
//!
//! What it is, from the wire up:
//! - [`qpair`], with `transmit` and `receive`: queue pairs.
//! - [`lane`]: an I/O queue, which survives reconnects.
//! - [`controller`], with `bringup` and [`discovery`]: a controller, which survives reconnects.
//! - [`fence`]: the rule that says when a write of a lost connection may be sent again.
//! - [`host`]: a controller and its I/O queues together on one core.
//! - [`message`]: the messages between the controller and its queues.
//!
//! What it is not: a target. This code opens sockets and reads the clock only through [`trefoil_poll::Io`].
//!
//! Spec: NVM Express Base 2.0c, NVM Command Set 1.0c, NVMe-oF TCP Transport 1.0c.

pub mod command;
pub mod config;
pub mod error;
mod inbound;
pub mod message;
mod namespace;
pub mod qpair;

mod receive;
mod transmit;

pub mod fence;
pub mod lane;

mod ana;
mod bringup;
pub mod controller;
pub mod discovery;
mod step;

pub mod host;
mod quiesce;

pub use ana::{AnaWatch, CHANGE_HELD};
pub use bringup::Facts;
pub use command::{Command, Done, INLINE_BYTES, Lost, QpairEvent};
pub use config::{ControllerConfig, Purpose};
pub use controller::{Controller, ControllerEvent};
pub use error::{ANOTHER_NAMESPACE, ControllerError, QueueError, Violation};
pub use fence::FenceRule;
pub use host::Host;
pub use lane::{Finished, Lane, LaneConfig};
pub use message::{Association, InitiatorMsg, Limits};
pub use namespace::NamespaceIdentity;
pub use qpair::{Identity, MAX_DEPTH, Open, Qpair, QueueEntries};
pub use quiesce::{ARRAY_QUIESCE_MS, MAX_KATO_MS};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
