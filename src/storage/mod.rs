//! What a storage engine of a member promises, whatever the engine: records named by revision,
//! immutable until released.
//!
//! The append thread owns the [`Engine`], the write side; any thread reads through its [`Reader`].

use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{Key, Revision};

/// The write side, owned by one thread.
pub trait Engine: Send {
    /// Adds a record to the group that the next [`Engine::commit`] completes. An existing revision
    /// with the same key and bytes is `Stored` again, with others it is a `Conflict`.
    fn store(&mut self, revision: Revision, key: &Key, payload: &Bytes) -> Result<Staged, Fatal>;

    /// Adds the release of a revision to the group; an unknown one is passed over.
    fn release(&mut self, revision: Revision) -> Result<(), Fatal>;

    /// Writes the group and brings it to the write mode. On return all that was staged is
    /// acknowledgeable and visible to readers; on `Full` none of the group's stores is (its releases
    /// are kept for the next commit). After an error the engine takes nothing more.
    fn commit(&mut self) -> Result<Committed, Fatal>;

    /// When nothing was committed for a while: makes the known-synced offset durable.
    fn idle(&mut self) -> Result<(), Fatal>;

    /// The read side.
    fn reader(&self) -> Arc<dyn Reader>;
}

/// What became of a record handed to [`Engine::store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// It is in the group (or was stored before): acknowledge it after the commit.
    Stored,
    /// The revision exists with another key or other bytes (R11).
    Conflict,
}

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It reached the write mode.
    Done,
    /// There is no space: its stores are forgotten, the log is valid.
    Full,
}

/// The disk failed, or an invariant broke: the member stops acknowledging and exits.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {source}")]
pub struct Fatal {
    /// What was tried, on which file.
    pub context: String,
    /// Why it failed.
    pub source: std::io::Error,
}

/// The read side, shared by all threads.
pub trait Reader: Send + Sync {
    /// The record of a revision, its checksum verified.
    fn fetch(&self, revision: Revision) -> Result<Option<(Key, Bytes)>, ReadError>;

    /// The sizes as of the last commit.
    fn counters(&self) -> Counters;
}

/// A record is there and cannot be returned.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its checksum does not match (A5).
    #[error("{file} is damaged at offset {offset}: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What was expected and found.
        what: String,
    },
    /// The operating system refused.
    #[error("cannot read {file} at offset {offset}: {source}")]
    Io {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
}

/// How much a member holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Live records.
    pub records: u64,
    /// Payload bytes of live records.
    pub bytes: u64,
}
