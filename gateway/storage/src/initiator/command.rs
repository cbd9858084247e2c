//! What a queue pair is asked to do and what comes back. The same [`Command`] survives a reconnect:
//! it goes in, comes back whole when the queue is lost, and goes in again.

use super::error::QueueError;
use trefoil_poll::send::ZEROS_BYTES;
use trefoil_poll::{Buf, Instant};
use trefoil_wire::nvme::{Cqe, Sgl, Sqe, Transfer};

/// Bytes that a command can carry without a block: one Dataset Management range.
pub const INLINE_BYTES: usize = 16;

/// One command with its data. `sqe.cid` and `sqe.sgl1` are the queue pair's to fill.
///
/// What makes one and what puts it into a slot is always inlined, so that its 180 bytes are written once, in their place:
/// a copy right behind the writes that it copies waits for them, which took 8 % of a host's time.
#[derive(Debug)]
#[must_use = "a command may hold a block"]
pub struct Command {
    /// The owner's name for it.
    pub tag: u64,
    /// What to do.
    pub sqe: Sqe,
    pub(super) transfer: Transfer,
    pub(super) buf: Option<Buf>,
    pub(super) at: u32,
    pub(super) len: u32,
    pub(super) inline: [u8; INLINE_BYTES],
    /// When its owner first asked for it.
    pub(super) since: Instant,
    /// When it was first lost with its queue; no completion has come since.
    pub(super) lost_since: Option<Instant>,
    /// Nobody waits for it: it is not sent (again), and ends once no copy of it can land any more.
    pub(super) cancelled: bool,
}

impl Command {
    /// A command without data.
    #[inline(always)]
    pub fn bare(tag: u64, sqe: Sqe) -> Self {
        Self {
            tag,
            sqe,
            transfer: Transfer::None,
            buf: None,
            at: 0,
            len: 0,
            inline: [0; INLINE_BYTES],
            since: Instant::default(),
            lost_since: None,
            cancelled: false,
        }
    }

    /// A command that fills `buf[at..at + len]`.
    ///
    /// # Panics
    /// If the range is empty or lies outside the block.
    #[inline(always)]
    pub fn fill(tag: u64, sqe: Sqe, buf: Buf, at: u32, len: u32) -> Self {
        Self::with_block(tag, sqe, Transfer::ControllerToHost, buf, at, len)
    }

    /// A command that sends `buf[at..at + len]`.
    ///
    /// # Panics
    /// If the range is empty or lies outside the block.
    #[inline(always)]
    pub fn send(tag: u64, sqe: Sqe, buf: Buf, at: u32, len: u32) -> Self {
        Self::with_block(tag, sqe, Transfer::HostToController, buf, at, len)
    }

    /// A command that sends [`INLINE_BYTES`] bytes of its own.
    pub fn inline(tag: u64, sqe: Sqe, inline: [u8; INLINE_BYTES]) -> Self {
        let len = INLINE_BYTES as u32;
        Self { transfer: Transfer::HostToController, len, inline, ..Self::bare(tag, sqe) }
    }

    /// A command that sends `len` zeros, which take no block: at most [`ZEROS_BYTES`] and more than [`INLINE_BYTES`].
    ///
    /// # Panics
    /// If there are fewer or more.
    pub fn zeros(tag: u64, sqe: Sqe, len: u32) -> Self {
        assert!((INLINE_BYTES + 1..=ZEROS_BYTES).contains(&(len as usize)), "a command with {len} zeros");
        Self { transfer: Transfer::HostToController, len, ..Self::bare(tag, sqe) }
    }

    #[inline(always)]
    fn with_block(tag: u64, sqe: Sqe, transfer: Transfer, buf: Buf, at: u32, len: u32) -> Self {
        assert!(len > 0 && at as usize + len as usize <= buf.len(), "{len} bytes from {at} of {buf:?}");
        Self { transfer, buf: Some(buf), at, len, ..Self::bare(tag, sqe) }
    }

    /// Takes the block out, once the command is back.
    pub fn take_buf(&mut self) -> Option<Buf> {
        self.buf.take()
    }

    /// The bytes that a completed command filled; empty if it has no block.
    pub fn data(&self) -> &[u8] {
        let (at, end) = (self.at as usize, self.at as usize + self.len as usize);
        self.buf.as_deref().and_then(|buf| buf.get(at..end)).unwrap_or_default()
    }

    /// Whether what it sends is zeros; see [`zeros`](Self::zeros).
    pub(super) fn sends_zeros(&self) -> bool {
        self.buf.is_none() && self.len as usize > INLINE_BYTES
    }

    /// Whether a second copy of it, landing late, could overwrite something newer.
    pub fn changes_media(&self) -> bool {
        use trefoil_wire::nvme::io_opcode;
        !matches!(
            self.sqe.opcode,
            io_opcode::READ | io_opcode::FLUSH | io_opcode::COMPARE | io_opcode::VERIFY
        )
    }

    /// The data descriptor, given how much data a capsule may hold.
    pub(super) fn sgl(&self, max_capsule_data_bytes: u32) -> Sgl {
        match self.transfer {
            _ if self.len == 0 => Sgl::NONE,
            Transfer::HostToController if self.len <= max_capsule_data_bytes => {
                Sgl::InCapsule { offset_bytes: 0, len_bytes: self.len }
            }
            _ => Sgl::Transport { len_bytes: self.len },
        }
    }
}

/// A command that is back at its owner.
#[derive(Debug)]
#[must_use = "a command may hold a block"]
pub struct Done {
    /// The command with its block.
    pub command: Command,
    /// The controller's completion, or that the queue was lost before one came.
    pub result: Result<Cqe, Lost>,
}

/// The queue was lost before the command's completion came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Whether the controller may have got it, so that it can still land.
    pub sent: bool,
}

/// What becomes of a queue pair, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QpairEvent {
    /// Connect succeeded: commands go out from now on.
    Up {
        /// The controller that we got.
        cntlid: u16,
    },
    /// It is closed and every command is back.
    Down(QueueError),
    /// A command is past its deadline, for the first time.
    Expired {
        /// Its identifier on this queue.
        cid: u16,
    },
}
