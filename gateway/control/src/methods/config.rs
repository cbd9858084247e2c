//! The `config_*` methods: the whole system as one TOML document.

use super::params::None;
use super::{Methods, Reply};
use crate::diff::describe;
use crate::engine::backends::check_memory;
use crate::engine::handle::{Outcome, Preview};
use crate::engine::view::View;
use crate::jsonrpc::{INTERNAL_ERROR, RpcError};
use crate::loss::{Kind, Permit};
use crate::obstacles::{Obstacle, of_changes};
use crate::state::{Row, RowChange, State};
use crate::store::SCHEMA;
use crate::{Action, Change};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use trefoil_config::Config;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// The document, as TOML.
    toml: String,
    /// The document's name in messages: usually its file.
    #[serde(default = "document")]
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Apply {
    toml: String,
    #[serde(default = "document")]
    name: String,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    delete_data: bool,
}

fn document() -> String {
    "document".into()
}

pub(super) async fn get(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    Ok(json!({ "toml": toml(&view)?, "epoch": view.epoch }))
}

/// Returns the document. The document's first line has the schema version, which `config_restore` checks.
pub(super) async fn backup(methods: &Methods, _: None) -> Reply {
    let view = methods.view().await?;
    let text = format!("# trefoil backup, schema {SCHEMA}\n{}", toml(&view)?);
    Ok(json!({ "toml": text, "schema": SCHEMA }))
}

pub(super) async fn diff(methods: &Methods, p: Document) -> Reply {
    preview(methods, parse(&p.name, &p.toml)?, Permit::default(), false).await
}

pub(super) async fn apply(methods: &Methods, p: Apply) -> Reply {
    let config = parse(&p.name, &p.toml)?;
    let permit = Permit { force: p.force, delete_data: p.delete_data };
    let mut told = preview(methods, config.clone(), permit, p.dry_run).await?;
    let is_applied = !p.dry_run && told["changes"].as_array().is_none_or(|changes| !changes.is_empty());
    if is_applied {
        methods.change(Change::Apply { config: Box::new(config), permit }).await?;
    }
    told["applied"] = is_applied.into();
    Ok(told)
}

/// Does the same as [`apply`], for a document that [`backup`] returned.
pub(super) async fn restore(methods: &Methods, p: Apply) -> Reply {
    let first = p.toml.lines().next().unwrap_or_default();
    let schema = first.strip_prefix("# trefoil backup, schema ").and_then(|n| n.trim().parse::<u64>().ok());
    match schema {
        Some(SCHEMA) => apply(methods, p).await,
        Some(other) => Err(RpcError::params(format!(
            "{}: the backup has schema {other}, and this gateway reads schema {SCHEMA}",
            p.name
        ))),
        Option::None => {
            let what = "the document is not a backup; for other documents use `trefoil config apply`";
            Err(RpcError::params(format!("{}: {what}", p.name)))
        }
    }
}

fn parse(name: &str, text: &str) -> Result<Config, RpcError> {
    Config::parse(name, text).map_err(|e| RpcError::params(e.to_string()))
}

fn toml(view: &View) -> Result<String, RpcError> {
    view.state.to_config(&view.gateway).to_toml().map_err(|e| {
        RpcError::new(INTERNAL_ERROR, format!("the gateway's state can't be written as TOML: {e}"))
    })
}

/// Returns the changes that the document makes, the losses that the changes cause, and the flags that they need besides
/// `permit`. With `look`, also returns the obstacles on this machine that keep added objects from coming up.
async fn preview(methods: &Methods, config: Config, permit: Permit, look: bool) -> Reply {
    let view = methods.view().await?;
    let mut notes = Vec::new();
    if config.gateway != *view.gateway {
        let what = "[gateway] differs: the gateway reads its settings only at its next start, from the file given to trefoild";
        notes.push(what.to_owned());
    }
    let made_up: BTreeSet<String> =
        config.luns.iter().filter(|lun| lun.uuid.is_none()).map(|lun| format!("lun/{}", lun.name)).collect();
    let change = Change::Apply { config: Box::new(config), permit };
    let Preview { changes, losses, notes: told, refusals } =
        match methods.handle.act(Action::Preview(change)).await? {
            Outcome::Preview(preview) => *preview,
            other => {
                return Err(RpcError::new(
                    INTERNAL_ERROR,
                    format!("the engine answered a preview with {other:?}"),
                ));
            }
        };
    notes.extend(told);
    let rows = view.state.rows();
    let mut obstacles: Vec<Obstacle> = refusals
        .into_iter()
        .map(|refusal| Obstacle { message: format!("refused: {}", refusal.message), is_fatal: true })
        .collect();
    if look && obstacles.is_empty() {
        obstacles = self::obstacles(&view, changes.clone(), rows.clone(), permit).await?;
    }
    notes.extend(obstacles.iter().map(Obstacle::to_string));
    let told = |change: &RowChange| {
        let mut told = describe(change, &rows);
        if losses.iter().any(|loss| loss.kind == Kind::Data && told["object"] == *loss.object) {
            told["loses_data"] = true.into();
        }
        if told["change"] == "add"
            && told["object"].as_str().is_some_and(|key| made_up.contains(key))
            && let Some(fields) = told["fields"].as_array_mut()
        {
            // The identity of a new LUN is generated when the LUN is made, so the preview doesn't show it.
            fields.retain(|field| field["field"] != "uuid" && field["field"] != "nguid");
        }
        told
    };
    let kinds: BTreeSet<Kind> =
        losses.iter().map(|loss| loss.kind).filter(|kind| !permit.allows(*kind)).collect();
    let lost = losses.iter().map(|loss| {
        json!({ "kind": loss.kind.as_str(), "object": loss.object, "what": loss.what, "flag": loss.kind.flag() })
    });
    Ok(json!({
        "changes": changes.iter().map(told).collect::<Vec<_>>(),
        "losses": lost.collect::<Vec<_>>(),
        "needs": kinds.into_iter().map(Kind::flag).collect::<Vec<_>>(),
        "fails": look.then(|| obstacles.iter().any(|obstacle| obstacle.is_fatal)),
        "notes": notes,
    }))
}

/// Checks files, addresses and arrays on a thread that may block.
async fn obstacles(
    view: &View,
    changes: Vec<RowChange>,
    before: BTreeMap<String, Row>,
    permit: Permit,
) -> Result<Vec<Obstacle>, RpcError> {
    let own_files = view.own_files.clone();
    let mut next = before.clone();
    for change in &changes {
        match change {
            RowChange::Put(row) => drop(next.insert(row.key(), row.clone())),
            RowChange::Remove(key) => drop(next.remove(key)),
        }
    }
    let next = State::from_rows(next.into_values().collect());
    let memory = check_memory(&view.state, &next, &view.gateway);
    let look = move || of_changes(&changes, &before, &own_files, permit.delete_data);
    let looked = tokio::task::spawn_blocking(look).await;
    let mut found = looked.map_err(|e| RpcError::new(INTERNAL_ERROR, e.to_string()))?;
    found.extend(memory.err().map(|refusal| Obstacle { message: refusal.message, is_fatal: true }));
    Ok(found)
}
