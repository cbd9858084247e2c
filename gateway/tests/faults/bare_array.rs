//! Tests of a pool on an array that lacks Write Zeroes, or that doesn't promise zeros from deallocated blocks. Hosts must never
//! read former content of a block: neither the array's own content nor the content of a deleted LUN.

use super::*;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use support::{Gateway, Shape, host_nqn};
use trefoil_poll::CoreId;
use trefoil_storage::topology::{Allow, BackendId};
use trefoil_wire::nvme::{DsmCommand, DsmRange};

const ARRAY_BYTES: u64 = 48 * MIB;
/// Three contents: the former content of the array, and the contents that hosts write to the first and to the second LUN.
const OLD: u8 = 0xa5;
const FIRST: u8 = 0x77;
const SECOND: u8 = 0x3c;

const DOCUMENT: &str = r#"
[gateway]
cores = 2
max_hosts = 8
max_qpairs = 32

[[backend]]
name = "array"
type = "nvme-tcp"
address = "ARRAY"
subnqn = "nqn.2026-01.org.example:subsystem"
nsid = 1

[[subsystem]]
nqn = "nqn.2026-01.org.example:subsystem"
allow_any_host = true
listeners = ["ADDR"]
"#;

/// An array: a target of our own on a file. The target lacks a feature.
struct BareArray {
    disk: File,
    target: Gateway,
}

impl BareArray {
    /// Starts an array that doesn't offer Write Zeroes.
    fn without_write_zeroes() -> Self {
        let array = Self::start(|shape| shape.target.has_write_zeroes = false);
        let mut pair = Pair::connect(array.target.addr(), &host_nqn(9), SUBSYSTEM);
        assert_eq!(zero(&mut pair.io, 0..8, false), Status::INVALID_OPCODE.dnr(), "it has Write Zeroes");
        array
    }

    fn start(lack: impl FnOnce(&mut Shape)) -> Self {
        let disk = tempfile::tempfile().expect("a file");
        for at in (0..ARRAY_BYTES).step_by(MIB as usize) {
            disk.write_all_at(&[OLD; MIB as usize], at).expect("written");
        }
        let mut shape = Shape::new(1);
        lack(&mut shape);
        let mut target = Gateway::start(shape);
        target.attach_file(BackendId(0), CoreId(0), &disk, ARRAY_BYTES);
        target.present(Allow::Any, vec![target.lun("disk", 0, 0, ARRAY_BYTES)]);
        Self { disk, target }
    }

    /// Returns the number of the file's blocks that are filled with `byte`.
    fn blocks_of(&self, byte: u8) -> usize {
        let mut all = vec![0; ARRAY_BYTES as usize];
        self.disk.read_exact_at(&mut all, 0).expect("read");
        all.chunks(512).filter(|block| block.iter().all(|&found| found == byte)).count()
    }
}

/// Sends Write Zeroes for blocks of namespace 1.
fn zero(io: &mut Raw, blocks: Range<u64>, deac: bool) -> Status {
    let range = BlockRange::new(blocks.start, (blocks.end - blocks.start) as u32);
    let sqe = IoCommand::WriteZeroes { range, deac }.sqe(io.cid(), 1, Sgl::NONE);
    io.command(sqe, &[]).0.status
}

/// Sends Dataset Management with Deallocate for blocks of namespace 1.
fn trim(io: &mut Raw, blocks: Range<u64>) -> Status {
    let mut data = [0; DsmRange::LEN];
    DsmRange { attributes: 0, nlb: (blocks.end - blocks.start) as u32, slba: blocks.start }.emit(&mut data);
    let sgl = Sgl::InCapsule { offset_bytes: 0, len_bytes: DsmRange::LEN as u32 };
    let dsm = DsmCommand { ranges: 1, deallocate: true, ..Default::default() };
    let sqe = IoCommand::Dsm(dsm).sqe(io.cid(), 1, sgl);
    io.command(sqe, &data).0.status
}

/// Reads the first `blocks` blocks of namespace 1. Returns the first byte of each block. All bytes of a block must be equal.
fn read_blocks(io: &mut Raw, blocks: usize) -> Vec<u8> {
    let (status, data) = io.read(1, 0, blocks * 512);
    assert!(status.is_ok(), "{status}");
    let uniform = |block: &[u8]| block.iter().all(|&byte| byte == block[0]).then_some(block[0]);
    data.chunks(512).map(|block| uniform(block).expect("a block of one byte")).collect()
}

#[test]
fn no_former_byte_is_read_from_a_pool_on_an_array_without_write_zeroes() {
    let array = BareArray::without_write_zeroes();
    let gateway = Daemon::start(&DOCUMENT.replace("ARRAY", &array.target.addr().to_string()));
    gateway.call("pool_create", json!({ "name": "tank", "backends": ["array"] }));
    let whole = gateway.call("pool_show", json!({ "name": "tank" }))["free_bytes"].as_u64().expect("a size");
    let create = |name: &str, size: u64| {
        gateway.call("lun_create", json!({ "name": name, "pool": "tank", "size": size }));
        show(&gateway, name, 1);
    };

    create("first", whole);
    let mut pair = host(&gateway, 1);
    let io = &mut pair.io;
    expect_filled(io, 1, 0..whole, 0, "a new LUN");
    fill(io, 1, 0..whole, FIRST).expect("written");
    expect_filled(io, 1, 0..whole, FIRST, "what was written");
    // The ranges cover both ends, and positions where one write of zeros ends and the next begins.
    for (blocks, deac) in [(3..4, false), (8..1031, true), (1040..2000, false)] {
        assert_eq!(zero(io, blocks, deac), Status::SUCCESS);
    }
    let expected = |at: usize| match at {
        3 | 8..1031 | 1040..2000 => 0,
        _ => FIRST,
    };
    assert_eq!(read_blocks(io, 2048), (0..2048).map(expected).collect::<Vec<_>>());
    // Deallocate is a hint, which the array may ignore.
    assert_eq!(trim(io, 2000..2040), Status::SUCCESS);
    let found = read_blocks(io, 2048);
    assert!(found[2000..2040].iter().all(|&byte| byte == 0 || byte == FIRST), "{found:?}");
    assert_eq!((found[1999], &found[2040..]), (0, &[FIRST; 8][..]));
    // One command zeroes at most 65536 blocks.
    assert_eq!(zero(io, 4096..4096 + 65536, true), Status::SUCCESS);
    expect_filled(io, 1, 2 * MIB..34 * MIB, 0, "what was zeroed at once");
    expect_filled(io, 1, 34 * MIB..whole, FIRST, "what is behind it");

    hide(&gateway, 1);
    gateway.call("lun_delete", json!({ "name": "first", "force": true }));
    create("second", 8 * MIB);
    expect_filled(io, 1, 0..8 * MIB, 0, "a LUN where another was");
    fill(io, 1, 0..8 * MIB, SECOND).expect("written");
    gateway.call("lun_grow", json!({ "name": "second", "size": whole }));
    expect_filled(io, 1, 0..8 * MIB, SECOND, "a LUN that has grown");
    expect_filled(io, 1, 8 * MIB..whole, 0, "what it has grown by");
    assert_eq!(array.blocks_of(FIRST), 0, "blocks of the first LUN are left at the array");
    assert_eq!(array.blocks_of(SECOND) as u64, 8 * MIB / 512);
    drop(gateway);
    array.target.finish();
}

#[test]
fn an_array_that_promises_no_zeros_is_not_trimmed() {
    let array = BareArray::start(|shape| shape.target.promises_zeros = false);
    let gateway = Daemon::start(&DOCUMENT.replace("ARRAY", &array.target.addr().to_string()));
    gateway.call("pool_create", json!({ "name": "tank", "backends": ["array"] }));
    gateway.call("lun_create", json!({ "name": "first", "pool": "tank", "size": 8 * MIB }));
    show(&gateway, "first", 1);
    let mut pair = host(&gateway, 1);
    let io = &mut pair.io;
    fill(io, 1, 0..8 * MIB, FIRST).expect("written");
    let left = array.blocks_of(FIRST);
    assert_eq!(trim(io, 0..2048), Status::SUCCESS);
    assert_eq!(read_blocks(io, 2048), [FIRST; 2048], "deallocated, though hosts are promised zeros");
    assert_eq!(zero(io, 8..1032, true), Status::SUCCESS);
    let expected = |at: usize| if (8..1032).contains(&at) { 0 } else { FIRST };
    assert_eq!(read_blocks(io, 2048), (0..2048).map(expected).collect::<Vec<_>>());
    assert_eq!(array.blocks_of(FIRST), left - 1024);
    drop(gateway);
    array.target.finish();
}
