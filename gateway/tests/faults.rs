//! Tests of faults around a whole gateway: the gateway is killed in the middle of a change, disks are full, superblocks are
//! damaged, databases are lost, and arrays become unreachable. Hosts of other LUNs must not be affected.
#![forbid(unsafe_code)]

mod support;

#[path = "faults/array_away.rs"]
mod array_away;
#[path = "faults/bare_array.rs"]
mod bare_array;
#[path = "faults/damage.rs"]
mod damage;
#[path = "faults/full_disk.rs"]
mod full_disk;
#[path = "faults/kills.rs"]
mod kills;

use serde_json::{Value, json};
use support::SUBSYSTEM;
use support::daemon::Daemon;
use support::raw::{Pair, Raw};
use trefoil_wire::nvme::{BlockRange, IoCommand, Sgl, Status};

const MIB: u64 = 1 << 20;
/// The largest transfer that every gateway of these tests accepts.
const PIECE: u64 = MIB;

/// Fills a range of a namespace with `byte`, durably. The namespace has 512-byte blocks. Returns the first status that isn't
/// success.
fn fill(io: &mut Raw, nsid: u32, range: std::ops::Range<u64>, byte: u8) -> Result<(), Status> {
    for at in range.step_by(PIECE as usize) {
        let data = vec![byte; PIECE as usize];
        let blocks = BlockRange { fua: true, ..BlockRange::new(at / 512, (PIECE / 512) as u32) };
        let sgl = Sgl::Transport { len_bytes: PIECE as u32 };
        let sqe = IoCommand::Write(blocks).sqe(io.cid(), nsid, sgl);
        let status = io.command(sqe, &data).0.status;
        if !status.is_ok() {
            return Err(status);
        }
    }
    Ok(())
}

/// Checks that every byte in a range of a namespace is `byte`.
#[track_caller]
fn expect_filled(io: &mut Raw, nsid: u32, range: std::ops::Range<u64>, byte: u8, what: &str) {
    for at in range.step_by(PIECE as usize) {
        let (status, data) = io.read(nsid, at / 512, PIECE as usize);
        assert!(status.is_ok(), "{what}: reading at {at}: {status}");
        let wrong = data.iter().position(|&found| found != byte);
        assert_eq!(wrong, None, "{what}: at {at} this byte isn't {byte:#x}");
    }
}

/// Shows a LUN to hosts. [`hide`] is the opposite.
fn show(gateway: &Daemon, lun: &str, nsid: u32) {
    gateway.call("subsystem_add_namespace", json!({ "nqn": SUBSYSTEM, "lun": lun, "nsid": nsid }));
}

fn hide(gateway: &Daemon, nsid: u32) {
    gateway.call("subsystem_remove_namespace", json!({ "nqn": SUBSYSTEM, "nsid": nsid }));
}

/// Connects host `number` to the gateway's one subsystem.
fn host(gateway: &Daemon, number: usize) -> Pair {
    Pair::connect(gateway.addr, &support::host_nqn(number), SUBSYSTEM)
}
