//! The way to the engine: changes stand in line for it, and queries are answered beside it.

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

/// What a change would do.
#[derive(Debug)]
pub struct Preview {
    /// The rows that it would store.
    pub changes: Vec<RowChange>,
    /// What would be lost, whether allowed or not.
    pub losses: Vec<Loss>,
    /// As after the change.
    pub notes: Vec<String>,
    /// What it is refused for, although it can be told what it asks for.
    pub refusals: Vec<Refusal>,
}

/// What came of an action.
#[derive(Debug)]
pub enum Outcome {
    /// The change is stored and in force.
    Changed(Box<View>),
    /// A change that was not carried out.
    Preview(Box<Preview>),
    /// What there is.
    View(Box<View>),
    /// What is connected, core by core.
    Survey(Vec<(CoreId, Box<Survey>)>),
    /// What hosts did with each LUN that is served, by name.
    LunStats(BTreeMap<String, LunTotals>),
    /// The stop has begun.
    Stopping,
}

/// What hosts did with a LUN, on all cores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LunTotals {
    /// Counts.
    pub stats: LunStats,
    /// Latencies of all commands.
    pub latency: Latency,
}

/// An action, and who waits for its outcome.
pub(super) type Asked = (Action, oneshot::Sender<Result<Outcome, Refusal>>);

/// The engine's end.
pub struct Queue {
    /// What the engine does, one after another.
    pub(super) asks: mpsc::Receiver<Asked>,
    /// What is answered meanwhile.
    pub(super) queries: mpsc::Receiver<Asked>,
    /// Whether a stop was asked for.
    pub(super) hurried: watch::Receiver<bool>,
}

/// A way to ask the engine. Cloning gives another.
#[derive(Clone, Debug)]
pub struct Handle {
    asks: mpsc::Sender<Asked>,
    queries: mpsc::Sender<Asked>,
    hurry: watch::Sender<bool>,
    phase: watch::Receiver<Phase>,
}

impl Handle {
    /// A handle, and its other end.
    pub(super) fn new(phase: watch::Receiver<Phase>) -> (Self, Queue) {
        let (asks, asked) = mpsc::channel(64);
        let (queries, queried) = mpsc::channel(64);
        let (hurry, hurried) = watch::channel(false);
        (Self { asks, queries, hurry, phase }, Queue { asks: asked, queries: queried, hurried })
    }

    /// Asks, and waits for the outcome. A change waits for the one before it.
    ///
    /// # Errors
    /// Why it was refused or failed.
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

    /// The state, and what is known about its parts.
    ///
    /// # Errors
    /// The gateway has stopped.
    pub async fn view(&self) -> Result<View, Refusal> {
        match self.act(Action::View).await? {
            Outcome::View(view) => Ok(*view),
            other => Err(Refusal::new(Fault::Internal, format!("a view gave {other:?}"))),
        }
    }

    /// What hosts did with each LUN that is served, by name.
    ///
    /// # Errors
    /// The gateway has stopped, or a core doesn't answer.
    pub async fn lun_stats(&self) -> Result<BTreeMap<String, LunTotals>, Refusal> {
        match self.act(Action::LunStats).await? {
            Outcome::LunStats(luns) => Ok(luns),
            other => Err(Refusal::new(Fault::Internal, format!("LUN statistics gave {other:?}"))),
        }
    }

    /// Carries a change out.
    ///
    /// # Errors
    /// Why it was refused or failed.
    pub async fn change(&self, change: Change) -> Result<View, Refusal> {
        match self.act(Action::Change(change)).await? {
            Outcome::Changed(view) => Ok(*view),
            other => Err(Refusal::new(Fault::Internal, format!("a change gave {other:?}"))),
        }
    }

    /// Where the gateway is in its life.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// A handle behind which nobody is.
    #[cfg(test)]
    pub(crate) fn dangling() -> Self {
        Self::new(watch::channel(Phase::Stopping).1).0
    }

    /// Waits until the gateway is asked to stop.
    pub async fn stopping(&mut self) {
        // An error means that the engine is gone, which is the same.
        let _ = self.phase.wait_for(|phase| *phase == Phase::Stopping).await;
    }
}
