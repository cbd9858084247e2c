//! A queue pair as the command layer sees it, independent of the transport.

use super::slot::Ring;
use crate::frontend::limits::{DISCOVERY_COMMANDS, MAX_QUEUE_ENTRIES, OPENING_COMMANDS};
use crate::msg::HostName;
use crate::topology::PortalId;
use crate::topology::{Lun, LunId, Namespace};
use std::net::SocketAddr;
use trefoil_poll::Instant;
use trefoil_wire::fabrics::Nqn;

/// The addresses of a queue's connection, for the discovery log and tables.
#[derive(Clone, Copy, Debug)]
pub struct ConnAddrs {
    /// Portal through which the host connected.
    pub portal: PortalId,
    /// Our address as the host used it.
    pub local: SocketAddr,
    /// The host's address.
    pub peer: SocketAddr,
}

/// State of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// The queue has no connection.
    Free,
    /// The queue takes only a Connect.
    New,
    /// The controller's owner core is deciding a Connect.
    Joining,
    /// The queue is connected to a controller.
    Live,
}

/// A queue's cached data of a namespace. With this data, a command need not search the topology.
#[derive(Clone, Copy, Debug)]
pub struct NsView {
    /// NSID of the namespace; 0 for none.
    pub nsid: u32,
    /// The engine's epoch at which the namespace was looked up.
    pub epoch: u32,
    /// LUN behind the namespace.
    pub lun: LunId,
    /// Logarithm to base 2 of the logical block size.
    pub block_shift: u8,
    /// ANA state of the namespace's group.
    pub ana_state: u8,
    /// True if writes are refused.
    pub read_only: bool,
    /// Size in logical blocks.
    pub blocks: u64,
}

impl NsView {
    /// A view that matches no namespace.
    pub const NONE: Self =
        Self { nsid: 0, epoch: 0, lun: LunId(0), block_shift: 9, ana_state: 0, read_only: false, blocks: 0 };

    /// Returns a view of `namespace`, whose LUN is `lun`.
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

/// Number of namespaces that a queue caches.
pub const NS_VIEWS: usize = 4;

/// A queue pair.
#[derive(Debug)]
pub struct Queue {
    /// State of the queue.
    pub state: QueueState,
    /// Count that guards messages between cores; also the [`Stream`](crate::request::Stream) of the queue's requests. When the
    /// connection ends, it changes to a value that no connection of the core had before.
    pub generation: u32,
    /// Queue identifier, 0 for admin.
    pub qid: u16,
    /// Identifier of the controller.
    pub cntlid: u16,
    /// True if the queue belongs to a discovery controller.
    pub discovery: bool,
    /// Entries of the submission queue (SQSIZE + 1).
    pub depth: u16,
    /// The most commands that may be outstanding.
    pub most: u16,
    /// Submission queue head pointer (NVMe base 2.0c §3.3.3.2).
    pub sqhd: u16,
    /// True if the host asked for no SQ flow control. SQHD then has no meaning.
    pub no_flow_control: bool,
    /// True if the connection must be closed once the ready responses are sent (Disconnect).
    pub closing: bool,
    /// Commands in flight.
    pub ring: Ring,
    /// Counts of commands in flight, by the low byte of their identifier. A count of zero proves that an identifier is not in
    /// use.
    cids: [u16; 256],
    /// Cached namespaces, by the low bits of the NSID.
    pub views: [NsView; NS_VIEWS],
    /// Index of the subsystem in the topology. The index may be outdated, so `Engine::subsystem` compares the name.
    pub subsystem: u32,
    /// Commands completed.
    pub commands: u64,
    /// Payload bytes moved.
    pub payload_bytes: u64,
    /// Sum of the times from command to response of all `commands`, in nanoseconds.
    pub latency_ns: u64,
}

impl Queue {
    /// Returns a queue without a connection.
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

    /// Opens the queue for a new connection. The queue then takes a Connect.
    pub fn open(&mut self) {
        let (depth, most) = (MAX_QUEUE_ENTRIES, OPENING_COMMANDS);
        *self = Self { state: QueueState::New, depth, most, ..Self::new(self.generation) };
    }

    /// Completes the queue's Connect. From now on, as many commands may be outstanding as the queue has entries. A discovery
    /// controller takes at most [`DISCOVERY_COMMANDS`].
    pub fn came_up(&mut self) {
        self.most = if self.discovery { self.depth.min(DISCOVERY_COMMANDS) } else { self.depth };
    }

    /// Returns whether one more command may be outstanding. A queue of N entries holds at most N − 1 commands (NVMe base 2.0c
    /// §3.3.1.1). But Linux hosts before 6.3 send N commands, so the target takes N, which does no harm.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.ring.len() < u32::from(self.most)
    }

    /// Counts a command that arrives. Returns true if another command in flight may have the same identifier.
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

    /// Counts a command that ends without a response.
    #[inline]
    pub fn forget(&mut self, cid: u16) {
        self.cids[usize::from(cid as u8)] -= 1;
    }

    /// Counts a command that ends with a response.
    #[inline]
    pub fn leave(&mut self, cid: u16, since: Instant, now: Instant, payload_bytes: u32) {
        self.forget(cid);
        self.commands += 1;
        self.payload_bytes += u64::from(payload_bytes);
        self.latency_ns += now.as_ns().saturating_sub(since.as_ns());
    }

    /// Returns the SQHD of the next response.
    #[inline]
    pub fn response_sqhd(&self) -> u16 {
        if self.no_flow_control { 0xFFFF } else { self.sqhd }
    }
}

/// Names in a queue's Connect. Few commands need these names.
#[derive(Clone, Debug)]
pub struct Names {
    /// NQN of the subsystem.
    pub subnqn: Nqn,
    /// NQN of the host.
    pub hostnqn: Nqn,
    /// Host identifier.
    pub hostid: [u8; 16],
}

impl Names {
    /// Names of a queue before its Connect.
    pub const NONE: Self = Self { subnqn: Nqn::DISCOVERY, hostnqn: Nqn::DISCOVERY, hostid: [0; 16] };

    /// Returns the host's name; see [`HostName::of`].
    pub fn host(&self) -> HostName {
        HostName::of(&self.hostnqn, &self.hostid)
    }

    /// Returns the hash of [`host`](Self::host).
    pub fn host_hash(&self) -> u64 {
        hash(self.host().as_str())
    }
}

/// Returns the FNV-1a hash of `text`. With such hashes, cores compare names without sending the names.
pub fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
