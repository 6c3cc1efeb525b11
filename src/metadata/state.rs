//! The state machine: [`State::apply`] is the only way anything in the metadata changes. Pure.
//!
//! It depends on the commands, their order and their terms alone (A3): not on time, chance, hash
//! order or the number of shards. What can fail follows from the command and the state, and is an
//! answer ([`Applied`]); a broken invariant stops the process.
//!
//! The thread that applies owns the `State`. Message index and table of replica sets are reached
//! through [`Shards`], so that other threads can look messages up meanwhile: in a leader it puts a
//! lock around each shard and one around the table, in tests it is plain values ([`PlainShards`]).
//! Locks are taken one at a time here. A lookup resolves its set while it holds the shard: the
//! message keeps the set in use, as `apply` acquires a set before a message names it and releases
//! it after. Lookups beside `apply` see each message before or after a command, not all at once.
//!
//! A snapshot of the state at one index is taken while commands go on: `metadata::snapshot`.

pub(super) mod digest;
mod once;
mod transact;
mod writes;

pub use self::transact::{EXPIRED_MAX, forget_met_conditions};

use std::collections::BTreeSet;

use crate::faults::{self, Fault};
use crate::ids::{Key, MemberId, TOLERANCE_MAX, TOLERANCE_MIN};
use crate::metadata::command::{Applied, Change, Command, Operation};
use crate::metadata::members::Members;
use crate::metadata::message_index::{Entry, Lookup, Shard, Slot, shard_of};
use crate::metadata::replica_sets::ReplicaSets;
use crate::metadata::settings::Settings;
use crate::metadata::snapshot::ShardCell;
use crate::metadata::tokens::Tokens;
use digest::Digest;

/// Where the message index and the table of replica sets are kept.
pub trait Shards {
    /// How many shards there are; at least one, always the same.
    fn shard_count(&self) -> usize;
    /// Reads one shard, below `shard_count`.
    fn read_shard<R>(&self, shard: usize, read: impl FnOnce(&Shard) -> R) -> R;
    /// Changes one shard, below `shard_count`.
    fn write_shard<R>(&mut self, shard: usize, write: impl FnOnce(&mut Shard) -> R) -> R;
    /// Reads the table of replica sets. A lookup calls this while it reads a shard.
    fn read_sets<R>(&self, read: impl FnOnce(&ReplicaSets) -> R) -> R;
    /// Changes the table of replica sets; never called while a shard is read or changed.
    fn write_sets<R>(&mut self, write: impl FnOnce(&mut ReplicaSets) -> R) -> R;

    /// A snapshot begins: until `end_snapshot` a shard is copied before its first change, and the
    /// table of replica sets is pinned.
    fn begin_snapshot(&mut self);
    /// The shard as it was when the snapshot began; asked for once each, between begin and end.
    fn take_shard(&mut self, shard: usize) -> Shard;
    /// The snapshot is complete or given up: copies that nobody took go.
    fn end_snapshot(&mut self);

    /// When a message expires, if it does; `None` if there is no such message.
    fn expiry_ms(&self, key: &Key) -> Option<Option<u64>> {
        self.read_shard(shard_of(key, self.shard_count()), |shard| {
            shard.find(key).map(|_| shard.expiry(key))
        })
    }

    /// The current record of `key`; what a [`Lookup`] of the same store answers.
    fn entry(&self, key: &Key) -> Option<Entry> {
        self.read_shard(shard_of(key, self.shard_count()), |shard| {
            let slot = shard.find(key)?;
            Some(Entry {
                revision: slot.revision,
                replicas: self.read_sets(|sets| sets.set(slot.set)),
                length: slot.length,
            })
        })
    }
}

/// Shards as plain values, for one thread.
#[derive(Debug)]
pub struct PlainShards {
    shards: Vec<ShardCell>,
    sets: ReplicaSets,
    /// The number of the snapshot that is being taken, if one is.
    snapshot: Option<u64>,
    /// How many snapshots were begun.
    snapshots: u64,
}

impl PlainShards {
    /// Empty ones; `count` is at least one.
    pub fn new(count: usize) -> PlainShards {
        assert!(count > 0, "there is at least one shard");
        PlainShards {
            shards: std::iter::repeat_with(ShardCell::default)
                .take(count)
                .collect(),
            sets: ReplicaSets::default(),
            snapshot: None,
            snapshots: 0,
        }
    }
}

impl Shards for PlainShards {
    fn shard_count(&self) -> usize {
        self.shards.len()
    }

    fn read_shard<R>(&self, shard: usize, read: impl FnOnce(&Shard) -> R) -> R {
        read(self.shards[shard].shard())
    }

    fn write_shard<R>(&mut self, shard: usize, write: impl FnOnce(&mut Shard) -> R) -> R {
        write(self.shards[shard].change(self.snapshot))
    }

    fn read_sets<R>(&self, read: impl FnOnce(&ReplicaSets) -> R) -> R {
        read(&self.sets)
    }

    fn write_sets<R>(&mut self, write: impl FnOnce(&mut ReplicaSets) -> R) -> R {
        write(&mut self.sets)
    }

    fn begin_snapshot(&mut self) {
        self.sets.pin();
        self.snapshots += 1;
        self.snapshot = Some(self.snapshots);
    }

    fn take_shard(&mut self, shard: usize) -> Shard {
        let snapshot = self.snapshot.expect("a snapshot is being taken");
        self.shards[shard].take(snapshot)
    }

    fn end_snapshot(&mut self) {
        self.snapshot = None;
        self.shards.iter_mut().for_each(ShardCell::forget);
        self.sets.unpin();
    }
}

impl Lookup for PlainShards {
    fn find(&self, key: &Key) -> Option<Entry> {
        self.entry(key)
    }
}

/// The replicated state.
#[derive(Debug)]
pub struct State<S> {
    pub(super) shards: S,
    pub(super) members: Members,
    pub(super) settings: Settings,
    pub(super) tokens: Tokens,
    /// When each message expires that does; the shards hold the same by key.
    pub(super) expiry: BTreeSet<(u64, Key)>,
    /// How many messages there are: the shards' lengths added up.
    pub(super) messages: u64,
    /// The Raft index up to which everything is applied.
    pub(super) applied_index: u64,
    /// Members whose counters changed since the last `take_changed_loads`; not replicated.
    pub(super) changed: BTreeSet<MemberId>,
}

impl<S: Shards> State<S> {
    /// The state before the first command; the shards are empty.
    pub fn new(shards: S) -> State<S> {
        State {
            shards,
            members: Members::default(),
            settings: Settings::default(),
            tokens: Tokens::default(),
            expiry: BTreeSet::new(),
            messages: 0,
            applied_index: 0,
            changed: BTreeSet::new(),
        }
    }

    /// Forgets everything, as before the first command. A snapshot that is being taken keeps what
    /// it has to hold.
    pub fn clear(&mut self) {
        for shard in 0..self.shards.shard_count() {
            if self.shards.read_shard(shard, |shard| !shard.is_empty()) {
                self.shards
                    .write_shard(shard, |shard| _ = std::mem::take(shard));
            }
        }
        self.shards.write_sets(|sets| {
            let used: Vec<_> = sets.iter().collect();
            for (id, _, named) in used {
                sets.release(id, named);
            }
        });
        self.members = Members::default();
        self.settings = Settings::default();
        self.tokens = Tokens::default();
        self.expiry.clear();
        self.messages = 0;
        self.applied_index = 0;
        self.changed.clear();
    }

    /// Applies the command of the log entry at `index`, which was proposed in `entry_term`.
    pub fn apply(&mut self, index: u64, entry_term: u64, command: &Command) -> Applied {
        self.advance(index);
        if !is_of_term(command, entry_term) && !faults::has(Fault::ProposeInOtherTerm) {
            return Applied::WrongTerm;
        }
        match &command.change {
            Change::Write(operations) => self.write(operations),
            Change::ReserveIds { count } => self.reserve_ids(*count),
            Change::RegisterMember(registration) => {
                self.changed.insert(registration.id);
                self.members.register(registration)
            }
            Change::AdmitMember {
                registration,
                replace,
            } => {
                self.changed.insert(registration.id);
                self.members.admit(registration, *replace)
            }
            Change::SetTolerance(tolerance) => {
                assert!((TOLERANCE_MIN..=TOLERANCE_MAX).contains(tolerance));
                self.settings.tolerance = Some(*tolerance);
                Applied::Set
            }
            Change::Once(once) => self.once(once),
            Change::Transact(transact) => self.transact(transact),
            Change::Expire { now_ms } => self.expire(*now_ms),
        }
    }

    /// The log entry at `index` holds no command (the no-op of a term): nothing else changes.
    pub fn advance(&mut self, index: u64) {
        assert!(
            index > self.applied_index,
            "entry {index} comes after entry {} was applied",
            self.applied_index
        );
        self.applied_index = index;
    }

    fn reserve_ids(&mut self, count: u64) -> Applied {
        match self.fresh_ids(count) {
            Some(first) => Applied::Reserved { first },
            None => Applied::IdsExhausted,
        }
    }

    /// A million ids are a million questions, some 15 ms: as long as heartbeats can well wait.
    fn fresh_ids(&mut self, count: u64) -> Option<u64> {
        let shards = &self.shards;
        let is_used = |id| {
            let shard = shard_of(&Key::Id(id), shards.shard_count());
            shards.read_shard(shard, |shard| shard.contains_id(id))
        };
        let first = self.settings.fresh_ids(count, is_used)?;
        self.settings.reserved_until = first + (count - 1);
        Some(first)
    }

    /// Up to which Raft index everything is applied.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// How many messages there are.
    pub fn message_count(&self) -> u64 {
        self.messages
    }

    /// How many members hold each message; `None` until it was set.
    pub fn tolerance(&self) -> Option<u8> {
        self.settings.tolerance
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Tokens that are remembered.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The registry.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Message index and replica sets.
    pub fn shards(&self) -> &S {
        &self.shards
    }

    /// Message index and replica sets, for whoever takes a snapshot.
    pub fn shards_mut(&mut self) -> &mut S {
        &mut self.shards
    }

    /// How many copies the member holds, and their payload bytes; zero if it is not registered.
    pub fn member_load(&self, id: MemberId) -> (u64, u64) {
        self.members
            .member(id)
            .map_or((0, 0), |member| (member.records, member.bytes))
    }

    /// Members whose counters changed since the last call, by id, with their copies and bytes.
    pub fn take_changed_loads(&mut self) -> Vec<(MemberId, u64, u64)> {
        let changed = std::mem::take(&mut self.changed);
        let load = |id| {
            let (records, bytes) = self.member_load(id);
            (id, records, bytes)
        };
        changed.into_iter().map(load).collect()
    }

    /// A number that is the same for equal states, on every leader, in any layout of shards, and
    /// differs for different ones but by accident (2^-64). It reads everything: for checks.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        digest.number(self.messages);
        digest.number(self.settings.reserved_until);
        digest.number(self.settings.tolerance.map_or(0, u64::from));
        for member in self.members.iter() {
            let registration = &member.registration;
            digest.number(registration.id.0);
            digest.text(&registration.name);
            digest.text(&registration.address);
            digest.text(&registration.zone);
            digest.number(registration.incarnation);
            digest.number(registration.nonce);
            digest.number(u64::from(member.is_retired));
            digest.number(member.records);
            digest.number(member.bytes);
        }
        // Messages come in no order, so theirs are added up. The numbers of sets are left out, and
        // what counts of the table follows from the messages.
        let mut messages = 0_u64;
        for shard in 0..self.shards.shard_count() {
            let sum = self.shards.read_shard(shard, |shard| {
                let ids = shard
                    .ids()
                    .map(|(id, slot)| self.message_digest(1, id, "", slot));
                let expiries = shard.expiries().map(|(key, expires_ms)| {
                    let mut digest = Digest::default();
                    digest.number(3);
                    digest.text(&key.to_string());
                    digest.number(expires_ms);
                    digest.value()
                });
                let words = shard
                    .words()
                    .map(|(key, slot)| self.message_digest(2, 0, key, slot));
                let all = ids.chain(words).chain(expiries);
                all.fold(0, u64::wrapping_add)
            });
            messages = messages.wrapping_add(sum);
        }
        digest.number(messages);
        self.tokens.digest(&mut digest);
        digest.value()
    }

    fn message_digest(&self, kind: u64, id: u64, word: &str, slot: Slot) -> u64 {
        let mut digest = Digest::default();
        digest.number(kind);
        digest.number(id);
        digest.text(word);
        digest.number(slot.revision.as_u64());
        digest.number(u64::from(slot.length));
        let set = self.shards.read_sets(|sets| sets.set(slot.set));
        for member in set.as_slice() {
            digest.number(member.0);
        }
        digest.value()
    }
}

impl<S: Shards> Lookup for State<S> {
    fn find(&self, key: &Key) -> Option<Entry> {
        self.shards.entry(key)
    }
}

/// R2: the command, and each revision in it, is of the term in which its entry was proposed.
fn is_of_term(command: &Command, entry_term: u64) -> bool {
    command.term == entry_term
        && command.operations().all(|operation| match operation {
            Operation::Set { .. } if faults::has(Fault::CountEarlierTermCopy) => true,
            Operation::Set { revision, .. } => revision.term() == entry_term,
            Operation::Delete { .. } => true,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Revision;
    use crate::metadata::command::{OperationResult, Registration};
    use crate::metadata::replica_sets::ReplicaSet;

    const TERM: u64 = 3;

    struct Harness {
        state: State<PlainShards>,
        sequence: u64,
    }

    impl Harness {
        /// A state with members 1 to 3, named `m1` to `m3`.
        fn new() -> Harness {
            let state = State::new(PlainShards::new(4));
            let mut harness = Harness { state, sequence: 0 };
            for id in 1..=3 {
                harness.register(id, &format!("m{id}"));
            }
            harness
        }

        fn apply(&mut self, change: Change) -> Applied {
            let index = self.state.applied_index() + 1;
            self.state
                .apply(index, TERM, &Command { term: TERM, change })
        }

        fn register(&mut self, id: u64, name: &str) -> Applied {
            self.apply(Change::RegisterMember(Registration {
                id: MemberId(id),
                name: name.to_owned(),
                address: String::new(),
                zone: String::new(),
                incarnation: 1,
                nonce: 1,
            }))
        }

        fn set(&mut self, id: u64, members: &[u64], length: u32) -> Operation {
            self.sequence += 1;
            let members: Vec<MemberId> = members.iter().map(|id| MemberId(*id)).collect();
            Operation::Set {
                key: Key::Id(id),
                revision: Revision::new(TERM, self.sequence),
                replicas: ReplicaSet::new(&members).expect("distinct members"),
                length,
            }
        }

        fn load(&self, id: u64) -> (u64, u64) {
            self.state.member_load(MemberId(id))
        }
    }

    fn copies(operation: &Operation) -> (Revision, ReplicaSet) {
        match operation {
            Operation::Set {
                revision, replicas, ..
            } => (*revision, *replicas),
            Operation::Delete { .. } => panic!("a DEL has no copies"),
        }
    }

    #[test]
    fn operations_take_effect_in_order_within_an_entry() {
        let mut h = Harness::new();
        let (first, second) = (h.set(7, &[1, 2], 10), h.set(7, &[2, 3], 20));
        let delete = Operation::Delete { key: Key::Id(7) };
        let operations = vec![first.clone(), second.clone(), delete.clone(), delete];
        let (results, released) = match h.apply(Change::Write(operations)) {
            Applied::Write { results, released } => (results, released),
            other => panic!("{other:?}"),
        };
        use OperationResult::{Deleted, NotFound, Stored};
        let (first_set, second_set) = (Stored { created: true }, Stored { created: false });
        assert_eq!(results, [first_set, second_set, Deleted, NotFound]);
        assert_eq!(released, [copies(&first), copies(&second)]);
        assert_eq!((h.state.message_count(), h.load(2)), (0, (0, 0)));
        assert!(h.state.shards().sets.is_empty());
    }

    #[test]
    fn copies_and_bytes_of_members_are_true() {
        let mut h = Harness::new();
        h.state.take_changed_loads();
        let operations = vec![
            h.set(1, &[1, 2], 10),
            h.set(2, &[1, 2], 5),
            h.set(3, &[2], 1),
        ];
        h.apply(Change::Write(operations));
        let changed = [(MemberId(1), 2, 15), (MemberId(2), 3, 16)];
        assert_eq!(h.state.take_changed_loads(), changed);
        assert_eq!(h.state.take_changed_loads(), []);
        let overwrite = h.set(1, &[3], 100);
        h.apply(Change::Write(vec![overwrite]));
        assert_eq!(
            (h.load(1), h.load(2), h.load(3)),
            ((1, 5), (2, 6), (1, 100))
        );
    }

    #[test]
    fn an_entry_of_another_term_changes_nothing() {
        let mut h = Harness::new();
        let digest = h.state.digest();
        let set = h.set(1, &[1], 1);
        let write = Change::Write(vec![set]);
        let forwarded = Command {
            term: TERM,
            change: write.clone(),
        };
        assert_eq!(h.state.apply(10, TERM + 1, &forwarded), Applied::WrongTerm);
        let foreign_revision = Command {
            term: TERM + 1,
            change: write,
        };
        assert_eq!(
            h.state.apply(11, TERM + 1, &foreign_revision),
            Applied::WrongTerm
        );
        let ids = Command {
            term: 2,
            change: Change::ReserveIds { count: 1 },
        };
        assert_eq!(h.state.apply(12, TERM, &ids), Applied::WrongTerm);
        assert_eq!((h.state.digest(), h.state.applied_index()), (digest, 12));
    }

    #[test]
    fn an_unregistered_or_retired_member_takes_no_copies() {
        let mut h = Harness::new();
        let held = h.set(1, &[1, 2], 10);
        h.apply(Change::Write(vec![held.clone()]));
        h.register(11, "m1");
        let (unknown, retired) = (h.set(1, &[2, 9], 1), h.set(2, &[1, 2], 1));
        let expected = Applied::Write {
            results: vec![OperationResult::UnknownMember; 2],
            released: vec![copies(&unknown), copies(&retired)],
        };
        assert_eq!(h.apply(Change::Write(vec![unknown, retired])), expected);
        let entry = h.state.find(&Key::Id(1)).expect("still there");
        assert_eq!((entry.revision, entry.replicas), copies(&held));
        assert_eq!(
            h.load(1),
            (1, 10),
            "a retired member stays listed for its copies"
        );
        h.apply(Change::Write(vec![Operation::Delete { key: Key::Id(1) }]));
        assert_eq!(h.load(1), (0, 0));
    }

    #[test]
    fn reserved_ids_are_fresh_and_explicit_ones_do_not_move_the_counter() {
        let mut h = Harness::new();
        let operations = vec![h.set(2, &[1], 1), h.set(1_000_000, &[1], 1)];
        h.apply(Change::Write(operations));
        let mut reserve = |count| h.apply(Change::ReserveIds { count });
        assert_eq!(reserve(1), Applied::Reserved { first: 1 });
        assert_eq!(reserve(1), Applied::Reserved { first: 3 });
        assert_eq!(reserve(10), Applied::Reserved { first: 4 });
        assert_eq!(reserve(1_000_000), Applied::Reserved { first: 1_000_001 });
    }

    /// Leaders of two builds compare digests, so what this one says must not change.
    #[test]
    fn the_digest_of_this_state_is_fixed() {
        let mut h = Harness::new();
        let word = Key::parse(b"a/longer/key").expect("a key");
        let Operation::Set {
            revision,
            replicas,
            length,
            ..
        } = h.set(9, &[1, 3], 7)
        else {
            panic!("a SET");
        };
        let set = Operation::Set {
            key: word,
            revision,
            replicas,
            length,
        };
        let operations = vec![h.set(1, &[1, 2], 10), set];
        h.apply(Change::Write(operations));
        h.apply(Change::ReserveIds { count: 5 });
        h.apply(Change::SetTolerance(2));
        assert_eq!(h.state.digest(), 15_337_003_233_434_230_270);
    }

    #[test]
    #[should_panic(expected = "comes after entry")]
    fn an_entry_is_not_applied_twice() {
        let mut h = Harness::new();
        h.state.advance(10);
        h.state.advance(10);
    }
}

#[cfg(test)]
mod properties {
    use super::*;
    use crate::ids::Revision;
    use crate::metadata::command::{OperationResult, Registration};
    use crate::metadata::replica_sets::ReplicaSet;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Everything naive: a sorted map, sums over all messages, the registry's rules once more.
    #[derive(Default)]
    struct Model {
        messages: BTreeMap<Key, Entry>,
        /// Every record that was written and not released.
        records: BTreeMap<Revision, ReplicaSet>,
        /// id -> name, retired.
        members: BTreeMap<MemberId, (String, bool)>,
        reserved_until: u64,
    }

    impl Model {
        fn operation(&mut self, operation: &Operation) -> OperationResult {
            match operation {
                Operation::Set {
                    key,
                    revision,
                    replicas,
                    length,
                } => {
                    self.records.insert(*revision, *replicas);
                    let active = |id| self.members.get(id).is_some_and(|(_, retired)| !retired);
                    if !replicas.as_slice().iter().all(active) {
                        return OperationResult::UnknownMember;
                    }
                    let (revision, replicas, length) = (*revision, *replicas, *length);
                    let entry = Entry {
                        revision,
                        replicas,
                        length,
                    };
                    let before = self.messages.insert(key.clone(), entry);
                    let created = before.is_none();
                    OperationResult::Stored { created }
                }
                Operation::Delete { key } => match self.messages.remove(key) {
                    Some(_) => OperationResult::Deleted,
                    None => OperationResult::NotFound,
                },
            }
        }

        fn reserve(&mut self, count: u64) -> u64 {
            let free =
                |id: &u64| (*id..*id + count).all(|id| !self.messages.contains_key(&Key::Id(id)));
            let first = (self.reserved_until + 1..)
                .find(free)
                .expect("ids are left");
            self.reserved_until = first + count - 1;
            first
        }

        fn register(&mut self, registration: &Registration) {
            if !self.members.contains_key(&registration.id) {
                self.activate(registration);
            }
        }

        /// Whether the name was free, or taken.
        fn admit(&mut self, registration: &Registration, replace: bool) -> bool {
            let Registration { id, name, .. } = registration;
            if let Some((known, retired)) = self.members.get(id)
                && (known != name || !retired)
            {
                return known == name;
            }
            let mut others = self.members.iter();
            let holder = others.find(|(_, (known, retired))| known == name && !retired);
            let holds = holder.is_some_and(|(id, _)| self.load(*id).0 > 0);
            if holds && !replace {
                return false;
            }
            self.activate(registration);
            true
        }

        fn activate(&mut self, registration: &Registration) {
            let Registration { id, name, .. } = registration;
            for (known, retired) in self.members.values_mut() {
                *retired |= known == name;
            }
            self.members.insert(*id, (name.clone(), false));
        }

        fn load(&self, id: MemberId) -> (u64, u64) {
            let listed = self
                .messages
                .values()
                .filter(|entry| entry.replicas.contains(id));
            listed.fold((0, 0), |(records, bytes), entry| {
                (records + 1, bytes + u64::from(entry.length))
            })
        }
    }

    fn any_key() -> impl Strategy<Value = Key> {
        prop_oneof![
            (0..12_u64).prop_map(Key::Id),
            "[a-c]".prop_map(|word| Key::Word(word.into())),
        ]
    }

    /// Revisions are allotted when the command is applied: one is never used twice.
    fn any_operation() -> impl Strategy<Value = Operation> {
        let members = proptest::collection::btree_set(1..6_u64, 1..4);
        prop_oneof![
            3 => (any_key(), members, 0..100_u32).prop_map(|(key, members, length)| {
                let members: Vec<MemberId> = members.into_iter().map(MemberId).collect();
                let replicas = ReplicaSet::new(&members).expect("distinct members");
                Operation::Set { key, revision: Revision::from_u64(0), replicas, length }
            }),
            1 => any_key().prop_map(|key| Operation::Delete { key }),
        ]
    }

    fn any_change() -> impl Strategy<Value = Change> {
        prop_oneof![
            6 => proptest::collection::vec(any_operation(), 0..12).prop_map(Change::Write),
            1 => (1..4_u64).prop_map(|count| Change::ReserveIds { count }),
            1 => (1..=7_u8).prop_map(Change::SetTolerance),
            3 => (1..8_u64, "[a-e]", any::<Option<bool>>()).prop_map(|(id, name, replace)| {
                let id = MemberId(id);
                let (address, zone) = (String::new(), String::new());
                let (incarnation, nonce) = (1, 1);
                let registration = Registration { id, name, address, zone, incarnation, nonce };
                match replace {
                    None => Change::RegisterMember(registration),
                    Some(replace) => Change::AdmitMember { registration, replace },
                }
            }),
        ]
    }

    fn start() -> Vec<Change> {
        let member = |id: u64| {
            let name = ["a", "b", "c", "d"][id as usize - 1].to_owned();
            let id = MemberId(id);
            let (address, zone) = (String::new(), String::new());
            let (incarnation, nonce) = (1, 1);
            let registration = Registration {
                id,
                name,
                address,
                zone,
                incarnation,
                nonce,
            };
            Change::RegisterMember(registration)
        };
        (1..=4).map(member).collect()
    }

    fn check_against_model(state: &State<PlainShards>, model: &Model) {
        assert_eq!(state.message_count(), model.messages.len() as u64);
        let listed: BTreeMap<Revision, ReplicaSet> = model
            .messages
            .values()
            .map(|entry| (entry.revision, entry.replicas))
            .collect();
        assert_eq!(
            model.records, listed,
            "released is all that is not listed, once"
        );
        for (key, entry) in &model.messages {
            assert_eq!(state.find(key), Some(*entry));
        }
        for id in (1..9).map(MemberId) {
            assert_eq!(state.member_load(id), model.load(id));
        }
        let mut named = BTreeMap::<Vec<MemberId>, u64>::new();
        for entry in model.messages.values() {
            *named.entry(entry.replicas.as_slice().to_vec()).or_default() += 1;
        }
        let interned = state.shards().read_sets(|sets| {
            let count = |(_, set, count): (_, ReplicaSet, u64)| (set.as_slice().to_vec(), count);
            sets.iter().map(count).collect::<BTreeMap<_, _>>()
        });
        assert_eq!(interned, named);
    }

    proptest! {
        #[test]
        fn any_layout_of_shards_agrees_with_the_model(
            changes in proptest::collection::vec(any_change(), 1..40),
        ) {
            let mut model = Model::default();
            let mut states = [1, 3, 64].map(|shards| State::new(PlainShards::new(shards)));
            let mut sequence = 0;
            for (index, mut change) in (1..).zip(start().into_iter().chain(changes)) {
                if let Change::Write(operations) = &mut change {
                    for operation in operations {
                        if let Operation::Set { revision, .. } = operation {
                            sequence += 1;
                            *revision = Revision::new(5, sequence);
                        }
                    }
                }
                let command = Command { term: 5, change };
                let applied = states.each_mut().map(|state| state.apply(index, 5, &command));
                prop_assert!(applied.iter().all(|other| *other == applied[0]));
                match (&command.change, &applied[0]) {
                    (Change::Write(operations), Applied::Write { results, released }) => {
                        let expected: Vec<OperationResult> =
                            operations.iter().map(|operation| model.operation(operation)).collect();
                        prop_assert_eq!(results, &expected);
                        for (revision, set) in released {
                            prop_assert_eq!(model.records.remove(revision), Some(*set));
                        }
                    }
                    (Change::ReserveIds { count }, Applied::Reserved { first }) => {
                        prop_assert_eq!(*first, model.reserve(*count));
                    }
                    (Change::RegisterMember(registration), _) => model.register(registration),
                    (Change::AdmitMember { registration, replace }, applied) => {
                        let is_admitted = matches!(applied, Applied::Registered { .. });
                        prop_assert_eq!(is_admitted, model.admit(registration, *replace));
                    }
                    (Change::SetTolerance(tolerance), Applied::Set) => {
                        prop_assert_eq!(states[0].tolerance(), Some(*tolerance));
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
                let digests = states.each_ref().map(State::digest);
                prop_assert!(digests.iter().all(|digest| *digest == digests[0]));
                check_against_model(&states[0], &model);
            }
        }

        #[test]
        fn different_states_have_different_digests(
            operations in proptest::collection::vec(any_operation(), 1..6),
            swap: prop::sample::Index,
        ) {
            let digest = |operations: &[Operation]| {
                let mut state = State::new(PlainShards::new(2));
                let write = Change::Write(operations.to_vec());
                for (index, change) in (1..).zip(start().into_iter().chain([write])) {
                    state.apply(index, 0, &Command { term: 0, change });
                }
                (state.digest(), state.message_count())
            };
            let (whole, _) = digest(&operations);
            let mut changed = operations.clone();
            let at = swap.index(changed.len());
            let key = match &changed[at] {
                Operation::Set { key, .. } | Operation::Delete { key } => key.clone(),
            };
            let member = ReplicaSet::new(&[MemberId(4)]).expect("one member");
            let revision = Revision::from_u64(99);
            changed.push(Operation::Set { key, revision, replicas: member, length: 1 });
            prop_assert_ne!(digest(&changed).0, whole);
        }
    }
}
