//! The control plane: JSON-RPC, actions, durable state.
//!
//! The control plane is one tokio thread. A request becomes an [`action::Action`], the action becomes a [`plan`], and the plan
//! becomes messages to cores. The new state is stored durably before the answer goes out.
//!
//! The control plane is not on the data path. Cores serve hosts without it.

#![forbid(unsafe_code)]
// These macros panic if the output is full or closed.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod action;
pub mod address;
pub mod admin;
pub mod diff;
pub mod engine;
pub mod error;
pub mod exports;
pub mod jsonrpc;
pub mod loss;
pub mod memory;
pub mod methods;
pub mod metrics;
pub mod notes;
pub mod notify;
pub mod obstacles;
pub mod plan;
mod rpc;
mod spdk;
pub mod state;
pub mod store;
mod warm;

pub use action::{Action, Change, Phase};
pub use engine::cores::{CoreMsg, Cores, Ends};
pub use engine::handle::{Handle, LunTotals, Outcome};
pub use engine::{Engine, Seed, socket_options};
pub use error::{Fault, Refusal};
pub use methods::Methods;
pub use warm::keep_warm;
