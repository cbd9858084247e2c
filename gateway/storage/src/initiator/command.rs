//! Commands for a queue pair, and their results.
//!
//! The same [`Command`] survives a reconnect. The owner submits the command, gets the whole command back when the queue
//! is lost, and submits it again.

use super::error::QueueError;
use trefoil_poll::send::ZEROS_BYTES;
use trefoil_poll::{Buf, Instant};
use trefoil_wire::nvme::{Cqe, Sgl, Sqe, Transfer};

/// Bytes that a command can carry without a block: one Dataset Management range.
pub const INLINE_BYTES: usize = 16;

/// One command with its data. The queue pair fills in `sqe.cid` and `sqe.sgl1`.
///
/// The functions that make a command, and the functions that put it into a slot, are always inlined. So the command's
/// 180 bytes are written once, directly into the slot. Without inlining, they are written and then copied, and the copy
/// waits for the writes. That wait took 8 % of a host's time.
#[derive(Debug)]
#[must_use = "a command may hold a block"]
pub struct Command {
    /// The owner's identifier for the command.
    pub tag: u64,
    /// The submission queue entry.
    pub sqe: Sqe,
    pub(super) transfer: Transfer,
    pub(super) buf: Option<Buf>,
    pub(super) at: u32,
    pub(super) len: u32,
    pub(super) inline: [u8; INLINE_BYTES],
    /// The time at which the owner first submitted the command.
    pub(super) since: Instant,
    /// The time at which the command was first lost with its queue, if no completion has arrived since.
    pub(super) lost_since: Option<Instant>,
    /// The command is cancelled, since nobody waits for its result. The command is neither sent nor resent. It ends
    /// once no copy of it can take effect any more.
    pub(super) cancelled: bool,
}

impl Command {
    /// Makes a command without data.
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

    /// Makes a command that fills `buf[at..at + len]`.
    ///
    /// # Panics
    /// If the range is empty or lies outside the block.
    #[inline(always)]
    pub fn fill(tag: u64, sqe: Sqe, buf: Buf, at: u32, len: u32) -> Self {
        Self::with_block(tag, sqe, Transfer::ControllerToHost, buf, at, len)
    }

    /// Makes a command that sends `buf[at..at + len]`.
    ///
    /// # Panics
    /// If the range is empty or lies outside the block.
    #[inline(always)]
    pub fn send(tag: u64, sqe: Sqe, buf: Buf, at: u32, len: u32) -> Self {
        Self::with_block(tag, sqe, Transfer::HostToController, buf, at, len)
    }

    /// Makes a command that sends [`INLINE_BYTES`] bytes stored in the command itself.
    pub fn inline(tag: u64, sqe: Sqe, inline: [u8; INLINE_BYTES]) -> Self {
        let len = INLINE_BYTES as u32;
        Self { transfer: Transfer::HostToController, len, inline, ..Self::bare(tag, sqe) }
    }

    /// Makes a command that sends `len` zeros without a block.
    ///
    /// # Panics
    /// If `len` is more than [`ZEROS_BYTES`], or not more than [`INLINE_BYTES`].
    pub fn zeros(tag: u64, sqe: Sqe, len: u32) -> Self {
        assert!((INLINE_BYTES + 1..=ZEROS_BYTES).contains(&(len as usize)), "a command with {len} zeros");
        Self { transfer: Transfer::HostToController, len, ..Self::bare(tag, sqe) }
    }

    #[inline(always)]
    fn with_block(tag: u64, sqe: Sqe, transfer: Transfer, buf: Buf, at: u32, len: u32) -> Self {
        assert!(len > 0 && at as usize + len as usize <= buf.len(), "{len} bytes from {at} of {buf:?}");
        Self { transfer, buf: Some(buf), at, len, ..Self::bare(tag, sqe) }
    }

    /// Takes the block out of a command that the owner got back.
    pub fn take_buf(&mut self) -> Option<Buf> {
        self.buf.take()
    }

    /// Returns the bytes that a completed command filled; empty if the command has no block.
    pub fn data(&self) -> &[u8] {
        let (at, end) = (self.at as usize, self.at as usize + self.len as usize);
        self.buf.as_deref().and_then(|buf| buf.get(at..end)).unwrap_or_default()
    }

    /// Returns whether the command sends zeros; see [`zeros`](Self::zeros).
    pub(super) fn sends_zeros(&self) -> bool {
        self.buf.is_none() && self.len as usize > INLINE_BYTES
    }

    /// Returns whether a second copy of the command, if executed late, could overwrite newer data.
    pub fn changes_media(&self) -> bool {
        use trefoil_wire::nvme::io_opcode;
        !matches!(
            self.sqe.opcode,
            io_opcode::READ | io_opcode::FLUSH | io_opcode::COMPARE | io_opcode::VERIFY
        )
    }

    /// Returns the data descriptor, given the size of the data that a capsule may hold.
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

/// A command that its owner gets back.
#[derive(Debug)]
#[must_use = "a command may hold a block"]
pub struct Done {
    /// The command with its block.
    pub command: Command,
    /// The controller's completion, or the loss of the queue before a completion.
    pub result: Result<Cqe, Lost>,
}

/// The loss of the queue before the command's completion arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The controller may have received the command, so the command can still take effect.
    pub sent: bool,
}

/// A change in the state of a queue pair or its commands, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QpairEvent {
    /// Connect succeeded: commands are sent from now on.
    Up {
        /// The CNTLID of the connected controller.
        cntlid: u16,
    },
    /// The queue pair is closed, and every command is back.
    Down(QueueError),
    /// A command is past its deadline for the first time.
    Expired {
        /// The command's identifier on this queue.
        cid: u16,
    },
}
