//! Features (NVMe base 2.0c §5.27): identifiers, and the values of the features of a fabrics controller.

/// Feature identifiers (NVMe base 2.0c figure 317).
#[allow(missing_docs)]
pub mod fid {
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER_MANAGEMENT: u8 = 0x02;
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    pub const ASYNC_EVENT_CONFIG: u8 = 0x0b;
    pub const TIMESTAMP: u8 = 0x0e;
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    pub const HOST_BEHAVIOR: u8 = 0x16;
    pub const IO_COMMAND_SET_PROFILE: u8 = 0x19;
    pub const HOST_IDENTIFIER: u8 = 0x81;
    pub const RESERVATION_NOTIFICATION_MASK: u8 = 0x82;
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
    pub const WRITE_PROTECTION: u8 = 0x84;
}

/// The value that Get Features requests (NVMe base 2.0c figure 195).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// 000b.
    Current,
    /// 001b.
    Default,
    /// 010b.
    Saved,
    /// 011b: dword 0 shows whether the feature is saveable (bit 0), namespace specific (bit 1) and changeable (bit 2).
    Capabilities,
    /// Others.
    Reserved(u8),
}

impl Select {
    /// Reads the 3-bit field.
    pub fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Current,
            1 => Self::Default,
            2 => Self::Saved,
            3 => Self::Capabilities,
            other => Self::Reserved(other),
        }
    }
}

bits! {
    /// Number of Queues, dword 11 and the result (NVMe base 2.0c §5.27.1.5). Both fields are 0's based, and FFFFh is
    /// invalid.
    pub struct NumberOfQueues: u32 {
        /// Submission queues.
        nsqr: u16 = 0, 16;
        /// Completion queues.
        ncqr: u16 = 16, 16;
    }
}

bits! {
    /// Asynchronous Event Configuration, dword 11 (NVMe base 2.0c §5.27.1.9, figure 324).
    pub struct AsyncEventConfig: u32 {
        /// SMART critical warnings to report, one bit each.
        smart: u8 = 0, 8;
        /// Namespace Attribute Notices.
        namespace_attribute: bool = 8, 1;
        /// Firmware Activation Notices.
        firmware_activation: bool = 9, 1;
        /// Telemetry Log Notices.
        telemetry: bool = 10, 1;
        /// ANA Change Notices.
        ana_change: bool = 11, 1;
        /// Predictable Latency Event Aggregate Log Change Notices.
        predictable_latency: bool = 12, 1;
        /// LBA Status Information Notices.
        lba_status: bool = 13, 1;
        /// Endurance Group Event Aggregate Log Change Notices.
        endurance_group: bool = 14, 1;
        /// Normal NVM Subsystem Shutdown.
        normal_shutdown: bool = 15, 1;
        /// Discovery Log Page Change Notification.
        discovery_change: bool = 31, 1;
    }
}

bits! {
    /// Volatile Write Cache, dword 11 (NVMe base 2.0c §5.27.1.4).
    pub struct VolatileWriteCache: u32 {
        /// Enabled.
        enable: bool = 0, 1;
    }
}

bits! {
    /// Host Identifier, dword 11 (NVMe base 2.0c §5.27.1.25).
    pub struct HostIdentifierFeature: u32 {
        /// True for a 128-bit identifier. Over fabrics this bit is always set.
        exhid: bool = 0, 1;
    }
}

layout! {
    /// Host Behavior Support data, 512 bytes (NVMe base 2.0c §5.27.1.18, figure 343).
    pub struct HostBehavior [512] {
        /// 1 if the host accepts Command Interrupted with a retry delay.
        advanced_command_retry: u8 = 0,
        /// 1 if the host accepts extended telemetry.
        extended_telemetry: u8 = 1,
        /// 1 if the host accepts the extended LBA formats.
        lba_format_extension: u8 = 2,
    }
}

layout! {
    /// Timestamp data, 8 bytes (NVMe base 2.0c §5.27.1.13).
    pub struct Timestamp [8] {
        /// Milliseconds since 1970, 48 bits, little-endian.
        millis: [u8; 6] = 0,
        /// Bits 3:1 the origin, bit 0 synch.
        attributes: u8 = 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        assert_eq!(NumberOfQueues { nsqr: 3, ncqr: 4 }.bits(), 0x0004_0003);
        let config = AsyncEventConfig {
            namespace_attribute: true,
            ana_change: true,
            discovery_change: true,
            ..Default::default()
        };
        assert_eq!(config.bits(), 0x8000_0900);
        assert_eq!(AsyncEventConfig::from_bits(0x8000_0900), config);
        let behavior =
            HostBehavior { advanced_command_retry: 1, extended_telemetry: 0, lba_format_extension: 1 };
        let expected = crate::golden::bytes(&[(0, &[1, 0, 1])]);
        crate::golden::assert_emits(&expected, |bytes| behavior.emit(bytes));
        assert_eq!(HostBehavior::parse(&expected), behavior);
        let timestamp = Timestamp { millis: [1, 2, 3, 4, 5, 6], attributes: 2 };
        crate::golden::assert_emits(&[1, 2, 3, 4, 5, 6, 2, 0], |bytes| timestamp.emit(bytes));
        assert_eq!(Select::from_bits(3), Select::Capabilities);
        assert!(HostIdentifierFeature::from_bits(1).exhid && VolatileWriteCache::from_bits(1).enable);
    }
}
