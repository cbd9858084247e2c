//! Tests of shortage: slots, payload memory, send lists.

use super::host::{ADMIN, Host, Seen, Wish};
use super::rig::{OTHER_HOST, Rig, limits};
use crate::frontend::TargetLimits;
use trefoil_wire::fabrics::Nqn;
use trefoil_wire::nvme::log::lid;
use trefoil_wire::nvme::{Abort, AdminCommand, BlockRange, GetLogPage, IoCommand, Sgl, Status};

/// Sends `each` writes of `len` bytes on each queue before the host reads any answer. Every write must succeed.
fn storm(rig: &mut Rig, queues: &mut [Host], each: u16, len: usize) {
    let data = vec![0xA5; len];
    for io in queues.iter_mut() {
        let mut bytes = Vec::new();
        for cid in 0..each {
            let command = IoCommand::Write(BlockRange::new(0, (len / 512) as u32));
            let sgl = match len {
                ..=8192 => Sgl::InCapsule { offset_bytes: 0, len_bytes: len as u32 },
                _ => Sgl::Transport { len_bytes: len as u32 },
            };
            let body: &[u8] = if len <= 8192 { &data } else { &[] };
            bytes.extend(io.capsule(command.sqe(cid, 1, sgl), body));
        }
        rig.send(io.at, &bytes);
    }
    rig.hold = true;
    rig.pump();
    rig.hold = false;
    let mut done = vec![0; queues.len()];
    for _ in 0..usize::from(each) * queues.len() + 1 {
        rig.pump();
        for (io, done) in queues.iter_mut().zip(&mut done) {
            for pdu in io.seen(rig) {
                match pdu {
                    Seen::R2t(r2t) => io.answer(rig, r2t, &data),
                    Seen::Resp(cqe) => {
                        assert_eq!(cqe.status, Status::SUCCESS);
                        *done += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    let closed: Vec<_> = queues.iter().filter(|io| !rig.sock(io.at).open).map(|io| io.at).collect();
    assert_eq!(closed, [], "{:?}", rig.cores[0].io.control);
    assert_eq!(done, vec![usize::from(each); queues.len()]);
}

fn queues(rig: &mut Rig, count: u16) -> (Host, Vec<Host>) {
    let mut admin = Host::admin(rig, 0, ADMIN);
    assert_eq!(admin.ask_queues(rig, count), count);
    let queues = (1..=count).map(|qid| Host::io(rig, 0, &admin, Wish { qid, ..ADMIN })).collect();
    (admin, queues)
}

#[test]
fn little_memory_makes_commands_wait_and_all_get_through() {
    for (len, cut) in [(4096, false), (8192, true), (65_536, false), (1 << 20, true)] {
        let mut rig = Rig::with(1, TargetLimits { reserved_bytes: 1 << 20, ..limits() }, 6);
        rig.cut = cut;
        let (mut admin, mut queues) = queues(&mut rig, 4);
        storm(&mut rig, &mut queues, 40, len);
        assert_eq!(admin.identify(&mut rig, 1, 0).status, Status::SUCCESS);
        rig.finish();
    }
}

#[test]
fn few_slots_stall_streams_and_all_get_through() {
    let mut rig = Rig::with(1, TargetLimits { slots: 24, reserved_slots: 8, ..limits() }, 8);
    let (mut admin, mut queues) = queues(&mut rig, 4);
    storm(&mut rig, &mut queues, 60, 4096);
    storm(&mut rig, &mut queues, 60, 16_384);
    assert_eq!(admin.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    rig.finish();
}

#[test]
fn admin_and_connect_get_through_while_io_has_everything() {
    let mut rig = Rig::with(1, TargetLimits { slots: 24, reserved_slots: 8, ..limits() }, 8);
    let (mut admin, mut queues) = queues(&mut rig, 1);
    rig.hold = true;
    for cid in 0..60 {
        let command = IoCommand::Read(BlockRange::new(0, 8));
        queues[0].submit(&mut rig, command.sqe(cid, 1, Sgl::Transport { len_bytes: 4096 }), &[]);
    }
    rig.pump();
    assert_eq!(admin.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    let mut other = Host::admin(&mut rig, 0, ADMIN);
    assert_eq!(other.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    rig.finish();
}

#[test]
fn every_size_at_once_with_little_of_everything_gets_through() {
    for seed in 0..40 {
        let tight = TargetLimits { slots: 40, reserved_slots: 8, send_lists: 2, ..limits() };
        let mut rig = Rig::with(1, tight, 4);
        rig.rng = trefoil_poll::rand::Rng::new(seed);
        rig.cut = seed % 2 == 0;
        let (_admin, mut queues) = queues(&mut rig, 5);
        let mut rng = trefoil_poll::rand::Rng::new(seed + 1000);
        let each = 30;
        let mut lens = Vec::new();
        for io in queues.iter_mut() {
            let mut of_queue = Vec::new();
            for cid in 0..each {
                let len = 512 << rng.below(12);
                of_queue.push(len);
                let range = BlockRange::new(0, len as u32 / 512);
                let read = rng.below(3) == 0;
                let command = if read { IoCommand::Read(range) } else { IoCommand::Write(range) };
                let in_capsule = !read && len <= 8192;
                let sgl = match in_capsule {
                    true => Sgl::InCapsule { offset_bytes: 0, len_bytes: len as u32 },
                    false => Sgl::Transport { len_bytes: len as u32 },
                };
                io.submit(&mut rig, command.sqe(cid, 1, sgl), &vec![9; if in_capsule { len } else { 0 }]);
            }
            lens.push(of_queue);
        }
        let mut done = vec![0; queues.len()];
        for round in 0..usize::from(each) * 10 {
            rig.hold = round % 3 == 0;
            rig.pump();
            for ((io, done), lens) in queues.iter_mut().zip(&mut done).zip(&lens) {
                for pdu in io.seen(&mut rig) {
                    match pdu {
                        Seen::R2t(r2t) => io.answer(&mut rig, r2t, &vec![9; lens[usize::from(r2t.cid)]]),
                        Seen::Resp(cqe) => {
                            assert_eq!(cqe.status, Status::SUCCESS);
                            *done += 1;
                        }
                        Seen::Data { .. } => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        assert_eq!(done, [usize::from(each); 5], "seed {seed}");
        rig.finish();
    }
}

#[test]
fn one_send_list_serves_many_connections() {
    let mut rig = Rig::with(1, TargetLimits { send_lists: 1, ..limits() }, 8);
    let (_, mut queues) = queues(&mut rig, 4);
    storm(&mut rig, &mut queues, 20, 4096);
    rig.finish();
}

#[test]
fn a_greedy_queue_leaves_memory_for_others() {
    let mut rig = Rig::with(1, limits(), 16);
    let (_, mut queues) = queues(&mut rig, 2);
    rig.hold = true;
    for cid in 0..100 {
        let command = IoCommand::Read(BlockRange::new(0, 256));
        queues[0].submit(&mut rig, command.sqe(cid, 1, Sgl::Transport { len_bytes: 131_072 }), &[]);
    }
    rig.pump();
    let core = &rig.cores[0];
    let held = core.arena.capacity_bytes() - core.arena.free_bytes();
    assert!(held <= 2 << 20, "{held} bytes held by one queue of a 16 MiB arena");
    rig.finish();
}

#[test]
fn abort_ends_what_waits_and_not_what_runs() {
    let mut rig = Rig::with(2, TargetLimits { reserved_bytes: 1 << 20, ..limits() }, 4);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 1, &admin, ADMIN);
    rig.hold = true;
    let read = IoCommand::Read(BlockRange::new(0, 2048));
    for cid in [1, 2, 3] {
        io.submit(&mut rig, read.sqe(cid, 1, Sgl::Transport { len_bytes: 1 << 20 }), &[]);
    }
    rig.pump();
    let mut abort = |rig: &mut Rig, cid| admin.plain(rig, AdminCommand::Abort(Abort { sqid: 1, cid })).result;
    assert_eq!(abort(&mut rig, 1), 1, "the first runs");
    assert_eq!(abort(&mut rig, 2), 0, "the second waits for memory");
    assert_eq!(abort(&mut rig, 9), 1, "there is no such command");
    assert_eq!(io.responses(&mut rig), [(2, Status::ABORT_REQUESTED, 0)]);
    rig.hold = false;
    rig.pump();
    let done: Vec<_> = io
        .seen(&mut rig)
        .iter()
        .filter_map(|s| if let Seen::Resp(c) = s { Some(c.cid) } else { None })
        .collect();
    assert_eq!(done, [1, 3]);

    let write = IoCommand::Write(BlockRange::new(0, 32));
    io.submit(&mut rig, write.sqe(4, 1, Sgl::Transport { len_bytes: 16_384 }), &[]);
    rig.pump();
    let [Seen::R2t(r2t)] = io.seen(&mut rig)[..] else { panic!("an R2T") };
    assert_eq!(abort(&mut rig, 4), 0, "it waits for the host's data");
    io.answer(&mut rig, r2t, &[1; 16_384]);
    assert_eq!(io.responses(&mut rig), [(4, Status::ABORT_REQUESTED, 0)]);
    assert!(rig.disks[0].iter().all(|&b| b == 0), "it was not started");
    rig.finish();
}

#[test]
fn nobody_gets_all_memory_by_admin_commands() {
    let mut rig = Rig::with(1, limits(), 16);
    let (mut admin, mut queues) = queues(&mut rig, 1);
    // Any host may send requests to the discovery controller. These hosts read none of the answers.
    let mut deaf: Vec<Host> =
        (0..6).map(|_| Host::admin(&mut rig, 0, Wish { subnqn: Nqn::DISCOVERY.as_str(), ..ADMIN })).collect();
    for host in &mut deaf {
        rig.sock(host.at).deaf = true;
        let log = GetLogPage { lid: lid::DISCOVERY, len_bytes: 1 << 20, ..GetLogPage::default() };
        for cid in 100..130 {
            let sqe = AdminCommand::GetLogPage(log).sqe(cid, 0, Sgl::Transport { len_bytes: 1 << 20 });
            host.submit(&mut rig, sqe, &[]);
        }
    }
    rig.pump();
    storm(&mut rig, &mut queues, 20, 4096);
    assert_eq!(admin.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    Host::admin(&mut rig, 0, ADMIN);
    deaf.iter().for_each(|host| rig.sock(host.at).deaf = false);
    rig.pump();
    for host in &mut deaf {
        let answered = host.seen(&mut rig).iter().filter(|seen| matches!(seen, Seen::Resp(_))).count();
        assert_eq!(answered, 30, "they wait, and are answered in the end");
    }
    rig.finish();
}

/// Connects an admin queue and I/O queues of a hostile host.
fn hostile(rig: &mut Rig, count: u16) -> (Host, Vec<Host>) {
    let wish = Wish { hostnqn: OTHER_HOST, ..ADMIN };
    let mut admin = Host::admin(rig, 0, wish);
    assert_eq!(admin.ask_queues(rig, count), count);
    let queues = (1..=count).map(|qid| Host::io(rig, 0, &admin, Wish { qid, ..wish })).collect();
    (admin, queues)
}

#[test]
fn a_host_that_is_granted_much_and_sends_nothing_starves_nobody() {
    let shape = TargetLimits { max_conns: 96, send_lists: 96, slots: 2048, ..limits() };
    for len in [65_536, 1 << 20] {
        let mut rig = Rig::with(1, shape, 32);
        let (_admin, mut hog) = hostile(&mut rig, 60);
        for io in &mut hog {
            let write = IoCommand::Write(BlockRange::new(0, len / 512));
            for cid in 0..20 {
                io.submit(&mut rig, write.sqe(cid, 1, Sgl::Transport { len_bytes: len }), &[]);
            }
        }
        rig.pump();
        let core = &rig.cores[0];
        let held = core.arena.capacity_bytes() - core.arena.free_bytes();
        assert!((22 << 20..=26 << 20).contains(&held), "{held} bytes: most of the 31 MiB, and not all");
        // The other host connects afterwards. If this host has n commands in flight, each of them ends within n rounds.
        let (mut admin, mut queues) = queues(&mut rig, 4);
        for len in [4096, 65_536, 1 << 20] {
            storm(&mut rig, &mut queues, 20, len);
        }
        assert_eq!(admin.identify(&mut rig, 1, 0).status, Status::SUCCESS);
        // Each closed connection frees memory for the next waiting connection, which then has data pending.
        for _ in 0..20 {
            rig.pass(shape.progress_timeout / 2);
        }
        assert!(hog.iter().all(|io| !rig.sock(io.at).open), "a connection with pending data is open");
        let core = &rig.cores[0];
        assert_eq!(core.arena.free_bytes(), core.arena.capacity_bytes());
        rig.finish();
    }
}

#[test]
fn a_host_that_leaves_much_to_be_parked_takes_nobody_with_it() {
    let shape = TargetLimits { max_conns: 96, send_lists: 96, slots: 2048, ..limits() };
    let mut rig = Rig::with(1, shape, 8);
    let (_admin, mut hog) = hostile(&mut rig, 40);
    let (mut admin, mut queues) = queues(&mut rig, 4);
    let data = [3; 8192];
    for io in &mut hog {
        let large = IoCommand::Write(BlockRange::new(0, 128)).sqe(1, 1, Sgl::Transport { len_bytes: 65_536 });
        io.submit(&mut rig, large, &[]);
        rig.pump();
        // The pending data may come after these commands. So the target takes the commands off the stream, even if there is no
        // room for them.
        let small = IoCommand::Write(BlockRange::new(0, 16));
        for cid in 2..100 {
            let sqe = small.sqe(cid, 1, Sgl::InCapsule { offset_bytes: 0, len_bytes: 8192 });
            rig.hold = true;
            io.submit(&mut rig, sqe, &data);
        }
        rig.pump();
    }
    let others = queues.iter().chain([&admin]);
    let closed: Vec<_> = others.filter(|host| !rig.cores[0].io.socks[host.at.1 as usize].open).collect();
    assert_eq!(closed.len(), 0, "{:?}", rig.cores[0].io.control);
    let core = &rig.cores[0];
    let left = core.arena.free_bytes();
    assert!(left >= 1 << 20, "{left} bytes are left to others");
    assert_eq!(admin.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    storm(&mut rig, &mut queues, 20, 65_536);
    rig.finish();
}
