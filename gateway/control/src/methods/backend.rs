//! The `backend_*` methods, except the methods that query an array.

use super::params::{MaybeName, Name};
use super::{Methods, Reply};
use crate::Change;
use crate::engine::view::View;
use crate::error::{Fault, Refusal};
use serde_json::{Value, json};
use trefoil_config::Backend;

pub(super) async fn create(methods: &Methods, backend: Backend) -> Reply {
    let name = backend.name.clone();
    let view = methods.change(Change::BackendCreate(backend)).await?;
    Ok(render(&view, &name))
}

pub(super) async fn delete(methods: &Methods, p: Name) -> Reply {
    methods.done(Change::BackendDelete { name: p.name }).await
}

pub(super) async fn list(methods: &Methods, p: MaybeName) -> Reply {
    let view = methods.view().await?;
    if let Some(name) = &p.name
        && !view.state.backends.contains_key(name)
    {
        return Err(Refusal::new(Fault::NotFound, format!("there is no backend `{name}`")).into());
    }
    let names = view.state.backends.keys().filter(|name| p.name.as_ref().is_none_or(|p| p == *name));
    Ok(names.map(|name| render(&view, name)).collect())
}

pub(super) fn render(view: &View, name: &str) -> Value {
    let Some(backend) = view.state.backends.get(name) else { return Value::Null };
    let mut value = json!({
        "name": name,
        "type": backend.kind.as_str(),
        "path": backend.path,
        "address": backend.address,
        "subnqn": backend.subnqn,
        "nsid": backend.nsid,
        "used_by": used_by(view, name),
    });
    let live = match (view.backends.get(name), view.down.get(&format!("backend/{name}"))) {
        (Some(live), _) => json!({
            "len_bytes": live.len_bytes,
            "block_bytes": live.block_bytes,
            "core": live.owner.map(|core| core.0),
            "state": match live.usable { Ok(()) => "up", Err(_) => "lost" },
            "why": live.usable.as_ref().err(),
        }),
        (None, why) => json!({ "state": "down", "why": why }),
    };
    if let (Value::Object(value), Value::Object(live)) = (&mut value, live) {
        value.extend(live);
        value.retain(|_, v| !v.is_null());
    }
    value
}

/// Returns the user of the backend as `pool/NAME` or `lun/NAME`.
fn used_by(view: &View, name: &str) -> Option<String> {
    let pool = view.state.pools.values().find(|p| p.backends.iter().any(|b| b == name));
    let lun = view.state.luns.values().find(|l| l.backend.as_deref() == Some(name));
    pool.map(|p| format!("pool/{}", p.name)).or_else(|| lun.map(|l| format!("lun/{}", l.name)))
}
