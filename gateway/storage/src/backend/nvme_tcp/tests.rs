//! Tests of the channels of several cores to one array. The tests themselves carry the messages between the cores.

use super::*;
use crate::initiator::testing::{Array, Conn, Manners, TestIo, address, arena, identity};
use crate::initiator::{FenceRule, NamespaceIdentity, QueueEntries};
use crate::request::{Completed, Origin, Owner};
use crate::topology::LunId;
use trefoil_poll::{Arena, RecvEnd, RecvInto, SockError};
use trefoil_wire::nvme::AsyncEvent;
use trefoil_wire::nvme::log::AnaState;

const SECOND: Duration = Duration::from_secs(1);
const BACKEND: BackendId = BackendId(1);
/// The stream of all requests of a core.
const STREAM: u32 = 7;

struct Core {
    io: TestIo,
    arena: Arena,
    channel: NvmeTcpChannel,
    conns: Vec<Conn>,
    requests: VecDeque<Request>,
    done: VecDeque<Completed>,
}

struct Gateway {
    cores: Vec<Core>,
    array: Array,
    events: Vec<Event>,
    finished: Vec<(u32, Result<(), Fault>, Option<u8>)>,
}

impl Gateway {
    fn new(first_arena: u16, cores: u16, manners: Manners) -> Self {
        Self::with_digests(first_arena, cores, manners, (false, false))
    }

    fn with_digests(first_arena: u16, cores: u16, manners: Manners, digests: (bool, bool)) -> Self {
        let config = NvmeTcpConfig {
            controller: ControllerConfig {
                addrs: vec![address()],
                identity: identity(),
                purpose: Purpose::Nvm { nsid: 1 },
                digests,
                kato_ms: 2000,
                io_queues: 8,
                entries: QueueEntries::new(17),
                reconnect: (Duration::from_millis(100), SECOND),
                connect_timeout: SECOND,
                admin_timeout: SECOND,
                loss_timeout: 30 * SECOND,
                fence: FenceRule::KeepAliveBound,
                discovery_entries: 0,
            },
            command_timeout: 4 * SECOND,
            requests: 128,
        };
        let core = |at| Core {
            io: TestIo { core: at, cores, ..TestIo::default() },
            arena: arena(first_arena + at, 4),
            channel: NvmeTcpChannel::new(BACKEND, CoreId(at), cores, &config),
            conns: Vec::new(),
            requests: VecDeque::new(),
            done: VecDeque::new(),
        };
        Self {
            cores: (0..cores).map(core).collect(),
            array: Array::new(manners),
            events: Vec::new(),
            finished: Vec::new(),
        }
    }

    fn with<R>(&mut self, at: usize, run: impl FnOnce(&mut NvmeTcpChannel, &mut Cx<'_, TestIo>) -> R) -> R {
        let Core { io, arena, channel, requests, done, .. } = &mut self.cores[at];
        run(channel, &mut Cx { io, arena, requests, done, luns: None })
    }

    fn run(&mut self) {
        for _ in 0..200 {
            for at in 0..self.cores.len() {
                self.sockets(at);
                self.with(at, |channel, cx| channel.on_turn(cx));
                self.mail(at);
            }
        }
    }

    fn pass(&mut self, by: Duration) {
        for _ in 0..by.as_millis() / 100 {
            self.cores.iter_mut().for_each(|core| core.io.pass(Duration::from_millis(100)));
            self.run();
        }
    }

    fn on_sock(&mut self, at: usize, sock: SockId, event: SockEvent<'_>) {
        self.with(at, |channel, cx| channel.on_sock(cx, sock, event));
    }

    fn sockets(&mut self, at: usize) {
        while self.cores[at].channel.take_new_sock().is_some() {
            self.cores[at].conns.push(Conn::new());
        }
        for n in 0..self.cores[at].conns.len() {
            let id = SockId(n as u32);
            let sock = &mut self.cores[at].io.socks[n];
            if sock.gone {
                continue;
            }
            if sock.closing {
                sock.gone = true;
                let (list, recv) = (sock.sending.take(), sock.recv.take());
                if let Some(list) = list {
                    self.on_sock(at, id, SockEvent::Sent { list, result: Err(SockError(125)) });
                }
                if let Some(recv) = recv {
                    self.on_sock(at, id, recv.end(RecvEnd::Closed));
                }
                self.on_sock(at, id, SockEvent::Closed);
                continue;
            }
            if std::mem::take(&mut sock.connecting) {
                self.on_sock(at, id, SockEvent::Connected(Ok(())));
                continue;
            }
            if let Some(list) = sock.sending.take() {
                let bytes: Vec<u8> = list.pieces().flatten().copied().collect();
                self.array.feed(&mut self.cores[at].conns[n], &bytes);
                self.on_sock(at, id, SockEvent::Sent { list, result: Ok(()) });
            }
            let core = &mut self.cores[at];
            let output = &mut core.conns[n].output;
            match core.io.socks[n].recv.take() {
                Some(RecvInto::Stream { max_bytes }) if !output.is_empty() => {
                    let count = output.len().min(max_bytes as usize);
                    let bytes: Vec<u8> = output.drain(..count).collect();
                    self.on_sock(at, id, SockEvent::Received(&bytes));
                }
                Some(RecvInto::Buf { mut buf, at: from, len }) if output.len() >= len as usize => {
                    let to = &mut buf[from as usize..(from + len) as usize];
                    to.iter_mut().zip(output.drain(..len as usize)).for_each(|(to, byte)| *to = byte);
                    self.on_sock(at, id, SockEvent::Filled(buf));
                }
                recv => core.io.socks[n].recv = recv,
            }
        }
    }

    fn mail(&mut self, at: usize) {
        let from = CoreId(at as u16);
        for completed in std::mem::take(&mut self.cores[at].done) {
            let home = completed.origin();
            let (mut buf, result) = completed.settle();
            let first = buf.as_ref().map(|buf| buf[0]);
            if let Some(buf) = buf.take() {
                self.cores[home.core.0 as usize].arena.free(buf);
            }
            self.finished.push((home.slot, result, first));
        }
        for (to, msg) in std::mem::take(&mut self.cores[at].io.posts) {
            let to = to.0 as usize;
            match msg {
                Msg::Initiator(BACKEND, msg) => self.with(to, |channel, cx| channel.on_msg(cx, from, msg)),
                Msg::Submit(BACKEND, request) => self.with(to, |channel, cx| channel.submit(cx, request)),
                Msg::Cancel(Some(BACKEND), stream) => self.with(to, |channel, cx| channel.cancel(cx, stream)),
                other => panic!("{other:?}"),
            }
        }
        for msg in std::mem::take(&mut self.cores[at].io.control) {
            if let Msg::Event(event) = msg {
                self.events.push(event);
            }
        }
    }

    fn ask(&mut self, at: usize, slot: u32, op: Op, offset: u64, len: u64, fill: Option<u8>) {
        let buf = matches!(op, Op::Read | Op::Write).then(|| {
            let mut buf = self.cores[at].arena.alloc(len as usize).expect("room");
            buf.fill(fill.unwrap_or(0xee));
            buf
        });
        let home = self.cores[at].arena.id().0;
        let core = CoreId(at as u16);
        let origin = Origin { core, home, owner: Owner::Workload, slot, generation: 0 };
        let request = Request::new(op, LunId(0), offset, len, buf, origin).of_stream(STREAM);
        self.with(at, |channel, cx| channel.submit(cx, request));
    }

    /// Sends an event of the array.
    fn tell(&mut self, event: AsyncEvent) {
        let conns = self.cores.iter_mut().flat_map(|core| core.conns.iter_mut());
        // Connections of earlier associations have event requests too, so search from the newest.
        let admin = conns.rev().find(|conn| conn.aer.is_some()).expect("an event request");
        let mut cqe = Cqe::new(admin.aer.take().expect("an event request"), 0, Status::SUCCESS);
        cqe.result = u64::from(event.dw0());
        admin.respond(cqe);
        self.run();
    }

    /// Takes the changes of the namespace's access that were reported to control since the last call.
    fn told(&mut self) -> Vec<(AnaState, bool)> {
        let told = std::mem::take(&mut self.events).into_iter().filter_map(|event| match event {
            Event::BackendAccess { access, .. } => Some((access.ana_state, access.read_only)),
            _ => None,
        });
        told.collect()
    }

    /// Tells core `at` that the requests of core `of` are cancelled.
    fn cancel(&mut self, at: usize, of: u16) {
        let stream = Stream { core: CoreId(of), number: STREAM };
        self.with(at, |channel, cx| channel.cancel(cx, stream));
        self.mail(at);
    }

    fn results(&mut self) -> Vec<(u32, Result<(), Fault>)> {
        self.take().into_iter().map(|(slot, result, _)| (slot, result)).collect()
    }

    fn take(&mut self) -> Vec<(u32, Result<(), Fault>, Option<u8>)> {
        self.finished.sort_by_key(|(slot, ..)| *slot);
        std::mem::take(&mut self.finished)
    }

    fn queues_connected(&self, at: usize) -> usize {
        let core = &self.cores[at];
        core.conns.iter().zip(&core.io.socks).filter(|(conn, sock)| !sock.gone && conn.qid > Some(0)).count()
    }

    fn end(mut self) {
        for at in 0..self.cores.len() {
            self.with(at, |channel, cx| channel.stop(cx));
        }
        self.pass(8 * SECOND);
        assert_eq!(self.array.shutdowns, 1, "the controller was shut down in order");
        for core in &self.cores {
            assert!(core.channel.is_stopped());
            assert_eq!(core.arena.free_bytes(), core.arena.capacity_bytes(), "a block leaked");
        }
    }
}

#[test]
fn eight_cores_work_on_two_queues() {
    let mut gateway = Gateway::new(80, 8, Manners { queues: 2, mdts: 3, ..Manners::default() });
    // These requests come before the first association, and wait.
    for at in 0..8 {
        gateway.ask(at, at as u32, Op::Write, at as u64 * 65536, 65536, Some(at as u8 + 1));
    }
    gateway.run();
    assert_eq!(gateway.take(), (0..8).map(|at| (at, Ok(()), Some(at as u8 + 1))).collect::<Vec<_>>());
    assert_eq!((0..8).map(|at| gateway.queues_connected(at)).collect::<Vec<_>>(), [1, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(gateway.array.writes_seen, 16, "MDTS is 32 KiB, so each write took two commands");
    for at in 0..8 {
        gateway.ask(at, at as u32, Op::Read, (7 - at) as u64 * 65536, 65536, None);
    }
    gateway.run();
    assert_eq!(gateway.take(), (0..8).map(|at| (at, Ok(()), Some(8 - at as u8))).collect::<Vec<_>>());
    gateway.end();
}

#[test]
fn who_finds_no_place_is_told_to_wait() {
    let mut gateway = Gateway::new(96, 1, Manners::default());
    let full = |gateway: &Gateway| {
        let origin = Origin { core: CoreId(0), home: 0, owner: Owner::Workload, slot: 999, generation: 0 };
        let request = Request::new(Op::Flush, LunId(0), 0, 0, None, origin);
        let full = Channel::<TestIo>::must_wait(&gateway.cores[0].channel, &request, false);
        let (_, result) = request.complete(Ok(())).settle();
        assert_eq!(result, Ok(()));
        full
    };
    for slot in 0..128 {
        assert!(!full(&gateway), "after {slot}");
        gateway.ask(0, slot, Op::Read, 0, 4096, None);
    }
    assert!(full(&gateway), "nothing is connected, and no more fits");
    gateway.run();
    assert_eq!(gateway.take().len(), 128);
    for slot in 0..128 {
        assert!(!full(&gateway), "after {slot}");
        gateway.ask(0, slot, Op::Read, 0, 4096, None);
    }
    assert!(full(&gateway));
    gateway.run();
    assert!(gateway.take().iter().all(|(_, result, _)| *result == Ok(())) && !full(&gateway));
    gateway.end();
}

#[test]
fn control_learns_what_the_backend_is() {
    let mut gateway = Gateway::new(90, 2, Manners::default());
    gateway.run();
    let info = Event::BackendInfo {
        backend: BACKEND,
        len_bytes: 4096 * 512,
        namespace: NamespaceIdentity { nguid: [9; 16], uuid: [0; 16], eui64: [0; 8], block_bytes: 512 },
        deallocates: true,
    };
    let up = Event::BackendState { backend: BACKEND, usable: true, why: "connected", is_final: false };
    assert_eq!(gateway.events, [info, up]);
    gateway.end();
}

#[test]
fn fewer_queues_after_a_reconnect_move_what_waits() {
    let mut gateway = Gateway::new(100, 5, Manners { queues: 3, mute: true, ..Manners::default() });
    gateway.run();
    for at in 0..5 {
        gateway.ask(at, at as u32, Op::Write, at as u64 * 4096, 4096, Some(5));
        gateway.ask(at, 10 + at as u32, Op::Flush, 0, 0, None);
    }
    gateway.run();
    gateway.array.manners.queues = 1;
    gateway.array.manners.mute = false;
    gateway.array.manners.deaf = true;
    gateway.pass(3 * SECOND);
    gateway.array.manners.deaf = false;
    gateway.pass(12 * SECOND);
    let done: Vec<_> = gateway.take().into_iter().map(|(slot, result, _)| (slot, result)).collect();
    assert_eq!(done, [0, 1, 2, 3, 4, 10, 11, 12, 13, 14].map(|slot| (slot, Ok(()))));
    assert_eq!((0..5).map(|at| gateway.queues_connected(at)).collect::<Vec<_>>(), [1, 0, 0, 0, 0]);
    assert_eq!(gateway.array.disk[..5 * 4096], [5; 5 * 4096]);
    let passed_on: Vec<_> = gateway.cores.iter_mut().map(|core| core.channel.take_passed_on()).collect();
    assert_eq!(passed_on, [0, 2, 0, 0, 0], "core 1 had what core 4 asked for");
    gateway.end();
}

#[test]
fn a_stop_leaves_nobody_waiting() {
    let mut gateway = Gateway::new(110, 2, Manners { queues: 2, mute: true, ..Manners::default() });
    gateway.run();
    gateway.ask(0, 1, Op::Write, 0, 4096, Some(5));
    gateway.ask(0, 2, Op::Read, 0, 4096, None);
    gateway.run();
    // The controller is on core 1, which is quiet and stops at once.
    for at in 0..2 {
        gateway.with(at, |channel, cx| channel.stop(cx));
    }
    gateway.run();
    let done: Vec<_> = gateway.take().into_iter().map(|(slot, result, _)| (slot, result)).collect();
    assert_eq!(done, [(1, Err(Fault::PathLost)), (2, Err(Fault::PathLost))]);
    gateway.end();
}

/// A channel may be dropped in the turn in which it reports that it is stopped.
#[test]
fn one_that_is_stopped_between_two_tries_holds_nothing() {
    let mut gateway = Gateway::new(117, 1, Manners { deaf: true, ..Manners::default() });
    gateway.run();
    while gateway.cores[0].io.socks.iter().any(|sock| !sock.gone) {
        gateway.pass(Duration::from_millis(100));
    }
    gateway.with(0, |channel, cx| channel.stop(cx));
    let core = &gateway.cores[0];
    assert!(core.channel.is_stopped());
    assert_eq!(core.arena.free_bytes(), core.arena.capacity_bytes());
}

/// The array never answers, so the channels don't know the number of queues.
#[test]
fn what_an_array_that_is_given_up_is_asked_for_is_held_a_while() {
    let mut gateway = Gateway::new(114, 2, Manners { deaf: true, ..Manners::default() });
    gateway.ask(0, 1, Op::Read, 0, 4096, None);
    gateway.pass(29 * SECOND);
    assert_eq!(gateway.results(), [], "it waits");
    gateway.pass(2 * SECOND);
    assert_eq!(gateway.results(), [(1, Err(Fault::PathLost))]);
    for slot in [2, 3] {
        gateway.ask(slot as usize % 2, slot, Op::Read, 0, 4096, None);
    }
    gateway.pass(HELD_FOR - Duration::from_millis(100));
    assert_eq!(gateway.results(), []);
    gateway.cancel(1, 1);
    assert_eq!(gateway.results(), [(3, Err(Fault::Aborted))]);
    gateway.pass(Duration::from_millis(200));
    assert_eq!(gateway.results(), [(2, Err(Fault::PathLost))]);
    // A held request doesn't delay a detach either.
    gateway.ask(0, 4, Op::Read, 0, 4096, None);
    gateway.run();
    gateway.with(0, |channel, cx| channel.stop(cx));
    gateway.run();
    assert_eq!(gateway.results(), [(4, Err(Fault::PathLost))]);
    gateway.array.manners.deaf = false;
    gateway.with(1, |channel, cx| channel.stop(cx));
    gateway.pass(8 * SECOND);
    assert!(gateway.cores.iter().all(|core| core.channel.is_stopped()));
}

#[test]
fn zeroes_deallocate_and_faults() {
    let mut gateway = Gateway::new(98, 1, Manners::default());
    gateway.array.disk.fill(1);
    gateway.ask(0, 1, Op::WriteZeroes { deallocate: false }, 512, 1024, None);
    gateway.ask(0, 2, Op::Deallocate, 8192, 512, None);
    gateway.ask(0, 3, Op::Read, 4096 * 512, 512, None);
    gateway.ask(0, 4, Op::Read, 1, 512, None);
    gateway.run();
    let done: Vec<_> = gateway.take().into_iter().map(|(slot, result, _)| (slot, result)).collect();
    assert_eq!(done, [(1, Ok(())), (2, Ok(())), (3, Err(Fault::OutOfRange)), (4, Err(Fault::Internal))]);
    assert_eq!(gateway.array.disk[..2048], [&[1; 512][..], &[0; 1024], &[1; 512]].concat());
    assert_eq!(gateway.array.disk[8192..8704], [0; 512]);
    gateway.end();
}

#[test]
fn only_an_array_that_promises_zeros_is_told_to_deallocate() {
    // Each case: DLFEAT, whether Deallocate is sent, and whether DEAC is sent.
    let cases = [
        (0b0000, (false, false)),
        (0b0001, (true, false)),
        (0b0010, (false, false)),
        (0b1000, (false, false)),
        (0b1001, (true, true)),
        (0b1010, (false, false)),
    ];
    for (at, (dlfeat, (deallocates, deac))) in cases.into_iter().enumerate() {
        let manners = Manners { dlfeat, ..Manners::default() };
        let mut gateway = Gateway::new(220 + at as u16, 1, manners);
        gateway.array.disk.fill(1);
        gateway.ask(0, 1, Op::WriteZeroes { deallocate: true }, 512, 1024, None);
        gateway.ask(0, 2, Op::WriteZeroes { deallocate: false }, 4096, 512, None);
        gateway.ask(0, 3, Op::Deallocate, 8192, 512, None);
        gateway.run();
        assert_eq!(gateway.results(), [(1, Ok(())), (2, Ok(())), (3, Ok(()))], "DLFEAT {dlfeat:#06b}");
        let array = &gateway.array;
        assert_eq!(array.zeroes_seen, [deac, false], "DLFEAT {dlfeat:#06b}");
        assert_eq!(
            array.writes_seen, 0,
            "DLFEAT {dlfeat:#06b}: zeros were written, though it has Write Zeroes"
        );
        assert_eq!(array.deallocates_seen, usize::from(deallocates), "DLFEAT {dlfeat:#06b}");
        assert_eq!(array.disk[..2048], [&[1; 512][..], &[0; 1024], &[1; 512]].concat());
        assert_eq!(array.disk[4096..4608], [0; 512]);
        let left = u8::from(!deallocates);
        assert_eq!(
            array.disk[8192..8704],
            [left; 512],
            "DLFEAT {dlfeat:#06b}: neither what it was nor zeros"
        );
        assert!(gateway.events.iter().any(
            |event| matches!(event, Event::BackendInfo { deallocates: told, .. } if *told == deallocates)
        ));
        gateway.end();
    }
}

/// The array may lose its promise of zeros after a reconnect, or during an association.
#[test]
fn a_deallocate_of_an_earlier_association_is_not_sent_to_an_array_that_promises_no_zeros_now() {
    let trim = |gateway: &mut Gateway, slot| gateway.ask(0, slot, Op::Deallocate, 0, 1 << 20, None);
    let mut gateway = Gateway::new(226, 2, Manners { queues: 1, mute: true, ..Manners::default() });
    gateway.array.disk.fill(1);
    gateway.run();
    // The array receives these two commands, and then stops answering.
    trim(&mut gateway, 1);
    gateway.ask(1, 2, Op::Deallocate, 0, 1 << 20, None);
    gateway.run();
    assert_eq!((gateway.results(), gateway.array.deallocates_seen), (vec![], 2));
    (gateway.array.manners.deaf, gateway.array.manners.dlfeat) = (true, 0b1010);
    gateway.pass(3 * SECOND);
    trim(&mut gateway, 3);
    (gateway.array.manners.deaf, gateway.array.manners.mute) = (false, false);
    gateway.pass(15 * SECOND);
    assert_eq!(gateway.results(), [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    assert_eq!(gateway.array.deallocates_seen, 2, "none was sent again");
    // The array promises zeros again and reports a changed namespace. A new association learns of the promise.
    let resets = gateway.array.resets;
    gateway.array.manners.dlfeat = 0b1001;
    gateway.tell(AsyncEvent::NAMESPACE_CHANGED);
    gateway.pass(2 * SECOND);
    assert_eq!(gateway.array.resets, resets + 1, "the queues were told by a new association");
    trim(&mut gateway, 4);
    gateway.run();
    assert_eq!((gateway.results(), gateway.array.deallocates_seen), (vec![(4, Ok(()))], 3));
    assert!(gateway.array.disk[..1 << 20].iter().all(|byte| *byte == 0));
    // Now the array promises no zeros.
    gateway.array.disk.fill(1);
    gateway.array.manners.dlfeat = 0;
    gateway.tell(AsyncEvent::NAMESPACE_CHANGED);
    gateway.pass(2 * SECOND);
    trim(&mut gateway, 5);
    gateway.run();
    assert_eq!((gateway.results(), gateway.array.deallocates_seen), (vec![(5, Ok(()))], 3));
    // A namespace change that doesn't affect commands needs no new association.
    let resets = gateway.array.resets;
    gateway.tell(AsyncEvent::NAMESPACE_CHANGED);
    gateway.pass(2 * SECOND);
    assert_eq!(gateway.array.resets, resets);
    gateway.end();
}

#[test]
fn an_array_without_write_zeroes_is_zeroed_by_writing() {
    let invalid = Status::INVALID_OPCODE.dnr();
    let cases = [
        ((false, invalid), (false, invalid), 140),
        ((true, invalid), (true, invalid), 142),
        // The array accepts fewer blocks in one command than the channel asks for.
        ((true, Status::INVALID_FIELD.dnr()), (true, Status::INVALID_FIELD.dnr()), 144),
        ((true, Status::INVALID_FIELD.dnr()), (true, Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr()), 227),
    ];
    for ((write_zeroes, dsm, first_arena), digests) in
        cases.into_iter().flat_map(|case| [(case, (false, false)), (case, (true, true))])
    {
        let first_arena = first_arena + u16::from(digests.0);
        let manners = Manners { write_zeroes, dsm, digests, blocks: 8192, ..Manners::default() };
        let mut gateway = Gateway::with_digests(first_arena, 1, manners, digests);
        gateway.array.disk.fill(1);
        // All payload memory is taken. The zeros need none.
        gateway.run();
        let mut taken = Vec::new();
        while let Some(buf) = gateway.cores[0].arena.alloc(4096) {
            taken.push(buf);
        }
        let len = 3 * MAX_ZEROS_BYTES + 4096;
        gateway.ask(0, 1, Op::WriteZeroes { deallocate: true }, 512, len, None);
        gateway.ask(0, 2, Op::Deallocate, 0, 512, None);
        gateway.run();
        assert_eq!(gateway.results(), [(1, Ok(())), (2, Ok(()))], "{write_zeroes:?}");
        let end = 512 + len as usize;
        assert!(gateway.array.disk[512..end].iter().all(|byte| *byte == 0), "{write_zeroes:?}");
        assert_eq!(gateway.array.disk[..512], [1; 512]);
        assert_eq!(gateway.array.disk[end..end + 512], [1; 512]);
        taken.into_iter().for_each(|buf| gateway.cores[0].arena.free(buf));
        gateway.end();
    }
}

#[test]
fn a_cancelled_zeroing_by_writing_sends_no_further_write() {
    let manners = Manners { write_zeroes: (false, Status::INVALID_OPCODE), mute: true, ..Manners::default() };
    let mut gateway = Gateway::new(146, 1, manners);
    gateway.ask(0, 1, Op::WriteZeroes { deallocate: false }, 0, 2 * MAX_ZEROS_BYTES, None);
    gateway.run();
    assert_eq!(gateway.array.writes_seen, 1);
    gateway.cancel(0, 0);
    assert_eq!(gateway.results(), [], "the array has a write of it");
    gateway.pass(30 * SECOND);
    assert_eq!(gateway.results(), [(1, ABORTED)]);
    assert_eq!(gateway.array.writes_seen, 1);
    gateway.end();
}

const INACCESSIBLE: Result<(), Fault> = Err(Fault::Inaccessible);

#[test]
fn an_arrays_ana_state_is_told_at_once_and_nobody_is_kept_waiting() {
    use AnaState::{Inaccessible, NonOptimized, Optimized, PersistentLoss};
    let manners = Manners { ana: Some(NonOptimized), ana_groups: 300, queues: 2, ..Manners::default() };
    let mut gateway = Gateway::new(160, 2, manners);
    gateway.run();
    assert_eq!(gateway.told(), [(NonOptimized, false)], "our group is the last of the log's 300");
    assert_eq!(gateway.array.ana_reads, 3);
    for state in [Optimized, Inaccessible, PersistentLoss, Inaccessible, Optimized] {
        gateway.array.manners.ana = Some(state);
        gateway.tell(AsyncEvent::ANA_CHANGE);
        assert_eq!(gateway.told(), [(state, false)]);
    }
    // A command's ANA status has the same effect as the event, and ends the commands on both cores.
    gateway.array.manners.ana = Some(Inaccessible);
    gateway.ask(0, 1, Op::Write, 0, 4096, Some(5));
    gateway.ask(1, 2, Op::Read, 0, 4096, None);
    gateway.run();
    assert_eq!(gateway.results(), [(1, INACCESSIBLE), (2, INACCESSIBLE)]);
    assert_eq!(gateway.told(), [(Inaccessible, false)]);
    // Without an event, the controller notices a little later that the namespace is back.
    gateway.array.manners.ana = Some(Optimized);
    gateway.pass(Duration::from_millis(1100));
    assert_eq!(gateway.told(), [(Optimized, false)]);
    // The controller doesn't read the ANA log while the namespace is usable.
    let reads = gateway.array.ana_reads;
    gateway.pass(5 * SECOND);
    assert_eq!(gateway.array.ana_reads, reads);
    gateway.ask(0, 3, Op::Write, 0, 4096, Some(6));
    gateway.run();
    assert_eq!(gateway.results(), [(3, Ok(()))]);
    gateway.end();
}

#[test]
fn a_change_of_ana_state_is_held_and_then_inaccessible_within_anatt() {
    use AnaState::{Change, Inaccessible, Optimized};
    let mut gateway = Gateway::new(162, 1, Manners { ana: Some(Optimized), ..Manners::default() });
    gateway.run();
    gateway.array.manners.ana = Some(Change);
    gateway.tell(AsyncEvent::ANA_CHANGE);
    gateway.ask(0, 1, Op::Write, 0, 4096, Some(5));
    gateway.pass(7 * SECOND);
    assert_eq!((gateway.results(), gateway.told()), (vec![], vec![]), "it is held");
    gateway.array.manners.ana = Some(Optimized);
    gateway.tell(AsyncEvent::ANA_CHANGE);
    gateway.pass(Duration::from_millis(200));
    assert_eq!((gateway.results(), gateway.told()), (vec![(1, Ok(()))], vec![]), "nobody has noticed");

    gateway.array.manners.ana = Some(Change);
    gateway.tell(AsyncEvent::ANA_CHANGE);
    gateway.ask(0, 2, Op::Read, 0, 4096, None);
    gateway.pass(5 * SECOND);
    gateway.ask(0, 3, Op::Read, 0, 4096, None);
    gateway.pass(Duration::from_millis(2900));
    assert_eq!((gateway.results(), gateway.told()), (vec![], vec![]));
    gateway.pass(Duration::from_millis(200));
    assert_eq!(gateway.results(), [(2, INACCESSIBLE), (3, INACCESSIBLE)], "also what came later");
    assert_eq!(gateway.told(), [(Inaccessible, false)]);
    gateway.array.manners.ana = Some(Optimized);
    gateway.tell(AsyncEvent::ANA_CHANGE);
    assert_eq!(gateway.told(), [(Optimized, false)]);
    gateway.end();
}

#[test]
fn a_write_protected_namespace_is_told_and_so_is_its_end() {
    let mut gateway = Gateway::new(163, 1, Manners { read_only: true, ..Manners::default() });
    gateway.run();
    assert_eq!(gateway.told(), [(AnaState::Optimized, true)]);
    gateway.array.manners.read_only = false;
    gateway.tell(AsyncEvent::NAMESPACE_CHANGED);
    assert_eq!(gateway.told(), [(AnaState::Optimized, false)]);
    gateway.end();
}

#[test]
fn an_array_that_is_given_up_is_inaccessible_until_it_is_back() {
    let mut gateway =
        Gateway::new(164, 1, Manners { ana: Some(AnaState::NonOptimized), ..Manners::default() });
    gateway.run();
    assert_eq!(gateway.told(), [(AnaState::NonOptimized, false)]);
    gateway.array.manners.deaf = true;
    gateway.pass(45 * SECOND);
    assert_eq!(gateway.told(), [(AnaState::Inaccessible, false)]);
    gateway.array.manners.deaf = false;
    gateway.pass(10 * SECOND);
    assert_eq!(gateway.told(), [(AnaState::NonOptimized, false)]);
    gateway.end();
}

const ABORTED: Result<(), Fault> = Err(Fault::Aborted);

#[test]
fn what_was_never_sent_is_cancelled_at_once() {
    let mut gateway = Gateway::new(120, 3, Manners { queues: 1, mute: true, ..Manners::default() });
    // Before the first association, a request waits on its own core. Later, it waits on the core with the queue.
    gateway.ask(2, 1, Op::Write, 0, 4096, Some(5));
    gateway.cancel(2, 2);
    assert_eq!(gateway.results(), [(1, ABORTED)]);
    gateway.run();
    // The queue has room for 16 commands. Further commands wait in front of it.
    for slot in 0..16 {
        gateway.ask(0, slot, Op::Flush, 0, 0, None);
    }
    gateway.ask(2, 20, Op::Write, 0, 4096, Some(5));
    gateway.ask(1, 21, Op::Write, 4096, 4096, Some(6));
    gateway.run();
    gateway.cancel(0, 2);
    assert_eq!(gateway.results(), [(20, ABORTED)]);
    gateway.array.manners.mute = false;
    // The queue is lost with all its commands. The requests that are still wanted are sent again.
    gateway.pass(12 * SECOND);
    assert_eq!(gateway.results().len(), 17);
    assert_eq!(gateway.array.disk[..8192], [[0; 4096], [6; 4096]].concat());
    gateway.end();
}

#[test]
fn a_held_write_is_cancelled_when_it_is_fenced_and_not_sent_again() {
    let mut gateway = Gateway::new(124, 2, Manners { queues: 1, mute: true, ..Manners::default() });
    gateway.run();
    gateway.ask(1, 1, Op::Write, 0, 4096, Some(5));
    gateway.ask(0, 2, Op::Write, 4096, 4096, Some(6));
    gateway.run();
    // The array stops answering. Its controller is lost without a reset.
    gateway.array.manners.deaf = true;
    gateway.pass(3 * SECOND);
    gateway.cancel(0, 1);
    assert_eq!(gateway.results(), [], "the array may have it");
    (gateway.array.manners.mute, gateway.array.manners.deaf) = (false, false);
    gateway.pass(SECOND);
    assert_eq!(gateway.queues_connected(0), 1);
    assert_eq!(gateway.results(), [], "the fence is still to come");
    gateway.pass(10 * SECOND);
    assert_eq!(gateway.results(), [(1, ABORTED), (2, Ok(()))]);
    assert_eq!(gateway.array.disk[..8192], [[0; 4096], [6; 4096]].concat());
    gateway.end();
}

#[test]
fn a_cancelled_request_of_several_commands_sends_no_further_one() {
    let mut gateway = Gateway::new(126, 1, Manners { mdts: 3, mute: true, ..Manners::default() });
    gateway.run();
    gateway.ask(0, 1, Op::Write, 0, 4 * 32768, Some(5));
    gateway.run();
    assert_eq!(gateway.array.writes_seen, 1);
    gateway.cancel(0, 0);
    assert_eq!(gateway.results(), []);
    gateway.array.manners.mute = false;
    let core = &mut gateway.cores[0];
    let conn = core.conns.iter_mut().find(|conn| !conn.unanswered.is_empty()).expect("the queue");
    let sqe = conn.unanswered.remove(0);
    conn.respond(Cqe::new(sqe.cid, 0, Status::SUCCESS));
    gateway.run();
    assert_eq!(gateway.results(), [(1, ABORTED)]);
    assert_eq!(gateway.array.writes_seen, 1);
    gateway.end();
}

#[test]
fn an_array_that_keeps_a_cancelled_write_is_reset() {
    let mut gateway = Gateway::new(127, 1, Manners { mute: true, ..Manners::default() });
    gateway.run();
    gateway.ask(0, 1, Op::Write, 0, 4096, Some(5));
    gateway.run();
    gateway.cancel(0, 0);
    // The command is aborted at its own deadline, 4 s after it was sent.
    gateway.pass(4 * SECOND + SECOND / 2);
    assert_eq!((gateway.array.aborts.len(), gateway.array.resets), (1, 0));
    gateway.pass(4 * SECOND);
    assert_eq!(gateway.array.resets, 1);
    assert_eq!(gateway.results(), [(1, ABORTED)], "a reset proves that it is gone");
    gateway.array.manners.mute = false;
    gateway.pass(2 * SECOND);
    assert_eq!(gateway.array.disk[..4096], [0; 4096]);
    gateway.end();
}

#[test]
fn a_cancel_follows_requests_that_moved() {
    let mut gateway = Gateway::new(128, 5, Manners { queues: 3, mute: true, ..Manners::default() });
    gateway.run();
    gateway.ask(4, 4, Op::Flush, 0, 0, None);
    gateway.run();
    gateway.array.manners.queues = 1;
    gateway.array.manners.deaf = true;
    gateway.pass(3 * SECOND);
    gateway.array.manners.deaf = false;
    gateway.pass(2 * SECOND);
    assert_eq!(gateway.cores[1].channel.take_passed_on(), 1, "core 1 had it, and passed it on to core 0");
    assert_eq!(gateway.results(), []);
    gateway.cancel(1, 4);
    gateway.pass(9 * SECOND);
    assert_eq!(gateway.results(), [(4, ABORTED)]);
    gateway.array.manners.mute = false;
    gateway.end();
}
