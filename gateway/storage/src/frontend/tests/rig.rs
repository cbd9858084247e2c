//! A gateway of several targets over test memory. Its driver delivers bytes in pieces that a seed determines.

use crate::backend::{Attach, AttachKind, Memory};
use crate::cx::{Cx, InstantMemory};
use crate::frontend::{Capacity, ConnAddrs, Target, TargetLimits};
use crate::lun::Luns;
use crate::msg::{CtrlrMsg, Msg};
use crate::request::{Completed, Fault, Op, Request};
use crate::topology::{
    Allow, BackendId, Extent, Lun, LunId, Namespace, Portal, PortalId, Subsystem, Topology,
};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use trefoil_poll::ram::Ram;
use trefoil_poll::rand::Rng;
use trefoil_poll::{
    Arena, ArenaId, CoreId, FileId, FileOp, Instant, Io, RecvEnd, RecvInto, SendList, SockEvent, SockId,
    TableFull,
};
use trefoil_sys::region::Region;

type TestMsg = Msg<(), Attach<()>>;

pub const SUBNQN: &str = "nqn.2024-01.test:disks";
pub const HOST: &str = "nqn.2024-01.test:host";
pub const OTHER_HOST: &str = "nqn.2024-01.test:other";
pub const BLOCK: usize = 512;

#[derive(Default)]
pub struct Sock {
    pub open: bool,
    recv: Option<RecvInto>,
    filled: u32,
    sending: Option<Box<SendList>>,
    closing: bool,
    inbox: VecDeque<u8>,
    pub outbox: Vec<u8>,
    /// True if the host has taken the bytes of the send in flight.
    taken: bool,
    /// True if the host takes no bytes.
    pub deaf: bool,
    /// Bytes of a send that the host takes while `deaf`.
    pub taken_bytes: u64,
    pub eof: bool,
}

pub struct TestIo {
    core: u16,
    cores: u16,
    pub now: Instant,
    pub socks: Vec<Sock>,
    posts: Vec<(CoreId, TestMsg)>,
    pub control: Vec<TestMsg>,
    /// Epochs of the topologies that cores reported to control as in force.
    pub in_force: Vec<u64>,
}

impl Io for TestIo {
    type Socket = ();
    type File = ();
    type Msg = TestMsg;

    fn now(&self) -> Instant {
        self.now
    }
    fn random(&mut self) -> u64 {
        4
    }
    fn core(&self) -> CoreId {
        CoreId(self.core)
    }
    fn cores(&self) -> u16 {
        self.cores
    }
    fn adopt(&mut self, socket: ()) -> Result<SockId, ()> {
        Err(socket)
    }
    fn connect(&mut self, _to: SocketAddr) -> Result<SockId, TableFull> {
        Err(TableFull)
    }
    fn recv(&mut self, sock: SockId, into: RecvInto) {
        let sock = &mut self.socks[sock.0 as usize];
        assert!(sock.open && sock.recv.is_none(), "one receive at a time");
        sock.filled = 0;
        sock.recv = Some(into);
    }
    fn send(&mut self, sock: SockId, mut list: Box<SendList>) {
        let sock = &mut self.socks[sock.0 as usize];
        assert!(sock.open && sock.sending.is_none() && !list.is_empty(), "one send at a time");
        sock.taken = list.loans() > 0 && !sock.deaf;
        if sock.taken {
            sock.outbox.extend(list.pieces().flatten());
        }
        // Copy the bytes that the host doesn't take at once, so that they lend no memory any longer. The real driver does the
        // same.
        list.end_loans(if sock.taken { list.len_bytes() } else { 0 });
        sock.sending = Some(list);
    }
    fn taken_bytes(&mut self, sock: SockId) -> u64 {
        self.socks[sock.0 as usize].taken_bytes
    }
    fn come_bytes(&mut self, sock: SockId) -> u64 {
        self.socks[sock.0 as usize].filled.into()
    }
    fn close(&mut self, sock: SockId) {
        self.socks[sock.0 as usize].closing = true;
    }
    fn attach_file(&mut self, file: ()) -> Result<FileId, ()> {
        Err(file)
    }
    fn detach_file(&mut self, _file: FileId) {}
    fn file(&mut self, _file: FileId, _op: FileOp, _token: u64) {}
    fn post(&mut self, to: CoreId, msg: Self::Msg) {
        self.posts.push((to, msg));
    }
    fn post_control(&mut self, msg: Self::Msg) {
        match msg {
            Msg::TopologyDone { epoch, .. } => self.in_force.push(epoch),
            msg => self.control.push(msg),
        }
    }
}

pub struct Core {
    pub target: Target,
    pub arena: Arena,
    requests: VecDeque<Request>,
    done: VecDeque<Completed>,
    pub io: TestIo,
    /// LUNs with memory that can be lent. They replace [`Rig::disks`].
    pub luns: Option<Luns<TestIo>>,
}

impl Core {
    fn with_luns<R>(
        &mut self,
        f: impl FnOnce(&mut Luns<TestIo>, &mut Target, &mut Cx<'_, TestIo>) -> R,
    ) -> Option<R> {
        let Self { target, arena, requests, done, io, luns } = self;
        Some(f(luns.as_mut()?, target, &mut Cx { io, arena, requests, done, luns: None }))
    }

    /// Carries requests down and completions up, as a gateway's core does.
    fn run_luns(&mut self) -> bool {
        let mut worked = false;
        loop {
            if let Some(request) = self.requests.pop_front() {
                self.with_luns(|luns, _, cx| luns.submit(cx, request));
            } else if let Some(done) = self.done.pop_front() {
                let done = self.with_luns(|luns, target, cx| {
                    luns.on_completed(cx, done, |origin| target.is_wanted(origin))
                });
                if let Some(done) = done.flatten() {
                    let Self { target, arena, requests, done: more, io, luns } = self;
                    let luns = luns.as_mut();
                    target.on_completed(
                        &mut Cx {
                            io,
                            arena,
                            requests,
                            done: more,
                            luns: luns.map(|luns| luns as &mut dyn InstantMemory),
                        },
                        done,
                    );
                }
            } else if let Some(stream) = self.target.next_cancel() {
                self.with_luns(|luns, _, cx| luns.cancel(cx, None, stream));
            } else {
                return worked;
            }
            worked = true;
        }
    }
}

/// Address of a socket: core, then number.
pub type At = (usize, u32);

pub struct Rig {
    pub cores: Vec<Core>,
    pub disks: Vec<Vec<u8>>,
    pub rng: Rng,
    /// True if the driver delivers in random pieces.
    pub cut: bool,
    /// Requests wait while this is true.
    pub hold: bool,
    pub faults: Vec<(Op, Fault)>,
    pub flushes: usize,
    pub durable_writes: usize,
    pub topology: Topology,
    limits: TargetLimits,
}

pub fn limits() -> TargetLimits {
    TargetLimits {
        max_conns: 32,
        max_ctrlrs: 8,
        max_discovery: 6,
        slots: 512,
        reserved_slots: 16,
        reserved_bytes: 1 << 20,
        send_lists: 32,
        ..TargetLimits::default()
    }
}

pub fn topology() -> Topology {
    let lun = |name: &str, blocks: u64| {
        Some(Lun {
            name: name.into(),
            block_bytes: BLOCK as u32,
            blocks,
            uuid: [0xA0 + name.len() as u8; 16],
            nguid: [0xB0 + name.len() as u8; 16],
            extents: Vec::new(),
            read_only: false,
        })
    };
    let namespace = |nsid: u32, lun: u32, hosts: Allow| Namespace {
        nsid,
        lun: LunId(lun),
        hosts,
        ana_group: 1,
        ana_state: 1,
    };
    Topology {
        epoch: 1,
        quiesce_ms: 30_000,
        discovery_serial: "DISCOVERY".into(),
        discovery: Vec::new(),
        luns: vec![lun("a", 8192), lun("bb", 8192), lun("ccc", 8192)],
        subsystems: vec![Subsystem {
            nqn: SUBNQN.into(),
            serial: "SERIAL".into(),
            model: "Model".into(),
            hosts: Allow::only(vec![HOST.into(), OTHER_HOST.into()]),
            portals: vec![PortalId(0), PortalId(1)],
            namespaces: vec![
                namespace(1, 0, Allow::Any),
                namespace(3, 1, Allow::only(vec![HOST.into()])),
                namespace(4, 2, Allow::only(vec![OTHER_HOST.into()])),
            ],
            max_namespaces: 16,
            cntlid_range: (1, 0xFFEF),
        }],
        portals: vec![
            Some(Portal { listen: "0.0.0.0:4420".parse().expect("an address") }),
            Some(Portal { listen: "192.0.2.9:4421".parse().expect("an address") }),
        ],
    }
}

/// Next free arena home. Homes are process-wide, so each test core takes a home of its own.
static NEXT_ARENA: AtomicU16 = AtomicU16::new(0);

fn about_ctrlr(msg: TestMsg) -> CtrlrMsg {
    match msg {
        Msg::Ctrlr(msg) => msg,
        other => panic!("{other:?}"),
    }
}

impl Rig {
    pub fn new(cores: u16) -> Self {
        Self::with(cores, limits(), 8)
    }

    pub fn with(cores: u16, limits: TargetLimits, arena_mib: usize) -> Self {
        let max_qpairs = limits.max_conns as u32 * u32::from(cores);
        Self::sharing(cores, limits, arena_mib, Capacity::new(limits.max_ctrlrs as u32, max_qpairs))
    }

    /// Makes a gateway with the given `capacity`.
    pub fn sharing(cores: u16, limits: TargetLimits, arena_mib: usize, capacity: Capacity) -> Self {
        let capacity = Arc::new(capacity);
        let core = |core: u16| {
            let id = NEXT_ARENA.fetch_add(1, Ordering::Relaxed) % 250;
            let region = Region::anonymous(arena_mib << 20).expect("memory for a test");
            let socks = (0..limits.max_conns).map(|_| Sock::default()).collect();
            Core {
                target: Target::new(limits, CoreId(core), cores, id, capacity.clone()),
                arena: Arena::new(ArenaId(id), region),
                requests: VecDeque::new(),
                done: VecDeque::new(),
                io: TestIo {
                    core,
                    cores,
                    now: Instant::from_ns(1 << 40),
                    socks,
                    posts: Vec::new(),
                    control: Vec::new(),
                    in_force: Vec::new(),
                },
                luns: None,
            }
        };
        let mut rig = Self {
            cores: (0..cores).map(core).collect(),
            disks: vec![vec![0; 8192 * BLOCK]; 3],
            rng: Rng::new(1),
            cut: false,
            hold: false,
            faults: Vec::new(),
            flushes: 0,
            durable_writes: 0,
            topology: topology(),
            limits,
        };
        rig.publish();
        rig
    }

    pub fn with_core<R>(&mut self, core: usize, f: impl FnOnce(&mut Target, &mut Cx<'_, TestIo>) -> R) -> R {
        let core = &mut self.cores[core];
        let mut cx = Cx {
            io: &mut core.io,
            arena: &mut core.arena,
            requests: &mut core.requests,
            done: &mut core.done,
            luns: core.luns.as_mut().map(|luns| luns as &mut dyn InstantMemory),
        };
        f(&mut core.target, &mut cx)
    }

    /// Makes a gateway of one core. Each of its LUNs is a backend in the core's memory.
    pub fn lending(limits: TargetLimits) -> Self {
        let mut rig = Self::with(1, limits, 8);
        rig.cores[0].luns = Some(Luns::new(CoreId(0), limits.slots));
        for (id, lun) in rig.topology.luns.iter_mut().flatten().enumerate() {
            let id = BackendId(id as u32);
            let ram = Ram::new(Region::anonymous(lun.len_bytes() as usize).expect("memory for a test"));
            let kind = AttachKind::Memory(Memory::new(ram, 2));
            let attach = Attach { len_bytes: lun.len_bytes(), block_bytes: BLOCK as u32, kind, id };
            lun.extents =
                vec![Extent { lun_offset: 0, len: lun.len_bytes(), backend: id, backend_offset: 0 }];
            rig.cores[0].with_luns(|luns, _, cx| luns.attach(cx, id, Box::new(attach)));
        }
        rig.publish();
        rig
    }

    /// Returns the memory of LUN `lun`.
    pub fn ram(&self, lun: u32) -> &Ram {
        self.cores[0].luns.as_ref().and_then(|luns| luns.ram(BackendId(lun))).expect("its memory")
    }

    /// Puts `self.topology` in force on every core, and waits until all connected hosts know of it.
    pub fn publish(&mut self) {
        self.present();
        self.pump();
    }

    /// Puts `self.topology` in force on every core, without a turn.
    pub fn present(&mut self) {
        self.topology.epoch += 1;
        let snapshot = |t: &Topology| Topology {
            epoch: t.epoch,
            quiesce_ms: t.quiesce_ms,
            discovery_serial: t.discovery_serial.clone(),
            luns: t.luns.clone(),
            subsystems: t.subsystems.clone(),
            discovery: t.discovery.clone(),
            portals: t.portals.clone(),
        };
        let shared = Arc::new(snapshot(&self.topology));
        for core in 0..self.cores.len() {
            let shared = shared.clone();
            if let Some(luns) = &mut self.cores[core].luns {
                luns.on_topology(shared.clone());
            }
            self.with_core(core, |target, _| target.on_topology(shared));
        }
    }

    /// Returns the number of connections that are open and not closing.
    pub fn open_count(&self, core: usize) -> usize {
        self.cores[core].io.socks.iter().filter(|sock| sock.open && !sock.closing).count()
    }

    pub fn open(&mut self, core: usize) -> At {
        let sock = self.cores[core].io.socks.iter().position(|s| !s.open).expect("a free socket");
        self.cores[core].io.socks[sock] = Sock { open: true, ..Sock::default() };
        let id = SockId(sock as u32);
        self.with_core(core, |target, cx| {
            let address = |text: &str| text.parse().expect("an address");
            let (local, peer) = (address("192.0.2.1:4420"), address("198.51.100.7:999"));
            target.adopt(cx, id, ConnAddrs { portal: PortalId(0), local, peer }, false);
        });
        (core, sock as u32)
    }

    pub fn sock(&mut self, at: At) -> &mut Sock {
        &mut self.cores[at.0].io.socks[at.1 as usize]
    }

    pub fn send(&mut self, at: At, bytes: &[u8]) {
        self.sock(at).inbox.extend(bytes);
    }

    /// Takes out the bytes that the host received.
    pub fn take(&mut self, at: At) -> Vec<u8> {
        std::mem::take(&mut self.sock(at).outbox)
    }

    pub fn hang_up(&mut self, at: At) {
        self.sock(at).eof = true;
        self.pump();
    }

    pub fn pass(&mut self, by: Duration) {
        self.cores.iter_mut().for_each(|core| core.io.now = core.io.now + by);
        self.pump();
    }

    /// Runs turns until a turn does nothing.
    pub fn pump(&mut self) {
        for turns in 0.. {
            assert!(turns < 200_000, "it never comes to rest");
            let mut worked = false;
            for core in 0..self.cores.len() {
                worked |= self.turn(core);
            }
            if !worked {
                break;
            }
        }
    }

    /// Runs one turn of a core. Returns whether anything happened.
    pub fn turn(&mut self, core: usize) -> bool {
        let mut worked = self.cores[core].with_luns(|luns, _, cx| luns.on_turn(cx)).unwrap_or_default();
        worked |= self.run_requests(core);
        for sock in 0..self.cores[core].io.socks.len() as u32 {
            worked |= self.deliver(core, sock);
            worked |= self.run_requests(core);
        }
        let posts = std::mem::take(&mut self.cores[core].io.posts);
        for (to, msg) in posts {
            worked = true;
            let msg = about_ctrlr(msg);
            self.with_core(usize::from(to.0), |target, cx| target.on_ctrlr(cx, CoreId(core as u16), msg));
        }
        worked |= self.with_core(core, |target, cx| target.sweep(cx) | target.on_turn(cx));
        worked | self.run_requests(core)
    }

    fn tell(&mut self, core: usize, sock: SockId, event: SockEvent<'_>) {
        self.with_core(core, |target, cx| target.on_sock(cx, sock, event));
    }

    fn deliver(&mut self, core: usize, sock: u32) -> bool {
        let id = SockId(sock);
        let s = self.sock((core, sock));
        if !s.open {
            return false;
        }
        if s.closing {
            let end = s.recv.take().map(|into| into.end(RecvEnd::Closed));
            let sent = s
                .sending
                .take()
                .map(|list| SockEvent::Sent { list, result: Err(trefoil_poll::SockError(125)) });
            s.open = false;
            let events = end.into_iter().chain(sent).chain([SockEvent::Closed]);
            events.for_each(|event| self.tell(core, id, event));
            return true;
        }
        let mut worked = false;
        if !s.deaf
            && let Some(list) = s.sending.take()
        {
            if !s.taken {
                s.outbox.extend(list.pieces().flatten());
            }
            self.tell(core, id, SockEvent::Sent { list, result: Ok(()) });
            worked = true;
        }
        worked | self.deliver_bytes(core, sock)
    }

    fn deliver_bytes(&mut self, core: usize, sock: u32) -> bool {
        let id = SockId(sock);
        let (cut, roll) = (self.cut, self.rng.bits());
        let s = self.sock((core, sock));
        let have = s.inbox.len();
        if have == 0
            && s.eof
            && let Some(into) = s.recv.take()
        {
            self.tell(core, id, into.end(RecvEnd::Eof));
            return true;
        }
        if have == 0 {
            return false;
        }
        // Small pieces come most often, so that every field is cut somewhere.
        let bound = if roll & 3 == 0 { 5000 } else { 40 };
        let most = if cut { 1 + (roll >> 8) as usize % bound } else { usize::MAX };
        match s.recv.take() {
            None => false,
            Some(RecvInto::Stream { max_bytes }) => {
                let bytes: Vec<u8> = s.inbox.drain(..have.min(max_bytes as usize).min(most)).collect();
                self.tell(core, id, SockEvent::Received(&bytes));
                true
            }
            Some(RecvInto::Buf { mut buf, at, len }) => {
                let n = have.min((len - s.filled) as usize).min(most);
                let from = (at + s.filled) as usize;
                s.inbox.drain(..n).zip(&mut buf[from..]).for_each(|(byte, to)| *to = byte);
                s.filled += n as u32;
                if s.filled == len {
                    self.tell(core, id, SockEvent::Filled(buf));
                } else {
                    s.recv = Some(RecvInto::Buf { buf, at, len });
                }
                true
            }
        }
    }

    fn run_requests(&mut self, core: usize) -> bool {
        let mut worked = false;
        if self.cores[core].luns.is_some() {
            return !self.hold && self.cores[core].run_luns();
        }
        while !self.hold
            && let Some(request) = self.cores[core].requests.pop_front()
        {
            worked = true;
            let done = self.perform(request);
            self.with_core(core, |target, cx| target.on_completed(cx, done));
        }
        worked
    }

    /// Answers the requests of a core's command layer, and the messages that the core sends to itself, without any transport.
    pub fn run_beneath(&mut self, core: usize) {
        while let Some(request) = self.cores[core].requests.pop_front() {
            let done = self.perform(request);
            self.with_core(core, |target, cx| target.shared.engine.on_completed(cx, done));
        }
        while !self.cores[core].io.posts.is_empty() {
            let (from, msg) = self.cores[core].io.posts.remove(0);
            let msg = about_ctrlr(msg);
            self.with_core(core, |target, cx| target.shared.engine.on_ctrlr(cx, from, msg));
        }
    }

    fn perform(&mut self, mut request: Request) -> Completed {
        if let Some(at) = self.faults.iter().position(|(op, _)| *op == request.op) {
            let (_, fault) = self.faults.remove(at);
            return request.complete(Err(fault));
        }
        let disk = &mut self.disks[request.lun.0 as usize];
        let range = request.offset as usize..(request.offset + request.len) as usize;
        let len = request.len as usize;
        assert!(range.end <= disk.len(), "{request:?} is out of range");
        self.durable_writes += usize::from(request.durable);
        match request.op {
            Op::Read => request.buf.as_mut().expect("a block")[..len].copy_from_slice(&disk[range]),
            Op::Write => disk[range].copy_from_slice(&request.buf.as_ref().expect("a block")[..len]),
            Op::Flush => self.flushes += 1,
            Op::WriteZeroes { .. } | Op::Deallocate => disk[range].fill(0),
        }
        request.complete(Ok(()))
    }

    /// Closes everything and checks that nothing is left.
    pub fn finish(mut self) {
        self.hold = false;
        self.pump();
        for core in 0..self.cores.len() {
            self.with_core(core, |target, _| target.close_hosts(true));
        }
        self.pump();
        for core in &self.cores {
            assert_eq!(core.arena.free_bytes(), core.arena.capacity_bytes(), "payload memory leaked");
            assert_eq!(core.target.free_slots(), self.limits.slots, "slots leaked");
            assert_eq!(core.target.ctrlr_count(), 0, "controllers leaked");
            assert_eq!(core.target.conns_bytes(), 0, "memory is still counted as somebody's");
            let bound = Target::conn_bound_bytes(&self.limits, core.arena.capacity_bytes());
            assert!(core.target.peak_conn_bytes() <= bound, "a connection held more than {bound} bytes");
            assert!(core.io.socks.iter().all(|s| !s.open), "a connection stayed");
        }
    }
}
