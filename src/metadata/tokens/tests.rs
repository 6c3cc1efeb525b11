//! Tokens as `apply` uses them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::ids::{Key, MemberId};
use crate::metadata::command::{
    Applied, Change, Command, Operation, OperationResult, Registration,
};
use crate::metadata::once::{Once, OnceChange, TokenRefusal};
use crate::metadata::replica_sets::ReplicaSet;
use crate::metadata::snapshot::Restore;
use crate::metadata::state::{PlainShards, Shards, State};

mod properties;
mod snapshots;

const TERM: u64 = 3;

fn token(text: &str) -> Token {
    Token::parse(text.as_bytes()).expect("a valid token")
}

/// A state, and a leader that numbers its revisions.
struct Harness {
    state: State<PlainShards>,
    sequence: u64,
}

impl Harness {
    /// Members 1 and 2, and room for so much.
    fn new(weight_max: usize) -> Harness {
        let mut state = State::new(PlainShards::new(4));
        state.tokens = Tokens::new(weight_max);
        let mut harness = Harness { state, sequence: 0 };
        for id in 1..=2 {
            harness.apply(Change::RegisterMember(Registration {
                id: MemberId(id),
                name: format!("m{id}"),
                address: String::new(),
                zone: String::new(),
                incarnation: 1,
                nonce: 1,
            }));
        }
        harness
    }

    fn apply(&mut self, change: Change) -> Applied {
        let index = self.state.applied_index() + 1;
        let command = Command { term: TERM, change };
        self.state.apply(index, TERM, &command)
    }

    fn once(&mut self, now_ms: u64, window_ms: u64, change: OnceChange) -> Applied {
        self.apply(Change::Once(Once {
            now_ms,
            window_ms,
            change,
        }))
    }

    fn set(&mut self, id: u64, member: u64) -> Operation {
        self.sequence += 1;
        Operation::Set {
            key: Key::Id(id),
            revision: Revision::new(TERM, self.sequence),
            replicas: ReplicaSet::new(&[MemberId(member)]).expect("one member"),
            length: 1,
        }
    }

    /// Results of a write in which every operation has the token of its place, if there is one.
    fn write(&mut self, now_ms: u64, writes: &[(&str, Operation)]) -> Vec<OperationResult> {
        let tokens = (0..).zip(writes);
        let tokens = tokens.filter(|(_, (text, _))| !text.is_empty());
        let tokens = tokens.map(|(at, (text, _))| (at, token(text))).collect();
        let operations = writes.iter().map(|(_, operation)| operation.clone());
        let operations = operations.collect();
        match self.once(now_ms, 100, OnceChange::Write { tokens, operations }) {
            Applied::Write { results, .. } => results,
            other => panic!("{other:?}"),
        }
    }

    fn reserve(&mut self, now_ms: u64, text: &str, count: u64) -> Applied {
        let token = token(text);
        self.once(now_ms, 100, OnceChange::ReserveIds { token, count })
    }

    fn part(&mut self, now_ms: u64, text: &str, ids: &[u64]) -> Vec<OperationResult> {
        let operations = ids.iter().map(|id| self.set(*id, 1)).collect();
        let token = token(text);
        match self.once(now_ms, 100, OnceChange::WritePart { token, operations }) {
            Applied::Write { results, .. } => results,
            other => panic!("{other:?}"),
        }
    }

    fn revision(&self, id: u64) -> Option<u64> {
        use crate::metadata::message_index::Lookup;
        let entry = self.state.find(&Key::Id(id))?;
        Some(entry.revision.as_u64() & Revision::SEQUENCE_MAX)
    }
}

fn delete(id: u64) -> Operation {
    Operation::Delete { key: Key::Id(id) }
}

fn stored(sequence: u64) -> OperationResult {
    OperationResult::Repeated(Outcome::Stored {
        revision: Revision::new(TERM, sequence),
        created: true,
    })
}

const CREATED: OperationResult = OperationResult::Stored { created: true };

use OperationResult::{Deleted, NotFound, Refused, Repeated, StoredBefore};

#[test]
fn a_repeat_gets_the_first_answer_and_its_record_is_released() {
    let mut h = Harness::new(10);
    let (first, second) = (h.set(1, 1), h.set(1, 2));
    assert_eq!(h.write(0, &[("a", first)]), [CREATED]);
    let tokens = vec![(0, token("a"))];
    let operations = vec![second.clone()];
    let Operation::Set {
        revision, replicas, ..
    } = second
    else {
        panic!("a SET");
    };
    let expected = Applied::Write {
        results: vec![stored(1)],
        released: vec![(revision, replicas)],
    };
    let again = OnceChange::Write { tokens, operations };
    assert_eq!(h.once(50, 100, again), expected);
    assert_eq!(h.revision(1), Some(1));
    assert_eq!(h.state.member_load(MemberId(2)), (0, 0));
}

#[test]
fn a_token_takes_effect_once_within_an_entry_beside_writes_without_one() {
    let mut h = Harness::new(10);
    let sets: Vec<Operation> = (0..4).map(|_| h.set(7, 1)).collect();
    let writes = [
        ("d", delete(7)),
        ("a", sets[0].clone()),
        ("", sets[1].clone()),
        ("a", sets[2].clone()),
        ("d", delete(7)),
        ("e", delete(7)),
        ("", delete(7)),
        ("d", sets[3].clone()),
    ];
    let not_found = Repeated(Outcome::NotFound);
    let expected = [
        NotFound,
        CREATED,
        OperationResult::Stored { created: false },
        stored(1),
        not_found,
        Deleted,
        NotFound,
        not_found,
    ];
    assert_eq!(h.write(0, &writes), expected);
    assert_eq!(
        h.write(0, &[("e", delete(7))]),
        [Repeated(Outcome::Deleted)]
    );
    assert_eq!(h.state.message_count(), 0);
}

#[test]
fn what_had_no_effect_is_not_remembered() {
    let mut h = Harness::new(10);
    let (refused, set) = (h.set(1, 9), h.set(1, 1));
    assert_eq!(
        h.write(0, &[("a", refused)]),
        [OperationResult::UnknownMember]
    );
    assert_eq!(h.write(0, &[("a", set)]), [CREATED]);
}

#[test]
fn a_token_expires_by_the_highest_time_of_any_command() {
    let mut h = Harness::new(10);
    assert_eq!(h.write(1000, &[("a", delete(1))]), [NotFound]);
    assert_eq!(h.write(1099, &[("b", delete(1))]), [NotFound]);
    assert_eq!(
        h.write(1099, &[("a", delete(1))]),
        [Repeated(Outcome::NotFound)]
    );
    assert_eq!(h.write(1100, &[("a", delete(1))]), [NotFound]);
    // The clock does not go back with a leader whose own is behind, and so expires `b` no earlier.
    assert_eq!(
        h.write(5, &[("b", delete(1))]),
        [Repeated(Outcome::NotFound)]
    );
    assert_eq!(h.state.tokens().clock_ms(), 1100);
    assert_eq!(h.write(1199, &[("b", delete(1))]), [NotFound]);
}

#[test]
fn a_full_table_refuses_until_one_expires_and_repeats_are_still_answered() {
    let mut h = Harness::new(2);
    assert_eq!(
        h.write(0, &[("a", delete(1)), ("b", delete(1))]),
        [NotFound; 2]
    );
    let set = h.set(1, 1);
    let too_many = Refused(TokenRefusal::TooMany);
    let results = h.write(50, &[("c", set), ("a", delete(1)), ("", delete(1))]);
    assert_eq!(results, [too_many, Repeated(Outcome::NotFound), NotFound]);
    assert_eq!(
        h.reserve(50, "c", 3),
        Applied::Refused(TokenRefusal::TooMany)
    );
    assert_eq!(h.state.settings().reserved_until, 0);
    assert_eq!(h.write(100, &[("c", delete(1))]), [NotFound]);
}

#[test]
fn little_is_swept_at_a_time_and_what_is_left_counts_for_nothing() {
    let mut h = Harness::new(1000);
    for chunk in 0..10 {
        let names: Vec<String> = (0..100).map(|n| format!("{chunk}-{n}")).collect();
        let writes: Vec<_> = names.iter().map(|text| (&**text, delete(1))).collect();
        h.write(chunk, &writes);
    }
    assert_eq!(h.state.tokens().len(), 1000);
    assert_eq!(h.write(5000, &[("new", delete(1))]), [NotFound]);
    assert_eq!(h.state.tokens().len(), 1000 - SWEPT_MAX);
    // One that is due and still there.
    assert_eq!(h.write(5000, &[("9-99", delete(1))]), [NotFound]);
    for _ in 0..4 {
        h.write(5000, &[("new", delete(1))]);
    }
    assert_eq!(h.state.tokens().len(), 2);
}

#[test]
fn a_bulk_write_goes_on_under_its_ids_and_ends_once() {
    let mut h = Harness::new(10);
    assert_eq!(h.reserve(0, "b", 5), Applied::Reserved { first: 1 });
    assert_eq!(h.part(10, "b", &[1, 2, 4]), [CREATED; 3]);
    let (first, stored) = (1, vec![(0, 2), (3, 4)]);
    assert_eq!(h.reserve(90, "b", 5), Applied::Resumed { first, stored });
    // Deleted or overwritten meanwhile: it was stored once, and is not again.
    let set = h.set(4, 2);
    h.apply(Change::Write(vec![delete(2), set]));
    let overwritten = h.revision(4);
    // It was prolonged by each entry, and the first attempt is still running.
    assert_eq!(
        h.part(180, "b", &[1, 2, 3]),
        [StoredBefore, StoredBefore, CREATED]
    );
    assert_eq!(
        h.part(181, "b", &[3, 4, 5]),
        [StoredBefore, StoredBefore, CREATED]
    );
    let (first, last) = (1, 5);
    let done = Outcome::Bulk { first, last };
    assert_eq!(h.reserve(190, "b", 5), Applied::Repeated(done));
    assert_eq!(h.reserve(190, "b", 9), Applied::Repeated(done));
    assert_eq!(h.part(190, "b", &[2, 5]), [StoredBefore; 2]);
    assert_eq!((h.revision(2), h.revision(4)), (None, overwritten));
    assert_eq!(h.write(190, &[("b", delete(9))]), [Repeated(done)]);
    assert_eq!(h.state.settings().reserved_until, 5);
}

#[test]
fn the_token_of_an_unfinished_bulk_write_is_of_no_other_write() {
    let mut h = Harness::new(10);
    h.reserve(0, "b", 5);
    let in_use = TokenRefusal::InUse;
    assert_eq!(h.reserve(0, "b", 4), Applied::Refused(in_use));
    assert_eq!(h.write(0, &[("b", delete(1))]), [Refused(in_use)]);
    h.write(0, &[("d", delete(1))]);
    let expired = Refused(TokenRefusal::Expired);
    assert_eq!(h.part(0, "d", &[1]), [expired]);
    assert_eq!(h.part(0, "b", &[5, 6, 1]), [CREATED, expired, CREATED]);
}

#[test]
fn messages_of_a_part_that_apply_refused_are_still_missing() {
    let mut h = Harness::new(10);
    h.reserve(0, "b", 2);
    let operations = vec![h.set(1, 9), h.set(2, 9)];
    let token = token("b");
    let part = OnceChange::WritePart { token, operations };
    let Applied::Write { results, .. } = h.once(0, 100, part) else {
        panic!("a write");
    };
    assert_eq!(results, [OperationResult::UnknownMember; 2]);
    let (first, stored) = (1, Vec::new());
    assert_eq!(h.reserve(0, "b", 2), Applied::Resumed { first, stored });
    assert_eq!(h.part(0, "b", &[1, 2]), [CREATED; 2]);
}

#[test]
fn tokens_that_differ_in_anything_have_different_digests() {
    let digest = |text: &str, window_ms: u64, id: u64, count: u64| {
        let mut h = Harness::new(10);
        h.apply(Change::Write(vec![delete(1)]));
        let tokens = vec![(0, token(text))];
        let operations = vec![delete(id)];
        h.once(5, window_ms, OnceChange::Write { tokens, operations });
        let token = token("b");
        h.once(5, 9, OnceChange::ReserveIds { token, count });
        h.state.tokens.restore_clock(5);
        h.state.settings.reserved_until = 0;
        h.state.digest()
    };
    let digests = [
        digest("a", 7, 1, 3),
        digest("c", 7, 1, 3),
        digest("a", 8, 1, 3),
        digest("a", 7, 1, 4),
    ];
    let distinct: BTreeSet<u64> = digests.into_iter().collect();
    assert_eq!(distinct.len(), digests.len());
    assert_eq!(digest("a", 7, 2, 3), digests[0]);
}

#[test]
fn a_part_that_comes_after_its_token_expired_stores_nothing() {
    let mut h = Harness::new(10);
    h.reserve(0, "b", 3);
    h.part(10, "b", &[1]);
    let expired = Refused(TokenRefusal::Expired);
    assert_eq!(h.part(110, "b", &[2, 3]), [expired; 2]);
    assert_eq!(h.reserve(110, "b", 3), Applied::Reserved { first: 4 });
    assert_eq!(h.part(110, "b", &[2, 4]), [expired, CREATED]);
    assert_eq!(h.state.message_count(), 2);
}

#[test]
fn gaps_weigh_and_what_would_make_one_too_many_is_refused() {
    let mut h = Harness::new(3);
    h.reserve(0, "b", 9);
    let too_many = Refused(TokenRefusal::TooMany);
    assert_eq!(h.part(0, "b", &[1, 3, 5]), [CREATED; 3]);
    assert_eq!(h.part(0, "b", &[7, 8]), [too_many; 2]);
    assert_eq!(h.write(0, &[("a", delete(1))]), [too_many]);
    // Closing a gap makes room.
    assert_eq!(h.part(0, "b", &[6, 4, 8]), [CREATED; 3]);
    assert_eq!(h.part(0, "b", &[7]), [CREATED]);
    assert_eq!(h.write(0, &[("a", delete(1))]), [Deleted]);
}

#[test]
fn an_entry_of_another_term_uses_no_token() {
    let mut h = Harness::new(10);
    let tokens = vec![(0, token("a"))];
    let operations = vec![h.set(1, 1)];
    let change = OnceChange::Write { tokens, operations };
    let change = Change::Once(Once {
        now_ms: 9,
        window_ms: 1,
        change,
    });
    let digest = h.state.digest();
    let forwarded = Command { term: TERM, change };
    assert_eq!(h.state.apply(99, TERM + 1, &forwarded), Applied::WrongTerm);
    let foreign_revision = Command {
        term: TERM + 1,
        ..forwarded
    };
    let applied = h.state.apply(100, TERM + 1, &foreign_revision);
    assert_eq!(applied, Applied::WrongTerm);
    assert_eq!(h.state.digest(), digest);
}

/// The chunks of a snapshot, in small pieces, of which some are taken before `meanwhile`.
fn snapshot(h: &mut Harness, meanwhile: impl FnOnce(&mut Harness)) -> Vec<Vec<u8>> {
    let mut capture = h.state.begin_snapshot(h.state.applied_index());
    let mut chunks: Vec<_> = (0..4)
        .filter_map(|_| capture.next_chunk(h.state.shards_mut()))
        .collect();
    meanwhile(h);
    chunks.extend(std::iter::from_fn(|| {
        capture.next_chunk(h.state.shards_mut())
    }));
    h.state.shards_mut().end_snapshot();
    chunks
}

fn restored(chunks: &[Vec<u8>]) -> Result<Harness, crate::metadata::snapshot::RestoreError> {
    let mut state = State::new(PlainShards::new(3));
    let mut restore = Restore::default();
    for chunk in chunks {
        restore.chunk(&mut state, chunk)?;
    }
    restore.finish(&mut state)?;
    let sequence = 1000;
    Ok(Harness { state, sequence })
}
