//! All chance of a run: one seed decides every draw.
//!
//! Written out here (xoshiro256**, seeded by splitmix64) rather than taken from a crate, because a
//! seed that fails today must fail in the same way after every update of every dependency.

/// A source of draws.
#[derive(Debug, Clone)]
pub(super) struct Dice {
    state: [u64; 4],
}

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        let mut x = seed;
        Dice {
            state: std::array::from_fn(|_| {
                x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let z = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                z ^ (z >> 31)
            }),
        }
    }

    pub(super) fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `n`, which is not 0. The bias of the shortcut is far below what a run can show.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// A number of `from..=to`.
    pub(super) fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from + 1)
    }

    /// True in `percent` of 100 draws.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent as usize
    }

    /// One of several.
    pub(super) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// The place of one weight, drawn in proportion to it. At least one is not 0.
    pub(super) fn weighted(&mut self, weights: &[u32]) -> usize {
        let sum: u32 = weights.iter().sum();
        let mut left = self.below(sum as usize) as u32;
        for (place, weight) in weights.iter().enumerate() {
            if left < *weight {
                return place;
            }
            left -= weight;
        }
        weights.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_forever() {
        let mut dice = Dice::new(42);
        let drawn: Vec<usize> = (0..8).map(|_| dice.below(1000)).collect();
        assert_eq!(drawn, [83, 378, 680, 924, 991, 769, 719, 850]);
    }

    #[test]
    fn weights_of_0_are_never_drawn() {
        let mut dice = Dice::new(1);
        for _ in 0..1000 {
            assert_ne!(dice.weighted(&[3, 0, 5]), 1);
        }
    }
}
