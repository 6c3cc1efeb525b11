//! The `journal` thread: merges the writes that wait into one, makes it durable, and says so.
//!
//! It waits on its queue. Between two writes it cuts the journal where the Raft thread says that it
//! may (`Shared::cut`); while nothing is written, that waits.
//!
//! The Raft thread of a group of one writes small things itself when nothing else is under way:
//! two wake-ups cost a third of the sync. The [`Journal`] is under a lock for that, which is never
//! waited for: whoever writes nothing at the time has it, and the Raft thread only tries.
//!
//! After [`IDLE_AFTER`] without a write it makes the journal's known-synced offset durable, once,
//! and then sleeps until the next, or until the Raft thread has written and says so. When the queue
//! is closed it does the same and ends.
//!
//! # Failure
//!
//! A failed write or sync is final: the thread reports it and ends, and no number it did not report
//! will ever count as durable. Want of space, of a descriptor or of memory is not a failure. What
//! was appended cannot be taken back, so the thread tries the same write again every
//! [`RETRY_INTERVAL`] until it is taken; meanwhile the handle refuses proposals
//! ([`Reason::DiskFull`]) and what waits goes on waiting, its clients running into their deadlines
//! with an unknown outcome, which is what it is.
//!
//! [`Reason::DiskFull`]: crate::group::proposals::Reason::DiskFull

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use parking_lot::Mutex;

use crate::group::core::Persist;
use crate::group::handle::Shared;
use crate::group::journal::{Journal, JournalError, Written};
use crate::group::node::Event;
use crate::threads::queue::{Receiver, Sender};

/// How long without a write counts as idle.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// How often a write that was refused is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How often the journal's path is compared with its file while nothing is written: a directory
/// that is removed is noticed within that. It is one system call.
const IN_PLACE_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of entries after which a write takes in no more. At 500 MB/s it takes 16 ms; a larger one
/// saves nothing and makes the first of its proposals wait longer.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// What waits for the thread.
pub(super) enum Task {
    /// To be written.
    Write(Persist),
    /// The Raft thread has written: the time until the journal is idle begins anew.
    Written,
}

/// The state of the thread.
pub(super) struct JournalThread<O> {
    /// See the header.
    pub(super) journal: Arc<Mutex<Journal>>,
    pub(super) writes: Receiver<Task>,
    pub(super) raft: Sender<Event<O>>,
    pub(super) shared: Arc<Shared>,
}

/// Why the thread ends without a failure.
struct Closed;

impl<O: Send + 'static> JournalThread<O> {
    /// The body of the thread.
    pub(super) fn run(mut self) {
        let error = match self.work() {
            Ok(Closed) => return,
            Err(error) => error,
        };
        // When the Raft thread is gone there is nobody left to acknowledge anything to.
        _ = self.raft.send(Event::JournalFailed(error));
    }

    fn work(&mut self) -> Result<Closed, JournalError> {
        let mut group = Vec::new();
        loop {
            let Some(first) = self.next()? else {
                self.cut()?;
                self.journal.lock().idle()?;
                return Ok(Closed);
            };
            let mut bytes = first.bytes();
            group.push(first);
            while bytes < GROUP_BYTES_MAX {
                match self.writes.try_recv() {
                    Ok(Task::Write(write)) => {
                        bytes += write.bytes();
                        group.push(write);
                    }
                    Ok(Task::Written) => {}
                    Err(_) => break,
                }
            }
            if let Some(Closed) = self.write(&mut group)? {
                return Ok(Closed);
            }
            let number = group.last().map_or(0, |write| write.number);
            group.clear();
            let journal_bytes = self.journal.lock().bytes();
            let event = Event::Persisted {
                number,
                journal_bytes,
            };
            if self.raft.send(event).is_err() {
                return Ok(Closed);
            }
            self.cut()?;
        }
    }

    /// Cuts the journal, if there is a new place to cut it.
    fn cut(&self) -> Result<(), JournalError> {
        match self.shared.cut.swap(0, Ordering::AcqRel) {
            0 => Ok(()),
            index => self.journal.lock().cut(index),
        }
    }

    /// The next write; none when the queue is closed.
    fn next(&self) -> Result<Option<Persist>, JournalError> {
        loop {
            self.shared.journal_sleeps.store(false, Ordering::Release);
            match self.writes.recv_timeout(IDLE_AFTER) {
                Ok(Task::Write(write)) => return Ok(Some(write)),
                Ok(Task::Written) => self.cut()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    self.shared.journal_sleeps.store(true, Ordering::Release);
                    self.journal.lock().idle()?;
                    match self.sleep()? {
                        Ok(Task::Write(write)) => return Ok(Some(write)),
                        Ok(Task::Written) => self.cut()?,
                        Err(Closed) => return Ok(None),
                    }
                }
            }
        }
    }

    /// Waits for what comes next, however long; meanwhile looks whether the journal's directory is
    /// still in its place.
    fn sleep(&self) -> Result<Result<Task, Closed>, JournalError> {
        loop {
            match self.writes.recv_timeout(IN_PLACE_INTERVAL) {
                Ok(task) => return Ok(Ok(task)),
                Err(RecvTimeoutError::Disconnected) => return Ok(Err(Closed)),
                Err(RecvTimeoutError::Timeout) => self.journal.lock().check_in_place()?,
            }
        }
    }

    /// Makes a group durable, however long the disk is full; `Closed` when told to end meanwhile.
    fn write(&self, group: &mut Vec<Persist>) -> Result<Option<Closed>, JournalError> {
        match self.journal.lock().write(group)? {
            Written::Durable => return Ok(None),
            Written::Refused(shortage) => log::error!("journal: {shortage}, writes wait"),
        }
        self.shared.disk_full.store(true, Ordering::Relaxed);
        loop {
            // What the Raft thread still hands over joins; it stops at its limit in flight.
            match self.writes.recv_timeout(RETRY_INTERVAL) {
                Ok(Task::Write(write)) => group.push(write),
                Ok(Task::Written) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Some(Closed)),
            }
            self.cut()?;
            if self.journal.lock().write(group)? == Written::Durable {
                log::info!("journal: it takes writes again");
                self.shared.disk_full.store(false, Ordering::Relaxed);
                return Ok(None);
            }
        }
    }
}
