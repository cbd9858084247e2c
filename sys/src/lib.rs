//! The operating system and the hardware. All FFI is in this crate.

pub mod bufring;
pub mod clock;
pub mod cpu;
pub mod eventfd;
pub mod region;
pub mod socket;
pub mod uring;
