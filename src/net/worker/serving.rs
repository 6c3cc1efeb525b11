//! Serves the connections that are ready: each for a turn, then what they wait for.

use std::sync::Arc;
use std::time::Duration;

use super::batches::{Owner, Reading, SHARED_BYTES_MAX, bytes_of};
use super::turn::{Next, Replies, Turn};
use super::{Entry, State, Worker};
use crate::clock::Instant;
use crate::net::Progress;
use crate::net::budget::Reservation;
use crate::net::mailbox::Letter;
use crate::net::places::Place;
use crate::net::timers::{Of, SHORTAGE_POLL, Timer};
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;
use crate::threads::wakeups;

/// The time of a worker's turn in which it serves connections; the one that is served when it is
/// over has its turn to the end. With that, and with letters, timers and batches to begin, a turn
/// seldom takes more than a millisecond. Half of it would mean more polls beside many connections.
const TURN_TIME: Duration = Duration::from_micros(500);

/// Connections that have their turns before the replies of all of them are written. A client that
/// waits for several connections is woken by the first reply, and finds the others too if they come
/// in one go; with a quarter of it there are more wake-ups. Writing so many takes some 0.3 ms.
const ANSWERED_MAX: usize = 64;

/// The time of a worker's turn in which it writes their replies. Clients that are woken by them may
/// take the processor meanwhile, so that without this bound such a turn would often take more than
/// a millisecond.
const WRITE_TIME: Duration = Duration::from_micros(250);

/// What helpers do.
pub(super) enum Work {
    /// Parses a large request.
    Parse,
    /// Encodes large replies.
    Encode(Vec<Reply>, Option<Reservation>),
}

impl Worker {
    /// Serves connections that are ready, as far as the time of a turn goes. Those that are not
    /// reached come first in the next one.
    pub(super) fn serve_ready(&mut self, mut now: Instant) {
        let until = now + TURN_TIME;
        for _ in 0..self.unsent.len() {
            let place = self.unsent.pop_front().expect("as many are there");
            self.write_unsent(place, now);
            now = self.shared.clock.now();
            if now >= until {
                break;
            }
        }
        if self.pass_left == 0 {
            self.pass_left = self.ready.len();
        }
        let held = wakeups::hold();
        while self.pass_left > 0 && now < until && self.answered.len() < ANSWERED_MAX {
            self.pass_left -= 1;
            let place = self.ready.pop_front().expect("as many are ready");
            self.serve(place, Turn::new(now, Replies::Later));
            now = self.shared.clock.now();
        }
        drop(held);
        self.write_answered(now);
    }

    /// Writes the replies of connections that had their turns, as far as [`WRITE_TIME`] goes. The
    /// others come first in the next turn of the worker.
    fn write_answered(&mut self, mut now: Instant) {
        let until = now + WRITE_TIME;
        while let Some(place) = self.answered.pop_front() {
            self.serve(place, Turn::new(now, Replies::Now));
            now = self.shared.clock.now();
            if now >= until {
                break;
            }
        }
    }

    /// Writes what a connection has to write that waits for its batch. Should its client be gone,
    /// the batch is finished all the same.
    fn write_unsent(&mut self, place: usize, now: Instant) {
        let Some(entry) = self.entry(place) else {
            return;
        };
        if let State::Busy = entry.state {
            let connection = &mut entry.connection;
            connection.begin_turn();
            connection.take_pushes();
            let result = connection.flush(now);
            if result.is_ok() && (connection.has_more_to_write() || connection.has_pushes()) {
                self.unsent.push_back(place);
            }
        }
    }

    /// Serves a connection for a turn.
    fn serve(&mut self, place: usize, mut turn: Turn) {
        let Some(mut entry) = self.entries.get_mut(place).and_then(Option::take) else {
            return;
        };
        self.note_served(&mut entry);
        entry.connection.begin_turn();
        entry.connection.take_pushes();
        entry.state = loop {
            match self.go_on(place, &mut entry.connection, &mut turn) {
                Next::Execute(batch) => {
                    let growth = entry.connection.session.reply_growth();
                    let batch = match batch {
                        Batch::Writes(writes) if bytes_of(&writes) <= SHARED_BYTES_MAX => {
                            self.gather(place, writes);
                            break State::Busy;
                        }
                        Batch::Reads(_) if self.shared.handler.confirms_reads() => {
                            self.readings.push(Reading {
                                place,
                                batch,
                                reply_growth: growth,
                                since: turn.now,
                            });
                            break State::Busy;
                        }
                        batch => batch,
                    };
                    let progress = self.begin(batch, growth);
                    turn.now = self.shared.clock.now();
                    match progress {
                        Progress::Done(replies, room) => {
                            match self.complete(place, entry, (replies, room), turn.now) {
                                Some(back) => entry = back,
                                None => return,
                            }
                        }
                        Progress::Subscribed(replies, subscriber) => {
                            let connection = &mut entry.connection;
                            self.subscribe(place, connection, (replies, subscriber), turn.now);
                        }
                        Progress::Parked(batch) => {
                            // Earlier replies do not wait for a batch that waits. If the client is
                            // gone the batch is finished all the same.
                            let _ = entry.connection.flush(turn.now);
                            if entry.connection.has_more_to_write() {
                                self.unsent.push_back(place);
                            }
                            self.park(Owner::Connection(place), batch);
                            break State::Busy;
                        }
                    }
                }
                Next::Parse => return self.help(place, entry, Work::Parse),
                Next::Again => {
                    self.ready.push_back(place);
                    break State::Ready;
                }
                Next::Close => return self.close(place, *entry),
                Next::Write => {
                    self.answered.push_back(place);
                    break State::Ready;
                }
                Next::Idle if entry.connection.has_pushes() => {
                    self.ready.push_back(place);
                    break State::Ready;
                }
                Next::Idle => return self.rest(place, entry, turn.now),
            }
        };
        self.entries[place] = Some(entry);
    }

    /// Lets a connection wait for its socket, for room, or for its time.
    pub(super) fn rest(&mut self, place: usize, mut entry: Box<Entry>, now: Instant) {
        let is_stopping = self.shared.is_stopping();
        let connection = &mut entry.connection;
        if is_stopping && !connection.has_output() {
            return self.close(place, *entry);
        }
        connection.session.release_buffers();
        let is_ordinary = self.shared.places.of(place) == Place::Ordinary;
        if is_ordinary && connection.is_idle() && !is_stopping {
            match self.hand_over(place, entry) {
                Some(back) => entry = back,
                None => return,
            }
        }
        let connection = &mut entry.connection;
        let timeout = self.shared.stall_timeout();
        let stalled = connection.stalled_since().map(|since| since + timeout);
        let input = connection.input_deadline(now);
        let timer = |at, is_of_stall| {
            let of = Of::Connection(place);
            Some(Timer {
                at,
                of,
                is_of_stall,
            })
        };
        // A time that has passed changed nothing just now: for another look it is soon enough when
        // it is looked whether the budget is short.
        let coming = |at: Instant| if at > now { at } else { now + SHORTAGE_POLL };
        let timer = match (connection.lingers_until(), stalled, input) {
            (Some(at), ..) | (None, None, Some(at)) => timer(coming(at), false),
            (None, Some(stalled), Some(input)) => timer(coming(stalled).min(coming(input)), false),
            (None, Some(at), None) => {
                let is_certain = connection.session.wants_close() || is_stopping;
                timer(coming(at), !is_certain)
            }
            (None, None, None) => None,
        };
        if let Some(timer) = timer {
            self.timers.insert(timer);
        }
        let since = match self.shared.places.of(place) {
            // A client that is pushed to says nothing for long, and is served all the same.
            Place::Ordinary if connection.is_subscribed() => None,
            Place::Ordinary => connection.is_idle().then_some(now),
            Place::Reserved => Some(connection.accepted_at()),
            Place::Refusal => None,
        };
        if let Some(since) = since {
            self.shared.begins_to_wait(place, since);
        }
        entry.state = State::Idle { timer, since };
        self.put(place, entry);
    }

    /// Has a helper do what takes long with a connection, which comes back by a letter.
    pub(super) fn help(&mut self, place: usize, mut entry: Box<Entry>, work: Work) {
        // Replies to what was asked before do not wait for it. If the client is gone, that is found
        // when the connection is back.
        let _ = entry.connection.flush(self.shared.clock.now());
        let mailbox = Arc::clone(&self.mailbox);
        self.shared.helpers.run(move || {
            match work {
                Work::Parse => entry.connection.prepare(),
                Work::Encode(replies, room) => entry.connection.complete(replies, room),
            }
            mailbox.put(Letter::TakeBack(place, entry));
        });
    }

    /// A connection is back from a helper.
    pub(super) fn take_back(&mut self, place: usize, mut entry: Box<Entry>) {
        // What the poll reported meanwhile was missed.
        entry.connection.may_be_ready(true);
        self.make_ready(place, entry);
    }

    /// Has a connection served soon.
    pub(super) fn make_ready(&mut self, place: usize, mut entry: Box<Entry>) {
        entry.state = State::Ready;
        self.put(place, entry);
        self.ready.push_back(place);
    }
}
