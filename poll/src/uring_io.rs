//! The real driver: [`Io`] on one io_uring.
//!
//! What it is: all operations that a core's machines start in a turn become entries of one ring, submitted with one
//! io_uring_enter(2). The driver owns every block that the kernel may touch until the completion arrives, so memory
//! can't be freed while the kernel uses it. Results come as later events, never from within a call.
//!
//! What it is not: the turn itself; see [`core`](crate::core).
//!
//! Memory, all allocated at start-up: a socket slot takes about 300 bytes, a file operation 100. The receive buffers
//! take `recv_buffers` × `recv_buffer_bytes` (64 × 64 KiB = 4 MiB), and one more buffer of 256 KiB serves receives
//! without the ring. Entries that don't fit into the submission queue wait in a backlog of 64 bytes × (5 per socket + 1
//! per file operation + 1 for the bell).

mod direct;
mod faults;
mod file;
mod sock;
mod table;
mod tag;

pub use faults::Faults;

use crate::arena::Arena;
use crate::io::{CoreId, FileId, FileOp, Handler, Io, RecvInto, SockId, TableFull};
use crate::lost::MAX_HOMES;
use crate::mesh::Ports;
use crate::rand::Rng;
use crate::send::SendList;
use crate::time::Instant;
use faults::Injector;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use table::Table;
use tag::{Kind, pack, unpack};
use trefoil_sys::bufring::BufRing;
use trefoil_sys::clock;
use trefoil_sys::socket::Options;
use trefoil_sys::uring::{Entry, Features, Ring, cqueue, opcode, types};

const RECV_GROUP: u16 = 0;
/// Entries per submission; further entries wait for the next submission.
const SQ_ENTRIES: u32 = 1024;
/// The largest number of unread completions in the ring. The kernel keeps further completions itself, and reports the
/// overflow.
const CQ_ENTRIES: u32 = 8192;
/// The largest number of completions that are fetched at once.
const BATCH: usize = 256;

/// Sizes and choices of one core's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringConfig {
    /// The largest number of sockets.
    pub max_sockets: u32,
    /// The largest number of files.
    pub max_files: u32,
    /// The largest number of outstanding file operations.
    pub max_file_ops: u32,
    /// Receive buffers for [`RecvInto::Stream`]: a power of two, at most 32768.
    pub recv_buffers: u16,
    /// Bytes of each receive buffer.
    pub recv_buffer_bytes: u32,
    /// Direct transfers are on: the driver first tries each send and receive with its own system call. Only a transfer
    /// that would wait goes through the ring. If this is off, every transfer goes through the ring.
    pub direct: bool,
    /// Options of the sockets that [`Io::connect`] makes.
    pub socket_options: Options,
    /// Seed of [`Io::random`].
    pub seed: u64,
    /// Faults to inject, in tests.
    pub faults: Option<Faults>,
}

impl Default for UringConfig {
    fn default() -> Self {
        Self {
            max_sockets: 4096,
            max_files: 64,
            max_file_ops: 4096,
            recv_buffers: 64,
            recv_buffer_bytes: 64 << 10,
            direct: true,
            socket_options: Options::default(),
            seed: 0,
            faults: None,
        }
    }
}

/// The driver of one core. `M` is the message between cores.
pub struct UringIo<M> {
    // The ring comes first, so that it is dropped before its registered memory.
    ring: Ring,
    recv_buffers: BufRing,
    recv_buffer_bytes: u32,
    poll_first: u16,
    socks: Table<sock::Sock>,
    files: Table<file::File>,
    running: Table<file::Running>,
    /// Closing sockets that may have ended. A slot is listed at most twice, for its present socket and for its previous
    /// socket: 2 × `max_sockets`.
    closing: VecDeque<u32>,
    /// Sockets whose receive found no buffer. A socket is listed at most once: `max_sockets`.
    starved: VecDeque<u32>,
    /// Operations that ended within the call that began them, as (kind, slot, result). The next turn reports
    /// them. A socket has at most a receive and a send here.
    done: VecDeque<(Kind, u32, i32)>,
    /// Sockets whose receive is tried each turn.
    hot: Vec<u32>,
    /// The buffer for the receives of hot sockets.
    scratch: Box<[u8]>,
    direct: bool,
    /// Entries that didn't fit into the submission queue.
    backlog: VecDeque<Entry>,
    /// The first registered span of each arena.
    spans: Box<[Option<u16>]>,
    batch: Box<[MaybeUninit<cqueue::Entry>]>,
    bell_armed: bool,
    stopping: bool,
    socket_options: Options,
    faults: Injector,
    rng: Rng,
    now: Instant,
    core: CoreId,
    pub(crate) ports: Ports<M>,
}

impl<M: Send> UringIo<M> {
    /// Creates the driver of the calling thread's core.
    ///
    /// # Errors
    /// An error of io_uring_setup(2) or io_uring_register(2).
    pub(crate) fn new(config: &UringConfig, features: &Features, ports: Ports<M>) -> io::Result<Self> {
        let ring = Ring::new(features, SQ_ENTRIES, CQ_ENTRIES)?;
        let recv_buffers = ring.buf_ring(RECV_GROUP, config.recv_buffers, config.recv_buffer_bytes)?;
        let sockets = config.max_sockets as usize;
        Ok(Self {
            ring,
            recv_buffers,
            recv_buffer_bytes: config.recv_buffer_bytes,
            poll_first: sock::poll_first(true),
            socks: Table::new(config.max_sockets),
            files: Table::new(config.max_files),
            running: Table::new(config.max_file_ops),
            closing: VecDeque::with_capacity(sockets * 2),
            starved: VecDeque::with_capacity(sockets),
            done: VecDeque::with_capacity(sockets * 2),
            hot: Vec::with_capacity(sock::MAX_HOT),
            scratch: vec![0; direct::SCRATCH_BYTES].into(),
            direct: config.direct,
            // A socket has at most a receive, a send, a cancellation and, with fault injection, two more cancellations.
            backlog: VecDeque::with_capacity(sockets * 5 + config.max_file_ops as usize + 1),
            spans: vec![None; MAX_HOMES].into(),
            batch: (0..BATCH).map(|_| MaybeUninit::uninit()).collect(),
            bell_armed: false,
            stopping: false,
            socket_options: config.socket_options,
            faults: Injector::new(config.faults),
            rng: Rng::new(config.seed),
            now: Instant::from_ns(clock::monotonic_ns()),
            core: ports.core(),
            ports,
        })
    }

    /// Registers arenas with the ring, so that file operations on their blocks need not pin pages each time.
    /// The caller registers once, at start-up. Without registration, or where the kernel refuses it, file
    /// operations work but are slower.
    ///
    /// # Errors
    /// An error of io_uring_register(2); `ENOMEM` if RLIMIT_MEMLOCK is too low.
    pub fn register_arenas(&mut self, arenas: &[&Arena]) -> io::Result<()> {
        let mut spans = Vec::new();
        let mut firsts = Vec::new();
        for arena in arenas {
            firsts.push((arena.id(), spans.len() as u16));
            let (base, len) = arena.span();
            for at in (0..len).step_by(file::SPAN_BYTES) {
                spans.push((base.wrapping_add(at), file::SPAN_BYTES.min(len - at)));
            }
        }
        // SAFETY: the kernel pins the pages themselves. Even if an arena is unmapped too early, the kernel
        // writes to no other mapping.
        unsafe { self.ring.register_spans(&spans)? };
        for (arena, first) in firsts {
            if let Some(span) = self.spans.get_mut(usize::from(arena.0)) {
                *span = Some(first);
            }
        }
        Ok(())
    }

    /// Begins a turn: reads the clock and returns the time.
    pub(crate) fn begin_turn(&mut self) -> Instant {
        self.now = Instant::from_ns(clock::monotonic_ns());
        self.now
    }

    /// Reports completions to `handler`. Returns whether the handler got any completion.
    pub(crate) fn complete<H: Handler<Self>>(&mut self, handler: &mut H) -> bool {
        let at_once = self.done.len();
        for _ in 0..at_once {
            match self.done.pop_front() {
                Some((Kind::Recv, index, result)) => self.recv_done(index, result, 0, handler),
                Some((_, index, result)) => self.send_done(index, result, handler),
                None => {}
            }
        }
        // Hot sockets are tried before the ring's completions are handled. A completion makes its socket hot, but this
        // socket has no more bytes yet. So after a sleep, the core sends its answers before it tries these sockets.
        let hot = self.poll_hot(handler);
        let mut batch = std::mem::take(&mut self.batch);
        let completions = self.ring.completions(&mut batch);
        let any = at_once > 0 || !completions.is_empty();
        for completion in completions {
            self.dispatch(completion, handler);
        }
        self.batch = batch;
        any | hot
    }

    fn dispatch<H: Handler<Self>>(&mut self, completion: &cqueue::Entry, handler: &mut H) {
        let generation = |kind, index| match kind {
            Kind::Recv | Kind::Send | Kind::Connect => self.socks.generation(index),
            Kind::File => self.running.generation(index),
            Kind::Ignored | Kind::Wake => 0,
        };
        let Some((kind, index)) = unpack(completion.user_data(), generation) else {
            debug_assert!(false, "a stale completion {completion:?}");
            return;
        };
        let result = completion.result();
        match kind {
            Kind::Ignored => {}
            Kind::Recv => self.recv_done(index, result, completion.flags(), handler),
            Kind::Send => self.send_done(index, result, handler),
            Kind::Connect => self.connect_done(index, result, handler),
            Kind::File => self.file_done(index, result, handler),
            Kind::Wake => {
                self.bell_armed = false;
                self.ports.bell.clear();
            }
        }
    }

    /// Delivers to `handler` the messages that had arrived when this call began. Returns whether the handler got any
    /// message.
    pub(crate) fn deliver<H: Handler<Self>>(&mut self, handler: &mut H) -> bool {
        let mut any = false;
        for inbox in 0..self.ports.inboxes() {
            for _ in 0..self.ports.ready(inbox) {
                if let Some((from, message)) = self.ports.pop(inbox) {
                    any = true;
                    handler.on_message(self, from, message);
                }
            }
        }
        any
    }

    /// Submits the queued entries.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.ring.enter()?;
        while let Some(entry) = self.backlog.pop_front() {
            // SAFETY: as in `push`.
            if !unsafe { self.ring.push(&entry) } {
                self.backlog.push_front(entry);
                break;
            }
        }
        Ok(())
    }

    /// Returns whether work already waits for the next turn.
    pub(crate) fn has_pending(&self) -> bool {
        !(self.backlog.is_empty()
            && self.done.is_empty()
            && self.closing.is_empty()
            && self.starved.is_empty())
    }

    /// Submits the queued entries, and sleeps until a completion, a signal of the bell, or `timeout`. Returns at once
    /// if a message waits or `stop` is set.
    pub(crate) fn sleep(&mut self, timeout: Option<Duration>, stop: &AtomicBool) -> io::Result<()> {
        self.cool();
        if !self.bell_armed {
            self.bell_armed = true;
            let bell = types::Fd(self.ports.bell.as_fd().as_raw_fd());
            let poll = opcode::PollAdd::new(bell, libc::POLLIN as u32).build();
            self.push(poll.user_data(pack(Kind::Wake, 0, 0)));
        }
        self.ports.bell.announce();
        // If the bell's poll is still in the backlog, a signal would not wake this core.
        let awake = self.ports.any_ready() || stop.load(Ordering::Acquire) || self.has_pending();
        let result = if awake { Ok(()) } else { self.ring.wait(timeout) };
        self.ports.bell.retract();
        result
    }

    /// Returns whether no operation is outstanding, so that the driver can be dropped.
    pub(crate) fn is_quiet(&self) -> bool {
        self.socks.len() == 0 && self.running.len() == 0
    }

    fn push(&mut self, entry: Entry) {
        // SAFETY: an entry points to blocks, send lists, addresses and message headers. `socks` and `running`
        // own them and keep their addresses stable until the completion. The loop never drops a driver with
        // outstanding operations.
        if !self.backlog.is_empty() || !unsafe { self.ring.push(&entry) } {
            self.backlog.push_back(entry);
        }
    }

    fn cancel_by_fault(&mut self, tag: u64) {
        if self.faults.cancels() {
            let entry = opcode::AsyncCancel::new(tag).build();
            self.push(entry.user_data(pack(Kind::Ignored, 0, 0)));
        }
    }
}

impl<M: Send> Io for UringIo<M> {
    type Socket = OwnedFd;
    type File = OwnedFd;
    type Msg = M;

    fn now(&self) -> Instant {
        self.now
    }

    fn random(&mut self) -> u64 {
        self.rng.bits()
    }

    fn core(&self) -> CoreId {
        self.core
    }

    fn cores(&self) -> u16 {
        self.ports.cores()
    }

    fn adopt(&mut self, socket: OwnedFd) -> Result<SockId, OwnedFd> {
        self.sock_adopt(socket)
    }

    fn connect(&mut self, to: SocketAddr) -> Result<SockId, TableFull> {
        self.sock_connect(to)
    }

    fn recv(&mut self, sock: SockId, into: RecvInto) {
        self.sock_recv(sock, into);
    }

    fn send(&mut self, sock: SockId, list: Box<SendList>) {
        self.sock_send(sock, list);
    }

    fn taken_bytes(&mut self, sock: SockId) -> u64 {
        let fd = self.socks.get_mut(sock.0).and_then(|sock| sock.fd.as_ref());
        fd.map_or(0, |fd| trefoil_sys::socket::bytes_acked(fd.as_fd()))
    }

    fn come_bytes(&mut self, sock: SockId) -> u64 {
        let fd = self.socks.get_mut(sock.0).and_then(|sock| sock.fd.as_ref());
        fd.map_or(0, |fd| trefoil_sys::socket::bytes_received(fd.as_fd()))
    }

    fn close(&mut self, sock: SockId) {
        self.sock_close(sock);
    }

    fn attach_file(&mut self, file: OwnedFd) -> Result<FileId, OwnedFd> {
        self.file_attach(file)
    }

    fn detach_file(&mut self, file: FileId) {
        self.file_detach(file);
    }

    fn file(&mut self, file: FileId, op: FileOp, token: u64) {
        self.file_start(file, op, token);
    }

    fn post(&mut self, to: CoreId, msg: M) {
        self.ports.post(to, msg);
    }

    fn post_control(&mut self, msg: M) {
        self.ports.post_control(msg);
    }
}
