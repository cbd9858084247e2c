//! Queries: answered from the view that the engine published last, so that no query waits for a long change.

use super::cores::Cores;
use super::handle::{Asked, LunTotals, Outcome, Preview};
use super::view::View;
use crate::action::{Action, Phase};
use crate::error::{Fault, Refusal};
use crate::loss::losses;
use crate::notes::of_change;
use crate::plan::preview;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use trefoil_storage::topology::LunId;

/// Most rows of one core's survey.
const SURVEY_ROWS: usize = 4096;

/// Answers queries beside the engine.
pub(super) struct Queries {
    pub(super) cores: Rc<Cores>,
    pub(super) shown: watch::Receiver<Arc<View>>,
    pub(super) phase: watch::Receiver<Phase>,
}

impl Queries {
    /// Answers queries until all handles are gone.
    pub(super) async fn run(self, mut asks: mpsc::Receiver<Asked>) {
        while let Some((action, tell)) = asks.recv().await {
            let outcome = self.answer(action).await;
            // The client may not wait for the outcome any more.
            let _ = tell.send(outcome);
        }
    }

    async fn answer(&self, action: Action) -> Result<Outcome, Refusal> {
        action.check_phase(*self.phase.borrow())?;
        match action {
            Action::View => Ok(Outcome::View(Box::new(self.view()))),
            Action::Survey => {
                let mut rows = Vec::new();
                for core in self.cores.all() {
                    rows.push((core, self.cores.survey(core, SURVEY_ROWS).await?));
                }
                Ok(Outcome::Survey(rows))
            }
            Action::LunStats => Ok(Outcome::LunStats(self.lun_stats().await?)),
            Action::Preview(change) => {
                let view = self.shown.borrow().clone();
                let (next, refusals) = preview(&view.state, &view.gateway, &change)?;
                let links = self.cores.links(&view.listeners).await?;
                let losses = losses(&view.state, &next, &links);
                let notes = of_change(&change, &view.state, &next, &view.gateway);
                let changes = view.state.changes_to(&next);
                Ok(Outcome::Preview(Box::new(Preview { changes, losses, notes, refusals })))
            }
            other => Err(Refusal::new(Fault::Internal, format!("{other:?} is not a query"))),
        }
    }

    async fn lun_stats(&self) -> Result<BTreeMap<String, LunTotals>, Refusal> {
        let view = self.shown.borrow().clone();
        let mut by_id: BTreeMap<LunId, LunTotals> = BTreeMap::new();
        for core in self.cores.all() {
            self.cores
                .lun_survey(core, |row| {
                    let totals = by_id.entry(row.lun).or_default();
                    totals.stats.add(&row.stats);
                    totals.latency.add(&row.latency);
                })
                .await?;
        }
        // A LUN that was removed meanwhile has no name, and is left out. A LUN without I/O has no row, and gets empty
        // statistics.
        Ok(view
            .lun_ids
            .iter()
            .map(|(name, id)| (name.clone(), by_id.remove(id).unwrap_or_default()))
            .collect())
    }

    /// Returns the view that the engine published last, with fresh values for the fields that change without the engine.
    fn view(&self) -> View {
        let mut view = View::clone(&self.shown.borrow());
        view.phase = *self.phase.borrow();
        view.cores = self.cores.metrics().iter().map(|m| m.sample()).collect();
        for backend in view.backends.values_mut() {
            backend.usable = self.cores.reports.usable(backend.id);
            backend.access = self.cores.reports.access(backend.id);
        }
        view
    }
}
