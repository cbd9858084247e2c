//! Connection initialization: ICReq and ICResp (NVMe-oF TCP 1.0c §3.6.2.2, §3.6.2.3, figures 21 and 22).

use super::error::{Fault, HeaderError, field};
use super::header::{CommonHeader, PduType, flag};

const DGST_HEADER: u8 = 1 << 0;
const DGST_DATA: u8 = 1 << 1;
const MAX_ALIGNMENT: u8 = 31;

layout! {
    /// The fields that ICReq and ICResp share, 128 bytes.
    pub struct IcFields [128] {
        /// The common header, which [`CommonHeader::parse`] reads.
        common: [u8; 8] = 0,
        /// PDU Format Version.
        pfv: u16 = 8,
        /// HPDA or CPDA, 0's based dwords.
        pda: u8 = 10,
        /// Digest bits.
        dgst: u8 = 11,
        /// MAXR2T or MAXH2CDATA.
        max: u32 = 12,
    }
}

impl IcFields {
    fn checked(bytes: &[u8; 128]) -> Result<Self, HeaderError> {
        let fields = Self::parse(bytes);
        if fields.pfv != 0 {
            return Err(HeaderError::parameter(Fault::FormatVersion(fields.pfv), field::PFV));
        }
        if fields.pda > MAX_ALIGNMENT {
            return Err(HeaderError::field(Fault::Alignment(fields.pda), field::PDA));
        }
        Ok(fields)
    }

    fn emit_as(pdu_type: PduType, pda_bytes: u32, digests: (bool, bool), max: u32, bytes: &mut [u8; 128]) {
        let mut common = [0; 8];
        CommonHeader::without_data(pdu_type, 0, false).emit(&mut common);
        let dgst = flag::when(digests.0, DGST_HEADER) | flag::when(digests.1, DGST_DATA);
        Self { common, pfv: 0, pda: (pda_bytes.clamp(4, 128) / 4 - 1) as u8, dgst, max }.emit(bytes);
    }
}

/// Initialize Connection Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcReq {
    /// HPDA: the alignment that the host wants for C2HData's data, 4 to 128 bytes.
    pub host_alignment_bytes: u32,
    /// True if the host requests header digests.
    pub header_digest: bool,
    /// True if the host requests data digests.
    pub data_digest: bool,
    /// Most R2Ts that may be outstanding per command, at least 1. The value is 0's based on the wire, and a value above the
    /// largest u32 is cut to it.
    pub max_r2t: u32,
}

impl IcReq {
    /// Size in bytes. Digests never apply.
    pub const LEN: usize = 128;

    /// Reads the request. [`CommonHeader::parse`] has checked its common header.
    pub fn parse(bytes: &[u8; 128]) -> Result<Self, HeaderError> {
        let fields = IcFields::checked(bytes)?;
        Ok(Self {
            host_alignment_bytes: (fields.pda as u32 + 1) * 4,
            header_digest: fields.dgst & DGST_HEADER != 0,
            data_digest: fields.dgst & DGST_DATA != 0,
            max_r2t: fields.max.saturating_add(1),
        })
    }

    /// Writes every byte of the PDU, common header included.
    pub fn emit(&self, bytes: &mut [u8; 128]) {
        let digests = (self.header_digest, self.data_digest);
        let max = self.max_r2t.max(1) - 1;
        IcFields::emit_as(PduType::IcReq, self.host_alignment_bytes, digests, max, bytes);
    }
}

/// Initialize Connection Response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcResp {
    /// CPDA: the alignment that the controller wants for data from the host, 4 to 128 bytes.
    pub controller_alignment_bytes: u32,
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// MAXH2CDATA: most bytes of data in one H2CData. The value is at least 4096 and a multiple of 4.
    pub max_h2c_data_bytes: u32,
}

impl IcResp {
    /// Size in bytes. Digests never apply.
    pub const LEN: usize = 128;
    /// The least MAXH2CDATA that the spec allows.
    pub const MIN_MAX_H2C_DATA: u32 = 4096;

    /// Reads the response. [`CommonHeader::parse`] has checked its common header.
    pub fn parse(bytes: &[u8; 128]) -> Result<Self, HeaderError> {
        let fields = IcFields::checked(bytes)?;
        if fields.max < Self::MIN_MAX_H2C_DATA || !fields.max.is_multiple_of(4) {
            return Err(HeaderError::field(Fault::MaxH2cData(fields.max), field::MAX));
        }
        Ok(Self {
            controller_alignment_bytes: (fields.pda as u32 + 1) * 4,
            header_digest: fields.dgst & DGST_HEADER != 0,
            data_digest: fields.dgst & DGST_DATA != 0,
            max_h2c_data_bytes: fields.max,
        })
    }

    /// Writes every byte of the PDU, common header included.
    pub fn emit(&self, bytes: &mut [u8; 128]) {
        let digests = (self.header_digest, self.data_digest);
        let max = self.max_h2c_data_bytes;
        IcFields::emit_as(PduType::IcResp, self.controller_alignment_bytes, digests, max, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::FatalStatus;

    #[test]
    fn request_golden() {
        let request = IcReq { host_alignment_bytes: 8, header_digest: true, data_digest: false, max_r2t: 16 };
        let expected = crate::golden::bytes(&[(2, &[128, 0, 128]), (10, &[1, 1, 15])]);
        crate::golden::assert_emits(&expected, |bytes| request.emit(bytes));
        assert_eq!(IcReq::parse(&expected), Ok(request));
    }

    #[test]
    fn response_golden() {
        let response = IcResp {
            controller_alignment_bytes: 4,
            header_digest: true,
            data_digest: true,
            max_h2c_data_bytes: 0x2_0000,
        };
        let expected = crate::golden::bytes(&[(0, &[1, 0, 128, 0, 128]), (11, &[3, 0, 0, 2])]);
        crate::golden::assert_emits(&expected, |bytes| response.emit(bytes));
        assert_eq!(IcResp::parse(&expected), Ok(response));
    }

    #[test]
    fn each_fault_names_its_field() {
        let mut bytes = crate::golden::bytes(&[(2, &[128, 0, 128]), (8, &[1])]);
        let unsupported = FatalStatus::UnsupportedParameter { offset_bytes: 8 };
        assert_eq!(IcReq::parse(&bytes).unwrap_err().status, unsupported);
        bytes[8] = 0;
        bytes[10] = 32;
        assert_eq!(
            IcReq::parse(&bytes).unwrap_err().status,
            FatalStatus::InvalidHeaderField { offset_bytes: 10 }
        );
        bytes[10] = 0;
        // MAXH2CDATA of 4095 and 4098.
        for low in [[0xff, 0x0f], [0x02, 0x10]] {
            bytes[12..14].copy_from_slice(&low);
            assert_eq!(
                IcResp::parse(&bytes).unwrap_err().status,
                FatalStatus::InvalidHeaderField { offset_bytes: 12 }
            );
        }
        bytes[12..16].fill(0xff);
        assert_eq!(IcReq::parse(&bytes).unwrap().max_r2t, u32::MAX);
    }
}
