//! Changes by a document: computes the state that the document asks for, and refuses changes that can't be made in place.

use super::storage::unused_backend;
use super::{check_whole, plan, refuse};
use crate::action::Change;
use crate::error::{Fault, Refusal};
use crate::state::State;
use trefoil_config::{Config, Gateway, Lun};

/// Returns the state that a document asks for.
fn wanted(now: &State, gateway: &Gateway, config: &Config) -> Result<State, Refusal> {
    let config = Config { gateway: gateway.clone(), ..config.clone() };
    match config.check().into_iter().next() {
        Some(problem) => refuse(Fault::Invalid, problem.to_string()),
        None => Ok(State::from_config(&config, now)),
    }
}

/// Changes `state` to the state that a document asks for. Losses are not checked here: see [`crate::loss`].
pub(super) fn document(state: &mut State, gateway: &Gateway, config: &Config) -> Result<(), Refusal> {
    let next = wanted(state, gateway, config)?;
    match in_place(state, &next).into_iter().next() {
        Some(refusal) => Err(refusal),
        None => {
            *state = next;
            Ok(())
        }
    }
}

/// Returns the state after `change`, for comparison. Unlike [`plan`], this function also accepts a document with changes that
/// can't be made in place. The function returns a refusal for each such change.
///
/// # Errors
/// The errors of [`plan`], except for changes that can't be made in place.
pub fn preview(now: &State, gateway: &Gateway, change: &Change) -> Result<(State, Vec<Refusal>), Refusal> {
    let Change::Apply { config, .. } = change else { return Ok((plan(now, gateway, change)?, Vec::new())) };
    let next = wanted(now, gateway, config)?;
    check_whole(&next, gateway)?;
    let refusals = in_place(now, &next);
    Ok((next, refusals))
}

/// Returns a refusal for each change that a document can't make to an existing object. The refusal says what the user can do
/// instead.
fn in_place(now: &State, next: &State) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut refuse = |fault, what: String| refusals.push(Refusal::new(fault, what));
    let backends =
        now.backends.iter().filter(|(name, old)| next.backends.get(*name).is_some_and(|new| new != *old));
    for (name, _) in backends {
        refuse(Fault::Invalid, format!("backend `{name}` can't be changed in place: give it a new name"));
    }
    let pools = now.pools.iter().filter(|(name, old)| next.pools.get(*name).is_some_and(|new| new != *old));
    for (name, _) in pools {
        refuse(Fault::Invalid, format!("pool `{name}` can't be changed in place: give it a new name"));
    }
    for pool in next.pools.values().filter(|pool| !now.pools.contains_key(&pool.name)) {
        // The new pool's layout would be written while hosts still write to the old data, and before the other changes are
        // known to succeed.
        for in_use in pool.backends.iter().filter_map(|backend| unused_backend(now, backend).err()) {
            let what =
                format!("pool `{}`: {}; apply a document without that use first", pool.name, in_use.message);
            refuse(in_use.fault, what);
        }
    }
    for (name, lun) in &now.luns {
        match next.luns.get(name) {
            Some(new) if new.size < lun.size => refuse(Fault::Invalid, shrinks(lun, new)),
            Some(new) if (Lun { size: lun.size, read_only: lun.read_only, ..new.clone() }) != *lun => {
                refuse(
                    Fault::Invalid,
                    format!("LUN `{name}`: only `size` and `read_only` can change in place"),
                );
            }
            Some(_) => {}
            // The new LUN has the old LUN's identity. So the deletion of the old LUN would delete the data of the new LUN.
            None => {
                let twin = next.luns.values().find(|new| lun.pool.is_some() && new.uuid == lun.uuid);
                if let Some(twin) = twin {
                    let twin = &twin.name;
                    refuse(
                        Fault::Invalid,
                        format!(
                            "LUN `{twin}` has the identity of LUN `{name}`: a pool's LUN can't be renamed or moved"
                        ),
                    );
                }
            }
        }
    }
    refusals
}

fn shrinks(lun: &Lun, new: &Lun) -> String {
    let name = &lun.name;
    match (lun.size, new.size) {
        (Some(has), Some(asked)) => {
            format!(
                "LUN `{name}` has {has} and can't shrink to {asked}: write `size = \"{has}\"`, or delete the LUN first"
            )
        }
        _ => format!("LUN `{name}` can't shrink"),
    }
}
