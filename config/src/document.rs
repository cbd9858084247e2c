//! The document: what a gateway is made of.
//!
//! Optional fields that are absent are not written back, so a document that was read, stored and
//! given back is the one that was written.

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
    /// Where blocks are.
    #[serde(default, rename = "backend", skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// Sets of backends from which LUNs are carved.
    #[serde(default, rename = "pool", skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Pool>,
    /// Virtual disks.
    #[serde(default, rename = "lun", skip_serializing_if = "Vec::is_empty")]
    pub luns: Vec<Lun>,
    /// What is offered to hosts.
    #[serde(default, rename = "subsystem", skip_serializing_if = "Vec::is_empty")]
    pub subsystems: Vec<Subsystem>,
    /// The discovery subsystem, which is always there.
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
    /// For logs and tables.
    pub name: String,
    /// Which CPUs turn poll loops, or how many.
    pub cores: Cores,
    /// What a core does when it has nothing to do.
    pub idle: Idle,
    /// With `idle = "adaptive"`: how long a core spins before it sleeps, in microseconds.
    pub spin_us: u32,
    /// With `idle = "adaptive"`: how often a core that sleeps asks itself for something, in milliseconds, so that the first
    /// request after idle finds code and tables in its caches; 0 never. Each time takes about 0.1 ms of its CPU.
    pub keep_warm_ms: u32,
    /// The longest that the cores' CPUs may take to leave a sleep state, in microseconds (the kernel's PM QoS): 10 allows
    /// the light ones, 0 none, which costs as much power as `idle = "spin"`. Without it, what the system has chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_latency_us: Option<u32>,
    /// Payload memory of each core.
    pub memory_per_core: Bytes,
    /// What all cores' payload memory and all memory backends may take together; without it only the
    /// machine's own memory limits them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Bytes>,
    /// I/O controllers at a time, over all cores. Discovery has places of its own.
    pub max_hosts: u32,
    /// Queue pairs of I/O controllers at a time, over all cores; an admin queue is one. Two are kept for each of `max_hosts`.
    pub max_qpairs: u32,
    /// Where the durable store is.
    pub state_dir: PathBuf,
    /// The control socket.
    pub rpc_socket: PathBuf,
    /// A TCP address for JSON-RPC without authentication: only if it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpc_listen: Option<Address>,
    /// A loopback address for Prometheus metrics over HTTP: only if it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<Address>,
    /// The kernel's congestion control algorithm for all storage connections, such as `cubic` or `dctcp`; without it
    /// the system's own. One that paces, as BBR does, costs a LAN a third of its throughput.
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

/// Which CPUs turn poll loops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number of cores, or a list of CPU numbers")]
pub enum Cores {
    /// So many, on the first CPUs that the process may use.
    Count(u16),
    /// These CPUs.
    List(Vec<u16>),
}

impl Cores {
    /// How many.
    pub fn count(&self) -> usize {
        match self {
            Self::Count(n) => usize::from(*n),
            Self::List(list) => list.len(),
        }
    }
}

/// What an idle core does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// Looks for work without end: the lowest latency, 100 % of a CPU.
    Spin,
    /// Spins for a while, then sleeps until there is work.
    Adaptive,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Log {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendType {
    /// RAM of the gateway's; gone when it stops, unless it has a `path`.
    Memory,
    /// Takes everything and gives zeros: for measuring.
    Null,
    /// A file or a block device.
    File,
    /// A namespace of another NVMe/TCP subsystem.
    NvmeTcp,
}

impl BackendType {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Null => "null",
            Self::File => "file",
            Self::NvmeTcp => "nvme-tcp",
        }
    }
}

/// A backend. Which fields it takes depends on its type; see [`Backend::check`](Self::check).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Unique among backends.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: BackendType,
    /// `memory`, `null`: its size. `file`: the size to give a file that doesn't exist yet; without it
    /// the file must exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// `memory`, `null`, `file`: logical block size in bytes, 512 or 4096; a block device's own if
    /// absent, else 512. An `nvme-tcp` backend's is its namespace's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// `file`: where it is. `memory`: a file on a memory file system (such as /dev/shm) that keeps the
    /// contents when the gateway restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `nvme-tcp`: the array's address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// `nvme-tcp`: the array's subsystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnqn: Option<String>,
    /// `nvme-tcp`: who we say that we are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostnqn: Option<String>,
    /// `nvme-tcp`: the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    /// `nvme-tcp`: I/O queue pairs to ask for; one a core if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// `nvme-tcp`: entries of a queue pair, 2 to 1024; one command less can be under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    /// `nvme-tcp`: PDU header digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_digest: Option<bool>,
    /// `nvme-tcp`: PDU data digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_digest: Option<bool>,
    /// `nvme-tcp`: keep-alive timeout in seconds, 1 to [`MAX_KEEP_ALIVE_S`](crate::MAX_KEEP_ALIVE_S), which is also what it
    /// is if absent. An array forgets a gateway that died, and the writes that it had sent, after this time; it should be
    /// no longer than the hosts'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive_s: Option<u32>,
    /// `nvme-tcp`: for how long I/O waits for a lost array before its LUNs are shown in the ANA state Inaccessible, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_timeout_s: Option<u32>,
}

impl Backend {
    /// A backend of which only name and type are known.
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

/// One field of one object is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field, as it is written.
    pub field: &'static str,
    /// For a person.
    pub message: String,
}

/// A set of backends from which LUNs are carved. It has no redundancy of its own.
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
    /// The pool that it is carved from; or else `backend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The backend that it presents whole, without metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Its size, with `pool`; a whole backend's is the backend's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// Logical block size in bytes, 512 or 4096; the largest of its backends' if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// Identity, which no other LUN has; if absent, that of the whole backend where it has one, else made up when the LUN is created. A whole backend
    /// that a pool's label is on is only presented with a UUID: it was a LUN before, and the pool is its hosts'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Identity, 32 hexadecimal digits; if absent, as the UUID, or the UUID's bytes.
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
    /// Serial number, at most 20 ASCII characters; follows from the NQN if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Model number, at most 40 ASCII characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Lets every host in. Otherwise only `hosts` may connect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_any_host: bool,
    /// Hosts that may connect: NQNs, or names of `[[host]]` entries. A set: a name and its NQN are one host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Addresses and ports on which it is offered. A set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Address>,
    /// The largest NSID that it may ever have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_namespaces: Option<u32>,
    /// The lowest controller ID that it hands out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_cntlid: Option<u16>,
    /// The highest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cntlid: Option<u16>,
    /// Its LUNs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
}

impl Subsystem {
    /// A subsystem that lets nobody in and shows nothing.
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

    /// The largest NSID that it may have.
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
    /// Listeners of its own, besides those of subsystems, which all answer discovery too. On one of its own a host is told of
    /// all subsystems to which it may connect, on a subsystem's only of those that are offered there.
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
    /// From 1.
    pub nsid: u32,
    /// The LUN's name.
    pub lun: String,
    /// Who sees it among the hosts that may connect; all of them if absent, none if empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
}

/// A name for a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Unique among hosts, and not an NQN.
    pub name: String,
    /// Its NQN.
    pub nqn: String,
}
