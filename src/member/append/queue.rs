//! What waits for the append thread, and who executes it: that thread, or a reader in its place.
//!
//! The [`Appender`] is with whoever executes. While the append thread sleeps, the appender lies in
//! the queue. A connection's reader that has handed over the requests of one read takes it from
//! there, executes them as one group, and puts it back: to wake a thread for that, and to wait
//! until it runs, would cost as much processor time as a small group. What comes meanwhile waits in
//! the socket, or in the queue, as it would while the append thread syncs.
//!
//! A reader that executes does not read. So it leaves to the append thread what is large
//! ([`LENT_BYTES_MAX`]), and everything while fetches come ([`LENT_AFTER`]) or the disk is slow
//! ([`LENT_TIME_MAX`]).
//!
//! Invariant: when requests wait, somebody has the appender or the append thread is being woken.
//! Whoever puts the appender back looks at the queue under the same lock.
//!
//! Lock: the state, held for a few moves; nothing else is locked under it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Appender, Job};
use crate::clock::{Clock, Instant};
use crate::storage::Fatal;
use crate::storage::compaction::Step;

/// Bytes of the requests that a reader executes itself: some hundred small records. With much more
/// it would be missed as a reader: decoding the next request beside the sync saves more than the
/// wake-up costs.
const LENT_BYTES_MAX: usize = 64 << 10;

/// Requests without a fetch between them after which a reader executes them itself: a fetch on the
/// same connection would wait for the group's sync.
const LENT_AFTER: u64 = 64;

/// The longest that the last group may have taken if a reader is to execute the next one. A synced
/// write takes some 0.2 ms on an SSD; while a disk takes much longer, its fetches are to be read.
const LENT_TIME_MAX: Duration = Duration::from_millis(5);

/// What the append thread takes from its queue.
pub(super) enum Work {
    Request(Job),
    /// A step of compaction, and where to tell whether it was done.
    Compact(Step, Sender<bool>),
}

/// The sending side of the append thread's queue, shared by the connections' threads.
pub struct AppendQueue(Arc<Queue>);

/// The queue, shared by both sides.
pub(super) struct Queue {
    state: Mutex<State>,
    /// The append thread waits here.
    ready: Condvar,
    clock: Arc<dyn Clock>,
    /// Pieces of work that may wait.
    work_max: usize,
    /// Bytes of requests that may wait, unless it is one request.
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    /// Bytes of the requests in `work`.
    bytes: usize,
    /// Nothing is added any more.
    is_closed: bool,
    /// The appender, while nobody executes.
    appender: Option<Box<Appender>>,
    /// When the append thread wakes by itself, while it sleeps.
    wake_at: Instant,
    /// The error of a group that a reader executed: the append thread is to end with it.
    failure: Option<Fatal>,
    /// Requests since the last fetch.
    since_fetch: u64,
    /// How long the last group took.
    group_time: Duration,
    /// The append thread needs the appender, and waits for the reader that has it.
    is_owed: bool,
    /// The append thread was woken and does not run yet: the appender is left to it.
    is_woken: bool,
    #[cfg(test)]
    wakes: u64,
}

/// What the append thread finds when it wakes.
pub(super) enum Woken {
    /// Work, or its time has come.
    Go(Box<Appender>),
    /// A reader executed what failed.
    Failed(Fatal),
}

impl AppendQueue {
    /// Hands a request to the append thread, or gives it back if the queue is full or closed.
    pub fn push(&self, job: Job) -> Result<(), Job> {
        self.add(job)?;
        self.0.wake();
        Ok(())
    }

    /// Adds a request that is executed only after [`AppendQueue::execute`]; gives it back if the
    /// queue is full or closed.
    pub fn add(&self, job: Job) -> Result<(), Job> {
        let mut state = self.0.state.lock();
        let bytes = job.bytes;
        let is_full = state.bytes > 0 && state.bytes + bytes > self.0.bytes_max;
        if is_full || state.work.len() >= self.0.work_max || state.is_closed {
            return Err(job);
        }
        state.bytes += bytes;
        state.since_fetch += 1;
        state.work.push_back(Work::Request(job));
        Ok(())
    }

    /// Has what was added executed: by the calling thread, for the time of one small group, or by
    /// the append thread.
    pub fn execute(&self) {
        if let Some(appender) = self.0.borrow() {
            self.0.execute(appender);
        }
    }

    /// A fetch came, on a connection that may bring requests too.
    pub fn note_fetch(&self) {
        self.0.state.lock().since_fetch = 0;
    }

    /// Has the append thread do a step of compaction, between two groups, and waits until it is
    /// done. False if the queue is full or closed, if the step cannot be done now, and if the
    /// thread ends before.
    pub fn compact(&self, step: Step) -> bool {
        let (done, outcome) = crossbeam_channel::bounded(1);
        let mut state = self.0.state.lock();
        if state.work.len() >= self.0.work_max || state.is_closed {
            return false;
        }
        state.work.push_back(Work::Compact(step, done));
        drop(state);
        self.0.wake();
        outcome.recv().unwrap_or(false)
    }

    /// Takes no more requests; the append thread ends when it has executed those that wait.
    pub fn close(&self) {
        self.0.state.lock().is_closed = true;
        self.0.wake();
    }

    /// How often the append thread was woken by others.
    #[cfg(test)]
    pub(super) fn wakes(&self) -> u64 {
        self.0.state.lock().wakes
    }

    /// Whether the append thread sleeps, with nothing to do.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        let state = self.0.state.lock();
        state.appender.is_some() && state.work.is_empty() && !state.is_woken
    }
}

impl Queue {
    /// A queue, and its sending side.
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        (work_max, bytes_max): (usize, usize),
    ) -> (Arc<Queue>, AppendQueue) {
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            ready: Condvar::new(),
            clock,
            work_max,
            bytes_max,
        });
        (Arc::clone(&queue), AppendQueue(queue))
    }

    /// The next piece of work, for whoever has the appender.
    pub(super) fn take(&self) -> Option<Work> {
        let mut state = self.state.lock();
        let work = state.work.pop_front();
        if let Some(Work::Request(job)) = &work {
            state.bytes -= job.bytes;
        }
        work
    }

    /// As [`Queue::take`], unless the next piece is a step of compaction.
    pub(super) fn take_request(&self) -> Option<Job> {
        let mut state = self.state.lock();
        match state.work.pop_front()? {
            Work::Request(job) => {
                state.bytes -= job.bytes;
                Some(job)
            }
            step @ Work::Compact(..) => {
                state.work.push_front(step);
                None
            }
        }
    }

    /// Whether nothing waits and nothing will.
    pub(super) fn has_ended(&self) -> bool {
        let state = self.state.lock();
        state.is_closed && state.work.is_empty()
    }

    /// A group is executed, which began at `begun`.
    pub(super) fn group_ended(&self, begun: Instant) {
        let group_time = self.clock.now().since(begun);
        self.state.lock().group_time = group_time;
    }

    /// Nothing is taken any more: whoever waits for a step of compaction is told.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let work = std::mem::take(&mut state.work);
        state.bytes = 0;
        drop(state);
        drop(work);
    }

    /// For the append thread: sleeps until there is work, or until `wake_at`. Meanwhile readers may
    /// have the appender.
    pub(super) fn sleep(&self, appender: Box<Appender>, wake_at: Instant) -> Woken {
        let mut state = self.state.lock();
        state.appender = Some(appender);
        state.wake_at = wake_at;
        loop {
            state.is_woken = false;
            if let Some(failure) = state.failure.take() {
                return Woken::Failed(failure);
            }
            let wait = state.wake_at.since(self.clock.now());
            if !wait.is_zero() && state.work.is_empty() && !state.is_closed {
                _ = self.ready.wait_for(&mut state, wait);
            } else if let Some(appender) = state.appender.take() {
                return Woken::Go(appender);
            } else {
                state.is_owed = true;
                self.ready.wait(&mut state);
                state.is_owed = false;
            }
        }
    }

    /// Wakes the append thread if nobody has the appender: whoever has it looks at the queue again.
    fn wake(&self) {
        let state = self.state.lock();
        if state.appender.is_some() {
            self.wake_thread(state);
        }
    }

    fn wake_thread(&self, mut state: MutexGuard<'_, State>) {
        if !std::mem::replace(&mut state.is_woken, true) {
            #[cfg(test)]
            {
                state.wakes += 1;
            }
            drop(state);
            self.ready.notify_one();
        }
    }

    /// The appender, if nobody has it and the calling thread is to execute what waits. If the
    /// append thread is to do that, wakes it.
    fn borrow(&self) -> Option<Box<Appender>> {
        let mut state = self.state.lock();
        if state.work.is_empty() || state.appender.is_none() || state.is_woken {
            return None;
        }
        let is_lent = state.bytes <= LENT_BYTES_MAX
            && state.since_fetch >= LENT_AFTER
            && state.group_time <= LENT_TIME_MAX;
        if !is_lent {
            self.wake_thread(state);
            return None;
        }
        state.appender.take()
    }

    /// Executes a group on the calling thread, and puts the appender back.
    fn execute(&self, mut appender: Box<Appender>) {
        let executed = appender.step();
        let wake_at = appender.wake_at();
        let mut state = self.state.lock();
        let is_needed = match executed {
            Ok(_) => {
                state.appender = Some(appender);
                let is_earlier = wake_at < state.wake_at;
                state.wake_at = wake_at;
                is_earlier || state.is_owed || state.is_closed || !state.work.is_empty()
            }
            Err(failure) => {
                state.failure = Some(failure);
                true
            }
        };
        if is_needed {
            self.wake_thread(state);
        }
    }
}
