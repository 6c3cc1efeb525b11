//! Starts and stops the threads that serve one or several listening addresses.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::{Poll, Waker};

use super::acceptor::Acceptor;
use super::budget::Budget;
use super::helpers::{self, Helpers};
use super::mailbox::{Mailbox, WAKER};
use super::outbox::Bounds;
use super::shared::Shared;
use super::turns::Turns;
use super::worker::Worker;
use super::{Call, Handler};
use crate::clock::{Clock, Instant};
use crate::protocol::Sessions;
use crate::protocol::admission::Admission;
use crate::threads::{self, Thread, Threads};

/// The limits of one [`Server`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Worker threads, which never wait: as many as there are processors keep them all busy.
    pub workers: usize,
    /// Connections open at a time, the reserved ones among them; see [`super::places`].
    pub connections_max: usize,
    /// How long a connection has to be idle before it may be closed for a new one.
    pub idle_min: Duration,
    /// Unread reply bytes of one client from which on it is not read from; it is again at half.
    pub output_bytes_max: usize,
    /// Bytes held for all clients together: input, output, and the requests being executed.
    pub budget_bytes: usize,
    /// What may wait in the outbox of one session.
    pub outbox: Bounds,
    /// Batches that were begun and have no replies yet.
    pub under_way_max: usize,
    /// How long a connection that the server closes is drained of what still arrives.
    pub linger: Duration,
    /// How long a client may take nothing of its replies while the budget is crossed or its
    /// connection is to be closed; then it is dropped. While stopping no longer than `linger`.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            workers: 2,
            connections_max: 10_000,
            idle_min: Duration::from_secs(10),
            output_bytes_max: 4 << 20,
            budget_bytes: 256 << 20,
            outbox: Bounds::default(),
            under_way_max: 16_384,
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
#[derive(Clone)]
pub struct Gauges(Arc<Shared>);

impl Gauges {
    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.0.open()
    }

    /// Connections of each worker now.
    pub fn by_worker(&self) -> Vec<usize> {
        self.0.connections()
    }

    /// How long the turns of all workers took since the start.
    pub fn turns(&self) -> Turns {
        self.0.all_turns()
    }

    /// Batches under way now.
    pub fn under_way(&self) -> usize {
        self.0.under_way.load(Ordering::SeqCst)
    }

    /// Bytes held for all clients now, see [`super::budget`].
    pub fn bytes_held(&self) -> usize {
        self.0.budget.used()
    }
}

/// A way to the workers for batches that come by other ways than connections.
pub struct Entrance(Arc<Shared>);

impl Entrance {
    /// Has a batch executed by one of the workers. Whoever submits it bounds how many there are.
    pub fn submit(&self, call: Call) {
        self.0.submit(call);
    }
}

/// What a thread executes.
pub(super) type Body = Box<dyn FnOnce() + Send>;

/// Starts a thread with this name.
pub(super) type Spawn<'a> = &'a mut dyn FnMut(String, Body) -> io::Result<Thread>;

/// A running server: its `accept` and `work-N` threads, ended by [`Server::stop`]. Dropped without
/// that, it goes on to the end of the process.
pub struct Server {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    threads: Threads,
    helpers: (Helpers, usize, Threads),
}

impl Server {
    /// Starts to serve all doors by one set of threads and within one set of limits. `executor` is
    /// who permits and counts batches, and who executes them.
    pub fn start(
        doors: Vec<Door>,
        executor: (Arc<dyn Admission>, Arc<dyn Handler>),
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> io::Result<Server> {
        let budget = Budget::new(limits.budget_bytes);
        Server::start_within(doors, executor, clock, limits, budget)
    }

    /// As [`Server::start`], with the budget from which the handler reserves room for its
    /// replies.
    pub fn start_within(
        doors: Vec<Door>,
        executor: (Arc<dyn Admission>, Arc<dyn Handler>),
        clock: Arc<dyn Clock>,
        limits: Limits,
        budget: Arc<Budget>,
    ) -> io::Result<Server> {
        let mut spawn = |name: String, body| threads::spawn(name, body);
        Server::start_by(&mut spawn, doors, executor, clock, (limits, budget))
    }

    /// As [`Server::start_within`], with the function that starts threads.
    pub(super) fn start_by(
        spawn: Spawn<'_>,
        doors: Vec<Door>,
        executor: (Arc<dyn Admission>, Arc<dyn Handler>),
        clock: Arc<dyn Clock>,
        (limits, budget): (Limits, Arc<Budget>),
    ) -> io::Result<Server> {
        assert!(limits.workers > 0, "a server needs a worker");
        let addresses = doors.iter().map(|door| door.listener.local_addr());
        let addresses = addresses.collect::<io::Result<_>>()?;
        let accept = Poll::new()?;
        let waker = Waker::new(accept.registry(), WAKER)?;
        let acceptor = Acceptor::new(accept, doors, limits.idle_min)?;
        let polls = (0..limits.workers).map(|_| Poll::new());
        let polls = polls.collect::<io::Result<Vec<_>>>()?;
        let mailbox = |poll: &Poll| Mailbox::new(poll.registry()).map(Arc::new);
        let mailboxes = polls.iter().map(mailbox).collect::<io::Result<Vec<_>>>()?;
        let (helpers, helper) = helpers::queue(limits.under_way_max);
        let helpers_count = (limits.workers / 2).max(1);
        let shared = Arc::new(Shared::new(
            executor,
            clock,
            (limits, budget),
            (mailboxes.clone(), helpers.clone()),
            waker,
        ));

        let mut helping: Vec<(String, Body)> = Vec::new();
        for number in 1..=helpers_count {
            let helper = helper.clone();
            helping.push((format!("help-{number}"), Box::new(move || helper.run())));
        }
        let mut serving: Vec<(String, Body)> = Vec::new();
        for (number, (poll, mailbox)) in polls.into_iter().zip(mailboxes).enumerate() {
            let worker = Worker::new(Arc::clone(&shared), number, poll, mailbox);
            serving.push((
                format!("work-{}", number + 1),
                Box::new(move || worker.run()),
            ));
        }
        let accepting = Arc::clone(&shared);
        serving.push(("accept".into(), Box::new(move || acceptor.run(&accepting))));
        let mut server = Server {
            addresses,
            shared,
            threads: Threads::default(),
            helpers: (helpers, 0, Threads::default()),
        };
        if let Err(error) = server.start_threads(spawn, helping, serving) {
            let now = server.shared.clock.now();
            // What does not end in time is named in the log.
            let _ = server.stop(now);
            return Err(error);
        }
        Ok(server)
    }

    /// Starts threads with these names and bodies, until one cannot be started.
    fn start_threads(
        &mut self,
        spawn: Spawn<'_>,
        helping: Vec<(String, Body)>,
        serving: Vec<(String, Body)>,
    ) -> io::Result<()> {
        let (_, count, helpers) = &mut self.helpers;
        for (name, body) in helping {
            helpers.push(spawn(name, body)?);
            *count += 1;
        }
        for (name, body) in serving {
            self.threads.push(spawn(name, body)?);
        }
        Ok(())
    }

    /// Where it listens, in the order of its doors.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it holds, as it changes.
    pub fn gauges(&self) -> Gauges {
        Gauges(Arc::clone(&self.shared))
    }

    /// Who computes what takes long.
    pub fn helpers(&self) -> Helpers {
        self.helpers.0.clone()
    }

    /// A way to its workers.
    pub fn entrance(&self) -> Entrance {
        Entrance(Arc::clone(&self.shared))
    }

    /// Stops in order: accepts no more, finishes the batches that were begun, sends their replies,
    /// closes, and joins its threads. What is not done by `deadline` is dropped; threads that are
    /// still running then are named.
    pub fn stop(self, deadline: Instant) -> Result<(), Vec<String>> {
        self.shared.begin_stop(deadline);
        let clock = &*self.shared.clock;
        let workers = self.threads.join(clock, deadline + JOIN_GRACE);
        let turns = self.shared.all_turns();
        let (count, long) = (turns.count(), turns.of_at_least_us(10));
        log::debug!("{long} of {count} turns of workers took a millisecond or longer");
        self.shared.close();
        let (helpers, count, helping) = self.helpers;
        (0..count).for_each(|_| helpers.end_one(JOIN_GRACE));
        let helpers = helping.join(clock, clock.now() + JOIN_GRACE);
        let late = [workers.err(), helpers.err()];
        let late: Vec<String> = late.into_iter().flatten().flatten().collect();
        match late.is_empty() {
            true => Ok(()),
            false => Err(late),
        }
    }
}
