//! Whole gateways under a seed.
#![forbid(unsafe_code)]
