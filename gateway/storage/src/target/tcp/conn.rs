//! One connection: where its stream stands, and what waits to be sent.

use super::tx::LOANS;
use crate::target::slot::{Fifo, NIL};
use trefoil_poll::wheel::TimerKey;
use trefoil_poll::{Buf, Instant};
use trefoil_wire::tcp::{CommonHeader, FatalStatus, Framing, Receiver};

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No connection.
    Free,
    /// ICReq must come first.
    Opening,
    /// PDUs flow.
    Ready,
    /// A terminate request is said or to be said; what comes is thrown away until the host closes.
    Terminating,
    /// The driver closes it.
    Closing,
}

/// What a PDU's data is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// In-capsule data.
    Capsule,
    /// An H2CData's.
    H2c,
    /// The rest of a capsule that is parked, digest and all.
    Parked,
}

/// What follows a header that was read: padding, data, data digest.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Whose data it is; [`NIL`] to throw it away.
    pub slot: u32,
    /// What brought it.
    pub kind: BodyKind,
    /// Padding that is still to come.
    pub pad_left: u32,
    /// Data that is still to come.
    pub data_left: u32,
    /// Where in the slot's block the next byte goes.
    pub at: u32,
    /// Digest bytes that are still to come, and those that came.
    pub digest_left: u8,
    /// Received digest.
    pub digest: [u8; 4],
    /// A digest follows, so the data is summed.
    pub digested: bool,
    /// CRC32C of the data so far.
    pub crc: u32,
}

impl Body {
    /// Nothing.
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

/// Bytes that were received but can't be worked on yet.
#[derive(Debug)]
pub struct Spill {
    /// Their block.
    pub buf: Buf,
    /// The first of them.
    pub at: usize,
    /// Their end.
    pub end: usize,
}

/// Whole command capsules that were taken off the stream because data that was asked for is behind them.
#[derive(Debug)]
pub struct Parked {
    /// Their block.
    pub buf: Buf,
    /// The first byte that was not replayed.
    pub at: usize,
    /// The end of the last capsule that is whole.
    pub whole: usize,
    /// The end of what has come.
    pub end: usize,
}

/// A connection: about 450 bytes.
#[derive(Debug)]
pub struct Conn {
    /// How far it is.
    pub state: State,
    /// What was agreed with ICReq.
    pub framing: Framing,
    /// HPDA in bytes.
    pub host_alignment_bytes: u32,
    /// The start of a header whose rest has not come; once terminating, the header that was wrong.
    pub stash: [u8; CommonHeader::MAX_HEADER_LEN],
    /// Bytes of it.
    pub stash_len: usize,
    /// What follows the last header.
    pub body: Body,
    /// Whether something does.
    pub in_body: bool,
    /// A receive is outstanding.
    pub receiving: bool,
    /// The next command waits for memory or a slot; no receive is asked for meanwhile.
    pub stalled: bool,
    /// Bytes from there on, unless all are in the stash.
    pub spill: Option<Spill>,
    /// Commands that wait for memory.
    pub waiting: Fifo,
    /// Commands whose R2T or response is to be sent.
    pub ready: Fifo,
    /// Capsules to be taken before those on the stream.
    pub parked: Option<Parked>,
    /// R2Ts whose data has not come whole.
    pub grants: u32,
    /// R2Ts whose data is large and has not come whole.
    pub large_grants: u32,
    /// ICResp is to be sent.
    pub ic_resp: bool,
    /// Whoever accepted it has sent the ICResp.
    pub initialized: bool,
    /// A terminate request is to be sent.
    pub term: Option<FatalStatus>,
    /// Since when a send is outstanding, or when it was last seen to move.
    pub sending: Option<Instant>,
    /// Bytes that the host had taken by then, once that was looked at.
    pub taken_bytes: Option<u64>,
    /// An R2T is in the send under way.
    pub asked: bool,
    /// Since when data is missing that the host owes (it was asked for, or a header has announced it), or when some was
    /// last seen to come.
    pub owed: Option<Instant>,
    /// Bytes of such data that had come by then, once that was looked at.
    pub come_bytes: Option<u64>,
    /// Bytes of such data that have come whole.
    pub data_bytes: u64,
    /// Reads that may still be answered with loans before the next send.
    pub may_borrow: usize,
    /// It is in the list of connections with something to send.
    pub dirty: bool,
    /// It is in the list of connections that wait for memory or a slot.
    pub starved: bool,
    /// Since when it is in its state.
    pub since: Instant,
    /// Its timer, if one is armed.
    pub timer: Option<TimerKey>,
}

impl Conn {
    /// No connection.
    pub const fn new() -> Self {
        Self {
            state: State::Free,
            framing: Framing::initial(Receiver::Controller),
            host_alignment_bytes: 4,
            stash: [0; CommonHeader::MAX_HEADER_LEN],
            stash_len: 0,
            body: Body::NONE,
            in_body: false,
            receiving: false,
            stalled: false,
            spill: None,
            waiting: Fifo::new(),
            ready: Fifo::new(),
            parked: None,
            grants: 0,
            large_grants: 0,
            ic_resp: false,
            initialized: false,
            term: None,
            sending: None,
            taken_bytes: None,
            asked: false,
            owed: None,
            come_bytes: None,
            data_bytes: 0,
            may_borrow: LOANS,
            dirty: false,
            starved: false,
            since: Instant::from_ns(0),
            timer: None,
        }
    }

    /// Whether something can be handed to the driver now.
    pub fn has_output(&self) -> bool {
        match self.state {
            State::Opening | State::Ready => self.ic_resp || !self.ready.is_empty(),
            State::Terminating => self.term.is_some(),
            State::Free | State::Closing => false,
        }
    }
}
