//! Parses Connect data and the names in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trefoil_wire::fabrics::ConnectData;

fuzz_target!(|input: &[u8]| {
    let mut bytes = [0; ConnectData::LEN];
    for (to, from) in bytes.iter_mut().zip(input) {
        *to = *from;
    }
    match ConnectData::parse(&bytes) {
        Ok(data) => {
            let mut dirty = [0xff; ConnectData::LEN];
            data.emit(&mut dirty);
            assert_eq!(ConnectData::parse(&dirty), Ok(data));
        }
        Err(error) => assert!(error.rejection().in_data),
    }
});
