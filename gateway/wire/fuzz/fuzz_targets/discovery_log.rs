//! Parses discovery logs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trefoil_wire::fabrics::discovery::{DiscoveryLog, LogEntry};

fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = DiscoveryLog::parse(bytes) else { return };
    let mut count = 0;
    for entry in log.entries() {
        count += 1;
        let Ok(entry) = entry else { continue };
        let mut dirty = [0xff; LogEntry::LEN];
        entry.emit(&mut dirty);
        assert_eq!(LogEntry::parse(&dirty), Ok(entry));
        let _ = (entry.traddr.text(), entry.trsvcid.text());
    }
    assert!(DiscoveryLog::len_bytes(count) <= bytes.len());
});
