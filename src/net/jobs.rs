//! What workers are given to do, and what waits until one of them is done.
//!
//! With few connections, one that becomes ready while no worker serves is served by the poller
//! itself, without waiting ([`super::workers::Worker::serve_here`]): a wake-up less for each
//! request. What else the poller finds ready goes to a worker at once while few of them serve.
//! Otherwise it waits behind the [`Gate`] until one is done, or for [`GATHER_DELAY`]: under load
//! connections are then served together, and no worker is woken for each.

use std::time::Duration;

use super::Parked;
use super::connection::Connection;
use crate::clock::Instant;

/// Connections in one job at the most, when many become ready at once: they are then spread over
/// several workers. Half as many cost more wake-ups, twice as many leave cores without work.
const COMPANY_MAX: usize = 32;

/// Workers that serve at a time before connections that become ready wait for one of them to be
/// done, rather than wake another: what waits together shares batches, and so wake-ups and syncs.
const SERVING_MAX: usize = 3;

/// How long such a connection waits at most. It is added to the latency of what is slow for
/// another reason, since a worker is done with what is not; a batch takes about as long.
const GATHER_DELAY: Duration = Duration::from_millis(1);

/// Connections that are ready and wait for a worker.
#[derive(Default)]
pub struct Gate {
    waiting: Vec<Seat>,
    /// Since when the first of them has waited.
    since: Instant,
    /// Workers that serve, or are about to.
    serving: usize,
}

/// A connection with the slot it belongs to.
pub struct Seat {
    /// The slot.
    pub slot: usize,
    /// The connection.
    pub connection: Box<Connection>,
}

/// A connection with requests in a batch.
pub struct Rider {
    /// The connection.
    pub seat: Seat,
    /// How many requests of the batch are its; without meaning if the batch has no others.
    pub requests: usize,
}

/// What a worker is to do.
pub enum Job {
    /// Serve connections.
    Serve(Vec<Seat>),
    /// Go on with a parked batch, then serve its connections.
    Resume {
        /// In the order of their requests.
        riders: Vec<Rider>,
        /// The batch.
        batch: Box<dyn Parked>,
    },
    /// End the thread.
    End,
}

impl Gate {
    /// A worker is about to serve.
    pub fn enter(&mut self) {
        self.serving += 1;
    }

    /// Whether no worker serves and no connection waits.
    pub fn is_quiet(&self) -> bool {
        self.serving == 0 && self.waiting.is_empty()
    }

    /// Connections became ready.
    pub fn add(&mut self, ready: &mut Vec<Seat>, now: Instant) {
        if self.waiting.is_empty() {
            self.since = now;
        }
        self.waiting.append(ready);
    }

    /// Those that a worker is to be woken for, if any: it is about to serve.
    pub fn pass(&mut self, now: Instant, is_stopping: bool) -> Option<Vec<Seat>> {
        let is_open = self.serving < SERVING_MAX || now >= self.since + GATHER_DELAY;
        if self.waiting.is_empty() || !(is_open || is_stopping) {
            return None;
        }
        self.enter();
        Some(self.take())
    }

    /// When those that wait have waited long enough.
    pub fn opens_at(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.since + GATHER_DELAY)
    }

    /// Those that a worker which is done serves next; with none, it serves no longer.
    pub fn next(&mut self) -> Vec<Seat> {
        let seats = self.take();
        if seats.is_empty() {
            self.serving -= 1;
        }
        seats
    }

    /// All that wait.
    pub fn empty(&mut self) -> Vec<Seat> {
        std::mem::take(&mut self.waiting)
    }

    /// The first that wait.
    fn take(&mut self) -> Vec<Seat> {
        let rest = self.waiting.split_off(self.waiting.len().min(COMPANY_MAX));
        std::mem::replace(&mut self.waiting, rest)
    }
}
