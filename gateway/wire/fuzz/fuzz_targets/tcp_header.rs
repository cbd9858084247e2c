//! Parses PDU headers as a receiver does. The first byte of the input chooses the framing, and the other bytes are a stream
//! with one PDU.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trefoil_wire::tcp::*;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, pdu)) = input.split_first() else { return };
    let Some(common) = pdu.first_chunk() else { return };
    let framing = Framing {
        header_digest: choice & 1 != 0,
        data_digest: choice & 2 != 0,
        data_alignment_bytes: 4 << (choice >> 3 & 3),
        ..Framing::initial(if choice & 4 != 0 { Receiver::Host } else { Receiver::Controller })
    };
    let Ok(header) = CommonHeader::parse(common) else { return };
    let Ok(layout) = header.layout(&framing) else { return };
    assert_eq!(layout.total_len(), header.plen);
    assert!(layout.data_len <= framing.max_data_bytes);

    let mut headers = [0; CommonHeader::MAX_HEADER_LEN];
    for (to, from) in headers.iter_mut().zip(pdu) {
        *to = *from;
    }
    let (Some(short), Some(capsule)) = (headers.first_chunk::<24>(), headers.first_chunk::<72>())
    else {
        return;
    };
    match header.pdu_type {
        PduType::IcReq => _ = IcReq::parse(&headers),
        PduType::IcResp => _ = IcResp::parse(&headers),
        PduType::CapsuleCmd => _ = CapsuleCmd::parse(capsule),
        PduType::CapsuleResp => _ = CapsuleResp::parse(short),
        PduType::H2cData => {
            if let Ok(data) = H2cData::parse(short, layout.data_len) {
                assert!(data.offset_bytes.checked_add(data.len_bytes).is_some());
            }
        }
        PduType::C2hData => {
            if let Ok(data) = C2hData::parse(short, layout.data_len) {
                assert!(data.last || !data.success);
            }
        }
        PduType::R2t => _ = R2t::parse(short),
        PduType::H2cTermReq | PduType::C2hTermReq => {
            if let Ok(request) = TermReq::parse(pdu) {
                assert!(request.buffer_len() <= TermReq::MAX_LEN);
            }
        }
    }
});
