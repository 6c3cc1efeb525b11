//! What waits until writes are durable, and what need not: messages, changes of the configuration,
//! the time of an election. Pure.
//!
//! # Answers to heartbeats
//!
//! The crate gives all messages of one that does not lead as to be sent after its writes. Of these
//! the answer to a heartbeat (its `handle_heartbeat`) promises nothing that is stored, and leaves
//! at once: else a disk that takes longer than an election time-out looks like a peer that is gone.
//! It says that this participant is in that term at that moment. A leader concludes that it is
//! reached (CheckQuorum, Raft thesis 6.2), and, from a majority, that nobody can have been elected
//! in a later term by then (ReadIndex, 6.4; the request's context goes with it): whoever votes in a
//! later term stores that term first, and is never again in one below it. Which entries are stored
//! is said by answers to appends alone; the commit index in it is for information. Not even the
//! term would have to be stored for this; it is waited for all the same, so that nobody is heard of
//! in a term that it forgets in a crash.
//!
//! Heartbeats themselves leave at once, too. So may all messages of a leader, but the others come
//! with entries to be stored, and wait while as many writes as may be are in flight.
//!
//! The answer has the leader send more even if all that it may have on its way is unanswered. So
//! with [`BEHIND_BYTES_MAX`] to store it waits like all others: memory stays bounded, and one that
//! is so far behind is no support for a leader.
//!
//! # Elections
//!
//! A candidate's requests leave when its own vote is stored, and are answered when those of the
//! others are. With disks that take longer for that than a time-out every election would be given
//! up for the next one before it is decided. So time stands still for one that has a term or a vote
//! to store, unless it leads, and each candidacy in a row waits for longer than the one before.

use raft::eraftpb::{Message, MessageType};
use raft::{INVALID_ID, StateRole};

use super::{Batch, Core, Outgoing, Persist, messages};
use crate::group::window::{EntryKind, LogEntry};

/// Bytes of entries to be stored above which a participant answers only when they are. As much as
/// a leader has on its way to one peer without being answered; another time that may follow.
const BEHIND_BYTES_MAX: usize = 32 << 20;

/// Bytes of entries to be stored above which no more are taken: no leader has so many on their way
/// to one peer, and memory stays bounded whatever a peer sends.
const FLOODED_BYTES: usize = 4 * BEHIND_BYTES_MAX;

/// Ticks that a candidacy waits for longer than the one before: about a time-out.
const PATIENCE_TICKS: u32 = 8;

/// The most that it waits for longer. With a time-out that is some 3 s for the disks of the others.
const PATIENCE_TICKS_MAX: u32 = 48;

/// A write that was handed out and is not durable.
pub(super) struct Write {
    number: u64,
    /// Of its entries.
    bytes: usize,
    /// It stores a term or a vote that was not stored before.
    has_promise: bool,
}

/// What a candidate waits for besides its time-out.
#[derive(Default)]
pub(super) struct Patience {
    /// The term of its last candidacy since it knew a leader; 0 if there was none.
    term: u64,
    /// What that one waited for.
    granted: u32,
    /// What is left of it.
    ticks: u32,
}

impl Core {
    /// What is to be sent at once although writes are not durable.
    pub fn prompt(&mut self) -> Vec<Outgoing> {
        let is_stored = self.has_stored_promise() && self.behind_bytes() < BEHIND_BYTES_MAX;
        let leads = self.node.raft.state == StateRole::Leader;
        let is_prompt = |message: &mut Message| match message.get_msg_type() {
            MessageType::MsgHeartbeat => leads,
            MessageType::MsgHeartbeatResponse => is_stored,
            _ => false,
        };
        messages::encode(self.node.raft.msgs.extract_if(.., is_prompt).collect())
    }

    /// Whether a tick does not count. See the header.
    pub(super) fn stands_still(&mut self) -> bool {
        let raft = &self.node.raft;
        if raft.state == StateRole::Leader || raft.leader_id != INVALID_ID {
            self.patience = Patience::default();
        }
        if raft.state == StateRole::Leader {
            return false;
        }
        if !self.has_stored_promise() {
            return true;
        }
        let patience = &mut self.patience;
        if raft.state == StateRole::Candidate && patience.term != raft.term {
            if patience.term > 0 {
                patience.granted = PATIENCE_TICKS_MAX.min(patience.granted + PATIENCE_TICKS);
            }
            (patience.term, patience.ticks) = (raft.term, patience.granted);
        }
        let waits = raft.state == StateRole::Candidate && patience.ticks > 0;
        patience.ticks -= u32::from(waits);
        waits
    }

    /// The term it is in, and for whom it votes there.
    pub(super) fn promise(&self) -> (u64, u64) {
        (self.node.raft.term, self.node.raft.vote)
    }

    fn has_stored_promise(&self) -> bool {
        self.promised == self.promise() && self.writes.iter().all(|write| !write.has_promise)
    }

    /// Whether more entries wait to be stored than an intact leader sends.
    pub(super) fn is_flooded(&self) -> bool {
        self.behind_bytes() > FLOODED_BYTES
    }

    /// Bytes of entries that are not durable.
    fn behind_bytes(&self) -> usize {
        let written: usize = self.writes.iter().map(|write| write.bytes).sum();
        written + self.node.raft.raft_log.unstable.entries_size
    }

    /// A write is handed out.
    pub(super) fn begin_write(&mut self, persist: &Persist) {
        let promise = self.promise();
        self.writes.push_back(Write {
            number: persist.number,
            bytes: persist.bytes(),
            has_promise: promise != self.promised,
        });
        self.promised = promise;
    }

    /// The writes up to `number` are durable.
    pub(super) fn end_writes(&mut self, number: u64) {
        let is_done = |write: &&Write| write.number <= number;
        let done = self.writes.iter().take_while(is_done).count();
        let last = self.writes.drain(..done).next_back();
        assert!(
            last.is_some_and(|write| write.number == number),
            "write {number} is not in flight"
        );
    }

    /// The number of the first write that is not durable; above all others if there is none.
    fn pending(&self) -> u64 {
        self.writes.front().map_or(u64::MAX, |write| write.number)
    }

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
        let pending = self.pending();
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
        let pending = self.pending();
        let is_durable = |(number, _): &&(u64, Vec<Message>)| *number < pending;
        let done = self.held.iter().take_while(is_durable).count();
        for (_, messages) in self.held.drain(..done) {
            batch.messages.extend(messages::encode(messages));
        }
    }
}
