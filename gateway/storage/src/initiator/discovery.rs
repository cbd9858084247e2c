//! Reads a complete discovery log (NVMe base 2.0c §5.16.1.23): header, entries, header again. If the generation counter
//! changed meanwhile, reads the log again from the start.
//!
//! What it is not: it sends nothing. `controller` runs the commands. To read a discovery log, use [`super::Host`] with
//! [`super::Purpose::Discovery`].

use super::step::BringupStep;
use trefoil_wire::fabrics::discovery::{DiscoveryLog, LogEntry, LogHeader};

/// Entries in one 4 KiB block.
const ENTRIES_AT_ONCE: u64 = 4;

/// A discovery log, complete or being read.
pub struct LogReader {
    entries: Vec<LogEntry>,
    genctr: u64,
    numrec: u64,
    /// The next entry to read.
    at: u64,
    /// The header was read. The next header must have the same generation counter.
    begun: bool,
    complete: bool,
}

impl LogReader {
    /// Makes a reader with room for `entries` entries. The reader ignores further entries of a log.
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

    /// Returns the entries with valid names once the log is complete; empty until then.
    pub fn entries(&self) -> &[LogEntry] {
        if self.complete { &self.entries } else { &[] }
    }

    /// Returns the generation counter of the log.
    pub fn genctr(&self) -> u64 {
        self.genctr
    }

    pub(super) fn restart(&mut self) {
        self.entries.clear();
        self.at = 0;
        self.begun = false;
        self.complete = false;
    }

    /// Returns the offset and the length of the data that a step reads.
    pub(super) fn range(&self, step: BringupStep) -> (u64, u32) {
        match step {
            BringupStep::DiscoveryEntries => {
                let count = self.numrec.saturating_sub(self.at).clamp(1, ENTRIES_AT_ONCE);
                (LogHeader::LEN as u64 + self.at * LogEntry::LEN as u64, count as u32 * LogEntry::LEN as u32)
            }
            _ => (0, LogHeader::LEN as u32),
        }
    }

    /// Takes a step's data. Returns the next step, or `None` when the log is complete.
    pub(super) fn take(&mut self, step: BringupStep, data: &[u8]) -> Option<BringupStep> {
        if step == BringupStep::DiscoveryEntries {
            for bytes in data.as_chunks::<{ LogEntry::LEN }>().0 {
                self.at += 1;
                // An entry without a valid name is useless.
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
            return (!self.complete).then_some(BringupStep::DiscoveryEntries);
        }
        self.restart();
        self.begun = true;
        self.genctr = header.genctr;
        self.numrec = header.numrec.min(self.entries.capacity() as u64);
        Some(self.next())
    }

    fn next(&self) -> BringupStep {
        if self.at < self.numrec { BringupStep::DiscoveryEntries } else { BringupStep::DiscoveryHeader }
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
        assert_eq!(
            log.take(BringupStep::DiscoveryHeader, &header(7, 6)),
            Some(BringupStep::DiscoveryEntries)
        );
        assert_eq!(log.range(BringupStep::DiscoveryEntries), (1024, IDENTIFY_LEN as u32));
        assert_eq!(log.take(BringupStep::DiscoveryEntries, &entries(4)), Some(BringupStep::DiscoveryEntries));
        assert_eq!(log.range(BringupStep::DiscoveryEntries), (5120, 2048));
        assert_eq!(log.take(BringupStep::DiscoveryEntries, &entries(2)), Some(BringupStep::DiscoveryHeader));
        assert_eq!(
            log.take(BringupStep::DiscoveryHeader, &header(8, 1)),
            Some(BringupStep::DiscoveryEntries),
            "it changed"
        );
        assert!(log.entries().is_empty());
        assert_eq!(log.take(BringupStep::DiscoveryEntries, &entries(1)), Some(BringupStep::DiscoveryHeader));
        assert_eq!(log.take(BringupStep::DiscoveryHeader, &header(8, 1)), None);
        assert_eq!((log.entries().len(), log.genctr()), (1, 8));
    }

    #[test]
    fn a_log_that_claims_too_much_is_cut_to_the_room() {
        let mut log = LogReader::new(2);
        assert_eq!(
            log.take(BringupStep::DiscoveryHeader, &header(1, u64::MAX)),
            Some(BringupStep::DiscoveryEntries)
        );
        assert_eq!(log.take(BringupStep::DiscoveryEntries, &entries(2)), Some(BringupStep::DiscoveryHeader));
        assert_eq!(log.take(BringupStep::DiscoveryHeader, &header(1, u64::MAX)), None);
        assert_eq!(log.entries().len(), 2);
    }
}
