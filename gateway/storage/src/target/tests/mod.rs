//! Tests of the target against a scripted host.
