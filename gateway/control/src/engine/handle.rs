//! The handle: other tasks use it to ask the engine. Changes wait in a queue. Queries have a queue of their own, so they don't
//! wait for changes.

use super::view::View;
use crate::action::{Action, Change, Phase};
use crate::error::{Fault, Refusal};
use crate::loss::Loss;
use crate::state::RowChange;
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot, watch};
use trefoil_poll::CoreId;
use trefoil_storage::msg::Survey;
use trefoil_storage::stats::{Latency, LunStats};

/// The effects that a change would have.
#[derive(Debug)]
pub struct Preview {
    /// The rows that the change would store.
    pub changes: Vec<RowChange>,
    /// All losses, both those that the change permits and those that it doesn't.
    pub losses: Vec<Loss>,
    /// The notes that the change would cause.
    pub notes: Vec<String>,
    /// The reasons for which the change would be refused.
    pub refusals: Vec<Refusal>,
}

/// The outcome of an action.
#[derive(Debug)]
pub enum Outcome {
    /// The change is stored and in force.
    Changed(Box<View>),
    /// The effects of a change that was not carried out.
    Preview(Box<Preview>),
    /// The state, and the engine's knowledge about the state's objects.
    View(Box<View>),
    /// The connected queue pairs, core by core.
    Survey(Vec<(CoreId, Box<Survey>)>),
    /// The statistics of each LUN in service, by the LUN's name.
    LunStats(BTreeMap<String, LunTotals>),
    /// The stop has begun.
    Stopping,
}

/// The statistics of a LUN, over all cores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LunTotals {
    /// Counters of commands.
    pub stats: LunStats,
    /// Latencies of all commands.
    pub latency: Latency,
}

/// An action, and the sender for its outcome.
pub(super) type Asked = (Action, oneshot::Sender<Result<Outcome, Refusal>>);

/// The engine's end of a handle.
pub struct Queue {
    /// The actions that the engine carries out one after another.
    pub(super) asks: mpsc::Receiver<Asked>,
    /// The queries, which are answered while a change runs.
    pub(super) queries: mpsc::Receiver<Asked>,
    /// `true` after a client has asked for a stop.
    pub(super) hurried: watch::Receiver<bool>,
}

/// Sends actions to the engine. A clone sends to the same engine.
#[derive(Clone, Debug)]
pub struct Handle {
    asks: mpsc::Sender<Asked>,
    queries: mpsc::Sender<Asked>,
    hurry: watch::Sender<bool>,
    phase: watch::Receiver<Phase>,
}

impl Handle {
    /// Makes a handle, and the engine's end of the handle.
    pub(super) fn new(phase: watch::Receiver<Phase>) -> (Self, Queue) {
        let (asks, asked) = mpsc::channel(64);
        let (queries, queried) = mpsc::channel(64);
        let (hurry, hurried) = watch::channel(false);
        (Self { asks, queries, hurry, phase }, Queue { asks: asked, queries: queried, hurried })
    }

    /// Sends an action, and waits for its outcome. A change waits until all earlier changes are done.
    ///
    /// # Errors
    /// The action was refused or failed, or the gateway has stopped.
    pub async fn act(&self, action: Action) -> Result<Outcome, Refusal> {
        let gone = || Refusal::new(Fault::WrongState, "the gateway has stopped");
        let (tell, wait) = oneshot::channel();
        let to = if action.is_query() { &self.queries } else { &self.asks };
        if matches!(action, Action::Shutdown) {
            self.hurry.send_replace(true);
        }
        to.send((action, tell)).await.map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }

    /// Returns the state, and the engine's knowledge about the state's objects.
    ///
    /// # Errors
    /// The gateway has stopped.
    pub async fn view(&self) -> Result<View, Refusal> {
        match self.act(Action::View).await? {
            Outcome::View(view) => Ok(*view),
            other => Err(Refusal::new(Fault::Internal, format!("the engine answered a view with {other:?}"))),
        }
    }

    /// Returns the statistics of each LUN in service, by the LUN's name.
    ///
    /// # Errors
    /// The gateway has stopped, or a core doesn't answer.
    pub async fn lun_stats(&self) -> Result<BTreeMap<String, LunTotals>, Refusal> {
        match self.act(Action::LunStats).await? {
            Outcome::LunStats(luns) => Ok(luns),
            other => Err(Refusal::new(
                Fault::Internal,
                format!("the engine answered LUN statistics with {other:?}"),
            )),
        }
    }

    /// Carries a change out.
    ///
    /// # Errors
    /// The change was refused or failed.
    pub async fn change(&self, change: Change) -> Result<View, Refusal> {
        match self.act(Action::Change(change)).await? {
            Outcome::Changed(view) => Ok(*view),
            other => {
                Err(Refusal::new(Fault::Internal, format!("the engine answered a change with {other:?}")))
            }
        }
    }

    /// Returns the phase of the gateway.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Makes a handle without an engine.
    #[cfg(test)]
    pub(crate) fn dangling() -> Self {
        Self::new(watch::channel(Phase::Stopping).1).0
    }

    /// Waits until the gateway is asked to stop.
    pub async fn stopping(&mut self) {
        // An error means that the engine has ended, which is treated as a stop.
        let _ = self.phase.wait_for(|phase| *phase == Phase::Stopping).await;
    }
}
