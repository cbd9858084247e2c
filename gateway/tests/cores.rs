//! Tests of controllers and backends that span cores. The gateways may have more cores than the machine has CPUs.

mod support;

use support::fleet::{ENDLESS, Fleet, Spec};
use support::raw::{Pair, Pdu, Raw, Who};
use support::*;
use trefoil_poll::CoreId;
use trefoil_storage::topology::{Allow, BackendId};
use trefoil_wire::nvme::property::Cc;
use trefoil_wire::nvme::{Abort, AdminCommand, BlockRange, IoCommand, Sgl, Status};
use trefoil_wire::tcp::H2cData;

const MIXED: &[u32] = &[4096, 512, 65536, 131_072];

/// Opens an admin queue on core 0 and an I/O queue on each core. The memory is on the last core.
fn spread(gateway: &Gateway, who: &Who, cores: u16) -> (Raw, u16, Vec<Raw>) {
    gateway.place_next(0);
    let (mut admin, cntlid) = Raw::admin(gateway.addr(), who);
    admin.ask_queues(cores);
    let queues = (0..cores)
        .map(|core| {
            gateway.place_next(core);
            Raw::queue(gateway.addr(), &who.clone().queue(cntlid, core + 1, 31), (false, false))
        })
        .collect();
    (admin, cntlid, queues)
}

#[test]
fn queues_of_one_controller_are_on_all_cores() {
    let mut gateway = Gateway::with_memory_lun(Shape::new(4), 16);
    let who = Who::admin(&host_nqn(1), SUBSYSTEM);
    let (_admin, cntlid, mut queues) = spread(&gateway, &who, 4);
    let rows = gateway.survey();
    for qid in 0..=4u16 {
        let row = rows.iter().find(|(_, row)| row.qid == qid && row.cntlid == cntlid);
        let (core, _) = row.unwrap_or_else(|| panic!("queue {qid} is not in {rows:?}"));
        assert_eq!(core.0, qid.saturating_sub(1), "the core of queue {qid}");
    }
    // One queue writes, and every queue reads the data.
    for writer in 0..4 {
        let data: Vec<u8> = (0..65536).map(|at: usize| (at / 7) as u8 ^ writer as u8).collect();
        assert!(queues[writer].write(1, 100, &data).is_ok());
        for (reader, queue) in queues.iter_mut().enumerate() {
            let (status, got) = queue.read(1, 100, data.len());
            assert!(status.is_ok() && got == data, "core {reader} reads what core {writer} wrote: {status}");
        }
    }
    gateway.finish();
}

#[test]
fn many_hosts_with_queues_everywhere() {
    let gateway = Gateway::with_memory_lun(Shape::new(4), 64);
    let specs: Vec<_> = (0..8)
        .map(|host| {
            let mut spec = Spec::new(gateway.addr(), host, 8, MIXED);
            (spec.io_queues, spec.digests) = (4, host % 2 == 1);
            spec
        })
        .collect();
    let mut fleet = Fleet::start(&specs, 64);
    fleet.wait_ups(0..8, 1);
    fleet.check(8);
    fleet.finish();
    gateway.finish();
}

#[test]
fn a_reset_closes_the_queues_of_all_cores() {
    let gateway = Gateway::with_memory_lun(Shape::new(4), 16);
    let who = Who::admin(&host_nqn(1), SUBSYSTEM);
    let (mut admin, cntlid, mut queues) = spread(&gateway, &who, 4);
    for round in 0..3u8 {
        for queue in &mut queues {
            // The reset meets commands in every state. This command still waits for its data.
            queue.capsule(
                IoCommand::Write(BlockRange::new(0, 32)).sqe(500, 1, Sgl::Transport { len_bytes: 16384 }),
                &[],
            );
            assert!(matches!(queue.pdu(), Pdu::R2t(_)));
        }
        admin.enable(false);
        for (core, queue) in queues.iter_mut().enumerate() {
            queue.wait_closed(&format!("reset {round}, the queue on core {core}"));
        }
        admin.enable(true);
        // The I/O queues connect to the same controller again.
        queues = (0..4)
            .map(|core| {
                gateway.place_next(core + u16::from(round));
                let who = who.clone().queue(cntlid, core + 1, 31);
                // The old queue keeps its place until the owner core learns that the queue has left.
                let patience = Patience::new(format!("queue {} to be free after a reset", core + 1));
                loop {
                    let mut raw = Raw::initialized(gateway.addr(), false, false);
                    match raw.try_connect(&who) {
                        trefoil_wire::fabrics::ConnectResponse::Connected { .. } => break raw,
                        other => assert_eq!(
                            other,
                            trefoil_wire::fabrics::ConnectResponse::Failed(Status::INVALID_QUEUE_ID.dnr())
                        ),
                    }
                    patience.pause();
                }
            })
            .collect();
        for queue in &mut queues {
            assert!(queue.write(1, 0, &[round; 4096]).is_ok());
        }
    }
    gateway.finish();
}

#[test]
fn shutdown_is_complete_once_all_queues_are_gone() {
    let gateway = Gateway::with_memory_lun(Shape::new(4), 16);
    let who = Who::admin(&host_nqn(1), SUBSYSTEM);
    let (mut admin, _, mut queues) = spread(&gateway, &who, 4);
    let cc = Cc { en: true, iosqes: 6, iocqes: 4, shn: 1, ..Cc::default() };
    assert!(admin.set_cc(cc).is_ok());
    for queue in &mut queues {
        queue.wait_closed("its controller was shut down");
    }
    let patience = Patience::new("CSTS.SHST = shutdown complete");
    while admin.csts().shst != 2 {
        patience.pause();
    }
    gateway.finish();
}

#[test]
fn a_silent_host_loses_its_queues_on_all_cores() {
    let gateway = Gateway::with_memory_lun(Shape::new(4), 16);
    let silent = Who::admin(&host_nqn(1), SUBSYSTEM).kato_ms(3000);
    let (mut admin, _, mut queues) = spread(&gateway, &silent, 4);
    let mut other = Pair::connect(gateway.addr(), &host_nqn(2), SUBSYSTEM);
    admin.wait_closed("no Keep Alive came");
    for queue in &mut queues {
        queue.wait_closed("no Keep Alive came");
    }
    other.check(1, 1);
    gateway.finish();
}

#[test]
fn the_admin_queues_end_is_the_controllers() {
    let gateway = Gateway::with_memory_lun(Shape::new(4), 16);
    let who = Who::admin(&host_nqn(1), SUBSYSTEM);
    let (admin, cntlid, mut queues) = spread(&gateway, &who, 4);
    drop(admin);
    for queue in &mut queues {
        queue.wait_closed("the admin queue is gone");
    }
    // No queue can connect to a removed controller.
    let late = Raw::initialized(gateway.addr(), false, false).try_connect(&who.queue(cntlid, 1, 31));
    assert!(!matches!(late, trefoil_wire::fabrics::ConnectResponse::Connected { .. }), "{late:?}");
    gateway.finish();
}

#[test]
fn abort_reaches_a_command_on_another_core() {
    let gateway = Gateway::with_memory_lun(Shape::new(4), 16);
    let who = Who::admin(&host_nqn(1), SUBSYSTEM);
    let (mut admin, _, mut queues) = spread(&gateway, &who, 4);
    let abort = |admin: &mut Raw, sqid, cid| {
        let sqe = AdminCommand::Abort(Abort { sqid, cid }).sqe(admin.cid(), 0, Sgl::NONE);
        let (cqe, _) = admin.command(sqe, &[]);
        assert!(cqe.status.is_ok(), "{cqe:?}");
        // Bit 0 means that the command was not aborted.
        cqe.dw0() & 1 == 0
    };
    for (at, queue) in queues.iter_mut().enumerate() {
        queue.capsule(
            IoCommand::Write(BlockRange::new(0, 32)).sqe(700, 1, Sgl::Transport { len_bytes: 16384 }),
            &[],
        );
        let Pdu::R2t(r2t) = queue.pdu() else { panic!("a write by R2T") };
        assert!(!abort(&mut admin, at as u16 + 1, 701), "there is no command 701");
        assert!(abort(&mut admin, at as u16 + 1, 700), "queue {} waits for data", at + 1);
        // The controller has requested the data, so the host still sends it. After the data, the command ends as aborted, and
        // no data is written.
        let pdu = H2cData { cid: 700, ttag: r2t.ttag, offset_bytes: 0, len_bytes: 16384, last: true };
        queue.h2c(pdu, &[0xee; 16384]);
        let (cqe, _) = queue.finish(700, &[]);
        assert!(cqe.status.is(Status::ABORT_REQUESTED), "{}", cqe.status);
        let (status, got) = queue.read(1, 0, 16384);
        assert!(status.is_ok() && got.iter().all(|&byte| byte == 0), "an aborted write was written");
    }
    gateway.finish();
}

#[test]
fn a_backend_goes_away_under_load() {
    let mut gateway = Gateway::start(Shape::new(4));
    gateway.attach_memory(BackendId(0), CoreId(3), 32 << 20);
    gateway.attach_memory(BackendId(1), CoreId(1), 32 << 20);
    let luns = vec![gateway.lun("stays", 0, 0, 32 << 20), gateway.lun("goes", 1, 0, 32 << 20)];
    gateway.present(Allow::Any, luns);
    let specs: Vec<_> = (0..4)
        .map(|host| {
            let mut spec = Spec::new(gateway.addr(), host, 8, MIXED);
            (spec.io_queues, spec.nsid) = (4, 1 + host as u32 % 2);
            spec
        })
        .collect();
    let mut fleet = Fleet::start(&specs, 64);
    fleet.wait_ups(0..4, 1);
    for round in 1..=3 {
        fleet.run(0..4, ENDLESS);
        for host in 0..4 {
            let ops = fleet.tally(host).ops;
            fleet.wait_ops(host, ops + 50);
        }
        let (lun, namespace) = (gateway.luns[1].take(), gateway.subsystems[0].namespaces.pop());
        gateway.publish();
        gateway.detach(BackendId(1));
        // The hosts of the other namespace continue without errors.
        for host in [0, 2] {
            let before = fleet.tally(host).ops;
            fleet.wait_ops(host, before + 50);
        }
        gateway.attach_memory(BackendId(1), CoreId(round), 32 << 20);
        gateway.luns[1] = lun;
        gateway.subsystems[0].namespaces.extend(namespace);
        gateway.publish();
        // The hosts of the lost namespace got an error, or held their commands back until the namespace returned.
        fleet.run(0..4, 0);
        for (host, tally) in fleet.wait_done(0..4).iter().enumerate() {
            // The new backend holds zeros, and none of the old backend's data.
            let of_the_lost = host % 2 == 1;
            assert!(tally.mismatches == 0 || of_the_lost, "host {host} in round {round}: {tally:?}");
            assert!(tally.errors == 0 || of_the_lost, "host {host} in round {round}: {tally:?}");
            if let Some(status) = tally.last_error {
                assert!(status.is(Status::INVALID_NAMESPACE), "host {host} in round {round}: {tally:?}");
            }
        }
    }
    fleet.check(2);
    fleet.finish();
    gateway.finish();
}
