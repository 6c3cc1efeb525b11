//! Which members take the copies of a run of messages: the rule that every strategy obeys. Pure.
//!
//! The rule is applied here, so that no strategy can break it: each copy goes to another member,
//! never to an excluded one, among the fittest ones (`Fitness`) to a zone that has the fewest
//! copies of this run so far. What remains are equals, and the strategy picks one of them. A member
//! without a zone label is a zone of its own.
//!
//! One choice looks at each member once and at each candidate once more for each copy: some
//! microseconds with 300 members, for a run of up to 32 messages.

mod least_loaded;
mod p2c;

use crate::cluster::liveness::Fitness;
pub use crate::config::leader::Strategy;
use crate::ids::MemberId;

/// A member that may take a copy: connected, not excluded, with room in flight.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Who it is.
    pub id: MemberId,
    /// How good a choice it is.
    pub fitness: Fitness,
    /// Its zone as a small number, `None` without a label.
    pub zone: Option<u32>,
    /// Records held and in flight.
    pub load: u64,
    /// It has had twice its share of late.
    pub is_ahead: bool,
}

/// Picks among equals.
pub trait Placement {
    /// The index of the picked one; `candidates` is never empty and ascends by id.
    fn pick(&self, candidates: &[Candidate], rng: &mut fastrand::Rng) -> usize;
}

impl Strategy {
    fn placement(self) -> &'static dyn Placement {
        match self {
            Strategy::LeastLoaded => &least_loaded::LeastLoaded,
            Strategy::P2c => &p2c::P2c,
        }
    }
}

/// Up to `copies` distinct members, best first. `candidates` ascend by id; `used_zones` are the
/// zones of copies that the run has already, one entry for each.
pub fn choose(
    strategy: Strategy,
    copies: usize,
    mut candidates: Vec<Candidate>,
    mut used_zones: Vec<u32>,
    rng: &mut fastrand::Rng,
) -> Vec<MemberId> {
    debug_assert!(candidates.is_sorted_by_key(|candidate| candidate.id));
    let mut chosen = Vec::with_capacity(copies);
    let mut equals = Vec::with_capacity(candidates.len());
    while chosen.len() < copies {
        let rank = |candidate: &Candidate| {
            let copies_in_zone = candidate.zone.map_or(0, |zone| {
                used_zones.iter().filter(|used| **used == zone).count()
            });
            (candidate.fitness, copies_in_zone)
        };
        let Some(best) = candidates.iter().map(rank).min() else {
            break;
        };
        equals.clear();
        equals.extend(
            candidates
                .iter()
                .filter(|candidate| rank(candidate) == best),
        );
        let picked = equals[strategy.placement().pick(&equals, rng)];
        candidates.retain(|candidate| candidate.id != picked.id);
        used_zones.extend(picked.zone);
        chosen.push(picked.id);
    }
    chosen
}
