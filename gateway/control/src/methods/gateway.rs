//! The methods `gateway_info` and `shutdown`.

use super::params::None;
use super::{Methods, Reply};
use crate::store::SCHEMA;
use crate::{Action, Phase};
use serde_json::json;

pub(super) async fn info(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    let gateway = &view.gateway;
    Ok(json!({
        "name": gateway.name,
        "version": env!("CARGO_PKG_VERSION"),
        "schema": SCHEMA,
        "state": match view.phase {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
        },
        "pid": std::process::id(),
        "uptime_s": methods.started.elapsed().as_secs(),
        "epoch": view.epoch,
        "cores": view.cores.len(),
        "cpus": view.cpus,
        "idle": gateway.idle,
        "spin_us": gateway.spin_us,
        "discovery_listeners": view.state.discovery.listeners,
        "memory": view.state.to_config(gateway).memory().to_string(),
        "max_hosts": gateway.max_hosts,
        "max_qpairs": gateway.max_qpairs,
        "state_dir": gateway.state_dir,
        "down": view.down,
    }))
}

pub(super) async fn shutdown(methods: &Methods, _: None) -> Reply {
    methods.handle.act(Action::Shutdown).await?;
    Ok(true.into())
}
