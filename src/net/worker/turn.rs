//! The turn of a connection: reads, offers batches and writes until it has to wait.

use std::sync::Arc;
use std::time::Duration;

use super::Worker;
use crate::clock::Instant;
use crate::net::connection::{Connection, Drained, Received};
use crate::net::mailbox::Letter;
use crate::protocol::request::Batch;

/// Reads of one turn: so many fill the time of a turn, or nearly.
const TURN_READS: usize = 16;

/// Batches of one turn, for the same reason.
const TURN_BATCHES: usize = 32;

/// The time of one turn of a connection: a client that has more to be done waits for the others
/// after it. A single read, batch or write may exceed it. With half of it, connections that send
/// much would be served in smaller pieces, each with a poll; twice of it is a worker's turn.
const TURN_TIME: Duration = Duration::from_micros(250);

/// How far the turn of a connection is.
pub(super) struct Turn {
    /// Reads that are left of it.
    reads_left: usize,
    /// Batches that are left of it.
    batches_left: usize,
    /// When it is over.
    until: Instant,
    /// When replies are written.
    replies: Replies,
    /// The time at the last look at the clock, which is after each read and each batch: a look for
    /// each step would be a twentieth of the time that a cached GET takes.
    pub(super) now: Instant,
}

impl Turn {
    /// A turn that begins at `now`.
    pub(super) fn new(now: Instant, replies: Replies) -> Turn {
        Turn {
            reads_left: TURN_READS,
            batches_left: TURN_BATCHES,
            until: now + TURN_TIME,
            replies,
            now,
        }
    }

    fn has_begun_a_batch(&self) -> bool {
        self.batches_left < TURN_BATCHES
    }
}

/// When the replies to what a turn executed are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Replies {
    /// In the turn.
    Now,
    /// After the turns of other connections, if all that the client has sent is answered.
    Later,
}

/// Where a turn has come to.
pub(super) enum Next {
    /// The connection waits.
    Idle,
    /// This is to be executed, then the turn goes on.
    Execute(Batch),
    /// Its input is to be parsed by a helper.
    Parse,
    /// It has more to do in another turn.
    Again,
    /// Its replies are to be written; see [`Replies::Later`].
    Write,
    /// It is over.
    Close,
}

/// What there is to execute of the input at hand.
enum Found {
    /// A batch.
    Batch(Batch),
    /// A large request, which a helper is to parse.
    Long,
    /// Nothing: more input is needed.
    Nothing,
    /// Nothing until there is room for output.
    Choked,
    /// More than a turn takes.
    TurnOver,
}

impl Worker {
    /// Goes on with a turn until there is a batch to execute or the turn is over.
    pub(super) fn go_on(
        &mut self,
        place: usize,
        connection: &mut Connection,
        turn: &mut Turn,
    ) -> Next {
        if connection.lingers_until().is_some() {
            return self.linger(connection, turn);
        }
        while turn.reads_left > 0 {
            turn.reads_left -= 1;
            let mut is_choked = false;
            match self.next_batch(connection, turn) {
                Found::Batch(batch) => {
                    // It was no read.
                    turn.reads_left += 1;
                    return Next::Execute(batch);
                }
                Found::Long => return Next::Parse,
                Found::Nothing => {
                    let is_later = turn.replies == Replies::Later && turn.has_begun_a_batch();
                    if is_later && connection.has_only_to_write() {
                        return Next::Write;
                    }
                }
                Found::Choked => is_choked = true,
                Found::TurnOver => {
                    if connection.flush(turn.now).is_err() {
                        return Next::Close;
                    }
                    return Next::Again;
                }
            }
            let now = turn.now;
            let is_stopping = self.shared.is_stopping();
            let timeout = self.shared.stall_timeout();
            let is_admitted = self.is_admitted(place, connection, is_choked, now);
            connection.take_pushes();
            // Before the flush: what the system's buffers take now is not what the client takes.
            if connection.is_stalled(now, timeout, is_stopping) || connection.flush(now).is_err() {
                return Next::Close;
            }
            if connection.session.wants_close() || is_stopping {
                return self.finish(connection, turn);
            }
            if connection.has_more_to_write() {
                return Next::Again;
            }
            if connection.is_choked(&self.shared.limits) {
                connection.pause_input(now);
                return Next::Idle;
            }
            if is_choked {
                // Writing made room: the input at hand comes before more input.
                continue;
            }
            if !is_admitted {
                return Next::Idle;
            }
            if now >= turn.until {
                return Next::Again;
            }
            let is_late = connection.input_deadline(now).is_some_and(|at| at <= now);
            match connection.receive(&mut self.scratch) {
                Ok(Received::Bytes | Received::End) => turn.now = self.shared.clock.now(),
                Ok(Received::Nothing) if is_late => connection.session.input_timed_out(),
                Ok(Received::Nothing) => return Next::Idle,
                Err(error) => {
                    log::debug!("a connection failed: {error}");
                    return Next::Close;
                }
            }
        }
        Next::Again
    }

    /// The next batch of the input at hand.
    fn next_batch(&self, connection: &mut Connection, turn: &mut Turn) -> Found {
        let shared = &self.shared;
        if shared.is_stopping() {
            return Found::Nothing;
        }
        loop {
            if connection.is_choked(&shared.limits) {
                return Found::Choked;
            }
            if turn.batches_left == 0 || turn.now >= turn.until {
                return Found::TurnOver;
            }
            if connection.has_much_to_parse() {
                return Found::Long;
            }
            let Some(batch) = connection.next_batch() else {
                return if connection.session.is_paused() {
                    Found::Choked
                } else {
                    Found::Nothing
                };
            };
            turn.batches_left -= 1;
            connection.recharge();
            if let Some(batch) = connection.permit(batch, &*shared.admission, turn.now) {
                return Found::Batch(batch);
            }
            turn.now = shared.clock.now();
        }
    }

    /// All is executed, or nothing more will be: closes once all is written.
    fn finish(&mut self, connection: &mut Connection, turn: &Turn) -> Next {
        connection.stop_reading();
        if connection.has_more_to_write() {
            return Next::Again;
        }
        if connection.has_output() {
            return Next::Idle;
        }
        if connection.has_ended() {
            return Next::Close;
        }
        connection.begin_linger(turn.now, &self.shared.limits);
        self.linger(connection, turn)
    }

    fn linger(&mut self, connection: &mut Connection, turn: &Turn) -> Next {
        // A stop does not wait for what clients may still send.
        if self.shared.is_stopping() {
            return Next::Close;
        }
        match connection.drain(&mut self.scratch, turn.reads_left, turn.now) {
            Drained::Over => Next::Close,
            Drained::Nothing => Next::Idle,
            Drained::Again => Next::Again,
        }
    }

    /// Whether more may be read of the connection as far as room for a large request goes; asks for
    /// that room.
    fn is_admitted(
        &self,
        place: usize,
        connection: &mut Connection,
        is_choked: bool,
        now: Instant,
    ) -> bool {
        // Nothing is read then. But a request that waits gets its room, or is given up in time.
        if self.shared.is_stopping() || (is_choked && !connection.waits_for_room()) {
            return true;
        }
        connection.has_small_input() || {
            let mailbox = Arc::clone(&self.mailbox);
            let timeout = self.shared.stall_timeout();
            connection.admit(now, timeout, move || mailbox.put(Letter::Serve(place)))
        }
    }
}
