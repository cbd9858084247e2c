//! Parses submission queue entries and the commands in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trefoil_wire::fabrics::FabricsCommand;
use trefoil_wire::nvme::{AdminCommand, IoCommand, Sqe};

fuzz_target!(|bytes: [u8; 64]| {
    let sqe = Sqe::parse(&bytes);
    let mut dirty = [0xff; 64];
    sqe.emit(&mut dirty);
    assert_eq!(Sqe::parse(&dirty), sqe);

    let io = IoCommand::parse(&sqe);
    assert_eq!(IoCommand::parse(&io.sqe(sqe.cid, sqe.nsid, sqe.sgl1)), io);
    let admin = AdminCommand::parse(&sqe);
    assert_eq!(AdminCommand::parse(&admin.sqe(sqe.cid, sqe.nsid, sqe.sgl1)), admin);
    let fabrics = FabricsCommand::parse(&sqe);
    assert_eq!(FabricsCommand::parse(&fabrics.sqe(sqe.cid, sqe.sgl1)), fabrics);
});
