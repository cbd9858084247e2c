//! Parses completions as a status, as Connect's response and as an asynchronous event.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trefoil_wire::fabrics::ConnectResponse;
use trefoil_wire::nvme::{AsyncEvent, Cqe};

fuzz_target!(|bytes: [u8; 16]| {
    let cqe = Cqe::parse(&bytes);
    let mut dirty = [0xff; 16];
    cqe.emit(&mut dirty);
    assert_eq!(Cqe::parse(&dirty), cqe);
    assert!(!cqe.status.to_string().is_empty());

    let response = ConnectResponse::parse(&cqe);
    assert_eq!(ConnectResponse::parse(&response.cqe(cqe.cid, cqe.sqhd)), response);
    let event = AsyncEvent::from_dw0(cqe.dw0());
    assert_eq!(AsyncEvent::from_dw0(event.dw0()), event);
});
