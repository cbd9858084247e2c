//! Tests that the work of a core in one turn has a bound that doesn't depend on the number of hosts. The tests count work, not
//! time.

use super::host::{ADMIN, Host, Seen, Wish};
use super::rig::{Rig, limits};
use crate::frontend::TargetLimits;
use crate::msg::Survey;
use crate::topology::{Allow, LunId, Namespace, work};
use trefoil_wire::nvme::log::{ChangedNamespaces, lid};
use trefoil_wire::nvme::{AdminCommand, BlockRange, GetLogPage, IoCommand, NSID_ALL, Sgl, Status};

const HOSTS: usize = 1000;
const NAMESPACES: u32 = 1000;
/// The most work of one turn. A step examines one entry, and searches two lists of 1,000 names: 10 comparisons each, at most
/// 11.
const WORK_A_TURN: usize = 1024 * (1 + 2 * 11);
/// The most connections that a turn closes.
const CLOSES_A_TURN: usize = 1024 / 16;

fn name(host: usize) -> &'static str {
    format!("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-{host:012}").leak()
}

fn wish(host: usize) -> Wish {
    Wish { hostnqn: name(host), ..ADMIN }
}

fn all_but(gone: Option<usize>) -> Allow {
    Allow::only((0..HOSTS + 1).filter(|host| Some(*host) != gone).map(|host| name(host).into()))
}

/// Connects 1,000 hosts with an admin queue each. All of them see 1,000 namespaces.
fn many_hosts() -> (Rig, Vec<Host>) {
    let limits = TargetLimits { max_conns: 1100, max_ctrlrs: 1100, slots: 4096, send_lists: 64, ..limits() };
    let mut rig = Rig::with(1, limits, 32);
    let subsystem = &mut rig.topology.subsystems[0];
    (subsystem.hosts, subsystem.max_namespaces) = (all_but(None), NAMESPACES);
    let hosts = all_but(None);
    let namespace =
        |nsid| Namespace { nsid, lun: LunId(0), hosts: hosts.clone(), ana_group: nsid, ana_state: 1 };
    subsystem.namespaces = (1..=NAMESPACES).map(namespace).collect();
    subsystem.namespaces[4].lun = LunId(1);
    rig.publish();
    let hosts = (0..HOSTS).map(|host| Host::admin(&mut rig, 0, wish(host))).collect();
    (rig, hosts)
}

/// Runs one turn of the sweep. Returns whether there was work, and the amount of work done.
fn sweep(rig: &mut Rig) -> (bool, usize) {
    work::take();
    let more = rig.with_core(0, |target, cx| target.sweep(cx));
    (more, work::take())
}

/// Shows every namespace to all hosts except `gone`, or to all hosts if `gone` is `None`, and makes a LUN larger.
fn change(rig: &mut Rig, gone: Option<usize>) {
    let hosts = all_but(gone);
    rig.topology.subsystems[0].namespaces.iter_mut().for_each(|n| n.hosts = hosts.clone());
    rig.topology.luns[1].as_mut().expect("a LUN").blocks += 8;
    rig.present();
}

fn changed(rig: &mut Rig, host: &mut Host) -> Vec<u32> {
    let get = GetLogPage { lid: lid::CHANGED_NAMESPACES, len_bytes: 4096, ..GetLogPage::default() };
    let outcome = host.read_admin(rig, AdminCommand::GetLogPage(get), NSID_ALL, 4096);
    match ChangedNamespaces::parse(outcome.data.first_chunk().expect("4096 bytes")) {
        ChangedNamespaces::These(list) => list.iter().collect(),
        ChangedNamespaces::TooMany => panic!("too many"),
    }
}

#[test]
fn a_topology_change_over_1000_hosts_and_1000_namespaces_is_told_in_bounded_turns() {
    let (mut rig, mut hosts) = many_hosts();
    rig.cores[0].io.in_force.clear();
    change(&mut rig, Some(7));
    let first = rig.topology.epoch;
    let (mut turns, mut most) = (0, 0);
    while turns < 500 {
        let (more, work) = sweep(&mut rig);
        assert!(more, "a million checks in {turns} turns");
        (turns, most) = (turns + 1, most.max(work));
    }
    // During the sweep, another change comes, and a host connects that has seen only the new topology.
    change(&mut rig, None);
    let mut late = Host::admin(&mut rig, 0, wish(HOSTS));
    loop {
        let (more, work) = sweep(&mut rig);
        (turns, most) = (turns + 1, most.max(work));
        if !more {
            break;
        }
    }
    assert!(most <= WORK_A_TURN, "{most} in one turn");
    assert_eq!(rig.cores[0].io.in_force, [first, first + 1]);
    assert_eq!(changed(&mut rig, &mut late), []);
    assert_eq!(changed(&mut rig, &mut hosts[7]), (1..=NAMESPACES).collect::<Vec<_>>());
    for host in [0, 8, HOSTS - 1] {
        assert_eq!(changed(&mut rig, &mut hosts[host]), [5]);
    }
    rig.finish();
}

#[test]
fn a_change_that_leaves_the_lists_as_they_are_costs_one_look_a_namespace() {
    let (mut rig, mut hosts) = many_hosts();
    rig.topology.luns[1].as_mut().expect("a LUN").blocks += 8;
    rig.present();
    let mut total = 0;
    loop {
        let (more, work) = sweep(&mut rig);
        total += work;
        if !more {
            break;
        }
    }
    assert!(total < 40 * (HOSTS + NAMESPACES as usize), "{total}");
    assert_eq!(changed(&mut rig, &mut hosts[3]), [5]);
    rig.finish();
}

#[test]
fn revoked_hosts_are_closed_some_a_turn_and_may_do_nothing_meanwhile() {
    let (mut rig, hosts) = many_hosts();
    let mut io = Host::io(&mut rig, 0, &hosts[HOSTS - 1], wish(HOSTS - 1));
    let read = IoCommand::Read(BlockRange::new(0, 1));
    assert_eq!(io.io_command(&mut rig, 1, read, &[], 512).status, Status::SUCCESS);
    rig.topology.subsystems[0].hosts = Allow::only([]);
    rig.present();
    // The host's connection closes late in the sweep, but its permission ends at once.
    io.submit(&mut rig, read.sqe(77, 1, Sgl::Transport { len_bytes: 512 }), &[]);
    let mut seen = Vec::new();
    let mut before = rig.open_count(0);
    while before > 0 {
        rig.turn(0);
        let now = rig.open_count(0);
        assert!(before - now <= CLOSES_A_TURN, "{} closed in one turn", before - now);
        before = now;
        seen.extend(io.seen(&mut rig));
    }
    match seen.as_slice() {
        [Seen::Resp(cqe)] => assert!(cqe.cid == 77 && cqe.status.is(Status::INTERNAL_PATH_ERROR), "{cqe:?}"),
        other => panic!("{other:?}"),
    }
    rig.finish();
}

#[test]
fn an_orderly_stop_closes_some_a_turn() {
    let (mut rig, _hosts) = many_hosts();
    rig.with_core(0, |target, _| target.close_hosts(true));
    let mut before = rig.open_count(0);
    while before > 0 {
        rig.turn(0);
        let now = rig.open_count(0);
        assert!(before - now <= CLOSES_A_TURN, "{} closed in one turn", before - now);
        before = now;
    }
    rig.finish();
}

#[test]
fn surveys_are_made_piece_by_piece() {
    let (rig, _hosts) = many_hosts();
    let mut survey = Survey { qpairs: Vec::with_capacity(2 * HOSTS), ..Survey::default() };
    let mut pieces = Vec::new();
    loop {
        let before = survey.total;
        rig.cores[0].target.survey(&mut survey);
        pieces.push(survey.total - before);
        if survey.next.is_none() {
            break;
        }
    }
    assert_eq!((survey.qpairs.len(), survey.total, pieces.len()), (HOSTS, HOSTS, 2));
    rig.finish();
}
