//! One NVMe/TCP queue pair, host side, on one core: from the TCP connection to completions.
//!
//! What it is: the command table and the connection's life: ICReq, ICResp, Connect, commands, close
//! (NVMe-oF TCP 1.0c §3.1, §3.2; NVMe base 2.0c §6.3). What goes out is in `transmit`, what comes in
//! is in `receive`.
//!
//! What it is not: it keeps no command over a reconnect and decides no retry (see `lane`), and does
//! not know what the commands mean.
//!
//! A command identifier is its slot with a generation above it, so that a completion that comes
//! late, or twice, is caught instead of completing another command.
//!
//! Memory: a slot is about 250 bytes, and there are `depth` of them; the queues hold slot numbers; one
//! send list of 12 KiB. Nothing is allocated after [`Qpair::new`].

use super::command::{Command, Done, Lost, QpairEvent};
use super::error::{QueueError, Violation};
use super::receive::Receive;
use std::collections::VecDeque;
use std::time::Duration;
use trefoil_poll::{Instant, Io, RecvInto, SendList, SockError, SockId};
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::nvme::Cqe;
use trefoil_wire::tcp::{Framing, IcReq, Receiver};

/// Most commands that a queue may have: leaves four bits of generation in the identifier.
pub const MAX_DEPTH: u16 = 4096;
/// No deadline.
pub(super) const NEVER: Instant = Instant::from_ns(u64::MAX);
/// How long a command that nobody waits for any more may take, and again once it is aborted, before the queue is closed:
/// until it is over, its host is kept from going on.
pub(super) const CANCEL_WITHIN: Duration = Duration::from_secs(5);
/// How long a peer may take to read our terminate request before the connection is cut anyway.
const TERMINATE_WITHIN: Duration = Duration::from_secs(1);

/// The size of a queue in entries. SQSIZE and CAP.MQES are 0's based (NVMe-oF 1.1a §3.3, NVMe base 2.0c §3.1.3.1), and a full
/// queue holds one command less than its entries (NVMe base 2.0c §3.3.1.1): this type alone converts between the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEntries(u16);

impl QueueEntries {
    /// A size that every controller accepts for its admin queue (NVMe base 2.0c §3.3.1.1).
    pub const ADMIN: Self = Self::new(32);

    /// A queue of `entries` entries; at least 2, and at most 1 more than [`MAX_DEPTH`].
    pub const fn new(entries: u16) -> Self {
        match entries {
            0..2 => Self(2),
            2..=MAX_DEPTH => Self(entries),
            _ => Self(MAX_DEPTH + 1),
        }
    }

    /// The same, with no more entries than a controller with this CAP.MQES takes.
    pub fn within(self, mqes: u16) -> Self {
        Self::new(self.0.min(mqes.saturating_add(1)))
    }

    /// SQSIZE of Connect.
    pub const fn sqsize(self) -> u16 {
        self.0 - 1
    }

    /// Commands that can be outstanding.
    pub const fn commands(self) -> u16 {
        self.0 - 1
    }
}

/// Who connects to what: the names in Connect's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Host NQN.
    pub host_nqn: Nqn,
    /// Host identifier; not zero.
    pub host_id: [u8; 16],
    /// Subsystem NQN.
    pub subsystem_nqn: Nqn,
}

/// What is asked for when a queue pair is opened.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// The controller's address.
    pub to: std::net::SocketAddr,
    /// [`trefoil_wire::fabrics::DYNAMIC_CNTLID`] on the admin queue, else the controller's.
    pub cntlid: u16,
    /// Size of the submission queue; at most the table's.
    pub entries: QueueEntries,
    /// Keep Alive Timeout in milliseconds; admin queue only.
    pub kato_ms: u32,
    /// In-capsule data that the controller takes, in bytes (IOCCSZ · 16 − 64; 8192 on the admin queue).
    pub max_capsule_data_bytes: u32,
    /// Time for TCP, ICReq and Connect together.
    pub within: Duration,
}

/// Where the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No socket.
    Closed,
    /// TCP connect.
    Connecting,
    /// ICReq is sent.
    Initializing,
    /// Connect is sent.
    Joining,
    /// Commands flow.
    Live,
    /// A terminate request is on its way; then close.
    Terminating,
    /// [`Io::close`] was called.
    Closing,
}

/// One entry of the command table.
pub(super) struct Slot {
    pub command: Option<Command>,
    /// Counts uses; its low bits stand above the slot number in the identifier.
    pub generation: u16,
    /// Its capsule is, or was, in a send list.
    pub sent: bool,
    /// Its block is in the send list.
    pub lent: bool,
    /// The completion, while the block is lent.
    pub response: Option<Cqe>,
    /// Bytes of data received so far.
    pub received: u32,
    /// Its data failed the data digest.
    pub corrupt: bool,
    /// What an R2T asked for and was not sent yet.
    pub grant: Option<Grant>,
    /// It is in `transfers`.
    pub queued: bool,
    pub deadline: Instant,
    /// Its first deadline passed.
    pub expired: bool,
}

/// An R2T on its way to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub ttag: u16,
    /// Next byte of the command's data.
    pub offset: u32,
    pub left: u32,
}

/// See the module.
pub struct Qpair {
    pub(super) identity: Identity,
    pub(super) qid: u16,
    /// Header and data digest, as we ask for them.
    pub(super) ask_digests: (bool, bool),
    pub(super) open: Open,
    pub(super) sock: Option<SockId>,
    pub(super) stage: Stage,
    pub(super) framing: Framing,
    /// CPDA and MAXH2CDATA of ICResp, in bytes.
    pub(super) data_alignment_bytes: u32,
    pub(super) max_h2c_data_bytes: u32,

    pub(super) slots: Box<[Slot]>,
    slot_bits: u32,
    free: Vec<u16>,
    /// Commands whose capsule is not sent yet.
    pub(super) unsent: VecDeque<u16>,
    /// Commands with a grant to answer.
    pub(super) transfers: VecDeque<u16>,
    /// Outstanding commands that fill many bytes, for the choice of how to receive.
    pub(super) large_reads: u16,

    pub(super) list: Option<Box<SendList>>,
    /// Whose blocks are in the list, in order.
    pub(super) lent: Vec<u16>,
    pub(super) receive: Receive,
    /// What the terminate request will say; sent when the list is free.
    pub(super) terminate: Option<Violation>,
    why: Option<QueueError>,

    done: VecDeque<Done>,
    events: VecDeque<QpairEvent>,
    handshake_by: Instant,
    next_scan: Instant,
    /// Deadline for commands, from when they are submitted.
    pub(super) command_timeout: Duration,
}

impl Qpair {
    /// A queue pair with a slot for each command of a queue of `entries`, not connected. Queue 0 is the admin queue.
    pub fn new(
        identity: Identity,
        qid: u16,
        entries: QueueEntries,
        digests: (bool, bool),
        command_timeout: Duration,
    ) -> Self {
        let depth = entries.commands();
        let slots = (0..depth).map(|_| Slot::empty()).collect();
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
            // At most: Up, Expired for each scan (drained every turn), Down.
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
    /// In a debug build, if it is not closed.
    pub fn open<I: Io>(&mut self, io: &mut I, open: Open) -> Result<SockId, QueueError> {
        let sock = io.connect(open.to).map_err(|_| QueueError::TableFull)?;
        self.begin(io, sock, open);
        Ok(sock)
    }

    /// The same over a connection that there is already.
    ///
    /// # Panics
    /// In a debug build, if it is not closed.
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

    /// Its socket, while it has one.
    pub fn sock(&self) -> Option<SockId> {
        self.sock
    }

    /// The address that it connects, or connected, to.
    pub fn peer(&self) -> std::net::SocketAddr {
        self.open.to
    }

    /// Whether commands go out.
    pub fn is_live(&self) -> bool {
        self.stage == Stage::Live
    }

    /// Whether it has no socket and holds no command.
    pub fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    /// Commands that it holds.
    pub fn outstanding(&self) -> u16 {
        (self.slots.len() - self.free.len()) as u16
    }

    /// Whether another command may be submitted now.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.stage == Stage::Live && self.outstanding() < self.open.entries.commands()
    }

    /// Takes a command; it goes out with the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// Gives the command back if the queue is full or not up.
    #[inline(always)]
    #[allow(clippy::result_large_err)] // the command must come back, and boxing it would allocate
    pub fn submit(&mut self, now: Instant, command: Command) -> Result<(), Command> {
        self.submit_by(command, now + self.command_timeout)
    }

    /// The same with a deadline of its own.
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

    /// The same without a deadline: Asynchronous Event Request.
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

    /// The slot of an outstanding command that was sent.
    #[inline]
    pub(super) fn slot_of(&self, cid: u16) -> Result<u16, Violation> {
        let at = cid & ((1u32 << self.slot_bits) - 1) as u16;
        let known = self.slots.get(usize::from(at)).is_some_and(|slot| {
            let named = slot.command.as_ref().is_some_and(|command| command.sqe.cid == cid);
            named && slot.sent && slot.response.is_none()
        });
        if known { Ok(at) } else { Err(Violation::UnknownCommand { cid }) }
    }

    /// Ends a command: back to the owner, slot free.
    #[inline]
    pub(super) fn finish(&mut self, at: u16, result: Result<Cqe, Lost>) {
        let slot = &mut self.slots[usize::from(at)];
        let Some(command) = slot.command.take() else { return };
        self.large_reads -= u16::from(command.fills_many());
        slot.reset();
        self.free.push(at);
        self.done.push_back(Done { command, result });
    }

    /// Nobody waits for the commands with these tags any more. Those that are not sent come back at once; of the others
    /// the deadline is drawn near.
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

    /// The next command that is back.
    #[inline]
    pub fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<QpairEvent> {
        self.events.pop_front()
    }

    /// Closes it: [`QpairEvent::Down`] follows once everything is back. Harmless if it is closed.
    pub fn close<I: Io>(&mut self, io: &mut I) {
        self.fail(io, QueueError::Closed);
    }

    /// Closes it because of `why`; the first reason stays.
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

    /// The peer broke the protocol: say so, then close (NVMe-oF TCP 1.0c §3.5).
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

    /// Answer to [`Io::connect`].
    pub fn on_connected<I: Io>(&mut self, io: &mut I, result: Result<(), SockError>) {
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

    /// The last word about the socket: gives every command back.
    pub fn on_closed<I: Io>(&mut self, _io: &mut I) {
        self.sock = None;
        self.stage = Stage::Closed;
        self.handshake_by = NEVER;
        self.next_scan = NEVER;
        self.unsent.clear();
        self.transfers.clear();
        for at in 0..self.slots.len() as u16 {
            let slot = &mut self.slots[usize::from(at)];
            let sent = slot.sent;
            // A completion that waited for its block is as good as any: the command is done.
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

    /// The handshake is over.
    pub(super) fn joined(&mut self, cntlid: u16) {
        self.stage = Stage::Live;
        self.handshake_by = NEVER;
        self.push_event(QpairEvent::Up { cntlid });
    }

    /// When [`on_tick`](Self::on_tick) must run next; a point in the past if it is overdue.
    pub fn next_deadline(&self) -> Option<Instant> {
        let next = self.handshake_by.min(self.next_scan);
        (next != NEVER).then_some(next)
    }

    /// Looks at the deadlines. The first time that a command is late there is an event, so that the
    /// owner can abort it; the second time, after as long again, the queue is closed.
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

impl Slot {
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

    /// Ready for the next command. `queued` stays: the entry in `transfers` is still there.
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
