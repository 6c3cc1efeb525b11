//! Where a connection is while no worker has it: the slot table, the timers, the job queue.
//!
//! A slot's lock decides every hand-over, so none is lost and none happens twice:
//!
//! * A worker gives a connection back by registering its socket and filling the slot under one hold
//!   of the lock. An event that comes earlier finds the slot `Taken` and is dropped, which is safe:
//!   registering again raises it again if it still holds.
//! * A wake-up that comes while a batch is being armed is noted in `Arming`, and the worker goes on
//!   at once instead of parking.
//! * Each stay in a slot has a ticket of its own. A wake-up or timer of an earlier stay has another
//!   ticket and does nothing.
//!
//! Lock order: a slot, then the timers; nothing else is locked under either. Under a slot's lock
//! the socket is registered, a system call that does not block.
//!
//! The job queue has a place for every slot and every worker's end. A connection is queued once at
//! most, as it is moved into its job, so the queue cannot be full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use mio::{Registry, Token};
use parking_lot::Mutex;

use super::budget::Budget;
use super::connection::Connection;
use super::{Handler, Limits, Parked, Waker};
use crate::clock::{Clock, Instant};
use crate::protocol::Sessions;

/// Slots beyond the connection limit, for those being told that it is reached. When they are used
/// up too, a connection is closed without a word.
const REFUSALS_MAX: usize = 256;

/// What `stop_at` holds while the server is not stopping.
const RUNNING: u64 = u64::MAX;

/// What a worker is to do.
pub enum Job {
    /// Work on a connection, first on its parked batch if it has one.
    Run {
        /// Where it belongs.
        slot: usize,
        /// The connection.
        connection: Box<Connection>,
        /// What it was parked for.
        batch: Option<Box<dyn Parked>>,
    },
    /// End the thread.
    End,
}

/// A deadline: ordered by time, named by the slot and the stay in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Timer {
    at: Instant,
    slot: usize,
    ticket: u64,
}

enum Slot {
    /// No connection.
    Free,
    /// In the job queue or with a worker.
    Taken,
    /// With a worker that hands out its waker.
    Arming { ticket: u64, is_woken: bool },
    /// Waits for its socket, and for its timer if it has one.
    Idle {
        connection: Box<Connection>,
        timer: Option<Timer>,
    },
    /// Waits for its batch.
    Parked {
        connection: Box<Connection>,
        batch: Box<dyn Parked>,
        timer: Timer,
    },
}

/// What the threads of one server share.
pub struct Shared {
    /// Who executes batches.
    pub handler: Arc<dyn Handler>,
    /// Makes sessions.
    pub sessions: Arc<dyn Sessions>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The limits.
    pub limits: Limits,
    /// Bytes held for all clients.
    pub budget: Arc<Budget>,
    slots: Vec<Mutex<Slot>>,
    /// Numbers of free slots: below the connection limit, and from it on for refusals.
    free: Mutex<[Vec<usize>; 2]>,
    timers: Mutex<BTreeSet<Timer>>,
    jobs: Sender<Job>,
    registry: Registry,
    poll_waker: mio::Waker,
    next_ticket: AtomicU64,
    /// Connections in slots below the limit.
    open: AtomicUsize,
    /// All connections, those being refused included.
    all: AtomicUsize,
    parked: AtomicUsize,
    /// When the stop is over, in nanoseconds of the clock, or [`RUNNING`].
    stop_at: AtomicU64,
}

/// How many jobs there can be.
pub fn jobs_max(limits: &Limits) -> usize {
    limits.connections_max + REFUSALS_MAX + limits.workers
}

impl Shared {
    /// An empty table.
    pub fn new(
        (handler, sessions): (Arc<dyn Handler>, Arc<dyn Sessions>),
        clock: Arc<dyn Clock>,
        limits: Limits,
        jobs: Sender<Job>,
        (registry, poll_waker): (Registry, mio::Waker),
    ) -> Shared {
        let count = limits.connections_max + REFUSALS_MAX;
        let free = [
            (0..limits.connections_max).rev().collect(),
            (limits.connections_max..count).rev().collect(),
        ];
        Shared {
            handler,
            sessions,
            clock,
            budget: Budget::new(limits.budget_bytes),
            limits,
            slots: (0..count).map(|_| Mutex::new(Slot::Free)).collect(),
            free: Mutex::new(free),
            timers: Mutex::new(BTreeSet::new()),
            jobs,
            registry,
            poll_waker,
            next_ticket: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            all: AtomicUsize::new(0),
            parked: AtomicUsize::new(0),
            stop_at: AtomicU64::new(RUNNING),
        }
    }

    /// Connections open now, without those being refused.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// All connections, those being refused included.
    pub fn all(&self) -> usize {
        self.all.load(Ordering::SeqCst)
    }

    /// Batches parked now.
    pub fn parked(&self) -> usize {
        self.parked.load(Ordering::SeqCst)
    }

    /// Takes a slot for a new connection, below the connection limit or for a refusal.
    pub fn reserve(&self, is_refused: bool) -> Option<usize> {
        let slot = self.free.lock()[usize::from(is_refused)].pop()?;
        if !is_refused {
            self.open.fetch_add(1, Ordering::SeqCst);
        }
        self.all.fetch_add(1, Ordering::SeqCst);
        let before = std::mem::replace(&mut *self.slots[slot].lock(), Slot::Taken);
        assert!(matches!(before, Slot::Free), "a free slot is in use");
        Some(slot)
    }

    /// Queues a connection that is in no slot.
    pub fn enqueue(
        &self,
        slot: usize,
        connection: Box<Connection>,
        batch: Option<Box<dyn Parked>>,
    ) {
        self.send(Job::Run {
            slot,
            connection,
            batch,
        });
    }

    /// Frees the slot of a connection that is closed.
    pub fn close(&self, slot: usize, connection: Box<Connection>) {
        drop(connection);
        *self.slots[slot].lock() = Slot::Free;
        let is_refused = slot >= self.limits.connections_max;
        self.free.lock()[usize::from(is_refused)].push(slot);
        if !is_refused {
            self.open.fetch_sub(1, Ordering::SeqCst);
        }
        self.all.fetch_sub(1, Ordering::SeqCst);
        if self.is_stopping() {
            self.wake_poller();
        }
    }

    /// Gives a connection back until its socket is ready or `at` has come. Comes back to the caller
    /// if the socket cannot be registered, or if the server is stopping and nothing is to be sent.
    pub fn give_back(
        &self,
        number: usize,
        mut connection: Box<Connection>,
        at: Option<Instant>,
    ) -> Result<(), Box<Connection>> {
        let mut slot = self.slots[number].lock();
        // Read under the lock: either this sees the stop, or the sweep sees this slot filled.
        let is_over = self.is_stopping() && !connection.has_output();
        let token = Token(number);
        if is_over || connection.register(&self.registry, token).is_err() {
            return Err(connection);
        }
        let timer = at.map(|at| self.add_timer(at, number, self.ticket()));
        *slot = Slot::Idle { connection, timer };
        Ok(())
    }

    /// Parks a connection with its batch. Comes back to the caller if it was woken meanwhile.
    pub fn park(
        self: &Arc<Self>,
        number: usize,
        connection: Box<Connection>,
        mut batch: Box<dyn Parked>,
    ) -> Option<(Box<Connection>, Box<dyn Parked>)> {
        let ticket = self.ticket();
        let at = batch.deadline();
        let is_woken = false;
        *self.slots[number].lock() = Slot::Arming { ticket, is_woken };
        batch.arm(Waker {
            shared: Arc::clone(self),
            slot: number,
            ticket,
        });
        let mut slot = self.slots[number].lock();
        if matches!(*slot, Slot::Arming { is_woken: true, .. }) {
            *slot = Slot::Taken;
            return Some((connection, batch));
        }
        self.parked.fetch_add(1, Ordering::SeqCst);
        let timer = self.add_timer(at, number, ticket);
        *slot = Slot::Parked {
            connection,
            batch,
            timer,
        };
        None
    }

    /// Queues the batch that was parked under `ticket`, if it still is.
    pub fn wake(&self, number: usize, ticket: u64) {
        let mut slot = self.slots[number].lock();
        match &mut *slot {
            Slot::Arming {
                ticket: current,
                is_woken,
            } if *current == ticket => *is_woken = true,
            Slot::Parked { timer, .. } if timer.ticket == ticket => self.run(number, &mut slot),
            Slot::Free
            | Slot::Taken
            | Slot::Arming { .. }
            | Slot::Idle { .. }
            | Slot::Parked { .. } => {}
        }
    }

    /// The socket of an idle connection is ready.
    pub fn ready(&self, number: usize) {
        let Some(slot) = self.slots.get(number) else {
            return;
        };
        let mut slot = slot.lock();
        if matches!(*slot, Slot::Idle { .. }) {
            self.run(number, &mut slot);
        }
    }

    /// Queues what is due at `now`, and says when the next timer is.
    pub fn run_timers(&self, now: Instant) -> Option<Instant> {
        loop {
            let timer = {
                let mut timers = self.timers.lock();
                let first = *timers.first()?;
                if first.at > now {
                    return Some(first.at);
                }
                timers.remove(&first);
                first
            };
            let mut slot = self.slots[timer.slot].lock();
            let is_current = match &*slot {
                Slot::Parked { timer: current, .. } => *current == timer,
                Slot::Idle { timer: current, .. } => *current == Some(timer),
                Slot::Free | Slot::Taken | Slot::Arming { .. } => false,
            };
            if is_current {
                self.run(timer.slot, &mut slot);
            }
        }
    }

    /// Queues all idle connections, so that workers close them.
    pub fn sweep_idle(&self) {
        for number in 0..self.slots.len() {
            self.ready(number);
        }
    }

    /// Drops all connections that are idle or parked.
    pub fn drop_all(&self) {
        for (number, slot) in self.slots.iter().enumerate() {
            let waiting = {
                let mut slot = slot.lock();
                match &*slot {
                    Slot::Idle { .. } | Slot::Parked { .. } => {
                        std::mem::replace(&mut *slot, Slot::Taken)
                    }
                    Slot::Free | Slot::Taken | Slot::Arming { .. } => continue,
                }
            };
            // Dropping a batch runs the handler's code: not under the lock.
            let connection = match waiting {
                Slot::Idle { connection, .. } => connection,
                Slot::Parked {
                    connection, batch, ..
                } => {
                    drop(batch);
                    self.parked.fetch_sub(1, Ordering::SeqCst);
                    connection
                }
                Slot::Free | Slot::Taken | Slot::Arming { .. } => continue,
            };
            self.close(number, connection);
        }
    }

    /// Moves an idle or parked connection into the job queue.
    fn run(&self, number: usize, slot: &mut Slot) {
        match std::mem::replace(slot, Slot::Taken) {
            Slot::Idle { connection, timer } => {
                if let Some(timer) = timer {
                    self.timers.lock().remove(&timer);
                }
                self.enqueue(number, connection, None);
            }
            Slot::Parked {
                connection,
                batch,
                timer,
            } => {
                self.parked.fetch_sub(1, Ordering::SeqCst);
                self.timers.lock().remove(&timer);
                self.enqueue(number, connection, Some(batch));
            }
            Slot::Free | Slot::Taken | Slot::Arming { .. } => {
                unreachable!("only what waits in a slot is queued from it")
            }
        }
    }

    /// Begins the stop, over at `deadline` at the latest.
    pub fn begin_stop(&self, deadline: Instant) {
        let at = deadline.as_nanos().min(RUNNING - 1);
        self.stop_at.store(at, Ordering::SeqCst);
        self.wake_poller();
    }

    /// When the stop is over, if the server is stopping.
    pub fn stop_deadline(&self) -> Option<Instant> {
        let at = self.stop_at.load(Ordering::SeqCst);
        (at != RUNNING).then_some(Instant::from_nanos(at))
    }

    /// Whether the server is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stop_deadline().is_some()
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

    /// Ends every worker, behind the jobs that are queued.
    pub fn end_workers(&self) {
        for _ in 0..self.limits.workers {
            self.send(Job::End);
        }
    }

    fn send(&self, job: Job) {
        if let Err(TrySendError::Full(_)) = self.jobs.try_send(job) {
            unreachable!("the job queue has a place for every slot and every worker");
        }
    }

    fn ticket(&self) -> u64 {
        self.next_ticket.fetch_add(1, Ordering::Relaxed)
    }

    fn add_timer(&self, at: Instant, slot: usize, ticket: u64) -> Timer {
        let timer = Timer { at, slot, ticket };
        let is_first = {
            let mut timers = self.timers.lock();
            timers.insert(timer);
            timers.first() == Some(&timer)
        };
        if is_first {
            self.wake_poller();
        }
        timer
    }

    fn wake_poller(&self) {
        if let Err(error) = self.poll_waker.wake() {
            log::error!("waking the poller failed: {error}");
        }
    }
}
