//! How long what a lost association of a host of ours has under way at an array may still take effect.

use super::controller::STOP_WITHIN;
use super::fence::keep_alive_bound;
use super::qpair::CANCEL_WITHIN;

/// The longest Keep Alive Timeout towards an array, in milliseconds: the configuration takes no longer one.
pub const MAX_KATO_MS: u32 = 5_000;

/// What is there for a CQT of the array's own, in milliseconds.
const ARRAY_CQT_MS: u32 = 5_000;

/// What hosts are told (CQT) where some backends are arrays, in milliseconds. An array that has a write gets some time to
/// complete it, as much again once it is told to abort it, and some for a reset. One that answers none of these is left alone
/// for the keep-alive bound, of which the traffic-based one is the longest.
pub const ARRAY_QUIESCE_MS: u16 = {
    let asked_ms = 2 * CANCEL_WITHIN.as_millis() + STOP_WITHIN.as_millis();
    let sum_ms = asked_ms + keep_alive_bound(MAX_KATO_MS, 0, true, ARRAY_CQT_MS).as_millis();
    assert!(sum_ms <= u16::MAX as u128);
    sum_ms as u16
};
