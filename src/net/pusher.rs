//! The way by which the server pushes to a session at any time.
//!
//! The two ends of one [`outbox::Queue`]: a producer holds a [`Pusher`] and may be any thread, the
//! connection holds the [`Outbox`] and is served by its worker. A connection has an outbox only
//! after [`Progress::Subscribed`](super::Progress) has asked for a pusher.
//!
//! The worker is told of pushes by a letter, at most one until it has looked
//! ([`Letter::Look`]). The connection may have moved to another worker by then, or be closed and
//! its place taken by another one; so the letter carries when the connection was accepted, which is
//! unique, and a letter that finds another connection or none is dropped. Nothing is lost by that:
//! a worker that takes a connection over, and one that gets it back from a helper, serves it.
//!
//! Bytes that wait are charged to the budget of all clients ([`budget`](super::budget)), each for
//! every session to which they are pushed: one push to 10,000 sessions may be one allocation, but
//! nobody can rely on that. So clients that do not read are closed after the stall time-out when
//! others want the bytes. While the budget is crossed, an outbox takes a small allowance only.
//!
//! Lock: the queue and where the connection is, held for a few moves. Nothing else is locked under
//! it, and nobody is woken.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::budget::Budget;
use super::mailbox::{Letter, Mailbox};
use super::outbox::{Bounds, Queue, Taken};
use crate::clock::Instant;

pub use super::outbox::PushError;

/// Called once, by the worker of the connection: it must not block.
type Wake = Box<dyn FnOnce() + Send>;

/// Where a connection is found.
#[derive(Clone)]
pub(super) struct Home {
    /// The mailbox of its worker.
    pub mailbox: Arc<Mailbox>,
    /// The number of its place.
    pub place: usize,
    /// When it was accepted; no other connection was at the same time.
    pub accepted_at: Instant,
}

impl Home {
    /// Has the worker serve the connection.
    fn call(self) {
        let letter = Letter::Look(self.place, self.accepted_at);
        self.mailbox.put(letter);
    }
}

struct State {
    queue: Queue<Wake>,
    home: Home,
    /// Pushers that exist.
    pushers: usize,
    /// The number of the pusher made last.
    last_number: u64,
}

struct Shared {
    state: Mutex<State>,
    budget: Arc<Budget>,
}

impl Shared {
    fn pusher(self: &Arc<Self>) -> Pusher {
        let mut state = self.state.lock();
        state.pushers += 1;
        state.last_number += 1;
        Pusher {
            number: state.last_number,
            shared: Arc::clone(self),
        }
    }
}

/// A producer's handle to one session. A clone is another producer to the same session, and pushes
/// of all of them leave in the order in which they were made.
///
/// As long as there is one, the connection is *subscribed*: it does not give way to newcomers.
pub struct Pusher {
    shared: Arc<Shared>,
    /// Unique among the pushers to this session.
    number: u64,
}

impl Pusher {
    /// Pushes some bytes, which the client receives as a whole between two replies. Cheap, never
    /// blocks, callable from any thread.
    pub fn push(&self, push: Bytes) -> Result<(), PushError> {
        let mut state = self.shared.state.lock();
        let budget = &self.shared.budget;
        let held = state.queue.bytes();
        let is_called = state.queue.push(push, budget.is_crossed())?;
        // Under the lock, so that the worker does not give the bytes back before.
        budget.add(state.queue.bytes() - held);
        let home = is_called.then(|| state.home.clone());
        drop(state);
        home.into_iter().for_each(Home::call);
        Ok(())
    }

    /// Has `wake` called when there may be room for a push of `length` bytes, or the connection is
    /// closed. Returns false if that is so already; then `wake` is dropped. Replaces an earlier
    /// wake of this pusher. `wake` is called once, by the worker of the connection, so it must not
    /// block; another producer may be faster, so the push may be refused again.
    pub fn when_room(&self, length: usize, wake: impl FnOnce() + Send + 'static) -> bool {
        let is_short = self.shared.budget.is_crossed();
        let mut state = self.shared.state.lock();
        let earlier = state.queue.leave(self.number);
        let wake: Wake = Box::new(wake);
        let refused = state.queue.wait(self.number, length, wake, is_short);
        drop(state);
        // Not under the lock: it may hold another pusher to this session.
        drop(earlier);
        refused.is_none()
    }

    /// Whether the connection is closed, so that no push is accepted any more.
    pub fn is_closed(&self) -> bool {
        self.shared.state.lock().queue.is_closed()
    }
}

impl Clone for Pusher {
    fn clone(&self) -> Pusher {
        self.shared.pusher()
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let wake = state.queue.leave(self.number);
        state.pushers -= 1;
        // It may give way from now on, which its worker notes.
        let is_last = state.pushers == 0 && !state.queue.is_closed();
        let home = is_last.then(|| state.home.clone());
        drop(state);
        // Not under the lock: it may hold another pusher to this session.
        drop(wake);
        home.into_iter().for_each(Home::call);
    }
}

/// The connection's end. Dropped, it is closed.
pub(super) struct Outbox(Arc<Shared>);

impl Outbox {
    /// An empty one for the connection that is found there.
    pub fn new(bounds: Bounds, budget: Arc<Budget>, home: Home) -> Outbox {
        let state = Mutex::new(State {
            queue: Queue::new(bounds),
            home,
            pushers: 0,
            last_number: 0,
        });
        Outbox(Arc::new(Shared { state, budget }))
    }

    /// Another handle for a producer.
    pub fn pusher(&self) -> Pusher {
        self.0.pusher()
    }

    /// The connection is found at this worker from now on.
    pub fn moves_to(&self, mailbox: Arc<Mailbox>) {
        self.0.state.lock().home.mailbox = mailbox;
    }

    /// Whether a producer has a pusher.
    pub fn is_subscribed(&self) -> bool {
        self.0.state.lock().pushers > 0
    }

    /// Whether no push waits.
    pub fn is_empty(&self) -> bool {
        self.0.state.lock().queue.is_empty()
    }

    /// Takes pushes as [`Queue::take`] does, and hands each to `each`.
    pub fn take(&self, bytes_min: usize, each: impl FnMut(Bytes)) {
        let is_short = self.0.budget.is_crossed();
        let taken = self.0.state.lock().queue.take(bytes_min, is_short);
        self.pass_on(taken, each);
    }

    /// Drops all pushes and accepts none from now on.
    pub fn close(&self) {
        let taken = self.0.state.lock().queue.close();
        self.pass_on(taken, drop);
    }

    fn pass_on(&self, taken: Taken<Wake>, each: impl FnMut(Bytes)) {
        taken.pushes.into_iter().for_each(each);
        if taken.bytes > 0 {
            self.0.budget.give_back(taken.bytes);
        }
        taken.woken.into_iter().for_each(|wake| wake());
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.close();
    }
}
