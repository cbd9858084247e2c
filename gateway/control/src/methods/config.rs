//! `config_*`: the whole system as one TOML document.

use super::params::None;
use super::{Methods, Reply};
use crate::diff::describe;
use crate::engine::handle::Outcome;
use crate::engine::view::View;
use crate::jsonrpc::{INTERNAL_ERROR, RpcError};
use crate::state::{Row, RowChange};
use crate::store::SCHEMA;
use crate::{Action, Change};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
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
    preview(methods, parse(&p.toml)?, false).await
}

pub(super) async fn apply(methods: &Methods, p: Apply) -> Reply {
    let config = parse(&p.toml)?;
    let before = preview(methods, config.clone(), p.delete_data).await?;
    if !p.dry_run {
        let delete_data = p.delete_data;
        methods.change(Change::Apply { config: Box::new(config), delete_data }).await?;
    }
    Ok(before)
}

/// As [`apply`], for what [`backup`] gave.
pub(super) async fn restore(methods: &Methods, p: Apply) -> Reply {
    let first = p.toml.lines().next().unwrap_or_default();
    let schema = first.strip_prefix("# trefoil backup, schema ").and_then(|n| n.trim().parse::<u64>().ok());
    match schema {
        Some(SCHEMA) => apply(methods, p).await,
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

/// What the document would change, though data were lost by it; that is only noted unless `delete_data`.
async fn preview(methods: &Methods, config: Config, delete_data: bool) -> Reply {
    let view = methods.view().await?;
    let mut notes = Vec::new();
    if config.gateway != *view.gateway {
        notes.push(
            "[gateway] differs: it is read at the next start, from the file that trefoild is given".into(),
        );
    }
    let made_up: BTreeSet<String> =
        config.luns.iter().filter(|lun| lun.uuid.is_none()).map(|lun| format!("lun/{}", lun.name)).collect();
    let change = Change::Apply { config: Box::new(config), delete_data: true };
    let changes = match methods.handle.act(Action::Preview(change)).await? {
        Outcome::Preview(changes) => changes,
        other => return Err(RpcError::new(INTERNAL_ERROR, format!("a preview gave {other:?}"))),
    };
    let rows = view.state.rows();
    let is_lost = |change: &&RowChange| match change {
        RowChange::Remove(key) => matches!(rows.get(key), Some(Row::Lun(lun)) if lun.pool.is_some()),
        RowChange::Put(_) => false,
    };
    let lost = changes.iter().filter(is_lost).count();
    if lost > 0 && !delete_data {
        notes.push(format!(
            "LUNs whose data would be lost: {lost}; only --delete-data (delete_data) allows it"
        ));
    }
    let told = |change: &RowChange| {
        let mut told = describe(change, &rows);
        if is_lost(&change) {
            told["loses_data"] = true.into();
        }
        if told["change"] == "add"
            && told["object"].as_str().is_some_and(|key| made_up.contains(key))
            && let Some(fields) = told["fields"].as_array_mut()
        {
            // It gets its identity when it is made.
            fields.retain(|field| field["field"] != "uuid" && field["field"] != "nguid");
        }
        told
    };
    Ok(json!({ "changes": changes.iter().map(told).collect::<Vec<_>>(), "notes": notes }))
}
