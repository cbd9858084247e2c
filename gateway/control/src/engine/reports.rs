//! The reports of backends: the backends' sizes, identities and access, and the reasons why I/O to a backend can't go on.
//!
//! Cores send the reports as events. The reports of a backend are kept until another backend gets its number.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;
use trefoil_storage::initiator::{ANOTHER_NAMESPACE, NamespaceIdentity};
use trefoil_storage::msg::Event;
use trefoil_storage::topology::{Access, BackendId};
use trefoil_wire::nvme::log::AnaState;
use uuid::Uuid;

/// A reason, in words.
pub type Why = Cow<'static, str>;

/// The properties that a backend reported. If the backend lacks an identity, the field is zero.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Told {
    len_bytes: u64,
    namespace: NamespaceIdentity,
    deallocates: bool,
}

/// The reason why I/O to a backend can't go on.
#[derive(Clone, PartialEq, Eq)]
struct Lost {
    why: Why,
    /// `true` if the backend reported that a retry is useless.
    is_final: bool,
}

/// The reports of all backends.
#[derive(Default)]
pub struct Reports {
    /// The properties that backends reported.
    told: RefCell<HashMap<BackendId, Told>>,
    /// Backends to which I/O can't go on.
    lost: RefCell<HashMap<BackendId, Lost>>,
    /// The access that backends give. A backend without an entry gives full access.
    access: RefCell<HashMap<BackendId, Access>>,
    /// Names of backends, for the log.
    names: RefCell<HashMap<BackendId, String>>,
    /// Notified with each event that changes `told` or `access`, or adds to `lost`.
    reached: tokio::sync::Notify,
}

impl Reports {
    /// Records the report in a backend's event. Logs only changes, so that the same cause is not logged at every retry.
    pub fn note(&self, event: &Event) {
        let names = self.names.borrow();
        let name = |id: &BackendId| names.get(id).map(String::as_str).unwrap_or_default();
        let is_back = |id: &BackendId| {
            if self.lost.borrow_mut().remove(id).is_some() {
                tracing::info!(backend = name(id), "backend back");
            }
        };
        let is_lost = |id: &BackendId, lost: Lost| {
            if self.lost.borrow_mut().insert(*id, lost.clone()).as_ref() != Some(&lost) {
                tracing::warn!(backend = name(id), why = &*lost.why, "backend lost");
            }
            self.reached.notify_waiters();
        };
        match event {
            Event::BackendInfo { backend, len_bytes, namespace, deallocates } => {
                let told = Told { len_bytes: *len_bytes, namespace: *namespace, deallocates: *deallocates };
                if self.told.borrow_mut().insert(*backend, told) != Some(told) {
                    let block_bytes = namespace.block_bytes;
                    tracing::info!(backend = name(backend), block_bytes, len_bytes, "backend reached");
                    if !deallocates {
                        tracing::info!(
                            backend = name(backend),
                            "TRIM frees no space on this backend: the array lacks Dataset Management, or does not promise that \
                             deallocated blocks read as zeros (DLFEAT)"
                        );
                    }
                }
                is_back(backend);
                self.reached.notify_waiters();
            }
            Event::BackendState { backend, usable: true, .. } => is_back(backend),
            Event::BackendState { backend, usable: false, why, is_final } => {
                is_lost(backend, Lost { why: Why::Borrowed(why), is_final: *is_final });
            }
            Event::BackendReplaced { backend, was, is } => {
                let why = format!(
                    "{ANOTHER_NAMESPACE}: the known namespace is {was}, and the new namespace is {is}"
                );
                is_lost(backend, Lost { why: why.into(), is_final: true });
            }
            Event::BackendAccess { backend, access } => {
                let before = self.access.borrow_mut().insert(*backend, *access);
                if before.unwrap_or(Access::FULL) != *access {
                    let Access { ana_state, read_only } = access;
                    tracing::warn!(backend = name(backend), ?ana_state, read_only, "backend access changed");
                }
                self.reached.notify_waiters();
            }
            Event::BackendResized { backend, len_bytes } => {
                tracing::info!(backend = name(backend), len_bytes, "backend resized");
            }
            Event::QpairUp { .. } | Event::QpairDown { .. } => {}
        }
    }

    /// Waits until a backend is reached, and returns the block size and the size in bytes that the backend reports. Returns
    /// `None` if `within` passes first. With `is_new`, also returns `None` if the backend reports that a retry is useless.
    pub async fn geometry(&self, id: BackendId, within: Duration, is_new: bool) -> Option<(u32, u64)> {
        let told = async {
            loop {
                let reached = self.reached.notified();
                let told = self.told_geometry(id);
                if told.is_some() || (is_new && self.is_refused(id)) {
                    return told;
                }
                reached.await;
            }
        };
        tokio::time::timeout(within, told).await.ok().flatten()
    }

    /// Returns whether a backend has reported that a retry is useless.
    pub fn is_refused(&self, id: BackendId) -> bool {
        self.lost.borrow().get(&id).is_some_and(|lost| lost.is_final)
    }

    /// Returns the block size and the size in bytes, if the backend has reported them already.
    pub fn told_geometry(&self, id: BackendId) -> Option<(u32, u64)> {
        self.told.borrow().get(&id).map(|told| (told.namespace.block_bytes, told.len_bytes))
    }

    /// Returns the array's namespace that answered as this backend. Returns `None` if no namespace has answered yet.
    pub fn namespace(&self, id: BackendId) -> Option<NamespaceIdentity> {
        self.told.borrow().get(&id).map(|told| told.namespace)
    }

    /// Returns the UUID and NGUID of a LUN that presents this whole backend, or `None` if the backend has neither. If the
    /// backend has only one of the two, the other is derived from the bytes of the first.
    pub fn identity(&self, id: BackendId) -> Option<(Uuid, String)> {
        let NamespaceIdentity { nguid, uuid, .. } = self.namespace(id)?;
        let known = |id: [u8; 16]| (id != [0; 16]).then_some(id);
        let (uuid, nguid) = (known(uuid), known(nguid));
        // An NGUID has no version bits as a UUID does. So the derived UUID gets version 8 (RFC 9562 §5.8).
        let derived = |nguid| uuid::Builder::from_custom_bytes(nguid).into_uuid();
        let own = uuid.map(Uuid::from_bytes).or(nguid.map(derived))?;
        Some((own, nguid.map_or(own, Uuid::from_bytes).simple().to_string()))
    }

    /// Gives number `id` to the backend `name`. Forgets all reports of the backend that had the number before.
    pub fn name_backend(&self, id: BackendId, name: &str) {
        self.told.borrow_mut().remove(&id);
        self.lost.borrow_mut().remove(&id);
        self.access.borrow_mut().remove(&id);
        self.names.borrow_mut().insert(id, name.into());
    }

    /// Returns `Ok` if I/O to a backend can go on. Otherwise returns the reason why it can't.
    pub fn usable(&self, id: BackendId) -> Result<(), Why> {
        if let Some(lost) = self.lost.borrow().get(&id) {
            return Err(lost.why.clone());
        }
        match self.access(id).ana_state {
            state if state.is_usable() => Ok(()),
            AnaState::PersistentLoss => Err("the array reports the ANA state Persistent Loss".into()),
            _ => Err("the array reports the ANA state Inaccessible".into()),
        }
    }

    /// Returns the access that a backend gives.
    pub fn access(&self, id: BackendId) -> Access {
        self.access.borrow().get(&id).copied().unwrap_or(Access::FULL)
    }

    /// Marks a backend as lost until the backend reports that it is back.
    pub fn set_lost(&self, id: BackendId, why: &'static str) {
        self.lost.borrow_mut().insert(id, Lost { why: Why::Borrowed(why), is_final: false });
    }
}
