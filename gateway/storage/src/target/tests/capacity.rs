//! What hosts may have of a whole gateway: places, queue grants, identifiers.

use super::host::{ADMIN, DISCOVERY, Host, Wish};
use super::rig::{Rig, limits};
use crate::target::Capacity;
use trefoil_wire::nvme::Status;

#[test]
fn max_hosts_are_the_gateways_total_and_not_a_cores() {
    let mut rig = Rig::sharing(2, limits(), 8, Capacity::new(3, 6));
    let admins: Vec<_> = [0, 1, 0].map(|core| Host::admin(&mut rig, core, ADMIN)).into();
    for core in [0, 1] {
        let (host, outcome) = Host::connect(&mut rig, core, ADMIN);
        assert_eq!(outcome.status, Status::CONNECT_CONTROLLER_BUSY, "core {core}");
        rig.hang_up(host.at);
        // Discovery has places of its own.
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
    // Room for 3 hosts, and 4 queues beyond an admin and an I/O queue of each.
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
    // Its grant ends with the controller, of which its connections are a part.
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
