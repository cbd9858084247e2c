//! Tests that no core allocates or frees memory after its start-up, for all kinds of events from hosts, arrays and the control
//! plane.

mod support;

use std::net::Shutdown;
use std::time::Duration;
use support::fleet::{ENDLESS, Fleet, Spec, controller_config};
use support::raw::{Pair, Pdu, Raw, Who, ic_req};
use support::*;
use trefoil_poll::CoreId;
use trefoil_poll::guard::Guard;
use trefoil_poll::rand::Rng;
use trefoil_storage::backend::nvme_tcp::NvmeTcpConfig;
use trefoil_storage::msg::Event;
use trefoil_storage::topology::{Allow, BackendId};
use trefoil_wire::fabrics::{FabricsCommand, Nqn};
use trefoil_wire::nvme::feature::{AsyncEventConfig, fid};
use trefoil_wire::nvme::log::lid;
use trefoil_wire::nvme::{
    Abort, AdminCommand, AsyncEvent, BlockRange, GetFeatures, GetLogPage, IdentifyCommand, IoCommand,
    SetFeatures, Sgl, Status,
};
use trefoil_wire::tcp::{FatalStatus, TermReq, TermReqDirection};

#[global_allocator]
static GUARD: Guard = Guard::new();

/// Writes of these sizes cover all paths: in a capsule, in pieces by R2T, and straight into blocks.
const ALL_SIZES: &[u32] = &[512, 4096, 8192, 16384, 131_072, 1 << 20];

#[test]
fn steady_io() {
    let mut gateway = Gateway::start(Shape::new(4));
    let file = tempfile::tempfile().expect("a file");
    file.set_len(128 << 20).expect("a sparse file");
    gateway.attach_memory(BackendId(0), CoreId(3), 64 << 20);
    gateway.attach_file(BackendId(1), CoreId(2), &file, 128 << 20);
    // The second LUN is on both backends.
    let mut split = gateway.lun("split", 1, 0, 64 << 20);
    let middle = split.extents[0];
    split.extents = vec![
        trefoil_storage::topology::Extent { len: (32 << 20) + 4096, ..middle },
        trefoil_storage::topology::Extent {
            lun_offset: (32 << 20) + 4096,
            len: (32 << 20) - 4096,
            backend: BackendId(0),
            backend_offset: 32 << 20,
        },
    ];
    let luns = vec![gateway.lun("memory", 0, 0, 32 << 20), split];
    gateway.present(Allow::Any, luns);
    let specs: Vec<_> = (0..6)
        .map(|host| {
            let mut spec = Spec::new(gateway.addr(), host, 4, ALL_SIZES);
            (spec.io_queues, spec.digests) = (1 + host as u16 % 4, host % 2 == 1);
            (spec.nsid, spec.base) = (1 + host as u32 % 2, (host as u64 / 2 * 4) << 20);
            if spec.nsid == 2 {
                // The host's range crosses the boundary between the extents.
                spec.base = (26 << 20) + ((host as u64 / 2 * 4) << 20);
            }
            spec
        })
        .collect();
    let mut fleet = Fleet::start(&specs, 64);
    fleet.wait_ups(0..6, 1);
    fleet.check(ALL_SIZES.len() as u64);
    fleet.finish();
    gateway.finish();
    GUARD.assert_clean();
}

/// An idle core keeps itself warm over a connection that is in no table. If this connection ends, the core runs on without it.
#[test]
fn cores_keep_themselves_warm() {
    let mut gateway = Gateway::with_memory_lun(Shape::new(2), 16);
    let ends = gateway.keep_warm(Duration::from_millis(1));
    gateway.wait_busy_turns(200);
    assert!(gateway.survey().is_empty(), "a core's own connection is in a table");
    ends[0].shutdown(Shutdown::Both).expect("an end");
    let mut fleet = Fleet::start(&[Spec::new(gateway.addr(), 1, 4, ALL_SIZES)], 16);
    fleet.wait_ups(0..1, 1);
    fleet.check(ALL_SIZES.len() as u64);
    fleet.finish();
    gateway.finish();
    GUARD.assert_clean();
}

#[test]
fn hosts_come_and_go_and_err() {
    let mut shape = Shape::new(2);
    shape.target.progress_timeout = Duration::from_millis(500);
    shape.target.connect_timeout = Duration::from_secs(2);
    shape.target.terminate_timeout = Duration::from_millis(300);
    let mut gateway = Gateway::with_memory_lun(shape, 16);
    let mut fleet = Fleet::start(&[Spec::new(gateway.addr(), 1, 4, ALL_SIZES)], 16);
    fleet.wait_ups(0..1, 1);
    fleet.run(0..1, ENDLESS);
    let mut rng = Rng::new(7);
    for round in 0..2u8 {
        // A host disconnects in an orderly way.
        let mut pair = Pair::connect(gateway.addr(), &host_nqn(2), SUBSYSTEM);
        pair.check(1, round);
        let disconnect = FabricsCommand::Disconnect { recfmt: 0 }.sqe(pair.io.cid(), Sgl::NONE);
        assert!(pair.io.command(disconnect, &[]).0.status.is_ok());
        pair.io.wait_closed("it said Disconnect");
        // A Connect is refused.
        let mut raw = Raw::initialized(gateway.addr(), false, false);
        raw.try_connect(&Who::admin(&host_nqn(2), "nqn.2026-01.org.example:nobody"));
        // Some commands fail, one command is aborted, and the connection ends in the middle of data.
        let mut pair = Pair::connect(gateway.addr(), &host_nqn(2), SUBSYSTEM);
        assert!(pair.io.read(9, 0, 512).0.is(Status::INVALID_NAMESPACE));
        assert!(pair.io.write(1, u64::MAX, &[0; 512]).is(Status::LBA_OUT_OF_RANGE));
        let write =
            IoCommand::Write(BlockRange::new(0, 128)).sqe(900, 1, Sgl::Transport { len_bytes: 65536 });
        pair.io.capsule(write, &[]);
        assert!(matches!(pair.io.pdu(), Pdu::R2t(_)));
        let abort = AdminCommand::Abort(Abort { sqid: 1, cid: 900 }).sqe(pair.admin.cid(), 0, Sgl::NONE);
        assert!(pair.admin.command(abort, &[]).0.status.is_ok());
        drop(pair);
        // A host sends garbage, either from the first byte on or instead of a capsule. The host never closes its side.
        for initialized in [false, true] {
            let mut raw = match initialized {
                true => Raw::initialized(gateway.addr(), false, false),
                false => Raw::open(gateway.addr()),
            };
            let garbage: Vec<u8> = (0..512).flat_map(|_| rng.bits().to_le_bytes()).collect();
            raw.send(&garbage);
            raw.wait_closed("it sent garbage");
        }
        // A host sends a terminate request.
        let mut raw = Raw::initialized(gateway.addr(), false, false);
        let mut bytes = [0; TermReq::MAX_LEN];
        let request = TermReq { status: FatalStatus::SequenceError, offender: &[1; 24] };
        let len = request.emit(TermReqDirection::HostToController, &mut bytes);
        raw.send(&bytes[..len]);
        raw.wait_closed("it sent a terminate request");
        // One host stops in the middle of its ICReq, and one host becomes silent.
        let mut lazy = Raw::open(gateway.addr());
        lazy.send(&ic_req(false, false)[..100]);
        lazy.wait_closed("it never finished ICReq");
        let silent = Who::admin(&host_nqn(3), SUBSYSTEM).kato_ms(2000);
        let (mut admin, cntlid) = Raw::admin(gateway.addr(), &silent);
        let mut io = Raw::queue(gateway.addr(), &silent.queue(cntlid, 1, 31), (true, true));
        admin.wait_closed("no Keep Alive came");
        io.wait_closed("no Keep Alive came");
        // A host never reads.
        let mut deaf = Pair::connect(gateway.addr(), &host_nqn(4), SUBSYSTEM);
        for cid in 0..30 {
            let sqe =
                IoCommand::Read(BlockRange::new(0, 2048)).sqe(cid, 1, Sgl::Transport { len_bytes: 1 << 20 });
            deaf.io.capsule(sqe, &[]);
        }
        gateway.wait_event("the deaf queue to be cut off", |event| {
            matches!(event, Event::QpairDown { why: "the host does not read", .. })
        });
        // A host resets its controller.
        let mut pair = Pair::connect(gateway.addr(), &host_nqn(5), SUBSYSTEM);
        pair.admin.enable(false);
        pair.io.wait_closed("its controller was disabled");
    }
    fleet.run(0..1, 0);
    let tally = fleet.wait_done(0..1)[0];
    assert_eq!((tally.errors, tally.mismatches), (0, 0), "{tally:?}");
    fleet.finish();
    gateway.finish();
    GUARD.assert_clean();
}

#[test]
fn hosts_are_cut_off_and_come_back() {
    let mut gateway = Gateway::with_memory_lun(Shape::new(2), 32);
    let specs: Vec<_> = (0..4)
        .map(|host| {
            let mut spec = Spec::new(gateway.addr(), host, 4, &[4096, 65536]);
            spec.io_queues = 2;
            spec
        })
        .collect();
    let mut fleet = Fleet::start(&specs, 32);
    for round in 1..=4 {
        fleet.wait_ups(0..4, round);
        fleet.run(0..4, ENDLESS);
        for host in 0..4 {
            let ops = fleet.tally(host).ops;
            fleet.wait_ops(host, ops + 50);
        }
        gateway.close_all_hosts();
    }
    fleet.wait_ups(0..4, 5);
    fleet.run(0..4, 0);
    for (host, tally) in fleet.wait_done(0..4).iter().enumerate() {
        assert_eq!((tally.errors, tally.mismatches), (0, 0), "host {host}: {tally:?}");
    }
    fleet.finish();
    gateway.finish();
    GUARD.assert_clean();
}

#[test]
fn what_is_presented_changes_live() {
    let mut gateway = Gateway::start(Shape::new(2));
    gateway.attach_memory(BackendId(0), CoreId(1), 64 << 20);
    let first = gateway.lun("first", 0, 0, 24 << 20);
    gateway.present(Allow::Any, vec![first]);
    let mut fleet = Fleet::start(&[Spec::new(gateway.addr(), 1, 8, ALL_SIZES)], 32);
    fleet.wait_ups(0..1, 1);
    fleet.run(0..1, ENDLESS);
    let mut pair = Pair::connect(gateway.addr(), &host_nqn(2), SUBSYSTEM);
    let (mut discovery, _) = Raw::admin(gateway.addr(), &Who::admin(&host_nqn(2), Nqn::DISCOVERY.as_str()));
    let events =
        AsyncEventConfig { namespace_attribute: true, ana_change: true, ..AsyncEventConfig::default() };
    set_events(&mut pair.admin, events);
    set_events(&mut discovery, AsyncEventConfig { discovery_change: true, ..AsyncEventConfig::default() });
    for round in 0..4u32 {
        // A namespace is added.
        let namespace = Gateway::namespace(2, 1, Allow::Any);
        gateway.luns.push(Some(gateway.lun("second", 0, 24 << 20, 8 << 20)));
        gateway.subsystems[0].namespaces.push(namespace.clone());
        expect_event(&mut pair.admin, &mut gateway, AsyncEvent::NAMESPACE_CHANGED, lid::CHANGED_NAMESPACES);
        pair.check(2, round as u8);
        // The namespace grows.
        gateway.luns[1] = Some(gateway.lun("second", 0, 24 << 20, 16 << 20));
        expect_event(&mut pair.admin, &mut gateway, AsyncEvent::NAMESPACE_CHANGED, lid::CHANGED_NAMESPACES);
        assert!(pair.io.write(2, (12 << 20) / 512, &[1; 4096]).is_ok());
        // The ANA state of the namespace gets worse.
        gateway.subsystems[0].namespaces[1].ana_state = 3;
        expect_event(&mut pair.admin, &mut gateway, AsyncEvent::ANA_CHANGE, lid::ANA);
        assert!(pair.io.read(2, 0, 512).0.is(Status::ANA_INACCESSIBLE));
        // The namespace is removed.
        gateway.subsystems[0].namespaces.pop();
        gateway.luns.pop();
        expect_event(&mut pair.admin, &mut gateway, AsyncEvent::NAMESPACE_CHANGED, lid::CHANGED_NAMESPACES);
        assert!(pair.io.read(2, 0, 512).0.is(Status::INVALID_NAMESPACE));
        // Another subsystem is added.
        let name = format!("nqn.2026-01.org.example:s{round}");
        let another = gateway.subsystem(&name, Allow::Any, Vec::new());
        gateway.subsystems.push(another);
        expect_event(&mut discovery, &mut gateway, AsyncEvent::DISCOVERY_CHANGED, lid::DISCOVERY);
        // A backend is attached and detached.
        gateway.attach_memory(BackendId(1), CoreId(0), 4 << 20);
        gateway.detach(BackendId(1));
        // The host sends every query that it may send.
        for cns in 0..=0x1c {
            let identify = AdminCommand::Identify(IdentifyCommand { cns, ..IdentifyCommand::default() });
            let sqe = identify.sqe(pair.admin.cid(), 1, Sgl::Transport { len_bytes: 4096 });
            pair.admin.command(sqe, &[]);
        }
        for lid in 0..=0x80 {
            let log = AdminCommand::GetLogPage(GetLogPage { lid, len_bytes: 512, ..GetLogPage::default() });
            let sqe = log.sqe(pair.admin.cid(), 0, Sgl::Transport { len_bytes: 512 });
            pair.admin.command(sqe, &[]);
        }
        for fid in 0..=0x85 {
            let get = AdminCommand::GetFeatures(GetFeatures { fid, ..GetFeatures::default() });
            let sqe = get.sqe(pair.admin.cid(), 0, Sgl::Transport { len_bytes: 4096 });
            pair.admin.command(sqe, &[]);
        }
        gateway.survey();
    }
    fleet.run(0..1, 0);
    let tally = fleet.wait_done(0..1)[0];
    assert_eq!((tally.errors, tally.mismatches), (0, 0), "{tally:?}");
    fleet.finish();
    gateway.finish();
    GUARD.assert_clean();
}

fn set_events(admin: &mut Raw, events: AsyncEventConfig) {
    let set = SetFeatures { fid: fid::ASYNC_EVENT_CONFIG, cdw11: events.bits(), ..SetFeatures::default() };
    let sqe = AdminCommand::SetFeatures(set).sqe(admin.cid(), 0, Sgl::NONE);
    assert!(admin.command(sqe, &[]).0.status.is_ok(), "the events that we want");
}

/// Publishes the changes. Expects the event, and reads the event's log page so that the controller can send the next event.
fn expect_event(admin: &mut Raw, gateway: &mut Gateway, event: AsyncEvent, log: u8) {
    let cid = admin.cid();
    admin.capsule(AdminCommand::AsyncEventRequest.sqe(cid, 0, Sgl::NONE), &[]);
    gateway.publish();
    let (cqe, _) = admin.finish(cid, &[]);
    assert_eq!((cqe.status, cqe.dw0()), (Status::SUCCESS, event.dw0()), "{event:?}");
    let get = GetLogPage { lid: log, len_bytes: 1024, ..GetLogPage::default() };
    let sqe = AdminCommand::GetLogPage(get).sqe(admin.cid(), 0, Sgl::Transport { len_bytes: 1024 });
    assert!(admin.command(sqe, &[]).0.status.is_ok(), "log {log:#x}");
}

#[test]
fn an_array_is_relayed_and_lost_and_found() {
    let mut array = Gateway::with_memory_lun(Shape::new(2), 32);
    let mut gateway = Gateway::start(Shape::new(2));
    let mut controller = controller_config(array.addr(), &host_nqn(100), SUBSYSTEM, 1, 2, true);
    controller.kato_ms = 1000;
    controller.fence = trefoil_storage::initiator::FenceRule::KeepAliveBound;
    let config = NvmeTcpConfig { controller, command_timeout: Duration::from_secs(10), requests: 8192 };
    gateway.attach_array(BackendId(0), &config, 32 << 20);
    gateway.present(Allow::Any, vec![gateway.lun("relayed", 0, 0, 32 << 20)]);
    let specs: Vec<_> = (0..2)
        .map(|host| {
            let mut spec = Spec::new(gateway.addr(), host, 4, ALL_SIZES);
            spec.io_queues = 2;
            spec
        })
        .collect();
    let mut fleet = Fleet::start(&specs, 32);
    fleet.wait_ups(0..2, 1);
    fleet.check(ALL_SIZES.len() as u64);
    for _ in 0..2 {
        fleet.run(0..2, ENDLESS);
        let ops = fleet.tally(0).ops;
        fleet.wait_ops(0, ops + 50);
        array.close_all_hosts();
        gateway.wait_event("the path to the array to be lost", |event| {
            matches!(event, Event::BackendState { usable: false, .. })
        });
        let ops = fleet.tally(0).ops;
        fleet.wait_ops(0, ops + 50);
    }
    fleet.run(0..2, 0);
    for (host, tally) in fleet.wait_done(0..2).iter().enumerate() {
        assert_eq!((tally.errors, tally.mismatches), (0, 0), "host {host}: {tally:?}");
    }
    fleet.finish();
    gateway.finish();
    array.finish();
    GUARD.assert_clean();
}
