//! The document: the objects of a gateway.
//!
//! Absent optional fields are not written back. A document that was read, stored and returned therefore
//! equals the original.

use crate::address::Address;
use crate::bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// A whole system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The gateway's own settings. They are read at every start and never stored.
    #[serde(default)]
    pub gateway: Gateway,
    /// Stores of blocks.
    #[serde(default, rename = "backend", skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// Sets of backends from which LUNs are carved.
    #[serde(default, rename = "pool", skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Pool>,
    /// Virtual disks.
    #[serde(default, rename = "lun", skip_serializing_if = "Vec::is_empty")]
    pub luns: Vec<Lun>,
    /// The subsystems that are offered to hosts.
    #[serde(default, rename = "subsystem", skip_serializing_if = "Vec::is_empty")]
    pub subsystems: Vec<Subsystem>,
    /// The discovery subsystem, which always exists.
    #[serde(default, skip_serializing_if = "Discovery::is_default")]
    pub discovery: Discovery,
    /// Names for host NQNs.
    #[serde(default, rename = "host", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
}

/// The gateway's own settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// The gateway's name in logs and tables.
    pub name: String,
    /// The CPUs on which cores run, or the number of cores.
    pub cores: Cores,
    /// The behaviour of a core without work.
    pub idle: Idle,
    /// With `idle = "adaptive"`: the time for which a core spins before it sleeps, in microseconds.
    pub spin_us: u32,
    /// With `idle = "adaptive"`: the interval in milliseconds at which a sleeping core sends itself a request, so that the
    /// first request after idle finds code and tables in the caches; 0 for never. Each request takes about 0.1 ms of the
    /// core's CPU.
    pub keep_warm_ms: u32,
    /// The longest time that the cores' CPUs may need to leave a sleep state, in microseconds (the kernel's PM QoS). 10
    /// allows light sleep states. 0 allows no sleep states, which costs as much power as `idle = "spin"`. If absent, the
    /// gateway doesn't change the system's setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_latency_us: Option<u32>,
    /// Payload memory of each core.
    pub memory_per_core: Bytes,
    /// The limit for all cores' payload memory and all memory backends together. If absent, only the
    /// machine's memory limits them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Bytes>,
    /// The most I/O controllers at the same time, over all cores. Discovery controllers have separate slots.
    pub max_hosts: u32,
    /// The most queue pairs of I/O controllers at the same time, over all cores. An admin queue counts as a queue pair. Two
    /// queue pairs are reserved for each of `max_hosts`.
    pub max_qpairs: u32,
    /// The folder of the durable store.
    pub state_dir: PathBuf,
    /// The control socket.
    pub rpc_socket: PathBuf,
    /// A TCP address for JSON-RPC without authentication. If absent, the gateway has no JSON-RPC over TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpc_listen: Option<Address>,
    /// A loopback address for Prometheus metrics over HTTP. If absent, the gateway serves no metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<Address>,
    /// The kernel's congestion control algorithm for all storage connections, such as `cubic` or `dctcp`. If absent,
    /// the system's default applies. A pacing algorithm such as BBR costs a LAN a third of its throughput.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_congestion_control: Option<String>,
    /// The form of the log on standard error.
    pub log: Log,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            name: "trefoil".into(),
            cores: Cores::Count(1),
            idle: Idle::Adaptive,
            spin_us: 50,
            keep_warm_ms: 20,
            resume_latency_us: None,
            memory_per_core: Bytes(256 << 20),
            memory_limit: None,
            max_hosts: 256,
            max_qpairs: 1024,
            state_dir: "/var/lib/trefoil".into(),
            rpc_socket: "/run/trefoil/rpc.sock".into(),
            rpc_listen: None,
            metrics_listen: None,
            tcp_congestion_control: None,
            log: Log::Text,
        }
    }
}

/// The CPUs on which cores run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number of cores, or a list of CPU numbers")]
pub enum Cores {
    /// This number of cores, on the first CPUs that the process may use.
    Count(u16),
    /// One core on each of these CPUs.
    List(Vec<u16>),
}

impl Cores {
    /// Returns the number of cores.
    pub fn count(&self) -> usize {
        match self {
            Self::Count(n) => usize::from(*n),
            Self::List(list) => list.len(),
        }
    }
}

/// The behaviour of an idle core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// Polls for work without a pause. The latency is the lowest, and each core uses 100 % of its CPU.
    Spin,
    /// Polls for a while, then sleeps until there is work.
    Adaptive,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Log {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The type of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendType {
    /// RAM of the gateway. Its contents are lost when the gateway stops, unless the backend has a `path`.
    Memory,
    /// A store that drops writes and reads as zeros, for measuring.
    Null,
    /// A file or a block device.
    File,
    /// A namespace of another NVMe/TCP subsystem.
    NvmeTcp,
}

impl BackendType {
    /// Returns the type as written in a document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Null => "null",
            Self::File => "file",
            Self::NvmeTcp => "nvme-tcp",
        }
    }
}

/// A backend. Its valid fields depend on its type; see [`Backend::check`](Self::check).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Unique among backends.
    pub name: String,
    /// The backend's type.
    #[serde(rename = "type")]
    pub kind: BackendType,
    /// `memory`, `null`: the backend's size. `file`: the size of a file that doesn't exist yet. If absent, the file must
    /// exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// `memory`, `null`, `file`: logical block size in bytes, 512 or 4096. If absent, a block device has its own block
    /// size, and every other backend 512. An `nvme-tcp` backend has the block size of its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// `file`: the file's path. `memory`: a file on a memory file system (such as /dev/shm) that keeps the
    /// contents over a restart of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `nvme-tcp`: the array's address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// `nvme-tcp`: the array's subsystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnqn: Option<String>,
    /// `nvme-tcp`: our host NQN at the array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostnqn: Option<String>,
    /// `nvme-tcp`: the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    /// `nvme-tcp`: requested I/O queue pairs; one per core if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// `nvme-tcp`: entries of a queue pair, 2 to 1024. A queue pair has at most one command less outstanding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    /// `nvme-tcp`: PDU header digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_digest: Option<bool>,
    /// `nvme-tcp`: PDU data digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_digest: Option<bool>,
    /// `nvme-tcp`: keep-alive timeout in seconds, 1 to [`MAX_KEEP_ALIVE_S`](crate::MAX_KEEP_ALIVE_S), which is also the
    /// default. After this time, an array ends the association of a dead gateway and discards its outstanding writes. The
    /// timeout should not be longer than the keep-alive timeout of hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive_s: Option<u32>,
    /// `nvme-tcp`: the time in seconds for which I/O waits for a lost array. After this time, the gateway reports the
    /// array's LUNs in the ANA state Inaccessible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_timeout_s: Option<u32>,
}

impl Backend {
    /// Makes a backend with only name and type.
    pub fn new(name: impl Into<String>, kind: BackendType) -> Self {
        Self {
            name: name.into(),
            kind,
            size: None,
            block_bytes: None,
            path: None,
            address: None,
            subnqn: None,
            hostnqn: None,
            nsid: None,
            queues: None,
            depth: None,
            header_digest: None,
            data_digest: None,
            keep_alive_s: None,
            loss_timeout_s: None,
        }
    }
}

/// An error in one field of one object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field's name in a document.
    pub field: &'static str,
    /// The message for a human reader.
    pub message: String,
}

/// A set of backends from which LUNs are carved. A pool has no redundancy of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Unique among pools.
    pub name: String,
    /// The names of its backends.
    pub backends: Vec<String>,
}

/// A virtual disk: carved from a pool, or a whole backend 1:1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lun {
    /// Unique among LUNs.
    pub name: String,
    /// The pool from which the LUN is carved. A LUN has either `pool` or `backend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The backend that the LUN presents whole, without metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The size of a LUN with `pool`. A LUN with `backend` has the backend's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// Logical block size in bytes, 512 or 4096; if absent, the largest block size of its backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// Identity, which no other LUN has. If absent, a LUN with `backend` has the backend's identity if the backend has one.
    /// Every other LUN gets a random UUID when the gateway makes the LUN. If a whole backend has a pool's label on it, the
    /// gateway presents it only if a UUID is given here. The UUID states that the backend was a LUN before, and that the
    /// pool belongs to its hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Identity, 32 hexadecimal digits. If absent, a LUN with `backend` has the backend's NGUID if there is one. Otherwise
    /// the NGUID is the UUID's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nguid: Option<String>,
    /// Refuses writes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// An NVM subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subsystem {
    /// Unique.
    pub nqn: String,
    /// Serial number, at most 20 ASCII characters; if absent, derived from the NQN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Model number, at most 40 ASCII characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Allows every host to connect. Otherwise only `hosts` may connect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_any_host: bool,
    /// Hosts that may connect: NQNs, or names of `[[host]]` entries. The list is a set: a name and its NQN are one host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Addresses and ports on which the subsystem is offered. The list is a set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Address>,
    /// The largest NSID that the subsystem may ever have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_namespaces: Option<u32>,
    /// The lowest controller ID that the subsystem assigns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_cntlid: Option<u16>,
    /// The highest controller ID that the subsystem assigns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cntlid: Option<u16>,
    /// The subsystem's LUNs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
}

impl Subsystem {
    /// Makes a subsystem without hosts and namespaces.
    pub fn new(nqn: impl Into<String>) -> Self {
        Self {
            nqn: nqn.into(),
            serial: None,
            model: None,
            allow_any_host: false,
            hosts: Vec::new(),
            listeners: Vec::new(),
            max_namespaces: None,
            min_cntlid: None,
            max_cntlid: None,
            namespaces: Vec::new(),
        }
    }

    /// Returns the largest NSID that the subsystem may have.
    pub fn max_nsid(&self) -> u32 {
        self.max_namespaces.unwrap_or(1024)
    }
}

/// The discovery subsystem's NQN (NVMe base 2.0c §4.5).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// The discovery subsystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discovery {
    /// The discovery subsystem's own listeners. All listeners of subsystems answer discovery too. On the discovery
    /// subsystem's own listener, a host learns of all subsystems to which it may connect. On a listener of a subsystem, a
    /// host learns only of the subsystems that are offered on that listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Address>,
}

impl Discovery {
    /// Returns whether the table sets no field.
    pub fn is_default(&self) -> bool {
        self.listeners.is_empty()
    }
}

/// A LUN in a subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// The namespace ID, from 1.
    pub nsid: u32,
    /// The LUN's name.
    pub lun: String,
    /// The hosts that see the namespace, among the hosts that may connect. If absent, all hosts that may connect see the
    /// namespace. If empty, no host sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
}

/// A name for a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Unique among hosts, and not an NQN.
    pub name: String,
    /// The host's NQN.
    pub nqn: String,
}
