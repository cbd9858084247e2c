//! The control plane.
#![forbid(unsafe_code)]
