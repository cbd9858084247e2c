//! Prometheus metrics over HTTP on a loopback address, if one is configured.
//!
//! Every scrape asks the engine and the cores anew; this module counts nothing. [`LIMITS`] bounds the cost of a client that is
//! faulty or hostile: a connection carries one short request and has a short lifetime.

mod listener;

use crate::address::resolve;
use crate::engine::handle::{Handle, Outcome};
use crate::engine::view::View;
use crate::{Action, LunTotals, Refusal};
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use listener::{LIMITS, MetricsListener};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::atomic::AtomicU64;
use tokio::net::TcpListener;
use trefoil_config::Address;
use trefoil_poll::CoreId;
use trefoil_storage::msg::{ConnectRefusal, Survey};
use trefoil_storage::stats::{BUCKETS, Latency, OpStats};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Core {
    core: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Serves `/metrics` until the future is dropped.
///
/// # Errors
/// The address is not available.
pub async fn serve(at: Address, handle: Handle) -> io::Result<()> {
    serve_on(MetricsListener::new(TcpListener::bind(resolve(at)?).await?, LIMITS), handle).await
}

async fn serve_on(listener: MetricsListener, handle: Handle) -> io::Result<()> {
    let app = axum::Router::new().route("/metrics", get(scrape)).with_state(handle);
    axum::serve(listener, app).await
}

async fn scrape(Shared(handle): Shared<Handle>) -> Response {
    // A connection that stays open would occupy a place that another client needs.
    let close = (header::CONNECTION, "close");
    match gather(&handle).await {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind), close], text).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, [close], error.to_string()).into_response(),
    }
}

async fn gather(handle: &Handle) -> Result<String, Refusal> {
    let view = handle.view().await?;
    let survey = match handle.act(Action::Survey).await? {
        Outcome::Survey(survey) => survey,
        _ => Vec::new(),
    };
    Ok(exposition(&view, &survey, handle.lun_stats().await?))
}

/// Returns the text that a scraper reads.
fn exposition(view: &View, survey: &[(CoreId, Box<Survey>)], luns: BTreeMap<String, LunTotals>) -> String {
    let mut all = registry(view, survey);
    all.register_collector(Box::new(Luns(luns)));
    let mut text = String::new();
    // Writing to a string doesn't fail.
    let _ = encode(&mut text, &all);
    text
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
    all.register("backend_up", "1 if I/O to a backend can go on, else 0", up);
    all.register_with_unit("backend_size", "Size of a backend", Unit::Bytes, size);
    let up = Family::<Named, Gauge>::default();
    let size = Family::<Named, Gauge>::default();
    for name in view.state.luns.keys() {
        let place = view.luns.get(name);
        let is_up = place.is_some_and(|place| view.lost_under(place).is_none());
        up.get_or_create(&Named { name: name.clone() }).set(is_up.into());
        let len_bytes = place.map_or(0, |p| p.len_bytes);
        size.get_or_create(&Named { name: name.clone() }).set(len_bytes.cast_signed());
    }
    all.register("lun_up", "1 if a LUN is served and I/O to all its backends can go on, else 0", up);
    all.register_with_unit("lun_size", "Size of a LUN", Unit::Bytes, size);
    let (capacity, free) = (Family::<Named, Gauge>::default(), Family::<Named, Gauge>::default());
    for (name, pool) in &view.pools {
        let label = Named { name: name.clone() };
        capacity.get_or_create(&label).set(pool.capacity_bytes.cast_signed());
        free.get_or_create(&label).set(pool.free_bytes.cast_signed());
    }
    all.register_with_unit("pool_capacity", "Bytes of a pool for LUNs, used and free", Unit::Bytes, capacity);
    all.register_with_unit("pool_free", "Bytes of a pool that no LUN uses", Unit::Bytes, free);
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
        let ops = ("lun_ops", "Hosts' commands that succeeded", None);
        self.counters(&mut encoder, ops, |op| op.ops)?;
        let bytes = ("lun_moved", "Bytes that the commands in lun_ops moved or named", Some(&Unit::Bytes));
        self.counters(&mut encoder, bytes, |op| op.bytes)?;
        let help = "Hosts' commands that a backend failed";
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

/// Returns one bucket for each power of two. `latency` has eight buckets for each power of two, more than a scrape needs.
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
    let refused = Family::<Reason, Counter>::default();
    for (at, why) in ConnectRefusal::ALL.iter().enumerate() {
        let reason = match why {
            ConnectRefusal::Host => "host",
            ConnectRefusal::Subsystem => "subsystem",
            ConnectRefusal::Listener => "listener",
            ConnectRefusal::HostNqn => "hostnqn",
            ConnectRefusal::HostId => "hostid",
            ConnectRefusal::SqSize => "sqsize",
            ConnectRefusal::RecFmt => "recfmt",
            ConnectRefusal::CntlId => "cntlid",
            ConnectRefusal::Qid => "qid",
            ConnectRefusal::OtherHost => "other_host",
            ConnectRefusal::Full => "full",
            ConnectRefusal::Sequence => "sequence",
            ConnectRefusal::Other => "other",
        };
        let count = survey.iter().filter_map(|(_, survey)| survey.refused.get(at)).sum();
        refused.get_or_create(&Reason { reason }).inc_by(count);
    }
    let help = "Refused Connect commands, by the reason for the refusal";
    all.register("connects_refused", help, refused);
    all.register("connections", "Queue pairs of hosts on a core", connections);
    all.register("commands_outstanding", "Hosts' outstanding commands on a core", outstanding);
    let [turns, busy_turns, sleeps] = [(); 3].map(|()| Family::<Core, Counter>::default());
    let busy = Family::<Core, Counter<f64, AtomicU64>>::default();
    for (core, sample) in (0..).zip(&view.cores) {
        let label = Core { core };
        turns.get_or_create(&label).inc_by(sample.turns);
        busy_turns.get_or_create(&label).inc_by(sample.busy_turns);
        sleeps.get_or_create(&label).inc_by(sample.sleeps);
        busy.get_or_create(&label).inc_by(sample.busy_ns as f64 / 1e9);
    }
    all.register("core_turns", "Turns of a core's loop", turns);
    all.register("core_busy_turns", "Turns of a core's loop with work", busy_turns);
    all.register("core_sleeps", "Times that a core slept", sleeps);
    all.register_with_unit("core_busy", "Time that a core spent in turns with work", Unit::Seconds, busy);
}

#[cfg(test)]
mod tests {
    use super::listener::Limits;
    use super::*;
    use crate::engine::view::PoolView;
    use serde_json::json;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use trefoil_config::{Backend, BackendType, Lun};
    use trefoil_poll::CoreSample;
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

    /// OpenMetrics 1.0: each family has one description. All samples of a family follow its description, before the next
    /// family.
    #[test]
    fn a_family_is_described_once_and_has_all_its_samples() {
        let mut view = View::of(&Arc::default(), &[0, 1]);
        let state = Arc::make_mut(&mut view.state);
        let mut totals = BTreeMap::new();
        for name in ["a", "b"] {
            state.backends.insert(name.into(), Backend::new(name, BackendType::Null));
            let lun: Lun = serde_json::from_value(json!({ "name": name, "backend": name })).expect("a LUN");
            state.luns.insert(name.into(), lun);
            view.pools.insert(name.into(), PoolView::default());
            totals.insert(name.into(), LunTotals::default());
        }
        view.cores = vec![CoreSample { turns: 7, ..CoreSample::default() }; 2];
        let survey = [0, 1].map(|core| (CoreId(core), Box::default()));
        let text = exposition(&view, &survey, totals);
        let (mut families, mut samples, mut now) = (Vec::new(), BTreeMap::<_, u32>::new(), "");
        for line in text.lines().take_while(|line| *line != "# EOF") {
            let Some((kind, rest)) = line.strip_prefix("# ").and_then(|line| line.split_once(' ')) else {
                let name = line.split('{').next().unwrap_or_default();
                let suffix =
                    name.strip_prefix(now).unwrap_or_else(|| panic!("{line} comes after {now}:\n{text}"));
                assert!(["", "_total", "_bucket", "_sum", "_count"].contains(&suffix), "{line} after {now}");
                *samples.entry(now).or_default() += 1;
                continue;
            };
            now = rest.split(' ').next().unwrap_or_default();
            if kind == "HELP" {
                assert!(!families.contains(&now), "{now} comes twice:\n{text}");
                families.push(now);
            }
            assert_eq!(
                families.last(),
                Some(&now),
                "{line}: what describes a family stands together:\n{text}"
            );
        }
        for family in families {
            assert!(
                samples.get(family).is_some_and(|&samples| samples >= 2),
                "{family} lacks samples:\n{text}"
            );
        }
        for line in ["trefoil_core_turns_total{core=\"0\"} 7", "trefoil_core_turns_total{core=\"1\"} 7"] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

    /// Runs `test` with the address of a metrics port that has `limits`. There is no engine behind the port.
    fn on_port<F: Future<Output = ()>>(limits: Limits, test: impl FnOnce(SocketAddr) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let at = listener.local_addr().expect("its address");
            tokio::spawn(serve_on(MetricsListener::new(listener, limits), Handle::dangling()));
            let end = tokio::time::timeout(Duration::from_secs(60), test(at)).await;
            end.expect("an end, as every connection has its time");
        });
    }

    /// Connects, sends the request, and reads until the other side closes.
    async fn ask(at: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(at).await.expect("a connection");
        stream.write_all(request).await.expect("sent");
        let mut answer = Vec::new();
        // A reset ends the connection too.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn a_request_that_trickles_gives_its_place_back() {
        let limits = Limits { connections: 2, lifetime: Duration::from_millis(100), ..LIMITS };
        on_port(limits, |at| async move {
            let mut slow = Vec::new();
            for _ in 0..8 {
                let mut stream = TcpStream::connect(at).await.expect("a connection");
                stream.write_all(b"GET /metrics HTT").await.expect("sent");
                slow.push(stream);
            }
            assert!(ask(at, REQUEST).await.starts_with("HTTP/1.1 503"), "it has its turn after them");
            for mut stream in slow {
                assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)), "it is closed without an answer");
            }
        });
    }

    #[test]
    fn a_connection_is_one_request_of_bounded_size() {
        on_port(LIMITS, |at| async move {
            let answer = ask(at, &REQUEST.repeat(2)).await;
            assert_eq!(answer.matches("HTTP/1.1 503").count(), 1, "{answer}");
            let long =
                [b"GET /metrics HTTP/1.1\r\nx: ", vec![b'x'; LIMITS.request_bytes].as_slice()].concat();
            assert_eq!(ask(at, &[&long, b"\r\n\r\n".as_slice()].concat()).await, "");
        });
    }
}
