//! Keeps a mostly idle core fast: a host inside the gateway queries the core over loopback.
//!
//! A core's code and data stay in the CPU's caches only while the core works. After a quarter of a second of sleep the
//! code, the tables and the kernel's TCP path are cold. The first request then takes three times the CPU time of the
//! next. So the core queries itself at intervals ([`WarmHost`]), over a connection like any other. Then everything that
//! a host's first request needs is still in the caches.
//!
//! This is not a health check. If the connection ends, the only effect is that requests after idle time are slower.

use crate::initiator::{Command, Identity, Open, Qpair, QpairEvent, QueueEntries};
use std::time::Duration;
use trefoil_poll::{Arena, Instant, Io, SockEvent, SockId};
use trefoil_wire::fabrics::{DYNAMIC_CNTLID, FabricsCommand, Nqn, PropertySet, PropertySize};
use trefoil_wire::nvme::identify::{IDENTIFY_LEN, cns};
use trefoil_wire::nvme::property::{Cc, offset};
use trefoil_wire::nvme::{AdminCommand, IdentifyCommand, Sgl, Sqe};

const ENTRIES: QueueEntries = QueueEntries::new(3);
const WITHIN: Duration = Duration::from_secs(10);

/// The host that queries its own core; see the module. All its memory exists from the start: 16 KiB. A query also takes
/// 4 KiB of the core's arena.
pub struct WarmHost {
    qpair: Qpair,
    every: Duration,
    /// Time of the next query. `None` while a query is in flight or the host isn't connected.
    due: Option<Instant>,
}

impl std::fmt::Debug for WarmHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WarmHost").field("every", &self.every).finish_non_exhaustive()
    }
}

impl WarmHost {
    /// Creates a host that queries at the interval `every`. No other host may have the same names: a new controller of
    /// a host waits until the commands of the host's earlier associations are over.
    pub fn new(host_nqn: Nqn, host_id: [u8; 16], every: Duration) -> Self {
        let identity = Identity { host_nqn, host_id, subsystem_nqn: Nqn::DISCOVERY };
        Self { qpair: Qpair::new(identity, 0, ENTRIES, (false, false), WITHIN), every, due: None }
    }

    /// Connects as a host over `sock`, the host's end of the connection.
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

    /// Handles an event of its socket.
    pub fn on_sock<I: Io>(&mut self, io: &mut I, event: SockEvent<'_>) {
        self.qpair.on_sock(io, event);
    }

    /// Sends a query if one is due. Returns true if the host did work.
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
            // A core without a free block is busy, so the query can wait.
            match arena.alloc(IDENTIFY_LEN) {
                Some(buf) => self.ask(Command::fill(0, identify(), buf, 0, IDENTIFY_LEN as u32)),
                None => self.due = Some(now + self.every),
            }
            worked = true;
        }
        self.qpair.flush(io);
        worked
    }

    /// Submits `command` without a deadline. A core that doesn't answer itself is busy or was stopped (SIGSTOP), so there
    /// is no reason to disconnect.
    fn ask(&mut self, command: Command) {
        self.due = None;
        let refused = self.qpair.submit_untimed(command).is_err();
        debug_assert!(!refused, "one command at a time fits any queue that is up");
    }

    /// Returns when [`on_turn`](Self::on_turn) must run next.
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
