//! The `log` engine: records and releases in a `disk::log::Log`, a location index in memory.
//!
//! Owns the log's write side and the index; the index is behind a lock, held for a few hundred map
//! operations at most and never over I/O. Memory: about 27 bytes a record for the index, and the
//! group being staged.
//!
//! Each store is a record of kind [`KIND_STORE`] (number: revision, key and payload: the
//! message's), each release one of kind [`KIND_RELEASE`] (number: revision, no key, no payload).
//! The later record of a revision rules, so replaying all in order gives the index again.
//!
//! A group goes from the log's memory to the disk in one write and, in `sync` mode, one
//! `fdatasync`, then into the index: readers see committed records only. A record found damaged
//! stays in the index, so that it is reported as damaged and not as missing, until it is stored
//! anew.
//!
//! Opening takes what the sealed segments hold from their hints ([`super::hints`]) and reads those
//! without one, and the last. Space comes back by [`crate::storage::compaction`]. A reader whose
//! record is moved meanwhile looks it up again.
//!
//! After any error but a full disk the log is poisoned and each call fails.
//!
//! Write modes: `sync`, and `unbuffered` after [`LogEngine::unsynced`], which ends a commit when
//! the write has returned; `buffered` is [`super::buffer`] around that.

mod compacting;
mod replay;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use rustc_hash::FxHashSet;

use crate::disk::fs::FileSystem;
use crate::disk::log::{Filler, Log, LogError, LogOptions, LogReader, Recovery};
use crate::disk::record::{Location, Record};
use crate::disk::segment;
use crate::error::Shortage;
use crate::faults::{self, Fault};
use crate::ids::{Key, Revision};
use crate::storage::compaction::Step;
use crate::storage::group::Group;
use crate::storage::location_index::{LocationIndex, Place};
use crate::storage::{Committed, Counters, Engine, Fatal, ReadError, Reader, Staged};
use replay::Replay;

/// The kind of a record that holds a message.
pub const KIND_STORE: u8 = 1;
/// The kind of a record that releases a revision.
pub const KIND_RELEASE: u8 = 2;

/// Changes that go into the index under one hold of its lock: some 30 us. At many times that, reads
/// would wait noticeably; at a fraction, taking the lock costs as much as the changes.
const CHANGES_PER_LOCK: usize = 256;

/// Stores records in an append-only log.
pub struct LogEngine {
    log: Log,
    /// Whether a commit ends with a sync.
    synced: bool,
    /// The segments whose hints were good when it was opened.
    hinted: BTreeSet<u32>,
    /// What is committed; shared with the readers, written by [`Engine::commit`] alone.
    shared: Arc<Shared>,
    /// Its changes are as the index takes them after the commit.
    group: Group<Change>,
    /// Why the last group was refused.
    refusal: Shortage,
}

/// What the engine shares with its readers and with compaction.
pub(super) struct Shared {
    pub(super) records: LogReader,
    /// The log's directory, to name files in errors.
    dir: PathBuf,
    /// Guards the index alone; no I/O and no other lock while it is held.
    pub(super) index: RwLock<LocationIndex>,
}

/// What a staged record does to the index.
#[derive(Clone, Copy)]
enum Change {
    Store(Revision, Place),
    Release(Revision),
}

impl LogEngine {
    /// Opens the log in `dir`, or makes one. What recovery cut or found damaged is in [`Recovery`],
    /// for the caller to report.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: LogOptions,
    ) -> Result<(LogEngine, Recovery), LogError> {
        let mut replay = Replay::new(&*fs, dir);
        let (log, recovery) = Log::open_known(Arc::clone(&fs), dir, options, &mut replay)?;
        let (index, hinted) = replay.finish();
        let shared = Arc::new(Shared {
            records: log.reader(),
            dir: dir.to_owned(),
            index: RwLock::new(index),
        });
        let engine = LogEngine {
            log,
            synced: true,
            hinted,
            shared,
            group: Group::default(),
            refusal: Shortage::Space,
        };
        Ok((engine, recovery))
    }

    /// From now on a commit ends when the operating system has the group. The log is synced when
    /// it is idle, and when it begins a segment.
    pub fn unsynced(mut self) -> LogEngine {
        self.synced = false;
        self
    }

    /// The body of the thread that zero-fills the next segment.
    pub fn filler(&self) -> Filler {
        self.log.filler()
    }

    fn stage(&mut self, record: &Record<'_>) -> Result<Location, Fatal> {
        let staged = self.log.stage(record);
        staged.map_err(|error| fatal("stage a record", error))
    }

    /// Brings the staged group to the write mode; false if there is no space for it.
    fn reach_write_mode(&mut self, reserved: bool) -> Result<bool, Fatal> {
        let written = match reserved {
            false => self.log.write(),
            true => self.log.write_reserved(),
        };
        match written {
            Ok(()) => {}
            Err(LogError::Refused(shortage)) => {
                self.refusal = shortage;
                return Ok(false);
            }
            Err(error) => return Err(fatal("write a group", error)),
        }
        if !self.synced || faults::has(Fault::AcknowledgeBeforeSync) {
            self.check_in_place()?;
            return Ok(true);
        }
        let synced = self.log.sync();
        synced.map_err(|error| fatal("sync a group", error))?;
        Ok(true)
    }

    /// Gives up the group's stores and commits its releases alone, from the reserve.
    fn commit_releases(&mut self, changes: &[Change]) -> Result<Committed, Fatal> {
        let mut released = FxHashSet::default();
        let mut releases = Vec::new();
        for change in changes {
            match *change {
                Change::Store(..) => {}
                Change::Release(revision) => {
                    // A store that was given up needs no release.
                    let known = self.shared.index.read().find(revision).is_some();
                    if known && released.insert(revision) {
                        releases.push(*change);
                        self.stage(&release_record(revision))?;
                    }
                }
            }
        }
        if !self.reach_write_mode(true)? {
            return Ok(Committed::Full);
        }
        self.shared.publish(&releases);
        Ok(Committed::StoresFull)
    }
}

impl Engine for LogEngine {
    fn store(&mut self, revision: Revision, key: &Key, payload: &Bytes) -> Result<Staged, Fatal> {
        let answer = self.group.answer(&*self.shared, revision, key, payload);
        if let Some(answer) = answer {
            return Ok(answer);
        }
        let record = Record {
            kind: KIND_STORE,
            number: revision.as_u64(),
            key: &key.to_bytes(),
            payload,
        };
        let location = self.stage(&record)?;
        let place = place(location, payload.len());
        let record = Some((key.clone(), payload.clone()));
        self.group
            .push(revision, record, Change::Store(revision, place));
        Ok(Staged::New)
    }

    fn release(&mut self, revision: Revision) -> Result<(), Fatal> {
        if self.group.has(&*self.shared, revision) {
            self.stage(&release_record(revision))?;
            self.group.push(revision, None, Change::Release(revision));
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<Committed, Fatal> {
        let changes = self.group.take();
        if changes.is_empty() {
            return Ok(Committed::Done);
        }
        if !self.reach_write_mode(false)? {
            return self.commit_releases(&changes);
        }
        self.shared.publish(&changes);
        Ok(Committed::Done)
    }

    fn discard(&mut self) {
        self.log.discard();
        self.group.clear();
    }

    fn idle(&mut self) -> Result<(), Fatal> {
        assert!(self.group.is_empty(), "idle with a group staged");
        let idle = self.log.idle();
        idle.map_err(|error| fatal("make the synced offset durable", error))
    }

    fn refusal(&self) -> Shortage {
        self.refusal
    }

    fn check_in_place(&mut self) -> Result<(), Fatal> {
        let checked = self.log.check_in_place();
        checked.map_err(|error| fatal("find the log in its place", error))
    }

    fn compact(&mut self, step: &Step) -> Result<bool, Fatal> {
        self.compact_step(step)
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::clone(&self.shared) as Arc<dyn Reader>
    }
}

impl Shared {
    /// Takes committed changes into the index.
    fn publish(&self, changes: &[Change]) {
        for part in changes.chunks(CHANGES_PER_LOCK) {
            let mut index = self.index.write();
            for change in part {
                match *change {
                    Change::Store(revision, place) => _ = index.insert(revision, place),
                    Change::Release(revision) => _ = index.remove(revision),
                }
            }
        }
    }
}

impl Reader for Shared {
    fn fetch(&self, revision: Revision) -> Result<Option<(Key, Bytes)>, ReadError> {
        let (place, record) = loop {
            let Some(place) = self.index.read().find(revision) else {
                return Ok(None);
            };
            match self.records.read(place.location) {
                Ok(record) => break (place, record),
                // Compaction moved it in between, and its segment is gone.
                Err(_) if self.index.read().find(revision) != Some(place) => {}
                Err(error) => return Err(read_error(error)),
            }
        };
        let damaged = |what| ReadError::Damaged {
            file: segment_path(&self.dir, place.location.segment),
            offset: u64::from(place.location.offset),
            what,
        };
        if (record.kind, record.number) != (KIND_STORE, revision.as_u64()) {
            let (kind, number) = (record.kind, record.number);
            let what = format!("expected revision {revision}, found {number} of kind {kind}");
            return Err(damaged(what));
        }
        let key = Key::parse(&record.key).map_err(|error| damaged(error.to_string()))?;
        Ok(Some((key, record.payload)))
    }

    fn at_hand(&self, revision: Revision, bytes_max: usize) -> Option<(Key, Bytes)> {
        let place = self.index.read().find(revision)?;
        if place.payload_bytes as usize > bytes_max {
            return None;
        }
        let record = self.records.read_cached(place.location)?;
        let is_it = (record.kind, record.number) == (KIND_STORE, revision.as_u64());
        let key = Key::parse(&record.key).ok().filter(|_| is_it)?;
        Some((key, record.payload))
    }

    fn length(&self, revision: Revision) -> Option<u32> {
        let place = self.index.read().find(revision)?;
        Some(place.payload_bytes)
    }

    fn highest(&self) -> Option<Revision> {
        self.index.read().highest()
    }

    fn counters(&self) -> Counters {
        self.index.read().counters()
    }
}

fn segment_path(dir: &Path, number: u32) -> String {
    let path = dir.join(segment::file_name(number));
    path.display().to_string()
}

fn place(location: Location, payload_bytes: usize) -> Place {
    Place {
        location,
        payload_bytes: u32::try_from(payload_bytes).expect("a record is smaller than a segment"),
    }
}

fn release_record(revision: Revision) -> Record<'static> {
    Record {
        kind: KIND_RELEASE,
        number: revision.as_u64(),
        key: &[],
        payload: &[],
    }
}

fn fatal(action: &str, error: LogError) -> Fatal {
    Fatal {
        context: format!("cannot {action}"),
        source: std::io::Error::other(error),
    }
}

fn read_error(error: LogError) -> ReadError {
    match error {
        LogError::Damaged { file, offset, what } => ReadError::Damaged { file, offset, what },
        LogError::Io {
            action,
            file,
            source,
        } => ReadError::Io {
            context: format!("cannot {action} {file}"),
            source,
        },
        LogError::Version { .. } | LogError::Refused(_) | LogError::Poisoned => ReadError::Io {
            context: "cannot read a record".to_owned(),
            source: std::io::Error::other(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::mem::{Loss, MemFileSystem};
    use crate::storage::model::ModelEngine;

    /// The engine on a disk in memory beside the model; each operation is done to both and
    /// compared.
    pub(super) struct Pair {
        pub(super) fs: MemFileSystem,
        pub(super) engine: LogEngine,
        pub(super) model: ModelEngine,
    }

    /// Small segments, so that a few records fill one.
    fn options() -> LogOptions {
        LogOptions {
            segment_bytes: 4 << 10,
            reserve_bytes: 8 << 10,
            salt: 1,
        }
    }

    pub(super) fn open(fs: &MemFileSystem) -> LogEngine {
        let disk = Arc::new(fs.clone());
        let (engine, recovery) = LogEngine::open(disk, Path::new("log"), options()).unwrap();
        assert_eq!(recovery.damaged, []);
        engine
    }

    pub(super) fn record(number: u64, variant: u8, length: usize) -> (Revision, Key, Bytes) {
        let payload = Bytes::from(vec![variant; length]);
        (Revision::from_u64(number), Key::Id(number), payload)
    }

    impl Pair {
        pub(super) fn new() -> Pair {
            let fs = MemFileSystem::new();
            Pair {
                engine: open(&fs),
                fs,
                model: ModelEngine::default(),
            }
        }

        pub(super) fn store(&mut self, number: u64, variant: u8, length: usize) -> Staged {
            let (revision, key, payload) = record(number, variant, length);
            let staged = self.engine.store(revision, &key, &payload).unwrap();
            assert_eq!(staged, self.model.store(revision, &key, &payload).unwrap());
            staged
        }

        pub(super) fn release(&mut self, number: u64) {
            let revision = Revision::from_u64(number);
            self.engine.release(revision).unwrap();
            self.model.release(revision).unwrap();
        }

        pub(super) fn commit(&mut self) -> Committed {
            let committed = self.engine.commit().unwrap();
            assert_eq!(committed, self.model.commit().unwrap());
            self.compare();
            committed
        }

        /// Opens the log again, after a power failure if there is a loss.
        pub(super) fn reopen(&mut self, loss: Option<Loss<'_>>) {
            if let Some(loss) = loss {
                self.fs.crash(loss);
            }
            self.engine = open(&self.fs);
            self.model.discard();
            self.compare();
        }

        pub(super) fn compare(&self) {
            assert_eq!(self.contents(), self.model.contents());
            let counters = self.engine.reader().counters();
            assert_eq!(counters, self.model.reader().counters());
        }

        pub(super) fn contents(&self) -> std::collections::BTreeMap<Revision, (Key, Bytes)> {
            let reader = self.engine.reader();
            let index = self.engine.shared.index.read();
            let fetch = |(revision, _)| (revision, reader.fetch(revision).unwrap().unwrap());
            index.iter().map(fetch).collect()
        }
    }

    #[test]
    fn a_disk_without_any_space_refuses_the_group_and_stays_valid() {
        let mut pair = Pair::new();
        for number in 0..3 {
            pair.store(number, 1, 1000);
        }
        pair.commit();
        pair.fs.set_capacity(Some(1));
        pair.model.set_space(Committed::Full);
        pair.release(1);
        pair.store(7, 1, 3000);
        assert_eq!(pair.commit(), Committed::Full);
        pair.fs.set_capacity(None);
        pair.model.set_space(Committed::Done);
        pair.release(1);
        assert_eq!(pair.commit(), Committed::Done);
        pair.reopen(Some(Loss::Everything));
    }

    #[test]
    fn a_damaged_record_stays_listed_until_it_is_stored_anew() {
        let mut pair = Pair::new();
        for number in 0..3 {
            pair.store(number, 7, 1000);
        }
        pair.commit();
        let place = pair.engine.shared.index.read();
        let location = place.find(Revision::from_u64(1)).unwrap().location;
        drop(place);
        let path = Path::new("log/00000001.log");
        let offset = u64::from(location.offset) + 500;
        assert!(pair.fs.flip_bit(path, offset, 3));
        let reader = pair.engine.reader();
        match reader.fetch(Revision::from_u64(1)) {
            Err(ReadError::Damaged { file, offset, .. }) => {
                assert_eq!(file, "log/00000001.log");
                assert_eq!(offset, u64::from(location.offset));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(reader.counters().records, 3);
        let (revision, key, payload) = record(1, 7, 1000);
        let staged = pair.engine.store(revision, &key, &payload).unwrap();
        assert_eq!(staged, Staged::New);
        pair.engine.commit().unwrap();
        pair.compare();
    }
}
