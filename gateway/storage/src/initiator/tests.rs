//! Complete exchanges of a host with a small array. The test controls each event of the driver.

use super::lane::HELD_FOR;
use super::testing::{Array, Conn, Manners, TestIo, address, arena, identity};
use super::*;
use crate::request::Fault;
use std::time::Duration;
use trefoil_poll::{Arena, RecvEnd, RecvInto, SockError, SockEvent, SockId};
use trefoil_wire::nvme::{BlockRange, DsmCommand, DsmRange, IoCommand, Sgl};
use trefoil_wire::tcp::{C2hData, R2t};

const SECOND: Duration = Duration::from_secs(1);

struct Rig {
    io: TestIo,
    arena: Arena,
    host: Host,
    array: Array,
    conns: Vec<Conn>,
    /// The largest number of bytes of one receive.
    chunk: usize,
    /// While set, sends don't finish.
    stall_sends: bool,
    /// The array discards all received bytes.
    ignores: bool,
    /// The array refuses new connections.
    away: bool,
    finished: Vec<Finished>,
    events: Vec<ControllerEvent>,
}

fn config(manners: &Manners) -> ControllerConfig {
    ControllerConfig {
        addrs: vec![address()],
        identity: identity(),
        purpose: Purpose::Nvm { nsid: 1 },
        digests: manners.digests,
        kato_ms: 5000,
        io_queues: 2,
        entries: QueueEntries::new(9),
        reconnect: (Duration::from_millis(100), SECOND),
        connect_timeout: 3 * SECOND,
        admin_timeout: 5 * SECOND,
        loss_timeout: 60 * SECOND,
        fence: FenceRule::KeepAliveBound,
        discovery_entries: 0,
    }
}

impl Rig {
    fn new(id: u16, manners: Manners) -> Self {
        Self::of(id, config(&manners), manners)
    }

    fn of(id: u16, config: ControllerConfig, manners: Manners) -> Self {
        let host = Host::new(config, 64, 4 * SECOND);
        let mut rig = Self {
            io: TestIo { cores: 1, ..TestIo::default() },
            arena: arena(id, 8),
            host,
            array: Array::new(manners),
            conns: Vec::new(),
            chunk: usize::MAX,
            stall_sends: false,
            ignores: false,
            away: false,
            finished: Vec::new(),
            events: Vec::new(),
        };
        rig.host.start(&mut rig.io);
        rig
    }

    fn up(id: u16, manners: Manners) -> Self {
        let mut rig = Self::new(id, manners);
        rig.run();
        assert!(matches!(rig.events[..], [ControllerEvent::Up(_)]), "{:?}", rig.events);
        rig
    }

    /// Runs turns until nothing happens.
    fn run(&mut self) {
        for _ in 0..10_000 {
            let moved = (0..self.io.socks.len()).filter(|at| self.step(*at)).count() > 0;
            self.host.on_turn(&mut self.io, &mut self.arena);
            let now = self.io.now;
            while let Some(finished) = self.host.next_finished(now) {
                self.finished.push(finished);
            }
            while let Some(event) = self.host.next_event() {
                self.events.push(event);
            }
            let due = self.host.next_deadline().is_some_and(|at| at <= now);
            let asked = self.io.socks.iter().any(|sock| {
                sock.connecting
                    || (sock.sending.is_some() && !self.stall_sends)
                    || (sock.closing && !sock.gone)
            });
            if !moved && !due && !asked {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn pass(&mut self, by: Duration) {
        let step = Duration::from_millis(50);
        let mut left = by;
        while left > Duration::ZERO {
            self.io.pass(step.min(left));
            left = left.saturating_sub(step);
            self.run();
        }
    }

    fn step(&mut self, at: usize) -> bool {
        let id = SockId(at as u32);
        while self.conns.len() <= at {
            self.conns.push(Conn::new());
        }
        let (io, host, conn) = (&mut self.io, &mut self.host, &mut self.conns[at]);
        if io.socks[at].gone {
            return false;
        }
        if io.socks[at].closing {
            let (sending, recv) = (io.socks[at].sending.take(), io.socks[at].recv.take());
            if let Some(list) = sending {
                host.on_sock(io, id, SockEvent::Sent { list, result: Err(SockError(125)) });
            }
            if let Some(into) = recv {
                host.on_sock(io, id, into.end(RecvEnd::Closed));
            }
            io.socks[at].gone = true;
            host.on_sock(io, id, SockEvent::Closed);
            return true;
        }
        if io.socks[at].connecting {
            io.socks[at].connecting = false;
            let result = if self.away { Err(SockError(111)) } else { Ok(()) };
            host.on_sock(io, id, SockEvent::Connected(result));
            return true;
        }
        if let Some(list) = &io.socks[at].sending
            && !self.stall_sends
        {
            let bytes: Vec<u8> = list.pieces().flatten().copied().collect();
            if !self.ignores {
                self.array.feed(conn, &bytes);
            }
            let list = io.socks[at].sending.take().expect("it was there");
            host.on_sock(io, id, SockEvent::Sent { list, result: Ok(()) });
            return true;
        }
        match io.socks[at].recv.take() {
            Some(RecvInto::Stream { max_bytes }) if !conn.output.is_empty() => {
                let count = conn.output.len().min(max_bytes as usize).min(self.chunk);
                let bytes: Vec<u8> = conn.output.drain(..count).collect();
                host.on_sock(io, id, SockEvent::Received(&bytes));
                true
            }
            Some(RecvInto::Buf { mut buf, at: from, len }) if conn.output.len() >= len as usize => {
                for (to, byte) in buf[from as usize..(from + len) as usize]
                    .iter_mut()
                    .zip(conn.output.drain(..len as usize))
                {
                    *to = byte;
                }
                host.on_sock(io, id, SockEvent::Filled(buf));
                true
            }
            recv => {
                io.socks[at].recv = recv;
                false
            }
        }
    }

    /// Kills the array's end of every connection.
    fn cut(&mut self) {
        for at in 0..self.io.socks.len() {
            let id = SockId(at as u32);
            if self.io.socks[at].gone {
                continue;
            }
            if let Some(into) = self.io.socks[at].recv.take() {
                self.host.on_sock(&mut self.io, id, into.end(RecvEnd::Eof));
            }
        }
    }

    /// Makes the array report that its namespaces changed.
    fn tell_of_change(&mut self) {
        let admin = self.conns.iter_mut().find(|conn| conn.aer.is_some()).expect("an event request");
        let cid = admin.aer.take().expect("an event request");
        let mut cqe = trefoil_wire::nvme::Cqe::new(cid, 0, Status::SUCCESS);
        cqe.result = u64::from(trefoil_wire::nvme::AsyncEvent::NAMESPACE_CHANGED.dw0());
        admin.respond(cqe);
        self.run();
    }

    fn write(&mut self, tag: u64, slba: u64, len: usize, fill: u8) {
        let mut buf = self.arena.alloc(len).expect("room");
        for (at, byte) in buf[..len].iter_mut().enumerate() {
            *byte = fill ^ (at / 512) as u8;
        }
        let sqe = IoCommand::Write(BlockRange::new(slba, len as u32 / 512)).sqe(0, 1, Sgl::NONE);
        self.host.submit(self.io.now, Command::send(tag, sqe, buf, 0, len as u32)).expect("room");
    }

    fn read(&mut self, tag: u64, slba: u64, len: usize) {
        let buf = self.arena.alloc(len).expect("room");
        let sqe = IoCommand::Read(BlockRange::new(slba, len as u32 / 512)).sqe(0, 1, Sgl::NONE);
        self.host.submit(self.io.now, Command::fill(tag, sqe, buf, 0, len as u32)).expect("room");
    }

    /// Takes the commands that finished since the last call, with their data. Frees their blocks.
    fn take(&mut self) -> Vec<(u64, Result<Status, Fault>, Vec<u8>)> {
        let arena = &mut self.arena;
        let mut all: Vec<_> = self
            .finished
            .drain(..)
            .map(|mut finished| {
                let data = finished.command.data().to_vec();
                if let Some(buf) = finished.command.take_buf() {
                    arena.free(buf);
                }
                (finished.command.tag, finished.result.map(|cqe| cqe.status), data)
            })
            .collect();
        all.sort_by_key(|(tag, ..)| *tag);
        all
    }

    fn tags(&mut self) -> Vec<u64> {
        self.take().into_iter().map(|(tag, result, _)| (result.expect("no fault").is_ok(), tag).1).collect()
    }

    /// Stops the host and checks that every block is back.
    fn end(mut self) {
        self.host.stop(&mut self.io);
        self.pass(8 * SECOND);
        assert_eq!(self.events.last(), Some(&ControllerEvent::Stopped));
        self.host.release(&mut self.arena);
        assert_eq!(self.arena.free_bytes(), self.arena.capacity_bytes(), "a block leaked");
    }
}

use trefoil_wire::nvme::Status;

fn write_and_read_back(id: u16, manners: Manners, chunk: usize) {
    let mut rig = Rig::up(id, manners);
    rig.chunk = chunk;
    for (tag, len) in [512, 4096, 8192, 65536, 131_072].into_iter().enumerate() {
        let (tag, slba) = (tag as u64, tag as u64 * 300);
        rig.write(tag, slba, len, 0x40 + tag as u8);
        rig.run();
        assert_eq!(rig.tags(), [tag], "write of {len}");
        rig.read(tag, slba, len);
        rig.run();
        let done = rig.take();
        assert_eq!(done.len(), 1, "read of {len}");
        assert_eq!(done[0].1, Ok(Status::SUCCESS));
        for (at, byte) in done[0].2.iter().enumerate() {
            assert_eq!(*byte, (0x40 + tag as u8) ^ (at / 512) as u8, "byte {at} of {len}");
        }
    }
    rig.end();
}

#[test]
fn data_survives_in_capsule_and_by_r2t() {
    write_and_read_back(20, Manners { mdts: 0, ..Manners::default() }, usize::MAX);
}

#[test]
fn data_survives_digests_and_every_split_of_the_stream() {
    for (at, chunk) in [1, 3, 7, 24, 100, 4096].into_iter().enumerate() {
        let manners = Manners { digests: (true, true), success_flag: false, mdts: 0, ..Manners::default() };
        write_and_read_back(30 + at as u16, manners, chunk);
    }
}

#[test]
fn zeroes_deallocate_and_a_capsule_without_room_for_data() {
    for (id, capsule_bytes) in [(40, 4096), (41, 0)] {
        let mut rig = Rig::up(id, Manners { capsule_bytes, ..Manners::default() });
        rig.array.disk.fill(1);
        let range = BlockRange::new(0, 2);
        let zeroes = IoCommand::WriteZeroes { range, deac: true }.sqe(0, 1, Sgl::NONE);
        rig.host.submit(rig.io.now, Command::bare(1, zeroes)).expect("room");
        if capsule_bytes > 0 {
            let dsm = DsmCommand { ranges: 1, deallocate: true, ..Default::default() };
            let mut bytes = [0; INLINE_BYTES];
            DsmRange { attributes: 0, nlb: 1, slba: 5 }.emit(&mut bytes);
            let sqe = IoCommand::Dsm(dsm).sqe(0, 1, Sgl::NONE);
            rig.host.submit(rig.io.now, Command::inline(2, sqe, bytes)).expect("room");
            rig.run();
            assert_eq!(rig.tags(), [1, 2]);
            assert_eq!(rig.array.disk[5 * 512 - 1..6 * 512 + 1], [&[1][..], &[0; 512], &[1]].concat());
        } else {
            rig.write(2, 8, 512, 3);
            rig.run();
            assert_eq!(rig.tags(), [1, 2]);
            assert_eq!(rig.array.disk[8 * 512..9 * 512], [3; 512]);
        }
        assert_eq!(rig.array.disk[..1025], [&[0; 1024][..], &[1]].concat());
        rig.end();
    }
}

#[test]
fn what_may_be_deallocated_follows_dlfeat() {
    // DLFEAT; Dataset Management's bit of ONCS; whether Deallocate and DEAC are sent.
    let cases = [
        (0b0000, true, (false, false)),
        (0b0001, true, (true, false)),
        (0b0010, true, (false, false)),
        (0b0011, true, (false, false)),
        (0b1000, true, (false, false)),
        (0b1001, true, (true, true)),
        (0b1010, true, (false, false)),
        (0b1001, false, (false, true)),
        // Bit 4 is about guards, so it has no effect here.
        (0b1_1001, true, (true, true)),
    ];
    for (at, (dlfeat, dsm, expected)) in cases.into_iter().enumerate() {
        let manners = Manners { dlfeat, dsm: (dsm, Status::SUCCESS), ..Manners::default() };
        let rig = Rig::up(200 + at as u16, manners);
        let Some(ControllerEvent::Up(facts)) = rig.events.last() else { panic!("{:?}", rig.events) };
        assert_eq!((facts.deallocate, facts.zeroes_deallocate), expected, "DLFEAT {dlfeat:#07b}, DSM {dsm}");
        let limits = rig.host.limits();
        assert_eq!(
            (limits.deallocate, limits.zeroes_deallocate),
            expected,
            "DLFEAT {dlfeat:#07b}, DSM {dsm}"
        );
        rig.end();
    }
}

#[test]
fn sqsize_is_zeros_based_and_never_above_mqes() {
    // A queue of 9 entries, and the size that an array with fewer entries accepts.
    for (at, (mqes, sqsize)) in [(127, 8), (8, 8), (7, 7), (1, 1)].into_iter().enumerate() {
        let rig = Rig::up(150 + at as u16, Manners { mqes, ..Manners::default() });
        let sent: Vec<_> = rig.conns.iter().map(|conn| (conn.qid, conn.sqsize)).collect();
        assert_eq!(sent, [(Some(0), 31), (Some(1), sqsize), (Some(2), sqsize)], "MQES {mqes}");
        rig.end();
    }
    assert_eq!((QueueEntries::ADMIN.sqsize(), QueueEntries::new(32).commands()), (31, 31));
    assert_eq!(QueueEntries::new(0).sqsize(), 1, "SQSIZE 0 is invalid");
}

#[test]
fn more_commands_than_depth_wait_and_all_complete() {
    let mut rig = Rig::up(43, Manners { queues: 1, ..Manners::default() });
    for tag in 0..60 {
        rig.write(tag, tag * 8, 4096, tag as u8);
    }
    rig.run();
    assert_eq!(rig.tags(), (0..60).collect::<Vec<_>>());
    rig.end();
}

#[test]
fn a_completion_that_overtakes_the_send_waits_for_the_block() {
    let mut rig = Rig::up(44, Manners::default());
    rig.write(1, 0, 4096, 1);
    rig.stall_sends = true;
    rig.run();
    let at = rig.io.socks.iter().position(|sock| sock.sending.is_some()).expect("a send");
    let bytes: Vec<u8> =
        rig.io.socks[at].sending.as_ref().expect("a send").pieces().flatten().copied().collect();
    rig.array.feed(&mut rig.conns[at], &bytes);
    rig.run();
    assert!(rig.finished.is_empty(), "its block is still with the driver");
    let list = rig.io.socks[at].sending.take().expect("a send");
    rig.host.on_sock(&mut rig.io, SockId(at as u32), SockEvent::Sent { list, result: Ok(()) });
    rig.stall_sends = false;
    rig.run();
    assert_eq!(rig.tags(), [1]);
    rig.end();
}

#[test]
fn a_wrong_data_digest_is_read_again() {
    let mut rig = Rig::up(45, Manners { digests: (true, true), ..Manners::default() });
    rig.array.manners.corrupt_next = true;
    rig.read(1, 0, 4096);
    rig.run();
    assert!(rig.finished.is_empty());
    rig.pass(SECOND);
    assert_eq!(rig.tags(), [1]);
    assert_eq!(rig.events.len(), 1, "the connection stayed up");
    rig.end();
}

#[test]
fn after_a_loss_reads_go_at_once_and_sent_writes_wait_for_the_fence() {
    let mut rig = Rig::up(46, Manners { mute: true, ..Manners::default() });
    rig.write(1, 0, 4096, 1);
    rig.read(2, 0, 4096);
    rig.run();
    rig.cut();
    rig.run();
    assert!(
        matches!(rig.events[1..], [ControllerEvent::Down(ControllerError::Queue { .. })]),
        "{:?}",
        rig.events
    );
    // This write is submitted while the path is away. It was never sent, so it needs no fence.
    rig.write(3, 8, 4096, 3);
    rig.array.manners.mute = false;
    rig.pass(2 * SECOND);
    assert_eq!(rig.tags(), [2, 3]);
    assert_eq!(rig.array.writes_seen, 2, "the old write was not sent again");
    rig.pass(7 * SECOND);
    assert!(rig.tags().is_empty(), "2 x KATO is 10 s");
    rig.pass(2 * SECOND);
    assert_eq!(rig.tags(), [1]);
    assert_eq!(rig.array.disk[..512], [1; 512]);
    rig.end();
}

#[test]
fn losing_one_queue_resets_the_controller_and_fences_at_once() {
    let mut rig = Rig::up(47, Manners { mute: true, ..Manners::default() });
    rig.write(1, 0, 4096, 1);
    rig.run();
    let io_sock =
        rig.conns.iter().position(|conn| conn.unanswered.len() == 1).expect("the write's connection");
    rig.array.manners.mute = false;
    rig.io.socks[io_sock].recv = None;
    let why = RecvEnd::Failed(SockError(104));
    rig.host.on_sock(&mut rig.io, SockId(io_sock as u32), SockEvent::RecvEnd { buf: None, why });
    rig.pass(SECOND);
    assert_eq!(rig.array.resets, 1);
    assert_eq!(rig.tags(), [1], "no need to wait for the keep-alive bound");
    rig.end();
}

/// The previous association used another controller, which may still execute the write.
#[test]
fn a_reset_proves_nothing_of_the_association_before() {
    let mut rig = Rig::up(66, Manners { mute: true, ..Manners::default() });
    rig.write(1, 0, 4096, 1);
    rig.run();
    rig.cut();
    rig.array.manners.mute = false;
    rig.pass(2 * SECOND);
    let io_sock = (0..rig.conns.len())
        .rfind(|&at| !rig.io.socks[at].gone && rig.conns[at].qid == Some(1))
        .expect("the queue of the second association");
    rig.io.socks[io_sock].recv = None;
    let why = RecvEnd::Failed(SockError(104));
    rig.host.on_sock(&mut rig.io, SockId(io_sock as u32), SockEvent::RecvEnd { buf: None, why });
    rig.pass(7 * SECOND);
    assert_eq!((rig.array.resets, rig.array.writes_seen), (1, 1), "2 x KATO is 10 s");
    rig.pass(2 * SECOND);
    assert_eq!(rig.tags(), [1]);
    rig.end();
}

#[test]
fn a_late_command_is_aborted_then_the_controller_is_reset() {
    let mut rig = Rig::up(48, Manners { mute: true, ..Manners::default() });
    rig.read(1, 0, 4096);
    rig.pass(5 * SECOND);
    assert_eq!(rig.array.aborts.len(), 1, "after 4 s");
    assert_eq!(rig.array.resets, 0);
    rig.array.manners.mute = false;
    rig.pass(5 * SECOND);
    assert_eq!(rig.array.resets, 1, "after 8 s");
    assert_eq!(rig.tags(), [1]);
    rig.end();
}

#[test]
fn a_silent_controller_is_given_up_after_kato() {
    let mut rig = Rig::up(49, Manners::default());
    rig.array.manners.deaf = true;
    rig.pass(9 * SECOND);
    assert!(matches!(rig.events[1], ControllerEvent::Down(_)), "{:?}", rig.events);
    rig.array.manners.deaf = false;
    rig.pass(15 * SECOND);
    assert!(matches!(rig.events.last(), Some(ControllerEvent::Up(_))), "{:?}", rig.events);
    rig.end();
}

#[test]
fn past_the_loss_timeout_io_fails_and_later_it_works_again() {
    let mut rig = Rig::up(50, Manners { mute: true, ..Manners::default() });
    rig.write(1, 0, 4096, 1);
    rig.run();
    rig.away = true;
    rig.cut();
    rig.read(2, 0, 4096);
    rig.pass(59 * SECOND);
    assert!(rig.finished.is_empty(), "it waits");
    rig.pass(2 * SECOND);
    let faults: Vec<_> = rig.take().into_iter().map(|(tag, result, _)| (tag, result)).collect();
    assert_eq!(faults, [(1, Err(Fault::PathLost)), (2, Err(Fault::PathLost))]);
    // A host that repeats a command at once gets at most two errors per second.
    rig.read(3, 0, 512);
    rig.run();
    rig.pass(HELD_FOR / 2);
    rig.read(4, 0, 512);
    rig.run();
    let result =
        |rig: &mut Rig| rig.take().into_iter().map(|(tag, result, _)| (tag, result)).collect::<Vec<_>>();
    assert_eq!(result(&mut rig), []);
    rig.pass(HELD_FOR / 2);
    assert_eq!(result(&mut rig), [3, 4].map(|tag| (tag, Err(Fault::PathLost))));
    // The array executes a command that was submitted just before the array's return.
    rig.away = false;
    rig.array.manners.mute = false;
    let attempt = rig.host.next_deadline().expect("the next attempt").since(rig.io.now);
    rig.pass(attempt.saturating_sub(HELD_FOR / 2));
    rig.read(5, 0, 512);
    rig.run();
    assert_eq!(result(&mut rig), []);
    rig.pass(HELD_FOR - Duration::from_millis(50));
    assert_eq!(result(&mut rig), [(5, Ok(Status::SUCCESS))]);
    rig.end();
}

/// The host reconnects each time, and the array answers other commands in between.
#[test]
fn a_command_that_breaks_the_connection_each_time_fails_at_the_loss_timeout() {
    let mut rig = Rig::up(64, Manners { poison: Some(64), ..Manners::default() });
    rig.read(1, 64, 512);
    for second in 0..59 {
        rig.read(2, second, 512);
        rig.pass(SECOND);
        let tags = rig.tags();
        assert!(!tags.contains(&1) && tags.contains(&2), "{tags:?} in second {second}");
    }
    rig.pass(3 * SECOND);
    let faults: Vec<_> = rig.take().into_iter().map(|(tag, result, _)| (tag, result)).collect();
    assert_eq!(faults, [(1, Err(Fault::PathLost))]);
    rig.read(3, 0, 512);
    rig.pass(SECOND);
    assert_eq!(rig.tags(), [3]);
    rig.end();
}

#[test]
fn what_waits_for_queues_that_never_connect_fails_at_the_loss_timeout() {
    let mut rig = Rig::new(65, Manners { admin_only: true, ..Manners::default() });
    for tag in 1..4 {
        rig.read(tag, 0, 512);
        rig.pass(70 * SECOND);
        assert_eq!(
            rig.take().into_iter().map(|(tag, result, _)| (tag, result)).collect::<Vec<_>>(),
            [(tag, Err(Fault::PathLost))]
        );
    }
    rig.array.manners.admin_only = false;
    rig.pass(5 * SECOND);
    rig.read(4, 0, 512);
    rig.run();
    assert_eq!(rig.tags(), [4]);
    rig.end();
}

#[test]
fn another_namespace_at_the_same_address_is_refused() {
    let mut rig = Rig::up(51, Manners::default());
    rig.array.manners.nguid = 1;
    rig.cut();
    rig.pass(3 * SECOND);
    assert!(
        rig.events[1..].iter().all(|event| matches!(event, ControllerEvent::Down(_))),
        "{:?}",
        rig.events
    );
    rig.array.manners.nguid = 9;
    rig.pass(3 * SECOND);
    assert!(matches!(rig.events.last(), Some(ControllerEvent::Up(_))));
    rig.end();
}

#[test]
fn a_namespace_that_tells_more_of_itself_is_the_same() {
    // NGUID and EUI-64 before and after, and whether both name the same namespace.
    for (id, before, after, same) in [
        (58, (9, 0), (9, 5), true),
        (59, (9, 5), (9, 0), true),
        (60, (9, 0), (0, 5), false),
        (61, (9, 5), (1, 5), false),
    ] {
        let mut rig = Rig::up(id, Manners { nguid: before.0, eui64: before.1, ..Manners::default() });
        (rig.array.manners.nguid, rig.array.manners.eui64) = after;
        rig.cut();
        rig.pass(3 * SECOND);
        let is_up = matches!(rig.events.last(), Some(ControllerEvent::Up(_)));
        assert_eq!(is_up, same, "{before:?}, {after:?}: {:?}", rig.events);
        (rig.array.manners.nguid, rig.array.manners.eui64) = before;
        rig.pass(3 * SECOND);
        rig.end();
    }
}

#[test]
fn another_namespace_that_takes_the_place_of_ours_gets_no_writes() {
    let mut rig = Rig::up(57, Manners::default());
    rig.array.manners.nguid = 1;
    rig.tell_of_change();
    rig.write(1, 0, 512, 0xaa);
    rig.pass(3 * SECOND);
    assert!(matches!(rig.events.last(), Some(ControllerEvent::Down(_))), "{:?}", rig.events);
    assert_eq!(rig.array.writes_seen, 0, "a write of ours on somebody else's disk");
    rig.array.manners.nguid = 9;
    rig.pass(3 * SECOND);
    assert!(matches!(rig.events.last(), Some(ControllerEvent::Up(_))), "{:?}", rig.events);
    assert_eq!((rig.take().len(), rig.array.writes_seen), (1, 1));
    rig.end();
}

#[test]
fn an_identity_is_not_taken_from_a_namespace_that_just_went_away() {
    for (id, status, up) in
        [(55, Status::INVALID_NAMESPACE.dnr(), false), (56, Status::INVALID_FIELD.dnr(), true)]
    {
        let mut rig = Rig::new(id, Manners { descriptors: status, ..Manners::default() });
        rig.run();
        assert_eq!(matches!(rig.events.last(), Some(ControllerEvent::Up(_))), up, "{:?}", rig.events);
        rig.array.manners.descriptors = Status::SUCCESS;
        rig.pass(3 * SECOND);
        assert!(matches!(rig.events.last(), Some(ControllerEvent::Up(_))), "{:?}", rig.events);
        rig.end();
    }
}

#[test]
fn a_namespace_that_grows_is_noticed() {
    let mut rig = Rig::up(52, Manners::default());
    rig.array.manners.blocks = 8192;
    rig.tell_of_change();
    let Some(ControllerEvent::Resized(facts)) = rig.events.last() else { panic!("{:?}", rig.events) };
    assert_eq!(facts.len_bytes(), 8192 * 512);
    assert!(rig.conns.iter().any(|conn| conn.aer.is_some()), "the next event is waited for");
    rig.end();
}

#[test]
fn a_response_that_comes_twice_ends_the_connection() {
    let mut rig = Rig::up(53, Manners { success_flag: false, ..Manners::default() });
    rig.read(1, 0, 512);
    rig.run();
    assert_eq!(rig.tags(), [1]);
    // This read was the first use of slot 0, so its identifier is 0.
    let at = rig.conns.iter().rposition(|conn| conn.qid.is_some_and(|qid| qid > 0)).expect("an I/O queue");
    rig.conns[at].respond(trefoil_wire::nvme::Cqe::new(0, 0, Status::SUCCESS));
    // The terminate request must not reach the model of the array, which does not handle one.
    rig.stall_sends = true;
    rig.run();
    assert!(rig.io.socks[at].sending.is_some(), "a terminate request is on its way");
    rig.pass(2 * SECOND);
    rig.stall_sends = false;
    assert!(
        rig.events.iter().any(|event| matches!(
            event,
            ControllerEvent::Down(ControllerError::Queue {
                why: QueueError::Violation(Violation::UnknownCommand { cid: 0 }),
                ..
            })
        )),
        "{:?}",
        rig.events
    );
    rig.pass(3 * SECOND);
    rig.end();
}

/// With any bytes, nothing panics, no block is lost, and each command comes back exactly once.
#[test]
fn garbage_from_a_hostile_array_is_survived() {
    for seed in 0..400u64 {
        let mut rig = Rig::up(
            60,
            Manners { mute: true, digests: (seed % 2 == 0, seed % 3 == 0), ..Manners::default() },
        );
        rig.io.bits = seed;
        rig.write(1, 0, 8192, 1);
        rig.read(2, 0, 65536);
        rig.read(3, 0, 4096);
        rig.run();
        for at in 0..rig.conns.len() {
            let random = |io: &mut TestIo| trefoil_poll::Io::random(io) >> 33;
            for _ in 0..random(&mut rig.io) % 4 {
                let kind = [3, 5, 7, 9, 1, 4, 250][random(&mut rig.io) as usize % 7];
                let plen = [24, 28, 32, 536, 4120, 1 << 20][random(&mut rig.io) as usize % 6];
                let flags = random(&mut rig.io) as u8 & 15;
                let mut pdu = vec![kind, flags, 24, if plen > 32 { 24 } else { 0 }];
                pdu.extend((plen as u32).to_le_bytes());
                for _ in 0..4 {
                    let field = [0, 1, 2, 512, 4096, 65536, u32::MAX][random(&mut rig.io) as usize % 7];
                    pdu.extend(field.to_le_bytes());
                }
                pdu.resize(24 + (plen as usize).min(5000), random(&mut rig.io) as u8);
                rig.conns[at].output.extend(pdu);
            }
        }
        rig.stall_sends = true;
        rig.run();
        rig.pass(2 * SECOND);
        rig.stall_sends = false;
        rig.array.manners.mute = false;
        rig.pass(25 * SECOND);
        assert_eq!(rig.take().len(), 3, "seed {seed}");
        rig.end();
    }
}

/// The array's PDUs are valid. They come in any order, for any command, and any number of times.
#[test]
fn a_hostile_array_that_knows_the_protocol_is_survived() {
    for seed in 0..800u64 {
        let manners = Manners {
            mute: true,
            capsule_bytes: if seed % 5 == 0 { 0 } else { 4096 },
            digests: (seed % 2 == 0, seed % 3 == 0),
            ..Manners::default()
        };
        let mut rig = Rig::up(67, manners);
        rig.io.bits = seed;
        rig.ignores = true;
        for (tag, len) in [(1, 65536), (2, 4096), (3, 131_072)] {
            rig.write(tag, 0, len, 1);
            rig.read(tag + 3, 0, len);
        }
        let mut bytes = [0; INLINE_BYTES];
        DsmRange { attributes: 0, nlb: 1, slba: 5 }.emit(&mut bytes);
        let dsm = DsmCommand { ranges: 1, deallocate: true, ..Default::default() };
        let dsm = IoCommand::Dsm(dsm).sqe(0, 1, Sgl::NONE);
        rig.host.submit(rig.io.now, Command::inline(7, dsm, bytes)).expect("room");
        rig.run();
        for _ in 0..40 {
            rig.attack();
        }
        rig.stall_sends = false;
        (rig.ignores, rig.chunk, rig.array.manners.mute) = (false, usize::MAX, false);
        rig.cut();
        rig.array.manners.capsule_bytes = 4096;
        rig.pass(30 * SECOND);
        let tags: Vec<_> = rig.take().into_iter().map(|(tag, ..)| tag).collect();
        assert_eq!(tags, [1, 2, 3, 4, 5, 6, 7], "seed {seed}");
        rig.read(8, 0, 512);
        rig.pass(SECOND);
        assert_eq!(rig.tags(), [8], "seed {seed}");
        rig.end();
    }
}

impl Rig {
    fn attack(&mut self) {
        let mut draw = |below: u64| (trefoil_poll::Io::random(&mut self.io) >> 20) % below;
        self.chunk = [1, 7, 24, 4096, usize::MAX, usize::MAX][draw(6) as usize];
        self.stall_sends = draw(3) == 0;
        // An identifier has the slot in its low bits and the generation in its high bits; the depths are 8 and 31.
        let (cid, ttag) = ((draw(8) | draw(3) << 3 | draw(3) << 5) as u16, draw(3) as u16);
        let offset_bytes = [0, 0, 0, 4, 4096, 8192, 12288, !3][draw(8) as usize];
        let len_bytes = [4, 16, 512, 4096, 8192, 65536, 131_072, 126_976][draw(8) as usize];
        let (success, last) = (draw(2) == 0, draw(2) == 0);
        let status =
            [Status::SUCCESS, Status::ABORT_REQUESTED, Status::INVALID_FIELD.dnr()][draw(3) as usize];
        let (at, kind) = (draw(self.conns.len() as u64) as usize, draw(8));
        let (wrong, waits) = (draw(16) == 0, draw(10) == 0);
        let (header_digest, data_digest) = self.array.manners.digests;
        let conn = &mut self.conns[at];
        match kind {
            0..3 => {
                let mut bytes = [0; R2t::LEN];
                R2t { cid, ttag, offset_bytes, len_bytes }.emit(header_digest, &mut bytes);
                conn.put(&bytes, None);
            }
            3..6 => {
                let mut bytes = [0; C2hData::LEN];
                let pdu = C2hData { cid, offset_bytes, len_bytes, last, success };
                pdu.emit(header_digest, data_digest, 4, &mut bytes);
                conn.put(&bytes, Some((&vec![7; len_bytes as usize], wrong)));
            }
            _ => conn.respond(trefoil_wire::nvme::Cqe::new(cid, 0, status)),
        }
        self.run();
        if waits {
            self.pass(SECOND);
        }
    }
}

#[test]
fn an_array_that_comes_and_goes_is_asked_less_and_less_often() {
    let ups = |rig: &Rig| rig.events.iter().filter(|event| matches!(event, ControllerEvent::Up(_))).count();
    let mut rig = Rig::up(68, Manners::default());
    for _ in 0..400 {
        rig.cut();
        rig.pass(SECOND / 20);
    }
    assert!((20..=45).contains(&ups(&rig)), "{} in 20 s, with pauses up to a second", ups(&rig));
    rig.pass(2 * SECOND);
    rig.cut();
    rig.events.clear();
    rig.pass(SECOND / 5);
    assert_eq!(ups(&rig), 1, "it had stood for long, so the first pause is the shortest again");
    rig.end();
}

#[test]
fn an_array_that_comes_and_goes_is_asked_again_before_it_is_given_up() {
    let manners = Manners::default();
    let impatient = ControllerConfig { loss_timeout: SECOND / 2, ..config(&manners) };
    let mut rig = Rig::of(69, impatient, manners);
    for _ in 0..100 {
        rig.pass(SECOND / 20);
        rig.cut();
    }
    assert!(!rig.events.contains(&ControllerEvent::GaveUp), "it was there all the time: {:?}", rig.events);
    rig.pass(SECOND);
    rig.end();
}
