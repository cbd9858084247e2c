//! The array behind the gateway: a node with our own target, which the gateway's initiator reaches over links.
//!
//! Like the gateway, the array runs our target, on one core. Its LUNs are whole disks. Its namespaces are the
//! gateway's pool member, the gateway's imported backend, or both. In a third of the seeds with an array, the faults
//! are on the hosts' links. In another third, the array has outages. In the last third, hosts disconnect during an
//! outage, reconnect, and continue to write. After a crash, the gateway restarts only when its last writes have
//! landed at the array, because the new process knows nothing of those writes (see ARCHITECTURE.md).
//!
//! The checks: an outage shorter than the loss timeout fails no command ([`Run::check_errors`]). In a longer outage,
//! or when the array's ANA state requires it, the gateway tells hosts to wait, and none of their commands fails.
//! Flushed data survives a power cut of the array. No write lands after a newer write. A namespace that grows is
//! presented with its new size.

use std::sync::Arc;
use std::time::Duration;

use trefoil_poll::{CoreId, Instant, Io};
use trefoil_storage::Msg;
use trefoil_storage::backend::nvme_tcp::{NvmeTcpChannel, NvmeTcpConfig};
use trefoil_storage::backend::{Attach, AttachKind, File};
use trefoil_storage::core::{CoreLimits, StorageCore};
use trefoil_storage::frontend::{Capacity, TargetLimits};
use trefoil_storage::initiator::{CHANGE_HELD, ControllerConfig, Identity, Purpose, QueueEntries};
use trefoil_storage::topology::{
    ANA_TRANSITION_S, Access, Allow, BackendId, Extent, Lun, LunId, Namespace, Portal, PortalId, Subsystem,
    Topology,
};
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::nvme::Status;
use trefoil_wire::nvme::log::AnaState;

use super::refusals::Refusals;
use super::{
    ANA_END, ANA_OVER, ARENA_BYTES, ARRAY_BACK, ARRAY_SPLIT, ARRAY_START, FIRST_MEMORY, GRACE, HOST_SOCKETS,
    IMPORTED, LUNS, MEMBER, PORT, Run,
};
use crate::memory::arena;
use crate::net::NodeId;
use crate::net::{ConnId, Side};
use crate::node::Node;
use crate::simio::SOCKETS;
use crate::world::Crash;

const SUBSYSTEM: &str = "nqn.2014-08.org.trefoil.sim:array";
const GATEWAY: &str = "nqn.2014-08.org.trefoil.sim:gateway";
/// Keep alive timeout towards the array. It is not longer than the hosts' timeout, as ARCHITECTURE.md requires.
const KATO_MS: u32 = 1000;
/// Time that the gateway waits for a lost array before it fails I/O.
const LOSS_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest short outage, in milliseconds. With the time to notice it and to fence, such an outage stays below
/// [`LOSS_TIMEOUT`].
const SHORT: u64 = 1200;
/// Shortest outage in which hosts give up their commands. Hosts retry a command for 30 s.
const LONG: Duration = Duration::from_secs(34);
/// Time after which every disk operation under way has ended, even the slowest.
const SETTLED: Duration = Duration::from_millis(150);
/// Time after which a connected host knows a new ANA state, even if it only now notices that a connection is dead.
const SHOWN_WITHIN: Duration = Duration::from_secs(4);
/// Largest size in bytes to which a namespace grows.
const GROWN_MOST: u64 = 2 << 20;

/// State of the array; see the module.
pub(super) struct Array {
    pub node: NodeId,
    home: u16,
    /// The gateway's backends on the array, indexed by NSID − 1.
    backends: Vec<usize>,
    digests: bool,
    /// True if the array's outages are this seed's faults.
    pub upset: bool,
    /// True if hosts also disconnect during an outage and reconnect.
    pub both: bool,
    epoch: u64,
    /// Connections that are to fail at the gateway's end only.
    split: Vec<(ConnId, Side)>,
    /// The time by which all data held up by faults on the array's links has arrived.
    pub quiet_at: Instant,
    /// Identifier of the last operation that began before the end of the last outage.
    mark: u64,
    out: bool,
    /// True if the array has already had its one long outage.
    was_lost: bool,
    /// For each backend, true if the gateway reports that the path is up.
    usable: [bool; 4],
    /// True while path errors have a cause.
    lost: bool,
    /// The ANA state of the array's namespaces, and its start. Until a state other than Optimized ends, no other
    /// fault happens.
    ana: (AnaState, Instant),
    ana_is_bad: bool,
    /// True if the array lacks Write Zeroes.
    lacks_zeroes: bool,
    /// The periods in which hosts can be told that the array's namespaces are unreachable.
    refusals: Refusals,
    /// Failed commands that the gateway has counted.
    errors: u64,
}

impl Run {
    /// Returns whether a backend is a namespace of the array.
    pub(super) fn is_remote(&self, backend: usize) -> bool {
        self.array.as_ref().is_some_and(|array| array.backends.contains(&backend))
    }

    /// Returns whether the array's outages are the seed's faults. If so, hosts must stay connected.
    pub(super) fn is_upset(&self) -> bool {
        self.array.as_ref().is_some_and(|array| array.upset)
    }

    /// Returns whether a LUN has bytes on the array (if `remote`) or on a disk of the gateway (otherwise). Memory
    /// LUNs have neither.
    pub(super) fn touches(&self, lun: usize, remote: bool) -> bool {
        if lun >= FIRST_MEMORY {
            return false;
        }
        match self.luns.get(lun).and_then(Option::as_ref) {
            Some((_, extents)) => extents.iter().any(|e| self.is_remote(e.backend.0 as usize) == remote),
            None => true,
        }
    }

    /// Draws which backends, if any, are on the array, and creates its node with their disks.
    pub(super) fn make_array(&mut self, home: u16) {
        let backends = match self.rng.below(6) {
            0 | 1 => vec![MEMBER],
            2 => vec![IMPORTED],
            3 => vec![MEMBER, IMPORTED],
            _ => return,
        };
        let node = self.world.add_node("array");
        for &backend in &backends {
            self.disks[backend] = self.world.add_disk(node, &format!("array{backend}"), self.lens[backend]);
        }
        self.array = Some(Array {
            node,
            home,
            backends,
            digests: self.rng.below(2) == 0,
            upset: self.rng.below(3) > 0,
            both: self.rng.below(2) == 0,
            epoch: 0,
            split: Vec::new(),
            quiet_at: Instant::default(),
            mark: 0,
            out: false,
            was_lost: false,
            usable: [false; 4],
            lost: false,
            ana: (AnaState::Optimized, Instant::default()),
            ana_is_bad: false,
            lacks_zeroes: self.rng.below(3) == 0,
            refusals: Refusals::default(),
            errors: 0,
        });
    }

    pub(super) fn start_array(&mut self) {
        let Some(array) = &self.array else { return };
        let (node, home, lacks_zeroes) = (array.node, array.home, array.lacks_zeroes);
        let queues = [1, 2, 3, self.cores][self.rng.below(4) as usize];
        let capacity = Arc::new(Capacity::new(16, 96));
        self.world.start(node, 1, |io| {
            let arena = arena(home, ARENA_BYTES);
            debug_assert!(io.cores() == 1);
            Node::Gateway(Box::new(StorageCore::new(
                io,
                arena,
                limits(queues, lacks_zeroes),
                capacity.clone(),
            )))
        });
        self.world.listen(node, PORT);
        for (at, backend) in self.array_backends() {
            let kind =
                AttachKind::File { file: self.world.open(self.disks[backend]), slots: File::slots(256) };
            let len_bytes = self.world.disk(self.disks[backend]).len_bytes();
            let id = BackendId(at);
            let attach = Attach { len_bytes, block_bytes: self.backend_block_bytes(backend), kind, id };
            self.world.post(node, CoreId(0), Msg::Attach(id, Box::new(attach)));
        }
        self.publish_array();
        if queues < self.cores {
            self.fired("array-few-queues");
        }
        if lacks_zeroes {
            self.fired("array-no-zeroes");
        }
    }

    /// Returns the index on the array and the index on the gateway of each backend.
    fn array_backends(&self) -> Vec<(u32, usize)> {
        let backends = self.array.iter().flat_map(|array| &array.backends);
        (0..).zip(backends.copied()).collect()
    }

    fn publish_array(&mut self) {
        let backends = self.array_backends();
        let disks = self.disks.clone();
        let lens: Vec<_> = backends.iter().map(|&(_, b)| self.world.disk(disks[b]).len_bytes()).collect();
        let block_bytes: Vec<_> = backends.iter().map(|&(_, b)| self.backend_block_bytes(b)).collect();
        let Some(array) = &mut self.array else { return };
        array.epoch += 1;
        let lun = |(&(at, backend), &len): (&(u32, usize), &u64)| {
            Some(Lun {
                name: format!("namespace{at}"),
                block_bytes: block_bytes[at as usize],
                blocks: len / u64::from(block_bytes[at as usize]),
                uuid: [0xA0 + backend as u8; 16],
                nguid: [0xA0 + backend as u8; 16],
                extents: vec![Extent { lun_offset: 0, len, backend: BackendId(at), backend_offset: 0 }],
                read_only: false,
            })
        };
        let ana_state = array.ana.0.bits();
        let namespace = |&(at, _): &(u32, usize)| Namespace {
            nsid: at + 1,
            lun: LunId(at),
            hosts: Allow::Any,
            ana_group: at + 1,
            ana_state,
        };
        let (node, epoch) = (array.node, array.epoch);
        let subsystem = Subsystem {
            nqn: SUBSYSTEM.into(),
            serial: "ARRAY".into(),
            model: "Trefoil".into(),
            hosts: Allow::only(vec![GATEWAY.into()]),
            portals: vec![PortalId(0)],
            namespaces: backends.iter().map(namespace).collect(),
            max_namespaces: 8,
            cntlid_range: (1, 0xFFEF),
        };
        let luns = backends.iter().zip(&lens).map(lun).collect();
        let portals = vec![Some(Portal { listen: self.world.addr(node, PORT) })];
        let topology =
            Arc::new(Topology { epoch, luns, subsystems: vec![subsystem], portals, ..Topology::default() });
        self.world.post(node, CoreId(0), Msg::Topology(topology));
    }

    /// Returns the gateway's channel to a backend that is a namespace of the array.
    pub(super) fn remote_kind(&self, backend: usize, core: u16) -> Option<AttachKind<crate::simio::SimFile>> {
        let array = self.array.as_ref()?;
        let nsid = array.backends.iter().position(|&b| b == backend)? as u32 + 1;
        let nqn = |text: &str| Nqn::new(text).expect("the simulator's NQNs are valid");
        let config = NvmeTcpConfig {
            controller: ControllerConfig {
                addrs: vec![self.world.addr(array.node, PORT)],
                identity: Identity {
                    host_nqn: nqn(GATEWAY),
                    host_id: [0x99; 16],
                    subsystem_nqn: nqn(SUBSYSTEM),
                },
                purpose: Purpose::Nvm { nsid },
                digests: (array.digests, array.digests),
                kato_ms: KATO_MS,
                io_queues: self.cores,
                entries: QueueEntries::new(17),
                reconnect: (Duration::from_millis(5), Duration::from_millis(200)),
                connect_timeout: Duration::from_secs(1),
                admin_timeout: Duration::from_secs(1),
                loss_timeout: LOSS_TIMEOUT,
                fence: self.fence,
                discovery_entries: 0,
            },
            command_timeout: Duration::from_secs(2),
            requests: 128,
        };
        let id = BackendId(backend as u32);
        Some(AttachKind::NvmeTcp(Box::new(NvmeTcpChannel::new(id, CoreId(core), self.cores, &config))))
    }

    /// Acts as the array's control thread, which only passes connections on.
    pub(super) fn adopt_array(&mut self) {
        let Some(node) = self.array.as_ref().map(|array| array.node) else { return };
        while let Some(accepted) = self.world.take_accepted(node) {
            let (portal, local, peer) = (PortalId(0), accepted.local, accepted.peer);
            let msg = Msg::Adopt { socket: accepted.socket, portal, local, peer, initialized: false };
            self.world.post(node, CoreId(0), msg);
        }
        while self.world.take_control(node).is_some() {}
    }

    /// Records whether the gateway reaches a backend.
    pub(super) fn on_backend_state(&mut self, backend: BackendId, usable: bool) {
        let Some(array) = &mut self.array else { return };
        array.usable[backend.0 as usize] = usable;
        if array.lost && !array.out && array.backends.iter().all(|&b| array.usable[b]) {
            self.world.after(GRACE, ARRAY_BACK);
        }
    }

    /// Records the size that the gateway reports for a backend. A namespace that grew is imported again.
    pub(super) fn on_backend_len(&mut self, backend: BackendId, len_bytes: u64) {
        let at = backend.0 as usize;
        if at != IMPORTED || len_bytes == self.lens[at] {
            return;
        }
        if len_bytes < self.lens[at] {
            let what = format!("backend {at} shrank to {len_bytes} bytes");
            return self.workload.borrow_mut().model.violate(what);
        }
        self.lens[at] = len_bytes;
        self.fired("array-grown");
        self.pools.reimport();
        self.pool_step();
    }

    /// Returns whether the gateway presents the array's current size.
    pub(super) fn knows_array(&mut self) -> bool {
        !self.is_remote(IMPORTED) || self.world.disk(self.disks[IMPORTED]).len_bytes() == self.lens[IMPORTED]
    }

    /// Returns whether the array is up and all operations that the last outage delayed are done.
    fn is_over(&self) -> bool {
        let first = self.workload.borrow().model.first_under_way();
        self.array.as_ref().is_some_and(|array| {
            !array.out && self.world.is_up(array.node) && first.is_none_or(|first| first > array.mark)
        })
    }

    /// Injects a fault into the array or into a link to it.
    pub(super) fn array_fault(&mut self) {
        let Some(node) = self.array.as_ref().map(|array| array.node) else { return };
        if !self.is_over() {
            return;
        }
        let conns: Vec<_> = self
            .world
            .conns_of(self.gateway)
            .into_iter()
            .filter(|&(c, s)| self.world.peer_of(c, s) == node)
            .collect();
        let Some(&(conn, side)) = conns.get(self.rng.below(conns.len() as u64) as usize) else { return };
        let time = Duration::from_millis(1 + self.rng.below(SHORT));
        match self.rng.below(18) {
            16 | 17 => self.ana_begin(),
            0..3 => {
                self.world.reset(conn);
                self.fired("array-reset");
                self.outage(Duration::from_millis(1));
            }
            3 | 4 => {
                self.world.blacken(conn, if self.rng.below(2) == 0 { side } else { side.other() });
                self.fired("array-half-dead");
                self.outage(Duration::from_millis(1));
            }
            5 => {
                let reset = self.rng.below(2) == 0;
                self.silence_array(reset);
            }
            6 => {
                let to = if self.rng.below(2) == 0 { side } else { side.other() };
                if self.array.as_ref().is_some_and(|array| array.digests)
                    && self.world.bytes_to(conn, to) > 2000
                {
                    self.world.flip_bit(conn, to);
                    self.fired("array-bit-flip");
                    self.outage(Duration::from_millis(1));
                }
            }
            7..10 => {
                // Data sent by the gateway arrives only long after the gateway has lost the connections.
                let time = time.clamp(Duration::from_millis(100), Duration::from_millis(900));
                conns.iter().for_each(|&(conn, _)| self.world.stall(conn, time));
                self.world.after(Duration::from_millis(1 + self.rng.below(30)), ARRAY_SPLIT);
                if let Some(array) = &mut self.array {
                    array.split = conns;
                }
                self.fired("array-split");
                self.outage(time);
            }
            10 | 11 => self.array_crash(Crash::Kill, time),
            12 | 13 => self.array_crash(Crash::Power, time),
            14 => self.grow_array(),
            _ => self.lose_array(),
        }
    }

    /// Fails the connections at the gateway's end, without the array noticing.
    pub(super) fn split_array(&mut self) {
        let conns = self.array.as_mut().map_or(Vec::new(), |array| std::mem::take(&mut array.split));
        conns.into_iter().for_each(|(conn, side)| self.world.fail_one(conn, side));
    }

    /// Silences the array for less than the loss timeout. Returns false if that is not possible now.
    pub(super) fn silence_array(&mut self, reset: bool) -> bool {
        let Some(node) = self.array.as_ref().map(|array| array.node) else { return false };
        if !self.is_over() {
            return false;
        }
        let time = Duration::from_millis(1 + self.rng.below(SHORT));
        self.world.darken(node, time, reset);
        self.fired("array-silent");
        self.outage(time);
        true
    }

    /// Returns how long the gateway must stay down if it crashes now.
    pub(super) fn array_settles(&self) -> Duration {
        let now = self.world.now();
        self.array.as_ref().map_or(Duration::ZERO, |array| SETTLED.max(array.quiet_at.since(now)))
    }

    /// Records that for `time` the array can't be reached, or not fully.
    fn outage(&mut self, time: Duration) {
        let now = self.world.now();
        if let Some(array) = &mut self.array {
            array.out = true;
            array.quiet_at = array.quiet_at.max(now + time + SETTLED);
        }
        self.world.after(time, ARRAY_BACK);
    }

    /// Ends an outage, or ends the period in which path errors have a cause.
    pub(super) fn array_back(&mut self) {
        let now = self.world.now();
        let mark = self.workload.borrow().model.last_begun();
        let Some(array) = &mut self.array else { return };
        let all_usable = array.backends.iter().all(|&b| array.usable[b]);
        if !std::mem::take(&mut array.out) {
            if array.lost && all_usable {
                array.lost = false;
                array.refusals.end(now);
                self.workload.borrow_mut().model.path_errors(|_| false);
            }
            return;
        }
        array.mark = mark;
        if array.lost && all_usable {
            self.world.after(GRACE, ARRAY_BACK);
        }
    }

    fn array_crash(&mut self, how: Crash, time: Duration) {
        let Some(node) = self.array.as_ref().map(|array| array.node) else { return };
        self.fired(if how == Crash::Kill { "array-kill" } else { "array-power-cut" });
        self.world.crash(node, how);
        if how == Crash::Power {
            let luns: Vec<_> = (0..self.luns.len()).map(|lun| self.touches(lun, true)).collect();
            self.workload.borrow_mut().model.power_cut(|lun| luns.get(lun).copied().unwrap_or(true));
        }
        self.outage(time);
        self.world.after(time, ARRAY_START);
    }

    /// Darkens the array for longer than the loss timeout and than hosts retry. No other fault happens during that
    /// time: without the array, the gateway could not open its pool, and hosts would give up all LUNs.
    fn lose_array(&mut self) {
        if !self.is_settled() {
            return;
        }
        let luns: Vec<_> = (0..self.luns.len()).map(|lun| self.touches(lun, true)).collect();
        let Some(array) = &mut self.array else { return };
        if std::mem::replace(&mut array.was_lost, true) {
            return;
        }
        let (node, time) = (array.node, LONG + Duration::from_millis(self.rng.below(4000)));
        array.lost = true;
        array.refusals.begin(AnaState::Inaccessible);
        self.world.darken(node, time, false);
        self.fired("array-lost");
        self.error_cause = true;
        self.pools.excused = true;
        self.workload.borrow_mut().model.path_errors(|lun| luns.get(lun).copied().unwrap_or(true));
        self.outage(time);
    }

    /// Returns whether path errors have a cause.
    pub(super) fn is_lost(&self) -> bool {
        self.array.as_ref().is_some_and(|array| array.lost || array.ana_is_bad)
    }

    /// Gives the array's namespaces a worse ANA state for a while. The gateway tells hosts to wait, and hosts lose
    /// nothing.
    fn ana_begin(&mut self) {
        if !self.is_settled() {
            return;
        }
        let bad =
            [AnaState::NonOptimized, AnaState::Inaccessible, AnaState::PersistentLoss, AnaState::Change];
        let state = bad[self.rng.below(4) as usize];
        let time = Duration::from_millis(1 + self.rng.below(14_000));
        let now = self.world.now();
        let Some(array) = &mut self.array else { return };
        (array.ana, array.ana_is_bad) = ((state, now), true);
        array.refusals.begin(state);
        self.pools.excused = true;
        self.error_cause = true;
        self.publish_array();
        self.fired("array-ana");
        self.world.after(time, ANA_END);
        self.attack_the_unreachable();
    }

    /// Makes the array's namespaces Optimized again. First checks that hosts know the state that now ends.
    pub(super) fn ana_end(&mut self) {
        let now = self.world.now();
        let Some(array) = &mut self.array else { return };
        let (state, since) = std::mem::replace(&mut array.ana, (AnaState::Optimized, now));
        let time = now.since(since);
        match state {
            // The gateway holds commands in state Change, but not longer than the ANATT that it reports to hosts.
            AnaState::Change if time < CHANGE_HELD => self.check_shown(AnaState::Optimized),
            AnaState::Change if time > Duration::from_secs(ANA_TRANSITION_S.into()) => {
                self.check_shown(AnaState::Inaccessible);
            }
            AnaState::Change => {}
            _ if time > SHOWN_WITHIN => self.check_shown(state),
            _ => {}
        }
        self.publish_array();
        self.world.after(SHOWN_WITHIN, ANA_OVER);
    }

    /// Checks that hosts know the Optimized state, now that they have had time to learn it.
    pub(super) fn ana_over(&mut self) {
        self.check_shown(AnaState::Optimized);
        let now = self.world.now();
        if let Some(array) = &mut self.array {
            array.ana_is_bad = false;
            array.refusals.end(now);
        }
    }

    /// Returns whether a command for a LUN, sent at `since` and answered by now, may have failed with path error
    /// `status`.
    pub(super) fn may_refuse(&self, lun: usize, since: Instant, status: Status) -> bool {
        let may = |array: &Array| array.refusals.may_be(status, since);
        self.touches(lun, true) && self.array.as_ref().is_some_and(may)
    }

    /// Checks that every connected server knows ANA state `state` of the LUNs on the array.
    fn check_shown(&mut self, state: AnaState) {
        for node in self.servers.clone() {
            let Some(Node::Server(server)) = self.world.machine(node, 0) else { continue };
            let known: Vec<_> = server.accesses().collect();
            for (lun, access) in
                known.into_iter().filter(|(lun, _)| self.luns.get(*lun).is_some_and(Option::is_some))
            {
                if self.touches(lun, true) && access.ana_state != state {
                    let what =
                        format!("a server takes LUN {lun} for {:?}, and it is {state:?}", access.ana_state);
                    self.workload.borrow_mut().model.violate(what);
                }
            }
        }
    }

    /// Records a backend's new access rights, and has the topology published so that hosts learn them.
    pub(super) fn on_backend_access(&mut self, backend: BackendId, access: Access) {
        self.access[backend.0 as usize] = access;
        self.pools.stale = true;
        self.pool_step();
    }

    /// Grows the imported namespace at the array.
    pub(super) fn grow_array(&mut self) {
        if !self.is_remote(IMPORTED) || !self.array.as_ref().is_some_and(|a| self.world.is_up(a.node)) {
            return;
        }
        let disk = self.world.disk(self.disks[IMPORTED]);
        let len = disk.len_bytes() + (64 << 10);
        if len <= GROWN_MOST {
            disk.grow(len);
            self.publish_array();
        }
    }

    /// Checks that the gateway failed no command without a cause. The hosts' retries would otherwise hide such an
    /// error. Does not apply where hosts disconnect.
    pub(super) fn check_errors(&mut self) {
        if !self.is_upset() || self.array.as_ref().is_some_and(|array| array.both) {
            return;
        }
        if self.workload.borrow().model.path_failures() > 0 {
            let what = "a command failed that its host was to be told to wait with".to_owned();
            return self.workload.borrow_mut().model.violate(what);
        }
        let mut errors = 0;
        for core in 0..self.cores {
            if let Some(Node::Gateway(gateway)) = self.world.machine(self.gateway, core) {
                errors +=
                    (0..LUNS as u32).map(|lun| gateway.target().lun_stats(LunId(lun)).errors).sum::<u64>();
            }
        }
        let Some(array) = &mut self.array else { return };
        let before = std::mem::replace(&mut array.errors, errors);
        let mut workload = self.workload.borrow_mut();
        if errors > before && !self.error_cause {
            let what = format!("{} commands of hosts failed without a cause", errors - before);
            workload.model.violate(what);
        }
        drop(workload);
        self.error_cause = self.workload.borrow().model.has_excuses() || self.is_lost();
    }

    /// Returns the bytes of blocks that a core may hold at rest: one block for each array controller on that core.
    pub(super) fn rest_bytes(&self, core: u16) -> usize {
        let here = |&&backend: &&usize| backend % usize::from(self.cores) == usize::from(core);
        4096 * self.array.as_ref().map_or(0, |array| array.backends.iter().filter(here).count())
    }
}

fn limits(io_queues: u16, lacks_zeroes: bool) -> CoreLimits {
    let target = TargetLimits {
        max_conns: SOCKETS,
        max_ctrlrs: 48,
        max_discovery: 4,
        slots: 512,
        reserved_slots: 128,
        reserved_bytes: 1 << 20,
        send_lists: 32,
        io_queues,
        has_write_zeroes: !lacks_zeroes,
        ..TargetLimits::default()
    };
    CoreLimits { max_sockets: SOCKETS as u32, host_sockets: HOST_SOCKETS, target, foreign_requests: 16 }
}
