//! Tests of reads and writes in every form and every framing, with cuts at any place.

use super::host::{ADMIN, Host, Outcome, Seen, Wish};
use super::rig::{BLOCK, Rig};
use crate::request::{Fault, Op};
use trefoil_wire::nvme::{BlockRange, DsmCommand, DsmRange, IoCommand, NSID_ALL, Sgl, Status};

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(salt)).collect()
}

fn blocks(len: usize) -> u32 {
    (len / BLOCK) as u32
}

fn write(range: BlockRange) -> IoCommand {
    IoCommand::Write(range)
}

fn dsm_data(ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut data = vec![0; ranges.len() * DsmRange::LEN];
    for (bytes, &(slba, nlb)) in data.chunks_mut(DsmRange::LEN).zip(ranges) {
        DsmRange { attributes: 0, nlb, slba }.emit(bytes.first_chunk_mut().expect("16"));
    }
    data
}

/// Runs the whole life of an I/O queue. Returns all outcomes that the host saw.
fn session(rig: &mut Rig, wish: Wish) -> Vec<Outcome> {
    let last = rig.cores.len() - 1;
    let admin = Host::admin(rig, 0, wish);
    let mut io = Host::io(rig, last, &admin, wish);
    let mut outcomes = Vec::new();
    for (i, len) in [BLOCK, 4096, 8192, 12_288, 16_384, 131_072, 1 << 20].into_iter().enumerate() {
        let data = pattern(len, i as u8);
        let range = BlockRange { fua: i % 2 == 1, ..BlockRange::new(i as u64 * 7, blocks(len)) };
        outcomes.push(io.io_command(rig, 1, write(range), &data, 0));
        let read = io.io_command(rig, 1, IoCommand::Read(range), &[], len);
        assert_eq!(read.data, data, "{len} bytes");
        outcomes.push(read);
    }
    outcomes.push(io.io_command(rig, 3, write(BlockRange::new(0, 16)), &pattern(8192, 99), 0));
    outcomes.push(io.io_command(rig, 1, IoCommand::Flush, &[], 0));
    outcomes.push(io.io_command(rig, NSID_ALL, IoCommand::Flush, &[], 0));
    let zeroes = IoCommand::WriteZeroes { range: BlockRange::new(8, 8), deac: true };
    outcomes.push(io.io_command(rig, 1, zeroes, &[], 0));
    let dsm = IoCommand::Dsm(DsmCommand { ranges: 3, deallocate: true, ..DsmCommand::default() });
    outcomes.push(io.io_command(rig, 1, dsm, &dsm_data(&[(16, 4), (0, 0), (24, 4)]), 0));
    // Linux sends one range in a buffer for 256 ranges.
    let dsm = IoCommand::Dsm(DsmCommand { ranges: 1, deallocate: true, ..DsmCommand::default() });
    let mut data = dsm_data(&[(28, 4), (32, 4)]);
    data.resize(4096, 0xFF);
    outcomes.push(io.io_command(rig, 1, dsm, &data, 0));
    outcomes.push(io.io_command(rig, 1, IoCommand::Read(BlockRange::new(0, 64)), &[], 64 * BLOCK));
    outcomes
}

const FRAMINGS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

#[test]
fn a_session_under_every_framing() {
    for digests in FRAMINGS {
        for (alignment, no_flow_control) in [(4, false), (128, true)] {
            let mut rig = Rig::new(2);
            let outcomes = session(&mut rig, Wish { digests, alignment, no_flow_control, ..ADMIN });
            assert!(outcomes.iter().all(|o| o.status == Status::SUCCESS), "{outcomes:?}");
            let end = &outcomes.last().expect("a read").data;
            assert!(end[8 * BLOCK..20 * BLOCK].iter().all(|&b| b == 0), "zeroed and deallocated");
            assert!(end[24 * BLOCK..32 * BLOCK].iter().all(|&b| b == 0), "deallocated");
            assert!(end[32 * BLOCK..36 * BLOCK].iter().any(|&b| b != 0), "not named");
            assert!(end[20 * BLOCK..24 * BLOCK].iter().any(|&b| b != 0), "between the ranges");
            assert_eq!((rig.flushes, rig.durable_writes), (3, 3));
            rig.finish();
        }
    }
}

#[test]
fn a_stream_cut_anywhere_gives_the_same() {
    for digests in FRAMINGS {
        let wish = Wish { digests, alignment: 8, ..ADMIN };
        let mut whole = Rig::new(2);
        let expected = session(&mut whole, wish);
        whole.finish();
        for seed in 0..6 {
            let mut rig = Rig::new(2);
            rig.cut = true;
            rig.rng = trefoil_poll::rand::Rng::new(seed);
            assert_eq!(session(&mut rig, wish), expected, "seed {seed}");
            rig.finish();
        }
    }
}

#[test]
fn many_at_once_are_batched_and_all_answered() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    let mut bytes = Vec::new();
    for cid in 0..120u16 {
        let command = IoCommand::Read(BlockRange::new(u64::from(cid), 8));
        bytes.extend(io.capsule(command.sqe(cid, 1, Sgl::Transport { len_bytes: 4096 }), &[]));
    }
    rig.send(io.at, &bytes);
    rig.pump();
    let seen = io.seen(&mut rig);
    let data = seen.iter().filter(|s| matches!(s, Seen::Data { .. })).count();
    let mut answered: Vec<_> =
        seen.iter().filter_map(|s| if let Seen::Resp(cqe) = s { Some(cqe.cid) } else { None }).collect();
    answered.sort_unstable();
    assert_eq!((data, answered), (120, (0..120).collect::<Vec<_>>()));
    rig.finish();
}

#[test]
fn sqhd_follows_the_capsules_or_says_nothing() {
    let mut rig = Rig::new(1);
    let mut admin = Host::admin(&mut rig, 0, ADMIN);
    assert_eq!(admin.ask_queues(&mut rig, 2), 2);
    for no_flow_control in [false, true] {
        let qid = 1 + u16::from(no_flow_control);
        let wish = Wish { qid, no_flow_control, cntlid: admin.cntlid, sqsize: 3, ..ADMIN };
        let (mut io, _) = Host::connect(&mut rig, 0, wish);
        let mut heads = Vec::new();
        for cid in 100..105 {
            io.submit(&mut rig, IoCommand::Flush.sqe(cid, 1, Sgl::NONE), &[]);
            rig.pump();
            match io.seen(&mut rig).as_slice() {
                [Seen::Resp(cqe)] => heads.push(cqe.sqhd),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(heads, if no_flow_control { [0xFFFF; 5] } else { [2, 3, 0, 1, 2] });
    }
    rig.finish();
}

#[test]
fn success_needs_no_response_without_flow_control() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, Wish { no_flow_control: true, ..ADMIN });
    let command = IoCommand::Read(BlockRange::new(0, 1));
    io.submit(&mut rig, command.sqe(7, 1, Sgl::Transport { len_bytes: 512 }), &[]);
    rig.pump();
    assert_eq!(io.seen(&mut rig), [Seen::Data { cid: 7, data: vec![0; 512], success: true }]);
    rig.finish();
}

#[test]
fn bad_commands_get_their_status() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    let read = |slba, nlb| IoCommand::Read(BlockRange::new(slba, nlb));
    let transport = |len_bytes| Sgl::Transport { len_bytes };
    let prinfo = IoCommand::Read(BlockRange { prinfo: 8, ..BlockRange::new(0, 1) });
    let dsm = IoCommand::Dsm(DsmCommand { ranges: 1, deallocate: true, ..DsmCommand::default() });
    for (nsid, command, sgl, data, status) in [
        (1, read(8192, 1), transport(512), 0, Status::LBA_OUT_OF_RANGE),
        (1, read(8191, 2), transport(1024), 0, Status::LBA_OUT_OF_RANGE),
        (1, read(u64::MAX, 1), transport(512), 0, Status::LBA_OUT_OF_RANGE),
        (1, read(0, 2049), transport(2049 * 512), 0, Status::INVALID_FIELD),
        (1, read(0, 1), transport(1024), 0, Status::DATA_SGL_LENGTH_INVALID),
        (1, read(0, 2), transport(512), 0, Status::DATA_SGL_LENGTH_INVALID),
        (1, dsm, transport(8), 0, Status::DATA_SGL_LENGTH_INVALID),
        (1, dsm, transport(257 * 16), 0, Status::DATA_SGL_LENGTH_INVALID),
        (1, prinfo, transport(512), 0, Status::INVALID_PROTECTION_INFORMATION),
        (0, read(0, 1), transport(512), 0, Status::INVALID_NAMESPACE),
        (2, read(0, 1), transport(512), 0, Status::INVALID_NAMESPACE),
        (4, read(0, 1), transport(512), 0, Status::INVALID_NAMESPACE),
        (NSID_ALL, read(0, 1), transport(512), 0, Status::INVALID_NAMESPACE),
        (1, read(0, 1), Sgl::Address { address: 0, len_bytes: 512 }, 0, Status::SGL_TYPE_INVALID),
        (1, read(0, 1), Sgl::InCapsule { offset_bytes: 0, len_bytes: 512 }, 0, Status::SGL_TYPE_INVALID),
        (
            1,
            write(BlockRange::new(0, 1)),
            Sgl::InCapsule { offset_bytes: 8, len_bytes: 512 },
            512,
            Status::SGL_OFFSET_INVALID,
        ),
        (
            1,
            write(BlockRange::new(0, 2)),
            Sgl::InCapsule { offset_bytes: 0, len_bytes: 1024 },
            512,
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (1, dsm, Sgl::InCapsule { offset_bytes: 0, len_bytes: 16 }, 16, Status::LBA_OUT_OF_RANGE),
        (1, IoCommand::Compare(BlockRange::new(0, 1)), transport(512), 0, Status::INVALID_OPCODE),
        (9, IoCommand::Flush, Sgl::NONE, 0, Status::INVALID_NAMESPACE),
        (1, IoCommand::Unknown { opcode: 0x7D }, Sgl::NONE, 0, Status::INVALID_OPCODE),
    ] {
        let data = if command == dsm { dsm_data(&[(8191, 2)]) } else { vec![1; data] };
        let sqe = command.sqe(io.next_cid(), nsid, sgl);
        let outcome = io.run(&mut rig, sqe, &data);
        assert!(outcome.status.is(status), "{command:?} {sgl:?}: {}", outcome.status);
    }
    assert!(rig.disks.iter().flatten().all(|&b| b == 0), "nothing was written");
    rig.finish();
}

#[test]
fn faults_beneath_become_statuses() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    for (fault, status) in [
        (Fault::OutOfRange, Status::LBA_OUT_OF_RANGE),
        (Fault::MediaWrite, Status::WRITE_FAULT),
        (Fault::NoSpace, Status::CAPACITY_EXCEEDED),
        (Fault::ReadOnly, Status::NAMESPACE_WRITE_PROTECTED),
        (Fault::PathLost, Status::INTERNAL_PATH_ERROR),
        (Fault::Inaccessible, Status::ANA_INACCESSIBLE),
        (Fault::Gone, Status::INVALID_NAMESPACE),
        (Fault::Internal, Status::INTERNAL_ERROR),
    ] {
        rig.faults.push((Op::Write, fault));
        let outcome = io.io_command(&mut rig, 1, write(BlockRange::new(0, 1)), &[1; 512], 0);
        assert!(outcome.status.is(status), "{fault:?}: {}", outcome.status);
    }
    rig.faults.push((Op::Read, Fault::MediaRead));
    let outcome = io.io_command(&mut rig, 1, IoCommand::Read(BlockRange::new(0, 1)), &[], 512);
    assert!(outcome.status.is(Status::UNRECOVERED_READ_ERROR) && outcome.data.is_empty());
    rig.faults.push((Op::Deallocate, Fault::Unsupported));
    let dsm = IoCommand::Dsm(DsmCommand { ranges: 1, deallocate: true, ..DsmCommand::default() });
    assert_eq!(io.io_command(&mut rig, 1, dsm, &dsm_data(&[(0, 1)]), 0).status, Status::SUCCESS);
    rig.finish();
}

#[test]
fn ana_and_write_protection_stop_commands() {
    let mut rig = Rig::new(1);
    let admin = Host::admin(&mut rig, 0, ADMIN);
    let mut io = Host::io(&mut rig, 0, &admin, ADMIN);
    let read = IoCommand::Read(BlockRange::new(0, 1));
    for (state, status) in [
        (2, Status::SUCCESS),
        (3, Status::ANA_INACCESSIBLE),
        (4, Status::ANA_PERSISTENT_LOSS),
        (15, Status::ANA_TRANSITION),
        (1, Status::SUCCESS),
    ] {
        rig.topology.subsystems[0].namespaces[0].ana_state = state;
        rig.publish();
        assert_eq!(io.io_command(&mut rig, 1, read, &[], 512).status, status, "state {state}");
    }
    rig.topology.luns[0].as_mut().expect("a LUN").read_only = true;
    rig.publish();
    let refused = io.io_command(&mut rig, 1, write(BlockRange::new(0, 1)), &[1; 512], 0);
    assert!(refused.status.is(Status::NAMESPACE_WRITE_PROTECTED));
    assert_eq!(io.io_command(&mut rig, 1, read, &[], 512).status, Status::SUCCESS);
    rig.finish();
}
