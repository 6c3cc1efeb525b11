//! Fewest records first, in flight included, ties by id; the default strategy. Pure.
//!
//! A member that joins empty would get a copy of every run until it has caught up, and with it the
//! whole cluster's write load. So a member that has had twice its share of late (`Cluster` keeps
//! the count) is picked only when all its equals have had that too.

use super::{Candidate, Placement};

pub(super) struct LeastLoaded;

impl Placement for LeastLoaded {
    fn pick(&self, candidates: &[Candidate], _rng: &mut fastrand::Rng) -> usize {
        let order = |index: &usize| {
            let candidate = &candidates[*index];
            (candidate.is_ahead, candidate.load, candidate.id)
        };
        (0..candidates.len())
            .min_by_key(order)
            .expect("candidates are never empty")
    }
}
