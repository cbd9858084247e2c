//! Admin commands: the dispatch of all of them, and the implementation of the short commands (NVMe base 2.0c §5).

use crate::cx::Cx;
use crate::frontend::limits::{MAX_ABORTS, MAX_TRANSFER_BYTES};
use crate::frontend::nvme::ctrlr::{Ctrlr, CtrlrKind};
use crate::frontend::nvme::engine::{CommandStep, Engine};
use crate::frontend::nvme::queue::QueueState;
use crate::frontend::nvme::slot::{CommandSlot, Phase};
use crate::msg::{CtrlrMsg, Msg, StorageIo};
use trefoil_poll::SockId;
use trefoil_wire::fabrics::FabricsCommand;
use trefoil_wire::nvme::identify::IDENTIFY_LEN;
use trefoil_wire::nvme::log::ErrorEntry;
use trefoil_wire::nvme::{Abort, AdminCommand, FABRICS_OPCODE, GetLogPage, Status, admin_opcode};

/// Location in an error log entry: no parameter (NVMe base 2.0c figure 205).
const NO_LOCATION: u16 = 0xFFFF;

impl Engine {
    /// Does the first half of a command that is not an I/O command: a command on an admin queue or on a queue that is not
    /// connected, or a fabrics command.
    #[cold]
    pub(in crate::frontend::nvme) fn begin_admin<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
    ) -> CommandStep {
        let slot = &self.slots[at];
        let queue = &self.queues[slot.queue as usize];
        let command = AdminCommand::parse(&slot.sqe);
        if queue.state == QueueState::Live && queue.discovery {
            self.note_activity(queue.cntlid, cx.io.now());
        }
        if command == AdminCommand::Fabrics {
            return self.begin_fabrics(cx, at);
        }
        let queue = &self.queues[self.slots[at].queue as usize];
        if queue.state != QueueState::Live {
            return self.fail(at, Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let Some(index) = self.ctrlrs.find(queue.cntlid) else {
            return self.fail(at, Status::INTERNAL_ERROR);
        };
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return self.fail(at, Status::INTERNAL_ERROR) };
        if !ctrlr.is_ready() {
            return self.fail(at, Status::COMMAND_SEQUENCE_ERROR);
        }
        let discovery = ctrlr.kind == CtrlrKind::Discovery;
        match command {
            AdminCommand::KeepAlive => {
                ctrlr.alive_at = cx.io.now();
                CommandStep::Done
            }
            AdminCommand::Identify(_) => CommandStep::Block(IDENTIFY_LEN as u32),
            AdminCommand::GetLogPage(log) => match check_log(ctrlr, &log) {
                Ok(len) => CommandStep::Block(len),
                Err(status) => self.fail(at, status),
            },
            AdminCommand::GetFeatures(get) => self.begin_get_features(at, index, get),
            AdminCommand::SetFeatures(set) => self.begin_set_features(at, index, set, cx.io.now()),
            AdminCommand::AsyncEventRequest => self.hold_event_request(at, index),
            AdminCommand::Abort(abort) if !discovery => self.begin_abort(cx, at, index, abort),
            _ => self.fail(at, Status::INVALID_OPCODE.dnr()),
        }
    }

    /// Does the second half of a command, once the slot has the data, or the block for the data.
    #[cold]
    pub(in crate::frontend::nvme) fn execute_admin<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
    ) -> CommandStep {
        let slot = &self.slots[at];
        let command = AdminCommand::parse(&slot.sqe);
        if command == AdminCommand::Fabrics {
            return match FabricsCommand::parse(&slot.sqe) {
                FabricsCommand::Connect(connect) => self.connect(cx, at, connect),
                _ => self.fail(at, Status::INVALID_OPCODE.dnr()),
            };
        }
        let Some(index) = self.ctrlrs.find(self.queues[slot.queue as usize].cntlid) else {
            return self.fail(at, Status::INTERNAL_ERROR);
        };
        let len = slot.len;
        let Some(mut block) = self.slots[at].buf.take() else { return self.fail(at, Status::INTERNAL_ERROR) };
        let data = block.get_mut(..len as usize).unwrap_or_default();
        let filled = match command {
            AdminCommand::Identify(identify) => self.identify(at, index, identify, data),
            AdminCommand::GetLogPage(log) => self.log_page(at, index, log, data),
            AdminCommand::GetFeatures(get) => self.fill_feature(at, index, get, data),
            AdminCommand::SetFeatures(set) => self.take_feature(index, set, data).map(|()| 0),
            _ => Err(Status::INVALID_OPCODE.dnr()),
        };
        self.slots[at].buf = Some(block);
        match filled {
            Ok(send_len) => {
                self.slots[at].send_len = send_len;
                CommandStep::Done
            }
            Err(status) => self.fail(at, status),
        }
    }

    fn begin_abort<I: StorageIo>(
        &mut self,
        cx: &mut Cx<'_, I>,
        at: u32,
        index: u32,
        abort: Abort,
    ) -> CommandStep {
        const NOT_ABORTED: u64 = 1;
        if abort.sqid == 0 {
            let aborted = self.abort(self.slots[at].queue, abort.cid, Some(at));
            return self.succeed(at, if aborted { 0 } else { NOT_ABORTED });
        }
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return self.fail(at, Status::INTERNAL_ERROR) };
        let Some(member) = ctrlr.members.get(usize::from(abort.sqid - 1)).copied().flatten() else {
            return self.succeed(at, NOT_ABORTED);
        };
        if usize::from(ctrlr.aborts) >= MAX_ABORTS {
            return self.fail(at, Status::ABORT_LIMIT_EXCEEDED);
        }
        ctrlr.aborts += 1;
        self.slots[at].phase = Phase::Held;
        // A slot's number has 16 bits. The upper half of the word guards against reuse of the number.
        let slot = at | (self.slots[at].generation & 0xFFFF) << 16;
        let (sock, generation) = (SockId(member.queue), member.generation);
        cx.io.post(member.core, Msg::Ctrlr(CtrlrMsg::Abort { sock, generation, cid: abort.cid, slot }));
        CommandStep::Held
    }

    /// Aborts a command of a queue of this core, if the command has not started yet. If the host is already sending the
    /// command's data, the command ends only after all of the data has come: the transport can't distinguish this data from the
    /// data of a later command.
    pub(super) fn abort(&mut self, queue: u32, cid: u16, but: Option<u32>) -> bool {
        let ring = &self.queues[queue as usize].ring;
        let is_it = |at, slot: &CommandSlot| slot.sqe.cid == cid && Some(at) != but && !slot.forgotten;
        let found = self.slots.iter(ring).find(|(at, slot)| is_it(*at, slot));
        let Some(at) = found.map(|(at, _)| at) else { return false };
        match self.slots[at].phase {
            Phase::Transport => {
                self.slots[at].aborted = true;
                self.aborted(at);
                true
            }
            Phase::Held if self.slots[at].sqe.opcode == admin_opcode::ASYNC_EVENT_REQUEST => {
                self.drop_event_request(at);
                self.fail(at, Status::ABORT_REQUESTED);
                self.done_later(at);
                true
            }
            _ => false,
        }
    }

    pub(super) fn on_abort_done(&mut self, tag: u32, aborted: bool) {
        let (at, guard) = (tag & 0xFFFF, tag >> 16);
        let current = self.slots.get(at).is_some_and(|slot| {
            slot.phase == Phase::Held
                && slot.generation & 0xFFFF == guard
                && slot.sqe.opcode == admin_opcode::ABORT
        });
        if !current {
            return;
        }
        let cntlid = self.queues[self.slots[at].queue as usize].cntlid;
        if let Some(ctrlr) = self.ctrlrs.find(cntlid).and_then(|index| self.ctrlrs.get_mut(index)) {
            ctrlr.aborts = ctrlr.aborts.saturating_sub(1);
        }
        self.succeed(at, u64::from(!aborted));
        self.done_later(at);
    }

    /// Adds a failed command to its controller's error log, if the controller is on this core. Reports a failed Connect to the
    /// operator.
    #[cold]
    pub(in crate::frontend::nvme) fn note_error(&mut self, at: u32) {
        let slot = &self.slots[at];
        if slot.sqe.opcode == FABRICS_OPCODE
            && matches!(FabricsCommand::parse(&slot.sqe), FabricsCommand::Connect(_))
        {
            self.connect_refused(at);
        }
        let slot = &self.slots[at];
        let queue = &self.queues[slot.queue as usize];
        if queue.state != QueueState::Live {
            return;
        }
        let (sqid, cid, status, nsid) = (queue.qid, slot.sqe.cid, slot.status, slot.sqe.nsid);
        let lba = if sqid == 0 { 0 } else { slot.sqe.cdw10_11() };
        let Some(index) = self.ctrlrs.find(queue.cntlid) else { return };
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return };
        let place = ctrlr.error_count as usize % ctrlr.errors.len();
        ctrlr.error_count += 1;
        let error_count = ctrlr.error_count;
        ctrlr.errors[place] = ErrorEntry {
            error_count,
            sqid,
            cid,
            status,
            location: NO_LOCATION,
            lba,
            nsid,
            trtype: trefoil_wire::fabrics::discovery::trtype::TCP,
            ..ErrorEntry::default()
        };
    }
}

/// Checks a Get Log Page before it gets its block. Returns the number of bytes that the command asks for.
fn check_log(ctrlr: &Ctrlr, log: &GetLogPage) -> Result<u32, Status> {
    if !super::log::is_supported(ctrlr.kind, log.lid) {
        return Err(Status::INVALID_LOG_PAGE.dnr());
    }
    if log.len_bytes > u64::from(MAX_TRANSFER_BYTES) || !log.lpo.is_multiple_of(4) || log.offset_is_index {
        return Err(Status::INVALID_FIELD.dnr());
    }
    Ok(log.len_bytes as u32)
}
