//! Log pages (NVMe base 2.0c §5.16.1). The discovery log is in [`crate::fabrics::discovery`].

mod ana;

mod changed;

mod effects;

mod error;

mod firmware;

mod smart;

pub use ana::{AnaGroup, AnaGroups, AnaHeader, AnaLog, AnaLogWriter, AnaState, GroupFields, ana_log_len};
pub use changed::ChangedNamespaces;
pub use effects::{CommandEffects, CommandsAndEffects};
pub use error::ErrorEntry;
pub use firmware::FirmwareSlots;
pub use smart::{CriticalWarning, SmartLog};

/// Log page identifiers (NVMe base 2.0c figure 202).
#[allow(missing_docs)]
pub mod lid {
    pub const SUPPORTED: u8 = 0x00;
    pub const ERROR: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE_SLOT: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const COMMANDS_AND_EFFECTS: u8 = 0x05;
    pub const DEVICE_SELF_TEST: u8 = 0x06;
    pub const TELEMETRY_HOST: u8 = 0x07;
    pub const TELEMETRY_CONTROLLER: u8 = 0x08;
    pub const ENDURANCE_GROUP: u8 = 0x09;
    pub const ANA: u8 = 0x0c;
    pub const PERSISTENT_EVENT: u8 = 0x0d;
    pub const DISCOVERY: u8 = 0x70;
    pub const RESERVATION: u8 = 0x80;
    pub const SANITIZE: u8 = 0x81;
}
