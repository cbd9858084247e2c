//! Messages between the core of a controller's admin queue and the cores of its I/O queues.
//!
//! An *association* is one life of the controller, from Connect to loss. Each association has an epoch. The receiver
//! ignores a message whose epoch is older than the latest epoch that it knows.

use super::error::QueueError;
use super::qpair::QueueEntries;
use std::net::SocketAddr;
use trefoil_poll::CoreId;

/// One message; see the module. At most one message of each kind is under way between two cores for each queue and
/// epoch. The exception is `Expired`: at most one for each command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitiatorMsg {
    /// Controller → queues: the controller is ready. Each granted queue connects.
    Open(Association),
    /// Controller → queues: the association is over. The queues close, and I/O waits.
    Close {
        /// The association.
        epoch: u32,
    },
    /// Controller → queues: writes that were sent in this association or an earlier one can't take effect any more. The
    /// queues may send these writes again.
    Fenced {
        /// The latest association that is fenced.
        epoch: u32,
    },
    /// Controller → queues: the loss timeout passed. Waiting commands fail with [`PathLost`](crate::Fault::PathLost).
    /// New I/O also fails until the next `Open`.
    GiveUp,
    /// Controller → queues: the namespace's ANA state makes it unreachable in this association. Waiting commands fail.
    Inaccessible,
    /// Queue → controller: a command ended with an ANA status. The controller reads the namespace's ANA state.
    AnaError {
        /// The association.
        epoch: u32,
    },
    /// Queue → controller: a core's channel is attached. The controller repeats the messages that the core missed.
    Hello {
        /// The core.
        core: CoreId,
    },
    /// Queue → controller: the queue is up.
    Opened {
        /// The association.
        epoch: u32,
        /// The queue, from 1.
        qid: u16,
    },
    /// Queue → controller: the queue is down without a `Close`.
    Lost {
        /// The association.
        epoch: u32,
        /// The queue, from 1.
        qid: u16,
        /// The reason.
        why: QueueError,
    },
    /// Queue → controller: a command is past its deadline. The controller aborts it.
    Expired {
        /// The association.
        epoch: u32,
        /// The queue, from 1.
        qid: u16,
        /// The command.
        cid: u16,
    },
}

/// The data that a queue needs for its Connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Association {
    /// The number of this association of the controller, from 1.
    pub epoch: u32,
    /// The controller's CNTLID.
    pub cntlid: u16,
    /// The controller's address.
    pub to: SocketAddr,
    /// The number of I/O queues: queue identifiers run from 1 to this number.
    pub queues: u16,
    /// Size of an I/O queue.
    pub entries: QueueEntries,
    /// In-capsule data that the controller accepts on I/O queues, in bytes.
    pub max_capsule_data_bytes: u32,
    /// Limits and features of the controller and the namespace.
    pub limits: Limits,
}

/// Limits and features that commands must respect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// The largest data of one command, in bytes (MDTS), at most 1 MiB.
    pub max_transfer_bytes: u32,
    /// Write Zeroes is supported (ONCS bit 3).
    pub write_zeroes: bool,
    /// Deallocate may be sent: it is supported (ONCS bit 2) and its blocks read as zeros (DLFEAT bits 2:0).
    pub deallocate: bool,
    /// Write Zeroes may have DEAC (DLFEAT bit 3), and its blocks read as zeros.
    pub zeroes_deallocate: bool,
    /// A volatile write cache is present (VWC bit 0).
    pub volatile_write_cache: bool,
    /// ANA states are reported (CMIC bit 3).
    pub ana: bool,
}
