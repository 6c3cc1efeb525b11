//! One participant with all that waits for it: takes events, applies, calls back, and says what
//! others are to do.
//!
//! A value without threads: the `raft` thread feeds it from an inbox and carries out its
//! [`Effects`]; a simulation does the same by hand. It calls back while it is stepped, and reads
//! the file of a snapshot that it installs; otherwise it does no I/O.
//!
//! # Order
//!
//! The index is published before a callback is told of it, and the state machine's
//! [`StateMachine::leadership`] runs before the term is seen as serving and after it is not.
//! Writes are handed out until [`WRITES_IN_FLIGHT_MAX`] are not durable; meanwhile entries gather
//! and become the next, larger write. A snapshot begins between two entries, when everything that
//! was committed is applied.
//!
//! A thread that waits for several entries which are applied together is woken once, after the last
//! of them (`threads::wakeups`).
//!
//! # Failure
//!
//! An error ends the group: nothing more is applied or acknowledged, and what waits is told
//! *unknown* when the node is dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock::Instant;
use crate::disk::fs::File;
use crate::group::configuration::{Configuration, ConfigurationChange};
use crate::group::core::copies::Obstacle;
use crate::group::core::{Batch, Core, CoreStatus, Outgoing, Persist, Progress};
use crate::group::handle::{ChangeRequest, Completion, PendingRead, Proposal, ReadOutcome, Shared};
use crate::group::proposals::{Decided, ProposalOutcome, Proposals, Reason};
use crate::group::reads::Reads;
use crate::group::snapshots::files::{Piece, SnapshotFiles};
use crate::group::snapshots::sending::OutgoingSnapshot;
use crate::group::snapshots::{Request, Schedule};
use crate::group::window::{EntryKind, LogEntry, Position};
use crate::group::{GroupError, Leadership, Role, StateMachine};
use crate::ids::PeerId;
use crate::threads::wakeups;

mod events;
mod stopping;
mod writes;

pub use self::events::Event;
use self::events::log_dropped;
use self::stopping::Stop;
pub(super) use self::writes::Writes;

/// Writes handed to the journal and not durable. It merges what waits into one write, so few are
/// enough; with one, the journal would idle while this makes the next.
pub const WRITES_IN_FLIGHT_MAX: usize = 8;

/// Bytes of entries that are applied while the wake-ups of those who wait for them are held. They
/// take some 100 us; with much more the first to be told would wait for the last.
const HELD_BYTES_MAX: usize = 16 << 10;

/// How a group stands, as one participant sees it.
#[derive(Clone, Debug)]
pub struct GroupView {
    /// Who takes part.
    pub configuration: Configuration,
    /// How far each is, if this participant leads.
    pub progress: Vec<Progress>,
    /// Its own state.
    pub status: CoreStatus,
}

/// What others are to do for a node.
#[derive(Default)]
pub struct Effects {
    /// For the journal, in order.
    pub writes: Vec<Persist>,
    /// For the peers. They leave without waiting for the writes, and may be lost.
    pub messages: Vec<Outgoing>,
    /// Files for peers. Each ends with [`Event::SnapshotSent`].
    pub transfers: Vec<OutgoingSnapshot>,
    /// To be written; ends with one of the three events of a snapshot.
    pub snapshot: Option<Request>,
}

/// A participant in the group.
pub struct Node<S: StateMachine> {
    pub(super) core: Core,
    pub(super) peer: PeerId,
    pub(super) machine: S,
    pub(super) files: SnapshotFiles,
    pub(super) schedule: Schedule,
    /// The last entry that is applied.
    pub(super) applied: Position,
    /// A snapshot is installed, and the journal does not know yet.
    pub(super) installing: Option<u64>,
    /// The last snapshot that came from a peer, until it is installed: its file is open.
    pub(super) received: Option<(Position, Arc<dyn File>)>,
    pub(super) shared: Arc<Shared>,
    pub(super) proposals: Proposals<Waiter<S::Output>>,
    pub(super) reads: Reads<PendingRead>,
    /// The term that the state machine was told is serving.
    pub(super) serving: Option<u64>,
    /// The obstacle that was published.
    pub(super) obstacle: Option<Obstacle>,
    /// The writes that are not durable.
    pub(super) writes: Writes,
    pub(super) stop: Option<Stop>,
}

/// Who waits for an entry.
pub(super) enum Waiter<O> {
    Command(Completion<O>),
    Change(Completion<()>),
}

impl<S: StateMachine> Node<S> {
    /// Takes an event at `now`. An error ends the group.
    pub fn take(&mut self, event: Event<S::Output>, now: Instant) -> Result<(), GroupError> {
        match event {
            Event::Propose(proposal) => self.propose(proposal),
            Event::Read(read) => self.read(read),
            Event::Change(request) => self.change(request),
            Event::LeaveTerms(above) => self.core.leave_terms(above),
            Event::MembersTold {
                committed,
                is_enough,
            } => self.core.members_told(committed, is_enough),
            Event::Transfer(peer) => self.core.transfer(peer),
            Event::Inspect(done) => done(GroupView {
                configuration: self.core.configuration().clone(),
                progress: self.core.progress(),
                status: self.core.status(),
            }),
            Event::Message { link, message, .. } => log_dropped(self.core.step(link, &message)),
            Event::Unreachable(peer) => self.core.unreachable(peer),
            // One of its own is being drawn from the state that would go. The next attempt of the
            // peer comes when that is done.
            Event::SnapshotReceived { .. } if self.schedule.is_running() => {}
            Event::SnapshotReceived { link, received } => {
                self.received = Some((received.position, received.file));
                log_dropped(self.core.step_snapshot(link, &received.message));
            }
            Event::SnapshotSent { to, arrived } => self.core.snapshot_sent(to, arrived),
            Event::Persisted {
                number,
                journal_bytes,
            } => self.persisted(number, journal_bytes, now),
            Event::SnapshotDurable {
                position,
                configuration,
                bytes,
            } => {
                self.schedule.finished(bytes);
                self.core.offer_snapshot(position, configuration);
                self.shared.cut.store(position.index, Ordering::Release);
            }
            Event::SnapshotRefused => self.schedule.refused(now),
            Event::SnapshotFailed(error) => return Err(GroupError::Snapshot(error)),
            Event::JournalFailed(error) => return Err(GroupError::Journal(error)),
            Event::Stop(timeout) => self.begin_stop(timeout, now),
        }
        self.core.objection()
    }

    /// Whether time matters to it: not to a group of one that has its leader, where nothing times
    /// out. To one that waits to be added it does: it keeps its vote for the leader that it heard
    /// just now. So it does to one that was left alone and does not lead yet.
    pub fn needs_ticks(&self) -> bool {
        let peers = self.core.configuration().peers();
        let is_only = peers.len() == 1 && peers.contains(&self.peer);
        !is_only || self.core.status().role != Role::Leader
    }

    /// Whether the last write that was handed out is the only one in flight, and no peer waits.
    pub(super) fn writes_alone(&self) -> bool {
        self.core.writes_in_flight() == 1 && !self.needs_ticks()
    }

    /// A tick of time has passed.
    pub fn tick(&mut self, now: Instant) {
        self.core.tick();
        if let Some(context) = self.reads.tick() {
            self.core.read_index_of_all(context);
        }
        let leads = self.core.status().role == Role::Leader;
        if let Some(index) = self.writes.tick(leads, now)
            && !self.core.is_transferring()
        {
            self.core.transfer_to_quicker(index);
        }
        if let (Some(change), Some(term)) = (self.core.next_change(), self.serving) {
            match self.core.change(term, &change) {
                Ok(_) => log::info!("group: {change:?} is proposed"),
                Err(reason) => log::debug!("group: {change:?} is not proposed: {reason}"),
            }
        }
    }

    /// Does all that there is to do at `now`, except for writes beyond those that may be in flight.
    pub fn advance(&mut self, now: Instant) -> Result<Effects, GroupError> {
        let mut effects = Effects::default();
        if let Some(context) = self.reads.issue() {
            self.core.read_index(context);
        }
        effects.messages = self.core.prompt();
        while self.core.writes_in_flight() < WRITES_IN_FLIGHT_MAX {
            let Some(batch) = self.core.ready() else {
                break;
            };
            self.perform(batch, &mut effects, now)?;
        }
        self.core.screen(&mut effects.messages);
        self.publish();
        if self.core.takes_snapshot() {
            self.schedule.want();
        }
        if self.installing.is_none() && self.schedule.is_due(now) {
            self.begin_snapshot(&mut effects);
        }
        Ok(effects)
    }

    /// Ends it: nothing is served from here on. What waits is told by being dropped: unknown if it
    /// was appended, else not proposed.
    pub fn end(mut self) {
        self.shared.publish_stopped();
        if let Some(term) = self.serving.take() {
            self.machine.leadership(Leadership::Ended { term });
        }
    }

    /// The state machine.
    pub fn machine(&self) -> &S {
        &self.machine
    }

    fn propose(&mut self, proposal: Proposal<S::Output>) {
        let Proposal {
            term,
            data,
            completion,
        } = proposal;
        let appended = self
            .check_room()
            .and_then(|()| self.core.propose(term, data));
        match appended {
            Ok(index) => {
                let waiter = Waiter::Command(completion.proposed());
                self.proposals.insert(index, term, waiter);
            }
            Err(reason) => completion.finish(ProposalOutcome::NotProposed(reason)),
        }
    }

    fn change(&mut self, request: ChangeRequest) {
        let ChangeRequest {
            term,
            change,
            completion,
        } = request;
        if change == ConfigurationChange::Remove(self.peer) {
            // Whoever leads next can do it without an interruption.
            self.core.transfer(None);
            return completion.finish(ProposalOutcome::NotProposed(Reason::NotLeader));
        }
        let appended = self
            .check_room()
            .and_then(|()| self.core.change(term, &change));
        match appended {
            Ok(index) => {
                let waiter = Waiter::Change(completion.proposed());
                self.proposals.insert(index, term, waiter);
            }
            Err(reason) => completion.finish(ProposalOutcome::NotProposed(reason)),
        }
    }

    fn check_room(&self) -> Result<(), Reason> {
        if self.stop.is_some() {
            Err(Reason::Stopped)
        } else if self.proposals.is_full() {
            Err(Reason::Busy)
        } else {
            Ok(())
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

    fn persisted(&mut self, number: u64, journal_bytes: u64, now: Instant) {
        self.schedule.journal_grew(journal_bytes);
        self.writes.end(number, now);
        self.core.persisted(number);
        if self.installing.take_if(|write| *write <= number).is_some() {
            // From here on the journal begins behind it.
            self.shared.cut.store(self.applied.index, Ordering::Release);
        }
    }

    fn perform(
        &mut self,
        batch: Batch,
        effects: &mut Effects,
        now: Instant,
    ) -> Result<(), GroupError> {
        if let Some(position) = batch.install {
            self.install(position)?;
            self.installing = batch.persist.as_ref().map(|write| write.number);
        }
        if let Some(write) = batch.persist {
            self.writes.begin(&write, now);
            effects.writes.push(write);
        }
        for message in batch.messages {
            self.send(message, effects);
        }
        let mut held = Some(wakeups::hold());
        for (context, index) in batch.reads {
            self.reads.confirm(context, index);
            self.release_reads();
        }
        let mut bytes = 0;
        for entry in batch.committed {
            bytes += entry.data.len();
            self.apply(&entry)?;
            if bytes > HELD_BYTES_MAX {
                bytes = 0;
                // First let go, then hold again.
                drop(held.take());
                held = Some(wakeups::hold());
            }
        }
        Ok(())
    }

    fn send(&mut self, message: Outgoing, effects: &mut Effects) {
        let Some(position) = message.snapshot else {
            effects.messages.push(message);
            return;
        };
        let opened = OutgoingSnapshot::open(
            &self.files,
            position.index,
            message.to,
            message.bytes.into(),
        );
        match opened {
            Ok(transfer) => effects.transfers.push(transfer),
            Err(error) => {
                log::warn!("snapshot {position:?} for peer {}: {error}", message.to);
                self.core.snapshot_sent(message.to, false);
            }
        }
    }

    fn apply(&mut self, entry: &LogEntry) -> Result<(), GroupError> {
        let LogEntry { index, term, .. } = *entry;
        let mut output = None;
        match entry.kind {
            // The empty entry that begins a term is Raft's own.
            EntryKind::Command if entry.data.is_empty() => {}
            EntryKind::Command => match self.machine.apply(index, term, &entry.data) {
                Ok(applied) => output = Some(applied),
                Err(reason) => return Err(GroupError::Entry { index, reason }),
            },
            EntryKind::Configuration => match self.core.apply_change(entry) {
                Ok(()) => self.publish_configuration(),
                Err(error) => log::error!("entry {index} changes nothing: {error}"),
            },
        }
        self.core.applied(index);
        self.applied = Position { index, term };
        self.shared.publish_applied(index);
        while let Some(decided) = self.proposals.decide(index, term) {
            match decided {
                Decided::Applied(Waiter::Command(completion)) => {
                    let output = output.take().expect("a proposal is never empty");
                    completion.finish(ProposalOutcome::Applied(output));
                }
                Decided::Applied(Waiter::Change(completion)) => {
                    completion.finish(ProposalOutcome::Applied(()));
                }
                Decided::Lost(Waiter::Command(completion)) => {
                    completion.finish(ProposalOutcome::Lost);
                }
                Decided::Lost(Waiter::Change(completion)) => {
                    completion.finish(ProposalOutcome::Lost);
                }
            }
        }
        self.release_reads();
        Ok(())
    }

    fn release_reads(&mut self) {
        let index = self.applied.index;
        for read in self.reads.release(index) {
            read.finish(ReadOutcome::Confirmed { index });
        }
    }

    /// Replaces the state by the snapshot of a peer.
    fn install(&mut self, position: Position) -> Result<(), GroupError> {
        let received = self.received.take().filter(|(of, _)| *of == position);
        let machine = &mut self.machine;
        machine.reset();
        let found = self
            .files
            .restore_received(
                position.index,
                received.map(|(_, file)| file),
                &mut |piece| match piece {
                    Piece::Chunk(chunk) => machine.restore(chunk),
                    Piece::End { index } => machine.restored(index),
                },
            )
            .map_err(GroupError::Snapshot)?;
        log::info!(
            "group: a peer's snapshot at index {} is installed",
            position.index
        );
        self.schedule.installed(found.bytes);
        self.core.describe(found.configuration);
        self.applied = position;
        self.shared.publish_applied(position.index);
        self.publish_configuration();
        // What was proposed here and is not decided may be in the snapshot.
        self.proposals = Proposals::default();
        Ok(())
    }

    fn publish_configuration(&mut self) {
        let configuration = self.core.configuration();
        log::info!("group: {configuration:?}");
        self.shared.publish_configuration(configuration, self.peer);
        self.machine.configuration(configuration);
    }

    /// Begins a snapshot of what is applied.
    fn begin_snapshot(&mut self, effects: &mut Effects) {
        if let Some(source) = self.machine.begin_snapshot(self.applied.index) {
            self.schedule.begun();
            effects.snapshot = Some(Request {
                position: self.applied,
                configuration: self.core.configuration().clone(),
                source,
            });
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
                self.machine.leadership(status.serving_in(term));
            }
            self.serving = serving;
        }
        let obstacle = self.core.obstacle();
        if self.obstacle != obstacle {
            if let (None, Some(obstacle @ Obstacle::Lacks { .. })) = (self.obstacle, obstacle) {
                log::error!("{obstacle}");
            }
            self.obstacle = obstacle;
            self.shared.publish_obstacle(obstacle);
        }
        self.shared.publish(&status);
    }
}
