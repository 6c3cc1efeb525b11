//! The write mode `buffered` for any engine: what is committed is acknowledged from memory, and
//! handed to an `unbuffered` engine within [`FLUSH_INTERVAL`] or [`FLUSH_BYTES`].
//!
//! Owns the engine it wraps and the records that are not written yet: [`FLUSH_BYTES`] and one group
//! at most. They are behind a lock, held for a few hundred map operations and never over I/O or
//! another lock. Readers look there first, then in the wrapped engine, so they see what was
//! acknowledged; a flush publishes in the engine before it forgets here, so nothing is missing in
//! between.
//!
//! On failure: a process crash loses what is not flushed, and of it a suffix only, because flushes
//! keep the order of the commits. What is acknowledged must find space later. So stores are taken
//! only while the disk has twice the engine's reserve and room for all that is buffered; and should
//! a neighbour take that within the interval, the records stay in memory, stores are refused, and
//! each flush tries again. Releases then go to the engine directly. After an error of the engine
//! nothing more is taken.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::disk::error::LogError;
use crate::disk::fs::FileSystem;
use crate::ids::{Key, Revision};
use crate::storage::compaction::Step;
use crate::storage::group::{Group, Record};
use crate::storage::{Committed, Counters, Engine, Fatal, ReadError, Reader, Staged};

/// How long something acknowledged may be in memory only: what DESIGN.md §6 promises.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(10);

/// With so many bytes buffered a commit flushes. More is more to lose, less is a write for less.
pub const FLUSH_BYTES: u64 = 1 << 20;

/// Changes made visible under one hold of the lock, as in the log engine.
const CHANGES_PER_LOCK: usize = 256;

/// Whether what is acknowledged will find room on the disk.
pub struct Space {
    /// The disk.
    pub fs: Arc<dyn FileSystem>,
    /// A directory on it.
    pub dir: PathBuf,
    /// What the wrapped engine leaves free for releases, in bytes.
    pub reserve_bytes: u64,
    /// What the wrapped engine needs for a record beside key and payload, in bytes.
    pub record_bytes: u64,
}

/// Acknowledges from memory what it writes a little later.
pub struct BufferedEngine {
    /// Works in `unbuffered` mode; nothing stays staged in it.
    inner: Box<dyn Engine>,
    space: Space,
    shared: Arc<Shared>,
    group: Group<(Revision, Record)>,
    /// What was committed and not written, in order. `shared` has the last state of each.
    unwritten: Vec<(Revision, Record)>,
    /// What the disk will need for it.
    unwritten_bytes: u64,
    /// The last flush found no space.
    stuck: bool,
    /// The wrapped engine failed: what would be acknowledged could not be written.
    failed: bool,
}

/// What the engine shares with its readers.
struct Shared {
    /// Of the wrapped engine.
    written: Arc<dyn Reader>,
    /// Guards the buffer alone; no I/O and no other lock while it is held.
    buffer: RwLock<Buffer>,
}

#[derive(Default)]
struct Buffer {
    /// The last state of each revision that was committed and not written.
    records: FxHashMap<Revision, Record>,
    /// Of all that was committed, written or not.
    counters: Counters,
}

impl BufferedEngine {
    /// Buffers before `inner`, an engine that commits with the write.
    pub fn new(inner: Box<dyn Engine>, space: Space) -> BufferedEngine {
        let written = inner.reader();
        let buffer = Buffer {
            counters: written.counters(),
            ..Buffer::default()
        };
        BufferedEngine {
            inner,
            space,
            shared: Arc::new(Shared {
                written,
                buffer: RwLock::new(buffer),
            }),
            group: Group::default(),
            unwritten: Vec::new(),
            unwritten_bytes: 0,
            stuck: false,
            failed: false,
        }
    }

    fn check(&self) -> Result<(), Fatal> {
        match self.failed {
            false => Ok(()),
            true => Err(Fatal {
                context: "cannot take a record".to_owned(),
                source: std::io::Error::other(LogError::Poisoned),
            }),
        }
    }

    /// Notes whether a call of the wrapped engine failed.
    fn note<T>(&mut self, result: Result<T, Fatal>) -> Result<T, Fatal> {
        self.failed |= result.is_err();
        result
    }

    /// Hands what is not written to the wrapped engine.
    fn write(&mut self) -> Result<(), Fatal> {
        for (revision, record) in &self.unwritten {
            match record {
                Some((key, payload)) => {
                    let staged = self.inner.store(*revision, key, payload)?;
                    if staged == Staged::Conflict {
                        return Err(conflict(*revision));
                    }
                }
                None => self.inner.release(*revision)?,
            }
        }
        let stuck = match self.inner.commit()? {
            Committed::Done => {
                self.forget_written(false);
                false
            }
            Committed::StoresFull => {
                self.forget_written(true);
                !self.unwritten.is_empty()
            }
            Committed::Full => true,
        };
        self.note_space(stuck);
        Ok(())
    }

    /// What the disk will need for changes, in bytes.
    fn footprint(&self, changes: &[(Revision, Record)]) -> u64 {
        let stores = changes.iter().filter_map(|(_, record)| record.as_ref());
        let bytes = stores.map(|(key, payload)| {
            (key.text_len() + payload.len()) as u64 + self.space.record_bytes
        });
        bytes.sum()
    }

    /// Whether a group with a store may be acknowledged, which needs `bytes` on the disk.
    fn has_room(&self, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        let Space { fs, dir, .. } = &self.space;
        // The flush stops at the reserve; the second one is for what others write until then.
        let needed = (self.space.reserve_bytes * 2).saturating_add(self.unwritten_bytes + bytes);
        // Unknown: the flush will tell.
        fs.free_space(dir).map_or(true, |free| free >= needed)
    }

    /// Makes the group visible; it will be written.
    fn accept(&mut self, changes: Vec<(Revision, Record)>, bytes: u64) {
        let counters = self.counters_after(&changes);
        for part in changes.chunks(CHANGES_PER_LOCK) {
            let mut buffer = self.shared.buffer.write();
            buffer.records.extend(part.iter().cloned());
        }
        self.shared.buffer.write().counters = counters;
        self.unwritten.extend(changes);
        self.unwritten_bytes += bytes;
    }

    fn counters_after(&self, changes: &[(Revision, Record)]) -> Counters {
        let mut counters = self.shared.counters();
        let mut lengths: FxHashMap<Revision, Option<u32>> = FxHashMap::default();
        for (revision, record) in changes {
            let length = record.as_ref().map(|(_, payload)| length_of(payload));
            let old = lengths.insert(*revision, length);
            let old = old.unwrap_or_else(|| self.shared.length(*revision));
            counters.records += u64::from(length.is_some());
            counters.records -= u64::from(old.is_some());
            counters.bytes += u64::from(length.unwrap_or(0));
            counters.bytes -= u64::from(old.unwrap_or(0));
        }
        counters
    }

    /// Gives up the group's stores; its releases take effect in the wrapped engine at once.
    fn commit_releases(&mut self, changes: &[(Revision, Record)]) -> Result<Committed, Fatal> {
        if !self.stuck {
            self.flush()?;
        }
        let mut releases = Vec::new();
        let mut released = FxHashSet::default();
        for (revision, record) in changes {
            // A store that was given up needs no release.
            let is_known = record.is_none() && self.shared.length(*revision).is_some();
            if is_known && released.insert(*revision) {
                releases.push((*revision, None));
                self.inner.release(*revision)?;
            }
        }
        let counters = self.counters_after(&releases);
        match self.inner.commit()? {
            Committed::Done | Committed::StoresFull => {}
            Committed::Full => return Ok(Committed::Full),
        }
        // What waits for space and was released meanwhile needs none any more.
        self.unwritten
            .retain(|(revision, _)| !released.contains(revision));
        self.unwritten_bytes = self.footprint(&self.unwritten);
        let mut buffer = self.shared.buffer.write();
        let records = &mut buffer.records;
        records.retain(|revision, _| !released.contains(revision));
        buffer.counters = counters;
        Ok(Committed::StoresFull)
    }

    /// Forgets what the engine took: all, or with `stores_wait` its releases.
    fn forget_written(&mut self, stores_wait: bool) {
        if !stores_wait {
            self.unwritten.clear();
            self.unwritten_bytes = 0;
            self.shared.buffer.write().records.clear();
            return;
        }
        // Of each revision its last state, if that is a record.
        let mut seen = FxHashSet::default();
        let mut waiting = std::mem::take(&mut self.unwritten);
        waiting.reverse();
        waiting.retain(|(revision, record)| seen.insert(*revision) && record.is_some());
        waiting.reverse();
        self.unwritten = waiting;
        self.unwritten_bytes = self.footprint(&self.unwritten);
        let mut buffer = self.shared.buffer.write();
        buffer.records.retain(|_, record| record.is_some());
    }

    /// Notes whether the disk took the buffer, and says so once.
    fn note_space(&mut self, stuck: bool) {
        let (waiting, bytes) = (self.unwritten.len(), self.unwritten_bytes);
        match (self.stuck, stuck) {
            (false, true) => log::error!(
                "disk full: {waiting} acknowledged changes of {bytes} bytes cannot be written \
                 now, they stay in memory until there is space"
            ),
            (true, false) => log::info!("the disk took what waited in memory"),
            (false, false) | (true, true) => {}
        }
        self.stuck = stuck;
    }
}

impl Engine for BufferedEngine {
    fn store(&mut self, revision: Revision, key: &Key, payload: &Bytes) -> Result<Staged, Fatal> {
        self.check()?;
        Ok(self.group.store(&*self.shared, revision, key, payload))
    }

    fn release(&mut self, revision: Revision) -> Result<(), Fatal> {
        self.check()?;
        self.group.release(&*self.shared, revision);
        Ok(())
    }

    fn commit(&mut self) -> Result<Committed, Fatal> {
        self.check()?;
        let changes = self.group.take();
        if changes.is_empty() {
            return Ok(Committed::Done);
        }
        if self.stuck {
            self.flush()?;
        }
        let bytes = self.footprint(&changes);
        if self.stuck || !self.has_room(bytes) {
            let committed = self.commit_releases(&changes);
            return self.note(committed);
        }
        self.accept(changes, bytes);
        if self.unwritten_bytes >= FLUSH_BYTES {
            self.flush()?;
        }
        Ok(Committed::Done)
    }

    fn discard(&mut self) {
        self.group.clear();
    }

    fn flush(&mut self) -> Result<(), Fatal> {
        assert!(self.group.is_empty(), "flush with a group staged");
        if self.unwritten.is_empty() {
            self.note_space(false);
            return Ok(());
        }
        let written = self.write();
        self.note(written)
    }

    fn compact(&mut self, step: &Step) -> Result<bool, Fatal> {
        // A step moves what is written, and nothing may be staged behind it.
        self.flush()?;
        if self.is_buffering() {
            return Ok(false);
        }
        let compacted = self.inner.compact(step);
        self.note(compacted)
    }

    fn check_in_place(&mut self) -> Result<(), Fatal> {
        let checked = self.inner.check_in_place();
        self.note(checked)
    }

    fn is_buffering(&self) -> bool {
        !self.unwritten.is_empty()
    }

    fn idle(&mut self) -> Result<(), Fatal> {
        assert!(self.group.is_empty(), "idle with a group staged");
        self.flush()?;
        let idle = self.inner.idle();
        self.note(idle)
    }

    fn close(&mut self) -> Result<(), Fatal> {
        self.idle()?;
        if self.is_buffering() {
            let waiting = self.unwritten.len();
            return Err(Fatal {
                context: format!("{waiting} acknowledged changes in memory cannot be written"),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        self.inner.close()
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::clone(&self.shared) as Arc<dyn Reader>
    }
}

impl Reader for Shared {
    fn fetch(&self, revision: Revision) -> Result<Option<(Key, Bytes)>, ReadError> {
        if let Some(record) = self.buffer.read().records.get(&revision) {
            return Ok(record.clone());
        }
        self.written.fetch(revision)
    }

    fn at_hand(&self, revision: Revision, bytes_max: usize) -> Option<(Key, Bytes)> {
        if let Some(record) = self.buffer.read().records.get(&revision) {
            return record
                .clone()
                .filter(|(_, payload)| payload.len() <= bytes_max);
        }
        self.written.at_hand(revision, bytes_max)
    }

    fn length(&self, revision: Revision) -> Option<u32> {
        if let Some(record) = self.buffer.read().records.get(&revision) {
            return record.as_ref().map(|(_, payload)| length_of(payload));
        }
        self.written.length(revision)
    }

    fn highest(&self) -> Option<Revision> {
        let buffer = self.buffer.read();
        let records = buffer.records.iter();
        let live = records.filter_map(|(revision, record)| record.is_some().then_some(*revision));
        // A release may wait in the buffer: then this is too high by a record that is forgotten.
        live.max().max(self.written.highest())
    }

    fn counters(&self) -> Counters {
        self.buffer.read().counters
    }
}

fn length_of(payload: &Bytes) -> u32 {
    u32::try_from(payload.len()).expect("a payload fits a frame")
}

/// A copy that could not be read when its record was acknowledged anew, and can be now.
fn conflict(revision: Revision) -> Fatal {
    Fatal {
        context: format!("cannot write revision {revision}"),
        source: std::io::Error::other("it exists with another key or other bytes"),
    }
}
