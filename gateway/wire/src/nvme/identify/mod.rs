//! Identify data structures, 4096 bytes each (NVMe base 2.0c §5.17; NVM command set 1.0c §4.1.5).

mod controller;

mod namespace;

mod descriptor;

mod list;

pub use controller::{
    AsyncEventsSupported, ControllerAttributes, IdentifyController, MultipathCapabilities,
    OptionalAdminCommands, OptionalNvmCommands, PowerState, SglSupport,
};
pub use descriptor::{NamespaceDescriptor, NamespaceDescriptors, emit_namespace_descriptors};
pub use list::{ControllerList, IoCommandSetList, NamespaceList, SecondaryControllerList, UuidList};
pub use namespace::{
    IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNvmController, IdentifyNvmNamespace, LbaFormat,
};
pub use namespace::{dlfeat, nsfeat};

/// Size of every Identify data structure in bytes.
pub const IDENTIFY_LEN: usize = 4096;

/// The data structure that Identify requests (NVMe base 2.0c figure 273).
#[allow(missing_docs)]
pub mod cns {
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    pub const NVM_SETS: u8 = 0x04;
    pub const NAMESPACE_IO_COMMAND_SET: u8 = 0x05;
    pub const CONTROLLER_IO_COMMAND_SET: u8 = 0x06;
    pub const ACTIVE_NAMESPACES_IO_COMMAND_SET: u8 = 0x07;
    pub const NAMESPACE_INDEPENDENT: u8 = 0x08;
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    pub const CONTROLLERS_ATTACHED: u8 = 0x12;
    pub const CONTROLLERS: u8 = 0x13;
    pub const PRIMARY_CONTROLLER: u8 = 0x14;
    pub const SECONDARY_CONTROLLERS: u8 = 0x15;
    pub const NAMESPACE_GRANULARITY: u8 = 0x16;
    pub const UUIDS: u8 = 0x17;
    pub const IO_COMMAND_SETS: u8 = 0x1c;
}

/// Command set identifiers (NVMe base 2.0c figure 274).
#[allow(missing_docs)]
pub mod csi {
    pub const NVM: u8 = 0x00;
    pub const KEY_VALUE: u8 = 0x01;
    pub const ZONED: u8 = 0x02;
}
