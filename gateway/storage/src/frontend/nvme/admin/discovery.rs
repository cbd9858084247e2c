//! The discovery log, created for each host that asks for it (NVMe base 2.0c §5.16.1.23, §3.1.2.3).
//!
//! The log lists the subsystems to which the host may connect through the portal that the host uses. Each subsystem is listed
//! with all its portals, so that the host finds every path. At a portal of the discovery subsystem, the log begins with the
//! portals of the discovery subsystem, and lists every subsystem to which the host may connect. For a portal that is bound to a
//! wildcard, the log lists the local address that the host used. Hosts of the other address family don't see such a portal,
//! since no local address of their family is known.

use super::log::Window;
use crate::frontend::limits::MAX_QUEUE_ENTRIES;
use crate::frontend::nvme::engine::Engine;
use crate::frontend::nvme::queue::ConnAddrs;
use crate::topology::{PortalId, Subsystem};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use trefoil_wire::Ascii;
use trefoil_wire::fabrics::discovery::{LogEntry, LogHeader, adrfam, eflags, subtype, treq, trtype};
use trefoil_wire::fabrics::{DYNAMIC_CNTLID, Nqn};

impl Engine {
    pub(super) fn put_discovery(&self, queue: u32, window: &mut Window<'_>) {
        let place = self.places[queue as usize];
        let host = self.names[queue as usize].hostnqn.as_str();
        let own = &self.topology.discovery;
        let is_own = own.contains(&place.portal);
        let offered = || {
            let at = move |&portal: &PortalId| Some((portal, self.address(portal, &place)?));
            let own = own.iter().filter(move |_| is_own).filter_map(at).map(|at| (None, at));
            let subsystems = self.topology.subsystems.iter();
            let here = move |s: &Subsystem| is_own || s.portals.contains(&place.portal);
            let open = subsystems.filter(move |s| here(s) && s.hosts.contains(host));
            own.chain(open.flat_map(move |s| s.portals.iter().filter_map(at).map(move |at| (Some(s), at))))
        };
        let mut header = [0; LogHeader::LEN];
        let numrec = offered().count() as u64;
        LogHeader { genctr: self.discovery_generation, numrec, recfmt: 0 }.emit(&mut header);
        window.put(&header);
        for (subsystem, (portal, address)) in offered() {
            if !window.wants(LogEntry::LEN) {
                window.skip(LogEntry::LEN);
                continue;
            }
            let mut bytes = [0; LogEntry::LEN];
            if let Some(entry) = entry(subsystem, portal, address) {
                entry.emit(&mut bytes);
            }
            window.put(&bytes);
        }
    }

    /// Returns the address at which this host can reach a portal.
    fn address(&self, portal: PortalId, place: &ConnAddrs) -> Option<SocketAddr> {
        let listen = self.topology.portals.get(usize::from(portal.0))?.as_ref()?.listen;
        if !listen.ip().is_unspecified() {
            return Some(listen);
        }
        // A dual-stack socket reports an IPv4 host with an IPv4-mapped IPv6 address.
        let local = place.local.ip().to_canonical();
        let same_family = listen.is_ipv6() || local.is_ipv4();
        (same_family && !local.is_unspecified()).then_some(SocketAddr::new(local, listen.port()))
    }
}

/// Returns the entry of a portal of `subsystem`, or of the discovery subsystem for `None`. Returns `None` only for a name that
/// control refuses anyway.
fn entry(subsystem: Option<&Subsystem>, portal: PortalId, address: SocketAddr) -> Option<LogEntry> {
    let mut text = Text::EMPTY;
    // The text has no scope ID: a host can't use the name of our interface.
    write!(text, "{}", address.ip()).ok()?;
    let mut port = Text::EMPTY;
    write!(port, "{}", address.port()).ok()?;
    Some(LogEntry {
        trtype: trtype::TCP,
        adrfam: match address.ip() {
            IpAddr::V4(_) => adrfam::IPV4,
            IpAddr::V6(_) => adrfam::IPV6,
        },
        subtype: if subsystem.is_some() { subtype::NVM } else { subtype::CURRENT_DISCOVERY },
        // Linux's target reports the same bits. For "not required" together with the flow control bit, nvme-cli prints
        // "unrecognized".
        treq: treq::SECURE_CHANNEL_NOT_SPECIFIED | treq::SQ_FLOW_CONTROL_DISABLE,
        portid: portal.0,
        cntlid: DYNAMIC_CNTLID,
        asqsz: MAX_QUEUE_ENTRIES,
        eflags: match subsystem {
            Some(_) => 0,
            // All discovery portals return the same log.
            None => eflags::PERSISTENT_CONNECTIONS | eflags::DUPLICATE_RETURNED_INFORMATION,
        },
        trsvcid: Ascii::new(port.as_str()).ok()?,
        subnqn: subsystem.map_or(Ok(Nqn::DISCOVERY), |subsystem| Nqn::new(&subsystem.nqn)).ok()?,
        traddr: Ascii::new(text.as_str()).ok()?,
        sectype: 0,
    })
}

/// A short text that needs no allocation. The longest address has 45 characters.
struct Text {
    bytes: [u8; 64],
    len: usize,
}

impl Text {
    const EMPTY: Self = Self { bytes: [0; 64], len: 0 };

    fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
