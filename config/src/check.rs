//! Checks of single objects, and of the whole document.

use crate::address::Address;
use crate::bytes::Bytes;
use crate::document::{
    Backend, BackendType, Config, Cores, DISCOVERY_NQN, FieldError, Gateway, Host, Lun, Pool, Subsystem,
};
use crate::error::{Key, Problem};
use crate::nqn::{check_host_nqn, check_subsystem_nqn, default_serial};
use crate::told::cut_quotations;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

/// The most LUNs of one gateway.
pub const MAX_LUNS: usize = 4096;
/// The most backends of one gateway.
pub const MAX_BACKENDS: usize = 256;
/// The most distinct listeners of one gateway.
pub const MAX_PORTALS: usize = 64;
/// The least payload memory of a core: 16 requests of the largest transfer, each in its block of
/// 2 MiB, so that one host with a queue of large requests leaves room for the others.
pub const MIN_CORE_MEMORY_BYTES: u64 = 16 * (2 << 20);
/// The longest keep-alive timeout towards an array, in seconds. A lost path or a dead gateway may leave writes at the
/// array. The timeout bounds the time in which these writes may still take effect. Hosts get the sum as CQT, and a
/// restarted gateway knows of none of these writes. Hosts (Linux has 5 s by default) should not come back before the
/// array forgets the dead gateway.
pub const MAX_KEEP_ALIVE_S: u32 = 5;
/// The least share of a core's payload memory for each connected queue pair, in bytes: one block for a
/// command of 8 KiB, so that all queue pairs can make progress at the same time.
pub const QPAIR_MEMORY_BYTES: u64 = 8 << 10;
/// The memory that a core reserves for connections of hosts without permission: connections before Connect,
/// and discovery.
pub const OPEN_MEMORY_BYTES: u64 = 6 << 20;

/// A sum with its terms, for a message: `2 x 256MiB + 1GiB = 1536MiB`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Worked {
    terms: Vec<String>,
    total_bytes: u64,
}

impl Worked {
    /// Adds `count` times `each_bytes`, named `what`.
    pub fn add(mut self, what: &str, count: u64, each_bytes: u64) -> Self {
        let each = Bytes(each_bytes).rounded();
        self.terms.push(if count == 1 {
            format!("{what} {each}")
        } else {
            format!("{what} {count} x {each}")
        });
        self.total_bytes = self.total_bytes.saturating_add(count.saturating_mul(each_bytes));
        self
    }

    /// Returns the sum, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }
}

impl fmt::Display for Worked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.terms.join(" + "), Bytes(self.total_bytes).rounded())
    }
}

fn wrong<T>(field: &'static str, message: impl Into<String>) -> Result<T, FieldError> {
    Err(FieldError { field, message: cut_quotations(&message.into()) })
}

/// Checks an entry of a list of hosts: an NQN, or the name of a [[host]], which could be an NQN.
fn check_host(report: &mut Report, path: &[Key], host: &str) {
    if let Err(error) = check_host_nqn(host) {
        report.add(path, error);
    }
}

/// Checks the name of a backend, pool, LUN or host: 1 to 63 printable ASCII characters without
/// spaces or quotes.
///
/// # Errors
/// The fault of the name, for the field `name`.
pub fn check_name(name: &str) -> Result<(), FieldError> {
    let ok = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'`');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(ok) {
        return wrong(
            "name",
            format!(
                "`{name}` is not a name: use 1 to 63 printable ASCII characters without spaces or quotes"
            ),
        );
    }
    Ok(())
}

/// Checks the listeners of a subsystem, or of the discovery subsystem, alone.
///
/// # Errors
/// The first address that is no listener, for the field `listeners`.
pub fn check_listeners(listeners: &[Address]) -> Result<(), FieldError> {
    match listeners.iter().find(|listen| listen.port() == 0) {
        Some(listen) => wrong("listeners", format!("{listen} has no port")),
        None => Ok(()),
    }
}

fn check_block(field: &'static str, block_bytes: Option<u32>) -> Result<u64, FieldError> {
    match block_bytes {
        None => Ok(512),
        Some(n @ (512 | 4096)) => Ok(u64::from(n)),
        Some(n) => wrong(field, format!("a logical block can't have {n} bytes: use 512 or 4096")),
    }
}

fn check_size(size: Bytes, block_bytes: u64) -> Result<(), FieldError> {
    if size.0 == 0 || !size.0.is_multiple_of(block_bytes) {
        let text = format!("{size} is not a positive multiple of the block size {block_bytes}");
        return wrong("size", text + &binary_hint(size));
    }
    Ok(())
}

/// Returns a hint at the binary unit, for a size with a decimal unit.
fn binary_hint(Bytes(bytes): Bytes) -> String {
    let units = [
        ("TB", "TiB", 1_000_000_000_000),
        ("GB", "GiB", 1_000_000_000),
        ("MB", "MiB", 1_000_000),
        ("kB", "KiB", 1000),
    ];
    let decimal = units.iter().find(|(_, _, scale)| bytes > 0 && bytes.is_multiple_of(*scale));
    decimal.map_or_else(String::new, |(is, binary, scale)| {
        let count = bytes / scale;
        format!(": {count}{is} are {bytes} bytes; did you mean {count}{binary}?")
    })
}

fn check_ascii(field: &'static str, text: &str, max: usize) -> Result<(), FieldError> {
    if text.is_empty() || text.len() > max || !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return wrong(field, format!("`{text}` is not 1 to {max} printable ASCII characters"));
    }
    Ok(())
}

impl Backend {
    /// Checks the backend alone: each type has required fields and unknown fields.
    ///
    /// # Errors
    /// The first field that is wrong, missing or of another type.
    pub fn check(&self) -> Result<(), FieldError> {
        use BackendType::{File, Memory, Null, NvmeTcp};
        check_name(&self.name)?;
        let kind = self.kind;
        let fields: [(&'static str, bool, &[BackendType]); 13] = [
            ("size", self.size.is_some(), &[Memory, Null, File]),
            ("block_bytes", self.block_bytes.is_some(), &[Memory, Null, File]),
            ("path", self.path.is_some(), &[Memory, File]),
            ("address", self.address.is_some(), &[NvmeTcp]),
            ("subnqn", self.subnqn.is_some(), &[NvmeTcp]),
            ("hostnqn", self.hostnqn.is_some(), &[NvmeTcp]),
            ("nsid", self.nsid.is_some(), &[NvmeTcp]),
            ("queues", self.queues.is_some(), &[NvmeTcp]),
            ("depth", self.depth.is_some(), &[NvmeTcp]),
            ("header_digest", self.header_digest.is_some(), &[NvmeTcp]),
            ("data_digest", self.data_digest.is_some(), &[NvmeTcp]),
            ("keep_alive_s", self.keep_alive_s.is_some(), &[NvmeTcp]),
            ("loss_timeout_s", self.loss_timeout_s.is_some(), &[NvmeTcp]),
        ];
        if let Some((field, ..)) = fields.iter().find(|(_, set, kinds)| *set && !kinds.contains(&kind)) {
            return wrong(field, format!("a backend of type {} has no field `{field}`", kind.as_str()));
        }
        let needed: &[&'static str] = match kind {
            Memory | Null => &["size"],
            File => &["path"],
            NvmeTcp => &["address", "subnqn"],
        };
        if let Some((field, ..)) = fields.iter().find(|(field, set, _)| !set && needed.contains(field)) {
            return wrong(field, format!("a backend of type {} needs the field `{field}`", kind.as_str()));
        }
        let block_bytes = check_block("block_bytes", self.block_bytes)?;
        if let Some(size) = self.size {
            check_size(size, block_bytes)?;
        }
        for (field, nqn) in [("subnqn", &self.subnqn), ("hostnqn", &self.hostnqn)] {
            if let Some(Err(error)) = nqn.as_deref().map(check_host_nqn) {
                return wrong(field, error);
            }
        }
        match self.nsid {
            Some(0 | u32::MAX) => wrong("nsid", "the namespace ID is out of range: use 1 to 4294967294"),
            _ => Ok(()),
        }?;
        match self.queues {
            Some(0) => wrong("queues", "0 I/O queue pairs are too few: use 1 or more"),
            _ => Ok(()),
        }?;
        match self.keep_alive_s {
            Some(n) if !(1..=MAX_KEEP_ALIVE_S).contains(&n) => {
                wrong("keep_alive_s", format!("the timeout can't be {n} s: use 1 to {MAX_KEEP_ALIVE_S}"))
            }
            _ => Ok(()),
        }?;
        match self.depth {
            Some(n) if !(2..=1024).contains(&n) => {
                wrong("depth", format!("a queue pair can't have {n} entries: use 2 to 1024"))
            }
            _ => Ok(()),
        }
    }
}

impl Pool {
    /// Checks the object alone.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        check_name(&self.name)?;
        if self.backends.is_empty() {
            return wrong("backends", "a pool needs at least one backend");
        }
        // This check comes before the comparison of all backends with each other.
        if self.backends.len() > MAX_BACKENDS {
            let len = self.backends.len();
            return wrong(
                "backends",
                format!("{len} backends are too many: a gateway can have {MAX_BACKENDS}"),
            );
        }
        let twice = self.backends.iter().enumerate().find(|(n, name)| self.backends[..*n].contains(name));
        match twice {
            Some((_, name)) => wrong("backends", format!("backend `{name}` is listed twice: list it once")),
            None => Ok(()),
        }
    }
}

impl Lun {
    /// Checks the object alone.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        check_name(&self.name)?;
        let block_bytes = check_block("block_bytes", self.block_bytes)?;
        match (&self.pool, &self.backend, self.size) {
            (Some(_), Some(_), _) => wrong(
                "backend",
                "a LUN has either a `pool` or a `backend`, not both: remove one of the two fields",
            ),
            (None, None, _) => {
                wrong("pool", "the LUN has neither a `pool` nor a `backend`: set one of the two fields")
            }
            (Some(_), None, None) => wrong("size", "a LUN that is carved from a pool needs a `size`"),
            (None, Some(_), Some(_)) => {
                wrong("size", "a LUN that presents a whole backend has the backend's size: remove `size`")
            }
            (Some(_), None, Some(size)) => check_size(size, block_bytes),
            (None, Some(_), None) => Ok(()),
        }?;
        if self.uuid.is_some_and(|uuid| uuid.is_nil()) {
            return wrong(
                "uuid",
                "a UUID of zeros identifies nothing: leave `uuid` out, and the gateway makes a random UUID",
            );
        }
        match self.nguid.as_deref() {
            Some(text) if parse_nguid(text).is_none() => wrong(
                "nguid",
                format!("`{text}` is not an NGUID: use 32 hexadecimal digits that are not all zero"),
            ),
            _ => Ok(()),
        }
    }

    /// Returns the NGUID's bytes, if the LUN has a valid NGUID.
    pub fn nguid_bytes(&self) -> Option<[u8; 16]> {
        self.nguid.as_deref().and_then(parse_nguid)
    }

    /// Returns the identities by which hosts recognise the LUN, as far as known: its UUID and its NGUID. The NGUID is the
    /// UUID's bytes unless it is given.
    pub fn identities(&self) -> [Option<(&'static str, [u8; 16])>; 2] {
        let uuid = self.uuid.map(|uuid| *uuid.as_bytes());
        [uuid.map(|id| ("uuid", id)), self.nguid_bytes().or(uuid).map(|id| ("nguid", id))]
    }
}

fn parse_nguid(text: &str) -> Option<[u8; 16]> {
    // `Uuid` reads 32 digits without hyphens ("simple"); its other forms are longer.
    let id = uuid::Uuid::try_parse(text).ok().filter(|id| text.len() == 32 && !id.is_nil())?;
    Some(*id.as_bytes())
}

impl Subsystem {
    /// Checks the object alone.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        if let Err(error) = check_subsystem_nqn(&self.nqn) {
            return wrong("nqn", error);
        }
        if self.nqn == DISCOVERY_NQN {
            return wrong(
                "nqn",
                "the discovery subsystem always exists: write its own listeners under [discovery]",
            );
        }
        self.serial.as_deref().map_or(Ok(()), |serial| check_ascii("serial", serial, 20))?;
        if self.serial.as_deref().is_some_and(|serial| serial.trim().is_empty()) {
            return wrong(
                "serial",
                "the serial number has only spaces: leave `serial` out, and the gateway derives it from the NQN",
            );
        }
        self.model.as_deref().map_or(Ok(()), |model| check_ascii("model", model, 40))?;
        if !(1..=4096).contains(&self.max_nsid()) {
            return wrong("max_namespaces", format!("{} is out of range: use 1 to 4096", self.max_nsid()));
        }
        let (min, max) = (self.min_cntlid.unwrap_or(1), self.max_cntlid.unwrap_or(0xFFEF));
        // FFF0h to FFFFh are reserved (NVMe base 2.0c §4.6.1 CNTLID).
        if min == 0 || max > 0xFFEF || min > max {
            return wrong(
                "max_cntlid",
                format!("`min_cntlid` {min} and `max_cntlid` {max} are not a range within 1 to 65519"),
            );
        }
        check_listeners(&self.listeners)?;
        for (n, namespace) in self.namespaces.iter().enumerate() {
            if !(1..=self.max_nsid()).contains(&namespace.nsid) {
                let max = self.max_nsid();
                return wrong(
                    "namespaces",
                    format!("nsid {} is out of range: use 1 to {max}", namespace.nsid),
                );
            }
            if self.namespaces[..n].iter().any(|earlier| earlier.nsid == namespace.nsid) {
                return wrong("namespaces", format!("nsid {} is listed twice", namespace.nsid));
            }
        }
        Ok(())
    }
}

impl Host {
    /// Checks the object alone.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        check_name(&self.name)?;
        if self.name.starts_with("nqn.") {
            return wrong(
                "name",
                format!(
                    "`{}` begins like an NQN: use another name, so that lists of hosts are clear",
                    self.name
                ),
            );
        }
        check_host_nqn(&self.nqn).or_else(|error| wrong("nqn", error))
    }
}

impl Gateway {
    fn check(&self, report: &mut Report) {
        let cores = self.cores.count();
        let mut wrong = |field: &str, message: String| report.add(&["gateway".into(), field.into()], message);
        if !(1..=128).contains(&cores) {
            wrong("cores", format!("the gateway can't have {cores} cores: use 1 to 128"));
        }
        if let Cores::List(list) = &self.cores
            && let Some((_, cpu)) = list.iter().enumerate().find(|(n, cpu)| list[..*n].contains(cpu))
        {
            wrong("cores", format!("CPU {cpu} is listed twice: list it once"));
        }
        if !(1..=0xFFEF).contains(&self.max_hosts) {
            wrong("max_hosts", format!("{} hosts are out of range: use 1 to 65519", self.max_hosts));
        }
        // Each host has an admin queue and at least one I/O queue.
        if self.max_qpairs < self.max_hosts.saturating_mul(2) {
            let need = self.max_hosts.saturating_mul(2);
            wrong(
                "max_qpairs",
                format!(
                    "{} hosts need {need} queue pairs: an admin queue and an I/O queue each",
                    self.max_hosts
                ),
            );
        }
        let qpairs = u64::from(self.max_qpairs).div_ceil(cores.max(1) as u64);
        let need = Worked::default().add("large transfers 16 x 2MiB =", 1, MIN_CORE_MEMORY_BYTES).add(
            "queue pairs",
            qpairs,
            QPAIR_MEMORY_BYTES,
        );
        let need = need.add("unauthenticated and discovery connections =", 1, OPEN_MEMORY_BYTES);
        if self.memory_per_core.0 < need.total_bytes() {
            let given = self.memory_per_core;
            let least = Bytes(need.total_bytes().next_multiple_of(1 << 20));
            let message = format!("{given} is less than a core needs: use at least {least} ({need})");
            wrong("memory_per_core", message);
        }
        for (field, path) in [("state_dir", &self.state_dir), ("rpc_socket", &self.rpc_socket)] {
            if path.as_os_str().is_empty() {
                wrong(field, "the path is empty: write an absolute path".into());
            }
        }
        // sun_path holds 108 bytes with its terminator (unix(7)).
        if self.rpc_socket.as_os_str().len() > 107 {
            wrong("rpc_socket", "the path is too long: a Unix socket's path has at most 107 bytes".into());
        }
        if let Some(listen) = self.metrics_listen.filter(|l| !l.ip().is_loopback()) {
            wrong(
                "metrics_listen",
                format!(
                    "{listen} is not a loopback address: use a loopback address, as metrics have no authentication"
                ),
            );
        }
        if let Some(listen) = self.rpc_listen.filter(|l| !l.ip().is_loopback()) {
            wrong(
                "rpc_listen",
                format!(
                    "{listen} is not a loopback address: use a loopback address, as JSON-RPC over TCP has no authentication"
                ),
            );
        }
    }
}

#[derive(Default)]
struct Report(Vec<Problem>);

impl Report {
    fn add(&mut self, path: &[Key], message: impl Into<String>) {
        self.0.push(Problem { path: path.to_vec(), message: cut_quotations(&message.into()) });
    }

    fn object(&mut self, list: &str, index: usize, result: Result<(), FieldError>) {
        if let Err(e) = result {
            self.add(&[list.into(), index.into(), e.field.into()], e.message);
        }
    }

    /// Reports each name that an earlier object of the list already has.
    fn unique<'a>(&mut self, list: &str, field: &str, names: impl Iterator<Item = &'a str>) {
        let mut first = HashMap::new();
        for (index, name) in names.enumerate() {
            if let Some(earlier) = first.get(name) {
                self.add(
                    &[list.into(), index.into(), field.into()],
                    format!("{list}[{earlier}] already has the {field} `{name}`"),
                );
            } else {
                first.insert(name, index);
            }
        }
    }
}

impl Config {
    /// Checks the whole document: each object alone, names, references, and sums against limits. Returns an
    /// empty list for a sound document.
    pub fn check(&self) -> Vec<Problem> {
        let mut report = Report::default();
        self.gateway.check(&mut report);
        self.backends.iter().enumerate().for_each(|(n, b)| report.object("backend", n, b.check()));
        self.pools.iter().enumerate().for_each(|(n, p)| report.object("pool", n, p.check()));
        self.luns.iter().enumerate().for_each(|(n, l)| report.object("lun", n, l.check()));
        self.subsystems.iter().enumerate().for_each(|(n, s)| report.object("subsystem", n, s.check()));
        self.hosts.iter().enumerate().for_each(|(n, h)| report.object("host", n, h.check()));
        if let Err(e) = check_listeners(&self.discovery.listeners) {
            report.add(&["discovery".into(), e.field.into()], e.message);
        }
        self.check_names(&mut report);
        self.check_identities(&mut report);
        self.check_storage(&mut report);
        self.check_exports(&mut report);
        self.check_sums(&mut report);
        report.0
    }

    /// Returns likely oversights of a sound document.
    pub fn oversights(&self) -> Vec<String> {
        let unreachable = self.subsystems.iter().filter(|s| s.hosts.is_empty() && !s.allow_any_host);
        let told = |s: &Subsystem| {
            format!("subsystem `{}`: no host may connect: set `hosts` or `allow_any_host`", s.nqn)
        };
        unreachable.map(told).chain(self.twins()).chain(self.odd_hosts()).collect()
    }

    /// Returns the objects that hosts take for one object although they are several: a LUN in several subsystems,
    /// and several subsystems with one serial number.
    pub fn twins(&self) -> Vec<String> {
        let (mut luns, mut serials): (BTreeMap<_, Vec<String>>, BTreeMap<_, Vec<String>>) =
            Default::default();
        for s in &self.subsystems {
            for ns in &s.namespaces {
                let place = format!("namespace {} of subsystem `{}`", ns.nsid, s.nqn);
                luns.entry(ns.lun.as_str()).or_default().push(place);
            }
            let serial = s.serial.clone().unwrap_or_else(|| default_serial(&s.nqn));
            // On the wire the serial number ends in spaces anyway.
            serials.entry(serial.trim_end().to_owned()).or_default().push(format!("`{}`", s.nqn));
        }
        let several = |places: &[String]| match places {
            [] | [_] => None,
            [few @ .., last] if few.len() < 4 => Some(format!("{} and {last}", few.join(", "))),
            [first, second, rest @ ..] => Some(format!("{first}, {second} and {} more", rest.len())),
        };
        let luns = luns.iter().filter_map(|(lun, places)| {
            Some(format!(
                "LUN `{lun}` is {}, each with the same UUID and NGUID: a host with Linux 6.0 or newer that connects to \
                 several of these subsystems refuses all but the first namespace (\"duplicate IDs\")",
                several(places)?
            ))
        });
        let serials = serials.iter().filter_map(|(serial, nqns)| {
            Some(format!(
                "subsystems {} have the same serial `{serial}`: on a host that connects to several of them, \
                 /dev/disk/by-id/nvme-MODEL_SERIAL leads to any of their disks; without `serial` each subsystem has its own",
                several(nqns)?
            ))
        });
        luns.chain(serials).collect()
    }

    /// Checks that no two LUNs have the same identity.
    fn check_identities(&self, report: &mut Report) {
        let mut first = HashMap::new();
        for (n, lun) in self.luns.iter().enumerate() {
            for (field, id) in lun.identities().into_iter().flatten() {
                if let Some(other) = first.get(&(field, id)) {
                    let message = format!("LUN `{other}` already has this {}", field.to_uppercase());
                    report.add(&["lun".into(), n.into(), field.into()], message);
                    // The NGUID follows from the UUID.
                    break;
                }
                first.insert((field, id), &lun.name);
            }
        }
    }

    /// Returns the entries of lists that are neither a [[host]]'s name nor begin like an NQN. Lists may name a host by any
    /// NQN, so nothing else tells a misspelt name from an NQN.
    pub fn odd_hosts(&self) -> Vec<String> {
        let names: HashSet<&str> =
            self.hosts.iter().flat_map(|host| [&host.name, &host.nqn]).map(String::as_str).collect();
        let listed = self
            .subsystems
            .iter()
            .flat_map(|s| s.hosts.iter().chain(s.namespaces.iter().flat_map(|ns| ns.hosts.iter().flatten())));
        let odd: BTreeSet<&str> = listed
            .map(String::as_str)
            .filter(|host| !host.starts_with("nqn.") && !names.contains(host))
            .collect();
        let told = |host: &str| {
            let host = host.escape_debug();
            format!("host `{host}`: no [[host]] has this name, so the gateway takes the name for an NQN")
        };
        odd.into_iter().map(told).collect()
    }

    fn check_names(&self, report: &mut Report) {
        report.unique("backend", "name", self.backends.iter().map(|b| b.name.as_str()));
        report.unique("pool", "name", self.pools.iter().map(|p| p.name.as_str()));
        report.unique("lun", "name", self.luns.iter().map(|l| l.name.as_str()));
        report.unique("subsystem", "nqn", self.subsystems.iter().map(|s| s.nqn.as_str()));
        report.unique("host", "name", self.hosts.iter().map(|h| h.name.as_str()));
        let by_name: HashMap<_, _> = self.hosts.iter().map(|host| (&host.name, &host.nqn)).collect();
        let mut names = HashMap::new();
        for (n, host) in self.hosts.iter().enumerate() {
            if by_name.get(&host.nqn).is_some_and(|nqn| **nqn != host.nqn) {
                report.add(
                    &["host".into(), n.into(), "nqn".into()],
                    format!(
                        "another [[host]] has the name `{}`, so a list with this text could mean either host",
                        host.nqn
                    ),
                );
            }
            if let Some(name) = names.insert(&host.nqn, &host.name) {
                let nqn = &host.nqn;
                report.add(
                    &["host".into(), n.into(), "nqn".into()],
                    format!("host `{name}` already has NQN `{nqn}`"),
                );
            }
        }
        for (list, len, max) in
            [("backend", self.backends.len(), MAX_BACKENDS), ("lun", self.luns.len(), MAX_LUNS)]
        {
            if len > max {
                report.add(&[list.into()], format!("{len} {list}s are too many: a gateway can have {max}"));
            }
        }
    }

    /// Checks that every referenced backend or pool exists, and that no backend has two users.
    fn check_storage(&self, report: &mut Report) {
        let mut users: HashMap<&str, String> = HashMap::new();
        let mut take = |report: &mut Report, path: &[Key], backend, user: String| {
            if !self.backends.iter().any(|b| b.name == backend) {
                report.add(path, format!("there is no backend `{backend}`"));
            } else if let Some(other) = users.insert(backend, user) {
                report.add(path, format!("backend `{backend}` already belongs to {other}"));
            }
        };
        for (n, pool) in self.pools.iter().enumerate() {
            for (m, name) in pool.backends.iter().enumerate() {
                let path = ["pool".into(), n.into(), "backends".into(), m.into()];
                take(report, &path, name.as_str(), format!("pool `{}`", pool.name));
            }
        }
        for (n, lun) in self.luns.iter().enumerate() {
            if let Some(pool) = lun.pool.as_deref().filter(|p| !self.pools.iter().any(|q| q.name == **p)) {
                report.add(&["lun".into(), n.into(), "pool".into()], format!("there is no pool `{pool}`"));
            }
            if let Some(backend) = lun.backend.as_deref() {
                take(
                    report,
                    &["lun".into(), n.into(), "backend".into()],
                    backend,
                    format!("LUN `{}`", lun.name),
                );
            }
        }
    }

    /// Checks that the LUNs and hosts of subsystems exist.
    fn check_exports(&self, report: &mut Report) {
        for (n, subsystem) in self.subsystems.iter().enumerate() {
            let at = |rest: &[Key]| [&["subsystem".into(), n.into()], rest].concat();
            for (m, host) in subsystem.hosts.iter().enumerate() {
                check_host(report, &at(&["hosts".into(), m.into()]), host);
            }
            for (m, namespace) in subsystem.namespaces.iter().enumerate() {
                let lun = &namespace.lun;
                let path = at(&["namespaces".into(), m.into(), "lun".into()]);
                if !self.luns.iter().any(|l| l.name == *lun) {
                    report.add(&path, format!("there is no LUN `{lun}`"));
                }
                if subsystem.namespaces[..m].iter().any(|earlier| earlier.lun == *lun) {
                    report.add(&path, format!("LUN `{lun}` is already in this subsystem"));
                }
                for (k, host) in namespace.hosts.iter().flatten().enumerate() {
                    let path = at(&["namespaces".into(), m.into(), "hosts".into(), k.into()]);
                    check_host(report, &path, host);
                }
            }
        }
        let own = &self.discovery.listeners;
        let mut portals: Vec<_> = self.subsystems.iter().flat_map(|s| &s.listeners).chain(own).collect();
        portals.sort_unstable();
        portals.dedup();
        if portals.len() > MAX_PORTALS {
            let len = portals.len();
            report.add(
                &["subsystem".into()],
                format!("{len} different listeners are too many: a gateway can have {MAX_PORTALS}"),
            );
        }
    }

    /// Checks the memory against its limit.
    fn check_sums(&self, report: &mut Report) {
        let Some(limit) = self.gateway.memory_limit else { return };
        let sum = self.memory();
        if sum.total_bytes() > limit.0 {
            let path = ["gateway".into(), "memory_limit".into()];
            report.add(&path, format!("the limit is {limit}, and the document needs more: {sum}"));
        }
    }

    /// Returns the memory that this system reserves: cores' payload memory and memory backends.
    pub fn memory(&self) -> Worked {
        let cores = self.gateway.cores.count() as u64;
        let sum = Worked::default().add("cores", cores, self.gateway.memory_per_core.0);
        let memory = self.backends.iter().filter(|b| b.kind == BackendType::Memory);
        memory.fold(sum, |sum, b| sum.add(&format!("backend {}", b.name), 1, b.size.unwrap_or_default().0))
    }

    /// Returns the NQN of a host that a list names by NQN or by the name of a `[[host]]`.
    pub fn host_nqn<'a>(&'a self, host: &'a str) -> &'a str {
        self.hosts.iter().find(|h| h.name == host).map_or(host, |h| &h.nqn)
    }
}
