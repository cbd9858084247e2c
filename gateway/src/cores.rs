//! Places the gateway on its cores: maps memory, makes mailboxes and starts threads.

use anyhow::{Context, anyhow};
use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::mpsc;
use trefoil_config::{Gateway, MAX_BACKENDS};
use trefoil_control::{CoreMsg, Ends, socket_options};
use trefoil_poll::{
    Arena, ArenaId, CoreConfig, CoreHandle, Idle, MeshBounds, UringConfig, UringIo, mesh, spawn,
};
use trefoil_storage::core::{CoreLimits, StorageCore};
use trefoil_storage::frontend::{Capacity, OPEN_BYTES, TargetLimits};
use trefoil_sys::cpu::{self, ResumeLatency};
use trefoil_sys::region::Region;

/// The control plane's own payload memory: two pieces of 2 MiB for pool layouts, and another 4 MiB.
const CONTROL_MEMORY_BYTES: usize = 8 << 20;
/// Host sockets that a core's connection to itself takes: only the end at which the core is the controller counts as a host
/// socket.
const OWN_SOCKETS: u32 = 1;
/// Sockets of a core besides the sockets of hosts: an admin queue and an I/O queue for each backend on an array, and both ends
/// of the core's connection to itself.
const OTHER_SOCKETS: usize = 2 * MAX_BACKENDS + 2;
// `--check` counts `OPEN_MEMORY_BYTES` for unauthenticated connections, so `OPEN_BYTES` must not be larger.
const _: () = assert!(OPEN_BYTES as u64 <= trefoil_config::OPEN_MEMORY_BYTES);

type Core = StorageCore<UringIo<CoreMsg>>;

/// Running cores.
pub struct Running {
    handles: Vec<CoreHandle<Core>>,
    /// These values limit the CPUs' resume latency as long as they exist.
    _resume_latencies: Vec<ResumeLatency>,
    ended: mpsc::UnboundedReceiver<u16>,
}

/// Reports the end of a core's thread, also after a panic. The thread owns this value, and the drop sends the report.
struct Passing {
    core: u16,
    tell: mpsc::UnboundedSender<u16>,
}

impl Drop for Passing {
    fn drop(&mut self) {
        // During an orderly stop, nobody receives the report.
        let _ = self.tell.send(self.core);
    }
}

thread_local! {
    static PASSING: RefCell<Option<Passing>> = const { RefCell::new(None) };
}

/// Starts a core on each of `cpus`.
///
/// # Errors
/// The system gave no memory, thread or ring.
pub fn start(gateway: &Gateway, cpus: &[usize]) -> anyhow::Result<(Running, Ends)> {
    let count = u16::try_from(cpus.len())?;
    let limits = limits(gateway, count);
    let max_sockets = limits.max_sockets;
    let capacity = Arc::new(Capacity::new(gateway.max_hosts, gateway.max_qpairs));
    // The worst case of one turn. Each connection of a core can cause five messages: the order to close, the report that the
    // queue has left, the cancel of its requests, a query and an answer. The query is sent when the host has reconnected, and
    // asks whether the host may continue. In addition, all requests of a core can go to one other core, and all requests of
    // that core can come back. The sum is about 10 MiB for each pair of cores, and the memory is touched only when it is used.
    // (If an array grants fewer queues than before, the requests of a third core can take the same path. In this case, the
    // overflow may have to grow.)
    let overflow = MeshBounds::default().overflow + 5 * max_sockets as usize + 2 * limits.target.requests();
    let mesh = mesh::<CoreMsg>(count, MeshBounds { overflow, ..MeshBounds::default() })
        .context("the cores' mailboxes can't be made")?;
    let idle = match gateway.idle {
        trefoil_config::Idle::Spin => Idle::Spin,
        trefoil_config::Idle::Adaptive => Idle::Adaptive { spin_us: gateway.spin_us },
    };
    let mut handles = Vec::new();
    let (tell, ended) = mpsc::unbounded_channel();
    for ((core, &cpu), ports) in (0..count).zip(cpus).zip(mesh.ports) {
        let region = local_region(cpu, gateway.memory_per_core.0 as usize).with_context(|| {
            format!("core {core}: {} of payload memory can't be had", gateway.memory_per_core)
        })?;
        let (memory, huge) = (region.base(), region.is_huge());
        tracing::info!(core, cpu, numa_node = cpu::numa_node(cpu), ?memory, huge, "a core starts");
        let arena = Arena::new(ArenaId(core), region);
        let uring = UringConfig {
            max_sockets,
            max_files: MAX_BACKENDS as u32,
            // All requests can be at files at the same time, each with one operation at a time.
            max_file_ops: (limits.target.requests() + limits.foreign_requests) as u32,
            seed: uuid::Uuid::new_v4().as_u64_pair().0,
            socket_options: socket_options(gateway),
            ..UringConfig::default()
        };
        let config = CoreConfig { cpu: Some(cpu), idle, uring };
        let (passing, capacity) = (Passing { core, tell: tell.clone() }, capacity.clone());
        let handle = spawn(config, ports, move |io: &mut UringIo<CoreMsg>| {
            PASSING.set(Some(passing));
            if let Err(error) = io.register_arenas(&[&arena]) {
                tracing::warn!(core, %error, "payload memory can't be registered; file I/O will be slower");
            }
            StorageCore::new(io, arena, limits, capacity)
        })
        .with_context(|| format!("core {core} can't start on CPU {cpu}"))?;
        handles.push(handle);
    }
    let control =
        Region::anonymous(CONTROL_MEMORY_BYTES).context("the control plane's memory can't be had")?;
    let ends = Ends {
        to_cores: mesh.to_cores,
        from_cores: mesh.from_cores,
        metrics: handles.iter().map(|handle| handle.metrics().clone()).collect(),
        arena: Arena::new(ArenaId(count), control),
    };
    Ok((Running { handles, _resume_latencies: resume_latencies(gateway, cpus), ended }, ends))
}

/// Limits the resume latency of the CPUs. Logs a warning for each CPU whose latency can't be limited.
fn resume_latencies(gateway: &Gateway, cpus: &[usize]) -> Vec<ResumeLatency> {
    let Some(us) = gateway.resume_latency_us else { return Vec::new() };
    let limit = |&cpu: &usize| {
        let limited = ResumeLatency::limit(cpu, us);
        limited
            .inspect_err(|error| tracing::warn!(cpu, us, %error, "the CPU's resume latency can't be limited"))
            .ok()
    };
    cpus.iter().filter_map(limit).collect()
}

/// Returns the number of sockets for which the drivers of all `cores` cores together have room.
pub fn sockets(gateway: &Gateway, cores: usize) -> u64 {
    let cores = cores.clamp(1, usize::from(u16::MAX)) as u16;
    u64::from(limits(gateway, cores).max_sockets) * u64::from(cores)
}

fn limits(gateway: &Gateway, cores: u16) -> CoreLimits {
    let (hosts, qpairs) = (gateway.max_hosts as usize, gateway.max_qpairs as usize);
    let target = TargetLimits::of_core(usize::from(cores), hosts, qpairs, OTHER_SOCKETS);
    let host_sockets = target.host_conns(OTHER_SOCKETS) as u32 + OWN_SOCKETS;
    CoreLimits { max_sockets: target.max_conns as u32, host_sockets, target, foreign_requests: 4096 }
}

/// Maps memory on a thread that runs on `cpu`. So hugepages come from the NUMA node of `cpu`, or are not used.
fn local_region(cpu: usize, len_bytes: usize) -> anyhow::Result<Region> {
    let mapping = std::thread::spawn(move || -> io::Result<Region> {
        cpu::pin(cpu)?;
        match cpu::numa_node(cpu) {
            Some(node) => Region::near(len_bytes, node),
            None => Region::anonymous(len_bytes),
        }
    });
    Ok(mapping.join().map_err(|_| anyhow!("the thread that maps a core's memory died"))??)
}

impl Running {
    /// Waits until a core ends by itself. Returns the core.
    pub async fn ended(&mut self) -> u16 {
        match self.ended.recv().await {
            Some(core) => core,
            // No core can end any more.
            None => std::future::pending().await,
        }
    }

    /// Returns the reason why a core ended. The other cores run until the process ends.
    pub fn cause(mut self, core: u16) -> anyhow::Error {
        let handle = self.handles.swap_remove(usize::from(core));
        match catch_unwind(AssertUnwindSafe(|| handle.join())) {
            Ok(Ok(_)) => anyhow!("core {core} ended without an order to stop"),
            Ok(Err(error)) => anyhow!(error).context(format!("core {core} can't go on")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text =
                    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the core panicked");
                anyhow!("core {core} has died: {text}")
            }
        }
    }

    /// Stops all cores and waits for them.
    ///
    /// # Errors
    /// The error that ended a core.
    pub fn stop(self) -> anyhow::Result<()> {
        self.handles.iter().for_each(CoreHandle::stop);
        for (core, handle) in self.handles.into_iter().enumerate() {
            drop(handle.join().with_context(|| format!("core {core} failed"))?);
        }
        Ok(())
    }
}
