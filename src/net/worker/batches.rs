//! Batches of a worker: gathered, begun, parked, and completed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::serving::Work;
use super::{Entry, Worker};
use crate::clock::Instant;
use crate::error::Failure;
use crate::net::budget::Reservation;
use crate::net::connection::is_long;
use crate::net::timers::{Of, Timer};
use crate::net::{Call, CallDone, Parked, Progress, Waker};
use crate::protocol::reply::Reply;
use crate::protocol::request::{BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, Batch, Write};

/// Payload bytes of one connection's writes up to which they share a batch with others'.
pub(super) const SHARED_BYTES_MAX: usize = 64 << 10;

/// Batches of shared writes of one worker under way at a time.
const SHARED_MAX: usize = 2;

/// How long gathered writes wait, at most, for one of [`SHARED_MAX`] batches to end or for the rest
/// of the pass; then they begin as one more batch. About as long as a batch takes: with half of it
/// many batches would be begun that could have been one. It bounds what a batch that is slow, such
/// as one that waits for a silent member, adds to the latency of later writes.
const GATHER_DELAY: Duration = Duration::from_millis(1);

/// Some requests of a batch.
pub(super) struct Share {
    /// The place of their connection.
    pub(super) place: usize,
    /// How many of the batch's writes are its.
    pub(super) requests: usize,
}

/// Writes of several connections on their way to be one batch.
#[derive(Default)]
pub(super) struct Gathered {
    shares: Vec<Share>,
    writes: Vec<Write>,
    bytes: usize,
    /// When the first of them came.
    since: Instant,
}

/// Reads of a connection that wait for a confirmation, which is shared.
pub(super) struct Reading {
    /// The place of the connection.
    pub(super) place: usize,
    /// The reads.
    pub(super) batch: Batch,
    /// As for [`Handler::begin`](crate::net::Handler::begin).
    pub(super) reply_growth: usize,
    /// When they arrived.
    pub(super) since: Instant,
}

/// A batch that waits for an event or its deadline.
pub(super) struct Waiting {
    owner: Owner,
    batch: Box<dyn Parked>,
    timer: Timer,
}

/// The replies of a batch, with the room that was reserved for them.
type Replies = (Vec<Reply>, Option<Reservation>);

/// Whose requests a batch has.
pub(super) enum Owner {
    /// The connection in this place.
    Connection(usize),
    /// Connections, in the order of their writes.
    Shares(Vec<Share>),
    /// Connections, for whose reads it is the confirmation.
    Readings(Vec<Reading>),
    /// Another way than connections.
    Call(CallDone),
}

impl Worker {
    pub(super) fn begin(&self, batch: Batch, reply_growth: usize) -> Progress {
        if self.is_full() {
            let busy = Reply::Failed(Failure::Busy);
            return Progress::done(vec![busy; batch.reply_count()]);
        }
        self.shared.handler.begin(batch, reply_growth)
    }

    fn is_full(&self) -> bool {
        self.shared.under_way.load(Ordering::Relaxed) >= self.shared.limits.under_way_max
    }

    /// Adds small writes to those that will be one batch.
    pub(super) fn gather(&mut self, place: usize, mut writes: Vec<Write>) {
        let (requests, bytes) = (writes.len(), bytes_of(&writes));
        let gathered = &self.gathered;
        let fits = gathered.writes.len() + requests <= BATCH_REQUESTS_MAX
            && gathered.bytes + bytes <= BATCH_BYTES_MAX;
        if !fits {
            self.begin_now();
        }
        let gathered = &mut self.gathered;
        if gathered.shares.is_empty() {
            gathered.since = self.shared.clock.now();
            gathered.writes = writes;
        } else {
            gathered.writes.append(&mut writes);
        }
        gathered.bytes += bytes;
        gathered.shares.push(Share { place, requests });
    }

    /// Begins the batch of the writes that were gathered, unless they are to wait for others: then
    /// says until when.
    pub(super) fn begin_gathered(&mut self, now: Instant) -> Option<Instant> {
        if self.gathered.shares.is_empty() {
            return None;
        }
        let until = self.gathered.since + GATHER_DELAY;
        let is_to_wait = self.shared_batches >= SHARED_MAX || self.pass_left > 0;
        if is_to_wait && now < until && !self.is_stopping {
            return Some(until);
        }
        self.begin_now();
        None
    }

    fn begin_now(&mut self) {
        let Gathered { shares, writes, .. } = std::mem::take(&mut self.gathered);
        if shares.is_empty() {
            return;
        }
        let now = self.shared.clock.now();
        for share in &shares {
            self.write_before_batch(share.place, now);
        }
        let progress = self.begin(Batch::Writes(writes), 1);
        self.follow(Owner::Shares(shares), progress);
    }

    /// Earlier replies of a connection do not wait for its batch that begins. If the client is gone
    /// the batch is finished all the same.
    fn write_before_batch(&mut self, place: usize, now: Instant) {
        let Some(entry) = self.entry(place) else {
            return;
        };
        let _ = entry.connection.flush(now);
        if entry.connection.has_more_to_write() {
            self.unsent.push_back(place);
        }
    }

    /// Has the reads of this turn confirmed that wait for that.
    pub(super) fn confirm_readings(&mut self, now: Instant) {
        if self.readings.is_empty() {
            return;
        }
        let readings = std::mem::take(&mut self.readings);
        for reading in &readings {
            self.write_before_batch(reading.place, now);
        }
        let progress = match self.is_full() {
            true => Progress::done(vec![Reply::Failed(Failure::Busy)]),
            false => self.shared.handler.confirm(),
        };
        self.follow(Owner::Readings(readings), progress);
    }

    /// Executes a connection's reads, or answers them as the confirmation says.
    fn read(&mut self, reading: Reading, refusal: Option<&Reply>) {
        let Reading {
            place,
            batch,
            reply_growth,
            since,
        } = reading;
        let progress = match refusal {
            Some(reply) => Progress::done(vec![reply.clone(); batch.reply_count()]),
            None => {
                let handler = &self.shared.handler;
                handler.begin_confirmed(batch, reply_growth, since)
            }
        };
        self.follow(Owner::Connection(place), progress);
    }

    /// Begins the batch of a call.
    pub(super) fn call(&mut self, call: Call) {
        let progress = call.handler.begin(call.batch, call.reply_growth);
        self.follow(Owner::Call(call.done), progress);
    }

    /// Keeps a batch until its waker or its deadline continues it.
    pub(super) fn park(&mut self, owner: Owner, mut batch: Box<dyn Parked>) {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let timer = Timer {
            at: batch.deadline(),
            of: Of::Batch(ticket),
            is_of_stall: false,
        };
        self.timers.insert(timer);
        batch.arm(Waker::of_worker(Arc::clone(&self.mailbox), ticket));
        self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        self.shared_batches += usize::from(matches!(owner, Owner::Shares(_)));
        let waiting = Waiting {
            owner,
            batch,
            timer,
        };
        self.waiting.insert(ticket, waiting);
    }

    /// Goes on with a batch, if it still waits under this ticket.
    pub(super) fn resume(&mut self, ticket: u64) {
        let Some(waiting) = self.waiting.remove(&ticket) else {
            return;
        };
        let Waiting {
            owner,
            batch,
            timer,
        } = waiting;
        self.timers.remove(&timer);
        self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
        self.shared_batches -= usize::from(matches!(owner, Owner::Shares(_)));
        self.follow(owner, batch.resume());
    }

    /// Parks a batch, or hands the replies to whose they are; connections are ready then.
    fn follow(&mut self, owner: Owner, progress: Progress) {
        let (replies, room) = match progress {
            Progress::Parked(batch) => return self.park(owner, batch),
            Progress::Done(replies, room) => (replies, room),
            Progress::Subscribed(replies, subscriber) => match owner {
                Owner::Connection(place) => {
                    let mut entry = self.take(place);
                    let now = self.shared.clock.now();
                    self.subscribe(place, &mut entry.connection, (replies, subscriber), now);
                    return self.make_ready(place, entry);
                }
                Owner::Shares(_) | Owner::Readings(_) => {
                    panic!("what is of several connections subscribes none")
                }
                Owner::Call(_) => (replies, None),
            },
        };
        let now = self.shared.clock.now();
        match owner {
            Owner::Connection(place) => self.answer(place, (replies, room), now),
            Owner::Shares(shares) => {
                let mut replies = replies.into_iter();
                for Share { place, requests } in shares {
                    let own = replies.by_ref().take(requests).collect();
                    self.answer(place, (own, None), now);
                }
            }
            Owner::Readings(readings) => {
                for reading in readings {
                    self.read(reading, replies.first());
                }
            }
            Owner::Call(done) => {
                let is_long = is_long(&replies);
                let shared = Arc::clone(&self.shared);
                let answer = move || {
                    done(Some((replies, room)));
                    shared.call_ended();
                };
                // They are encoded on the way.
                match is_long {
                    true => self.shared.helpers.run(answer),
                    false => answer(),
                }
            }
        }
    }

    fn answer(&mut self, place: usize, replies: Replies, now: Instant) {
        let entry = self.take(place);
        if let Some(entry) = self.complete(place, entry, replies, now) {
            self.make_ready(place, entry);
        }
    }

    /// Takes the connection that waits for its batch from its place.
    fn take(&mut self, place: usize) -> Box<Entry> {
        let entry = self.entries.get_mut(place).and_then(Option::take);
        entry.expect("it waits for its batch")
    }

    /// Counts the batch of a connection and gives it the replies. A helper that encodes them for
    /// long has the connection then.
    pub(super) fn complete(
        &mut self,
        place: usize,
        mut entry: Box<Entry>,
        (replies, room): Replies,
        now: Instant,
    ) -> Option<Box<Entry>> {
        let connection = &mut entry.connection;
        connection.count(&replies, &*self.shared.admission, now);
        if connection.has_much_to_encode(&replies) {
            self.help(place, entry, Work::Encode(replies, room));
            return None;
        }
        connection.complete(replies, room);
        Some(entry)
    }
}

pub(super) fn bytes_of(writes: &[Write]) -> usize {
    writes.iter().map(Write::payload_len).sum()
}
