//! The methods: names, parameters, and what an action's outcome looks like in JSON.
//!
//! What it is: one file a group here, SPDK's in [`crate::spdk`]. Each only translates into an
//! [`Action`](crate::Action).

pub mod array;
pub mod backend;
pub mod config;
pub mod gateway;
pub mod host;
pub mod lun;
pub mod params;
pub mod pool;
pub mod stats;
pub mod subsystem;

use crate::engine::handle::{Handle, Outcome};
use crate::engine::view::View;
use crate::error::{Fault, Refusal};
use crate::jsonrpc::{Dispatch, METHOD_NOT_FOUND, RpcError};
use crate::plan::apply;
use crate::state::State;
use crate::{Action, Change, spdk};
use params::parse;
use serde_json::Value;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;
use trefoil_poll::CoreId;
use trefoil_storage::msg::Survey;

/// Carries methods out by asking an engine.
pub struct Methods {
    handle: Handle,
    started: Instant,
    /// If changes are only planned: what there will be, and the changes.
    planned: Option<RefCell<(View, Vec<Change>)>>,
}

pub(crate) type Reply = Result<Value, RpcError>;

impl Methods {
    /// Methods of the gateway behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle, started: Instant::now(), planned: None }
    }

    /// The same methods, whose changes are only planned: each sees what the earlier ones will have made.
    ///
    /// # Errors
    /// The gateway has stopped.
    pub(crate) async fn planning(&self) -> Result<Self, RpcError> {
        let planned = Some(RefCell::new((self.view().await?, Vec::new())));
        Ok(Self { handle: self.handle.clone(), started: self.started, planned })
    }

    /// The changes that were planned.
    pub(crate) fn into_planned(self) -> Vec<Change> {
        self.planned.map(|planned| planned.into_inner().1).unwrap_or_default()
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Nanoseconds since this gateway began to answer.
    pub(crate) fn uptime_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    pub(crate) async fn view(&self) -> Result<View, RpcError> {
        match &self.planned {
            Some(planned) => Ok(planned.borrow().0.clone()),
            None => Ok(self.handle.view().await?),
        }
    }

    pub(crate) async fn change(&self, change: Change) -> Result<View, RpcError> {
        let Some(planned) = &self.planned else { return Ok(self.handle.change(change).await?) };
        let (view, changes) = &mut *planned.borrow_mut();
        let mut next = State::clone(&view.state);
        apply(&mut next, &view.gateway, &change)?;
        view.state = Arc::new(next);
        changes.push(change);
        Ok(view.clone())
    }

    /// Carries out a change that has no answer but that it is done, and gives the notes on it.
    pub(crate) async fn done(&self, change: Change) -> Reply {
        let view = self.change(change).await?;
        Ok(noted(true.into(), &view))
    }

    pub(crate) async fn survey(&self) -> Result<Vec<(CoreId, Box<Survey>)>, RpcError> {
        match self.handle.act(Action::Survey).await? {
            Outcome::Survey(rows) => Ok(rows),
            other => Err(Refusal::new(Fault::Internal, format!("a survey gave {other:?}")).into()),
        }
    }
}

/// The answer to a change: `result`, and the notes on it if there are any. `true` has no place for them, and gives way.
pub(crate) fn noted(result: Value, view: &View) -> Value {
    let mut result = result;
    if view.notes.is_empty() {
        return result;
    }
    match &mut result {
        Value::Object(fields) => {
            fields.insert("notes".into(), view.notes.clone().into());
            result
        }
        _ => serde_json::json!({ "notes": view.notes }),
    }
}

macro_rules! methods {
    (ours: $($name:literal => $function:path,)* spdks: $($their_name:literal => $their_function:path,)*) => {
        /// The name of every method that does something.
        pub const NAMES: &[&str] = &[$($name,)* $($their_name,)*];

        async fn route(methods: &Methods, name: &str, params: Value) -> Reply {
            match name {
                $($name => $function(methods, parse(params)?).await,)*
                $($their_name => $their_function(methods, spdk::parse(params)?).await,)*
                _ if spdk::TUNING.contains(&name) => {
                    tracing::info!(method = name, "a method that tunes SPDK's own insides is ignored");
                    Ok(true.into())
                }
                _ => {
                    let text = format!("there is no method `{name}`; rpc_get_methods lists those that there are");
                    Err(RpcError::new(METHOD_NOT_FOUND, text))
                }
            }
        }
    };
}

methods! {
    ours:
    "backend_attach" => array::attach,
    "backend_create" => backend::create,
    "backend_delete" => backend::delete,
    "backend_discover" => array::discover,
    "backend_list" => backend::list,
    "pool_create" => pool::create,
    "pool_delete" => pool::delete,
    "pool_list" => pool::list,
    "pool_show" => pool::show,
    "lun_create" => lun::create,
    "lun_delete" => lun::delete,
    "lun_grow" => lun::grow,
    "lun_import" => lun::import,
    "lun_list" => lun::list,
    "lun_release" => lun::release,
    "subsystem_add_listener" => subsystem::add_listener,
    "subsystem_add_namespace" => subsystem::add_namespace,
    "subsystem_allow_any_host" => subsystem::allow_any_host,
    "subsystem_create" => subsystem::create,
    "subsystem_delete" => subsystem::delete,
    "subsystem_list" => subsystem::list,
    "subsystem_remove_listener" => subsystem::remove_listener,
    "subsystem_remove_namespace" => subsystem::remove_namespace,
    "host_add" => host::add,
    "host_create" => host::create,
    "host_delete" => host::delete,
    "host_list" => host::list,
    "host_remove" => host::remove,
    "core_list" => stats::core_list,
    "stats_get" => stats::get,
    "config_apply" => config::apply,
    "config_backup" => config::backup,
    "config_diff" => config::diff,
    "config_get" => config::get,
    "config_load_spdk" => spdk::load::config_load_spdk,
    "config_restore" => config::restore,
    "gateway_info" => gateway::info,
    "shutdown" => gateway::shutdown,
    spdks:
    "rpc_get_methods" => spdk::app::rpc_get_methods,
    "spdk_get_version" => spdk::app::spdk_get_version,
    "spdk_kill_instance" => spdk::app::spdk_kill_instance,
    "framework_start_init" => spdk::app::framework_start_init,
    "framework_wait_init" => spdk::app::framework_start_init,
    "framework_get_subsystems" => spdk::config::framework_get_subsystems,
    "framework_get_config" => spdk::config::framework_get_config,
    "framework_get_reactors" => spdk::app::framework_get_reactors,
    "thread_get_stats" => spdk::app::thread_get_stats,
    "bdev_malloc_create" => spdk::bdev::bdev_malloc_create,
    "bdev_malloc_delete" => spdk::bdev::bdev_malloc_delete,
    "bdev_null_create" => spdk::bdev::bdev_null_create,
    "bdev_null_delete" => spdk::bdev::bdev_null_delete,
    "bdev_aio_create" => spdk::bdev::bdev_aio_create,
    "bdev_aio_delete" => spdk::bdev::bdev_file_delete,
    "bdev_uring_create" => spdk::bdev::bdev_uring_create,
    "bdev_uring_delete" => spdk::bdev::bdev_file_delete,
    "bdev_get_bdevs" => spdk::bdev::bdev_get_bdevs,
    "bdev_get_iostat" => spdk::iostat::bdev_get_iostat,
    "bdev_wait_for_examine" => spdk::bdev::bdev_wait_for_examine,
    "bdev_nvme_attach_controller" => spdk::bdev_nvme::bdev_nvme_attach_controller,
    "bdev_nvme_detach_controller" => spdk::bdev_nvme::bdev_nvme_detach_controller,
    "bdev_nvme_get_controllers" => spdk::bdev_nvme::bdev_nvme_get_controllers,
    "nvmf_set_config" => spdk::nvmf::nvmf_set_config,
    "nvmf_create_transport" => spdk::nvmf::nvmf_create_transport,
    "nvmf_get_transports" => spdk::nvmf::nvmf_get_transports,
    "nvmf_create_subsystem" => spdk::nvmf::nvmf_create_subsystem,
    "nvmf_delete_subsystem" => spdk::nvmf::nvmf_delete_subsystem,
    "nvmf_get_subsystems" => spdk::nvmf::nvmf_get_subsystems,
    "nvmf_subsystem_add_ns" => spdk::nvmf::nvmf_subsystem_add_ns,
    "nvmf_subsystem_remove_ns" => spdk::nvmf::nvmf_subsystem_remove_ns,
    "nvmf_subsystem_add_listener" => spdk::nvmf::nvmf_subsystem_add_listener,
    "nvmf_subsystem_remove_listener" => spdk::nvmf::nvmf_subsystem_remove_listener,
    "nvmf_subsystem_add_host" => spdk::nvmf::nvmf_subsystem_add_host,
    "nvmf_subsystem_remove_host" => spdk::nvmf::nvmf_subsystem_remove_host,
    "nvmf_subsystem_allow_any_host" => spdk::nvmf::nvmf_subsystem_allow_any_host,
    "nvmf_ns_add_host" => spdk::nvmf::nvmf_ns_add_host,
    "nvmf_ns_remove_host" => spdk::nvmf::nvmf_ns_remove_host,
    "nvmf_subsystem_get_listeners" => spdk::nvmf_stats::nvmf_subsystem_get_listeners,
    "nvmf_subsystem_get_controllers" => spdk::nvmf_stats::nvmf_subsystem_get_controllers,
    "nvmf_subsystem_get_qpairs" => spdk::nvmf_stats::nvmf_subsystem_get_qpairs,
    "nvmf_get_stats" => spdk::nvmf_stats::nvmf_get_stats,
}

impl Dispatch for Methods {
    async fn call(&self, method: String, params: Value) -> Reply {
        let result = route(self, &method, params).await;
        if let Err(error) = &result {
            tracing::debug!(method, %error, "a method failed");
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::INVALID_PARAMS;
    use serde_json::json;

    #[test]
    fn every_method_refuses_an_unknown_parameter_by_name() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        // Nobody answers: parameters are judged before the engine is asked.
        let methods = Methods::new(Handle::dangling());
        for name in NAMES {
            let call = methods.call((*name).into(), json!({ "no_such_thing": 1 }));
            let error = runtime.block_on(call).expect_err(name);
            assert_eq!(error.code, INVALID_PARAMS, "{name}: {error}");
            assert!(error.message.contains("no_such_thing"), "{name}: {error}");
        }
        let call = methods.call("backend_explode".into(), Value::Null);
        assert_eq!(runtime.block_on(call).expect_err("unknown").code, METHOD_NOT_FOUND);
    }

    #[test]
    fn names_are_unique() {
        let mut names = [NAMES, spdk::TUNING].concat();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len() + spdk::TUNING.len());
    }
}
