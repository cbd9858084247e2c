//! The hostile host's connections: these functions send bytes, receive PDUs, and wait.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use trefoil_poll::{Instant, Io, RecvInto, SendList, SockId};
use trefoil_wire::fabrics::{
    Connect, ConnectAttributes, ConnectData, ConnectResponse, DYNAMIC_CNTLID, FabricsCommand, Nqn,
    PropertyGet, PropertySet, PropertySize,
};
use trefoil_wire::nvme::feature::fid;
use trefoil_wire::nvme::property::{Cc, Csts, offset};
use trefoil_wire::nvme::{AdminCommand, Cqe, SetFeatures, Sgl, Sqe};
use trefoil_wire::tcp::{
    CapsuleCmd, CapsuleResp, CommonHeader, FatalStatus, Framing, H2cData, IcReq, IcResp, PduType, R2t,
    Receiver, TermReq, digest,
};

use super::{Cut, HOST};
use crate::direct::StorageSim;
use crate::server::SUBSYSTEM;

/// The gateway must answer within this time, even if its disks and cores are slow.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most bytes of one send: the capacity of a send list's head.
const SEND_BYTES: usize = 4096;

/// A PDU from the gateway.
#[derive(Debug)]
pub enum Pdu {
    IcResp,
    Response(Cqe),
    Data,
    R2t(R2t),
    Terminate(FatalStatus),
}

#[derive(Default)]
struct Line {
    /// True while an attack uses the connection.
    owned: bool,
    sock: Option<SockId>,
    open: bool,
    /// True if the gateway ended the connection, or the connection never came up.
    over: bool,
    close: bool,
    deaf: bool,
    receiving: bool,
    sending: bool,
    out: VecDeque<u8>,
    rx: Vec<u8>,
    framing: Option<Framing>,
    next_cid: u16,
}

/// All connections, and the deadlines of waiting attacks.
pub struct Shared {
    addr: SocketAddr,
    now: Instant,
    lines: BTreeMap<u32, Line>,
    opened: u32,
    sleeps: Vec<Instant>,
}

impl Shared {
    pub fn new(io: &StorageSim, addr: SocketAddr) -> Self {
        Self { addr, now: io.now(), lines: BTreeMap::new(), opened: 0, sleeps: Vec::new() }
    }

    pub fn begin(&mut self, io: &StorageSim) {
        self.now = io.now();
        let now = self.now;
        self.sleeps.retain(|&at| at > now);
    }

    pub fn wake_at(&self) -> Option<Instant> {
        self.sleeps.iter().min().copied()
    }

    /// Asks the driver to carry out the attacks' requests.
    pub fn pump(&mut self, io: &mut StorageSim) {
        for line in self.lines.values_mut() {
            match line.sock {
                None if !line.over && !line.close => match io.connect(self.addr) {
                    Ok(sock) => line.sock = Some(sock),
                    Err(_) => line.over = true,
                },
                None => {}
                Some(sock) if line.over || (line.close && line.out.is_empty() && !line.sending) => {
                    io.close(sock);
                }
                Some(sock) if line.open => {
                    if !line.sending && !line.out.is_empty() {
                        let mut list = SendList::new();
                        let len = line.out.len().min(SEND_BYTES);
                        let bytes = line.out.drain(..len);
                        list.push_head(len).iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
                        line.sending = true;
                        io.send(sock, list);
                    }
                    if !line.receiving && !line.deaf {
                        line.receiving = true;
                        io.recv(sock, RecvInto::Stream { max_bytes: 64 << 10 });
                    }
                }
                Some(_) => {}
            }
        }
        self.lines.retain(|_, line| line.owned || line.sock.is_some());
    }

    fn of(&mut self, sock: SockId) -> Option<&mut Line> {
        self.lines.values_mut().find(|line| line.sock == Some(sock))
    }

    pub fn connected(&mut self, sock: SockId, ok: bool) {
        if let Some(line) = self.of(sock) {
            (line.open, line.over) = (ok, !ok);
        }
    }

    pub fn received(&mut self, sock: SockId, bytes: &[u8]) {
        if let Some(line) = self.of(sock) {
            line.receiving = false;
            line.rx.extend(bytes);
        }
    }

    pub fn sent(&mut self, sock: SockId, ok: bool) {
        if let Some(line) = self.of(sock) {
            (line.sending, line.over) = (false, line.over || !ok);
        }
    }

    pub fn ended(&mut self, sock: SockId) {
        if let Some(line) = self.of(sock) {
            (line.receiving, line.over) = (false, true);
        }
    }

    pub fn closed(&mut self, sock: SockId) {
        if let Some(line) = self.of(sock) {
            (line.sock, line.open, line.over) = (None, false, true);
        }
    }
}

/// The connections of one attack. Dropping this value closes the connections.
pub struct Lines {
    shared: Rc<RefCell<Shared>>,
    mine: RefCell<Vec<u32>>,
    host: Cell<&'static str>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        for &at in self.mine.borrow().iter() {
            if let Some(line) = shared.lines.get_mut(&at) {
                (line.owned, line.close) = (false, true);
                line.out.clear();
            }
        }
    }
}

/// A connection of an attack.
#[derive(Clone, Copy)]
pub struct At(u32);

impl Lines {
    pub fn new(shared: Rc<RefCell<Shared>>) -> Self {
        Self { shared, mine: RefCell::new(Vec::new()), host: Cell::new(HOST) }
    }

    /// Uses `host` as the host's name in all later Connects.
    pub fn be(&self, host: &'static str) {
        self.host.set(host);
    }

    /// Returns the time of the current event.
    pub fn now(&self) -> Instant {
        self.shared.borrow().now
    }

    fn line(&self, at: At) -> RefMut<'_, Line> {
        RefMut::map(self.shared.borrow_mut(), |shared| shared.lines.entry(at.0).or_default())
    }

    /// Waits until `ready` is true. Returns false if it is not true within `time`.
    async fn within(&self, time: Duration, ready: impl Fn() -> bool) -> bool {
        let until = {
            let mut shared = self.shared.borrow_mut();
            let until = shared.now + time;
            shared.sleeps.push(until);
            until
        };
        poll_fn(|_| {
            let late = self.shared.borrow().now >= until;
            match ready() {
                true => Poll::Ready(true),
                false if late => Poll::Ready(false),
                false => Poll::Pending,
            }
        })
        .await
    }

    pub async fn sleep(&self, time: Duration) {
        self.within(time, || false).await;
    }

    /// Opens a connection without sending anything.
    pub fn open(&self) -> At {
        let mut shared = self.shared.borrow_mut();
        let framing = Some(Framing::initial(Receiver::Host));
        shared.opened += 1;
        let at = shared.opened;
        shared.lines.insert(at, Line { framing, owned: true, ..Line::default() });
        self.mine.borrow_mut().push(at);
        At(at)
    }

    /// Stops reading, or reads again.
    pub fn deafen(&self, at: At, deaf: bool) {
        self.line(at).deaf = deaf;
    }

    pub fn send(&self, at: At, bytes: &[u8]) {
        self.line(at).out.extend(bytes);
    }

    /// Closes the connection once all pending bytes are sent.
    pub fn close(&self, at: At) {
        self.line(at).close = true;
    }

    /// Waits for the gateway to end the connection.
    pub async fn expect_end(&self, at: At, time: Duration, what: &str) -> Result<(), Cut> {
        match self.within(time, || self.line(at).over).await {
            true => Ok(()),
            false => Err(Cut::Wrong(format!("{what}: not closed within {time:?}"))),
        }
    }

    /// Returns whether the gateway has ended the connection.
    pub fn is_over(&self, at: At) -> bool {
        self.line(at).over
    }

    fn has_pdu(&self, at: At) -> bool {
        let line = self.line(at);
        let plen = line.rx.get(4..8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
        plen.is_some_and(|plen| line.rx.len() >= plen)
    }

    /// Waits for the next PDU.
    pub async fn pdu(&self, at: At) -> Result<Pdu, Cut> {
        if !self.within(PATIENCE, || self.has_pdu(at) || self.line(at).over).await {
            return Err(Cut::Wrong(format!("no answer within {PATIENCE:?}")));
        }
        if !self.has_pdu(at) {
            return Err(Cut::Gone("the connection ended"));
        }
        let mut line = self.line(at);
        let wrong = |what: &dyn std::fmt::Debug| Cut::Wrong(format!("the gateway sent {what:?}"));
        let head = *line.rx.first_chunk().ok_or(Cut::Gone("no header"))?;
        let common = CommonHeader::parse(&head).map_err(|error| wrong(&error))?;
        let framing = line.framing.ok_or(Cut::Gone("no framing"))?;
        let layout = common.layout(&framing).map_err(|error| wrong(&error))?;
        let bytes: Vec<u8> = line.rx.drain(..common.plen as usize).collect();
        let short = || Cut::Wrong(format!("{common:?} is too short"));
        Ok(match common.pdu_type {
            PduType::IcResp => {
                IcResp::parse(bytes.first_chunk().ok_or_else(short)?).map_err(|error| wrong(&error))?;
                Pdu::IcResp
            }
            PduType::CapsuleResp => {
                Pdu::Response(CapsuleResp::parse(bytes.first_chunk().ok_or_else(short)?).cqe)
            }
            PduType::C2hData if layout.data_len > 0 => Pdu::Data,
            PduType::R2t => {
                let r2t = R2t::parse(bytes.first_chunk().ok_or_else(short)?);
                Pdu::R2t(r2t.map_err(|error| wrong(&error))?)
            }
            PduType::C2hTermReq => {
                Pdu::Terminate(TermReq::parse(&bytes).map_err(|error| wrong(&error))?.status)
            }
            other => return Err(wrong(&other)),
        })
    }

    /// Waits for a terminate request with `status`, then closes the connection.
    pub async fn expect_terminate(&self, at: At, status: FatalStatus, what: &str) -> Result<(), Cut> {
        loop {
            match self.pdu(at).await? {
                Pdu::Terminate(said) if said == status => break,
                // These PDUs may answer earlier commands.
                Pdu::Response(_) | Pdu::Data | Pdu::R2t(_) => {}
                other => return Err(Cut::Wrong(format!("{what}: {other:?} instead of {status:?}"))),
            }
        }
        self.close(at);
        Ok(())
    }

    /// Waits for the completion of `cid`, and returns it.
    pub async fn finish(&self, at: At, cid: u16) -> Result<Cqe, Cut> {
        loop {
            match self.pdu(at).await? {
                Pdu::Response(cqe) if cqe.cid == cid => return Ok(cqe),
                Pdu::Data => {}
                other => return Err(Cut::Wrong(format!("{other:?} instead of the completion of {cid}"))),
            }
        }
    }

    pub async fn command(&self, at: At, sqe: Sqe, data: &[u8]) -> Result<Cqe, Cut> {
        self.send(at, &self.capsule(at, sqe, data));
        self.finish(at, sqe.cid).await
    }

    /// Opens a connection, and exchanges ICReq and ICResp.
    pub async fn initialized(&self, digests: (bool, bool)) -> Result<At, Cut> {
        let at = self.open();
        self.send(at, &ic_req(digests));
        match self.pdu(at).await? {
            Pdu::IcResp => {}
            other => return Err(Cut::Wrong(format!("{other:?} instead of ICResp"))),
        }
        if let Some(framing) = &mut self.line(at).framing {
            (framing.header_digest, framing.data_digest) = digests;
            framing.max_data_bytes = 2 << 20;
        }
        Ok(at)
    }

    /// Returns the capsule of a Connect.
    pub fn connect_capsule(&self, at: At, cntlid: u16, qid: u16, entries: u16) -> (Vec<u8>, u16) {
        let nqn = |text: &str| Nqn::new(text).expect("the simulator's NQNs are valid");
        let mut data = [0; ConnectData::LEN];
        let (subnqn, hostnqn) = (nqn(SUBSYSTEM), nqn(self.host.get()));
        ConnectData { hostid: [0x66; 16], cntlid, subnqn, hostnqn }.emit(&mut data);
        let connect = Connect {
            recfmt: 0,
            qid,
            sqsize: entries - 1,
            attributes: ConnectAttributes::default(),
            kato_ms: 0,
        };
        let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: ConnectData::LEN as u32 };
        let cid = self.cid(at);
        (self.capsule(at, FabricsCommand::Connect(connect).sqe(cid, sgl), &data), cid)
    }

    /// Returns the capsule of a Connect to the discovery controller.
    pub fn discovery_capsule(&self, at: At, kato_ms: u32) -> Vec<u8> {
        let hostnqn = Nqn::new(self.host.get()).expect("the simulator's NQNs are valid");
        let mut data = [0; ConnectData::LEN];
        ConnectData { hostid: [0x67; 16], cntlid: DYNAMIC_CNTLID, subnqn: Nqn::DISCOVERY, hostnqn }
            .emit(&mut data);
        let attributes = ConnectAttributes::default();
        let connect = Connect { recfmt: 0, qid: 0, sqsize: 31, attributes, kato_ms };
        let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: ConnectData::LEN as u32 };
        self.capsule(at, FabricsCommand::Connect(connect).sqe(self.cid(at), sgl), &data)
    }

    async fn connect(&self, at: At, cntlid: u16, qid: u16, entries: u16) -> Result<u16, Cut> {
        let (capsule, cid) = self.connect_capsule(at, cntlid, qid, entries);
        self.send(at, &capsule);
        match ConnectResponse::parse(&self.finish(at, cid).await?) {
            ConnectResponse::Connected { cntlid, .. } => Ok(cntlid),
            // The first topology may not be published yet.
            _ => Err(Cut::Gone("Connect was refused")),
        }
    }

    /// Opens an enabled admin queue.
    pub async fn admin(&self) -> Result<(At, u16), Cut> {
        let at = self.initialized((false, false)).await?;
        let cntlid = self.connect(at, DYNAMIC_CNTLID, 0, 32).await?;
        self.enable(at, true).await?;
        Ok((at, cntlid))
    }

    /// Sets Number of Queues. Returns an error if the gateway grants fewer queues.
    pub async fn ask_queues(&self, at: At, count: u16) -> Result<(), Cut> {
        let value = u32::from(count - 1) << 16 | u32::from(count - 1);
        let set = SetFeatures { fid: fid::NUMBER_OF_QUEUES, cdw11: value, ..SetFeatures::default() };
        let sqe = AdminCommand::SetFeatures(set).sqe(self.cid(at), 0, Sgl::NONE);
        let cqe = self.command(at, sqe, &[]).await?;
        match cqe.status.is_ok() && cqe.dw0() == value {
            true => Ok(()),
            false => Err(Cut::Wrong(format!("{count} I/O queues: {cqe:?}"))),
        }
    }

    /// Opens an I/O queue.
    pub async fn queue(&self, cntlid: u16, qid: u16, entries: u16, digests: (bool, bool)) -> Result<At, Cut> {
        let at = self.initialized(digests).await?;
        self.connect(at, cntlid, qid, entries).await?;
        Ok(at)
    }

    /// Sets CC.EN to `en`, and waits until CSTS.RDY has the same value.
    pub async fn enable(&self, at: At, en: bool) -> Result<(), Cut> {
        let cc = Cc { en, iosqes: 6, iocqes: 4, ..Cc::default() };
        let set = PropertySet { size: PropertySize::Four, offset: offset::CC, value: u64::from(cc.bits()) };
        let sqe = FabricsCommand::PropertySet(set).sqe(self.cid(at), Sgl::NONE);
        self.command(at, sqe, &[]).await?;
        for _ in 0..300 {
            let get = PropertyGet { size: PropertySize::Four, offset: offset::CSTS };
            let sqe = FabricsCommand::PropertyGet(get).sqe(self.cid(at), Sgl::NONE);
            if Csts::from_bits(self.command(at, sqe, &[]).await?.dw0()).rdy == en {
                return Ok(());
            }
            self.sleep(Duration::from_millis(10)).await;
        }
        Err(Cut::Wrong(format!("CSTS.RDY does not become {en}")))
    }

    pub fn cid(&self, at: At) -> u16 {
        let mut line = self.line(at);
        line.next_cid += 1;
        line.next_cid
    }

    /// Returns a command capsule with its digests.
    pub fn capsule(&self, at: At, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let framing = self.line(at).framing.unwrap_or(Framing::initial(Receiver::Host));
        let mut header = [0; CapsuleCmd::LEN];
        let (hd, dd) = (framing.header_digest, framing.data_digest);
        let common = CapsuleCmd { sqe }.emit(hd, dd, 4, data.len() as u32, &mut header);
        assemble(&framing, &header, common, data)
    }

    /// Returns an H2CData PDU with `data` and its digests.
    pub fn h2c(&self, at: At, pdu: H2cData, data: &[u8]) -> Vec<u8> {
        let framing = self.line(at).framing.unwrap_or(Framing::initial(Receiver::Host));
        let mut header = [0; H2cData::LEN];
        let common = pdu.emit(framing.header_digest, framing.data_digest, 4, &mut header);
        assemble(&framing, &header, common, data)
    }
}

fn assemble(framing: &Framing, header: &[u8], common: CommonHeader, data: &[u8]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    if framing.header_digest {
        bytes.extend(digest(header).to_le_bytes());
    }
    if !data.is_empty() {
        bytes.resize(usize::from(common.pdo), 0);
        bytes.extend(data);
        if framing.data_digest {
            bytes.extend(digest(data).to_le_bytes());
        }
    }
    bytes
}

/// Returns an ICReq.
pub fn ic_req(digests: (bool, bool)) -> [u8; IcReq::LEN] {
    let mut bytes = [0; IcReq::LEN];
    let (header_digest, data_digest) = digests;
    IcReq { host_alignment_bytes: 4, header_digest, data_digest, max_r2t: 1 }.emit(&mut bytes);
    bytes
}
