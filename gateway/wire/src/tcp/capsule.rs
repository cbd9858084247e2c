//! Capsules: commands and responses (NVMe-oF TCP 1.0c §3.6.2.6, §3.6.2.7, figures 29 and 30).

use super::header::{CommonHeader, PduType};
use crate::nvme::{Cqe, Sqe};

/// Command Capsule. Optional in-capsule data starts at PDO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapsuleCmd {
    /// The command.
    pub sqe: Sqe,
}

impl CapsuleCmd {
    /// Size of the header in bytes, without digest and data.
    pub const LEN: usize = 72;

    /// Reads the command from a header. The caller has checked the header's common part.
    #[inline]
    pub fn parse(bytes: &[u8; 72]) -> Self {
        // The array's length is part of its type. So the compiler knows that `None` can't occur, and removes the arm for
        // `None`.
        match bytes.last_chunk::<64>() {
            Some(sqe) => Self { sqe: Sqe::parse(sqe) },
            None => Self { sqe: Sqe::default() },
        }
    }

    /// Writes every byte of the header. The caller adds `data_len` bytes of in-capsule data (0 for none) at the
    /// returned header's PDO, then DDGST. `alignment_bytes` is the controller's CPDA.
    #[inline]
    pub fn emit(
        &self,
        header_digest: bool,
        data_digest: bool,
        alignment_bytes: u32,
        data_len: u32,
        bytes: &mut [u8; 72],
    ) -> CommonHeader {
        let header = if data_len == 0 {
            CommonHeader::without_data(PduType::CapsuleCmd, 0, header_digest)
        } else {
            CommonHeader::with_data(
                PduType::CapsuleCmd,
                0,
                header_digest,
                data_digest,
                alignment_bytes,
                data_len,
            )
        };
        if let Some(common) = bytes.first_chunk_mut() {
            header.emit(common);
        }
        if let Some(sqe) = bytes.last_chunk_mut() {
            self.sqe.emit(sqe);
        }
        header
    }
}

/// Response Capsule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapsuleResp {
    /// The completion.
    pub cqe: Cqe,
}

impl CapsuleResp {
    /// Size of the header in bytes, without digest. A response capsule has no data.
    pub const LEN: usize = 24;

    /// Reads the completion from a header. The caller has checked the header's common part.
    #[inline]
    pub fn parse(bytes: &[u8; 24]) -> Self {
        match bytes.last_chunk::<16>() {
            Some(cqe) => Self { cqe: Cqe::parse(cqe) },
            None => Self { cqe: Cqe::default() },
        }
    }

    /// Writes every byte of the header. The caller adds HDGST if header digests are on.
    #[inline]
    pub fn emit(&self, header_digest: bool, bytes: &mut [u8; 24]) {
        if let Some(common) = bytes.first_chunk_mut() {
            CommonHeader::without_data(PduType::CapsuleResp, 0, header_digest).emit(common);
        }
        if let Some(cqe) = bytes.last_chunk_mut() {
            self.cqe.emit(cqe);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::{IoCommand, Sgl, Status};

    #[test]
    fn command_golden() {
        let capsule = CapsuleCmd { sqe: IoCommand::Flush.sqe(0x0102, 1, Sgl::Transport { len_bytes: 0 }) };
        let parts: [(usize, &[u8]); 2] = [(9, &[0x40, 2, 1, 1]), (8 + 39, &[0x5a])];
        let with = |common: [u8; 8]| {
            let mut bytes = crate::golden::bytes(&parts);
            bytes[..8].copy_from_slice(&common);
            bytes
        };
        let bare = with([4, 0, 72, 0, 72, 0, 0, 0]);
        crate::golden::assert_emits(&bare, |bytes| _ = capsule.emit(false, false, 4, 0, bytes));
        assert_eq!(CapsuleCmd::parse(&bare), capsule);
        let full = with([4, 3, 72, 128, 0x84, 0x10, 0, 0]);
        crate::golden::assert_emits(&full, |bytes| {
            assert_eq!(capsule.emit(true, true, 64, 4096, bytes).pdo, 128);
        });
    }

    #[test]
    fn response_golden() {
        let capsule = CapsuleResp { cqe: Cqe { result: 1, ..Cqe::new(3, 2, Status::INVALID_OPCODE) } };
        let expected =
            crate::golden::bytes(&[(0, &[5, 1, 24, 0, 28, 0, 0, 0, 1]), (16, &[2, 0, 0, 0, 3, 0, 2])]);
        crate::golden::assert_emits(&expected, |bytes| capsule.emit(true, bytes));
        assert_eq!(CapsuleResp::parse(&expected), capsule);
    }
}
