//! One admin queue, command by command: what a host's tool does, without a host's own life cycle.

use anyhow::{Context, Result, anyhow, bail};
use std::net::SocketAddr;
use std::time::Duration;
use trefoil_poll::core::{CoreConfig, CoreHandle, spawn};
use trefoil_poll::mesh::{ControlReceiver, ControlSender, MeshBounds, mesh};
use trefoil_poll::uring_io::{UringConfig, UringIo};
use trefoil_poll::{
    Arena, ArenaId, Buf, CoreId, FileDone, Handler, Instant, Io, RecvEnd, SendList, SockError, SockId,
};
use trefoil_storage::initiator::{Command, Identity, Open, Qpair, QpairEvent};
use trefoil_sys::region::Region;
use trefoil_wire::fabrics::{DYNAMIC_CNTLID, FabricsCommand, PropertyGet, PropertySet, PropertySize};
use trefoil_wire::nvme::identify::IDENTIFY_LEN;
use trefoil_wire::nvme::property::{Cc, Csts, offset};
use trefoil_wire::nvme::{AdminCommand, Cqe, GetLogPage, IdentifyCommand, Sgl, Sqe};

const DEPTH: u16 = 32;
const WITHIN: Duration = Duration::from_secs(10);
const ARENA_BYTES: usize = 2 << 20;
/// Bytes of a log page that are read at a time.
const LOG_STEP_BYTES: u64 = 64 << 10;

enum Msg {
    /// To the core: send this; its data has so many bytes.
    Do(Sqe, u32),
    /// From the core: connected.
    Up,
    /// From the core: the answer with its data.
    Done(Cqe, Vec<u8>),
    /// From the core: it is over.
    Down(String),
}

/// A connected, enabled controller.
pub struct Admin {
    core: CoreHandle<Client>,
    to: ControlSender<Msg>,
    from: ControlReceiver<Msg>,
}

impl Admin {
    /// Connects to the subsystem and enables the controller.
    ///
    /// # Errors
    /// What the sockets or the controller say.
    pub fn connect(to: SocketAddr, identity: Identity) -> Result<Self> {
        let uring = UringConfig { max_sockets: 4, max_files: 1, max_file_ops: 1, ..UringConfig::default() };
        let mut mesh = mesh::<Msg>(1, MeshBounds::default())?;
        let ports = mesh.ports.pop().context("a mesh of one core")?;
        let to_core = mesh.to_cores.pop().context("a mesh of one core")?;
        let region = Region::anonymous(ARENA_BYTES)?;
        let open = Open {
            to,
            cntlid: DYNAMIC_CNTLID,
            depth: DEPTH,
            kato_ms: 0,
            max_capsule_data_bytes: 8192,
            within: WITHIN,
        };
        let config = CoreConfig { uring, ..CoreConfig::default() };
        let core = spawn(config, ports, move |io| {
            let mut qpair = Qpair::new(identity, 0, DEPTH, (false, false), WITHIN);
            if let Err(why) = qpair.open(io, open) {
                io.post_control(Msg::Down(why.to_string()));
            }
            Client { arena: Arena::new(ArenaId(101), region), qpair }
        })?;
        let mut admin = Self { core, to: to_core, from: mesh.from_cores };
        match admin.next()? {
            Msg::Up => {}
            _ => bail!("{to} answered before it was connected"),
        }
        admin.enable()?;
        Ok(admin)
    }

    fn enable(&mut self) -> Result<()> {
        let cc = Cc { en: true, iosqes: 6, iocqes: 4, ..Cc::default() };
        let set = PropertySet { size: PropertySize::Four, offset: offset::CC, value: cc.bits().into() };
        self.command(FabricsCommand::PropertySet(set).sqe(0, Sgl::NONE), 0)?;
        let end = std::time::Instant::now() + WITHIN;
        let get = PropertyGet { size: PropertySize::Four, offset: offset::CSTS };
        while std::time::Instant::now() < end {
            let (cqe, _) = self.command(FabricsCommand::PropertyGet(get).sqe(0, Sgl::NONE), 0)?;
            if Csts::from_bits(cqe.dw0()).rdy {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the controller is not ready within {WITHIN:?}")
    }

    /// Identify data.
    ///
    /// # Errors
    /// If the controller refuses, naming its status.
    pub fn identify(&mut self, cns: u8, nsid: u32) -> Result<Vec<u8>> {
        let command = AdminCommand::Identify(IdentifyCommand { cns, ..Default::default() });
        let len = IDENTIFY_LEN as u32;
        let sqe = command.sqe(0, nsid, Sgl::Transport { len_bytes: len });
        Ok(self.command(sqe, len).with_context(|| format!("Identify, CNS {cns:#04x}, namespace {nsid}"))?.1)
    }

    /// The first `len_bytes` of a log page.
    ///
    /// # Errors
    /// If the controller refuses, naming its status.
    pub fn log_page(&mut self, lid: u8, len_bytes: u64) -> Result<Vec<u8>> {
        let mut page = Vec::new();
        while (page.len() as u64) < len_bytes {
            let lpo = page.len() as u64;
            let step = LOG_STEP_BYTES.min(len_bytes - lpo);
            let log = GetLogPage { lid, len_bytes: step, lpo, ..Default::default() };
            let sqe = AdminCommand::GetLogPage(log).sqe(0, 0, Sgl::Transport { len_bytes: step as u32 });
            let (_, data) = self.command(sqe, step as u32).with_context(|| format!("log page {lid:#04x}"))?;
            page.extend(data);
        }
        Ok(page)
    }

    /// Ends the connection.
    ///
    /// # Errors
    /// What the core says.
    pub fn close(self) -> Result<()> {
        self.core.stop();
        self.core.join()?;
        Ok(())
    }

    fn command(&mut self, sqe: Sqe, len_bytes: u32) -> Result<(Cqe, Vec<u8>)> {
        self.to.send(Msg::Do(sqe, len_bytes)).map_err(|_| anyhow!("the core takes no messages"))?;
        match self.next()? {
            Msg::Done(cqe, data) if cqe.status.is_ok() => Ok((cqe, data)),
            Msg::Done(cqe, _) => bail!("refused: {}", cqe.status),
            _ => bail!("an answer that nobody asked for"),
        }
    }

    fn next(&mut self) -> Result<Msg> {
        let end = std::time::Instant::now() + 2 * WITHIN;
        loop {
            match self.from.pop() {
                Some((_, Msg::Down(why))) => bail!("the connection ended: {why}"),
                Some((_, msg)) => return Ok(msg),
                None if std::time::Instant::now() > end => bail!("no answer within {:?}", 2 * WITHIN),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// What runs on the core.
struct Client {
    arena: Arena,
    qpair: Qpair,
}

type Driver = UringIo<Msg>;

impl Handler<Driver> for Client {
    fn on_received(&mut self, io: &mut Driver, _sock: SockId, bytes: &[u8]) {
        self.qpair.on_received(io, bytes);
    }

    fn on_filled(&mut self, io: &mut Driver, _sock: SockId, buf: Buf) {
        self.qpair.on_filled(io, buf);
    }

    fn on_recv_end(&mut self, io: &mut Driver, _sock: SockId, buf: Option<Buf>, why: RecvEnd) {
        self.qpair.on_recv_end(io, buf, why);
    }

    fn on_sent(
        &mut self,
        io: &mut Driver,
        _sock: SockId,
        list: Box<SendList>,
        result: Result<(), SockError>,
    ) {
        self.qpair.on_sent(io, list, result);
    }

    fn on_connected(&mut self, io: &mut Driver, _sock: SockId, result: Result<(), SockError>) {
        self.qpair.on_connected(io, result);
    }

    fn on_closed(&mut self, io: &mut Driver, _sock: SockId) {
        self.qpair.on_closed(io);
    }

    fn on_file(&mut self, _io: &mut Driver, _done: FileDone) {}

    fn on_message(&mut self, io: &mut Driver, _from: Option<CoreId>, msg: Msg) {
        let Msg::Do(sqe, len) = msg else { return };
        let command = match len {
            0 => Command::bare(0, sqe),
            _ => match self.arena.alloc(len as usize) {
                Some(buf) => Command::fill(0, sqe, buf, 0, len),
                None => return io.post_control(Msg::Down(format!("no memory for {len} bytes"))),
            },
        };
        if let Err(mut command) = self.qpair.submit(io.now(), command) {
            command.take_buf().into_iter().for_each(|buf| self.arena.free(buf));
            io.post_control(Msg::Down("the queue is not up".into()));
        }
    }

    fn on_turn(&mut self, io: &mut Driver) -> bool {
        let mut worked = false;
        if self.qpair.next_deadline().is_some_and(|at| at <= io.now()) {
            self.qpair.on_tick(io);
            worked = true;
        }
        while let Some(mut done) = self.qpair.next_done() {
            let data = done.command.data().to_vec();
            done.command.take_buf().into_iter().for_each(|buf| self.arena.free(buf));
            if let Ok(cqe) = done.result {
                io.post_control(Msg::Done(cqe, data));
            }
            worked = true;
        }
        while let Some(event) = self.qpair.next_event() {
            match event {
                QpairEvent::Up { .. } => io.post_control(Msg::Up),
                QpairEvent::Down(why) => io.post_control(Msg::Down(why.to_string())),
                QpairEvent::Expired { .. } => {}
            }
            worked = true;
        }
        self.qpair.flush(io);
        worked
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.qpair.next_deadline()
    }
}
