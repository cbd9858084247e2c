//! The calls of a transport: the life of a command from its capsule to its response, and the effects that follow later.

use super::engine::{CommandStep, DISCOVERY_HOST, Effect, Engine, Pending, QueueView, Response};
use super::queue::QueueState;
use super::slot::Phase;
use crate::cx::Cx;
use crate::list::NIL;
use crate::msg::{Msg, Refused, StorageIo};
use std::net::SocketAddr;
use trefoil_poll::Buf;
use trefoil_wire::nvme::{Cqe, FABRICS_OPCODE, Psdt, Sgl, Status};

impl Engine {
    /// Returns the part of a queue's state that a transport may see.
    #[inline]
    pub fn queue(&self, queue: u32) -> QueueView<'_> {
        QueueView(&self.queues[queue as usize])
    }

    /// Returns the hash of the host whose share of memory the queue uses. All discovery controllers together count as one host.
    pub fn host_hash(&self, queue: u32) -> u64 {
        if self.queue(queue).is_discovery() { DISCOVERY_HOST } else { self.names[queue as usize].host_hash() }
    }

    /// Returns the host's address.
    pub fn peer(&self, queue: u32) -> SocketAddr {
        self.places[queue as usize].peer
    }

    /// Returns the number of free command slots.
    #[inline]
    pub fn free_commands(&self) -> usize {
        self.slots.free_count()
    }

    /// Starts a new command, whose data is not there yet. Returns the command's number and its first need. Returns `None` if no
    /// slot is free. The queue must [have room](QueueView::has_room).
    #[inline]
    pub fn begin<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        queue: u32,
        sqe: &[u8; 64],
    ) -> Option<(u32, CommandStep)> {
        let q = &mut self.queues[queue as usize];
        let at = self.slots.take(&mut q.ring, queue, sqe, cx.io.now())?;
        let slot = &self.slots[at];
        let (cid, opcode) = (slot.sqe.cid, slot.sqe.opcode);
        let is_io = q.state == QueueState::Live && q.qid != 0 && opcode != FABRICS_OPCODE;
        if q.enter(cid) && self.conflicts(at) {
            return Some((at, self.fail(at, Status::COMMAND_ID_CONFLICT.dnr())));
        }
        let step = if is_io { self.begin_io(cx, at) } else { self.begin_admin(cx, at) };
        let step = match step {
            CommandStep::Gather(len) | CommandStep::Block(len) => self.check_transfer(at, len, step, is_io),
            step => step,
        };
        Some((at, self.handed(at, step)))
    }

    /// Notes that the transport has the response of command `at`, if `step` is [`CommandStep::Done`].
    #[inline]
    fn handed(&mut self, at: u32, step: CommandStep) -> CommandStep {
        if step == CommandStep::Done {
            self.slots[at].phase = Phase::Answered;
        }
        step
    }

    /// Returns whether another command in flight has the identifier of the new command `at`. If the other command is an
    /// Asynchronous Event Request, forgets that request: it is never answered, and there is no conflict. SPDK's hosts need
    /// this: they forget their requests when they detach, and use the identifiers again for the shutdown.
    #[cold]
    fn conflicts(&mut self, at: u32) -> bool {
        let (queue, cid) = (self.slots[at].queue, self.slots[at].sqe.cid);
        let ring = self.slots.iter(&self.queues[queue as usize].ring);
        let mut rivals = ring.filter(|(other, s)| *other != at && s.sqe.cid == cid && !s.forgotten);
        let Some((rival, _)) = rivals.next() else { return false };
        if rivals.next().is_some() || !self.is_event_request(rival) {
            return true;
        }
        drop(rivals);
        self.forget_event_request(rival);
        false
    }

    /// Checks the command's SGL descriptor. A command describes its data by one descriptor (NVMe base 2.0c §3.3.3.1.1), and the
    /// descriptor's length must match the command. The transport checks the descriptor's type.
    #[inline]
    fn check_transfer(&mut self, at: u32, len: u32, step: CommandStep, is_io: bool) -> CommandStep {
        let slot = &mut self.slots[at];
        slot.len = len;
        if slot.sqe.psdt() != Psdt::Sgl {
            return self.fail(at, Status::INVALID_FIELD.dnr());
        }
        if matches!(slot.sqe.sgl1, Sgl::Unsupported { .. }) {
            return self.fail(at, Status::SGL_TYPE_INVALID.dnr());
        }
        let described = slot.sqe.sgl1.len_bytes();
        // An admin buffer may be larger than its data.
        if described < len || (described != len && (is_io || matches!(step, CommandStep::Gather(_)))) {
            return self.fail(at, Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        step
    }

    /// Returns the number of a command's queue.
    #[inline]
    pub fn queue_of(&self, at: u32) -> u32 {
        self.slots[at].queue
    }

    /// Returns the command's data pointer.
    #[inline]
    pub fn descriptor(&self, at: u32) -> Sgl {
        self.slots[at].sqe.sgl1
    }

    /// Returns the command's identifier if the command belongs to this queue.
    #[inline]
    pub fn cid(&self, queue: u32, at: u32) -> Option<u16> {
        self.slots.get(at).filter(|slot| slot.queue == queue).map(|slot| slot.sqe.cid)
    }

    /// Gives the command the block for its data.
    #[inline]
    pub fn give_block(&mut self, at: u32, block: Buf) {
        self.slots[at].buf = Some(block);
    }

    /// Takes the command's block, for a driver that fills it.
    #[inline]
    pub fn take_block(&mut self, at: u32) -> Option<Buf> {
        self.slots[at].buf.take()
    }

    /// Returns the command's block.
    #[inline]
    pub fn block(&mut self, at: u32) -> Option<&mut [u8]> {
        self.slots[at].buf.as_deref_mut()
    }

    /// Continues a command that asked for a block. With `may_lend`, the data may be lent instead of copied: the transport
    /// promises to send the response with its next flush.
    #[inline]
    pub fn read<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
        block: Buf,
        may_lend: bool,
    ) -> CommandStep {
        let slot = &mut self.slots[at];
        (slot.buf, slot.may_lend) = (Some(block), may_lend);
        if may_lend && let Some(step) = self.read_now(cx, at) {
            return step;
        }
        self.execute(cx, at)
    }

    /// Continues a command once its block has all the data that the command asked for.
    #[inline(always)]
    pub fn execute<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> CommandStep {
        let slot = &self.slots[at];
        if slot.aborted {
            return self.fail(at, Status::ABORT_REQUESTED);
        }
        let is_io = self.queues[slot.queue as usize].qid != 0 && slot.sqe.opcode != FABRICS_OPCODE;
        let step = if is_io { self.execute_io(cx, at) } else { self.execute_admin(cx, at) };
        self.handed(at, step)
    }

    /// Returns whether Abort has flagged the command. The transport must have the command.
    #[inline]
    pub fn is_aborted(&self, at: u32) -> bool {
        self.slots[at].aborted
    }

    /// Ends the loan of a response that can't be sent now. Writers then need not wait for the response.
    #[inline]
    pub fn end_loan(&mut self, at: u32) {
        let slot = &mut self.slots[at];
        if slot.loan.is_some() {
            slot.end_loan();
        }
    }

    /// Takes the response of a completed command, and frees the command's slot. Returns `None` if the host has given the
    /// command up: such a command gets no response.
    #[inline]
    pub fn respond<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> Option<Response> {
        let slot = &mut self.slots[at];
        if slot.forgotten {
            self.drop_forgotten(at);
            return None;
        }
        let (queue, cid, status, result) = (slot.queue, slot.sqe.cid, slot.status, slot.result);
        let q = &mut self.queues[queue as usize];
        let response = Response {
            cqe: Cqe { result, ..Cqe::new(cid, q.response_sqhd(), status) },
            len: slot.send_len,
            block: slot.buf.take(),
            loan: slot.loan.take(),
            is_plain: q.no_flow_control && status.is_ok() && result == 0,
        };
        q.leave(cid, slot.since, cx.io.now(), if status.is_ok() { slot.len } else { 0 });
        self.slots.unlink(&mut q.ring, at);
        self.slots.release(at);
        Some(response)
    }

    /// Frees the slot of an Asynchronous Event Request that the host has given up.
    #[cold]
    fn drop_forgotten(&mut self, at: u32) {
        let queue = self.slots[at].queue;
        self.slots.unlink(&mut self.queues[queue as usize].ring, at);
        self.slots.release(at);
    }

    /// Returns whether [`next_effect`](Self::next_effect) may return work for the transport.
    #[inline]
    pub fn has_effects(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns the next work for the transport.
    #[inline]
    pub fn next_effect<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>) -> Option<Effect> {
        loop {
            let is_current = |queue: &u32, generation| self.queues[*queue as usize].generation == generation;
            match self.pending.pop_front()? {
                Pending::Done { at, generation } if self.is_current_command(at, generation) => {
                    return Some(Effect::Done(at));
                }
                Pending::Abort { at, generation } if self.is_current_command(at, generation) => {
                    return Some(Effect::Abort(at));
                }
                Pending::Up { queue, generation } if is_current(&queue, generation) => {
                    return Some(Effect::Up { queue });
                }
                Pending::Close { queue, generation, why } if is_current(&queue, generation) => {
                    return Some(Effect::Close { queue, why });
                }
                Pending::Refused => {
                    if let Some(refused) = self.refusals.next() {
                        cx.io.post_control(Msg::Refused(refused));
                    }
                }
                Pending::Done { .. } | Pending::Abort { .. } | Pending::Up { .. } | Pending::Close { .. } => {
                }
            }
        }
    }

    fn is_current_command(&self, at: u32, generation: u32) -> bool {
        let slot = self.slots.get(at);
        slot.is_some_and(|s| s.generation == generation && s.phase != Phase::Free && s.queue != NIL)
    }

    /// Makes [`next_effect`](Self::next_effect) send the next refused Connect to control, which reports it to the operator.
    pub(super) fn refused_later(&mut self) {
        self.pending.push_back(Pending::Refused);
    }

    /// Takes back the record of a refused Connect once control has reported the refusal.
    pub fn give_back(&mut self, place: Box<Refused>) {
        self.refusals.give_back(place);
    }

    /// Asks the transport to send the response of `at`.
    pub(super) fn done_later(&mut self, at: u32) {
        self.slots[at].phase = Phase::Answered;
        let generation = self.slots[at].generation;
        self.pending.push_back(Pending::Done { at, generation });
    }

    /// Tells the transport that Abort flagged `at`.
    pub(super) fn aborted(&mut self, at: u32) {
        let generation = self.slots[at].generation;
        self.pending.push_back(Pending::Abort { at, generation });
    }

    /// Asks the transport to close a queue's connection.
    pub(in crate::frontend) fn close_later(&mut self, queue: u32, why: &'static str) {
        let generation = self.queues[queue as usize].generation;
        self.pending.push_back(Pending::Close { queue, generation, why });
    }

    /// Ends a command with an error.
    pub fn fail(&mut self, at: u32, status: Status) -> CommandStep {
        let slot = &mut self.slots[at];
        slot.phase = Phase::Answered;
        slot.status = status;
        slot.send_len = 0;
        if !status.is_ok() {
            self.note_error(at);
        }
        CommandStep::Done
    }

    /// Ends a command with a result.
    pub(super) fn succeed(&mut self, at: u32, result: u64) -> CommandStep {
        self.slots[at].result = result;
        CommandStep::Done
    }
}
