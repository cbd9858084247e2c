//! A backend in a file or on a block device.
//!
//! A request becomes one or more [`FileOp`]s. Where the file system or device can't zero or punch a range, the channel
//! writes zeros instead. Control opens the file and checks its geometry.
//!
//! The channel can't cancel an operation that the kernel already has. So a cancelled request ends when its current
//! operation ends, and starts no further operation.

use super::Channel;
use crate::cx::Cx;
use crate::list::List;
use crate::msg::StorageIo;
use crate::request::{Fault, Op, Request, Stream};
use crate::slab::Slab;
use crate::topology::BackendId;
use trefoil_poll::errno::{
    EBADF, ECANCELED, EDQUOT, EFBIG, EINVAL, ENODEV, ENOLINK, ENOSPC, ENOSYS, ENXIO, EOPNOTSUPP, EPERM,
    EROFS, ESTALE, ETIMEDOUT,
};
use trefoil_poll::{Buf, FileDone, FileError, FileId, FileOp};

/// Size of the blocks of zeros that the channel writes where the kernel can't zero a range.
const ZEROS_BYTES: usize = 128 << 10;

/// This core's channel to a file or block device that the core's driver has open.
#[derive(Debug)]
pub struct File {
    backend: BackendId,
    file: FileId,
    slots: Slab<Slot>,
    /// The slots that wait for a block of zeros.
    waiting: List,
    can_zero: bool,
    can_punch: bool,
}

/// One request of a file channel.
#[derive(Debug)]
pub struct Slot {
    request: Request,
    step: Step,
    /// The block of zeros, except while the kernel has it.
    zeros: Option<Buf>,
    /// The request was cancelled, so it starts no further operation.
    cancelled: bool,
}

/// The current operation of a request.
#[derive(Clone, Copy, Debug)]
enum Step {
    Data,
    Punch,
    Zero,
    /// Writing zeros: the bytes that are done, and the length of the write in flight.
    Zeros {
        done: u64,
        under_way: u64,
    },
    Sync,
}

impl File {
    /// Creates the table for a channel with at most `requests` in flight; further requests wait. Each slot takes about
    /// 200 bytes, reserved now and touched only on first use.
    pub fn slots(requests: usize) -> Slab<Slot> {
        Slab::with_capacity(requests)
    }

    pub(super) fn new(backend: BackendId, file: FileId, slots: Slab<Slot>) -> Self {
        Self { backend, file, slots, waiting: List::EMPTY, can_zero: true, can_punch: true }
    }

    pub(super) fn file(&self) -> FileId {
        self.file
    }

    /// Handles the driver's answer to one of this channel's operations.
    pub(super) fn on_file<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, done: FileDone) {
        let at = done.token as u32;
        let Some(slot) = self.slots.get_mut(at) else {
            debug_assert!(false, "backend {}: no slot {at} for {done:?}", self.backend.0);
            if let Some(buf) = done.buf {
                cx.arena.free(buf);
            }
            return;
        };
        let op = slot.request.op;
        match slot.step {
            Step::Data => {
                slot.request.buf = done.buf;
                self.finish(cx, at, done.result.map_err(|error| fault(op, error)));
            }
            Step::Sync => self.finish(cx, at, done.result.map_err(|error| fault(op, error))),
            Step::Punch | Step::Zero => match done.result {
                result if slot.cancelled => self.finish(cx, at, result.map_err(|error| fault(op, error))),
                Ok(()) if slot.request.durable && op != Op::Deallocate => {
                    slot.step = Step::Sync;
                    self.go_on(cx, at);
                }
                Err(error) if is_unsupported(error) => {
                    match slot.step {
                        Step::Punch => self.can_punch = false,
                        _ => self.can_zero = false,
                    }
                    match self.first_step(op) {
                        Some(step) => self.set_step(cx, at, step),
                        None => self.finish(cx, at, Ok(())),
                    }
                }
                result => self.finish(cx, at, result.map_err(|error| fault(op, error))),
            },
            Step::Zeros { done: before, under_way } => {
                slot.zeros = done.buf;
                slot.step = Step::Zeros { done: before + under_way, under_way: 0 };
                match done.result {
                    Ok(()) if before + under_way < slot.request.len => match slot.cancelled {
                        false => self.go_on(cx, at),
                        true => self.finish(cx, at, Err(Fault::Aborted)),
                    },
                    result => self.finish(cx, at, result.map_err(|error| fault(op, error))),
                }
            }
        }
    }

    /// Returns the first step of `op` that the file supports; `None` if there is nothing to do.
    fn first_step(&self, op: Op) -> Option<Step> {
        match op {
            Op::Read | Op::Write => Some(Step::Data),
            Op::Flush => Some(Step::Sync),
            Op::Deallocate => self.can_punch.then_some(Step::Punch),
            Op::WriteZeroes { deallocate: true } if self.can_punch => Some(Step::Punch),
            Op::WriteZeroes { .. } if self.can_zero => Some(Step::Zero),
            Op::WriteZeroes { .. } => Some(Step::Zeros { done: 0, under_way: 0 }),
        }
    }

    fn set_step<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32, step: Step) {
        if let Some(slot) = self.slots.get_mut(at) {
            slot.step = step;
            self.go_on(cx, at);
        }
    }

    /// Starts the slot's step in the kernel, or lets the slot wait for a block of zeros.
    fn go_on<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        let (offset, len, durable) = (slot.request.offset, slot.request.len, slot.request.durable);
        let op = match &mut slot.step {
            Step::Data => match (slot.request.buf.take(), slot.request.op) {
                (Some(buf), Op::Read) => {
                    FileOp::Read { buf, at: slot.request.buf_at, len: len as u32, offset }
                }
                (Some(buf), _) => {
                    FileOp::Write { buf, at: slot.request.buf_at, len: len as u32, offset, durable }
                }
                (None, _) => return self.finish(cx, at, Err(Fault::Internal)),
            },
            Step::Punch => FileOp::Punch { offset, len },
            Step::Zero => FileOp::Zero { offset, len },
            Step::Sync => FileOp::Sync,
            Step::Zeros { done, under_way } => {
                let Some(buf) = slot.zeros.take().or_else(|| zeros(cx)) else {
                    return self.waiting.push(&mut self.slots, at);
                };
                *under_way = (len - *done).min(buf.len() as u64);
                let offset = offset + *done;
                FileOp::Write { buf, at: 0, len: *under_way as u32, offset, durable }
            }
        };
        cx.io.file(self.file, op, u64::from(self.backend.0) << 32 | u64::from(at));
    }

    fn finish<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32, result: Result<(), Fault>) {
        if let Some(slot) = self.slots.remove(at) {
            if let Some(zeros) = slot.zeros {
                cx.arena.free(zeros);
            }
            cx.complete(slot.request, result);
        }
    }
}

impl<I: StorageIo> Channel<I> for File {
    #[inline]
    fn must_wait(&self, _request: &Request, behind: bool) -> bool {
        behind || self.slots.is_full()
    }

    fn submit(&mut self, cx: &mut Cx<'_, I>, request: Request) {
        let Some(step) = self.first_step(request.op) else { return cx.complete(request, Ok(())) };
        match self.slots.insert(Slot { request, step, zeros: None, cancelled: false }) {
            Ok(at) => self.go_on(cx, at),
            // The LUN layer holds back requests that must wait, so the table has room.
            Err(slot) => cx.complete(slot.request, Err(Fault::Internal)),
        }
    }

    fn cancel(&mut self, cx: &mut Cx<'_, I>, stream: Stream) {
        for slot in self.slots.iter_mut().filter(|slot| slot.request.is_of(stream)) {
            slot.cancelled = true;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        while let Some(at) = waiting.pop(&mut self.slots) {
            match self.slots.get(at).is_some_and(|slot| slot.cancelled) {
                true => self.finish(cx, at, Err(Fault::Aborted)),
                false => self.waiting.push(&mut self.slots, at),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn on_turn(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let Some(at) = self.waiting.first() else { return false };
        let Some(slot) = self.slots.get_mut(at) else { return false };
        slot.zeros = zeros(cx);
        if slot.zeros.is_none() {
            return false;
        }
        self.waiting.unlink(&mut self.slots, at);
        self.go_on(cx, at);
        true
    }
}

/// Allocates a block of zeros, or a smaller one if memory is short.
fn zeros<I: StorageIo>(cx: &mut Cx<'_, I>) -> Option<Buf> {
    let mut buf = cx.arena.alloc(ZEROS_BYTES).or_else(|| cx.arena.alloc(1))?;
    buf.fill(0);
    Some(buf)
}

/// Returns whether fallocate(2) reports that the file or device doesn't support the operation. A block device gives
/// EINVAL for a range that doesn't fit its discard granularity.
fn is_unsupported(FileError(errno): FileError) -> bool {
    matches!(errno, EOPNOTSUPP | ENOSYS | EINVAL)
}

/// Translates an errno. The block layer's errors follow Linux's `blk_errors`: ENOLINK for a lost transport, ETIMEDOUT for
/// a timeout, ENODATA, EILSEQ and EIO for the medium.
fn fault(op: Op, FileError(errno): FileError) -> Fault {
    match errno {
        ENOSPC | EDQUOT => Fault::NoSpace,
        EROFS | EPERM | EBADF if op != Op::Read => Fault::ReadOnly,
        ENXIO | ENODEV | ESTALE => Fault::Gone,
        EFBIG => Fault::OutOfRange,
        ENOLINK | ETIMEDOUT => Fault::PathLost,
        ECANCELED => Fault::Aborted,
        EOPNOTSUPP | ENOSYS => Fault::Unsupported,
        EINVAL | EBADF => Fault::Internal,
        _ if op == Op::Read => Fault::MediaRead,
        _ => Fault::MediaWrite,
    }
}
