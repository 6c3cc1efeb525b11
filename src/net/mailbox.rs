//! What other threads tell a worker: letters, and a wake-up when it sleeps.
//!
//! A worker that is awake looks into its mailbox before it sleeps, so only a letter that finds it
//! asleep costs a system call, and a thread that holds its wake-ups makes one for many letters
//! (`threads::wakeups`). What is in a mailbox is bounded by who may write: a letter for each
//! newcomer, for each connection that is handed over, is back, asked for room or is pushed to, for
//! each batch that waits, and for each call, of which there are as many as its sender allows.
//!
//! Lock: the letters, held for a few moves; nothing else is locked under it.

use std::io;
use std::sync::Arc;

use mio::{Registry, Token};
use parking_lot::Mutex;

use super::Call;
use super::newcomer::Newcomer;
use super::worker::Entry;
use crate::clock::Instant;
use crate::threads::wakeups::{self, Sleeper};

/// The token of a mailbox's wake-ups in the poll of its worker.
pub const WAKER: Token = Token(usize::MAX);

/// What a worker is told.
pub enum Letter {
    /// A new connection to own. If its place is taken yet, the connection there is to give way.
    Own(Newcomer),
    /// A batch that comes by another way than a connection.
    Call(Call),
    /// A batch that was parked under this ticket may go on.
    Resume(u64),
    /// The connection in this place may have room for its request.
    Serve(usize),
    /// The connection in this place that was accepted then has pushes to take, or is no longer
    /// subscribed.
    Look(usize, Instant),
    /// The connection of this place, which another worker hands over.
    TakeOver(usize, Box<Entry>),
    /// The connection of this place, which a helper had.
    TakeBack(usize, Box<Entry>),
}

/// Where a worker is told; shared by whoever tells it.
pub struct Mailbox {
    state: Mutex<State>,
    waker: mio::Waker,
}

#[derive(Default)]
struct State {
    letters: Vec<Letter>,
    /// Whether the worker polls, or is about to.
    is_asleep: bool,
    /// Whether the server has stopped: nobody opens the mailbox again.
    is_closed: bool,
}

impl Mailbox {
    /// A mailbox that wakes the poll of `registry` under [`WAKER`].
    pub fn new(registry: &Registry) -> io::Result<Mailbox> {
        Ok(Mailbox {
            state: Mutex::default(),
            waker: mio::Waker::new(registry, WAKER)?,
        })
    }

    /// Adds a letter, and wakes the worker if it sleeps. In a closed mailbox the letter is dropped.
    pub fn put(self: &Arc<Self>, letter: Letter) {
        let mut state = self.state.lock();
        if state.is_closed {
            drop(state);
            return drop(letter);
        }
        state.letters.push(letter);
        let is_asleep = std::mem::take(&mut state.is_asleep);
        drop(state);
        if is_asleep {
            wakeups::wake(self);
        }
    }

    /// Drops all letters, those that are put later too. A letter that stayed would be kept for
    /// ever: its connection may hold the gauges of the server, and so this mailbox.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let letters = std::mem::take(&mut state.letters);
        drop(state);
        drop(letters);
    }

    /// Wakes the worker, so that it looks at what changed elsewhere.
    pub fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!("waking a worker failed: {error}");
        }
    }

    /// Before the worker polls: whether it may sleep, as there is no letter.
    pub fn may_sleep(&self) -> bool {
        let mut state = self.state.lock();
        state.is_asleep = state.letters.is_empty();
        state.is_asleep
    }

    /// After it polled: takes all letters, for which there is room in `into`, which is empty.
    pub fn open(&self, into: &mut Vec<Letter>) {
        let mut state = self.state.lock();
        state.is_asleep = false;
        std::mem::swap(&mut state.letters, into);
    }
}

impl Sleeper for Mailbox {
    fn wake_up(self: Arc<Self>) {
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;

    #[test]
    fn letters_that_are_put_together_wake_a_sleeping_worker_once_and_an_awake_one_not_at_all() {
        let mut poll = Poll::new().unwrap();
        let mailbox = Arc::new(Mailbox::new(poll.registry()).unwrap());
        let mut events = Events::with_capacity(8);
        let mut wakes = || {
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            events.iter().count()
        };
        let put = |tickets: std::ops::Range<u64>| {
            tickets.for_each(|ticket| mailbox.put(Letter::Resume(ticket)));
        };
        let mut letters = Vec::new();
        put(0..1);
        assert_eq!(wakes(), 0, "it is awake");
        assert!(!mailbox.may_sleep(), "there is a letter");
        mailbox.open(&mut letters);
        letters.clear();
        assert!(mailbox.may_sleep());
        let held = wakeups::hold();
        put(1..3);
        assert_eq!(wakes(), 0, "there may be more letters");
        put(3..5);
        drop(held);
        assert_eq!(wakes(), 1);
        assert_eq!(wakes(), 0);
        mailbox.open(&mut letters);
        let tickets = letters.iter().map(|letter| match letter {
            Letter::Resume(ticket) => *ticket,
            _ => panic!("another letter"),
        });
        assert_eq!(tickets.collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
}
