//! What waits until writes are durable: messages that promise something, changes of the
//! configuration. Pure.

use raft::eraftpb::Message;

use super::{Batch, Core, messages};
use crate::group::window::{EntryKind, LogEntry};

impl Core {
    /// Batches without a write are persisted as soon as all writes before them are.
    pub(super) fn settle(&mut self) {
        if self.writes.is_empty() {
            self.node.on_persist_ready(self.number);
        }
    }

    pub(super) fn hold(&mut self, messages: Vec<Message>) {
        if !messages.is_empty() {
            self.held.push_back((self.number, messages));
        }
    }

    /// What was committed, up to a change of the configuration of which that is not durable.
    pub(super) fn release_committed(&mut self, batch: &mut Batch) {
        let pending = self.writes.front().copied().unwrap_or(u64::MAX);
        let is_change = |entry: &LogEntry| entry.kind == EntryKind::Configuration;
        while let Some((number, entries)) = self.committed.front()
            && (*number < pending || !entries.iter().any(is_change))
        {
            let (_, entries) = self.committed.pop_front().expect("it has a front");
            batch.committed.extend(entries);
        }
    }

    /// What promises something that is durable now.
    pub(super) fn release_held(&mut self, batch: &mut Batch) {
        let pending = self.writes.front().copied().unwrap_or(u64::MAX);
        while self
            .held
            .front()
            .is_some_and(|(number, _)| *number < pending)
        {
            let (_, messages) = self.held.pop_front().expect("it has a front");
            batch.messages.extend(messages::encode(messages));
        }
    }
}
