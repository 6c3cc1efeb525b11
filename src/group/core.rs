//! One Raft participant as a value: the `raft` crate behind our own types. Pure.
//!
//! The only file that knows the crate. The caller feeds it ticks, proposals and messages, asks for
//! [`Core::ready`] until there is nothing more, and does what each [`Batch`] says: hand `persist` to
//! the disk, send `messages`, apply `committed`; then tell it [`Core::persisted`] and
//! [`Core::applied`].
//!
//! # The order that Raft needs, and who keeps it
//!
//! * Entries are committed here only once they are persisted here: the crate returns committed
//!   entries up to `min(committed, persisted)`, and counts its own copy when told so.
//! * A leader's messages leave at once, in parallel with its own disk (Raft thesis 10.2.1). All
//!   others may promise something stored (a vote, an acknowledgement): they are held until their
//!   batch and all before it are persisted, and come with the next batch.
//! * A batch with nothing to store counts as persisted when all before it are; the crate is told
//!   then, never earlier, since persisting one number implies all below it.
//! * A leader serves only after its term's first entry, an empty one, is applied (R5).
//! * A proposal names its term and is appended in that term or not at all (R2). Proposals, read
//!   requests and configuration changes that a peer forwards are dropped.
//!
//! # Traps of the crate
//!
//! The log starts behind (index 1, term 1), the same on every peer, because PreVote panics at term 0
//! and a storage with a configuration must not be empty. `pre_vote` and `check_quorum` are set, they
//! are off by default. Sizes are limited: one append message, what is uncommitted, what one batch
//! applies. Its random election time-outs come from the thread's generator; a test that needs them
//! fixed gives a range of one.
//!
//! Known limits: no snapshots and no configuration changes yet; entries that left the window cannot
//! be sent to a peer. The crate's hook for the latter is `Storage::entries` answering
//! `LogTemporarilyUnavailable` below the window and `on_entries_fetched` later.

use std::collections::VecDeque;

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};
use raft::{GetEntriesContext, RaftState, RawNode, StateRole, Storage, StorageError};

use crate::group::proposals::Reason;
use crate::group::window::{LogEntry, Position, Window};
use crate::ids::{PeerId, Revision};

/// Where every log begins: an entry that nobody stores, applied from the start.
pub const ORIGIN: Position = Position { index: 1, term: 1 };

/// Bytes of entries in one append message, and the most that one lost message costs to send again.
const APPEND_BYTES_MAX: u64 = 1 << 20;

/// Append messages on their way to one peer.
const APPENDS_IN_FLIGHT_MAX: usize = 256;

/// Bytes of entries that may be appended and not committed. Above it proposals are refused as busy.
/// Eight times what one batch of a worker can need, so that the workers keep the disk busy.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Bytes of entries that one batch hands out to be applied; keeps ticks and messages going while a
/// peer catches up.
const COMMITTED_BYTES_MAX: u64 = 8 << 20;

/// What a participant is at start.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Its own id.
    pub id: PeerId,
    /// All participants, itself included.
    pub voters: Vec<PeerId>,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader after which to stand for election: chosen at random from this range.
    pub election_ticks: std::ops::Range<usize>,
}

/// What must survive a crash beside the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardState {
    /// The latest term it has seen.
    pub term: u64,
    /// For whom it voted in that term.
    pub vote: Option<PeerId>,
    /// Entries up to here were committed. May lag behind.
    pub commit: u64,
}

impl HardState {
    /// Of a participant that has never taken part.
    pub const INITIAL: HardState = HardState {
        term: ORIGIN.term,
        vote: None,
        commit: ORIGIN.index,
    };
}

/// What the journal held.
pub struct Recovered {
    /// Its last hard state. Everything up to `commit` has been applied already.
    pub hard_state: HardState,
    /// The last entries, those above `commit` at least.
    pub window: Window,
}

/// What the caller shall do, in any order except as the fields say.
#[derive(Debug, Default)]
pub struct Batch {
    /// To be stored, in the order of batches.
    pub persist: Option<Persist>,
    /// To be sent now; a lost one is made good by Raft.
    pub messages: Vec<(PeerId, Vec<u8>)>,
    /// To be applied in order, each followed by (or all by one) [`Core::applied`].
    pub committed: Vec<LogEntry>,
    /// Answers to [`Core::read_index`]: context and index.
    pub reads: Vec<(u64, u64)>,
}

/// One write to the journal: the entries first, then the hard state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Grows with each write; to be given to [`Core::persisted`] once this and all before are durable.
    pub number: u64,
    /// The first one overrides entries of its index and above.
    pub entries: Vec<LogEntry>,
    /// As it is with these entries.
    pub hard_state: HardState,
}

impl Persist {
    /// Bytes of the entries' data.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.data.len()).sum()
    }
}

/// What a participant is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Stands for election.
    Candidate,
    /// Raft leader of its term.
    Leader,
}

/// A participant's state, for its surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreStatus {
    /// What it is.
    pub role: Role,
    /// The latest term it has seen.
    pub term: u64,
    /// The leader of that term, if it knows one.
    pub leader: Option<PeerId>,
    /// Leads, and has applied the first entry of its term (R5).
    pub serving: bool,
    /// Entries up to here are committed.
    pub commit: u64,
    /// Entries up to here are applied.
    pub applied: u64,
}

/// Why a participant cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[error("raft: {0}")]
pub struct CoreError(String);

/// Why a message was dropped.
#[derive(Debug, thiserror::Error)]
#[error("message of a peer dropped: {0}")]
pub struct MessageDropped(String);

/// One participant.
pub struct Core {
    node: RawNode<MemoryLog>,
    id: PeerId,
    /// The number of the last batch taken from the crate.
    number: u64,
    /// The numbers of the writes that are not durable yet, in order.
    writes: VecDeque<u64>,
    /// Messages of batches that are not persisted yet, with the batch's number.
    held: VecDeque<(u64, Vec<Message>)>,
}

impl Core {
    /// A participant that continues from what its journal held. One that is alone stands for
    /// election at once, in a term above all that it has seen, and so is leader on return.
    pub fn new(
        config: &CoreConfig,
        recovered: Recovered,
        logger: &slog::Logger,
    ) -> Result<Core, CoreError> {
        let applied = recovered.hard_state.commit;
        let raft_config = raft::Config {
            id: config.id.0,
            heartbeat_tick: config.heartbeat_ticks,
            election_tick: config.election_ticks.start,
            min_election_tick: config.election_ticks.start,
            max_election_tick: config.election_ticks.end,
            applied,
            max_size_per_msg: APPEND_BYTES_MAX,
            max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            read_only_option: raft::ReadOnlyOption::Safe,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..raft::Config::default()
        };
        check_recovered(config, &recovered)?;
        let storage = MemoryLog {
            hard_state: recovered.hard_state,
            voters: config.voters.clone(),
            window: recovered.window,
        };
        let error = |source: raft::Error| CoreError(source.to_string());
        let node = RawNode::new(&raft_config, storage, logger).map_err(error)?;
        let mut core = Core {
            node,
            id: config.id,
            number: 0,
            writes: VecDeque::new(),
            held: VecDeque::new(),
        };
        if config.voters == [config.id] {
            core.node.campaign().map_err(error)?;
        }
        Ok(core)
    }

    /// One tick of time passes.
    pub fn tick(&mut self) {
        self.node.tick();
    }

    /// Appends an entry if this participant leads `term` and has applied its first entry; returns
    /// its index. `data` is not empty.
    pub fn propose(&mut self, term: u64, data: Vec<u8>) -> Result<u64, Reason> {
        assert!(!data.is_empty(), "an empty entry begins a term");
        let status = self.status();
        if !status.serving || status.term != term {
            return Err(Reason::NotLeader);
        }
        match self.node.propose(Vec::new(), data) {
            Ok(()) => Ok(self.node.raft.raft_log.last_index()),
            // The limit of uncommitted bytes, or leadership is being handed over.
            Err(_) => Err(Reason::Busy),
        }
    }

    /// Asks for a confirmation that this participant leads (R4). It may never be answered.
    pub fn read_index(&mut self, context: u64) {
        self.node.read_index(context.to_be_bytes().to_vec());
    }

    /// Takes a message of a peer, as [`Batch::messages`] of that peer had it.
    pub fn step(&mut self, message: &[u8]) -> Result<(), MessageDropped> {
        let message = Message::parse_from_bytes(message)
            .map_err(|source| MessageDropped(format!("undecodable: {source}")))?;
        self.check_message(&message)?;
        self.node
            .step(message)
            .map_err(|source| MessageDropped(source.to_string()))
    }

    fn check_message(&self, message: &Message) -> Result<(), MessageDropped> {
        let refuse = |reason: String| Err(MessageDropped(reason));
        if message.to != self.id.0 {
            return refuse(format!("it is for {}", PeerId(message.to)));
        }
        if message.term > Revision::TERM_MAX {
            return refuse(format!("term {} is too high", message.term));
        }
        if message
            .entries
            .iter()
            .any(|entry| entry.get_entry_type() != EntryType::EntryNormal)
        {
            return refuse("configuration changes are not supported".to_owned());
        }
        match message.get_msg_type() {
            MessageType::MsgPropose | MessageType::MsgReadIndex => {
                refuse("requests are not forwarded between peers".to_owned())
            }
            MessageType::MsgSnapshot => refuse("snapshots are not supported".to_owned()),
            _ => Ok(()),
        }
    }

    /// What there is to do, if anything. The caller asks again until there is nothing.
    pub fn ready(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        if self.node.has_ready() {
            let mut ready = self.node.ready();
            self.number = ready.number();
            let entries: Vec<LogEntry> = ready.take_entries().into_iter().map(log_entry).collect();
            batch.committed = ready
                .take_committed_entries()
                .into_iter()
                .map(log_entry)
                .collect();
            batch.reads = ready
                .take_read_states()
                .iter()
                .filter_map(|read| Some((u64_of(&read.request_ctx)?, read.index)))
                .collect();
            batch.messages = encode(ready.take_messages());
            self.hold(ready.take_persisted_messages());
            if ready.must_sync() {
                self.writes.push_back(self.number);
                for entry in &entries {
                    self.node.mut_store().window.push(entry.clone());
                }
                batch.persist = Some(Persist {
                    number: self.number,
                    entries,
                    hard_state: hard_state(&self.node.raft.hard_state()),
                });
            }
            self.node.advance_append_async(ready);
            self.settle();
        }
        self.release_held(&mut batch);
        let nothing = batch.persist.is_none()
            && batch.messages.is_empty()
            && batch.committed.is_empty()
            && batch.reads.is_empty();
        if nothing && !self.node.has_ready() {
            return None;
        }
        Some(batch)
    }

    /// The writes up to `number` are durable. What that commits comes with [`Core::ready`].
    pub fn persisted(&mut self, number: u64) {
        let done = self
            .writes
            .iter()
            .take_while(|write| **write <= number)
            .count();
        assert!(
            done > 0 && self.writes.get(done - 1) == Some(&number),
            "write {number} is not in flight"
        );
        self.writes.drain(..done);
        self.node.on_persist_ready(number);
        self.settle();
    }

    /// How many writes were handed out and are not durable.
    pub fn writes_in_flight(&self) -> usize {
        self.writes.len()
    }

    /// Entries up to `index` are applied.
    pub fn applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
        self.node.mut_store().window.trim(index);
    }

    /// What this participant is at the moment.
    pub fn status(&self) -> CoreStatus {
        let raft = &self.node.raft;
        let role = match raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        };
        CoreStatus {
            role,
            term: raft.term,
            leader: (raft.leader_id != raft::INVALID_ID).then_some(PeerId(raft.leader_id)),
            serving: role == Role::Leader && raft.apply_to_current_term(),
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied,
        }
    }

    /// Bytes of entries held in memory.
    pub fn window_bytes(&self) -> usize {
        self.node.store().window.bytes()
    }

    /// Batches without a write are persisted as soon as all writes before them are.
    fn settle(&mut self) {
        if self.writes.is_empty() {
            self.node.on_persist_ready(self.number);
        }
    }

    fn hold(&mut self, messages: Vec<Message>) {
        if !messages.is_empty() {
            self.held.push_back((self.number, messages));
        }
    }

    fn release_held(&mut self, batch: &mut Batch) {
        let pending = self.writes.front().copied().unwrap_or(u64::MAX);
        while self
            .held
            .front()
            .is_some_and(|(number, _)| *number < pending)
        {
            let (_, messages) = self.held.pop_front().expect("it has a front");
            batch.messages.extend(encode(messages));
        }
    }
}

/// The crate panics on what it does not expect of its storage; say what is wrong instead.
fn check_recovered(config: &CoreConfig, recovered: &Recovered) -> Result<(), CoreError> {
    let HardState { term, commit, .. } = recovered.hard_state;
    let window = &recovered.window;
    if !config.voters.contains(&config.id) {
        return Err(CoreError(format!("{} is not a voter", config.id)));
    }
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

fn log_entry(entry: Entry) -> LogEntry {
    LogEntry {
        index: entry.index,
        term: entry.term,
        data: entry.data,
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

fn hard_state(state: &raft::eraftpb::HardState) -> HardState {
    HardState {
        term: state.term,
        vote: (state.vote != raft::INVALID_ID).then_some(PeerId(state.vote)),
        commit: state.commit,
    }
}

fn encode(messages: Vec<Message>) -> Vec<(PeerId, Vec<u8>)> {
    messages
        .into_iter()
        .map(|message| {
            let bytes = message
                .write_to_bytes()
                .expect("a message built by the crate has all its fields");
            (PeerId(message.to), bytes)
        })
        .collect()
}

fn u64_of(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The crate's view of the log: the window, in which entries are readable before they are durable.
struct MemoryLog {
    /// As recovered; the crate reads it once.
    hard_state: HardState,
    voters: Vec<PeerId>,
    window: Window,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> slog::Logger {
        slog::Logger::root(slog::Discard, slog::o!())
    }

    /// A participant with a disk that keeps what it was told to, and applies to a list.
    struct Node {
        core: Core,
        config: CoreConfig,
        /// Writes handed out and not durable.
        unsynced: VecDeque<Persist>,
        /// What is durable.
        entries: Vec<LogEntry>,
        hard_state: HardState,
        applied: Vec<LogEntry>,
        outbox: Vec<(PeerId, Vec<u8>)>,
        reads: Vec<(u64, u64)>,
    }

    impl Node {
        fn new(id: u64, voters: &[u64]) -> Node {
            let config = CoreConfig {
                id: PeerId(id),
                voters: voters.iter().copied().map(PeerId).collect(),
                heartbeat_ticks: 1,
                election_ticks: 5 + id as usize..6 + id as usize,
            };
            Node::start(config, Vec::new(), HardState::INITIAL)
        }

        fn start(config: CoreConfig, entries: Vec<LogEntry>, hard_state: HardState) -> Node {
            let mut window = Window::new(ORIGIN, 1 << 10);
            let mut applied = Vec::new();
            for entry in &entries {
                window.push(entry.clone());
                if entry.index <= hard_state.commit {
                    applied.push(entry.clone());
                }
            }
            let recovered = Recovered { hard_state, window };
            Node {
                core: Core::new(&config, recovered, &quiet()).unwrap(),
                config,
                unsynced: VecDeque::new(),
                entries,
                hard_state,
                applied,
                outbox: Vec::new(),
                reads: Vec::new(),
            }
        }

        /// Loses what is not durable.
        fn restart(self) -> Node {
            Node::start(self.config, self.entries, self.hard_state)
        }

        fn advance(&mut self) {
            while let Some(batch) = self.core.ready() {
                self.unsynced.extend(batch.persist);
                self.outbox.extend(batch.messages);
                self.reads.extend(batch.reads);
                for entry in batch.committed {
                    self.core.applied(entry.index);
                    self.applied.push(entry);
                }
            }
        }

        fn sync(&mut self) {
            self.advance();
            while let Some(write) = self.unsynced.pop_front() {
                for entry in write.entries {
                    self.entries
                        .truncate((entry.index - ORIGIN.index - 1) as usize);
                    self.entries.push(entry);
                }
                self.hard_state = write.hard_state;
                self.core.persisted(write.number);
                self.advance();
            }
        }

        fn propose(&mut self, term: u64, text: &str) -> Result<u64, Reason> {
            self.core.propose(term, text.as_bytes().to_vec())
        }

        fn texts(&self) -> Vec<String> {
            let texts = self.applied.iter().filter(|entry| !entry.data.is_empty());
            texts
                .map(|entry| String::from_utf8(entry.data.to_vec()).unwrap())
                .collect()
        }
    }

    #[test]
    fn one_alone_leads_at_once_and_serves_when_its_first_entry_is_applied() {
        let mut node = Node::new(1, &[1]);
        let status = node.core.status();
        assert_eq!((status.role, status.term), (Role::Leader, 2));
        assert!(!status.serving);
        node.advance();
        assert!(!node.core.status().serving);
        assert_eq!(node.propose(2, "early"), Err(Reason::NotLeader));
        node.sync();
        assert!(node.core.status().serving);
        assert_eq!(node.propose(2, "in time"), Ok(3));
    }

    #[test]
    fn nothing_is_applied_before_it_is_persisted_and_then_in_order() {
        let mut node = Node::new(1, &[1]);
        node.sync();
        node.propose(2, "a").unwrap();
        node.advance();
        node.propose(2, "b").unwrap();
        node.propose(2, "c").unwrap();
        node.advance();
        assert_eq!(node.texts(), Vec::<String>::new());
        assert_eq!(node.unsynced.len(), 2);
        assert_eq!(node.unsynced[1].entries.len(), 2);
        let first = node.unsynced.pop_front().unwrap();
        node.core.persisted(first.number);
        node.advance();
        assert_eq!(node.texts(), ["a"]);
        node.sync();
        assert_eq!(node.texts(), ["a", "b", "c"]);
        let status = node.core.status();
        assert_eq!((status.commit, status.applied), (5, 5));
    }

    #[test]
    fn one_acknowledgement_covers_all_earlier_writes() {
        let mut node = Node::new(1, &[1]);
        node.sync();
        for text in ["a", "b", "c"] {
            node.propose(2, text).unwrap();
            node.advance();
        }
        let last = node.unsynced.pop_back().unwrap();
        node.core.persisted(last.number);
        assert_eq!(node.core.writes_in_flight(), 0);
        node.advance();
        assert_eq!(node.texts(), ["a", "b", "c"]);
    }

    #[test]
    fn a_proposal_of_another_term_is_refused() {
        let mut node = Node::new(1, &[1]);
        node.sync();
        for term in [0, 1, 3] {
            assert_eq!(node.propose(term, "x"), Err(Reason::NotLeader));
        }
        node.sync();
        assert_eq!(node.texts(), Vec::<String>::new());
    }

    #[test]
    fn each_start_has_a_new_term_and_commits_what_the_last_one_stored() {
        let mut node = Node::new(1, &[1]);
        for start in 0..5 {
            node.sync();
            let term = node.core.status().term;
            assert_eq!(term, 2 + start);
            node.propose(term, &format!("{start}")).unwrap();
            node.advance();
            // Stored, and not known to be committed when the crash comes.
            let write = node.unsynced.pop_front().unwrap();
            node.entries.extend(write.entries);
            node.hard_state = write.hard_state;
            node = node.restart();
        }
        node.sync();
        assert_eq!(node.texts(), ["0", "1", "2", "3", "4"]);
        let terms: Vec<u64> = node.applied.iter().map(|entry| entry.term).collect();
        assert!(terms.is_sorted());
    }

    #[test]
    fn a_term_that_was_not_stored_was_not_served() {
        let mut node = Node::new(1, &[1]);
        node.sync();
        node = node.restart();
        node.advance();
        assert_eq!(node.core.status().term, 3);
        node = node.restart();
        assert_eq!(node.core.status().term, 3);
        assert!(!node.core.status().serving);
    }

    #[test]
    fn memory_does_not_grow_with_the_log() {
        let mut node = Node::new(1, &[1]);
        node.sync();
        for _ in 0..100 {
            node.propose(2, &"x".repeat(300)).unwrap();
            node.sync();
        }
        assert!(node.core.window_bytes() <= 1 << 10);
        assert_eq!(node.applied.len(), 101);
    }

    #[test]
    fn too_much_uncommitted_is_refused() {
        let mut node = Node::new(1, &[1]);
        node.sync();
        let megabyte = vec![0; 1 << 20];
        let refused = (0..100)
            .filter(|_| node.core.propose(2, megabyte.clone()) == Err(Reason::Busy))
            .count();
        assert_eq!(refused, 36);
        node.sync();
        assert!(node.core.propose(2, megabyte).is_ok());
    }

    #[test]
    fn a_log_that_makes_no_sense_is_refused() {
        let config = CoreConfig {
            id: PeerId(1),
            voters: vec![PeerId(1)],
            heartbeat_ticks: 1,
            election_ticks: 6..12,
        };
        for (term, commit, voter) in [(1, 2, 1), (1, 0, 1), (0, 1, 1), (1, 1, 2), (1 << 24, 1, 1)] {
            let recovered = Recovered {
                hard_state: HardState {
                    term,
                    vote: None,
                    commit,
                },
                window: Window::new(ORIGIN, 0),
            };
            let voters = vec![PeerId(voter)];
            let config = CoreConfig {
                voters,
                ..config.clone()
            };
            assert!(
                Core::new(&config, recovered, &quiet()).is_err(),
                "{term} {commit}"
            );
        }
    }

    /// Three participants; messages go where they are sent unless an end is cut off.
    struct Group {
        nodes: Vec<Node>,
        cut: Vec<u64>,
    }

    impl Group {
        fn new() -> Group {
            let nodes = (1..=3).map(|id| Node::new(id, &[1, 2, 3])).collect();
            Group {
                nodes,
                cut: Vec::new(),
            }
        }

        fn node(&mut self, id: u64) -> &mut Node {
            &mut self.nodes[id as usize - 1]
        }

        /// Syncs and delivers until nothing moves.
        fn settle(&mut self) {
            loop {
                let mut mail = Vec::new();
                for id in 1..=3 {
                    self.node(id).sync();
                    for (to, message) in std::mem::take(&mut self.node(id).outbox) {
                        if !self.cut.contains(&id) && !self.cut.contains(&to.0) {
                            mail.push((to, message));
                        }
                    }
                }
                if mail.is_empty() {
                    return;
                }
                for (to, message) in mail {
                    _ = self.node(to.0).core.step(&message);
                }
            }
        }

        fn ticks(&mut self, count: usize) {
            for _ in 0..count {
                for id in 1..=3 {
                    self.node(id).core.tick();
                }
                self.settle();
            }
        }
    }

    #[test]
    fn three_elect_replicate_and_survive_their_leader() {
        let mut group = Group::new();
        assert_eq!(group.node(1).core.status().role, Role::Follower);
        group.ticks(10);
        let status = group.node(1).core.status();
        assert!(status.serving && status.role == Role::Leader);
        group.node(1).propose(status.term, "a").unwrap();
        group.settle();
        assert_eq!(
            group.node(2).propose(status.term, "b"),
            Err(Reason::NotLeader)
        );

        group.cut.push(1);
        group.node(1).propose(status.term, "lost").unwrap();
        group.ticks(30);
        assert_ne!(group.node(1).core.status().role, Role::Leader);
        let heir = [2, 3]
            .into_iter()
            .find(|id| group.node(*id).core.status().serving)
            .unwrap();
        let term = group.node(heir).core.status().term;
        assert!(term > status.term);
        group.node(heir).propose(term, "c").unwrap();
        group.settle();

        group.cut.clear();
        group.ticks(10);
        for id in 1..=3 {
            assert_eq!(group.node(id).texts(), ["a", "c"], "node {id}");
        }
    }

    #[test]
    fn a_vote_leaves_only_when_it_is_stored() {
        let mut group = Group::new();
        for _ in 0..10 {
            group.node(1).core.tick();
        }
        // PreVote stores nothing, so its answers come at once.
        group.node(1).sync();
        let (to, request) = group.node(1).outbox.remove(0);
        group.node(to.0).core.step(&request).unwrap();
        group.node(to.0).advance();
        let (_, answer) = group.node(to.0).outbox.remove(0);
        group.node(1).outbox.clear();
        group.node(1).core.step(&answer).unwrap();
        group.node(1).advance();
        assert_eq!(group.node(1).outbox, [], "its own vote is not stored yet");
        group.node(1).sync();
        let (to, request) = group.node(1).outbox.remove(0);
        group.node(to.0).core.step(&request).unwrap();
        group.node(to.0).advance();
        assert_eq!(group.node(to.0).outbox, []);
        group.node(to.0).sync();
        assert_eq!(group.node(to.0).outbox.len(), 1);
        assert_eq!(group.node(to.0).hard_state.vote, Some(PeerId(1)));
    }

    #[test]
    fn a_read_is_confirmed_by_the_others() {
        let mut group = Group::new();
        group.ticks(10);
        group.node(1).core.read_index(7);
        group.node(1).sync();
        assert_eq!(group.node(1).reads, []);
        group.settle();
        let commit = group.node(1).core.status().commit;
        assert_eq!(group.node(1).reads, [(7, commit)]);
        group.cut = vec![2, 3];
        group.node(1).core.read_index(8);
        group.settle();
        assert_eq!(group.node(1).reads.len(), 1);
    }

    #[test]
    fn what_a_peer_must_not_send_is_dropped() {
        let mut group = Group::new();
        group.ticks(10);
        let mut message = Message {
            to: 1,
            from: 2,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgPropose);
        message.entries.push(Entry {
            data: vec![1].into(),
            ..Entry::default()
        });
        let node = group.node(1);
        assert!(node.core.step(&message.write_to_bytes().unwrap()).is_err());
        message.set_msg_type(MessageType::MsgReadIndex);
        assert!(node.core.step(&message.write_to_bytes().unwrap()).is_err());
        message.set_msg_type(MessageType::MsgAppend);
        message.term = Revision::TERM_MAX + 1;
        assert!(node.core.step(&message.write_to_bytes().unwrap()).is_err());
        assert!(node.core.step(b"\xff\xff").is_err());
        message.to = 2;
        message.term = 2;
        assert!(node.core.step(&message.write_to_bytes().unwrap()).is_err());
        group.settle();
        assert_eq!(group.node(1).texts(), Vec::<String>::new());
    }
}
