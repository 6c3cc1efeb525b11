//! One budget of bytes for the buffers of all clients together.
//!
//! Each connection charges what its session holds: unfinished input, the batch being executed, and
//! unread output, if that is more than [`UNCHARGED_BYTES`]; and what waits in its outbox
//! ([`pusher`](super::pusher)).
//!
//! The replies to a read are reserved before their payloads are fetched, as large as they are
//! encoded, and stay reserved until the client has taken them. While there is no room for them, the
//! read waits its turn ([`room`](super::room)), and then is answered `busy`. Replies up to
//! [`REPLY_ALLOWANCE_BYTES`] are not reserved. Reserved replies take at most three quarters of
//! the budget, so that clients which do not read leave room for the input of others.
//!
//! A request of which more than [`INPUT_ALLOWANCE_BYTES`] have come has its room reserved before
//! more of it is read, for all of its bytes. While there is none its client is not read from; such
//! requests are read in turn, as reads are ([`room`](super::room)), one of them in any case, and up
//! to half of the budget: more would wait for their copies, which are as long, for too long. One
//! that waits for longer than [`super::Limits::stall_timeout`] is given up: the rest of it is
//! skipped without being held, then answered `busy, try again`. So is one whose client sends next
//! to nothing for as long while others want its room.
//!
//! For everything else the budget is not a wall but a line: nobody who holds bytes waits for those
//! of others, so nothing can deadlock. While it is crossed
//!
//! * a connection with more than [`OUTPUT_ALLOWANCE_BYTES`] of unread output is not read from and
//!   begins no batch until its client has taken half of that;
//! * an outbox takes pushes up to an allowance only ([`outbox`](super::outbox)).
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

/// So much is not charged: what a connection holds while it has one small request executed. All
/// workers would write the sum for each such request, and wait for each other's caches.
pub const UNCHARGED_BYTES: usize = 1024;

/// What a connection may hold of unread output in any case.
pub const OUTPUT_ALLOWANCE_BYTES: usize = 64 * 1024;

/// Replies to one batch up to which no room is reserved: what a connection may hold in any case.
/// Half of it costs reads of some KiB a lock each; at twice of it, they would exceed the allowance.
pub const REPLY_ALLOWANCE_BYTES: usize = OUTPUT_ALLOWANCE_BYTES;

/// Payload bytes fetched from one member at a time, unless it is one message. Reads of 1 MiB are as
/// fast as with 16 times as much, to 7 %: a reply leaves for its client while the next one is
/// fetched. With 16 times as much such readers left a quarter of their rate to 64 writers beside
/// them, instead of more than half.
const LANE_BYTES_MAX: u64 = 1 << 20;

/// Reads that wait for room, and as many unfinished requests; more are answered `busy` at once. A
/// quarter of the parked batches, so that the rest is left for writes.
const WAITING_MAX: usize = 1024;

/// How long the budget counts as short after a read found no room: a client that was answered
/// `busy` tries again within it.
const SHORTAGE_MEMORY: Duration = Duration::from_secs(5);

/// The bytes charged by all connections and reserved for replies and requests.
pub struct Budget {
    used: AtomicUsize,
    max: usize,
    replies: Room,
    requests: Room,
    /// When a read or an unfinished request last found no room, in nanoseconds of the clock; 0:
    /// never.
    short_at: AtomicU64,
}

/// A part of the budget that is reserved before it is used.
struct Room {
    /// Guards the queue alone. No owner is woken under it.
    queue: Mutex<Queue<Waiter>>,
    /// Whether somebody waits: then bytes that are given back are looked at.
    is_awaited: AtomicBool,
}

impl Room {
    fn new(bounds: Bounds) -> Room {
        Room {
            queue: Mutex::new(Queue::new(bounds)),
            is_awaited: AtomicBool::new(false),
        }
    }
}

/// What room is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Reply,
    Request,
}

/// Who waits for room.
struct Waiter {
    /// Set under the queue's lock when it has its room.
    is_granted: Arc<AtomicBool>,
    bytes: usize,
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
            replies: Room::new(Bounds {
                bytes_max: max / 4 * 3,
                lane_bytes_max: LANE_BYTES_MAX,
                waiting_max: WAITING_MAX,
            }),
            requests: Room::new(Bounds {
                bytes_max: max / 2,
                lane_bytes_max: u64::MAX,
                waiting_max: WAITING_MAX,
            }),
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
        let is_awaited = || self.requests.is_awaited.load(Ordering::SeqCst);
        self.is_crossed() || is_awaited() || (short_at > 0 && was_short())
    }

    fn room(&self, of: Use) -> &Room {
        match of {
            Use::Reply => &self.replies,
            Use::Request => &self.requests,
        }
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
        self.ask(Use::Reply, need, now, wake)
    }

    /// The same for a request of which no more than [`INPUT_ALLOWANCE_BYTES`] are held yet.
    pub fn request_for_input(
        self: &Arc<Self>,
        bytes: usize,
        now: Instant,
        wake: impl FnOnce() + Send + 'static,
    ) -> Option<Request> {
        let need = Need {
            reply_bytes: bytes,
            fetches: Vec::new(),
        };
        self.ask(Use::Request, need, now, wake)
    }

    fn ask(
        self: &Arc<Self>,
        of: Use,
        need: Need,
        now: Instant,
        wake: impl FnOnce() + Send + 'static,
    ) -> Option<Request> {
        let is_granted = Arc::new(AtomicBool::new(false));
        let waiter = Waiter {
            is_granted: Arc::clone(&is_granted),
            bytes: need.reply_bytes,
            wake: Box::new(wake),
        };
        let room = self.room(of);
        let ticket = room.queue.lock().enter(need.clone(), waiter);
        // Before the bytes used are read: what is given back later looks at it.
        room.is_awaited.store(true, Ordering::SeqCst);
        if ticket.is_none() || self.grant(of) {
            self.short_at
                .store(now.as_nanos().max(1), Ordering::Relaxed);
        }
        Some(Request {
            budget: Arc::clone(self),
            of,
            need,
            ticket: ticket?,
            is_granted,
        })
    }

    /// Grants what has room now; says whether the next one lacks bytes.
    fn grant(&self, of: Use) -> bool {
        let room = self.room(of);
        let mut queue = room.queue.lock();
        let granted = queue.grant(self.used());
        for waiter in &granted {
            self.used.fetch_add(waiter.bytes, Ordering::SeqCst);
            waiter.is_granted.store(true, Ordering::SeqCst);
        }
        room.is_awaited.store(queue.waiting() > 0, Ordering::SeqCst);
        let lacks_bytes = queue.lacks_bytes();
        drop(queue);
        granted.into_iter().for_each(|waiter| (waiter.wake)());
        lacks_bytes
    }

    /// Charges some bytes. Locks nothing.
    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Gives charged bytes back.
    pub(super) fn give_back(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "more was given back than charged");
        self.freed();
    }

    /// Bytes were given back.
    fn freed(&self) {
        for of in [Use::Request, Use::Reply] {
            if self.room(of).is_awaited.load(Ordering::SeqCst) {
                self.grant(of);
            }
        }
    }
}

/// A read or an unfinished request that asked for room. Dropped, it asks no longer, and gives back
/// what it was granted.
pub struct Request {
    budget: Arc<Budget>,
    of: Use,
    need: Need,
    ticket: Ticket,
    is_granted: Arc<AtomicBool>,
}

impl Request {
    /// Whether [`Request::take`] has the room.
    pub fn is_granted(&self) -> bool {
        self.is_granted.load(Ordering::SeqCst)
    }

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
            of: self.of,
            bytes: reply_bytes,
            fetches,
        })
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let queue = &self.budget.room(self.of).queue;
        let waited = queue.lock().leave(self.ticket);
        match self.take() {
            Some(room) => drop(room),
            // It may have been in the way of others.
            None if waited => self.budget.freed(),
            None => {}
        }
    }
}

/// Room for the replies to one batch of reads, or for a request; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    of: Use,
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
            let queue = &self.budget.room(self.of).queue;
            queue.lock().end_fetches(&fetches);
            self.budget.freed();
        }
    }

    /// Gives back what is above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if bytes < self.bytes {
            let less = self.bytes - bytes;
            self.bytes = bytes;
            let queue = &self.budget.room(self.of).queue;
            queue.lock().give_back(less);
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
    /// As [`Charge::set`], but nothing for [`UNCHARGED_BYTES`] or less.
    pub fn set_unless_small(&mut self, bytes: usize) {
        let is_small = bytes <= UNCHARGED_BYTES;
        self.set(if is_small { 0 } else { bytes });
    }

    /// Charges `bytes` from now on, instead of what was charged before.
    pub fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes > before {
            self.budget.add(bytes - before);
        } else if bytes < before {
            self.budget.give_back(before - bytes);
        }
    }

    /// Whether the budget is crossed.
    pub fn is_crossed(&self) -> bool {
        self.budget.is_crossed()
    }

    /// The budget that is charged.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// As [`Budget::request_for_input`].
    pub fn request_for_input(
        &self,
        bytes: usize,
        now: Instant,
        wake: impl FnOnce() + Send + 'static,
    ) -> Option<Request> {
        self.budget.request_for_input(bytes, now, wake)
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
