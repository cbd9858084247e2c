//! The `bdev_nvme_*` methods: namespaces of other NVMe/TCP subsystems.

use super::TransportId;
use crate::Change;
use crate::error::{Fault, Refusal};
use crate::jsonrpc::RpcError;
use crate::methods::Methods;
use crate::methods::Reply;
use crate::methods::array::backends_of;
use crate::methods::params::MaybeName;
use crate::state::State;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use trefoil_config::{Backend, BackendType};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttachController {
    name: String,
    trtype: String,
    traddr: String,
    #[serde(default)]
    trsvcid: Option<String>,
    #[serde(default, rename = "adrfam")]
    _adrfam: IgnoredAny,
    #[serde(default)]
    subnqn: Option<String>,
    #[serde(default)]
    hostnqn: Option<String>,
    #[serde(default)]
    hdgst: Option<bool>,
    #[serde(default)]
    ddgst: Option<bool>,
    #[serde(default)]
    num_io_queues: Option<u32>,
    #[serde(default)]
    ctrlr_loss_timeout_sec: Option<i64>,
    #[serde(default, rename = "reconnect_delay_sec")]
    _reconnect_delay_sec: IgnoredAny,
    #[serde(default, rename = "fabrics_connect_timeout_us")]
    _fabrics_connect_timeout_us: IgnoredAny,
    #[serde(default, rename = "priority")]
    _priority: IgnoredAny,
    /// Ignored: there is only one path, so there is no policy to choose.
    #[serde(default, rename = "multipath")]
    _multipath: IgnoredAny,
    #[serde(default, rename = "multipath_opts")]
    _multipath_opts: IgnoredAny,
    #[serde(default, rename = "max_bdevs")]
    _max_bdevs: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Detach {
    name: String,
    #[serde(default, rename = "trtype")]
    _trtype: IgnoredAny,
    #[serde(default, rename = "traddr")]
    _traddr: IgnoredAny,
    #[serde(default, rename = "adrfam")]
    _adrfam: IgnoredAny,
    #[serde(default, rename = "trsvcid")]
    _trsvcid: IgnoredAny,
    #[serde(default, rename = "subnqn")]
    _subnqn: IgnoredAny,
}

/// Makes a bdev `NAMEnNSID` from each namespace that the subsystem shows this gateway. Each bdev has its own connection to the
/// array.
pub(crate) async fn bdev_nvme_attach_controller(methods: &Methods, p: AttachController) -> Reply {
    let id = TransportId { trtype: p.trtype, traddr: p.traddr, trsvcid: p.trsvcid, _adrfam: IgnoredAny };
    let Some(subnqn) = p.subnqn else {
        return Err(RpcError::params("subnqn: a TCP controller needs the field `subnqn`"));
    };
    let template = Backend {
        address: Some(id.address()?),
        subnqn: Some(subnqn),
        hostnqn: p.hostnqn,
        queues: p.num_io_queues.and_then(|queues| u16::try_from(queues).ok()),
        header_digest: p.hdgst.filter(|on| *on),
        data_digest: p.ddgst.filter(|on| *on),
        // In SPDK, 0 is the default and means "don't reconnect", and -1 means "reconnect for ever". This gateway always
        // reconnects, so it ignores both values.
        loss_timeout_s: p.ctrlr_loss_timeout_sec.and_then(|s| u32::try_from(s).ok()).filter(|&s| s != 0),
        ..Backend::new(p.name, BackendType::NvmeTcp)
    };
    if !members(&methods.view().await?.state, &template.name).is_empty() {
        return Err(Refusal::new(
            Fault::Exists,
            format!(
                "there is already a controller `{}`; this gateway has one path to each controller",
                template.name
            ),
        )
        .into());
    }
    let backends = backends_of(methods, &template).await?;
    let names: Vec<String> = backends.iter().map(|backend| backend.name.clone()).collect();
    methods.change(Change::Attach { backends, whole: true }).await?;
    Ok(json!(names))
}

pub(crate) async fn bdev_nvme_detach_controller(methods: &Methods, p: Detach) -> Reply {
    let view = methods.view().await?;
    let names: Vec<String> = members(&view.state, &p.name).iter().map(|b| b.name.clone()).collect();
    if names.is_empty() {
        return Err(Refusal::new(Fault::NotFound, format!("there is no controller `{}`", p.name)).into());
    }
    methods.change(Change::Detach { names }).await?;
    Ok(true.into())
}

/// Returns each controller with the fields that its namespaces share. A controller has the worst state among its namespaces.
pub(crate) async fn bdev_nvme_get_controllers(methods: &Methods, p: MaybeName) -> Reply {
    let view = methods.view().await?;
    let names: BTreeSet<&str> = view.state.backends.values().filter_map(controller_name).collect();
    let wanted = names.into_iter().filter(|name| p.name.as_deref().is_none_or(|wanted| wanted == *name));
    let controllers = wanted.filter_map(|name| {
        let namespaces = members(&view.state, name);
        let first = namespaces.first()?;
        let mut trid = TransportId::of(first.address?);
        trid["subnqn"] = first.subnqn.clone().into();
        let usable = |backend: &&Backend| view.backends.get(&backend.name).map(|live| live.usable.is_ok());
        let state = match namespaces.iter().map(usable).min() {
            Some(Some(true)) => "enabled",
            Some(Some(false)) => "resetting",
            Some(None) | None => "failed",
        };
        let host = json!({ "nqn": first.hostnqn, "addr": "", "svcid": "" });
        let ctrlr = json!({ "state": state, "trid": trid, "host": host });
        Some(json!({ "name": name, "ctrlrs": [ctrlr] }))
    });
    let controllers: Vec<Value> = controllers.collect();
    match p.name {
        Some(name) if controllers.is_empty() => {
            Err(Refusal::new(Fault::NotFound, format!("there is no controller `{name}`")).into())
        }
        _ => Ok(controllers.into()),
    }
}

/// Returns SPDK's name for the controller of a bdev such as `Nvme0n1`, or `None` if the bdev's name has another form.
fn controller_name(backend: &Backend) -> Option<&str> {
    let suffix = format!("n{}", backend.nsid.unwrap_or(1));
    backend.name.strip_suffix(&suffix).filter(|_| backend.kind == BackendType::NvmeTcp)
}

/// Returns the namespaces of a controller.
fn members<'a>(state: &'a State, name: &str) -> Vec<&'a Backend> {
    state.backends.values().filter(|backend| controller_name(backend) == Some(name)).collect()
}
