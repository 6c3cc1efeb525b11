//! The bytes of transactions, and transactions for other tests.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::ids::MemberId;
use crate::metadata::command::{Change, Command};

/// Steps about these keys, of SETs on some of members 1 to 4; revisions are up to the caller.
pub(in crate::metadata) fn any_transact(
    key: impl Strategy<Value = Key> + Clone + 'static,
) -> impl Strategy<Value = Transact> {
    let one = || option::weighted(0.3, "[a-d]").prop_map(|text| Some(token(&text?)));
    let whole = option::weighted(0.3, "[e-g]").prop_map(|text| Some(token(&text?)));
    let steps = vec((any_step(key), one()), 1..8);
    (0..1000_u64, 1..100_u64, any::<bool>(), whole, steps).prop_map(
        |(now_ms, window_ms, is_atomic, whole, drafts)| Transact {
            now_ms,
            window_ms,
            is_atomic,
            steps: drafts
                .into_iter()
                .map(|(step, token)| {
                    let has_one = whole.is_none() && !matches!(step.action, Action::Get(_));
                    let token = token.filter(|_| has_one);
                    Step { token, ..step }
                })
                .collect(),
            token: whole,
        },
    )
}

fn any_step(key: impl Strategy<Value = Key> + Clone) -> impl Strategy<Value = Step> {
    let condition = || {
        let one = prop_oneof![
            (1..30_u64).prop_map(|sequence| Condition::Revision(Revision::new(5, sequence))),
            Just(Condition::Absent),
            Just(Condition::Exists),
        ];
        option::weighted(0.4, one)
    };
    let ttl_ms = || option::of(1..200_u64);
    let members = proptest::collection::btree_set(1..5_u64, 1..3);
    let set = (key.clone(), members, 0..100_u32, condition(), ttl_ms());
    let set = set.prop_map(|(key, members, length, condition, ttl_ms)| {
        let members: Vec<MemberId> = members.into_iter().map(MemberId).collect();
        Step {
            token: None,
            condition,
            ttl_ms,
            action: Action::Write(Operation::Set {
                key,
                revision: Revision::new(5, 0),
                replicas: ReplicaSet::new(&members).expect("distinct members"),
                length,
            }),
        }
    });
    let step = |condition, ttl_ms, action| Step {
        token: None,
        condition,
        ttl_ms,
        action,
    };
    let delete = (key.clone(), condition()).prop_map(move |(key, condition)| {
        step(condition, None, Action::Write(Operation::Delete { key }))
    });
    let expire = (key.clone(), ttl_ms())
        .prop_map(move |(key, ttl_ms)| step(None, ttl_ms, Action::Expire(key)));
    let get = key.prop_map(move |key| step(None, None, Action::Get(key)));
    prop_oneof![4 => set, 2 => delete, 2 => expire, 1 => get]
}

pub(in crate::metadata) fn token(text: &str) -> Token {
    Token::parse(text.as_bytes()).expect("a token")
}

#[test]
fn the_bytes_of_a_transaction_are_these() {
    let step = |token, condition, ttl_ms, action| Step {
        token,
        condition,
        ttl_ms,
        action,
    };
    let set = |id, member| {
        Action::Write(Operation::Set {
            key: Key::Id(id),
            revision: Revision::new(3, id),
            replicas: ReplicaSet::new(&[MemberId(member)]).expect("one member"),
            length: 200,
        })
    };
    let delete = Action::Write(Operation::Delete { key: Key::Id(3) });
    let revision = Condition::Revision(Revision::from_u64(0x0102));
    let mut transact = Transact {
        now_ms: 300,
        window_ms: 5,
        is_atomic: true,
        token: None,
        steps: vec![
            step(
                Some(token("a")),
                Some(Condition::Absent),
                Some(300),
                set(1, 9),
            ),
            step(None, Some(revision), None, set(2, 8)),
            step(None, Some(Condition::Exists), None, delete),
            step(None, None, Some(1), Action::Expire(Key::Id(4))),
            step(None, None, None, Action::Get(Key::Word("ab".into()))),
        ],
    };
    let encoded = |transact: &Transact| {
        let change = Change::Transact(transact.clone());
        Command { term: 3, change }.encode()
    };
    let expected = [
        &[3, 6, 3, 0, 0, 0, 0, 0, 0, 0][..],
        &[
            0xac, 2, 5, 1, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0, 1, 8, 0, 0, 0, 0, 0, 0, 0, 5,
        ],
        &[
            0x2c, 0, 1, 1, b'a', 0xac, 2, 0, 1, 0, 0, 0, 0, 3, 0, 0, 200, 1,
        ],
        &[
            0x10, 0, 2, 2, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3, 0, 0, 200, 1,
        ],
        &[0x31, 0, 3],
        &[0x0a, 0, 4, 1],
        &[0x03, 2, b'a', b'b'],
    ];
    assert_eq!(encoded(&transact), expected.concat());
    transact.steps.drain(..4);
    (transact.is_atomic, transact.token) = (false, Some(token("t")));
    let expected = [
        &[3, 6, 3, 0, 0, 0, 0, 0, 0, 0][..],
        &[0xac, 2, 5, 2, 1, b't', 0, 1, 0x03, 2, b'a', b'b'],
    ];
    assert_eq!(encoded(&transact), expected.concat());
    let expire = Change::Expire { now_ms: 300 };
    let bytes = Command {
        term: 3,
        change: expire,
    }
    .encode();
    assert_eq!(bytes, [3, 7, 3, 0, 0, 0, 0, 0, 0, 0, 0xac, 2]);
}

#[test]
fn parts_that_do_not_go_together_are_errors() {
    let decode = |body: &[u8]| {
        let head = [3, 6, 3, 0, 0, 0, 0, 0, 0, 0, 0, 5];
        Command::decode(&[&head[..], body].concat()).map_err(|error| error.to_string())
    };
    let invalid = |what: &str| Err(format!("command has a bad {what}"));
    assert!(decode(&[0, 0, 1, 3, 0, 7]).is_ok());
    assert_eq!(
        decode(&[4, 0, 1, 3, 0, 7]),
        invalid("flag of a transaction")
    );
    assert_eq!(decode(&[0, 0, 0]), invalid("number of steps"));
    // A get or a delete with a time to live, a get with a token, an expire with a condition.
    for form in [0x0b, 0x09, 0x07, 0x23, 0x22, 0x40] {
        let step = [0, 0, 1, form, 0, 7, 1, b'a', 1, 1];
        assert_eq!(decode(&step), invalid("form of a step"), "{form:x}");
    }
    assert_eq!(decode(&[0, 0, 1, 0x0a, 0, 7, 0]), invalid("time to live"));
    let set = [&[0, 0, 1, 0x00, 0, 7, 0][..], &[0; 8], &[0]].concat();
    assert_eq!(decode(&set), invalid("place of a replica set"));
    let two_tokens = [2, 1, b't', 0, 1, 0x05, 0, 7, 1, b'a'];
    assert_eq!(decode(&two_tokens), invalid("token of a step"));
}
