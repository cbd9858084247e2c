//! The common header of all PDUs, and the layout of a PDU that results from it (NVMe-oF TCP 1.0c §3.6.1, figure 20).

use super::error::{Fault, HeaderError, field};

/// Bytes of a digest.
pub const DIGEST_LEN: usize = 4;

/// PDU types (NVMe-oF TCP 1.0c figure 20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PduType {
    /// Initialize Connection Request, host to controller.
    IcReq = 0x00,
    /// Initialize Connection Response, controller to host.
    IcResp = 0x01,
    /// Host to controller terminate request.
    H2cTermReq = 0x02,
    /// Controller to host terminate request.
    C2hTermReq = 0x03,
    /// Command capsule, host to controller.
    CapsuleCmd = 0x04,
    /// Response capsule, controller to host.
    CapsuleResp = 0x05,
    /// Data, host to controller.
    H2cData = 0x06,
    /// Data, controller to host.
    C2hData = 0x07,
    /// Ready to Transfer, controller to host.
    R2t = 0x09,
}

/// Bits of FLAGS.
#[allow(missing_docs)]
pub mod flag {
    pub const HDGST: u8 = 1 << 0;
    pub const DDGST: u8 = 1 << 1;
    pub const LAST_PDU: u8 = 1 << 2;
    pub const SUCCESS: u8 = 1 << 3;

    /// Returns `bits` if `on`, else zero.
    #[inline]
    pub(crate) const fn when(on: bool, bits: u8) -> u8 {
        on as u8 * bits
    }
}

impl PduType {
    /// Returns the PDU type for the first byte of a PDU, or `None` if the byte is not a PDU type.
    #[inline]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x00 => Self::IcReq,
            0x01 => Self::IcResp,
            0x02 => Self::H2cTermReq,
            0x03 => Self::C2hTermReq,
            0x04 => Self::CapsuleCmd,
            0x05 => Self::CapsuleResp,
            0x06 => Self::H2cData,
            0x07 => Self::C2hData,
            0x09 => Self::R2t,
            _ => return None,
        })
    }

    /// Returns HLEN: the length of the header in bytes, without its digest.
    #[inline]
    pub const fn header_len(self) -> u8 {
        match self {
            Self::IcReq | Self::IcResp => 128,
            Self::CapsuleCmd => 72,
            _ => 24,
        }
    }

    /// Returns whether a host sends PDUs of this type.
    #[inline]
    pub const fn from_host(self) -> bool {
        // All even types come from hosts. All odd types, also R2T (09h), come from controllers.
        self as u8 & 1 == 0
    }

    /// Returns whether a PDU of this type may hold data.
    #[inline]
    const fn has_data(self) -> bool {
        matches!(self, Self::CapsuleCmd | Self::H2cData | Self::C2hData | Self::H2cTermReq | Self::C2hTermReq)
    }

    /// Returns whether digests apply to this type. They don't apply to ICReq and ICResp, which negotiate digests, nor to
    /// terminate requests.
    #[inline]
    const fn has_digests(self) -> bool {
        self as u8 >= Self::CapsuleCmd as u8
    }
}

/// The reading side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// A target reads PDUs that come from a host.
    Controller,
    /// A host reads PDUs that come from a controller.
    Host,
}

/// The settings that both sides agreed on, and the receiver's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// The reading side.
    pub receiver: Receiver,
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// The data alignment that the receiver requested (CPDA or HPDA), in bytes: a multiple of 4 up to 128.
    pub data_alignment_bytes: u32,
    /// Most in-capsule data in bytes: IOCCSZ · 16 − 64, or 8192 on an admin queue.
    pub max_capsule_data_bytes: u32,
    /// Most data in one H2CData or C2HData in bytes (MAXH2CDATA for a controller).
    pub max_data_bytes: u32,
}

impl Framing {
    /// Returns the framing before ICReq and ICResp: no digests, 4-byte alignment.
    pub const fn initial(receiver: Receiver) -> Self {
        Self {
            receiver,
            header_digest: false,
            data_digest: false,
            data_alignment_bytes: 4,
            max_capsule_data_bytes: 8192,
            max_data_bytes: 128 * 1024,
        }
    }
}

/// The lengths of a PDU's parts, in bytes, in the order of the parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Header without its digest: HLEN.
    pub header_len: u32,
    /// 4 if a header digest follows the header, else 0.
    pub header_digest_len: u32,
    /// Padding up to PDO.
    pub pad_len: u32,
    /// Data.
    pub data_len: u32,
    /// 4 if a data digest follows the data, else 0.
    pub data_digest_len: u32,
}

impl Layout {
    /// Returns the length of header, header digest and padding: all bytes before the data.
    #[inline]
    pub const fn before_data_len(&self) -> u32 {
        self.header_len + self.header_digest_len + self.pad_len
    }

    /// Returns the length of the whole PDU.
    #[inline]
    pub const fn total_len(&self) -> u32 {
        self.before_data_len() + self.data_len + self.data_digest_len
    }
}

/// The common header of 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonHeader {
    /// PDU-Type.
    pub pdu_type: PduType,
    /// FLAGS: see [`flag`].
    pub flags: u8,
    /// HLEN in bytes.
    pub hlen: u8,
    /// PDO: the byte offset at which data starts, or 0 without data.
    pub pdo: u8,
    /// PLEN: the length of the whole PDU in bytes.
    pub plen: u32,
}

impl CommonHeader {
    /// Size in bytes.
    pub const LEN: usize = 8;

    /// The longest header of any type, with its digest. A receiver needs a buffer of this length.
    pub const MAX_HEADER_LEN: usize = 128;

    /// Reads the header. The type must be known, HLEN must be the length of the type's header, and PLEN must be at least
    /// HLEN.
    #[inline]
    pub fn parse(bytes: &[u8; 8]) -> Result<Self, HeaderError> {
        let [pdu_type, flags, hlen, pdo, p0, p1, p2, p3] = *bytes;
        let plen = u32::from_le_bytes([p0, p1, p2, p3]);
        let Some(pdu_type) = PduType::from_byte(pdu_type) else {
            return Err(HeaderError::field(Fault::UnknownType(pdu_type), field::PDU_TYPE));
        };
        let expected = pdu_type.header_len();
        if hlen != expected {
            return Err(HeaderError::field(Fault::HeaderLength { hlen, expected }, field::HLEN));
        }
        if plen < hlen as u32 {
            return Err(HeaderError::field(Fault::PduLength { plen }, field::PLEN));
        }
        Ok(Self { pdu_type, flags, hlen, pdo, plen })
    }

    /// Writes every byte.
    #[inline]
    pub fn emit(&self, bytes: &mut [u8; 8]) {
        let [p0, p1, p2, p3] = self.plen.to_le_bytes();
        *bytes = [self.pdu_type as u8, self.flags, self.hlen, self.pdo, p0, p1, p2, p3];
    }

    /// Returns the header of a PDU without data. The flags and PLEN depend on the header digest, and PDO is 0.
    #[inline]
    pub(super) fn without_data(pdu_type: PduType, flags: u8, header_digest: bool) -> Self {
        let hlen = pdu_type.header_len();
        Self {
            pdu_type,
            flags: flags | flag::when(header_digest, flag::HDGST),
            hlen,
            pdo: 0,
            plen: hlen as u32 + header_digest as u32 * DIGEST_LEN as u32,
        }
    }

    /// Returns the header of a PDU with `data_len` > 0 bytes of data, aligned to `alignment_bytes` (1 to
    /// 128).
    #[inline]
    pub(super) fn with_data(
        pdu_type: PduType,
        flags: u8,
        header_digest: bool,
        data_digest: bool,
        alignment_bytes: u32,
        data_len: u32,
    ) -> Self {
        let hlen = pdu_type.header_len();
        let pdo = (hlen as u32 + header_digest as u32 * DIGEST_LEN as u32)
            .next_multiple_of(alignment_bytes.clamp(1, 128));
        Self {
            pdu_type,
            flags: flags | flag::when(header_digest, flag::HDGST) | flag::when(data_digest, flag::DDGST),
            hlen,
            pdo: pdo as u8,
            plen: pdo.saturating_add(data_len).saturating_add(data_digest as u32 * DIGEST_LEN as u32),
        }
    }

    /// Returns the layout of the PDU, checked against the connection's framing: direction, digest flags, PDO,
    /// PLEN, size.
    #[inline]
    pub fn layout(&self, framing: &Framing) -> Result<Layout, HeaderError> {
        let pdu_type = self.pdu_type;
        if pdu_type.from_host() != (framing.receiver == Receiver::Controller) {
            return Err(HeaderError::field(Fault::WrongDirection(pdu_type as u8), field::PDU_TYPE));
        }
        let header_digest = framing.header_digest && pdu_type.has_digests();
        if pdu_type.has_digests() && (self.flags & flag::HDGST != 0) != header_digest {
            return Err(HeaderError::field(Fault::DigestFlags { flags: self.flags }, field::FLAGS));
        }
        let header_len = self.hlen as u32;
        let header_digest_len = header_digest as u32 * DIGEST_LEN as u32;
        let bare_len = header_len + header_digest_len;
        if self.plen < bare_len {
            return Err(HeaderError::field(Fault::PduLength { plen: self.plen }, field::PLEN));
        }
        if self.plen == bare_len {
            // Accept DDGSTF without data, because some hosts set the flag on each capsule. There is no data that a digest
            // could cover.
            return Ok(Layout { header_len, header_digest_len, ..Layout::default() });
        }
        if !pdu_type.has_data() {
            return Err(HeaderError::field(Fault::PduLength { plen: self.plen }, field::PLEN));
        }
        self.data_layout(framing, header_len, header_digest_len)
    }

    #[inline]
    fn data_layout(
        &self,
        framing: &Framing,
        header_len: u32,
        header_digest_len: u32,
    ) -> Result<Layout, HeaderError> {
        let pdu_type = self.pdu_type;
        if !pdu_type.has_digests() {
            // Terminate requests: PDO is reserved, data follows the header, no digests.
            let data_len = self.plen - header_len;
            let max_bytes = super::TermReq::MAX_DATA_LEN as u32;
            return if data_len <= max_bytes {
                Ok(Layout { header_len, data_len, ..Layout::default() })
            } else {
                Err(HeaderError::field(Fault::PduLength { plen: self.plen }, field::PLEN))
            };
        }
        let data_digest = framing.data_digest;
        if (self.flags & flag::DDGST != 0) != data_digest {
            return Err(HeaderError::field(Fault::DigestFlags { flags: self.flags }, field::FLAGS));
        }
        let data_digest_len = data_digest as u32 * DIGEST_LEN as u32;
        let bare_len = header_len + header_digest_len;
        let pdo = self.pdo as u32;
        let alignment_bytes = framing.data_alignment_bytes;
        if pdo < bare_len || !pdo.is_multiple_of(alignment_bytes) {
            return Err(HeaderError::field(Fault::DataOffset { pdo: self.pdo, alignment_bytes }, field::PDO));
        }
        // PDO fits in a byte, so the sum can't overflow.
        let Some(data_len) = self.plen.checked_sub(pdo + data_digest_len).filter(|&len| len > 0) else {
            return Err(HeaderError::field(Fault::PduLength { plen: self.plen }, field::PLEN));
        };
        let max_bytes = match pdu_type {
            PduType::CapsuleCmd => framing.max_capsule_data_bytes,
            _ => framing.max_data_bytes,
        };
        if data_len > max_bytes {
            let fault = Fault::TooMuchData { len_bytes: data_len, max_bytes };
            return Err(match pdu_type {
                PduType::CapsuleCmd => HeaderError::field(fault, field::PLEN),
                _ => HeaderError::new(fault, super::FatalStatus::LimitExceeded),
            });
        }
        Ok(Layout { header_len, header_digest_len, pad_len: pdo - bare_len, data_len, data_digest_len })
    }
}

const _: () = {
    assert!(PduType::IcReq.header_len() as usize <= CommonHeader::MAX_HEADER_LEN);
    assert!(PduType::CapsuleCmd.header_len() as usize == CommonHeader::LEN + crate::nvme::Sqe::LEN);
    assert!(PduType::CapsuleResp.header_len() as usize == CommonHeader::LEN + crate::nvme::Cqe::LEN);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::FatalStatus;

    fn framing(header_digest: bool, data_digest: bool) -> Framing {
        Framing { header_digest, data_digest, ..Framing::initial(Receiver::Controller) }
    }

    fn layout(bytes: [u8; 8], framing: Framing) -> Result<Layout, FatalStatus> {
        CommonHeader::parse(&bytes).and_then(|header| header.layout(&framing)).map_err(|error| error.status)
    }

    fn field(offset_bytes: u32) -> Result<Layout, FatalStatus> {
        Err(FatalStatus::InvalidHeaderField { offset_bytes })
    }

    #[test]
    fn golden() {
        let header =
            CommonHeader { pdu_type: PduType::C2hData, flags: 0x0c, hlen: 24, pdo: 24, plen: 0x0001_0018 };
        let expected = [7, 0x0c, 24, 24, 0x18, 0, 1, 0];
        crate::golden::assert_emits(&expected, |bytes| header.emit(bytes));
        assert_eq!(CommonHeader::parse(&expected), Ok(header));
    }

    #[test]
    fn layouts() {
        let bare = Layout { header_len: 72, ..Layout::default() };
        assert_eq!(layout([4, 0, 72, 0, 72, 0, 0, 0], framing(false, false)), Ok(bare));
        // DDGSTF without data is harmless.
        let digest = Layout { header_digest_len: 4, ..bare };
        assert_eq!(layout([4, 3, 72, 0, 76, 0, 0, 0], framing(true, true)), Ok(digest));
        // 72 + 4, padded to 128, 4096 bytes, data digest: 4228 in all.
        let padded = Layout { header_digest_len: 4, pad_len: 52, data_len: 4096, data_digest_len: 4, ..bare };
        let aligned = Framing { data_alignment_bytes: 64, ..framing(true, true) };
        let got = layout([4, 3, 72, 128, 0x84, 0x10, 0, 0], aligned).unwrap();
        assert_eq!((got, got.before_data_len(), got.total_len()), (padded, 128, 4228));
        let term = Layout { header_len: 24, data_len: 128, ..Layout::default() };
        assert_eq!(layout([2, 0, 24, 0, 152, 0, 0, 0], framing(true, true)), Ok(term));
    }

    #[test]
    fn each_fault_names_its_field() {
        let off = framing(false, false);
        assert_eq!(layout([8, 0, 24, 0, 24, 0, 0, 0], off), field(0));
        assert_eq!(layout([0xff; 8], off), field(0));
        assert_eq!(layout([5, 0, 24, 0, 24, 0, 0, 0], off), field(0), "a response to a controller");
        assert_eq!(layout([4, 1, 72, 0, 76, 0, 0, 0], off), field(1), "a digest that was not negotiated");
        assert_eq!(
            layout([4, 0, 72, 0, 72, 0, 0, 0], framing(true, false)),
            field(1),
            "a digest that is missing"
        );
        assert_eq!(layout([6, 2, 24, 24, 32, 0, 0, 0], off), field(1));
        assert_eq!(layout([4, 0, 71, 0, 72, 0, 0, 0], off), field(2));
        assert_eq!(layout([6, 0, 24, 20, 32, 0, 0, 0], off), field(3), "PDO within the header");
        assert_eq!(layout([6, 0, 24, 26, 32, 0, 0, 0], off), field(3), "PDO unaligned");
        assert_eq!(layout([4, 0, 72, 0, 71, 0, 0, 0], off), field(4), "PLEN below HLEN");
        assert_eq!(
            layout([4, 1, 72, 0, 74, 0, 0, 0], framing(true, false)),
            field(4),
            "PLEN cuts the digest"
        );
        assert_eq!(layout([6, 0, 24, 32, 32, 0, 0, 0], off), field(4), "PLEN ends at PDO");
        assert_eq!(layout([0, 0, 128, 0, 129, 0, 0, 0], off), field(4), "data in ICReq");
        assert_eq!(layout([2, 0, 24, 0, 153, 0, 0, 0], off), field(4), "too much in a terminate request");
        assert_eq!(layout([4, 0, 72, 72, 0x49, 0x20, 0, 0], off), field(4), "8193 bytes in the capsule");
        let exceeded = Err(FatalStatus::LimitExceeded);
        assert_eq!(layout([6, 0, 24, 24, 0x19, 0, 2, 0], off), exceeded);
        assert_eq!(layout([6, 0, 24, 24, 0xff, 0xff, 0xff, 0xff], off), exceeded);
    }
}
