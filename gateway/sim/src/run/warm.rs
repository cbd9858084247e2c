//! Each core's connection to itself, as the real control thread sets it up ([`trefoil_storage::warm`]).
//!
//! The module checks three things. A core sends itself no more bytes than its interval allows. Each core still sends requests at
//! the end of the run, in spite of all publications and restarts. The gateway does not take a core's connection to itself for a
//! host's connection.

use std::time::Duration;

use trefoil_poll::{CoreId, Instant};
use trefoil_storage::Msg;
use trefoil_storage::topology::PortalId;
use trefoil_storage::warm::WarmHost;
use trefoil_wire::fabrics::Nqn;

use super::Run;
use crate::net::{ConnId, Side};
use crate::world::Step;

/// Prefix of the NQNs under which cores connect to themselves.
pub(super) const WARM: &str = "nqn.2014-08.org.trefoil.sim:warm";
/// Interval between two requests of a core. A real gateway uses a shorter interval. In the simulator, each request costs ten
/// events.
const EVERY: Duration = Duration::from_millis(250);
/// The most bytes that one answer takes on the connection, and the most bytes that connecting takes.
const ANSWER_BYTES: u64 = 4096 + 128;
const CONNECT_BYTES: u64 = 2048;

/// A core's connection to itself, and the time at which it was made.
pub(super) type Warm = (ConnId, Instant);

impl Run {
    /// Connects each core to itself. The gateway has just started.
    pub(super) fn keep_warm(&mut self) {
        self.warm.clear();
        for core in 0..self.cores {
            let [(asks, peer), (answers, local)] = self.world.pair(self.gateway);
            self.warm.push((asks.conn, self.world.now()));
            let nqn = Nqn::new(&format!("{WARM}{core}")).expect("the simulator's NQNs are valid");
            let host = Box::new(WarmHost::new(nqn, [0xC0 + core as u8; 16], EVERY));
            let adopt =
                Msg::Adopt { socket: answers, portal: PortalId::OWN, local, peer, initialized: false };
            self.world.post(self.gateway, CoreId(core), adopt);
            self.world.post(self.gateway, CoreId(core), Msg::KeepWarm { socket: asks, to: local, host });
        }
    }

    /// Checks that no core has sent itself more bytes than connecting and one answer per interval take.
    pub(super) fn check_warm(&self) -> Option<String> {
        let now = self.world.now();
        self.warm.iter().enumerate().find_map(|(core, &(conn, since))| {
            let times = now.since(since).as_millis() / EVERY.as_millis() + 1;
            let (got, most) =
                (self.world.bytes_to(conn, Side::Client), CONNECT_BYTES + times as u64 * ANSWER_BYTES);
            (got > most).then(|| format!("core {core} answered itself {got} bytes, of {most} at most"))
        })
    }

    /// Checks that every core gets an answer from itself within two intervals.
    pub(super) fn check_still_warm(&mut self) -> Option<String> {
        let until = self.world.now() + 2 * EVERY;
        let answered = |run: &Self| -> Vec<_> {
            run.warm.iter().map(|&(conn, _)| run.world.bytes_to(conn, Side::Client)).collect()
        };
        let before = answered(self);
        while self.world.now() < until {
            match self.world.step() {
                Step::Accepted(_) | Step::Control(_) => self.on_control(),
                Step::Idle => break,
                Step::Ran | Step::Timer(_) => {}
            }
        }
        let cold = before.iter().zip(answered(self)).position(|(before, now)| now == *before);
        cold.map(|core| format!("core {core} no longer keeps itself warm"))
    }
}
