//! Deliberate defects. They prove that the simulator finds the kinds of defects that it was made to find.

use std::time::Duration;

use trefoil_storage::initiator::FenceRule;

use crate::run::{Mutation, Run};

/// All mutations, in the order in which they run.
pub const ALL: &[Mutation] = &[
    Mutation {
        name: "lost-flush",
        within_seeds: 20,
        apply: |run| run.each_disk(|disk| disk.defect.skip_sync = 500),
    },
    Mutation {
        name: "lost-fua",
        within_seeds: 20,
        apply: |run| run.each_disk(|disk| disk.defect.drop_durable = 500),
    },
    Mutation {
        name: "lost-write",
        within_seeds: 5,
        apply: |run| run.each_disk(|disk| disk.defect.lose_write = 5),
    },
    Mutation {
        name: "torn-write",
        within_seeds: 5,
        apply: |run| run.each_disk(|disk| disk.defect.tear_write = 5),
    },
    Mutation {
        name: "early-acknowledgement",
        within_seeds: 5,
        apply: |run| run.each_disk(|disk| disk.defect.early_ack = 5),
    },
    Mutation {
        name: "stale-retry",
        within_seeds: 20,
        apply: |run| run.each_disk(|disk| disk.defect.replay_write = 5),
    },
    Mutation {
        name: "wrong-offset-read",
        within_seeds: 5,
        apply: |run| run.each_disk(|disk| disk.defect.shift_read = 3),
    },
    Mutation {
        name: "lost-zeroes",
        within_seeds: 5,
        apply: |run| run.each_disk(|disk| disk.defect.skip_zero = 50),
    },
    Mutation {
        name: "lost-written-zeros",
        within_seeds: 60,
        apply: |run| run.each_disk(|disk| disk.defect.lose_zeros = 500),
    },
    Mutation { name: "hidden-ana", within_seeds: 60, apply: |run| run.hide_access = true },
    Mutation { name: "skipped-zeroing", within_seeds: 20, apply: Run::skip_zeroing },
    Mutation { name: "volatile-layout", within_seeds: 20, apply: Run::forget_layout },
    Mutation { name: "reused-extent", within_seeds: 20, apply: |run| run.reuse_extent = true },
    Mutation { name: "dropped-message", within_seeds: 5, apply: |run| run.world.mail_defect.lose = 20 },
    Mutation { name: "swapped-extents", within_seeds: 20, apply: |run| run.swap_extents = true },
    Mutation { name: "unchecked-digests", within_seeds: 20, apply: Run::drop_digests },
    Mutation { name: "ban-ignored", within_seeds: 20, apply: |run| run.keep_banned = true },
    Mutation { name: "double-completion", within_seeds: 20, apply: |run| run.world.link_defect.double = 5 },
    Mutation { name: "unfenced-retry", within_seeds: 60, apply: |run| run.fence = FenceRule::Immediate },
    Mutation {
        name: "reordered-mailbox",
        within_seeds: 20,
        apply: |run| run.world.mail_defect.reorder = 1000,
    },
    Mutation {
        name: "idle-discovery-stays",
        within_seeds: 20,
        apply: |run| run.discovery.timeout = Duration::from_secs(3600),
    },
    Mutation {
        name: "discovery-takes-hosts-places",
        within_seeds: 20,
        apply: |run| (run.discovery.max_ctrlrs, run.discovery.max_discovery) = (24, usize::MAX),
    },
    Mutation { name: "wrong-visibility", within_seeds: 5, apply: |run| run.show_all = true },
    // Defects of memory that a read lends or a write changes in place.
    Mutation { name: "kept-loan", within_seeds: 40, apply: |run| run.world.link_defect.keep_loan = 1000 },
    Mutation { name: "blank-loan", within_seeds: 20, apply: |run| run.world.link_defect.blank_loan = 1000 },
    Mutation { name: "lost-memory", within_seeds: 20, apply: |run| run.lose_kept = true },
    Mutation { name: "overwritten-loan", within_seeds: 20, apply: |_| {} },
    Mutation { name: "leaked-loan", within_seeds: 200, apply: |_| {} },
    Mutation { name: "early-write", within_seeds: 60, apply: |_| {} },
    Mutation { name: "impatient-write", within_seeds: 20, apply: |_| {} },
    Mutation { name: "restless-core", within_seeds: 5, apply: |_| {} },
    Mutation { name: "cancelled-others", within_seeds: 200, apply: |_| {} },
];
