//! Limits of one core's target. The target allocates all its memory from these limits at start-up.

use std::time::Duration;
use trefoil_poll::arena::MIN_BLOCK_BYTES;

/// Largest data transfer of one command: MDTS 8 with pages of 4 KiB.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// MDTS: `MAX_TRANSFER_BYTES` is 2^MDTS pages of 4 KiB (NVMe base 2.0c §5.17.2.1).
pub const MDTS: u8 = 8;
/// In-capsule data that an I/O queue takes. Admin queues take as much (NVMe-oF TCP 1.0c §3.5.1).
pub const IN_CAPSULE_BYTES: u32 = 8192;
/// MAXH2CDATA: a whole transfer fits one H2CData, so a host need not split the transfer.
pub const MAX_H2C_DATA_BYTES: u32 = MAX_TRANSFER_BYTES;
/// CPDA: the alignment of data from hosts (NVMe-oF TCP 1.0c §3.6.2.3).
pub const CONTROLLER_ALIGNMENT_BYTES: u32 = 4;
/// Entries of the largest submission queue (CAP.MQES + 1).
pub const MAX_QUEUE_ENTRIES: u16 = 256;
/// I/O queues that one controller has room for.
pub const MAX_IO_QUEUES: usize = 64;
/// Asynchronous Event Requests that one controller holds (AERL + 1).
pub const MAX_AERS: usize = 4;
/// Abort commands that one controller works on at a time (ACL + 1).
pub const MAX_ABORTS: usize = 4;

/// Commands that a connection may have outstanding before Connect: the Connect, and one command that must not come yet.
pub const OPENING_COMMANDS: u16 = 2;
/// Commands that a host may have outstanding at a discovery controller. This is the number of entries of the smallest admin queue
/// that a controller may require (NVMe base 2.0c figure 265, ASQSZ).
pub const DISCOVERY_COMMANDS: u16 = 32;
/// Slots that each admin queue always finds, whatever other queues do: for its Asynchronous Event Requests, and as many more.
const ADMIN_COMMANDS: usize = 2 * MAX_AERS;
/// Unauthenticated connections for which a core has room.
const UNAUTHENTICATED: usize = 512;
/// Hosts' connections that a core adopts in one turn.
const ADMISSIONS: usize = UNAUTHENTICATED / 8;
/// Time enough for some round trips and for a pause of the host. With a shorter time, connections that wait behind many addresses
/// are served sooner: in this time a core adopts [`UNAUTHENTICATED`] connections.
const CONNECT_GRACE: Duration = Duration::from_millis(25);
/// The least and the largest number of discovery controllers of a core.
const DISCOVERY: (usize, usize) = (64, 512);
/// Slots that a core has for I/O commands.
const IO_SLOTS: usize = 20_480;
/// Payload memory reserved for a core's [`UNAUTHENTICATED`] connections (one Connect each) and its discovery controllers (one
/// small block each).
pub const OPEN_BYTES: usize = UNAUTHENTICATED * MIN_BLOCK_BYTES + DISCOVERY.1 * IN_CAPSULE_BYTES as usize;
/// A discovery controller without a Keep Alive Timeout ends after this time without a command (NVMe base 2.0c §3.1.2.3.2: at
/// least two minutes).
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
    /// Controllers among `max_ctrlrs` that may be discovery controllers. If one more discovery controller comes, the target ends
    /// one: the oldest of the address with the most discovery controllers.
    pub max_discovery: usize,
    /// A discovery controller without a Keep Alive Timeout ends after this time without a command.
    pub discovery_timeout: Duration,
    /// Hosts' connections that a core adopts in one turn.
    pub admissions: usize,
    /// A connection has at least this time for its Connect before it must make room for another connection.
    pub connect_grace: Duration,
    /// Commands under way: 20,480 of I/O and admin queues, and 2,048 controllers × 4 Asynchronous Event Requests. The limit is
    /// 65,535, since a slot's number is its transfer tag.
    pub slots: usize,
    /// Slots among `slots` that only Connect and admin commands may take.
    pub reserved_slots: usize,
    /// Payload memory that only the following may take: Connect, admin commands (8 KiB a connection), and received bytes of
    /// commands that could not start yet.
    pub reserved_bytes: usize,
    /// Send lists. A connection waits for a list if all lists are under way.
    pub send_lists: usize,
    /// The most bytes that one receive takes into the driver's memory.
    pub stream_bytes: u32,
    /// The most I/O queues that a controller grants; at most [`MAX_IO_QUEUES`].
    pub io_queues: u16,
    /// The target offers Write Zeroes. Arrays without Write Zeroes are common, so tests try an initiator against such an array.
    pub has_write_zeroes: bool,
    /// The target promises that deallocated blocks read as zeros (DLFEAT). All our backends keep this promise. Arrays that
    /// promise nothing are common, so tests try an initiator against such an array.
    pub promises_zeros: bool,
    /// A host's ICReq and Connect must complete within this time after a core adopts the connection.
    pub connect_timeout: Duration,
    /// A host loses its connection if the host makes no progress for this time: it takes no byte that the target sends, or sends
    /// no byte of pending data (data that an R2T asked for, or the rest of a capsule). The target checks twice in this time. So a
    /// host that stops between two checks may lose its connection after half of the time. A Linux host waits as long for a
    /// command.
    pub progress_timeout: Duration,
    /// The time that a host has to close after our terminate request (NVMe-oF TCP 1.0c §3.5: 30 s).
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
    /// pairs. The core's driver has `other_socks` sockets that are not hosts'. `max_conns` is the number of all sockets.
    pub fn of_core(cores: usize, max_hosts: usize, max_qpairs: usize, other_socks: usize) -> Self {
        let max_discovery = max_hosts.div_ceil(cores).clamp(DISCOVERY.0, DISCOVERY.1);
        let qpairs = max_qpairs.div_ceil(cores);
        let conns = qpairs + max_discovery + UNAUTHENTICATED;
        let reserved_slots = conns * usize::from(OPENING_COMMANDS)
            + max_discovery * usize::from(DISCOVERY_COMMANDS)
            + max_hosts * ADMIN_COMMANDS;
        // A slot's number is its transfer tag, which limits the number of slots. At that limit, I/O commands still keep half of
        // the slots.
        let slots = (IO_SLOTS + reserved_slots).min(MAX_SLOTS);
        Self {
            max_conns: conns + other_socks,
            // All I/O controllers may be on this core, and as many more whose association has ended while their requests have
            // not. One discovery controller more comes before the oldest goes. The core also has one discovery controller of its
            // own.
            max_ctrlrs: 2 * max_hosts + max_discovery + 2,
            max_discovery,
            slots,
            reserved_slots: reserved_slots.min(slots / 2),
            // Each queue has one block, for its Connect or for an admin command.
            reserved_bytes: qpairs * IN_CAPSULE_BYTES as usize + OPEN_BYTES,
            // There is one list for every queue pair, which may be slow to take its data, and one for the core's own connection.
            // The bytes sent before Connect fit any socket at once, so the connections that a turn adopts share a few lists.
            send_lists: qpairs + max_discovery + ADMISSIONS + 1,
            ..Self::default()
        }
    }

    /// Returns the largest number of requests at LUNs at one time. Only I/O commands make requests, and I/O commands leave the
    /// reserved slots alone.
    pub fn requests(&self) -> usize {
        self.slots - self.reserved_slots
    }

    /// Returns the number of hosts' connections among `max_conns`, if `other_socks` sockets are not hosts'.
    pub fn host_conns(&self, other_socks: usize) -> usize {
        self.max_conns - other_socks
    }
}

const _: () = assert!(MAX_TRANSFER_BYTES == 4096 << MDTS);
