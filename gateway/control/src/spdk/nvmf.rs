//! `nvmf_*`: transports, subsystems, namespaces, listeners and hosts.

use super::{TransportId, check_target, check_tcp};
use crate::Change;
use crate::engine::view::View;
use crate::error::{Fault, Refusal};
use crate::jsonrpc::RpcError;
use crate::methods::Methods;
use crate::methods::Reply;
use crate::state::Transport;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use trefoil_config::{Address, DISCOVERY_NQN, Subsystem};
use uuid::Uuid;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateTransport {
    trtype: String,
    #[serde(default)]
    tgt_name: Option<String>,
    #[serde(default)]
    max_queue_depth: Option<u32>,
    #[serde(default)]
    max_io_qpairs_per_ctrlr: Option<u32>,
    #[serde(default)]
    in_capsule_data_size: Option<u32>,
    #[serde(default)]
    max_io_size: Option<u32>,
    #[serde(default)]
    max_aq_depth: Option<u32>,
    #[serde(default)]
    c2h_success: Option<bool>,
    #[serde(default, rename = "no_srq")]
    _no_srq: IgnoredAny,
    #[serde(default, rename = "io_unit_size")]
    _io_unit_size: IgnoredAny,
    #[serde(default, rename = "num_shared_buffers")]
    _num_shared_buffers: IgnoredAny,
    #[serde(default, rename = "buf_cache_size")]
    _buf_cache_size: IgnoredAny,
    #[serde(default, rename = "iobuf_small_cache_size")]
    _iobuf_small_cache_size: IgnoredAny,
    #[serde(default, rename = "iobuf_large_cache_size")]
    _iobuf_large_cache_size: IgnoredAny,
    #[serde(default, rename = "num_cqe")]
    _num_cqe: IgnoredAny,
    #[serde(default, rename = "max_srq_depth")]
    _max_srq_depth: IgnoredAny,
    #[serde(default, rename = "sock_priority")]
    _sock_priority: IgnoredAny,
    #[serde(default, rename = "acceptor_backlog")]
    _acceptor_backlog: IgnoredAny,
    #[serde(default, rename = "abort_timeout_sec")]
    _abort_timeout_sec: IgnoredAny,
    #[serde(default, rename = "no_wr_batching")]
    _no_wr_batching: IgnoredAny,
    #[serde(default, rename = "control_msg_num")]
    _control_msg_num: IgnoredAny,
    #[serde(default, rename = "disable_mappable_bar0")]
    _disable_mappable_bar0: IgnoredAny,
    #[serde(default, rename = "disable_adaptive_irq")]
    _disable_adaptive_irq: IgnoredAny,
    #[serde(default, rename = "disable_shadow_doorbells")]
    _disable_shadow_doorbells: IgnoredAny,
    #[serde(default, rename = "acceptor_poll_rate")]
    _acceptor_poll_rate: IgnoredAny,
    #[serde(default, rename = "ack_timeout")]
    _ack_timeout: IgnoredAny,
    #[serde(default, rename = "data_wr_pool_size")]
    _data_wr_pool_size: IgnoredAny,
    #[serde(default, rename = "disable_command_passthru")]
    _disable_command_passthru: IgnoredAny,
    #[serde(default, rename = "kas")]
    _kas: IgnoredAny,
    #[serde(default, rename = "min_kato")]
    _min_kato: IgnoredAny,
    #[serde(default, rename = "masked_oncs")]
    _masked_oncs: IgnoredAny,
    #[serde(default, rename = "masked_fuses")]
    _masked_fuses: IgnoredAny,
}

/// Settings of the whole target. [`parse`](super::parse) refuses an unknown setting that is on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetConfig {
    #[serde(default, rename = "dhchap_digests")]
    _dhchap_digests: IgnoredAny,
    #[serde(default, rename = "dhchap_dhgroups")]
    _dhchap_dhgroups: IgnoredAny,
    #[serde(default, rename = "poll_groups_mask")]
    _poll_groups_mask: IgnoredAny,
    #[serde(default)]
    discovery_filter: Option<String>,
    #[serde(default)]
    discovery_filters: Vec<String>,
    #[serde(default)]
    dup_host_policy: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GetTransports {
    #[serde(default)]
    trtype: Option<String>,
    #[serde(default)]
    tgt_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateSubsystem {
    nqn: String,
    #[serde(default)]
    tgt_name: Option<String>,
    #[serde(default)]
    serial_number: Option<String>,
    #[serde(default)]
    model_number: Option<String>,
    #[serde(default)]
    allow_any_host: bool,
    #[serde(default)]
    max_namespaces: Option<u32>,
    #[serde(default)]
    min_cntlid: Option<u16>,
    #[serde(default)]
    max_cntlid: Option<u16>,
    /// Ignored, because ANA is always reported.
    #[serde(default, rename = "ana_reporting")]
    _ana_reporting: IgnoredAny,
    #[serde(default, rename = "dmrsl")]
    _dmrsl: IgnoredAny,
    #[serde(default, rename = "wzsl")]
    _wzsl: IgnoredAny,
    #[serde(default, rename = "max_discard_size_kib")]
    _max_discard_size_kib: IgnoredAny,
    #[serde(default, rename = "max_write_zeroes_size_kib")]
    _max_write_zeroes_size_kib: IgnoredAny,
}

/// The NQN of a subsystem; without it, all subsystems.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MaybeSubsystem {
    #[serde(default)]
    nqn: Option<String>,
    #[serde(default)]
    tgt_name: Option<String>,
}

/// The NQN of one subsystem.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OneSubsystem {
    pub(super) nqn: String,
    #[serde(default)]
    pub(super) tgt_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddNs {
    nqn: String,
    namespace: NewNs,
    #[serde(default)]
    tgt_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewNs {
    bdev_name: String,
    #[serde(default)]
    nsid: Option<u32>,
    #[serde(default)]
    nguid: Option<String>,
    #[serde(default)]
    uuid: Option<Uuid>,
    #[serde(default)]
    anagrpid: Option<u32>,
    #[serde(default)]
    no_auto_visible: bool,
    #[serde(default, rename = "hide_metadata")]
    _hide_metadata: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveNs {
    nqn: String,
    nsid: u32,
    #[serde(default)]
    tgt_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddListener {
    nqn: String,
    listen_address: TransportId,
    #[serde(default)]
    tgt_name: Option<String>,
    #[serde(default)]
    ana_state: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveListener {
    nqn: String,
    listen_address: TransportId,
    #[serde(default)]
    tgt_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostAccess {
    nqn: String,
    host: String,
    #[serde(default)]
    tgt_name: Option<String>,
    /// Ignored, because the gateway closes a removed host's connections at once.
    #[serde(default, rename = "timeout_ms")]
    _timeout_ms: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NsHost {
    nqn: String,
    nsid: u32,
    host: String,
    #[serde(default)]
    tgt_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubsystemAllowAnyHost {
    nqn: String,
    allow_any_host: bool,
    #[serde(default)]
    tgt_name: Option<String>,
}

/// Accepts only values that are already in force on this gateway.
pub(crate) async fn nvmf_set_config(_: &Methods, p: SetConfig) -> Reply {
    let is = [
        ("discovery_filter", p.discovery_filter, "match_any"),
        ("dup_host_policy", p.dup_host_policy, "allow"),
    ];
    let filters =
        p.discovery_filters.into_iter().map(|filter| ("discovery_filters", Some(filter), "match_any"));
    match is
        .into_iter()
        .chain(filters)
        .find_map(|(field, value, is)| value.filter(|v| v != is).map(|v| (field, v)))
    {
        Some((field, value)) => {
            Err(RpcError::params(format!("{field}: `{value}` is not supported by this gateway")))
        }
        None => Ok(true.into()),
    }
}

pub(crate) async fn nvmf_create_transport(methods: &Methods, p: CreateTransport) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    check_tcp(&p.trtype)?;
    let base = Transport::default();
    let transport = Transport {
        max_queue_depth: p.max_queue_depth.unwrap_or(base.max_queue_depth),
        max_io_qpairs_per_ctrlr: p.max_io_qpairs_per_ctrlr.unwrap_or(base.max_io_qpairs_per_ctrlr),
        in_capsule_data_size: p.in_capsule_data_size.unwrap_or(base.in_capsule_data_size),
        max_io_size: p.max_io_size.unwrap_or(base.max_io_size),
        max_aq_depth: p.max_aq_depth.unwrap_or(base.max_aq_depth),
        c2h_success: p.c2h_success.unwrap_or(base.c2h_success),
    };
    methods.change(Change::TransportCreate(transport)).await?;
    Ok(true.into())
}

/// Returns the transport with SPDK's names for its fields.
pub(super) fn transport(transport: &Transport) -> Value {
    json!({
        "trtype": "TCP",
        "max_queue_depth": transport.max_queue_depth,
        "max_io_qpairs_per_ctrlr": transport.max_io_qpairs_per_ctrlr,
        "in_capsule_data_size": transport.in_capsule_data_size,
        "max_io_size": transport.max_io_size,
        "max_aq_depth": transport.max_aq_depth,
        "c2h_success": transport.c2h_success,
    })
}

pub(crate) async fn nvmf_get_transports(methods: &Methods, p: GetTransports) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    let view = methods.view().await?;
    let there = view.state.transport.as_ref().map(transport);
    match p.trtype {
        Some(trtype) if there.is_none() || check_tcp(&trtype).is_err() => {
            Err(Refusal::new(Fault::NotFound, format!("there is no transport `{trtype}`")).into())
        }
        _ => Ok(there.into_iter().collect()),
    }
}

pub(crate) async fn nvmf_create_subsystem(methods: &Methods, p: CreateSubsystem) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    let subsystem = Subsystem {
        serial: p.serial_number,
        model: p.model_number,
        allow_any_host: p.allow_any_host,
        // In SPDK, 0 means the default.
        max_namespaces: p.max_namespaces.filter(|&n| n != 0),
        min_cntlid: p.min_cntlid,
        max_cntlid: p.max_cntlid,
        ..Subsystem::new(p.nqn)
    };
    methods.change(Change::SubsystemCreate(subsystem)).await?;
    Ok(true.into())
}

pub(crate) async fn nvmf_delete_subsystem(methods: &Methods, p: OneSubsystem) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    // SPDK's clients can't ask for force, so the gateway always uses it.
    methods.change(Change::SubsystemDelete { nqn: p.nqn, force: true }).await?;
    Ok(true.into())
}

pub(crate) async fn nvmf_get_subsystems(methods: &Methods, p: MaybeSubsystem) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    let view = methods.view().await?;
    let discovery = json!({
        "nqn": DISCOVERY_NQN,
        "subtype": "Discovery",
        "listen_addresses": addresses(&view.state.discovery.listeners),
        "allow_any_host": true,
        "hosts": [],
    });
    let all = std::iter::once(discovery).chain(view.state.subsystems.values().map(|s| render(&view, s)));
    let wanted: Vec<Value> = all.filter(|s| p.nqn.as_ref().is_none_or(|nqn| s["nqn"] == **nqn)).collect();
    match p.nqn {
        Some(nqn) if wanted.is_empty() => {
            Err(Refusal::new(Fault::NotFound, format!("there is no subsystem `{nqn}`")).into())
        }
        _ => Ok(wanted.into()),
    }
}

fn addresses(listeners: &[Address]) -> Value {
    let all = listeners.iter().map(|l| {
        let mut address = TransportId::of(*l);
        address["transport"] = "TCP".into();
        address
    });
    all.collect()
}

fn render(view: &View, s: &Subsystem) -> Value {
    let namespaces = s.namespaces.iter().map(|ns| {
        let lun = view.state.luns.get(&ns.lun);
        json!({
            "nsid": ns.nsid,
            "bdev_name": ns.lun,
            "name": ns.lun,
            "nguid": lun.and_then(|l| l.nguid.as_ref()).map(|nguid| nguid.to_ascii_uppercase()),
            "uuid": lun.and_then(|l| l.uuid),
            "anagrpid": ns.nsid,
        })
    });
    json!({
        "nqn": s.nqn,
        "subtype": "NVMe",
        "listen_addresses": addresses(&s.listeners),
        "allow_any_host": s.allow_any_host,
        "hosts": s.hosts.iter().map(|nqn| json!({ "nqn": nqn })).collect::<Vec<_>>(),
        "serial_number": s.serial,
        "model_number": s.model,
        "max_namespaces": s.max_nsid(),
        "min_cntlid": s.min_cntlid.unwrap_or(1),
        "max_cntlid": s.max_cntlid.unwrap_or(0xFFEF),
        "namespaces": namespaces.collect::<Vec<_>>(),
    })
}

pub(crate) async fn nvmf_subsystem_add_ns(methods: &Methods, p: AddNs) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    let ns = p.namespace;
    if ns.anagrpid.is_some() && ns.anagrpid != ns.nsid {
        return Err(RpcError::params(
            "anagrpid: the ANA group of a namespace is its NSID: set `nsid` to the same number",
        ));
    }
    let change = Change::NamespaceAdd {
        nqn: p.nqn.clone(),
        nsid: ns.nsid.filter(|&nsid| nsid != 0),
        lun: ns.bdev_name.clone(),
        hosts: ns.no_auto_visible.then(Vec::new),
        uuid: ns.uuid,
        nguid: ns.nguid,
    };
    let view = methods.change(change).await?;
    let nsid = view.state.exports(&ns.bdev_name).find(|(s, _)| s.nqn == p.nqn).map(|(_, nsid)| nsid);
    Ok(nsid.into())
}

pub(crate) async fn nvmf_subsystem_remove_ns(methods: &Methods, p: RemoveNs) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    methods.change(Change::NamespaceRemove { nqn: p.nqn, nsid: p.nsid }).await?;
    Ok(true.into())
}

pub(crate) async fn nvmf_subsystem_add_listener(methods: &Methods, p: AddListener) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    if let Some(state) = p.ana_state.as_deref().filter(|state| *state != "optimized") {
        return Err(RpcError::params(format!("ana_state: `{state}` is not supported by this gateway")));
    }
    let listen = p.listen_address.address()?;
    if p.nqn != DISCOVERY_NQN && methods.view().await?.state.transport.is_none() {
        return Err(RpcError::params("trtype: there is no transport `TCP`: create the transport first"));
    }
    methods.change(Change::ListenerAdd { nqn: p.nqn, listen }).await?;
    Ok(true.into())
}

pub(crate) async fn nvmf_subsystem_remove_listener(methods: &Methods, p: RemoveListener) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    let listen = p.listen_address.address()?;
    methods.change(Change::ListenerRemove { nqn: p.nqn, listen }).await?;
    Ok(true.into())
}

pub(crate) async fn nvmf_subsystem_add_host(methods: &Methods, p: HostAccess) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    methods.change(Change::HostAllow { nqn: p.nqn, nsid: None, host: p.host, force: false }).await?;
    Ok(true.into())
}

pub(crate) async fn nvmf_subsystem_remove_host(methods: &Methods, p: HostAccess) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    methods.change(Change::HostRevoke { nqn: p.nqn, nsid: None, host: p.host }).await?;
    Ok(true.into())
}

pub(crate) async fn nvmf_subsystem_allow_any_host(methods: &Methods, p: SubsystemAllowAnyHost) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    // With force, this gateway would disconnect hosts. SPDK leaves such hosts connected, so the change is made without force.
    methods.change(Change::AllowAnyHost { nqn: p.nqn, allow: p.allow_any_host, force: false }).await?;
    Ok(true.into())
}

pub(crate) async fn nvmf_ns_add_host(methods: &Methods, p: NsHost) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    methods.change(Change::HostAllow { nqn: p.nqn, nsid: Some(p.nsid), host: p.host, force: false }).await?;
    Ok(true.into())
}

pub(crate) async fn nvmf_ns_remove_host(methods: &Methods, p: NsHost) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    methods.change(Change::HostRevoke { nqn: p.nqn, nsid: Some(p.nsid), host: p.host }).await?;
    Ok(true.into())
}
