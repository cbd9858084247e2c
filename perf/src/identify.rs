//! A host's view of a subsystem, as hexadecimal text. Two runs can be compared by this text. It contains Identify Controller, the
//! active namespaces with their Identify data and descriptors, and the discovery log.
//!
//! Two fields differ between runs, so the text masks them: the controller ID, and the generation counter of the discovery log.

use crate::load::identity;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::net::SocketAddr;
use trefoil_control::admin::Admin;
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::fabrics::discovery::{DiscoveryLog, LogEntry, LogHeader};
use trefoil_wire::nvme::identify::{NamespaceList, cns};
use trefoil_wire::nvme::log::lid;

/// Number of bytes in a line.
const ROW: usize = 16;
/// CNTLID in Identify Controller (NVMe base 2.0c figure 275).
const CNTLID: std::ops::Range<usize> = 78..80;
/// GENCTR in the discovery log page (NVMe base 2.0c figure 264).
const GENCTR: std::ops::Range<usize> = 0..8;

/// The host whose view is printed, and the subsystem.
#[derive(Clone, Debug, clap::Args)]
pub struct IdentifyOptions {
    /// Address and port of the subsystem.
    #[arg(long)]
    pub addr: SocketAddr,
    /// NQN of the subsystem.
    #[arg(long)]
    pub nqn: String,
    /// NQN of the host.
    #[arg(long)]
    pub host_nqn: String,
}

/// Prints the view.
///
/// # Errors
/// An error if the subsystem or its discovery service doesn't answer.
pub fn run(options: &IdentifyOptions) -> Result<()> {
    let mut text = String::new();
    let mut admin = Admin::connect(options.addr, identity(&options.host_nqn, &options.nqn)?)
        .with_context(|| format!("{} at {}", options.nqn, options.addr))?;
    let controller = masked(admin.identify(cns::CONTROLLER, 0)?, CNTLID);
    section(&mut text, "Identify Controller (CNTLID masked)", &controller);
    let list = admin.identify(cns::ACTIVE_NAMESPACES, 0)?;
    section(&mut text, "Active Namespace ID list", &list);
    let list = list.first_chunk().context("the subsystem's list of namespaces is too short")?;
    for nsid in NamespaceList::parse(list).iter() {
        section(&mut text, &format!("namespace {nsid}: Identify"), &admin.identify(cns::NAMESPACE, nsid)?);
        let descriptors = admin.identify(cns::NAMESPACE_DESCRIPTORS, nsid)?;
        section(&mut text, &format!("namespace {nsid}: Identification Descriptors"), &descriptors);
    }
    admin.close()?;

    let discovery = identity(&options.host_nqn, Nqn::DISCOVERY.as_str())?;
    let mut admin = Admin::connect(options.addr, discovery)
        .with_context(|| format!("can't connect to the discovery service at {}", options.addr))?;
    let header = admin.log_page(lid::DISCOVERY, LogHeader::LEN as u64)?;
    let records = DiscoveryLog::parse(&header)?.header.numrec;
    let len_bytes = LogHeader::LEN as u64 + records.saturating_mul(LogEntry::LEN as u64);
    let log = masked(admin.log_page(lid::DISCOVERY, len_bytes)?, GENCTR);
    section(&mut text, &format!("Discovery log, {records} entries (GENCTR masked)"), &log);
    admin.close()?;
    print!("{text}");
    Ok(())
}

fn masked(mut data: Vec<u8>, range: std::ops::Range<usize>) -> Vec<u8> {
    data.get_mut(range).into_iter().flatten().for_each(|byte| *byte = 0);
    data
}

/// Appends a heading. Then appends every row that is not all zeros, each with its offset.
fn section(text: &mut String, title: &str, data: &[u8]) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "# {title}: {} bytes", data.len());
    for (row, offset) in data.chunks(ROW).zip((0..).step_by(ROW)) {
        if row.iter().any(|byte| *byte != 0) {
            let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            let ascii: String =
                row.iter().map(|b| if b.is_ascii_graphic() { *b as char } else { '.' }).collect();
            let _ = writeln!(text, "{offset:06x}  {}  {ascii}", hex.join(" "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_zeros_are_left_out_and_masks_hold() {
        let mut data = vec![0; 96];
        data[17] = b'A';
        data[CNTLID].fill(9);
        let mut text = String::new();
        section(&mut text, "t", &masked(data, CNTLID));
        let row = "000010  00 41 00 00 00 00 00 00 00 00 00 00 00 00 00 00  .A..............";
        assert_eq!(text, format!("# t: 96 bytes\n{row}\n"));
    }
}
