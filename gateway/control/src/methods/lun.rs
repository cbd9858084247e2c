//! The `lun_*` methods.

use super::params::MaybeName;
use super::{Methods, Reply};
use crate::Change;
use crate::engine::view::View;
use crate::error::{Fault, Refusal};
use serde::Deserialize;
use serde_json::{Value, json};
use trefoil_config::{Bytes, Lun};
use uuid::Uuid;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    name: String,
    backend: String,
    #[serde(default)]
    block_bytes: Option<u32>,
    #[serde(default)]
    uuid: Option<Uuid>,
    #[serde(default)]
    nguid: Option<String>,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Remove {
    name: String,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grow {
    name: String,
    size: Bytes,
}

pub(super) async fn create(methods: &Methods, lun: Lun) -> Reply {
    let name = lun.name.clone();
    let view = methods.change(Change::LunCreate(lun)).await?;
    Ok(render(&view, &name))
}

pub(super) async fn import(methods: &Methods, p: Import) -> Reply {
    let Import { name, backend, block_bytes, uuid, nguid, read_only } = p;
    let lun = Lun {
        name: name.clone(),
        pool: None,
        backend: Some(backend),
        size: None,
        block_bytes,
        uuid,
        nguid,
        read_only,
    };
    let view = methods.change(Change::LunCreate(lun)).await?;
    Ok(render(&view, &name))
}

pub(super) async fn delete(methods: &Methods, p: Remove) -> Reply {
    methods.done(Change::LunDelete { name: p.name, force: p.force }).await
}

pub(super) async fn release(methods: &Methods, p: Remove) -> Reply {
    methods.done(Change::LunRelease { name: p.name, force: p.force }).await
}

pub(super) async fn grow(methods: &Methods, p: Grow) -> Reply {
    let view = methods.change(Change::LunGrow { name: p.name.clone(), size: p.size }).await?;
    Ok(render(&view, &p.name))
}

pub(super) async fn list(methods: &Methods, p: MaybeName) -> Reply {
    let view = methods.view().await?;
    if let Some(name) = &p.name
        && !view.state.luns.contains_key(name)
    {
        return Err(Refusal::new(Fault::NotFound, format!("there is no LUN `{name}`")).into());
    }
    let names = view.state.luns.keys().filter(|name| p.name.as_ref().is_none_or(|p| p == *name));
    Ok(names.map(|name| render(&view, name)).collect())
}

/// Returns a LUN's fields and its current state.
pub fn render(view: &View, name: &str) -> Value {
    let Some(lun) = view.state.luns.get(name) else { return Value::Null };
    let exports: Vec<Value> =
        view.state.exports(name).map(|(s, nsid)| json!({ "nqn": s.nqn, "nsid": nsid })).collect();
    let mut value = json!({
        "name": name,
        "pool": lun.pool,
        "backend": lun.backend,
        "uuid": lun.uuid,
        "nguid": lun.nguid,
        "read_only": lun.read_only || view.access(view.luns.get(name)).read_only,
        "exports": exports,
    });
    match view.luns.get(name) {
        Some(place) => {
            let lost = view.lost_under(place);
            value["state"] = if lost.is_some() { "lost" } else { "up" }.into();
            value["why"] = lost.map(|(backend, why)| format!("backend `{backend}` is lost: {why}")).into();
            value["len_bytes"] = place.len_bytes.into();
            value["block_bytes"] = place.block_bytes.into();
            value["extents"] = place.extents.len().into();
        }
        None => {
            value["state"] = "down".into();
            value["why"] = view.down.get(&format!("lun/{name}")).cloned().into();
        }
    }
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, v| !v.is_null());
    }
    value
}
