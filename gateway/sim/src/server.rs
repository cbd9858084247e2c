//! A server: our own NVMe/TCP host with one controller for each LUN. The server runs a verified workload.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use trefoil_poll::{Arena, Buf, CoreId, FileDone, Handler, Instant, Io, SockEvent, SockId};
use trefoil_storage::Fault;
use trefoil_storage::initiator::{
    Command, ControllerConfig, ControllerError, ControllerEvent, FenceRule, Finished, Host, Identity,
    Purpose, QueueEntries, QueueError,
};
use trefoil_storage::topology::Access;
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::nvme::{BlockRange, DsmCommand, DsmRange, IoCommand, Sgl, Status, StatusType};

use crate::direct::{StorageMsg, StorageSim};
use crate::model::{Job, Kind, stamp};
use crate::simio::SOCKETS;
use crate::workload::{MAX_BYTES, Workload};
use crate::world::Machine;

/// NQN of the subsystem that every gateway of the simulator presents.
pub const SUBSYSTEM: &str = "nqn.2014-08.org.trefoil.sim:subsystem";
/// Keep alive timeout that servers request.
pub const KATO: Duration = Duration::from_secs(1);
const DEPTH: usize = 12;
/// After the model refused work, a server waits before it asks again: the shortest and the longest wait.
const RETRY: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(5));
/// Time that servers wait for a lost path. Commands of a removed LUN wait for the same time.
pub const LOSS_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause before a server retries a command that ended with an ANA status.
const ANA_PAUSE: Duration = Duration::from_millis(50);

/// Returns the NQN of server `number`.
pub fn host_nqn(number: u16) -> String {
    format!("nqn.2014-08.org.trefoil.sim:server{number}")
}

/// Configuration of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Number of the server.
    pub number: u16,
    /// Address of the gateway.
    pub addr: SocketAddr,
    /// LUNs that the server may see. The NSID is the LUN's index plus 1.
    pub luns: Vec<usize>,
    /// LUNs that the server tries to reach although it may not see them.
    pub forbidden: Vec<usize>,
    /// True if the server requests both digests.
    pub digests: bool,
    /// Rule for when the server retries lost writes.
    pub fence: FenceRule,
}

/// The machine of a server; see the module.
pub struct ServerCore {
    number: u16,
    hosts: Vec<(usize, Host)>,
    /// LUNs whose controllers must never come up.
    forbidden: Vec<usize>,
    /// For each LUN, true if its controller came up and has not given up since then.
    usable: Vec<bool>,
    /// For each LUN, the access that the gateway reports.
    access: Vec<Access>,
    /// Commands that ended with an ANA status, each with the time of its retry. As with multipath software, no user sees an ANA
    /// status.
    held: Vec<(Instant, usize, Command)>,
    owners: Vec<Option<usize>>,
    slots: Vec<(u32, Option<Job>)>,
    workload: Rc<RefCell<Workload>>,
    now: Instant,
    /// Time at which the server last began an operation.
    began: Instant,
    arena: Arena,
}

impl ServerCore {
    /// Returns a server that starts to connect at once.
    pub fn new(
        io: &mut StorageSim,
        arena: Arena,
        config: &ServerConfig,
        workload: Rc<RefCell<Workload>>,
    ) -> Self {
        let nqn = |text: &str| Nqn::new(text).expect("the simulator's NQNs are valid");
        let host = |&lun: &usize| {
            let forbidden = config.forbidden.contains(&lun);
            let config = ControllerConfig {
                addrs: vec![config.addr],
                identity: Identity {
                    host_nqn: nqn(&host_nqn(config.number)),
                    host_id: [config.number as u8 + 1; 16],
                    subsystem_nqn: nqn(SUBSYSTEM),
                },
                purpose: Purpose::Nvm { nsid: lun as u32 + 1 },
                digests: (config.digests, config.digests),
                kato_ms: KATO.as_millis() as u32,
                io_queues: 2,
                entries: QueueEntries::new(17),
                reconnect: (
                    Duration::from_millis(5),
                    Duration::from_millis(if forbidden { 5000 } else { 200 }),
                ),
                connect_timeout: Duration::from_secs(2),
                admin_timeout: Duration::from_secs(2),
                loss_timeout: LOSS_TIMEOUT,
                fence: config.fence,
                discovery_entries: 0,
            };
            let mut host = Host::new(config, DEPTH, Duration::from_secs(5));
            host.start(io);
            (lun, host)
        };
        Self {
            number: config.number,
            hosts: config.luns.iter().chain(&config.forbidden).map(host).collect(),
            usable: vec![false; config.luns.len() + config.forbidden.len()],
            access: vec![Access::FULL; config.luns.len() + config.forbidden.len()],
            held: Vec::new(),
            forbidden: config.forbidden.clone(),
            owners: vec![None; SOCKETS],
            slots: vec![(0, None); DEPTH],
            workload,
            now: Instant::default(),
            began: Instant::default(),
            arena,
        }
    }

    /// Returns the LUNs that the server is connected to, each with the access rights that the gateway last reported.
    pub fn accesses(&self) -> impl Iterator<Item = (usize, Access)> {
        let hosts = self.hosts.iter().zip(&self.access).filter(|((_, host), _)| host.controller().is_ready());
        hosts.map(|((lun, _), access)| (*lun, *access))
    }

    fn begin(&mut self) -> bool {
        let Some(slot) = self.slots.iter().position(|(_, job)| job.is_none()) else { return false };
        let Some(buf) = self.arena.alloc(MAX_BYTES) else { return false };
        let hosts = self.hosts.iter().zip(&self.usable);
        let ready = |lun| hosts.clone().any(|((of, _), usable)| *of == lun && *usable);
        let Some(job) = self.workload.borrow_mut().take(ready) else {
            self.arena.free(buf);
            return false;
        };
        self.began = self.now;
        self.slots[slot].0 += 1;
        let tag = u64::from(self.slots[slot].0) << 32 | slot as u64;
        let command = self.command(tag, &job, buf);
        let lun = job.lun;
        self.slots[slot].1 = Some(job);
        let now = self.now;
        let Some((_, host)) = self.hosts.iter_mut().find(|(of, _)| *of == lun) else {
            unreachable!("the workload was asked for LUNs of ours only");
        };
        if let Err(mut command) = host.submit(now, command) {
            // The host's lanes are full, so the command was never sent.
            command.take_buf().into_iter().for_each(|buf| self.arena.free(buf));
            self.settle(tag, Err(Fault::Aborted), &[], true);
        }
        true
    }

    fn command(&mut self, tag: u64, job: &Job, mut buf: Buf) -> Command {
        let (len, nlb) = (job.len_bytes(), job.blocks as u32);
        let nsid = job.lun as u32 + 1;
        let sqe = |command: IoCommand| command.sqe(0, nsid, Sgl::NONE);
        let range = |fua| BlockRange { fua, ..BlockRange::new(job.lba, nlb) };
        match job.kind {
            Kind::Read => {
                buf[..len].fill(0xEE);
                Command::fill(tag, sqe(IoCommand::Read(range(false))), buf, 0, len as u32)
            }
            Kind::Write { durable } => {
                stamp(job, &mut buf[..len]);
                Command::send(tag, sqe(IoCommand::Write(range(durable))), buf, 0, len as u32)
            }
            kind => {
                self.arena.free(buf);
                match kind {
                    Kind::Zero { durable, deallocate: deac } => {
                        Command::bare(tag, sqe(IoCommand::WriteZeroes { range: range(durable), deac }))
                    }
                    Kind::Deallocate => {
                        let dsm = DsmCommand { ranges: 1, deallocate: true, ..Default::default() };
                        let mut inline = [0; DsmRange::LEN];
                        DsmRange { attributes: 0, nlb, slba: job.lba }.emit(&mut inline);
                        Command::inline(tag, sqe(IoCommand::Dsm(dsm)), inline)
                    }
                    Kind::Flush | Kind::Read | Kind::Write { .. } => {
                        Command::bare(tag, sqe(IoCommand::Flush))
                    }
                }
            }
        }
    }

    fn settle(&mut self, tag: u64, result: Result<(), Fault>, data: &[u8], excused: bool) {
        let slot = self.slots.get_mut((tag & 0xffff_ffff) as usize);
        let job = slot
            .filter(|(generation, _)| u64::from(*generation) == tag >> 32)
            .and_then(|(_, job)| job.take());
        let mut workload = self.workload.borrow_mut();
        match job {
            Some(job) if excused => workload.model.withdraw(job.id),
            Some(job) => workload.model.finish(job.id, result, data),
            None => workload.model.violate(format!("a completion that nobody waits for: tag {tag:#x}")),
        }
    }

    fn finished(&mut self, index: usize, finished: Finished) {
        let Finished { mut command, result } = finished;
        let is_ana =
            |status: Status| status.is(Status::ANA_INACCESSIBLE) || status.is(Status::ANA_PERSISTENT_LOSS);
        if result.as_ref().map_or_else(|fault| *fault == Fault::Inaccessible, |cqe| is_ana(cqe.status)) {
            return self.held.push((self.now + ANA_PAUSE, index, command));
        }
        if let Ok(cqe) = &result
            && !cqe.status.is_ok()
        {
            let (number, tag, status) = (self.number, command.tag, cqe.status);
            self.workload.borrow_mut().model.note(format!("server {number} tag {tag:#x}: {status}"));
        }
        let result = match result {
            Ok(cqe) if cqe.status.is_ok() => Ok(()),
            Ok(cqe) if cqe.status.is(Status::INVALID_NAMESPACE) => Err(Fault::Gone),
            Ok(cqe) if cqe.status.is(Status::LBA_OUT_OF_RANGE) => Err(Fault::OutOfRange),
            Ok(cqe) if cqe.status.sct() == StatusType::Path && !cqe.status.is_dnr() => Err(Fault::PathLost),
            Ok(_) => Err(Fault::MediaWrite),
            Err(fault) => Err(fault),
        };
        let tag = command.tag;
        let is_read = command.sqe.opcode == trefoil_wire::nvme::io_opcode::READ;
        let buf = if is_read { None } else { command.take_buf() };
        let data = if is_read { command.data().to_vec() } else { Vec::new() };
        self.settle(tag, result, &data, false);
        buf.or_else(|| command.take_buf()).into_iter().for_each(|buf| self.arena.free(buf));
    }

    fn after_event(&mut self) {
        let number = self.number;
        for (index, (lun, host)) in self.hosts.iter_mut().enumerate() {
            while let Some(sock) = host.take_new_sock() {
                self.owners[sock.0 as usize] = Some(index);
            }
            while let Some(event) = host.next_event() {
                let mut workload = self.workload.borrow_mut();
                match event {
                    ControllerEvent::Up(_) if self.forbidden.contains(lun) => {
                        workload.model.violate(format!("a server sees LUN {lun}, which it may not"));
                    }
                    ControllerEvent::Up(_) => self.usable[index] = true,
                    ControllerEvent::GaveUp => self.usable[index] = false,
                    ControllerEvent::Access(access) => self.access[index] = access,
                    _ => {}
                }
                if let ControllerEvent::Down(ControllerError::Queue {
                    why: QueueError::Violation(what), ..
                }) = event
                    && !workload.bits_flip
                {
                    workload.model.violate(format!("the gateway broke the protocol: {what}"));
                }
                match event {
                    ControllerEvent::Down(why) => {
                        workload.model.note(format!("server {number} LUN {lun}: down: {why}"))
                    }
                    ControllerEvent::Up(_) => workload.model.note(format!("server {number} LUN {lun}: up")),
                    other => workload.model.note(format!("server {number} LUN {lun}: {other:?}")),
                }
            }
        }
    }

    fn host(&mut self, sock: SockId) -> Option<&mut Host> {
        let index = self.owners.get(sock.0 as usize).copied().flatten()?;
        self.hosts.get_mut(index).map(|(_, host)| host)
    }
}

impl Machine<StorageMsg> for ServerCore {
    fn into_arena(self) -> Option<Arena> {
        Some(self.arena)
    }
}

impl Handler<StorageSim> for ServerCore {
    fn on_sock(&mut self, io: &mut StorageSim, sock: SockId, event: SockEvent<'_>) {
        let closed = matches!(event, SockEvent::Closed);
        match self.host(sock) {
            Some(host) => host.on_sock(io, sock, event),
            None => event.discard(&mut self.arena),
        }
        if closed {
            self.owners[sock.0 as usize] = None;
        }
        self.after_event();
    }

    fn on_file(&mut self, _: &mut StorageSim, done: FileDone) {
        unreachable!("{done:?} of a server without files");
    }

    fn on_message(&mut self, _: &mut StorageSim, from: Option<CoreId>, msg: StorageMsg) {
        unreachable!("{msg:?} from {from:?} to a server");
    }

    fn on_turn(&mut self, io: &mut StorageSim) -> bool {
        self.now = io.now();
        while self.begin() {}
        for index in 0..self.hosts.len() {
            self.hosts[index].1.on_turn(io, &mut self.arena);
            while let Some(finished) = self.hosts[index].1.next_finished(io.now()) {
                self.finished(index, finished);
            }
        }
        for _ in 0..self.held.len() {
            let (at, index, command) = self.held.remove(0);
            let late = at > self.now;
            match if late { Err(command) } else { self.hosts[index].1.submit(self.now, command) } {
                Ok(()) => self.hosts[index].1.on_turn(io, &mut self.arena),
                Err(command) if late => self.held.push((at, index, command)),
                Err(command) => self.held.push((self.now + ANA_PAUSE, index, command)),
            }
        }
        self.after_event();
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        let idle = self.slots.iter().any(|(_, job)| job.is_none());
        // The pause grows with the time since the last operation began.
        let pause = (self.now.since(self.began) / 8).clamp(RETRY.0, RETRY.1);
        let work = (idle && self.workload.borrow().wants_more()).then(|| self.now + pause);
        let held = self.held.iter().map(|(at, ..)| *at);
        self.hosts.iter().filter_map(|(_, host)| host.next_deadline()).chain(work).chain(held).min()
    }
}
