//! Status of a completion (NVMe base 2.0c §3.3.3.2.1, figures 92 to 102; fabrics: §3.3.3.2.1.2 and figure 407;
//! NVM command set 1.0c figures 7 to 9).

/// The 15-bit status field: SC 7:0, SCT 10:8, CRD 12:11, More 13, DNR 14.
///
/// The constants have only SC and SCT. [`Status::dnr`], [`Status::more`] and [`Status::crd`] set the other fields.
/// [`Status::is`] compares only type and code with a constant.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Status(u16);

/// Status code type, bits 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatusType {
    /// 0h: any command.
    Generic,
    /// 1h: the meaning of the code depends on the command.
    CommandSpecific,
    /// 2h: media and data integrity.
    Media,
    /// 3h: an error of the path, not of the namespace.
    Path,
    /// 7h: vendor specific.
    Vendor,
    /// 4h to 6h.
    Reserved(u8),
}

const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;
const CODE: u16 = 0x7ff;

impl Status {
    /// Makes a status from its type (3 bits) and code.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(((sct & 7) as u16) << 8 | sc as u16)
    }

    /// Makes a status from the 15-bit field, without the phase tag.
    #[inline]
    pub const fn from_field(field: u16) -> Self {
        Self(field & 0x7fff)
    }

    /// Returns the 15-bit field.
    #[inline]
    pub const fn field(self) -> u16 {
        self.0
    }

    /// Returns the status with Do Not Retry set.
    pub const fn dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// Returns the status with More set: the error log has more information.
    pub const fn more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// Returns the status with a Command Retry Delay index of 1 to 3 (CRDT1 to CRDT3), or 0 for none.
    pub const fn crd(self, index: u8) -> Self {
        Self(self.0 & !(3 << 11) | ((index & 3) as u16) << 11)
    }

    /// Returns whether Do Not Retry is set: a retry would fail again.
    pub const fn is_dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// Returns whether the error log has more information.
    pub const fn is_more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Returns the Command Retry Delay index, 0 to 3.
    pub const fn retry_delay_index(self) -> u8 {
        (self.0 >> 11 & 3) as u8
    }

    /// Returns the status code.
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// Returns the status code type.
    pub const fn sct(self) -> StatusType {
        match (self.0 >> 8 & 7) as u8 {
            0 => StatusType::Generic,
            1 => StatusType::CommandSpecific,
            2 => StatusType::Media,
            3 => StatusType::Path,
            7 => StatusType::Vendor,
            other => StatusType::Reserved(other),
        }
    }

    /// Returns only type and code, without DNR, More and the delay.
    pub const fn code(self) -> Self {
        Self(self.0 & CODE)
    }

    /// Returns whether type and code equal `other`'s. DNR, More and the delay may differ.
    pub const fn is(self, other: Self) -> bool {
        self.0 & CODE == other.0 & CODE
    }

    /// Returns whether the command succeeded.
    #[inline]
    pub const fn is_ok(self) -> bool {
        self.0 & CODE == 0
    }

    /// Returns whether the path failed (SCT 3h), and not the command itself. The command may succeed on another path.
    pub const fn is_path_error(self) -> bool {
        matches!(self.sct(), StatusType::Path)
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}h/{:02X}h", self.name(), self.0 >> 8 & 7, self.sc())?;
        f.write_str(if self.is_dnr() { ", do not retry)" } else { ")" })
    }
}

macro_rules! statuses {
    ($($(#[$meta:meta])* $name:ident = $sct:literal, $sc:literal, $text:literal;)*) => {
        impl Status {
            $(#[doc = $text] $(#[$meta])* pub const $name: Self = Self::new($sct, $sc);)*

            /// Returns the spec's name of the code. All vendor codes have the same name, and so have all reserved codes.
            pub const fn name(self) -> &'static str {
                // Some codes of SCT 1h have one meaning for fabrics commands and another meaning for I/O commands. For such
                // a code the match has two arms. The second arm is unreachable, so the text of the first arm names both
                // meanings.
                #[allow(unreachable_patterns)]
                match ((self.0 >> 8 & 7) as u8, self.sc()) {
                    $(($sct, $sc) => $text,)*
                    (7, _) => "Vendor Specific",
                    _ => "Reserved",
                }
            }

            /// Every named status, in the spec's order.
            pub const NAMED: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

statuses! {
    SUCCESS = 0, 0x00, "Successful Completion";
    INVALID_OPCODE = 0, 0x01, "Invalid Command Opcode";
    INVALID_FIELD = 0, 0x02, "Invalid Field in Command";
    COMMAND_ID_CONFLICT = 0, 0x03, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0, 0x04, "Data Transfer Error";
    ABORTED_POWER_LOSS = 0, 0x05, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0, 0x06, "Internal Error";
    ABORT_REQUESTED = 0, 0x07, "Command Abort Requested";
    ABORTED_SQ_DELETION = 0, 0x08, "Command Aborted due to SQ Deletion";
    ABORTED_FAILED_FUSED = 0, 0x09, "Command Aborted due to Failed Fused Command";
    ABORTED_MISSING_FUSED = 0, 0x0a, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE = 0, 0x0b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0, 0x0c, "Command Sequence Error";
    INVALID_SGL_SEGMENT = 0, 0x0d, "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = 0, 0x0e, "Invalid Number of SGL Descriptors";
    DATA_SGL_LENGTH_INVALID = 0, 0x0f, "Data SGL Length Invalid";
    METADATA_SGL_LENGTH_INVALID = 0, 0x10, "Metadata SGL Length Invalid";
    SGL_TYPE_INVALID = 0, 0x11, "SGL Descriptor Type Invalid";
    INVALID_USE_OF_CMB = 0, 0x12, "Invalid Use of Controller Memory Buffer";
    PRP_OFFSET_INVALID = 0, 0x13, "PRP Offset Invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0, 0x14, "Atomic Write Unit Exceeded";
    OPERATION_DENIED = 0, 0x15, "Operation Denied";
    SGL_OFFSET_INVALID = 0, 0x16, "SGL Offset Invalid";
    HOST_ID_INCONSISTENT = 0, 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_EXPIRED = 0, 0x19, "Keep Alive Timer Expired";
    KEEP_ALIVE_INVALID = 0, 0x1a, "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT = 0, 0x1b, "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0, 0x1c, "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0, 0x1d, "Sanitize In Progress";
    SGL_GRANULARITY_INVALID = 0, 0x1e, "SGL Data Block Granularity Invalid";
    NOT_SUPPORTED_IN_CMB_QUEUE = 0, 0x1f, "Command Not Supported for Queue in CMB";
    NAMESPACE_WRITE_PROTECTED = 0, 0x20, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0, 0x21, "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0, 0x22, "Transient Transport Error";
    PROHIBITED_BY_LOCKDOWN = 0, 0x23, "Command Prohibited by Command and Feature Lockdown";
    ADMIN_MEDIA_NOT_READY = 0, 0x24, "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = 0, 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0, 0x81, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0, 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0, 0x83, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0, 0x84, "Format In Progress";

    CQ_INVALID = 1, 0x00, "Completion Queue Invalid";
    INVALID_QUEUE_ID = 1, 0x01, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 1, 0x02, "Invalid Queue Size";
    ABORT_LIMIT_EXCEEDED = 1, 0x03, "Abort Command Limit Exceeded";
    ASYNC_EVENT_LIMIT_EXCEEDED = 1, 0x05, "Asynchronous Event Request Limit Exceeded";
    INVALID_FIRMWARE_SLOT = 1, 0x06, "Invalid Firmware Slot";
    INVALID_FIRMWARE_IMAGE = 1, 0x07, "Invalid Firmware Image";
    INVALID_INTERRUPT_VECTOR = 1, 0x08, "Invalid Interrupt Vector";
    INVALID_LOG_PAGE = 1, 0x09, "Invalid Log Page";
    INVALID_FORMAT = 1, 0x0a, "Invalid Format";
    FEATURE_NOT_SAVEABLE = 1, 0x0d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 1, 0x0e, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1, 0x0f, "Feature Not Namespace Specific";
    OVERLAPPING_RANGE = 1, 0x14, "Overlapping Range";
    NAMESPACE_INSUFFICIENT_CAPACITY = 1, 0x15, "Namespace Insufficient Capacity";
    NAMESPACE_ID_UNAVAILABLE = 1, 0x16, "Namespace Identifier Unavailable";
    NAMESPACE_ALREADY_ATTACHED = 1, 0x18, "Namespace Already Attached";
    NAMESPACE_IS_PRIVATE = 1, 0x19, "Namespace Is Private";
    NAMESPACE_NOT_ATTACHED = 1, 0x1a, "Namespace Not Attached";
    CONTROLLER_LIST_INVALID = 1, 0x1c, "Controller List Invalid";
    INVALID_CONTROLLER_ID = 1, 0x1f, "Invalid Controller Identifier";
    ANA_ATTACH_FAILED = 1, 0x25, "ANA Attach Failed";
    IO_COMMAND_SET_NOT_SUPPORTED = 1, 0x29, "I/O Command Set Not Supported";
    IO_COMMAND_SET_NOT_ENABLED = 1, 0x2a, "I/O Command Set Not Enabled";
    IO_COMMAND_SET_REJECTED = 1, 0x2b, "I/O Command Set Combination Rejected";
    /// For I/O commands. The same code as [`Status::CONNECT_INCOMPATIBLE_FORMAT`].
    CONFLICTING_ATTRIBUTES = 1, 0x80, "Conflicting Attributes (Connect: Incompatible Format)";
    /// For I/O commands. The same code as [`Status::CONNECT_CONTROLLER_BUSY`].
    INVALID_PROTECTION_INFORMATION = 1, 0x81, "Invalid Protection Information (Connect: Controller Busy)";
    /// For I/O commands. The same code as [`Status::CONNECT_INVALID_PARAMETERS`].
    WRITE_TO_READ_ONLY_RANGE = 1, 0x82, "Attempted Write to Read Only Range (Connect: Invalid Parameters)";
    /// For I/O commands. The same code as [`Status::CONNECT_RESTART_DISCOVERY`].
    COMMAND_SIZE_LIMIT_EXCEEDED = 1, 0x83, "Command Size Limit Exceeded (Connect: Restart Discovery)";
    /// For Connect.
    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80, "Connect Incompatible Format";
    /// For Connect.
    CONNECT_CONTROLLER_BUSY = 1, 0x81, "Connect Controller Busy";
    /// For Connect: dword 0 of the result names the parameter.
    CONNECT_INVALID_PARAMETERS = 1, 0x82, "Connect Invalid Parameters";
    /// For Connect.
    CONNECT_RESTART_DISCOVERY = 1, 0x83, "Connect Restart Discovery";
    CONNECT_INVALID_HOST = 1, 0x84, "Connect Invalid Host";
    INVALID_QUEUE_TYPE = 1, 0x85, "Invalid Queue Type";
    DISCOVER_RESTART = 1, 0x90, "Discover Restart";
    AUTHENTICATION_REQUIRED = 1, 0x91, "Authentication Required";

    WRITE_FAULT = 2, 0x80, "Write Fault";
    UNRECOVERED_READ_ERROR = 2, 0x81, "Unrecovered Read Error";
    GUARD_CHECK_ERROR = 2, 0x82, "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK_ERROR = 2, 0x83, "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK_ERROR = 2, 0x84, "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 2, 0x85, "Compare Failure";
    ACCESS_DENIED = 2, 0x86, "Access Denied";
    DEALLOCATED_BLOCK = 2, 0x87, "Deallocated or Unwritten Logical Block";
    STORAGE_TAG_CHECK_ERROR = 2, 0x88, "End-to-End Storage Tag Check Error";

    INTERNAL_PATH_ERROR = 3, 0x00, "Internal Path Error";
    ANA_PERSISTENT_LOSS = 3, 0x01, "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 3, 0x02, "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 3, 0x03, "Asymmetric Access Transition";
    CONTROLLER_PATHING_ERROR = 3, 0x60, "Controller Pathing Error";
    HOST_PATHING_ERROR = 3, 0x70, "Host Pathing Error";
    ABORTED_BY_HOST = 3, 0x71, "Command Aborted By Host";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let status = Status::ANA_INACCESSIBLE.dnr().more().crd(2);
        assert_eq!(status.field(), 0x7302);
        assert_eq!((status.sct(), status.sc()), (StatusType::Path, 2));
        assert!(status.is_dnr() && status.is_more() && status.is_path_error() && !status.is_ok());
        assert_eq!(status.retry_delay_index(), 2);
        assert!(status.is(Status::ANA_INACCESSIBLE) && status != Status::ANA_INACCESSIBLE);
        assert_eq!(status.code(), Status::ANA_INACCESSIBLE);
        assert_eq!(Status::from_field(0xffff).field(), 0x7fff);
    }

    #[test]
    fn names() {
        assert_eq!(Status::SUCCESS.name(), "Successful Completion");
        assert_eq!(Status::new(7, 1).name(), "Vendor Specific");
        assert_eq!(Status::new(0, 0x7f).name(), "Reserved");
        assert_eq!(
            Status::INVALID_FIELD.dnr().to_string(),
            "Invalid Field in Command (0h/02h, do not retry)"
        );
        for status in Status::NAMED {
            assert_ne!(status.name(), "Reserved", "{:#x}", status.field());
        }
    }
}
