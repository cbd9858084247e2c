//! Log pages (NVMe base 2.0c §5.16). The discovery log is in `discovery`.

use super::identify::{REVISION, max_ana_groups};
use crate::frontend::nvme::ctrlr::{Ctrlr, CtrlrKind, NsidSet, event_bit};
use crate::frontend::nvme::engine::Engine;
use crate::topology::Namespace;
use trefoil_wire::Ascii;
use trefoil_wire::nvme::FABRICS_OPCODE as FABRICS;
use trefoil_wire::nvme::log::{
    AnaHeader, ChangedNamespaces, CommandEffects, CommandsAndEffects, ErrorEntry, FirmwareSlots, GroupFields,
    SmartLog, lid,
};
use trefoil_wire::nvme::{GetLogPage, Status, admin_opcode, io_opcode};

/// LSP bit of the ANA log: Return Groups Only.
const RGO: u8 = 1;
const IO_LOGS: [u8; 7] = [
    lid::SUPPORTED,
    lid::ERROR,
    lid::SMART,
    lid::FIRMWARE_SLOT,
    lid::CHANGED_NAMESPACES,
    lid::COMMANDS_AND_EFFECTS,
    lid::ANA,
];
const DISCOVERY_LOGS: [u8; 2] = [lid::SUPPORTED, lid::DISCOVERY];

fn logs(kind: CtrlrKind) -> &'static [u8] {
    match kind {
        CtrlrKind::Io => &IO_LOGS,
        CtrlrKind::Discovery => &DISCOVERY_LOGS,
    }
}

/// Returns whether controllers of this type support the log page.
pub(super) fn is_supported(kind: CtrlrKind, lid: u8) -> bool {
    logs(kind).contains(&lid)
}

/// The part of a log that a command asks for. The code adds the log in pieces, in order. The window drops bytes outside the
/// part.
pub(super) struct Window<'a> {
    data: &'a mut [u8],
    /// Offset in the log at which `data` starts.
    start: u64,
    /// Length of the pieces added so far.
    at: u64,
}

impl<'a> Window<'a> {
    pub(super) fn new(data: &'a mut [u8], start: u64) -> Self {
        data.fill(0);
        Self { data, start, at: 0 }
    }

    /// Returns true if the window needs at least one of the next `len` bytes.
    pub(super) fn wants(&self, len: usize) -> bool {
        self.at + len as u64 > self.start && self.at < self.start + self.data.len() as u64
    }

    pub(super) fn skip(&mut self, len: usize) {
        self.at += len as u64;
    }

    /// Adds zeros until the log has length `len`.
    pub(super) fn pad(&mut self, len: u64) {
        self.at = self.at.max(len);
    }

    pub(super) fn put(&mut self, piece: &[u8]) {
        let before = self.start.saturating_sub(self.at).min(piece.len() as u64) as usize;
        let to = self.at.saturating_sub(self.start) as usize;
        let piece_end = piece.get(before..).unwrap_or_default();
        if let Some(room) = self.data.get_mut(to..) {
            room.iter_mut().zip(piece_end).for_each(|(to, from)| *to = *from);
        }
        self.at += piece.len() as u64;
    }

    /// Checks the offset of the part. An offset beyond the log's end is invalid (NVMe base 2.0c §5.16.1).
    pub(super) fn finish(self) -> Result<(), Status> {
        if self.start > self.at { Err(Status::INVALID_FIELD.dnr()) } else { Ok(()) }
    }
}

impl Engine {
    /// Fills `data` with the part of the log that the command asks for.
    pub(super) fn log_page(
        &mut self,
        at: u32,
        index: u32,
        log: GetLogPage,
        data: &mut [u8],
    ) -> Result<u32, Status> {
        let len = data.len() as u32;
        let queue = self.slots[at].queue;
        let ctrlr = self.ctrlrs.get(index).ok_or(Status::INTERNAL_ERROR)?;
        let mut window = Window::new(data, log.lpo);
        match log.lid {
            lid::SUPPORTED => put_supported(ctrlr.kind, &mut window),
            lid::ERROR => put_errors(ctrlr, &mut window),
            lid::SMART => self.put_smart(queue, ctrlr, &mut window),
            lid::FIRMWARE_SLOT => {
                let mut page = [0; FirmwareSlots::LEN];
                let frs1 = Ascii::new(REVISION).unwrap_or_default();
                FirmwareSlots { afi: 1, frs1, ..FirmwareSlots::default() }.emit(&mut page);
                window.put(&page);
            }
            lid::CHANGED_NAMESPACES => put_changed(ctrlr, &mut window),
            lid::COMMANDS_AND_EFFECTS => put_effects(&mut window),
            lid::ANA => self.put_ana(queue, ctrlr, log.lsp & RGO != 0, &mut window)?,
            lid::DISCOVERY => self.put_discovery(queue, &mut window),
            _ => return Err(Status::INVALID_LOG_PAGE.dnr()),
        }
        window.finish()?;
        if !log.rae {
            self.log_was_read(index, log.lid);
        }
        Ok(len)
    }

    /// Unmasks a log's event type: the host has read the log without Retain Asynchronous Event.
    fn log_was_read(&mut self, index: u32, lid: u8) {
        match lid {
            lid::CHANGED_NAMESPACES => {
                if let Some(ctrlr) = self.ctrlrs.get_mut(index) {
                    ctrlr.changed = NsidSet::EMPTY;
                }
                self.unmask(index, event_bit::NAMESPACE);
            }
            lid::ANA => self.unmask(index, event_bit::ANA),
            lid::DISCOVERY => self.unmask(index, event_bit::DISCOVERY),
            _ => {}
        }
    }

    /// Adds the health log: this core's I/O counters of the namespaces that the host sees. The target has no medium that could
    /// fail.
    fn put_smart(&self, queue: u32, ctrlr: &Ctrlr, window: &mut Window<'_>) {
        const UNIT_BYTES: u64 = 512_000;
        let (mut smart, mut read, mut written) = (SmartLog::default(), 0u64, 0u64);
        smart.available_spare = 100;
        let mut nsid = 0;
        while let Some(next) = self.next_visible(queue, nsid) {
            nsid = next;
            let host = self.names[queue as usize].hostnqn.as_str();
            let lun = self.subsystem(queue).and_then(|s| s.visible(nsid, host)).map(|n| n.lun);
            let Some(stats) = lun.and_then(|lun| self.luns.get(lun)) else { continue };
            read += stats.read.bytes;
            written += stats.write.bytes;
            smart.host_reads += u128::from(stats.read.ops);
            smart.host_writes += u128::from(stats.write.ops);
        }
        smart.data_units_read = u128::from(read.div_ceil(UNIT_BYTES));
        smart.data_units_written = u128::from(written.div_ceil(UNIT_BYTES));
        smart.error_entries = u128::from(ctrlr.error_count);
        let mut page = [0; SmartLog::LEN];
        smart.emit(&mut page);
        window.put(&page);
    }

    /// Adds the ANA groups of the namespaces that the host sees, in ascending order. The order by NSID is also the order by
    /// group.
    fn put_ana(
        &self,
        queue: u32,
        ctrlr: &Ctrlr,
        groups_only: bool,
        window: &mut Window<'_>,
    ) -> Result<(), Status> {
        let subsystem = self.subsystem(queue).ok_or(Status::INTERNAL_PATH_ERROR)?;
        let host = self.names[queue as usize].hostnqn.as_str();
        let sees = |n: &&Namespace| n.hosts.contains(host);
        let all = subsystem.namespaces.chunk_by(|a, b| a.ana_group == b.ana_group);
        let groups = all.filter_map(|group| Some((group.iter().find(sees)?, group)));
        let mut header = [0; AnaHeader::LEN];
        AnaHeader { change_count: ctrlr.ana_changes, groups: groups.clone().count() as u16 }
            .emit(&mut header);
        window.put(&header);
        for (Namespace { ana_group, ana_state, .. }, group) in groups {
            let members = || group.iter().filter(sees).map(|n| n.nsid);
            let nsids = if groups_only { 0 } else { members().count() as u32 };
            let mut fields = [0; GroupFields::LEN];
            GroupFields { group_id: *ana_group, nsids, change_count: 0, state: *ana_state }.emit(&mut fields);
            window.put(&fields);
            if !groups_only {
                members().for_each(|nsid| window.put(&nsid.to_le_bytes()));
            }
        }
        // The log has the length that follows from Identify, because nvme-cli reads that length in pieces of 4 KiB.
        let most = AnaHeader::LEN as u64
            + u64::from(max_ana_groups(subsystem)) * GroupFields::LEN as u64
            + u64::from(subsystem.max_namespaces) * 4;
        window.pad(most);
        Ok(())
    }
}

fn put_supported(kind: CtrlrKind, window: &mut Window<'_>) {
    /// LSUPP (NVMe base 2.0c figure 203).
    const SUPPORTED: u32 = 1;
    for lid in 0..=u8::MAX {
        let entry = if is_supported(kind, lid) { SUPPORTED } else { 0 };
        window.put(&entry.to_le_bytes());
    }
}

fn put_errors(ctrlr: &Ctrlr, window: &mut Window<'_>) {
    let ring = ctrlr.errors.len() as u64;
    for back in 0..ring {
        let number = ctrlr.error_count.checked_sub(back).filter(|&n| n > 0);
        let entry = number.map(|n| ctrlr.errors[((n - 1) % ring) as usize]).unwrap_or_default();
        let mut bytes = [0; ErrorEntry::LEN];
        entry.emit(&mut bytes);
        window.put(&bytes);
    }
}

fn put_changed(ctrlr: &Ctrlr, window: &mut Window<'_>) {
    let mut page = [0; ChangedNamespaces::LEN];
    ChangedNamespaces::emit(ctrlr.changed.iter(), &mut page);
    window.put(&page);
}

fn put_effects(window: &mut Window<'_>) {
    let (plain, writes) = (CommandEffects::supported(), CommandEffects::writes());
    let admin = [
        (admin_opcode::GET_LOG_PAGE, plain),
        (admin_opcode::IDENTIFY, plain),
        (admin_opcode::ABORT, plain),
        (admin_opcode::SET_FEATURES, plain),
        (admin_opcode::GET_FEATURES, plain),
        (admin_opcode::ASYNC_EVENT_REQUEST, plain),
        (admin_opcode::KEEP_ALIVE, plain),
        (FABRICS, plain),
    ];
    let io = [
        (io_opcode::FLUSH, plain),
        (io_opcode::WRITE, writes),
        (io_opcode::READ, plain),
        (io_opcode::WRITE_ZEROES, writes),
        (io_opcode::DATASET_MANAGEMENT, writes),
        (FABRICS, plain),
    ];
    let mut page = [0; CommandsAndEffects::LEN];
    CommandsAndEffects::emit(&admin, &io, &mut page);
    window.put(&page);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_shows_what_lies_in_it() {
        let whole: Vec<u8> = (0..40).collect();
        for (start, len) in [(0, 40), (0, 8), (4, 8), (12, 28), (36, 8), (40, 4)] {
            let mut data = vec![0xEE; len];
            let mut window = Window::new(&mut data, start);
            for piece in whole.chunks(16) {
                window.put(piece);
            }
            window.finish().expect("not beyond the end");
            let mut expected = vec![0; len];
            let shown = &whole[start as usize..(start as usize + len).min(40)];
            expected[..shown.len()].copy_from_slice(shown);
            assert_eq!(data, expected, "{len} bytes from {start}");
        }
    }

    #[test]
    fn an_offset_beyond_the_end_is_refused() {
        let mut data = [0; 4];
        let mut window = Window::new(&mut data, 44);
        window.put(&[0; 40]);
        assert!(window.finish().is_err());
    }
}
