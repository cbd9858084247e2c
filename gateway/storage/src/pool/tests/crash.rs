//! Power fails at every step of a pool's life. After each failure, the pool must be in the state before the operation,
//! or in the state after the operation. No unit may be shared or lost, and acknowledged data must still be there.

use super::*;
use std::collections::BTreeMap;
use trefoil_poll::Rng;

#[derive(Clone, Copy, Debug)]
enum Step {
    CreatePool,
    Create(&'static str, u64),
    Grow(&'static str, u64),
    Delete(&'static str),
    Export(&'static str),
    DestroyPool,
}

/// Sizes are in 4 KiB blocks; a unit has 16. `d` reuses the units of `b`. The second growth of `a` stays within its
/// last unit.
const LIFE: &[Step] = &[
    Step::CreatePool,
    Step::Create("a", 40),
    Step::Create("b", 32),
    Step::Create("c", 16),
    Step::Export("a to all"),
    Step::Grow("a", 50),
    Step::Delete("b"),
    Step::Create("d", 48),
    Step::Grow("a", 60),
    Step::Delete("c"),
    Step::Export("d to nobody"),
    Step::Grow("d", 64),
    Step::Delete("a"),
    Step::DestroyPool,
];

/// The expected LUNs: the blocks of each, by name.
type Model = BTreeMap<String, u64>;

struct Life {
    io: Disks,
    backends: Vec<BackendInfo>,
    pool: Option<Pool>,
    model: Model,
    /// The exports that the pool stores with its layout.
    exports: &'static str,
    generation: u64,
}

impl Life {
    fn new(units: &[u64], seed: u64) -> Self {
        let backends: Vec<_> = (0..).zip(units).map(|(id, &units)| backend(id, units)).collect();
        let io = Disks::new(&backends, seed);
        Self { io, backends, pool: None, model: Model::new(), exports: "", generation: 0 }
    }

    /// Runs a step. Returns `false` if power failed.
    fn run(&mut self, step: Step) -> bool {
        let (io, pool) = (&self.io, &mut self.pool);
        let result = match (step, pool) {
            (Step::CreatePool, pool) => block_on(create_pool(io, new_pool(&self.backends)))
                .map(|made| *pool = Some(made))
                .map_err(|e| e.to_string()),
            (Step::Create(name, blocks), Some(pool)) => {
                block_on(create_lun(io, pool, new_lun(name, blocks, 4096))).map_err(|e| e.to_string())
            }
            (Step::Grow(name, blocks), Some(pool)) => {
                let lun = Uuid::from_bytes([name.as_bytes()[0]; 16]);
                block_on(grow_lun(io, pool, lun, blocks)).map_err(|e| e.to_string())
            }
            (Step::Delete(name), Some(pool)) => {
                let lun = Uuid::from_bytes([name.as_bytes()[0]; 16]);
                block_on(delete_lun(io, pool, lun, false, false)).map_err(|e| e.to_string())
            }
            (Step::Export(text), Some(pool)) => {
                block_on(store_exports(io, pool, text.into())).map_err(|e| e.to_string())
            }
            (Step::DestroyPool, Some(pool)) => {
                block_on(destroy_pool(io, pool, true)).map_err(|e| e.to_string())
            }
            (step, None) => panic!("{step:?} without a pool"),
        };
        let crashed = self.io.power_on();
        assert!(crashed || result.is_ok(), "{step:?}: {result:?}");
        !crashed
    }

    /// Returns the model after `step`.
    fn after(&self, step: Step) -> Model {
        let mut model = self.model.clone();
        match step {
            Step::Create(name, blocks) | Step::Grow(name, blocks) => model.insert(name.into(), blocks),
            Step::Delete(name) => model.remove(name),
            Step::CreatePool | Step::Export(_) => None,
            Step::DestroyPool => {
                model.clear();
                None
            }
        };
        model
    }

    /// Checks the LUNs against the model after `step`: old blocks are marked, new blocks are zero. Then marks all
    /// blocks, as a host that writes and flushes would.
    fn accept(&mut self, step: Step) {
        let after = self.after(step);
        let before = std::mem::replace(&mut self.model, after);
        if matches!(step, Step::DestroyPool) {
            self.pool = None;
            return;
        }
        if let Step::Export(text) = step {
            self.exports = text;
        }
        self.check(&before);
        let pool = self.pool.as_ref().expect("a pool");
        for lun in &pool.table().luns {
            for extent in pool.extents(lun).expect("all members") {
                let mark = vec![lun.name.as_bytes()[0]; extent.len as usize];
                // The rest of the last unit past the LUN's end is not marked: hosts can't reach it.
                let end = (lun.blocks * 4096 - extent.lun_offset).min(extent.len) as usize;
                self.io.poke(extent.backend, extent.backend_offset, &mark[..end]);
            }
        }
    }

    /// Checks the open pool against the model. In each LUN, the blocks in `marked` have the LUN's mark, and the other
    /// blocks are zero.
    fn check(&mut self, marked: &Model) {
        let pool = self.pool.as_ref().expect("a pool");
        assert_eq!(pool.table().check(), Ok(()));
        assert_eq!(pool.frozen(), None);
        assert_eq!(pool.table().exports, self.exports.as_bytes());
        assert!(pool.table().generation >= self.generation, "the generation went back");
        self.generation = pool.table().generation;
        let there: Model = pool.table().luns.iter().map(|lun| (lun.name.clone(), lun.blocks)).collect();
        assert_eq!(there, self.model);
        for lun in &pool.table().luns {
            assert_eq!((lun.nsid, lun.pending_blocks), (u32::from(lun.name.as_bytes()[0]), 0));
            let marked = marked.get(&lun.name).copied().unwrap_or(0) * 4096;
            let mut bytes = Vec::new();
            for extent in pool.extents(lun).expect("all members") {
                bytes.extend(self.io.peek(extent.backend, extent.backend_offset, extent.len as usize));
            }
            bytes.truncate((lun.blocks * 4096) as usize);
            assert_eq!(bytes.len() as u64, lun.blocks * 4096);
            let (old, new) = bytes.split_at((marked as usize).min(bytes.len()));
            assert!(
                old.iter().all(|&b| b == lun.name.as_bytes()[0]),
                "LUN {} lost what was flushed",
                lun.name
            );
            assert!(new.iter().all(|&b| b == 0), "LUN {} does not begin as zeros", lun.name);
        }
    }

    /// Opens the pool after a crash in `step`. Returns whether the step took effect.
    fn reopen(&mut self, step: Step) -> bool {
        let opened = block_on(open_pool(&self.io, Uuid::from_bytes([0xEE; 16]), self.backends.clone()));
        let exists = match opened {
            Ok(pool) => {
                self.pool = Some(pool);
                true
            }
            Err(OpenPoolError::Unfinished { .. } | OpenPoolError::Label { damage: Damage::Blank, .. }) => {
                false
            }
            Err(OpenPoolError::Label { damage: Damage::Checksum, .. })
                if matches!(step, Step::CreatePool | Step::DestroyPool) =>
            {
                false
            }
            Err(other) => panic!("{step:?}: {other}"),
        };
        match step {
            Step::CreatePool => exists,
            Step::DestroyPool => !exists,
            Step::Export(text) => {
                let pool = self.pool.as_ref().filter(|_| exists).expect("the pool is still there");
                pool.table().exports == text.as_bytes()
            }
            _ => {
                assert!(exists, "{step:?} lost the pool");
                let pool = self.pool.as_ref().expect("just opened");
                let there: Model =
                    pool.table().luns.iter().map(|lun| (lun.name.clone(), lun.blocks)).collect();
                if there == self.model {
                    false
                } else {
                    assert_eq!(there, self.after(step));
                    true
                }
            }
        }
    }
}

/// Runs the life with a crash at `crash_at`, and perhaps another crash while opening. Returns `true` if power failed.
fn live(units: &[u64], crash_at: u64, seed: u64) -> bool {
    let mut life = Life::new(units, seed);
    let mut rng = Rng::new(seed ^ crash_at << 32);
    life.io.crash_after(crash_at);
    let mut crashed = false;
    for &step in LIFE {
        if life.run(step) {
            life.accept(step);
            continue;
        }
        crashed = true;
        life.io.crash_after(1 + rng.below(8));
        let _ = block_on(open_pool(&life.io, Uuid::from_bytes([0xEE; 16]), life.backends.clone()));
        life.io.disarm();
        let marked = life.model.clone();
        if !life.reopen(step) {
            if !matches!(step, Step::CreatePool) {
                life.check(&marked);
            }
            assert!(life.run(step), "{step:?} fails after a crash in it");
        }
        life.accept(step);
    }
    crashed
}

fn every_step(units: &[u64]) {
    let mut crashes = 0;
    for crash_at in 1.. {
        let mut any = false;
        for seed in 0..6 {
            any |= live(units, crash_at, seed);
        }
        if !any {
            break;
        }
        crashes = crash_at;
    }
    assert!(crashes > 50, "only {crashes} steps");
}

#[test]
fn one_backend_survives_a_crash_at_every_step() {
    every_step(&[12]);
}

#[test]
fn two_backends_survive_a_crash_at_every_step() {
    every_step(&[6, 7]);
}

#[test]
fn three_backends_survive_a_crash_at_every_step() {
    every_step(&[3, 5, 4]);
}

#[test]
fn a_failed_write_freezes_until_the_pool_is_opened_again() {
    // Making a LUN of one unit on two backends takes these steps: 4 table writes, zeroing, flush, 4 more table writes.
    for step in 1..=10 {
        let backends = [backend(0, 4), backend(1, 4)];
        let (io, mut pool) = pool_on(&backends);
        io.fail_after(step);
        let result = block_on(create_lun(&io, &mut pool, new_lun("a", 16, 4096)));
        assert!(matches!(result, Err(LunError::Io { .. })), "{step}: {result:?}");
        let zeroing_failed = matches!(step, 5 | 6);
        assert_eq!(pool.frozen().is_none(), zeroing_failed, "{step}");
        let again = block_on(create_lun(&io, &mut pool, new_lun("b", 16, 4096)));
        assert_eq!(again.is_ok(), zeroing_failed, "{step}: {again:?}");
        let mut pool = block_on(open_pool(&io, pool.uuid(), backends.to_vec())).expect("opens");
        assert_eq!(pool.lun(Uuid::from_bytes([b'a'; 16])).is_some(), step > 7, "{step}");
        assert_eq!(block_on(create_lun(&io, &mut pool, new_lun("c", 16, 4096))), Ok(()));
    }
}
