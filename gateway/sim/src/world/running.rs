//! A core that runs, and the events that its machine has not received yet.

use crate::simio::SimIo;

/// An event that the core receives in a later turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    Recv(u32),
    Sent(u32),
    Connected(u32, Result<(), i32>),
    Closed(u32),
    File(u32),
    Mail(u16),
}

impl Ready {
    /// Returns the source of the event. Events from one source keep their order.
    pub fn source(self) -> (u8, u32) {
        match self {
            Self::Recv(s) | Self::Sent(s) | Self::Connected(s, _) | Self::Closed(s) => (0, s),
            Self::File(slot) => (1, slot),
            Self::Mail(from) => (2, u32::from(from)),
        }
    }
}

pub(crate) struct Running<M, H> {
    pub io: SimIo<M>,
    pub machine: H,
}
