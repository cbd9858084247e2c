//! Refusals: the reasons why an action was refused or failed, sorted by the party that can remove the reason.

use crate::jsonrpc::{INTERNAL_ERROR, INVALID_PARAMS, RpcError, WRONG_STATE};
use nix::errno::Errno;
use std::io;
use trefoil_config::{FieldError, cut_quotations};

/// The party at fault. A client learns from the party what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The parameters are wrong.
    Invalid,
    /// The named object doesn't exist.
    NotFound,
    /// The object to be made exists already.
    Exists,
    /// The object is in use.
    InUse,
    /// There is no free space.
    NoSpace,
    /// The action is not legal now.
    WrongState,
    /// A backend, file, socket or disk failed.
    Device,
    /// A bug of the gateway, or a core that doesn't answer.
    Internal,
}

/// A refused or failed action. The action has changed nothing, with one exception: if a core doesn't answer after a change was
/// stored, the change stays stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The party at fault.
    pub fault: Fault,
    /// The message for a person. It names the object at fault.
    pub message: String,
}

impl Refusal {
    /// Makes a refusal.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: cut_quotations(&message.into()) }
    }
}

/// Returns the refusal for an I/O error. `what` names the device, file or socket.
pub fn device(what: impl std::fmt::Display, e: &io::Error) -> Refusal {
    let full = e.raw_os_error() == Some(Errno::ENOSPC as i32);
    Refusal::new(if full { Fault::NoSpace } else { Fault::Device }, format!("{what}: {e}"))
}

impl From<FieldError> for Refusal {
    fn from(e: FieldError) -> Self {
        Self::new(Fault::Invalid, e.to_string())
    }
}

impl From<Refusal> for RpcError {
    /// Uses SPDK's codes: a negated errno if one fits.
    fn from(e: Refusal) -> Self {
        let code = match e.fault {
            Fault::Invalid => INVALID_PARAMS,
            Fault::NotFound => -(Errno::ENODEV as i32),
            Fault::Exists => -(Errno::EEXIST as i32),
            Fault::InUse => -(Errno::EBUSY as i32),
            Fault::NoSpace => -(Errno::ENOSPC as i32),
            Fault::WrongState => WRONG_STATE,
            Fault::Device => -(Errno::EIO as i32),
            Fault::Internal => INTERNAL_ERROR,
        };
        Self::new(code, e.message)
    }
}
