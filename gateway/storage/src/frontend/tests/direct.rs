//! The smallest transport: a command is a call, and its data is a slice. This file shows everything that a transport needs of
//! the command layer.

use super::host::{ADMIN, Wish, connect_command};
use super::rig::{BLOCK, Rig};
use crate::frontend::ConnAddrs;
use crate::frontend::nvme::engine::CommandStep;
use crate::frontend::shared::Order;
use crate::topology::PortalId;
use trefoil_wire::fabrics::{FabricsCommand, PropertySet, PropertySize};
use trefoil_wire::nvme::property::{Cc, offset};
use trefoil_wire::nvme::{Abort, AdminCommand, BlockRange, Cqe, IoCommand, Sgl, Sqe, Status};

const ADMIN_CONN: u32 = 0;
const IO_CONN: u32 = 1;

/// Returns a descriptor of a command's data; only the data's length matters here.
fn sgl(len: usize) -> Sgl {
    Sgl::Transport { len_bytes: len as u32 }
}

/// Starts a command. Gives `data` to a command that needs data. If `data` is empty, such a command keeps waiting.
fn call(rig: &mut Rig, conn: u32, sqe: Sqe, data: &[u8]) -> (u32, CommandStep) {
    let mut bytes = [0; Sqe::LEN];
    sqe.emit(&mut bytes);
    rig.with_core(0, |target, cx| {
        let shared = &mut target.shared;
        let (at, step) = shared.engine.begin(cx, conn, &bytes).expect("a slot");
        let step = match step {
            CommandStep::Gather(_) if data.is_empty() => step,
            CommandStep::Gather(len) | CommandStep::Block(len) => {
                let mut block = shared.memory.fund(cx, conn, at, len, true).expect("memory");
                if data.is_empty() {
                    shared.engine.read(cx, at, block, false)
                } else {
                    block[..data.len()].copy_from_slice(data);
                    shared.engine.give_block(at, block);
                    shared.engine.execute(cx, at)
                }
            }
            CommandStep::Held | CommandStep::Done => step,
        };
        (at, step)
    })
}

/// Takes the response of a command, with the data that goes to the host.
fn respond(rig: &mut Rig, conn: u32, at: u32) -> (Cqe, Vec<u8>) {
    rig.with_core(0, |target, cx| {
        let response = target.shared.engine.respond(cx, at).expect("a response");
        let data = response.block.as_ref().map_or(Vec::new(), |b| b[..response.len as usize].to_vec());
        response.block.into_iter().for_each(|block| target.shared.memory.give_back(cx, conn, block));
        (response.cqe, data)
    })
}

/// Runs a command to its end.
fn run(rig: &mut Rig, conn: u32, sqe: Sqe, data: &[u8]) -> (Cqe, Vec<u8>) {
    let (at, step) = call(rig, conn, sqe, data);
    if step == CommandStep::Held {
        rig.run_beneath(0);
        let order = rig.with_core(0, |target, cx| target.shared.next_order(cx));
        assert_eq!(order, Some(Order::Respond(at)));
    }
    respond(rig, conn, at)
}

fn open(rig: &mut Rig, conn: u32, wish: Wish) -> u16 {
    let address = |text: &str| text.parse().expect("an address");
    let (local, peer) = (address("192.0.2.1:4420"), address("198.51.100.7:999"));
    rig.with_core(0, |target, _| target.shared.open(conn, ConnAddrs { portal: PortalId(0), local, peer }));
    let (command, data) = connect_command(wish);
    let (cqe, _) = run(rig, conn, command.sqe(1, sgl(data.len())), &data);
    assert_eq!(cqe.status, Status::SUCCESS);
    cqe.result as u16
}

#[test]
fn a_transport_without_sockets_connects_reads_writes_and_aborts() {
    let mut rig = Rig::new(1);
    let cntlid = open(&mut rig, ADMIN_CONN, ADMIN);
    let cc = Cc { en: true, iosqes: 6, iocqes: 4, ..Cc::default() };
    let enable = PropertySet { size: PropertySize::Four, offset: offset::CC, value: u64::from(cc.bits()) };
    let (cqe, _) = run(&mut rig, ADMIN_CONN, FabricsCommand::PropertySet(enable).sqe(2, Sgl::NONE), &[]);
    assert_eq!(cqe.status, Status::SUCCESS);
    // Once the core answers that no earlier association is left, the controller is ready.
    rig.run_beneath(0);
    // The Join goes as a message to the controller's owner, and the answer comes back as a message.
    assert_eq!(open(&mut rig, IO_CONN, Wish { cntlid, qid: 1, sqsize: 127, ..ADMIN }), cntlid);

    let bytes: Vec<u8> = (0..2 * BLOCK).map(|n| n as u8 ^ 0x5A).collect();
    let range = || BlockRange::new(7, 2);
    let (cqe, _) = run(&mut rig, IO_CONN, IoCommand::Write(range()).sqe(2, 1, sgl(bytes.len())), &bytes);
    assert_eq!((cqe.status, cqe.cid), (Status::SUCCESS, 2));
    let (cqe, read) = run(&mut rig, IO_CONN, IoCommand::Read(range()).sqe(3, 1, sgl(bytes.len())), &[]);
    assert_eq!((cqe.status, read == bytes), (Status::SUCCESS, true));

    // A write whose data has not come is aborted: none of its data is written.
    let (waiting, _) = call(&mut rig, IO_CONN, IoCommand::Write(range()).sqe(4, 1, sgl(bytes.len())), &[]);
    let abort = AdminCommand::Abort(Abort { sqid: 1, cid: 4 });
    let (cqe, _) = run(&mut rig, ADMIN_CONN, abort.sqe(5, 0, Sgl::NONE), &[]);
    assert_eq!((cqe.status, cqe.result), (Status::SUCCESS, 0), "aborted");
    rig.with_core(0, |target, cx| {
        assert!(target.shared.engine.is_aborted(waiting));
        assert_eq!(target.shared.engine.execute(cx, waiting), CommandStep::Done);
    });
    assert_eq!(respond(&mut rig, IO_CONN, waiting).0.status, Status::ABORT_REQUESTED);

    for conn in [IO_CONN, ADMIN_CONN] {
        rig.with_core(0, |target, cx| target.shared.close(cx, conn, "the test ends"));
        rig.run_beneath(0);
    }
    rig.finish();
}
