//! Reading a discovery log whole (NVMe base 2.0c §5.16.1.23): header, entries, header again; if the
//! generation counter moved meanwhile, from the start.
//!
//! What it is not: it sends nothing; `controller` runs the commands, and [`super::Host`] with
//! [`super::Purpose::Discovery`] is the way to use it.

use super::bringup::Step;
use trefoil_wire::fabrics::discovery::{DiscoveryLog, LogEntry, LogHeader};

/// Entries in one 4 KiB block.
const ENTRIES_AT_ONCE: u64 = 4;

/// A log being read, or read.
pub struct LogReader {
    entries: Vec<LogEntry>,
    genctr: u64,
    numrec: u64,
    /// Next entry to read.
    at: u64,
    /// The header was read; the next one must agree.
    begun: bool,
    complete: bool,
}

impl LogReader {
    /// A reader with room for `entries` entries; what a log has beyond is left out.
    pub(super) fn new(entries: usize) -> Self {
        Self {
            entries: Vec::with_capacity(entries),
            genctr: 0,
            numrec: 0,
            at: 0,
            begun: false,
            complete: false,
        }
    }

    /// The entries with valid names, once the log was read whole; empty until then.
    pub fn entries(&self) -> &[LogEntry] {
        if self.complete { &self.entries } else { &[] }
    }

    /// Generation counter of the log that was read.
    pub fn genctr(&self) -> u64 {
        self.genctr
    }

    pub(super) fn restart(&mut self) {
        self.entries.clear();
        self.at = 0;
        self.begun = false;
        self.complete = false;
    }

    /// Offset and length of what a step reads.
    pub(super) fn range(&self, step: Step) -> (u64, u32) {
        match step {
            Step::DiscoveryEntries => {
                let count = self.numrec.saturating_sub(self.at).clamp(1, ENTRIES_AT_ONCE);
                (LogHeader::LEN as u64 + self.at * LogEntry::LEN as u64, count as u32 * LogEntry::LEN as u32)
            }
            _ => (0, LogHeader::LEN as u32),
        }
    }

    /// Takes a step's data; says what to read next, or `None` when the log is complete.
    pub(super) fn take(&mut self, step: Step, data: &[u8]) -> Option<Step> {
        if step == Step::DiscoveryEntries {
            for bytes in data.as_chunks::<{ LogEntry::LEN }>().0 {
                self.at += 1;
                // An entry without a valid name is of no use to anyone.
                if let Ok(entry) = LogEntry::parse(bytes)
                    && !entry.subnqn.is_empty()
                    && self.entries.len() < self.entries.capacity()
                {
                    self.entries.push(entry);
                }
            }
            return Some(self.next());
        }
        let header = DiscoveryLog::parse(data).map(|log| log.header).unwrap_or_default();
        if self.begun && header.genctr == self.genctr {
            self.complete = self.at >= self.numrec;
            return (!self.complete).then_some(Step::DiscoveryEntries);
        }
        self.restart();
        self.begun = true;
        self.genctr = header.genctr;
        self.numrec = header.numrec.min(self.entries.capacity() as u64);
        Some(self.next())
    }

    fn next(&self) -> Step {
        if self.at < self.numrec { Step::DiscoveryEntries } else { Step::DiscoveryHeader }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_wire::fabrics::Nqn;
    use trefoil_wire::nvme::identify::IDENTIFY_LEN;

    fn header(genctr: u64, numrec: u64) -> Vec<u8> {
        let mut bytes = [0; LogHeader::LEN];
        LogHeader { genctr, numrec, recfmt: 0 }.emit(&mut bytes);
        bytes.to_vec()
    }

    fn entries(count: usize) -> Vec<u8> {
        let mut entry = LogEntry::parse(&{
            let mut bytes = [0; 1024];
            Nqn::DISCOVERY.emit(bytes[256..512].as_mut_array().expect("256 bytes"));
            bytes
        })
        .expect("a name");
        (0..count)
            .flat_map(|at| {
                entry.portid = at as u16;
                let mut bytes = [0; 1024];
                entry.emit(&mut bytes);
                bytes
            })
            .collect()
    }

    #[test]
    fn a_log_that_changes_while_it_is_read_is_read_again() {
        let mut log = LogReader::new(16);
        assert_eq!(log.take(Step::DiscoveryHeader, &header(7, 6)), Some(Step::DiscoveryEntries));
        assert_eq!(log.range(Step::DiscoveryEntries), (1024, IDENTIFY_LEN as u32));
        assert_eq!(log.take(Step::DiscoveryEntries, &entries(4)), Some(Step::DiscoveryEntries));
        assert_eq!(log.range(Step::DiscoveryEntries), (5120, 2048));
        assert_eq!(log.take(Step::DiscoveryEntries, &entries(2)), Some(Step::DiscoveryHeader));
        assert_eq!(
            log.take(Step::DiscoveryHeader, &header(8, 1)),
            Some(Step::DiscoveryEntries),
            "it changed"
        );
        assert!(log.entries().is_empty());
        assert_eq!(log.take(Step::DiscoveryEntries, &entries(1)), Some(Step::DiscoveryHeader));
        assert_eq!(log.take(Step::DiscoveryHeader, &header(8, 1)), None);
        assert_eq!((log.entries().len(), log.genctr()), (1, 8));
    }

    #[test]
    fn a_log_that_claims_too_much_is_cut_to_the_room() {
        let mut log = LogReader::new(2);
        assert_eq!(log.take(Step::DiscoveryHeader, &header(1, u64::MAX)), Some(Step::DiscoveryEntries));
        assert_eq!(log.take(Step::DiscoveryEntries, &entries(2)), Some(Step::DiscoveryHeader));
        assert_eq!(log.take(Step::DiscoveryHeader, &header(1, u64::MAX)), None);
        assert_eq!(log.entries().len(), 2);
    }
}
