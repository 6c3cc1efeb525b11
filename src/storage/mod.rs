//! What a storage engine of a member promises, whatever the engine: records named by revision,
//! immutable until released.
//!
//! The append thread owns the [`Engine`], the write side; any thread reads through its [`Reader`].
//! What is staged becomes visible, and may be acknowledged, when [`Engine::commit`] returns `Done`;
//! before that no reader sees it, and a crash may lose it. [`model::ModelEngine`] is this contract
//! in its plainest form, and every engine is compared with it.

pub mod buffer;
pub mod compaction;
#[cfg(test)]
mod contract;
pub mod file_name;
pub mod files_engine;
mod files_index;
mod files_recovery;
mod group;
pub mod hints;
pub mod location_index;
pub mod log_engine;
pub mod model;
pub mod opening;

use std::sync::Arc;

use bytes::Bytes;

pub use crate::config::member::{EngineKind, WriteMode};
use crate::error::Shortage;
use crate::ids::{Key, Revision};

/// The write side, owned by one thread.
pub trait Engine: Send {
    /// Adds a record to the group that the next [`Engine::commit`] completes. A revision that
    /// exists, committed or earlier in the group, is compared: the same key and bytes are no new
    /// record, others are a conflict. One whose copy here is damaged is stored anew.
    fn store(&mut self, revision: Revision, key: &Key, payload: &Bytes) -> Result<Staged, Fatal>;

    /// Adds the release of a revision to the group; an unknown one is passed over. Takes effect in
    /// the order of the calls: a later store of the revision in the same group makes a new record.
    fn release(&mut self, revision: Revision) -> Result<(), Fatal>;

    /// Brings the group to the write mode: buffered, written or synced. On return what
    /// [`Committed`] says took effect is acknowledgeable and visible to readers, the rest is
    /// forgotten. After an error the engine takes nothing more, and nothing of the group may be
    /// acknowledged.
    fn commit(&mut self) -> Result<Committed, Fatal>;

    /// Forgets what was staged.
    fn discard(&mut self);

    /// Called when nothing was committed for a while and before an orderly end: brings everything
    /// to the disk and makes the known-synced offset durable. Nothing may be staged.
    fn idle(&mut self) -> Result<(), Fatal>;

    /// An orderly end: as [`Engine::idle`], and leaves nothing to find out at the next opening.
    /// Nothing may be called behind it.
    fn close(&mut self) -> Result<(), Fatal> {
        self.idle()
    }

    /// Hands what is acknowledged and in the process's memory only to the operating system; in
    /// `buffered` mode to be called within [`buffer::FLUSH_INTERVAL`] of a commit after which
    /// [`Engine::is_buffering`] says so. Nothing may be staged.
    fn flush(&mut self) -> Result<(), Fatal> {
        Ok(())
    }

    /// Fails for good if the engine's paths do not name its files any more: its directory was
    /// removed, replaced or covered by a mount. A commit does the same before it acknowledges
    /// anything; to be called now and then while there is none.
    fn check_in_place(&mut self) -> Result<(), Fatal> {
        Ok(())
    }

    /// Whether something acknowledged is in the process's memory only.
    fn is_buffering(&self) -> bool {
        false
    }

    /// What the last group that was refused wanted.
    fn refusal(&self) -> Shortage {
        Shortage::Space
    }

    /// Does a step of the engine's compaction, in bounded time; nothing may be staged. False if the
    /// step could not be done now, and nothing changed. Engines without compaction have no steps.
    fn compact(&mut self, step: &compaction::Step) -> Result<bool, Fatal> {
        unreachable!("this engine makes no such step: {step:?}")
    }

    /// The read side.
    fn reader(&self) -> Arc<dyn Reader>;
}

/// What became of a record handed to [`Engine::store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// It is in the group: what the commit says of stores holds for it.
    New,
    /// It was committed before with the same key and bytes: acknowledge it, whatever the commit
    /// says of space.
    Known,
    /// The revision exists with another key or other bytes; nothing was staged (R11).
    Conflict,
}

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// All of it reached the write mode.
    Done,
    /// There is no space (or descriptor, or memory: [`Engine::refusal`]) for its stores, which are
    /// forgotten; its releases reached the write mode,
    /// from the reserve if need be.
    StoresFull,
    /// There is no space even for its releases; all of the group is forgotten, but for releases
    /// that took effect before the disk refused one. Releasing them again is harmless.
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
    /// The record of a revision, its checksum verified (A5).
    fn fetch(&self, revision: Revision) -> Result<Option<(Key, Bytes)>, ReadError>;

    /// The same, if the record is there, intact, and in memory, and its payload has at most
    /// `bytes_max` bytes. Otherwise, or where that is not known, `None`, without waiting for the
    /// disk.
    fn at_hand(&self, revision: Revision, bytes_max: usize) -> Option<(Key, Bytes)> {
        _ = (revision, bytes_max);
        None
    }

    /// The length of a live record's payload, known without reading it; `None` if there is no such
    /// record. One that is damaged has a length.
    fn length(&self, revision: Revision) -> Option<u32>;

    /// The sizes as of the last commit.
    fn counters(&self) -> Counters;

    /// The highest revision of the live records as of the last commit.
    fn highest(&self) -> Option<Revision>;
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
    #[error("{context}: {source}")]
    Io {
        /// What was tried, on which file.
        context: String,
        /// Why it failed.
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
