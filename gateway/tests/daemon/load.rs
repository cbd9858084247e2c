//! Tests of hosts that fill their queues with commands.

use super::{HOST, NQN, listening};
use crate::support::daemon::Daemon;
use crate::support::raw::{Pdu, Raw, Who};
use nix::sys::signal::Signal;
use std::fs::File;
use std::os::unix::fs::FileExt;
use trefoil_wire::nvme::{IoCommand, Sgl};

/// Sends 255 flushes on each of 40 queues. A flush is slow while the disk has much to write. The driver must have room for all
/// these flushes.
#[test]
fn hosts_may_ask_a_disk_for_as_much_as_their_queues_take() {
    let gateway = Daemon::start(&format!("[gateway]\nmax_qpairs = 64\n{}", listening()));
    let host = Who::admin(HOST, NQN);
    let (mut admin, cntlid) = Raw::admin(gateway.addr, &host);
    admin.ask_queues(40);
    let queue = |qid| Raw::queue(gateway.addr, &host.clone().queue(cntlid, qid, 255), (false, false));
    let mut queues: Vec<Raw> = (1..=40).map(queue).collect();
    // No LUN uses this part of the file.
    let file = File::options().write(true).open(gateway.path("file0.img")).expect("the pool's file");
    file.write_all_at(&vec![7; 32 << 20], 32 << 20).expect("written");
    ask_for_all(&mut queues);
    expect_all(&gateway, &mut queues);
}

/// When the gateway wakes from a pause, all commands have arrived, and half of them belong to another core.
#[test]
fn hosts_may_ask_another_core_for_as_much_as_their_queues_take() {
    let document = listening().replace("type = \"file\"\npath = \"DIR/file0.img\"", "type = \"memory\"");
    let gateway = Daemon::start(&format!("[gateway]\ncores = 2\nmax_qpairs = 128\n{document}"));
    let (mut admins, mut queues) = (Vec::new(), Vec::new());
    for host in 0..2 {
        let who = Who::admin(&format!("nqn.2026-01.org.example:h{host}"), NQN);
        let (mut admin, cntlid) = Raw::admin(gateway.addr, &who);
        admin.ask_queues(60);
        admins.push(admin);
        let queue = |qid| Raw::queue(gateway.addr, &who.clone().queue(cntlid, qid, 255), (false, false));
        queues.extend((1..=60).map(queue));
    }
    gateway.signal(Signal::SIGSTOP);
    ask_for_all(&mut queues);
    gateway.signal(Signal::SIGCONT);
    expect_all(&gateway, &mut queues);
}

/// Sends 255 flushes on each queue.
fn ask_for_all(queues: &mut [Raw]) {
    for queue in queues {
        let flush = |cid| queue.capsule_bytes(IoCommand::Flush.sqe(cid, 1, Sgl::NONE), &[]);
        let all: Vec<u8> = (0..255).flat_map(flush).collect();
        queue.send(&all);
    }
}

fn expect_all(gateway: &Daemon, queues: &mut [Raw]) {
    for queue in queues {
        for _ in 0..255 {
            match queue.pdu() {
                Pdu::Response(cqe) => assert!(cqe.status.is_ok(), "{cqe:?}"),
                other => panic!("{other:?}: {}", gateway.log()),
            }
        }
    }
}
