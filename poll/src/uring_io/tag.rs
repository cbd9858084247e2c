//! What a completion carries back: kind of operation, generation of the slot, slot.

/// The kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Nobody waits for it (a cancellation).
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

/// `user_data` from its parts; of the generation, the low 24 bits.
pub(super) fn pack(kind: Kind, generation: u32, index: u32) -> u64 {
    (kind as u64) << 56 | u64::from(generation & GENERATION_MASK) << 32 | u64::from(index)
}

/// The kind and slot of a `user_data`, and whether `generation` of that slot is still the same.
pub(super) fn unpack(user_data: u64, generation: impl Fn(Kind, u32) -> u32) -> Option<(Kind, u32)> {
    let kind = *KINDS.get((user_data >> 56) as usize)?;
    let index = user_data as u32;
    let then = (user_data >> 32) as u32 & GENERATION_MASK;
    (then == generation(kind, index) & GENERATION_MASK).then_some((kind, index))
}
