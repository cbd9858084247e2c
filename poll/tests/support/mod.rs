//! A core that echoes frames, and the functions that tests use to exchange frames and messages with the core.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;
use trefoil_poll::*;
use trefoil_sys::region::Region;

/// The messages between the control side and the cores of a test.
#[derive(Debug)]
pub enum Msg {
    /// Serve this socket.
    Adopt(OwnedFd),
    /// Connect there, report the result, close.
    Connect(SocketAddr),
    /// Connect there and close at once.
    ConnectAndClose(SocketAddr),
    /// Close all sockets.
    CloseAll,
    /// Answer with a pong, which core `via` forwards.
    Ping { via: CoreId, back: CoreId, number: u64 },
    /// The answer.
    Pong(u64),
    /// A connect ended.
    Connected(Result<(), i32>),
    /// A socket is gone.
    Closed,
    /// Fire a timer.
    Timer(Duration),
    /// The timer fired, with the time since its request.
    Fired(Duration),
}

/// Receive the payload by [`RecvInto::Buf`] and send it back as one block.
pub const BUF: u32 = 0;
/// Like [`BUF`], but send the payload back as 64 blocks.
pub const BUF_SPLIT: u32 = 1;
/// Receive the payload by [`RecvInto::Stream`].
pub const STREAM: u32 = 2;
/// Like [`BUF`], but start no further receive after the reply was sent.
pub const DEAF: u32 = 3;

pub const MAX_FRAME: usize = 1 << 20;

#[derive(Default)]
struct Conn {
    live: bool,
    head: [u8; 8],
    got: usize,
    payload: Option<Buf>,
    list: Option<Box<SendList>>,
    connecting: bool,
}

/// Echoes frames: `len: u32, mode: u32, payload`. The reply has the same shape.
pub struct Echo {
    pub arena: Arena,
    conns: Vec<Conn>,
    pub closed: usize,
    pub ended: usize,
    pub messages: u64,
    timer: Option<(Instant, Instant)>,
}

impl Echo {
    pub fn new(arena_id: u16, max_conns: usize) -> Self {
        let region = Region::anonymous(64 << 20).expect("memory");
        let conns = (0..max_conns).map(|_| Conn { list: Some(SendList::new()), ..Conn::default() }).collect();
        let arena = Arena::new(ArenaId(arena_id), region);
        Self { arena, conns, closed: 0, ended: 0, messages: 0, timer: None }
    }

    fn conn(&mut self, sock: SockId) -> &mut Conn {
        &mut self.conns[sock.0 as usize]
    }

    fn open(&mut self, sock: SockId) -> &mut Conn {
        let conn = self.conn(sock);
        (conn.live, conn.got, conn.connecting) = (true, 0, false);
        conn
    }

    fn frame(&mut self, sock: SockId) -> (usize, u32) {
        let head = &self.conn(sock).head;
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        (number(0) as usize, number(4))
    }

    fn reply(&mut self, io: &mut impl Io, sock: SockId, payload: Buf) {
        let (len, mode) = self.frame(sock);
        let head = self.conn(sock).head;
        let mut list = self.conn(sock).list.take().expect("one send at a time");
        list.push_head(8).copy_from_slice(&head);
        if mode == BUF_SPLIT {
            for i in 0..64 {
                let (from, to) = (len * i / 64, len * (i + 1) / 64);
                let mut piece = self.arena.alloc((to - from).max(1)).expect("room");
                piece[..to - from].copy_from_slice(&payload[from..to]);
                list.push_buf(piece, 0, to - from);
            }
            self.arena.free(payload);
        } else {
            list.push_buf(payload, 0, len);
        }
        self.conn(sock).got = 0;
        io.send(sock, list);
    }

    fn received(&mut self, io: &mut impl Io, sock: SockId, bytes: &[u8]) {
        let got = self.conn(sock).got;
        if got < 8 {
            assert!(got + bytes.len() <= 8, "more than was asked for");
            self.conn(sock).head[got..got + bytes.len()].copy_from_slice(bytes);
            self.conn(sock).got += bytes.len();
            if self.conn(sock).got < 8 {
                return io.recv(sock, RecvInto::Stream { max_bytes: 8 - self.conn(sock).got as u32 });
            }
            let (len, mode) = self.frame(sock);
            let buf = self.arena.alloc(len).expect("room");
            if mode == STREAM {
                self.conn(sock).payload = Some(buf);
                io.recv(sock, RecvInto::Stream { max_bytes: len as u32 });
            } else {
                io.recv(sock, RecvInto::Buf { buf, at: 0, len: len as u32 });
            }
            return;
        }
        let (len, _) = self.frame(sock);
        let conn = self.conn(sock);
        let at = conn.got - 8;
        conn.payload.as_mut().expect("a payload")[at..at + bytes.len()].copy_from_slice(bytes);
        conn.got += bytes.len();
        let left = len - (conn.got - 8);
        if left > 0 {
            return io.recv(sock, RecvInto::Stream { max_bytes: left as u32 });
        }
        let payload = conn.payload.take().expect("a payload");
        self.reply(io, sock, payload);
    }
}

impl<I: Io<Msg = Msg, Socket = OwnedFd>> Handler<I> for Echo {
    fn on_sock(&mut self, io: &mut I, sock: SockId, event: SockEvent<'_>) {
        match event {
            SockEvent::Received(bytes) => self.received(io, sock, bytes),
            SockEvent::Filled(buf) => self.reply(io, sock, buf),
            SockEvent::RecvEnd { buf, .. } => {
                self.ended += 1;
                let payload = self.conn(sock).payload.take();
                buf.into_iter().chain(payload).for_each(|buf| self.arena.free(buf));
                io.close(sock);
            }
            SockEvent::Sent { mut list, result } => {
                while let Some(buf) = list.take_buf() {
                    self.arena.free(buf);
                }
                let (_, mode) = self.frame(sock);
                self.conn(sock).list = Some(list);
                match result {
                    Ok(()) if mode == DEAF => {}
                    Ok(()) => io.recv(sock, RecvInto::Stream { max_bytes: 8 }),
                    Err(_) => io.close(sock),
                }
            }
            SockEvent::Connected(result) => {
                self.conn(sock).connecting = false;
                io.post_control(Msg::Connected(result.map_err(|e| e.0)));
                io.close(sock);
            }
            SockEvent::Closed => {
                let conn = self.conn(sock);
                assert!(std::mem::take(&mut conn.live), "closed twice");
                assert!(
                    conn.list.is_some() && conn.payload.is_none() && !conn.connecting,
                    "closed too early"
                );
                self.closed += 1;
                io.post_control(Msg::Closed);
            }
        }
    }

    fn on_file(&mut self, _io: &mut I, done: FileDone) {
        panic!("{done:?}");
    }

    fn on_message(&mut self, io: &mut I, from: Option<CoreId>, msg: Msg) {
        self.messages += 1;
        match msg {
            Msg::Adopt(fd) => {
                let sock = io.adopt(fd).expect("a slot");
                self.open(sock);
                io.recv(sock, RecvInto::Stream { max_bytes: 8 });
            }
            Msg::Connect(to) => {
                let sock = io.connect(to).expect("a slot");
                self.open(sock).connecting = true;
            }
            Msg::ConnectAndClose(to) => {
                let sock = io.connect(to).expect("a slot");
                self.open(sock).connecting = true;
                io.close(sock);
                io.close(sock);
            }
            Msg::CloseAll => {
                for index in 0..self.conns.len() {
                    if self.conns[index].live {
                        io.close(SockId(index as u32));
                    }
                }
            }
            Msg::Ping { via, back, number } if via == io.core() && back == io.core() => {
                io.post_control(Msg::Pong(number));
            }
            Msg::Ping { via, back, number } if from.is_none() => {
                io.post(via, Msg::Ping { via, back, number })
            }
            Msg::Ping { back, number, .. } => io.post(back, Msg::Pong(number)),
            Msg::Pong(number) => io.post_control(Msg::Pong(number)),
            Msg::Timer(after) => self.timer = Some((io.now(), io.now() + after)),
            other => panic!("{other:?}"),
        }
    }

    fn on_turn(&mut self, io: &mut I) -> bool {
        let Some((from, _)) = self.timer.filter(|&(_, at)| at <= io.now()) else { return false };
        self.timer = None;
        io.post_control(Msg::Fired(io.now() - from));
        true
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.timer.map(|(_, at)| at)
    }
}

/// Cores that echo, and the control side's ends of their mailboxes.
pub struct Rig {
    pub cores: Vec<CoreHandle<Echo>>,
    pub to_cores: Vec<ControlSender<Msg>>,
    pub from_cores: ControlReceiver<Msg>,
    listener: TcpListener,
}

impl Rig {
    /// Starts the cores. `arena_id` numbers the first core's arena, because tests of one binary run side by
    /// side.
    pub fn new(cores: u16, config: CoreConfig, arena_id: u16) -> Self {
        let Mesh { ports, to_cores, from_cores } = mesh(cores, MeshBounds::default()).expect("mailboxes");
        let cores = ports
            .into_iter()
            .map(|ports| {
                let id = arena_id + ports.core().0;
                spawn(config, ports, move |io| {
                    let echo = Echo::new(id, config.uring.max_sockets as usize);
                    // Where the process may not pin memory, the ring works without registration.
                    let _ = io.register_arenas(&[&echo.arena]);
                    echo
                })
                .expect("a core")
            })
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self { cores, to_cores, from_cores, listener }
    }

    /// Returns a connection whose other end is served by core `core`.
    pub fn client(&mut self, core: usize) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().expect("bound")).expect("connects");
        let (server, _) = self.listener.accept().expect("accepted");
        server.set_nodelay(true).expect("an option");
        client.set_nodelay(true).expect("an option");
        self.to_cores[core].send(Msg::Adopt(server.into())).expect("room");
        client
    }

    /// Returns the next message from a core. Blocks on the descriptor, as the control thread does.
    pub fn next(&mut self) -> (CoreId, Msg) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        loop {
            if let Some(got) = self.from_cores.pop() {
                return got;
            }
            if self.from_cores.announce() {
                let mut fds = [PollFd::new(self.from_cores.as_fd(), PollFlags::POLLIN)];
                assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)), Ok(1), "no message came");
            }
        }
    }

    /// Stops the cores and checks that every block is back in its arena.
    pub fn finish(self) -> Vec<Echo> {
        self.cores
            .into_iter()
            .map(|core| {
                core.stop();
                let echo = core.join().expect("it ended well");
                assert_eq!(echo.arena.free_bytes(), echo.arena.capacity_bytes(), "a block is missing");
                assert!(echo.conns.iter().all(|conn| !conn.live), "a socket is missing");
                echo
            })
            .collect()
    }
}

/// Returns `len` bytes that depend on `seed`.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes: Vec<_> = (0..len.div_ceil(8)).flat_map(|_| rng.bits().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// Sends one frame and checks the echo.
pub fn exchange(client: &mut TcpStream, len: usize, mode: u32, seed: u64) {
    let payload = pattern(len, seed);
    let mut frame = (len as u32).to_le_bytes().to_vec();
    frame.extend(mode.to_le_bytes());
    frame.extend(&payload);
    client.write_all(&frame).expect("sent");
    let mut got = vec![0; frame.len()];
    client.read_exact(&mut got).expect("answered");
    assert!(got == frame, "{len} bytes in mode {mode} came back changed");
}
