//! Block contents that can be checked: one number determines all bytes of a block.

/// This number is odd, so all words of a block differ.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills `block` with the bytes that belong to `seed`.
pub fn fill(block: &mut [u8], seed: u64) {
    let mut value = mixed(seed);
    for word in block.chunks_mut(8) {
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        value = value.wrapping_add(STEP);
    }
}

/// Returns whether `block` holds the bytes that belong to `seed`. The loop has no early exit, so it runs as fast as the memory
/// allows.
pub fn holds(block: &[u8], seed: u64) -> bool {
    let first = mixed(seed);
    let (words, rest) = block.as_chunks::<8>();
    let expected = |at: usize| first.wrapping_add(STEP.wrapping_mul(at as u64));
    let wrong = words
        .iter()
        .enumerate()
        .fold(0, |wrong, (at, word)| wrong | (u64::from_le_bytes(*word) ^ expected(at)));
    wrong == 0 && expected(words.len()).to_le_bytes().starts_with(rest)
}

/// Mixes a seed with the finalizer of SplitMix64. The finalizer is a bijection, so two different seeds never give the same
/// number.
fn mixed(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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

    #[test]
    fn a_length_that_is_no_multiple_of_a_word() {
        let mut block = [0; 13];
        fill(&mut block, 1);
        assert!(holds(&block, 1));
        block[12] ^= 0x80;
        assert!(!holds(&block, 1));
    }
}
