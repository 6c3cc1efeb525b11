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
//! A snapshot needs: `applied_index`, each shard's messages, `ReplicaSets::iter`, `members().iter()`,
//! `settings()`. The rest follows from these.

use std::collections::BTreeSet;

use crate::ids::{Key, MemberId, Revision, TOLERANCE_MAX, TOLERANCE_MIN};
use crate::metadata::command::{Applied, Change, Command, Operation, OperationResult};
use crate::metadata::members::Members;
use crate::metadata::message_index::{Entry, Lookup, Shard, Slot, mix, shard_of};
use crate::metadata::replica_sets::{ReplicaSet, ReplicaSets};
use crate::metadata::settings::Settings;

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
    shards: Vec<Shard>,
    sets: ReplicaSets,
}

impl PlainShards {
    /// Empty ones; `count` is at least one.
    pub fn new(count: usize) -> PlainShards {
        assert!(count > 0, "there is at least one shard");
        PlainShards {
            shards: std::iter::repeat_with(Shard::default).take(count).collect(),
            sets: ReplicaSets::default(),
        }
    }
}

impl Shards for PlainShards {
    fn shard_count(&self) -> usize {
        self.shards.len()
    }

    fn read_shard<R>(&self, shard: usize, read: impl FnOnce(&Shard) -> R) -> R {
        read(&self.shards[shard])
    }

    fn write_shard<R>(&mut self, shard: usize, write: impl FnOnce(&mut Shard) -> R) -> R {
        write(&mut self.shards[shard])
    }

    fn read_sets<R>(&self, read: impl FnOnce(&ReplicaSets) -> R) -> R {
        read(&self.sets)
    }

    fn write_sets<R>(&mut self, write: impl FnOnce(&mut ReplicaSets) -> R) -> R {
        write(&mut self.sets)
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
    shards: S,
    members: Members,
    settings: Settings,
    /// How many messages there are: the shards' lengths added up.
    messages: u64,
    /// The Raft index up to which everything is applied.
    applied_index: u64,
    /// Members whose counters changed since the last `take_changed_loads`; not replicated.
    changed: BTreeSet<MemberId>,
}

impl<S: Shards> State<S> {
    /// The state before the first command; the shards are empty.
    pub fn new(shards: S) -> State<S> {
        State {
            shards,
            members: Members::default(),
            settings: Settings::default(),
            messages: 0,
            applied_index: 0,
            changed: BTreeSet::new(),
        }
    }

    /// Applies the command of the log entry at `index`, which was proposed in `entry_term`.
    pub fn apply(&mut self, index: u64, entry_term: u64, command: &Command) -> Applied {
        self.advance(index);
        if !is_of_term(command, entry_term) {
            return Applied::WrongTerm;
        }
        match &command.change {
            Change::Write(operations) => self.write(operations),
            Change::ReserveIds { count } => self.reserve_ids(*count),
            Change::RegisterMember(registration) => {
                self.changed.insert(registration.id);
                self.members.register(registration)
            }
            Change::SetTolerance(tolerance) => {
                assert!((TOLERANCE_MIN..=TOLERANCE_MAX).contains(tolerance));
                self.settings.tolerance = Some(*tolerance);
                Applied::Set
            }
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

    fn write(&mut self, operations: &[Operation]) -> Applied {
        let mut outcome = WriteOutcome::with_capacity(operations.len());
        for run in operations.chunk_by(shares_set) {
            match &run[0] {
                Operation::Set { replicas, .. } => self.set_run(replicas, run, &mut outcome),
                Operation::Delete { .. } => self.delete_run(run, &mut outcome),
            }
        }
        self.drop_records(&outcome.dropped);
        let WriteOutcome {
            results,
            mut released,
            dropped,
        } = outcome;
        released.extend(dropped.into_iter().filter_map(|record| {
            let set = record.set;
            record.is_released.then_some((record.slot.revision, set))
        }));
        Applied::Write { results, released }
    }

    /// Applies SETs that share a replica set.
    fn set_run(&mut self, replicas: &ReplicaSet, run: &[Operation], outcome: &mut WriteOutcome) {
        let members = replicas.as_slice();
        if !members.iter().all(|id| self.members.is_active(*id)) {
            for operation in run {
                outcome.results.push(OperationResult::UnknownMember);
                if let Operation::Set { revision, .. } = operation {
                    outcome.released.push((*revision, *replicas));
                }
            }
            return;
        }
        let set = self
            .shards
            .write_sets(|sets| sets.acquire(replicas, run.len() as u64));
        let mut bytes = 0;
        for operation in run {
            let Operation::Set {
                key,
                revision,
                length,
                ..
            } = operation
            else {
                unreachable!("a run of SETs has only SETs");
            };
            let slot = Slot {
                revision: *revision,
                set,
                length: *length,
            };
            let shard = shard_of(key, self.shards.shard_count());
            let replaced = self
                .shards
                .write_shard(shard, |shard| shard.insert(key, slot));
            match replaced {
                // A revision is never used twice; if one were, its record must not be released.
                Some(old) => outcome.drop_later(&self.shards, old, old.revision != *revision),
                None => self.messages += 1,
            }
            bytes += u64::from(*length);
            outcome.results.push(OperationResult::Stored);
        }
        for id in members {
            self.members.add_copies(*id, run.len() as u64, bytes);
            self.changed.insert(*id);
        }
    }

    fn delete_run(&mut self, run: &[Operation], outcome: &mut WriteOutcome) {
        for operation in run {
            let Operation::Delete { key } = operation else {
                unreachable!("a run of DELs has only DELs");
            };
            let shard = shard_of(key, self.shards.shard_count());
            match self.shards.write_shard(shard, |shard| shard.remove(key)) {
                Some(old) => {
                    self.messages -= 1;
                    outcome.drop_later(&self.shards, old, true);
                    outcome.results.push(OperationResult::Deleted);
                }
                None => outcome.results.push(OperationResult::NotFound),
            }
        }
    }

    /// Takes records that no message has any more out of the counters and the table of sets.
    fn drop_records(&mut self, dropped: &[Dropped]) {
        if dropped.is_empty() {
            return;
        }
        for record in dropped {
            for id in record.set.as_slice() {
                self.members.remove_copy(*id, record.slot.length);
                self.changed.insert(*id);
            }
        }
        self.shards.write_sets(|sets| {
            for same in dropped.chunk_by(|a, b| a.slot.set == b.slot.set) {
                sets.release(same[0].slot.set, same.len() as u64);
            }
        });
    }

    fn reserve_ids(&mut self, count: u64) -> Applied {
        let shards = &self.shards;
        let is_used = |id| {
            let shard = shard_of(&Key::Id(id), shards.shard_count());
            shards.read_shard(shard, |shard| shard.contains_id(id))
        };
        let Some(first) = self.settings.fresh_ids(count, is_used) else {
            return Applied::IdsExhausted;
        };
        self.settings.reserved_until = first + (count - 1);
        Applied::Reserved { first }
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

    /// The registry.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Message index and replica sets.
    pub fn shards(&self) -> &S {
        &self.shards
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
                let words = shard
                    .words()
                    .map(|(key, slot)| self.message_digest(2, 0, key, slot));
                ids.chain(words).fold(0, u64::wrapping_add)
            });
            messages = messages.wrapping_add(sum);
        }
        digest.number(messages);
        digest.value
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
        digest.value
    }
}

impl<S: Shards> Lookup for State<S> {
    fn find(&self, key: &Key) -> Option<Entry> {
        self.shards.entry(key)
    }
}

/// R2: the command, and each revision in it, is of the term in which its entry was proposed.
fn is_of_term(command: &Command, entry_term: u64) -> bool {
    let Change::Write(operations) = &command.change else {
        return command.term == entry_term;
    };
    command.term == entry_term
        && operations.iter().all(|operation| match operation {
            Operation::Set { revision, .. } => revision.term() == entry_term,
            Operation::Delete { .. } => true,
        })
}

/// Whether two neighbouring operations are of one run: SETs with the same set, or DELs.
pub(super) fn shares_set(a: &Operation, b: &Operation) -> bool {
    match (a, b) {
        (Operation::Set { replicas: a, .. }, Operation::Set { replicas: b, .. }) => a == b,
        (Operation::Delete { .. }, Operation::Delete { .. }) => true,
        (Operation::Set { .. }, Operation::Delete { .. })
        | (Operation::Delete { .. }, Operation::Set { .. }) => false,
    }
}

/// What is collected while the operations of a write are applied.
struct WriteOutcome {
    results: Vec<OperationResult>,
    released: Vec<(Revision, ReplicaSet)>,
    dropped: Vec<Dropped>,
}

/// A record that its message has no more.
struct Dropped {
    slot: Slot,
    set: ReplicaSet,
    /// Its copies may go.
    is_released: bool,
}

impl WriteOutcome {
    fn with_capacity(operations: usize) -> WriteOutcome {
        WriteOutcome {
            results: Vec::with_capacity(operations),
            released: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// The record's set stays counted, and so resolvable, until all operations are applied.
    fn drop_later<S: Shards>(&mut self, shards: &S, slot: Slot, is_released: bool) {
        let set = match self.dropped.last() {
            Some(last) if last.slot.set == slot.set => last.set,
            _ => shards.read_sets(|sets| sets.set(slot.set)),
        };
        self.dropped.push(Dropped {
            slot,
            set,
            is_released,
        });
    }
}

/// A hash of a sequence of numbers and texts that is fixed for good.
#[derive(Default)]
struct Digest {
    value: u64,
}

impl Digest {
    fn number(&mut self, number: u64) {
        self.value = mix(self.value.rotate_left(5) ^ number);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        for chunk in text.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.number(u64::from_le_bytes(word));
        }
    }
}
