//! A host's first messages on a connection: an ICReq, and a Connect after the ICResp (NVMe-oF TCP 1.0c §3.2).

use trefoil_storage::frontend::ic_resp;
use trefoil_wire::fabrics::ConnectData;
use trefoil_wire::tcp::{CapsuleCmd, CommonHeader, DIGEST_LEN, Framing, IcReq, IcResp, PduType, Receiver};

/// The most bytes that a Connect with in-capsule data takes: a header, padding up to PDO, the data, two digests.
const MAX_CONNECT_BYTES: usize = CapsuleCmd::LEN + 128 + ConnectData::LEN + 2 * DIGEST_LEN;
/// The most bytes that a connection must have received before it goes to a core.
pub const MAX_OPENING_BYTES: usize = IcReq::LEN + MAX_CONNECT_BYTES;

/// The next step on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Wait until the stream has this many bytes, counted from its beginning.
    Wants(usize),
    /// The stream has an ICReq. Send this answer.
    Answer(IcResp),
    /// The stream has a whole Connect, or another message that a core answers. The connection can go to a core.
    Over,
}

impl Opening {
    /// Returns the next step for a stream that begins with `bytes`. `initialized` says that the ICReq has been answered.
    pub fn look(bytes: &[u8], initialized: bool) -> Self {
        let Some(first) = bytes.first_chunk() else { return Self::Wants(CommonHeader::LEN) };
        let framing = Framing::initial(Receiver::Controller);
        let is_icreq = CommonHeader::parse(first)
            .is_ok_and(|header| header.pdu_type == PduType::IcReq && header.layout(&framing).is_ok());
        if !is_icreq {
            return Self::Over;
        }
        let Some((request, rest)) = bytes.split_first_chunk() else { return Self::Wants(IcReq::LEN) };
        if !initialized {
            return match IcReq::parse(request) {
                Ok(request) => Self::Answer(ic_resp(request.header_digest, request.data_digest)),
                Err(_) => Self::Over,
            };
        }
        let Some(second) = rest.first_chunk() else { return Self::Wants(IcReq::LEN + CommonHeader::LEN) };
        match CommonHeader::parse(second) {
            Ok(header) if header.pdu_type == PduType::CapsuleCmd => {
                let whole = MAX_CONNECT_BYTES.min(header.plen as usize);
                if rest.len() < whole { Self::Wants(IcReq::LEN + whole) } else { Self::Over }
            }
            _ => Self::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ic_req() -> [u8; IcReq::LEN] {
        let mut bytes = [0; IcReq::LEN];
        IcReq { host_alignment_bytes: 4, header_digest: true, data_digest: false, max_r2t: 1 }
            .emit(&mut bytes);
        bytes
    }

    /// Returns a stream of an ICReq and the common header of a capsule with this PLEN.
    fn with_capsule(plen: u32) -> Vec<u8> {
        let mut header = [0; CommonHeader::LEN];
        CommonHeader { pdu_type: PduType::CapsuleCmd, flags: 1, hlen: 72, pdo: 76, plen }.emit(&mut header);
        [&ic_req()[..], &header].concat()
    }

    #[test]
    fn an_opening_is_waited_for_step_by_step() {
        let request = ic_req();
        for (come, next) in [(0, 8), (7, 8), (8, 128), (127, 128)] {
            assert_eq!(Opening::look(&request[..come], false), Opening::Wants(next), "{come}");
        }
        let answer = ic_resp(true, false);
        assert!(answer.header_digest && !answer.data_digest);
        assert_eq!(Opening::look(&request, false), Opening::Answer(answer));
        assert_eq!(Opening::look(&request, true), Opening::Wants(136));
        let mut stream = with_capsule(1100);
        assert_eq!(Opening::look(&stream[..135], true), Opening::Wants(136));
        assert_eq!(Opening::look(&stream, true), Opening::Wants(1228));
        stream.resize(1227, 0);
        assert_eq!(Opening::look(&stream, true), Opening::Wants(1228));
        stream.push(0);
        assert_eq!(Opening::look(&stream, true), Opening::Over);
        // The core has to request the data of this Connect.
        assert_eq!(Opening::look(&[&with_capsule(76)[..], &[0; 68]].concat(), true), Opening::Over);
    }

    #[test]
    fn what_is_no_opening_goes_to_a_core_at_once() {
        let request = ic_req();
        let wrong = |at: usize, value: u8| {
            let mut bytes = request;
            bytes[at] = value;
            bytes
        };
        // The type, HLEN and PLEN are in the first 8 bytes, which show that the PDU is not an ICReq.
        for bytes in [wrong(0, 4), wrong(0, 0xFF), wrong(2, 127), wrong(4, 129), wrong(7, 1)] {
            assert_eq!(Opening::look(&bytes[..8], false), Opening::Over);
        }
        // A version that does not exist (NVMe-oF TCP 1.0c figure 26, PFV).
        assert_eq!(Opening::look(&wrong(8, 1), false), Opening::Over);
        let after = |bytes: &[u8]| Opening::look(&[&request[..], bytes].concat(), true);
        assert_eq!(after(&request[..8]), Opening::Over, "a second ICReq");
        assert_eq!(after(&[4, 0, 72, 0, 71, 0, 0, 0]), Opening::Over, "a capsule shorter than its header");
        // For a larger capsule, the wait is only for the most bytes that a Connect can have.
        assert_eq!(Opening::look(&with_capsule(u32::MAX), true), Opening::Wants(MAX_OPENING_BYTES));
    }
}
