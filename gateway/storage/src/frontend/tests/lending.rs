//! Tests of memory that reads lend, and that in-capsule writes change in place.

use super::host::{ADMIN, Host, Seen, Wish};
use super::rig::{BLOCK, Rig, limits};
use trefoil_poll::ram::Ram;
use trefoil_wire::nvme::log::lid;
use trefoil_wire::nvme::{AdminCommand, BlockRange, GetLogPage, IoCommand, Sgl, Status};

const ALL: u64 = 8192 * BLOCK as u64;

fn read(host: &mut Host, rig: &mut Rig, count: u16) {
    for _ in 0..count {
        let sgl = Sgl::Transport { len_bytes: BLOCK as u32 };
        let sqe = IoCommand::Read(BlockRange::new(0, 1)).sqe(host.next_cid(), 1, sgl);
        host.submit(rig, sqe, &[]);
    }
}

/// Returns a capsule with a write of block 0.
fn write(host: &mut Host, fill: u8) -> Vec<u8> {
    let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: BLOCK as u32 };
    let sqe = IoCommand::Write(BlockRange::new(0, 1)).sqe(host.next_cid(), 1, sgl);
    host.capsule(sqe, &[fill; BLOCK])
}

/// Returns the byte that fills block 0.
fn fill(ram: &Ram) -> u8 {
    let mut block = [0; BLOCK];
    ram.read(0, &mut block).expect("inside");
    assert!(block.iter().all(|&byte| byte == block[0]), "half of a write");
    block[0]
}

fn answers(host: &mut Host, rig: &mut Rig) -> Vec<u8> {
    let answer = |seen| match seen {
        Seen::Data { data, .. } => Some(data[0]),
        Seen::Resp(cqe) => {
            assert_eq!(cqe.status, Status::SUCCESS);
            None
        }
        other => panic!("{other:?}"),
    };
    host.seen(rig).into_iter().filter_map(answer).collect()
}

/// Connects a host's admin queue and two I/O queues.
fn queues(rig: &mut Rig, wish: Wish) -> (Host, Host, Host) {
    let admin = Host::admin(rig, 0, wish);
    let reader = Host::io(rig, 0, &admin, Wish { qid: 1, ..wish });
    let writer = Host::io(rig, 0, &admin, Wish { qid: 2, ..wish });
    (admin, reader, writer)
}

/// Get Log Page on an admin queue and Read on an I/O queue have the same opcode, 02h.
#[test]
fn a_log_page_that_names_a_namespace_is_never_read_from_its_lun() {
    let mut rig = Rig::lending(limits());
    let (mut admin, mut reader, _writer) = queues(&mut rig, ADMIN);
    let fill = IoCommand::Write(BlockRange::new(0, 16));
    reader.io_command(&mut rig, 1, fill, &[0xEE; 16 * BLOCK], 0);
    // The log's slot had a read of the same namespace before.
    read(&mut reader, &mut rig, 1);
    rig.pump();
    assert_eq!(answers(&mut reader, &mut rig), [0xEE]);
    for len in [4, BLOCK as u32] {
        let log = GetLogPage { lid: lid::SMART, len_bytes: len.into(), ..GetLogPage::default() };
        let page = admin.read_admin(&mut rig, AdminCommand::GetLogPage(log), 1, len);
        assert_eq!((page.status, page.data.len()), (Status::SUCCESS, len as usize));
        assert!(page.data.iter().all(|&byte| byte != 0xEE), "{:?}", page.data);
    }
    rig.finish();
}

#[test]
fn a_write_waits_until_what_it_overlaps_is_sent() {
    let mut rig = Rig::lending(limits());
    let (_admin, mut reader, mut writer) = queues(&mut rig, ADMIN);
    read(&mut reader, &mut rig, 1);
    let capsule = write(&mut writer, 7);
    rig.send(writer.at, &capsule);
    rig.turn(0);
    let waiting = |rig: &Rig| rig.cores[0].luns.as_ref().map(|luns| luns.waiting());
    assert_eq!((waiting(&rig), fill(rig.ram(0))), (Some(1), 0), "the read came first, and was lent");
    assert!(!rig.ram(0).is_lent(0, ALL), "the turn has ended it");
    rig.pump();
    assert_eq!((waiting(&rig), fill(rig.ram(0))), (Some(0), 7));
    assert_eq!((answers(&mut reader, &mut rig), answers(&mut writer, &mut rig)), (vec![0], vec![]));
    rig.finish();
}

#[test]
fn a_host_that_does_not_read_keeps_nobody_from_writing() {
    let mut rig = Rig::lending(limits());
    let (_admin, mut reader, mut writer) = queues(&mut rig, ADMIN);
    rig.sock(reader.at).deaf = true;
    read(&mut reader, &mut rig, 100);
    rig.pump();
    assert!(!rig.ram(0).is_lent(0, ALL), "what it was lent is copied out");
    let capsule = write(&mut writer, 7);
    rig.send(writer.at, &capsule);
    rig.pump();
    assert_eq!(fill(rig.ram(0)), 7);
    rig.sock(reader.at).deaf = false;
    rig.pump();
    assert_eq!(answers(&mut reader, &mut rig), [0; 100], "they were read before the write came");
    rig.finish();
}

#[test]
fn loans_that_find_the_list_full_end_with_the_turn() {
    let mut rig = Rig::lending(limits());
    let (admin, _, mut writer) = queues(&mut rig, ADMIN);
    let wish = Wish { qid: 3, cntlid: admin.cntlid, sqsize: 255, ..ADMIN };
    let (mut reader, _) = Host::connect(&mut rig, 0, wish);
    rig.sock(reader.at).deaf = true;
    read(&mut reader, &mut rig, 1);
    rig.pump();
    // The data of these reads is copied, since a send is in flight.
    read(&mut reader, &mut rig, 100);
    rig.pump();
    // These reads come after that send and before the next send, so their data is lent. The next send has no room for all of
    // it.
    rig.sock(reader.at).deaf = false;
    read(&mut reader, &mut rig, 60);
    rig.turn(0);
    rig.sock(reader.at).deaf = true;
    assert!(!rig.ram(0).is_lent(0, ALL));
    let capsule = write(&mut writer, 7);
    rig.send(writer.at, &capsule);
    rig.pump();
    assert_eq!(fill(rig.ram(0)), 7);
    rig.sock(reader.at).deaf = false;
    rig.pump();
    assert_eq!(answers(&mut reader, &mut rig), [0; 161]);
    rig.finish();
}

#[test]
fn a_write_in_place_waits_for_its_last_byte() {
    for digests in [(false, false), (true, true)] {
        let mut rig = Rig::lending(limits());
        let (_admin, _, mut writer) = queues(&mut rig, Wish { digests, ..ADMIN });
        let len = write(&mut writer, 0).len();
        for cut in 1..len {
            let (before, after) = (cut as u8, cut as u8 ^ 0xA5);
            let capsule = write(&mut writer, before);
            rig.send(writer.at, &capsule);
            rig.pump();
            let capsule = write(&mut writer, after);
            rig.send(writer.at, &capsule[..cut]);
            rig.pump();
            assert_eq!(fill(rig.ram(0)), before, "{cut} of {len} bytes have come");
            rig.send(writer.at, &capsule[cut..]);
            rig.pump();
            assert_eq!(fill(rig.ram(0)), after);
            assert_eq!(answers(&mut writer, &mut rig), []);
        }
        rig.finish();
    }
}

#[test]
fn a_write_whose_digest_is_wrong_does_not_land() {
    let mut rig = Rig::lending(limits());
    let (_admin, _, mut writer) = queues(&mut rig, Wish { digests: (false, true), ..ADMIN });
    let mut capsule = write(&mut writer, 7);
    let last = capsule.len() - 100;
    capsule[last] ^= 1;
    rig.send(writer.at, &capsule);
    rig.pump();
    assert_eq!(writer.responses(&mut rig), [(writer.cid, Status::TRANSIENT_TRANSPORT_ERROR, 0)]);
    assert_eq!(fill(rig.ram(0)), 0);
    rig.finish();
}

#[test]
fn a_reader_that_is_gone_gives_back_what_it_was_lent() {
    let mut rig = Rig::lending(limits());
    let (admin, mut reader, mut writer) = queues(&mut rig, ADMIN);
    let mut other = Host::admin(&mut rig, 0, Wish { hostnqn: super::rig::OTHER_HOST, ..ADMIN });
    let mut other_writer =
        Host::io(&mut rig, 0, &other, Wish { qid: 1, hostnqn: super::rig::OTHER_HOST, ..ADMIN });
    read(&mut reader, &mut rig, 3);
    let (lost, kept) = (write(&mut writer, 7), write(&mut other_writer, 9));
    rig.send(writer.at, &lost);
    rig.send(other_writer.at, &kept);
    // The controller ends in the same turn in which its reader gets the loans.
    rig.sock(admin.at).eof = true;
    rig.pump();
    assert!(!rig.ram(0).is_lent(0, ALL));
    assert_eq!(answers(&mut other_writer, &mut rig), [], "another host's write goes on");
    assert_eq!(fill(rig.ram(0)), 9);
    assert_eq!(other.identify(&mut rig, 1, 0).status, Status::SUCCESS);
    rig.finish();
}
