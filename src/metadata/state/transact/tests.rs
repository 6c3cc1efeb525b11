//! What transactions, conditions and expiry do to the state.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::MemberId;
use crate::metadata::command::{Change, Command, Registration};
use crate::metadata::message_index::{Entry, Lookup};
use crate::metadata::state::PlainShards;
use crate::metadata::transact::tests::{any_transact, token};

const TERM: u64 = 5;

struct Harness {
    state: State<PlainShards>,
    sequence: u64,
}

impl Harness {
    /// Members 1 to 4.
    fn new() -> Harness {
        let mut harness = Harness {
            state: State::new(PlainShards::new(3)),
            sequence: 0,
        };
        for id in 1..=4 {
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
        self.state
            .apply(index, TERM, &Command { term: TERM, change })
    }

    /// A SET on member 1, under the next revision.
    fn set(&mut self, id: u64) -> Step {
        self.sequence += 1;
        step(Action::Write(Operation::Set {
            key: Key::Id(id),
            revision: Revision::new(TERM, self.sequence),
            replicas: ReplicaSet::new(&[MemberId(1)]).expect("one member"),
            length: 10,
        }))
    }

    fn transact(&mut self, now_ms: u64, is_atomic: bool, steps: &[Step]) -> Vec<StepResult> {
        self.transact_once(now_ms, is_atomic, None, steps).0
    }

    fn transact_once(
        &mut self,
        now_ms: u64,
        is_atomic: bool,
        token: Option<Token>,
        steps: &[Step],
    ) -> (Vec<StepResult>, Vec<(Revision, ReplicaSet)>) {
        let applied = self.apply(Change::Transact(Transact {
            now_ms,
            window_ms: 100,
            is_atomic,
            token,
            steps: steps.to_vec(),
        }));
        match applied {
            Applied::Transacted { results, released } => (results, released),
            other => panic!("{other:?}"),
        }
    }

    fn expire(&mut self, now_ms: u64) -> u64 {
        match self.apply(Change::Expire { now_ms }) {
            Applied::Expired { messages, .. } => messages,
            other => panic!("{other:?}"),
        }
    }

    fn revision(&self, id: u64) -> Option<Revision> {
        self.state.find(&Key::Id(id)).map(|entry| entry.revision)
    }
}

fn step(action: Action) -> Step {
    Step {
        token: None,
        condition: None,
        ttl_ms: None,
        action,
    }
}

fn given(condition: Condition, step: Step) -> Step {
    Step {
        condition: Some(condition),
        ..step
    }
}

fn living(ttl_ms: u64, step: Step) -> Step {
    Step {
        ttl_ms: Some(ttl_ms),
        ..step
    }
}

fn delete(id: u64) -> Step {
    step(Action::Write(Operation::Delete { key: Key::Id(id) }))
}

fn get(id: u64) -> Step {
    step(Action::Get(Key::Id(id)))
}

fn revision(sequence: u64) -> Revision {
    Revision::new(TERM, sequence)
}

fn mismatch(revision: Option<Revision>) -> StepResult {
    StepResult::Done(OperationResult::Mismatch { revision })
}

fn not_applied(position: usize) -> StepResult {
    StepResult::Done(OperationResult::NotApplied { position })
}

const CREATED: StepResult = StepResult::Done(OperationResult::Stored { created: true });
const REPLACED: StepResult = StepResult::Done(OperationResult::Stored { created: false });
const DELETED: StepResult = StepResult::Done(OperationResult::Deleted);

#[test]
fn a_condition_is_compared_at_its_place_in_the_log() {
    let mut h = Harness::new();
    let (one, two, three, four) = (h.set(7), h.set(7), h.set(7), h.set(7));
    let steps = [
        given(Condition::Exists, one.clone()),
        given(Condition::Absent, one),
        given(Condition::Absent, two),
        given(Condition::Revision(revision(1)), three),
        given(Condition::Revision(revision(2)), delete(7)),
        given(Condition::Revision(revision(1)), four),
    ];
    let results = h.transact(0, false, &steps);
    let first = Some(revision(1));
    let expected = [
        mismatch(None),
        CREATED,
        mismatch(first),
        REPLACED,
        mismatch(Some(revision(3))),
        mismatch(Some(revision(3))),
    ];
    assert_eq!(results, expected);
    assert_eq!(h.revision(7), Some(revision(3)));
}

#[test]
fn of_two_writers_of_one_revision_the_first_in_the_log_wins() {
    let mut h = Harness::new();
    let set = h.set(1);
    h.transact(0, false, &[set]);
    let on_first = Condition::Revision(revision(1));
    let (a, b) = (given(on_first, h.set(1)), given(on_first, h.set(1)));
    let (results, released) = h.transact_once(0, false, None, &[b]);
    assert_eq!((results, released.len()), (vec![REPLACED], 1));
    let (results, released) = h.transact_once(0, false, None, &[a]);
    assert_eq!(results, [mismatch(Some(revision(3)))]);
    // The loser's record goes.
    assert_eq!(released[0].0, revision(2));
}

#[test]
fn all_or_nothing_with_each_step_seeing_those_before_it() {
    let mut h = Harness::new();
    let (a, b, c) = (h.set(1), h.set(2), h.set(1));
    let good = [
        given(Condition::Absent, a.clone()),
        given(Condition::Absent, b.clone()),
        given(Condition::Revision(revision(1)), c),
        get(1),
        delete(2),
        get(2),
    ];
    let before = h.state.digest();
    let mut bad = good.to_vec();
    bad.push(given(Condition::Exists, delete(2)));
    let (results, released) = h.transact_once(0, true, None, &bad);
    let mut expected = vec![not_applied(6); 6];
    expected.push(mismatch(None));
    assert_eq!(results, expected);
    assert_eq!(released.len(), 3, "every record that it would have named");
    assert_eq!(h.state.digest(), before);
    let results = h.transact(0, true, &good);
    let found = h.state.find(&Key::Id(1)).expect("it was stored");
    let expected = [
        CREATED,
        CREATED,
        REPLACED,
        StepResult::Got(Some(found)),
        DELETED,
        StepResult::Got(None),
    ];
    assert_eq!(results, expected);
}

#[test]
fn a_member_that_is_gone_stops_the_whole() {
    let mut h = Harness::new();
    let mut lost = h.set(1);
    if let Action::Write(Operation::Set { replicas, .. }) = &mut lost.action {
        *replicas = ReplicaSet::new(&[MemberId(9)]).expect("one member");
    }
    let steps = [h.set(2), lost];
    let unknown = StepResult::Done(OperationResult::UnknownMember);
    // With a token also if it is not all or nothing: the repeat does all of it.
    for is_atomic in [true, false] {
        let first = h.transact_once(0, is_atomic, Some(token("t")), &steps);
        assert_eq!(first.0, [not_applied(1), unknown]);
        assert_eq!(h.state.message_count(), 0);
    }
    // It was not decided for good, so a repeat tries again.
    let set = [h.set(2), h.set(3)];
    let again = h.transact_once(0, true, Some(token("t")), &set);
    assert_eq!(again.0, [CREATED, CREATED]);
    // Each on its own, without a token: the others are done.
    let steps = [h.set(4), steps[1].clone()];
    assert_eq!(h.transact(0, false, &steps), [CREATED, unknown]);
}

#[test]
fn a_repeat_of_the_whole_gets_the_first_results_and_reads_anew() {
    let mut h = Harness::new();
    let first = [h.set(1), given(Condition::Exists, h.set(2)), get(1)];
    h.transact_once(0, false, Some(token("t")), &first);
    let overwrite = h.set(1);
    h.transact(0, false, &[overwrite]);
    let second = [h.set(1), given(Condition::Exists, h.set(2)), get(1)];
    let (results, released) = h.transact_once(99, false, Some(token("t")), &second);
    let repeated = |outcome| StepResult::Done(OperationResult::Repeated(outcome));
    let stored = Outcome::Stored {
        revision: revision(1),
        created: true,
    };
    let expected = [
        repeated(stored),
        repeated(Outcome::Mismatch(None)),
        StepResult::Got(h.state.find(&Key::Id(1))),
    ];
    assert_eq!(results, expected);
    assert_eq!(released.len(), 2);
    assert_eq!(h.revision(1), Some(revision(3)));
    // Another request under the token, or a single write, is none of its repeats.
    let used = StepResult::Done(OperationResult::Refused(TokenRefusal::Used));
    for steps in [&second[..2], &[get(1), get(1), get(1)]] {
        let (results, _) = h.transact_once(99, false, Some(token("t")), steps);
        assert_eq!(results, vec![used; steps.len()]);
    }
    let mut single = h.set(9);
    single.token = Some(token("t"));
    assert_eq!(h.transact(99, false, &[single.clone()]), [used]);
    // Forgotten, it is a new one.
    assert_eq!(h.transact(100, false, &[single.clone()]), [CREATED]);
    let (results, _) = h.transact_once(100, false, Some(token("t")), &[get(1)]);
    assert_eq!(
        results,
        [used],
        "a single write's token is no transaction's"
    );
}

#[test]
fn a_mismatch_is_remembered_with_its_token() {
    let mut h = Harness::new();
    let mut write = given(Condition::Exists, h.set(1));
    write.token = Some(token("a"));
    assert_eq!(h.transact(0, false, &[write.clone()]), [mismatch(None)]);
    let set = h.set(1);
    h.transact(0, false, &[set]);
    let first = OperationResult::Repeated(Outcome::Mismatch(None));
    assert_eq!(h.transact(0, false, &[write]), [StepResult::Done(first)]);
}

#[test]
fn a_message_goes_when_its_time_is_over_and_not_before() {
    let mut h = Harness::new();
    let steps = [living(50, h.set(1)), living(60, h.set(2)), h.set(3)];
    h.transact(1000, false, &steps);
    assert_eq!(h.state.next_expiry_ms(), Some(1050));
    assert_eq!(h.expire(1049), 0);
    assert_eq!(h.expire(1050), 1);
    assert_eq!((h.revision(1), h.revision(2)), (None, Some(revision(2))));
    // A clock that is behind neither brings it back nor takes the next one early.
    assert_eq!(h.expire(900), 0);
    assert_eq!(h.revision(1), None);
    assert_eq!(h.expire(5000), 1);
    assert_eq!(h.state.next_expiry_ms(), None);
    assert_eq!(h.state.message_count(), 1);
    assert_eq!(h.state.member_load(MemberId(1)), (1, 10));
}

#[test]
fn a_write_a_delete_and_a_longer_life_end_an_expiry() {
    let mut h = Harness::new();
    let steps: Vec<Step> = (1..=4).map(|id| living(50, h.set(id))).collect();
    h.transact(0, false, &steps);
    let overwrite = match h.set(1).action {
        Action::Write(operation) => operation,
        _ => unreachable!("a SET is a write"),
    };
    // Plain writes know nothing of expiry, and end it all the same.
    let removed = Operation::Delete { key: Key::Id(2) };
    h.apply(Change::Write(vec![overwrite, removed]));
    let longer = [
        living(90, step(Action::Expire(Key::Id(3)))),
        step(Action::Expire(Key::Id(4))),
        step(Action::Expire(Key::Id(5))),
    ];
    let set = StepResult::Done(OperationResult::ExpirySet);
    let not_found = StepResult::Done(OperationResult::NotFound);
    assert_eq!(h.transact(10, false, &longer), [set, set, not_found]);
    assert_eq!(h.state.next_expiry_ms(), Some(100));
    assert_eq!(h.expire(99), 0);
    assert_eq!(h.expire(100), 1);
    assert_eq!(h.state.message_count(), 2);
}

#[test]
fn an_entry_takes_a_bounded_number_of_messages() {
    let mut h = Harness::new();
    let steps: Vec<Step> = (0..5000).map(|id| living(5, h.set(id))).collect();
    h.transact(0, false, &steps);
    assert_eq!(h.expire(5), EXPIRED_MAX as u64);
    assert_eq!(h.state.next_expiry_ms(), Some(5));
    assert_eq!(h.expire(5), 5000 - EXPIRED_MAX as u64);
}

/// The same in a few lines: no shards, no interning, no tokens.
#[derive(Clone, Default)]
struct Model {
    messages: BTreeMap<Key, (Revision, Option<u64>)>,
    clock_ms: u64,
}

impl Model {
    fn step(&mut self, step: &Step) -> Result<StepResult, ()> {
        let key = step.key();
        let held = self.messages.get(key).map(|held| held.0);
        if !holds(step.condition, held) {
            return Err(());
        }
        let expires_ms = step.ttl_ms.map(|ttl_ms| self.clock_ms + ttl_ms);
        Ok(StepResult::Done(match &step.action {
            Action::Write(Operation::Set { revision, .. }) => {
                let before = self.messages.insert(key.clone(), (*revision, expires_ms));
                let created = before.is_none();
                OperationResult::Stored { created }
            }
            Action::Write(Operation::Delete { .. }) => match self.messages.remove(key) {
                Some(_) => OperationResult::Deleted,
                None => OperationResult::NotFound,
            },
            Action::Expire(_) => match self.messages.get_mut(key) {
                Some(held) => {
                    held.1 = expires_ms;
                    OperationResult::ExpirySet
                }
                None => OperationResult::NotFound,
            },
            Action::Get(_) => return Ok(StepResult::Got(None)),
        }))
    }
}

proptest! {
    #[test]
    fn conditions_wholes_and_expiry_agree_with_the_model(
        transacts in proptest::collection::vec(
            any_transact((0..4_u64).prop_map(Key::Id)), 1..25
        ),
    ) {
        let mut h = Harness::new();
        let mut model = Model::default();
        for mut transact in transacts {
            transact.token = None;
            transact.steps.iter_mut().for_each(|step| step.token = None);
            for step in &mut transact.steps {
                if let Action::Write(Operation::Set { revision, .. }) = &mut step.action {
                    h.sequence += 1;
                    *revision = Revision::new(TERM, h.sequence);
                }
            }
            model.clock_ms = model.clock_ms.max(transact.now_ms);
            let results = h.transact(transact.now_ms, transact.is_atomic, &transact.steps);
            let before = model.clone();
            let expected: Vec<_> = transact.steps.iter().map(|step| model.step(step)).collect();
            let failed = expected.iter().position(Result::is_err);
            if let Some(at) = failed.filter(|_| transact.is_atomic) {
                model = before;
                for (position, result) in results.iter().enumerate() {
                    let is_mismatch =
                        matches!(result, StepResult::Done(OperationResult::Mismatch { .. }));
                    prop_assert_eq!(is_mismatch, position == at);
                }
            } else {
                for (result, expected) in results.iter().zip(expected) {
                    match (result, expected) {
                        (StepResult::Got(_), Ok(StepResult::Got(_))) => {}
                        (StepResult::Done(OperationResult::Mismatch { .. }), Err(())) => {}
                        (result, expected) => prop_assert_eq!(Ok(*result), expected),
                    }
                }
            }
            let now_ms = model.clock_ms + 20;
            model.clock_ms = now_ms;
            model.messages.retain(|_, held| held.1.is_none_or(|at| at > now_ms));
            h.expire(now_ms);
            let next = model.messages.values().filter_map(|held| held.1).min();
            prop_assert_eq!(h.state.next_expiry_ms(), next);
            prop_assert_eq!(h.state.message_count(), model.messages.len() as u64);
            for (key, (revision, _)) in &model.messages {
                let found: Option<Entry> = h.state.find(key);
                prop_assert_eq!(found.map(|entry| entry.revision), Some(*revision));
            }
        }
    }
}
