//! Tests of permission to connect, and of the end of associations.

use super::host::{ADMIN, Host, Outcome, Wish, connect_command};
use super::rig::{HOST, OTHER_HOST, Rig, SUBNQN};
use crate::msg::{ConnectRefusal, Msg, Refused, Survey};
use crate::topology::{Allow, PortalId};
use std::time::Duration;
use trefoil_wire::fabrics::{FabricsCommand, PropertySize};
use trefoil_wire::nvme::feature::fid;
use trefoil_wire::nvme::property::{Cc, Csts, offset};
use trefoil_wire::nvme::{AdminCommand, BlockRange, GetFeatures, IoCommand, SetFeatures, Sgl, Sqe, Status};

const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Returns the status of a rejected Connect, with its IATTR and IPO.
fn rejected(outcome: &Outcome) -> (Status, u64) {
    (outcome.status.code(), outcome.result)
}

const IN_DATA: u64 = 1 << 16;

#[test]
fn connect_is_checked() {
    let mut rig = Rig::new(2);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let invalid = Status::CONNECT_INVALID_PARAMETERS;
    let io = Wish { qid: 1, cntlid: admin.cntlid, sqsize: 127, ..ADMIN };
    for (wish, status, result) in [
        (Wish { subnqn: "nqn.2024-01.test:none", ..ADMIN }, invalid, IN_DATA | 256),
        (Wish { hostnqn: "nqn.2024-01.test:unlisted", ..ADMIN }, Status::CONNECT_INVALID_HOST, 0),
        (Wish { cntlid: 1, ..ADMIN }, invalid, IN_DATA | 16),
        (Wish { sqsize: 0, ..ADMIN }, invalid, 44),
        (Wish { sqsize: 256, ..ADMIN }, invalid, 44),
        (Wish { cntlid: admin.cntlid + 2, ..io }, invalid, IN_DATA | 16),
        (Wish { cntlid: 0, ..io }, invalid, IN_DATA | 16),
        (Wish { qid: 65, ..io }, invalid, 42),
        (Wish { hostnqn: OTHER_HOST, ..io }, Status::CONNECT_INVALID_HOST, 0),
        (Wish { subnqn: DISCOVERY, ..io }, Status::INVALID_QUEUE_TYPE, 0),
    ] {
        let (host, outcome) = Host::connect(&mut rig, 1, wish);
        assert_eq!(rejected(&outcome), (status, result), "sqsize {} qid {}", wish.sqsize, wish.qid);
        rig.hang_up(host.at);
    }
    // After a refusal, the host may try again over the same connection.
    let (mut host, outcome) = Host::connect(&mut rig, 0, Wish { sqsize: 0, ..ADMIN });
    assert!(!outcome.status.is_ok());
    assert_eq!(host.fabrics_connect(&mut rig, ADMIN).status, Status::SUCCESS);
    assert!(host.fabrics_connect(&mut rig, ADMIN).status.is(Status::COMMAND_SEQUENCE_ERROR));
    rig.finish();
}

#[test]
fn who_is_refused_is_told_while_there_is_a_place_and_counted_always() {
    let mut rig = Rig::new(1);
    rig.topology.subsystems[0].hosts = Allow::only(vec![HOST.into()]);
    rig.publish();
    let refuse = |rig: &mut Rig, wish| {
        let (host, outcome) = Host::connect(rig, 0, wish);
        assert!(!outcome.status.is_ok());
        rig.hang_up(host.at);
        let told = rig.cores[0].io.control.pop();
        told.map(|told| match told {
            Msg::Refused(refused) => refused,
            other => panic!("{other:?}"),
        })
    };
    let unlisted = Wish { hostnqn: OTHER_HOST, ..ADMIN };
    let none = "nqn.2024-01.test:none";
    let mut places = Vec::new();
    for (wish, why) in [
        (unlisted, ConnectRefusal::Host),
        (Wish { subnqn: none, ..ADMIN }, ConnectRefusal::Subsystem),
        (Wish { subnqn: none, hostnqn: OTHER_HOST, ..ADMIN }, ConnectRefusal::Subsystem),
    ] {
        let refused = refuse(&mut rig, wish).expect("it is told");
        assert_eq!((refused.host_nqn.as_str(), refused.subsystem_nqn.as_str()), (wish.hostnqn, wish.subnqn));
        assert_eq!((refused.why, refused.peer.to_string().as_str()), (why, "198.51.100.7:999"));
        places.push(refused);
    }
    rig.topology.subsystems[0].portals = vec![PortalId(1)];
    rig.publish();
    let refused = refuse(&mut rig, ADMIN).expect("it is told");
    assert_eq!(
        (refused.why, refused.local.to_string().as_str()),
        (ConnectRefusal::Listener, "192.0.2.1:4420")
    );
    while let Some(refused) = refuse(&mut rig, ADMIN) {
        places.push(refused);
        assert!(places.len() < 100, "without an end");
    }
    let place = places.pop().expect("one");
    rig.with_core(0, |target, _| target.give_back(place));
    assert!(refuse(&mut rig, ADMIN).is_some() && refuse(&mut rig, ADMIN).is_none(), "one place is back");
    let mut survey = Survey::default();
    rig.cores[0].target.survey(&mut survey);
    let [host, subsystem, listener, ..] = survey.refused;
    // Refusals by listener: the first one, the refusals reported after it, two without a free record, and one with the returned
    // record.
    assert_eq!((host, subsystem, listener), (1, 2, 1 + (places.len() as u64 - 2) + 3));
    rig.finish();
}

/// Sends a Connect with changed bytes in its command and its data. Returns the response to the host, and the refusal that
/// control gets.
fn refuse(rig: &mut Rig, wish: Wish, in_sqe: &[(usize, u8)], in_data: &[(usize, u8)]) -> (Outcome, Refused) {
    let mut host = Host::dial(rig, 0, (false, false), 4);
    let (command, mut data) = connect_command(wish);
    in_data.iter().for_each(|(at, byte)| data[*at] = *byte);
    let sqe = command.sqe(1, Sgl::InCapsule { offset_bytes: 0, len_bytes: 1024 });
    let mut bytes = [0; 64];
    sqe.emit(&mut bytes);
    in_sqe.iter().for_each(|(at, byte)| bytes[*at] = *byte);
    let outcome = host.run(rig, Sqe::parse(&bytes), &data);
    let is_refusal = |msg: &Msg<_, _>| matches!(msg, Msg::Refused(_));
    let control = &mut rig.cores[0].io.control;
    let told = control.iter().rposition(is_refusal).map(|at| control.remove(at));
    let Some(Msg::Refused(refused)) = told else { panic!("{outcome:?} is not told") };
    rig.with_core(0, |target, _| target.give_back(refused.clone()));
    rig.hang_up(host.at);
    (outcome, *refused)
}

#[test]
fn whatever_a_connect_is_refused_for_is_told_and_counted() {
    use ConnectRefusal as Why;
    const INVALID: Status = Status::CONNECT_INVALID_PARAMETERS;
    let mut rig = Rig::new(1);
    let owner = Host::admin(&mut rig, 0, ADMIN);
    let io = Wish { qid: 1, cntlid: owner.cntlid, ..ADMIN };
    let discovery = Wish { subnqn: DISCOVERY, ..ADMIN };
    let zero = |range: std::ops::Range<usize>| range.map(|at| (at, 0)).collect::<Vec<_>>();
    let unended: Vec<_> = (512..768).map(|at| (at, b'x')).collect();
    let long = "x".repeat(223);
    type Case<'a> = (Wish, Vec<(usize, u8)>, Vec<(usize, u8)>, (Status, u64), (Why, &'a str));
    let cases: Vec<Case> = vec![
        (ADMIN, vec![(44, 0)], vec![], (INVALID, 44), (Why::SqSize, HOST)),
        (ADMIN, vec![(45, 1)], vec![], (INVALID, 44), (Why::SqSize, HOST)),
        (ADMIN, vec![(40, 1)], vec![], (Status::CONNECT_INCOMPATIBLE_FORMAT, 0), (Why::RecFmt, HOST)),
        (ADMIN, vec![], zero(0..16), (INVALID, IN_DATA), (Why::HostId, HOST)),
        (
            ADMIN,
            vec![],
            vec![(512, b'\n')],
            (INVALID, IN_DATA | 512),
            (Why::HostNqn, "\u{fffd}qn.2024-01.test:host"),
        ),
        (ADMIN, vec![], unended, (INVALID, IN_DATA | 512), (Why::HostNqn, &long)),
        (ADMIN, vec![], vec![(256, 7)], (INVALID, IN_DATA | 256), (Why::Subsystem, HOST)),
        (ADMIN, vec![], vec![(16, 1)], (INVALID, IN_DATA | 16), (Why::CntlId, HOST)),
        (io, vec![], vec![(17, 0xFF), (16, 0xFF)], (INVALID, IN_DATA | 16), (Why::CntlId, HOST)),
        (io, vec![], vec![(17, 1)], (INVALID, IN_DATA | 16), (Why::CntlId, HOST)),
        (io, vec![(42, 65)], vec![], (INVALID, 42), (Why::Qid, HOST)),
        (io, vec![], vec![(0, 1)], (Status::CONNECT_INVALID_HOST, 0), (Why::OtherHost, HOST)),
        (
            Wish { hostnqn: "", ..ADMIN },
            vec![],
            vec![],
            (Status::CONNECT_INVALID_HOST, 0),
            (Why::Host, "hostid:09090909-0909-0909-0909-090909090909"),
        ),
        (
            Wish { qid: 1, cntlid: 1, ..discovery },
            vec![],
            vec![],
            (Status::INVALID_QUEUE_TYPE, 0),
            (Why::Qid, HOST),
        ),
        // The descriptor has a wrong data length, so the data is not parsed.
        (ADMIN, vec![(32, 8)], vec![], (Status::DATA_SGL_LENGTH_INVALID, 0), (Why::Other, "")),
    ];
    let mut counts = [0; ConnectRefusal::ALL.len()];
    for (wish, in_sqe, in_data, answer, (why, host)) in cases {
        let (outcome, refused) = refuse(&mut rig, wish, &in_sqe, &in_data);
        assert_eq!((rejected(&outcome), refused.why), (answer, why), "{in_sqe:?} {in_data:?}");
        assert_eq!(
            (refused.host_nqn.as_str(), refused.peer.to_string().as_str()),
            (host, "198.51.100.7:999")
        );
        counts[why as usize] += 1;
    }
    // This is a second Connect on the queue.
    let mut twice = owner;
    assert!(twice.fabrics_connect(&mut rig, ADMIN).status.is(Status::COMMAND_SEQUENCE_ERROR));
    counts[Why::Sequence as usize] += 1;
    let mut survey = Survey::default();
    rig.cores[0].target.survey(&mut survey);
    assert_eq!(survey.refused, counts);
    assert!(Why::ALL.iter().enumerate().all(|(at, why)| *why as usize == at));
    rig.finish();
}

/// Uses names that real hosts use, and that Linux's and SPDK's targets accept.
#[test]
fn a_host_may_have_any_name_and_none_where_any_host_may_connect() {
    let mut rig = Rig::new(1);
    let names = [
        "nqn.2014-08.org.nvmexpress:uuid:07e4a0a641d54bff96b28a173dcfb6b5",
        "hostnqn1",
        "nqn.2021-13.x:y",
        "with space",
    ];
    rig.topology.subsystems[0].hosts = Allow::only(names.map(str::to_owned));
    rig.publish();
    for hostnqn in names {
        Host::admin(&mut rig, 0, Wish { hostnqn, ..ADMIN });
    }
    let nameless = Wish { hostnqn: "", ..ADMIN };
    // Control refuses a list with an empty entry. Even such a list must not allow a host without a name.
    rig.topology.subsystems[0].hosts = Allow::only([String::new()]);
    rig.publish();
    assert!(Host::connect(&mut rig, 0, nameless).1.status.is(Status::CONNECT_INVALID_HOST));
    rig.topology.subsystems[0].hosts = Allow::Any;
    rig.publish();
    let admin = Host::admin(&mut rig, 0, nameless);
    let mut io = Host::io(&mut rig, 0, &admin, nameless);
    let read = IoCommand::Read(BlockRange::new(0, 1));
    assert_eq!(io.io_command(&mut rig, 1, read, &[], 512).status, Status::SUCCESS);
    assert!(io.io_command(&mut rig, 3, read, &[], 512).status.is(Status::INVALID_NAMESPACE), "on a list");
    rig.finish();
}

#[test]
fn hosts_without_a_name_are_told_apart_by_their_hostid() {
    let mut rig = Rig::new(2);
    rig.topology.subsystems[0].hosts = Allow::Any;
    rig.publish();
    let one = Wish { hostnqn: "", ..ADMIN };
    let other = Wish { hostid: [8; 16], ..one };
    let admin = Host::admin(&mut rig, 0, one);
    let mut io = Host::io(&mut rig, 1, &admin, one);
    let (stolen, outcome) = Host::connect(&mut rig, 1, Wish { qid: 2, cntlid: admin.cntlid, ..other });
    assert!(outcome.status.is(Status::CONNECT_INVALID_HOST), "{}", outcome.status);
    rig.hang_up(stolen.at);
    let mut survey = Survey { qpairs: Vec::with_capacity(4), ..Survey::default() };
    rig.cores[0].target.survey(&mut survey);
    assert_eq!(survey.qpairs[0].host_nqn.as_str(), "hostid:09090909-0909-0909-0909-090909090909");
    // The first host's write is still in flight, which delays no other host.
    rig.hold = true;
    let write = IoCommand::Write(BlockRange::new(0, 1));
    let sqe = write.sqe(io.next_cid(), 1, Sgl::InCapsule { offset_bytes: 0, len_bytes: 512 });
    io.submit(&mut rig, sqe, &[1; 512]);
    rig.pump();
    rig.hang_up(admin.at);
    let mut ready = |wish| {
        let mut again = Host::admin(&mut rig, 0, wish);
        csts(&mut rig, &mut again).rdy
    };
    assert_eq!((ready(other), ready(one)), (true, false));
    rig.finish();
}

#[test]
fn connect_data_may_come_by_r2t() {
    let mut rig = Rig::new(1);
    let mut host = Host::dial(&mut rig, 0, (true, true), 4);
    let (command, data) = connect_command(ADMIN);
    let outcome = host.run(&mut rig, command.sqe(1, Sgl::Transport { len_bytes: 1024 }), &data);
    assert_eq!(outcome.status, Status::SUCCESS);
    rig.finish();
}

#[test]
fn nothing_works_before_connect_or_enable() {
    let mut rig = Rig::new(1);
    let mut host = Host::dial(&mut rig, 0, (false, false), 4);
    assert!(host.plain(&mut rig, AdminCommand::KeepAlive).status.is(Status::COMMAND_SEQUENCE_ERROR));
    let get = host.property(&mut rig, PropertySize::Four, offset::VS);
    assert!(get.status.is(Status::COMMAND_SEQUENCE_ERROR));
    assert_eq!(host.fabrics_connect(&mut rig, ADMIN).status, Status::SUCCESS);
    assert!(host.identify(&mut rig, 1, 0).status.is(Status::COMMAND_SEQUENCE_ERROR));
    let cntlid = 1;
    let (_, outcome) = Host::connect(&mut rig, 0, Wish { qid: 1, cntlid, ..ADMIN });
    assert!(outcome.status.is(Status::COMMAND_SEQUENCE_ERROR), "I/O queue before CSTS.RDY");
    host.enable(&mut rig);
    assert_eq!(host.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    rig.finish();
}

#[test]
fn queues_join_their_controller_from_any_core() {
    let mut rig = Rig::new(4);
    for core in 0..4 {
        let mut admin = Host::admin(&mut rig, core, ADMIN);
        assert_eq!(admin.ask_queues(&mut rig, 4), 4);
        for io_core in 0..4 {
            let wish = Wish { qid: io_core as u16 + 1, ..ADMIN };
            let mut io = Host::io(&mut rig, io_core, &admin, wish);
            let read = IoCommand::Read(BlockRange::new(0, 1));
            assert_eq!(io.io_command(&mut rig, 1, read, &[], 512).status, Status::SUCCESS);
            let (again, outcome) = Host::connect(&mut rig, 0, Wish { cntlid: admin.cntlid, ..wish });
            assert!(outcome.status.is(Status::INVALID_QUEUE_ID), "qid {} is taken", wish.qid);
            rig.hang_up(again.at);
            let set = io.set_cc(&mut rig, Cc::default());
            assert!(set.status.is(Status::INVALID_FIELD), "properties are the admin queue's");
        }
    }
    rig.finish();
}

fn csts(rig: &mut Rig, admin: &mut Host) -> Csts {
    Csts::from_bits(admin.property(rig, PropertySize::Four, offset::CSTS).result as u32)
}

#[test]
fn losing_the_admin_queue_ends_the_association() {
    let mut rig = Rig::new(3);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    assert_eq!(admin.ask_queues(&mut rig, 3), 3);
    let io: Vec<_> =
        (0..3).map(|c| Host::io(&mut rig, c, &admin, Wish { qid: c as u16 + 1, ..ADMIN })).collect();
    rig.hang_up(admin.at);
    assert!(io.iter().all(|io| !rig.sock(io.at).open));
    rig.finish();
}

#[test]
fn reset_closes_io_queues_and_keeps_the_admin_queue() {
    let mut rig = Rig::new(2);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    let io = Host::io(&mut rig, 1, &admin, ADMIN);
    let aer = AdminCommand::AsyncEventRequest.sqe(900, 0, Sgl::NONE);
    admin.submit(&mut rig, aer, &[]);
    rig.pump();
    let reset = admin.property(&mut rig, PropertySize::Four, offset::CC).result as u32 & !1;
    let set = trefoil_wire::fabrics::PropertySet {
        size: PropertySize::Four,
        offset: offset::CC,
        value: u64::from(reset),
    };
    admin.submit(&mut rig, FabricsCommand::PropertySet(set).sqe(901, Sgl::NONE), &[]);
    rig.pump();
    assert_eq!(admin.responses(&mut rig), [(901, Status::SUCCESS, 0), (900, Status::ABORTED_SQ_DELETION, 0)]);
    assert!(!rig.sock(io.at).open && rig.sock(admin.at).open);
    assert!(!csts(&mut rig, &mut admin).rdy);
    admin.enable(&mut rig);
    assert!(csts(&mut rig, &mut admin).rdy);
    let mut io = Host::io(&mut rig, 1, &admin, ADMIN);
    assert_eq!(io.io_command(&mut rig, 1, IoCommand::Flush, &[], 0).status, Status::SUCCESS);
    rig.finish();
}

#[test]
fn shutdown_completes_when_the_io_queues_are_gone() {
    let mut rig = Rig::new(2);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    let io = Host::io(&mut rig, 1, &admin, ADMIN);
    assert_eq!(csts(&mut rig, &mut admin).shst, 0);
    admin.set_cc(&mut rig, Cc { en: true, shn: 1, iosqes: 6, iocqes: 4, ..Cc::default() });
    assert!(!rig.sock(io.at).open);
    assert_eq!(csts(&mut rig, &mut admin).shst, 2);
    rig.finish();
}

#[test]
fn a_reset_or_shutdown_is_over_when_backends_are_done_with_what_the_queues_asked() {
    for (cc, over) in [
        (Cc { iosqes: 6, iocqes: 4, ..Cc::default() }, Csts::default()),
        (
            Cc { en: true, shn: 1, iosqes: 6, iocqes: 4, ..Cc::default() },
            Csts { rdy: true, shst: 2, ..Csts::default() },
        ),
    ] {
        let mut rig = Rig::new(3);
        let mut admin = Host::admin(&mut rig, 0, ADMIN);
        assert_eq!(admin.ask_queues(&mut rig, 2), 2);
        let before = csts(&mut rig, &mut admin);
        let mut io = Host::io(&mut rig, 1, &admin, ADMIN);
        // One queue loses its connection before the host resets. The reset closes the other queue.
        let mut lost = Host::io(&mut rig, 2, &admin, Wish { qid: 2, ..ADMIN });
        rig.hold = true;
        for host in [&mut io, &mut lost] {
            let sqe = IoCommand::Flush.sqe(7, 1, Sgl::NONE);
            host.submit(&mut rig, sqe, &[]);
        }
        rig.pump();
        rig.hang_up(lost.at);
        admin.set_cc(&mut rig, cc);
        let under_way = csts(&mut rig, &mut admin);
        assert!(!rig.sock(io.at).open && !rig.sock(lost.at).open);
        assert_eq!((under_way.rdy, under_way.shst), (before.rdy, u8::from(cc.shn != 0)));
        // Meanwhile, new connections may get the numbers of the old connections.
        let (other, _) = Host::connect(&mut rig, 1, ADMIN);
        assert_eq!(other.at, io.at);
        assert!(csts(&mut rig, &mut admin).rdy);
        rig.hold = false;
        rig.pump();
        assert_eq!(csts(&mut rig, &mut admin), over);
        rig.finish();
    }
}

#[test]
fn a_host_that_comes_back_waits_for_what_it_left_behind() {
    let mut rig = Rig::new(4);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 1, &admin, ADMIN);
    rig.hold = true;
    io.submit(&mut rig, IoCommand::Flush.sqe(7, 1, Sgl::NONE), &[]);
    rig.pump();
    rig.hang_up(admin.at);
    assert!(!rig.sock(io.at).open);
    let cancels: Vec<_> =
        (0..4).filter_map(|core| rig.with_core(core, |target, _| target.next_cancel())).collect();
    assert_eq!(cancels.iter().map(|stream| stream.core.0).collect::<Vec<_>>(), [1]);
    // The new controller is on another core and has a Keep Alive Timeout. The host can't send Keep Alive before CSTS.RDY.
    let mut again = Host::admin(&mut rig, 2, Wish { kato_ms: 1000, ..ADMIN });
    for _ in 0..4 {
        assert!(!csts(&mut rig, &mut again).rdy);
        rig.pass(Duration::from_millis(800));
    }
    assert!(again.identify(&mut rig, 1, 0).status.is(Status::COMMAND_SEQUENCE_ERROR));
    let (early, refused) = Host::connect(&mut rig, 2, Wish { qid: 1, cntlid: again.cntlid, ..ADMIN });
    assert!(refused.status.is(Status::COMMAND_SEQUENCE_ERROR));
    rig.hang_up(early.at);
    let mut other = Host::admin(&mut rig, 3, Wish { hostnqn: OTHER_HOST, ..ADMIN });
    assert!(csts(&mut rig, &mut other).rdy, "other hosts have nothing to wait for");
    rig.hold = false;
    rig.pump();
    // Reading CSTS asks the cores again.
    csts(&mut rig, &mut again);
    assert!(csts(&mut rig, &mut again).rdy);
    let mut io = Host::io(&mut rig, 1, &again, ADMIN);
    assert_eq!(io.io_command(&mut rig, 1, IoCommand::Flush, &[], 0).status, Status::SUCCESS);
    rig.finish();
}

#[test]
fn a_host_that_keeps_silent_while_it_waits_is_let_go() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    rig.hold = true;
    io.submit(&mut rig, IoCommand::Flush.sqe(7, 1, Sgl::NONE), &[]);
    rig.pump();
    rig.hang_up(admin.at);
    let again = Host::admin(&mut rig, 0, Wish { kato_ms: 1000, ..ADMIN });
    rig.pass(Duration::from_millis(1100));
    assert!(!rig.sock(again.at).open);
    rig.finish();
}

#[test]
fn what_can_not_be_selected_is_fatal() {
    let mut rig = Rig::new(1);
    let (mut admin, _) = Host::connect(&mut rig, 0, ADMIN);
    admin.set_cc(&mut rig, Cc { en: true, mps: 1, iosqes: 6, iocqes: 4, ..Cc::default() });
    let csts = csts(&mut rig, &mut admin);
    assert!(csts.cfs && !csts.rdy);
    rig.finish();
}

/// Checks NVMe base 2.0c §5.27.1.12, figure 94 (1Ah).
#[test]
fn set_features_of_kato_restarts_the_timer_and_cant_stop_it() {
    let set = |rig: &mut Rig, host: &mut Host, kato_ms: u32| {
        let set = SetFeatures { fid: fid::KEEP_ALIVE_TIMER, cdw11: kato_ms, ..SetFeatures::default() };
        let outcome = host.plain(rig, AdminCommand::SetFeatures(set));
        (outcome.status, outcome.result)
    };
    let ms = Duration::from_millis;
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, Wish { kato_ms: 5000, ..ADMIN });
    rig.pass(ms(4000));
    // This restarts the timer. Without the restart, the new timeout would already have passed.
    assert_eq!(set(&mut rig, &mut admin, 2500), (Status::SUCCESS, 3000));
    rig.pass(ms(2900));
    assert!(rig.sock(admin.at).open);
    assert_eq!(set(&mut rig, &mut admin, 0), (Status::KEEP_ALIVE_INVALID.dnr(), 0));
    let get = GetFeatures { fid: fid::KEEP_ALIVE_TIMER, ..GetFeatures::default() };
    assert_eq!(admin.plain(&mut rig, AdminCommand::GetFeatures(get)).result, 3000, "as before");
    rig.pass(ms(200));
    assert!(!rig.sock(admin.at).open, "what failed has restarted nothing");
    // A host without a Keep Alive Timeout may leave it unset, and set a timeout later.
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    assert_eq!(set(&mut rig, &mut admin, 0), (Status::SUCCESS, 0));
    rig.pass(ms(60_000));
    assert_eq!(set(&mut rig, &mut admin, 1000), (Status::SUCCESS, 1000));
    rig.pass(ms(900));
    assert!(rig.sock(admin.at).open);
    rig.pass(ms(200));
    assert!(!rig.sock(admin.at).open);
    rig.finish();
}

#[test]
fn silence_past_kato_ends_the_controller() {
    let mut rig = Rig::new(2);
    let mut admin = Host::admin(&mut rig, 0, Wish { kato_ms: 4500, ..ADMIN });
    let mut io = Host::io(&mut rig, 1, &admin, ADMIN);
    for _ in 0..4 {
        rig.pass(Duration::from_millis(3000));
        assert_eq!(admin.plain(&mut rig, AdminCommand::KeepAlive).status, Status::SUCCESS);
    }
    // Without traffic based keep alive, I/O does not prove that the host is alive. The target rounds 4.5 s up to 5 s.
    rig.pass(Duration::from_millis(4900));
    assert_eq!(io.io_command(&mut rig, 1, IoCommand::Flush, &[], 0).status, Status::SUCCESS);
    rig.pass(Duration::from_millis(110));
    assert!(!rig.sock(admin.at).open && !rig.sock(io.at).open);
    rig.finish();
}

#[test]
fn disconnect_answers_and_closes_the_queue() {
    let mut rig = Rig::new(2);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 1, &admin, ADMIN);
    let sqe = FabricsCommand::Disconnect { recfmt: 0 }.sqe(50, Sgl::NONE);
    assert!(admin.run(&mut rig, sqe, &[]).status.is(Status::INVALID_QUEUE_TYPE));
    io.submit(&mut rig, sqe, &[]);
    rig.pump();
    assert_eq!(io.responses(&mut rig), [(50, Status::SUCCESS, 0)]);
    assert!(!rig.sock(io.at).open);
    Host::io(&mut rig, 0, &admin, ADMIN);
    rig.finish();
}

#[test]
fn hosts_that_lose_permission_are_disconnected() {
    let mut rig = Rig::new(2);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let io = Host::io(&mut rig, 1, &admin, ADMIN);
    let other = Host::admin(&mut rig, 1, Wish { hostnqn: OTHER_HOST, ..ADMIN });
    rig.topology.subsystems[0].hosts = Allow::only(vec![OTHER_HOST.into()]);
    rig.publish();
    assert!(!rig.sock(admin.at).open && !rig.sock(io.at).open && rig.sock(other.at).open);
    let (_, refused) = Host::connect(&mut rig, 0, ADMIN);
    assert!(refused.status.is(Status::CONNECT_INVALID_HOST));
    rig.topology.subsystems.clear();
    rig.publish();
    assert!(!rig.sock(other.at).open);
    let (_, refused) = Host::connect(&mut rig, 0, Wish { hostnqn: OTHER_HOST, ..ADMIN });
    assert_eq!(rejected(&refused), (Status::CONNECT_INVALID_PARAMETERS, IN_DATA | 256));
    rig.finish();
}

#[test]
fn a_survey_lists_what_is_connected() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, Wish { digests: (true, false), ..ADMIN });
    io.io_command(&mut rig, 1, IoCommand::Read(BlockRange::new(0, 8)), &[], 4096);
    let mut survey = Survey { qpairs: Vec::with_capacity(1), ..Survey::default() };
    rig.cores[0].target.survey(&mut survey);
    assert_eq!((survey.qpairs.len(), survey.total), (1, 2));
    let mut survey = Survey { qpairs: Vec::with_capacity(9), ..Survey::default() };
    rig.cores[0].target.survey(&mut survey);
    let row = survey.qpairs.iter().find(|row| row.qid == 1).expect("the I/O queue");
    assert_eq!((row.depth, row.outstanding, row.commands, row.payload_bytes), (128, 0, 2, 1024 + 4096));
    assert_eq!((row.host_nqn.as_str(), row.subsystem_nqn.as_str()), (HOST, SUBNQN));
    assert_eq!(row.digests, (true, false));
    rig.finish();
}

#[test]
fn each_lun_counts_what_hosts_did_with_it() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    io.io_command(&mut rig, 1, IoCommand::Read(BlockRange::new(0, 8)), &[], 4096);
    io.io_command(&mut rig, 1, IoCommand::Write(BlockRange::new(0, 2)), &[7; 1024], 0);
    let zeroes = IoCommand::WriteZeroes { range: BlockRange::new(0, 16), deac: false };
    io.io_command(&mut rig, 1, zeroes, &[], 0);
    io.io_command(&mut rig, 1, IoCommand::Flush, &[], 0);
    let survey = |rig: &Rig| {
        let mut survey = crate::stats::LunSurvey { rows: Vec::with_capacity(9), next: Some(0) };
        while survey.next.is_some() {
            rig.cores[0].target.survey_luns(&mut survey);
        }
        survey.rows
    };
    let rows = survey(&rig);
    assert_eq!(rows.len(), 1, "{rows:?}");
    let (stats, lun) = (rows[0].stats, crate::topology::LunId(0));
    let counts = [stats.read, stats.write, stats.trim, stats.flush].map(|op| (op.ops, op.bytes));
    assert_eq!((rows[0].lun, counts), (lun, [(1, 4096), (1, 1024), (1, 8192), (1, 0)]));
    assert_eq!(rows[0].latency.0.iter().sum::<u64>(), 4);
    // The next LUN with this number starts with counters of zero.
    rig.publish();
    assert_eq!(survey(&rig).len(), 1);
    rig.topology.luns[0].as_mut().expect("a LUN").uuid = [9; 16];
    rig.publish();
    assert_eq!(survey(&rig).len(), 0);
    rig.finish();
}
