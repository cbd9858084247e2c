//! `config_*`: the whole system as one TOML document.

use super::params::None;
use super::{Methods, Reply};
use crate::engine::describe;
use crate::engine::handle::Outcome;
use crate::engine::view::View;
use crate::jsonrpc::{INTERNAL_ERROR, RpcError};
use crate::store::SCHEMA;
use crate::{Action, Change};
use serde::Deserialize;
use serde_json::{Value, json};
use trefoil_config::Config;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// TOML.
    toml: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Apply {
    toml: String,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    delete_data: bool,
}

pub(super) async fn get(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    Ok(json!({ "toml": toml(&view)?, "epoch": view.epoch }))
}

/// The same with what `config_restore` looks at first.
pub(super) async fn backup(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    let text = format!("# trefoil backup, schema {SCHEMA}\n{}", toml(&view)?);
    Ok(json!({ "toml": text, "schema": SCHEMA }))
}

pub(super) async fn diff(methods: &Methods, p: Document) -> Reply {
    preview(methods, parse(&p.toml)?, true).await
}

pub(super) async fn apply(methods: &Methods, p: Apply) -> Reply {
    let config = parse(&p.toml)?;
    if p.dry_run {
        return preview(methods, config, p.delete_data).await;
    }
    carry_out(methods, config, p.delete_data).await
}

pub(super) async fn restore(methods: &Methods, p: Document) -> Reply {
    let first = p.toml.lines().next().unwrap_or_default();
    let schema = first.strip_prefix("# trefoil backup, schema ").and_then(|n| n.trim().parse::<u64>().ok());
    match schema {
        Some(SCHEMA) => carry_out(methods, parse(&p.toml)?, false).await,
        Some(other) => Err(RpcError::params(format!("toml: a backup of schema {other}; this is {SCHEMA}"))),
        Option::None => Err(RpcError::params("toml: not a backup; use config_apply for other documents")),
    }
}

fn parse(text: &str) -> Result<Config, RpcError> {
    Config::parse("toml", text).map_err(|e| RpcError::params(e.to_string()))
}

fn toml(view: &View) -> Result<String, RpcError> {
    view.state
        .to_config(&view.gateway)
        .to_toml()
        .map_err(|e| RpcError::new(INTERNAL_ERROR, format!("the state has no TOML form: {e}")))
}

async fn carry_out(methods: &Methods, config: Config, delete_data: bool) -> Reply {
    let before = preview(methods, config.clone(), delete_data).await?;
    methods.change(Change::Apply { config: Box::new(config), delete_data }).await?;
    Ok(before)
}

async fn preview(methods: &Methods, config: Config, delete_data: bool) -> Reply {
    let view = methods.view().await?;
    let mut notes = Vec::new();
    if config.gateway != *view.gateway {
        notes.push("[gateway] differs: it is read at the next start, from the file that trefoild is given");
    }
    let change = Change::Apply { config: Box::new(config), delete_data };
    match methods.handle.act(Action::Preview(change)).await? {
        Outcome::Preview(changes) => {
            let changes: Vec<Value> = changes.iter().map(|c| describe(c, &view.state).into()).collect();
            Ok(json!({ "changes": changes, "notes": notes }))
        }
        other => Err(RpcError::new(INTERNAL_ERROR, format!("a preview gave {other:?}"))),
    }
}
