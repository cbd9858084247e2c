//! Tests of hostile hosts whose PDUs and commands meet a command in each of its states.

use super::host::{ADMIN, Host, Seen, Wish};
use super::rig::{At, BLOCK, OTHER_HOST, Rig, limits};
use trefoil_wire::nvme::log::lid;
use trefoil_wire::nvme::{Abort, AdminCommand, BlockRange, GetLogPage, IoCommand, Sgl, Status};
use trefoil_wire::tcp::{FatalStatus, H2cData, R2t, field};

const LEN: u32 = 16_384;

fn write(host: &mut Host, rig: &mut Rig, cid: u16, len: u32) {
    let command = IoCommand::Write(BlockRange::new(0, len / BLOCK as u32));
    host.submit(rig, command.sqe(cid, 1, Sgl::Transport { len_bytes: len }), &[]);
    rig.pump();
}

fn read(host: &mut Host, rig: &mut Rig, cid: u16, len: u32) {
    let command = IoCommand::Read(BlockRange::new(0, len / BLOCK as u32));
    host.submit(rig, command.sqe(cid, 1, Sgl::Transport { len_bytes: len }), &[]);
    rig.pump();
}

fn r2t(host: &mut Host, rig: &mut Rig) -> R2t {
    match host.seen(rig)[..] {
        [Seen::R2t(r2t)] => r2t,
        ref other => panic!("{other:?}"),
    }
}

/// Returns the transfer tag that a command's R2T has or would have.
fn tag(rig: &mut Rig, at: At, cid: u16) -> u16 {
    let is_it = |number: &u16, rig: &mut Rig| {
        rig.with_core(at.0, |target, _| target.shared.engine.cid(at.1, u32::from(*number)) == Some(cid))
    };
    (0..limits().slots as u16).find(|number| is_it(number, rig)).expect("the command is under way")
}

/// Sends all data of command 5, under a tag that no R2T gave to this connection for it.
fn push_data(rig: &mut Rig, io: &Host, ttag: u16) {
    let pdu = H2cData { cid: 5, ttag, offset_bytes: 0, len_bytes: LEN, last: true };
    rig.send(io.at, &io.h2c(pdu, &[7; LEN as usize]));
    rig.pump();
}

/// Each case brings the host's command 5, or its tag, into a state in which no R2T asks for data.
#[test]
fn data_for_a_command_that_asks_for_none_is_fatal_to_its_connection_alone() {
    type Case = fn(&mut Rig, &mut Host, &mut Host) -> u16;
    let cases: [(&str, Case); 7] = [
        ("waits for a block", |rig, io, _| {
            (1..=3).for_each(|cid| read(io, rig, cid, 1 << 20));
            write(io, rig, 5, LEN);
            tag(rig, io.at, 5)
        }),
        ("its R2T is not sent", |rig, io, _| {
            rig.sock(io.at).deaf = true;
            write(io, rig, 4, LEN);
            write(io, rig, 5, LEN);
            tag(rig, io.at, 5)
        }),
        ("at the backend", |rig, io, _| {
            write(io, rig, 5, LEN);
            let r2t = r2t(io, rig);
            push_data(rig, io, r2t.ttag);
            r2t.ttag
        }),
        ("its response is not sent", |rig, io, _| {
            write(io, rig, 5, LEN);
            let r2t = r2t(io, rig);
            rig.sock(io.at).deaf = true;
            write(io, rig, 4, LEN);
            push_data(rig, io, r2t.ttag);
            rig.hold = false;
            rig.pump();
            r2t.ttag
        }),
        ("answered", |rig, io, _| {
            write(io, rig, 5, LEN);
            let r2t = r2t(io, rig);
            push_data(rig, io, r2t.ttag);
            rig.hold = false;
            rig.pump();
            assert!(matches!(io.seen(rig)[..], [Seen::Resp(cqe)] if cqe.status.is_ok()));
            r2t.ttag
        }),
        ("of another connection", |rig, _, other| {
            write(other, rig, 5, LEN);
            r2t(other, rig).ttag
        }),
        ("of a closed connection, and of another one's command now", |rig, io, other| {
            write(io, rig, 5, LEN);
            let stale = r2t(io, rig).ttag;
            let number = io.at;
            rig.hang_up(io.at);
            write(other, rig, 5, LEN);
            assert_eq!(r2t(other, rig).ttag, stale, "the slot is used again");
            *io = Host::admin(rig, 0, ADMIN);
            assert_eq!(io.at, number, "the connection's number is used again");
            stale
        }),
    ];
    for (what, case) in cases {
        let mut rig = Rig::with(1, limits(), 4);
        let admin = Host::admin(&mut rig, 0, ADMIN);
        let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
        let foreign = Wish { hostnqn: OTHER_HOST, ..ADMIN };
        let other_admin = Host::admin(&mut rig, 0, foreign);
        let mut other = Host::io(&mut rig, 0, &other_admin, foreign);
        rig.hold = true;
        let ttag = case(&mut rig, &mut io, &mut other);
        let written = rig.disks[0].clone();
        push_data(&mut rig, &io, ttag);
        rig.sock(io.at).deaf = false;
        rig.pump();
        let wrong_tag = FatalStatus::InvalidHeaderField { offset_bytes: field::TTAG };
        assert_eq!(io.seen(&mut rig).last(), Some(&Seen::Term(wrong_tag)), "{what}");
        rig.pump();
        assert!(rig.disks[0] == written && rig.sock(other.at).open, "{what}");
        rig.finish();
    }
}

#[test]
fn a_command_that_is_aborted_twice_at_once_ends_once() {
    let mut rig = Rig::with(1, limits(), 4);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    let abort = |cid| AdminCommand::Abort(Abort { sqid: 0, cid });
    let twice = |rig: &mut Rig, admin: &mut Host, cid| {
        let bytes = [900, 901].map(|own| admin.capsule(abort(cid).sqe(own, 0, Sgl::NONE), &[])).concat();
        rig.send(admin.at, &bytes);
        rig.pump();
        let mut ends = admin.responses(rig);
        ends.sort_by_key(|end| end.0);
        ends
    };
    admin.submit(&mut rig, AdminCommand::AsyncEventRequest.sqe(5, 0, Sgl::NONE), &[]);
    rig.pump();
    let ended = (5, Status::ABORT_REQUESTED, 0);
    let (done, late) = ((900, Status::SUCCESS, 0), (901, Status::SUCCESS, 1));
    assert_eq!(twice(&mut rig, &mut admin, 5), [ended, done, late], "an event request");

    // These logs fill the memory, so the last of them waits.
    rig.sock(admin.at).deaf = true;
    let log = GetLogPage { lid: lid::ERROR, len_bytes: 1 << 20, ..GetLogPage::default() };
    for cid in 1..=5 {
        let sqe = AdminCommand::GetLogPage(log).sqe(cid, 0, Sgl::Transport { len_bytes: 1 << 20 });
        admin.submit(&mut rig, sqe, &[]);
    }
    rig.pump();
    assert_eq!(twice(&mut rig, &mut admin, 5), []);
    rig.sock(admin.at).deaf = false;
    rig.pump();
    let responses = admin.seen(&mut rig).into_iter().filter_map(|seen| match seen {
        Seen::Resp(cqe) => Some((cqe.cid, cqe.status, cqe.result)),
        _ => None,
    });
    let mut responses: Vec<_> = responses.collect();
    responses.sort_by_key(|end| end.0);
    let logs = (1..=4).map(|cid| (cid, Status::SUCCESS, 0));
    let expected: Vec<_> = logs.chain([ended, done, (901, Status::SUCCESS, 0)]).collect();
    assert_eq!(responses, expected, "a command that waits for memory");
    rig.finish();
}

/// A host that doesn't read can repeat a request under one identifier for ever. Each repetition keeps a slot until the next send.
#[test]
fn requests_that_a_deaf_host_gives_up_count_as_its_queue() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    let mut other = Host::admin(&mut rig, 0, Wish { hostnqn: OTHER_HOST, ..ADMIN });
    let before = rig.cores[0].target.free_slots();
    rig.sock(admin.at).deaf = true;
    admin.submit(&mut rig, AdminCommand::KeepAlive.sqe(1, 0, Sgl::NONE), &[]);
    rig.pump();
    // More requests than a controller holds: each one too many is answered, and the answer can't be sent.
    (10..14)
        .for_each(|cid| admin.submit(&mut rig, AdminCommand::AsyncEventRequest.sqe(cid, 0, Sgl::NONE), &[]));
    for _ in 0..100 {
        admin.submit(&mut rig, AdminCommand::AsyncEventRequest.sqe(5, 0, Sgl::NONE), &[]);
    }
    rig.pump();
    let kept = before - rig.cores[0].target.free_slots();
    assert!(kept <= usize::from(ADMIN.sqsize) + 1, "{kept} slots of a queue of {} entries", ADMIN.sqsize + 1);
    assert_eq!(other.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    rig.sock(admin.at).deaf = false;
    rig.pump();
    let seen = admin.seen(&mut rig);
    assert_eq!(seen.last(), Some(&Seen::Term(FatalStatus::SequenceError)), "{seen:?}");
    rig.finish();
}

#[test]
fn a_loan_to_a_connection_that_terminates_keeps_nobody_from_writing() {
    let mut rig = Rig::lending(limits());
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut reader = Host::io(&mut rig, 0, &admin, Wish { qid: 1, ..ADMIN });
    let mut writer = Host::io(&mut rig, 0, &admin, Wish { qid: 2, ..ADMIN });
    let command = IoCommand::Read(BlockRange::new(0, 1));
    reader.submit(&mut rig, command.sqe(1, 1, Sgl::Transport { len_bytes: BLOCK as u32 }), &[]);
    // No PDU has this type, so the read is never answered.
    rig.send(reader.at, &[0xFF; 8]);
    rig.pump();
    assert!(!rig.ram(0).is_lent(0, 8192 * BLOCK as u64));
    let write = IoCommand::Write(BlockRange::new(0, 1));
    assert_eq!(writer.io_command(&mut rig, 1, write, &[7; BLOCK], 0).status, Status::SUCCESS);
    rig.finish();
}
