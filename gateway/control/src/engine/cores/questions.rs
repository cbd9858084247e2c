//! Questions to cores. Each function sends a question and waits for the answer.

use super::{AttachBox, Cores, gone};
use crate::error::{Fault, Refusal};
use crate::loss::Links;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use trefoil_config::Address;
use trefoil_poll::CoreId;
use trefoil_storage::Msg;
use trefoil_storage::msg::Survey;
use trefoil_storage::stats::{LunRow, LunSurvey};
use trefoil_storage::topology::{BackendId, LunId, Topology};

/// Time after which an action fails because a core does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause before [`Cores::drained`] asks a core again about requests under way.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);
/// Most LUNs in one report of a core. Such a report takes the core some microseconds.
const LUN_ROWS: usize = 32;

impl Cores {
    /// Publishes a snapshot to every core, and waits until the snapshot is in force on all cores.
    ///
    /// # Errors
    /// A core doesn't answer.
    pub async fn publish(&self, topology: Arc<Topology>) -> Result<(), Refusal> {
        let mut waiting = Vec::new();
        for core in self.all() {
            let (tell, wait) = oneshot::channel();
            self.waits.borrow_mut().topology.insert((core, topology.epoch), tell);
            self.send(core, Msg::Topology(topology.clone())).await?;
            waiting.push((core, wait));
        }
        for (core, wait) in waiting {
            self.answer(core, wait).await?;
        }
        Ok(())
    }

    /// Gives a backend's channel to a core.
    ///
    /// # Errors
    /// The core has no room, or doesn't answer.
    pub async fn attach(&self, core: CoreId, attach: AttachBox) -> Result<(), Refusal> {
        let id = attach.id;
        let (tell, wait) = oneshot::channel();
        self.waits.borrow_mut().backends.insert((core, id), tell);
        self.send(core, Msg::Attach(id, attach)).await?;
        let refused =
            |_| Refusal::new(Fault::NoSpace, format!("core {} has no room for another backend", core.0));
        self.answer(core, wait).await?.map_err(refused)
    }

    /// Takes a backend's channel from a core after the channel's requests under way are done.
    ///
    /// # Errors
    /// The core doesn't answer.
    pub async fn detach(&self, core: CoreId, id: BackendId) -> Result<Option<AttachBox>, Refusal> {
        let (tell, wait) = oneshot::channel();
        self.waits.borrow_mut().backends.insert((core, id), tell);
        self.send(core, Msg::Detach(id)).await?;
        Ok(self.answer(core, wait).await?.err().flatten())
    }

    /// Returns the queue pairs that are connected to a core, up to `rows` of them.
    ///
    /// # Errors
    /// The core doesn't answer.
    pub async fn survey(&self, core: CoreId, rows: usize) -> Result<Box<Survey>, Refusal> {
        let (tell, wait) = oneshot::channel();
        let survey = Box::new(Survey { qpairs: Vec::with_capacity(rows), ..Survey::default() });
        let _one = self.surveying.lock().await;
        self.waits.borrow_mut().surveys.insert(core, tell);
        self.send(core, Msg::Survey(survey)).await?;
        self.answer(core, wait).await
    }

    /// Returns each pair of a connected host and its subsystem, with the addresses of the listeners that the pair's connections
    /// use. `listeners` maps a portal's number to the portal's address.
    ///
    /// # Errors
    /// A core doesn't answer.
    pub async fn links(&self, listeners: &BTreeMap<u32, Address>) -> Result<Links, Refusal> {
        let mut links = Links::new();
        for core in self.all() {
            let mut rows = 64;
            let survey = loop {
                let survey = self.survey(core, rows).await?;
                if survey.total <= rows {
                    break survey;
                }
                // More hosts may connect meanwhile.
                rows = survey.total * 2;
            };
            for row in &survey.qpairs {
                let link = (row.host_nqn.as_str().to_owned(), row.subsystem_nqn.as_str().to_owned());
                links.entry(link).or_default().extend(listeners.get(&row.portal.0.into()));
            }
        }
        Ok(links)
    }

    /// Passes the statistics of each LUN on a core to `tell`, row by row.
    ///
    /// # Errors
    /// The core doesn't answer.
    pub async fn lun_survey(&self, core: CoreId, mut tell: impl FnMut(&LunRow)) -> Result<(), Refusal> {
        let _one = self.surveying.lock().await;
        let mut survey = Box::new(LunSurvey { rows: Vec::with_capacity(LUN_ROWS), next: Some(0) });
        while survey.next.is_some() {
            let (told, wait) = oneshot::channel();
            self.waits.borrow_mut().lun_surveys.insert(core, told);
            self.send(core, Msg::LunSurvey(survey)).await?;
            survey = self.answer(core, wait).await?;
            survey.rows.drain(..).for_each(|row| tell(&row));
        }
        Ok(())
    }

    /// Waits until no host's request for `lun` is under way on any core. The caller has published a topology without `lun`, so
    /// no new requests start. A request at an array can stay under way until the array's loss timeout.
    ///
    /// # Errors
    /// A core doesn't answer.
    pub async fn drained(&self, lun: LunId) -> Result<(), Refusal> {
        for core in self.all() {
            loop {
                let (tell, wait) = oneshot::channel();
                self.waits.borrow_mut().under_way.insert((core, lun), tell);
                self.send(core, Msg::UnderWay { lun, requests: 0, from: 0 }).await?;
                if self.answer(core, wait).await? == 0 {
                    break;
                }
                tokio::time::sleep(DRAIN_PAUSE).await;
            }
        }
        Ok(())
    }

    async fn answer<T>(&self, core: CoreId, wait: oneshot::Receiver<T>) -> Result<T, Refusal> {
        match tokio::time::timeout(ANSWER_TIMEOUT, wait).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(gone(core)),
        }
    }
}
