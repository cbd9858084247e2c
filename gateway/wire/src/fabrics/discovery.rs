//! The discovery log page, 70h: a header of 1024 bytes, then entries of 1024 (NVMe base 2.0c §5.16.1.23, figures 263 to
//! 267).

use super::{Nqn, NqnError};
use crate::bytes::{Ascii, Truncated};

/// Transport types.
#[allow(missing_docs)]
pub mod trtype {
    pub const RDMA: u8 = 1;
    pub const FC: u8 = 2;
    pub const TCP: u8 = 3;
    pub const LOOP: u8 = 254;
}

/// Address families.
#[allow(missing_docs)]
pub mod adrfam {
    pub const IPV4: u8 = 1;
    pub const IPV6: u8 = 2;
    pub const IB: u8 = 3;
    pub const FC: u8 = 4;
    pub const LOOP: u8 = 254;
}

/// Subsystem types.
#[allow(missing_docs)]
pub mod subtype {
    pub const DISCOVERY_REFERRAL: u8 = 1;
    pub const NVM: u8 = 2;
    pub const CURRENT_DISCOVERY: u8 = 3;
}

/// Bits of EFLAGS.
#[allow(missing_docs)]
pub mod eflags {
    pub const DUPLICATE_RETURNED_INFORMATION: u16 = 1 << 0;
    pub const PERSISTENT_CONNECTIONS: u16 = 1 << 1;
}

/// Bits of TREQ.
#[allow(missing_docs)]
pub mod treq {
    pub const SECURE_CHANNEL_NOT_SPECIFIED: u8 = 0;
    pub const SECURE_CHANNEL_REQUIRED: u8 = 1;
    pub const SECURE_CHANNEL_NOT_REQUIRED: u8 = 2;
    pub const SQ_FLOW_CONTROL_DISABLE: u8 = 1 << 2;
}

layout! {
    /// The log's header.
    pub struct LogHeader [1024] {
        /// Generation counter: changes with the log.
        genctr: u64 = 0,
        /// Number of entries.
        numrec: u64 = 8,
        /// Record format; 0.
        recfmt: u16 = 16,
    }
}

layout! {
    /// An entry with an unchecked name.
    pub struct EntryFields [1024] {
        /// Transport type.
        trtype: u8 = 0,
        /// Address family.
        adrfam: u8 = 1,
        /// Subsystem type.
        subtype: u8 = 2,
        /// Transport requirements.
        treq: u8 = 3,
        /// Port identifier.
        portid: u16 = 4,
        /// Controller identifier.
        cntlid: u16 = 6,
        /// Admin max SQ size.
        asqsz: u16 = 8,
        /// Entry flags.
        eflags: u16 = 10,
        /// Transport service identifier.
        trsvcid: Ascii<32> = 32,
        /// Subsystem NQN.
        subnqn: [u8; 256] = 256,
        /// Transport address.
        traddr: Ascii<256> = 512,
        /// Transport specific address subtype.
        tsas: [u8; 256] = 768,
    }
}

/// One entry of the log, 1024 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Transport type: see [`trtype`].
    pub trtype: u8,
    /// Address family: see [`adrfam`].
    pub adrfam: u8,
    /// Subsystem type: see [`subtype`].
    pub subtype: u8,
    /// Transport requirements: see [`treq`].
    pub treq: u8,
    /// Port identifier.
    pub portid: u16,
    /// Controller identifier; FFFFh under the dynamic model.
    pub cntlid: u16,
    /// Most entries of an admin submission queue: at least 32.
    pub asqsz: u16,
    /// Entry flags: see [`eflags`].
    pub eflags: u16,
    /// Transport service identifier: a TCP port as text.
    pub trsvcid: Ascii<32>,
    /// Subsystem.
    pub subnqn: Nqn,
    /// Transport address as text.
    pub traddr: Ascii<256>,
    /// SECTYPE, the first byte of TSAS for TCP: 0 none, 1 TLS 1.2, 2 TLS 1.3 (NVMe-oF TCP 1.0c figure 11).
    pub sectype: u8,
}

impl LogEntry {
    /// Size in bytes.
    pub const LEN: usize = 1024;

    /// Reads an entry and checks its name.
    pub fn parse(bytes: &[u8; 1024]) -> Result<Self, NqnError> {
        let fields = EntryFields::parse(bytes);
        Ok(Self {
            trtype: fields.trtype,
            adrfam: fields.adrfam,
            subtype: fields.subtype,
            treq: fields.treq,
            portid: fields.portid,
            cntlid: fields.cntlid,
            asqsz: fields.asqsz,
            eflags: fields.eflags,
            trsvcid: fields.trsvcid,
            subnqn: Nqn::parse(&fields.subnqn)?,
            traddr: fields.traddr,
            sectype: fields.tsas[0],
        })
    }

    /// Writes every byte.
    pub fn emit(&self, bytes: &mut [u8; 1024]) {
        let mut tsas = [0; 256];
        tsas[0] = self.sectype;
        EntryFields {
            trtype: self.trtype,
            adrfam: self.adrfam,
            subtype: self.subtype,
            treq: self.treq,
            portid: self.portid,
            cntlid: self.cntlid,
            asqsz: self.asqsz,
            eflags: self.eflags,
            trsvcid: self.trsvcid,
            subnqn: self.subnqn.field(),
            traddr: self.traddr,
            tsas,
        }
        .emit(bytes);
    }
}

/// A view of a received log page: the header, then whole entries.
#[derive(Clone, Copy, Debug)]
pub struct DiscoveryLog<'a> {
    /// The header.
    pub header: LogHeader,
    entries: &'a [u8],
}

impl<'a> DiscoveryLog<'a> {
    /// Returns the size in bytes of a log of `entries` entries.
    pub const fn len_bytes(entries: usize) -> usize {
        LogHeader::LEN + entries * LogEntry::LEN
    }

    /// Reads the header. The buffer may hold fewer entries than NUMREC.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Truncated> {
        match bytes.split_first_chunk() {
            Some((header, entries)) => Ok(Self { header: LogHeader::parse(header), entries }),
            None => Err(Truncated {
                what: "discovery log header",
                need_bytes: LogHeader::LEN,
                have_bytes: bytes.len(),
            }),
        }
    }

    /// Returns the entries that the buffer holds completely, at most NUMREC. An entry with an invalid name is returned as
    /// an error.
    pub fn entries(&self) -> impl Iterator<Item = Result<LogEntry, NqnError>> + use<'a> {
        let count = usize::try_from(self.header.numrec).unwrap_or(usize::MAX);
        self.entries.as_chunks::<1024>().0.iter().take(count).map(LogEntry::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> LogEntry {
        LogEntry {
            trtype: trtype::TCP,
            adrfam: adrfam::IPV4,
            subtype: subtype::NVM,
            treq: treq::SQ_FLOW_CONTROL_DISABLE,
            portid: 1,
            cntlid: 0xffff,
            asqsz: 32,
            eflags: eflags::PERSISTENT_CONNECTIONS,
            trsvcid: Ascii::new("4420").unwrap(),
            subnqn: Nqn::new("nqn.2026-01.org.example:a").unwrap(),
            traddr: Ascii::new("192.0.2.1").unwrap(),
            sectype: 2,
        }
    }

    fn golden() -> [u8; 1024] {
        crate::golden::bytes(&[
            (0, &[3, 1, 2, 4, 1, 0, 0xff, 0xff, 32, 0, 2]),
            (32, &[b' '; 32]),
            (32, b"4420"),
            (256, b"nqn.2026-01.org.example:a"),
            (512, &[b' '; 256]),
            (512, b"192.0.2.1"),
            (768, &[2]),
        ])
    }

    #[test]
    fn entry_golden() {
        crate::golden::assert_emits(&golden(), |bytes| entry().emit(bytes));
        assert_eq!(LogEntry::parse(&golden()), Ok(entry()));
    }

    #[test]
    fn log_yields_whole_entries_up_to_numrec() {
        let header: [u8; 1024] = crate::golden::bytes(&[(0, &[9, 0, 0, 0, 0, 0, 0, 0, 3])]);
        let mut log = [header, golden(), golden()].concat();
        crate::golden::assert_emits(&header, |bytes| {
            LogHeader { genctr: 9, numrec: 3, recfmt: 0 }.emit(bytes)
        });
        assert_eq!(log.len(), DiscoveryLog::len_bytes(2));
        log.push(0);
        let parsed = DiscoveryLog::parse(&log).unwrap();
        assert_eq!(parsed.header.genctr, 9);
        assert!(parsed.entries().eq([Ok(entry()), Ok(entry())]));
        log[8] = 1;
        assert_eq!(DiscoveryLog::parse(&log).unwrap().entries().count(), 1);
        log[1024 + 256] = 7;
        assert_eq!(
            DiscoveryLog::parse(&log).unwrap().entries().next(),
            Some(Err(NqnError::NotText { at: 0 }))
        );
        assert!(DiscoveryLog::parse(&log[..1023]).is_err());
    }
}
