//! Tests of whole seeds. A seed always tells the same story. Seeds pass. With each frontend, the simulator finds a set of
//! mutations.

use trefoil_sim::mutation;
use trefoil_sim::run::{Frontend, Setting, run_seed};

fn setting(seed: u64) -> Setting {
    let frontend = if seed.is_multiple_of(2) { Frontend::Direct } else { Frontend::NvmeTcp };
    Setting { seed, frontend, operations: 1500, told: false, mutation: None }
}

#[test]
fn a_seed_always_tells_the_same_story_told_or_not() {
    for seed in 0..4 {
        let silent = run_seed(setting(seed));
        let told = run_seed(Setting { told: true, ..setting(seed) });
        assert_eq!(silent.hash, told.hash, "seed {seed}");
        assert!(silent.story.is_empty() && told.story.len() > 1500);
    }
    assert_ne!(run_seed(setting(1)).hash, run_seed(setting(3)).hash);
}

#[test]
fn seeds_pass() {
    for seed in 100..130 {
        assert_eq!(run_seed(setting(seed)).violation, None, "seed {seed}");
    }
}

#[test]
fn mutations_of_every_frontend_are_found() {
    for frontend in [Frontend::Direct, Frontend::NvmeTcp] {
        for name in
            ["lost-flush", "lost-fua", "lost-write", "stale-retry", "reused-extent", "skipped-zeroing"]
        {
            let mutation = mutation::ALL.iter().find(|m| m.name == name).copied();
            assert!(mutation.is_some(), "{name} is gone");
            let found = (0..20).any(|seed| {
                let setting = Setting { frontend, operations: 4000, mutation, ..setting(seed) };
                run_seed(setting).violation.is_some()
            });
            assert!(found, "{name} went unseen with {frontend:?}");
        }
    }
}
