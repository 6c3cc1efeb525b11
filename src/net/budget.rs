//! One budget of bytes for the buffers of all clients together.
//!
//! Each connection charges what its session holds: unfinished input, the batch being executed, and
//! unread output. The replies to a read are reserved before their payloads are fetched, as large as
//! they are encoded, and stay reserved until the client has taken them. While there is no room for
//! them, the read waits its turn ([`room`](super::room)), and then is answered `busy`. Replies up
//! to [`REPLY_ALLOWANCE_BYTES`] are not reserved. Reserved replies take at most three quarters of
//! the budget, so that clients which do not read leave room for the input of others.
//!
//! For everything else the budget is not a wall but a line: nobody waits for bytes of others, so
//! nothing can deadlock. While it is crossed
//!
//! * a connection with more than [`INPUT_ALLOWANCE_BYTES`] of an unfinished request gives that up:
//!   the rest of it is skipped without being held, then answered `busy, try again`;
//! * a connection with more than [`OUTPUT_ALLOWANCE_BYTES`] of unread output is not read from and
//!   begins no batch until its client has taken half of that.
//!
//! While it is crossed or reads wait for room, a connection whose client takes next to nothing for
//! [`super::Limits::stall_timeout`] is closed, so that clients that never read cannot keep it full.
//!
//! So small requests of clients that read their replies are served at all times, and what is held
//! is at most the budget, the allowances for each connection that uses them, and what the workers
//! hold at that moment: a read, or the replies to one batch.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::room::{Bounds, Need, Queue, Ticket};
use crate::clock::Instant;

/// What a connection may hold of an unfinished request in any case. One read fits; twice as much
/// for each of 10,000 connections would be five times the default budget.
pub const INPUT_ALLOWANCE_BYTES: usize = 64 * 1024;

/// What a connection may hold of unread output in any case.
pub const OUTPUT_ALLOWANCE_BYTES: usize = 64 * 1024;

/// Replies to one batch up to which no room is reserved: what a connection may hold in any case.
/// Half of it costs reads of some KiB a lock each; at twice of it, they would exceed the allowance.
pub const REPLY_ALLOWANCE_BYTES: usize = OUTPUT_ALLOWANCE_BYTES;

/// Payload bytes fetched from one member at a time, unless it is one message: 0.1 s of a 1 Gbit/s
/// network. Half of it leaves a fast network idle between two large messages; twice of it keeps a
/// small read behind large ones for twice as long.
const LANE_BYTES_MAX: u64 = 16 << 20;

/// Reads that wait for room; more are answered `busy` at once. A quarter of the parked batches, so
/// that the rest is left for writes.
const WAITING_MAX: usize = 1024;

/// How long the budget counts as short after a read found no room: a client that was answered
/// `busy` tries again within it.
const SHORTAGE_MEMORY: Duration = Duration::from_secs(5);

/// The bytes charged by all connections and reserved for reads.
pub struct Budget {
    used: AtomicUsize,
    max: usize,
    /// Guards the queue alone. No owner is woken under it.
    queue: Mutex<Queue<Waiter>>,
    /// Whether reads wait: then bytes that are given back are looked at.
    is_awaited: AtomicBool,
    /// When a read last found no room, in nanoseconds of the clock; 0: never.
    short_at: AtomicU64,
}

/// A read that waits.
struct Waiter {
    /// Set under the queue's lock when it has its room.
    is_granted: Arc<AtomicBool>,
    reply_bytes: usize,
    wake: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.used(), self.max)
    }
}

impl Budget {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Arc<Budget> {
        Arc::new(Budget {
            used: AtomicUsize::new(0),
            max,
            queue: Mutex::new(Queue::new(Bounds {
                bytes_max: max / 4 * 3,
                lane_bytes_max: LANE_BYTES_MAX,
                waiting_max: WAITING_MAX,
            })),
            is_awaited: AtomicBool::new(false),
            short_at: AtomicU64::new(0),
        })
    }

    /// Whether more is charged than there is.
    pub fn is_crossed(&self) -> bool {
        self.used() > self.max
    }

    /// Whether bytes that a client does not take are wanted by others.
    pub fn is_short(&self, now: Instant) -> bool {
        let short_at = self.short_at.load(Ordering::Relaxed);
        let was_short = || now.since(Instant::from_nanos(short_at)) < SHORTAGE_MEMORY;
        self.is_crossed() || (short_at > 0 && was_short())
    }

    /// Bytes charged and reserved now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// A charge of nothing yet.
    pub fn charge(self: &Arc<Self>) -> Charge {
        let budget = Arc::clone(self);
        Charge { budget, bytes: 0 }
    }

    /// Asks for room for replies. `wake` is called when there is, perhaps at once, never under a
    /// lock of this; then [`Request::take`] has it. `None` if too many wait already.
    pub fn request(
        self: &Arc<Self>,
        need: Need,
        now: Instant,
        wake: impl FnOnce() + Send + 'static,
    ) -> Option<Request> {
        let is_granted = Arc::new(AtomicBool::new(false));
        let waiter = Waiter {
            is_granted: Arc::clone(&is_granted),
            reply_bytes: need.reply_bytes,
            wake: Box::new(wake),
        };
        let ticket = self.queue.lock().enter(need.clone(), waiter);
        // Before the bytes used are read: what is given back later looks at it.
        self.is_awaited.store(true, Ordering::SeqCst);
        if ticket.is_none() || self.grant() {
            self.short_at
                .store(now.as_nanos().max(1), Ordering::Relaxed);
        }
        Some(Request {
            budget: Arc::clone(self),
            need,
            ticket: ticket?,
            is_granted,
        })
    }

    /// Grants what has room now; says whether a read lacks bytes.
    fn grant(&self) -> bool {
        let mut queue = self.queue.lock();
        let granted = queue.grant(self.used());
        for waiter in &granted {
            self.used.fetch_add(waiter.reply_bytes, Ordering::SeqCst);
            waiter.is_granted.store(true, Ordering::SeqCst);
        }
        self.is_awaited.store(queue.waiting() > 0, Ordering::SeqCst);
        let lacks_bytes = queue.lacks_bytes();
        drop(queue);
        granted.into_iter().for_each(|waiter| (waiter.wake)());
        lacks_bytes
    }

    /// Bytes were given back.
    fn freed(&self) {
        if self.is_awaited.load(Ordering::SeqCst) {
            self.grant();
        }
    }
}

/// A read that asked for room. Dropped, it asks no longer, and gives back what it was granted.
pub struct Request {
    budget: Arc<Budget>,
    need: Need,
    ticket: Ticket,
    is_granted: Arc<AtomicBool>,
}

impl Request {
    /// The room, once it is granted.
    pub fn take(&mut self) -> Option<Reservation> {
        if !self.is_granted.swap(false, Ordering::SeqCst) {
            return None;
        }
        let Need {
            reply_bytes,
            fetches,
        } = std::mem::take(&mut self.need);
        Some(Reservation {
            budget: Arc::clone(&self.budget),
            bytes: reply_bytes,
            fetches,
        })
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let waited = self.budget.queue.lock().leave(self.ticket);
        match self.take() {
            Some(room) => drop(room),
            // It may have been in the way of others.
            None if waited => self.budget.freed(),
            None => {}
        }
    }
}

/// Room for the replies to one batch of reads; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
    /// What is being fetched over each lane.
    fetches: Vec<(u64, u64)>,
}

impl Reservation {
    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All is fetched: others may use the lanes.
    pub fn end_fetches(&mut self) {
        if !self.fetches.is_empty() {
            let fetches = std::mem::take(&mut self.fetches);
            self.budget.queue.lock().end_fetches(&fetches);
            self.budget.freed();
        }
    }

    /// Gives back what is above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if bytes < self.bytes {
            let less = self.bytes - bytes;
            self.bytes = bytes;
            self.budget.queue.lock().give_back(less);
            self.budget.used.fetch_sub(less, Ordering::SeqCst);
            self.budget.freed();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.end_fetches();
        self.shrink_to(0);
    }
}

/// What one connection charges; given back when dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Charges `bytes` from now on, instead of what was charged before.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            self.budget.used.fetch_add(more, Ordering::SeqCst);
        } else if bytes < self.bytes {
            let less = self.bytes - bytes;
            let before = self.budget.used.fetch_sub(less, Ordering::SeqCst);
            assert!(before >= less, "more was given back than charged");
        }
        let is_less = bytes < self.bytes;
        self.bytes = bytes;
        if is_less {
            self.budget.freed();
        }
    }

    /// Whether the budget is crossed.
    pub fn is_crossed(&self) -> bool {
        self.budget.is_crossed()
    }

    /// Whether others want bytes of the budget.
    pub fn is_short(&self, now: Instant) -> bool {
        self.budget.is_short(now)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_add_up_and_are_given_back() {
        let budget = Budget::new(10);
        let (mut a, mut b) = (budget.charge(), budget.charge());
        a.set(6);
        b.set(4);
        assert!(!budget.is_crossed());
        b.set(5);
        assert!(a.is_crossed());
        drop(a);
        assert_eq!(budget.used(), 5);
        b.set(1);
        assert_eq!(budget.used(), 1);
    }

    fn need(reply_bytes: usize) -> Need {
        Need {
            reply_bytes,
            fetches: vec![(1, 1)],
        }
    }

    #[test]
    fn a_read_waits_until_clients_have_taken_what_is_in_its_way() {
        let now = Instant::from_nanos(1);
        let budget = Budget::new(400);
        let mut charge = budget.charge();
        charge.set(200);
        let mut first = budget.request(need(100), now, || ()).expect("few wait");
        let first = first.take().expect("there is room");
        assert!(!budget.is_short(now));
        let woken = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&woken);
        let wake = move || flag.store(true, Ordering::SeqCst);
        let mut second = budget.request(need(50), now, wake).expect("few wait");
        assert!(second.take().is_none() && budget.is_short(now));
        assert!(!budget.is_short(now + SHORTAGE_MEMORY), "it is over");
        charge.set(100);
        assert!(woken.load(Ordering::SeqCst));
        let mut second = second.take().expect("it was woken");
        assert_eq!(budget.used(), 250);
        drop(first);
        second.shrink_to(10);
        assert_eq!(budget.used(), 110);
        drop((second, charge));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_read_that_gives_up_leaves_its_place_and_what_it_was_granted() {
        let now = Instant::from_nanos(1);
        let budget = Budget::new(400);
        let granted = budget.request(need(300), now, || ()).expect("few wait");
        let waits = budget.request(need(301), now, || ()).expect("few wait");
        let mut last = budget.request(need(302), now, || ()).expect("few wait");
        drop(granted);
        assert_eq!(budget.used(), 301, "the next one has its room");
        drop(waits);
        assert_eq!(budget.used(), 302);
        assert!(last.take().is_some());
        drop(last);
        assert_eq!(budget.used(), 0);
    }
}
