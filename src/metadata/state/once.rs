//! Changes that take effect at most once for a token, decided in `apply` (R1, R3). Pure.
//!
//! **A write** with a token takes effect if the token is not live, and its outcome is remembered
//! with it; else it changes nothing and is answered by what is remembered, whatever it asks for. A
//! write that changes nothing for another reason is not remembered: its repeat tries again.
//!
//! **A bulk write** with a token is its reservation and its parts. The reservation remembers the
//! range of ids with the token. Each part names the token, and each of its messages takes effect
//! once: if its position was not stored before, and the positions are marked in the same step. The
//! entry that marks the last one turns the progress into the outcome, the reply. So:
//!
//! * Two attempts, one after the other or at the same time, in one term or in several, store each
//!   position once between them, in whichever order their entries come: the log decides.
//! * A message that was stored and then deleted, or overwritten, is not stored again: what counts
//!   is the mark, not whether the id is in use now.
//! * Whoever asks after the last position finds the reply; nobody finds it before.
//! * A leader may stop at any point: what it had committed is marked, what it had not is missing,
//!   and the next attempt is told which is which by its reservation.
//!
//! Every entry of a bulk write prolongs its token. A part whose token is not live any more, or was
//! used for other ids since, changes nothing: a repeat may have stored the same under new ids.

use std::slice;

use super::writes::WriteOutcome;
use super::{Shards, State};
use crate::ids::{Key, Token};
use crate::metadata::command::{Applied, Operation, OperationResult};
use crate::metadata::once::{Once, OnceChange, TokenRefusal};
use crate::metadata::tokens::{Outcome, Progress, Use};

impl<S: Shards> State<S> {
    pub(super) fn once(&mut self, once: &Once) -> Applied {
        self.tokens.advance(once.now_ms, once.room());
        let window_ms = once.window_ms;
        match &once.change {
            OnceChange::Write { tokens, operations } => {
                self.write_once(tokens, operations, window_ms)
            }
            OnceChange::ReserveIds { token, count } => self.reserve_once(token, *count, window_ms),
            OnceChange::WritePart { token, operations } => {
                self.write_part(token, operations, window_ms)
            }
        }
    }

    fn write_once(
        &mut self,
        tokens: &[(u32, Token)],
        operations: &[Operation],
        window_ms: u64,
    ) -> Applied {
        let mut outcome = WriteOutcome::with_capacity(operations.len());
        let mut begin = 0;
        for (position, token) in tokens {
            let position = *position as usize;
            self.run_all(&operations[begin..position], &mut outcome);
            self.run_once(token, &operations[position], window_ms, &mut outcome);
            begin = position + 1;
        }
        self.run_all(&operations[begin..], &mut outcome);
        self.end_write(outcome)
    }

    fn run_once(
        &mut self,
        token: &Token,
        operation: &Operation,
        window_ms: u64,
        outcome: &mut WriteOutcome,
    ) {
        let operations = slice::from_ref(operation);
        let passed_over = match self.tokens.passes_over(token) {
            Some(result) => result,
            None => {
                self.run_all(operations, outcome);
                if let Some(done) = outcome_of(operation, outcome.results.last()) {
                    self.tokens.remember(token, Use::Done(done), window_ms);
                }
                return;
            }
        };
        outcome.pass_over(operations, passed_over);
    }

    fn reserve_once(&mut self, token: &Token, count: u64, window_ms: u64) -> Applied {
        match self.tokens.find(token) {
            Some(Use::Done(first)) => return Applied::Repeated(*first),
            Some(Use::Bulk(progress)) if progress.count() == count => {
                let (first, stored) = (progress.first(), progress.stored().to_vec());
                let used = Use::Bulk(progress.clone());
                self.tokens.remember(token, used, window_ms);
                return Applied::Resumed { first, stored };
            }
            Some(Use::Bulk(_)) => return Applied::Refused(TokenRefusal::InUse),
            Some(Use::Transaction(_)) => return Applied::Refused(TokenRefusal::Used),
            None if !self.tokens.has_room() => return Applied::Refused(TokenRefusal::TooMany),
            None => {}
        }
        let Some(first) = self.fresh_ids(count) else {
            return Applied::IdsExhausted;
        };
        let progress = Progress::new(first, count).expect("ids that were reserved");
        self.tokens.remember(token, Use::Bulk(progress), window_ms);
        Applied::Reserved { first }
    }

    fn write_part(&mut self, token: &Token, operations: &[Operation], window_ms: u64) -> Applied {
        let mut outcome = WriteOutcome::with_capacity(operations.len());
        let Some(mut progress) = self.tokens.take_progress(token) else {
            let done = match self.tokens.find(token) {
                Some(Use::Done(Outcome::Bulk { first, last })) => Some(*first..=*last),
                Some(Use::Done(_) | Use::Bulk(_) | Use::Transaction(_)) | None => None,
            };
            for operation in operations {
                let id = id_of(operation);
                let is_done = id
                    .zip(done.as_ref())
                    .is_some_and(|(id, ids)| ids.contains(&id));
                let result = match is_done {
                    true => OperationResult::StoredBefore,
                    false => OperationResult::Refused(TokenRefusal::Expired),
                };
                outcome.pass_over(slice::from_ref(operation), result);
            }
            return self.end_write(outcome);
        };
        let mut rest = operations;
        while let Some(first) = rest.first() {
            let Some(begin) = id_of(first).and_then(|id| progress.position(id)) else {
                let result = OperationResult::Refused(TokenRefusal::Expired);
                outcome.pass_over(slice::from_ref(first), result);
                rest = &rest[1..];
                continue;
            };
            let (is_stored, end) = progress.span(begin);
            let count = consecutive(rest, (end - begin) as usize);
            let (span, others) = rest.split_at(count);
            let end = begin + count as u32;
            if is_stored {
                outcome.pass_over(span, OperationResult::StoredBefore);
            } else if progress.adds_range(begin, end) && !self.tokens.has_room_beside(&progress) {
                outcome.pass_over(span, OperationResult::Refused(TokenRefusal::TooMany));
            } else {
                self.run_all(span, &mut outcome);
                if matches!(outcome.results.last(), Some(OperationResult::Stored { .. })) {
                    progress.store(begin, end);
                }
            }
            rest = others;
        }
        let used = match progress.is_complete() {
            true => Use::Done(progress.outcome()),
            false => Use::Bulk(progress),
        };
        self.tokens.remember(token, used, window_ms);
        self.end_write(outcome)
    }
}

/// What is remembered of an operation; nothing if it had no effect.
pub(super) fn outcome_of(
    operation: &Operation,
    result: Option<&OperationResult>,
) -> Option<Outcome> {
    match (operation, result?) {
        (Operation::Set { revision, .. }, OperationResult::Stored { created }) => {
            Some(Outcome::Stored {
                revision: *revision,
                created: *created,
            })
        }
        (Operation::Delete { .. }, OperationResult::Deleted) => Some(Outcome::Deleted),
        (Operation::Delete { .. }, OperationResult::NotFound) => Some(Outcome::NotFound),
        _ => None,
    }
}

/// The message id of a SET.
fn id_of(operation: &Operation) -> Option<u64> {
    match operation {
        Operation::Set {
            key: Key::Id(id), ..
        } => Some(*id),
        Operation::Set {
            key: Key::Word(_), ..
        }
        | Operation::Delete { .. } => None,
    }
}

/// How many of the first `max` operations, one at least, are SETs of consecutive ids that share
/// their members, and so their fate.
fn consecutive(operations: &[Operation], max: usize) -> usize {
    let follows = |pair: &[Operation]| {
        let next = id_of(&pair[0]).and_then(|id| id.checked_add(1));
        pair[0].is_of_run(&pair[1]) && id_of(&pair[1]) == next
    };
    let first = &operations[..operations.len().min(max)];
    1 + first.windows(2).take_while(|pair| follows(pair)).count()
}
