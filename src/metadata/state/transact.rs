//! Conditions, batches of reads and writes, and expiry, decided in `apply` (R1, R3). Pure.
//!
//! **A step** sees what the steps before it in its entry did. Its condition is compared with the
//! message as it is then; where it does not hold, nothing changes and the record that the step
//! would name is released. What was decided is remembered with its token, a mismatch too.
//!
//! **All or nothing**: first every step is looked at with the effects of those before it in mind,
//! and if one of them cannot be done, none is.
//!
//! **A token of the whole** remembers what became of each step. A repeat, which has as many steps,
//! changes nothing and is told the same; what it reads is read anew. Where a step cannot be decided
//! for good, as it names a member that has gone, nothing is done, all or nothing or not: else the
//! others would take effect once more with the repeat.
//!
//! **Expiry.** A time to live counts from the entry that set it, by the state's clock: the highest
//! time of any command, so it never goes back ([`crate::metadata::tokens`]). A message is there
//! until an entry of kind *expire* takes it away, as a DEL would: until then it is read, after it
//! nobody reads it again, whatever the clocks of the leaders. Such an entry names no keys: which
//! messages are due follows from the state, so one that was stored anew or given a longer life
//! meanwhile is not. It takes [`EXPIRED_MAX`] at most; the leader proposes another for the rest.
//!
//! Memory: some 200 bytes and twice the key for each message that expires.

use std::collections::BTreeMap;
use std::slice;

use super::once::outcome_of;
use super::writes::WriteOutcome;
use super::{Shards, State};
use crate::faults::{self, Fault};
use crate::ids::{Key, Revision, Token};
use crate::metadata::command::{Applied, Change, Operation, OperationResult, StepResult};
use crate::metadata::message_index::shard_of;
use crate::metadata::once::TokenRefusal;
use crate::metadata::replica_sets::ReplicaSet;
use crate::metadata::tokens::{Outcome, Use};
use crate::metadata::transact::{Action, Step, Transact};
use crate::protocol::request::Condition;

/// The most messages that one entry lets expire: as many as a batch changes.
pub const EXPIRED_MAX: usize = 4096;

impl<S: Shards> State<S> {
    pub(super) fn transact(&mut self, transact: &Transact) -> Applied {
        self.tokens.advance(transact.now_ms, transact.room());
        let mut outcome = WriteOutcome::with_capacity(transact.steps.len());
        let steps = &transact.steps;
        let results = match transact.token.as_ref().map(|token| self.tokens.find(token)) {
            Some(Some(Use::Transaction(first))) if are_those(steps, first) => {
                let first = first.clone();
                self.repeat(steps, &first, &mut outcome)
            }
            Some(Some(_)) => refuse(steps, TokenRefusal::Used, &mut outcome),
            Some(None) if !self.tokens.has_room_for(steps.len()) => {
                refuse(steps, TokenRefusal::TooMany, &mut outcome)
            }
            Some(None) | None => self.run_steps(transact, &mut outcome),
        };
        let released = self.end_outcome(outcome).1;
        Applied::Transacted { results, released }
    }

    fn run_steps(&mut self, transact: &Transact, outcome: &mut WriteOutcome) -> Vec<StepResult> {
        let steps = &transact.steps;
        // A token remembers what was decided of every step, so all of them must be decided.
        let obstacle = match (transact.is_atomic, &transact.token) {
            (true, _) => self.obstacle(steps),
            (false, Some(_)) => self.lost_member(steps),
            (false, None) => None,
        };
        let mut results = Vec::with_capacity(steps.len());
        for (position, step) in steps.iter().enumerate() {
            results.push(match obstacle {
                Some((at, why)) => {
                    let result = match at == position {
                        true => why,
                        false => OperationResult::NotApplied { position: at },
                    };
                    if faults::has(Fault::RefusedTransactionInPart) && position < at {
                        self.step(step, outcome);
                    } else {
                        outcome.pass_over(step_operations(step), result);
                    }
                    StepResult::Done(result)
                }
                None => match &step.token {
                    Some(token) => {
                        StepResult::Done(self.step_once(step, token, transact.window_ms, outcome))
                    }
                    None => self.step(step, outcome),
                },
            });
        }
        if let Some(token) = &transact.token
            && !faults::has(Fault::TransactionTokenForgotten)
        {
            let mut outcomes = steps.iter().zip(&results).map(step_outcome);
            if let Some(outcomes) = outcomes.by_ref().collect() {
                let used = Use::Transaction(outcomes);
                self.tokens.remember(token, used, transact.window_ms);
            }
        }
        results
    }

    /// The first step that cannot be done if all before it were, and why.
    fn obstacle(&self, steps: &[Step]) -> Option<(usize, OperationResult)> {
        let mut changed: BTreeMap<&Key, Option<Revision>> = BTreeMap::new();
        for (position, step) in steps.iter().enumerate() {
            let key = step.key();
            let revision = match changed.get(key) {
                Some(revision) => *revision,
                None => self.revision_of(key),
            };
            if !holds(step.condition, revision) {
                return Some((position, OperationResult::Mismatch { revision }));
            }
            match &step.action {
                Action::Write(Operation::Set {
                    revision, replicas, ..
                }) => {
                    if !self.are_active(replicas) {
                        return Some((position, OperationResult::UnknownMember));
                    }
                    changed.insert(key, Some(*revision));
                }
                Action::Write(Operation::Delete { .. }) => _ = changed.insert(key, None),
                Action::Expire(_) | Action::Get(_) => {}
            }
        }
        None
    }

    /// The first step that names a member which is not in the registry any more.
    fn lost_member(&self, steps: &[Step]) -> Option<(usize, OperationResult)> {
        let is_lost = |step: &Step| match &step.action {
            Action::Write(Operation::Set { replicas, .. }) => !self.are_active(replicas),
            Action::Write(Operation::Delete { .. }) | Action::Expire(_) | Action::Get(_) => false,
        };
        let position = steps.iter().position(is_lost)?;
        Some((position, OperationResult::UnknownMember))
    }

    /// Whether all of them are in the registry and not retired.
    pub(super) fn are_active(&self, replicas: &ReplicaSet) -> bool {
        let mut members = replicas.as_slice().iter();
        members.all(|id| self.members.is_active(*id))
    }

    fn step(&mut self, step: &Step, outcome: &mut WriteOutcome) -> StepResult {
        match &step.action {
            Action::Get(key) => StepResult::Got(self.shards.entry(key)),
            Action::Write(_) | Action::Expire(_) => StepResult::Done(self.change(step, outcome)),
        }
    }

    fn step_once(
        &mut self,
        step: &Step,
        token: &Token,
        window_ms: u64,
        outcome: &mut WriteOutcome,
    ) -> OperationResult {
        let passed_over = match self.tokens.passes_over(token) {
            Some(result) => result,
            None => {
                let result = self.change(step, outcome);
                if let Some(done) = change_outcome(step, result) {
                    self.tokens.remember(token, Use::Done(done), window_ms);
                }
                return result;
            }
        };
        outcome.pass_over(step_operations(step), passed_over);
        passed_over
    }

    /// A step that is no read.
    fn change(&mut self, step: &Step, outcome: &mut WriteOutcome) -> OperationResult {
        let key = step.key();
        if step.condition.is_some() {
            let revision = self.revision_of(key);
            if !holds(step.condition, revision) {
                let result = OperationResult::Mismatch { revision };
                outcome.pass_over(step_operations(step), result);
                return result;
            }
        }
        match &step.action {
            Action::Write(operation) => {
                self.run_all(slice::from_ref(operation), outcome);
                let result = *outcome.results.last().expect("one result an operation");
                if matches!(result, OperationResult::Stored { .. }) {
                    self.set_expiry(key, step.ttl_ms);
                }
                result
            }
            Action::Expire(_) => {
                if self.revision_of(key).is_none() {
                    return OperationResult::NotFound;
                }
                self.set_expiry(key, step.ttl_ms);
                OperationResult::ExpirySet
            }
            Action::Get(_) => unreachable!("a read changes nothing"),
        }
    }

    /// The whole was done before.
    fn repeat(
        &self,
        steps: &[Step],
        first: &[Outcome],
        outcome: &mut WriteOutcome,
    ) -> Vec<StepResult> {
        let repeated = |(step, first): (&Step, &Outcome)| match (&step.action, first) {
            (Action::Get(key), Outcome::Read) => StepResult::Got(self.shards.entry(key)),
            _ => {
                let result = OperationResult::Repeated(*first);
                outcome.pass_over(step_operations(step), result);
                StepResult::Done(result)
            }
        };
        steps.iter().zip(first).map(repeated).collect()
    }

    fn revision_of(&self, key: &Key) -> Option<Revision> {
        let shard = shard_of(key, self.shards.shard_count());
        let slot = self.shards.read_shard(shard, |shard| shard.find(key));
        slot.map(|slot| slot.revision)
    }

    /// The message, which is there, expires so long after now, or never.
    pub(super) fn set_expiry(&mut self, key: &Key, ttl_ms: Option<u64>) {
        let clock_ms = self.tokens.clock_ms();
        let expires_ms = ttl_ms.map(|ttl_ms| clock_ms.saturating_add(ttl_ms));
        let shard = shard_of(key, self.shards.shard_count());
        let before = self
            .shards
            .write_shard(shard, |shard| shard.set_expiry(key, expires_ms));
        self.forget_expiry(key, before);
        if let Some(expires_ms) = expires_ms {
            self.expiry.insert((expires_ms, key.clone()));
        }
    }

    /// The message does not expire any more at the time that its shard has given up.
    pub(super) fn forget_expiry(&mut self, key: &Key, expires_ms: Option<u64>) {
        if let Some(expires_ms) = expires_ms {
            let was_there = self.expiry.remove(&(expires_ms, key.clone()));
            assert!(was_there, "an expiry that is in its shard only");
        }
    }

    /// Messages whose time is over go.
    pub(super) fn expire(&mut self, now_ms: u64) -> Applied {
        self.tokens.advance(now_ms, 0);
        let clock_ms = self.tokens.clock_ms();
        let mut outcome = WriteOutcome::with_capacity(0);
        for _ in 0..EXPIRED_MAX {
            let key = match self.expiry.first() {
                Some((expires_ms, key)) if *expires_ms <= clock_ms => key.clone(),
                Some(_) | None => break,
            };
            self.run_all(&[Operation::Delete { key }], &mut outcome);
        }
        let (results, released) = self.end_outcome(outcome);
        Applied::Expired {
            messages: results.len() as u64,
            released,
        }
    }

    /// When the next message expires, by the clock of commands; `None` if none does.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiry.first().map(|(expires_ms, _)| *expires_ms)
    }
}

/// Forgets the conditions that hold now, as [`Fault::CompareWhenProposed`] does.
pub fn forget_met_conditions(change: &mut Change, revision: impl Fn(&Key) -> Option<Revision>) {
    if let Change::Transact(transact) = change {
        for step in &mut transact.steps {
            let is_met = holds(step.condition, revision(step.key()));
            step.condition = step.condition.filter(|_| !is_met);
        }
    }
}

/// Whether a message that was written by `revision`, or is not there, is what is demanded.
fn holds(condition: Option<Condition>, revision: Option<Revision>) -> bool {
    match condition {
        None => true,
        Some(Condition::Revision(demanded)) => revision == Some(demanded),
        Some(Condition::Absent) => revision.is_none(),
        Some(Condition::Exists) => revision.is_some(),
    }
}

/// Whether a transaction of these outcomes may have had these steps.
fn are_those(steps: &[Step], outcomes: &[Outcome]) -> bool {
    let fits = |(step, outcome): (&Step, &Outcome)| match outcome {
        Outcome::Read => matches!(step.action, Action::Get(_)),
        Outcome::NotApplied { .. } => true,
        _ => !matches!(step.action, Action::Get(_)),
    };
    steps.len() == outcomes.len() && steps.iter().zip(outcomes).all(fits)
}

/// Nothing of it is done, because of its token.
fn refuse(steps: &[Step], refusal: TokenRefusal, outcome: &mut WriteOutcome) -> Vec<StepResult> {
    let result = OperationResult::Refused(refusal);
    let refuse = |step: &Step| {
        outcome.pass_over(step_operations(step), result);
        StepResult::Done(result)
    };
    steps.iter().map(refuse).collect()
}

/// Its SET or DEL, if it is one.
fn step_operations(step: &Step) -> &[Operation] {
    match &step.action {
        Action::Write(operation) => slice::from_ref(operation),
        Action::Expire(_) | Action::Get(_) => &[],
    }
}

/// What is remembered of a step of a whole; nothing if it is to be tried again.
fn step_outcome((step, result): (&Step, &StepResult)) -> Option<Outcome> {
    match result {
        StepResult::Got(_) => Some(Outcome::Read),
        StepResult::Done(result) => change_outcome(step, *result),
    }
}

fn change_outcome(step: &Step, result: OperationResult) -> Option<Outcome> {
    match (&step.action, result) {
        (_, OperationResult::Mismatch { revision }) => Some(Outcome::Mismatch(revision)),
        (_, OperationResult::NotApplied { position }) => Some(Outcome::NotApplied {
            position: position as u32,
        }),
        (Action::Write(operation), result) => outcome_of(operation, Some(&result)),
        (Action::Expire(_), OperationResult::ExpirySet) => Some(Outcome::ExpirySet),
        (Action::Expire(_), OperationResult::NotFound) => Some(Outcome::NotFound),
        (Action::Expire(_) | Action::Get(_), _) => None,
    }
}

#[cfg(test)]
mod tests;
