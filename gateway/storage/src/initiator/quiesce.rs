//! CQT for arrays: the longest time for which commands of a host's lost association can still take effect at an array.

use super::controller::STOP_WITHIN;
use super::fence::keep_alive_bound;
use super::qpair::CANCEL_WITHIN;

/// The longest Keep Alive Timeout towards an array that the configuration accepts, in milliseconds.
pub const MAX_KATO_MS: u32 = 5_000;

/// The largest CQT of an array for which the sum below leaves room, in milliseconds.
const ARRAY_CQT_MS: u32 = 5_000;

/// CQT as reported to hosts where some backends are arrays, in milliseconds. An array with an outstanding write gets
/// time to complete the write, the same time again to abort it, and time for a reset. If the array answers none of
/// these, the gateway waits for the keep-alive bound. The sum uses the longest keep-alive bound: the bound with
/// traffic-based keep alive.
pub const ARRAY_QUIESCE_MS: u16 = {
    let asked_ms = 2 * CANCEL_WITHIN.as_millis() + STOP_WITHIN.as_millis();
    let sum_ms = asked_ms + keep_alive_bound(MAX_KATO_MS, 0, true, ARRAY_CQT_MS).as_millis();
    assert!(sum_ms <= u16::MAX as u128);
    sum_ms as u16
};
