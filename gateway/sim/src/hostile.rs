//! A hostile host. Its connections send data that no host may send, or they send nothing. The gateway must give the right answer
//! each time.
//!
//! Each attack is a future over [`Lines`](line::Lines). The host polls its attacks after each event of its core. An attack ends in one of
//! three ways: with the answer that the specs require, with [`Cut::Wrong`], or because another event cut it off. The run judges
//! whether a path error is right. One attack always runs. The attacks' writes carry bytes that no LUN may ever hold. So if such a
//! write lands, the model of the polite hosts finds it.

mod attacks;
mod line;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use trefoil_poll::{Arena, CoreId, FileDone, Handler, Instant, SockEvent, SockId};

use trefoil_wire::nvme::Status;

use crate::direct::{StorageMsg, StorageSim};
use crate::world::Machine;
pub use attacks::ATTACKS;
use attacks::STANDING;
use line::Shared;

/// NQN of the hostile host. It may connect like any other host.
pub const HOST: &str = "nqn.2014-08.org.trefoil.sim:hostile";
/// Second NQN of the hostile host. An attack under this name takes the name's whole share of memory. Meanwhile, attacks under the
/// first name need memory too.
pub const GREEDY: &str = "nqn.2014-08.org.trefoil.sim:greedy";
/// Third NQN of the hostile host. It may connect only to discovery.
pub const UNLISTED: &str = "nqn.2014-08.org.trefoil.sim:unlisted";
/// Number of attacks that run at a time, besides the standing attack.
const AT_ONCE: usize = 3;

/// The reason why an attack ended without its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The connection ended, or something that the attack needs is missing.
    Gone(&'static str),
    /// The gateway gave a wrong answer, or no answer in time.
    Wrong(String),
    /// A command sent at `since` got a path error. This error is right only if the LUN's array couldn't be reached.
    Refused {
        /// The time when the command was sent, or an earlier time.
        since: Instant,
        /// The status of the command.
        status: Status,
    },
}

/// How an attack ended.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The kind, from [`ATTACKS`].
    pub kind: &'static str,
    /// The `epoch` that was passed to [`HostileCore::attack`].
    pub epoch: u64,
    /// The result.
    pub result: Result<(), Cut>,
}

type Attack = Pin<Box<dyn Future<Output = Result<(), Cut>>>>;

/// The machine of the hostile host; see the module.
pub struct HostileCore {
    shared: Rc<RefCell<Shared>>,
    running: Vec<(&'static str, u64, Attack)>,
    verdicts: Vec<Verdict>,
    arena: Arena,
}

impl HostileCore {
    /// Returns a host that attacks the gateway at `addr`.
    pub fn new(io: &StorageSim, arena: Arena, addr: std::net::SocketAddr) -> Self {
        let shared = Rc::new(RefCell::new(Shared::new(io, addr)));
        Self { shared, running: Vec::new(), verdicts: Vec::new(), arena }
    }

    /// Starts attack `which`, unless enough attacks are under way. `bits` choose the attack's variant. The verdict carries
    /// `epoch`.
    pub fn attack(&mut self, which: usize, bits: u64, epoch: u64) {
        let (kind, start) = ATTACKS[which % ATTACKS.len()];
        // Two `hostile-no-data` attacks would share the memory of one host and wait for each other. Two
        // `hostile-many-conns` attacks would run out of sockets.
        let alone = !matches!(kind, "hostile-no-data" | "hostile-many-conns")
            || self.running.iter().all(|(other, ..)| *other != kind);
        let others = self.running.iter().filter(|(kind, ..)| *kind != STANDING.0);
        if others.count() < AT_ONCE && alone {
            self.running.push((kind, epoch, start(line::Lines::new(self.shared.clone()), bits)));
        }
    }

    /// Returns whether the standing attack is under way.
    pub fn stands(&self) -> bool {
        self.running.iter().any(|(kind, ..)| *kind == STANDING.0)
    }

    /// Starts the standing attack. `epoch` has the same meaning as in [`attack`](Self::attack).
    pub fn stand(&mut self, epoch: u64) {
        let (kind, start) = STANDING;
        self.running.push((kind, epoch, start(line::Lines::new(self.shared.clone()), 0)));
    }

    /// Takes the verdicts of the attacks that ended.
    pub fn take_verdicts(&mut self) -> Vec<Verdict> {
        std::mem::take(&mut self.verdicts)
    }

    /// Polls the attacks, and asks the driver to carry out their requests.
    fn go_on(&mut self, io: &mut StorageSim) {
        self.shared.borrow_mut().begin(io);
        let mut cx = Context::from_waker(Waker::noop());
        let verdicts = &mut self.verdicts;
        self.running.retain_mut(|(kind, epoch, attack)| match attack.as_mut().poll(&mut cx) {
            Poll::Ready(result) => {
                verdicts.push(Verdict { kind, epoch: *epoch, result });
                false
            }
            Poll::Pending => true,
        });
        self.shared.borrow_mut().pump(io);
    }
}

impl Machine<StorageMsg> for HostileCore {
    fn into_arena(self) -> Option<Arena> {
        Some(self.arena)
    }
}

impl Handler<StorageSim> for HostileCore {
    fn on_sock(&mut self, io: &mut StorageSim, sock: SockId, event: SockEvent<'_>) {
        let mut shared = self.shared.borrow_mut();
        match event {
            SockEvent::Received(bytes) => shared.received(sock, bytes),
            SockEvent::RecvEnd { .. } => shared.ended(sock),
            SockEvent::Sent { result, .. } => shared.sent(sock, result.is_ok()),
            SockEvent::Connected(result) => shared.connected(sock, result.is_ok()),
            SockEvent::Closed => shared.closed(sock),
            SockEvent::Filled(_) => unreachable!("{sock:?} of a host that receives into no block"),
        }
        drop(shared);
        self.go_on(io);
    }

    fn on_file(&mut self, _: &mut StorageSim, done: FileDone) {
        unreachable!("{done:?} of a host without files");
    }

    fn on_message(&mut self, _: &mut StorageSim, from: Option<CoreId>, msg: StorageMsg) {
        unreachable!("{msg:?} from {from:?} to a host");
    }

    fn on_turn(&mut self, io: &mut StorageSim) -> bool {
        self.go_on(io);
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.shared.borrow().wake_at()
    }
}
