//! Arenas for simulated cores, and crashes of machines that still hold blocks.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU16, Ordering};
use trefoil_poll::lost::{self, MAX_HOMES};
use trefoil_poll::{Arena, ArenaId};
use trefoil_sys::region::Region;

static NEXT_HOME: AtomicU16 = AtomicU16::new(0);

thread_local! {
    /// Arena numbers that this thread has used and can use again.
    static HOMES: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}

/// Returns an arena number that no other thread uses. Callers give the number back with [`release_home`].
///
/// # Panics
/// If more than 256 numbers are in use in the process.
pub fn claim_home() -> u16 {
    let home = HOMES.with_borrow_mut(Vec::pop).unwrap_or_else(|| NEXT_HOME.fetch_add(1, Ordering::Relaxed));
    assert!(usize::from(home) < MAX_HOMES, "more than {MAX_HOMES} simulated cores at once");
    lost::open(home);
    while lost::take(home).is_some() {}
    home
}

/// Gives a number back. Nothing of the number's arena may be left.
pub fn release_home(home: u16) {
    HOMES.with_borrow_mut(|homes| homes.push(home));
}

/// Returns a fresh arena of `len_bytes` (rounded up to 2 MiB) with the number `home`.
///
/// # Panics
/// If the system has no memory.
pub fn arena(home: u16, len_bytes: usize) -> Arena {
    Arena::new(ArenaId(home), Region::anonymous(len_bytes).expect("memory for a simulated core"))
}

/// Drops a machine at once, as kill -9 does, with all blocks and requests that it holds.
///
/// In a debug build, dropping a token panics if its thread is not already panicking. Only a crash drops tokens on purpose. So
/// this function drops the machine during an unwinding, and catches the unwinding.
pub fn crash_drop<T>(machine: T) {
    if std::thread::panicking() {
        drop(machine);
        return;
    }
    let outcome = catch_unwind(AssertUnwindSafe(move || {
        let _dropped_by_unwinding = machine;
        resume_unwind(Box::new(Crashed));
    }));
    if let Err(payload) = outcome
        && !payload.is::<Crashed>()
    {
        resume_unwind(payload);
    }
}

struct Crashed;

/// Drops machines as [`crash_drop`] does. Then returns to each arena the blocks that other machines held, and drops the arenas
/// last.
pub(crate) fn crash_machines<H>(machines: Vec<H>, into_arena: fn(H) -> Option<Arena>) {
    crash_drop(Fall { machines, into_arena });
}

struct Fall<H> {
    machines: Vec<H>,
    into_arena: fn(H) -> Option<Arena>,
}

impl<H> Drop for Fall<H> {
    fn drop(&mut self) {
        let arenas: Vec<_> = self.machines.drain(..).filter_map(self.into_arena).collect();
        for mut arena in arenas {
            while arena.repair_next().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_may_drop_blocks_and_the_arena_gets_them_back() {
        let home = claim_home();
        let mut arena = arena(home, 2 << 20);
        let held = arena.alloc(4096).expect("room");
        crash_drop(held);
        while arena.repair_next().is_some() {}
        assert_eq!(arena.free_bytes(), arena.capacity_bytes());
        drop(arena);
        release_home(home);
    }
}
