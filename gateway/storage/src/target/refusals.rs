//! Connects that are refused because of who asks for what: counted, and told to control.
//!
//! Anyone who reaches a listener can have as many refused as they like, so what they cost is bounded: a refusal is told only
//! if one of a few places is here, each of which is away until control has told the operator of it. All are counted.

use super::engine::Place;
use crate::cx::Cx;
use crate::msg::{Forbidden, HostName, Msg, Refused, StorageIo};
use std::net::{Ipv4Addr, SocketAddr};
use trefoil_wire::fabrics::ConnectData;

/// Refusals that control can have at a time, half a KiB each.
const PLACES: usize = 8;

/// See the module.
pub struct Refusals {
    counts: [u64; Forbidden::ALL.len()],
    #[expect(clippy::vec_box, reason = "each is sent as it is")]
    places: Vec<Box<Refused>>,
}

impl Refusals {
    /// None yet.
    pub fn new() -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let place = Refused {
            host_nqn: HostName::new(""),
            subsystem_nqn: HostName::new(""),
            peer: nowhere,
            local: nowhere,
            why: Forbidden::Host,
        };
        Self {
            counts: [0; Forbidden::ALL.len()],
            places: (0..PLACES).map(|_| Box::new(place.clone())).collect(),
        }
    }

    /// How many there were, by [`Forbidden`]'s order.
    pub fn counts(&self) -> [u64; Forbidden::ALL.len()] {
        self.counts
    }

    /// Counts one, and tells control of it if a place is here.
    pub fn add<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, data: &ConnectData, at: Place, why: Forbidden) {
        self.counts[why as usize] += 1;
        let Some(mut told) = self.places.pop() else { return };
        *told = Refused {
            host_nqn: HostName::new(data.hostnqn.as_str()),
            subsystem_nqn: HostName::new(data.subnqn.as_str()),
            peer: at.peer,
            local: at.local,
            why,
        };
        cx.io.post_control(Msg::Refused(told));
    }

    /// Control has told of one.
    pub fn give_back(&mut self, place: Box<Refused>) {
        // There are no more than there were, so that this allocates nothing.
        self.places.push(place);
    }
}
