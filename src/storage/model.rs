//! The storage contract in its plainest form: an in-memory engine that the others are compared
//! with. Pure but for the lock that the read side needs.
//!
//! A tool of tests and simulations, never of a member: it survives nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::ids::{Key, Revision};
use crate::storage::{Committed, Counters, Engine, Fatal, ReadError, Reader, Staged};

/// The live records, shared by the engine and its readers.
type Records = Arc<RwLock<BTreeMap<Revision, (Key, Bytes)>>>;

/// Keeps records in a map.
#[derive(Default)]
pub struct ModelEngine {
    /// What was committed. Written by [`Engine::commit`] alone.
    records: Records,
    /// The group in call order: a store, or a release where there is no record.
    staged: Vec<(Revision, Option<(Key, Bytes)>)>,
    /// What the next commits answer; with `None`, `Done`.
    space: Option<Committed>,
    /// How many commits had something to write, for tests that count them.
    commits: u64,
}

impl ModelEngine {
    /// Makes the commits from now on behave as on a disk in this state; `Done` for one with space.
    pub fn set_space(&mut self, space: Committed) {
        self.space = Some(space);
    }

    /// A copy of all live records, to compare.
    pub fn contents(&self) -> BTreeMap<Revision, (Key, Bytes)> {
        self.records.read().clone()
    }

    /// How many commits were not of an empty group.
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Whether the next commit has something to do.
    pub fn is_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    fn staged_record(&self, revision: Revision) -> Option<&Option<(Key, Bytes)>> {
        let mut newest_first = self.staged.iter().rev();
        newest_first
            .find(|(staged, _)| *staged == revision)
            .map(|(_, record)| record)
    }
}

impl Engine for ModelEngine {
    fn store(&mut self, revision: Revision, key: &Key, payload: &Bytes) -> Result<Staged, Fatal> {
        let record = (key.clone(), payload.clone());
        let existing = match self.staged_record(revision) {
            Some(Some(staged)) => Some((staged.clone(), Staged::New)),
            Some(None) => None,
            None => {
                let records = self.records.read();
                records
                    .get(&revision)
                    .map(|record| (record.clone(), Staged::Known))
            }
        };
        match existing {
            Some((existing, known)) if existing == record => return Ok(known),
            Some(_) => return Ok(Staged::Conflict),
            None => {}
        }
        self.staged.push((revision, Some(record)));
        Ok(Staged::New)
    }

    fn release(&mut self, revision: Revision) -> Result<(), Fatal> {
        let exists = match self.staged_record(revision) {
            Some(staged) => staged.is_some(),
            None => self.records.read().contains_key(&revision),
        };
        if exists {
            self.staged.push((revision, None));
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<Committed, Fatal> {
        let staged = std::mem::take(&mut self.staged);
        let space = self.space.unwrap_or(Committed::Done);
        if staged.is_empty() {
            return Ok(Committed::Done);
        }
        self.commits += 1;
        let mut records = self.records.write();
        for (revision, record) in staged {
            match (record, space) {
                (Some(record), Committed::Done) => _ = records.insert(revision, record),
                (None, Committed::Done | Committed::StoresFull) => _ = records.remove(&revision),
                (Some(_), Committed::StoresFull | Committed::Full) | (None, Committed::Full) => {}
            }
        }
        Ok(space)
    }

    fn discard(&mut self) {
        self.staged.clear();
    }

    fn idle(&mut self) -> Result<(), Fatal> {
        assert!(self.staged.is_empty(), "idle with a group staged");
        Ok(())
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(ModelReader {
            records: Arc::clone(&self.records),
        })
    }
}

/// Reads the map of a [`ModelEngine`].
struct ModelReader {
    records: Records,
}

impl Reader for ModelReader {
    fn fetch(&self, revision: Revision) -> Result<Option<(Key, Bytes)>, ReadError> {
        Ok(self.records.read().get(&revision).cloned())
    }

    fn at_hand(&self, revision: Revision, bytes_max: usize) -> Option<(Key, Bytes)> {
        let record = self.records.read().get(&revision).cloned();
        record.filter(|(_, payload)| payload.len() <= bytes_max)
    }

    fn length(&self, revision: Revision) -> Option<u32> {
        let records = self.records.read();
        let (_, payload) = records.get(&revision)?;
        Some(u32::try_from(payload.len()).unwrap_or(u32::MAX))
    }

    fn highest(&self) -> Option<Revision> {
        self.records.read().keys().max().copied()
    }

    fn counters(&self) -> Counters {
        let records = self.records.read();
        Counters {
            records: records.len() as u64,
            bytes: records
                .values()
                .map(|(_, payload)| payload.len() as u64)
                .sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u64) -> Key {
        Key::Id(id)
    }

    #[test]
    fn staged_records_show_after_the_commit_and_go_with_a_release() {
        let mut engine = ModelEngine::default();
        let reader = engine.reader();
        let (revision, payload) = (Revision::new(1, 1), Bytes::from_static(b"hello"));
        assert_eq!(
            engine.store(revision, &key(1), &payload).unwrap(),
            Staged::New
        );
        assert!(reader.fetch(revision).unwrap().is_none());
        assert_eq!(engine.commit().unwrap(), Committed::Done);
        assert_eq!(
            reader.fetch(revision).unwrap(),
            Some((key(1), payload.clone()))
        );
        assert_eq!(
            reader.counters(),
            Counters {
                records: 1,
                bytes: 5
            }
        );
        assert_eq!(
            engine.store(revision, &key(1), &payload).unwrap(),
            Staged::Known
        );
        assert_eq!(
            engine.store(revision, &key(2), &payload).unwrap(),
            Staged::Conflict
        );
        engine.release(revision).unwrap();
        assert_eq!(
            engine.store(revision, &key(2), &payload).unwrap(),
            Staged::New
        );
        engine.release(revision).unwrap();
        engine.commit().unwrap();
        assert_eq!(reader.counters(), Counters::default());
    }
}
