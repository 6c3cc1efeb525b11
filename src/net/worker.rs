//! The `work-N` threads: each is a loop that owns connections and the batches that it began.
//!
//! A worker blocks in its poll and nowhere else. It reads from the connections that are ready,
//! begins batches, and gives their connections the replies, at once or when a letter says that a
//! batch may go on. One connection has one batch under way.
//!
//! # Turns
//!
//! A turn of the worker is what it does between two polls. In it connections that are ready have
//! their turns, one after the other: the worker reads, executes and writes for one of them until
//! there is nothing to do, or the bounds of such a turn are reached; then the connection queues
//! again after the others. So no client keeps the others waiting for longer than a turn. What takes
//! longer than that, such as large requests and replies in JSON, is done by
//! [`helpers`](super::helpers). When the time of the worker's turn is over, it polls and opens its
//! letters before it serves the connections that are left. A pass is over when all connections
//! that were ready at its beginning have had their turns; it takes one or more turns of the worker.
//!
//! The small writes of the connections that are ready in one pass are one batch: each batch costs
//! its members a sync and the journal another, whatever its size. While two such batches are
//! under way, the writes that come wait until one of them ends, but not for longer than a
//! millisecond. Such writes succeed or fail together in many cases: if one of them cannot be placed
//! because too few members are up, none of its batch can. For small writes that is fair, as each
//! of them would have failed alone at that moment. Large writes share no batch, as they would delay
//! the others. Reads share none either: each waits for the members that hold its messages, and one
//! silent member would delay the reads of all clients. In a group of leaders the reads of a turn
//! share what they wait for first: one confirmation that this leader still leads, asked for after
//! they arrived.

mod balance;
mod batches;
mod coming;
mod pushes;
mod turn;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token};
use rustc_hash::FxHashMap;

use self::balance::{Balance, Stay};
use self::batches::{Gathered, Owner, Reading, SHARED_BYTES_MAX, Waiting, bytes_of};
use self::turn::{Next, Turn};
use super::Progress;
use super::budget::Reservation;
use super::connection::Connection;
use super::mailbox::{Letter, Mailbox, WAKER};
use super::places::Place;
use super::shared::Shared;
use super::timers::{Of, SHORTAGE_POLL, Timer, Timers};
use super::turns::Beginning;
use crate::clock::Instant;
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

/// The size of one read. It holds a turn's worth of pipelined small commands; more would only be
/// more to keep in the cache.
const READ_BYTES: usize = 64 * 1024;

/// Events taken from one poll; more come with the next.
const EVENTS_MAX: usize = 1024;

/// The time of a worker's turn in which it serves connections; the one that is served when it is
/// over has its turn to the end. With that, and with letters, timers and batches to begin, a turn
/// seldom takes more than a millisecond. Half of it would mean more polls beside many connections.
const TURN_TIME: Duration = Duration::from_micros(500);

/// Timers are looked at no more often than this. A batch whose deadline has passed and that still
/// waits is asked again so soon. The poll cannot wait for less.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// A connection and what it waits for.
pub struct Entry {
    connection: Connection,
    state: State,
    /// When it was served and may move to another worker; see [`balance`].
    stay: Stay,
}

enum State {
    /// It is about to be served.
    Ready,
    /// It waits for its socket, for room, or for its time.
    Idle {
        timer: Option<Timer>,
        /// Since when it may give way to a newcomer, if it may.
        since: Option<Instant>,
    },
    /// It waits for its batch.
    Busy,
}

/// What helpers do.
enum Work {
    /// Parses a large request.
    Parse,
    /// Encodes large replies.
    Encode(Vec<Reply>, Option<Reservation>),
}

/// One worker.
pub struct Worker {
    shared: Arc<Shared>,
    number: usize,
    poll: Poll,
    mailbox: Arc<Mailbox>,
    /// Its connections, by the numbers of their places.
    entries: Vec<Option<Box<Entry>>>,
    /// The places of connections that are ready, each once.
    ready: VecDeque<usize>,
    /// How many of them, from the front, are still to be served in this pass.
    pass_left: usize,
    /// The places of connections that wait for their batches and perhaps have output of earlier
    /// ones or pushes to write. Some may be there twice, or have nothing to write any more.
    unsent: VecDeque<usize>,
    gathered: Gathered,
    /// Reads that are to be confirmed at the end of the turn.
    readings: Vec<Reading>,
    /// Batches under way, by ticket.
    waiting: FxHashMap<u64, Waiting>,
    /// How many of them are of gathered writes.
    shared_batches: usize,
    last_ticket: u64,
    timers: Timers,
    /// Who waited for the timers that are due; empty between two looks.
    due: Vec<Of>,
    balance: Balance,
    /// Whether it has seen that the server stops.
    is_stopping: bool,
    scratch: Vec<u8>,
}

impl Worker {
    /// A worker without connections. Its number counts from 0; the mailbox wakes the poll.
    pub fn new(shared: Arc<Shared>, number: usize, poll: Poll, mailbox: Arc<Mailbox>) -> Worker {
        Worker {
            shared,
            number,
            poll,
            mailbox,
            entries: Vec::new(),
            ready: VecDeque::new(),
            pass_left: 0,
            unsent: VecDeque::new(),
            due: Vec::new(),
            gathered: Gathered::default(),
            readings: Vec::new(),
            waiting: FxHashMap::default(),
            shared_batches: 0,
            last_ticket: 0,
            timers: Timers::default(),
            balance: Balance::default(),
            is_stopping: false,
            scratch: vec![0; READ_BYTES],
        }
    }

    /// Serves until the server has stopped.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut letters = Vec::new();
        let now = self.shared.clock.now();
        self.balance = Balance::from(now);
        let mut turn = Beginning::at(now);
        loop {
            let now = self.shared.clock.now();
            if self.shared.is_stopping() && !std::mem::replace(&mut self.is_stopping, true) {
                (0..self.entries.len()).for_each(|place| self.wake(place));
            }
            if self.shared.has_stopped(now) {
                return;
            }
            self.serve_ready(now);
            let wake_at = self.look_at_time();
            let is_idle = self.ready.is_empty() && self.unsent.is_empty();
            let is_busy = !is_idle || !self.mailbox.may_sleep();
            let before = self.shared.clock.now();
            self.shared.turns(self.number).add(turn.until(before));
            let timeout = match is_busy {
                true => Some(Duration::ZERO),
                // The poll rounds it up to its millisecond, so that timers are due after it.
                false => wake_at.map(|at| at.since(before)),
            };
            if !is_busy {
                self.shared.sleeps(self.number, Some(before));
            }
            let polled = self.poll.poll(&mut events, timeout);
            if !is_busy {
                self.shared.sleeps(self.number, None);
            }
            let after = self.shared.clock.now();
            turn = Beginning::at(after);
            match polled {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("polling cannot go on: {error}"),
            }
            self.waited(before, after);
            self.mailbox.open(&mut letters);
            for event in events.iter().filter(|event| event.token() != WAKER) {
                let Token(place) = event.token();
                let is_input = event.is_readable() || event.is_read_closed() || event.is_error();
                let is_special = event.is_read_closed() || event.is_priority();
                self.report(place, is_input, is_special);
            }
            for letter in letters.drain(..) {
                match letter {
                    Letter::Own(newcomer) => self.own(newcomer),
                    Letter::Call(call) => self.call(call),
                    Letter::Resume(ticket) => self.resume(ticket),
                    Letter::Serve(place) => self.wake(place),
                    Letter::Look(place, accepted_at) => self.look(place, accepted_at),
                    Letter::TakeOver(place, entry) => self.take_over(place, entry),
                    Letter::TakeBack(place, entry) => self.take_back(place, entry),
                }
            }
        }
    }

    fn entry(&mut self, place: usize) -> Option<&mut Entry> {
        self.entries.get_mut(place)?.as_deref_mut()
    }

    /// The poll reported something of the socket in this place.
    fn report(&mut self, place: usize, is_input: bool, is_special: bool) {
        let Some(entry) = self.entry(place) else {
            return;
        };
        let connection = &mut entry.connection;
        let has_output = connection.has_output();
        // Otherwise it is in `unsent` already, or is written when its batch begins.
        let was_blocked = has_output && !connection.has_more_to_write();
        connection.may_be_ready(is_special);
        match entry.state {
            // The first event of every socket says that it can be written to. A client that has
            // sent nothing still waits then, and may give way.
            State::Idle { .. } if is_input || has_output => self.wake(place),
            State::Busy if was_blocked => self.unsent.push_back(place),
            State::Idle { .. } | State::Busy | State::Ready => {}
        }
    }

    /// Serves connections that are ready, as far as the time of a turn goes. Those that are not
    /// reached come first in the next one.
    fn serve_ready(&mut self, mut now: Instant) {
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
        while self.pass_left > 0 {
            self.pass_left -= 1;
            let place = self.ready.pop_front().expect("as many are ready");
            self.serve(place, now);
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

    /// Does what is due, and says when it is to be looked again.
    fn look_at_time(&mut self) -> Option<Instant> {
        let now = self.shared.clock.now();
        self.confirm_readings(now);
        let gathered_until = self.begin_gathered(now);
        let is_short = self.shared.budget.is_short(now);
        // All are taken first: a batch that is not done at its deadline has a new timer, which may
        // be due at once.
        let mut due = std::mem::take(&mut self.due);
        while let Some(timer) = self.timers.pop_due(now, is_short) {
            due.push(timer.of);
        }
        for of in due.drain(..) {
            match of {
                Of::Connection(place) => self.wake(place),
                Of::Batch(ticket) => self.resume(ticket),
            }
        }
        self.due = due;
        let next = self.timers.next_at(now);
        let next = next.map(|at| at.max(now + LOOK_INTERVAL_MIN));
        let times = [next, gathered_until, self.shared.stop_deadline()];
        times.into_iter().flatten().min()
    }

    /// A connection that waits is ready.
    fn wake(&mut self, place: usize) {
        let Some(entry) = self.entry(place) else {
            return;
        };
        let State::Idle { timer, since } = &entry.state else {
            return;
        };
        let (timer, since) = (*timer, *since);
        entry.state = State::Ready;
        self.ready.push_back(place);
        self.leave_idle(place, timer, since);
    }

    fn leave_idle(&mut self, place: usize, timer: Option<Timer>, since: Option<Instant>) {
        if let Some(timer) = timer {
            self.timers.remove(&timer);
        }
        if let Some(since) = since {
            self.shared.ends_to_wait(place, since);
        }
    }

    /// Serves a connection for a turn, which begins `now`.
    fn serve(&mut self, place: usize, now: Instant) {
        let Some(mut entry) = self.entries.get_mut(place).and_then(Option::take) else {
            return;
        };
        self.note_served(&mut entry);
        entry.connection.begin_turn();
        entry.connection.take_pushes();
        let mut turn = Turn::new(now);
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
    fn rest(&mut self, place: usize, mut entry: Box<Entry>, now: Instant) {
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
    fn help(&mut self, place: usize, mut entry: Box<Entry>, work: Work) {
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
    fn take_back(&mut self, place: usize, mut entry: Box<Entry>) {
        // What the poll reported meanwhile was missed.
        entry.connection.may_be_ready(true);
        self.make_ready(place, entry);
    }

    /// Has a connection served soon.
    fn make_ready(&mut self, place: usize, mut entry: Box<Entry>) {
        entry.state = State::Ready;
        self.put(place, entry);
        self.ready.push_back(place);
    }

    /// Keeps a connection in its place.
    fn put(&mut self, place: usize, entry: Box<Entry>) {
        if self.entries.len() <= place {
            self.entries.resize_with(place + 1, || None);
        }
        self.entries[place] = Some(entry);
    }

    fn close(&mut self, place: usize, entry: Entry) {
        drop(entry);
        self.shared.free(place);
    }
}
