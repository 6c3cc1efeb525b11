//! Client connections: who owns them, and what they wait for.
//!
//! * `accept`, one thread, takes new connections and deals them out (`acceptor`, `listener`).
//! * `work-N`, fixed threads, each own their connections: a worker reads, parses, begins batches
//!   and writes replies (`worker`, `connection`). It waits in its poll and nowhere else.
//! * `help-N`, one for two workers, compute what takes long (`helpers`).
//! * Each batch passes one place where it is permitted and counted for its caller
//!   ([`Admission`]), before small writes of several connections become one batch.
//! * Any thread may *push* to a session that has been subscribed ([`pusher`]).
//! * A batch that can only wait is *parked* by the worker that began it. Its [`Waker`] puts a
//!   letter into the worker's mailbox (`mailbox`), or its deadline passes; then the worker goes on
//!   with it.
//!
//! ```text
//!  accept ── newcomers ──┐
//!  links, Raft ── wakers ┼──> mailbox ──> worker <── poll ── its sockets
//!  budget ── room ───────┤                  │
//!  producers ── pushers ─┘                  │
//!                                           └── its connections, its batches, its timers
//! ```
//!
//! # Limits (A8)
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | connections | [`Limits::connections_max`] | one goes or is refused; see [`places`] |
//! | unread replies | [`Limits::output_bytes_max`] | not read from until half is taken |
//! | replies to reads | reserved before they are fetched | wait, then `busy`; see [`budget`] |
//! | large requests | reserved before they are read | wait, then `busy`; see [`budget`] |
//! | bytes held for all clients | [`Limits::budget_bytes`] | see [`budget`] |
//! | batches under way | [`Limits::under_way_max`] | a batch is answered `busy` before it begins |
//! | pushes that wait for a client | [`outbox::Bounds`] | [`pusher::PushError::Full`] |
//! | letters in the mailboxes | one for each connection, parked batch and call | none is refused |
//! | unfinished request | [`Session::input_deadline`] | the protocol's answer, then close |
//!
//! All doors of a server share its threads and limits. Locks: `mailbox`, `shared`, `budget` and
//! `pusher` say what theirs guard; none is held while another is taken.
//!
//! [`Admission`]: crate::protocol::admission::Admission
//! [`Session::input_deadline`]: crate::protocol::Session::input_deadline

mod acceptor;
pub mod budget;
mod connection;
mod farewell;
pub mod helpers;
mod listener;
mod loads;
mod mailbox;
mod newcomer;
pub mod outbox;
pub mod places;
pub mod pusher;
pub mod room;
pub mod server;
mod shared;
mod stream;
#[cfg(test)]
mod tests;
mod timers;
mod turns;
mod worker;

use std::sync::Arc;

use self::budget::Reservation;
use self::mailbox::{Letter, Mailbox};
use self::pusher::Pusher;
use crate::clock::Instant;
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

pub use self::server::{Door, Entrance, Gauges, Limits, Server};
pub use self::turns::Turns;

/// What a [`Handler`] made of a batch.
pub enum Progress {
    /// The replies, one for each request of the batch in its order (one for a bulk write). To a
    /// batch of reads they may be fewer, but at least one, to bound what is held: the rest is
    /// handed to [`Handler::begin`] again. With them comes the room that was reserved for them.
    Done(Vec<Reply>, Option<Reservation>),
    /// The replies to a batch of one connection, which is to be pushed to: once they are written
    /// the subscriber is called. It may push at once, must not block, and is dropped without being
    /// called if the batch came by an [`Entrance`]. Not for writes of the kind that may share a
    /// batch with those of other connections.
    Subscribed(Vec<Reply>, Subscriber),
    /// It can only wait.
    Parked(Box<dyn Parked>),
}

/// See [`Progress::Subscribed`].
pub type Subscriber = Box<dyn FnOnce(Pusher) + Send>;

impl Progress {
    /// Replies for which no room was reserved.
    pub fn done(replies: Vec<Reply>) -> Progress {
        Progress::Done(replies, None)
    }
}

/// Executes batches. Called by all workers, which serve other connections too: it never waits, but
/// parks a batch. Replies of a wrong number are a bug of the handler, and panic.
pub trait Handler: Send + Sync {
    /// Executes a batch, as far as that goes without waiting. Writes may come from several
    /// connections. `reply_growth` is [`Session::reply_growth`] of the connection that reads.
    ///
    /// [`Session::reply_growth`]: crate::protocol::Session::reply_growth
    fn begin(&self, batch: Batch, reply_growth: usize) -> Progress;

    /// Whether reads wait for a confirmation that this process may answer them, which several may
    /// share: then a worker calls [`Handler::confirm`] once for all the reads of a turn, and
    /// [`Handler::begin_confirmed`] for each instead of [`Handler::begin`].
    fn confirms_reads(&self) -> bool {
        false
    }

    /// Begins to confirm that reads which have arrived by now may be answered. It comes to no
    /// reply if they may; a reply is the answer to each of them.
    fn confirm(&self) -> Progress {
        Progress::done(Vec::new())
    }

    /// As [`Handler::begin`], for reads that have arrived at `since` and were confirmed after that.
    fn begin_confirmed(&self, batch: Batch, reply_growth: usize, since: Instant) -> Progress {
        _ = since;
        self.begin(batch, reply_growth)
    }
}

/// A batch that waits for an event or its deadline.
pub trait Parked: Send {
    /// Resume no later than this.
    fn deadline(&self) -> Instant;
    /// Takes the waker, to call [`Waker::wake`] when something happened, at once if it has.
    fn arm(&mut self, wake: Waker);
    /// Goes on, as far as that goes without waiting.
    fn resume(self: Box<Self>) -> Progress;
}

/// A batch that comes by another way than a connection, through an [`Entrance`].
pub struct Call {
    /// The batch.
    pub batch: Batch,
    /// As for [`Handler::begin`].
    pub reply_growth: usize,
    /// Who executes it.
    pub handler: Arc<dyn Handler>,
    /// Takes the replies with their room, on the worker: it must not block. `None` if the server
    /// stops. Dropped without being called if the server has stopped.
    pub done: CallDone,
}

/// See [`Call::done`].
pub type CallDone = Box<dyn FnOnce(Option<(Vec<Reply>, Option<Reservation>)>) + Send>;

/// Has a parked batch resumed. Cheap, callable from any thread and with locks of the caller held;
/// without effect when its batch is parked no longer.
pub struct Waker(Wakes);

/// What a [`Waker`] does.
enum Wakes {
    /// Tells the worker that has parked the batch under this ticket.
    Worker(Arc<Mailbox>, u64),
    /// Calls whoever steps batches by hand.
    Callback(Box<dyn FnOnce() + Send>),
}

impl Waker {
    /// One for a batch that is no server's.
    pub fn calling(callback: impl FnOnce() + Send + 'static) -> Waker {
        Waker(Wakes::Callback(Box::new(callback)))
    }

    fn of_worker(mailbox: Arc<Mailbox>, ticket: u64) -> Waker {
        Waker(Wakes::Worker(mailbox, ticket))
    }

    /// Resumes the batch. Once only: so there is a letter at most for each time that it is armed.
    pub fn wake(self) {
        match self.0 {
            Wakes::Worker(mailbox, ticket) => mailbox.put(Letter::Resume(ticket)),
            Wakes::Callback(callback) => callback(),
        }
    }
}
