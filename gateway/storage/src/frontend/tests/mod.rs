//! Tests of the target against a scripted host.

mod faults;
mod host;
mod rig;
mod session;

mod admin;
mod association;
mod capacity;
mod direct;
mod lending;
mod memory;
mod states;
mod turn;
