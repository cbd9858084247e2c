//! `backend_discover` lists the subsystems that an array offers. `backend_attach` makes backends from the namespaces of one
//! subsystem.

use super::{Methods, Reply};
use crate::Change;
use crate::address::resolve;
use crate::admin::{Admin, AdminError};
use crate::engine::array_config::identity;
use crate::error::{Fault, Refusal, device};
use crate::jsonrpc::RpcError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use trefoil_config::{Address, Backend, BackendType, Gateway};
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::fabrics::discovery::{LogEntry, subtype, trtype};

/// The time limit for the queries to an array and to all subsystems in its discovery log.
const DISCOVER_WITHIN: Duration = Duration::from_secs(30);
/// The number of subsystems that are queried at a time. Each query needs a thread, a ring and 2 MiB of memory until its answer.
const ASKED_AT_A_TIME: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Discover {
    address: Address,
    #[serde(default)]
    hostnqn: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attach {
    /// The prefix of the backends' names.
    name: String,
    address: Address,
    subnqn: String,
    /// `true` if `address` is the address of a discovery service. The discovery service gives the subsystem's own address.
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
    address: Address,
    is_nvm: bool,
}

impl Offer {
    /// Reads an entry of the discovery log that came from `asked`. Returns `None` if the transport isn't TCP or the address isn't
    /// an IP address and a port.
    fn of(entry: &LogEntry, asked: Address) -> Option<Self> {
        if entry.trtype != trtype::TCP {
            return None;
        }
        let ip: IpAddr = entry.traddr.text().parse().ok()?;
        let port = entry.trsvcid.text().parse().ok()?;
        Some(Self {
            subnqn: entry.subnqn.as_str().to_owned(),
            // A target doesn't know the names of our interfaces. So a link-local address gets the interface of the address from
            // which the log came.
            address: asked.beside(ip, port),
            is_nvm: entry.subtype == subtype::NVM,
        })
    }
}

/// Returns every subsystem in the discovery log, with the namespaces that this host sees there.
pub(super) async fn discover(methods: &Methods, p: Discover) -> Reply {
    let by = Instant::now() + DISCOVER_WITHIN;
    let seconds = DISCOVER_WITHIN.as_secs();
    let silent = || format!("the array gave no answer within {seconds} s");
    let gateway = methods.view().await?.gateway;
    let offers = timeout_at(by, offers(&gateway, p.address, p.hostnqn.clone())).await;
    let offers = offers
        .map_err(|_| RpcError::from(Refusal::new(Fault::Device, format!("{}: {}", p.address, silent()))))??;
    let asked = ask_all(&offers, by, |offer| {
        let there = Backend { hostnqn: p.hostnqn.clone(), ..array("", offer.address, &offer.subnqn) };
        let (gateway, is_nvm) = (gateway.clone(), offer.is_nvm);
        async move {
            match is_nvm {
                true => namespaces(&gateway, there).await.map(Value::from),
                false => Ok(Value::Null),
            }
        }
    });
    let row = |(offer, asked): (&Offer, Option<Reply>)| {
        let kind = if offer.is_nvm { "nvm" } else { "discovery" };
        let mut row = json!({ "subnqn": offer.subnqn, "address": offer.address, "type": kind });
        match asked {
            Some(Ok(nsids)) if offer.is_nvm => row["namespaces"] = nsids,
            Some(Ok(_)) => {}
            // If a subsystem is unreachable, the others are listed nevertheless.
            Some(Err(error)) => row["why"] = error.message.into(),
            None => row["why"] = silent().into(),
        }
        row
    };
    Ok(offers.iter().zip(asked.await).map(row).collect())
}

/// Queries up to [`ASKED_AT_A_TIME`] subsystems at a time, until `by`. Returns `None` for each subsystem that has not answered
/// by then.
async fn ask_all<F>(offers: &[Offer], by: Instant, ask: impl Fn(&Offer) -> F) -> Vec<Option<F::Output>>
where
    F: Future<Output: Send> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(ASKED_AT_A_TIME));
    let mut asking = JoinSet::new();
    for (at, offer) in offers.iter().enumerate() {
        let (places, asked) = (places.clone(), ask(offer));
        asking.spawn(async move {
            // The semaphore is never closed, so this can't fail.
            let _place = places.acquire_owned().await;
            (at, asked.await)
        });
    }
    let mut answers: Vec<Option<F::Output>> = offers.iter().map(|_| None).collect();
    while let Ok(Some(answer)) = timeout_at(by, asking.join_next()).await {
        if let Ok((at, answer)) = answer
            && let Some(place) = answers.get_mut(at)
        {
            *place = Some(answer);
        }
    }
    answers
}

/// Makes a backend `NAMEnNSID` from each namespace. If one can't be made, makes none.
pub(super) async fn attach(methods: &Methods, p: Attach) -> Reply {
    let mut address = p.address;
    if p.discovery {
        let gateway = methods.view().await?.gateway;
        let offers = offers(&gateway, address, p.hostnqn.clone()).await?;
        let found = offers.into_iter().find(|offer| offer.is_nvm && offer.subnqn == p.subnqn);
        address = found.map(|offer| offer.address).ok_or_else(|| {
            let what = format!(
                "the discovery service at {address} does not offer subsystem `{}`: `trefoil backend discover` lists the offers",
                p.subnqn
            );
            Refusal::new(Fault::NotFound, what)
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

fn array(name: &str, address: Address, subnqn: &str) -> Backend {
    let (address, subnqn) = (Some(address), Some(subnqn.to_owned()));
    Backend { address, subnqn, ..Backend::new(name, BackendType::NvmeTcp) }
}

/// Returns a backend for each namespace that the subsystem of `template` shows this gateway. The backends have SPDK's form of
/// names: `NAMEnNSID`.
pub(crate) async fn backends_of(methods: &Methods, template: &Backend) -> Result<Vec<Backend>, RpcError> {
    let nsids = namespaces(&methods.view().await?.gateway, template.clone()).await?;
    if nsids.is_empty() {
        let subnqn = template.subnqn.as_deref().unwrap_or_default();
        let what = format!("array subsystem `{subnqn}` shows this gateway no namespace");
        return Err(Refusal::new(Fault::NotFound, what).into());
    }
    let one =
        |nsid| Backend { name: format!("{}n{nsid}", template.name), nsid: Some(nsid), ..template.clone() };
    Ok(nsids.into_iter().map(one).collect())
}

async fn offers(
    gateway: &Gateway,
    address: Address,
    hostnqn: Option<String>,
) -> Result<Vec<Offer>, RpcError> {
    let there = Backend { hostnqn, ..array("", address, Nqn::DISCOVERY.as_str()) };
    let log = ask(gateway, there, Admin::discovery_log).await?;
    Ok(log.iter().filter_map(|entry| Offer::of(entry, address)).collect())
}

async fn namespaces(gateway: &Gateway, there: Backend) -> Result<Vec<u32>, RpcError> {
    ask(gateway, there, Admin::namespaces).await
}

/// Connects an admin queue to the array at the address of `there`, and runs `what` on the queue. Uses a thread that may block.
async fn ask<T: Send + 'static>(
    gateway: &Gateway,
    there: Backend,
    what: impl FnOnce(&mut Admin) -> Result<T, AdminError> + Send + 'static,
) -> Result<T, RpcError> {
    let identity = identity(&there, &gateway.name)?;
    let address = there.address.ok_or_else(|| RpcError::params("address: the field `address` is missing"))?;
    let to = resolve(address).map_err(|e| device(address, &e))?;
    let asked = tokio::task::spawn_blocking(move || {
        let mut admin = Admin::connect(to, identity)?;
        let answer = what(&mut admin)?;
        admin.close()?;
        Ok(answer)
    });
    let failed = |e: AdminError| Refusal::new(Fault::Device, format!("{address}: {e}"));
    let answer = asked.await.map_err(|e| Refusal::new(Fault::Internal, e.to_string()))?;
    Ok(answer.map_err(failed)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use std::net::SocketAddr;
    use tokio::sync::Barrier;

    fn offer(port: u16) -> Offer {
        let (subnqn, address) =
            ("nqn.2026-01.org.example:s".into(), SocketAddr::from(([127, 0, 0, 1], port)).into());
        Offer { subnqn, address, is_nvm: true }
    }

    fn answers<F>(count: u16, within: Duration, ask: impl Fn(&Offer) -> F) -> Vec<Option<F::Output>>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let offers: Vec<Offer> = (0..count).map(offer).collect();
        runtime.block_on(async { ask_all(&offers, Instant::now() + within, ask).await })
    }

    #[test]
    fn one_that_is_silent_holds_up_no_other() {
        let ask = |offer: &Offer| -> std::pin::Pin<Box<dyn Future<Output = u16> + Send>> {
            match offer.address.port() {
                1 => Box::pin(pending()),
                port => Box::pin(ready(port)),
            }
        };
        assert_eq!(answers(3, Duration::from_millis(50), ask), [Some(0), None, Some(2)]);
    }

    #[test]
    fn they_are_asked_at_the_same_time_but_not_all() {
        // Each subsystem answers only when `ASKED_AT_A_TIME` subsystems are queried at the same time. If they were queried one
        // after another, none would answer.
        let together = Arc::new(Barrier::new(ASKED_AT_A_TIME));
        let ask = |_: &Offer| {
            let together = together.clone();
            async move { together.wait().await.is_leader() }
        };
        let count = ASKED_AT_A_TIME as u16;
        let answered = answers(count, Duration::from_secs(60), ask);
        assert!(answered.iter().all(Option::is_some), "{answered:?}");
        let more = Arc::new(Barrier::new(ASKED_AT_A_TIME + 1));
        let ask = |_: &Offer| {
            let more = more.clone();
            async move { more.wait().await.is_leader() }
        };
        assert_eq!(answers(count + 1, Duration::from_millis(50), ask), vec![None; ASKED_AT_A_TIME + 1]);
    }
}
