//! The typed description of a Trefoil system, with its limits.
//!
//! What it is: the document that seeds a gateway's first start, that `config_get` returns, and that `config_apply` accepts.
//! [`Config::parse`] reports every mistake of a document with its line and its field; [`Config::check`] checks the whole
//! document.
//!
//! What it is not: it opens no file and knows no core. After the first start, the gateway's durable store is authoritative,
//! and a document is only a notation of its contents.

#![forbid(unsafe_code)]

mod address;
mod bytes;
mod check;
mod check_document;
mod document;
mod error;
mod nqn;
mod parse;
mod told;
mod worked;

pub use address::{Address, AddressError, Scope};
pub use bytes::{Bytes, BytesError};
pub use check::{MAX_BACKENDS, MAX_KEEP_ALIVE_S, check_listeners, check_name};
pub use check_document::{
    MAX_LUNS, MAX_PORTALS, MIN_CORE_MEMORY_BYTES, OPEN_MEMORY_BYTES, QPAIR_MEMORY_BYTES,
};
pub use document::{
    Backend, BackendType, Config, Cores, DISCOVERY_NQN, Discovery, FieldError, Gateway, Host, Idle, Log, Lun,
    Namespace, Pool, Subsystem,
};
pub use error::{ConfigError, Key, Mistake, Problem};
pub use nqn::{check_host_nqn, check_subsystem_nqn, default_serial};
pub use told::{cut, cut_quotations, suggest};
pub use worked::Worked;
