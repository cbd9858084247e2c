//! `backend_discover` and `backend_attach`: what an array offers, and backends for all of it.

use super::{Methods, Reply};
use crate::Change;
use crate::admin::{Admin, AdminError};
use crate::engine::backends::identity;
use crate::error::{Fault, Refusal};
use crate::jsonrpc::RpcError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use trefoil_config::{Backend, BackendType};
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::fabrics::discovery::{LogEntry, subtype, trtype};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Discover {
    address: SocketAddr,
    #[serde(default)]
    hostnqn: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attach {
    /// What names of backends begin with.
    name: String,
    address: SocketAddr,
    subnqn: String,
    /// The address is a discovery service's, which knows where the subsystem is.
    #[serde(default)]
    discovery: bool,
    #[serde(default)]
    hostnqn: Option<String>,
    #[serde(default)]
    queues: Option<u16>,
    #[serde(default)]
    depth: Option<u16>,
    #[serde(default)]
    header_digest: Option<bool>,
    #[serde(default)]
    data_digest: Option<bool>,
    #[serde(default)]
    keep_alive_s: Option<u32>,
    #[serde(default)]
    loss_timeout_s: Option<u32>,
}

/// A subsystem that an array offers over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offer {
    subnqn: String,
    address: SocketAddr,
    is_nvm: bool,
}

impl Offer {
    /// `None` for another transport, and for an address that we can't use.
    fn of(entry: &LogEntry) -> Option<Self> {
        if entry.trtype != trtype::TCP {
            return None;
        }
        let ip: IpAddr = entry.traddr.text().parse().ok()?;
        let port = entry.trsvcid.text().parse().ok()?;
        Some(Self {
            subnqn: entry.subnqn.as_str().to_owned(),
            address: SocketAddr::new(ip, port),
            is_nvm: entry.subtype == subtype::NVM,
        })
    }
}

/// Every subsystem in the discovery log, and the namespaces that this host sees there.
pub(super) async fn discover(methods: &Methods, p: Discover) -> Reply {
    let mut rows: Vec<Value> = Vec::new();
    for offer in offers(methods, p.address, p.hostnqn.clone()).await? {
        let kind = if offer.is_nvm { "nvm" } else { "discovery" };
        let mut row = json!({ "subnqn": offer.subnqn, "address": offer.address, "type": kind });
        if offer.is_nvm {
            let there = Backend { hostnqn: p.hostnqn.clone(), ..array("", offer.address, &offer.subnqn) };
            match namespaces(methods, there).await {
                Ok(nsids) => row["namespaces"] = nsids.into(),
                // That one subsystem can't be reached is no reason not to tell of the others.
                Err(error) => row["why"] = error.message.into(),
            }
        }
        rows.push(row);
    }
    Ok(rows.into())
}

/// A backend `NAMEnNSID` for each namespace, all or none.
pub(super) async fn attach(methods: &Methods, p: Attach) -> Reply {
    let mut address = p.address;
    if p.discovery {
        let offers = offers(methods, address, p.hostnqn.clone()).await?;
        let found = offers.into_iter().find(|offer| offer.is_nvm && offer.subnqn == p.subnqn);
        address = found.map(|offer| offer.address).ok_or_else(|| {
            Refusal::new(Fault::NotFound, format!("{address} does not offer subsystem `{}`", p.subnqn))
        })?;
    }
    let template = Backend {
        hostnqn: p.hostnqn,
        queues: p.queues,
        depth: p.depth,
        header_digest: p.header_digest,
        data_digest: p.data_digest,
        keep_alive_s: p.keep_alive_s,
        loss_timeout_s: p.loss_timeout_s,
        ..array(&p.name, address, &p.subnqn)
    };
    let backends = backends_of(methods, &template).await?;
    let names: Vec<String> = backends.iter().map(|backend| backend.name.clone()).collect();
    let view = methods.change(Change::Attach { backends, whole: false }).await?;
    Ok(names.iter().map(|name| super::backend::render(&view, name)).collect())
}

fn array(name: &str, address: SocketAddr, subnqn: &str) -> Backend {
    let (address, subnqn) = (Some(address), Some(subnqn.to_owned()));
    Backend { address, subnqn, ..Backend::new(name, BackendType::NvmeTcp) }
}

/// A backend for each namespace that the subsystem of `template` shows us, named as SPDK would: `NAMEnNSID`.
pub(crate) async fn backends_of(methods: &Methods, template: &Backend) -> Result<Vec<Backend>, RpcError> {
    let nsids = namespaces(methods, template.clone()).await?;
    if nsids.is_empty() {
        let subnqn = template.subnqn.as_deref().unwrap_or_default();
        let what = format!("subsystem `{subnqn}` shows this gateway no namespace");
        return Err(Refusal::new(Fault::NotFound, what).into());
    }
    let one =
        |nsid| Backend { name: format!("{}n{nsid}", template.name), nsid: Some(nsid), ..template.clone() };
    Ok(nsids.into_iter().map(one).collect())
}

async fn offers(
    methods: &Methods,
    address: SocketAddr,
    hostnqn: Option<String>,
) -> Result<Vec<Offer>, RpcError> {
    let there = Backend { hostnqn, ..array("", address, Nqn::DISCOVERY.as_str()) };
    let log = ask(methods, there, Admin::discovery_log).await?;
    Ok(log.iter().filter_map(Offer::of).collect())
}

async fn namespaces(methods: &Methods, there: Backend) -> Result<Vec<u32>, RpcError> {
    ask(methods, there, Admin::namespaces).await
}

/// Asks the array of `there` on a thread that may block.
async fn ask<T: Send + 'static>(
    methods: &Methods,
    there: Backend,
    what: impl FnOnce(&mut Admin) -> Result<T, AdminError> + Send + 'static,
) -> Result<T, RpcError> {
    let view = methods.view().await?;
    let identity = identity(&there, &view.gateway.name)?;
    let address = there.address.ok_or_else(|| RpcError::params("address: missing"))?;
    let asked = tokio::task::spawn_blocking(move || {
        let mut admin = Admin::connect(address, identity)?;
        let answer = what(&mut admin)?;
        admin.close()?;
        Ok(answer)
    });
    let failed = |e: AdminError| Refusal::new(Fault::Device, format!("{address}: {e}"));
    let answer = asked.await.map_err(|e| Refusal::new(Fault::Internal, e.to_string()))?;
    Ok(answer.map_err(failed)?)
}
