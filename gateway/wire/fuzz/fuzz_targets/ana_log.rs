//! Parses ANA logs. If all groups of a log parse, emits the log again and compares the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trefoil_wire::nvme::log::{AnaLog, AnaLogWriter, ana_log_len};

fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = AnaLog::parse(bytes) else { return };
    let Ok(groups) = log.iter().collect::<Result<Vec<_>, _>>() else { return };
    let nsids = groups.iter().map(|group| group.nsids().len()).sum();
    let mut buffer = vec![0xff; ana_log_len(groups.len(), nsids)];
    let Ok(mut writer) = AnaLogWriter::new(log.change_count, &mut buffer) else {
        panic!("no room for the header")
    };
    for group in &groups {
        let added = writer.group(group.group_id, group.change_count, group.state, group.nsids());
        assert_eq!(added, Ok(()));
    }
    assert_eq!(writer.finish(), buffer.len());
    let again = AnaLog::parse(&buffer);
    let again = again.iter().flat_map(|log| log.iter()).flatten();
    assert!(again.zip(&groups).all(|(a, b)| a.group_id == b.group_id && a.nsids().eq(b.nsids())));
});
