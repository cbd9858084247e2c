//! Header and data digests: CRC32C, little-endian (NVMe-oF TCP 1.0c §3.3.1.1).

use super::error::{FatalStatus, Fault, HeaderError};
use super::header::{DIGEST_LEN, Framing};

/// Returns the CRC32C of `bytes`.
#[inline]
pub fn digest(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Extends the CRC32C `crc` of earlier bytes by `bytes`, and returns the new CRC32C. `crc` is 0 in the first call.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_vectors() {
        // RFC 3720 §B.4.
        assert_eq!(digest(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(digest(b"123456789"), 0xe306_9283);
        assert_eq!(digest_append(digest_append(0, b"1234"), b"56789"), digest(b"123456789"));
    }

    #[test]
    fn header_digest() {
        let header = [0; 32];
        assert_eq!(Framing::check_header_digest(&header, &[0xaa, 0x36, 0x91, 0x8a]), Ok(()));
        let error = Framing::check_header_digest(&header, &[1, 0, 0, 0]).unwrap_err();
        assert_eq!((error.status.fes(), error.status.fei()), (3, 1));
    }
}
