//! Log lines about refused hosts. The lines show which host can't connect, and why. The rate of the lines is limited, so a host
//! that tries all the time, or under many names, can't fill the log.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use trefoil_storage::msg::{ConnectRefusal, Refused};

/// After a line, no second line reports the same host, subsystem and reason for this time.
const QUIET: Duration = Duration::from_secs(60);
/// Most lines in [`BURST`], over all hosts.
const LINES: usize = 5;
const BURST: Duration = Duration::from_secs(1);

/// The subject of a line: the host's name (or its address if it gave no name), the subsystem, and the reason.
type Said = (String, String, ConnectRefusal);

/// The refusals that were logged in the last `QUIET`.
#[derive(Debug, Default)]
pub struct RefusedHosts {
    /// Oldest first. None is older than [`QUIET`], so there are at most [`LINES`] for each second of [`QUIET`].
    told: VecDeque<(Instant, Said)>,
    /// The number of refusals since the last line. None of them was logged.
    untold: u64,
}

impl RefusedHosts {
    /// Logs a refusal. Doesn't log it if the same refusal, or too many others, were logged recently.
    pub fn tell(&mut self, refused: &Refused) {
        let Some(untold) = self.admit(refused, Instant::now()) else { return };
        tracing::warn!(
            host = refused.host_nqn.as_str(),
            subsystem = refused.subsystem_nqn.as_str(),
            peer = %refused.peer,
            listener = %refused.local,
            why = reason(refused.why),
            untold,
            "a host's Connect was refused"
        );
    }

    /// Returns `None` if the refusal must not be logged. Otherwise returns the number of refusals since the last line that were
    /// not logged.
    fn admit(&mut self, refused: &Refused, now: Instant) -> Option<u64> {
        let host = match refused.host_nqn.as_str() {
            "" => refused.peer.ip().to_string(),
            name => name.to_owned(),
        };
        let said = (host, refused.subsystem_nqn.as_str().to_owned(), refused.why);
        let age = |at: Instant| now.saturating_duration_since(at);
        while self.told.pop_front_if(|(at, _)| age(*at) >= QUIET).is_some() {}
        let is_known = self.told.iter().any(|(_, earlier)| *earlier == said);
        let latest = self.told.iter().rev().take_while(|(at, _)| age(*at) < BURST).count();
        if is_known || latest >= LINES {
            self.untold += 1;
            return None;
        }
        self.told.push_back((now, said));
        Some(std::mem::take(&mut self.untold))
    }
}

fn reason(why: ConnectRefusal) -> &'static str {
    match why {
        ConnectRefusal::Host => {
            "the host is not on the subsystem's list: add it with `trefoil host add NQN HOST`"
        }
        ConnectRefusal::Subsystem => "there is no such subsystem: `trefoil subsystem list` shows all",
        ConnectRefusal::Listener => {
            "the subsystem is not offered on this listener: offer it with `trefoil subsystem add-listener NQN ADDRESS`"
        }
        ConnectRefusal::HostNqn => {
            "the command's HOSTNQN is invalid: up to 223 bytes of UTF-8 without control characters are valid"
        }
        ConnectRefusal::HostId => "the command's HOSTID is zero",
        ConnectRefusal::SqSize => "the command's SQSIZE is out of range",
        ConnectRefusal::RecFmt => "the command's RECFMT is not 0",
        ConnectRefusal::CntlId => "there is no controller with the command's CNTLID",
        ConnectRefusal::Qid => "the command's QID is in use, or larger than the controller granted",
        ConnectRefusal::OtherHost => "the controller belongs to another host: HOSTNQN or HOSTID differ",
        ConnectRefusal::Full => {
            "the gateway or the subsystem already has its most controllers (max_hosts, min_cntlid, max_cntlid)"
        }
        ConnectRefusal::Sequence => "the queue is already connected, or its controller is not enabled",
        ConnectRefusal::Other => "the command is malformed, or was aborted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_storage::msg::HostName;

    fn refused(host: &str) -> Refused {
        let at = "192.0.2.1:4420".parse().expect("an address");
        let (host_nqn, subsystem_nqn) = (HostName::new(host), HostName::new("nqn.2026-01.org.example:s"));
        Refused { host_nqn, subsystem_nqn, peer: at, local: at, why: ConnectRefusal::Host }
    }

    #[test]
    fn a_host_is_told_of_once_a_minute() {
        let mut hosts = RefusedHosts::default();
        let start = Instant::now();
        let mut at = |ms: u64, host: &str| hosts.admit(&refused(host), start + Duration::from_millis(ms));
        assert_eq!(at(0, "a"), Some(0));
        assert_eq!(at(1, "a"), None);
        assert_eq!(at(59_999, "a"), None);
        assert_eq!(at(59_999, "b"), Some(2));
        assert_eq!(at(60_000, "a"), Some(0));
        assert_eq!(at(60_001, "b"), None);
    }

    #[test]
    fn who_said_no_name_is_told_of_by_its_address() {
        let mut hosts = RefusedHosts::default();
        let nameless =
            |peer: &str, why| Refused { peer: peer.parse().expect("an address"), why, ..refused("") };
        let mut told = |peer: &str, why| hosts.admit(&nameless(peer, why), Instant::now()).is_some();
        assert!(told("192.0.2.1:1", ConnectRefusal::SqSize));
        assert!(!told("192.0.2.1:2", ConnectRefusal::SqSize));
        assert!(told("192.0.2.2:1", ConnectRefusal::SqSize));
        assert!(told("192.0.2.1:3", ConnectRefusal::HostId), "another reason is another line");
    }

    #[test]
    fn hosts_under_many_names_fill_neither_log_nor_memory() {
        let mut hosts = RefusedHosts::default();
        let start = Instant::now();
        // 100 refusals a second for five minutes.
        let told = |at: &u64| {
            let now = start + Duration::from_millis(at * 10);
            let told = hosts.admit(&refused(&format!("host-{at}")), now).is_some();
            assert!(hosts.told.len() <= 60 * LINES, "{}", hosts.told.len());
            told
        };
        let lines = (0..30_000u64).filter(told).count();
        assert_eq!(lines, 300 * LINES);
    }
}
