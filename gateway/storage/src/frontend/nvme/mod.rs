//! Commands and controllers: the meaning of a host's command, whichever transport carries it.
//!
//! [`engine`], [`io`] and [`admin`] get a slot with a command, and perhaps a block with its data. They answer with the command's
//! next need, or with its completion.

pub mod admin;
pub mod calls;
pub mod capacity;
pub mod ctrlr;
pub mod drain;
pub mod engine;
pub mod io;
pub mod queue;
pub mod refusals;
pub mod slot;
pub mod survey;
pub mod sweep;
