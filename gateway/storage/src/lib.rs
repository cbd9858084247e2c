//! The storage path.
#![forbid(unsafe_code)]
