//! Tests of a gateway's shared capacity: controllers, queue grants, identifiers.

use super::host::{ADMIN, DISCOVERY, Host, Seen, Wish, connect_command};
use super::rig::{Rig, limits};
use crate::frontend::limits::OPENING_COMMANDS;
use crate::frontend::{Capacity, Room};
use std::collections::VecDeque;
use std::time::Duration;
use trefoil_wire::fabrics::PropertySize;
use trefoil_wire::nvme::property::offset;
use trefoil_wire::nvme::{AdminCommand, BlockRange, IoCommand, Sgl, Status};

#[test]
fn max_hosts_are_the_gateways_total_and_not_a_cores() {
    let mut rig = Rig::sharing(2, limits(), 8, Capacity::new(3, 6));
    let admins: Vec<_> = [0, 1, 0].map(|core| Host::admin(&mut rig, core, ADMIN)).into();
    for core in [0, 1] {
        let (host, outcome) = Host::connect(&mut rig, core, ADMIN);
        assert_eq!(outcome.status, Status::CONNECT_CONTROLLER_BUSY, "core {core}");
        rig.hang_up(host.at);
        // Discovery controllers have room of their own.
        let discovery = Host::admin(&mut rig, core, DISCOVERY);
        rig.hang_up(discovery.at);
    }
    rig.hang_up(admins[1].at);
    Host::admin(&mut rig, 0, ADMIN);
    assert_eq!(Host::connect(&mut rig, 1, ADMIN).1.status, Status::CONNECT_CONTROLLER_BUSY);
    rig.finish();
}

#[test]
fn who_is_told_n_queues_gets_n_and_leaves_two_for_each_other_host() {
    // There is room for 3 hosts, and for 4 queues beyond an admin and an I/O queue of each host.
    let mut rig = Rig::sharing(2, limits(), 8, Capacity::new(3, 10));
    let mut greedy = Host::admin(&mut rig, 0, ADMIN);
    assert_eq!(greedy.ask_queues(&mut rig, 64), 5);
    let queues = |rig: &mut Rig, admin: &Host, count: u16| -> Vec<Host> {
        (1..=count).map(|qid| Host::io(rig, usize::from(qid % 2), admin, Wish { qid, ..ADMIN })).collect()
    };
    let io = queues(&mut rig, &greedy, 5);
    let past = Wish { qid: 6, cntlid: greedy.cntlid, ..ADMIN };
    let (host, outcome) = Host::connect(&mut rig, 0, past);
    assert_eq!(outcome.status, Status::INVALID_QUEUE_ID.dnr());
    rig.hang_up(host.at);
    for core in [0, 1] {
        let mut other = Host::admin(&mut rig, core, ADMIN);
        assert_eq!(other.ask_queues(&mut rig, 8), 1);
        queues(&mut rig, &other, 1);
    }
    // The grant ends with its controller. The end of a controller closes all its connections.
    rig.hang_up(greedy.at);
    assert!(io.iter().all(|io| !rig.sock(io.at).open));
    let mut next = Host::admin(&mut rig, 1, ADMIN);
    assert_eq!(next.ask_queues(&mut rig, 3), 3);
    queues(&mut rig, &next, 3);
    rig.finish();
}

#[test]
fn the_one_identifier_of_a_narrow_range_is_found_from_every_core() {
    let mut rig = Rig::new(4);
    rig.topology.subsystems[0].cntlid_range = (5, 5);
    rig.publish();
    for round in 0..2 {
        for core in 0..4 {
            let admin = Host::admin(&mut rig, core, ADMIN);
            assert_eq!(admin.cntlid, 5, "round {round} on core {core}");
            let io_core = (core + 1) % 4;
            Host::io(&mut rig, io_core, &admin, ADMIN);
            let (second, outcome) = Host::connect(&mut rig, io_core, ADMIN);
            assert_eq!(outcome.status, Status::CONNECT_CONTROLLER_BUSY, "it is taken");
            rig.hang_up(second.at);
            rig.hang_up(admin.at);
        }
    }
    rig.finish();
}

#[test]
fn an_idle_discovery_controller_ends_and_one_with_keep_alive_lives_by_that() {
    let mut rig = Rig::new(1);
    let idle = Host::admin(&mut rig, 0, DISCOVERY);
    let mut asking = Host::admin(&mut rig, 0, DISCOVERY);
    let mut persistent = Host::admin(&mut rig, 0, Wish { kato_ms: 100_000, ..DISCOVERY });
    let quiet_io = Host::admin(&mut rig, 0, ADMIN);
    let half = limits().discovery_timeout / 2 + Duration::from_millis(10);
    rig.pass(half);
    assert_eq!(asking.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    assert_eq!(persistent.plain(&mut rig, AdminCommand::KeepAlive).status, Status::SUCCESS);
    rig.pass(half);
    assert!(!rig.sock(idle.at).open, "it said nothing for two minutes");
    assert!(rig.sock(asking.at).open && rig.sock(persistent.at).open && rig.sock(quiet_io.at).open);
    // A command does not count as Keep Alive (NVMe base 2.0c §3.9.3.1), and the host sent no Keep Alive within the timeout.
    assert_eq!(asking.property(&mut rig, PropertySize::Four, offset::CSTS).status, Status::SUCCESS);
    assert_eq!(persistent.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    rig.pass(half);
    assert!(!rig.sock(persistent.at).open && rig.sock(asking.at).open);
    rig.pass(half);
    assert!(!rig.sock(asking.at).open && rig.sock(quiet_io.at).open);
    rig.finish();
}

#[test]
fn the_oldest_discovery_controller_makes_room_for_another_and_never_a_hosts() {
    let mut rig = Rig::new(1);
    let io = Host::admin(&mut rig, 0, ADMIN);
    let places = limits().max_discovery;
    let mut there: VecDeque<_> = (0..places).map(|_| Host::admin(&mut rig, 0, DISCOVERY)).collect();
    for _ in 0..2 * places {
        let newest = Host::admin(&mut rig, 0, DISCOVERY);
        let oldest = there.pop_front().expect("as many as there are places");
        assert!(!rig.sock(oldest.at).open);
        there.push_back(newest);
        assert!(there.iter().chain([&io]).all(|host| rig.sock(host.at).open));
    }
    rig.finish();
}

#[test]
fn nobody_loses_its_place_before_its_time_and_an_io_controller_never() {
    let mut rig = Rig::new(1);
    let io = Host::admin(&mut rig, 0, ADMIN);
    let room = |rig: &mut Rig| rig.with_core(0, |target, cx| target.make_room(cx));
    assert_eq!(room(&mut rig), Room::Never);
    let first = rig.open(0);
    assert!(matches!(room(&mut rig), Room::At(_)));
    rig.pass(limits().connect_grace - Duration::from_millis(1));
    let second = rig.open(0);
    assert!(matches!(room(&mut rig), Room::At(_)) && rig.sock(first).open);
    rig.pass(Duration::from_millis(1));
    assert_eq!(room(&mut rig), Room::Made);
    assert!(matches!(room(&mut rig), Room::At(_)), "the second has come later");
    rig.pump();
    assert!(!rig.sock(first).open && rig.sock(second).open && rig.sock(io.at).open);
    rig.finish();
}

#[test]
fn who_has_not_connected_may_send_little_and_holds_less() {
    let mut rig = Rig::new(1);
    // If a capsule's data is larger than a Connect's, the capsule takes no memory, even while the rest of the capsule is
    // missing.
    let free = rig.cores[0].arena.free_bytes();
    let mut large = Host::dial(&mut rig, 0, (false, false), 4);
    let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: 8192 };
    let sqe = IoCommand::Write(BlockRange::new(0, 16)).sqe(1, 1, sgl);
    let capsule = large.capsule(sqe, &[1; 8192]);
    rig.send(large.at, &capsule[..1000]);
    rig.pump();
    assert_eq!(rig.cores[0].arena.free_bytes(), free);
    rig.send(large.at, &capsule[1000..]);
    rig.pump();
    let answers = large.seen(&mut rig);
    let [Seen::Resp(cqe)] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(cqe.status, Status::COMMAND_SEQUENCE_ERROR.dnr());
    assert_eq!(large.fabrics_connect(&mut rig, ADMIN).status, Status::SUCCESS, "the stream went on");
    // Commands that wait for their data hold slots.
    let many = Host::dial(&mut rig, 0, (false, false), 4);
    let slots = rig.cores[0].target.free_slots();
    for cid in 0..20 {
        let (command, _) = connect_command(ADMIN);
        let bytes = many.capsule(command.sqe(cid, Sgl::Transport { len_bytes: 1024 }), &[]);
        rig.send(many.at, &bytes);
    }
    rig.pump();
    assert!(rig.cores[0].target.free_slots() + usize::from(OPENING_COMMANDS) >= slots);
    rig.finish();
}
