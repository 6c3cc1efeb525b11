//! Snapshots to bytes and back, while commands go on.

use super::*;
use crate::metadata::command::{Applied, Change, Command, Operation, Registration};
use crate::metadata::state::PlainShards;

const TERM: u64 = 3;

fn member(id: u64, name: &str) -> Change {
    Change::RegisterMember(Registration {
        id: MemberId(id),
        name: name.to_owned(),
        address: format!("127.0.0.1:{id}"),
        zone: "z".to_owned(),
        incarnation: id,
        nonce: 9,
    })
}

fn set(key: Key, sequence: u64, members: &[u64], length: u32) -> Operation {
    let members: Vec<MemberId> = members.iter().map(|id| MemberId(*id)).collect();
    Operation::Set {
        key,
        revision: Revision::new(TERM, sequence),
        replicas: ReplicaSet::new(&members).expect("distinct members"),
        length,
    }
}

fn word(text: &str) -> Key {
    Key::Word(text.into())
}

fn apply(state: &mut State<PlainShards>, change: Change) -> Applied {
    let index = state.applied_index() + 1;
    state.apply(index, TERM, &Command { term: TERM, change })
}

/// Members 1 to 3, of which 1 is retired by 4, and a few messages.
fn small_state(shards: usize) -> State<PlainShards> {
    let mut state = State::new(PlainShards::new(shards));
    for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
        apply(&mut state, member(id, name));
    }
    let operations = vec![
        set(Key::Id(1), 1, &[1, 2], 10),
        set(Key::Id(300), 2, &[2, 3], 300),
        set(word("x/y"), 3, &[1, 2], 0),
    ];
    apply(&mut state, Change::Write(operations));
    apply(&mut state, member(4, "a"));
    apply(&mut state, Change::SetTolerance(2));
    apply(&mut state, Change::ReserveIds { count: 5 });
    state
}

fn rest_of(capture: &mut Capture, state: &mut State<PlainShards>) -> Vec<Vec<u8>> {
    let chunks = std::iter::from_fn(|| capture.next_chunk(state.shards_mut())).collect();
    state.shards_mut().end_snapshot();
    chunks
}

fn restore(chunks: &[Vec<u8>], shards: usize) -> Result<State<PlainShards>, RestoreError> {
    let mut state = State::new(PlainShards::new(shards));
    let mut restore = Restore::default();
    for chunk in chunks {
        restore.chunk(&mut state, chunk)?;
    }
    restore.finish(&mut state)?;
    Ok(state)
}

#[test]
fn the_bytes_of_a_snapshot_are_these() {
    let mut state = State::new(PlainShards::new(1));
    apply(&mut state, member(1, "a"));
    apply(&mut state, Change::SetTolerance(2));
    let operations = vec![
        set(Key::Id(300), 1, &[1], 10),
        set(word("ab"), 2, &[1], 200),
    ];
    apply(&mut state, Change::Write(operations));
    let mut capture = state.begin_snapshot(9);
    let chunks = rest_of(&mut capture, &mut state);
    let registration = [
        &[1, 0, 0, 0, 0, 0, 0, 0][..],
        &[1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0],
        &[1, b'a', 11],
        b"127.0.0.1:1",
        &[1, b'z'],
    ];
    let expected = [
        vec![1, 1, 9, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 2],
        [&[2, 1, 0], &registration.concat()[..], &[2, 210, 1]].concat(),
        [
            &[3, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 2][..],
            &[0, 0xac, 2, 0, 1, 0, 0, 0, 0, 3, 0, 0, 10],
            &[2, b'a', b'b', 0, 2, 0, 0, 0, 0, 3, 0, 0, 200, 1],
        ]
        .concat(),
    ];
    assert_eq!(chunks, expected);
    let restored = restore(&chunks, 7).expect("valid");
    assert_eq!(restored.digest(), state.digest());
    assert_eq!(restored.applied_index(), 9);
}

#[test]
fn what_is_written_after_the_index_is_not_in_it() {
    let mut state = small_state(4);
    let digest = state.digest();
    let mut capture = state.begin_snapshot(state.applied_index());
    // The only message of each set goes, and other sets come: numbers must not be mixed up.
    let operations = vec![
        Operation::Delete { key: word("x/y") },
        Operation::Delete { key: Key::Id(1) },
        set(Key::Id(300), 10, &[3], 1),
        set(Key::Id(301), 11, &[2], 1),
        set(word("new"), 12, &[2, 3], 1),
    ];
    apply(&mut state, Change::Write(operations));
    apply(&mut state, member(5, "e"));
    apply(&mut state, Change::SetTolerance(3));
    let after = state.digest();
    let chunks = rest_of(&mut capture, &mut state);
    assert_eq!(state.digest(), after);
    let mut restored = restore(&chunks, 3).expect("valid");
    assert_eq!(restored.digest(), digest);
    assert_eq!(restored.tolerance(), Some(2));
    let loads: Vec<u64> = restored
        .take_changed_loads()
        .iter()
        .map(|load| load.0.0)
        .collect();
    assert_eq!(loads, [1, 2, 3, 4], "all loads are told");
    // The retired member is still known, and stays retired.
    assert_eq!(apply(&mut restored, member(1, "a")), Applied::Retired);
}

#[test]
fn a_state_that_is_cleared_takes_another_one_and_keeps_the_snapshot_being_taken() {
    let mut other = State::new(PlainShards::new(2));
    apply(&mut other, member(1, "other"));
    apply(&mut other, Change::Write(vec![set(word("y"), 7, &[1], 70)]));
    let mut capture = other.begin_snapshot(9);
    let chunks = rest_of(&mut capture, &mut other);

    let mut state = small_state(4);
    let digest = state.digest();
    let mut capture = state.begin_snapshot(20);
    state.clear();
    let mut restored = Restore::default();
    for chunk in &chunks {
        restored.chunk(&mut state, chunk).expect("valid");
    }
    restored.finish(&mut state).expect("whole");
    assert_eq!(state.digest(), other.digest());
    let kept = rest_of(&mut capture, &mut state);
    let kept = restore(&kept, 4).expect("valid");
    assert_eq!(kept.digest(), digest);
}

#[test]
fn a_snapshot_that_was_given_up_leaves_nothing_behind() {
    let mut state = small_state(4);
    let mut capture = state.begin_snapshot(100);
    capture.next_chunk(state.shards_mut());
    let write = Change::Write(vec![set(Key::Id(1), 20, &[2], 5)]);
    apply(&mut state, write);
    state.shards_mut().end_snapshot();
    let write = Change::Write(vec![set(Key::Id(300), 21, &[3], 5)]);
    apply(&mut state, write);
    let digest = state.digest();
    let mut capture = state.begin_snapshot(100);
    let chunks = rest_of(&mut capture, &mut state);
    assert_eq!(restore(&chunks, 4).expect("valid").digest(), digest);
}

#[test]
fn many_messages_make_many_chunks_of_a_bounded_size() {
    let mut state = State::new(PlainShards::new(8));
    for id in 1..=9 {
        apply(&mut state, member(id, &format!("m{id}")));
    }
    let long = "k".repeat(500);
    for batch in 0..20_u64 {
        let operations = (0..1000)
            .map(|number| {
                let number = batch * 1000 + number;
                let members = [number % 9 + 1, (number / 9) % 9 + 1];
                let members = &members[..1 + usize::from(members[0] != members[1])];
                match number % 50 {
                    0 => set(word(&format!("{long}{number}")), number, members, 7),
                    _ => set(Key::Id(number), number, members, 7),
                }
            })
            .collect();
        apply(&mut state, Change::Write(operations));
    }
    let mut capture = state.begin_snapshot(state.applied_index());
    let chunks = rest_of(&mut capture, &mut state);
    assert!(chunks.len() > 5);
    let longest = chunks.iter().map(Vec::len).max().expect("chunks");
    assert!(longest < CHUNK_BYTES + 10_000, "{longest}");
    let restored = restore(&chunks, 64).expect("valid");
    assert_eq!(restored.digest(), state.digest());
    assert_eq!(restored.message_count(), 20_000);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let mut state = small_state(2);
    let mut capture = state.begin_snapshot(50);
    let chunks = rest_of(&mut capture, &mut state);
    assert_eq!(chunks.len(), 3);
    let refused = |chunks: &[Vec<u8>]| restore(chunks, 2).expect_err("refused").to_string();
    assert!(refused(&chunks[..2]).contains("number of messages"));
    assert!(refused(&chunks[1..]).contains("kind of chunk"));
    let head_and_messages = [chunks[0].clone(), chunks[2].clone()];
    assert!(refused(&head_and_messages).contains("member of a replica set"));
    let twice = [&chunks[..], &chunks[2..]].concat();
    assert!(refused(&twice).contains("there twice"));
    let mut newer = chunks.clone();
    newer[0][1] = 4;
    assert!(refused(&newer).contains("version 4"));
    let mut counters = chunks.clone();
    *counters[1].last_mut().expect("a chunk") ^= 1;
    assert!(refused(&counters).contains("counter"));
}

mod properties {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::Token;
    use crate::metadata::once::{Once, OnceChange};
    use crate::metadata::transact::tests::any_transact;
    use crate::metadata::transact::{Action, Transact};

    fn any_key() -> impl Strategy<Value = Key> {
        prop_oneof![
            (0..40_u64).prop_map(Key::Id),
            "[a-h]".prop_map(|text| word(&text))
        ]
    }

    /// A key, and the members of a SET, or none for a DEL.
    type Draft = (Key, Vec<u64>, u32);

    fn any_draft() -> impl Strategy<Value = Draft> {
        let members = proptest::collection::btree_set(1..7_u64, 0..4);
        (any_key(), members, 0..100_u32)
            .prop_map(|(key, members, length)| (key, members.into_iter().collect(), length))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(Vec<Draft>),
        Member(u64, String),
        Tolerance(u8),
        Reserve(u64),
        /// A DEL with a token, and so much later.
        Once(String, Key, u64),
        /// Its revisions are those that come next.
        Transact(Transact),
        Expire(u64),
        /// The writer takes that many chunks.
        Chunks(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => proptest::collection::vec(any_draft(), 0..12).prop_map(Step::Write),
            1 => (1..8_u64, "[a-e]").prop_map(|(id, name)| Step::Member(id, name)),
            1 => (1..=7_u8).prop_map(Step::Tolerance),
            1 => (1..4_u64).prop_map(Step::Reserve),
            3 => ("[a-f]", any_key(), 0..30_u64).prop_map(|(t, key, ms)| Step::Once(t, key, ms)),
            3 => any_transact(any_key().boxed()).prop_map(Step::Transact),
            1 => (0..1500_u64).prop_map(Step::Expire),
            3 => (1..4_usize).prop_map(Step::Chunks),
        ]
    }

    fn change(step: &Step, sequence: &mut u64, now_ms: &mut u64) -> Option<Change> {
        Some(match step {
            Step::Write(drafts) => {
                let operation = |(key, members, length): &Draft| {
                    *sequence += 1;
                    match members.is_empty() {
                        true => Operation::Delete { key: key.clone() },
                        false => set(key.clone(), *sequence, members, *length),
                    }
                };
                Change::Write(drafts.iter().map(operation).collect())
            }
            Step::Member(id, name) => member(*id, name),
            Step::Tolerance(tolerance) => Change::SetTolerance(*tolerance),
            Step::Reserve(count) => Change::ReserveIds { count: *count },
            Step::Once(text, key, later_ms) => {
                let token = Token::parse(text.as_bytes()).expect("a token");
                let operations = vec![Operation::Delete { key: key.clone() }];
                let tokens = vec![(0, token)];
                *now_ms += later_ms;
                Change::Once(Once {
                    now_ms: *now_ms,
                    window_ms: 50,
                    change: OnceChange::Write { tokens, operations },
                })
            }
            Step::Transact(transact) => {
                let mut transact = transact.clone();
                for step in &mut transact.steps {
                    if let Action::Write(Operation::Set { revision, .. }) = &mut step.action {
                        *sequence += 1;
                        *revision = Revision::new(TERM, *sequence);
                    }
                }
                Change::Transact(transact)
            }
            Step::Expire(now_ms) => Change::Expire { now_ms: *now_ms },
            Step::Chunks(_) => return None,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// A3: a snapshot taken during writes, restored, plus the entries behind it, gives the same
        /// state, and the entries answer the same, releases included: none is lost or doubled.
        #[test]
        fn a_snapshot_and_what_follows_give_the_same_state(
            before in proptest::collection::vec(any_step(), 0..30),
            after in proptest::collection::vec(any_step(), 0..30),
            layouts in (1..20_usize, 1..20_usize),
        ) {
            let (mut sequence, mut now_ms) = (0, 0);
            let mut state = State::new(PlainShards::new(layouts.0));
            for id in 1..=4 {
                apply(&mut state, member(id, &format!("{id}")));
            }
            for step in &before {
                if let Some(change) = change(step, &mut sequence, &mut now_ms) {
                    apply(&mut state, change);
                }
            }
            let (index, digest) = (state.applied_index(), state.digest());
            let mut capture = state.begin_snapshot(index);
            capture.chunk_bytes = 1; // One message each.
            let mut chunks = Vec::new();
            let mut entries = Vec::new();
            for step in &after {
                if let Step::Chunks(count) = step {
                    for _ in 0..*count {
                        chunks.extend(capture.next_chunk(state.shards_mut()));
                    }
                }
                if let Some(change) = change(step, &mut sequence, &mut now_ms) {
                    let applied = apply(&mut state, change.clone());
                    entries.push((change, applied));
                }
            }
            chunks.extend(rest_of(&mut capture, &mut state));
            let mut restored = restore(&chunks, layouts.1).expect("valid");
            prop_assert_eq!(restored.digest(), digest);
            prop_assert_eq!(restored.applied_index(), index);
            for (change, applied) in entries {
                prop_assert_eq!(apply(&mut restored, change), applied);
            }
            prop_assert_eq!(restored.digest(), state.digest());
            prop_assert_eq!(restored.message_count(), state.message_count());
        }

        #[test]
        fn damaged_and_arbitrary_chunks_never_panic(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut: prop::sample::Index,
            noise: Vec<u8>,
        ) {
            let mut state = small_state(2);
            let mut capture = state.begin_snapshot(50);
            let good = rest_of(&mut capture, &mut state);
            for number in 0..good.len() {
                let mut chunks = good.clone();
                for (at, with) in &flips {
                    let at = at.index(chunks[number].len());
                    chunks[number][at] ^= with;
                }
                let _ = restore(&chunks, 2);
                let length = cut.index(chunks[number].len());
                chunks[number].truncate(length);
                prop_assert!(restore(&chunks, 2).is_err());
                chunks[number] = [&[3], &noise[..]].concat();
                let _ = restore(&chunks, 2);
            }
        }
    }
}
