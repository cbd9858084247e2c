//! `trefoil`: the gateway's command line, which uses the gateway's JSON-RPC socket.
//!
//! Every native method has a command. `--json` prints the method's result unchanged. Exit codes: 0 done, 1 refused or failed
//! (also if the output can't be written), 2 wrong usage, 3 the gateway can't be reached.

#![forbid(unsafe_code)]
// `print!` and similar macros panic if the output is full or closed.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod calls;
mod client;
mod table;
#[path = "../../terminal.rs"]
mod terminal;
mod top;

use args::{Args, Command, Config, Document};
use client::{CallError, Client};
use serde_json::{Value, json};
use std::io::Read;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Args = match terminal::arguments("trefoil") {
        Ok(args) => args,
        Err(status) => return status,
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match &error {
                // A user of `call` or `--json` needs the error code.
                CallError::Refused { code, .. }
                    if args.json || matches!(args.command, Command::Call { .. }) =>
                {
                    terminal::complain(format_args!("trefoil: {error} (code {code})"));
                }
                _ => terminal::complain(format_args!("trefoil: {error}")),
            }
            match error {
                CallError::Unreachable { .. } => ExitCode::from(3),
                CallError::Refused { .. }
                | CallError::Broken(_)
                | CallError::File { .. }
                | CallError::Output(_) => ExitCode::from(1),
            }
        }
    }
}

fn run(args: &Args) -> Result<(), CallError> {
    let mut client = Client::connect(&args.socket)?;
    match &args.command {
        Command::Top { interval_ms, count } => {
            top::run(&mut client, &args.socket, *interval_ms, *count, args.json)
        }
        Command::Config(command) => config(&mut client, command, args.json),
        other => {
            let (method, params) = other.call();
            let mut result = match other {
                Command::Call { params, .. } => client.call(method, params)?,
                _ => client.call(method, params)?,
            };
            if !args.json
                && let Some(notes) = result.as_object_mut().and_then(|fields| fields.remove("notes"))
            {
                texts(&notes)
                    .iter()
                    .for_each(|note| terminal::complain(format_args!("trefoil: note: {note}")));
            }
            print(&result, args.json, method)
        }
    }
}

fn config(client: &mut Client, command: &Config, as_json: bool) -> Result<(), CallError> {
    match command {
        Config::Get => document(client, "config_get", None, as_json),
        Config::Backup { file } => document(client, "config_backup", file.as_deref(), as_json),
        Config::Diff { file } => {
            let result = client.call("config_diff", json!({ "toml": read(file)?, "name": name(file) }))?;
            let summary = if is_empty(&result["changes"]) { "no difference" } else { "" };
            changes(&result, summary, as_json)
        }
        Config::Apply(document) => bring(client, "config_apply", document, as_json),
        Config::Restore(document) => bring(client, "config_restore", document, as_json),
        Config::LoadSpdk { file } => {
            let saved: Value = serde_json::from_str(&read(file)?).map_err(|e| CallError::File {
                path: file.into(),
                source: std::io::Error::other(format!("not JSON: {e}")),
            })?;
            let result = client.call("config_load_spdk", json!({ "config": saved }))?;
            if as_json {
                return put(&format!("{result:#}\n"));
            }
            let ignored = texts(&result["ignored"]).join(", ");
            let ignored = if ignored.is_empty() {
                String::new()
            } else {
                format!("; ignored, because the calls tune SPDK's internals: {ignored}")
            };
            put(&format!("loaded {} calls{ignored}\n", result["calls"]))
        }
    }
}

/// Changes the system to what a document says, or only reports the changes.
fn bring(client: &mut Client, method: &str, document: &Document, as_json: bool) -> Result<(), CallError> {
    let Document { file, dry_run, force, delete_data } = document;
    let params = json!({
        "toml": read(file)?, "name": name(file), "dry_run": dry_run, "force": force, "delete_data": delete_data,
    });
    let result = client.call(method, params)?;
    let needs = texts(&result["needs"]).join(" and ");
    let summary = match (is_empty(&result["changes"]), dry_run) {
        (true, _) => "nothing to do".to_owned(),
        (false, true) if !needs.is_empty() => format!("would be refused without {needs}"),
        (false, true) if result["fails"] == true => "would fail".into(),
        (false, true) => "would be applied".into(),
        (false, false) => "applied".into(),
    };
    changes(&result, &summary, as_json)
}

fn document(client: &mut Client, method: &str, file: Option<&str>, as_json: bool) -> Result<(), CallError> {
    let result = client.call(method, json!({}))?;
    let text = match as_json {
        true => format!("{result:#}\n"),
        false => result["toml"].as_str().unwrap_or_default().to_owned(),
    };
    match file {
        None => put(&text),
        Some(path) => {
            std::fs::write(path, text).map_err(|source| CallError::File { path: path.into(), source })
        }
    }
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Prints the differences and their losses, then the summary.
fn changes(result: &Value, summary: &str, as_json: bool) -> Result<(), CallError> {
    if as_json {
        return put(&format!("{result:#}\n"));
    }
    let list = |key: &str| result[key].as_array().cloned().unwrap_or_default();
    let mut text: String = list("changes").iter().map(table::change).collect();
    text.extend(list("losses").iter().map(table::loss));
    text.extend(texts(&result["notes"]).iter().map(|note| format!("{note}\n")));
    if !summary.is_empty() {
        text = text + summary + "\n";
    }
    put(&text)
}

/// Returns a file's name for messages.
fn name(path: &str) -> &str {
    if path == "-" { "standard input" } else { path }
}

/// Reads a file's text; `-` is standard input.
fn read(path: &str) -> Result<String, CallError> {
    let mut text = String::new();
    let read = match path {
        "-" => std::io::stdin().read_to_string(&mut text).map(drop),
        _ => std::fs::read_to_string(path).map(|read| text = read),
    };
    read.map_err(|source| CallError::File { path: path.into(), source })?;
    Ok(text)
}

fn print(result: &Value, as_json: bool, method: &str) -> Result<(), CallError> {
    if as_json {
        return put(&format!("{result:#}\n"));
    }
    let mut text = table::render(result, table::columns(method));
    // A pool's LUNs, and a gateway's LUNs, queue pairs and cores, have tables of their own.
    for (key, columns) in [
        ("luns", table::columns(if method == "stats_get" { "lun_stats" } else { "lun_list" })),
        ("qpairs", table::columns("qpairs")),
        ("cores", table::columns("core_list")),
    ] {
        if let Some(rows) = result.get(key).filter(|rows| rows.is_array() && !columns.is_empty()) {
            text = text + "\n" + &table::render(rows, columns);
        }
    }
    put(&text)
}

/// Prints the command's output.
fn put(text: &str) -> Result<(), CallError> {
    terminal::print(text).map_err(CallError::Output)
}
