//! Makes calls: does what [`attempts`](super::attempts) says, over connections of the pool.
//!
//! Several calls made at once are sent together: all that are for the same leader go on one
//! connection before the first reply is waited for, and each goes on by itself from what it was
//! answered. A single call is such a group of one.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::attempts::{Attempts, Event, Policy, Step};
use super::connection::{Connection, Reply};
use super::error::ClientError;
use super::options::ClientOptions;
use super::pool::Pool;
use super::request::Request;
use crate::clock::{self, Clock, Instant};

/// A socket's time-out must not be 0, and is rounded to milliseconds by some systems.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// What all users of a client share.
pub(super) struct Caller {
    /// Where the leaders are, as the program said; not empty.
    pub addresses: Arc<[String]>,
    pub options: ClientOptions,
    pub clock: Arc<dyn Clock>,
    pub pool: Pool,
    pub memory: Mutex<Memory>,
}

/// What is remembered from call to call. Its lock is held for a moment only.
pub(super) struct Memory {
    pub random: fastrand::Rng,
    /// The leader that answered last.
    pub last: Option<String>,
}

/// A reply, and who gave it.
pub(super) type Answered = (Reply, String);

/// A call under way.
struct Call<'a> {
    request: &'a Request,
    attempts: Attempts,
    /// What is to be done next.
    step: Step,
    /// What it was answered last.
    reply: Option<Answered>,
}

impl Caller {
    /// Makes one call: attempts until one of them has the caller's reply.
    pub fn call(&self, request: &Request) -> Result<Answered, ClientError> {
        let mut results = self.call_all(&[request]);
        results.pop().expect("a result for each request")
    }

    /// Makes calls together; a result for each, in their order.
    pub fn call_all(&self, requests: &[&Request]) -> Vec<Result<Answered, ClientError>> {
        let (mut random, last) = {
            let mut memory = self.memory.lock();
            (memory.random.fork(), memory.last.clone())
        };
        let now = self.clock.now();
        // The first reply may come only when all are done.
        let extra = requests.iter().map(|request| request.extra).sum();
        let begin = |request: &&'_ Request| {
            let policy = Policy {
                patience: self.options.patience,
                deadline: now + self.options.deadline,
                attempt_timeout: self.options.attempt_timeout,
                extra,
                is_write: request.is_write,
                is_repeatable: request.is_repeatable,
            };
            let addresses = Arc::clone(&self.addresses);
            let mut attempts = Attempts::new(policy, addresses, last.as_deref(), random.fork());
            let step = attempts.step(Event::Start, now);
            (attempts, step)
        };
        let begun: Vec<_> = requests.iter().map(begin).collect();
        let calls = begun.into_iter().zip(requests);
        let mut calls: Vec<Call<'_>> = calls
            .map(|((attempts, step), request)| Call {
                request,
                attempts,
                step,
                reply: None,
            })
            .collect();
        loop {
            let asking = calls.iter().find_map(|call| match &call.step {
                Step::Ask { address, .. } => Some(address.clone()),
                Step::Rest { .. } | Step::Reply | Step::GiveUp(_) => None,
            });
            let resting = calls.iter().filter_map(|call| match call.step {
                Step::Rest { until } => Some(until),
                Step::Ask { .. } | Step::Reply | Step::GiveUp(_) => None,
            });
            match (asking, resting.max()) {
                (Some(address), _) => self.ask(&address, &mut calls),
                (None, Some(until)) => self.rest(until, &mut calls),
                (None, None) => return calls.into_iter().map(Call::finish).collect(),
            }
        }
    }

    /// Waits until all that rest have rested.
    fn rest(&self, until: Instant, calls: &mut [Call<'_>]) {
        clock::sleep(until.since(self.clock.now()));
        let now = self.clock.now();
        let resting = |call: &&mut Call<'_>| matches!(call.step, Step::Rest { .. });
        for call in calls.iter_mut().filter(resting) {
            call.step = call.attempts.step(Event::Rested, now);
        }
    }

    /// Makes the next attempt of all calls that ask this leader.
    fn ask(&self, address: &str, calls: &mut [Call<'_>]) {
        let asks = |call: &&mut Call<'_>| match &call.step {
            Step::Ask { address: to, .. } => to == address,
            Step::Rest { .. } | Step::Reply | Step::GiveUp(_) => false,
        };
        let mut asking: Vec<&mut Call<'_>> = calls.iter_mut().filter(asks).collect();
        let left = |call: &Call<'_>, now: Instant| match call.step {
            Step::Ask { until, .. } => until.since(now).max(TIMEOUT_MIN),
            Step::Rest { .. } | Step::Reply | Step::GiveUp(_) => TIMEOUT_MIN,
        };
        let first = asking.first().map(|call| left(call, self.clock.now()));
        let open = self.pool.take(address).map_or_else(
            || {
                Connection::open(
                    address,
                    self.options
                        .connect_timeout
                        .min(first.unwrap_or(TIMEOUT_MIN)),
                )
            },
            Ok,
        );
        let mut connection = match open {
            Ok(connection) => connection,
            Err(error) => {
                let event = Event::Unreachable(error.to_string());
                return self.happened(&mut asking, |_| event.clone());
            }
        };
        let now = self.clock.now();
        let waits = asking.iter().map(|call| (call.request, left(call, now)));
        let exchange = connection.ask_all(&waits.collect::<Vec<_>>());
        let mut replies = exchange.replies.into_iter();
        for call in &mut asking {
            call.reply = replies.next().map(|reply| (reply, address.to_owned()));
        }
        if asking.iter().any(|call| call.reply.is_some()) {
            self.memory.lock().last = Some(address.to_owned());
        }
        let why = exchange.error.map(|error| error.to_string());
        if why.is_none() {
            self.pool.put(address.to_owned(), connection);
        }
        let why = why.unwrap_or_default();
        self.happened(&mut asking, |(place, call)| match &call.reply {
            Some((reply, _)) => Event::Answered(reply.line.clone()),
            None if place < exchange.sent => Event::Lost(why.clone()),
            None => Event::Unreachable(why.clone()),
        });
    }

    /// Tells each call what has happened to it.
    fn happened(&self, calls: &mut [&mut Call<'_>], event: impl Fn((usize, &Call<'_>)) -> Event) {
        let now = self.clock.now();
        for (place, call) in calls.iter_mut().enumerate() {
            let event = event((place, call));
            call.step = call.attempts.step(event, now);
        }
    }
}

impl Call<'_> {
    fn finish(self) -> Result<Answered, ClientError> {
        match self.step {
            Step::Reply => Ok(self.reply.expect("it was just answered")),
            Step::GiveUp(error) => Err(error),
            Step::Ask { .. } | Step::Rest { .. } => unreachable!("it is not over"),
        }
    }
}
