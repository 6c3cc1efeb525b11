//! Raft among leaders: one log of opaque entries, applied in the same order by all of them.
//!
//! A group has one participant or several, on the same code path: one alone elects itself,
//! replicates to its own disk, commits, applies. Others are added while it runs: each starts empty
//! ([`Bootstrap::Join`]), becomes a learner, gets a snapshot and the entries behind it, and is made
//! a voter when it has caught up ([`configuration`]).
//!
//! # What is whose
//!
//! The protocol is TiKV's `raft` crate, a port of etcd's: elections, replication, commitment,
//! ReadIndex. Ours is all around it: the journal and its recovery, the order of persisting, sending
//! and applying, who waits for what, and identity. Only [`core`] knows the crate. Thesis sections
//! (Ongaro, "Consensus: Bridging Theory and Practice"): elections 3.4, commitment 3.6.2 (an entry
//! of an older term is committed by one of the current term, hence the empty entry that begins
//! each), persisted state 3.8, reads without log writes 6.4, PreVote 9.6, a leader that writes to
//! its disk in parallel 10.2.1.
//!
//! # The way of a proposal
//!
//! ```text
//!  worker ── GroupHandle::propose(term, data, done) ──► inbox of `raft` (bounded, else busy)
//!  raft      drains the inbox; appends each proposal that names the term it serves, else refuses
//!  raft      makes one batch of all ──► queue of `journal` (bounded)
//!  journal   merges what waits, one write, one fdatasync ──► inbox of `raft`: persisted
//!  raft      commits, applies in order, calls each `done`
//! ```
//!
//! # Rules kept here (DESIGN.md §5)
//!
//! * R2: a proposal is appended in the term it names, at most once, or refused; nothing is
//!   forwarded.
//! * R4: a read is confirmed by a request issued after it arrived.
//! * R5: *serving* begins when the empty entry of the own term is applied.
//! * R15: `NotProposed` and `Lost` are said only when the entry is not and never will be in the
//!   log.
//! * A term is served by one start of one process: each start begins a new term, durable before
//!   anything is proposed in it, so revisions made of it are never made again.
//!
//! # Threads
//!
//! | thread | owns | waits on | stopped by |
//! |---|---|---|---|
//! | `raft` | the [`node`]: core, state, callbacks | inbox; next tick, with peers | `Stop` |
//! | `journal` | the journal's files | queue; 100 ms, once, when idle | queue closed, by `raft` |
//! | `fill` | the segment being zero-filled | request | stop signal |
//! | `snapshot` | the directory of snapshots | request | queue closed; stop signal |
//!
//! # Failure
//!
//! A failed write or sync stops the group for good: nothing more is acknowledged, what waits is
//! told *unknown*, and `on_failure` is called. A full disk does not: see `journal_thread` and
//! [`snapshots`].
//!
//! Known limits: a participant installs a peer's snapshot on its `raft` thread, and is silent as
//! long as that takes, some 0.1 s for 1,000,000 messages. One that was removed while it was away
//! does not hear of it by Raft: it goes on asking for votes, which PreVote and CheckQuorum make
//! harmless, and its host asks the others. There are no lease reads: each is confirmed by a round
//! of heartbeats that all that wait share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::disk::fs::FileSystem;
use crate::disk::log::{LogError, LogOptions};
use crate::error::Shortage;
use crate::ids::{LogPosition, PeerId};
use crate::threads::StopSignal;
use crate::threads::queue::{Sender, bounded};

pub mod configuration;
pub mod core;
mod handle;
pub mod identity;
pub mod journal;
mod journal_thread;
mod logger;
pub mod node;
mod parts;
pub mod proposals;
mod raft_thread;
pub mod reads;
mod room;
mod running;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod several;
pub mod snapshots;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod window;

pub use self::configuration::{Configuration, ConfigurationChange, PeerAddress};
pub use self::core::copies::Obstacle;
pub use self::core::{Outgoing, Progress, Role};
pub use self::handle::{ENTRY_BYTES_MAX, GroupHandle, GroupStatus, ReadConfirmation, ReadOutcome};
pub use self::identity::Bootstrap;
pub use self::node::GroupView;
pub use self::parts::{Parts, inspect};
pub use self::proposals::{ProposalOutcome, Reason};
pub use self::snapshots::SnapshotSource;
pub use self::snapshots::files::{Piece, SnapshotCheck};
pub use self::snapshots::incoming::{IncomingChunk, TransferError};
pub use self::snapshots::sending::OutgoingSnapshot;

use self::core::CoreError;
use self::journal::JournalError;
use self::journal_thread::JournalThread;
use self::node::{Event, WRITES_IN_FLIGHT_MAX};
use self::raft_thread::RaftThread;
use self::running::Running;
use self::snapshots::SnapshotThread;

/// How long a stopping group waits for what it has appended.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The unit of Raft's time-outs.
pub const TICK_INTERVAL: Duration = Duration::from_millis(50);

/// What the log's entries change. Owned by the Raft thread.
pub trait StateMachine: Send {
    /// What applying an entry answers to whoever proposed it.
    type Output: Send + 'static;

    /// Applies the entry at `index`, which the Raft leader of `term` made. Called for each
    /// committed entry once, in the order of indices, which has gaps where Raft put entries of its
    /// own. At start it is called for what the journal holds behind the last snapshot, before any
    /// thread exists, the answer being dropped; everything that it changes must follow from the
    /// entries alone (A3).
    ///
    /// An error says why the data cannot be applied. It ends the group: passed over, the state
    /// would differ from that of others. Only data that [`StateMachine::check`] did not see comes
    /// to that, such as what a later version of the program left in the journal.
    fn apply(&mut self, index: u64, term: u64, data: &[u8]) -> Result<Self::Output, String>;

    /// Whether [`StateMachine::apply`] can take an entry's data, by the data alone; an error says
    /// why not. Asked of each entry that a peer sends, before it is stored: what most participants
    /// refuse is never committed.
    fn check(data: &[u8]) -> Result<(), String>
    where
        Self: Sized,
    {
        _ = data;
        Ok(())
    }

    /// Takes the pieces of a peer's snapshot, before it may replace anything, and says what is
    /// wrong with them: all that [`StateMachine::restore`] and [`StateMachine::restored`] would
    /// refuse. Runs on the `snapshot` thread.
    fn snapshot_check() -> SnapshotCheck
    where
        Self: Sized,
    {
        Box::new(|_| Ok(()))
    }

    /// Begins a snapshot of the state as it is, everything up to `index` being applied, and goes on
    /// applying. The source is read and dropped on another thread; until it is dropped no other
    /// snapshot begins. `None` if this state machine takes none.
    fn begin_snapshot(&mut self, index: u64) -> Option<Box<dyn SnapshotSource>> {
        _ = index;
        None
    }

    /// Forgets everything: a snapshot of a peer follows, chunk by chunk.
    fn reset(&mut self) {}

    /// From here on these take part.
    fn configuration(&mut self, configuration: &Configuration) {
        _ = configuration;
    }

    /// At start, before anything else, or after a reset: takes the next chunk of the last snapshot,
    /// or says what is wrong with it.
    fn restore(&mut self, chunk: &[u8]) -> Result<(), String> {
        _ = chunk;
        Err("this state machine takes no snapshots".to_owned())
    }

    /// All chunks were taken: the state is the one at `index`, or says what is wrong.
    fn restored(&mut self, index: u64) -> Result<(), String> {
        _ = index;
        Ok(())
    }

    /// This process begins or ceases to serve.
    fn leadership(&mut self, change: Leadership) {
        _ = change;
    }
}

/// The way to the peers. Called on the Raft thread, so it must not block: what it cannot take is
/// lost.
pub trait Transport: Send {
    /// Sends messages, those for one peer in order.
    fn send(&mut self, messages: Vec<Outgoing>);

    /// Sends a snapshot, chunk by chunk; then, or when it fails, [`GroupHandle::snapshot_sent`] is
    /// due.
    fn send_snapshot(&mut self, snapshot: OutgoingSnapshot);
}

/// The way to no peers: for a group of one that stays one.
pub struct NoPeers;

impl Transport for NoPeers {
    fn send(&mut self, _messages: Vec<Outgoing>) {}

    fn send_snapshot(&mut self, _snapshot: OutgoingSnapshot) {}
}

/// A change of what this process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// It serves in `term`: everything of earlier terms is applied. Called before the handle's
    /// status says so.
    Serving {
        /// The term.
        term: u64,
        /// The last entry before those of the term: all that was known when it began.
        behind: LogPosition,
    },
    /// It does not serve in `term` any more. Called after the handle's status says so.
    Ended {
        /// The term that was served.
        term: u64,
    },
}

/// Why a group cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// There is no group in the directory, and none was to be made.
    #[error("{dir} holds no leader's data: set it up with --bootstrap, or check the path")]
    NotBootstrapped {
        /// The group's directory.
        dir: String,
    },
    /// The id is there, the journal is not: the data was lost or moved.
    #[error(
        "{dir} has a {name} and no journal: its data is lost, and the id must not be used again",
        name = identity::FILE_NAME
    )]
    JournalMissing {
        /// The group's directory.
        dir: String,
    },
    /// The journal is there, the id is not.
    #[error("{dir} has a journal and no {name}", name = identity::FILE_NAME)]
    IdMissing {
        /// The group's directory.
        dir: String,
    },
    /// `peer.id` cannot be read or written.
    #[error(transparent)]
    IdFile(#[from] LogError),
    /// `peer.id` is intact and not understood.
    #[error("{file} is not understood: {content:?}")]
    IdContent {
        /// The file.
        file: String,
        /// What it holds.
        content: String,
    },
    /// The journal is damaged, or failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The last snapshot is damaged, or one could not be written.
    #[error("snapshot: {0}")]
    Snapshot(#[source] LogError),
    /// The system cannot give what a start needs.
    #[error("cannot write in {dir}: {shortage}")]
    Refused {
        /// The group's directory.
        dir: String,
        /// What is short.
        shortage: Shortage,
    },
    /// The directory is an older copy of what this leader had stored.
    #[error(
        "this leader's directory is an older copy: peer {peer} knows that it had stored entry \
         {known} of the log in term {term}, and its log ends at entry {last}. It must not take \
         part: remove it from the group (tolerex group remove ID), empty its directory, start it \
         with --join, and add it again (tolerex group add HOST:PORT)"
    )]
    OlderCopy {
        /// Who knows.
        peer: PeerId,
        /// The last entry that this leader is known to have stored and that is committed.
        known: u64,
        /// The latest term that it is known to have promised something in.
        term: u64,
        /// The last entry that it has.
        last: u64,
    },
    /// A committed entry is nothing that this program can apply.
    #[error(
        "entry {index} of the log cannot be applied: {reason}. Passed over, this leader would \
         differ from the others: start the version of the program that wrote it"
    )]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory or thread could not be made.
    #[error("cannot {action} {what}: {source}")]
    Io {
        /// A verb.
        action: &'static str,
        /// On what.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// The system gave no random id.
    #[error("no random numbers: {0}")]
    Random(String),
    /// What the journal holds is no state of Raft.
    #[error(transparent)]
    Core(#[from] CoreError),
}

/// Raft's time-outs.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader after which to stand for election, chosen at random from this range.
    pub election_ticks: std::ops::Range<usize>,
}

impl Default for Timing {
    /// A heartbeat each 50 ms, an election after 300 to 600 ms.
    fn default() -> Timing {
        Timing {
            heartbeat_ticks: 1,
            election_ticks: 6..12,
        }
    }
}

/// What a group needs to start.
pub struct GroupOptions {
    /// Where files are.
    pub fs: Arc<dyn FileSystem>,
    /// The group's directory; made when missing. The caller holds its lock.
    pub dir: PathBuf,
    /// Of the process.
    pub clock: Arc<dyn Clock>,
    /// Whether a group may be made.
    pub bootstrap: Bootstrap,
    /// Of the journal.
    pub log: LogOptions,
    /// A snapshot is taken when the journal behind the last one is longer than this, in bytes, and
    /// longer than that snapshot.
    pub snapshot_bytes: u64,
    /// Raft time-outs in ticks of [`TICK_INTERVAL`].
    pub timing: Timing,
    /// Whether it asks its peers at each start what they know of it, see [`core::copies`].
    pub asks_peers: bool,
    /// Whether it waits for members at a restart; see `core::floor`.
    pub asks_members: bool,
    /// Called at most once, on the Raft thread and after all that waited was told, when the group
    /// fails while running. The process should then stop: it cannot serve any more. It must not
    /// join the group's threads itself; setting a signal is enough.
    pub on_failure: Box<dyn FnOnce(GroupError) + Send>,
}

/// A running group. Its owner ends it with [`Group::stop`]; dropped otherwise, its threads go on.
pub struct Group<O> {
    peer: PeerId,
    handle: GroupHandle<O>,
    /// For the stop event, which must not be lost to a full inbox.
    inbox: Sender<Event<O>>,
    threads: Running,
}

impl<O: Send + 'static> Group<O> {
    /// Opens the directory, applies what is known to be committed, and starts the threads. On
    /// return the group is not serving yet; it is as soon as the first write of its term is
    /// durable.
    pub fn start<S>(
        options: GroupOptions,
        machine: S,
        connect: impl FnOnce(&GroupHandle<O>, PeerId) -> Box<dyn Transport>,
    ) -> Result<Group<O>, GroupError>
    where
        S: StateMachine<Output = O> + 'static,
    {
        let clock = options.clock.clone();
        let parts = Parts::open(&options, machine)?;
        // One more for what tells it that something was written.
        let (writes, queue) = bounded(WRITES_IN_FLIGHT_MAX + 1);
        let (peer, handle) = (parts.node.peer, parts.handle);
        let tasks = parts.task_queue.0.clone();
        let disk = Arc::new(Mutex::new(parts.journal));
        let raft = RaftThread {
            disk: disk.clone(),
            shared: parts.shared.clone(),
            transport: connect(&handle, peer),
            node: parts.node,
            inbox: parts.inbox,
            journal: writes,
            tasks: parts.task_queue.0,
            clock,
            tick_interval: TICK_INTERVAL,
        };
        let inbox = handle.inbox();
        let filler = disk.lock().filler();
        let journal = JournalThread {
            journal: disk,
            writes: queue,
            raft: inbox.clone(),
            shared: parts.shared,
        };
        let stop = StopSignal::default();
        let snapshot = SnapshotThread {
            desk: parts.desk,
            tasks: parts.task_queue.1,
            raft: inbox.clone(),
            stop: stop.clone(),
        };
        let threads = Running::start(
            raft,
            journal,
            snapshot,
            filler,
            (stop, tasks),
            options.on_failure,
        )?;
        Ok(Group {
            peer,
            handle,
            inbox,
            threads,
        })
    }

    /// This leader's id in the group.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// For everyone who proposes, reads or looks.
    pub fn handle(&self) -> GroupHandle<O> {
        self.handle.clone()
    }

    /// Takes no more proposals, finishes what is appended (5 s at most), syncs, and joins the
    /// threads.
    pub fn stop(self) {
        self.stop_within(STOP_TIMEOUT);
    }

    fn stop_within(self, timeout: Duration) {
        // An error means that the Raft thread has ended already.
        _ = self.inbox.send(Event::Stop(timeout));
        self.threads.join();
    }
}
