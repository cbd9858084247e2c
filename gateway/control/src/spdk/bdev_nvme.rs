//! `bdev_nvme_*`: namespaces of other NVMe/TCP subsystems.

use super::TransportId;
use crate::Change;
use crate::error::{Fault, Refusal};
use crate::jsonrpc::RpcError;
use crate::methods::Methods;
use crate::methods::params::{MaybeName, Off};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use trefoil_config::{Backend, BackendType};

type Reply = Result<Value, RpcError>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attach {
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
    num_io_queues: Option<u16>,
    #[serde(default)]
    ctrlr_loss_timeout_sec: Option<i64>,
    #[serde(default, rename = "reconnect_delay_sec")]
    _reconnect_delay_sec: IgnoredAny,
    #[serde(default, rename = "fast_io_fail_timeout_sec")]
    _fast_io_fail_timeout_sec: Off,
    #[serde(default, rename = "fabrics_connect_timeout_us")]
    _fabrics_connect_timeout_us: IgnoredAny,
    #[serde(default, rename = "priority")]
    _priority: IgnoredAny,
    #[serde(default, rename = "prchk_reftag")]
    _prchk_reftag: Off,
    #[serde(default, rename = "prchk_guard")]
    _prchk_guard: Off,
    #[serde(default, rename = "hostaddr")]
    _hostaddr: Off,
    #[serde(default, rename = "hostsvcid")]
    _hostsvcid: Off,
    #[serde(default)]
    multipath: Option<String>,
    #[serde(default, rename = "psk")]
    _psk: Off,
    #[serde(default, rename = "max_bdevs")]
    _max_bdevs: IgnoredAny,
    #[serde(default, rename = "dhchap_key")]
    _dhchap_key: Off,
    #[serde(default, rename = "dhchap_ctrlr_key")]
    _dhchap_ctrlr_key: Off,
    #[serde(default, rename = "allow_unrecognized_csi")]
    _allow_unrecognized_csi: Off,
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
    #[serde(default, rename = "hostaddr")]
    _hostaddr: Off,
    #[serde(default, rename = "hostsvcid")]
    _hostsvcid: Off,
}

/// The first namespace becomes the bdev `NAMEn1`, as with SPDK; others are made with `backend_create`.
pub(crate) async fn bdev_nvme_attach_controller(methods: &Methods, p: Attach) -> Reply {
    if p.multipath.as_deref().is_some_and(|mode| mode != "disable") {
        return Err(RpcError::params("multipath: this gateway has one path to a backend"));
    }
    let id = TransportId { trtype: p.trtype, traddr: p.traddr, trsvcid: p.trsvcid, _adrfam: IgnoredAny };
    let Some(subnqn) = p.subnqn else { return Err(RpcError::params("subnqn: a TCP controller needs it")) };
    let name = format!("{}n1", p.name);
    let backend = Backend {
        address: Some(id.address()?),
        subnqn: Some(subnqn),
        hostnqn: p.hostnqn,
        nsid: Some(1),
        queues: p.num_io_queues,
        header_digest: p.hdgst.filter(|on| *on),
        data_digest: p.ddgst.filter(|on| *on),
        loss_timeout_s: p.ctrlr_loss_timeout_sec.and_then(|s| u32::try_from(s).ok()),
        ..Backend::new(name.clone(), BackendType::NvmeTcp)
    };
    methods.change(Change::BdevCreate { backend, uuid: None }).await?;
    Ok(json!([name]))
}

pub(crate) async fn bdev_nvme_detach_controller(methods: &Methods, p: Detach) -> Reply {
    let view = methods.view().await?;
    let name = format!("{}n1", p.name);
    if !view.state.backends.get(&name).is_some_and(|b| b.kind == BackendType::NvmeTcp) {
        return Err(Refusal::new(Fault::NotFound, format!("there is no controller `{}`", p.name)).into());
    }
    methods.change(Change::BdevDelete { name }).await?;
    Ok(true.into())
}

pub(crate) async fn bdev_nvme_get_controllers(methods: &Methods, p: MaybeName) -> Reply {
    let view = methods.view().await?;
    let all = view.state.backends.values().filter(|b| b.kind == BackendType::NvmeTcp);
    let controllers = all.filter_map(|backend| {
        let name = controller_name(&backend.name);
        if p.name.as_deref().is_some_and(|wanted| wanted != name) {
            return None;
        }
        let mut trid = TransportId::of(backend.address?);
        trid["subnqn"] = backend.subnqn.clone().into();
        let state = match view.backends.get(&backend.name).map(|live| live.usable) {
            Some(Ok(())) => "enabled",
            Some(Err(_)) => "resetting",
            None => "failed",
        };
        let host = json!({ "nqn": backend.hostnqn, "addr": "", "svcid": "" });
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

/// What SPDK would call the controller of bdev `Nvme0n1`.
fn controller_name(bdev: &str) -> &str {
    bdev.strip_suffix("n1").unwrap_or(bdev)
}
