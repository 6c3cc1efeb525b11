//! The `work-N` threads: each takes a ready connection, serves it for a turn, and hands it on.
//!
//! A turn reads, executes and writes until there is nothing to do without waiting, or its bounds
//! are reached; then the connection queues again behind the others. A worker waits only for the
//! handler.
//!
//! A batch is answered `busy` before it begins while as many batches as allowed are parked: once
//! begun it cannot be taken back. So up to one batch for each worker may be parked beyond the
//! limit.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::connection::{Connection, Received};
use super::slots::{Job, Shared};
use super::{Parked, Progress};
use crate::clock::Instant;
use crate::error::Failure;
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

/// The size of one read. It holds a turn's worth of pipelined small commands; more would only be
/// more to keep in the cache.
const READ_BYTES: usize = 64 * 1024;

/// Reads and batches of one turn. A client that always has more waits for the others after these.
const TURN_READS: usize = 16;
/// See [`TURN_READS`].
const TURN_BATCHES: usize = 32;

/// Replies that have waited this long for later batches of their turn are sent before the next.
const FLUSH_DELAY: Duration = Duration::from_millis(1);

/// One worker.
pub struct Worker {
    shared: Arc<Shared>,
    scratch: Vec<u8>,
}

/// What becomes of a connection after its turn.
enum Next {
    /// It waits for its socket.
    Idle,
    /// It waits for its batch.
    Park(Box<dyn Parked>),
    /// It has more to do.
    Again,
    /// It is over.
    Close,
}

/// How far the input at hand was executed.
enum Executed {
    /// All of it: more is needed.
    All,
    /// As far as there is room for output: less of it is needed.
    Choked,
    /// As far as the turn goes.
    Turn,
    /// Up to a batch that can only wait.
    Parked(Box<dyn Parked>),
}

impl Worker {
    /// A worker.
    pub fn new(shared: Arc<Shared>) -> Worker {
        Worker {
            shared,
            scratch: vec![0; READ_BYTES],
        }
    }

    /// Serves until it is told to end.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Run {
                    slot,
                    connection,
                    batch,
                } => self.serve(slot, connection, batch),
                Job::End => return,
            }
        }
    }

    fn serve(
        &mut self,
        slot: usize,
        mut connection: Box<Connection>,
        mut batch: Option<Box<dyn Parked>>,
    ) {
        loop {
            match self.turn(&mut connection, batch.take()) {
                Next::Park(parked) => match self.shared.park(slot, connection, parked) {
                    None => return,
                    Some((back, parked)) => (connection, batch) = (back, Some(parked)),
                },
                Next::Again => return self.shared.enqueue(slot, connection, None),
                Next::Close => return self.shared.close(slot, connection),
                Next::Idle => {
                    connection.session.release_buffers();
                    let now = self.shared.clock.now();
                    // Looked at again when it may be too long; not before, or it would spin.
                    let timeout = self.shared.stall_timeout();
                    let stalled = connection.stalled_since().map(|_| now + timeout);
                    let at = connection.lingers_until().or(stalled);
                    match self.shared.give_back(slot, connection, at) {
                        Ok(()) => return,
                        Err(connection) => return self.shared.close(slot, connection),
                    }
                }
            }
        }
    }

    /// Serves a connection until it has nothing to do, or has had its share.
    fn turn(&mut self, connection: &mut Connection, batch: Option<Box<dyn Parked>>) -> Next {
        let now = self.shared.clock.now();
        if connection.lingers_until().is_some() {
            return self.linger(connection, now);
        }
        if let Some(batch) = batch
            && let Some(parked) = absorb(connection, batch.resume())
        {
            return self.park(connection, parked);
        }
        let mut is_drained = false;
        for _ in 0..TURN_READS {
            let mut is_choked = false;
            match self.execute(connection) {
                Executed::All => {}
                Executed::Choked => is_choked = true,
                Executed::Turn => {
                    if connection.flush(self.shared.clock.now()).is_err() {
                        return Next::Close;
                    }
                    return Next::Again;
                }
                Executed::Parked(parked) => return self.park(connection, parked),
            }
            if !is_choked {
                connection.shed_if_crossed();
            }
            let now = self.shared.clock.now();
            let is_stopping = self.shared.is_stopping();
            let timeout = self.shared.stall_timeout();
            if connection.flush(now).is_err() || connection.is_stalled(now, timeout, is_stopping) {
                return Next::Close;
            }
            if connection.session.wants_close() || is_stopping {
                return self.finish(connection, now);
            }
            if connection.is_choked(&self.shared.limits) {
                return Next::Idle;
            }
            if is_choked {
                // Writing made room: the input at hand comes before more input.
                continue;
            }
            if is_drained {
                return Next::Idle;
            }
            match connection.receive(&mut self.scratch) {
                // A short read emptied the socket: asking again would only cost a call.
                Ok(Received::Bytes(count)) => is_drained = count < READ_BYTES,
                Ok(Received::End) => is_drained = true,
                Ok(Received::Nothing) => return Next::Idle,
                Err(error) => {
                    log::debug!("a connection failed: {error}");
                    return Next::Close;
                }
            }
        }
        Next::Again
    }

    /// Executes the input at hand, batch after batch.
    fn execute(&self, connection: &mut Connection) -> Executed {
        let shared = &self.shared;
        // What waits before the first batch is sent at once: the handler may block.
        let mut flush_at = Instant::default();
        for _ in 0..TURN_BATCHES {
            if shared.is_stopping() {
                return Executed::All;
            }
            if connection.is_choked(&shared.limits) {
                return Executed::Choked;
            }
            let Some(batch) = connection.session.next_batch() else {
                return if connection.session.is_paused() {
                    Executed::Choked
                } else {
                    Executed::All
                };
            };
            connection.recharge();
            let now = shared.clock.now();
            if now >= flush_at {
                // If the client is gone, the flush behind the batch will find out.
                let _ = connection.flush(now);
                flush_at = now + FLUSH_DELAY;
            }
            let progress = if shared.parked() >= shared.limits.parked_max {
                Progress::Done(busy(&batch))
            } else {
                shared.handler.begin(batch)
            };
            if let Some(parked) = absorb(connection, progress) {
                return Executed::Parked(parked);
            }
        }
        Executed::Turn
    }

    /// Earlier replies do not wait for a batch that waits.
    fn park(&self, connection: &mut Connection, parked: Box<dyn Parked>) -> Next {
        // If the client is gone the batch is finished all the same: it may be on its way already.
        let _ = connection.flush(self.shared.clock.now());
        Next::Park(parked)
    }

    /// All is executed, or nothing more will be: closes once all is written.
    fn finish(&mut self, connection: &mut Connection, now: Instant) -> Next {
        connection.stop_reading();
        if connection.has_output() {
            return Next::Idle;
        }
        if connection.has_ended() {
            return Next::Close;
        }
        connection.begin_linger(now, &self.shared.limits);
        self.linger(connection, now)
    }

    fn linger(&mut self, connection: &mut Connection, now: Instant) -> Next {
        let is_over = connection.drain(&mut self.scratch, now);
        // A stop does not wait for what clients may still send.
        if is_over || self.shared.is_stopping() {
            Next::Close
        } else {
            Next::Idle
        }
    }
}

/// Takes the replies of a batch, unless it can only wait.
fn absorb(connection: &mut Connection, progress: Progress) -> Option<Box<dyn Parked>> {
    match progress {
        Progress::Done(replies) => {
            connection.session.complete(replies);
            connection.recharge();
            None
        }
        Progress::Parked(parked) => Some(parked),
    }
}

/// The replies to a batch that is not begun.
fn busy(batch: &Batch) -> Vec<Reply> {
    let count = match batch {
        Batch::Writes(writes) => writes.len(),
        Batch::Reads(keys) => keys.len(),
        Batch::Bulk { .. } | Batch::Where(_) | Batch::Count | Batch::Status => 1,
    };
    vec![Reply::Failed(Failure::Busy); count]
}
