//! A backend in this core's own memory.
//!
//! All requests complete at once, except long zeroing and giving memory back. Those two do one step in each turn, so
//! that they don't block the core. A flush has nothing to do: either the memory outlives the process, or all of it is
//! lost with the process.
//!
//! If the owner of a read permits it, the channel answers the read with a loan of the blocks in place. A request that
//! would change lent blocks waits until the loan ends.
//!
//! Deallocate gives whole pages back to the kernel, and these pages then read as zeros. Bytes of the range outside
//! whole pages stay as they are. Where memory can't safely be given back ([`Ram::gives_back`]), Deallocate does
//! nothing.

use super::{Channel, payload};
use crate::cx::Cx;
use crate::msg::StorageIo;
use crate::request::{Fault, Op, Request, Stream};
use std::collections::VecDeque;
use trefoil_poll::Loan;
use trefoil_poll::ram::{Ram, RamError};

/// Bytes zeroed in one turn: about 100 µs at 10 GB/s.
const ZERO_STEP_BYTES: u64 = 1 << 20;
/// Bytes given back in one turn: one transparent hugepage, or the same size in small pages, which takes the kernel
/// about 50 µs.
const GIVE_BACK_STEP_BYTES: u64 = 2 << 20;

/// A disk of memory, owned by one core. Other cores reach it through a remote channel.
#[derive(Debug)]
pub struct Memory {
    ram: Disk,
    /// Requests that run step by step (long zeroing, giving back), oldest first, each with the number of bytes that are
    /// done.
    zeroing: VecDeque<(Request, u64)>,
    /// The first of these requests waits for loans to end, so no new loans are made.
    held_up: bool,
}

struct Disk(Ram);

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len_bytes())
    }
}

impl Memory {
    /// Makes a channel to `ram` with room for `zeroings` requests that run step by step, at least one. Each takes about
    /// 136 bytes. Further such requests wait.
    pub fn new(ram: Ram, zeroings: usize) -> Self {
        Self { ram: Disk(ram), zeroing: VecDeque::with_capacity(zeroings.max(1)), held_up: false }
    }

    /// Returns the memory with its contents. The channel must be idle.
    pub fn into_ram(self) -> Ram {
        debug_assert!(self.zeroing.is_empty());
        self.ram.0
    }

    /// Returns the memory for inspection.
    pub fn ram(&self) -> &Ram {
        &self.ram.0
    }

    /// Lends `len` bytes at `at`. Returns `None` if the range doesn't exist, or if a request waits for loans to end.
    #[inline]
    pub fn lend(&self, at: u64, len: u32) -> Option<Loan> {
        if self.held_up { None } else { self.ram.0.lend(at, len).ok() }
    }

    /// Writes `data` at `at`, unless the range is lent or outside the memory. Returns whether the data was written.
    #[inline]
    pub fn write(&mut self, at: u64, data: &[u8]) -> bool {
        self.ram.0.write(at, data).is_ok()
    }

    /// Returns whether the request runs step by step.
    #[inline]
    fn is_long(&self, request: &Request) -> bool {
        match request.op {
            Op::WriteZeroes { .. } => request.len > ZERO_STEP_BYTES,
            Op::Deallocate => request.len > 0 && self.ram.0.gives_back(),
            Op::Read | Op::Write | Op::Flush => false,
        }
    }

    fn run(&mut self, request: &mut Request) -> Result<(), Fault> {
        let (ram, offset, len) = (&mut self.ram.0, request.offset, request.len);
        match request.op {
            // Only a whole read may get a loan: a part of a larger read must fill its part of the buffer.
            Op::Read if request.may_lend && !self.held_up && request.buf_at == 0 && request.rest.len == 0 => {
                request.loan = Some(ram.lend(offset, len as u32).map_err(fault)?);
                Ok(())
            }
            Op::Read => ram.read(offset, payload(request)?).map_err(fault),
            Op::Write => ram.write(offset, payload(request)?).map_err(fault),
            Op::WriteZeroes { .. } => ram.zero(offset, len).map_err(fault),
            Op::Flush | Op::Deallocate => Ok(()),
        }
    }
}

/// Translates an error of the memory. The LUN layer holds back every request for which [`Channel::must_wait`] is true, so
/// `Lent` is a bug here.
fn fault(error: RamError) -> Fault {
    match error {
        RamError::OutOfRange { .. } => Fault::OutOfRange,
        RamError::Lent => Fault::Internal,
    }
}

impl<I: StorageIo> Channel<I> for Memory {
    #[inline]
    fn must_wait(&self, request: &Request, _behind: bool) -> bool {
        match request.op {
            Op::Write => self.ram.0.is_lent(request.offset, request.len),
            // A request that runs step by step checks for loans at each step.
            Op::WriteZeroes { .. } | Op::Deallocate if self.is_long(request) => {
                self.zeroing.len() == self.zeroing.capacity()
            }
            Op::WriteZeroes { .. } => self.ram.0.is_lent(request.offset, request.len),
            Op::Read | Op::Flush | Op::Deallocate => false,
        }
    }

    fn submit(&mut self, cx: &mut Cx<'_, I>, mut request: Request) {
        if self.is_long(&request) && self.zeroing.len() < self.zeroing.capacity() {
            self.zeroing.push_back((request, 0));
            return;
        }
        let result = self.run(&mut request);
        cx.complete(request, result);
    }

    fn cancel(&mut self, cx: &mut Cx<'_, I>, stream: Stream) {
        self.held_up = false;
        for _ in 0..self.zeroing.len() {
            match self.zeroing.pop_front() {
                Some((request, _)) if request.is_of(stream) => cx.complete(request, Err(Fault::Aborted)),
                other => self.zeroing.extend(other),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.zeroing.is_empty()
    }

    fn waits(&self) -> bool {
        !self.zeroing.is_empty()
    }

    fn on_turn(&mut self, cx: &mut Cx<'_, I>) -> bool {
        let Some((request, zeroed)) = self.zeroing.front_mut() else { return false };
        let at = request.offset.checked_add(*zeroed);
        let most = match request.op {
            // Stop at the start of the next hugepage, so that no hugepage is split into small pages without need.
            Op::Deallocate => GIVE_BACK_STEP_BYTES - at.unwrap_or_default() % GIVE_BACK_STEP_BYTES,
            _ => ZERO_STEP_BYTES,
        };
        let step = most.min(request.len - *zeroed);
        self.held_up = at.is_some_and(|at| self.ram.0.is_lent(at, step));
        let result = match at {
            Some(_) if self.held_up => return false,
            Some(at) if request.op == Op::Deallocate => self.ram.0.give_back(at, step).map_err(fault),
            Some(at) => self.ram.0.zero(at, step).map_err(fault),
            None => Err(Fault::OutOfRange),
        };
        *zeroed += step;
        if (result.is_err() || *zeroed == request.len)
            && let Some((request, _)) = self.zeroing.pop_front()
        {
            cx.complete(request, result);
        }
        true
    }
}
