//! What the core of a controller's admin queue and the cores of its I/O queues say to each other.
//!
//! An *association* is one life of the controller, from Connect to loss; it has an epoch. A message
//! about an older epoch than the receiver knows is stale and does nothing.

use super::error::QueueError;
use super::qpair::QueueEntries;
use std::net::SocketAddr;
use trefoil_poll::CoreId;

/// See the module. At most one of each kind is under way between two cores for each queue and epoch,
/// except `Expired`: one for each command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitiatorMsg {
    /// Controller → queues: the controller is ready; connect, if your queue is among those granted.
    Open(Association),
    /// Controller → queues: the association is over; close. I/O waits.
    Close {
        /// The association.
        epoch: u32,
    },
    /// Controller → queues: writes that were sent in this association or before can't land any more:
    /// they may be sent again.
    Fenced {
        /// The last association that is fenced.
        epoch: u32,
    },
    /// Controller → queues: the loss timeout passed; what waits fails with
    /// [`PathLost`](crate::Fault::PathLost), and so does new I/O until the next `Open`.
    GiveUp,
    /// Controller → queues: the namespace can't be reached in this association, as its ANA state says. What waits fails.
    Inaccessible,
    /// Queue → controller: a command ended with an ANA status; look at the namespace's ANA state.
    AnaError {
        /// The association.
        epoch: u32,
    },
    /// Queue → controller: a core's channel is attached; tell it what it missed.
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
    /// Queue → controller: the queue is down, and not because it was told to close.
    Lost {
        /// The association.
        epoch: u32,
        /// The queue, from 1.
        qid: u16,
        /// Why.
        why: QueueError,
    },
    /// Queue → controller: a command is past its deadline; abort it.
    Expired {
        /// The association.
        epoch: u32,
        /// The queue, from 1.
        qid: u16,
        /// The command.
        cid: u16,
    },
}

/// What a queue needs to know to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Association {
    /// Counts associations of this controller, from 1.
    pub epoch: u32,
    /// The controller.
    pub cntlid: u16,
    /// Its address.
    pub to: SocketAddr,
    /// I/O queues: 1 to this.
    pub queues: u16,
    /// Size of a queue.
    pub entries: QueueEntries,
    /// In-capsule data that the controller takes on I/O queues, in bytes.
    pub max_capsule_data_bytes: u32,
    /// What the controller and the namespace can do.
    pub limits: Limits,
}

/// What commands must keep to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// Most data of one command in bytes (MDTS), at most 1 MiB.
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
