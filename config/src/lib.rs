//! The shape of a Trefoil system, typed, with its limits.
#![forbid(unsafe_code)]
