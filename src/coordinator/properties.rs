//! Random orders of events against the promises that coordinators make.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::events::{Answer, Event};
use super::testing::{World, member};
use crate::error::Failure;
use crate::ids::{Fence, Key, MemberId, Revision, Token};
use crate::metadata::command::{Applied, Change, Operation, OperationResult, StepResult};
use crate::metadata::message_index::Entry;
use crate::metadata::once::OnceChange;
use crate::metadata::replica_sets::ReplicaSet;
use crate::metadata::transact;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Batch, Condition, Step, Transaction, Write};
use crate::rpc::message::{FetchResult, Refusal, StoreResult};

mod reads;

type Copy = (Revision, MemberId);

/// All that may be in flight to one member.
const FULL: u64 = 64 << 20;

/// What a test does next; numbers choose among what is there.
#[derive(Clone, Debug)]
enum Action {
    /// Ends a store or a fetch.
    End(usize, End),
    Lose(u64),
    Connect(u64),
    /// Time passes, in milliseconds, and a tick comes.
    Wait(u64),
    Apply(usize),
    Reject(usize, Reject),
    Confirm,
    /// Others take up all that may be in flight to a member, or give it back.
    Fill(u64),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Good,
    /// Every record on its own is refused or bad: bits choose which.
    Mixed(u32),
    WrongCount,
    Refused,
    OldLink,
    NotSent,
}

#[derive(Clone, Copy, Debug)]
enum Reject {
    NotProposed,
    Superseded,
    Unknown,
}

fn action() -> impl Strategy<Value = Action> {
    let end = prop_oneof![
        6 => Just(End::Good),
        2 => any::<u32>().prop_map(End::Mixed),
        1 => Just(End::WrongCount),
        1 => Just(End::Refused),
        1 => Just(End::OldLink),
        1 => Just(End::NotSent),
    ];
    let reject = prop_oneof![
        Just(Reject::NotProposed),
        Just(Reject::Superseded),
        Just(Reject::Unknown)
    ];
    prop_oneof![
        12 => (any::<usize>(), end).prop_map(|(n, end)| Action::End(n, end)),
        1 => (1..6u64).prop_map(Action::Lose),
        1 => (1..6u64).prop_map(Action::Connect),
        3 => (0..700u64).prop_map(Action::Wait),
        4 => any::<usize>().prop_map(Action::Apply),
        1 => (any::<usize>(), reject).prop_map(|(n, reject)| Action::Reject(n, reject)),
        2 => Just(Action::Confirm),
        1 => (1..6u64).prop_map(Action::Fill),
    ]
}

fn batch() -> impl Strategy<Value = Batch> {
    let length = proptest::option::weighted(0.8, 0..50usize);
    let write = (0..4u64, length, token_or_none()).prop_map(|(id, length, token)| {
        let key = Key::Id(id);
        match length {
            Some(length) => Write::set(key, Bytes::from(vec![7; length]), token),
            None => Write::delete(key, token),
        }
    });
    let bulk = (1..12u64, token_or_none()).prop_map(|(count, token)| Batch::Bulk {
        count,
        payload: Bytes::from_static(b"bulk"),
        token,
    });
    let condition = proptest::option::weighted(
        0.3,
        prop_oneof![
            Just(Condition::Absent),
            Just(Condition::Exists),
            (1..9_u64).prop_map(|n| Condition::Revision(Revision::new(super::testing::TERM, n))),
        ],
    );
    let write = (write, condition, proptest::option::weighted(0.2, 1..900u64)).prop_map(
        |(mut write, demanded, ttl)| {
            match &mut write {
                Write::Set { options, .. } => {
                    (options.condition, options.ttl_ms) = (demanded, ttl);
                }
                Write::Delete { condition, .. } => *condition = demanded,
                Write::Expire { .. } => unreachable!("none was made"),
            }
            write
        },
    );
    let write = write.boxed();
    let step = prop_oneof![
        4 => write.clone().prop_map(|mut write| {
            match &mut write {
                Write::Set { options, .. } => options.token = None,
                Write::Delete { token, .. } | Write::Expire { token, .. } => *token = None,
            }
            Step::Write(write)
        }),
        1 => (0..4u64).prop_map(|id| Step::Get(Key::Id(id))),
    ];
    let steps = proptest::collection::vec(step, 1..9);
    let transaction =
        (steps, any::<bool>(), token_or_none()).prop_map(|(steps, is_atomic, token)| {
            Batch::Transaction(Transaction {
                steps,
                is_atomic,
                token,
            })
        });
    prop_oneof![
        3 => proptest::collection::vec(write, 0..9).prop_map(Batch::Writes),
        3 => transaction,
        1 => bulk,
    ]
}

fn token_or_none() -> impl Strategy<Value = Option<Token>> {
    proptest::option::weighted(0.4, "[ab]").prop_map(|text| Some(token(&text?)))
}

/// An earlier attempt used token `a`: of a bulk write some messages were stored, anything else was
/// done.
fn attempt(world: &mut World, batch: &Batch, stored: &BTreeSet<u64>) {
    let token = token("a");
    let Batch::Bulk { count, .. } = *batch else {
        let key = Key::Id(0);
        let once = OnceChange::Write {
            tokens: vec![(0, token)],
            operations: vec![Operation::Delete { key }],
        };
        world.change(world.limits.once(once));
        return;
    };
    let reservation = OnceChange::ReserveIds {
        token: token.clone(),
        count,
    };
    let Applied::Reserved { first } = world.change(world.limits.once(reservation)) else {
        panic!("a fresh token");
    };
    let stored = stored.iter().filter(|position| **position < count);
    let operations = stored.map(|position| Operation::Set {
        key: Key::Id(first + position),
        revision: world.allot(1).first,
        replicas: ReplicaSet::new(&[member(9)]).expect("one member"),
        length: 4,
    });
    let operations = operations.collect();
    let part = OnceChange::WritePart { token, operations };
    world.change(world.limits.once(part));
}

fn token(text: &str) -> Token {
    Token::parse(text.as_bytes()).expect("a valid token")
}

/// What must hold of a write, collected while it runs.
#[derive(Default)]
struct Model {
    /// Sent, and not known to be absent.
    may_exist: BTreeSet<Copy>,
    acknowledged: BTreeSet<Copy>,
    sent: BTreeSet<Copy>,
    /// The sets of applied entries.
    listed: BTreeMap<Revision, ReplicaSet>,
    /// Of applied entries what changed nothing because of a token: apply released it.
    passed_over: BTreeSet<Revision>,
    /// A proposal ended without being applied, and its term with it or nobody knows.
    is_undecided: bool,
}

impl Model {
    /// Stores that were sent since the last look.
    fn look(&mut self, world: &World) {
        for call in &world.stores {
            for record in call.records.iter() {
                self.sent.insert((record.revision, call.member));
                self.may_exist.insert((record.revision, call.member));
            }
        }
    }

    fn end_store(&mut self, world: &mut World, at: usize, end: End) {
        let call = &world.stores[at];
        let copies = call.records.iter().map(|r| (r.revision, call.member));
        let copies: Vec<Copy> = copies.collect();
        let count = copies.len();
        let answer = match end {
            End::Good => Answer::Results(vec![StoreResult::Stored; count]),
            End::Mixed(bits) => Answer::Results(
                (0..count)
                    .map(|n| match bits >> (n % 32) & 1 {
                        0 => StoreResult::Stored,
                        _ => StoreResult::DiskFull,
                    })
                    .collect(),
            ),
            End::WrongCount => Answer::Results(vec![StoreResult::Stored; count + 1]),
            End::Refused => Answer::Refused(Refusal::Busy),
            End::OldLink => Answer::Refused(Refusal::StaleFence {
                highest: Fence {
                    term: super::testing::TERM,
                    link: 9,
                },
            }),
            End::NotSent => Answer::NotSent,
        };
        match &answer {
            Answer::Results(results) if results.len() == count => {
                for (copy, result) in copies.into_iter().zip(results) {
                    match result {
                        StoreResult::Stored => self.acknowledged.insert(copy),
                        _ => self.may_exist.remove(&copy),
                    };
                }
            }
            Answer::Results(_) | Answer::LinkLost => {}
            Answer::Refused(_) | Answer::NotSent => {
                for copy in copies {
                    self.may_exist.remove(&copy);
                }
            }
        }
        world.end_store(at, answer);
    }

    /// What is proposed has its copies (A1, A2, R9), acknowledged before the proposal.
    fn check_proposals(&self, world: &World) {
        for proposal in &world.proposals {
            for operation in proposal.command.operations() {
                if let Operation::Set {
                    revision, replicas, ..
                } = operation
                {
                    let members = replicas.as_slice();
                    assert_eq!(members.len(), usize::from(world.tolerance));
                    for member in members {
                        assert!(self.acknowledged.contains(&(*revision, *member)));
                        assert!(!proposal.settlement.given_up.contains(&(*revision, *member)));
                    }
                }
            }
        }
    }

    fn apply(&mut self, world: &mut World, at: usize) {
        let has_operation: Vec<bool> = match &world.proposals[at].command.change {
            Change::Transact(transact) => {
                let steps = transact.steps.iter();
                steps
                    .map(|step| matches!(step.action, transact::Action::Write(_)))
                    .collect()
            }
            _ => Vec::new(),
        };
        let operations = world.proposals[at].command.operations();
        let operations: Vec<Operation> = operations.cloned().collect();
        let applied = world.apply(at);
        let released = applied.released().to_vec();
        let results: Vec<OperationResult> = match applied {
            Applied::Write { results, .. } => results,
            // Its reads and changes of expiry have no copies.
            Applied::Transacted { results, .. } => {
                let results = results.iter().zip(&has_operation).filter(|(_, has)| **has);
                let results = results.map(|(result, _)| match result {
                    StepResult::Done(result) => *result,
                    StepResult::Got(_) => unreachable!("an operation is no read"),
                });
                results.collect()
            }
            _ => return,
        };
        for (operation, result) in operations.iter().zip(results) {
            let Operation::Set {
                revision, replicas, ..
            } = operation
            else {
                continue;
            };
            if matches!(result, OperationResult::Stored { .. }) {
                self.listed.insert(*revision, *replicas);
            } else {
                assert!(released.contains(&(*revision, *replicas)));
                self.passed_over.insert(*revision);
            }
        }
    }

    fn reject(&mut self, world: &mut World, at: usize, reject: Reject) {
        let proposal = world.proposals.remove(at);
        let (tag, closed) = (proposal.tag, proposal.settlement.closed);
        let failure = Failure::NotLeader { leader: None };
        let settled = world.settled.len();
        world.step(match reject {
            Reject::NotProposed => Event::NotProposed { tag, failure },
            Reject::Superseded => Event::Superseded { tag, failure },
            Reject::Unknown => Event::OutcomeUnknown { tag },
        });
        // Not even then if the batch gave up waiting before: that is left to the audit.
        let mut settled = world.settled[settled..].iter();
        self.is_undecided |= settled.all(|settlement| settlement.closed != closed);
    }

    fn check_replies(&self, world: &World, batch: &Batch, replies: &[Reply]) {
        let expected = match batch {
            Batch::Writes(writes) => writes.len(),
            _ => 1,
        };
        assert_eq!(replies.len(), expected);
        let mut all = replies;
        if let ([Reply::Transaction(steps)], Batch::Transaction(transaction)) = (replies, batch) {
            assert_eq!(steps.len(), transaction.steps.len());
            let is_refused = |reply: &Reply| {
                let not_applied = matches!(reply, Reply::Failed(Failure::NotApplied { .. }));
                not_applied || matches!(reply, Reply::Mismatch { .. })
            };
            let refused = steps.iter().filter(|reply| is_refused(reply)).count();
            assert!(!transaction.is_atomic || [0, steps.len()].contains(&refused));
            all = steps;
        }
        for reply in all {
            if let Reply::Stored { revision, .. } = reply {
                assert!(
                    self.listed.contains_key(revision),
                    "OK before it was applied"
                );
            }
            if let (Reply::BulkStored { first, last }, Batch::Bulk { count, .. }) = (reply, batch) {
                assert_eq!(last - first + 1, *count);
                for id in *first..=*last {
                    assert!(world.entry(&Key::Id(id)).is_some(), "{id} is not there");
                }
            }
        }
    }

    /// When all is over: every copy that may exist is listed or released, and none is both.
    fn check_end(&self, world: &World) {
        let mut released = BTreeSet::new();
        for settlement in &world.settled {
            for copy in &settlement.given_up {
                assert!(self.sent.contains(copy), "released what was never sent");
                assert!(released.insert(*copy), "released twice");
            }
        }
        for copy in &self.may_exist {
            let listed = self.listed.get(&copy.0).is_some_and(|s| s.contains(copy.1));
            assert!(
                !(listed && released.contains(copy)),
                "a listed copy is released (A10)"
            );
            if !self.is_undecided {
                let released = released.contains(copy) || self.passed_over.contains(&copy.0);
                assert!(listed || released, "{copy:?} is forgotten");
            }
        }
        for member in world.cluster.members() {
            assert_eq!(world.cluster.bytes_in_flight(member.id), 0);
            assert_eq!(member.load.records_in_flight(), 0);
        }
    }
}

/// Lets deadlines pass until the batch is done; nobody answers any more.
fn run_out(world: &mut World) {
    for _ in 0..2000 {
        let coordinator = world.coordinator.as_ref().expect("a batch was started");
        if coordinator.is_done() {
            return;
        }
        world.now = coordinator.next_deadline().max(world.now);
        world.step(Event::Tick);
        let coordinator = world.coordinator.as_ref().expect("a batch was started");
        assert!(
            coordinator.next_deadline() > world.now,
            "a tick changed nothing"
        );
    }
    panic!("the batch never ends");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn writes_keep_their_promises_in_any_order_of_events(
        members in 0..6u64,
        tolerance in 1..4u8,
        batch in batch(),
        before in proptest::option::of(proptest::collection::btree_set(0..12u64, 0..6)),
        actions in proptest::collection::vec(action(), 0..60),
    ) {
        let mut world = World::new(members, tolerance);
        world.limits.run_messages_max = 2;
        world.limits.part_messages_max = 3;
        let mut model = Model::default();
        let mut filled = BTreeSet::new();
        let (payload, revision) = (Bytes::from_static(b"before"), world.allot(1).first);
        let entry = Entry {
            revision,
            replicas: ReplicaSet::new(&[member(1)]).expect("one member"),
            length: payload.len() as u32,
        };
        world.put(Key::Id(3), &payload, entry);
        if let Some(stored) = before {
            attempt(&mut world, &batch, &stored);
        }
        world.start(batch.clone());
        model.look(&world);
        for action in actions {
            match action {
                Action::End(n, _) if !world.fetches.is_empty() => {
                    let at = n % world.fetches.len();
                    let revisions = world.fetches[at].revisions.clone();
                    let results = revisions.iter().map(|revision| world.fetched(*revision));
                    let answer = Answer::Results(results.collect());
                    world.end_fetch(at, answer);
                }
                Action::End(n, end) if !world.stores.is_empty() => {
                    let at = n % world.stores.len();
                    model.end_store(&mut world, at, end);
                }
                Action::Lose(n) => world.lose(member(n)),
                Action::Connect(n) => world.connect(member(n)),
                Action::Wait(ms) => {
                    world.now = world.now + Duration::from_millis(ms);
                    world.step(Event::Tick);
                }
                Action::Apply(n) if !world.proposals.is_empty() => {
                    let at = n % world.proposals.len();
                    model.apply(&mut world, at);
                }
                Action::Reject(n, reject) if !world.proposals.is_empty() => {
                    let at = n % world.proposals.len();
                    model.reject(&mut world, at, reject);
                }
                Action::Fill(n) if filled.remove(&n) => {
                    world.cluster.settle(member(n), 1, FULL);
                }
                Action::Fill(n) => {
                    filled.insert(n);
                    world.cluster.charge(member(n), 1, FULL);
                }
                Action::End(..) | Action::Apply(_) | Action::Reject(..) | Action::Confirm => {}
            }
            model.look(&world);
            model.check_proposals(&world);
        }
        run_out(&mut world);
        model.look(&world);
        for n in filled {
            world.cluster.settle(member(n), 1, FULL);
        }
        while !world.stores.is_empty() {
            model.end_store(&mut world, 0, End::Good);
        }
        while !world.proposals.is_empty() {
            model.apply(&mut world, 0);
        }
        prop_assert_eq!(world.done.len(), 1, "done exactly once");
        model.check_replies(&world, &batch, &world.done[0]);
        model.check_end(&world);
    }
}
