//! OS and hardware: all FFI lives here.
