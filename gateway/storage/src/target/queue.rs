//! A queue pair as the command layer sees it, whatever the transport.

use super::ctrlr::hash;
use super::limits::{DISCOVERY_COMMANDS, MAX_QUEUE_ENTRIES, OPENING_COMMANDS};
use super::slot::Ring;
use crate::msg::HostName;
use crate::topology::{Lun, LunId, Namespace};
use trefoil_poll::Instant;
use trefoil_wire::fabrics::Nqn;

/// How far a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// No connection.
    Free,
    /// Only Connect is allowed.
    New,
    /// A Connect is being decided by the controller's owner core.
    Joining,
    /// Connected to a controller.
    Live,
}

/// What a queue remembers of a namespace, so that a command need not search the topology.
#[derive(Clone, Copy, Debug)]
pub struct NsView {
    /// The namespace; 0 is none.
    pub nsid: u32,
    /// The engine's epoch under which this was looked up.
    pub epoch: u32,
    /// What it shows.
    pub lun: LunId,
    /// Logical block size as a power of two.
    pub block_shift: u8,
    /// ANA state of its group.
    pub ana_state: u8,
    /// Writes are refused.
    pub read_only: bool,
    /// Size in logical blocks.
    pub blocks: u64,
}

impl NsView {
    /// Matches no namespace.
    pub const NONE: Self =
        Self { nsid: 0, epoch: 0, lun: LunId(0), block_shift: 9, ana_state: 0, read_only: false, blocks: 0 };

    /// A view of `namespace`, which shows `lun`.
    pub fn new(namespace: &Namespace, lun: &Lun, epoch: u32) -> Self {
        Self {
            nsid: namespace.nsid,
            epoch,
            lun: namespace.lun,
            block_shift: lun.block_bytes.trailing_zeros() as u8,
            ana_state: namespace.ana_state,
            read_only: lun.read_only,
            blocks: lun.blocks,
        }
    }
}

/// Namespaces that a queue remembers.
pub const NS_VIEWS: usize = 4;

/// A queue pair.
#[derive(Debug)]
pub struct Queue {
    /// How far it is.
    pub state: QueueState,
    /// Changes when its connection is gone, to what no connection of the core had before: guards messages between cores,
    /// and is the [`Stream`](crate::request::Stream) of its requests.
    pub generation: u32,
    /// Queue identifier, 0 for admin.
    pub qid: u16,
    /// Its controller.
    pub cntlid: u16,
    /// It belongs to a discovery controller.
    pub discovery: bool,
    /// Entries of its submission queue (SQSIZE + 1).
    pub depth: u16,
    /// Commands that may be outstanding.
    pub most: u16,
    /// Submission queue head pointer (NVMe base 2.0c §3.3.3.2).
    pub sqhd: u16,
    /// The host asked for no SQ flow control, so SQHD means nothing.
    pub no_flow_control: bool,
    /// Its connection is to be closed once the responses at hand are sent (Disconnect).
    pub closing: bool,
    /// Commands under way.
    pub ring: Ring,
    /// Commands under way by the low byte of their identifier: zero proves that one is new.
    cids: [u16; 256],
    /// By the low bits of the NSID.
    pub views: [NsView; NS_VIEWS],
    /// The subsystem's place in the topology, checked by name.
    pub subsystem: u32,
    /// Commands completed.
    pub commands: u64,
    /// Payload bytes moved.
    pub payload_bytes: u64,
    /// Time from command to response, summed, in nanoseconds.
    pub latency_ns: u64,
}

impl Queue {
    /// Without a connection.
    pub const fn new(generation: u32) -> Self {
        Self {
            state: QueueState::Free,
            generation,
            qid: 0,
            cntlid: 0,
            discovery: false,
            depth: 0,
            most: 0,
            sqhd: 0,
            no_flow_control: false,
            closing: false,
            ring: Ring::new(),
            cids: [0; 256],
            views: [NsView::NONE; NS_VIEWS],
            subsystem: 0,
            commands: 0,
            payload_bytes: 0,
            latency_ns: 0,
        }
    }

    /// A connection is there; it may Connect.
    pub fn open(&mut self) {
        let (depth, most) = (MAX_QUEUE_ENTRIES, OPENING_COMMANDS);
        *self = Self { state: QueueState::New, depth, most, ..Self::new(self.generation) };
    }

    /// Its Connect is complete: as many commands may be outstanding as it has entries, or a discovery controller may have.
    pub fn came_up(&mut self) {
        self.most = if self.discovery { self.depth.min(DISCOVERY_COMMANDS) } else { self.depth };
    }

    /// Whether one more command may be outstanding. A queue of N entries holds at most N − 1 (NVMe base 2.0c §3.3.1.1);
    /// Linux hosts before 6.3 send N, which harms nobody.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.ring.len() < u32::from(self.most)
    }

    /// Counts a command in; says whether another one under way may have the same identifier.
    #[inline]
    pub fn enter(&mut self, cid: u16) -> bool {
        let count = &mut self.cids[usize::from(cid as u8)];
        *count += 1;
        self.sqhd += 1;
        if self.sqhd >= self.depth {
            self.sqhd = 0;
        }
        *count > 1
    }

    /// Counts a command out that is never answered.
    #[inline]
    pub fn forget(&mut self, cid: u16) {
        self.cids[usize::from(cid as u8)] -= 1;
    }

    /// Counts a command out that is answered.
    #[inline]
    pub fn leave(&mut self, cid: u16, since: Instant, now: Instant, payload_bytes: u32) {
        self.forget(cid);
        self.commands += 1;
        self.payload_bytes += u64::from(payload_bytes);
        self.latency_ns += now.as_ns().saturating_sub(since.as_ns());
    }

    /// SQHD of the next response.
    #[inline]
    pub fn response_sqhd(&self) -> u16 {
        if self.no_flow_control { 0xFFFF } else { self.sqhd }
    }
}

/// What a queue's Connect said, needed seldom.
#[derive(Clone, Debug)]
pub struct Names {
    /// Subsystem.
    pub subnqn: Nqn,
    /// Host.
    pub hostnqn: Nqn,
    /// Host identifier.
    pub hostid: [u8; 16],
}

impl Names {
    /// Before Connect.
    pub const NONE: Self = Self { subnqn: Nqn::DISCOVERY, hostnqn: Nqn::DISCOVERY, hostid: [0; 16] };

    /// Which host it is; see [`HostName::of`].
    pub fn host(&self) -> HostName {
        HostName::of(&self.hostnqn, &self.hostid)
    }

    /// The hash of [`host`](Self::host).
    pub fn host_hash(&self) -> u64 {
        hash(self.host().as_str())
    }
}
