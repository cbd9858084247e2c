//! Refused Connects: counts them, and reports them to control.
//!
//! Any host that reaches a listener can cause any number of refusals, so the cost of refusals must be bounded. There are a few
//! records for the details of refusals. A record that was sent to control comes back once control has told the operator of the
//! refusal. If no record is free, a refusal is only counted.

use super::queue::ConnAddrs;
use crate::msg::{ConnectRefusal, HostName, Refused};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use trefoil_wire::fabrics::{ConnectRejection, ConnectResponse};
use trefoil_wire::nvme::Status;

/// The most refusals that control can have at one time, half a KiB each.
pub const PLACES: usize = 8;

/// The refusals of one core; see the module.
pub struct Refusals {
    counts: [u64; ConnectRefusal::ALL.len()],
    #[expect(clippy::vec_box, reason = "each is sent as it is")]
    places: Vec<Box<Refused>>,
    /// Records that wait to be sent to control.
    told: VecDeque<Box<Refused>>,
}

impl Refusals {
    /// Returns counts of zero, and all records free.
    pub fn new() -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let place = Refused {
            host_nqn: HostName::new(""),
            subsystem_nqn: HostName::new(""),
            peer: nowhere,
            local: nowhere,
            why: ConnectRefusal::Other,
        };
        Self {
            counts: [0; ConnectRefusal::ALL.len()],
            places: (0..PLACES).map(|_| Box::new(place.clone())).collect(),
            told: VecDeque::with_capacity(PLACES),
        }
    }

    /// Returns the numbers of refusals, in [`ConnectRefusal`]'s order.
    pub fn counts(&self) -> [u64; ConnectRefusal::ALL.len()] {
        self.counts
    }

    /// Counts a refusal. If there is a free record, keeps the details for [`next`](Self::next) and returns true.
    pub fn add(
        &mut self,
        host_nqn: HostName,
        subsystem_nqn: HostName,
        at: ConnAddrs,
        why: ConnectRefusal,
    ) -> bool {
        self.counts[why as usize] += 1;
        let Some(mut told) = self.places.pop() else { return false };
        *told = Refused { host_nqn, subsystem_nqn, peer: at.peer, local: at.local, why };
        self.told.push_back(told);
        true
    }

    /// Returns the next record for control.
    pub fn next(&mut self) -> Option<Box<Refused>> {
        self.told.pop_front()
    }

    /// Takes back a record once control has told the operator of the refusal.
    pub fn give_back(&mut self, place: Box<Refused>) {
        // The vector has room for all records, so this push allocates nothing.
        self.places.push(place);
    }
}

/// Returns the reason for the refusal of a Connect with `response`. `forbidden` is the reason for which the topology does not
/// allow the Connect; the response to the host does not contain this reason.
pub fn reason(response: ConnectResponse, forbidden: Option<ConnectRefusal>) -> ConnectRefusal {
    match response {
        ConnectResponse::InvalidParameter(parameter) => match parameter {
            ConnectRejection::HOSTNQN => ConnectRefusal::HostNqn,
            ConnectRejection::HOSTID => ConnectRefusal::HostId,
            ConnectRejection::SUBNQN => forbidden.unwrap_or(ConnectRefusal::Subsystem),
            ConnectRejection::SQSIZE => ConnectRefusal::SqSize,
            ConnectRejection::CNTLID => ConnectRefusal::CntlId,
            ConnectRejection::QID => ConnectRefusal::Qid,
            _ => ConnectRefusal::Other,
        },
        ConnectResponse::Failed(status) => match status.code() {
            Status::CONNECT_INVALID_HOST => forbidden.unwrap_or(ConnectRefusal::OtherHost),
            Status::CONNECT_INCOMPATIBLE_FORMAT => ConnectRefusal::RecFmt,
            Status::CONNECT_CONTROLLER_BUSY => ConnectRefusal::Full,
            // A discovery controller has no I/O queues.
            Status::INVALID_QUEUE_ID | Status::INVALID_QUEUE_TYPE => ConnectRefusal::Qid,
            Status::COMMAND_SEQUENCE_ERROR => ConnectRefusal::Sequence,
            _ => ConnectRefusal::Other,
        },
        ConnectResponse::Connected { .. } => ConnectRefusal::Other,
    }
}
