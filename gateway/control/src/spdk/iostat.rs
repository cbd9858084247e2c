//! `bdev_get_iostat`: counters of the commands that hosts sent to each bdev.

use crate::LunTotals;
use crate::error::{Fault, Refusal};
use crate::jsonrpc::RpcError;
use crate::methods::Methods;
use crate::methods::Reply;
use serde::Deserialize;
use serde_json::{Value, json};
use trefoil_storage::stats::OpStats;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GetIostat {
    /// The parameter of clients before 24.09.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    reset_mode: Option<String>,
}

/// Returns the counters. Write Zeroes is counted as unmap, because both free blocks. Errors of all statuses are counted
/// together.
pub(crate) async fn bdev_get_iostat(methods: &Methods, p: GetIostat) -> Reply {
    if p.reset_mode.as_deref().is_some_and(|mode| mode != "none") {
        return Err(RpcError::params("reset_mode: this gateway never resets counters: use `none`"));
    }
    let luns = methods.handle().lun_stats().await?;
    let wanted: Vec<&String> = p.names.iter().flatten().chain(&p.name).collect();
    if let Some(name) = wanted.iter().find(|name| !luns.contains_key(**name)) {
        return Err(Refusal::new(Fault::NotFound, format!("there is no bdev `{name}`")).into());
    }
    let shown = luns.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name));
    let bdevs: Vec<Value> = shown.map(|(name, totals)| render(name, totals)).collect();
    // Ticks are nanoseconds, as everywhere.
    Ok(json!({ "tick_rate": 1_000_000_000u64, "ticks": methods.uptime_ns(), "bdevs": bdevs }))
}

fn render(name: &str, totals: &LunTotals) -> Value {
    let stats = &totals.stats;
    let mut row = json!({ "name": name });
    let mut put = |ops: &str, bytes: &str, op: &OpStats| {
        row[format!("bytes_{bytes}")] = op.bytes.into();
        row[format!("num_{ops}_ops")] = op.ops.into();
        row[format!("{ops}_latency_ticks")] = op.latency_ns.into();
        row[format!("max_{ops}_latency_ticks")] = op.max_ns.into();
        row[format!("min_{ops}_latency_ticks")] = op.min_ns.into();
    };
    put("read", "read", &stats.read);
    put("write", "written", &stats.write);
    put("unmap", "unmapped", &stats.trim);
    put("copy", "copied", &OpStats::default());
    row["io_error"] = match stats.errors {
        0 => json!({}),
        errors => json!({ "failed": errors }),
    };
    row["driver_specific"] = json!({});
    row
}
