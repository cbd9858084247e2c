//! Keeps a core that sleeps much ready to be fast: a host of its own, connected to it over loopback.
//!
//! What a core does for a request lies in its caches only while it does it. After a quarter of a second of sleep the code,
//! the tables and the kernel's TCP path are cold, and the first request takes three times the CPU time of the next. So
//! the core asks itself for something now and then ([`WarmHost`]), over a connection like any other: what a host's first
//! request needs is then warm.
//!
//! What it is not: a check. If its connection ends, requests are slower after idle, and nothing else happens.

use crate::initiator::{Command, Identity, Open, Qpair, QpairEvent, QueueEntries};
use std::time::Duration;
use trefoil_poll::{Arena, Buf, Instant, Io, RecvEnd, SendList, SockError, SockId};
use trefoil_wire::fabrics::{DYNAMIC_CNTLID, FabricsCommand, Nqn, PropertySet, PropertySize};
use trefoil_wire::nvme::identify::{IDENTIFY_LEN, cns};
use trefoil_wire::nvme::property::{Cc, offset};
use trefoil_wire::nvme::{AdminCommand, IdentifyCommand, Sgl, Sqe};

const ENTRIES: QueueEntries = QueueEntries::new(3);
const WITHIN: Duration = Duration::from_secs(10);

/// See the module. It has all its memory from the start: 16 KiB, and 4 KiB of the core's arena while it asks.
pub struct WarmHost {
    qpair: Qpair,
    every: Duration,
    /// When it asks next; `None` while it waits for an answer or isn't connected.
    due: Option<Instant>,
}

impl std::fmt::Debug for WarmHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WarmHost").field("every", &self.every).finish_non_exhaustive()
    }
}

impl WarmHost {
    /// A host that will ask every so often. Its names are its own alone: a core waits until what an earlier association of
    /// the same host had under way is over.
    pub fn new(host_nqn: Nqn, host_id: [u8; 16], every: Duration) -> Self {
        let identity = Identity { host_nqn, host_id, subsystem_nqn: Nqn::DISCOVERY };
        Self { qpair: Qpair::new(identity, 0, ENTRIES, (false, false), WITHIN), every, due: None }
    }

    /// `sock` is its side of the connection.
    pub fn start<I: Io>(&mut self, io: &mut I, sock: SockId, to: std::net::SocketAddr) {
        let open = Open {
            to,
            cntlid: DYNAMIC_CNTLID,
            entries: ENTRIES,
            kato_ms: 0,
            max_capsule_data_bytes: 8192,
            within: WITHIN,
        };
        self.qpair.open_on(io, sock, open);
    }

    /// Bytes came in.
    pub fn on_received<I: Io>(&mut self, io: &mut I, bytes: &[u8]) {
        self.qpair.on_received(io, bytes);
    }

    /// A receive into a block is full.
    pub fn on_filled<I: Io>(&mut self, io: &mut I, buf: Buf) {
        self.qpair.on_filled(io, buf);
    }

    /// A receive ended without its bytes.
    pub fn on_recv_end<I: Io>(&mut self, io: &mut I, buf: Option<Buf>, why: RecvEnd) {
        self.qpair.on_recv_end(io, buf, why);
    }

    /// A send is done.
    pub fn on_sent<I: Io>(&mut self, io: &mut I, list: Box<SendList>, result: Result<(), SockError>) {
        self.qpair.on_sent(io, list, result);
    }

    /// The last word about its socket.
    pub fn on_closed<I: Io>(&mut self, io: &mut I) {
        self.qpair.on_closed(io);
    }

    /// Asks if it is time to; says whether there was work.
    pub fn on_turn<I: Io>(&mut self, io: &mut I, arena: &mut Arena) -> bool {
        let now = io.now();
        let mut worked = false;
        if self.qpair.next_deadline().is_some_and(|at| at <= now) {
            self.qpair.on_tick(io);
            worked = true;
        }
        while let Some(mut done) = self.qpair.next_done() {
            done.command.take_buf().into_iter().for_each(|buf| arena.free(buf));
            self.due = Some(if io.is_broken("restless-core") { now } else { now + self.every });
            worked = true;
        }
        while let Some(event) = self.qpair.next_event() {
            match event {
                QpairEvent::Up { .. } => self.ask(Command::bare(0, enable())),
                QpairEvent::Down(_) => self.due = None,
                QpairEvent::Expired { .. } => {}
            }
            worked = true;
        }
        if self.due.is_some_and(|at| at <= now) {
            // A core without a block to spare is not idle.
            match arena.alloc(IDENTIFY_LEN) {
                Some(buf) => self.ask(Command::fill(0, identify(), buf, 0, IDENTIFY_LEN as u32)),
                None => self.due = Some(now + self.every),
            }
            worked = true;
        }
        self.qpair.flush(io);
        worked
    }

    /// Without a deadline: a core that doesn't answer itself has more to do than to hang up, or stood still (SIGSTOP).
    fn ask(&mut self, command: Command) {
        self.due = None;
        let refused = self.qpair.submit_untimed(command).is_err();
        debug_assert!(!refused, "one command at a time fits any queue that is up");
    }

    /// When [`on_turn`](Self::on_turn) must run next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.qpair.next_deadline()).min()
    }
}

fn enable() -> Sqe {
    let cc = Cc { en: true, iosqes: 6, iocqes: 4, ..Cc::default() };
    let set = PropertySet { size: PropertySize::Four, offset: offset::CC, value: cc.bits().into() };
    FabricsCommand::PropertySet(set).sqe(0, Sgl::NONE)
}

fn identify() -> Sqe {
    let command = AdminCommand::Identify(IdentifyCommand { cns: cns::CONTROLLER, ..Default::default() });
    command.sqe(0, 0, Sgl::Transport { len_bytes: IDENTIFY_LEN as u32 })
}
