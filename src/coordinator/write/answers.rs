//! What members answer to the stores of a batch of writes. Pure.

use super::runs::CopyState;
use super::{Call, Phase, WriteBatch};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::coordinator::{Answer, Effect, Tag};
use crate::error::Failure;
use crate::faults::{self, Fault};
use crate::ids::{Fence, MemberId};
use crate::rpc::message::{Refusal, StoreResult};

impl WriteBatch {
    pub(super) fn store_answered(
        &mut self,
        tag: Tag,
        answer: Answer<StoreResult>,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        let Some(call) = self.calls.remove(&tag) else {
            return;
        };
        if !matches!(self.phase, Phase::Collecting) {
            return;
        }
        let term = self.revisions.first.term();
        let states = match answer {
            Answer::Results(results) => {
                self.note_full(&call, &results);
                let is_refusal = |result: &StoreResult| {
                    matches!(result, StoreResult::DiskFull | StoreResult::Refused)
                };
                if results.iter().any(is_refusal) {
                    cluster.refused_full(call.member, now);
                }
                self.copy_states(&call, &results)
            }
            Answer::Refused(Refusal::NoSpace) => {
                cluster.refused_full(call.member, now);
                for &run in &call.runs {
                    self.runs[run].refused_full(call.member);
                }
                vec![CopyState::Absent; call.runs.len()]
            }
            Answer::Refused(Refusal::StaleFence { highest }) if highest.term > term => {
                if !highest.is_absurd_above(term) {
                    self.deposed(call.member, highest, effects);
                    return;
                }
                // The member is broken, this leader is not: another one takes its part.
                let member = call.member;
                effects.push(Effect::Deposed { member, highest });
                vec![CopyState::Absent; call.runs.len()]
            }
            Answer::Refused(_) | Answer::NotSent => vec![CopyState::Absent; call.runs.len()],
            Answer::LinkLost if faults::has(Fault::CountFailedCopy) => {
                vec![CopyState::Stored; call.runs.len()]
            }
            Answer::LinkLost => vec![CopyState::Unsure; call.runs.len()],
        };
        for (&run, state) in call.runs.iter().zip(states) {
            self.runs[run].answered(call.member, state);
        }
        self.collect(now, cluster, effects);
    }

    /// Remembers for which of its runs the member had no space.
    fn note_full(&mut self, call: &Call, results: &[StoreResult]) {
        let mut rest = results;
        for &run in &call.runs {
            let count = self.runs[run].sets.len().min(rest.len());
            let (results, others) = rest.split_at(count);
            if results.contains(&StoreResult::DiskFull) {
                self.runs[run].refused_full(call.member);
            }
            rest = others;
        }
    }

    /// What the results of a store say of each of its runs.
    fn copy_states(&self, call: &Call, results: &[StoreResult]) -> Vec<CopyState> {
        let records: usize = call.runs.iter().map(|&run| self.runs[run].sets.len()).sum();
        if results.len() != records {
            return vec![CopyState::Unsure; call.runs.len()];
        }
        let mut rest = results;
        let mut states = Vec::with_capacity(call.runs.len());
        for &run in &call.runs {
            let (results, others) = rest.split_at(self.runs[run].sets.len());
            states.push(CopyState::of(results));
            rest = others;
        }
        states
    }

    /// A member follows a later term: nothing was proposed, and nothing of this term will be.
    fn deposed(&mut self, member: MemberId, highest: Fence, effects: &mut Vec<Effect>) {
        effects.push(Effect::Deposed { member, highest });
        let settlement = self.settlement(|_| None);
        self.settle(settlement, effects);
        let above = highest.term;
        self.fail_rest(&Failure::TermOver { above }, effects);
    }
}
