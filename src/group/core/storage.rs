//! The crate's view of the log: the window, in which entries are readable before they are durable.
//! Pure.
//!
//! Below the window there is nothing: a peer that lags so far needs what a later version fetches
//! from the journal, by `LogTemporarilyUnavailable` here and `on_entries_fetched` once they are
//! there.

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::{HardState, LogEntry};
use crate::group::window::Window;
use crate::ids::PeerId;

/// See the header of this file.
pub(super) struct MemoryLog {
    /// As recovered; the crate reads it once.
    pub(super) hard_state: HardState,
    pub(super) voters: Vec<PeerId>,
    pub(super) window: Window,
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = raft::eraftpb::HardState {
            term: self.hard_state.term,
            vote: self.hard_state.vote.map_or(raft::INVALID_ID, |id| id.0),
            commit: self.hard_state.commit,
            ..Default::default()
        };
        let conf_state = ConfState {
            voters: self.voters.iter().map(|id| id.0).collect(),
            ..ConfState::default()
        };
        Ok(RaftState::new(hard_state, conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.window.first_index() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let mut room = max_size.into().unwrap_or(u64::MAX);
        let mut entries = Vec::new();
        for index in low..high {
            let entry = self
                .window
                .entry(index)
                .ok_or(raft::Error::Store(StorageError::Unavailable))?;
            let entry = raft_entry(entry);
            let size = u64::from(entry.compute_size());
            // The first one always fits, or a large entry would never be sent.
            if size > room && !entries.is_empty() {
                break;
            }
            room = room.saturating_sub(size);
            entries.push(entry);
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let missing = if index < self.window.first_index() {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        };
        self.window.term(index).ok_or(raft::Error::Store(missing))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.window.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.window.last_index())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<raft::eraftpb::Snapshot> {
        Err(raft::Error::Store(
            StorageError::SnapshotTemporarilyUnavailable,
        ))
    }
}

fn raft_entry(entry: &LogEntry) -> Entry {
    Entry {
        index: entry.index,
        term: entry.term,
        data: entry.data.clone(),
        ..Entry::default()
    }
}
