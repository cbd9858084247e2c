//! `trefoil top`: a live table of cores, LUNs and hosts.

use crate::client::{CallError, Client};
use crate::{put, terminal};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

/// The most LUNs, and also the most hosts, that one table shows.
const ROWS: usize = 30;
const MIB: f64 = (1 << 20) as f64;

/// Prints the differences between two answers of `stats_get` repeatedly: `count` times, or without end. If the gateway stops,
/// waits until a gateway answers at `socket`.
pub fn run(
    client: &mut Client,
    socket: &Path,
    interval_ms: u64,
    count: Option<u64>,
    as_json: bool,
) -> Result<(), CallError> {
    let mut before = client.call("stats_get", json!({}))?;
    let mut shown = 0;
    while count.is_none_or(|count| shown < count) {
        std::thread::sleep(Duration::from_millis(interval_ms));
        let now = match client.call("stats_get", json!({})) {
            Err(error @ CallError::Broken(_)) => {
                terminal::complain(format_args!("trefoil: {error}; waiting for the gateway to come back"));
                before = come_back(client, socket, interval_ms)?;
                continue;
            }
            now => now?,
        };
        let rates = rates(&before, &now);
        if as_json {
            put(&format!("{rates}\n"))?;
        } else {
            let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
            put(&format!("{clear}{}", render(&rates)))?;
        }
        before = now;
        shown += 1;
    }
    Ok(())
}

/// Waits until a gateway answers again. Returns its first answer to `stats_get`.
fn come_back(client: &mut Client, socket: &Path, interval_ms: u64) -> Result<Value, CallError> {
    loop {
        let first = Client::connect(socket).and_then(|next| {
            *client = next;
            client.call("stats_get", json!({}))
        });
        match first {
            Err(error) if error.is_absence() => std::thread::sleep(Duration::from_millis(interval_ms)),
            first => return first,
        }
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_default()
}

/// Returns the rates. For a core: the busy share, and sleeps a second. For a LUN: the fields of [`lun_rates`]. For a host in a
/// subsystem: commands and bytes a second.
fn rates(before: &Value, now: &Value) -> Value {
    let seconds = ((number(now, "at_us") - number(before, "at_us")) / 1e6).max(1e-6);
    let rows = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let earlier = rows(before, "cores");
    let cores: Vec<Value> = rows(now, "cores")
        .iter()
        .enumerate()
        .map(|(n, core)| {
            let zero = Value::Null;
            let old = earlier.get(n).unwrap_or(&zero);
            let rate = |key: &str| (number(core, key) - number(old, key)) / seconds;
            json!({
                "core": core["core"], "cpu": core["cpu"], "connections": core["connections"],
                "busy_share": rate("busy_us") / 1e6, "sleeps_per_s": rate("sleeps"),
            })
        })
        .collect();
    let was = |lun: &Value| rows(before, "luns").into_iter().find(|old| old["name"] == lun["name"]);
    let mut luns: Vec<Value> =
        rows(now, "luns").iter().map(|lun| lun_rates(&was(lun).unwrap_or_default(), lun, seconds)).collect();
    luns.sort_by(|a, b| number(b, "iops").total_cmp(&number(a, "iops")));
    let name = |row: &Value| (row["core"].to_string(), row["cntlid"].to_string(), row["qid"].to_string());
    let old: HashMap<_, _> = rows(before, "qpairs").into_iter().map(|row| (name(&row), row)).collect();
    let mut hosts: HashMap<(String, String), (f64, f64, f64, u64)> = HashMap::new();
    for row in rows(now, "qpairs") {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let was = old.get(&name(&row)).filter(|old| number(old, "commands") <= number(&row, "commands"));
        let rate = |key: &str| (number(&row, key) - was.map_or(0.0, |old| number(old, key))) / seconds;
        let host = hosts.entry((text("host_nqn"), text("subsystem_nqn"))).or_default();
        host.0 += rate("commands");
        host.1 += rate("payload_bytes");
        host.2 += number(&row, "outstanding");
        host.3 += 1;
    }
    let mut hosts: Vec<Value> = hosts
        .into_iter()
        .map(|((host, subsystem), (iops, bytes, outstanding, qpairs))| {
            json!({
                "host_nqn": host, "subsystem_nqn": subsystem, "qpairs": qpairs,
                "iops": iops, "bytes_per_s": bytes, "outstanding": outstanding,
            })
        })
        .collect();
    hosts.sort_by(|a, b| number(b, "iops").total_cmp(&number(a, "iops")));
    json!({ "cores": cores, "luns": luns, "hosts": hosts, "connections": now["connections"] })
}

/// Returns the commands, bytes and errors a second, and percentiles of the latency.
fn lun_rates(before: &Value, now: &Value, seconds: f64) -> Value {
    // If a counter is smaller than before, it belongs to a new LUN of the same name.
    let grown = |now: f64, before: f64| if now >= before { now - before } else { now };
    let rate = |key: &str| {
        let ops = ["read", "write", "trim", "flush"];
        let sum = |stats: &Value| ops.iter().map(|op| number(&stats[*op], key)).sum::<f64>();
        grown(sum(now), sum(before)) / seconds
    };
    let counts = |stats: &Value| -> BTreeMap<u64, u64> {
        let pairs = stats["latency_below_ns"].as_array().into_iter().flatten();
        pairs.filter_map(|pair| Some((pair[0].as_u64()?, pair[1].as_u64()?))).collect()
    };
    let old = counts(before);
    let new: Vec<(u64, u64)> = counts(now)
        .into_iter()
        .map(|(below, count)| (below, count.saturating_sub(old.get(&below).copied().unwrap_or(0))))
        .collect();
    json!({
        "name": now["name"], "iops": rate("ops"), "bytes_per_s": rate("bytes"),
        "errors_per_s": grown(number(now, "errors"), number(before, "errors")) / seconds,
        "p50_us": percentile(&new, 0.5), "p99_us": percentile(&new, 0.99), "p999_us": percentile(&new, 0.999),
    })
}

/// Returns the latency in microseconds that this share of the commands stays below. Returns `None` if there were no commands.
fn percentile(counts: &[(u64, u64)], share: f64) -> Option<f64> {
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let wanted = ((total as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    let found = counts.iter().find(|(_, count)| {
        seen += count;
        seen >= wanted
    });
    found.map(|(below, _)| *below as f64 / 1e3)
}

fn render(rates: &Value) -> String {
    let mut text = String::from("CORE  CPU  QPAIRS   BUSY   SLEEPS/S\n");
    let rows = |key: &str| rates[key].as_array().cloned().unwrap_or_default();
    // Writing to a string doesn't fail.
    for core in rows("cores") {
        let _ = writeln!(
            text,
            "{:>4}  {:>3}  {:>6}  {:>4.0}%  {:>9.0}",
            number(&core, "core"),
            number(&core, "cpu"),
            number(&core, "connections"),
            number(&core, "busy_share") * 100.0,
            number(&core, "sleeps_per_s"),
        );
    }
    let _ = writeln!(
        text,
        "\n{:>9}  {:>9}  {:>8}  {:>8}  {:>8}  {:>8}  LUN",
        "IOPS", "MiB/S", "P50 US", "P99 US", "P99.9 US", "ERRORS/S"
    );
    let time = |lun: &Value, key: &str| lun[key].as_f64().map_or("-".into(), |us| format!("{us:.1}"));
    let luns = rows("luns");
    for lun in luns.iter().take(ROWS) {
        let _ = writeln!(
            text,
            "{:>9.0}  {:>9.1}  {:>8}  {:>8}  {:>8}  {:>8.0}  {}",
            number(lun, "iops"),
            number(lun, "bytes_per_s") / MIB,
            time(lun, "p50_us"),
            time(lun, "p99_us"),
            time(lun, "p999_us"),
            number(lun, "errors_per_s"),
            lun["name"].as_str().unwrap_or_default(),
        );
    }
    if luns.len() > ROWS {
        let _ = writeln!(text, "... and {} more", luns.len() - ROWS);
    }
    let _ = writeln!(
        text,
        "\n{:>9}  {:>9}  {:>6}  {:>6}  HOST -> SUBSYSTEM",
        "IOPS", "MiB/S", "QUEUED", "QPAIRS"
    );
    let hosts = rows("hosts");
    for host in hosts.iter().take(ROWS) {
        let _ = writeln!(
            text,
            "{:>9.0}  {:>9.1}  {:>6.0}  {:>6}  {} -> {}",
            number(host, "iops"),
            number(host, "bytes_per_s") / MIB,
            number(host, "outstanding"),
            number(host, "qpairs"),
            host["host_nqn"].as_str().unwrap_or_default(),
            host["subsystem_nqn"].as_str().unwrap_or_default(),
        );
    }
    if hosts.len() > ROWS {
        let _ = writeln!(text, "... and {} more", hosts.len() - ROWS);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_over_time() {
        let stats = |at: u64, commands: u64| {
            json!({
                "at_us": at, "connections": 1,
                "cores": [{"core": 0, "cpu": 3, "connections": 1, "busy_us": at / 2, "sleeps": 0}],
                "luns": [{
                    "name": "disk", "errors": 0, "read": { "ops": commands, "bytes": commands * 4096 },
                    "latency_below_ns": [[2048, 50], [4096, commands]],
                }],
                "qpairs": [{
                    "core": 0, "cntlid": 1, "qid": 1, "host_nqn": "h", "subsystem_nqn": "s",
                    "commands": commands, "payload_bytes": commands * 4096, "outstanding": 3,
                }],
            })
        };
        let rates = rates(&stats(1_000_000, 100), &stats(3_000_000, 300));
        assert_eq!(rates["cores"][0]["busy_share"], json!(0.5));
        assert_eq!(rates["hosts"][0]["iops"], json!(100.0));
        assert_eq!(rates["hosts"][0]["bytes_per_s"], json!(409_600.0));
        assert_eq!((&rates["luns"][0]["iops"], &rates["luns"][0]["p50_us"]), (&json!(100.0), &json!(4.096)));
        let text = render(&rates);
        assert!(text.contains("h -> s") && text.contains("4.1         0  disk"), "{text}");
    }

    #[test]
    fn percentiles_are_upper_bounds() {
        let counts = [(1000, 989), (2000, 10), (4000, 1)];
        let shares = [0.5, 0.989, 0.99, 0.999, 1.0];
        let found = shares.map(|share| percentile(&counts, share).expect("a bound"));
        assert_eq!(found, [1.0, 1.0, 2.0, 2.0, 4.0]);
        assert_eq!(percentile(&[(1000, 0)], 0.5), None);
    }

    #[test]
    fn a_lun_that_began_anew_has_no_negative_rate() {
        let stats = |ops: u64| json!({ "name": "a", "errors": 0, "read": { "ops": ops, "bytes": ops } });
        assert_eq!(lun_rates(&stats(10), &stats(4), 2.0)["iops"], json!(2.0));
        assert_eq!(lun_rates(&stats(4), &stats(10), 2.0)["p99_us"], Value::Null);
    }
}
