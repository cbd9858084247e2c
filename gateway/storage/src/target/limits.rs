//! How much one core's target may hold. Everything is allocated from this at start-up.

use super::queue::{Names, Queue};
use super::shares::CONN_PART;
use super::slot::Slot;
use super::tcp::Conn;
use std::time::Duration;
use trefoil_poll::arena::MAX_BLOCK_BYTES;

/// Largest data transfer of one command: MDTS 8 with pages of 4 KiB.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// MDTS: `MAX_TRANSFER_BYTES` is 2^MDTS pages of 4 KiB (NVMe base 2.0c §5.17.2.1).
pub const MDTS: u8 = 8;
/// In-capsule data that an I/O queue takes; admin queues take as much (NVMe-oF TCP 1.0c §3.5.1).
pub const IN_CAPSULE_BYTES: u32 = 8192;
/// MAXH2CDATA: a whole transfer fits one H2CData, so a host need not cut it.
pub const MAX_H2C_DATA_BYTES: u32 = MAX_TRANSFER_BYTES;
/// Entries of the largest submission queue (CAP.MQES + 1).
pub const MAX_QUEUE_ENTRIES: u16 = 256;
/// I/O queues that one controller has room for.
pub const MAX_IO_QUEUES: usize = 64;
/// Asynchronous Event Requests that one controller holds (AERL + 1).
pub const MAX_AERS: usize = 4;
/// Abort commands that one controller works on at a time (ACL + 1).
pub const MAX_ABORTS: usize = 4;

/// What a connection takes besides payload memory: its entries in the tables, a full queue's slots, and a list for sends,
/// whose vectors come to this.
pub const CONN_FIXED_BYTES: usize = size_of::<Conn>()
    + size_of::<Queue>()
    + size_of::<Names>()
    + MAX_QUEUE_ENTRIES as usize * size_of::<Slot>()
    + SEND_LIST_BYTES;
const SEND_LIST_BYTES: usize = 23 << 10;

/// Sizes and times of one core's target.
///
/// Memory of the defaults: connections 8,192 × (about 1.9 KiB + a send list of 23 KiB) = 200 MiB at most, slots
/// 28,672 × 256 B = 7 MiB, controllers 2,048 × about 4 KiB = 8 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetLimits {
    /// The driver's socket table: connections are indexed by socket.
    pub max_conns: usize,
    /// Controllers whose admin queue is on this core.
    pub max_ctrlrs: usize,
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
    /// ICReq and Connect must be through by then.
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
            slots: 28_672,
            reserved_slots: 1024,
            reserved_bytes: 8 << 20,
            send_lists: 8192,
            stream_bytes: 64 << 10,
            io_queues: MAX_IO_QUEUES as u16,
            has_write_zeroes: true,
            connect_timeout: Duration::from_secs(10),
            progress_timeout: Duration::from_secs(30),
            terminate_timeout: Duration::from_secs(5),
        }
    }
}

impl TargetLimits {
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
