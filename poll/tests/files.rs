//! The io_uring driver against real files, with O_DIRECT where the file system supports it.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use trefoil_poll::*;
use trefoil_sys::region::Region;

/// One step of a script, and its expected result.
#[derive(Debug)]
enum Step {
    Write { offset: u64, len: u32, fill: u8, durable: bool },
    Read { offset: u64, len: u32, fill: u8 },
    ReadFails { offset: u64, len: u32, errno: i32 },
    Sync,
    Zero { offset: u64, len: u64 },
    Punch { offset: u64, len: u64 },
}

enum Msg {
    Run(OwnedFd, Vec<Step>),
    Done,
}

/// Runs a script step by step.
struct Files {
    arena: Arena,
    file: Option<FileId>,
    steps: std::vec::IntoIter<Step>,
    current: Option<Step>,
    token: u64,
}

impl Files {
    fn next<I: Io<Msg = Msg>>(&mut self, io: &mut I) {
        let file = self.file.expect("a file");
        self.current = self.steps.next();
        let Some(step) = &self.current else {
            io.detach_file(file);
            return io.post_control(Msg::Done);
        };
        // Blocks start at page 1, so that the offset within a block is used too.
        let mut alloc = |len: u32| self.arena.alloc(len as usize + 4096).expect("room");
        let op = match *step {
            Step::Write { offset, len, fill, durable } => {
                let mut buf = alloc(len);
                buf.fill(!fill);
                buf[4096..4096 + len as usize].fill(fill);
                FileOp::Write { buf, at: 4096, len, offset, durable }
            }
            Step::Read { offset, len, fill } => {
                let mut buf = alloc(len);
                buf.fill(!fill);
                FileOp::Read { buf, at: 4096, len, offset }
            }
            Step::ReadFails { offset, len, .. } => FileOp::Read { buf: alloc(len), at: 4096, len, offset },
            Step::Sync => FileOp::Sync,
            Step::Zero { offset, len } => FileOp::Zero { offset, len },
            Step::Punch { offset, len } => FileOp::Punch { offset, len },
        };
        self.token += 1;
        io.file(file, op, self.token);
    }
}

impl<I: Io<Msg = Msg, File = OwnedFd>> Handler<I> for Files {
    fn on_sock(&mut self, _: &mut I, _: SockId, _: SockEvent<'_>) {}

    fn on_file(&mut self, io: &mut I, done: FileDone) {
        assert_eq!(done.token, self.token);
        let step = self.current.take().expect("a step");
        match step {
            Step::ReadFails { errno, .. } => assert_eq!(done.result, Err(FileError(errno)), "{step:?}"),
            _ => assert_eq!(done.result, Ok(()), "{step:?}"),
        }
        if let Step::Read { len, fill, .. } = step {
            let buf = done.buf.as_ref().expect("its block");
            let (before, read) = buf[..4096 + len as usize].split_at(4096);
            assert!(read.iter().all(|&b| b == fill), "{step:?}");
            assert!(before.iter().all(|&b| b == !fill), "wrote before its place: {step:?}");
        }
        done.buf.into_iter().for_each(|buf| self.arena.free(buf));
        self.next(io);
    }

    fn on_message(&mut self, io: &mut I, _: Option<CoreId>, msg: Msg) {
        if let Msg::Run(fd, steps) = msg {
            self.file = Some(io.attach_file(fd).expect("a slot"));
            self.steps = steps.into_iter();
            self.next(io);
        }
    }

    fn on_turn(&mut self, _: &mut I) -> bool {
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}

fn script() -> Vec<Step> {
    let mib = 1 << 20;
    vec![
        Step::Write { offset: 0, len: mib, fill: 7, durable: false },
        Step::Write { offset: 4096, len: 4096, fill: 8, durable: true },
        Step::Sync,
        Step::Read { offset: 0, len: 4096, fill: 7 },
        Step::Read { offset: 4096, len: 4096, fill: 8 },
        Step::Read { offset: 8192, len: mib - 8192, fill: 7 },
        Step::Zero { offset: 8192, len: 8192 },
        Step::Read { offset: 8192, len: 8192, fill: 0 },
        Step::Punch { offset: 65536, len: 65536 },
        Step::Read { offset: 65536, len: 65536, fill: 0 },
        Step::Read { offset: 131072, len: mib - 131072, fill: 7 },
        Step::ReadFails { offset: u64::from(mib), len: 4096, errno: libc::EIO },
        Step::ReadFails { offset: u64::from(mib) - 4096, len: 8192, errno: libc::EIO },
    ]
}

fn run(arena_id: u16, register: bool, direct: bool, faults: Option<Faults>) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(dir.path().join("disk")).expect("a file");
    let uring =
        UringConfig { max_sockets: 1, max_files: 1, max_file_ops: 1, faults, ..UringConfig::default() };
    let config = CoreConfig { uring, ..CoreConfig::default() };
    let Mesh { mut ports, mut to_cores, mut from_cores } = mesh(1, MeshBounds::default()).expect("mailboxes");
    let core = spawn(config, ports.remove(0), move |io| {
        let arena = Arena::new(ArenaId(arena_id), Region::anonymous(8 << 20).expect("memory"));
        if register {
            // Where memory can't be pinned, registration fails, and this test repeats the plain operations.
            let _ = io.register_arenas(&[&arena]);
        }
        Files { arena, file: None, steps: Vec::new().into_iter(), current: None, token: 0 }
    })
    .expect("a core");
    assert!(to_cores[0].send(Msg::Run(file.into(), script())).is_ok());
    while !core.is_finished() && !matches!(from_cores.pop(), Some((_, Msg::Done))) {
        std::thread::yield_now();
    }
    core.stop();
    let files = core.join().expect("it ended well");
    assert_eq!(files.arena.free_bytes(), files.arena.capacity_bytes());
    assert!(files.current.is_none() && files.steps.len() == 0, "the script did not end");
}

#[test]
fn buffered() {
    run(100, false, false, None);
}

#[test]
fn direct_with_registered_memory() {
    run(101, true, true, None);
}

#[test]
fn direct_with_plain_memory() {
    run(102, false, true, None);
}

#[test]
fn with_short_transfers() {
    run(103, true, true, Some(Faults { seed: 5, short_per_mille: 700, cancel_per_mille: 0 }));
}
