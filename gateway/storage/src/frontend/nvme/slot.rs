//! Command slots: the state of one command inside the command layer.
//!
//! A slot belongs to a queue from the command's arrival until a transport has taken its response. Lists link the slots (free slots,
//! and each queue's outstanding commands), so nothing is allocated.

use crate::list::{Links, List, NIL};
use crate::topology::LunId;
use trefoil_poll::{Buf, Instant, Loan};
use trefoil_wire::nvme::{Sqe, Status};

/// Slots that one turn examines to count requests. Each slot is a cache miss, so all of them take about 100 us.
const LOOKED_AT: usize = 1024;

/// Bytes of a command slot and its links.
pub const SLOT_BYTES: usize = size_of::<CommandSlot>() + size_of::<Links>();

/// The party that has a slot's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No command: the slot is free.
    Free,
    /// The transport, which brings the data or a block. Abort may flag the command.
    Transport,
    /// The LUN layer. A request is in flight, so nothing else may end the slot.
    Backend,
    /// The command layer, until an event or an answer of another core comes.
    Held,
    /// The transport, which sends the response.
    Answered,
}

/// One command.
#[derive(Debug)]
pub struct CommandSlot {
    /// The command as received.
    pub sqe: Sqe,
    /// The payload block, unless a driver, a request or a send list has it.
    pub buf: Option<Buf>,
    /// Data that goes to the host instead of the bytes in `buf`.
    pub loan: Option<Loan>,
    /// True if the transport can send a loan's bytes with the next flush.
    pub may_lend: bool,
    /// The queue. [`NIL`] once the queue is closed while a request is still in flight.
    pub queue: u32,
    /// Count that changes when the slot is freed.
    pub generation: u32,
    /// The party that has the command.
    pub phase: Phase,
    /// True if Abort has flagged the command. A flagged command fails instead of starting once its data has come.
    pub aborted: bool,
    /// True if the host has given the command up and uses the command's identifier again. Such a command gets no response.
    pub forgotten: bool,
    /// Status of the response.
    pub status: Status,
    /// Dwords 0 and 1 of the response.
    pub result: u64,
    /// Bytes of data that the command moves, in either direction.
    pub len: u32,
    /// Bytes at the start of `buf` that go to the host before the response.
    pub send_len: u32,
    /// Bytes of the range of the LUN that the last request named.
    pub part_bytes: u64,
    /// Progress of a command of several parts: the next range, or the last namespace so far. In an Asynchronous Event Request:
    /// the event in the response, as a constant of `event_bit`; 0 for no event.
    pub cursor: u32,
    /// Time of arrival.
    pub since: Instant,
    /// The engine's epoch at which the command was checked as a Read or Write of an I/O queue; 0 for every other command.
    pub epoch: u32,
    /// LUN of an I/O command.
    pub lun: LunId,
    /// Entry in [`Drains`](super::drain::Drains) that waits for the end of the request, once the queue is closed.
    pub drain: u32,
    next_free: u32,
}

/// All slots of a core. Start-up reserves their memory. A slot's memory is touched only once the slot is used.
pub struct CommandSlots {
    slots: Vec<CommandSlot>,
    links: Vec<Links>,
    count: usize,
    free: u32,
    free_count: usize,
}

impl CommandSlots {
    /// Reserves memory for `count` slots of about 200 bytes. All slots are free.
    pub fn new(count: usize) -> Self {
        Self {
            slots: Vec::with_capacity(count),
            links: Vec::with_capacity(count),
            count,
            free: NIL,
            free_count: count,
        }
    }

    /// Adds a slot that was never in use to the free list.
    #[cold]
    fn make(&mut self) {
        if self.slots.len() < self.count {
            self.free = self.slots.len() as u32;
            self.slots.push(CommandSlot::unused());
            self.links.push(Links::NONE);
        }
    }

    /// Returns the number of free slots.
    #[inline]
    pub fn free_count(&self) -> usize {
        self.free_count
    }

    /// Examines the [`LOOKED_AT`] slots from `from` on. Returns how many of these slots have a request for `lun` in flight.
    /// Also returns the slot at which the next call continues; `None` at the end.
    pub fn under_way(&self, lun: LunId, from: u32) -> (usize, Option<u32>) {
        let piece = self.slots.iter().skip(from as usize).take(LOOKED_AT);
        let found = piece.filter(|slot| slot.phase == Phase::Backend && slot.lun == lun).count();
        let next = from as usize + LOOKED_AT;
        (found, (next < self.slots.len()).then_some(next as u32))
    }

    /// Returns the slot, if `slot` is a valid index.
    #[inline]
    pub fn get(&self, slot: u32) -> Option<&CommandSlot> {
        self.slots.get(slot as usize)
    }

    /// Takes a slot for a command of `queue`, and puts the slot on the queue's ring.
    #[inline]
    pub fn take(&mut self, ring: &mut Ring, queue: u32, sqe: &[u8; 64], since: Instant) -> Option<u32> {
        if self.free == NIL {
            self.make();
        }
        let at = self.free;
        let slot = self.slots.get_mut(at as usize)?;
        self.free = slot.next_free;
        self.free_count -= 1;
        slot.sqe = Sqe::parse(sqe);
        slot.queue = queue;
        slot.phase = Phase::Transport;
        slot.may_lend = false;
        slot.aborted = false;
        slot.forgotten = false;
        slot.status = Status::SUCCESS;
        slot.result = 0;
        slot.len = 0;
        slot.send_len = 0;
        slot.cursor = 0;
        slot.epoch = 0;
        slot.since = since;
        ring.list.push(&mut self.links, at);
        ring.len += 1;
        Some(at)
    }

    /// Takes a slot off its queue's ring.
    #[inline]
    pub fn unlink(&mut self, ring: &mut Ring, at: u32) {
        ring.list.unlink(&mut self.links, at);
        ring.len -= 1;
    }

    /// Frees a slot that is on no ring. The slot must have no buffer.
    #[inline]
    pub fn release(&mut self, at: u32) {
        let free = self.free;
        let slot = &mut self[at];
        debug_assert!(slot.buf.is_none() && slot.loan.is_none() && slot.phase != Phase::Free, "{slot:?}");
        slot.phase = Phase::Free;
        slot.queue = NIL;
        slot.generation = slot.generation.wrapping_add(1) & 0xFF_FFFF;
        slot.next_free = free;
        self.free = at;
        self.free_count += 1;
    }

    /// Iterates over the slots on a ring, oldest first.
    pub fn iter<'a>(&'a self, ring: &Ring) -> impl Iterator<Item = (u32, &'a CommandSlot)> {
        ring.list.iter(&self.links).map(|at| (at, &self[at]))
    }
}

impl CommandSlot {
    /// Returns a slot that was never in use.
    fn unused() -> Self {
        Self {
            sqe: Sqe::default(),
            buf: None,
            loan: None,
            may_lend: false,
            queue: NIL,
            generation: 0,
            phase: Phase::Free,
            aborted: false,
            forgotten: false,
            status: Status::SUCCESS,
            result: 0,
            len: 0,
            send_len: 0,
            part_bytes: 0,
            cursor: 0,
            since: Instant::default(),
            epoch: 0,
            lun: LunId(0),
            drain: NIL,
            next_free: NIL,
        }
    }

    /// Ends the loan, if there is one: copies the lent bytes into the block, as if the backend had read them into the block.
    #[cold]
    pub fn end_loan(&mut self) {
        if let Some(loan) = self.loan.take()
            && let Some(to) = self.buf.as_mut().and_then(|buf| buf.get_mut(..loan.len()))
        {
            to.copy_from_slice(&loan);
        }
    }
}

impl std::ops::Index<u32> for CommandSlots {
    type Output = CommandSlot;

    #[inline]
    fn index(&self, at: u32) -> &CommandSlot {
        &self.slots[at as usize]
    }
}

impl std::ops::IndexMut<u32> for CommandSlots {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut CommandSlot {
        &mut self.slots[at as usize]
    }
}

/// The outstanding commands of one queue.
#[derive(Debug)]
pub struct Ring {
    list: List,
    len: u32,
}

impl Ring {
    /// Returns an empty ring.
    pub const fn new() -> Self {
        Self { list: List::EMPTY, len: 0 }
    }

    /// Returns the number of commands on the ring.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Returns the oldest command.
    pub fn first(&self) -> Option<u32> {
        self.list.first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(slots: &mut CommandSlots, ring: &mut Ring) -> Option<u32> {
        slots.take(ring, 7, &[0; 64], Instant::default())
    }

    #[test]
    fn slots_come_back_and_rings_hold() {
        let (mut slots, mut ring) = (CommandSlots::new(3), Ring::new());
        let taken: Vec<_> = (0..3).map(|_| take(&mut slots, &mut ring).expect("room")).collect();
        assert!(take(&mut slots, &mut ring).is_none());
        assert_eq!(slots.iter(&ring).map(|(at, _)| at).collect::<Vec<_>>(), [0, 1, 2]);
        slots.unlink(&mut ring, taken[1]);
        slots.release(taken[1]);
        assert_eq!(slots.iter(&ring).map(|(at, _)| at).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((slots.free_count(), ring.len()), (1, 2));
        assert_eq!(take(&mut slots, &mut ring), Some(taken[1]));
    }

    #[test]
    fn memory_is_reserved_and_untouched_until_a_slot_is_used() {
        let (mut slots, mut ring) = (CommandSlots::new(4096), Ring::new());
        let (reserved, place) = (slots.slots.capacity(), slots.slots.as_ptr());
        assert!(reserved >= 4096 && slots.slots.is_empty());
        for _ in 0..100 {
            let at = take(&mut slots, &mut ring).expect("room");
            slots.unlink(&mut ring, at);
            slots.release(at);
        }
        assert_eq!(slots.slots.len(), 1);
        (0..4096).for_each(|at| assert_eq!(take(&mut slots, &mut ring), Some(at)));
        assert_eq!((take(&mut slots, &mut ring), slots.free_count()), (None, 0));
        assert_eq!((slots.slots.capacity(), slots.slots.as_ptr()), (reserved, place));
    }

    #[test]
    fn requests_are_counted_piece_by_piece() {
        let (mut slots, mut ring) = (CommandSlots::new(4096), Ring::new());
        for lun in 0..2500 {
            let at = take(&mut slots, &mut ring).expect("room");
            (slots[at].phase, slots[at].lun) = (Phase::Backend, LunId(lun % 2));
        }
        assert_eq!(slots.under_way(LunId(0), 0), (512, Some(1024)));
        assert_eq!(slots.under_way(LunId(0), 1024), (512, Some(2048)));
        assert_eq!(slots.under_way(LunId(0), 2048), (226, None));
    }
}
