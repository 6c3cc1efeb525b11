//! The crate's view of the log: the window, in which entries are readable before they are durable.
//! Pure.
//!
//! Below the window there is nothing: a peer that lags so far gets a snapshot, and what was
//! appended since. That snapshot must know the peer, and end in the window; if there is none, one
//! is asked for and the crate comes back later.

use std::cell::Cell;

use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::{CoreError, HardState, LogEntry, Recovered, membership};
use crate::group::configuration::Configuration;
use crate::group::window::{EntryKind, Position, Window};
use crate::ids::{PeerId, Revision};

/// See the header of this file.
pub(super) struct MemoryLog {
    /// As recovered; the crate reads it once.
    pub(super) hard_state: HardState,
    /// As of the last applied entry; the crate reads it once.
    pub(super) configuration: Configuration,
    pub(super) window: Window,
    /// The newest durable snapshot, with who took part there.
    pub(super) snapshot: Option<(Position, Configuration)>,
    /// A peer needs a snapshot that there is not. Set in a method that only reads.
    pub(super) wants_snapshot: Cell<bool>,
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = raft::eraftpb::HardState {
            term: self.hard_state.term,
            vote: self.hard_state.vote.map_or(raft::INVALID_ID, |id| id.0),
            commit: self.hard_state.commit,
            ..Default::default()
        };
        let conf_state = membership::conf_state(&self.configuration);
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

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |(position, configuration): &&(Position, Configuration)| {
            position.index >= request_index
                && position.index + 1 >= self.window.first_index()
                && configuration.peers().contains(&PeerId(to))
        };
        let Some((position, configuration)) = self.snapshot.as_ref().filter(fits) else {
            self.wants_snapshot.set(true);
            return Err(raft::Error::Store(
                StorageError::SnapshotTemporarilyUnavailable,
            ));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = position.index;
        metadata.term = position.term;
        metadata.set_conf_state(membership::conf_state(configuration));
        Ok(snapshot)
    }
}

fn raft_entry(entry: &LogEntry) -> Entry {
    Entry {
        entry_type: match entry.kind {
            EntryKind::Command => EntryType::EntryNormal,
            EntryKind::Configuration => EntryType::EntryConfChangeV2,
        },
        index: entry.index,
        term: entry.term,
        data: entry.data.clone(),
        ..Entry::default()
    }
}

/// Whether what a journal held is a state of Raft. The crate panics on what it does not expect of
/// its storage; this says what is wrong instead.
pub(super) fn check(recovered: &Recovered) -> Result<(), CoreError> {
    let HardState { term, commit, .. } = recovered.hard_state;
    let window = &recovered.window;
    if commit + 1 < window.first_index() || commit > window.last_index() {
        return Err(CoreError(format!(
            "commit index {commit} is outside the log {}..={}",
            window.first_index(),
            window.last_index()
        )));
    }
    if term < window.last().term || term > Revision::TERM_MAX - 1 {
        return Err(CoreError(format!(
            "term {term} does not fit a log that ends in term {}",
            window.last().term
        )));
    }
    Ok(())
}

/// As the crate hands it out.
pub(super) fn log_entry(entry: Entry) -> LogEntry {
    LogEntry {
        kind: match entry.get_entry_type() {
            EntryType::EntryNormal => EntryKind::Command,
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => EntryKind::Configuration,
        },
        index: entry.index,
        term: entry.term,
        data: entry.data,
    }
}

/// As the crate hands it out, to be persisted.
pub(super) fn hard_state(state: &raft::eraftpb::HardState) -> HardState {
    HardState {
        term: state.term,
        vote: (state.vote != raft::INVALID_ID).then_some(PeerId(state.vote)),
        commit: state.commit,
    }
}
