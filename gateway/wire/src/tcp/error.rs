//! Fatal transport errors: the reasons to terminate a connection, in the terms of the terminate request
//! (NVMe-oF TCP 1.0c §3.5, §3.6.2.4, figures 24 and 26).

/// Fatal Error Status (FES), with its Fatal Error Information (FEI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatalStatus {
    /// 01h. FEI: byte offset of the field within the PDU header.
    InvalidHeaderField {
        /// See [`field`].
        offset_bytes: u32,
    },
    /// 02h: a PDU that is not legal at this point of the sequence. No FEI.
    SequenceError,
    /// 03h. FEI: the header digest as received.
    HeaderDigestError {
        /// HDGST from the PDU.
        received: u32,
    },
    /// 04h: data outside the requested range. No FEI.
    DataOutOfRange,
    /// 05h: R2T Limit Exceeded (from the host), Data Transfer Limit Exceeded (from the controller). No FEI.
    LimitExceeded,
    /// 06h. FEI: byte offset of the parameter within the PDU header.
    UnsupportedParameter {
        /// See [`field`].
        offset_bytes: u32,
    },
    /// Any other status that a peer sent.
    Reserved {
        /// FES.
        fes: u16,
        /// FEI.
        fei: u32,
    },
}

impl FatalStatus {
    /// Makes a status from the two fields of a terminate request.
    pub fn from_fields(fes: u16, fei: u32) -> Self {
        match fes {
            1 => Self::InvalidHeaderField { offset_bytes: fei },
            2 => Self::SequenceError,
            3 => Self::HeaderDigestError { received: fei },
            4 => Self::DataOutOfRange,
            5 => Self::LimitExceeded,
            6 => Self::UnsupportedParameter { offset_bytes: fei },
            _ => Self::Reserved { fes, fei },
        }
    }

    /// FES.
    pub fn fes(self) -> u16 {
        match self {
            Self::InvalidHeaderField { .. } => 1,
            Self::SequenceError => 2,
            Self::HeaderDigestError { .. } => 3,
            Self::DataOutOfRange => 4,
            Self::LimitExceeded => 5,
            Self::UnsupportedParameter { .. } => 6,
            Self::Reserved { fes, .. } => fes,
        }
    }

    /// Returns FEI, or 0 if the status has none.
    pub fn fei(self) -> u32 {
        match self {
            Self::InvalidHeaderField { offset_bytes } | Self::UnsupportedParameter { offset_bytes } => {
                offset_bytes
            }
            Self::HeaderDigestError { received } => received,
            Self::Reserved { fei, .. } => fei,
            Self::SequenceError | Self::DataOutOfRange | Self::LimitExceeded => 0,
        }
    }
}

/// Byte offsets of header fields, for FEI.
#[allow(missing_docs)]
pub mod field {
    pub const PDU_TYPE: u32 = 0;
    pub const FLAGS: u32 = 1;
    pub const HLEN: u32 = 2;
    pub const PDO: u32 = 3;
    pub const PLEN: u32 = 4;
    /// ICReq, ICResp.
    pub const PFV: u32 = 8;
    /// ICReq (HPDA), ICResp (CPDA).
    pub const PDA: u32 = 10;
    /// ICReq, ICResp.
    pub const DGST: u32 = 11;
    /// ICReq (MAXR2T), ICResp (MAXH2CDATA).
    pub const MAX: u32 = 12;
    /// H2CData, C2HData, R2T.
    pub const CCCID: u32 = 8;
    /// H2CData, R2T.
    pub const TTAG: u32 = 10;
    /// H2CData, C2HData (DATAO), R2T (R2TO).
    pub const OFFSET: u32 = 12;
    /// H2CData, C2HData (DATAL), R2T (R2TL).
    pub const LENGTH: u32 = 16;
}

/// The fault of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a PDU type.
    #[error("unknown PDU type {0:#04x}")]
    UnknownType(u8),
    /// A PDU type that only the receiver's own side may send.
    #[error("PDU type {0:#04x} is not legal in this direction")]
    WrongDirection(u8),
    /// Digest flags that differ from the negotiated ones.
    #[error("digest flags {flags:#04x} differ from what was negotiated")]
    DigestFlags {
        /// The flags byte.
        flags: u8,
    },
    /// SUCCESS without LAST_PDU.
    #[error("flags {flags:#04x} set SUCCESS without LAST_PDU")]
    SuccessWithoutLast {
        /// The flags byte.
        flags: u8,
    },
    /// HLEN is not the header length of the PDU type.
    #[error("HLEN is {hlen}, and should be {expected}")]
    HeaderLength {
        /// HLEN.
        hlen: u8,
        /// HLEN of the type.
        expected: u8,
    },
    /// PDO is before the end of the header, past the end of the PDU, or unaligned.
    #[error("PDO {pdo} is not within the PDU or not aligned to {alignment_bytes} bytes")]
    DataOffset {
        /// PDO.
        pdo: u8,
        /// The alignment that the receiver requested.
        alignment_bytes: u32,
    },
    /// PLEN is too short for the header, or it includes data although the PDU type has no data.
    #[error("PLEN {plen} does not fit the PDU type")]
    PduLength {
        /// PLEN.
        plen: u32,
    },
    /// More data than the receiver accepts.
    #[error("{len_bytes} bytes of data exceed the limit of {max_bytes}")]
    TooMuchData {
        /// Bytes in the PDU.
        len_bytes: u32,
        /// Bytes allowed.
        max_bytes: u32,
    },
    /// DATAO or R2TO is not a multiple of 4.
    #[error("offset {0} is not a multiple of 4")]
    UnalignedOffset(u32),
    /// DATAL differs from the data in the PDU, or DATAL or R2TL is 0.
    #[error("the length field says {field} bytes, and the data has {actual}")]
    DataLength {
        /// The field.
        field: u32,
        /// Bytes in the PDU.
        actual: u32,
    },
    /// Offset plus length exceed 32 bits.
    #[error("offset {offset} plus length {length} overflow")]
    RangeOverflow {
        /// DATAO or R2TO.
        offset: u32,
        /// DATAL or R2TL.
        length: u32,
    },
    /// PFV other than 0.
    #[error("PDU format version {0} is not supported")]
    FormatVersion(u16),
    /// HPDA or CPDA over 31.
    #[error("data alignment {0} exceeds 31")]
    Alignment(u8),
    /// MAXH2CDATA below 4096 or not a multiple of 4.
    #[error("MAXH2CDATA {0} is below 4096 or not a multiple of 4")]
    MaxH2cData(u32),
    /// The header digest does not match.
    #[error("the received header digest is {received:#010x}, and the computed digest is {computed:#010x}")]
    HeaderDigest {
        /// HDGST from the PDU.
        received: u32,
        /// CRC32C of the header.
        computed: u32,
    },
}

/// The error for a PDU header that ends the connection, with the fault and the status for the terminate request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct HeaderError {
    /// The fault.
    pub fault: Fault,
    /// FES and FEI.
    pub status: FatalStatus,
}

impl HeaderError {
    #[cold]
    pub(super) fn field(fault: Fault, offset_bytes: u32) -> Self {
        Self { fault, status: FatalStatus::InvalidHeaderField { offset_bytes } }
    }

    #[cold]
    pub(super) fn parameter(fault: Fault, offset_bytes: u32) -> Self {
        Self { fault, status: FatalStatus::UnsupportedParameter { offset_bytes } }
    }

    #[cold]
    pub(super) fn new(fault: Fault, status: FatalStatus) -> Self {
        Self { fault, status }
    }
}
