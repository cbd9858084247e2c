//! One connection: the state of its stream, and its pending output.

use crate::list::{Fifo, NIL};
use trefoil_poll::send::BUFS;
use trefoil_poll::wheel::TimerKey;
use trefoil_poll::{Buf, Instant};
use trefoil_wire::tcp::{CommonHeader, FatalStatus, Framing, Receiver};

/// The most loans that a connection takes between two sends: as many as one list holds. Headers or earlier output may fill the
/// list first. The flush then ends the remaining loans, so that no loan lasts longer than its turn.
pub(super) const LOANS: usize = BUFS;

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    /// There is no connection.
    Free,
    /// The connection waits for ICReq.
    Opening,
    /// PDUs flow.
    Ready,
    /// A terminate request is sent or will be sent. The target discards all received bytes until the host closes.
    Terminating,
    /// The driver is closing the connection.
    Closing,
}

/// The use of a PDU's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// In-capsule data of a command.
    Capsule,
    /// Data of an H2CData.
    H2c,
    /// The rest of a capsule that is parked, including its digest.
    Parked,
}

/// The part of a PDU after its header: padding, data, data digest.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Slot that gets the data; [`NIL`] to discard the data.
    pub slot: u32,
    /// Use of the data.
    pub kind: BodyKind,
    /// Padding bytes that are still to come.
    pub pad_left: u32,
    /// Data bytes that are still to come.
    pub data_left: u32,
    /// Offset of the next byte in the slot's block.
    pub at: u32,
    /// Digest bytes that are still to come.
    pub digest_left: u8,
    /// The received part of the digest.
    pub digest: [u8; 4],
    /// True if a data digest follows. The CRC of the data is then computed.
    pub digested: bool,
    /// CRC32C of the data received so far.
    pub crc: u32,
}

impl Body {
    /// No body.
    pub const NONE: Self = Self {
        slot: NIL,
        kind: BodyKind::Capsule,
        pad_left: 0,
        data_left: 0,
        at: 0,
        digest_left: 0,
        digest: [0; 4],
        digested: false,
        crc: 0,
    };
}

/// Received bytes that can't be parsed yet.
#[derive(Debug)]
pub struct Unparsed {
    /// The block with the bytes.
    pub buf: Buf,
    /// Offset of the first byte.
    pub at: usize,
    /// Offset of the end of the bytes.
    pub end: usize,
}

/// Whole command capsules that the transport took off the stream, because pending data comes after these capsules.
#[derive(Debug)]
pub struct Parked {
    /// The block with the capsules.
    pub buf: Buf,
    /// Offset of the first byte that was not replayed yet.
    pub at: usize,
    /// Offset of the end of the last whole capsule.
    pub whole: usize,
    /// Offset of the end of the received bytes.
    pub end: usize,
}

/// A connection, of about 420 bytes.
#[derive(Debug)]
pub struct Conn {
    /// State of this connection.
    pub state: ConnState,
    /// Framing that the host and the target agreed on with ICReq.
    pub framing: Framing,
    /// HPDA in bytes.
    pub host_alignment_bytes: u32,
    /// The start of a header whose rest has not come. While terminating: the header that caused the error.
    pub stash: [u8; CommonHeader::MAX_HEADER_LEN],
    /// Number of bytes in the stash.
    pub stash_len: usize,
    /// The body that follows the last header.
    pub body: Body,
    /// True if `body` is in progress.
    pub in_body: bool,
    /// True if a receive is outstanding.
    pub receiving: bool,
    /// True if the next command waits for memory or a slot. The connection then asks the driver for no bytes.
    pub stalled: bool,
    /// The received bytes from that command on, unless the stash has all of them.
    pub unparsed: Option<Unparsed>,
    /// Commands whose R2T or response waits to be sent.
    pub ready: Fifo,
    /// Parked capsules. The transport takes these before the capsules on the stream.
    pub parked: Option<Parked>,
    /// The number of R2Ts whose data has not come completely.
    pub grants: u32,
    /// The number of R2Ts for large data that has not come completely.
    pub large_grants: u32,
    /// True if an ICResp waits to be sent.
    pub ic_resp: bool,
    /// True if the acceptor of the connection has already sent the ICResp.
    pub initialized: bool,
    /// Error of the terminate request that waits to be sent.
    pub term: Option<FatalStatus>,
    /// Time at which the outstanding send started, or at which a check last found that the host had taken more of the send.
    pub sending: Option<Instant>,
    /// Bytes that the host had taken at the last check; `None` before the first check.
    pub taken_bytes: Option<u64>,
    /// True if the send in flight contains an R2T.
    pub asked: bool,
    /// Time since which data from the host is pending (an R2T asked for it, or a header announced it). A check that finds more
    /// of the data sets this time to the time of the check.
    pub pending_since: Option<Instant>,
    /// Bytes of pending data that had come at the last check; `None` before the first check.
    pub come_bytes: Option<u64>,
    /// Bytes of pending data that have come, without the bytes in a block that the driver is filling.
    pub data_bytes: u64,
    /// Reads that loans may still answer before the next send.
    pub may_borrow: usize,
    /// True if the connection is in the list of connections with pending output.
    pub dirty: bool,
    /// Time at which the connection opened, or started to terminate.
    pub since: Instant,
    /// The connection's timer, if one is armed.
    pub timer: Option<TimerKey>,
}

impl Conn {
    /// Returns the entry of a socket without a connection.
    pub const fn new() -> Self {
        Self {
            state: ConnState::Free,
            framing: Framing::initial(Receiver::Controller),
            host_alignment_bytes: 4,
            stash: [0; CommonHeader::MAX_HEADER_LEN],
            stash_len: 0,
            body: Body::NONE,
            in_body: false,
            receiving: false,
            stalled: false,
            unparsed: None,
            ready: Fifo::EMPTY,
            parked: None,
            grants: 0,
            large_grants: 0,
            ic_resp: false,
            initialized: false,
            term: None,
            sending: None,
            taken_bytes: None,
            asked: false,
            pending_since: None,
            come_bytes: None,
            data_bytes: 0,
            may_borrow: LOANS,
            dirty: false,
            since: Instant::from_ns(0),
            timer: None,
        }
    }

    /// Returns whether the connection has output for the driver.
    pub fn has_output(&self) -> bool {
        match self.state {
            ConnState::Opening | ConnState::Ready => self.ic_resp || !self.ready.is_empty(),
            ConnState::Terminating => self.term.is_some(),
            ConnState::Free | ConnState::Closing => false,
        }
    }
}
