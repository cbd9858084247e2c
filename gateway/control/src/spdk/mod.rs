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
use std::net::{IpAddr, SocketAddr};

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
    /// The socket address.
    pub fn address(&self) -> Result<SocketAddr, RpcError> {
        check_tcp(&self.trtype)?;
        let ip: IpAddr = self
            .traddr
            .parse()
            .map_err(|_| RpcError::params(format!("traddr: `{}` is not an IP address", self.traddr)))?;
        let port = self.trsvcid.as_deref().unwrap_or("4420");
        let port = port.parse().map_err(|_| RpcError::params(format!("trsvcid: `{port}` is not a port")))?;
        Ok(SocketAddr::new(ip, port))
    }

    /// The parts of a socket address.
    pub fn of(address: SocketAddr) -> Value {
        json!({
            "trtype": "TCP",
            "adrfam": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "traddr": address.ip().to_string(),
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
