//! Data transfer: H2CData, C2HData and R2T (NVMe-oF TCP 1.0c §3.6.2.8 to §3.6.2.10, figures 31 to 33).

use super::error::{Fault, HeaderError, field};
use super::header::{CommonHeader, PduType, flag};

layout! {
    /// The shared fields of the three PDUs, 24 bytes. The tag is reserved in C2HData.
    pub struct DataFields [24] {
        /// The common header.
        common: [u8; 8] = 0,
        /// Command capsule's CID.
        cccid: u16 = 8,
        /// Transfer tag.
        ttag: u16 = 10,
        /// DATAO or R2TO.
        offset: u32 = 12,
        /// DATAL or R2TL.
        length: u32 = 16,
    }
}

impl DataFields {
    /// Reads the fields and checks offset and length without knowledge of the command. The connection checks offset and
    /// length against the command.
    #[inline]
    fn checked(bytes: &[u8; 24]) -> Result<Self, HeaderError> {
        let fields = Self::parse(bytes);
        if !fields.offset.is_multiple_of(4) {
            return Err(HeaderError::field(Fault::UnalignedOffset(fields.offset), field::OFFSET));
        }
        if fields.length == 0 {
            return Err(HeaderError::field(Fault::DataLength { field: 0, actual: 0 }, field::LENGTH));
        }
        if fields.offset.checked_add(fields.length).is_none() {
            let fault = Fault::RangeOverflow { offset: fields.offset, length: fields.length };
            return Err(HeaderError::field(fault, field::LENGTH));
        }
        Ok(fields)
    }

    #[inline]
    fn checked_with_data(bytes: &[u8; 24], data_len: u32) -> Result<Self, HeaderError> {
        let fields = Self::checked(bytes)?;
        if fields.length != data_len {
            let fault = Fault::DataLength { field: fields.length, actual: data_len };
            return Err(HeaderError::field(fault, field::LENGTH));
        }
        Ok(fields)
    }

    #[inline]
    fn emit_with(mut self, header: CommonHeader, bytes: &mut [u8; 24]) -> CommonHeader {
        header.emit(&mut self.common);
        self.emit(bytes);
        header
    }
}

/// Host to Controller Data Transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct H2cData {
    /// CCCID: the command.
    pub cid: u16,
    /// TTAG: the R2T that this PDU answers.
    pub ttag: u16,
    /// DATAO: offset within the command's data, in bytes; a multiple of 4.
    pub offset_bytes: u32,
    /// DATAL: bytes of data in this PDU.
    pub len_bytes: u32,
    /// LAST_PDU: the last PDU of its R2T.
    pub last: bool,
}

impl H2cData {
    /// Size of the header in bytes, without digest and data.
    pub const LEN: usize = 24;

    /// Reads a header whose common part was checked; `data_len` comes from its [`super::Layout`].
    #[inline]
    pub fn parse(bytes: &[u8; 24], data_len: u32) -> Result<Self, HeaderError> {
        let fields = DataFields::checked_with_data(bytes, data_len)?;
        Ok(Self {
            cid: fields.cccid,
            ttag: fields.ttag,
            offset_bytes: fields.offset,
            len_bytes: fields.length,
            last: fields.common[1] & flag::LAST_PDU != 0,
        })
    }

    /// Writes every byte of the header. The caller adds the data at the returned header's PDO, then DDGST.
    /// `alignment_bytes` is the controller's CPDA.
    #[inline]
    pub fn emit(
        &self,
        header_digest: bool,
        data_digest: bool,
        alignment_bytes: u32,
        bytes: &mut [u8; 24],
    ) -> CommonHeader {
        let header = CommonHeader::with_data(
            PduType::H2cData,
            flag::when(self.last, flag::LAST_PDU),
            header_digest,
            data_digest,
            alignment_bytes,
            self.len_bytes,
        );
        DataFields {
            common: [0; 8],
            cccid: self.cid,
            ttag: self.ttag,
            offset: self.offset_bytes,
            length: self.len_bytes,
        }
        .emit_with(header, bytes)
    }
}

/// Controller to Host Data Transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct C2hData {
    /// CCCID: the command.
    pub cid: u16,
    /// DATAO: offset within the command's data, in bytes; a multiple of 4.
    pub offset_bytes: u32,
    /// DATAL: bytes of data in this PDU.
    pub len_bytes: u32,
    /// LAST_PDU: the last PDU of the command.
    pub last: bool,
    /// SUCCESS: the command succeeded, and no response capsule follows. SUCCESS is set only together with `last`.
    pub success: bool,
}

impl C2hData {
    /// Size of the header in bytes, without digest and data.
    pub const LEN: usize = 24;

    /// Reads a header whose common part was checked; `data_len` comes from its [`super::Layout`].
    #[inline]
    pub fn parse(bytes: &[u8; 24], data_len: u32) -> Result<Self, HeaderError> {
        let fields = DataFields::checked_with_data(bytes, data_len)?;
        let flags = fields.common[1];
        let last = flags & flag::LAST_PDU != 0;
        let success = flags & flag::SUCCESS != 0;
        if success && !last {
            return Err(HeaderError::field(Fault::SuccessWithoutLast { flags }, field::FLAGS));
        }
        Ok(Self { cid: fields.cccid, offset_bytes: fields.offset, len_bytes: fields.length, last, success })
    }

    /// Writes every byte of the header. The caller adds the data at the returned header's PDO, then DDGST.
    /// `alignment_bytes` is the host's HPDA.
    #[inline]
    pub fn emit(
        &self,
        header_digest: bool,
        data_digest: bool,
        alignment_bytes: u32,
        bytes: &mut [u8; 24],
    ) -> CommonHeader {
        let header = CommonHeader::with_data(
            PduType::C2hData,
            flag::when(self.last, flag::LAST_PDU) | flag::when(self.success, flag::SUCCESS),
            header_digest,
            data_digest,
            alignment_bytes,
            self.len_bytes,
        );
        DataFields {
            common: [0; 8],
            cccid: self.cid,
            ttag: 0,
            offset: self.offset_bytes,
            length: self.len_bytes,
        }
        .emit_with(header, bytes)
    }
}

/// Ready to Transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    /// CCCID: the command.
    pub cid: u16,
    /// TTAG: the tag that the H2CData PDUs for this R2T must contain.
    pub ttag: u16,
    /// R2TO: offset within the command's data, in bytes; a multiple of 4.
    pub offset_bytes: u32,
    /// R2TL: requested bytes.
    pub len_bytes: u32,
}

impl R2t {
    /// Size of the header in bytes, without digest. An R2T has no data.
    pub const LEN: usize = 24;

    /// Reads a header whose common part was checked.
    #[inline]
    pub fn parse(bytes: &[u8; 24]) -> Result<Self, HeaderError> {
        let fields = DataFields::checked(bytes)?;
        Ok(Self {
            cid: fields.cccid,
            ttag: fields.ttag,
            offset_bytes: fields.offset,
            len_bytes: fields.length,
        })
    }

    /// Writes every byte of the header. The caller adds HDGST if header digests are on.
    #[inline]
    pub fn emit(&self, header_digest: bool, bytes: &mut [u8; 24]) {
        let header = CommonHeader::without_data(PduType::R2t, 0, header_digest);
        DataFields {
            common: [0; 8],
            cccid: self.cid,
            ttag: self.ttag,
            offset: self.offset_bytes,
            length: self.len_bytes,
        }
        .emit_with(header, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::FatalStatus;

    const H2C: [u8; 24] =
        [6, 7, 24, 28, 0x20, 0x10, 0, 0, 2, 1, 4, 3, 0, 0x20, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0];

    #[test]
    fn golden() {
        let h2c = H2cData { cid: 0x0102, ttag: 0x0304, offset_bytes: 8192, len_bytes: 4096, last: true };
        crate::golden::assert_emits(&H2C, |bytes| {
            assert_eq!(h2c.emit(true, true, 4, bytes).plen, 28 + 4096 + 4);
        });
        assert_eq!(H2cData::parse(&H2C, 4096), Ok(h2c));

        let c2h = C2hData { cid: 1, offset_bytes: 0, len_bytes: 512, last: true, success: true };
        let expected = crate::golden::bytes(&[(0, &[7, 0x0c, 24, 24, 0x18, 2, 0, 0, 1]), (16, &[0, 2])]);
        crate::golden::assert_emits(&expected, |bytes| _ = c2h.emit(false, false, 4, bytes));
        assert_eq!(C2hData::parse(&expected, 512), Ok(c2h));

        let r2t = R2t { cid: 1, ttag: 2, offset_bytes: 8192, len_bytes: 0x2_0000 };
        let expected =
            crate::golden::bytes(&[(0, &[9, 0, 24, 0, 24, 0, 0, 0, 1, 0, 2, 0, 0, 0x20, 0, 0, 0, 0, 2])]);
        crate::golden::assert_emits(&expected, |bytes| r2t.emit(false, bytes));
        assert_eq!(R2t::parse(&expected), Ok(r2t));
    }

    #[test]
    fn each_fault_names_its_field() {
        let fault = |edit: fn(&mut [u8; 24]), data_len| {
            let mut bytes = H2C;
            edit(&mut bytes);
            H2cData::parse(&bytes, data_len).unwrap_err().status
        };
        let field = |offset_bytes| FatalStatus::InvalidHeaderField { offset_bytes };
        assert_eq!(fault(|bytes| bytes[12] = 2, 4096), field(12));
        assert_eq!(fault(|_| (), 4092), field(16));
        assert_eq!(fault(|bytes| bytes[16..20].fill(0), 0), field(16));
        assert_eq!(fault(|bytes| bytes[12..16].copy_from_slice(&[0xfc, 0xff, 0xff, 0xff]), 4096), field(16));
        let mut success = H2C;
        success[1] = flag::SUCCESS;
        assert_eq!(C2hData::parse(&success, 4096).unwrap_err().status, field(1));
    }
}
