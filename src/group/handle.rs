//! What the rest of a leader holds of its group: propose, look at the state, confirm a read.
//!
//! A [`GroupHandle`] is shared by all threads and never blocks, except where a call says so. The
//! state is published by the Raft thread in atomics, so that looking costs no hand-over. Term, role
//! and serving flag stand in one word and always belong together.
//!
//! Invariant: every callback given to [`GroupHandle::propose`] is called exactly once, whatever
//! ends, a thread that panics included: what carries it calls it when dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::TrySendError;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::faults::{self, Fault};
use crate::group::configuration::{Configuration, ConfigurationChange};
use crate::group::core::copies::Obstacle;
use crate::group::core::{CoreStatus, Role};
use crate::group::node::{Event, GroupView};
use crate::group::proposals::{ProposalOutcome, Reason};
use crate::group::room::Room;
use crate::group::snapshots::incoming::{IncomingChunk, TransferError};
use crate::group::snapshots::{ChunkDone, Task};
use crate::ids::{LogPosition, PeerId};
use crate::logging;
use crate::threads::queue::Sender;

mod requests;

pub(super) use self::requests::Completion;
pub use self::requests::{ChangeRequest, PendingRead, Proposal};

/// Bytes of an entry at most. A batch of 4,096 requests with the longest keys needs 2.3 MiB; the
/// journal's record and a frame between peers hold twice this.
pub const ENTRY_BYTES_MAX: usize = 16 << 20;

/// A group's state as last published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// What this process is in the group.
    pub role: Role,
    /// The latest Raft term it has seen.
    pub term: u64,
    /// It leads `term` and has applied the first entry of it: revisions of `term` may be allotted,
    /// proposals are taken (R5).
    pub serving: bool,
    /// The Raft leader of the term, where known. May be newer or older than the other fields.
    pub leader: Option<PeerId>,
    /// Entries up to here are applied. May be newer than the other fields.
    pub applied: u64,
}

/// What [`GroupHandle::confirm_read`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadConfirmation {
    /// Leadership is certain and all that was acknowledged before the call is applied: read now.
    /// The callback is not called.
    Immediate {
        /// The applied index, at least.
        index: u64,
    },
    /// This process does not serve: ask the leader. The callback is not called.
    NotServing,
    /// Too many reads wait. The callback is not called.
    Busy,
    /// The callback will say.
    Later,
}

/// How a read that was answered `Later` came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// As [`ReadConfirmation::Immediate`].
    Confirmed {
        /// The applied index, at least.
        index: u64,
    },
    /// This process does not serve any more: ask the leader.
    NotServing,
    /// Too many reads wait.
    Busy,
}

/// Shared by all threads; a clone is the same group. `O` is what the state machine returns.
pub struct GroupHandle<O> {
    inbox: Sender<Event<O>>,
    /// To the `snapshot` thread.
    tasks: Sender<Task>,
    shared: Arc<Shared>,
}

impl<O> Clone for GroupHandle<O> {
    fn clone(&self) -> GroupHandle<O> {
        GroupHandle {
            inbox: self.inbox.clone(),
            tasks: self.tasks.clone(),
            shared: self.shared.clone(),
        }
    }
}

impl<O: Send + 'static> GroupHandle<O> {
    pub(super) fn new(
        inbox: Sender<Event<O>>,
        tasks: Sender<Task>,
        shared: Arc<Shared>,
    ) -> GroupHandle<O> {
        GroupHandle {
            inbox,
            tasks,
            shared,
        }
    }

    pub(super) fn inbox(&self) -> Sender<Event<O>> {
        self.inbox.clone()
    }

    /// Gives the Raft thread an event that somebody waits for; gives it back if that thread has
    /// ended or is too busy.
    fn post(&self, event: Event<O>) -> Option<TrySendError<Event<O>>> {
        let has_ended = self.shared.has_ended.read();
        if *has_ended {
            return Some(TrySendError::Disconnected(event));
        }
        self.inbox.try_send(event).err()
    }

    /// Proposes an entry in `term`, at most once and in no other term (R2). `data` has 1 to
    /// [`ENTRY_BYTES_MAX`] bytes.
    ///
    /// `done` is called exactly once: on this thread when the proposal is refused at once,
    /// otherwise on the Raft thread, after the entry is applied and before the next one is. It must
    /// neither block nor take long; everything waits for it.
    pub fn propose(
        &self,
        term: u64,
        data: Vec<u8>,
        done: impl FnOnce(ProposalOutcome<O>) + Send + 'static,
    ) {
        assert!(!data.is_empty(), "an empty entry begins a term");
        assert!(
            data.len() <= ENTRY_BYTES_MAX,
            "an entry of {} bytes",
            data.len()
        );
        let completion = Completion::new(done);
        if self.shared.disk_full.load(Ordering::Relaxed) {
            return completion.finish(ProposalOutcome::NotProposed(Reason::DiskFull));
        }
        let proposal = Proposal {
            term,
            data,
            completion,
        };
        match self.post(Event::Propose(proposal)) {
            None => {}
            Some(TrySendError::Full(event)) => event.refuse(Reason::Busy),
            Some(TrySendError::Disconnected(event)) => event.refuse(Reason::Stopped),
        }
    }

    /// The state as last published; costs a few loads.
    pub fn status(&self) -> GroupStatus {
        self.shared.status()
    }

    /// Whether the journal waits for space on its disk; until there is some, nothing is proposed.
    pub fn is_disk_full(&self) -> bool {
        self.shared.disk_full.load(Ordering::Relaxed)
    }

    /// Confirms that this process leads, for one read that arrived before the call (R4).
    ///
    /// In a group of one the answer is immediate: no other process can have taken a write, and a
    /// write is acknowledged only once it is applied. In a larger one, `done` is called on the Raft
    /// thread when the answer is `Later`, exactly once, and must not block.
    pub fn confirm_read(
        &self,
        done: impl FnOnce(ReadOutcome) + Send + 'static,
    ) -> ReadConfirmation {
        if let Some(confirmation) = self.confirm_read_at_once() {
            return confirmation;
        }
        let read = PendingRead::new(done);
        match self.post(Event::Read(read)) {
            None => ReadConfirmation::Later,
            Some(TrySendError::Full(event)) => {
                event.forget();
                ReadConfirmation::Busy
            }
            Some(TrySendError::Disconnected(event)) => {
                event.forget();
                ReadConfirmation::NotServing
            }
        }
    }

    /// As [`Group::confirm_read`], as far as it can be said without asking others: never `Later`.
    pub fn confirm_read_at_once(&self) -> Option<ReadConfirmation> {
        let status = self.status();
        if !status.serving {
            return Some(ReadConfirmation::NotServing);
        }
        let is_alone = self.shared.is_alone.load(Ordering::Acquire);
        let index = status.applied;
        (is_alone || faults::has(Fault::ReadWithoutReadIndex))
            .then_some(ReadConfirmation::Immediate { index })
    }

    /// Messages of a peer, as its [`crate::group::Transport`] was given them, that came together in
    /// `bytes` of memory. Lost when there is too much already.
    pub fn messages(&self, link: PeerId, messages: Vec<Bytes>, bytes: usize) {
        let Some(room) = Room::take(&self.shared.message_bytes, bytes) else {
            if let Some(more) = logging::seldom("raft inbox is full") {
                log::warn!("messages of peer {link} are dropped: too many bytes wait{more}");
            }
            return;
        };
        let room = Arc::new(room);
        for message in messages {
            let room = Some(Arc::clone(&room));
            let event = Event::Message {
                link,
                message,
                room,
            };
            _ = self.inbox.try_send(event);
        }
    }

    /// A message to `peer` was lost, or its link is.
    pub fn unreachable(&self, peer: PeerId) {
        _ = self.inbox.try_send(Event::Unreachable(peer));
    }

    /// A snapshot has reached `peer`, or has not. Waits for room: the peer gets nothing until this
    /// is known.
    pub fn snapshot_sent(&self, to: PeerId, arrived: bool) {
        _ = self.inbox.send(Event::SnapshotSent { to, arrived });
    }

    /// A piece of a peer's snapshot; `done` is called on the `snapshot` thread, or on this one when
    /// too many wait or the group has stopped.
    pub fn receive_chunk(
        &self,
        chunk: IncomingChunk,
        done: impl FnOnce(Result<(), TransferError>) + Send + 'static,
    ) {
        let done: ChunkDone = Box::new(done);
        if let Err(refused) = self.tasks.try_send(Task::Receive(chunk, done)) {
            let is_stopped = matches!(refused, TrySendError::Disconnected(_));
            if let Task::Receive(_, done) = refused.into_inner() {
                done(Err(TransferError::NotTaken { is_stopped }));
            }
        }
    }

    /// Changes who takes part, in `term` and no other. `done` is called as that of
    /// [`GroupHandle::propose`].
    pub fn change(
        &self,
        term: u64,
        change: ConfigurationChange,
        done: impl FnOnce(ProposalOutcome<()>) + Send + 'static,
    ) {
        let request = ChangeRequest {
            term,
            change,
            completion: Completion::new(done),
        };
        match self.post(Event::Change(request)) {
            None => {}
            Some(TrySendError::Full(event)) => event.refuse(Reason::Busy),
            Some(TrySendError::Disconnected(event)) => event.refuse(Reason::Stopped),
        }
    }

    /// Hands leadership to `peer`, or to the voter that is most up to date, if this process leads.
    /// It may fail silently; look at the status.
    pub fn transfer(&self, peer: Option<PeerId>) {
        _ = self.inbox.try_send(Event::Transfer(peer));
    }

    /// Takes part in terms above `above` only: a member obeyed somebody in it. It may be lost when
    /// there is too much already; look at the status.
    pub fn leave_terms(&self, above: u64) {
        _ = self.inbox.try_send(Event::LeaveTerms(above));
    }

    /// Members know of committed entries up to `committed`; whether enough of them have told. False
    /// if there is too much already.
    pub fn members_told(&self, committed: LogPosition, is_enough: bool) -> bool {
        let event = Event::MembersTold {
            committed,
            is_enough,
        };
        self.inbox.try_send(event).is_ok()
    }

    /// How the group stands; `done` is called on the Raft thread and must not block, or is dropped
    /// when that is too busy or gone.
    pub fn inspect(&self, done: impl FnOnce(GroupView) + Send + 'static) {
        _ = self.inbox.try_send(Event::Inspect(Box::new(done)));
    }

    /// Who takes part, as last applied here.
    pub fn configuration(&self) -> Arc<Configuration> {
        self.shared.configuration.lock().clone()
    }

    /// Why this process neither leads nor follows, if more is known than that nobody is elected.
    pub fn obstacle(&self) -> Option<Obstacle> {
        *self.shared.obstacle.lock()
    }

    /// Blocks until this process serves, `timeout` at most; true when it does. False at once when
    /// the group has stopped.
    pub fn wait_serving(&self, timeout: Duration) -> bool {
        let mut stopped = self.shared.stopped.lock();
        let waits = |stopped: &mut bool| !*stopped && !self.status().serving;
        self.shared
            .changed
            .wait_while_for(&mut stopped, waits, timeout);
        !*stopped && self.status().serving
    }
}

/// What the Raft thread publishes.
pub(super) struct Shared {
    /// Term << 3 | role << 1 | serving.
    state: AtomicU64,
    /// The leader's id, 0 for none.
    leader: AtomicU64,
    applied: AtomicU64,
    /// Bytes of peers' messages that wait in the inbox.
    message_bytes: Arc<AtomicUsize>,
    /// The journal waits for space; set and cleared by the journal thread.
    pub(super) disk_full: AtomicBool,
    /// Whether the Raft thread takes no more events. Held while one is given to it, and by the
    /// thread before it refuses those that it was given last: so each is taken or refused.
    pub(super) has_ended: RwLock<bool>,
    /// The index of a durable snapshot behind which the journal may be cut, 0 once it is; set by
    /// the Raft thread, taken by the journal thread.
    pub(super) cut: AtomicU64,
    /// Whether this participant decides everything by itself. A group gets a second voter only by
    /// an entry that is applied here first, and loses the first one not without the second.
    is_alone: AtomicBool,
    /// Who takes part, as last applied.
    configuration: Mutex<Arc<Configuration>>,
    /// See [`GroupHandle::obstacle`].
    obstacle: Mutex<Option<Obstacle>>,
    /// The journal thread sleeps until it is told something; set and cleared by it, and cleared by
    /// the Raft thread when it tells it.
    pub(super) journal_sleeps: AtomicBool,
    /// Whether the Raft thread has ended. Guards no other field; taken to wait for `changed`.
    stopped: Mutex<bool>,
    /// Signalled when `serving` or `stopped` changes.
    changed: Condvar,
}

impl Shared {
    pub(super) fn new(configuration: &Configuration, own: PeerId) -> Shared {
        Shared {
            state: AtomicU64::new(pack(Role::Follower, 0, false)),
            leader: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            message_bytes: Arc::default(),
            disk_full: AtomicBool::new(false),
            has_ended: RwLock::new(false),
            cut: AtomicU64::new(0),
            is_alone: AtomicBool::new(configuration.is_alone(own)),
            configuration: Mutex::new(Arc::new(configuration.clone())),
            obstacle: Mutex::new(None),
            journal_sleeps: AtomicBool::new(false),
            stopped: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    pub(super) fn status(&self) -> GroupStatus {
        // The state before the applied index: an index read with `serving` covers what was applied
        // when the flag was set.
        let state = self.state.load(Ordering::Acquire);
        let leader = self.leader.load(Ordering::Relaxed);
        GroupStatus {
            role: role_of(state),
            term: state >> 3,
            serving: state & 1 == 1,
            leader: (leader != 0).then_some(PeerId(leader)),
            applied: self.applied.load(Ordering::Acquire),
        }
    }

    /// Publishes who takes part.
    pub(super) fn publish_configuration(&self, configuration: &Configuration, own: PeerId) {
        *self.configuration.lock() = Arc::new(configuration.clone());
        self.is_alone
            .store(configuration.is_alone(own), Ordering::Release);
    }

    /// Publishes why it neither leads nor follows.
    pub(super) fn publish_obstacle(&self, obstacle: Option<Obstacle>) {
        *self.obstacle.lock() = obstacle;
    }

    /// Publishes an applied index.
    pub(super) fn publish_applied(&self, index: u64) {
        self.applied.store(index, Ordering::Release);
    }

    /// Publishes the state; wakes who waits when it begins or ceases to serve.
    pub(super) fn publish(&self, status: &CoreStatus) {
        self.leader
            .store(status.leader.map_or(0, |id| id.0), Ordering::Relaxed);
        let state = pack(status.role, status.term, status.serving);
        let before = self.state.swap(state, Ordering::AcqRel);
        if before & 1 != state & 1 {
            // Taking the lock orders this behind a waiter's look at the flag.
            drop(self.stopped.lock());
            self.changed.notify_all();
        }
    }

    /// The Raft thread ends: nothing is served from here on.
    pub(super) fn publish_stopped(&self) {
        let state = self.state.load(Ordering::Acquire);
        self.state
            .store(pack(Role::Follower, state >> 3, false), Ordering::Release);
        *self.stopped.lock() = true;
        self.changed.notify_all();
    }
}

fn pack(role: Role, term: u64, serving: bool) -> u64 {
    let role = match role {
        Role::Follower => 0,
        Role::Candidate => 1,
        Role::Leader => 2,
    };
    term << 3 | role << 1 | u64::from(serving)
}

fn role_of(state: u64) -> Role {
    match state >> 1 & 3 {
        1 => Role::Candidate,
        2 => Role::Leader,
        _ => Role::Follower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::configuration::Configuration;
    use crate::group::room::{MESSAGE_BYTES_MAX, SMALL_BYTES};
    use crate::threads::queue::bounded;

    #[test]
    fn messages_take_bounded_memory_and_small_ones_have_a_reserve() {
        let own = PeerId(1);
        let shared = Arc::new(Shared::new(&Configuration::of([own]), own));
        let (inbox, events) = bounded::<Event<()>>(100);
        let (tasks, _) = bounded(1);
        let handle = GroupHandle::new(inbox, tasks, Arc::clone(&shared));
        let send = |count, bytes| {
            let before = events.len();
            let messages = vec![Bytes::from_static(b"m"); count];
            handle.messages(PeerId(2), messages, bytes);
            events.len() - before
        };
        let used = || shared.message_bytes.load(Ordering::Relaxed);
        assert_eq!(send(3, MESSAGE_BYTES_MAX - 100), 3);
        assert_eq!(send(1, SMALL_BYTES + 1), 0, "no room");
        assert_eq!(send(1, SMALL_BYTES), 1, "the reserve");
        assert_eq!(send(1, usize::MAX), 0);
        // Those that came together give back their room with the last one.
        events.try_iter().take(2).for_each(drop);
        assert_eq!(used(), MESSAGE_BYTES_MAX - 100 + SMALL_BYTES);
        events.try_iter().for_each(drop);
        assert_eq!(used(), 0);
        // A full inbox keeps nothing.
        assert_eq!(send(150, 1000), 100);
        events.try_iter().for_each(drop);
        assert_eq!((send(1, 1000), used()), (1, 1000));
    }
}
