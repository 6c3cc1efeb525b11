//! Runs: consecutive messages of a write batch that share their members and their fate. Pure.

use std::ops::Range;

use crate::cluster::Cluster;
use crate::error::Failure;
use crate::ids::MemberId;
use crate::metadata::replica_sets::ReplicaSet;
use crate::rpc::message::StoreResult;

/// Consecutive SETs that share their members.
#[derive(Debug)]
pub(super) struct Run {
    /// Positions in `sets`, and in the revisions.
    pub(super) sets: Range<usize>,
    /// Payload bytes in all.
    pub(super) bytes: u64,
    /// Every member that was asked, in that order, each at most once.
    pub(super) copies: Vec<Copy>,
    /// Decided once.
    pub(super) outcome: Outcome,
}

/// A run on one member.
#[derive(Debug)]
pub(super) struct Copy {
    /// Who was asked.
    pub(super) member: MemberId,
    /// What is known of it.
    pub(super) state: CopyState,
    /// It had no space for the run, or for a part of it.
    pub(super) is_full: bool,
}

/// What is known of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyState {
    /// Not answered, and not late.
    Asked,
    /// Not answered, and late: another member is asked.
    Late,
    /// Acknowledged whole.
    Stored,
    /// Certainly nothing there.
    Absent,
    /// Some of it may be there; it does not count.
    Unsure,
}

/// What becomes of a run.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Copies are collected.
    Open,
    /// It goes into the entry with this set.
    Placed(ReplicaSet),
    /// Its requests fail and are left out.
    Failed(Failure),
}

impl Run {
    pub(super) fn count(&self, state: CopyState) -> usize {
        self.copies.iter().filter(|c| c.state == state).count()
    }

    pub(super) fn members(&self) -> Vec<MemberId> {
        self.copies.iter().map(|copy| copy.member).collect()
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.outcome, Outcome::Open)
    }

    /// The answer of one member; it can only come once.
    pub(super) fn answered(&mut self, member: MemberId, state: CopyState) {
        for copy in &mut self.copies {
            if copy.member == member {
                copy.state = state;
            }
        }
    }

    /// It answered that it has no space.
    pub(super) fn refused_full(&mut self, member: MemberId) {
        for copy in &mut self.copies {
            copy.is_full |= copy.member == member;
        }
    }

    /// Why it does not have its copies: what would have to be mended for it to have them. Members
    /// without space are the reason if, with space, they would have been enough.
    pub(super) fn shortage(&self, need: usize) -> Failure {
        let have = self.count(CopyState::Stored);
        let full = self.copies.iter().filter(|copy| copy.is_full).count();
        match full > 0 && have + full >= need {
            true => Failure::NoSpace { have, need },
            false => Failure::NotEnoughMembers { have, need },
        }
    }

    /// The first `tolerance` members that stored it.
    pub(super) fn replica_set(&self, tolerance: usize) -> ReplicaSet {
        let stored: Vec<MemberId> = self
            .copies
            .iter()
            .filter(|copy| copy.state == CopyState::Stored)
            .map(|copy| copy.member)
            .take(tolerance)
            .collect();
        assert_eq!(stored.len(), tolerance, "a set without all its copies (A1)");
        ReplicaSet::new(&stored).expect("no member is asked twice for a run (A2)")
    }

    /// Connected members that were not asked: no room in flight, or they came meanwhile.
    pub(super) fn untried(&self, cluster: &Cluster) -> usize {
        let is_connected = |copy: &&Copy| {
            let member = cluster.member(copy.member);
            member.is_some_and(|member| !member.is_retired && member.liveness.is_connected())
        };
        let asked = self.copies.iter().filter(is_connected).count();
        cluster.connected_count().saturating_sub(asked)
    }
}

impl CopyState {
    /// What the results for the records of a run say of its copy.
    pub(super) fn of(results: &[StoreResult]) -> CopyState {
        let stored = results.iter().filter(|r| **r == StoreResult::Stored);
        match stored.count() {
            0 => CopyState::Absent,
            all if all == results.len() => CopyState::Stored,
            _ => CopyState::Unsure,
        }
    }
}
