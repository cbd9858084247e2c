//! The `user_data` of a completion: kind of operation, generation of the slot, slot.

/// The kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// An operation whose result is not needed (a cancellation).
    Ignored,
    Recv,
    Send,
    Connect,
    File,
    /// The bell rang.
    Wake,
}

const KINDS: [Kind; 6] = [Kind::Ignored, Kind::Recv, Kind::Send, Kind::Connect, Kind::File, Kind::Wake];
const GENERATION_MASK: u32 = (1 << 24) - 1;

/// Packs a `user_data` from its parts, with the low 24 bits of the generation.
pub(super) fn pack(kind: Kind, generation: u32, index: u32) -> u64 {
    (kind as u64) << 56 | u64::from(generation & GENERATION_MASK) << 32 | u64::from(index)
}

/// Returns the kind and the slot of a `user_data`, or `None` if the kind is unknown or the slot's
/// `generation` has changed.
pub(super) fn unpack(user_data: u64, generation: impl Fn(Kind, u32) -> u32) -> Option<(Kind, u32)> {
    let kind = *KINDS.get((user_data >> 56) as usize)?;
    let index = user_data as u32;
    let then = (user_data >> 32) as u32 & GENERATION_MASK;
    (then == generation(kind, index) & GENERATION_MASK).then_some((kind, index))
}
