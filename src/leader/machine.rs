//! The state machine on the Raft thread: decodes entries, applies them, and tells the other
//! threads.
//!
//! The Raft thread owns the [`State`]. Message index and replica sets stand behind locks, a shard
//! at a time, so that workers look messages up meanwhile; counts and settings that they need are
//! published in atomics. A lookup takes the lock of a shard, then that of the sets; nothing takes
//! them in the other order.
//!
//! A snapshot is drawn from the same tables on another thread, shard by shard
//! (`metadata::snapshot`). A start restores one before it replays entries; neither is told to
//! members.
//!
//! An entry that cannot be decoded is not taken from a peer ([`StateMachine::check`]). One that is
//! committed all the same ends the process with one line: to pass over it would make leaders
//! diverge (A3). A later version of the program wrote it, or most leaders are broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use log::info;
use parking_lot::RwLock;

use crate::coordinator::release::releases_unserved;
use crate::group::{Configuration, Leadership, Piece, SnapshotCheck, SnapshotSource, StateMachine};
use crate::ids::{Key, Revision};
use crate::leader::state::View;
use crate::metadata::command::{Applied, Change, Command};
use crate::metadata::message_index::{Entry, Shard, shard_of};
use crate::metadata::replica_sets::ReplicaSets;
use crate::metadata::snapshot::{Capture, Restore, ShardCell};
use crate::metadata::state::{PlainShards, Shards, State};

/// Shards of the message index: a table of 100 million ids then grows by some 100,000 slots at a
/// time, about a millisecond under one shard's lock.
const SHARDS: usize = 1024;

/// Applied metadata, as any thread may look at it.
#[derive(Clone)]
pub struct Metadata {
    tables: Arc<Tables>,
}

struct Tables {
    shards: Vec<RwLock<ShardCell>>,
    sets: RwLock<ReplicaSets>,
    /// The number of the snapshot that is being taken, 0 for none. Set by the Raft thread before
    /// the first change after the snapshot's index, cleared by whoever ends it; read under the lock
    /// of a shard, so that no copy is made behind the one who clears them.
    snapshot: AtomicU64,
    /// How many snapshots were begun.
    snapshots: AtomicU64,
    /// Messages, as of the last applied entry.
    messages: AtomicU64,
    /// The tolerance, 0 while it was never set.
    tolerance: AtomicU8,
    /// The clock of the tokens.
    clock_ms: AtomicU64,
    /// When the next message expires by it; the largest number if none does.
    next_expiry_ms: AtomicU64,
}

impl Default for Metadata {
    fn default() -> Metadata {
        Metadata {
            tables: Arc::new(Tables {
                shards: std::iter::repeat_with(RwLock::default)
                    .take(SHARDS)
                    .collect(),
                sets: RwLock::default(),
                snapshot: AtomicU64::new(0),
                snapshots: AtomicU64::new(0),
                messages: AtomicU64::new(0),
                tolerance: AtomicU8::new(0),
                clock_ms: AtomicU64::new(0),
                next_expiry_ms: AtomicU64::new(u64::MAX),
            }),
        }
    }
}

impl Metadata {
    /// The current record of a message.
    pub fn find(&self, key: &Key) -> Option<Entry> {
        self.entry(key)
    }

    /// The revision of the message and the length of its payload in bytes, `None` if there is no
    /// such message. Unlike [`Metadata::find`] it reads nothing that all lookups share.
    pub fn record(&self, key: &Key) -> Option<(Revision, u32)> {
        self.read_shard(shard_of(key, self.shard_count()), |shard| {
            let slot = shard.find(key)?;
            Some((slot.revision, slot.length))
        })
    }

    /// How many messages there are.
    pub fn message_count(&self) -> u64 {
        self.tables.messages.load(Ordering::Acquire)
    }

    /// The highest time of any command, in milliseconds since the Unix epoch.
    pub fn clock_ms(&self) -> u64 {
        self.tables.clock_ms.load(Ordering::Acquire)
    }

    /// When the next message expires, by the time of commands; `None` if none does.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        let next = self.tables.next_expiry_ms.load(Ordering::Acquire);
        (next < u64::MAX).then_some(next)
    }

    /// How many members hold each message; `None` until it was set.
    pub fn tolerance(&self) -> Option<u8> {
        let tolerance = self.tables.tolerance.load(Ordering::Acquire);
        (tolerance > 0).then_some(tolerance)
    }
}

impl Shards for Metadata {
    fn shard_count(&self) -> usize {
        SHARDS
    }

    fn read_shard<R>(&self, shard: usize, read: impl FnOnce(&Shard) -> R) -> R {
        read(self.tables.shards[shard].read().shard())
    }

    fn write_shard<R>(&mut self, shard: usize, write: impl FnOnce(&mut Shard) -> R) -> R {
        let mut cell = self.tables.shards[shard].write();
        let snapshot = self.tables.snapshot.load(Ordering::Acquire);
        write(cell.change((snapshot > 0).then_some(snapshot)))
    }

    fn read_sets<R>(&self, read: impl FnOnce(&ReplicaSets) -> R) -> R {
        read(&self.tables.sets.read())
    }

    fn write_sets<R>(&mut self, write: impl FnOnce(&mut ReplicaSets) -> R) -> R {
        write(&mut self.tables.sets.write())
    }

    fn begin_snapshot(&mut self) {
        self.tables.sets.write().pin();
        let number = self.tables.snapshots.fetch_add(1, Ordering::Relaxed) + 1;
        let before = self.tables.snapshot.swap(number, Ordering::AcqRel);
        assert_eq!(before, 0, "one snapshot at a time");
    }

    fn take_shard(&mut self, shard: usize) -> Shard {
        let number = self.tables.snapshot.load(Ordering::Acquire);
        self.tables.shards[shard].write().take(number)
    }

    fn end_snapshot(&mut self) {
        self.tables.snapshot.store(0, Ordering::Release);
        for shard in &self.tables.shards {
            shard.write().forget();
        }
        self.tables.sets.write().unpin();
    }
}

/// What the Raft thread applies entries to.
pub struct Machine {
    state: State<Metadata>,
    view: Arc<View>,
    /// Whether this leader serves: then what is applied is told to members.
    is_serving: bool,
    /// What takes the chunks of a snapshot, at start.
    restore: Restore,
}

/// A snapshot that is being taken, on the thread that writes it.
struct Source {
    capture: Capture,
    metadata: Metadata,
}

impl SnapshotSource for Source {
    fn next_chunk(&mut self) -> Option<Vec<u8>> {
        self.capture.next_chunk(&mut self.metadata)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.metadata.end_snapshot();
    }
}

/// All chunks were taken: the state is that of a snapshot at `index`, or says what is wrong.
fn finish<S: Shards>(restore: Restore, state: &mut State<S>, index: u64) -> Result<(), String> {
    match restore.finish(state) {
        Ok(found) if found == index => Ok(()),
        Ok(found) => Err(format!("its content is of index {found}")),
        Err(error) => Err(error.to_string()),
    }
}

impl Machine {
    /// Before the first entry.
    pub fn new(view: Arc<View>) -> Machine {
        Machine {
            state: State::new(view.metadata.clone()),
            view,
            is_serving: false,
            restore: Restore::default(),
        }
    }

    /// The state, for tests that compare those of several leaders.
    pub fn state(&self) -> &State<Metadata> {
        &self.state
    }

    /// Tells the other threads the counts and settings.
    fn publish_numbers(&self) {
        let tables = &self.view.metadata.tables;
        tables
            .messages
            .store(self.state.message_count(), Ordering::Release);
        let clock_ms = self.state.tokens().clock_ms();
        tables.clock_ms.store(clock_ms, Ordering::Release);
        let next_expiry_ms = self.state.next_expiry_ms().unwrap_or(u64::MAX);
        let before_ms = tables.next_expiry_ms.swap(next_expiry_ms, Ordering::AcqRel);
        if next_expiry_ms < before_ms {
            self.view.ring();
        }
        if let Some(tolerance) = self.state.tolerance() {
            tables.tolerance.store(tolerance, Ordering::Release);
        }
    }

    /// Tells the other threads what a command changed: numbers, the registry and its counters.
    fn publish(&mut self, command: &Command, applied: &Applied) {
        self.publish_numbers();
        let loads = self.state.take_changed_loads();
        let mut cluster = self.view.cluster.lock();
        if let (
            Applied::Registered { retired },
            Change::RegisterMember(registration) | Change::AdmitMember { registration, .. },
        ) = (applied, &command.change)
        {
            if let Some(retired) = retired {
                cluster.retire(*retired);
            }
            cluster.register(registration);
        }
        for (member, records, bytes) in loads {
            cluster.set_load(member, records, bytes);
        }
        cluster.released(applied.released());
    }
}

impl StateMachine for Machine {
    type Output = Applied;

    fn apply(&mut self, index: u64, term: u64, data: &[u8]) -> Result<Applied, String> {
        let command = Command::decode(data).map_err(|error| error.to_string())?;
        let applied = self.state.apply(index, term, &command);
        self.publish(&command, &applied);
        // A replay emits no releases, and a follower leaves them to the active leader (R5).
        if self.is_serving || releases_unserved() {
            self.view.released(applied.released());
        }
        match &applied {
            Applied::Registered { .. } => self.view.ring(),
            Applied::Set => info!("settings at index {index}: {:?}", command.change),
            Applied::Write { .. }
            | Applied::Transacted { .. }
            | Applied::Expired { .. }
            | Applied::WrongTerm
            | Applied::Reserved { .. }
            | Applied::IdsExhausted
            | Applied::Repeated(_)
            | Applied::Resumed { .. }
            | Applied::Refused(_)
            | Applied::StaleIncarnation { .. }
            | Applied::NameHeld { .. }
            | Applied::Retired => {}
        }
        Ok(applied)
    }

    fn check(data: &[u8]) -> Result<(), String> {
        match Command::decode(data) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn snapshot_check() -> SnapshotCheck {
        let mut restore = Some(Restore::default());
        let mut state = State::new(PlainShards::new(SHARDS));
        Box::new(move |piece| match piece {
            Piece::Chunk(chunk) => match &mut restore {
                Some(restore) => {
                    let restored = restore.chunk(&mut state, chunk);
                    restored.map_err(|error| error.to_string())
                }
                None => Err("there are chunks behind its end".to_owned()),
            },
            Piece::End { index } => finish(restore.take().unwrap_or_default(), &mut state, index),
        })
    }

    fn configuration(&mut self, configuration: &Configuration) {
        self.view.configure(configuration);
        self.view.ring();
    }

    fn begin_snapshot(&mut self, index: u64) -> Option<Box<dyn SnapshotSource>> {
        Some(Box::new(Source {
            capture: self.state.begin_snapshot(index),
            metadata: self.view.metadata.clone(),
        }))
    }

    fn reset(&mut self) {
        self.state.clear();
        self.restore = Restore::default();
    }

    fn restore(&mut self, chunk: &[u8]) -> Result<(), String> {
        let restored = self.restore.chunk(&mut self.state, chunk);
        restored.map_err(|error| error.to_string())
    }

    fn restored(&mut self, index: u64) -> Result<(), String> {
        finish(std::mem::take(&mut self.restore), &mut self.state, index)?;
        self.publish_numbers();
        let loads = self.state.take_changed_loads();
        let mut cluster = self.view.cluster.lock();
        cluster.forget_missing();
        for member in self.state.members().iter() {
            cluster.register(&member.registration);
            if member.is_retired {
                cluster.retire(member.registration.id);
            }
        }
        for (member, records, bytes) in loads {
            cluster.set_load(member, records, bytes);
        }
        Ok(())
    }

    fn leadership(&mut self, change: Leadership) {
        match change {
            Leadership::Serving { term, behind } => {
                info!("serving in term {term}");
                self.is_serving = true;
                self.view.begin_term(term, behind);
            }
            Leadership::Ended { term } => {
                info!("not serving any more, term {term} ended");
                self.is_serving = false;
                self.view.end_term();
            }
        }
        self.view.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{MemberId, Revision};
    use crate::metadata::command::{Operation, Registration};
    use crate::metadata::replica_sets::ReplicaSet;

    /// Chunks of a state with a member and a message; its index.
    fn chunks() -> (Vec<Vec<u8>>, u64) {
        let id = MemberId(7);
        let member = Registration {
            id,
            name: "member-1".to_owned(),
            address: "localhost:1".to_owned(),
            zone: String::new(),
            incarnation: 1,
            nonce: 1,
        };
        let set = Operation::Set {
            key: Key::Id(1),
            revision: Revision::new(2, 1),
            replicas: ReplicaSet::new(&[id]).unwrap(),
            length: 5,
        };
        let mut state = State::new(PlainShards::new(4));
        let changes = [Change::RegisterMember(member), Change::Write(vec![set])];
        for (index, change) in (2..).zip(changes) {
            state.apply(index, 2, &Command { term: 2, change });
        }
        let mut capture = state.begin_snapshot(3);
        let next = || capture.next_chunk(state.shards_mut());
        (std::iter::from_fn(next).collect(), 3)
    }

    fn check(chunks: &[Vec<u8>], index: u64) -> Result<(), String> {
        let mut check = Machine::snapshot_check();
        for chunk in chunks {
            check(Piece::Chunk(chunk))?;
        }
        check(Piece::End { index })
    }

    #[test]
    fn a_snapshot_is_looked_at_as_a_whole() {
        let (chunks, index) = chunks();
        assert_eq!(check(&chunks, index), Ok(()));
        assert!(check(&chunks, index + 1).is_err(), "of another index");
        for missing in 0..chunks.len() {
            let mut some = chunks.clone();
            let cut = some[missing].len() - 1;
            some[missing].truncate(cut);
            assert!(check(&some, index).is_err(), "chunk {missing} is cut");
            some.remove(missing);
            assert!(check(&some, index).is_err(), "chunk {missing} is missing");
        }
        let twice = [&chunks[..], &chunks[chunks.len() - 1..]].concat();
        assert!(check(&twice, index).is_err(), "a message is there twice");
        assert!(check(&[b"garbage".to_vec()], index).is_err());
        assert!(check(&[], index).is_err());
    }

    #[test]
    fn an_entry_is_taken_if_it_is_a_command() {
        let change = Change::SetTolerance(2);
        let bytes = Command { term: 2, change }.encode();
        assert_eq!(Machine::check(&bytes), Ok(()));
        assert!(Machine::check(&bytes[1..]).is_err());
        let later = [&[99], &bytes[1..]].concat();
        let reason = Machine::check(&later).unwrap_err();
        assert!(reason.contains("version 99"), "{reason}");
    }
}
