//! Controllers and their admin commands, transport-neutral.
//!
//! A controller lives on the core of its admin queue, its owner. Its I/O queues may be on any core: they join it by
//! messages ([`crate::msg::CtrlrMsg`]), also those on the owner itself, so that there is one code path.

mod admin;
mod association;
mod discovery;
mod events;
mod fabrics;
mod features;
mod identify;
mod log;
mod sweep;
mod table;

pub use sweep::{MAX_SWEEPS, Sweep};
pub use table::{Ctrlr, Ctrlrs, Kind, MAX_CNTLID};

/// FNV-1a, by which cores compare names without sending them.
pub(super) fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
