//! Connect's data and response (NVMe base 2.0c §6.3, figures 394 and 395).

use super::{Nqn, NqnError};
use crate::nvme::{Cqe, Status};
use std::fmt;

/// The CNTLID in a Connect of the admin queue under the dynamic controller model.
pub const DYNAMIC_CNTLID: u16 = 0xffff;

layout! {
    /// The unchecked fields of Connect's data.
    pub struct ConnectFields [1024] {
        /// HOSTID.
        hostid: [u8; 16] = 0,
        /// CNTLID.
        cntlid: u16 = 16,
        /// SUBNQN.
        subnqn: [u8; 256] = 256,
        /// HOSTNQN.
        hostnqn: [u8; 256] = 512,
    }
}

/// Connect's data, 1024 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectData {
    /// Host identifier, which is never zero over fabrics.
    pub hostid: [u8; 16],
    /// The requested controller, or [`DYNAMIC_CNTLID`] for any controller.
    pub cntlid: u16,
    /// Subsystem.
    pub subnqn: Nqn,
    /// NQN of the host, or an empty name for a host without a name.
    pub hostnqn: Nqn,
}

/// The invalid field of Connect's data. [`rejection`](Self::rejection) returns the matching invalid parameter of the
/// response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// HOSTID is zero.
    #[error("HOSTID is zero")]
    HostId,
    /// SUBNQN is not a valid name.
    #[error("SUBNQN: {0}")]
    SubNqn(NqnError),
    /// HOSTNQN is not a valid name.
    #[error("HOSTNQN: {0}")]
    HostNqn(NqnError),
}

impl ConnectError {
    /// Returns the rejection for the response.
    pub fn rejection(self) -> ConnectRejection {
        match self {
            Self::HostId => ConnectRejection::HOSTID,
            Self::SubNqn(_) => ConnectRejection::SUBNQN,
            Self::HostNqn(_) => ConnectRejection::HOSTNQN,
        }
    }
}

impl ConnectData {
    /// Size in bytes.
    pub const LEN: usize = 1024;

    /// Reads and checks the data.
    pub fn parse(bytes: &[u8; 1024]) -> Result<Self, ConnectError> {
        let fields = ConnectFields::parse(bytes);
        if fields.hostid == [0; 16] {
            return Err(ConnectError::HostId);
        }
        Ok(Self {
            hostid: fields.hostid,
            cntlid: fields.cntlid,
            subnqn: Nqn::parse(&fields.subnqn).map_err(ConnectError::SubNqn)?,
            hostnqn: Nqn::parse(&fields.hostnqn).map_err(ConnectError::HostNqn)?,
        })
    }

    /// Writes every byte.
    pub fn emit(&self, bytes: &mut [u8; 1024]) {
        ConnectFields {
            hostid: self.hostid,
            cntlid: self.cntlid,
            subnqn: self.subnqn.field(),
            hostnqn: self.hostnqn.field(),
        }
        .emit(bytes);
    }
}

/// The invalid parameter: dword 0 of a response with [`Status::CONNECT_INVALID_PARAMETERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectRejection {
    /// IPO: byte offset of the parameter.
    pub ipo: u16,
    /// IATTR: true if the offset is within the data, and false if it is within the submission queue entry.
    pub in_data: bool,
}

impl ConnectRejection {
    /// HOSTID.
    pub const HOSTID: Self = Self { ipo: 0, in_data: true };
    /// CNTLID.
    pub const CNTLID: Self = Self { ipo: 16, in_data: true };
    /// SUBNQN.
    pub const SUBNQN: Self = Self { ipo: 256, in_data: true };
    /// HOSTNQN.
    pub const HOSTNQN: Self = Self { ipo: 512, in_data: true };
    /// QID.
    pub const QID: Self = Self { ipo: 42, in_data: false };
    /// SQSIZE.
    pub const SQSIZE: Self = Self { ipo: 44, in_data: false };
    /// KATO.
    pub const KATO: Self = Self { ipo: 48, in_data: false };
}

/// Connect's response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectResponse {
    /// The queue is connected.
    Connected {
        /// Controller.
        cntlid: u16,
        /// AUTHREQ bits 1:0 (ASCR, ATR): the required authentication. 0 means none.
        authreq: u16,
    },
    /// A parameter is invalid.
    InvalidParameter(ConnectRejection),
    /// Any other failure.
    Failed(Status),
}

impl fmt::Display for ConnectResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { cntlid, .. } => write!(f, "connected to controller {cntlid}"),
            Self::InvalidParameter(ConnectRejection::SUBNQN) => {
                f.write_str("the controller has no such subsystem")
            }
            Self::InvalidParameter(ConnectRejection::HOSTNQN) => {
                f.write_str("the controller rejects this host NQN")
            }
            Self::InvalidParameter(ConnectRejection { ipo, in_data }) => {
                let part = if *in_data { "data" } else { "command" };
                write!(f, "the controller rejects the parameter at byte {ipo} of the {part}")
            }
            Self::Failed(status) => status.fmt(f),
        }
    }
}

impl ConnectResponse {
    /// Reads a completion of Connect.
    pub fn parse(cqe: &Cqe) -> Self {
        let (low, high) = (cqe.dw0() as u16, (cqe.dw0() >> 16) as u16);
        if cqe.status.is_ok() {
            Self::Connected { cntlid: low, authreq: high }
        } else if cqe.status.is(Status::CONNECT_INVALID_PARAMETERS) {
            Self::InvalidParameter(ConnectRejection { ipo: low, in_data: high & 1 != 0 })
        } else {
            Self::Failed(cqe.status)
        }
    }

    /// Returns the completion. An invalid parameter sets DNR, because a retry would fail again.
    ///
    /// `sqhd` is FFFFh if SQ flow control is off for the queue. The host learns the setting from this value (NVMe base
    /// 2.0c §3.3.1.4).
    pub fn cqe(&self, cid: u16, sqhd: u16) -> Cqe {
        let (result, status) = match *self {
            Self::Connected { cntlid, authreq } => (cntlid as u64 | (authreq as u64) << 16, Status::SUCCESS),
            Self::InvalidParameter(ConnectRejection { ipo, in_data }) => {
                (ipo as u64 | (in_data as u64) << 16, Status::CONNECT_INVALID_PARAMETERS.dnr())
            }
            Self::Failed(status) => (0, status),
        };
        Cqe { result, ..Cqe::new(cid, sqhd, status) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> ConnectData {
        ConnectData {
            hostid: [7; 16],
            cntlid: DYNAMIC_CNTLID,
            subnqn: Nqn::DISCOVERY,
            hostnqn: Nqn::new("nqn.2026-01.org.example:host").unwrap(),
        }
    }

    fn golden() -> [u8; 1024] {
        crate::golden::bytes(&[
            (0, &[7; 16]),
            (16, &[0xff, 0xff]),
            (256, b"nqn.2014-08.org.nvmexpress.discovery"),
            (512, b"nqn.2026-01.org.example:host"),
        ])
    }

    #[test]
    fn data_golden() {
        crate::golden::assert_emits(&golden(), |bytes| data().emit(bytes));
        assert_eq!(ConnectData::parse(&golden()), Ok(data()));
    }

    #[test]
    fn each_bad_field_names_its_offset() {
        for (at, len, with, ipo) in [(0, 16, 0, 0), (256, 1, 7, 256), (512, 1, b'\n', 512)] {
            let mut bytes = golden();
            bytes[at..at + len].fill(with);
            let rejection = ConnectData::parse(&bytes).unwrap_err().rejection();
            assert_eq!(rejection, ConnectRejection { ipo, in_data: true });
        }
    }

    #[test]
    fn response_golden() {
        for (response, result, status) in [
            (ConnectResponse::Connected { cntlid: 5, authreq: 0 }, 5, Status::SUCCESS),
            (
                ConnectResponse::InvalidParameter(ConnectRejection::HOSTNQN),
                0x0001_0200,
                Status::CONNECT_INVALID_PARAMETERS.dnr(),
            ),
            (
                ConnectResponse::InvalidParameter(ConnectRejection::QID),
                42,
                Status::CONNECT_INVALID_PARAMETERS.dnr(),
            ),
            (
                ConnectResponse::Failed(Status::CONNECT_INVALID_HOST.dnr()),
                0,
                Status::CONNECT_INVALID_HOST.dnr(),
            ),
        ] {
            let cqe = response.cqe(1, 2);
            assert_eq!(cqe, Cqe { result, sqhd: 2, sqid: 0, cid: 1, status });
            assert_eq!(ConnectResponse::parse(&cqe), response);
        }
    }
}
