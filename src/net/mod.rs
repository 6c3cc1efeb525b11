//! Client connections: readiness, hand-over to workers and back.
//!
//! A connection is in exactly one place at a time:
//!
//! ```text
//!              readiness                    takes                     gives back
//!  idle slot ────────────> job queue ────────────────> worker ──────────────────> idle slot
//!  (poller)                    ^                         │ the handler parks the batch
//!                              └── wake or deadline ── parked slot
//! ```
//!
//! * `poll`, one thread, accepts, waits for readiness and for timers (`poller`, `listener`).
//! * `work-N`, fixed threads, read, parse, execute and write (`workers`, `connection`). A worker
//!   never waits for a client; it waits for the handler only.
//! * A batch that can only wait is *parked* with its connection and gives its worker back. Its
//!   [`Waker`] or its deadline queues it again (`slots`).
//!
//! # Limits (A8)
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | connections | [`Limits::connections_max`] | the protocol's refusal, then close |
//! | unread replies | [`Limits::output_bytes_max`] | not read from until half is taken |
//! | replies to reads | reserved before they are fetched | wait, then `busy`; see [`budget`] |
//! | bytes held for all clients | [`Limits::budget_bytes`] | see [`budget`] |
//! | parked batches | [`Limits::parked_max`] | a batch is answered `busy` before it begins |
//! | job queue | a place for each connection | cannot be full: each is queued once at most |
//! | unfinished request | [`Session::input_deadline`] | the protocol's answer, then close |
//!
//! All doors of a server share its threads and limits.
//!
//! [`Session::input_deadline`]: crate::protocol::Session::input_deadline

pub mod budget;
mod connection;
mod jobs;
mod listener;
mod poller;
pub mod room;
pub mod server;
mod slots;
#[cfg(test)]
mod tests;
mod timers;
mod workers;

use std::sync::Arc;

use self::budget::Reservation;
use self::slots::Shared;
use crate::clock::Instant;
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

pub use self::server::{Door, Gauges, Limits, Server};

/// What a [`Handler`] made of a batch.
pub enum Progress {
    /// The replies, one for each request of the batch in its order (one for a bulk write). To a
    /// batch of reads they may be fewer, but at least one, to bound what is held: the rest is
    /// handed to [`Handler::begin`] again. With them comes the room that was reserved for them.
    Done(Vec<Reply>, Option<Reservation>),
    /// It can only wait, and gives its worker back meanwhile.
    Parked(Box<dyn Parked>),
}

impl Progress {
    /// Replies for which no room was reserved.
    pub fn done(replies: Vec<Reply>) -> Progress {
        Progress::Done(replies, None)
    }
}

/// Executes batches. Called by many workers at once; may block for a batch that makes progress.
/// Replies of a wrong number are a bug of the handler, and panic.
pub trait Handler: Send + Sync {
    /// Executes a batch. Unless it `may_wait`, it is parked where it would have to wait: others on
    /// this worker should not wait with it. Writes may come from several connections.
    /// `reply_growth` is [`Session::reply_growth`] of the connection that reads.
    ///
    /// [`Session::reply_growth`]: crate::protocol::Session::reply_growth
    fn begin(&self, batch: Batch, may_wait: bool, reply_growth: usize) -> Progress;
}

/// A batch that waits for an event or its deadline.
pub trait Parked: Send {
    /// Resume no later than this.
    fn deadline(&self) -> Instant;
    /// Takes the waker, to call [`Waker::wake`] when something happened, at once if it has.
    fn arm(&mut self, wake: Waker);
    /// Goes on, on any worker; waits there only if it `may_wait`.
    fn resume(self: Box<Self>, may_wait: bool) -> Progress;
}

/// Puts a parked batch back in the job queue. Cheap, idempotent, callable from any thread and with
/// locks of the caller held; without effect when its batch is parked no longer.
#[derive(Clone)]
pub struct Waker(Wakes);

/// What a [`Waker`] does.
#[derive(Clone)]
enum Wakes {
    /// Resumes what is parked in a slot, if it still is.
    Slot {
        shared: Arc<Shared>,
        slot: usize,
        ticket: u64,
    },
    /// Calls whoever steps batches by hand.
    Callback(Arc<dyn Fn() + Send + Sync>),
}

impl Waker {
    /// One for a batch that is no server's: calls `callback`, perhaps more than once.
    pub fn calling(callback: impl Fn() + Send + Sync + 'static) -> Waker {
        Waker(Wakes::Callback(Arc::new(callback)))
    }

    fn of_slot(shared: Arc<Shared>, slot: usize, ticket: u64) -> Waker {
        Waker(Wakes::Slot {
            shared,
            slot,
            ticket,
        })
    }

    /// Resumes the batch on a worker.
    pub fn wake(&self) {
        match &self.0 {
            Wakes::Slot {
                shared,
                slot,
                ticket,
            } => shared.wake(*slot, *ticket),
            Wakes::Callback(callback) => callback(),
        }
    }
}
