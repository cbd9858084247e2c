//! Fabrics commands (NVMe base 2.0c §6, figures 386 to 402). A fabrics command has the 64 bytes of an [`Sqe`]. FCTYPE is in
//! the place of the NSID, and the command's own fields start at dword 10.

use crate::nvme::{FABRICS_OPCODE, Sgl, Sqe, Transfer};

/// Fabrics command types (NVMe base 2.0c figure 387).
#[allow(missing_docs)]
pub mod fctype {
    pub const PROPERTY_SET: u8 = 0x00;
    pub const CONNECT: u8 = 0x01;
    pub const PROPERTY_GET: u8 = 0x04;
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    pub const DISCONNECT: u8 = 0x08;
}

bits! {
    /// CATTR of Connect (NVMe base 2.0c figure 393).
    pub struct ConnectAttributes: u8 {
        /// Priority class; 0 urgent.
        priority: u8 = 0, 2;
        /// True if the host requests a queue without SQ flow control.
        no_sq_flow_control: bool = 2, 1;
        /// True if the queue can be deleted without its controller's other queues.
        individual_delete: bool = 3, 1;
    }
}

/// Connect. Its data is a [`super::ConnectData`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Record format. The only valid value is 0.
    pub recfmt: u16,
    /// Queue identifier. 0 is the admin queue.
    pub qid: u16,
    /// SQSIZE: entries of the submission queue, 0's based.
    pub sqsize: u16,
    /// Attributes.
    pub attributes: ConnectAttributes,
    /// Keep Alive Timeout in milliseconds; 0 for none. Admin queue only.
    pub kato_ms: u32,
}

/// Size of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropertySize {
    /// 000b: 4 bytes.
    Four,
    /// 001b: 8 bytes.
    Eight,
    /// Others.
    Reserved(u8),
}

impl PropertySize {
    fn from_bits(bits: u32) -> Self {
        match (bits & 7) as u8 {
            0 => Self::Four,
            1 => Self::Eight,
            other => Self::Reserved(other),
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::Four => 0,
            Self::Eight => 1,
            Self::Reserved(other) => (other & 7) as u32,
        }
    }
}

/// Property Get. The completion has the value in dwords 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyGet {
    /// Size.
    pub size: PropertySize,
    /// Offset: see [`crate::nvme::property::offset`].
    pub offset: u32,
}

/// Property Set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertySet {
    /// Size.
    pub size: PropertySize,
    /// Offset: see [`crate::nvme::property::offset`].
    pub offset: u32,
    /// The value. A property of 4 bytes has its value in the low 4 bytes.
    pub value: u64,
}

/// Authentication Send or Receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// Security protocol: E9h for NVMe.
    pub secp: u8,
    /// SP specific 1.
    pub spsp1: u8,
    /// SP specific 0.
    pub spsp0: u8,
    /// Transfer or allocation length in bytes.
    pub len_bytes: u32,
}

/// A fabrics command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FabricsCommand {
    /// Property Set.
    PropertySet(PropertySet),
    /// Connect.
    Connect(Connect),
    /// Property Get.
    PropertyGet(PropertyGet),
    /// Authentication Send.
    AuthenticationSend(Authentication),
    /// Authentication Receive.
    AuthenticationReceive(Authentication),
    /// Disconnect.
    Disconnect {
        /// Record format. The only valid value is 0.
        recfmt: u16,
    },
    /// Any other type.
    Unknown {
        /// FCTYPE.
        fctype: u8,
    },
}

impl FabricsCommand {
    /// Reads the command of an entry whose opcode is [`FABRICS_OPCODE`]. Every such entry is a valid command.
    pub fn parse(sqe: &Sqe) -> Self {
        match sqe.nsid as u8 {
            fctype::PROPERTY_SET => Self::PropertySet(PropertySet {
                size: PropertySize::from_bits(sqe.cdw10),
                offset: sqe.cdw11,
                value: sqe.cdw12 as u64 | (sqe.cdw13 as u64) << 32,
            }),
            fctype::CONNECT => Self::Connect(Connect {
                recfmt: sqe.cdw10 as u16,
                qid: (sqe.cdw10 >> 16) as u16,
                sqsize: sqe.cdw11 as u16,
                attributes: ConnectAttributes::from_bits((sqe.cdw11 >> 16) as u8),
                kato_ms: sqe.cdw12,
            }),
            fctype::PROPERTY_GET => {
                Self::PropertyGet(PropertyGet { size: PropertySize::from_bits(sqe.cdw10), offset: sqe.cdw11 })
            }
            fctype::AUTHENTICATION_SEND => Self::AuthenticationSend(authentication(sqe)),
            fctype::AUTHENTICATION_RECEIVE => Self::AuthenticationReceive(authentication(sqe)),
            fctype::DISCONNECT => Self::Disconnect { recfmt: sqe.cdw10 as u16 },
            fctype => Self::Unknown { fctype },
        }
    }

    /// FCTYPE.
    pub fn fctype(&self) -> u8 {
        match *self {
            Self::PropertySet(_) => fctype::PROPERTY_SET,
            Self::Connect(_) => fctype::CONNECT,
            Self::PropertyGet(_) => fctype::PROPERTY_GET,
            Self::AuthenticationSend(_) => fctype::AUTHENTICATION_SEND,
            Self::AuthenticationReceive(_) => fctype::AUTHENTICATION_RECEIVE,
            Self::Disconnect { .. } => fctype::DISCONNECT,
            Self::Unknown { fctype } => fctype,
        }
    }

    /// Returns the direction of the command's data.
    pub fn transfer(&self) -> Transfer {
        Transfer::from_opcode(self.fctype())
    }

    /// Returns the entry for this command.
    pub fn sqe(&self, cid: u16, sgl1: Sgl) -> Sqe {
        let mut sqe = Sqe::new(FABRICS_OPCODE, cid, self.fctype() as u32, sgl1);
        match self {
            Self::PropertySet(set) => {
                sqe.cdw10 = set.size.bits();
                sqe.cdw11 = set.offset;
                sqe.cdw12 = set.value as u32;
                sqe.cdw13 = (set.value >> 32) as u32;
            }
            Self::Connect(connect) => {
                sqe.cdw10 = connect.recfmt as u32 | (connect.qid as u32) << 16;
                sqe.cdw11 = connect.sqsize as u32 | (connect.attributes.bits() as u32) << 16;
                sqe.cdw12 = connect.kato_ms;
            }
            Self::PropertyGet(get) => {
                sqe.cdw10 = get.size.bits();
                sqe.cdw11 = get.offset;
            }
            Self::AuthenticationSend(auth) | Self::AuthenticationReceive(auth) => {
                sqe.cdw10 = (auth.spsp0 as u32) << 8 | (auth.spsp1 as u32) << 16 | (auth.secp as u32) << 24;
                sqe.cdw11 = auth.len_bytes;
            }
            Self::Disconnect { recfmt } => sqe.cdw10 = *recfmt as u32,
            Self::Unknown { .. } => {}
        }
        sqe
    }
}

fn authentication(sqe: &Sqe) -> Authentication {
    Authentication {
        spsp0: (sqe.cdw10 >> 8) as u8,
        spsp1: (sqe.cdw10 >> 16) as u8,
        secp: (sqe.cdw10 >> 24) as u8,
        len_bytes: sqe.cdw11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: FabricsCommand, parts: &[(usize, &[u8])]) {
        let mut parts = parts.to_vec();
        let head = [0x7f, 0x40, 5, 0, command.fctype()];
        parts.push((0, &head));
        let expected = crate::golden::bytes(&parts);
        crate::golden::assert_emits(&expected, |bytes| command.sqe(5, Sgl::NONE).emit(bytes));
        assert_eq!(FabricsCommand::parse(&Sqe::parse(&expected)), command);
    }

    #[test]
    fn golden() {
        let connect = Connect {
            recfmt: 0,
            qid: 0x0102,
            sqsize: 127,
            attributes: ConnectAttributes { no_sq_flow_control: true, ..Default::default() },
            kato_ms: 15_000,
        };
        check(FabricsCommand::Connect(connect), &[(42, &[2, 1, 127, 0, 4, 0, 0x98, 0x3a])]);
        let set = PropertySet { size: PropertySize::Four, offset: 0x14, value: 0x0046_0001 };
        check(FabricsCommand::PropertySet(set), &[(44, &[0x14, 0, 0, 0, 1, 0, 0x46])]);
        let get = PropertyGet { size: PropertySize::Eight, offset: 0 };
        check(FabricsCommand::PropertyGet(get), &[(40, &[1])]);
        let auth = Authentication { secp: 0xe9, spsp1: 2, spsp0: 1, len_bytes: 256 };
        check(FabricsCommand::AuthenticationSend(auth), &[(41, &[1, 2, 0xe9, 0, 1])]);
        check(FabricsCommand::AuthenticationReceive(auth), &[(41, &[1, 2, 0xe9, 0, 1])]);
        check(FabricsCommand::Disconnect { recfmt: 3 }, &[(40, &[3])]);
        check(FabricsCommand::Unknown { fctype: 0x33 }, &[]);
        assert_eq!(FabricsCommand::Connect(connect).transfer(), Transfer::HostToController);
    }
}
