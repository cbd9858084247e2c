//! `framework_get_config`: returns the calls that build this system. SPDK's `save_config` and `load_config` use these calls.
//!
//! If SPDK has a method for an object, the object is returned as a call of that method. The call has every identity, so that a
//! host sees no difference in the copy. Pools, their LUNs and names of hosts are returned as calls of our own methods. SPDK's
//! client replays these calls as well.

use super::{TransportId, nvmf};
use crate::jsonrpc::RpcError;
use crate::methods::Methods;
use crate::methods::Reply;
use crate::methods::params::None;
use crate::state::State;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use trefoil_config::{Address, Backend, BackendType, DISCOVERY_NQN, Lun, Subsystem};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GetConfig {
    name: String,
    /// Ignored, because calls are never grouped.
    #[serde(default, rename = "with_batches")]
    _with_batches: IgnoredAny,
}

pub(crate) async fn framework_get_subsystems(_: &Methods, _: None) -> Reply {
    Ok(json!([
        { "subsystem": "bdev", "depends_on": [] },
        { "subsystem": "nvmf", "depends_on": ["bdev"] },
    ]))
}

pub(crate) async fn framework_get_config(methods: &Methods, p: GetConfig) -> Reply {
    let view = methods.view().await?;
    match p.name.as_str() {
        "bdev" => Ok(bdev_calls(&view.state)),
        "nvmf" => Ok(nvmf_calls(&view.state)),
        other => Err(RpcError::params(format!("name: there is no subsystem `{other}`"))),
    }
}

fn call(method: &str, params: Value) -> Value {
    let mut params = params;
    if let Value::Object(fields) = &mut params {
        fields.retain(|_, value| !value.is_null());
    }
    json!({ "method": method, "params": params })
}

/// Returns the calls that make backends, pools and LUNs.
pub(crate) fn bdev_calls(state: &State) -> Value {
    let mut calls = Vec::new();
    let mut told = BTreeSet::new();
    for backend in state.backends.values() {
        let lun = state.luns.get(&backend.name).filter(|l| l.backend.as_ref() == Some(&backend.name));
        match lun.and_then(|lun| as_bdev(backend, lun)) {
            Some(bdev) => {
                calls.push(bdev);
                told.insert(backend.name.as_str());
            }
            Option::None => calls.push(call("backend_create", json!(backend))),
        }
    }
    calls.extend(state.pools.values().map(|pool| call("pool_create", json!(pool))));
    let rest = state.luns.values().filter(|lun| !told.contains(lun.name.as_str()));
    calls.extend(rest.map(|lun| call("lun_create", json!(lun))));
    calls.push(call("bdev_wait_for_examine", json!({})));
    calls.into()
}

/// Returns the SPDK call that makes this backend and its LUN. Returns `None` if SPDK's call can't express all their properties.
fn as_bdev(backend: &Backend, lun: &Lun) -> Option<Value> {
    let block = backend.block_bytes.unwrap_or(512);
    // The NGUID is not compared, because the call that adds the namespace has the NGUID.
    let plain =
        !lun.read_only && lun.block_bytes.is_none_or(|own| Some(own) == backend.block_bytes || own == block);
    let size = backend.size.unwrap_or_default().0;
    let ram = json!({
        "name": backend.name, "num_blocks": size / u64::from(block), "block_size": block, "uuid": lun.uuid,
    });
    match backend.kind {
        _ if !plain => Option::None,
        BackendType::Memory if backend.path.is_none() => Some(call("bdev_malloc_create", ram)),
        BackendType::Null => Some(call("bdev_null_create", ram)),
        BackendType::File if backend.size.is_none() => {
            let params = json!({
                "name": backend.name, "filename": backend.path, "block_size": backend.block_bytes, "uuid": lun.uuid,
            });
            Some(call("bdev_uring_create", params))
        }
        // SPDK's method can't set the UUID that hosts know.
        BackendType::Memory | BackendType::File | BackendType::NvmeTcp => Option::None,
    }
}

/// Returns the calls that make the transport, subsystems and hosts.
pub(crate) fn nvmf_calls(state: &State) -> Value {
    let mut calls: Vec<Value> = state.hosts.values().map(|host| call("host_create", json!(host))).collect();
    calls.extend(state.transport.iter().map(|t| call("nvmf_create_transport", nvmf::transport(t))));
    listener_calls(DISCOVERY_NQN, &state.discovery.listeners, &mut calls);
    for subsystem in state.subsystems.values() {
        subsystem_calls(state, subsystem, &mut calls);
    }
    calls.into()
}

fn subsystem_calls(state: &State, s: &Subsystem, calls: &mut Vec<Value>) {
    let nqn = &s.nqn;
    calls.push(call(
        "nvmf_create_subsystem",
        json!({
            "nqn": nqn,
            "allow_any_host": s.allow_any_host,
            "serial_number": s.serial,
            "model_number": s.model,
            "max_namespaces": s.max_namespaces,
            "min_cntlid": s.min_cntlid,
            "max_cntlid": s.max_cntlid,
        }),
    ));
    calls.extend(
        s.hosts.iter().map(|host| call("nvmf_subsystem_add_host", json!({ "nqn": nqn, "host": host }))),
    );
    for ns in &s.namespaces {
        let lun = state.luns.get(&ns.lun);
        let mut namespace = json!({
            "nsid": ns.nsid,
            "bdev_name": ns.lun,
            "nguid": lun.and_then(|l| l.nguid.as_ref()).map(|nguid| nguid.to_ascii_uppercase()),
            "uuid": lun.and_then(|l| l.uuid),
        });
        if ns.hosts.is_some() {
            namespace["no_auto_visible"] = true.into();
        }
        calls.push(call("nvmf_subsystem_add_ns", json!({ "nqn": nqn, "namespace": namespace })));
        for host in ns.hosts.iter().flatten() {
            calls.push(call("nvmf_ns_add_host", json!({ "nqn": nqn, "nsid": ns.nsid, "host": host })));
        }
    }
    listener_calls(nqn, &s.listeners, calls);
}

fn listener_calls(nqn: &str, listeners: &[Address], calls: &mut Vec<Value>) {
    for listen in listeners {
        let params = json!({ "nqn": nqn, "listen_address": TransportId::of(*listen) });
        calls.push(call("nvmf_subsystem_add_listener", params));
    }
}
