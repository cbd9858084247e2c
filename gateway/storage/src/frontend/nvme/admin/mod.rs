//! Admin and fabrics commands of controllers, independent of the transport.
//!
//! A controller belongs to its owner core, which is the core of its admin queue. A controller's I/O queues may be on any core.
//! They join the controller by messages ([`crate::msg::CtrlrMsg`]). Queues on the owner core use messages too, so that there is
//! only one code path.

mod association;
mod commands;
mod discovery;
mod events;
mod fabrics;
mod features;
mod identify;
mod log;
mod topology;
