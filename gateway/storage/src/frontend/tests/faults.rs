//! Tests of faulty hosts, and of hostile hosts.

use super::host::{ADMIN, Host, Seen, Wish, connect_command};
use super::rig::{HOST, Rig, limits};
use crate::msg::{Event, Msg};
use std::time::Duration;
use trefoil_poll::rand::Rng;
use trefoil_wire::nvme::{BlockRange, IoCommand, Sgl, Status};
use trefoil_wire::tcp::{FatalStatus, H2cData, IcReq, R2t, field};

fn header_field(offset_bytes: u32) -> FatalStatus {
    FatalStatus::InvalidHeaderField { offset_bytes }
}

fn ic_req() -> Vec<u8> {
    let mut bytes = [0; IcReq::LEN];
    IcReq { host_alignment_bytes: 4, header_digest: false, data_digest: false, max_r2t: 1 }.emit(&mut bytes);
    bytes.to_vec()
}

/// Connects a host with an I/O queue and an R2T for 16 KiB outstanding.
fn granted(rig: &mut Rig, digests: (bool, bool)) -> (Host, R2t) {
    let admin = Host::admin(rig, 0, ADMIN);
    let mut io = Host::io(rig, 0, &admin, Wish { digests, ..ADMIN });
    let command = IoCommand::Write(BlockRange::new(0, 32));
    io.submit(rig, command.sqe(5, 1, Sgl::Transport { len_bytes: 16_384 }), &[]);
    rig.pump();
    match io.seen(rig).as_slice() {
        [Seen::R2t(r2t)] => (io, *r2t),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_pdu_must_be_a_good_ic_req() {
    let edit = |at: usize, value: u8| {
        let mut bytes = ic_req();
        bytes[at] = value;
        bytes
    };
    let capsule = {
        let mut bytes = vec![0; 72];
        bytes[..8].copy_from_slice(&[4, 0, 72, 0, 72, 0, 0, 0]);
        bytes
    };
    for (bytes, status) in [
        (capsule, FatalStatus::SequenceError),
        (edit(0, 0x0A), header_field(field::PDU_TYPE)),
        (edit(0, 0x01), header_field(field::PDU_TYPE)),
        (edit(2, 127), header_field(field::HLEN)),
        (edit(4, 100), header_field(field::PLEN)),
        (edit(8, 1), FatalStatus::UnsupportedParameter { offset_bytes: field::PFV }),
        (edit(10, 32), header_field(field::PDA)),
        ([ic_req(), ic_req()].concat(), FatalStatus::SequenceError),
    ] {
        let mut rig = Rig::new(1);
        let at = rig.open(0);
        rig.send(at, &bytes);
        rig.pump();
        let sent = rig.take(at);
        let term = sent.rchunks_exact(1).count();
        assert!(term >= 24, "a terminate request for {status:?}");
        let mut host = Host::dial(&mut rig, 0, (false, false), 4);
        // The host's parser reads the answers.
        host.at = at;
        rig.sock(at).outbox = sent;
        let seen = host.seen(&mut rig);
        assert_eq!(seen.last(), Some(&Seen::Term(status)), "{seen:?}");
        rig.finish();
    }
}

#[test]
fn bad_h2c_data_is_fatal_to_its_connection_alone() {
    let good =
        |r2t: R2t| H2cData { cid: r2t.cid, ttag: r2t.ttag, offset_bytes: 0, len_bytes: 8192, last: false };
    type Edit = fn(&mut H2cData);
    let edits: [(Edit, FatalStatus); 7] = [
        (|d| d.ttag ^= 1, header_field(field::TTAG)),
        (|d| d.ttag = u16::MAX, header_field(field::TTAG)),
        (|d| d.cid ^= 1, header_field(field::CCCID)),
        (|d| d.offset_bytes = 4096, FatalStatus::DataOutOfRange),
        (|d| d.offset_bytes = 2, header_field(field::OFFSET)),
        (|d| d.last = true, header_field(field::FLAGS)),
        (|d| d.len_bytes = 4096, header_field(field::LENGTH)),
    ];
    for (edit, status) in edits {
        let mut rig = Rig::new(1);
        let (mut io, r2t) = granted(&mut rig, (false, false));
        let mut bytes = io.h2c(good(r2t), &[7; 8192]);
        let mut pdu = good(r2t);
        edit(&mut pdu);
        // Only the fields differ; the frame keeps its correct length.
        bytes[1] = u8::from(pdu.last) << 2;
        bytes[8..10].copy_from_slice(&pdu.cid.to_le_bytes());
        bytes[10..12].copy_from_slice(&pdu.ttag.to_le_bytes());
        bytes[12..16].copy_from_slice(&pdu.offset_bytes.to_le_bytes());
        bytes[16..20].copy_from_slice(&pdu.len_bytes.to_le_bytes());
        rig.send(io.at, &bytes);
        rig.pump();
        assert_eq!(io.seen(&mut rig), [Seen::Term(status)]);
        assert!(rig.disks[0].iter().all(|&b| b == 0));
        let mut other = Host::admin(&mut rig, 0, ADMIN);
        assert_eq!(other.identify(&mut rig, 1, 0).status, Status::SUCCESS);
        rig.finish();
    }
}

#[test]
fn data_beyond_what_was_asked_is_out_of_range() {
    let mut rig = Rig::new(1);
    let (mut io, r2t) = granted(&mut rig, (false, false));
    let pdu = H2cData { cid: 5, ttag: r2t.ttag, offset_bytes: 0, len_bytes: 16_388, last: true };
    rig.send(io.at, &io.h2c(pdu, &[7; 16_388]));
    rig.pump();
    assert_eq!(io.seen(&mut rig), [Seen::Term(FatalStatus::DataOutOfRange)]);
    rig.finish();
}

#[test]
fn a_bad_header_digest_is_fatal() {
    let mut rig = Rig::new(1);
    let (mut io, r2t) = granted(&mut rig, (true, false));
    let pdu = H2cData { cid: 5, ttag: r2t.ttag, offset_bytes: 0, len_bytes: 16_384, last: true };
    let mut bytes = io.h2c(pdu, &[7; 16_384]);
    bytes[24..28].copy_from_slice(&[1, 2, 3, 4]);
    rig.send(io.at, &bytes);
    rig.pump();
    let received = u32::from_le_bytes([1, 2, 3, 4]);
    assert_eq!(io.seen(&mut rig), [Seen::Term(FatalStatus::HeaderDigestError { received })]);
    rig.finish();
}

#[test]
fn a_bad_data_digest_fails_its_command_alone() {
    let mut rig = Rig::new(1);
    let (mut io, r2t) = granted(&mut rig, (true, true));
    let pdu = H2cData { cid: 5, ttag: r2t.ttag, offset_bytes: 0, len_bytes: 16_384, last: true };
    let mut bytes = io.h2c(pdu, &[7; 16_384]);
    *bytes.last_mut().expect("a digest") ^= 1;
    rig.send(io.at, &bytes);
    rig.pump();
    assert_eq!(io.responses(&mut rig), [(5, Status::TRANSIENT_TRANSPORT_ERROR, 0)]);

    let command = IoCommand::Write(BlockRange::new(0, 8));
    let sqe = command.sqe(6, 1, Sgl::InCapsule { offset_bytes: 0, len_bytes: 4096 });
    let mut bytes = io.capsule(sqe, &[7; 4096]);
    *bytes.last_mut().expect("a digest") ^= 1;
    rig.send(io.at, &bytes);
    rig.pump();
    assert_eq!(io.responses(&mut rig), [(6, Status::TRANSIENT_TRANSPORT_ERROR, 0)]);
    assert!(rig.disks[0].iter().all(|&b| b == 0), "nothing was written");
    let again = io.io_command(&mut rig, 1, command, &[7; 4096], 0);
    assert_eq!(again.status, Status::SUCCESS);
    rig.finish();
}

#[test]
fn too_much_in_a_capsule_is_fatal() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    let command = IoCommand::Write(BlockRange::new(0, 17));
    let sqe = command.sqe(1, 1, Sgl::InCapsule { offset_bytes: 0, len_bytes: 17 * 512 });
    io.submit(&mut rig, sqe, &[1; 17 * 512]);
    rig.pump();
    assert_eq!(io.seen(&mut rig), [Seen::Term(header_field(field::PLEN))]);
    rig.finish();
}

#[test]
fn more_commands_than_the_queue_holds_are_fatal() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    rig.hold = true;
    for cid in 0..129 {
        io.submit(&mut rig, IoCommand::Flush.sqe(cid, 1, Sgl::NONE), &[]);
    }
    rig.pump();
    assert_eq!(io.seen(&mut rig), [Seen::Term(FatalStatus::SequenceError)]);
    rig.finish();
}

#[test]
fn a_command_id_in_use_is_a_conflict() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    rig.hold = true;
    // The identifiers 0x101 and 0x001 have the same low byte, but don't conflict.
    for cid in [0x001, 0x101, 0x001] {
        io.submit(&mut rig, IoCommand::Flush.sqe(cid, 1, Sgl::NONE), &[]);
    }
    rig.pump();
    assert_eq!(io.responses(&mut rig), [(1, Status::COMMAND_ID_CONFLICT.dnr(), 0)]);
    rig.hold = false;
    rig.pump();
    assert_eq!(
        io.responses(&mut rig).iter().map(|r| (r.0, r.1)).collect::<Vec<_>>(),
        [(0x001, Status::SUCCESS), (0x101, Status::SUCCESS)]
    );
    rig.finish();
}

#[test]
fn a_terminate_request_of_the_host_closes() {
    let mut rig = Rig::new(1);
    let host = Host::admin(&mut rig, 0, ADMIN);
    rig.send(host.at, &[2, 0, 24, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    rig.pump();
    assert!(!rig.sock(host.at).open);
    rig.finish();
}

#[test]
fn who_does_not_connect_in_time_is_closed() {
    let mut rig = Rig::new(1);
    let silent = rig.open(0);
    let slow = Host::dial(&mut rig, 0, (false, false), 4);
    let quick = Host::admin(&mut rig, 0, ADMIN);
    rig.send(slow.at, &[4, 0, 72]);
    rig.pass(limits().connect_timeout - Duration::from_millis(10));
    assert!(rig.sock(silent).open && rig.sock(slow.at).open);
    rig.pass(Duration::from_millis(20));
    assert!(!rig.sock(silent).open && !rig.sock(slow.at).open && rig.sock(quick.at).open);
    rig.finish();
}

#[test]
fn who_does_not_read_is_closed() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    rig.pass(Duration::from_secs(100));
    let command = IoCommand::Read(BlockRange::new(0, 64));
    io.submit(&mut rig, command.sqe(1, 1, Sgl::Transport { len_bytes: 32_768 }), &[]);
    rig.sock(io.at).deaf = true;
    rig.pump();
    for _ in 0..299 {
        rig.pass(limits().progress_timeout / 300);
        assert!(rig.sock(io.at).open);
    }
    rig.pass(limits().progress_timeout / 60);
    assert!(!rig.sock(io.at).open && rig.sock(admin.at).open);
    rig.finish();
}

#[test]
fn who_reads_slowly_is_waited_for_until_it_stops() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    let command = IoCommand::Read(BlockRange::new(0, 64));
    io.submit(&mut rig, command.sqe(1, 1, Sgl::Transport { len_bytes: 32_768 }), &[]);
    rig.sock(io.at).deaf = true;
    rig.pump();
    for _ in 0..20 {
        rig.pass(limits().progress_timeout / 2);
        assert!(rig.sock(io.at).open, "it still takes something");
        rig.sock(io.at).taken_bytes += 1;
    }
    rig.pass(limits().progress_timeout / 2);
    assert!(rig.sock(io.at).open);
    rig.pass(limits().progress_timeout / 2 + Duration::from_millis(10));
    assert!(!rig.sock(io.at).open && rig.sock(admin.at).open);
    rig.finish();
}

#[test]
fn who_does_not_send_what_it_was_asked_for_is_closed() {
    let mut rig = Rig::new(1);
    let (mut io, _) = granted(&mut rig, (false, false));
    let held = |rig: &Rig| rig.cores[0].arena.capacity_bytes() - rig.cores[0].arena.free_bytes();
    assert_eq!(held(&rig), 16_384);
    for step in 0..299 {
        rig.pass(limits().progress_timeout / 300);
        assert!(rig.sock(io.at).open, "step {step}");
        // Other commands of the host don't count as progress of the pending data.
        if step % 50 == 0 {
            io.submit(&mut rig, IoCommand::Flush.sqe(900 + step, 1, Sgl::NONE), &[]);
            rig.pump();
            assert_eq!(io.responses(&mut rig), [(900 + step, Status::SUCCESS, 0)]);
        }
    }
    rig.pass(limits().progress_timeout / 60);
    assert!(!rig.sock(io.at).open);
    assert_eq!(held(&rig), 0);
    rig.finish();
}

#[test]
fn who_stops_within_a_capsule_is_closed_and_who_owes_nothing_is_not() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    let write = IoCommand::Write(BlockRange::new(0, 32));
    assert_eq!(io.io_command(&mut rig, 1, write, &[7; 16_384], 0).status, Status::SUCCESS);
    rig.pass(limits().progress_timeout * 3);
    let sqe = IoCommand::Write(BlockRange::new(0, 8)).sqe(
        9,
        1,
        Sgl::InCapsule { offset_bytes: 0, len_bytes: 4096 },
    );
    let bytes = io.capsule(sqe, &[7; 4096]);
    rig.send(io.at, &bytes[..1000]);
    rig.pump();
    rig.pass(limits().progress_timeout * 99 / 100);
    assert!(rig.sock(io.at).open && rig.sock(admin.at).open);
    rig.pass(limits().progress_timeout);
    assert!(!rig.sock(io.at).open && rig.sock(admin.at).open);
    rig.finish();
}

#[test]
fn who_sends_slowly_is_waited_for_until_it_stops() {
    // The driver receives one transfer straight into its block, and the other into the driver's memory.
    for (len, direct) in [(16_384, true), (8192, false)] {
        let mut rig = Rig::new(1);
        let (mut io, r2t) = granted(&mut rig, (false, false));
        let pdu = H2cData { cid: 5, ttag: r2t.ttag, offset_bytes: 0, len_bytes: len, last: direct };
        let bytes = io.h2c(pdu, &vec![7; len as usize]);
        rig.send(io.at, &bytes[..40]);
        rig.pump();
        for at in 40..60 {
            rig.pass(limits().progress_timeout / 2);
            assert!(rig.sock(io.at).open, "it still sends something");
            rig.send(io.at, &bytes[at..=at]);
            rig.pump();
        }
        rig.pass(limits().progress_timeout / 2);
        assert!(rig.sock(io.at).open);
        if direct {
            rig.send(io.at, &bytes[60..]);
            rig.pump();
            assert_eq!(io.responses(&mut rig), [(5, Status::SUCCESS, 0)]);
            rig.pass(limits().progress_timeout * 3);
            assert!(rig.sock(io.at).open, "the host has no pending data any more");
        } else {
            rig.pass(limits().progress_timeout / 2 + Duration::from_millis(10));
            assert!(!rig.sock(io.at).open);
        }
        rig.finish();
    }
}

#[test]
fn who_does_not_close_after_a_terminate_request_is_closed() {
    let mut rig = Rig::new(1);
    let at = rig.open(0);
    rig.send(at, &[0xFF; 64]);
    rig.pump();
    assert!(rig.sock(at).open);
    rig.send(at, &[0xFF; 5000]);
    rig.pass(limits().terminate_timeout + Duration::from_millis(10));
    assert!(!rig.sock(at).open);
    rig.finish();
}

#[test]
fn a_host_that_vanishes_at_any_byte_leaves_nothing() {
    for digests in [(false, false), (true, true)] {
        let mut probe = Rig::new(1);
        let mut admin = Host::admin(&mut probe, 0, ADMIN);
        assert_eq!(admin.ask_queues(&mut probe, 2), 2);
        let wish = Wish { digests, ..ADMIN };
        let io = Host::io(&mut probe, 0, &admin, wish);
        let write = IoCommand::Write(BlockRange::new(0, 8));
        let in_capsule = write.sqe(1, 1, Sgl::InCapsule { offset_bytes: 0, len_bytes: 4096 });
        let read = IoCommand::Read(BlockRange::new(0, 8)).sqe(2, 1, Sgl::Transport { len_bytes: 4096 });
        let large = IoCommand::Write(BlockRange::new(0, 64)).sqe(3, 1, Sgl::Transport { len_bytes: 32_768 });
        let bytes =
            [io.capsule(in_capsule, &[1; 4096]), io.capsule(read, &[]), io.capsule(large, &[])].concat();
        for cut in (0..bytes.len()).step_by(61) {
            let io = Host::io(&mut probe, 0, &admin, Wish { qid: 2, ..wish });
            probe.send(io.at, &bytes[..cut]);
            probe.hold = cut % 2 == 0;
            probe.pump();
            probe.hang_up(io.at);
            probe.hold = false;
            probe.pump();
            assert!(!probe.sock(io.at).open);
        }
        probe.finish();
    }
}

/// Returns bytes that a host might send, with some wrong bytes.
fn hostile(rng: &mut Rng, host: &Host) -> Vec<u8> {
    let mut bytes = match rng.below(7) {
        0 => (0..1 + rng.below(400)).map(|_| rng.bits() as u8).collect(),
        1 => ic_req(),
        2 => {
            let (command, data) = connect_command(ADMIN);
            host.capsule(
                command.sqe(rng.bits() as u16, Sgl::InCapsule { offset_bytes: 0, len_bytes: 1024 }),
                &data,
            )
        }
        3 | 4 => {
            let len = 512 * (1 + rng.below(40)) as u32;
            let command = match rng.below(2) {
                0 => IoCommand::Write(BlockRange::new(rng.below(9000), len / 512)),
                _ => IoCommand::Read(BlockRange::new(rng.below(9000), len / 512)),
            };
            let data = if rng.below(2) == 0 { len.min(8192) as usize } else { 0 };
            let sgl = match data {
                0 => Sgl::Transport { len_bytes: len },
                _ => Sgl::InCapsule { offset_bytes: 0, len_bytes: len },
            };
            host.capsule(command.sqe(rng.below(20) as u16, rng.below(4) as u32, sgl), &vec![3; data])
        }
        5 => {
            let len = 512 * (1 + rng.below(40)) as usize;
            let pdu = H2cData {
                cid: rng.below(20) as u16,
                ttag: rng.below(520) as u16,
                offset_bytes: 0,
                len_bytes: len as u32,
                last: rng.below(2) == 0,
            };
            host.h2c(pdu, &vec![5; len])
        }
        _ => {
            let mut sqe = IoCommand::Flush.sqe(rng.below(20) as u16, 1, Sgl::NONE);
            sqe.opcode = [0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18, 0x7F][rng.below(8) as usize];
            sqe.nsid = rng.below(16) as u32;
            (sqe.cdw10, sqe.cdw11) = (rng.bits() as u32, rng.bits() as u32);
            sqe.sgl1 = Sgl::Transport { len_bytes: 4096 };
            host.capsule(sqe, &[])
        }
    };
    for _ in 0..rng.below(3) {
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << rng.below(8);
    }
    bytes
}

#[test]
fn garbage_harms_nobody_and_leaves_nothing() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut rig = Rig::new(2);
        rig.rng = Rng::new(seed ^ 0x55);
        rig.cut = seed % 2 == 0;
        let digests = (rng.below(2) == 0, rng.below(2) == 0);
        let wish = Wish { digests, ..ADMIN };
        let mut good = Host::admin(&mut rig, 0, ADMIN);
        let admin = Host::admin(&mut rig, 0, wish);
        let io = Host::io(&mut rig, 1, &admin, wish);
        let raw = Host { at: rig.open(1), ..Host::dial(&mut rig, 0, digests, 4) };
        for _ in 0..30 {
            for host in [&admin, &io, &raw] {
                let bytes = hostile(&mut rng, host);
                if rig.sock(host.at).open {
                    rig.send(host.at, &bytes);
                }
            }
            rig.hold = rng.below(3) == 0;
            rig.pump();
            rig.pass(Duration::from_millis(rng.below(50)));
        }
        rig.hold = false;
        assert_eq!(good.identify(&mut rig, 1, 0).status, Status::SUCCESS, "seed {seed}");
        rig.finish();
    }
}

#[test]
fn events_tell_control() {
    let mut rig = Rig::new(1);
    let host = Host::admin(&mut rig, 0, ADMIN);
    rig.hang_up(host.at);
    let events: Vec<_> = rig.cores[0].io.control.drain(..).collect();
    let [
        Msg::Event(Event::QpairUp { cntlid, qid: 0, host: up, peer }),
        Msg::Event(Event::QpairDown { cntlid: same, qid: 0, host: down, peer: from, why: "the host closed" }),
    ] = events.as_slice()
    else {
        panic!("{events:?}");
    };
    assert_eq!((same, from, down), (cntlid, peer, up));
    assert_eq!(up.as_str(), HOST);
    rig.finish();
}
