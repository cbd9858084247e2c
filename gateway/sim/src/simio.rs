//! The simulator's [`Io`]: checks that the machine follows the rules of the trait, and records the machine's calls.
//!
//! The world carries out the recorded calls after the machine returns. Nothing in this module touches the world.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use trefoil_poll::rand::Rng;
use trefoil_poll::{CoreId, FileId, FileOp, Instant, Io, RecvInto, SendList, SockId, TableFull};

use crate::disk::DiskId;
use crate::net::{ConnId, Side};

/// Number of sockets that one simulated core can have.
pub const SOCKETS: usize = 256;
/// Number of files that one simulated core can have.
pub const FILES: usize = 64;

/// One end of a connection that belongs to no core. Dropping this socket closes the connection.
#[derive(Debug)]
pub struct SimSocket {
    pub(crate) conn: ConnId,
    pub(crate) side: Side,
    /// The world holds a clone of this value. When only the world's clone is left, the world knows that the socket was dropped.
    pub(crate) _held: Arc<()>,
}

/// An open disk that belongs to no core.
#[derive(Debug)]
pub struct SimFile(pub(crate) DiskId);

pub(crate) enum Ask<M> {
    Adopt(SockId, SimSocket),
    Connect(SockId, SocketAddr),
    Recv(SockId, RecvInto),
    Send(SockId, Box<SendList>),
    Close(SockId),
    Attach(FileId, SimFile),
    Detach(FileId),
    File(FileId, FileOp, u64),
    Post(CoreId, M),
    PostControl(M),
}

/// State of a socket or file, which determines the calls that a machine may make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manners {
    pub open: bool,
    pub connected: bool,
    pub closing: bool,
    pub receiving: bool,
    pub sending: bool,
}

/// The driver of one simulated core. `M` is the type of messages between cores.
pub struct SimIo<M> {
    pub(crate) now: Instant,
    rng: Rng,
    core: CoreId,
    cores: u16,
    pub(crate) socks: Vec<Manners>,
    pub(crate) files: Vec<Manners>,
    pub(crate) asked: VecDeque<Ask<M>>,
    /// The deliberate defect in the machine's code.
    pub(crate) broken: Option<&'static str>,
    /// Turns of this core that ended while a request was waiting for its backend.
    pub(crate) waits: u64,
}

impl<M> SimIo<M> {
    pub(crate) fn new(core: CoreId, cores: u16, rng: Rng) -> Self {
        Self {
            now: Instant::default(),
            rng,
            core,
            cores,
            socks: vec![Manners::default(); SOCKETS],
            files: vec![Manners::default(); FILES],
            asked: VecDeque::new(),
            broken: None,
            waits: 0,
        }
    }

    /// Returns whether the machine has closed `sock` but has not yet been told that the close is complete. Only test machines
    /// that keep no state of their own need this.
    pub fn is_closing(&self, sock: SockId) -> bool {
        self.socks[sock.0 as usize].closing
    }

    fn sock(&mut self, sock: SockId, what: &str) -> &mut Manners {
        let manners = &mut self.socks[sock.0 as usize];
        assert!(manners.open, "{what} on {sock:?}, which is not open");
        manners
    }

    fn file_of(&self, file: FileId, what: &str) {
        assert!(self.files[file.0 as usize].open, "{what} on {file:?}, which is not attached");
    }
}

fn claim(table: &mut [Manners], connected: bool) -> Option<u32> {
    let free = table.iter().position(|m| !m.open)?;
    table[free] = Manners { open: true, connected, ..Manners::default() };
    Some(free as u32)
}

impl<M: Send> Io for SimIo<M> {
    type Socket = SimSocket;
    type File = SimFile;
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
        self.cores
    }

    fn adopt(&mut self, socket: SimSocket) -> Result<SockId, SimSocket> {
        let Some(id) = claim(&mut self.socks, true) else { return Err(socket) };
        self.asked.push_back(Ask::Adopt(SockId(id), socket));
        Ok(SockId(id))
    }

    fn connect(&mut self, to: SocketAddr) -> Result<SockId, TableFull> {
        let id = SockId(claim(&mut self.socks, false).ok_or(TableFull)?);
        self.asked.push_back(Ask::Connect(id, to));
        Ok(id)
    }

    fn recv(&mut self, sock: SockId, into: RecvInto) {
        let manners = self.sock(sock, "recv");
        assert!(manners.connected && !manners.closing, "recv on {sock:?}: {manners:?}");
        assert!(!std::mem::replace(&mut manners.receiving, true), "a second recv on {sock:?}");
        match &into {
            RecvInto::Stream { max_bytes } => assert!(*max_bytes > 0, "recv of nothing on {sock:?}"),
            RecvInto::Buf { buf, at, len } => {
                let end = u64::from(*at) + u64::from(*len);
                assert!(*len > 0 && end <= buf.len() as u64, "recv of {at}+{len} into {buf:?}");
            }
        }
        self.asked.push_back(Ask::Recv(sock, into));
    }

    fn send(&mut self, sock: SockId, list: Box<SendList>) {
        let manners = self.sock(sock, "send");
        assert!(manners.connected && !manners.closing, "send on {sock:?}: {manners:?}");
        assert!(!std::mem::replace(&mut manners.sending, true), "a second send on {sock:?}");
        self.asked.push_back(Ask::Send(sock, list));
    }

    fn close(&mut self, sock: SockId) {
        if !std::mem::replace(&mut self.sock(sock, "close").closing, true) {
            self.asked.push_back(Ask::Close(sock));
        }
    }

    fn attach_file(&mut self, file: SimFile) -> Result<FileId, SimFile> {
        let Some(id) = claim(&mut self.files, true) else { return Err(file) };
        self.asked.push_back(Ask::Attach(FileId(id), file));
        Ok(FileId(id))
    }

    fn detach_file(&mut self, file: FileId) {
        self.file_of(file, "detach");
        let manners = &mut self.files[file.0 as usize];
        assert!(!std::mem::replace(&mut manners.closing, true), "{file:?} detached twice");
        self.asked.push_back(Ask::Detach(file));
    }

    fn file(&mut self, file: FileId, op: FileOp, token: u64) {
        self.file_of(file, "an operation");
        assert!(!self.files[file.0 as usize].closing, "an operation on detached {file:?}");
        self.asked.push_back(Ask::File(file, op, token));
    }

    fn post(&mut self, to: CoreId, msg: M) {
        assert!(to.0 < self.cores, "a message to {to:?} of {}", self.cores);
        self.asked.push_back(Ask::Post(to, msg));
    }

    fn post_control(&mut self, msg: M) {
        self.asked.push_back(Ask::PostControl(msg));
    }

    fn is_broken(&self, mutation: &'static str) -> bool {
        self.broken == Some(mutation)
    }
}
