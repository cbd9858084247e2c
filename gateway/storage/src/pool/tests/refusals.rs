//! Bad disks, wrong disks and invalid requests.

use super::format::{GENERATIONS, LABEL_AT, META_BYTES, TABLE_AT};
use super::*;

const POOL: Uuid = Uuid::from_bytes([0xEE; 16]);

fn reopen(io: &Disks, backends: &[BackendInfo]) -> Result<Pool, OpenPoolError> {
    block_on(open_pool(io, POOL, backends.to_vec()))
}

fn two() -> (Disks, Pool, [BackendInfo; 2]) {
    let backends = [backend(0, 8), backend(1, 8)];
    let (io, mut pool) = pool_on(&backends);
    block_on(create_lun(&io, &mut pool, new_lun("a", 20, 4096))).expect("a");
    (io, pool, backends)
}

#[test]
fn the_disks_alone_tell_everything() {
    let (io, pool, backends) = two();
    let again = reopen(&io, &backends).expect("opens");
    assert_eq!(again, pool);
    assert_eq!(again.owner(), Some(PoolOwner { id: [7; 16], epoch: 3 }));
    // The order of the backends and their ids don't matter.
    let mut swapped = [backends[1].clone(), backends[0].clone()];
    assert_eq!(reopen(&io, &swapped).expect("opens").table(), pool.table());
    swapped[0].name = "renamed".into();
    assert!(reopen(&io, &swapped).is_ok());
}

#[test]
fn a_bad_slot_is_repaired_from_the_others() {
    for at in [LABEL_AT[0], LABEL_AT[1], TABLE_AT[0], TABLE_AT[1]] {
        for id in [0, 1] {
            let (io, pool, backends) = two();
            let whole = io.peek(BackendId(id), at, 4096);
            io.poke(BackendId(id), at + 100, &[0xFF; 64]);
            let again = reopen(&io, &backends).expect("opens");
            assert_eq!((again.table(), again.frozen()), (pool.table(), None));
            assert_eq!(again.notes().len(), 1, "{:?}", again.notes());
            assert_eq!(io.peek(BackendId(id), at, 4096), whole, "slot {at} of backend {id}");
        }
    }
}

#[test]
fn both_bad_is_an_error_that_says_where() {
    let (io, pool, backends) = two();
    for at in TABLE_AT {
        io.poke(BackendId(0), at + 100, &[0xFF; 64]);
    }
    assert_eq!(reopen(&io, &backends).expect("the other holder has it").table(), pool.table());
    for (id, at) in [(0, TABLE_AT[0]), (0, TABLE_AT[1]), (1, TABLE_AT[0]), (1, TABLE_AT[1])] {
        io.poke(BackendId(id), at + 100, &[0xFF; 64]);
    }
    let error = reopen(&io, &backends).expect_err("no layout");
    assert_eq!(
        error.to_string(),
        format!(
            "pool {POOL} (tank): these backends have no valid layout: b0 (wrong checksum), b1 (wrong checksum)"
        )
    );
    for at in LABEL_AT {
        io.poke(BackendId(1), at + 100, &[0xFF; 64]);
    }
    let error = reopen(&io, &backends[1..]).expect_err("no label");
    assert!(
        matches!(error, OpenPoolError::Label { damage: Damage::Checksum, ref backend, .. } if backend == "b1")
    );
    let found = block_on(scan(&io, &backends));
    assert!(matches!(found[..], [Found::Member(_), Found::Damaged(Damage::Checksum)]));
    let error = block_on(create_pool(&io, new_pool(&backends[1..]))).expect_err("it may be precious");
    assert!(matches!(error, CreatePoolError::Damaged { .. }));
    overwrite(&io, &backends[1..]);
}

/// A host that had access to the whole backend can write any label.
#[test]
fn a_label_with_the_last_generation_is_no_trap() {
    for state in [LabelState::Creating, LabelState::Ready] {
        let (io, pool, backends) = two();
        for at in LABEL_AT {
            let mut label = Label::parse(&io.peek(BackendId(1), at, 4096)).expect("a label");
            (label.generation, label.state) = (GENERATIONS - 1, state);
            io.poke(BackendId(1), at, &label.emit());
        }
        drop(pool);
        overwrite(&io, &backends[1..]);
    }
}

/// Makes another pool on the backends with `overwrite`, and opens the pool.
fn overwrite(io: &Disks, backends: &[BackendInfo]) {
    let uuid = Uuid::from_bytes([0xEE; 16]);
    let new = NewPool { uuid, name: "third".into(), overwrite: true, ..new_pool(backends) };
    block_on(create_pool(io, new)).expect("asked for");
    assert_eq!(block_on(open_pool(io, uuid, backends.to_vec())).expect("it opens").frozen(), None);
}

#[test]
fn a_lost_label_is_made_again_where_a_layout_tells_whose_it_was() {
    let labels = |io: &Disks, id| LABEL_AT.map(|at| io.peek(BackendId(id), at, 4096));
    for (id, garbage) in [(0, 0xFF), (1, 0xFF), (0, 0), (1, 0)] {
        let (io, pool, backends) = two();
        let whole = labels(&io, id);
        let lose = |what: [u64; 2]| what.map(|at| io.poke(BackendId(id), at, &[garbage; 4096]));
        lose(LABEL_AT);
        // Under another name, the disk could be any member.
        let mut renamed = backends.clone();
        renamed[id as usize].name = "renamed".into();
        let half = reopen(&io, &renamed).expect("opens");
        assert_eq!(half.frozen(), Some(&Frozen::Missing(vec![format!("b{id}")])));
        let again = reopen(&io, &backends).expect("opens");
        assert_eq!((again.table(), again.frozen(), again.notes().len()), (pool.table(), None, 2));
        assert_eq!(labels(&io, id), whole);
        // Without its layout, the disk could belong to somebody else, so nothing is written to it.
        lose(LABEL_AT);
        lose(TABLE_AT);
        let steps = io.steps();
        let half = reopen(&io, &backends).expect("opens");
        let missing = Frozen::Missing(vec![format!("b{id} (label: no Trefoil data)")]);
        assert_eq!((half.frozen(), half.notes().len(), io.steps()), (Some(&missing), 1, steps));
        assert_eq!(half.table(), pool.table());
    }
    // A disk with a new partition table belongs to somebody else now, so the pool doesn't write to it.
    let (io, _, backends) = two();
    io.poke(BackendId(1), LABEL_AT[0], &[vec![0; 512], b"EFI PART".repeat(448)].concat());
    io.poke(BackendId(1), LABEL_AT[1], &[0; 4096]);
    let (there, steps) = (labels(&io, 1), io.steps());
    let half = reopen(&io, &backends).expect("opens");
    let missing = Frozen::Missing(vec!["b1 (label: no Trefoil data)".into()]);
    assert_eq!((half.frozen(), half.notes().len(), io.steps()), (Some(&missing), 1, steps));
    assert_eq!(labels(&io, 1), there);
    // A pool that was being destroyed is not restored.
    let (io, mut pool, backends) = two();
    // Four writes of label slots, then b0's two slots are erased. The next step fails.
    io.fail_after(7);
    assert!(block_on(destroy_pool(&io, &mut pool, true)).is_err());
    assert!(matches!(block_on(scan(&io, &backends))[..], [Found::Free, Found::Unfinished(_)]));
    assert!(matches!(reopen(&io, &backends), Err(OpenPoolError::Unfinished { .. })));
}

#[test]
fn a_missing_backend_leaves_the_others_luns() {
    let backends = [backend(0, 4), backend(1, 4), backend(2, 4)];
    let (io, mut pool) = pool_on(&backends);
    block_on(create_lun(&io, &mut pool, new_lun("a", 64, 4096))).expect("fills one backend");
    block_on(create_lun(&io, &mut pool, new_lun("b", 64, 4096))).expect("fills another");
    let before: Vec<_> =
        LABEL_AT.iter().chain(&TABLE_AT).map(|&at| io.peek(BackendId(1), at, 4096)).collect();
    let steps = io.steps();
    let mut half = reopen(&io, &backends[1..]).expect("opens");
    assert_eq!(half.frozen(), Some(&Frozen::Missing(vec!["b0".into()])));
    let (a, b) = (
        half.lun(Uuid::from_bytes([b'a'; 16])).expect("a"),
        half.lun(Uuid::from_bytes([b'b'; 16])).expect("b"),
    );
    assert_eq!(half.extents(a), Err("b0".into()));
    assert_eq!(half.extents(b).expect("its backend is there").len(), 1);
    let error =
        block_on(delete_lun(&io, &mut half, Uuid::from_bytes([b'b'; 16]), false, false)).expect_err("frozen");
    assert!(matches!(error, LunError::Frozen { .. }));
    assert_eq!(io.steps(), steps, "nothing was written");
    let after: Vec<_> = LABEL_AT.iter().chain(&TABLE_AT).map(|&at| io.peek(BackendId(1), at, 4096)).collect();
    assert_eq!(before, after);
    // Without both holders there is no layout.
    assert!(matches!(reopen(&io, &backends[2..]), Err(OpenPoolError::NoTable { .. })));
    assert_eq!(reopen(&io, &[]), Err(OpenPoolError::NoBackends(POOL)));
}

#[test]
fn a_member_that_was_cut_off_leaves_the_others_luns() {
    // The disk ends within the member's data, within the second copy of its layout, or within the first copy.
    for left in [4 * UNIT + (4 << 20), 2 << 20, 64 << 10] {
        let mut backends = [backend(0, 8), backend(1, 8)];
        let (io, mut pool) = pool_on(&backends);
        block_on(create_lun(&io, &mut pool, new_lun("a", 128, 4096))).expect("fills one backend");
        block_on(create_lun(&io, &mut pool, new_lun("b", 128, 4096))).expect("fills the other");
        let steps = io.steps();
        io.truncate(BackendId(0), left);
        backends[0].len_bytes = left;
        let half = reopen(&io, &backends).expect("opens");
        let whole = backend(0, 8).len_bytes;
        let why = format!("b0 (the backend has {left} bytes, and the layout says {whole})");
        assert_eq!((half.frozen(), half.notes().len()), (Some(&Frozen::Missing(vec![why])), 1));
        let lun = |name| half.lun(Uuid::from_bytes([name; 16])).expect("a LUN");
        assert_eq!(half.extents(lun(b'a')), Err("b0".into()));
        assert_eq!(half.extents(lun(b'b')).expect("its backend is whole").len(), 1);
        assert_eq!(io.steps(), steps, "nothing was written");
    }
    // Without the other members there is no pool.
    let mut single = [backend(0, 8)];
    let (io, _) = pool_on(&single);
    single[0].len_bytes = 64 << 10;
    let error = reopen(&io, &single).expect_err("no layout");
    assert!(error.to_string().ends_with("no valid layout: b0 (the backend has only 65536 bytes)"), "{error}");
    // A member whose block size changed.
    let (io, _, mut backends) = two();
    backends[1].block_bytes = 4096;
    let why = "b1 (the backend's blocks have 4096 bytes, and the layout says 512)";
    assert_eq!(reopen(&io, &backends).expect("opens").frozen(), Some(&Frozen::Missing(vec![why.into()])));
}

#[test]
fn other_pools_and_copies_are_refused() {
    let backends = [backend(0, 4), backend(1, 4), backend(2, 4)];
    let io = Disks::new(&backends, 1);
    block_on(create_pool(&io, new_pool(&backends[..1]))).expect("one pool");
    let other =
        NewPool { uuid: Uuid::from_bytes([0xDD; 16]), name: "other".into(), ..new_pool(&backends[1..2]) };
    block_on(create_pool(&io, other)).expect("another");
    let error = reopen(&io, &backends[..2]).expect_err("two pools");
    assert!(matches!(error, OpenPoolError::Foreign { ref found_name, .. } if found_name == "other"));
    let error = reopen(&io, &backends[2..]).expect_err("no label");
    assert!(matches!(error, OpenPoolError::Label { damage: Damage::Blank, .. }));
    io.copy_disk(BackendId(0), BackendId(2));
    let error = reopen(&io, &[backends[0].clone(), backends[2].clone()]).expect_err("a copy");
    assert!(matches!(error, OpenPoolError::Duplicate { .. }), "{error}");
    let error = block_on(create_pool(&io, new_pool(&backends[1..2]))).expect_err("in use");
    assert!(matches!(error, CreatePoolError::InUse { ref pool, .. } if pool == "other"));
    assert_eq!(reopen(&io, &backends[..1]).expect("unharmed").frozen(), None);
    let import = block_on(import_namespace(&io, backends[1].clone(), "x".into(), POOL, [0; 16]));
    assert!(matches!(import, Err(ImportError::Pooled { .. })));
    overwrite(&io, &backends[1..2]);
    let mut small = backends[0].clone();
    small.len_bytes -= UNIT;
    assert!(matches!(reopen(&io, &[small]), Err(OpenPoolError::Mismatch { .. })));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut coarse = backend(1, 8);
    coarse.block_bytes = 4096;
    let (io, mut pool) = pool_on(&[backend(0, 2), coarse.clone()]);
    let mut try_lun = |name: &str, blocks, block_bytes| {
        block_on(create_lun(&io, &mut pool, new_lun(name, blocks, block_bytes)))
    };
    assert_eq!(try_lun("a", 128, 512), Ok(()));
    assert!(matches!(try_lun("a", 1, 512), Err(LunError::Exists { .. })));
    let error = try_lun("b", 129, 512).expect_err("only one unit with 512-byte blocks is left");
    assert_eq!(
        error,
        LunError::NoSpace { pool: "tank".into(), lun: "b".into(), need_bytes: 2 * UNIT, free_bytes: UNIT }
    );
    assert_eq!(try_lun("b", 9 * 16, 4096), Ok(()));
    assert!(matches!(try_lun("c", 1, 4096), Err(LunError::NoSpace { free_bytes: 0, .. })));
    assert!(matches!(try_lun("c", 0, 4096), Err(LunError::Size { .. })));
    assert!(matches!(try_lun("c", u64::MAX, 4096), Err(LunError::Size { .. })));
    assert!(matches!(try_lun("c", u64::MAX / 4096, 4096), Err(LunError::Size { .. })));
    assert!(matches!(try_lun("c\n", 1, 4096), Err(LunError::Name { .. })));
    assert!(matches!(try_lun("c", 1, 1024), Err(LunError::BlockSize { .. })));
    let a = Uuid::from_bytes([b'a'; 16]);
    let error = block_on(grow_lun(&io, &mut pool, a, 128)).expect_err("no larger");
    assert!(matches!(error, LunError::NotLarger { .. }));
    let error = block_on(delete_lun(&io, &mut pool, a, true, false)).expect_err("in use");
    assert!(matches!(error, LunError::InUse { .. }));
    assert_eq!(block_on(delete_lun(&io, &mut pool, a, true, true)), Ok(()));
    assert!(matches!(block_on(delete_lun(&io, &mut pool, a, true, true)), Err(LunError::NotFound { .. })));
    let error = block_on(destroy_pool(&io, &mut pool, false)).expect_err("it has b");
    assert!(matches!(error, DestroyPoolError::HasLuns { luns: 1, .. }));

    // A pool with 4 KiB blocks only.
    let (io, mut pool) = pool_on(&[BackendInfo { id: BackendId(0), ..coarse }]);
    let error = block_on(create_lun(&io, &mut pool, new_lun("a", 1, 512))).expect_err("512 on 4Kn");
    assert!(matches!(error, LunError::BlockSize { block_bytes: 512, .. }));
}

#[test]
fn pools_that_cannot_be_made_are_refused() {
    let good = [backend(0, 4), backend(1, 4)];
    let io = Disks::new(&good, 1);
    let refused = |change: &dyn Fn(&mut NewPool)| {
        let mut new = new_pool(&good);
        change(&mut new);
        block_on(create_pool(&io, new)).expect_err("refused")
    };
    assert!(matches!(refused(&|p| p.name.clear()), CreatePoolError::Name(_)));
    assert!(matches!(refused(&|p| p.unit_bytes = 3 << 20), CreatePoolError::Unit(_)));
    assert!(matches!(refused(&|p| p.members.clear()), CreatePoolError::Members(0)));
    assert!(matches!(refused(&|p| p.members[1] = p.members[0].clone()), CreatePoolError::Twice(_)));
    assert!(matches!(refused(&|p| p.members[0].backend.block_bytes = 520), CreatePoolError::BlockSize(_)));
    assert!(matches!(
        refused(&|p| p.members[0].backend.len_bytes = 4 << 20),
        CreatePoolError::TooSmall { .. }
    ));
    assert_eq!(io.steps(), 0, "nothing was written");
}

#[test]
fn steps_can_be_taken_one_by_one() {
    let backends = [backend(0, 8), backend(1, 8)];
    let (io, mut pool) = pool_on(&backends);
    let a = block_on(pool.reserve_lun(&io, new_lun("a", 40, 4096))).expect("reserved");
    let b = block_on(pool.reserve_lun(&io, new_lun("b", 16, 4096))).expect("reserved");
    assert!(matches!(
        block_on(delete_lun(&io, &mut pool, a.lun(), false, false)),
        Err(LunError::Busy { .. })
    ));
    let b = block_on(b.run(&io)).expect("zeroed");
    block_on(pool.publish(&io, b)).expect("published");
    assert!(!pool.lun(a.lun()).expect("reserved").is_visible());
    block_on(pool.roll_back(&io, a.lun())).expect("rolled back");
    assert_eq!(pool.capacity_bytes(), (16 * UNIT, 15 * UNIT));
    assert_eq!(reopen(&io, &backends).expect("opens").table(), pool.table());
    // A growth that is dropped half-way leaves the LUN unchanged, and one run stays one run.
    let b = Uuid::from_bytes([b'b'; 16]);
    let before = pool.table().luns.clone();
    let growth = block_on(pool.reserve_growth(&io, b, 64)).expect("reserved");
    assert!(matches!(block_on(pool.reserve_growth(&io, b, 65)), Err(LunError::Busy { .. })));
    block_on(pool.roll_back(&io, growth.lun())).expect("rolled back");
    assert_eq!(pool.table().luns, before);
    block_on(grow_lun(&io, &mut pool, b, 64)).expect("grown");
    assert_eq!(pool.lun(b).expect("there").runs.len(), 1);
    let extents = pool.extents(pool.lun(b).expect("there")).expect("all there");
    assert_eq!(extents[0].len, 4 * UNIT);
    assert_eq!(extents[0].backend_offset % UNIT, 0);
}

#[test]
fn an_import_writes_nothing() {
    let backends = [backend(0, 4)];
    let io = Disks::new(&backends, 1);
    let import =
        block_on(import_namespace(&io, backends[0].clone(), "disk".into(), POOL, [1; 16])).expect("ok");
    assert_eq!(io.steps(), 0);
    assert_eq!(import.blocks(), backends[0].len_bytes / 512);
    assert_eq!(import.extents()[0].backend_offset, 0);
    assert!(matches!(import.clone().release(true, false), Err(ImportError::InUse(_))));
    assert_eq!(import.release(false, false).expect("released"), backends[0]);
}

#[test]
fn a_pool_that_cannot_be_settled_is_served_but_frozen() {
    let (io, mut pool, backends) = two();
    let zeroing = block_on(pool.reserve_lun(&io, new_lun("b", 16, 4096))).expect("reserved");
    drop(zeroing);
    // Two flushes, then the first write of the layout without `b`.
    io.fail_after(3);
    let mut half = reopen(&io, &backends).expect("served");
    assert!(matches!(half.frozen(), Some(Frozen::Io(_))));
    assert_eq!(half.table().luns.iter().map(|lun| lun.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let error = block_on(create_lun(&io, &mut half, new_lun("c", 16, 4096))).expect_err("frozen");
    assert!(matches!(error, LunError::Frozen { .. }));
    let whole = reopen(&io, &backends).expect("opens");
    assert_eq!((whole.frozen(), whole.table().luns.len()), (None, 1));
}

#[test]
fn an_unfinished_pool_is_told_from_a_pool_and_can_be_made_again() {
    let backends = [backend(0, 4), backend(1, 4)];
    let io = Disks::new(&backends, 1);
    // Both labels are written (4 writes); the layout isn't.
    io.fail_after(5);
    assert!(matches!(block_on(create_pool(&io, new_pool(&backends))), Err(CreatePoolError::Io(_))));
    let found = block_on(scan(&io, &backends));
    assert!(matches!(found[..], [Found::Unfinished(_), Found::Unfinished(_)]));
    assert!(matches!(reopen(&io, &backends), Err(OpenPoolError::Unfinished { .. })));
    let mut pool = block_on(create_pool(&io, new_pool(&backends))).expect("again");
    assert!(reopen(&io, &backends).is_ok());
    block_on(destroy_pool(&io, &mut pool, false)).expect("empty");
    assert_eq!(block_on(scan(&io, &backends)), [Found::Free, Found::Free]);
}

#[test]
fn of_two_gateways_the_second_to_change_a_pool_is_refused() {
    let (io, mut pool, backends) = two();
    let mut other = reopen(&io, &backends).expect("opens");
    block_on(create_lun(&io, &mut other, new_lun("b", 20, 4096))).expect("b");
    let error = block_on(create_lun(&io, &mut pool, new_lun("c", 20, 4096))).expect_err("b's units");
    assert!(error.to_string().contains("which another gateway has changed"), "{error}");
    assert_eq!(pool.frozen(), Some(&Frozen::Foreign));
    assert!(matches!(
        block_on(delete_lun(&io, &mut pool, Uuid::from_bytes([b'a'; 16]), false, false)),
        Err(LunError::Frozen { .. })
    ));
    assert_eq!(reopen(&io, &backends).expect("opens").table(), other.table());
}

/// While a pool is open, somebody makes another pool on its disk, or uses the disk for something else.
#[test]
fn a_disk_that_is_anothers_by_now_is_not_written_to() {
    let erased = |io: &Disks| LABEL_AT.map(|at| io.poke(BackendId(0), at, &[0; 4096]));
    for is_pool in [true, false] {
        let (io, mut pool, backends) = two();
        erased(&io);
        if is_pool {
            let new = NewPool {
                uuid: Uuid::from_bytes([0xDD; 16]),
                name: "other".into(),
                ..new_pool(&backends[..1])
            };
            block_on(create_pool(&io, new)).expect("another pool");
        }
        let steps = io.steps();
        let error = block_on(store_exports(&io, &mut pool, b"{}".to_vec())).expect_err("not ours");
        assert!(
            error.to_string().contains("b0: changing a disk that belongs to another pool now"),
            "{error}"
        );
        assert_eq!((pool.frozen(), io.steps()), (Some(&Frozen::Foreign), steps), "and nothing was written");
        assert!(matches!(
            block_on(create_lun(&io, &mut pool, new_lun("b", 20, 4096))),
            Err(LunError::Frozen { .. })
        ));
    }
}

#[test]
fn what_somebody_may_want_to_keep_is_overwritten_only_if_asked() {
    let backends = [backend(0, 8), backend(1, 8)];
    let io = Disks::new(&backends, 1);
    let btrfs = (BackendId(1), 65_600, b"_BHRfS_M");
    io.poke(btrfs.0, btrfs.1, btrfs.2);
    let before = [0, 1].map(|id| io.peek(BackendId(id), 0, META_BYTES as usize));
    let error = block_on(create_pool(&io, new_pool(&backends))).expect_err("a file system");
    assert_eq!(error.to_string(), "backend b1 holds a Btrfs file system");
    assert_eq!([0, 1].map(|id| io.peek(BackendId(id), 0, META_BYTES as usize)), before);

    let new = NewPool { overwrite: true, ..new_pool(&backends) };
    let mut pool = block_on(create_pool(&io, new)).expect("asked for");
    assert_ne!(io.peek(btrfs.0, btrfs.1, btrfs.2.len()), btrfs.2, "nobody takes it for Btrfs any more");
    block_on(destroy_pool(&io, &mut pool, false)).expect("empty");
    block_on(create_pool(&io, new_pool(&backends))).expect("it was ours, and nothing is left of the rest");
}

/// Like the test above, for the two operations that also write to members that are not holders: making a LUN and
/// destroying the pool.
#[test]
fn a_disk_that_is_anothers_by_now_is_neither_zeroed_nor_erased() {
    let backends = [backend(0, 4), backend(1, 4), backend(2, 8)];
    for id in [0, 2] {
        let (io, mut pool) = pool_on(&backends);
        let taken = BackendId(id as u32);
        LABEL_AT.iter().for_each(|at| io.poke(taken, *at, &[0; 4096]));
        let new = NewPool {
            uuid: Uuid::from_bytes([0xDD; 16]),
            name: "other".into(),
            ..new_pool(&backends[id..=id])
        };
        let other = block_on(create_pool(&io, new)).expect("another pool");
        let steps = io.steps();
        let error = match id {
            // The third backend has the most room, so the LUN goes there.
            2 => block_on(create_lun(&io, &mut pool, new_lun("a", 128, 4096)))
                .expect_err("not ours")
                .to_string(),
            _ => block_on(destroy_pool(&io, &mut pool, true)).expect_err("not ours").to_string(),
        };
        assert!(error.contains("a disk that belongs to another pool now"), "{error}");
        assert_eq!((pool.frozen(), io.steps()), (Some(&Frozen::Foreign), steps), "and nothing was written");
        let found = block_on(open_pool(&io, Uuid::from_bytes([0xDD; 16]), vec![backends[id].clone()]))
            .expect("it is whole");
        assert_eq!(found.table(), other.table());
    }
}

/// Bad sectors in one copy of the layout.
#[test]
fn a_layout_that_cannot_be_read_leaves_the_others_luns() {
    let (io, mut pool, backends) = two();
    block_on(create_lun(&io, &mut pool, new_lun("b", 96, 4096))).expect("fills one backend");
    block_on(create_lun(&io, &mut pool, new_lun("c", 128, 4096))).expect("fills the other");
    for at in TABLE_AT {
        io.fail_reads(Some((BackendId(0), at)));
        let steps = io.steps();
        let half = reopen(&io, &backends).expect("opens");
        let why = "b0 (the backend's layout can't be read: the medium failed to read)".into();
        assert_eq!((half.frozen(), half.notes().len()), (Some(&Frozen::Missing(vec![why])), 1));
        let lun = |name| half.lun(Uuid::from_bytes([name; 16])).expect("a LUN");
        assert_eq!(half.extents(lun(b'a')), Err("b0".into()));
        assert_eq!(half.extents(lun(b'c')).expect("its backend is whole").len(), 1);
        assert_eq!(io.steps(), steps, "nothing was written");
    }
    io.fail_reads(None);
    assert_eq!(reopen(&io, &backends).expect("opens").table(), pool.table());
    let (io, _) = pool_on(&backends[..1]);
    io.fail_reads(Some((BackendId(0), TABLE_AT[1])));
    let error = reopen(&io, &backends[..1]).expect_err("no layout");
    assert!(
        error
            .to_string()
            .ends_with("no valid layout: b0 (the backend's layout can't be read: the medium failed to read)"),
        "{error}"
    );
}
