//! The position of a queue pair in its incoming stream.

use trefoil_wire::tcp::{DIGEST_LEN, TermReq};

/// The smallest size of a large read.
pub(super) const LARGE_READ_BYTES: u32 = 32 << 10;
/// Room for header, digest and padding (PDO is at most 255 bytes), or for a terminate request of 152 bytes.
const HEAD_BYTES: usize = 256;

/// The data of one C2HData on its way to a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inbound {
    pub slot: u16,
    /// The offset of the next byte within the command's data.
    pub offset: u32,
    pub left: u32,
    /// The data's length in bytes.
    pub len: u32,
    pub success: bool,
    pub crc: u32,
    /// The received bytes of DDGST.
    pub ddgst: [u8; DIGEST_LEN],
    pub ddgst_have: usize,
}

/// The receiving side's position in the stream.
pub(super) struct Receive {
    pub head: [u8; HEAD_BYTES],
    pub have: usize,
    pub inbound: Option<Inbound>,
    /// ICResp arrived. Connect is sent as soon as the send list is free.
    pub connect_due: bool,
    /// The length of the offending PDU's header, which is at the start of `head`.
    pub offender_len: usize,
}

impl Receive {
    pub fn new() -> Self {
        Self { head: [0; HEAD_BYTES], have: 0, inbound: None, connect_due: false, offender_len: 0 }
    }

    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Returns the known part of the header of the PDU that broke the protocol.
    pub fn offender(&self) -> &[u8] {
        self.head.get(..self.offender_len).unwrap_or_default()
    }

    pub fn keep_offender(&mut self, header: &[u8]) {
        self.offender_len = header.len().min(TermReq::MAX_DATA_LEN);
        for (to, from) in self.head.iter_mut().zip(header).take(self.offender_len) {
            *to = *from;
        }
    }
}
