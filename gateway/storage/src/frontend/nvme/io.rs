//! I/O commands (NVM command set 1.0c §3.2): checks commands, turns them into requests, and turns results into responses.
//!
//! Both halves of a command check the command. Between the halves, a command may wait for its data while the topology changes.
//! So a request starts only if the host is allowed to make the request at that time.

use super::engine::{CommandStep, Engine, status_of};
use super::queue::NsView;
use super::slot::Phase;
use crate::cx::Cx;
use crate::frontend::limits::MAX_TRANSFER_BYTES;
use crate::msg::StorageIo;
use crate::request::{Fault, Op};
use crate::stats::Kind;
use crate::topology::LunId;
use trefoil_wire::nvme::{BlockRange, DsmCommand, DsmRange, Fuse, IoCommand, NSID_ALL, Status, io_opcode};

/// Size of 256 ranges, the most that Dataset Management can name (NVM command set 1.0c §3.2.3).
const MAX_DSM_BYTES: u32 = 256 * DsmRange::LEN as u32;

impl Engine {
    /// Does the first half of a command: checks the command and returns its needs.
    #[inline]
    pub(super) fn begin_io<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> CommandStep {
        if self.slots[at].sqe.fuse() != Fuse::Normal {
            return self.fail(at, Status::INVALID_FIELD.dnr());
        }
        match IoCommand::parse(&self.slots[at].sqe) {
            IoCommand::Read(range) => match self.check(at, &range, false) {
                Ok((_, len)) => CommandStep::Block(len),
                Err(status) => self.fail(at, status),
            },
            IoCommand::Write(range) => match self.check(at, &range, true) {
                Ok((_, len)) => CommandStep::Gather(len),
                Err(status) => self.fail(at, status),
            },
            IoCommand::Dsm(dsm) => {
                // A host's buffer may have room for more ranges than the command names. Linux always has room for 256 ranges,
                // the most.
                let named = u32::from(dsm.ranges) * DsmRange::LEN as u32;
                CommandStep::Gather(self.slots[at].sqe.sgl1.len_bytes().clamp(named, MAX_DSM_BYTES))
            }
            IoCommand::WriteZeroes { .. } if !self.has_write_zeroes => {
                self.fail(at, Status::INVALID_OPCODE.dnr())
            }
            IoCommand::Flush | IoCommand::WriteZeroes { .. } => self.execute_io(cx, at),
            IoCommand::Compare(_)
            | IoCommand::Verify(_)
            | IoCommand::WriteUncorrectable(_)
            | IoCommand::Unknown { .. } => self.fail(at, Status::INVALID_OPCODE.dnr()),
        }
    }

    /// Does the second half of a command, once the slot has the data, or the block for the data.
    #[inline]
    pub(super) fn execute_io<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> CommandStep {
        let checked = match IoCommand::parse(&self.slots[at].sqe) {
            IoCommand::Read(range) => {
                self.recheck(at, &range, false).map(|lun| (Op::Read, lun, range, false))
            }
            IoCommand::Write(range) => {
                self.recheck(at, &range, true).map(|lun| (Op::Write, lun, range, range.fua))
            }
            IoCommand::WriteZeroes { range, deac } => {
                let op = Op::WriteZeroes { deallocate: deac };
                self.check_blocks(at, &range, true).map(|view| (op, LunBlocks::of(&view), range, range.fua))
            }
            IoCommand::Flush => return self.flush(cx, at),
            IoCommand::Dsm(dsm) => return self.dsm(cx, at, dsm),
            _ => Err(Status::INVALID_OPCODE.dnr()),
        };
        match checked {
            Ok((op, LunBlocks { lun, block_shift }, range, durable)) => {
                let offset = range.slba << block_shift;
                let len = u64::from(range.nlb) << block_shift;
                self.slots[at].lun = lun;
                self.submit(cx, at, op, lun, offset, len, durable)
            }
            Err(status) => self.fail(at, status),
        }
    }

    /// If this core has the LUN in its memory, answers a Read at once with a loan. Get Log Page has the same opcode, and
    /// is no Read.
    #[inline]
    pub(super) fn read_now<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> Option<CommandStep> {
        let IoCommand::Read(range) = IoCommand::parse(&self.slots[at].sqe) else { return None };
        let LunBlocks { lun, block_shift } = self.checked(at)?;
        let (offset, len) = (range.slba << block_shift, self.slots[at].len);
        let loan = cx.luns.as_mut()?.lend(lun, offset, len)?;
        let slot = &mut self.slots[at];
        (slot.lun, slot.loan, slot.phase) = (lun, Some(loan), Phase::Answered);
        Some(self.continue_io(cx, at, Ok(())))
    }

    /// If this core has the LUN in its memory, executes a Write of `data` at once and without a block. This memory has no
    /// volatile cache, so FUA needs no further work. Otherwise returns `None`, with nothing done.
    #[inline]
    pub fn write_now<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
        data: &[u8],
    ) -> Option<CommandStep> {
        let IoCommand::Write(range) = IoCommand::parse(&self.slots[at].sqe) else { return None };
        let LunBlocks { lun, block_shift } = self.checked(at)?;
        let offset = range.slba << block_shift;
        if data.len() != self.slots[at].len as usize || !cx.luns.as_mut()?.write(lun, offset, data) {
            return None;
        }
        let slot = &mut self.slots[at];
        (slot.lun, slot.phase) = (lun, Phase::Answered);
        Some(self.continue_io(cx, at, Ok(())))
    }

    /// Implements the mutation `early-write`: writes data to the LUN before all of the command's data has come.
    #[cold]
    pub fn write_early<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32, data: &[u8]) {
        let IoCommand::Write(range) = IoCommand::parse(&self.slots[at].sqe) else { return };
        if let Ok(LunBlocks { lun, block_shift }) = self.recheck(at, &range, true)
            && let Some(luns) = cx.luns.as_mut()
        {
            luns.write(lun, range.slba << block_shift, data);
        }
    }

    /// Continues a command whose request has ended.
    #[inline]
    pub(super) fn continue_io<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
        result: Result<(), Fault>,
    ) -> CommandStep {
        let now = cx.io.now();
        let slot = &mut self.slots[at];
        let opcode = slot.sqe.opcode;
        // A backend that can't follow a hint ignores the hint (NVM command set 1.0c §3.2.3).
        let ignored = Err(Fault::Unsupported);
        if let Err(fault) = result
            && !(result == ignored && opcode == io_opcode::DATASET_MANAGEMENT)
        {
            self.luns.failed(slot.lun);
            return self.fail(at, status_of(fault));
        }
        let (kind, bytes) = match opcode {
            io_opcode::READ => {
                slot.send_len = slot.len;
                (Kind::Read, slot.len.into())
            }
            io_opcode::WRITE => (Kind::Write, slot.len.into()),
            io_opcode::FLUSH => (Kind::Flush, 0),
            _ => (Kind::Trim, slot.part_bytes),
        };
        let ns = now.as_ns().saturating_sub(slot.since.as_ns());
        self.luns.done(slot.lun, kind, bytes, ns);
        match opcode {
            io_opcode::FLUSH => self.flush(cx, at),
            io_opcode::DATASET_MANAGEMENT => match IoCommand::parse(&self.slots[at].sqe) {
                IoCommand::Dsm(dsm) => self.dsm(cx, at, dsm),
                _ => CommandStep::Done,
            },
            _ => CommandStep::Done,
        }
    }

    /// Checks a Read or Write. Returns the namespace and the number of bytes to move.
    #[inline]
    fn check(&mut self, at: u32, range: &BlockRange, write: bool) -> Result<(NsView, u32), Status> {
        let view = self.check_blocks(at, range, write)?;
        let len = u64::from(range.nlb) << view.block_shift;
        if len > u64::from(MAX_TRANSFER_BYTES) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        self.slots[at].epoch = self.epoch;
        Ok((view, len as u32))
    }

    /// Returns the LUN of a Read or Write that was checked, if nothing has changed since then.
    #[inline]
    fn checked(&mut self, at: u32) -> Option<LunBlocks> {
        let slot = &self.slots[at];
        if slot.epoch != self.epoch {
            return None;
        }
        self.view(slot.queue, slot.sqe.nsid).ok().map(|view| LunBlocks::of(&view))
    }

    /// Repeats the check if anything may have changed since the first half.
    #[inline]
    fn recheck(&mut self, at: u32, range: &BlockRange, write: bool) -> Result<LunBlocks, Status> {
        if let Some(lun) = self.checked(at) {
            return Ok(lun);
        }
        let len = self.slots[at].len;
        match self.check(at, range, write)? {
            (view, now_len) if now_len == len => Ok(LunBlocks::of(&view)),
            // The block size changed while the command waited.
            _ => Err(Status::INVALID_FORMAT.dnr()),
        }
    }

    /// Checks that the namespace exists and is accessible, and that the blocks are within the namespace.
    #[inline]
    fn check_blocks(&mut self, at: u32, range: &BlockRange, write: bool) -> Result<NsView, Status> {
        let slot = &self.slots[at];
        let view = self.view(slot.queue, slot.sqe.nsid)?;
        check_access(&view, write)?;
        if range.prinfo != 0 {
            // Our namespaces have no protection information.
            return Err(Status::INVALID_PROTECTION_INFORMATION.dnr());
        }
        check_range(&view, range.slba, u64::from(range.nlb))?;
        Ok(view)
    }

    /// Flushes the next namespace that the command names. A command names one namespace, or all namespaces that the host sees
    /// (NVMe base 2.0c §7.1).
    fn flush<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> CommandStep {
        let (queue, nsid, cursor) = (self.slots[at].queue, self.slots[at].sqe.nsid, self.slots[at].cursor);
        let next = match nsid {
            NSID_ALL => self.next_visible(queue, cursor),
            _ if cursor == 0 => Some(nsid),
            _ => None,
        };
        let Some(next) = next else { return CommandStep::Done };
        self.slots[at].cursor = next;
        let checked = self.view(queue, next);
        match checked.and_then(|view| check_access(&view, false).map(|()| view)) {
            Ok(view) => {
                self.slots[at].lun = view.lun;
                self.submit(cx, at, Op::Flush, view.lun, 0, 0, false)
            }
            Err(status) => self.fail(at, status),
        }
    }

    /// Returns the lowest NSID above `after` that the queue's host sees.
    pub(super) fn next_visible(&self, queue: u32, after: u32) -> Option<u32> {
        let host = self.names[queue as usize].hostnqn.as_str();
        let namespaces = &self.subsystem(queue)?.namespaces;
        let from = namespaces.partition_point(|n| n.nsid <= after);
        namespaces.get(from..)?.iter().find(|n| n.hosts.contains(host)).map(|n| n.nsid)
    }

    /// Deallocates the next range that is not empty. Before the first range, checks all ranges, so an invalid command changes
    /// nothing.
    fn dsm<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32, dsm: DsmCommand) -> CommandStep {
        match self.next_dsm_range(at, dsm) {
            Ok(Some((view, range))) => {
                let offset = range.slba << view.block_shift;
                let len = u64::from(range.nlb) << view.block_shift;
                self.slots[at].lun = view.lun;
                self.submit(cx, at, Op::Deallocate, view.lun, offset, len, false)
            }
            Ok(None) => CommandStep::Done,
            Err(status) => self.fail(at, status),
        }
    }

    fn next_dsm_range(&mut self, at: u32, dsm: DsmCommand) -> Result<Option<(NsView, DsmRange)>, Status> {
        let (queue, nsid) = (self.slots[at].queue, self.slots[at].sqe.nsid);
        let view = self.view(queue, nsid)?;
        check_access(&view, true)?;
        let slot = &mut self.slots[at];
        let data = slot.buf.as_deref().unwrap_or_default();
        let mut ranges =
            DsmRange::iter(data, dsm.ranges).map_err(|_| Status::DATA_SGL_LENGTH_INVALID.dnr())?;
        if slot.cursor == 0 {
            ranges.clone().try_for_each(|r| check_range(&view, r.slba, u64::from(r.nlb)))?;
        }
        if !dsm.deallocate {
            return Ok(None);
        }
        while let Some(range) = ranges.nth(slot.cursor as usize) {
            slot.cursor += 1;
            if range.nlb != 0 {
                return Ok(Some((view, range)));
            }
            ranges = DsmRange::iter(data, dsm.ranges).map_err(|_| Status::INTERNAL_ERROR)?;
        }
        Ok(None)
    }
}

/// The LUN of a command, and how its blocks become bytes.
#[derive(Clone, Copy)]
struct LunBlocks {
    lun: LunId,
    /// Logical block size as a power of two.
    block_shift: u8,
}

impl LunBlocks {
    #[inline]
    fn of(view: &NsView) -> Self {
        Self { lun: view.lun, block_shift: view.block_shift }
    }
}

#[inline]
fn check_range(view: &NsView, slba: u64, nlb: u64) -> Result<(), Status> {
    match slba.checked_add(nlb) {
        Some(end) if end <= view.blocks => Ok(()),
        _ => Err(Status::LBA_OUT_OF_RANGE.dnr()),
    }
}

/// Checks access by ANA state (NVMe base 2.0c §8.1.3) and write protection.
#[inline]
fn check_access(view: &NsView, write: bool) -> Result<(), Status> {
    match view.ana_state {
        0x1 | 0x2 => {}
        0x3 => return Err(Status::ANA_INACCESSIBLE),
        0x4 => return Err(Status::ANA_PERSISTENT_LOSS),
        _ => return Err(Status::ANA_TRANSITION),
    }
    if write && view.read_only {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.dnr());
    }
    Ok(())
}
