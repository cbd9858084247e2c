//! A report of the features and resources that a gateway needs, and which of them this machine has or lacks.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fmt;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use trefoil_config::{Bytes, Config, Cores};
use trefoil_control::memory::MemoryNeed;
use trefoil_control::obstacles;
use trefoil_sys::cpu::{self, ResumeLatency};
use trefoil_sys::socket::CongestionControl;
use trefoil_sys::uring::Features;

/// Descriptors that a gateway needs besides its connections, for rings, mailboxes, files and the store.
const OTHER_FILES: u64 = 1024;
/// The most unauthenticated connections that can wait in the backlog, if the limit on descriptors allows as many. Each such
/// connection costs the kernel about 4 KiB.
const BACKLOG: u64 = 16_384;
/// The smallest room of the backlog, in connections: a gateway doesn't start without this number of descriptors for them.
const SMALL_BACKLOG: u64 = 256;

/// One finding.
enum Finding {
    Good(String),
    Warning(String),
    Lacking(String),
}

/// All findings, and the CPUs and the backlog that the gateway can have.
pub struct Report {
    findings: Vec<Finding>,
    /// The CPU of each core.
    pub cpus: Vec<usize>,
    /// The number of unauthenticated connections for which the process has descriptors.
    pub backlog: usize,
}

impl Report {
    /// Returns whether a gateway can run.
    pub fn suffices(&self) -> bool {
        !self.findings.iter().any(|f| matches!(f, Finding::Lacking(_)))
    }

    /// Adds findings about the folders, files, devices and addresses that `config` names. `document` is the file that holds
    /// `config`. A start meets the same obstacles when it uses these objects.
    pub fn add_obstacles(&mut self, config: &Config, document: &Path) {
        let found = obstacles::of_start(config, document);
        if found.is_empty() {
            self.findings.push(Finding::Good("folders, files, devices and addresses of the document".into()));
        }
        self.findings.extend(found.into_iter().map(|obstacle| match obstacle.is_fatal {
            true => Finding::Lacking(obstacle.message),
            false => Finding::Warning(obstacle.message),
        }));
    }

    /// Returns the findings with which a gateway runs, but is slower or has less room.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.findings.iter().filter_map(|f| match f {
            Finding::Warning(text) => Some(text.as_str()),
            Finding::Good(_) | Finding::Lacking(_) => None,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, finding) in self.findings.iter().enumerate() {
            let newline = if n == 0 { "" } else { "\n" };
            match finding {
                Finding::Good(text) => write!(f, "{newline}ok       {text}")?,
                Finding::Warning(text) => write!(f, "{newline}warning  {text}")?,
                Finding::Lacking(text) => write!(f, "{newline}LACKING  {text}")?,
            }
        }
        Ok(())
    }
}

/// Checks the machine. Raises this process's own limits as far as the kernel allows.
pub fn look(config: &Config) -> Report {
    let mut findings = vec![uring()];
    let (finding, cpus) = cpus(&config.gateway.cores);
    findings.push(finding);
    findings.push(memory(config));
    let (finding, backlog) = files(crate::cores::sockets(&config.gateway, cpus.len()) + OTHER_FILES);
    findings.push(finding);
    findings.push(locked_memory(config.gateway.memory_per_core));
    findings.push(congestion_control(config.gateway.tcp_congestion_control.as_deref()));
    if let Some(us) = config.gateway.resume_latency_us {
        findings.push(resume_latency(us, &cpus));
    }
    Report { findings, cpus, backlog }
}

/// Checks that the resume latency of the CPUs can be limited to `us` microseconds.
fn resume_latency(us: u32, cpus: &[usize]) -> Finding {
    let known = format!("resume latency: gateway.resume_latency_us = {us}");
    match cpus.iter().find_map(|&cpu| Some((cpu, ResumeLatency::check(cpu).err()?))) {
        Some((cpu, e)) => Finding::Warning(format!("{known} can't be set on CPU {cpu}: {e}")),
        None => Finding::Good(known),
    }
}

fn uring() -> Finding {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match Features::probe() {
        Ok(features) if features.suffices() => Finding::Good(format!("io_uring: {features}")),
        Ok(features) => Finding::Lacking(format!("io_uring is too old (use Linux 6.1 or newer): {features}")),
        Err(e) if matches!(sysctl.trim(), "1" | "2") => Finding::Lacking(format!(
            "io_uring is switched off (kernel.io_uring_disabled = {}): {e}",
            sysctl.trim()
        )),
        Err(e) => Finding::Lacking(format!(
            "io_uring can't be used: {e}; the seccomp profile of a container must allow io_uring_setup, \
             io_uring_enter and io_uring_register"
        )),
    }
}

fn cpus(cores: &Cores) -> (Finding, Vec<usize>) {
    let allowed = match cpu::allowed() {
        Ok(allowed) => allowed,
        Err(e) => return (Finding::Lacking(format!("CPUs: {e}")), Vec::new()),
    };
    let wanted: Vec<usize> = match cores {
        Cores::Count(n) => allowed.iter().copied().take(usize::from(*n)).collect(),
        Cores::List(list) => list.iter().map(|&cpu| usize::from(cpu)).collect(),
    };
    if let Some(cpu) = wanted.iter().find(|cpu| !allowed.contains(cpu)) {
        return (
            Finding::Lacking(format!(
                "CPU {cpu} of gateway.cores is not among the CPUs that trefoild may use: {allowed:?}"
            )),
            wanted,
        );
    }
    if wanted.len() < cores.count() {
        let text = format!(
            "gateway.cores asks for {} cores, and trefoild may use {} CPUs",
            cores.count(),
            allowed.len()
        );
        return (Finding::Lacking(text), wanted);
    }
    (Finding::Good(format!("cores on CPUs {wanted:?}")), wanted)
}

fn memory(config: &Config) -> Finding {
    match MemoryNeed::look(config) {
        None => Finding::Warning("memory: /proc/meminfo can't be read".into()),
        Some(memory) if memory.lacks() => Finding::Lacking(format!("memory: {memory}")),
        Some(memory) => Finding::Good(format!("memory: {memory}")),
    }
}

/// Checks that the process may have `need` descriptors, and further descriptors for unauthenticated connections. Also returns
/// the number of these further descriptors.
fn files(need: u64) -> (Finding, usize) {
    let lacking = |why: String| (Finding::Lacking(format!("open files: {why}")), SMALL_BACKLOG as usize);
    let least = need + SMALL_BACKLOG;
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(e) => return (Finding::Warning(format!("open files: {e}")), SMALL_BACKLOG as usize),
    };
    if least > hard {
        return lacking(format!(
            "the gateway needs {least}, and the hard limit is {hard}: raise RLIMIT_NOFILE"
        ));
    }
    let all = hard.min(need + BACKLOG);
    if all > soft
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, all, hard)
    {
        return lacking(format!("the limit can't be raised to {all}: {e}"));
    }
    let backlog = all - need;
    let good = format!(
        "open files: {need} needed, and {backlog} for unauthenticated connections; the hard limit is {hard}"
    );
    (Finding::Good(good), backlog as usize)
}

/// Checks that connections can use the configured congestion control, and that the algorithm in use suits storage.
fn congestion_control(named: Option<&str>) -> Finding {
    let system = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    let (name, known) = (named.unwrap_or(system.trim()), "gateway.tcp_congestion_control");
    let tried = named.map_or(Ok(()), |name| {
        let algorithm = CongestionControl::new(name).ok_or(ErrorKind::InvalidInput)?;
        algorithm.set(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
    });
    match tried {
        Err(e) => {
            let given = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
            let others = given.map(|given| given.trim().replace(' ', ", ")).unwrap_or_default();
            let why = match e.kind() {
                ErrorKind::NotFound => format!("this kernel has no such algorithm; the kernel has {others}"),
                _ => format!("{e}; the kernel has {others}"),
            };
            Finding::Lacking(format!("TCP congestion control: {known} = \"{name}\": {why}"))
        }
        Ok(()) if name.starts_with("bbr") => Finding::Warning(format!(
            "TCP congestion control: {name} paces transmission, which costs throughput on a LAN: use {known} = \"cubic\""
        )),
        Ok(()) => Finding::Good(format!("TCP congestion control: {name}")),
    }
}

/// Checks RLIMIT_MEMLOCK. Registered buffers count against this limit, except if the process has the privilege to lock memory.
fn locked_memory(need: Bytes) -> Finding {
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((_, hard)) if hard < need.0 && !nix::unistd::geteuid().is_root() => Finding::Warning(format!(
            "locked memory: a core has {need}, and {} are allowed, so file I/O will be slower: raise RLIMIT_MEMLOCK to {need}",
            Bytes(hard).rounded()
        )),
        Ok((_, hard)) => {
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
            Finding::Good("locked memory: enough".into())
        }
        Err(e) => Finding::Warning(format!("locked memory: {e}")),
    }
}
