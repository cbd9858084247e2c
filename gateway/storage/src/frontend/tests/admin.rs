//! Tests of admin commands: Identify, logs, features, events, discovery.

use super::host::{ADMIN, DISCOVERY, Host, Outcome, Seen, Wish};
use super::rig::{HOST, OTHER_HOST, Rig, SUBNQN, limits};
use crate::frontend::{Capacity, TargetLimits};
use crate::topology::{Allow, LunId, Namespace, PortalId};
use std::time::Duration;
use trefoil_wire::fabrics::discovery::DiscoveryLog;
use trefoil_wire::fabrics::{FabricsCommand, PropertyGet, PropertySize};
use trefoil_wire::nvme::feature::{AsyncEventConfig, fid};
use trefoil_wire::nvme::identify::{
    ControllerList, IdentifyController, IdentifyNamespace, IoCommandSetList, NamespaceDescriptor,
    NamespaceDescriptors, NamespaceList, cns,
};
use trefoil_wire::nvme::log::{AnaLog, ChangedNamespaces, CommandsAndEffects, ErrorEntry, lid};
use trefoil_wire::nvme::property::{Cap, Cc, offset};
use trefoil_wire::nvme::{
    AdminCommand, AsyncEvent, BlockRange, GetFeatures, GetLogPage, IoCommand, NSID_ALL, SetFeatures, Sgl,
    Status,
};

fn page(outcome: &Outcome) -> &[u8; 4096] {
    assert_eq!(outcome.status, Status::SUCCESS);
    outcome.data.first_chunk().expect("4096 bytes")
}

fn log(rig: &mut Rig, host: &mut Host, lid: u8, lpo: u64, len: u32) -> Outcome {
    let get = GetLogPage { lid, lpo, len_bytes: u64::from(len), ..GetLogPage::default() };
    host.read_admin(rig, AdminCommand::GetLogPage(get), NSID_ALL, len)
}

fn set(rig: &mut Rig, host: &mut Host, fid: u8, cdw11: u32) -> Outcome {
    host.plain(rig, AdminCommand::SetFeatures(SetFeatures { fid, cdw11, ..SetFeatures::default() }))
}

fn get(rig: &mut Rig, host: &mut Host, fid: u8, sel: u8) -> Outcome {
    host.plain(rig, AdminCommand::GetFeatures(GetFeatures { fid, sel, ..GetFeatures::default() }))
}

#[test]
fn properties_read_as_fabrics_wants() {
    let mut rig = Rig::new(1);
    let (mut admin, _) = Host::connect(&mut rig, 0, ADMIN);
    let cap = Cap::from_bits(admin.property(&mut rig, PropertySize::Eight, offset::CAP).result);
    assert!(cap.cqr && cap.css == 1 && cap.mqes == 255 && cap.to_500ms == 70 && cap.mpsmin == 0);
    assert_eq!(admin.property(&mut rig, PropertySize::Four, offset::VS).result, 0x1_0400);
    for (size, at) in
        [(PropertySize::Four, offset::CAP), (PropertySize::Eight, offset::CC), (PropertySize::Four, 0x24)]
    {
        assert!(admin.property(&mut rig, size, at).status.is(Status::INVALID_FIELD), "{at:#x}");
    }
    rig.finish();
}

#[test]
fn identify_says_what_is_there() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    let ctrlr = IdentifyController::parse(page(&admin.identify(&mut rig, cns::CONTROLLER, 0)));
    assert_eq!((ctrlr.sn.text(), ctrlr.mn.text(), ctrlr.cntlid), ("SERIAL", "Model", admin.cntlid));
    assert_eq!((ctrlr.mdts, ctrlr.ioccsz, ctrlr.iorcsz, ctrlr.icdoff), (8, 516, 1, 0));
    assert_eq!((ctrlr.nn, ctrlr.mnan, ctrlr.anagrpmax, ctrlr.nanagrpid), (16, 16, 16, 16));
    assert!(ctrlr.cmic.ana_reporting && ctrlr.oaes.ana_change && ctrlr.oaes.namespace_attribute);
    assert!(ctrlr.oncs.dsm && ctrlr.oncs.write_zeroes && !ctrlr.oncs.compare && ctrlr.vwc == 7);
    assert_eq!(&ctrlr.subnqn[..SUBNQN.len()], SUBNQN.as_bytes());
    // CQT: bytes 387:386 (NVMe base 2.1 figure 313).
    let identified = admin.identify(&mut rig, cns::CONTROLLER, 0);
    assert_eq!((ctrlr.cqt_ms, &page(&identified)[386..388]), (30_000, &30_000u16.to_le_bytes()[..]));

    let ns = IdentifyNamespace::parse(page(&admin.identify(&mut rig, cns::NAMESPACE, 3)));
    assert_eq!((ns.nsze, ns.ncap, ns.format().block_bytes()), (8192, 8192, Some(512)));
    assert_eq!((ns.nguid, ns.anagrpid, ns.nmic, ns.dlfeat), ([0xB2; 16], 1, 1, 9));
    assert!(page(&admin.identify(&mut rig, cns::NAMESPACE, 4)).iter().all(|&b| b == 0), "another host's");
    assert!(admin.identify(&mut rig, cns::NAMESPACE, 17).status.is(Status::INVALID_NAMESPACE));
    assert!(admin.identify(&mut rig, cns::NAMESPACE, NSID_ALL).status.is(Status::INVALID_NAMESPACE));

    for (list, nsid, expected) in [
        (cns::ACTIVE_NAMESPACES, 0, vec![1, 3]),
        (cns::ACTIVE_NAMESPACES, 1, vec![3]),
        (cns::ACTIVE_NAMESPACES_IO_COMMAND_SET, 0, vec![1, 3]),
        (cns::ALLOCATED_NAMESPACES, 2, vec![3]),
    ] {
        let outcome = admin.identify(&mut rig, list, nsid);
        assert_eq!(NamespaceList::parse(page(&outcome)).iter().collect::<Vec<_>>(), expected);
    }
    assert!(admin.identify(&mut rig, cns::ACTIVE_NAMESPACES, NSID_ALL).status.is(Status::INVALID_NAMESPACE));
    let outcome = admin.identify(&mut rig, cns::NAMESPACE_DESCRIPTORS, 1);
    assert_eq!(
        NamespaceDescriptors::parse(page(&outcome)).collect::<Vec<_>>(),
        [
            NamespaceDescriptor::Nguid([0xB1; 16]),
            NamespaceDescriptor::Uuid([0xA1; 16]),
            NamespaceDescriptor::Csi(0)
        ]
    );
    let outcome = admin.identify(&mut rig, cns::CONTROLLERS, 0);
    assert_eq!(ControllerList::parse(page(&outcome)).iter().collect::<Vec<_>>(), [admin.cntlid]);
    for ok in [cns::NAMESPACE_IO_COMMAND_SET, cns::CONTROLLER_IO_COMMAND_SET, cns::NAMESPACE_INDEPENDENT] {
        assert_eq!(admin.identify(&mut rig, ok, 1).status, Status::SUCCESS, "CNS {ok:#x}");
    }
    let sets = trefoil_wire::nvme::IdentifyCommand {
        cns: cns::IO_COMMAND_SETS,
        cntid: 0xFFFF,
        ..Default::default()
    };
    let outcome = admin.read_admin(&mut rig, AdminCommand::Identify(sets), 0, 4096);
    assert_eq!(IoCommandSetList::parse(page(&outcome)).iter().collect::<Vec<_>>(), [1]);
    assert!(admin.identify(&mut rig, 0x55, 1).status.is(Status::INVALID_FIELD));
    rig.finish();
}

#[test]
fn logs_can_be_read_in_pieces() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    for (lid, len) in [
        (lid::SUPPORTED, 1024),
        (lid::ERROR, 1024),
        (lid::SMART, 512),
        (lid::FIRMWARE_SLOT, 512),
        (lid::COMMANDS_AND_EFFECTS, 4096),
        (lid::ANA, 56),
    ] {
        // Only errors make the error log longer, so its pieces together are equal to the whole log.
        let whole = log(&mut rig, &mut admin, lid, 0, len).data;
        assert!(whole.iter().any(|&b| b != 0) || lid == lid::ERROR, "log {lid:#x}");
        let mut pieces = Vec::new();
        for at in (0..len).step_by(28) {
            pieces.extend(log(&mut rig, &mut admin, lid, u64::from(at), 28.min(len - at)).data);
        }
        assert_eq!(pieces, whole, "log {lid:#x}");
    }
    // nvme-cli reads as many bytes of the ANA log as follow from Identify's MNAN and NANAGRPID.
    assert_eq!(log(&mut rig, &mut admin, lid::ANA, 560, 64).data, [0; 64]);
    assert!(log(&mut rig, &mut admin, lid::ANA, 596, 4).status.is(Status::INVALID_FIELD));
    assert!(log(&mut rig, &mut admin, lid::SMART, 516, 4).status.is(Status::INVALID_FIELD));
    assert!(log(&mut rig, &mut admin, lid::SMART, 2, 4).status.is(Status::INVALID_FIELD));
    assert!(log(&mut rig, &mut admin, lid::DISCOVERY, 0, 1024).status.is(Status::INVALID_LOG_PAGE));
    let effects = log(&mut rig, &mut admin, lid::COMMANDS_AND_EFFECTS, 0, 4096);
    let effects = CommandsAndEffects::parse(page(&effects));
    assert!(effects.io(0x01).block_content && effects.io(0x02).supported && !effects.io(0x05).supported);
    let errors = log(&mut rig, &mut admin, lid::ERROR, 0, 64);
    let newest = ErrorEntry::parse(errors.data.first_chunk().expect("64"));
    assert_eq!((newest.error_count, newest.status.code()), (4, Status::INVALID_LOG_PAGE));
    rig.finish();
}

#[test]
fn no_more_queues_are_granted_than_the_limits_say() {
    let mut rig = Rig::with(1, TargetLimits { io_queues: 2, ..limits() }, 6);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    assert_eq!(get(&mut rig, &mut admin, fid::NUMBER_OF_QUEUES, 0).result, 0, "one, until it asks");
    assert_eq!(set(&mut rig, &mut admin, fid::NUMBER_OF_QUEUES, 0x0003_0003).result, 0x0001_0001);
    let (host, outcome) =
        Host::connect(&mut rig, 0, Wish { qid: 3, cntlid: admin.cntlid, sqsize: 31, ..ADMIN });
    assert!(outcome.status.is(Status::INVALID_QUEUE_ID), "{}", outcome.status);
    rig.hang_up(host.at);
    rig.finish();
}

#[test]
fn features_are_as_fabrics_wants() {
    let mut rig = Rig::sharing(1, limits(), 8, Capacity::new(8, 256));
    let mut admin = Host::admin(&mut rig, 0, Wish { kato_ms: 5000, ..ADMIN });
    assert_eq!(get(&mut rig, &mut admin, fid::KEEP_ALIVE_TIMER, 0).result, 5000);
    assert_eq!(set(&mut rig, &mut admin, fid::NUMBER_OF_QUEUES, 0x0003_0003).result, 0x0003_0003);
    assert_eq!(get(&mut rig, &mut admin, fid::NUMBER_OF_QUEUES, 0).result, 0x0003_0003);
    assert_eq!(set(&mut rig, &mut admin, fid::NUMBER_OF_QUEUES, 0x0100_0100).result, 0x003F_003F);
    assert!(set(&mut rig, &mut admin, fid::NUMBER_OF_QUEUES, 0xFFFF).status.is(Status::INVALID_FIELD));
    assert_eq!(set(&mut rig, &mut admin, fid::ARBITRATION, 7).status, Status::SUCCESS);
    assert_eq!(get(&mut rig, &mut admin, fid::ARBITRATION, 0).result, 7);
    assert_eq!(get(&mut rig, &mut admin, fid::ARBITRATION, 1).result, 0);
    assert_eq!(get(&mut rig, &mut admin, fid::ARBITRATION, 3).result, 4);
    assert_eq!(get(&mut rig, &mut admin, fid::VOLATILE_WRITE_CACHE, 0).result, 1);
    assert!(
        set(&mut rig, &mut admin, fid::VOLATILE_WRITE_CACHE, 0).status.is(Status::FEATURE_NOT_CHANGEABLE)
    );
    // Features of interrupts don't exist over fabrics.
    for other in [0x08, 0x09, 0x0D, 0xC0] {
        assert!(get(&mut rig, &mut admin, other, 0).status.is(Status::INVALID_FIELD), "{other:#x}");
        assert!(set(&mut rig, &mut admin, other, 0).status.is(Status::INVALID_FIELD), "{other:#x}");
    }
    let saved = SetFeatures { fid: fid::ARBITRATION, save: true, ..SetFeatures::default() };
    assert!(admin.plain(&mut rig, AdminCommand::SetFeatures(saved)).status.is(Status::FEATURE_NOT_SAVEABLE));

    let id = GetFeatures { fid: fid::HOST_IDENTIFIER, cdw11: 1, ..GetFeatures::default() };
    assert_eq!(admin.read_admin(&mut rig, AdminCommand::GetFeatures(id), 0, 16).data, [9; 16]);
    let mut behavior = vec![0; 512];
    behavior[0] = 1;
    let command = AdminCommand::SetFeatures(SetFeatures { fid: fid::HOST_BEHAVIOR, ..Default::default() });
    let sqe = command.sqe(admin.next_cid(), 0, Sgl::InCapsule { offset_bytes: 0, len_bytes: 512 });
    assert_eq!(admin.run(&mut rig, sqe, &behavior).status, Status::SUCCESS);
    let command = AdminCommand::GetFeatures(GetFeatures { fid: fid::HOST_BEHAVIOR, ..Default::default() });
    assert_eq!(admin.read_admin(&mut rig, command, 0, 512).data, behavior);
    rig.finish();
}

fn await_event(rig: &mut Rig, host: &mut Host, cid: u16) {
    host.submit(rig, AdminCommand::AsyncEventRequest.sqe(cid, 0, Sgl::NONE), &[]);
    rig.pump();
}

fn enable_events(rig: &mut Rig, host: &mut Host) {
    let config = AsyncEventConfig {
        namespace_attribute: true,
        ana_change: true,
        discovery_change: true,
        ..Default::default()
    };
    assert_eq!(set(rig, host, fid::ASYNC_EVENT_CONFIG, config.bits()).status, Status::SUCCESS);
}

fn changed(rig: &mut Rig, host: &mut Host) -> Vec<u32> {
    let outcome = log(rig, host, lid::CHANGED_NAMESPACES, 0, 4096);
    match ChangedNamespaces::parse(page(&outcome)) {
        ChangedNamespaces::These(list) => list.iter().collect(),
        ChangedNamespaces::TooMany => vec![NSID_ALL],
    }
}

#[test]
fn namespace_changes_are_told_once_until_the_log_is_read() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    enable_events(&mut rig, &mut admin);
    await_event(&mut rig, &mut admin, 801);
    await_event(&mut rig, &mut admin, 802);
    let event = u64::from(AsyncEvent::NAMESPACE_CHANGED.dw0());

    rig.topology.luns[1].as_mut().expect("a LUN").blocks += 8;
    rig.publish();
    assert_eq!(admin.responses(&mut rig), [(801, Status::SUCCESS, event)]);
    rig.topology.subsystems[0].namespaces.remove(0);
    rig.publish();
    // The host gets no event for a namespace that only another host sees.
    rig.topology.luns[2].as_mut().expect("a LUN").blocks += 8;
    rig.publish();
    assert_eq!(admin.responses(&mut rig), []);
    assert_eq!(changed(&mut rig, &mut admin), [1, 3]);
    assert_eq!(changed(&mut rig, &mut admin), []);

    let added = Namespace { nsid: 9, lun: LunId(0), hosts: Allow::Any, ana_group: 1, ana_state: 1 };
    rig.topology.subsystems[0].namespaces.push(added);
    rig.publish();
    assert_eq!(admin.responses(&mut rig), [(802, Status::SUCCESS, event)]);
    rig.topology.subsystems[0].namespaces[2].hosts = Allow::only(vec![]);
    rig.publish();
    assert_eq!(changed(&mut rig, &mut admin), [9]);
    // The event type was masked until the host read the log, and nothing has changed since then. So a new request waits.
    await_event(&mut rig, &mut admin, 803);
    assert_eq!(admin.responses(&mut rig), []);
    rig.finish();
}

/// Checks NVMe base 2.0c §5.16.1.5: a list has at most 1,024 entries; FFFFFFFFh means that there are more.
#[test]
fn the_changed_namespace_list_goes_to_1024_entries() {
    let mut rig = Rig::new(1);
    let namespace =
        |nsid| Namespace { nsid, lun: LunId(0), hosts: Allow::Any, ana_group: nsid, ana_state: 1 };
    let subsystem = &mut rig.topology.subsystems[0];
    (subsystem.namespaces, subsystem.max_namespaces) = ((1..=4096).map(namespace).collect(), 4096);
    rig.publish();
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    for (removed, expected) in [(1, vec![4096]), (1024, (3072..=4095).collect()), (1025, vec![NSID_ALL])] {
        let namespaces = &mut rig.topology.subsystems[0].namespaces;
        namespaces.truncate(namespaces.len() - removed);
        rig.publish();
        assert_eq!(changed(&mut rig, &mut admin), expected, "{removed}");
        assert_eq!(changed(&mut rig, &mut admin), []);
    }
    rig.finish();
}

#[test]
fn event_requests_are_limited() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    (0..5).for_each(|i| await_event(&mut rig, &mut admin, 800 + i));
    assert_eq!(admin.responses(&mut rig), [(804, Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr(), 0)]);
    rig.finish();
}

/// Does the same as SPDK's hosts when they detach: forgets the requests, and reuses their identifiers for the shutdown.
#[test]
fn a_command_takes_the_place_of_the_event_request_that_has_its_identifier() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    enable_events(&mut rig, &mut admin);
    (0..4).for_each(|i| await_event(&mut rig, &mut admin, 800 + i));
    admin.cid = 799;
    let cc = admin.property(&mut rig, PropertySize::Four, offset::CC);
    assert_eq!((cc.status, cc.result & 1), (Status::SUCCESS, 1));
    // An event request also replaces an earlier event request with the same identifier. There are never more than four.
    await_event(&mut rig, &mut admin, 801);
    assert_eq!(admin.responses(&mut rig), []);
    await_event(&mut rig, &mut admin, 804);
    assert_eq!(admin.responses(&mut rig), []);
    await_event(&mut rig, &mut admin, 805);
    assert_eq!(admin.responses(&mut rig), [(805, Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr(), 0)]);
    // Request 802 is the oldest remaining request; 800 is never answered.
    rig.topology.luns[1].as_mut().expect("a LUN").blocks += 8;
    rig.publish();
    let event = u64::from(AsyncEvent::NAMESPACE_CHANGED.dw0());
    assert_eq!(admin.responses(&mut rig), [(802, Status::SUCCESS, event)]);
    admin.cid = 802;
    let shutdown = Cc { en: true, shn: 1, iosqes: 6, iocqes: 4, ..Cc::default() };
    assert_eq!(admin.set_cc(&mut rig, shutdown).status, Status::SUCCESS);
    assert_eq!(admin.property(&mut rig, PropertySize::Four, offset::CSTS).result >> 2 & 3, 2, "shut down");
    assert_eq!(admin.responses(&mut rig), []);
    rig.finish();
}

#[test]
fn an_event_outlives_the_request_that_was_to_tell_it() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    enable_events(&mut rig, &mut admin);
    await_event(&mut rig, &mut admin, 801);
    let get = PropertyGet { size: PropertySize::Four, offset: offset::VS };
    let get = |cid| FabricsCommand::PropertyGet(get).sqe(cid, Sgl::NONE);
    // The host doesn't read an earlier response, so the event's response waits to be sent.
    rig.sock(admin.at).deaf = true;
    admin.submit(&mut rig, get(700), &[]);
    rig.pump();
    rig.topology.luns[1].as_mut().expect("a LUN").blocks += 8;
    rig.publish();
    admin.submit(&mut rig, get(801), &[]);
    rig.pump();
    rig.sock(admin.at).deaf = false;
    rig.pump();
    let version = |cid| (cid, Status::SUCCESS, 0x1_0400);
    assert_eq!(admin.responses(&mut rig), [version(700), version(801)]);
    await_event(&mut rig, &mut admin, 802);
    let event = u64::from(AsyncEvent::NAMESPACE_CHANGED.dw0());
    assert_eq!(admin.responses(&mut rig), [(802, Status::SUCCESS, event)]);
    rig.finish();
}

#[test]
fn an_admin_command_id_in_use_is_a_conflict() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    let behavior = AdminCommand::SetFeatures(SetFeatures { fid: fid::HOST_BEHAVIOR, ..Default::default() });
    admin.submit(&mut rig, behavior.sqe(801, 0, Sgl::Transport { len_bytes: 512 }), &[]);
    rig.pump();
    let Seen::R2t(r2t) = admin.seen(&mut rig)[0].clone() else { panic!("it is asked for its data") };
    // An event request is forgotten if another command has the same identifier. No other command is forgotten for an event
    // request.
    await_event(&mut rig, &mut admin, 801);
    assert_eq!(admin.responses(&mut rig), [(801, Status::COMMAND_ID_CONFLICT.dnr(), 0)]);
    admin.answer(&mut rig, r2t, &[0; 512]);
    assert_eq!(admin.responses(&mut rig), [(801, Status::SUCCESS, 0)]);
    rig.finish();
}

#[test]
fn ana_changes_are_told_and_counted() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    enable_events(&mut rig, &mut admin);
    await_event(&mut rig, &mut admin, 801);
    rig.topology.subsystems[0].namespaces[1].ana_group = 7;
    rig.publish();
    let told = admin.responses(&mut rig);
    assert_eq!(told.len(), 1, "the group is an attribute");
    await_event(&mut rig, &mut admin, 802);
    rig.topology.subsystems[0].namespaces[1].ana_state = 3;
    rig.publish();
    assert_eq!(admin.responses(&mut rig), [(802, Status::SUCCESS, u64::from(AsyncEvent::ANA_CHANGE.dw0()))]);
    let outcome = log(&mut rig, &mut admin, lid::ANA, 0, 88);
    let ana = AnaLog::parse(&outcome.data).expect("a log");
    let groups: Vec<_> = ana
        .iter()
        .map(|g| g.map(|g| (g.group_id, g.state.bits(), g.nsids().collect::<Vec<_>>())).expect("whole"))
        .collect();
    assert_eq!((ana.change_count, groups), (1, vec![(1, 1, vec![1]), (7, 3, vec![3])]));
    let rgo = GetLogPage { lid: lid::ANA, lsp: 1, len_bytes: 80, ..GetLogPage::default() };
    let outcome = admin.read_admin(&mut rig, AdminCommand::GetLogPage(rgo), 0, 80);
    let ana = AnaLog::parse(&outcome.data).expect("a log");
    assert!(ana.iter().all(|g| g.is_ok_and(|g| g.nsids().count() == 0)) && ana.groups == 2);
    rig.finish();
}

/// Checks the gateway's layout: each namespace has its own group. The log lists no group whose namespace the host doesn't see.
#[test]
fn a_group_for_each_of_many_namespaces() {
    let mut rig = Rig::new(1);
    let hosts = |nsid| if nsid % 2 == 0 { vec![OTHER_HOST.into()] } else { vec![HOST.into()] };
    let namespace = |nsid: u32| Namespace {
        nsid,
        lun: LunId(0),
        hosts: Allow::only(hosts(nsid)),
        ana_group: nsid,
        ana_state: 1 + (nsid % 3) as u8,
    };
    let subsystem = &mut rig.topology.subsystems[0];
    (subsystem.namespaces, subsystem.max_namespaces) = ((1..=4096).map(namespace).collect(), 4096);
    rig.publish();
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    let whole = log(&mut rig, &mut admin, lid::ANA, 0, 16 + 2048 * 36).data;
    let ana = AnaLog::parse(&whole).expect("a log");
    assert_eq!(ana.groups, 2048);
    for (group, nsid) in ana.iter().zip((1..).step_by(2)) {
        let group = group.expect("whole");
        assert_eq!((group.group_id, group.state.bits()), (nsid, 1 + (nsid % 3) as u8));
        assert_eq!(group.nsids().collect::<Vec<_>>(), [nsid]);
    }
    for (at, piece) in (0..).step_by(4096).zip(whole.chunks(4096)) {
        assert_eq!(log(&mut rig, &mut admin, lid::ANA, at, piece.len() as u32).data, piece, "at {at}");
    }
    rig.finish();
}

fn discovered(rig: &mut Rig, host: &mut Host) -> (u64, Vec<(String, String, String)>) {
    let outcome = log(rig, host, lid::DISCOVERY, 0, 8192);
    let log = DiscoveryLog::parse(&outcome.data).expect("a log");
    let entries = log.entries().map(|e| {
        let e = e.expect("an entry");
        (e.subnqn.to_string(), e.traddr.text().to_string(), e.trsvcid.text().to_string())
    });
    (log.header.genctr, entries.collect())
}

#[test]
fn discovery_shows_each_host_its_own() {
    let mut rig = Rig::new(2);
    let mut host = Host::admin(&mut rig, 1, DISCOVERY);
    let mut unlisted = Host::admin(&mut rig, 0, Wish { hostnqn: "nqn.2024-01.test:unlisted", ..DISCOVERY });
    let entry = |ip: &str, port: &str| (SUBNQN.to_string(), ip.to_string(), port.to_string());
    let (first, entries) = discovered(&mut rig, &mut host);
    // The log lists the wildcard portal with the address that the host used.
    assert_eq!(entries, [entry("192.0.2.1", "4420"), entry("192.0.2.9", "4421")]);
    assert_eq!(discovered(&mut rig, &mut unlisted).1, []);
    assert!(host.identify(&mut rig, cns::NAMESPACE, 1).status.is(Status::INVALID_FIELD));
    let ctrlr = IdentifyController::parse(page(&host.identify(&mut rig, cns::CONTROLLER, 0)));
    assert_eq!((ctrlr.cntrltype, ctrlr.oaes.discovery_change, ctrlr.sn.text()), (2, true, "DISCOVERY"));

    enable_events(&mut rig, &mut host);
    await_event(&mut rig, &mut host, 801);
    rig.topology.luns[0].as_mut().expect("a LUN").blocks += 8;
    rig.publish();
    assert_eq!(host.responses(&mut rig), [], "a LUN is no matter of discovery");
    rig.topology.subsystems[0].hosts = Allow::only(vec![OTHER_HOST.into()]);
    rig.publish();
    let event = u64::from(AsyncEvent::DISCOVERY_CHANGED.dw0());
    assert_eq!(host.responses(&mut rig), [(801, Status::SUCCESS, event)]);
    let (second, entries) = discovered(&mut rig, &mut host);
    assert!(second > first && entries.is_empty());
    rig.finish();
}

#[test]
fn a_subsystem_is_shown_on_its_portals_alone() {
    let mut rig = Rig::new(1);
    rig.topology.subsystems[0].portals = vec![PortalId(1)];
    rig.publish();
    let mut host = Host::admin(&mut rig, 0, DISCOVERY);
    assert_eq!(discovered(&mut rig, &mut host).1, []);
    let (_, refused) = Host::connect(&mut rig, 0, ADMIN);
    assert!(refused.status.is(Status::CONNECT_INVALID_PARAMETERS));
    rig.finish();
}

#[test]
fn a_discovery_portal_shows_all_that_the_host_may_have() {
    let mut rig = Rig::new(1);
    rig.topology.subsystems[0].portals = vec![PortalId(1)];
    rig.topology.discovery = vec![PortalId(0)];
    rig.publish();
    let entry = |nqn: &str, port: &str| (nqn.to_string(), "192.0.2.1".to_string(), port.to_string());
    let itself = entry(DISCOVERY.subnqn, "4420");
    let mut host = Host::admin(&mut rig, 0, DISCOVERY);
    let elsewhere = (SUBNQN.to_string(), "192.0.2.9".to_string(), "4421".to_string());
    assert_eq!(discovered(&mut rig, &mut host).1, [itself.clone(), elsewhere]);
    let mut unlisted = Host::admin(&mut rig, 0, Wish { hostnqn: "nqn.2024-01.test:unlisted", ..DISCOVERY });
    assert_eq!(discovered(&mut rig, &mut unlisted).1, [itself]);
    let (_, refused) = Host::connect(&mut rig, 0, ADMIN);
    assert!(refused.status.is(Status::CONNECT_INVALID_PARAMETERS));
    enable_events(&mut rig, &mut host);
    await_event(&mut rig, &mut host, 801);
    rig.topology.discovery.clear();
    rig.publish();
    let event = u64::from(AsyncEvent::DISCOVERY_CHANGED.dw0());
    assert_eq!(host.responses(&mut rig), [(801, Status::SUCCESS, event)]);
    assert_eq!(discovered(&mut rig, &mut host).1, []);
    rig.finish();
}

#[test]
fn a_persistent_discovery_connection_lives_with_kato() {
    let mut rig = Rig::new(1);
    let mut host = Host::admin(&mut rig, 0, Wish { kato_ms: 30_000, ..DISCOVERY });
    for _ in 0..20 {
        rig.pass(Duration::from_secs(25));
        assert_eq!(host.plain(&mut rig, AdminCommand::KeepAlive).status, Status::SUCCESS);
    }
    rig.pass(Duration::from_secs(31));
    assert!(!rig.sock(host.at).open);
    rig.finish();
}

#[test]
fn who_came_by_a_portal_that_is_gone_has_no_part_in_the_next_one_of_its_number() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let discovery = Host::admin(&mut rig, 0, DISCOVERY);
    // This host has not sent its Connect.
    let silent = Host::dial(&mut rig, 0, (false, false), 4);
    for is_there in [true, false] {
        if !is_there {
            rig.topology.portals[0] = None;
        }
        rig.publish();
        for host in [&admin, &discovery, &silent] {
            assert_eq!(rig.sock(host.at).open, is_there);
        }
    }
    rig.finish();
}

#[test]
fn what_a_host_may_not_see_it_may_not_touch() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, Wish { hostnqn: OTHER_HOST, ..ADMIN });
    let mut io = Host::io(&mut rig, 0, &admin, Wish { hostnqn: OTHER_HOST, ..ADMIN });
    let read = IoCommand::Read(BlockRange::new(0, 1));
    assert!(io.io_command(&mut rig, 3, read, &[], 512).status.is(Status::INVALID_NAMESPACE));
    assert_eq!(io.io_command(&mut rig, 4, read, &[], 512).status, Status::SUCCESS);
    rig.topology.subsystems[0].namespaces[2].hosts = Allow::only(vec![HOST.into()]);
    rig.publish();
    assert!(io.io_command(&mut rig, 4, read, &[], 512).status.is(Status::INVALID_NAMESPACE));
    rig.finish();
}
