//! The `pool_*` methods.

use super::params::{Name, None};
use super::{Methods, Reply};
use crate::Change;
use crate::engine::view::View;
use crate::error::{Fault, Refusal};
use serde::Deserialize;
use serde_json::{Value, json};
use trefoil_config::Pool;

/// The redundancy that every pool reports.
pub const REDUNDANCY: &str =
    "none: the loss of one backend loses every LUN with an extent on that backend; use redundant backends";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    name: String,
    backends: Vec<String>,
    #[serde(default)]
    delete_data: bool,
}

pub(super) async fn create(methods: &Methods, p: Create) -> Reply {
    let pool = Pool { name: p.name.clone(), backends: p.backends };
    let view = methods.change(Change::PoolCreate { pool, delete_data: p.delete_data }).await?;
    Ok(render(&view, &p.name))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PoolDelete {
    name: String,
    #[serde(default)]
    delete_data: bool,
    #[serde(default)]
    force: bool,
}

pub(super) async fn delete(methods: &Methods, p: PoolDelete) -> Reply {
    let PoolDelete { name, delete_data, force } = p;
    methods.done(Change::PoolDelete { name, delete_data, force }).await
}

pub(super) async fn list(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    Ok(view.state.pools.keys().map(|name| render(&view, name)).collect())
}

pub(super) async fn show(methods: &Methods, p: Name) -> Reply {
    let view = methods.view().await?;
    if !view.state.pools.contains_key(&p.name) {
        return Err(Refusal::new(Fault::NotFound, format!("there is no pool `{}`", p.name)).into());
    }
    let mut value = render(&view, &p.name);
    let luns: Vec<Value> = view
        .state
        .luns
        .values()
        .filter(|lun| lun.pool.as_deref() == Some(&p.name))
        .map(|lun| super::lun::render(&view, &lun.name))
        .collect();
    value["luns"] = luns.into();
    Ok(value)
}

fn render(view: &View, name: &str) -> Value {
    let Some(pool) = view.state.pools.get(name) else { return Value::Null };
    let mut value = json!({ "name": name, "backends": pool.backends, "redundancy": REDUNDANCY });
    match view.pools.get(name) {
        Some(live) => {
            value["state"] = if live.frozen.is_some() { "frozen" } else { "up" }.into();
            value["why"] = live.frozen.clone().into();
            value["capacity_bytes"] = live.capacity_bytes.into();
            value["free_bytes"] = live.free_bytes.into();
        }
        Option::None => {
            value["state"] = "down".into();
            value["why"] = view.down.get(&format!("pool/{name}")).cloned().into();
        }
    }
    value
}
