//! Tests of many hosts at once: hosts that violate the protocol, hosts that exceed limits, and the subsystems and namespaces
//! that each host sees.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use support::fleet::{Fleet, Spec};
use support::raw::{Pair, Pdu, Raw, Who, ic_req};
use support::*;
use trefoil_poll::CoreId;
use trefoil_storage::msg::Event;
use trefoil_storage::topology::{Allow, BackendId, PortalId};
use trefoil_wire::fabrics::discovery::{DiscoveryLog, LogEntry};
use trefoil_wire::fabrics::{ConnectResponse, Nqn};
use trefoil_wire::nvme::log::lid;
use trefoil_wire::nvme::{
    AdminCommand, BlockRange, GetLogPage, IdentifyCommand, IoCommand, Sgl, Status, identify::NamespaceList,
};

const SMALL: &[u32] = &[512, 4096, 16384];

#[test]
fn slow_loris_connects_stop_nobody() {
    let mut shape = Shape::new(1);
    shape.target.max_conns = 24;
    shape.target.connect_timeout = Duration::from_secs(2);
    let gateway = Gateway::with_memory_lun(shape, 16);
    let mut fleet = Fleet::start(&[Spec::new(gateway.addr(), 1, 4, SMALL)], 16);
    fleet.wait_ups(0..1, 1);
    // The core has no room for so many connections. Some send nothing, some send one byte, some send the ICReq without its last
    // byte, and some send all but the Connect.
    let request = ic_req(false, false);
    let mut lazy: Vec<_> = (0..40)
        .map(|at: usize| {
            let mut stream = TcpStream::connect(gateway.addr()).expect("connects");
            stream.set_read_timeout(Some(PATIENCE)).expect("an option");
            // The gateway resets a connection for which it has no room, so the write can fail.
            let _ = stream.write_all(&request[..[0, 1, 127, 128][at % 4]]);
            stream
        })
        .collect();
    fleet.check(20);
    // The gateway closes each connection. A connection has received an ICResp at most.
    for (at, stream) in lazy.iter_mut().enumerate() {
        let mut heard = Vec::new();
        if let Err(e) = stream.read_to_end(&mut heard) {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "lazy connection {at}");
        }
        assert!(heard.is_empty() || (at % 4 == 3 && heard.len() == 128), "{at}: {} bytes", heard.len());
    }
    // The core has room again.
    Pair::connect(gateway.addr(), &host_nqn(2), SUBSYSTEM).check(1, 1);
    fleet.check(5);
    fleet.finish();
    gateway.finish();
}

#[test]
fn a_flood_of_silent_connections_keeps_nobody_out() {
    let mut shape = Shape::new(1);
    shape.host_sockets = 24;
    // This time is longer than any wait, so no Connect times out.
    shape.target.connect_timeout = 4 * PATIENCE;
    let mut gateway = Gateway::with_memory_lun(shape, 16);
    let mut fleet = Fleet::start(&[Spec::new(gateway.addr(), 1, 4, SMALL)], 16);
    fleet.wait_ups(0..1, 1);
    let mut first = Pair::connect(gateway.addr(), &host_nqn(2), SUBSYSTEM);
    let mut lazy: Vec<_> = (0..1000)
        .map(|_| {
            let stream = TcpStream::connect(gateway.addr()).expect("connects");
            stream.set_read_timeout(Some(PATIENCE)).expect("an option");
            stream
        })
        .collect();
    // The table is full of silent connections. Each new host gets the place of the oldest silent connection.
    for host in 3..8 {
        Pair::connect(gateway.addr(), &host_nqn(host), SUBSYSTEM).check(1, host as u8);
    }
    // The connected hosts are still connected, and the oldest silent connections are closed.
    first.check(1, 1);
    fleet.check(5);
    assert_eq!(fleet.tally(0).ups, 1, "it never had to come again");
    for stream in &mut lazy[..900] {
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "it heard something");
    }
    // When no silent connection is left, the table has no place for another host, because all other connections have sent their
    // Connect.
    drop(lazy);
    let rows = |gateway: &mut Gateway| gateway.survey().len();
    let mut held = Vec::new();
    let mut host = 10;
    while rows(&mut gateway) < 24 {
        held.push(Raw::admin(gateway.addr(), &Who::admin(&host_nqn(host), SUBSYSTEM)));
        host += 1;
    }
    Raw::open(gateway.addr()).wait_closed("there is no place");
    first.check(1, 2);
    drop(held);
    fleet.finish();
    gateway.finish();
}

/// Opens queues of a host. The host sends 20 writes of 1 MiB on each queue, and never sends the data.
fn granted_and_silent(gateway: &Gateway, queues: u16) -> Vec<Raw> {
    let who = Who::admin(&host_nqn(2), SUBSYSTEM);
    let (admin, cntlid) = Raw::admin(gateway.addr(), &who);
    let mut silent = vec![admin];
    for qid in 1..=queues {
        let mut raw = Raw::queue(gateway.addr(), &who.clone().queue(cntlid, qid, 127), (false, false));
        let write = IoCommand::Write(BlockRange::new(0, 2048));
        let sqes = (0..20).map(|cid| write.sqe(cid, 1, Sgl::Transport { len_bytes: 1 << 20 }));
        let bytes: Vec<u8> = sqes.flat_map(|sqe| raw.capsule_bytes(sqe, &[])).collect();
        raw.send(&bytes);
        silent.push(raw);
    }
    silent
}

#[test]
fn a_host_that_is_granted_writes_and_sends_none_starves_nobody() {
    let mut shape = Shape::new(1);
    // This time is longer than any wait, so the host keeps all memory that it holds.
    shape.target.progress_timeout = 4 * PATIENCE;
    let mut gateway = Gateway::with_memory_lun(shape, 16);
    let mut silent = granted_and_silent(&gateway, 60);
    gateway.wait_survey("all its writes to have been looked at", |rows| {
        rows.iter().all(|(_, row)| row.qid == 0 || row.outstanding == 20)
    });
    assert!(matches!(silent[1].pdu(), Pdu::R2t(_)));
    let mut other = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    let large = vec![0x5A; 1 << 20];
    for seed in 0..20 {
        other.check(1, seed);
        assert_eq!(other.io.write(1, 0, &large), Status::SUCCESS);
        assert!(other.io.read(1, 0, large.len()).1 == large);
    }
    drop(silent);
    gateway.finish();
}

#[test]
fn a_host_that_leaves_data_pending_is_disconnected() {
    let mut shape = Shape::new(1);
    shape.target.progress_timeout = Duration::from_millis(700);
    let mut gateway = Gateway::with_memory_lun(shape, 16);
    let mut other = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    let mut silent = granted_and_silent(&gateway, 8);
    for _ in 0..8 {
        gateway.wait_event("a queue with pending data to be closed", |event| {
            matches!(event, Event::QpairDown { why: "the host does not send its pending data", .. })
        });
    }
    other.check(1, 1);
    silent[0].enable(false);
    drop(silent);
    gateway.finish();
}

#[test]
fn a_host_that_never_reads_is_cut_off_and_slows_nobody() {
    let mut shape = Shape::new(1);
    shape.target.progress_timeout = Duration::from_millis(700);
    let mut gateway = Gateway::with_memory_lun(shape, 16);
    let mut fleet = Fleet::start(&[Spec::new(gateway.addr(), 1, 4, SMALL)], 16);
    fleet.wait_ups(0..1, 1);
    let who = Who::admin(&host_nqn(2), SUBSYSTEM);
    let (_admin, cntlid) = Raw::admin(gateway.addr(), &who);
    let mut deaf: Vec<_> = (1..=4)
        .map(|qid| Raw::queue(gateway.addr(), &who.clone().queue(cntlid, qid, 127), (false, false)))
        .collect();
    // The host sends 4 × 120 MiB of reads and receives none of the data. That is more than all socket buffers and the arena
    // together hold.
    for raw in &mut deaf {
        for cid in 0..120 {
            let sqe =
                IoCommand::Read(BlockRange::new(0, 2048)).sqe(cid, 1, Sgl::Transport { len_bytes: 1 << 20 });
            raw.capsule(sqe, &[]);
        }
    }
    fleet.check(40);
    for _ in &deaf {
        gateway.wait_event("the deaf queue to be cut off", |event| {
            matches!(event, Event::QpairDown { why: "the host does not read", .. })
        });
    }
    fleet.check(5);
    drop(deaf);
    fleet.finish();
    gateway.finish();
}

#[test]
fn a_host_that_does_not_read_keeps_nobody_from_writing() {
    let mut shape = Shape::new(1);
    // This time is longer than the wait for a write.
    shape.target.progress_timeout = 4 * PATIENCE;
    let gateway = Gateway::with_memory_lun(shape, 16);
    let mut other = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    let who = Who::admin(&host_nqn(2), SUBSYSTEM);
    let (_admin, cntlid) = Raw::admin(gateway.addr(), &who);
    let read = IoCommand::Read(BlockRange::new(0, 128));
    let unknown = IoCommand::Unknown { opcode: 0x7E };
    // These are more answers than one send can carry. On the first queue, other answers are ready before the answers of the
    // reads. On the second queue, each header is padded.
    for (qid, alignment, before) in [(1, 4, 120), (2, 128, 0)] {
        let mut deaf = Raw::aligned(gateway.addr(), alignment);
        deaf.connect(&who.clone().queue(cntlid, qid, 255));
        let answered = (0..before).map(|cid| unknown.sqe(cid, 1, Sgl::NONE));
        let reads = (200..320).map(|cid| read.sqe(cid, 1, Sgl::Transport { len_bytes: 65536 }));
        let bytes: Vec<u8> = answered.chain(reads).flat_map(|sqe| deaf.capsule_bytes(sqe, &[])).collect();
        deaf.send(&bytes);
        // After the first PDU, the core has handled the reads, and their data fills the socket.
        assert!(matches!(deaf.pdu(), Pdu::Response(_) | Pdu::Data(..)));
        other.check(1, qid as u8);
    }
    gateway.finish();
}

#[test]
fn all_write_at_once_on_little_memory() {
    let mut shape = Shape::new(2);
    shape.arena_mib = 8;
    shape.target.reserved_bytes = 1 << 20;
    shape.target.max_conns = 512;
    let gateway = Gateway::with_memory_lun(shape, 80);
    const LARGE: &[u32] = &[262_144, 4096, 65536];
    let specs: Vec<_> = (0..64)
        .map(|host| {
            let mut spec = Spec::new(gateway.addr(), host, 4, LARGE);
            (spec.io_queues, spec.digests) = (3, host % 8 == 0);
            spec
        })
        .collect();
    // 64 × 4 commands of 256 KiB need 64 MiB. The arenas of both cores have 16 MiB together.
    let mut fleet = Fleet::start(&specs, 128);
    fleet.wait_ups(0..64, 1);
    fleet.check(3);
    fleet.finish();
    gateway.finish();
}

#[test]
fn hosts_connect_and_see_as_they_are_allowed() {
    let mut gateway = Gateway::start(Shape::new(2));
    gateway.attach_memory(BackendId(0), CoreId(1), 16 << 20);
    let mib = 1 << 20;
    gateway.luns = (0..3)
        .map(|at: u32| Some(gateway.lun(&format!("l{at}"), 0, u64::from(at) * 4 * mib, 4 * mib)))
        .collect();
    let only = |hosts: &[usize]| Allow::only(hosts.iter().map(|&host| host_nqn(host)));
    let namespaces = vec![
        Gateway::namespace(1, 0, Allow::Any),
        Gateway::namespace(2, 1, only(&[1])),
        Gateway::namespace(5, 2, only(&[2])),
    ];
    gateway.subsystems = vec![gateway.subsystem(SUBSYSTEM, only(&[1, 2]), namespaces)];
    gateway.publish();
    let refused =
        Raw::initialized(gateway.addr(), false, false).try_connect(&Who::admin(&host_nqn(3), SUBSYSTEM));
    assert_eq!(refused, ConnectResponse::Failed(Status::CONNECT_INVALID_HOST.dnr()));
    for (host, visible, hidden) in [(1, [1, 2], 5), (2, [1, 5], 2)] {
        let mut pair = Pair::connect(gateway.addr(), &host_nqn(host), SUBSYSTEM);
        assert_eq!(active_namespaces(&mut pair.admin), visible, "host {host}");
        for nsid in visible {
            pair.check(nsid, nsid as u8);
        }
        let data = [1; 512];
        assert_eq!(pair.io.write(hidden, 0, &data), Status::INVALID_NAMESPACE.dnr(), "host {host}");
        assert_eq!(pair.io.read(hidden, 0, 512).0, Status::INVALID_NAMESPACE.dnr(), "host {host}");
        let identify = AdminCommand::Identify(IdentifyCommand::default());
        let sqe = identify.sqe(pair.admin.cid(), hidden, Sgl::Transport { len_bytes: 4096 });
        let (cqe, data) = pair.admin.command(sqe, &[]);
        // Identify returns all zeros for an unattached namespace, as for an inactive NSID (NVMe base 2.0c §5.17.2.1).
        let zeros = data.len() == 4096 && data.iter().all(|&byte| byte == 0);
        assert!(cqe.status.is_ok() && zeros, "host {host} asks of namespace {hidden}: {}", cqe.status);
    }
    // A host that is removed from the list is disconnected. The other host stays connected.
    let mut first = Pair::connect(gateway.addr(), &host_nqn(1), SUBSYSTEM);
    let mut second = Pair::connect(gateway.addr(), &host_nqn(2), SUBSYSTEM);
    gateway.subsystems[0].hosts = only(&[2]);
    gateway.publish();
    first.admin.wait_closed("the host was taken off the list");
    first.io.wait_closed("the host was taken off the list");
    second.check(5, 9);
    // A host loses a namespace and stays connected.
    gateway.subsystems[0].namespaces[2].hosts = only(&[1]);
    gateway.publish();
    assert_eq!(second.io.read(5, 0, 512).0, Status::INVALID_NAMESPACE.dnr());
    assert_eq!(active_namespaces(&mut second.admin), [1]);
    second.check(1, 10);
    gateway.finish();
}

fn active_namespaces(admin: &mut Raw) -> Vec<u32> {
    let identify = AdminCommand::Identify(IdentifyCommand { cns: 2, ..IdentifyCommand::default() });
    let sqe = identify.sqe(admin.cid(), 0, Sgl::Transport { len_bytes: 4096 });
    let (cqe, data) = admin.command(sqe, &[]);
    assert!(cqe.status.is_ok(), "the active namespaces: {}", cqe.status);
    NamespaceList::parse(data.first_chunk().expect("4096 bytes")).iter().collect()
}

#[test]
fn the_discovery_log_is_each_hosts_own() {
    let mut shape = Shape::new(2);
    let loopback = |last| SocketAddr::from(([127, 0, 0, last], 0));
    shape.portals = vec![SocketAddr::from(([0, 0, 0, 0], 0)), loopback(1), loopback(3)];
    let mut gateway = Gateway::start(shape);
    let only = |hosts: &[usize]| Allow::only(hosts.iter().map(|&host| host_nqn(host)));
    let name = |at: usize| format!("nqn.2026-01.org.example:s{at}");
    let mut subsystems = vec![
        gateway.subsystem(&name(0), Allow::Any, Vec::new()),
        gateway.subsystem(&name(1), only(&[1]), Vec::new()),
        gateway.subsystem(&name(2), only(&[]), Vec::new()),
        gateway.subsystem(&name(3), Allow::Any, Vec::new()),
    ];
    subsystems[0].portals = vec![PortalId(0), PortalId(1)];
    subsystems[3].portals = vec![PortalId(2)];
    gateway.subsystems = subsystems;
    gateway.publish();
    let port = |portal| gateway.portal_addr(portal).port();
    let (wild, fixed) = (format!("127.0.0.1:{}", port(0)), format!("127.0.0.1:{}", port(1)));
    let other = format!("127.0.0.3:{}", port(2));
    // If a host asks at another address of this machine, the wildcard listener's entry has this address.
    let second = SocketAddr::from(([127, 0, 0, 2], port(0)));
    let wild_second = format!("127.0.0.2:{}", port(0));
    let s = |at: usize, addr: &str| (name(at), addr.to_owned());
    let first = gateway.portal_addr(0);
    for (what, to, host, expected) in [
        ("a host on the wildcard", first, 2, vec![s(0, &wild), s(0, &fixed)]),
        (
            "a host that is on a list",
            first,
            1,
            vec![s(0, &wild), s(0, &fixed), s(1, &wild), s(1, &fixed), s(1, &other)],
        ),
        ("another address of ours", second, 2, vec![s(0, &wild_second), s(0, &fixed)]),
        ("another portal", gateway.portal_addr(2), 2, vec![s(3, &other)]),
    ] {
        let mut got: Vec<_> = discovery_log(to, host)
            .into_iter()
            .map(|entry| (entry.subnqn.as_str().to_owned(), format!("{}:{}", entry.traddr, entry.trsvcid)))
            .collect();
        got.sort();
        let mut expected = expected;
        expected.sort();
        assert_eq!(got, expected, "{what}");
    }
    gateway.finish();
}

/// Reads a host's discovery log as Linux does, in two reads: the header, then all.
fn discovery_log(to: SocketAddr, host: usize) -> Vec<LogEntry> {
    let (mut raw, _) = Raw::admin(to, &Who::admin(&host_nqn(host), Nqn::DISCOVERY.as_str()));
    let mut read = |len_bytes: u32| {
        let log =
            GetLogPage { lid: lid::DISCOVERY, len_bytes: u64::from(len_bytes), ..GetLogPage::default() };
        let sqe = AdminCommand::GetLogPage(log).sqe(raw.cid(), 0, Sgl::Transport { len_bytes });
        let (cqe, data) = raw.command(sqe, &[]);
        assert!(cqe.status.is_ok(), "{} bytes of the discovery log: {}", len_bytes, cqe.status);
        data
    };
    let header = read(1024);
    let numrec = DiscoveryLog::parse(&header).expect("a header").header.numrec as usize;
    let data = read(DiscoveryLog::len_bytes(numrec) as u32);
    let log = DiscoveryLog::parse(&data).expect("a log");
    log.entries().map(|entry| entry.expect("an entry")).collect()
}
