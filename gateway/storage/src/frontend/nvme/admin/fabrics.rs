//! Properties and Disconnect (NVMe base 2.0c §6.4 to §6.6, §3.1.3).

use crate::cx::Cx;
use crate::frontend::limits::MAX_QUEUE_ENTRIES;
use crate::frontend::nvme::ctrlr::{CtrlrKind, NsidSet, SIMPLE_FEATURES};
use crate::frontend::nvme::engine::{CommandStep, Engine};
use crate::frontend::nvme::queue::QueueState;
use crate::initiator::ARRAY_QUIESCE_MS;
use crate::msg::StorageIo;
use std::time::Duration;
use trefoil_wire::fabrics::{ConnectData, FabricsCommand, PropertyGet, PropertySet, PropertySize};
use trefoil_wire::nvme::Status;
use trefoil_wire::nvme::property::{Cap, Cc, Version, offset};

/// Interval at which a controller asks the cores again whether its host's earlier associations are over. Hosts read CSTS each
/// millisecond.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Version of NVMe base that the controllers report.
pub const VERSION: Version = Version::V1_4;

impl Engine {
    /// Does the first half of a fabrics command.
    pub(super) fn begin_fabrics<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32) -> CommandStep {
        let queue = &self.queues[self.slots[at].queue as usize];
        let (live, admin) = (queue.state == QueueState::Live, queue.qid == 0);
        match FabricsCommand::parse(&self.slots[at].sqe) {
            FabricsCommand::Connect(_) if queue.state == QueueState::New => {
                CommandStep::Gather(ConnectData::LEN as u32)
            }
            _ if !live => self.fail(at, Status::COMMAND_SEQUENCE_ERROR.dnr()),
            FabricsCommand::Connect(_) => self.fail(at, Status::COMMAND_SEQUENCE_ERROR.dnr()),
            FabricsCommand::PropertyGet(get) if admin => self.property_get(cx, at, get),
            FabricsCommand::PropertySet(set) if admin => self.property_set(cx, at, set),
            FabricsCommand::PropertyGet(_) | FabricsCommand::PropertySet(_) => {
                self.fail(at, Status::INVALID_FIELD.dnr())
            }
            FabricsCommand::Disconnect { .. } if admin => self.fail(at, Status::INVALID_QUEUE_TYPE.dnr()),
            FabricsCommand::Disconnect { recfmt } if recfmt != 0 => {
                self.fail(at, Status::CONNECT_INCOMPATIBLE_FORMAT.dnr())
            }
            FabricsCommand::Disconnect { .. } => {
                self.queues[self.slots[at].queue as usize].closing = true;
                CommandStep::Done
            }
            FabricsCommand::AuthenticationSend(_)
            | FabricsCommand::AuthenticationReceive(_)
            | FabricsCommand::Unknown { .. } => self.fail(at, Status::INVALID_OPCODE.dnr()),
        }
    }

    fn property_get<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32, get: PropertyGet) -> CommandStep {
        let cntlid = self.queues[self.slots[at].queue as usize].cntlid;
        let Some(index) = self.ctrlrs.find(cntlid) else { return self.fail(at, Status::INTERNAL_ERROR) };
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return self.fail(at, Status::INTERNAL_ERROR) };
        if ctrlr.cc.en && !ctrlr.is_settled() {
            // A waiting host can't send Keep Alive yet. A host that reads CSTS proves that it is alive, and makes the
            // controller ask again.
            let now = cx.io.now();
            ctrlr.alive_at = now;
            if ctrlr.asked == 0 && now.since(ctrlr.asked_at) >= ASK_EVERY {
                self.ask_settled(cx, index);
            }
        }
        let Some(ctrlr) = self.ctrlrs.get(index) else { return self.fail(at, Status::INTERNAL_ERROR) };
        let value = match (get.size, get.offset) {
            (PropertySize::Eight, offset::CAP) => capabilities().bits(),
            (PropertySize::Four, offset::VS) => u64::from(VERSION.bits()),
            (PropertySize::Four, offset::CC) => u64::from(ctrlr.cc.bits()),
            (PropertySize::Four, offset::CSTS) => u64::from(ctrlr.status().bits()),
            // Without CAP.NSSRS, NSSR reads as zero.
            (PropertySize::Four, offset::NSSR) => 0,
            _ => return self.fail(at, Status::INVALID_FIELD.dnr()),
        };
        self.succeed(at, value)
    }

    fn property_set<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32, set: PropertySet) -> CommandStep {
        match (set.size, set.offset) {
            (PropertySize::Four, offset::CC) => self.configure(cx, at, Cc::from_bits(set.value as u32)),
            _ => self.fail(at, Status::INVALID_FIELD.dnr()),
        }
    }

    /// Handles a write to CC: enable, reset (NVMe base 2.0c §3.7.2), shutdown (§3.6.2).
    fn configure<I: StorageIo>(&mut self, cx: &mut Cx<'_, I>, at: u32, cc: Cc) -> CommandStep {
        let cntlid = self.queues[self.slots[at].queue as usize].cntlid;
        let Some(index) = self.ctrlrs.find(cntlid) else { return self.fail(at, Status::INTERNAL_ERROR) };
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return self.fail(at, Status::INTERNAL_ERROR) };
        let before = std::mem::replace(&mut ctrlr.cc, cc);
        let shut_down = cc.shn != 0 && before.shn == 0;
        let reset = before.en && !cc.en;
        if reset {
            ctrlr.fatal = false;
            ctrlr.event_config = 0;
            (ctrlr.pending, ctrlr.masked) = (0, 0);
            ctrlr.changed = NsidSet::EMPTY;
            ctrlr.features = [0; SIMPLE_FEATURES];
        }
        if !before.en && cc.en {
            // A host must not select a value that the controller doesn't offer (NVMe base 2.0c §3.1.3.5).
            let sizes_fit = ctrlr.kind == CtrlrKind::Discovery || (cc.iosqes == 6 && cc.iocqes == 4);
            ctrlr.fatal = cc.mps != 0 || cc.ams != 0 || cc.css != 0 || !sizes_fit;
        }
        if reset {
            self.drop_aers(at);
        }
        if reset || shut_down {
            self.close_members(cx, index);
        }
        CommandStep::Done
    }
}

/// Returns CAP: the NVM command set, and pages of 4 KiB. CSTS.RDY changes once earlier commands are over. Commands at arrays
/// take longest, so TO is [`ARRAY_QUIESCE_MS`].
fn capabilities() -> Cap {
    const { assert!(ARRAY_QUIESCE_MS / 500 <= u8::MAX as u16) };
    let to_500ms = (ARRAY_QUIESCE_MS / 500) as u8;
    Cap { mqes: MAX_QUEUE_ENTRIES - 1, cqr: true, to_500ms, css: 1, ..Cap::default() }
}
