use super::*;
use crate::backend::{File, Memory};
use crate::cx::InstantMemory;
use crate::request::{Origin, Owner};
use crate::test_io::TestIo;
use crate::topology::LunId;
use std::collections::VecDeque;
use trefoil_poll::ram::Ram;
use trefoil_poll::{Arena, ArenaId, Buf, Rng};
use trefoil_sys::region::Region;

const KIB: u64 = 1024;

/// One core with its driver, memory, queues and LUN layer.
struct Core {
    io: TestIo,
    arena: Arena,
    requests: VecDeque<Request>,
    done: VecDeque<Completed>,
    luns: Luns<TestIo>,
    home: u16,
    slot: u32,
}

/// A finished request's slot, buffer and result.
type Outcome = (u32, Option<Buf>, Result<(), Fault>);

impl Core {
    fn new(core: u16, home: u16) -> Self {
        let region = Region::anonymous(4 << 20).expect("memory for a test");
        Self {
            io: TestIo::new(core),
            arena: Arena::new(ArenaId(home), region),
            requests: VecDeque::new(),
            done: VecDeque::new(),
            luns: Luns::new(CoreId(core), 1024),
            home,
            slot: 0,
        }
    }

    fn with<T>(&mut self, run: impl FnOnce(&mut Luns<TestIo>, &mut Cx<'_, TestIo>) -> T) -> T {
        let Self { io, arena, requests, done, luns, .. } = self;
        run(luns, &mut Cx { io, arena, requests, done, luns: None })
    }

    fn attach(&mut self, id: u32, len_bytes: u64, kind: AttachKind<Vec<u8>>) {
        let attach = Attach { len_bytes, block_bytes: 512, kind, id: BackendId(id) };
        self.with(|luns, cx| luns.attach(cx, BackendId(id), Box::new(attach)));
        assert!(matches!(self.io.control.pop(), Some(Msg::Attached(BackendId(got))) if got == id));
    }

    fn attach_file(&mut self, id: u32, len: u64) {
        self.attach(id, len, AttachKind::File { file: vec![0xA5; len as usize], slots: File::slots(16) });
    }

    fn attach_memory(&mut self, id: u32) {
        let ram = Ram::new(Region::anonymous(2 << 20).expect("memory for a test"));
        self.attach(id, ram.len_bytes(), AttachKind::Memory(Memory::new(ram, 2)));
    }

    fn present(&mut self, luns: Vec<Lun>) {
        let luns = luns.into_iter().map(Some).collect();
        self.luns.on_topology(Arc::new(Topology { luns, ..Topology::default() }));
    }

    fn request(&mut self, op: Op, offset: u64, len: u64, fill: Option<&[u8]>) -> Request {
        let data = matches!(op, Op::Read | Op::Write);
        let buf =
            data.then(|| self.arena.alloc((len as usize).min(2 << 20)).expect("room")).map(|mut buf| {
                if let Some(bytes) = fill {
                    buf[..bytes.len()].copy_from_slice(bytes);
                }
                buf
            });
        self.slot += 1;
        let (core, home) = (self.io.core, self.home);
        let origin = Origin { core, home, owner: Owner::Target, slot: self.slot, generation: 0 };
        Request::new(op, LunId(0), offset, len, buf, origin)
    }

    fn submit(&mut self, request: Request) {
        self.with(|luns, cx| luns.submit(cx, request));
    }

    /// Handles completions. An `Ok` item has reached its owner; an `Err` item must go to another core.
    fn drain(&mut self) -> Vec<Result<Outcome, Completed>> {
        let mut out = Vec::new();
        while let Some(done) = self.done.pop_front() {
            if let Some(done) = self.with(|luns, cx| luns.on_completed(cx, done, |_| true)) {
                let origin = done.origin();
                out.push(if origin.core == self.io.core {
                    let (buf, result) = done.settle();
                    Ok((origin.slot, buf, result))
                } else {
                    Err(done)
                });
            }
        }
        out
    }

    /// Runs until no request makes progress, and returns the outcomes.
    fn settle(&mut self) -> Vec<Outcome> {
        let mut out = Vec::new();
        loop {
            out.extend(self.drain().into_iter().filter_map(Result::ok));
            if let Some(done) = self.io.run_file_op() {
                self.with(|luns, cx| luns.on_file(cx, done));
            } else if !self.with(|luns, cx| luns.on_turn(cx)) && self.done.is_empty() {
                return out;
            }
        }
    }

    /// Runs one request from start to end. Returns the first `len` bytes of its buffer, and its result.
    fn run(&mut self, op: Op, offset: u64, len: u64, fill: Option<&[u8]>) -> (Vec<u8>, Result<(), Fault>) {
        let request = self.request(op, offset, len, fill);
        self.submit(request);
        let mut out = self.settle();
        assert_eq!(out.len(), 1, "one completion");
        let (slot, buf, result) = out.remove(0);
        assert_eq!(slot, self.slot);
        let bytes = buf.map(|buf| {
            let bytes = buf[..len as usize].to_vec();
            self.arena.free(buf);
            bytes
        });
        (bytes.unwrap_or_default(), result)
    }
}

fn lun(len_bytes: u64, extents: &[(u64, u64, u32, u64)]) -> Lun {
    Lun {
        name: "l".into(),
        block_bytes: 512,
        blocks: len_bytes / 512,
        uuid: [1; 16],
        nguid: [2; 16],
        extents: extents
            .iter()
            .map(|&(lun_offset, len, backend, backend_offset)| Extent {
                lun_offset,
                len,
                backend: BackendId(backend),
                backend_offset,
            })
            .collect(),
        read_only: false,
    }
}

/// Presents four extents on a memory and two files. The middle extent is out of order on its backend.
fn spread(core: &mut Core) -> u64 {
    core.attach_memory(0);
    core.attach_file(1, 256 * KIB);
    core.attach_file(2, 256 * KIB);
    let (k, len) = (KIB, 160 * KIB);
    let extents = [
        (0, 64 * k, 0, 64 * k),
        (64 * k, 32 * k, 1, 128 * k),
        (96 * k, 32 * k, 0, 0),
        (128 * k, 32 * k, 2, 0),
    ];
    core.present(vec![lun(len, &extents)]);
    len
}

#[test]
fn a_lun_in_pieces_reads_as_written() {
    let mut core = Core::new(0, 100);
    let len = spread(&mut core);
    let mut model = vec![0; len as usize];
    assert_eq!(core.run(Op::Write, 0, len, Some(&model)).1, Ok(()));
    let mut rng = Rng::new(7);
    for round in 0..400u64 {
        let (a, b) = (rng.below(len / 512), rng.below(len / 512));
        let (start, end) = (a.min(b) * 512, (a.max(b) + 1) * 512);
        let range = start as usize..end as usize;
        match round % 4 {
            0 => {
                model[range].fill(0);
                let deallocate = round % 8 == 0;
                assert_eq!(core.run(Op::WriteZeroes { deallocate }, start, end - start, None).1, Ok(()));
            }
            1 => {
                let bytes: Vec<u8> = (start..end).map(|n| (n / 512 + round) as u8).collect();
                model[range].copy_from_slice(&bytes);
                assert_eq!(core.run(Op::Write, start, end - start, Some(&bytes)).1, Ok(()));
            }
            _ => {
                let (bytes, result) = core.run(Op::Read, start, end - start, None);
                assert_eq!(result, Ok(()));
                assert!(bytes == model[range], "round {round}: {start}..{end}");
            }
        }
    }
}

#[test]
fn a_flush_visits_each_backend_once() {
    let mut core = Core::new(0, 101);
    spread(&mut core);
    core.present(vec![lun(
        160 * KIB,
        &[(0, 64 * KIB, 2, 0), (64 * KIB, 32 * KIB, 1, 0), (96 * KIB, 64 * KIB, 2, 64 * KIB)],
    )]);
    assert_eq!(core.run(Op::Flush, 0, 0, None).1, Ok(()));
    // Files 0 and 1 are backends 1 and 2.
    assert_eq!(core.io.story, [(0, "sync"), (1, "sync")]);
    core.io.errors.push(("sync", 28));
    assert_eq!(core.run(Op::Flush, 0, 0, None).1, Err(Fault::NoSpace));
    assert_eq!(core.io.story.len(), 3, "a failed flush goes no further");
}

#[test]
fn what_a_lun_does_not_have_is_refused() {
    let mut core = Core::new(0, 102);
    let len = spread(&mut core);
    assert_eq!(core.run(Op::Read, len - 512, 1024, None).1, Err(Fault::OutOfRange));
    assert_eq!(core.run(Op::Deallocate, u64::MAX - 511, 1024, None).1, Err(Fault::OutOfRange));
    core.present(vec![Lun { read_only: true, ..lun(len, &[(0, len, 1, 0)]) }]);
    assert_eq!(core.run(Op::Write, 0, 512, None).1, Err(Fault::ReadOnly));
    assert_eq!(core.run(Op::Read, 0, 512, None).1, Ok(()));
    core.present(vec![]);
    assert_eq!(core.run(Op::Read, 0, 512, None).1, Err(Fault::Gone));
    assert_eq!(core.run(Op::Flush, 0, 0, None).1, Err(Fault::Gone));
}

#[test]
fn a_failed_part_ends_the_request() {
    let mut core = Core::new(0, 103);
    let len = spread(&mut core);
    core.io.errors.push(("write", 5));
    assert_eq!(core.run(Op::Write, 0, len, None).1, Err(Fault::MediaWrite));
    assert_eq!(core.io.story, [(0, "write")], "the parts after it are not sent");
    core.io.errors = vec![("read", 5)];
    assert_eq!(core.run(Op::Read, 64 * KIB, 512, None).1, Err(Fault::MediaRead));
}

#[test]
fn a_backend_leaves_when_it_is_idle() {
    let mut core = Core::new(0, 104);
    let len = spread(&mut core);
    let request = core.request(Op::Read, 64 * KIB, 512, None);
    core.submit(request);
    core.with(|luns, cx| luns.detach(cx, BackendId(1)));
    assert!(core.io.control.is_empty(), "a read is on its way");
    assert_eq!(core.run_refused(64 * KIB), Err(Fault::Gone));
    assert!(core.io.control.is_empty(), "still");
    for (_, buf, result) in core.settle() {
        assert_eq!(result, Ok(()));
        buf.into_iter().for_each(|buf| core.arena.free(buf));
    }
    match core.io.control.pop() {
        Some(Msg::Detached(BackendId(1), Some(attach))) => {
            assert!(matches!(attach.kind, AttachKind::Spent(Some(AnyChannel::File(_)))));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(core.io.detached.len(), 1);
    core.attach_file(1, len);
    assert_eq!(core.run(Op::Read, 64 * KIB, 512, None).1, Ok(()));
    core.with(|luns, cx| luns.detach(cx, BackendId(9)));
    assert!(matches!(core.io.control.pop(), Some(Msg::Detached(BackendId(9), None))));
}

impl Core {
    /// Runs a read that must end at once.
    fn run_refused(&mut self, offset: u64) -> Result<(), Fault> {
        let request = self.request(Op::Read, offset, 512, None);
        self.submit(request);
        let mut out: Vec<_> = self.drain().into_iter().filter_map(Result::ok).collect();
        assert_eq!(out.len(), 1);
        let (_, buf, result) = out.remove(0);
        buf.into_iter().for_each(|buf| self.arena.free(buf));
        result
    }
}

#[test]
fn zeros_are_written_where_a_file_cannot_zero() {
    let mut core = Core::new(0, 105);
    core.attach_file(0, 512 * KIB);
    core.present(vec![lun(512 * KIB, &[(0, 512 * KIB, 0, 0)])]);
    core.io.errors = vec![("punch", 95), ("zero", 95)];
    let zeroes = Op::WriteZeroes { deallocate: true };
    assert_eq!(core.run(zeroes, 4 * KIB, 300 * KIB, None).1, Ok(()));
    let names: Vec<_> = core.io.story.iter().map(|s| s.1).collect();
    assert_eq!(names, ["punch", "zero", "write", "write", "write"]);
    let file = &core.io.files[0];
    assert!(file[4 << 10..304 << 10].iter().all(|&b| b == 0));
    assert!(file[..4 << 10].iter().chain(&file[304 << 10..]).all(|&b| b == 0xA5));
    assert_eq!(core.arena.free_bytes(), core.arena.capacity_bytes());
    // The channel doesn't try again to punch or zero. It ignores a hint, and a durable request still writes durably.
    core.io.story.clear();
    assert_eq!(core.run(Op::Deallocate, 0, 4 * KIB, None).1, Ok(()));
    let request = core.request(zeroes, 0, 4 * KIB, None).durable(true);
    core.submit(request);
    assert_eq!(core.settle().len(), 1);
    assert_eq!(core.io.story, [(0, "write durable")]);
    core.io.errors = vec![("write", 122)];
    assert_eq!(core.run(zeroes, 0, 4 * KIB, None).1, Err(Fault::NoSpace));
}

#[test]
fn zeros_wait_for_memory_in_order() {
    let mut core = Core::new(0, 106);
    core.attach_file(0, 512 * KIB);
    core.present(vec![lun(512 * KIB, &[(0, 512 * KIB, 0, 0)])]);
    core.io.errors = vec![("zero", 95)];
    let held: Vec<_> = (0..2).map(|_| core.arena.alloc(2 << 20).expect("room")).collect();
    for at in 0..3 {
        let request = core.request(Op::WriteZeroes { deallocate: false }, at * 4 * KIB, 4 * KIB, None);
        core.submit(request);
    }
    assert!(core.settle().is_empty(), "no memory");
    held.into_iter().for_each(|buf| core.arena.free(buf));
    let slots: Vec<_> = core.settle().iter().map(|o| o.0).collect();
    assert_eq!(slots, [1, 2, 3]);
    assert!(core.io.files[0][..12 << 10].iter().all(|&b| b == 0));
}

#[test]
fn a_durable_zeroing_is_synced() {
    let mut core = Core::new(0, 107);
    core.attach_file(0, 64 * KIB);
    core.present(vec![lun(64 * KIB, &[(0, 64 * KIB, 0, 0)])]);
    let request = core.request(Op::WriteZeroes { deallocate: true }, 0, 4 * KIB, None).durable(true);
    core.submit(request);
    assert_eq!(core.settle().len(), 1);
    assert_eq!(core.io.story, [(0, "punch"), (0, "sync")]);
}

#[test]
fn a_full_slot_table_makes_requests_wait_and_fails_none() {
    let mut core = Core::new(0, 108);
    core.attach(0, 64 * KIB, AttachKind::File { file: vec![0; 65536], slots: File::slots(2) });
    core.present(vec![lun(64 * KIB, &[(0, 64 * KIB, 0, 0)])]);
    for _ in 0..600 {
        let request = core.request(Op::Flush, 0, 0, None);
        core.submit(request);
    }
    let done = core.settle();
    assert_eq!(done.len(), 600);
    assert!(done.iter().all(|(_, _, result)| *result == Ok(())));
    assert_eq!(core.run(Op::Read, 0, 512, None), (vec![0; 512], Ok(())));
}

#[test]
fn long_zeroing_of_memory_takes_turns() {
    let mut core = Core::new(0, 109);
    core.attach_memory(0);
    core.present(vec![lun(2 << 20, &[(0, 2 << 20, 0, 0)])]);
    assert_eq!(core.run(Op::Write, (2 << 20) - 512, 512, Some(&[1; 512])).1, Ok(()));
    let request = core.request(Op::WriteZeroes { deallocate: false }, 512, (2 << 20) - 512, None);
    core.submit(request);
    assert!(core.done.is_empty());
    assert!(core.with(|luns, cx| luns.on_turn(cx)));
    assert!(core.done.is_empty(), "1 MiB a turn");
    assert_eq!(core.settle().len(), 1);
    assert_eq!(core.run(Op::Read, (2 << 20) - 512, 512, None).0, [0; 512]);
}

#[test]
fn a_remote_channel_leads_there_and_back() {
    let (mut home, mut other) = (Core::new(0, 110), Core::new(1, 111));
    home.attach(0, 64 * KIB, AttachKind::Remote { core: CoreId(1) });
    home.attach_file(1, 64 * KIB);
    other.attach_file(0, 64 * KIB);
    home.present(vec![lun(64 * KIB, &[(0, 32 * KIB, 0, 0), (32 * KIB, 32 * KIB, 1, 32 * KIB)])]);
    let request = home.request(Op::Read, 16 * KIB, 32 * KIB, None);
    home.submit(request);
    home.with(|luns, cx| luns.detach(cx, BackendId(0)));
    assert!(home.io.control.is_empty(), "the other core has a request");
    match home.io.posts.pop_front() {
        Some((CoreId(1), Msg::Submit(id, request))) => {
            other.with(|luns, cx| luns.submit_backend(cx, id, request))
        }
        other => panic!("{other:?}"),
    }
    let done = other.io.run_file_op().expect("it reads");
    other.with(|luns, cx| luns.on_file(cx, done));
    let mut back = other.drain();
    match back.pop() {
        Some(Err(done)) => home.done.push_back(done),
        other => panic!("{other:?}"),
    }
    let mut out = home.settle();
    assert_eq!(out.len(), 1);
    let (_, buf, result) = out.remove(0);
    assert_eq!(result, Ok(()));
    let buf = buf.expect("its block");
    assert!(buf[..32 << 10].iter().all(|&b| b == 0xA5));
    home.arena.free(buf);
    assert!(matches!(home.io.control.pop(), Some(Msg::Detached(BackendId(0), Some(_)))));
    other.with(|luns, cx| luns.detach(cx, BackendId(0)));
    assert!(matches!(other.io.control.pop(), Some(Msg::Detached(BackendId(0), Some(_)))), "it is idle again");
}

#[test]
fn a_write_waits_for_what_is_lent() {
    let mut core = Core::new(0, 148);
    core.attach_memory(0);
    core.present(vec![lun(2 << 20, &[(0, 2 << 20, 0, 0)])]);
    core.run(Op::Write, 4096, 4, Some(b"old!")).1.expect("written");
    let lend = |core: &mut Core| {
        let request = core.request(Op::Read, 4096, 4, None).may_lend(true);
        core.submit(request);
        let mut done = core.done.pop_front().expect("done at once");
        let loan = done.take_loan();
        let done = core.with(|luns, cx| luns.on_completed(cx, done, |_| true)).expect("whole");
        let (buf, result) = done.settle();
        result.expect("read");
        (loan, buf.expect("it comes back"))
    };
    let (loan, behind) = lend(&mut core);
    let loan = loan.expect("memory lends");
    let writes = [(Op::Write, 4), (Op::WriteZeroes { deallocate: false }, 512)];
    for (op, len) in writes {
        let request = core.request(op, 4096, len, Some(b"new!"));
        core.submit(request);
    }
    assert!(!core.with(|luns, cx| luns.on_turn(cx)), "nothing can be done, and the core may sleep");
    assert!(core.done.is_empty());
    assert_eq!(&*loan, b"old!");
    let (none, read) = lend(&mut core);
    assert!(none.is_none(), "while somebody waits, reads copy");
    assert_eq!(&read[..4], b"old!");
    drop(loan);
    let done = core.settle();
    assert_eq!(done.len(), writes.len());
    for buf in done.into_iter().filter_map(|(_, buf, _)| buf).chain([behind, read]) {
        core.arena.free(buf);
    }
    assert_eq!(core.run(Op::Read, 4096, 4, None).0, [0; 4]);
}

/// Reads keep coming. Each read comes before the loan of the previous read ends.
#[test]
fn a_long_zeroing_is_not_kept_from_its_end_by_readers() {
    let mut core = Core::new(0, 213);
    core.attach_memory(0);
    core.present(vec![lun(2 << 20, &[(0, 2 << 20, 0, 0)])]);
    let mut loan = core.luns.lend(LunId(0), 0, 512);
    let zeroing = core.request(Op::WriteZeroes { deallocate: false }, 0, 2 << 20, None);
    core.submit(zeroing);
    for turn in 0..4 {
        if turn == 1 {
            let read = core.request(Op::Read, 0, 512, None).may_lend(true);
            core.submit(read);
            let mut done = core.done.pop_front().expect("done at once");
            assert!(done.take_loan().is_none(), "it is copied");
            core.done.push_back(done);
            assert_eq!(core.results().len(), 1);
        }
        core.with(|luns, cx| luns.on_turn(cx));
        let next = core.luns.lend(LunId(0), 0, 512);
        drop(std::mem::replace(&mut loan, next));
    }
    assert_eq!(core.results(), [(1, Ok(()))]);
    assert!(core.luns.lend(LunId(0), 0, 512).is_some(), "loans are made again");
    // Loans are also made again once the zeroing is cancelled.
    let zeroing = core.mine(Op::WriteZeroes { deallocate: false }, 0, 2 << 20);
    core.submit(zeroing);
    core.with(|luns, cx| luns.on_turn(cx));
    assert!(core.luns.lend(LunId(0), 0, 512).is_none());
    core.cancel();
    assert_eq!(core.results(), [(3, Err(Fault::Aborted))]);
    assert!(core.luns.lend(LunId(0), 0, 512).is_some());
}

/// A turn does one step of one zeroing, whatever the number of zeroings.
#[test]
fn many_long_zeroings_do_not_block_the_core() {
    let mut core = Core::new(0, 214);
    core.attach_memory(0);
    core.present(vec![lun(2 << 20, &[(0, 2 << 20, 0, 0)])]);
    for _ in 0..8 {
        let zeroing = core.request(Op::WriteZeroes { deallocate: false }, 0, 2 << 20, None);
        core.submit(zeroing);
    }
    let mut done = Vec::new();
    for turn in 1..=16 {
        assert!(core.with(|luns, cx| luns.on_turn(cx)), "turn {turn}");
        done.extend(core.results().into_iter().map(|(slot, result)| (slot, result, turn)));
    }
    assert_eq!(done, (1..=8).map(|slot| (slot, Ok(()), slot * 2)).collect::<Vec<_>>());
}

/// Returns the stream of the requests that [`Core::mine`] makes.
fn stream(core: u16) -> Stream {
    Stream { core: CoreId(core), number: 7 }
}

impl Core {
    /// Makes a request of the stream that [`stream`] returns.
    fn mine(&mut self, op: Op, offset: u64, len: u64) -> Request {
        self.request(op, offset, len, None).of_stream(7)
    }

    fn cancel(&mut self) {
        let stream = stream(self.io.core.0);
        self.with(|luns, cx| luns.cancel(cx, None, stream));
    }

    /// Returns slots and results of all finished requests, and frees their blocks.
    fn results(&mut self) -> Vec<(u32, Result<(), Fault>)> {
        let done = self.drain().into_iter().filter_map(Result::ok).collect::<Vec<_>>();
        let give_back = |(slot, buf, result): Outcome| {
            buf.into_iter().for_each(|buf| self.arena.free(buf));
            (slot, result)
        };
        done.into_iter().map(give_back).collect()
    }
}

#[test]
fn a_request_that_nobody_wants_starts_no_further_part() {
    let mut core = Core::new(0, 149);
    let len = spread(&mut core);
    let request = core.mine(Op::Write, 64 * KIB, len - 64 * KIB);
    core.submit(request);
    let done = core.io.run_file_op().expect("the first part is on a file");
    core.with(|luns, cx| luns.on_file(cx, done));
    let done = core.done.pop_front().expect("the first part is done");
    let done = core.with(|luns, cx| luns.on_completed(cx, done, |_| false)).expect("it is over");
    let (buf, result) = done.settle();
    assert_eq!(result, Err(Fault::Aborted));
    core.arena.free(buf.expect("its block"));
    assert!(core.io.ops.is_empty() && core.done.is_empty());
}

#[test]
fn a_cancelled_zeroing_of_a_file_goes_no_further() {
    let mut core = Core::new(0, 190);
    core.attach_file(0, 512 * KIB);
    core.present(vec![lun(512 * KIB, &[(0, 512 * KIB, 0, 0)])]);
    core.io.errors = vec![("punch", 95), ("zero", 95)];
    let zeroes = Op::WriteZeroes { deallocate: false };
    // The zeroing is cancelled when 128 KiB are done and another 128 KiB are in the kernel.
    let long = core.mine(zeroes, 0, 512 * KIB);
    core.submit(long);
    for _ in 0..2 {
        let done = core.io.run_file_op().expect("zero, then a write");
        core.with(|luns, cx| luns.on_file(cx, done));
    }
    // Three more requests wait for memory; one of them belongs to another queue.
    let held: Vec<_> = std::iter::from_fn(|| core.arena.alloc(4096)).collect();
    let waits = [
        core.mine(zeroes, 0, 4 * KIB),
        core.request(zeroes, 0, 4 * KIB, None),
        core.mine(zeroes, 0, 4 * KIB),
    ];
    waits.into_iter().for_each(|request| core.submit(request));
    core.cancel();
    assert_eq!(core.results(), [(2, Err(Fault::Aborted)), (4, Err(Fault::Aborted))]);
    assert_eq!(core.io.ops.len(), 1, "the kernel has what it has");
    let done = core.io.run_file_op().expect("that");
    core.with(|luns, cx| luns.on_file(cx, done));
    assert_eq!(core.results(), [(1, Err(Fault::Aborted))]);
    assert!(core.io.files[0][256 << 10..].iter().all(|&byte| byte == 0xA5));
    held.into_iter().for_each(|buf| core.arena.free(buf));
    assert_eq!(core.settle().len(), 1, "the one of the other queue goes on");
    assert_eq!(core.arena.free_bytes(), core.arena.capacity_bytes());
}

#[test]
fn a_cancel_ends_what_waits_in_memory_and_before_it() {
    let mut core = Core::new(0, 191);
    core.attach_memory(0);
    core.present(vec![lun(2 << 20, &[(0, 2 << 20, 0, 0)])]);
    core.run(Op::Write, 0, 512, Some(&[1; 512])).1.expect("written");
    let read = core.request(Op::Read, 0, 512, None).may_lend(true);
    core.submit(read);
    let mut done = core.done.pop_front().expect("done at once");
    let loan = done.take_loan().expect("memory lends");
    core.done.push_back(done);
    let requests = [
        core.mine(Op::WriteZeroes { deallocate: false }, 0, 2 << 20),
        core.mine(Op::Write, 0, 512),
        core.request(Op::Write, 0, 512, None),
    ];
    requests.into_iter().for_each(|request| core.submit(request));
    assert_eq!(core.results(), [(2, Ok(()))], "only the read");
    core.cancel();
    assert_eq!(core.results(), [(4, Err(Fault::Aborted)), (3, Err(Fault::Aborted))]);
    drop(loan);
    core.with(|luns, cx| luns.on_turn(cx));
    assert_eq!(core.results(), [(5, Ok(()))], "the write of another queue");
    core.with(|luns, cx| luns.detach(cx, BackendId(0)));
    assert!(
        matches!(core.io.control.pop(), Some(Msg::Detached(BackendId(0), Some(_)))),
        "nothing is left there"
    );
}

#[test]
fn a_lost_request_does_not_keep_its_backend() {
    let (mut home, mut other) = (Core::new(0, 192), Core::new(1, 193));
    home.attach(0, 2 << 20, AttachKind::Remote { core: CoreId(1) });
    other.attach_memory(0);
    for core in [&mut home, &mut other] {
        core.present(vec![lun(2 << 20, &[(0, 2 << 20, 0, 0)])]);
    }
    // Let a write wait for a loan, so that the test can take the write out of the backlog.
    let read = other.request(Op::Read, 0, 512, None).may_lend(true);
    other.submit(read);
    let mut done = other.done.pop_front().expect("done at once");
    let loan = done.take_loan();
    other.done.push_back(done);
    assert_eq!(other.results(), [(1, Ok(()))]);
    let request = home.request(Op::Write, 0, 512, None);
    home.submit(request);
    let Some((CoreId(1), Msg::Submit(id, request))) = home.io.posts.pop_front() else {
        panic!("it goes there")
    };
    other.with(|luns, cx| luns.submit_backend(cx, id, request));
    for core in [&mut home, &mut other] {
        core.with(|luns, cx| luns.detach(cx, BackendId(0)));
        assert!(core.io.control.is_empty(), "a request is under way");
    }
    // A debug build panics if the request is dropped, so check what the drop would report.
    let mut lost = other.luns.waiting.pop(&mut other.luns.channels[0].line).expect("it waits");
    let trefoil_poll::lost::Lost::Request { identity, holder } = lost.loss() else { panic!("a request") };
    assert_eq!(identity, lost.origin.pack());
    home.arena.free(lost.buf.take().expect("its block"));
    std::mem::forget(lost);
    assert_eq!(Rest::holder(holder), (BackendId(0), CoreId(1)));
    for core in [&mut home, &mut other] {
        core.with(|luns, cx| luns.on_lost(cx, BackendId(0)));
        assert!(matches!(core.io.control.pop(), Some(Msg::Detached(BackendId(0), Some(_)))), "it can go");
    }
    drop(loan);
}

/// A request handles these other cases: a LUN that is in pieces, on another core, read-only, lent, waited for, or being
/// detached.
#[test]
fn what_is_in_this_cores_memory_needs_no_request() {
    let mut core = Core::new(0, 210);
    core.attach_memory(0);
    core.attach_file(1, 64 * KIB);
    let whole = lun(64 * KIB, &[(0, 64 * KIB, 0, 128 * KIB)]);
    let frozen = Lun { read_only: true, ..whole.clone() };
    let in_pieces = lun(64 * KIB, &[(0, 32 * KIB, 0, 0), (32 * KIB, 32 * KIB, 0, 64 * KIB)]);
    let elsewhere = lun(64 * KIB, &[(0, 64 * KIB, 1, 0)]);
    core.present(vec![whole, frozen, in_pieces, elsewhere]);
    let (end, all) = (64 * KIB, LunId(0));
    let luns = &mut core.luns;
    assert!(luns.write(all, end - 4, b"abcd"));
    let loan = luns.lend(LunId(1), end - 4, 4).expect("a read-only LUN can be read");
    assert_eq!(&*loan, b"abcd");
    assert!(!luns.write(all, end - 2, b"xy"), "lent");
    drop(loan);
    for (lun, at) in
        [(all, end - 1), (all, u64::MAX), (LunId(1), 0), (LunId(2), 0), (LunId(3), 0), (LunId(9), 0)]
    {
        assert!(!luns.write(lun, at, b"xy"), "{lun:?} at {at}");
    }
    assert!(luns.lend(all, end - 1, 2).is_none() && luns.lend(LunId(3), 0, 2).is_none());

    let loan = core.luns.lend(all, 0, 4).expect("free again");
    let waits = core.request(Op::Write, 0, 4, Some(b"wxyz"));
    core.submit(waits);
    assert!(!core.luns.write(all, 4, b"xy") && core.luns.lend(all, 4, 2).is_none(), "others wait");
    drop(loan);
    let (_, buf, result) = core.settle().remove(0);
    assert_eq!(result, Ok(()));
    buf.into_iter().for_each(|buf| core.arena.free(buf));
    assert_eq!(&*core.luns.lend(all, 0, 4).expect("nobody waits"), b"wxyz");

    core.with(|luns, cx| luns.detach(cx, BackendId(0)));
    assert!(!core.luns.write(all, 0, b"xy"), "gone");
}

/// There are more requests than slots at a file. The requests run in order, later requests queue behind them, and other
/// backends are not delayed.
#[test]
fn requests_that_wait_for_a_slot_run_in_order_and_delay_no_other_backend() {
    let mut core = Core::new(0, 211);
    core.attach(0, 64 * KIB, AttachKind::File { file: vec![7; 64 << 10], slots: File::slots(2) });
    core.attach_memory(1);
    let at = |backend| lun(64 * KIB, &[(0, 64 * KIB, backend, 0)]);
    core.present(vec![at(0), at(1)]);
    let places = File::slots(2).capacity() as u32;
    for _ in 0..places + 3 {
        let request = core.request(Op::Read, 0, 512, None);
        core.submit(request);
    }
    assert!(!core.with(|luns, cx| luns.on_turn(cx)), "nothing moves, and the core may sleep");

    assert!(core.luns.write(LunId(1), 0, b"memory is its own"));
    assert_eq!(core.luns.lend(LunId(1), 0, 6).as_deref(), Some(&b"memory"[..]));
    let mut read = core.request(Op::Read, 0, 512, None).may_lend(true);
    read.lun = LunId(1);
    core.submit(read);
    let mut done = core.done.pop_front().expect("memory has room");
    assert!(done.take_loan().is_some(), "and lends");
    core.done.push_back(done);
    let mut order: Vec<u32> = core.results().into_iter().map(|(slot, _)| slot).collect();

    // A slot is free, and a request arrives before the core takes its turn.
    let done = core.io.run_file_op().expect("the first");
    core.with(|luns, cx| luns.on_file(cx, done));
    let late = core.request(Op::Read, 0, 512, None);
    core.submit(late);
    assert!(core.with(|luns, cx| luns.on_turn(cx)), "one goes on");
    assert!(!core.with(|luns, cx| luns.on_turn(cx)), "and no other");
    for (slot, buf, result) in core.settle() {
        assert_eq!(result, Ok(()));
        buf.into_iter().for_each(|buf| core.arena.free(buf));
        order.push(slot);
    }
    let (waiting, other, last) = (1..=places + 3, places + 4, places + 5);
    assert_eq!(order, [other].into_iter().chain(waiting).chain([last]).collect::<Vec<_>>());
}

#[test]
fn a_cancel_leaves_the_others_in_line() {
    let mut core = Core::new(0, 212);
    core.attach(0, 64 * KIB, AttachKind::File { file: vec![7; 64 << 10], slots: File::slots(2) });
    core.present(vec![lun(64 * KIB, &[(0, 64 * KIB, 0, 0)])]);
    let places = File::slots(2).capacity() as u32;
    for slot in 1..=places + 4 {
        let request = core.request(Op::Read, 0, 512, None);
        core.submit(if slot > places && slot % 2 == 0 { request.of_stream(7) } else { request });
    }
    core.cancel();
    let waited = places + 1..=places + 4;
    let (mine, others): (Vec<u32>, Vec<u32>) = waited.partition(|slot| slot % 2 == 0);
    let aborted: Vec<_> = mine.into_iter().map(|slot| (slot, Err(Fault::Aborted))).collect();
    assert_eq!(core.results(), aborted);
    let mut order = Vec::new();
    for (slot, buf, _) in core.settle() {
        buf.into_iter().for_each(|buf| core.arena.free(buf));
        order.push(slot);
    }
    assert_eq!(order, (1..=places).chain(others).collect::<Vec<_>>());
}

#[test]
fn memory_that_is_trimmed_is_given_back_step_by_step_and_never_under_a_reader() {
    let mut core = Core::new(0, 171);
    let mut ram = Ram::new(Region::on_ordinary_pages(16 << 20).expect("memory for a test"));
    ram.range_mut(0, 16 << 20).expect("inside").fill(7);
    let len_bytes = ram.len_bytes();
    core.attach(0, len_bytes, AttachKind::Memory(Memory::new(ram, 2)));
    core.present(vec![lun(len_bytes, &[(0, len_bytes, 0, 0)])]);
    // A reader has a loan of bytes in the range of the third step.
    let loan = core.luns.lend(LunId(0), 5 << 20, 4096).expect("a loan");
    let request = core.request(Op::Deallocate, 512, len_bytes - 512, None);
    core.submit(request);
    let mut turns = 0;
    while core.with(|luns, cx| luns.on_turn(cx)) {
        turns += 1;
    }
    assert_eq!((turns, core.done.len()), (2, 0), "a step a turn, up to what is lent");
    assert!(core.luns.lend(LunId(0), 0, 512).is_none(), "no new loans meanwhile");
    assert_eq!(&*loan, &[7; 4096]);
    drop(loan);
    while core.with(|luns, cx| luns.on_turn(cx)) {
        turns += 1;
    }
    assert_eq!(turns, 8);
    assert_eq!(core.settle()[0].2, Ok(()));
    let read = |core: &mut Core, at| {
        let (bytes, result) = core.run(Op::Read, at, 4 * KIB, None);
        ((bytes[0], bytes[4095]), result)
    };
    assert_eq!(read(&mut core, 0), ((7, 7), Ok(())), "not a whole page");
    assert_eq!(read(&mut core, 4 * KIB), ((0, 0), Ok(())));
    assert_eq!(read(&mut core, len_bytes - 4 * KIB), ((0, 0), Ok(())));
}
