//! Terminate connection requests: H2CTermReq and C2HTermReq (NVMe-oF TCP 1.0c §3.6.2.4, §3.6.2.5, figures 23 to 28).

use super::error::FatalStatus;
use super::header::{CommonHeader, PduType};

/// The side that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermReqDirection {
    /// H2CTermReq.
    HostToController,
    /// C2HTermReq.
    ControllerToHost,
}

layout! {
    /// The header of a terminate request, 24 bytes.
    pub struct TermFields [24] {
        /// The common header.
        common: [u8; 8] = 0,
        /// Fatal Error Status.
        fes: u16 = 8,
        /// Fatal Error Information.
        fei: u32 = 10,
    }
}

/// A terminate connection request, with up to 128 bytes of the header that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermReq<'a> {
    /// The reason.
    pub status: FatalStatus,
    /// The offending PDU's header; `emit` cuts it to 128 bytes.
    pub offender: &'a [u8],
}

impl<'a> TermReq<'a> {
    /// Size of the header in bytes.
    pub const HEADER_LEN: usize = 24;
    /// Most bytes of the offender's header.
    pub const MAX_DATA_LEN: usize = 128;
    /// Largest size of the PDU in bytes.
    pub const MAX_LEN: usize = Self::HEADER_LEN + Self::MAX_DATA_LEN;

    /// Reads a request. [`CommonHeader::parse`] has checked its common header. `bytes` is the whole PDU.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, crate::Truncated> {
        let Some((header, offender)) = bytes.split_first_chunk() else {
            return Err(crate::Truncated {
                what: "terminate request",
                need_bytes: Self::HEADER_LEN,
                have_bytes: bytes.len(),
            });
        };
        let fields = TermFields::parse(header);
        Ok(Self { status: FatalStatus::from_fields(fields.fes, fields.fei), offender })
    }

    /// Returns the size of the PDU in bytes.
    pub fn buffer_len(&self) -> usize {
        Self::HEADER_LEN + self.offender.len().min(Self::MAX_DATA_LEN)
    }

    /// Writes the first [`TermReq::buffer_len`] bytes and returns that number.
    pub fn emit(&self, direction: TermReqDirection, bytes: &mut [u8; TermReq::MAX_LEN]) -> usize {
        let len = self.buffer_len();
        let pdu_type = match direction {
            TermReqDirection::HostToController => PduType::H2cTermReq,
            TermReqDirection::ControllerToHost => PduType::C2hTermReq,
        };
        let mut fields = TermFields { common: [0; 8], fes: self.status.fes(), fei: self.status.fei() };
        CommonHeader { pdu_type, flags: 0, hlen: pdu_type.header_len(), pdo: 0, plen: len as u32 }
            .emit(&mut fields.common);
        if let Some((header, data)) = bytes.split_first_chunk_mut() {
            fields.emit(header);
            for (to, from) in data.iter_mut().zip(self.offender) {
                *to = *from;
            }
        }
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let offender = [9; 200];
        let request =
            TermReq { status: FatalStatus::InvalidHeaderField { offset_bytes: 4 }, offender: &offender[..8] };
        let mut dirty = [0xff; TermReq::MAX_LEN];
        let len = request.emit(TermReqDirection::ControllerToHost, &mut dirty);
        let expected: [u8; 32] =
            crate::golden::bytes(&[(0, &[3, 0, 24, 0, 32, 0, 0, 0, 1, 0, 4]), (24, &[9; 8])]);
        assert_eq!(dirty[..len], expected);
        assert_eq!(TermReq::parse(&dirty[..len]), Ok(request));

        let longest = TermReq { status: FatalStatus::SequenceError, offender: &offender };
        assert_eq!(longest.emit(TermReqDirection::HostToController, &mut dirty), 152);
        assert_eq!(dirty[..10], [2, 0, 24, 0, 152, 0, 0, 0, 2, 0]);
        assert!(TermReq::parse(&dirty[..23]).is_err());
    }

    #[test]
    fn fatal_status_fields() {
        for (status, fes, fei) in [
            (FatalStatus::HeaderDigestError { received: 7 }, 3, 7),
            (FatalStatus::DataOutOfRange, 4, 0),
            (FatalStatus::LimitExceeded, 5, 0),
            (FatalStatus::UnsupportedParameter { offset_bytes: 8 }, 6, 8),
            (FatalStatus::Reserved { fes: 9, fei: 1 }, 9, 1),
        ] {
            assert_eq!((status.fes(), status.fei()), (fes, fei));
            assert_eq!(FatalStatus::from_fields(fes, fei), status);
        }
    }
}
