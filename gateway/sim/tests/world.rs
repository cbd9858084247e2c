//! Tests of the world with small machines. Bytes arrive whole and in order, or not at all. Mailboxes keep their order.
//! Disks keep synced data. A seed always tells the same story.

use std::collections::HashMap;
use std::time::Duration;

use trefoil_poll::rand::Rng;
use trefoil_poll::{
    Arena, CoreId, FileDone, FileId, FileOp, Handler, Instant, Io, RecvInto, SendList, SockEvent, SockId,
};
use trefoil_sim::memory::{arena, claim_home, release_home};
use trefoil_sim::{Crash, Machine, SimFile, SimIo, SimSocket, Step, World};

#[derive(Debug)]
enum Msg {
    Adopt(SimSocket),
    Count(u64),
    File(SimFile),
}

/// A machine that sends a byte sequence and checks what it receives, echoes bytes, or writes to a disk.
struct Peer {
    arena: Option<Arena>,
    /// By socket: the next byte to send, and the next byte that is expected.
    sent: HashMap<u32, u64>,
    seen: HashMap<u32, u64>,
    /// By socket: the number of bytes that the pending receive asked for.
    asked: HashMap<u32, u32>,
    failed: u32,
    closed: u32,
    by_sender: HashMap<Option<CoreId>, u64>,
    file: Option<FileId>,
    file_results: Vec<(u64, bool)>,
}

fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 7) as u8
}

impl Peer {
    fn new(home: u16) -> Self {
        Self {
            arena: Some(arena(home, 2 << 20)),
            sent: HashMap::new(),
            seen: HashMap::new(),
            asked: HashMap::new(),
            failed: 0,
            closed: 0,
            by_sender: HashMap::new(),
            file: None,
            file_results: Vec::new(),
        }
    }

    fn arena(&mut self) -> &mut Arena {
        self.arena.as_mut().expect("there until the end")
    }

    fn send_more(&mut self, io: &mut SimIo<Msg>, sock: SockId) {
        let from = self.sent.get(&sock.0).copied().unwrap_or(0);
        let mut list = SendList::new();
        let head = list.push_head(13);
        head.iter_mut().zip(from..).for_each(|(b, at)| *b = pattern(at));
        let len = 1 + (io.random() % 9000) as usize;
        let mut end = from + 13;
        if let Some(mut buf) = self.arena().alloc(len) {
            buf[..len].iter_mut().zip(end..).for_each(|(b, at)| *b = pattern(at));
            list.push_buf(buf, 0, len);
            end += len as u64;
        }
        self.sent.insert(sock.0, end);
        io.send(sock, list);
    }

    fn check(&mut self, sock: SockId, bytes: &[u8]) {
        let seen = self.seen.entry(sock.0).or_default();
        for &byte in bytes {
            assert_eq!(byte, pattern(*seen), "byte {seen} of {sock:?}");
            *seen += 1;
        }
    }

    fn recv_more(&mut self, io: &mut SimIo<Msg>, sock: SockId) {
        let len = 1 + (io.random() % 6000) as u32;
        self.asked.insert(sock.0, len);
        let into = match io.random() % 2 {
            0 => self.arena().alloc(len as usize).map(|buf| RecvInto::Buf { buf, at: 0, len }),
            _ => None,
        };
        io.recv(sock, into.unwrap_or(RecvInto::Stream { max_bytes: len }));
    }

    fn start(&mut self, io: &mut SimIo<Msg>, sock: SockId) {
        self.sent.insert(sock.0, 0);
        self.seen.insert(sock.0, 0);
        self.send_more(io, sock);
        self.recv_more(io, sock);
    }
}

impl Handler<SimIo<Msg>> for Peer {
    fn on_sock(&mut self, io: &mut SimIo<Msg>, sock: SockId, event: SockEvent<'_>) {
        match &event {
            SockEvent::Received(bytes) => {
                assert!(!bytes.is_empty());
                self.check(sock, bytes);
            }
            SockEvent::Filled(buf) => self.check(sock, &buf[..self.asked[&sock.0] as usize]),
            SockEvent::Connected(Ok(())) => self.start(io, sock),
            SockEvent::Sent { result: Ok(()), .. } => {
                // A machine must not send on a socket that it has closed. The socket's last event reports that the close is
                // complete.
                if io.random().is_multiple_of(64) {
                    io.close(sock);
                } else if !io.is_closing(sock) {
                    self.send_more(io, sock);
                }
            }
            SockEvent::Sent { result: Err(_), .. } => {
                self.failed += 1;
                io.close(sock);
            }
            SockEvent::RecvEnd { .. } | SockEvent::Connected(Err(_)) => io.close(sock),
            SockEvent::Closed => self.closed += 1,
        }
        let received = matches!(event, SockEvent::Received(_) | SockEvent::Filled(_));
        event.discard(self.arena());
        if received && !io.is_closing(sock) {
            self.recv_more(io, sock);
        }
    }

    fn on_file(&mut self, _: &mut SimIo<Msg>, done: FileDone) {
        if let Some(buf) = done.buf {
            self.arena().free(buf);
        }
        self.file_results.push((done.token, done.result.is_ok()));
    }

    fn on_message(&mut self, io: &mut SimIo<Msg>, from: Option<CoreId>, msg: Msg) {
        match msg {
            Msg::Adopt(socket) => {
                let sock = io.adopt(socket).expect("room for a socket");
                self.start(io, sock);
            }
            Msg::File(file) => self.file = io.attach_file(file).ok(),
            Msg::Count(n) => {
                let next = self.by_sender.entry(from).or_default();
                assert_eq!(n, *next, "a mailbox out of order");
                *next += 1;
            }
        }
    }

    fn on_turn(&mut self, _: &mut SimIo<Msg>) -> bool {
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}

impl Machine<Msg> for Peer {
    fn into_arena(self) -> Option<Arena> {
        self.arena
    }
}

type Net = World<Msg, Peer>;

fn homes(n: usize) -> Vec<u16> {
    (0..n).map(|_| claim_home()).collect()
}

/// Runs two nodes under faults. They send each other bytes and check them. Returns the hash, the number of bytes moved and the
/// number of sockets closed.
fn chatter(seed: u64) -> (u64, u64, u32) {
    let ids = homes(4);
    let mut world = Net::new(seed, false);
    let (server, client) = (world.add_node("server"), world.add_node("client"));
    world.start(server, 2, |io| Peer::new(ids[usize::from(io.core().0)]));
    world.start(client, 2, |io| Peer::new(ids[2 + usize::from(io.core().0)]));
    let addr = world.listen(server, 4420);
    let mut rng = Rng::new(seed);
    world.after(Duration::from_micros(10), 0);
    let (mut moved, mut closed) = (0, 0);
    let mut adopted = 0;
    for _ in 0..20_000 {
        match world.step() {
            Step::Accepted(node) => {
                while let Some(accepted) = world.take_accepted(node) {
                    adopted += 1;
                    match adopted % 9 {
                        0 => drop(accepted),
                        n => world.post(node, CoreId(n % 2), Msg::Adopt(accepted.socket)),
                    }
                }
            }
            Step::Timer(_) => {
                world.after(Duration::from_micros(300), 0);
                let core = rng.below(2) as u16;
                world.with(client, core, |_, io| io.connect(addr).is_ok());
                let conns = world.conns_of(server);
                let Some(&(conn, side)) = conns.get(rng.below(conns.len() as u64) as usize) else { continue };
                match rng.below(6) {
                    0 => world.reset(conn),
                    1 => world.stall(conn, Duration::from_millis(rng.below(20))),
                    2 => world.blacken(conn, side),
                    3 => world.darken(server, Duration::from_millis(1), rng.below(2) == 0),
                    4 => world.pause(client, core, Duration::from_micros(700)),
                    _ => {}
                }
            }
            Step::Idle => break,
            Step::Ran | Step::Control(_) => {}
        }
    }
    for (node, core) in [(server, 0), (server, 1), (client, 0), (client, 1)] {
        let peer = world.machine(node, core).expect("up");
        moved += peer.seen.values().sum::<u64>();
        closed += peer.closed;
    }
    let hash = world.story.hash();
    drop(world);
    ids.into_iter().for_each(release_home);
    (hash, moved, closed)
}

#[test]
fn bytes_come_in_order_under_faults_and_a_seed_tells_one_story() {
    let mut total = (0, 0);
    for seed in 0..8 {
        let first = chatter(seed);
        assert_eq!(first, chatter(seed), "seed {seed} told two stories");
        total = (total.0 + first.1, total.1 + first.2);
    }
    assert_ne!(chatter(1).0, chatter(2).0);
    assert!(total.0 > 1_000_000 && total.1 > 100, "{total:?} bytes and closes");
}

#[test]
fn mailboxes_keep_their_order_and_a_reordering_is_found() {
    let run = |reorder| {
        let ids = homes(4);
        let mut world = Net::new(5, false);
        let node = world.add_node("gateway");
        world.start(node, 4, |io| Peer::new(ids[usize::from(io.core().0)]));
        world.mail_defect.reorder = reorder;
        for n in 0..200 {
            for core in 0..4 {
                world.with(node, core, |_, io| (0..4).for_each(|to| io.post(CoreId(to), Msg::Count(n))));
            }
            world.step();
        }
        while world.step() != Step::Idle {}
        let counts: Vec<_> = (0..4)
            .map(|core| world.machine(node, core).expect("up").by_sender.values().sum::<u64>())
            .collect();
        drop(world);
        ids.into_iter().for_each(release_home);
        counts
    };
    assert_eq!(run(0), [800; 4]);
    assert!(std::panic::catch_unwind(|| run(20)).is_err(), "a reordered mailbox went unseen");
}

#[test]
fn a_crash_keeps_what_was_synced_and_blocks_under_way_are_reclaimed() {
    let mut lost_some = 0;
    for seed in 0..32 {
        let ids = homes(1);
        let mut world = Net::new(seed, false);
        let node = world.add_node("gateway");
        let disk = world.add_disk(node, "d", 1 << 20);
        world.start(node, 1, |_| Peer::new(ids[0]));
        let file = world.open(disk);
        world.post(node, CoreId(0), Msg::File(file));
        while world.step() != Step::Idle {}
        let write = |world: &mut Net, at: u64, value: u8, durable: bool| {
            world.with(node, 0, |peer, io| {
                let mut buf = peer.arena().alloc(4096).expect("room");
                buf.fill(value);
                let op = FileOp::Write { buf, at: 0, len: 4096, offset: at, durable };
                io.file(peer.file.expect("attached"), op, at);
            })
        };
        for i in 0..8 {
            write(&mut world, i * 4096, 1, false);
        }
        while world.step() != Step::Idle {}
        world.with(node, 0, |peer, io| io.file(peer.file.expect("attached"), FileOp::Sync, 99));
        while world.step() != Step::Idle {}
        write(&mut world, 65536, 7, true);
        while world.step() != Step::Idle {}
        assert_eq!(world.machine(node, 0).expect("up").file_results.len(), 10);
        for i in 0..8 {
            write(&mut world, i * 4096, 2, false);
        }
        for _ in 0..seed % 12 {
            world.step();
        }
        world.crash(node, if seed % 2 == 0 { Crash::Kill } else { Crash::Power });
        while world.step() != Step::Idle {}
        let mut bytes = vec![0; 8 * 4096];
        world.disk(disk).peek(0, &mut bytes);
        assert!(bytes.iter().all(|b| [1, 2].contains(b)), "seed {seed}: a synced byte is lost");
        lost_some += usize::from(bytes.contains(&1));
        world.disk(disk).peek(65536, &mut bytes[..4096]);
        assert!(bytes[..4096].iter().all(|&b| b == 7), "seed {seed}: a durable write is lost");
        world.start(node, 1, |_| Peer::new(ids[0]));
        drop(world);
        ids.into_iter().for_each(release_home);
    }
    assert!(lost_some > 5, "no crash ever lost an unsynced write");
}
