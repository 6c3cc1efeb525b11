//! The `work-N` threads: each takes ready connections, serves them for a turn, and hands them on.
//!
//! A turn reads, executes and writes until there is nothing to do without waiting, or its bounds
//! are reached; then the connection queues again behind the others. A worker waits only for the
//! handler.
//!
//! Connections that became ready together are one job, and their writes one batch: each batch costs
//! its members a sync and the journal another, whatever its size, and each wait a worker's wake-up.
//! Writes of different clients may share a fate: what stops one of them stops any that is placed
//! now. Reads may not, as each depends on the members that hold its messages; in company they begin
//! without waiting, and are parked if they have to.
//!
//! A batch is answered `busy` before it begins while as many batches as allowed are parked: once
//! begun it cannot be taken back. So up to one batch for each worker may be parked beyond the
//! limit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::Progress;
use super::budget::Reservation;
use super::connection::{Connection, Received};
use super::jobs::{Job, Rider, Seat};
use super::slots::Shared;
use super::timers::{SHORTAGE_POLL, Wait};
use crate::clock::Instant;
use crate::error::Failure;
use crate::protocol::reply::Reply;
use crate::protocol::request::{BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, Batch, Write};

/// The size of one read. It holds a turn's worth of pipelined small commands; more would only be
/// more to keep in the cache.
const READ_BYTES: usize = 64 * 1024;

/// Reads and batches of one turn. A client that always has more waits for the others after these.
const TURN_READS: usize = 16;
/// See [`TURN_READS`].
const TURN_BATCHES: usize = 32;

/// Batches of writes that the poller's thread serves of one connection before a worker takes over,
/// if each is answered on the spot: others may have become ready.
const TURNS_HERE: usize = 2;

/// Replies that have waited this long for later batches of their turn are sent before the next.
const FLUSH_DELAY: Duration = Duration::from_millis(1);

/// One worker.
pub struct Worker {
    shared: Arc<Shared>,
    scratch: Vec<u8>,
}

/// A connection and how far its turn is.
struct Turn {
    seat: Seat,
    /// Reads that are left of the turn.
    reads_left: usize,
    /// Batches that are left of the turn.
    batches_left: usize,
    /// When replies that wait are sent even though more batches follow.
    flush_at: Instant,
    /// The socket was empty after the last read.
    is_drained: bool,
}

impl Turn {
    fn new(seat: Seat) -> Turn {
        Turn {
            seat,
            reads_left: TURN_READS,
            batches_left: TURN_BATCHES,
            // What waits before the first batch is sent at once: the handler may block.
            flush_at: Instant::default(),
            is_drained: false,
        }
    }
}

/// Where a turn has come to.
enum Next {
    /// The connection waits for its socket.
    Idle,
    /// This is to be executed, then the turn goes on.
    Execute(Batch),
    /// It has more to do in another turn.
    Again,
    /// It is over.
    Close,
}

/// What there is to execute of the input at hand.
enum Found {
    /// A batch.
    Batch(Batch),
    /// Nothing: more input is needed.
    Nothing,
    /// Nothing until there is room for output.
    Choked,
    /// More than a turn takes.
    TurnOver,
}

/// The writes of several connections on their way to be one batch.
#[derive(Default)]
struct Company {
    riders: Vec<Rider>,
    writes: Vec<Write>,
    bytes: usize,
}

impl Company {
    fn has_room(&self, writes: &[Write]) -> bool {
        let bytes: usize = writes.iter().map(Write::payload_len).sum();
        self.writes.is_empty()
            || (self.writes.len() + writes.len() <= BATCH_REQUESTS_MAX
                && self.bytes + bytes <= BATCH_BYTES_MAX)
    }

    fn add(&mut self, seat: Seat, mut writes: Vec<Write>) {
        let requests = writes.len();
        self.bytes += writes.iter().map(Write::payload_len).sum::<usize>();
        if self.writes.is_empty() {
            self.writes = writes;
        } else {
            self.writes.append(&mut writes);
        }
        self.riders.push(Rider { seat, requests });
    }
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
            let mut seats = match job {
                Job::Serve(seats) => seats,
                Job::Resume { riders, batch } => self.absorb(riders, batch.resume(true), true),
                Job::End => return,
            };
            loop {
                while !seats.is_empty() {
                    seats = self.serve(seats, true);
                }
                seats = self.shared.next_seats();
                if seats.is_empty() {
                    break;
                }
            }
        }
    }

    /// Serves a connection on the poller's thread, without waiting for anything; what takes longer
    /// is parked, or queued for the workers.
    pub fn serve_here(&mut self, seat: Seat) {
        let mut seats = vec![seat];
        for _ in 0..TURNS_HERE {
            seats = self.serve(seats, false);
            if seats.is_empty() {
                break;
            }
        }
        seats.into_iter().for_each(|seat| self.shared.enqueue(seat));
    }

    /// Serves connections until each is handed on or has replies to a batch of writes; returns
    /// these. Waits for the handler only if it `may_wait`.
    fn serve(&mut self, seats: Vec<Seat>, may_wait: bool) -> Vec<Seat> {
        let is_alone = seats.len() == 1 && may_wait;
        let mut turns: VecDeque<Turn> = seats.into_iter().map(Turn::new).collect();
        let mut company = Company::default();
        while let Some(mut turn) = turns.pop_front() {
            match self.go_on(&mut turn) {
                Next::Execute(Batch::Writes(writes)) if company.has_room(&writes) => {
                    company.add(turn.seat, writes);
                }
                Next::Execute(batch) => {
                    let growth = turn.seat.connection.session.reply_growth();
                    let progress = self.begin(batch, is_alone, growth);
                    let Turn { seat, .. } = turn;
                    let rider = Rider { seat, requests: 0 };
                    let back = self.absorb(vec![rider], progress, may_wait).pop();
                    turns.extend(back.map(|seat| Turn { seat, ..turn }));
                }
                Next::Again => self.shared.enqueue(turn.seat),
                Next::Close => self.shared.close(turn.seat),
                Next::Idle => self.give_back(turn.seat),
            }
        }
        if company.riders.is_empty() {
            return Vec::new();
        }
        let progress = self.begin(Batch::Writes(company.writes), may_wait, 1);
        self.absorb(company.riders, progress, may_wait)
    }

    fn begin(&self, batch: Batch, may_wait: bool, reply_growth: usize) -> Progress {
        if self.shared.parked() >= self.shared.limits.parked_max {
            let busy = Reply::Failed(Failure::Busy);
            return Progress::done(vec![busy; batch.reply_count()]);
        }
        self.shared.handler.begin(batch, may_wait, reply_growth)
    }

    /// Gives each connection its replies, or parks them all. Returns those that have replies.
    fn absorb(&self, mut riders: Vec<Rider>, mut progress: Progress, may_wait: bool) -> Vec<Seat> {
        loop {
            match progress {
                Progress::Done(replies, room) => return complete(riders, replies, room),
                Progress::Parked(parked) => {
                    for rider in &mut riders {
                        // Earlier replies do not wait for a batch that waits. If the client is
                        // gone the batch is finished all the same: it may be on its way already.
                        let now = self.shared.clock.now();
                        let _ = rider.seat.connection.flush(now);
                    }
                    match self.shared.park(riders, parked) {
                        None => return Vec::new(),
                        Some((back, parked)) => {
                            (riders, progress) = (back, parked.resume(may_wait));
                        }
                    }
                }
            }
        }
    }

    fn give_back(&mut self, mut seat: Seat) {
        let connection = &mut seat.connection;
        connection.session.release_buffers();
        let now = self.shared.clock.now();
        let timeout = self.shared.stall_timeout();
        let is_stopping = self.shared.is_stopping();
        let stalled = connection.stalled_since().map(|since| since + timeout);
        let input = connection.input_deadline(now);
        let wait = match (connection.lingers_until(), stalled, input) {
            (Some(at), ..) | (None, None, Some(at)) => Wait::Until(at),
            // Whether its place is wanted is looked at again and again, but not in a spin.
            (None, Some(stalled), Some(input)) => {
                Wait::Until(input.min(stalled.max(now + SHORTAGE_POLL)))
            }
            (None, Some(at), None) if connection.session.wants_close() || is_stopping => {
                Wait::Until(at)
            }
            (None, Some(at), None) => Wait::Stalled(at),
            (None, None, None) => Wait::Forever,
        };
        if let Err(seat) = self.shared.give_back(seat, wait) {
            self.shared.close(seat);
        }
    }

    /// Goes on with a turn until there is a batch to execute or the connection is to be handed on.
    fn go_on(&mut self, turn: &mut Turn) -> Next {
        let now = self.shared.clock.now();
        if turn.seat.connection.lingers_until().is_some() {
            return self.linger(&mut turn.seat.connection, now);
        }
        while turn.reads_left > 0 {
            turn.reads_left -= 1;
            let mut is_choked = false;
            match self.next_batch(turn) {
                Found::Batch(batch) => {
                    // It was no read.
                    turn.reads_left += 1;
                    return Next::Execute(batch);
                }
                Found::Nothing => {}
                Found::Choked => is_choked = true,
                Found::TurnOver => {
                    let now = self.shared.clock.now();
                    if turn.seat.connection.flush(now).is_err() {
                        return Next::Close;
                    }
                    return Next::Again;
                }
            }
            let connection = &mut turn.seat.connection;
            if !is_choked {
                connection.shed_if_crossed();
            }
            let now = self.shared.clock.now();
            let is_stopping = self.shared.is_stopping();
            let timeout = self.shared.stall_timeout();
            // Before the flush: what the system's buffers take now is not what the client takes.
            if connection.is_stalled(now, timeout, is_stopping) || connection.flush(now).is_err() {
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
            if turn.is_drained {
                return Next::Idle;
            }
            let is_late = connection.input_deadline(now).is_some_and(|at| at <= now);
            match connection.receive(&mut self.scratch) {
                // A short read emptied the socket: asking again would only cost a call.
                Ok(Received::Bytes(count)) => turn.is_drained = count < READ_BYTES,
                Ok(Received::End) => turn.is_drained = true,
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
    fn next_batch(&self, turn: &mut Turn) -> Found {
        let shared = &self.shared;
        let connection = &mut turn.seat.connection;
        if shared.is_stopping() {
            return Found::Nothing;
        }
        if connection.is_choked(&shared.limits) {
            return Found::Choked;
        }
        if turn.batches_left == 0 {
            return Found::TurnOver;
        }
        let Some(batch) = connection.session.next_batch() else {
            return if connection.session.is_paused() {
                Found::Choked
            } else {
                Found::Nothing
            };
        };
        turn.batches_left -= 1;
        connection.recharge();
        let now = shared.clock.now();
        if now >= turn.flush_at {
            // If the client is gone, the flush behind the batch will find out.
            let _ = connection.flush(now);
            turn.flush_at = now + FLUSH_DELAY;
        }
        Found::Batch(batch)
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

/// Gives each connection the replies to its requests. A batch of a single connection has all of
/// them, however many, and the room for them.
fn complete(riders: Vec<Rider>, replies: Vec<Reply>, mut room: Option<Reservation>) -> Vec<Seat> {
    let is_alone = riders.len() == 1;
    let mut replies = replies.into_iter();
    let give = |mut rider: Rider| {
        let count = if is_alone {
            replies.len()
        } else {
            rider.requests
        };
        let connection = &mut rider.seat.connection;
        connection.complete(replies.by_ref().take(count).collect(), room.take());
        rider.seat
    };
    riders.into_iter().map(give).collect()
}
