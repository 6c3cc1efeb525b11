//! Client protocols: bytes to requests, replies to bytes. Pure.
//!
//! A protocol is a [`Session`]: a value that is fed what a client sent and drained of what the
//! client is to receive. In between it offers [`request::Batch`]es, one at a time, and takes their
//! replies. Replies leave in the order of their requests, and a batch is offered only when the one
//! before it is complete, so that a request sees the effect of each earlier one of its connection
//! (A7).
//!
//! A session parses no further than the batch it offers: the input behind it stays bytes. The host
//! therefore bounds memory by not calling [`Session::receive`] until [`Session::next_batch`] has
//! nothing more to offer, and by not asking for batches while the output is long.

pub mod admission;
pub mod batch;
pub mod buffers;
pub mod hatokuse;
pub mod http;
pub mod json;
pub mod output;
pub mod pipeline;
pub mod reply;
pub mod request;
#[cfg(test)]
pub mod testing;

use std::time::Duration;

use bytes::Bytes;

use self::admission::Caller;
use self::output::Output;
use self::reply::Reply;
use self::request::Batch;
use crate::clock::Instant;

/// How long a session in a reserved place may take, from when it first waits for its client. A
/// check needs three round trips; with twice as long silent clients would keep their places longer.
pub const RESERVED_TIME: Duration = Duration::from_secs(5);

/// One client's connection as a value: bytes in, batches out, replies in, bytes out.
pub trait Session: Send {
    /// Takes bytes that the client sent, in order. Ignored once [`Session::wants_close`].
    fn receive(&mut self, bytes: &[u8]);

    /// The client will send no more: what it sent is executed, then the session wants to close.
    fn end_of_input(&mut self);

    /// The next batch to execute, or `None` when nothing more can be executed: the input is used up
    /// but for an unfinished request, or the last batch is not complete. What needs no execution is
    /// answered on the way, up to a bounded amount of output.
    fn next_batch(&mut self) -> Option<Batch>;

    /// Bytes that the session may hold at a time for each payload byte of the replies to the batch
    /// last offered: 1 if a payload is handed on as it is.
    fn reply_growth(&self) -> usize {
        1
    }

    /// Takes the replies to the batch last offered: one for each request. To a batch of reads they
    /// may be fewer, but at least one; the rest is offered again by [`Session::next_batch`].
    fn complete(&mut self, replies: Vec<Reply>);

    /// Bytes for the client, to be drained.
    fn output(&mut self) -> &mut Output;

    /// Takes what the server pushes to the client: writes it to the output as a whole, behind all
    /// replies so far. A push is in the form of the protocol, unless the session gives it one. Not
    /// called while [`Session::is_amid_reply`].
    fn push(&mut self, push: Bytes) {
        self.output().push(push);
    }

    /// Whether the output ends within a reply, so that a push would be part of that.
    fn is_amid_reply(&self) -> bool {
        false
    }

    /// Whether [`Session::next_batch`] has nothing to offer only because the output is long: to be
    /// called again when it is drained.
    fn is_paused(&self) -> bool;

    /// Whether the connection is to be closed as soon as the output is drained.
    fn wants_close(&self) -> bool;

    /// Whether it is between two requests: nothing of one has come, and nothing is to be sent.
    fn is_idle(&self) -> bool;

    /// Bytes that the session holds for the client: input, output, and what the batch offered last
    /// holds until it is complete.
    fn bytes_held(&self) -> usize;

    /// Bytes of an unfinished request that it holds.
    fn input_bytes(&self) -> usize;

    /// Bytes of that request when all of it has come, at most.
    fn input_bytes_expected(&self) -> usize;

    /// Whether all of that request may have come, so that [`Session::next_batch`] may take long.
    fn may_be_whole(&self) -> bool {
        self.input_bytes() >= self.input_bytes_expected()
    }

    /// Gives up the unfinished request that it holds, to make room: the rest of it is skipped, then
    /// the client is told `busy`.
    fn shed(&mut self);

    /// Until when more of an unfinished request has to come, if there is one and its time is
    /// bounded. Asked with the time whenever the connection waits for input, which is when time for
    /// a request begins to count.
    fn input_deadline(&mut self, _now: Instant) -> Option<Instant> {
        None
    }

    /// The time said by [`Session::input_deadline`] has passed: says so and wants to close.
    fn input_timed_out(&mut self) {
        unreachable!("its requests may take any time");
    }

    /// The connection is idle: buffers that are empty are given back.
    fn release_buffers(&mut self);
}

/// The time of a session in a reserved place.
#[derive(Debug, Default)]
pub struct ReservedTime(Option<Instant>);

impl ReservedTime {
    /// When it is over; it begins with the first call.
    pub fn end(&mut self, now: Instant) -> Instant {
        *self.0.get_or_insert(now + RESERVED_TIME)
    }
}

/// Makes the session of each new connection.
pub trait Sessions: Send + Sync {
    /// A new session of this caller; its greeting is in its output.
    fn open(&self, caller: &Caller) -> Box<dyn Session>;

    /// A new session in a place that is reserved for checks of health and status: it has
    /// [`RESERVED_TIME`] for these, is refused anything else, and then wants to close.
    fn open_reserved(&self, caller: &Caller) -> Box<dyn Session>;

    /// What a client receives for which there is no room.
    fn refusal(&self) -> Bytes;
}
