//! OS and hardware: all FFI lives here.

pub mod clock;
pub mod cpu;
pub mod eventfd;
pub mod region;
