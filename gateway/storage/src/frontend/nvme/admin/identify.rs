//! Identify (NVMe base 2.0c §5.17; NVM command set 1.0c §4.1.5).

use super::fabrics::VERSION;
use crate::frontend::limits::{IN_CAPSULE_BYTES, MAX_ABORTS, MAX_AERS, MAX_QUEUE_ENTRIES, MDTS};
use crate::frontend::nvme::ctrlr::{Ctrlr, CtrlrKind, ERRORS};
use crate::frontend::nvme::engine::Engine;
use crate::topology::{ANA_TRANSITION_S, Lun, Namespace, Subsystem};
use trefoil_wire::Ascii;
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::nvme::identify::{
    AsyncEventsSupported, ControllerAttributes, ControllerList, IDENTIFY_LEN, IdentifyController,
    IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNvmController, IdentifyNvmNamespace,
    IoCommandSetList, LbaFormat, MultipathCapabilities, NamespaceDescriptor, NamespaceList,
    OptionalNvmCommands, SecondaryControllerList, SglSupport, cns, csi, dlfeat, emit_namespace_descriptors,
    nsfeat,
};
use trefoil_wire::nvme::{IdentifyCommand, NSID_ALL, Status};

type Page = [u8; IDENTIFY_LEN];

/// Firmware revision: the version of the program.
pub(super) const REVISION: &str = env!("CARGO_PKG_VERSION");
/// Model of discovery controllers, which belong to none of the operator's subsystems.
const DISCOVERY_MODEL: &str = "Trefoil discovery";
/// Best size of a write to backends, in bytes: the hint for NPWG and related fields.
const PREFERRED_BYTES: u32 = 4096;
/// Size of a write that goes to a backend in one piece, in bytes: the hint for NOWS.
const OPTIMAL_WRITE_BYTES: u32 = 128 << 10;

impl Engine {
    /// Fills `data`, which has 4096 bytes.
    pub(super) fn identify(
        &mut self,
        at: u32,
        index: u32,
        command: IdentifyCommand,
        data: &mut [u8],
    ) -> Result<u32, Status> {
        let ctrlr = self.ctrlrs.get(index).ok_or(Status::INTERNAL_ERROR)?;
        let page: &mut Page = data.first_chunk_mut().ok_or(Status::DATA_SGL_LENGTH_INVALID.dnr())?;
        match (ctrlr.kind, command.cns) {
            (CtrlrKind::Discovery, cns::CONTROLLER) => {
                discovery_controller(ctrlr, &self.topology.discovery_serial, page);
            }
            (CtrlrKind::Discovery, _) => return Err(Status::INVALID_FIELD.dnr()),
            (CtrlrKind::Io, _) => self.identify_io(at, ctrlr, command, page)?,
        }
        Ok(IDENTIFY_LEN as u32)
    }

    fn identify_io(
        &self,
        at: u32,
        ctrlr: &Ctrlr,
        command: IdentifyCommand,
        page: &mut Page,
    ) -> Result<(), Status> {
        let (queue, nsid) = (self.slots[at].queue, self.slots[at].sqe.nsid);
        let subsystem = self.subsystem(queue).ok_or(Status::INTERNAL_PATH_ERROR)?;
        let host = self.names[queue as usize].hostnqn.as_str();
        let nvm_only = |csi: u8| if csi == csi::NVM { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) };
        match command.cns {
            cns::CONTROLLER => {
                io_controller(ctrlr, subsystem, self.topology.quiesce_ms, self.has_write_zeroes, page)
            }
            cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => match self.namespace(queue, subsystem, nsid)? {
                Some((namespace, lun)) => identify_namespace(namespace, lun, self.promises_zeros, page),
                None => page.fill(0),
            },
            cns::ACTIVE_NAMESPACES | cns::ALLOCATED_NAMESPACES | cns::ACTIVE_NAMESPACES_IO_COMMAND_SET => {
                if command.cns == cns::ACTIVE_NAMESPACES_IO_COMMAND_SET {
                    nvm_only(command.csi)?;
                }
                // The list has the NSIDs above `nsid`. No NSID is above FFFFFFFEh or FFFFFFFFh (NVMe base 2.0c §5.17.2.2).
                if nsid >= NSID_ALL - 1 {
                    return Err(Status::INVALID_NAMESPACE.dnr());
                }
                let visible = subsystem.namespaces.iter().filter(|n| n.nsid > nsid && n.hosts.contains(host));
                NamespaceList::emit(visible.map(|n| n.nsid), page);
            }
            cns::NAMESPACE_DESCRIPTORS => {
                let found = self.namespace(queue, subsystem, nsid)?;
                let (_, lun) = found.ok_or(Status::INVALID_NAMESPACE.dnr())?;
                let descriptors = [
                    NamespaceDescriptor::Nguid(lun.nguid),
                    NamespaceDescriptor::Uuid(lun.uuid),
                    NamespaceDescriptor::Csi(csi::NVM),
                ];
                emit_namespace_descriptors(&descriptors, page);
            }
            cns::NAMESPACE_IO_COMMAND_SET => {
                nvm_only(command.csi)?;
                self.namespace(queue, subsystem, nsid)?;
                // There is no protection information, so every field is zero.
                IdentifyNvmNamespace::default().emit(page);
            }
            cns::CONTROLLER_IO_COMMAND_SET => {
                nvm_only(command.csi)?;
                IdentifyNvmController::default().emit(page);
            }
            cns::NAMESPACE_INDEPENDENT => match self.namespace(queue, subsystem, nsid)? {
                Some((namespace, lun)) => IdentifyNamespaceIndependent {
                    nmic: 1,
                    anagrpid: namespace.ana_group,
                    nsattr: u8::from(lun.read_only),
                    nstat: 1,
                    ..Default::default()
                }
                .emit(page),
                None => page.fill(0),
            },
            // The host must not learn of other hosts' controllers.
            cns::CONTROLLERS_ATTACHED => {
                let attached = self.namespace(queue, subsystem, nsid)?.is_some();
                let own = Some(ctrlr.cntlid).filter(|&id| attached && id >= command.cntid);
                ControllerList::emit(own, page);
            }
            cns::CONTROLLERS => {
                ControllerList::emit(Some(ctrlr.cntlid).filter(|&id| id >= command.cntid), page);
            }
            cns::SECONDARY_CONTROLLERS => SecondaryControllerList::emit_empty(page),
            cns::IO_COMMAND_SETS => {
                if command.cntid != u16::MAX && command.cntid != ctrlr.cntlid {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                IoCommandSetList::emit([IoCommandSetList::NVM], page);
            }
            _ => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(())
    }

    /// Returns the namespace and its LUN, or `None` if the NSID is valid but this host sees no such namespace.
    fn namespace<'a>(
        &'a self,
        queue: u32,
        subsystem: &'a Subsystem,
        nsid: u32,
    ) -> Result<Option<(&'a Namespace, &'a Lun)>, Status> {
        if nsid == 0 || nsid > subsystem.max_namespaces {
            return Err(Status::INVALID_NAMESPACE.dnr());
        }
        let host = self.names[queue as usize].hostnqn.as_str();
        Ok(subsystem.visible(nsid, host).and_then(|namespace| {
            let lun = self.topology.luns.get(namespace.lun.0 as usize)?.as_ref()?;
            Some((namespace, lun))
        }))
    }
}

fn text<const N: usize>(text: &str) -> Ascii<N> {
    // Control refuses a text that does not fit, so this code only leaves such a text out.
    Ascii::new(text).unwrap_or_default()
}

/// Returns the fields that both types of controllers share.
fn common(ctrlr: &Ctrlr) -> IdentifyController {
    IdentifyController {
        fr: text(REVISION),
        mdts: MDTS,
        cntlid: ctrlr.cntlid,
        ver: VERSION,
        ctratt: ControllerAttributes { host_id_128: true, ..Default::default() },
        aerl: MAX_AERS as u8 - 1,
        elpe: ERRORS as u8 - 1,
        kas_100ms: super::association::KAS_100MS,
        sqes: 0x66,
        cqes: 0x44,
        maxcmd: MAX_QUEUE_ENTRIES,
        sgls: SglSupport { support: 1, offset: true, transport: true, ..Default::default() },
        ioccsz: (64 + IN_CAPSULE_BYTES) / 16,
        iorcsz: 1,
        msdbd: 1,
        ofcs: 1,
        ..Default::default()
    }
}

/// Returns the highest ANA group that a subsystem may have, which is also the number of groups. Hosts compute the ANA log's
/// size from this number.
pub(super) fn max_ana_groups(subsystem: &Subsystem) -> u32 {
    let highest = subsystem.namespaces.iter().map(|n| n.ana_group).max().unwrap_or(1);
    highest.max(subsystem.max_namespaces)
}

fn io_controller(
    ctrlr: &Ctrlr,
    subsystem: &Subsystem,
    quiesce_ms: u16,
    has_write_zeroes: bool,
    page: &mut Page,
) {
    let groups = max_ana_groups(subsystem);
    IdentifyController {
        sn: text(&subsystem.serial),
        mn: text(&subsystem.model),
        cmic: MultipathCapabilities {
            multiple_ports: true,
            multiple_controllers: true,
            ana_reporting: true,
            ..Default::default()
        },
        oaes: AsyncEventsSupported { namespace_attribute: true, ana_change: true, ..Default::default() },
        cntrltype: 1,
        acl: MAX_ABORTS as u8 - 1,
        // There is one firmware slot, which is read only.
        frmw: 0b11,
        // The bits mean that the Commands Supported and Effects log and the extended data of Get Log Page are supported.
        lpa: 0b110,
        anatt_s: ANA_TRANSITION_S,
        // All five ANA states are reported. A namespace's ANA group may change.
        anacap: 0x1F,
        cqt_ms: quiesce_ms,
        anagrpmax: groups,
        nanagrpid: groups,
        nn: subsystem.max_namespaces,
        mnan: subsystem.max_namespaces,
        oncs: OptionalNvmCommands {
            dsm: true,
            write_zeroes: has_write_zeroes,
            save_select: true,
            ..Default::default()
        },
        // A volatile write cache is present, and Flush takes FFFFFFFFh.
        vwc: 0b111,
        subnqn: Nqn::new(&subsystem.nqn).map(|nqn| nqn.field()).unwrap_or([0; 256]),
        ..common(ctrlr)
    }
    .emit(page);
}

fn discovery_controller(ctrlr: &Ctrlr, serial: &str, page: &mut Page) {
    IdentifyController {
        sn: text(serial),
        mn: text(DISCOVERY_MODEL),
        oaes: AsyncEventsSupported { discovery_change: true, ..Default::default() },
        cntrltype: 2,
        lpa: 0b100,
        subnqn: Nqn::DISCOVERY.field(),
        ..common(ctrlr)
    }
    .emit(page);
}

fn identify_namespace(namespace: &Namespace, lun: &Lun, promises_zeros: bool, page: &mut Page) {
    let zero_based = |bytes: u32| ((bytes / lun.block_bytes).max(1) - 1) as u16;
    let preferred = zero_based(PREFERRED_BYTES);
    IdentifyNamespace {
        nsze: lun.blocks,
        ncap: lun.blocks,
        nuse: lun.blocks,
        // The bit for identifiers that are never reused is not set: an array or an operator chooses some of the identifiers.
        nsfeat: nsfeat::OPTIMAL_PERFORMANCE,
        nmic: 1,
        // Every backend keeps this promise. A backend that can't deallocate to zeros deallocates nothing, or writes zeros.
        dlfeat: if promises_zeros { dlfeat::READS_ZEROS | dlfeat::DEAC } else { dlfeat::READS_NOT_REPORTED },
        nvmcap_bytes: u128::from(lun.len_bytes()),
        npwg: preferred,
        npwa: preferred,
        npdg: preferred,
        npda: preferred,
        nows: zero_based(OPTIMAL_WRITE_BYTES),
        anagrpid: namespace.ana_group,
        nsattr: u8::from(lun.read_only),
        nguid: lun.nguid,
        lbaf0: LbaFormat { lbads: lun.block_bytes.trailing_zeros() as u8, ..LbaFormat::default() },
        ..Default::default()
    }
    .emit(page);
}
