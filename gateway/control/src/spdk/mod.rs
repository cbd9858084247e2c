//! SPDK's methods, with SPDK's names and shapes, so that its stock clients drive a gateway.
//!
//! What it is: a translation. A *bdev* is a backend that a LUN of the same name presents whole, or a
//! LUN from a pool; a *transport* is only TCP. An option of SPDK's that we don't have is taken at its
//! "off" value and refused otherwise, by name; tuning that has no meaning here is taken and ignored.
//!
//! Source: SPDK's `doc/jsonrpc.md` and what its client (PyPI `spdk` 26.9) sends.

pub mod app;
pub mod bdev;
pub mod bdev_nvme;
pub mod config;
pub mod iostat;
pub mod nvmf;
pub mod nvmf_stats;

use crate::jsonrpc::RpcError;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use trefoil_config::Address;

/// The only target that there is, by any of SPDK's default names.
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
    /// Follows from `traddr`.
    #[serde(default, rename = "adrfam")]
    _adrfam: IgnoredAny,
}

impl TransportId {
    /// The address, with its scope.
    pub fn address(&self) -> Result<Address, RpcError> {
        check_tcp(&self.trtype)?;
        let port = self.trsvcid.as_deref().unwrap_or("4420");
        let port = port.parse().map_err(|_| RpcError::params(format!("trsvcid: `{port}` is not a port")))?;
        Address::new(&self.traddr, port).map_err(|e| RpcError::params(format!("traddr: {e}")))
    }

    /// The parts of an address.
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
    Err(RpcError::params(format!("trtype: `{trtype}` is not supported by this gateway, only TCP")))
}
