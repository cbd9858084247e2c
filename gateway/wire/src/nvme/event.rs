//! Asynchronous events: dword 0 of an Asynchronous Event Request's completion (NVMe base 2.0c §5.2.1, figures 146 to 151).

/// Asynchronous event type, 3 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEventType {
    /// 0h: see [`error_event`].
    Error,
    /// 1h: see [`smart_event`].
    SmartHealth,
    /// 2h: see [`notice_event`].
    Notice,
    /// 6h: I/O command set specific.
    IoCommandSet,
    /// 7h: vendor specific.
    Vendor,
    /// 3h to 5h.
    Reserved(u8),
}

/// Event information of [`AsyncEventType::Error`].
#[allow(missing_docs)]
pub mod error_event {
    pub const INVALID_DOORBELL_REGISTER: u8 = 0x00;
    pub const INVALID_DOORBELL_VALUE: u8 = 0x01;
    pub const DIAGNOSTIC_FAILURE: u8 = 0x02;
    pub const PERSISTENT_INTERNAL_ERROR: u8 = 0x03;
    pub const TRANSIENT_INTERNAL_ERROR: u8 = 0x04;
    pub const FIRMWARE_IMAGE_LOAD_ERROR: u8 = 0x05;
}

/// Event information of [`AsyncEventType::SmartHealth`].
#[allow(missing_docs)]
pub mod smart_event {
    pub const RELIABILITY: u8 = 0x00;
    pub const TEMPERATURE: u8 = 0x01;
    pub const SPARE: u8 = 0x02;
}

/// Event information of [`AsyncEventType::Notice`].
#[allow(missing_docs)]
pub mod notice_event {
    pub const NAMESPACE_ATTRIBUTE_CHANGED: u8 = 0x00;
    pub const FIRMWARE_ACTIVATION_STARTING: u8 = 0x01;
    pub const TELEMETRY_LOG_CHANGED: u8 = 0x02;
    pub const ANA_CHANGE: u8 = 0x03;
    pub const PREDICTABLE_LATENCY_CHANGE: u8 = 0x04;
    pub const LBA_STATUS_ALERT: u8 = 0x05;
    pub const ENDURANCE_GROUP_CHANGE: u8 = 0x06;
    pub const NORMAL_SHUTDOWN: u8 = 0x08;
    pub const DISCOVERY_LOG_CHANGED: u8 = 0xf0;
    pub const HOST_DISCOVERY_LOG_CHANGED: u8 = 0xf1;
}

/// The contents of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// Type.
    pub event_type: AsyncEventType,
    /// Information; its meaning depends on the type.
    pub info: u8,
    /// The log page that the host must read. The read also re-arms the event.
    pub log_page: u8,
}

impl AsyncEvent {
    /// A namespace of the controller was added, removed, grown or otherwise changed.
    pub const NAMESPACE_CHANGED: Self =
        Self::notice(notice_event::NAMESPACE_ATTRIBUTE_CHANGED, super::log::lid::CHANGED_NAMESPACES);
    /// The ANA state of a group changed.
    pub const ANA_CHANGE: Self = Self::notice(notice_event::ANA_CHANGE, super::log::lid::ANA);
    /// The discovery log changed.
    pub const DISCOVERY_CHANGED: Self =
        Self::notice(notice_event::DISCOVERY_LOG_CHANGED, super::log::lid::DISCOVERY);

    const fn notice(info: u8, log_page: u8) -> Self {
        Self { event_type: AsyncEventType::Notice, info, log_page }
    }

    /// Reads the event from dword 0 of the completion.
    pub fn from_dw0(dw0: u32) -> Self {
        let event_type = match (dw0 & 7) as u8 {
            0 => AsyncEventType::Error,
            1 => AsyncEventType::SmartHealth,
            2 => AsyncEventType::Notice,
            6 => AsyncEventType::IoCommandSet,
            7 => AsyncEventType::Vendor,
            other => AsyncEventType::Reserved(other),
        };
        Self { event_type, info: (dw0 >> 8) as u8, log_page: (dw0 >> 16) as u8 }
    }

    /// Returns dword 0 of the completion.
    pub fn dw0(self) -> u32 {
        let event_type = match self.event_type {
            AsyncEventType::Error => 0,
            AsyncEventType::SmartHealth => 1,
            AsyncEventType::Notice => 2,
            AsyncEventType::IoCommandSet => 6,
            AsyncEventType::Vendor => 7,
            AsyncEventType::Reserved(other) => (other & 7) as u32,
        };
        event_type | (self.info as u32) << 8 | (self.log_page as u32) << 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        for (event, dw0) in [
            (AsyncEvent::NAMESPACE_CHANGED, 0x0004_0002),
            (AsyncEvent::ANA_CHANGE, 0x000c_0302),
            (AsyncEvent::DISCOVERY_CHANGED, 0x0070_f002),
            (AsyncEvent { event_type: AsyncEventType::Error, info: 3, log_page: 1 }, 0x0001_0300),
        ] {
            assert_eq!(event.dw0(), dw0);
            assert_eq!(AsyncEvent::from_dw0(dw0), event);
        }
    }
}
