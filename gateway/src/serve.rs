//! The gateway's life: open the store, start cores, bring up the engine, answer, stop in order.

use crate::cores;
use crate::preflight::Report;
use anyhow::Context;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};
use trefoil_config::Config;
use trefoil_control::jsonrpc::server::{RpcSocket, serve_tcp};
use trefoil_control::notify::Notifier;
use trefoil_control::store::Store;
use trefoil_control::{Action, Cores, Ends, Engine, Handle, Methods, Outcome, Seed, metrics};

/// For how long hosts' commands may go on when we are asked to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until SIGTERM, SIGINT or a `shutdown` call.
///
/// # Errors
/// What keeps the gateway from starting.
pub fn serve(config: Config, report: &Report) -> anyhow::Result<()> {
    let (store, found) = Store::open(&config.gateway.state_dir)?;
    // Before anything is started: the path tells whether another gateway runs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let socket = runtime.block_on(async { RpcSocket::bind(&config.gateway.rpc_socket) })?;
    let (running, ends) = cores::start(&config.gateway, &report.cpus)?;
    let seed = move |cores| Seed { cores, config, store, found, cpus: report.cpus.clone() };
    let served = LocalSet::new().block_on(&runtime, control(ends, seed, socket));
    let stopped = running.stop();
    served.and(stopped)
}

async fn control(ends: Ends, seed: impl FnOnce(Rc<Cores>) -> Seed, socket: RpcSocket) -> anyhow::Result<()> {
    let notifier = Notifier::from_env();
    let cores = Cores::new(ends).context("mailboxes")?;
    let listening = cores.clone();
    spawn_local(async move { listening.listen().await });
    let seed = seed(cores);
    let gateway = seed.config.gateway.clone();
    let engine = Engine::start(seed).await.map_err(|e| anyhow::anyhow!(e))?;
    let (mut handle, asks) = engine.handle();
    spawn_local(engine.run(asks));
    let methods = Rc::new(Methods::new(handle.clone()));
    if let Some(at) = gateway.metrics_listen {
        let handle = handle.clone();
        spawn_local(async move {
            if let Err(error) = metrics::serve(at, handle).await {
                tracing::error!(%at, %error, "no metrics");
            }
        });
    }
    if let Some(at) = gateway.rpc_listen {
        let methods = methods.clone();
        spawn_local(async move {
            if let Err(error) = serve_tcp(at, methods).await {
                tracing::error!(%error, "no JSON-RPC over TCP");
            }
        });
    }
    let serving = spawn_local(socket.serve(methods));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    say_ready(&handle, &gateway).await?;
    notifier.tell("READY=1");
    if let Some(every) = notifier.watchdog() {
        spawn_local(watch(Notifier::from_env(), every, handle.clone()));
    }
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
        () = handle.stopping() => {}
    }
    notifier.tell("STOPPING=1");
    stop(&handle).await;
    serving.abort();
    // Its end removes the socket.
    let _ = serving.await;
    Ok(())
}

/// The line that scripts wait for.
async fn say_ready(handle: &Handle, gateway: &trefoil_config::Gateway) -> anyhow::Result<()> {
    let view = handle.view().await.map_err(|e| anyhow::anyhow!(e))?;
    let mut portals: Vec<String> =
        view.state.subsystems.values().flat_map(|s| &s.listeners).map(ToString::to_string).collect();
    portals.sort_unstable();
    portals.dedup();
    let mut out = std::io::stdout().lock();
    writeln!(out, "trefoild ready: rpc={} portals={}", gateway.rpc_socket.display(), portals.join(","))?;
    Ok(out.flush()?)
}

/// Tells the watchdog that we live, as long as every core answers.
async fn watch(notifier: Notifier, every: Duration, handle: Handle) {
    loop {
        tokio::time::sleep(every).await;
        match handle.act(Action::Survey).await {
            Ok(_) => notifier.tell("WATCHDOG=1"),
            Err(error) => tracing::error!(%error, "the watchdog is not told, for a core doesn't answer"),
        }
    }
}

/// Lets hosts go, then backends.
async fn stop(handle: &Handle) {
    // It may have been asked for already, by a call.
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
        tracing::warn!("some hosts' connections did not end in time");
    }
    match tokio::time::timeout(DRAIN_TIMEOUT, handle.act(Action::Halt)).await {
        Ok(Ok(_)) => tracing::info!("stopped"),
        Ok(Err(error)) => tracing::error!(%error, "not all backends could be let go"),
        Err(_) => tracing::error!("not all backends could be let go in time"),
    }
}
