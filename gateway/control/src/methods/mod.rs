//! The methods: their names, their parameters, and their results in JSON.
//!
//! Each group of methods has a file here. A method only translates its parameters into an [`Action`](crate::Action). This
//! module and [`crate::spdk`] list their methods with [`routes`]. [`crate::rpc`] finds the method of a call in these two lists.

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
use crate::jsonrpc::RpcError;
use crate::plan::apply;
use crate::state::State;
use crate::{Action, Change};
use params::parse;
use serde_json::Value;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;
use trefoil_poll::CoreId;
use trefoil_storage::msg::Survey;

/// Carries out methods by asking an engine.
pub struct Methods {
    handle: Handle,
    started: Instant,
    /// `Some` if changes are only planned: the view after the changes planned so far, and these changes. `None` if changes are
    /// carried out.
    planned: Option<RefCell<(View, Vec<Change>)>>,
}

pub(crate) type Reply = Result<Value, RpcError>;

impl Methods {
    /// Makes the methods of the gateway behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle, started: Instant::now(), planned: None }
    }

    /// Returns a copy of these methods that only plans changes. Each call sees the results of the changes planned before.
    ///
    /// # Errors
    /// The gateway has stopped.
    pub(crate) async fn planning(&self) -> Result<Self, RpcError> {
        let planned = Some(RefCell::new((self.view().await?, Vec::new())));
        Ok(Self { handle: self.handle.clone(), started: self.started, planned })
    }

    /// Returns the planned changes.
    pub(crate) fn into_planned(self) -> Vec<Change> {
        self.planned.map(|planned| planned.into_inner().1).unwrap_or_default()
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Returns the nanoseconds since this gateway began to answer.
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

    /// Carries out a change that has no result of its own. Returns the notes on the change, if there are any.
    pub(crate) async fn done(&self, change: Change) -> Reply {
        let view = self.change(change).await?;
        Ok(noted(true.into(), &view))
    }

    pub(crate) async fn survey(&self) -> Result<Vec<(CoreId, Box<Survey>)>, RpcError> {
        match self.handle.act(Action::Survey).await? {
            Outcome::Survey(rows) => Ok(rows),
            other => {
                Err(Refusal::new(Fault::Internal, format!("the engine answered a survey with {other:?}"))
                    .into())
            }
        }
    }
}

/// Returns `result` with the notes on the change. If `result` can't hold notes, for example `true`, returns an object with the
/// notes instead.
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

/// Lists methods: each name with its function and the function that reads its parameters. Defines `NAMES` and `route`. `route`
/// answers a call of one of these methods, and returns `None` for any other name.
macro_rules! routes {
    ($($parse:path { $($name:literal => $function:path,)* })*) => {
        /// The names of the methods that this module answers.
        pub(crate) const NAMES: &[&str] = &[$($($name,)*)*];

        /// Answers a call of a method in [`NAMES`]. Returns `None` for any other name.
        pub(crate) async fn route(
            methods: &$crate::methods::Methods,
            name: &str,
            params: serde_json::Value,
        ) -> Option<$crate::methods::Reply> {
            Some(match name {
                $($($name => match $parse(params) {
                    Ok(params) => $function(methods, params).await,
                    Err(error) => Err(error),
                },)*)*
                _ => return None,
            })
        }
    };
}
pub(crate) use routes;

routes! {
    parse {
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
        "config_restore" => config::restore,
        "gateway_info" => gateway::info,
        "shutdown" => gateway::shutdown,
    }
}
