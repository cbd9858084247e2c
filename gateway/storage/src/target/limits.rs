//! How much one core's target may hold. Everything is allocated from this at start-up.

use super::queue::{Names, Queue};
use super::shares::CONN_PART;
use super::slot::Slot;
use super::tcp::Conn;
use std::time::Duration;
use trefoil_poll::arena::{MAX_BLOCK_BYTES, MIN_BLOCK_BYTES};
use trefoil_poll::send::LIST_BYTES;

/// Largest data transfer of one command: MDTS 8 with pages of 4 KiB.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// MDTS: `MAX_TRANSFER_BYTES` is 2^MDTS pages of 4 KiB (NVMe base 2.0c §5.17.2.1).
pub const MDTS: u8 = 8;
/// In-capsule data that an I/O queue takes; admin queues take as much (NVMe-oF TCP 1.0c §3.5.1).
pub const IN_CAPSULE_BYTES: u32 = 8192;
/// MAXH2CDATA: a whole transfer fits one H2CData, so a host need not cut it.
pub const MAX_H2C_DATA_BYTES: u32 = MAX_TRANSFER_BYTES;
/// CPDA: what data from hosts is aligned to (NVMe-oF TCP 1.0c §3.6.2.3).
pub const CONTROLLER_ALIGNMENT_BYTES: u32 = 4;
/// Entries of the largest submission queue (CAP.MQES + 1).
pub const MAX_QUEUE_ENTRIES: u16 = 256;
/// I/O queues that one controller has room for.
pub const MAX_IO_QUEUES: usize = 64;
/// Asynchronous Event Requests that one controller holds (AERL + 1).
pub const MAX_AERS: usize = 4;
/// Abort commands that one controller works on at a time (ACL + 1).
pub const MAX_ABORTS: usize = 4;

/// Commands that a connection may have outstanding before Connect: the Connect, and one that is out of place.
pub const OPENING_COMMANDS: u16 = 2;
/// Commands that a host may have outstanding at a discovery controller: as many as the smallest admin queue that a controller may
/// ask for has entries (NVMe base 2.0c figure 265, ASQSZ).
pub const DISCOVERY_COMMANDS: u16 = 32;
/// Commands for which each admin queue finds a slot, whatever others do: its Asynchronous Event Requests, and as many more.
const ADMIN_COMMANDS: usize = 2 * MAX_AERS;
/// Connections of hosts without permission that a core has places for: unauthenticated ones.
const UNAUTHENTICATED: usize = 512;
/// Hosts' connections that get a place in one turn.
const ADMISSIONS: usize = UNAUTHENTICATED / 8;
/// Some round trips, and a pause of the host's. The shorter it is, the sooner is the turn of those who wait behind many addresses:
/// [`UNAUTHENTICATED`] get a place in this time.
const CONNECT_GRACE: Duration = Duration::from_millis(25);
/// Fewest and most discovery controllers of a core.
const DISCOVERY: (usize, usize) = (64, 512);
/// I/O commands that a core has slots for.
const IO_SLOTS: usize = 20_480;
/// Payload memory that is kept for a core's [`UNAUTHENTICATED`] connections, one Connect each, and for its discovery
/// controllers, one small block each.
pub const OPEN_BYTES: usize = UNAUTHENTICATED * MIN_BLOCK_BYTES + DISCOVERY.1 * IN_CAPSULE_BYTES as usize;
/// After so long without a command, a discovery controller without a Keep Alive Timeout ends (NVMe base 2.0c §3.1.2.3.2: at least
/// two minutes).
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// What a connection takes besides payload memory: its entries in the tables, a full queue's slots, and a list for sends,
/// whose vectors come to this.
pub const CONN_FIXED_BYTES: usize = size_of::<Conn>()
    + size_of::<Queue>()
    + size_of::<Names>()
    + MAX_QUEUE_ENTRIES as usize * size_of::<Slot>()
    + LIST_BYTES;
/// Slots that a core can have.
pub const MAX_SLOTS: usize = u16::MAX as usize;

/// Sizes and times of one core's target.
///
/// Memory of the defaults: connections 8,192 × (about 1.9 KiB + a send list of 21 KiB) = 180 MiB at most, slots
/// 28,672 × 200 B = 6 MiB, controllers 2,048 × about 2.3 KiB = 5 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetLimits {
    /// The driver's socket table: connections are indexed by socket.
    pub max_conns: usize,
    /// Controllers whose admin queue is on this core.
    pub max_ctrlrs: usize,
    /// Of `max_ctrlrs`, those that may be discovery controllers. When one more comes, the oldest of the address with most of them
    /// goes.
    pub max_discovery: usize,
    /// After so long without a command, a discovery controller without a Keep Alive Timeout ends.
    pub discovery_timeout: Duration,
    /// Hosts' connections that get a place in one turn.
    pub admissions: usize,
    /// Nobody loses its place to another before it has had so long for its Connect.
    pub connect_grace: Duration,
    /// Commands under way: 20,480 of I/O and admin queues, and 2,048 controllers × 4 Asynchronous Event Requests. At
    /// most 65,535, since a slot's number is its transfer tag.
    pub slots: usize,
    /// Of `slots`, those that only Connect and admin commands may take.
    pub reserved_slots: usize,
    /// Payload memory that only Connect, admin commands (8 KiB a connection) and bytes received beyond what could be
    /// started may take.
    pub reserved_bytes: usize,
    /// Lists for sends. A connection waits for one if all are under way.
    pub send_lists: usize,
    /// Most bytes that one receive takes into the driver's memory.
    pub stream_bytes: u32,
    /// I/O queues that a controller grants at most; [`MAX_IO_QUEUES`] at most.
    pub io_queues: u16,
    /// Write Zeroes is offered. Arrays that lack it are common, and an initiator is tried with one.
    pub has_write_zeroes: bool,
    /// Deallocated blocks are promised to read as zeros (DLFEAT), as those of all our backends do. Arrays that say nothing of it
    /// are common, and an initiator is tried with one.
    pub promises_zeros: bool,
    /// On a core, ICReq and Connect must be through by then.
    pub connect_timeout: Duration,
    /// A host that for so long takes no byte of what is sent to it, or gives none of what it owes (data that an R2T asked
    /// for, or the rest of a capsule), loses its connection. It is looked at twice in that time, so that one which stops in
    /// the middle may lose it after half of it. As long as a Linux host waits for a command.
    pub progress_timeout: Duration,
    /// How long a host may take to close after our terminate request (NVMe-oF TCP 1.0c §3.5: 30 s).
    pub terminate_timeout: Duration,
}

impl Default for TargetLimits {
    fn default() -> Self {
        Self {
            max_conns: 8192,
            max_ctrlrs: 2048,
            max_discovery: DISCOVERY.1,
            admissions: ADMISSIONS,
            connect_grace: CONNECT_GRACE,
            discovery_timeout: DISCOVERY_TIMEOUT,
            slots: 28_672,
            reserved_slots: 1024,
            reserved_bytes: 8 << 20,
            send_lists: 8192,
            stream_bytes: 64 << 10,
            io_queues: MAX_IO_QUEUES as u16,
            has_write_zeroes: true,
            promises_zeros: true,
            connect_timeout: Duration::from_secs(10),
            progress_timeout: Duration::from_secs(30),
            terminate_timeout: Duration::from_secs(5),
        }
    }
}

impl TargetLimits {
    /// For one of `cores` cores of a gateway that has room for `max_hosts` I/O controllers with `max_qpairs` queue pairs, and
    /// with `other_socks` sockets in the core's driver that are not hosts'. `max_conns` is the number of all sockets.
    pub fn of_core(cores: usize, max_hosts: usize, max_qpairs: usize, other_socks: usize) -> Self {
        let max_discovery = max_hosts.div_ceil(cores).clamp(DISCOVERY.0, DISCOVERY.1);
        let qpairs = max_qpairs.div_ceil(cores);
        let conns = qpairs + max_discovery + UNAUTHENTICATED;
        let reserved_slots = conns * usize::from(OPENING_COMMANDS)
            + max_discovery * usize::from(DISCOVERY_COMMANDS)
            + max_hosts * ADMIN_COMMANDS;
        // A slot's number is its transfer tag, so there are no more; then I/O commands keep a half.
        let slots = (IO_SLOTS + reserved_slots).min(MAX_SLOTS);
        Self {
            max_conns: conns + other_socks,
            // All I/O controllers may be here, and as many whose association is over and whose requests are not. One more
            // discovery controller comes before the oldest goes, and the core has one of its own.
            max_ctrlrs: 2 * max_hosts + max_discovery + 2,
            max_discovery,
            slots,
            reserved_slots: reserved_slots.min(slots / 2),
            // A block of a queue's for its Connect, or for an admin command.
            reserved_bytes: qpairs * IN_CAPSULE_BYTES as usize + OPEN_BYTES,
            // One for every queue pair that may be slow to take what it is sent, and for the core's own connection. What is sent
            // before Connect fits any socket at once, so a turn's admissions share a few.
            send_lists: qpairs + max_discovery + ADMISSIONS + 1,
            ..Self::default()
        }
    }

    /// Requests that its commands may have at LUNs at a time: only I/O commands have any, and they leave the reserve alone.
    pub fn requests(&self) -> usize {
        self.slots - self.reserved_slots
    }

    /// Connections of hosts among `max_conns`, if so many others are no hosts'.
    pub fn host_conns(&self, other_socks: usize) -> usize {
        self.max_conns - other_socks
    }

    /// The most that one connection holds at any time, in bytes, on a core with so much payload memory:
    /// - its commands' data: the largest transfer, or an eighth of the memory ([`Shares`](super::shares::Shares));
    /// - what was received too much: one receive;
    /// - parked capsules: one block, and as they outgrow it one more;
    /// - what is there for it alone, used or not, and its commands' slots.
    pub fn conn_bound_bytes(&self, arena_bytes: usize) -> usize {
        let payload = (arena_bytes / CONN_PART).max(MAX_TRANSFER_BYTES as usize);
        let spill = (self.stream_bytes as usize).next_power_of_two();
        payload + spill + MAX_BLOCK_BYTES + MAX_BLOCK_BYTES / 2 + CONN_FIXED_BYTES
    }
}

const _: () = assert!(MAX_TRANSFER_BYTES == 4096 << MDTS);
