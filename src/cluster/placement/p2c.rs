//! The better of two random choices for each copy, without replacement. Pure.
//!
//! Any member is among the two with probability 2/n, so that an empty newcomer gets at most twice
//! its share without further care. Source: Mitzenmacher, "The Power of Two Choices in Randomized
//! Load Balancing", 2001: the fullest of n is above the mean by O(log log n) choices only.

use super::{Candidate, Placement};

pub(super) struct P2c;

impl Placement for P2c {
    fn pick(&self, candidates: &[Candidate], rng: &mut fastrand::Rng) -> usize {
        let first = rng.usize(..candidates.len());
        if candidates.len() == 1 {
            return first;
        }
        // Any but the first: one less to draw from, and the first's place is skipped.
        let mut second = rng.usize(..candidates.len() - 1);
        second += usize::from(second >= first);
        let order = |index: usize| (candidates[index].load, candidates[index].id);
        if order(first) <= order(second) {
            first
        } else {
            second
        }
    }
}
