//! Prometheus metrics over HTTP on a loopback address, if one is configured.
//!
//! Every scrape asks the engine and the cores anew; nothing is counted here.

use crate::engine::handle::{Handle, Outcome};
use crate::engine::view::View;
use crate::{Action, LunTotals, Refusal};
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use trefoil_poll::CoreId;
use trefoil_storage::msg::Survey;
use trefoil_storage::stats::{BUCKETS, Latency, OpStats};

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
    let luns = handle.lun_stats().await?;
    let mut all = registry(&view, &survey);
    all.register_collector(Box::new(Luns(luns)));
    let mut text = String::new();
    // Writing to a string doesn't fail.
    let _ = encode(&mut text, &all);
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LunOp {
    name: String,
    op: &'static str,
}

/// Counters of every LUN.
#[derive(Debug)]
struct Luns(BTreeMap<String, LunTotals>);

impl Luns {
    fn counters(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit): (&str, &str, Option<&Unit>),
        value: impl Fn(&OpStats) -> u64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (name, LunTotals { stats, .. }) in &self.0 {
            let ops = [
                ("read", &stats.read),
                ("write", &stats.write),
                ("trim", &stats.trim),
                ("flush", &stats.flush),
            ];
            for (op, counts) in ops {
                let labels = LunOp { name: name.clone(), op };
                ConstCounter::new(value(counts)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Collector for Luns {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ops = ("lun_ops", "Commands of hosts that succeeded", None);
        self.counters(&mut encoder, ops, |op| op.ops)?;
        let bytes = ("lun_moved", "Bytes that those commands moved or named", Some(&Unit::Bytes));
        self.counters(&mut encoder, bytes, |op| op.bytes)?;
        let help = "Commands of hosts that a backend failed";
        let mut family = encoder.encode_descriptor("lun_errors", help, None, MetricType::Counter)?;
        for (name, totals) in &self.0 {
            let labels = Named { name: name.clone() };
            ConstCounter::new(totals.stats.errors).encode(family.encode_family(&labels)?)?;
        }
        let help = "Time from a command's arrival to its backend's answer";
        let name = "lun_latency";
        let mut family =
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (name, LunTotals { stats, latency }) in &self.0 {
            let ops = [&stats.read, &stats.write, &stats.trim, &stats.flush];
            let sum_ns: u64 = ops.iter().map(|op| op.latency_ns).sum();
            let labels = Named { name: name.clone() };
            let mut metric = family.encode_family(&labels)?;
            let count = latency.0.iter().sum();
            let no_exemplars = None::<&HashMap<usize, Exemplar<Named, f64>>>;
            metric.encode_histogram(sum_ns as f64 / 1e9, count, &octaves(latency), no_exemplars)?;
        }
        Ok(())
    }
}

/// A count for each power of two: an eighth is more than a scrape needs.
fn octaves(latency: &Latency) -> Vec<(f64, u64)> {
    let bounds = (0..BUCKETS).map(|at| Latency::above_ns(at).map_or(f64::INFINITY, |ns| ns as f64 / 1e9));
    let eighths: Vec<_> = bounds.zip(latency.0).collect();
    eighths
        .chunks(8)
        .map(|c| (c.last().map_or(f64::INFINITY, |b| b.0), c.iter().map(|b| b.1).sum()))
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_storage::stats::{Kind, LunCounters, LunSurvey};
    use trefoil_storage::topology::LunId;

    #[test]
    fn a_luns_counters_are_exposed() {
        let mut counters = LunCounters::new(1);
        counters.done(LunId(0), Kind::Read, 4096, 3_000);
        counters.done(LunId(0), Kind::Read, 4096, 5_000);
        counters.failed(LunId(0));
        let mut survey = LunSurvey { rows: Vec::with_capacity(1), next: None };
        counters.survey(&mut survey);
        let row = survey.rows.remove(0);
        let totals = LunTotals { stats: row.stats, latency: row.latency };
        let mut all = Registry::with_prefix("trefoil");
        all.register_collector(Box::new(Luns(BTreeMap::from([("a".into(), totals)]))));
        let mut text = String::new();
        encode(&mut text, &all).expect("text");
        for line in [
            r#"trefoil_lun_ops_total{name="a",op="read"} 2"#,
            r#"trefoil_lun_moved_bytes_total{name="a",op="read"} 8192"#,
            r#"trefoil_lun_errors_total{name="a"} 1"#,
            r#"trefoil_lun_latency_seconds_bucket{le="0.000004096",name="a"} 1"#,
            r#"trefoil_lun_latency_seconds_bucket{le="+Inf",name="a"} 2"#,
            r#"trefoil_lun_latency_seconds_count{name="a"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
