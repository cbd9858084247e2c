//! One NVMe/TCP queue pair of the host, on one core: from the TCP connection to completions.
//!
//! What it is: the command table and the states of the connection. The order is ICReq, ICResp, Connect, commands, close
//! (NVMe-oF TCP 1.0c §3.1, §3.2; NVMe base 2.0c §6.3). `transmit` sends PDUs, and `receive` handles incoming PDUs.
//!
//! What it is not: it keeps no command across a reconnect and retries no command (see `lane`). It does not know the
//! meaning of the commands.
//!
//! A command identifier has the slot's number in its low bits, and a generation in its high bits. So the queue pair
//! detects a completion that arrives late or twice, and does not complete another command by mistake.
//!
//! Memory: `depth` slots of about 250 bytes each, queues of slot numbers, and one send list of 21 KiB. Nothing is
//! allocated after [`Qpair::new`].

use super::command::{Command, Done, Lost, QpairEvent};
use super::error::{QueueError, Violation};
use super::inbound::Receive;
use std::collections::VecDeque;
use std::time::Duration;
use trefoil_poll::{Instant, Io, RecvInto, SendList, SockError, SockEvent, SockId};
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::nvme::Cqe;
use trefoil_wire::tcp::{Framing, IcReq, Receiver};

/// The largest number of commands of a queue. This limit leaves four bits for the generation in the identifier.
pub const MAX_DEPTH: u16 = 4096;
/// The identifier of Connect, which has no slot. No other command is outstanding during Connect.
pub(super) const CONNECT_CID: u16 = 0;
/// The deadline of an operation that has no time limit.
pub(super) const NEVER: Instant = Instant::from_ns(u64::MAX);
/// The time that a cancelled command gets to complete. After this time, the command is aborted and gets the same time
/// once more. Then the queue is closed. The host that submitted the command can't continue until the command has ended.
pub(super) const CANCEL_WITHIN: Duration = Duration::from_secs(5);
/// The time that a peer gets to read the terminate request. After that, the connection is closed.
const TERMINATE_WITHIN: Duration = Duration::from_secs(1);

/// The size of a queue in entries. SQSIZE and CAP.MQES are 0's based (NVMe-oF 1.1a §3.3, NVMe base 2.0c §3.1.3.1). A
/// full queue holds one command less than its entries (NVMe base 2.0c §3.3.1.1). Only this type converts between
/// entries, 0's based values and commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEntries(u16);

impl QueueEntries {
    /// A size that every controller accepts for its admin queue (NVMe base 2.0c §3.3.1.1).
    pub const ADMIN: Self = Self::new(32);

    /// Returns a size of `entries`, raised to 2 or lowered to [`MAX_DEPTH`] + 1 if necessary.
    pub const fn new(entries: u16) -> Self {
        match entries {
            0..2 => Self(2),
            2..=MAX_DEPTH => Self(entries),
            _ => Self(MAX_DEPTH + 1),
        }
    }

    /// Returns this size, lowered to the number of entries that a controller with this CAP.MQES accepts.
    pub fn within(self, mqes: u16) -> Self {
        Self::new(self.0.min(mqes.saturating_add(1)))
    }

    /// Returns the SQSIZE for Connect.
    pub const fn sqsize(self) -> u16 {
        self.0 - 1
    }

    /// Returns the number of commands that can be outstanding.
    pub const fn commands(self) -> u16 {
        self.0 - 1
    }
}

/// The names in Connect's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Host NQN.
    pub host_nqn: Nqn,
    /// Host identifier; not zero.
    pub host_id: [u8; 16],
    /// Subsystem NQN.
    pub subsystem_nqn: Nqn,
}

/// The parameters of the connection of a queue pair.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// The controller's address.
    pub to: std::net::SocketAddr,
    /// [`trefoil_wire::fabrics::DYNAMIC_CNTLID`] on the admin queue, else the controller's identifier.
    pub cntlid: u16,
    /// Size of the submission queue; at most the size of the command table.
    pub entries: QueueEntries,
    /// Keep Alive Timeout in milliseconds; admin queue only.
    pub kato_ms: u32,
    /// In-capsule data that the controller accepts, in bytes (IOCCSZ · 16 − 64; 8192 on the admin queue).
    pub max_capsule_data_bytes: u32,
    /// Deadline for TCP, ICReq and Connect together.
    pub within: Duration,
}

/// The state of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No socket.
    Closed,
    /// The TCP connection is being established.
    Connecting,
    /// ICReq is sent.
    Initializing,
    /// Connect is sent.
    Joining,
    /// Commands are accepted and sent.
    Live,
    /// A terminate request is being sent; the close follows.
    Terminating,
    /// [`Io::close`] was called.
    Closing,
}

/// One entry of the command table.
pub(super) struct QpairSlot {
    pub command: Option<Command>,
    /// The number of uses of the slot. The low bits of this number are the high bits of the identifier.
    pub generation: u16,
    /// The capsule is, or was, in a send list.
    pub sent: bool,
    /// The command's block is in the send list.
    pub lent: bool,
    /// The completion that waits until the block is back from the send list.
    pub response: Option<Cqe>,
    /// Bytes of data received so far.
    pub received: u32,
    /// The received data failed the data digest.
    pub corrupt: bool,
    /// The data that an R2T requested and that is not sent yet.
    pub grant: Option<Grant>,
    /// The slot is in `transfers`.
    pub queued: bool,
    pub deadline: Instant,
    /// The first deadline passed.
    pub expired: bool,
}

/// An R2T whose data is not sent completely.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub ttag: u16,
    /// The next byte of the command's data.
    pub offset: u32,
    pub left: u32,
}

/// A queue pair; see the module.
pub struct Qpair {
    pub(super) identity: Identity,
    pub(super) qid: u16,
    /// Header digest and data digest to request.
    pub(super) ask_digests: (bool, bool),
    pub(super) open: Open,
    pub(super) sock: Option<SockId>,
    pub(super) stage: Stage,
    pub(super) framing: Framing,
    /// CPDA and MAXH2CDATA of ICResp, in bytes.
    pub(super) data_alignment_bytes: u32,
    pub(super) max_h2c_data_bytes: u32,

    pub(super) slots: Box<[QpairSlot]>,
    slot_bits: u32,
    free: Vec<u16>,
    /// Slots of commands whose capsule is not sent yet.
    pub(super) unsent: VecDeque<u16>,
    /// Slots of commands with an R2T to answer.
    pub(super) transfers: VecDeque<u16>,
    /// The number of outstanding large reads. This number selects the size of a receive from the stream.
    pub(super) large_reads: u16,

    pub(super) list: Option<Box<SendList>>,
    /// The slots whose blocks are in the send list, in order.
    pub(super) lent: Vec<u16>,
    pub(super) receive: Receive,
    /// The violation that the terminate request will report. The request is sent when the list is free.
    pub(super) terminate: Option<Violation>,
    why: Option<QueueError>,

    done: VecDeque<Done>,
    events: VecDeque<QpairEvent>,
    handshake_by: Instant,
    next_scan: Instant,
    /// The time from a command's submission to its deadline.
    pub(super) command_timeout: Duration,
}

impl Qpair {
    /// Makes a closed queue pair with a slot for each command of a queue of `entries`. Queue 0 is the admin queue.
    pub fn new(
        identity: Identity,
        qid: u16,
        entries: QueueEntries,
        digests: (bool, bool),
        command_timeout: Duration,
    ) -> Self {
        let depth = entries.commands();
        let slots = (0..depth).map(|_| QpairSlot::empty()).collect();
        let any = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            identity,
            qid,
            ask_digests: digests,
            open: Open {
                to: any,
                cntlid: 0,
                entries,
                kato_ms: 0,
                max_capsule_data_bytes: 0,
                within: Duration::ZERO,
            },
            sock: None,
            stage: Stage::Closed,
            framing: Framing::initial(Receiver::Host),
            data_alignment_bytes: 4,
            max_h2c_data_bytes: 4096,
            slots,
            slot_bits: u16::BITS - (depth - 1).leading_zeros(),
            free: (0..depth).rev().collect(),
            unsent: VecDeque::with_capacity(depth.into()),
            transfers: VecDeque::with_capacity(depth.into()),
            large_reads: 0,
            list: Some(SendList::new()),
            lent: Vec::with_capacity(trefoil_poll::send::BUFS),
            receive: Receive::new(),
            terminate: None,
            why: None,
            done: VecDeque::with_capacity(depth.into()),
            // The owner takes the events every turn. At most these events collect until then: Up, one Expired for each
            // command, and Down.
            events: VecDeque::with_capacity(4 + usize::from(depth)),
            handshake_by: NEVER,
            next_scan: NEVER,
            command_timeout,
        }
    }

    /// Starts to connect. [`QpairEvent::Up`] or [`QpairEvent::Down`] follows.
    ///
    /// # Errors
    /// [`QueueError::TableFull`] if the core has no socket left; the queue pair stays closed.
    ///
    /// # Panics
    /// In a debug build, if the queue pair is not closed.
    pub fn open<I: Io>(&mut self, io: &mut I, open: Open) -> Result<SockId, QueueError> {
        let sock = io.connect(open.to).map_err(|_| QueueError::TableFull)?;
        self.begin(io, sock, open);
        Ok(sock)
    }

    /// Opens the queue pair over an established connection.
    ///
    /// # Panics
    /// In a debug build, if the queue pair is not closed.
    pub fn open_on<I: Io>(&mut self, io: &mut I, sock: SockId, open: Open) {
        self.begin(io, sock, open);
        self.on_connected(io, Ok(()));
    }

    fn begin<I: Io>(&mut self, io: &I, sock: SockId, open: Open) {
        debug_assert!(self.stage == Stage::Closed, "opened twice");
        self.sock = Some(sock);
        self.stage = Stage::Connecting;
        self.framing = Framing::initial(Receiver::Host);
        self.open = Open { entries: open.entries.within(self.slots.len() as u16), ..open };
        self.receive.reset();
        self.terminate = None;
        self.why = None;
        self.handshake_by = io.now() + open.within;
    }

    /// Returns the socket, if the queue pair has one.
    pub fn sock(&self) -> Option<SockId> {
        self.sock
    }

    /// Returns the address to which the queue pair connects, or last connected.
    pub fn peer(&self) -> std::net::SocketAddr {
        self.open.to
    }

    /// Returns whether the connection is up for commands.
    pub fn is_live(&self) -> bool {
        self.stage == Stage::Live
    }

    /// Returns whether the queue pair has no socket and holds no command.
    pub fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    /// Returns the number of commands that the queue pair holds.
    pub fn outstanding(&self) -> u16 {
        (self.slots.len() - self.free.len()) as u16
    }

    /// Returns whether the queue pair accepts another command now.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.stage == Stage::Live && self.outstanding() < self.open.entries.commands()
    }

    /// Takes a command. The next [`flush`](Self::flush) sends it.
    ///
    /// # Errors
    /// Gives the command back if the queue is full or not up.
    #[inline(always)]
    #[allow(clippy::result_large_err)] // the command must come back, and boxing it would allocate
    pub fn submit(&mut self, now: Instant, command: Command) -> Result<(), Command> {
        self.submit_by(command, now + self.command_timeout)
    }

    /// Takes a command that has its own deadline.
    ///
    /// # Errors
    /// Gives the command back if the queue is full or not up.
    #[inline(always)]
    #[allow(clippy::result_large_err)]
    pub fn submit_by(&mut self, command: Command, deadline: Instant) -> Result<(), Command> {
        if !self.has_room() {
            return Err(command);
        }
        self.enqueue(command, deadline)
    }

    /// Takes a command without a deadline: Asynchronous Event Request.
    ///
    /// # Errors
    /// Gives the command back if the queue is full or not up.
    #[allow(clippy::result_large_err)]
    pub fn submit_untimed(&mut self, command: Command) -> Result<(), Command> {
        self.submit_by(command, NEVER)
    }

    #[inline(always)]
    #[allow(clippy::result_large_err)]
    fn enqueue(&mut self, mut command: Command, deadline: Instant) -> Result<(), Command> {
        let Some(at) = self.free.pop() else { return Err(command) };
        let slot = &mut self.slots[usize::from(at)];
        command.sqe.cid = slot.generation.wrapping_shl(self.slot_bits) | at;
        if command.sqe.cid == u16::MAX {
            // FFFFh means "no command" in the Error Information log (NVMe base 2.0c §5.16.1.2).
            slot.generation = slot.generation.wrapping_add(1);
            command.sqe.cid = slot.generation.wrapping_shl(self.slot_bits) | at;
        }
        self.large_reads += u16::from(command.fills_many());
        slot.command = Some(command);
        slot.deadline = deadline;
        self.next_scan = self.next_scan.min(deadline);
        self.unsent.push_back(at);
        Ok(())
    }

    /// Returns the slot of an outstanding command that was sent.
    #[inline]
    pub(super) fn slot_of(&self, cid: u16) -> Result<u16, Violation> {
        let at = cid & ((1u32 << self.slot_bits) - 1) as u16;
        let known = self.slots.get(usize::from(at)).is_some_and(|slot| {
            let named = slot.command.as_ref().is_some_and(|command| command.sqe.cid == cid);
            named && slot.sent && slot.response.is_none()
        });
        if known { Ok(at) } else { Err(Violation::UnknownCommand { cid }) }
    }

    /// Ends a command: gives it back to the owner and frees the slot.
    #[inline]
    pub(super) fn finish(&mut self, at: u16, result: Result<Cqe, Lost>) {
        let slot = &mut self.slots[usize::from(at)];
        let Some(command) = slot.command.take() else { return };
        self.large_reads -= u16::from(command.fills_many());
        slot.reset();
        self.free.push(at);
        self.done.push_back(Done { command, result });
    }

    /// Cancels the commands with these tags, since nobody waits for their results. Commands that are not sent come back
    /// at once. Moves the deadlines of the other commands to at most `CANCEL_WITHIN` from `now`.
    pub fn cancel(&mut self, now: Instant, which: impl Fn(u64) -> bool) {
        let by = now + CANCEL_WITHIN;
        for slot in &mut self.slots {
            let Some(command) = slot.command.as_mut().filter(|command| which(command.tag)) else { continue };
            command.cancelled = true;
            slot.deadline = slot.deadline.min(by);
            if self.stage == Stage::Live {
                self.next_scan = self.next_scan.min(slot.deadline);
            }
        }
        for _ in 0..self.unsent.len() {
            let Some(at) = self.unsent.pop_front() else { break };
            let cancelled = self.slots[usize::from(at)].command.as_ref().is_some_and(|c| c.cancelled);
            match cancelled {
                true => self.finish(at, Err(Lost { sent: false })),
                false => self.unsent.push_back(at),
            }
        }
    }

    /// Returns the next command that has ended.
    #[inline]
    pub fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// Returns the next event.
    pub fn next_event(&mut self) -> Option<QpairEvent> {
        self.events.pop_front()
    }

    /// Closes the queue pair. [`QpairEvent::Down`] follows once every command is back. Has no effect on a closed queue
    /// pair.
    pub fn close<I: Io>(&mut self, io: &mut I) {
        self.fail(io, QueueError::Closed);
    }

    /// Closes the queue pair because of `why`. If there is an earlier reason, that reason is kept.
    pub(super) fn fail<I: Io>(&mut self, io: &mut I, why: QueueError) {
        if matches!(self.stage, Stage::Closed | Stage::Closing) {
            return;
        }
        self.why.get_or_insert(why);
        self.stage = Stage::Closing;
        self.handshake_by = NEVER;
        self.next_scan = NEVER;
        if let Some(sock) = self.sock {
            io.close(sock);
        }
    }

    /// Reports the peer's protocol violation to the peer, then closes the connection (NVMe-oF TCP 1.0c §3.5).
    pub(super) fn violate<I: Io>(&mut self, io: &mut I, violation: Violation) {
        if matches!(self.stage, Stage::Closed | Stage::Closing | Stage::Terminating) {
            return;
        }
        self.why.get_or_insert(QueueError::Violation(violation));
        self.stage = Stage::Terminating;
        self.terminate = Some(violation);
        self.handshake_by = io.now() + TERMINATE_WITHIN;
        self.next_scan = NEVER;
        self.flush(io);
    }

    /// Handles an event of the socket.
    #[inline]
    pub fn on_sock<I: Io>(&mut self, io: &mut I, event: SockEvent<'_>) {
        match event {
            SockEvent::Received(bytes) => self.on_received(io, bytes),
            SockEvent::Filled(buf) => self.on_filled(io, buf),
            SockEvent::RecvEnd { buf, why } => self.on_recv_end(io, buf, why),
            SockEvent::Sent { list, result } => self.on_sent(io, list, result),
            SockEvent::Connected(result) => self.on_connected(io, result),
            SockEvent::Closed => self.on_closed(),
        }
    }

    fn on_connected<I: Io>(&mut self, io: &mut I, result: Result<(), SockError>) {
        if self.stage != Stage::Connecting {
            return;
        }
        if let Err(error) = result {
            return self.fail(io, QueueError::Socket(error));
        }
        self.stage = Stage::Initializing;
        let Some(mut list) = self.list.take() else { return };
        let (header_digest, data_digest) = self.ask_digests;
        let request = IcReq { host_alignment_bytes: 4, header_digest, data_digest, max_r2t: 1 };
        if let Some(bytes) = list.push_head(IcReq::LEN).first_chunk_mut() {
            request.emit(bytes);
        }
        if let Some(sock) = self.sock {
            io.send(sock, list);
            io.recv(sock, RecvInto::Stream { max_bytes: IcReq::LEN as u32 });
        }
    }

    /// Gives every command back.
    fn on_closed(&mut self) {
        self.sock = None;
        self.stage = Stage::Closed;
        self.handshake_by = NEVER;
        self.next_scan = NEVER;
        self.unsent.clear();
        self.transfers.clear();
        for at in 0..self.slots.len() as u16 {
            let slot = &mut self.slots[usize::from(at)];
            let sent = slot.sent;
            // A completion that waited for its block is valid: the command is done.
            let result = slot.response.take().ok_or(Lost { sent });
            self.finish(at, result);
            self.slots[usize::from(at)].queued = false;
        }
        let why = self.why.take().unwrap_or(QueueError::Closed);
        self.events.push_back(QpairEvent::Down(why));
    }

    pub(super) fn push_event(&mut self, event: QpairEvent) {
        self.events.push_back(event);
    }

    /// Ends the handshake: commands are accepted from now on.
    pub(super) fn joined(&mut self, cntlid: u16) {
        self.stage = Stage::Live;
        self.handshake_by = NEVER;
        self.push_event(QpairEvent::Up { cntlid });
    }

    /// Returns when [`on_tick`](Self::on_tick) must run next; a time in the past if the call is overdue.
    pub fn next_deadline(&self) -> Option<Instant> {
        let next = self.handshake_by.min(self.next_scan);
        (next != NEVER).then_some(next)
    }

    /// Checks the deadlines. When a command's first deadline passes, reports an event, so that the owner can abort the
    /// command, and sets a second deadline after the same time. When the second deadline passes, closes the queue.
    pub fn on_tick<I: Io>(&mut self, io: &mut I) {
        let now = io.now();
        if now >= self.handshake_by {
            self.fail(io, QueueError::HandshakeTimeout);
        }
        if now < self.next_scan {
            return;
        }
        self.next_scan = NEVER;
        let mut dead = None;
        for slot in &mut self.slots {
            let Some(command) = &slot.command else { continue };
            if now >= slot.deadline {
                let cid = command.sqe.cid;
                if slot.expired {
                    dead = Some(cid);
                } else {
                    slot.expired = true;
                    let again = if command.cancelled { CANCEL_WITHIN } else { Duration::MAX };
                    slot.deadline = now + self.command_timeout.min(again);
                    self.events.push_back(QpairEvent::Expired { cid });
                }
            }
            self.next_scan = self.next_scan.min(slot.deadline);
        }
        if let Some(cid) = dead {
            self.fail(io, QueueError::CommandTimeout { cid });
        }
    }
}

impl QpairSlot {
    fn empty() -> Self {
        Self {
            command: None,
            generation: 0,
            sent: false,
            lent: false,
            response: None,
            received: 0,
            corrupt: false,
            grant: None,
            queued: false,
            deadline: NEVER,
            expired: false,
        }
    }

    /// Resets the slot for the next command. Keeps `queued`, since the entry in `transfers` is still there.
    fn reset(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.sent = false;
        self.lent = false;
        self.response = None;
        self.received = 0;
        self.corrupt = false;
        self.grant = None;
        self.deadline = NEVER;
        self.expired = false;
    }
}
