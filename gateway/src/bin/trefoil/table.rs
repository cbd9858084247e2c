//! Tables of results for people.

use serde_json::Value;
use trefoil_config::Bytes;

/// Returns the columns of a method's table, each as field and heading. If the method has no columns, the table has one line for
/// each field.
pub fn columns(method: &str) -> &'static [(&'static str, &'static str)] {
    match method {
        "backend_discover" => &[
            ("subnqn", "SUBSYSTEM"),
            ("type", "TYPE"),
            ("address", "ADDRESS"),
            ("namespaces", "NAMESPACES"),
            ("why", "UNREACHABLE BECAUSE"),
        ],
        "backend_list" | "backend_attach" => &[
            ("name", "NAME"),
            ("type", "TYPE"),
            ("state", "STATE"),
            ("len_bytes", "SIZE"),
            ("block_bytes", "BLOCK"),
            ("core", "CORE"),
            ("used_by", "USED BY"),
            ("why", "WHY"),
        ],
        "pool_list" => &[
            ("name", "NAME"),
            ("state", "STATE"),
            ("capacity_bytes", "CAPACITY"),
            ("free_bytes", "FREE"),
            ("backends", "BACKENDS"),
            ("why", "WHY"),
        ],
        "lun_list" => &[
            ("name", "NAME"),
            ("state", "STATE"),
            ("len_bytes", "SIZE"),
            ("block_bytes", "BLOCK"),
            ("pool", "POOL"),
            ("backend", "BACKEND"),
            ("uuid", "UUID"),
            ("exports", "SHOWN AS"),
            ("why", "WHY"),
        ],
        "lun_stats" => &[
            ("name", "NAME"),
            ("read", "READS"),
            ("write", "WRITES"),
            ("trim", "TRIMS"),
            ("flush", "FLUSHES"),
            ("errors", "ERRORS"),
        ],
        "subsystem_list" => &[
            ("nqn", "NQN"),
            ("serial", "SERIAL"),
            ("allow_any_host", "ANY HOST"),
            ("hosts", "HOSTS"),
            ("listeners", "LISTENERS"),
            ("namespaces", "NAMESPACES"),
        ],
        "host_list" => &[("nqn", "NQN"), ("name", "NAME"), ("lists", "LISTED BY")],
        "qpairs" => &[
            ("core", "CORE"),
            ("cntlid", "CNTLID"),
            ("qid", "QID"),
            ("outstanding", "QUEUED"),
            ("commands", "COMMANDS"),
            ("payload_bytes", "BYTES"),
            ("peer", "PEER"),
            ("host_nqn", "HOST"),
            ("subsystem_nqn", "SUBSYSTEM"),
        ],
        "core_list" => &[
            ("core", "CORE"),
            ("cpu", "CPU"),
            ("connections", "QPAIRS"),
            ("turns", "TURNS"),
            ("busy_turns", "BUSY TURNS"),
            ("busy_us", "BUSY US"),
            ("sleeps", "SLEEPS"),
        ],
        _ => &[],
    }
}

/// Renders an array of objects as a table, an object as lines, and any other value unchanged.
pub fn render(value: &Value, columns: &[(&str, &str)]) -> String {
    match value {
        Value::Array(rows) if !columns.is_empty() => {
            let heads = columns.iter().map(|(_, head)| (*head).to_owned()).collect();
            let cells = rows.iter().map(|row| columns.iter().map(|(key, _)| cell(key, &row[*key])).collect());
            align(std::iter::once(heads).chain(cells).collect())
        }
        Value::Object(fields) => {
            // The caller prints a list of objects as a table of its own.
            let is_table =
                |value: &Value| value.as_array().is_some_and(|l| l.first().is_some_and(Value::is_object));
            let lines = fields.iter().filter(|(_, value)| !is_table(value));
            align(lines.map(|(key, value)| vec![key.clone(), cell(key, value)]).collect())
        }
        Value::Bool(true) => String::new(),
        other => format!("{other:#}\n"),
    }
}

fn cell(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.into(),
        // Block sizes are printed as plain numbers, because users know them as 512 or 4096.
        Value::Number(n) if key.ends_with("bytes") && key != "block_bytes" => {
            Bytes(n.as_u64().unwrap_or_default()).rounded()
        }
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "-".into(),
        Value::Array(list) => list.iter().map(|item| cell(key, item)).collect::<Vec<_>>().join(","),
        // The object is one of four kinds: a namespace in a subsystem, an export of a LUN, a list that names a host, or a pair
        // of counters.
        Value::Object(fields) => {
            let part = |key: &str| fields.get(key).map(|value| cell(key, value));
            if let (Some(ops), Some(bytes)) = (part("ops"), part("bytes")) {
                return format!("{ops} ({bytes})");
            }
            match (part("nqn"), part("nsid"), part("lun")) {
                (Some(nqn), Some(nsid), _) => format!("{nqn}/{nsid}"),
                (Some(nqn), None, _) => nqn,
                (None, Some(nsid), Some(lun)) => format!("{nsid}={lun}"),
                _ => Value::Object(fields.clone()).to_string(),
            }
        }
        other => other.to_string(),
    }
}

/// Renders one object of `config diff`: `~ lun/a`, and below it each field with its old and its new value.
pub fn change(change: &Value) -> String {
    let sign = match change["change"].as_str() {
        Some("add") => '+',
        Some("remove") => '-',
        _ => '~',
    };
    let lost = if change["loses_data"] == true { "  (its data is lost)" } else { "" };
    let mut text = format!("{sign} {}{lost}\n", change["object"].as_str().unwrap_or_default());
    for field in change["fields"].as_array().into_iter().flatten() {
        let value = |key: &str| match &field[key] {
            Value::Null => "(none)".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let name = field["field"].as_str().unwrap_or_default();
        text += &match sign {
            '+' => format!("    {name}: {}\n", value("new")),
            _ => format!("    {name}: {} → {}\n", value("old"), value("new")),
        };
    }
    text
}

/// Renders a loss that a change causes, with the flag that allows it.
pub fn loss(loss: &Value) -> String {
    let text = |key: &str| loss[key].as_str().unwrap_or_default();
    format!("! {} ({})\n", text("what"), text("flag"))
}

fn align(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_line_up() {
        let rows = json!([
            {"name": "a", "len_bytes": 1 << 30, "exports": [{"nqn": "n", "nsid": 1}]},
            {"name": "longer", "len_bytes": 1536, "exports": []},
        ]);
        let columns = [("name", "NAME"), ("len_bytes", "SIZE"), ("exports", "SHOWN AS")];
        let want = "NAME    SIZE   SHOWN AS\na       1GiB   n/1\nlonger  1536B  -\n";
        assert_eq!(render(&rows, &columns), want);
        assert_eq!(render(&json!({"a": true, "b": null}), &[]), "a  yes\nb  -\n");
    }

    #[test]
    fn a_change_is_told_field_by_field() {
        let told = json!({ "change": "modify", "object": "lun/a", "fields": [
            { "field": "size", "old": "8MiB", "new": "12MiB" }, { "field": "read_only", "old": null, "new": true },
        ] });
        assert_eq!(change(&told), "~ lun/a\n    size: 8MiB → 12MiB\n    read_only: (none) → true\n");
        let told = json!({ "change": "remove", "object": "lun/a", "fields": [], "loses_data": true });
        assert_eq!(change(&told), "- lun/a  (its data is lost)\n");
    }

    #[test]
    fn bytes_have_one_kind_of_unit() {
        assert_eq!(cell("read", &json!({ "ops": 2, "bytes": 8192 })), "2 (8KiB)");
        assert_eq!(cell("payload_bytes", &json!(3 << 20)), "3MiB");
        assert_eq!(cell("block_bytes", &json!(4096)), "4096");
    }

    #[test]
    fn a_loss_names_its_flag() {
        let told =
            json!({ "kind": "data", "object": "lun/a", "what": "LUN `a` goes", "flag": "--delete-data" });
        assert_eq!(loss(&told), "! LUN `a` goes (--delete-data)\n");
    }
}
