//! A core: its turns, the events that it receives, and the calls that it makes.

use std::collections::VecDeque;
use std::time::Duration;

use trefoil_poll::{CoreId, Instant};

use crate::disk::DiskId;
use crate::net::NodeId;
use crate::simio::{Ask, FILES, SOCKETS, SimFile, SimIo};
use crate::world::events::{Event, Where};
use crate::world::files::FileJob;
use crate::world::running::{Ready, Running};
use crate::world::socks::Sock;
use crate::world::{Machine, Step, World};

pub(crate) struct Core<M, H> {
    running: Option<Box<Running<M, H>>>,
    pub ready: VecDeque<Ready>,
    pub socks: Vec<Sock>,
    pub files: Vec<Option<(DiskId, u32)>>,
    pub jobs: Vec<Option<FileJob>>,
    /// Messages in order: one queue for each sending core, and a last queue for the control thread.
    mail: Vec<VecDeque<M>>,
    turn_at: Option<Instant>,
    wake_at: Option<Instant>,
    pub paused_until: Instant,
}

impl<M: Send, H> Core<M, H> {
    pub fn new(io: SimIo<M>, machine: H, cores: u16) -> Self {
        Self {
            running: Some(Box::new(Running { io, machine })),
            ready: VecDeque::new(),
            socks: (0..SOCKETS).map(|_| Sock::default()).collect(),
            files: vec![None; FILES],
            jobs: Vec::new(),
            mail: (0..=cores).map(|_| VecDeque::new()).collect(),
            turn_at: None,
            wake_at: None,
            paused_until: Instant::default(),
        }
    }

    /// Splits the core into two parts: the machine, and everything that the driver holds for the machine. The machine is None if
    /// it panicked in its turn.
    pub fn part(mut self) -> (Option<H>, impl Sized) {
        match self.running.take().map(|running| *running) {
            Some(Running { io, machine }) => (Some(machine), (Some(io), self)),
            None => (None, (None, self)),
        }
    }

    pub fn control_slot(&self) -> u16 {
        self.mail.len() as u16 - 1
    }

    pub fn machine(&mut self) -> &mut H {
        &mut self.running.as_mut().expect("no machine looks at itself through the world").machine
    }

    pub fn take_running(&mut self) -> Box<Running<M, H>> {
        self.running.take().expect("turns don't nest")
    }

    pub fn put_running(&mut self, running: Box<Running<M, H>>) {
        self.running = Some(running);
    }
}

impl<M: Send, H: Machine<M>> World<M, H> {
    pub(super) fn happen(&mut self, event: Event) -> Step {
        match event {
            Event::Turn(at) => {
                let now = Some(self.now);
                if self.is_life(at.node, at.life) && self.core(at.node, at.core).turn_at == now {
                    self.turn(at.node, at.core);
                }
            }
            Event::Wake(at) => {
                let now = Some(self.now);
                if self.is_life(at.node, at.life) && self.core(at.node, at.core).wake_at == now {
                    self.core(at.node, at.core).wake_at = None;
                    self.wake(at.node, at.core);
                }
            }
            Event::Arrive(conn, side, len) => self.arrive(conn, side, len),
            Event::Fin(conn, side) => self.arrive_fin(conn, side),
            Event::Fail(conn, side, errno) => self.fail_end(conn, side, errno),
            Event::Connect(at, sock, to) => return self.connect_arrives(at, sock, to),
            Event::ConnectFailed(at, sock, errno) => self.connect_failed(at, sock, errno),
            Event::SendOn(at, sock) => self.send_on(at, sock),
            Event::Disk(at, slot) => self.disk_done(at, slot),
            Event::Mail(at, from) => {
                if self.is_life(at.node, at.life) {
                    self.tell_core(at.node, at.core, Ready::Mail(from));
                }
            }
            Event::ToControl(at) => {
                if self.is_life(at.node, at.life) {
                    let node = self.node(at.node);
                    if let Some(msg) = node.to_control[usize::from(at.core)].pop_front() {
                        node.control.push_back((CoreId(at.core), msg));
                        self.sweep_detached();
                        return Step::Control(at.node);
                    }
                }
            }
            Event::Replay(index) => self.replay(index),
            Event::Timer(token) => {
                self.sweep_detached();
                return Step::Timer(token);
            }
        }
        Step::Ran
    }

    pub(super) fn core(&mut self, node: NodeId, core: u16) -> &mut Core<M, H> {
        &mut self.nodes[node.0 as usize].cores[usize::from(core)]
    }

    pub(super) fn place(&self, node: NodeId, core: u16) -> Where {
        Where { node, life: self.nodes[node.0 as usize].life, core }
    }

    pub(super) fn tell_core(&mut self, node: NodeId, core: u16, what: Ready) {
        self.core(node, core).ready.push_back(what);
        self.wake(node, core);
    }

    /// Schedules a turn of a core.
    pub(super) fn wake(&mut self, node: NodeId, core: u16) {
        if self.core(node, core).turn_at.is_some() {
            return;
        }
        let delay = match self.rng.below(100) {
            0..90 => 200 + self.rng.below(3_000),
            90..99 => self.rng.below(30_000),
            _ => self.rng.below(500_000),
        };
        let late = match self.weather.late_turns.as_nanos() as u64 {
            0 => 0,
            most => self.rng.below(most),
        };
        let now = self.now;
        let c = self.core(node, core);
        let at = (now + Duration::from_nanos(delay + late)).max(c.paused_until);
        c.turn_at = Some(at);
        let place = self.place(node, core);
        self.events.push(at, Event::Turn(place));
    }

    fn turn(&mut self, node: NodeId, core: u16) {
        let mut running = self.core(node, core).take_running();
        running.io.now = self.now;
        self.core(node, core).turn_at = None;
        let mut batch = std::mem::take(&mut self.core(node, core).ready);
        self.interleave(&mut batch);
        self.story.note(self.now, &[1, u64::from(node.0), u64::from(core), batch.len() as u64]);
        for what in batch {
            let (class, id) = what.source();
            self.story.note(self.now, &[u64::from(class), u64::from(id)]);
            self.deliver(node, core, &mut running, what);
            self.carry_out(node, core, &mut running);
        }
        let worked = running.machine.on_turn(&mut running.io);
        self.carry_out(node, core, &mut running);
        self.loans.waits += std::mem::take(&mut running.io.waits);
        let deadline = running.machine.next_deadline();
        let now = self.now;
        let c = self.core(node, core);
        c.put_running(running);
        let again = worked || !c.ready.is_empty();
        let wake_at = deadline.map(|at| at.max(now + Duration::from_micros(1)));
        let rearm = wake_at.filter(|&at| c.wake_at != Some(at));
        c.wake_at = wake_at;
        if let Some(at) = rearm {
            let place = self.place(node, core);
            self.events.push(at, Event::Wake(place));
        }
        if again {
            self.wake(node, core);
        }
    }

    /// Reorders a batch of events at random. Events from one source stay in order.
    fn interleave(&mut self, batch: &mut VecDeque<Ready>) {
        for i in 1..batch.len() {
            if batch[i].source() != batch[i - 1].source() && self.rng.below(3) == 0 {
                batch.swap(i, i - 1);
            }
        }
    }

    fn deliver(&mut self, node: NodeId, core: u16, running: &mut Running<M, H>, what: Ready) {
        match what {
            Ready::Recv(sock) => self.deliver_recv(node, core, running, sock),
            Ready::Sent(sock) => self.deliver_sent(node, core, running, sock),
            Ready::Connected(sock, result) => self.deliver_connected(node, core, running, sock, result),
            Ready::Closed(sock) => self.deliver_closed(node, core, running, sock),
            Ready::File(slot) => self.deliver_file(node, core, running, slot),
            Ready::Mail(from) => {
                let c = self.core(node, core);
                let sender = (from != c.control_slot()).then_some(CoreId(from));
                if let Some(msg) = c.mail[usize::from(from)].pop_front() {
                    running.machine.on_message(&mut running.io, sender, msg);
                }
            }
        }
    }

    /// Carries out the machine's calls.
    pub(super) fn carry_out(&mut self, node: NodeId, core: u16, running: &mut Running<M, H>) {
        while let Some(ask) = running.io.asked.pop_front() {
            match ask {
                Ask::Adopt(sock, socket) => self.ask_adopt(node, core, sock, socket),
                Ask::Connect(sock, to) => self.ask_connect(node, core, sock, to),
                Ask::Recv(sock, into) => self.ask_recv(node, core, sock, into),
                Ask::Send(sock, list) => self.ask_send(node, core, sock, list),
                Ask::Close(sock) => self.ask_close(node, core, sock),
                Ask::Attach(file, SimFile(disk)) => {
                    assert!(self.disks[disk.0 as usize].0 == node, "a disk of another node");
                    self.core(node, core).files[file.0 as usize] = Some((disk, 0));
                }
                Ask::Detach(file) => self.ask_detach(node, core, running, file),
                Ask::File(file, op, token) => self.ask_file(node, core, file, op, token),
                Ask::Post(to, msg) => self.mail(node, core, to.0, msg),
                Ask::PostControl(msg) => {
                    self.node(node).to_control[usize::from(core)].push_back(msg);
                    let at = self.now + Duration::from_nanos(500 + self.rng.below(20_000));
                    let place = self.place(node, core);
                    self.events.push(at, Event::ToControl(place));
                }
            }
        }
    }

    /// Puts a message into the mailbox of `to`. Each mail event delivers the oldest message of its sender, so delays never
    /// reorder messages.
    pub(super) fn mail(&mut self, node: NodeId, from: u16, to: u16, msg: M) {
        let defect = self.mail_defect;
        let between_cores = from != self.core(node, to).control_slot();
        if between_cores && self.chance(defect.lose) {
            self.story.tell(self.now, format_args!("defect: a message from core {from} to {to} is lost"));
            return self.swallowed.push(msg);
        }
        let reorder = between_cores && self.chance(defect.reorder);
        let queue = &mut self.core(node, to).mail[usize::from(from)];
        queue.push_back(msg);
        let len = queue.len();
        if reorder && len > 1 {
            queue.swap(len - 1, len - 2);
            self.story.tell(self.now, format_args!("defect: a message from core {from} to {to} overtakes"));
        }
        let delay = match self.rng.below(50) {
            0 => self.rng.below(2_000_000),
            _ => 100 + self.rng.below(5_000),
        };
        let place = self.place(node, to);
        self.events.push(self.now + Duration::from_nanos(delay), Event::Mail(place, from));
    }

    /// Returns true in `per_mille` of 1000 cases. For 0, draws no random number, because a defect that is off must not change the
    /// seed's story.
    pub(super) fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.below(1000) < u64::from(per_mille)
    }
}
