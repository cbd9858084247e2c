//! The methods `core_list` and `stats_get`.

use super::params::None;
use super::{Methods, Reply};
use crate::LunTotals;
use crate::engine::view::View;
use serde_json::{Value, json};
use std::time::Instant;
use trefoil_poll::CoreId;
use trefoil_storage::msg::{QpairRow, Survey};
use trefoil_storage::stats::{Latency, OpStats};

pub(super) async fn core_list(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    let survey = methods.survey().await?;
    Ok(survey.iter().map(|(core, survey)| core_row(&view, *core, survey)).collect())
}

/// Returns all counters. Counters only grow. `at_us` is the gateway's own clock, so a client computes rates from the
/// differences of two answers.
pub(super) async fn get(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    let survey = methods.survey().await?;
    let cores: Vec<Value> = survey.iter().map(|(core, survey)| core_row(&view, *core, survey)).collect();
    let qpairs: Vec<Value> =
        survey.iter().flat_map(|(core, s)| s.qpairs.iter().map(|row| qpair_row(*core, row))).collect();
    let total: usize = survey.iter().map(|(_, s)| s.total).sum();
    let at_us = Instant::now().duration_since(methods.started).as_micros() as u64;
    let luns = methods.handle.lun_stats().await?;
    let luns: Vec<Value> = luns.iter().map(|(name, totals)| lun_row(name, totals)).collect();
    Ok(json!({ "at_us": at_us, "cores": cores, "connections": total, "luns": luns, "qpairs": qpairs }))
}

fn core_row(view: &View, core: CoreId, survey: &Survey) -> Value {
    let at = usize::from(core.0);
    let sample = view.cores.get(at).copied().unwrap_or_default();
    json!({
        "core": core.0,
        "cpu": view.cpus.get(at),
        "connections": survey.total,
        "turns": sample.turns,
        "busy_turns": sample.busy_turns,
        "busy_us": sample.busy_ns / 1000,
        "sleeps": sample.sleeps,
    })
}

/// Returns the counters of one LUN. The histogram has only the buckets that are not empty. A bucket is a pair: an upper bound
/// of the latency in nanoseconds, and the number of commands in the bucket.
fn lun_row(name: &str, totals: &LunTotals) -> Value {
    let LunTotals { stats, latency } = totals;
    let op = |op: &OpStats| {
        json!({
            "ops": op.ops, "bytes": op.bytes, "latency_ns": op.latency_ns, "min_ns": op.min_ns, "max_ns": op.max_ns,
        })
    };
    let counts = latency.0.iter().enumerate().filter(|(_, count)| **count > 0);
    let histogram: Vec<Value> =
        counts.map(|(at, count)| json!([Latency::above_ns(at).unwrap_or(u64::MAX), count])).collect();
    json!({
        "name": name,
        "read": op(&stats.read),
        "write": op(&stats.write),
        "trim": op(&stats.trim),
        "flush": op(&stats.flush),
        "errors": stats.errors,
        "latency_below_ns": histogram,
    })
}

fn qpair_row(core: CoreId, row: &QpairRow) -> Value {
    json!({
        "core": core.0,
        "cntlid": row.cntlid,
        "qid": row.qid,
        "depth": row.depth,
        "outstanding": row.outstanding,
        "host_nqn": row.host_nqn.as_str(),
        "subsystem_nqn": row.subsystem_nqn.as_str(),
        "peer": row.peer,
        "header_digest": row.digests.0,
        "data_digest": row.digests.1,
        "commands": row.commands,
        "payload_bytes": row.payload_bytes,
    })
}
