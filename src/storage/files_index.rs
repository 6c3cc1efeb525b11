//! What the `files` engine shares with its readers: the index, and reading a record's file.
//!
//! The index costs about 100 bytes a record, and its key. Its lock is held for a few hundred map
//! operations at most and never over I/O.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::disk::fs::{FileSystem, read_all};
use crate::ids::{Key, Revision};
use crate::storage::file_name::{self, UNFINISHED};
use crate::storage::{Counters, ReadError, Reader};

/// Changes that go into the index under one hold of its lock, as in the log engine.
const CHANGES_PER_LOCK: usize = 256;

/// What the engine shares with its readers.
pub(super) struct Shared {
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) dir: PathBuf,
    /// Guards the index alone; no I/O and no other lock while it is held.
    pub(super) index: RwLock<Index>,
}

/// Revision -> file.
#[derive(Default)]
pub(super) struct Index {
    entries: BTreeMap<Revision, Entry>,
    counters: Counters,
}

/// What is known of a record without opening its file.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// As its name says.
    Named {
        key: Key,
        length: u32,
        checksum: u32,
    },
    /// There is a file, and it cannot be the record.
    Damaged {
        name: String,
        length: u32,
        what: String,
    },
}

/// A record on its way to the disk.
pub(super) struct Arrival {
    pub(super) revision: Revision,
    pub(super) key: Key,
    pub(super) payload: Bytes,
    pub(super) checksum: u32,
}

impl Entry {
    pub(super) fn length(&self) -> u32 {
        match self {
            Entry::Named { length, .. } | Entry::Damaged { length, .. } => *length,
        }
    }
}

impl Index {
    pub(super) fn insert(&mut self, revision: Revision, entry: Entry) {
        self.remove(revision);
        self.counters.records += 1;
        self.counters.bytes += u64::from(entry.length());
        self.entries.insert(revision, entry);
    }

    pub(super) fn remove(&mut self, revision: Revision) -> Option<Entry> {
        let old = self.entries.remove(&revision)?;
        self.counters.records -= 1;
        self.counters.bytes -= u64::from(old.length());
        Some(old)
    }

    /// All revisions, in order.
    pub(super) fn revisions(&self) -> Vec<Revision> {
        self.entries.keys().copied().collect()
    }
}

impl Shared {
    pub(super) fn dir_path(&self, dir: u8) -> PathBuf {
        self.dir.join(format!("{dir:02x}"))
    }

    pub(super) fn path(&self, revision: Revision, entry: &Entry) -> PathBuf {
        let dir = self.dir_path(dir_of(revision));
        match entry {
            Entry::Named {
                key,
                length,
                checksum,
            } => dir.join(file_name::render(revision, key, *length, *checksum)),
            Entry::Damaged { name, .. } => dir.join(name),
        }
    }

    pub(super) fn side_path(&self, revision: Revision) -> PathBuf {
        self.dir_path(dir_of(revision))
            .join(file_name::side_name(revision))
    }

    pub(super) fn entry(&self, revision: Revision) -> Option<Entry> {
        self.index.read().entries.get(&revision).cloned()
    }

    /// Reads the file of an entry and compares the checksum; `None` if there is no file.
    pub(super) fn read(
        &self,
        revision: Revision,
        entry: &Entry,
    ) -> Result<Option<(Key, Bytes)>, ReadError> {
        let path = self.path(revision, entry);
        let damaged = |what: String| ReadError::Damaged {
            file: path.display().to_string(),
            offset: 0,
            what,
        };
        let (key, length, expected) = match entry {
            Entry::Named {
                key,
                length,
                checksum,
            } => (key, *length, *checksum),
            Entry::Damaged { what, .. } => return Err(damaged(what.clone())),
        };
        let payload = match self.fs.open(&path).and_then(|file| read_all(&*file)) {
            Ok(payload) => payload,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(ReadError::Io {
                    context: format!("cannot read {}", path.display()),
                    source,
                });
            }
        };
        // The checksum does not cover the name's length, which is told without reading the file.
        if payload.len() as u64 != u64::from(length) {
            let what = format!("it should have {length} bytes and has {}", payload.len());
            return Err(damaged(what));
        }
        let found = file_name::checksum(revision, key, &payload);
        if found != expected {
            let what = format!("the checksum should be {expected:08x} and is {found:08x}");
            return Err(damaged(what));
        }
        Ok(Some((key.clone(), Bytes::from(payload))))
    }

    /// The error for an entry whose file is not there.
    pub(super) fn missing(&self, revision: Revision, entry: &Entry) -> ReadError {
        ReadError::Damaged {
            file: self.path(revision, entry).display().to_string(),
            offset: 0,
            what: "the file is missing".to_owned(),
        }
    }
}

impl Reader for Shared {
    fn fetch(&self, revision: Revision) -> Result<Option<(Key, Bytes)>, ReadError> {
        let Some(entry) = self.entry(revision) else {
            return Ok(None);
        };
        if let Some(record) = self.read(revision, &entry)? {
            return Ok(Some(record));
        }
        // Released since we looked, or damage.
        match self.entry(revision) {
            None => Ok(None),
            Some(entry) => match self.read(revision, &entry)? {
                Some(record) => Ok(Some(record)),
                None => Err(self.missing(revision, &entry)),
            },
        }
    }

    fn length(&self, revision: Revision) -> Option<u32> {
        Some(self.index.read().entries.get(&revision)?.length())
    }

    fn highest(&self) -> Option<Revision> {
        Some(*self.index.read().entries.last_key_value()?.0)
    }

    fn counters(&self) -> Counters {
        self.index.read().counters
    }
}

impl Shared {
    pub(super) fn unfinished_path(&self, arrival: &Arrival) -> PathBuf {
        let mut path = self
            .path(arrival.revision, &arrival.entry())
            .into_os_string();
        path.push(UNFINISHED);
        path.into()
    }

    /// Takes stored records into the index.
    pub(super) fn publish(&self, arrivals: &[Arrival]) {
        for part in arrivals.chunks(CHANGES_PER_LOCK) {
            let mut index = self.index.write();
            for arrival in part {
                index.insert(arrival.revision, arrival.entry());
            }
        }
    }
}

impl Arrival {
    pub(super) fn new(revision: Revision, key: Key, payload: Bytes) -> Arrival {
        Arrival {
            checksum: file_name::checksum(revision, &key, &payload),
            revision,
            key,
            payload,
        }
    }

    pub(super) fn entry(&self) -> Entry {
        Entry::Named {
            key: self.key.clone(),
            length: u32::try_from(self.payload.len()).expect("a payload fits a frame"),
            checksum: self.checksum,
        }
    }
}

/// The directory of a revision: neighbours share one, a million records have 4,000 in each.
pub(super) fn dir_of(revision: Revision) -> u8 {
    (revision.as_u64() >> 8) as u8
}
