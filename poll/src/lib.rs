//! The runtime that every core runs: buffers, events, mailboxes, timers, the turn.
//!
//! What it is: the seam between pure protocol machines and the world. A machine names the buffers to fill or
//! to send, and a later event reports the result ([`Io`] and [`Handler`]). Two drivers implement the seam:
//! the io_uring one here, and the simulator's in `gateway/sim`.
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
