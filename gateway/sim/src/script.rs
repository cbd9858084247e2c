//! A fixed script of 4 KiB reads and writes against one core, for counting instructions.
//!
//! The script runs a gateway's core over [`SimIo`](crate::simio::SimIo). The core's only host has one I/O queue. The script
//! builds the bytes of the host's commands before it passes the bytes to the core. During the script, every call into the core
//! goes through [`counted`]. A profiler that collects only inside [`counted`] counts the gateway's own code. It does not count
//! the host, the script or the work of a kernel. The script checks the data that it reads.
//!
//! The script has no seed. No bytes arrive late or in another order, and no send is split. So the same code always gives the same
//! count.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use trefoil_poll::ram::Ram;
use trefoil_poll::rand::Rng;
use trefoil_poll::{Buf, CoreId, FileDone, FileOp, Handler, RecvInto, SendList, SockEvent, SockId};
use trefoil_storage::backend::{Attach, AttachKind, File, Memory};
use trefoil_storage::frontend::Capacity;
use trefoil_storage::topology::{
    Allow, BackendId, Extent, Lun, LunId, Namespace, Portal, PortalId, Subsystem, Topology,
};
use trefoil_storage::{CoreLimits, Msg, StorageCore, TargetLimits};
use trefoil_sys::region::Region;
use trefoil_wire::fabrics::{
    Connect, ConnectAttributes, ConnectData, DYNAMIC_CNTLID, FabricsCommand, Nqn, PropertySet, PropertySize,
};
use trefoil_wire::nvme::property::{Cc, offset};
use trefoil_wire::nvme::{BlockRange, Cqe, IoCommand, Sgl, Sqe};
use trefoil_wire::tcp::{C2hData, CapsuleCmd, CapsuleResp, CommonHeader, IcReq, PduType};

use crate::direct::{StorageMsg, StorageSim};
use crate::disk::DiskId;
use crate::memory::{arena, claim_home, crash_drop};
use crate::net::{ConnId, Side};
use crate::server::SUBSYSTEM;
use crate::simio::{Ask, SOCKETS, SimFile, SimSocket};

const HOST: &str = "nqn.2014-08.org.trefoil.sim:script";
const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;
const LUN_BYTES: u64 = BLOCKS * BLOCK as u64;
/// Time between two turns of the core.
const TURN: Duration = Duration::from_micros(10);
/// Number of commands before the count begins. These commands use each of the core's tables at least once.
const WARM_UP: u64 = 256;

/// The storage of the LUN's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The core's own memory, without a copy: the core sends read data from this memory and receives written data into it.
    Memory,
    /// A file whose operations complete at once. Every command becomes a request.
    File,
}

/// One script, which gives one figure.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// Name of the script on the command line.
    pub name: &'static str,
    /// The storage of the bytes.
    pub store: Store,
    /// True if the script writes instead of reading.
    pub writes: bool,
    /// Number of commands sent at a time.
    pub depth: u16,
}

/// All scripts.
pub const SCRIPTS: [Script; 6] = [
    Script { name: "read_4k_qd1", store: Store::Memory, writes: false, depth: 1 },
    Script { name: "read_4k_qd32", store: Store::Memory, writes: false, depth: 32 },
    Script { name: "write_4k_qd1", store: Store::Memory, writes: true, depth: 1 },
    Script { name: "write_4k_qd32", store: Store::Memory, writes: true, depth: 32 },
    Script { name: "file_read_4k_qd32", store: Store::File, writes: false, depth: 32 },
    Script { name: "file_write_4k_qd32", store: Store::File, writes: true, depth: 32 },
];

/// An event that the driver passes to the core.
enum Told<'a> {
    Bytes(SockId, &'a [u8]),
    Filled(SockId, Buf),
    Sent(SockId, Box<SendList>),
    File(FileDone),
    /// A message from the core itself, or from the control thread.
    Mail(Option<CoreId>, StorageMsg),
    Turn,
}

/// The only function that calls the core while the script runs. It is never inlined, so a profiler finds it by name.
#[inline(never)]
fn counted(core: &mut StorageCore<StorageSim>, io: &mut StorageSim, told: Told<'_>) -> bool {
    // Without `black_box`, this call would be a tail call, and the call of this function would end too early.
    black_box(tell(core, io, told))
}

#[inline(never)]
fn tell(core: &mut StorageCore<StorageSim>, io: &mut StorageSim, told: Told<'_>) -> bool {
    match told {
        // A separate call for each kind of event, as in a driver: the compiler then knows the event in each call.
        Told::Bytes(sock, bytes) => core.on_sock(io, sock, SockEvent::Received(bytes)),
        Told::Filled(sock, buf) => core.on_sock(io, sock, SockEvent::Filled(buf)),
        Told::Sent(sock, list) => core.on_sock(io, sock, SockEvent::Sent { list, result: Ok(()) }),
        Told::File(done) => core.on_file(io, done),
        Told::Mail(from, msg) => core.on_message(io, from, msg),
        Told::Turn => return core.on_turn(io),
    }
    true
}

/// Runs one script for at least `commands` counted commands: rounds `commands` up to a multiple of the script's depth. Returns
/// the number of counted commands.
///
/// # Errors
/// If a command failed, or if a block differed from the data written to it.
pub fn run(script: &Script, commands: u64) -> Result<u64> {
    let mut bench = Bench::new(script.store)?;
    let outcome = bench.run(script, commands);
    let counted = bench.counted_commands;
    // The core's connections are still open and hold blocks of memory, so a plain drop would panic in a debug build.
    crash_drop(bench);
    outcome.map(|()| counted)
}

/// A core, its driver and its host.
struct Bench {
    core: StorageCore<StorageSim>,
    io: StorageSim,
    receives: Vec<Option<RecvInto>>,
    /// Completions that the core receives at the next turn.
    sent: VecDeque<(SockId, Box<SendList>)>,
    files: VecDeque<FileDone>,
    mail: VecDeque<StorageMsg>,
    /// Bytes of the file, if the store is a file.
    file: Vec<u8>,
    /// Bytes that the core has sent on each socket.
    got: Vec<Vec<u8>>,
    counting: bool,
    counted_commands: u64,
    written: u64,
}

impl Bench {
    fn new(store: Store) -> Result<Self> {
        let target =
            TargetLimits { max_conns: SOCKETS, max_ctrlrs: 32, slots: 4096, ..TargetLimits::default() };
        let max_sockets = SOCKETS as u32;
        let limits = CoreLimits { max_sockets, host_sockets: max_sockets, target, foreign_requests: 16 };
        let capacity = Arc::new(Capacity::new(16, max_sockets));
        let io = StorageSim::new(CoreId(0), 1, Rng::new(1));
        let core = StorageCore::new(&io, arena(claim_home(), 32 << 20), limits, capacity);
        let mut bench = Self {
            core,
            io,
            receives: (0..SOCKETS).map(|_| None).collect(),
            sent: VecDeque::new(),
            files: VecDeque::new(),
            mail: VecDeque::new(),
            file: Vec::new(),
            got: vec![Vec::new(); SOCKETS],
            counting: false,
            counted_commands: 0,
            written: 0,
        };
        let kind = match store {
            Store::Memory => {
                AttachKind::Memory(Memory::new(Ram::new(Region::anonymous(LUN_BYTES as usize)?), 1))
            }
            Store::File => {
                bench.file = vec![0; LUN_BYTES as usize];
                AttachKind::File { file: SimFile(DiskId(0)), slots: File::slots(4096) }
            }
        };
        let attach = Attach { len_bytes: LUN_BYTES, block_bytes: 512, kind, id: BackendId(0) };
        bench.tell(Told::Mail(None, Msg::Attach(BackendId(0), Box::new(attach))));
        bench.tell(Told::Mail(None, Msg::Topology(Arc::new(topology()))));
        bench.settle();
        Ok(bench)
    }

    fn run(&mut self, script: &Script, commands: u64) -> Result<()> {
        let queue = self.connect()?;
        let mut rng = Rng::new(4);
        let mut stamps = vec![0; BLOCKS as usize];
        for lba in 0..BLOCKS {
            self.exchange(queue, true, &[lba], &mut stamps)?;
        }
        let depth = u64::from(script.depth);
        for batch in 0..(WARM_UP + commands).div_ceil(depth) {
            self.counting = batch >= WARM_UP.div_ceil(depth);
            // No batch contains a block twice. If it did, the data would depend on the order of the commands.
            let first = rng.below(BLOCKS);
            let lbas: Vec<u64> = (0..depth).map(|at| (first + at * 29) % BLOCKS).collect();
            self.exchange(queue, script.writes, &lbas, &mut stamps)?;
        }
        Ok(())
    }

    fn tell(&mut self, told: Told<'_>) -> bool {
        let worked = match self.counting {
            true => counted(&mut self.core, &mut self.io, told),
            false => tell(&mut self.core, &mut self.io, told),
        };
        self.carry_out();
        worked
    }

    /// Carries out the core's calls to its driver.
    fn carry_out(&mut self) {
        while let Some(ask) = self.io.asked.pop_front() {
            match ask {
                Ask::Recv(sock, into) => self.receives[sock.0 as usize] = Some(into),
                Ask::Send(sock, list) => {
                    list.pieces().for_each(|piece| self.got[sock.0 as usize].extend_from_slice(piece));
                    self.sent.push_back((sock, list));
                }
                Ask::File(_, op, token) => {
                    let done = self.file_op(op, token);
                    self.files.push_back(done);
                }
                Ask::Close(sock) => unreachable!("{sock:?} is closed in the middle of the script"),
                // The script has no peer for these calls.
                Ask::Adopt(..) | Ask::Attach(..) | Ask::PostControl(_) => {}
                Ask::Post(_, msg) => self.mail.push_back(msg),
                Ask::Connect(..) | Ask::Detach(_) => unreachable!("a core without arrays"),
            }
        }
    }

    fn file_op(&mut self, op: FileOp, token: u64) -> FileDone {
        let range = |offset: u64, len: u32| offset as usize..offset as usize + len as usize;
        let buf = match op {
            FileOp::Read { mut buf, at, len, offset } => {
                buf[range(u64::from(at), len)].copy_from_slice(&self.file[range(offset, len)]);
                Some(buf)
            }
            FileOp::Write { buf, at, len, offset, .. } => {
                self.file[range(offset, len)].copy_from_slice(&buf[range(u64::from(at), len)]);
                Some(buf)
            }
            FileOp::Sync | FileOp::Zero { .. } | FileOp::Punch { .. } => None,
        };
        FileDone { token, buf, result: Ok(()) }
    }

    /// Gives the core turns until the core has no more work and no completion or message waits for it.
    fn settle(&mut self) {
        loop {
            self.io.now = self.io.now + TURN;
            let mut worked = false;
            for (sock, list) in std::mem::take(&mut self.sent) {
                self.io.socks[sock.0 as usize].sending = false;
                worked |= self.tell(Told::Sent(sock, list));
            }
            for done in std::mem::take(&mut self.files) {
                worked |= self.tell(Told::File(done));
            }
            for msg in std::mem::take(&mut self.mail) {
                worked |= self.tell(Told::Mail(Some(CoreId(0)), msg));
            }
            worked |= self.tell(Told::Turn);
            if !worked && self.sent.is_empty() && self.files.is_empty() && self.mail.is_empty() {
                return;
            }
        }
    }

    /// Passes all of `bytes` to the core on a connection, in the parts that the core asks for.
    fn deliver(&mut self, sock: SockId, mut bytes: &[u8]) -> Result<()> {
        let at = sock.0 as usize;
        while !bytes.is_empty() {
            if self.receives[at].is_none() {
                self.settle();
            }
            let into = self.receives[at].take().context("the core takes no more bytes")?;
            self.io.socks[at].receiving = false;
            match into {
                RecvInto::Stream { max_bytes } => {
                    let (now, later) = bytes.split_at(bytes.len().min(max_bytes as usize));
                    bytes = later;
                    self.tell(Told::Bytes(sock, now));
                }
                RecvInto::Buf { mut buf, at, len } => {
                    let Some((now, later)) = bytes.split_at_checked(len as usize) else {
                        bail!("the core waits for more bytes than a command has")
                    };
                    bytes = later;
                    buf[at as usize..][..now.len()].copy_from_slice(now);
                    self.tell(Told::Filled(sock, buf));
                }
            }
        }
        self.settle();
        Ok(())
    }

    /// Opens a connection, sends ICReq, and checks the answer.
    fn dial(&mut self) -> Result<SockId> {
        let socket = SimSocket { conn: ConnId(0), side: Side::Server, _held: Arc::new(()) };
        let used = self.receives.iter().position(Option::is_none).unwrap_or_default();
        let (local, peer) = ("10.0.0.1:4420".parse()?, "10.0.0.2:40000".parse()?);
        self.tell(Told::Mail(
            None,
            Msg::Adopt { socket, portal: PortalId(0), local, peer, initialized: false },
        ));
        let sock = SockId(used as u32);
        ensure!(self.receives[used].is_some(), "the connection was not adopted");
        let mut bytes = [0; IcReq::LEN];
        IcReq { host_alignment_bytes: 4, header_digest: false, data_digest: false, max_r2t: 1 }
            .emit(&mut bytes);
        self.deliver(sock, &bytes)?;
        let answers = self.answers(sock)?;
        ensure!(answers.is_empty() && !self.receives.is_empty(), "the core sent more than ICResp");
        Ok(sock)
    }

    /// Enables a controller with one I/O queue. Returns the queue's connection.
    fn connect(&mut self) -> Result<SockId> {
        let admin = self.dial()?;
        let cntlid = self.one(admin, &connect(0, DYNAMIC_CNTLID)?)?.result as u16;
        let cc = Cc { en: true, iosqes: 6, iocqes: 4, ..Cc::default() };
        let set = PropertySet { size: PropertySize::Four, offset: offset::CC, value: u64::from(cc.bits()) };
        self.one(admin, &capsule(FabricsCommand::PropertySet(set).sqe(1, Sgl::NONE), &[]))?;
        let queue = self.dial()?;
        self.one(queue, &connect(1, cntlid)?)?;
        Ok(queue)
    }

    /// Sends a command, and returns its completion.
    fn one(&mut self, sock: SockId, bytes: &[u8]) -> Result<Cqe> {
        self.deliver(sock, bytes)?;
        match self.answers(sock)?.as_slice() {
            [Answer::Response(cqe)] => Ok(*cqe),
            other => bail!("{} answers to one command", other.len()),
        }
    }

    /// Sends one read or write command for each block, all commands together. Then checks the answers.
    fn exchange(&mut self, queue: SockId, writes: bool, lbas: &[u64], stamps: &mut [u64]) -> Result<()> {
        let mut bytes = Vec::new();
        for (cid, &lba) in lbas.iter().enumerate() {
            let range = BlockRange::new(lba * (BLOCK as u64 / 512), BLOCK as u32 / 512);
            let (cid, len_bytes) = (cid as u16, BLOCK as u32);
            if writes {
                self.written += 1;
                stamps[lba as usize] = self.written;
                let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes };
                bytes.extend(capsule(IoCommand::Write(range).sqe(cid, 1, sgl), &block(lba, self.written)));
            } else {
                let sgl = Sgl::Transport { len_bytes };
                bytes.extend(capsule(IoCommand::Read(range).sqe(cid, 1, sgl), &[]));
            }
        }
        self.deliver(queue, &bytes)?;
        let answers = self.answers(queue)?;
        ensure!(answers.len() == lbas.len(), "{} answers to {} commands", answers.len(), lbas.len());
        for answer in answers {
            match answer {
                Answer::Response(cqe) => ensure!(writes, "command {} came back without data", cqe.cid),
                Answer::Data(cid, data) => {
                    let lba =
                        *lbas.get(usize::from(cid)).context("the core sent data for an unknown command")?;
                    ensure!(
                        data == block(lba, stamps[lba as usize]),
                        "block {lba} differs from the data written to it"
                    );
                }
            }
        }
        self.counted_commands += if self.counting { lbas.len() as u64 } else { 0 };
        Ok(())
    }

    /// Takes the answers that the core has sent. Returns an error if a command failed.
    fn answers(&mut self, sock: SockId) -> Result<Vec<Answer>> {
        let bytes = std::mem::take(&mut self.got[sock.0 as usize]);
        let (mut rest, mut answers) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let common = CommonHeader::parse(rest.first_chunk().context("half a header")?)?;
            let (pdu, after) = rest.split_at_checked(common.plen as usize).context("half a PDU")?;
            rest = after;
            match common.pdu_type {
                PduType::IcResp => {}
                PduType::CapsuleResp => {
                    let cqe =
                        CapsuleResp::parse(pdu.first_chunk().context("a PDU of fewer than 24 bytes")?).cqe;
                    ensure!(cqe.status.is_ok(), "command {} failed: {}", cqe.cid, cqe.status);
                    answers.push(Answer::Response(cqe));
                }
                PduType::C2hData => {
                    let data = pdu
                        .get(usize::from(common.pdo)..)
                        .context("a data offset past the end of the PDU")?;
                    let header = C2hData::parse(
                        pdu.first_chunk().context("a PDU of fewer than 24 bytes")?,
                        data.len() as u32,
                    )?;
                    ensure!(header.last && header.success, "a read was answered with more than one PDU");
                    answers.push(Answer::Data(header.cid, data.to_vec()));
                }
                other => bail!("{other:?} from the controller"),
            }
        }
        Ok(answers)
    }
}

/// The answer to a command.
enum Answer {
    Response(Cqe),
    /// Data with the SUCCESS flag. No response follows.
    Data(u16, Vec<u8>),
}

/// Returns the data written to a block.
fn block(lba: u64, stamp: u64) -> Vec<u8> {
    let word = (lba << 32 | stamp).to_le_bytes();
    word.iter().copied().cycle().take(BLOCK).collect()
}

fn capsule(sqe: Sqe, data: &[u8]) -> Vec<u8> {
    let mut header = [0; CapsuleCmd::LEN];
    let common = CapsuleCmd { sqe }.emit(false, false, 4, data.len() as u32, &mut header);
    let mut bytes = header.to_vec();
    if !data.is_empty() {
        bytes.resize(usize::from(common.pdo), 0);
        bytes.extend(data);
    }
    bytes
}

fn connect(qid: u16, cntlid: u16) -> Result<Vec<u8>> {
    let attributes = ConnectAttributes { no_sq_flow_control: true, ..ConnectAttributes::default() };
    let sqsize = if qid == 0 { 31 } else { 127 };
    let connect = Connect { recfmt: 0, qid, sqsize, attributes, kato_ms: 0 };
    let data =
        ConnectData { hostid: [9; 16], cntlid, subnqn: Nqn::new(SUBSYSTEM)?, hostnqn: Nqn::new(HOST)? };
    let mut bytes = vec![0; ConnectData::LEN];
    data.emit(bytes.first_chunk_mut().context("1024 bytes")?);
    let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: bytes.len() as u32 };
    Ok(capsule(FabricsCommand::Connect(connect).sqe(0, sgl), &bytes))
}

/// Returns a topology with one LUN for every host.
fn topology() -> Topology {
    let extent = Extent { lun_offset: 0, len: LUN_BYTES, backend: BackendId(0), backend_offset: 0 };
    let lun = Lun {
        name: "lun".into(),
        block_bytes: 512,
        blocks: LUN_BYTES / 512,
        uuid: [1; 16],
        nguid: [1; 16],
        extents: vec![extent],
        read_only: false,
    };
    let namespace = Namespace { nsid: 1, lun: LunId(0), hosts: Allow::Any, ana_group: 1, ana_state: 1 };
    let subsystem = Subsystem {
        nqn: SUBSYSTEM.into(),
        serial: "SIM".into(),
        model: "Trefoil".into(),
        hosts: Allow::Any,
        portals: vec![PortalId(0)],
        namespaces: vec![namespace],
        max_namespaces: 8,
        cntlid_range: (1, 0xFFEF),
    };
    Topology {
        epoch: 1,
        luns: vec![Some(lun)],
        subsystems: vec![subsystem],
        portals: vec![Some(Portal { listen: ([10, 0, 0, 1], 4420).into() })],
        ..Topology::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_runs_and_counts_what_it_was_asked_for() {
        for script in &SCRIPTS {
            let counted = run(script, 64).unwrap_or_else(|error| panic!("{}: {error:#}", script.name));
            assert_eq!(counted, 64, "{}", script.name);
        }
    }
}
