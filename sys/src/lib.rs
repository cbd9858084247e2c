//! OS and hardware: all FFI lives here.

pub mod bufring;
pub mod clock;
pub mod cpu;
pub mod eventfd;
pub mod region;
pub mod socket;
pub mod uring;
