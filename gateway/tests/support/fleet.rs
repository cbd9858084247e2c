//! Many hosts on one core. Each host is an initiator of ours and has its own part of a namespace.
//!
//! Each tag of a host repeats one round by itself: write, read back, flush, write zeroes, read zeros, write with FUA, read
//! back, deallocate. Only this tag writes to its part of the namespace, so the tag knows the content that a read must find. The
//! core follows the rule of the data path: it allocates no memory after its start-up.

use super::{PATIENCE, Patience, arena_ids, host_nqn};
use std::net::SocketAddr;
use std::time::Duration;
use trefoil_poll::core::{CoreConfig, CoreHandle, Idle, spawn};
use trefoil_poll::{
    Arena, ArenaId, ControlReceiver, ControlSender, CoreId, FileDone, Handler, Instant, Io, MeshBounds,
    SockEvent, SockId, UringConfig, UringIo, mesh,
};
use trefoil_storage::initiator::{
    Command, ControllerConfig, ControllerError, ControllerEvent, FenceRule, Finished, Host, INLINE_BYTES,
    Identity, Purpose, QueueEntries,
};
use trefoil_sys::region::Region;
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::nvme::{BlockRange, DsmCommand, DsmRange, IoCommand, Sgl, Status};

const NOBODY: u32 = u32::MAX;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// A number of rounds that no test reaches. The sum over all tags doesn't overflow.
pub const ENDLESS: u64 = 1 << 40;
/// The start of the first host's part of the namespace. The bytes before this position are for other hosts of a test.
const FIRST_BYTE: u64 = 1 << 20;
/// The number of steps of one round.
const STEPS: u8 = 8;

/// One host.
#[derive(Clone, Debug)]
pub struct Spec {
    pub to: SocketAddr,
    pub host_nqn: String,
    pub subsystem_nqn: String,
    pub nsid: u32,
    pub io_queues: u16,
    pub digests: bool,
    /// The number of tags. Each has one command under way.
    pub tags: u32,
    /// The first byte of the host's part of the namespace.
    pub base: u64,
    /// The transfer sizes in bytes, one for each round in turn.
    pub sizes: &'static [u32],
}

impl Spec {
    /// Makes host `number` with its own part of the namespace. A part has room for `tags` transfers of the largest size.
    pub fn new(to: SocketAddr, number: usize, tags: u32, sizes: &'static [u32]) -> Self {
        let part = u64::from(tags) * u64::from(largest(sizes));
        Self {
            to,
            host_nqn: host_nqn(number),
            subsystem_nqn: super::SUBSYSTEM.into(),
            nsid: 1,
            io_queues: 1,
            digests: false,
            tags,
            base: FIRST_BYTE + number as u64 * part,
            sizes,
        }
    }
}

fn largest(sizes: &[u32]) -> u32 {
    sizes.iter().copied().max().unwrap_or(512)
}

/// Returns the settings with which a test's host connects to a controller.
pub fn controller_config(
    to: SocketAddr,
    host: &str,
    subsystem: &str,
    nsid: u32,
    io_queues: u16,
    digests: bool,
) -> ControllerConfig {
    let sum = host.bytes().fold(7u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    ControllerConfig {
        addrs: vec![to],
        identity: Identity {
            host_nqn: Nqn::new(host).expect("an NQN"),
            host_id: [sum | 1; 16],
            subsystem_nqn: Nqn::new(subsystem).expect("an NQN"),
        },
        purpose: Purpose::Nvm { nsid },
        digests: (digests, digests),
        kato_ms: 10_000,
        io_queues,
        entries: QueueEntries::new(33),
        reconnect: (Duration::from_millis(10), Duration::from_millis(200)),
        connect_timeout: Duration::from_secs(10),
        admin_timeout: Duration::from_secs(10),
        loss_timeout: Duration::from_secs(120),
        fence: FenceRule::Immediate,
        discovery_entries: 1,
    }
}

/// The counts of one host since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Commands that succeeded.
    pub ops: u64,
    /// Reads that returned wrong content.
    pub mismatches: u64,
    /// Commands that failed. `last_error` is the status of the last failed command, or `None` if its path was lost.
    pub errors: u64,
    pub last_error: Option<Status>,
    /// The number of times that the host has connected.
    pub ups: u64,
    pub last_down: Option<ControllerError>,
}

#[derive(Debug)]
enum FleetMsg {
    /// To the core: each tag of hosts `first..end` runs `rounds` rounds from now on.
    Run {
        first: u32,
        end: u32,
        rounds: u64,
    },
    /// To the core and back.
    Ask {
        host: u32,
    },
    Told {
        host: u32,
        tally: Tally,
        outstanding: u32,
        rounds_left: u64,
    },
    /// To the core: disconnect all hosts in an orderly way.
    Stop,
    Stopped,
}

/// The running hosts.
pub struct Fleet {
    core: CoreHandle<Crew>,
    to: ControlSender<FleetMsg>,
    from: ControlReceiver<FleetMsg>,
    hosts: u32,
}

impl Fleet {
    /// Starts the hosts. The hosts connect by themselves, and retry until they are connected.
    pub fn start(specs: &[Spec], arena_mib: usize) -> Self {
        let sockets: u32 = specs.iter().map(|spec| u32::from(spec.io_queues) + 1).sum();
        let uring = UringConfig {
            max_sockets: 2 * sockets + 16,
            max_files: 1,
            max_file_ops: 1,
            recv_buffers: 32,
            ..UringConfig::default()
        };
        let mut mesh = mesh::<FleetMsg>(1, MeshBounds::default()).expect("mailboxes");
        let ports = mesh.ports.pop().expect("one core");
        let to = mesh.to_cores.pop().expect("one core");
        let id = ArenaId(arena_ids(1));
        let owned = specs.to_vec();
        let max_sockets = uring.max_sockets as usize;
        let core = spawn(CoreConfig { cpu: None, idle: Idle::default(), uring }, ports, move |io| {
            let arena = Arena::new(id, Region::anonymous(arena_mib << 20).expect("memory"));
            Crew::new(io, arena, &owned, max_sockets)
        })
        .expect("a core");
        Self { core, to, from: mesh.from_cores, hosts: specs.len() as u32 }
    }

    /// Waits until each of `hosts` has connected `times` times since its start.
    pub fn wait_ups(&mut self, hosts: std::ops::Range<u32>, times: u64) {
        for host in hosts {
            let patience = Patience::new(format!("host {host} to come up {times} times"));
            loop {
                let (tally, ..) = self.ask(host);
                if tally.ups >= times {
                    break;
                }
                assert!(patience.left() > Duration::from_secs(1), "host {host} is not up: {tally:?}");
                patience.pause();
            }
        }
    }

    /// Starts `rounds` rounds on each tag of these hosts. With 0, the tags stop after their current commands.
    pub fn run(&mut self, hosts: std::ops::Range<u32>, rounds: u64) {
        self.tell(FleetMsg::Run { first: hosts.start, end: hosts.end, rounds });
    }

    /// Waits until the hosts have finished their rounds. Returns the counts of each host.
    pub fn wait_done(&mut self, hosts: std::ops::Range<u32>) -> Vec<Tally> {
        hosts
            .map(|host| {
                let patience = Patience::new(format!("host {host} to be done"));
                loop {
                    let (tally, outstanding, left) = self.ask(host);
                    if outstanding == 0 && left == 0 {
                        break tally;
                    }
                    assert!(
                        patience.left() > Duration::from_secs(1),
                        "host {host} has {outstanding} commands under way and {left} rounds to go: {tally:?}"
                    );
                    patience.pause();
                }
            })
            .collect()
    }

    /// Waits until a host has completed `ops` commands since its start.
    pub fn wait_ops(&mut self, host: u32, ops: u64) {
        let patience = Patience::new(format!("{ops} commands of host {host}"));
        while self.ask(host).0.ops < ops {
            patience.pause();
        }
    }

    /// Returns a host's counts since its start.
    pub fn tally(&mut self, host: u32) -> Tally {
        self.ask(host).0
    }

    /// Runs `rounds` rounds on all hosts and checks that nothing fails.
    pub fn check(&mut self, rounds: u64) {
        let before: Vec<_> = (0..self.hosts).map(|host| self.tally(host)).collect();
        self.run(0..self.hosts, rounds);
        for (host, (after, before)) in self.wait_done(0..self.hosts).iter().zip(before).enumerate() {
            assert!(after.ops > before.ops, "host {host} did nothing: {after:?}");
            assert_eq!(
                (after.errors, after.mismatches),
                (before.errors, before.mismatches),
                "host {host}: {after:?}"
            );
        }
    }

    /// Disconnects the hosts in an orderly way, ends the core and checks the core's arena.
    pub fn finish(mut self) {
        self.run(0..self.hosts, 0);
        self.wait_done(0..self.hosts);
        self.tell(FleetMsg::Stop);
        let patience = Patience::new("the hosts to disconnect");
        let mut left = self.hosts;
        while left > 0 {
            match self.from.pop() {
                Some((_, FleetMsg::Stopped)) => left -= 1,
                Some(_) => {}
                None => patience.pause(),
            }
        }
        self.core.stop();
        let mut crew = self.core.join().expect("the hosts' core ended well");
        crew.hosts.iter_mut().for_each(|sailor| sailor.host.release(&mut crew.arena));
        assert_eq!(crew.arena.free_bytes(), crew.arena.capacity_bytes(), "a host kept a block");
    }

    fn ask(&mut self, host: u32) -> (Tally, u32, u64) {
        self.tell(FleetMsg::Ask { host });
        let patience = Patience::new(format!("the tally of host {host}"));
        loop {
            match self.from.pop() {
                Some((_, FleetMsg::Told { host: told, tally, outstanding, rounds_left })) => {
                    assert_eq!(told, host, "one question at a time");
                    return (tally, outstanding, rounds_left);
                }
                Some((_, other)) => panic!("the hosts' core sent {other:?}"),
                None => {
                    assert!(!self.core.is_finished(), "the hosts' core has ended; its panic is above");
                    std::thread::sleep(patience.left().min(Duration::from_micros(200)));
                }
            }
        }
    }

    fn tell(&mut self, mut msg: FleetMsg) {
        let patience = Patience::new("room in the mailbox of the hosts' core");
        while let Err(back) = self.to.send(msg) {
            msg = back;
            patience.pause();
        }
    }
}

/// The handler of the hosts' core.
struct Crew {
    arena: Arena,
    hosts: Vec<Sailor>,
    owners: Vec<u32>,
    stopping: bool,
}

/// One host.
struct Sailor {
    host: Host,
    nsid: u32,
    base: u64,
    stride: u64,
    sizes: &'static [u32],
    block_bytes: u32,
    jobs: Vec<Job>,
    outstanding: u32,
    tally: Tally,
    stopped: bool,
}

/// The progress of one tag.
#[derive(Clone, Copy, Default)]
struct Job {
    round: u64,
    rounds: u64,
    step: u8,
    busy: bool,
    content: Content,
}

/// The content that a read of a tag's part must find.
#[derive(Clone, Copy, Default, PartialEq)]
enum Content {
    #[default]
    Unknown,
    Zeros,
    Seed(u64),
}

impl Content {
    fn holds(self, data: &[u8]) -> bool {
        match self {
            Self::Unknown => true,
            Self::Zeros => data.iter().all(|&byte| byte == 0),
            Self::Seed(seed) => words(seed).zip(data.chunks_exact(8)).all(|(word, bytes)| word == bytes),
        }
    }
}

/// Returns words of eight bytes that depend on `seed` and on their position.
fn words(seed: u64) -> impl Iterator<Item = [u8; 8]> {
    (seed..).map(|at| at.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
}

impl Crew {
    fn new(io: &mut UringIo<FleetMsg>, arena: Arena, specs: &[Spec], max_sockets: usize) -> Self {
        let mut hosts: Vec<_> = specs.iter().map(Sailor::new).collect();
        hosts.iter_mut().for_each(|sailor| sailor.host.start(io));
        Self { arena, hosts, owners: vec![NOBODY; max_sockets], stopping: false }
    }

    fn host(&mut self, sock: SockId) -> Option<&mut Host> {
        let at = *self.owners.get(sock.0 as usize)?;
        Some(&mut self.hosts.get_mut(at as usize)?.host)
    }
}

impl Sailor {
    fn new(spec: &Spec) -> Self {
        let config = controller_config(
            spec.to,
            &spec.host_nqn,
            &spec.subsystem_nqn,
            spec.nsid,
            spec.io_queues,
            spec.digests,
        );
        Self {
            host: Host::new(config, spec.tags as usize, COMMAND_TIMEOUT),
            nsid: spec.nsid,
            base: spec.base,
            stride: u64::from(largest(spec.sizes)),
            sizes: spec.sizes,
            block_bytes: 0,
            jobs: vec![Job::default(); spec.tags as usize],
            outstanding: 0,
            tally: Tally::default(),
            stopped: false,
        }
    }

    /// Starts the next command on each idle tag.
    fn refill(&mut self, now: Instant, arena: &mut Arena) {
        if self.block_bytes == 0 {
            return;
        }
        for tag in 0..self.jobs.len() {
            let job = self.jobs[tag];
            if job.busy || job.round >= job.rounds {
                continue;
            }
            let Some(command) = self.command(tag, arena) else { return };
            match self.host.submit(now, command) {
                Ok(()) => {
                    self.jobs[tag].busy = true;
                    self.outstanding += 1;
                }
                Err(mut command) => {
                    command.take_buf().into_iter().for_each(|buf| arena.free(buf));
                    return;
                }
            }
        }
    }

    /// Returns the next command of a tag, or `None` if the arena has no free memory now.
    fn command(&mut self, tag: usize, arena: &mut Arena) -> Option<Command> {
        let job = &mut self.jobs[tag];
        let len = self.sizes[job.round as usize % self.sizes.len()];
        let (slba, nlb) =
            ((self.base + tag as u64 * self.stride) / u64::from(self.block_bytes), len / self.block_bytes);
        let range = BlockRange::new(slba, nlb);
        let name = tag as u64;
        let plain = |verb: IoCommand| Command::bare(name, verb.sqe(0, self.nsid, Sgl::NONE));
        Some(match job.step {
            0 | 5 => {
                let mut buf = arena.alloc(len as usize)?;
                let seed = self.base.wrapping_mul(31) ^ name << 40 ^ job.round << 8 ^ u64::from(job.step);
                buf[..len as usize]
                    .chunks_exact_mut(8)
                    .zip(words(seed))
                    .for_each(|(to, word)| to.copy_from_slice(&word));
                job.content = Content::Seed(seed);
                let verb = IoCommand::Write(BlockRange { fua: job.step == 5, ..range });
                Command::send(name, verb.sqe(0, self.nsid, Sgl::NONE), buf, 0, len)
            }
            1 | 4 | 6 => {
                let buf = arena.alloc(len as usize)?;
                Command::fill(name, IoCommand::Read(range).sqe(0, self.nsid, Sgl::NONE), buf, 0, len)
            }
            2 => plain(IoCommand::Flush),
            3 => {
                job.content = Content::Zeros;
                plain(IoCommand::WriteZeroes { range, deac: false })
            }
            _ => {
                job.content = Content::Unknown;
                let dsm =
                    DsmCommand { ranges: 1, integral_read: false, integral_write: false, deallocate: true };
                let mut bytes = [0; INLINE_BYTES];
                DsmRange { attributes: 0, nlb, slba }.emit(&mut bytes);
                Command::inline(name, IoCommand::Dsm(dsm).sqe(0, self.nsid, Sgl::NONE), bytes)
            }
        })
    }

    fn finished(&mut self, finished: Finished, arena: &mut Arena) {
        let Finished { mut command, result } = finished;
        let job = &mut self.jobs[command.tag as usize];
        match result {
            Ok(cqe) if cqe.status.is_ok() => {
                self.tally.ops += 1;
                if matches!(job.step, 1 | 4 | 6) && !job.content.holds(command.data()) {
                    self.tally.mismatches += 1;
                }
            }
            other => {
                self.tally.errors += 1;
                self.tally.last_error = other.ok().map(|cqe| cqe.status);
                job.content = Content::Unknown;
            }
        }
        command.take_buf().into_iter().for_each(|buf| arena.free(buf));
        job.busy = false;
        self.outstanding -= 1;
        job.step += 1;
        if job.step == STEPS {
            (job.step, job.round) = (0, job.round + 1);
        }
    }

    fn rounds_left(&self) -> u64 {
        self.jobs.iter().map(|job| job.rounds.saturating_sub(job.round)).sum()
    }
}

impl Handler<UringIo<FleetMsg>> for Crew {
    fn on_sock(&mut self, io: &mut UringIo<FleetMsg>, sock: SockId, event: SockEvent<'_>) {
        let closed = matches!(event, SockEvent::Closed);
        match self.host(sock) {
            Some(host) => host.on_sock(io, sock, event),
            None => event.discard(&mut self.arena),
        }
        if closed && let Some(owner) = self.owners.get_mut(sock.0 as usize) {
            *owner = NOBODY;
        }
    }

    fn on_file(&mut self, _io: &mut UringIo<FleetMsg>, done: FileDone) {
        done.buf.into_iter().for_each(|buf| self.arena.free(buf));
    }

    fn on_message(&mut self, io: &mut UringIo<FleetMsg>, _from: Option<CoreId>, msg: FleetMsg) {
        match msg {
            FleetMsg::Run { first, end, rounds } => {
                for sailor in &mut self.hosts[first as usize..end as usize] {
                    for job in &mut sailor.jobs {
                        // If a tag was stopped within a round, it continues this round, so that its reads have the same size as
                        // its write.
                        job.rounds = job.round + rounds;
                    }
                }
            }
            FleetMsg::Ask { host } => {
                let sailor = &self.hosts[host as usize];
                io.post_control(FleetMsg::Told {
                    host,
                    tally: sailor.tally,
                    outstanding: sailor.outstanding,
                    rounds_left: sailor.rounds_left(),
                });
            }
            FleetMsg::Stop => {
                self.stopping = true;
                self.hosts.iter_mut().for_each(|sailor| sailor.host.stop(io));
            }
            FleetMsg::Told { .. } | FleetMsg::Stopped => {}
        }
    }

    fn on_turn(&mut self, io: &mut UringIo<FleetMsg>) -> bool {
        let now = io.now();
        let mut worked = false;
        for at in 0..self.hosts.len() {
            let sailor = &mut self.hosts[at];
            while let Some(finished) = sailor.host.next_finished(now) {
                sailor.finished(finished, &mut self.arena);
                worked = true;
            }
            if !self.stopping {
                sailor.refill(now, &mut self.arena);
            }
            sailor.host.on_turn(io, &mut self.arena);
            while let Some(sock) = sailor.host.take_new_sock() {
                if let Some(owner) = self.owners.get_mut(sock.0 as usize) {
                    *owner = at as u32;
                }
            }
            while let Some(event) = sailor.host.next_event() {
                worked = true;
                match event {
                    ControllerEvent::Up(facts) => {
                        sailor.block_bytes = facts.block_bytes;
                        sailor.tally.ups += 1;
                    }
                    ControllerEvent::Down(why) => sailor.tally.last_down = Some(why),
                    ControllerEvent::Stopped if self.stopping && !sailor.stopped => {
                        sailor.stopped = true;
                        io.post_control(FleetMsg::Stopped);
                    }
                    _ => {}
                }
            }
        }
        worked
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.hosts.iter().filter_map(|sailor| sailor.host.next_deadline()).min()
    }
}

const _: () = assert!(PATIENCE.as_secs() > COMMAND_TIMEOUT.as_secs());
