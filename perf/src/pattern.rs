//! Contents that say what they are: a block's bytes follow from one number.

/// Fills `block` with the bytes of `seed`.
pub fn fill(block: &mut [u8], seed: u64) {
    let mut state = seed;
    for word in block.chunks_mut(8) {
        state = next(state);
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}

/// Whether `block` holds the bytes of `seed`.
pub fn holds(block: &[u8], seed: u64) -> bool {
    let mut state = seed;
    block.chunks(8).all(|word| {
        state = next(state);
        word == &state.to_le_bytes()[..word.len()]
    })
}

/// A linear congruential step: every word differs, and one multiplication a word keeps the client fast.
fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_its_own_seed_only() {
        let mut block = [0; 4096];
        fill(&mut block, 7);
        assert!(holds(&block, 7) && !holds(&block, 8));
        block[4095] ^= 1;
        assert!(!holds(&block, 7));
    }
}
