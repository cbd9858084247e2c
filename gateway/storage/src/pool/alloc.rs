//! Chooses the units for a LUN. A unit is free if no LUN has it; there is no other record of free units.

use super::table::{Run, Table};

/// Finds `units` free units on members whose block size is at most `block_bytes`. First takes the free units that
/// directly follow `last`. Then takes the smallest free run that holds all remaining units. If no run is large enough,
/// takes the largest runs first.
///
/// # Errors
/// The number of free units, if it is less than `units`.
pub(super) fn allocate(
    table: &Table,
    block_bytes: u32,
    units: u64,
    last: Option<Run>,
) -> Result<Vec<Run>, u64> {
    let mut free = free_runs(table);
    free.retain(|run| table.members.get(run.member as usize).is_some_and(|m| m.block_bytes <= block_bytes));
    let there: u64 = free.iter().map(|run| u64::from(run.units)).sum();
    if there < units {
        return Err(there);
    }
    let (mut left, mut taken) = (units, Vec::new());
    if let Some(last) = last {
        let follows = |run: &Run| run.member == last.member && run.start == last.start + last.units;
        if let Some(at) = free.iter().position(follows) {
            take(free.remove(at), &mut left, &mut taken);
        }
    }
    let fitting = free.iter().filter(|run| u64::from(run.units) >= left);
    if left > 0
        && let Some(best) = fitting.min_by_key(|run| run.units)
    {
        take(*best, &mut left, &mut taken);
    }
    free.sort_by_key(|run| std::cmp::Reverse(run.units));
    for run in free {
        if left > 0 {
            take(run, &mut left, &mut taken);
        }
    }
    Ok(taken)
}

/// Takes up to `left` units from the front of `run`.
fn take(run: Run, left: &mut u64, taken: &mut Vec<Run>) {
    let units = u64::from(run.units).min(*left) as u32;
    *left -= u64::from(units);
    if units > 0 {
        taken.push(Run { units, ..run });
    }
}

/// Returns the units that no LUN has, in order.
fn free_runs(table: &Table) -> Vec<Run> {
    let mut used: Vec<Run> = table.luns.iter().flat_map(|lun| &lun.runs).copied().collect();
    used.sort_unstable_by_key(|run| (run.member, run.start));
    let mut free = Vec::new();
    for (member, entry) in (0..).zip(&table.members) {
        let mut start = 0;
        let end = Run { member, start: entry.units, units: 0 };
        for run in used.iter().filter(|run| run.member == member).chain([&end]) {
            if run.start > start {
                free.push(Run { member, start, units: run.start - start });
            }
            start = run.start + run.units;
        }
    }
    free
}
