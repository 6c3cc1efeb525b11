//! Takes in the batches that other leaders pass on: hands them to the workers, within limits.
//!
//! Each is executed by a handler that passes nothing on: a batch makes one hop at most, and a
//! leader that does not serve answers as it would its own client. The thread that reads the link,
//! which carries Raft's messages too, only puts a letter into a worker's mailbox.
//!
//! # Limits
//!
//! [`CALLS_MAX`] calls of [`BYTES_MAX`] bytes in all are taken and not answered yet; more are
//! refused as busy. A batch of reads is answered in parts of [`READ_BYTES_MAX`], or of one message
//! if that is larger. So a follower that reads much holds only one part of it in memory here, and
//! Raft's messages on the same link wait for one part at most.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::leader::handler::ClientHandler;
use crate::net::{Call, Entrance, Handler};
use crate::protocol::request::Batch;
use crate::rpc::message::{Refusal, Response};
use crate::rpc::server::Responder;

/// Calls without an answer: a quarter of the batches that a server begins for its clients.
const CALLS_MAX: usize = 4096;

/// Their frames, together: four followers with all that they may have in flight.
const BYTES_MAX: usize = 64 << 20;

/// Payload bytes that a batch of reads is answered with at a time, unless it is one message.
pub const READ_BYTES_MAX: u64 = 1 << 20;

/// What a payload takes until its reply is on the link: itself, and its place in the frame.
const REPLY_GROWTH: usize = 2;

/// Where calls of peers arrive.
pub struct Desk {
    handler: Arc<dyn Handler>,
    /// The way to the workers, once they are there.
    entrance: OnceLock<Entrance>,
    /// Guards only itself.
    taken: Arc<Mutex<Taken>>,
}

/// Calls that were taken and not answered, and the bytes of their frames.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    calls: usize,
    bytes: usize,
}

impl Taken {
    /// Takes a call of so many bytes in, if there is room; one is taken in any case.
    fn enter(&mut self, bytes: usize) -> bool {
        let is_full = self.calls >= CALLS_MAX || self.bytes.saturating_add(bytes) > BYTES_MAX;
        if is_full && self.calls > 0 {
            return false;
        }
        self.calls += 1;
        self.bytes += bytes;
        true
    }

    fn leave(&mut self, bytes: usize) {
        self.calls -= 1;
        self.bytes -= bytes;
    }
}

impl Desk {
    /// Has batches executed by `handler`, which passes nothing on.
    pub fn new(handler: ClientHandler) -> Desk {
        assert!(!handler.passes_on(), "one hop at most");
        Desk {
            handler: Arc::new(handler),
            entrance: OnceLock::new(),
            taken: Arc::default(),
        }
    }

    /// From here on calls are taken: the workers are there.
    pub fn open(&self, entrance: Entrance) {
        _ = self.entrance.set(entrance);
    }

    /// Takes a call, whose frame had so many bytes, or refuses it. Does not block.
    pub fn take(&self, batch: Batch, bytes: usize, responder: Responder) {
        let Some(entrance) = self.entrance.get() else {
            return responder.send(Response::Refused(Refusal::NotLeader));
        };
        if !self.taken.lock().enter(bytes) {
            return responder.send(Response::Refused(Refusal::Busy));
        }
        let share = Share(Arc::clone(&self.taken), bytes);
        entrance.submit(Call {
            batch,
            reply_growth: REPLY_GROWTH,
            handler: Arc::clone(&self.handler),
            done: Box::new(move |outcome| {
                drop(share);
                match outcome {
                    Some((replies, room)) => {
                        responder.send(Response::Forward(replies));
                        drop(room);
                    }
                    None => responder.send(Response::Refused(Refusal::NotLeader)),
                }
            }),
        });
    }
}

/// A call that was taken, until it is answered or dropped.
struct Share(Arc<Mutex<Taken>>, usize);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.lock().leave(self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_their_bytes_are_bounded_and_one_is_taken_in_any_case() {
        let mut taken = Taken::default();
        assert!(taken.enter(2 * BYTES_MAX));
        assert!(!taken.enter(0), "there is one, of too many bytes");
        taken.leave(2 * BYTES_MAX);
        assert!((0..CALLS_MAX).all(|_| taken.enter(1)));
        assert!(!taken.enter(1));
        taken.leave(1);
        assert!(!taken.enter(BYTES_MAX), "too many bytes");
        assert!(taken.enter(1));
    }
}
