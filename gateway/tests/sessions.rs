//! Tests of one host against a gateway, PDU by PDU: the answers to right and wrong PDUs.
//!
//! At the end of each test, I/O of a second host still works, and every block, slot and controller is free again.

mod support;

use support::raw::{Pair, Pdu, Raw, Who, ic_req};
use support::*;
use trefoil_poll::CoreId;
use trefoil_storage::topology::{Allow, BackendId};
use trefoil_wire::fabrics::{ConnectRejection, ConnectResponse, DYNAMIC_CNTLID, FabricsCommand};
use trefoil_wire::nvme::{
    AdminCommand, BlockRange, DsmCommand, IdentifyCommand, IoCommand, NSID_ALL, Sgl, Sqe, Status,
};
use trefoil_wire::tcp::{FatalStatus, H2cData, IcReq, field};

/// Starts a gateway with `cores` cores, and a host that the tests' other hosts must not disturb.
fn stage(cores: u16) -> (Gateway, Pair) {
    let gateway = Gateway::with_memory_lun(Shape::new(cores), 16);
    let mut bystander = Pair::connect(gateway.addr(), &host_nqn(999), SUBSYSTEM);
    bystander.check(1, 1);
    (gateway, bystander)
}

fn in_capsule(len: usize) -> Sgl {
    Sgl::InCapsule { offset_bytes: 0, len_bytes: len as u32 }
}

fn transport(len: usize) -> Sgl {
    Sgl::Transport { len_bytes: len as u32 }
}

/// A description, the command, its namespace, its descriptor, its in-capsule data, and the expected status.
type WrongCommand = (&'static str, IoCommand, u32, Sgl, Vec<u8>, Status);
/// The first changed byte, the new bytes, the digests, and the expected status of the terminate request.
type WrongCapsule = (usize, &'static [u8], (bool, bool), FatalStatus);

#[test]
fn icreq_comes_first_once_and_right() {
    let (gateway, mut bystander) = stage(1);
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut raw = Raw::initialized(gateway.addr(), header, data);
        raw.connect(&Who::admin(&host_nqn(1), SUBSYSTEM));
        raw.enable(true);
        // Data is sent in both directions with these digests.
        let identify = AdminCommand::Identify(IdentifyCommand { cns: 1, ..IdentifyCommand::default() });
        let sqe = identify.sqe(raw.cid(), 0, transport(4096));
        let (cqe, bytes) = raw.command(sqe, &[]);
        assert_eq!((cqe.status, bytes.len()), (Status::SUCCESS, 4096), "digests {header} {data}");
    }
    // HPDA: data starts at a multiple of 32 bytes.
    let mut raw = Raw::open(gateway.addr());
    let mut bytes = [0; IcReq::LEN];
    IcReq { host_alignment_bytes: 32, header_digest: false, data_digest: false, max_r2t: 1 }.emit(&mut bytes);
    raw.send(&bytes);
    assert!(matches!(raw.pdu(), Pdu::IcResp(_)));
    raw.framing.data_alignment_bytes = 32;
    raw.connect(&Who::admin(&host_nqn(1), SUBSYSTEM));
    raw.enable(true);
    let identify = AdminCommand::Identify(IdentifyCommand { cns: 1, ..IdentifyCommand::default() });
    let sqe = identify.sqe(raw.cid(), 0, transport(4096));
    assert_eq!(raw.command(sqe, &[]).1.len(), 4096);

    // Each case is a wrong field of the ICReq: the byte's position, its value, and the status of the terminate request.
    let invalid = |offset_bytes| FatalStatus::InvalidHeaderField { offset_bytes };
    for (at, value, status) in [
        (8, 1, FatalStatus::UnsupportedParameter { offset_bytes: field::PFV }),
        (10, 32, invalid(field::PDA)),
        (2, 127, invalid(field::HLEN)),
        (4, 127, invalid(field::PLEN)),
        (4, 129, invalid(field::PLEN)),
        (0, 0x0a, invalid(field::PDU_TYPE)),
        (0, 0x01, invalid(field::PDU_TYPE)),
    ] {
        let mut bytes = ic_req(false, false);
        bytes[at] = value;
        let mut raw = Raw::open(gateway.addr());
        raw.send(&bytes);
        raw.expect_terminate(status, &format!("byte {at} of ICReq is {value}"));
    }
    // The controller refuses a second ICReq.
    let mut raw = Raw::initialized(gateway.addr(), false, false);
    raw.send(&ic_req(false, false));
    raw.expect_terminate(FatalStatus::SequenceError, "a second ICReq");
    // The controller refuses a command before the ICReq.
    let mut raw = Raw::open(gateway.addr());
    let sqe = IoCommand::Flush.sqe(1, 1, Sgl::NONE);
    raw.capsule(sqe, &[]);
    raw.expect_terminate(FatalStatus::SequenceError, "a command before ICReq");
    bystander.check(1, 2);
    gateway.finish();
}

#[test]
fn connect_says_which_parameter_is_wrong() {
    let (mut gateway, mut bystander) = stage(2);
    let other = "nqn.2026-01.org.example:closed";
    let closed = gateway.subsystem(other, Allow::only(vec![host_nqn(7)]), Vec::new());
    gateway.subsystems.push(closed);
    gateway.publish();
    let good = Who::admin(&host_nqn(1), SUBSYSTEM);
    let invalid = ConnectResponse::InvalidParameter;
    let failed = |status: Status| ConnectResponse::Failed(status.dnr());
    let with = |change: &dyn Fn(&mut Who)| {
        let mut who = good.clone();
        change(&mut who);
        who
    };
    let unknown = |who: &mut Who| who.subsystem = b"nqn.2026-01.org.example:nobody".into();
    let refusals: [(&str, Who, ConnectResponse); 13] = [
        ("an unknown subsystem", with(&unknown), invalid(ConnectRejection::SUBNQN)),
        ("an empty SUBNQN", with(&|w| w.subsystem.clear()), invalid(ConnectRejection::SUBNQN)),
        (
            "a SUBNQN of 256 bytes",
            with(&|w| w.subsystem = vec![b'n'; 256]),
            invalid(ConnectRejection::SUBNQN),
        ),
        ("no HOSTNQN where hosts are listed", Who::admin("", other), failed(Status::CONNECT_INVALID_HOST)),
        ("a HOSTNQN that is none", with(&|w| w.host = vec![0xff; 20]), invalid(ConnectRejection::HOSTNQN)),
        ("no HOSTID", with(&|w| w.hostid = [0; 16]), invalid(ConnectRejection::HOSTID)),
        ("a static CNTLID", with(&|w| w.cntlid = 5), invalid(ConnectRejection::CNTLID)),
        ("SQSIZE 0", with(&|w| w.connect.sqsize = 0), invalid(ConnectRejection::SQSIZE)),
        ("SQSIZE past MQES", with(&|w| w.connect.sqsize = 4096), invalid(ConnectRejection::SQSIZE)),
        ("RECFMT 1", with(&|w| w.connect.recfmt = 1), failed(Status::CONNECT_INCOMPATIBLE_FORMAT)),
        ("a host that may not", Who::admin(&host_nqn(1), other), failed(Status::CONNECT_INVALID_HOST)),
        (
            "an I/O queue of no controller",
            good.clone().queue(0x1234, 1, 31),
            invalid(ConnectRejection::CNTLID),
        ),
        (
            "an I/O queue with the dynamic CNTLID",
            good.clone().queue(DYNAMIC_CNTLID, 1, 31),
            invalid(ConnectRejection::CNTLID),
        ),
    ];
    for (what, who, expected) in &refusals {
        let mut raw = Raw::initialized(gateway.addr(), false, false);
        assert_eq!(raw.try_connect(who), *expected, "{what}");
        // After a refused Connect, the connection stays open, so the host may send another Connect.
        raw.connect(&good);
    }
    Raw::initialized(gateway.addr(), false, false).connect(&Who::admin(&host_nqn(7), other));

    let (mut admin, cntlid) = Raw::admin(gateway.addr(), &good);
    let ask = |gateway: &Gateway, who: &Who| Raw::initialized(gateway.addr(), false, false).try_connect(who);
    let queue = |qid| good.clone().queue(cntlid, qid, 31);
    assert_eq!(ask(&gateway, &queue(65)), invalid(ConnectRejection::QID), "QID past what is granted");
    let mut refused = queue(1);
    refused.host = host_nqn(2).into();
    assert_eq!(ask(&gateway, &refused), failed(Status::CONNECT_INVALID_HOST), "another host's queue");
    let mut refused = queue(1);
    refused.hostid = [9; 16];
    assert_eq!(ask(&gateway, &refused), failed(Status::CONNECT_INVALID_HOST), "another HOSTID");
    let mut first = Raw::queue(gateway.addr(), &queue(1), (false, false));
    assert_eq!(ask(&gateway, &queue(1)), failed(Status::INVALID_QUEUE_ID), "a queue twice");
    // A connected queue can't connect again.
    let again = first.try_connect(&queue(1));
    assert_eq!(again, failed(Status::COMMAND_SEQUENCE_ERROR), "Connect on a live queue");
    // Before Connect, no other command is legal. An I/O queue needs an enabled controller.
    let mut bare = Raw::initialized(gateway.addr(), false, false);
    let sqe = IoCommand::Read(BlockRange::new(0, 1)).sqe(1, 1, transport(512));
    assert_eq!(bare.command(sqe, &[]).0.status, Status::COMMAND_SEQUENCE_ERROR.dnr());
    admin.enable(false);
    let refused = ask(&gateway, &queue(2));
    assert_eq!(
        refused,
        ConnectResponse::Failed(Status::COMMAND_SEQUENCE_ERROR),
        "the controller is disabled"
    );
    first.wait_closed("the controller was disabled");
    bystander.check(1, 3);
    gateway.finish();
}

#[test]
fn wrong_commands_fail_alone() {
    let (mut gateway, mut bystander) = stage(2);
    let blocks: u64 = (16 << 20) / 512;
    let mut read_only = gateway.lun("r", 1, 0, 1 << 20);
    read_only.read_only = true;
    gateway.attach_memory(BackendId(1), CoreId(0), 1 << 20);
    gateway.luns.push(Some(read_only));
    gateway.subsystems[0].namespaces.push(Gateway::namespace(2, 1, Allow::Any));
    gateway.publish();
    let mut pair = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    let read = |slba, nlb| IoCommand::Read(BlockRange::new(slba, nlb));
    let write = |slba, nlb| IoCommand::Write(BlockRange::new(slba, nlb));
    let raw_sgl = |id: u8| {
        let mut raw = [0; 16];
        raw[8..12].copy_from_slice(&512u32.to_le_bytes());
        raw[15] = id;
        Sgl::Unsupported { raw }
    };
    let dsm = |ranges| {
        IoCommand::Dsm(DsmCommand { ranges, integral_read: false, integral_write: false, deallocate: true })
    };
    let mut out_of_range = [0; 16];
    out_of_range[4..8].copy_from_slice(&9u32.to_le_bytes());
    out_of_range[8..16].copy_from_slice(&(blocks - 8).to_le_bytes());
    let keyed = Sgl::Keyed { address: 0, len_bytes: 512, key: 1, invalidate: false };
    let cases: Vec<WrongCommand> = vec![
        ("no such namespace", read(0, 1), 9, transport(512), vec![], Status::INVALID_NAMESPACE),
        ("namespace 0", read(0, 1), 0, transport(512), vec![], Status::INVALID_NAMESPACE),
        ("all namespaces", read(0, 1), NSID_ALL, transport(512), vec![], Status::INVALID_NAMESPACE),
        ("flush of no namespace", IoCommand::Flush, 9, Sgl::NONE, vec![], Status::INVALID_NAMESPACE),
        ("read past the end", read(blocks, 1), 1, transport(512), vec![], Status::LBA_OUT_OF_RANGE),
        ("read across the end", read(blocks - 1, 2), 1, transport(1024), vec![], Status::LBA_OUT_OF_RANGE),
        ("an LBA that overflows", read(u64::MAX, 2), 1, transport(1024), vec![], Status::LBA_OUT_OF_RANGE),
        ("write across the end", write(blocks - 1, 2), 1, transport(1024), vec![], Status::LBA_OUT_OF_RANGE),
        (
            "write zeroes past the end",
            IoCommand::WriteZeroes { range: BlockRange::new(blocks, 1), deac: false },
            1,
            Sgl::NONE,
            vec![],
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            "deallocate across the end",
            dsm(1),
            1,
            in_capsule(16),
            out_of_range.into(),
            Status::LBA_OUT_OF_RANGE,
        ),
        ("more than MDTS", read(0, 2049), 1, transport(2049 * 512), vec![], Status::INVALID_FIELD),
        (
            "a write of more than MDTS",
            write(0, 2049),
            1,
            transport(2049 * 512),
            vec![],
            Status::INVALID_FIELD,
        ),
        ("a length too short", read(0, 2), 1, transport(512), vec![], Status::DATA_SGL_LENGTH_INVALID),
        ("a length too long", write(0, 1), 1, transport(1024), vec![], Status::DATA_SGL_LENGTH_INVALID),
        (
            "a capsule too short",
            write(0, 2),
            1,
            in_capsule(1024),
            vec![0; 512],
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (
            "data that nobody described",
            write(0, 1),
            1,
            transport(512),
            vec![0; 512],
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (
            "an offset into the capsule",
            write(0, 1),
            1,
            Sgl::InCapsule { offset_bytes: 4, len_bytes: 512 },
            vec![0; 512],
            Status::SGL_OFFSET_INVALID,
        ),
        ("a read into a capsule", read(0, 1), 1, in_capsule(512), vec![], Status::SGL_TYPE_INVALID),
        ("a keyed descriptor", read(0, 1), 1, keyed, vec![], Status::SGL_TYPE_INVALID),
        ("a segment descriptor", read(0, 1), 1, raw_sgl(0x20), vec![], Status::SGL_TYPE_INVALID),
        (
            "an unknown opcode",
            IoCommand::Unknown { opcode: 0x99 },
            1,
            Sgl::NONE,
            vec![],
            Status::INVALID_OPCODE,
        ),
        (
            "compare",
            IoCommand::Compare(BlockRange::new(0, 1)),
            1,
            transport(512),
            vec![],
            Status::INVALID_OPCODE,
        ),
        (
            "write to a read-only LUN",
            write(0, 1),
            2,
            transport(512),
            vec![],
            Status::NAMESPACE_WRITE_PROTECTED,
        ),
        (
            "protection information",
            IoCommand::Read(BlockRange { prinfo: 8, ..BlockRange::new(0, 1) }),
            1,
            transport(512),
            vec![],
            Status::INVALID_PROTECTION_INFORMATION,
        ),
    ];
    for (what, verb, nsid, sgl, data, status) in cases {
        let sqe = verb.sqe(pair.io.cid(), nsid, sgl);
        pair.io.capsule(sqe, &data);
        let (cqe, _) = pair.io.finish(sqe.cid, &[]);
        assert_eq!(cqe.status, status.dnr(), "{what}");
    }
    let fused = Sqe { flags: Sqe::FLAGS_SGL | 1, ..read(0, 1).sqe(pair.io.cid(), 1, transport(512)) };
    assert_eq!(pair.io.command(fused, &[]).0.status, Status::INVALID_FIELD.dnr(), "a fused command");
    let prp = Sqe { flags: 0, ..read(0, 1).sqe(pair.io.cid(), 1, transport(512)) };
    assert_eq!(pair.io.command(prp, &[]).0.status, Status::INVALID_FIELD.dnr(), "PRPs");
    // The opcodes are unknown admin commands, and a Fabrics command that is valid only on I/O queues.
    for opcode in [0x01, 0x7e, 0xc0] {
        let sqe = Sqe::new(opcode, pair.admin.cid(), 0, Sgl::NONE);
        assert_eq!(pair.admin.command(sqe, &[]).0.status, Status::INVALID_OPCODE.dnr(), "{opcode:#x}");
    }
    let disconnect = FabricsCommand::Disconnect { recfmt: 0 };
    let sqe = disconnect.sqe(pair.admin.cid(), Sgl::NONE);
    assert_eq!(pair.admin.command(sqe, &[]).0.status, Status::INVALID_QUEUE_TYPE.dnr());
    // This is the longest transfer.
    let data = vec![7; 1 << 20];
    assert!(pair.io.write(1, 0, &data).is_ok());
    let (status, got) = pair.io.read(1, 0, 1 << 20);
    assert!(status.is_ok() && got == data, "1 MiB: {status}");
    let sqe = disconnect.sqe(pair.io.cid(), Sgl::NONE);
    assert!(pair.io.command(sqe, &[]).0.status.is_ok());
    pair.io.wait_closed("it said Disconnect");
    bystander.check(1, 4);
    gateway.finish();
}

#[test]
fn a_command_identifier_in_use_is_refused() {
    let (gateway, mut bystander) = stage(1);
    let mut pair = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    let sqe = IoCommand::Write(BlockRange::new(0, 32)).sqe(5, 1, transport(16384));
    pair.io.capsule(sqe, &[]);
    let Pdu::R2t(r2t) = pair.io.pdu() else { panic!("a write by R2T") };
    // The first command waits for its data. The same identifier is used again.
    pair.io.capsule(IoCommand::Flush.sqe(5, 1, Sgl::NONE), &[]);
    match pair.io.pdu() {
        Pdu::Response(cqe) => assert_eq!((cqe.cid, cqe.status), (5, Status::COMMAND_ID_CONFLICT.dnr())),
        other => panic!("{other:?}"),
    }
    let pdu = H2cData { cid: 5, ttag: r2t.ttag, offset_bytes: 0, len_bytes: 16384, last: true };
    pair.io.h2c(pdu, &[3; 16384]);
    assert!(pair.io.finish(5, &[]).0.status.is_ok(), "the first one is not harmed");
    bystander.check(1, 5);
    gateway.finish();
}

#[test]
fn fatal_pdu_errors_say_where() {
    let (gateway, mut bystander) = stage(2);
    let invalid = |offset_bytes| FatalStatus::InvalidHeaderField { offset_bytes };
    // Each case changes a command capsule with 512 bytes of data. A case has the first changed byte, the new bytes, the
    // digests, and the status.
    let cases: [WrongCapsule; 13] = [
        (0, &[0x0a], (false, false), invalid(field::PDU_TYPE)),
        (0, &[0x08], (false, false), invalid(field::PDU_TYPE)),
        (0, &[0x05, 0, 24], (false, false), invalid(field::PDU_TYPE)),
        (1, &[0x01], (false, false), invalid(field::FLAGS)),
        (1, &[0x02], (false, false), invalid(field::FLAGS)),
        (1, &[0x00], (true, true), invalid(field::FLAGS)),
        (2, &[71], (false, false), invalid(field::HLEN)),
        (3, &[71], (false, false), invalid(field::PDO)),
        (3, &[74], (false, false), invalid(field::PDO)),
        (3, &[72], (true, false), invalid(field::PDO)),
        (4, &[71, 0], (false, false), invalid(field::PLEN)),
        // This length is more than a capsule may hold.
        (4, &[0, 0, 1], (false, false), invalid(field::PLEN)),
        (7, &[0x80], (false, false), invalid(field::PLEN)),
    ];
    for (at, values, digests, status) in cases {
        let who = Who::admin(&host_nqn(1), SUBSYSTEM);
        let (_admin, cntlid) = Raw::admin(gateway.addr(), &who);
        let mut io = Raw::queue(gateway.addr(), &who.queue(cntlid, 1, 31), digests);
        let sqe = IoCommand::Write(BlockRange::new(0, 1)).sqe(9, 1, in_capsule(512));
        let mut bytes = io.capsule_bytes(sqe, &[1; 512]);
        bytes[at..at + values.len()].copy_from_slice(values);
        io.send(&bytes);
        io.expect_terminate(status, &format!("from byte {at} a capsule is {values:x?}, digests {digests:?}"));
    }
    bystander.check(1, 6);
    gateway.finish();
}

#[test]
fn h2c_data_must_be_what_was_asked_for() {
    let (gateway, mut bystander) = stage(2);
    let whole = H2cData { cid: 9, ttag: 0, offset_bytes: 0, len_bytes: 16384, last: true };
    let half = H2cData { len_bytes: 8192, last: false, ..whole };
    let invalid = |offset_bytes| FatalStatus::InvalidHeaderField { offset_bytes };
    type Change = fn(H2cData) -> H2cData;
    let cases: [(&str, H2cData, Change, FatalStatus); 8] = [
        ("no such TTAG", whole, |p| H2cData { ttag: p.ttag.wrapping_add(77), ..p }, invalid(field::TTAG)),
        ("TTAG FFFFh", whole, |p| H2cData { ttag: 0xffff, ..p }, invalid(field::TTAG)),
        ("another CCCID", whole, |p| H2cData { cid: p.cid + 1, ..p }, invalid(field::CCCID)),
        (
            "the second half first",
            half,
            |p| H2cData { offset_bytes: 8192, last: true, ..p },
            FatalStatus::DataOutOfRange,
        ),
        ("past the end", half, |p| H2cData { offset_bytes: 16384, ..p }, FatalStatus::DataOutOfRange),
        ("more than asked for", H2cData { len_bytes: 32768, ..whole }, |p| p, FatalStatus::DataOutOfRange),
        ("LAST_PDU too early", half, |p| H2cData { last: true, ..p }, invalid(field::FLAGS)),
        ("no LAST_PDU at the end", whole, |p| H2cData { last: false, ..p }, invalid(field::FLAGS)),
    ];
    for (what, pdu, change, status) in cases {
        let mut pair = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
        pair.io.capsule(IoCommand::Write(BlockRange::new(0, 32)).sqe(9, 1, transport(16384)), &[]);
        let Pdu::R2t(r2t) = pair.io.pdu() else { panic!("{what}: a write by R2T") };
        let pdu = change(H2cData { ttag: r2t.ttag, ..pdu });
        let data = vec![1; pdu.len_bytes as usize];
        pair.io.h2c(pdu, &data);
        pair.io.expect_terminate(status, what);
    }
    // DATAL differs from the length of the data.
    let mut pair = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    pair.io.capsule(IoCommand::Write(BlockRange::new(0, 32)).sqe(9, 1, transport(16384)), &[]);
    let Pdu::R2t(r2t) = pair.io.pdu() else { panic!("a write by R2T") };
    let mut bytes = pair.io.h2c_bytes(H2cData { ttag: r2t.ttag, ..whole }, &[1; 16384]);
    bytes[16] = 4;
    pair.io.send(&bytes);
    pair.io.expect_terminate(invalid(field::LENGTH), "DATAL");
    // The controller did not request this data.
    let mut pair = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    pair.io.h2c(H2cData { ttag: 3, ..whole }, &[1; 16384]);
    pair.io.expect_terminate(invalid(field::TTAG), "data that nobody asked for");
    // This PDU has more data than MAXH2CDATA. The controller refuses the PDU after its header.
    let mut pair = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    pair.io.capsule(IoCommand::Write(BlockRange::new(0, 2048)).sqe(9, 1, transport(1 << 20)), &[]);
    let Pdu::R2t(r2t) = pair.io.pdu() else { panic!("a write by R2T") };
    let pdu = H2cData { ttag: r2t.ttag, len_bytes: (1 << 20) + 4, ..whole };
    let header = &pair.io.h2c_bytes(pdu, &[])[..24];
    pair.io.send(header);
    pair.io.expect_terminate(FatalStatus::LimitExceeded, "more than MAXH2CDATA");
    // The controller accepts data that comes in pieces and in order.
    let mut pair = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    pair.io.capsule(IoCommand::Write(BlockRange::new(0, 32)).sqe(9, 1, transport(16384)), &[]);
    let Pdu::R2t(r2t) = pair.io.pdu() else { panic!("a write by R2T") };
    for offset_bytes in [0, 4096, 8192, 12288] {
        let last = offset_bytes == 12288;
        let pdu = H2cData { ttag: r2t.ttag, offset_bytes, len_bytes: 4096, last, ..whole };
        pair.io.h2c(pdu, &[offset_bytes as u8 >> 4 | 5; 4096]);
    }
    assert!(pair.io.finish(9, &[]).0.status.is_ok());
    bystander.check(1, 7);
    gateway.finish();
}

#[test]
fn digest_errors_end_the_connection_or_the_command() {
    let (gateway, mut bystander) = stage(2);
    let who = Who::admin(&host_nqn(1), SUBSYSTEM);
    let (_admin, cntlid) = Raw::admin(gateway.addr(), &who);
    let mut io = Raw::queue(gateway.addr(), &who.clone().queue(cntlid, 1, 31), (true, true));
    let before = vec![0x11; 65536];
    assert!(io.write(1, 0, &before).is_ok());
    // If a data digest is wrong, only this command fails. The data is in a capsule or follows an R2T, and is small or large.
    for len in [512usize, 4096, 8192, 16384, 65536] {
        let blocks = (len / 512) as u32;
        let data = vec![0x22; len];
        let cid = io.cid();
        let sgl = if len <= 4096 { in_capsule(len) } else { transport(len) };
        let sqe = IoCommand::Write(BlockRange::new(0, blocks)).sqe(cid, 1, sgl);
        let mut bytes = if len <= 4096 {
            io.capsule_bytes(sqe, &data)
        } else {
            io.capsule(sqe, &[]);
            let Pdu::R2t(r2t) = io.pdu() else { panic!("a write by R2T") };
            let pdu = H2cData { cid, ttag: r2t.ttag, offset_bytes: 0, len_bytes: len as u32, last: true };
            io.h2c_bytes(pdu, &data)
        };
        *bytes.last_mut().expect("a digest") ^= 0x80;
        io.send(&bytes);
        let (cqe, _) = io.finish(cid, &[]);
        assert!(cqe.status.is(Status::TRANSIENT_TRANSPORT_ERROR), "{len} bytes: {}", cqe.status);
        let (status, got) = io.read(1, 0, len);
        assert!(status.is_ok() && got == before[..len], "{len} bytes with a wrong digest were written");
    }
    // The data comes in two H2CData PDUs. Only the first has a wrong digest.
    let cid = io.cid();
    io.capsule(IoCommand::Write(BlockRange::new(0, 16)).sqe(cid, 1, transport(8192)), &[]);
    let Pdu::R2t(r2t) = io.pdu() else { panic!("a write by R2T") };
    let first = H2cData { cid, ttag: r2t.ttag, offset_bytes: 0, len_bytes: 4096, last: false };
    let mut bytes = io.h2c_bytes(first, &[0x33; 4096]);
    *bytes.last_mut().expect("a digest") ^= 1;
    io.send(&bytes);
    io.h2c(H2cData { offset_bytes: 4096, last: true, ..first }, &[0x33; 4096]);
    let (cqe, _) = io.finish(cid, &[]);
    assert!(cqe.status.is(Status::TRANSIENT_TRANSPORT_ERROR), "{}", cqe.status);
    assert!(io.read(1, 0, 8192).1 == before[..8192], "half a write with a wrong digest was written");
    // A wrong header digest ends the connection. The terminate request contains the received digest.
    let sqe = IoCommand::Write(BlockRange::new(0, 1)).sqe(io.cid(), 1, in_capsule(512));
    let mut bytes = io.capsule_bytes(sqe, &[1; 512]);
    bytes[72] ^= 1;
    let received = u32::from_le_bytes(*bytes[72..].first_chunk().expect("a digest"));
    io.send(&bytes);
    io.expect_terminate(FatalStatus::HeaderDigestError { received }, "a wrong header digest");
    bystander.check(1, 8);
    gateway.finish();
}

#[test]
fn more_commands_than_the_queue_has_entries_end_it() {
    let (gateway, mut bystander) = stage(1);
    let who = Who::admin(&host_nqn(1), SUBSYSTEM);
    let (_admin, cntlid) = Raw::admin(gateway.addr(), &who);
    let mut io = Raw::queue(gateway.addr(), &who.queue(cntlid, 1, 3), (false, false));
    for cid in 10..16 {
        io.capsule(IoCommand::Write(BlockRange::new(0, 32)).sqe(cid, 1, transport(16384)), &[]);
    }
    io.expect_terminate(FatalStatus::SequenceError, "six commands in a queue of four entries");
    bystander.check(1, 9);
    gateway.finish();
}

#[test]
fn a_stream_that_is_cut_anywhere_costs_nothing() {
    let (gateway, mut bystander) = stage(2);
    let probe = Raw::open(gateway.addr());
    let sqe = IoCommand::Write(BlockRange::new(0, 8)).sqe(9, 1, in_capsule(4096));
    let capsule = probe.capsule_bytes(sqe, &[1; 4096]);
    drop(probe);
    for cut in [1, 7, 8, 9, 71, 72, 73, 100, 4167] {
        let mut pair = Pair::connect_for(gateway.addr(), &host_nqn(1), SUBSYSTEM, 2);
        pair.io.send(&capsule[..cut]);
        pair.io.shut();
        pair.io.wait_closed(&format!("a capsule was cut after {cut} bytes"));
        // The connection also ends in the middle of data that follows an R2T. Such data is received straight into its block.
        let who = Who::admin(&host_nqn(1), SUBSYSTEM).queue(pair.cntlid, 2, 31);
        let mut io = Raw::queue(gateway.addr(), &who, (false, false));
        io.capsule(IoCommand::Write(BlockRange::new(0, 128)).sqe(9, 1, transport(65536)), &[]);
        let Pdu::R2t(r2t) = io.pdu() else { panic!("a write by R2T") };
        let pdu = H2cData { cid: 9, ttag: r2t.ttag, offset_bytes: 0, len_bytes: 65536, last: true };
        let bytes = io.h2c_bytes(pdu, &[2; 65536]);
        io.send(&bytes[..cut * 15]);
        io.shut();
        io.wait_closed(&format!("an H2CData was cut after {} bytes", cut * 15));
    }
    for cut in [0, 1, 8, 127] {
        let mut raw = Raw::open(gateway.addr());
        raw.send(&ic_req(false, false)[..cut]);
        raw.shut();
        raw.wait_closed(&format!("ICReq was cut after {cut} bytes"));
    }
    // The same capsule also works if the host sends it byte by byte.
    let mut pair = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    for byte in &capsule {
        pair.io.send(std::slice::from_ref(byte));
    }
    assert!(pair.io.finish(9, &[]).0.status.is_ok());
    bystander.check(1, 10);
    gateway.finish();
}
