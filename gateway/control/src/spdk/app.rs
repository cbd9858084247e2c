//! The methods `rpc_*`, `spdk_*`, `framework_*` and `thread_*`, which are about the process.

use crate::Action;
use crate::jsonrpc::RpcError;
use crate::methods::Reply;
use crate::methods::params::None;
use crate::methods::{self, Methods};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GetMethods {
    /// Ignored: clients see the gateway only in one state, and in this state every method may be called.
    #[serde(default, rename = "current")]
    _current: IgnoredAny,
    /// Ignored, because there are no aliases.
    #[serde(default, rename = "include_aliases")]
    _include_aliases: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kill {
    sig_name: String,
}

pub(crate) async fn rpc_get_methods(_: &Methods, _: GetMethods) -> Reply {
    // A gateway that answers is already initialised, so `framework_start_init` is not among the current methods. If it were, a
    // client would call it again and again.
    let names = methods::NAMES
        .iter()
        .chain(super::NAMES)
        .chain(super::TUNING)
        .filter(|name| **name != "framework_start_init");
    Ok(names.map(|name| Value::from(*name)).collect())
}

pub(crate) async fn spdk_get_version(_: &Methods, _: None) -> Reply {
    let number = |text: &str| text.parse::<u32>().unwrap_or_default();
    Ok(json!({
        "version": concat!("Trefoil v", env!("CARGO_PKG_VERSION")),
        "fields": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": number(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": "",
        },
    }))
}

pub(crate) async fn spdk_kill_instance(methods: &Methods, p: Kill) -> Reply {
    use nix::sys::signal::{Signal, kill};
    let name = p.sig_name.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    match name {
        "HUP" | "INT" | "TERM" | "1" | "2" | "15" => drop(methods.handle().act(Action::Shutdown).await?),
        "KILL" | "9" => kill(nix::unistd::getpid(), Signal::SIGKILL)
            .map_err(|e| RpcError::new(crate::jsonrpc::INTERNAL_ERROR, e.to_string()))?,
        _ => {
            return Err(RpcError::params(format!(
                "sig_name: `{}` is not supported: use SIGTERM",
                p.sig_name
            )));
        }
    }
    Ok(true.into())
}

/// Does nothing: the gateway is initialised before it answers its first call.
pub(crate) async fn framework_start_init(_: &Methods, _: None) -> Reply {
    Ok(true.into())
}

pub(crate) async fn framework_get_reactors(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    let reactors: Vec<Value> = view
        .cores
        .iter()
        .zip(&view.cpus)
        .enumerate()
        .map(|(core, (sample, cpu))| {
            json!({
                "lcore": cpu,
                "busy": sample.busy_ns,
                "in_interrupt": view.gateway.idle == trefoil_config::Idle::Adaptive,
                "lw_threads": [{ "name": format!("core-{core}"), "id": core + 1, "cpumask": format!("{:x}", 1u128 << (cpu % 128)) }],
            })
        })
        .collect();
    // Busy time is in nanoseconds.
    Ok(json!({ "tick_rate": 1_000_000_000u64, "pid": std::process::id(), "reactors": reactors }))
}

pub(crate) async fn thread_get_stats(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    let threads: Vec<Value> = view
        .cores
        .iter()
        .zip(&view.cpus)
        .enumerate()
        .map(|(core, (sample, cpu))| {
            json!({
                "name": format!("core-{core}"),
                "id": core + 1,
                "cpumask": format!("{:x}", 1u128 << (cpu % 128)),
                "busy": sample.busy_ns,
            })
        })
        .collect();
    Ok(json!({ "tick_rate": 1_000_000_000u64, "threads": threads }))
}
