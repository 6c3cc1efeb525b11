//! Reads, whose members answer in any order.

use super::*;

/// An id and the members that hold its message.
fn message() -> impl Strategy<Value = (u64, BTreeSet<u64>)> {
    (0..4u64, proptest::collection::btree_set(1..6u64, 1..4))
}

/// Every message that was ever listed, by revision.
type Ever = BTreeMap<Revision, (u64, Bytes)>;

fn put(world: &mut World, ever: &mut Ever, id: u64, set: &BTreeSet<u64>) {
    let revision = world.allot(1).first;
    let payload = Bytes::from(vec![7; ever.len()]);
    let members: Vec<MemberId> = set.iter().map(|n| member(*n)).collect();
    let entry = Entry {
        revision,
        replicas: ReplicaSet::new(&members).expect("distinct members"),
        length: payload.len() as u32,
    };
    ever.insert(revision, (id, payload.clone()));
    world.put(Key::Id(id), &payload, entry);
}

fn end_fetch(world: &mut World, at: usize, end: End) {
    let revisions = world.fetches[at].revisions.clone();
    let answer = match end {
        End::Good => {
            let found = revisions.iter().map(|r| world.fetched(*r));
            Answer::Results(found.collect())
        }
        End::Mixed(bits) => {
            let results = revisions.iter().enumerate().map(|(n, revision)| {
                match (bits >> (2 * n % 30)) & 3 {
                    0 => FetchResult::Missing,
                    1 => FetchResult::Damaged,
                    2 => FetchResult::Omitted,
                    _ => world.fetched(*revision),
                }
            });
            Answer::Results(results.collect())
        }
        End::WrongCount => Answer::Results(Vec::new()),
        End::Refused | End::OldLink => Answer::Refused(Refusal::Busy),
        End::NotSent => Answer::NotSent,
    };
    world.end_fetch(at, answer);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn reads_answer_every_key_once_and_only_with_what_was_listed(
        members in 1..6u64,
        mut stored in proptest::collection::vec(message(), 0..6),
        keys in proptest::collection::vec(0..4u64, 0..6),
        actions in proptest::collection::vec(action(), 0..60),
    ) {
        let mut world = World::new(members, 2);
        let mut ever = BTreeMap::new();
        let mut later = stored.split_off(stored.len() / 2).into_iter();
        for (id, set) in stored {
            put(&mut world, &mut ever, id, &set);
        }
        let at_start: BTreeSet<u64> = ever.values().map(|(id, _)| *id).collect();
        world.start(Batch::Reads(keys.iter().map(|id| Key::Id(*id)).collect()));
        for action in actions {
            match action {
                Action::End(n, end) if !world.fetches.is_empty() => {
                    let at = n % world.fetches.len();
                    end_fetch(&mut world, at, end);
                }
                Action::Lose(n) => world.lose(member(n)),
                Action::Connect(n) => world.connect(member(n)),
                Action::Wait(ms) => {
                    world.now = world.now + Duration::from_millis(ms);
                    world.step(Event::Tick);
                }
                Action::Confirm => world.step(Event::ReadConfirmed),
                Action::Apply(_) => {
                    if let Some((id, set)) = later.next() {
                        put(&mut world, &mut ever, id, &set);
                    }
                }
                Action::End(..) | Action::Reject(..) | Action::Fill(_) => {}
            }
        }
        run_out(&mut world);
        prop_assert_eq!(world.done.len(), 1, "done exactly once");
        prop_assert_eq!(world.done[0].len(), keys.len());
        for (id, reply) in keys.iter().zip(&world.done[0]) {
            match reply {
                Reply::Value { revision, payload } => {
                    let of = ever.get(revision).map(|(id, payload)| (id, payload));
                    prop_assert_eq!(of, Some((id, payload)));
                }
                Reply::NotFound => {
                    // Nothing is ever deleted here.
                    prop_assert!(!at_start.contains(id));
                }
                Reply::Failed(Failure::Unavailable { .. } | Failure::ReadTimedOut) => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
