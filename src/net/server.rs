//! Starts and stops the threads that serve one or several listening addresses.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use mio::{Poll, Waker};

use super::Handler;
use super::budget::Budget;
use super::poller::{Poller, WAKER};
use super::slots::{Shared, jobs_max};
use super::workers::Worker;
use crate::clock::{Clock, Instant};
use crate::protocol::Sessions;
use crate::threads::{Threads, spawn};

/// The limits of one [`Server`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Worker threads.
    pub workers: usize,
    /// Connections open at a time.
    pub connections_max: usize,
    /// Unread reply bytes of one client from which on it is not read from; it is again at half.
    pub output_bytes_max: usize,
    /// Bytes held for all clients together: input, output, and the requests being executed.
    pub budget_bytes: usize,
    /// Parked batches.
    pub parked_max: usize,
    /// How long a connection that the server closes is drained of what still arrives.
    pub linger: Duration,
    /// How long a client may take nothing of its replies while the budget is crossed or its
    /// connection is to be closed; then it is dropped. While stopping no longer than `linger`.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            workers: 64,
            connections_max: 10_000,
            output_bytes_max: 4 << 20,
            budget_bytes: 256 << 20,
            parked_max: 4096,
            linger: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// How much longer than the deadline of a stop its threads may take to end: they have nothing left
/// to do then but to notice.
const JOIN_GRACE: Duration = Duration::from_millis(250);

/// A listening address and what is spoken there.
pub struct Door {
    /// The listening socket.
    pub listener: TcpListener,
    /// Makes the session of each connection.
    pub sessions: Arc<dyn Sessions>,
}

/// What a server holds.
pub struct Gauges(Arc<Shared>);

impl Gauges {
    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.0.open()
    }

    /// Batches parked now.
    pub fn parked(&self) -> usize {
        self.0.parked()
    }

    /// Bytes held for all clients now, see [`super::budget`].
    pub fn bytes_held(&self) -> usize {
        self.0.budget.used()
    }
}

/// A running server: its `poll` and `work-N` threads, ended by [`Server::stop`]. Dropped without
/// that, it goes on to the end of the process.
pub struct Server {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    threads: Threads,
}

impl Server {
    /// Starts to serve all doors by one set of threads and within one set of limits.
    pub fn start(
        doors: Vec<Door>,
        handler: Arc<dyn Handler>,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> io::Result<Server> {
        let budget = Budget::new(limits.budget_bytes);
        Server::start_within(doors, handler, clock, limits, budget)
    }

    /// As [`Server::start`], with the budget from which `handler` reserves room for its replies.
    pub fn start_within(
        doors: Vec<Door>,
        handler: Arc<dyn Handler>,
        clock: Arc<dyn Clock>,
        limits: Limits,
        budget: Arc<Budget>,
    ) -> io::Result<Server> {
        assert!(limits.workers > 0, "a server needs a worker");
        let addresses = doors.iter().map(|door| door.listener.local_addr());
        let addresses = addresses.collect::<io::Result<_>>()?;
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let poller = Poller::new(poll, doors)?;
        let (sender, jobs) = crossbeam_channel::bounded(jobs_max(&limits));
        let workers = limits.workers;
        let shared = Arc::new(Shared::new(
            handler,
            clock,
            (limits, budget),
            sender,
            (registry, waker),
        ));

        let mut threads = Threads::default();
        let polled = Arc::clone(&shared);
        threads.push(spawn("poll", move || poller.run(&polled))?);
        for number in 1..=workers {
            let worker = Worker::new(Arc::clone(&shared));
            let jobs = jobs.clone();
            threads.push(spawn(format!("work-{number}"), move || worker.run(&jobs))?);
        }
        Ok(Server {
            addresses,
            shared,
            threads,
        })
    }

    /// Where it listens, in the order of its doors.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it holds, as it changes.
    pub fn gauges(&self) -> Gauges {
        Gauges(Arc::clone(&self.shared))
    }

    /// Stops in order: accepts no more, finishes the batches that were begun, sends their replies,
    /// closes, and joins its threads. What is not done by `deadline` is dropped; threads that are
    /// still running then are named.
    pub fn stop(self, deadline: Instant) -> Result<(), Vec<String>> {
        self.shared.begin_stop(deadline);
        self.threads
            .join(&*self.shared.clock, deadline + JOIN_GRACE)
    }
}
