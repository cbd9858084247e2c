//! A scripted host for tests: makes PDUs, and reads the target's PDUs.

use super::rig::{At, HOST, Rig, SUBNQN};
use trefoil_wire::fabrics::{
    Connect, ConnectAttributes, ConnectData, DYNAMIC_CNTLID, FabricsCommand, Nqn, PropertyGet, PropertySet,
    PropertySize,
};
use trefoil_wire::nvme::feature::fid;
use trefoil_wire::nvme::property::{Cc, offset};
use trefoil_wire::nvme::{AdminCommand, Cqe, IdentifyCommand, IoCommand, SetFeatures, Sgl, Sqe, Status};
use trefoil_wire::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, CommonHeader, FatalStatus, Framing, H2cData, IcReq, IcResp, PduType,
    R2t, Receiver, TermReq, digest,
};

/// A PDU from the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    IcResp(IcResp),
    Resp(Cqe),
    Data { cid: u16, data: Vec<u8>, success: bool },
    R2t(R2t),
    Term(FatalStatus),
}

/// Parameters of a queue's connection.
#[derive(Clone, Copy)]
pub struct Wish {
    pub qid: u16,
    pub cntlid: u16,
    pub subnqn: &'static str,
    pub hostnqn: &'static str,
    pub hostid: [u8; 16],
    pub digests: (bool, bool),
    pub alignment: u32,
    pub sqsize: u16,
    pub no_flow_control: bool,
    pub kato_ms: u32,
}

pub const ADMIN: Wish = Wish {
    qid: 0,
    cntlid: DYNAMIC_CNTLID,
    subnqn: SUBNQN,
    hostnqn: HOST,
    hostid: [9; 16],
    digests: (false, false),
    alignment: 4,
    sqsize: 31,
    no_flow_control: false,
    kato_ms: 0,
};

pub const DISCOVERY: Wish = Wish { subnqn: "nqn.2014-08.org.nvmexpress.discovery", ..ADMIN };

/// One queue of a host.
pub struct Host {
    pub at: At,
    pub digests: (bool, bool),
    pub framing: Framing,
    pub cntlid: u16,
    pub cid: u16,
}

/// The outcome of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: Status,
    pub result: u64,
    pub data: Vec<u8>,
}

impl Host {
    /// Connects TCP and exchanges ICReq and ICResp.
    pub fn dial(rig: &mut Rig, core: usize, digests: (bool, bool), alignment: u32) -> Self {
        let at = rig.open(core);
        let mut bytes = [0; IcReq::LEN];
        let request = IcReq {
            host_alignment_bytes: alignment,
            header_digest: digests.0,
            data_digest: digests.1,
            max_r2t: 1,
        };
        request.emit(&mut bytes);
        rig.send(at, &bytes);
        rig.pump();
        let framing = Framing {
            receiver: Receiver::Host,
            header_digest: false,
            data_digest: false,
            data_alignment_bytes: alignment,
            max_capsule_data_bytes: 8192,
            max_data_bytes: u32::MAX,
        };
        let mut host = Self { at, digests: (false, false), framing, cntlid: 0, cid: 0 };
        match host.seen(rig).as_slice() {
            [Seen::IcResp(response)] => {
                assert_eq!((response.header_digest, response.data_digest), digests);
                host.digests = digests;
                (host.framing.header_digest, host.framing.data_digest) = digests;
            }
            other => panic!("{other:?}"),
        }
        host
    }

    /// Connects a queue. Returns the queue and the Connect's outcome.
    pub fn connect(rig: &mut Rig, core: usize, wish: Wish) -> (Self, Outcome) {
        let mut host = Self::dial(rig, core, wish.digests, wish.alignment);
        let outcome = host.fabrics_connect(rig, wish);
        host.cntlid = outcome.result as u16;
        (host, outcome)
    }

    pub fn fabrics_connect(&mut self, rig: &mut Rig, wish: Wish) -> Outcome {
        let (command, data) = connect_command(wish);
        let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: data.len() as u32 };
        let sqe = command.sqe(self.next_cid(), sgl);
        self.run(rig, sqe, &data)
    }

    /// Connects an admin queue and enables its controller.
    pub fn admin(rig: &mut Rig, core: usize, wish: Wish) -> Self {
        let (mut host, outcome) = Self::connect(rig, core, wish);
        assert_eq!(outcome.status, Status::SUCCESS);
        host.enable(rig);
        host
    }

    /// Sets Number of Queues. Returns the number granted.
    pub fn ask_queues(&mut self, rig: &mut Rig, count: u16) -> u16 {
        let value = u32::from(count - 1) << 16 | u32::from(count - 1);
        let set = SetFeatures { fid: fid::NUMBER_OF_QUEUES, cdw11: value, ..SetFeatures::default() };
        let granted = self.plain(rig, AdminCommand::SetFeatures(set)).result;
        assert_eq!(granted as u16, (granted >> 16) as u16, "as many submission queues as completion queues");
        granted as u16 + 1
    }

    /// Connects an I/O queue.
    pub fn io(rig: &mut Rig, core: usize, admin: &Self, wish: Wish) -> Self {
        let qid = wish.qid.max(1);
        let (host, outcome) =
            Self::connect(rig, core, Wish { cntlid: admin.cntlid, qid, sqsize: 127, ..wish });
        assert_eq!(outcome.status, Status::SUCCESS);
        host
    }

    pub fn enable(&mut self, rig: &mut Rig) {
        let cc = Cc { en: true, iosqes: 6, iocqes: 4, ..Cc::default() };
        assert_eq!(self.set_cc(rig, cc).status, Status::SUCCESS);
    }

    pub fn set_cc(&mut self, rig: &mut Rig, cc: Cc) -> Outcome {
        let set = PropertySet { size: PropertySize::Four, offset: offset::CC, value: u64::from(cc.bits()) };
        let sqe = FabricsCommand::PropertySet(set).sqe(self.next_cid(), Sgl::NONE);
        self.run(rig, sqe, &[])
    }

    pub fn property(&mut self, rig: &mut Rig, size: PropertySize, offset: u32) -> Outcome {
        let get = FabricsCommand::PropertyGet(PropertyGet { size, offset });
        let sqe = get.sqe(self.next_cid(), Sgl::NONE);
        self.run(rig, sqe, &[])
    }

    pub fn identify(&mut self, rig: &mut Rig, cns: u8, nsid: u32) -> Outcome {
        let command = AdminCommand::Identify(IdentifyCommand { cns, ..IdentifyCommand::default() });
        self.read_admin(rig, command, nsid, 4096)
    }

    pub fn read_admin(&mut self, rig: &mut Rig, command: AdminCommand, nsid: u32, len: u32) -> Outcome {
        let sqe = command.sqe(self.next_cid(), nsid, Sgl::Transport { len_bytes: len });
        self.run(rig, sqe, &[])
    }

    pub fn plain(&mut self, rig: &mut Rig, command: AdminCommand) -> Outcome {
        let sqe = command.sqe(self.next_cid(), 0, Sgl::NONE);
        self.run(rig, sqe, &[])
    }

    /// Runs an I/O command that moves `data` to the target (in the capsule if it fits), or `read` bytes to the host.
    pub fn io_command(
        &mut self,
        rig: &mut Rig,
        nsid: u32,
        command: IoCommand,
        data: &[u8],
        read: usize,
    ) -> Outcome {
        let sgl = match (data.len(), read) {
            (0, 0) => Sgl::NONE,
            (0, n) => Sgl::Transport { len_bytes: n as u32 },
            (n, _) if n <= 8192 => Sgl::InCapsule { offset_bytes: 0, len_bytes: n as u32 },
            (n, _) => Sgl::Transport { len_bytes: n as u32 },
        };
        let sqe = command.sqe(self.next_cid(), nsid, sgl);
        self.run(rig, sqe, data)
    }

    pub fn next_cid(&mut self) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        self.cid
    }

    /// Sends a command and answers its R2Ts until the command has ended.
    pub fn run(&mut self, rig: &mut Rig, sqe: Sqe, data: &[u8]) -> Outcome {
        let in_capsule = matches!(sqe.sgl1, Sgl::InCapsule { .. });
        self.submit(rig, sqe, if in_capsule { data } else { &[] });
        rig.pump();
        let mut got = Vec::new();
        loop {
            let seen = self.seen(rig);
            assert!(!seen.is_empty(), "no answer to {sqe:?}");
            for pdu in seen {
                match pdu {
                    Seen::Resp(cqe) if cqe.cid == sqe.cid => {
                        return Outcome { status: cqe.status, result: cqe.result, data: got };
                    }
                    Seen::Data { cid, data, success } if cid == sqe.cid => {
                        got = data;
                        if success {
                            return Outcome { status: Status::SUCCESS, result: 0, data: got };
                        }
                    }
                    Seen::R2t(r2t) if r2t.cid == sqe.cid => self.answer(rig, r2t, data),
                    other => panic!("{other:?} while waiting for {}", sqe.cid),
                }
            }
        }
    }

    /// Sends the data that an R2T asks for, in PDUs of up to 20,000 bytes.
    pub fn answer(&mut self, rig: &mut Rig, r2t: R2t, data: &[u8]) {
        let asked = &data[r2t.offset_bytes as usize..(r2t.offset_bytes + r2t.len_bytes) as usize];
        let mut sent = r2t.offset_bytes;
        for piece in asked.chunks(20_000) {
            let last = sent + piece.len() as u32 == r2t.offset_bytes + r2t.len_bytes;
            let pdu = H2cData {
                cid: r2t.cid,
                ttag: r2t.ttag,
                offset_bytes: sent,
                len_bytes: piece.len() as u32,
                last,
            };
            let bytes = self.h2c(pdu, piece);
            rig.send(self.at, &bytes);
            sent += piece.len() as u32;
        }
        rig.pump();
    }

    pub fn h2c(&self, pdu: H2cData, data: &[u8]) -> Vec<u8> {
        let mut header = [0; H2cData::LEN];
        let common = pdu.emit(self.digests.0, self.digests.1, 4, &mut header);
        self.frame(&header, common.pdo, data)
    }

    pub fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let mut header = [0; CapsuleCmd::LEN];
        let common =
            CapsuleCmd { sqe }.emit(self.digests.0, self.digests.1, 4, data.len() as u32, &mut header);
        self.frame(&header, common.pdo, data)
    }

    fn frame(&self, header: &[u8], pdo: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        if self.digests.0 {
            bytes.extend(digest(header).to_le_bytes());
        }
        if !data.is_empty() {
            bytes.resize(usize::from(pdo), 0);
            bytes.extend(data);
            if self.digests.1 {
                bytes.extend(digest(data).to_le_bytes());
            }
        }
        bytes
    }

    /// Sends a command without waiting for its end.
    pub fn submit(&mut self, rig: &mut Rig, sqe: Sqe, data: &[u8]) {
        let bytes = self.capsule(sqe, data);
        rig.send(self.at, &bytes);
    }

    /// Returns all received PDUs. Checks their framing and their digests.
    pub fn seen(&mut self, rig: &mut Rig) -> Vec<Seen> {
        let bytes = rig.take(self.at);
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let common = CommonHeader::parse(rest.first_chunk().expect("a header")).expect("a good header");
            let layout = common.layout(&self.framing).expect("a good layout");
            let (pdu, after) = rest.split_at(layout.total_len() as usize);
            rest = after;
            let header = &pdu[..layout.header_len as usize];
            if layout.header_digest_len > 0 {
                let hdgst = pdu[header.len()..].first_chunk().expect("a digest");
                Framing::check_header_digest(header, hdgst).expect("a good header digest");
            }
            let data = &pdu[layout.before_data_len() as usize..][..layout.data_len as usize];
            if layout.data_digest_len > 0 {
                let ddgst = pdu.last_chunk::<4>().expect("a digest");
                assert_eq!(u32::from_le_bytes(*ddgst), digest(data), "data digest");
            }
            seen.push(match common.pdu_type {
                PduType::IcResp => {
                    Seen::IcResp(IcResp::parse(header.first_chunk().expect("128")).expect("ok"))
                }
                PduType::CapsuleResp => Seen::Resp(CapsuleResp::parse(header.first_chunk().expect("24")).cqe),
                PduType::C2hData => {
                    let pdu = C2hData::parse(header.first_chunk().expect("24"), layout.data_len).expect("ok");
                    assert!(pdu.last && pdu.offset_bytes == 0);
                    Seen::Data { cid: pdu.cid, data: data.to_vec(), success: pdu.success }
                }
                PduType::R2t => Seen::R2t(R2t::parse(header.first_chunk().expect("24")).expect("ok")),
                PduType::C2hTermReq => Seen::Term(TermReq::parse(pdu).expect("ok").status),
                other => panic!("{other:?} from a controller"),
            });
        }
        seen
    }

    /// Returns the received responses, by command.
    pub fn responses(&mut self, rig: &mut Rig) -> Vec<(u16, Status, u64)> {
        let mut all = Vec::new();
        for pdu in self.seen(rig) {
            match pdu {
                Seen::Resp(cqe) => all.push((cqe.cid, cqe.status, cqe.result)),
                other => panic!("{other:?}"),
            }
        }
        all
    }
}

pub fn connect_command(wish: Wish) -> (FabricsCommand, Vec<u8>) {
    let connect = Connect {
        recfmt: 0,
        qid: wish.qid,
        sqsize: wish.sqsize,
        attributes: ConnectAttributes {
            no_sq_flow_control: wish.no_flow_control,
            ..ConnectAttributes::default()
        },
        kato_ms: wish.kato_ms,
    };
    let data = ConnectData {
        hostid: wish.hostid,
        cntlid: wish.cntlid,
        subnqn: Nqn::new(wish.subnqn).expect("an NQN"),
        hostnqn: Nqn::new(wish.hostnqn).expect("an NQN"),
    };
    let mut bytes = vec![0; ConnectData::LEN];
    data.emit(bytes.first_chunk_mut().expect("1024"));
    (FabricsCommand::Connect(connect), bytes)
}
