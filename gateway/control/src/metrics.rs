//! Prometheus metrics over HTTP on a loopback address, if one is configured.
//!
//! Every scrape asks the engine and the cores anew; nothing is counted here.

use crate::engine::view::View;
use crate::engine::{Handle, Outcome};
use crate::{Action, Refusal};
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::net::SocketAddr;
use trefoil_poll::CoreId;
use trefoil_storage::msg::Survey;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Core {
    core: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    name: String,
}

/// Serves `/metrics` until the future is dropped.
///
/// # Errors
/// The address can't be had.
pub async fn serve(at: SocketAddr, handle: Handle) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(at).await?;
    let app = axum::Router::new().route("/metrics", get(scrape)).with_state(handle);
    axum::serve(listener, app).await
}

async fn scrape(Shared(handle): Shared<Handle>) -> Response {
    match gather(&handle).await {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

async fn gather(handle: &Handle) -> Result<String, Refusal> {
    let view = handle.view().await?;
    let survey = match handle.act(Action::Survey).await? {
        Outcome::Survey(survey) => survey,
        _ => Vec::new(),
    };
    let mut text = String::new();
    // Writing to a string doesn't fail.
    let _ = encode(&mut text, &registry(&view, &survey));
    Ok(text)
}

fn registry(view: &View, survey: &[(CoreId, Box<Survey>)]) -> Registry {
    let mut all = Registry::with_prefix("trefoil");
    cores(&mut all, view, survey);
    let up = Family::<Named, Gauge>::default();
    let size = Family::<Named, Gauge>::default();
    for name in view.state.backends.keys() {
        let live = view.backends.get(name);
        up.get_or_create(&Named { name: name.clone() }).set(live.is_some_and(|l| l.usable.is_ok()).into());
        let len_bytes = live.map_or(0, |l| l.len_bytes);
        size.get_or_create(&Named { name: name.clone() }).set(len_bytes.cast_signed());
    }
    all.register("backend_up", "Whether I/O to a backend can go on", up);
    all.register_with_unit("backend_size", "Size of a backend", Unit::Bytes, size);
    let up = Family::<Named, Gauge>::default();
    let size = Family::<Named, Gauge>::default();
    for name in view.state.luns.keys() {
        let place = view.luns.get(name);
        up.get_or_create(&Named { name: name.clone() }).set(place.is_some().into());
        let len_bytes = place.map_or(0, |p| p.len_bytes);
        size.get_or_create(&Named { name: name.clone() }).set(len_bytes.cast_signed());
    }
    all.register("lun_up", "Whether a LUN is served", up);
    all.register_with_unit("lun_size", "Size of a LUN", Unit::Bytes, size);
    let (capacity, free) = (Family::<Named, Gauge>::default(), Family::<Named, Gauge>::default());
    for (name, pool) in &view.pools {
        let label = Named { name: name.clone() };
        capacity.get_or_create(&label).set(pool.capacity_bytes.cast_signed());
        free.get_or_create(&label).set(pool.free_bytes.cast_signed());
    }
    all.register_with_unit("pool_capacity", "Bytes that LUNs of a pool can have", Unit::Bytes, capacity);
    all.register_with_unit("pool_free", "Bytes of a pool that no LUN has", Unit::Bytes, free);
    all
}

fn cores(all: &mut Registry, view: &View, survey: &[(CoreId, Box<Survey>)]) {
    let connections = Family::<Core, Gauge>::default();
    let outstanding = Family::<Core, Gauge>::default();
    for (core, survey) in survey {
        let label = Core { core: core.0 };
        connections.get_or_create(&label).set(survey.total as i64);
        let commands = survey.qpairs.iter().map(|row| i64::from(row.outstanding)).sum();
        outstanding.get_or_create(&label).set(commands);
    }
    all.register("connections", "Queue pairs of hosts on a core", connections);
    all.register("commands_outstanding", "Commands of hosts under way on a core", outstanding);
    for (core, sample) in view.cores.iter().enumerate() {
        let one = all.sub_registry_with_label(("core".into(), core.to_string().into()));
        one.register("core_turns", "Turns of a core's loop", ConstCounter::new(sample.turns));
        one.register("core_busy_turns", "Turns with work", ConstCounter::new(sample.busy_turns));
        one.register("core_sleeps", "Times that a core slept", ConstCounter::new(sample.sleeps));
        let busy_s = sample.busy_ns as f64 / 1e9;
        let help = "Time spent in turns with work";
        one.register_with_unit("core_busy", help, Unit::Seconds, ConstCounter::new(busy_s));
    }
}
