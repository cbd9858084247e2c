//! Errors of a queue pair or a controller, grouped by the side that is at fault.

use super::namespace::NamespaceIdentity;
use trefoil_poll::SockError;
use trefoil_poll::errno::{ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT};
use trefoil_wire::fabrics::{ConnectRejection, ConnectResponse};
use trefoil_wire::nvme::Status;
use trefoil_wire::tcp::{FatalStatus, HeaderError, PduType};

/// The message for an operator when a backend's address answers with another namespace than before. The message also
/// says how to use the new namespace.
pub const ANOTHER_NAMESPACE: &str =
    "another namespace answers at the backend's address: to use it, delete the backend and create it again";

/// The reason for which a queue pair went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The network failed, or the peer died.
    #[error("the connection failed: {0}")]
    Socket(SockError),
    /// The peer closed the connection.
    #[error("the controller closed the connection")]
    Eof,
    /// The peer broke the protocol; this host reports the violation to the peer.
    #[error("the controller broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The peer reports that this host broke the protocol.
    #[error("the controller terminated the connection: {0:?}")]
    Terminated(FatalStatus),
    /// The controller refused Connect.
    #[error("the controller refused Connect: {0}")]
    Refused(ConnectResponse),
    /// Connect requires authentication, which this host does not support.
    #[error("the controller requires authentication (AUTHREQ {0:#x})")]
    AuthenticationRequired(u16),
    /// The connection did not come up, or did not close, in time.
    #[error("the controller did not complete the handshake before the deadline")]
    HandshakeTimeout,
    /// A command did not complete by its deadline, and did not complete after an abort either.
    #[error("command {cid:#06x} did not complete before its deadline")]
    CommandTimeout {
        /// The command's identifier.
        cid: u16,
    },
    /// The core has no socket left.
    #[error("the core's socket table is full")]
    TableFull,
    /// The owner of the queue pair closed it.
    #[error("the gateway closed the queue pair")]
    Closed,
}

/// A protocol violation by a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A header that is invalid by itself.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// A PDU that is not legal in the present state.
    #[error("a {0:?} PDU is not legal in this state")]
    Sequence(PduType),
    /// A completion or data for a command that is not outstanding. The command has ended already, or never existed.
    #[error("command {cid:#06x} is not outstanding")]
    UnknownCommand {
        /// The CID or CCCID.
        cid: u16,
    },
    /// Data for a command that takes no data, data past the command's end, or data out of order.
    #[error("{len} bytes of data at offset {offset} do not belong to command {cid:#06x}")]
    Data {
        /// The command.
        cid: u16,
        /// Offset within the command's data, in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
    /// A second R2T for a command whose first R2T is not answered. This host allows one R2T at a time.
    #[error("the controller sent a second R2T for command {cid:#06x}")]
    R2tLimit {
        /// The command.
        cid: u16,
    },
    /// A read that succeeded before all of its data arrived.
    #[error("command {cid:#06x} succeeded with {received} of {expected} bytes")]
    ShortData {
        /// The command.
        cid: u16,
        /// Bytes received.
        received: u32,
        /// Bytes requested.
        expected: u32,
    },
    /// The controller turned on a digest that this host did not request, or the capsule data format is wrong.
    #[error("the controller turned on digests that the gateway did not request")]
    Digests,
}

impl Violation {
    /// Returns the status that the terminate request carries (NVMe-oF TCP 1.0c §3.5, figure 26).
    pub fn status(&self) -> FatalStatus {
        use trefoil_wire::tcp::field;
        match self {
            Self::Header(error) => error.status,
            Self::Sequence(_) | Self::ShortData { .. } => FatalStatus::SequenceError,
            Self::UnknownCommand { .. } => FatalStatus::InvalidHeaderField { offset_bytes: field::CCCID },
            Self::Data { .. } => FatalStatus::DataOutOfRange,
            Self::R2tLimit { .. } => FatalStatus::LimitExceeded,
            Self::Digests => FatalStatus::InvalidHeaderField { offset_bytes: field::DGST },
        }
    }
}

/// The reason for which an association ended, or was not established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// A queue was lost.
    #[error("queue {qid}: {why}")]
    Queue {
        /// The queue; 0 is the admin queue.
        qid: u16,
        /// The reason.
        why: QueueError,
    },
    /// An essential admin command failed.
    #[error("{step} failed: {status}")]
    Command {
        /// The name of the command.
        step: &'static str,
        /// The controller's answer.
        status: Status,
    },
    /// CSTS.CFS: the controller reports a fatal error.
    #[error("the controller reports fatal status (CSTS.CFS)")]
    Fatal,
    /// CSTS.RDY did not change within CAP.TO.
    #[error("the controller did not become ready within its timeout (CAP.TO)")]
    NotReady,
    /// The controller's answers show that the gateway can't use the controller.
    #[error("the controller can't be used: {0}")]
    Unusable(&'static str),
    /// The namespace that answers is not the namespace that answered before.
    #[error("{ANOTHER_NAMESPACE}: the known namespace is {was}, and the new namespace is {is}")]
    AnotherNamespace {
        /// The namespace that answered before.
        was: NamespaceIdentity,
        /// The namespace that answers now.
        is: NamespaceIdentity,
    },
    /// The namespace's handling of commands changed (DLFEAT). The queues must learn of the change before they send
    /// further commands.
    #[error("the namespace changed how its deallocated blocks read; the gateway reconnects")]
    AnotherBehaviour,
    /// The controller's owner stopped it.
    #[error("the gateway stopped the controller")]
    Stopped,
}

impl ControllerError {
    /// Returns whether further attempts will fail until somebody changes the array or the configuration.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Queue { qid: 0, why: QueueError::Refused(ConnectResponse::Failed(status)) }
            | Self::Command { status, .. } => status.is_dnr(),
            Self::Queue { qid: 0, why: QueueError::Refused(_) | QueueError::AuthenticationRequired(_) }
            | Self::Unusable(_)
            | Self::AnotherNamespace { .. } => true,
            _ => false,
        }
    }

    /// Returns the kind of error for an operator's log; `Display` has the details.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Queue { why: QueueError::Violation(_), .. } => "the array broke the protocol",
            Self::Queue { why: QueueError::Terminated(_), .. } => "the array terminated the connection",
            Self::Queue { why: QueueError::Refused(response), .. } => match response {
                ConnectResponse::InvalidParameter(ConnectRejection::SUBNQN) => {
                    "the array has no such subsystem"
                }
                ConnectResponse::InvalidParameter(ConnectRejection::HOSTNQN) => {
                    "the array rejects this gateway's host NQN (Connect Invalid Parameters): allow the NQN at the \
                     array, or set `hostnqn`"
                }
                ConnectResponse::Failed(status) if status.is(Status::CONNECT_INVALID_HOST) => {
                    "the array does not let this gateway's host NQN connect (Connect Invalid Host): allow the NQN at the array"
                }
                _ => "the array refused Connect",
            },
            Self::Queue { why: QueueError::AuthenticationRequired(_), .. } => {
                "the array requires authentication, which this gateway does not support"
            }
            Self::Queue { why: QueueError::CommandTimeout { .. }, .. } => {
                "a command to the array did not complete before its deadline"
            }
            Self::Queue { why: QueueError::Socket(SockError(errno)), .. } => match *errno {
                ECONNREFUSED => "the array refused the connection",
                ECONNRESET => "the array reset the connection",
                ENETUNREACH | EHOSTUNREACH => "no route to the array",
                ETIMEDOUT => "the connection to the array timed out",
                _ => "the connection to the array failed",
            },
            Self::Queue { why: QueueError::Eof, .. } => "the array closed the connection",
            Self::Queue { why: QueueError::HandshakeTimeout, .. } => "the array does not answer",
            Self::Queue { why: QueueError::TableFull, .. } => "the gateway has no socket left for the array",
            Self::Queue { why: QueueError::Closed, .. } => "the gateway closed the connection to the array",
            Self::Command { status, .. } if status.is(Status::INVALID_NAMESPACE) => {
                "the array has no such namespace"
            }
            Self::Command { step, .. } => step,
            Self::Fatal => "the array's controller reports a fatal error",
            Self::NotReady => "the array's controller did not become ready",
            Self::Unusable(why) => why,
            Self::AnotherNamespace { .. } => ANOTHER_NAMESPACE,
            Self::AnotherBehaviour => "the array's namespace changed how its deallocated blocks read",
            Self::Stopped => "stopped",
        }
    }
}
