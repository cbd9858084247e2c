//! Checks of the whole document: the gateway's settings, names, references, and sums against limits.

use crate::bytes::Bytes;
use crate::check::{MAX_BACKENDS, check_listeners};
use crate::document::{BackendType, Config, Cores, FieldError, Gateway, Subsystem};
use crate::error::{Key, Problem};
use crate::nqn::{check_host_nqn, default_serial};
use crate::told::cut_quotations;
use crate::worked::Worked;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// The most LUNs of one gateway.
pub const MAX_LUNS: usize = 4096;
/// The most distinct listeners of one gateway.
pub const MAX_PORTALS: usize = 64;
/// The least payload memory of a core: 16 requests of the largest transfer, each in a block of 2 MiB. If one host queues
/// large requests, memory is then still left for the other hosts.
pub const MIN_CORE_MEMORY_BYTES: u64 = 16 * (2 << 20);
/// The least share of a core's payload memory for each connected queue pair, in bytes. The share is one block for a command
/// of 8 KiB, so all queue pairs can make progress at the same time.
pub const QPAIR_MEMORY_BYTES: u64 = 8 << 10;
/// The memory, in bytes, that a core reserves for connections of hosts without permission: connections before Connect, and
/// discovery connections.
pub const OPEN_MEMORY_BYTES: u64 = 6 << 20;

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
    /// Checks the whole document: each object by itself, names, references, and sums against limits. Returns an empty list
    /// if the document has no mistake.
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

    /// Returns likely oversights in a document without mistakes.
    pub fn oversights(&self) -> Vec<String> {
        let unreachable = self.subsystems.iter().filter(|s| s.hosts.is_empty() && !s.allow_any_host);
        let told = |s: &Subsystem| {
            format!("subsystem `{}`: no host may connect: set `hosts` or `allow_any_host`", s.nqn)
        };
        unreachable.map(told).chain(self.twins()).chain(self.odd_hosts()).collect()
    }

    /// Returns warnings about different objects that hosts mistake for the same object: the namespaces of a LUN in several
    /// subsystems, and several subsystems with the same serial number.
    pub fn twins(&self) -> Vec<String> {
        let (mut luns, mut serials): (BTreeMap<_, Vec<String>>, BTreeMap<_, Vec<String>>) =
            Default::default();
        for s in &self.subsystems {
            for ns in &s.namespaces {
                let place = format!("namespace {} of subsystem `{}`", ns.nsid, s.nqn);
                luns.entry(ns.lun.as_str()).or_default().push(place);
            }
            let serial = s.serial.clone().unwrap_or_else(|| default_serial(&s.nqn));
            // On the wire the serial number is padded with spaces.
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

    /// Returns the entries of host lists that don't begin like an NQN, and that are neither the name nor the NQN of a
    /// `[[host]]`. Such an entry is probably a misspelt name. The entry may also be an NQN, because a list accepts every
    /// text as a host's NQN.
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

    /// Checks that every referenced backend or pool exists, and that only one pool or LUN uses each backend.
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

    /// Returns the memory that this system reserves: the payload memory of its cores, and its memory backends.
    pub fn memory(&self) -> Worked {
        let cores = self.gateway.cores.count() as u64;
        let sum = Worked::default().add("cores", cores, self.gateway.memory_per_core.0);
        let memory = self.backends.iter().filter(|b| b.kind == BackendType::Memory);
        memory.fold(sum, |sum, b| sum.add(&format!("backend {}", b.name), 1, b.size.unwrap_or_default().0))
    }

    /// Returns the NQN of the host in an entry of a list. The entry is an NQN or the name of a `[[host]]`.
    pub fn host_nqn<'a>(&'a self, host: &'a str) -> &'a str {
        self.hosts.iter().find(|h| h.name == host).map_or(host, |h| &h.nqn)
    }
}

/// Checks an entry of a list of hosts. The entry is an NQN or the name of a `[[host]]`. Every such name also passes the
/// check as an NQN.
fn check_host(report: &mut Report, path: &[Key], host: &str) {
    if let Err(error) = check_host_nqn(host) {
        report.add(path, error);
    }
}
