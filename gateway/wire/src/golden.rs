//! Helpers for golden-byte tests.

/// Returns `N` zero bytes, overwritten by each of `parts` at its offset.
pub(crate) fn bytes<const N: usize>(parts: &[(usize, &[u8])]) -> [u8; N] {
    let mut bytes = [0; N];
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    bytes
}

/// Asserts that `emit` into a dirty buffer gives exactly `expected`.
#[track_caller]
pub(crate) fn assert_emits<const N: usize>(expected: &[u8; N], emit: impl FnOnce(&mut [u8; N])) {
    let mut dirty = [0xff; N];
    emit(&mut dirty);
    for (at, (got, want)) in dirty.iter().zip(expected).enumerate() {
        assert_eq!(got, want, "byte {at}");
    }
}
