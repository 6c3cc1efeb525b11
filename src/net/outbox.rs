//! The bounded queue of what the server pushes to one session, in order. Pure.
//!
//! A *push* is some bytes that a session sends to its client as a whole, between two replies. A
//! producer puts pushes in, the connection takes them out when its client has taken most of what
//! was sent before. A client that does not read therefore leaves its queue full, and the producer
//! is told [`PushError::Full`]; it may then wait for room.
//!
//! # Bounds (A8)
//!
//! * A queue holds at most [`Bounds::bytes_max`] bytes and [`Bounds::pushes_max`] pushes. A larger
//!   push is accepted by an empty queue, so that it is delivered too.
//! * While memory is short, a queue takes a push only up to [`Bounds::allowance_bytes`].
//! * Each producer has at most one waiter.
//!
//! # Signals
//!
//! * A push into a queue that the connection has emptied *calls* the connection; further pushes do
//!   not, until it has emptied the queue again. A connection that leaves pushes behind looks again
//!   by itself, as its output was long or a reply was half written.
//! * A waiter is returned when the queue is at most half full and has room for the waiter's bytes,
//!   so that a producer is woken for many pushes and not for each. A queue with a waiter is never
//!   empty, hence the connection takes from it once more, and every take looks at the waiters.
//! * Closing the queue returns all waiters: they push again and are told [`PushError::Closed`].

use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes that a push is taken to need beside its own: its place in the queue. Only the order of
/// magnitude matters.
pub const PUSH_BYTES: usize = 64;

/// The limits of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all pushes that wait, each with [`PUSH_BYTES`].
    pub bytes_max: usize,
    /// Pushes that wait.
    pub pushes_max: usize,
    /// Bytes up to which a push is accepted while memory is short.
    pub allowance_bytes: usize,
}

impl Default for Bounds {
    /// As much as a connection may hold of unread replies in any case, and pushes of 64 bytes and
    /// more fill it by their bytes. With half of it a producer of 1 KiB pushes is refused after 30;
    /// with twice of it 10,000 slow readers hold 1.3 GB unless memory is short. In a shortage
    /// 10,000 of them hold 80 MB.
    fn default() -> Bounds {
        Bounds {
            bytes_max: 64 << 10,
            pushes_max: 512,
            allowance_bytes: 8 << 10,
        }
    }
}

/// Why a push was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The client reads too slowly. The producer may wait for room, or drop the push.
    #[error("the client reads too slowly")]
    Full,
    /// The connection is closed, or is being closed. No push will be accepted again.
    #[error("the connection is closed")]
    Closed,
}

/// A producer that waits for room.
#[derive(Debug)]
struct Waiter<W> {
    /// The number of the producer, unique within the queue.
    number: u64,
    /// Bytes of the push that it wants to make, with [`PUSH_BYTES`].
    bytes: usize,
    owner: W,
}

/// What [`Queue::take`] returns.
#[derive(Debug)]
pub struct Taken<W> {
    /// The pushes, in order.
    pub pushes: VecDeque<Bytes>,
    /// Bytes that the queue holds less, each push with [`PUSH_BYTES`].
    pub bytes: usize,
    /// Waiters that have room now.
    pub woken: Vec<W>,
}

/// The pushes that wait for one connection, and the producers that wait for room, each with a `W`.
#[derive(Debug)]
pub struct Queue<W> {
    bounds: Bounds,
    pushes: VecDeque<Bytes>,
    /// Bytes of `pushes`, each with [`PUSH_BYTES`].
    bytes: usize,
    waiting: Vec<Waiter<W>>,
    /// True when the connection has emptied the queue and was not called since.
    calls: bool,
    is_closed: bool,
}

impl<W> Queue<W> {
    /// An empty queue, whose first push calls the connection.
    pub fn new(bounds: Bounds) -> Queue<W> {
        Queue {
            bounds,
            pushes: VecDeque::new(),
            bytes: 0,
            waiting: Vec::new(),
            calls: true,
            is_closed: false,
        }
    }

    /// Adds a push. Returns true if the connection is to be called. `is_short` says whether memory
    /// is short.
    pub fn push(&mut self, push: Bytes, is_short: bool) -> Result<bool, PushError> {
        if self.is_closed {
            return Err(PushError::Closed);
        }
        let bytes = cost(push.len());
        if !self.fits(bytes, is_short) {
            return Err(PushError::Full);
        }
        self.bytes += bytes;
        self.pushes.push_back(push);
        Ok(std::mem::take(&mut self.calls))
    }

    fn fits(&self, bytes: usize, is_short: bool) -> bool {
        let bytes_max = match is_short {
            true => self.bounds.allowance_bytes,
            false => self.bounds.bytes_max,
        };
        let is_within = bytes.saturating_add(self.bytes) <= bytes_max;
        self.pushes.is_empty() || (is_within && self.pushes.len() < self.bounds.pushes_max)
    }

    fn has_room(&self, bytes: usize, is_short: bool) -> bool {
        let is_half = self.bytes <= self.bounds.bytes_max / 2
            && self.pushes.len() <= self.bounds.pushes_max / 2;
        is_half && self.fits(bytes, is_short)
    }

    /// Has the producer with this number, which does not wait yet, wait until there is room for a
    /// push of `length` bytes. Returns the owner if there is room already, or the queue is closed.
    pub fn wait(&mut self, number: u64, length: usize, owner: W, is_short: bool) -> Option<W> {
        let bytes = cost(length);
        let mut numbers = self.waiting.iter().map(|waiter| waiter.number);
        assert!(numbers.all(|other| other != number), "it waits already");
        if self.is_closed || self.has_room(bytes, is_short) {
            return Some(owner);
        }
        self.waiting.push(Waiter {
            number,
            bytes,
            owner,
        });
        None
    }

    /// The producer with this number waits no longer. Returns its waiter, if it waited.
    pub fn leave(&mut self, number: u64) -> Option<W> {
        let mut waiting = self.waiting.iter();
        let at = waiting.position(|waiter| waiter.number == number)?;
        Some(self.waiting.remove(at).owner)
    }

    /// Takes pushes until these are `bytes_min` bytes long, and one at least; all of them if they
    /// are shorter together.
    pub fn take(&mut self, bytes_min: usize, is_short: bool) -> Taken<W> {
        let (mut count, mut length, mut bytes) = (0, 0, 0);
        for push in &self.pushes {
            if count > 0 && length >= bytes_min {
                break;
            }
            count += 1;
            length += push.len();
            bytes += cost(push.len());
        }
        let rest = self.pushes.split_off(count);
        let pushes = std::mem::replace(&mut self.pushes, rest);
        self.bytes -= bytes;
        self.calls |= self.pushes.is_empty() && !self.is_closed;
        let mut waiting = std::mem::take(&mut self.waiting);
        let has_room = |waiter: &mut Waiter<W>| self.has_room(waiter.bytes, is_short);
        let woken = waiting.extract_if(.., has_room).map(|waiter| waiter.owner);
        let woken = woken.collect();
        self.waiting = waiting;
        Taken {
            pushes,
            bytes,
            woken,
        }
    }

    /// Drops all pushes and accepts none from now on. Returns the bytes that the queue holds less
    /// and all waiters, as [`Queue::take`] does.
    pub fn close(&mut self) -> Taken<W> {
        self.is_closed = true;
        self.calls = false;
        let waiting = std::mem::take(&mut self.waiting);
        Taken {
            pushes: std::mem::take(&mut self.pushes),
            bytes: std::mem::take(&mut self.bytes),
            woken: waiting.into_iter().map(|waiter| waiter.owner).collect(),
        }
    }

    /// Bytes of all pushes that wait, each with [`PUSH_BYTES`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no push waits.
    pub fn is_empty(&self) -> bool {
        self.pushes.is_empty()
    }

    /// Whether the queue was closed.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }
}

/// What a push of this length counts.
fn cost(length: usize) -> usize {
    length.saturating_add(PUSH_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        bytes_max: 10 * (PUSH_BYTES + 10),
        pushes_max: 8,
        allowance_bytes: 2 * (PUSH_BYTES + 10),
    };

    fn push(length: usize) -> Bytes {
        Bytes::from(vec![b'x'; length])
    }

    /// Pushes ten bytes until the queue is full; returns how many it took.
    fn fill(queue: &mut Queue<&str>, is_short: bool) -> usize {
        (0..)
            .take_while(|_| queue.push(push(10), is_short).is_ok())
            .count()
    }

    #[test]
    fn a_queue_is_full_at_its_bounds() {
        let mut queue = Queue::new(BOUNDS);
        assert_eq!(fill(&mut queue, false), BOUNDS.pushes_max);
        assert_eq!(queue.push(push(0), false), Err(PushError::Full));
        let taken = queue.take(usize::MAX, false);
        assert_eq!((taken.pushes.len(), taken.bytes), (8, 8 * 74));
        // Bytes come first when the pushes are larger.
        for _ in 0..2 {
            assert!(queue.push(push(300), false).is_ok());
        }
        assert_eq!(queue.push(push(0), false), Err(PushError::Full));
    }

    #[test]
    fn a_larger_push_is_accepted_by_an_empty_queue_only() {
        let mut queue = Queue::<&str>::new(BOUNDS);
        assert_eq!(queue.push(push(100_000), false), Ok(true));
        assert_eq!(queue.push(push(1), false), Err(PushError::Full));
        assert_eq!(queue.take(1, false).bytes, 100_000 + PUSH_BYTES);
        assert_eq!(queue.push(push(1), false), Ok(true));
        assert_eq!(queue.push(push(100_000), false), Err(PushError::Full));
    }

    #[test]
    fn the_connection_is_called_once_until_it_has_taken_all() {
        let mut queue = Queue::<&str>::new(BOUNDS);
        assert_eq!(queue.push(push(10), false), Ok(true));
        for _ in 0..3 {
            assert_eq!(queue.push(push(10), false), Ok(false));
        }
        assert_eq!(queue.take(15, false).pushes.len(), 2);
        assert_eq!(queue.push(push(10), false), Ok(false), "it looks by itself");
        assert_eq!(queue.take(usize::MAX, false).pushes.len(), 3);
        assert_eq!(queue.push(push(10), false), Ok(true));
    }

    #[test]
    fn a_producer_is_told_of_room_once_when_the_queue_is_half_full() {
        let mut queue = Queue::new(BOUNDS);
        assert_eq!(queue.wait(1, 10, "at once", false), Some("at once"));
        fill(&mut queue, false);
        assert_eq!(queue.wait(1, 10, "first", false), None);
        assert_eq!(queue.wait(2, 10, "second", false), None);
        assert_eq!(queue.leave(1), Some("first"));
        assert_eq!(queue.wait(1, 10, "again", false), None);
        for _ in 0..3 {
            assert!(queue.take(1, false).woken.is_empty());
        }
        assert_eq!(queue.take(1, false).woken, ["second", "again"]);
        assert!(queue.take(usize::MAX, false).woken.is_empty());
    }

    #[test]
    fn a_producer_of_a_large_push_is_told_when_that_fits() {
        let mut queue = Queue::new(BOUNDS);
        fill(&mut queue, false);
        assert_eq!(queue.wait(1, 100_000, "large", false), None);
        assert_eq!(queue.wait(2, 400, "middle", false), None);
        assert!(queue.take(40, false).woken.is_empty());
        assert_eq!(queue.take(1, false).woken, ["middle"]);
        assert_eq!(queue.take(usize::MAX, false).woken, ["large"]);
    }

    #[test]
    fn in_a_shortage_a_queue_takes_an_allowance() {
        let mut queue = Queue::new(BOUNDS);
        assert_eq!(fill(&mut queue, true), 2);
        assert_eq!(queue.wait(1, 10, "waits", true), None);
        assert!(queue.push(push(10), false).is_ok());
        // Another shortage does not wake a producer that would be refused.
        assert!(queue.take(1, true).woken.is_empty());
        assert_eq!(queue.take(1, true).woken, ["waits"]);
    }

    #[test]
    fn a_closed_queue_drops_its_pushes_and_tells_its_producers() {
        let mut queue = Queue::new(BOUNDS);
        fill(&mut queue, false);
        queue.wait(1, 10, "waits", false);
        queue.wait(2, 10, "left", false);
        assert_eq!(queue.leave(2), Some("left"));
        assert_eq!(queue.leave(2), None);
        let taken = queue.close();
        assert_eq!((taken.bytes, taken.woken), (8 * 74, vec!["waits"]));
        assert!(queue.is_empty() && queue.is_closed());
        assert_eq!(queue.push(push(1), false), Err(PushError::Closed));
        assert_eq!(queue.wait(1, 10, "told", false), Some("told"));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { length: usize, is_short: bool },
        Wait { number: u64, length: usize },
        Leave(u64),
        Take { bytes_min: usize, is_short: bool },
        Close,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let length = || prop_oneof![8 => 0..200usize, 1 => 0..2000usize];
        let step = prop_oneof![
            40 => (length(), any::<bool>())
                .prop_map(|(length, is_short)| Step::Push { length, is_short }),
            10 => (0..3u64, length()).prop_map(|(number, length)| Step::Wait { number, length }),
            2 => (0..3u64).prop_map(Step::Leave),
            20 => (0..300usize, any::<bool>())
                .prop_map(|(bytes_min, is_short)| Step::Take { bytes_min, is_short }),
            1 => Just(Step::Close),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Any steps: each accepted push comes out once and in order, the queue stays within its
        /// bounds, the connection is called exactly when it has emptied the queue, and a waiter is
        /// neither lost nor left while the queue is empty.
        #[test]
        fn nothing_is_lost_and_the_bounds_hold(steps in steps()) {
            let mut queue = Queue::new(BOUNDS);
            let (mut sent, mut received) = (0u64, 0u64);
            let mut calls = true;
            let mut waits = [None; 3];
            let mut tickets = 0u64;
            let mut is_closed = false;
            // Each push begins with its number, as far as it is long enough.
            let numbered = |number: u64, length: usize| {
                let bytes = number.to_le_bytes().into_iter().chain(std::iter::repeat(0));
                bytes.take(length).collect::<Vec<u8>>()
            };
            for step in steps {
                match step {
                    Step::Push { length, is_short } => {
                        let push = Bytes::from(numbered(sent, length));
                        match queue.push(push, is_short) {
                            Ok(is_called) => {
                                prop_assert!(!is_closed);
                                prop_assert_eq!(is_called, calls);
                                calls = false;
                                sent += 1;
                            }
                            Err(PushError::Closed) => prop_assert!(is_closed),
                            Err(PushError::Full) => prop_assert!(!queue.is_empty()),
                        }
                    }
                    Step::Wait { number, length } => {
                        tickets += 1;
                        let slot = &mut waits[number as usize];
                        prop_assert_eq!(queue.leave(number), slot.take());
                        *slot = match queue.wait(number, length, tickets, false) {
                            Some(ticket) => {
                                prop_assert_eq!(ticket, tickets);
                                None
                            }
                            None => Some(tickets),
                        };
                    }
                    Step::Leave(number) => {
                        prop_assert_eq!(queue.leave(number), waits[number as usize].take());
                    }
                    Step::Take { bytes_min, is_short } => {
                        let taken = queue.take(bytes_min, is_short);
                        let mut bytes = 0;
                        for push in &taken.pushes {
                            prop_assert_eq!(push, &numbered(received, push.len()));
                            received += 1;
                            bytes += push.len() + PUSH_BYTES;
                        }
                        prop_assert_eq!(bytes, taken.bytes);
                        calls |= queue.is_empty() && !is_closed;
                        for ticket in taken.woken {
                            let slot = waits.iter_mut().find(|slot| **slot == Some(ticket));
                            prop_assert!(slot.and_then(Option::take).is_some(), "{ticket}");
                        }
                    }
                    Step::Close => {
                        let taken = queue.close();
                        received += taken.pushes.len() as u64;
                        is_closed = true;
                        calls = false;
                        prop_assert_eq!(taken.woken.len(), waits.iter().flatten().count());
                        waits = [None; 3];
                    }
                }
                let is_large_one = queue.pushes.len() == 1;
                prop_assert!(queue.pushes.len() <= BOUNDS.pushes_max);
                prop_assert!(queue.bytes <= BOUNDS.bytes_max || is_large_one);
                let bytes: usize = queue.pushes.iter().map(|push| cost(push.len())).sum();
                prop_assert_eq!(queue.bytes, bytes);
                prop_assert_eq!(sent, received + queue.pushes.len() as u64);
                prop_assert_eq!(queue.waiting.len(), waits.iter().flatten().count());
                prop_assert!(!queue.is_empty() || queue.waiting.is_empty());
            }
        }
    }
}
