//! The end of a write batch: the entry, what is settled with it, and the replies. Pure.

use super::runs::{CopyState, Outcome, Run};
use super::{Phase, WriteBatch};
use crate::clock::Instant;
use crate::coordinator::{Effect, Settlement, refused, repeated};
use crate::error::Failure;
use crate::metadata::command::{Applied, Change, Command, Operation, OperationResult};
use crate::metadata::once::OnceChange;
use crate::metadata::replica_sets::ReplicaSet;
use crate::protocol::reply::Reply;
use crate::protocol::request::Write;

impl WriteBatch {
    /// Proposes what has its copies, and the deletes, in the order of the requests.
    pub(super) fn propose(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let mut operations = Vec::with_capacity(self.writes.len());
        let mut tokens = Vec::new();
        let mut run = 0;
        let mut set = 0;
        // The payloads were handed to the stores; keys move into the entry.
        for (position, write) in std::mem::take(&mut self.writes).into_iter().enumerate() {
            let at = operations.len() as u32;
            let (key, payload, token) = match write {
                Write::Delete { key, token } => {
                    operations.push(Operation::Delete { key });
                    tokens.extend(token.map(|token| (at, token)));
                    continue;
                }
                Write::Set {
                    key,
                    payload,
                    token,
                } => (key, payload, token),
            };
            while self.runs[run].sets.end <= set {
                run += 1;
            }
            match &self.runs[run].outcome {
                Outcome::Placed(replicas) => {
                    operations.push(Operation::Set {
                        key,
                        revision: self.revisions.at(set as u64),
                        replicas: *replicas,
                        length: u32::try_from(payload.len()).expect("a payload fits a frame"),
                    });
                    tokens.extend(token.map(|token| (at, token)));
                }
                Outcome::Failed(failure) => {
                    self.replies[position] = Some(Reply::Failed(failure.clone()));
                }
                Outcome::Open => unreachable!("proposed with an open run"),
            }
            set += 1;
        }
        let settlement = self.settlement(|run| match &run.outcome {
            Outcome::Placed(replicas) => Some(*replicas),
            Outcome::Failed(_) | Outcome::Open => None,
        });
        if operations.is_empty() {
            self.settle(settlement, effects);
            self.finish(effects);
            return;
        }
        let change = match self.bulk_token.take() {
            Some(token) => self
                .limits
                .once(OnceChange::WritePart { token, operations }),
            None if tokens.is_empty() => Change::Write(operations),
            None => self.limits.once(OnceChange::Write { tokens, operations }),
        };
        let tag = self.tags.next();
        self.phase = Phase::Proposed {
            tag,
            deadline: now + self.limits.write_timeout,
        };
        effects.push(Effect::Propose {
            tag,
            command: Command {
                term: self.revisions.first.term(),
                change,
            },
            settlement,
        });
    }

    /// All revisions, and every copy that may exist outside of what `kept` says of its run.
    pub(super) fn settlement(&self, kept: impl Fn(&Run) -> Option<ReplicaSet>) -> Settlement {
        let mut given_up = Vec::new();
        for run in &self.runs {
            let kept = kept(run);
            for copy in &run.copies {
                let is_kept = kept.is_some_and(|set| set.contains(copy.member));
                if copy.state != CopyState::Absent && !is_kept {
                    let revisions = run.sets.clone().map(|set| self.revisions.at(set as u64));
                    given_up.extend(revisions.map(|revision| (revision, copy.member)));
                }
            }
        }
        Settlement {
            closed: self.revisions,
            given_up,
        }
    }

    pub(super) fn settle(&self, settlement: Settlement, effects: &mut Vec<Effect>) {
        if settlement.closed.count > 0 {
            effects.push(Effect::Settle(settlement));
        }
    }

    pub(super) fn applied(&mut self, applied: Applied, effects: &mut Vec<Effect>) {
        let results = match applied {
            Applied::Write { results, .. } => results,
            Applied::WrongTerm => {
                self.fail_rest(&Failure::NotLeader { leader: None }, effects);
                return;
            }
            Applied::Reserved { .. }
            | Applied::IdsExhausted
            | Applied::Repeated(_)
            | Applied::Resumed { .. }
            | Applied::Refused(_)
            | Applied::Registered { .. }
            | Applied::StaleIncarnation { .. }
            | Applied::Retired
            | Applied::Set => unreachable!("a write is applied as a write"),
        };
        let mut results = results.into_iter();
        let mut set_positions = self.sets.iter().enumerate().peekable();
        for (position, reply) in self.replies.iter_mut().enumerate() {
            let revision = match set_positions.next_if(|(_, at)| **at == position) {
                Some((set, _)) => Some(self.revisions.at(set as u64)),
                None => None,
            };
            if reply.is_some() {
                continue;
            }
            let result = results.next().expect("one result for each operation");
            *reply = Some(match (result, revision) {
                (OperationResult::Stored, Some(revision)) => Reply::Stored { revision },
                (OperationResult::Deleted, None) => Reply::Deleted,
                (OperationResult::NotFound, None) => Reply::NotFound,
                // A member was retired meanwhile: nothing changed, and others will take it.
                (OperationResult::UnknownMember, Some(_)) => Reply::Failed(Failure::Busy),
                (OperationResult::Repeated(outcome), _) => repeated(outcome),
                // The bulk write that this is a part of tells ids, and no revisions.
                (OperationResult::StoredBefore, Some(revision)) => Reply::Stored { revision },
                (OperationResult::Refused(refusal), _) => Reply::Failed(refused(refusal)),
                (result, _) => unreachable!("operation answered by {result:?}"),
            });
        }
        assert!(results.next().is_none(), "one result for each operation");
        self.finish(effects);
    }
}
