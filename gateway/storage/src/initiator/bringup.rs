//! The admin commands of a controller, from bring-up to shutdown, and the facts in the answers.
//!
//! What it is not: it sends nothing (see `controller`).

use super::config::{ControllerConfig, Purpose};
use super::discovery::LogReader;
use super::fence::keep_alive_bound;
use super::message::Limits;
use super::namespace::NamespaceIdentity;
use super::step::{BringupStep, LogPlace};
use std::collections::VecDeque;
use std::time::Duration;
use trefoil_wire::nvme::feature::{AsyncEventConfig, NumberOfQueues, fid};
use trefoil_wire::nvme::identify::{
    IdentifyController, IdentifyNamespace, NamespaceDescriptor, NamespaceDescriptors, cns, dlfeat,
};
use trefoil_wire::nvme::log::{AnaGroups, AnaHeader, AnaLog, AnaState, lid};
use trefoil_wire::nvme::property::Cap;
use trefoil_wire::nvme::{AdminCommand, GetLogPage, IdentifyCommand, NSID_ALL, SetFeatures, Sgl, Sqe};

/// Size of Identify data and of most log pages, in bytes.
const PAGE_BYTES: u32 = 4096;
/// The largest data of one command. No request of the gateway is larger.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// The largest number of waiting steps: the steps of a bring-up, or one step for each kind of event.
const STEPS: usize = 16;

impl BringupStep {
    /// Returns the command of a step and the length of its data. The step must be neither a property command nor
    /// `Ready`.
    pub fn admin_command(self, config: &ControllerConfig, facts: &Facts, log: &LogReader) -> (Sqe, u32) {
        let nsid = match config.purpose {
            Purpose::Nvm { nsid } => nsid,
            Purpose::Discovery => 0,
        };
        let identify = |cns| AdminCommand::Identify(IdentifyCommand { cns, ..Default::default() });
        let page = |lid, len: u32| {
            AdminCommand::GetLogPage(GetLogPage { lid, len_bytes: len.into(), ..Default::default() })
        };
        let set = |fid, cdw11| AdminCommand::SetFeatures(SetFeatures { fid, cdw11, ..Default::default() });
        let (command, nsid, len) = match self {
            Self::Controller => (identify(cns::CONTROLLER), 0, PAGE_BYTES),
            Self::Namespace => (identify(cns::NAMESPACE), nsid, PAGE_BYTES),
            Self::Descriptors => (identify(cns::NAMESPACE_DESCRIPTORS), nsid, PAGE_BYTES),
            Self::EventConfig => (set(fid::ASYNC_EVENT_CONFIG, facts.events.bits()), 0, 0),
            Self::Queues => {
                let wanted = config.io_queues.max(1) - 1;
                let queues = NumberOfQueues { nsqr: wanted, ncqr: wanted };
                (set(fid::NUMBER_OF_QUEUES, queues.bits()), 0, 0)
            }
            Self::ChangedNamespaces => (page(lid::CHANGED_NAMESPACES, PAGE_BYTES), NSID_ALL, PAGE_BYTES),
            Self::Rearm { log_page } => (page(log_page, 512), NSID_ALL, 512),
            Self::Ana(place) => {
                // Return Groups Only: 127 groups fit into the block, and the number of the namespace's group is known.
                let (lpo, len_bytes) = (place.offset.into(), PAGE_BYTES.into());
                let log = GetLogPage { lid: lid::ANA, lsp: 1, lpo, len_bytes, ..Default::default() };
                (AdminCommand::GetLogPage(log), NSID_ALL, PAGE_BYTES)
            }
            Self::DiscoveryHeader | Self::DiscoveryEntries => {
                let (lpo, len) = log.range(self);
                let log =
                    GetLogPage { lid: lid::DISCOVERY, len_bytes: len.into(), lpo, ..Default::default() };
                (AdminCommand::GetLogPage(log), 0, len)
            }
            Self::Capabilities | Self::Enable | Self::Poll | Self::Ready | Self::Reset | Self::Shutdown => {
                (AdminCommand::KeepAlive, 0, 0)
            }
        };
        let sgl = if len > 0 { Sgl::Transport { len_bytes: len } } else { Sgl::NONE };
        (command.sqe(0, nsid, sgl), len)
    }
}

/// Waiting steps, each at most once.
pub(super) struct Steps {
    waiting: VecDeque<BringupStep>,
}

impl Steps {
    pub fn new() -> Self {
        Self { waiting: VecDeque::with_capacity(STEPS) }
    }

    pub fn push(&mut self, step: BringupStep) {
        if !self.waiting.contains(&step) && self.waiting.len() < STEPS {
            self.waiting.push_back(step);
        }
    }

    /// Queues a step that continues an earlier one, ahead of all others.
    pub fn push_first(&mut self, step: BringupStep) {
        if !self.waiting.contains(&step) && self.waiting.len() < STEPS {
            self.waiting.push_front(step);
        }
    }

    pub fn pop(&mut self) -> Option<BringupStep> {
        self.waiting.pop_front()
    }

    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// Properties of a controller and its namespace, as they report them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// Size in logical blocks.
    pub blocks: u64,
    /// NGUID; zero if the namespace has none.
    pub nguid: [u8; 16],
    /// UUID; zero if the namespace has none.
    pub uuid: [u8; 16],
    /// EUI-64; zero if the namespace has none.
    pub eui64: [u8; 8],
    /// The namespace's ANA group; 0 without ANA.
    pub ana_group: u32,
    /// The namespace is write protected (NSATTR bit 0).
    pub read_only: bool,
    /// I/O queues granted.
    pub queues: u16,
    /// The largest data of one command in bytes: MDTS, at most 1 MiB.
    pub max_transfer_bytes: u32,
    /// In-capsule data on I/O queues in bytes.
    pub max_capsule_data_bytes: u32,
    /// Write Zeroes is supported.
    pub write_zeroes: bool,
    /// Dataset Management is supported (ONCS bit 2).
    dataset_management: bool,
    /// Deallocate may be sent: the controller supports Deallocate, and the namespace promises that deallocated blocks
    /// read as zeros.
    pub deallocate: bool,
    /// Write Zeroes may have DEAC: the namespace supports DEAC (DLFEAT bit 3), and promises that deallocated blocks
    /// read as zeros.
    pub zeroes_deallocate: bool,
    /// A volatile write cache is present (VWC bit 0): completed writes need a Flush to be durable.
    pub volatile_write_cache: bool,
    /// CAP.MQES.
    pub(super) mqes: u16,
    /// CAP.TO.
    pub(super) ready_within: Duration,
    min_page_shift: u32,
    /// Keep alive granularity in milliseconds; 0 if the controller does not support keep alive.
    pub(super) kas_ms: u32,
    traffic_keep_alive: bool,
    cqt_ms: u32,
    /// ANA reporting is supported.
    pub(super) ana: bool,
    events: AsyncEventConfig,
}

impl Facts {
    /// Returns the identity of the namespace.
    pub fn identity(&self) -> NamespaceIdentity {
        let Self { nguid, uuid, eui64, block_bytes, .. } = *self;
        NamespaceIdentity { nguid, uuid, eui64, block_bytes }
    }

    /// Returns the namespace's size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_bytes))
    }

    /// Returns the limits that commands must respect.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            block_bytes: self.block_bytes,
            max_transfer_bytes: self.max_transfer_bytes,
            write_zeroes: self.write_zeroes,
            deallocate: self.deallocate,
            zeroes_deallocate: self.zeroes_deallocate,
            volatile_write_cache: self.volatile_write_cache,
            ana: self.ana,
        }
    }

    /// Returns the time from an association's loss to its fence.
    pub(super) fn fence_after(&self, kato_ms: u32) -> Duration {
        keep_alive_bound(kato_ms, self.kas_ms, self.traffic_keep_alive, self.cqt_ms)
    }

    pub(super) fn take_capabilities(&mut self, cap: u64) {
        let cap = Cap::from_bits(cap);
        self.mqes = cap.mqes;
        self.ready_within = Duration::from_millis(500) * u32::from(cap.to_500ms.max(2));
        self.min_page_shift = 12 + u32::from(cap.mpsmin);
    }

    pub(super) fn take_controller(&mut self, data: &[u8], discovery: bool) -> Result<(), &'static str> {
        let bytes = data
            .first_chunk::<4096>()
            .ok_or("the controller's answer to Identify Controller is too short")?;
        let id = IdentifyController::parse(bytes);
        self.max_transfer_bytes = match id.mdts {
            0 => MAX_TRANSFER_BYTES,
            mdts => 1u32.checked_shl(self.min_page_shift + u32::from(mdts)).unwrap_or(MAX_TRANSFER_BYTES),
        }
        .min(MAX_TRANSFER_BYTES);
        self.kas_ms = u32::from(id.kas_100ms) * 100;
        self.traffic_keep_alive = id.ctratt.traffic_keep_alive;
        self.cqt_ms = u32::from(id.cqt_ms);
        self.ana = id.cmic.ana_reporting;
        self.write_zeroes = id.oncs.write_zeroes;
        self.dataset_management = id.oncs.dsm;
        self.volatile_write_cache = id.vwc & 1 != 0;
        self.events = AsyncEventConfig {
            namespace_attribute: id.oaes.namespace_attribute && !discovery,
            ana_change: id.oaes.ana_change && !discovery,
            discovery_change: id.oaes.discovery_change && discovery,
            ..Default::default()
        };
        if discovery {
            return Ok(());
        }
        // IOCCSZ is in units of 16 bytes and includes the 64 bytes of the command (NVMe base 2.0c figure 275).
        let capsule_bytes = id.ioccsz.checked_mul(16).and_then(|bytes| bytes.checked_sub(64));
        self.max_capsule_data_bytes =
            capsule_bytes.ok_or("the controller's IOCCSZ is below the size of a command")?;
        if id.icdoff != 0 {
            // In-capsule data would not directly follow the command. So the host sends no in-capsule data, and waits
            // for R2Ts instead.
            self.max_capsule_data_bytes = 0;
        }
        Ok(())
    }

    /// Takes the result of Set Features; `wanted` is the requested number of queues.
    pub(super) fn take_queues(&mut self, dw0: u32, wanted: u16) -> Result<(), &'static str> {
        let granted = NumberOfQueues::from_bits(dw0);
        self.queues = granted.nsqr.min(granted.ncqr).saturating_add(1).min(wanted.max(1));
        if self.queues == 0 { Err("the controller grants no I/O queue") } else { Ok(()) }
    }

    pub(super) fn take_namespace(&mut self, data: &[u8]) -> Result<(), &'static str> {
        let bytes =
            data.first_chunk::<4096>().ok_or("the controller's answer to Identify Namespace is too short")?;
        let id = IdentifyNamespace::parse(bytes);
        if id.nsze == 0 {
            return Err("the namespace is not active");
        }
        let format = id.format();
        if format.ms_bytes != 0 {
            return Err("the namespace has metadata");
        }
        match format.block_bytes() {
            Some(block_bytes @ (512 | 4096)) => self.block_bytes = block_bytes,
            _ => return Err("the namespace's blocks are neither 512 nor 4096 bytes"),
        }
        if id.nsze.checked_mul(u64::from(self.block_bytes)).is_none() {
            return Err("the namespace's size overflows");
        }
        self.blocks = id.nsze;
        self.nguid = id.nguid;
        self.eui64 = id.eui64;
        // Another namespace may now have this NSID, so an earlier UUID is not valid any more.
        self.uuid = [0; 16];
        self.ana_group = id.anagrpid;
        self.read_only = id.nsattr & 1 != 0;
        // The gateway promises zeros to its hosts (its own DLFEAT). An array may not promise zeros.
        let promises_zeros = id.deallocates_to_zeros();
        self.deallocate = self.dataset_management && promises_zeros;
        self.zeroes_deallocate = id.dlfeat & dlfeat::DEAC != 0 && promises_zeros;
        Ok(())
    }

    pub(super) fn take_descriptors(&mut self, data: &[u8]) {
        let Some(bytes) = data.first_chunk() else { return };
        for descriptor in NamespaceDescriptors::parse(bytes) {
            match descriptor {
                NamespaceDescriptor::Uuid(uuid) => self.uuid = uuid,
                NamespaceDescriptor::Nguid(nguid) => self.nguid = nguid,
                NamespaceDescriptor::Eui64(eui64) => self.eui64 = eui64,
                NamespaceDescriptor::Csi(_) => {}
            }
        }
    }

    /// Searches the piece of the log at `place` for the namespace's group. Returns the group's state, or the place of
    /// the next piece. Returns neither if the log does not list the group.
    pub(super) fn find_group(&self, place: LogPlace, data: &[u8]) -> (Option<AnaState>, Option<LogPlace>) {
        let (groups, mut next) = match place.offset {
            0 => {
                let Ok(log) = AnaLog::parse(data) else { return (None, None) };
                (log.iter(), LogPlace { offset: AnaHeader::LEN as u32, groups: log.groups })
            }
            _ => (AnaGroups::from_middle(place.groups, data), place),
        };
        for group in groups.flatten() {
            if group.group_id == self.ana_group {
                return (Some(group.state), None);
            }
            next.offset += group.len_bytes() as u32;
            next.groups -= 1;
        }
        (
            None,
            Some(next).filter(|next| next.groups > 0 && next.offset > place.offset + AnaHeader::LEN as u32),
        )
    }
}
