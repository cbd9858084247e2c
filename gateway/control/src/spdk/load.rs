//! `config_load_spdk`: builds all objects in a file that SPDK's `save_config` wrote, or none.
//!
//! SPDK's own client sends a saved configuration call by call and stops at the first refusal. Here, all calls are planned
//! first, each by its own method. If any call is refused, one answer names everything that this gateway lacks. Otherwise one
//! change carries out all calls.

use super::TUNING;
use crate::Change;
use crate::error::{Fault, Refusal};
use crate::jsonrpc::{Dispatch, METHOD_NOT_FOUND, RpcError};
use crate::methods::Methods;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The methods that a saved configuration may call: those methods of SPDK's and of ours that build objects.
const BUILDS: &[&str] = &[
    "backend_create",
    "bdev_aio_create",
    "bdev_malloc_create",
    "bdev_null_create",
    "bdev_nvme_attach_controller",
    "bdev_uring_create",
    "bdev_wait_for_examine",
    "host_create",
    "lun_create",
    "nvmf_create_subsystem",
    "nvmf_create_transport",
    "nvmf_ns_add_host",
    "nvmf_set_config",
    "nvmf_subsystem_add_host",
    "nvmf_subsystem_add_listener",
    "nvmf_subsystem_add_ns",
    "nvmf_subsystem_allow_any_host",
    "pool_create",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Load {
    /// The JSON that `save_config` wrote.
    config: Saved,
}

#[derive(Deserialize)]
struct Saved {
    subsystems: Vec<SavedSubsystem>,
}

#[derive(Deserialize)]
struct SavedSubsystem {
    /// Calls, or lists of calls. SPDK writes null if there are none.
    #[serde(default)]
    config: Option<Vec<Calls>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a call, or a list of calls")]
enum Calls {
    One(Call),
    Batch(Vec<Call>),
}

#[derive(Deserialize)]
struct Call {
    method: String,
    #[serde(default)]
    params: Value,
}

pub(crate) async fn config_load_spdk(methods: &Methods, p: Load) -> crate::methods::Reply {
    let calls = p.config.subsystems.into_iter().flat_map(|subsystem| subsystem.config.unwrap_or_default());
    let calls = calls.flat_map(|calls| match calls {
        Calls::One(call) => vec![call],
        Calls::Batch(batch) => batch,
    });
    let plan = methods.planning().await?;
    let (mut built, mut lacking, mut ignored) = (0, Vec::new(), BTreeSet::new());
    for Call { method, params } in calls {
        if TUNING.contains(&method.as_str()) {
            ignored.insert(method);
            continue;
        }
        let done = match BUILDS.contains(&method.as_str()) {
            // Boxed, because `call` may lead to any method, including this one, and a future can't contain itself.
            true => Box::pin(plan.call(method.clone(), params)).await,
            false => Err(RpcError::new(METHOD_NOT_FOUND, "this gateway has no such method")),
        };
        match done {
            Ok(_) => built += 1,
            Err(error) => lacking.push(format!("\n  {method}: {}", error.message)),
        }
        // Lets the gateway answer other clients between two calls.
        tokio::task::yield_now().await;
    }
    if !lacking.is_empty() {
        let what =
            format!("nothing has changed, because this gateway can't make these calls:{}", lacking.concat());
        return Err(Refusal::new(Fault::Invalid, what).into());
    }
    methods.change(Change::Load(plan.into_planned())).await?;
    Ok(json!({ "calls": built, "ignored": ignored }))
}
