//! One admin queue to another subsystem. The caller sends command by command, as a host's tool does. The queue has no
//! keep-alive and no reconnect. The control plane uses such a queue to list an array's subsystems and namespaces before they
//! become backends.
//!
//! The queue is not on the cores that serve hosts. The queue blocks its caller. The queue has a core and a ring of its own,
//! which end with the queue.

use std::net::SocketAddr;
use std::time::Duration;
use trefoil_poll::core::{CoreConfig, CoreHandle, spawn};
use trefoil_poll::mesh::{ControlReceiver, ControlSender, MeshBounds, mesh};
use trefoil_poll::uring_io::{UringConfig, UringIo};
use trefoil_poll::{Arena, ArenaId, CoreId, FileDone, Handler, Instant, Io, SockEvent, SockId};
use trefoil_storage::initiator::{Command, Identity, Open, Qpair, QpairEvent, QueueEntries};
use trefoil_sys::region::Region;
use trefoil_wire::fabrics::discovery::{DiscoveryLog, LogEntry, LogHeader};
use trefoil_wire::fabrics::{DYNAMIC_CNTLID, FabricsCommand, PropertyGet, PropertySet, PropertySize};
use trefoil_wire::nvme::identify::{IDENTIFY_LEN, NamespaceList, cns};
use trefoil_wire::nvme::log::lid;
use trefoil_wire::nvme::property::{Cc, Csts, offset};
use trefoil_wire::nvme::{AdminCommand, Cqe, GetLogPage, IdentifyCommand, Sgl, Sqe};

const WITHIN: Duration = Duration::from_secs(10);
const ARENA_BYTES: usize = 2 << 20;
/// Bytes of a log page that one command reads.
const LOG_STEP_BYTES: u64 = 64 << 10;
/// Most entries that are read from a discovery log. Entries beyond the limit are left out.
const MAX_ENTRIES: u64 = 4096;
/// Most namespaces that are listed: far more than the backends that a gateway can have.
const MAX_NAMESPACES: usize = 16 * NamespaceList::MAX;
/// Most attempts to read a discovery log that changes during the read.
const ATTEMPTS: usize = 8;
/// Home of this core's memory blocks. The number is higher than the home of any core that serves hosts.
const HOME: u16 = 255;

/// A failure of the other subsystem, or of the path to that subsystem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The system gave no ring, thread or memory for the core.
    #[error("the core for this connection can't run: {0}")]
    Core(String),
    /// The connection ended, or could not be made.
    #[error("{0}")]
    Ended(String),
    /// The subsystem did not answer in time.
    #[error("the subsystem gave no answer within {0:?}")]
    Silent(Duration),
    /// The subsystem refused a command.
    #[error("{what} was refused: {status}")]
    Refused {
        /// The command.
        what: String,
        /// The command's status.
        status: String,
    },
    /// An answer makes no sense.
    #[error("{0}")]
    Senseless(&'static str),
}

type Result<T, E = AdminError> = std::result::Result<T, E>;

fn core_error(e: impl std::fmt::Display) -> AdminError {
    AdminError::Core(e.to_string())
}

enum Msg {
    /// To the core: send this command. The command's data has this number of bytes.
    Do(Sqe, u32),
    /// From the core: the queue is connected.
    Up,
    /// From the core: the answer and its data.
    Done(Cqe, Vec<u8>),
    /// From the core: the connection is over.
    Down(String),
}

/// A connected, enabled controller.
pub struct Admin {
    core: Option<CoreHandle<Client>>,
    to: ControlSender<Msg>,
    from: ControlReceiver<Msg>,
}

impl Admin {
    /// Connects to the subsystem and enables the controller.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn connect(to: SocketAddr, identity: Identity) -> Result<Self> {
        let uring = UringConfig { max_sockets: 4, max_files: 1, max_file_ops: 1, ..UringConfig::default() };
        let mut mesh = mesh::<Msg>(1, MeshBounds::default()).map_err(core_error)?;
        let ports = mesh.ports.pop().ok_or(AdminError::Senseless("the mesh has no core"))?;
        let to_core = mesh.to_cores.pop().ok_or(AdminError::Senseless("the mesh has no core"))?;
        let region = Region::anonymous(ARENA_BYTES).map_err(core_error)?;
        let open = Open {
            to,
            cntlid: DYNAMIC_CNTLID,
            entries: QueueEntries::ADMIN,
            kato_ms: 0,
            max_capsule_data_bytes: 8192,
            within: WITHIN,
        };
        let config = CoreConfig { uring, ..CoreConfig::default() };
        let core = spawn(config, ports, move |io| {
            let mut qpair = Qpair::new(identity, 0, QueueEntries::ADMIN, (false, false), WITHIN);
            if let Err(why) = qpair.open(io, open) {
                io.post_control(Msg::Down(why.to_string()));
            }
            Client { arena: Arena::new(ArenaId(HOME), region), qpair }
        })
        .map_err(core_error)?;
        let mut admin = Self { core: Some(core), to: to_core, from: mesh.from_cores };
        match admin.next()? {
            Msg::Up => {}
            _ => return Err(AdminError::Senseless("the subsystem answered before the connection was up")),
        }
        admin.enable()?;
        Ok(admin)
    }

    fn enable(&mut self) -> Result<()> {
        let cc = Cc { en: true, iosqes: 6, iocqes: 4, ..Cc::default() };
        let set = PropertySet { size: PropertySize::Four, offset: offset::CC, value: cc.bits().into() };
        self.command("Property Set CC", FabricsCommand::PropertySet(set).sqe(0, Sgl::NONE), 0)?;
        let end = std::time::Instant::now() + WITHIN;
        let get = PropertyGet { size: PropertySize::Four, offset: offset::CSTS };
        while std::time::Instant::now() < end {
            let get = FabricsCommand::PropertyGet(get).sqe(0, Sgl::NONE);
            let (cqe, _) = self.command("Property Get CSTS", get, 0)?;
            if Csts::from_bits(cqe.dw0()).rdy {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(AdminError::Silent(WITHIN))
    }

    /// Reads Identify data.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn identify(&mut self, cns: u8, nsid: u32) -> Result<Vec<u8>> {
        let command = AdminCommand::Identify(IdentifyCommand { cns, ..Default::default() });
        let len = IDENTIFY_LEN as u32;
        let sqe = command.sqe(0, nsid, Sgl::Transport { len_bytes: len });
        Ok(self.command(&format!("Identify, CNS {cns:#04x}, namespace {nsid}"), sqe, len)?.1)
    }

    /// Reads the first `len_bytes` of a log page.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn log_page(&mut self, lid: u8, len_bytes: u64) -> Result<Vec<u8>> {
        let mut page = Vec::new();
        while (page.len() as u64) < len_bytes {
            let lpo = page.len() as u64;
            let step = LOG_STEP_BYTES.min(len_bytes - lpo);
            let log = GetLogPage { lid, len_bytes: step, lpo, ..Default::default() };
            let sqe = AdminCommand::GetLogPage(log).sqe(0, 0, Sgl::Transport { len_bytes: step as u32 });
            let (_, data) = self.command(&format!("log page {lid:#04x}"), sqe, step as u32)?;
            page.extend(data);
        }
        Ok(page)
    }

    /// Returns the NSIDs of all active namespaces, in order (NVMe base 2.0c §5.17.2.3).
    ///
    /// # Errors
    /// [`AdminError`]. A list of more namespaces than could become backends is an error too, because a faulty subsystem could
    /// send a list without end.
    pub fn namespaces(&mut self) -> Result<Vec<u32>> {
        let mut nsids = Vec::new();
        loop {
            let after = nsids.last().copied().unwrap_or(0);
            let page = self.identify(cns::ACTIVE_NAMESPACES, after)?;
            if is_last_page(&mut nsids, &page)? {
                return Ok(nsids);
            }
        }
    }

    /// Returns the entries of the discovery log that have valid names. All entries are from one generation of the log.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn discovery_log(&mut self) -> Result<Vec<LogEntry>> {
        let short = AdminError::Senseless("the subsystem's discovery log is too short");
        for _ in 0..ATTEMPTS {
            let header = self.log_page(lid::DISCOVERY, LogHeader::LEN as u64)?;
            let before = DiscoveryLog::parse(&header).map_err(|_| short.clone())?.header;
            let len = LogHeader::LEN as u64 + before.numrec.min(MAX_ENTRIES) * LogEntry::LEN as u64;
            let page = self.log_page(lid::DISCOVERY, len)?;
            let log = DiscoveryLog::parse(&page).map_err(|_| short.clone())?;
            let header = self.log_page(lid::DISCOVERY, LogHeader::LEN as u64)?;
            let after = DiscoveryLog::parse(&header).map_err(|_| short.clone())?.header;
            if after.genctr == before.genctr && log.header.genctr == before.genctr {
                return Ok(log.entries().flatten().collect());
            }
        }
        Err(AdminError::Senseless(
            "the subsystem's discovery log changed during each of several reads: try again",
        ))
    }

    /// Ends the connection.
    ///
    /// # Errors
    /// [`AdminError::Core`].
    pub fn close(mut self) -> Result<()> {
        let Some(core) = self.core.take() else { return Ok(()) };
        core.stop();
        core.join().map(drop).map_err(core_error)
    }

    fn command(&mut self, what: &str, sqe: Sqe, len_bytes: u32) -> Result<(Cqe, Vec<u8>)> {
        self.to.send(Msg::Do(sqe, len_bytes)).map_err(|_| core_error("the core takes no messages"))?;
        match self.next()? {
            Msg::Done(cqe, data) if cqe.status.is_ok() => Ok((cqe, data)),
            Msg::Done(cqe, _) => {
                Err(AdminError::Refused { what: what.into(), status: cqe.status.to_string() })
            }
            _ => Err(AdminError::Senseless("the subsystem sent an answer without a request")),
        }
    }

    fn next(&mut self) -> Result<Msg> {
        let end = std::time::Instant::now() + 2 * WITHIN;
        loop {
            match self.from.pop() {
                Some((_, Msg::Down(why))) => return Err(AdminError::Ended(why)),
                Some((_, msg)) => return Ok(msg),
                None if std::time::Instant::now() > end => return Err(AdminError::Silent(2 * WITHIN)),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Appends a page of a namespace list to `nsids`. Returns whether this page is the last.
fn is_last_page(nsids: &mut Vec<u32>, page: &[u8]) -> Result<bool> {
    let page =
        page.first_chunk().ok_or(AdminError::Senseless("the subsystem's list of namespaces is too short"))?;
    let after = nsids.last().copied().unwrap_or(0);
    let before = nsids.len();
    nsids.extend(NamespaceList::parse(page).iter());
    let new = nsids.get(before..).unwrap_or_default();
    if new.iter().any(|nsid| *nsid <= after) || !new.is_sorted() {
        return Err(AdminError::Senseless("the subsystem's list of namespaces is out of order"));
    }
    let is_last = new.len() < NamespaceList::MAX;
    if nsids.len() > MAX_NAMESPACES {
        return Err(AdminError::Senseless("the subsystem has more namespaces than a gateway can use"));
    }
    Ok(is_last)
}

impl Drop for Admin {
    fn drop(&mut self) {
        // After a failure, `close` is not called. The core is then stopped here, and nobody waits until the core has ended.
        self.core.iter().for_each(CoreHandle::stop);
    }
}

/// The handler that runs on the core.
struct Client {
    arena: Arena,
    qpair: Qpair,
}

type Driver = UringIo<Msg>;

impl Handler<Driver> for Client {
    fn on_sock(&mut self, io: &mut Driver, _sock: SockId, event: SockEvent<'_>) {
        self.qpair.on_sock(io, event);
    }

    fn on_file(&mut self, _io: &mut Driver, _done: FileDone) {}

    fn on_message(&mut self, io: &mut Driver, _from: Option<CoreId>, msg: Msg) {
        let Msg::Do(sqe, len) = msg else { return };
        let command = match len {
            0 => Command::bare(0, sqe),
            _ => match self.arena.alloc(len as usize) {
                Some(buf) => Command::fill(0, sqe, buf, 0, len),
                None => {
                    return io.post_control(Msg::Down(format!(
                        "the core has no memory for a command with {len} bytes of data"
                    )));
                }
            },
        };
        if let Err(mut command) = self.qpair.submit(io.now(), command) {
            command.take_buf().into_iter().for_each(|buf| self.arena.free(buf));
            io.post_control(Msg::Down("the admin queue is not connected".into()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use trefoil_wire::fabrics::Nqn;
    use trefoil_wire::tcp::{CapsuleCmd, IcReq, IcResp};

    #[test]
    fn the_admin_queue_of_backend_discover_has_32_entries() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = listener.local_addr().expect("bound");
        let array = std::thread::spawn(move || {
            let (mut host, _) = listener.accept().expect("a connection");
            host.read_exact(&mut [0; IcReq::LEN]).expect("ICReq");
            let mut icresp = [0; IcResp::LEN];
            let max_h2c_data_bytes = 4096;
            let answer = IcResp {
                controller_alignment_bytes: 4,
                header_digest: false,
                data_digest: false,
                max_h2c_data_bytes,
            };
            answer.emit(&mut icresp);
            host.write_all(&icresp).expect("sent");
            let mut capsule = [0; CapsuleCmd::LEN];
            host.read_exact(&mut capsule).expect("Connect");
            FabricsCommand::parse(&CapsuleCmd::parse(&capsule).sqe)
        });
        let nqn = |text: &str| Nqn::new(text).expect("an NQN");
        let identity = Identity {
            host_nqn: nqn("nqn.2024-01.test:host"),
            host_id: [7; 16],
            subsystem_nqn: nqn("nqn.2024-01.test:array"),
        };
        let ended = Admin::connect(to, identity).err();
        assert!(matches!(ended, Some(AdminError::Ended(_))), "the array hangs up: {ended:?}");
        match array.join().expect("no panic") {
            FabricsCommand::Connect(connect) => assert_eq!((connect.qid, connect.sqsize), (0, 31)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_list_of_namespaces_without_end_is_refused() {
        let mut nsids = Vec::new();
        let mut next = 1u32;
        let refused = (0..1000).find_map(|_| {
            let page: Vec<u8> = (next..).take(NamespaceList::MAX).flat_map(u32::to_le_bytes).collect();
            next += NamespaceList::MAX as u32;
            is_last_page(&mut nsids, &page).err()
        });
        assert_eq!(
            refused,
            Some(AdminError::Senseless("the subsystem has more namespaces than a gateway can use"))
        );
        let mut few = Vec::new();
        let mut page = [0; IDENTIFY_LEN];
        page[..8].copy_from_slice(&[1, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(is_last_page(&mut few, &page), Ok(true));
        assert_eq!(few, [1, 9]);
        assert!(is_last_page(&mut few, &page).is_err(), "it begins again");
    }
}
