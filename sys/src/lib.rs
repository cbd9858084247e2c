//! OS and hardware: all FFI lives here.

pub mod region;
