//! A core that runs the LUN layer and its backends, with a workload in place of a frontend.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use trefoil_storage::backend::Attach;
use trefoil_storage::cx::InstantMemory;

use trefoil_poll::ram::Ram;
use trefoil_poll::{Arena, Buf, CoreId, FileDone, Handler, Instant, Io, Loan, SockEvent, SockId};
use trefoil_storage::topology::{BackendId, LunId};
use trefoil_storage::{Completed, Cx, Luns, Msg, Op, Origin, Owner, Request};

use crate::model::{Job, Kind, stamp};
use crate::simio::{SimFile, SimIo, SimSocket};
use crate::workload::Workload;
use crate::world::Machine;

/// The messages that the cores of a simulated gateway send each other.
pub type StorageMsg = Msg<SimSocket, Attach<SimFile>>;
/// The driver of a simulated gateway's core.
pub type StorageSim = SimIo<StorageMsg>;

/// Operations that one core keeps under way.
const DEPTH: usize = 8;
/// After the model refused work, a core waits for this time before it asks again.
const RETRY: Duration = Duration::from_micros(40);

/// The loan of a read. The workload keeps the loan for a while before it checks the data, as a socket keeps a loan while it
/// sends.
struct Borrowed {
    /// The loan. Under a mutation, the workload returns the loan at once and takes another loan when it checks the data.
    loan: Option<Loan>,
    job: Job,
    /// The contents of the memory when it was lent.
    then: Vec<u8>,
    until: Instant,
}

/// Longest time for which the workload keeps a loan.
const BORROWED: Duration = Duration::from_micros(300);

/// The machine of a core; see the module.
pub struct LunCore {
    // This field comes first, because its loans must end before the memory is dropped.
    borrowed: Vec<Borrowed>,
    luns: Luns<StorageSim>,
    requests: VecDeque<Request>,
    done: VecDeque<Completed>,
    slots: Vec<(u32, Option<Job>)>,
    workload: Rc<RefCell<Workload>>,
    now: Instant,
    // This field comes last, because all fields that hold its blocks must be dropped before it.
    arena: Arena,
}

macro_rules! cx {
    ($core:ident, $io:ident) => {
        &mut Cx {
            io: $io,
            arena: &mut $core.arena,
            requests: &mut $core.requests,
            done: &mut $core.done,
            luns: None,
        }
    };
}

impl LunCore {
    /// Returns a core without backends and LUNs.
    pub fn new(io: &StorageSim, arena: Arena, workload: Rc<RefCell<Workload>>) -> Self {
        Self {
            // Room for the requests of all cores and for some requests of the control thread.
            luns: Luns::new(io.core(), DEPTH * usize::from(io.cores()) + 64),
            requests: VecDeque::new(),
            done: VecDeque::new(),
            slots: vec![(0, None); DEPTH],
            borrowed: Vec::with_capacity(DEPTH),
            workload,
            now: io.now(),
            arena,
        }
    }

    /// Returns the number of allocated bytes of the core's arena.
    pub fn held_bytes(&self) -> usize {
        self.arena.capacity_bytes() - self.arena.free_bytes()
    }

    /// Returns the memory of a backend, if this core has it.
    pub fn ram(&self, id: BackendId) -> Option<&Ram> {
        self.luns.ram(id)
    }

    /// Returns the number of requests that wait for their backend.
    pub fn waiting(&self) -> usize {
        self.luns.waiting()
    }

    /// Returns whether the core's workload has borrowed memory.
    pub fn borrows(&self) -> bool {
        !self.borrowed.is_empty()
    }

    /// Ends the loans whose time is over and finishes their reads. Returns true if at least one loan ended.
    fn give_back(&mut self) -> bool {
        let mut any = false;
        let mut at = 0;
        while at < self.borrowed.len() {
            if self.borrowed[at].until > self.now {
                at += 1;
                continue;
            }
            any = true;
            let Borrowed { loan, job, then, .. } = self.borrowed.swap_remove(at);
            let (offset, len) = (job.lba * job.block_bytes as u64, job.len_bytes() as u32);
            let loan = loan.or_else(|| self.luns.lend(LunId(job.lun as u32), offset, len));
            let mut workload = self.workload.borrow_mut();
            if let Some(loan) = loan.filter(|loan| **loan != *then) {
                workload.model.violate(format!("{loan:?} changed while it was lent to {job:?}"));
            }
            workload.model.finish(job.id, Ok(()), &then);
        }
        any
    }

    fn drain(&mut self, io: &mut StorageSim) {
        loop {
            while let Some(request) = self.requests.pop_front() {
                self.luns.submit(cx!(self, io), request);
            }
            let Some(done) = self.done.pop_front() else { break };
            let Some(done) = self.luns.on_completed(cx!(self, io), done, |_| true) else { continue };
            let origin = done.origin();
            match origin.owner {
                _ if origin.core != io.core() => io.post(origin.core, Msg::Completed(done)),
                Owner::Workload => self.settle(io, done),
                Owner::Control | Owner::Target => io.post_control(Msg::Completed(done)),
            }
        }
    }

    fn settle(&mut self, io: &mut StorageSim, mut done: Completed) {
        let (origin, loan) = (done.origin(), done.take_loan());
        let (buf, result) = done.settle();
        let slot = self.slots.get_mut(origin.slot as usize);
        let job =
            slot.filter(|(generation, _)| *generation == origin.generation).and_then(|(_, job)| job.take());
        let mut workload = self.workload.borrow_mut();
        match job {
            Some(job) if let Some(loan) = loan => {
                let until = self.now + Duration::from_nanos(io.random() % BORROWED.as_nanos() as u64);
                let then = loan.to_vec();
                let loan = Some(loan).filter(|_| !io.is_broken("overwritten-loan"));
                self.borrowed.push(Borrowed { loan, job, then, until });
            }
            Some(job) => {
                let len = job.len_bytes();
                let data = buf.as_deref().and_then(|buf| buf.get(..len)).unwrap_or_default();
                workload.model.finish(job.id, result, data);
            }
            None => workload.model.violate(format!("a completion that nobody waits for: {origin:?}")),
        }
        buf.into_iter().for_each(|buf| self.arena.free(buf));
    }

    fn begin(&mut self, io: &StorageSim) -> bool {
        let Some(slot) = self.slots.iter().position(|(_, job)| job.is_none()) else { return false };
        // An operation begins only if the largest operation fits into the arena.
        let Some(buf) = self.arena.alloc(crate::workload::MAX_BYTES) else {
            return false;
        };
        let Some(job) = self.workload.borrow_mut().take(|_| true) else {
            self.arena.free(buf);
            return false;
        };
        let request = self.request(io, slot, &job, buf);
        self.requests.push_back(request);
        self.slots[slot].1 = Some(job);
        true
    }

    fn request(&mut self, io: &StorageSim, slot: usize, job: &Job, mut buf: Buf) -> Request {
        let len = job.len_bytes();
        let (op, durable) = match job.kind {
            Kind::Read => (Op::Read, false),
            Kind::Write { durable } => (Op::Write, durable),
            Kind::Flush => (Op::Flush, false),
            Kind::Zero { durable, deallocate } => (Op::WriteZeroes { deallocate }, durable),
            Kind::Deallocate => (Op::Deallocate, false),
        };
        let buf = match op {
            Op::Read | Op::Write => {
                // Bytes that are neither read nor stamped must not look valid.
                buf[..len].fill(0xEE);
                if op == Op::Write {
                    stamp(job, &mut buf[..len]);
                }
                Some(buf)
            }
            Op::Flush | Op::WriteZeroes { .. } | Op::Deallocate => {
                self.arena.free(buf);
                None
            }
        };
        let generation = &mut self.slots[slot].0;
        *generation += 1;
        let origin = Origin {
            core: io.core(),
            home: self.arena.id().0,
            owner: Owner::Workload,
            slot: slot as u32,
            generation: *generation,
        };
        let offset = job.lba * job.block_bytes as u64;
        let request = Request::new(op, LunId(job.lun as u32), offset, len as u64, buf, origin);
        request.durable(durable).may_lend(op == Op::Read)
    }
}

impl Machine<StorageMsg> for LunCore {
    fn into_arena(self) -> Option<Arena> {
        Some(self.arena)
    }
}

impl Handler<StorageSim> for LunCore {
    fn on_sock(&mut self, _: &mut StorageSim, sock: SockId, _: SockEvent<'_>) {
        unreachable!("{sock:?} of a core that opens none");
    }

    fn on_file(&mut self, io: &mut StorageSim, done: FileDone) {
        self.luns.on_file(cx!(self, io), done);
        self.drain(io);
    }

    fn on_message(&mut self, io: &mut StorageSim, from: Option<CoreId>, msg: StorageMsg) {
        match msg {
            Msg::Topology(new) => {
                let epoch = new.epoch;
                let old = self.luns.on_topology(new);
                io.post_control(Msg::TopologyDone { epoch, old });
            }
            Msg::Attach(id, attach) => self.luns.attach(cx!(self, io), id, attach),
            Msg::Detach(id) => self.luns.detach(cx!(self, io), id),
            Msg::BackendIo(id, request) | Msg::Submit(id, request) => {
                self.luns.submit_backend(cx!(self, io), id, request);
            }
            Msg::Completed(done) => self.done.push_back(done),
            other => unreachable!("{other:?} from {from:?} to a core without frontends"),
        }
        self.drain(io);
    }

    fn on_turn(&mut self, io: &mut StorageSim) -> bool {
        self.now = io.now();
        let gave_back = self.give_back();
        let worked = self.luns.on_turn(cx!(self, io)) || gave_back;
        while self.begin(io) {}
        self.drain(io);
        worked
    }

    fn next_deadline(&self) -> Option<Instant> {
        let idle = self.slots.iter().any(|(_, job)| job.is_none());
        let work = (idle && self.workload.borrow().wants_more()).then(|| self.now + RETRY);
        self.borrowed.iter().map(|borrowed| borrowed.until).chain(work).min()
    }
}
