//! Changes by a document: the state that the document asks for, and what it can't change in place.

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

/// Moves `state` to the state that a document asks for. Losses on the way are judged apart: [`crate::loss`].
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

/// Returns the state after `change`, for comparison. Unlike [`plan`], it also accepts a document with changes that can't be
/// made in place. Each such change yields a refusal.
///
/// # Errors
/// The errors of [`plan`], except for those refusals.
pub fn preview(now: &State, gateway: &Gateway, change: &Change) -> Result<(State, Vec<Refusal>), Refusal> {
    let Change::Apply { config, .. } = change else { return Ok((plan(now, gateway, change)?, Vec::new())) };
    let next = wanted(now, gateway, config)?;
    check_whole(&next, gateway)?;
    let refusals = in_place(now, &next);
    Ok((next, refusals))
}

/// Returns the changes that a document can't make to existing objects, and what to do instead.
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
        // The new pool's layout would be written before the other changes are known to succeed, and while hosts still write
        // to the old data.
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
            // Deletion of the old LUN would delete the data of the LUN that has its identity.
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
