//! NVMe structures that do not depend on the transport: queue entries, commands, status, properties, data structures.
//!
//! Spec: NVM Express Base 2.0c and NVM Command Set 1.0c. Not here: queues and doorbells of PCIe, PRP lists, and the
//! fabrics commands (see [`crate::fabrics`]).

mod sgl;
mod sqe;

mod admin;
mod io;

mod cqe;
mod event;
mod status;

pub mod feature;
pub mod identify;
pub mod log;
pub mod property;

pub use admin::{Abort, AdminCommand, GetFeatures, GetLogPage, IdentifyCommand, SetFeatures, admin_opcode};
pub use cqe::Cqe;
pub use event::{AsyncEvent, AsyncEventType, error_event, notice_event, smart_event};
pub use io::{BlockRange, DsmCommand, DsmRange, DsmRangeIter, IoCommand, io_opcode};
pub use sgl::Sgl;
pub use sqe::{FABRICS_OPCODE, Fuse, Psdt, Sqe, Transfer};
pub use status::{Status, StatusType};

/// The NSID that means every namespace (NVMe base 2.0c §3.2.1.2).
pub const NSID_ALL: u32 = 0xffff_ffff;
