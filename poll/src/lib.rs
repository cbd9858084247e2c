//! The runtime that every core runs: buffers, events, mailboxes, timers and the turn loop.
//!
//! What it is: the interface between pure protocol machines and the outside. A machine names the buffers to fill or to
//! send, and a later event reports the result ([`Io`] and [`Handler`]). Two drivers implement the interface: the
//! io_uring driver in this crate, and the simulator's driver in `gateway/sim`.
//!
//! What it is not: it knows no storage and no network protocol.

pub mod arena;
pub mod buf;
pub mod core;
pub mod errno;
pub mod guard;
pub mod io;
pub mod lost;
pub mod mailbox;
pub mod mesh;
pub mod metrics;
pub mod ram;
pub mod rand;
pub mod send;
mod sync;
pub mod time;
pub mod uring_io;
pub mod wheel;

pub use crate::core::{CoreConfig, CoreHandle, Idle, spawn};
pub use arena::Arena;
pub use buf::{ArenaId, Buf};
pub use io::{
    CoreId, FileDone, FileError, FileId, FileOp, Handler, Io, RecvEnd, RecvInto, SockError, SockEvent,
    SockId, TableFull,
};
pub use mesh::{ControlReceiver, ControlSender, Mesh, MeshBounds, Ports, mesh};
pub use metrics::{CoreMetrics, CoreSample};
pub use ram::Loan;
pub use rand::Rng;
pub use send::SendList;
pub use time::Instant;
pub use uring_io::{Faults, UringConfig, UringIo};
pub use wheel::{TimerKey, TimerWheel};
