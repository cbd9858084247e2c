//! Command slots: the state of one command that the transport and the command layer share.
//!
//! A slot belongs to a queue from the command's arrival until its response is handed to the transport. Three intrusive structures
//! link the slots, so nothing is allocated: the free list, each queue's ring of outstanding commands, and first-in-first-out
//! [`Fifo`]s of slots that wait for memory or to be sent.

use crate::topology::LunId;
use trefoil_poll::{Buf, Instant, Loan};
use trefoil_wire::nvme::{Sqe, Status};

/// Stands for no slot.
pub const NIL: u32 = u32::MAX;
/// Slots that one turn checks to count requests. Each check is a cache miss, so all of them take about 100 us.
const LOOKED_AT: usize = 1024;

/// The event for which a slot's command waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No command: the slot is free.
    Free,
    /// The command layer's first answer.
    New,
    /// A payload block. The slot is in its queue's waiting list.
    Memory,
    /// The sending of the transport's grant (TCP: an R2T). The slot is in the ready list.
    Grant,
    /// Data from the host.
    HostData,
    /// The LUN layer. A request is under way, and nothing else may end the slot.
    Backend,
    /// The command layer: for example, an event or another core's answer.
    Held,
    /// The sending of the response. The slot is in the ready list.
    Ready,
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
    /// The queue; [`NIL`] once the queue is closed and only a request is still under way.
    pub queue: u32,
    /// Count that changes when the slot is freed.
    pub generation: u32,
    /// The event for which the command waits.
    pub phase: Phase,
    /// True if the data comes from the host.
    pub gather: bool,
    /// True if Abort has flagged the command. A flagged command is not started once its data has come.
    pub aborted: bool,
    /// Status of the response.
    pub status: Status,
    /// Dwords 0 and 1 of the response.
    pub result: u64,
    /// Bytes of data that the command moves, in either direction.
    pub len: u32,
    /// Bytes that have come from the host.
    pub moved: u32,
    /// Bytes at the start of `buf` that go to the host before the response.
    pub send_len: u32,
    /// Bytes of the LUN that the last request named.
    pub part_bytes: u64,
    /// Position of a command of several parts: the next range, or the next namespace. In an Asynchronous Event Request: the event
    /// in the response, as a constant of `event_bit`; 0 for no event.
    pub cursor: u32,
    /// Time of arrival.
    pub since: Instant,
    /// The engine's epoch at which the command was checked.
    pub epoch: u32,
    /// LUN of an I/O command.
    pub lun: LunId,
    /// Entry in [`Departures`](super::departure::Departures) to tell of the request's end, once the queue is closed.
    pub departure: u32,
    next: u32,
    prev: u32,
    link: u32,
}

/// All slots of a core. Start-up reserves their memory. A slot's memory is touched only once the slot is used.
pub struct CommandSlots {
    slots: Vec<CommandSlot>,
    count: usize,
    free: u32,
    free_count: usize,
}

impl CommandSlots {
    /// Reserves memory for `count` free slots of about 200 bytes.
    pub fn new(count: usize) -> Self {
        Self { slots: Vec::with_capacity(count), count, free: NIL, free_count: count }
    }

    /// Adds a slot that was never in use to the free list.
    #[cold]
    fn make(&mut self) {
        if self.slots.len() < self.count {
            self.free = self.slots.len() as u32;
            self.slots.push(CommandSlot::unused());
        }
    }

    /// Returns the number of free slots.
    pub fn free_count(&self) -> usize {
        self.free_count
    }

    /// Looks at the [`LOOKED_AT`] slots from `from` on. Returns how many of them have a request for `lun` under way, and the slot
    /// at which the next call goes on; `None` at the end.
    pub fn under_way(&self, lun: LunId, from: u32) -> (usize, Option<u32>) {
        let piece = self.slots.iter().skip(from as usize).take(LOOKED_AT);
        let found = piece.filter(|slot| slot.phase == Phase::Backend && slot.lun == lun).count();
        let next = from as usize + LOOKED_AT;
        (found, (next < self.slots.len()).then_some(next as u32))
    }

    /// Returns the slot, if `slot` is a valid index.
    pub fn get(&self, slot: u32) -> Option<&CommandSlot> {
        self.slots.get(slot as usize)
    }

    /// Takes a slot for a command of `queue` and puts it on the queue's ring.
    #[inline]
    pub fn take(&mut self, ring: &mut Ring, queue: u32, sqe: &[u8; 64], since: Instant) -> Option<u32> {
        if self.free == NIL {
            self.make();
        }
        let at = self.free;
        let slot = self.slots.get_mut(at as usize)?;
        self.free = slot.next;
        self.free_count -= 1;
        slot.sqe = Sqe::parse(sqe);
        slot.queue = queue;
        slot.phase = Phase::New;
        slot.gather = false;
        slot.may_lend = false;
        slot.aborted = false;
        slot.status = Status::SUCCESS;
        slot.result = 0;
        slot.len = 0;
        slot.moved = 0;
        slot.send_len = 0;
        slot.cursor = 0;
        slot.since = since;
        slot.prev = NIL;
        slot.next = ring.head;
        slot.link = NIL;
        if let Some(next) = self.slots.get_mut(ring.head as usize) {
            next.prev = at;
        }
        ring.head = at;
        ring.len += 1;
        Some(at)
    }

    /// Takes a slot off its queue's ring.
    #[inline]
    pub fn unlink(&mut self, ring: &mut Ring, at: u32) {
        let (prev, next) = (self[at].prev, self[at].next);
        match self.slots.get_mut(prev as usize) {
            Some(prev) => prev.next = next,
            None => ring.head = next,
        }
        if let Some(next) = self.slots.get_mut(next as usize) {
            next.prev = prev;
        }
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
        slot.next = free;
        self.free = at;
        self.free_count += 1;
    }

    /// Iterates over the slots on a ring, newest first.
    pub fn iter<'a>(&'a self, ring: &Ring) -> impl Iterator<Item = (u32, &'a CommandSlot)> {
        let mut at = ring.head;
        std::iter::from_fn(move || {
            let slot = self.slots.get(at as usize)?;
            let this = at;
            at = slot.next;
            Some((this, slot))
        })
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
            gather: false,
            aborted: false,
            status: Status::SUCCESS,
            result: 0,
            len: 0,
            moved: 0,
            send_len: 0,
            part_bytes: 0,
            cursor: 0,
            since: Instant::default(),
            epoch: 0,
            lun: LunId(0),
            departure: NIL,
            next: NIL,
            prev: NIL,
            link: NIL,
        }
    }

    /// Ends the loan, if there is one: copies its bytes into the block, as if they had been read into it.
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
    head: u32,
    len: u32,
}

impl Ring {
    /// Returns an empty ring.
    pub const fn new() -> Self {
        Self { head: NIL, len: 0 }
    }

    /// Returns the number of commands on the ring.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Returns the newest command.
    pub fn first(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }
}

/// Slots in the order of arrival. A slot is in at most one `Fifo`.
#[derive(Debug)]
pub struct Fifo {
    head: u32,
    tail: u32,
}

impl Fifo {
    /// Returns an empty `Fifo`.
    pub const fn new() -> Self {
        Self { head: NIL, tail: NIL }
    }

    /// Returns whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// Returns the first slot.
    #[inline]
    pub fn front(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    /// Appends a slot.
    #[inline]
    pub fn push(&mut self, slots: &mut CommandSlots, at: u32) {
        slots[at].link = NIL;
        match self.tail {
            NIL => self.head = at,
            tail => slots[tail].link = at,
        }
        self.tail = at;
    }

    /// Removes the first slot.
    #[inline]
    pub fn pop(&mut self, slots: &mut CommandSlots) -> Option<u32> {
        let at = self.front()?;
        self.head = slots[at].link;
        if self.head == NIL {
            self.tail = NIL;
        }
        Some(at)
    }

    /// Ends the loans of all slots in the `Fifo`.
    pub fn end_loans(&self, slots: &mut CommandSlots) {
        let mut at = self.head;
        while at != NIL {
            slots[at].end_loan();
            at = slots[at].link;
        }
    }

    /// Removes `which` from any position. Returns whether `which` was in the `Fifo`.
    pub fn remove(&mut self, slots: &mut CommandSlots, which: u32) -> bool {
        let mut before = NIL;
        let mut at = self.head;
        while at != NIL && at != which {
            (before, at) = (at, slots[at].link);
        }
        if at == NIL {
            return false;
        }
        let after = slots[at].link;
        match before {
            NIL => self.head = after,
            _ => slots[before].link = after,
        }
        if self.tail == at {
            self.tail = before;
        }
        true
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
        assert_eq!(slots.iter(&ring).map(|(at, _)| at).collect::<Vec<_>>(), [2, 1, 0]);
        slots.unlink(&mut ring, taken[1]);
        slots.release(taken[1]);
        assert_eq!(slots.iter(&ring).map(|(at, _)| at).collect::<Vec<_>>(), [2, 0]);
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

    #[test]
    fn a_fifo_keeps_order_when_one_leaves_early() {
        let (mut slots, mut ring) = (CommandSlots::new(4), Ring::new());
        (0..4).for_each(|at| assert_eq!(take(&mut slots, &mut ring), Some(at)));
        let mut fifo = Fifo::new();
        (0..4).for_each(|at| fifo.push(&mut slots, at));
        assert!(fifo.remove(&mut slots, 3) && fifo.remove(&mut slots, 1) && !fifo.remove(&mut slots, 1));
        fifo.push(&mut slots, 1);
        let order: Vec<_> = std::iter::from_fn(|| fifo.pop(&mut slots)).collect();
        assert_eq!(order, [0, 2, 1]);
        assert!(fifo.is_empty());
    }
}
