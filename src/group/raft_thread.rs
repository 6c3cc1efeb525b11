//! The `raft` thread: feeds a [`Node`] from its inbox and carries out what it says.
//!
//! It owns the node, the state machine in it, and all that wait. It waits on its inbox only, and
//! for the next tick when there are peers: an idle group of one never wakes up. Each round drains
//! the inbox before the node makes batches, so all proposals that wait become one write (group
//! commit). It never blocks on the journal, whose queue holds all writes that may be in flight, nor
//! on a peer: what its transport cannot take is lost, and Raft sends it again.
//!
//! # Failure
//!
//! A failed write ends the group: nothing more is applied or acknowledged, what waits is told
//! *unknown*, and the owner is told why.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use parking_lot::Mutex;

use crate::clock::{Clock, Instant};
use crate::group::core::Persist;
use crate::group::handle::Shared;
use crate::group::journal::{Journal, Written};
use crate::group::journal_thread::Task as JournalTask;
use crate::group::node::{Effects, Event, Node};
use crate::group::proposals::Reason;
use crate::group::snapshots::Task;
use crate::group::{GroupError, StateMachine, Transport};
use crate::threads::queue::{Receiver, Sender};

/// Events that wait for the Raft thread. When full, proposals and reads are refused as busy,
/// messages of peers are lost, the journal waits. As many as batches of clients may be under way:
/// with half of it, all of them going on at once would be refused although there is room for them.
pub(super) const INBOX_MAX: usize = 16_384;

/// Entries of a write that the thread of one that is alone makes itself: that many come from one
/// client or two. With more, the next ones gather while the journal thread writes.
const OWN_ENTRIES_MAX: usize = 2;

/// The state of the thread.
pub(super) struct RaftThread<S: StateMachine> {
    pub(super) node: Node<S>,
    pub(super) inbox: Receiver<Event<S::Output>>,
    pub(super) journal: Sender<JournalTask>,
    /// The journal itself, for small writes of one that is alone; see `journal_thread`.
    pub(super) disk: Arc<Mutex<Journal>>,
    pub(super) shared: Arc<Shared>,
    /// To the `snapshot` thread.
    pub(super) tasks: Sender<Task>,
    pub(super) transport: Box<dyn Transport>,
    pub(super) clock: Arc<dyn Clock>,
    /// The time between two ticks.
    pub(super) tick_interval: Duration,
}

impl<S: StateMachine> RaftThread<S> {
    /// The body of the thread. `on_failure` is called last, if the group failed.
    pub(super) fn run(mut self, on_failure: impl FnOnce(GroupError)) {
        let result = self.work();
        self.node.end();
        // The queues of the journal and the snapshots.
        drop((self.journal, self.tasks));
        *self.shared.has_ended.write() = true;
        for event in self.inbox.try_iter() {
            event.refuse(Reason::Stopped);
        }
        drop(self.inbox);
        if let Err(error) = result {
            on_failure(error);
        }
    }

    fn work(&mut self) -> Result<(), GroupError> {
        let mut next_tick = None;
        loop {
            let now = self.clock.now();
            let effects = self.node.advance(now)?;
            if self.carry_out(effects)? {
                continue;
            }
            if self.node.is_finished(now) {
                return Ok(());
            }
            next_tick = match self.node.needs_ticks() {
                true => next_tick.or(Some(now + self.tick_interval)),
                false => None,
            };
            if let Some(event) = self.wait(next_tick) {
                self.node.take(event, self.clock.now())?;
            }
            let now = self.clock.now();
            // All that waits joins the next write; no more than the inbox holds, so that a steady
            // stream cannot keep the thread from writing.
            for _ in 0..INBOX_MAX {
                match self.inbox.try_recv() {
                    Ok(event) => self.node.take(event, now)?,
                    Err(_) => break,
                }
            }
            if next_tick.is_some_and(|at| now >= at) {
                self.node.tick(now);
                next_tick = Some(now + self.tick_interval);
            }
        }
    }

    /// Blocks for the next event, or until there is something else to do.
    fn wait(&self, next_tick: Option<Instant>) -> Option<Event<S::Output>> {
        let now = self.clock.now();
        let until = [next_tick, self.node.stop_at(now)];
        let until = until.into_iter().flatten().min();
        let Some(until) = until else {
            // Without a sender nothing can arrive any more, which is as good as being told to stop.
            return Some(self.inbox.recv().unwrap_or(Event::Stop(Duration::ZERO)));
        };
        match self.inbox.recv_timeout(until.since(now)) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::Stop(Duration::ZERO)),
        }
    }

    /// True if a write was made on the way: there is more to do at once.
    fn carry_out(&mut self, effects: Effects) -> Result<bool, GroupError> {
        let mut has_written = false;
        let Effects {
            writes,
            messages,
            transfers,
            snapshot,
        } = effects;
        for write in writes {
            has_written |= self.persist(write)?;
        }
        if !messages.is_empty() {
            self.transport.send(messages);
        }
        for transfer in transfers {
            self.transport.send_snapshot(transfer);
        }
        if let Some(request) = snapshot {
            // Without room for it, the next one comes when the journal has grown.
            if self.tasks.try_send(Task::Write(request)).is_err() {
                _ = self.node.take(Event::SnapshotRefused, self.clock.now());
            }
        }
        Ok(has_written)
    }

    /// Hands a write to the journal thread, or writes it if that is quicker and nobody waits
    /// meanwhile: peers for heartbeats, or many proposals for the next write. True if it wrote.
    fn persist(&mut self, write: Persist) -> Result<bool, GroupError> {
        let is_small = write.entries.len() <= OWN_ENTRIES_MAX && self.node.writes_alone();
        let disk = Arc::clone(&self.disk);
        if let Some(mut journal) = disk.try_lock().filter(|_| is_small) {
            let written = journal.write(std::slice::from_ref(&write));
            // If it is refused it is tried again over there.
            if written.map_err(GroupError::Journal)? == Written::Durable {
                let event = Event::Persisted {
                    number: write.number,
                    journal_bytes: journal.bytes(),
                };
                drop(journal);
                self.node.take(event, self.clock.now())?;
                if self.shared.journal_sleeps.swap(false, Ordering::AcqRel) {
                    _ = self.journal.try_send(JournalTask::Written);
                }
                return Ok(true);
            }
        }
        // The journal's queue holds as many as may be in flight; it is gone only after it failed,
        // which its last event says.
        _ = self.journal.try_send(JournalTask::Write(write));
        Ok(false)
    }
}
