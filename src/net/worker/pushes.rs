//! Pushes to the connections of a worker.

use super::{State, Worker};
use crate::clock::Instant;
use crate::net::Subscriber;
use crate::net::connection::Connection;
use crate::protocol::reply::Reply;

impl Worker {
    /// Pushes wait for the connection in this place that was accepted then, or it is subscribed no
    /// longer. Without effect if that connection is elsewhere by now: it is served there.
    pub(super) fn look(&mut self, place: usize, accepted_at: Instant) {
        let Some(entry) = self.entry(place) else {
            return;
        };
        if entry.connection.accepted_at() != accepted_at {
            return;
        }
        match entry.state {
            State::Busy => self.unsent.push_back(place),
            State::Idle { .. } => self.wake(place),
            State::Ready => {}
        }
    }

    /// Counts the batch of a connection, gives it the replies, and gives the subscriber the way to
    /// push to it: pushes leave after the replies.
    pub(super) fn subscribe(
        &self,
        place: usize,
        connection: &mut Connection,
        (replies, subscriber): (Vec<Reply>, Subscriber),
        now: Instant,
    ) {
        connection.count(&replies, &*self.shared.admission, now);
        connection.complete(replies, None);
        subscriber(connection.pusher(&self.mailbox, place, self.shared.limits.outbox));
    }
}
