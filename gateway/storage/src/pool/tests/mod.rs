mod crash;
mod disks;
mod formats;
mod refusals;

use super::*;
use disks::Disks;

const UNIT: u64 = MIN_UNIT_BYTES;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        // The disks answer at once, so this polls once.
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

fn backend(id: u32, units: u64) -> BackendInfo {
    let len_bytes = format::data_start(UNIT) + units * UNIT;
    BackendInfo { id: BackendId(id), name: format!("b{id}"), len_bytes, block_bytes: 512 }
}

fn new_pool(backends: &[BackendInfo]) -> NewPool {
    let member = |backend: &BackendInfo| NewMember {
        uuid: Uuid::from_bytes([backend.id.0 as u8 + 1; 16]),
        backend: backend.clone(),
    };
    NewPool {
        uuid: Uuid::from_bytes([0xEE; 16]),
        name: "tank".into(),
        unit_bytes: UNIT,
        owner: PoolOwner { id: [7; 16], epoch: 3 },
        members: backends.iter().map(member).collect(),
        overwrite: false,
    }
}

fn new_lun(name: &str, blocks: u64, block_bytes: u32) -> NewLun {
    let id = [name.as_bytes()[0]; 16];
    NewLun {
        uuid: Uuid::from_bytes(id),
        nguid: id,
        serial: *b"SERIAL              ",
        nsid: u32::from(id[0]),
        name: name.into(),
        created_at_s: 1_700_000_000,
        block_bytes,
        blocks,
    }
}

/// Makes a pool on fresh disks.
fn pool_on(backends: &[BackendInfo]) -> (Disks, Pool) {
    let io = Disks::new(backends, 1);
    let pool = block_on(create_pool(&io, new_pool(backends))).expect("a pool");
    (io, pool)
}
