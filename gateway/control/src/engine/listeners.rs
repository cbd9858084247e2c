//! Opens and closes the listeners that the state asks for.

use super::Engine;
use super::portals::Portal;
use super::topology::full;
use crate::address::{is_v6_only, overlap};
use crate::error::Refusal;
use std::collections::{BTreeMap, BTreeSet};
use trefoil_config::{Address, MAX_PORTALS};
use trefoil_storage::topology::PortalId;

impl Engine {
    /// Returns all listeners, keyed by their numbers on the cores.
    pub(super) fn listeners(&self) -> BTreeMap<u32, Address> {
        self.numbers.portals.iter().map(|(listen, id)| (id, *listen)).collect()
    }

    /// Reopens each IPv6 wildcard listener that must now leave IPv4 to the IPv4 wildcard, or that must serve IPv4 again. The
    /// listener must be reopened because the choice can't be changed on a bound socket. If the reopening fails, the listener is
    /// down.
    pub(super) fn settle_wildcards(&mut self, wanted: &BTreeSet<Address>) {
        let turns = |at: &Address, portal: &Portal| {
            wanted.contains(at) && portal.v6_only() != is_v6_only(*at, wanted)
        };
        let turning: Vec<Address> =
            self.portals.iter().filter(|(at, portal)| turns(at, portal)).map(|(at, _)| *at).collect();
        for at in turning {
            // The listener keeps its number, so hosts see the same listener.
            let Some(id) = self.numbers.portals.get(&at) else { continue };
            self.portals.remove(&at);
            match Portal::open(at, is_v6_only(at, wanted), PortalId(id as u16), &self.placement) {
                Ok(mut portal) => {
                    portal.accept();
                    self.portals.insert(at, portal);
                }
                Err(error) => self.listener_is_down(at, error),
            }
        }
    }

    /// Opens the listener at `at`, which is in `wanted`, if it isn't open yet. Returns whether the listener is new. Hosts are
    /// accepted once the next topology is published.
    pub(super) fn listen(&mut self, at: Address, wanted: &BTreeSet<Address>) -> Result<bool, Refusal> {
        if self.portals.contains_key(&at) {
            return Ok(false);
        }
        let id = self.numbers.portals.give(&at, MAX_PORTALS).ok_or_else(|| full("listeners"))?;
        let opened = Portal::open(at, is_v6_only(at, wanted), PortalId(id as u16), &self.placement);
        let opened = opened.map(|portal| drop(self.portals.insert(at, portal)));
        // A listener that is down has no number, so no discovery log names it.
        self.numbers.portals.retain(|at| self.portals.contains_key(at));
        opened.map_err(|mut refusal| {
            if let Some(own) = self.portals.keys().find(|own| overlap(**own, at)) {
                refusal.message += &format!(": the gateway already listens on {own}");
            }
            refusal
        })?;
        self.down.remove(&format!("listener/{at}"));
        Ok(true)
    }

    /// Records that the listener is down, so that the engine retries it.
    pub(super) fn listener_is_down(&mut self, at: Address, error: Refusal) {
        let before = self.down.insert(format!("listener/{at}"), error.message.clone());
        if before.is_none_or(|before| before != error.message) {
            tracing::error!(%error, "a listener is down");
        }
    }

    /// Opens the listeners that are down, and returns whether one of them is open now.
    pub(super) async fn listen_again(&mut self) -> bool {
        let mut listens = false;
        let listeners = self.state.listeners();
        for &at in &listeners {
            match self.listen(at, &listeners) {
                Ok(true) => {
                    tracing::info!(listener = %at, "a listener that was down is up");
                    listens = true;
                }
                Ok(false) => {}
                Err(error) => self.listener_is_down(at, error),
            }
        }
        if listens && let Err(error) = self.publish().await {
            tracing::error!(%error, "objects that came up can't be shown to hosts");
        }
        listens
    }
}
