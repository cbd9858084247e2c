//! Associations: Connect, Join between cores, and the end of an association (NVMe base 2.0c §3.1.1, §6.3, §3.6).
//!
//! # When commands of an association can no longer take effect
//! A host that lost its association sends writes again, perhaps over other paths. An old copy of a write must not take effect
//! after the new copy. A host can rely on either of two proofs that no old copy is left (NVMe base 2.1 §9.6, TP4129), and the
//! target must make both true:
//! - State: CSTS.RDY 0 after a reset, or CSTS.SHST 2h after a shutdown. A queue stays a member of its controller until its
//!   connection is closed *and* each request that the queue gave to the LUN layer has completed, on any core. RDY and SHST
//!   change only after the last member has left.
//! - Time: 2 × KATO after the host last heard from the controller, plus CQT. The target notices the loss of a host after at
//!   most one KATO of silence. In the turn in which the target notices the loss, it closes the connections, starts nothing new,
//!   and cancels the requests at backends. [`ARRAY_QUIESCE_MS`](crate::initiator::ARRAY_QUIESCE_MS) is the longest time that
//!   such requests may take.
//!
//! Many hosts wait for neither proof when a connection breaks: they connect again at once and send their writes again. So an
//! ended controller stays in the table until its last member has left. While any core has such a controller, a new controller
//! of the same host is not ready (CSTS.RDY). The new controller asks all cores at Connect, and again when the host reads CSTS.
//! This check misses two cases: a loss that the target has not noticed yet, and a host that continues over another association
//! that already existed. In these cases, hosts must rely on the time.

use crate::cx::Cx;
use crate::frontend::limits::{MAX_IO_QUEUES, MAX_QUEUE_ENTRIES};
use crate::frontend::nvme::capacity::MAX_CNTLID;
use crate::frontend::nvme::ctrlr::{CtrlrKind, CtrlrMember};
use crate::frontend::nvme::drain::Leaving;
use crate::frontend::nvme::engine::{CommandStep, Engine};
use crate::frontend::nvme::queue::{Names, QueueState, hash};
use crate::frontend::nvme::refusals::reason;
use crate::frontend::nvme::slot::Phase;
use crate::frontend::timers::Timer;
use crate::list::NIL;
use crate::msg::{ConnectRefusal, CtrlrMsg, HostName, Msg, StorageIo};
use crate::topology::PortalId;
use std::time::Duration;
use trefoil_poll::{CoreId, Instant, SockId};
use trefoil_wire::fabrics::{
    Connect, ConnectData, ConnectFields, ConnectRejection, ConnectResponse, DYNAMIC_CNTLID, FabricsCommand,
    Nqn,
};
use trefoil_wire::nvme::{Cqe, Status};

/// Keep Alive granularity, KAS: the target rounds a timeout up to a multiple of KAS.
pub const KAS_100MS: u16 = 10;
/// Cursor of a Connect's slot once all of the Connect's data has come.
const DATA_IS_IN: u32 = 1;
/// Range of the identifiers of discovery controllers: all identifiers.
const ANY_CNTLID: (u16, u16) = (1, MAX_CNTLID);

impl Engine {
    /// Executes a Connect whose data is in the slot.
    pub(super) fn connect<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
        connect: Connect,
    ) -> CommandStep {
        self.slots[at].cursor = DATA_IS_IN;
        match self.decide_connect(cx, at, connect) {
            Ok(step) => step,
            Err(refusal) => self.answer_connect(at, refusal),
        }
    }

    fn answer_connect(&mut self, at: u32, response: ConnectResponse) -> CommandStep {
        let Cqe { result, status, .. } = response.cqe(0, 0);
        self.slots[at].result = result;
        self.fail(at, status)
    }

    fn decide_connect<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
        connect: Connect,
    ) -> Result<CommandStep, ConnectResponse> {
        let queue = self.slots[at].queue;
        if self.queues[queue as usize].state != QueueState::New {
            return Err(ConnectResponse::Failed(Status::COMMAND_SEQUENCE_ERROR.dnr()));
        }
        if connect.recfmt != 0 {
            return Err(ConnectResponse::Failed(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr()));
        }
        if connect.sqsize == 0 || connect.sqsize >= MAX_QUEUE_ENTRIES {
            return Err(ConnectResponse::InvalidParameter(ConnectRejection::SQSIZE));
        }
        let data = self.slots[at].buf.as_deref().and_then(|buf| buf.first_chunk());
        let data = data.ok_or(ConnectResponse::Failed(Status::DATA_SGL_LENGTH_INVALID.dnr()))?;
        let data =
            ConnectData::parse(data).map_err(|error| ConnectResponse::InvalidParameter(error.rejection()))?;
        self.names[queue as usize] =
            Names { subnqn: data.subnqn, hostnqn: data.hostnqn, hostid: data.hostid };
        let q = &mut self.queues[queue as usize];
        q.discovery = data.subnqn.is_discovery();
        q.qid = connect.qid;
        // The Connect itself is the queue's first entry. So the head moves to 1, whatever the queue's depth.
        q.depth = connect.sqsize + 1;
        q.sqhd = 1 % q.depth;
        q.no_flow_control = connect.attributes.no_sq_flow_control;
        let decided = match connect.qid {
            0 => self.connect_admin(cx, at, connect, &data),
            _ => self.join(cx, at, connect, &data),
        };
        if decided.is_err() {
            let q = &mut self.queues[queue as usize];
            (q.qid, q.depth, q.no_flow_control) = (0, MAX_QUEUE_ENTRIES, false);
        }
        decided
    }

    /// Decides whether a host may connect to a subsystem through this portal. Returns the subsystem's index in the topology (0
    /// for discovery).
    fn admit(&self, queue: u32, data: &ConnectData) -> Result<u32, ConnectResponse> {
        self.allowed(self.places[queue as usize].portal, data).map_err(|why| match why {
            ConnectRefusal::Host => ConnectResponse::Failed(Status::CONNECT_INVALID_HOST.dnr()),
            // The host must not learn which subsystems exist elsewhere.
            _ => ConnectResponse::InvalidParameter(ConnectRejection::SUBNQN),
        })
    }

    /// Counts the Connect in slot `at`, which ends with an error, and makes control report the refusal to the operator.
    #[cold]
    pub(super) fn connect_refused(&mut self, at: u32) {
        let slot = &self.slots[at];
        if self.is_own(slot.queue) {
            return;
        }
        let place = self.places[slot.queue as usize];
        let data = if slot.cursor == DATA_IS_IN { slot.buf.as_deref() } else { None };
        let data: Option<&[u8; ConnectData::LEN]> = data.and_then(|data| data.first_chunk());
        let mut forbidden = None;
        let (mut host, mut subsystem) = (HostName::new(""), HostName::new(""));
        if let Some(data) = data {
            let ConnectFields { hostid, subnqn, hostnqn, .. } = ConnectFields::parse(data);
            let hostnqn_of = |name: Nqn| HostName::of(&name, &hostid);
            host = Nqn::parse(&hostnqn).map_or_else(|_| HostName::lossy(&hostnqn), hostnqn_of);
            subsystem = HostName::lossy(&subnqn);
            forbidden =
                ConnectData::parse(data).ok().and_then(|data| self.allowed(place.portal, &data).err());
        }
        let cqe = Cqe { result: slot.result, ..Cqe::new(0, 0, slot.status) };
        let why = reason(ConnectResponse::parse(&cqe), forbidden);
        if self.refusals.add(host, subsystem, place, why) {
            self.refused_later();
        }
    }

    fn allowed(&self, portal: PortalId, data: &ConnectData) -> Result<u32, ConnectRefusal> {
        if data.subnqn.is_discovery() {
            return Ok(0);
        }
        let found = self.topology.subsystem(data.subnqn.as_str());
        let (index, subsystem) = found.ok_or(ConnectRefusal::Subsystem)?;
        if !subsystem.portals.contains(&portal) {
            return Err(ConnectRefusal::Listener);
        }
        if !subsystem.hosts.contains(data.hostnqn.as_str()) {
            return Err(ConnectRefusal::Host);
        }
        Ok(index as u32)
    }

    fn connect_admin<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
        connect: Connect,
        data: &ConnectData,
    ) -> Result<CommandStep, ConnectResponse> {
        let queue = self.slots[at].queue;
        let subsystem = self.admit(queue, data)?;
        if data.cntlid != DYNAMIC_CNTLID {
            return Err(ConnectResponse::InvalidParameter(ConnectRejection::CNTLID));
        }
        let discovery = data.subnqn.is_discovery();
        let range = match self.topology.subsystems.get(subsystem as usize) {
            Some(subsystem) if !discovery => subsystem.cntlid_range,
            _ => ANY_CNTLID,
        };
        let busy = ConnectResponse::Failed(Status::CONNECT_CONTROLLER_BUSY);
        let kind = if discovery { CtrlrKind::Discovery } else { CtrlrKind::Io };
        let index = self.ctrlrs.take(kind, range).ok_or(busy)?;
        let now = cx.io.now();
        let host = self.names[queue as usize].host_hash();
        let born = self.topology.epoch;
        let ctrlr = self.ctrlrs.get_mut(index).ok_or(busy)?;
        ctrlr.born = born;
        ctrlr.admin = queue;
        ctrlr.host = host;
        let cntlid = ctrlr.cntlid;
        self.set_keep_alive(index, connect.kato_ms, now);
        let q = &mut self.queues[queue as usize];
        q.state = QueueState::Live;
        q.cntlid = cntlid;
        q.subsystem = subsystem;
        self.came_up(cx, queue);
        if !discovery {
            self.ask_settled(cx, index);
        }
        Ok(self.answer_connect(at, ConnectResponse::Connected { cntlid, authreq: 0 }))
    }

    /// Asks every core whether the host's earlier associations are over.
    pub(super) fn ask_settled<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, index: u32) {
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        (ctrlr.asked, ctrlr.settled, ctrlr.asked_at) = (self.cores, true, cx.io.now());
        let generation = self.queues[ctrlr.admin as usize].generation;
        let ask = CtrlrMsg::Settle { cntlid: ctrlr.cntlid, generation, host_hash: ctrlr.host };
        for core in 0..self.cores {
            cx.io.post(CoreId(core), Msg::Ctrlr(ask.clone()));
        }
    }

    /// Handles a core's answer to [`CtrlrMsg::Settle`].
    fn on_settled(&mut self, cntlid: u16, generation: u32, settled: bool) {
        let Some(ctrlr) = self.ctrlrs.find(cntlid).and_then(|index| self.ctrlrs.get_mut(index)) else {
            return;
        };
        let admin = self.queues.get(ctrlr.admin as usize);
        if ctrlr.asked > 0 && admin.is_some_and(|q| q.generation == generation) {
            ctrlr.asked -= 1;
            ctrlr.settled &= settled;
        }
    }

    fn join<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
        connect: Connect,
        data: &ConnectData,
    ) -> Result<CommandStep, ConnectResponse> {
        if data.subnqn.is_discovery() {
            return Err(ConnectResponse::Failed(Status::INVALID_QUEUE_TYPE.dnr()));
        }
        if usize::from(connect.qid) > MAX_IO_QUEUES {
            return Err(ConnectResponse::InvalidParameter(ConnectRejection::QID));
        }
        let queue = self.slots[at].queue;
        let subsystem = self.admit(queue, data)?;
        let unknown = ConnectResponse::InvalidParameter(ConnectRejection::CNTLID);
        let owner = self.ctrlrs.owner(data.cntlid).ok_or(unknown)?;
        let q = &mut self.queues[queue as usize];
        q.state = QueueState::Joining;
        q.cntlid = data.cntlid;
        q.subsystem = subsystem;
        let generation = q.generation;
        self.slots[at].phase = Phase::Held;
        cx.io.post(
            owner,
            Msg::Ctrlr(CtrlrMsg::Join {
                cntlid: data.cntlid,
                qid: connect.qid,
                sock: SockId(queue),
                generation,
                subnqn_hash: hash(data.subnqn.as_str()),
                host_hash: self.names[queue as usize].host_hash(),
                hostid: data.hostid,
            }),
        );
        Ok(CommandStep::Held)
    }

    /// Handles a message about a controller, from another core or from this core.
    pub fn on_ctrlr<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, from: CoreId, msg: CtrlrMsg) {
        match msg {
            CtrlrMsg::Join { sock, generation, .. } => {
                let status = self.on_join(from, &msg).err().unwrap_or(Status::SUCCESS).field();
                cx.io.post(from, Msg::Ctrlr(CtrlrMsg::Joined { sock, generation, status }));
            }
            CtrlrMsg::Joined { sock, generation, status } => {
                self.on_joined(cx, sock.0, generation, Status::from_field(status));
            }
            CtrlrMsg::Left { cntlid, qid, sock, generation } => {
                self.on_left(cntlid, qid, CtrlrMember { core: from, queue: sock.0, generation });
            }
            CtrlrMsg::Settle { cntlid, generation, host_hash } => {
                let settled = !self.ctrlrs.has_ended(host_hash);
                cx.io.post(from, Msg::Ctrlr(CtrlrMsg::Settled { cntlid, generation, settled }));
            }
            CtrlrMsg::Settled { cntlid, generation, settled } => {
                self.on_settled(cntlid, generation, settled);
            }
            CtrlrMsg::Close { sock, generation } => {
                if self.is_current(sock.0, generation) {
                    self.close_later(sock.0, "its controller ended");
                }
            }
            CtrlrMsg::Abort { sock, generation, cid, slot } => {
                let aborted = self.is_current(sock.0, generation) && self.abort(sock.0, cid, None);
                cx.io.post(from, Msg::Ctrlr(CtrlrMsg::AbortDone { slot, aborted }));
            }
            CtrlrMsg::AbortDone { slot, aborted } => self.on_abort_done(slot, aborted),
        }
    }

    fn is_current(&self, queue: u32, generation: u32) -> bool {
        let queue = self.queues.get(queue as usize);
        queue.is_some_and(|q| q.generation == generation && q.state != QueueState::Free)
    }

    /// Decides on the owner core whether a queue may join its controller.
    fn on_join(&mut self, from: CoreId, msg: &CtrlrMsg) -> Result<(), Status> {
        let CtrlrMsg::Join { cntlid, qid, sock, generation, subnqn_hash, host_hash, hostid } = *msg else {
            return Err(Status::INTERNAL_ERROR);
        };
        let unknown = Status::CONNECT_INVALID_PARAMETERS.dnr();
        let index = self.ctrlrs.find(cntlid).ok_or(unknown)?;
        let ctrlr = self.ctrlrs.get_mut(index).filter(|c| c.kind == CtrlrKind::Io).ok_or(unknown)?;
        let names = self.names.get(ctrlr.admin as usize).ok_or(unknown)?;
        if hash(names.subnqn.as_str()) != subnqn_hash {
            return Err(unknown);
        }
        if names.host_hash() != host_hash || names.hostid != hostid {
            return Err(Status::CONNECT_INVALID_HOST.dnr());
        }
        if !ctrlr.is_ready() || ctrlr.cc.shn != 0 {
            return Err(Status::COMMAND_SEQUENCE_ERROR);
        }
        if !self.ctrlrs.may_have(index, qid, self.io_queues) {
            return Err(Status::INVALID_QUEUE_ID.dnr());
        }
        let ctrlr = self.ctrlrs.get_mut(index).ok_or(unknown)?;
        let place = ctrlr.members.get_mut(usize::from(qid.wrapping_sub(1)));
        let place = place.ok_or(Status::INVALID_QUEUE_ID.dnr())?;
        if place.is_some() {
            return Err(Status::INVALID_QUEUE_ID.dnr());
        }
        *place = Some(CtrlrMember { core: from, queue: sock.0, generation });
        ctrlr.member_count += 1;
        Ok(())
    }

    /// Completes a Connect on the queue's core once the owner has answered the Join.
    fn on_joined<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, queue: u32, generation: u32, status: Status) {
        if !self.is_current(queue, generation) || self.queues[queue as usize].state != QueueState::Joining {
            return;
        }
        let connect = self.slots.iter(&self.queues[queue as usize].ring).find_map(|(at, slot)| {
            let is_connect = matches!(FabricsCommand::parse(&slot.sqe), FabricsCommand::Connect(_));
            (slot.phase == Phase::Held && is_connect).then_some(at)
        });
        let Some(at) = connect else { return };
        let q = &mut self.queues[queue as usize];
        let response = if status.is_ok() {
            q.state = QueueState::Live;
            self.came_up(cx, queue);
            ConnectResponse::Connected { cntlid: self.queues[queue as usize].cntlid, authreq: 0 }
        } else {
            q.state = QueueState::New;
            (q.qid, q.cntlid, q.depth) = (0, 0, MAX_QUEUE_ENTRIES);
            match status {
                s if s.is(Status::CONNECT_INVALID_PARAMETERS) => {
                    ConnectResponse::InvalidParameter(ConnectRejection::CNTLID)
                }
                s => ConnectResponse::Failed(s),
            }
        };
        self.answer_connect(at, response);
        self.done_later(at);
    }

    /// Removes an I/O queue on the owner core. The queue is closed and has no request in flight.
    fn on_left(&mut self, cntlid: u16, qid: u16, member: CtrlrMember) {
        let Some(index) = self.ctrlrs.find(cntlid) else { return };
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        let place = ctrlr.members.get_mut(usize::from(qid.wrapping_sub(1)));
        if let Some(place) = place.filter(|place| **place == Some(member)) {
            *place = None;
            ctrlr.member_count -= 1;
            if ctrlr.admin == NIL {
                self.ctrlrs.end(index);
            }
        }
    }

    /// Removes a closing queue from its controller. If the queue is the admin queue, ends the controller. For an I/O queue,
    /// returns the message for the controller's owner. The caller must send this message only once no request of the queue is
    /// in flight.
    #[must_use]
    pub(in crate::frontend::nvme) fn leave_ctrlr<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        queue: u32,
    ) -> Option<Leaving> {
        let q = &self.queues[queue as usize];
        let (cntlid, qid, generation) = (q.cntlid, q.qid, q.generation);
        match (q.state, qid) {
            (QueueState::Live, 0) => {
                if let Some(index) = self.ctrlrs.find(cntlid) {
                    self.close_members(cx, index);
                    if let Some(key) = self.ctrlrs.get_mut(index).and_then(|c| c.timer.take()) {
                        self.timers.cancel(key);
                    }
                    self.ctrlrs.end(index);
                }
                None
            }
            (QueueState::Live | QueueState::Joining, _) => {
                Some(Leaving { cntlid, qid, sock: SockId(queue), generation })
            }
            (QueueState::New | QueueState::Free, _) => None,
        }
    }

    /// Reports to the owner that an I/O queue is closed, and that all the queue's requests at backends have ended.
    pub(in crate::frontend::nvme) fn tell_left<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        leaving: Leaving,
    ) {
        let Leaving { cntlid, qid, sock, generation } = leaving;
        // A controller stays in the table until all of its members have left. A queue that never became a member may find no
        // controller, or find another controller that lacks such a member.
        if let Some(owner) = self.ctrlrs.owner(cntlid) {
            cx.io.post(owner, Msg::Ctrlr(CtrlrMsg::Left { cntlid, qid, sock, generation }));
        }
    }

    /// Closes all I/O queues of a controller. Each queue reports to the owner when it has left.
    pub(super) fn close_members<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, index: u32) {
        let Some(ctrlr) = self.ctrlrs.get(index) else { return };
        for member in ctrlr.members.iter().flatten() {
            let close = CtrlrMsg::Close { sock: SockId(member.queue), generation: member.generation };
            cx.io.post(member.core, Msg::Ctrlr(close));
        }
    }

    /// Sets a controller's Keep Alive Timeout, rounded up to whole units of KAS. Starts the controller's timer from `now`, as a
    /// completed Set Features does (NVMe base 2.0c §5.27.1.12). Returns the timeout in milliseconds.
    pub(super) fn set_keep_alive(&mut self, index: u32, kato_ms: u32, now: Instant) -> u32 {
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return 0 };
        ctrlr.alive_at = now;
        ctrlr.kato_ms = kato_ms.checked_next_multiple_of(u32::from(KAS_100MS) * 100).unwrap_or(u32::MAX);
        let kato_ms = ctrlr.kato_ms;
        self.arm_keep_alive(index);
        kato_ms
    }

    /// Returns the time for which a host may be silent before its controller ends; `None` for no limit. Any host may have
    /// discovery controllers. So a discovery controller without a Keep Alive Timeout ends after a fixed time without a command
    /// (NVMe base 2.0c §3.1.2.3.2). A core's own discovery controller has no limit.
    fn silence_allowed(&self, index: u32) -> Option<Duration> {
        let ctrlr = self.ctrlrs.get(index)?;
        match (ctrlr.kato_ms, ctrlr.kind) {
            (0, CtrlrKind::Discovery) => Some(self.discovery_timeout).filter(|_| !self.is_own(ctrlr.admin)),
            (0, CtrlrKind::Io) => None,
            (kato_ms, _) => Some(Duration::from_millis(u64::from(kato_ms))),
        }
    }

    /// Notes that a host sent a command to a discovery controller. If the controller has a Keep Alive Timeout, a command does
    /// not prove that the host is alive.
    pub(super) fn note_activity(&mut self, cntlid: u16, now: Instant) {
        let ctrlr = self.ctrlrs.find(cntlid).and_then(|index| self.ctrlrs.get_mut(index));
        ctrlr.into_iter().filter(|ctrlr| ctrlr.kato_ms == 0).for_each(|ctrlr| ctrlr.alive_at = now);
    }

    /// Arms a controller's timer again, if the controller needs a timer.
    pub(super) fn arm_keep_alive(&mut self, index: u32) {
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        if let Some(key) = ctrlr.timer.take() {
            self.timers.cancel(key);
        }
        let Some(silence) = self.silence_allowed(index) else { return };
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        ctrlr.timer = self.timers.arm(ctrlr.alive_at + silence, Timer::Ctrlr(index));
    }

    /// Handles a controller's timer. If no Keep Alive came for KATO, the controller fails and its association ends (NVMe base
    /// 2.0c §3.9). An idle discovery controller ends in the same way.
    pub fn on_ctrlr_timer<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, index: u32) {
        let now = cx.io.now();
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        ctrlr.timer = None;
        let silent = now.since(ctrlr.alive_at);
        if self.silence_allowed(index).is_none_or(|allowed| silent < allowed) {
            return self.arm_keep_alive(index);
        }
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        ctrlr.fatal = true;
        let (admin, kato_ms) = (ctrlr.admin, ctrlr.kato_ms);
        self.close_members(cx, index);
        self.close_later(
            admin,
            if kato_ms == 0 { "idle discovery controller" } else { "keep alive timeout" },
        );
    }

    /// Returns whether the topology in force still admits the queue's host.
    pub(super) fn may_stay(&self, queue: u32) -> bool {
        self.queues[queue as usize].discovery || self.subsystem(queue).is_some()
    }
}
