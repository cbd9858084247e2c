//! Placing the gateway on its cores: memory, mailboxes, threads.

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
use trefoil_storage::target::{Capacity, OPEN_BYTES, TargetLimits};
use trefoil_sys::cpu::{self, ResumeLatency};
use trefoil_sys::region::Region;

/// Control's own payload memory: two pieces of 2 MiB for pool layouts, and as much again.
const CONTROL_MEMORY_BYTES: usize = 8 << 20;
/// Sockets of a core's connection to itself that count as hosts': the end at which the core is the controller.
const OWN_SOCKETS: u32 = 1;
/// Sockets of a core besides hosts': one admin and one I/O queue for each array's namespace, and both ends of its own.
const OTHER_SOCKETS: usize = 2 * MAX_BACKENDS + 2;
// `--check` counts this memory for connections without permission.
const _: () = assert!(OPEN_BYTES as u64 <= trefoil_config::OPEN_MEMORY_BYTES);

type Core = StorageCore<UringIo<CoreMsg>>;

/// Running cores.
pub struct Running {
    handles: Vec<CoreHandle<Core>>,
    /// Hold the CPUs to it as long as the cores run.
    _resume_latencies: Vec<ResumeLatency>,
    ended: mpsc::UnboundedReceiver<u16>,
}

/// Tells that the thread which has it ends, whatever it dies of.
struct Passing {
    core: u16,
    tell: mpsc::UnboundedSender<u16>,
}

impl Drop for Passing {
    fn drop(&mut self) {
        // Nobody listens any more once the gateway stops in order.
        let _ = self.tell.send(self.core);
    }
}

thread_local! {
    static PASSING: RefCell<Option<Passing>> = const { RefCell::new(None) };
}

/// Starts a core on each of `cpus`.
///
/// # Errors
/// No memory, no thread, no ring.
pub fn start(gateway: &Gateway, cpus: &[usize]) -> anyhow::Result<(Running, Ends)> {
    let count = u16::try_from(cpus.len())?;
    let limits = limits(gateway, count);
    let max_sockets = limits.max_sockets;
    let capacity = Arc::new(Capacity::new(gateway.max_hosts, gateway.max_qpairs));
    // What all connections of a core may cause in one turn: a queue is told to close, says that it left, has its requests
    // cancelled; the host comes back, and it is asked and answered whether it may go on. And requests: all of a core's may go
    // to one other, and all of the other's come home from it. About 10 MiB for each two cores, touched only when used. (A
    // third core's may come that way too, if an array grants fewer queues than before; then it may have to grow.)
    let overflow = MeshBounds::default().overflow + 5 * max_sockets as usize + 2 * limits.target.requests();
    let mesh =
        mesh::<CoreMsg>(count, MeshBounds { overflow, ..MeshBounds::default() }).context("mailboxes")?;
    let idle = match gateway.idle {
        trefoil_config::Idle::Spin => Idle::Spin,
        trefoil_config::Idle::Adaptive => Idle::Adaptive { spin_us: gateway.spin_us },
    };
    let mut handles = Vec::new();
    let (tell, ended) = mpsc::unbounded_channel();
    for ((core, &cpu), ports) in (0..count).zip(cpus).zip(mesh.ports) {
        let region = local_region(cpu, gateway.memory_per_core.0 as usize)
            .with_context(|| format!("core {core}: {} of memory", gateway.memory_per_core))?;
        let (memory, huge) = (region.base(), region.is_huge());
        tracing::info!(core, cpu, numa_node = cpu::numa_node(cpu), ?memory, huge, "a core starts");
        let arena = Arena::new(ArenaId(core), region);
        let uring = UringConfig {
            max_sockets,
            max_files: MAX_BACKENDS as u32,
            // Every request may be at a file, one operation at a time.
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
        .with_context(|| format!("core {core} on CPU {cpu}"))?;
        handles.push(handle);
    }
    let control = Region::anonymous(CONTROL_MEMORY_BYTES).context("control's memory")?;
    let ends = Ends {
        to_cores: mesh.to_cores,
        from_cores: mesh.from_cores,
        metrics: handles.iter().map(|handle| handle.metrics().clone()).collect(),
        arena: Arena::new(ArenaId(count), control),
    };
    Ok((Running { handles, _resume_latencies: resume_latencies(gateway, cpus), ended }, ends))
}

/// What the CPUs are held to; one that can't be is told of in the log.
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

/// Sockets that the drivers of so many cores have room for in all.
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

/// Maps memory on a thread of that CPU, so that hugepages come from its NUMA node, or are not used.
fn local_region(cpu: usize, len_bytes: usize) -> anyhow::Result<Region> {
    let mapping = std::thread::spawn(move || -> io::Result<Region> {
        cpu::pin(cpu)?;
        match cpu::numa_node(cpu) {
            Some(node) => Region::near(len_bytes, node),
            None => Region::anonymous(len_bytes),
        }
    });
    Ok(mapping.join().map_err(|_| anyhow!("the mapping thread died"))??)
}

impl Running {
    /// Waits until a core ends that nobody stopped; says which.
    pub async fn ended(&mut self) -> u16 {
        match self.ended.recv().await {
            Some(core) => core,
            // There are no cores.
            None => std::future::pending().await,
        }
    }

    /// Why a core ended. The others go on as they are, until the process ends.
    pub fn cause(mut self, core: u16) -> anyhow::Error {
        let handle = self.handles.swap_remove(usize::from(core));
        match catch_unwind(AssertUnwindSafe(|| handle.join())) {
            Ok(Ok(_)) => anyhow!("core {core} ended, and nobody had stopped it"),
            Ok(Err(error)) => anyhow!(error).context(format!("core {core} can't go on")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
                anyhow!("core {core} has died: {text}")
            }
        }
    }

    /// Stops all cores and waits for them.
    ///
    /// # Errors
    /// What a core could not go on with.
    pub fn stop(self) -> anyhow::Result<()> {
        self.handles.iter().for_each(CoreHandle::stop);
        for (core, handle) in self.handles.into_iter().enumerate() {
            drop(handle.join().with_context(|| format!("core {core}"))?);
        }
        Ok(())
    }
}
