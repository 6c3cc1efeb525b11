//! The `journal` thread: merges the writes that wait into one, makes it durable, and says so.
//!
//! It owns the [`Journal`] and waits on its queue. Between two writes it cuts the journal where the
//! Raft thread says that it may (`Shared::cut`); while nothing is written, that waits.
//!
//! After [`IDLE_AFTER`] without a write it makes the journal's known-synced offset durable, once,
//! and then sleeps until the next. When the queue is closed it does the same and ends.
//!
//! # Failure
//!
//! A failed write or sync is final: the thread reports it and ends, and no number it did not report
//! will ever count as durable. A full disk is not a failure. What was appended cannot be taken
//! back, so the thread tries the same write again every [`FULL_RETRY_INTERVAL`] until there is
//! space; meanwhile the handle refuses proposals ([`Reason::DiskFull`]) and what waits goes on
//! waiting, its clients running into their deadlines with an unknown outcome, which is what it is.
//!
//! [`Reason::DiskFull`]: crate::group::proposals::Reason::DiskFull

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::group::core::Persist;
use crate::group::handle::Shared;
use crate::group::journal::{Journal, JournalError, Written};
use crate::group::node::Event;

/// How long without a write counts as idle.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// How often to look whether a full disk has space again.
const FULL_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Bytes of entries after which a write takes in no more. At 500 MB/s it takes 16 ms; a larger one
/// saves nothing and makes the first of its proposals wait longer.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// The state of the thread.
pub(super) struct JournalThread<O> {
    pub(super) journal: Journal,
    pub(super) writes: Receiver<Persist>,
    pub(super) raft: Sender<Event<O>>,
    pub(super) shared: Arc<Shared>,
}

/// Why the thread ends without a failure.
struct Closed;

impl<O> JournalThread<O> {
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
                self.journal.idle()?;
                return Ok(Closed);
            };
            let mut bytes = first.bytes();
            group.push(first);
            while bytes < GROUP_BYTES_MAX {
                let Ok(write) = self.writes.try_recv() else {
                    break;
                };
                bytes += write.bytes();
                group.push(write);
            }
            if let Some(Closed) = self.write(&mut group)? {
                return Ok(Closed);
            }
            let number = group.last().map_or(0, |write| write.number);
            group.clear();
            let journal_bytes = self.journal.bytes();
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
    fn cut(&mut self) -> Result<(), JournalError> {
        match self.shared.cut.swap(0, Ordering::AcqRel) {
            0 => Ok(()),
            index => self.journal.cut(index),
        }
    }

    /// The next write; none when the queue is closed.
    fn next(&mut self) -> Result<Option<Persist>, JournalError> {
        match self.writes.recv_timeout(IDLE_AFTER) {
            Ok(write) => Ok(Some(write)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                self.journal.idle()?;
                Ok(self.writes.recv().ok())
            }
        }
    }

    /// Makes a group durable, however long the disk is full; `Closed` when told to end meanwhile.
    fn write(&mut self, group: &mut Vec<Persist>) -> Result<Option<Closed>, JournalError> {
        if self.journal.write(group)? == Written::Durable {
            return Ok(None);
        }
        log::error!("the journal's disk is full, writes wait for space");
        self.shared.disk_full.store(true, Ordering::Relaxed);
        loop {
            // What the Raft thread still hands over joins; it stops at its limit in flight.
            match self.writes.recv_timeout(FULL_RETRY_INTERVAL) {
                Ok(write) => group.push(write),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Some(Closed)),
            }
            self.cut()?;
            if self.journal.write(group)? == Written::Durable {
                log::info!("the journal's disk has space again");
                self.shared.disk_full.store(false, Ordering::Relaxed);
                return Ok(None);
            }
        }
    }
}
