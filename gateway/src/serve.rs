//! The gateway's life: opens the store, starts the cores, brings up the engine, serves clients and hosts, and stops in order.

use crate::cores::{self, Running};
use crate::preflight::Report;
use crate::terminal;
use anyhow::Context;
use serde_json::json;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use trefoil_config::{Config, Log};
use trefoil_control::jsonrpc::server::{RpcSocket, serve_tcp};
use trefoil_control::notify::Notifier;
use trefoil_control::store::Store;
use trefoil_control::{Action, Cores, Ends, Engine, Handle, Methods, Outcome, Seed, keep_warm, metrics};

/// The time limit for each of the two steps of a stop: first the hosts' connections end, then the backends are closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until SIGTERM, SIGINT, SIGHUP or a `shutdown` call. `document` is the file that holds `config`.
///
/// # Errors
/// An error that prevents the start, or that ends the gateway.
pub fn serve(config: Config, document: &Path, report: &Report) -> anyhow::Result<()> {
    let document = std::path::absolute(document)?;
    let (store, found) = Store::open(&config.gateway.state_dir)?;
    // The socket is opened before the cores start, because a socket in use shows that another gateway runs.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let socket = runtime.block_on(async { RpcSocket::bind(&config.gateway.rpc_socket) })?;
    let (running, ends) = cores::start(&config.gateway, &report.cpus)?;
    let (cpus, backlog) = (report.cpus.clone(), report.backlog);
    let seed = move |cores| Seed { cores, config, document, store, found, cpus, backlog };
    let ended = until_end(&runtime, running, control(ends, seed, socket));
    // Does not wait for threads that still query an array.
    runtime.shutdown_background();
    ended
}

/// The way in which the control plane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// No request is under way any more.
    Settled,
    /// Not all backends were closed in time, so requests may still be under way.
    Unsettled,
}

/// Runs the control plane to its end, and then stops the cores. Returns early if a core dies.
///
/// # Errors
/// The error of the control plane or of a core.
fn until_end(
    runtime: &Runtime,
    mut running: Running,
    control: impl Future<Output = anyhow::Result<End>>,
) -> anyhow::Result<()> {
    let tasks = LocalSet::new();
    let served = tasks.block_on(runtime, async {
        tokio::select! {
            served = control => Ok(served),
            core = running.ended() => Err(core),
        }
    });
    match served {
        Ok(Ok(End::Settled)) => running.stop(),
        Ok(Err(error)) => {
            running.stop()?;
            Err(error)
        }
        // In this case and the next, no orderly stop is possible. The cores run until the process ends, and can write to memory
        // that the tasks own. So the tasks are never dropped. As after a kill, the next start finds all acknowledged changes.
        Ok(Ok(End::Unsettled)) => {
            std::mem::forget(tasks);
            Ok(())
        }
        Err(core) => {
            std::mem::forget(tasks);
            Err(running.cause(core))
        }
    }
}

async fn control(ends: Ends, seed: impl FnOnce(Rc<Cores>) -> Seed, socket: RpcSocket) -> anyhow::Result<End> {
    let notifier = Notifier::from_env();
    let cores = Cores::new(ends).context("mailboxes")?;
    let listening = cores.clone();
    spawn_local(async move { listening.listen().await });
    let seed = seed(cores.clone());
    let gateway = seed.config.gateway.clone();
    let engine = Engine::start(seed).await.map_err(|e| anyhow::anyhow!(e))?;
    let (mut handle, asks) = engine.handle();
    spawn_local(engine.run(asks));
    keep_warm(&cores, &gateway).await;
    let methods = Rc::new(Methods::new(handle.clone()));
    if let Some(at) = gateway.metrics_listen {
        let handle = handle.clone();
        spawn_local(async move {
            if let Err(error) = metrics::serve(at, handle).await {
                tracing::error!(%at, %error, "the metrics listener failed: the gateway serves no metrics");
            }
        });
    }
    if let Some(at) = gateway.rpc_listen {
        let methods = methods.clone();
        spawn_local(async move {
            if let Err(error) = serve_tcp(at, methods).await {
                tracing::error!(%error, "the JSON-RPC listener failed: the gateway serves no JSON-RPC over TCP");
            }
        });
    }
    let serving = spawn_local(socket.serve(methods));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = hangups()?;
    say_ready(&handle, &gateway).await?;
    notifier.tell("READY=1");
    if let Some(every) = notifier.watchdog() {
        spawn_local(watch(Notifier::from_env(), every, handle.clone()));
    }
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
        () = hangup_of(&mut hangup) => tracing::info!("SIGHUP"),
        () = handle.stopping() => {}
    }
    notifier.tell("STOPPING=1");
    let end = stop(&handle).await;
    serving.abort();
    // When this task ends, it removes the socket.
    let _ = serving.await;
    Ok(end)
}

/// Returns the stream of SIGHUPs. Returns `None` if the process ignores the signal, as under nohup(1), where a process must
/// outlive its terminal.
fn hangups() -> std::io::Result<Option<Signal>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let kind = SignalKind::hangup();
    match ignored & (1 << (kind.as_raw_value() - 1)) {
        0 => signal(kind).map(Some),
        _ => Ok(None),
    }
}

async fn hangup_of(hangups: &mut Option<Signal>) {
    match hangups {
        Some(hangups) => drop(hangups.recv().await),
        None => std::future::pending().await,
    }
}

/// Prints the line that scripts wait for, in the log's form.
async fn say_ready(handle: &Handle, gateway: &trefoil_config::Gateway) -> anyhow::Result<()> {
    let view = handle.view().await.map_err(|e| anyhow::anyhow!(e))?;
    let mut portals: Vec<String> = view.listeners.values().map(ToString::to_string).collect();
    portals.sort_unstable();
    let (rpc, portals) = (gateway.rpc_socket.display(), portals.join(","));
    let line = match gateway.log {
        Log::Text => format!("trefoild ready: rpc={rpc} portals={portals}"),
        Log::Json => {
            let mut timestamp = String::new();
            SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
            let fields = json!({ "message": "trefoild ready", "rpc": rpc.to_string(), "portals": portals });
            json!({ "timestamp": timestamp, "level": "INFO", "fields": fields, "target": "trefoild" })
                .to_string()
        }
    };
    Ok(terminal::print(&format!("{line}\n"))?)
}

/// Reports to the watchdog that the gateway is alive, as long as every core answers.
async fn watch(notifier: Notifier, every: Duration, handle: Handle) {
    loop {
        tokio::time::sleep(every).await;
        match handle.act(Action::Survey).await {
            Ok(_) => notifier.tell("WATCHDOG=1"),
            Err(error) => {
                tracing::error!(%error, "the gateway does not notify the watchdog, because a core doesn't answer")
            }
        }
    }
}

/// Disconnects the hosts, then closes the backends.
async fn stop(handle: &Handle) -> End {
    // A client may have called `shutdown` already. In that case, this action is refused.
    let _ = handle.act(Action::Shutdown).await;
    let drained = async {
        loop {
            match handle.act(Action::Survey).await {
                Ok(Outcome::Survey(rows)) if rows.iter().any(|(_, survey)| survey.total > 0) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                _ => return,
            }
        }
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::warn!("some hosts' connections did not drain before the deadline");
    }
    match tokio::time::timeout(DRAIN_TIMEOUT, handle.act(Action::Halt)).await {
        Ok(Ok(_)) => {
            tracing::info!("stopped");
            return End::Settled;
        }
        Ok(Err(error)) => tracing::error!(%error, "not all backends could be closed"),
        Err(_) => tracing::error!("not all backends closed before the deadline"),
    }
    End::Unsettled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight;
    use trefoil_poll::CoreId;
    use trefoil_storage::Msg;

    /// Sends a core a message that only the control plane may receive. With debug assertions, the core then panics.
    #[cfg(debug_assertions)]
    #[test]
    fn a_core_that_dies_ends_the_gateway_with_its_cause() {
        let text = "[gateway]\ncores = 1\nmemory_per_core = \"40MiB\"\nmax_hosts = 4\nmax_qpairs = 16\n";
        let config = Config::parse("test", text).expect("sound");
        let report = preflight::look(&config);
        let (running, ends) = cores::start(&config.gateway, &report.cpus).expect("a core");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let control = async {
            let cores = Cores::new(ends)?;
            cores.send(CoreId(0), Msg::TopologyDone { epoch: 1, old: None }).await?;
            std::future::pending().await
        };
        let error = until_end(&runtime, running, control).expect_err("the core's death");
        assert!(
            error.to_string().starts_with("core 0 has died: a core got a message for control"),
            "{error:#}"
        );
    }
}
