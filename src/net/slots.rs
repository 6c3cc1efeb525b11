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
//! Lock order: a slot, then the timers or the gate; nothing else is locked under any of them. Under
//! a slot's lock the socket is registered, a system call that does not block.
//!
//! The job queue has a place for every slot and every worker's end. A connection is queued once at
//! most, as it is moved into its job, so the queue cannot be full.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use mio::{Registry, Token};
use parking_lot::Mutex;

use super::budget::Budget;
use super::connection::Connection;
use super::jobs::{Gate, Job, Rider, Seat};
use super::timers::{Timer, Timers, Wait};
use super::{Handler, Limits, Parked, Waker};
use crate::clock::{Clock, Instant};

/// Up to so many connections the poller serves one that is alone itself. With 64 it did so a third
/// of the time, and each time kept the others waiting: 37,000 GETs a second instead of 47,000.
const FEW_CONNECTIONS: usize = 4;

/// Slots beyond the connection limit, for those being told that it is reached. When they are used
/// up too, a connection is closed without a word.
const REFUSALS_MAX: usize = 256;

/// What `stop_at` holds while the server is not stopping.
const RUNNING: u64 = u64::MAX;

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
    /// Waits for its batch, with the other connections of the batch, whose slots are `Taken`.
    Parked {
        riders: Vec<Rider>,
        batch: Box<dyn Parked>,
        timer: Timer,
    },
}

/// What the threads of one server share.
pub struct Shared {
    /// Who executes batches.
    pub handler: Arc<dyn Handler>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The limits.
    pub limits: Limits,
    /// Bytes held for all clients.
    pub budget: Arc<Budget>,
    slots: Vec<Mutex<Slot>>,
    /// Numbers of free slots: below the connection limit, and from it on for refusals.
    free: Mutex<[Vec<usize>; 2]>,
    timers: Mutex<Timers>,
    gate: Mutex<Gate>,
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
        handler: Arc<dyn Handler>,
        clock: Arc<dyn Clock>,
        (limits, budget): (Limits, Arc<Budget>),
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
            clock,
            budget,
            limits,
            slots: (0..count).map(|_| Mutex::new(Slot::Free)).collect(),
            free: Mutex::new(free),
            timers: Mutex::default(),
            gate: Mutex::new(Gate::default()),
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

    /// Queues a connection that is in no slot, for any worker.
    pub fn enqueue(&self, seat: Seat) {
        self.gate.lock().enter();
        self.send(Job::Serve(vec![seat]));
    }

    /// Hands connections that became ready to workers, or keeps them until a worker is done or they
    /// have waited long enough; says when that is. For the poller.
    pub fn gather(&self, ready: &mut Vec<Seat>, now: Instant) -> Option<Instant> {
        let mut gate = self.gate.lock();
        gate.add(ready, now);
        while let Some(seats) = gate.pass(now, self.is_stopping()) {
            self.send(Job::Serve(seats));
        }
        gate.opens_at()
    }

    /// Whether there are few clients, and none is served or waits to be: then waking a worker would
    /// cost more than it gains.
    pub fn is_quiet(&self) -> bool {
        self.open() <= FEW_CONNECTIONS && self.gate.lock().is_quiet()
    }

    /// What a worker that is done with a job serves next without being woken for it; if there is
    /// nothing, it serves no longer.
    pub fn next_seats(&self) -> Vec<Seat> {
        self.gate.lock().next()
    }

    /// Frees the slot of a connection that is closed.
    pub fn close(&self, seat: Seat) {
        let Seat { slot, connection } = seat;
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

    /// Gives a connection back until its socket is ready or its wait is over. Comes back to the
    /// caller if the socket cannot be registered, or if the server is stopping and nothing is to
    /// be sent.
    pub fn give_back(&self, mut seat: Seat, wait: Wait) -> Result<(), Seat> {
        let number = seat.slot;
        let mut slot = self.slots[number].lock();
        // Read under the lock: either this sees the stop, or the sweep sees this slot filled.
        let is_over = self.is_stopping() && !seat.connection.has_output();
        let token = Token(number);
        if is_over || seat.connection.register(&self.registry, token).is_err() {
            return Err(seat);
        }
        let connection = seat.connection;
        let timer = match wait {
            Wait::Until(at) => Some(self.add_timer(at, number, self.ticket(), false)),
            Wait::Stalled(at) => Some(self.add_timer(at, number, self.ticket(), true)),
            Wait::Forever => None,
        };
        *slot = Slot::Idle { connection, timer };
        Ok(())
    }

    /// Parks a batch with its connections, in the slot of the first. Comes back to the caller if it
    /// was woken meanwhile.
    pub fn park(
        self: &Arc<Self>,
        riders: Vec<Rider>,
        mut batch: Box<dyn Parked>,
    ) -> Option<(Vec<Rider>, Box<dyn Parked>)> {
        let number = riders.first().expect("a batch has a connection").seat.slot;
        let ticket = self.ticket();
        let at = batch.deadline();
        let is_woken = false;
        *self.slots[number].lock() = Slot::Arming { ticket, is_woken };
        batch.arm(Waker::of_slot(Arc::clone(self), number, ticket));
        let mut slot = self.slots[number].lock();
        if matches!(*slot, Slot::Arming { is_woken: true, .. }) {
            *slot = Slot::Taken;
            return Some((riders, batch));
        }
        self.parked.fetch_add(1, Ordering::SeqCst);
        let timer = self.add_timer(at, number, ticket, false);
        *slot = Slot::Parked {
            riders,
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

    /// The socket of a connection is ready: takes it out of its slot, if it is idle there.
    pub fn take_ready(&self, number: usize) -> Option<Seat> {
        let mut slot = self.slots.get(number)?.lock();
        if !matches!(*slot, Slot::Idle { .. }) {
            return None;
        }
        match std::mem::replace(&mut *slot, Slot::Taken) {
            Slot::Idle { connection, timer } => {
                if let Some(timer) = timer {
                    self.timers.lock().remove(&timer);
                }
                let slot = number;
                Some(Seat { slot, connection })
            }
            Slot::Free | Slot::Taken | Slot::Arming { .. } | Slot::Parked { .. } => {
                unreachable!("it was looked at under this lock")
            }
        }
    }

    /// Queues what is due at `now`, and says when the next timer is.
    pub fn run_timers(&self, now: Instant) -> Option<Instant> {
        let is_short = self.budget.is_short(now);
        loop {
            let timer = match self.timers.lock().next(now, is_short) {
                Ok(timer) => timer,
                Err(next) => return next,
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
            if let Some(seat) = self.take_ready(number) {
                self.enqueue(seat);
            }
        }
    }

    /// Drops all connections that wait for a worker, are idle or parked.
    pub fn drop_all(&self) {
        let waiting = self.gate.lock().empty();
        waiting.into_iter().for_each(|seat| self.close(seat));
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
            match waiting {
                Slot::Idle { connection, .. } => self.close(Seat {
                    slot: number,
                    connection,
                }),
                Slot::Parked { riders, batch, .. } => {
                    drop(batch);
                    self.parked.fetch_sub(1, Ordering::SeqCst);
                    riders.into_iter().for_each(|rider| self.close(rider.seat));
                }
                Slot::Free | Slot::Taken | Slot::Arming { .. } => {}
            }
        }
    }

    /// Moves an idle or parked connection into the job queue.
    fn run(&self, number: usize, slot: &mut Slot) {
        match std::mem::replace(slot, Slot::Taken) {
            Slot::Idle { connection, timer } => {
                if let Some(timer) = timer {
                    self.timers.lock().remove(&timer);
                }
                let slot = number;
                self.enqueue(Seat { slot, connection });
            }
            Slot::Parked {
                riders,
                batch,
                timer,
            } => {
                self.parked.fetch_sub(1, Ordering::SeqCst);
                self.timers.lock().remove(&timer);
                self.gate.lock().enter();
                self.send(Job::Resume { riders, batch });
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

    fn add_timer(&self, at: Instant, slot: usize, ticket: u64, is_of_stall: bool) -> Timer {
        let timer = Timer {
            at,
            slot,
            ticket,
            is_of_stall,
        };
        let is_first = {
            let mut timers = self.timers.lock();
            timers.insert(timer)
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
