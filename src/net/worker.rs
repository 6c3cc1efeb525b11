//! The `work-N` threads: each is a loop that owns connections and the batches that it began.
//!
//! A worker blocks in its poll and nowhere else. It reads from the connections that are ready,
//! begins batches, and gives their connections the replies, at once or when a letter says that a
//! batch may go on. One connection has one batch under way.
//!
//! # Turns
//!
//! A turn of the worker is what it does between two polls. In it connections that are ready have
//! their turns, one after the other: the worker reads and executes for one of them until there is
//! nothing to do, or the bounds of such a turn are reached; then the connection queues again after
//! the others. So no client keeps the others waiting for longer than a turn. What takes longer than
//! that, such as large requests and replies in JSON, is done by [`helpers`](super::helpers). When
//! the time of the worker's turn is over, it polls and opens its letters before it serves the
//! connections that are left. A pass is over when all connections that were ready at its beginning
//! have had their turns; it takes one or more turns of the worker.
//!
//! Replies are written after the turns of up to 64 connections, and what these turns have for
//! members leaves after them: who waits for several of these things is woken once and finds them
//! together, which spares both sides system calls and thread switches. A batch that goes on because
//! of a letter is not held up so: with it writes took a tenth longer.
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
mod serving;
mod turn;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token};
use rustc_hash::FxHashMap;

use self::balance::{Balance, Stay};
use self::batches::{Gathered, Reading, Waiting};
use super::connection::Connection;
use super::mailbox::{Letter, Mailbox, WAKER};
use super::shared::Shared;
use super::timers::{Of, Timer, Timers};
use super::turns::Beginning;
use crate::clock::Instant;
use crate::threads::scheduling;

/// The size of one read. It holds a turn's worth of pipelined small commands; more would only be
/// more to keep in the cache.
const READ_BYTES: usize = 64 * 1024;

/// Events taken from one poll; more come with the next.
const EVENTS_MAX: usize = 1024;

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
    /// The places of connections that had their turns, and whose replies are to be written.
    answered: VecDeque<usize>,
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
            answered: VecDeque::new(),
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
        scheduling::interrupt_nobody();
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
            for letter in letters.drain(..) {
                self.open(letter);
            }
            self.serve_ready(now);
            let wake_at = self.look_at_time();
            let queues = [&self.ready, &self.unsent, &self.answered];
            let is_idle = queues.iter().all(|queue| queue.is_empty());
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
        }
    }

    fn open(&mut self, letter: Letter) {
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
