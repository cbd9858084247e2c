//! A driver for this crate's unit tests. Files are byte vectors, and messages are kept for the test.

use crate::backend::Attach;
use crate::msg::Msg;
use std::collections::VecDeque;
use std::net::SocketAddr;
use trefoil_poll::{
    CoreId, FileDone, FileError, FileId, FileOp, Instant, Io, RecvInto, SendList, SockId, TableFull,
};

type TestMsg = Msg<(), Attach<Vec<u8>>>;

/// A driver that refuses sockets. File operations wait in `ops` until the test runs them.
pub struct TestIo {
    pub core: CoreId,
    pub files: Vec<Vec<u8>>,
    pub detached: Vec<FileId>,
    pub ops: VecDeque<(FileId, FileOp, u64)>,
    pub posts: VecDeque<(CoreId, TestMsg)>,
    pub control: Vec<TestMsg>,
    /// The operations that ran, by name, for tests that check their order.
    pub story: Vec<(u32, &'static str)>,
    /// Errors (errno) for operations of these names.
    pub errors: Vec<(&'static str, i32)>,
}

impl TestIo {
    pub fn new(core: u16) -> Self {
        Self {
            core: CoreId(core),
            files: Vec::new(),
            detached: Vec::new(),
            ops: VecDeque::new(),
            posts: VecDeque::new(),
            control: Vec::new(),
            story: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Runs the oldest file operation.
    pub fn run_file_op(&mut self) -> Option<FileDone> {
        let (file, op, token) = self.ops.pop_front()?;
        let bytes = &mut self.files[file.0 as usize];
        let (name, buf) = match op {
            FileOp::Read { mut buf, at, len, offset } => {
                let (at, len, offset) = (at as usize, len as usize, offset as usize);
                buf[at..at + len].copy_from_slice(&bytes[offset..offset + len]);
                ("read", Some(buf))
            }
            FileOp::Write { buf, at, len, offset, durable } => {
                let (at, len, offset) = (at as usize, len as usize, offset as usize);
                bytes[offset..offset + len].copy_from_slice(&buf[at..at + len]);
                (if durable { "write durable" } else { "write" }, Some(buf))
            }
            FileOp::Sync => ("sync", None),
            FileOp::Zero { offset, len } => {
                if !self.errors.iter().any(|e| e.0 == "zero") {
                    bytes[offset as usize..(offset + len) as usize].fill(0);
                }
                ("zero", None)
            }
            FileOp::Punch { offset, len } => {
                if !self.errors.iter().any(|e| e.0 == "punch") {
                    bytes[offset as usize..(offset + len) as usize].fill(0);
                }
                ("punch", None)
            }
        };
        self.story.push((file.0, name));
        let error = self.errors.iter().find(|e| e.0 == name);
        Some(FileDone { token, buf, result: error.map_or(Ok(()), |e| Err(FileError(e.1))) })
    }
}

impl Io for TestIo {
    type Socket = ();
    type File = Vec<u8>;
    type Msg = TestMsg;

    fn now(&self) -> Instant {
        Instant::from_ns(0)
    }

    fn random(&mut self) -> u64 {
        4
    }

    fn core(&self) -> CoreId {
        self.core
    }

    fn cores(&self) -> u16 {
        2
    }

    fn adopt(&mut self, socket: ()) -> Result<SockId, ()> {
        Err(socket)
    }

    fn connect(&mut self, _to: SocketAddr) -> Result<SockId, TableFull> {
        Err(TableFull)
    }

    fn recv(&mut self, sock: SockId, _into: RecvInto) {
        panic!("{sock:?} is not open");
    }

    fn send(&mut self, sock: SockId, _list: Box<SendList>) {
        panic!("{sock:?} is not open");
    }

    fn close(&mut self, sock: SockId) {
        panic!("{sock:?} is not open");
    }

    fn attach_file(&mut self, file: Vec<u8>) -> Result<FileId, Vec<u8>> {
        self.files.push(file);
        Ok(FileId(self.files.len() as u32 - 1))
    }

    fn detach_file(&mut self, file: FileId) {
        self.detached.push(file);
    }

    fn file(&mut self, file: FileId, op: FileOp, token: u64) {
        self.ops.push_back((file, op, token));
    }

    fn post(&mut self, to: CoreId, msg: Self::Msg) {
        self.posts.push_back((to, msg));
    }

    fn post_control(&mut self, msg: Self::Msg) {
        self.control.push(msg);
    }
}
