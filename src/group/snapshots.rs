//! Snapshots of the state machine on disk: when one is taken, its file, and the `snapshot` thread.
//!
//! A snapshot is the state at one index, so the journal up to there is not needed any more. The
//! Raft thread begins one between two entries when [`Schedule`] says so, which costs it little; the
//! `snapshot` thread draws chunks from the [`SnapshotSource`] and writes them, while entries go on
//! being applied. When the file is durable, under its final name, the thread removes older ones and
//! tells the Raft thread, which has the journal cut. So at any moment the newest complete snapshot
//! and the journal make the exact state; a start reads them in this order and replays from the next
//! index (R14).
//!
//! The thread owns the directory `snapshots`, see [`files`]. It waits on its queue and ends when
//! that is closed, or at the stop signal between two chunks.
//!
//! # Failure
//!
//! No space, descriptor or memory is no failure: the snapshot is given up and tried again when the
//! journal has grown by a quarter of what asks for one, or, for a peer that needs it,
//! [`RETRY_AFTER`] later; the journal's reserve is left alone. Any other error ends the group, like
//! one of the journal: a disk that fails is not trusted. Damage is refused at start, naming file
//! and offset: with the journal behind it cut, nobody alone knows what stood there.
//!
//! A peer that lacks entries which this one holds no more gets the file ([`sending`]); the same
//! thread takes the chunks that peers send ([`incoming`]).
//!
//! Known limits: the one before is not used when the newest is damaged, since the journal between
//! them is gone. While this leader writes a snapshot of its own, chunks of a peer wait.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Instant};
use crate::disk::log::LogError;
use crate::group::configuration::Configuration;
use crate::group::node::Event;
use crate::group::window::Position;
use crate::logging;
use crate::threads::StopSignal;
use crate::threads::queue::{Receiver, Sender};

pub mod files;
pub mod incoming;
pub mod sending;
#[cfg(test)]
mod tests;

pub use self::files::CHUNK_BYTES_MAX;

use self::files::{SnapshotCheck, SnapshotFiles, Written};
use self::incoming::{Incoming, IncomingChunk, TransferError};

/// The place of snapshots in the group's directory.
pub(super) const SNAPSHOT_DIR: &str = "snapshots";

/// What a snapshot is drawn from, on the `snapshot` thread. Dropped when it is exhausted or the
/// snapshot is given up.
pub trait SnapshotSource: Send {
    /// The next chunk, of 1 to [`CHUNK_BYTES_MAX`] bytes; `None` when the snapshot is complete.
    fn next_chunk(&mut self) -> Option<Vec<u8>>;
}

/// How long after one that found no space the next one is tried for a peer. Each may write all of
/// the state before it fails, so not at once; a peer that waits has no vote, so not much later.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Decides when a snapshot is due: from bytes, and from time where one found no space. Owned by
/// the Raft thread.
#[derive(Debug)]
pub(super) struct Schedule {
    /// The journal's bytes behind a snapshot that make the next one due, at least.
    bytes_min: u64,
    /// The bytes of the last durable snapshot: reading it back costs that much, so a journal of as
    /// many is no burden, and snapshots of a large state are rare.
    last_bytes: u64,
    /// Bytes that the journal ever took, as last told.
    journal_bytes: u64,
    /// What `journal_bytes` was when the last durable snapshot began.
    covered: u64,
    /// What it was when the snapshot began that is being written.
    running: Option<u64>,
    /// No snapshot before `journal_bytes` is this: there was no space for one.
    not_before: u64,
    /// When one that a peer needs is tried again all the same: the journal of a group at rest does
    /// not grow.
    retry_at: Option<Instant>,
    /// A peer needs one.
    is_wanted: bool,
}

impl Schedule {
    /// At start: the journal has `journal_bytes` behind a snapshot of `last_bytes`.
    pub(super) fn new(bytes_min: u64, last_bytes: u64, journal_bytes: u64) -> Schedule {
        Schedule {
            bytes_min,
            last_bytes,
            journal_bytes,
            covered: 0,
            running: None,
            not_before: 0,
            retry_at: None,
            is_wanted: false,
        }
    }

    /// The journal took so many bytes in all.
    pub(super) fn journal_grew(&mut self, journal_bytes: u64) {
        self.journal_bytes = journal_bytes;
    }

    /// Whether it is time for a snapshot.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let is_long = self.journal_bytes - self.covered > self.interval();
        let may_try = self.journal_bytes >= self.not_before;
        let may_retry = self.is_wanted && self.retry_at.is_some_and(|at| now >= at);
        self.running.is_none() && (is_long || self.is_wanted) && (may_try || may_retry)
    }

    /// Whether one is being written.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// A peer needs a new one.
    pub(super) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// One of a peer was installed: it is the last one now.
    pub(super) fn installed(&mut self, bytes: u64) {
        self.last_bytes = bytes;
        self.covered = self.journal_bytes;
    }

    fn interval(&self) -> u64 {
        self.bytes_min.max(self.last_bytes)
    }

    /// One begins.
    pub(super) fn begun(&mut self) {
        self.running = Some(self.journal_bytes);
        self.is_wanted = false;
    }

    /// The one that was begun is durable, with so many bytes.
    pub(super) fn finished(&mut self, bytes: u64) {
        self.last_bytes = bytes;
        self.covered = self.running.take().unwrap_or(self.covered);
    }

    /// There was no space for the one that was begun.
    pub(super) fn refused(&mut self, now: Instant) {
        self.running = None;
        self.not_before = self.journal_bytes + self.interval() / 4;
        self.retry_at = Some(now + RETRY_AFTER);
    }
}

/// A snapshot to be written.
pub struct Request {
    /// The last entry that is in it.
    pub position: Position,
    /// Who takes part, there.
    pub configuration: Configuration,
    /// The content.
    pub source: Box<dyn SnapshotSource>,
}

/// What becomes of a chunk, told on the `snapshot` thread.
pub type ChunkDone = Box<dyn FnOnce(Result<(), TransferError>) + Send>;

/// What the `snapshot` thread does.
pub enum Task {
    /// Writes one of the own state.
    Write(Request),
    /// Takes a chunk of a peer's.
    Receive(IncomingChunk, ChunkDone),
    /// Nothing, behind the stop signal.
    End,
}

/// Tasks that wait; a sender of chunks has one under way.
pub(super) const TASKS_MAX: usize = 16;

/// Does the tasks, one after the other.
pub struct SnapshotDesk {
    files: SnapshotFiles,
    clock: Arc<dyn Clock>,
    incoming: Incoming,
    /// Looks at the content of a peer's.
    check: fn() -> SnapshotCheck,
}

impl SnapshotDesk {
    pub(super) fn new(
        files: SnapshotFiles,
        clock: Arc<dyn Clock>,
        check: fn() -> SnapshotCheck,
    ) -> SnapshotDesk {
        SnapshotDesk {
            files,
            clock,
            incoming: Incoming::default(),
            check,
        }
    }

    /// Does a task; what the node is to be told of it, if anything. A write ends early at the stop
    /// signal.
    pub fn perform<O>(&mut self, task: Task, stop: &StopSignal) -> Option<Event<O>> {
        match task {
            Task::Write(request) => self.write(request, stop),
            Task::End => None,
            Task::Receive(chunk, done) => match self.incoming.take(&self.files, &chunk, self.check)
            {
                Ok(received) => {
                    done(Ok(()));
                    let link = chunk.from;
                    received.map(|received| Event::SnapshotReceived { link, received })
                }
                Err(error) => {
                    let is_wrong = matches!(error, TransferError::File(LogError::Damaged { .. }));
                    if let Some(more) = logging::seldom("snapshot of a peer") {
                        let level = if is_wrong {
                            log::Level::Error
                        } else {
                            log::Level::Warn
                        };
                        log::log!(level, "snapshot of peer {}: {error}{more}", chunk.from);
                    }
                    done(Err(error));
                    None
                }
            },
        }
    }

    fn write<O>(&self, request: Request, stop: &StopSignal) -> Option<Event<O>> {
        let Request {
            position,
            configuration,
            source,
        } = request;
        let begun_at = self.clock.now();
        let written = self.files.write(position, &configuration, source, stop);
        Some(match written {
            Ok(Written::Durable { bytes }) => {
                let took = self.clock.now().since(begun_at);
                let index = position.index;
                log::info!("snapshot: {bytes} bytes at index {index} in {took:?}");
                self.files.remove_older(index);
                Event::SnapshotDurable {
                    position,
                    configuration,
                    bytes,
                }
            }
            Ok(Written::Refused(shortage)) => {
                if let Some(more) = logging::seldom("snapshot refused") {
                    log::error!("snapshot: none now, it is tried again: {shortage}{more}");
                }
                Event::SnapshotRefused
            }
            Ok(Written::Stopped) => return None,
            Err(error) => Event::SnapshotFailed(error),
        })
    }
}

/// The state of the thread.
pub(super) struct SnapshotThread<O> {
    pub(super) desk: SnapshotDesk,
    pub(super) tasks: Receiver<Task>,
    pub(super) raft: Sender<Event<O>>,
    pub(super) stop: StopSignal,
}

impl<O: Send + 'static> SnapshotThread<O> {
    /// The body of the thread, up to [`Task::End`]: handles keep the queue open.
    pub(super) fn run(mut self) {
        while let Ok(task) = self.tasks.recv() {
            if self.stop.is_stopped() {
                return;
            }
            let event = self.desk.perform(task, &self.stop);
            // When the Raft thread is gone, the next start finds what is there.
            if event.is_some_and(|event| self.raft.send(event).is_err()) {
                return;
            }
        }
    }
}
