//! Header and data digests: CRC32C, little-endian (NVMe-oF TCP 1.0c §3.3.1.1).

use super::error::{FatalStatus, Fault, HeaderError};
use super::header::Framing;

/// Bytes of a digest.
pub const DIGEST_LEN: usize = 4;

/// CRC32C of `bytes`.
#[inline]
pub fn digest(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// CRC32C of what `crc` covered, then `bytes`. Start from 0.
#[inline]
pub fn digest_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

impl Framing {
    /// Compares HDGST with the CRC32C of the header.
    #[inline]
    pub fn check_header_digest(header: &[u8], hdgst: &[u8; DIGEST_LEN]) -> Result<(), HeaderError> {
        let received = u32::from_le_bytes(*hdgst);
        let computed = digest(header);
        if received == computed {
            return Ok(());
        }
        Err(HeaderError::new(
            Fault::HeaderDigest { received, computed },
            FatalStatus::HeaderDigestError { received },
        ))
    }
}
