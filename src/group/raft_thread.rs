//! The `raft` thread: takes what its inbox has, steps the core, applies, and calls back.
//!
//! It owns the [`Core`], the state machine, and all that wait. It waits on its inbox only, and for
//! the next tick when there are peers: an idle group of one never wakes up. Each round drains the
//! inbox before it makes batches, so all proposals that wait become one write (group commit). It
//! never blocks on the journal: at most [`WRITES_IN_FLIGHT_MAX`] writes are out, which its queue
//! holds; meanwhile entries gather and become the next, larger write.
//!
//! # Order
//!
//! The index is published before a callback is told of it, and the state machine's
//! [`StateMachine::leadership`] runs before the term is seen as serving and after it is not.
//!
//! Between two rounds, when everything that was committed is applied, it begins a snapshot if one
//! is due ([`Schedule`]).
//!
//! # Failure
//!
//! A failed write ends the group: nothing more is applied or acknowledged, what waits is told
//! *unknown*, and the owner is told why.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::clock::{Clock, Instant};
use crate::disk::log::LogError;
use crate::group::core::{Batch, Core, CoreStatus, Persist};
use crate::group::handle::{Completion, PendingRead, Proposal, ReadOutcome, Shared};
use crate::group::journal::{Journal, JournalError, Written};
use crate::group::journal_thread::Task;
use crate::group::proposals::{Decided, ProposalOutcome, Proposals, Reason};
use crate::group::reads::Reads;
use crate::group::snapshots::{Request, Schedule};
use crate::group::window::{LogEntry, Position};
use crate::group::{GroupError, Leadership, StateMachine};

/// Events that wait for the Raft thread. When full, proposals and reads are refused as busy, the
/// journal waits. As many as batches may be parked: with half of it, all of them going on at once
/// would be refused although there is room for them.
pub(super) const INBOX_MAX: usize = 4096;

/// Writes handed to the journal and not durable. It merges what waits into one write, so few are
/// enough; with one, the journal would idle while this thread makes the next.
pub(super) const WRITES_IN_FLIGHT_MAX: usize = 8;

/// Entries of a write that the Raft thread of a group of one makes itself: that many come from one
/// client or two. With more, the next ones gather while the journal thread writes.
const OWN_ENTRIES_MAX: usize = 2;

/// What reaches the Raft thread.
pub(super) enum Event<O> {
    /// Propose an entry.
    Propose(Proposal<O>),
    /// Confirm leadership for a read.
    Read(PendingRead),
    /// Writes are durable.
    Persisted {
        /// Up to this one.
        number: u64,
        /// Bytes that the journal took, in all.
        journal_bytes: u64,
    },
    /// The snapshot that was begun is durable.
    SnapshotDurable {
        /// The last entry that is in it.
        position: Position,
        /// Its length.
        bytes: u64,
    },
    /// There was no space for the snapshot that was begun.
    SnapshotRefused,
    /// The snapshot that was begun could not be written.
    SnapshotFailed(LogError),
    /// The journal failed; it writes nothing more.
    JournalFailed(JournalError),
    /// Finish what is appended, within this time, and end.
    Stop(Duration),
}

impl<O> Event<O> {
    /// It was not delivered: the proposal in it is refused.
    pub(super) fn refuse(self, reason: Reason) {
        match self {
            Event::Propose(proposal) => {
                let outcome = ProposalOutcome::NotProposed(reason);
                proposal.completion.finish(outcome);
            }
            Event::Read(_)
            | Event::Persisted { .. }
            | Event::SnapshotDurable { .. }
            | Event::SnapshotRefused
            | Event::SnapshotFailed(_)
            | Event::JournalFailed(_)
            | Event::Stop(_) => {}
        }
    }

    /// It was not delivered, and the caller says so itself.
    pub(super) fn forget(self) {
        match self {
            Event::Read(read) => read.forget(),
            Event::Propose(_)
            | Event::Persisted { .. }
            | Event::SnapshotDurable { .. }
            | Event::SnapshotRefused
            | Event::SnapshotFailed(_)
            | Event::JournalFailed(_)
            | Event::Stop(_) => {}
        }
    }
}

/// The state of the thread.
pub(super) struct RaftThread<S: StateMachine> {
    pub(super) core: Core,
    pub(super) machine: S,
    pub(super) inbox: Receiver<Event<S::Output>>,
    pub(super) journal: Sender<Task>,
    /// The journal itself, for small writes in a group of one; see `journal_thread`.
    pub(super) disk: Arc<Mutex<Journal>>,
    /// Such a write failed.
    pub(super) failed: Option<JournalError>,
    /// To the `snapshot` thread; holds one, and there is never another.
    pub(super) snapshots: Sender<Request>,
    pub(super) schedule: Schedule,
    /// The last entry that is applied.
    pub(super) applied: Position,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Arc<dyn Clock>,
    /// The time between two ticks; none in a group of one, where nothing times out.
    pub(super) tick_interval: Option<Duration>,
    pub(super) proposals: Proposals<Completion<S::Output>>,
    pub(super) reads: Reads<PendingRead>,
    /// The term that the state machine was told is serving.
    pub(super) serving: Option<u64>,
    /// Set by `Stop`: when to end even though something is not decided.
    pub(super) stop_at: Option<Instant>,
}

impl<S: StateMachine> RaftThread<S> {
    /// The body of the thread. `on_failure` is called last, if the group failed.
    pub(super) fn run(mut self, on_failure: impl FnOnce(GroupError)) {
        let result = self.work();
        self.shared.publish_stopped();
        if let Some(term) = self.serving.take() {
            self.machine.leadership(Leadership::Ended { term });
        }
        let inbox = self.inbox.clone();
        // What waits is told by being dropped: unknown if appended, else not proposed.
        drop(self);
        // The channel keeps what is in it until its last sender is gone, which may be never.
        for event in inbox.try_iter() {
            event.refuse(Reason::Stopped);
        }
        drop(inbox);
        if let Err(error) = result {
            on_failure(error);
        }
    }

    fn work(&mut self) -> Result<(), GroupError> {
        let mut next_tick = self
            .tick_interval
            .map(|interval| self.clock.now() + interval);
        loop {
            self.advance();
            if let Some(error) = self.failed.take() {
                return Err(GroupError::Journal(error));
            }
            if self.is_finished() {
                return Ok(());
            }
            self.begin_snapshot();
            if let Some(event) = self.wait(next_tick) {
                self.take(event)?;
            }
            // All that waits joins the next write; no more than the inbox holds, so that a steady
            // stream cannot keep the thread from writing.
            for _ in 0..INBOX_MAX {
                match self.inbox.try_recv() {
                    Ok(event) => self.take(event)?,
                    Err(_) => break,
                }
            }
            if let (Some(at), Some(interval)) = (next_tick, self.tick_interval) {
                let now = self.clock.now();
                if now >= at {
                    self.tick();
                    next_tick = Some(now + interval);
                }
            }
        }
    }

    /// Blocks for the next event, or until there is something else to do.
    fn wait(&self, next_tick: Option<Instant>) -> Option<Event<S::Output>> {
        let until = [next_tick, self.stop_at].into_iter().flatten().min();
        let Some(until) = until else {
            // Without a sender nothing can arrive any more, which is as good as being told to stop.
            return Some(self.inbox.recv().unwrap_or(Event::Stop(Duration::ZERO)));
        };
        match self.inbox.recv_timeout(until.since(self.clock.now())) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::Stop(Duration::ZERO)),
        }
    }

    fn take(&mut self, event: Event<S::Output>) -> Result<(), GroupError> {
        match event {
            Event::Propose(proposal) => self.propose(proposal),
            Event::Read(read) => self.read(read),
            Event::Persisted {
                number,
                journal_bytes,
            } => {
                self.schedule.journal_grew(journal_bytes);
                self.core.persisted(number);
            }
            Event::SnapshotDurable { position, bytes } => {
                self.schedule.finished(bytes);
                self.shared.cut.store(position.index, Ordering::Release);
            }
            Event::SnapshotRefused => self.schedule.refused(),
            Event::SnapshotFailed(error) => return Err(GroupError::Snapshot(error)),
            Event::JournalFailed(error) => return Err(GroupError::Journal(error)),
            Event::Stop(timeout) => {
                let stop_at = self.clock.now() + timeout;
                self.stop_at.get_or_insert(stop_at);
            }
        }
        Ok(())
    }

    fn propose(&mut self, proposal: Proposal<S::Output>) {
        let Proposal {
            term,
            data,
            completion,
        } = proposal;
        let appended = if self.stop_at.is_some() {
            Err(Reason::Stopped)
        } else if self.proposals.is_full() {
            Err(Reason::Busy)
        } else {
            self.core.propose(term, data)
        };
        match appended {
            Ok(index) => self.proposals.insert(index, term, completion.proposed()),
            Err(reason) => completion.finish(ProposalOutcome::NotProposed(reason)),
        }
    }

    fn read(&mut self, read: PendingRead) {
        // Asked elsewhere than on a leader, the crate would forward the request.
        if self.serving.is_none() {
            return read.finish(ReadOutcome::NotServing);
        }
        if let Err(read) = self.reads.insert(read) {
            read.finish(ReadOutcome::Busy);
        }
    }

    fn tick(&mut self) {
        self.core.tick();
        if let Some(context) = self.reads.tick() {
            self.core.read_index(context);
        }
    }

    /// Does all that the core has to do, except for writes beyond those that may be in flight.
    fn advance(&mut self) {
        if let Some(context) = self.reads.issue() {
            self.core.read_index(context);
        }
        while self.core.writes_in_flight() < WRITES_IN_FLIGHT_MAX {
            let Some(batch) = self.core.ready() else {
                break;
            };
            self.perform(batch);
        }
        self.publish();
    }

    fn perform(&mut self, batch: Batch) {
        if let Some(write) = batch.persist {
            self.persist(write);
        }
        assert!(
            batch.messages.is_empty(),
            "a group of one has nobody to write to"
        );
        for (context, index) in batch.reads {
            self.reads.confirm(context, index);
        }
        for entry in batch.committed {
            self.apply(&entry);
        }
    }

    /// Hands a write to the journal thread, or writes it if that is quicker and nobody waits
    /// meanwhile: peers for heartbeats, or many proposals for the next write.
    fn persist(&mut self, write: Persist) {
        let is_small = write.entries.len() <= OWN_ENTRIES_MAX && self.core.writes_in_flight() == 1;
        let disk = Arc::clone(&self.disk);
        let free = disk
            .try_lock()
            .filter(|_| is_small && self.tick_interval.is_none());
        let written = free.map(|mut journal| {
            let written = journal.write(std::slice::from_ref(&write));
            (written, journal.bytes())
        });
        match written {
            Some((Ok(Written::Durable), journal_bytes)) => {
                self.schedule.journal_grew(journal_bytes);
                self.core.persisted(write.number);
                if self.shared.journal_sleeps.swap(false, Ordering::AcqRel) {
                    _ = self.journal.try_send(Task::Written);
                }
            }
            Some((Err(error), _)) => self.failed = Some(error),
            // It waits for space there.
            Some((Ok(Written::Full), _)) | None => {
                // The journal's queue holds as many as may be in flight; it is gone only after it
                // failed, which its last event says.
                _ = self.journal.try_send(Task::Write(write));
            }
        }
    }

    fn apply(&mut self, entry: &LogEntry) {
        let LogEntry { index, term, .. } = *entry;
        // The empty entry that begins a term is Raft's own.
        let mut output =
            (!entry.data.is_empty()).then(|| self.machine.apply(index, term, &entry.data));
        self.core.applied(index);
        self.applied = Position { index, term };
        self.shared.publish_applied(index);
        while let Some(decided) = self.proposals.decide(index, term) {
            match decided {
                Decided::Applied(completion) => {
                    let output = output.take().expect("a proposal is never empty");
                    completion.finish(ProposalOutcome::Applied(output));
                }
                Decided::Lost(completion) => completion.finish(ProposalOutcome::Lost),
            }
        }
        for read in self.reads.release(index) {
            read.finish(ReadOutcome::Confirmed { index });
        }
    }

    /// Begins a snapshot of what is applied, if one is due.
    fn begin_snapshot(&mut self) {
        if !self.schedule.is_due() {
            return;
        }
        if let Some(source) = self.machine.begin_snapshot(self.applied.index) {
            self.schedule.begun();
            let position = self.applied;
            // There is room for it, unless the thread has failed, which its last event says.
            _ = self.snapshots.try_send(Request { position, source });
        }
    }

    /// Publishes what changed, and tells the state machine of terms that begin and end.
    fn publish(&mut self) {
        let status = self.core.status();
        let serving = status.serving.then_some(status.term);
        if self.serving != serving {
            if let Some(term) = self.serving.take() {
                let ended = CoreStatus {
                    serving: false,
                    ..status
                };
                self.shared.publish(&ended);
                for read in self.reads.drain() {
                    read.finish(ReadOutcome::NotServing);
                }
                self.machine.leadership(Leadership::Ended { term });
            }
            if let Some(term) = serving {
                self.machine.leadership(Leadership::Serving { term });
            }
            self.serving = serving;
        }
        self.shared.publish(&status);
    }

    fn is_finished(&self) -> bool {
        self.stop_at.is_some_and(|stop_at| {
            (self.proposals.is_empty() && self.core.writes_in_flight() == 0)
                || self.clock.now() >= stop_at
        })
    }
}
