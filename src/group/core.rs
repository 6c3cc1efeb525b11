//! One Raft participant as a value: the `raft` crate behind our own types. Pure.
//!
//! The only file, with its `storage`, that knows the crate. The caller feeds it ticks, proposals
//! and messages, asks for [`Core::ready`] until there is nothing more, and does what each [`Batch`]
//! says: hand `persist` to the disk, send `messages`, apply `committed`; then it tells
//! [`Core::persisted`] and [`Core::applied`].
//!
//! # The order that Raft needs, and who keeps it
//!
//! * Entries are committed here only once they are persisted here: the crate returns committed
//!   entries up to `min(committed, persisted)`, and counts its own copy when told so.
//! * A leader's messages leave at once, in parallel with its own disk (Raft thesis 10.2.1). All
//!   others may promise something stored (a vote, an acknowledgement): they are held until their
//!   batch and all before it are persisted, and come with the next batch. All but the answer to a
//!   heartbeat, which promises nothing, see `waiting`.
//! * Who has a vote to store does not stand for election meanwhile, see `waiting`.
//! * A batch with nothing to store counts as persisted when all before it are; the crate is told
//!   then, never earlier, since persisting one number implies all below it.
//! * A leader serves only after its term's first entry, an empty one, is applied (R5).
//! * A proposal names its term and is appended in that term or not at all (R2). Proposals, read
//!   requests and configuration changes that a peer forwards are dropped.
//!
//! # Traps of the crate
//!
//! The log starts behind (index 1, term 1), the same on every peer, because PreVote panics at term
//! 0 and a storage with a configuration must not be empty. `pre_vote` and `check_quorum` are set,
//! they are off by default. Sizes are limited: one append message, what is uncommitted, what one
//! batch applies. Its random election time-outs come from the thread's generator; a test that needs
//! them fixed gives a range of one.
//!
//! * A change of the configuration that is proposed while another is under way becomes an empty
//!   entry; [`Core::change`] refuses it instead.
//! * A joint configuration ends by itself only if its leader stays; see [`Core::next_change`].
//! * A snapshot that does not name its receiver is dropped without a word; see `storage`.
//! * An installed snapshot may be reported as applied only once it is persisted.
//! * It does not persist by itself how far is committed, and goes by the configuration that is
//!   applied: one that was applied and is forgotten in a crash may need the votes of peers that are
//!   gone. So a change of it is handed out only once it is durable that it is committed.
//! * A leader whose removal another one had proposed leads on, and panics at the next answer; it
//!   becomes a follower here.
//!
//! Known limit: a peer that needs entries which left the window gets a snapshot, even when the
//! journal still holds them.

use std::collections::VecDeque;

use raft::eraftpb::Message;
use raft::{RawNode, StateRole};

use crate::faults::{self, Fault};
use crate::group::configuration::Configuration;
use crate::group::proposals::Reason;
use crate::group::window::{EntryKind, LogEntry, Position, Window};
use crate::ids::{LogPosition, PeerId};

mod asking;
pub mod copies;
mod floor;
pub mod guard;
mod membership;
mod messages;
mod peers;
#[cfg(test)]
pub(crate) mod readable;
mod stepping;
mod storage;
#[cfg(test)]
mod tests;
mod waiting;
mod wire;

use self::asking::Answering;
use self::copies::Recall;
use self::floor::Floor;
pub use self::membership::changed;
pub use self::messages::{MessageDropped, Outgoing, SnapshotMessage, snapshot_of};
pub use self::peers::Progress;
use self::storage::{MemoryLog, hard_state, log_entry};
use self::waiting::{Patience, Write};

/// Where every log begins: an entry that nobody stores, applied from the start.
pub const ORIGIN: Position = Position { index: 1, term: 1 };

/// Bytes of entries in one append message, and the most that one lost message costs to send again.
const APPEND_BYTES_MAX: u64 = 1 << 20;

/// Append messages on their way to one peer: 32 MiB at most, half of what its link queues, so that
/// heartbeats find room behind one that catches up. The journal has far fewer writes in flight; a
/// quarter of it would be felt on links with 200 ms.
const APPENDS_IN_FLIGHT_MAX: usize = 32;

/// Bytes of entries that may be appended and not committed. Above it proposals are refused as busy.
/// Eight times what one batch of a worker can need, so that the workers keep the disk busy.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Bytes of applied entries kept in memory by one that is alone: nobody asks for them.
const ALONE_BYTES_MAX: usize = 1 << 20;

/// Bytes of entries that one batch hands out to be applied; keeps ticks and messages going while a
/// peer catches up.
const COMMITTED_BYTES_MAX: u64 = 8 << 20;

/// What a participant is at start.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Its own id.
    pub id: PeerId,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader after which to stand for election: chosen at random from this range.
    pub election_ticks: std::ops::Range<usize>,
    /// Whether it asks each peer what that knows of it before they count for each other.
    pub asks_peers: bool,
    /// Whether it waits for members at its start, see [`Core::members_told`].
    pub asks_members: bool,
    /// Says why the data of an entry, which is not empty, cannot be applied.
    pub check: fn(&[u8]) -> Result<(), String>,
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

    /// Of a participant that has nothing, not even the origin, and waits for a snapshot.
    pub const NOTHING: HardState = HardState {
        term: 0,
        vote: None,
        commit: 0,
    };
}

/// What the journal held.
pub struct Recovered {
    /// Its last hard state. Everything up to `commit` has been applied already.
    pub hard_state: HardState,
    /// The last entries, those above `commit` at least.
    pub window: Window,
    /// Who takes part, as of `commit`.
    pub configuration: Configuration,
}

impl Recovered {
    /// The last entry that is applied.
    pub fn applied(&self) -> Position {
        let index = self.hard_state.commit;
        Position {
            index,
            // Outside the window: `Core::new` refuses that.
            term: self.window.term(index).unwrap_or_default(),
        }
    }
}

/// What the caller shall do, in any order except as the fields say.
#[derive(Debug, Default)]
pub struct Batch {
    /// To be stored, in the order of batches.
    pub persist: Option<Persist>,
    /// To be sent now; a lost one is made good by Raft.
    pub messages: Vec<Outgoing>,
    /// The snapshot at this position, which was stepped in, replaces everything that was applied.
    /// Then `persist` says so too, and nothing is committed in this batch.
    pub install: Option<Position>,
    /// To be applied in order, each followed by (or all by one) [`Core::applied`], one that changes
    /// the configuration by [`Core::apply_change`] before.
    pub committed: Vec<LogEntry>,
    /// Answers to [`Core::read_index`]: context and index.
    pub reads: Vec<(u64, u64)>,
}

/// One write to the journal: the entries first, then the hard state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Grows with each write; to be given to [`Core::persisted`] once this and all before are
    /// durable.
    pub number: u64,
    /// Before everything else: the log ends here, behind an installed snapshot.
    pub reset: Option<Position>,
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
    /// Of one that leads: the last entry before its term, all that it knew when it was elected.
    pub behind: LogPosition,
}

/// Why a participant cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[error("raft: {0}")]
pub struct CoreError(String);

/// One participant.
pub struct Core {
    node: RawNode<MemoryLog>,
    id: PeerId,
    /// The number of the last batch taken from the crate.
    number: u64,
    /// The writes that are not durable yet, in order.
    writes: VecDeque<Write>,
    /// Term and vote of the last write.
    promised: (u64, u64),
    /// What a candidate waits for besides its time-out.
    patience: Patience,
    /// Messages of batches that are not persisted yet, with the batch's number.
    held: VecDeque<(u64, Vec<Message>)>,
    /// Committed entries from one on that changes the configuration, with the number of the write
    /// that says so; handed out once that is durable.
    committed: VecDeque<(u64, Vec<LogEntry>)>,
    /// The snapshot that was installed by a write that is not durable yet, with that write's
    /// number.
    installed: Option<(u64, Position)>,
    /// The last term that it was found to lead, and the last entry before that term.
    elected: (u64, LogPosition),
    recall: Recall,
    floor: Floor,
    answering: Answering,
    /// As in [`CoreConfig`].
    check: fn(&[u8]) -> Result<(), String>,
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
        storage::check(&recovered)?;
        let is_alone = recovered.configuration.is_alone(config.id);
        let storage = MemoryLog {
            hard_state: recovered.hard_state,
            configuration: recovered.configuration,
            window: recovered.window,
            snapshot: None,
            wants_snapshot: std::cell::Cell::new(false),
        };
        let error = |source: raft::Error| CoreError(source.to_string());
        let node = RawNode::new(&raft_config, storage, logger).map_err(error)?;
        let mut core = Core {
            node,
            id: config.id,
            number: 0,
            writes: VecDeque::new(),
            promised: (0, 0),
            patience: Patience::default(),
            held: VecDeque::new(),
            committed: VecDeque::new(),
            installed: None,
            elected: (0, LogPosition::default()),
            recall: Recall::new(config.asks_peers),
            floor: Floor::new(config.asks_members),
            answering: Answering::default(),
            check: config.check,
        };
        core.promised = core.promise();
        if is_alone {
            core.node.campaign().map_err(error)?;
        }
        Ok(core)
    }

    /// One tick of time passes.
    pub fn tick(&mut self) {
        self.remember_peers();
        self.ask_peers();
        self.end_conflicts();
        self.tick_floor();
        if !self.stands_still() {
            self.node.tick();
        }
    }

    /// Appends an entry if this participant leads `term` and has applied its first entry; returns
    /// its index. `data` is not empty.
    pub fn propose(&mut self, term: u64, data: Vec<u8>) -> Result<u64, Reason> {
        assert!(!data.is_empty(), "an empty entry begins a term");
        let status = self.status();
        let is_term = status.term == term || faults::has(Fault::ProposeInOtherTerm);
        if !status.serving || !is_term {
            return Err(Reason::NotLeader);
        }
        match self.node.propose(Vec::new(), data) {
            Ok(()) => Ok(self.node.raft.raft_log.last_index()),
            // The limit of uncommitted bytes, or leadership is being handed over.
            Err(_) => Err(Reason::Busy),
        }
    }

    /// What there is to do, if anything. The caller asks again until there is nothing.
    pub fn ready(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        self.note_election();
        if self.node.has_ready() {
            let mut ready = self.node.ready();
            self.number = ready.number();
            let entries: Vec<LogEntry> = ready.take_entries().into_iter().map(log_entry).collect();
            let committed = ready.take_committed_entries().into_iter();
            let committed: Vec<LogEntry> = committed.map(log_entry).collect();
            let is_change = |entry: &LogEntry| entry.kind == EntryKind::Configuration;
            let is_changed = committed.iter().any(is_change);
            self.committed.push_back((self.number, committed));
            batch.reads = ready
                .take_read_states()
                .iter()
                .filter_map(|read| Some((u64_of(&read.request_ctx)?, read.index)))
                .collect();
            batch.messages = messages::encode(ready.take_messages());
            match faults::has(Fault::SendBeforePersist) {
                true => {
                    let messages = messages::encode(ready.take_persisted_messages());
                    batch.messages.extend(messages);
                }
                false => self.hold(ready.take_persisted_messages()),
            }
            if !ready.snapshot().is_empty() {
                batch.install = Some(self.install(ready.snapshot()));
            }
            if ready.must_sync() || is_changed {
                for entry in &entries {
                    self.node.mut_store().window.push(entry.clone());
                }
                let persist = Persist {
                    number: self.number,
                    reset: batch.install,
                    entries,
                    hard_state: hard_state(&self.node.raft.hard_state()),
                };
                self.begin_write(&persist);
                batch.persist = Some(persist);
            }
            self.node.advance_append_async(ready);
            self.settle();
        }
        self.release_held(&mut batch);
        self.release_committed(&mut batch);
        let nothing = batch.persist.is_none()
            && batch.messages.is_empty()
            && batch.install.is_none()
            && batch.committed.is_empty()
            && batch.reads.is_empty();
        if nothing && !self.node.has_ready() {
            return None;
        }
        Some(batch)
    }

    /// The log begins anew behind a snapshot.
    fn install(&mut self, snapshot: &raft::eraftpb::Snapshot) -> Position {
        let metadata = snapshot.get_metadata();
        let position = Position {
            index: metadata.index,
            term: metadata.term,
        };
        let configuration = membership::configuration(metadata.get_conf_state());
        // All of it is in the snapshot.
        self.committed.clear();
        let store = self.node.mut_store();
        store.window.reset(position);
        store.configuration = configuration.clone();
        store.snapshot = Some((position, configuration));
        self.installed = Some((self.number, position));
        position
    }

    /// The writes up to `number` are durable. What that commits comes with [`Core::ready`].
    pub fn persisted(&mut self, number: u64) {
        self.end_writes(number);
        self.node.on_persist_ready(number);
        let is_durable = |(write, _): &mut (u64, Position)| *write <= number;
        if let Some((_, position)) = self.installed.take_if(is_durable) {
            self.node.advance_apply_to(position.index);
        }
        self.settle();
    }

    /// How many writes were handed out and are not durable.
    pub fn writes_in_flight(&self) -> usize {
        self.writes.len()
    }

    /// Entries up to `index` are applied.
    pub fn applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
        let wanted = self.wanted();
        let bytes_max = match self.configuration().peers().len() {
            0 | 1 => ALONE_BYTES_MAX,
            _ => usize::MAX,
        };
        self.node.mut_store().window.trim(index, wanted, bytes_max);
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
            serving: role == Role::Leader
                && (raft.apply_to_current_term() || faults::has(Fault::ServeBeforeNoOp)),
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            behind: self.elected.1,
        }
    }

    /// Bytes of entries held in memory.
    pub fn window_bytes(&self) -> usize {
        self.node.store().window.bytes()
    }
}

fn u64_of(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
