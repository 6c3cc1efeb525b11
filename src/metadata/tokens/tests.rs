//! Tokens as `apply` uses them, against a simple model, and through snapshots.

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
    OperationResult::Repeated(Outcome::Stored(Revision::new(TERM, sequence)))
}

use OperationResult::{Deleted, NotFound, Refused, Repeated, Stored, StoredBefore};

#[test]
fn a_repeat_gets_the_first_answer_and_its_record_is_released() {
    let mut h = Harness::new(10);
    let (first, second) = (h.set(1, 1), h.set(1, 2));
    assert_eq!(h.write(0, &[("a", first)]), [Stored]);
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
        Stored,
        Stored,
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
    assert_eq!(h.write(0, &[("a", set)]), [Stored]);
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
    assert_eq!(h.part(10, "b", &[1, 2, 4]), [Stored; 3]);
    let (first, stored) = (1, vec![(0, 2), (3, 4)]);
    assert_eq!(h.reserve(90, "b", 5), Applied::Resumed { first, stored });
    // Deleted or overwritten meanwhile: it was stored once, and is not again.
    let set = h.set(4, 2);
    h.apply(Change::Write(vec![delete(2), set]));
    let overwritten = h.revision(4);
    // It was prolonged by each entry, and the first attempt is still running.
    assert_eq!(
        h.part(180, "b", &[1, 2, 3]),
        [StoredBefore, StoredBefore, Stored]
    );
    assert_eq!(
        h.part(181, "b", &[3, 4, 5]),
        [StoredBefore, StoredBefore, Stored]
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
    assert_eq!(h.part(0, "b", &[5, 6, 1]), [Stored, expired, Stored]);
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
    assert_eq!(h.part(0, "b", &[1, 2]), [Stored; 2]);
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
    assert_eq!(h.part(110, "b", &[2, 4]), [expired, Stored]);
    assert_eq!(h.state.message_count(), 2);
}

#[test]
fn gaps_weigh_and_what_would_make_one_too_many_is_refused() {
    let mut h = Harness::new(3);
    h.reserve(0, "b", 9);
    let too_many = Refused(TokenRefusal::TooMany);
    assert_eq!(h.part(0, "b", &[1, 3, 5]), [Stored; 3]);
    assert_eq!(h.part(0, "b", &[7, 8]), [too_many; 2]);
    assert_eq!(h.write(0, &[("a", delete(1))]), [too_many]);
    // Closing a gap makes room.
    assert_eq!(h.part(0, "b", &[6, 4, 8]), [Stored; 3]);
    assert_eq!(h.part(0, "b", &[7]), [Stored]);
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

#[test]
fn the_bytes_of_tokens_in_a_snapshot_are_these() {
    let mut h = Harness::new(10);
    h.reserve(400, "b", 300);
    h.part(400, "b", &[2, 3, 5]);
    let chunks = snapshot(&mut h, |_| {});
    // Version 2, index 4, 3 messages, 2 members, ids up to 300, no tolerance, clock, one token.
    let head = [1, 2, 4, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0xac, 2, 0, 0x90, 3, 1];
    assert_eq!(chunks[0], head);
    let bulk = [4, 1, 1, b'b', 0xf4, 3, 4, 1, 0xac, 2, 2, 1, 2, 1, 1];
    assert_eq!(chunks[2], bulk);
    let read = restored(&chunks).expect("valid");
    assert_eq!(read.state.digest(), h.state.digest());
    let mut fewer = chunks.clone();
    fewer[0][17] = 2;
    let error = restored(&fewer).err().expect("refused").to_string();
    assert!(error.contains("number of tokens"), "{error}");
    let twice = [&chunks[..], &chunks[2..3]].concat();
    let error = restored(&twice).err().expect("refused").to_string();
    assert!(error.contains("there twice"), "{error}");
}

#[test]
fn a_state_without_tokens_is_written_in_version_1() {
    let mut h = Harness::new(10);
    h.apply(Change::ReserveIds { count: 3 });
    assert_eq!(snapshot(&mut h, |_| {})[0][..2], [1, 1]);
    h.write(1, &[("a", delete(1))]);
    assert_eq!(snapshot(&mut h, |_| {})[0][..2], [1, 2]);
}

#[test]
fn tokens_of_a_snapshot_are_as_they_were_at_its_index() {
    let mut h = Harness::new(100_000);
    for chunk in 0..100 {
        let names: Vec<String> = (0..100)
            .map(|n| format!("{:0>60}", chunk * 100 + n))
            .collect();
        let writes: Vec<_> = names.iter().map(|text| (&**text, delete(1))).collect();
        h.write(0, &writes);
    }
    let digest = h.state.digest();
    let chunks = snapshot(&mut h, |h| {
        let set = h.set(1, 1);
        h.write(99, &[("new", set)]);
        h.write(100, &[("newer", delete(1))]);
    });
    assert!(chunks.len() > 10, "{}", chunks.len());
    assert_ne!(h.state.digest(), digest);
    assert_eq!(restored(&chunks).expect("valid").state.digest(), digest);
}

/// Everything naive: only what is live, sets of positions, sums over all.
#[derive(Default)]
struct Model {
    clock_ms: u64,
    live: BTreeMap<String, (u64, ModelUse)>,
    messages: BTreeSet<u64>,
    reserved_until: u64,
    weight_max: usize,
}

#[derive(Clone)]
enum ModelUse {
    Done(Outcome),
    Bulk(u64, u64, BTreeSet<u64>),
}

impl Model {
    fn begin(&mut self, now_ms: u64) {
        self.clock_ms = self.clock_ms.max(now_ms);
        let clock_ms = self.clock_ms;
        self.live
            .retain(|_, (expires_ms, _)| *expires_ms > clock_ms);
    }

    fn is_full(&self) -> bool {
        let weight = |used: &ModelUse| match used {
            ModelUse::Done(_) => 1,
            ModelUse::Bulk(_, _, stored) => {
                let begins = stored
                    .iter()
                    .filter(|at| **at == 0 || !stored.contains(&(*at - 1)));
                begins.count().max(1)
            }
        };
        self.live
            .values()
            .map(|(_, used)| weight(used))
            .sum::<usize>()
            >= self.weight_max
    }

    fn keep(&mut self, text: &str, window_ms: u64, used: ModelUse) {
        let expires_ms = self.clock_ms + window_ms;
        self.live.insert(text.to_owned(), (expires_ms, used));
    }

    fn write(&mut self, text: &str, operation: &Operation, window_ms: u64) -> OperationResult {
        match self.live.get(text) {
            Some((_, ModelUse::Done(outcome))) => return Repeated(*outcome),
            Some((_, ModelUse::Bulk(..))) => return Refused(TokenRefusal::InUse),
            None if !text.is_empty() && self.is_full() => return Refused(TokenRefusal::TooMany),
            None => {}
        }
        let (result, outcome) = match operation {
            Operation::Set { key, revision, .. } => {
                let Key::Id(id) = key else { panic!("an id") };
                self.messages.insert(*id);
                (Stored, Outcome::Stored(*revision))
            }
            Operation::Delete { key } => {
                let Key::Id(id) = key else { panic!("an id") };
                match self.messages.remove(id) {
                    true => (Deleted, Outcome::Deleted),
                    false => (NotFound, Outcome::NotFound),
                }
            }
        };
        if !text.is_empty() {
            self.keep(text, window_ms, ModelUse::Done(outcome));
        }
        result
    }

    fn reserve(&mut self, text: &str, count: u64, window_ms: u64) -> Applied {
        match self.live.get(text).cloned() {
            Some((_, ModelUse::Done(outcome))) => return Applied::Repeated(outcome),
            Some((_, ModelUse::Bulk(first, of, positions))) if of == count => {
                let mut stored: Vec<(u32, u32)> = Vec::new();
                for at in positions.iter().map(|at| *at as u32) {
                    match stored.last_mut().filter(|range| range.1 == at) {
                        Some(range) => range.1 += 1,
                        None => stored.push((at, at + 1)),
                    }
                }
                self.keep(text, window_ms, ModelUse::Bulk(first, of, positions));
                return Applied::Resumed { first, stored };
            }
            Some(_) => return Applied::Refused(TokenRefusal::InUse),
            None if self.is_full() => return Applied::Refused(TokenRefusal::TooMany),
            None => {}
        }
        let is_free = |id: &u64| (*id..*id + count).all(|id| !self.messages.contains(&id));
        let first = (self.reserved_until + 1..)
            .find(is_free)
            .expect("ids are left");
        self.reserved_until = first + count - 1;
        self.keep(
            text,
            window_ms,
            ModelUse::Bulk(first, count, BTreeSet::new()),
        );
        Applied::Reserved { first }
    }

    /// One message of a bulk write.
    fn part(&mut self, text: &str, id: u64, window_ms: u64) -> OperationResult {
        let expired = Refused(TokenRefusal::Expired);
        let (first, count, mut stored) = match self.live.get(text).cloned() {
            Some((_, ModelUse::Done(Outcome::Bulk { first, last }))) => {
                return match (first..=last).contains(&id) {
                    true => StoredBefore,
                    false => expired,
                };
            }
            Some((_, ModelUse::Bulk(first, count, stored))) => (first, count, stored),
            Some((_, ModelUse::Done(_))) | None => return expired,
        };
        let at = id.wrapping_sub(first);
        let touches = stored.contains(&at.wrapping_sub(1)) || stored.contains(&at.wrapping_add(1));
        let result = if at >= count {
            expired
        } else if stored.contains(&at) {
            StoredBefore
        } else if !stored.is_empty() && !touches && self.is_full() {
            Refused(TokenRefusal::TooMany)
        } else {
            stored.insert(at);
            self.messages.insert(id);
            Stored
        };
        let used = match stored.len() as u64 == count {
            true => ModelUse::Done(Outcome::Bulk {
                first,
                last: first + count - 1,
            }),
            false => ModelUse::Bulk(first, count, stored),
        };
        self.keep(text, window_ms, used);
        result
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Token or nothing, id, whether it is a SET.
    Write(Vec<(String, u64, bool)>),
    Reserve(String, u64),
    /// Ids relative to the lowest that were reserved last.
    Part(String, Vec<u64>),
    /// The rest goes on in a state restored from a snapshot.
    Restore,
}

fn any_step() -> impl Strategy<Value = Step> {
    let write = ("[abcd]?", 0..20_u64, any::<bool>());
    prop_oneof![
        4 => prop::collection::vec(write, 1..5).prop_map(Step::Write),
        2 => ("[ab]", 1..7_u64).prop_map(|(text, count)| Step::Reserve(text, count)),
        5 => ("[ab]", prop::collection::vec(0..7_u64, 1..5))
            .prop_map(|(text, ids)| Step::Part(text, ids)),
        1 => Just(Step::Restore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn tokens_agree_with_the_model(
        steps in prop::collection::vec((any_step(), 0..60_u64, 1..150_u64), 1..40),
        weight_max in 1..6_usize,
    ) {
        let mut h = Harness::new(weight_max);
        let mut model = Model { weight_max, ..Model::default() };
        let mut now_ms = 1000;
        let mut first_id = 1;
        // Revisions that were written and not released: those that are listed, in the end.
        let mut records = BTreeSet::new();
        for (step, later_ms, window_ms) in steps {
            // Sometimes a leader whose clock is behind.
            now_ms = (now_ms + later_ms).saturating_sub(20);
            let mut expected = Vec::new();
            if !matches!(step, Step::Restore) {
                model.begin(now_ms);
            }
            let change = match step {
                Step::Write(writes) => {
                    let mut tokens = Vec::new();
                    let mut operations = Vec::new();
                    for (at, (text, id, is_set)) in (0..).zip(writes) {
                        let operation = if is_set { h.set(id, 1 + id % 2) } else { delete(id) };
                        expected.push(model.write(&text, &operation, window_ms));
                        operations.push(operation);
                        tokens.extend((!text.is_empty()).then(|| (at, token(&text))));
                    }
                    OnceChange::Write { tokens, operations }
                }
                Step::Reserve(text, count) => {
                    let token = token(&text);
                    let expected = model.reserve(&text, count, window_ms);
                    let change = OnceChange::ReserveIds { token, count };
                    let applied = h.once(now_ms, window_ms, change);
                    prop_assert_eq!(&applied, &expected);
                    if let Applied::Reserved { first } | Applied::Resumed { first, .. } = applied {
                        first_id = first;
                    }
                    continue;
                }
                Step::Part(text, ids) => {
                    let mut operations = Vec::new();
                    for (at, id) in (0..).zip(ids) {
                        // Neighbours differ in their members, so each is decided on its own.
                        operations.push(h.set(first_id + id, 1 + at % 2));
                        expected.push(model.part(&text, first_id + id, window_ms));
                    }
                    OnceChange::WritePart { token: token(&text), operations }
                }
                Step::Restore => {
                    let (digest, sequence) = (h.state.digest(), h.sequence);
                    h = restored(&snapshot(&mut h, |_| {})).expect("valid");
                    prop_assert_eq!(h.state.digest(), digest);
                    h.sequence = sequence;
                    h.state.tokens.weight_max = weight_max;
                    continue;
                }
            };
            let (OnceChange::Write { operations, .. } | OnceChange::WritePart { operations, .. }) =
                &change
            else {
                unreachable!("a reservation was done");
            };
            for operation in operations {
                if let Operation::Set { revision, .. } = operation {
                    records.insert(*revision);
                }
            }
            let Applied::Write { results, released } = h.once(now_ms, window_ms, change) else {
                panic!("a write");
            };
            prop_assert_eq!(results, expected);
            for (revision, _) in released {
                prop_assert!(records.remove(&revision), "released twice");
            }
            let listed = (0..200).filter_map(|id| h.revision(id));
            let listed: BTreeSet<_> = listed.map(|n| Revision::new(TERM, n)).collect();
            prop_assert_eq!(&records, &listed);
            prop_assert_eq!(h.state.message_count(), model.messages.len() as u64);
        }
    }

    /// However the messages of a bulk write come in entries, each is stored once.
    #[test]
    fn parts_in_any_order_store_each_message_once(
        parts in prop::collection::vec((0..30_u64, 1..12_u64, 1..4_u64), 1..30),
    ) {
        let mut h = Harness::new(1000);
        h.reserve(0, "b", 30);
        let mut seen = BTreeSet::new();
        for (begin, count, run) in parts {
            let ids: Vec<u64> = (begin..(begin + count).min(30)).map(|at| at + 1).collect();
            let operations = ids.iter().map(|id| h.set(*id, 1 + id / run % 2)).collect();
            let part = OnceChange::WritePart { token: token("b"), operations };
            let Applied::Write { results, .. } = h.once(0, 100, part) else {
                panic!("a write");
            };
            for (id, result) in ids.into_iter().zip(results) {
                prop_assert_eq!(result, if seen.insert(id) { Stored } else { StoredBefore });
            }
            let is_done = matches!(h.state.tokens().find(&token("b")), Some(Use::Done(_)));
            prop_assert_eq!(is_done, seen.len() == 30);
            prop_assert_eq!(h.state.message_count(), seen.len() as u64);
        }
    }
}
