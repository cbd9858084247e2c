//! Features (NVMe base 2.0c §5.15, §5.27). No feature is saved, since a controller lives only as long as its association.

use crate::frontend::nvme::ctrlr::{Ctrlr, CtrlrKind, SIMPLE_FEATURES};
use crate::frontend::nvme::engine::{CommandStep, Engine};
use trefoil_poll::Instant;
use trefoil_wire::nvme::feature::{HostBehavior, HostIdentifierFeature, NumberOfQueues, Select, fid};
use trefoil_wire::nvme::{GetFeatures, SetFeatures, Status};

/// Features of one dword that a host may set and read back. They change nothing in the target's behavior.
const SIMPLE_FIDS: [u8; SIMPLE_FEATURES] = [
    fid::ARBITRATION,
    fid::POWER_MANAGEMENT,
    fid::TEMPERATURE_THRESHOLD,
    fid::ERROR_RECOVERY,
    fid::WRITE_ATOMICITY,
];
const HOST_ID_LEN: u32 = 16;
/// Capability bit: the feature can be changed (NVMe base 2.0c figure 196).
const CHANGEABLE: u64 = 1 << 2;

fn simple(fid: u8) -> Option<usize> {
    SIMPLE_FIDS.iter().position(|&known| known == fid)
}

impl Engine {
    pub(super) fn begin_get_features(&mut self, at: u32, index: u32, get: GetFeatures) -> CommandStep {
        let Some(ctrlr) = self.ctrlrs.get(index) else { return self.fail(at, Status::INTERNAL_ERROR) };
        let select = Select::from_bits(get.sel);
        match (get_feature(ctrlr, get, select), select) {
            (Ok(Value::Dword(value)), _) => self.succeed(at, value),
            (Ok(Value::Data(len)), _) => CommandStep::Block(len),
            (Err(status), _) => self.fail(at, status),
        }
    }

    pub(super) fn fill_feature(
        &mut self,
        at: u32,
        index: u32,
        get: GetFeatures,
        data: &mut [u8],
    ) -> Result<u32, Status> {
        let ctrlr = self.ctrlrs.get(index).ok_or(Status::INTERNAL_ERROR)?;
        data.fill(0);
        match get.fid {
            fid::HOST_BEHAVIOR => data.iter_mut().zip(ctrlr.host_behavior).for_each(|(to, from)| *to = from),
            fid::HOST_IDENTIFIER => {
                let id = self.names[self.slots[at].queue as usize].hostid;
                data.iter_mut().zip(id).for_each(|(to, from)| *to = from);
            }
            _ => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(data.len() as u32)
    }

    pub(super) fn begin_set_features(
        &mut self,
        at: u32,
        index: u32,
        set: SetFeatures,
        now: Instant,
    ) -> CommandStep {
        let Some(ctrlr) = self.ctrlrs.get_mut(index) else { return self.fail(at, Status::INTERNAL_ERROR) };
        if set.save {
            return self.fail(at, Status::FEATURE_NOT_SAVEABLE.dnr());
        }
        match (ctrlr.kind, set.fid) {
            (_, fid::ASYNC_EVENT_CONFIG) => {
                ctrlr.event_config = set.cdw11;
                self.fire_events(index);
                CommandStep::Done
            }
            // Without a Keep Alive Timeout, the target could not notice the loss of the host.
            (CtrlrKind::Io, fid::KEEP_ALIVE_TIMER) if set.cdw11 == 0 && ctrlr.kato_ms != 0 => {
                self.fail(at, Status::KEEP_ALIVE_INVALID.dnr())
            }
            (_, fid::KEEP_ALIVE_TIMER) => {
                let kato_ms = self.set_keep_alive(index, set.cdw11, now);
                self.succeed(at, u64::from(kato_ms))
            }
            (CtrlrKind::Discovery, _) => self.fail(at, Status::INVALID_FIELD.dnr()),
            (CtrlrKind::Io, fid::NUMBER_OF_QUEUES) => {
                let asked = NumberOfQueues::from_bits(set.cdw11);
                if asked.nsqr == u16::MAX || asked.ncqr == u16::MAX {
                    return self.fail(at, Status::INVALID_FIELD.dnr());
                }
                if ctrlr.member_count != 0 {
                    return self.fail(at, Status::COMMAND_SEQUENCE_ERROR.dnr());
                }
                // Over fabrics, queues come in pairs.
                let wanted = asked.nsqr.min(asked.ncqr).min(self.io_queues - 1) + 1;
                let granted = self.ctrlrs.grant(index, wanted);
                self.succeed(at, number_of_queues(granted))
            }
            // The cache belongs to the backend, so one host can't turn the cache off.
            (CtrlrKind::Io, fid::VOLATILE_WRITE_CACHE) if set.cdw11 & 1 == 1 => CommandStep::Done,
            (CtrlrKind::Io, fid::VOLATILE_WRITE_CACHE) => self.fail(at, Status::FEATURE_NOT_CHANGEABLE.dnr()),
            (CtrlrKind::Io, fid::HOST_BEHAVIOR) => CommandStep::Gather(HostBehavior::LEN as u32),
            // Connect sets the host identifier (NVMe base 2.0c §5.27.1.25).
            (CtrlrKind::Io, fid::HOST_IDENTIFIER) => self.fail(at, Status::COMMAND_SEQUENCE_ERROR.dnr()),
            (CtrlrKind::Io, other) => match simple(other) {
                // There is only power state 0.
                Some(_) if other == fid::POWER_MANAGEMENT && set.cdw11 & 0x1F != 0 => {
                    self.fail(at, Status::INVALID_FIELD.dnr())
                }
                Some(place) => {
                    ctrlr.features[place] = set.cdw11;
                    CommandStep::Done
                }
                None => self.fail(at, Status::INVALID_FIELD.dnr()),
            },
        }
    }

    pub(super) fn take_feature(&mut self, index: u32, set: SetFeatures, data: &[u8]) -> Result<(), Status> {
        let ctrlr = self.ctrlrs.get_mut(index).ok_or(Status::INTERNAL_ERROR)?;
        let data = data.first_chunk().filter(|_| set.fid == fid::HOST_BEHAVIOR);
        let behavior = HostBehavior::parse(data.ok_or(Status::INVALID_FIELD.dnr())?);
        let bytes =
            [behavior.advanced_command_retry, behavior.extended_telemetry, behavior.lba_format_extension];
        if bytes.iter().any(|&b| b > 1) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        ctrlr.host_behavior = bytes;
        Ok(())
    }
}

enum Value {
    Dword(u64),
    Data(u32),
}

/// Returns the feature's value for `granted` queues. Both counts are 0's based.
fn number_of_queues(granted: u16) -> u64 {
    u64::from(NumberOfQueues { nsqr: granted - 1, ncqr: granted - 1 }.bits())
}

fn get_feature(ctrlr: &Ctrlr, get: GetFeatures, select: Select) -> Result<Value, Status> {
    let invalid = Err(Status::INVALID_FIELD.dnr());
    let fresh = matches!(select, Select::Default | Select::Saved);
    let (value, changeable) = match (ctrlr.kind, get.fid) {
        (_, fid::ASYNC_EVENT_CONFIG) => (u64::from(if fresh { 0 } else { ctrlr.event_config }), true),
        (_, fid::KEEP_ALIVE_TIMER) => (u64::from(if fresh { 0 } else { ctrlr.kato_ms }), true),
        (CtrlrKind::Discovery, _) => return invalid,
        (CtrlrKind::Io, fid::NUMBER_OF_QUEUES) => (number_of_queues(ctrlr.granted), true),
        (CtrlrKind::Io, fid::VOLATILE_WRITE_CACHE) => (1, false),
        (CtrlrKind::Io, fid::HOST_BEHAVIOR) if select == Select::Current => {
            return Ok(Value::Data(HostBehavior::LEN as u32));
        }
        (CtrlrKind::Io, fid::HOST_IDENTIFIER) if select == Select::Current => {
            // Over fabrics, the host identifier has 128 bits (NVMe base 2.0c §5.27.1.25).
            let extended = HostIdentifierFeature::from_bits(get.cdw11).exhid;
            return if extended { Ok(Value::Data(HOST_ID_LEN)) } else { invalid };
        }
        (CtrlrKind::Io, fid::HOST_BEHAVIOR) => (0, true),
        (CtrlrKind::Io, fid::HOST_IDENTIFIER) => (0, false),
        (CtrlrKind::Io, other) => match simple(other) {
            Some(_) if fresh => (0, true),
            Some(place) => (u64::from(ctrlr.features[place]), true),
            None => return invalid,
        },
    };
    match select {
        Select::Capabilities => Ok(Value::Dword(if changeable { CHANGEABLE } else { 0 })),
        Select::Reserved(_) => invalid,
        _ => Ok(Value::Dword(value)),
    }
}
