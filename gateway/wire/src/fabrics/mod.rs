//! Fabrics commands and data: Connect, properties, Disconnect, authentication, discovery, NQNs.
//!
//! Spec: NVM Express Base 2.0c §6 (fabrics commands), §5.16.1.23 (discovery log), §4.5 (NQNs). Not here: the transport
//! (see [`crate::tcp`]) and the access rules.

mod nqn;

mod command;
mod connect;

pub mod discovery;

pub use command::{
    Authentication, Connect, ConnectAttributes, FabricsCommand, PropertyGet, PropertySet, PropertySize,
    fctype,
};
pub use connect::{
    ConnectData, ConnectError, ConnectFields, ConnectRejection, ConnectResponse, DYNAMIC_CNTLID,
};
pub use nqn::{Nqn, NqnError};
