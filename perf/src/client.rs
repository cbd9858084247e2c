//! The handler that runs on the load's core.

use crate::pattern;
use crate::phase::{Msg, Phase, Report, UNIT_BYTES};
use std::time::Duration;
use trefoil_poll::rand::Rng;
use trefoil_poll::uring_io::UringIo;
use trefoil_poll::{Arena, CoreId, FileDone, Handler, Instant, Io, SockEvent, SockId};
use trefoil_storage::initiator::{Command, ControllerConfig, ControllerEvent, Facts, Finished, Host};
use trefoil_wire::nvme::{BlockRange, IoCommand, Sgl};

type Driver = UringIo<Msg>;

const NOBODY: u32 = u32::MAX;
/// The client aborts a command of a load after this time.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// The handler of the load's core.
pub struct Client {
    arena: Arena,
    hosts: Vec<Worker>,
    /// The host of each socket, by [`SockId`].
    owners: Vec<u32>,
    /// Hosts that had an event since the last turn. Each host is listed once.
    touched: Vec<u32>,
    phase: Option<Phase>,
    report: Box<Report>,
    since: Instant,
    outstanding: usize,
    /// The time of the last completion, or of the start of the first outstanding command.
    last_done: Instant,
    /// True if the core must send `Msg::Quiet` once no command is outstanding.
    quiet_pending: bool,
    stopping: bool,
    random: Rng,
}

/// One host and its closed loop.
struct Worker {
    host: Host,
    nsid: u32,
    facts: Option<Facts>,
    /// Free tags. Each tag is lower than the host's depth.
    free: Vec<u32>,
    jobs: Vec<Job>,
    outstanding: usize,
    done: u64,
    /// The next unit of a sequential phase.
    next_unit: usize,
    touched: bool,
    deadline: Option<Instant>,
    model: Model,
}

/// One outstanding command.
#[derive(Clone, Copy, Default)]
struct Job {
    since: Instant,
    unit: usize,
    units: usize,
    read: bool,
    verify: bool,
}

/// The expected version of each unit of the namespace. Empty if reads are not checked.
#[derive(Default)]
struct Model {
    versions: Vec<u32>,
    busy: Vec<bool>,
}

impl Model {
    fn seed(unit: usize, version: u32) -> u64 {
        (unit as u64) << 32 | u64::from(version)
    }

    /// Returns whether the units hold the versions that the model expects. Version zero stands for the zeros of a new namespace.
    fn holds(&self, unit: usize, data: &[u8]) -> bool {
        data.chunks(UNIT_BYTES).zip(unit..).all(|(block, unit)| match self.versions[unit] {
            0 => block.iter().all(|&b| b == 0),
            version => pattern::holds(block, Self::seed(unit, version)),
        })
    }
}

impl Client {
    /// Creates the hosts of `configs`. Each host has room for its depth in `depths`. The hosts start to connect at once.
    pub fn new(
        io: &mut Driver,
        arena: Arena,
        configs: Vec<ControllerConfig>,
        depths: &[usize],
        max_sockets: usize,
    ) -> Self {
        let nsid = |config: &ControllerConfig| match config.purpose {
            trefoil_storage::initiator::Purpose::Nvm { nsid } => nsid,
            trefoil_storage::initiator::Purpose::Discovery => 0,
        };
        let mut hosts: Vec<Worker> = configs
            .into_iter()
            .zip(depths)
            .map(|(config, &depth)| Worker {
                nsid: nsid(&config),
                host: Host::new(config, depth, COMMAND_TIMEOUT),
                facts: None,
                free: (0..depth as u32).rev().collect(),
                jobs: vec![Job::default(); depth],
                outstanding: 0,
                done: 0,
                next_unit: 0,
                touched: false,
                deadline: None,
                model: Model::default(),
            })
            .collect();
        hosts.iter_mut().for_each(|worker| worker.host.start(io));
        let count = hosts.len();
        let mut client = Self {
            arena,
            hosts,
            owners: vec![NOBODY; max_sockets],
            touched: Vec::with_capacity(count),
            phase: None,
            report: Box::new(Report::new().expect("the bounds of the histogram are constants")),
            since: io.now(),
            outstanding: 0,
            last_done: io.now(),
            quiet_pending: false,
            stopping: false,
            random: Rng::new(io.random()),
        };
        (0..count).for_each(|at| client.touch(at));
        client
    }

    fn touch(&mut self, at: usize) {
        if !std::mem::replace(&mut self.hosts[at].touched, true) {
            self.touched.push(at as u32);
        }
    }

    /// Returns the host of a socket, and marks the host for its turn.
    fn host(&mut self, sock: SockId) -> Option<&mut Host> {
        let at = *self.owners.get(sock.0 as usize)? as usize;
        if at >= self.hosts.len() {
            return None;
        }
        self.touch(at);
        Some(&mut self.hosts[at].host)
    }

    fn on_event(&mut self, io: &mut Driver, at: usize, event: ControllerEvent) {
        match event {
            ControllerEvent::Up(facts) => {
                let worker = &mut self.hosts[at];
                if worker.facts.is_none() {
                    io.post_control(Msg::Up(at, Box::new(facts.clone())));
                }
                worker.facts = Some(facts);
            }
            ControllerEvent::Down(why) => io.post_control(Msg::Down(why.to_string())),
            ControllerEvent::Stopped if self.stopping => io.post_control(Msg::Quiet),
            _ => {}
        }
    }

    fn on_finished(&mut self, now: Instant, at: usize, finished: Finished) {
        let worker = &mut self.hosts[at];
        let Finished { mut command, result } = finished;
        let tag = command.tag as u32;
        let job = worker.jobs[tag as usize];
        match result {
            Ok(cqe) if cqe.status == trefoil_wire::nvme::Status::SUCCESS => {
                if job.read && job.verify && !worker.model.holds(job.unit, command.data()) {
                    self.report.mismatches += 1;
                } else if job.read {
                    touch_in(command.data());
                }
            }
            _ => self.report.errors += 1,
        }
        if job.verify {
            worker.model.busy[job.unit..job.unit + job.units].fill(false);
        }
        if let Some(buf) = command.take_buf() {
            self.arena.free(buf);
        }
        worker.free.push(tag);
        worker.outstanding -= 1;
        worker.done += 1;
        self.outstanding -= 1;
        self.report.ops += 1;
        self.report.longest_gap = self.report.longest_gap.max(now.since(self.last_done));
        self.last_done = now;
        self.report.payload_bytes += (job.units * UNIT_BYTES) as u64;
        self.report.latency_ns.saturating_record(now.since(job.since).as_nanos() as u64);
    }

    /// Starts commands on host `at` until the host has as many outstanding commands as the phase requires.
    fn refill(&mut self, now: Instant, at: usize) {
        let Some(phase) = self.phase.filter(|phase| at < phase.hosts) else { return };
        let worker = &mut self.hosts[at];
        let Some(facts) = &worker.facts else { return };
        let block_bytes = facts.block_bytes as usize;
        let units = facts.len_bytes() as usize / UNIT_BYTES;
        let job_units = phase.io_bytes / UNIT_BYTES;
        if phase.verify && worker.model.versions.len() != units {
            worker.model = Model { versions: vec![0; units], busy: vec![false; units] };
        }
        while worker.outstanding < phase.depth && !worker.free.is_empty() {
            if phase.limit > 0 && worker.done + worker.outstanding as u64 >= phase.limit {
                break;
            }
            let unit = match phase.sequential {
                true if worker.next_unit + job_units > units => break,
                true => worker.next_unit,
                false => self.random.below((units / job_units) as u64) as usize * job_units,
            };
            let read = self.random.below(100) < u64::from(phase.read_percent);
            if phase.verify && worker.model.busy[unit..unit + job_units].contains(&true) {
                continue;
            }
            let Some(mut buf) = self.arena.alloc(phase.io_bytes) else { break };
            let Some(tag) = worker.free.pop() else {
                self.arena.free(buf);
                break;
            };
            if phase.verify {
                worker.model.busy[unit..unit + job_units].fill(true);
            }
            let range = BlockRange::new(
                (unit * UNIT_BYTES / block_bytes) as u64,
                (phase.io_bytes / block_bytes) as u32,
            );
            let (verb, fill) = match read {
                true => (IoCommand::Read(range), None),
                false => (IoCommand::Write(range), Some(&mut buf[..phase.io_bytes])),
            };
            match fill {
                Some(data) if phase.verify => stamp(&mut worker.model, unit, data),
                Some(data) => data.iter_mut().step_by(64).for_each(|b| *b = tag as u8),
                None => {}
            }
            let sqe = verb.sqe(0, worker.nsid, Sgl::Transport { len_bytes: phase.io_bytes as u32 });
            let len = phase.io_bytes as u32;
            let command = match read {
                true => Command::fill(u64::from(tag), sqe, buf, 0, len),
                false => Command::send(u64::from(tag), sqe, buf, 0, len),
            };
            worker.jobs[tag as usize] =
                Job { since: now, unit, units: job_units, read, verify: phase.verify };
            match worker.host.submit(now, command) {
                Ok(()) => {
                    if self.outstanding == 0 {
                        self.last_done = now;
                    }
                    worker.next_unit = unit + job_units;
                    worker.outstanding += 1;
                    self.outstanding += 1;
                }
                Err(mut command) => {
                    // The host's queue is full. The next completion makes room.
                    worker.free.push(tag);
                    if phase.verify {
                        worker.model.busy[unit..unit + job_units].fill(false);
                        let undo = u32::from(!read);
                        worker.model.versions[unit..unit + job_units].iter_mut().for_each(|v| *v -= undo);
                    }
                    command.take_buf().into_iter().for_each(|buf| self.arena.free(buf));
                    break;
                }
            }
        }
    }

    /// Returns whether the phase will start no more commands.
    fn is_at_end(&self) -> bool {
        let Some(phase) = self.phase else { return true };
        let units = phase.io_bytes / UNIT_BYTES;
        let whole = |worker: &Worker| {
            let facts = worker.facts.as_ref();
            facts.is_some_and(|f| worker.next_unit + units > f.len_bytes() as usize / UNIT_BYTES)
        };
        let at_limit = |worker: &Worker| phase.limit > 0 && worker.done >= phase.limit;
        self.hosts.iter().take(phase.hosts).all(|w| at_limit(w) || (phase.sequential && whole(w)))
    }
}

/// Gives each unit a new version and writes the version into `data`.
fn stamp(model: &mut Model, unit: usize, data: &mut [u8]) {
    for (block, unit) in data.chunks_mut(UNIT_BYTES).zip(unit..) {
        model.versions[unit] += 1;
        pattern::fill(block, Model::seed(unit, model.versions[unit]));
    }
}

/// Reads each cache line, as a user of the data does.
fn touch_in(data: &[u8]) {
    std::hint::black_box(data.iter().step_by(64).fold(0, |sum, b| sum ^ b));
}

impl Handler<Driver> for Client {
    fn on_sock(&mut self, io: &mut Driver, sock: SockId, event: SockEvent<'_>) {
        let closed = matches!(event, SockEvent::Closed);
        match self.host(sock) {
            Some(host) => host.on_sock(io, sock, event),
            None => event.discard(&mut self.arena),
        }
        if closed && let Some(owner) = self.owners.get_mut(sock.0 as usize) {
            *owner = NOBODY;
        }
    }

    fn on_file(&mut self, _io: &mut Driver, done: FileDone) {
        done.buf.into_iter().for_each(|buf| self.arena.free(buf));
    }

    fn on_message(&mut self, io: &mut Driver, _from: Option<CoreId>, msg: Msg) {
        match msg {
            Msg::Run(phase) => {
                self.phase = Some(phase);
                self.quiet_pending = phase.limit > 0 || phase.sequential;
                for worker in &mut self.hosts {
                    (worker.done, worker.next_unit) = (0, 0);
                    if !phase.verify && phase.read_percent < 100 {
                        // The model doesn't know the contents after writes of an unverified phase.
                        worker.model = Model::default();
                    }
                }
                (0..self.hosts.len()).for_each(|at| self.touch(at));
            }
            Msg::Pause => {
                self.phase = None;
                self.quiet_pending = true;
            }
            Msg::Report(fresh) => {
                let mut report = std::mem::replace(&mut self.report, fresh);
                report.seconds = io.now().since(self.since).as_secs_f64();
                report.outstanding = self.outstanding;
                self.since = io.now();
                io.post_control(Msg::Report(report));
            }
            Msg::Stop => {
                self.phase = None;
                self.stopping = true;
                self.hosts.iter_mut().for_each(|worker| worker.host.stop(io));
                (0..self.hosts.len()).for_each(|at| self.touch(at));
            }
            Msg::Up(..) | Msg::Down(..) | Msg::Quiet => {}
        }
    }

    fn on_turn(&mut self, io: &mut Driver) -> bool {
        let now = io.now();
        for at in 0..self.hosts.len() {
            if self.hosts[at].deadline.is_some_and(|deadline| deadline <= now) {
                self.touch(at);
            }
        }
        let worked = !self.touched.is_empty();
        while let Some(at) = self.touched.pop() {
            let at = at as usize;
            self.hosts[at].touched = false;
            while let Some(finished) = self.hosts[at].host.next_finished(now) {
                self.on_finished(now, at, finished);
            }
            self.refill(now, at);
            self.hosts[at].host.on_turn(io, &mut self.arena);
            while let Some(sock) = self.hosts[at].host.take_new_sock() {
                if let Some(owner) = self.owners.get_mut(sock.0 as usize) {
                    *owner = at as u32;
                }
            }
            while let Some(event) = self.hosts[at].host.next_event() {
                self.on_event(io, at, event);
                self.touch(at);
            }
            self.hosts[at].deadline = self.hosts[at].host.next_deadline();
        }
        if self.quiet_pending && self.outstanding == 0 && self.is_at_end() {
            self.quiet_pending = false;
            io.post_control(Msg::Quiet);
        }
        worked
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.hosts.iter().filter_map(|worker| worker.deadline).min()
    }
}
