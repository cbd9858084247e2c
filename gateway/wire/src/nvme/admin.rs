//! Admin commands (NVMe base 2.0c §5) as typed views of an [`Sqe`].

use super::sqe::split_u64;
use super::{FABRICS_OPCODE, Sgl, Sqe};

/// Opcodes of admin commands (NVMe base 2.0c figure 138).
#[allow(missing_docs)]
pub mod admin_opcode {
    pub const DELETE_IO_SQ: u8 = 0x00;
    pub const CREATE_IO_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_IO_CQ: u8 = 0x04;
    pub const CREATE_IO_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    pub const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    pub const FIRMWARE_COMMIT: u8 = 0x10;
    pub const FIRMWARE_DOWNLOAD: u8 = 0x11;
    pub const DEVICE_SELF_TEST: u8 = 0x14;
    pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
    pub const KEEP_ALIVE: u8 = 0x18;
    pub const FORMAT_NVM: u8 = 0x80;
    pub const SECURITY_SEND: u8 = 0x81;
    pub const SECURITY_RECEIVE: u8 = 0x82;
    pub const SANITIZE: u8 = 0x84;
}

/// Identify (NVMe base 2.0c §5.17, figures 272 to 274). The NSID is in the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentifyCommand {
    /// The data structure: see [`super::identify::cns`].
    pub cns: u8,
    /// Controller identifier, for the CNS values that use it.
    pub cntid: u16,
    /// CNS specific identifier: NVM set, endurance group, or format index.
    pub cns_specific: u16,
    /// Command set identifier.
    pub csi: u8,
    /// UUID index, 7 bits.
    pub uuid_index: u8,
}

/// Get Log Page (NVMe base 2.0c §5.16, figures 197 to 201). The NSID is in the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetLogPage {
    /// Log page identifier: see [`super::log::lid`].
    pub lid: u8,
    /// Log specific parameter, 7 bits.
    pub lsp: u8,
    /// Retain Asynchronous Event.
    pub rae: bool,
    /// Requested bytes, a multiple of 4. On the wire, NUMD counts dwords, 0's based. The most is 16 GiB, so the field has
    /// 64 bits.
    pub len_bytes: u64,
    /// Log specific identifier.
    pub lsi: u16,
    /// Log page offset: bytes, or an index if `offset_is_index`. The low two bits of a byte offset must be 0.
    pub lpo: u64,
    /// OT: true if the offset is an index into the log's list.
    pub offset_is_index: bool,
    /// Command set identifier.
    pub csi: u8,
    /// UUID index, 7 bits.
    pub uuid_index: u8,
}

/// Set Features (NVMe base 2.0c §5.27.1). The NSID is in the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetFeatures {
    /// Feature identifier: see [`super::feature::fid`].
    pub fid: u8,
    /// Save across resets.
    pub save: bool,
    /// Dword 11: the value of most features.
    pub cdw11: u32,
    /// Dword 12.
    pub cdw12: u32,
    /// Dword 13.
    pub cdw13: u32,
    /// UUID index, 7 bits.
    pub uuid_index: u8,
    /// Dword 15.
    pub cdw15: u32,
}

/// Get Features (NVMe base 2.0c §5.15). The NSID is in the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetFeatures {
    /// Feature identifier: see [`super::feature::fid`].
    pub fid: u8,
    /// The selected value, 3 bits: see [`super::feature::Select`].
    pub sel: u8,
    /// Dword 11.
    pub cdw11: u32,
    /// UUID index, 7 bits.
    pub uuid_index: u8,
}

/// Abort (NVMe base 2.0c §5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abort {
    /// Submission queue of the command to abort.
    pub sqid: u16,
    /// Command identifier of the command to abort.
    pub cid: u16,
}

/// An admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminCommand {
    /// Identify.
    Identify(IdentifyCommand),
    /// Get Log Page.
    GetLogPage(GetLogPage),
    /// Set Features.
    SetFeatures(SetFeatures),
    /// Get Features.
    GetFeatures(GetFeatures),
    /// Asynchronous Event Request.
    AsyncEventRequest,
    /// Abort.
    Abort(Abort),
    /// Keep Alive.
    KeepAlive,
    /// 7Fh: the entry is a fabrics command, see [`crate::fabrics::FabricsCommand`].
    Fabrics,
    /// Any other opcode.
    Unknown {
        /// The opcode.
        opcode: u8,
    },
}

impl AdminCommand {
    /// Reads the command of an entry. Every entry is a valid command.
    pub fn parse(sqe: &Sqe) -> Self {
        match sqe.opcode {
            admin_opcode::IDENTIFY => Self::Identify(IdentifyCommand {
                cns: sqe.cdw10 as u8,
                cntid: (sqe.cdw10 >> 16) as u16,
                cns_specific: sqe.cdw11 as u16,
                csi: (sqe.cdw11 >> 24) as u8,
                uuid_index: (sqe.cdw14 & 0x7f) as u8,
            }),
            admin_opcode::GET_LOG_PAGE => Self::GetLogPage(GetLogPage {
                lid: sqe.cdw10 as u8,
                lsp: (sqe.cdw10 >> 8 & 0x7f) as u8,
                rae: sqe.cdw10 >> 15 & 1 != 0,
                len_bytes: (((sqe.cdw11 as u64 & 0xffff) << 16 | (sqe.cdw10 >> 16) as u64) + 1) * 4,
                lsi: (sqe.cdw11 >> 16) as u16,
                lpo: sqe.cdw12 as u64 | (sqe.cdw13 as u64) << 32,
                offset_is_index: sqe.cdw14 >> 23 & 1 != 0,
                csi: (sqe.cdw14 >> 24) as u8,
                uuid_index: (sqe.cdw14 & 0x7f) as u8,
            }),
            admin_opcode::SET_FEATURES => Self::SetFeatures(SetFeatures {
                fid: sqe.cdw10 as u8,
                save: sqe.cdw10 >> 31 != 0,
                cdw11: sqe.cdw11,
                cdw12: sqe.cdw12,
                cdw13: sqe.cdw13,
                uuid_index: (sqe.cdw14 & 0x7f) as u8,
                cdw15: sqe.cdw15,
            }),
            admin_opcode::GET_FEATURES => Self::GetFeatures(GetFeatures {
                fid: sqe.cdw10 as u8,
                sel: (sqe.cdw10 >> 8 & 7) as u8,
                cdw11: sqe.cdw11,
                uuid_index: (sqe.cdw14 & 0x7f) as u8,
            }),
            admin_opcode::ASYNC_EVENT_REQUEST => Self::AsyncEventRequest,
            admin_opcode::ABORT => {
                Self::Abort(Abort { sqid: sqe.cdw10 as u16, cid: (sqe.cdw10 >> 16) as u16 })
            }
            admin_opcode::KEEP_ALIVE => Self::KeepAlive,
            FABRICS_OPCODE => Self::Fabrics,
            opcode => Self::Unknown { opcode },
        }
    }

    /// The opcode.
    pub fn opcode(&self) -> u8 {
        match *self {
            Self::Identify(_) => admin_opcode::IDENTIFY,
            Self::GetLogPage(_) => admin_opcode::GET_LOG_PAGE,
            Self::SetFeatures(_) => admin_opcode::SET_FEATURES,
            Self::GetFeatures(_) => admin_opcode::GET_FEATURES,
            Self::AsyncEventRequest => admin_opcode::ASYNC_EVENT_REQUEST,
            Self::Abort(_) => admin_opcode::ABORT,
            Self::KeepAlive => admin_opcode::KEEP_ALIVE,
            Self::Fabrics => FABRICS_OPCODE,
            Self::Unknown { opcode } => opcode,
        }
    }

    /// Returns the entry for this command. For `Fabrics` and `Unknown`, the entry has the opcode of the command and zero in
    /// its dwords.
    ///
    /// Get Log Page requests at least one dword. A length that is not a multiple of a dword is rounded up.
    pub fn sqe(&self, cid: u16, nsid: u32, sgl1: Sgl) -> Sqe {
        let mut sqe = Sqe::new(self.opcode(), cid, nsid, sgl1);
        match self {
            Self::Identify(identify) => {
                sqe.cdw10 = identify.cns as u32 | (identify.cntid as u32) << 16;
                sqe.cdw11 = identify.cns_specific as u32 | (identify.csi as u32) << 24;
                sqe.cdw14 = (identify.uuid_index & 0x7f) as u32;
            }
            Self::GetLogPage(log) => {
                let numd = (log.len_bytes.div_ceil(4).max(1) - 1) as u32;
                sqe.cdw10 = log.lid as u32
                    | ((log.lsp & 0x7f) as u32) << 8
                    | (log.rae as u32) << 15
                    | (numd & 0xffff) << 16;
                sqe.cdw11 = numd >> 16 | (log.lsi as u32) << 16;
                (sqe.cdw12, sqe.cdw13) = split_u64(log.lpo);
                sqe.cdw14 = (log.uuid_index & 0x7f) as u32
                    | (log.offset_is_index as u32) << 23
                    | (log.csi as u32) << 24;
            }
            Self::SetFeatures(set) => {
                sqe.cdw10 = set.fid as u32 | (set.save as u32) << 31;
                sqe.cdw11 = set.cdw11;
                sqe.cdw12 = set.cdw12;
                sqe.cdw13 = set.cdw13;
                sqe.cdw14 = (set.uuid_index & 0x7f) as u32;
                sqe.cdw15 = set.cdw15;
            }
            Self::GetFeatures(get) => {
                sqe.cdw10 = get.fid as u32 | ((get.sel & 7) as u32) << 8;
                sqe.cdw11 = get.cdw11;
                sqe.cdw14 = (get.uuid_index & 0x7f) as u32;
            }
            Self::Abort(abort) => sqe.cdw10 = abort.sqid as u32 | (abort.cid as u32) << 16,
            Self::AsyncEventRequest | Self::KeepAlive | Self::Fabrics | Self::Unknown { .. } => {}
        }
        sqe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: AdminCommand, opcode: u8, dwords: [u32; 6]) {
        let sqe = command.sqe(9, 0, Sgl::NONE);
        assert_eq!(sqe.opcode, opcode);
        assert_eq!([sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15], dwords, "{command:?}");
        assert_eq!(AdminCommand::parse(&sqe), command);
    }

    #[test]
    fn golden() {
        let identify = IdentifyCommand { cns: 0x05, cntid: 0x1234, cns_specific: 7, csi: 2, uuid_index: 3 };
        check(AdminCommand::Identify(identify), 0x06, [0x1234_0005, 0x0200_0007, 0, 0, 3, 0]);
        let log = GetLogPage {
            lid: 0x0c,
            lsp: 1,
            rae: true,
            len_bytes: 0x0004_000c,
            lsi: 5,
            lpo: 0x0000_0006_0000_0010,
            offset_is_index: true,
            csi: 1,
            uuid_index: 2,
        };
        // 4000Ch bytes are 10003h dwords, 10002h 0's based.
        check(AdminCommand::GetLogPage(log), 0x02, [0x0002_810c, 0x0005_0001, 0x10, 6, 0x0180_0002, 0]);
        let longest = GetLogPage { len_bytes: 1 << 34, ..GetLogPage::default() };
        check(AdminCommand::GetLogPage(longest), 0x02, [0xffff_0000, 0xffff, 0, 0, 0, 0]);
        let set = SetFeatures { fid: 7, save: true, cdw11: 1, cdw12: 2, cdw13: 3, uuid_index: 4, cdw15: 5 };
        check(AdminCommand::SetFeatures(set), 0x09, [0x8000_0007, 1, 2, 3, 4, 5]);
        let get = GetFeatures { fid: 0x0f, sel: 3, cdw11: 6, uuid_index: 1 };
        check(AdminCommand::GetFeatures(get), 0x0a, [0x030f, 6, 0, 0, 1, 0]);
        check(AdminCommand::Abort(Abort { sqid: 2, cid: 0x55 }), 0x08, [0x0055_0002, 0, 0, 0, 0, 0]);
        check(AdminCommand::AsyncEventRequest, 0x0c, [0; 6]);
        check(AdminCommand::KeepAlive, 0x18, [0; 6]);
        check(AdminCommand::Fabrics, 0x7f, [0; 6]);
        check(AdminCommand::Unknown { opcode: 0xc0 }, 0xc0, [0; 6]);
    }
}
