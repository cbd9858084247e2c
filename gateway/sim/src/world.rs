//! The world: nodes with cores, links, disks and mailboxes. The world moves one event at a time.
//!
//! A harness calls [`World::step`] in a loop and acts on the returned [`Step`]. The harness plays each node's control
//! thread ([`World::post`], [`World::take_control`], [`World::take_accepted`]) and decides which faults happen when
//! ([`World::after`]).

mod drive;
mod events;
mod faults;
mod files;
mod running;
mod socks;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use trefoil_poll::rand::Rng;
use trefoil_poll::{Arena, CoreId, Handler, Instant};

use crate::disk::{Disk, DiskId};
use crate::memory::crash_drop;
use crate::net::{Conn, ConnId, Holder, NodeId, Side, Weather};
use crate::simio::{SimFile, SimIo, SimSocket};
use crate::story::Story;
use drive::Core;
use events::{Event, Events};

/// The machine that a core of the world runs.
pub trait Machine<M: Send>: Handler<SimIo<M>> + Sized {
    /// Ends the machine at once and returns its arena, if it has one. The world calls this function during a crash, because
    /// only a crash may drop blocks and requests.
    fn into_arena(self) -> Option<Arena>;
}

/// How a node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// kill -9: the node loses all state. Its disks keep the data that they have accepted. Its peers get resets.
    Kill,
    /// A power cut: the node loses all state, its disks lose their caches or tear cached writes, and its peers hear nothing.
    Power,
}

/// Result of [`World::step`]: the kind of event that happened. The harness reacts to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An event that needs no reaction of the harness.
    Ran,
    /// The node's control thread has messages.
    Control(NodeId),
    /// The node's control thread has a new connection.
    Accepted(NodeId),
    /// The end of a delay that the harness set with [`World::after`].
    Timer(u64),
    /// No event is left. Nothing more happens unless the harness acts.
    Idle,
}

/// A connection that a listener accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The socket that a core must adopt.
    pub socket: SimSocket,
    /// The address that the peer connected to.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
}

/// Deliberate defects of the mailboxes. Rates are per 1000 messages between two cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailDefect {
    /// Rate of messages that overtake the message before them.
    pub reorder: u32,
    /// Rate of messages that never arrive.
    pub lose: u32,
}

/// Deliberate defects of sends. Rates are per 1000 sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkDefect {
    /// Rate of sends that go out twice, among the sends of one NVMe/TCP response capsule without a digest.
    pub double: u32,
    /// Rate of sends whose loans last until the socket has taken all bytes.
    pub keep_loan: u32,
    /// Rate of sends whose loans end without a copy of the bytes that the socket has not taken.
    pub blank_loan: u32,
}

struct WorldNode<M, H> {
    name: String,
    ip: IpAddr,
    up: bool,
    powered: bool,
    /// Number of starts of the node. Events of an earlier life have no effect.
    life: u32,
    /// Time until which the network around the node delivers nothing.
    dark_until: Instant,
    cores: Vec<Core<M, H>>,
    /// Messages from each core to the control thread that have not arrived yet. Arrived messages are in `control`.
    to_control: Vec<VecDeque<M>>,
    control: VecDeque<(CoreId, M)>,
    accepted: VecDeque<Accepted>,
    next_port: u16,
}

/// The simulated world; see the module. `M` is the message type of mailboxes, `H` the machine of a core.
pub struct World<M: Send, H: Machine<M>> {
    now: Instant,
    rng: Rng,
    events: Events,
    nodes: Vec<WorldNode<M, H>>,
    conns: Vec<Conn>,
    listeners: BTreeMap<SocketAddr, NodeId>,
    /// Detached ends of connections. The world closes each end once its [`SimSocket`] is dropped.
    detached: Vec<(ConnId, Side)>,
    disks: Vec<(NodeId, Disk)>,
    replays: Vec<Option<(DiskId, crate::disk::Change)>>,
    /// Messages that a defect swallowed.
    swallowed: Vec<M>,
    scratch: Vec<u8>,
    /// The record of all events.
    pub story: Story,
    /// Conditions under which bytes travel.
    pub weather: Weather,
    /// Deliberate defects of the mailboxes.
    pub mail_defect: MailDefect,
    /// Deliberate defects of sends.
    pub link_defect: LinkDefect,
    /// The deliberate defect in the machines' code; see [`trefoil_poll::Io::is_broken`].
    pub broken: Option<&'static str>,
    /// Counts of zero-copy loans.
    pub loans: Loans,
}

/// Counts of events that concern zero-copy loans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loans {
    /// Sends with loans.
    pub sends: u64,
    /// Sends with loans where the socket took only a part at once. The world copied the rest out of the loan.
    pub cut: u64,
    /// Turns that ended while a request was waiting for its backend.
    pub waits: u64,
}

impl<M: Send, H: Machine<M>> World<M, H> {
    /// Returns an empty world. `seed` determines everything that happens in it. If `told` is true, the story also keeps text.
    pub fn new(seed: u64, told: bool) -> Self {
        Self {
            now: Instant::from_ns(1_000_000),
            rng: Rng::new(seed),
            events: Events::default(),
            nodes: Vec::new(),
            conns: Vec::new(),
            listeners: BTreeMap::new(),
            detached: Vec::new(),
            disks: Vec::new(),
            replays: Vec::new(),
            swallowed: Vec::new(),
            scratch: vec![0; 64 << 10],
            story: Story::new(told),
            weather: Weather::default(),
            mail_defect: MailDefect::default(),
            link_defect: LinkDefect::default(),
            broken: None,
            loans: Loans::default(),
        }
    }

    /// Returns the virtual time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Returns a generator derived from the world's own, for the harness's choices.
    pub fn fork_rng(&mut self) -> Rng {
        Rng::new(self.rng.bits())
    }

    /// Adds a node that is off. Its address is 10.0.0.(its number + 1).
    pub fn add_node(&mut self, name: &str) -> NodeId {
        let id = NodeId(self.nodes.len() as u16);
        self.nodes.push(WorldNode {
            name: name.into(),
            ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, id.0 as u8 + 1)),
            up: false,
            powered: true,
            life: 0,
            dark_until: Instant::default(),
            cores: Vec::new(),
            to_control: Vec::new(),
            control: VecDeque::new(),
            accepted: VecDeque::new(),
            next_port: 40_000,
        });
        id
    }

    /// Starts a node with `count` cores. `make` creates the machine of each core. Each core then gets a first turn.
    ///
    /// # Panics
    /// If the node is up.
    pub fn start(&mut self, node: NodeId, count: u16, mut make: impl FnMut(&mut SimIo<M>) -> H) {
        let mut cores = Vec::new();
        for core in 0..count {
            let mut io = SimIo::new(CoreId(core), count, Rng::new(self.rng.bits()));
            (io.now, io.broken) = (self.now, self.broken);
            let machine = make(&mut io);
            cores.push(Core::new(io, machine, count));
        }
        let n = &mut self.nodes[node.0 as usize];
        assert!(!n.up, "{} is up", n.name);
        (n.up, n.powered, n.life) = (true, true, n.life + 1);
        n.to_control = (0..count).map(|_| VecDeque::new()).collect();
        n.cores = cores;
        let line = format_args!("{} starts with {count} cores (life {})", n.name, n.life);
        self.story.tell(self.now, line);
        self.reset_stale_peers(node);
        (0..count).for_each(|core| self.wake(node, core));
    }

    /// Returns whether the node runs.
    pub fn is_up(&self, node: NodeId) -> bool {
        self.nodes[node.0 as usize].up
    }

    /// Returns the node's address with port `port`.
    pub fn addr(&self, node: NodeId, port: u16) -> SocketAddr {
        SocketAddr::new(self.nodes[node.0 as usize].ip, port)
    }

    /// Accepts connections to `port` until the node crashes.
    pub fn listen(&mut self, node: NodeId, port: u16) -> SocketAddr {
        let addr = self.addr(node, port);
        self.listeners.insert(addr, node);
        addr
    }

    /// Connects the node to itself. Returns the connecting end and the accepting end, each with its address.
    /// Faults of the network do not touch this connection.
    pub fn pair(&mut self, node: NodeId) -> [(SimSocket, SocketAddr); 2] {
        let id = ConnId(self.conns.len() as u32);
        let held = [Arc::new(()), Arc::new(())];
        let ends = held.each_ref().map(|held| (node, Holder::Detached(held.clone())));
        let [ours, theirs] = ends;
        self.conns.push(Conn::new(ours, theirs, self.weather.buffer_bytes));
        self.detached.extend([(id, Side::Client), (id, Side::Server)]);
        let port = |side| SocketAddr::from((Ipv4Addr::LOCALHOST, 50_000 + side as u16));
        let mut sides = [Side::Client, Side::Server].into_iter();
        held.map(|held| {
            let side = sides.next().unwrap_or(Side::Server);
            (SimSocket { conn: id, side, _held: held }, port(side))
        })
    }

    /// Takes the next connection for the control thread of `node`.
    pub fn take_accepted(&mut self, node: NodeId) -> Option<Accepted> {
        self.nodes[node.0 as usize].accepted.pop_front()
    }

    /// Takes the next message to the control thread of `node`, with the core that sent it.
    pub fn take_control(&mut self, node: NodeId) -> Option<(CoreId, M)> {
        self.nodes[node.0 as usize].control.pop_front()
    }

    /// Sends a message from the control thread of `node` to a core. If the node is down, the message is lost, as in a crash.
    pub fn post(&mut self, node: NodeId, core: CoreId, msg: M) {
        let Some(c) = self.nodes[node.0 as usize].cores.get(usize::from(core.0)) else {
            return crash_drop(msg);
        };
        let from = c.control_slot();
        self.mail(node, from, core.0, msg);
    }

    /// Adds a disk of zeros to `node`.
    pub fn add_disk(&mut self, node: NodeId, name: &str, len_bytes: u64) -> DiskId {
        self.disks.push((node, Disk::new(name, len_bytes)));
        DiskId(self.disks.len() as u32 - 1)
    }

    /// Returns a disk, for the harness to inject faults and check data.
    pub fn disk(&mut self, disk: DiskId) -> &mut Disk {
        &mut self.disks[disk.0 as usize].1
    }

    /// Opens a disk. A core of the disk's node can attach the opened disk.
    pub fn open(&self, disk: DiskId) -> SimFile {
        SimFile(disk)
    }

    /// Makes [`step`](Self::step) return [`Step::Timer`] after `delay`.
    pub fn after(&mut self, delay: Duration, token: u64) {
        self.events.push(self.now + delay, Event::Timer(token));
    }

    /// Returns a core's machine, if its node is up.
    pub fn machine(&mut self, node: NodeId, core: u16) -> Option<&mut H> {
        self.nodes[node.0 as usize].cores.get_mut(usize::from(core)).map(Core::machine)
    }

    /// Calls a core's machine from outside (from a workload or a test). The call is part of a turn.
    pub fn with<R>(
        &mut self,
        node: NodeId,
        core: u16,
        call: impl FnOnce(&mut H, &mut SimIo<M>) -> R,
    ) -> Option<R> {
        let now = self.now;
        let mut running = self.nodes[node.0 as usize].cores.get_mut(usize::from(core))?.take_running();
        running.io.now = now;
        let result = call(&mut running.machine, &mut running.io);
        self.carry_out(node, core, &mut running);
        self.nodes[node.0 as usize].cores[usize::from(core)].put_running(running);
        self.wake(node, core);
        Some(result)
    }

    /// Moves the world by one event.
    pub fn step(&mut self) -> Step {
        let Some((at, event)) = self.events.pop() else { return Step::Idle };
        debug_assert!(at >= self.now, "time runs backwards");
        self.now = at;
        self.happen(event)
    }

    fn node(&mut self, node: NodeId) -> &mut WorldNode<M, H> {
        &mut self.nodes[node.0 as usize]
    }

    fn is_life(&self, node: NodeId, life: u32) -> bool {
        let n = &self.nodes[node.0 as usize];
        n.up && n.life == life
    }

    /// Closes the connection ends whose detached sockets were dropped.
    fn sweep_detached(&mut self) {
        let mut dropped = Vec::new();
        let conns = &mut self.conns;
        self.detached.retain(|&(conn, side)| match &conns[conn.0 as usize].end(side).holder {
            Holder::Detached(held) if Arc::strong_count(held) > 1 => true,
            Holder::Detached(_) => {
                dropped.push((conn, side));
                false
            }
            _ => false,
        });
        for (conn, side) in dropped {
            self.close_end(conn, side);
        }
    }
}

impl<M: Send, H: Machine<M>> Drop for World<M, H> {
    fn drop(&mut self) {
        crash_drop(std::mem::take(&mut self.swallowed));
        for node in 0..self.nodes.len() {
            self.drop_cores(NodeId(node as u16));
        }
    }
}
