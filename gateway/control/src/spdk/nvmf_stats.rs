//! The methods `nvmf_*_get_*`: the connected hosts and their queue pairs.

use super::nvmf::OneSubsystem;
use super::{TransportId, check_target};
use crate::error::{Fault, Refusal};
use crate::jsonrpc::RpcError;
use crate::methods::Methods;
use crate::methods::Reply;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use trefoil_poll::CoreId;
use trefoil_storage::msg::QpairRow;
use trefoil_wire::nvme::log::AnaState;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    #[serde(default)]
    tgt_name: Option<String>,
}

async fn check(methods: &Methods, p: &OneSubsystem) -> Result<(), RpcError> {
    check_target(p.tgt_name.as_deref())?;
    if methods.view().await?.state.listeners_of(&p.nqn).is_some() {
        return Ok(());
    }
    Err(Refusal::new(Fault::NotFound, format!("there is no subsystem `{}`", p.nqn)).into())
}

/// Returns the subsystem's queue pairs, each with its core.
async fn rows(methods: &Methods, p: &OneSubsystem) -> Result<Vec<(CoreId, QpairRow)>, RpcError> {
    check(methods, p).await?;
    let survey = methods.survey().await?;
    let all = survey.into_iter().flat_map(|(core, s)| s.qpairs.into_iter().map(move |row| (core, row)));
    Ok(all.filter(|(_, row)| row.subsystem_nqn.as_str() == p.nqn).collect())
}

pub(crate) async fn nvmf_subsystem_get_listeners(methods: &Methods, p: OneSubsystem) -> Reply {
    check(methods, &p).await?;
    let view = methods.view().await?;
    let namespaces = view.state.subsystems.get(&p.nqn).map(|subsystem| subsystem.namespaces.as_slice());
    let states = namespaces.unwrap_or_default().iter().map(|ns| {
        // The names are from SPDK's `spdk_nvme_ana_state`.
        let state = match view.access(view.luns.get(&ns.lun)).ana_state {
            AnaState::Optimized => "optimized",
            AnaState::NonOptimized => "non_optimized",
            AnaState::PersistentLoss => "persistent_loss",
            AnaState::Inaccessible | AnaState::Change | AnaState::Reserved(_) => "inaccessible",
        };
        json!({ "ana_group": ns.nsid, "ana_state": state })
    });
    let states: Value = states.collect();
    let listeners = view.state.listeners_of(&p.nqn).into_iter().flatten();
    let rows = listeners.map(|l| json!({ "address": TransportId::of(*l), "ana_states": states }));
    Ok(rows.collect())
}

pub(crate) async fn nvmf_subsystem_get_controllers(methods: &Methods, p: OneSubsystem) -> Reply {
    let rows = rows(methods, &p).await?;
    let mut controllers: BTreeMap<u16, (String, usize)> = BTreeMap::new();
    for (_, row) in &rows {
        let entry = controllers.entry(row.cntlid).or_insert_with(|| (row.host_nqn.as_str().into(), 0));
        entry.1 += usize::from(row.qid != 0);
    }
    let all = controllers.into_iter().map(
        |(cntlid, (host, qpairs))| json!({ "cntlid": cntlid, "hostnqn": host, "num_io_qpairs": qpairs }),
    );
    Ok(all.collect())
}

pub(crate) async fn nvmf_subsystem_get_qpairs(methods: &Methods, p: OneSubsystem) -> Reply {
    let rows = rows(methods, &p).await?;
    let view = methods.view().await?;
    let listeners = view.state.listeners_of(&p.nqn).cloned().unwrap_or_default();
    let all = rows.into_iter().map(|(core, row)| {
        // The portal's number in the row is internal to the engine, and can't be translated here. So the listener is known only
        // if the subsystem has just one.
        let listen = match listeners.as_slice() {
            [one] => Some(TransportId::of(*one)),
            _ => None,
        };
        json!({
            "cntlid": row.cntlid,
            "qid": row.qid,
            "state": "enabled",
            "hostnqn": row.host_nqn.as_str(),
            "thread": format!("core-{}", core.0),
            "listen_address": listen,
            "peer_address": TransportId::of(row.peer.into()),
            "queue_depth": row.depth,
        })
    });
    Ok(all.collect())
}

/// Returns one poll group for each core. The counters are those of the core's queue pairs, counted since each queue pair
/// connected.
pub(crate) async fn nvmf_get_stats(methods: &Methods, p: Target) -> Reply {
    check_target(p.tgt_name.as_deref())?;
    let survey = methods.survey().await?;
    let groups: Vec<Value> = survey
        .into_iter()
        .map(|(core, survey)| {
            let (admin, io): (Vec<_>, Vec<_>) = survey.qpairs.iter().partition(|row| row.qid == 0);
            json!({
                "name": format!("core-{}", core.0),
                "current_admin_qpairs": admin.len(),
                "current_io_qpairs": io.len(),
                "pending_bdev_io": io.iter().map(|row| u64::from(row.outstanding)).sum::<u64>(),
                "completed_nvme_io": io.iter().map(|row| row.commands).sum::<u64>(),
                "transports": [{ "trtype": "TCP" }],
            })
        })
        .collect();
    // Ticks are nanoseconds, as everywhere.
    Ok(json!({ "tick_rate": 1_000_000_000u64, "poll_groups": groups }))
}
