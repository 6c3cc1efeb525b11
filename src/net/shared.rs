//! What the threads of one server share: the places of connections, counters, and the stop.
//!
//! A connection is owned by one worker; here is only the number of its place, the worker, and since
//! when it is idle, so that the thread that accepts can find one that is to give way
//! ([`places`](super::places)).
//!
//! Locks, none held while another is taken: the free places and the newcomers that were given back,
//! for a move; the loads, for a look at each once in a window of a worker. Everything else is read
//! and written without a lock; a worker looks again at what it reads here before it acts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::budget::Budget;
use super::helpers::Helpers;
use super::loads::{Loads, Surplus, Window};
use super::mailbox::{Letter, Mailbox};
use super::newcomer::Newcomer;
use super::places::{Place, Places, Waiting};
use super::turns::{TurnTimes, Turns};
use super::worker::Entry;
use super::{Call, Handler, Limits};
use crate::clock::{Clock, Instant};
use crate::protocol::admission::Admission;

/// What a time holds that is not known: of a stop while the server runs, of a connection that is
/// busy.
const NEVER: u64 = u64::MAX;

/// So many places with neighbouring numbers lie apart in memory. Their workers write what is said
/// of them with each request; were they in one line of the processors' caches, they would slow each
/// other down.
const SPREAD: usize = 64;

/// What the threads of one server share.
pub struct Shared {
    /// Who permits and counts the batches of clients.
    pub admission: Arc<dyn Admission>,
    /// Who executes batches.
    pub handler: Arc<dyn Handler>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The limits.
    pub limits: Limits,
    /// Bytes held for all clients.
    pub budget: Arc<Budget>,
    /// Who computes what takes long.
    pub helpers: Helpers,
    /// What each place is for.
    pub places: Places,
    /// Of each worker.
    workers: Vec<WorkerHandle>,
    /// How busy each worker is.
    loads: Mutex<Loads>,
    /// Of each place; see [`Shared::taken`].
    taken: Vec<Taken>,
    /// Numbers of free places, for each [`Place`].
    free: Mutex<[Vec<usize>; 3]>,
    /// Newcomers for which no connection gave way, for the thread that accepts.
    returned: Mutex<Vec<Newcomer>>,
    /// Wakes the thread that accepts.
    acceptor: mio::Waker,
    /// Connections in places below the limit.
    open: AtomicUsize,
    /// What a stop waits for: all connections, those being refused included, all calls, and the
    /// thread that accepts, which counts as one while it runs.
    all: AtomicUsize,
    /// The worker of the next call.
    next: AtomicUsize,
    /// Batches under way.
    pub under_way: AtomicUsize,
    /// When the stop is over, in nanoseconds of the clock; [`NEVER`] while there is none.
    stop_at: AtomicU64,
}

/// A worker as others see it. Aligned, as each worker writes its own all the time: two of them in
/// one line of the processors' caches would slow each other down.
#[repr(align(128))]
struct WorkerHandle {
    /// What the worker is told.
    mailbox: Arc<Mailbox>,
    /// Connections that it owns, or that are on their way to it.
    connections: AtomicUsize,
    /// Since when it sleeps, in nanoseconds of the clock; [`NEVER`] while it is awake.
    asleep_since: AtomicU64,
    /// How long its turns took.
    turns: TurnTimes,
}

/// The connection in a place.
struct Taken {
    /// The number of its worker.
    worker: AtomicUsize,
    /// Since when it waits and may give way (see [`Waiting`]), in nanoseconds of the clock;
    /// [`NEVER`] if it may not. While a newcomer is on its way to a reserved place, when that was
    /// accepted.
    since: AtomicU64,
}

impl Shared {
    /// No connection yet.
    pub fn new(
        (admission, handler): (Arc<dyn Admission>, Arc<dyn Handler>),
        clock: Arc<dyn Clock>,
        (limits, budget): (Limits, Arc<Budget>),
        (mailboxes, helpers): (Vec<Arc<Mailbox>>, Helpers),
        acceptor: mio::Waker,
    ) -> Shared {
        let places = Places::new(limits.connections_max);
        let kinds = [Place::Ordinary, Place::Reserved, Place::Refusal];
        let free = kinds.map(|place| places.numbers(place).rev().collect());
        let taken = || Taken {
            worker: AtomicUsize::new(0),
            since: AtomicU64::new(NEVER),
        };
        let worker = |mailbox| WorkerHandle {
            mailbox,
            connections: AtomicUsize::new(0),
            asleep_since: AtomicU64::new(NEVER),
            turns: TurnTimes::default(),
        };
        let loads = Loads::new(mailboxes.len());
        Shared {
            admission,
            handler,
            clock,
            limits,
            budget,
            helpers,
            places,
            workers: mailboxes.into_iter().map(worker).collect(),
            loads: Mutex::new(loads),
            taken: (0..places.count().next_multiple_of(SPREAD))
                .map(|_| taken())
                .collect(),
            free: Mutex::new(free),
            returned: Mutex::default(),
            acceptor,
            open: AtomicUsize::new(0),
            all: AtomicUsize::new(1),
            next: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            stop_at: AtomicU64::new(NEVER),
        }
    }

    /// Connections open now, without those being refused.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Takes a free place for a connection of the worker with this number.
    pub fn take_free(&self, place: Place, worker: usize) -> Option<usize> {
        let number = self.free.lock()[place as usize].pop()?;
        if place != Place::Refusal {
            self.open.fetch_add(1, Ordering::SeqCst);
        }
        self.all.fetch_add(1, Ordering::SeqCst);
        self.taken(number).worker.store(worker, Ordering::SeqCst);
        self.workers[worker]
            .connections
            .fetch_add(1, Ordering::Relaxed);
        Some(number)
    }

    /// Gives a place back.
    pub fn free(&self, number: usize) {
        let place = self.places.of(number);
        let taken = self.taken(number);
        taken.since.store(NEVER, Ordering::SeqCst);
        let worker = taken.worker.load(Ordering::SeqCst);
        self.workers[worker]
            .connections
            .fetch_sub(1, Ordering::Relaxed);
        self.free.lock()[place as usize].push(number);
        if place != Place::Refusal {
            self.open.fetch_sub(1, Ordering::SeqCst);
        }
        self.one_less();
    }

    fn one_less(&self) {
        if self.all.fetch_sub(1, Ordering::SeqCst) == 1 && self.is_stopping() {
            self.wake_all();
        }
    }

    /// Hands a call to the workers in turn; ends it if the server is stopping.
    pub fn submit(&self, call: Call) {
        // Before the look at the stop: workers that have not seen the call by then wait for it.
        self.all.fetch_add(1, Ordering::SeqCst);
        if self.is_stopping() {
            (call.done)(None);
            return self.one_less();
        }
        let worker = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        self.workers[worker].mailbox.put(Letter::Call(call));
    }

    /// The thread that accepts hands on no more newcomers.
    pub fn accepting_ended(&self) {
        drop(self.returned());
        self.one_less();
    }

    /// A call is answered.
    pub fn call_ended(&self) {
        self.one_less();
    }

    /// The worker with the fewest connections.
    pub fn least_loaded(&self) -> usize {
        let workers = self.workers.iter().enumerate();
        let least = workers.min_by_key(|(_, worker)| worker.connections.load(Ordering::Relaxed));
        least.map_or(0, |(number, _)| number)
    }

    /// A worker sleeps from now on; with `None` it is awake.
    pub fn sleeps(&self, worker: usize, since: Option<Instant>) {
        let since = since.map_or(NEVER, Instant::as_nanos);
        let worker = &self.workers[worker];
        worker.asleep_since.store(since, Ordering::Relaxed);
    }

    /// Takes the report of a worker whose window has ended, and says what it is to hand over.
    pub fn report_load(&self, worker: usize, window: Window) -> Option<Surplus> {
        let is_asleep = |number: usize| {
            let since = self.workers[number].asleep_since.load(Ordering::Relaxed);
            since <= window.began.as_nanos()
        };
        self.loads.lock().report(worker, window, is_asleep)
    }

    /// How long the turns of this worker took.
    pub fn turns(&self, worker: usize) -> &TurnTimes {
        &self.workers[worker].turns
    }

    /// How long the turns of all workers took.
    pub fn all_turns(&self) -> Turns {
        Turns::of(self.workers.iter().map(|desk| &desk.turns))
    }

    /// Hands a connection over from one worker to another.
    pub fn pass_on(&self, place: usize, from: usize, to: usize, entry: Box<Entry>) {
        self.taken(place).worker.store(to, Ordering::SeqCst);
        let [from, to] = [from, to].map(|worker| &self.workers[worker]);
        from.connections.fetch_sub(1, Ordering::Relaxed);
        to.connections.fetch_add(1, Ordering::Relaxed);
        to.mailbox.put(Letter::TakeOver(place, entry));
    }

    /// Connections of each worker.
    pub fn connections(&self) -> Vec<usize> {
        let count = |worker: &WorkerHandle| worker.connections.load(Ordering::Relaxed);
        self.workers.iter().map(count).collect()
    }

    /// Hands a newcomer to the worker of its place.
    pub fn hand_on(&self, newcomer: Newcomer) {
        let worker = self.taken(newcomer.place).worker.load(Ordering::SeqCst);
        self.workers[worker].mailbox.put(Letter::Own(newcomer));
    }

    /// Takes back a newcomer whose place is not to be had: the connection there waits since then,
    /// or with `None` does not wait. The thread that accepts looks for another place, unless the
    /// server is stopping: the newcomer is closed then.
    pub fn give_back(&self, newcomer: Newcomer, since: Option<Instant>) {
        let claimed = self.claimed(newcomer.place, newcomer.accepted_at);
        let since = since.map_or(NEVER, Instant::as_nanos);
        self.replace_since(newcomer.place, claimed, since);
        if self.is_stopping() {
            return;
        }
        self.returned.lock().push(newcomer);
        self.wake_acceptor();
    }

    /// The newcomers that were given back.
    pub fn returned(&self) -> Vec<Newcomer> {
        std::mem::take(&mut *self.returned.lock())
    }

    /// The connection in this place waits since then. It may give way from now on, unless a
    /// newcomer is on its way to the place already.
    pub fn begins_to_wait(&self, number: usize, since: Instant) {
        self.replace_since(number, NEVER, since.as_nanos());
    }

    /// The connection in this place, which waited since then, waits no longer.
    pub fn ends_to_wait(&self, number: usize, since: Instant) {
        self.replace_since(number, since.as_nanos(), NEVER);
    }

    /// Claims this place, whose connection waits since then, for a newcomer that was accepted at
    /// `accepted_at`; false if that connection does not wait since then any more.
    ///
    /// The worker decides whether the connection gives way when the newcomer arrives there. Until
    /// then an ordinary place is claimed for nobody else; a reserved one is that of the newcomer
    /// already, and can be claimed for the next one as such: many come together.
    pub fn claim(&self, number: usize, since: Instant, accepted_at: Instant) -> bool {
        let claimed = self.claimed(number, accepted_at);
        self.replace_since(number, since.as_nanos(), claimed)
    }

    /// The time of a place that is claimed for a newcomer that was accepted at `accepted_at`.
    fn claimed(&self, number: usize, accepted_at: Instant) -> u64 {
        match self.places.of(number) {
            Place::Reserved => accepted_at.as_nanos(),
            Place::Ordinary | Place::Refusal => NEVER,
        }
    }

    fn taken(&self, number: usize) -> &Taken {
        let apart = self.taken.len() / SPREAD;
        &self.taken[number % SPREAD * apart + number / SPREAD]
    }

    /// Changes the time of a place if it is `current`: the thread that accepts and the worker of
    /// the place both write it, and neither undoes what the other did meanwhile.
    fn replace_since(&self, number: usize, current: u64, new: u64) -> bool {
        let since = &self.taken(number).since;
        let order = Ordering::SeqCst;
        since.compare_exchange(current, new, order, order).is_ok()
    }

    /// Connections in places of this kind that may give way.
    pub fn waiting(&self, place: Place) -> Vec<Waiting> {
        let since = |number: usize| match self.taken(number).since.load(Ordering::SeqCst) {
            NEVER => None,
            since => Some((Instant::from_nanos(since), number)),
        };
        self.places.numbers(place).filter_map(since).collect()
    }

    /// Begins the stop, over at `deadline` at the latest.
    pub fn begin_stop(&self, deadline: Instant) {
        let at = deadline.as_nanos().min(NEVER - 1);
        self.stop_at.store(at, Ordering::SeqCst);
        self.wake_all();
    }

    /// When the stop is over, if the server is stopping.
    pub fn stop_deadline(&self) -> Option<Instant> {
        let at = self.stop_at.load(Ordering::SeqCst);
        (at != NEVER).then_some(Instant::from_nanos(at))
    }

    /// Whether the server is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stop_deadline().is_some()
    }

    /// Closes what is still on its way to a thread when the threads of a server have stopped.
    pub fn close(&self) {
        self.workers
            .iter()
            .for_each(|worker| worker.mailbox.close());
        drop(self.returned());
    }

    /// Whether a stop is over: all connections are closed, or its time is.
    pub fn has_stopped(&self, now: Instant) -> bool {
        let deadline = self.stop_deadline();
        deadline.is_some_and(|deadline| self.all.load(Ordering::SeqCst) == 0 || now >= deadline)
    }

    /// How long a client may take nothing before its connection may be dropped: while stopping, no
    /// longer than a closing connection is drained.
    pub fn stall_timeout(&self) -> Duration {
        let limits = &self.limits;
        if self.is_stopping() {
            return limits.stall_timeout.min(limits.linger);
        }
        limits.stall_timeout
    }

    fn wake_all(&self) {
        self.workers.iter().for_each(|worker| worker.mailbox.wake());
        self.wake_acceptor();
    }

    fn wake_acceptor(&self) {
        if let Err(error) = self.acceptor.wake() {
            log::error!("waking the thread that accepts failed: {error}");
        }
    }
}
