//! For tests: a driver that reports only the events that the test makes, and a small array that speaks NVMe/TCP.

use crate::backend::Attach;
use crate::msg::Msg;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use trefoil_poll::{
    Arena, ArenaId, CoreId, FileId, FileOp, Instant, Io, RecvInto, SendList, SockId, TableFull,
};
use trefoil_sys::region::Region;
use trefoil_wire::fabrics::{Connect, ConnectResponse, FabricsCommand, Nqn};
use trefoil_wire::nvme::feature::{NumberOfQueues, fid};
use trefoil_wire::nvme::identify::{IdentifyController, IdentifyNamespace, LbaFormat, cns, dlfeat};
use trefoil_wire::nvme::log::{AnaLogWriter, AnaState, ana_log_len, lid};
use trefoil_wire::nvme::property::{Cap, Cc, Csts, offset};
use trefoil_wire::nvme::{AdminCommand, Cqe, IoCommand, Sgl, Sqe, Status};
use trefoil_wire::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, CommonHeader, Framing, H2cData, IcReq, IcResp, PduType, R2t, Receiver,
    digest,
};

type TestMsg = Msg<(), Attach<()>>;

pub fn arena(id: u16, mib: usize) -> Arena {
    Arena::new(ArenaId(id), Region::anonymous(mib << 20).expect("memory for a test"))
}

pub fn identity() -> super::Identity {
    super::Identity {
        host_nqn: Nqn::new("nqn.2024-01.test:host").expect("an NQN"),
        host_id: [7; 16],
        subsystem_nqn: Nqn::new("nqn.2024-01.test:array").expect("an NQN"),
    }
}

pub fn address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 4420))
}

/// One socket as the test sees it.
#[derive(Default)]
pub struct Sock {
    pub connecting: bool,
    pub recv: Option<RecvInto>,
    pub sending: Option<Box<SendList>>,
    pub closing: bool,
    pub gone: bool,
}

/// A driver that records requests, so that the test answers them.
#[derive(Default)]
pub struct TestIo {
    pub now: Instant,
    pub socks: Vec<Sock>,
    pub posts: Vec<(CoreId, TestMsg)>,
    pub control: Vec<TestMsg>,
    pub core: u16,
    pub cores: u16,
    pub bits: u64,
}

impl TestIo {
    pub fn pass(&mut self, by: Duration) {
        self.now = self.now + by;
    }
}

impl Io for TestIo {
    type Socket = ();
    type File = ();
    type Msg = TestMsg;

    fn now(&self) -> Instant {
        self.now
    }
    fn random(&mut self) -> u64 {
        self.bits = self.bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.bits
    }
    fn core(&self) -> CoreId {
        CoreId(self.core)
    }
    fn cores(&self) -> u16 {
        self.cores
    }
    fn adopt(&mut self, socket: ()) -> Result<SockId, ()> {
        Err(socket)
    }
    fn connect(&mut self, _to: SocketAddr) -> Result<SockId, TableFull> {
        self.socks.push(Sock { connecting: true, ..Sock::default() });
        Ok(SockId(self.socks.len() as u32 - 1))
    }
    fn recv(&mut self, sock: SockId, into: RecvInto) {
        let sock = &mut self.socks[sock.0 as usize];
        assert!(sock.recv.is_none() && !sock.gone, "a second receive");
        sock.recv = Some(into);
    }
    fn send(&mut self, sock: SockId, list: Box<SendList>) {
        let sock = &mut self.socks[sock.0 as usize];
        assert!(sock.sending.is_none() && !sock.gone, "a second send");
        sock.sending = Some(list);
    }
    fn close(&mut self, sock: SockId) {
        self.socks[sock.0 as usize].closing = true;
    }
    fn attach_file(&mut self, file: ()) -> Result<FileId, ()> {
        Err(file)
    }
    fn detach_file(&mut self, _file: FileId) {}
    fn file(&mut self, _file: FileId, _op: FileOp, _token: u64) {
        unreachable!("no files here");
    }
    fn post(&mut self, to: CoreId, msg: Self::Msg) {
        self.posts.push((to, msg));
    }
    fn post_control(&mut self, msg: Self::Msg) {
        self.control.push(msg);
    }
}

/// The behaviour of the array.
#[derive(Clone, Debug)]
pub struct Manners {
    pub digests: (bool, bool),
    pub capsule_bytes: u32,
    pub max_h2c_bytes: u32,
    pub c2h_bytes: usize,
    pub success_flag: bool,
    pub queues: u16,
    pub mdts: u8,
    pub blocks: u64,
    pub mqes: u16,
    /// Write Zeroes: the bit in Identify Controller, and the status of the command.
    pub write_zeroes: (bool, Status),
    /// Dataset Management: the bit in Identify Controller, and the status of the command.
    pub dsm: (bool, Status),
    /// DLFEAT. The array behaves as it reports: deallocated blocks read as bits 2:0 say, and DEAC without bit 3 is an
    /// invalid field.
    pub dlfeat: u8,
    /// The state of the namespace's ANA group, if ANA is reported. `ana_groups` is the number of groups; the namespace
    /// is in the last one.
    pub ana: Option<AnaState>,
    pub ana_groups: u16,
    /// I/O commands end as the ANA state requires.
    pub heeds_ana: bool,
    pub read_only: bool,
    pub nguid: u8,
    pub eui64: u8,
    /// The status of Identify Namespace Descriptors.
    pub descriptors: Status,
    /// Connects of I/O queues are not answered.
    pub admin_only: bool,
    /// The array answers a read of this block with bytes that are no PDU.
    pub poison: Option<u64>,
    /// I/O commands are received but not answered.
    pub mute: bool,
    /// Admin commands are not answered either.
    pub deaf: bool,
    /// Flip a bit in the next C2HData's digest.
    pub corrupt_next: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            digests: (false, false),
            capsule_bytes: 4096,
            max_h2c_bytes: 8192,
            c2h_bytes: 16384,
            success_flag: true,
            queues: 8,
            mdts: 5,
            blocks: 4096,
            mqes: 127,
            write_zeroes: (true, Status::SUCCESS),
            dsm: (true, Status::SUCCESS),
            dlfeat: dlfeat::READS_ZEROS | dlfeat::DEAC,
            ana: None,
            ana_groups: 1,
            heeds_ana: true,
            read_only: false,
            nguid: 9,
            eui64: 0,
            descriptors: Status::SUCCESS,
            admin_only: false,
            poison: None,
            mute: false,
            deaf: false,
            corrupt_next: false,
        }
    }
}

/// One connection to the array.
pub struct Conn {
    framing: Framing,
    input: Vec<u8>,
    pub output: VecDeque<u8>,
    initialized: bool,
    pub qid: Option<u16>,
    pub sqsize: u16,
    cc: Cc,
    /// The writes whose data the array requests by R2T: each command with its received bytes.
    writes: Vec<(Sqe, Vec<u8>)>,
    /// The waiting event request.
    pub aer: Option<u16>,
    /// Commands that were not answered.
    pub unanswered: Vec<Sqe>,
}

impl Conn {
    pub fn new() -> Self {
        Self {
            framing: Framing { max_data_bytes: 1 << 20, ..Framing::initial(Receiver::Controller) },
            input: Vec::new(),
            output: VecDeque::new(),
            initialized: false,
            qid: None,
            sqsize: 0,
            cc: Cc::default(),
            writes: Vec::new(),
            aer: None,
            unanswered: Vec::new(),
        }
    }

    pub fn put(&mut self, header: &[u8], data: Option<(&[u8], bool)>) {
        self.output.extend(header);
        if self.framing.header_digest {
            self.output.extend(digest(header).to_le_bytes());
        }
        if let Some((data, corrupt)) = data {
            self.output.extend(data);
            if self.framing.data_digest {
                self.output.extend((digest(data) ^ u32::from(corrupt)).to_le_bytes());
            }
        }
    }

    pub fn respond(&mut self, cqe: Cqe) {
        let mut bytes = [0; CapsuleResp::LEN];
        CapsuleResp { cqe }.emit(self.framing.header_digest, &mut bytes);
        self.put(&bytes, None);
    }

    fn send_data(&mut self, manners: &mut Manners, cid: u16, data: &[u8], may_succeed: bool) {
        let count = data.chunks(manners.c2h_bytes).count();
        for (at, piece) in data.chunks(manners.c2h_bytes).enumerate() {
            let last = at + 1 == count;
            let pdu = C2hData {
                cid,
                offset_bytes: (at * manners.c2h_bytes) as u32,
                len_bytes: piece.len() as u32,
                last,
                success: last && may_succeed && manners.success_flag,
            };
            let mut bytes = [0; C2hData::LEN];
            pdu.emit(self.framing.header_digest, self.framing.data_digest, 4, &mut bytes);
            let corrupt = std::mem::take(&mut manners.corrupt_next);
            self.put(&bytes, Some((piece, corrupt)));
        }
        if !(may_succeed && manners.success_flag) {
            self.respond(Cqe::new(cid, 0, Status::SUCCESS));
        }
    }
}

/// A controller with one namespace of 512-byte blocks in memory.
pub struct Array {
    pub manners: Manners,
    pub disk: Vec<u8>,
    pub log: Vec<u8>,
    pub writes_seen: usize,
    /// The DEAC bit of each Write Zeroes.
    pub zeroes_seen: Vec<bool>,
    pub deallocates_seen: usize,
    pub ana_reads: usize,
    pub resets: usize,
    pub shutdowns: usize,
    pub aborts: Vec<u16>,
}

impl Array {
    pub fn new(manners: Manners) -> Self {
        let disk = vec![0; manners.blocks as usize * 512];
        Self {
            manners,
            disk,
            log: Vec::new(),
            writes_seen: 0,
            zeroes_seen: Vec::new(),
            deallocates_seen: 0,
            ana_reads: 0,
            resets: 0,
            shutdowns: 0,
            aborts: Vec::new(),
        }
    }

    /// Takes the host's bytes and answers them.
    pub fn feed(&mut self, conn: &mut Conn, bytes: &[u8]) {
        conn.input.extend(bytes);
        loop {
            let Some(common) = conn.input.first_chunk::<8>() else { return };
            let header = CommonHeader::parse(common).expect("our host's header");
            let layout = header.layout(&conn.framing).expect("our host's layout");
            if conn.input.len() < layout.total_len() as usize {
                return;
            }
            let pdu: Vec<u8> = conn.input.drain(..layout.total_len() as usize).collect();
            let head = layout.header_len as usize;
            if layout.header_digest_len > 0 {
                let hdgst = pdu[head..].first_chunk().expect("a digest");
                Framing::check_header_digest(&pdu[..head], hdgst).expect("our host's header digest");
            }
            let at = layout.before_data_len() as usize;
            let data = pdu[at..at + layout.data_len as usize].to_vec();
            if layout.data_digest_len > 0 {
                assert_eq!(pdu[at + data.len()..], digest(&data).to_le_bytes(), "our host's data digest");
            }
            self.take(conn, header.pdu_type, &pdu, data, layout.data_len);
        }
    }

    fn take(&mut self, conn: &mut Conn, kind: PduType, pdu: &[u8], data: Vec<u8>, data_len: u32) {
        match kind {
            PduType::IcReq => {
                let request = IcReq::parse(pdu.first_chunk().expect("128 bytes")).expect("our ICReq");
                let digests = self.manners.digests;
                conn.framing.header_digest = request.header_digest && digests.0;
                conn.framing.data_digest = request.data_digest && digests.1;
                let response = IcResp {
                    controller_alignment_bytes: 4,
                    header_digest: conn.framing.header_digest,
                    data_digest: conn.framing.data_digest,
                    max_h2c_data_bytes: self.manners.max_h2c_bytes,
                };
                let mut bytes = [0; IcResp::LEN];
                response.emit(&mut bytes);
                conn.output.extend(bytes);
                conn.initialized = true;
            }
            PduType::CapsuleCmd => {
                let sqe = CapsuleCmd::parse(pdu.first_chunk().expect("72 bytes")).sqe;
                self.command(conn, sqe, data);
            }
            PduType::H2cData => {
                let h2c =
                    H2cData::parse(pdu.first_chunk().expect("24 bytes"), data_len).expect("our H2CData");
                let at = conn.writes.iter().position(|(sqe, _)| sqe.cid == h2c.cid).expect("a write");
                let (sqe, got) = &mut conn.writes[at];
                assert_eq!(h2c.offset_bytes as usize, got.len());
                assert_eq!(h2c.ttag, 77);
                got.extend(data);
                let sqe = *sqe;
                if h2c.last {
                    if got.len() == sqe.sgl1.len_bytes() as usize {
                        let (sqe, data) = conn.writes.swap_remove(at);
                        self.io(conn, sqe, data);
                    } else {
                        let offset = got.len() as u32;
                        ask(conn, sqe, offset);
                    }
                }
            }
            PduType::H2cTermReq => {}
            other => panic!("a host sent {other:?}"),
        }
    }

    fn command(&mut self, conn: &mut Conn, sqe: Sqe, data: Vec<u8>) {
        if sqe.opcode == trefoil_wire::nvme::FABRICS_OPCODE {
            return self.fabrics(conn, sqe);
        }
        match conn.qid {
            Some(0) => self.admin(conn, sqe),
            Some(_) => match sqe.sgl1 {
                Sgl::Transport { .. } if sqe.opcode == trefoil_wire::nvme::io_opcode::WRITE => {
                    conn.writes.push((sqe, Vec::new()));
                    ask(conn, sqe, 0);
                }
                _ => self.io(conn, sqe, data),
            },
            None => panic!("a command before Connect"),
        }
    }

    fn fabrics(&mut self, conn: &mut Conn, sqe: Sqe) {
        let mut cqe = Cqe::new(sqe.cid, 0, Status::SUCCESS);
        match FabricsCommand::parse(&sqe) {
            FabricsCommand::Connect(Connect { qid: 1.., .. }) if self.manners.admin_only => return,
            FabricsCommand::Connect(Connect { qid, sqsize, .. }) => {
                (conn.qid, conn.sqsize) = (Some(qid), sqsize);
                cqe = ConnectResponse::Connected { cntlid: 5, authreq: 0 }.cqe(sqe.cid, 0);
            }
            _ if self.manners.deaf => return,
            FabricsCommand::PropertyGet(get) if get.offset == offset::CAP => {
                cqe.result = Cap { mqes: self.manners.mqes, to_500ms: 2, css: 1, ..Cap::default() }.bits();
            }
            FabricsCommand::PropertyGet(get) if get.offset == offset::CSTS => {
                let shst = if conn.cc.shn != 0 { 2 } else { 0 };
                cqe.result = u64::from(Csts { rdy: conn.cc.en, shst, ..Csts::default() }.bits());
            }
            FabricsCommand::PropertySet(set) if set.offset == offset::CC => {
                let cc = Cc::from_bits(set.value as u32);
                self.resets += usize::from(conn.cc.en && !cc.en);
                self.shutdowns += usize::from(cc.shn != 0);
                conn.cc = cc;
            }
            other => panic!("{other:?}"),
        }
        conn.respond(cqe);
    }

    fn admin(&mut self, conn: &mut Conn, sqe: Sqe) {
        if self.manners.deaf {
            conn.unanswered.push(sqe);
            return;
        }
        let mut page = [0; 4096];
        match AdminCommand::parse(&sqe) {
            AdminCommand::Identify(id) if id.cns == cns::CONTROLLER => {
                let mut controller = IdentifyController::parse(&[0; 4096]);
                controller.mdts = self.manners.mdts;
                controller.ioccsz = (64 + self.manners.capsule_bytes) / 16;
                controller.kas_100ms = 10;
                controller.oncs.write_zeroes = self.manners.write_zeroes.0;
                controller.oncs.dsm = self.manners.dsm.0;
                controller.vwc = 1;
                controller.oaes.namespace_attribute = true;
                controller.cmic.ana_reporting = self.manners.ana.is_some();
                controller.oaes.ana_change = self.manners.ana.is_some();
                controller.emit(&mut page);
            }
            AdminCommand::Identify(id) if id.cns == cns::NAMESPACE => {
                let mut namespace = IdentifyNamespace::parse(&[0; 4096]);
                namespace.nsze = self.manners.blocks;
                namespace.lbaf0 = LbaFormat::B512;
                namespace.dlfeat = self.manners.dlfeat;
                namespace.nsattr = u8::from(self.manners.read_only);
                namespace.anagrpid = u32::from(self.manners.ana_groups);
                namespace.nguid = [self.manners.nguid; 16];
                namespace.eui64 = [self.manners.eui64; 8];
                namespace.emit(&mut page);
            }
            AdminCommand::Identify(id)
                if id.cns == cns::NAMESPACE_DESCRIPTORS && !self.manners.descriptors.is_ok() =>
            {
                return conn.respond(Cqe::new(sqe.cid, 0, self.manners.descriptors));
            }
            AdminCommand::Identify(_) => {}
            AdminCommand::GetLogPage(log) => {
                if let (lid::ANA, Some(state)) = (log.lid, self.manners.ana) {
                    assert_eq!(log.lsp, 1, "groups only");
                    self.ana_reads += 1;
                    let groups = self.manners.ana_groups;
                    self.log = vec![0; ana_log_len(groups.into(), 0)];
                    let mut writer = AnaLogWriter::new(1, &mut self.log).expect("room");
                    for group in 1..=groups {
                        let state = if group == groups { state } else { AnaState::NonOptimized };
                        writer.group(group.into(), 1, state, []).expect("room");
                    }
                    writer.finish();
                }
                let at = log.lpo as usize;
                let bytes: Vec<u8> = (at..at + log.len_bytes as usize)
                    .map(|at| self.log.get(at).copied().unwrap_or(0))
                    .collect();
                return conn.send_data(&mut self.manners, sqe.cid, &bytes, false);
            }
            AdminCommand::SetFeatures(set) => {
                let mut cqe = Cqe::new(sqe.cid, 0, Status::SUCCESS);
                if set.fid == fid::NUMBER_OF_QUEUES {
                    let granted = self.manners.queues - 1;
                    cqe.result = u64::from(NumberOfQueues { nsqr: granted, ncqr: granted }.bits());
                }
                return conn.respond(cqe);
            }
            AdminCommand::AsyncEventRequest => {
                conn.aer = Some(sqe.cid);
                return;
            }
            AdminCommand::Abort(abort) => {
                self.aborts.push(abort.cid);
                return conn.respond(Cqe::new(sqe.cid, 0, Status::SUCCESS));
            }
            AdminCommand::KeepAlive => return conn.respond(Cqe::new(sqe.cid, 0, Status::SUCCESS)),
            other => panic!("{other:?}"),
        }
        conn.send_data(&mut self.manners, sqe.cid, &page, false);
    }

    fn io(&mut self, conn: &mut Conn, sqe: Sqe, data: Vec<u8>) {
        match IoCommand::parse(&sqe) {
            IoCommand::Write(_) => self.writes_seen += 1,
            IoCommand::WriteZeroes { deac, .. } => self.zeroes_seen.push(deac),
            IoCommand::Dsm(_) => self.deallocates_seen += 1,
            _ => {}
        }
        if self.manners.mute {
            conn.unanswered.push(sqe);
            return;
        }
        let span = |slba: u64, nlb: u64| slba as usize * 512..(slba + nlb) as usize * 512;
        let mut status = Status::SUCCESS;
        let ana = match self.manners.ana.filter(|_| self.manners.heeds_ana) {
            Some(AnaState::Inaccessible) => Some(Status::ANA_INACCESSIBLE),
            Some(AnaState::PersistentLoss) => Some(Status::ANA_PERSISTENT_LOSS),
            Some(AnaState::Change) => Some(Status::ANA_TRANSITION),
            _ => None,
        };
        if let Some(status) = ana {
            return conn.respond(Cqe::new(sqe.cid, 0, status));
        }
        match IoCommand::parse(&sqe) {
            IoCommand::Read(range) if self.manners.poison == Some(range.slba) => {
                return conn.output.extend([0xEE; 128]);
            }
            IoCommand::Read(range) => {
                if range.slba + u64::from(range.nlb) <= self.manners.blocks {
                    let bytes = self.disk[span(range.slba, range.nlb.into())].to_vec();
                    return conn.send_data(&mut self.manners, sqe.cid, &bytes, true);
                }
                status = Status::LBA_OUT_OF_RANGE.dnr();
            }
            IoCommand::Write(range) => self.disk[span(range.slba, range.nlb.into())].copy_from_slice(&data),
            IoCommand::WriteZeroes { .. } if !self.manners.write_zeroes.1.is_ok() => {
                status = self.manners.write_zeroes.1;
            }
            IoCommand::Dsm(_) if !self.manners.dsm.1.is_ok() => status = self.manners.dsm.1,
            IoCommand::WriteZeroes { deac: true, .. } if self.manners.dlfeat & dlfeat::DEAC == 0 => {
                status = Status::INVALID_FIELD.dnr();
            }
            IoCommand::WriteZeroes { range, .. } => self.disk[span(range.slba, range.nlb.into())].fill(0),
            IoCommand::Dsm(dsm) => {
                let read_as = match self.manners.dlfeat & dlfeat::READS_MASK {
                    dlfeat::READS_ZEROS => 0,
                    dlfeat::READS_ONES => 0xff,
                    _ => 0xdd,
                };
                for range in trefoil_wire::nvme::DsmRange::iter(&data, dsm.ranges).expect("whole ranges") {
                    self.disk[span(range.slba, range.nlb.into())].fill(read_as);
                }
            }
            IoCommand::Flush => {}
            other => panic!("{other:?}"),
        }
        conn.respond(Cqe::new(sqe.cid, 0, status));
    }
}

/// Requests at most 12 KiB of a write at a time.
fn ask(conn: &mut Conn, sqe: Sqe, offset: u32) {
    let len = (sqe.sgl1.len_bytes() - offset).min(12 << 10);
    let mut bytes = [0; R2t::LEN];
    R2t { cid: sqe.cid, ttag: 77, offset_bytes: offset, len_bytes: len }
        .emit(conn.framing.header_digest, &mut bytes);
    conn.put(&bytes, None);
}
