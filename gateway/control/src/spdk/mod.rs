//! SPDK's methods, with SPDK's names, parameters and results, so that SPDK's unmodified clients can control a gateway.
//!
//! What it is: a translation. A *bdev* is a LUN: either a LUN that presents a whole backend of the same name, or a LUN from a
//! pool. The only *transport* is TCP. An SPDK option that this gateway lacks is accepted at its "off" value. At any other
//! value, the option is refused by name ([`parse`]). Tuning that has no meaning here is accepted and ignored ([`TUNING`]).
//!
//! Source: SPDK's `doc/jsonrpc.md`, and the requests that its client (PyPI `spdk` 26.9) sends.

pub mod app;
pub mod bdev;
pub mod bdev_nvme;
pub mod config;
pub mod iostat;
pub mod load;
pub mod nvmf;
pub mod nvmf_stats;

use crate::jsonrpc::RpcError;
use crate::methods::params::{self, MAX_FIELDS};
use crate::methods::routes;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use trefoil_config::Address;

routes! {
    params::parse {
        "config_load_spdk" => load::config_load_spdk,
    }
    parse {
        "rpc_get_methods" => app::rpc_get_methods,
        "spdk_get_version" => app::spdk_get_version,
        "spdk_kill_instance" => app::spdk_kill_instance,
        "framework_start_init" => app::framework_start_init,
        "framework_wait_init" => app::framework_start_init,
        "framework_get_subsystems" => config::framework_get_subsystems,
        "framework_get_config" => config::framework_get_config,
        "framework_get_reactors" => app::framework_get_reactors,
        "thread_get_stats" => app::thread_get_stats,
        "bdev_malloc_create" => bdev::bdev_malloc_create,
        "bdev_malloc_delete" => bdev::bdev_malloc_delete,
        "bdev_null_create" => bdev::bdev_null_create,
        "bdev_null_delete" => bdev::bdev_null_delete,
        "bdev_aio_create" => bdev::bdev_aio_create,
        "bdev_aio_delete" => bdev::bdev_file_delete,
        "bdev_uring_create" => bdev::bdev_uring_create,
        "bdev_uring_delete" => bdev::bdev_file_delete,
        "bdev_get_bdevs" => bdev::bdev_get_bdevs,
        "bdev_get_iostat" => iostat::bdev_get_iostat,
        "bdev_wait_for_examine" => bdev::bdev_wait_for_examine,
        "bdev_nvme_attach_controller" => bdev_nvme::bdev_nvme_attach_controller,
        "bdev_nvme_detach_controller" => bdev_nvme::bdev_nvme_detach_controller,
        "bdev_nvme_get_controllers" => bdev_nvme::bdev_nvme_get_controllers,
        "nvmf_set_config" => nvmf::nvmf_set_config,
        "nvmf_create_transport" => nvmf::nvmf_create_transport,
        "nvmf_get_transports" => nvmf::nvmf_get_transports,
        "nvmf_create_subsystem" => nvmf::nvmf_create_subsystem,
        "nvmf_delete_subsystem" => nvmf::nvmf_delete_subsystem,
        "nvmf_get_subsystems" => nvmf::nvmf_get_subsystems,
        "nvmf_subsystem_add_ns" => nvmf::nvmf_subsystem_add_ns,
        "nvmf_subsystem_remove_ns" => nvmf::nvmf_subsystem_remove_ns,
        "nvmf_subsystem_add_listener" => nvmf::nvmf_subsystem_add_listener,
        "nvmf_subsystem_remove_listener" => nvmf::nvmf_subsystem_remove_listener,
        "nvmf_subsystem_add_host" => nvmf::nvmf_subsystem_add_host,
        "nvmf_subsystem_remove_host" => nvmf::nvmf_subsystem_remove_host,
        "nvmf_subsystem_allow_any_host" => nvmf::nvmf_subsystem_allow_any_host,
        "nvmf_ns_add_host" => nvmf::nvmf_ns_add_host,
        "nvmf_ns_remove_host" => nvmf::nvmf_ns_remove_host,
        "nvmf_subsystem_get_listeners" => nvmf_stats::nvmf_subsystem_get_listeners,
        "nvmf_subsystem_get_controllers" => nvmf_stats::nvmf_subsystem_get_controllers,
        "nvmf_subsystem_get_qpairs" => nvmf_stats::nvmf_subsystem_get_qpairs,
        "nvmf_get_stats" => nvmf_stats::nvmf_get_stats,
    }
}

/// Methods that tune SPDK's internals and change nothing that hosts see. The gateway accepts these methods with any parameters.
pub(crate) const TUNING: &[&str] = &[
    "accel_assign_opc",
    "accel_set_driver",
    "accel_set_options",
    "bdev_examine",
    "bdev_iscsi_set_options",
    "bdev_nvme_set_hotplug",
    "bdev_nvme_set_multipath_policy",
    "bdev_nvme_set_options",
    "bdev_raid_set_options",
    "bdev_set_options",
    "dsa_scan_accel_module",
    "framework_set_scheduler",
    "fsdev_set_opts",
    "iaa_scan_accel_module",
    "ioat_scan_accel_module",
    "iobuf_set_options",
    "iscsi_set_options",
    "nvmf_set_crdt",
    "nvmf_set_max_subsystems",
    "sock_impl_set_options",
    "sock_set_default_impl",
];

/// Reads the parameters of an SPDK method. An unknown parameter is accepted if its value is "off", because a client may name
/// the options that it doesn't want.
///
/// # Errors
/// -32602, naming the field.
pub(crate) fn parse<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    let mut params = params;
    for _ in 0..MAX_FIELDS {
        let Some(field) = unknown::<T>(&params) else { break };
        match take(&mut params, &field) {
            Some(value) if is_off(&value) => {}
            Some(value) => {
                return Err(RpcError::params(format!("{field}: {value} is not supported by this gateway")));
            }
            None => break,
        }
    }
    params::parse(params)
}

/// Returns the first field that `T`, or an object in it, doesn't have.
fn unknown<T: DeserializeOwned>(params: &Value) -> Option<String> {
    let message = T::deserialize(params).err()?.to_string();
    Some(message.strip_prefix("unknown field `")?.split_once('`')?.0.to_owned())
}

/// Removes a field from an object, or from an object inside that object. Returns the field's value.
fn take(value: &mut Value, field: &str) -> Option<Value> {
    let fields = value.as_object_mut()?;
    fields.remove(field).or_else(|| fields.values_mut().find_map(|inner| take(inner, field)))
}

/// Returns whether an option with this value is off. In SPDK, -1 means "not set".
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => matches!(number.as_i64(), Some(0 | -1)),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.iter().all(is_off),
        Value::Object(fields) => fields.values().all(is_off),
    }
}

/// Checks that a call is for the only target, which has SPDK's default name.
fn check_target(name: Option<&str>) -> Result<(), RpcError> {
    match name {
        None | Some("nvmf_tgt") => Ok(()),
        Some(other) => Err(RpcError::params(format!("tgt_name: there is no target `{other}`"))),
    }
}

/// An address in SPDK's parts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportId {
    trtype: String,
    traddr: String,
    #[serde(default)]
    trsvcid: Option<String>,
    /// Ignored, because `traddr` shows the address family.
    #[serde(default, rename = "adrfam")]
    _adrfam: IgnoredAny,
}

impl TransportId {
    /// Returns the address, with its scope.
    pub fn address(&self) -> Result<Address, RpcError> {
        check_tcp(&self.trtype)?;
        let port = self.trsvcid.as_deref().unwrap_or("4420");
        let port = port.parse().map_err(|_| RpcError::params(format!("trsvcid: `{port}` is not a port")))?;
        Address::new(&self.traddr, port).map_err(|e| RpcError::params(format!("traddr: {e}")))
    }

    /// Splits an address into SPDK's parts.
    pub fn of(address: Address) -> Value {
        json!({
            "trtype": "TCP",
            "adrfam": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "traddr": address.ip_text(),
            "trsvcid": address.port().to_string(),
        })
    }
}

fn check_tcp(trtype: &str) -> Result<(), RpcError> {
    if trtype.eq_ignore_ascii_case("TCP") {
        return Ok(());
    }
    Err(RpcError::params(format!("trtype: `{trtype}` is not supported by this gateway: use TCP")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(rename = "size")]
        _size: u32,
        #[serde(default, rename = "inner")]
        _inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "name")]
        _name: String,
    }

    #[test]
    fn what_is_off_is_taken_and_what_is_on_is_refused_by_name() {
        let off =
            [json!(false), json!(0), json!(-1), Value::Null, json!(""), json!([]), json!({ "a": false })];
        for value in off {
            let params =
                json!({ "size": 1, "dif": value, "inner": { "name": "x", "eui64": value }, "psk": value });
            assert!(parse::<Outer>(params.clone()).is_ok(), "{params}");
        }
        for value in [json!(true), json!(1), json!("x"), json!([1]), json!({ "a": true })] {
            let refused = |params| parse::<Outer>(params).expect_err("it is on").message;
            let want = format!("dif: {value} is not supported by this gateway");
            assert_eq!(refused(json!({ "size": 1, "dif": value, "a": false })), want);
            assert_eq!(refused(json!({ "size": 1, "inner": { "name": "x", "dif": value } })), want);
        }
        assert!(parse::<Outer>(json!({ "a": 0 })).is_err_and(|e| e.message.contains("missing field `size`")));
        let many: serde_json::Map<String, Value> =
            (0..1000).map(|n| (format!("a{n}"), Value::Null)).collect();
        assert!(parse::<Outer>(many.into()).is_err(), "there is an end to it");
    }
}
