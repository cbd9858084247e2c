//! A host that a test controls PDU by PDU over a plain socket. The host follows the spec, except where the test makes it
//! violate the spec.

use super::{PATIENCE, Patience};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use trefoil_wire::fabrics::{
    Connect, ConnectAttributes, ConnectData, ConnectResponse, DYNAMIC_CNTLID, FabricsCommand, Nqn,
    PropertyGet, PropertySet, PropertySize,
};
use trefoil_wire::nvme::feature::fid;
use trefoil_wire::nvme::property::{Cc, Csts, offset};
use trefoil_wire::nvme::{AdminCommand, BlockRange, Cqe, IoCommand, SetFeatures, Sgl, Sqe, Status};
use trefoil_wire::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, CommonHeader, FatalStatus, Framing, H2cData, IcReq, IcResp, PduType,
    R2t, Receiver, TermReq, digest,
};

/// A PDU from the controller, or the end of the connection.
#[derive(Debug, PartialEq)]
pub enum Pdu {
    IcResp(IcResp),
    Response(Cqe),
    Data(C2hData, Vec<u8>),
    R2t(R2t),
    Terminate {
        status: FatalStatus,
        offender: Vec<u8>,
    },
    /// The controller closed or reset the connection.
    Closed,
}

/// A connection to a controller.
pub struct Raw {
    stream: TcpStream,
    pub framing: Framing,
    next_cid: u16,
}

/// The identity and parameters of a Connect. Each field is sent unchanged.
#[derive(Clone, Debug)]
pub struct Who {
    pub hostid: [u8; 16],
    pub host: Vec<u8>,
    pub subsystem: Vec<u8>,
    pub cntlid: u16,
    pub connect: Connect,
}

impl Who {
    /// Returns the Connect of the admin queue of `host` at `subsystem`.
    pub fn admin(host: &str, subsystem: &str) -> Self {
        let sum = host.bytes().fold(7u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        let connect =
            Connect { recfmt: 0, qid: 0, sqsize: 31, attributes: ConnectAttributes::default(), kato_ms: 0 };
        Self {
            hostid: [sum | 1; 16],
            host: host.into(),
            subsystem: subsystem.into(),
            cntlid: DYNAMIC_CNTLID,
            connect,
        }
    }

    /// Changes the Connect to the Connect of I/O queue `qid` at controller `cntlid`, with `sqsize` (0's based).
    pub fn queue(mut self, cntlid: u16, qid: u16, sqsize: u16) -> Self {
        self.cntlid = cntlid;
        (self.connect.qid, self.connect.sqsize, self.connect.kato_ms) = (qid, sqsize, 0);
        self
    }

    /// Sets the Keep Alive Timeout.
    pub fn kato_ms(mut self, kato_ms: u32) -> Self {
        self.connect.kato_ms = kato_ms;
        self
    }

    /// Returns Connect's data.
    pub fn data(&self) -> [u8; ConnectData::LEN] {
        let nqn = Nqn::DISCOVERY;
        let mut bytes = [0; ConnectData::LEN];
        ConnectData { hostid: self.hostid, cntlid: self.cntlid, subnqn: nqn, hostnqn: nqn }.emit(&mut bytes);
        // The names are copied unchanged, because a test may send invalid names.
        for (at, name) in [(256, &self.subsystem), (512, &self.host)] {
            bytes[at..at + 256].fill(0);
            bytes[at..at + name.len()].copy_from_slice(name);
        }
        bytes
    }
}

impl Raw {
    /// Opens a connection and sends nothing.
    pub fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("connects");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        stream.set_write_timeout(Some(PATIENCE)).expect("an option");
        Self { stream, framing: Framing::initial(Receiver::Host), next_cid: 0 }
    }

    /// Returns the host's own address.
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr().expect("an address")
    }

    /// Opens a connection and exchanges ICReq and ICResp.
    pub fn initialized(addr: SocketAddr, header_digest: bool, data_digest: bool) -> Self {
        let mut raw = Self::open(addr);
        raw.send(&ic_req(header_digest, data_digest));
        match raw.pdu() {
            Pdu::IcResp(resp) => {
                assert_eq!((resp.header_digest, resp.data_digest), (header_digest, data_digest))
            }
            other => panic!("{other:?} came instead of ICResp"),
        }
        (raw.framing.header_digest, raw.framing.data_digest) = (header_digest, data_digest);
        raw.framing.max_data_bytes = 2 << 20;
        raw
    }

    /// Opens a connection whose data starts at multiples of `alignment_bytes`.
    pub fn aligned(addr: SocketAddr, alignment_bytes: u32) -> Self {
        let mut raw = Self::open(addr);
        let mut bytes = [0; IcReq::LEN];
        IcReq { host_alignment_bytes: alignment_bytes, header_digest: false, data_digest: false, max_r2t: 1 }
            .emit(&mut bytes);
        raw.send(&bytes);
        assert!(matches!(raw.pdu(), Pdu::IcResp(_)));
        raw.framing.max_data_bytes = 2 << 20;
        raw.framing.data_alignment_bytes = alignment_bytes;
        raw
    }

    /// Opens a connection and sends Connect. Also returns the answer.
    pub fn asked(addr: SocketAddr, who: &Who) -> (Self, ConnectResponse) {
        let mut raw = Self::initialized(addr, false, false);
        let answer = raw.try_connect(who);
        (raw, answer)
    }

    /// Connects and enables an admin queue. Also returns the CNTLID.
    pub fn admin(addr: SocketAddr, who: &Who) -> (Self, u16) {
        let mut raw = Self::initialized(addr, false, false);
        let cntlid = raw.connect(who);
        raw.enable(true);
        (raw, cntlid)
    }

    /// Connects an I/O queue.
    pub fn queue(addr: SocketAddr, who: &Who, digests: (bool, bool)) -> Self {
        let mut raw = Self::initialized(addr, digests.0, digests.1);
        raw.connect(who);
        raw
    }

    /// Connects the queue. Returns the CNTLID.
    pub fn connect(&mut self, who: &Who) -> u16 {
        match self.try_connect(who) {
            ConnectResponse::Connected { cntlid, .. } => cntlid,
            other => panic!("Connect of {:?} gave {other:?}", who.connect),
        }
    }

    /// Sends Connect. Returns the answer.
    pub fn try_connect(&mut self, who: &Who) -> ConnectResponse {
        let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: ConnectData::LEN as u32 };
        let sqe = FabricsCommand::Connect(who.connect).sqe(self.cid(), sgl);
        ConnectResponse::parse(&self.command(sqe, &who.data()).0)
    }

    /// Sets CC.EN and waits until CSTS.RDY follows.
    pub fn enable(&mut self, en: bool) {
        let cc = Cc { en, iosqes: 6, iocqes: 4, ..Cc::default() };
        assert!(self.set_cc(cc).is_ok(), "CC.EN = {en}");
        let patience = Patience::new(format!("CSTS.RDY = {en}"));
        while self.csts().rdy != en {
            patience.pause();
        }
    }

    /// Sets the property CC.
    pub fn set_cc(&mut self, cc: Cc) -> Status {
        let set = PropertySet { size: PropertySize::Four, offset: offset::CC, value: u64::from(cc.bits()) };
        let sqe = FabricsCommand::PropertySet(set).sqe(self.cid(), Sgl::NONE);
        self.command(sqe, &[]).0.status
    }

    /// Gets the property CSTS.
    pub fn csts(&mut self) -> Csts {
        let get = PropertyGet { size: PropertySize::Four, offset: offset::CSTS };
        let sqe = FabricsCommand::PropertyGet(get).sqe(self.cid(), Sgl::NONE);
        let cqe = self.command(sqe, &[]).0;
        assert!(cqe.status.is_ok(), "{cqe:?}");
        Csts::from_bits(cqe.dw0())
    }

    /// Writes `data` to blocks of 512 bytes, from block `slba` on.
    pub fn write(&mut self, nsid: u32, slba: u64, data: &[u8]) -> Status {
        let verb = IoCommand::Write(BlockRange::new(slba, (data.len() / 512) as u32));
        let len_bytes = data.len() as u32;
        let sgl = match data.len() <= 4096 {
            true => Sgl::InCapsule { offset_bytes: 0, len_bytes },
            false => Sgl::Transport { len_bytes },
        };
        let sqe = verb.sqe(self.cid(), nsid, sgl);
        self.command(sqe, data).0.status
    }

    /// Reads `len` bytes, from block `slba` on.
    pub fn read(&mut self, nsid: u32, slba: u64, len: usize) -> (Status, Vec<u8>) {
        let verb = IoCommand::Read(BlockRange::new(slba, (len / 512) as u32));
        let sqe = verb.sqe(self.cid(), nsid, Sgl::Transport { len_bytes: len as u32 });
        let (cqe, data) = self.command(sqe, &[]);
        (cqe.status, data)
    }

    /// Runs one command to its end: sends `sqe`, sends `out` when the controller requests data, and collects the data that
    /// arrives.
    pub fn command(&mut self, sqe: Sqe, out: &[u8]) -> (Cqe, Vec<u8>) {
        let in_capsule = matches!(sqe.sgl1, Sgl::InCapsule { .. });
        self.capsule(sqe, if in_capsule { out } else { &[] });
        self.finish(sqe.cid, out)
    }

    /// Continues a command that was sent, until its completion.
    pub fn finish(&mut self, cid: u16, out: &[u8]) -> (Cqe, Vec<u8>) {
        let mut data = Vec::new();
        loop {
            match self.pdu() {
                Pdu::Response(cqe) => {
                    assert_eq!(cqe.cid, cid, "a completion of another command");
                    return (cqe, data);
                }
                Pdu::R2t(r2t) => {
                    assert_eq!(r2t.cid, cid, "an R2T of another command");
                    let at = r2t.offset_bytes as usize;
                    let part = &out[at..at + r2t.len_bytes as usize];
                    self.h2c(
                        H2cData {
                            cid,
                            ttag: r2t.ttag,
                            offset_bytes: r2t.offset_bytes,
                            len_bytes: r2t.len_bytes,
                            last: true,
                        },
                        part,
                    );
                }
                Pdu::Data(pdu, bytes) => {
                    assert_eq!((pdu.cid, pdu.offset_bytes as usize), (cid, data.len()), "data out of order");
                    data.extend(bytes);
                    if pdu.success {
                        return (Cqe::new(cid, 0, Status::SUCCESS), data);
                    }
                }
                other => panic!("{other:?} came instead of the completion of {cid}"),
            }
        }
    }

    /// Sends a command capsule with in-capsule `data`.
    pub fn capsule(&mut self, sqe: Sqe, data: &[u8]) {
        let bytes = self.capsule_bytes(sqe, data);
        self.send(&bytes);
    }

    /// Returns a command capsule with in-capsule `data`, including the digests.
    pub fn capsule_bytes(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let mut header = [0; CapsuleCmd::LEN];
        let (hd, dd) = (self.framing.header_digest, self.framing.data_digest);
        let common = CapsuleCmd { sqe }.emit(hd, dd, 4, data.len() as u32, &mut header);
        self.assemble(&header, common, data)
    }

    /// Sends an H2CData with `data`.
    pub fn h2c(&mut self, pdu: H2cData, data: &[u8]) {
        let bytes = self.h2c_bytes(pdu, data);
        self.send(&bytes);
    }

    /// Returns an H2CData, including the digests.
    pub fn h2c_bytes(&self, pdu: H2cData, data: &[u8]) -> Vec<u8> {
        let mut header = [0; H2cData::LEN];
        let common = pdu.emit(self.framing.header_digest, self.framing.data_digest, 4, &mut header);
        self.assemble(&header, common, data)
    }

    fn assemble(&self, header: &[u8], common: CommonHeader, data: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        if self.framing.header_digest {
            bytes.extend(digest(header).to_le_bytes());
        }
        if !data.is_empty() {
            bytes.resize(usize::from(common.pdo), 0);
            bytes.extend(data);
            if self.framing.data_digest {
                bytes.extend(digest(data).to_le_bytes());
            }
        }
        bytes
    }

    /// Sends bytes. If the controller has closed the connection already, [`pdu`](Self::pdu) reports that later.
    pub fn send(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(e) => panic!("sending {} bytes: {e}", bytes.len()),
        }
    }

    /// Closes the sending side.
    pub fn shut(&mut self) {
        // The controller may have closed the connection already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Returns the next PDU. Checks its digests first.
    pub fn pdu(&mut self) -> Pdu {
        let mut bytes = [0; CommonHeader::LEN].to_vec();
        if !self.fill(&mut bytes) {
            return Pdu::Closed;
        }
        let common =
            CommonHeader::parse(bytes.first_chunk().expect("8 bytes")).expect("a PDU of the controller");
        let layout = common.layout(&self.framing).expect("a PDU of the controller");
        bytes.resize(common.plen as usize, 0);
        if !self.fill(&mut bytes[CommonHeader::LEN..]) {
            return Pdu::Closed;
        }
        let (header, rest) = bytes.split_at(layout.header_len as usize);
        let little = |bytes: &[u8]| u32::from_le_bytes(*bytes.first_chunk().expect("a digest"));
        if layout.header_digest_len > 0 {
            assert_eq!(little(rest), digest(header), "header digest of {common:?}");
        }
        let data = &bytes[layout.before_data_len() as usize..][..layout.data_len as usize];
        if layout.data_digest_len > 0 {
            assert_eq!(little(&bytes[bytes.len() - 4..]), digest(data), "data digest of {common:?}");
        }
        match common.pdu_type {
            PduType::IcResp => {
                Pdu::IcResp(IcResp::parse(header.first_chunk().expect("whole")).expect("an ICResp"))
            }
            PduType::CapsuleResp => {
                Pdu::Response(CapsuleResp::parse(header.first_chunk().expect("whole")).cqe)
            }
            PduType::C2hData => {
                let pdu = C2hData::parse(header.first_chunk().expect("whole"), layout.data_len);
                Pdu::Data(pdu.expect("a C2HData"), data.to_vec())
            }
            PduType::R2t => Pdu::R2t(R2t::parse(header.first_chunk().expect("whole")).expect("an R2T")),
            PduType::C2hTermReq => {
                let request = TermReq::parse(&bytes).expect("a terminate request");
                Pdu::Terminate { status: request.status, offender: request.offender.to_vec() }
            }
            other => panic!("a controller does not send {other:?}"),
        }
    }

    /// Waits until the controller closes the connection. Ignores all PDUs before that.
    pub fn wait_closed(&mut self, why: &str) {
        let patience = Patience::new(format!("the controller to close: {why}"));
        let mut bytes = [0; 4096];
        while self.stream.read(&mut bytes).is_ok_and(|n| n > 0) {
            patience.left();
        }
        patience.left();
    }

    /// Expects a terminate request with `status`, then the end of the connection.
    pub fn expect_terminate(&mut self, status: FatalStatus, what: &str) {
        loop {
            match self.pdu() {
                Pdu::Terminate { status: said, .. } => {
                    assert_eq!(said, status, "{what}");
                    break;
                }
                // These PDUs belong to earlier commands.
                Pdu::Response(_) | Pdu::R2t(_) | Pdu::Data(..) => {}
                other => panic!("{what}: {other:?} came instead of a terminate request"),
            }
        }
        self.shut();
        self.wait_closed(what);
    }

    /// Returns whether all bytes arrived before the connection ended.
    fn fill(&mut self, bytes: &mut [u8]) -> bool {
        match self.stream.read_exact(bytes) {
            Ok(()) => true,
            Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => false,
            Err(e) => panic!("waiting for a PDU: {e}"),
        }
    }

    /// Sets Number of Queues, and checks that all queues are granted.
    pub fn ask_queues(&mut self, count: u16) {
        let value = u32::from(count - 1) << 16 | u32::from(count - 1);
        let set = SetFeatures { fid: fid::NUMBER_OF_QUEUES, cdw11: value, ..SetFeatures::default() };
        let sqe = AdminCommand::SetFeatures(set).sqe(self.cid(), 0, Sgl::NONE);
        let (cqe, _) = self.command(sqe, &[]);
        assert!(cqe.status.is_ok() && cqe.dw0() == value, "{count} I/O queues: {cqe:?}");
    }

    /// Returns an unused command identifier.
    pub fn cid(&mut self) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        self.next_cid
    }
}

/// Returns an ICReq that asks for these digests.
pub fn ic_req(header_digest: bool, data_digest: bool) -> [u8; IcReq::LEN] {
    let mut bytes = [0; IcReq::LEN];
    IcReq { host_alignment_bytes: 4, header_digest, data_digest, max_r2t: 1 }.emit(&mut bytes);
    bytes
}

/// An admin queue and an I/O queue of a host that follows the spec.
pub struct Pair {
    pub admin: Raw,
    pub io: Raw,
    pub cntlid: u16,
}

impl Pair {
    /// Connects both queues.
    pub fn connect(addr: SocketAddr, host: &str, subsystem: &str) -> Self {
        Self::connect_for(addr, host, subsystem, 1)
    }

    /// Asks for `io_queues` I/O queues, and connects the admin queue and one I/O queue.
    pub fn connect_for(addr: SocketAddr, host: &str, subsystem: &str, io_queues: u16) -> Self {
        let who = Who::admin(host, subsystem);
        let (mut admin, cntlid) = Raw::admin(addr, &who);
        admin.ask_queues(io_queues);
        let io = Raw::queue(addr, &who.queue(cntlid, 1, 31), (false, false));
        Self { admin, io, cntlid }
    }

    /// Writes data that depends on `seed`, in capsules and by R2T. Then reads the data back and checks it.
    pub fn check(&mut self, nsid: u32, seed: u8) {
        for (slba, len) in [(8, 512), (16, 4096), (64, 65536)] {
            let data: Vec<u8> = (0..len).map(|at: usize| (at / 512) as u8 ^ (at as u8) ^ seed).collect();
            assert_eq!(self.io.write(nsid, slba, &data), Status::SUCCESS, "a write of {len} bytes");
            let (status, got) = self.io.read(nsid, slba, len);
            assert!(status.is_ok() && got == data, "{len} bytes came back changed: {status}");
        }
    }
}
