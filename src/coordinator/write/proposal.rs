//! The end of a write batch: the entry, what is settled with it, and the replies. Pure.

use super::runs::{CopyState, Outcome, Run};
use super::{Kind, Phase, WriteBatch};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::coordinator::{Effect, Settlement, refused, repeated};
use crate::error::Failure;
use crate::ids::{Revision, Token};
use crate::metadata::command::{Applied, Change, Command, Operation, OperationResult, StepResult};
use crate::metadata::once::OnceChange;
use crate::metadata::replica_sets::ReplicaSet;
use crate::metadata::transact::{self, Action, Transact};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Step, Write};

impl WriteBatch {
    /// Proposes what has its copies, and what needs none, in the order of the requests.
    pub(super) fn propose(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        // The payloads were handed to the stores; keys move into the entry.
        let steps = std::mem::take(&mut self.steps);
        let mut proposed = Vec::with_capacity(steps.len());
        let mut run = 0;
        let mut set = 0;
        for (position, step) in steps.into_iter().enumerate() {
            let (key, payload, options) = match step {
                Step::Write(Write::Set {
                    key,
                    payload,
                    options,
                }) => (key, payload, options),
                other => {
                    if let Step::Get(key) = &other {
                        self.read_keys.push(key.clone());
                    }
                    proposed.push(without_copies(other));
                    continue;
                }
            };
            while self.runs[run].sets.end <= set {
                run += 1;
            }
            match &self.runs[run].outcome {
                Outcome::Placed(replicas) => proposed.push(transact::Step {
                    token: options.token,
                    condition: options.condition,
                    ttl_ms: options.ttl_ms,
                    action: Action::Write(Operation::Set {
                        key,
                        revision: self.revisions.at(set as u64),
                        replicas: *replicas,
                        length: u32::try_from(payload.len()).expect("a payload fits a frame"),
                    }),
                }),
                Outcome::Failed(failure) => {
                    self.replies[position] = Some(Reply::Failed(failure.clone()));
                }
                Outcome::Open => unreachable!("proposed with an open run"),
            }
            set += 1;
        }
        if let Some(failure) = self.failure_of_the_whole() {
            let settlement = self.settlement(|_| None);
            self.settle(settlement, effects);
            self.fail_rest(&failure, effects);
            return;
        }
        let settlement = self.settlement(|run| match &run.outcome {
            Outcome::Placed(replicas) => Some(*replicas),
            Outcome::Failed(_) | Outcome::Open => None,
        });
        if proposed.is_empty() {
            self.settle(settlement, effects);
            self.finish(effects);
            return;
        }
        let tag = self.tags.next();
        self.phase = Phase::Proposed {
            tag,
            deadline: now + self.limits.write_timeout,
        };
        let command = Command {
            term: self.revisions.first.term(),
            change: self.change(proposed),
        };
        effects.push(Effect::Propose {
            tag,
            command,
            settlement,
            reads: !self.read_keys.is_empty(),
        });
    }

    /// The change in its shortest form.
    fn change(&mut self, steps: Vec<transact::Step>) -> Change {
        let (is_atomic, token) = match &mut self.kind {
            Kind::Part { token } => {
                let (operations, _) = plain(steps);
                return match token.take() {
                    Some(token) => self
                        .limits
                        .once(OnceChange::WritePart { token, operations }),
                    None => Change::Write(operations),
                };
            }
            Kind::Transaction {
                is_atomic, token, ..
            } => (*is_atomic, token.take()),
            Kind::Each if steps.iter().all(is_plain) => {
                let (operations, tokens) = plain(steps);
                return match tokens.is_empty() {
                    true => Change::Write(operations),
                    false => self.limits.once(OnceChange::Write { tokens, operations }),
                };
            }
            Kind::Each => (false, None),
        };
        Change::Transact(Transact {
            now_ms: 0,
            window_ms: self.limits.window_ms(),
            is_atomic,
            token,
            steps,
        })
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

    pub(super) fn applied(
        &mut self,
        applied: Applied,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        let results: Vec<StepResult> = match applied {
            Applied::Write { results, .. } => results.into_iter().map(StepResult::Done).collect(),
            Applied::Transacted { results, .. } => results,
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
            | Applied::NameHeld { .. }
            | Applied::Retired
            | Applied::Expired { .. }
            | Applied::Set => unreachable!("a write is applied as a write"),
        };
        if let Some(failure) = self.refusal_of_the_whole(&results) {
            self.fail_rest(&failure, effects);
            return;
        }
        let mut got = Vec::new();
        let mut results = results.into_iter();
        let mut keys = std::mem::take(&mut self.read_keys).into_iter();
        let mut set_positions = self.sets.iter().enumerate().peekable();
        for (position, reply) in self.replies.iter_mut().enumerate() {
            let revision = match set_positions.next_if(|(_, at)| **at == position) {
                Some((set, _)) => Some(self.revisions.at(set as u64)),
                None => None,
            };
            if reply.is_some() {
                continue;
            }
            match results.next().expect("one result for each step") {
                StepResult::Done(result) => *reply = Some(reply_to(result, revision)),
                StepResult::Got(entry) => {
                    got.push((position, keys.next().expect("a key for each read"), entry));
                }
            }
        }
        assert!(results.next().is_none(), "one result for each step");
        self.read(got, now, cluster, effects);
    }

    /// Why apply passed over a whole transaction, if it was for no condition of its steps.
    fn refusal_of_the_whole(&self, results: &[StepResult]) -> Option<Failure> {
        if !self.kind.is_whole() {
            return None;
        }
        results.iter().find_map(|result| match result {
            StepResult::Done(OperationResult::Refused(refusal)) => Some(refused(*refusal)),
            // A member was retired meanwhile: nothing changed, and others will take it.
            StepResult::Done(OperationResult::UnknownMember) => Some(Failure::Busy),
            StepResult::Done(_) | StepResult::Got(_) => None,
        })
    }
}

/// `revision` is that of a SET.
fn reply_to(result: OperationResult, revision: Option<Revision>) -> Reply {
    match (result, revision) {
        (OperationResult::Stored { created }, Some(revision)) => {
            Reply::Stored { revision, created }
        }
        (OperationResult::Deleted, None) => Reply::Deleted,
        (OperationResult::NotFound, None) => Reply::NotFound,
        (OperationResult::ExpirySet, None) => Reply::ExpirySet,
        (OperationResult::Mismatch { revision }, _) => Reply::Mismatch { revision },
        (OperationResult::NotApplied { position }, _) => {
            Reply::Failed(Failure::NotApplied { position })
        }
        // A member was retired meanwhile: nothing changed, and others will take it.
        (OperationResult::UnknownMember, Some(_)) => Reply::Failed(Failure::Busy),
        (OperationResult::Repeated(outcome), _) => repeated(outcome),
        // The bulk write that this is a part of tells ids, and no revisions.
        (OperationResult::StoredBefore, Some(revision)) => Reply::Stored {
            revision,
            created: true,
        },
        (OperationResult::Refused(refusal), _) => Reply::Failed(refused(refusal)),
        (result, _) => unreachable!("operation answered by {result:?}"),
    }
}

/// A step of the entry that has no copies.
fn without_copies(step: Step) -> transact::Step {
    let (token, condition, ttl_ms, action) = match step {
        Step::Write(Write::Delete {
            key,
            token,
            condition,
        }) => {
            let action = Action::Write(Operation::Delete { key });
            (token, condition, None, action)
        }
        Step::Write(Write::Expire { key, token, ttl_ms }) => {
            (token, None, ttl_ms, Action::Expire(key))
        }
        Step::Get(key) => (None, None, None, Action::Get(key)),
        Step::Write(Write::Set { .. }) => unreachable!("a SET has copies"),
    };
    transact::Step {
        token,
        condition,
        ttl_ms,
        action,
    }
}

/// Whether it is a SET or DEL and no more.
fn is_plain(step: &transact::Step) -> bool {
    let is_write = matches!(step.action, Action::Write(_));
    is_write && step.condition.is_none() && step.ttl_ms.is_none()
}

/// The operations of plain steps, and the tokens of those that have one.
fn plain(steps: Vec<transact::Step>) -> (Vec<Operation>, Vec<(u32, Token)>) {
    let mut operations = Vec::with_capacity(steps.len());
    let mut tokens = Vec::new();
    for step in steps {
        tokens.extend(step.token.map(|token| (operations.len() as u32, token)));
        match step.action {
            Action::Write(operation) => operations.push(operation),
            Action::Expire(_) | Action::Get(_) => unreachable!("a plain step is a write"),
        }
    }
    (operations, tokens)
}
