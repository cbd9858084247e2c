//! Limits of one core's target. The target allocates all its memory from these limits at start-up.

use std::time::Duration;
use trefoil_poll::arena::MIN_BLOCK_BYTES;

/// Largest data transfer of one command: MDTS 8 with pages of 4 KiB.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// MDTS: `MAX_TRANSFER_BYTES` is 2^MDTS pages of 4 KiB (NVMe base 2.0c §5.17.2.1).
pub const MDTS: u8 = 8;
/// The most in-capsule data of a command on an I/O queue. Admin queues take as much (NVMe-oF TCP 1.0c §3.5.1).
pub const IN_CAPSULE_BYTES: u32 = 8192;
/// MAXH2CDATA: one H2CData can carry a whole transfer, so a host need not split the transfer.
pub const MAX_H2C_DATA_BYTES: u32 = MAX_TRANSFER_BYTES;
/// CPDA: the alignment of data from hosts (NVMe-oF TCP 1.0c §3.6.2.3).
pub const CONTROLLER_ALIGNMENT_BYTES: u32 = 4;
/// Entries of the largest submission queue (CAP.MQES + 1).
pub const MAX_QUEUE_ENTRIES: u16 = 256;
/// The most I/O queues of one controller.
pub const MAX_IO_QUEUES: usize = 64;
/// The most Asynchronous Event Requests that one controller holds (AERL + 1).
pub const MAX_AERS: usize = 4;
/// The most Abort commands that one controller executes at a time (ACL + 1).
pub const MAX_ABORTS: usize = 4;

/// Commands that a connection may have outstanding before Connect: the Connect, and one command that the host must not send
/// yet.
pub const OPENING_COMMANDS: u16 = 2;
/// Commands that a host may have outstanding at a discovery controller: the number of entries of the smallest admin queue that
/// a controller may require (NVMe base 2.0c figure 265, ASQSZ).
pub const DISCOVERY_COMMANDS: u16 = 32;
/// Slots that are free for each admin queue at all times: for its Asynchronous Event Requests, and for as many other commands.
const ADMIN_COMMANDS: usize = 2 * MAX_AERS;
/// Unauthenticated connections for which a core has room.
const UNAUTHENTICATED: usize = 512;
/// Hosts' connections that a core adopts in one turn.
const ADMISSIONS: usize = UNAUTHENTICATED / 8;
/// A connection has this time for its Connect before it may be evicted. The time is enough for some round trips and for a pause
/// of the host. With a shorter time, connections that wait behind many addresses are served sooner: in this time a core adopts
/// [`UNAUTHENTICATED`] connections.
const CONNECT_GRACE: Duration = Duration::from_millis(25);
/// The smallest and the largest limit on a core's discovery controllers.
const DISCOVERY: (usize, usize) = (64, 512);
/// Slots that a core has for I/O commands.
const IO_SLOTS: usize = 20_480;
/// Payload memory reserved for a core's [`UNAUTHENTICATED`] connections (one Connect each) and its discovery controllers (one
/// small block each).
pub const OPEN_BYTES: usize = UNAUTHENTICATED * MIN_BLOCK_BYTES + DISCOVERY.1 * IN_CAPSULE_BYTES as usize;
/// A discovery controller without a Keep Alive Timeout ends if its host sends no command for this time (NVMe base 2.0c
/// §3.1.2.3.2: at least two minutes).
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// The largest number of slots of a core.
pub const MAX_SLOTS: usize = u16::MAX as usize;

/// Sizes and times of one core's target.
///
/// Memory with the default values:
/// - at most 180 MiB for connections: 8,192 × (about 1.9 KiB + a send list of 21 KiB);
/// - 6 MiB for slots: 28,672 × 200 B;
/// - 5 MiB for controllers: 2,048 × about 2.3 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetLimits {
    /// Entries of the driver's socket table. The socket number is the index of the connection.
    pub max_conns: usize,
    /// Controllers whose admin queue is on this core.
    pub max_ctrlrs: usize,
    /// The most discovery controllers, of `max_ctrlrs`. If a host connects to one more, the target ends the oldest discovery
    /// controller of the address with the most discovery controllers.
    pub max_discovery: usize,
    /// A discovery controller without a Keep Alive Timeout ends if its host sends no command for this time.
    pub discovery_timeout: Duration,
    /// Hosts' connections that a core adopts in one turn.
    pub admissions: usize,
    /// The target evicts a connection before its Connect only after the connection has had this time.
    pub connect_grace: Duration,
    /// Commands in flight: 20,480 of I/O and admin queues, and 2,048 controllers × 4 Asynchronous Event Requests. The limit is
    /// 65,535, since a slot's number is its transfer tag.
    pub slots: usize,
    /// The number of `slots` that only Connect and admin commands may take.
    pub reserved_slots: usize,
    /// Payload memory that only the following may take: Connect, admin commands (8 KiB a connection), and received bytes of
    /// commands that could not start yet.
    pub reserved_bytes: usize,
    /// Send lists. If all lists are in use, a connection waits for a list.
    pub send_lists: usize,
    /// The most bytes that one receive takes into the driver's memory.
    pub stream_bytes: u32,
    /// The most I/O queues that a controller grants; at most [`MAX_IO_QUEUES`].
    pub io_queues: u16,
    /// True if the target offers Write Zeroes. Arrays without Write Zeroes are common, so tests run an initiator against such a
    /// target.
    pub has_write_zeroes: bool,
    /// True if the target promises that deallocated blocks read as zeros (DLFEAT). All our backends keep this promise. Arrays
    /// without this promise are common, so tests run an initiator against such a target.
    pub promises_zeros: bool,
    /// Time from the adoption of a connection until the host's ICReq and Connect must have completed.
    pub connect_timeout: Duration,
    /// A host loses its connection if the host makes no progress for this time. No progress means that the host takes no byte
    /// that the target sends, or sends no byte of pending data (data that an R2T asked for, or the rest of a capsule). The
    /// target checks twice in this time. So a host that stops between two checks may lose its connection after half of the
    /// time. A Linux host waits for a command as long as this time.
    pub progress_timeout: Duration,
    /// The time in which a host has to close its connection after our terminate request (NVMe-oF TCP 1.0c §3.5: 30 s).
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
    /// Returns the limits of one of `cores` cores. The gateway has room for `max_hosts` I/O controllers with `max_qpairs` queue
    /// pairs. `other_socks` is the number of sockets of the core's driver that are not for hosts; the result's `max_conns`
    /// includes them.
    pub fn of_core(cores: usize, max_hosts: usize, max_qpairs: usize, other_socks: usize) -> Self {
        let max_discovery = max_hosts.div_ceil(cores).clamp(DISCOVERY.0, DISCOVERY.1);
        let qpairs = max_qpairs.div_ceil(cores);
        let conns = qpairs + max_discovery + UNAUTHENTICATED;
        let reserved_slots = conns * usize::from(OPENING_COMMANDS)
            + max_discovery * usize::from(DISCOVERY_COMMANDS)
            + max_hosts * ADMIN_COMMANDS;
        // A slot's number is its transfer tag, so there are at most [`MAX_SLOTS`] slots. At that limit, I/O commands still have
        // half of the slots.
        let slots = (IO_SLOTS + reserved_slots).min(MAX_SLOTS);
        Self {
            max_conns: conns + other_socks,
            // This core may have all I/O controllers, and the same number of controllers that have ended while their requests
            // are still in flight. A new discovery controller takes its place before the oldest one goes. The core also has one
            // discovery controller of its own.
            max_ctrlrs: 2 * max_hosts + max_discovery + 2,
            max_discovery,
            slots,
            reserved_slots: reserved_slots.min(slots / 2),
            // Each queue has one block, for its Connect or for an admin command.
            reserved_bytes: qpairs * IN_CAPSULE_BYTES as usize + OPEN_BYTES,
            // There is one list for every queue pair, since each may be slow to take its data, and one for the core's own
            // connection. Any socket takes all bytes that are sent before Connect at once, so the connections that a turn
            // adopts share a few lists.
            send_lists: qpairs + max_discovery + ADMISSIONS + 1,
            ..Self::default()
        }
    }

    /// Returns the most requests that LUNs have at one time. Only I/O commands make requests, and I/O commands never use the
    /// reserved slots.
    pub fn requests(&self) -> usize {
        self.slots - self.reserved_slots
    }

    /// Returns how many of the `max_conns` connections are for hosts, if `other_socks` sockets are not.
    pub fn host_conns(&self, other_socks: usize) -> usize {
        self.max_conns - other_socks
    }
}

const _: () = assert!(MAX_TRANSFER_BYTES == 4096 << MDTS);
